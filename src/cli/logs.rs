//! What agents wrote: of one exactly or line by line, of many each line behind its agent's name.

use std::io;
use std::process::ExitCode;

use super::args::{Global, LogsArgs};
use super::failure::{Done, Failure, note};
use super::link::connect;
use super::screen::{BAD, DIM, PLAIN, Screen, clock};
use super::target::Whose;
use super::voices::Voices;
use crate::api::client::Client;
use crate::api::method::{
    Call, EventNote, EventQuery, Events, FollowQuery, LogQuery, Nothing, Offsets, Output, OutputNote, OutputPiece,
    Selection,
};
use crate::model::error::Code;
use crate::model::event::Kind;
use crate::model::id::Run;
use crate::model::status::AgentStatus;
use crate::model::stream::Stream;
use crate::output::{Colours, Line, Lines, Piece, escape};

/// `logs`
pub(super) fn logs(global: &Global, args: LogsArgs, screen: &mut Screen) -> Done {
    let mut daemon = connect(global)?;
    let stream = match (args.stdout, args.stderr) {
        (true, _) => Some(Stream::Stdout),
        (_, true) => Some(Stream::Stderr),
        _ => None,
    };
    let target = match args.speakers.whose() {
        Whose::Many(target) => target,
        Whose::One(id) => {
            let query = LogQuery { id, stream, from: None, lines: args.lines, follow: args.follow };
            let mut printer = Printer::new(stream, screen);
            if query.follow {
                follow(&mut daemon, query, &mut printer)?
            } else {
                pages(&mut daemon, query, |page| printer.show(page))?
            }
            printer.finish()?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let known = Selection { target: Some(target.clone()), parent: None };
    let known: Vec<AgentStatus> = daemon.call(&Call::Ps(known))?;
    let mut voices = Voices::new(known.iter().map(|agent| &agent.id));
    if args.follow {
        follow_many(&mut daemon, FollowQuery { target, stream, lines: args.lines }, &mut voices, screen)?;
    } else {
        for agent in known.into_iter().filter(|agent| agent.run > Run(0)) {
            let query = LogQuery { id: agent.id.clone(), stream, from: None, lines: args.lines, follow: false };
            match pages(&mut daemon, query, |page| voices.show(&agent.id, page, screen)) {
                // It is forgotten already, and with it what it wrote.
                Err(Failure::Error(error)) if error.code == Code::NoSuchAgent => {}
                other => other?,
            }
            voices.finish(&agent.id, screen)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads all that is kept of an agent's output.
fn pages(
    daemon: &mut Client,
    mut query: LogQuery,
    mut show: impl FnMut(&Output) -> io::Result<()>,
) -> Result<(), Failure> {
    loop {
        let page: Output = daemon.call(&Call::Logs(query.clone()))?;
        show(&page)?;
        if page.at_end {
            return Ok(());
        }
        query.lines = None;
        query.from = Some(page.next);
    }
}

/// Shows what many write until the daemon goes: if it said so before, that is an end like any other.
fn follow_many(
    daemon: &mut Client,
    query: FollowQuery,
    voices: &mut Voices,
    screen: &mut Screen,
) -> Result<(), Failure> {
    match daemon.call::<Events>(&Call::Events(EventQuery { follow: true, ..EventQuery::default() })) {
        // An agent is not told of the herd; it ends with it.
        Err(error) if error.code == Code::Forbidden => {}
        other => drop(other?),
    }
    daemon.call::<Nothing>(&Call::Follow(query))?;
    let mut is_ending = false;
    loop {
        if !daemon.has_more() {
            screen.flush()?;
        }
        let note = match daemon.note() {
            Ok(note) => note,
            Err(error) if is_ending && error.code == Code::NoDaemon => return Ok(voices.finish_all(screen)?),
            Err(error) => return Err(error.into()),
        };
        if note.method == "event" {
            let event = note.read::<EventNote>()?.event;
            is_ending |= event.is_some_and(|event| event.kind == Kind::HerdStopping);
            continue;
        }
        let note: OutputNote = note.read()?;
        voices.show(&note.id, &note.output, screen)?;
        if note.is_last {
            voices.finish(&note.id, screen)?;
        }
    }
}

fn follow(daemon: &mut Client, query: LogQuery, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let first: Output = daemon.call(&Call::Logs(query))?;
    printer.show(&first)?;
    loop {
        printer.screen.flush()?;
        let note: OutputNote = daemon.note()?.read()?;
        printer.show(&note.output)?;
        if note.is_last {
            return Ok(());
        }
    }
}

/// Writes output in the form that is asked for.
struct Printer<'s> {
    screen: &'s mut Screen,
    /// The only stream, whose bytes are written as they are.
    exact: Option<Stream>,
    lines: [Lines; 2],
}

impl<'s> Printer<'s> {
    fn new(exact: Option<Stream>, screen: &'s mut Screen) -> Self {
        Self { screen, exact, lines: [Lines::default(), Lines::default()] }
    }

    fn show(&mut self, output: &Output) -> io::Result<()> {
        tell_gone(output.gone);
        for piece in &output.pieces {
            if self.screen.is_json {
                self.screen.json(piece)?;
            } else if self.exact.is_some() {
                self.screen.bytes(&piece.data)?;
            } else {
                self.feed(piece)?;
            }
        }
        Ok(())
    }

    fn feed(&mut self, piece: &OutputPiece) -> io::Result<()> {
        let mut lines = Vec::new();
        self.lines[piece.stream as usize].feed(&cut(piece), |line| lines.push(line));
        lines.iter().try_for_each(|line| write(piece.stream, line, self.screen))
    }

    /// Writes what has no newline yet, at the end.
    fn finish(&mut self) -> io::Result<()> {
        for stream in Stream::ALL {
            let mut last = Vec::new();
            self.lines[stream as usize].finish(|line| last.push(line));
            last.iter().try_for_each(|line| write(stream, line, self.screen))?;
        }
        Ok(())
    }
}

/// Turns the wire's piece into the one that is cut into lines.
pub(super) fn cut(piece: &OutputPiece) -> Piece {
    Piece { stream: piece.stream, offset: piece.offset, time: piece.time, bytes: piece.data.clone() }
}

fn write(stream: Stream, line: &Line, screen: &mut Screen) -> io::Result<()> {
    let colours = if screen.is_coloured { Colours::Kept } else { Colours::Escaped };
    let time = line.time.map_or("            ".to_owned(), clock);
    let name = screen.paint(if stream == Stream::Stderr { BAD } else { PLAIN }, stream.as_str());
    let text = format!("{} {name} {}", screen.paint(DIM, &time), escape(&line.bytes, colours));
    screen.line(&text)
}

/// Tells what a reader asked for and cannot have any more.
pub(super) fn tell_gone(gone: Offsets) {
    for (stream, gone) in [(Stream::Stdout, gone.stdout), (Stream::Stderr, gone.stderr)] {
        if let Some(gone) = gone.filter(|gone| *gone > 0) {
            note(&format!("{gone} bytes of {stream} are gone"));
        }
    }
}
