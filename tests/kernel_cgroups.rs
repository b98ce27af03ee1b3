//! Facts about cgroups, proved on the running kernel: each test is named after what it proves.
//!
//! They need root and a writable cgroup2; they run on hybrid hosts (limits through v1) and on unified ones alike.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use treeherd::kernel::cgroup::{Cgroups, Events, Frozen, Place, Removal};
use treeherd::kernel::host::{Binding, Host, Layout};
use treeherd::model::error::Code;
use treeherd::model::limits::{Controller, Knob, Limits, Setting};
use treeherd::model::usage::MemorySource;

const DEADLINE: Duration = Duration::from_secs(60);
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A herd of its own under a name of its own; nothing of it is left when it is dropped, by a panic too.
struct Herd {
    cgroups: Cgroups,
    root: String,
    children: Vec<Child>,
}

impl Herd {
    fn new() -> Self {
        let name = format!("th-k1-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self::at(&name)
    }

    fn at(root: &str) -> Self {
        let host = Arc::new(Host::discover().expect("a host with cgroup2"));
        let cgroups = Cgroups::create(host, root).expect("a root cgroup");
        Self { cgroups, root: root.to_owned(), children: Vec::new() }
    }

    fn binding(&self, controller: Controller) -> &Binding {
        self.cgroups.host().binding(controller)
    }

    /// Starts a shell script inside of a leaf and returns it with the first line that it says.
    fn start(&mut self, leaf: &Place, script: &str) -> (usize, String) {
        let at = self.launch(leaf, script);
        let line = self.hear(at);
        (at, line)
    }

    /// Waits for the next line that a child says; at its end there is none.
    fn hear(&mut self, at: usize) -> String {
        let (out, end) = (self.children[at].stdout.as_mut().unwrap(), Instant::now() + DEADLINE);
        let (mut line, mut byte) = (Vec::new(), [0u8; 1]);
        while line.last() != Some(&b'\n') {
            ready(&out, PollFlags::IN, end);
            if out.read(&mut byte).unwrap() == 0 {
                break;
            }
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim().to_owned()
    }

    /// Starts a shell script inside of a leaf: it is moved there before it does anything.
    fn launch(&mut self, leaf: &Place, script: &str) -> usize {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id().to_string();
        let mut doors = self.cgroups.entrances(leaf).unwrap();
        doors.push(self.cgroups.procs_fd(leaf).unwrap());
        for door in doors {
            rustix::io::write(&door, pid.as_bytes()).unwrap();
        }
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        self.children.push(child);
        self.children.len() - 1
    }

    /// Waits for a child's end.
    fn wait(&mut self, at: usize) -> ExitStatus {
        let child = &mut self.children[at];
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        ready(&fd, PollFlags::IN, Instant::now() + DEADLINE);
        child.wait().unwrap()
    }

    /// Waits until the events of a place are as wanted.
    fn until(&self, place: &Place, wanted: impl Fn(Events) -> bool) -> Events {
        let end = Instant::now() + DEADLINE;
        let dir = self.cgroups.open_dir(place).unwrap();
        let file = std::fs::File::open(format!("/proc/self/fd/{}/cgroup.events", dir.as_raw_fd())).unwrap();
        loop {
            let _ = std::io::read_to_string(&file).unwrap();
            let events = self.cgroups.events(place).unwrap();
            if wanted(events) {
                return events;
            }
            ready(&file, PollFlags::PRI, end);
            std::io::Seek::rewind(&mut &file).unwrap();
        }
    }

    fn until_empty(&self, place: &Place) {
        self.until(place, |events| !events.populated);
    }

    fn make(&self, place: &Place, limits: &[&str]) {
        self.cgroups.make(place, &limits_of(limits)).unwrap();
    }

    fn leaf(&self, agent: &Place) -> Place {
        let leaf = agent.join("run-1");
        drop(self.cgroups.make_leaf(&leaf).unwrap());
        leaf
    }

    /// All directories of this herd, in every hierarchy that is mounted.
    fn everywhere(&self) -> Vec<PathBuf> {
        mounts().into_iter().map(|mount| mount.join(&self.root)).filter(|path| path.exists()).collect()
    }

    /// The directories of a place, in every hierarchy.
    fn twins(&self, place: &Place) -> usize {
        mounts().iter().filter(|mount| mount.join(&self.root).join(place.path()).exists()).count()
    }

    fn now(&self, place: &Place, knob: Knob) -> Option<Setting> {
        self.cgroups.limits_now(place, [knob]).get(knob).cloned()
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        let herd = Place::herd();
        drop(self.cgroups.kill(&herd));
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        if self.cgroups.open_dir(&herd).is_ok() {
            self.until_empty(&herd);
        }
        let removal = self.cgroups.remove_root();
        let left = self.everywhere();
        if !std::thread::panicking() {
            assert_eq!(removal.unwrap(), Removal::Removed);
            assert_eq!(left, Vec::<PathBuf>::new(), "nothing of ours is left in any hierarchy");
        }
    }
}

fn ready(fd: &impl AsFd, what: PollFlags, end: Instant) {
    let left = end.checked_duration_since(Instant::now()).expect("the fact came before the deadline");
    let timeout = Timespec { tv_sec: left.as_secs().try_into().unwrap(), tv_nsec: left.subsec_nanos().into() };
    poll(&mut [PollFd::new(fd, what)], Some(&timeout)).unwrap();
}

/// Where cgroup hierarchies are mounted, and this process's own cgroups on v1, below which mirrors are.
fn mounts() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = text.lines().filter(|line| line.contains(" - cgroup"));
    let points = cgroups.map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
    let own = Host::discover().unwrap().own_v1.into_iter().filter(|(_, own)| own != "/");
    points.chain(own.map(|(point, own)| point.join(own.trim_start_matches('/')))).collect()
}

fn limits_of(texts: &[&str]) -> Limits {
    let mut limits = Limits::default();
    texts.iter().for_each(|text| limits.set_text(text).unwrap());
    limits
}

fn setting(knob: Knob, text: &str) -> Option<Setting> {
    Some(knob.parse(text).unwrap())
}

fn agent(name: &str) -> Place {
    Place::herd().join(name)
}

/// Touches this many MiB.
fn hog(mib: u32) -> String {
    format!("exec dd if=/dev/zero of=/dev/null bs={mib}M count=1")
}

const SLEEPER: &str = "echo up; exec sleep 1000";

#[test]
fn every_controller_of_this_host_has_one_binding() {
    let host = Host::discover().unwrap();
    assert_eq!(host.bindings.len(), Controller::ALL.len());
    assert!(host.cgroup2.join("cgroup.procs").exists());
    for (controller, binding) in &host.bindings {
        if let Binding::V1 { mount } = binding {
            assert!(mount.join("tasks").exists(), "{controller}");
            assert_eq!(host.layout, Layout::Hybrid);
        }
    }
}

#[test]
fn limits_are_read_back_as_they_were_set() {
    let herd = Herd::new();
    let place = agent("a");
    let given = ["memory_max=64MiB", "pids_max=7", "cpu_max=50%", "cpu_weight=37", "cpuset_cpus=0"];
    herd.make(&place, &given);
    for text in given {
        let knob: Knob = text.split('=').next().unwrap().parse().unwrap();
        assert_eq!(herd.now(&place, knob), setting(knob, text.split('=').nth(1).unwrap()), "{knob}");
    }
    herd.cgroups.set_limits(&place, &limits_of(&["memory_max=max", "cpu_max=25000 50000", "pids_max=max"])).unwrap();
    assert_eq!(herd.now(&place, Knob::CpuMax), setting(Knob::CpuMax, "25000 50000"));
    assert_eq!(herd.now(&place, Knob::MemoryMax), setting(Knob::MemoryMax, "max"));
    assert_eq!(herd.now(&place, Knob::PidsMax), setting(Knob::PidsMax, "max"));
    assert_eq!(herd.now(&place, Knob::CpuWeight), setting(Knob::CpuWeight, "37"), "what is not named stays");
}

#[test]
fn a_memory_limit_kills_within_the_cgroup_and_the_limit_above_holds_too() {
    let mut herd = Herd::new();
    let (outer, inner) = (agent("outer"), agent("outer").join("level-1").join("inner"));
    herd.make(&outer, &["memory_max=48MiB"]);
    herd.make(&outer.join("level-1"), &[]);
    herd.make(&inner, &["memory_max=256MiB"]);
    let (outer_leaf, inner_leaf) = (herd.leaf(&outer), herd.leaf(&inner));
    let bystander = herd.launch(&outer_leaf, "read end; exit 5");

    let victim = herd.launch(&inner_leaf, &hog(150));
    let status = herd.wait(victim);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status:?}");
    let counts = |place| herd.cgroups.oom_counts(place).unwrap().unwrap();
    assert!(counts(&outer).oom > 0, "the limit that was reached is the outer one");
    assert_eq!(counts(&inner).oom, 0);
    // The victim's leaf has no memory cgroup in either world: it is charged to the nearest one above.
    assert!(herd.cgroups.oom_counts(&inner_leaf).unwrap().is_none());
    assert_eq!((counts(&inner).oom_kill, counts(&outer).oom_kill), (1, 0), "the victim's counter rises, only its");
    herd.children[bystander].stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
    assert_eq!(herd.wait(bystander).code(), Some(5), "others in the outer cgroup go on");
}

