//! The words of readiness and heartbeat, one life each.

use std::time::Duration;

use treeherd::machine::{AgentKey, Input};
use treeherd::model::event::Kind;
use treeherd::model::note::Note;
use treeherd::model::ready::Ready;
use treeherd::model::request::{Request, Target};
use treeherd::model::spec::{AgentSpec, OnMainExit, RestartPolicy};
use treeherd::model::status::{Cause, State};

use super::clients::id;
use super::kernel::Temper;
use super::scenarios::{Life, SECOND, life};

impl Life {
    fn says(&mut self, key: AgentKey, notes: &[Note]) {
        let pid = self.main_of(key);
        self.world.tell_of(pid, notes.to_vec());
        self.flush();
    }

    /// Spawns an agent that tells this before its spawner is back.
    fn spawn_that_tells(&mut self, spec: AgentSpec, notes: Vec<Note>) -> AgentKey {
        let name = spec.id.clone();
        let (_, effects) = self.world.ask(1, None, Request::Spawn(Box::new(spec)));
        self.note(effects);
        let order = self.world.moves()[0];
        self.world.make(order);
        let key = self.world.machine.key_of(&name).unwrap();
        let pid = self.main_of(key);
        self.world.tell_of(pid, notes);
        let effects = self.world.make(super::world::Move::Read);
        self.note(effects);
        self.flush();
        key
    }

    fn cause(&self, key: AgentKey) -> Cause {
        self.world.machine.status(key, self.world.now.mono).exit.unwrap().cause
    }

    fn temper(&mut self, key: AgentKey, temper: Temper) {
        let main = self.main_of(key);
        self.world.kernel.processes.get_mut(&main).unwrap().temper = temper;
    }
}

fn notify(spec: &mut AgentSpec) {
    (spec.ready, spec.ready_timeout) = (Some(Ready::Notify), Some(5 * SECOND));
}

fn beating(spec: &mut AgentSpec) {
    spec.watchdog = Some(5 * SECOND);
}

#[test]
fn ready_is_told_once_and_ends_the_start() {
    let mut life = life();
    let key = life.spawn("a", None, notify);
    assert_eq!(life.state(key), State::Starting);
    life.pass(4 * SECOND);
    life.says(key, &[Note::Ready, Note::Ready]);
    life.says(key, &[Note::Ready]);
    assert_eq!(life.kinds("a"), [Kind::Spawned, Kind::Started, Kind::Ready]);
    life.pass(1000 * SECOND);
    assert_eq!(life.state(key), State::Running, "no deadline is left");
}

#[test]
fn a_run_that_is_not_ready_in_time_has_failed_and_its_policy_decides() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| {
        notify(spec);
        spec.restart.policy = RestartPolicy::OnFailure;
    });
    life.pass(5 * SECOND);
    assert_eq!((life.state(key), life.cause(key)), (State::Backoff, Cause::Ready));
    life.pass(SECOND);
    assert_eq!(
        (life.state(key), life.run(key)),
        (State::Starting, 2),
        "what the first run told is no news of the second"
    );
    life.says(key, &[Note::Ready]);
    assert_eq!(life.state(key), State::Running);
}

#[test]
fn only_the_sign_that_was_agreed_upon_makes_ready() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| spec.ready = Some(Ready::Fd(3)));
    life.says(key, &[Note::Ready]);
    assert_eq!(life.state(key), State::Starting);
    life.world.show_ready(life.main_of(key));
    life.flush();
    assert_eq!(life.state(key), State::Running);
    let other = life.spawn("b", None, notify);
    life.world.show_ready(life.main_of(other));
    life.flush();
    assert_eq!(life.state(other), State::Starting);
}

#[test]
fn what_is_told_during_the_spawn_counts_when_it_is_over() {
    let mut life = life();
    let spec = AgentSpec { ready: Some(Ready::Notify), ..AgentSpec::new(id("a"), ["work"]) };
    let key = life.spawn_that_tells(spec, vec![Note::Ready, Note::Status("up".to_owned())]);
    assert_eq!(life.kinds("a"), [Kind::Spawned, Kind::Started, Kind::Ready]);
    assert_eq!(life.world.machine.status(key, life.world.now.mono).status_text.as_deref(), Some("up"));
}

