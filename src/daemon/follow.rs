//! Those who follow events and output. Nothing is queued for them: a follower is a place in the journal or in a spool, and is
//! moved on when its connection has room. Who is too slow finds out how much is not kept any more.

use mio::Interest;

use super::client::{Client, EventFollow, Lasts, OutputFollow, WideFollow};
use super::journal::Page;
use super::outbox::Entries;
use super::reads::Errand;
use super::supervisor::{Source, Supervisor, now};
use crate::api::method::{EventNote, Offsets, Output, OutputNote, OutputPiece};
use crate::machine::{AgentKey, Machine};
use crate::model::error::Error;
use crate::model::status::AgentStatus;
use crate::model::stream::Stream;
use crate::output::{Cursor, Read};

/// How many bytes of output one message carries at most, and of what else is written to a client before others have their turn.
pub(super) const PIECE_BUDGET: usize = 64 << 10;

/// How often an event is held against what a client follows before others have their turn, and when there are new ones.
const LOOKS_A_STEP: usize = 4096;
const NEWS_AT_ONCE: usize = 256;

impl Supervisor {
    /// Tells the new events to those who follow them, before anybody is given a page of anything else. Who has more to be told than
    /// a few waits for its turn with the rest of it.
    pub(super) fn tell_news(&mut self) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        let listeners = self.clients.iter().filter(|(_, client)| !client.events.is_empty());
        for id in listeners.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(mut client) = self.clients.remove(&id) else { continue };
            self.pump_all_events(id, &mut client, NEWS_AT_ONCE);
            client.flush();
            self.clients.insert(id, client);
            self.stirred.insert(id);
        }
    }

    /// Moves on all that follow events for a client, so many looks at events. Returns whether there may be more.
    fn pump_all_events(&mut self, id: u64, client: &mut Client, mut looks: usize) -> bool {
        let mut has_moved = false;
        let mut events = std::mem::take(&mut client.events);
        for follow in &mut events {
            has_moved |= client.has_room() && self.pump_events(id, client, follow, &mut looks);
        }
        client.events = events;
        has_moved
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

    /// Sends what waits for a client, and moves on what it follows and the list that it is given, by one page each.
    pub(super) fn pump(&mut self, id: u64) {
        let Some(mut client) = self.clients.remove(&id) else { return };
        self.memory_is_free(client.freed());
        client.flush();
        let mut has_moved = client.write_on(PIECE_BUDGET, |entries, bytes| self.write_entry(entries, bytes));
        has_moved |= self.pump_all_events(id, &mut client, LOOKS_A_STEP);
        // What an agent wrote is told after its start.
        if client.events.iter().all(|follow| follow.next > self.journal.last()) {
            has_moved |= self.pump_news(&mut client);
        }
        client.flush();
        if client.is_over() {
            return self.drop_client(id, client);
        }
        if client.is_let_on(self.clients_memory) {
            self.eager.insert(id);
        }
        if has_moved && !client.is_full() {
            self.stirred.insert(id);
        }
        self.listen_for_room(id, &mut client);
        self.clients.insert(id, client);
    }

    /// Writes the next entry of a list, and says whether there was one. An agent that is forgotten by now is left out.
    fn write_entry(&self, entries: &mut Entries, bytes: &mut Vec<u8>) -> bool {
        let written = match entries {
            Entries::Agents(left) => left.find(|key| self.machine.id_of(*key).is_some()).map(|key| {
                let status = self.with_lines(self.machine.status(key, now().mono));
                serde_json::to_writer(bytes, &status)
            }),
            Entries::Statuses(left) => {
                left.next().map(|status| serde_json::to_writer(bytes, &self.with_lines(AgentStatus::clone(&status))))
            }
            Entries::Receipts(left) => left.next().map(|receipt| serde_json::to_writer(bytes, &receipt)),
            Entries::Usage(left) => {
                let named = left.find_map(|(key, usage)| Some((self.machine.id_of(key)?, usage)));
                named.map(|(id, usage)| {
                    serde_json::to_writer(&mut *bytes, id)?;
                    bytes.push(b':');
                    serde_json::to_writer(bytes, &usage)
                })
            }
        };
        written.is_some_and(|written| written.is_ok())
    }

    /// Moves on those of a client that follow output, until one page is written. Returns whether anything was told.
    fn pump_news(&mut self, client: &mut Client) -> bool {
        let (mut has_moved, begin) = (false, client.written());
        while client.has_room() && client.written() - begin < PIECE_BUDGET as u64 {
            let Some(key) = client.news.pop_first() else { break };
            has_moved |= self.pump_outputs(client, key);
        }
        has_moved || client.has_room() && !client.news.is_empty()
    }

    /// Has the poll tell when a reader has made room, as long as something waits for that.
    fn listen_for_room(&mut self, id: u64, client: &mut Client) {
        let waits = client.waits_for_room();
        if client.listens_for_room == waits {
            return;
        }
        let interest = if waits { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.poll_again(&client.stream, Source::Client(id), interest);
        client.listens_for_room = waits;
    }

    /// Tells what is in memory; what is not a reader thread looks up. Returns whether there may be more.
    fn pump_events(&mut self, id: u64, client: &mut Client, follow: &mut EventFollow, looks: &mut usize) -> bool {
        if follow.next > self.journal.last() {
            return false;
        }
        let Some(events) = self.journal.recent(follow.next) else {
            if !std::mem::replace(&mut client.is_catching_up, true) {
                let (pages, query) = (self.journal.pages(follow.next - 1), follow.query.clone());
                self.hand_errand(Errand::Catch { client: id, number: follow.number, pages, query });
            }
            return false;
        };
        let begin = client.written();
        for told in events {
            if *looks == 0 || client.written() - begin >= PIECE_BUDGET as u64 || !client.has_room() {
                break;
            }
            *looks -= 1;
            follow.next = told.seq + 1;
            if follow.query.wants(told.subject()) {
                follow.query.keep_to(told.subject());
                client.tell_event(&follow.call, &told.json);
            }
        }
        true
    }

    /// A reader thread has looked up events for a client that follows them.
    pub(super) fn caught_up(&mut self, id: u64, number: u64, page: Result<Page, Error>) {
        let first_recent = self.journal.first_recent();
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.is_catching_up = false;
        let mut page = page.unwrap_or_else(|error| {
            tracing::warn!("{error}");
            Page::default()
        });
        let mut events = std::mem::take(&mut client.events);
        if let Some(EventFollow { call, next, .. }) = events.iter_mut().find(|follow| follow.number == number) {
            // What could not be written is nowhere but in memory, or lost.
            if let Some(first) = first_recent.filter(|first| page.last < *next && first > next) {
                (page.lost, page.last) = (first - *next, first - 1);
            }
            if page.last >= *next {
                *next = page.last + 1;
                self.stirred.insert(id);
            }
            if page.lost > 0 {
                client.notify("event", &EventNote { call: call.clone(), event: None, lost: page.lost });
            }
            page.events.iter().for_each(|json| client.tell_event(call, json));
        }
        client.events = events;
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

    /// Returns whether there may be more at once, and whether there will be no more.
    fn pump_output(&mut self, client: &mut Client, agent: AgentKey, follow: &mut OutputFollow) -> (bool, bool) {
        let OutputFollow { call, id, cursor, lasts } = follow;
        let is_single = *lasts == Lasts::UntilItEnds;
        let has_ended = self.machine.has_ended(agent);
        if has_ended {
            self.catch_up(agent);
        }
        let Some(body) = self.bodies.get(&agent) else { return (false, is_single) };
        let Some(spool) = &body.spool else { return (false, is_single && has_ended) };
        let Ok(read) = spool.read(&self.tools.store, id, cursor, PIECE_BUDGET) else { return (false, is_single) };
        let output = page(read, cursor);
        let at_end = output.at_end;
        let mut is_last = has_ended && at_end;
        if let Lasts::WhileKnown { told, .. } = lasts {
            let run = self.machine.run_of(agent);
            is_last &= *told != run;
            *told = if is_last { run } else { *told };
        }
        let is_news = is_news(&output);
        if is_news || is_last {
            client.notify("output", &OutputNote { call: call.clone(), id: id.clone(), output, is_last });
        }
        // A page without news that is not at the end is to be read again: the file was truncated meanwhile.
        (is_news || !at_end, is_single && is_last)
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

/// Puts a page of an agent's output, with the cursor behind it, into the words of the API.
pub(super) fn page(read: Read, cursor: &Cursor) -> Output {
    let Read { pieces, gone, at_end, .. } = read;
    Output {
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
    }
}
