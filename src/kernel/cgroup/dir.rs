//! One directory of a cgroup hierarchy, and the only ways in which this crate reaches into it.
//!
//! Paths are resolved below a kept descriptor with `openat2`, so that a link, a `..` or another mount in the way is an
//! error and never followed. A long path is walked in chunks: the depth of a tree is not bounded by `PATH_MAX`.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::kernel::error::{KernelError, Result};

/// The longest piece of a path that is handed to the kernel at once, in bytes: well below `PATH_MAX` (4,096).
const CHUNK: usize = 2_048;

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// An open cgroup directory with the name under which errors speak of it.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    label: String,
}

impl Dir {
    /// Opens the mount point of a hierarchy.
    pub fn mount(path: &std::path::Path) -> Result<Self> {
        let label = path.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, label }),
            Err(errno) => Err(KernelError::new("open", label, errno)),
        }
    }

    /// Returns the name under which errors speak of this directory.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Opens a directory below this one; an empty path opens this one again.
    pub fn descend(&self, path: &str) -> Result<Self> {
        let label = if path.is_empty() { self.label.clone() } else { format!("{}/{path}", self.label) };
        let mut rest = path;
        let mut at: Option<OwnedFd> = None;
        loop {
            let (chunk, tail) = split_chunk(rest);
            let last = tail.is_empty();
            let access = if last { OFlags::RDONLY } else { OFlags::PATH };
            let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let from = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            let name = if chunk.is_empty() { "." } else { chunk };
            let fd = rustix::fs::openat2(from, name, flags, Mode::empty(), beneath())
                .map_err(|errno| KernelError::new("open", label.clone(), errno))?;
            if last {
                return Ok(Self { fd, label });
            }
            (at, rest) = (Some(fd), tail);
        }
    }

    /// Opens a child whose name need not be text.
    pub fn child(&self, name: &CStr) -> Result<Self> {
        let label = format!("{}/{}", self.label, name.to_string_lossy());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), beneath()) {
            Ok(fd) => Ok(Self { fd, label }),
            Err(errno) => Err(KernelError::new("open", label, errno)),
        }
    }

    /// Makes a child directory.
    pub fn make(&self, name: &str) -> Result<()> {
        make_at(self.fd.as_fd(), name, &format!("{}/{name}", self.label))
    }

    /// Makes a directory below this one; the ones above it are there.
    ///
    /// In one call that the kernel finds the way for by itself: no cgroup is a link, and who could mount something over one
    /// of ours is root.
    pub fn make_below(&self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((above, name)) if path.len() > CHUNK => self.descend(above)?.make(name),
            _ => self.make(path),
        }
    }

    /// Removes a child directory.
    pub fn remove(&self, name: &CStr) -> Result<()> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
            .map_err(|errno| KernelError::new("rmdir", format!("{}/{}", self.label, name.to_string_lossy()), errno))
    }

    /// Opens a file of this cgroup.
    pub fn open(&self, file: &str, access: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat2(&self.fd, file, access | OFlags::CLOEXEC, Mode::empty(), beneath())
            .map_err(|errno| KernelError::new("open", self.object(file), errno))
    }

    /// Reads a file of this cgroup to its end.
    pub fn read(&self, file: &str) -> Result<String> {
        let fd = self.open(file, OFlags::RDONLY)?;
        let mut text = Vec::with_capacity(4_096);
        let wrong = |errno| KernelError::new("read", self.object(file), errno);
        loop {
            text.reserve(4_096);
            match rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut text)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(wrong(errno)),
            }
        }
        String::from_utf8(text).map_err(|_| wrong(Errno::ILSEQ))
    }

    /// Reads the first piece of a file of a cgroup below this one: what the kernel gives at once, a page at most.
    pub fn read_first_below(&self, path: &str, file: &str) -> Result<String> {
        if path.len() > CHUNK {
            return self.descend(path)?.read_first(file);
        }
        self.read_first(&format!("{path}/{file}"))
    }

    fn read_first(&self, file: &str) -> Result<String> {
        let fd = self.open(file, OFlags::RDONLY)?;
        let mut text = Vec::with_capacity(4_096);
        let wrong = |errno| KernelError::new("read", self.object(file), errno);
        loop {
            match rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut text)) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(wrong(errno)),
            }
        }
        String::from_utf8(text).map_err(|_| wrong(Errno::ILSEQ))
    }

    /// Writes a text to a file of this cgroup, in one call.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let fd = self.open(file, OFlags::WRONLY)?;
        loop {
            return match rustix::io::write(&fd, text.as_bytes()) {
                Ok(_) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(KernelError::new(format!("write {:?} to", text.trim()), self.object(file), errno)),
            };
        }
    }

    /// Names a file of this cgroup the way that errors do: `pids.max of herd/a`.
    pub fn object(&self, file: &str) -> String {
        format!("{file} of {}", self.label)
    }

    /// Reads as many pids in `cgroup.procs` as the kernel lists in one piece, as [`Dir::pids`]
    /// does.
    pub fn some_pids(&self) -> Result<Vec<i32>> {
        pids_in(self.read_first("cgroup.procs"))
    }

    /// Reads the pids in `cgroup.procs` or `cgroup.threads`. A process of another pid namespace (0) is left out.
    ///
    /// The processes of a threaded cgroup are in the list of the domain above it: its own answer is EOPNOTSUPP.
    pub fn pids(&self, file: &str) -> Result<Vec<i32>> {
        pids_in(self.read(file))
    }

    /// Lists the child cgroups.
    pub fn children(&self) -> Result<Vec<std::ffi::CString>> {
        let wrong = |errno| KernelError::new("list", self.label.clone(), errno);
        // kernfs counts child directories in the link count, and most cgroups are leaves with 40 files.
        if rustix::fs::fstat(&self.fd).map_err(wrong)?.st_nlink <= 2 {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let name = entry.file_name();
            if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Gives the descriptor away: `O_RDONLY | O_DIRECTORY`, close-on-exec.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

fn pids_in(list: Result<String>) -> Result<Vec<i32>> {
    match list {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()),
        Err(error) if error.errno == Errno::OPNOTSUPP => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a child directory of an open one; errors call it by its label.
fn make_at(above: BorrowedFd<'_>, name: &str, label: &str) -> Result<()> {
    rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o755)).map_err(|errno| {
        let error = KernelError::new("mkdir", label, errno);
        match errno {
            Errno::AGAIN => error.hint("cgroup.max.depth or cgroup.max.descendants of a cgroup above is reached"),
            Errno::NOSPC | Errno::NOMEM => {
                error.hint("the host has too many cgroups of this kind, dying ones included")
            }
            Errno::ROFS => error.hint("remount the cgroup hierarchy read-write for this process"),
            _ => error,
        }
    })
}

/// Splits a path at the last slash at which the head is no longer than a chunk.
fn split_chunk(path: &str) -> (&str, &str) {
    if path.len() <= CHUNK {
        return (path, "");
    }
    // A single name is never longer than 255 bytes, so there is a slash.
    let slash = path.as_bytes()[..CHUNK].iter().rposition(|byte| *byte == b'/');
    slash.map_or((path, ""), |at| (&path[..at], &path[at + 1..]))
}

/// One step of a [`walk`].
pub(crate) enum Step<'a> {
    /// A directory is entered, the top one included.
    Entered {
        /// The directory.
        dir: &'a Dir,
        /// Its path below the top one, empty for the top one itself; `None` if a name on it is not text.
        path: Option<&'a str>,
    },
    /// A directory below the top one is done, all below it included, and closed.
    Left {
        /// The directory above it.
        parent: &'a Dir,
        /// Its name.
        name: &'a CStr,
    },
}

