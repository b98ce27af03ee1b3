//! The two streams of an agent's output.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One of the two streams that an agent writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The agent's descriptor 1.
    Stdout,
    /// The agent's descriptor 2.
    Stderr,
}

impl Stream {
    /// Both streams, stdout first.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Returns the stream's name: on the wire, and as a file's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an agent's stdout and stderr are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// Pipes, which a keeper empties into the spool files: nothing that the agent does to them takes bytes or space away.
    #[default]
    Pipe,
    /// The spool files themselves: no process stands in between, and whoever opens `/dev/stdout` for writing truncates them.
    File,
    /// `/dev/null`: nothing is kept.
    Null,
}

impl Output {
    /// Returns its name, as a specification has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pipe => "pipe",
            Self::File => "file",
            Self::Null => "null",
        }
    }
}

/// Which of the two streams something is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Streams {
    /// Descriptor 1 alone.
    Stdout,
    /// Descriptor 2 alone.
    Stderr,
    /// Both.
    #[default]
    Both,
}

impl Streams {
    /// Returns their name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Both => "both",
        }
    }

    /// Says whether a stream is one of them.
    #[must_use]
    pub fn has(self, stream: Stream) -> bool {
        match self {
            Self::Stdout => stream == Stream::Stdout,
            Self::Stderr => stream == Stream::Stderr,
            Self::Both => true,
        }
    }
}
