//! Limits: which knobs there are, what each is called, which controller enforces it, and what fits into what.
//!
//! One table ([`Knob::ALL`]) feeds the parser, the command line's flags, the tree file, the documents and the writers:
//! a knob's name is the kernel's file with `.` as `_`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{Code, Error};
use super::pressure::PressureRule;
use super::units::{Bytes, CpuMax, CpuSet, IoMax, Max};

/// A resource controller of the kernel, bound at start to cgroup2, to a v1 hierarchy, or to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// Memory and swap.
    Memory,
    /// The number of tasks.
    Pids,
    /// CPU time.
    Cpu,
    /// The CPUs that may be used.
    Cpuset,
    /// Block I/O (`blkio` on v1).
    Io,
    /// Huge pages.
    Hugetlb,
}

impl Controller {
    /// Every controller, in the order in which tables show them.
    pub const ALL: [Self; 6] = [Self::Memory, Self::Pids, Self::Cpu, Self::Cpuset, Self::Io, Self::Hugetlb];

    /// Returns cgroup2's name of the controller.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Io => "io",
            Self::Hugetlb => "hugetlb",
        }
    }

    /// Returns the v1 name of the controller.
    #[must_use]
    pub fn v1_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            other => other.name(),
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One thing that can be limited. Its name is cgroup2's file name with `.` as `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Knob {
    /// Memory above which the OOM killer acts, in bytes.
    MemoryMax,
    /// Memory above which the cgroup is throttled and reclaimed, in bytes.
    MemoryHigh,
    /// Memory that is reclaimed only when nothing else is left, in bytes.
    MemoryLow,
    /// Memory that is never reclaimed, in bytes.
    MemoryMin,
    /// Swap that may be used, in bytes.
    MemorySwapMax,
    /// Whether an OOM kill takes the whole cgroup.
    MemoryOomGroup,
    /// Tasks (threads count) that may exist.
    PidsMax,
    /// CPU time in a period.
    CpuMax,
    /// Share of CPU time under contention, 1 to 10,000, 100 by default.
    CpuWeight,
    /// CPUs that may be used.
    CpusetCpus,
    /// Rates on one block device.
    IoMax,
    /// Share of block I/O under contention, 1 to 10,000, 100 by default.
    IoWeight,
    /// Huge pages of 2 MiB, in bytes.
    Hugetlb2MbMax,
    /// Huge pages of 1 GiB, in bytes.
    Hugetlb1GbMax,
}

impl Knob {
    /// Every knob, in the order in which tables show them.
    pub const ALL: [Self; 14] = [
        Self::MemoryMax,
        Self::MemoryHigh,
        Self::MemoryLow,
        Self::MemoryMin,
        Self::MemorySwapMax,
        Self::MemoryOomGroup,
        Self::PidsMax,
        Self::CpuMax,
        Self::CpuWeight,
        Self::CpusetCpus,
        Self::IoMax,
        Self::IoWeight,
        Self::Hugetlb2MbMax,
        Self::Hugetlb1GbMax,
    ];