#[test]
fn on_v1_the_eventfd_tells_of_an_oom_in_the_cgroup_whose_limit_it_was_and_in_those_below() {
    let mut herd = Herd::new();
    let (outer, inner, beside) = (agent("outer"), agent("outer").join("inner"), agent("beside"));
    herd.make(&outer, &["memory_max=32MiB"]);
    herd.make(&inner, &["memory_max=256MiB"]);
    herd.make(&beside, &["memory_max=32MiB"]);
    let Binding::V1 { .. } = herd.binding(Controller::Memory) else {
        assert!(herd.cgroups.oom_eventfd(&outer).unwrap().is_none(), "cgroup2 has memory.events.local for that");
        return;
    };
    let fd = |place| herd.cgroups.oom_eventfd(place).unwrap().unwrap();
    let (outer_fd, inner_fd, beside_fd) = (fd(&outer), fd(&inner), fd(&beside));
    let leaf = herd.leaf(&inner);
    let victim = herd.launch(&leaf, &hog(100));
    assert!(!herd.wait(victim).success());
    let signalled = |fd: &OwnedFd| rustix::io::read(fd, &mut [0u8; 8]).is_ok();
    assert!(signalled(&outer_fd) && signalled(&inner_fd));
    assert!(!signalled(&beside_fd));
    assert!(herd.cgroups.oom_eventfd(&agent("unlimited")).unwrap().is_none());
}

