//! What this host offers: the kernel, where cgroup2 is mounted, and which hierarchy drives each controller.
//!
//! ```text
//! /proc/self/mountinfo ─┐
//! /proc/self/cgroup ────┼─> Host { cgroup2, own_cgroup, layout, bindings: controller -> V2 | V1 | Absent }
//! uname, cgroup.controllers ┘
//! ```
//!
//! Everything is read once, at start. The pure half ([`Host::from_text`]) sees only texts, so that hosts which are not
//! at hand are tables in a test. Not here: whether a limit fits into its parent's; that is decided elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::process::read_text;
use crate::model::error::{Code, Error};
use crate::model::limits::{Controller, Knob};

mod mounts;
#[cfg(test)]
mod tests;

use mounts::Mount;

/// A kernel's version, as far as features depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// The first number of the release.
    pub major: u32,
    /// The second number of the release.
    pub minor: u32,
    /// The third number of the release, 0 where it has none.
    pub patch: u32,
}

impl KernelVersion {
    /// The oldest kernel that is supported: the first one with `cgroup.kill`.
    pub const FLOOR: Self = Self { major: 5, minor: 14, patch: 0 };

    /// Reads the version at the head of a release: `6.18.44-fc`, `6.1`, `5.15.0+`.
    #[must_use]
    pub fn from_release(release: &str) -> Option<Self> {
        let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
        let mut numbers = release[..end].split('.').filter(|part| !part.is_empty()).map(|part| part.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self { major, minor, patch: numbers.next().flatten().unwrap_or(0) })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Which hierarchy drives a controller on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The cgroup2 hierarchy, which also is the spine of the herd.
    V2,
    /// A v1 hierarchy, in which the cgroups that are limited by the controller are mirrored.
    V1 {
        /// Where the hierarchy is mounted.
        mount: PathBuf,
    },
    /// Nothing: limits of the controller are refused.
    Absent {
        /// Why, as the rest of a sentence that begins with the controller's name.
        why: String,
    },
}

/// How the host's cgroup hierarchies are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// cgroup2 is the only hierarchy with controllers.
    Unified,
    /// cgroup2 and v1 hierarchies with controllers stand side by side.
    Hybrid,
}

/// What depends on files of a hierarchy that not every kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Whether the v1 memory hierarchy counts swap (`memory.memsw.limit_in_bytes`).
    pub memsw: bool,
    /// Whether the v1 block I/O hierarchy has the BFQ policy, and with it weights.
    pub bfq: bool,
    /// Whether the CPU has huge pages of 2 MiB.
    pub hugepages_2mb: bool,
    /// Whether the CPU has huge pages of 1 GiB.
    pub hugepages_1gb: bool,
}

/// What this host offers, read once at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The running kernel's version.
    pub kernel: KernelVersion,
    /// The running kernel's release, as `uname -r` tells it.
    pub release: String,
    /// Where cgroup2 is mounted.
    pub cgroup2: PathBuf,
    /// The mounted directory's path inside cgroup2, `/` unless only a part of the hierarchy is mounted.
    pub mounted_part: String,
    /// The cgroup of this process, as a path below the mount point, with a leading slash: `/`, `/system.slice/x.service`.
    pub own_cgroup: String,
    /// The cgroup of this process in each v1 hierarchy, by its mount point, as a path below that with a leading slash.
    pub own_v1: BTreeMap<PathBuf, String>,
    /// The cgroup that was delegated to us, as a path below the mount point, where systemd says that one was.
    pub delegated: Option<String>,
    /// How the hierarchies are arranged.
    pub layout: Layout,
    /// Which hierarchy drives each controller; every controller has an entry.
    pub bindings: BTreeMap<Controller, Binding>,
    /// What depends on single files.
    pub extras: Extras,
}