#[test]
fn more_time_that_is_asked_for_during_the_spawn_is_given() {
    let mut life = life();
    let spec =
        AgentSpec { ready: Some(Ready::Notify), ready_timeout: Some(5 * SECOND), ..AgentSpec::new(id("a"), ["work"]) };
    let key = life.spawn_that_tells(spec, vec![Note::Extend(20 * SECOND)]);
    life.pass(19 * SECOND);
    assert_eq!(life.state(key), State::Starting);
    life.pass(SECOND);
    assert_eq!((life.state(key), life.cause(key)), (State::Failed, Cause::Ready));
}

#[test]
fn who_gives_itself_up_during_the_spawn_has_failed_when_it_is_over() {
    let mut life = life();
    let spec = AgentSpec { ready: Some(Ready::Notify), ..AgentSpec::new(id("a"), ["work"]) };
    let key = life.spawn_that_tells(spec, vec![Note::Ready, Note::Trigger]);
    life.flush();
    assert_eq!((life.state(key), life.cause(key)), (State::Failed, Cause::Watchdog));
}

#[test]
fn a_heartbeat_is_expected_from_readiness_on_and_a_missed_one_is_a_failure() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| {
        notify(spec);
        spec.ready_timeout = Some(60 * SECOND);
        beating(spec);
    });
    life.pass(30 * SECOND);
    life.says(key, &[Note::Ready]);
    for _ in 0..3 {
        life.pass(4 * SECOND);
        life.says(key, &[Note::Beat]);
    }
    assert_eq!(life.state(key), State::Running);
    life.pass(5 * SECOND);
    assert_eq!((life.state(key), life.cause(key)), (State::Failed, Cause::Watchdog));
}

#[test]
fn a_heartbeat_can_be_asked_for_changed_and_called_off_by_the_agent_itself() {
    let mut life = life();
    let key = life.spawn("a", None, |_| {});
    life.says(key, &[Note::Period(2 * SECOND)]);
    life.pass(SECOND);
    life.says(key, &[Note::Period(Duration::from_millis(1))]);
    life.says(key, &[Note::Period(Duration::ZERO)]);
    life.pass(1000 * SECOND);
    assert_eq!(life.state(key), State::Running, "a hasty one is not taken, and none was asked for");
    life.says(key, &[Note::Trigger]);
    assert_eq!((life.state(key), life.cause(key)), (State::Failed, Cause::Watchdog));
}

#[test]
fn the_clocks_of_a_paused_agent_stand_still() {
    let mut life = life();
    let (starting, beating) = (life.spawn("a", None, notify), life.spawn("b", None, beating));
    life.pass(4 * SECOND);
    life.ask(Request::Pause(Target::All));
    life.pass(1000 * SECOND);
    assert_eq!((life.state(starting), life.state(beating)), (State::Paused, State::Paused));
    life.ask(Request::Resume(Target::All));
    life.pass(Duration::from_millis(999));
    assert_eq!((life.state(starting), life.state(beating)), (State::Starting, State::Running));
    life.pass(Duration::from_millis(1));
    assert_eq!((life.cause(starting), life.cause(beating)), (Cause::Ready, Cause::Watchdog));
}

#[test]
fn nobody_is_held_to_a_time_in_which_the_supervisor_stood_still() {
    let mut life = life();
    let (starting, beating) = (life.spawn("a", None, notify), life.spawn("b", None, beating));
    let paused = life.spawn("c", None, notify);
    life.ask(Request::Pause(Target::Ids(vec![id("c")])));
    life.pass(4 * SECOND);
    let since = life.world.now.mono;
    life.world.pass(1000 * SECOND);
    let effects = life.world.step(Input::StoodStill(since));
    life.note(effects);
    life.pass(Duration::from_millis(999));
    assert_eq!((life.state(starting), life.state(beating)), (State::Starting, State::Running));
    life.pass(Duration::from_millis(1));
    assert_eq!((life.cause(starting), life.cause(beating)), (Cause::Ready, Cause::Watchdog));
    assert_eq!(life.state(paused), State::Paused, "its own clock still stands");
}

#[test]
fn what_was_told_before_a_pause_counts_when_it_is_read_during_it() {
    let mut life = life();
    let (starting, beating) = (life.spawn("a", None, notify), life.spawn("b", None, beating));
    life.pass(4 * SECOND);
    for (key, note) in [(starting, Note::Ready), (beating, Note::Beat)] {
        let pid = life.main_of(key);
        life.world.tell_of(pid, vec![note]);
    }
    let (_, effects) = life.world.ask(1, None, Request::Pause(Target::All));
    life.note(effects);
    life.flush();
    life.pass(1000 * SECOND);
    life.ask(Request::Resume(Target::All));
    life.pass(4 * SECOND);
    assert_eq!((life.state(starting), life.state(beating)), (State::Running, State::Running));
}

