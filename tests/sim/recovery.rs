//! The words of recovery, one life each: strategies, escalation, significance, turns, budgets, the order of an end.

use std::time::Duration;

use treeherd::machine::AgentKey;
use treeherd::model::config::HerdConfig;
use treeherd::model::event::{Event, Kind};
use treeherd::model::request::Request;
use treeherd::model::spec::{AgentSpec, OnMainExit, RestartPolicy, Strategy};
use treeherd::model::status::{Cause, Exit, State};

use super::clients::id;
use super::kernel::Temper;
use super::scenarios::{Life, SECOND, life, targets};

/// Makes an agent whose policy is to come back from failures.
fn comes_back(spec: &mut AgentSpec) {
    spec.restart.policy = RestartPolicy::OnFailure;
}

fn group(spec: &mut AgentSpec) {
    spec.command = Vec::new();
}

/// A group `p` with this strategy, and its children `a`, `b`, `c`, the last with `d` below it.
fn family(life: &mut Life, strategy: Strategy) -> [AgentKey; 4] {
    life.spawn("p", None, |spec| {
        group(spec);
        spec.children.strategy = strategy;
    });
    ["a", "b", "c"]
        .map(|name| (name, "p"))
        .into_iter()
        .chain([("d", "c")])
        .map(|(name, parent)| life.spawn(name, Some(parent), comes_back))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

fn runs(life: &Life, keys: &[AgentKey]) -> Vec<u32> {
    keys.iter().map(|key| life.run(*key)).collect()
}

fn states(life: &Life, keys: &[AgentKey]) -> Vec<State> {
    keys.iter().map(|key| life.state(*key)).collect()
}

fn last<'a>(life: &'a Life, name: &str, kind: Kind) -> &'a Event {
    life.told.iter().rev().find(|event| event.kind == kind && event.agent == Some(id(name))).unwrap()
}

fn deaf(life: &mut Life, key: AgentKey) {
    let main = life.main_of(key);
    life.world.kernel.processes.get_mut(&main).unwrap().temper = Temper::Stubborn;
}

/// The order in which agents began or ended.
fn order(life: &Life, kind: Kind, from: usize) -> Vec<String> {
    let told = life.told[from..].iter().filter(|event| event.kind == kind);
    told.filter_map(|event| event.agent.as_ref().map(ToString::to_string)).collect()
}

#[test]
fn one_for_one_restarts_the_failed_child_alone() {
    let mut life = life();
    let all = family(&mut life, Strategy::OneForOne);
    life.exit(all[2], 1);
    life.pass(SECOND);
    assert_eq!(runs(&life, &all), [1, 1, 2, 1], "what is below it goes on");
}

#[test]
fn one_for_all_restarts_every_child_with_all_below_it_in_order() {
    let mut life = life();
    let all = family(&mut life, Strategy::OneForAll);
    let from = life.told.len();
    life.exit(all[1], 1);
    assert_eq!(runs(&life, &all), [1, 1, 1, 1], "all wait for the delay of the one that failed");
    let ended = order(&life, Kind::Terminated, from);
    assert_eq!(ended, ["a", "d", "c"], "branches at once, children before parents");
    life.pass(SECOND);
    assert_eq!(runs(&life, &all), [2, 2, 2, 2]);
    assert_eq!(order(&life, Kind::Started, from), ["a", "b", "c", "d"]);
    let exit = last(&life, "a", Kind::Terminated).exit.clone().unwrap();
    assert_eq!((exit.cause, exit.by.as_deref()), (Cause::Terminated, Some("strategy one-for-all of p")));
}

#[test]
fn rest_for_one_restarts_the_failed_child_and_those_made_after_it() {
    let mut life = life();
    let all = family(&mut life, Strategy::RestForOne);
    life.exit(all[1], 1);
    life.pass(SECOND);
    assert_eq!(runs(&life, &all), [1, 2, 2, 2]);
}

#[test]
fn a_child_that_ends_for_good_starts_nobody_anew() {
    let mut life = life();
    let all = family(&mut life, Strategy::OneForAll);
    life.exit(all[1], 0);
    life.pass(10 * SECOND);
    assert_eq!(runs(&life, &all), [1, 1, 1, 1]);
}

