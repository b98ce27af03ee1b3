//! An agent with root's rights works on its own files.

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, mknodat};

use super::*;
use crate::model::error::Code;

#[test]
fn a_truncated_file_goes_on_where_the_stream_was() {
    let world = World::new();
    let mut spool = Spool::new(CAP_DEFAULT);
    world.write(Stderr, "one\ntwo\n");
    world.service(&mut spool, Stderr, 1);
    // What `echo three >/dev/stderr` does.
    fs::write(world.path(Stderr), "three\n").unwrap();
    let mut cursor = Cursor { stderr: Some(4), ..Cursor::default() };
    let before = world.read(&spool, &mut cursor.clone(), 100);
    assert_eq!((text(&before).as_str(), before.gone.stderr), ("", 4), "not serviced yet: nothing has an offset");

    let serviced = world.service(&mut spool, Stderr, 2);
    assert_eq!((serviced.grew, serviced.start, serviced.end), (true, 8, 14));
    let read = world.read(&spool, &mut cursor, 100);
    assert_eq!((text(&read).as_str(), read.gone.stderr, cursor.stderr), ("three\n", 4, Some(14)));
    assert_eq!(read.pieces[0].time, Some(Wall(2)));

    world.write(Stderr, "four\n");
    let recovered = Spool::recover(&world.store, &world.id, CAP_DEFAULT).unwrap();
    assert_eq!(recovered.bounds(Stderr), (8, 19), "a new daemon knows the shift");
    assert_eq!(text(&world.read(&recovered, &mut cursor, 100)), "four\n");
}

#[test]
fn a_file_rewritten_with_more_than_it_had_is_noticed() {
    let world = World::new();
    let mut spool = Spool::new(CAP_DEFAULT);
    world.write(Stdout, "one\n");
    world.service(&mut spool, Stdout, 1);
    fs::write(world.path(Stdout), "quite another text\n").unwrap();
    assert_eq!(world.service(&mut spool, Stdout, 2).start, 4);
    assert_eq!(world.read_all(&spool, Stdout, 0), (b"quite another text\n".to_vec(), 4));
}

#[test]
fn offsets_never_go_back_whatever_the_agent_does_to_its_file() {
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let world = World::new();
        let mut spool = Spool::new(CAP_LEAST);
        let (mut start, mut end) = (0, 0);
        let mut cursor = Cursor { stdout: Some(0), ..Cursor::default() };
        for step in 0..60 {
            let file = OpenOptions::new().write(true).open(world.path(Stdout)).unwrap();
            match random.u8(..4) {
                0 => file.set_len(random.u64(..300_000)).unwrap(),
                1 => file.set_len(0).unwrap(),
                2 => fs::write(world.path(Stdout), vec![b'r'; random.usize(..1_000)]).unwrap(),
                _ => world.write(Stdout, vec![b'w'; random.usize(..200_000)]),
            }
            if random.bool() {
                let serviced = world.service(&mut spool, Stdout, step);
                assert!(
                    serviced.start >= start && serviced.end >= end && serviced.start <= serviced.end,
                    "seed {seed}"
                );
                assert!(serviced.end - serviced.start <= spool.most());
                (start, end) = (serviced.start, serviced.end);
            }
            let from = cursor.stdout.unwrap();
            let read = world.read(&spool, &mut cursor, random.usize(..100_000));
            let told: u64 = read.pieces.iter().map(|piece| piece.bytes.len() as u64).sum();
            assert_eq!(cursor.stdout, Some(from + told + read.gone.stdout), "seed {seed}");
        }
    }
}

