//! From an order of the machine to the job or the message that carries it out: one arm each.

use super::body::{Body, Ear};
use super::end::Quarry;
use super::job::{Job, SpawnJob};
use super::rules::Awaited;
use super::supervisor::Supervisor;
use crate::kernel::cgroup::Place;
use crate::machine::{AgentKey, Effect, LimitPlace, SpawnOrder};
use crate::model::event::{Event, Kind};
use crate::model::id::Run;
use crate::model::record::AgentRecord;
use crate::output::{Colours, Spool, escape};

/// What an agent takes in memory, about: with its specification, status and watches.
const AGENT_SIZE: usize = 8 << 10;

pub(super) fn perform(shell: &mut Supervisor, effect: Effect) {
    match effect {
        Effect::Spawn(order) => spawn(shell, *order),
        Effect::Signal { agent, run, signal, to } => {
            if let Some(run) = quarry(shell, agent, run) {
                shell.hand(Job::Signal { agent, run, signal: signal.0, to });
            }
        }
        Effect::KillRun { agent, run, force } => {
            if let Some(run) = quarry(shell, agent, run) {
                shell.hand(Job::KillRun { run, force });
            }
            if shell.machine.is_spawning(agent) {
                shell.await_rescue(agent, run);
            }
        }
        Effect::Kill { agent, runs, force } => {
            let runs = runs.into_iter().filter_map(|(key, run)| Some((key, quarry(shell, key, run)?))).collect();
            if let Some(place) = home(shell, agent) {
                shell.hand(Job::Kill { agent, place, runs, force });
            }
        }
        Effect::Survey { number, survey } => {
            let runs = survey.runs.into_iter().filter_map(|(key, run)| Some((key, quarry(shell, key, run)?))).collect();
            let homes = survey.homes.into_iter().filter_map(|key| Some((key, home(shell, key)?))).collect();
            shell.hand(Job::Survey { number, runs, homes });
        }
        Effect::Freeze { agent, frost } => {
            if let Some(place) = home(shell, agent) {
                shell.hand(Job::Freeze { agent, place, frost });
            }
        }
        Effect::ReadOutput { agent, run } => shell.output_ends(agent, run, Awaited::Yes),
        Effect::Sample { agent, run } => {
            if let Some(body) = shell.bodies.get(&agent) {
                shell.hand(Job::Sample { agent, run, place: body.run_place(run), id: body.id.clone() });
            }
        }
        Effect::RemoveRun { agent, run } => remove_run(shell, agent, run),
        Effect::Remove(agent) => {
            if let Some(place) = home(shell, agent) {
                shell.hand(Job::Remove { agent, place });
            }
        }
        Effect::SetLimits { change, settings } => {
            let settings =
                settings.into_iter().filter_map(|(place, limits)| Some((limit_place(shell, &place)?, limits)));
            let settings = settings.collect();
            shell.hand(Job::SetLimits { change, settings });
        }
        Effect::Tighten(of) => {
            if let Some(place) = limit_place(shell, &of) {
                shell.hand(Job::Tighten(place));
            }
        }
        Effect::Loosen(of) => {
            if let Some(place) = limit_place(shell, &of) {
                shell.loosen(&of, place);
            }
        }
        Effect::Reclaim(agent) => {
            if let Some(place) = home(shell, agent) {
                shell.hand(Job::Reclaim { agent, place });
            }
        }
        Effect::FindLaggards { agents, reply } => {
            let agents = agents.into_iter().filter_map(|key| Some((key, home(shell, key)?))).collect();
            shell.hand(Job::FindLaggards { agents, reply });
        }
        Effect::Reply(to, outcome) => shell.reply(to, outcome),
        Effect::Publish(event) => shell.publish(*event),
        Effect::Forget(agent) => forget(shell, agent),
        Effect::Record(record) => write_down(shell, *record),
        Effect::RecordHerd(herd) => shell.records.append_herd(*herd),
        Effect::Finish => shell.is_over = true,
    }
}

fn home(shell: &Supervisor, key: AgentKey) -> Option<Place> {
    shell.bodies.get(&key).map(|body| body.home.clone())
}

fn quarry(shell: &Supervisor, key: AgentKey, run: Run) -> Option<Quarry> {
    shell.bodies.get(&key).map(|body| Quarry { place: body.run_place(run), main: body.main(run) })
}

fn limit_place(shell: &Supervisor, place: &LimitPlace) -> Option<Place> {
    match place {
        LimitPlace::Herd => Some(Place::herd()),
        LimitPlace::Agent(key) => home(shell, *key),
        LimitPlace::Children(key) => {
            let level = shell.machine.level_of(*key)?.below();
            Some(home(shell, *key)?.join(&format!("level-{level}")))
        }
    }
}

