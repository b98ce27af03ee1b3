//! Limits hold: on a hybrid host through v1 mirrors, on a unified one through cgroup2, by the same tests.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use treeherd::kernel::host::{Binding, Host};
use treeherd::model::error::Code;
use treeherd::model::event::Kind;
use treeherd::model::id::{AgentId, Level};
use treeherd::model::limits::{Controller, Knob};
use treeherd::model::request::LimitScope;
use treeherd::model::status::{Cause, Paused, State};

/// Says whether a controller is there; a test without it is skipped.
fn offers(controller: Controller) -> bool {
    let is_there = !matches!(Host::discover().unwrap().binding(controller), Binding::Absent { .. });
    if !is_there {
        skip(&format!("this host does not offer {controller}"));
    }
    is_there
}

/// What an agent of the tests below is: this binary again.
#[test]
fn role() {
    if std::env::var(ROLE).is_ok_and(|role| role == "comets") {
        comets();
    }
}

/// Is processes that each start another one and end: whoever is found is gone before it can be moved.
#[allow(unsafe_code)]
fn comets() -> ! {
    use std::io::Write;
    for _ in 0..30 {
        // SAFETY: the child makes no calls but fork and exit.
        if unsafe { libc::fork() } == 0 {
            loop {
                // SAFETY: as above.
                match unsafe { libc::fork() } {
                    0 | -1 => {}
                    // SAFETY: it ends this process without running anything of it.
                    _ => unsafe { libc::_exit(0) },
                }
            }
        }
    }
    println!("up");
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

/// Reads the freezer of a cgroup below the herd.
fn is_frozen(herd: &Own, place: &str) -> bool {
    let dir = Host::discover().unwrap().cgroup2.join(&herd.cgroup).join("herd").join(place);
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    read("cgroup.freeze").trim() == "1" || read("cgroup.events").contains("frozen 1")
}

/// Says whether a process is ending or has ended (`PF_EXITING`, the kernel's flags in `/proc/PID/stat`).
fn is_ending(pid: i32) -> bool {
    const EXITING: u64 = 4;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & EXITING != 0)
}

#[test]
fn a_first_limit_on_a_running_fork_storm_is_set_and_the_storm_goes_on() {
    if !offers(Controller::Memory) || !offers(Controller::Pids) {
        return;
    }
    let herd = daemon(&[]);
    let group = herd.group(None, "group");
    let storm = herd.role(Some(&group), "storm", "comets", |_| {});
    await_line(&herd, &storm, "up");
    let scopes = [LimitScope::Agent(storm.clone()), LimitScope::Siblings(Level(1)), LimitScope::Herd];
    for (scope, limit) in scopes.into_iter().zip(["memory_max=512MiB", "pids_max=20000", "memory_max=1GiB"]) {
        herd.limit(scope, limits(&[limit])).unwrap_or_else(|error| panic!("{limit}: {error}"));
    }
    // Every process that is seen is in the mirror or has ended.
    let mirror = |controller| match Host::discover().unwrap().binding(controller) {
        Binding::V1 { .. } => Some(if controller == Controller::Memory { ":memory:" } else { ":pids:" }),
        _ => None,
    };
    let place = format!("{}/herd/group", herd.cgroup);
    for hierarchy in [Controller::Memory, Controller::Pids].into_iter().filter_map(mirror) {
        for pid in herd.processes() {
            let Ok(cgroup) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
            // One that is ending is shown at the top of v1 hierarchies.
            if is_ending(pid) {
                continue;
            }
            let is_inside = |line: &str| !line.contains(hierarchy) || line.contains(&place);
            assert!(cgroup.lines().all(is_inside), "{hierarchy} {cgroup}");
        }
    }
    let places = ["", "group", "group/level-1", "group/level-1/storm"];
    until("nothing stays frozen", || places.iter().all(|place| !is_frozen(&herd, place)));
    assert_eq!(herd.agent_status(&storm).unwrap().paused, Paused::No);
    let before: std::collections::BTreeSet<i32> = herd.processes().into_iter().collect();
    until("the storm goes on", || herd.processes().iter().any(|pid| !before.contains(pid)));
    herd.finish();
}

