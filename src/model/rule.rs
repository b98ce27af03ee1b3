//! Output rules: which lines of an agent's output mean something, and what follows from them.

use std::str::FromStr;

use regex::bytes::{RegexSet, RegexSetBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::pattern::{COMPILED_MAX, PATTERN_DEPTH_MAX, Pattern, too_large};
use super::stream::{Stream, Streams};

/// The most rules of one agent.
pub const RULES_MAX: usize = 32;

/// The longest name of a rule, in bytes.
pub const RULE_NAME_MAX: usize = 63;

/// One rule: a line of the stream in which the pattern is found is told, or fails the run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What it is called in events and counts; its pattern by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is looked for in each line.
    pub pattern: Pattern,
    /// The streams that it is looked for in; both by default.
    #[serde(default)]
    pub stream: Streams,
    /// What follows when it is found.
    #[serde(default)]
    pub action: Action,
}

/// What follows when a rule finds a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is told, and nothing else.
    #[default]
    Notice,
    /// It is told, and the run has failed.
    Fail,
}

/// What a rule has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// The rule's name.
    pub rule: String,
    /// The stream that the line is in.
    pub stream: Stream,
    /// The offset of the line's first byte in the stream.
    pub offset: u64,
    /// How the line begins, as text that is safe to show.
    pub line: String,
    /// How many lines are told with this event, this first one included: those that came too fast are told together.
    pub lines: u64,
}

/// How many lines a rule has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleCount {
    /// The rule's name.
    pub rule: String,
    /// How many lines of all runs of the agent.
    pub lines: u64,
}

impl Action {
    /// Reads the word that stands before a colon.
    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "notice" => Some(Self::Notice),
            "fail" => Some(Self::Fail),
            _ => None,
        }
    }
}

impl Rule {
    /// Makes a rule for both streams that only tells.
    #[must_use]
    pub fn new(pattern: Pattern) -> Self {
        Self { name: None, pattern, stream: Streams::Both, action: Action::Notice }
    }

    /// Returns what it is called.
    #[must_use]
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(self.pattern.as_str())
    }

    /// Says whether it looks at a stream.
    #[must_use]
    pub fn listens_to(&self, stream: Stream) -> bool {
        self.stream.has(stream)
    }
}

impl FromStr for Rule {
    type Err = Error;

    /// Reads `[STREAM:][ACTION:]REGEX`. A pattern that begins with such a word is written with another one before it.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (stream, rest) = match text.split_once(':') {
            Some(("stdout", rest)) => (Streams::Stdout, rest),
            Some(("stderr", rest)) => (Streams::Stderr, rest),
            Some(("both", rest)) => (Streams::Both, rest),
            _ => (Streams::Both, text),
        };
        let asked = rest.split_once(':').and_then(|(word, pattern)| Some((Action::from_word(word)?, pattern)));
        let (action, pattern) = asked.unwrap_or((Action::Notice, rest));
        Ok(Self { name: None, pattern: pattern.parse()?, stream, action })
    }
}

/// Checks the rules of one agent, as far as that is quick: whether their patterns fit into memory, [`compile`] finds out.
///
/// # Errors
/// Says what is wrong, in a sentence without the agent.
pub fn check(rules: &[Rule]) -> Result<(), String> {
    if rules.len() > RULES_MAX {
        return Err(format!("{} rules are given, {RULES_MAX} are allowed", rules.len()));
    }
    let is_bad = |name: &String| name.is_empty() || name.len() > RULE_NAME_MAX || name.chars().any(char::is_control);
    if rules.iter().filter_map(|rule| rule.name.as_ref()).any(is_bad) {
        return Err(format!("a name is 1 to {RULE_NAME_MAX} printable bytes"));
    }
    Ok(())
}

/// Compiles the patterns of rules into one set, in their order.
///
/// # Errors
/// `too_large` if they need more than [`COMPILED_MAX`].
pub fn compile<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Result<RegexSet, Error> {
    let patterns = rules.into_iter().map(|rule| rule.pattern.as_str());
    let mut builder = RegexSetBuilder::new(patterns);
    builder.size_limit(COMPILED_MAX).dfa_size_limit(COMPILED_MAX).nest_limit(PATTERN_DEPTH_MAX);
    builder.build().map_err(|error| {
        let error = too_large(&error);
        Error { message: format!("all patterns of the rules together: {}", error.message), ..error }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_pattern_with_a_stream_and_an_action_before_it() {
        let read = |text: &str| {
            let rule: Rule = text.parse().unwrap();
            (rule.stream, rule.action, rule.pattern.to_string())
        };
        assert_eq!(read("panic: at"), (Streams::Both, Action::Notice, "panic: at".to_owned()));
        assert_eq!(read("stderr:fail:panic:"), (Streams::Stderr, Action::Fail, "panic:".to_owned()));
        assert_eq!(read("stdout:x"), (Streams::Stdout, Action::Notice, "x".to_owned()));
        assert_eq!(
            read("notice:fail: x"),
            (Streams::Both, Action::Notice, "fail: x".to_owned()),
            "a word is read once"
        );
        assert!("fail:".parse::<Rule>().is_err() && "stderr:[".parse::<Rule>().is_err());
    }

    #[test]
    fn rules_are_few_and_small() {
        let rule = |text: &str| text.parse::<Rule>().unwrap();
        assert!(check(&vec![rule("x"); RULES_MAX]).is_ok() && check(&vec![rule("x"); RULES_MAX + 1]).is_err());
        assert!(check(&[Rule { name: Some("a\u{7}".to_owned()), ..rule("x") }]).is_err());
        assert!(compile(&[rule(r"\w+@\w+"), rule("(?i)fatal")]).is_ok());
        let error = compile(&vec![rule(r"\w{30}"); 9]).unwrap_err();
        assert!(error.message.contains("together") && error.remedy.is_some(), "{error}");
    }
}
