//! What an agent may give to the agents that it starts: at most what it has itself.
//!
//! [`inherit`] fills what a wish leaves open with what the asker has, [`is_within`] refuses a wish for more. Both compare
//! specifications, and so what the supervisor gave; what the asker's process has done to itself since is not asked.
//! Limits and `spawn_budget` are not compared here: they hold along the tree, for everybody.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::spec::{AgentSpec, IoClass, IoNice, Rlimit};
use super::stream::Output;
use super::units::Max;

/// How many characters of a value a refusal shows: it is an event, and the asker chooses the value.
const VALUE_MAX: usize = 80;

/// What agents have that ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    /// The supervisor's user.
    pub uid: u32,
    /// The hard resource limits, as far as they are known.
    pub rlimits: BTreeMap<Rlimit, Max<u64>>,
}

/// A wish for more than the asker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wider {
    /// The field of the specification.
    pub field: String,
    /// What is wished for.
    pub wish: String,
    /// What the asker has.
    pub has: String,
}

impl Wider {
    fn new(field: impl Into<String>, wish: impl Display, has: impl Display) -> Self {
        let shown = |value: String| match value.char_indices().nth(VALUE_MAX) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value,
        };
        Self { field: field.into(), wish: shown(wish.to_string()), has: shown(has.to_string()) }
    }
}

/// Returns the specification as which an agent asks, if the process that asks has another user than the supervisor gave it:
/// one that gave up root asks as what it has become.
#[must_use]
pub fn as_user(asker: &AgentSpec, uid: u32, gid: u32, baseline: &Baseline) -> AgentSpec {
    let mut asker = asker.clone();
    if may_take_any_user(&asker) && uid != baseline.uid {
        (asker.user, asker.group) = (Some(uid.to_string()), Some(gid.to_string()));
    }
    asker
}

/// Says whether it runs as the supervisor's user. If that is root it can take any user itself; if not, the kernel lets the
/// supervisor give none but its own.
fn may_take_any_user(asker: &AgentSpec) -> bool {
    matches!(asker.user.as_deref(), None | Some("root" | "0"))
}

/// Fills what a wish leaves open with what the asker has.
pub fn inherit(child: &mut AgentSpec, asker: &AgentSpec) {
    if child.user.is_none() {
        child.user.clone_from(&asker.user);
    }
    if child.group.is_none() && child.user == asker.user {
        child.group.clone_from(&asker.group);
    }
    child.nice = child.nice.or(asker.nice);
    child.ionice = child.ionice.or(asker.ionice);
    child.umask = child.umask.or(asker.umask);
    child.oom_score_adj = child.oom_score_adj.or(asker.oom_score_adj);
    for (name, pair) in &asker.rlimits {
        child.rlimits.entry(*name).or_insert(*pair);
    }
    if child.session.is_none() {
        child.session.clone_from(&asker.session);
    }
    // These have a default that looks like a wish.
    let open = AgentSpec::group(child.id.clone());
    if child.priority == open.priority {
        child.priority = open.priority.min(asker.priority);
    }
    if child.grace == open.grace {
        child.grace = open.grace.min(asker.grace);
    }
}

