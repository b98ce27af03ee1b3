//! The words of the rules on pressure, one life each.

use std::time::Duration;

use treeherd::machine::{AgentKey, Effect, Input, PressKey};
use treeherd::model::config::HerdConfig;
use treeherd::model::event::Kind;
use treeherd::model::request::{Request, Target};
use treeherd::model::spec::RestartPolicy;
use treeherd::model::status::{Cause, Paused, State};

use super::clients::id;
use super::scenarios::Life;

const WINDOW: Duration = Duration::from_secs(2);

/// A herd with a rule, and agents of these priorities.
fn herd(rule: &str, priorities: &[u8]) -> (Life, Vec<AgentKey>) {
    let config = HerdConfig { pressure: vec![rule.parse().unwrap()], ..HerdConfig::default() };
    let mut life = Life::new(config);
    let names = ["a", "b", "c", "d"];
    let keys = names
        .iter()
        .zip(priorities)
        .map(|(name, priority)| life.spawn(name, None, |spec| spec.priority = (*priority).try_into().unwrap()));
    let keys = keys.collect();
    (life, keys)
}

fn press(life: &mut Life, place: Option<AgentKey>) {
    let effects = life.world.step(Input::Pressed(PressKey { place, rule: 0 }));
    life.note(effects);
    life.flush();
}

fn only(name: &str) -> Target {
    Target::Ids(vec![id(name)])
}

fn paused(life: &Life, keys: &[AgentKey]) -> Vec<bool> {
    keys.iter().map(|key| life.paused(*key) == Paused::Own).collect()
}

fn cause(life: &Life, key: AgentKey) -> Option<Cause> {
    life.world.machine.status(key, life.world.now.mono).exit.map(|exit| exit.cause)
}

#[test]
fn the_lowest_is_paused_first_one_is_left_and_all_are_resumed_in_reverse() {
    let (mut life, keys) = herd("memory 10% 2s warn,pause", &[5, 1, 9]);
    press(&mut life, None);
    assert_eq!(paused(&life, &keys), [false; 3], "first it is told");
    press(&mut life, None);
    assert_eq!(paused(&life, &keys), [false, true, false], "the lowest");
    for _ in 0..3 {
        press(&mut life, None);
        assert_eq!(paused(&life, &keys), [true, true, false], "then the next, and never the last that runs");
    }
    let waits = life.world.machine.status(keys[0], life.world.now.mono).waits;
    assert_eq!(waits.as_deref(), Some("the memory pressure in the herd to be gone"));
    life.pass(3 * WINDOW - Duration::from_millis(1));
    assert_eq!(paused(&life, &keys), [true, true, false], "it may come back");
    life.pass(Duration::from_millis(1));
    assert_eq!(paused(&life, &keys), [false, true, false], "the last one paused is the first one resumed");
    life.pass(WINDOW);
    assert_eq!(paused(&life, &keys), [false; 3]);
    life.pass(WINDOW);
    assert_eq!(life.world.machine.next_deadline(), None, "it is over, and nothing waits for time");
    let of_herd = life.told.iter().filter(|event| event.agent.is_none()).map(|event| event.kind);
    assert_eq!(of_herd.collect::<Vec<_>>(), [Kind::PressureRose, Kind::PressureGone]);
    assert_eq!(
        life.kinds("b")[2..],
        [Kind::PressurePauses, Kind::Paused, Kind::PressureResumes, Kind::Resumed],
        "every step is told"
    );
}

#[test]
fn who_is_paused_for_memory_gives_it_back_until_there_is_no_more_or_it_is_resumed() {
    let rounds = |rule: &str| {
        let (mut life, keys) = herd(rule, &[1, 9]);
        press(&mut life, None);
        assert_eq!(paused(&life, &keys), [true, false]);
        let asks = |life: &mut Life| life.world.step(Input::Reclaimed(keys[0])) == [Effect::Reclaim(keys[0])];
        let while_paused = [asks(&mut life), asks(&mut life)];
        assert_eq!(life.world.step(Input::Reclaimed(keys[1])), [], "who runs keeps what it has");
        life.ask(Request::Resume(only("a")));
        (while_paused, asks(&mut life))
    };
    assert_eq!(rounds("memory 10% 2s pause"), ([true; 2], false));
    assert_eq!(rounds("cpu 10% 2s pause"), ([false; 2], false), "who waits for a CPU gets no more of it so");
}

#[test]
fn whose_memory_is_told_apart_is_whoever_a_rule_may_pause_for_it() {
    let may = |herd: &str, own: &str| {
        let config = HerdConfig { pressure: vec![herd.parse().unwrap()], ..HerdConfig::default() };
        let mut life = Life::new(config);
        let above = life.spawn("above", None, |spec| spec.pressure = vec![own.parse().unwrap()]);
        let below = life.spawn("below", Some("above"), |_| {});
        let beside = life.spawn("beside", None, |_| {});
        [above, below, beside].map(|key| life.world.machine.may_be_paused_for_memory(key))
    };
    assert_eq!(may("memory 10% 2s warn,pause", "cpu 10% 2s warn"), [true; 3]);
    assert_eq!(may("cpu 10% 2s pause", "memory 10% 2s pause"), [true, true, false], "its own is about all below it");
    assert_eq!(may("memory 10% 2s warn", "memory 10% 2s terminate"), [false; 3]);
}

#[test]
fn pressure_that_comes_back_pauses_again_before_it_ends_anybody() {
    let (mut life, keys) = herd("memory 10% 2s pause,terminate", &[1, 5]);
    press(&mut life, None);
    life.pass(3 * WINDOW);
    assert_eq!(paused(&life, &keys), [false; 2]);
    press(&mut life, None);
    assert_eq!(paused(&life, &keys), [true, false]);
    assert_eq!(life.state(keys[0]), State::Paused);
}

