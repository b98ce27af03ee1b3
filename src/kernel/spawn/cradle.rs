//! What a thread keeps for the children that it makes, one after the other: a stack, and three low places for descriptors.
//!
//! A child shares our table of descriptors until it takes a copy for itself, and a copy reaches from 0 to the highest
//! descriptor that it is to contain. We hold one for each agent: without low places for its stdin, stdout and stderr a
//! child among 10,000 agents would copy and close 10,000 descriptors, which takes a millisecond.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{self, DupFlags};

use super::raw::Stack;
use super::report::Page;
use super::shed::shed_inheritance;

/// What one thread keeps.
pub(super) struct Cradle {
    pub stack: Stack,
    /// Where its children report.
    pub report: Page,
    /// Where a child finds its stdin, stdout and stderr: places from 3 on.
    places: [OwnedFd; 3],
    /// What is in the places between two children.
    nothing: OwnedFd,
    /// Whether the first place has a `/dev/null` of its own for the next child.
    has_null: bool,
    oom_score_adj: Option<File>,
}

impl Cradle {
    pub fn new() -> io::Result<Self> {
        shed_inheritance();
        let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let place = || io::fcntl_dupfd_cloexec(&null, 3);
        let places = [place()?, place()?, place()?];
        let oom_score_adj = File::open("/proc/self/oom_score_adj").ok();
        Ok(Self {
            stack: Stack::new()?,
            report: Page::new()?,
            places,
            nothing: place()?,
            has_null: false,
            oom_score_adj,
        })
    }

    /// Opens the `/dev/null` that the next child reads from, until it opens something else. Each has one of its own: what one
    /// does to it (a lock, a flag) is no other's business.
    pub fn stock(&mut self) -> io::Result<()> {
        if !self.has_null {
            let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            io::dup3(&null, &mut self.places[0], DupFlags::CLOEXEC)?;
            self.has_null = true;
        }
        Ok(())
    }

    /// Puts `/dev/null` and a child's stdout and stderr into their places.
    pub fn lay(&mut self, outputs: [BorrowedFd<'_>; 2]) -> io::Result<()> {
        self.stock()?;
        self.places[1..].iter_mut().zip(outputs).try_for_each(|(place, fd)| io::dup3(fd, place, DupFlags::CLOEXEC))
    }

    /// Takes them out again: a file that is removed lives as long as somebody has it open.
    pub fn clear(&mut self) {
        self.has_null = false;
        for place in &mut self.places {
            // The place is there and so is what goes into it: there is nothing that could be lacking.
            io::dup3(&self.nothing, place, DupFlags::CLOEXEC).unwrap_or_default();
        }
    }

    /// Returns the numbers of the places.
    pub fn places(&self) -> [i32; 3] {
        self.places.each_ref().map(AsRawFd::as_raw_fd)
    }

    /// Reads the value that a child of ours is born with: a kept descriptor costs half a microsecond, while the child's
    /// own file in `/proc` costs it ten, and the kernel more when it ends.
    pub fn own_oom_score_adj(&self) -> Option<String> {
        let mut text = [0; 16];
        let read = io::pread(self.oom_score_adj.as_ref()?, &mut text, 0).ok()?;
        Some(std::str::from_utf8(&text[..read]).ok()?.trim_end().to_owned())
    }
}
