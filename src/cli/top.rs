//! `top`: the herd as it is now, and keys for whoever has to act on it.
//!
//! ```text
//! keys ──────────────┐
//! stats and ps, once an interval ──► View ──draw──► terminal
//! events, answers (each on a thread and a connection of its own) ──┘
//! ```
//!
//! A request runs beside the screen, which never waits for a grace. Figures are those of subtrees: a parent's contain its
//! children's. The kernel's files are read once an interval, and only as long as somebody looks.

mod draw;
mod keys;
mod view;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Terminal, KeyEventKind};
use serde_json::Value;

use self::keys::Wish;
use self::view::{Figures, View};
use super::args::{Global, TopArgs};
use super::failure::Done;
use super::link::connect;
use super::screen::Screen;
use crate::api::client::Client;
use crate::api::method::{Call, EventNote, EventQuery, Events, Hello, Nothing, Selection, StatsQuery};
use crate::model::error::{Code, Error};
use crate::model::event::Event;

/// What comes in beside keys and figures.
enum News {
    Happened(Box<Event>),
    Answered(String),
}

/// `top`
pub(super) fn top(global: &Global, args: &TopArgs, screen: &Screen) -> Done {
    if screen.is_json || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let error = Error::new(Code::BadValue, "top: it draws on a terminal, and here is none");
        return Err(error.remedy("programs read `treeherd stats --agents --json`").into());
    }
    let mut daemon = connect(global)?;
    let hello: Hello = daemon.call(&Call::Hello(Nothing {}))?;
    let mut view = View::new(hello.cgroup, screen.is_coloured);
    view.take(look(&mut daemon)?);
    let (tell, news) = channel();
    follow(global, tell.clone())?;
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(&mut terminal, &mut view, &mut daemon, args.interval, &news, |call| {
        ask(global.clone(), call, tell.clone());
    });
    ratatui::restore();
    outcome
}

/// Shows and obeys until somebody has seen enough.
fn watch(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    daemon: &mut Client,
    interval: Duration,
    news: &Receiver<News>,
    ask: impl Fn(Call),
) -> Done {
    let mut due = Instant::now() + interval;
    loop {
        for news in news.try_iter() {
            match news {
                News::Happened(event) => view.hear(&event),
                News::Answered(text) => view.note = Some(text),
            }
        }
        terminal.draw(|frame| draw::draw(frame, view))?;
        if event::poll(due.saturating_duration_since(Instant::now()))? {
            let wish = match event::read()? {
                Terminal::Key(key) if key.kind != KeyEventKind::Release => view.press(key),
                _ => None,
            };
            match wish {
                Some(Wish::Leave) => return Ok(ExitCode::SUCCESS),
                Some(Wish::Ask(call)) => ask(*call),
                None => {}
            }
        }
        if Instant::now() >= due {
            view.take(look(daemon)?);
            due = Instant::now() + interval;
        }
    }
}

fn look(daemon: &mut Client) -> Result<Figures, Error> {
    let stats = daemon.call(&Call::Stats(StatsQuery { agents: true }))?;
    let agents = daemon.call(&Call::Ps(Selection::default()))?;
    Ok(Figures { stats, agents, at: Instant::now() })
}

/// Asks for something, and tells how that went.
fn ask(global: Global, call: Call, tell: Sender<News>) {
    std::thread::spawn(move || {
        let answer = connect(&global).and_then(|mut client| client.call::<Value>(&call));
        let text = match answer {
            Ok(_) => format!("{}: done", call.method()),
            Err(error) => error.to_string(),
        };
        // Nobody listens any more: then nobody wants to know.
        drop(tell.send(News::Answered(text)));
    });
}

/// Tells what happens from now on.
fn follow(global: &Global, tell: Sender<News>) -> Result<(), Error> {
    let mut client = connect(global)?;
    client.call::<Events>(&Call::Events(EventQuery { follow: true, ..EventQuery::default() }))?;
    std::thread::spawn(move || {
        while let Ok(note) = client.note() {
            let Ok(EventNote { event: Some(event), .. }) = note.read() else { continue };
            if tell.send(News::Happened(Box::new(event))).is_err() {
                return;
            }
        }
    });
    Ok(())
}
