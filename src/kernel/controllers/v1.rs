//! The knobs of the v1 hierarchies, for hosts on which cgroup2 does not have the controllers.
//!
//! v1 limits memory and *memory with swap* (`memory.memsw.limit_in_bytes`), where cgroup2 limits memory and swap: the
//! two v1 files are written as a pair, in the order in which the second never falls below the first.
//!
//! # Kernel
//! cgroup-v1/memory.rst, cgroup-v1/pids.rst, cgroup-v1/cpusets.rst, cgroup-v1/blkio-controller.rst, scheduler/sched-bwc.rst.

use rustix::io::Errno;

use super::{Before, World, cpuset, is_rounded, refused, texts, writer};
use crate::kernel::cgroup::dir::Dir;
use crate::kernel::error::{KernelError, Result};
use crate::model::error::{Code, Error};
use crate::model::limits::{Knob, Limits, Setting};
use crate::model::units::{CpuMax, IoMax, Max};

/// The files of one block device's rates, in the order of [`IoMax`]'s fields.
pub(super) const THROTTLE_FILES: [&str; 4] = [
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
];

const LIMIT: &str = "memory.limit_in_bytes";
const MEMSW: &str = "memory.memsw.limit_in_bytes";

/// The two memory limits of a v1 cgroup, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPair {
    limit: Max<u64>,
    /// Memory with swap; `None` where the kernel does not count swap.
    memsw: Option<Max<u64>>,
}

impl MemoryPair {
    /// Works out the pair that holds new limits; what they do not name stays, the room for swap included.
    fn with(self, max: Option<Max<u64>>, swap: Option<Max<u64>>) -> std::result::Result<Self, Error> {
        let limit = max.unwrap_or(self.limit);
        let room = match (swap, self.memsw, self.limit) {
            (Some(swap), ..) => swap,
            (None, Some(Max::Value(both)), Max::Value(old)) => Max::Value(both.saturating_sub(old)),
            (None, ..) => Max::Max,
        };
        let memsw = match (room, limit) {
            (Max::Max, _) => Max::Max,
            (Max::Value(room), Max::Value(limit)) => Max::Value(limit.saturating_add(room)),
            (Max::Value(_), Max::Max) => {
                return Err(Error::new(
                    Code::LimitNotOffered,
                    "memory_swap_max is not offered here without memory_max: the controller memory is on v1, which limits \
                     swap only together with memory",
                )
                .remedy("limit memory_max too"));
            }
        };
        Ok(Self { limit, memsw: self.memsw.map(|_| memsw) })
    }
}

fn read_pair(dir: &Dir) -> Result<MemoryPair> {
    let limit = texts::bytes_max(&dir.read(LIMIT)?).ok_or_else(|| not_understood(dir, LIMIT))?;
    let memsw = match dir.read(MEMSW) {
        Ok(text) => Some(texts::bytes_max(&text).ok_or_else(|| not_understood(dir, MEMSW))?),
        Err(error) if error.errno == Errno::NOENT => None,
        Err(error) => return Err(error),
    };
    Ok(MemoryPair { limit, memsw })
}

/// Writes `memory_max` and `memory_swap_max`, if they are in the limits.
pub(super) fn apply_memory(dir: &Dir, limits: &Limits, done: &mut Vec<Before>) -> std::result::Result<(), Error> {
    let amount = |knob| match limits.get(knob) {
        Some(Setting::Bytes(value)) => Some(texts::plain(*value)),
        _ => None,
    };
    let (max, swap) = (amount(Knob::MemoryMax), amount(Knob::MemorySwapMax));
    if max.is_none() && swap.is_none() {
        return Ok(());
    }
    let refuse = |error: KernelError, dir: &Dir| -> Error {
        match dir.descend("") {
            Ok(dir) => refused(Knob::MemoryMax, &super::Seat { world: World::V1, dir }, error),
            Err(_) => Error::from(error),
        }
    };
    let before = read_pair(dir).map_err(|error| refuse(error, dir))?;
    let wanted = before.with(max, swap)?;
    done.push(Before::MemoryV1(before));
    write_memory(dir, wanted).map_err(|error| refuse(error, dir))?;
    let got = read_pair(dir)?;
    let is_taken =
        |wanted, got| is_rounded(texts::max_bytes(wanted), texts::max_bytes(got), super::granule(Knob::MemoryMax));
    let both = wanted.memsw.zip(got.memsw).is_none_or(|(wanted, got)| is_taken(wanted, got));
    if is_taken(wanted.limit, got.limit) && both {
        return Ok(());
    }
    Err(Error::new(
        Code::Kernel,
        format!("memory limits {wanted:?} were written to {}, and it says {got:?}", dir.label()),
    ))
}

