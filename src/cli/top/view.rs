//! What is known and what is selected: values in, rows out. It draws nothing and asks nobody.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use ratatui::widgets::TableState;

use super::super::draw::layout;
use super::super::screen::{clock, plain};
use super::super::tell::{sentence, word};
use crate::api::method::{Call, Stats};
use crate::model::event::Event;
use crate::model::id::AgentId;
use crate::model::status::AgentStatus;
use crate::model::usage::Usage;

/// How many of the last events are kept.
const EVENTS: usize = 6;

/// What was looked at in one go.
pub(super) struct Figures {
    pub stats: Stats,
    pub agents: Vec<AgentStatus>,
    pub at: Instant,
}

/// In which order agents stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    Tree,
    Cpu,
    Memory,
}

/// An agent in its place.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The branches before its name.
    pub branch: String,
    pub agent: AgentStatus,
    pub usage: Usage,
    /// In percent of one CPU, over the last interval.
    pub cpu: Option<f64>,
    /// Bytes a second that were read from and written to block devices, over the last interval.
    pub io: Option<f64>,
}

/// The state of the screen.
pub(super) struct View {
    pub cgroup: String,
    pub is_coloured: bool,
    pub stats: Stats,
    /// In percent of one CPU, over the last interval, of the whole herd.
    pub cpu: Option<f64>,
    pub rows: Vec<Row>,
    pub order: Order,
    pub table: TableState,
    /// The last events, a line each.
    pub events: VecDeque<String>,
    /// What the last request came to.
    pub note: Option<String>,
    /// What is asked before it is done.
    pub question: Option<(String, Call)>,
    agents: Vec<AgentStatus>,
    before: Option<(Instant, Stats)>,
    at: Instant,
}

/// How much of something there was in a second.
fn rate(now: Option<u64>, before: Option<u64>, seconds: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let more = now?.saturating_sub(before?) as f64;
    (seconds > 0.0).then(|| more / seconds)
}

impl View {
    pub(super) fn new(cgroup: String, is_coloured: bool) -> Self {
        Self {
            cgroup,
            is_coloured,
            stats: Stats::default(),
            cpu: None,
            rows: Vec::new(),
            order: Order::default(),
            table: TableState::default(),
            events: VecDeque::new(),
            note: None,
            question: None,
            agents: Vec::new(),
            before: None,
            at: Instant::now(),
        }
    }

    /// Takes in what was looked at; rates are those since the look before.
    pub(super) fn take(&mut self, figures: Figures) {
        let before = std::mem::replace(&mut self.stats, figures.stats);
        self.before = (!self.agents.is_empty() || before.uptime_ms > 0).then_some((self.at, before));
        (self.at, self.agents) = (figures.at, figures.agents);
        self.arrange();
    }