#[test]
fn a_huge_sparse_file_is_bounded_work() {
    let world = World::new();
    let mut spool = Spool::new(CAP_DEFAULT);
    world.write(Stdout, "head\n");
    world.service(&mut spool, Stdout, 1);
    let file = OpenOptions::new().write(true).open(world.path(Stdout)).unwrap();
    // The largest file that this file system takes: 8 EiB on tmpfs, 16 TiB on ext4.
    let size = (40..63).rev().map(|bits| (1_u64 << bits) - (1 << 20)).find(|size| file.set_len(*size).is_ok()).unwrap();
    let serviced = world.service(&mut spool, Stdout, 2);
    assert_eq!((serviced.end, serviced.fault), (size, None));
    assert!(size - serviced.start <= spool.most());
    world.write(Stdout, "tail\n");
    let (kept, gone) = world.read_all(&spool, Stdout, 0);
    // The file system may have filled up the block before the tail.
    assert!(kept.ends_with(b"tail\n") && kept.len() <= 64 << 10, "no zeros of a hole are told");
    assert_eq!(gone + kept.len() as u64, size + 5);
    assert_eq!(Spool::recover(&world.store, &world.id, CAP_DEFAULT).unwrap().bounds(Stdout).1, size + 5);
    assert!(spool.last_lines(&world.store, &world.id, Stdout, 1, 100).unwrap()[0].ends_with("tail"));
    world.tail(&spool, 10);
    // Twice is more than 64 bits hold, in the end: it must harm nobody.
    for step in 0..20 {
        file.set_len(0).unwrap();
        world.service(&mut spool, Stdout, 3 + step);
        file.set_len(size).unwrap();
        world.service(&mut spool, Stdout, 3 + step);
    }
}

#[test]
fn a_hole_that_the_agent_made_is_gone_and_not_zeros() {
    let world = World::new();
    let spool = Spool::new(CAP_DEFAULT);
    world.write(Stdout, "a".repeat(64 << 10));
    OpenOptions::new().write(true).open(world.path(Stdout)).unwrap().set_len(1 << 20).unwrap();
    world.write(Stdout, "b");
    let (kept, gone) = world.read_all(&spool, Stdout, 0);
    assert_eq!((kept.len() as u64, gone), ((64 << 10) + 1, (1 << 20) - (64 << 10)));
    assert!(kept.ends_with(b"ab"));
}

#[test]
fn a_shift_that_cannot_be_stored_is_told_once_and_output_goes_on() {
    let world = World::new();
    let mut spool = Spool::new(CAP_DEFAULT);
    let obstacle = world.state.path().join("agents/a/stdout.base");
    fs::create_dir(&obstacle).unwrap();
    let mut faults = Vec::new();
    for step in 1..=5 {
        if step == 3 {
            fs::remove_dir(&obstacle).unwrap();
        }
        if step == 4 {
            fs::remove_file(&obstacle).unwrap();
            fs::create_dir(&obstacle).unwrap();
        }
        fs::write(world.path(Stdout), format!("line {step}\n")).unwrap();
        let serviced = world.service(&mut spool, Stdout, step);
        assert_eq!(serviced.end, 7 * step);
        faults.push(serviced.fault.map(|error| error.message));
    }
    // The first line is no truncation; what was stored at the third makes the fourth a new fault.
    let shown = "make agents/a/stdout.base: Is a directory (EISDIR)".to_owned();
    assert_eq!(faults, [None, Some(shown.clone()), None, Some(shown), None]);
}

#[test]
fn a_thing_in_the_files_place_is_neither_followed_nor_waited_for() {
    let world = World::new();
    let secret = world.state.path().join("secret");
    fs::write(&secret, "secret\n").unwrap();
    let replacements: [fn(&std::path::Path, &std::path::Path); 5] = [
        |path, secret| std::os::unix::fs::symlink(secret, path).unwrap(),
        |path, secret| fs::hard_link(secret, path).unwrap(),
        |path, _| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
        |path, _| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        |path, _| fs::create_dir(path).unwrap(),
    ];
    for replace in replacements {
        let path = world.path(Stdout);
        fs::remove_file(&path).unwrap_or_default();
        replace(&path, &secret);
        let mut spool = Spool::new(CAP_DEFAULT);
        let serviced = spool.service(&world.store, &world.id, Stdout, Wall(1));
        assert_eq!(serviced.unwrap_err().code, Code::WrongState);
        assert_eq!(spool.read(&world.store, &world.id, &mut both(), 100).unwrap_err().code, Code::WrongState);
        assert_eq!(world.store.writer(&world.id, Stdout).unwrap_err().code, Code::WrongState);
        assert!(Spool::recover(&world.store, &world.id, CAP_DEFAULT).is_err());
    }
    let error = world.store.remove(&world.id).unwrap_err();
    assert_eq!(error.code, Code::WrongState, "a directory in the file's place is not removed");
    fs::remove_dir(world.path(Stdout)).unwrap();
    world.store.create(&world.id, Output::File).unwrap();
    assert_eq!(fs::read_to_string(secret).unwrap(), "secret\n");
}

