//! Nothing is lost, nothing doubled, whatever the order of events.

use super::*;

#[test]
fn two_streams_are_merged_by_the_time_they_were_seen() {
    let world = World::new();
    let mut spool = Spool::new(CAP_DEFAULT);
    for (time, stream, line) in [(1, Stdout, "o1\n"), (2, Stderr, "e2\n"), (3, Stdout, "o3\n"), (3, Stderr, "e3\n")] {
        world.write(stream, line);
        world.service(&mut spool, stream, time);
    }
    world.write(Stderr, "e4\n");
    let read = world.read(&spool, &mut both(), 1000);
    assert_eq!(text(&read), "o1\ne2\no3\ne3\ne4\n");
    assert!(read.at_end);
    let times: Vec<_> = read.pieces.iter().map(|piece| piece.time.map(|time| time.0)).collect();
    assert_eq!(times, [Some(1), Some(2), Some(3), Some(3), None], "the last one was not serviced yet, and is there");
}

#[test]
fn a_budget_of_one_byte_reads_the_same_as_a_large_one() {
    let world = World::new();
    let mut spool = Spool::new(CAP_DEFAULT);
    for time in 1..20 {
        let stream = if time % 3 == 0 { Stderr } else { Stdout };
        world.write(stream, format!("line {time}\n"));
        world.service(&mut spool, stream, time);
    }
    let whole = text(&world.read(&spool, &mut both(), 1 << 20));
    let mut cursor = both();
    let mut bytes = String::new();
    loop {
        let read = world.read(&spool, &mut cursor, 1);
        assert!(read.pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>() <= 1);
        bytes += &text(&read);
        if read.at_end {
            break;
        }
    }
    assert_eq!(bytes, whole);
    let nothing = world.read(&spool, &mut both(), 0);
    assert!(nothing.pieces.is_empty() && !nothing.at_end);
}

/// A reader that keeps account of what it was told.
struct Account {
    cursor: Cursor,
    told: [u64; 2],
    gone: [u64; 2],
}

impl Account {
    fn read(&mut self, world: &World, spool: &Spool, written: &[Vec<u8>; 2], budget: usize) -> bool {
        let mut at = Stream::ALL.map(|stream| self.cursor.get(stream));
        let read = world.read(spool, &mut self.cursor, budget);
        let times: Vec<_> = read.pieces.iter().filter_map(|piece| piece.time).collect();
        assert!(times.is_sorted(), "merged by time");
        assert!(read.pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>() <= budget);
        for piece in &read.pieces {
            let index = piece.stream as usize;
            let next = at[index].as_mut().expect("only streams that were asked for");
            let offset = usize::try_from(piece.offset).unwrap();
            assert!(piece.offset == *next || (piece.offset > *next && piece.offset == spool.bounds(piece.stream).0));
            assert_eq!(piece.bytes, written[index][offset..offset + piece.bytes.len()]);
            *next = piece.offset + piece.bytes.len() as u64;
            self.told[index] += piece.bytes.len() as u64;
        }
        self.gone[0] += read.gone.stdout;
        self.gone[1] += read.gone.stderr;
        for stream in Stream::ALL {
            let index = stream as usize;
            if let Some(now) = self.cursor.get(stream) {
                assert_eq!(now, self.told[index] + self.gone[index], "told and gone make up the whole");
            }
        }
        read.at_end
    }
}

#[test]
fn no_byte_is_lost_or_doubled_in_any_order_of_writes_services_and_reads() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let world = World::new();
        let mut spool = Spool::new(CAP_LEAST);
        let mut written = [Vec::new(), Vec::new()];
        let mut accounts: Vec<_> = [both(), Cursor { stderr: None, ..both() }, Cursor { stdout: None, ..both() }]
            .map(|cursor| Account { cursor, told: [0; 2], gone: [0; 2] })
            .into();
        let mut time = 0;
        for _ in 0..150 {
            let stream = if random.bool() { Stdout } else { Stderr };
            time += random.u64(..2);
            match random.u8(..10) {
                0..4 => {
                    let length = if random.u8(..4) == 0 { random.usize(..150_000) } else { random.usize(..200) };
                    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
                    world.write(stream, &bytes);
                    written[stream as usize].extend(bytes);
                }
                4..7 => drop(world.service(&mut spool, stream, time)),
                7 if random.u8(..4) == 0 => {
                    spool = Spool::recover(&world.store, &world.id, CAP_LEAST).unwrap();
                }
                _ => {
                    let budget = if random.bool() { random.usize(..50) } else { random.usize(..200_000) };
                    let account = random.usize(..3);
                    accounts[account].read(&world, &spool, &written, budget);
                }
            }
        }
        for account in &mut accounts {
            while !account.read(&world, &spool, &written, 100_000) {}
            for stream in Stream::ALL {
                let end = account.cursor.get(stream).unwrap_or(written[stream as usize].len() as u64);
                assert_eq!(end, written[stream as usize].len() as u64, "seed {seed}: read to the end");
            }
        }
    }
}

