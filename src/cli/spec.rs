//! The flags that describe an agent. Those for limits come from the one table of knobs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use serde::de::DeserializeOwned;

use crate::model::error::{Code, Error};
use crate::model::id::{AgentId, Level, Priority, SessionId};
use crate::model::limits::{Knob, Limits, Setting};
use crate::model::pressure::PressureRule;
use crate::model::ready::Ready;
use crate::model::rule::Rule;
use crate::model::spec::{
    Admission, AgentSpec, Children, IoClass, IoNice, OnMainExit, OnOom, Restart, RestartPolicy, Rlimit, RlimitPair,
    StopSignal, StopSignalTo, Strategy,
};
use crate::model::stall::StallRule;
use crate::model::stream::Output;
use crate::model::time::DurationText;
use crate::model::umask::Umask;
use crate::model::units::Bytes;

/// One flag for each knob: `--memory-max 512MiB`.
#[derive(Clone, Debug, Default)]
pub(super) struct LimitFlags(pub Limits);

impl Args for LimitFlags {
    fn augment_args(command: Command) -> Command {
        let flag = |knob: Knob| {
            Arg::new(knob.name())
                .long(knob.name().replace('_', "-"))
                .value_name("VALUE")
                .help(knob.help())
                .help_heading("Limits of the subtree")
                .value_parser(move |text: &str| knob.parse(text))
        };
        command.args(Knob::ALL.map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for LimitFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |knob: Knob| Some((knob, matches.get_one::<Setting>(knob.name())?.clone()));
        Ok(Self(Knob::ALL.into_iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What any agent has, a group too.
#[derive(Args, Debug)]
pub(super) struct GroupArgs {
    /// The agent's name: 1 to 63 of A-Z a-z 0-9 _ -
    #[arg(value_name = "ID")]
    id: AgentId,
    /// The agent above it
    #[arg(long, short, value_name = "ID")]
    parent: Option<AgentId>,
    /// The level that it should have: refused if its parent says otherwise
    #[arg(long, value_name = "N")]
    level: Option<u16>,
    /// An agent that it starts after: each start waits until that one is ready or has completed; may be repeated
    #[arg(long, value_name = "ID")]
    after: Vec<AgentId>,
    /// A word for what kind of agent it is
    #[arg(long = "type", value_name = "WORD")]
    kind: Option<String>,
    /// How urgent it is in the queue for admission, 0 to 10 [default: 5]
    #[arg(long, value_name = "N", value_parser = priority)]
    priority: Option<Priority>,
    /// The session it belongs to
    #[arg(long, value_name = "SESSION")]
    session: Option<SessionId>,
    /// Something it can do; may be repeated
    #[arg(long = "capability", value_name = "WORD")]
    capabilities: Vec<String>,
    /// Something to keep with it, a text or JSON; may be repeated
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// Wait for admission at a bound on the tree, instead of being refused
    #[arg(long)]
    queue: bool,
    /// How many agents may ever be spawned below it, restarts not counted [default: without bound]
    #[arg(long, value_name = "N")]
    spawn_budget: Option<u32>,
    #[command(flatten)]
    restart: RestartArgs,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    limits: LimitFlags,
}

/// What an agent with a command has besides.
#[derive(Args, Debug)]
pub(super) struct SpawnArgs {
    #[command(flatten)]
    group_args: GroupArgs,
    /// The working directory [default: /]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// An environment variable, besides PATH, HOME, USER and LANG; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// A variable to take over from the daemon's environment; may be repeated
    #[arg(long, value_name = "NAME")]
    inherit_env: Vec<String>,
    /// The user to run as
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The group to run as
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Delegate its cgroup to its user, who may make cgroups with limits below it
    #[arg(long)]
    delegate: bool,
    /// A file to read standard input from [default: /dev/null]
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,
    /// A resource limit of the main process, SOFT or SOFT:HARD; may be repeated
    #[arg(long = "rlimit", value_name = "NAME=VALUE", value_parser = rlimit)]
    rlimits: Vec<(Rlimit, RlimitPair)>,
    /// How readily the OOM killer chooses it, -1000 to 1000 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    oom_score_adj: Option<i16>,
    /// Its nice value, -20 to 19 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    nice: Option<i8>,
    /// Its I/O priority: realtime, best-effort or idle, and 0 (first) to 7
    #[arg(long, value_name = "CLASS[:LEVEL]", value_parser = ionice)]
    ionice: Option<IoNice>,
    /// The permissions that its new files do not get, in octal [default: 022]
    #[arg(long, value_name = "MASK")]
    umask: Option<Umask>,
    /// What its descendants' fate is when the main process has ended: terminate or wait [default: terminate]
    #[arg(long, value_name = "WHAT", value_parser = word::<OnMainExit>)]
    on_main_exit: Option<OnMainExit>,
    /// What an OOM kill of a process that is not the main one means: continue, kill or fail [default: continue]
    #[arg(long, value_name = "WHAT", value_parser = word::<OnOom>)]
    on_oom: Option<OnOom>,
    /// The polite signal [default: SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<StopSignal>,
    /// Which processes get the stop signal: all, or main for the main process alone [default: all]
    #[arg(long, value_name = "WHICH", value_parser = word::<StopSignalTo>)]
    stop_signal_to: Option<StopSignalTo>,
    /// How long a polite stop may take before the kill [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    grace: Option<Duration>,
    /// How long a run may last before it has failed [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    run_timeout: Option<Duration>,
    /// What is done when its subtree waits too long: 'RESOURCE [some|full] SHARE% [WINDOW] [STEPS]', as in 'memory some 15%
    /// 2s warn,pause,terminate'; may be repeated
    #[arg(long, value_name = "RULE")]
    pressure: Vec<PressureRule>,
    /// What is looked for in the lines of its output, told or a failure: `stderr:fail:^panic`; may be repeated
    #[arg(long = "rule", value_name = "[STREAM:][ACTION:]REGEX")]
    rules: Vec<Rule>,
    #[command(flatten)]
    health: HealthArgs,
    /// What its stdout and stderr are: pipe, file or null [default: pipe]
    #[arg(long, value_name = "WHAT", value_parser = word::<Output>)]
    output: Option<Output>,
    /// How much of each of its streams is kept [default: 16MiB]
    #[arg(long, value_name = "SIZE")]
    output_max: Option<Bytes>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How an agent shows that it is ready and that it lives.
#[derive(Args, Debug)]
#[command(next_help_heading = "Signs of life")]
struct HealthArgs {
    /// How it tells that it is ready: notify (READY=1), stdout:REGEX, stderr:REGEX, both:REGEX or fd:N (a newline) [default: it is when
    /// its program executes]
    #[arg(long, value_name = "HOW")]
    ready: Option<Ready>,
    /// The file that names the main process of a program which goes into the background; it is ready then
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// How long it may take to be ready before it has failed [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    ready_timeout: Option<Duration>,
    /// How often it has to send WATCHDOG=1, or else it has failed; 10ms at least [default: never]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    watchdog: Option<Duration>,
    /// For how long it may write no output and use no CPU before that is told, or is a failure: `fail:5m`; 1s at least [default:
    /// for ever]
    #[arg(long, value_name = "[ACTION:]TIME")]
    stall: Option<StallRule>,
}

/// When and how an agent is started again.
#[derive(Args, Debug)]
#[command(next_help_heading = "Restart")]
struct RestartArgs {
    /// When it is started again: never, on-failure or always [default: never]
    #[arg(long, value_name = "POLICY", value_parser = word::<RestartPolicy>)]
    restart: Option<RestartPolicy>,
    /// The first delay [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    restart_delay: Option<Duration>,
    /// The longest delay [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    restart_max_delay: Option<Duration>,
    /// By how much each delay is longer than the one before [default: 2]
    #[arg(long, value_name = "N")]
    restart_factor: Option<f64>,
    /// The part of a delay that chance decides, 0 to 1 [default: 0.1]
    #[arg(long, value_name = "N")]
    restart_jitter: Option<f64>,
    /// How long a run must last for the delay to begin anew [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    restart_healthy_after: Option<Duration>,
    /// How many restarts there may be in a period [default: 10]
    #[arg(long, value_name = "N")]
    restart_intensity: Option<u32>,
    /// The period in which restarts are counted [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    restart_period: Option<Duration>,
    /// Its parent ends when it ends for good: badly if it failed, in order if it completed
    #[arg(long)]
    significant: bool,
}

/// What an agent makes of its children's failures.
#[derive(Args, Debug)]
#[command(next_help_heading = "Children")]
struct ChildrenArgs {
    /// Who starts anew with a child that comes back: one-for-one, one-for-all or rest-for-one [default: one-for-one]
    #[arg(long, value_name = "STRATEGY", value_parser = word::<Strategy>)]
    strategy: Option<Strategy>,
    /// How many restarts of its children in a period it puts up with; at one more it fails itself [default: without bound]
    #[arg(long, value_name = "N")]
    child_intensity: Option<u32>,
    /// The period in which its children's restarts are counted [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = DurationText::parse)]
    child_period: Option<Duration>,
}

impl GroupArgs {
    /// Returns what is asked for.
    ///
    /// # Errors
    /// The first value out of its range.
    pub(super) fn into_spec(self) -> Result<AgentSpec, Error> {
        let spec = self.into_unchecked();
        spec.check()?;
        Ok(spec)
    }

    fn into_unchecked(self) -> AgentSpec {
        let json = |text: String| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
        let mut spec = AgentSpec::group(self.id);
        spec.parent = self.parent;
        spec.level = self.level.map(Level);
        spec.after = self.after.into_iter().collect();
        spec.kind = self.kind.unwrap_or(spec.kind);
        spec.priority = self.priority.unwrap_or_default();
        spec.session = self.session;
        spec.capabilities = self.capabilities;
        spec.metadata = self.metadata.into_iter().map(|(key, value)| (key, json(value))).collect();
        spec.limits = self.limits.0;
        spec.admission = if self.queue { Admission::Queue } else { Admission::Refuse };
        spec.spawn_budget = self.spawn_budget;
        spec.significant = self.restart.significant;
        spec.restart = self.restart.into_restart();
        spec.children = self.children.into_children();
        spec
    }
}

impl SpawnArgs {
    /// Returns what is asked for. Relative paths are this process's own.
    ///
    /// # Errors
    /// The first value out of its range.
    pub(super) fn into_spec(self) -> Result<AgentSpec, Error> {
        let mut spec = self.group_args.into_unchecked();
        spec.command = self.command;
        spec.cwd = self.cwd.as_deref().map(absolute).transpose()?;
        spec.env = self.env.into_iter().collect();
        spec.inherit_env = self.inherit_env;
        spec.user = self.user;
        spec.group = self.group;
        spec.delegate = self.delegate;
        spec.stdin = self.stdin.as_deref().map(absolute).transpose()?;
        spec.rlimits = self.rlimits.into_iter().collect();
        spec.oom_score_adj = self.oom_score_adj;
        spec.nice = self.nice;
        spec.ionice = self.ionice;
        spec.umask = self.umask;
        spec.on_main_exit = self.on_main_exit.unwrap_or_default();
        spec.on_oom = self.on_oom.unwrap_or_default();
        spec.stop_signal = self.stop_signal.unwrap_or_default();
        spec.stop_signal_to = self.stop_signal_to.unwrap_or_default();
        spec.grace = self.grace.unwrap_or(spec.grace);
        spec.run_timeout = self.run_timeout;
        spec.pressure = self.pressure;
        spec.rules = self.rules;
        spec.ready = self.health.ready;
        spec.pid_file = self.health.pid_file.as_deref().map(absolute).transpose()?;
        spec.ready_timeout = self.health.ready_timeout;
        spec.watchdog = self.health.watchdog;
        spec.stall = self.health.stall;
        spec.output = self.output.unwrap_or_default();
        spec.output_max = self.output_max.unwrap_or(spec.output_max);
        spec.check()?;
        Ok(spec)
    }
}

impl RestartArgs {
    fn into_restart(self) -> Restart {
        let default = Restart::default();
        Restart {
            policy: self.restart.unwrap_or(default.policy),
            delay: self.restart_delay.unwrap_or(default.delay),
            // Whoever asks for a long first delay need not ask for a longest one too.
            max_delay: self.restart_max_delay.unwrap_or(default.max_delay.max(self.restart_delay.unwrap_or_default())),
            factor: self.restart_factor.unwrap_or(default.factor),
            jitter: self.restart_jitter.unwrap_or(default.jitter),
            healthy_after: self.restart_healthy_after.unwrap_or(default.healthy_after),
            intensity: self.restart_intensity.unwrap_or(default.intensity),
            period: self.restart_period.unwrap_or(default.period),
        }
    }
}

impl ChildrenArgs {
    fn into_children(self) -> Children {
        let default = Children::default();
        Children {
            strategy: self.strategy.unwrap_or(default.strategy),
            intensity: self.child_intensity,
            period: self.child_period.unwrap_or(default.period),
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| Error::new(Code::BadValue, format!("{}: {error}", path.display())))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("it is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn priority(text: &str) -> Result<Priority, Error> {
    let wrong = || Error::new(Code::BadValue, "it is not a number").remedy("use 0 (least urgent) to 10 (most urgent)");
    text.parse::<u8>().map_err(|_| wrong()).and_then(Priority::try_from)
}

fn rlimit(text: &str) -> Result<(Rlimit, RlimitPair), String> {
    let (name, value) = key_value(text)?;
    Ok((word(&name)?, value.parse()?))
}

fn ionice(text: &str) -> Result<IoNice, String> {
    let (class, level) = text.split_once(':').unwrap_or((text, "0"));
    let class = word::<IoClass>(class)?;
    let wrong = || format!("level must be between 0 and 7 (got {level})");
    let level = level.parse().ok().filter(|level| *level <= 7).ok_or_else(wrong)?;
    Ok(IoNice { class, level })
}

/// Reads one of the words of an enumeration as requests and tree files spell them.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Verb};
    use super::*;

    fn spawn(words: &[&str]) -> AgentSpec {
        match Cli::try_parse_from([&["treeherd", "spawn"], words].concat()).map(|cli| cli.verb) {
            Ok(Verb::Spawn(args)) => args.into_spec().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn is_refused(words: &[&str]) -> bool {
        match Cli::try_parse_from([&["treeherd", "spawn"], words].concat()).map(|cli| cli.verb) {
            Ok(Verb::Spawn(args)) => args.into_spec().is_err(),
            Ok(other) => panic!("{other:?}"),
            Err(_) => true,
        }
    }

    #[test]
    fn without_flags_an_agent_is_what_the_library_makes() {
        assert_eq!(spawn(&["a", "--", "sleep", "1"]), AgentSpec::new("a".parse().unwrap(), ["sleep", "1"]));
    }

    #[test]
    fn every_limit_of_the_table_is_a_flag() {
        let spec = spawn(&["a", "--memory-max", "512MiB", "--pids-max=64", "--cpu-max", "150%", "--", "x"]);
        assert_eq!(spec.limits.to_string(), "memory_max=536870912 pids_max=64 cpu_max=150000 100000");
        for knob in Knob::ALL {
            let flag = format!("--{}", knob.name().replace('_', "-"));
            assert!(is_refused(&["a", &flag, "\u{1}", "--", "x"]), "{flag} reads its value");
        }
    }

    #[test]
    fn every_field_of_an_agent_has_a_flag() {
        let line = "a --parent p --level 1 --after db --type t --priority 9 --session s --capability c --meta k=v --meta n=7 \
                    --cwd /tmp --env A=B --inherit-env TERM --user nobody --group nogroup --stdin /etc/hosts \
                    --rlimit nofile=100:max --oom-score-adj -5 --nice -3 --ionice idle:7 --umask 077 --restart on-failure \
                    --restart-delay 2m --restart-factor 3 --restart-jitter 0 --restart-healthy-after 5s \
                    --restart-intensity 3 --restart-period 1m --significant --delegate --strategy rest-for-one \
                    --child-intensity 3 --child-period 5s --spawn-budget 9 --on-main-exit wait --on-oom fail --stop-signal INT --grace 250ms \
                    --run-timeout 9s --ready stderr:^up --ready-timeout 5s --watchdog 2s --stall fail:5m \
                    --rule stderr:fail:panic --output null --output-max 1MiB --queue --pids-max 9 -- sh -c --json";
        let spec = spawn(&line.split_whitespace().collect::<Vec<_>>());
        let plain = serde_json::to_value(AgentSpec::new("a".parse().unwrap(), ["x"])).unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        for (field, value) in json.as_object().unwrap() {
            assert!(field == "id" || plain.get(field) != Some(value), "{field} is not set");
        }
        let names = json.as_object().unwrap().len();
        assert_eq!(names, 40, "a field that no flag reaches, or a new one: {json:#}");
        assert_eq!(spec.command, ["sh", "-c", "--json"]);
        assert_eq!((spec.metadata["k"].as_str(), spec.metadata["n"].as_i64()), (Some("v"), Some(7)));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bad in [
            &["a", "--nice", "20"][..],
            &["a", "--priority", "11"],
            &["a", "--env", "=x"],
            &["a", "--ionice", "idle:8"],
            &["a", "--umask", "888"],
            &["a", "--rlimit", "files=1"],
            &["a", "--restart", "sometimes"],
            &["a", "--restart-factor", "0"],
            &["a", "--strategy", "all-for-one"],
            &["a", "--child-intensity", "10001"],
            &["a", "--child-period", "0s"],
            &["a", "--grace", "-1s"],
            &["a", "--ready", "stdin:x"],
            &["a", "--ready", "stdout:("],
            &["a", "--ready", "fd:2"],
            &["a", "--output", "socket"],
            &["a", "--watchdog", "9ms"],
            &["a", "--stall", "999ms"],
            &["a", "--stall", "kill:5m"],
            &["a", "--memory-max", "10XB"],
            &["../x"],
            &[""],
        ] {
            assert!(is_refused(&[bad, &["--", "x"]].concat()), "{bad:?}");
        }
        assert!(is_refused(&["a"]), "a spawn needs a command");
    }
}