#[test]
fn a_pids_limit_refuses_the_fork_above_it_and_nobody_elses() {
    let mut herd = Herd::new();
    let (tight, free) = (agent("tight"), agent("free"));
    herd.make(&tight, &["pids_max=3"]);
    herd.make(&free, &[]);
    let forks = "for i in 1 2 3 4 5; do sleep 1000 >/dev/null & done; echo forked; kill $(jobs -p)";
    let leaf = herd.leaf(&tight);
    let (failing, said) = herd.start(&leaf, forks);
    assert_eq!(said, "", "the shell ends at the fork that fails");
    assert!(!herd.wait(failing).success());
    let leaf = herd.leaf(&free);
    assert_eq!(herd.start(&leaf, forks).1, "forked");
}

#[test]
fn a_cpu_quota_throttles() {
    let mut herd = Herd::new();
    let place = agent("a");
    herd.make(&place, &["cpu_max=10%"]);
    let leaf = herd.leaf(&place);
    let busy = herd.launch(&leaf, "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done");
    assert!(herd.wait(busy).success());
    let usage = herd.cgroups.usage(&place).unwrap();
    assert!(usage.cpu_throttled.unwrap() > 0, "{usage:?}");
    assert!(usage.cpu_usage_us.unwrap() > 10_000, "{usage:?}");
}

