//! What a kill does not end: the request that asked for it is answered in time all the same, with who lives on and why.
//!
//! ```text
//!  the kill is due ────────── most of kill_timeout ──────────▶ survey ── found, or kill_timeout is over ──▶ answer
//! ```
//!
//! An agent whose run outlives its kill is *stuck*: a state between stopping and the end. It has no terminal event yet, since
//! nobody has seen its end; that comes when the kernel reports it, and then its cgroup is removed. Until then the kill is
//! repeated ever more rarely.

use std::collections::BTreeMap;

use super::agent::{Agent, Home, Kill, Ladder};
use super::input::{AgentKey, Effect, Survey};
use super::stop::{Stage, Stop, StopKey};
use super::{Machine, Step, Timer};
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::request::Answer;
use crate::model::survivor::{Survivor, sentence};
use crate::model::time::Monotonic;

/// The survey is ordered when this part of `kill_timeout` is left.
const SURVEY_PART: u32 = 20;

/// How far the answer of a stop has come, with the deadline of the stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owed {
    /// The grace runs.
    Later,
    /// The kill is due; at the first time it is found out what it did not end, at the second the answer is due.
    Survey(Monotonic, Monotonic),
    /// It is being found out.
    Answer(Monotonic, BTreeMap<AgentKey, Vec<Survivor>>),
    /// It is given.
    Nothing,
}

impl Owed {
    fn due(&self) -> Option<Monotonic> {
        match self {
            Self::Survey(at, _) | Self::Answer(at, _) => Some(*at),
            Self::Later | Self::Nothing => None,
        }
    }
}

/// Returns whether processes of an agent may live, in its run or elsewhere in its cgroup.
fn is_left(agent: &Agent) -> bool {
    let is_occupied = matches!(agent.home, Home::Emptying(_) | Home::Removing(Some(_)));
    agent.can_speak() || agent.has_ended() && is_occupied
}

impl Machine {
    /// Moves the answer of a stop as far as it can go now.
    pub(super) fn settle_answer(&mut self, step: &mut Step, key: StopKey) {
        let (now, timeout) = (step.now.mono, self.config.kill_timeout);
        let Some(stop) = self.stops.get(&key) else { return };
        match &stop.owed {
            Owed::Later if !matches!(stop.stage, Stage::Polite(_)) => {
                let answer_by = stop.kill_due + timeout;
                self.set_owed(key, Owed::Survey(stop.kill_due + (timeout - timeout / SURVEY_PART), answer_by));
                // The supervisor may have been stopped for so long that all of it is due.
                self.settle_answer(step, key);
            }
            Owed::Survey(at, answer_by) if now >= *at => {
                let answer_by = *answer_by;
                let survey = self.survey_of(stop);
                self.set_owed(key, Owed::Answer(answer_by.max(now), BTreeMap::new()));
                step.order(Effect::Survey { number: key.0, survey });
                if now >= answer_by {
                    self.settle_answer(step, key);
                }
            }
            Owed::Answer(at, _) if now >= *at => self.answer_late(step, key),
            _ => {}
        }
    }

    /// Changes how far the answer of a stop has come.
    pub(super) fn set_owed(&mut self, key: StopKey, owed: Owed) {
        let Some(stop) = self.stops.get_mut(&key) else { return };
        if let Some(at) = stop.owed.due() {
            self.timers.remove(&(at, Timer::Answer(key)));
        }
        if let Some(at) = owed.due() {
            self.timers.insert((at, Timer::Answer(key)));
        }
        stop.owed = owed;
    }

    /// Lists what has to be looked at for a stop: the runs that have not ended, and the cgroups of what has.
    fn survey_of(&self, stop: &Stop) -> Survey {
        let members = stop.members().chain(stop.remains()).filter_map(|key| self.agents.get(&key));
        let left = members.map(Box::as_ref).filter(|agent| is_left(agent));
        let (live, ended): (Vec<&Agent>, Vec<&Agent>) = left.partition(|agent| agent.can_speak());
        Survey {
            runs: live.into_iter().map(|agent| (agent.key, agent.run)).collect(),
            homes: ended.into_iter().map(|agent| agent.key).collect(),
        }
    }

    /// Takes in who has survived the kills of a stop, or of one run.
    pub(super) fn surveyed(&mut self, step: &mut Step, number: u64, found: Vec<(AgentKey, Vec<Survivor>)>) {
        let found: BTreeMap<_, _> = found.into_iter().filter(|(_, survivors)| !survivors.is_empty()).collect();
        for (key, survivors) in &found {
            self.note_stuck(step, *key, survivors);
        }
        let key = StopKey(number);
        let Some(stop) = self.stops.get_mut(&key) else { return };
        if let (Owed::Answer(_, known), false) = (&mut stop.owed, found.is_empty()) {
            *known = found;
            self.answer_late(step, key);
        }
    }

    /// Answers a stop whose kill has not ended everything.
    fn answer_late(&mut self, step: &mut Step, key: StopKey) {
        let Some(stop) = self.stops.get_mut(&key) else { return };
        let Owed::Answer(_, found) = &stop.owed else { return };
        let mut alive = found.clone();
        let unseen =
            stop.members().chain(stop.remains()).filter(|key| self.agents.get(key).is_some_and(|it| is_left(it)));
        for key in unseen {
            alive.entry(key).or_default();
        }
        let receipt = stop.receipt(step.now.mono, &alive);
        for reply in stop.take_replies() {
            step.reply(reply, Ok(Answer::Receipt(receipt.clone())));
        }
        self.set_owed(key, Owed::Nothing);
    }

    /// Returns whether only agents are left that have outlived their kill.
    pub(super) fn is_stuck(&self) -> bool {
        let mut left = self.agents.values().filter(|agent| is_left(agent)).peekable();
        left.peek().is_some() && left.all(|agent| agent.stuck.is_some())
    }

    /// An agent has outlived its kill: reports it once for a run.
    fn note_stuck(&mut self, step: &mut Step, key: AgentKey, survivors: &[Survivor]) {
        let Some(agent) = self.agents.get_mut(&key) else { return };
        let is_late = matches!(agent.ladder(), Some(Ladder::Killed(_) | Ladder::Late(_)));
        let is_killed = agent.down.is_some() || is_late || agent.has_ended();
        if !is_killed || agent.has_ended() && agent.home == Home::None {
            return;
        }
        let is_news = agent.stuck.replace(survivors.to_vec()).is_none();
        let reply = agent.reply.take_if(|_| is_late);
        let (id, text) = (agent.spec.id.clone(), sentence(survivors));
        if is_news {
            let message = format!("killed, and it lives on: {text}");
            self.publish(step, Kind::Stuck, key, |event| event.message = message);
        }
        if let Some(reply) = reply {
            let message = format!("restart {id}: its run was killed and lives on: {text}");
            let remedy = "the next run starts when that has ended; end what holds it";
            step.reply(reply, Err(Error::new(Code::TimedOut, message).remedy(remedy)));
        }
        self.dirty.insert(key);
    }

    /// Finds out who has survived the kill of a run that is ended for the next one, once its time is over.
    pub(super) fn settle_stuck(&self, step: &mut Step, key: AgentKey, kill: Kill) {
        let agent = &self.agents[&key];
        if step.now.mono.since(kill.since) >= self.config.kill_timeout && agent.stuck.is_none() {
            let survey = Survey { runs: vec![(key, agent.run)], homes: Vec::new() };
            step.order(Effect::Survey { number: key.0, survey });
        }
    }
}
