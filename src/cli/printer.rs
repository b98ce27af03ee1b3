//! Writing without waiting: a bounded queue, and the thread that empties it into a descriptor.
//!
//! ```text
//! any thread ──offer──► [ queue, at most QUEUE_MAX bytes ] ──thread──► stderr · the journal · stdout
//!                │ full: dropped and counted                  │ error: dropped and counted
//!                └──────────────── reported once writing works again ◄┘
//! ```
//!
//! A reader that is gone, slow or stopped, a full disk and a terminal under Ctrl-S delay this thread alone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How many bytes may wait to be written.
const QUEUE_MAX: usize = 1 << 20;

/// The stack of the thread, in bytes: it formats an error at most.
const STACK: usize = 128 << 10;

/// Where a printer's texts go.
pub(super) trait Sink: Send + 'static {
    /// Writes one text, however long that takes.
    fn write(&mut self, text: &[u8]) -> io::Result<()>;

    /// Reports that texts were lost, once writing works again and nothing else waits to be written.
    fn report(&mut self, loss: &Loss);

    /// There is room again, or writing fails: called after each text.
    fn wrote(&mut self) {}
}

/// What was not written.
#[derive(Clone, Debug, Default)]
pub(super) struct Loss {
    /// How many texts.
    pub texts: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The error that was met last; `None` if the queue was full.
    pub error: Option<String>,
}

impl Loss {
    fn add(&mut self, text: &[u8]) {
        self.texts += 1;
        self.bytes += text.len() as u64;
    }

    /// Returns why, as a clause.
    pub(super) fn why(&self) -> &str {
        self.error.as_deref().unwrap_or("they came faster than they could be written")
    }
}

/// A queue of texts that a thread of its own writes.
#[derive(Clone)]
pub(super) struct Printer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    some: Condvar,
    /// Everything is written.
    none: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    /// How many bytes wait, those included that are being written.
    bytes: usize,
    loss: Loss,
    is_asleep: bool,
}

impl Printer {
    /// Starts the thread. It lives as long as the process.
    pub(super) fn start(name: &str, sink: impl Sink) -> io::Result<Self> {
        let printer = Self(Arc::default());
        let shared = Arc::clone(&printer.0);
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
        thread.spawn(move || shared.work(sink))?;
        Ok(printer)
    }

    /// Queues a text, or counts it as lost where it finds no room.
    pub(super) fn offer(&self, text: Vec<u8>) {
        let mut state = self.0.lock();
        if state.bytes + text.len() > QUEUE_MAX && !state.waiting.is_empty() {
            return state.loss.add(&text);
        }
        self.0.push(state, text);
    }

    /// Queues a text though there may be no room: for a caller that stops when [`Printer::has_room`] says so.
    pub(super) fn put(&self, text: Vec<u8>) {
        self.0.push(self.0.lock(), text);
    }

    /// Returns whether the queue is less than full.
    pub(super) fn has_room(&self) -> bool {
        self.0.lock().bytes < QUEUE_MAX
    }

    /// Waits until everything is written, for so long at most, and returns what is not.
    pub(super) fn finish(&self, most: Duration) -> Loss {
        let deadline = Instant::now() + most;
        let mut state = self.0.lock();
        while state.bytes > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.0.none.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut loss = state.loss.clone();
        loss.bytes += state.bytes as u64;
        loss
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut state: MutexGuard<'_, State>, text: Vec<u8>) {
        if text.is_empty() {
            return;
        }
        state.bytes += text.len();
        state.waiting.push_back(text);
        if state.is_asleep {
            self.some.notify_one();
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if let Some(text) = state.waiting.pop_front() {
                return text;
            }
            state.is_asleep = true;
            state = self.some.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.is_asleep = false;
        }
    }

    fn work(&self, mut sink: impl Sink) {
        loop {
            let text = self.next();
            let outcome = sink.write(&text);
            let mut state = self.lock();
            state.bytes -= text.len();
            let mut loss = None;
            match outcome {
                Err(error) => {
                    state.loss.add(&text);
                    state.loss.error = Some(error.to_string());
                }
                Ok(()) if state.loss.texts > 0 && state.waiting.is_empty() => {
                    loss = Some(std::mem::take(&mut state.loss));
                }
                Ok(()) => {}
            }
            if state.bytes == 0 {
                self.none.notify_all();
            }
            drop(state);
            if let Some(loss) = loss {
                sink.report(&loss);
            }
            sink.wrote();
        }
    }
}

/// Writes all of a text to a descriptor, and waits where that does not block by itself: a terminal is shared with programs that set
/// `O_NONBLOCK`.
pub(super) fn write_all(fd: impl AsFd, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match rustix::io::write(&fd, text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            },
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A sink that writes when the test lets it.
    struct Gate {
        open: Receiver<io::Result<()>>,
        told: Sender<String>,
    }

    impl Sink for Gate {
        fn write(&mut self, text: &[u8]) -> io::Result<()> {
            let outcome = self.open.recv().unwrap_or(Ok(()));
            if outcome.is_ok() {
                self.told.send(format!("{} bytes", text.len())).unwrap_or_default();
            }
            outcome
        }

        fn report(&mut self, loss: &Loss) {
            self.told.send(format!("lost {}: {}", loss.texts, loss.why())).unwrap_or_default();
        }
    }

    #[test]
    fn what_finds_no_room_or_no_reader_is_counted_and_reported_when_writing_works_again() {
        let ((gate, open), (told, heard)) = (channel(), channel());
        let printer = Printer::start("test", Gate { open, told }).unwrap();
        for _ in 0..10 {
            printer.offer(vec![b'x'; QUEUE_MAX / 4]);
        }
        assert!(!printer.has_room(), "the first four fit");
        assert!(printer.finish(Duration::ZERO).bytes >= QUEUE_MAX as u64, "nobody waits");
        gate.send(Err(io::Error::from(io::ErrorKind::BrokenPipe))).unwrap();
        (0..3).for_each(|_| gate.send(Ok(())).unwrap());
        let heard: Vec<String> = heard.iter().take(4).collect();
        assert_eq!(heard[..3], ["262144 bytes", "262144 bytes", "262144 bytes"]);
        assert!(heard[3].starts_with("lost 7: "), "{heard:?}");
        assert_eq!(printer.finish(Duration::from_secs(30)).texts, 0);
    }
}