#[test]
fn what_goes_on_without_its_main_process_is_held_to_its_times_by_the_next_supervisor_too() {
    let mut life = life();
    let waits = |spec: &mut AgentSpec| spec.on_main_exit = OnMainExit::Wait;
    let starting = life.spawn("a", None, |spec| {
        waits(spec);
        notify(spec);
    });
    let lasting = life.spawn("b", None, |spec| {
        waits(spec);
        spec.run_timeout = Some(5 * SECOND);
    });
    for key in [starting, lasting] {
        life.fork(key, Temper::Plain);
    }
    life.pass(4 * SECOND);
    life.die(&[starting, lasting]);
    assert_eq!((life.state(starting), life.state(lasting)), (State::Starting, State::Running));
    life.pass(SECOND);
    assert_eq!((life.state(lasting), life.cause(lasting)), (State::Failed, Cause::Timeout), "what is used is used");
    life.pass(4 * SECOND);
    assert_eq!((life.state(starting), life.cause(starting)), (State::Failed, Cause::Ready));
}

#[test]
fn what_says_stopping_needs_no_heartbeat_and_has_its_grace() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| {
        beating(spec);
        spec.grace = 30 * SECOND;
    });
    life.says(key, &[Note::Stopping]);
    assert_eq!(life.state(key), State::Stopping);
    life.pass(29 * SECOND);
    life.says(key, &[Note::Extend(10 * SECOND)]);
    life.pass(9 * SECOND);
    assert_eq!(life.kinds("a"), [Kind::Spawned, Kind::Started]);
    life.exit(key, 0);
    assert_eq!(life.state(key), State::Completed, "it has ended as it said");
    let key = life.spawn("b", None, |spec| spec.grace = 30 * SECOND);
    life.says(key, &[Note::Stopping]);
    life.pass(30 * SECOND);
    assert_eq!((life.state(key), life.cause(key)), (State::Failed, Cause::Timeout), "it has not");
}

#[test]
fn more_time_is_given_for_what_the_agent_is_about() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| {
        notify(spec);
        spec.run_timeout = Some(20 * SECOND);
    });
    life.pass(4 * SECOND);
    life.says(key, &[Note::Extend(SECOND), Note::Extend(8 * SECOND)]);
    life.pass(7 * SECOND);
    life.says(key, &[Note::Ready]);
    life.pass(8 * SECOND);
    life.says(key, &[Note::Extend(10 * SECOND)]);
    life.pass(9 * SECOND);
    assert_eq!(life.state(key), State::Running, "beyond its run_timeout, as it asked");
    life.pass(SECOND);
    assert_eq!((life.state(key), life.cause(key)), (State::Failed, Cause::Timeout));
}

#[test]
fn a_stop_can_be_put_off_where_nobody_said_how_long_it_may_take_and_not_for_ever() {
    let mut life = life();
    let (a, b) = (life.spawn("a", None, |_| {}), life.spawn("b", None, |_| {}));
    life.temper(a, Temper::Stubborn);
    life.temper(b, Temper::Stubborn);
    let own = life.terminate(&["a"], None);
    life.terminate(&["b"], Some(10 * SECOND));
    for key in [a, b] {
        life.says(key, &[Note::Extend(25 * SECOND)]);
    }
    life.pass(10 * SECOND);
    assert_eq!((life.state(a), life.state(b)), (State::Stopping, State::Terminated));
    let mut waited = 10;
    while life.state(a) == State::Stopping {
        life.says(a, &[Note::Extend(1000 * SECOND)]);
        life.pass(10 * SECOND);
        waited += 10;
        assert!(waited <= 3700, "it is put off by an hour at most");
    }
    assert!(waited > 3000 && life.receipt(own).is_some());
}

#[test]
fn a_restart_on_request_is_put_off_and_a_run_that_has_failed_is_not() {
    let mut life = life();
    let (a, b) = (life.spawn("a", None, |_| {}), life.spawn("b", None, beating));
    life.temper(a, Temper::Stubborn);
    life.temper(b, Temper::Stubborn);
    life.pass(5 * SECOND);
    life.ask(Request::Restart(id("a")));
    for key in [a, b] {
        life.says(key, &[Note::Extend(25 * SECOND)]);
    }
    life.pass(10 * SECOND);
    assert_eq!((life.run(a), life.state(a), life.state(b)), (1, State::Stopping, State::Failed));
    life.pass(15 * SECOND);
    assert_eq!((life.run(a), life.state(a)), (2, State::Running));
}