impl Host {
    /// Reads what the running host offers.
    ///
    /// The controllers of cgroup2 are those of the cgroup that systemd delegated to this process (it marks it with the
    /// xattr `trusted.delegate` or `user.delegate`), else those of the mounted root.
    ///
    /// # Errors
    /// [`Code::Unsupported`]: no cgroup2 is mounted, or the kernel is older than [`KernelVersion::FLOOR`].
    ///
    /// # Kernel
    /// `proc_pid_mountinfo(5)`, `cgroups(7)`.
    pub fn discover() -> Result<Self, Error> {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .map_err(|error| Error::new(Code::Unsupported, format!("read {path}: {error}")).remedy("mount /proc"))
        };
        let mountinfo = read("/proc/self/mountinfo")?;
        let self_cgroup = read("/proc/self/cgroup")?;
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        // The first pass finds the mount point, the second knows what is in `cgroup.controllers` there.
        let mut host = Self::from_text(&mountinfo, &self_cgroup, &release, "")?;
        let delegated = delegated_above(&host.cgroup2, &host.own_cgroup);
        let place = host.directory(delegated.as_deref().unwrap_or("/"));
        let controllers = std::fs::read_to_string(place.join("cgroup.controllers"))
            .map_err(|error| Error::new(Code::Unsupported, format!("read cgroup.controllers: {error}")))?;
        host = Self::from_text(&mountinfo, &self_cgroup, &release, &controllers)?;
        host.delegated = delegated;
        let own_v1 = &host.own_v1;
        host.bindings.values_mut().for_each(|binding| binding.drop_if_not_ours(own_v1));
        host.extras = Extras::probe(&host.bindings);
        Ok(host)
    }

    /// Works out what a host offers from the texts that it shows: `/proc/self/mountinfo`, `/proc/self/cgroup`, the
    /// kernel's release, and the `cgroup.controllers` of the cgroup under which the herd is to live.
    ///
    /// # Errors
    /// [`Code::Unsupported`], as [`Host::discover`].
    pub fn from_text(mountinfo: &str, self_cgroup: &str, release: &str, controllers: &str) -> Result<Self, Error> {
        let kernel = KernelVersion::from_release(release).ok_or_else(|| {
            Error::new(Code::Unsupported, format!("the kernel's release {release:?} is not a version"))
        })?;
        if kernel < KernelVersion::FLOOR {
            return Err(Error::new(Code::Unsupported, format!("the kernel is {kernel}, which has no cgroup.kill"))
                .remedy(format!(
                    "run a kernel from {}.{} on",
                    KernelVersion::FLOOR.major,
                    KernelVersion::FLOOR.minor
                )));
        }
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let own = own_path(self_cgroup);
        let (cgroup2, own_cgroup) =
            mounts.iter().filter(|mount| mount.is_v2).find_map(|mount| Some((mount, mount.inside(own?)?))).ok_or_else(
                || {
                    Error::new(Code::Unsupported, "no cgroup2 hierarchy that contains this process is mounted").remedy(
                        "mount one, as in `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with \
                     systemd.unified_cgroup_hierarchy=1",
                    )
                },
            )?;
        let v1: Vec<&Mount> = mounts.iter().filter(|mount| !mount.is_v2 && mount.drives_any()).collect();
        let bindings = Controller::ALL.map(|controller| {
            let mirrored = v1.iter().find(|mount| mount.drives(controller));
            let binding = if controllers.split_whitespace().any(|name| name == controller.name()) {
                Binding::V2
            } else if let Some(mount) = mirrored {
                Binding::V1 { mount: mount.point.clone() }
            } else {
                Binding::Absent { why: "is neither in cgroup2's cgroup.controllers nor mounted on v1".to_owned() }
            };
            (controller, binding)
        });
        Ok(Self {
            kernel,
            release: release.to_owned(),
            cgroup2: cgroup2.point.clone(),
            mounted_part: cgroup2.root.clone(),
            own_cgroup,
            own_v1: v1.iter().filter_map(|mount| Some((mount.point.clone(), mount.own(self_cgroup)?))).collect(),
            delegated: None,
            layout: if v1.is_empty() { Layout::Unified } else { Layout::Hybrid },
            bindings: BTreeMap::from(bindings),
            extras: Extras::default(),
        })
    }

    /// Returns which hierarchy drives a controller.
    #[must_use]
    pub fn binding(&self, controller: Controller) -> &Binding {
        &self.bindings[&controller]
    }

    /// Returns the name of the file that enforces a knob here: `memory.max`, `memory.limit_in_bytes`.
    ///
    /// # Errors
    /// [`Code::LimitNotOffered`], naming the controller and what helps: its controller is bound to nothing, or to a v1
    /// hierarchy that knows no such limit.
    pub fn enforcer(&self, knob: Knob) -> Result<String, Error> {
        let refuse = |why: String, remedy: &str| {
            Err(Error::new(Code::LimitNotOffered, format!("{knob} is not offered here: {why}")).remedy(remedy))
        };
        let controller = knob.controller();
        let has_pages = match knob {
            Knob::Hugetlb2MbMax => self.extras.hugepages_2mb,
            Knob::Hugetlb1GbMax => self.extras.hugepages_1gb,
            _ => true,
        };
        match self.binding(controller) {
            Binding::Absent { why } => refuse(
                format!("the controller {controller} {why}"),
                "boot with cgroup_no_v1=all for cgroup2 controllers (in a container or unit: delegate the controller, \
                 as Delegate=yes does)",
            ),
            _ if !has_pages => refuse(
                format!("the controller {controller} has no huge pages of this size on this machine"),
                "limit another page size, or leave it out",
            ),
            Binding::V2 => Ok(knob.file().to_owned()),
            Binding::V1 { mount } => match v1_file(knob, self.extras) {
                Some(file) => Ok(file.to_owned()),
                None => refuse(
                    format!("the controller {controller} is on v1 ({}), which has no such limit", mount.display()),
                    "boot with cgroup_no_v1=all so that cgroup2 has the controller, or leave the limit out",
                ),
            },
        }
    }

    /// Turns a path of `/proc/PID/cgroup` (after `0::`) into one below the mount point, with a leading slash; `None`
    /// if it lies outside of what is mounted.
    #[must_use]
    pub fn below_mount(&self, path: &str) -> Option<String> {
        mounts::strip(&self.mounted_part, path)
    }

    fn directory(&self, below: &str) -> PathBuf {
        self.cgroup2.join(below.trim_start_matches('/'))
    }
}

