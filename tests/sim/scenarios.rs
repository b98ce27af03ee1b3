//! The words of the policies, one life each. Sentences first; the many lives are in `swarm`.

use std::time::Duration;

use treeherd::machine::{AgentKey, Effect, Input, ReplyTo};
use treeherd::model::config::HerdConfig;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::{Level, Run};
use treeherd::model::request::{Answer, Request, Target};
use treeherd::model::spec::{Admission, AgentSpec, OnMainExit, RestartPolicy};
use treeherd::model::status::{Cause, Exit, Paused, Receipt, State};

use super::chance::Chance;
use super::clients::id;
use super::kernel::Temper;
use super::world::{Lane, Move, World};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A world in which everything goes on in the order in which it was begun.
pub struct Life {
    pub world: World,
    pub replies: Vec<(ReplyTo, Answer)>,
    /// What was told, in its order.
    pub told: Vec<Event>,
}

impl Life {
    pub fn new(config: HerdConfig) -> Self {
        let chance = Chance::Script { list: Vec::new(), taken: Vec::new() };
        Self { world: World::new(config, chance), replies: Vec::new(), told: Vec::new() }
    }

    pub fn note(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Reply(to, Ok(answer)) => self.replies.push((to, answer)),
                Effect::Publish(event) => self.told.push(*event),
                _ => {}
            }
        }
    }

    pub fn flush(&mut self) {
        while let Some(first) = self.world.moves().first().copied() {
            let effects = self.world.make(first);
            self.note(effects);
        }
    }

    pub fn ask(&mut self, request: Request) -> ReplyTo {
        let (to, effects) = self.world.ask(1, None, request);
        self.note(effects);
        self.flush();
        to
    }

    pub fn spawn(&mut self, name: &str, parent: Option<&str>, change: impl FnOnce(&mut AgentSpec)) -> AgentKey {
        let mut spec = AgentSpec { parent: parent.map(id), ..AgentSpec::new(id(name), ["work"]) };
        (spec.restart.jitter, spec.restart.delay) = (0.0, SECOND);
        change(&mut spec);
        self.ask(Request::Spawn(Box::new(spec)));
        self.world.machine.key_of(&id(name)).unwrap()
    }

    pub fn main_of(&self, key: AgentKey) -> u64 {
        self.world.kernel.processes.iter().find(|(_, it)| it.agent == key && it.is_main).map(|(pid, _)| *pid).unwrap()
    }

    pub fn exit(&mut self, key: AgentKey, status: i32) {
        self.world.kernel.exit(self.main_of(key), Exit::Status(status), false);
        self.world.kernel.update();
        self.flush();
    }

    /// The supervisor dies; before there is another one, the main processes of these agents end well.
    pub fn die(&mut self, ends: &[AgentKey]) {
        self.world.crash();
        for key in ends {
            self.world.kernel.exit(self.main_of(*key), Exit::Status(0), false);
        }
        self.world.kernel.update();
        let effects = self.world.revive();
        self.note(effects);
        self.flush();
    }

    pub fn fork(&mut self, key: AgentKey, temper: Temper) {
        self.world.kernel.fork(self.main_of(key), temper);
        self.world.kernel.update();
    }

    pub fn pass(&mut self, time: Duration) {
        self.world.pass(time);
        let effects = self.world.step(Input::Ticked);
        self.note(effects);
        self.flush();
    }

    pub fn terminate(&mut self, names: &[&str], grace: Option<Duration>) -> ReplyTo {
        self.ask(Request::Terminate(targets(names), grace))
    }

    pub fn state(&self, key: AgentKey) -> State {
        self.world.machine.status(key, self.world.now.mono).state
    }

    pub fn paused(&self, key: AgentKey) -> Paused {
        self.world.machine.status(key, self.world.now.mono).paused
    }

    pub fn run(&self, key: AgentKey) -> u32 {
        self.world.machine.run_of(key).unwrap().0
    }

    fn last_cause(&self, key: AgentKey) -> Option<Cause> {
        self.world.machine.status(key, self.world.now.mono).exit.map(|exit| exit.cause)
    }

    /// Tells what has happened, and carries out no order that follows.
    pub fn tell_notices(&mut self) {
        while let Some(notice) = self.world.moves().into_iter().find(|it| matches!(it, Move::Notice(_))) {
            let effects = self.world.make(notice);
            self.note(effects);
        }
    }

    pub fn kinds(&self, name: &str) -> Vec<Kind> {
        self.told.iter().filter(|event| event.agent == Some(id(name))).map(|event| event.kind).collect()
    }

    pub fn receipt(&self, to: ReplyTo) -> Option<&Receipt> {
        self.replies.iter().find_map(|(it, answer)| match answer {
            Answer::Receipt(receipt) if *it == to => Some(receipt),
            _ => None,
        })
    }
}

