//! The tree, drawn.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;

use super::args::Global;
use super::failure::Done;
use super::link::connect;
use super::list::doing;
use super::screen::{BOLD, DIM, Screen, WARN, state_style};
use crate::api::method::{Call, Selection};
use crate::model::id::AgentId;
use crate::model::request::Target;
use crate::model::status::{AgentStatus, Paused};

/// `tree`
pub(super) fn tree(global: &Global, root: Option<&AgentId>, screen: &mut Screen) -> Done {
    let mut daemon = connect(global)?;
    if let Some(root) = root {
        let named = Selection { target: Some(Target::Ids(vec![root.clone()])), parent: None };
        daemon.call::<Vec<AgentStatus>>(&Call::Ps(named))?;
    }
    let agents: Vec<AgentStatus> = daemon.call(&Call::Ps(Selection::default()))?;
    if screen.is_json {
        screen.json(&agents)?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines: Vec<_> =
        layout(&agents, root).into_iter().map(|(branch, agent)| (branch, label(agent, screen))).collect();
    for (branch, label) in lines {
        show(&branch, &label, screen)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(branch: &str, label: &str, screen: &mut Screen) -> io::Result<()> {
    let branch = screen.paint(DIM, branch);
    screen.line(&format!("{branch}{label}"))
}

fn label(agent: &AgentStatus, screen: &Screen) -> String {
    let paused = match agent.paused {
        Paused::No => String::new(),
        paused => format!(" {}", screen.paint(WARN, &format!("paused ({})", paused.name()))),
    };
    let pid = agent.pid.map_or(String::new(), |pid| format!(" {pid}"));
    format!(
        "{} {}{paused}{pid} {}",
        screen.paint(BOLD, agent.id.as_str()),
        screen.paint(state_style(agent.state), agent.state.name()),
        screen.paint(DIM, &doing(agent)),
    )
    .trim_end()
    .to_owned()
}

/// Returns the agents as they stand in the tree, each with the branches before its name.
pub(super) fn layout<'a>(agents: &'a [AgentStatus], root: Option<&AgentId>) -> Vec<(String, &'a AgentStatus)> {
    let known: BTreeMap<&AgentId, &AgentStatus> = agents.iter().map(|agent| (&agent.id, agent)).collect();
    let mut children: BTreeMap<&AgentId, Vec<&AgentStatus>> = BTreeMap::new();
    let mut tops = Vec::new();
    for agent in agents {
        // One whose parent is forgotten already stands at the top.
        match agent.parent.as_ref().filter(|parent| known.contains_key(parent)) {
            Some(parent) => children.entry(parent).or_default().push(agent),
            None => tops.push(agent),
        }
    }
    if let Some(root) = root {
        tops = known.get(root).copied().into_iter().collect();
    }
    let mut lines = Vec::with_capacity(agents.len());
    let mut open: Vec<(&AgentStatus, String, String)> =
        tops.into_iter().rev().map(|agent| (agent, String::new(), String::new())).collect();
    while let Some((agent, branch, below)) = open.pop() {
        lines.push((branch, agent));
        let children = children.get(&agent.id).map_or(&[][..], Vec::as_slice);
        for (place, child) in children.iter().rev().enumerate() {
            let (arm, rest) = if place == 0 { ("└── ", "    ") } else { ("├── ", "│   ") };
            open.push((child, format!("{below}{arm}"), format!("{below}{rest}")));
        }
    }
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Makes a status as a daemon would send it.
    pub(in crate::cli) fn status(id: &str, parent: Option<&str>) -> AgentStatus {
        serde_json::from_value(serde_json::json!({
            "id": id, "parent": parent, "level": u8::from(parent.is_some()), "type": "agent", "session": null,
            "priority": 5, "state": "running", "paused": "no", "pid": 7, "run": 1, "cgroup": "/x",
            "command": ["sleep", "1"], "exit": null, "restarts": 0, "started": null, "ended": null, "limits": {},
            "capabilities": [], "metadata": {}, "children": [], "paused_ms": 0,
        }))
        .unwrap()
    }

    #[test]
    fn the_tree_is_drawn_with_a_branch_for_each_child() {
        let agents = [
            status("a", None),
            status("b", Some("a")),
            status("c", Some("b")),
            status("d", Some("a")),
            status("e", None),
            status("f", Some("gone")),
        ];
        let drawn = |root: Option<&AgentId>| -> Vec<String> {
            layout(&agents, root).into_iter().map(|(branch, agent)| format!("{branch}{}", agent.id)).collect()
        };
        assert_eq!(drawn(None), ["a", "├── b", "│   └── c", "└── d", "e", "f"]);
        assert_eq!(drawn(Some(&agents[1].id)), ["b", "└── c"]);
    }

    #[test]
    fn a_hostile_command_is_escaped() {
        let mut agent = status("a", None);
        agent.command = vec!["\x1b[2J".to_owned()];
        let label = label(&agent, &Screen::stdout(false));
        assert!(!label.contains("\x1b[2J"), "{label:?}");
    }
}
