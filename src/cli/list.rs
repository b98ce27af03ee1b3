//! Agents in a list, and one agent in full.

use std::process::ExitCode;

use super::args::Global;
use super::failure::Done;
use super::link::connect;
use super::screen::{BAD, BOLD, Cell, DIM, GOOD, Screen, WARN, date, duration, or_dash, plain, state_style};
use super::target::Narrowing;
use crate::api::method::{Call, OfAgent, Offsets, Selection, Shown};
use crate::model::explain::Explanation;
use crate::model::id::AgentId;
use crate::model::limits::{Limits, Setting};
use crate::model::spec::{Children, RestartPolicy};
use crate::model::status::{AgentStatus, Cause, ExitRecord, Paused, State};
use crate::model::units::Bytes;
use crate::model::usage::{MemorySource, Usage};

/// `ps`
pub(super) fn ps(global: &Global, args: Narrowing, screen: &mut Screen) -> Done {
    let parent = args.parent.clone();
    let selection = Selection { target: args.target(), parent };
    let agents: Vec<AgentStatus> = connect(global)?.call(&Call::Ps(selection))?;
    if screen.is_json {
        screen.json(&agents)?;
    } else {
        statuses(&agents, screen)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes agents as a table.
pub(super) fn statuses(agents: &[AgentStatus], screen: &mut Screen) -> std::io::Result<()> {
    let header = ["ID", "LEVEL", "STATE", "PID", "RUN", "TYPE", "SESSION", "COMMAND"];
    let rows: Vec<_> = agents.iter().map(row).collect();
    screen.table(&header, &rows)
}

fn row(agent: &AgentStatus) -> Vec<Cell> {
    vec![
        Cell::new(agent.id.as_str()).style(BOLD),
        Cell::number(agent.level),
        Cell::new(agent.state.name()).style(state_style(agent.state)),
        Cell::number(or_dash(agent.pid)),
        Cell::number(agent.run),
        Cell::new(agent.kind.as_str()),
        Cell::new(agent.session.as_ref().map_or("-", |session| session.as_str())),
        Cell::new(doing(agent)),
    ]
}

/// Says what an agent runs, how it ended, or what it waits for, in a line.
pub(super) fn doing(agent: &AgentStatus) -> String {
    let command = agent.command.join(" ");
    let ended = agent.exit.as_ref().filter(|_| agent.pid.is_none()).map(ToString::to_string);
    let killed = Some(agent.oom_kills).filter(|kills| *kills > 0).map(|kills| format!("OOM kills in it: {kills}"));
    match (ended.or(agent.waits.clone()).or(killed), command.is_empty()) {
        (Some(note), false) => plain(&format!("({note}) {command}")),
        (Some(note), true) => plain(&format!("({note})")),
        (None, _) => plain(&command),
    }
}

/// `explain`
pub(super) fn explain(global: &Global, id: AgentId, screen: &mut Screen) -> Done {
    let told: Explanation = connect(global)?.call(&Call::Explain(OfAgent { id }))?;
    if screen.is_json {
        screen.json(&told)?;
        return Ok(ExitCode::SUCCESS);
    }
    let state = screen.paint(state_style(told.state), told.state.name());
    screen.line(&format!("{} is {state}", screen.paint(BOLD, told.id.as_str())))?;
    let next = told.next.iter().map(|next| match next.in_ms {
        Some(ms) => format!("in {}: {}", duration(ms), next.what),
        None => next.what.clone(),
    });
    let because = told.because.iter().map(|line| ("because", line.clone()));
    let waiting = told.waiting_for.iter().map(|line| ("waits for", line.clone()));
    for (word, line) in because.chain(waiting).chain(next.map(|line| ("next", line))) {
        let word = screen.paint(DIM, &format!("{word:<9}"));
        screen.line(&format!("{word} {}", plain(&line)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `show`
pub(super) fn show(global: &Global, id: AgentId, screen: &mut Screen) -> Done {
    let shown: Shown = connect(global)?.call(&Call::Show(OfAgent { id }))?;
    if screen.is_json {
        screen.json(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    let facts = facts(&shown);
    for (name, value) in facts {
        let name = screen.paint(DIM, &format!("{name:<15}"));
        screen.line(&format!("{name} {}", plain(&value)))?;
    }
    for line in shown.status.exit.iter().flat_map(|exit| &exit.last_lines) {
        let bar = screen.paint(BAD, "  │");
        screen.line(&format!("{bar} {}", plain(line)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn facts(shown: &Shown) -> Vec<(&'static str, String)> {
    let (status, spec) = (&shown.status, &shown.spec);
    let mut facts = vec![
        ("id", status.id.to_string()),
        ("state", status.state.to_string()),
        ("level", status.level.to_string()),
        ("type", status.kind.clone()),
        ("priority", u8::from(status.priority).to_string()),
        ("run", format!("{}, {} restarts", status.run, status.restarts)),
        ("cgroup", status.cgroup.clone()),
    ];
    let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    add("parent", status.parent.as_ref().map(ToString::to_string));
    add(
        "after",
        (!spec.after.is_empty()).then(|| spec.after.iter().map(AgentId::as_str).collect::<Vec<_>>().join(" ")),
    );
    add("paused", (status.paused != Paused::No).then(|| status.paused.name().to_owned()));
    add("waits", status.waits.clone());
    add("session", status.session.as_ref().map(ToString::to_string));
    add("capabilities", (!status.capabilities.is_empty()).then(|| status.capabilities.join(", ")));
    add("metadata", (!status.metadata.is_empty()).then(|| serde_json::to_string(&status.metadata).unwrap_or_default()));
    add("command", (!status.command.is_empty()).then(|| words(&status.command)));
    add("pid", status.pid.map(|pid| pid.to_string()));
    add("started", status.started.map(date));
    add("uptime", shown.uptime_ms.map(duration));
    add("ended", status.ended.map(date));
    add("exit", status.exit.as_ref().map(exit));
    add("OOM kills", (status.oom_kills > 0).then(|| format!("{} processes besides the main one", status.oom_kills)));
    add("paused for", (status.paused_ms > 0).then(|| duration(status.paused_ms)));
    add("limits", (!status.limits.is_empty()).then(|| limits(&status.limits).join(", ")));
    add("delegated", spec.delegate.then(|| "its user may make cgroups below its own".to_owned()));
    let restart = &spec.restart;
    let again = || format!("{}, first after {}", restart.policy.name(), duration(millis(restart.delay)));
    add("restart", (restart.policy != RestartPolicy::Never).then(again));
    add("children are", children(&spec.children));
    add("significant", spec.significant.then(|| "its parent ends when it ends for good".to_owned()));
    add("spawn budget", spec.spawn_budget.map(|most| most.to_string()));
    add("stop", Some(format!("{}, killed after {}", spec.stop_signal, duration(millis(spec.grace)))));
    add("says", status.status_text.clone());
    let ready = |ready| format!("{ready}, within {}", duration(millis(spec.ready_deadline().unwrap_or_default())));
    add("ready", spec.ready.as_ref().map(ready));
    add("pid file", spec.pid_file.as_ref().map(|path| path.display().to_string()));
    add("watchdog", spec.watchdog.map(|watchdog| format!("every {}", duration(millis(watchdog)))));
    add("stall", spec.stall.map(|stall| stall.to_string()));
    add("run timeout", spec.run_timeout.map(|timeout| duration(millis(timeout))));
    for rule in &spec.pressure {
        add("pressure", Some(rule.to_string()));
    }
    let found = shown.rules.iter().map(|count| format!("{}: {}", count.rule, count.lines));
    add("rules", (!shown.rules.is_empty()).then(|| found.collect::<Vec<_>>().join(", ")));
    add("not looked at", (shown.rules_gone_bytes > 0).then(|| Bytes(shown.rules_gone_bytes).to_string()));
    add("children", (!status.children.is_empty()).then(|| names(&status.children)));
    add("output", output(shown.output_start, shown.output_end));
    facts.extend(shown.usage.iter().flat_map(usage));
    facts
}

fn children(children: &Children) -> Option<String> {
    let most = children
        .intensity
        .map(|most| format!(", {most} restarts within {} at most", duration(millis(children.period))));
    (!children.is_default()).then(|| format!("restarted {}{}", children.strategy, most.unwrap_or_default()))
}

fn millis(duration: std::time::Duration) -> u64 {
    crate::model::status::millis(duration)
}

fn names(ids: &[AgentId]) -> String {
    ids.iter().map(AgentId::as_str).collect::<Vec<_>>().join(" ")
}

/// Writes a command so that its words can be told apart.
fn words(command: &[String]) -> String {
    let is_bare = |word: &str| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "'\"\\$".contains(c));
    let word = |word: &String| if is_bare(word) { word.clone() } else { format!("{word:?}") };
    command.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn exit(exit: &ExitRecord) -> String {
    // What nobody saw end has no known length.
    let is_lost = exit.cause == Cause::Lost && exit.run_ms == 0;
    let mut text = if is_lost { exit.to_string() } else { format!("{exit}, after {}", duration(exit.run_ms)) };
    if exit.descendants > 0 {
        text += &format!(", {} descendants left behind", exit.descendants);
    }
    text
}

fn output(start: Offsets, end: Offsets) -> Option<String> {
    let stream = |name: &str, start: Option<u64>, end: Option<u64>| {
        let (start, end) = (start?, end?);
        let gone = if start > 0 { format!(" of {}", Bytes(end)) } else { String::new() };
        Some(format!("{name} {}{gone}", Bytes(end.saturating_sub(start))))
    };
    let streams = [stream("stdout", start.stdout, end.stdout), stream("stderr", start.stderr, end.stderr)];
    let text = streams.into_iter().flatten().collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then_some(text)
}

/// Writes limits as people write them.
pub(super) fn limits(limits: &Limits) -> Vec<String> {
    let text = |setting: &Setting| match setting {
        Setting::Bytes(bytes) => bytes.to_string(),
        other => other.to_string(),
    };
    limits.iter().map(|(knob, setting)| format!("{knob} = {}", text(setting))).collect()
}

/// Writes what a part of the herd uses, as names and values.
pub(super) fn usage(usage: &Usage) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let bytes = |bytes: u64| Bytes(bytes).to_string();
    add("CPU time", usage.cpu_usage_us.map(|us| duration(us / 1000)));
    add("throttled", usage.cpu_throttled.filter(|count| *count > 0).map(|count| format!("{count} periods")));
    let source = if usage.memory_source == MemorySource::Rss { " (sum of resident sets)" } else { "" };
    add("memory", usage.memory_current_bytes.map(|now| format!("{}{source}", bytes(now))));
    add("memory peak", usage.memory_peak_bytes.map(bytes));
    add("processes", usage.processes.map(|count| count.to_string()));
    add("tasks", usage.tasks.map(|count| count.to_string()));
    add("read", usage.io_read_bytes.map(bytes));
    add("written", usage.io_write_bytes.map(bytes));
    let pressure =
        [("CPU", usage.cpu_pressure_avg10), ("memory", usage.memory_pressure_avg10), ("I/O", usage.io_pressure_avg10)];
    let pressure: Vec<_> =
        pressure.iter().filter_map(|(name, share)| share.map(|share| format!("{name} {share:.1}%"))).collect();
    add("pressure", (!pressure.is_empty()).then(|| pressure.join(", ")));
    facts
}

/// Writes one line about each agent that a command was about.
pub(super) fn brief(agents: &[AgentStatus], screen: &mut Screen) -> std::io::Result<()> {
    for agent in agents {
        let state = screen.paint(state_style(agent.state), agent.state.name());
        let paused = match agent.paused {
            Paused::No => String::new(),
            paused if agent.state == State::Paused => format!(" ({})", paused.name()),
            paused => screen.paint(WARN, &format!(", paused ({})", paused.name())),
        };
        let exit = match &agent.exit {
            Some(exit) if agent.pid.is_none() => {
                let style = if exit.is_success() { GOOD } else { BAD };
                screen.paint(style, &format!(": {}", plain(&exit.to_string())))
            }
            _ => agent.pid.map_or(String::new(), |pid| format!(", pid {pid}")),
        };
        screen.line(&format!("{} {state}{paused}{exit}", screen.paint(BOLD, agent.id.as_str())))?;
    }
    Ok(())
}
