//! `apply`: brings a running herd to a tree file, and touches only what differs.
//!
//! Steps are carried out in the order of the plan; starts that do not wait for each other are asked for several at a time. A step
//! that is refused keeps back those that need it, and no other: every step is known to be done, refused or left out.
//!
//! What the file gives is remembered before the first step, together with what it gave before: a second try knows what to take
//! back, wherever the first one ended.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anstyle::Style;
use serde::Serialize;

use super::ahead::Asked;
use super::args::{ApplyArgs, Global};
use super::check;
use super::failure::{self, Done, FAILED};
use super::link::connect;
use super::list::limits;
use super::screen::{BAD, DIM, GOOD, Screen, WARN};
use crate::api::client::{Client, read};
use crate::api::method::{
    Call, Configured, Declaration, Ending, LimitChange, Nothing, OfAgent, OfTarget, Selection, Shown,
};
use crate::model::applied::Applied;
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::limits::Limits;
use crate::model::plan::{Conflict, Herd, Plan, Present, Step, plan};
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
    /// Those that were refused, in their order.
    refused: &'a [Refusal],
    /// Those that were not asked for, since they need one that was refused: their places in the plan.
    left_out: &'a [usize],
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
    let Some(mut tree) = check::tree(&args.file, screen)? else { return Ok(ExitCode::from(FAILED)) };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => check::stem(&args.file),
    };
    tree.declare(&name);
    let mut client = connect(global)?;
    let Configured { config, applied, .. } = client.call(&Call::Config(Nothing {}))?;
    let agents = present(&mut client)?;
    let herd = Herd { config: &config, agents: &agents, applied: &applied };
    let Plan { steps, applied: wanted } = plan(&tree, &name, herd).map_err(|conflicts| refusal(&name, &conflicts))?;
    let mut work = Work::new(&mut client, &tree, &steps, args.grace.millis());
    if !args.dry_run {
        let earlier = applied.get(&name).cloned().unwrap_or_default();
        work.remember(&name, &earlier, &wanted.with_earlier(&earlier))?;
        work.carry_out();
        if work.refused.is_empty() {
            work.remember(&name, &wanted.with_earlier(&earlier), &wanted)?;
        }
    }
    let (done, refused, left_out) = work.outcome(args.dry_run);
    if screen.is_json {
        screen.json(&Report { steps: &steps, done, refused: &refused, left_out: &left_out })?;
    } else {
        tell_all(&steps, &refused, &left_out, screen)?;
    }
    if refused.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    screen.flush()?;
    let mut errors: Vec<&Error> = refused.iter().map(|refusal| &refusal.error).collect();
    errors.dedup();
    errors.iter().for_each(|error| failure::tell(error, screen.is_json));
    if !screen.is_json {
        let (all, not_done, rest) = (steps.len(), refused.len(), left_out.len());
        failure::note(&format!("{done} of {all} steps are done, {not_done} were refused, {rest} were left out"));
    }
    Ok(ExitCode::from(FAILED))
}

/// Says whose it is what the file wants.
fn refusal(name: &str, conflicts: &[Conflict]) -> Error {
    let text = |conflict: &Conflict| match conflict {
        Conflict::Agent { id, owner: Some(owner) } => format!("agent {id} is declared by {owner}"),
        Conflict::Agent { id, owner: None } => format!("agent {id} was started by hand"),
        Conflict::Limit { scope, knob, owner } => {
            format!("{knob} of {} is given by {owner}, differently", whose(scope))
        }
    };
    let shown: Vec<String> = conflicts.iter().take(CONFLICTS_MAX).map(text).collect();
    let more = conflicts.len() - shown.len();
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let error = Error::new(Code::DuplicateId, format!("apply {name}: nothing is changed: {}{more}", shown.join(", ")));
    error.remedy("rename it in this file, or end and clean up the other one; --name tells which file this is")
}

/// How many conflicts an error names.
const CONFLICTS_MAX: usize = 10;

