//! The knobs of cgroup2.
//!
//! # Kernel
//! cgroup-v2.rst, "Controllers".

use rustix::io::Errno;

use super::texts;
use super::writer::{self, MemoryFile};
use crate::kernel::cgroup::dir::Dir;
use crate::kernel::error::{KernelError, Result};
use crate::model::error::{Code, Error};
use crate::model::limits::{Knob, Setting};
use crate::model::units::CpuSet;

/// Writes a knob.
pub(super) fn write(dir: &Dir, knob: Knob, setting: &Setting) -> Result<()> {
    let memory_file = match knob {
        Knob::MemoryMax => Some(MemoryFile::Max),
        Knob::MemoryHigh => Some(MemoryFile::High),
        Knob::MemoryLow => Some(MemoryFile::Low),
        Knob::MemoryMin => Some(MemoryFile::Min),
        Knob::MemorySwapMax => Some(MemoryFile::SwapMax),
        _ => None,
    };
    match (knob, setting, memory_file) {
        (_, Setting::Bytes(value), Some(file)) => writer::memory_v2(dir, file, texts::plain(*value)),
        (Knob::PidsMax, Setting::Count(count), _) => writer::pids(dir, super::World::V2, *count),
        (Knob::CpuMax, Setting::Cpu(max), _) => writer::cpu_max_v2(dir, *max),
        (Knob::CpuWeight, Setting::Weight(weight), _) => writer::cpu_share(dir, super::World::V2, u64::from(*weight)),
        // oom.group, cpuset, io and hugetlb: the crate lacks them, or writes them wrongly.
        _ => dir.write(knob.file(), &setting.to_string()),
    }
}

/// Reads a knob. Of `io.max` the device is read that is named, or the first that has a limit.
pub(super) fn read(dir: &Dir, knob: Knob, device: Option<(u32, u32)>) -> Result<Option<Setting>> {
    let text = dir.read(knob.file())?;
    let setting = match knob {
        Knob::MemoryMax
        | Knob::MemoryHigh
        | Knob::MemoryLow
        | Knob::MemoryMin
        | Knob::MemorySwapMax
        | Knob::Hugetlb2MbMax
        | Knob::Hugetlb1GbMax => texts::bytes(&text),
        Knob::MemoryOomGroup => Some(Setting::Flag(text.trim() == "1")),
        Knob::PidsMax => texts::count(&text),
        Knob::CpuMax => texts::cpu_max(&text),
        Knob::CpuWeight | Knob::IoWeight => texts::weight(&text),
        Knob::CpusetCpus if text.trim().is_empty() => return Ok(None),
        Knob::CpusetCpus => text.parse().ok().map(Setting::Cpus),
        Knob::IoMax => match device.or_else(|| texts::first_device(&text)) {
            Some(device) => Some(Setting::Io(texts::io_max(&text, device))),
            None => return Ok(None),
        },
    };
    match setting {
        Some(setting) => Ok(Some(setting)),
        None => Err(KernelError::new("read", dir.object(knob.file()), Errno::PROTO)
            .hint(format!("{:?} is not understood", text.trim()))),
    }
}

/// Checks that a set of CPUs is in force. cgroup2 takes any set: where none of it is in the set above, it silently uses
/// that one instead, which is no limit at all.
pub(super) fn verify_cpus(dir: &Dir, wanted: &CpuSet) -> std::result::Result<(), Error> {
    let effective = dir.read("cpuset.cpus.effective")?;
    let is_in_force = effective.trim().parse::<CpuSet>().is_ok_and(|effective| effective.is_within(wanted));
    if is_in_force {
        return Ok(());
    }
    let message = format!("cpuset_cpus: none of {wanted} may be used in {}: only {} is", dir.label(), effective.trim());
    Err(Error::new(Code::LimitTooWide, message).remedy("use CPUs of the set above"))
}
