//! What changes the herd: each command is one call, and tells what came of it.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{Global, GraceArgs, LimitArgs, TerminateArgs, WaitArgs};
use super::failure::{Done, FAILED};
use super::link::connect;
use super::list::{brief, limits};
use super::screen::{BAD, BOLD, Cell, PLAIN, Screen};
use crate::api::method::{Call, Ending, Grace, LimitChange, OfAgent, OfAgents, OfTarget};
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::limits::Limits;
use crate::model::request::Target;
use crate::model::spec::AgentSpec;
use crate::model::status::{AgentStatus, Receipt, State};

/// `spawn` and `register`
pub(super) fn spawn(global: &Global, spec: AgentSpec, screen: &mut Screen) -> Done {
    one(global, &Call::Spawn(Box::new(spec)), screen)
}

/// `restart`
pub(super) fn restart(global: &Global, id: AgentId, screen: &mut Screen) -> Done {
    one(global, &Call::Restart(OfAgent { id }), screen)
}

/// `pause`
pub(super) fn pause(global: &Global, target: Target, screen: &mut Screen) -> Done {
    several(global, &Call::Pause(OfTarget { target }), screen)
}

/// `resume`
pub(super) fn resume(global: &Global, target: Target, screen: &mut Screen) -> Done {
    several(global, &Call::Resume(OfTarget { target }), screen)
}

/// `cleanup`
pub(super) fn cleanup(global: &Global, target: Target, screen: &mut Screen) -> Done {
    several(global, &Call::Cleanup(OfTarget { target }), screen)
}

fn one(global: &Global, call: &Call, screen: &mut Screen) -> Done {
    let agent: AgentStatus = connect(global)?.call(call)?;
    if screen.is_json {
        screen.json(&agent)?
    } else {
        brief(&[agent], screen)?
    }
    Ok(ExitCode::SUCCESS)
}

fn several(global: &Global, call: &Call, screen: &mut Screen) -> Done {
    let agents: Vec<AgentStatus> = connect(global)?.call(call)?;
    if screen.is_json {
        screen.json(&agents)?
    } else {
        brief(&agents, screen)?
    }
    Ok(ExitCode::SUCCESS)
}

/// `wait`
pub(super) fn wait(global: &Global, args: WaitArgs, screen: &mut Screen) -> Done {
    let mut daemon = connect(global)?;
    // A socket takes no timeout of zero.
    daemon.set_timeout(args.timeout.map(|timeout| timeout.max(Duration::from_millis(1))))?;
    let answer = daemon.call::<Vec<AgentStatus>>(&Call::Wait(OfAgents { ids: args.ids }));
    let agents = answer.map_err(|error| match args.timeout {
        Some(timeout) if error.code == Code::TimedOut => {
            let time = humantime::format_duration(timeout);
            Error::new(Code::TimedOut, format!("not all have ended within {time}"))
                .remedy("`treeherd ps` tells who lives")
        }
        _ => error,
    })?;
    if screen.is_json {
        screen.json(&agents)?
    } else {
        brief(&agents, screen)?
    }
    let all_completed = agents.iter().all(|agent| agent.state == State::Completed);
    Ok(if all_completed { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// `terminate`
pub(super) fn terminate(global: &Global, args: TerminateArgs, screen: &mut Screen) -> Done {
    let ending = Ending { target: args.targets.target(), grace_ms: args.grace.millis() };
    let receipt: Receipt = connect(global)?.call(&Call::Terminate(ending))?;
    told(&receipt, screen)
}

/// `shutdown`
pub(super) fn shutdown(global: &Global, args: GraceArgs, screen: &mut Screen) -> Done {
    let mut client = connect(global)?;
    let receipt: Receipt = client.call(&Call::Shutdown(Grace { grace_ms: args.millis() }))?;
    // Its last word is the end of the connection: then another one can start in its place.
    while client.note().is_ok() {}
    told(&receipt, screen)
}

fn told(receipt: &Receipt, screen: &mut Screen) -> Done {
    if screen.is_json {
        screen.json(receipt)?
    } else {
        show(receipt, screen)?
    }
    let has_survivors = receipt.agents.iter().any(|agent| agent.survivors > 0);
    Ok(if has_survivors { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn show(receipt: &Receipt, screen: &mut Screen) -> std::io::Result<()> {
    let rows: Vec<_> = receipt
        .agents
        .iter()
        .map(|agent| {
            let signals: Vec<_> = agent.signals.iter().map(|(name, count)| format!("{name}: {count}")).collect();
            vec![
                Cell::new(agent.id.as_str()).style(BOLD),
                Cell::number(agent.processes),
                Cell::number(format!("{:.1}", agent.ms)),
                Cell::number(agent.survivors).style(if agent.survivors > 0 { BAD } else { PLAIN }),
                Cell::new(signals.join(", ")),
            ]
        })
        .collect();
    if !rows.is_empty() {
        screen.table(&["ID", "PROCESSES", "MS", "SURVIVORS", "ENDED BY"], &rows)?;
    }
    for agent in &receipt.agents {
        agent.alive.iter().try_for_each(|it| screen.line(&format!("{}: not ended: {it}", agent.id)))?;
    }
    receipt.outside.iter().try_for_each(|it| screen.line(&format!("outside the herd, not ended: {it}")))?;
    let (agents, processes) = (receipt.agents.len(), receipt.processes);
    screen.line(&format!("{agents} agents, {processes} processes ended in {:.1} ms", receipt.ms))
}

/// `limit`
pub(super) fn limit(global: &Global, args: LimitArgs, screen: &mut Screen) -> Done {
    let (scope, wanted) = args.scope_and_limits()?;
    let now: Limits = connect(global)?.call(&Call::Limit(LimitChange { scope, limits: wanted, lifted: Vec::new() }))?;
    if screen.is_json {
        screen.json(&now)?;
    } else {
        limits(&now).iter().try_for_each(|line| screen.line(line))?;
    }
    Ok(ExitCode::SUCCESS)
}
