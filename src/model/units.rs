//! Amounts with their units: sizes, counts, CPU quotas, sets of CPUs, I/O rates.
//!
//! Sizes are read here and not by a crate: the crates for it go through floating point, and so take a number above
//! `u64::MAX` or a rounded one in silence.

use std::fmt;
use std::str::FromStr;

/// A limit that may be absent: the kernel's word for "no limit" is `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Max<T> {
    /// At most this much. (Ordered below [`Max::Max`].)
    Value(T),
    /// No limit.
    Max,
}

impl<T: PartialOrd> Max<T> {
    /// Says whether this limit allows more than `other` does.
    pub fn is_wider_than(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Max) => false,
            (Self::Max, Self::Value(_)) => true,
            (Self::Value(mine), Self::Value(theirs)) => mine > theirs,
        }
    }
}

impl<T> Max<T> {
    /// Returns the number, if there is a limit.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Max => None,
        }
    }
}

impl<T: fmt::Display> fmt::Display for Max<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => value.fmt(f),
            Self::Max => f.write_str("max"),
        }
    }
}

impl<T: FromStr> FromStr for Max<T> {
    type Err = T::Err;
    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "max" { Ok(Self::Max) } else { text.parse().map(Self::Value) }
    }
}

/// A number of bytes. Read from `512MiB` (1024²), `2GB` (1000³), `64K` (1024, the kernel's way) or plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const SIZE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("K", 1 << 10),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("M", 1 << 20),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("G", 1 << 30),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("T", 1 << 40),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
];

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let number = number.replace('_', "");
        if number.is_empty() {
            return Err(format!("{text:?} is not a size: it does not begin with a whole number"));
        }
        let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
            return Err(format!(
                "{text:?} is not a size: unknown unit {unit:?}; known are B, KiB, MiB, GiB, TiB, KB, MB, GB, TB"
            ));
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*factor))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is above the largest size, {} bytes", u64::MAX))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1u64 << 10)] {
            if self.0 >= factor {
                let (whole, tenths) = (self.0 / factor, self.0 % factor * 10 / factor);
                return if self.0.is_multiple_of(factor) {
                    f.pad(&format!("{whole}{unit}"))
                } else {
                    f.pad(&format!("{whole}.{tenths}{unit}"))
                };
            }
        }
        f.pad(&format!("{}B", self.0))
    }
}

impl serde::Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged, expecting = "a size is a text, as in 512MiB, or a whole number of bytes")]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// CPU time in a period: `150%` of one CPU, or the kernel's `QUOTA PERIOD` in microseconds, or `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMax {
    /// Microseconds of CPU time in each period, 1,000 at least.
    pub quota: Max<u64>,
    /// The length of a period in microseconds, 1,000 to 1,000,000.
    pub period: u64,
}

impl CpuMax {
    /// The kernel's own default period, in microseconds.
    pub const DEFAULT_PERIOD: u64 = 100_000;

    /// Says whether this quota allows a larger share of the CPUs than `other` does.
    #[must_use]
    pub fn is_wider_than(&self, other: &Self) -> bool {
        match (self.quota, other.quota) {
            (_, Max::Max) => false,
            (Max::Max, Max::Value(_)) => true,
            (Max::Value(mine), Max::Value(theirs)) => {
                u128::from(mine) * u128::from(other.period) > u128::from(theirs) * u128::from(self.period)
            }
        }
    }
}

impl FromStr for CpuMax {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let max = if let Some(percent) = text.strip_suffix('%') {
            let percent: u64 =
                percent.trim().parse().ok().filter(|percent| (1..=10_000_000).contains(percent)).ok_or_else(|| {
                    format!("{text:?} is not a CPU share: use a whole percentage of one CPU, from 1%")
                })?;
            Self { quota: Max::Value(percent * Self::DEFAULT_PERIOD / 100), period: Self::DEFAULT_PERIOD }
        } else {
            let mut words = text.split_whitespace();
            let wrong = || format!("{text:?} is not a CPU limit: use `150%`, `QUOTA PERIOD` in microseconds, or `max`");
            let quota: Max<u64> = words.next().ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
            let period = match words.next() {
                Some(word) => word.parse().map_err(|_| wrong())?,
                // A bare number would be the kernel's quota in microseconds, which nobody means who writes `cpu_max = 2`.
                None if quota == Max::Max => Self::DEFAULT_PERIOD,
                None => return Err(wrong()),
            };
            if words.next().is_some() {
                return Err(wrong());
            }
            Self { quota, period }
        };
        if !(1_000..=1_000_000).contains(&max.period) {
            return Err(format!("{text:?}: the period is 1000 to 1000000 microseconds"));
        }
        if max.quota.value().is_some_and(|quota| quota < 1_000) {
            return Err(format!("{text:?}: the quota is 1000 microseconds at least"));
        }
        if max.quota.value().is_some_and(|quota| quota > (1 << 44) / 1_000) {
            return Err(format!("{text:?}: the quota is above what the kernel takes; use `max` for no limit"));
        }
        Ok(max)
    }
}

impl fmt::Display for CpuMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.quota, self.period)
    }
}

/// A set of CPU numbers in the kernel's list form: `0-3,8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSet {
    ranges: Vec<(u32, u32)>,
}

impl CpuSet {
    /// Says whether every CPU of this set is in `other` too.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.ranges.iter().all(|(from, to)| other.ranges.iter().any(|(low, high)| low <= from && to <= high))
    }
}

