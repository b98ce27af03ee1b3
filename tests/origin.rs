//! The origin's own headings, through the library, on a real kernel.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::collections::BTreeMap;
use std::time::Duration;
use treeherd::daemon::Settings;
use treeherd::herd::Herd;
use treeherd::model::error::Code;
use treeherd::model::event::Kind;
use treeherd::model::id::{Level, Run};
use treeherd::model::spec::{AgentSpec, OnMainExit, RestartPolicy, Rlimit};
use treeherd::model::status::{Cause, Paused, State};

mod initialization {
    use super::*;

    #[test]
    fn the_defaults_are_the_origins() {
        let config = Settings::new("/nowhere").herd;
        assert_eq!((config.bounds.max_levels, config.bounds.max_agents_per_level), (10, 20));
        assert_eq!(config.monitoring_interval, Duration::from_millis(500));
        assert_eq!(config.failure_detection_timeout, Duration::from_millis(500));
        assert_eq!((config.auto_cleanup, config.cleanup_retention), (true, Duration::from_secs(60)));
    }

    #[test]
    fn an_empty_herd_counts_nothing() {
        let herd = herd();
        let stats = herd.stats().unwrap();
        assert_eq!((stats.agents, stats.levels.len(), stats.states.len(), stats.causes.len()), (0, 0, 0, 0));
        assert_eq!((stats.detection.count, stats.detection.late), (0, 0));
        assert_eq!(stats.last_event, 1, "herd:started");
        assert!(herd.agents().unwrap().is_empty() && herd.spools().is_empty());
        herd.finish();
    }

    #[test]
    fn a_second_herd_in_the_same_place_is_refused_and_harms_nothing() {
        let herd = herd();
        let mut events = herd.follow();
        let id = herd.sleeper(None, "a");
        let pid = herd.process_for_agent(&id).unwrap();
        let before = herd.cgroups();
        let mut settings = Settings::new(herd.dir.path().join("state"));
        settings.cgroup = unique("second");
        let second = settings.cgroup.clone();
        assert_code(Herd::start(settings), Code::InUse);
        assert_eq!(leftovers(&second).len(), 0, "the same state directory: nothing was made");
        let mut settings = Settings::new(herd.dir.path().join("other"));
        settings.cgroup.clone_from(&herd.cgroup);
        assert_code(Herd::start(settings), Code::InUse);
        assert_eq!(herd.cgroups(), before, "the same cgroup: nothing was made or removed");
        assert_eq!(herd.process_for_agent(&id).unwrap(), pid);
        let other = herd.spawn("b", "exit 4");
        assert_eq!(await_event(&mut events, Kind::Failed, &other).exit.unwrap().status, Some(4));
        herd.finish();
    }

    #[test]
    fn start_shutdown_start_goes_on_with_the_numbers() {
        let (mut last, dir, cgroup) = (0, tempfile::tempdir().unwrap(), unique("again"));
        for _ in 0..3 {
            let mut settings = Settings::new(dir.path().join("state"));
            settings.cgroup.clone_from(&cgroup);
            let herd = Herd::start(settings).unwrap();
            let stats = herd.stats().unwrap();
            assert!(stats.last_event > last && stats.agents == 0);
            last = stats.last_event;
            herd.spawn_child_agent(None, AgentSpec::new(name("a"), ["sleep", "1000"])).unwrap();
            let receipt = herd.shutdown(Some(Duration::ZERO)).unwrap();
            assert_eq!(receipt.processes, 1);
            assert_eq!(leftovers(&cgroup).len(), 0);
        }
    }
}

mod spawning {
    use super::*;

    #[test]
    fn levels_1_and_2_are_real_nested_cgroups() {
        let herd = herd();
        let root = herd.sleeper(None, "root");
        let child = herd.program(Some(&root), "child", &["sleep", "1000"], |spec| spec.level = Some(Level(1)));
        let grandchild = herd.sleeper(Some(&child), "grandchild");
        let (root, child, grandchild) = (
            herd.agent_status(&root).unwrap(),
            herd.agent_status(&child).unwrap(),
            herd.agent_status(&grandchild).unwrap(),
        );
        assert_eq!([root.level, child.level, grandchild.level], [Level(0), Level(1), Level(2)]);
        assert_eq!(child.cgroup, format!("{}/level-1/child", root.cgroup));
        assert_eq!(grandchild.cgroup, format!("{}/level-2/grandchild", child.cgroup));
        for status in [&root, &child, &grandchild] {
            assert_eq!(status.state, State::Running);
            let pids = std::fs::read_to_string(format!("{}/run-1/cgroup.procs", status.cgroup)).unwrap();
            assert_eq!(pids.trim().parse().ok(), status.pid, "{} is where it says", status.id);
        }
        assert_eq!(processes_in(&root.cgroup).len(), 3);
        let stats = herd.stats().unwrap();
        assert_eq!(stats.levels, BTreeMap::from([(Level(0), 1), (Level(1), 1), (Level(2), 1)]));
        herd.finish();
    }

