//! Rules on pressure, on a real kernel: agents that together want more memory than the herd may have.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};

use common::*;
use treeherd::herd::EventStream;
use treeherd::model::error::Code;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::pressure::{PressureRule, Resource, Stall};
use treeherd::model::status::{Cause, Paused, State};

/// What statfs(2) says of a file system in memory.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// What each hungry agent goes through again and again.
const APPETITE: usize = 48;

#[test]
fn role() {
    if std::env::var(ROLE).is_ok_and(|role| role == "hungry") {
        hungry();
    }
}

/// Writes a file and reads it for ever: its pages are in its memory, and are read back when they were dropped. It ends when
/// it is told to, by a file.
fn hungry() {
    let mut file = tempfile::tempfile().unwrap();
    let mut piece = vec![b'x'; 1 << 20];
    (0..APPETITE).for_each(|_| file.write_all(&piece).unwrap());
    println!("fed");
    while !std::fs::exists(std::env::var("FULL").unwrap()).unwrap() {
        file.seek(SeekFrom::Start(0)).unwrap();
        while file.read(&mut piece).unwrap() > 0 {}
    }
}

fn rules(rule: &str) -> Vec<PressureRule> {
    vec![rule.parse().unwrap()]
}

/// A herd whose limit is below what its agents want together, and agents of these priorities.
fn crowd(rule: &str, priorities: &[u8]) -> (Own, EventStream, Vec<AgentId>) {
    let herd = herd_with(|settings| {
        settings.herd.limits = limits(&["memory_max=96MiB"]);
        settings.herd.pressure = rules(rule);
    });
    let events = herd.follow();
    let full = herd.dir.path().join("full").to_str().unwrap().to_owned();
    let spawn = |(number, priority): (usize, &u8)| {
        herd.role(None, &format!("hungry-{number}"), "hungry", |spec| {
            spec.priority = (*priority).try_into().unwrap();
            spec.env.insert("FULL".to_owned(), full.clone());
        })
    };
    let ids = priorities.iter().enumerate().map(spawn).collect();
    (herd, events, ids)
}

/// Waits for the next event that a rule on pressure has brought about.
fn next_step(events: &mut EventStream) -> Event {
    let mut about_pressure =
        events.by_ref().filter_map(|note| note.event).filter(|event| event.kind.name().starts_with("pressure:"));
    about_pressure.next().unwrap_or_else(|| panic!("no pressure within {PATIENCE:?}"))
}

fn agent(event: &Event) -> AgentId {
    event.agent.clone().unwrap()
}

#[test]
fn hungry_agents_beyond_the_herds_limit_are_paused_lowest_first_and_resumed_in_reverse() {
    let (herd, mut events, ids) = crowd("memory some 3% 2s warn,pause", &[5, 1, 3, 9]);
    let first = next_step(&mut events);
    assert_eq!((first.kind, &first.agent), (Kind::PressureRose, &None), "{first:?}");
    let mut paused = Vec::new();
    // It may take one or several: when the rest fits into the limit, the pressure is over.
    let next = loop {
        let event = next_step(&mut events);
        if event.kind != Kind::PressurePauses {
            break event;
        }
        assert_eq!(herd.agent_status(&agent(&event)).unwrap().paused, Paused::Own);
        paused.push(agent(&event));
    };
    let by_priority = [&ids[1], &ids[2], &ids[0]];
    assert!(!paused.is_empty() && by_priority.iter().zip(&paused).all(|(of, is)| *of == is), "{paused:?}");
    assert_eq!((next.kind, agent(&next)), (Kind::PressureResumes, paused.pop().unwrap()), "the last one first");
    // Nobody is hungry any more: whoever is still paused is resumed, and all come to their end.
    std::fs::write(herd.dir.path().join("full"), "").unwrap();
    loop {
        let event = next_step(&mut events);
        match event.kind {
            Kind::PressurePauses => paused.push(agent(&event)),
            Kind::PressureResumes => assert_eq!(agent(&event), paused.pop().unwrap(), "in reverse"),
            Kind::PressureGone => break,
            other => panic!("{other}: {event:?}"),
        }
    }
    let ended = herd.wait(&ids).unwrap();
    assert!(ended.iter().all(|agent| agent.state == State::Completed), "all survive: {ended:?}");
    herd.finish();
}

#[test]
fn when_nobody_can_be_paused_the_lowest_is_ended_with_the_cause() {
    let (herd, mut events, ids) = crowd("memory some 3% 2s warn,terminate", &[1, 5, 9]);
    let mut steps = [next_step(&mut events), next_step(&mut events)];
    // On a slow disk it may be gone for a moment before the rule has come to its last rung: then it begins anew.
    while steps.each_ref().map(|step| step.kind) == [Kind::PressureRose, Kind::PressureGone] {
        steps = [next_step(&mut events), next_step(&mut events)];
    }
    assert_eq!(steps[0].kind, Kind::PressureRose);
    assert_eq!((steps[1].kind, agent(&steps[1])), (Kind::PressureTerminates, ids[0].clone()));
    let failed = herd.events_of(&ids[0]).into_iter().find(|event| event.kind == Kind::Failed).unwrap();
    let exit = failed.exit.unwrap();
    assert_eq!(exit.cause, Cause::Pressure);
    assert!(exit.error.as_ref().unwrap().contains("waited for memory"), "{exit:?}");
    herd.wait(&ids[..1]).unwrap();
    assert_eq!(herd.agent_status(&ids[2]).unwrap().state, State::Running, "the most urgent one goes on");
    herd.finish();
}

