//! The report: a table, a chart, and the figures for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::peer::{BARE, DAEMON, OURS, Peer};
use crate::roles::MAKERS;
use crate::samples::{MEASURES, Measure, Samples};

/// The tables: what is done, and what it costs.
const TABLES: [&[&str]; 2] = [
    &["up-50", "up-1000", "crash", "crash-busy", "survivors", "stop"],
    &["pss-50", "pss-1000", "pss-each", "wakeups", "cpu", "output", "output-cpu"],
];

/// The panels of the chart.
const PANELS: [(&str, &str); 4] = [
    ("up-50", "50 services up, ms"),
    ("crash", "crash to restart, p50, ms"),
    ("pss-50", "memory for 50 services, KiB"),
    ("survivors", "processes that survive a stop"),
];

pub struct Report {
    pub present: Vec<(&'static Peer, String)>,
    pub absent: Vec<(&'static str, String)>,
    pub samples: Samples,
    pub is_quick: bool,
}

fn measure(key: &str) -> &'static Measure {
    MEASURES.iter().find(|measure| measure.key == key).unwrap()
}

/// Writes a number with three digits.
fn short(value: f64) -> String {
    match value {
        value if value == value.trunc() && value < 1e6 => format!("{value}"),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

impl Report {
    /// Describes the machine.
    fn machine() -> String {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let info = read("/proc/cpuinfo");
        let model =
            info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |it| it.1);
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
        format!("{cpus} CPUs ({model}), Linux {}, load at the end {load}", read("/proc/sys/kernel/osrelease"))
    }

    fn cell(&self, key: &str, peer: &'static str) -> String {
        let measure = measure(key);
        let values: Option<Vec<_>> =
            measure.shown.iter().map(|percent| Some(self.samples.at(measure.key, peer, *percent)?.1)).collect();
        let Some(values) = values else {
            return self.samples.reason(measure.key, peer).map_or_else(|| "-".to_owned(), |_| "no".to_owned());
        };
        let mut text = values.iter().map(|value| short(*value)).collect::<Vec<_>>().join(" / ");
        if key == "survivors" {
            let kinds = self.samples.kinds.get(peer).map_or(0, std::collections::BTreeSet::len);
            return if kinds == 0 { text } else { format!("{text}, of {kinds} kinds") };
        }
        let ours = self.samples.at(measure.key, OURS, measure.shown[0]).map(|(_, value)| value);
        if let Some(ours) = ours.filter(|ours| *ours > 0.0 && peer != OURS) {
            write!(text, " ({}×)", short(values[0] / ours)).unwrap();
        }
        text
    }

    fn is_measured(&self, key: &str) -> bool {
        self.present.iter().any(|(peer, _)| self.samples.at(measure(key).key, peer.name, 50).is_some())
    }

    /// Shows the tables, what is to be known about the peers, and why what is missing is.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}.\n\n", Self::machine());
        for keys in TABLES {
            let keys: Vec<&str> = keys.iter().copied().filter(|key| self.is_measured(key)).collect();
            let heads = keys.iter().map(|key| {
                let measure = measure(key);
                let percent = if measure.shown.len() > 1 { ", p50 / p99" } else { "" };
                let unit = if measure.unit.is_empty() { String::new() } else { format!(", {}", measure.unit) };
                format!("{}{percent}{unit}", measure.head)
            });
            writeln!(text, "| | {} |\n|{}", heads.collect::<Vec<_>>().join(" | "), " --- |".repeat(keys.len() + 1))
                .unwrap();
            for (peer, version) in &self.present {
                let cells: Vec<_> = keys.iter().map(|key| self.cell(key, peer.name)).collect();
                writeln!(text, "| {} {version} | {} |", peer.name, cells.join(" | ")).unwrap();
            }
            text.push('\n');
        }
        for (peer, _) in &self.present {
            writeln!(text, "- {}: {}", peer.name, peer.note).unwrap();
        }
        for (name, why) in &self.absent {
            writeln!(text, "- Not measured: {name}: {why}").unwrap();
        }
        for (peer, _) in &self.present {
            let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for measure in &MEASURES {
                if let Some(why) = self.samples.reason(measure.key, peer.name) {
                    missing.entry(why).or_default().push(measure.head);
                }
            }
            for (why, heads) in missing {
                writeln!(text, "- No {} of {}: {why}", heads.join(", no "), peer.name).unwrap();
            }
        }
        writeln!(text, "\nWhat leaves processes behind in the column of survivors:").unwrap();
        for (maker, what) in MAKERS {
            let whose = self.present.iter().map(|(peer, _)| peer.name);
            let from: Vec<_> =
                whose.filter(|name| self.samples.kinds.get(name).is_some_and(|it| it.contains(maker))).collect();
            let from = if from.is_empty() { "nobody".to_owned() } else { from.join(", ") };
            writeln!(text, "- {what}: survives {from}").unwrap();
        }
        text
    }

    /// Says for each target whether it is met.
    pub fn verdicts(&self) -> Vec<String> {
        let at = |measure: &'static str, peer| self.samples.at(measure, peer, 50).map(|(_, value)| value);
        let below = |what: &str, measure: &'static str, peer: &'static str, more: f64| {
            // What holds a terminal open is no daemon's memory.
            let own = if measure.starts_with("pss") { DAEMON } else { OURS };
            let (ours, theirs) = (at(measure, own)?, at(measure, peer)? + more);
            let verdict = if ours < theirs { "met" } else { "MISSED" };
            Some(format!("{verdict}: {what}: {} against {}", short(ours), short(theirs)))
        };
        let zero = |what: &str, measure: &'static str| {
            let ours = self.samples.at(measure, OURS, 100)?.1;
            Some(format!("{}: {what}: {}", if ours == 0.0 { "met" } else { "MISSED" }, short(ours)))
        };
        let verdicts = [
            zero("survivors", "survivors"),
            below("crash to restart, below dinit's", "crash", "dinit", 0.0),
            below("the same with all CPUs busy", "crash-busy", "dinit", 0.0),
            below("50 up, below s6's", "up-50", "s6", 0.0),
            below("50 up, below dinit's", "up-50", "dinit", 0.0),
            below("memory of 50, below dinit's and 4 KiB each", "pss-50", "dinit", 50.0 * 4.0),
            below("memory of 1,000, below dinit's and 4 KiB each", "pss-1000", "dinit", 1_000.0 * 4.0),
            zero("wakeups of an idle herd", "wakeups"),
        ];
        verdicts.into_iter().flatten().collect()
    }

