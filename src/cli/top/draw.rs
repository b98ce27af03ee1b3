//! From the state of the screen to what stands on it.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};

use super::super::list::doing;
use super::super::screen::{BOLD, DIM, WARN, duration, or_dash, plain, state_style};
use super::super::stats::counts;
use super::view::{Order, Row, View};
use crate::model::status::Paused;
use crate::model::units::Bytes;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let events = u16::try_from(view.events.len()).unwrap_or(u16::MAX);
    let parts = [Constraint::Length(3), Constraint::Min(2), Constraint::Length(events), Constraint::Length(1)];
    let [head, body, told, last] = Layout::vertical(parts).areas(frame.area());
    frame.render_widget(Paragraph::new(header(view)), head);
    table(frame, body, view);
    let lines: Vec<Line<'_>> = view.events.iter().map(|line| Line::styled(line.as_str(), style(view, DIM))).collect();
    frame.render_widget(Paragraph::new(lines), told);
    let is_asked = view.question.is_some() || view.note.is_some();
    let line = Line::styled(view.last_line(), style(view, if is_asked { WARN } else { DIM }));
    frame.render_widget(Paragraph::new(line), last);
}

fn style(view: &View, style: anstyle::Style) -> Style {
    if view.is_coloured { Style::from(style) } else { Style::default() }
}

fn header(view: &View) -> Text<'static> {
    let stats = &view.stats;
    let usage = stats.usage.unwrap_or_default();
    let bold = style(view, BOLD);
    let first = Line::from(vec![
        Span::styled("treeherd", bold),
        Span::raw(format!("  {}  up {}", plain(&view.cgroup), duration(stats.uptime_ms))),
    ]);
    let states = counts(stats.states.iter());
    let second = Line::from(format!("{} agents ({states})  ends: {}", stats.agents, counts(stats.causes.iter())));
    let share = |share: Option<f64>| or_dash(share.map(|share| format!("{share:.1}%")));
    let third = Line::from(format!(
        "CPU {}  memory {}  processes {}  waiting for CPU {}, memory {}, I/O {}",
        share(view.cpu),
        bytes(usage.memory_current_bytes),
        or_dash(usage.processes),
        share(usage.cpu_pressure_avg10),
        share(usage.memory_pressure_avg10),
        share(usage.io_pressure_avg10),
    ));
    Text::from(vec![first, second, third])
}

fn bytes(bytes: Option<u64>) -> String {
    or_dash(bytes.map(Bytes))
}

/// The columns, their widths (the first is as wide as its names, the last as there is room), and the one by which agents are sorted.
const COLUMNS: [(&str, u16, Option<Order>); 8] = [
    ("AGENT", 0, Some(Order::Tree)),
    ("STATE", 10, None),
    ("PAUSED", 9, None),
    ("CPU%", 6, Some(Order::Cpu)),
    ("MEMORY", 9, Some(Order::Memory)),
    ("PROCS", 6, None),
    ("I/O B/s", 9, None),
    ("DOES", 0, None),
];

fn table(frame: &mut Frame<'_>, area: Rect, view: &mut View) {
    let longest = view.rows.iter().map(|row| row.branch.chars().count() + row.agent.id.as_str().len()).max();
    let name = u16::try_from(longest.unwrap_or(0).clamp(5, 40)).unwrap_or(40);
    let widths = COLUMNS.iter().enumerate().map(|(column, (_, width, _))| match (column, width) {
        (0, _) => Constraint::Length(name),
        (_, 0) => Constraint::Fill(1),
        (_, width) => Constraint::Length(*width),
    });
    let head = COLUMNS.iter().enumerate().map(|(column, (name, _, order))| {
        let is_sorted = *order == Some(view.order);
        let text = if is_sorted { format!("{name}↓") } else { (*name).to_owned() };
        cell(text, column).style(style(view, BOLD))
    });
    let rows: Vec<TableRow<'_>> = view.rows.iter().map(|row| line(row, view)).collect();
    let table = Table::new(rows, widths)
        .header(TableRow::new(head))
        .row_highlight_style(Style::default().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut view.table);
}

fn cell(text: String, column: usize) -> Cell<'static> {
    let is_number = (3..=6).contains(&column);
    Cell::from(Text::from(text).alignment(if is_number { Alignment::Right } else { Alignment::Left }))
}

fn line(row: &Row, view: &View) -> TableRow<'static> {
    let agent = &row.agent;
    let paused = if agent.paused == Paused::No { String::new() } else { agent.paused.name().to_owned() };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole bytes of a positive rate")]
    let io = row.io.map(|rate| rate as u64).filter(|rate| *rate > 0);
    let texts = [
        format!("{}{}", row.branch, agent.id),
        agent.state.name().to_owned(),
        paused,
        or_dash(row.cpu.map(|share| format!("{share:.1}"))),
        bytes(row.usage.memory_current_bytes),
        or_dash(row.usage.processes),
        bytes(io),
        doing(agent),
    ];
    let styles = [BOLD, state_style(agent.state), WARN];
    let cells = texts.into_iter().enumerate().map(|(column, text)| {
        let own = styles.get(column).map_or_else(Style::default, |own| style(view, *own));
        cell(text, column).style(own)
    });
    TableRow::new(cells)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::api::method::Stats;
    use crate::cli::draw::tests::status;
    use crate::cli::top::view::Figures;

    #[test]
    fn the_tree_stands_on_the_screen_and_a_hostile_command_does_nothing() {
        let mut view = View::new("/sys/fs/cgroup/x".to_owned(), true);
        let mut child = status("child", Some("top"));
        child.command = vec!["\x1b[2Jevil".to_owned()];
        let agents = vec![status("top", None), child];
        view.take(Figures { stats: Stats::default(), agents, at: std::time::Instant::now() });
        let mut terminal = Terminal::new(TestBackend::new(100, 12)).unwrap();
        terminal.draw(|frame| draw(frame, &mut view)).unwrap();
        let shown = terminal.backend().to_string();
        assert!(shown.contains("└── child") && shown.contains("\\x1b[2Jevil") && shown.contains("q leave"), "{shown}");
        assert!(!shown.contains('\x1b'), "{shown:?}");
        // A terminal of no size at all is no reason to fail.
        Terminal::new(TestBackend::new(1, 1)).unwrap().draw(|frame| draw(frame, &mut view)).unwrap();
    }
}
