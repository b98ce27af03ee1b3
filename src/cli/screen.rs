//! What is shown, and how: stdout, colours, columns, times.

use std::io::{self, BufWriter, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::model::status::State;
use crate::model::time::Wall;
use crate::output::{Colours, escape};

/// Nothing special.
pub(super) const PLAIN: Style = Style::new();
/// Headers and names.
pub(super) const BOLD: Style = Style::new().bold();
/// What matters less.
pub(super) const DIM: Style = Style::new().dimmed();
/// What went well.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// What deserves a look.
pub(super) const WARN: Style = AnsiColor::Yellow.on_default();
/// What went wrong.
pub(super) const BAD: Style = AnsiColor::Red.on_default();
/// What is being waited for.
pub(super) const WAIT: Style = AnsiColor::Cyan.on_default();

/// Stdout.
pub(super) struct Screen {
    out: BufWriter<Box<dyn Write>>,
    /// Whether a program reads.
    pub is_json: bool,
    /// Whether colours are shown.
    pub is_coloured: bool,
    /// How many columns a line has, where that is known.
    pub width: Option<usize>,
}

impl Screen {
    /// Opens stdout: in colour if it is a terminal and `NO_COLOR` is not set.
    pub(super) fn stdout(is_json: bool) -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_refused = Self::refuses_colour();
        let size = rustix::termios::tcgetwinsize(&stdout).ok();
        Self {
            out: BufWriter::new(Box::new(stdout)),
            is_json,
            is_coloured: is_terminal && !is_dumb && !is_refused && !is_json,
            width: size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0),
        }
    }

    /// Says whether the user wants no colours (<https://no-color.org>).
    pub(super) fn refuses_colour() -> bool {
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
    }

    /// Has all that is shown from now on written elsewhere.
    pub(super) fn write_to(&mut self, out: Box<dyn Write>) -> io::Result<()> {
        self.out.flush()?;
        self.out = BufWriter::new(out);
        Ok(())
    }

    /// Writes a line.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// Writes bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Writes a value as one line of JSON.
    pub(super) fn json<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }

    /// Makes sure that everything is shown.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Colours a text, if colours are shown.
    pub(super) fn paint(&self, style: Style, text: &str) -> String {
        let is_painted = self.is_coloured && style != PLAIN && !text.is_empty();
        if is_painted { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// Writes rows under a header. On a terminal that is too narrow the texts give way, the last column first and then the
    /// widest; a number is always shown whole.
    pub(super) fn table(&mut self, header: &[&str], rows: &[Vec<Cell>]) -> io::Result<()> {
        let columns: Vec<Column> = (0..header.len()).map(|column| Column::of(header[column], rows, column)).collect();
        let widths = fit(&columns, self.width.unwrap_or(usize::MAX));
        let head =
            header.iter().zip(&columns).map(|(name, column)| Cell { is_right: column.is_number, ..Cell::new(*name) });
        let head: Vec<Cell> = head.map(|cell| cell.style(BOLD)).collect();
        for row in std::iter::once(&head).chain(rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let text = if cell.is_right { cell.text.clone() } else { cut(&cell.text, *width) };
                let gap = width.saturating_sub(text.width());
                let painted = self.paint(cell.style, &text);
                line += &if cell.is_right { format!("{:gap$}{painted}", "") } else { format!("{painted}{:gap$}", "") };
                line += GAP;
            }
            self.line(line.trim_end())?;
        }
        Ok(())
    }
}

/// What stands between two columns.
const GAP: &str = "  ";

/// The narrowest that a column of texts becomes on a terminal without room: every state is shown whole.
const TEXT_WIDTH_MIN: usize = 10;

/// What a column needs.
struct Column {
    width: usize,
    is_number: bool,
}

impl Column {
    fn of(name: &str, rows: &[Vec<Cell>], column: usize) -> Self {
        let cells = || rows.iter().filter_map(|row| row.get(column));
        let width = cells().map(|cell| cell.text.width()).chain([name.width()]).max().unwrap_or(0);
        Self { width, is_number: rows.first().and_then(|row| row.get(column)).is_some_and(|cell| cell.is_right) }
    }
}

