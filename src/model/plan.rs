//! From a herd as it is to a tree file: the steps that lead there, and none for what is there already.
//!
//! Each file owns what it declared: an agent of the file that the herd does not have is started; one that is described otherwise is
//! ended and started anew, with all below it; where only limits differ they are changed while it runs. What has left the file is ended.
//! What another file declares, or somebody started by hand, is never touched: where the file wants its name, or another value for the
//! same limit of the herd, there is no plan, but [`Conflict`]s. An agent that has ended stays ended as long as it is described in the
//! same way: its policy decided so, or somebody stopped it. What waits for one that is started, or has failed for one, is started anew
//! with it; what runs is not.
//!
//! Of limits only those are compared that the file gives, or has given: what a level, the configuration or a command gave stays. A
//! limit that has left the file goes back to what stood there before.
//!
//! The herd's own bounds and times are the daemon's configuration and no part of this.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::applied::Applied;
use super::config::HerdConfig;
use super::id::{AgentId, Level};
use super::limits::{Knob, Limits};
use super::request::LimitScope;
use super::spec::AgentSpec;
use super::tree::Tree;

/// An agent that the herd has.
#[derive(Clone, Debug, PartialEq)]
pub struct Present {
    /// What it was asked for as, with its own limits as they are now.
    pub spec: AgentSpec,
    /// Whether it waits for its start, or could not be started for one that it starts after.
    pub is_unstarted: bool,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// End an agent with all below it, and forget it.
    End {
        /// Which.
        id: AgentId,
        /// Why, in a few words.
        why: String,
    },
    /// Change limits.
    Limit {
        /// Whose.
        scope: LimitScope,
        /// What they become.
        limits: Limits,
        /// Those that are taken back.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        lifted: Vec<String>,
    },
    /// Start an agent.
    Start {
        /// Which.
        id: AgentId,
        /// Why, in a few words.
        why: String,
    },
    /// Leave an agent as it is.
    Keep {
        /// Which.
        id: AgentId,
    },
}

impl Step {
    /// Says whether there is nothing to do.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Keep { .. })
    }
}

/// The way to a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The steps: ends first, then limits from the herd's down, then starts in the order of the file.
    pub steps: Vec<Step>,
    /// What the file will have given.
    pub applied: Applied,
}

/// Something that the file wants and that is another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// An agent's name is taken: by the agent of another file, or by one that no file declares.
    Agent {
        /// Which.
        id: AgentId,
        /// The file that declares it.
        owner: Option<String>,
    },
    /// Another file gives the same limit another value.
    Limit {
        /// Whose limit.
        scope: LimitScope,
        /// Which.
        knob: Knob,
        /// The other file.
        owner: String,
    },
}

/// What the herd is held to, and by which files.
#[derive(Clone, Copy, Debug)]
pub struct Herd<'a> {
    /// Its configuration, with its limits as they are now.
    pub config: &'a HerdConfig,
    /// Its agents, parents before their children.
    pub agents: &'a [Present],
    /// What each applied file has given.
    pub applied: &'a BTreeMap<String, Applied>,
}

