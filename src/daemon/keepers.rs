//! The keepers of the herd's output pipes: as many pairs as it takes, where a process may have few descriptors. Of each pair one
//! splices, and the other one holds the pipes, so that the end of one leaves nobody without a reader. The daemon holds them as well
//! while it has descriptors to spare, so that the end of both does not, either.
//!
//! A keeper outlives the daemon; the next one finds it by its socket in the state directory. Shared by all hands: an agent's pipes
//! are given to a keeper on the thread that starts the agent, and a keeper is started where the last one has no room.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::io::Errno;

use super::job::Tools;
use super::supervisor::Source;
use crate::kernel::error::KernelError;
use crate::kernel::keeper::{Keeper, Order, Report, Streams};
use crate::kernel::process;
use crate::kernel::socket::is_missing;
use crate::model::error::{Code, Error};
use crate::output::Pipes;

/// How many pairs there can be; each serves up to 16,384 agents, or a quarter as many as a process may have descriptors.
const PAIRS_MAX: usize = 32;

/// How long the end of a keeper may take when the herd has ended: it writes what is left.
pub(super) const END_MAX: Duration = Duration::from_secs(2);

/// The daemon holds pipes itself until it has used this part of the descriptors that it may have.
const HELD_PART: u64 = 4;

/// The read ends of an agent's pipes, as the daemon holds them. Closing them waits for the keeper
/// that splices, and for any process that holds a pipe's lock: never on the loop, and never on the
/// thread of the disk.
#[derive(Debug)]
#[must_use]
pub(super) struct Ends([OwnedFd; 2]);

impl Ends {
    fn are_affordable(&self) -> bool {
        let Self([_, err]) = self;
        process::is_among_first(err.as_fd(), HELD_PART)
    }
}

/// All keepers.
#[derive(Debug)]
pub(super) struct Keepers {
    dir: PathBuf,
    registry: Registry,
    book: Mutex<Book>,
    /// Held by the thread that starts one: none is started for each of those that found no room.
    starting: Mutex<()>,
}

#[derive(Debug)]
struct Book {
    pairs: Vec<Pair>,
    /// Who keeps which pipes.
    whose: HashMap<u64, Place>,
    /// Keepers that have ended, by number, until the loop takes notice.
    ended: Vec<(usize, Arc<Keeper>)>,
    /// The pipes that a keeper, by number, is to forget once its socket takes orders again.
    owed: HashMap<usize, Vec<u64>>,
    /// Keepers that epoll has not taken, by number, until the loop takes notice.
    unpolled: Vec<usize>,
    /// The herd has ended: none is started any more.
    is_over: bool,
}

/// Two keepers.
#[derive(Debug, Default)]
struct Pair {
    /// The one that splices, and the one that holds.
    keepers: [Option<Arc<Keeper>>; 2],
    agents: usize,
}

/// Who keeps an agent's pipes. They stay with their pair, as long as one of it lives: no two keepers may splice from one pipe.
#[derive(Debug)]
struct Place {
    pair: usize,
    /// Whether this daemon has only found them with a keeper, and has given them to none.
    is_found: bool,
    /// Whether this daemon has given them to both.
    is_sure: bool,
    ends: Option<Ends>,
}

/// Sweeps the keepers when its last owner drops it: the jobs that have adopted pipes kept own it. A
/// job that never ends leaves the keepers with a few pipes too many until the next daemon.
#[derive(Debug)]
pub(super) struct Sweep(pub Arc<Tools>);

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.keepers.sweep();
    }
}

/// What a keeper had to tell.
#[derive(Debug)]
pub(super) enum Heard {
    /// Reports, and no more for now.
    Reports(Vec<Report>),
    /// Reports, then its end. It is to be reaped.
    End(Vec<Report>, Arc<Keeper>),
}

impl Keepers {
    /// Connects to the keepers that an earlier daemon has left.
    ///
    /// # Errors
    /// A socket that is somebody else's; what the kernel answered.
    pub fn open(dir: &Path, registry: Registry) -> Result<Self, Error> {
        let pairs = std::iter::repeat_with(Pair::default).take(PAIRS_MAX).collect();
        let (whose, owed, ended, unpolled) = (HashMap::new(), HashMap::new(), Vec::new(), Vec::new());
        let book = Book { pairs, whose, ended, owed, unpolled, is_over: false };
        let keepers = Self { dir: dir.to_owned(), registry, book: Mutex::new(book), starting: Mutex::new(()) };
        for number in 0..2 * PAIRS_MAX {
            if let Some(keeper) = Keeper::find(&keepers.path(number))? {
                keepers.enter(number, keeper);
            }
        }
        Ok(keepers)
    }

