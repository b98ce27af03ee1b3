//! The guardian of a herd: a small process that ends the herd when its supervisor is gone without having ended it.
//!
//! ```text
//! supervisor ──fork──► guardian, in <root>/guardian: sleeps in one poll on the supervisor's pidfd and on a pipe from it
//!     │                    │
//!     │ ends in order      │ the supervisor was killed, has executed another program, or its thread is gone
//!     ▼                    ▼
//!  SIGKILL, reaped      takes the root's lock · kills herd/ until it is empty · removes its cgroups, mirrors included,
//!                       the root if we made it, and the state directory of a herd in the foreground
//! ```
//!
//! The lock of the root decides whose the herd is: another supervisor that has taken it meanwhile keeps the herd, and the guardian
//! ends without having done anything. It has every signal but SIGKILL and SIGSTOP blocked; nothing is left to end the herd only
//! where it is killed together with the supervisor.

mod strike;
mod walk;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, pidfd_open, pidfd_send_signal, waitid,
};

use self::strike::Orders;
use super::cgroup::Cgroups;
use super::error::{KernelError, Result};
use super::spawn::{self, Way};

/// The name of the guardian's cgroup beside the herd; with a number behind it where an earlier guardian is still in that one.
pub(super) const LEAF: &str = "guardian";

/// What the process is called: `ps -o comm`, `/proc/PID/comm`.
pub(super) const NAME: &CStr = c"treeherd-guard";

/// With whom a herd ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndsWith {
    /// With nobody: the next supervisor adopts what lives.
    Nobody,
    /// With the process that supervises it.
    #[default]
    Supervisor,
    /// With the process that supervises it, which is sent SIGTERM when its own parent has ended.
    Parent,
}

/// The guardian of this process's herd.
///
/// When it is dropped without [`Guardian::dismiss`], the guardian ends the herd.
#[derive(Debug)]
pub struct Guardian {
    process: OwnedFd,
    pid: i32,
    /// Held open: its end is this supervisor's.
    _line: OwnedFd,
}

impl Guardian {
    /// Starts the guardian of a herd. `state_dir` is the directory that goes with the herd, if one does.
    ///
    /// # Errors
    /// [`EndsWith::Parent`] where the parent is outside of this pid namespace; else what the kernel answered.
    ///
    /// # Kernel
    /// Linux 5.14 (`cgroup.kill`); pidfd_open(2), fcntl_locking(2).
    pub fn start(cgroups: &Cgroups, ends_with: EndsWith, state_dir: Option<&Path>, way: Way) -> Result<Self> {
        let failed = |what: &'static str| move |errno| KernelError::new("start the guardian", what, errno);
        let supervisor = pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed("pidfd of the supervisor"))?;
        let (line, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("pipe"))?;
        let parent = match ends_with {
            EndsWith::Parent => Some(own_parent()?),
            EndsWith::Nobody | EndsWith::Supervisor => None,
        };
        let state = state_dir.map(open_above).transpose()?;
        let estate = cgroups.estate()?;
        let leaf = cgroups.make_guardian_leaf()?;
        let mut orders = Orders::new(&estate, parent.is_some());
        let mut fds: Vec<BorrowedFd<'_>> =
            vec![supervisor.as_fd(), line.as_fd(), estate.spine.as_fd(), estate.lock.as_fd(), estate.home.as_fd()];
        fds.push(parent.as_ref().unwrap_or(&supervisor).as_fd());
        if let Some((above, name)) = &state {
            orders.set_state(name);
            fds.push(above.as_fd());
        } else {
            fds.push(supervisor.as_fd());
        }
        fds.extend(estate.mounts.iter().map(AsFd::as_fd));
        let born_in = (way == Way::CloneInto).then(|| leaf.as_fd());
        // SAFETY: `strike::guard` is written for it, and its orders are plain values.
        #[allow(unsafe_code)]
        let child = unsafe { spawn::start_bare(NAME, strike::guard, orders, &fds, born_in) }?;
        let guardian = Self { process: child.pidfd, pid: child.pid, _line: end };
        if way == Way::EnterItself
            && let Err(error) = leaf.write("cgroup.procs", &child.pid.to_string())
        {
            guardian.dismiss();
            return Err(error);
        }
        Ok(guardian)
    }

    /// Returns its process id, for people and for `/proc`.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends the guardian: this process ends the herd itself, or has.
    pub fn dismiss(self) {
        // It cannot be gone without having been reaped here, and it waits for nothing that does not end.
        let _sent = pidfd_send_signal(&self.process, Signal::KILL);
        let reaped = WaitIdOptions::EXITED | WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
        while matches!(waitid(WaitId::PidFd(self.process.as_fd()), reaped), Err(Errno::INTR)) {}
    }
}

/// Opens the process that has started this one.
fn own_parent() -> Result<OwnedFd> {
    let failed = |errno| KernelError::new("pidfd_open", "the parent of this process", errno);
    let parent = getppid().ok_or_else(|| {
        failed(Errno::SRCH).hint("the parent is outside of this pid namespace: start without --end-with-parent")
    })?;
    let opened = pidfd_open(parent, PidfdFlags::empty()).map_err(failed)?;
    // A parent that has ended meanwhile has given its number and its children away.
    if getppid() == Some(parent) { Ok(opened) } else { Err(failed(Errno::SRCH)) }
}

/// Opens the directory above a state directory, and returns the last part of its path.
fn open_above(state_dir: &Path) -> Result<(OwnedFd, std::ffi::CString)> {
    let failed = |errno| KernelError::new("open the directory above", state_dir.display().to_string(), errno);
    let path = std::path::absolute(state_dir).map_err(|_| failed(Errno::INVAL))?;
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(failed(Errno::INVAL)) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::open(above, flags, Mode::empty()).map_err(failed)?;
    let name = std::ffi::CString::new(name.as_encoded_bytes()).map_err(|_| failed(Errno::INVAL))?;
    Ok((above, name))
}

/// What a guardian needs to know of the herd's cgroups.
pub(super) struct Estate {
    /// The root cgroup's path below each of the mounts.
    pub root: String,
    /// The root cgroup in cgroup2.
    pub spine: OwnedFd,
    /// The file of the root cgroup that its supervisor has locked, open for writing.
    pub lock: OwnedFd,
    /// The cgroup that this process was in before it was in one of the root's.
    pub home: OwnedFd,
    /// Whether the root is below that one, which may hand controllers down because of it.
    pub is_below_home: bool,
    /// The mount points of the hierarchies, cgroup2's first.
    pub mounts: Vec<OwnedFd>,
}

/// A name of bounded length, as a value.
#[derive(Clone, Copy)]
struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    const EMPTY: Self = Self { bytes: [0; N], length: 0 };

    /// Copies a text; one that does not fit is left out.
    fn new(text: &[u8]) -> Self {
        let mut copy = Self::EMPTY;
        if let Some(place) = copy.bytes.get_mut(..text.len()).filter(|_| text.len() < N) {
            place.copy_from_slice(text);
            copy.length = text.len();
        }
        copy
    }

    /// Returns the first bytes of the text as the kernel takes them.
    fn head(&mut self, length: usize) -> Option<&CStr> {
        *self.bytes.get_mut(length)? = 0;
        CStr::from_bytes_with_nul(self.bytes.get(..=length)?).ok()
    }
}