#[test]
fn what_a_daemon_has_frozen_to_set_a_limit_and_died_is_thawed_and_what_was_paused_is_not() {
    let mut herd = daemon(&[]);
    let group = herd.group(None, "group");
    let child = herd.sleeper(Some(&group), "child");
    let paused = herd.sleeper(None, "paused");
    herd.pause_agent(&paused).unwrap();
    herd.crash();
    let places = ["", "group", "group/level-1", "group/level-1/child"];
    for place in places {
        let dir = Host::discover().unwrap().cgroup2.join(&herd.cgroup).join("herd").join(place);
        std::fs::write(dir.join("cgroup.freeze"), "1").unwrap();
    }
    herd.restart();
    until("it is thawed", || places.iter().all(|place| !is_frozen(&herd, place)));
    assert!(is_frozen(&herd, "paused"));
    assert_eq!(herd.agent_status(&child).unwrap().paused, Paused::No);
    assert_eq!(herd.agent_status(&paused).unwrap().paused, Paused::Own);
    herd.finish();
}

/// Forks until it cannot, tells how far it came, and stays.
const FORKER: &str = "i=0; while [ $i -lt 60 ]; do sleep 1000 & i=$((i+1)); echo $i; done; echo all; wait";

/// How many processes a forker has got to, once it has stopped.
fn forked(herd: &Own, id: &AgentId) -> usize {
    herd.wait(std::slice::from_ref(id)).unwrap();
    String::from_utf8(output(herd, id)).unwrap().lines().filter(|line| line.parse::<u32>().is_ok()).count()
}

#[test]
fn pids_hold_for_an_agent_its_siblings_a_nest_and_the_herd() {
    if !offers(Controller::Pids) {
        return;
    }
    // A herd of its own for each: the dead count until whoever inherited them has reaped them. A shell counts as one, and a
    // fork that fails is its end.
    let fork = |scope: &str, taken: u32, wanted: usize| {
        let herd = herd_with(|settings| {
            settings.herd.limits = limits(&["pids_max=50"]);
            let level = settings.herd.levels.entry(Level(1)).or_default();
            match scope {
                "siblings" => level.siblings = limits(&["pids_max=30"]),
                "each" => level.each = limits(&["pids_max=20"]),
                _ => {}
            }
        });
        let root = herd.group(None, "root");
        if scope == "nested" {
            herd.limit(LimitScope::Agent(root.clone()), limits(&["pids_max=12"])).unwrap();
            assert_eq!(herd.refused(Some(&root), wide(&["pids_max=13"])).code, Code::LimitTooWide);
        }
        if taken > 0 {
            let script = format!("i=1; while [ $i -lt {taken} ]; do sleep 1000 & i=$((i+1)); done; echo up; wait");
            let holder = herd.spawn_below(&root, "holder", &script);
            await_line(&herd, &holder, "up");
        }
        let forker = herd.spawn_with("forker", Some(&root), FORKER, |spec| {
            if scope == "own" {
                spec.limits = limits(&["pids_max=10"]);
            }
        });
        assert_eq!(forked(&herd, &forker), wanted, "{scope}");
        herd.finish();
    };
    fork("own", 0, 9);
    fork("herd", 0, 49);
    fork("each", 0, 19);
    fork("siblings", 0, 29);
    fork("siblings", 15, 14);
    fork("nested", 0, 11);
    fork("nested", 5, 6);
}

fn wide(own: &[&str]) -> treeherd::model::spec::AgentSpec {
    let mut spec = treeherd::model::spec::AgentSpec::new(name("wide"), ["sleep", "1000"]);
    spec.limits = limits(own);
    spec
}

#[test]
fn memory_holds_for_an_agent_and_for_the_herd() {
    if !offers(Controller::Memory) {
        return;
    }
    let herd = herd_with(|settings| settings.herd.limits = limits(&["memory_max=40MiB"]));
    let mut events = herd.follow();
    for (id, own, culprit, limit) in
        [("own", &["memory_max=16MiB"][..], "own", 16 << 20), ("herds", &[][..], "herd", 40 << 20)]
    {
        let id = herd.program(None, id, &["tail", "/dev/zero"], |spec| spec.limits = limits(own));
        let exit = await_event(&mut events, Kind::Failed, &id).exit.unwrap();
        assert_eq!(exit.cause, Cause::Oom, "{exit:?}");
        let oom = exit.oom.unwrap();
        assert_eq!((oom.culprit.as_deref(), oom.limit_bytes), (Some(culprit), Some(limit)));
    }
    herd.finish();
}