/// Says whether a wish, its open fields filled by [`inherit`], is within what the asker has.
///
/// # Errors
/// The first field that is wider, with both values.
pub fn is_within(child: &AgentSpec, asker: &AgentSpec, baseline: &Baseline) -> Result<(), Wider> {
    // Each field by name: whoever adds one decides here whether it has to be compared.
    let AgentSpec {
        user,
        group,
        inherit_env,
        session,
        priority,
        nice,
        ionice,
        oom_score_adj,
        rlimits,
        grace,
        output,
        delegate,
        // Where it stands, and how it is called: decided by what is below the asker.
        id: _,
        parent: _,
        level: _,
        after: _,
        declared_by: _,
        // Compared along the tree, for everybody.
        limits: _,
        spawn_budget: _,
        // Opened and executed with the identity above.
        command: _,
        cwd: _,
        stdin: _,
        // Read with the identity above; it can name processes of the run only.
        pid_file: _,
        env: _,
        // Every process may set its own.
        umask: _,
        // Words.
        kind: _,
        capabilities: _,
        metadata: _,
        // About its own runs, its own output, and the agents below it.
        restart: _,
        children: _,
        significant: _,
        on_main_exit: _,
        stop_signal: _,
        stop_signal_to: _,
        run_timeout: _,
        pressure: _,
        rules: _,
        ready: _,
        ready_timeout: _,
        watchdog: _,
        stall: _,
        on_oom: _,
        output_max: _,
        admission: _,
    } = child;
    if !may_take_any_user(asker) {
        let or_own = |group: &Option<String>| group.clone().unwrap_or_else(|| "those of its user".to_owned());
        if *user != asker.user {
            let shown = |user: &Option<String>| user.clone().unwrap_or_else(|| "the supervisor's".to_owned());
            return Err(Wider::new("user", shown(user), shown(&asker.user)));
        }
        if *group != asker.group {
            return Err(Wider::new("group", or_own(group), or_own(&asker.group)));
        }
    }
    if *delegate && !asker.delegate {
        return Err(Wider::new("delegate", true, false));
    }
    if !inherit_env.is_empty() {
        let has = "nothing of the supervisor's environment";
        return Err(Wider::new("inherit_env", inherit_env.join(","), has));
    }
    if *session != asker.session {
        let shown = |session: &Option<_>| session.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        return Err(Wider::new("session", shown(session), shown(&asker.session)));
    }
    if *priority > asker.priority {
        return Err(Wider::new("priority", u8::from(*priority), u8::from(asker.priority)));
    }
    if *grace > asker.grace {
        let shown = |grace| humantime::format_duration(grace).to_string();
        return Err(Wider::new("grace", shown(*grace), shown(asker.grace)));
    }
    let nice_of = |nice: Option<i8>| nice.unwrap_or(0);
    if nice_of(*nice) < nice_of(asker.nice) {
        return Err(Wider::new("nice", nice_of(*nice), nice_of(asker.nice)));
    }
    let urgency = |ionice: Option<IoNice>, nice| ionice.unwrap_or_else(|| default_ionice(nice_of(nice)));
    let (wish, has) = (urgency(*ionice, *nice), urgency(asker.ionice, asker.nice));
    if io_rank(wish) < io_rank(has) {
        return Err(Wider::new("ionice", shown_ionice(wish), shown_ionice(has)));
    }
    let adj_of = |adj: Option<i16>| adj.unwrap_or(0);
    if adj_of(*oom_score_adj) < adj_of(asker.oom_score_adj) {
        return Err(Wider::new("oom_score_adj", adj_of(*oom_score_adj), adj_of(asker.oom_score_adj)));
    }
    for (name, wish) in rlimits {
        let has = asker.rlimits.get(name).map(|pair| pair.hard).or_else(|| baseline.rlimits.get(name).copied());
        if let Some(has) = has.filter(|has| wish.hard.is_wider_than(has)) {
            return Err(Wider::new(format!("rlimits.{name} (hard)"), wish.hard, has));
        }
    }
    // Whoever has the file itself can have it take up disk beyond `output_max`; pipes and nothing are anybody's.
    if *output == Output::File && asker.output != Output::File {
        return Err(Wider::new("output", output.name(), asker.output.name()));
    }
    Ok(())
}

/// Returns the I/O priority of a process that was given none: ioprio_set(2).
fn default_ionice(nice: i8) -> IoNice {
    IoNice { class: IoClass::BestEffort, level: ((nice + 20) / 5).unsigned_abs() }
}

/// Returns a number that is smaller the earlier it is served.
fn io_rank(ionice: IoNice) -> u8 {
    match ionice.class {
        IoClass::Realtime => ionice.level,
        IoClass::BestEffort => 8 + ionice.level,
        IoClass::Idle => 16,
    }
}

