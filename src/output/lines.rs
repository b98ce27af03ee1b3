//! For whoever shows output to people: pieces become lines, bytes become text that does nothing to a terminal.

use std::ops::Range;

use memchr::memchr;

use super::read::Piece;
use crate::model::time::Wall;

/// The longest line that is held back while its end is not there, in bytes; then it is told as it is.
pub const PARTIAL_MOST: usize = 64 << 10;

/// A line, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The offset of its first byte in the stream.
    pub offset: u64,
    /// When its first byte was seen, if that is known.
    pub time: Option<Wall>,
    /// Its bytes, without the `\n` or `\r\n` that ended it.
    pub bytes: Vec<u8>,
    /// Whether its end is there: not so for the parts of a very long line, before a gap, and at the end of the stream.
    pub is_complete: bool,
}

/// Cuts the pieces of one stream of one agent into lines.
#[derive(Clone, Debug)]
pub struct Lines {
    /// The line whose end is not there yet; its bytes are never empty.
    partial: Option<Line>,
    /// The longest line, in bytes.
    max: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self::cut_at(PARTIAL_MOST)
    }
}

impl Lines {
    /// Begins with nothing. A line longer than `max` bytes is handed over in parts of that length.
    pub(super) fn cut_at(max: usize) -> Self {
        Self { partial: None, max }
    }

    /// Takes the next piece and hands over every line that is complete, or as long as it may be.
    /// What stood open before a gap is handed over first, as it is.
    pub fn feed(&mut self, piece: &Piece, each: impl FnMut(Line)) {
        self.feed_part(piece, 0..piece.bytes.len(), each);
    }

    /// Takes a part of the next piece, as [`Lines::feed`] takes all of it.
    pub(super) fn feed_part(&mut self, piece: &Piece, part: Range<usize>, mut each: impl FnMut(Line)) {
        let mut offset = piece.offset + part.start as u64;
        if self.partial.as_ref().is_some_and(|open| open.offset + open.bytes.len() as u64 != offset) {
            self.finish(&mut each);
        }
        let mut rest = &piece.bytes[part];
        while !rest.is_empty() {
            let open = self.partial.get_or_insert_with(|| Line {
                offset,
                time: piece.time,
                bytes: Vec::new(),
                is_complete: false,
            });
            let room = self.max - open.bytes.len();
            let within = &rest[..rest.len().min(room + 1)];
            let newline = memchr(b'\n', within);
            let taken = newline.unwrap_or(rest.len().min(room));
            open.bytes.extend_from_slice(&rest[..taken]);
            let used = taken + usize::from(newline.is_some());
            rest = &rest[used..];
            offset += used as u64;
            if newline.is_some() {
                open.is_complete = true;
                if open.bytes.last() == Some(&b'\r') {
                    open.bytes.pop();
                }
            }
            // A full one waits for one byte more: it may be its newline.
            if newline.is_some() || (open.bytes.len() == self.max && !rest.is_empty()) {
                self.finish(&mut each);
            }
        }
    }

    /// Hands over what stands open, at the end of the stream.
    pub fn finish(&mut self, mut each: impl FnMut(Line)) {
        if let Some(line) = self.partial.take() {
            each(line);
        }
    }
}

/// What becomes of colours (`ESC [ … m`) in shown text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// They are escaped like everything that a terminal would obey.
    Escaped,
    /// They pass; text that has any ends with a reset.
    Kept,
}

/// Turns bytes into text that a terminal shows and does not obey.
///
/// Control characters other than the tab and bytes that are not UTF-8 become `\xNN`; the C1 controls and the invisible
/// characters that reorder, hide or break lines become `\u{N}`. A backslash stays one: this is for eyes, not for parsing.
#[must_use]
pub fn escape(bytes: &[u8], colours: Colours) -> String {
    use std::fmt::Write;
    let mut shown = String::with_capacity(bytes.len());
    let mut is_coloured = false;
    let put = |character: char, shown: &mut String| match character {
        '\t' => shown.push('\t'),
        '\0'..='\x1f' | '\x7f' => write!(shown, "\\x{:02x}", character as u32).unwrap_or_default(),
        character if is_invisible(character) => write!(shown, "\\u{{{:x}}}", character as u32).unwrap_or_default(),
        character => shown.push(character),
    };
    for chunk in bytes.utf8_chunks() {
        let mut text = chunk.valid();
        while let Some(character) = text.chars().next() {
            let colour = if colours == Colours::Kept { colour_at(text) } else { None };
            if let Some(colour) = colour {
                shown.push_str(colour);
                is_coloured = true;
                text = &text[colour.len()..];
            } else {
                put(character, &mut shown);
                text = &text[character.len_utf8()..];
            }
        }
        for byte in chunk.invalid() {
            write!(shown, "\\x{byte:02x}").unwrap_or_default();
        }
    }
    if is_coloured {
        shown.push_str("\x1b[0m");
    }
    shown
}

/// Returns the colour sequence at the beginning of a text: `ESC [`, at most 32 digits and separators, `m`.
fn colour_at(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let length = parameters.bytes().take(32).take_while(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')).count();
    (parameters.as_bytes().get(length) == Some(&b'm')).then(|| &text[..length + 3])
}

fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{80}'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}
