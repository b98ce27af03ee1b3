//! What a part of the herd uses: straight from the kernel's files, sampled when somebody looks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The use of resources of one cgroup and all below it. A field that the kernel or the host does not offer is null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// CPU time used, in microseconds.
    pub cpu_usage_us: Option<u64>,
    /// The part of it spent in user mode, in microseconds.
    pub cpu_user_us: Option<u64>,
    /// The part of it spent in the kernel, in microseconds.
    pub cpu_system_us: Option<u64>,
    /// How many periods were cut short by `cpu_max`.
    pub cpu_throttled: Option<u64>,
    /// Memory used now, in bytes.
    pub memory_current_bytes: Option<u64>,
    /// The most memory that was used at once, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Where the memory figures come from.
    pub memory_source: MemorySource,
    /// Processes that live.
    pub processes: Option<u64>,
    /// Tasks (threads) that live, where the pids controller counts them.
    pub tasks: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
    /// Percent of the last 10 s in which some task waited for a CPU.
    pub cpu_pressure_avg10: Option<f64>,
    /// Percent of the last 10 s in which some task waited for memory.
    pub memory_pressure_avg10: Option<f64>,
    /// Percent of the last 10 s in which some task waited for I/O.
    pub io_pressure_avg10: Option<f64>,
}

impl Usage {
    /// Adds the use of another cgroup that is not above or below this one. Pressures do not add up: the higher one is kept.
    pub fn add(&mut self, other: &Self) {
        let sum = |mine: &mut Option<u64>, theirs: Option<u64>| {
            if let Some(theirs) = theirs {
                *mine = Some(mine.unwrap_or(0).saturating_add(theirs));
            }
        };
        let high =
            |mine: &mut Option<f64>, theirs: Option<f64>| *mine = mine.iter().copied().chain(theirs).reduce(f64::max);
        sum(&mut self.cpu_usage_us, other.cpu_usage_us);
        sum(&mut self.cpu_user_us, other.cpu_user_us);
        sum(&mut self.cpu_system_us, other.cpu_system_us);
        sum(&mut self.cpu_throttled, other.cpu_throttled);
        sum(&mut self.memory_current_bytes, other.memory_current_bytes);
        sum(&mut self.memory_peak_bytes, other.memory_peak_bytes);
        sum(&mut self.processes, other.processes);
        sum(&mut self.tasks, other.tasks);
        sum(&mut self.io_read_bytes, other.io_read_bytes);
        sum(&mut self.io_write_bytes, other.io_write_bytes);
        high(&mut self.cpu_pressure_avg10, other.cpu_pressure_avg10);
        high(&mut self.memory_pressure_avg10, other.memory_pressure_avg10);
        high(&mut self.io_pressure_avg10, other.io_pressure_avg10);
        if other.memory_source == MemorySource::Cgroup {
            self.memory_source = MemorySource::Cgroup;
        }
    }
}

/// Where a memory figure comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemorySource {
    /// The sum of the resident sets of the processes, shared pages counted for each: no memory cgroup accounts for them.
    #[default]
    Rss,
    /// The memory controller.
    Cgroup,
}
