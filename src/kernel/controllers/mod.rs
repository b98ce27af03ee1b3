//! Limits, from a [`Setting`] to the file that enforces it and back.
//!
//! ```text
//! apply(seats, limits):   for each knob:  read what was  ->  write  ->  read back and compare
//!                         any failure:    everything that was written is put back, last first
//! ```
//!
//! A [`Seat`] is a directory of the hierarchy that drives the controller: of cgroup2, or a mirror on v1. The kernel may
//! round (memory to pages) and clamp; anything else that it did not take is an error, and never a silent no-op.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::kernel::cgroup::dir::Dir;
use crate::kernel::error::{KernelError, Result};
use crate::model::error::{Code, Error};
use crate::model::limits::{Controller, Knob, Limits, Setting};
use crate::model::units::{Bytes, Max};

mod cpuset;
mod texts;
mod v1;
mod v2;
mod writer;

pub(crate) use cpuset::fill_cpuset;

/// Which kind of hierarchy a directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum World {
    /// cgroup2.
    V2,
    /// A v1 hierarchy.
    V1,
}

/// Where a controller's limits of one place are written.
#[derive(Debug)]
pub(crate) struct Seat {
    /// The kind of hierarchy.
    pub world: World,
    /// The cgroup, open.
    pub dir: Dir,
}

/// For each controller, where it is set.
pub(crate) type Seats = BTreeMap<Controller, Seat>;

/// What was in force before a change.
#[derive(Debug)]
pub(crate) enum Before {
    /// A knob had this setting.
    Was(Knob, Setting),
    /// The set of CPUs was inherited from above (v2: an empty file).
    InheritedCpus,
    /// The pair of v1 memory limits, memory and memory with swap.
    MemoryV1(v1::MemoryPair),
}

/// Writes limits, all or none, and returns what was in force before, in the order of the writes.
pub(crate) fn apply(seats: &Seats, limits: &Limits) -> std::result::Result<Vec<Before>, Error> {
    let mut done = Vec::new();
    let outcome = apply_each(seats, limits, &mut done);
    match outcome {
        Ok(()) => Ok(done),
        Err(error) => match put_back(seats, done) {
            Ok(()) => Err(error),
            Err(also) => Err(Error::new(
                error.code,
                format!("{}; and what was before could not be put back: {also}", error.message),
            )),
        },
    }
}

fn apply_each(seats: &Seats, limits: &Limits, done: &mut Vec<Before>) -> std::result::Result<(), Error> {
    let seat = |controller: Controller| &seats[&controller];
    if let Some(seat) = seats.get(&Controller::Memory).filter(|seat| seat.world == World::V1) {
        v1::apply_memory(&seat.dir, limits, done)?;
    }
    for (knob, setting) in limits.iter() {
        let seat = seat(knob.controller());
        if seat.world == World::V1 && knob.controller() == Controller::Memory {
            continue;
        }
        let before = match read_with_device(seat, knob, setting).map_err(|error| refused(knob, seat, error))? {
            Some(before) => Before::Was(knob, before),
            None => Before::InheritedCpus,
        };
        // Noted first: a write that fails half-way (io on v1 has four files) is undone as well.
        done.push(before);
        write(seat, knob, setting).map_err(|error| refused(knob, seat, error))?;
        verify(seat, knob, setting)?;
    }
    Ok(())
}

/// Puts back what was in force before, last first.
pub(crate) fn put_back(seats: &Seats, done: Vec<Before>) -> Result<()> {
    let mut outcome = Ok(());
    for before in done.into_iter().rev() {
        let result = match before {
            Before::Was(knob, setting) => write(&seats[&knob.controller()], knob, &setting),
            Before::InheritedCpus => seats[&Controller::Cpuset].dir.write("cpuset.cpus", "\n"),
            Before::MemoryV1(pair) => v1::write_memory(&seats[&Controller::Memory].dir, pair),
        };
        outcome = outcome.and(result);
    }
    outcome
}

/// Reads what is in force for a knob; `None` where nothing is set (inherited CPUs).
pub(crate) fn read(seat: &Seat, knob: Knob) -> Result<Option<Setting>> {
    match seat.world {
        World::V2 => v2::read(&seat.dir, knob, None),
        World::V1 => v1::read(&seat.dir, knob, None),
    }
}

fn read_with_device(seat: &Seat, knob: Knob, like: &Setting) -> Result<Option<Setting>> {
    let device = match like {
        Setting::Io(max) => Some(max.device),
        _ => None,
    };
    match seat.world {
        World::V2 => v2::read(&seat.dir, knob, device),
        World::V1 => v1::read(&seat.dir, knob, device),
    }
}