    #[test]
    fn what_does_not_fit_into_the_tree_is_refused_with_the_reason() {
        let herd = herd_with(|settings| {
            settings.herd.bounds.max_levels = 2;
            settings.herd.bounds.max_agents_per_level = 3;
            settings.herd.bounds.max_children = 2;
        });
        let root = herd.group(None, "root");
        let one = herd.sleeper(Some(&root), "one");
        herd.sleeper(Some(&root), "two");
        let (before, agents) = (herd.cgroups(), herd.agents().unwrap());
        let spec = |id: &str| AgentSpec::new(name(id), ["sleep", "1000"]);
        let bound = |parent, id: &str, bound: &str| {
            let error = herd.refused(parent, spec(id));
            assert_eq!(error.code, Code::BoundReached);
            assert!(error.message.contains(bound) && error.remedy.is_some(), "{error}");
        };
        bound(Some(&root), "three", "max_children");
        bound(Some(&one), "deep", "max_levels");
        let other = herd.group(None, "other");
        herd.sleeper(Some(&other), "three");
        bound(Some(&other), "four", "max_agents_per_level");
        assert_eq!(herd.refused(Some(&name("nobody")), spec("x")).code, Code::NoSuchParent);
        assert_eq!(herd.refused(Some(&root), spec("one")).code, Code::DuplicateId);
        let wrong = AgentSpec { level: Some(Level(2)), ..spec("x") };
        assert_eq!(herd.refused(None, wrong).code, Code::WrongLevel);
        herd.terminate_agent(&other, Some(Duration::ZERO)).unwrap();
        assert_eq!(herd.cgroups(), before);
        assert_eq!(herd.agents().unwrap().len(), agents.len() + 2, "the other group and its child are retained");
        herd.finish();
    }