#[test]
fn a_cpuset_binds_what_is_started_below_it_too() {
    let mut herd = Herd::new();
    let (outer, inner) = (agent("outer"), agent("outer").join("level-1").join("inner"));
    herd.make(&outer, &["cpuset_cpus=0"]);
    herd.make(&outer.join("level-1"), &[]);
    herd.make(&inner, &["pids_max=20"]);
    let leaf = herd.leaf(&inner);
    let (_, allowed) = herd.start(&leaf, "grep Cpus_allowed_list /proc/self/status; exec sleep 1000");
    assert_eq!(allowed.split_whitespace().last(), Some("0"));
}

#[test]
fn cpus_that_do_not_exist_are_refused_and_nothing_is_left() {
    let herd = Herd::new();
    let place = agent("a");
    let error = herd.cgroups.make(&place, &limits_of(&["pids_max=5", "cpuset_cpus=4000"])).unwrap_err();
    assert!(error.remedy.is_some(), "{error}");
    assert_eq!(herd.twins(&place), 0, "all or nothing, in every hierarchy");
    herd.make(&place, &["pids_max=5"]);
    let error = herd.cgroups.set_limits(&place, &limits_of(&["pids_max=9", "cpuset_cpus=4000"])).unwrap_err();
    assert!(error.remedy.is_some(), "{error}");
    assert_eq!(herd.now(&place, Knob::PidsMax), setting(Knob::PidsMax, "5"), "put back");
}

#[test]
fn a_limit_that_is_not_offered_is_refused_before_anything_is_made() {
    let herd = Herd::new();
    let place = agent("a");
    for knob in Knob::ALL {
        let Err(error) = herd.cgroups.host().enforcer(knob) else { continue };
        assert_eq!(error.code, Code::LimitNotOffered);
        let text = match knob {
            Knob::MemoryOomGroup => "true",
            Knob::IoMax => "8:0 rbps=1MiB",
            Knob::CpuMax => "50%",
            Knob::CpusetCpus => "0",
            _ => "100",
        };
        let limits = [(knob, knob.parse(text).unwrap())].into_iter().collect();
        assert_eq!(herd.cgroups.make(&place, &limits).unwrap_err().code, Code::LimitNotOffered, "{knob}");
        assert_eq!(herd.twins(&place), 0);
    }
}

#[test]
fn swap_is_limited_beside_memory_in_both_worlds() {
    let herd = Herd::new();
    let place = agent("a");
    if let Err(error) = herd.cgroups.host().enforcer(Knob::MemorySwapMax) {
        eprintln!("skipped: {error}");
        return;
    }
    let set = |texts: &[&str]| herd.cgroups.set_limits(&place, &limits_of(texts));
    herd.make(&place, &["memory_max=64MiB", "memory_swap_max=16MiB"]);
    let swap = || herd.now(&place, Knob::MemorySwapMax);
    assert_eq!(swap(), setting(Knob::MemorySwapMax, "16MiB"));
    for max in ["memory_max=256MiB", "memory_max=32MiB"] {
        set(&[max]).unwrap();
        assert_eq!(swap(), setting(Knob::MemorySwapMax, "16MiB"), "{max} leaves the room for swap as it is");
    }
    set(&["memory_swap_max=0"]).unwrap();
    assert_eq!(swap(), setting(Knob::MemorySwapMax, "0"));
    set(&["memory_max=max", "memory_swap_max=max"]).unwrap();
    let alone = set(&["memory_swap_max=1MiB"]);
    if let Binding::V1 { .. } = herd.binding(Controller::Memory) {
        assert_eq!(alone.unwrap_err().code, Code::LimitNotOffered, "v1 counts swap only together with memory");
    }
}

