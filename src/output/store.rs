//! The directory of all spool files: makes, opens and removes them. Holds one descriptor, however many agents there are.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{self, AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::{self, Errno};

use super::file::{SpoolFile, fault, punch};
use super::marks::MARKS_MOST;
use super::pipes::null_inlet;
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::stream::{Output, Stream};

/// The name of the directory inside the state directory.
const AGENTS: &str = "agents";

/// The scratch file for the trial of punching; no agent can have a name with a dot.
const SCRATCH: &str = ".scratch";

/// How many agents to come have their files already: one for each thread that spawns is enough.
const SPARES: usize = 4;

/// How long the stored times of a stream can be.
const TIMES_MOST: usize = 8 + 16 * MARKS_MOST;

/// How many digits a stored shift has: the number of digits of `u64::MAX`.
const BASE_DIGITS: usize = 20;

/// The `agents/` directory of a state directory: can be shared by threads.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// Replaced when somebody has deleted the directory.
    agents: RwLock<Arc<OwnedFd>>,
    punches: bool,
    /// The files of agents to come, in directories that are called by their number here.
    spares: Mutex<[Option<Inlet>; SPARES]>,
    is_closed: RwLock<bool>,
}

/// Where the output of one run goes in.
#[derive(Debug)]
pub struct Inlet {
    /// What the child writes its standard output to, as by [`Store::writer`].
    pub stdout: OwnedFd,
    /// What the child writes its standard error to.
    pub stderr: OwnedFd,
    /// Which pipes these are, if they are pipes: those of [`Store::pipes`] have to be kept.
    pub token: Option<u64>,
}

/// The other ends of an agent's pipes, both streams in the order stdout, stderr.
#[derive(Debug)]
pub struct Pipes {
    /// Which ones: the inode number of the FIFO of stdout, which is not given out again as long as it is open.
    pub token: u64,
    /// What is read from, without waiting.
    pub ends: [OwnedFd; 2],
    /// The spool files that it belongs into, open at their ends.
    pub files: [OwnedFd; 2],
}

