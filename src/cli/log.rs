//! The log of a supervisor in the foreground: to stderr, or straight to the journal. Whoever logs never waits for either.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::args::LogFormat;
use super::printer::{Loss, Printer, Sink, write_all};
use super::screen::Screen;
use crate::output::{Colours, escape};

/// How long the last lines may take, at the end of the process or before a panic ends it.
const LAST_LINES_MAX: Duration = Duration::from_secs(1);

/// Where the journal takes entries: systemd's "Native Journal Protocol".
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The longest value of a field of the journal, in bytes; an entry is one datagram.
const VALUE_MAX: usize = 48 << 10;

/// Who writes stderr, in a process that is a supervisor.
static STDERR: OnceLock<Printer> = OnceLock::new();

/// Has all that this process says on stderr written by a thread of its own, its log as well: in text or as JSON; or, if stderr is
/// the journal's, as entries with the fields `AGENT`, `LEVEL` and `RUN` (`journalctl AGENT=worker`). `RUST_LOG` says how much of it.
pub(super) fn start(format: LogFormat, otherwise: &str) -> io::Result<()> {
    let printer = Printer::start("stderr", Stderr)?;
    let stderr = STDERR.get_or_init(|| printer).clone();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(otherwise));
    let hook = || std::panic::set_hook(Box::new(panicked));
    if format == LogFormat::Text
        && goes_to_the_journal()
        && let Ok(socket) = UnixDatagram::unbound()
    {
        let journal = Journal(Printer::start("journal", Entries(socket))?);
        // A second one in the same process changes nothing.
        tracing_subscriber::registry().with(filter).with(journal).try_init().unwrap_or_default();
        hook();
        return Ok(());
    }
    let is_coloured = io::stderr().is_terminal() && !Screen::refuses_colour();
    let colours = if is_coloured { Colours::Kept } else { Colours::Escaped };
    let writer = move || Offered(stderr.clone(), colours);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    let log = log.log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_ansi(is_coloured).try_init(),
        LogFormat::Json => log.json().try_init(),
    }
    .unwrap_or_default();
    hook();
    Ok(())
}

/// Writes a text to stderr: at once, or, in a supervisor, when its turn comes.
pub(super) fn say(text: Vec<u8>) {
    match STDERR.get() {
        Some(printer) => printer.offer(text),
        // Where stderr is closed there is nobody to tell.
        None => io::stderr().write_all(&text).unwrap_or_default(),
    }
}

/// Gives what is still to be said a moment.
pub(super) fn finish() {
    if let Some(printer) = STDERR.get() {
        printer.finish(LAST_LINES_MAX);
    }
}

fn panicked(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    say(format!("thread {:?} {panic}\n", thread.name().unwrap_or_default()).into_bytes());
    finish();
}

/// Says whether stderr is the journal's: systemd.exec(5), `JOURNAL_STREAM`.
fn goes_to_the_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let own = rustix::fs::fstat(io::stderr()).ok().map(|about| format!("{}:{}", about.st_dev, about.st_ino));
    named.is_some() && named == own
}

fn report(loss: &Loss) {
    tracing::warn!("{} log lines were lost: {}", loss.texts, loss.why());
}

struct Stderr;

impl Sink for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        write_all(rustix::stdio::stderr(), text)
    }

    fn report(&mut self, loss: &Loss) {
        report(loss);
    }
}

/// A formatter's way into the queue: it writes each line by one call.
struct Offered(Printer, Colours);

impl Write for Offered {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.offer(one_line(line, self.1));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes one line of a message, whatever text of an agent is in it: nothing in it begins a line of its own, is obeyed by a
/// terminal, or reorders what stands beside it.
fn one_line(message: &[u8], colours: Colours) -> Vec<u8> {
    let text = message.strip_suffix(b"\n").unwrap_or(message);
    let mut line = escape(text, colours).into_bytes();
    line.push(b'\n');
    line
}

struct Entries(UnixDatagram);

impl Sink for Entries {
    /// The socket is named each time: a journal that was restarted has another one.
    fn write(&mut self, entry: &[u8]) -> io::Result<()> {
        self.0.send_to(entry, JOURNAL).map(drop)
    }

    fn report(&mut self, loss: &Loss) {
        report(loss);
    }
}

struct Journal(Printer);

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        entry.put("PRIORITY", priority(event.metadata().level()));
        entry.put("SYSLOG_IDENTIFIER", "treeherd");
        event.record(&mut entry);
        self.0.offer(entry.0);
    }
}

/// Returns syslog's number for a level.
fn priority(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    }
}

/// One entry of the journal.
#[derive(Default)]
struct Entry(Vec<u8>);

impl Entry {
    fn put(&mut self, name: &str, value: &str) {
        let mut end = value.len().min(VALUE_MAX);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let value = &value[..end];
        self.0.extend_from_slice(name.to_ascii_uppercase().as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field.name(), &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_line_ends_controls_and_bidi_is_one_line_of_the_log() {
        let message = "WARN cwd /x\n2026 WARN forged\r\x1b[2J\u{202e}\n";
        let line = String::from_utf8(one_line(message.as_bytes(), Colours::Escaped)).unwrap();
        assert_eq!(line, "WARN cwd /x\\x0a2026 WARN forged\\x0d\\x1b[2J\\u{202e}\n");
    }

    #[test]
    fn an_entry_of_the_journal_is_in_its_native_protocol() {
        let mut entry = Entry::default();
        entry.put("message", "a=b");
        entry.put("AGENT", "x\ny");
        assert_eq!(entry.0, b"MESSAGE=a=b\nAGENT\n\x03\0\0\0\0\0\0\0x\ny\n");
    }
}
