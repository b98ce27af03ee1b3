//! The pipes of agents whose output is one: FIFOs beside the spool files, so that a child, its descendants and a later daemon can
//! open them again by name.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, CWD, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::file::fault;
use super::store::{Inlet, Pipes, Store, entry_fault, pipe_name, shown};
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::stream::Stream;

impl Store {
    /// Opens the other ends of an agent's pipes; `None` if it has none.
    ///
    /// # Errors
    /// [`Code::WrongState`] if something else stands in the place of a pipe or a file; those of the kernel.
    pub fn pipes(&self, id: &AgentId) -> Result<Option<Pipes>, Error> {
        self.pipes_in(id.as_str())
    }

    /// Returns which pipes an agent has, without opening one; `None` if it has none.
    pub fn token(&self, id: &AgentId) -> Option<u64> {
        let name = format!("{id}/{}", pipe_name(Stream::Stdout));
        let stat = fs::fstat(self.open_entry(&name, OFlags::PATH).ok()?).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::Fifo).then_some(stat.st_ino)
    }

    pub(super) fn pipes_in(&self, dir: &str) -> Result<Option<Pipes>, Error> {
        let Some((token, out)) = self.end(dir, Stream::Stdout)? else { return Ok(None) };
        let Some((_, err)) = self.end(dir, Stream::Stderr)? else { return Ok(None) };
        let file = |stream: Stream| {
            let name = format!("{dir}/{stream}");
            let file = self.spool_file_at(&name, OFlags::WRONLY)?;
            fs::seek(file.fd(), SeekFrom::End(0)).map_err(|errno| fault("seek the end of", &shown(&name), errno))?;
            Ok::<_, Error>(file.into_fd())
        };
        Ok(Some(Pipes { token, ends: [out, err], files: [file(Stream::Stdout)?, file(Stream::Stderr)?] }))
    }

    /// Opens the end of a pipe that is read from, in a way that its last writer's end is reported.
    fn end(&self, dir: &str, stream: Stream) -> Result<Option<(u64, OwnedFd)>, Error> {
        let name = format!("{dir}/{}", pipe_name(stream));
        let end = match self.open_pipe(&name, OFlags::RDONLY) {
            Err(error) if error.code == Code::NoSuchAgent => return Ok(None),
            other => other?,
        };
        // A reader of a FIFO that never had a writer sees no hangup when there is none.
        drop(self.open_pipe(&name, OFlags::WRONLY)?);
        Ok(Some(end))
    }

    /// Opens both pipes for the child, and makes them if they are not there.
    pub(super) fn pipe_inlet(&self, dir: &str) -> Result<Inlet, Error> {
        let (token, stdout) = self.pipe(dir, Stream::Stdout)?;
        let (_, stderr) = self.pipe(dir, Stream::Stderr)?;
        Ok(Inlet { stdout, stderr, token: Some(token) })
    }

    /// Opens a pipe for the child. Its reader is whoever keeps it, not the child itself: asyncio and others take bytes that can be read
    /// from their own stdout for the end of its reader.
    fn pipe(&self, dir: &str, stream: Stream) -> Result<(u64, OwnedFd), Error> {
        let name = format!("{dir}/{}", pipe_name(stream));
        // There may be no reader yet, without which it cannot be opened for writing alone.
        let both = match self.open_pipe(&name, OFlags::RDWR) {
            Err(error) if error.code == Code::NoSuchAgent => {
                let inside = self.open_dir(dir)?;
                fs::mknodat(&inside, pipe_name(stream), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                    .map_err(|errno| entry_fault("make", &shown(&name), errno))?;
                self.open_pipe(&name, OFlags::RDWR)
            }
            other => other,
        };
        let _both = both?;
        let (token, pipe) = self.open_pipe(&name, OFlags::WRONLY)?;
        // O_NONBLOCK was for the open alone: the child waits where the pipe is full.
        fs::fcntl_setfl(&pipe, OFlags::empty()).map_err(|errno| fault("set flags of", &shown(&name), errno))?;
        Ok((token, pipe))
    }

    /// Opens a FIFO without waiting, and returns its inode number.
    fn open_pipe(&self, name: &str, flags: OFlags) -> Result<(u64, OwnedFd), Error> {
        let pipe = self.open_entry(name, flags).map_err(|errno| entry_fault("open", &shown(name), errno))?;
        let stat = fs::fstat(&pipe).map_err(|errno| fault("stat", &shown(name), errno))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo && stat.st_nlink == 1 {
            return Ok((stat.st_ino, pipe));
        }
        let message = format!("{} is no longer the pipe that was made for the agent's output", shown(name));
        Err(Error::new(Code::WrongState, message)
            .remedy("something with root's rights replaced it; terminate the agent"))
    }
}

/// Opens `/dev/null` for the child.
pub(super) fn null_inlet() -> Result<Inlet, Error> {
    let open = || {
        fs::openat(CWD, Path::new("/dev/null"), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno: Errno| fault("open", "/dev/null", errno))
    };
    Ok(Inlet { stdout: open()?, stderr: open()?, token: None })
}