    #[test]
    fn a_full_level_lets_the_most_urgent_in_when_there_is_room() {
        let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = 1);
        let mut events = herd.follow();
        let first = herd.sleeper(None, "first");
        let queue = |id: &str, priority: u8| {
            herd.program(None, id, &["sleep", "1000"], |spec| {
                spec.admission = treeherd::model::spec::Admission::Queue;
                spec.priority = priority.try_into().unwrap();
            })
        };
        let (low, high) = (queue("low", 1), queue("high", 9));
        assert_eq!(herd.agent_status(&high).unwrap().state, State::Queued);
        herd.terminate_agent(&first, Some(Duration::ZERO)).unwrap();
        await_event(&mut events, Kind::Started, &high);
        assert_eq!(herd.agent_status(&low).unwrap().state, State::Queued);
        herd.finish();
    }

    #[test]
    fn every_child_starts_clean() {
        let herd = herd();
        let id = herd.program(None, "a", &["sleep", "1000"], |spec| {
            spec.rlimits.insert(Rlimit::Nofile, serde_json::from_str("\"64:128\"").unwrap());
            spec.nice = Some(5);
        });
        let pid = herd.process_for_agent(&id).unwrap().unwrap();
        // The answer comes while the kernel and the linker are still at work on the program: it is there when it sleeps.
        until("it sleeps", || process_state(pid) == Some('S'));
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
        let text = |file: &str| String::from_utf8(read(file)).unwrap();
        // What /proc shows of a process that has just begun to execute may be empty yet: one that tells by itself is asked.
        let teller = herd.program(None, "teller", &["cat", "/proc/self/environ"], |spec| {
            spec.env.insert("GIVEN".to_owned(), "x y".to_owned());
            spec.inherit_env = vec!["CARGO_PKG_NAME".to_owned(), "NO_SUCH_VARIABLE".to_owned()];
        });
        herd.wait(std::slice::from_ref(&teller)).unwrap();
        let environment = String::from_utf8(output(&herd, &teller)).unwrap();
        let names: Vec<&str> =
            environment.split('\0').filter_map(|entry| entry.split_once('=')).map(|(name, _)| name).collect();
        let mut wanted = vec!["GIVEN", "HOME", "LANG", "PATH", "USER"];
        if std::env::var_os("CARGO_PKG_NAME").is_some() {
            wanted.insert(0, "CARGO_PKG_NAME");
        }
        assert_eq!(names, wanted);
        assert!(environment.contains("GIVEN=x y\0") && !environment.contains("NO_SUCH"));
        let link = |file: &str| std::fs::read_link(format!("/proc/{pid}/{file}")).unwrap();
        assert_eq!(link("fd/0").to_str(), Some("/dev/null"));
        assert_eq!(link("cwd").to_str(), Some("/"));
        let mut open: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().collect();
        open.sort_by_key(std::fs::DirEntry::file_name);
        assert_eq!(open.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(), ["0", "1", "2"]);
        let spool = herd.dir.path().join("state/agents/a");
        assert_eq!((link("fd/1"), link("fd/2")), (spool.join("stdout.pipe"), spool.join("stderr.pipe")));
        let stat = text("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        assert_eq!((fields[2], fields[3]), (&*pid.to_string(), &*pid.to_string()), "its own group and session");
        assert_eq!(fields[16], "5", "nice");
        let status = text("status");
        for clean in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
            assert!(status.contains(clean), "{clean} in {status}");
        }
        assert_eq!(text("oom_score_adj").trim(), "0");
        let limits = text("limits");
        let nofile = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(nofile.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["64", "128"]);
        herd.finish();
    }

    #[test]
    fn privileges_are_dropped_and_the_directory_is_entered() {
        let herd = herd();
        let id = herd.program(None, "a", &["sleep", "1000"], |spec| {
            spec.user = Some("65534".to_owned());
            spec.group = Some("65533".to_owned());
            spec.cwd = Some("/usr".into());
        });
        let pid = herd.process_for_agent(&id).unwrap().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in
            ["Uid:\t65534\t65534\t65534\t65534", "Gid:\t65533\t65533\t65533\t65533", "CapEff:\t0000000000000000"]
        {
            assert!(status.contains(line), "{line} in {status}");
        }
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        assert!(groups.split_whitespace().all(|group| group == "65533"), "no supplementary groups: {groups}");
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/usr"));
        herd.finish();
    }

    #[test]
    fn a_spawn_that_fails_leaves_nothing() {
        let herd = herd();
        let parent = herd.group(None, "parent");
        let before = herd.cgroups();
        type Change = fn(&mut AgentSpec);
        let faults: [(&str, Code, Change); 6] = [
            ("no such command", Code::ExecFailed, |spec| spec.command = vec!["no-such-program".to_owned()]),
            ("no program", Code::ExecFailed, |spec| spec.command = vec!["/etc/passwd".to_owned()]),
            ("no such directory", Code::SpawnFailed, |spec| spec.cwd = Some("/no/such".into())),
            ("no such user", Code::SpawnFailed, |spec| spec.user = Some("no-such-user".to_owned())),
            ("no such input", Code::SpawnFailed, |spec| spec.stdin = Some("/no/such".into())),
            ("a limit that the kernel refuses", Code::SpawnFailed, |spec| {
                spec.command = vec!["true".to_owned()];
                spec.limits.set_text("cpuset_cpus=1000").unwrap();
            }),
        ];
        // A parent keeps the mirror that a limited child has needed on a v1 host: those come last.
        for with_limits in [false, true] {
            for (fault, code, change) in faults {
                let mut spec = AgentSpec::new(name("a"), ["sleep", "1000"]);
                if with_limits {
                    spec.limits = limits(&["memory_max=64MiB", "pids_max=10"]);
                }
                change(&mut spec);
                let error = herd.refused(Some(&parent), spec);
                assert_eq!(error.code, code, "{fault}: {error}");
                assert!(!error.message.is_empty());
                assert_code(herd.agent_status(&name("a")), Code::NoSuchAgent);
                // What a busy disk has not done in time is done behind the answer.
                until("no output is left", || herd.spools().is_empty());
                let named = |path: &&std::path::PathBuf| path.ends_with("a") || path.ends_with("level-1");
                assert_eq!(herd.cgroups().iter().filter(named).count(), 0, "{fault}: no cgroup in any hierarchy");
                if !with_limits && !fault.contains("limit") {
                    assert_eq!(herd.cgroups(), before, "{fault}");
                }
            }
        }
        let ends = herd.events_of(&name("a"));
        let ends: Vec<_> = ends.iter().filter(|event| event.kind == Kind::Failed).collect();
        assert_eq!(ends.len(), 12, "each is told");
        assert!(ends.iter().all(|event| event.exit.as_ref().is_some_and(|exit| exit.cause == Cause::Exec)));
        assert_eq!(herd.stats().unwrap().causes, BTreeMap::from([(Cause::Exec, 12)]));
        herd.sleeper(Some(&parent), "a");
        herd.finish();
    }
}

mod monitoring {
    use super::*;

    #[test]
    fn both_streams_are_kept_apart_and_exact() {
        let herd = herd();
        let id = herd.spawn("a", "printf 'out\\0\\377no end'; echo err >&2; exit 3");
        let ended = herd.wait(std::slice::from_ref(&id)).unwrap();
        assert_eq!(ended[0].state, State::Failed);
        assert_eq!(output(&herd, &id), b"out\0\xffno end");
        assert_eq!(errors(&herd, &id), b"err\n");
        let page = herd.agent_output(&id, 4).unwrap();
        assert_eq!((page.pieces[0].offset, &*page.pieces[0].data), (4, &b"\xffno end"[..]));
        assert_eq!(herd.show(&id).unwrap().output_end.stdout, Some(11));
        herd.finish();
    }

