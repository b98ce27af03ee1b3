//! `apply`: brings a running herd to a tree file, and touches only what differs.

use std::process::ExitCode;

use serde::Serialize;

use super::args::{ApplyArgs, Global};
use super::check;
use super::failure::{Done, FAILED};
use super::link::connect;
use super::list::limits;
use super::screen::{BAD, DIM, GOOD, Screen, WARN};
use crate::api::client::Client;
use crate::api::method::{Call, Configured, Ending, LimitChange, Nothing, OfAgent, OfTarget, Selection, Shown};
use crate::model::error::{Code, Error};
use crate::model::plan::{Present, Step, plan};
use crate::model::request::{LimitScope, Target};
use crate::model::status::{AgentStatus, Receipt};
use crate::model::tree::Tree;

/// What is printed for programs.
#[derive(Serialize)]
struct Report<'a> {
    steps: &'a [Step],
    /// How many of the steps were carried out; none in a dry run.
    done: usize,
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
    let mut done = 0;
    let mut outcome = Ok(());
    if !args.dry_run {
        for step in &steps {
            outcome = carry_out(&mut client, &tree, step, args.grace.millis());
            if outcome.is_err() {
                break;
            }
            done += 1;
        }
    }
    if screen.is_json {
        screen.json(&Report { steps: &steps, done })?;
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// Asks for every agent of the herd, parents before their children.
fn present(client: &mut Client) -> Result<Vec<Present>, Error> {
    let agents: Vec<AgentStatus> = client.call(&Call::Ps(Selection::default()))?;
    let mut herd = Vec::with_capacity(agents.len());
    for AgentStatus { id, .. } in agents {
        match client.call::<Shown>(&Call::Show(OfAgent { id })) {
            Ok(shown) => herd.push(Present { limits: shown.status.limits, spec: shown.spec }),
            // Its retention is over just now.
            Err(error) if error.code == Code::NoSuchAgent => {}
            Err(error) => return Err(error),
        }
    }
    Ok(herd)
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

fn carry_out(client: &mut Client, tree: &Tree, step: &Step, grace_ms: Option<u64>) -> Result<(), Error> {
    match step {
        Step::Keep { .. } => {}
        Step::End { id, .. } => {
            let target = Target::Ids(vec![id.clone()]);
            client.call::<Receipt>(&Call::Terminate(Ending { target: target.clone(), grace_ms }))?;
            client.call::<Vec<AgentStatus>>(&Call::Cleanup(OfTarget { target }))?;
        }
        Step::Limit { scope, limits } => {
            let change = LimitChange { scope: scope.clone(), limits: limits.clone() };
            client.call::<serde_json::Value>(&Call::Limit(change))?;
        }
        Step::Start { id, .. } => {
            let spec = tree.agents.iter().find(|spec| spec.id == *id).expect("a plan starts what the file has");
            client.call::<AgentStatus>(&Call::Spawn(Box::new(spec.clone())))?;
        }
    }
    Ok(())
}
