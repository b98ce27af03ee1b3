//! A tree file, looked through: every mistake, each with its line and what helps.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::failure::{Done, FAILED, Failure, note};
use super::screen::{BAD, BOLD, DIM, GOOD, Screen, plain};
use crate::daemon;
use crate::model::error::{Code, Error};
use crate::model::tree::{Mistake, TREE_MAX, Tree};

/// `check`
pub(super) fn check(file: &Path, screen: &mut Screen) -> Done {
    let Some(tree) = tree(file, screen)? else { return Ok(ExitCode::from(FAILED)) };
    if screen.is_json {
        screen.json::<[Mistake; 0]>(&[])?;
    } else {
        let (agents, levels) = (tree.agents.len(), tree.depth());
        let well = screen.paint(GOOD, "no mistakes");
        warn_of_limits_above(&tree);
        screen.line(&format!("{}: {well}; {agents} agents on {levels} levels", name(file)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Names a file as `apply` does by default: without its directory and its suffix.
pub(super) fn stem(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| plain(&stem.to_string_lossy())).unwrap_or_default();
    let end = stem.char_indices().map(|(at, character)| at + character.len_utf8()).take_while(|end| *end <= 63).last();
    end.map_or_else(|| "file".to_owned(), |end| stem[..end].to_owned())
}

/// Tells what a run of the tree would be refused for where we are: the file is right all the same.
fn warn_of_limits_above(tree: &Tree) {
    let agents = tree.agents.iter().map(|spec| (spec.id.to_string(), &spec.limits));
    let all: Vec<_> = std::iter::once(("[herd]".to_owned(), &tree.config.limits)).chain(agents).collect();
    for above in daemon::limits_above_us() {
        for (whose, limits) in &all {
            if let Some(own) = limits.get(above.knob).filter(|own| own.is_wider_than(&above.setting)) {
                note(&format!("{whose}: {} = {own} is wider than what holds here: {above}", above.knob));
            }
        }
    }
}

/// Reads a tree file; none if it has mistakes, which are shown then.
pub(super) fn tree(file: &Path, screen: &mut Screen) -> Result<Option<Tree>, Failure> {
    let bytes = read(file)?;
    match Tree::parse(&bytes) {
        Ok(tree) => Ok(Some(tree)),
        Err(mistakes) => {
            show(file, &bytes, &mistakes, screen)?;
            Ok(None)
        }
    }
}

/// Reads a tree file whole, whatever it is: no more than is taken, and what cannot be read is told as such.
///
/// # Errors
/// [`Code::BadTree`] if it cannot be read.
fn read(file: &Path) -> Result<Vec<u8>, Error> {
    let refuse = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "look at the path; examples/ has trees to begin with",
            io::ErrorKind::IsADirectory => "name a file in it",
            _ => "look at the file's permissions",
        };
        Error::new(Code::BadTree, format!("read {}: {error}", file.display())).remedy(remedy)
    };
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(refuse)?;
    opened.take(TREE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(refuse)?;
    Ok(bytes)
}

#[derive(Serialize)]
struct InFile<'a> {
    file: String,
    #[serde(flatten)]
    mistake: &'a Mistake,
}

/// Tells the mistakes of a file.
fn show(file: &Path, bytes: &[u8], mistakes: &[Mistake], screen: &mut Screen) -> io::Result<()> {
    if screen.is_json {
        let mistakes: Vec<_> =
            mistakes.iter().map(|mistake| InFile { file: file.display().to_string(), mistake }).collect();
        return screen.json(&mistakes);
    }
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    for mistake in mistakes {
        let place = format!("{}:{}:{}:", name(file), mistake.line, mistake.column);
        let head = format!("{} {}", screen.paint(BOLD, &place), screen.paint(BAD, &plain(&mistake.message)));
        screen.line(&head)?;
        if let Some((source, caret)) = lines.get(mistake.line - 1).and_then(|line| excerpt(line, mistake.column)) {
            let gutter = format!("{:>5}", mistake.line);
            let (gutter, blank) = (screen.paint(DIM, &format!("{gutter} │ ")), screen.paint(DIM, "      │ "));
            let caret = format!("{blank}{}", screen.paint(BAD, &caret));
            screen.line(&format!("{gutter}{source}"))?;
            screen.line(&caret)?;
        }
        screen.line(&format!("  help: {}", plain(&mistake.remedy)))?;
    }
    let count = mistakes.len();
    screen.line(&format!("{}: {count} {}", name(file), if count == 1 { "mistake" } else { "mistakes" }))
}

fn name(file: &Path) -> String {
    plain(&file.display().to_string())
}

/// Returns a line of the file and a caret under one of its characters; a part of the line if it is long.
fn excerpt(line: &str, column: usize) -> Option<(String, String)> {
    const BEFORE: usize = 60;
    const SHOWN: usize = 100;
    if line.trim().is_empty() {
        return None;
    }
    let skipped = column.saturating_sub(1 + BEFORE);
    let shown: String = line.chars().skip(skipped).take(SHOWN).collect();
    let before: String = shown.chars().take(column - 1 - skipped).collect();
    let (more, less) = (if skipped > 0 { "…" } else { "" }, if shown.len() < line.len() { "…" } else { "" });
    let indent = plain(&before).width() + more.width();
    Some((format!("{more}{}{less}", plain(&shown)), format!("{:indent$}^", "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_mistake() {
        let (source, caret) = excerpt("nice = 50", 8).unwrap();
        assert_eq!((source.as_str(), caret.as_str()), ("nice = 50", "       ^"));
        let (source, caret) = excerpt("\t漢 = 50", 3).unwrap();
        assert_eq!((source.as_str(), caret.width()), (" 漢 = 50", 4));
        let long = "x".repeat(1000);
        let (source, caret) = excerpt(&long, 500).unwrap();
        assert!(source.chars().count() < 110 && caret.chars().count() < 70);
        assert!(excerpt("   ", 2).is_none());
        assert!(excerpt("a", 5).is_some(), "an end of line has a place too");
    }
}
