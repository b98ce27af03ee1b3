//! A walk through a tree of directories that allocates nothing: one descriptor and one name for each level of depth.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom};
use rustix::io::Errno;

/// How deep a walk goes. A herd of ten levels is 22 deep, and its agents may make cgroups of their own.
const DEPTH_MAX: usize = 96;

/// The longest name of a file, with the zero byte behind it.
const NAME_MAX: usize = 256;

/// How much of a directory is read at once.
const CHUNK: usize = 2_048;

/// A descriptor that is closed without libc, whose `close` needs the thread that this process is a copy of.
pub(super) struct Handle(RawFd);

impl From<OwnedFd> for Handle {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into_raw_fd())
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open as long as this value lives.
        #[allow(unsafe_code)]
        unsafe {
            BorrowedFd::borrow_raw(self.0)
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it is this value's own.
        #[allow(unsafe_code)]
        unsafe {
            rustix::io::close(self.0);
        }
    }
}

/// What is done on the way through a tree.
pub(super) trait Visit {
    /// A directory is entered.
    fn entered(&mut self, dir: BorrowedFd<'_>);
    /// Something that is no directory was found.
    fn found(&mut self, dir: BorrowedFd<'_>, name: &CStr);
}

/// Removes a directory and all below it, as far as that is possible; says whether it is gone. The visitor sees each directory before
/// what is in it.
///
/// Nothing outside of the tree is reached, whatever is moved or linked meanwhile.
pub(super) fn remove(above: BorrowedFd<'_>, name: &CStr, visit: &mut dyn Visit) -> bool {
    let mut dirs: [Option<Handle>; DEPTH_MAX] = [const { None }; DEPTH_MAX];
    let mut names = [[0u8; NAME_MAX]; DEPTH_MAX];
    let Some(first) = open(above, name) else { return is_gone(above, name) };
    visit.entered(first.as_fd());
    dirs[0] = Some(first);
    let mut depth = 0;
    while let Some(dir) = dirs.get(depth).and_then(Option::as_ref) {
        let below = names.get_mut(depth).and_then(|place| next_dir(dir.as_fd(), place, visit));
        if let Some(below) = below.filter(|_| depth + 1 < DEPTH_MAX) {
            visit.entered(below.as_fd());
            depth += 1;
            dirs[depth] = Some(below);
            continue;
        }
        dirs[depth] = None;
        let Some(up) = depth.checked_sub(1) else { break };
        depth = up;
        if let (Some(Some(dir)), Some(Ok(name))) =
            (dirs.get(depth), names.get(depth).map(|name| CStr::from_bytes_until_nul(name)))
        {
            unlink(dir.as_fd(), name, AtFlags::REMOVEDIR);
        }
    }
    unlink(above, name, AtFlags::REMOVEDIR);
    is_gone(above, name)
}

/// Opens the next directory in a directory, and leaves its name in `place`. What comes before it is shown to the visitor.
fn next_dir(dir: BorrowedFd<'_>, place: &mut [u8; NAME_MAX], visit: &mut dyn Visit) -> Option<Handle> {
    let mut chunk = [MaybeUninit::uninit(); CHUNK];
    let mut entries = RawDir::new(dir, &mut chunk);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let below = match entry.file_type() {
            FileType::Directory | FileType::Unknown => open(dir, name),
            _ => None,
        };
        let Some(below) = below else {
            visit.found(dir, name);
            continue;
        };
        let bytes = name.to_bytes_with_nul();
        place.get_mut(..bytes.len())?.copy_from_slice(bytes);
        // The rest of what was read at once is read again.
        let _sought = rustix::fs::seek(dir, SeekFrom::Start(entry.next_entry_cookie()));
        return Some(below);
    }
    None
}

fn open(above: BorrowedFd<'_>, name: &CStr) -> Option<Handle> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(above, name, flags, Mode::empty(), beneath).ok().map(Handle::from)
}

/// Removes a name. What refuses stays, and the directory above it with it.
pub(super) fn unlink(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) {
    let _refused = rustix::fs::unlinkat(dir, name, flags);
}

fn is_gone(above: BorrowedFd<'_>, name: &CStr) -> bool {
    let exists = rustix::fs::accessat(above, name, rustix::fs::Access::EXISTS, AtFlags::empty());
    matches!(exists, Err(Errno::NOENT | Errno::NODEV))
}