pub fn targets(names: &[&str]) -> Target {
    Target::Ids(names.iter().map(|name| id(name)).collect())
}

pub fn life() -> Life {
    Life::new(HerdConfig::default())
}

#[test]
fn restart_never_leaves_a_failure_where_it_is() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| spec.restart.policy = RestartPolicy::Never);
    life.exit(key, 1);
    life.pass(10 * SECOND);
    assert_eq!((life.state(key), life.run(key)), (State::Failed, 1));
}

#[test]
fn restart_on_failure_repeats_failures_and_not_successes() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| spec.restart.policy = RestartPolicy::OnFailure);
    life.exit(key, 1);
    assert_eq!(life.state(key), State::Backoff);
    life.pass(Duration::from_millis(999));
    assert_eq!(life.state(key), State::Backoff, "not before its delay is over");
    life.pass(Duration::from_millis(1));
    assert_eq!((life.state(key), life.run(key)), (State::Running, 2));
    life.exit(key, 0);
    assert_eq!((life.state(key), life.run(key)), (State::Completed, 2));
}

#[test]
fn restart_always_repeats_successes_and_stops_when_asked_to() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| spec.restart.policy = RestartPolicy::Always);
    life.exit(key, 0);
    life.pass(SECOND);
    assert_eq!((life.state(key), life.run(key)), (State::Running, 2));
    life.terminate(&["a"], None);
    life.pass(10 * SECOND);
    assert_eq!((life.state(key), life.run(key)), (State::Terminated, 2), "what was stopped stays stopped");
}

#[test]
fn more_restarts_than_its_intensity_allows_end_in_giving_up() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| {
        (spec.restart.policy, spec.restart.intensity) = (RestartPolicy::Always, 2);
    });
    for _ in 0..3 {
        life.exit(key, 1);
        life.pass(10 * SECOND);
    }
    assert_eq!((life.state(key), life.run(key)), (State::Failed, 3));
    assert_eq!(life.kinds("a").iter().filter(|kind| **kind == Kind::GaveUp).count(), 1);
}

#[test]
fn who_is_given_up_has_failed_however_well_its_last_run_ended_and_its_significance_follows() {
    let mut life = life();
    let parent = life.spawn("p", None, |_| {});
    let key = life.spawn("a", Some("p"), |spec| {
        (spec.restart.policy, spec.restart.intensity, spec.significant) = (RestartPolicy::Always, 2, true);
    });
    for _ in 0..3 {
        life.exit(key, 0);
        life.pass(10 * SECOND);
    }
    assert_eq!((life.state(key), life.run(key)), (State::Failed, 3));
    assert_eq!(life.kinds("a").iter().filter(|kind| **kind == Kind::Completed).count(), 3, "each run ended well");
    assert!(life.kinds("p").contains(&Kind::Escalated), "it did not complete: its parent has failed");
    let _parent = parent;
}

#[test]
fn on_main_exit_terminate_ends_what_was_left_behind() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| spec.on_main_exit = OnMainExit::Terminate);
    life.fork(key, Temper::Stubborn);
    life.exit(key, 0);
    assert_eq!(life.state(key), State::Stopping);
    life.pass(10 * SECOND);
    assert_eq!(life.state(key), State::Completed, "it ended well on its own, whatever was ended after it");
}

#[test]
fn on_main_exit_wait_waits_for_processes_and_agents_left_behind() {
    let mut life = life();
    let parent = life.spawn("a", None, |spec| spec.on_main_exit = OnMainExit::Wait);
    let child = life.spawn("b", Some("a"), |_| {});
    life.fork(parent, Temper::Plain);
    life.exit(parent, 0);
    life.pass(1000 * SECOND);
    assert_eq!((life.state(parent), life.state(child)), (State::Running, State::Running));
    let left = life.world.kernel.processes.iter().find(|(_, it)| it.agent == parent).map(|(pid, _)| *pid).unwrap();
    life.world.kernel.exit(left, Exit::Status(7), false);
    life.world.kernel.update();
    life.flush();
    assert_eq!(life.state(parent), State::Running, "the agent below it lives");
    life.exit(child, 0);
    assert_eq!((life.state(parent), life.state(child)), (State::Completed, State::Completed));
}