#[test]
fn an_oom_kill_of_an_agent_whose_child_has_a_memory_limit_of_its_own_is_known_as_one() {
    if !offers(Controller::Memory) {
        return;
    }
    let herd = herd();
    let mut events = herd.follow();
    let fifo = herd.dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let id = herd.spawn_with("a", None, &format!("read x < {}; exec tail /dev/zero", fifo.display()), |spec| {
        spec.limits = limits(&["memory_max=24MiB"]);
    });
    herd.program(Some(&id), "child", &["sleep", "1000"], |spec| spec.limits = limits(&["memory_max=8MiB"]));
    std::fs::write(&fifo, "go\n").unwrap();
    let exit = await_event(&mut events, Kind::Failed, &id).exit.unwrap();
    assert_eq!((exit.cause, exit.oom.unwrap().culprit.as_deref()), (Cause::Oom, Some("a")));
    herd.finish();
}

#[test]
fn an_oom_kill_that_ends_no_run_is_told_by_itself() {
    if !offers(Controller::Memory) {
        return;
    }
    let herd = herd();
    let mut events = herd.follow();
    let id = herd.spawn_with("a", None, "tail /dev/zero; echo over; exec sleep 1000", |spec| {
        spec.limits = limits(&["memory_max=24MiB"]);
    });
    let told = await_event(&mut events, Kind::Oom, &id);
    assert_eq!(told.oom.unwrap().culprit.as_deref(), Some("a"));
    await_line(&herd, &id, "over");
    assert_eq!((herd.agent_status(&id).unwrap().state, herd.ends_of(&id)), (State::Running, vec![]));
    herd.finish();
}

#[test]
fn cpu_holds_and_can_be_changed_live() {
    if !offers(Controller::Cpu) {
        return;
    }
    let herd = herd();
    let id = herd.spawn_with("a", None, "while :; do :; done", |spec| spec.limits = limits(&["cpu_max=20%"]));
    let cgroup = herd.agent_status(&id).unwrap().cgroup;
    let used = || {
        let before = (std::time::Instant::now(), cpu_used(&cgroup));
        let_pass("0.5");
        (cpu_used(&cgroup) - before.1) as f64 / before.0.elapsed().as_micros() as f64
    };
    let share = used();
    assert!(share < 0.3, "20% of a CPU are its limit, it used {share}");
    herd.limit(LimitScope::Agent(id.clone()), limits(&["cpu_max=5%"])).unwrap();
    let share = used();
    assert!(share < 0.12, "5% of a CPU are its limit, it used {share}");
    herd.finish();
}

#[test]
fn a_cpu_max_that_is_hit_is_told_and_who_only_waits_for_a_cpu_is_not() {
    if !offers(Controller::Cpu) {
        return;
    }
    let herd = herd();
    let mut events = herd.follow();
    // Eight that burn at once wait for a CPU, and none of them for its own limit.
    let crowd = "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait";
    let free = herd.spawn_with("free", None, crowd, |spec| spec.limits = limits(&["cpu_max=10000%"]));
    // So little that it is reached however busy this machine is.
    let top = herd.program(None, "top", &["sleep", "1000"], |spec| spec.limits = limits(&["cpu_max=2%"]));
    let below = herd.spawn_below(&top, "below", "while :; do :; done");
    let told = await_event(&mut events, Kind::Limit, &top);
    let hit = told.hit.unwrap();
    assert_eq!((hit.culprit.as_str(), hit.total), ("top", hit.hits), "whose limit it is, is to blame: {hit:?}");
    assert_eq!(told.limits.unwrap(), limits(&["cpu_max=2%"]));
    assert!(told.message.contains("its tasks wait for the next period"), "{}", told.message);
    let again = await_event(&mut events, Kind::Limit, &top).hit.unwrap();
    assert_eq!(again.total, hit.total + again.hits, "what was told is not told again");
    let explained = herd.explain(&below).unwrap();
    assert!(explained.because.iter().any(|why| why.contains("of top was hit")), "{explained:?}");
    let hits = |id: &AgentId| herd.events_of(id).into_iter().filter_map(|event| event.hit).collect::<Vec<_>>();
    assert_eq!((hits(&free), hits(&below)), (vec![], vec![]));
    assert!(herd.stats().unwrap().limit_hits["cpu_max"] >= again.total);
    // Whoever is free again hits nothing.
    herd.limit(LimitScope::Agent(top), limits(&["cpu_max=max"])).unwrap();
    herd.finish();
}

