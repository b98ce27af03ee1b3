//! The file mode creation mask of an agent.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};

/// The permissions that a new file of an agent does not get (umask(2)): `022` by default; on the wire an octal text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("examples" = ["022", "077"]))]
pub struct Umask(u16);

impl Umask {
    /// Returns the mask's bits, at most `0o777`.
    #[must_use]
    pub fn bits(self) -> u16 {
        self.0
    }
}

impl Default for Umask {
    fn default() -> Self {
        Self(0o022)
    }
}

impl FromStr for Umask {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let is_octal = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
        let bits = u16::from_str_radix(text, 8).ok().filter(|bits| is_octal && *bits <= 0o777);
        bits.map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Error::new(Code::BadValue, format!("{shown:?} is not a umask"))
                .remedy("use an octal number from 000 to 777, as a text: \"022\"")
        })
    }
}

impl TryFrom<String> for Umask {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Umask> for String {
    fn from(umask: Umask) -> String {
        umask.to_string()
    }
}

impl fmt::Display for Umask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03o}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_umask_is_an_octal_number_up_to_777() {
        for (text, bits) in [("022", 0o22), ("0027", 0o27), ("7", 7), ("777", 0o777)] {
            assert_eq!(text.parse::<Umask>().unwrap().bits(), bits, "{text}");
        }
        for text in ["", "8", "1000", "00022", "-22", "+22", "0o22", "rwx"] {
            assert!(text.parse::<Umask>().is_err(), "{text}");
        }
        assert_eq!(serde_json::to_string(&Umask::default()).unwrap(), "\"022\"");
    }
}
