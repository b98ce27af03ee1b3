//! What is shown of a run: lines behind the agent's name, events in between.

use std::collections::BTreeSet;
use std::io;

use super::super::failure::note;
use super::super::screen::{BAD, DIM, Screen, plain};
use super::super::tell::{mark, sentence, word};
use super::super::voices::Voices;
use super::summary::Summary;
use crate::api::client::Note;
use crate::api::method::{EventNote, OutputNote};
use crate::model::error::Error;
use crate::model::event::{Event, Kind};
use crate::model::id::AgentId;
use crate::model::spec::AgentSpec;
use crate::model::status::AgentStatus;

/// What is shown, and what is known of the agents.
pub(super) struct View<'s> {
    screen: &'s mut Screen,
    is_quiet: bool,
    voices: Voices,
    /// Who has begun, and whose last output was not told yet.
    speaking: BTreeSet<AgentId>,
    summary: Summary,
}

impl<'s> View<'s> {
    pub(super) fn new(agents: &[AgentSpec], is_quiet: bool, screen: &'s mut Screen) -> Self {
        Self {
            screen,
            is_quiet,
            voices: Voices::new(agents.iter().map(|agent| &agent.id)),
            speaking: BTreeSet::new(),
            summary: Summary::new(agents),
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.screen.flush()
    }

    /// Says whether there may be output that was not shown yet.
    pub(super) fn is_following(&self) -> bool {
        !self.speaking.is_empty()
    }

    pub(super) fn all_completed(&self) -> bool {
        self.summary.all_completed()
    }

    /// Takes note of how agents ended, for those whose events were missed.
    pub(super) fn ended(&mut self, statuses: &[AgentStatus]) {
        statuses.iter().for_each(|status| self.summary.status(status));
    }

    /// Shows a notification.
    pub(super) fn take(&mut self, note: &Note) -> Result<(), super::Failure> {
        match note.method.as_str() {
            "event" => Ok(self.event(&note.read()?)?),
            "output" => Ok(self.output(&note.read()?)?),
            _ => Ok(()),
        }
    }

    fn event(&mut self, told: &EventNote) -> io::Result<()> {
        if told.lost > 0 {
            note(&format!("{} events were told faster than they could be shown", told.lost));
        }
        let Some(event) = &told.event else { return Ok(()) };
        self.summary.event(event);
        if let Some(agent) = event.agent.as_ref().filter(|_| event.kind == Kind::Started) {
            self.speaking.insert(agent.clone());
        }
        self.show_event(event)
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
            Some(agent) => self.voices.name(agent, self.screen),
            None => format!("{:>width$}", "herd", width = self.voices.width),
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
        let line = format!(
            "{} {}",
            self.voices.name(id, self.screen),
            self.screen.paint(BAD, &format!("✘ {}", plain(&error.message)))
        );
        self.screen.line(&line)?;
        match &error.remedy {
            Some(remedy) => {
                let help = self.screen.paint(DIM, &format!("help: {}", plain(remedy)));
                let line = format!("{:width$}   {help}", "", width = self.voices.width);
                self.screen.line(&line)
            }
            None => Ok(()),
        }
    }

    fn output(&mut self, note: &OutputNote) -> io::Result<()> {
        self.voices.show(&note.id, &note.output, self.screen)?;
        if note.is_last {
            self.speaking.remove(&note.id);
            self.voices.finish(&note.id, self.screen)?;
        }
        Ok(())
    }

    /// Shows what is left, and how it all ended.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.voices.finish_all(self.screen)?;
        if !self.is_quiet {
            self.summary.show(self.screen)?;
        }
        self.screen.flush()
    }
}