fn spawn(shell: &mut Supervisor, order: SpawnOrder) {
    let key = order.agent;
    let parent = shell.machine.parent_of(key);
    let level = shell.machine.level_of(key).unwrap_or_default();
    let above = match parent.and_then(|parent| home(shell, parent)) {
        Some(parent) => parent.join(&format!("level-{level}")),
        None => Place::herd(),
    };
    let id = order.spec.id.clone();
    let body = shell.bodies.entry(key).or_insert_with(|| Box::new(Body::new(id.clone(), above.join(id.as_str()))));
    let make_spool = !order.spec.is_group() && body.spool.is_none();
    if make_spool {
        body.spool = Some(Spool::new(order.spec.output_max));
        body.spool_from = Some(order.run);
    }
    let home = body.home.clone();
    shell.await_line(key, order.run, &order.spec);
    shell.records.append_begun(key, order.run, &home);
    shell.hand_spawn(SpawnJob {
        agent: key,
        top: std::iter::successors(Some(key), |key| shell.machine.parent_of(*key)).last().unwrap_or(key),
        run: order.run,
        home,
        accounts_memory: order.make.is_some() && shell.machine.may_be_paused_for_memory(key),
        make: order.make,
        make_level: order.make_level.map(|limits| (above, limits)),
        make_spool,
        spec: order.spec,
    });
}

fn remove_run(shell: &mut Supervisor, key: AgentKey, run: Run) {
    shell.stir_followers(key);
    shell.output_ends(key, run, Awaited::No);
    shell.forget_newline(key);
    shell.tools.leaves.forget(key);
    let Some(body) = shell.bodies.get_mut(&key) else { return };
    body.scan = None;
    let place = body.run_place(run);
    if let Some((_, watch)) = body.leaf_watch.take_if(|(watched, _)| *watched == run) {
        shell.unwatch(watch);
    }
    shell.hand(Job::RemoveRun { agent: key, place });
}

fn write_down(shell: &mut Supervisor, mut record: AgentRecord) {
    if let (Some(last), Some(body)) = (&mut record.last, shell.bodies.get(&AgentKey(record.birth.key))) {
        last.last_lines.clone_from(&body.last_lines);
    }
    shell.records.append(record);
}

/// Drops everything of an agent that the machine has forgotten.
fn forget(shell: &mut Supervisor, key: AgentKey) {
    shell.records.append_gone(key);
    shell.forget_pid_file(key);
    shell.forget_newline(key);
    let Some(body) = shell.bodies.remove(&key) else { return };
    for watch in body.home_watch.into_iter().chain(body.leaf_watch.map(|(_, watch)| watch)) {
        shell.unwatch(watch);
    }
    for ear in body.streams {
        if let Ear::Armed(watch) = ear {
            shell.unwatch(watch);
        }
    }
    shell.unwatched.retain(|(of, _)| *of != key);
    shell.memory_is_free(AGENT_SIZE);
    shell.forget_limits(&body.home);
    shell.forget_pressure(key);
    shell.end_follows(key);
    if let Some(token) = body.pipes {
        shell.forget_pipes(token);
    }
    if body.spool.is_some() {
        // Before a new agent of this name makes its own: while the disk stalls, none is let in.
        let tools = shell.tools.clone();
        shell.disk.act(move || {
            if let Err(error) = tools.store.remove(&body.id) {
                tracing::warn!("remove the output of {}: {error}", body.id);
            }
        });
    }
}

/// Writes an event into the log of the daemon itself.
pub(super) fn log(event: &Event) {
    // What does not apply is left out: in a journal each is a field to search by.
    let agent = event.agent.as_ref().map(|agent| agent.as_str());
    let level = event.level.map(|level| level.0);
    let run = event.run.map(|run| run.0);
    // A program writes parts of it: each way that the log goes is obeyed by somebody.
    let (kind, message) = (event.kind, escape(event.sentence().as_bytes(), Colours::Escaped));
    match kind {
        Kind::Failed
        | Kind::GaveUp
        | Kind::Escalated
        | Kind::Overdue
        | Kind::Stalled
        | Kind::Storm
        | Kind::Oom
        | Kind::Forbidden
        | Kind::StateStalled
        | Kind::StateRestored
        | Kind::Late
        | Kind::Stuck
        | Kind::Unwatched
        | Kind::Lagging => {
            tracing::warn!(agent, level, run, "{kind} {message}");
        }
        _ => tracing::info!(agent, level, run, "{kind} {message}"),
    }
}