/// Plans the way from `herd` to `tree`, the file that is called `name`.
///
/// # Errors
/// Everything that the file wants and that is another's; never none.
pub fn plan(tree: &Tree, name: &str, herd: Herd<'_>) -> Result<Plan, Vec<Conflict>> {
    let none = Applied::default();
    let (config, earlier) = (herd.config, herd.applied.get(name).unwrap_or(&none));
    let wanted: BTreeMap<&AgentId, &AgentSpec> = tree.agents.iter().map(|spec| (&spec.id, spec)).collect();
    let present: BTreeMap<&AgentId, &Present> = herd.agents.iter().map(|agent| (&agent.spec.id, agent)).collect();
    let is_anothers = |agent: &&Present| agent.spec.declared_by.as_deref() != Some(name);
    let taken = herd.agents.iter().filter(is_anothers).filter(|agent| wanted.contains_key(&agent.spec.id));
    let mut conflicts: Vec<Conflict> = taken
        .map(|agent| Conflict::Agent { id: agent.spec.id.clone(), owner: agent.spec.declared_by.clone() })
        .collect();
    let mut ended = BTreeSet::new();
    let own = herd.agents.iter().filter(|agent| !is_anothers(agent));
    let mut steps: Vec<Step> = own.filter_map(|agent| end(agent, &wanted, earlier, &mut ended)).collect();
    // What somebody has started below one that ends goes with it.
    for agent in herd.agents {
        if agent.spec.parent.as_ref().is_some_and(|parent| ended.contains(parent)) {
            ended.insert(agent.spec.id.clone());
        }
    }
    for spec in &tree.agents {
        steps.extend(end_with_another(spec, &present, &mut ended));
    }
    let mut applied = Applied::default();
    for (scope, given, now) in herd_limits(&tree.config, config, earlier) {
        steps.extend(limit(scope, &given, &now, earlier, &mut applied));
    }
    for spec in &tree.agents {
        let (id, scope) = (spec.id.clone(), LimitScope::Agent(spec.id.clone()));
        match present.get(&id) {
            Some(agent) if !ended.contains(&id) => {
                let step = limit(scope, &spec.limits, &agent.spec.limits, earlier, &mut applied);
                steps.push(step.unwrap_or(Step::Keep { id }));
            }
            old => {
                applied.note(&scope, &spec.limits, Limits::default());
                let why = if old.is_some() { "anew" } else { "new" };
                steps.push(Step::Start { id, why: why.to_owned() });
            }
        }
    }
    for (owner, other) in herd.applied.iter().filter(|(other, _)| *other != name) {
        if let Some((scope, knob)) = applied.conflict(other) {
            conflicts.push(Conflict::Limit { scope: scope.clone(), knob, owner: owner.clone() });
        }
    }
    if conflicts.is_empty() { Ok(Plan { steps, applied }) } else { Err(conflicts) }
}

/// Decides whether an agent of the herd, whose parents were looked at before it, has to go.
fn end(
    agent: &Present,
    wanted: &BTreeMap<&AgentId, &AgentSpec>,
    earlier: &Applied,
    ended: &mut BTreeSet<AgentId>,
) -> Option<Step> {
    let id = &agent.spec.id;
    let is_gone_with_its_parent = agent.spec.parent.as_ref().is_some_and(|parent| ended.contains(parent));
    let why = match wanted.get(id) {
        _ if is_gone_with_its_parent => None,
        Some(spec) => {
            let given = earlier.given_in(&LimitScope::Agent(id.clone()));
            let fields = differences(spec, &agent.spec, &given);
            (!fields.is_empty()).then(|| format!("{} differs", fields.join(", ")))
        }
        None => Some("not in the file".to_owned()),
    };
    if is_gone_with_its_parent || why.is_some() {
        ended.insert(id.clone());
    }
    Some(Step::End { id: id.clone(), why: why? })
}

/// Decides whether an agent of the file, whose parent and what it starts after were looked at before it, starts anew with these.
fn end_with_another(
    spec: &AgentSpec,
    present: &BTreeMap<&AgentId, &Present>,
    ended: &mut BTreeSet<AgentId>,
) -> Option<Step> {
    let agent = present.get(&spec.id).filter(|_| !ended.contains(&spec.id))?;
    let is_started = |id: &&AgentId| ended.contains(*id) || !present.contains_key(*id);
    let is_gone_with_its_parent = spec.parent.as_ref().is_some_and(|parent| ended.contains(parent));
    let first = spec.after.iter().find(is_started).filter(|_| agent.is_unstarted);
    if is_gone_with_its_parent || first.is_some() {
        ended.insert(spec.id.clone());
    }
    let first = first.filter(|_| !is_gone_with_its_parent)?;
    Some(Step::End { id: spec.id.clone(), why: format!("has not started after {first}, which is started") })
}

