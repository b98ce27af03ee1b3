//! What a failed kernel call tells: the operation, the object, the errno, and for the known ones why and what to do.

use std::fmt;

use rustix::io::Errno;

use crate::model::error::{Code, Error};

/// A kernel call that failed: `write "+memory" to cgroup.subtree_control of herd/build: Device or resource busy (EBUSY)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    /// What was tried, in the infinitive: `open`, `write "64" to pids.max`.
    pub operation: String,
    /// What it was tried on: a path, a pid.
    pub object: String,
    /// What the kernel answered.
    pub errno: Errno,
    /// Why, and what helps, where that is known.
    pub hint: Option<String>,
}

/// The outcome of a kernel call.
pub type Result<T> = std::result::Result<T, KernelError>;

impl KernelError {
    /// Makes an error of an operation on an object.
    #[must_use]
    pub fn new(operation: impl Into<String>, object: impl Into<String>, errno: Errno) -> Self {
        Self { operation: operation.into(), object: object.into(), errno, hint: None }
    }

    /// Makes an error of what the standard library was answered.
    #[must_use]
    pub fn from_io(operation: impl Into<String>, object: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(operation, object, Errno::from_io_error(error).unwrap_or(Errno::IO))
    }

    /// Adds why it failed, or what helps.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says whether the object was already gone: on what we are ending, that is an answer and not a failure.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        is_gone(self.errno)
    }
}

/// Says whether an errno tells that a process or a cgroup does not exist any more.
#[must_use]
pub fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NODEV | Errno::SRCH)
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.object, errno_text(self.errno))?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Returns an errno's sentence and name: `No such file or directory (ENOENT)`.
#[must_use]
pub fn errno_text(errno: Errno) -> String {
    let nix = nix::errno::Errno::from_raw(errno.raw_os_error());
    format!("{} ({nix:?})", nix.desc())
}

impl std::error::Error for KernelError {}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        let code = match error.errno {
            Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::NOSYS => Code::Unsupported,
            _ => Code::Kernel,
        };
        let plain = Self::new(code, format!("{} {}: {}", error.operation, error.object, errno_text(error.errno)));
        match error.hint {
            Some(hint) => plain.remedy(hint),
            None => plain,
        }
    }
}
