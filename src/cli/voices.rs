//! What many agents write: line by line, each behind its agent's name in a colour of its own.

use std::collections::BTreeMap;
use std::io;

use anstyle::{AnsiColor, Style};

use super::logs::{cut, tell_gone};
use super::screen::{BAD, DIM, Screen};
use crate::api::method::Output;
use crate::model::id::AgentId;
use crate::model::stream::Stream;
use crate::output::{Colours, Lines, escape};

const PALETTE: [AnsiColor; 9] = [
    AnsiColor::Cyan,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::Green,
    AnsiColor::Yellow,
    AnsiColor::BrightCyan,
    AnsiColor::BrightMagenta,
    AnsiColor::BrightBlue,
    AnsiColor::BrightGreen,
];

/// The widest that a name's column gets.
const NAME_MOST: usize = 24;

/// Everybody who has been heard, and what of it is not a whole line yet.
pub(super) struct Voices {
    /// How wide the column of the names is.
    pub width: usize,
    styles: BTreeMap<AgentId, Style>,
    lines: BTreeMap<AgentId, [Lines; 2]>,
}

impl Voices {
    /// Makes the column wide enough for those who are known.
    pub(super) fn new<'a>(known: impl Iterator<Item = &'a AgentId>) -> Self {
        let longest = known.map(|id| id.as_str().len()).max().unwrap_or(0);
        Self { width: longest.min(NAME_MOST), styles: BTreeMap::new(), lines: BTreeMap::new() }
    }

    /// Returns an agent's name in its own colour.
    pub(super) fn name(&mut self, agent: &AgentId, screen: &Screen) -> String {
        let fresh = PALETTE[self.styles.len() % PALETTE.len()].on_default();
        let style = *self.styles.entry(agent.clone()).or_insert(fresh);
        screen.paint(style, &format!("{:>width$}", agent.as_str(), width = self.width))
    }

    /// Shows what an agent wrote.
    pub(super) fn show(&mut self, agent: &AgentId, output: &Output, screen: &mut Screen) -> io::Result<()> {
        tell_gone(output.gone);
        for piece in &output.pieces {
            if screen.is_json {
                let mut object = serde_json::to_value(piece)?;
                object["agent"] = agent.as_str().into();
                screen.json(&object)?;
                continue;
            }
            let mut whole = Vec::new();
            let lines = self.lines.entry(agent.clone()).or_default();
            lines[piece.stream as usize].feed(&cut(piece), |line| whole.push(line.bytes));
            whole.iter().try_for_each(|line| self.line(agent, piece.stream, line, screen))?;
        }
        Ok(())
    }

    /// Shows what an agent wrote without a newline at its end.
    pub(super) fn finish(&mut self, agent: &AgentId, screen: &mut Screen) -> io::Result<()> {
        let Some(mut lines) = self.lines.remove(agent) else { return Ok(()) };
        for stream in Stream::ALL {
            let mut last = Vec::new();
            lines[stream as usize].finish(|line| last.push(line.bytes));
            last.iter().try_for_each(|line| self.line(agent, stream, line, screen))?;
        }
        Ok(())
    }

    /// Shows all that was written without a newline at its end.
    pub(super) fn finish_all(&mut self, screen: &mut Screen) -> io::Result<()> {
        let open: Vec<AgentId> = self.lines.keys().cloned().collect();
        open.iter().try_for_each(|agent| self.finish(agent, screen))
    }

    fn line(&mut self, agent: &AgentId, stream: Stream, line: &[u8], screen: &mut Screen) -> io::Result<()> {
        let colours = if screen.is_coloured { Colours::Kept } else { Colours::Escaped };
        let bar = match stream {
            Stream::Stdout => screen.paint(DIM, "│"),
            Stream::Stderr => screen.paint(BAD, "║"),
        };
        let line = format!("{} {bar} {}", self.name(agent, screen), escape(line, colours));
        screen.line(&line)
    }
}