impl Binding {
    /// A v1 hierarchy in which nothing can be made drives nothing: it is mounted read-only, or belongs to somebody else.
    fn drop_if_not_ours(&mut self, own: &BTreeMap<PathBuf, String>) {
        let Self::V1 { mount } = self else { return };
        let access = rustix::fs::Access::WRITE_OK;
        let place = mount.join(own.get(mount).map_or("", |own| own.trim_start_matches('/')));
        if let Err(errno) = rustix::fs::accessat(rustix::fs::CWD, &place, access, rustix::fs::AtFlags::EACCESS) {
            let why = format!("is on v1, and nothing can be made in {}: {errno}", place.display());
            *self = Self::Absent { why };
        }
    }
}

impl Extras {
    fn probe(bindings: &BTreeMap<Controller, Binding>) -> Self {
        let v1_has = |controller: Controller, file: &str| match &bindings[&controller] {
            Binding::V1 { mount } => mount.join(file).metadata().is_ok(),
            _ => false,
        };
        let pages =
            |kib: &str| Path::new("/sys/kernel/mm/hugepages").join(format!("hugepages-{kib}kB")).metadata().is_ok();
        Self {
            memsw: v1_has(Controller::Memory, "memory.memsw.limit_in_bytes"),
            // The root shows only the policy's statistics; every cgroup below it then has `blkio.bfq.weight`.
            bfq: v1_has(Controller::Io, "blkio.bfq.io_service_bytes"),
            hugepages_2mb: pages("2048"),
            hugepages_1gb: pages("1048576"),
        }
    }
}