#[test]
fn a_run_that_lasts_too_long_has_failed_and_is_ended() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| spec.run_timeout = Some(Duration::from_secs(5)));
    life.fork(key, Temper::Stubborn);
    life.pass(4 * SECOND);
    life.ask(Request::Pause(targets(&["a"])));
    life.pass(1000 * SECOND);
    assert_eq!(life.state(key), State::Paused, "its clock stands still while it is paused");
    life.ask(Request::Resume(targets(&["a"])));
    life.pass(2 * SECOND);
    assert_eq!(life.state(key), State::Stopping, "told, and on its way to the kill");
    life.pass(10 * SECOND);
    assert_eq!(life.state(key), State::Failed);
}

#[test]
fn what_the_last_words_mean_is_found_out_before_a_run_is_told_to_have_completed() {
    let mut life = life();
    let with_rules =
        |spec: &mut AgentSpec| spec.rules = vec!["strange".parse().unwrap(), "fail:fatal".parse().unwrap()];
    let key = life.spawn("a", None, with_rules);
    let main = life.main_of(key);
    life.world.kernel.say(main, 0, false);
    life.world.kernel.say(main, 1, true);
    // Its end is known before anybody has looked at what it said.
    life.world.kernel.exit(main, Exit::Status(0), false);
    life.world.kernel.update();
    life.flush();
    assert_eq!((life.state(key), life.last_cause(key)), (State::Failed, Some(Cause::Output)));
    let notices = life.kinds("a").iter().filter(|kind| **kind == Kind::Notice).count();
    assert_eq!((notices, life.kinds("a").last()), (2, Some(&Kind::Failed)));
}

#[test]
fn a_word_that_means_failure_ends_the_run_that_said_it_and_no_later_one() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| {
        spec.rules = vec!["fail:fatal".parse().unwrap()];
        spec.restart.policy = RestartPolicy::OnFailure;
    });
    let main = life.main_of(key);
    life.world.kernel.say(main, 0, true);
    life.world.kernel.say(main, 0, true);
    life.flush();
    assert_eq!((life.state(key), life.last_cause(key)), (State::Backoff, Some(Cause::Output)));
    life.pass(SECOND);
    assert_eq!((life.state(key), life.run(key)), (State::Running, 2));
    let late = super::world::matched(key, Run(1), 0);
    let effects = life.world.step(late);
    life.note(effects);
    assert_eq!((life.state(key), life.kinds("a").last()), (State::Running, Some(&Kind::Notice)), "told, and no more");
}

#[test]
fn last_words_that_take_too_long_to_be_looked_at_are_not_waited_for() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| spec.rules = vec!["fail:fatal".parse().unwrap()]);
    let main = life.main_of(key);
    life.world.kernel.exit(main, Exit::Status(0), false);
    life.world.kernel.update();
    life.tell_notices();
    assert_eq!(life.state(key), State::Running);
    life.world.pass(10 * SECOND);
    life.world.step(Input::Ticked);
    assert_eq!(life.state(key), State::Completed);
    life.flush();
}

#[test]
fn a_queue_lets_in_the_most_urgent_first() {
    let mut config = HerdConfig::default();
    config.bounds.max_agents_per_level = 1;
    let mut life = Life::new(config);
    let first = life.spawn("a", None, |_| {});
    let mut queue = |name: &str, priority: u8| {
        life.spawn(name, None, |spec| {
            spec.admission = Admission::Queue;
            spec.priority = priority.try_into().unwrap();
        })
    };
    let (low, high, late) = (queue("low", 1), queue("high", 9), queue("late", 9));
    life.exit(first, 0);
    assert_eq!([low, high, late].map(|key| life.state(key)), [State::Queued, State::Running, State::Queued]);
    life.exit(high, 0);
    assert_eq!([low, late].map(|key| life.state(key)), [State::Queued, State::Running]);
}

#[test]
fn a_spawn_that_could_never_be_let_in_is_refused_and_not_queued() {
    let mut config = HerdConfig::default();
    config.levels.entry(Level(0)).or_default().total.set_text("memory_max=1GiB").unwrap();
    let mut life = Life::new(config);
    let mut spec = AgentSpec::new(id("a"), ["work"]);
    spec.admission = Admission::Queue;
    life.ask(Request::Spawn(Box::new(spec)));
    assert_eq!(life.world.machine.key_of(&id("a")), None, "without a limit of its own it fits into no total");
}