    fn path(&self, number: usize) -> PathBuf {
        self.dir.join(format!("keeper-{number}"))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, number: usize, keeper: Keeper) {
        let fd = keeper.as_fd().as_raw_fd();
        let polled = self.registry.register(&mut SourceFd(&fd), Source::Keeper(number).token(), Interest::READABLE);
        let mut book = self.book();
        // What epoll refuses the loop polls by the clock.
        book.unpolled.extend(polled.is_err().then_some(number));
        keeper.had.iter().for_each(|token| book.note(*token, number / 2, true));
        book.pairs[number / 2].keepers[number % 2] = Some(Arc::new(keeper));
    }

    /// Says whether somebody keeps these pipes.
    pub fn has(&self, token: u64) -> bool {
        self.book().whose.get(&token).is_some_and(|place| place.is_sure)
    }

    /// Has an agent's pipes kept. Waits while the keeper has much to read, and for a new one where there is no room.
    ///
    /// # Errors
    /// No keeper could be started, or none takes the pipes.
    pub fn keep(&self, pipes: Pipes) -> Result<(), Error> {
        let Pipes { token, ends, files } = pipes;
        let streams = Streams { token, pipes: ends, spools: files };
        // A keeper that is just ending does not count.
        for _ in 0..3 {
            let (pair, [splices, holds]) = self.with_room(token)?;
            // The holder first: from then on there is a reader, whatever becomes of the other one.
            let held = holds.hold(&streams).map_err(|error| (2 * pair + 1, &holds, error));
            let kept = held.and_then(|()| splices.keep(&streams).map_err(|error| (2 * pair, &splices, error)));
            match kept {
                Ok(()) => {
                    let surplus = self.book().note_kept(token, Ends(streams.pipes));
                    // Not while the book is locked: this may wait.
                    drop(surplus);
                    return Ok(());
                }
                Err((number, keeper, error)) if matches!(error.errno, Errno::PIPE | Errno::CONNRESET) => {
                    self.lose(number, keeper);
                    keeper.reap(END_MAX);
                }
                Err((_, _, error)) => {
                    drop(self.note_gone(token));
                    return Err(error.into());
                }
            }
        }
        Err(Error::new(Code::Kernel, "keepers of output pipes end as soon as they have started")
            .remedy("choose output = \"file\", or find out what ends them"))
    }

