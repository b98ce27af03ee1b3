//! The stdout of a run: written by a thread of its own, so that a reader that is slow, stopped or gone delays no signal and no death.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::failure::note;
use super::super::printer::{Loss, Printer, Sink, write_all};
use super::super::screen::Screen;

/// Stdout, behind a bounded queue. What finds no room in it is not read from the supervisor: it waits in the agents' spools.
pub(super) struct Paper {
    printer: Printer,
    /// Has a byte when there is room again.
    room: UnixStream,
    is_awaited: Arc<AtomicBool>,
}

impl Paper {
    /// Starts the thread, and has all that the screen shows go through its queue.
    pub(super) fn behind(screen: &mut Screen) -> io::Result<Self> {
        let (room, wake) = UnixStream::pair()?;
        room.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let is_awaited = Arc::new(AtomicBool::new(false));
        let sink = Stdout { wake, is_awaited: Arc::clone(&is_awaited), has_failed: false };
        let printer = Printer::start("stdout", sink)?;
        screen.write_to(Box::new(Queued(printer.clone())))?;
        Ok(Self { printer, room, is_awaited })
    }

    /// Returns whether more can be shown. If not, [`Paper::room`] becomes readable when it can.
    pub(super) fn has_room(&self) -> bool {
        // One byte at most is in it.
        let _woken = (&self.room).read(&mut [0; 8]).unwrap_or(0);
        self.is_awaited.store(true, Ordering::SeqCst);
        self.printer.has_room()
    }

    pub(super) fn room(&self) -> BorrowedFd<'_> {
        self.room.as_fd()
    }

    /// Gives what is still to be shown a moment, and reports what nobody has read by then.
    pub(super) fn finish(&self, most: Duration) {
        let left = self.printer.finish(most);
        if left.bytes > 0 {
            note(&format!("{} bytes of output were not shown: {}", left.bytes, left.error.as_deref().unwrap_or(SLOW)));
        }
    }
}

const SLOW: &str = "nobody reads stdout";

/// A screen's way into the queue.
struct Queued(Printer);

impl Write for Queued {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.put(text.to_vec());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Stdout {
    wake: UnixStream,
    is_awaited: Arc<AtomicBool>,
    has_failed: bool,
}

impl Sink for Stdout {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let outcome = write_all(rustix::stdio::stdout(), text);
        if let Err(error) = &outcome
            && !std::mem::replace(&mut self.has_failed, true)
        {
            note(&format!("write to stdout: {error}; the agents go on, and `treeherd logs` shows what they write"));
        }
        outcome
    }

    fn report(&mut self, loss: &Loss) {
        self.has_failed = false;
        note(&format!("{} bytes of output were not shown: {}", loss.bytes, loss.why()));
    }

    fn wrote(&mut self) {
        if self.is_awaited.swap(false, Ordering::SeqCst) {
            self.wake.write_all(b"r").unwrap_or_default();
        }
    }
}
