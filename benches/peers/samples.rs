//! All that was measured, and why the rest was not.

use std::collections::BTreeMap;

/// What is measured, in the order in which it is shown.
pub const MEASURES: [Measure; 13] = [
    Measure { key: "up-50", head: "50 up", unit: "ms", shown: &[50] },
    Measure { key: "up-1000", head: "1,000 up", unit: "ms", shown: &[50] },
    Measure { key: "crash", head: "crash to restart", unit: "ms", shown: &[50, 99] },
    Measure { key: "crash-busy", head: "the same, CPUs busy", unit: "ms", shown: &[50, 99] },
    Measure { key: "stop", head: "stop", unit: "ms", shown: &[50] },
    Measure { key: "survivors", head: "survivors", unit: "", shown: &[100] },
    Measure { key: "pss-50", head: "memory, 50", unit: "KiB", shown: &[50] },
    Measure { key: "pss-1000", head: "memory, 1,000", unit: "KiB", shown: &[50] },
    Measure { key: "pss-each", head: "each one more", unit: "KiB", shown: &[50] },
    Measure { key: "wakeups", head: "idle: wakeups a second", unit: "", shown: &[50] },
    Measure { key: "cpu", head: "idle: CPU", unit: "ms/s", shown: &[50] },
    Measure { key: "output", head: "output", unit: "MB/s", shown: &[50] },
    Measure { key: "output-cpu", head: "its CPU", unit: "s/GB", shown: &[50] },
];

pub struct Measure {
    pub key: &'static str,
    pub head: &'static str,
    pub unit: &'static str,
    /// The percentiles that are shown.
    pub shown: &'static [usize],
}

/// Figures by measure and peer.
#[derive(Default)]
pub struct Samples {
    figures: BTreeMap<(&'static str, &'static str), Vec<f64>>,
    reasons: BTreeMap<(&'static str, &'static str), String>,
    /// From which makers processes survived.
    pub kinds: BTreeMap<&'static str, std::collections::BTreeSet<&'static str>>,
}

impl Samples {
    pub fn add(&mut self, measure: &'static str, peer: &'static str, values: impl IntoIterator<Item = f64>) {
        self.figures.entry((measure, peer)).or_default().extend(values);
    }

    pub fn refuse(&mut self, measure: &'static str, peer: &'static str, why: &str) {
        eprintln!("  {peer}: {measure}: {why}");
        self.reasons.insert((measure, peer), why.to_owned());
    }

    pub fn tell_kinds(&mut self, peer: &'static str, kinds: impl Iterator<Item = &'static str>) {
        self.kinds.entry(peer).or_default().extend(kinds);
    }

    /// Says whether a figure could not be had before.
    pub fn is_out(&self, measure: &'static str, peer: &'static str) -> bool {
        self.reasons.contains_key(&(measure, peer))
    }

    pub fn reason(&self, measure: &'static str, peer: &'static str) -> Option<&str> {
        self.reasons.get(&(measure, peer)).map(String::as_str)
    }

    /// Returns how many values there are, and a percentile of them: 0 to 100.
    pub fn at(&self, measure: &'static str, peer: &'static str, percent: usize) -> Option<(usize, f64)> {
        let mut values = self.figures.get(&(measure, peer)).filter(|values| !values.is_empty())?.clone();
        values.sort_by(f64::total_cmp);
        Some((values.len(), values[((values.len() - 1) * percent).div_ceil(100)]))
    }
}
