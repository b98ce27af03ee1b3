//! Counts over the herd.

use std::fmt::Display;
use std::process::ExitCode;

use super::args::{Global, StatsArgs};
use super::failure::Done;
use super::link::connect;
use super::list::usage;
use super::screen::{BOLD, Cell, DIM, Screen, duration, or_dash};
use crate::api::method::{Call, Latency, Stats, StatsQuery};
use crate::model::units::Bytes;

/// `stats`
pub(super) fn stats(global: &Global, args: &StatsArgs, screen: &mut Screen) -> Done {
    let stats: Stats = connect(global)?.call(&Call::Stats(StatsQuery { agents: args.agents }))?;
    if screen.is_json {
        screen.json(&stats)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in facts(&stats) {
        let name = screen.paint(DIM, &format!("{name:<12}"));
        screen.line(&format!("{name} {value}"))?;
    }
    if args.agents {
        agents(&stats, screen)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn facts(stats: &Stats) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("agents", stats.agents.to_string()),
        ("by level", counts(stats.levels.iter())),
        ("by state", counts(stats.states.iter())),
        ("ends", counts(stats.causes.iter())),
        ("detection", latency(&stats.detection)),
    ];
    facts.extend(stats.detection_by_cause.iter().map(|(cause, of)| ("", format!("{cause}: {}", latency(of)))));
    facts.extend([
        ("rule lines", stats.rule_lines.to_string()),
        ("limits hit", counts(stats.limit_hits.iter())),
        ("clients", stats.clients.to_string()),
        ("last event", stats.last_event.to_string()),
        ("uptime", duration(stats.uptime_ms)),
    ]);
    if stats.notes_refused > 0 {
        facts.push(("not heard", format!("{} messages to the notify socket", stats.notes_refused)));
    }
    facts.extend(stats.usage.iter().flat_map(usage));
    for (level, usage) in &stats.usage_by_level {
        let cpu = usage.cpu_usage_us.map(|us| format!("CPU time {}", duration(us / 1000)));
        let memory = usage.memory_current_bytes.map(|bytes| format!("memory {}", Bytes(bytes)));
        let processes = usage.processes.map(|count| format!("{count} processes"));
        let parts: Vec<_> = [cpu, memory, processes].into_iter().flatten().collect();
        facts.push(("level", format!("{level}: {}", parts.join(", "))));
    }
    facts
}

/// Writes what each agent uses as a table.
fn agents(stats: &Stats, screen: &mut Screen) -> std::io::Result<()> {
    let rows = stats.usage_by_agent.iter().map(|(id, usage)| {
        let bytes = |bytes: Option<u64>| Cell::number(or_dash(bytes.map(Bytes)));
        vec![
            Cell::new(id.as_str()).style(BOLD),
            Cell::number(or_dash(usage.cpu_usage_us.map(|us| duration(us / 1000)))),
            bytes(usage.memory_current_bytes),
            bytes(usage.memory_peak_bytes),
            Cell::number(or_dash(usage.processes)),
            bytes(usage.io_read_bytes),
            bytes(usage.io_write_bytes),
        ]
    });
    screen.line("")?;
    screen.table(&["AGENT", "CPU TIME", "MEMORY", "PEAK", "PROCESSES", "READ", "WRITTEN"], &rows.collect::<Vec<_>>())
}

pub(super) fn counts<'a, K: Display + 'a>(counts: impl Iterator<Item = (&'a K, &'a u64)>) -> String {
    let parts: Vec<_> =
        counts.filter(|(_, count)| **count > 0).map(|(name, count)| format!("{name}: {count}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn latency(latency: &Latency) -> String {
    if latency.count == 0 {
        return "none was measured yet".to_owned();
    }
    format!(
        "{} measured, half within {} µs, 99% within {} µs, all within {} µs, {} late",
        latency.count, latency.p50_us, latency.p99_us, latency.max_us, latency.late
    )
}