/// Names the fields in which two specifications differ, other than limits that can be changed while it runs. `given` is what the file
/// has given before.
fn differences(wanted: &AgentSpec, here: &AgentSpec, given: &Limits) -> Vec<String> {
    let fields = |spec: &AgentSpec| match serde_json::to_value(spec) {
        Ok(serde_json::Value::Object(mut fields)) => {
            // A level that is stated says nothing that the parent does not.
            fields.remove("level");
            fields.remove("limits");
            fields
        }
        _ => serde_json::Map::new(),
    };
    let (wanted_fields, here_fields) = (fields(wanted), fields(here));
    let names: BTreeSet<&String> = wanted_fields.keys().chain(here_fields.keys()).collect();
    let mut differ: Vec<String> =
        names.into_iter().filter(|name| wanted_fields.get(*name) != here_fields.get(*name)).cloned().collect();
    if given.iter().any(|(knob, _)| wanted.limits.get(knob).is_none() && knob.parse("max").is_err()) {
        differ.push("limits".to_owned());
    }
    differ
}

/// Plans the limits of one scope, and notes what the file gives there. What has left the file goes back to what stood there before,
/// unless somebody has set it to something else since.
fn limit(scope: LimitScope, given: &Limits, now: &Limits, earlier: &Applied, applied: &mut Applied) -> Option<Step> {
    let (earlier_given, earlier_before) = (earlier.given_in(&scope), earlier.before_in(&scope));
    let (mut limits, mut lifted, mut before) = (Limits::default(), Vec::new(), Limits::default());
    for (knob, setting) in given.iter() {
        if now.get(knob) != Some(setting) {
            limits.set(knob, setting.clone());
        }
        let stood_there = if earlier_given.get(knob).is_some() { &earlier_before } else { now };
        if let Some(stood) = stood_there.get(knob).filter(|stood| *stood != setting) {
            before.set(knob, stood.clone());
        }
    }
    for (knob, setting) in earlier_given.iter().filter(|(knob, _)| given.get(*knob).is_none()) {
        match earlier_before.get(knob) {
            _ if now.get(knob) != Some(setting) => {}
            Some(before) => limits.set(knob, before.clone()),
            None if knob.parse("max").is_ok() => lifted.push(knob.name().to_owned()),
            None => {}
        }
    }
    applied.note(&scope, given, before);
    let is_so = limits.is_empty() && lifted.is_empty();
    (!is_so).then_some(Step::Limit { scope, limits, lifted })
}