#[test]
fn forks_that_are_refused_are_counted_to_the_last() {
    if !offers(Controller::Pids) {
        return;
    }
    let herd = herd();
    let mut events = herd.follow();
    // A shell that may not fork ends; another one comes in its place.
    let script = "i=0; while [ $i -lt 20 ]; do (exec sleep 1000) & i=$((i+1)); done";
    let id = herd.spawn_with("a", None, script, |spec| {
        spec.limits = limits(&["pids_max=5"]);
        spec.restart.policy = treeherd::model::spec::RestartPolicy::OnFailure;
        spec.restart.delay = std::time::Duration::ZERO;
        spec.restart.intensity = 3;
    });
    await_event(&mut events, Kind::GaveUp, &id);
    let hits: Vec<_> = herd.events_of(&id).into_iter().filter_map(|event| event.hit).collect();
    let (sum, total) = (hits.iter().map(|hit| hit.hits).sum::<u64>(), hits.last().unwrap().total);
    assert!(sum == total && total >= 4, "one for each run at least: {hits:?}");
    assert_eq!(herd.stats().unwrap().limit_hits["pids_max"], total);
    herd.finish();
}

#[test]
fn cpuset_holds_and_is_inherited() {
    if !offers(Controller::Cpuset) {
        return;
    }
    let herd = herd();
    let root = herd.program(None, "root", &["sleep", "1000"], |spec| spec.limits = limits(&["cpuset_cpus=0"]));
    let child = herd.sleeper(Some(&root), "child");
    let allowed = |id: &AgentId| {
        let pid = herd.process_for_agent(id).unwrap().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    };
    assert_eq!((allowed(&root), allowed(&child)), ("0".to_owned(), "0".to_owned()));
    if std::thread::available_parallelism().unwrap().get() > 1 {
        herd.limit(LimitScope::Agent(root.clone()), limits(&["cpuset_cpus=1"])).unwrap();
        assert_eq!((allowed(&root), allowed(&child)), ("1".to_owned(), "1".to_owned()), "live, for all below");
        assert_eq!(herd.refused(Some(&root), wide(&["cpuset_cpus=0-1"])).code, Code::LimitTooWide);
    }
    herd.finish();
}

#[test]
fn the_total_of_a_level_is_kept_by_admission() {
    if !offers(Controller::Memory) {
        return;
    }
    let herd = herd_with(|settings| {
        settings.herd.levels.entry(Level(0)).or_default().total = limits(&["memory_max=100MiB"]);
    });
    let sized = |id: &str, size: &str| herd.program(None, id, &["sleep", "1000"], |spec| spec.limits = limits(&[size]));
    let first = sized("first", "memory_max=60MiB");
    let error = herd.refused(None, wide(&["memory_max=41MiB"]));
    assert!(error.code == Code::BoundReached && error.message.contains("total"), "{error}");
    assert_eq!(herd.refused(None, wide(&[])).code, Code::BoundReached, "one without a limit could take all");
    sized("second", "memory_max=40MiB");
    herd.terminate_agent(&first, None).unwrap();
    sized("third", "memory_max=60MiB");
    herd.limit(LimitScope::Total(Level(0)), limits(&["memory_max=200MiB"])).unwrap();
    sized("fourth", "memory_max=100MiB");
    herd.finish();
}

#[test]
fn what_the_host_does_not_offer_or_the_parent_does_not_have_is_refused() {
    let herd = herd();
    let host = Host::discover().unwrap();
    for (knob, text) in [
        (Knob::MemoryHigh, "memory_high=64MiB"),
        (Knob::IoWeight, "io_weight=50"),
        (Knob::Hugetlb1GbMax, "hugetlb_1GB_max=1GiB"),
    ] {
        if let Err(error) = host.enforcer(knob) {
            let refused = herd.refused(None, wide(&[text]));
            assert_eq!((refused.code, refused.remedy.is_some()), (Code::LimitNotOffered, true), "{refused}");
            assert!(refused.message.contains(knob.name()) || refused.message.contains(knob.controller().name()));
            assert!(!error.to_string().is_empty());
            let changed = herd.limit(LimitScope::Herd, limits(&[text]));
            assert_code(changed, Code::LimitNotOffered);
        }
    }
    for text in
        ["memory_max=1023KiB", "memory_max=-1", "memory_max=10XB", "pids_max=0", "pids_max=99999999999999999999"]
    {
        let mut limits = treeherd::model::limits::Limits::default();
        assert_eq!(limits.set_text(text).unwrap_err().code, Code::BadValue, "{text}");
    }
    let root = herd.program(None, "root", &["sleep", "1000"], |spec| spec.limits = limits(&["memory_max=64MiB"]));
    assert_eq!(herd.refused(Some(&root), wide(&["memory_max=65MiB"])).code, Code::LimitTooWide);
    assert_eq!(herd.refused(Some(&root), wide(&["memory_max=max"])).code, Code::LimitTooWide);
    let child = herd.sleeper(Some(&root), "child");
    assert_code(herd.limit(LimitScope::Agent(child.clone()), limits(&["memory_max=65MiB"])), Code::LimitTooWide);
    assert_code(herd.limit(LimitScope::Agent(name("nobody")), limits(&["pids_max=5"])), Code::NoSuchAgent);
    assert_code(herd.limit(LimitScope::Agent(child), limits(&[])), Code::BadValue);
    assert_eq!(herd.agents().unwrap().len(), 2);
    herd.finish();
}

