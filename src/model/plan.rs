//! From a herd as it is to a tree file: the steps that lead there, and none for what is there already.
//!
//! An agent of the file that the herd does not have is started; one that is described otherwise is ended and started anew, with
//! all below it; where only limits differ they are changed while it runs. What the file does not name is ended, except
//! agents below one of the file's: they are that agent's own. An agent that has ended stays ended as long as it is described
//! in the same way: its policy decided so, or somebody stopped it. What waits for one that is started, or has failed for one, is
//! started anew with it; what runs is not.
//!
//! The herd's own bounds and times are the daemon's configuration and no part of this.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::config::HerdConfig;
use super::id::{AgentId, Level};
use super::limits::{Limits, Setting};
use super::request::LimitScope;
use super::spec::AgentSpec;
use super::tree::Tree;

/// An agent that the herd has.
#[derive(Clone, Debug, PartialEq)]
pub struct Present {
    /// What it was asked for as.
    pub spec: AgentSpec,
    /// The limits over its subtree, as they are now.
    pub limits: Limits,
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

/// Plans the way from `herd`, held to `config`, to `tree`: ends first, then limits from the herd's down, then starts in the order of
/// the file.
#[must_use]
pub fn plan(tree: &Tree, config: &HerdConfig, herd: &[Present]) -> Vec<Step> {
    let wanted: BTreeMap<&AgentId, &AgentSpec> = tree.agents.iter().map(|spec| (&spec.id, spec)).collect();
    let present: BTreeMap<&AgentId, &Present> = herd.iter().map(|agent| (&agent.spec.id, agent)).collect();
    let mut ended = BTreeSet::new();
    let mut steps: Vec<Step> = herd.iter().filter_map(|agent| end(agent, &wanted, &present, &mut ended)).collect();
    for spec in &tree.agents {
        steps.extend(end_with_another(spec, &present, &mut ended));
    }
    steps.extend(config_limits(&tree.config, config));
    let (mut starts, mut levels) = (Vec::new(), BTreeMap::new());
    for spec in &tree.agents {
        let level =
            spec.parent.as_ref().and_then(|parent| levels.get(parent)).map_or(Level(0), |level: &Level| level.below());
        levels.insert(&spec.id, level);
        let id = spec.id.clone();
        match present.get(&id) {
            Some(agent) if !ended.contains(&id) => {
                let limits = changes(&agent.limits, &tree.config.level(level).each.overlaid(&spec.limits));
                starts.push(match limits {
                    Some(limits) if !limits.is_empty() => Step::Limit { scope: LimitScope::Agent(id), limits },
                    _ => Step::Keep { id },
                });
            }
            Some(_) => starts.push(Step::Start { id, why: "anew".to_owned() }),
            None => starts.push(Step::Start { id, why: "new".to_owned() }),
        }
    }
    steps.extend(starts);
    steps
}

/// Decides whether an agent of the herd, whose parents were looked at before it, has to go.
fn end(
    agent: &Present,
    wanted: &BTreeMap<&AgentId, &AgentSpec>,
    present: &BTreeMap<&AgentId, &Present>,
    ended: &mut BTreeSet<AgentId>,
) -> Option<Step> {
    let id = &agent.spec.id;
    let is_gone_with_its_parent = agent.spec.parent.as_ref().is_some_and(|parent| ended.contains(parent));
    let why = match wanted.get(id) {
        _ if is_gone_with_its_parent => None,
        Some(spec) => {
            let fields = differences(spec, &agent.spec);
            (!fields.is_empty()).then(|| format!("{} differs", fields.join(", ")))
        }
        None => {
            let mut above =
                std::iter::successors(agent.spec.parent.as_ref(), |id| present.get(id)?.spec.parent.as_ref());
            let is_an_agents_own = above.any(|id| wanted.contains_key(id));
            (!is_an_agents_own).then(|| "not in the file".to_owned())
        }
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

/// Names the fields in which two specifications differ, other than limits that can be changed while it runs.
fn differences(wanted: &AgentSpec, here: &AgentSpec) -> Vec<String> {
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
    if here.limits.iter().any(|(knob, _)| wanted.limits.get(knob).is_none() && knob.parse("max").is_err()) {
        differ.push("limits".to_owned());
    }
    differ
}

/// Returns what has to be set for `now` to become `wanted`; a limit that is not wanted any more becomes `max`.
fn changes(now: &Limits, wanted: &Limits) -> Option<Limits> {
    let mut limits = Limits::default();
    for (knob, setting) in wanted.iter().filter(|(knob, setting)| now.get(*knob) != Some(*setting)) {
        limits.set(knob, setting.clone());
    }
    for (knob, setting) in now.iter().filter(|(knob, _)| wanted.get(*knob).is_none()) {
        let none: Setting = knob.parse("max").ok()?;
        if *setting != none {
            limits.set(knob, none);
        }
    }
    Some(limits)
}

/// The limits of the herd and its levels that the file gives and that are not so.
fn config_limits(wanted: &HerdConfig, now: &HerdConfig) -> Vec<Step> {
    let mut pairs = vec![(LimitScope::Herd, wanted.limits.clone(), now.limits.clone())];
    for (level, limits) in &wanted.levels {
        let here = now.level(*level);
        pairs.extend([
            (LimitScope::Each(*level), limits.each.clone(), here.each),
            (LimitScope::Siblings(*level), limits.siblings.clone(), here.siblings),
            (LimitScope::Total(*level), limits.total.clone(), here.total),
        ]);
    }
    let differing = |wanted: &Limits, now: &Limits| {
        let mut limits = Limits::default();
        wanted
            .iter()
            .filter(|(knob, setting)| now.get(*knob) != Some(*setting))
            .for_each(|(knob, setting)| limits.set(knob, setting.clone()));
        limits
    };
    let steps = pairs.into_iter().map(|(scope, wanted, now)| (scope, differing(&wanted, &now)));
    steps.filter(|(_, limits)| !limits.is_empty()).map(|(scope, limits)| Step::Limit { scope, limits }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Tree {
        Tree::parse(text.as_bytes()).unwrap()
    }

    /// The herd that a file makes.
    fn herd(text: &str) -> (HerdConfig, Vec<Present>) {
        let tree = tree(text);
        let agents = tree
            .agents
            .into_iter()
            .map(|spec| Present { limits: spec.limits.clone(), spec, is_unstarted: false })
            .collect();
        (tree.config, agents)
    }

    /// Plans from one file to another; the steps in short, those that do nothing left out.
    fn steps(from: &str, to: &str) -> Vec<String> {
        let (config, herd) = herd(from);
        let short = |step: &Step| match step {
            Step::End { id, why } => format!("end {id}: {why}"),
            Step::Start { id, why } => format!("start {id}: {why}"),
            Step::Limit { scope, limits } => {
                let texts: Vec<String> = limits.iter().map(|(knob, setting)| format!("{knob}={setting}")).collect();
                format!("limit {scope:?}: {}", texts.join(" "))
            }
            Step::Keep { id } => format!("keep {id}"),
        };
        plan(&tree(to), &config, &herd).iter().filter(|step| !step.is_nothing()).map(short).collect()
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
        assert_eq!(steps(&limited, FLEET), ["limit Agent(a): memory_max=max pids_max=max"]);
    }

    #[test]
    fn limits_of_the_herd_come_first() {
        let limited =
            format!("[herd]\nlimits = {{ pids_max = 100 }}\n[levels.1]\nsiblings = {{ pids_max = 50 }}\n{FLEET}");
        assert_eq!(steps(FLEET, &limited), ["limit Herd: pids_max=100", "limit Siblings(Level(1)): pids_max=50"]);
    }

    #[test]
    fn what_an_agent_of_the_file_has_spawned_is_its_own() {
        let more = format!("{FLEET}[agents.boss.agents.a.agents.helper]\ncommand = 'h'\n");
        assert_eq!(steps(&more, FLEET), Vec::<String>::new());
    }

    #[test]
    fn what_has_not_started_after_another_one_is_started_anew_with_it() {
        let text = "[agents.db]\ncommand = 'd'\n[agents.web]\ncommand = 'w'\nafter = ['db']\n\
                    [agents.web.agents.x]\ncommand = 'x'\n[agents.late]\ncommand = 'l'\nafter = ['web']\n";
        let changed = text.replace("'d'", "'e'");
        let restarts = ["end db: command differs", "start db: anew"];
        assert_eq!(steps(text, &changed), restarts, "what runs goes on");
        let (config, mut herd) = herd(text);
        herd.iter_mut().for_each(|agent| agent.is_unstarted = agent.spec.id.as_str() != "db");
        let steps = plan(&tree(&changed), &config, &herd);
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
