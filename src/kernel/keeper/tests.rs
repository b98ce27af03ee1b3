use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{CWD, Mode, OFlags};
use tempfile::TempDir;

use super::*;

/// Waits are bounded, and nothing takes this long.
const LONG: Duration = Duration::from_secs(20);

struct Yard {
    dir: TempDir,
}

impl Yard {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> std::path::PathBuf {
        self.path("keeper")
    }

    /// Makes two FIFOs and two files; returns what an agent and what a keeper is given of them.
    fn agent(&self, name: &str) -> ([File; 2], Streams) {
        let make = |stream: &str| {
            let (fifo, spool) = (self.path(&format!("{name}.{stream}.pipe")), self.path(&format!("{name}.{stream}")));
            rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let read = rustix::fs::open(&fifo, flags, Mode::empty()).unwrap();
            let write = File::options().read(true).write(true).open(&fifo).unwrap();
            (write, read, OwnedFd::from(File::create(spool).unwrap()))
        };
        let (out, out_pipe, out_spool) = make("stdout");
        let (err, err_pipe, err_spool) = make("stderr");
        let token = out.metadata().unwrap().ino();
        ([out, err], Streams { token, pipes: [out_pipe, err_pipe], spools: [out_spool, err_spool] })
    }

    fn spool(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

fn drain(keeper: &Keeper, token: u64, ticket: u64) {
    keeper.send(&Order::Drain { token, ticket }).unwrap();
    assert_eq!(report(keeper), Report::Drained { ticket });
}

fn report(keeper: &Keeper) -> Report {
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(keeper, PollFlags::IN)], Some(&timeout)), Ok(1), "the keeper answers");
    keeper.receive().unwrap().expect("poll said so")
}

fn process_of(keeper: &Keeper) -> String {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", keeper.process.as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().to_owned()
}

/// Counts how often a process has gone to sleep.
fn switches(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn what_is_written_in_small_pieces_is_all_there_and_nothing_ticks_afterwards() {
    const PIECES: u64 = 20_000;
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let ([mut out, _err], streams) = yard.agent("a");
    keeper.keep(&streams).unwrap();
    let process = process_of(&keeper);
    for _ in 0..PIECES {
        out.write_all(&[b'x'; 100]).unwrap();
    }
    drain(&keeper, streams.token, 1);
    assert_eq!(yard.spool("a.stdout").len() as u64, 100 * PIECES);
    // A single line is there at once, and nothing is left that ticks.
    writeln!(out, "line").unwrap();
    loop_until(|| yard.spool("a.stdout").ends_with(b"line\n"));
    drain(&keeper, streams.token, 2);
    // An idle pipe costs no wakeup; where CPUs are busy the last ones come late.
    loop_until(|| {
        let before = switches(&process);
        std::thread::park_timeout(Duration::from_millis(300));
        switches(&process) == before
    });
    keeper.send(&Order::Quit).unwrap();
    assert!(keeper.reap(LONG));
}

fn loop_until(is_so: impl Fn() -> bool) {
    let end = std::time::Instant::now() + LONG;
    while !is_so() {
        assert!(std::time::Instant::now() < end);
        std::thread::yield_now();
    }
}

#[test]
fn what_is_in_a_pipe_is_in_its_file_when_it_is_drained() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let ([mut out, mut err], streams) = yard.agent("a");
    keeper.keep(&streams).unwrap();
    for round in 0..100_u64 {
        writeln!(out, "out {round}").unwrap();
        writeln!(err, "err {round}").unwrap();
        drain(&keeper, streams.token, round);
        assert!(yard.spool("a.stdout").ends_with(format!("out {round}\n").as_bytes()));
        assert!(yard.spool("a.stderr").ends_with(format!("err {round}\n").as_bytes()));
    }
    keeper.send(&Order::Quit).unwrap();
    assert!(keeper.reap(LONG));
}