#[test]
fn a_limit_is_put_on_an_agent_that_runs() {
    if !offers(Controller::Memory) || !offers(Controller::Pids) {
        return;
    }
    let herd = herd();
    let mut events = herd.follow();
    let fifo = herd.dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let id = herd.spawn("a", &format!("read x < {}; exec tail /dev/zero", fifo.display()));
    let child = herd.sleeper(Some(&id), "child");
    let now = herd.limit(LimitScope::Agent(id.clone()), limits(&["memory_max=20MiB", "pids_max=40"])).unwrap();
    assert_eq!(now, limits(&["memory_max=20MiB", "pids_max=40"]));
    assert_eq!(herd.agent_status(&id).unwrap().limits, now);
    let told = await_event(&mut events, Kind::LimitsChanged, &id);
    assert_eq!(told.limits, Some(now));
    std::fs::write(&fifo, "go\n").unwrap();
    let exit = await_event(&mut events, Kind::Failed, &id).exit.unwrap();
    assert_eq!((exit.cause, exit.oom.unwrap().culprit.as_deref()), (Cause::Oom, Some("a")));
    assert_eq!(herd.wait(std::slice::from_ref(&child)).unwrap()[0].state, State::Terminated, "with its parent");
    herd.finish();
}

#[test]
fn a_levels_limits_change_live_and_a_refusal_puts_all_back() {
    if !offers(Controller::Memory) || !offers(Controller::Pids) {
        return;
    }
    let herd = herd();
    let root = herd.group(None, "root");
    let plain = herd.sleeper(Some(&root), "plain");
    let own = herd.program(Some(&root), "own", &["sleep", "1000"], |spec| spec.limits = limits(&["pids_max=5"]));
    herd.limit(LimitScope::Each(Level(1)), limits(&["pids_max=7"])).unwrap();
    let now = |id: &AgentId| herd.agent_status(id).unwrap().limits;
    assert_eq!((now(&plain), now(&own)), (limits(&["pids_max=7"]), limits(&["pids_max=5"])));
    herd.limit(LimitScope::Siblings(Level(1)), limits(&["pids_max=4"])).unwrap();
    let crowded = herd.spawn_below(&root, "crowded", FORKER);
    assert_eq!(forked(&herd, &crowded), 1, "4 together, 2 are taken");
    // The kernel refuses CPUs that are not there: the limit that it took before is put back.
    let before = now(&plain);
    let refused = herd.limit(LimitScope::Agent(plain.clone()), limits(&["pids_max=6", "cpuset_cpus=1000"]));
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(now(&plain), before, "all or nothing");
    let prober =
        herd.spawn_below(&plain, "prober", "i=0; while [ $i -lt 9 ]; do sleep 1000 & i=$((i+1)); echo $i; done");
    assert!(forked(&herd, &prober) <= 2);
    herd.finish();
}

