//! `apply`: brings a running herd to a tree file, and touches only what differs.
//!
//! Steps are carried out in the order of the plan; starts that do not wait for each other are asked for several at a time. The
//! first refusal ends the asking, and what was asked for by then is heard: every step is known to be done, refused or untouched.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;

use super::ahead::Asked;
use super::args::{ApplyArgs, Global};
use super::check;
use super::failure::{self, Done, FAILED};
use super::link::connect;
use super::list::limits;
use super::screen::{BAD, DIM, GOOD, Screen, WARN};
use crate::api::client::{Client, read};
use crate::api::method::{Call, Configured, Ending, LimitChange, Nothing, OfAgent, OfTarget, Selection, Shown};
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::limits::Limits;
use crate::model::plan::{Present, Step, plan};
use crate::model::request::{LimitScope, Target};
use crate::model::spec::AgentSpec;
use crate::model::status::{AgentStatus, Cause, Receipt, State};
use crate::model::tree::Tree;

/// What is printed for programs.
#[derive(Serialize)]
struct Report<'a> {
    steps: &'a [Step],
    /// How many of the steps were carried out; none in a dry run.
    done: usize,
    /// Those that were refused, in their order. What was to come after `done` and these together was not asked for.
    refused: &'a [Refusal],
}

/// A step that was not carried out.
#[derive(Serialize)]
struct Refusal {
    /// Which: its place in the plan, from 0.
    step: usize,
    error: Error,
}

/// `apply`
pub(super) fn apply(global: &Global, args: &ApplyArgs, screen: &mut Screen) -> Done {
    let Some(tree) = check::tree(&args.file, screen)? else { return Ok(ExitCode::from(FAILED)) };
    let mut client = connect(global)?;
    let Configured { config, .. } = client.call(&Call::Config(Nothing {}))?;
    let herd = present(&mut client)?;
    let steps = plan(&tree, &config, &herd);
    if !screen.is_json {
        steps.iter().try_for_each(|step| tell(step, screen))?;
        screen.flush()?;
    }
    let mut work = Work::new(&mut client, &tree, &steps, args.grace.millis());
    if !args.dry_run {
        work.carry_out();
    }
    let (done, refused) = work.outcome();
    if screen.is_json {
        screen.json(&Report { steps: &steps, done, refused: &refused })?;
    }
    let Some(first) = refused.first() else { return Ok(ExitCode::SUCCESS) };
    screen.flush()?;
    let mut errors: Vec<&Error> = refused.iter().map(|refusal| &refusal.error).collect();
    errors.dedup();
    errors.iter().for_each(|error| failure::tell(error, screen.is_json));
    if !screen.is_json {
        failure::note(&format!("{done} of {} steps are done, {} were refused", steps.len(), refused.len()));
    }
    Ok(ExitCode::from(failure::status(first.error.code)))
}

