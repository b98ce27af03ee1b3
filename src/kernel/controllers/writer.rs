//! The one user of `cgroups-rs`: it encodes a limit and writes it into a directory that is ours.
//!
//! Each controller is built over `/proc/self/fd/N`, where N is our own descriptor of the cgroup: what is written cannot
//! land elsewhere, not even if the cgroup is replaced meanwhile. Only single setters are called, and every caller reads
//! back what they wrote. Statistics, `apply`, `delete` and the hierarchy detection of the crate are not used: they swallow
//! errors, or take a hybrid host for a v1 host.

use std::error::Error as _;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::{MemController, SetMemory};
use cgroups_rs::fs::pid::PidController;
use rustix::io::Errno;

use super::World;
use crate::kernel::cgroup::dir::Dir;
use crate::kernel::error::{KernelError, Result};
use crate::model::units::{CpuMax, Max};

/// A file of the v2 memory controller that takes an amount.
#[derive(Clone, Copy)]
pub(super) enum MemoryFile {
    Max,
    High,
    Low,
    Min,
    SwapMax,
}

fn base(dir: &Dir) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
}

/// Turns an amount into the crate's number; what does not fit is above all that the kernel can count.
fn number(value: Max<u64>) -> Option<i64> {
    value.value().and_then(|value| i64::try_from(value).ok())
}

fn max_value(value: Max<u64>) -> MaxValue {
    number(value).map_or(MaxValue::Max, MaxValue::Value)
}

/// Digs the errno out of the crate's error. It opens files with `O_CREAT`, so a file that is not there shows as EACCES
/// or EPERM: then the file is looked up for the true answer.
fn told(result: cgroups_rs::fs::error::Result<()>, dir: &Dir, file: &str, text: &str) -> Result<()> {
    let Err(error) = result else { return Ok(()) };
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    let errno = io.and_then(Errno::from_io_error).unwrap_or(Errno::IO);
    let errno = match errno {
        Errno::ACCESS | Errno::PERM => match rustix::fs::statat(dir, file, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Err(missing) => missing,
            Ok(_) => errno,
        },
        errno => errno,
    };
    Err(KernelError::new(format!("write {text:?} to"), dir.object(file), errno))
}

/// Writes an amount to a file of the v2 memory controller.
pub(super) fn memory_v2(dir: &Dir, file: MemoryFile, value: Max<u64>) -> Result<()> {
    let memory = MemController::new(base(dir), PathBuf::new(), true);
    let some = Some(max_value(value));
    let (name, result) = match file {
        MemoryFile::Max => ("memory.max", memory.set_mem(SetMemory { max: some, ..SetMemory::default() })),
        MemoryFile::High => ("memory.high", memory.set_mem(SetMemory { high: some, ..SetMemory::default() })),
        MemoryFile::Low => ("memory.low", memory.set_mem(SetMemory { low: some, ..SetMemory::default() })),
        MemoryFile::Min => ("memory.min", memory.set_mem(SetMemory { min: some, ..SetMemory::default() })),
        MemoryFile::SwapMax => ("memory.swap.max", memory.set_memswap_limit(number(value).unwrap_or(-1))),
    };
    told(result, dir, name, &value.to_string())
}

/// Writes `memory.limit_in_bytes`.
pub(super) fn memory_limit_v1(dir: &Dir, value: Max<u64>) -> Result<()> {
    let memory = MemController::new(base(dir), PathBuf::new(), false);
    told(memory.set_limit(number(value).unwrap_or(-1)), dir, "memory.limit_in_bytes", &value.to_string())
}

/// Writes `memory.memsw.limit_in_bytes`: memory and swap together.
pub(super) fn memory_memsw_v1(dir: &Dir, value: Max<u64>) -> Result<()> {
    let memory = MemController::new(base(dir), PathBuf::new(), false);
    let result = memory.set_memswap_limit(number(value).unwrap_or(-1));
    told(result, dir, "memory.memsw.limit_in_bytes", &value.to_string())
}

/// Writes `pids.max`, which is the same in both worlds.
pub(super) fn pids(dir: &Dir, world: World, value: Max<u64>) -> Result<()> {
    let pids = PidController::new(base(dir), PathBuf::new(), world == World::V2);
    told(pids.set_pid_max(max_value(value)), dir, "pids.max", &value.to_string())
}

/// Writes `cpu.max`.
pub(super) fn cpu_max_v2(dir: &Dir, max: CpuMax) -> Result<()> {
    let cpu = CpuController::new(base(dir), PathBuf::new(), true);
    let result = cpu.set_cfs_quota_and_period(Some(number(max.quota).unwrap_or(-1)), Some(max.period));
    told(result, dir, "cpu.max", &max.to_string())
}

/// Writes `cpu.cfs_quota_us`, in microseconds.
pub(super) fn cpu_quota_v1(dir: &Dir, quota: Max<u64>) -> Result<()> {
    let cpu = CpuController::new(base(dir), PathBuf::new(), false);
    told(cpu.set_cfs_quota(number(quota).unwrap_or(-1)), dir, "cpu.cfs_quota_us", &quota.to_string())
}

/// Writes `cpu.cfs_period_us`, in microseconds.
pub(super) fn cpu_period_v1(dir: &Dir, period: u64) -> Result<()> {
    let cpu = CpuController::new(base(dir), PathBuf::new(), false);
    told(cpu.set_cfs_period(period), dir, "cpu.cfs_period_us", &period.to_string())
}

/// Writes `cpu.weight` (v2) or `cpu.shares` (v1): the number goes out as it is.
pub(super) fn cpu_share(dir: &Dir, world: World, number: u64) -> Result<()> {
    let cpu = CpuController::new(base(dir), PathBuf::new(), world == World::V2);
    let file = if world == World::V2 { "cpu.weight" } else { "cpu.shares" };
    told(cpu.set_shares(number), dir, file, &number.to_string())
}

/// Writes the four `blkio.throttle.*` files of one device; no limit (0 in the file) removes the device's rule.
pub(super) fn io_throttle_v1(dir: &Dir, max: &crate::model::units::IoMax) -> Result<()> {
    let io = BlkIoController::new(base(dir), PathBuf::new(), false);
    let (major, minor) = (u64::from(max.device.0), u64::from(max.device.1));
    let rate = |rate: Max<u64>| rate.value().unwrap_or(0);
    let say = |rate: Max<u64>| format!("{major}:{minor} {rate}");
    let [rbps, wbps, riops, wiops] = super::v1::THROTTLE_FILES;
    told(io.throttle_read_bps_for_device(major, minor, rate(max.rbps)), dir, rbps, &say(max.rbps))?;
    told(io.throttle_write_bps_for_device(major, minor, rate(max.wbps)), dir, wbps, &say(max.wbps))?;
    told(io.throttle_read_iops_for_device(major, minor, rate(max.riops)), dir, riops, &say(max.riops))?;
    told(io.throttle_write_iops_for_device(major, minor, rate(max.wiops)), dir, wiops, &say(max.wiops))
}