#[test]
fn what_a_strategy_has_ended_comes_back_whatever_its_own_policy_is() {
    let mut life = life();
    let all = family(&mut life, Strategy::OneForAll);
    let never = life.spawn("n", Some("p"), |_| {});
    life.exit(all[0], 1);
    life.pass(SECOND);
    assert_eq!((life.run(never), life.state(never)), (2, State::Running));
    life.exit(never, 1);
    life.pass(10 * SECOND);
    assert_eq!(life.state(never), State::Failed, "on its own it ends for good");
}

#[test]
fn no_strategy_brings_back_what_was_stopped_or_has_ended() {
    let mut life = life();
    let all = family(&mut life, Strategy::OneForAll);
    life.terminate(&["a"], None);
    life.exit(all[1], 0);
    life.exit(all[2], 1);
    life.pass(SECOND);
    assert_eq!(states(&life, &all[..3]), [State::Terminated, State::Completed, State::Running]);
    assert_eq!(runs(&life, &all), [1, 1, 2, 2]);
}

#[test]
fn a_member_that_is_stopped_meanwhile_keeps_nobody_waiting() {
    let mut life = life();
    let all = family(&mut life, Strategy::OneForAll);
    deaf(&mut life, all[0]);
    life.exit(all[1], 1);
    life.pass(5 * SECOND);
    assert_eq!(states(&life, &all), [State::Stopping, State::Starting, State::Starting, State::Starting]);
    life.terminate(&["a"], Some(Duration::ZERO));
    assert_eq!(states(&life, &all), [State::Terminated, State::Running, State::Running, State::Running]);
}

#[test]
fn nobody_waits_for_a_sibling_that_was_being_stopped() {
    let mut life = life();
    let all = family(&mut life, Strategy::OneForAll);
    deaf(&mut life, all[0]);
    life.terminate(&["a"], Some(60 * SECOND));
    life.exit(all[1], 1);
    life.pass(SECOND);
    assert_eq!(states(&life, &all), [State::Stopping, State::Running, State::Running, State::Running]);
    assert_eq!(runs(&life, &all), [1, 2, 2, 2]);
}

#[test]
fn a_deaf_sibling_is_killed_when_the_grace_is_over_and_all_wait_for_it() {
    let mut life = life();
    let all = family(&mut life, Strategy::OneForAll);
    deaf(&mut life, all[0]);
    life.exit(all[1], 1);
    life.pass(9 * SECOND);
    assert_eq!(runs(&life, &all), [1, 1, 1, 1]);
    life.pass(SECOND);
    assert_eq!(runs(&life, &all), [2, 2, 2, 2]);
    let exit = last(&life, "a", Kind::Terminated).exit.clone().unwrap();
    assert!(exit.overdue && life.kinds("a").contains(&Kind::Overdue), "that the kill was needed is in its record");
    assert!(!last(&life, "c", Kind::Terminated).exit.as_ref().unwrap().overdue);
}

#[test]
fn one_restart_too_many_of_its_children_fails_a_parent_and_all_start_anew() {
    let mut life = life();
    let parent = life.spawn("p", None, |spec| {
        comes_back(spec);
        spec.children.intensity = Some(1);
    });
    let (a, b) = (life.spawn("a", Some("p"), comes_back), life.spawn("b", Some("p"), |_| {}));
    life.exit(a, 1);
    life.pass(SECOND);
    assert_eq!(runs(&life, &[parent, a, b]), [1, 2, 1], "it puts up with one");
    let from = life.told.len();
    life.exit(a, 1);
    let exit = last(&life, "p", Kind::Failed).exit.clone().unwrap();
    assert_eq!(exit.cause, Cause::Child);
    assert!(exit.error.unwrap().contains("more than 1 restarts within 10m: the last was a, exit status 1"));
    assert_eq!(order(&life, Kind::Escalated, from), ["p"]);
    assert_eq!(life.state(parent), State::Backoff);
    assert_eq!(last(&life, "b", Kind::Terminated).exit.as_ref().unwrap().by.as_deref(), Some("the failure of p"));
    life.pass(SECOND);
    assert_eq!(runs(&life, &[parent, a, b]), [2, 3, 2]);
    assert_eq!(order(&life, Kind::Started, from), ["p", "a", "b"]);
    life.exit(a, 1);
    life.pass(SECOND);
    assert_eq!(runs(&life, &[parent, a, b]), [2, 4, 2], "its count has begun anew, too");
}