/// Walks a directory and all below it, parents before children on the way down and after them on the way up. What goes
/// away meanwhile is passed over. Open at a time is one descriptor for each level of depth.
pub(crate) fn walk(top: Dir, visit: &mut dyn FnMut(Step<'_>) -> Result<()>) -> Result<()> {
    struct Frame {
        dir: Dir,
        path: Option<String>,
        name: Option<std::ffi::CString>,
        children: Vec<std::ffi::CString>,
    }
    fn alive<T>(result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }
    let enter = |dir: Dir, path: Option<String>, name, visit: &mut dyn FnMut(Step<'_>) -> Result<()>| {
        alive(visit(Step::Entered { dir: &dir, path: path.as_deref() }))?;
        let children = alive(dir.children())?.unwrap_or_default();
        Ok(Frame { dir, path, name, children })
    };
    let mut frames = vec![enter(top, Some(String::new()), None, visit)?];
    while let Some(frame) = frames.last_mut() {
        if let Some(name) = frame.children.pop() {
            let Some(dir) = alive(frame.dir.child(&name))? else { continue };
            let path = frame.path.as_deref().zip(name.to_str().ok()).map(|(above, name)| match above {
                "" => name.to_owned(),
                above => format!("{above}/{name}"),
            });
            frames.push(enter(dir, path, Some(name), visit)?);
            continue;
        }
        let done = frames.pop().and_then(|frame| frame.name);
        if let (Some(frame), Some(name)) = (frames.last(), done) {
            alive(visit(Step::Left { parent: &frame.dir, name: &name }))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_split_at_slashes_and_nothing_is_lost() {
        let path = vec!["x".repeat(63); 200].join("/");
        let (mut rest, mut parts) = (path.as_str(), Vec::new());
        while !rest.is_empty() {
            let (head, tail) = split_chunk(rest);
            assert!(head.len() <= CHUNK && !head.is_empty());
            parts.push(head);
            rest = tail;
        }
        assert_eq!(parts.join("/"), path);
        assert_eq!(split_chunk("a/b"), ("a/b", ""));
    }
}
