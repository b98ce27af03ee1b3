//! Medians, spreads, and the table that they are shown in.

use std::fmt;

/// The middle and the width of a series of measurements.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Spread {
    pub p10: f64,
    pub p50: f64,
    pub p90: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: usize| values[(values.len() - 1) * share / 100];
        Self { p10: at(10), p50: at(50), p90: at(90) }
    }

    /// Makes one of a single figure.
    pub fn single(value: f64) -> Self {
        Self { p10: value, p50: value, p90: value }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p10, p50, p90 } = self;
        if p10 == p90 { write!(f, "{p50:.3}") } else { write!(f, "{p50:.3} [{p10:.3} – {p90:.3}]") }
    }
}

/// What a figure is held to.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub enum Target {
    /// It is only told.
    None,
    /// The median is at most so many times the floor's.
    Ratio(f64),
    /// The median is at most this.
    Most(f64),
}

/// One figure.
#[derive(Debug, serde::Serialize)]
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub floor: Option<Spread>,
    pub ours: Spread,
    pub ratio: Option<f64>,
    pub target: Target,
    pub is_met: Option<bool>,
}

/// All figures of a run.
#[derive(Debug, Default, serde::Serialize)]
pub struct Table(Vec<Row>);

impl Table {
    /// Adds a figure that has a floor.
    pub fn compare(&mut self, name: &str, unit: &'static str, (floor, ours): (Spread, Spread), target: Target) {
        self.add(name, unit, Some(floor), ours, target);
    }

    /// Adds a figure that stands for itself.
    pub fn tell(&mut self, name: &str, unit: &'static str, ours: Spread, target: Target) {
        self.add(name, unit, None, ours, target);
    }

    fn add(&mut self, name: &str, unit: &'static str, floor: Option<Spread>, ours: Spread, target: Target) {
        let ratio = floor.map(|floor| ours.p50 / floor.p50);
        let is_met = match target {
            Target::None => None,
            Target::Ratio(most) => ratio.map(|ratio| ratio <= most),
            Target::Most(most) => Some(ours.p50 <= most),
        };
        let row = Row { name: name.to_owned(), unit, floor, ours, ratio, target, is_met };
        eprintln!("  {}", row.cells().join("  "));
        self.0.push(row);
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap()
    }
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let target = match self.target {
            Target::None => "-".to_owned(),
            Target::Ratio(most) => format!("≤ {most}x"),
            Target::Most(most) => format!("≤ {most}"),
        };
        let is_met = match self.is_met {
            None => "-",
            Some(true) => "met",
            Some(false) => "MISSED",
        };
        [
            format!("{} ({})", self.name, self.unit),
            self.floor.map_or("-".to_owned(), |floor| floor.to_string()),
            self.ours.to_string(),
            self.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x")),
            target,
            is_met.to_owned(),
        ]
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["what (unit)", "floor p50 [p10 – p90]", "ours p50 [p10 – p90]", "ratio", "target", ""];
        let rows: Vec<_> = [head.map(str::to_owned)].into_iter().chain(self.0.iter().map(Row::cells)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for row in rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Measures the floor and ours in turn, the one that begins changing with each round. The first rounds are warm-up.
pub fn alternate(rounds: usize, mut floor: impl FnMut() -> f64, mut ours: impl FnMut() -> f64) -> (Spread, Spread) {
    let warm_up = (rounds / 20).max(1);
    let (mut floors, mut all) = (Vec::new(), Vec::new());
    for round in 0..rounds + warm_up {
        let (bare, own);
        if round % 2 == 0 {
            bare = floor();
            own = ours();
        } else {
            own = ours();
            bare = floor();
        }
        if round >= warm_up {
            floors.push(bare);
            all.push(own);
        }
    }
    (Spread::of(floors), Spread::of(all))
}