/// Writes both limits in the order in which the pair is valid at every moment.
pub(super) fn write_memory(dir: &Dir, wanted: MemoryPair) -> Result<()> {
    let now = read_pair(dir)?;
    match wanted.memsw.zip(now.memsw) {
        None => writer::memory_limit_v1(dir, wanted.limit),
        Some((memsw, now)) if wanted.limit.is_wider_than(&now) => {
            writer::memory_memsw_v1(dir, memsw)?;
            writer::memory_limit_v1(dir, wanted.limit)
        }
        Some((memsw, _)) => {
            writer::memory_limit_v1(dir, wanted.limit)?;
            writer::memory_memsw_v1(dir, memsw)
        }
    }
}

/// Writes a knob; memory's go through [`apply_memory`].
pub(super) fn write(dir: &Dir, knob: Knob, setting: &Setting) -> Result<()> {
    match (knob, setting) {
        (Knob::PidsMax, Setting::Count(count)) => writer::pids(dir, World::V1, *count),
        (Knob::CpuMax, Setting::Cpu(max)) => write_cpu(dir, *max),
        (Knob::CpuWeight, Setting::Weight(weight)) => writer::cpu_share(dir, World::V1, shares(*weight)),
        (Knob::CpusetCpus, Setting::Cpus(cpus)) => cpuset::write(dir, &cpus.to_string()),
        (Knob::IoMax, Setting::Io(max)) => writer::io_throttle_v1(dir, max),
        (Knob::IoWeight, Setting::Weight(weight)) => dir.write("blkio.bfq.weight", &weight.to_string()),
        (Knob::Hugetlb2MbMax | Knob::Hugetlb1GbMax, Setting::Bytes(value)) => {
            let text = value.value().map_or("-1".to_owned(), |bytes| bytes.0.to_string());
            dir.write(hugetlb_file(knob), &text)
        }
        _ => Err(KernelError::new("write", dir.object(knob.file()), Errno::NOENT)),
    }
}

/// Quota and period are two files, and every moment's ratio must fit into the one above: where the period changes, the
/// quota is lifted first (the one above goes on to hold).
fn write_cpu(dir: &Dir, max: CpuMax) -> Result<()> {
    if read_period(dir)? != max.period {
        writer::cpu_quota_v1(dir, Max::Max)?;
        writer::cpu_period_v1(dir, max.period)?;
    }
    writer::cpu_quota_v1(dir, max.quota)
}

fn read_period(dir: &Dir) -> Result<u64> {
    let file = "cpu.cfs_period_us";
    dir.read(file)?.trim().parse().map_err(|_| not_understood(dir, file))
}

