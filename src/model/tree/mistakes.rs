//! Where mistakes are collected: byte offsets in, lines and columns out.

use std::ops::Range;

use super::Mistake;
use super::value::Fault;
use crate::model::error::Error;

/// A stretch of the file, in bytes.
pub(super) type Span = Range<usize>;

/// How many mistakes are told of one file at most.
const MISTAKES_MOST: usize = 1000;

/// The mistakes of one file.
pub(super) struct Mistakes<'s> {
    text: &'s str,
    /// The offset of each line's first byte.
    lines: Vec<usize>,
    found: Vec<Mistake>,
    /// Whether some of the file could not be read, so that what seems to lack may be in there.
    pub is_torn: bool,
}

impl<'s> Mistakes<'s> {
    pub(super) fn new(text: &'s str) -> Self {
        let breaks = memchr::memchr_iter(b'\n', text.as_bytes()).map(|offset| offset + 1);
        Self { text, lines: std::iter::once(0).chain(breaks).collect(), found: Vec::new(), is_torn: false }
    }

    /// Returns the line and the column of an offset, both from 1.
    pub(super) fn place(&self, offset: usize) -> (usize, usize) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines[line - 1];
        (line, self.text[start..offset].chars().count() + 1)
    }

    pub(super) fn add(&mut self, at: &Span, message: impl Into<String>, remedy: impl Into<String>) {
        if self.is_full() {
            return;
        }
        let (line, column) = self.place(at.start);
        self.found.push(Mistake { line, column, message: message.into(), remedy: remedy.into() });
    }

    /// Adds what a type of the model says, with a remedy for where it has none.
    pub(super) fn add_error(&mut self, at: &Span, error: Error, otherwise: &str) {
        let remedy = error.remedy.unwrap_or_else(|| otherwise.to_owned());
        self.add(at, error.message, remedy);
    }

    /// Adds what the reader of a value says.
    pub(super) fn add_fault(&mut self, around: &Span, name: &str, fault: Fault, otherwise: &str) {
        let at = fault.at.unwrap_or_else(|| around.clone());
        self.add(&at, format!("{name}: {}", fault.message), fault.remedy.unwrap_or_else(|| otherwise.to_owned()));
    }

    /// Says whether no more mistakes are told, so that none need be looked into.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= MISTAKES_MOST
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns the mistakes by place, each once.
    pub(super) fn sorted(mut self) -> Vec<Mistake> {
        self.found.sort();
        self.found.dedup();
        self.found
    }
}

/// Returns what helps against a name that nobody knows: the nearest one, and the others.
pub(super) fn nearest(wanted: &str, known: &[&str]) -> String {
    const SHOWN_MOST: usize = 40;
    const COMPARED_MOST: usize = 2000;
    let wanted: String = wanted.chars().take(100).collect();
    let similarity = |name: &str| strsim::jaro_winkler(name, &wanted);
    let best = known.iter().take(COMPARED_MOST).max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let more = if known.len() > SHOWN_MOST { " …" } else { "" };
    let all = known.iter().take(SHOWN_MOST).copied().collect::<Vec<_>>().join(" ");
    match best {
        Some(best) if similarity(best) > 0.6 => format!("did you mean {best}? All are: {all}{more}"),
        Some(_) => format!("use one of: {all}{more}"),
        None => "there is none to choose from".to_owned(),
    }
}