/// Asks for every agent of the herd, parents before their children.
fn present(client: &mut Client) -> Result<Vec<Present>, Error> {
    let agents: Vec<AgentStatus> = client.call(&Call::Ps(Selection::default()))?;
    let (mut asked, mut herd) = (Asked::default(), BTreeMap::new());
    let mut agents = agents.into_iter().map(|agent| Call::Show(OfAgent { id: agent.id })).enumerate();
    loop {
        let next = if asked.is_full() { None } else { agents.next() };
        if let Some((number, call)) = next {
            asked.ask(client, &call, number).map_err(|(_, error)| error)?;
            continue;
        }
        if asked.is_empty() {
            return Ok(herd.into_values().collect());
        }
        for (number, outcome) in asked.hear(client) {
            match outcome.and_then(|shown| read::<Shown>(&shown, "show")) {
                Ok(Shown { status, spec, .. }) => {
                    let is_unstarted = is_unstarted(&status);
                    herd.insert(number, Present { limits: status.limits, spec, is_unstarted });
                }
                // Its retention is over just now.
                Err(error) if error.code == Code::NoSuchAgent => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Says whether an agent waits for its start, or could not be started for one that it starts after.
fn is_unstarted(agent: &AgentStatus) -> bool {
    let can_wait = matches!(agent.state, State::Queued | State::Starting | State::Paused);
    let waits = can_wait && agent.pid.is_none() && agent.ended.is_none() && !agent.command.is_empty();
    waits || agent.state == State::Failed && agent.exit.as_ref().is_some_and(|exit| exit.cause == Cause::Dependency)
}

fn tell(step: &Step, screen: &mut Screen) -> std::io::Result<()> {
    let (style, text) = match step {
        Step::End { id, why } => (BAD, format!("- end    {id} ({why})")),
        Step::Limit { scope, limits: to } => (WARN, format!("~ limit  {}: {}", whose(scope), limits(to).join(", "))),
        Step::Start { id, why } => (GOOD, format!("+ start  {id} ({why})")),
        Step::Keep { id } => (DIM, format!("= keep   {id}")),
    };
    let line = screen.paint(style, &text);
    screen.line(&line)
}

fn whose(scope: &LimitScope) -> String {
    match scope {
        LimitScope::Agent(id) => id.to_string(),
        LimitScope::Each(level) => format!("each of level {level}"),
        LimitScope::Siblings(level) => format!("siblings of level {level}"),
        LimitScope::Total(level) => format!("all of level {level}"),
        LimitScope::Herd => "the herd".to_owned(),
    }
}

/// A plan that is carried out.
struct Work<'a> {
    client: &'a mut Client,
    steps: &'a [Step],
    specs: BTreeMap<&'a AgentId, &'a AgentSpec>,
    grace_ms: Option<u64>,
    /// The starts that are not answered.
    asked: Asked<usize>,
    done: usize,
    refused: BTreeMap<usize, Error>,
}

impl<'a> Work<'a> {
    fn new(client: &'a mut Client, tree: &'a Tree, steps: &'a [Step], grace_ms: Option<u64>) -> Self {
        let specs = tree.agents.iter().map(|spec| (&spec.id, spec)).collect();
        Self { client, steps, specs, grace_ms, asked: Asked::default(), done: 0, refused: BTreeMap::new() }
    }

    /// How many steps are done, and which were refused, in their order.
    fn outcome(self) -> (usize, Vec<Refusal>) {
        (self.done, self.refused.into_iter().map(|(step, error)| Refusal { step, error }).collect())
    }

    /// Carries out all steps in their order, until one is refused.
    fn carry_out(&mut self) {
        for (number, step) in self.steps.iter().enumerate() {
            while self.has_to_wait(step) {
                self.hear();
            }
            if !self.refused.is_empty() {
                break;
            }
            if let Some(outcome) = self.begin(number, step) {
                self.note(number, outcome);
            }
        }
        while !self.asked.is_empty() {
            self.hear();
        }
    }

    /// Says whether a step comes after one that is not answered.
    fn has_to_wait(&self, step: &Step) -> bool {
        match step {
            Step::Keep { .. } => false,
            Step::Start { id, .. } => {
                let comes_first = |number: &usize| matches!(&self.steps[*number], Step::Start { id: other, .. } if self.specs[id].comes_after(other));
                self.asked.is_full() || self.asked.is_open(comes_first)
            }
            Step::End { .. } | Step::Limit { .. } => !self.asked.is_empty(),
        }
    }

    /// Carries a step out, or asks for it: then there is no outcome yet.
    fn begin(&mut self, number: usize, step: &Step) -> Option<Result<(), Error>> {
        match step {
            Step::Keep { .. } => Some(Ok(())),
            Step::End { id, .. } => Some(self.end(id)),
            Step::Limit { scope, limits } => {
                let change = LimitChange { scope: scope.clone(), limits: limits.clone() };
                Some(self.client.call::<Limits>(&Call::Limit(change)).map(drop))
            }
            Step::Start { id, .. } => {
                let spec = self.specs[id].clone();
                let asked = self.asked.ask(self.client, &Call::Spawn(Box::new(spec)), number);
                asked.err().map(|(_, error)| Err(error))
            }
        }
    }

    fn end(&mut self, id: &AgentId) -> Result<(), Error> {
        let target = Target::Ids(vec![id.clone()]);
        self.client.call::<Receipt>(&Call::Terminate(Ending { target: target.clone(), grace_ms: self.grace_ms }))?;
        self.client.call::<Vec<AgentStatus>>(&Call::Cleanup(OfTarget { target }))?;
        Ok(())
    }

    /// Waits for an answer.
    fn hear(&mut self) {
        for (number, outcome) in self.asked.hear(self.client) {
            self.note(number, outcome.map(drop));
        }
    }

    fn note(&mut self, number: usize, outcome: Result<(), Error>) {
        match outcome {
            Ok(()) => self.done += 1,
            Err(error) => drop(self.refused.insert(number, error)),
        }
    }
}