    /// Returns the knob's name in tree files, requests and events: `memory_max`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryMax => "memory_max",
            Self::MemoryHigh => "memory_high",
            Self::MemoryLow => "memory_low",
            Self::MemoryMin => "memory_min",
            Self::MemorySwapMax => "memory_swap_max",
            Self::MemoryOomGroup => "memory_oom_group",
            Self::PidsMax => "pids_max",
            Self::CpuMax => "cpu_max",
            Self::CpuWeight => "cpu_weight",
            Self::CpusetCpus => "cpuset_cpus",
            Self::IoMax => "io_max",
            Self::IoWeight => "io_weight",
            Self::Hugetlb2MbMax => "hugetlb_2MB_max",
            Self::Hugetlb1GbMax => "hugetlb_1GB_max",
        }
    }

    /// Returns the name of the knob's file on cgroup2: `memory.max`.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::MemoryMax => "memory.max",
            Self::MemoryHigh => "memory.high",
            Self::MemoryLow => "memory.low",
            Self::MemoryMin => "memory.min",
            Self::MemorySwapMax => "memory.swap.max",
            Self::MemoryOomGroup => "memory.oom.group",
            Self::PidsMax => "pids.max",
            Self::CpuMax => "cpu.max",
            Self::CpuWeight => "cpu.weight",
            Self::CpusetCpus => "cpuset.cpus",
            Self::IoMax => "io.max",
            Self::IoWeight => "io.weight",
            Self::Hugetlb2MbMax => "hugetlb.2MB.max",
            Self::Hugetlb1GbMax => "hugetlb.1GB.max",
        }
    }

    /// Returns the controller that enforces the knob.
    #[must_use]
    pub fn controller(self) -> Controller {
        match self {
            Self::MemoryMax
            | Self::MemoryHigh
            | Self::MemoryLow
            | Self::MemoryMin
            | Self::MemorySwapMax
            | Self::MemoryOomGroup => Controller::Memory,
            Self::PidsMax => Controller::Pids,
            Self::CpuMax | Self::CpuWeight => Controller::Cpu,
            Self::CpusetCpus => Controller::Cpuset,
            Self::IoMax | Self::IoWeight => Controller::Io,
            Self::Hugetlb2MbMax | Self::Hugetlb1GbMax => Controller::Hugetlb,
        }
    }

    /// Returns what the command line's help says of the knob.
    #[must_use]
    pub fn help(self) -> &'static str {
        match self {
            Self::MemoryMax => "Memory above which the OOM killer acts (512MiB, 2GB, bytes, max)",
            Self::MemoryHigh => "Memory above which the subtree is throttled and reclaimed",
            Self::MemoryLow => "Memory that is reclaimed only when nothing else is left",
            Self::MemoryMin => "Memory that is never reclaimed",
            Self::MemorySwapMax => "Swap that may be used",
            Self::MemoryOomGroup => "Whether an OOM kill takes the whole subtree (true, false)",
            Self::PidsMax => "Tasks, threads included, that may exist at once",
            Self::CpuMax => "CPU time: 150% of one CPU, or 'QUOTA PERIOD' in microseconds",
            Self::CpuWeight => "Share of CPU time under contention, 1 to 10000 (default 100)",
            Self::CpusetCpus => "CPUs that may be used, as in 0-3,8",
            Self::IoMax => "Rates on a block device: 'MAJOR:MINOR rbps=N wbps=N riops=N wiops=N'",
            Self::IoWeight => "Share of block I/O under contention, 1 to 10000 (default 100)",
            Self::Hugetlb2MbMax => "Huge pages of 2 MiB, in bytes",
            Self::Hugetlb1GbMax => "Huge pages of 1 GiB, in bytes",
        }
    }

    /// Reads a setting of this knob from its text.
    ///
    /// # Errors
    /// [`Code::BadValue`], naming the knob and what it takes.
    pub fn parse(self, text: &str) -> Result<Setting, Error> {
        let bytes = |text: &str| text.parse::<Max<Bytes>>().map(Setting::Bytes);
        let setting = match self {
            Self::MemoryMax => bytes(text).and_then(|setting| match setting {
                Setting::Bytes(Max::Value(value)) if value < MEMORY_MAX_LEAST => {
                    Err(format!("{text:?} is below {MEMORY_MAX_LEAST}, the least in which a process can be started"))
                }
                setting => Ok(setting),
            }),
            Self::MemoryHigh
            | Self::MemoryLow
            | Self::MemoryMin
            | Self::MemorySwapMax
            | Self::Hugetlb2MbMax
            | Self::Hugetlb1GbMax => bytes(text),
            Self::MemoryOomGroup => match text {
                "true" | "1" => Ok(Setting::Flag(true)),
                "false" | "0" => Ok(Setting::Flag(false)),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            Self::PidsMax => match text.parse::<Max<u64>>() {
                Ok(Max::Value(0)) => Err("0 lets no process start".to_owned()),
                Ok(Max::Value(count)) if count > PIDS_MAX_MOST => Err(format!(
                    "{text:?} is above {PIDS_MAX_MOST}, the most that the kernel takes; use max for no limit"
                )),
                Ok(count) => Ok(Setting::Count(count)),
                Err(_) => Err(format!("{text:?} is neither a whole number nor max")),
            },
            Self::CpuMax => text.parse().map(Setting::Cpu),
            Self::CpuWeight | Self::IoWeight => match text.parse::<u16>() {
                Ok(weight) if (1..=10_000).contains(&weight) => Ok(Setting::Weight(weight)),
                _ => Err(format!("{text:?} is not a weight from 1 to 10000")),
            },
            Self::CpusetCpus => text.parse().map(Setting::Cpus),
            Self::IoMax => text.parse().map(Setting::Io),
        };
        setting.map_err(|why| Error::new(Code::BadValue, format!("{}: {why}", self.name())))
    }
}

