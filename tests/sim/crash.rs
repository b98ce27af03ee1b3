//! The supervisor dies, at any moment, and another one goes on from what was written down and what the kernel holds.
//!
//! ```text
//! a step is decided ─▶ records written ─▶ events written, told ─▶ orders on their way ─▶ carried out ─▶ answered
//!                   ▲                   ▲                       ▲                      ▲              ▲
//!                 death               death                   death                  death          death
//! ```
//!
//! A spawn alone may be carried out before anything is written.

use std::collections::{BTreeMap, BTreeSet};

use treeherd::machine::{Adopted, AgentKey, Effect, Found, FoundHome, Frost, Left, LimitPlace, Machine, Telling};
use treeherd::model::id::Run;
use treeherd::model::record::{AgentRecord, HerdRecord, Standing};

use super::kernel::{Kernel, Notice};
use super::world::{Lane, Move, World};

/// When a supervisor dies within a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    /// Nothing of the step is written.
    Unwritten,
    /// The records are written, the events are not.
    Untold,
}

/// What outlives a supervisor.
#[derive(Default)]
pub struct Disk {
    records: BTreeMap<AgentKey, AgentRecord>,
    herd: Option<HerdRecord>,
    /// Agents whose terminal event was decided and never written.
    untold: BTreeSet<AgentKey>,
    /// Set before a step that is to be the last one.
    pub doom: Option<Doom>,
}

impl Disk {
    pub fn write(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Record(record) => {
                    drop(self.records.insert(AgentKey(record.birth.key), record.as_ref().clone()))
                }
                Effect::RecordHerd(herd) => self.herd = Some(herd.as_ref().clone()),
                Effect::Forget(key) => drop(self.records.remove(key)),
                _ => {}
            }
        }
    }

    /// What is written is what is, after every step.
    pub fn check(&self, machine: &Machine) {
        let now: BTreeMap<_, _> = machine.records().map(|record| (AgentKey(record.birth.key), record)).collect();
        assert_eq!(self.records, now, "what is written is what is");
        let herd = machine.herd_record();
        assert!(self.herd.as_ref().is_none_or(|written| *written == herd), "the herd's limits are written down");
    }
}

impl World {
    /// The last step was decided: what of it comes into the world is up to the moment of the death.
    pub fn die_in_step(&mut self, effects: &[Effect]) {
        if self.disk.doom == Some(Doom::Untold) {
            self.disk.write(effects);
            let ends = effects.iter().filter_map(|effect| match effect {
                Effect::Publish(event) if event.kind.is_terminal() => self.machine.key_of(event.agent.as_ref()?),
                _ => None,
            });
            self.disk.untold = ends.filter(|key| self.disk.records.contains_key(key)).collect();
        }
        for effect in effects {
            if let Effect::Spawn(order) = effect
                && self.chance.comes(50)
            {
                self.carry_out(Lane::Agent(order.agent), effect.clone());
            }
        }
        self.kernel.update();
    }

    /// The supervisor dies: what is on its way is lost, or carried out with nobody to answer to.
    pub fn crash(&mut self) {
        loop {
            let orders: Vec<Move> = self.moves().into_iter().filter(|it| matches!(it, Move::Order(_))).collect();
            match orders.get(self.chance.pick(orders.len() + 1)) {
                Some(order) => drop(self.make(*order)),
                None => break,
            }
        }
        // What was sent and not read goes with whoever was to read it.
        self.letters.clear();
        self.kernel.left.clear();
        self.observer.left.clear();
        self.orders.clear();
        self.answers.clear();
    }