fn shown_ionice(ionice: IoNice) -> String {
    match ionice.class {
        IoClass::Realtime => format!("realtime {}", ionice.level),
        IoClass::BestEffort => format!("best-effort {}", ionice.level),
        IoClass::Idle => "idle".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::id::Priority;

    type Change = fn(&mut AgentSpec);

    fn spec(change: Change) -> AgentSpec {
        let mut spec = AgentSpec::new("a".parse().unwrap(), ["true"]);
        change(&mut spec);
        spec
    }

    fn baseline() -> Baseline {
        Baseline { uid: 0, rlimits: [(Rlimit::Nofile, Max::Value(4096))].into() }
    }

    /// Asks as an agent for a child; returns the wider field, with both values.
    fn asked(asker: Change, child: Change) -> Option<(String, String, String)> {
        let (asker, mut child) = (spec(asker), spec(child));
        inherit(&mut child, &asker);
        is_within(&child, &asker, &baseline()).err().map(|wider| (wider.field, wider.wish, wider.has))
    }

    fn limit(spec: &mut AgentSpec, name: Rlimit, text: &str) {
        spec.rlimits.insert(name, text.parse().unwrap());
    }

    fn nobody(spec: &mut AgentSpec) {
        (spec.user, spec.group) = (Some("nobody".into()), Some("4".into()));
        (spec.nice, spec.oom_score_adj) = (Some(5), Some(100));
        spec.ionice = Some(IoNice { class: IoClass::BestEffort, level: 6 });
        limit(spec, Rlimit::Core, "0:10");
        spec.session = Some("s".parse().unwrap());
        spec.priority = Priority::try_from(3).unwrap();
        spec.grace = Duration::from_secs(2);
    }

    #[test]
    fn each_field_that_is_wider_by_one_is_refused_with_both_values() {
        let table: [(Change, &str, &str, &str); 19] = [
            (|it| it.user = Some("root".into()), "user", "root", "nobody"),
            (|it| it.user = Some("65534".into()), "user", "65534", "nobody"),
            (|it| it.group = Some("0".into()), "group", "0", "4"),
            (
                |it| it.inherit_env = vec!["PATH".into()],
                "inherit_env",
                "PATH",
                "nothing of the supervisor's environment",
            ),
            (|it| it.session = Some("t".parse().unwrap()), "session", "t", "s"),
            (|it| it.priority = Priority::try_from(4).unwrap(), "priority", "4", "3"),
            (|it| it.priority = Priority::try_from(10).unwrap(), "priority", "10", "3"),
            (|it| it.grace = Duration::from_secs(3), "grace", "3s", "2s"),
            (|it| it.nice = Some(4), "nice", "4", "5"),
            (|it| it.nice = Some(-20), "nice", "-20", "5"),
            (
                |it| it.ionice = Some(IoNice { class: IoClass::BestEffort, level: 5 }),
                "ionice",
                "best-effort 5",
                "best-effort 6",
            ),
            (
                |it| it.ionice = Some(IoNice { class: IoClass::Realtime, level: 7 }),
                "ionice",
                "realtime 7",
                "best-effort 6",
            ),
            (|it| it.oom_score_adj = Some(99), "oom_score_adj", "99", "100"),
            (|it| it.oom_score_adj = Some(-1000), "oom_score_adj", "-1000", "100"),
            (|it| limit(it, Rlimit::Core, "0:11"), "rlimits.core (hard)", "11", "10"),
            (|it| limit(it, Rlimit::Nofile, "0:4097"), "rlimits.nofile (hard)", "4097", "4096"),
            (|it| limit(it, Rlimit::Nofile, "max"), "rlimits.nofile (hard)", "max", "4096"),
            (|it| it.output = Output::File, "output", "file", "pipe"),
            (|it| it.delegate = true, "delegate", "true", "false"),
        ];
        for (child, field, wish, has) in table {
            assert_eq!(asked(nobody, child), Some((field.into(), wish.into(), has.into())));
        }
    }

    #[test]
    fn what_is_the_same_narrower_or_left_open_is_within() {
        let table: [Change; 9] = [
            |_| {},
            nobody,
            |it| it.nice = Some(19),
            |it| it.ionice = Some(IoNice { class: IoClass::Idle, level: 0 }),
            |it| it.oom_score_adj = Some(1000),
            |it| it.priority = Priority::try_from(0).unwrap(),
            |it| it.grace = Duration::ZERO,
            |it| limit(it, Rlimit::Core, "0:10"),
            |it| limit(it, Rlimit::Nofile, "0:4096"),
        ];
        for child in table {
            assert_eq!(asked(nobody, child), None);
        }
        let outputs: [Change; 3] =
            [|it| it.output = Output::Pipe, |it| it.output = Output::File, |it| it.output = Output::Null];
        let allowed = outputs.map(|asker| outputs.map(|child| asked(asker, child).is_none()));
        assert_eq!(allowed, [[true, false, true], [true, true, true], [true, false, true]], "pipe, file, null");
    }

    #[test]
    fn what_is_left_open_is_the_askers() {
        let (asker, mut child) = (spec(nobody), spec(|_| {}));
        inherit(&mut child, &asker);
        assert_eq!(child, asker);
    }

    #[test]
    fn root_can_become_anybody_and_one_that_gave_it_up_cannot() {
        let root: Change = |_| {};
        assert_eq!(asked(root, |it| it.user = Some("nobody".into())), None);
        assert_eq!(asked(|it| it.user = Some("root".into()), |it| it.group = Some("4".into())), None);
        let mut child = spec(|it| it.user = Some("nobody".into()));
        inherit(&mut child, &spec(|it| it.group = Some("4".into())));
        assert_eq!(child.group, None, "another user has groups of its own");
        let asker = as_user(&spec(root), 33, 34, &baseline());
        let mut child = spec(root);
        inherit(&mut child, &asker);
        assert_eq!((child.user.as_deref(), child.group.as_deref()), (Some("33"), Some("34")));
        let wider = is_within(&spec(|it| it.user = Some("root".into())), &asker, &baseline()).unwrap_err();
        assert_eq!((wider.wish.as_str(), wider.has.as_str()), ("root", "33"));
        assert_eq!(as_user(&spec(root), 0, 5, &baseline()), spec(root), "the supervisor's own");
        assert_eq!(as_user(&spec(nobody), 33, 34, &baseline()), spec(nobody), "it was never root");
    }

    #[test]
    fn an_asker_without_a_wish_of_its_own_has_the_baseline() {
        assert_eq!(asked(|_| {}, |it| it.nice = Some(-1)), Some(("nice".into(), "-1".into(), "0".into())));
        assert_eq!(asked(|_| {}, |it| it.nice = Some(0)), None);
        let four: Change = |it| it.ionice = Some(IoNice { class: IoClass::BestEffort, level: 4 });
        assert_eq!(asked(|_| {}, four), None, "what the kernel gives with a nice of 0");
        let three: Change = |it| it.ionice = Some(IoNice { class: IoClass::BestEffort, level: 3 });
        assert!(asked(|_| {}, three).is_some());
        assert!(asked(|_| {}, |it| it.oom_score_adj = Some(-1)).is_some());
        let long = asked(nobody, |it| it.user = Some("ü".repeat(100_000))).unwrap();
        assert_eq!(long.1.chars().count(), VALUE_MAX + 1, "a refusal is short");
        assert!(asked(|_| {}, |it| it.session = Some("s".parse().unwrap())).is_some());
    }
}
