//! The texts in which the kernel shows limits, read into [`Setting`]s.

use crate::model::limits::Setting;
use crate::model::units::{Bytes, CpuMax, IoMax, Max};

/// What v1 shows for "no limit": the largest number of pages that it can count, in bytes of 4 KiB pages.
pub(super) const UNCOUNTABLE: u64 = 0x7fff_ffff_ffff_f000;

/// Reads `max` or a number of bytes.
pub(super) fn bytes(text: &str) -> Option<Setting> {
    bytes_max(text).map(|value| Setting::Bytes(max_bytes(value)))
}

/// Reads `max` or a number; what is above all that can be counted is `max` (pages may be larger than 4 KiB).
pub(super) fn bytes_max(text: &str) -> Option<Max<u64>> {
    let value: Max<u64> = text.trim().parse().ok()?;
    Some(match value {
        Max::Value(value) if value >= UNCOUNTABLE - (1 << 16) => Max::Max,
        value => value,
    })
}

/// Puts the unit on an amount.
pub(super) fn max_bytes(value: Max<u64>) -> Max<Bytes> {
    match value {
        Max::Value(value) => Max::Value(Bytes(value)),
        Max::Max => Max::Max,
    }
}

/// Takes the unit off an amount.
pub(super) fn plain(value: Max<Bytes>) -> Max<u64> {
    match value {
        Max::Value(value) => Max::Value(value.0),
        Max::Max => Max::Max,
    }
}

/// Reads `max` or a count.
pub(super) fn count(text: &str) -> Option<Setting> {
    text.trim().parse().ok().map(Setting::Count)
}

/// Reads `QUOTA PERIOD`.
pub(super) fn cpu_max(text: &str) -> Option<Setting> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some(Setting::Cpu(CpuMax { quota: quota.parse().ok()?, period: period.parse().ok()? }))
}

/// Reads `100`, or `default 100` and lines for single devices below it.
pub(super) fn weight(text: &str) -> Option<Setting> {
    let first = text.lines().next()?;
    first.strip_prefix("default ").unwrap_or(first).trim().parse().ok().map(Setting::Weight)
}

/// Finds a device's line of `io.max`; a device without one has no limit. Rates that are not known are passed over.
pub(super) fn io_max(text: &str, device: (u32, u32)) -> IoMax {
    let mut max = IoMax { device, rbps: Max::Max, wbps: Max::Max, riops: Max::Max, wiops: Max::Max };
    let name = format!("{}:{} ", device.0, device.1);
    for word in text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("").split_whitespace() {
        let Some((rate, value)) = word.split_once('=') else { continue };
        let Ok(value) = value.parse() else { continue };
        match rate {
            "rbps" => max.rbps = value,
            "wbps" => max.wbps = value,
            "riops" => max.riops = value,
            "wiops" => max.wiops = value,
            _ => {}
        }
    }
    max
}

/// Finds a device's rate in a `blkio.throttle.*_device` file; a device without a line has no limit.
pub(super) fn throttle(text: &str, device: (u32, u32)) -> Max<u64> {
    let name = format!("{}:{} ", device.0, device.1);
    let rate = text.lines().find_map(|line| line.strip_prefix(&name)).and_then(|rate| rate.trim().parse().ok());
    rate.map_or(Max::Max, Max::Value)
}

/// Finds the first device in a file with a line for each.
pub(super) fn first_device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_whitespace().next()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_that_cannot_be_counted_are_no_limit() {
        assert_eq!(bytes_max("max\n"), Some(Max::Max));
        assert_eq!(bytes_max("9223372036854771712\n"), Some(Max::Max));
        assert_eq!(bytes_max("4096\n"), Some(Max::Value(4096)));
        assert_eq!(bytes_max("x"), None);
    }

    #[test]
    fn io_lines_are_found_by_their_device_and_unknown_rates_passed_over() {
        let text = "8:0 rbps=1 wbps=max riops=2 wiops=max new=7\n8:16 rbps=9 wbps=9 riops=9 wiops=9\n";
        let max = io_max(text, (8, 0));
        assert_eq!((max.rbps, max.wbps, max.riops), (Max::Value(1), Max::Max, Max::Value(2)));
        assert_eq!(io_max(text, (8, 1)).rbps, Max::Max);
        assert_eq!(io_max(text, (8, 16)).wiops, Max::Value(9));
        assert_eq!(first_device(text), Some((8, 0)));
        assert_eq!(throttle("254:0 1048576\n", (254, 0)), Max::Value(1_048_576));
        assert_eq!(throttle("254:0 1048576\n", (254, 1)), Max::Max);
    }

    #[test]
    fn weights_may_come_with_the_word_default() {
        assert_eq!(weight("default 100\n8:0 200\n"), Some(Setting::Weight(100)));
        assert_eq!(weight("57\n"), Some(Setting::Weight(57)));
        assert_eq!(cpu_max("max 100000\n"), Some(Setting::Cpu(CpuMax { quota: Max::Max, period: 100_000 })));
    }
}