#[test]
fn restarts_that_are_a_period_apart_escalate_nothing() {
    let mut life = life();
    let parent = life.spawn("p", None, |spec| {
        (spec.children.intensity, spec.children.period) = (Some(1), 60 * SECOND);
    });
    let a = life.spawn("a", Some("p"), |spec| spec.restart.policy = RestartPolicy::Always);
    for _ in 0..5 {
        life.exit(a, 0);
        life.pass(60 * SECOND);
    }
    assert_eq!((life.state(parent), life.run(a)), (State::Running, 6));
}

#[test]
fn a_group_fails_for_its_children_and_starts_them_anew_by_its_policy() {
    let mut life = life();
    let parent = life.spawn("p", None, |spec| {
        group(spec);
        comes_back(spec);
        spec.children.intensity = Some(0);
    });
    let (a, b) = (life.spawn("a", Some("p"), comes_back), life.spawn("b", Some("p"), |_| {}));
    life.exit(a, 1);
    assert_eq!((life.state(parent), life.state(b)), (State::Backoff, State::Starting));
    assert_eq!(last(&life, "p", Kind::Failed).exit.as_ref().unwrap().cause, Cause::Child);
    life.pass(SECOND);
    assert_eq!((life.state(parent), runs(&life, &[a, b])), (State::Group, vec![2, 2]));
}

#[test]
fn a_parent_that_does_not_come_back_fails_for_good_and_its_children_end_with_it() {
    for is_group in [false, true] {
        let mut life = life();
        let parent = life.spawn("p", None, |spec| {
            if is_group {
                group(spec);
            }
            (spec.children.intensity, spec.on_main_exit) = (Some(0), OnMainExit::Wait);
        });
        let (a, b) = (life.spawn("a", Some("p"), comes_back), life.spawn("b", Some("p"), comes_back));
        life.exit(a, 1);
        assert_eq!(states(&life, &[parent, a, b]), [State::Failed, State::Terminated, State::Terminated]);
        assert_eq!(life.kinds("p").iter().filter(|kind| kind.is_terminal()).count(), 1, "told once");
        life.pass(30 * SECOND);
        assert_eq!(life.state(b), State::Terminated);
    }
}

#[test]
fn who_was_to_start_anew_and_ends_with_its_parent_waits_for_nobody() {
    let mut life = life();
    let top = life.spawn("top", None, |spec| {
        spec.on_main_exit = OnMainExit::Wait;
        spec.children.intensity = Some(0);
    });
    let group = life.spawn("group", Some("top"), |spec| {
        group(spec);
        comes_back(spec);
        spec.children.intensity = Some(0);
    });
    let (a, b) = (life.spawn("a", Some("group"), comes_back), life.spawn("b", Some("group"), comes_back));
    deaf(&mut life, b);
    life.exit(top, 0);
    life.exit(a, 1);
    assert_eq!(states(&life, &[group, b]), [State::Stopping; 2], "nobody starts anew: the top has failed for good");
    life.pass(20 * SECOND);
    assert!(states(&life, &[top, group, a, b]).iter().all(|state| state.has_ended()));
}

#[test]
fn a_failure_climbs_as_far_as_nobody_puts_up_with_it() {
    let mut life = life();
    let strict = |spec: &mut AgentSpec| {
        comes_back(spec);
        spec.children.intensity = Some(0);
    };
    let top = life.spawn("top", None, |spec| {
        strict(spec);
        spec.restart.intensity = 1;
    });
    let other = life.spawn("other", Some("top"), |_| {});
    let middle = life.spawn("middle", Some("top"), |spec| {
        group(spec);
        strict(spec);
    });
    let leaf = life.spawn("leaf", Some("middle"), comes_back);
    let from = life.told.len();
    life.exit(leaf, 1);
    assert_eq!(order(&life, Kind::Escalated, from), ["middle", "top"]);
    life.pass(SECOND);
    assert_eq!(runs(&life, &[top, other, leaf]), [2, 2, 2]);
    assert_eq!(states(&life, &[top, middle, leaf]), [State::Running, State::Group, State::Running]);
    life.exit(leaf, 1);
    assert_eq!(life.state(top), State::Failed, "a root agent has nobody above: it is given up, the herd goes on");
    assert!(life.kinds("top").contains(&Kind::GaveUp));
}

