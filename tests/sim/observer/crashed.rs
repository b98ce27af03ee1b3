//! What another supervisor has to go on with, and what nobody can ask of it.

use std::collections::BTreeSet;

use treeherd::machine::{Adopted, AgentKey, Effect, Left, Machine, Now, Telling};
use treeherd::model::event::Kind;
use treeherd::model::id::{Level, Run};
use treeherd::model::record::{AgentRecord, Pause, Standing};
use treeherd::model::time::Monotonic;

use super::super::crash::Doom;
use super::super::kernel::Kernel;
use super::{Known, Observer};

impl Observer {
    /// Takes in that a supervisor is dead, and what was written down. `blinds` says whether the ends of the runs that go on
    /// are hidden from the next one.
    pub fn crashed(&mut self, kernel: &Kernel, herd: &[Adopted], doom: Option<Doom>, blinds: bool) {
        self.note("crashes");
        for asked in self.requests.values_mut() {
            (asked.is_gone, asked.is_answered) = (true, true);
        }
        self.spawning.clear();
        self.removing.clear();
        let recorded: BTreeSet<AgentKey> = herd.iter().map(|adopted| AgentKey(adopted.record.birth.key)).collect();
        for key in self.known.keys().copied().filter(|key| !recorded.contains(key)).collect::<Vec<_>>() {
            // What waited below a first spawn that failed goes with it, and may be gone before that is told.
            let may_go = doom == Some(Doom::Untold);
            assert!(may_go || !self.announced.contains(&key), "{key}: told to be there, and lost");
            self.forget_unrecorded(key);
        }
        // Who was to start anew together does so one by one, and the herd's rate begins anew.
        self.recovery.crashed(herd);
        self.frosts = self.known.keys().filter_map(|key| Some((*key, kernel.freeze_of(*key)?))).collect();
        for Adopted { record, end, found } in herd {
            if *end == Telling::Untold {
                self.note("ends told by the next one");
            }
            let (key, run, course) = (AgentKey(record.birth.key), record.course.run, &record.course);
            self.remember(key, run, course);
            if doom == Some(Doom::Unwritten) {
                self.forget_age(key, run);
            }
            if !self.known.contains_key(&key) {
                // It was written down in the step in which it was asked for, and that was the last one.
                let parent = record.birth.parent.map(AgentKey);
                let level = parent.map_or(Level(0), |parent| self.known[&parent].level.below());
                let spec = record.birth.spec.as_ref().clone();
                self.known.insert(key, Known { parent, level, priority: spec.priority.into(), spec });
            }
            self.names.insert(record.id().clone(), key);
            match &course.ending {
                Some(_) => drop(self.down.insert(key)),
                None => drop(self.down.remove(&key)),
            }
            if user_pause(record).is_none() {
                // A rule's pause ends with the supervisor that counted for it: it is thawed presently, as at its resume.
                self.paused.remove(&key);
            }
            // A run that was ordered and not written down was not; the next one may have its number.
            self.cycles.retain(|(it, old)| *it != key || *old < run);
            self.late.retain(|(it, old)| *it != key || *old <= run);
            if course.cycle.is_some() {
                self.cycles.insert((key, run));
            }
            match course.standing {
                Standing::Queued => drop(self.queued.insert(key)),
                _ => drop(self.queued.remove(&key)),
            }
            // A pause that was asked for in its last step, and not written down, has held no delay up.
            if doom.is_some() || !matches!(course.standing, Standing::Backoff(_)) {
                self.backoffs.remove(&key);
            }
            if let Standing::Running { .. } = course.standing {
                // Its start may have been written down and not told.
                self.started.insert((key, run));
                if found.is_some_and(|found| found.left != Left::Main) {
                    let is_asked = self.is_asked(key, run);
                    self.exits.entry((key, run)).or_insert(is_asked);
                    self.unseen.insert((key, run));
                    self.note("ends while nobody lived");
                } else if blinds {
                    self.unseen.insert((key, run));
                }
            }
            let goes_on = matches!(
                course.standing,
                Standing::Running { .. } | Standing::Draining { .. } | Standing::Lingering(_)
            );
            let is_told = goes_on && course.told == Some(run);
            if record.has_ended() {
                // That there is no next run may not have been told; that the last one has ended is, or will be.
                self.announced.remove(&key);
            } else if !is_told {
                self.announced.insert(key);
            }
        }
    }

