//! Real files, real holes, real children.

mod flood;
mod hostile;
mod lines;
mod reading;
mod rules;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::model::id::AgentId;
use crate::model::stream::Output;
use crate::model::stream::Stream::{self, Stderr, Stdout};
use crate::model::time::Wall;
use crate::model::units::Bytes;

/// A store with one agent `a` in a fresh directory.
struct World {
    state: TempDir,
    store: Store,
    id: AgentId,
}

impl World {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        let id: AgentId = "a".parse().unwrap();
        store.create(&id, Output::File).unwrap();
        Self { state, store, id }
    }

    fn writer(&self, stream: Stream) -> File {
        self.store.writer(&self.id, stream).unwrap().into()
    }

    fn write(&self, stream: Stream, bytes: impl AsRef<[u8]>) {
        self.writer(stream).write_all(bytes.as_ref()).unwrap();
    }

    fn path(&self, stream: Stream) -> PathBuf {
        self.state.path().join("agents/a").join(stream.as_str())
    }

    fn disk_bytes(&self, stream: Stream) -> u64 {
        std::fs::metadata(self.path(stream)).unwrap().blocks() * 512
    }

    /// Finds where the last lines of standard output begin.
    fn tail(&self, spool: &Spool, lines: usize) -> Cursor {
        let mut tail = Tail::new(Some(Stdout), lines);
        loop {
            if let Some(cursor) = tail.step(spool, &self.store, &self.id).unwrap() {
                return cursor;
            }
        }
    }

    /// Looks at a stream's file, and digs the holes that are asked for.
    fn service(&self, spool: &mut Spool, stream: Stream, seconds: u64) -> Serviced {
        let look = |spool: &mut Spool| spool.service(&self.store, &self.id, stream, Wall(seconds)).unwrap();
        let mut serviced = look(spool);
        while let Some(hole) = serviced.hole.take() {
            match spool.hole_dug(hole.dig()) {
                Ok(true) => serviced = Serviced { grew: serviced.grew, ..look(spool) },
                Ok(false) => {}
                Err(fault) => serviced.fault = Some(fault),
            }
        }
        serviced
    }

    fn read(&self, spool: &Spool, cursor: &mut Cursor, budget: usize) -> Read {
        spool.read(&self.store, &self.id, cursor, budget).unwrap()
    }

    /// Reads one stream from an offset to its end.
    fn read_all(&self, spool: &Spool, stream: Stream, from: u64) -> (Vec<u8>, u64) {
        let mut cursor = Cursor::default();
        cursor.set(stream, Some(from));
        let mut bytes = Vec::new();
        let mut gone = 0;
        loop {
            let read = self.read(spool, &mut cursor, 1 << 20);
            gone += read.gone.stdout + read.gone.stderr;
            bytes.extend(read.pieces.into_iter().flat_map(|piece| piece.bytes));
            if read.at_end {
                assert_eq!(cursor.get(stream), Some(from + gone + bytes.len() as u64));
                return (bytes, gone);
            }
        }
    }
}

fn both() -> Cursor {
    Cursor { stdout: Some(0), stderr: Some(0) }
}

fn text(read: &Read) -> String {
    read.pieces.iter().map(|piece| String::from_utf8_lossy(&piece.bytes)).collect()
}