#[test]
fn an_agents_own_rule_is_about_its_own_subtree() {
    let herd = herd();
    let mut events = herd.follow();
    // Four that burn on two CPUs wait for one; who sleeps beside them does not.
    let script = "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait";
    let burner = herd.spawn_with("burner", None, script, |spec| spec.pressure = rules("cpu 10% 2s terminate"));
    let sleeper =
        herd.program(None, "sleeper", &["sleep", "1000"], |spec| spec.pressure = rules("cpu 1% 2s terminate"));
    let event = next_step(&mut events);
    assert_eq!((event.kind, agent(&event)), (Kind::PressureTerminates, burner.clone()));
    let ended = herd.wait(&[burner]).unwrap();
    assert_eq!(ended[0].exit.as_ref().unwrap().cause, Cause::Pressure);
    assert_eq!(herd.agent_status(&sleeper).unwrap().state, State::Running);
    herd.finish();
}

#[test]
fn io_that_is_waited_for_is_pressure_and_full_only_where_nobody_else_could_run() {
    let herd = herd();
    if rustix::fs::statfs(herd.dir.path()).unwrap().f_type == TMPFS {
        return skip("nobody waits for a file system in memory");
    }
    let mut events = herd.follow();
    let file = |id: &str| herd.dir.path().join(id).display().to_string();
    let write = |id: &str| format!("while :; do dd if=/dev/zero of={} bs=1M count=8 conv=fsync 2>&-; done", file(id));
    let watched = |id: &str, script: &str| {
        herd.spawn_with(id, None, script, |spec| {
            spec.pressure = [Stall::Some, Stall::Full]
                .map(|stall| format!("{} {stall} 1% 2s warn", Resource::Io).parse().unwrap())
                .to_vec();
        })
    };
    let alone = watched("alone", &write("alone"));
    // On each CPU there is one that could run, whoever waits, before anybody does.
    let burn = format!(
        "for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu sh -c ': >{0}-$0; while :; do :; done' $cpu & \
         until [ -e {0}-$cpu ]; do sleep 0.01; done; done",
        file("burns")
    );
    let beside = watched("beside", &format!("{burn}; {}", write("beside")));
    let mut told = BTreeSet::new();
    let wanted = [(&alone, "some tasks"), (&alone, "all tasks"), (&beside, "some tasks")];
    while !wanted.iter().all(|(id, who)| told.contains(&((*id).clone(), *who))) {
        let event = next_step(&mut events);
        if event.kind == Kind::PressureRose {
            assert!(event.message.contains("waited for I/O"), "{}", event.message);
            let who = if event.message.contains("all tasks") { "all tasks" } else { "some tasks" };
            told.insert((agent(&event), who));
        }
    }
    // Before all of them burn, and where somebody outside holds the CPUs back, nobody could run: the kernel's own sum knows.
    let pressure = std::path::Path::new(&herd.agent_status(&beside).unwrap().cgroup).join("io.pressure");
    let pressure = std::fs::read_to_string(pressure).unwrap();
    let full = pressure.lines().find(|line| line.starts_with("full")).unwrap().rsplit_once("total=").unwrap().1;
    let could_rise = full.parse::<u64>().unwrap() >= 20_000;
    assert!(could_rise || !told.contains(&(beside, "all tasks")), "others could run all the time: {pressure}");
    herd.finish();
}

#[test]
fn what_the_host_cannot_do_about_pressure_is_refused_with_a_remedy() {
    use treeherd::kernel::host::{Binding, Host};
    use treeherd::model::limits::Controller;
    let herd = herd();
    let refused: BTreeSet<String> = [("own", "memory 10% 1s"), ("tight", "memory 10% 2s tighten")]
        .into_iter()
        .filter_map(|(id, rule)| {
            let mut spec = treeherd::model::spec::AgentSpec::new(name(id), ["sleep", "1000"]);
            spec.pressure = rules(rule);
            let error = herd.spawn_child_agent(None, spec).err()?;
            assert!(error.code == Code::LimitNotOffered && error.remedy.is_some(), "{error}");
            Some(rule.to_owned())
        })
        .collect();
    let can_choose = treeherd::kernel::process::capabilities().unwrap();
    let can_choose = can_choose.iter().any(|it| it.name == "CAP_SYS_RESOURCE" && it.present);
    assert_eq!(refused.contains("memory 10% 1s"), !can_choose, "the window is never changed in silence");
    let has_high = matches!(Host::discover().unwrap().binding(Controller::Memory), Binding::V2);
    assert_eq!(refused.contains("memory 10% 2s tighten"), !has_high);
    herd.finish();
}
