//! The rules of agents at work: when output is looked at, to which run a line belongs, and how often the same is told.
//!
//! An agent is never held up for its output to be looked at, and no agent's flood holds up the loop: a look has a bound, a turn
//! has one for all agents together, and whoever got nothing in this turn comes first in the next. What an agent's file gives
//! back before it was looked at is counted and told. Lines that a rule finds are counted exactly; the first is told at
//! once, those that follow are gathered for a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::supervisor::{Chore, Supervisor, now};
use crate::machine::{AgentKey, Input};
use crate::model::error::Error;
use crate::model::event::Kind;
use crate::model::id::Run;
use crate::model::rule::{Found, Rule, RuleCount};
use crate::model::spec::AgentSpec;
use crate::model::stream::Stream;
use crate::model::time::Monotonic;
use crate::model::units::Bytes;
use crate::output::{Budget, Colours, Match, RuleSet, Sweep, escape};

/// How much work one look at a stream does, as [`Swept::work`](crate::output::Swept::work) counts it: some 2 ms.
const LOOK_MOST: u64 = 1 << 20;

/// How much work all looks of one turn do.
pub(super) const TURN_MOST: u64 = 2 << 20;

/// How long they take at most, but for the line at work then: some patterns take a thousand times
/// as long as others.
const TURN_TIME_MAX: Duration = Duration::from_millis(10);

/// How long the lines of a rule are gathered before they are told again.
const GATHERED: Duration = Duration::from_secs(1);

/// How much of a line an event shows, in bytes.
const LINE_SHOWN: usize = 400;

/// The compiled rules of the agents: those that are the same are compiled once.
#[derive(Debug, Default)]
pub(super) struct Rulebook(Mutex<BTreeMap<Vec<Rule>, Weak<RuleSet>>>);

impl Rulebook {
    /// Returns the compiled rules of an agent; none if it has none.
    pub fn compiled(&self, spec: &AgentSpec) -> Result<Option<Arc<RuleSet>>, Error> {
        if spec.rules.is_empty() {
            return Ok(None);
        }
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = book.get(&spec.rules).and_then(Weak::upgrade) {
            return Ok(Some(set));
        }
        book.retain(|_, set| set.strong_count() > 0);
        let set = Arc::new(RuleSet::new(&spec.rules)?);
        book.insert(spec.rules.clone(), Arc::downgrade(&set));
        Ok(Some(set))
    }
}

/// What the rules of one agent have seen.
#[derive(Debug)]
pub(super) struct Watcher {
    /// How far each stream was looked at, if a rule looks at it.
    scans: [Option<Sweep>; 2],
    tallies: Vec<Tally>,
    /// The run that writes now.
    run: Run,
    /// The run that is over, as long as not all of its output was looked at.
    over: Option<Over>,
    /// How much was gone before it was looked at, in bytes.
    pub gone: u64,
    gone_told: Paced<u64>,
}

/// A run that is over.
#[derive(Clone, Copy, Debug)]
struct Over {
    run: Run,
    /// Where its output ends.
    ends: [u64; 2],
    awaited: Awaited,
}

/// Whether the machine waits until the output of a run that is over was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    Yes,
    No,
}

/// One rule's account.
#[derive(Debug)]
struct Tally {
    label: String,
    lines: u64,
    untold: Paced<Option<Found>>,
}

/// Something to tell, and before when it is not told.
#[derive(Debug, Default)]
struct Paced<T> {
    what: T,
    next: Monotonic,
}

impl Tally {
    fn note(&mut self, stream: Stream, found: Match<'_>) {
        self.lines += 1;
        match &mut self.untold.what {
            Some(first) => first.lines += 1,
            None => {
                let line = escape(&found.line[..found.line.len().min(LINE_SHOWN)], Colours::Escaped);
                let rule = self.label.clone();
                self.untold.what = Some(Found { rule, stream, offset: found.offset, line, lines: 1 });
            }
        }
    }
}

impl Watcher {
    /// Looks at each stream from an offset on.
    pub fn new(rules: &[Rule], set: &Arc<RuleSet>, begins: [u64; 2], run: Run) -> Self {
        let scan = |stream| {
            let begin = begins[stream as usize];
            set.listens_to(stream).then(|| Sweep::new(set.clone(), stream, begin))
        };
        let tally = |rule: &Rule| Tally { label: rule.label().to_owned(), lines: 0, untold: Paced::default() };
        Self {
            scans: Stream::ALL.map(scan),
            tallies: rules.iter().map(tally).collect(),
            run,
            over: None,
            gone: 0,
            gone_told: Paced::default(),
        }
    }

