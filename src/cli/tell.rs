//! How events read: a mark, a colour, and a sentence for each.

use anstyle::Style;

use super::screen::{BAD, DIM, GOOD, PLAIN, WAIT, WARN, plain};
use crate::model::event::{Event, Kind};

/// Returns the mark and the colour of a kind.
pub(super) fn mark(kind: Kind) -> (&'static str, Style) {
    match kind {
        Kind::Started => ("▶", PLAIN),
        Kind::Completed => ("✔", GOOD),
        Kind::Failed | Kind::GaveUp | Kind::Escalated | Kind::Stuck => ("✘", BAD),
        Kind::Terminated => ("■", WARN),
        Kind::Stopping | Kind::HerdStopping => ("□", WARN),
        Kind::Paused => ("⏸", WAIT),
        Kind::Resumed => ("⏵", WAIT),
        Kind::Restarting | Kind::Queued | Kind::Delayed | Kind::Calm => ("↻", WAIT),
        Kind::Oom | Kind::Limit | Kind::Lagging | Kind::Overdue | Kind::Storm | Kind::Late | Kind::Forbidden => {
            ("⚠", WARN)
        }
        Kind::Stalled | Kind::StateStalled => ("⚠", WARN),
        _ => ("·", DIM),
    }
}

/// Returns the word of a kind without its family: `completed` for `process:completed`.
pub(super) fn word(kind: Kind) -> &'static str {
    kind.name().strip_prefix("process:").unwrap_or(kind.name())
}

/// Returns what happened, in a sentence; empty where the kind says it all.
pub(super) fn sentence(event: &Event) -> String {
    let message = event.sentence();
    match event.pid.filter(|_| event.kind == Kind::Started) {
        Some(pid) if message.is_empty() => format!("pid {pid}"),
        Some(pid) => plain(&format!("pid {pid}: {message}")),
        None => plain(&message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::{Cause, ExitRecord};
    use crate::model::time::Wall;

    #[test]
    fn an_event_reads_as_a_sentence_that_a_terminal_does_not_obey() {
        let mut event = Event::new(Wall(0), Kind::Failed);
        event.exit = Some(ExitRecord { status: Some(3), ..ExitRecord::new(Cause::Exit) });
        assert_eq!((word(event.kind), sentence(&event).as_str()), ("failed", "exit status 3"));
        event.message = "\x1b[2Jx".to_owned();
        assert_eq!(sentence(&event), "\\x1b[2Jx");
        for kind in Kind::ALL {
            assert!(!mark(*kind).0.is_empty());
        }
    }
}
