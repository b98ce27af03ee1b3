//! Pressure stall information of cgroups: triggers, which tell when tasks have stood still for too long.
//!
//! A trigger is a descriptor: readable as urgent data (`EPOLLPRI`) at most once a window, and gone when it is closed. It works
//! on cgroup2 without any controller, on hybrid hosts too: a task that a v1 memory limit makes reclaim stands still in its
//! cgroup2 cgroup.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::cgroup::{Cgroups, Place};
use super::error::{KernelError, Result};
use crate::model::error::{Code, Error};
use crate::model::limits::Knob;
use crate::model::pressure::{Measure, PressureRule};

/// What a window has to be a multiple of where a process may not choose it freely, in seconds.
const UNPRIVILEGED_WINDOW: u64 = 2;

impl Cgroups {
    /// Sets a trigger on a place's pressure: the kernel tells whenever a rule's share of its window was exceeded.
    ///
    /// # Errors
    /// EINVAL: without CAP_SYS_RESOURCE the window is a multiple of 2 s. EOPNOTSUPP, ENOENT: the kernel keeps no such account.
    ///
    /// # Kernel
    /// 5.2, without CAP_SYS_RESOURCE 6.4; psi.rst, "Monitoring for pressure thresholds"; cgroup-v2.rst, `memory.pressure`.
    pub fn pressure_trigger(&self, place: &Place, rule: &PressureRule) -> Result<OwnedFd> {
        let (share, window) = (rule.above.of(rule.window).as_micros(), rule.window.as_micros());
        self.trigger(place, &file(rule), &format!("{} {share} {window}", rule.stall))
    }

    /// Sets a trigger that tells when tasks of a place have waited for a CPU, or were kept from one by a `cpu_max`, for more than
    /// 40 ms of 2 s: the kernel tells of no throttling, but counts it as waiting, also that by a v1 mirror.
    ///
    /// # Errors
    /// As [`Cgroups::pressure_trigger`].
    ///
    /// # Kernel
    /// As there; `a_cpu_max_that_is_hit_is_told_and_who_only_waits_for_a_cpu_is_not` proves it.
    pub fn throttle_trigger(&self, place: &Place) -> Result<OwnedFd> {
        self.trigger(place, "cpu.pressure", "some 40000 2000000")
    }

    /// Has the kernel take back up to 16 MiB of a subtree's memory that stands still: what is cached goes, the rest to where there is
    /// swap. Says whether there may be more.
    ///
    /// By itself the kernel may never do so: with the multi-generational LRU the pages of who is frozen stay as young as they were for
    /// as long as it finds others. Where memory is bound to v1, or the file is not there, nothing is taken back.
    ///
    /// # Errors
    /// What the write answered, other than that not so much could be taken back.
    ///
    /// # Kernel
    /// 5.19; cgroup-v2.rst, "Memory Interface Files", `memory.reclaim`; multigen_lru.rst.
    pub fn reclaim(&self, place: &Place) -> Result<bool> {
        const PIECE: u64 = 16 << 20;
        match self.dir(place).and_then(|dir| dir.write("memory.reclaim", &PIECE.to_string())) {
            Ok(()) => Ok(true),
            Err(error) if error.is_gone() || error.errno == Errno::AGAIN => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn trigger(&self, place: &Place, file: &str, text: &str) -> Result<OwnedFd> {
        let dir = self.dir(place)?;
        let trigger = dir.open(file, OFlags::RDWR | OFlags::NONBLOCK)?;
        match rustix::io::write(&trigger, text.as_bytes()) {
            Ok(_) => Ok(trigger),
            Err(errno) => Err(KernelError::new(format!("write {text:?} to"), dir.object(file), errno)),
        }
    }

    /// Says whether this host can carry out a rule.
    ///
    /// # Errors
    /// [`Code::LimitNotOffered`]: a window that may not be chosen freely, no account of pressure, no `memory.high`.
    pub fn check_pressure(&self, rule: &PressureRule) -> std::result::Result<(), Error> {
        let refuse = |why: &str, remedy: &str| {
            let message = format!("pressure: {rule} is not offered here: {why}");
            Err(Error::new(Code::LimitNotOffered, message).remedy(remedy.to_owned()))
        };
        if rule.steps.contains(&Measure::Tighten)
            && let Err(error) = self.host().enforcer(Knob::MemoryHigh)
        {
            return refuse(&error.message, "drop the step tighten");
        }
        let is_even = rule.window.subsec_nanos() == 0 && rule.window.as_secs().is_multiple_of(UNPRIVILEGED_WINDOW);
        if !is_even && !may_choose_window() {
            return refuse(
                "without CAP_SYS_RESOURCE the kernel takes only windows of whole multiples of 2 s",
                "use a window of 2s, 4s, 6s, 8s or 10s, or give treeherd CAP_SYS_RESOURCE",
            );
        }
        match self.dir(&Place::herd()).and_then(|dir| dir.read(&file(rule))) {
            Err(error) if matches!(error.errno, Errno::NOENT | Errno::OPNOTSUPP) => {
                refuse("the kernel keeps no account of pressure", "boot with psi=1 on the kernel's command line")
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }
}

fn file(rule: &PressureRule) -> String {
    format!("{}.pressure", rule.resource)
}

fn may_choose_window() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|ours| ours.effective.contains(CapabilitySet::SYS_RESOURCE))
}