    /// Another supervisor begins, as the daemon does: takes away what nobody has a record of, looks, adopts.
    pub fn revive(&mut self) -> Vec<Effect> {
        let doom = self.disk.doom.take();
        // Meanwhile nobody could send anything.
        self.letters.clear();
        let records = self.disk.records.clone();
        self.kernel.clear_strays(&records);
        self.kernel.update();
        self.kernel.notices.clear();
        self.kernel.forget_words();
        let mut config = self.machine.config().clone();
        if let Some(herd) = &self.disk.herd {
            (config.limits, config.levels) = (herd.limits.clone(), herd.levels.clone());
        }
        self.kernel.set_limits(&recorded_limits(&self.kernel, &config, &records));
        let untold = std::mem::take(&mut self.disk.untold);
        let adopted: Vec<Adopted> = records
            .iter()
            .map(|(key, record)| Adopted {
                record: record.clone(),
                end: if untold.contains(key) { Telling::Untold } else { Telling::Told },
                found: Some(self.kernel.look(record)),
            })
            .collect();
        if self.tells {
            eprintln!("       another supervisor adopts {}", adopted.len());
            adopted.iter().for_each(|it| {
                eprintln!(
                    "          {} {} {:?} {:?}",
                    it.record.birth.key,
                    it.record.id(),
                    it.record.course.standing,
                    it.found
                )
            });
        }
        self.machine = Machine::new(config, "/model".to_owned(), BTreeMap::new(), 1);
        let fates = self.chance.comes(30);
        self.observer.crashed(&self.kernel, &adopted, doom, fates);
        let mut effects = Vec::new();
        self.machine.adopt(self.now, adopted.clone(), &mut effects);
        self.machine.check();
        let mut again = Vec::new();
        self.machine.settle_everything(self.now, &mut again);
        assert_eq!(again, [], "settling again orders nothing");
        self.disk.write(&effects);
        self.disk.check(&self.machine);
        self.observer.adopted(&self.machine, &self.kernel, self.now, &adopted, &effects);
        for effect in &effects {
            self.route(effect);
        }
        for key in self.kernel.dirs.keys() {
            self.kernel.notices.extend([Notice::Frost(*key), Notice::Subtree(*key)]);
        }
        for record in records.values() {
            let (key, run) = (AgentKey(record.birth.key), record.course.run);
            if matches!(record.course.standing, Standing::Running { .. } | Standing::Draining { .. }) {
                self.kernel.notices.insert(Notice::Run(key, run));
            }
        }
        effects
    }
}

/// The limits that are set again: what is written down is what holds.
fn recorded_limits(
    kernel: &Kernel,
    config: &treeherd::model::config::HerdConfig,
    records: &BTreeMap<AgentKey, AgentRecord>,
) -> Vec<(LimitPlace, treeherd::model::limits::Limits)> {
    let mut settings = vec![(LimitPlace::Herd, config.limits.clone())];
    for (key, record) in records.iter().filter(|(key, _)| kernel.dirs.contains_key(key)) {
        settings.push((LimitPlace::Agent(*key), record.course.limits.clone()));
        let depth = std::iter::successors(record.birth.parent, |key| records[&AgentKey(*key)].birth.parent).count();
        let below = treeherd::model::id::Level(u16::try_from(depth).unwrap() + 1);
        settings.push((LimitPlace::Children(*key), config.level(below).siblings));
    }
    settings
}

impl Kernel {
    /// Kills and removes what nobody has a record of: agents, and runs.
    fn clear_strays(&mut self, records: &BTreeMap<AgentKey, AgentRecord>) {
        let run_of = |key: &AgentKey| match records.get(key).map(|record| &record.course) {
            Some(course) if matches!(course.standing, Standing::Running { .. } | Standing::Draining { .. }) => {
                Some(course.run)
            }
            _ => None,
        };
        let is_known =
            |key: &AgentKey| records.get(key).is_some_and(|it| !matches!(it.course.standing, Standing::Queued));
        self.hanging.clear();
        for (key, dir) in &mut self.dirs {
            let strays: Vec<Run> = dir.runs.iter().copied().filter(|run| run_of(key) != Some(*run)).collect();
            for run in strays {
                dir.runs.remove(&run);
                self.processes.retain(|_, it| it.has_strayed || (it.agent, it.run) != (*key, run));
            }
        }
        let unknown: Vec<AgentKey> = self.dirs.keys().copied().filter(|key| !is_known(key)).collect();
        for key in unknown {
            self.processes.retain(|_, it| it.agent != key);
            self.dirs.remove(&key);
        }
        // The others never were, as far as anybody knows.
        let was = |key: &AgentKey, run: Run| records.get(key).is_some_and(|record| run <= record.course.run);
        self.runs_ever.retain(|(key, run)| was(key, *run));
        self.deaths.retain(|(key, run), _| was(key, *run));
        self.tallies.retain(|key, _| records.contains_key(key));
    }

    fn look(&self, record: &AgentRecord) -> Found {
        let (key, run) = (AgentKey(record.birth.key), record.course.run);
        let home = self.dirs.get(&key).map(|dir| FoundHome { freeze: dir.freeze, has_level: dir.nursery.is_some() });
        let others = self.in_run(key, run).count() as u64;
        let is_running = matches!(record.course.standing, Standing::Running { .. });
        let left = if is_running && self.has_main(key, run) {
            Left::Main
        } else if others > 0 {
            Left::Others(others)
        } else {
            Left::Nothing
        };
        Found { home, left }
    }

    /// Says whether a subtree is to stand still by its own freeze.
    pub fn freeze_of(&self, key: AgentKey) -> Option<Frost> {
        self.dirs.get(&key).map(|dir| dir.freeze)
    }
}
