//! Where a daemon lives, and what it holds its herd to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::kernel::guardian::EndsWith;
use crate::model::config::{Flags, HerdConfig};
use crate::model::error::Error;

/// What the root cgroup of a daemon is called.
pub const DEFAULT_CGROUP: &str = "treeherd";

/// What a daemon needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the herd is held to.
    pub herd: HerdConfig,
    /// The directory of the socket, the journal and the output. Made if its parent is there.
    pub state_dir: PathBuf,
    /// The root cgroup's path below the cgroup2 mount point: `/treeherd`, `system.slice/treeherd.service`. The default, `treeherd`, is only a
    /// name for [`Herd::start`](crate::herd::Herd::start): where it is, it chooses as a daemon does, within whatever this process was put
    /// into.
    pub cgroup: String,
    /// The socket; `treeherd.sock` in the state directory if none is given.
    pub socket: Option<PathBuf>,
    /// What stands over `herd`, and over what is read again.
    pub flags: Flags,
    /// Where the settings of `herd` come from, as [`load`](super::load) tells it.
    pub origins: BTreeMap<String, String>,
    /// The file from which `herd` was read: it is read again on SIGHUP.
    pub config: Option<PathBuf>,
    /// Whether the supervisor moves into a cgroup of its own.
    pub residence: Residence,
    /// With whom the herd ends, where that is not in order.
    pub ends_with: EndsWith,
    /// Whether the state directory goes with the herd, if its guardian ends it.
    pub is_transient: bool,
    /// What is in every agent's environment, unless its own spec says otherwise, beside what always is.
    pub env: BTreeMap<String, String>,
}

/// Where the supervising process itself lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// In a fresh leaf beside the herd: a daemon, and whoever is in the cgroup that becomes the root.
    OwnLeaf,
    /// Where it is.
    #[default]
    Stay,
}

impl Settings {
    /// Makes settings with everything but the state directory at its default: the herd ends with this process.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            herd: HerdConfig::default(),
            state_dir: state_dir.into(),
            cgroup: DEFAULT_CGROUP.to_owned(),
            socket: None,
            flags: Flags::default(),
            origins: BTreeMap::new(),
            config: None,
            residence: Residence::default(),
            ends_with: EndsWith::default(),
            is_transient: false,
            env: BTreeMap::new(),
        }
    }

    /// Returns the path of the socket that agents tell over how they are (sd_notify(3)): absolute, as `NOTIFY_SOCKET` has to be.
    #[must_use]
    pub fn notify_socket(&self) -> PathBuf {
        // There is a working directory, or the state directory cannot be made either.
        std::path::absolute(&self.state_dir).unwrap_or_else(|_| self.state_dir.clone()).join("notify")
    }

    /// Chooses the place of the root cgroup, if none is given.
    pub(super) fn seated(self) -> Result<Self, Error> {
        if self.cgroup != DEFAULT_CGROUP {
            return Ok(self);
        }
        let seat = super::choose_seat(None, DEFAULT_CGROUP)?;
        Ok(Self { cgroup: seat.cgroup, residence: seat.residence, ..self })
    }

    /// Returns the root cgroup's path, without slashes around it.
    pub(super) fn cgroup(&self) -> &str {
        self.cgroup.trim_matches('/')
    }

    /// Returns the socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state_dir.join("treeherd.sock"))
    }

    /// Returns the state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}
