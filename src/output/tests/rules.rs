//! Lines against rules.

use std::sync::Arc;

use super::*;
use crate::model::rule::Rule;

fn set(rules: &[&str]) -> Arc<RuleSet> {
    let rules: Vec<Rule> = rules.iter().map(|text| text.parse().unwrap()).collect();
    Arc::new(RuleSet::new(&rules).unwrap())
}

fn budget(work: u64) -> Budget {
    Budget { work, until: std::time::Instant::now() + std::time::Duration::from_secs(60) }
}

/// Looks at all that there is, so many bytes at a time; returns rule, offset and line of what was found, and what was gone.
fn scan(world: &World, spool: &Spool, scan: &mut Sweep, step: u64) -> (Vec<(usize, u64, String)>, u64) {
    let (mut found, mut gone) = (Vec::new(), 0);
    loop {
        let note = |it: Match<'_>| found.push((it.rule, it.offset, String::from_utf8_lossy(it.line).into_owned()));
        let looked = scan.look(spool, &world.store, &world.id, budget(step), u64::MAX, note).unwrap();
        gone += looked.gone;
        if looked.at_end {
            return (found, gone);
        }
    }
}

#[test]
fn a_line_is_found_whole_however_it_comes_in() {
    let world = World::new();
    let spool = Spool::new(CAP_LEAST);
    world.write(Stderr, "one\ntwo fatal\r\n\nERROR and fatal$\nfat");
    let rules = set(&["stderr:fatal", "^ERROR", "stdout:one", "fatal$", "^$"]);
    for step in [1, 2, 3, 7, 1000] {
        let mut scanned = Sweep::new(rules.clone(), Stderr, 0);
        let (found, gone) = scan(&world, &spool, &mut scanned, step);
        let two = "two fatal".to_owned();
        let error = "ERROR and fatal$".to_owned();
        let expected =
            [(0, 4, two.clone()), (3, 4, two), (4, 15, String::new()), (0, 16, error.clone()), (1, 16, error)];
        assert_eq!((found.as_slice(), gone), (expected.as_slice(), 0), "in steps of {step}");
    }
}

#[test]
fn the_last_line_needs_no_end_when_nothing_follows() {
    let world = World::new();
    let spool = Spool::new(CAP_LEAST);
    let mut scanned = Sweep::new(set(&["panic"]), Stdout, 0);
    world.write(Stdout, "a pa");
    assert_eq!(scan(&world, &spool, &mut scanned, 100).0, []);
    world.write(Stdout, "nic");
    assert_eq!(scan(&world, &spool, &mut scanned, 100).0, [], "it may go on");
    let mut found = Vec::new();
    scanned.finish(|it| found.push((it.offset, it.line.to_vec())));
    scanned.finish(|_| panic!("once"));
    assert_eq!(found, [(0, b"a panic".to_vec())]);
}

#[test]
fn of_a_long_line_its_beginning_is_looked_at_and_at_once() {
    let world = World::new();
    let spool = Spool::new(Bytes(1 << 20));
    let long = "x".repeat(LINE_MOST);
    world.write(Stdout, format!("near{long}far"));
    for step in [1000, 1 << 20] {
        let mut scanned = Sweep::new(set(&["near", "far", "end$"]), Stdout, 0);
        let (found, _) = scan(&world, &spool, &mut scanned, step);
        assert_eq!(found.iter().map(|it| (it.0, it.1, it.2.len())).collect::<Vec<_>>(), [(0, 0, LINE_MOST)]);
    }
    let mut scanned = Sweep::new(set(&["far", "end$"]), Stdout, 0);
    world.write(Stdout, format!("{long}\nthe end\n"));
    let (found, _) = scan(&world, &spool, &mut scanned, 5000);
    assert_eq!(found, [(1, (2 * LINE_MOST + 8) as u64, "the end".to_owned())], "the next line is a line again");
}

#[test]
fn what_is_gone_is_counted_and_ends_the_lines_around_it() {
    let world = World::new();
    let mut spool = Spool::new(CAP_LEAST);
    let mut scanned = Sweep::new(set(&["a"]), Stdout, 0);
    world.write(Stdout, "open a");
    assert_eq!(scan(&world, &spool, &mut scanned, 100), (vec![], 0));
    let filler = format!("{}\n", "a".repeat(99)).repeat(10_000);
    world.write(Stdout, &filler);
    world.service(&mut spool, Stdout, 1);
    let (start, end) = spool.bounds(Stdout);
    let (found, gone) = scan(&world, &spool, &mut scanned, 1 << 20);
    assert_eq!(gone, start - 6);
    assert_eq!(found[0], (0, 0, "open a".to_owned()));
    // The hole ends within a line, whose rest means nothing.
    let whole = (end - start) / 100;
    assert_eq!(found.len() as u64, 1 + whole);
    assert!(found[1].1 > start && found[1..].iter().all(|it| it.2.len() == 99));
}

#[test]
fn a_look_ends_where_it_is_told_to_though_a_gap_is_before_it() {
    let world = World::new();
    let mut spool = Spool::new(CAP_LEAST);
    world.write(Stdout, "a\n".repeat(100_000));
    world.service(&mut spool, Stdout, 1);
    let (start, end) = spool.bounds(Stdout);
    for until in [start - 10, start + 10, end] {
        let mut scanned = Sweep::new(set(&["a"]), Stdout, 0);
        let mut found = 0;
        let looked = scanned.look(&spool, &world.store, &world.id, budget(1 << 30), until, |_| found += 1).unwrap();
        assert!(looked.at_end, "{looked:?}");
        assert_eq!((scanned.next(), looked.gone), (until, start.min(until)));
        assert_eq!(
            found,
            (until.saturating_sub(start) / 2).saturating_sub(u64::from(until > start)),
            "the line of the gap apart"
        );
    }
}
