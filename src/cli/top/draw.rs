//! From the state of the screen to what stands on it.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};
use unicode_width::UnicodeWidthStr;

use super::super::list::doing;
use super::super::screen::{BOLD, DIM, WARN, cut, duration, or_dash, plain, state_style};
use super::super::stats::counts;
use super::view::{Order, Row, View};
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

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// A name: it is cut where there is no room for it.
    Name,
    /// A word or a figure: it stands whole, or the column is left out.
    Whole,
    /// What fits into the rest of the line.
    Rest,
}

/// The columns, and the one by which agents are sorted.
const COLUMNS: [(&str, Holds, Option<Order>); 7] = [
    ("AGENT", Holds::Name, Some(Order::Tree)),
    ("STATE", Holds::Whole, None),
    ("CPU%", Holds::Whole, Some(Order::Cpu)),
    ("MEMORY", Holds::Whole, Some(Order::Memory)),
    ("PROCS", Holds::Whole, None),
    ("I/O B/s", Holds::Whole, None),
    ("DOES", Holds::Rest, None),
];

/// The first column that holds figures.
const FIRST_FIGURE: usize = 2;

/// How much of a name is shown before a column is left out for it.
const NAME_WIDTH_MIN: usize = 8;

/// How much of what an agent does is shown before its name gives way.
const REST_WIDTH_MIN: usize = 16;

/// Shares out the columns of a screen; a column of width 0 is left out. All together are never wider than the screen, so that no
/// figure is cut.
fn fit(wanted: [usize; COLUMNS.len()], room: usize) -> [usize; COLUMNS.len()] {
    let mut widths = wanted;
    let used = |widths: &[usize], from: usize| -> usize {
        widths[from..].iter().filter(|width| **width > 0).map(|width| width + 1).sum()
    };
    let rest = COLUMNS.len() - 1;
    widths[rest] = 0;
    // On the narrowest screens figures are left out from the right, and at last the state.
    for column in (1..rest).rev() {
        if used(&widths, 1) + widths[0].min(NAME_WIDTH_MIN) <= room {
            break;
        }
        widths[column] = 0;
    }
    let left = room.saturating_sub(used(&widths, 1));
    let for_the_rest = wanted[rest].min(REST_WIDTH_MIN) + 1;
    widths[0] = wanted[0].min(left.saturating_sub(for_the_rest).max(left.min(NAME_WIDTH_MIN)));
    widths[rest] = wanted[rest].min(left.saturating_sub(widths[0] + 1));
    widths
}

fn table(frame: &mut Frame<'_>, area: Rect, view: &mut View) {
    let heads = COLUMNS.map(|(name, _, order)| {
        let is_sorted = order == Some(view.order);
        if is_sorted { format!("{name}↓") } else { name.to_owned() }
    });
    let rows: Vec<_> = view.rows.iter().map(texts).collect();
    let mut wanted = [0; COLUMNS.len()];
    for texts in rows.iter().chain([&heads]) {
        wanted.iter_mut().zip(texts).for_each(|(wanted, text)| *wanted = text.width().max(*wanted));
    }
    let widths = fit(wanted, usize::from(area.width));
    let shown: Vec<usize> = (0..COLUMNS.len()).filter(|column| widths[*column] > 0).collect();
    let cells = |texts: &[String; COLUMNS.len()], styles: [Style; COLUMNS.len()]| {
        let cell = |column: &usize| {
            let text = cut(&texts[*column], widths[*column]);
            let is_figure = COLUMNS[*column].1 == Holds::Whole && *column >= FIRST_FIGURE;
            let alignment = if is_figure { Alignment::Right } else { Alignment::Left };
            Cell::from(Text::from(text).alignment(alignment)).style(styles[*column])
        };
        TableRow::new(shown.iter().map(cell).collect::<Vec<_>>())
    };
    let lines: Vec<TableRow<'_>> =
        rows.iter().zip(&view.rows).map(|(texts, row)| cells(texts, styles(row, view))).collect();
    let columns = shown.iter().map(|column| Constraint::Length(u16::try_from(widths[*column]).unwrap_or(u16::MAX)));
    let table = Table::new(lines, columns)
        .header(cells(&heads, [style(view, BOLD); COLUMNS.len()]))
        .row_highlight_style(Style::default().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut view.table);
}

fn texts(row: &Row) -> [String; COLUMNS.len()] {
    let agent = &row.agent;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole bytes of a positive rate")]
    let io = row.io.map(|rate| rate as u64).filter(|rate| *rate > 0);
    [
        format!("{}{}", row.branch, agent.id),
        agent.state.name().to_owned(),
        or_dash(row.cpu.map(|share| format!("{share:.1}"))),
        bytes(row.usage.memory_current_bytes),
        or_dash(row.usage.processes),
        bytes(io),
        doing(agent),
    ]
}

fn styles(row: &Row, view: &View) -> [Style; COLUMNS.len()] {
    let mut styles = [Style::default(); COLUMNS.len()];
    (styles[0], styles[1]) = (style(view, BOLD), style(view, state_style(row.agent.state)));
    styles
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::api::method::Stats;
    use crate::cli::draw::tests::status;
    use crate::cli::top::view::Figures;
    use crate::model::usage::Usage;

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

    #[test]
    fn a_figure_is_shown_whole_on_a_screen_of_any_width_or_not_at_all() {
        let ids = ["a".repeat(63), "b".to_owned()];
        let mut agents: Vec<_> = ids.iter().map(|id| status(id, None)).collect();
        agents[0].command = vec!["run".repeat(100)];
        let usage = Usage {
            memory_current_bytes: Some(165_779_866),
            processes: Some(1_234_567),
            cpu_usage_us: Some(0),
            ..Usage::default()
        };
        let usage_by_agent = agents.iter().map(|agent| (agent.id.clone(), usage)).collect();
        let mut view = View::new("/herd".to_owned(), false);
        view.take(Figures {
            stats: Stats { usage_by_agent, ..Stats::default() },
            agents,
            at: std::time::Instant::now(),
        });
        let mut seen = 0;
        for width in 1..200 {
            let mut terminal = Terminal::new(TestBackend::new(width, 12)).unwrap();
            terminal.draw(|frame| draw(frame, &mut view)).unwrap();
            let shown = terminal.backend().to_string();
            let rows = shown.lines().skip(4).take(2).collect::<Vec<_>>().join("\n");
            for (digit, figure) in [("158", "158.1MiB"), ("34567", "1234567"), ("8.1M", "158.1MiB")] {
                let whole = rows.matches(figure).count();
                assert_eq!(rows.matches(digit).count(), whole, "{width}: {shown}");
                seen += whole;
            }
            assert!(width < 30 || rows.contains("running"), "{width}: {shown}");
        }
        assert!(seen > 500, "{seen}");
    }
}
