//! What can be asked: the command line, verb by verb.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::spec::{GroupArgs, SpawnArgs};
use super::target::{Narrowing, Speakers, Targets};
use crate::model::error::{Code, Error};
use crate::model::id::{AgentId, Level};
use crate::model::limits::Limits;
use crate::model::request::LimitScope;
use crate::model::time::DurationText;

const AFTER: &str =
    "Exit status: 0 done, 1 the thing asked about failed, 2 usage, 3 refused, 4 no such agent, 5 no daemon.";

/// Supervises trees of processes: limits, pauses, watches and ends an agent with everything it ever started.
#[derive(Debug, Parser)]
#[command(name = "treeherd", version, after_help = AFTER, max_term_width = 110, disable_help_subcommand = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb understands.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Global {
    /// The daemon's socket [env: TREEHERD_SOCKET] [default: /run/treeherd/treeherd.sock]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub socket: Option<PathBuf>,
    /// The daemon's state directory: its socket is DIR/treeherd.sock
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON, errors on stderr too
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// How a supervisor writes its log (on stderr)
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM", help_heading = "Global options")]
    pub log_format: LogFormat,
}

/// How a log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run one tree file in the foreground; Ctrl-C ends it, a second one at once
    Run(RunArgs),
    /// Be the supervisor behind a socket
    Daemon(DaemonArgs),
    /// Bring a running herd to a tree file: start, end and change what differs
    Apply(ApplyArgs),
    /// Find every mistake in a tree file
    Check(FileArgs),
    /// Tell what the herd is held to, and where each setting comes from
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Tell what this host offers, controller by controller
    Doctor(DoctorArgs),
    /// Start an agent
    Spawn(Box<SpawnArgs>),
    /// Make a group: an agent without a command, for its children
    Register(Box<GroupArgs>),
    /// List agents
    Ps(Narrowing),
    /// Draw the tree of agents
    Tree(MaybeAgent),
    /// Tell all of one agent
    Show(OneAgent),
    /// Tell why an agent is as it is, what it waits for, and what comes next
    Explain(OneAgent),
    /// Count: agents by level and state, ends by cause, detection latency, what the herd uses
    Stats(StatsArgs),
    /// Watch the herd: what each agent uses, what happens; and pause, resume, restart or end it by a key
    Top(TopArgs),
    /// Tell what happened
    Events(EventsArgs),
    /// Print what agents wrote
    Logs(LogsArgs),
    /// Freeze agents with all below them
    Pause(Targets),
    /// Let frozen agents go on
    Resume(Targets),
    /// End agents with all below them, and prove it
    Terminate(TerminateArgs),
    /// Change limits of living agents, of a level, or of the herd
    Limit(LimitArgs),
    /// End an agent's run and start the next
    Restart(OneAgent),
    /// Wait until agents have ended; status 0 if all completed
    Wait(WaitArgs),
    /// Forget ended agents, their records and their output
    Cleanup(Targets),
    /// End the herd and its daemon
    Shutdown(GraceArgs),
    /// Print what the socket takes and gives, and `--json` prints, as JSON Schema
    Schema(SchemaArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print a manual page: this program's, or a verb's
    Man(ManArgs),
}

#[derive(Args, Debug)]
pub(super) struct FileArgs {
    /// The tree file
    #[arg(value_name = "TREE.toml")]
    pub file: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct OneAgent {
    /// The agent
    #[arg(value_name = "ID")]
    pub id: AgentId,
}

#[derive(Args, Debug)]
pub(super) struct MaybeAgent {
    /// Only this agent and all below it
    #[arg(value_name = "ID")]
    pub id: Option<AgentId>,
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// A verb, as in `spawn`
    #[arg(value_name = "VERB")]
    pub verb: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Show every setting as it is now, with its file and line
    Show,
}

#[derive(Args, Debug)]
pub(super) struct ApplyArgs {
    /// The tree file
    #[arg(value_name = "TREE.toml")]
    pub file: PathBuf,
    /// Only print the plan
    #[arg(long)]
    pub dry_run: bool,
    /// The name under which the file owns what it declares [default: its own, without the suffix]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub grace: GraceArgs,
}

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// The tree file
    #[arg(value_name = "TREE.toml")]
    pub file: PathBuf,
    /// The root cgroup, below the cgroup2 mount [default: the one that systemd delegated to us, else treeherd-run-PID, within whatever limits
    /// this process]
    #[arg(long, value_name = "NAME")]
    pub cgroup: Option<String>,
    /// Show output only, no events and no summary
    #[arg(long, short)]
    pub quiet: bool,
    /// End the herd, as on SIGTERM, when the process that started this one has ended
    #[arg(long)]
    pub end_with_parent: bool,
}