    /// How many lines each rule has found, in their order.
    pub fn counts(&self) -> Vec<RuleCount> {
        self.tallies.iter().map(|tally| RuleCount { rule: tally.label.clone(), lines: tally.lines }).collect()
    }

    /// Notes how much was gone.
    fn note_gone(&mut self, bytes: u64) {
        self.gone += bytes;
        self.gone_told.what += bytes;
    }

    /// Says whether all of the run that is over was looked at; so too if none is over.
    fn has_read_all(&self, over: &Over) -> bool {
        let is_done = |(scan, end): (&Option<Sweep>, &u64)| scan.as_ref().is_none_or(|scan| scan.next() >= *end);
        self.scans.iter().zip(&over.ends).all(is_done)
    }

    /// Gives up what was not looked at of a run that is over.
    fn give_up(&mut self, over: &Over) {
        for stream in Stream::ALL {
            let Self { scans, tallies, .. } = self;
            let Some(scan) = &mut scans[stream as usize] else { continue };
            let gap = scan.skip_to(over.ends[stream as usize], |it| tallies[it.rule].note(stream, it));
            self.note_gone(gap);
        }
    }

    /// Takes the lines that stand open as they are: their run is over.
    fn finish_lines(&mut self) {
        for stream in Stream::ALL {
            let Self { scans, tallies, .. } = self;
            if let Some(scan) = &mut scans[stream as usize] {
                scan.finish(|it| tallies[it.rule].note(stream, it));
            }
        }
    }

    /// Takes out what may be told now: what each rule has found, and how much was gone.
    fn take_due(&mut self, now: Monotonic) -> (Vec<(usize, Found)>, u64) {
        let tell = |(rule, tally): (usize, &mut Tally)| {
            let found = (now >= tally.untold.next).then(|| tally.untold.what.take()).flatten()?;
            tally.untold.next = now + GATHERED;
            Some((rule, found))
        };
        let found = self.tallies.iter_mut().enumerate().filter_map(tell).collect();
        let gone = if now >= self.gone_told.next { std::mem::take(&mut self.gone_told.what) } else { 0 };
        if gone > 0 {
            self.gone_told.next = now + GATHERED;
        }
        (found, gone)
    }

    /// Lets everything be told at once: a run is over, or begins.
    fn hurry(&mut self) {
        self.tallies.iter_mut().for_each(|tally| tally.untold.next = Monotonic::default());
    }

    /// Returns when something is to be told that is held back now.
    fn due(&self) -> Option<Monotonic> {
        let found = self.tallies.iter().filter(|tally| tally.untold.what.is_some()).map(|tally| tally.untold.next);
        found.chain((self.gone_told.what > 0).then_some(self.gone_told.next)).min()
    }
}

/// What is left to look at in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing that was there.
    Nothing,
    /// More than one look takes in: it goes on after the damping interval.
    More,
    /// What cannot wait for that, or got no share of this turn: it goes on in the next.
    Now,
}

/// Returns when this turn may examine no more output: the time begins with the first examination.
pub(super) fn scans_end(end: &mut Option<Instant>) -> Instant {
    *end.get_or_insert_with(|| Instant::now() + TURN_TIME_MAX)
}

impl Supervisor {
    /// A run has begun: its output is looked at, what was written meanwhile included.
    pub(super) fn watch_output(&mut self, key: AgentKey, run: Run, set: Option<Arc<RuleSet>>) {
        let (Some(set), Some(spec)) = (set, self.machine.spec_of(key).cloned()) else { return };
        let Some(body) = self.bodies.get_mut(&key) else { return };
        let watcher = body.watcher.get_or_insert_with(|| Box::new(Watcher::new(&spec.rules, &set, [0; 2], run)));
        watcher.run = run;
        self.look_at_once(key);
    }