/// The least `memory_max`: below about 1 MiB the kernel cannot bring a process as far as its `exec`.
pub const MEMORY_MAX_LEAST: Bytes = Bytes(1 << 20);

/// The most `pids_max`: the kernel's `PID_MAX_LIMIT` on 64 bits.
pub const PIDS_MAX_MOST: u64 = 4 << 20;

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Knob {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        // The kernel's own spelling (`memory.max`) and the flag's (`memory-max`) are understood too.
        let wanted = text.replace(['.', '-'], "_");
        Self::ALL.into_iter().find(|knob| knob.name().eq_ignore_ascii_case(&wanted)).ok_or_else(|| {
            let known = Self::ALL.map(Self::name);
            let nearest = known
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, &wanted).total_cmp(&strsim::jaro_winkler(b, &wanted)));
            let shown: String = text.chars().take(40).collect();
            let error = Error::new(Code::BadValue, format!("no limit is called {shown:?}"));
            error.remedy(format!("did you mean {}? All are: {}", nearest.unwrap_or(&""), known.join(" ")))
        })
    }
}

/// The value of a [`Knob`], of the type that the knob takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// An amount in bytes, or none.
    Bytes(Max<Bytes>),
    /// A number of tasks, or none.
    Count(Max<u64>),
    /// A quota of CPU time.
    Cpu(CpuMax),
    /// A share, 1 to 10,000.
    Weight(u16),
    /// On or off.
    Flag(bool),
    /// A set of CPUs.
    Cpus(CpuSet),
    /// Rates on a block device.
    Io(IoMax),
}

impl Setting {
    /// Says whether this setting allows more than `other`, a setting of the same knob, does.
    /// Weights and flags are relative to siblings and never wider.
    #[must_use]
    pub fn is_wider_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bytes(mine), Self::Bytes(theirs)) => mine.is_wider_than(theirs),
            (Self::Count(mine), Self::Count(theirs)) => mine.is_wider_than(theirs),
            (Self::Cpu(mine), Self::Cpu(theirs)) => mine.is_wider_than(theirs),
            (Self::Cpus(mine), Self::Cpus(theirs)) => !mine.is_within(theirs),
            (Self::Io(mine), Self::Io(theirs)) => mine.is_wider_than(theirs),
            _ => false,
        }
    }
}

impl Setting {
    /// Returns the setting as an amount that can be summed: bytes, tasks, or thousandths of a CPU. None for what has no
    /// amount, `max` included.
    #[must_use]
    pub fn amount(&self) -> Option<u128> {
        match self {
            Self::Bytes(bytes) => bytes.value().map(|bytes| bytes.0.into()),
            Self::Count(count) => count.value().map(u128::from),
            Self::Cpu(max) => max.quota.value().map(|quota| u128::from(quota) * 1000 / u128::from(max.period)),
            Self::Weight(_) | Self::Flag(_) | Self::Cpus(_) | Self::Io(_) => None,
        }
    }
}

/// Writes the setting in the form that cgroup2's file takes.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(Max::Value(bytes)) => bytes.0.fmt(f),
            Self::Bytes(Max::Max) => f.write_str("max"),
            Self::Count(count) => count.fmt(f),
            Self::Cpu(max) => max.fmt(f),
            Self::Weight(weight) => weight.fmt(f),
            Self::Flag(flag) => u8::from(*flag).fmt(f),
            Self::Cpus(set) => set.fmt(f),
            Self::Io(max) => max.fmt(f),
        }
    }
}

