//! The root cgroup: made or found at start, left behind clean at the end. And the supervisor's own leaf in it.
//!
//! Directories of the root's path that we make are marked with an xattr, so that whoever shuts down cleanly, maybe
//! another daemon after a crash, takes away what was made, and nothing that was there before.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::above::Outside;
use super::dir::Dir;
use super::inhabitants::own_cgroup;
use super::mirror::c_name;
use super::sharing::Sharing;
use super::{Cgroups, Hierarchy, Place, Removal, claim, is_busy, remove_below};
use crate::kernel::error::{KernelError, Result};
use crate::kernel::guardian::{self, Estate};
use crate::kernel::host::{Binding, Host};
use crate::model::error::{Code, Error};
use crate::model::limits::Controller;

/// What helps where this process may not make cgroups, or be moved into them.
const NOT_DELEGATED: &str =
    "run as root, or within a delegated cgroup: systemd-run --user --scope -p Delegate=yes treeherd daemon";

/// `trusted.` works for root in every hierarchy, `user.` for a delegatee in cgroup2.
pub(in crate::kernel) const MARKS: [&str; 2] = ["trusted.treeherd.made", "user.treeherd.made"];

const SUPERVISOR: &str = "supervisor";

/// Where the first process of a container goes.
const INIT: &str = "init";

/// The supervisor's share of the CPUs beside the herd's 100, the most there is: it seldom wants any, and then at once.
const SUPERVISOR_WEIGHT: &str = "10000";

/// How much of the supervisor's memory is never reclaimed, in bytes: what it has with some 10,000 agents.
const SUPERVISOR_MEMORY: &str = "67108864";

/// How many leaves of supervisors, or of guardians, may be in use at once: one for each daemon of an overlapping restart, with room.
const LEAVES_MAX: u32 = 64;

/// The supervisor's move into its leaf.
#[derive(Debug)]
pub(super) struct Moved {
    /// Where it was before, below the mount point.
    home: String,
    /// The leaf's name.
    leaf: String,
}

impl Cgroups {
    /// Makes the root cgroup and `herd/` in it, or takes over those that are there; what an earlier daemon left in the
    /// herd stays and is listed by [`Cgroups::leftovers`], and v1 mirrors whose place is gone are removed.
    ///
    /// `root` is a path below the cgroup2 mount point: `treeherd`, `system.slice/treeherd.service`.
    ///
    /// # Errors
    /// [`Code::BadValue`]: not such a path. Else what the kernel answered: EROFS and EACCES say that the hierarchy was not
    /// given to us.
    pub fn create(host: Arc<Host>, root: &str) -> std::result::Result<Self, Error> {
        let root = root.trim_matches('/').to_owned();
        if root.split('/').any(|name| matches!(name, "" | "." | "..") || name.contains('\0')) {
            return Err(Error::new(Code::BadValue, format!("{root:?} is not the path of a cgroup"))
                .remedy("use names joined by slashes, as in treeherd or system.slice/treeherd.service"));
        }
        let mount = Dir::mount(&host.cgroup2)?;
        let mut spine = mount.descend("")?;
        for name in root.split('/') {
            spine = make_or_open(&spine, name)?;
        }
        let sharing = match spine.make(Place::herd().name()) {
            Ok(()) => Sharing::default(),
            Err(error) if error.errno == Errno::EXIST => Sharing::of_old_herd(),
            Err(error) => return Err(with_remedy(error).into()),
        };
        let hierarchies = open_hierarchies(&host, &spine)?;
        let [memory_above, pids_above] =
            [Controller::Memory, Controller::Pids].map(|controller| Outside::all(&host, &root, controller));
        let (moved, changing) = (Mutex::new(None), Mutex::new(()));
        let cgroups = Self {
            host,
            root,
            mount,
            spine,
            hierarchies,
            memory_above,
            pids_above,
            moved,
            changing,
            stilled: Mutex::default(),
            sharing,
        };
        cgroups.drop_orphaned_mirrors()?;
        for hierarchy in cgroups.each_hierarchy() {
            let herd = hierarchy.mount.descend(&cgroups.full(&Place::herd()));
            let has_none = herd.is_err_and(|error| error.is_gone());
            hierarchy.has_mirrors.store(!has_none, Ordering::SeqCst);
        }
        Ok(cgroups)
    }

