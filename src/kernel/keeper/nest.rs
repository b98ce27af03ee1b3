//! What the keeper's process does. It runs without an allocator, a panic, a thread-local and libc, as every process without a program.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, IntoRawFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags};
use rustix::pipe::{SpliceFlags, splice};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::orders::{Order, Report, VERSION, WIRE};
use super::table::{AGENTS_MAX, State, Stream, Table};
use crate::kernel::spawn;

/// The descriptors that it is born with.
const FIRST_LISTENER: i32 = 0;
const FIRST_LINK: i32 = 1;

/// What `epoll` tells besides numbers of streams.
const LISTENER_TOLD: u64 = u64::MAX;
const LINK_TOLD: u64 = u64::MAX - 1;
const TIMER_TOLD: u64 = u64::MAX - 2;
const TICK_TOLD: u64 = u64::MAX - 3;

/// How many events one wait takes in.
const EVENTS: usize = 64;

/// How many times in a row one stream is spliced before others have their turn.
const SPLICES_A_TURN: usize = 8;

/// More than any pipe holds: what is there is taken at once.
const SPLICE_MOST: usize = 64 << 20;

/// A splice that moves less has come too early to be worth its price: what follows gathers until the next tick.
const SPLICE_MIN: usize = 4096;

/// How long bytes gather in a pipe. A wakeup for each write of 100 bytes costs more than the write; what one CPU writes in that
/// time in such pieces fits into a pipe of 64 KiB.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };

/// How many times in a row the bytes of a pipe are taken at once at most, where it fills up faster than that.
const HURRY_MAX: u8 = 64;

/// After which time what could not be written is tried again.
const RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Others are ended first, as the daemon's own processes are.
const OOM_SCORE_ADJ: &[u8] = b"-900";

/// What the process knows at its birth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    /// Whom it obeys.
    pub uid: u32,
    /// How many agents it can serve.
    pub capacity: usize,
}

/// All memory of the process besides its stack. All zero is a valid one: what is never touched is never there.
struct Memory {
    table: Table,
    /// The streams that have bytes, or may have, or a file that takes none: numbers as [`stream_number`] makes them.
    waiting: [u32; 2 * AGENTS_MAX],
}

/// The process.
struct Nest<'a> {
    birth: Birth,
    table: &'a mut Table,
    waiting: &'a mut [u32],
    /// How many of them there are, and how many of those are stuck, and gather.
    waits: usize,
    stuck: usize,
    gathering: usize,
    epoll: BorrowedFd<'static>,
    /// For what is stuck, and for what gathers.
    timer: BorrowedFd<'static>,
    listener: i32,
    tick: BorrowedFd<'static>,
    /// The daemon's connection.
    link: Option<i32>,
}

/// Why a stream is spliced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It has bytes, or had some when it was spliced last.
    Turn,
    /// Somebody waits until what was written before is in its file.
    Drain,
}

/// What splicing a stream has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spliced {
    /// Its pipe was empty.
    All,
    /// Its pipe was nearly empty.
    Few,
    /// It has used up its turn.
    NotAll,
    Failed(i32),
}

/// The keeper's `main`.
pub(super) fn main(birth: &Birth) -> ! {
    prepare();
    if let Some(mut nest) = Nest::new(*birth) {
        nest.serve();
    }
    spawn::end_bare()
}

/// Takes what the host offers; the rest is done without.
fn prepare() {
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty()) {
        let file = file.into_raw_fd();
        if rustix::io::write(at(file), OOM_SCORE_ADJ).is_err() {
            // It stays what the daemon's is.
        }
        close(file);
    }
    if rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).is_err() {
        // Then whoever is the same user can trace it.
    }
}

/// Borrows a descriptor by its number.
fn at(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: every number here is one that this process opened or received, and closes itself when it forgets the number.
    #[allow(unsafe_code)]
    unsafe {
        BorrowedFd::borrow_raw(fd)
    }
}

fn close(fd: i32) {
    if fd >= 0 {
        // SAFETY: as above; nothing refers to it any more. Not by dropping an owner: that calls libc.
        #[allow(unsafe_code)]
        unsafe {
            rustix::io::close(fd);
        }
    }
}

fn stream_number(place: usize, stream: usize) -> u64 {
    (place * 2 + stream) as u64
}

