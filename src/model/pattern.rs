//! A regular expression over one line of output: read and judged here, matched in the room of output.
//!
//! The syntax is that of the `regex` crate, over bytes. What is accepted can match some line, and does not match every one.

use std::fmt;
use std::str::FromStr;

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Hir, HirKind, Look};
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};

/// The longest pattern, in bytes.
pub const PATTERN_MAX: usize = 1024;

/// How deep the groups of a pattern may be nested.
pub const PATTERN_DEPTH_MAX: u32 = 50;

/// A regular expression that can match a line. One that cannot, or that matches every line, is a mistake and no pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Returns the expression's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > PATTERN_MAX {
            let message = format!("the pattern has {} bytes, {PATTERN_MAX} are allowed", text.len());
            return Err(Error::new(Code::TooLarge, message).remedy("make several rules of it"));
        }
        let hir =
            ParserBuilder::new().utf8(false).nest_limit(PATTERN_DEPTH_MAX).build().parse(text).map_err(|error| {
                let (what, at) = fault(&error);
                let at = text.get(..at).map_or(0, |before| before.chars().count()) + 1;
                let message = format!("{text:?} is not a pattern: {what}, at its character {at}");
                Error::new(Code::BadValue, message).remedy(
                    "write \\ before a character that stands for itself, and see https://docs.rs/regex for the syntax",
                )
            })?;
        if hir.properties().minimum_len().is_none() || is_impossible(&hir) {
            let error =
                Error::new(Code::BadValue, format!("{text:?} can never match: it is given one line, without its end"));
            return Err(error.remedy("take out line breaks, and what stands before ^ or behind $"));
        }
        if hir.properties().minimum_len() == Some(0) && hir.properties().look_set().is_empty() {
            let error = Error::new(Code::BadValue, format!("{text:?} matches every line, whatever is in it"));
            return Err(error.remedy("drop the empty alternative or the * behind it; . is any line that is not empty"));
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
    fn from(pattern: Pattern) -> String {
        pattern.0
    }
}

/// Returns what is wrong with the syntax, and the byte offset at which it is.
fn fault(error: &regex_syntax::Error) -> (String, usize) {
    match error {
        regex_syntax::Error::Parse(error) => (error.kind().to_string(), error.span().start.offset),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), error.span().start.offset),
        other => (other.to_string(), 0),
    }
}

/// Says whether no line can match, as far as that is plain to see: a line has no line break in it, nothing before its
/// beginning and nothing behind its end.
fn is_impossible(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => literal.0.contains(&b'\n'),
        HirKind::Class(class) => class.minimum_len().is_none(),
        HirKind::Repetition(repetition) => repetition.min > 0 && is_impossible(&repetition.sub),
        HirKind::Capture(capture) => is_impossible(&capture.sub),
        HirKind::Alternation(parts) => parts.iter().all(is_impossible),
        HirKind::Concat(parts) => parts.iter().any(is_impossible) || reaches_out(parts),
    }
}

/// Says whether something must stand before the beginning or behind the end.
fn reaches_out(parts: &[Hir]) -> bool {
    let is_some = |part: &Hir| part.properties().minimum_len() > Some(0);
    let begins = |part: &Hir| {
        let looks = part.properties().look_set_prefix();
        looks.contains(Look::Start) || looks.contains(Look::StartLF)
    };
    let ends = |part: &Hir| {
        let looks = part.properties().look_set_suffix();
        looks.contains(Look::End) || looks.contains(Look::EndLF)
    };
    (0..parts.len()).any(|at| {
        (begins(&parts[at]) && parts[..at].iter().any(is_some))
            || (ends(&parts[at]) && parts[at + 1..].iter().any(is_some))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<Pattern>().expect_err(text).to_string()
    }

    #[test]
    fn what_can_match_a_line_is_a_pattern() {
        for text in [
            "panic:",
            "^error",
            "(?i)fatal|oops$",
            "^$",
            "^",
            "a|^b",
            r"\bE\d{4}\b",
            r"(?-u:\xff)",
            "[^a]",
            "x$|y",
            "(^|,)a",
        ] {
            assert!(text.parse::<Pattern>().is_ok(), "{text}");
        }
    }

    #[test]
    fn bad_syntax_is_told_with_its_place() {
        let told = refusal("é[ab");
        assert!(told.contains("unclosed character class") && told.contains("at its character 2"), "{told}");
        assert!(refusal("a(").contains("unclosed group"));
        assert!(refusal(&"(".repeat(60)).contains("not a pattern"));
        assert!(refusal(&"x".repeat(PATTERN_MAX + 1)).contains("1024"));
        assert!(refusal(r"\p{Nope}").contains("at its character 1"));
    }

    #[test]
    fn what_no_line_or_every_line_matches_is_a_mistake() {
        for text in ["a\nb", "(a\n)+b", r"[a&&b]", "a^b", "(a$)b", r"x\n|y\n", r"a\Ab"] {
            assert!(refusal(text).contains("can never match"), "{text}");
        }
        for text in ["", "a*", "error|", "(panic)?", "(?s).*"] {
            assert!(refusal(text).contains("matches every line"), "{text}");
        }
    }
}
