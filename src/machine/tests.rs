//! A few lives, step by step. The many are in `tests/simulation.rs`.

use super::*;
use crate::model::error::Code;
use crate::model::event::Kind;
use crate::model::id::Run;
use crate::model::spec::{AgentSpec, OnMainExit, OnOom, RestartPolicy};
use crate::model::stage::{SpawnFailure, Stage};
use crate::model::status::{Exit, Oom, Rusage, State};

struct Bench {
    machine: Machine,
    now: Now,
    calls: u64,
}

impl Bench {
    fn new() -> Self {
        Self {
            machine: Machine::new(HerdConfig::default(), "/t".to_owned(), BTreeMap::new(), 7),
            now: Now::default(),
            calls: 0,
        }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.machine.step(self.now, input, &mut effects);
        self.machine.check();
        let mut again = Vec::new();
        self.machine.settle_everything(self.now, &mut again);
        assert_eq!(again, [], "settling again orders nothing");
        // What is written down is the simulation's to look at.
        effects.retain(|effect| !matches!(effect, Effect::Record(_) | Effect::RecordHerd(_)));
        effects
    }

    fn ask(&mut self, request: Request) -> Vec<Effect> {
        self.calls += 1;
        let caller = Caller { name: "uid 0".into(), agent: None, user: None };
        self.step(Input::Asked(ReplyTo { client: 1, call: self.calls }, caller, request))
    }

    fn wait(&mut self, seconds: u64) -> Vec<Effect> {
        self.now.mono.0 += seconds * 1_000_000_000;
        self.step(Input::Ticked)
    }

    fn spawn(&mut self, id: &str, parent: Option<&str>, change: impl FnOnce(&mut AgentSpec)) -> AgentKey {
        let mut spec = AgentSpec::new(id.parse().unwrap(), ["sleep"]);
        spec.parent = parent.map(|parent| parent.parse().unwrap());
        change(&mut spec);
        let effects = self.ask(Request::Spawn(Box::new(spec)));
        assert!(matches!(&effects[..], [Effect::Spawn(_)]), "{effects:?}");
        let key = self.machine.key_of(&id.parse().unwrap()).unwrap();
        let effects = self.step(Input::Spawned { agent: key, pid: Some(100) });
        assert_eq!(kinds(&effects), [Kind::Spawned, Kind::Started]);
        key
    }

    fn exit(&mut self, agent: AgentKey, status: i32, descendants: u64) -> Vec<Effect> {
        let run = self.machine.run_of(agent).unwrap();
        let exit = Exit::Status(status);
        self.step(Input::Exited { agent, run, exit, rusage: Rusage::default(), oom: None, descendants })
    }

    fn state(&self, key: AgentKey) -> State {
        self.machine.status(key, self.now.mono).state
    }
}

fn kinds(effects: &[Effect]) -> Vec<Kind> {
    let kind = |effect: &Effect| match effect {
        Effect::Publish(event) => Some(event.kind),
        _ => None,
    };
    effects.iter().filter_map(kind).collect()
}

fn error(effects: &[Effect]) -> Error {
    let [Effect::Reply(_, Err(error))] = effects else { panic!("{effects:?}") };
    error.clone()
}

fn ids(names: &[&str]) -> Target {
    Target::Ids(names.iter().map(|name| name.parse().unwrap()).collect())
}

#[test]
fn while_the_state_cannot_be_written_agents_are_ended_and_restarted_and_none_is_let_in() {
    let mut bench = Bench::new();
    let key = bench.spawn("a", None, |spec| spec.restart.policy = RestartPolicy::Always);
    let stalled = bench.step(Input::StateUnwritable("no room".into()));
    assert_eq!(kinds(&stalled), [Kind::StateStalled]);
    assert_eq!(bench.step(Input::StateUnwritable("no room".into())), [], "it is told once");
    let spec = AgentSpec::new("b".parse().unwrap(), ["sleep"]);
    let refused = error(&bench.ask(Request::Spawn(Box::new(spec.clone()))));
    assert_eq!(refused.code, Code::StateUnwritable);
    assert!(refused.message.contains("no room"), "{refused}");
    let ended = bench.exit(key, 1, 0);
    assert!(kinds(&ended).contains(&Kind::Failed) && kinds(&ended).contains(&Kind::Restarting), "{ended:?}");
    assert_eq!(kinds(&bench.step(Input::StateWritable)), [Kind::StateRecovered]);
    assert_eq!(bench.step(Input::StateWritable), []);
    assert!(matches!(&bench.ask(Request::Spawn(Box::new(spec)))[..], [Effect::Spawn(_)]));
}