    #[test]
    fn both_maps_know_every_descendant() {
        let herd = herd();
        let root = herd.spawn("root", "setsid sh -c 'sleep 1000 & echo $!; wait' & wait");
        let child = herd.sleeper(Some(&root), "child");
        let grandchild_pid: i32 = {
            let mut text = Vec::new();
            let mut notes = herd.follow_output(&root).unwrap();
            while !text.ends_with(b"\n") {
                text.extend(notes.next().unwrap().output.pieces.iter().flat_map(|piece| piece.data.clone()));
            }
            String::from_utf8(text).unwrap().trim().parse().unwrap()
        };
        let pid = herd.process_for_agent(&root).unwrap().unwrap();
        assert_ne!(pid, grandchild_pid);
        assert_eq!(herd.agent_for_process(pid).unwrap().id, root);
        assert_eq!(herd.agent_for_process(grandchild_pid).unwrap().id, root);
        assert_eq!(herd.agent_for_process(herd.process_for_agent(&child).unwrap().unwrap()).unwrap().id, child);
        for stranger in [1, i32::try_from(std::process::id()).unwrap(), 0, -1, i32::MAX] {
            assert_code(herd.agent_for_process(stranger), Code::NoSuchAgent);
        }
        herd.finish();
    }

    #[test]
    fn what_is_said_later_is_heard_however_early_the_first_word_was() {
        let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = 100);
        let script = "echo one; sleep 0.3; echo two; exec sleep 1000";
        std::thread::scope(|scope| {
            for number in 0..40 {
                let herd = &herd;
                scope.spawn(move || {
                    let id = herd.spawn(&format!("a{number}"), script);
                    await_line(herd, &id, "two");
                });
            }
        });
        herd.finish();
    }

    #[test]
    fn children_are_those_right_below() {
        let herd = herd();
        let root = herd.group(None, "root");
        let (a, b) = (herd.sleeper(Some(&root), "a"), herd.sleeper(Some(&root), "b"));
        let below = herd.sleeper(Some(&a), "below");
        let ids =
            |all: Vec<treeherd::model::status::AgentStatus>| all.into_iter().map(|one| one.id).collect::<Vec<_>>();
        assert_eq!(ids(herd.children_for_agent(&root).unwrap()), [a.clone(), b.clone()]);
        assert_eq!(ids(herd.children_for_agent(&a).unwrap()), [below]);
        assert_eq!(ids(herd.children_for_agent(&b).unwrap()), []);
        assert_eq!(herd.agent_status(&root).unwrap().children, [a.clone(), b.clone()]);
        assert_eq!(ids(herd.processes_at_level(Level(1)).unwrap()), [a, b]);
        assert_code(herd.children_for_agent(&name("nobody")), Code::NoSuchAgent);
        herd.finish();
    }

    #[test]
    fn a_childs_failure_is_told_to_the_parents_watcher() {
        let herd = herd();
        let (root, other) = (herd.group(None, "root"), herd.group(None, "other"));
        let bad = herd.spawn_below(&root, "bad", "exec sleep 1000");
        let mut monitor = herd.monitor_children(&root).unwrap();
        assert_eq!(monitor.children.len(), 1);
        monitor.events.set_timeout(Some(PATIENCE)).unwrap();
        herd.spawn_below(&other, "elsewhere", "exit 9");
        let late = herd.spawn_below(&root, "late", "echo why >&2; exit 7");
        let mut heard = Vec::new();
        for note in monitor.events.by_ref() {
            let event = note.event.unwrap();
            heard.push((event.agent.clone().unwrap(), event.kind));
            if event.kind == Kind::Failed && event.agent.as_ref() == Some(&late) {
                let exit = event.exit.unwrap();
                assert_eq!((exit.status, exit.last_lines), (Some(7), vec!["why".to_owned()]));
                assert_eq!(event.parent, Some(root.clone()));
                break;
            }
        }
        assert!(heard.contains(&(late, Kind::Failed)));
        assert!(heard.iter().all(|(id, _)| id.as_str() != "elsewhere"), "only its own children: {heard:?}");
        drop(bad);
        herd.finish();
    }
}

mod lifecycle {
    use super::*;

    #[test]
    fn pause_and_resume_and_their_states() {
        let herd = herd();
        let mut events = herd.follow();
        let root = herd.spawn("root", "while :; do :; done");
        let child = herd.spawn_below(&root, "child", "while :; do :; done");
        let status = herd.pause_agent(&root).unwrap();
        assert_eq!(status.paused, Paused::Own);
        await_event(&mut events, Kind::Paused, &root);
        let cgroup = status.cgroup;
        let before = cpu_used(&cgroup);
        assert!(before > 0);
        assert_eq!(herd.agent_status(&child).unwrap().paused, Paused::Inherited);
        let_pass("0.3");
        assert_still(&cgroup, before, "what is paused uses no CPU");
        // A child of a paused parent can be resumed: it goes on when the parent does.
        herd.pause_agent(&child).unwrap();
        assert_eq!(herd.agent_status(&child).unwrap().paused, Paused::Own);
        herd.resume_agent(&child).unwrap();
        assert_eq!(herd.agent_status(&child).unwrap().paused, Paused::Inherited);
        let_pass("0.1");
        assert_still(&cgroup, before, "a resumed child of a paused parent uses no CPU");
        let paused: Vec<_> = herd.agents().unwrap().into_iter().filter(|agent| agent.paused != Paused::No).collect();
        assert_eq!(paused.len(), 2, "both are listed as paused");
        herd.pause_agent(&child).unwrap();
        assert_eq!(herd.resume_agent(&root).unwrap().paused, Paused::No);
        await_event(&mut events, Kind::Resumed, &root);
        assert_eq!(herd.agent_status(&child).unwrap().paused, Paused::Own, "its own pause stays");
        let child_cgroup = herd.agent_status(&child).unwrap().cgroup;
        let (root_before, child_before) = (cpu_used(&cgroup), cpu_used(&child_cgroup));
        let_pass("0.2");
        assert!(cpu_used(&cgroup) > root_before);
        assert_still(&child_cgroup, child_before, "a child with a pause of its own uses no CPU");
        assert!(herd.agent_status(&root).unwrap().paused_ms >= 400);
        herd.finish();
    }