    /// Moves this process into a freshly made leaf beside the herd, and returns the leaf's name: `supervisor`, with a
    /// number behind it where another daemon is still in that one.
    ///
    /// Fresh, because some kernels kill at birth whatever is cloned by a process whose own cgroup was killed once.
    ///
    /// # Errors
    /// What the kernel answered; EEXIST if 64 such leaves are in use.
    pub fn enter_supervisor(&self) -> Result<String> {
        let own = own_cgroup()?;
        let own = self.host.below_mount(&own).unwrap_or_else(|| "/".to_owned());
        let (name, leaf) = self.fresh_leaf(SUPERVISOR)?;
        if let Err(error) = leaf.write("cgroup.procs", "0") {
            drop(self.spine.remove(&c_name(&name)?));
            return Err(error.hint(NOT_DELEGATED));
        }
        let mut moved = self.moved.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        moved.get_or_insert(Moved { home: own.trim_start_matches('/').to_owned(), leaf: name.clone() });
        Ok(name)
    }

    /// Makes a leaf beside the herd that nothing was ever in, with a number behind its name where that one is in use.
    fn fresh_leaf(&self, base: &str) -> Result<(String, Dir)> {
        for number in 1..=LEAVES_MAX {
            let name = if number == 1 { base.to_owned() } else { format!("{base}-{number}") };
            // One that is left over and empty makes room for a fresh one.
            match self.spine.remove(&c_name(&name)?) {
                Err(error) if is_busy(error.errno) => continue,
                Err(error) if !error.is_gone() => return Err(error),
                _ => {}
            }
            match self.spine.make(&name) {
                Err(error) if error.errno == Errno::EXIST => continue,
                other => other?,
            }
            let leaf = self.spine.descend(&name).inspect_err(|_| {
                c_name(&name).and_then(|name| self.spine.remove(&name)).unwrap_or_default();
            })?;
            return Ok((name, leaf));
        }
        Err(KernelError::new("mkdir", format!("{}/{base}", self.spine.label()), Errno::EXIST))
    }

    /// Makes the leaf of a guardian.
    ///
    /// # Errors
    /// As [`Cgroups::enter_supervisor`].
    pub(in crate::kernel) fn make_guardian_leaf(&self) -> Result<Dir> {
        Ok(self.fresh_leaf(guardian::LEAF)?.1)
    }

    /// Opens what a guardian needs to end the herd without us.
    ///
    /// # Errors
    /// What the kernel answered.
    pub(in crate::kernel) fn estate(&self) -> Result<Estate> {
        let moved = self.moved.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let home = match moved.as_ref() {
            Some(Moved { home, .. }) => home.as_str(),
            None => self.host.own_cgroup.trim_start_matches('/'),
        };
        let is_below_home = moved.is_some() && is_below(&self.root, home);
        // The top takes everybody, where it is the kernel's.
        let home = self.mount.descend(home).or_else(|_| self.mount.descend(""))?;
        let mounts = std::iter::once(&self.mount).chain(self.each_hierarchy().map(|hierarchy| &hierarchy.mount));
        Ok(Estate {
            root: self.root.clone(),
            spine: self.spine.descend("")?.into_fd(),
            lock: self.spine.open(claim::LOCKED, OFlags::RDWR)?,
            home: home.into_fd(),
            is_below_home,
            mounts: mounts.map(|mount| mount.descend("").map(Dir::into_fd)).collect::<Result<_>>()?,
        })
    }

    /// Gives the supervisor's leaf precedence over the herd beside it, once the root hands controllers down: by then the two
    /// compete as cgroups, and no nice value counts between them. What is not handed down has no file, and needs none.
    pub(super) fn shield_supervisor(&self) {
        let moved = self.moved.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(Moved { leaf, .. }) = moved.as_ref() else { return };
        let Ok(dir) = self.spine.descend(leaf) else { return };
        drop(dir.write("cpu.weight", SUPERVISOR_WEIGHT));
        drop(dir.write("memory.min", SUPERVISOR_MEMORY));
        // A protection holds as far as what is above is protected; what a service manager has made is not ours to write to.
        if is_marked(&self.spine) {
            drop(self.spine.write("memory.min", SUPERVISOR_MEMORY));
        }
    }

