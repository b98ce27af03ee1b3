//! The tree, drawn.

use std::collections::BTreeMap;
use std::process::ExitCode;

use unicode_width::UnicodeWidthStr;

use super::args::Global;
use super::failure::Done;
use super::link::connect;
use super::list::doing;
use super::screen::{BOLD, DIM, Screen, cut, state_style};
use crate::api::method::{Call, Selection};
use crate::model::id::AgentId;
use crate::model::request::Target;
use crate::model::status::AgentStatus;

/// How much of a name is shown on any terminal.
const NAME_WIDTH_MIN: usize = 8;

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
    for (branch, agent) in layout(&agents, root) {
        let line = line(&branch, agent, screen);
        screen.line(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes an agent's line. On a terminal what it does is cut first, then its name; state and pid stay whole.
fn line(branch: &str, agent: &AgentStatus, screen: &Screen) -> String {
    let pid = agent.pid.map_or(String::new(), |pid| format!(" {pid}"));
    let fixed = branch.width() + 1 + agent.state.name().len() + pid.len();
    let room = screen.width.map_or(usize::MAX, |width| width.saturating_sub(fixed));
    let id = cut(agent.id.as_str(), room.max(NAME_WIDTH_MIN));
    let does = cut(&doing(agent), room.saturating_sub(id.width() + 1));
    let line = format!(
        "{}{} {}{pid} {}",
        screen.paint(DIM, branch),
        screen.paint(BOLD, &id),
        screen.paint(state_style(agent.state), agent.state.name()),
        screen.paint(DIM, &does),
    );
    line.trim_end().to_owned()
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
        let label = line("", &agent, &Screen::stdout(false));
        assert!(!label.contains("\x1b[2J"), "{label:?}");
    }

    #[test]
    fn a_line_of_the_tree_is_no_wider_than_the_terminal_and_has_its_state_and_pid_whole() {
        let mut agent = status(&"x".repeat(63), None);
        agent.pid = Some(4_194_304);
        agent.command = vec!["y".repeat(300)];
        for width in [30, 40, 80, 120] {
            let mut screen = Screen::stdout(false);
            screen.width = Some(width);
            let line = line("└── ", &agent, &screen);
            assert!(line.width() <= width && line.contains(" running 4194304"), "{width}: {line}");
        }
    }
}