/// Returns the v1 file that enforces a knob, where v1 has one.
fn v1_file(knob: Knob, extras: Extras) -> Option<&'static str> {
    match knob {
        Knob::MemoryMax => Some("memory.limit_in_bytes"),
        Knob::MemorySwapMax => extras.memsw.then_some("memory.memsw.limit_in_bytes"),
        Knob::PidsMax => Some("pids.max"),
        Knob::CpuMax => Some("cpu.cfs_quota_us"),
        Knob::CpuWeight => Some("cpu.shares"),
        Knob::CpusetCpus => Some("cpuset.cpus"),
        Knob::IoMax => Some("blkio.throttle.{read,write}_{bps,iops}_device"),
        Knob::IoWeight => extras.bfq.then_some("blkio.bfq.weight"),
        Knob::Hugetlb2MbMax => Some("hugetlb.2MB.limit_in_bytes"),
        Knob::Hugetlb1GbMax => Some("hugetlb.1GB.limit_in_bytes"),
        Knob::MemoryHigh | Knob::MemoryLow | Knob::MemoryMin | Knob::MemoryOomGroup => None,
    }
}

/// Returns the cgroup2 path in the text of `/proc/PID/cgroup`.
pub(super) fn own_path(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Finds the cgroup that was delegated to what runs in a cgroup: that one itself, or the one right above it, as a service manager may put
/// a daemon into a leaf of its own (`DelegateSubgroup=`). systemd marks what it delegates. A unit without the mark ends the search:
/// what is above it was given to the service manager that made it, and not to what runs in it; and what is further up, with cgroups
/// of somebody else in between, was given to those.
///
/// The service manager of somebody who is not root sets no mark (systemd 252): a unit of theirs in which nobody else is counts as
/// delegated.
fn delegated_above(mount: &Path, own: &str) -> Option<String> {
    let mut path = own;
    for _ in 0..2 {
        let (above, name) = path.rsplit_once('/').filter(|(_, name)| !name.is_empty())?;
        let directory = mount.join(path.trim_start_matches('/'));
        let is_marked = ["trusted.delegate", "user.delegate"].iter().any(|name| {
            let mut value = [0u8; 8];
            matches!(rustix::fs::getxattr(&directory, *name, &mut value), Ok(1) if value[0] == b'1')
        });
        let is_unit = [".service", ".scope", ".slice"].iter().any(|kind| name.ends_with(kind));
        if is_marked || is_unit {
            return (is_marked || is_ours_alone(&directory)).then(|| path.to_owned());
        }
        path = above;
    }
    None
}

/// Says whether a cgroup belongs to us, who are not root, and no other process is in it.
fn is_ours_alone(directory: &Path) -> bool {
    let user = rustix::process::geteuid();
    let is_ours = rustix::fs::stat(directory).is_ok_and(|about| about.st_uid == user.as_raw());
    let own = std::process::id().to_string();
    let is_alone =
        std::fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(|pids| pids.lines().all(|pid| pid == own));
    !user.is_root() && is_ours && is_alone
}

/// Returns whether a process is in a v1 freezer cgroup that is frozen, by its own state or by one above it.
///
/// # Kernel
/// freezer-subsystem.rst, `freezer.state`; not for the cgroup2 freezer, which a kill overrides.
pub(super) fn is_frozen_in_v1(pid: i32) -> bool {
    let state = || {
        let mounts = read_text("/proc/self/mountinfo").ok()?;
        let freezer = mounts.lines().filter_map(Mount::parse).find(Mount::is_freezer)?;
        let cgroups = read_text(format!("/proc/{pid}/cgroup")).ok()?;
        let in_freezer = |line: &str| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|it| it == "freezer").then(|| path.to_owned())
        };
        let path = freezer.inside(&cgroups.lines().find_map(in_freezer)?)?;
        std::fs::read_to_string(freezer.point.join(path.trim_start_matches('/')).join("freezer.state")).ok()
    };
    state().is_some_and(|state| state.starts_with("FR"))
}