    /// Reserves a place for an agent with a pair of keepers, starting those that are missing.
    fn with_room(&self, token: u64) -> Result<(usize, [Arc<Keeper>; 2]), Error> {
        if let Some(found) = self.book().reserve(token) {
            return Ok(found);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let full = || Error::new(Code::Kernel, "no further keeper of output pipes can be started");
        let (pair, missing) = self.book().next(token).ok_or_else(full)?;
        for number in missing.into_iter().flatten() {
            self.enter(number, Keeper::start(&self.path(number))?);
        }
        let found = self.book().reserve_in(pair, token);
        found.ok_or_else(|| {
            let error = Error::new(Code::Kernel, "a keeper of output pipes may have too few descriptors for one agent");
            error.remedy("raise the limit on open files (LimitNOFILE=)")
        })
    }

    /// Has what is in an agent's pipes written, and this ticket reported then. Says whether there is somebody who does.
    pub fn drain(&self, token: u64, ticket: u64) -> bool {
        let splices = self.pair_of(token).and_then(|[splices, _]| splices);
        splices.is_some_and(|keeper| keeper.send(&Order::Drain { token, ticket }).is_ok())
    }

    /// Has what is in an agent's pipes written, and the pipes closed by their keepers. What the daemon has of them is the caller's to
    /// close.
    pub fn forget(&self, token: u64) -> Option<Ends> {
        let pair = self.book().pair_that_has(token)?;
        for number in [2 * pair, 2 * pair + 1] {
            self.send_owed(number, Some(token));
        }
        self.note_gone(token)
    }

    /// Sends a keeper what it is to forget. A keeper that is held up takes no more than its socket
    /// holds: the rest is sent when the socket is writable again, which is polled for until then.
    fn send_owed(&self, number: usize, another: Option<u64>) {
        let mut book = self.book();
        let mut owed = book.owed.remove(&number).unwrap_or_default();
        let was_full = !owed.is_empty();
        owed.extend(another);
        let Some(keeper) = book.pairs.get(number / 2).and_then(|pair| pair.keepers[number % 2].clone()) else { return };
        let is_full = |token| {
            let sent = keeper.send(&Order::Forget { token });
            // One that has ended has nothing left to forget.
            sent.is_err_and(|error| error.errno == Errno::AGAIN)
        };
        while owed.pop_if(|token| !is_full(*token)).is_some() {}
        if was_full || !owed.is_empty() {
            let writable = (!owed.is_empty()).then_some(Interest::WRITABLE);
            let wanted = writable.map_or(Interest::READABLE, |it| it | Interest::READABLE);
            let fd = keeper.as_fd().as_raw_fd();
            let polled = self.registry.reregister(&mut SourceFd(&fd), Source::Keeper(number).token(), wanted);
            // One that epoll has not taken is polled by the clock.
            polled.unwrap_or_else(|error| tracing::debug!("poll a keeper for writing: {error}"));
        }
        if !owed.is_empty() {
            book.owed.insert(number, owed);
        }
    }

    fn pair_of(&self, token: u64) -> Option<[Option<Arc<Keeper>>; 2]> {
        let book = self.book();
        Some(book.pairs[book.whose.get(&token)?.pair].keepers.clone())
    }

    fn note_gone(&self, token: u64) -> Option<Ends> {
        let mut book = self.book();
        let Place { pair, ends, .. } = book.whose.remove(&token)?;
        book.pairs[pair].agents -= 1;
        ends
    }

    /// Has the keepers forget what was not kept since this daemon began: it is nobody's.
    pub fn sweep(&self) {
        for keeper in self.all() {
            if let Err(error) = keeper.send(&Order::Sweep) {
                tracing::warn!("{error}");
            }
        }
        let mut book = self.book();
        let found: Vec<u64> = book.whose.iter().filter(|(_, place)| place.is_found).map(|(token, _)| *token).collect();
        for token in found {
            if let Some(Place { pair, .. }) = book.whose.remove(&token) {
                book.pairs[pair].agents -= 1;
            }
        }
    }

    fn all(&self) -> Vec<Arc<Keeper>> {
        self.book().pairs.iter().flat_map(|pair| pair.keepers.iter().flatten().cloned()).collect()
    }

    /// Takes in what a keeper has to tell, and at most one end: each keeper that ends wakes the loop once.
    pub fn hear(&self, number: usize) -> Heard {
        self.send_owed(number, None);
        let keeper = self.book().pairs.get(number / 2).and_then(|pair| pair.keepers[number % 2].clone());
        let mut reports = Vec::new();
        if let Some(keeper) = keeper
            && receive_all(&keeper, &mut reports).is_err()
        {
            self.lose(number, &keeper);
        }
        let Some(ended) = self.book().take_ended(number) else { return Heard::Reports(reports) };
        // Another thread may have noticed its end first: then these are not taken in yet.
        receive_all(&ended, &mut reports).unwrap_or_else(|error| tracing::debug!("{error}"));
        Heard::End(reports, ended)
    }

    /// A keeper has ended: what its pair has is given to both again when there is another one. The loop polls it until it takes
    /// notice, also if another thread has noticed first.
    fn lose(&self, number: usize, keeper: &Arc<Keeper>) {
        let mut book = self.book();
        let pair = number / 2;
        // Another one may be in its place already.
        let ended = book.pairs[pair].keepers[number % 2].take_if(|it| Arc::ptr_eq(it, keeper));
        let Some(ended) = ended else { return };
        book.ended.push((number, ended));
        book.whose.values_mut().filter(|place| place.pair == pair).for_each(|place| place.is_sure = false);
    }

    /// Has each keeper whose socket was deleted listen again, and returns the names of those sockets.
    ///
    /// # Errors
    /// A socket cannot be bound.
    pub fn restore(&self) -> Result<Vec<String>, Error> {
        let pairs = self.book().pairs.iter().map(|pair| pair.keepers.clone()).collect::<Vec<_>>();
        let mut restored = Vec::new();
        for (number, keeper) in pairs.into_iter().flatten().enumerate() {
            let path = self.path(number);
            if let Some(keeper) = keeper.filter(|_| is_missing(&path)) {
                keeper.listen_at(&path)?;
                restored.push(format!("keeper-{number}"));
            }
        }
        Ok(restored)
    }

    /// Takes the keepers that epoll has not taken, with their numbers.
    pub fn take_unpolled(&self) -> Vec<(usize, Arc<Keeper>)> {
        let mut book = self.book();
        let unpolled = std::mem::take(&mut book.unpolled);
        let keeper = |number: usize| Some((number, book.pairs[number / 2].keepers[number % 2].clone()?));
        unpolled.into_iter().filter_map(keeper).collect()
    }

    /// Lists the processes that are keepers.
    pub fn pids(&self) -> Vec<i32> {
        self.all().iter().filter_map(|keeper| keeper.pid()).collect()
    }

    /// Ends all keepers: the herd has ended.
    pub fn quit(&self) {
        self.book().is_over = true;
        let all = self.all();
        for keeper in &all {
            // It may have ended by itself.
            keeper.send(&Order::Quit).unwrap_or_else(|error| tracing::debug!("{error}"));
        }
        for keeper in all {
            if !keeper.reap(END_MAX) {
                tracing::warn!("a keeper of output pipes does not end");
            }
        }
        for number in 0..2 * PAIRS_MAX {
            if let Err(error) = std::fs::remove_file(self.path(number))
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!("remove {}: {error}", self.path(number).display());
            }
        }
    }
}

