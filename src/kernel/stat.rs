//! What a subtree uses: CPU time, memory, processes, I/O, pressure.
//!
//! Everything comes from the kernel's own counters of the cgroup, so it covers what was started and ended meanwhile. What
//! an older kernel or a missing controller does not tell is `None`, and never 0.

use std::time::Duration;

use crate::kernel::cgroup::dir::{Dir, Step, walk};
use crate::kernel::cgroup::{Cgroups, Place, is_limited};
use crate::kernel::error::Result;
use crate::model::limits::Controller;
use crate::model::usage::{MemorySource, Usage};

/// How much the tasks of a subtree wait for a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Share of the last 10 seconds in which some task waited, in percent, 0 to 100.
    pub some_avg10: f64,
    /// Time in which some task waited since the cgroup was made, in microseconds.
    pub some_total_us: u64,
}

impl Cgroups {
    /// Reads what a subtree uses.
    ///
    /// Its costs grow with the number of cgroups in the subtree, and where no memory controller is set, with that of its
    /// processes.
    ///
    /// # Errors
    /// What opening the place answered; [`is_gone`](crate::kernel::error::KernelError::is_gone) if it was removed.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "Core Interface Files" and "Controllers"; accounting/psi.rst, "Cgroup2 interface".
    pub fn usage(&self, place: &Place) -> Result<Usage> {
        let dir = self.dir(place)?;
        let mirror = |controller| self.mirror(place, controller);
        let mut usage = Usage::default();
        if let Ok(text) = dir.read("cpu.stat") {
            usage.cpu_usage_us = flat(&text, "usage_usec");
            usage.cpu_user_us = flat(&text, "user_usec");
            usage.cpu_system_us = flat(&text, "system_usec");
            usage.cpu_throttled = flat(&text, "nr_throttled");
        }
        // On a hybrid host cgroup2's `cpu.stat` may show periods that nobody counts.
        if let Some(mirror) = mirror(Controller::Cpu) {
            usage.cpu_throttled = mirror.read("cpu.stat").ok().and_then(|text| flat(&text, "nr_throttled"));
        }
        let pids = count(&mut usage, dir.descend("")?)?;
        let v1_memory = mirror(Controller::Memory).filter(is_limited);
        read_memory(&mut usage, &dir, v1_memory.as_ref(), &pids);
        read_io(&mut usage, &dir, mirror(Controller::Io).as_ref());
        let pressure = |file: &str| Some(some_pressure(&dir.read(file).ok()?)?.some_avg10);
        usage.cpu_pressure_avg10 = pressure("cpu.pressure");
        usage.memory_pressure_avg10 = pressure("memory.pressure");
        usage.io_pressure_avg10 = pressure("io.pressure");
        Ok(usage)
    }

    /// Reads how much CPU time a subtree has used since its cgroup was made, those that have ended in it included.
    ///
    /// # Errors
    /// What the read answered; [`is_gone`](crate::kernel::error::KernelError::is_gone) if the place was removed.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "CPU Interface Files", `cpu.stat`: there without the controller, too.
    pub fn cpu_used(&self, place: &Place) -> Result<Duration> {
        let text = self.dir(place)?.read("cpu.stat")?;
        Ok(Duration::from_micros(flat(&text, "usage_usec").unwrap_or(0)))
    }
}

/// Counts processes and tasks, and returns the processes.
fn count(usage: &mut Usage, top: Dir) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    let mut tasks = 0;
    walk(top, &mut |step| {
        if let Step::Entered { dir, .. } = step {
            all.extend(dir.pids("cgroup.procs")?);
            tasks += dir.pids("cgroup.threads")?.len() as u64;
        }
        Ok(())
    })?;
    (usage.processes, usage.tasks) = (Some(all.len() as u64), Some(tasks));
    Ok(all)
}

fn read_memory(usage: &mut Usage, dir: &Dir, mirror: Option<&Dir>, pids: &[i32]) {
    let number = |dir: &Dir, file: &str| dir.read(file).ok().and_then(|text| text.trim().parse().ok());
    let from = |current, peak| (current, peak, MemorySource::Cgroup);
    let (current, peak, source) = match (number(dir, "memory.current"), mirror) {
        (Some(current), _) => from(Some(current), number(dir, "memory.peak")),
        (None, Some(mirror)) => {
            from(number(mirror, "memory.usage_in_bytes"), number(mirror, "memory.max_usage_in_bytes"))
        }
        (None, None) => (Some(pids.iter().filter_map(|pid| resident(*pid)).sum()), None, MemorySource::Rss),
    };
    (usage.memory_current_bytes, usage.memory_peak_bytes, usage.memory_source) = (current, peak, source);
}

fn read_io(usage: &mut Usage, dir: &Dir, mirror: Option<&Dir>) {
    if let Ok(text) = dir.read("io.stat") {
        usage.io_read_bytes = Some(sum_of(&text, "rbytes="));
        usage.io_write_bytes = Some(sum_of(&text, "wbytes="));
    } else if let Some(Ok(text)) = mirror.map(|mirror| mirror.read("blkio.throttle.io_service_bytes_recursive")) {
        usage.io_read_bytes = Some(sum_of(&text, "Read "));
        usage.io_write_bytes = Some(sum_of(&text, "Write "));
    }
}

/// Returns the resident set of a process, in bytes; `None` if it is gone.
pub(super) fn resident(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Finds a number by its key in a flat-keyed file: `KEY VALUE`, one on a line.
pub(crate) fn flat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Adds up what stands behind a key, once a line: `8:0 rbytes=1 …` on cgroup2, `8:0 Read 1` on v1.
fn sum_of(text: &str, key: &str) -> u64 {
    let number = |line: &str| {
        let rest = &line[line.find(key)? + key.len()..];
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    text.lines().filter_map(number).sum()
}

/// Reads the `some` line of a pressure file.
fn some_pressure(text: &str) -> Option<Pressure> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let word = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    Some(Pressure { some_avg10: word("avg10=")?.parse().ok()?, some_total_us: word("total=")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_files_are_read_by_key_and_unknown_keys_passed_over() {
        let text = "usage_usec 12\nuser_usec 7\nnew_thing 9\nnr_throttled x\n";
        assert_eq!(flat(text, "usage_usec"), Some(12));
        assert_eq!(flat(text, "user"), None, "a key is a whole word");
        assert_eq!(flat(text, "nr_throttled"), None);
    }

    #[test]
    fn io_is_added_up_over_devices_in_both_worlds() {
        let v2 = "8:0 rbytes=10 wbytes=1 rios=1 dbytes=7\n8:16 rbytes=5 wbytes=2\n253:0 \n";
        assert_eq!((sum_of(v2, "rbytes="), sum_of(v2, "wbytes=")), (15, 3));
        let v1 = "254:0 Read 100\n254:0 Write 20\n254:0 Total 120\nTotal 120\n";
        assert_eq!((sum_of(v1, "Read "), sum_of(v1, "Write ")), (100, 20));
    }

    #[test]
    fn pressure_is_what_some_task_waited() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=1234\nfull avg10=9.00 avg60=0 avg300=0 total=9\n";
        assert_eq!(some_pressure(text), Some(Pressure { some_avg10: 1.5, some_total_us: 1_234 }));
        assert_eq!(some_pressure(""), None);
    }
}