#[test]
fn the_end_of_one_agent_while_no_daemon_lives_leaves_the_others_spliced() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let process = keeper.pid().unwrap();
    let signal = |signal| pidfd::signal(pidfd::open(process).unwrap().as_fd(), signal).unwrap();
    let mut agents = ["a", "b", "c", "d"].map(|name| {
        let (ends, streams) = yard.agent(name);
        keeper.keep(&streams).unwrap();
        (name, ends)
    });
    // All gather bytes at once when the first one's writers are found gone.
    signal(Signal::STOP);
    drop(keeper);
    agents.iter_mut().for_each(|(_, [out, _])| out.write_all(b"one\n").unwrap());
    let [(_, first), others @ ..] = agents;
    drop(first);
    signal(Signal::CONT);
    for line in [b"two\n".as_slice(), b"three\n"] {
        for (name, [out, _]) in &others {
            (&*out).write_all(line).unwrap();
            loop_until(|| yard.spool(&format!("{name}.stdout")).ends_with(line));
        }
    }
    let keeper = Keeper::find(&yard.socket()).unwrap().unwrap();
    keeper.send(&Order::Quit).unwrap();
    assert!(keeper.reap(LONG));
}

#[test]
fn a_keeper_outlives_its_daemon_and_serves_the_next_one() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let ([mut out, err], streams) = yard.agent("a");
    keeper.keep(&streams).unwrap();
    let process = process_of(&keeper);
    drop(keeper);
    out.write_all(b"while nobody was there\n").unwrap();
    let keeper = Keeper::find(&yard.socket()).unwrap().expect("it is there, as an agent has its pipe open");
    assert_eq!(process_of(&keeper), process);
    assert_eq!(keeper.had, [streams.token]);
    assert_eq!(yard.spool("a.stdout"), b"while nobody was there\n", "who greets finds all that was written before");
    // What it has is not kept twice, and what is not kept again is forgotten.
    keeper.keep(&streams).unwrap();
    keeper.send(&Order::Sweep).unwrap();
    out.write_all(b"and then\n").unwrap();
    drain(&keeper, streams.token, 1);
    assert_eq!(yard.spool("a.stdout"), b"while nobody was there\nand then\n");
    drop(keeper);
    let keeper = Keeper::find(&yard.socket()).unwrap().unwrap();
    drop((out, err, streams));
    keeper.send(&Order::Sweep).unwrap();
    drop(keeper);
}

#[test]
fn a_keeper_whose_socket_was_deleted_is_found_at_its_new_one() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let (_both, streams) = yard.agent("a");
    keeper.keep(&streams).unwrap();
    let process = process_of(&keeper);
    fs::remove_file(yard.socket()).unwrap();
    assert!(Keeper::find(&yard.socket()).unwrap().is_none());
    keeper.listen_at(&yard.socket()).unwrap();
    drain(&keeper, streams.token, 1);
    drop(keeper);
    let keeper = Keeper::find(&yard.socket()).unwrap().expect("it listens there");
    assert_eq!(process_of(&keeper), process);
    keeper.send(&Order::Quit).unwrap();
    assert!(keeper.reap(LONG));
}

#[test]
fn a_keeper_ends_when_neither_a_daemon_nor_a_writer_is_there() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let ([mut out, err], streams) = yard.agent("a");
    keeper.keep(&streams).unwrap();
    let Keeper { link, process, .. } = keeper;
    drop((link, streams));
    let is_over = |most: Duration| {
        let timeout = Timespec { tv_sec: i64::try_from(most.as_secs()).unwrap(), tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) == Ok(1)
    };
    out.write_all(b"last words").unwrap();
    drop(out);
    assert!(!is_over(Duration::ZERO), "the other stream can still be written to");
    drop(err);
    assert!(is_over(LONG));
    assert_eq!(yard.spool("a.stdout"), b"last words");
    assert!(Keeper::find(&yard.socket()).unwrap().is_none());
}

#[test]
fn what_a_killed_keeper_left_the_next_one_finds() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let ([mut out, _err], streams) = yard.agent("a");
    keeper.keep(&streams).unwrap();
    out.write_all(b"one\n").unwrap();
    drain(&keeper, streams.token, 1);
    keeper.kill();
    out.write_all(b"two\n").unwrap();
    let failed = keeper.receive().unwrap_err();
    assert_eq!(failed.errno, Errno::PIPE, "its end is told");
    let next = Keeper::start(&yard.socket()).unwrap();
    next.keep(&streams).unwrap();
    drain(&next, streams.token, 1);
    assert_eq!(yard.spool("a.stdout"), b"one\ntwo\n");
    next.send(&Order::Quit).unwrap();
}

