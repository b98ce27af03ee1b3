//! Runs that do nothing, one life each.

use std::time::Duration;

use treeherd::machine::AgentKey;
use treeherd::model::event::Kind;
use treeherd::model::id::Run;
use treeherd::model::request::{Request, Target};
use treeherd::model::rule::Action;
use treeherd::model::spec::{AgentSpec, RestartPolicy};
use treeherd::model::stall::StallRule;
use treeherd::model::status::{Cause, State};

use super::scenarios::{Life, SECOND, life};

fn told(spec: &mut AgentSpec) {
    spec.stall = Some(StallRule { after: 60 * SECOND, action: Action::Notice });
}

fn fatal(spec: &mut AgentSpec) {
    spec.stall = Some(StallRule { after: 60 * SECOND, action: Action::Fail });
}

impl Life {
    /// Lets so many seconds pass, one by one.
    fn idle(&mut self, seconds: u32) {
        (0..seconds).for_each(|_| self.pass(SECOND));
    }

    fn works(&mut self, key: AgentKey, cpu: Duration, bytes: u64) {
        self.world.work(self.main_of(key), cpu, bytes);
    }

    /// For how long an agent was told to have done nothing, each time; none where it was told to stir.
    fn stalls(&self, name: &str) -> Vec<Option<u64>> {
        let about = self.told.iter().filter(|event| event.agent.as_ref().is_some_and(|id| id.as_str() == name));
        let stalls = about.filter(|event| matches!(event.kind, Kind::Stalled | Kind::Stirred));
        stalls.map(|event| event.quiet_ms.map(|ms| ms / 1000)).collect()
    }
}

#[test]
fn a_stall_is_told_at_half_and_at_all_of_its_time_and_then_no_more() {
    let mut life = life();
    let key = life.spawn("a", None, told);
    life.idle(29);
    assert_eq!(life.stalls("a"), []);
    life.idle(1);
    assert_eq!(life.stalls("a"), [Some(30)]);
    life.idle(30);
    assert_eq!(life.stalls("a"), [Some(30), Some(60)]);
    life.idle(1000);
    assert_eq!((life.stalls("a").len(), life.state(key)), (2, State::Running), "it is told, and nothing else");
}

#[test]
fn output_or_cpu_time_ends_a_stall_and_that_is_told_once() {
    let mut life = life();
    let key = life.spawn("a", None, told);
    life.idle(30);
    life.works(key, Duration::ZERO, 1);
    life.idle(16);
    assert_eq!(life.stalls("a"), [Some(30), None], "a byte of output");
    life.idle(30);
    life.works(key, Duration::from_millis(100), 0);
    life.idle(16);
    assert_eq!(life.stalls("a"), [Some(30), None, Some(30), None], "CPU time");
    life.works(key, Duration::from_millis(100), 0);
    life.idle(16);
    assert_eq!(life.stalls("a").len(), 4);
}

#[test]
fn a_thousandth_of_a_cpu_is_no_work_and_more_is() {
    let mut life = life();
    let (ticks, works) = (life.spawn("ticks", None, told), life.spawn("works", None, told));
    for _ in 0..120 {
        // The model's own tick comes on top: half a thousandth.
        life.world.kernel.work((ticks, Run(1)), Duration::from_micros(500), 0);
        life.works(works, Duration::from_micros(501), 0);
        life.pass(SECOND);
    }
    assert_eq!((life.stalls("ticks"), life.stalls("works")), (vec![Some(30), Some(60)], vec![]));
}

#[test]
fn a_stall_is_a_failure_only_if_the_rule_says_so_and_then_the_policy_decides() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| {
        fatal(spec);
        spec.restart.policy = RestartPolicy::OnFailure;
    });
    life.idle(59);
    assert_eq!(life.state(key), State::Running);
    life.idle(1);
    let exit = life.world.machine.status(key, life.world.now.mono).exit.unwrap();
    assert_eq!((life.state(key), exit.cause), (State::Backoff, Cause::Stall));
    assert_eq!(exit.error.as_deref(), Some("no output and no CPU for 1m"));
    life.idle(50);
    assert_eq!((life.run(key), life.state(key)), (2, State::Running), "its time began anew");
    let failed = life.told.iter().position(|event| event.kind == Kind::Failed).unwrap();
    assert_eq!(life.told[failed - 1].kind, Kind::Stalled, "first the stall is told, then the failure");
}