#[test]
fn an_escalation_between_two_runs_has_the_children_wait_for_the_next() {
    let mut life = life();
    let parent = life.spawn("p", None, |spec| {
        comes_back(spec);
        spec.children.intensity = Some(0);
    });
    let (a, b) = (life.spawn("a", Some("p"), comes_back), life.spawn("b", Some("p"), |_| {}));
    life.exit(parent, 1);
    assert_eq!(states(&life, &[parent, a, b]), [State::Backoff, State::Running, State::Running]);
    life.exit(a, 1);
    assert_eq!(states(&life, &[parent, a, b]), [State::Backoff, State::Starting, State::Starting]);
    life.pass(SECOND);
    assert_eq!(runs(&life, &[parent, a, b]), [2, 2, 2]);
    assert_eq!(life.kinds("p").iter().filter(|kind| **kind == Kind::Failed).count(), 1);
}

#[test]
fn a_parent_that_only_waits_for_its_children_fails_for_good() {
    let mut life = life();
    let parent = life.spawn("p", None, |spec| {
        (spec.children.intensity, spec.on_main_exit) = (Some(0), OnMainExit::Wait);
    });
    let (a, b) = (life.spawn("a", Some("p"), comes_back), life.spawn("b", Some("p"), |_| {}));
    life.exit(parent, 0);
    assert_eq!(life.state(parent), State::Running);
    life.exit(a, 1);
    assert_eq!(states(&life, &[parent, a, b]), [State::Failed, State::Terminated, State::Terminated]);
}

#[test]
fn a_significant_child_that_fails_for_good_fails_its_parent() {
    let mut life = life();
    let parent = life.spawn("p", None, |_| {});
    let (a, b) = (life.spawn("a", Some("p"), |spec| spec.significant = true), life.spawn("b", Some("p"), |_| {}));
    life.exit(a, 3);
    assert_eq!(states(&life, &[parent, a, b]), [State::Failed, State::Failed, State::Terminated]);
    let exit = last(&life, "p", Kind::Failed).exit.clone().unwrap();
    assert_eq!(exit.cause, Cause::Child);
    assert!(exit.error.unwrap().contains("significant child a has failed: exit status 3"));
}

#[test]
fn a_significant_child_starts_anew_with_its_parent() {
    let mut life = life();
    let parent = life.spawn("p", None, comes_back);
    let a = life.spawn("a", Some("p"), |spec| spec.significant = true);
    life.exit(a, 3);
    assert_eq!(states(&life, &[parent, a]), [State::Backoff, State::Starting]);
    life.pass(SECOND);
    assert_eq!((runs(&life, &[parent, a]), states(&life, &[parent, a])), (vec![2, 2], vec![State::Running; 2]));
}

#[test]
fn a_failure_that_is_found_during_a_start_is_told_with_it_and_once() {
    let mut life = life();
    let parent = life.spawn("p", None, |_| {});
    let a = life.spawn("a", Some("p"), |spec| spec.significant = true);
    let (to, effects) = life.world.ask(1, None, Request::Restart(id("p")));
    life.note(effects);
    while !life.world.observer.is_spawning(parent) {
        let first = life.world.moves()[0];
        let effects = life.world.make(first);
        life.note(effects);
    }
    let from = life.told.len();
    life.world.kernel.exit(life.main_of(a), Exit::Status(3), false);
    life.world.kernel.update();
    life.tell_notices();
    life.flush();
    let told: Vec<_> = life.told[from..].iter().filter(|it| it.agent == Some(id("p"))).map(|it| it.kind).collect();
    assert_eq!(told, [Kind::Escalated, Kind::Started, Kind::Failed]);
    assert!(life.replies.iter().any(|(it, _)| *it == to), "it was started");
    life.pass(25 * 3600 * SECOND);
    assert!(!is_there(&life, "p"));
}

#[test]
fn a_significant_child_that_completes_ends_its_parent_in_order() {
    for is_group in [false, true] {
        let mut life = life();
        let parent = life.spawn("p", None, |spec| {
            if is_group {
                group(spec);
            }
            spec.restart.policy = RestartPolicy::Always;
        });
        let (a, b) = (life.spawn("a", Some("p"), |spec| spec.significant = true), life.spawn("b", Some("p"), |_| {}));
        life.exit(a, 0);
        life.pass(10 * SECOND);
        assert_eq!(states(&life, &[parent, a, b]), [State::Terminated, State::Completed, State::Terminated]);
        let exit = last(&life, "p", Kind::Terminated).exit.clone().unwrap();
        assert_eq!(exit.by.as_deref(), Some("the end of its significant child a"));
    }
}