#[test]
fn a_keeper_that_does_not_answer_is_killed_and_no_two_read_a_pipe() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let ([_out, _err], streams) = yard.agent("a");
    keeper.keep(&streams).unwrap();
    pidfd::signal(keeper.process.as_fd(), Signal::STOP).unwrap();
    assert!(Keeper::find(&yard.socket()).unwrap().is_none());
    assert!(keeper.reap(LONG));
}

#[test]
fn a_file_that_takes_nothing_is_reported_and_nothing_is_lost() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let ([mut out, _err], mut streams) = yard.agent("a");
    let full = rustix::fs::memfd_create("full", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::fcntl_add_seals(&full, rustix::fs::SealFlags::GROW).unwrap();
    streams.spools[0] = full;
    keeper.keep(&streams).unwrap();
    out.write_all(b"kept in the pipe").unwrap();
    assert_eq!(report(&keeper), Report::Fault { token: streams.token, errno: libc::EPERM });
    assert_eq!(rustix::io::ioctl_fionread(&streams.pipes[0]), Ok(16));
    // Told once, and no reason not to answer.
    drain(&keeper, streams.token, 9);
    let process = process_of(&keeper);
    let before = switches(&process);
    std::thread::park_timeout(Duration::from_millis(300));
    assert!(switches(&process) <= before + 1, "it is tried again each second, and not all the time");
    keeper.send(&Order::Forget { token: streams.token }).unwrap();
    keeper.send(&Order::Quit).unwrap();
    assert!(keeper.reap(LONG));
}

#[test]
fn an_idle_keeper_costs_no_wakeup_and_little_memory() {
    let yard = Yard::new();
    let keeper = Keeper::start(&yard.socket()).unwrap();
    let agents: Vec<_> = (0..50).map(|number| yard.agent(&number.to_string())).collect();
    for (_, streams) in &agents {
        keeper.keep(streams).unwrap();
    }
    drain(&keeper, agents[0].1.token, 1);
    let process = process_of(&keeper);
    let before = switches(&process);
    std::thread::park_timeout(Duration::from_millis(300));
    assert_eq!(switches(&process), before);
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let private: u64 = rollup
        .lines()
        .filter_map(|line| line.strip_prefix("Private_Dirty:"))
        .filter_map(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .sum();
    println!("{private} KiB its own");
    assert!(private < 512, "{private} KiB of its own");
    keeper.send(&Order::Quit).unwrap();
    assert!(keeper.reap(LONG));
}

#[test]
fn whoever_writes_while_no_keeper_splices_has_a_reader_all_the_same() {
    let yard = Yard::new();
    let (splices, holds) = (Keeper::start(&yard.socket()).unwrap(), Keeper::start(&yard.path("holder")).unwrap());
    let (both, streams) = yard.agent("a");
    // As an agent has it: for writing alone.
    let mut out = File::options().write(true).open(yard.path("a.stdout.pipe")).unwrap();
    drop(both);
    holds.hold(&streams).unwrap();
    splices.keep(&streams).unwrap();
    out.write_all(b"one\n").unwrap();
    drain(&splices, streams.token, 1);
    drain(&holds, streams.token, 2);
    let Streams { token, pipes, spools } = streams;
    // Nobody else has it open for reading by now.
    drop(pipes);
    splices.kill();
    out.write_all(b"two\n").expect("the holder is there");
    let next = Keeper::start(&yard.socket()).unwrap();
    let open = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(yard.path(name), flags, Mode::empty()).unwrap()
    };
    let streams = Streams { token, pipes: [open("a.stdout.pipe"), open("a.stderr.pipe")], spools };
    next.keep(&streams).unwrap();
    drain(&next, token, 3);
    assert_eq!(yard.spool("a.stdout"), b"one\ntwo\n");
    // Without a daemon and a writer both end, the holder when the other one has spliced what there was.
    let holder = holds.process.try_clone().unwrap();
    next.send(&Order::Quit).unwrap();
    drop((holds, next, streams, out));
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&holder, PollFlags::IN)], Some(&timeout)), Ok(1));
}
