//! How a run ended, agent by agent.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::super::screen::{BAD, BOLD, Cell, GOOD, Screen, duration, or_dash, state_style};
use crate::model::error::Error;
use crate::model::event::{Event, Kind};
use crate::model::id::AgentId;
use crate::model::spec::AgentSpec;
use crate::model::status::{AgentStatus, ExitRecord, State};
use crate::model::time::Wall;

/// What is known of one agent.
#[derive(Clone, Debug, Serialize)]
struct Record {
    id: AgentId,
    /// None if it was not started, or never told of.
    state: Option<State>,
    runs: u32,
    exit: Option<Box<ExitRecord>>,
    started: Option<Wall>,
    ended: Option<Wall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Box<Error>>,
}

/// What is known of all agents, in the order of the file; those that agents spawned come after.
pub(super) struct Summary {
    records: Vec<Record>,
    places: BTreeMap<AgentId, usize>,
}

impl Summary {
    pub(super) fn new(agents: &[AgentSpec]) -> Self {
        let mut summary = Self { records: Vec::new(), places: BTreeMap::new() };
        for agent in agents {
            let record = summary.record(&agent.id);
            record.state = agent.is_group().then_some(State::Group);
        }
        summary
    }

    fn record(&mut self, id: &AgentId) -> &mut Record {
        let at = *self.places.entry(id.clone()).or_insert_with(|| {
            let (state, exit, started, ended, refused) = (None, None, None, None, None);
            self.records.push(Record { id: id.clone(), state, runs: 0, exit, started, ended, refused });
            self.records.len() - 1
        });
        &mut self.records[at]
    }

    pub(super) fn event(&mut self, event: &Event) {
        let Some(id) = &event.agent else { return };
        let state = match event.kind {
            Kind::Registered => State::Group,
            Kind::Started => State::Running,
            Kind::Completed => State::Completed,
            Kind::Failed => State::Failed,
            Kind::Terminated => State::Terminated,
            Kind::Stuck => State::Stuck,
            _ => return,
        };
        let record = self.record(id);
        // A group that is ended is no agent that was stopped at its work.
        if record.state == Some(State::Group) && record.runs == 0 && event.kind != Kind::Started {
            return;
        }
        record.state = Some(state);
        record.runs = record.runs.max(event.run.map_or(0, |run| run.0));
        if event.kind == Kind::Started {
            record.started.get_or_insert(event.time);
        } else if event.kind != Kind::Stuck {
            record.exit = event.exit.clone().map(Box::new);
            record.ended = Some(event.time);
        }
    }

    /// Takes over what the supervisor says at the end: it knows what a slow reader missed.
    pub(super) fn status(&mut self, status: &AgentStatus) {
        if status.command.is_empty() {
            return;
        }
        let record = self.record(&status.id);
        record.state = Some(status.state);
        record.runs = status.run.0;
        record.exit = status.exit.clone().map(Box::new).or(record.exit.take());
        record.started = record.started.into_iter().chain(status.started).min();
        record.ended = status.ended.or(record.ended);
    }

    pub(super) fn refused(&mut self, id: &AgentId, error: &Error) {
        self.record(id).refused = Some(Box::new(error.clone()));
    }

    /// Says whether an event has told that an agent failed.
    pub(super) fn has_failed(&self, id: &AgentId) -> bool {
        self.places.get(id).is_some_and(|at| self.records[*at].state == Some(State::Failed))
    }

    /// Says whether every agent with a command was started and completed.
    pub(super) fn all_completed(&self) -> bool {
        self.records.iter().all(Record::is_well)
    }

    pub(super) fn show(&self, screen: &mut Screen) -> io::Result<()> {
        if screen.is_json {
            return screen.json(&serde_json::json!({ "summary": self.records, "completed": self.all_completed() }));
        }
        let rows: Vec<_> = self.records.iter().filter(|record| !record.is_quiet_group()).map(Record::row).collect();
        screen.line("")?;
        screen.table(&["ID", "STATE", "RUNS", "TIME", "EXIT"], &rows)?;
        let all = self.records.iter().filter(|record| !record.is_quiet_group()).count();
        let well = self.records.iter().filter(|record| !record.is_quiet_group() && record.is_well()).count();
        let verdict = if self.all_completed() {
            screen.paint(GOOD, &format!("all {all} completed"))
        } else {
            screen.paint(BAD, &format!("{} of {all} did not complete", all - well))
        };
        screen.line(&verdict)
    }
}

impl Record {
    fn is_well(&self) -> bool {
        self.refused.is_none() && matches!(self.state, Some(State::Completed | State::Group))
    }

    /// Says whether there is nothing to tell: a group has no work that could end well or badly.
    fn is_quiet_group(&self) -> bool {
        self.refused.is_none() && self.state == Some(State::Group)
    }

    fn row(&self) -> Vec<Cell> {
        let state = match (&self.refused, self.state) {
            (Some(_), None | Some(State::Group)) => Cell::new("refused").style(BAD),
            (_, Some(state)) => Cell::new(state.name()).style(state_style(state)),
            (None, None) => Cell::new("unknown").style(BAD),
        };
        let ms = self.started.zip(self.ended).map(|(from, to)| to.0.saturating_sub(from.0) / 1_000_000);
        let exit = match (&self.exit, &self.refused) {
            (Some(exit), _) => exit.to_string(),
            (None, Some(error)) => error.message.clone(),
            (None, None) => String::new(),
        };
        vec![
            Cell::new(self.id.as_str()).style(BOLD),
            state,
            Cell::number(self.runs),
            Cell::number(or_dash(ms.map(duration))),
            Cell::new(exit),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::Code;
    use crate::model::status::Cause;

    fn event(id: &str, kind: &str, exit: Option<ExitRecord>) -> Event {
        serde_json::from_value(serde_json::json!({
            "seq": 1, "time": "2026-01-01T00:00:00Z", "kind": kind, "agent": id, "level": 0, "run": 1, "exit": exit,
        }))
        .unwrap()
    }

    fn summary(ids: &[&str]) -> Summary {
        let agents: Vec<_> = ids.iter().map(|id| AgentSpec::new(id.parse().unwrap(), ["x"])).collect();
        Summary::new(&agents)
    }

    #[test]
    fn only_a_run_in_which_every_agent_completed_is_a_success() {
        let mut summary = summary(&["a", "b"]);
        summary.event(&event("a", "process:started", None));
        summary.event(&event("a", "process:completed", Some(ExitRecord::new(Cause::Exit))));
        assert!(!summary.all_completed(), "b was never told of");
        summary.event(&event("b", "process:failed", Some(ExitRecord::new(Cause::Signal))));
        assert!(!summary.all_completed());
        summary.event(&event("b", "process:started", None));
        summary.event(&event("b", "process:completed", None));
        assert!(summary.all_completed(), "a restart that ends well is well");
        summary.event(&event("c", "process:started", None));
        summary.event(&event("c", "process:terminated", None));
        assert!(!summary.all_completed(), "an agent that an agent spawned counts");
    }

    #[test]
    fn a_refused_agent_is_a_failure_and_a_group_is_none() {
        let mut summary = summary(&["a"]);
        summary.refused(&"a".parse().unwrap(), &Error::new(Code::BoundReached, "full"));
        assert!(!summary.all_completed());
        let mut summary = Summary::new(&[AgentSpec::group("g".parse().unwrap())]);
        summary.event(&event("g", "process:registered", None));
        summary.event(&event("g", "process:terminated", None));
        assert!(summary.all_completed());
    }
}