#[test]
fn io_rates_are_set_for_one_device_and_an_unknown_device_is_refused() {
    let herd = Herd::new();
    if let Err(error) = herd.cgroups.host().enforcer(Knob::IoMax) {
        eprintln!("skipped: {error}");
        return;
    }
    let place = agent("a");
    herd.make(&place, &[]);
    let error = herd.cgroups.set_limits(&place, &limits_of(&["io_max=4001:77 rbps=1MiB"])).unwrap_err();
    assert_eq!(error.code, Code::BadValue, "{error}");
    let disk = std::fs::read_dir("/sys/block").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let size = std::fs::read_to_string(path.join("size")).ok()?;
        (size.trim() != "0").then(|| std::fs::read_to_string(path.join("dev")).unwrap().trim().to_owned())
    });
    let Some(disk) = disk else {
        eprintln!("skipped: this host has no block device");
        return;
    };
    let text = format!("{disk} rbps=1048576 wbps=max riops=100 wiops=max");
    herd.cgroups.set_limits(&place, &limits_of(&[&format!("io_max={text}")])).unwrap();
    assert_eq!(herd.now(&place, Knob::IoMax), setting(Knob::IoMax, &text));
}

#[test]
fn a_live_limit_moves_what_runs_into_the_new_cgroup() {
    let mut herd = Herd::new();
    let (outer, inner) = (agent("outer"), agent("outer").join("level-1").join("inner"));
    herd.make(&outer, &[]);
    herd.make(&outer.join("level-1"), &[]);
    herd.make(&inner, &["pids_max=10"]);
    let (outer_leaf, inner_leaf) = (herd.leaf(&outer), herd.leaf(&inner));
    let forks =
        "sleep 1000 >/dev/null & sleep 1000 >/dev/null & echo up; read go; sleep 1000 >/dev/null & echo forked; wait";
    let (at, _) = herd.start(&outer_leaf, forks);
    herd.start(&inner_leaf, SLEEPER);

    herd.cgroups.set_limits(&outer, &limits_of(&["pids_max=4", "memory_max=64MiB"])).unwrap();
    if let Binding::V1 { mount } = herd.binding(Controller::Pids) {
        let read = |place: &Place| {
            let own = herd.cgroups.host().own_v1[mount].trim_start_matches('/');
            let path = mount.join(own).join(&herd.root).join(place.path());
            std::fs::read_to_string(path.join("pids.current")).unwrap().trim().to_owned()
        };
        assert_eq!((read(&outer), read(&inner)), ("4".to_owned(), "1".to_owned()), "the deeper one keeps its own");
        assert!(herd.cgroups.mirrored(&outer, Controller::Memory));
    }
    herd.children[at].stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(herd.hear(at), "", "the next fork is refused");
    let usage = herd.cgroups.usage(&outer).unwrap();
    assert_eq!(usage.memory_source, MemorySource::Cgroup);
}

#[test]
fn a_frozen_subtree_is_killed_without_a_thaw() {
    let mut herd = Herd::new();
    let place = agent("a");
    herd.make(&place, &[]);
    let leaf = herd.leaf(&place);
    let (at, _) = herd.start(&leaf, "trap '' TERM; sleep 1000 >/dev/null & echo up; wait");
    herd.cgroups.set_frozen(&place, Frozen::Frozen).unwrap();
    assert!(herd.until(&place, |events| events.frozen).populated);
    assert_eq!(herd.cgroups.laggards(&place), [], "nobody holds the freeze up");
    assert_eq!(herd.cgroups.kill(&place).unwrap(), 2);
    assert!(!herd.wait(at).success());
    herd.until_empty(&place);
    herd.cgroups.set_frozen(&place, Frozen::Thawed).unwrap();
    assert_eq!(herd.cgroups.remove(&place).unwrap(), Removal::Removed);
    assert_eq!(herd.cgroups.kill(&place).unwrap(), 0, "what is gone has no processes");
    assert!(herd.cgroups.events(&place).unwrap_err().is_gone());
}