#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    /// The root cgroup that a daemon would take [default: the one that systemd delegated to us, else treeherd, within whatever limits this
    /// process]
    #[arg(long, value_name = "NAME")]
    pub cgroup: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct DaemonArgs {
    /// The root cgroup, below the cgroup2 mount [default: the one that systemd delegated to us, else treeherd, within whatever limits this
    /// process]
    #[arg(long, value_name = "NAME")]
    pub cgroup: Option<String>,
    /// A file with the tables [herd] and [levels] of a tree file; the files in the directory beside it (config.d for
    /// config.toml) stand over it; read again on SIGHUP [default: /etc/treeherd/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How many levels the tree may have [default: 10]
    #[arg(long, value_name = "N")]
    pub max_levels: Option<u16>,
    /// How many agents a level may have, over all branches [default: 20]
    #[arg(long, value_name = "N")]
    pub max_agents_per_level: Option<u32>,
    /// How many children an agent may have [default: as many as a level]
    #[arg(long, value_name = "N")]
    pub max_children: Option<u32>,
    /// How many agents the herd may have [default: 10000]
    #[arg(long, value_name = "N")]
    pub max_agents: Option<u32>,
    /// How long ended agents stay [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    pub cleanup_retention: Option<Duration>,
    /// Keep ended agents until `cleanup`
    #[arg(long)]
    pub no_auto_cleanup: bool,
    /// Kill the herd when the daemon has ended without ending it: by a crash, SIGKILL or the OOM killer. Without this its agents live
    /// on, and the next daemon takes them over
    #[arg(long)]
    pub end_with_supervisor: bool,
}

#[derive(Args, Debug)]
pub(super) struct StatsArgs {
    /// What each agent uses, with all below it
    #[arg(long)]
    pub agents: bool,
}

#[derive(Args, Debug)]
pub(super) struct TopArgs {
    /// How often figures are read
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse, default_value = "1s")]
    pub interval: Duration,
}

#[derive(Args, Debug)]
pub(super) struct EventsArgs {
    /// Tell what happens, as it happens
    #[arg(long, short)]
    pub follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "SEQ")]
    pub since: Option<u64>,
    /// Only events of this agent
    #[arg(long, value_name = "ID")]
    pub agent: Option<AgentId>,
    /// Only events of the agents right below this one
    #[arg(long, value_name = "ID")]
    pub parent: Option<AgentId>,
}

#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    pub speakers: Speakers,
    /// Go on until the agent has ended; with several, and those of them that begin later, until the herd ends
    #[arg(long, short)]
    pub follow: bool,
    /// Only standard output: of one agent exactly its kept bytes
    #[arg(long, conflicts_with = "stderr")]
    pub stdout: bool,
    /// Only standard error: of one agent exactly its kept bytes
    #[arg(long)]
    pub stderr: bool,
    /// Only the last lines, of each stream
    #[arg(long, short = 'n', value_name = "N")]
    pub lines: Option<usize>,
}

#[derive(Args, Debug)]
pub(super) struct GraceArgs {
    /// How long the polite stop may take [default: each agent's own grace]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse, conflicts_with = "now")]
    grace: Option<Duration>,
    /// Kill at once
    #[arg(long)]
    now: bool,
}

impl GraceArgs {
    /// Returns the grace in the wire's milliseconds: 0 kills at once.
    pub(super) fn millis(&self) -> Option<u64> {
        if self.now { Some(0) } else { self.grace.map(crate::model::status::millis) }
    }
}

#[derive(Args, Debug)]
pub(super) struct TerminateArgs {
    #[command(flatten)]
    pub targets: Targets,
    #[command(flatten)]
    pub grace: GraceArgs,
}