#[test]
fn a_hit_names_who_uses_most_below_whose_limit_it_is() {
    if !offers(Controller::Pids) {
        return;
    }
    let herd = herd();
    let mut events = herd.follow();
    let top = herd.group(None, "top");
    herd.limit(LimitScope::Agent(top.clone()), limits(&["pids_max=16"])).unwrap();
    let holder = |children: u32| format!("for i in $(seq {children}); do sleep 1000 & done; echo up; wait");
    // Of two that are alike, the one below which there is more; and of that one, who makes up more than half of it.
    let branch = herd.spawn_below(&top, "branch", &holder(2));
    await_line(&herd, &branch, "up");
    let hog = herd.spawn_below(&branch, "hog", &holder(6));
    await_line(&herd, &hog, "up");
    let small = herd.spawn_below(&top, "small", &holder(2));
    await_line(&herd, &small, "up");
    // Whoever is refused is not who uses most.
    herd.spawn_below(&small, "refused", FORKER);
    let told = await_event(&mut events, Kind::Limit, &top);
    let hit = told.hit.unwrap();
    let largest = hit.largest.expect("there are agents below it");
    assert_eq!((hit.culprit.as_str(), &largest.agent, largest.amount), ("top", &hog, 7));
    assert!(told.message.ends_with("; hog uses most: 7 tasks"), "{}", told.message);
    herd.finish();
}

#[test]
fn whose_own_processes_use_most_is_named_itself_and_nobody_where_nobody_is_below() {
    if !offers(Controller::Pids) {
        return;
    }
    let herd = herd();
    let mut events = herd.follow();
    let largest = |events: &mut _, id: &AgentId| await_event(events, Kind::Limit, id).hit.unwrap().largest;
    let alone = herd.spawn_with("alone", None, FORKER, |spec| spec.limits = limits(&["pids_max=5"]));
    assert_eq!(largest(&mut events, &alone), None);
    let holder = "for i in 1 2 3 4 5 6; do sleep 1000 & done; echo up; wait";
    let parent = herd.spawn_with("parent", None, holder, |spec| spec.limits = limits(&["pids_max=10"]));
    await_line(&herd, &parent, "up");
    herd.spawn_below(&parent, "child", FORKER);
    let found = largest(&mut events, &parent).expect("an agent is below it");
    assert_eq!((found.agent, found.amount), (parent, 7));
    // Of a team in which nobody has more than half, the team is named.
    let wide = herd.group(None, "wide");
    herd.limit(LimitScope::Agent(wide.clone()), limits(&["pids_max=9"])).unwrap();
    let team = herd.group(Some(&wide), "team");
    for id in ["one", "two", "three"] {
        await_line(&herd, &herd.spawn_below(&team, id, "sleep 1000 & echo up; wait"), "up");
    }
    herd.spawn_below(&wide, "alone-there", FORKER);
    let found = largest(&mut events, &wide).expect("agents are below it");
    assert_eq!((found.agent, found.amount), (team, 6));
    herd.finish();
}

#[test]
fn an_oom_kill_names_who_uses_most_below_whose_limit_it_is_the_killed_one_included() {
    if !offers(Controller::Memory) {
        return;
    }
    let herd = herd_with(|settings| settings.herd.limits = limits(&["memory_max=96MiB"]));
    let mut events = herd.follow();
    let small = herd.sleeper(None, "small");
    let killed = |events: &mut _, id: &str| {
        let id = herd.program(None, id, &["tail", "/dev/zero"], |spec| spec.oom_score_adj = Some(1000));
        let exit = await_event(events, Kind::Failed, &id).exit.unwrap();
        (exit.to_string(), exit.oom.unwrap())
    };
    // Nobody has more than the one that is gone.
    let (text, oom) = killed(&mut events, "eater");
    let largest = oom.largest.unwrap();
    assert_eq!((oom.culprit.as_deref(), largest.agent.as_str()), (Some("herd"), "eater"));
    assert!(largest.amount > 48 << 20 && text.contains("; eater uses most: "), "{text}: {largest:?}");
    // Whoever fills it up is killed for what another one holds.
    let hog = herd.spawn("hog", "dd if=/dev/zero bs=64M count=1 2>/dev/null | (read x; echo full; exec sleep 1000)");
    let held = || processes_in(&herd.agent_status(&hog).unwrap().cgroup).into_iter().map(resident).sum::<u64>();
    until("the hog holds its memory", || held() > 60 << 20);
    let (text, oom) = killed(&mut events, "victim");
    let largest = oom.largest.unwrap();
    assert_eq!((oom.culprit.as_deref(), largest.agent.as_str()), (Some("herd"), "hog"), "{text}");
    assert!(largest.amount > 60 << 20, "{largest:?}");
    assert_eq!(herd.agent_status(&small).unwrap().state, State::Running);
    herd.finish();
}

fn resident(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
