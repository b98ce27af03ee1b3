//! How a command ends: exit statuses, and errors on stderr.

use std::io;
use std::process::ExitCode;

use super::log;
use crate::model::error::{Code, Error};

/// How a command ended.
pub(super) type Done = Result<ExitCode, Failure>;

/// The thing asked about failed.
pub(super) const FAILED: u8 = 1;
const USAGE: u8 = 2;
const REFUSED: u8 = 3;
const NO_SUCH_AGENT: u8 = 4;
const NO_DAEMON: u8 = 5;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was refused, or failed.
    Error(Error),
    /// Stdout could not be written.
    Stdout(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Stdout(error)
    }
}

impl Failure {
    /// Tells it on stderr and returns the exit status. A reader of stdout that has seen enough is no failure.
    pub(super) fn report(self, is_json: bool) -> ExitCode {
        let error = match self {
            Self::Error(error) => error,
            Self::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Stdout(error) => Error::new(Code::Kernel, format!("write to stdout: {error}")),
        };
        tell(&error, is_json);
        ExitCode::from(status(error.code))
    }
}

/// Tells an error on stderr.
pub(super) fn tell(error: &Error, is_json: bool) {
    let text = if is_json {
        serde_json::to_string(error).unwrap_or_default()
    } else {
        use crate::output::{Colours, escape};
        let line = |text: &str| escape(text.as_bytes(), Colours::Escaped);
        let mut text = format!("treeherd: {}", line(&error.message));
        if let Some(remedy) = &error.remedy {
            text += &format!("\n  help: {}", line(remedy));
        }
        text
    };
    say(text);
}

/// Tells a remark on stderr.
pub(super) fn note(text: &str) {
    say(format!("treeherd: {text}"));
}

/// Writes a text and its newline at once: nobody else's line comes in between.
fn say(mut text: String) {
    text.push('\n');
    log::say(text.into_bytes());
}

/// Tells what is wrong with the command line, or the help that was asked for, and returns the exit status.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    let is_json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if error.kind() == clap::error::ErrorKind::InvalidUtf8 {
        let words = std::env::args_os().enumerate().filter(|(_, word)| word.to_str().is_none());
        let words: Vec<String> = words.map(|(number, word)| format!("argument {number}, {word:?}")).collect();
        let error = Error::new(Code::BadValue, format!("not UTF-8: {}", words.join("; ")));
        tell(&error.remedy("only paths of files may be; names, commands and values are text"), is_json);
        return ExitCode::from(USAGE);
    }
    if is_json && error.use_stderr() {
        let text = error.render().to_string();
        let text = text.trim_start_matches("error: ");
        let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
        let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
        tell(&Error::new(Code::BadValue, message.trim()).remedy(rest), true);
    } else {
        error.print().unwrap_or_default();
    }
    ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
}

/// Returns the exit status for a refusal.
pub(super) fn status(code: Code) -> u8 {
    match code {
        Code::NoDaemon => NO_DAEMON,
        Code::NoSuchAgent => NO_SUCH_AGENT,
        Code::BadId | Code::BadValue | Code::BadTree => USAGE,
        Code::SpawnFailed | Code::ExecFailed | Code::TimedOut | Code::Kernel => FAILED,
        _ => REFUSED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_tells_usage_refusal_absence_and_failure_apart() {
        for (code, expected) in [
            (Code::BadId, 2),
            (Code::BoundReached, 3),
            (Code::Forbidden, 3),
            (Code::NoSuchParent, 3),
            (Code::NoSuchAgent, 4),
            (Code::NoDaemon, 5),
            (Code::ExecFailed, 1),
        ] {
            assert_eq!(status(code), expected, "{code:?}");
        }
    }
}
