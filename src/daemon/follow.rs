//! Those who follow events and output. Nothing is queued for them: a follower is a place in the journal or in a spool, and is
//! moved on when its connection has room. Who is too slow finds out how much is not kept any more.

use std::os::fd::{AsFd, AsRawFd};

use mio::Interest;
use mio::unix::SourceFd;

use super::client::{Client, EventFollow, Lasts, OutputFollow, WideFollow};
use super::supervisor::{Source, Supervisor};
use crate::api::method::{EventNote, EventQuery, Offsets, Output, OutputNote, OutputPiece};
use crate::machine::{AgentKey, Machine};
use crate::model::event::Event;
use crate::model::stream::Stream;
use crate::output::{Cursor, Read, Spool};

/// How many bytes of output one message carries at most.
pub(super) const PIECE_BUDGET: usize = 64 << 10;

/// How often a client's follows are moved on in one turn: a reader that keeps up with a flood must not keep the loop from
/// everybody else.
const PAGES_A_TURN: usize = 4;

impl Supervisor {
    /// Tells an event to those who are up to date; the others find it in the journal.
    pub(super) fn tell_followers(&mut self, event: &Event) {
        let mut json = None;
        for (id, client) in &mut self.clients {
            let has_room = client.has_room();
            let mut lines = Vec::new();
            for EventFollow { call, query, next } in &mut client.events {
                self.stirred.insert(*id);
                if *next != event.seq || !has_room {
                    continue;
                }
                *next = event.seq + 1;
                if query.wants(event) {
                    let json = json.get_or_insert_with(|| serde_json::to_string(event).unwrap_or_default());
                    lines.push(format!(
                        "{{\"jsonrpc\":\"2.0\",\"method\":\"event\",\"params\":{{\"call\":{call},\"event\":{json}}}}}\n"
                    ));
                }
            }
            for line in lines {
                client.send(line.as_bytes());
            }
        }
    }

    /// Has the followers of an agent's output looked after at the end of the turn.
    pub(super) fn stir_followers(&mut self, key: AgentKey) {
        let spool = self.bodies.get(&key).and_then(|body| body.spool.as_ref());
        let has_written = spool.is_some_and(|spool| Stream::ALL.iter().any(|stream| spool.bounds(*stream).1 > 0));
        // Who has nothing to tell costs those who follow many nothing.
        let is_news = has_written || self.machine.has_ended(key);
        for (id, client) in &mut self.clients {
            if is_news {
                join(&self.machine, client, key);
            }
            if client.outputs.contains_key(&key) {
                client.news.insert(key);
                self.stirred.insert(*id);
            }
        }
    }

    /// Moves everything that a client follows on, as far as its connection has room and a turn's share goes; then sends.
    pub(super) fn pump(&mut self, id: u64) {
        let Some(mut client) = self.clients.remove(&id) else { return };
        let mut is_hungry = true;
        for _ in 0..PAGES_A_TURN {
            client.flush();
            let mut has_moved = false;
            let mut events = std::mem::take(&mut client.events);
            for follow in &mut events {
                has_moved |= client.has_room() && self.pump_events(&mut client, follow);
            }
            client.events = events;
            // What an agent wrote is told after its start.
            if client.events.iter().all(|follow| follow.next > self.journal.last()) {
                for key in std::mem::take(&mut client.news) {
                    has_moved |= self.pump_outputs(&mut client, key);
                }
            }
            is_hungry = has_moved;
            if !has_moved {
                break;
            }
        }
        client.flush();
        if client.is_over() {
            self.drop_client(id, client);
        } else {
            if is_hungry && client.has_room() {
                self.eager.insert(id);
            }
            self.listen_for_room(id, &mut client);
            self.clients.insert(id, client);
        }
    }