    /// Moves this process back to where it was before [`Cgroups::enter_supervisor`], or to the mount point's cgroup if
    /// that place is gone. Does nothing if it never moved.
    ///
    /// # Errors
    /// What the kernel answered; EBUSY if the place has handed controllers down meanwhile.
    pub fn leave_supervisor(&self) -> Result<()> {
        let mut moved = self.moved.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(Moved { home, .. }) = moved.as_ref() else { return Ok(()) };
        // With us in it, it handed nothing down before the root was made below it.
        if is_below(&self.root, home)
            && let Ok(home) = self.mount.descend(home)
        {
            hand_nothing_down(&home)?;
        }
        match self.mount.descend(home).and_then(|home| home.write("cgroup.procs", "0")) {
            Err(error) if error.is_gone() => self.mount.write("cgroup.procs", "0")?,
            other => other?,
        }
        *moved = None;
        Ok(())
    }

    /// Removes the herd, the supervisor's leaves and, where we made it, the root, in every hierarchy; this process is
    /// moved back to where it was. In a root that stays, the controllers are disabled: a service manager cannot start a
    /// service again in a cgroup that still hands them down.
    ///
    /// # Errors
    /// What the kernel answered, other than that something is gone or busy.
    pub fn remove_root(&self) -> Result<Removal> {
        if self.remove(&Place::herd())? == Removal::Busy {
            return Ok(Removal::Busy);
        }
        hand_nothing_down(&self.spine)?;
        self.leave_supervisor()?;
        let mut outcome = Removal::Removed;
        let own = own_cgroup()?;
        let own = self.host.below_mount(&own).unwrap_or_else(|| "/".to_owned());
        for child in self.spine.children()? {
            let Ok(name) = child.to_str() else { continue };
            let is_ours = [SUPERVISOR, guardian::LEAF]
                .iter()
                .any(|leaf| name.strip_prefix(leaf).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')));
            // Whoever put us there, systemd with `DelegateSubgroup=`, takes it away.
            let is_our_home = own.trim_start_matches('/') == format!("{}/{name}", self.root);
            if is_ours && !is_our_home && remove_below(&self.spine, name)? == Removal::Busy {
                outcome = Removal::Busy;
            }
        }
        unmake_path(&self.mount, &self.root)?;
        for hierarchy in self.each_hierarchy() {
            unmake_path(&hierarchy.mount, &self.root)?;
        }
        Ok(outcome)
    }
}

/// Disables the controllers that a cgroup hands down.
fn hand_nothing_down(dir: &Dir) -> Result<()> {
    let enabled = dir.read("cgroup.subtree_control")?;
    let disable: Vec<String> = enabled.split_whitespace().map(|name| format!("-{name}")).collect();
    if disable.is_empty() { Ok(()) } else { dir.write("cgroup.subtree_control", &disable.join(" ")) }
}

/// Says whether a cgroup is below another one that is not the top; both without a leading slash.
pub(super) fn is_below(path: &str, above: &str) -> bool {
    !above.is_empty() && path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

fn make_or_open(above: &Dir, name: &str) -> Result<Dir> {
    match above.make(name) {
        Ok(()) => {
            let dir = above.descend(name)?;
            mark(&dir);
            Ok(dir)
        }
        Err(error) if error.errno == Errno::EXIST => above.descend(name),
        // A foreign hierarchy may still contain the root: then there is nothing to make.
        Err(error) => above.descend(name).map_err(|_| with_remedy(error)),
    }
}

/// Adds what helps where nothing can be made.
fn with_remedy(error: KernelError) -> KernelError {
    match remedy(error.errno) {
        Some(remedy) => error.hint(remedy),
        None => error,
    }
}

/// Says what helps where a cgroup cannot be made.
#[must_use]
pub fn remedy(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::PERM | Errno::ACCESS => Some(NOT_DELEGATED),
        Errno::ROFS => Some(
            "mount cgroup2 read-write: mount -o remount,rw /sys/fs/cgroup; a container gets it so from its runtime, as with \
             podman or docker run --privileged",
        ),
        _ => None,
    }
}

/// Moves this process into a leaf of its own, `init`, if it is at the top of what is mounted and that is not the kernel's root cgroup, as
/// in a container: no cgroup hands controllers down while a process is in it.
///
/// # Errors
/// What the kernel answered: EROFS, EACCES.
///
/// # Kernel
/// cgroup-v2.rst, "No Internal Process Constraint": the root cgroup, which has no `cgroup.type`, is exempt.
pub fn step_aside(host: &Host) -> Result<()> {
    let top = Dir::mount(&host.cgroup2)?;
    if host.own_cgroup != "/" || top.open("cgroup.type", OFlags::RDONLY).is_err() {
        return Ok(());
    }
    make_or_open(&top, INIT)?.write("cgroup.procs", "0")
}

/// Says whether this process is in the leaf that [`step_aside`] makes.
#[must_use]
pub fn is_first_leaf(host: &Host) -> bool {
    let leaf = Dir::mount(&host.cgroup2).and_then(|top| top.descend(INIT));
    host.own_cgroup.trim_matches('/') == INIT && leaf.is_ok_and(|leaf| is_marked(&leaf))
}

/// Marks a directory as made by us. A hierarchy that takes no mark keeps the directory for ever, and nothing worse.
pub(super) fn mark(dir: &Dir) {
    let _is_marked =
        MARKS.iter().any(|name| rustix::fs::fsetxattr(dir.as_fd(), *name, b"1", XattrFlags::empty()).is_ok());
}

fn is_marked(dir: &Dir) -> bool {
    MARKS.iter().any(|name| rustix::fs::fgetxattr(dir.as_fd(), *name, &mut [0u8; 8]).is_ok())
}

/// Removes the directories of a path that we made, from the last one upwards; one that is in use stays.
fn unmake_path(mount: &Dir, path: &str) -> Result<()> {
    let mut path = path;
    loop {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = mount.descend(above);
        match parent.as_ref().map(|parent| (parent, parent.descend(name))) {
            Ok((parent, Ok(dir))) if is_marked(&dir) => match parent.remove(&c_name(name)?) {
                Err(error) if is_busy(error.errno) => return Ok(()),
                Err(error) if !error.is_gone() => return Err(error),
                _ => {}
            },
            Ok((_, Ok(_))) => return Ok(()),
            Ok((_, Err(error))) if !error.is_gone() => return Err(error),
            Err(error) if !error.is_gone() => return Err(error.clone()),
            _ => {}
        }
        if above.is_empty() {
            return Ok(());
        }
        path = above;
    }
}

/// Where the mirrors of a root are in each v1 hierarchy, a line for each, as `MOUNT POINT<TAB>PATH BELOW IT`.
const BASES: [&str; 2] = ["trusted.treeherd.v1", "user.treeherd.v1"];

/// The longest text of all of them.
const BASES_MAX: usize = 16 << 10;

/// Opens the v1 hierarchies at this process's own cgroup in each: what is limited there limits the herd. A root that was made by a
/// daemon in other cgroups keeps its mirrors where they are.
fn open_hierarchies(host: &Host, spine: &Dir) -> Result<BTreeMap<Controller, Arc<Hierarchy>>> {
    let mut noted = vec![0; BASES_MAX];
    let length = BASES.iter().find_map(|name| rustix::fs::fgetxattr(spine.as_fd(), *name, &mut noted[..]).ok());
    let noted = String::from_utf8(noted[..length.unwrap_or(0)].to_vec()).unwrap_or_default();
    let noted: BTreeMap<&str, &str> = noted.lines().filter_map(|line| line.split_once('\t')).collect();
    let (mut hierarchies, mut note): (BTreeMap<Controller, Arc<Hierarchy>>, _) = (BTreeMap::new(), String::new());
    for (controller, binding) in &host.bindings {
        let Binding::V1 { mount: path } = binding else { continue };
        let open: Option<Arc<Hierarchy>> = hierarchies.values().find(|open| open.path == *path).cloned();
        let hierarchy = match open {
            Some(open) => open,
            None => {
                let own = host.own_v1.get(path).map_or("", |own| own.trim_start_matches('/'));
                let top = Dir::mount(Path::new(path))?;
                let noted = noted.get(path.to_string_lossy().as_ref()).copied();
                let (mount, base) = match noted.and_then(|noted| Some((top.descend(noted).ok()?, noted))) {
                    Some(found) => found,
                    None => (top.descend(own)?, own),
                };
                note.push_str(&format!("{}\t{base}\n", path.display()));
                Arc::new(Hierarchy { path: path.clone(), mount, has_mirrors: AtomicBool::new(true) })
            }
        };
        hierarchies.insert(*controller, hierarchy);
    }
    // Where none can be kept, the next daemon has to be in the same cgroups.
    let _is_noted = note.is_empty()
        || BASES
            .iter()
            .any(|name| rustix::fs::fsetxattr(spine.as_fd(), *name, note.as_bytes(), XattrFlags::empty()).is_ok());
    Ok(hierarchies)
}