/// Shares out the columns of a terminal.
fn fit(columns: &[Column], room: usize) -> Vec<usize> {
    let mut widths: Vec<usize> = columns.iter().map(|column| column.width).collect();
    let gaps = GAP.len() * columns.len().saturating_sub(1);
    let is_wide = |at: usize, widths: &[usize]| !columns[at].is_number && widths[at] > TEXT_WIDTH_MIN;
    loop {
        let excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(room);
        let last = columns.len().checked_sub(1).filter(|last| is_wide(*last, &widths));
        let widest = || (0..columns.len()).filter(|at| is_wide(*at, &widths)).max_by_key(|at| widths[*at]);
        let Some(at) = last.or_else(widest).filter(|_| excess > 0) else { return widths };
        // The widest one gives way until it is as wide as the next.
        let others = (0..columns.len()).filter(|other| *other != at && is_wide(*other, &widths));
        let next = others.map(|other| widths[other]).max().filter(|_| last.is_none()).unwrap_or(TEXT_WIDTH_MIN);
        let step = excess.min(widths[at] - next.clamp(TEXT_WIDTH_MIN, widths[at] - 1));
        widths[at] -= step;
    }
}

/// One field of a table.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
    is_right: bool,
}

impl Cell {
    /// A plain field. What comes from an agent is escaped here, all the rest passes unchanged.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: plain(&text.into()), style: PLAIN, is_right: false }
    }

    /// A number: aligned to the right.
    pub(super) fn number(text: impl ToString) -> Self {
        Self { is_right: true, ..Self::new(text.to_string()) }
    }

    /// Gives it a colour.
    pub(super) fn style(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

/// Makes a text one line that a terminal shows and does not obey.
pub(super) fn plain(text: &str) -> String {
    escape(text.as_bytes(), Colours::Escaped).replace('\t', " ")
}

/// Cuts a text that is wider than so many columns.
pub(super) fn cut(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    if room == 0 {
        return String::new();
    }
    let mut kept = String::new();
    for character in text.chars() {
        if kept.width() + 2 > room {
            break;
        }
        kept.push(character);
    }
    kept + "…"
}

/// Returns the colour of a state.
pub(super) fn state_style(state: State) -> Style {
    match state {
        State::Group => DIM,
        State::Queued | State::Starting | State::Backoff => WAIT,
        State::Running | State::Completed => GOOD,
        State::Paused | State::Stopping | State::Terminated => WARN,
        State::Failed | State::Stuck => BAD,
    }
}

/// Writes a time of day, local, to the millisecond.
pub(super) fn clock(wall: Wall) -> String {
    local(wall, "%H:%M:%S%.3f")
}

/// Writes a day and time, local, to the second.
pub(super) fn date(wall: Wall) -> String {
    local(wall, "%Y-%m-%d %H:%M:%S")
}

fn local(wall: Wall, format: &str) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(wall.0)) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime(format).to_string(),
        Err(_) => wall.to_string(),
    }
}

/// Writes a figure that is not always known.
pub(super) fn or_dash(figure: Option<impl std::fmt::Display>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
}

/// Writes a number of milliseconds: `850ms`, `12.3s`, `4m 05s`, `3h 12m`.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", seconds, ms % 1000 / 100),
        60_000..3_600_000 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_an_agent_does_nothing_to_a_terminal() {
        assert_eq!(plain("a\x1b[31m\tb\nc"), "a\\x1b[31m b\\x0ac");
        assert_eq!(Cell::new("\u{202e}x").text, "\\u{202e}x");
    }

    #[test]
    fn durations_are_as_exact_as_they_are_long() {
        let shown = [0, 999, 1_234, 61_000, 3_661_000].map(duration);
        assert_eq!(shown, ["0ms", "999ms", "1.2s", "1m 01s", "1h 01m"]);
    }

    #[test]
    fn on_a_narrow_terminal_names_give_way_and_numbers_never() {
        let column = |width, is_number| Column { width, is_number };
        let columns = [column(63, false), column(9, true), column(20, false), column(8, true), column(200, false)];
        assert_eq!(fit(&columns, usize::MAX), [63, 9, 20, 8, 200]);
        assert_eq!(fit(&columns, 200), [63, 9, 20, 8, 92], "the last one first");
        assert_eq!(fit(&columns, 80), [25, 9, 20, 8, 10], "then the widest");
        assert_eq!(fit(&columns, 70), [18, 9, 17, 8, 10], "then they give way alike");
        assert_eq!(fit(&columns, 5), [10, 9, 10, 8, 10], "a figure is whole on any terminal");
        assert_eq!(fit(&[column(63, false), column(8, true)], 30), [20, 8], "the last one may be a number");
        assert_eq!(fit(&[], 80), Vec::<usize>::new());
    }

    #[test]
    fn a_text_is_cut_by_columns_and_not_by_bytes() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert!(cut("漢字漢字", 5).width() <= 5);
    }
}