/// A limit that holds for a herd, and that is not the herd's: of a cgroup that the herd is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitAbove {
    /// What is limited.
    pub knob: Knob,
    /// The limit.
    pub setting: Setting,
    /// The directory of the cgroup that has it.
    pub path: String,
}

impl fmt::Display for LimitAbove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.setting {
            // As people read it.
            Setting::Bytes(Max::Value(bytes)) => write!(f, "{} {bytes}", self.knob)?,
            setting => write!(f, "{} {setting}", self.knob)?,
        }
        write!(f, " at {}", self.path)
    }
}

/// A set of limits: at most one setting for each knob. On the wire an object: `{"memory_max": 536870912}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits(BTreeMap<Knob, Setting>);

impl Limits {
    /// Returns the setting of a knob, if there is one.
    #[must_use]
    pub fn get(&self, knob: Knob) -> Option<&Setting> {
        self.0.get(&knob)
    }

    /// Sets a knob.
    pub fn set(&mut self, knob: Knob, setting: Setting) {
        self.0.insert(knob, setting);
    }

    /// Drops the setting of a knob.
    pub fn remove(&mut self, knob: Knob) {
        self.0.remove(&knob);
    }

    /// Walks over the settings in the order of [`Knob::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Knob, &Setting)> {
        self.0.iter().map(|(knob, setting)| (*knob, setting))
    }

    /// Says whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns these limits with those of `over` in place of the same knobs.
    #[must_use]
    pub fn overlaid(&self, over: &Self) -> Self {
        let mut both = self.clone();
        both.0.extend(over.iter().map(|(knob, setting)| (knob, setting.clone())));
        both
    }

    /// Returns the first setting that is wider than the one in `outer`, with the outer one.
    #[must_use]
    pub fn first_wider_than<'a>(&'a self, outer: &'a Self) -> Option<(Knob, &'a Setting, &'a Setting)> {
        self.iter().find_map(|(knob, mine)| {
            let theirs = outer.get(knob)?;
            mine.is_wider_than(theirs).then_some((knob, mine, theirs))
        })
    }

    /// Reads one `NAME=VALUE` into the set.
    ///
    /// # Errors
    /// [`Code::BadValue`]: no `=`, an unknown name (with the nearest known one), a value that does not parse.
    pub fn set_text(&mut self, text: &str) -> Result<(), Error> {
        let Some((name, value)) = text.split_once('=') else {
            let shown: String = text.chars().take(40).collect();
            return Err(
                Error::new(Code::BadValue, format!("{shown:?} is not NAME=VALUE")).remedy("as in memory_max=512MiB")
            );
        };
        let knob: Knob = name.trim().parse()?;
        self.set(knob, knob.parse(value.trim())?);
        Ok(())
    }
}

impl FromIterator<(Knob, Setting)> for Limits {
    fn from_iter<I: IntoIterator<Item = (Knob, Setting)>>(settings: I) -> Self {
        Self(settings.into_iter().collect())
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (knob, setting)) in self.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            write!(f, "{space}{knob}={setting}")?;
        }
        Ok(())
    }
}