impl Store {
    /// Opens `agents/` in the state directory, making it if need be, and tries once whether holes can be punched there.
    ///
    /// # Errors
    /// The directory cannot be made, opened or written to.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let path = state_dir.join(AGENTS);
        let name = path.display().to_string();
        let agents = RwLock::new(Arc::new(open_agents(&path)?));
        let mut store = Self { path, agents, punches: false, spares: Mutex::default(), is_closed: RwLock::default() };
        store.punches = store.try_punching().map_err(|errno| fault("write a scratch file in", &name, errno))?;
        Ok(store)
    }

    /// Re-creates `agents/` if it was deleted or moved away, and says whether it was.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn restore(&self) -> Result<bool, Error> {
        let identity = |about: fs::Stat| (about.st_dev, about.st_ino);
        let there = fs::lstat(&self.path).map(identity);
        if there.is_ok() && there == fs::fstat(self.agents()).map(identity) {
            return Ok(false);
        }
        let agents = open_agents(&self.path)?;
        *self.agents.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(agents);
        // Their files are gone.
        *self.spares() = Default::default();
        Ok(true)
    }

    /// Re-creates what was deleted of an agent's directory and spool files, and says whether something was.
    ///
    /// # Errors
    /// Those of the kernel; [`Code::WrongState`] if something else stands in the way.
    pub fn mend(&self, id: &AgentId) -> Result<bool, Error> {
        let mut is_mended = match fs::mkdirat(self.agents(), id.as_str(), Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(fault("make directory", &directory(id), errno)),
        };
        for stream in Stream::ALL {
            match self.make_file(id.as_str(), stream) {
                Ok(_) => is_mended = true,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(entry_fault("make", &shown(&entry(id, stream.as_str())), errno)),
            }
        }
        Ok(is_mended)
    }

    fn agents(&self) -> Arc<OwnedFd> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says whether this file system gives space back, which is what bounds the output on disk.
    ///
    /// Where it does not, spool files grow without bound and nothing of them is ever gone: whoever opens the store has to
    /// tell that to the people who run it.
    #[must_use]
    pub fn punches(&self) -> bool {
        self.punches
    }

    /// Removes the files of all agents but these, the spare ones as well, and returns what could not be removed and why. Only for
    /// the one to whom the state directory belongs.
    pub fn remove_all_but(&self, known: &BTreeSet<AgentId>) -> Vec<Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let entries = match fs::openat(self.agents(), ".", flags, Mode::empty()).and_then(Dir::new) {
            Ok(entries) => entries,
            Err(errno) => return vec![fault("list", AGENTS, errno)],
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().to_str().map(str::to_owned).ok());
        let is_known = |name: &str| matches!(name, "." | "..") || name.parse().is_ok_and(|id| known.contains(&id));
        let unknown: Vec<String> = names.filter(|name| !is_known(name)).collect();
        unknown.iter().filter_map(|name| self.remove_dir(name).err()).collect()
    }

    /// Makes no spare files any more, and waits for who is making some.
    pub fn close(&self) {
        *self.is_closed.write().unwrap_or_else(PoisonError::into_inner) = true;
        *self.spares() = Default::default();
    }

    /// Makes the files and pipes of an agent that is yet to come, so that its spawn need not wait for them; none if enough are
    /// there. `keep` gives the pipes to whoever empties them.
    ///
    /// # Errors
    /// Those of the kernel and of `keep`; then nothing is left.
    pub fn stock(&self, keep: impl FnOnce(Pipes) -> Result<(), Error>) -> Result<(), Error> {
        let is_closed = self.is_closed.read().unwrap_or_else(PoisonError::into_inner);
        if *is_closed {
            return Ok(());
        }
        let Some(number) = self.spares().iter().position(Option::is_none) else { return Ok(()) };
        let name = spare_name(number);
        match fs::mkdirat(self.agents(), &name, Mode::RWXU) {
            Ok(()) => {}
            // Another thread is at it.
            Err(Errno::EXIST) => return Ok(()),
            Err(errno) => return Err(fault("make directory", &shown(&name), errno)),
        }
        let inlet = self.fill(&name, Output::default())?;
        let kept = self.pipes_in(&name).and_then(|pipes| pipes.map_or(Ok(()), keep));
        kept.inspect_err(|_| self.remove_dir(&name).unwrap_or_default())?;
        self.spares()[number] = Some(inlet);
        Ok(())
    }

    /// Gives up the spares: whoever has kept their pipes is gone.
    pub fn discard_spares(&self) {
        for number in 0..SPARES {
            if self.spares()[number].take().is_some() {
                // What is left behind the next daemon clears away.
                self.remove_dir(&spare_name(number)).unwrap_or_default();
            }
        }
    }

    fn spares(&self) -> MutexGuard<'_, [Option<Inlet>; SPARES]> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives spare files to an agent, if there are any and nothing stands in their way.
    fn give_spare(&self, id: &AgentId) -> Option<Inlet> {
        let mut spares = self.spares();
        let number = spares.iter().position(Option::is_some)?;
        let name = spare_name(number);
        match fs::renameat_with(self.agents(), &name, self.agents(), id.as_str(), RenameFlags::NOREPLACE) {
            Ok(()) => spares[number].take(),
            Err(Errno::EXIST) => None,
            Err(_) => {
                // Somebody took it away, or this file system cannot do that: it is never tried again.
                spares[number] = None;
                None
            }
        }
    }

    /// Makes the directory of an agent with two empty files and, if that is what its output is, two pipes, and opens what the child
    /// writes to; what an earlier agent of the same name left is removed.
    ///
    /// # Errors
    /// Those of the kernel; then nothing is left. What is in a leftover directory and is not treeherd's stops it
    /// ([`Code::WrongState`]).
    pub fn create(&self, id: &AgentId, output: Output) -> Result<Inlet, Error> {
        if output == Output::default()
            && let Some(inlet) = self.give_spare(id)
        {
            return Ok(inlet);
        }
        match self.make_anew(id, output) {
            // A check of the state directory, which re-creates what is missing, came in between.
            Err(error) if error.code == Code::WrongState => self.make_anew(id, output),
            made => made,
        }
    }

    fn make_anew(&self, id: &AgentId, output: Output) -> Result<Inlet, Error> {
        let make = || fs::mkdirat(self.agents(), id.as_str(), Mode::RWXU);
        let mut made = make();
        if made == Err(Errno::EXIST) {
            self.remove(id)?;
            made = make();
        }
        made.map_err(|errno| fault("make directory", &directory(id), errno))?;
        self.fill(id.as_str(), output)
    }

    /// Makes the files in a directory that was just made, or removes it.
    fn fill(&self, dir: &str, output: Output) -> Result<Inlet, Error> {
        let make = |stream: Stream| {
            self.make_file(dir, stream).map_err(|errno| entry_fault("make", &shown(&format!("{dir}/{stream}")), errno))
        };
        let files = make(Stream::Stdout).and_then(|stdout| Ok((stdout, make(Stream::Stderr)?)));
        let inlet = files.and_then(|(stdout, stderr)| match output {
            Output::File => Ok(Inlet { stdout, stderr, token: None }),
            Output::Pipe => self.pipe_inlet(dir),
            Output::Null => null_inlet(),
        });
        // The first error is the one to tell.
        inlet.inspect_err(|_| self.remove_dir(dir).unwrap_or_default())
    }

    /// Makes a spool file that is not there yet.
    fn make_file(&self, dir: &str, stream: Stream) -> io::Result<OwnedFd> {
        // An exclusive file is a new one: it cannot be a link, and there is no fifo to wait for.
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        fs::openat2(self.agents(), format!("{dir}/{stream}"), flags, Mode::RUSR | Mode::WUSR, beneath())
    }

    /// Opens what the child of a further run writes to; what was deleted of its directory is re-created.
    ///
    /// # Errors
    /// As [`Store::writer`].
    pub fn inlet(&self, id: &AgentId, output: Output) -> Result<Inlet, Error> {
        match self.open_inlet(id, output) {
            Err(error) if error.code == Code::NoSuchAgent => {
                self.mend(id)?;
                self.open_inlet(id, output)
            }
            other => other,
        }
    }

    fn open_inlet(&self, id: &AgentId, output: Output) -> Result<Inlet, Error> {
        match output {
            Output::File => {
                let (stdout, stderr) = (self.writer(id, Stream::Stdout)?, self.writer(id, Stream::Stderr)?);
                Ok(Inlet { stdout, stderr, token: None })
            }
            Output::Pipe => self.pipe_inlet(id.as_str()),
            Output::Null => null_inlet(),
        }
    }

    /// Opens a spool file for the child: write only, `O_APPEND`, closed on exec until it is made descriptor 1 or 2.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`]; [`Code::WrongState`] if something else stands in the file's place; those of the kernel.
    pub fn writer(&self, id: &AgentId, stream: Stream) -> Result<OwnedFd, Error> {
        let file = self.open_file(id, stream, OFlags::WRONLY | OFlags::APPEND)?;
        // O_NONBLOCK was for the open alone; the child shall not see it.
        fs::fcntl_setfl(file.fd(), OFlags::APPEND)
            .map_err(|errno| fault("set flags of", &shown(&entry(id, stream.as_str())), errno))?;
        Ok(file.into_fd())
    }

    /// Removes an agent's files and directory; that they are gone already is fine.
    ///
    /// # Errors
    /// [`Code::WrongState`] if something that is not treeherd's stands in the directory; those of the kernel.
    pub fn remove(&self, id: &AgentId) -> Result<(), Error> {
        self.remove_dir(id.as_str())
    }

    fn remove_dir(&self, dir: &str) -> Result<(), Error> {
        let directory = shown(dir);
        match self.open_dir(dir) {
            Ok(inside) => {
                for stream in Stream::ALL {
                    for name in [stream.as_str(), base_name(stream), pipe_name(stream), times_name(stream)] {
                        unlink(&inside, name, AtFlags::empty())
                            .map_err(|errno| entry_fault("remove", &format!("{directory}/{name}"), errno))?;
                    }
                }
                unlink(self.agents(), dir, AtFlags::REMOVEDIR).map_err(|errno| entry_fault("remove", &directory, errno))
            }
            Err(error) if error.code == Code::NoSuchAgent => Ok(()),
            // Something that is not a directory: a link, a file.
            Err(error) => unlink(self.agents(), dir, AtFlags::empty()).map_err(|_| error),
        }
    }

    /// Opens an agent's directory (`O_PATH`): its entries `stdout` and `stderr` are what inotify watches.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`]; [`Code::WrongState`] if something else stands in its place; those of the kernel.
    pub fn watch_dir(&self, id: &AgentId) -> Result<OwnedFd, Error> {
        self.open_dir(id.as_str())
    }

    pub(super) fn open_dir(&self, dir: &str) -> Result<OwnedFd, Error> {
        self.open_entry(dir, OFlags::DIRECTORY | OFlags::PATH).map_err(|errno| entry_fault("open", &shown(dir), errno))
    }

    /// Opens a spool file to stat, read and punch it.
    pub(super) fn spool_file(&self, id: &AgentId, stream: Stream) -> Result<SpoolFile, Error> {
        self.open_file(id, stream, OFlags::RDWR)
    }

    /// Returns how much an agent has written to both streams, in bytes: it changes whenever something is written.
    ///
    /// # Errors
    /// As [`Store::writer`].
    pub fn written(&self, id: &AgentId) -> Result<u64, Error> {
        Stream::ALL.into_iter().map(|stream| self.spool_file(id, stream)?.size()).sum()
    }

    /// Returns the stored shift between file and stream offsets: 0 where none was stored.
    pub(super) fn base(&self, id: &AgentId, stream: Stream) -> Result<u64, Error> {
        let name = entry(id, base_name(stream));
        let fd = match self.open_entry(&name, OFlags::RDONLY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(0),
            Err(errno) => return Err(entry_fault("open", &shown(&name), errno)),
        };
        let digits = SpoolFile::new(fd, shown(&name))?.read_at(0, BASE_DIGITS)?;
        // Nobody but the agent can have damaged it, to its own harm.
        Ok(std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    /// Returns what was stored of when bytes were seen; nothing where nothing was.
    pub(super) fn times(&self, id: &AgentId, stream: Stream) -> Result<Vec<u8>, Error> {
        let name = entry(id, times_name(stream));
        match self.open_entry(&name, OFlags::RDONLY) {
            Ok(fd) => SpoolFile::new(fd, shown(&name))?.read_at(0, TIMES_MOST),
            Err(Errno::NOENT) => Ok(Vec::new()),
            Err(errno) => Err(entry_fault("open", &shown(&name), errno)),
        }
    }

    /// Stores the shift between file and stream offsets, in one write and in place.
    pub(super) fn set_base(&self, id: &AgentId, stream: Stream, base: u64) -> Result<(), Error> {
        let name = entry(id, base_name(stream));
        let file = self
            .open_entry(&name, OFlags::WRONLY | OFlags::CREATE)
            .map_err(|errno| entry_fault("make", &shown(&name), errno))
            .and_then(|fd| SpoolFile::new(fd, shown(&name)))?;
        let digits = format!("{base:0BASE_DIGITS$}");
        let written = io::retry_on_intr(|| io::pwrite(file.fd(), digits.as_bytes(), 0));
        written.map(drop).map_err(|errno| fault("write", &shown(&name), errno))
    }

    fn open_file(&self, id: &AgentId, stream: Stream, flags: OFlags) -> Result<SpoolFile, Error> {
        self.spool_file_at(&entry(id, stream.as_str()), flags)
    }

    pub(super) fn spool_file_at(&self, name: &str, flags: OFlags) -> Result<SpoolFile, Error> {
        let fd = self.open_entry(name, flags).map_err(|errno| entry_fault("open", &shown(name), errno))?;
        SpoolFile::new(fd, shown(name))
    }

    /// Opens below `agents/` without following a link anywhere on the way and without waiting for anything.
    ///
    /// # Kernel
    /// `openat2(2)`, 5.6; `RESOLVE_NO_SYMLINKS` holds for the last component too.
    pub(super) fn open_entry(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let mut flags = flags | OFlags::CLOEXEC;
        if !flags.contains(OFlags::PATH) {
            flags |= OFlags::NONBLOCK | OFlags::NOCTTY;
        }
        let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
        fs::openat2(self.agents(), name, flags, mode, beneath())
    }

    fn try_punching(&self) -> io::Result<bool> {
        unlink(self.agents(), SCRATCH, AtFlags::empty())?;
        let scratch = self.open_entry(SCRATCH, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        unlink(self.agents(), SCRATCH, AtFlags::empty())?;
        match io::pwrite(&scratch, &[b'x'; 8192], 0) {
            // Full: there is no telling, and a daemon that does not start gives nothing back at all.
            Err(Errno::NOSPC | Errno::DQUOT) => return Ok(true),
            other => other?,
        };
        Ok(punch(scratch.as_fd(), 0, 4096).is_ok())
    }
}

/// Names the directory of a spare; no agent can have a name with a dot.
fn spare_name(number: usize) -> String {
    format!(".spare-{number}")
}

fn open_agents(path: &Path) -> Result<OwnedFd, Error> {
    let name = path.display().to_string();
    match fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(fault("make directory", &name, errno)),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::PATH | OFlags::CLOEXEC;
    fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| fault("open", &name, errno))
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS
}

fn unlink(directory: impl AsFd, name: &str, flags: AtFlags) -> io::Result<()> {
    match fs::unlinkat(directory, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Says which operation on an agent's file or directory failed: not there, not treeherd's, or the kernel's reason.
pub(super) fn entry_fault(operation: &str, name: &str, errno: Errno) -> Error {
    let plain = fault(operation, name, errno);
    match errno {
        Errno::NOENT => {
            Error { code: Code::NoSuchAgent, ..plain }.remedy("no output is kept for an agent of this name")
        }
        // A directory with strangers in it; a directory, a link, a file, a fifo or socket in place of another thing.
        Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR | Errno::LOOP | Errno::NOTDIR | Errno::NXIO => {
            Error { code: Code::WrongState, ..plain }
                .remedy("something that is not treeherd's stands there; look at it and remove it by hand")
        }
        _ => plain,
    }
}

fn base_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout.base",
        Stream::Stderr => "stderr.base",
    }
}

/// Stores when bytes were seen, in one write and in place: who is killed in it has stored all or nothing.
pub(super) fn write_times(dir: &OwnedFd, stream: Stream, bytes: &[u8]) -> Result<(), Error> {
    let name = times_name(stream);
    let failed = |operation: &str, errno| entry_fault(operation, name, errno);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| failed("make", errno))?;
    let file = SpoolFile::new(file, name.to_owned())?;
    io::retry_on_intr(|| io::pwrite(file.fd(), bytes, 0)).map_err(|errno| failed("write", errno))?;
    fs::ftruncate(file.fd(), bytes.len() as u64).map_err(|errno| failed("cut", errno))
}

fn times_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout.times",
        Stream::Stderr => "stderr.times",
    }
}

pub(super) fn pipe_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout.pipe",
        Stream::Stderr => "stderr.pipe",
    }
}

fn entry(id: &AgentId, name: &str) -> String {
    format!("{id}/{name}")
}

pub(super) fn shown(entry: &str) -> String {
    format!("{AGENTS}/{entry}")
}

fn directory(id: &AgentId) -> String {
    shown(id.as_str())
}