#[test]
fn a_populated_subtree_is_not_removed_and_loses_nothing() {
    let mut herd = Herd::new();
    let place = agent("a");
    herd.make(&place, &["pids_max=20"]);
    let empty = place.join("level-1");
    herd.make(&empty, &[]);
    let leaf = herd.leaf(&place);
    herd.start(&leaf, SLEEPER);
    assert_eq!(herd.cgroups.remove(&place).unwrap(), Removal::Busy);
    assert!(herd.cgroups.open_dir(&empty).is_ok());
    herd.cgroups.kill(&place).unwrap();
    herd.until_empty(&place);
    assert_eq!(herd.cgroups.remove(&place).unwrap(), Removal::Removed);
    assert_eq!(herd.twins(&place), 0);
    assert_eq!(herd.cgroups.remove(&place).unwrap(), Removal::Removed, "already gone is removed");
}

#[test]
fn a_signal_reaches_every_process_of_the_subtree_and_nobody_else() {
    let mut herd = Herd::new();
    let (place, beside) = (agent("a"), agent("b"));
    let (leaf, other) = {
        herd.make(&place, &[]);
        herd.make(&beside, &[]);
        (herd.leaf(&place), herd.leaf(&beside))
    };
    let (at, _) =
        herd.start(&leaf, "sleep 1000 >/dev/null & sleep 1000 >/dev/null & sleep 1000 >/dev/null & echo up; wait");
    let (bystander, _) = herd.start(&other, "echo up; read end; exit 7");
    assert_eq!(herd.cgroups.processes(&place).unwrap().len(), 4);
    assert_eq!(herd.cgroups.signal(&place, &[Signal::TERM]).unwrap().len(), 4);
    herd.wait(at);
    herd.until_empty(&place);
    assert_eq!(herd.cgroups.signal(&place, &[Signal::TERM]).unwrap().len(), 0);
    herd.children[bystander].stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
    assert_eq!(herd.wait(bystander).code(), Some(7));
}

#[test]
fn sixty_four_levels_are_made_limited_used_and_removed() {
    let mut herd = Herd::new();
    let top = agent("top");
    herd.make(&top, &[]);
    let mut place = top.clone();
    for level in 1..=64 {
        let below = place.join(&format!("level-{level}"));
        herd.make(&below, &[]);
        place = below.join("agent");
        herd.make(&place, &[]);
    }
    herd.cgroups.set_limits(&place, &limits_of(&["memory_max=64MiB", "pids_max=5"])).unwrap();
    let leaf = herd.leaf(&place);
    herd.start(&leaf, SLEEPER);
    assert_eq!(herd.cgroups.kill(&top).unwrap(), 1);
    herd.until_empty(&top);
    assert_eq!(herd.cgroups.remove(&top).unwrap(), Removal::Removed);
    assert_eq!(herd.twins(&top), 0);
}

#[test]
fn a_path_may_be_longer_than_path_max() {
    let mut herd = Herd::new();
    let top = agent("top");
    herd.make(&top, &[]);
    let mut place = top.clone();
    while place.path().len() < 9_000 {
        place = place.join(&"x".repeat(63));
        herd.make(&place, &[]);
    }
    herd.cgroups.set_limits(&place, &limits_of(&["pids_max=5"])).unwrap();
    assert_eq!(herd.now(&place, Knob::PidsMax), setting(Knob::PidsMax, "5"));
    let leaf = herd.leaf(&place);
    let (at, _) = herd.start(&leaf, SLEEPER);
    assert_eq!(herd.cgroups.usage(&place).unwrap().processes, Some(1));
    assert_eq!(
        herd.cgroups.signal(&place, &[Signal::TERM]).unwrap().len(),
        1,
        "the kernel cannot name its cgroup, and we need not"
    );
    herd.wait(at);
    herd.until_empty(&top);
    assert_eq!(herd.cgroups.leftovers().unwrap().last().unwrap(), &leaf);
    assert_eq!(herd.cgroups.remove(&top).unwrap(), Removal::Removed);
}