    #[test]
    fn a_spawn_into_a_paused_subtree_waits_for_the_resume() {
        let herd = herd();
        let mut events = herd.follow();
        let root = herd.sleeper(None, "root");
        herd.pause_agent(&root).unwrap();
        let child = herd.sleeper(Some(&root), "child");
        let status = herd.agent_status(&child).unwrap();
        assert_eq!((status.state, status.paused, status.pid), (State::Paused, Paused::Inherited, None));
        assert!(status.waits.is_some());
        let_pass("0.1");
        assert_eq!(herd.agent_status(&child).unwrap().pid, None);
        herd.resume_agent(&root).unwrap();
        await_event(&mut events, Kind::Started, &child);
        assert_eq!(herd.agent_status(&child).unwrap().state, State::Running);
        herd.finish();
    }

    #[test]
    fn a_spawn_that_waits_for_a_resume_can_be_terminated() {
        let herd = herd();
        let root = herd.sleeper(None, "root");
        herd.pause_agent(&root).unwrap();
        let child = herd.sleeper(Some(&root), "child");
        herd.terminate_agent(&child, None).unwrap();
        assert_eq!(herd.agent_status(&child).unwrap().state, State::Terminated);
        assert_eq!(herd.ends_of(&child), [Kind::Terminated]);
        herd.resume_agent(&root).unwrap();
        assert_eq!(processes_in(&herd.agent_status(&root).unwrap().cgroup).len(), 1);
        herd.finish();
    }

    #[test]
    fn a_restart_is_a_new_run_of_the_same_agent() {
        let herd = herd();
        let id = herd.spawn("a", "echo run; exec sleep 1000");
        let child = herd.sleeper(Some(&id), "child");
        await_line(&herd, &id, "run");
        let first = herd.agent_status(&id).unwrap();
        let second = herd.restart_agent(&id).unwrap();
        assert_eq!((first.run, second.run, second.restarts), (Run(1), Run(2), 1));
        assert_ne!(first.pid, second.pid);
        assert_eq!(herd.ends_of(&id), [Kind::Terminated], "one end for the first run");
        assert_eq!(herd.agent_status(&child).unwrap().state, State::Running, "its children go on");
        let runs = |run: u64| std::path::Path::new(&second.cgroup).join(format!("run-{run}")).exists();
        until("the cgroup of the run that is over is gone", || !runs(1));
        assert!(runs(2));
        herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap();
        assert_eq!(herd.restart_agent(&id).unwrap().run, Run(3), "only an explicit restart brings back what was ended");
        assert_code(herd.restart_agent(&herd.group(None, "group")), Code::WrongState);
        herd.finish();
    }

    #[test]
    fn what_was_stopped_stays_stopped() {
        let herd = herd();
        let id = herd.program(None, "a", &["sleep", "1000"], |spec| {
            spec.restart.policy = RestartPolicy::Always;
            spec.restart.delay = Duration::ZERO;
        });
        let below = herd.program(Some(&id), "b", &["sleep", "1000"], |spec| {
            spec.restart.policy = RestartPolicy::Always;
            spec.restart.delay = Duration::ZERO;
        });
        herd.terminate_agent(&below, Some(Duration::ZERO)).unwrap();
        herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap();
        let_pass("0.1");
        for id in [&id, &below] {
            let status = herd.agent_status(id).unwrap();
            assert_eq!((status.state, status.run), (State::Terminated, Run(1)));
            assert_eq!(herd.ends_of(id), [Kind::Terminated]);
        }
        herd.finish();
    }

