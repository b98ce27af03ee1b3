//! The names of things: agents, sessions, levels, runs.
//!
//! An [`AgentId`] becomes a directory name under a cgroup mount and under the state directory, so its alphabet is
//! closed: no dot, no slash, nothing that the kernel or a shell reads as something else.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};

/// The longest agent or session id, in bytes.
pub const ID_MAX: usize = 63;

fn validate(what: &'static str, text: &str) -> Result<Arc<str>, Error> {
    let fault = if text.is_empty() {
        Some("it is empty".to_owned())
    } else if text.len() > ID_MAX {
        Some(format!("it has {} bytes", text.len()))
    } else if !text.as_bytes()[0].is_ascii_alphanumeric() {
        Some("it does not begin with a letter or a digit".to_owned())
    } else {
        text.chars()
            .find(|c| !(c.is_ascii_alphanumeric() || *c == '_' || *c == '-'))
            .map(|c| format!("it contains {c:?}"))
    };
    match fault {
        None => Ok(text.into()),
        Some(fault) => {
            let shown: String = text.chars().take(80).collect();
            Err(Error::new(Code::BadId, format!("{what} {shown:?} is not valid: {fault}"))
                .remedy("use 1 to 63 characters of A-Z a-z 0-9 _ -, the first a letter or a digit"))
        }
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(extend("pattern" = "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"))]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the id's text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                validate($what, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type!(
    /// The name of an agent, unique in the herd: `[A-Za-z0-9][A-Za-z0-9_-]{0,62}`.
    AgentId,
    "agent id"
);
id_type!(
    /// The name of a session, the address that several agents share: same alphabet as [`AgentId`].
    SessionId,
    "session id"
);

/// How deep an agent stands in the tree: 0 for a root agent, its parent's level + 1 below it. Always derived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Level(pub u16);

impl Level {
    /// Returns the level of this level's children.
    #[must_use]
    pub fn below(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of an agent's run, 1 for its first; a restart is a new run. 0 says that it never ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Run(pub u32);

impl Run {
    /// Returns the number of the run after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How urgent an agent is: 0 (least) to 10 (most), 5 by default. It orders the queue for admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u8", into = "u8")]
#[schemars(extend("maximum" = 10))]
pub struct Priority(u8);

impl Default for Priority {
    fn default() -> Self {
        Self(5)
    }
}

impl TryFrom<u8> for Priority {
    type Error = Error;
    fn try_from(value: u8) -> Result<Self, Error> {
        if value <= 10 {
            Ok(Self(value))
        } else {
            Err(Error::new(Code::BadValue, format!("priority {value} is out of range"))
                .remedy("use 0 (least urgent) to 10 (most urgent)"))
        }
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> u8 {
        priority.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_id_is_a_plain_file_name_and_nothing_else() {
        for good in ["a", "A9", "worker-1", "0_x", &"x".repeat(63)] {
            assert!(good.parse::<AgentId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "../x",
            "cgroup.procs",
            ".",
            "-a",
            "_a",
            "a/b",
            "a b",
            "ä",
            "a\0",
            "a\n",
            &"x".repeat(64),
            &"x".repeat(300),
        ] {
            let error = bad.parse::<AgentId>().expect_err(bad);
            assert_eq!(error.code, Code::BadId);
            assert!(error.remedy.is_some());
            assert!(error.message.len() < 200, "a hostile id is not echoed at length");
        }
    }

    #[test]
    fn a_priority_is_0_to_10() {
        assert!(Priority::try_from(10).is_ok());
        assert!(Priority::try_from(11).is_err());
    }
}
