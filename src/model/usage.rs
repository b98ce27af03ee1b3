//! What a part of the herd uses: straight from the kernel's files, sampled when somebody looks.

use serde::{Deserialize, Serialize};

/// The use of resources of one cgroup and all below it. A field that the kernel or the host does not offer is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// Where a memory figure comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemorySource {
    /// The sum of the resident sets of the processes, shared pages counted for each: no memory cgroup accounts for them.
    #[default]
    Rss,
    /// The memory controller.
    Cgroup,
}