    #[test]
    fn restarts_follow_the_policy_and_are_given_up() {
        let herd = herd();
        let mut events = herd.follow();
        let id = herd.spawn_with("a", None, "exit 1", |spec| {
            spec.restart.policy = RestartPolicy::OnFailure;
            spec.restart.delay = Duration::from_millis(1);
            spec.restart.intensity = 3;
        });
        await_event(&mut events, Kind::GaveUp, &id);
        let status = &herd.wait(std::slice::from_ref(&id)).unwrap()[0];
        assert_eq!((status.state, status.run, status.restarts), (State::Failed, Run(4), 3));
        let kinds: Vec<_> = herd.events_of(&id).iter().map(|event| event.kind).collect();
        let count = |kind| kinds.iter().filter(|other| **other == kind).count();
        assert_eq!(
            (count(Kind::Started), count(Kind::Failed), count(Kind::Restarting), count(Kind::GaveUp)),
            (4, 4, 3, 1),
            "each run has one start and one end: {kinds:?}"
        );
        herd.finish();
    }
}

mod failure_detection {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn an_exit_status_is_told_with_the_last_lines() {
        let herd = herd();
        let mut events = herd.follow();
        let id = herd.spawn("a", "for i in 1 2 3; do echo line $i >&2; done; exit 42");
        let event = await_event(&mut events, Kind::Failed, &id);
        let exit = event.exit.unwrap();
        assert_eq!((exit.cause, exit.status, exit.signal, exit.core), (Cause::Exit, Some(42), None, false));
        assert_eq!(exit.last_lines, ["line 1", "line 2", "line 3"]);
        assert!(
            exit.rusage.user_us + exit.rusage.system_us > 0 || exit.rusage.max_rss_bytes.is_some(),
            "{:?}",
            exit.rusage
        );
        let good = herd.spawn("b", "exit 0");
        await_event(&mut events, Kind::Completed, &good);
        assert_eq!((herd.ends_of(&id), herd.ends_of(&good)), (vec![Kind::Failed], vec![Kind::Completed]));
        assert_eq!(herd.agent_status(&id).unwrap().exit.unwrap().last_lines.len(), 3);
        let detection = herd.stats().unwrap().detection;
        assert_eq!((detection.count, detection.late), (2, 0));
        herd.finish();
    }

    #[test]
    fn a_signal_is_told_with_its_name_and_core() {
        let herd = herd();
        let mut events = herd.follow();
        let id = herd.spawn("a", "kill -USR1 $$");
        let exit = await_event(&mut events, Kind::Failed, &id).exit.unwrap();
        assert_eq!((exit.cause, exit.signal.as_deref(), exit.core), (Cause::Signal, Some("SIGUSR1"), false));
        // Whether a core is dumped is up to the host: what it does to a child of ours, it does to an agent.
        let dir = tempfile::tempdir().unwrap();
        let script = "ulimit -c unlimited; kill -SEGV $$";
        let here = std::process::Command::new("sh").args(["-c", script]).current_dir(&dir).status().unwrap();
        let dumper = herd.spawn_with("b", None, script, |spec| spec.cwd = Some(dir.path().to_owned()));
        let exit = await_event(&mut events, Kind::Failed, &dumper).exit.unwrap();
        assert_eq!((exit.signal.as_deref(), exit.core), (Some("SIGSEGV"), here.core_dumped()));
        herd.finish();
    }