#[test]
fn a_significant_child_that_was_stopped_ends_nobody() {
    let mut life = life();
    let parent = life.spawn("p", None, |_| {});
    life.spawn("a", Some("p"), |spec| spec.significant = true);
    life.terminate(&["a"], None);
    assert_eq!(life.state(parent), State::Running);
}

#[test]
fn a_child_that_is_given_up_costs_its_parent_nothing() {
    let mut life = life();
    let parent = life.spawn("p", None, |spec| spec.children.strategy = Strategy::OneForAll);
    let a = life.spawn("a", Some("p"), |spec| {
        comes_back(spec);
        spec.restart.intensity = 0;
    });
    let b = life.spawn("b", Some("p"), |_| {});
    life.exit(a, 1);
    assert_eq!(states(&life, &[parent, a, b]), [State::Running, State::Failed, State::Running]);
}

fn storm(burst: u32, rate: &str) -> Life {
    let mut config = HerdConfig::default();
    (config.restart_burst, config.restart_rate) = (burst, rate.parse().unwrap());
    Life::new(config)
}

#[test]
fn restarts_beyond_the_burst_wait_for_their_turn_by_priority_and_then_in_line() {
    let mut life = storm(1, "1/s");
    let mut keys = Vec::new();
    for (name, priority) in [("a", 5), ("b", 1), ("c", 5), ("d", 9)] {
        keys.push(life.spawn(name, None, |spec| {
            comes_back(spec);
            spec.restart.delay = Duration::ZERO;
            spec.priority = priority.try_into().unwrap();
        }));
    }
    let from = life.told.len();
    for key in &keys {
        life.exit(*key, 1);
    }
    assert_eq!(runs(&life, &keys), [2, 1, 1, 1], "one is at once");
    assert_eq!(life.told[from..].iter().filter(|event| event.kind == Kind::Storm).count(), 1);
    assert_eq!(order(&life, Kind::Delayed, from), ["b", "c", "d"], "who waits is told once");
    assert_eq!(last(&life, "c", Kind::Delayed).delay_ms, Some(1000), "before those that are less urgent");
    let status = life.world.machine.status(keys[1], life.world.now.mono);
    assert!(status.waits.unwrap().contains("its turn"));
    for expected in [[2, 1, 1, 2], [2, 1, 2, 2], [2, 2, 2, 2]] {
        life.pass(SECOND);
        assert_eq!(runs(&life, &keys), expected);
    }
    assert!(last_of_herd(&life, Kind::Calm).message.contains("3 had to"));
    assert_eq!(life.world.machine.next_deadline(), None, "a calm herd waits for nothing");
}

fn last_of_herd(life: &Life, kind: Kind) -> &Event {
    life.told.iter().rev().find(|event| event.kind == kind && event.agent.is_none()).unwrap()
}

#[test]
fn what_somebody_asks_for_waits_for_no_turn() {
    let mut life = storm(1, "1/h");
    let eager = |spec: &mut AgentSpec| {
        comes_back(spec);
        spec.restart.delay = Duration::ZERO;
    };
    let (a, b) = (life.spawn("a", None, eager), life.spawn("b", None, eager));
    life.exit(a, 1);
    life.exit(b, 1);
    assert_eq!(runs(&life, &[a, b]), [2, 1]);
    life.ask(Request::Restart(id("a")));
    let c = life.spawn("c", None, |_| {});
    assert_eq!((runs(&life, &[a, b]), life.state(c)), (vec![3, 1], State::Running));
}

#[test]
fn what_somebody_asks_for_waits_for_no_turn_though_the_last_words_are_yet_to_be_read() {
    let mut life = storm(1, "1/h");
    let a = life.spawn("a", None, |spec| {
        comes_back(spec);
        spec.restart.delay = Duration::ZERO;
        spec.rules = vec!["fail:fatal".parse().unwrap()];
    });
    life.exit(a, 1);
    assert_eq!(life.run(a), 2, "the only turn of the hour is taken");
    let main = life.main_of(a);
    life.world.kernel.exit(main, Exit::Status(0), false);
    life.world.kernel.update();
    life.tell_notices();
    assert_eq!((life.state(a), life.kinds("a").last()), (State::Running, Some(&Kind::Started)), "it is being read");
    life.ask(Request::Restart(id("a")));
    assert_eq!((life.run(a), life.state(a)), (3, State::Running));
}

