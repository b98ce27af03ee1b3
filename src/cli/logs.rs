//! What an agent wrote: exactly, or line by line.

use std::io;
use std::process::ExitCode;

use super::args::{Global, LogsArgs};
use super::failure::{Done, note};
use super::link::connect;
use super::screen::{BAD, DIM, PLAIN, Screen, clock};
use crate::api::client::Client;
use crate::api::method::{Call, LogQuery, Offsets, Output, OutputNote, OutputPiece};
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
    let query = LogQuery { id: args.id, stream, from: None, lines: args.lines, follow: args.follow };
    let mut printer = Printer::new(stream, screen);
    if query.follow {
        follow(&mut daemon, query, &mut printer)?
    } else {
        page(&mut daemon, query, &mut printer)?
    }
    printer.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn page(daemon: &mut Client, mut query: LogQuery, printer: &mut Printer<'_>) -> Result<(), super::failure::Failure> {
    loop {
        let page: Output = daemon.call(&Call::Logs(query.clone()))?;
        printer.show(&page)?;
        if page.at_end {
            return Ok(());
        }
        query.lines = None;
        query.from = Some(page.next);
    }
}

fn follow(daemon: &mut Client, query: LogQuery, printer: &mut Printer<'_>) -> Result<(), super::failure::Failure> {
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
