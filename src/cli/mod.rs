//! THE FACE. The command line: what is asked for, asked of a daemon, and shown.
//!
//! ```text
//! argv ──args──► Verb ──[one function for each]──► Client ──► daemon
//!                                 │
//!                                 └──► Screen: tables, trees, lines for people; JSON for programs
//! ```
//!
//! Exit status: 0 done; 1 the thing asked about failed; 2 usage; 3 refused; 4 no such agent; 5 no daemon.
//! What is asked for goes to stdout, everything about the asking to stderr. Whatever an agent may have made (its output,
//! its command, messages that quote it) is escaped before a terminal sees it. Nothing here polls.

mod args;
mod change;
mod check;
mod doctor;
mod draw;
mod events;
mod failure;
mod link;
mod list;
mod logs;
mod run;
mod screen;
mod serve;
mod spec;
mod stats;
mod target;
mod tell;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Verb};
use failure::{Done, Failure};
use screen::Screen;

/// Reads the command line, does what it says, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    let is_json = cli.global.json;
    let mut screen = Screen::stdout(is_json);
    let done = dispatch(cli, &mut screen);
    match (done, screen.flush()) {
        // That nobody reads any more changes nothing about how it ended.
        (Ok(code), Err(error)) if error.kind() == ErrorKind::BrokenPipe => code,
        (Ok(_), Err(error)) => Failure::Stdout(error).report(is_json),
        (Ok(code), Ok(())) => code,
        (Err(failure), _) => failure.report(is_json),
    }
}

fn dispatch(cli: Cli, screen: &mut Screen) -> Done {
    let global = &cli.global;
    match cli.verb {
        Verb::Run(args) => run::run(global, args, screen),
        Verb::Daemon(args) => serve::daemon(global, args),
        Verb::Check(args) => check::check(&args.file, screen),
        Verb::Doctor(args) => doctor::doctor(global, args, screen),
        Verb::Spawn(args) => change::spawn(global, args.into_spec()?, screen),
        Verb::Register(args) => change::spawn(global, args.into_spec()?, screen),
        Verb::Ps(args) => list::ps(global, args, screen),
        Verb::Tree(args) => draw::tree(global, args.id.as_ref(), screen),
        Verb::Show(args) => list::show(global, args.id, screen),
        Verb::Explain(args) => list::explain(global, args.id, screen),
        Verb::Stats => stats::stats(global, screen),
        Verb::Events(args) => events::events(global, args, screen),
        Verb::Logs(args) => logs::logs(global, args, screen),
        Verb::Pause(targets) => change::pause(global, targets.target(), screen),
        Verb::Resume(targets) => change::resume(global, targets.target(), screen),
        Verb::Terminate(args) => change::terminate(global, args, screen),
        Verb::Limit(args) => change::limit(global, args, screen),
        Verb::Restart(args) => change::restart(global, args.id, screen),
        Verb::Wait(args) => change::wait(global, args, screen),
        Verb::Cleanup(targets) => change::cleanup(global, targets.target(), screen),
        Verb::Shutdown(args) => change::shutdown(global, args, screen),
        Verb::Completions(args) => completions(args.shell, screen),
    }
}

fn completions(shell: clap_complete::Shell, screen: &mut Screen) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "treeherd", &mut script);
    screen.bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