#[test]
fn the_figures_of_a_subtree_are_there_with_and_without_controllers() {
    let mut herd = Herd::new();
    let (plain, limited) = (agent("plain"), agent("limited"));
    herd.make(&plain, &[]);
    let leaf = herd.leaf(&plain);
    herd.start(&leaf, "sleep 1000 >/dev/null & echo up; wait");
    let usage = herd.cgroups.usage(&plain).unwrap();
    assert_eq!((usage.processes, usage.tasks), (Some(2), Some(2)));
    assert!(usage.cpu_usage_us.is_some() && usage.cpu_pressure_avg10.is_some(), "{usage:?}");
    if usage.memory_source == MemorySource::Rss {
        assert!(usage.memory_current_bytes.unwrap() > 0 && usage.memory_peak_bytes.is_none(), "{usage:?}");
    }
    herd.make(&limited, &["memory_max=64MiB"]);
    let leaf = herd.leaf(&limited);
    herd.start(&leaf, "dd if=/dev/zero of=/dev/null bs=8M count=1; echo up; exec sleep 1000");
    let usage = herd.cgroups.usage(&limited).unwrap();
    assert_eq!(usage.memory_source, MemorySource::Cgroup);
    assert!(usage.memory_peak_bytes.unwrap() >= 8 << 20, "{usage:?}");
    assert!(usage.memory_current_bytes.unwrap() <= usage.memory_peak_bytes.unwrap());
}

#[test]
fn a_herd_that_was_left_is_listed_and_mirrors_without_a_place_are_collected() {
    let mut herd = Herd::new();
    let (kept, gone) = (agent("kept"), agent("gone"));
    herd.make(&kept, &["pids_max=5"]);
    herd.make(&gone, &["pids_max=5"]);
    let leaf = herd.leaf(&kept);
    herd.start(&leaf, SLEEPER);
    std::fs::remove_dir(herd.cgroups.host().cgroup2.join(&herd.root).join(gone.path())).unwrap();

    let next = Herd::at(&herd.root);
    let places: BTreeSet<Place> = next.cgroups.leftovers().unwrap().into_iter().collect();
    assert_eq!(places, BTreeSet::from([kept.clone(), leaf]));
    assert_eq!(next.twins(&gone), 0, "its mirror is gone too");
    assert_eq!(next.now(&kept, Knob::PidsMax), setting(Knob::PidsMax, "5"));
    drop(next);
    assert_eq!(herd.everywhere(), Vec::<PathBuf>::new(), "whoever ends last removes what an earlier one made");
    // So that the first one's own end finds a herd.
    herd.children.clear();
    let again = Herd::at(&herd.root);
    drop(std::mem::replace(
        &mut herd.cgroups,
        Cgroups::create(Arc::new(Host::discover().unwrap()), &again.root).unwrap(),
    ));
    std::mem::forget(again);
}

#[test]
fn a_root_that_was_there_before_stays_and_hands_no_controllers_down() {
    let mount = Host::discover().unwrap().cgroup2;
    let outside = format!("th-k1-{}-outside", std::process::id());
    std::fs::create_dir(mount.join(&outside)).unwrap();
    let herd = Herd::at(&format!("{outside}/inner"));
    herd.make(&agent("a"), &["pids_max=5"]);
    assert_eq!(herd.cgroups.remove_root().unwrap(), Removal::Removed);
    let left = herd.everywhere();
    let stays = mount.join(&outside).exists();
    std::mem::forget(herd);
    std::fs::remove_dir(mount.join(&outside)).unwrap();
    assert!(left.is_empty() && stays, "{left:?}");
}