#[test]
fn a_link_in_the_directorys_place_is_removed_and_not_followed() {
    let world = World::new();
    let elsewhere = world.state.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("stdout"), "keep").unwrap();
    world.store.remove(&world.id).unwrap();
    std::os::unix::fs::symlink(&elsewhere, world.state.path().join("agents/a")).unwrap();
    assert_eq!(world.store.writer(&world.id, Stdout).unwrap_err().code, Code::WrongState);
    world.store.create(&world.id, Output::File).unwrap();
    assert_eq!(fs::read_to_string(elsewhere.join("stdout")).unwrap(), "keep");
    assert_eq!(fs::read_to_string(world.path(Stdout)).unwrap(), "");
}

#[test]
fn an_unknown_agent_has_no_output() {
    let world = World::new();
    let nobody: AgentId = "nobody".parse().unwrap();
    let mut spool = Spool::new(CAP_DEFAULT);
    for error in [
        world.store.writer(&nobody, Stdout).unwrap_err(),
        world.store.watch_dir(&nobody).unwrap_err(),
        spool.service(&world.store, &nobody, Stdout, Wall(1)).unwrap_err(),
        spool.read(&world.store, &nobody, &mut both(), 1).unwrap_err(),
        Spool::recover(&world.store, &nobody, CAP_DEFAULT).unwrap_err(),
    ] {
        assert_eq!(error.code, Code::NoSuchAgent, "{error}");
    }
    world.store.remove(&nobody).unwrap();
}

#[test]
fn an_agents_directory_is_made_anew_and_the_child_gets_a_plain_appending_descriptor() {
    let world = World::new();
    world.write(Stdout, "old");
    world.store.create(&world.id, Output::File).unwrap();
    assert_eq!(fs::metadata(world.path(Stdout)).unwrap().len(), 0);
    assert_eq!(fs::metadata(world.path(Stdout)).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.state.path().join("agents/a")).unwrap().mode() & 0o777, 0o700);
    let flags = fcntl_getfl(world.writer(Stdout).as_fd()).unwrap();
    assert!(flags.contains(OFlags::APPEND) && !flags.contains(OFlags::NONBLOCK));
    assert!(!flags.intersects(OFlags::RDWR), "the child cannot read it back");
    Store::open(world.state.path()).unwrap();
    world.store.remove(&world.id).unwrap();
    world.store.remove(&world.id).unwrap();
    assert_eq!(fs::read_dir(world.state.path().join("agents")).unwrap().count(), 0);
}

#[test]
fn spare_files_become_an_agents_own_and_what_stands_in_their_way_goes() {
    let world = World::new();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(world.state.path().join("agents"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    for _ in 0..10 {
        world.store.stock(|_| Ok(())).unwrap();
    }
    assert_eq!(names(), [".spare-0", ".spare-1", ".spare-2", ".spare-3", "a"], "a bounded number of them");
    let spare = fs::metadata(world.state.path().join("agents/.spare-0/stdout.pipe")).unwrap().ino();
    let b = "b".parse().unwrap();
    let inlet = world.store.create(&b, Output::default()).unwrap();
    assert_eq!(names(), [".spare-1", ".spare-2", ".spare-3", "a", "b"]);
    assert_eq!(rustix::fs::fstat(&inlet.stdout).unwrap().st_ino, spare);
    assert_eq!(inlet.token, Some(spare), "pipes, as by default");
    assert_eq!(fs::metadata(world.state.path().join("agents/b/stdout.pipe")).unwrap().ino(), spare);
    world.write(Stdout, "of an earlier one");
    world.store.create(&world.id, Output::Pipe).unwrap();
    assert_eq!(fs::metadata(world.path(Stdout)).unwrap().len(), 0);
    assert_eq!(names().len(), 5, "the spare that found its place taken is still there");
    // A daemon that was killed has left its spares; the next one begins with none.
    let next = Store::open(world.state.path()).unwrap();
    assert_eq!(names().len(), 5, "who only looks takes nothing away");
    let known = [world.id.clone(), b].into();
    assert_eq!(next.remove_all_but(&known), []);
    assert_eq!(names(), ["a", "b"]);
    next.stock(|_| Ok(())).unwrap();
    next.close();
    next.stock(|_| Ok(())).unwrap();
    assert_eq!(next.remove_all_but(&[world.id.clone()].into()), []);
    assert_eq!(names(), ["a"], "and leaves none, nor what an agent of which there is no record has left");
}