impl Nest<'_> {
    #[allow(unsafe_code)]
    fn new(birth: Birth) -> Option<Self> {
        let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping takes the place of nothing. It is zeroed, aligned to a page, and all zero is a valid `Memory`.
        let memory = unsafe {
            let at = mmap_anonymous(std::ptr::null_mut(), size_of::<Memory>(), flags.0, flags.1).ok()?;
            &mut *at.cast::<Memory>()
        };
        let epoll = at(epoll::create(CreateFlags::CLOEXEC).ok()?.into_raw_fd());
        let make_timer = || {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            Some(at(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).ok()?.into_raw_fd()))
        };
        let (timer, tick) = (make_timer()?, make_timer()?);
        // Here and not by whoever started us: its peers are to see our credentials.
        rustix::net::listen(at(FIRST_LISTENER), 8).ok()?;
        epoll::add(epoll, at(FIRST_LISTENER), EventData::new_u64(LISTENER_TOLD), EventFlags::IN).ok()?;
        epoll::add(epoll, at(FIRST_LINK), EventData::new_u64(LINK_TOLD), EventFlags::IN).ok()?;
        epoll::add(epoll, timer, EventData::new_u64(TIMER_TOLD), EventFlags::IN).ok()?;
        // Told each time it expires, and never read.
        epoll::add(epoll, tick, EventData::new_u64(TICK_TOLD), EventFlags::IN | EventFlags::ET).ok()?;
        Some(Self {
            birth,
            table: &mut memory.table,
            waiting: &mut memory.waiting,
            waits: 0,
            stuck: 0,
            gathering: 0,
            epoll,
            timer,
            listener: FIRST_LISTENER,
            tick,
            link: Some(FIRST_LINK),
        })
    }

    /// Serves until there is nothing left to serve.
    fn serve(&mut self) {
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        while self.link.is_some() || self.table.len() > 0 {
            let timeout = (self.waits > self.stuck + self.gathering).then_some(&at_once);
            let Ok((events, _)) = epoll::wait(self.epoll, &mut events, timeout) else { continue };
            // Orders first: somebody may wait for them.
            for event in events.iter() {
                match event.data.u64() {
                    LISTENER_TOLD => self.accept(),
                    LINK_TOLD => self.read_orders(),
                    _ => {}
                }
            }
            for event in events.iter() {
                let flags = event.flags;
                match event.data.u64() {
                    LISTENER_TOLD | LINK_TOLD => {}
                    TIMER_TOLD => self.retry(),
                    TICK_TOLD => self.take_gathered(),
                    number => self.stream_told(usize::try_from(number).unwrap_or(usize::MAX), flags),
                }
            }
            self.go_on();
        }
    }

    fn stream_told(&mut self, number: usize, flags: EventFlags) {
        let (place, stream) = (number / 2, number % 2);
        if self.table.at(place).is_some_and(|it| it.streams[stream].state == State::Idle) {
            self.splice(place, stream, Why::Turn);
        }
        if flags.contains(EventFlags::HUP) {
            self.close_if_deserted(place, stream);
        }
    }

    /// Splices a stream for one turn, and notes what it waits for then.
    fn splice(&mut self, place: usize, stream: usize, why: Why) {
        let Some(it) = self.table.at(place) else { return };
        let token = it.token;
        let it = &mut it.streams[stream];
        let before = it.state;
        let is_tick = before == State::Gathering && why == Why::Turn;
        let most = if is_tick { nearly_full(it.pipe) } else { usize::MAX };
        let (first, spliced) = move_bytes(*it, why == Why::Drain || it.hurry > 0);
        if is_tick {
            // Its writer had to wait, or nearly. That can be chance, and is found out again, less and less often.
            it.hurried = if first < most { 0 } else { (it.hurried * 2).clamp(1, HURRY_MAX) };
            it.hurry = it.hurried;
        }
        let after = match spliced {
            Spliced::NotAll => State::Busy,
            Spliced::Failed(_) => State::Stuck,
            _ if why == Why::Drain && before == State::Gathering => State::Gathering,
            _ if why == Why::Drain || first == 0 => State::Idle,
            Spliced::Few | Spliced::All if it.hurry == 0 => State::Gathering,
            Spliced::Few | Spliced::All => {
                it.hurry -= 1;
                State::Idle
            }
        };
        self.enter(place, stream, after);
        if let (Spliced::Failed(errno), true) = (spliced, before != State::Stuck) {
            self.report(Report::Fault { token, errno });
            set_timer(self.timer, RETRY);
        }
    }

    /// Notes what a stream waits for.
    fn enter(&mut self, place: usize, stream: usize, after: State) {
        let Some(it) = self.table.at(place) else { return };
        let it = &mut it.streams[stream];
        let before = std::mem::replace(&mut it.state, after);
        let pipe = it.pipe;
        if before == after {
            return;
        }
        if !before.waits() && after.waits() && self.waits < self.waiting.len() {
            self.waiting[self.waits] = u32::try_from(stream_number(place, stream)).unwrap_or(u32::MAX);
            self.waits += 1;
        }
        self.uncount(before);
        match after {
            State::Stuck => self.stuck += 1,
            State::Gathering => {
                self.gathering += 1;
                self.set_wanted(place, stream, pipe, EventFlags::empty());
                if self.gathering == 1 {
                    set_timer(self.tick, TICK);
                }
            }
            _ => {}
        }
        if before == State::Gathering {
            // What was written since is told.
            self.set_wanted(place, stream, pipe, EventFlags::IN);
        }
    }

    fn uncount(&mut self, state: State) {
        match state {
            State::Stuck => self.stuck -= 1,
            State::Gathering => self.gathering -= 1,
            _ => {}
        }
    }

    /// Has a stream told of when it has bytes, or only when its last writer is gone, which always is.
    fn set_wanted(&self, place: usize, stream: usize, pipe: i32, wanted: EventFlags) {
        let data = EventData::new_u64(stream_number(place, stream));
        if epoll::modify(self.epoll, at(pipe), data, wanted | EventFlags::ET).is_err() {
            // It cannot fail: the pipe is in it.
        }
    }

    /// Takes what has gathered in pipes.
    fn take_gathered(&mut self) {
        self.visit(State::Gathering);
        if self.gathering > 0 {
            set_timer(self.tick, TICK);
        }
    }

    /// Gives each stream that has bytes left one turn.
    fn go_on(&mut self) {
        self.visit(State::Busy);
    }

    /// Tries what could not be written.
    fn retry(&mut self) {
        let mut count = [0; 8];
        if rustix::io::read(self.timer, &mut count).is_err() {
            // Somebody else's turn was faster.
        }
        self.visit(State::Stuck);
        if self.stuck > 0 {
            set_timer(self.timer, RETRY);
        }
        if self.link.is_none() {
            self.close_deserted();
        }
    }

    /// Splices the streams that wait in this state, and takes those off the list that wait no more.
    fn visit(&mut self, state: State) {
        let all = self.waits;
        let mut left = 0;
        for index in 0..all {
            let number = self.waiting[index];
            let (place, stream) = (number as usize / 2, number as usize % 2);
            let is_due = self.table.at(place).is_some_and(|it| it.streams[stream].state == state);
            if is_due {
                self.splice(place, stream, Why::Turn);
            }
            if self.table.at(place).is_some_and(|it| it.streams[stream].state.waits()) {
                self.waiting.swap(left, index);
                left += 1;
            }
        }
        self.waits = left;
        // Only now: closing an agent's last stream removes the agent from the list, which must not
        // change while it is walked. Closing never writes behind the list, where these numbers are.
        for index in left..all {
            let number = self.waiting[index] as usize;
            self.close_if_deserted(number / 2, number % 2);
        }
    }

    /// Takes in a daemon: the newest one is the one that is served.
    fn accept(&mut self) {
        let Ok(link) = rustix::net::accept_with(at(self.listener), SocketFlags::CLOEXEC) else { return };
        let link = link.into_raw_fd();
        let is_ours =
            rustix::net::sockopt::socket_peercred(at(link)).is_ok_and(|peer| peer.uid.as_raw() == self.birth.uid);
        if !is_ours || epoll::add(self.epoll, at(link), EventData::new_u64(LINK_TOLD), EventFlags::IN).is_err() {
            return close(link);
        }
        if let Some(before) = self.link.replace(link) {
            close(before);
        }
    }

    /// Listens on another socket from now on; where that fails, on the one before.
    fn listen(&mut self, given: [i32; 4]) {
        let [socket, others @ ..] = given;
        others.into_iter().for_each(close);
        let listens = socket >= 0 && rustix::net::listen(at(socket), 8).is_ok();
        let told = EventData::new_u64(LISTENER_TOLD);
        if listens && epoll::add(self.epoll, at(socket), told, EventFlags::IN).is_ok() {
            close(std::mem::replace(&mut self.listener, socket));
        } else {
            close(socket);
        }
    }

    fn read_orders(&mut self) {
        while let Some(link) = self.link {
            let mut bytes = [0; WIRE];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = rustix::net::recvmsg(at(link), &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
            let mut given = [-1; 4];
            let mut count = 0;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    for fd in descriptors {
                        let fd = fd.into_raw_fd();
                        match given.get_mut(count) {
                            Some(place) => *place = fd,
                            None => close(fd),
                        }
                        count += 1;
                    }
                }
            }
            match received {
                Ok(message) if message.bytes == 0 => return self.daemon_is_gone(),
                Ok(_) => {
                    let order = Order::decode(&bytes);
                    match order {
                        Some(Order::Keep { token }) => self.keep(token, given, State::Idle),
                        Some(Order::Hold { token }) => self.keep(token, given, State::Held),
                        Some(Order::Listen) => self.listen(given),
                        _ => given.into_iter().for_each(close),
                    }
                    if let Some(order) = order {
                        self.obey(order);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.daemon_is_gone(),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            // Done already, with the descriptors that came along.
            Order::Keep { .. } | Order::Hold { .. } | Order::Listen => {}
            Order::Greet { .. } => {
                for place in 0..self.table.end() {
                    if let Some(it) = self.table.at(place) {
                        it.is_kept = false;
                        let token = it.token;
                        self.drain(place);
                        // Who greets reads: this may wait.
                        self.send(Report::Has { token }, SendFlags::NOSIGNAL);
                    }
                }
                self.report(Report::Ready { version: VERSION, capacity: self.birth.capacity });
            }
            Order::Drain { token, ticket } => {
                if let Some(place) = self.table.find(token) {
                    self.drain(place);
                }
                self.report(Report::Drained { ticket });
            }
            Order::Forget { token } => {
                if let Some(place) = self.table.find(token) {
                    self.drain(place);
                    self.forget(place);
                }
            }
            Order::Sweep => {
                for place in 0..self.table.end() {
                    if self.table.at(place).is_some_and(|it| !it.is_kept) {
                        self.drain(place);
                        self.forget(place);
                    }
                }
            }
            Order::Quit => {
                for place in 0..self.table.end() {
                    self.drain(place);
                }
                spawn::end_bare()
            }
        }
    }

    /// Splices what is in an agent's pipes, as far as its files take it and it does not write faster.
    fn drain(&mut self, place: usize) {
        for stream in 0..2 {
            if self.table.at(place).is_some_and(|it| !matches!(it.streams[stream].state, State::Closed | State::Held)) {
                self.splice(place, stream, Why::Drain);
            }
        }
    }

    /// Takes an agent's streams in, to splice or to hold them.
    fn keep(&mut self, token: u64, given: [i32; 4], state: State) {
        let [out, err, out_file, err_file] = given;
        let needed = if state == State::Held { 2 } else { 4 };
        if given[..needed].contains(&-1) {
            given.into_iter().for_each(close);
            return self.report(Report::Refused { token });
        }
        if let Some(place) = self.table.find(token) {
            let is_so = |it: State| it != State::Closed && (it == State::Held) == (state == State::Held);
            let is_open = |it: &mut super::table::Place| it.streams.iter().all(|it| is_so(it.state));
            if self.table.at(place).is_some_and(is_open) {
                [out, err].into_iter().for_each(close);
                return self.keep_on(place, [out_file, err_file]);
            }
            self.drain(place);
            self.forget(place);
        }
        if state != State::Held && [out_file, err_file].into_iter().try_for_each(lock).is_err() {
            given.into_iter().for_each(close);
            return self.report(Report::Refused { token });
        }
        let stream = |pipe, spool| Stream { pipe, spool, state, hurry: 0, hurried: 0 };
        let has_room = self.table.len() < self.birth.capacity;
        let added = has_room.then(|| self.table.add(token, [stream(out, out_file), stream(err, err_file)])).flatten();
        let Some(place) = added else {
            given.into_iter().for_each(close);
            return self.report(Report::Refused { token });
        };
        let listen = |(index, pipe)| {
            let data = EventData::new_u64(stream_number(place, index));
            // A hangup is always reported.
            let wanted = if state == State::Held { EventFlags::empty() } else { EventFlags::IN };
            epoll::add(self.epoll, at(pipe), data, wanted | EventFlags::ET)
        };
        if [(0, out), (1, err)].into_iter().try_for_each(listen).is_err() {
            self.forget(place);
            self.report(Report::Refused { token });
        }
        // What was written before is told by the first wait.
    }

    /// Goes on with the streams of an agent, into other files if those before were deleted.
    fn keep_on(&mut self, place: usize, spools: [i32; 2]) {
        let Some(it) = self.table.at(place) else { return spools.into_iter().for_each(close) };
        it.is_kept = true;
        for (stream, spool) in it.streams.iter_mut().zip(spools) {
            let is_new = spool >= 0 && stream.state != State::Held && !is_same_file(stream.spool, spool);
            let before =
                if is_new && lock(spool).is_ok() { std::mem::replace(&mut stream.spool, spool) } else { spool };
            close(before);
        }
    }

    /// Closes what is open of an agent.
    fn forget(&mut self, place: usize) {
        let Some(it) = self.table.at(place) else { return };
        let streams = it.streams;
        for stream in &mut it.streams {
            stream.state = State::Closed;
        }
        for stream in streams {
            if stream.state == State::Closed {
                continue;
            }
            self.uncount(stream.state);
            close(stream.pipe);
            close(stream.spool);
        }
        self.table.remove(place);
        // A place can have another agent soon, which must not be on the list already.
        let mut left = 0;
        for index in 0..self.waits {
            if self.waiting[index] as usize / 2 != place {
                self.waiting[left] = self.waiting[index];
                left += 1;
            }
        }
        self.waits = left;
    }

    /// No daemon is there: what has no writer any more is nobody's business, as nobody can start one.
    fn daemon_is_gone(&mut self) {
        if let Some(link) = self.link.take() {
            close(link);
        }
        self.close_deserted();
    }

    fn close_deserted(&mut self) {
        for place in 0..self.table.end() {
            for stream in 0..2 {
                self.close_if_deserted(place, stream);
            }
        }
    }

    /// Closes a stream that is empty and has no writer, if no daemon is there to start one.
    fn close_if_deserted(&mut self, place: usize, stream: usize) {
        if self.link.is_some() {
            return;
        }
        let Some(it) = self.table.at(place) else { return };
        let Stream { pipe, spool, state, .. } = it.streams[stream];
        if matches!(state, State::Idle | State::Held) {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let pipe_at = at(pipe);
            let mut asked = [PollFd::new(&pipe_at, PollFlags::IN)];
            let is_asked = poll(&mut asked, Some(&now)).is_ok();
            if !is_asked || asked[0].revents() != PollFlags::HUP {
                if state == State::Held && asked[0].revents().contains(PollFlags::HUP) {
                    // Its last bytes are another keeper's to splice: that it has done so nobody reports.
                    set_timer(self.timer, RETRY);
                }
                return;
            }
            close(pipe);
            close(spool);
            it.streams[stream].state = State::Closed;
        }
        if it.streams.iter().all(|stream| stream.state == State::Closed) {
            self.forget(place);
        }
    }

    fn report(&self, report: Report) {
        self.send(report, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    fn send(&self, report: Report, flags: SendFlags) {
        let Some(link) = self.link else { return };
        if rustix::net::send(at(link), &report.encode(), flags).is_err() {
            // A daemon that does not read waits for nothing longer than it has decided to.
        }
    }
}

/// Locks a spool file: another keeper of it, which the daemon does not know of, would write to the same offsets.
fn lock(file: i32) -> Result<(), Errno> {
    rustix::fs::flock(at(file), FlockOperation::NonBlockingLockExclusive)
}

fn is_same_file(one: i32, other: i32) -> bool {
    let of = |file| rustix::fs::fstat(at(file)).map(|stat| (stat.st_dev, stat.st_ino));
    of(one).is_ok_and(|one| of(other) == Ok(one))
}

fn set_timer(timer: BorrowedFd<'static>, after: Timespec) {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let new = Itimerspec { it_interval: zero, it_value: after };
    if rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &new).is_err() {
        // It cannot fail with these arguments.
    }
}

/// Returns what a pipe holds at least that has no page left for a write.
fn nearly_full(pipe: i32) -> usize {
    rustix::pipe::fcntl_getpipe_size(at(pipe)).unwrap_or(0).saturating_sub(SPLICE_MIN)
}

/// Splices what is in a pipe into its file, for one turn, and until it is empty where that is wanted. Returns how many bytes the
/// first splice moved: all that were there before.
fn move_bytes(stream: Stream, until_empty: bool) -> (usize, Spliced) {
    let mut first = 0;
    for _ in 0..SPLICES_A_TURN {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(at(stream.pipe), None, at(stream.spool), None, SPLICE_MOST, flags) {
            // No writer, and nothing in it.
            Ok(0) | Err(Errno::AGAIN) => return (first, Spliced::All),
            Ok(moved) => {
                first = if first == 0 { moved } else { first };
                if moved < SPLICE_MIN && !until_empty {
                    return (first, Spliced::Few);
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return (first, Spliced::Failed(errno.raw_os_error())),
        }
    }
    (first, Spliced::NotAll)
}
