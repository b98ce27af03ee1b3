//! What a process tells its supervisor of itself: the messages of sd_notify(3), one `NAME=VALUE` a line.
//!
//! Only what has a meaning here is read; `FDSTORE=1`, `RELOADING=1`, `ERRNO=` and all others are passed over, as the
//! protocol asks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest message, in bytes: systemd's own bound. A longer one is not read at all.
pub const NOTE_MOST: usize = 4096;

/// How much of a `STATUS=` is kept, in bytes.
pub const STATUS_MOST: usize = 256;

/// How far a run has come, by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// It was started.
    #[default]
    Nothing,
    /// It is ready.
    Ready,
    /// It is about to end by itself.
    Stopping,
}

impl Told {
    /// Says whether it has told nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

/// One thing that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// `READY=1`: the start is over.
    Ready,
    /// `STOPPING=1`: it is about to end by itself.
    Stopping,
    /// `MAINPID=`: the process whose end is the run's, if it is one of this run.
    Main(i32),
    /// `STATUS=`: how it is, in its own words; [`STATUS_MOST`] bytes at most.
    Status(String),
    /// `WATCHDOG=1`: it lives.
    Beat,
    /// `WATCHDOG=trigger`: it wants to be treated as if it had missed its heartbeat.
    Trigger,
    /// `WATCHDOG_USEC=`: from now on it will beat so often; with 0 no more.
    Period(Duration),
    /// `EXTEND_TIMEOUT_USEC=`: it needs so much more time from now on for what it is about.
    Extend(Duration),
}

impl Note {
    /// Reads a message. What is not known or makes no sense is passed over: a program may speak of more than is heard here.
    #[must_use]
    pub fn parse(message: &[u8]) -> Vec<Self> {
        message.split(|byte| *byte == b'\n').filter_map(Self::line).collect()
    }

    fn line(line: &[u8]) -> Option<Self> {
        let at = memchr::memchr(b'=', line)?;
        let (name, value) = (&line[..at], &line[at + 1..]);
        match (name, value) {
            (b"READY", b"1") => Some(Self::Ready),
            (b"STOPPING", b"1") => Some(Self::Stopping),
            (b"STATUS", text) => Some(Self::Status(shortened(text))),
            (b"MAINPID", number) => {
                std::str::from_utf8(number).ok()?.parse().ok().filter(|pid| *pid > 1).map(Self::Main)
            }
            (b"WATCHDOG", b"1") => Some(Self::Beat),
            (b"WATCHDOG", b"trigger") => Some(Self::Trigger),
            (b"WATCHDOG_USEC", number) => micros(number).map(Self::Period),
            (b"EXTEND_TIMEOUT_USEC", number) => micros(number).map(Self::Extend),
            _ => None,
        }
    }
}

fn micros(number: &[u8]) -> Option<Duration> {
    std::str::from_utf8(number).ok()?.parse().ok().map(Duration::from_micros)
}

/// Returns a text as UTF-8, cut where a character ends.
fn shortened(text: &[u8]) -> String {
    let mut kept = String::from_utf8_lossy(&text[..text.len().min(STATUS_MOST)]).into_owned();
    let mut end = kept.len().min(STATUS_MOST);
    while !kept.is_char_boundary(end) {
        end -= 1;
    }
    kept.truncate(end);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_line_by_line_and_what_is_not_known_is_passed_over() {
        let message = b"READY=1\nMAINPID=7\nSTATUS=Up = running\nWATCHDOG_USEC=20000000\nWATCHDOG=1\nnonsense\n";
        let notes = [
            Note::Ready,
            Note::Main(7),
            Note::Status("Up = running".to_owned()),
            Note::Period(Duration::from_secs(20)),
            Note::Beat,
        ];
        assert_eq!(Note::parse(message), notes);
        for nothing in
            [&b""[..], b"READY=0", b"READY=10", b"ready=1", b"WATCHDOG=", b"\0\xff=\n=1", b"EXTEND_TIMEOUT_USEC=-1"]
        {
            assert_eq!(Note::parse(nothing), [], "{nothing:?}");
        }
    }

    #[test]
    fn numbers_beyond_all_bounds_are_passed_over() {
        assert_eq!(Note::parse(b"WATCHDOG_USEC=18446744073709551615").len(), 1);
        assert_eq!(Note::parse(b"WATCHDOG_USEC=18446744073709551616"), []);
    }

    #[test]
    fn a_status_is_bounded_and_always_text() {
        let long = [b"STATUS=".as_slice(), &"ä".repeat(STATUS_MOST).into_bytes()].concat();
        let broken = [b"STATUS=".as_slice(), &[0xff; STATUS_MOST]].concat();
        for message in [long, broken] {
            let notes = Note::parse(&message);
            let [Note::Status(text)] = notes.as_slice() else { panic!("{notes:?}") };
            assert!(!text.is_empty() && text.len() <= STATUS_MOST, "{} bytes", text.len());
        }
    }
}