#[test]
fn a_completed_agent_is_retained_and_then_forgotten() {
    let mut bench = Bench::new();
    let key = bench.spawn("a", None, |_| {});
    let effects = bench.exit(key, 0, 0);
    assert_eq!(kinds(&effects), [Kind::Completed]);
    assert!(effects.contains(&Effect::Remove(key)));
    bench.step(Input::Removed(key));
    assert_eq!(bench.state(key), State::Completed);
    assert_eq!(kinds(&bench.wait(59)), []);
    assert_eq!(kinds(&bench.wait(1)), [Kind::Removed]);
    assert_eq!(bench.machine.key_of(&"a".parse().unwrap()), None);
    assert_eq!(bench.machine.next_deadline(), None, "an idle herd waits for nothing");
}

#[test]
fn a_failure_is_told_at_once_and_a_completion_when_the_cgroup_is_empty() {
    let mut bench = Bench::new();
    let bad = bench.spawn("bad", None, |_| {});
    let effects = bench.exit(bad, 3, 2);
    assert_eq!(kinds(&effects), [Kind::Failed]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Signal { .. })), "what is left behind is ended");
    assert_eq!(bench.state(bad), State::Stopping);
    assert_eq!(kinds(&bench.step(Input::RunEmptied { agent: bad, run: Run(1) })), []);
    assert_eq!(bench.state(bad), State::Failed);

    let good = bench.spawn("good", None, |_| {});
    assert_eq!(kinds(&bench.exit(good, 0, 2)), [Kind::Exited]);
    assert!(
        bench.wait(10).contains(&Effect::KillRun { agent: good, run: Run(1), force: Force::Stroke }),
        "after the grace comes the kill"
    );
    assert_eq!(kinds(&bench.step(Input::RunEmptied { agent: good, run: Run(1) })), [Kind::Completed]);
}

#[test]
fn a_failed_agent_is_restarted_and_a_terminated_one_is_not() {
    let mut bench = Bench::new();
    let key = bench.spawn("a", None, |spec| {
        spec.restart.policy = RestartPolicy::Always;
        spec.restart.jitter = 0.0;
    });
    assert_eq!(kinds(&bench.exit(key, 1, 0)), [Kind::Failed, Kind::Restarting]);
    assert_eq!(bench.state(key), State::Backoff);
    let effects = bench.wait(1);
    assert!(matches!(&effects[0], Effect::Spawn(order) if order.run == Run(2) && order.make.is_none()));
    assert!(effects[1..].iter().all(|effect| matches!(effect, Effect::Record(_))), "{effects:?}");
    bench.step(Input::Spawned { agent: key, pid: Some(101) });
    let effects = bench.ask(Request::Terminate(ids(&["a"]), None));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Signal { run: Run(2), .. })));
    bench.step(Input::Signalled { agent: key, processes: 1 });
    assert_eq!(kinds(&bench.exit(key, 0, 0)), [Kind::Terminated]);
    let effects = bench.step(Input::Removed(key));
    let [Effect::Reply(_, Ok(Answer::Receipt(receipt)))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((receipt.processes, receipt.agents[0].signals["SIGTERM"]), (1, 1));
    bench.wait(30);
    assert_eq!(bench.state(key), State::Terminated, "what was stopped stays stopped");
}

#[test]
fn a_failed_first_spawn_leaves_nothing() {
    let mut bench = Bench::new();
    let spec = AgentSpec::new("a".parse().unwrap(), ["/no/such"]);
    bench.ask(Request::Spawn(Box::new(spec)));
    let key = bench.machine.key_of(&"a".parse().unwrap()).unwrap();
    let failure =
        SpawnFailure { stage: Stage::Exec, errno: Some(2), message: "exec /no/such: ENOENT".into(), remedy: None };
    let effects = bench.step(Input::SpawnFailed { agent: key, failure });
    assert_eq!(kinds(&effects), [Kind::Failed]);
    assert!(matches!(effects.last(), Some(Effect::Reply(_, Err(error))) if error.code == Code::ExecFailed));
    assert_eq!(bench.machine.key_of(&"a".parse().unwrap()), None);
}

