//! What is shown of a run: lines behind the agent's name, events in between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anstyle::{AnsiColor, Style};

use super::super::failure::note;
use super::super::logs::{cut, tell_gone};
use super::super::screen::{BAD, DIM, Screen, plain};
use super::super::tell::{mark, sentence, word};
use super::summary::Summary;
use crate::api::client::{Client, Note};
use crate::api::method::{Call, EventNote, LogQuery, Offsets, Output, OutputNote};
use crate::model::error::{Code, Error};
use crate::model::event::{Event, Kind};
use crate::model::id::AgentId;
use crate::model::spec::AgentSpec;
use crate::model::status::AgentStatus;
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

/// What is shown, and what is known of the agents.
pub(super) struct View<'s> {
    screen: &'s mut Screen,
    is_quiet: bool,
    width: usize,
    styles: BTreeMap<AgentId, Style>,
    lines: BTreeMap<AgentId, [Lines; 2]>,
    /// Whose output is followed.
    following: BTreeSet<AgentId>,
    /// How far each agent's output has been shown.
    shown: BTreeMap<AgentId, Offsets>,
    summary: Summary,
}

impl<'s> View<'s> {
    pub(super) fn new(agents: &[AgentSpec], is_quiet: bool, screen: &'s mut Screen) -> Self {
        let longest = agents.iter().map(|agent| agent.id.as_str().len()).max().unwrap_or(0);
        Self {
            screen,
            is_quiet,
            width: longest.min(NAME_MOST),
            styles: BTreeMap::new(),
            lines: BTreeMap::new(),
            following: BTreeSet::new(),
            shown: BTreeMap::new(),
            summary: Summary::new(agents),
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.screen.flush()
    }

    /// Says whether there may be output that was not shown yet.
    pub(super) fn is_following(&self) -> bool {
        !self.following.is_empty()
    }

    pub(super) fn all_completed(&self) -> bool {
        self.summary.all_completed()
    }

    /// Takes note of how agents ended, for those whose events were missed.
    pub(super) fn ended(&mut self, statuses: &[AgentStatus]) {
        statuses.iter().for_each(|status| self.summary.status(status));
    }

    /// Shows a notification; follows the output of an agent that has begun.
    pub(super) fn take(&mut self, note: Note, client: &mut Client) -> Result<(), super::Failure> {
        match note.method.as_str() {
            "event" => self.event(&note.read()?, client),
            "output" => Ok(self.output(&note.read()?)?),
            _ => Ok(()),
        }
    }

    fn event(&mut self, told: &EventNote, client: &mut Client) -> Result<(), super::Failure> {
        if told.lost > 0 {
            note(&format!("{} events were told faster than they could be shown", told.lost));
        }
        let Some(event) = &told.event else { return Ok(()) };
        self.summary.event(event);
        self.show_event(event)?;
        let Some(agent) = &event.agent else { return Ok(()) };
        if event.kind == Kind::Started && self.following.insert(agent.clone()) {
            let from = self.shown.get(agent).copied();
            let query = LogQuery { id: agent.clone(), stream: None, from, lines: None, follow: true };
            match client.call::<Output>(&Call::Logs(query)) {
                Ok(first) => self.pieces(agent, &first)?,
                // It is forgotten already, and with it what it wrote.
                Err(error) if matches!(error.code, Code::NoSuchAgent | Code::WrongState) => {
                    self.following.remove(agent);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if event.kind == Kind::Removed {
            self.shown.remove(agent);
        }
        Ok(())
    }

    fn show_event(&mut self, event: &Event) -> io::Result<()> {
        // A spawn is told by its start, or by why there was none.
        if self.is_quiet || event.kind == Kind::Spawned {
            return Ok(());
        }
        if self.screen.is_json {
            return self.screen.json(event);
        }
        let (mark, style) = mark(event.kind);
        let name = match &event.agent {
            Some(agent) => self.name(agent),
            None => format!("{:>width$}", "herd", width = self.width),
        };
        let run = event.run.filter(|run| run.0 > 1).map_or(String::new(), |run| format!(" (run {run})"));
        let sentence = sentence(event);
        let colon = if sentence.is_empty() { "" } else { ": " };
        let text = format!("{mark} {}{run}{colon}{sentence}", word(event.kind));
        let line = format!("{name} {}", self.screen.paint(style, &text));
        self.screen.line(&line)
    }

    /// Tells that an agent was not started.
    pub(super) fn refused(&mut self, id: &AgentId, error: &Error) -> io::Result<()> {
        self.summary.refused(id, error);
        // A failure to start is told by its event, too.
        if self.summary.has_failed(id) {
            return Ok(());
        }
        if self.is_quiet {
            super::super::failure::tell(error, self.screen.is_json);
            return Ok(());
        }
        if self.screen.is_json {
            return self.screen.json(&serde_json::json!({ "kind": "refused", "agent": id, "error": error }));
        }
        let line = format!("{} {}", self.name(id), self.screen.paint(BAD, &format!("✘ {}", plain(&error.message))));
        self.screen.line(&line)?;
        match &error.remedy {
            Some(remedy) => {
                let help = self.screen.paint(DIM, &format!("help: {}", plain(remedy)));
                let line = format!("{:width$}   {help}", "", width = self.width);
                self.screen.line(&line)
            }
            None => Ok(()),
        }
    }

    fn output(&mut self, note: &OutputNote) -> io::Result<()> {
        self.pieces(&note.id, &note.output)?;
        if note.is_last {
            self.following.remove(&note.id);
            self.finish_lines(&note.id)?;
        }
        Ok(())
    }

    fn pieces(&mut self, agent: &AgentId, output: &Output) -> io::Result<()> {
        tell_gone(output.gone);
        let next = self.shown.entry(agent.clone()).or_default();
        next.stdout = output.next.stdout.or(next.stdout);
        next.stderr = output.next.stderr.or(next.stderr);
        for piece in &output.pieces {
            if self.screen.is_json {
                let mut object = serde_json::to_value(piece)?;
                object["agent"] = agent.as_str().into();
                self.screen.json(&object)?;
                continue;
            }
            let mut whole = Vec::new();
            let lines = self.lines.entry(agent.clone()).or_default();
            lines[piece.stream as usize].feed(&cut(piece), |line| whole.push(line.bytes));
            whole.iter().try_for_each(|line| self.line(agent, piece.stream, line))?;
        }
        Ok(())
    }

    /// Shows what an agent wrote without a newline at its end.
    fn finish_lines(&mut self, agent: &AgentId) -> io::Result<()> {
        let Some(mut lines) = self.lines.remove(agent) else { return Ok(()) };
        for stream in Stream::ALL {
            let mut last = Vec::new();
            lines[stream as usize].finish(|line| last.push(line.bytes));
            last.iter().try_for_each(|line| self.line(agent, stream, line))?;
        }
        Ok(())
    }

    fn line(&mut self, agent: &AgentId, stream: Stream, line: &[u8]) -> io::Result<()> {
        let colours = if self.screen.is_coloured { Colours::Kept } else { Colours::Escaped };
        let bar = match stream {
            Stream::Stdout => self.screen.paint(DIM, "│"),
            Stream::Stderr => self.screen.paint(BAD, "║"),
        };
        let line = format!("{} {bar} {}", self.name(agent), escape(line, colours));
        self.screen.line(&line)
    }

    /// Returns an agent's name in its own colour.
    fn name(&mut self, agent: &AgentId) -> String {
        let fresh = PALETTE[self.styles.len() % PALETTE.len()].on_default();
        let style = *self.styles.entry(agent.clone()).or_insert(fresh);
        self.screen.paint(style, &format!("{:>width$}", agent.as_str(), width = self.width))
    }

    /// Shows what is left, and how it all ended.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let open: Vec<AgentId> = self.lines.keys().cloned().collect();
        open.iter().try_for_each(|agent| self.finish_lines(agent))?;
        if !self.is_quiet {
            self.summary.show(self.screen)?;
        }
        self.screen.flush()
    }
}
