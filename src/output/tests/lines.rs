//! Pieces to lines, bytes to text.

use super::*;

fn piece(offset: u64, time: u64, bytes: impl AsRef<[u8]>) -> Piece {
    Piece { stream: Stdout, offset, time: Some(Wall(time)), bytes: bytes.as_ref().to_vec() }
}

fn short(line: &Line) -> (u64, u64, String, bool) {
    (line.offset, line.time.unwrap().0, String::from_utf8(line.bytes.clone()).unwrap(), line.is_complete)
}

#[test]
fn a_line_over_several_pieces_is_one_with_the_time_of_its_first_byte() {
    let mut lines = Lines::default();
    let mut out = Vec::new();
    for piece in [piece(0, 1, "a\nb"), piece(3, 2, "c\r\n\n"), piece(7, 3, "d")] {
        lines.feed(&piece, |line| out.push(short(&line)));
    }
    lines.finish(|line| out.push(short(&line)));
    lines.finish(|_| panic!("nothing stands open twice"));
    let expected = [(0, 1, "a", true), (2, 1, "bc", true), (6, 2, "", true), (7, 3, "d", false)]
        .map(|(o, t, s, c)| (o, t, s.into(), c));
    assert_eq!(out, expected);
}

#[test]
fn a_gap_ends_what_stood_open() {
    let mut lines = Lines::default();
    let mut out = Vec::new();
    lines.feed(&piece(0, 1, "lost"), |line| out.push(short(&line)));
    lines.feed(&piece(10, 2, "new\n"), |line| out.push(short(&line)));
    assert_eq!(out, [(0, 1, "lost".into(), false), (10, 2, "new".into(), true)]);
}

#[test]
fn a_line_without_end_is_told_in_bounded_parts() {
    for step in [1, 7, 1000, PARTIAL_MOST, PARTIAL_MOST + 1, 200_000] {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        let mut text = vec![b'x'; 2 * PARTIAL_MOST];
        text.extend(b"\ny\n");
        for (index, chunk) in text.chunks(step).enumerate() {
            lines.feed(&piece((index * step) as u64, 1, chunk), |line| out.push(line));
        }
        let shape: Vec<_> = out.iter().map(|line| (line.offset, line.bytes.len(), line.is_complete)).collect();
        let most = PARTIAL_MOST;
        let expected = [(0, most, false), (most as u64, most, true), (2 * most as u64 + 1, 1, true)];
        assert_eq!(shape, expected, "in chunks of {step}");
    }
}

#[test]
fn shown_text_does_nothing_to_a_terminal() {
    let hostile = b"a\tb\x1b]0;title\x07\x1b[31mred\x1b[2J\r\x00\xff\xc2\x9b31m\xe2\x80\xae \\x \xc3\xa4";
    let shown = escape(hostile, Colours::Escaped);
    assert_eq!(shown, "a\tb\\x1b]0;title\\x07\\x1b[31mred\\x1b[2J\\x0d\\x00\\xff\\u{9b}31m\\u{202e} \\x \u{e4}");
    let coloured = escape(hostile, Colours::Kept);
    assert!(coloured.contains("\x1b[31mred\\x1b[2J") && coloured.ends_with("\x1b[0m"));
    assert_eq!(escape(b"plain", Colours::Kept), "plain");
    assert_eq!(escape(b"\x1b[38;5;1m\x1b[", Colours::Kept), "\x1b[38;5;1m\\x1b[\x1b[0m");
    let long = format!("\x1b[{}m", "1".repeat(33));
    assert!(escape(long.as_bytes(), Colours::Kept).starts_with("\\x1b"));
}

#[test]
fn any_bytes_become_text_without_controls() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..2_000 {
        let length = random.usize(..64);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        let shown = escape(&bytes, Colours::Escaped);
        assert!(shown.chars().all(|character| character == '\t' || !character.is_control()), "{shown:?}");
    }
}