#[test]
fn a_users_pause_and_a_users_resume_stand_over_a_rules() {
    let (mut life, keys) = herd("memory 10% 2s pause", &[1, 2, 9]);
    press(&mut life, None);
    life.ask(Request::Pause(only("a")));
    press(&mut life, None);
    assert_eq!(paused(&life, &keys), [true, true, false]);
    life.ask(Request::Resume(only("b")));
    assert_eq!(paused(&life, &keys), [true, false, false], "the user's word holds");
    press(&mut life, None);
    assert_eq!(paused(&life, &keys), [true, false, true], "whoever a user has resumed is spared, the next one is not");
    (0..3).for_each(|_| life.pass(3 * WINDOW));
    assert_eq!(paused(&life, &keys), [true, false, false], "what a user has paused no rule resumes");
    life.ask(Request::Resume(only("a")));
    press(&mut life, None);
    press(&mut life, None);
    assert_eq!(paused(&life, &keys), [true, true, false], "it is spared as long as the pressure lasted");
}

#[test]
fn who_cannot_be_paused_any_more_is_ended_one_at_a_time_with_the_cause() {
    let (mut life, keys) = herd("memory 10% 2s pause,terminate", &[1, 9]);
    press(&mut life, None);
    press(&mut life, None);
    assert_eq!((life.state(keys[0]), cause(&life, keys[0])), (State::Failed, Some(Cause::Pressure)), "the lowest");
    assert_eq!(life.state(keys[1]), State::Running);
    press(&mut life, None);
    assert_eq!(cause(&life, keys[1]), Some(Cause::Pressure), "whoever is alone is ended, too");
    assert!(life.kinds("a").ends_with(&[Kind::PressureTerminates, Kind::Failed]), "{:?}", life.kinds("a"));
}

#[test]
fn a_subtree_is_as_urgent_as_the_most_urgent_in_it() {
    let (mut life, keys) = herd("memory 10% 2s pause", &[1, 3]);
    let child = life.spawn("e", Some("a"), |spec| spec.priority = 9.try_into().unwrap());
    press(&mut life, None);
    assert_eq!(
        paused(&life, &[keys[0], keys[1], child]),
        [false, true, false],
        "below the lowest somebody urgent works"
    );
}

#[test]
fn an_agents_rule_is_about_its_subtree_and_ends_with_it() {
    let mut life = Life::new(HerdConfig::default());
    let rule = || vec!["memory 10% 2s pause,terminate".parse().unwrap()];
    let boss = life.spawn("a", None, |spec| spec.pressure = rule());
    let (child, other) =
        (life.spawn("b", Some("a"), |_| {}), life.spawn("c", None, |spec| spec.priority = 0.try_into().unwrap()));
    press(&mut life, Some(boss));
    assert_eq!(paused(&life, &[boss, child, other]), [false, true, false], "nobody outside, and not all of it");
    press(&mut life, Some(other));
    assert_eq!(life.state(other), State::Running, "who has no rule is not pressed");
    life.exit(boss, 0);
    assert!(life.world.machine.next_deadline().is_some(), "it is retained for a while");
    press(&mut life, Some(boss));
    assert_eq!(life.kinds("a").iter().filter(|kind| **kind == Kind::PressureRose).count(), 0);
}

#[test]
fn a_level_gives_its_rules_to_agents_that_have_none() {
    let mut config = HerdConfig::default();
    config.levels.entry(treeherd::model::id::Level(0)).or_default().pressure = vec!["cpu 10% 2s warn".parse().unwrap()];
    let mut life = Life::new(config);
    let plain = life.spawn("a", None, |_| {});
    let own = life.spawn("b", None, |spec| spec.pressure = vec!["cpu 10% 2s terminate".parse().unwrap()]);
    press(&mut life, Some(plain));
    press(&mut life, Some(own));
    assert_eq!(life.kinds("a").last(), Some(&Kind::PressureRose));
    assert_eq!(cause(&life, own), Some(Cause::Pressure));
}

#[test]
fn whoever_was_ended_for_pressure_starts_again_when_it_is_resumed() {
    let (mut life, keys) = herd("memory 10% 2s pause,terminate", &[9]);
    let low = life.spawn("b", None, |spec| {
        spec.priority = 1.try_into().unwrap();
        spec.restart.policy = RestartPolicy::OnFailure;
    });
    press(&mut life, None);
    press(&mut life, None);
    assert_eq!(life.state(low), State::Paused);
    life.pass(WINDOW);
    assert_eq!(life.state(low), State::Paused, "its time stands still: it is held");
    life.pass(2 * WINDOW);
    life.pass(WINDOW);
    assert_eq!((life.state(low), life.state(keys[0])), (State::Running, State::Running));
}

#[test]
fn what_a_rule_has_paused_the_next_supervisor_lets_go_and_what_a_user_has_paused_it_does_not() {
    let (mut life, keys) = herd("memory 10% 2s pause", &[1, 2, 9]);
    press(&mut life, None);
    life.ask(Request::Pause(only("b")));
    assert_eq!(paused(&life, &keys), [true, true, false]);
    life.die(&[]);
    assert_eq!(paused(&life, &keys), [false, true, false], "who counted for the rule is gone");
    assert!(life.kinds("a").ends_with(&[Kind::Paused, Kind::Adopted, Kind::Resumed]), "{:?}", life.kinds("a"));
    assert!(!life.world.kernel.is_to_freeze(keys[0]) && life.world.kernel.is_to_freeze(keys[1]));
}