#[test]
fn a_parent_that_waits_for_a_live_child_is_not_stalled() {
    let mut life = life();
    let parent = life.spawn("parent", None, fatal);
    life.idle(45);
    let child = life.spawn("child", Some("parent"), |_| {});
    let grandchild = life.spawn("grandchild", Some("child"), |_| {});
    assert_eq!(life.stalls("parent"), [Some(30), None], "it was told, and now it waits");
    life.idle(1000);
    life.exit(child, 0);
    life.idle(59);
    assert_eq!(life.state(parent), State::Running, "its time has begun when the last one below it ended");
    assert_eq!(life.state(grandchild), State::Terminated);
    life.idle(1);
    assert_eq!(life.state(parent), State::Failed);
}

#[test]
fn a_child_that_stalls_is_found_though_its_parent_works_and_its_siblings_do() {
    let mut life = life();
    let parent = life.spawn("parent", None, told);
    let (idle, busy) = (life.spawn("idle", Some("parent"), fatal), life.spawn("busy", Some("parent"), fatal));
    for _ in 0..60 {
        life.works(parent, Duration::from_millis(500), 9);
        life.works(busy, Duration::from_millis(500), 9);
        life.pass(SECOND);
    }
    assert_eq!(
        (life.state(idle), life.state(busy), life.state(parent)),
        (State::Failed, State::Running, State::Running)
    );
}

#[test]
fn the_time_of_a_stall_stands_still_in_a_pause() {
    let mut life = life();
    let key = life.spawn("a", None, fatal);
    life.idle(40);
    life.ask(Request::Pause(Target::All));
    life.idle(1000);
    assert_eq!(life.stalls("a"), [Some(30)]);
    life.ask(Request::Resume(Target::All));
    life.idle(19);
    assert_eq!(life.state(key), State::Running);
    life.idle(1);
    assert_eq!(life.state(key), State::Failed);
}

#[test]
fn without_a_rule_nobody_is_looked_at() {
    let mut life = life();
    life.spawn("a", None, |_| {});
    let parent = life.spawn("parent", None, told);
    life.spawn("child", Some("parent"), |_| {});
    life.idle(16);
    assert_eq!(life.world.machine.next_deadline(), None, "nor whoever waits for an agent below it");
    life.exit(parent, 0);
}

#[test]
fn who_is_being_ended_is_not_told_to_be_stalled() {
    let mut life = life();
    let key = life.spawn("a", None, |spec| {
        told(spec);
        spec.grace = 3600 * SECOND;
    });
    life.world.kernel.processes.values_mut().for_each(|it| it.temper = super::kernel::Temper::Stubborn);
    life.terminate(&["a"], None);
    life.idle(300);
    assert_eq!((life.state(key), life.stalls("a")), (State::Stopping, vec![]));
}

#[test]
fn what_will_follow_from_a_stall_is_explained() {
    let mut life = life();
    let key = life.spawn("a", None, fatal);
    life.idle(35);
    let told = life.world.machine.explain(key, life.world.now.mono);
    assert!(told.because.iter().any(|why| why == "for 30s it has written no output and used no CPU"), "{told:?}");
    let next = told.next.iter().find(|next| next.what.contains("it has failed")).unwrap();
    assert_eq!(next.in_ms, Some(25_000), "{told:?}");
    life.spawn("child", Some("a"), |_| {});
    let told = life.world.machine.explain(key, life.world.now.mono);
    assert!(told.because.iter().any(|why| why.contains("it is not stalled")), "{told:?}");
}