impl Serialize for Limits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (knob, setting) in self.iter() {
            match setting {
                Setting::Bytes(Max::Value(bytes)) => map.serialize_entry(knob.name(), &bytes.0)?,
                Setting::Count(Max::Value(count)) => map.serialize_entry(knob.name(), count)?,
                Setting::Weight(weight) => map.serialize_entry(knob.name(), weight)?,
                Setting::Flag(flag) => map.serialize_entry(knob.name(), flag)?,
                other => map.serialize_entry(knob.name(), &other.to_string())?,
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Flag(bool),
            Number(u64),
            Negative(i64),
            Fraction(f64),
            Text(String),
        }
        struct IntoLimits;
        impl<'de> Visitor<'de> for IntoLimits {
            type Value = Limits;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of limits, as in { memory_max = \"512MiB\" }")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Limits, M::Error> {
                let mut limits = Limits::default();
                while let Some(name) = map.next_key::<String>()? {
                    let knob: Knob = name.parse().map_err(M::Error::custom)?;
                    let value = match map
                        .next_value::<Form>()
                        .map_err(|_| M::Error::custom(format!("{knob}: the value is not a number, a text or a flag")))?
                    {
                        Form::Flag(flag) => flag.to_string(),
                        Form::Number(number) => number.to_string(),
                        Form::Negative(number) => number.to_string(),
                        Form::Fraction(number) => number.to_string(),
                        Form::Text(text) => text,
                    };
                    limits.set(knob, knob.parse(&value).map_err(M::Error::custom)?);
                }
                Ok(limits)
            }
        }
        deserializer.deserialize_map(IntoLimits)
    }
}

/// What a level gives to its agents, and holds them to: its profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LevelLimits {
    /// For every agent of the level, over its subtree, unless the agent has its own.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub each: Limits,
    /// For all children of one parent together.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub siblings: Limits,
    /// For the sum of the agents' own limits over all branches, kept by admission. Amounts and counts only.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub total: Limits,
    /// The rules on pressure of every agent of the level, unless the agent has its own. Read at start only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pressure: Vec<PressureRule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_knob_has_one_name_and_finds_its_way_back() {
        for knob in Knob::ALL {
            assert_eq!(knob.name().parse(), Ok(knob));
            assert_eq!(knob.file().parse(), Ok(knob), "the kernel's own spelling is understood");
        }
        let error = "memory_mx".parse::<Knob>().unwrap_err();
        assert!(error.remedy.unwrap().contains("did you mean memory_max?"));
    }

    #[test]
    fn limits_survive_the_wire() {
        let mut limits = Limits::default();
        for text in [
            "memory_max=512MiB",
            "pids_max=64",
            "cpu_max=150%",
            "cpuset_cpus=0-1",
            "memory_oom_group=true",
            "memory_high=max",
        ] {
            limits.set_text(text).unwrap();
        }
        let json = serde_json::to_string(&limits).unwrap();
        assert_eq!(
            json,
            r#"{"memory_max":536870912,"memory_high":"max","memory_oom_group":true,"pids_max":64,"cpu_max":"150000 100000","cpuset_cpus":"0-1"}"#
        );
        assert_eq!(serde_json::from_str::<Limits>(&json).unwrap(), limits);
    }

    #[test]
    fn a_bad_limit_names_the_knob_and_the_cause() {
        for bad in [
            "memory_max=-1",
            "memory_max=10XB",
            "memory_max=99999999999999999999",
            "memory_max=4096",
            "pids_max=0",
            "cpu_weight=0",
            "memory_max",
            "=3",
        ] {
            let error = Limits::default().set_text(bad).unwrap_err();
            assert_eq!(error.code, Code::BadValue, "{bad}");
        }
        for bad in [
            r#"{"memory_max":-1}"#,
            r#"{"memory_max":18446744073709551616}"#,
            r#"{"memory_max":[]}"#,
            r#"{"x":1}"#,
            r#"{"pids_max":1.5}"#,
        ] {
            assert!(serde_json::from_str::<Limits>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wider_is_found_knob_by_knob() {
        let limits = |texts: &[&str]| {
            let mut limits = Limits::default();
            texts.iter().for_each(|text| limits.set_text(text).unwrap());
            limits
        };
        let outer = limits(&["memory_max=1GiB", "cpuset_cpus=0-1"]);
        assert!(limits(&["memory_max=1GiB", "pids_max=max"]).first_wider_than(&outer).is_none());
        assert_eq!(limits(&["memory_max=2GiB"]).first_wider_than(&outer).unwrap().0, Knob::MemoryMax);
        assert_eq!(limits(&["cpuset_cpus=2"]).first_wider_than(&outer).unwrap().0, Knob::CpusetCpus);
        assert_eq!(limits(&["memory_max=max"]).first_wider_than(&outer).unwrap().0, Knob::MemoryMax);
    }
}