    /// Takes in something that happened.
    pub(super) fn hear(&mut self, event: &Event) {
        let agent = event.agent.as_ref().map_or("herd", |agent| agent.as_str());
        let line = format!("{} {agent} {} {}", clock(event.time), word(event.kind), sentence(event));
        self.events.push_back(line.trim_end().to_owned());
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    /// Puts the agents into another order.
    pub(super) fn sort(&mut self, order: Order) {
        self.order = order;
        self.arrange();
    }

    pub(super) fn selected(&self) -> Option<&AgentStatus> {
        self.table.selected().and_then(|index| self.rows.get(index)).map(|row| &row.agent)
    }

    /// Makes the rows anew; what was selected stays selected, wherever it is now.
    fn arrange(&mut self) {
        let selected = self.selected().map(|agent| agent.id.clone());
        let seconds = self.before.as_ref().map_or(0.0, |(at, _)| self.at.duration_since(*at).as_secs_f64());
        let none = BTreeMap::new();
        let earlier = self.before.as_ref().map_or(&none, |(_, stats)| &stats.usage_by_agent);
        let percent =
            |now: &Usage, before: &Usage| rate(now.cpu_usage_us, before.cpu_usage_us, seconds).map(|us| us / 10_000.0);
        let io = |usage: &Usage| Some(usage.io_read_bytes? + usage.io_write_bytes?);
        let row = |(branch, agent): (String, &AgentStatus)| {
            let usage = self.stats.usage_by_agent.get(&agent.id).copied().unwrap_or_default();
            let before = earlier.get(&agent.id).copied().unwrap_or_default();
            let (cpu, io) = (percent(&usage, &before), rate(io(&usage), io(&before), seconds));
            Row { branch, agent: agent.clone(), usage, cpu, io }
        };
        let mut rows: Vec<Row> = layout(&self.agents, None).into_iter().map(row).collect();
        if self.order != Order::Tree {
            let weight = |row: &Row| match self.order {
                Order::Cpu => row.cpu.unwrap_or(0.0),
                #[expect(clippy::cast_precision_loss, reason = "only compared")]
                _ => row.usage.memory_current_bytes.unwrap_or(0) as f64,
            };
            rows.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
            rows.iter_mut().for_each(|row| row.branch.clear());
        }
        let herd = |stats: &Stats| stats.usage.unwrap_or_default();
        self.cpu = self.before.as_ref().and_then(|(_, before)| percent(&herd(&self.stats), &herd(before)));
        self.rows = rows;
        let place = |id: &AgentId| self.rows.iter().position(|row| row.agent.id == *id);
        let last = self.rows.len().checked_sub(1);
        let index =
            selected.as_ref().and_then(place).or(self.table.selected().zip(last).map(|(was, last)| was.min(last)));
        self.table.select(index.or(last.map(|_| 0)));
    }

    /// Returns the last line: a question before an answer, an answer before the keys.
    pub(super) fn last_line(&self) -> String {
        let question = self.question.as_ref().map(|(question, _)| question.clone());
        plain(&question.or(self.note.clone()).unwrap_or_else(|| super::keys::KEYS.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::crossterm::event::{KeyCode, KeyEvent};

    use super::super::keys::Wish;
    use super::*;
    use crate::cli::draw::tests::status;
    use crate::model::request::Target;

    /// Three agents that have used so much CPU, in milliseconds, at a time.
    fn figures(start: Instant, after: Duration, cpu_ms: [u64; 3]) -> Figures {
        let agents = vec![status("a", None), status("b", Some("a")), status("c", Some("a"))];
        let usage =
            |ms: u64| Usage { cpu_usage_us: Some(ms * 1000), memory_current_bytes: Some(ms), ..Usage::default() };
        let usage_by_agent = agents.iter().zip(cpu_ms).map(|(agent, ms)| (agent.id.clone(), usage(ms))).collect();
        let stats = Stats { usage: Some(usage(cpu_ms[0])), usage_by_agent, uptime_ms: 1, ..Stats::default() };
        Figures { stats, agents, at: start + after }
    }

    fn view() -> View {
        let mut view = View::new("/herd".to_owned(), false);
        let start = Instant::now();
        view.take(figures(start, Duration::ZERO, [100, 50, 50]));
        view.take(figures(start, Duration::from_secs(2), [2100, 150, 1950]));
        view
    }

    fn press(view: &mut View, code: KeyCode) -> Option<Wish> {
        view.press(KeyEvent::from(code))
    }

    #[test]
    fn cpu_is_a_share_of_the_time_between_two_looks() {
        let view = view();
        let shares: Vec<_> = view.rows.iter().map(|row| row.cpu.unwrap().round()).collect();
        assert_eq!(shares, [100.0, 5.0, 95.0]);
        assert_eq!(view.cpu.unwrap().round(), 100.0);
    }

    #[test]
    fn what_is_selected_stays_selected_in_another_order() {
        let mut view = view();
        press(&mut view, KeyCode::Down);
        assert_eq!(view.selected().unwrap().id.as_str(), "b");
        press(&mut view, KeyCode::Char('s'));
        let order: Vec<_> = view.rows.iter().map(|row| row.agent.id.to_string()).collect();
        assert_eq!((order, view.order), (["a", "c", "b"].map(str::to_owned).to_vec(), Order::Cpu));
        assert_eq!(view.selected().unwrap().id.as_str(), "b");
    }

    #[test]
    fn nothing_is_ended_without_a_yes() {
        let mut view = view();
        assert!(press(&mut view, KeyCode::Char('t')).is_none());
        assert!(view.last_line().contains("Terminate a and all below it?"));
        assert!(press(&mut view, KeyCode::Char('n')).is_none());
        assert!(press(&mut view, KeyCode::Char('y')).is_none(), "the question is gone");
        press(&mut view, KeyCode::Char('K'));
        let Some(Wish::Ask(call)) = press(&mut view, KeyCode::Char('y')) else { panic!("it is asked for") };
        let Call::Terminate(ending) = *call else { panic!("{call:?}") };
        assert_eq!((ending.target, ending.grace_ms), (Target::Ids(vec!["a".parse().unwrap()]), Some(0)));
    }

    #[test]
    fn a_herd_that_has_gone_empty_has_nothing_selected() {
        let mut view = view();
        view.take(Figures { stats: Stats::default(), agents: Vec::new(), at: Instant::now() });
        assert!(view.selected().is_none() && press(&mut view, KeyCode::Char('p')).is_none());
    }
}