#[test]
fn a_level_is_frozen_before_it_is_killed() {
    let mut bench = Bench::new();
    let keys = [bench.spawn("a", None, |_| {}), bench.spawn("b", None, |_| {})];
    let effects = bench.ask(Request::Terminate(Target::Level(Level(0)), Some(std::time::Duration::ZERO)));
    assert_eq!(
        effects.iter().filter(|effect| matches!(effect, Effect::Freeze { frost: Frost::Frozen, .. })).count(),
        2
    );
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Kill { .. })));
    for agent in keys {
        bench.step(Input::FreezerWritten { agent, written: Frost::Frozen });
    }
    bench.step(Input::FrostSeen { agent: keys[0], frost: Frost::Frozen });
    let effects = bench.step(Input::FrostSeen { agent: keys[1], frost: Frost::Frozen });
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Kill { .. })).count(), 2, "{effects:?}");
}

#[test]
fn a_paused_backoff_stands_still_and_goes_on() {
    let mut bench = Bench::new();
    let key = bench.spawn("a", None, |spec| {
        spec.restart.policy = RestartPolicy::OnFailure;
        spec.restart.jitter = 0.0;
    });
    bench.exit(key, 1, 0);
    bench.ask(Request::Pause(ids(&["a"])));
    bench.step(Input::FreezerWritten { agent: key, written: Frost::Frozen });
    let effects = bench.step(Input::FrostSeen { agent: key, frost: Frost::Frozen });
    assert_eq!(kinds(&effects), [Kind::Paused]);
    assert_eq!(bench.machine.next_deadline(), None, "its clock stands still");
    bench.wait(1000);
    assert_eq!(bench.state(key), State::Paused);
    bench.ask(Request::Resume(ids(&["a"])));
    bench.step(Input::FreezerWritten { agent: key, written: Frost::Thawed });
    assert!(bench.wait(1).iter().any(|effect| matches!(effect, Effect::Spawn(_))));
}

#[test]
fn bounds_are_refused_by_name_or_queued_by_priority() {
    let mut bench = Bench::new();
    bench.machine.config.bounds.max_agents_per_level = 1;
    let first = bench.spawn("a", None, |_| {});
    let spec = AgentSpec::new("b".parse().unwrap(), ["x"]);
    let refused = error(&bench.ask(Request::Spawn(Box::new(spec.clone()))));
    assert_eq!(refused.code, Code::BoundReached);
    assert!(refused.message.contains("max_agents_per_level = 1"));
    for (id, priority) in [("low", 1), ("high", 9)] {
        let mut spec = AgentSpec { id: id.parse().unwrap(), ..spec.clone() };
        spec.priority = priority.try_into().unwrap();
        spec.admission = crate::model::spec::Admission::Queue;
        assert_eq!(kinds(&bench.ask(Request::Spawn(Box::new(spec)))), [Kind::Queued]);
    }
    let effects = bench.exit(first, 0, 0);
    let started: Vec<_> = effects
        .iter()
        .filter_map(|effect| if let Effect::Spawn(order) = effect { Some(order.spec.id.to_string()) } else { None })
        .collect();
    assert_eq!(started, ["high"]);
}

#[test]
fn an_agent_may_act_only_below_itself() {
    let mut bench = Bench::new();
    let parent = bench.spawn("parent", None, |_| {});
    let child = bench.spawn("child", Some("parent"), |_| {});
    let ask = |bench: &mut Bench, agent, target| {
        let caller = Caller { name: "agent".into(), agent: Some(agent), user: None };
        bench.step(Input::Asked(ReplyTo { client: 2, call: 1 }, caller, Request::Pause(target)))
    };
    for target in [ids(&["parent"]), ids(&["child"]), Target::All, Target::Level(Level(1))] {
        let effects = ask(&mut bench, child, target);
        assert_eq!(kinds(&effects), [Kind::Forbidden]);
        assert!(matches!(effects.last(), Some(Effect::Reply(_, Err(error))) if error.code == Code::Forbidden));
    }
    assert_eq!(kinds(&ask(&mut bench, parent, ids(&["child"]))), []);
}