/// Lists the scopes of the herd and its levels that the file gives limits in, or has given: with those, and with what is there now.
fn herd_limits(wanted: &HerdConfig, now: &HerdConfig, earlier: &Applied) -> Vec<(LimitScope, Limits, Limits)> {
    let level_of = |scope: &LimitScope| match scope {
        LimitScope::Each(level) | LimitScope::Siblings(level) | LimitScope::Total(level) => Some(*level),
        LimitScope::Agent(_) | LimitScope::Herd => None,
    };
    let earlier = earlier.given.iter().filter_map(|it| level_of(&it.scope));
    let levels: BTreeSet<Level> = wanted.levels.keys().copied().chain(earlier).collect();
    let mut scopes = vec![(LimitScope::Herd, wanted.limits.clone(), now.limits.clone())];
    for level in levels {
        let (given, here) = (wanted.level(level), now.level(level));
        scopes.extend([
            (LimitScope::Each(level), given.each, here.each),
            (LimitScope::Siblings(level), given.siblings, here.siblings),
            (LimitScope::Total(level), given.total, here.total),
        ]);
    }
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Tree {
        Tree::parse(text.as_bytes()).unwrap()
    }

    fn declared(text: &str) -> Tree {
        let mut tree = tree(text);
        tree.declare("fleet");
        tree
    }

    /// The herd that a file makes.
    fn herd(text: &str) -> (HerdConfig, Vec<Present>, BTreeMap<String, Applied>) {
        let tree = declared(text);
        let empty = Herd { config: &HerdConfig::default(), agents: &[], applied: &BTreeMap::new() };
        let applied = plan(&tree, "fleet", empty).unwrap().applied;
        let agents = tree.agents.into_iter().map(|spec| Present { spec, is_unstarted: false }).collect();
        (tree.config, agents, BTreeMap::from([("fleet".to_owned(), applied)]))
    }

    fn short(step: &Step) -> String {
        match step {
            Step::End { id, why } => format!("end {id}: {why}"),
            Step::Start { id, why } => format!("start {id}: {why}"),
            Step::Limit { scope, limits, lifted } => {
                let texts = limits.iter().map(|(knob, setting)| format!("{knob}={setting}"));
                let texts: Vec<String> = texts.chain(lifted.iter().map(|name| format!("-{name}"))).collect();
                format!("limit {scope:?}: {}", texts.join(" "))
            }
            Step::Keep { id } => format!("keep {id}"),
        }
    }

    /// Plans from one file to another, which has the same name; the steps in short, those that do nothing left out.
    fn steps(from: &str, to: &str) -> Vec<String> {
        let (config, agents, applied) = herd(from);
        let herd = Herd { config: &config, agents: &agents, applied: &applied };
        let plan = plan(&declared(to), "fleet", herd).unwrap();
        plan.steps.iter().filter(|step| !step.is_nothing()).map(short).collect()
    }

    const FLEET: &str = "[agents.boss]\n[agents.boss.agents.a]\ncommand = 'a'\n[agents.boss.agents.b]\ncommand = 'b'\n";

    #[test]
    fn what_is_there_already_needs_no_step() {
        assert_eq!(steps(FLEET, FLEET), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_started_and_what_is_too_much_is_ended() {
        assert_eq!(
            steps("[agents.old]\n[agents.old.agents.x]\ncommand = 'x'\n", FLEET),
            ["end old: not in the file", "start boss: new", "start a: new", "start b: new"]
        );
    }

    #[test]
    fn what_differs_is_started_anew_with_all_below_it() {
        let changed = FLEET.replace("[agents.boss]\n", "[agents.boss]\ncommand = 'lead'\ngrace = '1s'\n");
        assert_eq!(
            steps(FLEET, &changed),
            ["end boss: command, grace differs", "start boss: anew", "start a: anew", "start b: anew"]
        );
        let one = FLEET.replace("'b'", "'c'");
        assert_eq!(steps(FLEET, &one), ["end b: command differs", "start b: anew"]);
    }

    #[test]
    fn limits_change_while_it_runs_and_go_when_they_are_not_wanted() {
        let limited = FLEET.replace("'a'\n", "'a'\nlimits = { pids_max = 7, memory_max = '1GiB' }\n");
        assert_eq!(steps(FLEET, &limited), ["limit Agent(a): memory_max=1073741824 pids_max=7"]);
        assert_eq!(steps(&limited, FLEET), ["limit Agent(a): -memory_max -pids_max"]);
    }

    #[test]
    fn limits_of_the_herd_come_first() {
        let limited =
            format!("[herd]\nlimits = {{ pids_max = 100 }}\n[levels.1]\nsiblings = {{ pids_max = 50 }}\n{FLEET}");
        assert_eq!(steps(FLEET, &limited), ["limit Herd: pids_max=100", "limit Siblings(Level(1)): pids_max=50"]);
        assert_eq!(steps(&limited, FLEET), ["limit Herd: -pids_max", "limit Siblings(Level(1)): -pids_max"]);
    }

    #[test]
    fn what_the_configuration_a_level_or_a_command_gave_is_not_the_files_to_lift() {
        let pids = |text: &str| Limits::from_iter([(Knob::PidsMax, Knob::PidsMax.parse(text).unwrap())]);
        let (mut config, mut agents, applied) = herd(FLEET);
        config.limits = pids("1000");
        config.levels.entry(Level(1)).or_default().each = pids("64");
        agents[1].spec.limits = pids("30");
        let herd = Herd { config: &config, agents: &agents, applied: &applied };
        let second = plan(&declared(FLEET), "fleet", herd).unwrap();
        assert!(second.steps.iter().all(Step::is_nothing), "{:?}", second.steps);
        // What the file gives stands over them, and they come back when it does not any more.
        let text = format!("[herd]\nlimits = {{ pids_max = 500 }}\n{FLEET}");
        let third = plan(&declared(&text), "fleet", herd).unwrap();
        assert_eq!(short(&third.steps[0]), "limit Herd: pids_max=500");
        config.limits = pids("500");
        let applied = BTreeMap::from([("fleet".to_owned(), third.applied)]);
        let herd = Herd { config: &config, agents: &agents, applied: &applied };
        assert!(plan(&declared(&text), "fleet", herd).unwrap().steps.iter().all(Step::is_nothing));
        let fourth = plan(&declared(FLEET), "fleet", herd).unwrap();
        assert_eq!(short(&fourth.steps[0]), "limit Herd: pids_max=1000");
        // Somebody has set it to something else since: that stays.
        config.limits = pids("700");
        let herd = Herd { config: &config, agents: &agents, applied: &applied };
        assert!(plan(&declared(FLEET), "fleet", herd).unwrap().steps.iter().all(Step::is_nothing));
    }

    #[test]
    fn what_is_another_files_or_nobodys_is_never_touched_and_a_name_that_both_want_is_told() {
        let (config, mut agents, applied) = herd(FLEET);
        let other = tree("[herd]\nlimits = { pids_max = 9 }\n[agents.other]\ncommand = 'o'\n");
        let herd_now = Herd { config: &config, agents: &agents, applied: &applied };
        let made = plan(&other, "other", herd_now).unwrap();
        assert_eq!(made.steps.iter().map(short).collect::<Vec<_>>(), ["limit Herd: pids_max=9", "start other: new"]);
        agents[1].spec.declared_by = None;
        let herd_now = Herd { config: &config, agents: &agents, applied: &applied };
        let conflicts = plan(&tree(FLEET), "other", herd_now).unwrap_err();
        let owners: Vec<_> = conflicts
            .iter()
            .map(|it| if let Conflict::Agent { owner, .. } = it { owner.as_deref() } else { panic!() })
            .collect();
        assert_eq!(owners, [Some("fleet"), None, Some("fleet")]);
        let limited = format!("[herd]\nlimits = {{ pids_max = 10 }}\n{FLEET}");
        let (config, agents, applied) = herd(&limited);
        let herd_now = Herd { config: &config, agents: &agents, applied: &applied };
        assert_eq!(
            plan(&other, "other", herd_now),
            Err(vec![Conflict::Limit { scope: LimitScope::Herd, knob: Knob::PidsMax, owner: "fleet".to_owned() }])
        );
    }

    #[test]
    fn what_an_agent_of_the_file_has_spawned_is_its_own() {
        let (config, mut agents, applied) =
            herd(&format!("{FLEET}[agents.boss.agents.a.agents.helper]\ncommand = 'h'\n"));
        let helper = agents.iter_mut().find(|agent| agent.spec.id.as_str() == "helper").unwrap();
        helper.spec.declared_by = None;
        let plan =
            plan(&declared(FLEET), "fleet", Herd { config: &config, agents: &agents, applied: &applied }).unwrap();
        assert!(plan.steps.iter().all(Step::is_nothing), "{:?}", plan.steps);
    }

    #[test]
    fn what_has_not_started_after_another_one_is_started_anew_with_it() {
        let text = "[agents.db]\ncommand = 'd'\n[agents.web]\ncommand = 'w'\nafter = ['db']\n\
                    [agents.web.agents.x]\ncommand = 'x'\n[agents.late]\ncommand = 'l'\nafter = ['web']\n";
        let changed = text.replace("'d'", "'e'");
        let restarts = ["end db: command differs", "start db: anew"];
        assert_eq!(steps(text, &changed), restarts, "what runs goes on");
        let (config, mut agents, applied) = herd(text);
        agents.iter_mut().for_each(|agent| agent.is_unstarted = agent.spec.id.as_str() != "db");
        let herd = Herd { config: &config, agents: &agents, applied: &applied };
        let steps = plan(&declared(&changed), "fleet", herd).unwrap().steps;
        let ended: Vec<String> = steps
            .iter()
            .filter_map(|step| if let Step::End { id, why } = step { Some(format!("{id}: {why}")) } else { None })
            .collect();
        let anew = |first: &str| format!("has not started after {first}, which is started");
        let wanted =
            ["db: command differs".to_owned(), format!("web: {}", anew("db")), format!("late: {}", anew("web"))];
        assert_eq!(ended, wanted);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Start { .. })).count(), 4);
    }
}