    pub fn json(&self) -> serde_json::Value {
        let figures = MEASURES.iter().flat_map(|measure| {
            self.present.iter().map(move |(peer, _)| {
                let at = |percent| self.samples.at(measure.key, peer.name, percent).map(|(_, value)| value);
                serde_json::json!({
                    "measure": measure.key, "unit": measure.unit, "peer": peer.name, "p10": at(10), "p50": at(50),
                    "p90": at(90), "p99": at(99), "count": self.samples.at(measure.key, peer.name, 50).map(|(count, _)| count),
                    "why_not": self.samples.reason(measure.key, peer.name),
                })
            })
        });
        let peers: Vec<_> = self
            .present
            .iter()
            .map(|(peer, version)| serde_json::json!({ "name": peer.name, "version": version, "note": peer.note }))
            .collect();
        let absent: Vec<_> =
            self.absent.iter().map(|(name, why)| serde_json::json!({ "name": name, "why_not": why })).collect();
        serde_json::json!({
            "machine": Self::machine(), "is_quick": self.is_quick, "peers": peers, "absent": absent,
            "figures": figures.collect::<Vec<_>>(), "survivors": self.samples.kinds,
        })
    }

    /// Draws four panels of bars, one for each peer; the lengths are logarithms, so that all can be seen.
    fn svg(&self) -> String {
        let (row, head, label, bar) = (17, 30, 104, 190);
        let panel = (label + bar + 90, head + row * self.present.len() + 14);
        let size = (panel.0 * 2, panel.1 * PANELS.len().div_ceil(2));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            size.0, size.1
        );
        for (index, (key, title)) in PANELS.into_iter().enumerate() {
            let (x, y) = (panel.0 * (index % 2), panel.1 * (index / 2));
            writeln!(svg, "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{title}</text>", x + 6, y + 18).unwrap();
            let measure = measure(key);
            let at = |peer| self.samples.at(measure.key, peer, measure.shown[0]).map(|(_, value)| value);
            let values: Vec<_> = self.present.iter().map(|(peer, _)| (peer.name, at(peer.name))).collect();
            let present = || values.iter().filter_map(|(_, value)| *value).filter(|value| *value > 0.0);
            let (low, high) = (present().fold(f64::MAX, f64::min) / 2.0, present().fold(0.0, f64::max));
            for (line, (name, value)) in values.iter().enumerate() {
                let (top, middle) = (y + head + line * row, y + head + line * row + 11);
                writeln!(svg, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>", x + label - 4)
                    .unwrap();
                let share =
                    value.filter(|value| *value > 0.0).map_or(0.0, |value| (value / low).ln() / (high / low).ln());
                let color = match *name {
                    OURS | DAEMON => "#1b7f4b",
                    BARE => "#b8b8b8",
                    _ => "#5b8db8",
                };
                let (left, width) = (x + label, share * bar as f64);
                let height = row - 4;
                writeln!(
                    svg,
                    "<rect x=\"{left}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{color}\"/>"
                )
                .unwrap();
                let text = value.map_or_else(|| "-".to_owned(), short);
                writeln!(svg, "<text x=\"{:.1}\" y=\"{middle}\">{text}</text>", left as f64 + width + 4.0).unwrap();
            }
        }
        svg + "</svg>\n"
    }

    /// Puts table and chart into README, and the figures beside this program.
    pub fn write(&self) {
        put_into_readme("peers", &self.markdown());
        std::fs::write(root().join("benches/peers/chart.svg"), self.svg()).unwrap();
        keep("figures.json", &self.json());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Writes figures for programs.
pub fn keep(file: &str, figures: &serde_json::Value) {
    std::fs::write(root().join("benches/peers").join(file), serde_json::to_string_pretty(figures).unwrap() + "\n")
        .unwrap();
}

/// Puts a table into README, between the two lines that are its own.
pub fn put_into_readme(whose: &str, table: &str) {
    let path = root().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {whose}: written by"), format!("<!-- {whose}: end -->"));
    let at = readme.find(&begin).expect("README has the line that the table stands below");
    let from = at + readme[at..].find('\n').unwrap() + 1;
    let to = from + readme[from..].find(&end).expect("README has the line that the table stands above");
    std::fs::write(&path, format!("{}{}\n\n{}", &readme[..from], table.trim_end(), &readme[to..])).unwrap();
}