/// Writes each step with what became of it; a plan, if nothing was to be carried out.
fn tell_all(steps: &[Step], refused: &[Refusal], left_out: &[usize], screen: &mut Screen) -> std::io::Result<()> {
    for (number, step) in steps.iter().enumerate() {
        let (style, text) = line(step);
        let line = if refused.iter().any(|refusal| refusal.step == number) {
            screen.paint(BAD, &format!("{text}: refused"))
        } else if left_out.contains(&number) {
            screen.paint(WARN, &format!("{text}: left out"))
        } else {
            screen.paint(style, &text)
        };
        screen.line(&line)?;
    }
    Ok(())
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
                    herd.insert(number, Present { spec, is_unstarted });
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

fn line(step: &Step) -> (Style, String) {
    match step {
        Step::End { id, why } => (BAD, format!("- end    {id} ({why})")),
        Step::Limit { scope, limits: to, lifted } => {
            let lifted = lifted.iter().map(|name| format!("{name} is taken back"));
            let texts: Vec<String> = limits(to).into_iter().chain(lifted).collect();
            (WARN, format!("~ limit  {}: {}", whose(scope), texts.join(", ")))
        }
        Step::Start { id, why } => (GOOD, format!("+ start  {id} ({why})")),
        Step::Keep { id } => (DIM, format!("= keep   {id}")),
    }
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
    left_out: BTreeSet<usize>,
    /// Agents that are not there, or not as the file has them, for a step that was refused.
    missing: BTreeSet<&'a AgentId>,
}

impl<'a> Work<'a> {
    fn new(client: &'a mut Client, tree: &'a Tree, steps: &'a [Step], grace_ms: Option<u64>) -> Self {
        let specs = tree.agents.iter().map(|spec| (&spec.id, spec)).collect();
        let (refused, left_out, missing) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { client, steps, specs, grace_ms, asked: Asked::default(), done: 0, refused, left_out, missing }
    }

    /// How many steps are done, which were refused, and which were left out, in their order.
    fn outcome(self, is_dry: bool) -> (usize, Vec<Refusal>, Vec<usize>) {
        let refused = self.refused.into_iter().map(|(step, error)| Refusal { step, error }).collect();
        (if is_dry { 0 } else { self.done }, refused, self.left_out.into_iter().collect())
    }

    /// Has the herd remember what the file gives, unless it does.
    fn remember(&mut self, file: &str, known: &Applied, applied: &Applied) -> Result<(), Error> {
        if known == applied {
            return Ok(());
        }
        let declaration = Declaration { file: file.to_owned(), applied: applied.clone() };
        self.client.call::<Nothing>(&Call::Declare(declaration)).map(drop)
    }

    /// Carries out all steps in their order, but for those that need one which was refused.
    fn carry_out(&mut self) {
        for (number, step) in self.steps.iter().enumerate() {
            while self.has_to_wait(step) {
                self.hear();
            }
            if self.needs_what_is_missing(step) {
                self.left_out.insert(number);
                self.miss(step);
            } else if let Some(outcome) = self.begin(number, step) {
                self.note(number, outcome);
            }
        }
        while !self.asked.is_empty() {
            self.hear();
        }
    }

    fn needs_what_is_missing(&self, step: &Step) -> bool {
        let Step::Start { id, .. } = step else { return false };
        let spec = self.specs[id];
        self.missing.contains(id) || self.missing.iter().any(|missing| spec.comes_after(missing))
    }

    fn miss(&mut self, step: &'a Step) {
        if let Step::Start { id, .. } | Step::End { id, .. } = step {
            self.missing.insert(id);
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
            Step::Limit { scope, limits, lifted } => {
                let change = LimitChange { scope: scope.clone(), limits: limits.clone(), lifted: lifted.clone() };
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
            Err(error) => {
                self.refused.insert(number, error);
                self.miss(&self.steps[number]);
            }
        }
    }
}