    #[test]
    fn a_stranger_may_kill_an_agent_and_it_is_a_failure() {
        let herd = herd();
        let mut events = herd.follow();
        let id = herd.sleeper(None, "a");
        let pid = rustix::process::Pid::from_raw(herd.process_for_agent(&id).unwrap().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let exit = await_event(&mut events, Kind::Failed, &id).exit.unwrap();
        assert_eq!((exit.cause, exit.signal.as_deref()), (Cause::Signal, Some("SIGKILL")), "not an OOM, not ours");
        herd.finish();
    }

    #[test]
    fn an_exec_failure_tells_its_stage_and_error() {
        let herd = herd();
        let mut events = herd.follow();
        let error = herd.refused_with("a", |spec| spec.command = vec!["/no/such/program".to_owned()]);
        assert_eq!(error.code, Code::ExecFailed);
        assert!(error.message.contains("/no/such/program") && error.message.contains("ENOENT"), "{error}");
        let exit = await_event(&mut events, Kind::Failed, &name("a")).exit.unwrap();
        assert_eq!((exit.cause, exit.stage), (Cause::Exec, Some(treeherd::model::stage::Stage::Exec)));
        let error = herd.refused_with("a", |spec| spec.cwd = Some("/no/such".into()));
        assert!(error.message.contains("/no/such") && error.message.contains("ENOENT"), "{error}");
        let exit = await_event(&mut events, Kind::Failed, &name("a")).exit.unwrap();
        assert_eq!(exit.stage, Some(treeherd::model::stage::Stage::Cwd));
        herd.finish();
    }

    #[test]
    fn a_main_process_that_leaves_descendants_by_policy_terminate() {
        let herd = herd();
        let mut events = herd.follow();
        let good = herd.spawn("good", "sleep 1000 & exit 0");
        let exited = await_event(&mut events, Kind::Exited, &good).exit.unwrap();
        assert_eq!((exited.status, exited.descendants), (Some(0), 1));
        await_event(&mut events, Kind::Completed, &good);
        let bad = herd.spawn_with("bad", None, "trap '' TERM; sleep 1000 & exit 5", |spec| {
            spec.grace = Duration::from_millis(100);
        });
        let failed = await_event(&mut events, Kind::Failed, &bad).exit.unwrap();
        assert_eq!((failed.status, failed.descendants), (Some(5), 1), "a failure is told at once");
        herd.wait(&[good.clone(), bad.clone()]).unwrap();
        assert_eq!((herd.ends_of(&good), herd.ends_of(&bad)), (vec![Kind::Completed], vec![Kind::Failed]));
        assert_eq!(herd.processes(), Vec::<i32>::new());
        herd.finish();
    }

    #[test]
    fn a_main_process_that_leaves_descendants_by_policy_wait() {
        let herd = herd();
        let mut events = herd.follow();
        let fifo = herd.dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let script = format!("read x < {} & exit 0", fifo.display());
        let id = herd.spawn_with("a", None, &script, |spec| spec.on_main_exit = OnMainExit::Wait);
        await_event(&mut events, Kind::Exited, &id);
        let status = herd.agent_status(&id).unwrap();
        assert_eq!((status.state, status.pid), (State::Running, None));
        assert!(status.waits.is_some() && herd.ends_of(&id).is_empty());
        std::fs::write(&fifo, "go\n").unwrap();
        await_event(&mut events, Kind::Completed, &id);
        assert_eq!(herd.ends_of(&id), [Kind::Completed]);
        herd.finish();
    }

    #[test]
    fn agents_below_end_with_their_parent_or_are_waited_for() {
        let herd = herd();
        let mut events = herd.follow();
        let fifo = herd.dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let script = format!("read x < {}; exit 6", fifo.display());
        let strict = herd.spawn("strict", &script);
        let below = herd.sleeper(Some(&strict), "below");
        std::fs::write(&fifo, "go\n").unwrap();
        await_event(&mut events, Kind::Failed, &strict);
        await_event(&mut events, Kind::Terminated, &below);
        let patient = herd.spawn_with("patient", None, &script, |spec| spec.on_main_exit = OnMainExit::Wait);
        let child = herd.sleeper(Some(&patient), "child");
        std::fs::write(&fifo, "go\n").unwrap();
        await_event(&mut events, Kind::Failed, &patient);
        assert_eq!(herd.agent_status(&child).unwrap().state, State::Running);
        herd.terminate_agent(&child, None).unwrap();
        herd.wait(std::slice::from_ref(&patient)).unwrap();
        assert_eq!(herd.ends_of(&patient), [Kind::Failed]);
        herd.finish();
    }

    #[test]
    fn an_oom_kill_names_the_victim_and_its_own_limit() {
        let herd = herd();
        let mut events = herd.follow();
        let bystander = herd.program(None, "bystander", &["sleep", "1000"], |spec| {
            spec.limits = limits(&["memory_max=32MiB"]);
        });
        let id = herd.program(None, "eater", &["tail", "/dev/zero"], |spec| {
            spec.limits = limits(&["memory_max=24MiB"]);
        });
        let exit = await_event(&mut events, Kind::Failed, &id).exit.unwrap();
        assert_eq!((exit.cause, exit.signal.as_deref()), (Cause::Oom, Some("SIGKILL")));
        let oom = exit.oom.unwrap();
        assert_eq!((oom.culprit.as_deref(), oom.limit_bytes), (Some("eater"), Some(24 << 20)));
        assert_eq!(herd.agent_status(&bystander).unwrap().state, State::Running);
        assert_eq!(herd.ends_of(&id), [Kind::Failed]);
        assert_eq!(herd.stats().unwrap().causes.get(&Cause::Oom), Some(&1));
        herd.finish();
    }
}

mod level_management {
    use super::*;

    struct Tree {
        root: treeherd::model::id::AgentId,
        one: Vec<treeherd::model::id::AgentId>,
        two: Vec<treeherd::model::id::AgentId>,
    }

    fn tree(herd: &Own) -> Tree {
        let root = herd.sleeper(None, "root");
        let one: Vec<_> = (0..3).map(|n| herd.sleeper(Some(&root), &format!("one-{n}"))).collect();
        let two: Vec<_> = one
            .iter()
            .enumerate()
            .flat_map(|(n, parent)| [0, 1].map(|m| herd.sleeper(Some(parent), &format!("two-{n}-{m}"))))
            .collect();
        Tree { root, one, two }
    }