#[test]
fn whoever_is_paused_at_its_turn_gives_it_up() {
    let mut life = storm(1, "1/s");
    let eager = |spec: &mut AgentSpec| {
        comes_back(spec);
        spec.restart.delay = Duration::ZERO;
    };
    let keys = ["a", "b", "c"].map(|name| life.spawn(name, None, eager));
    for key in keys {
        life.exit(key, 1);
    }
    life.ask(Request::Pause(targets(&["b"])));
    life.pass(SECOND);
    assert_eq!(runs(&life, &keys), [2, 1, 2], "the next one in line has it");
    life.ask(Request::Resume(targets(&["b"])));
    life.pass(SECOND);
    assert_eq!(runs(&life, &keys), [2, 2, 2]);
}

fn is_there(life: &Life, name: &str) -> bool {
    life.world.machine.key_of(&id(name)).is_some()
}

fn ask_spawn(life: &mut Life, name: &str, parent: &str, budget: Option<u32>) {
    let spec = AgentSpec { parent: Some(id(parent)), spawn_budget: budget, ..AgentSpec::new(id(name), ["work"]) };
    life.ask(Request::Spawn(Box::new(spec)));
}

#[test]
fn a_spawn_budget_is_for_life_and_for_the_whole_subtree() {
    let mut life = life();
    life.spawn("p", None, |spec| spec.spawn_budget = Some(3));
    let a = life.spawn("a", Some("p"), comes_back);
    life.spawn("b", Some("a"), |_| {});
    life.exit(a, 1);
    life.pass(SECOND);
    assert_eq!(life.run(a), 2, "restarts are not counted");
    life.terminate(&["b"], None);
    life.spawn("c", Some("p"), |_| {});
    ask_spawn(&mut life, "d", "a", None);
    assert!(!is_there(&life, "d"), "three were spawned below p, dead or alive");
}

#[test]
fn a_spawn_budget_below_another_one_is_not_wider() {
    let mut life = life();
    life.spawn("p", None, |spec| spec.spawn_budget = Some(3));
    ask_spawn(&mut life, "a", "p", Some(4));
    ask_spawn(&mut life, "b", "p", Some(3));
    assert!(!is_there(&life, "a") && is_there(&life, "b"));
}

#[test]
fn a_stop_ends_children_before_their_parents() {
    let mut life = life();
    let keys = [("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("b"))]
        .map(|(name, parent)| life.spawn(name, parent, |_| {}));
    let from = life.told.len();
    life.terminate(&["a"], Some(9 * SECOND));
    assert_eq!(order(&life, Kind::Terminated, from), ["c", "d", "b", "a"]);
    assert_eq!(states(&life, &keys), [State::Terminated; 4]);
}

#[test]
fn a_deaf_child_costs_its_parents_half_of_the_grace_and_not_their_signal() {
    let mut life = life();
    let (a, b) = (life.spawn("a", None, |_| {}), life.spawn("b", Some("a"), |_| {}));
    deaf(&mut life, b);
    let to = life.terminate(&["a"], Some(10 * SECOND));
    life.pass(Duration::from_millis(4999));
    assert!(life.world.kernel.processes.values().any(|process| process.agent == a), "it waits for its child");
    life.pass(Duration::from_millis(1));
    assert!(!life.world.kernel.processes.values().any(|process| process.agent == a), "it has its signal at half");
    assert_eq!((life.state(a), life.state(b)), (State::Stopping, State::Stopping));
    life.pass(5 * SECOND);
    let receipt = life.receipt(to).unwrap();
    assert_eq!((receipt.agents[0].signals["SIGTERM"], receipt.agents[1].signals["SIGKILL"]), (1, 1));
    assert_eq!((life.kinds("a").contains(&Kind::Overdue), life.kinds("b").contains(&Kind::Overdue)), (false, true));
    assert!(last(&life, "b", Kind::Terminated).message.contains("killed since it did not stop in time"));
}

#[test]
fn a_kill_that_was_asked_for_is_not_overdue() {
    let mut life = life();
    let a = life.spawn("a", None, |_| {});
    deaf(&mut life, a);
    life.terminate(&["a"], Some(Duration::ZERO));
    assert!(!life.kinds("a").contains(&Kind::Overdue));
    assert!(!last(&life, "a", Kind::Terminated).exit.as_ref().unwrap().overdue);
}