#[derive(Args, Debug)]
pub(super) struct WaitArgs {
    /// The agents
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<AgentId>,
    /// How long to wait at most
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    pub timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub(super) struct SchemaArgs {
    /// Of a tree file instead: editors complete and check it by this
    #[arg(long)]
    pub tree: bool,
}

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(super) struct LimitArgs {
    /// The agent, unless a level or the herd is meant
    #[arg(value_name = "ID | NAME=VALUE", required = true)]
    words: Vec<String>,
    /// Every agent of a level that has no such limit of its own
    #[arg(long, value_name = "N", conflicts_with = "herd")]
    level: Option<u16>,
    /// With --level: all children of one parent together
    #[arg(long, requires = "level", conflicts_with = "total")]
    siblings: bool,
    /// With --level: the sum over all branches
    #[arg(long, requires = "level")]
    total: bool,
    /// The whole herd
    #[arg(long)]
    herd: bool,
}

impl LimitArgs {
    /// Returns whose limits are to be which.
    ///
    /// # Errors
    /// What is wrong with the words.
    pub(super) fn scope_and_limits(&self) -> Result<(LimitScope, Limits), Error> {
        let mut words = self.words.as_slice();
        let scope = match self.level.map(Level) {
            Some(level) if self.siblings => LimitScope::Siblings(level),
            Some(level) if self.total => LimitScope::Total(level),
            Some(level) => LimitScope::Each(level),
            None if self.herd => LimitScope::Herd,
            None => {
                let (id, rest) = words.split_first().filter(|(id, _)| !id.contains('=')).ok_or_else(|| {
                    Error::new(Code::BadValue, "it is not said whose limits to change")
                        .remedy("give an agent's ID first, or --level N, or --herd")
                })?;
                words = rest;
                LimitScope::Agent(id.parse()?)
            }
        };
        let mut limits = Limits::default();
        for word in words {
            limits.set_text(word)?;
        }
        if limits.is_empty() {
            return Err(Error::new(Code::BadValue, "no limit is given").remedy("as in memory_max=512MiB pids_max=64"));
        }
        Ok((scope, limits))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        let words = line.split_whitespace();
        Cli::try_parse_from(std::iter::once("treeherd").chain(words)).map(|cli| cli.verb)
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exactly_one_kind_of_address_is_needed() {
        for verb in ["pause", "resume", "terminate", "cleanup"] {
            for good in ["a b", "--level 2", "--session s", "--all"] {
                assert!(parse(&format!("{verb} {good}")).is_ok(), "{verb} {good}");
            }
            for bad in ["", "a --all", "--level 1 --session s", "--level x", "../x", "a --level 1"] {
                assert!(parse(&format!("{verb} {bad}")).is_err(), "{verb} {bad}");
            }
        }
    }

    #[test]
    fn a_grace_is_a_time_or_none_at_all() {
        let grace = |line: &str| match parse(line) {
            Ok(Verb::Terminate(args)) => args.grace.millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!(grace("terminate a"), None);
        assert_eq!(grace("terminate a --grace 1m"), Some(60_000));
        assert_eq!(grace("terminate --all --now"), Some(0));
        assert!(parse("terminate a --now --grace 1s").is_err());
    }

    #[test]
    fn limits_are_for_an_agent_a_level_or_the_herd() {
        let limit = |line: &str| match parse(line) {
            Ok(Verb::Limit(args)) => args.scope_and_limits(),
            other => panic!("{other:?}"),
        };
        let (scope, limits) = limit("limit a memory_max=1GiB pids.max=9").unwrap();
        assert_eq!((scope, limits.iter().count()), (LimitScope::Agent("a".parse().unwrap()), 2));
        assert_eq!(limit("limit --level 2 pids_max=9").unwrap().0, LimitScope::Each(Level(2)));
        assert_eq!(limit("limit --level 2 --total pids_max=9").unwrap().0, LimitScope::Total(Level(2)));
        assert_eq!(limit("limit --level 2 --siblings pids_max=9").unwrap().0, LimitScope::Siblings(Level(2)));
        assert_eq!(limit("limit --herd pids_max=9").unwrap().0, LimitScope::Herd);
        for bad in ["limit pids_max=9", "limit a", "limit a pids_max", "limit a pids_max=0", "limit ../x pids_max=1"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
        assert!(parse("limit a --total pids_max=1").is_err(), "a total is a level's");
    }
}
