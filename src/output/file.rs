//! One open spool file: the calls on it, in file offsets.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{self, FallocateFlags, FileType, SeekFrom};
use rustix::io::{self, Errno};

use crate::model::error::{Code, Error};
use crate::model::time::Wall;

/// A regular file with one name, open for as long as one call of this room takes.
#[derive(Debug)]
pub(super) struct SpoolFile {
    fd: OwnedFd,
    /// `agents/<id>/<stream>`, for errors.
    name: String,
}

impl SpoolFile {
    /// Takes an open file if it is a regular one with one name: a second name may be a stranger's.
    pub(super) fn new(fd: OwnedFd, name: String) -> Result<Self, Error> {
        let stat = fs::fstat(&fd).map_err(|errno| fault("stat", &name, errno))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1 {
            return Ok(Self { fd, name });
        }
        Err(Error::new(Code::WrongState, format!("{name} is no longer the file that was made for the agent's output"))
            .remedy("something with root's rights replaced it; terminate the agent"))
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the file's size in bytes, holes included.
    pub(super) fn size(&self) -> Result<u64, Error> {
        Ok(self.size_and_space()?.0)
    }

    /// Returns the file's size, and how much space it takes, both in bytes.
    pub(super) fn size_and_space(&self) -> Result<(u64, u64), Error> {
        let stat = fs::fstat(&self.fd).map_err(|errno| self.fault("stat", errno))?;
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok((number(stat.st_size), number(stat.st_blocks).saturating_mul(512)))
    }

    /// Returns when it was last written to.
    pub(super) fn written_at(&self) -> Result<Wall, Error> {
        let stat = fs::fstat(&self.fd).map_err(|errno| self.fault("stat", errno))?;
        let nanos = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        Ok(Wall(u64::try_from(nanos).unwrap_or(0)))
    }

    /// Reads up to `length` bytes from `offset`; fewer only if the file ends there.
    pub(super) fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            let count = io::retry_on_intr(|| io::pread(&self.fd, spare_capacity(&mut bytes), at))
                .map_err(|errno| self.fault("read", errno))?;
            if count == 0 {
                break;
            }
        }
        // The allocator may have given more room than was asked for.
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Returns where the first data at or after `offset` begins; `None` if there is only a hole up to the end.
    pub(super) fn data_from(&self, offset: u64) -> Result<Option<u64>, Error> {
        match fs::seek(&self.fd, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            // A file system without SEEK_DATA: all is data.
            Err(Errno::INVAL) => Ok(Some(offset)),
            Err(errno) => Err(self.fault("seek data in", errno)),
        }
    }

    /// Returns where the data at `offset` ends: at a hole or at the file's end.
    pub(super) fn hole_from(&self, offset: u64) -> Result<u64, Error> {
        match fs::seek(&self.fd, SeekFrom::Hole(offset)) {
            Ok(hole) => Ok(hole),
            Err(Errno::NXIO) => Ok(offset),
            Err(Errno::INVAL) => Ok(u64::MAX),
            Err(errno) => Err(self.fault("seek a hole in", errno)),
        }
    }

    /// Gives the space of `from..to` back; the file keeps its size.
    pub(super) fn punch(&self, from: u64, to: u64) -> Result<(), Error> {
        punch(self.fd(), from, to).map_err(|errno| self.fault(&format!("give back bytes {from} to {to} of"), errno))
    }

    fn fault(&self, operation: &str, errno: Errno) -> Error {
        fault(operation, &self.name, errno)
    }
}

/// Punches a hole of whole blocks.
///
/// # Kernel
/// `fallocate(2)`, `FALLOC_FL_PUNCH_HOLE`: ext4, xfs, btrfs, tmpfs and others; `EOPNOTSUPP` elsewhere.
pub(super) fn punch(fd: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    io::retry_on_intr(|| fs::fallocate(fd, mode, from, to - from))
}

/// Says which operation on what failed, and how.
pub(super) fn fault(operation: &str, name: &str, errno: Errno) -> Error {
    let known = nix::errno::Errno::from_raw(errno.raw_os_error());
    let message = format!("{operation} {name}: {} ({known:?})", known.desc());
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::NOSYS => Error::new(Code::Unsupported, message),
        Errno::NOSPC | Errno::DQUOT => {
            Error::new(Code::Kernel, message).remedy("the file system of the state directory is full: make room there")
        }
        Errno::MFILE | Errno::NFILE => {
            Error::new(Code::Kernel, message).remedy("raise the limit on open files (LimitNOFILE=)")
        }
        _ => Error::new(Code::Kernel, message),
    }
}