    /// Has the poll tell when a reader has made room, as long as something waits for that.
    fn listen_for_room(&mut self, id: u64, client: &mut Client) {
        let waits = client.waiting() > 0;
        if client.listens_for_room == waits {
            return;
        }
        let interest = if waits { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let socket = client.stream.as_fd().as_raw_fd();
        match self.poll.registry().reregister(&mut SourceFd(&socket), Source::Client(id).token(), interest) {
            Ok(()) => client.listens_for_room = waits,
            Err(error) => tracing::warn!("listen to a client: {error}"),
        }
    }

    /// Returns whether anything was told.
    fn pump_events(&mut self, client: &mut Client, follow: &mut EventFollow) -> bool {
        let EventFollow { call, query, next } = follow;
        if *next > self.journal.last() {
            return false;
        }
        let page = EventQuery { since: Some(*next - 1), ..query.clone() };
        let Ok(page) = self.journal.read(&page) else { return false };
        let has_moved = page.last >= *next;
        *next = (page.last + 1).max(*next);
        if page.lost > 0 {
            client.notify("event", &EventNote { call: call.clone(), event: None, lost: page.lost });
        }
        for event in page.events {
            client.notify("event", &EventNote { call: call.clone(), event: Some(event), lost: 0 });
        }
        has_moved
    }

    /// Moves on whoever follows an agent's output. Returns whether anything was told: then there may be more.
    fn pump_outputs(&mut self, client: &mut Client, key: AgentKey) -> bool {
        let Some(mut follows) = client.outputs.remove(&key) else { return false };
        let mut has_moved = false;
        follows.retain_mut(|follow| {
            if !client.has_room() {
                client.news.insert(key);
                return true;
            }
            let (moved, is_over) = self.pump_output(client, key, follow);
            has_moved |= moved;
            !is_over
        });
        if !follows.is_empty() {
            client.outputs.insert(key, follows);
            if has_moved {
                client.news.insert(key);
            }
        }
        has_moved
    }

    /// Returns whether anything was told, and whether there will be no more.
    fn pump_output(&mut self, client: &mut Client, agent: AgentKey, follow: &mut OutputFollow) -> (bool, bool) {
        let OutputFollow { call, id, cursor, lasts } = follow;
        let is_single = *lasts == Lasts::UntilItEnds;
        let has_ended = self.machine.has_ended(agent);
        if has_ended {
            self.catch_up(agent);
        }
        let Some(body) = self.bodies.get(&agent) else { return (false, is_single) };
        let Some(spool) = &body.spool else { return (false, is_single && has_ended) };
        let Ok(output) = read(self, spool, id, cursor) else { return (false, is_single) };
        let mut is_last = has_ended && output.at_end;
        if let Lasts::WhileKnown { told, .. } = lasts {
            let run = self.machine.run_of(agent);
            is_last &= *told != run;
            *told = if is_last { run } else { *told };
        }
        let is_news = is_news(&output);
        if is_news || is_last {
            client.notify("output", &OutputNote { call: call.clone(), id: id.clone(), output, is_last });
        }
        (is_news, is_single && is_last)
    }

    /// An agent is forgotten: whoever follows its output has had the last of it.
    pub(super) fn end_follows(&mut self, key: AgentKey) {
        for (client_id, client) in &mut self.clients {
            for OutputFollow { call, id, lasts, .. } in client.outputs.remove(&key).into_iter().flatten() {
                if matches!(lasts, Lasts::WhileKnown { told: Some(_), .. }) {
                    continue;
                }
                client.notify("output", &OutputNote { call, id, output: Output::default(), is_last: true });
                self.stirred.insert(*client_id);
            }
        }
    }
}

/// Gives those of a client that follow many a place at an agent that they cover, and that has something to tell for the first
/// time: whoever had something to tell when they began has one already.
fn join(machine: &Machine, client: &mut Client, key: AgentKey) {
    for (wide, WideFollow { call, query }) in client.wide.iter().enumerate() {
        let is_its = |follow: &OutputFollow| matches!(follow.lasts, Lasts::WhileKnown { wide: of, .. } if of == wide);
        let has_place = client.outputs.get(&key).is_some_and(|follows| follows.iter().any(is_its));
        if has_place || !machine.covers(&query.target, key) || !machine.may_read(&client.caller, key) {
            continue;
        }
        let Some(id) = machine.id_of(key).cloned() else { return };
        let cursor = Cursor::at(query.stream, |_| 0);
        let follow = OutputFollow { call: call.clone(), id, cursor, lasts: Lasts::WhileKnown { wide, told: None } };
        client.outputs.entry(key).or_default().push(follow);
    }
}

/// Says whether a page has anything to tell.
fn is_news(page: &Output) -> bool {
    let gone = [page.gone.stdout, page.gone.stderr];
    !page.pieces.is_empty() || gone.iter().flatten().any(|gone| *gone > 0)
}

/// Reads a page of an agent's output and moves the cursor over it.
pub(super) fn read(
    shell: &Supervisor,
    spool: &Spool,
    id: &crate::model::id::AgentId,
    cursor: &mut Cursor,
) -> Result<Output, crate::model::error::Error> {
    let Read { pieces, gone, at_end } = spool.read(&shell.tools.store, id, cursor, PIECE_BUDGET)?;
    Ok(Output {
        pieces: pieces
            .into_iter()
            .map(|piece| OutputPiece {
                stream: piece.stream,
                offset: piece.offset,
                time: piece.time,
                data: piece.bytes,
            })
            .collect(),
        next: Offsets { stdout: cursor.stdout, stderr: cursor.stderr },
        gone: Offsets { stdout: cursor.stdout.map(|_| gone.stdout), stderr: cursor.stderr.map(|_| gone.stderr) },
        at_end,
    })
}
