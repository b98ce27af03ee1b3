//! Counts over the herd.

use std::fmt::Display;
use std::process::ExitCode;

use super::args::Global;
use super::failure::Done;
use super::link::connect;
use super::list::usage;
use super::screen::{DIM, Screen, duration};
use crate::api::method::{Call, Latency, Nothing, Stats};
use crate::model::units::Bytes;

/// `stats`
pub(super) fn stats(global: &Global, screen: &mut Screen) -> Done {
    let stats: Stats = connect(global)?.call(&Call::Stats(Nothing {}))?;
    if screen.is_json {
        screen.json(&stats)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in facts(&stats) {
        let name = screen.paint(DIM, &format!("{name:<12}"));
        screen.line(&format!("{name} {value}"))?;
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
        ("rule lines", stats.rule_lines.to_string()),
    ];
    facts.extend(stats.detection_by_cause.iter().map(|(cause, of)| ("", format!("{cause}: {}", latency(of)))));
    facts.extend([
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

fn counts<'a, K: Display + 'a>(counts: impl Iterator<Item = (&'a K, &'a u64)>) -> String {
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