#[test]
fn a_change_of_limits_keeps_to_the_total_of_its_level() {
    let mut config = HerdConfig::default();
    config.levels.entry(Level(0)).or_default().total.set_text("memory_max=1GiB").unwrap();
    let mut life = Life::new(config);
    let key = life.spawn("a", None, |spec| spec.limits.set_text("memory_max=512MiB").unwrap());
    let mut wider = treeherd::model::limits::Limits::default();
    wider.set_text("memory_max=2GiB").unwrap();
    life.ask(Request::Limit(treeherd::model::request::LimitScope::Agent(id("a")), wider));
    assert_eq!(life.world.machine.limits_of(key).unwrap().to_string(), "memory_max=536870912");
}

#[test]
fn a_level_dies_together_and_nobody_forks_away() {
    let mut life = life();
    let (a, b) = (life.spawn("a", None, |_| {}), life.spawn("b", None, |_| {}));
    life.fork(a, Temper::Stubborn);
    life.world.kernel.freezes_slowly = true;
    let (to, effects) = life.world.ask(1, None, Request::Terminate(Target::Level(Level(0)), Some(Duration::ZERO)));
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Freeze { .. })).count(), 2);
    life.note(effects);
    life.flush();
    let receipt = life.receipt(to).unwrap();
    assert_eq!(receipt.processes, 3);
    assert_eq!((life.state(a), life.state(b)), (State::Terminated, State::Terminated));
}

#[test]
fn a_level_whose_one_task_does_not_freeze_is_killed_when_the_budget_is_over() {
    let mut life = life();
    let (a, b) = (life.spawn("a", None, |_| {}), life.spawn("b", None, |_| {}));
    let stuck = life.main_of(a);
    life.world.kernel.processes.get_mut(&stuck).unwrap().is_jammed = true;
    let (to, effects) = life.world.ask(1, None, Request::Terminate(Target::Level(Level(0)), Some(Duration::ZERO)));
    life.note(effects);
    life.flush_but_stuck();
    assert_eq!(life.state(b), State::Stopping, "all wait for the one");
    life.world.pass(Duration::from_millis(500));
    let effects = life.world.step(Input::Ticked);
    life.note(effects);
    life.flush_but_stuck();
    assert_eq!((life.state(b), life.receipt(to)), (State::Terminated, None), "it does not hold the others up");
    life.flush();
    assert_eq!(life.receipt(to).unwrap().processes, 2);
}

#[test]
fn a_pause_is_inherited_and_a_resume_from_above_leaves_the_own_one() {
    let mut life = life();
    let (a, b) = (life.spawn("a", None, |_| {}), life.spawn("b", Some("a"), |_| {}));
    life.ask(Request::Pause(targets(&["a"])));
    assert_eq!((life.paused(a), life.paused(b)), (Paused::Own, Paused::Inherited));
    life.ask(Request::Pause(targets(&["b"])));
    life.ask(Request::Resume(targets(&["a"])));
    assert_eq!((life.paused(a), life.paused(b)), (Paused::No, Paused::Own));
    assert!(life.world.kernel.is_still(b) && !life.world.kernel.is_still(a));
    life.ask(Request::Resume(targets(&["b"])));
    assert!(!life.world.kernel.is_still(b));
    assert_eq!(life.kinds("b"), [Kind::Spawned, Kind::Started, Kind::Paused, Kind::Resumed]);
}

#[test]
fn a_freeze_from_above_is_no_answer_to_an_own_one() {
    let mut life = life();
    let (a, b) = (life.spawn("a", None, |_| {}), life.spawn("b", Some("a"), |_| {}));
    life.world.kernel.freezes_slowly = true;
    life.ask(Request::Pause(targets(&["a"])));
    let (_, effects) = life.world.ask(1, None, Request::Pause(targets(&["b"])));
    life.note(effects);
    let (_, effects) = life.world.ask(1, None, Request::Resume(targets(&["a"])));
    life.note(effects);
    for next in [Move::Order(Lane::Agent(a)), Move::Order(Lane::Agent(b)), Move::Answer(Lane::Agent(b))] {
        let effects = life.world.make(next);
        life.note(effects);
    }
    assert!(!life.kinds("b").contains(&Kind::Paused), "it was thawed with the one above, and freezes only now");
    life.flush();
    assert!(life.kinds("b").contains(&Kind::Paused));
}

