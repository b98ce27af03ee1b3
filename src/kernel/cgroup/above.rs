//! What is above the herd: cgroups that it is in and that are not its own, with limits that somebody else has set.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::dir::Dir;
use super::oom::{OomCounts, absent_is_none, has_met_limit, own_events};
use super::{Cgroups, MARKS};
use crate::kernel::controllers::{self, Seat, World};
use crate::kernel::host::{Binding, Host};
use crate::kernel::stat::flat;
use crate::model::limits::{Controller, Knob, LimitAbove, Setting};
use crate::model::units::{Bytes, Max};

/// The limits that are looked for.
const KNOBS: [Knob; 5] = [Knob::MemoryMax, Knob::MemoryHigh, Knob::PidsMax, Knob::CpuMax, Knob::CpusetCpus];

/// Lists the limits above a herd, whose root cgroup need not be there, for each knob the nearest first: in cgroup2 those of the root and
/// of the cgroups above it, on v1 those of this process's cgroup, below which mirrors are made, and of the ones above that.
///
/// What cannot be read is left out.
#[must_use]
pub fn limits_above(host: &Host, root: &str) -> Vec<LimitAbove> {
    let mut found = Vec::new();
    for knob in KNOBS {
        let (world, dirs) = chain(host, root, knob.controller());
        let settings: Vec<Option<Setting>> = dirs.iter().map(|(dir, _)| read(world, dir, knob)).collect();
        for (index, (_, path)) in dirs.iter().enumerate() {
            let Some(setting) = &settings[index] else { continue };
            // On v1 each cgroup has a set of CPUs; the top's are all that there are.
            let is_set = match setting {
                Setting::Cpus(set) if world == World::V1 => match settings.get(index + 1) {
                    Some(Some(Setting::Cpus(above))) => !above.is_within(set),
                    _ => false,
                },
                Setting::Cpus(_) => true,
                setting => setting.amount().is_some(),
            };
            if is_set {
                found.push(LimitAbove { knob, setting: setting.clone(), path: path.display().to_string() });
            }
        }
    }
    found
}

/// Says whether a cgroup was marked as somebody's: by a service manager that has delegated it, or by a treeherd whose root it is.
#[must_use]
pub fn is_somebodys(cgroup: &Path) -> bool {
    let delegated = ["trusted.delegate", "user.delegate"];
    delegated.iter().chain(&MARKS).any(|name| rustix::fs::getxattr(cgroup, *name, &mut [0u8; 8][..]).is_ok())
}

/// Says whether a cgroup of ours can be made in this one, with controllers, and processes moved into it from below it.
#[must_use]
pub fn has_room(cgroup: &Path) -> bool {
    let may_write = |path: &Path| rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    let handed_down = std::fs::read_to_string(cgroup.join("cgroup.subtree_control")).unwrap_or_default();
    !handed_down.trim().is_empty() && may_write(cgroup) && may_write(&cgroup.join("cgroup.procs"))
}

fn read(world: World, dir: &Dir, knob: Knob) -> Option<Setting> {
    let dir = dir.descend("").ok()?;
    controllers::read(&Seat { world, dir }, knob).ok().flatten()
}

/// Opens the cgroups above a herd in the hierarchy of a controller, the nearest first and the mount point's last. On cgroup2 the root is
/// one of them: the herd is below it, and what is set there a service manager or an engine has set.
fn chain(host: &Host, root: &str, controller: Controller) -> (World, Vec<(Dir, PathBuf)>) {
    let (world, mount, nearest) = match host.binding(controller) {
        Binding::V1 { mount } => (World::V1, mount.as_path(), host.own_v1.get(mount).map_or("", String::as_str)),
        // What is not handed down to us is limited above all the same.
        Binding::V2 | Binding::Absent { .. } => (World::V2, host.cgroup2.as_path(), root),
    };
    let mut dirs = Vec::new();
    let Ok(top) = Dir::mount(mount) else { return (world, dirs) };
    let mut path = nearest.trim_matches('/');
    loop {
        if let Ok(dir) = top.descend(path) {
            dirs.push((dir, Path::new(mount).join(path)));
        }
        if path.is_empty() {
            return (world, dirs);
        }
        path = path.rsplit_once('/').map_or("", |(above, _)| above);
    }
}