fn write(seat: &Seat, knob: Knob, setting: &Setting) -> Result<()> {
    match seat.world {
        World::V2 => v2::write(&seat.dir, knob, setting),
        World::V1 => v1::write(&seat.dir, knob, setting),
    }
}

/// Reads a knob back and compares.
fn verify(seat: &Seat, knob: Knob, wanted: &Setting) -> std::result::Result<(), Error> {
    let got = read_with_device(seat, knob, wanted)?;
    let is_taken = match (wanted, &got) {
        (Setting::Bytes(wanted), Some(Setting::Bytes(got))) => is_rounded(*wanted, *got, granule(knob)),
        (wanted, Some(got)) => wanted == got,
        (_, None) => false,
    };
    if !is_taken {
        let got = got.map_or("nothing".to_owned(), |got| got.to_string());
        return Err(Error::new(
            Code::Kernel,
            format!("{knob}: {wanted} was written to {}, and it says {got}", seat.dir.label()),
        ));
    }
    match (seat.world, wanted) {
        (World::V2, Setting::Cpus(cpus)) => v2::verify_cpus(&seat.dir, cpus),
        _ => Ok(()),
    }
}

/// Returns the unit to which the kernel rounds a knob, in bytes.
fn granule(knob: Knob) -> u64 {
    match knob {
        Knob::Hugetlb2MbMax => 2 << 20,
        Knob::Hugetlb1GbMax => 1 << 30,
        _ => rustix::param::page_size() as u64,
    }
}

/// Says whether an amount is what the kernel makes of another one: rounded down, or too large to count.
fn is_rounded(wanted: Max<Bytes>, got: Max<Bytes>, granule: u64) -> bool {
    match (wanted, got) {
        (Max::Max, Max::Max) => true,
        (Max::Value(wanted), Max::Value(got)) => got.0 <= wanted.0 && wanted.0 - got.0 < granule,
        (Max::Value(wanted), Max::Max) => wanted.0 >= texts::UNCOUNTABLE - granule,
        (Max::Max, Max::Value(_)) => false,
    }
}

/// Turns the kernel's refusal of a limit into an answer to who asked for it.
fn refused(knob: Knob, seat: &Seat, error: KernelError) -> Error {
    let controller = knob.controller();
    let say = |code, why: &str, remedy: &str| Error::new(code, format!("{knob}: {error}: {why}")).remedy(remedy);
    match (error.errno, controller, seat.world) {
        // The cgroup is there and the file is not: this kernel was built without it.
        (Errno::NOENT, ..) if seat.dir.open("cgroup.procs", rustix::fs::OFlags::PATH).is_ok() => say(
            Code::LimitNotOffered,
            &format!("this kernel's {controller} controller has no such limit"),
            "leave the limit out, or run a kernel that has it",
        ),
        (Errno::NODEV | Errno::NXIO | Errno::INVAL, Controller::Io, _) => {
            say(Code::BadValue, "no whole block device has this number", "take MAJOR:MINOR of a disk from lsblk")
        }
        (Errno::INVAL, Controller::Cpu, World::V1) => say(
            Code::LimitTooWide,
            "on v1 a quota must fit into the one above it, and hold those below it",
            "lower the limits below first, or raise the one above",
        ),
        (Errno::INVAL | Errno::ACCESS | Errno::RANGE | Errno::NOSPC, Controller::Cpuset, _) => say(
            Code::LimitTooWide,
            "not all of these CPUs exist and are in the set above it",
            "use CPUs of the set above; cpuset.cpus of it lists them",
        ),
        (Errno::BUSY, Controller::Cpuset, World::V1) => say(
            Code::WrongState,
            "on v1 a set of CPUs must hold those of the cgroups below it",
            "narrow the sets below first",
        ),
        (Errno::BUSY, Controller::Memory, World::V1) => say(
            Code::WrongState,
            "more memory is in use than that, and it cannot be reclaimed; v1 refuses where cgroup2 would kill",
            "use a higher limit, or end processes below first",
        ),
        _ => Error::from(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_down_to_a_page_is_not_a_refusal_and_anything_else_is() {
        let value = |bytes| Max::Value(Bytes(bytes));
        for (wanted, got, is_taken) in [
            (value(4096), value(4096), true),
            (value(5000), value(4096), true),
            (value(4095), value(0), true),
            (value(8192), value(4096), false),
            (value(4096), value(8192), false),
            (value(4096), Max::Max, false),
            (Max::Max, value(4096), false),
            (Max::Max, Max::Max, true),
            (value(u64::MAX), Max::Max, true),
        ] {
            assert_eq!(is_rounded(wanted, got, 4096), is_taken, "{wanted:?} {got:?}");
        }
    }
}