#[test]
fn the_end_of_a_parent_ends_the_agents_below_it() {
    let mut bench = Bench::new();
    let parent = bench.spawn("p", None, |_| {});
    let child = bench.spawn("c", Some("p"), |_| {});
    let effects = bench.exit(parent, 0, 0);
    assert_eq!(kinds(&effects), [Kind::Stopping], "{effects:?}");
    assert_eq!(bench.state(parent), State::Stopping);
    bench.step(Input::Signalled { agent: child, processes: 1 });
    let effects = bench.exit(child, 0, 0);
    assert_eq!(kinds(&effects), [Kind::Terminated, Kind::Completed]);
    assert!(effects.contains(&Effect::Remove(parent)), "one removal takes all: {effects:?}");
}

#[test]
fn the_crash_of_what_was_left_behind_is_the_runs_unless_somebody_asked_for_its_end() {
    let mut bench = Bench::new();
    let crash = Exit::Signal { number: 11, core: true };
    let mut end = |id: &str, last: Exit, is_stopped: bool| {
        let key = bench.spawn(id, None, |spec| spec.on_main_exit = OnMainExit::Wait);
        bench.exit(key, 0, 1);
        bench.step(Input::LeftEnded { agent: key, run: Run(1), exit: crash });
        bench.step(Input::LeftEnded { agent: key, run: Run(1), exit: last });
        if is_stopped {
            bench.ask(Request::Terminate(ids(&[id]), None));
        }
        bench.step(Input::RunEmptied { agent: key, run: Run(1) });
        (bench.state(key), bench.machine.status(key, bench.now.mono).exit.unwrap())
    };
    let (state, exit) = end("crashed", crash, false);
    assert_eq!((state, exit.cause, exit.signal.as_deref()), (State::Failed, Cause::Signal, Some("SIGSEGV")));
    assert_eq!(end("went-on", Exit::Status(0), false).0, State::Completed, "the last one counts");
    assert_eq!(end("stopped", crash, true).0, State::Terminated);
}

#[test]
fn a_run_goes_on_in_the_main_process_that_it_names() {
    let mut bench = Bench::new();
    let key = bench.spawn("a", None, |spec| spec.on_main_exit = OnMainExit::Wait);
    bench.exit(key, 0, 1);
    bench.step(Input::MainNamed { agent: key, run: Run(1), pid: 200 });
    assert_eq!((bench.state(key), bench.machine.main_pid(key, Run(1))), (State::Running, Some(200)));
    assert_eq!(bench.machine.main_pid(key, Run(2)), None);
    assert_eq!(kinds(&bench.exit(key, 3, 0)), [Kind::Failed]);
}

#[test]
fn an_oom_kill_of_a_worker_is_counted_and_its_policy_decides() {
    let mut bench = Bench::new();
    let mut kill = |id: &str, on_oom| {
        let key = bench.spawn(id, None, |spec| spec.on_oom = on_oom);
        let oom = Oom { culprit: None, limit_bytes: None, largest: None };
        let effects = bench.step(Input::OomKilled { agent: key, run: Run(1), kills: 2, oom });
        assert_eq!(bench.machine.status(key, bench.now.mono).oom_kills, 2);
        let is_killed = effects.iter().any(|effect| matches!(effect, Effect::KillRun { .. }));
        let is_signalled = effects.iter().any(|effect| matches!(effect, Effect::Signal { .. }));
        let told = kinds(&effects);
        bench.exit(key, 0, 0);
        let exit = bench.machine.status(key, bench.now.mono).exit.unwrap();
        (told, is_killed, is_signalled, exit.cause, exit.oom_kills)
    };
    assert_eq!(kill("on", OnOom::Continue), (vec![], false, false, Cause::Exit, 2));
    assert_eq!(kill("kill", OnOom::Kill), (vec![Kind::Failed], true, false, Cause::Oom, 2));
    assert_eq!(kill("fail", OnOom::Fail), (vec![Kind::Failed], false, true, Cause::Oom, 2));
}

#[test]
fn what_a_file_declares_stays_and_a_failed_agent_stays_longer_than_another() {
    let mut bench = Bench::new();
    let mut end = |id: &str, status, file: Option<&str>| {
        let key = bench.spawn(id, None, |spec| spec.declared_by = file.map(str::to_owned));
        bench.exit(key, status, 0);
        bench.step(Input::Removed(key));
    };
    end("declared", 1, Some("fleet"));
    end("well", 0, None);
    end("badly", 1, None);
    bench.wait(60);
    let known = || ["declared", "well", "badly"].map(|id| bench.machine.key_of(&id.parse().unwrap()).is_some());
    assert_eq!(known(), [true, false, true]);
    bench.wait(24 * 3600);
    assert_eq!(bench.machine.key_of(&"badly".parse().unwrap()), None);
    assert!(bench.machine.key_of(&"declared".parse().unwrap()).is_some());
}