#[test]
fn the_last_lines_are_the_last_lines() {
    let world = World::new();
    let spool = Spool::new(CAP_DEFAULT);
    let last = |lines, bytes| spool.last_lines(&world.store, &world.id, Stderr, lines, bytes).unwrap();
    assert_eq!(last(3, 100), Vec::<String>::new());
    world.write(Stderr, "one\ntwo\n\x1b[31mthree\n");
    world.write(Stderr, b"\xff\nfour");
    assert_eq!(last(2, 100), ["\\xff", "four"]);
    assert_eq!(last(9, 100)[..2], ["one", "two"]);
    assert!(last(9, 100)[2].starts_with("\\x1b[31mthree"));
    assert_eq!(last(9, 6), ["\\xff", "four"], "cut exactly between two lines");
    assert_eq!(last(9, 3), ["…our"]);
    assert_eq!(last(0, 100), Vec::<String>::new());
    assert_eq!(last(9, 0), Vec::<String>::new());
}

#[test]
fn logs_begin_n_lines_before_the_end() {
    let world = World::new();
    let mut spool = Spool::new(CAP_LEAST);
    let tail = |spool: &Spool, lines| world.tail(spool, lines);
    assert_eq!(tail(&spool, 3), Cursor { stdout: Some(0), stderr: None });
    world.write(Stdout, "one\ntwo\nthree\n");
    assert_eq!(tail(&spool, 0).stdout, Some(14));
    assert_eq!(tail(&spool, 1).stdout, Some(8));
    assert_eq!(tail(&spool, 3).stdout, Some(0));
    assert_eq!(tail(&spool, usize::MAX).stdout, Some(0));
    world.write(Stdout, "open");
    assert_eq!(tail(&spool, 2).stdout, Some(8));
    world.write(Stdout, vec![b'x'; 300_000]);
    assert_eq!(tail(&spool, 2).stdout, Some(300_018 - spool.most()), "not further back than what can be kept");
    world.service(&mut spool, Stdout, 1);
    assert!(spool.bounds(Stdout).0 > 0);
    assert_eq!(tail(&spool, 2).stdout, Some(0), "who gets fewer lines than asked for is told what is gone");
    assert_eq!(tail(&spool, 0).stdout, Some(300_018));
}

#[test]
fn a_page_that_is_read_while_holes_are_dug_has_no_byte_that_was_not_written() {
    let world = World::new();
    let mut spool = Spool::new(CAP_LEAST);
    let block: Vec<u8> = b"12345\n".iter().copied().cycle().take(6 << 15).collect();
    world.write(Stdout, &block);
    world.service(&mut spool, Stdout, 0);
    for time in 1..400 {
        let earlier = spool.clone();
        // The oldest output, which is the next to be given up.
        let mut cursor = Cursor::at(Some(Stdout), |_| earlier.bounds(Stdout).0);
        let from = cursor.stdout.unwrap();
        let mut read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| world.read(&earlier, &mut cursor, 64 << 10));
            world.write(Stdout, &block);
            world.service(&mut spool, Stdout, time);
            reader.join().unwrap()
        });
        spool.confirm(&mut read, &mut cursor);
        let told: usize = read.pieces.iter().map(|piece| piece.bytes.len()).sum();
        assert_eq!(cursor.stdout, Some(from + told as u64 + read.gone.stdout), "told and gone make up the whole");
        for piece in &read.pieces {
            assert!(piece.offset >= spool.bounds(Stdout).0, "what is not kept may be zeros");
            let begin = usize::try_from(piece.offset % 6).unwrap();
            assert_eq!(piece.bytes, block[begin..begin + piece.bytes.len()]);
        }
    }
}

#[test]
fn a_page_of_a_file_that_was_truncated_meanwhile_has_nothing_at_an_offset_of_what_came_after() {
    let world = World::new();
    let mut spool = Spool::new(CAP_DEFAULT);
    world.write(Stdout, "seen\n");
    world.write(Stderr, "another stream\n");
    Stream::ALL.into_iter().for_each(|stream| drop(world.service(&mut spool, stream, 1)));
    world.write(Stdout, "not seen\n");
    let (earlier, mut cursor) = (spool.clone(), both());
    let mut read = world.read(&earlier, &mut cursor, 1000);
    assert_eq!(text(&read), "seen\nanother stream\nnot seen\n");
    std::fs::write(world.path(Stdout), "new\n").unwrap();
    world.service(&mut spool, Stdout, 2);

    spool.confirm(&mut read, &mut cursor);
    assert_eq!((text(&read).as_str(), read.at_end), ("another stream\n", false));
    assert_eq!((read.gone, cursor), (Gone { stdout: 5, stderr: 0 }, Cursor { stdout: Some(5), stderr: Some(15) }));
    assert_eq!(text(&world.read(&spool, &mut cursor, 1000)), "new\n");
}