/// A cgroup that the herd is in and that is not its own.
#[derive(Debug)]
pub(super) struct Outside {
    world: World,
    dir: Dir,
    path: PathBuf,
}

impl Outside {
    /// Opens those of a root in the hierarchy of a controller, the nearest first.
    pub(super) fn all(host: &Host, root: &str, controller: Controller) -> Vec<Self> {
        let (world, dirs) = chain(host, root, controller);
        dirs.into_iter().map(|(dir, path)| Self { world, dir, path }).collect()
    }

    /// Reads what it has counted; none if memory is not counted there, or it is gone.
    fn counts(&self) -> Option<OomCounts> {
        let count = |text: &str, key| flat(text, key).unwrap_or(0);
        if self.world == World::V2 {
            let text = own_events(&self.dir, "memory.events").ok()??;
            return Some(OomCounts { oom: count(&text, "oom"), oom_kill: count(&text, "oom_kill") });
        }
        let control = absent_is_none(self.dir.read("memory.oom_control")).ok()??;
        let failures = self.dir.read("memory.failcnt").ok()?.trim().parse().unwrap_or(0);
        Some(OomCounts { oom: failures, oom_kill: count(&control, "oom_kill") })
    }

    fn culprit(&self) -> String {
        format!("outside: {}", self.path.display())
    }

    fn limit(&self) -> Option<Bytes> {
        match read(self.world, &self.dir, Knob::MemoryMax)? {
            Setting::Bytes(Max::Value(limit)) => Some(limit),
            _ => None,
        }
    }
}

/// A limit of memory above the herd, with how often it was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachedAbove {
    /// The cgroup that has it, as a culprit is called: `outside: DIRECTORY`.
    pub culprit: String,
    /// The limit.
    pub limit: Bytes,
    /// As [`OomCounts::oom`].
    pub oom: u64,
    /// As [`Cgroups::has_met_limit`].
    pub is_met: bool,
}

/// A limit of tasks above the herd, with how many forks it has refused.
#[derive(Debug)]
pub struct ForksAbove {
    /// As [`ReachedAbove::culprit`].
    pub culprit: String,
    /// The limit.
    pub setting: Setting,
    /// How many forks were refused there.
    pub refused: u64,
    /// The cgroup, whose `pids.events` tells of more.
    pub dir: OwnedFd,
}

impl Cgroups {
    /// Returns how many processes the OOM killer killed in the nearest memory cgroup above the herd: there it counts what is in no
    /// memory cgroup of the herd's own.
    #[must_use]
    pub fn kills_outside(&self) -> Option<u64> {
        self.memory_above.iter().find_map(Outside::counts).map(|counts| counts.oom_kill)
    }

    /// Lists the limits of memory above the herd, the nearest first.
    #[must_use]
    pub fn memory_above(&self) -> Vec<ReachedAbove> {
        let limited = |it: &Outside| {
            Some(ReachedAbove {
                culprit: it.culprit(),
                limit: it.limit()?,
                oom: it.counts()?.oom,
                is_met: has_met_limit(&it.dir),
            })
        };
        self.memory_above.iter().filter_map(limited).collect()
    }

    /// Lists the limits of tasks above the herd, the nearest first.
    #[must_use]
    pub fn pids_above(&self) -> Vec<ForksAbove> {
        let limited = |it: &Outside| {
            let setting = read(it.world, &it.dir, Knob::PidsMax).filter(|setting| setting.amount().is_some())?;
            let refused = own_events(&it.dir, "pids.events").ok()?.and_then(|text| flat(&text, "max"))?;
            Some(ForksAbove { culprit: it.culprit(), setting, refused, dir: it.dir.descend("").ok()?.into_fd() })
        };
        self.pids_above.iter().filter_map(limited).collect()
    }
}