#[test]
fn a_kill_is_ordered_again_while_something_lives() {
    let mut life = life();
    let key = life.spawn("a", None, |_| {});
    let main = life.main_of(key);
    life.world.kernel.processes.get_mut(&main).unwrap().is_jammed = true;
    let (to, effects) = life.world.ask(1, None, Request::Terminate(targets(&["a"]), Some(Duration::ZERO)));
    life.note(effects);
    life.flush_but_stuck();
    // Somebody from outside moves a process into the cgroup after the kill.
    life.fork(key, Temper::Stubborn);
    life.flush();
    assert_eq!((life.state(key), life.receipt(to)), (State::Stopping, None));
    life.pass(SECOND);
    assert!(life.receipt(to).is_some());
}

#[test]
fn a_paused_subtree_starts_nothing_until_it_is_resumed() {
    let mut life = life();
    life.spawn("a", None, |_| {});
    life.ask(Request::Pause(targets(&["a"])));
    let child = life.spawn("b", Some("a"), |_| {});
    life.pass(100 * SECOND);
    assert_eq!((life.state(child), life.run(child)), (State::Paused, 0));
    life.ask(Request::Resume(targets(&["a"])));
    assert_eq!((life.state(child), life.run(child)), (State::Running, 1));
}

#[test]
fn a_polite_stop_of_a_paused_agent_lets_it_see_the_signal() {
    let mut life = life();
    let key = life.spawn("a", None, |_| {});
    let main = life.main_of(key);
    life.world.kernel.processes.get_mut(&main).unwrap().temper = Temper::Handler;
    life.ask(Request::Pause(targets(&["a"])));
    let to = life.terminate(&["a"], None);
    let receipt = life.receipt(to).unwrap();
    assert_eq!(receipt.agents[0].signals.get("SIGTERM"), Some(&1), "signal, thaw, and no kill: {receipt:?}");
}

#[test]
fn of_joint_stops_the_more_urgent_one_drives_and_both_get_their_receipt() {
    let mut life = life();
    let (a, b) = (life.spawn("a", None, |_| {}), life.spawn("b", Some("a"), |_| {}));
    for key in [a, b] {
        let main = life.main_of(key);
        life.world.kernel.processes.get_mut(&main).unwrap().temper = Temper::Stubborn;
    }
    let slow = life.terminate(&["a"], Some(60 * SECOND));
    let fast = life.terminate(&["b"], Some(SECOND));
    life.pass(SECOND);
    assert_eq!((life.state(a), life.state(b)), (State::Stopping, State::Terminated));
    assert!(life.receipt(slow).is_none());
    life.pass(59 * SECOND);
    assert_eq!(life.receipt(slow).unwrap().processes, 2);
    assert_eq!(life.receipt(fast).unwrap().agents[0].signals["SIGKILL"], 1);
    assert_eq!(life.receipt(slow).unwrap().agents[1].signals["SIGKILL"], 1, "whoever ordered the kill");
}

#[test]
fn a_terminate_ends_what_moved_itself_out_of_its_run() {
    let mut life = life();
    let key = life.spawn("a", None, |_| {});
    life.fork(key, Temper::Stubborn);
    let stray = *life.world.kernel.processes.keys().last().unwrap();
    life.world.kernel.stray(stray);
    life.world.kernel.update();
    let to = life.terminate(&["a"], Some(SECOND));
    assert!(life.receipt(to).is_some() && life.world.kernel.processes.is_empty());
}

#[test]
fn an_ended_agent_is_retained_for_its_time_and_an_id_is_free_after_it() {
    let mut life = life();
    let key = life.spawn("a", None, |_| {});
    life.exit(key, 0);
    life.pass(59 * SECOND);
    assert_eq!(life.state(key), State::Completed);
    life.pass(SECOND);
    assert_eq!(life.world.machine.key_of(&id("a")), None);
    assert_eq!(life.kinds("a").last(), Some(&Kind::Removed));
    assert_eq!(life.world.machine.next_deadline(), None, "an idle herd waits for nothing");
    assert_ne!(life.spawn("a", None, |_| {}), key);
}