impl FromStr for CpuSet {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a set of CPUs: use the kernel's list form, as in `0-3,8`");
        let mut ranges = Vec::new();
        for part in text.trim().split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let from: u32 = from.trim().parse().map_err(|_| wrong())?;
            let to: u32 = to.trim().parse().map_err(|_| wrong())?;
            if from > to || to >= 8192 {
                return Err(wrong());
            }
            ranges.push((from, to));
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some((_, end)) if from <= *end + 1 => *end = (*end).max(to),
                _ => merged.push((from, to)),
            }
        }
        Ok(Self { ranges: merged })
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (from, to)) in self.ranges.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if from == to {
                write!(f, "{comma}{from}")?;
            } else {
                write!(f, "{comma}{from}-{to}")?;
            }
        }
        Ok(())
    }
}

/// I/O rates of one block device, in the kernel's form: `8:0 rbps=1048576 wbps=max riops=max wiops=max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoMax {
    /// The device's major and minor number.
    pub device: (u32, u32),
    /// Bytes read in a second.
    pub rbps: Max<u64>,
    /// Bytes written in a second.
    pub wbps: Max<u64>,
    /// Read operations in a second.
    pub riops: Max<u64>,
    /// Write operations in a second.
    pub wiops: Max<u64>,
}

impl IoMax {
    /// Says whether this limit allows a higher rate than `other` does on the same device.
    #[must_use]
    pub fn is_wider_than(&self, other: &Self) -> bool {
        self.device == other.device
            && (self.rbps.is_wider_than(&other.rbps)
                || self.wbps.is_wider_than(&other.wbps)
                || self.riops.is_wider_than(&other.riops)
                || self.wiops.is_wider_than(&other.wiops))
    }
}

impl FromStr for IoMax {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("{text:?} is not an I/O limit ({why}): use `MAJOR:MINOR rbps=N wbps=N riops=N wiops=N`")
        };
        let mut words = text.split_whitespace();
        let device = words.next().and_then(|word| word.split_once(':')).ok_or_else(|| wrong("no device"))?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| wrong("the device is not two numbers"));
        let mut max = Self {
            device: (number(device.0)?, number(device.1)?),
            rbps: Max::Max,
            wbps: Max::Max,
            riops: Max::Max,
            wiops: Max::Max,
        };
        let mut given = 0;
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| wrong("a word without `=`"))?;
            let parse_rate = |value: &str| match value {
                "max" => Ok(Max::Max),
                value => value.parse::<Bytes>().map(|bytes| Max::Value(bytes.0)).map_err(|why| wrong(&why)),
            };
            let rate = parse_rate(value)?;
            if rate == Max::Value(0) {
                return Err(wrong("a rate of 0"));
            }
            match name {
                "rbps" => max.rbps = rate,
                "wbps" => max.wbps = rate,
                "riops" => max.riops = rate,
                "wiops" => max.wiops = rate,
                _ => return Err(wrong("an unknown rate")),
            }
            given += 1;
        }
        if given == 0 {
            return Err(wrong("no rate"));
        }
        Ok(max)
    }
}

impl fmt::Display for IoMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.device;
        write!(f, "{major}:{minor} rbps={} wbps={} riops={} wiops={}", self.rbps, self.wbps, self.riops, self.wiops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("1_000", 1000),
            ("512MiB", 512 << 20),
            ("2GB", 2_000_000_000),
            ("64K", 65_536),
            ("1 gib", 1 << 30),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in ["", "-1", "10XB", "1.5GiB", "18446744073709551616", "99999999TiB", "MiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_limits_are_percentages_or_the_kernels_pair() {
        assert_eq!("150%".parse(), Ok(CpuMax { quota: Max::Value(150_000), period: 100_000 }));
        assert_eq!("50000 100000".parse(), Ok(CpuMax { quota: Max::Value(50_000), period: 100_000 }));
        assert_eq!("max".parse(), Ok(CpuMax { quota: Max::Max, period: 100_000 }));
        for bad in ["", "2", "0%", "-5%", "5.5%", "1 100000", "5000 1", "a b", "1000 1000 1000"] {
            assert!(bad.parse::<CpuMax>().is_err(), "{bad}");
        }
        let (half, one): (CpuMax, CpuMax) = ("25000 50000".parse().unwrap(), "100%".parse().unwrap());
        assert!(one.is_wider_than(&half) && !half.is_wider_than(&one) && !half.is_wider_than(&half));
    }

    #[test]
    fn cpu_sets_are_normalised_and_compared() {
        let set: CpuSet = "3,0-1,2,8".parse().unwrap();
        assert_eq!(set.to_string(), "0-3,8");
        assert!("1-2".parse::<CpuSet>().unwrap().is_within(&set));
        assert!(!"4".parse::<CpuSet>().unwrap().is_within(&set));
        for bad in ["", "a", "3-1", "0-", "99999"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn io_limits_name_a_device_and_at_least_one_rate() {
        let max: IoMax = "8:0 wbps=1MiB".parse().unwrap();
        assert_eq!(max.to_string(), "8:0 rbps=max wbps=1048576 riops=max wiops=max");
        for bad in ["", "8", "8:0", "8:0 wbps", "8:0 wbps=0", "8:0 foo=1", "a:b wbps=1"] {
            assert!(bad.parse::<IoMax>().is_err(), "{bad}");
        }
    }

    #[test]
    fn max_is_wider_than_any_value() {
        assert!(Max::Max.is_wider_than(&Max::Value(1)));
        assert!(!Max::Value(1).is_wider_than(&Max::Max));
        assert!(!Max::Value(1).is_wider_than(&Max::Value(1)));
    }
}
