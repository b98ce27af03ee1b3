//! A regular expression over lines of output, bounded: whoever gives one is not trusted.
//!
//! The `regex` crate takes time in proportion to the text, whatever the expression; what is bounded here is the expression's
//! own size. It is compiled when it is read, to refuse what is wrong where it stands, and again by whoever matches with it.

use std::fmt;
use std::str::FromStr;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};

/// The longest expression, in bytes.
pub const PATTERN_MOST: usize = 1024;

/// The most memory that a compiled expression may take, in bytes: `\w{40}` fits, `\w{5000}` does not.
const COMPILED_MOST: usize = 1 << 20;

/// An expression that compiles, and that some line matches. It is matched with lines without their line ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Returns the expression's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Compiles the expression: for bytes, which need not be UTF-8.
    ///
    /// # Panics
    /// Never: it compiled when it was made.
    #[must_use]
    pub fn compile(&self) -> Regex {
        compile(&self.0).expect("it compiled when it was made")
    }
}

fn compile(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(COMPILED_MOST).dfa_size_limit(COMPILED_MOST).build()
}

impl FromStr for Pattern {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: String, remedy: &str| Err(Error::new(Code::BadValue, why).remedy(remedy));
        if text.len() > PATTERN_MOST {
            let why = format!("the regular expression has {} bytes, {PATTERN_MOST} are allowed", text.len());
            return refuse(why, "match a shorter part of the line");
        }
        match compile(text) {
            Ok(_) => {}
            Err(regex::Error::CompiledTooBig(_)) => {
                let why = format!("the regular expression takes more than {COMPILED_MOST} bytes when it is compiled");
                return refuse(why, "use smaller repetition counts, or `.` and [0-9a-z] for \\w and \\d");
            }
            Err(error) => {
                // The crate draws a picture of several lines; the last one says what is wrong.
                let text = error.to_string();
                let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                return refuse(format!("not a regular expression: {why}"), "see https://docs.rs/regex for its syntax");
            }
        }
        let parsed = regex_syntax::ParserBuilder::new().utf8(false).build().parse(text);
        if parsed.is_ok_and(|parsed| parsed.properties().minimum_len().is_none()) {
            return refuse("the regular expression matches nothing".to_owned(), "look at its empty character class");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_compile_is_refused_with_a_remedy() {
        for (bad, why) in [
            ("(", "unclosed group"),
            ("a{2}{", "repetition"),
            (r"\w{5000}", "bytes when it is compiled"),
            ("(((a{100}){100}){100}){100}", "bytes when it is compiled"),
            ("[a&&b]", "matches nothing"),
            (&"x".repeat(PATTERN_MOST + 1), "bytes, 1024 are allowed"),
            (&"(".repeat(500), "not a regular expression"),
        ] {
            let error = bad.parse::<Pattern>().unwrap_err();
            assert!(error.message.contains(why) && error.remedy.is_some(), "{bad}: {error}");
        }
    }

    #[test]
    fn what_people_write_compiles_and_matches_bytes() {
        for (pattern, line) in [
            (r"(?i)listening on \S+:\d+", &b"Listening on [::1]:80"[..]),
            ("", b""),
            ("^ready$", b"ready"),
            (r"\w{40}|ready", b"\xff\xfe ready"),
            (r"^(\d{1,3}\.){3}\d{1,3} up \p{Greek}", "10.0.0.1 up λ".as_bytes()),
        ] {
            assert!(pattern.parse::<Pattern>().unwrap().compile().is_match(line), "{pattern}");
        }
    }
}
