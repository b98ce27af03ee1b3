//! The one error that reaches a user: what was asked, of what, why not, and what helps.

use std::fmt;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of refusal or failure an [`Error`] is: stable, for programs (`error.data.code` on the wire).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// An agent or session id outside its alphabet or length.
    BadId,
    /// A value that does not parse or is out of its range.
    BadValue,
    /// A request that is not JSON-RPC 2.0, or has parameters of the wrong type.
    BadRequest,
    /// A method that this daemon does not know.
    UnknownMethod,
    /// A line that is not JSON.
    NotJson,
    /// A request or line longer than the bound.
    TooLarge,
    /// No agent has this id.
    NoSuchAgent,
    /// The named parent does not exist, or is ending.
    NoSuchParent,
    /// An agent with this id exists already.
    DuplicateId,
    /// The stated level is not the parent's level + 1.
    WrongLevel,
    /// A bound on the tree (`max_levels`, `max_agents_per_level`, `max_children`, `max_agents`) is reached.
    BoundReached,
    /// A limit whose controller this host does not offer.
    LimitNotOffered,
    /// A limit wider than what the agent inherits.
    LimitTooWide,
    /// The agent is in a state in which this cannot be done.
    WrongState,
    /// The client is not identified, or it is an agent: the target is not below it, or it asks for more than it has.
    Forbidden,
    /// The process could not be set up; nothing of it is left.
    SpawnFailed,
    /// The program could not be executed; nothing of it is left.
    ExecFailed,
    /// The time budget of the request ran out; the error says what is still waited for.
    TimedOut,
    /// A part of the herd is ending and admits nothing.
    ShuttingDown,
    /// Too many clients, or too many requests of one client.
    TooManyClients,
    /// No daemon answers on the socket.
    NoDaemon,
    /// Another daemon is alive on this state directory or root cgroup.
    InUse,
    /// The host lacks what treeherd stands on (cgroup2, a kernel, a permission).
    Unsupported,
    /// A call of the kernel failed in a way that nobody foresaw.
    Kernel,
    /// The tree file or the configuration has mistakes.
    BadTree,
    /// The state directory cannot be written: its disk stalls or is full.
    StateUnwritable,
}

impl Code {
    /// Returns the code's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadId => "bad_id",
            Self::BadValue => "bad_value",
            Self::BadRequest => "bad_request",
            Self::UnknownMethod => "unknown_method",
            Self::NotJson => "not_json",
            Self::TooLarge => "too_large",
            Self::NoSuchAgent => "no_such_agent",
            Self::NoSuchParent => "no_such_parent",
            Self::DuplicateId => "duplicate_id",
            Self::WrongLevel => "wrong_level",
            Self::BoundReached => "bound_reached",
            Self::LimitNotOffered => "limit_not_offered",
            Self::LimitTooWide => "limit_too_wide",
            Self::WrongState => "wrong_state",
            Self::Forbidden => "forbidden",
            Self::SpawnFailed => "spawn_failed",
            Self::ExecFailed => "exec_failed",
            Self::TimedOut => "timed_out",
            Self::ShuttingDown => "shutting_down",
            Self::TooManyClients => "too_many_clients",
            Self::NoDaemon => "no_daemon",
            Self::InUse => "in_use",
            Self::Unsupported => "unsupported",
            Self::Kernel => "kernel",
            Self::BadTree => "bad_tree",
            Self::StateUnwritable => "state_unwritable",
        }
    }
}

/// A refusal or failure: a stable code, one sentence with operation, object and cause, and what helps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Error {
    /// For programs.
    pub code: Code,
    /// For people: operation, object and cause in one sentence.
    pub message: String,
    /// What the reader can do about it, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Error {
    /// Makes an error with a code and a sentence.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: None }
    }

    /// Adds what helps.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// How many bytes the path of a socket may have. The kernel takes 108 without a zero at the end; clients in most languages do not.
const SOCKET_PATH_MAX: usize = 107;

/// Refuses a path that is too long for a socket.
///
/// # Errors
/// [`Code::BadValue`], with the length, the limit, and how long the directory may be.
///
/// # Kernel
/// unix(7), `sun_path`.
pub fn check_socket_path(path: &Path) -> Result<(), Error> {
    let length = path.as_os_str().len();
    if length <= SOCKET_PATH_MAX {
        return Ok(());
    }
    let name = path.file_name().map_or(0, std::ffi::OsStr::len);
    let room = SOCKET_PATH_MAX.saturating_sub(name + 1);
    let shown = path.display();
    let message = format!("socket path {shown} has {length} bytes, and the kernel takes {SOCKET_PATH_MAX} at most");
    let remedy =
        format!("give a --state-dir of at most {room} bytes, or a shorter --socket; a symbolic link can be one");
    Err(Error::new(Code::BadValue, message).remedy(remedy))
}

impl std::error::Error for Error {}
