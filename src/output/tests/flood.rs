//! The bound on disk, under fire and at rest.

use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::*;

/// Blocks that a file system holds beyond the data: its own index, and what it allocates ahead.
const SLOP: u64 = 1 << 20;

#[test]
fn a_flood_of_300_mb_stays_within_the_cap_and_its_offsets_are_exact() {
    let written = 300_000_000_u64;
    let world = World::new();
    assert!(world.store.punches(), "this file system cannot punch holes: nothing to prove here");
    let mut spool = Spool::new(Bytes(4 << 20));
    let mut child = Command::new("sh")
        .args(["-c", &format!("yes ERROR | head -c {written} >&2")])
        .stdin(Stdio::null())
        .stderr(world.writer(Stderr))
        .spawn()
        .unwrap();
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    let mut is_over = false;
    while !is_over {
        let five_ms = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        is_over = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&five_ms)).unwrap() > 0;
        let serviced = world.service(&mut spool, Stderr, 1);
        assert_eq!(serviced.fault, None);
        assert!(serviced.end - serviced.start <= spool.most());
        let now = std::fs::metadata(world.path(Stderr)).unwrap();
        assert!(now.blocks() * 512 <= now.len() - serviced.start + SLOP, "the hole gave its blocks back");
    }
    assert!(child.wait().unwrap().success());
    world.service(&mut spool, Stderr, 2);
    let (start, end) = spool.bounds(Stderr);
    assert_eq!(end, written);
    assert!(world.disk_bytes(Stderr) <= spool.most() + SLOP);
    let (kept, gone) = world.read_all(&spool, Stderr, 0);
    assert_eq!((gone, kept.len() as u64), (start, written - start));
    assert!(kept.len() >= 4 << 20, "never more is given back than needed");
    let expected = b"ERROR\n".iter().cycle().skip(usize::try_from(start % 6).unwrap());
    assert!(kept.iter().zip(expected).all(|(byte, expected)| byte == expected));
}

#[test]
fn below_the_cap_nothing_is_given_back() {
    let world = World::new();
    let mut spool = Spool::new(CAP_LEAST);
    world.write(Stdout, "x".repeat(64 << 10));
    let serviced = world.service(&mut spool, Stdout, 1);
    assert_eq!((serviced.grew, serviced.end, serviced.start), (true, CAP_LEAST.0, 0));
    let again = world.service(&mut spool, Stdout, 2);
    assert_eq!((again.grew, again.end, again.start), (false, CAP_LEAST.0, 0), "without news nothing changes");
}

/// Writes 200 MiB to stdout and looks at it: returns the hole that is to be dug, too.
fn a_hole_in_200_mib() -> (World, Spool, Hole) {
    let (world, mut spool) = (World::new(), Spool::new(CAP_LEAST));
    let chunk = vec![b'x'; 1 << 20];
    let mut writer = world.writer(Stdout);
    (0..200).for_each(|_| writer.write_all(&chunk).unwrap());
    let hole = spool.service(&world.store, &world.id, Stdout, Wall(1)).unwrap().hole.unwrap();
    (world, spool, hole)
}

#[test]
fn what_is_given_up_is_given_back_in_bounded_holes_one_at_a_time() {
    let (world, mut spool, first) = a_hole_in_200_mib();
    let (start, end) = spool.bounds(Stdout);
    assert!(end - start <= spool.most(), "it is given up at once");
    let meanwhile = spool.service(&world.store, &world.id, Stdout, Wall(2)).unwrap();
    assert!(meanwhile.hole.is_none() && !meanwhile.grew, "one is being dug");
    let before = world.disk_bytes(Stdout);
    let dug = first.dig();
    assert!(before - world.disk_bytes(Stdout) <= 128 << 20);
    assert_eq!(spool.hole_dug(dug), Ok(true), "there is more to give back");
    let second = spool.service(&world.store, &world.id, Stdout, Wall(2)).unwrap().hole.unwrap();
    assert_eq!(spool.hole_dug(second.dig()), Ok(false));
    assert!(world.disk_bytes(Stdout) <= spool.most() + SLOP);
}

#[test]
fn no_hole_is_dug_in_what_came_after_a_truncation() {
    let (world, mut spool, hole) = a_hole_in_200_mib();
    let text = "anew\n".repeat(50 << 20);
    std::fs::write(world.path(Stdout), &text).unwrap();
    let dug = hole.dig();
    assert!(std::fs::read(world.path(Stdout)).unwrap() == text.as_bytes(), "not a byte is gone");
    world.service(&mut spool, Stdout, 2);
    let bounds = spool.bounds(Stdout);
    assert_eq!(spool.hole_dug(dug), Ok(false), "nor is it another hole's");
    assert_eq!(spool.bounds(Stdout), bounds);
    assert!(world.disk_bytes(Stdout) <= spool.most() + SLOP);
}

#[test]
fn a_hole_of_an_agent_that_is_gone_is_not_dug_in_its_successors_output() {
    let (world, mut spool, hole) = a_hole_in_200_mib();
    world.store.create(&world.id, Output::File).unwrap();
    world.write(Stdout, "its own words\n");
    assert_eq!(spool.hole_dug(hole.dig()), Ok(true));
    assert_eq!(std::fs::read(world.path(Stdout)).unwrap(), b"its own words\n");
}

#[test]
fn a_new_daemon_finds_the_start_and_the_end_again() {
    let world = World::new();
    let mut spool = Spool::new(CAP_LEAST);
    world.write(Stdout, (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    world.service(&mut spool, Stdout, 1);
    let recovered = Spool::recover(&world.store, &world.id, CAP_LEAST).unwrap();
    assert_ne!(spool.bounds(Stdout).0, 0);
    assert_eq!(recovered.bounds(Stdout), spool.bounds(Stdout));
    assert_eq!(recovered.bounds(Stderr), (0, 0));
    let mut cursor = Cursor { stdout: Some(recovered.bounds(Stdout).0), stderr: None };
    let page = world.read(&recovered, &mut cursor, 1);
    assert!(page.pieces[0].time.is_some(), "a kept byte knows its time, if only that of the last write");
    assert_eq!(world.read_all(&recovered, Stdout, 0), world.read_all(&spool, Stdout, 0));
}

#[test]
fn an_idle_agent_costs_under_200_bytes() {
    assert!(size_of::<Spool>() <= 200, "{}", size_of::<Spool>());
}