/// Reads a knob. Of the I/O rates the device is read that is named, or the first that has a limit.
pub(super) fn read(dir: &Dir, knob: Knob, device: Option<(u32, u32)>) -> Result<Option<Setting>> {
    let setting = match knob {
        Knob::MemoryMax => Some(Setting::Bytes(texts::max_bytes(read_pair(dir)?.limit))),
        Knob::MemorySwapMax => match read_pair(dir)? {
            MemoryPair { limit: Max::Value(limit), memsw: Some(Max::Value(both)) } => {
                Some(Setting::Bytes(texts::max_bytes(Max::Value(both.saturating_sub(limit)))))
            }
            _ => Some(Setting::Bytes(Max::Max)),
        },
        Knob::PidsMax => texts::count(&dir.read("pids.max")?),
        Knob::CpuMax => {
            // "No limit" is -1 here.
            let quota = dir.read("cpu.cfs_quota_us")?.trim().parse().map_or(Max::Max, Max::Value);
            Some(Setting::Cpu(CpuMax { quota, period: read_period(dir)? }))
        }
        Knob::CpuWeight => dir.read("cpu.shares")?.trim().parse().ok().map(|shares| Setting::Weight(weight(shares))),
        Knob::CpusetCpus => dir.read("cpuset.cpus")?.parse().ok().map(Setting::Cpus),
        Knob::IoMax => return read_io(dir, device),
        Knob::IoWeight => texts::weight(&dir.read("blkio.bfq.weight")?),
        Knob::Hugetlb2MbMax | Knob::Hugetlb1GbMax => texts::bytes(&dir.read(hugetlb_file(knob))?),
        Knob::MemoryHigh | Knob::MemoryLow | Knob::MemoryMin | Knob::MemoryOomGroup => {
            return Err(KernelError::new("read", dir.object(knob.file()), Errno::NOENT));
        }
    };
    setting.map(Some).ok_or_else(|| not_understood(dir, knob.file()))
}

fn read_io(dir: &Dir, device: Option<(u32, u32)>) -> Result<Option<Setting>> {
    let mut files = Vec::with_capacity(THROTTLE_FILES.len());
    for file in THROTTLE_FILES {
        files.push(dir.read(file)?);
    }
    let Some(device) = device.or_else(|| files.iter().find_map(|text| texts::first_device(text))) else {
        return Ok(None);
    };
    let rate = |index: usize| texts::throttle(&files[index], device);
    let max = IoMax { device, rbps: rate(0), wbps: rate(1), riops: rate(2), wiops: rate(3) };
    Ok(Some(Setting::Io(max)))
}

fn hugetlb_file(knob: Knob) -> &'static str {
    if knob == Knob::Hugetlb1GbMax { "hugetlb.1GB.limit_in_bytes" } else { "hugetlb.2MB.limit_in_bytes" }
}

/// Turns a weight (1 to 10,000, 100 by default) into shares (2 to 262,144, 1,024 by default).
fn shares(weight: u16) -> u64 {
    (u64::from(weight) * 1_024 / 100).clamp(2, 262_144)
}

/// Turns shares back into the weight from which they were made.
fn weight(shares: u64) -> u16 {
    u16::try_from(((shares * 100 + 512) / 1_024).clamp(1, 10_000)).unwrap_or(10_000)
}

fn not_understood(dir: &Dir, file: &str) -> KernelError {
    KernelError::new("read", dir.object(file), Errno::PROTO).hint("its text is not understood")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_comes_back_from_its_shares() {
        assert_eq!((shares(100), shares(1), shares(10_000)), (1_024, 10, 102_400));
        for value in 1..=10_000 {
            assert_eq!(weight(shares(value)), value);
        }
    }

    #[test]
    fn swap_keeps_its_room_when_only_memory_changes() {
        let (value, none) = (Max::Value::<u64>, Max::Max);
        let pair = |limit, memsw| MemoryPair { limit, memsw: Some(memsw) };
        for (before, max, swap, after) in [
            (pair(none, none), Some(value(100)), None, pair(value(100), none)),
            (pair(none, none), Some(value(100)), Some(value(0)), pair(value(100), value(100))),
            (pair(value(100), value(150)), Some(value(300)), None, pair(value(300), value(350))),
            (pair(value(100), value(150)), None, Some(value(10)), pair(value(100), value(110))),
            (pair(value(100), value(150)), None, Some(none), pair(value(100), none)),
            (pair(value(100), value(150)), Some(none), Some(none), pair(none, none)),
        ] {
            assert_eq!(before.with(max, swap).unwrap(), after);
        }
        assert_eq!(pair(none, none).with(None, Some(value(1))).unwrap_err().code, Code::LimitNotOffered);
        assert_eq!(pair(value(1), value(2)).with(Some(none), None).unwrap_err().code, Code::LimitNotOffered);
    }
}