#[test]
fn on_v1_cpus_that_are_inherited_follow_and_those_that_were_set_stay() {
    let herd = Herd::new();
    let Binding::V1 { .. } = herd.binding(Controller::Cpuset) else {
        eprintln!("skipped: cpuset is not on v1");
        return;
    };
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: one CPU");
        return;
    }
    let (top, between) = (agent("top"), agent("top").join("level-1"));
    let inner = between.join("inner");
    herd.make(&top, &["cpuset_cpus=0-1"]);
    herd.make(&between, &[]);
    herd.make(&inner, &["cpuset_cpus=0"]);
    let cpus = || [&top, &between, &inner].map(|place| herd.now(place, Knob::CpusetCpus).unwrap().to_string());
    assert_eq!(cpus(), ["0-1", "0-1", "0"]);
    let set = |text: &str| herd.cgroups.set_limits(&top, &limits_of(&[text]));
    assert_eq!(set("cpuset_cpus=1").unwrap_err().code, Code::WrongState);
    assert_eq!(cpus(), ["0-1", "0-1", "0"], "all or nothing");
    set("cpuset_cpus=0").unwrap();
    assert_eq!(cpus(), ["0", "0", "0"]);
    // The innermost set is now the same as the one above it, and is taken for inherited.
    set("cpuset_cpus=1").unwrap();
    assert_eq!(cpus(), ["1", "1", "1"]);
}

#[test]
fn the_supervisor_enters_a_fresh_leaf_and_leaves_it() {
    if !is_alone("the_supervisor_enters_a_fresh_leaf_and_leaves_it") {
        return;
    }
    let herd = Herd::new();
    let own = || {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        text.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned)).unwrap()
    };
    let before = own();
    assert_eq!(herd.cgroups.enter_supervisor().unwrap(), "supervisor");
    assert_eq!(own(), format!("/{}/supervisor", herd.root));
    assert_eq!(herd.cgroups.enter_supervisor().unwrap(), "supervisor-2", "one in use is not fresh");
    let inside = Herd::at(&herd.root);
    herd.cgroups.leave_supervisor().unwrap();
    assert_eq!(own(), before);
    herd.cgroups.enter_supervisor().unwrap();
    herd.make(&agent("a"), &["pids_max=5", "memory_max=64MiB"]);
    std::mem::forget(inside);
    assert_eq!(herd.cgroups.remove_root().unwrap(), Removal::Removed);
    assert_eq!((own(), herd.everywhere()), (before, Vec::new()));
    std::mem::forget(herd);
}

#[test]
fn a_kill_that_would_hit_the_supervisor_itself_is_refused() {
    if !is_alone("a_kill_that_would_hit_the_supervisor_itself_is_refused") {
        return;
    }
    let herd = Herd::new();
    let (place, beside) = (agent("a"), agent("b"));
    herd.make(&place, &[]);
    herd.make(&beside, &[]);
    let leaf = herd.leaf(&place);
    rustix::io::write(herd.cgroups.procs_fd(&leaf).unwrap(), b"0").unwrap();
    for above in [&leaf, &place, &Place::herd()] {
        let error = herd.cgroups.kill(above).unwrap_err();
        assert_eq!(error.errno, rustix::io::Errno::BUSY, "{error}");
    }
    assert_eq!(herd.cgroups.kill(&beside).unwrap(), 0, "a sibling may be killed");
    std::fs::write(herd.cgroups.host().cgroup2.join("cgroup.procs"), "0").unwrap();
}

/// Says whether this process runs one test only. A test that moves its own process starts itself again for that, so
/// that the children of other tests do not move along.
fn is_alone(test: &str) -> bool {
    if std::env::var_os("TH_ALONE").is_some() {
        return true;
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", test, "--nocapture"]).env("TH_ALONE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    false
}
