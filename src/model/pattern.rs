//! A regular expression over one line of output, bounded: whoever gives one is not trusted.
//!
//! The syntax is that of the `regex` crate, over bytes; it takes time in proportion to the text, whatever the expression. What
//! is bounded here is the expression's own size. What is accepted can match some line, and does not match every one.

use std::fmt;
use std::str::FromStr;

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Hir, HirKind, Look};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};

/// The longest pattern, in bytes.
pub const PATTERN_MAX: usize = 1024;

/// How deep the groups of a pattern may be nested.
pub const PATTERN_DEPTH_MAX: u32 = 50;

/// The most memory that compiled expressions may take, and as much again while they are matched, in bytes: `\w{40}` fits,
/// `\w{5000}` does not.
pub const COMPILED_MAX: usize = 2 << 20;

/// A regular expression that can match a line. One that cannot, or that matches every line, is a mistake and no pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("maxLength" = PATTERN_MAX))]
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
    let mut builder = RegexBuilder::new(text);
    builder.size_limit(COMPILED_MAX).dfa_size_limit(COMPILED_MAX).build()
}

/// Says what is wrong with an expression that parses and does not compile.
pub(super) fn too_large(error: &regex::Error) -> Error {
    match error {
        regex::Error::CompiledTooBig(limit) => {
            let error = Error::new(Code::TooLarge, format!("compiled, it takes more than {limit} bytes"));
            error.remedy("use smaller repetition counts, or `.` and [0-9a-z] for \\w and \\d")
        }
        error => Error::new(Code::BadValue, format!("it does not compile: {error}")),
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
        compile(text).map_err(|error| too_large(&error))?;
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
    fn what_people_write_compiles_and_matches_bytes() {
        for (pattern, line) in [
            (r"(?i)listening on \S+:\d+", &b"Listening on [::1]:80"[..]),
            ("^", b""),
            ("^ready$", b"ready"),
            (r"\w{40}|ready", b"\xff\xfe ready"),
            (r"^(\d{1,3}\.){3}\d{1,3} up \p{Greek}", "10.0.0.1 up λ".as_bytes()),
        ] {
            assert!(pattern.parse::<Pattern>().unwrap().compile().is_match(line), "{pattern}");
        }
    }

    #[test]
    fn what_takes_too_much_memory_is_refused_with_a_remedy() {
        for text in [r"\w{5000}", "(((a{100}){100}){100}){100}"] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(error.message.contains("takes more than") && error.remedy.is_some(), "{error}");
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