/// Takes a keeper's reports in; an error is its end.
fn receive_all(keeper: &Keeper, reports: &mut Vec<Report>) -> Result<(), KernelError> {
    while let Some(report) = keeper.receive()? {
        reports.push(report);
    }
    Ok(())
}

impl Book {
    fn take_ended(&mut self, number: usize) -> Option<Arc<Keeper>> {
        let at = self.ended.iter().position(|(ended, _)| *ended == number)?;
        Some(self.ended.swap_remove(at).1)
    }

    /// Reserves a place with a pair that has room.
    fn reserve(&mut self, token: u64) -> Option<(usize, [Arc<Keeper>; 2])> {
        let has_room = |pair: &usize| self.has_room(*pair) && self.pairs[*pair].keepers.iter().all(Option::is_some);
        let pair = self.pair_that_has(token).or_else(|| (0..self.pairs.len()).find(has_room))?;
        self.reserve_in(pair, token)
    }

    fn has_room(&self, pair: usize) -> bool {
        let Pair { keepers, agents } = &self.pairs[pair];
        keepers.iter().flatten().all(|keeper| *agents < keeper.capacity)
    }

    fn reserve_in(&mut self, pair: usize, token: u64) -> Option<(usize, [Arc<Keeper>; 2])> {
        let [Some(splices), Some(holds)] = self.pairs[pair].keepers.clone() else { return None };
        if self.is_over || !(self.has_room(pair) || self.whose.contains_key(&token)) {
            return None;
        }
        self.note(token, pair, false);
        Some((pair, [splices, holds]))
    }

    /// Notes that a pair has these pipes, or is to have them.
    fn note(&mut self, token: u64, pair: usize, is_found: bool) {
        let (before, pairs) = (self.whose.remove(&token), &mut self.pairs);
        if before.is_none() {
            pairs[pair].agents += 1;
        }
        self.whose.insert(token, Place { pair, is_found, is_sure: false, ends: before.and_then(|place| place.ends) });
    }

    /// Notes that both keepers have these pipes, and holds them, too, if there are descriptors to spare. Returns what is not held.
    fn note_kept(&mut self, token: u64, ends: Ends) -> Option<Ends> {
        let Some(place) = self.whose.get_mut(&token) else { return Some(ends) };
        place.is_sure = true;
        if place.ends.is_some() || !ends.are_affordable() {
            return Some(ends);
        }
        place.ends = Some(ends);
        None
    }

    fn pair_that_has(&self, token: u64) -> Option<usize> {
        self.whose.get(&token).map(|place| place.pair)
    }

    /// Returns the pair that is to have an agent, and which of its keepers have to be started for that.
    fn next(&self, token: u64) -> Option<(usize, [Option<usize>; 2])> {
        let pair = self.pair_that_has(token).or_else(|| (0..self.pairs.len()).find(|pair| self.has_room(*pair)))?;
        let missing = |which: usize| self.pairs[pair].keepers[which].is_none().then_some(2 * pair + which);
        (!self.is_over).then_some((pair, [missing(0), missing(1)]))
    }
}