#[test]
fn no_agent_has_more_than_a_limit_outside_of_the_herd() {
    let mut bench = Bench::new();
    bench.machine.config.limits.set_text("memory_max=2GiB").unwrap();
    let above = |text: &str, path: &str| {
        let (name, value) = text.split_once('=').unwrap();
        let knob: Knob = name.parse().unwrap();
        LimitAbove { knob, setting: knob.parse(value).unwrap(), path: path.to_owned() }
    };
    let exceeded = bench.machine.set_limits_above(vec![
        above("memory_max=1GiB", "/job/step"),
        above("memory_max=4GiB", "/job"),
        above("pids_max=100", "/job"),
    ]);
    assert_eq!(exceeded, [above("memory_max=1GiB", "/job/step")], "what the herd is given is more than there is");
    let wide = |text: &str| {
        let mut spec = AgentSpec::new("wide".parse().unwrap(), ["sleep"]);
        spec.limits.set_text(text).unwrap();
        Request::Spawn(Box::new(spec))
    };
    for (text, path) in [("memory_max=1025MiB", "/job/step"), ("pids_max=101", "/job")] {
        let refused = error(&bench.ask(wide(text)));
        assert_eq!(refused.code, Code::LimitTooWide);
        assert!(refused.message.contains(&format!("of {path}, outside of the herd")), "{refused}");
    }
    bench.spawn("a", None, |spec| {
        for text in ["memory_max=1GiB", "pids_max=100"] {
            spec.limits.set_text(text).unwrap();
        }
    });
}

#[test]
fn refusals_of_an_agent_are_counted_after_the_first_ones_and_all_are_reported() {
    let mut bench = Bench::new();
    let agent = bench.spawn("a", None, |_| {});
    let caller = Caller { name: "agent a".into(), agent: Some(agent), user: None };
    let mut told = Vec::new();
    let mut take = |effects: &[Effect]| {
        let events = effects.iter().filter_map(|it| if let Effect::Publish(event) = it { Some(event) } else { None });
        told.extend(events.filter(|it| it.kind == Kind::Forbidden).map(|it| it.count.unwrap_or(1)));
    };
    for _ in 0..1_000 {
        let to = ReplyTo { client: 2, call: 1 };
        take(&bench.step(Input::Asked(to, caller.clone(), Request::Pause(Target::All))));
    }
    while let Some(due) = bench.machine.next_deadline() {
        bench.now.mono = due;
        take(&bench.step(Input::Ticked));
    }
    assert_eq!(told.iter().sum::<u64>(), 1_000, "none is missing: {told:?}");
    assert_eq!(told.len(), 33, "and they are few: {told:?}");
}

#[test]
fn a_subtree_keeps_nobody_else_out_by_the_size_of_its_specifications() {
    let mut bench = Bench::new();
    bench.spawn("a", None, |_| {});
    let big = |id: &str, parent: Option<&str>| {
        let mut spec = AgentSpec::group(id.parse().unwrap());
        spec.parent = parent.map(|parent| parent.parse().unwrap());
        spec.metadata.insert("k".to_owned(), "m".repeat(250_000).into());
        spec.admission = crate::model::spec::Admission::Queue;
        spec
    };
    let mut ask = |spec| {
        let to = ReplyTo { client: 2, call: 1 };
        let caller = Caller { name: "somebody".into(), agent: None, user: None };
        let effects = bench.step(Input::Asked(to, caller, Request::Spawn(Box::new(spec))));
        let refused =
            effects.into_iter().find_map(|it| if let Effect::Reply(_, Err(error)) = it { Some(error) } else { None });
        refused.map(|error| error.message)
    };
    let mut refused = (0..300).filter_map(|n| ask(big(&format!("c{n}"), Some("a"))));
    assert!(refused.next().is_some_and(|message| message.contains("subtree have")));
    assert_eq!(ask(big("other", None)), None, "another one has room");
}
