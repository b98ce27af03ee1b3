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

mod ahead;
mod apply;
mod args;
mod change;
mod check;
mod config;
mod doctor;
mod draw;
mod events;
mod failure;
mod init;
mod link;
mod list;
mod log;
mod logs;
mod printer;
mod run;
mod schema;
mod screen;
mod serve;
mod spec;
mod stats;
mod target;
mod tell;
mod top;
mod voices;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::model::error::{Code, Error};
use args::{Cli, ConfigVerb, Verb};
use failure::{Done, Failure};
use screen::Screen;

/// Reads the command line, does what it says, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    if init::is_init() && matches!(cli.verb, Verb::Run(_) | Verb::Daemon(_)) {
        return init::run();
    }
    let is_json = cli.global.json;
    let mut screen = Screen::stdout(is_json);
    let done = dispatch(cli, &mut screen);
    let code = match (done, screen.flush()) {
        // That nobody reads any more changes nothing about how it ended.
        (Ok(code), Err(error)) if error.kind() == ErrorKind::BrokenPipe => code,
        (Ok(_), Err(error)) => Failure::Stdout(error).report(is_json),
        (Ok(code), Ok(())) => code,
        (Err(failure), _) => failure.report(is_json),
    };
    log::finish();
    code
}

fn dispatch(cli: Cli, screen: &mut Screen) -> Done {
    let global = &cli.global;
    match cli.verb {
        Verb::Run(args) => run::run(global, args, screen),
        Verb::Daemon(args) => serve::daemon(global, args),
        Verb::Apply(args) => apply::apply(global, &args, screen),
        Verb::Config(ConfigVerb::Show) => config::show(global, screen),
        Verb::Check(args) => check::check(&args.file, screen),
        Verb::Doctor(args) => doctor::doctor(global, args, screen),
        Verb::Spawn(args) => change::spawn(global, args.into_spec()?, screen),
        Verb::Register(args) => change::spawn(global, args.into_spec()?, screen),
        Verb::Ps(args) => list::ps(global, args, screen),
        Verb::Tree(args) => draw::tree(global, args.id.as_ref(), screen),
        Verb::Show(args) => list::show(global, args.id, screen),
        Verb::Explain(args) => list::explain(global, args.id, screen),
        Verb::Stats(args) => stats::stats(global, &args, screen),
        Verb::Top(args) => top::top(global, &args, screen),
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
        Verb::Schema(args) => schema::schema(&args, screen),
        Verb::Completions(args) => completions(args.shell, screen),
        Verb::Man(args) => man(args.verb.as_deref(), screen),
    }
}

fn completions(shell: clap_complete::Shell, screen: &mut Screen) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "treeherd", &mut script);
    screen.bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn man(verb: Option<&str>, screen: &mut Screen) -> Done {
    let mut program = Cli::command();
    // What every verb understands is in every verb's page.
    program.build();
    let command = match verb {
        None => program,
        Some(verb) => {
            let found = program.find_subcommand(verb).cloned();
            let none = || Error::new(Code::UnknownMethod, format!("no verb is called {verb:?}"));
            let found = found.ok_or_else(|| none().remedy("`treeherd --help` lists all"))?;
            found.display_name(format!("treeherd-{verb}"))
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    screen.bytes(&page)?;
    Ok(ExitCode::SUCCESS)
}