#[test]
fn without_auto_cleanup_an_ended_agent_stays_until_it_is_cleaned_up() {
    let mut life = Life::new(HerdConfig { auto_cleanup: false, ..HerdConfig::default() });
    let key = life.spawn("a", None, |_| {});
    life.exit(key, 0);
    life.pass(100_000 * SECOND);
    assert_eq!((life.state(key), life.world.machine.next_deadline()), (State::Completed, None));
    life.ask(Request::Cleanup(Target::All));
    assert_eq!(life.world.machine.key_of(&id("a")), None);
}

impl Life {
    /// As `flush`, and what hangs in the kernel goes on hanging.
    fn flush_but_stuck(&mut self) {
        let can = |it: &Move| !matches!(it, Move::Unjam(_));
        while let Some(first) = self.world.moves().into_iter().find(can) {
            let effects = self.world.make(first);
            self.note(effects);
        }
    }
}

#[test]
fn another_supervisor_goes_on_where_one_has_died() {
    let mut life = Life::new(HerdConfig::default());
    let parent = life.spawn("parent", None, |spec| spec.restart.policy = RestartPolicy::OnFailure);
    let child = life.spawn("child", Some("parent"), |_| {});
    let stopped = life.spawn("stopped", None, |spec| spec.restart.policy = RestartPolicy::Always);
    life.terminate(&["stopped"], None);
    life.ask(Request::Pause(targets(&["child"])));
    life.die(&[]);
    assert_eq!(
        (life.state(parent), life.state(child), life.state(stopped)),
        (State::Running, State::Paused, State::Terminated)
    );
    assert_eq!(life.paused(child), Paused::Own);
    life.exit(parent, 3);
    life.pass(SECOND);
    assert_eq!((life.run(parent), life.run(child)), (2, 1), "its policy is what it was");
    life.pass(SECOND * 20);
    life.die(&[]);
    life.pass(SECOND * 100);
    assert_eq!(
        life.world.machine.key_of(&id("stopped")),
        None,
        "what was stopped stays stopped, and is forgotten in time"
    );
}

#[test]
fn what_ended_while_no_supervisor_lived_is_told_once_and_not_as_a_success() {
    let mut life = Life::new(HerdConfig::default());
    let never = life.spawn("never", None, |_| {});
    let again = life.spawn("again", None, |spec| spec.restart.policy = RestartPolicy::OnFailure);
    let asked = life.spawn("asked", None, |spec| spec.grace = SECOND * 5);
    life.fork(asked, Temper::Stubborn);
    life.ask(Request::Terminate(targets(&["asked"]), None));
    assert_eq!(life.state(asked), State::Stopping);
    life.die(&[never, again]);
    assert_eq!(
        (life.state(never), life.state(again), life.state(asked)),
        (State::Failed, State::Backoff, State::Stopping)
    );
    life.pass(SECOND * 5);
    assert_eq!(life.state(asked), State::Terminated, "the kill comes when it was due");
    life.die(&[]);
    assert_eq!(life.run(again), 2);
    for name in ["never", "again", "asked"] {
        let ends = life.kinds(name).into_iter().filter(|kind| kind.is_terminal()).count();
        assert_eq!(ends, 1, "{name}");
    }
}

#[test]
fn what_never_dies_is_answered_in_time_and_is_not_said_to_have_ended() {
    let mut life = life();
    let (stuck, other) = (life.spawn("a", None, |_| {}), life.spawn("b", None, |_| {}));
    let main = life.main_of(stuck);
    life.world.kernel.processes.get_mut(&main).unwrap().is_jammed = true;
    let grace = Some(Duration::ZERO);
    let (to, effects) = life.world.ask(1, None, Request::Terminate(targets(&["a"]), grace));
    life.note(effects);
    // The default of kill_timeout.
    for _ in 0..20 {
        life.world.pass(SECOND / 2);
        let effects = life.world.step(Input::Ticked);
        life.note(effects);
        life.flush_but_stuck();
    }
    let receipt = life.receipt(to).unwrap();
    assert_eq!((receipt.processes, receipt.agents[0].survivors, receipt.agents[0].alive.len()), (0, 1, 1));
    assert_eq!((life.state(stuck), life.state(other)), (State::Stuck, State::Running));
    assert!(life.kinds("a").contains(&Kind::Stuck) && !life.kinds("a").contains(&Kind::Terminated));
    life.flush();
    assert_eq!(life.kinds("a").iter().filter(|kind| kind.is_terminal()).count(), 1, "its end is reported once");
    assert_eq!(life.state(stuck), State::Terminated);
}