    #[test]
    fn a_level_ends_and_the_rest_of_the_tree_is_intact() {
        let herd = herd();
        let tree = tree(&herd);
        let pids = |ids: &[treeherd::model::id::AgentId]| {
            ids.iter().map(|id| herd.process_for_agent(id).unwrap()).collect::<Vec<_>>()
        };
        let before = pids(&tree.one);
        let receipt = herd.terminate_level(Level(2), Some(Duration::ZERO)).unwrap();
        assert_eq!((receipt.agents.len(), receipt.processes), (6, 6));
        assert!(receipt.agents.iter().all(|agent| agent.survivors == 0 && agent.signals["SIGKILL"] == 1));
        assert_eq!(pids(&tree.one), before);
        for id in &tree.two {
            assert_eq!(herd.ends_of(id), [Kind::Terminated]);
        }
        let receipt = herd.terminate_level(Level(1), None).unwrap();
        assert_eq!((receipt.agents.len(), receipt.processes), (3, 3));
        assert!(receipt.agents.iter().all(|agent| agent.signals["SIGTERM"] == 1));
        assert_eq!(herd.agent_status(&tree.root).unwrap().state, State::Running);
        assert_eq!(processes_in(&herd.agent_status(&tree.root).unwrap().cgroup).len(), 1);
        assert_eq!(herd.terminate_level(Level(1), None).unwrap().agents.len(), 0, "ending what has ended is no matter");
        herd.sleeper(Some(&tree.root), "new");
        herd.finish();
    }

    #[test]
    fn all_levels_are_cleaned_up() {
        let herd = herd_with(|settings| settings.herd.auto_cleanup = false);
        let tree = tree(&herd);
        assert_code(herd.cleanup(ids(&[&tree.root])), Code::WrongState);
        let receipt = herd.terminate(treeherd::model::request::Target::All, None).unwrap();
        assert_eq!((receipt.agents.len(), receipt.processes), (10, 10));
        assert_eq!(herd.agents().unwrap().len(), 10, "without auto_cleanup they stay");
        assert_eq!(herd.spools().len(), 10);
        assert_eq!(herd.processes().len(), 0);
        let mut events = herd.follow();
        let cleaned = herd.cleanup(treeherd::model::request::Target::All).unwrap();
        assert_eq!(cleaned.len(), 10);
        await_event(&mut events, Kind::Removed, &tree.root);
        assert_eq!(herd.agents().unwrap().len(), 0);
        until("no output is left", || herd.spools().is_empty());
        herd.sleeper(None, "root");
        herd.finish();
    }

    #[test]
    fn a_herd_is_ended_though_its_state_directory_is_gone() {
        let herd = herd();
        herd.sleeper(None, "a");
        delete(herd.dir.path().join("state"));
        herd.finish();
    }

    #[test]
    fn a_session_is_an_address() {
        let herd = herd();
        let in_session = |id: &str, parent| {
            herd.program(parent, id, &["sleep", "1000"], |spec| spec.session = Some("s1".parse().unwrap()))
        };
        let a = in_session("a", None);
        let outside = herd.sleeper(None, "outside");
        let b = in_session("b", Some(&outside));
        let session = "s1".parse().unwrap();
        assert_eq!(herd.pause_session(&session).unwrap().len(), 2);
        assert_eq!(herd.agent_status(&outside).unwrap().paused, Paused::No);
        assert_eq!(herd.agent_status(&b).unwrap().paused, Paused::Own);
        assert_eq!(herd.resume_session(&session).unwrap().len(), 2);
        let receipt = herd.terminate_session(&session, None).unwrap();
        assert_eq!(receipt.agents.iter().map(|agent| agent.id.clone()).collect::<Vec<_>>(), [a, b]);
        assert_eq!(herd.agent_status(&outside).unwrap().state, State::Running);
        assert_code(herd.pause_session(&"s2".parse().unwrap()), Code::NoSuchAgent);
        herd.finish();
    }

    #[test]
    fn a_level_is_paused_and_resumed() {
        let herd = herd();
        let tree = tree(&herd);
        assert_eq!(herd.pause_level(Level(1)).unwrap().len(), 3);
        assert_eq!(herd.agent_status(&tree.root).unwrap().paused, Paused::No);
        assert!(tree.two.iter().all(|id| herd.agent_status(id).unwrap().paused == Paused::Inherited));
        assert_eq!(herd.resume_level(Level(1)).unwrap().len(), 3);
        assert!(herd.agents().unwrap().iter().all(|agent| agent.paused == Paused::No));
        herd.finish();
    }

    #[test]
    fn what_has_ended_goes_after_the_retention() {
        let herd = herd_with(|settings| {
            settings.herd.cleanup_retention = Duration::from_millis(300);
            settings.herd.failed_retention = Duration::from_millis(300);
        });
        let mut events = herd.follow();
        let id = herd.spawn("a", "echo kept; exit 1");
        await_event(&mut events, Kind::Failed, &id);
        assert_eq!(output(&herd, &id), b"kept\n", "for a while there is the record and the output");
        assert_eq!(herd.refused_with("a", |_| {}).code, Code::DuplicateId);
        await_event(&mut events, Kind::Removed, &id);
        assert_code(herd.agent_status(&id), Code::NoSuchAgent);
        until("no output is left", || herd.spools().is_empty());
        let again = herd.spawn("a", "echo new; exit 0");
        await_event(&mut events, Kind::Completed, &again);
        assert_eq!(output(&herd, &again), b"new\n", "a new agent of that name begins anew");
        await_event(&mut events, Kind::Removed, &again);
        herd.finish();
    }
}