    /// Looks at what was written to a stream, as far as a look's and the turn's share go.
    pub(super) fn look_for_rules(&mut self, key: AgentKey, stream: Stream) -> Rest {
        let run = self.machine.run_of(key);
        let Some(body) = self.bodies.get_mut(&key) else { return Rest::Nothing };
        let (Some(watcher), Some(spool)) = (&mut body.watcher, &body.spool) else { return Rest::Nothing };
        // While a run is being started, what it writes is left for later: it is not told yet that it runs.
        if watcher.over.is_none() && run != Some(watcher.run) {
            return Rest::Nothing;
        }
        let ends = scans_end(&mut self.scans_end);
        if self.rules_room == 0 || Instant::now() >= ends {
            return Rest::Now;
        }
        let over = watcher.over;
        let Watcher { scans, tallies, .. } = watcher.as_mut();
        let Some(scan) = &mut scans[stream as usize] else { return Rest::Nothing };
        let until = over.map_or(u64::MAX, |over| over.ends[stream as usize]);
        let budget = Budget { work: LOOK_MOST.min(self.rules_room), until: ends };
        let note = |it: Match<'_>| tallies[it.rule].note(stream, it);
        let rest = match scan.look(spool, &self.tools.store, &body.id, budget, until, note) {
            Ok(looked) => {
                self.rules_room = self.rules_room.saturating_sub(looked.work);
                watcher.note_gone(looked.gone);
                match over {
                    _ if looked.at_end => Rest::Nothing,
                    // Somebody may wait for this end.
                    Some(_) => Rest::Now,
                    None => Rest::More,
                }
            }
            Err(error) => {
                tracing::debug!("look at the output of {}: {error}", body.id);
                // What cannot be read is not waited for.
                let gap = scan.skip_to(spool.bounds(stream).1.min(until), |it| tallies[it.rule].note(stream, it));
                watcher.note_gone(gap);
                Rest::Nothing
            }
        };
        let is_all = over.is_some_and(|over| watcher.has_read_all(&over));
        self.tell_found(key);
        if is_all {
            self.all_is_read(key);
        }
        rest
    }

    /// Says whether a stream has grown beyond what was looked at.
    pub(super) fn is_unread(&self, key: AgentKey, stream: Stream) -> bool {
        let Some(body) = self.bodies.get(&key) else { return false };
        let (Some(watcher), Some(spool)) = (&body.watcher, &body.spool) else { return false };
        let is_looked_at = self.machine.run_of(key) == Some(watcher.run);
        let scan = watcher.scans[stream as usize].as_ref();
        is_looked_at && scan.is_some_and(|scan| scan.next() < spool.bounds(stream).1)
    }

    /// A run is over, and what it wrote ends here. Its last words are looked at in this turn, if there is not too much of them.
    pub(super) fn output_ends(&mut self, key: AgentKey, run: Run, awaited: Awaited) {
        if self.bodies.get(&key).is_none_or(|body| body.watcher.is_none()) {
            return;
        }
        self.catch_up(key);
        let Some(body) = self.bodies.get_mut(&key) else { return };
        let (Some(watcher), Some(spool)) = (&mut body.watcher, &body.spool) else { return };
        if let Some(over) = watcher.over {
            if over.run == run {
                return;
            }
            // Runs that end faster than their output is looked at.
            watcher.give_up(&over);
            self.all_is_read(key);
            return self.output_ends(key, run, awaited);
        }
        let ends = Stream::ALL.map(|stream| spool.bounds(stream).1);
        watcher.over = Some(Over { run, ends, awaited });
        self.look_at_once(key);
    }

    /// All that a run that is over has written was looked at.
    fn all_is_read(&mut self, key: AgentKey) {
        let Some(watcher) = self.bodies.get_mut(&key).and_then(|body| body.watcher.as_mut()) else { return };
        watcher.finish_lines();
        watcher.hurry();
        self.tell_found(key);
        let Some(watcher) = self.bodies.get_mut(&key).and_then(|body| body.watcher.as_mut()) else { return };
        watcher.hurry();
        let over = watcher.over.take();
        if let Some(Over { run, awaited: Awaited::Yes, .. }) = over {
            self.feed(Input::OutputRead { agent: key, run });
        }
        // The next run may have written already.
        self.look_at_once(key);
    }

    /// Looks at both streams in this turn or the next.
    fn look_at_once(&mut self, key: AgentKey) {
        Stream::ALL.into_iter().for_each(|stream| self.spool_due_in(key, stream, Duration::ZERO));
    }

    /// Tells what may be told now, and comes back for the rest.
    pub(super) fn tell_found(&mut self, key: AgentKey) {
        let now = now();
        let Some(watcher) = self.bodies.get_mut(&key).and_then(|body| body.watcher.as_mut()) else { return };
        let (found, gone) = watcher.take_due(now.mono);
        if let Some(due) = watcher.due() {
            self.chores.insert((due, Chore::Found(key)));
        }
        let run = watcher.over.map_or(watcher.run, |over| over.run);
        for (rule, found) in found {
            self.rule_lines += found.lines;
            self.feed(Input::Matched { agent: key, run, rule, found: Box::new(found) });
        }
        if gone > 0 {
            let mut event = self.machine.event_about(now.mono, now.wall, Kind::Notice, Some(key));
            event.message = format!("{} of its output were gone before its rules had looked at them", Bytes(gone));
            self.publish(event);
        }
    }
}
