use super::*;
use crate::model::event::Kind;
use crate::model::time::Wall;

fn event(message: &str) -> Event {
    Event { message: message.to_owned(), ..Event::new(Wall(1), Kind::Started) }
}

/// Reads a page, and returns the numbers of its events.
fn read(journal: &Journal, since: u64) -> (Vec<u64>, Page) {
    let page = journal.pages(since).read(&EventQuery::default(), 1 << 20).unwrap();
    let numbers = page.events.iter().map(|json| serde_json::from_str::<Event>(json).unwrap().seq).collect();
    (numbers, page)
}

#[test]
fn events_are_numbered_without_gaps_across_daemons() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let mut journal = Journal::open(dir.path()).unwrap();
        for number in 1..=100 {
            let mut event = event("x");
            journal.append(&mut event);
            assert_eq!(event.seq, round * 100 + number);
        }
        journal.flush(&mut Disk::in_memory());
    }
    let (numbers, page) = read(&Journal::open(dir.path()).unwrap(), 290);
    assert_eq!(numbers, (291..=300).collect::<Vec<_>>());
    assert_eq!((page.last, page.lost), (300, 0));
}

#[test]
fn a_line_that_was_cut_short_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    journal.append(&mut event("whole"));
    journal.flush(&mut Disk::in_memory());
    (&*journal.all.newer.file).write_all(b"{\"seq\":2,\"ti").unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.last(), 1);
    journal.append(&mut event("next"));
    journal.flush(&mut Disk::in_memory());
    assert_eq!(read(&journal, 0).0, [1, 2]);
}

#[test]
fn what_could_not_be_written_is_written_later_and_what_had_no_room_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    let append = |journal: &mut Journal, count: u64, text: &str| {
        (0..count).for_each(|_| journal.append(&mut event(text)));
        journal.flush(&mut Disk::in_memory());
    };
    append(&mut journal, 10, "x");
    let unwritable = Arc::new(File::open(dir.path().join("journal")).unwrap());
    let file = std::mem::replace(&mut journal.all.newer.file, unwritable);
    append(&mut journal, 190, "x");
    assert!(journal.fault().is_some() && !journal.all.unwritten.text.is_empty());
    append(&mut journal, 1, &"x".repeat(UNWRITTEN_MAX));
    append(&mut journal, 1, "lost");
    journal.all.newer.file = file;
    append(&mut journal, 0, "");
    assert!(journal.fault().is_none() && journal.all.unwritten.text.is_empty());
    append(&mut journal, 100, "x");
    for journal in [journal, Journal::open(dir.path()).unwrap()] {
        let (mut at, mut lost, mut seen) = (5, 0, Vec::new());
        while at < 302 {
            let (numbers, page) = read(&journal, at);
            assert!(page.last > at, "it goes on after {at}");
            seen.extend(numbers);
            (at, lost) = (page.last, lost + page.lost);
        }
        assert_eq!((seen, lost), ((6..=201).chain(203..=302).collect(), 1));
    }
}

#[test]
fn bytes_that_are_no_event_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    for garbage in [&b"\xff\xfe no text\n"[..], b"{\"seq\":\n", b"\n", b"{}\n"] {
        journal.append(&mut event("x"));
        journal.flush(&mut Disk::in_memory());
        (&*journal.all.newer.file).write_all(garbage).unwrap();
        journal.all.newer.size += garbage.len() as u64;
    }
    for journal in [journal, Journal::open(dir.path()).unwrap()] {
        assert_eq!(journal.last(), 4);
        assert_eq!(read(&journal, 0).0, [1, 2, 3, 4]);
    }
}

#[test]
fn the_journal_is_bounded_and_tells_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    let long = "x".repeat(100_000);
    for _ in 0..400 {
        journal.append(&mut event(&long));
        journal.flush(&mut Disk::in_memory());
    }
    let size: u64 = ["journal", "journal.1"].iter().map(|name| dir.path().join(name).metadata().unwrap().len()).sum();
    assert!(size <= 2 * (HALF_MAX + 200_000), "{size}");
    let (numbers, first) = read(&journal, 0);
    assert!(first.lost > 0 && numbers[0] == first.lost + 1, "what is gone is told exactly");
    let (mut at, mut count) = (first.last, first.events.len() as u64);
    while at < 400 {
        let (_, page) = read(&journal, at);
        assert!(!page.events.is_empty());
        (at, count) = (page.last, count + page.events.len() as u64);
    }
    assert_eq!(count + first.lost, 400);
}

#[test]
fn an_end_is_still_told_when_all_that_was_told_beside_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    let end = |message: &str| Event { message: message.to_owned(), ..Event::new(Wall(1), Kind::Failed) };
    let long = "x".repeat(100_000);
    for round in 0..400 {
        let mut told = if round % 100 == 7 { end("ended") } else { event(&long) };
        journal.append(&mut told);
        journal.flush(&mut Disk::in_memory());
    }
    for journal in [journal, Journal::open(dir.path()).unwrap()] {
        let (mut at, mut numbers, mut lost) = (0, Vec::new(), 0);
        while at < 400 {
            let (new, page) = read(&journal, at);
            lost += page.lost;
            assert!(page.last > at, "it goes on");
            at = page.last;
            numbers.extend(new);
        }
        assert_eq!(numbers[..2], [8, 108], "the oldest that are kept are ends");
        assert!(numbers.is_sorted() && numbers.contains(&208) && numbers.contains(&308) && lost > 200);
        assert_eq!(numbers.len() as u64 + lost, 400, "what is gone is told exactly");
    }
}

#[test]
fn the_last_events_are_in_memory_as_far_as_their_bound_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    assert!(journal.recent(1).is_none());
    (0..400).for_each(|_| journal.append(&mut event(&"x".repeat(10_000))));
    assert!(journal.recent(1).is_none(), "the first ones are in the files alone");
    let numbers: Vec<_> = journal.recent(390).unwrap().map(|told| told.seq).collect();
    assert_eq!(numbers, (390..=400).collect::<Vec<_>>());
    assert!(journal.recent.bytes <= RECENT_MAX && journal.recent(401).unwrap().next().is_none());
}
