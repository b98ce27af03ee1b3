//! What happened, and what happens.

use std::process::ExitCode;

use super::args::{EventsArgs, Global};
use super::failure::{Done, Failure, note};
use super::link::connect;
use super::screen::{BOLD, DIM, Screen, clock};
use super::tell::{mark, sentence};
use crate::api::method::{Call, EventNote, EventQuery, Events};
use crate::model::error::{Code, Error};
use crate::model::event::{Event, Kind};

/// `events`
pub(super) fn events(global: &Global, args: EventsArgs, screen: &mut Screen) -> Done {
    let mut daemon = connect(global)?;
    let (agent, parent) = (args.agent, args.parent);
    let mut query = EventQuery { since: args.since, follow: args.follow, agent, parent, ..EventQuery::default() };
    if args.follow {
        daemon.call::<Events>(&Call::Events(query))?;
        return follow(|| daemon.note()?.read(), screen);
    }
    loop {
        let page: Events = daemon.call(&Call::Events(query.clone()))?;
        tell_lost(page.lost);
        for event in &page.events {
            show(event, screen)?;
        }
        // A page may hold nothing that is asked for and still be followed by one that does.
        if query.since.unwrap_or(0) >= page.last {
            return Ok(ExitCode::SUCCESS);
        }
        query.since = Some(page.last);
    }
}

/// Shows events until the daemon goes. If it said so before, that is an end like any other.
fn follow(mut next: impl FnMut() -> Result<EventNote, Error>, screen: &mut Screen) -> Done {
    let mut is_ending = false;
    loop {
        screen.flush()?;
        let note = match next() {
            Ok(note) => note,
            Err(error) if is_ending && error.code == Code::NoDaemon => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(Failure::Error(error)),
        };
        tell_lost(note.lost);
        if let Some(event) = &note.event {
            is_ending |= event.kind == Kind::HerdStopping;
            show(event, screen)?;
        }
    }
}

fn tell_lost(lost: u64) {
    if lost > 0 {
        note(&format!("{lost} events before the next one are not kept any more"));
    }
}

fn show(event: &Event, screen: &mut Screen) -> std::io::Result<()> {
    if screen.is_json {
        return screen.json(event);
    }
    let (mark, style) = mark(event.kind);
    let seq = screen.paint(DIM, &format!("{:>6}", event.seq));
    let kind = screen.paint(style, &format!("{mark} {:<22}", event.kind.name()));
    let agent = event.agent.as_ref().map_or("", |agent| agent.as_str());
    let run = event.run.filter(|run| run.0 > 1).map_or(String::new(), |run| format!("run {run}: "));
    let agent = screen.paint(BOLD, &format!("{agent:<16}"));
    let line = format!("{seq} {} {kind} {agent} {run}{}", clock(event.time), sentence(event));
    screen.line(line.trim_end().trim_end_matches(':'))
}