    /// Compares what the next supervisor says first with what is true.
    pub fn adopted(&mut self, machine: &Machine, kernel: &Kernel, now: Now, herd: &[Adopted], effects: &[Effect]) {
        let groups = self.groups.len();
        self.after(machine, kernel, now, None, effects);
        for record in machine.records() {
            let (key, run, told) = (AgentKey(record.birth.key), record.course.run, record.course.told);
            let is_told = told != Some(run) || run == Run(0) || self.told.contains(&(key, run));
            assert!(is_told, "{key}: the end of run {run} is written down as told, and was not");
        }
        let escalated: Vec<AgentKey> = effects.iter().filter_map(|effect| escalation(machine, effect)).collect();
        let paused: Vec<AgentKey> = herd.iter().filter_map(|adopted| user_pause(&adopted.record)).collect();
        for Adopted { record, .. } in herd.iter().filter(|it| it.found.is_some_and(|found| found.left == Left::Main)) {
            let before = &record.course;
            let is_below =
                |tops: &[AgentKey]| tops.iter().any(|top| machine.is_within(AgentKey(record.birth.key), *top));
            let mut after = machine.record(AgentKey(record.birth.key)).expect("what lives is adopted").course;
            let is_kept = match (&before.standing, &after.standing) {
                (Standing::Running { pid, rung: before }, Standing::Running { pid: now, rung }) => {
                    pid == now && (before.is_none() || rung.is_some())
                }
                _ => false,
            };
            assert!(is_kept, "{}: its run goes on as it did: {after:?}", record.id());
            assert!(before.ending.is_none() || after.ending.is_some(), "{}: what was stopped stays so", record.id());
            if before.judgement.is_none() && after.judgement.is_some() {
                // Its time was over meanwhile.
                (after.judgement, after.told) = (None, before.told);
            }
            if !is_below(&paused) {
                // A rule's pause is the rule's: whoever goes on begins to count anew.
                (after.paused_since, after.paused_total) = (before.paused_since, before.paused_total);
            }
            if is_below(&escalated) {
                // A failure above it, found by the next one, forgets what was counted.
                (after.streak, after.recent) = (before.streak, before.recent.clone());
            } else {
                // Another one's end was found: it counts, and may have others start anew with it.
                let period = record.birth.spec.children.period;
                let is_gone_by = |at: &Monotonic| now.mono.since(*at) >= period;
                let mut counted = before.child_restarts.clone();
                if after.child_restarts != counted {
                    counted.retain(|at| !is_gone_by(at));
                }
                assert!(after.child_restarts.starts_with(&counted), "{}: its count goes on", record.id());
            }
            after.child_restarts.clone_from(&before.child_restarts);
            after.cycle = after.cycle.filter(|_| before.cycle.is_some());
            (after.standing, after.ending) = (before.standing.clone(), before.ending.clone());
            assert_eq!(after, *before, "{}: it is as it was", record.id());
        }
        // What is stopped again is killed when it was to be killed.
        for group in &mut self.groups[groups..] {
            let due = |key: &AgentKey| machine.record(*key)?.course.ending.map(|ending| ending.kill_at);
            group.kill_at = group.tops.iter().filter_map(due).min();
        }
    }

    /// Says whether nobody can know how this run ends.
    pub fn is_unseen(&self, key: AgentKey, run: Run) -> bool {
        self.unseen.contains(&(key, run))
    }

    /// An agent of which nothing was written down was never there.
    fn forget_unrecorded(&mut self, key: AgentKey) {
        self.names.retain(|_, it| *it != key);
        for set in [&mut self.down, &mut self.queued, &mut self.announced, &mut self.killed, &mut self.paused] {
            set.remove(&key);
        }
        self.forgotten.remove(&key);
        self.known.remove(&key);
        self.backoffs.remove(&key);
        self.cascading.remove(&key);
        self.exits.retain(|(it, _), _| *it != key);
        self.health.retain(|(it, _), _| *it != key);
        for set in
            [&mut self.started, &mut self.told, &mut self.cycles, &mut self.late, &mut self.judged, &mut self.unseen]
        {
            set.retain(|(it, _)| *it != key);
        }
        for group in &mut self.groups {
            group.tops.remove(&key);
        }
        for asked in self.requests.values_mut() {
            asked.members.remove(&key);
            asked.exact.remove(&key);
        }
    }
}

/// Returns whom an event tells to have failed for its children.
fn escalation(machine: &Machine, effect: &Effect) -> Option<AgentKey> {
    match effect {
        Effect::Publish(event) if event.kind == Kind::Escalated => machine.key_of(event.agent.as_ref()?),
        _ => None,
    }
}

/// Returns an agent that a user has paused.
fn user_pause(record: &AgentRecord) -> Option<AgentKey> {
    matches!(record.course.pause, Pause::Asked | Pause::Told).then_some(AgentKey(record.birth.key))
}
