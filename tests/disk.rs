//! The disk of the state directory: it stalls, it is full, it gives back less than was written, and something is left on it.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use treeherd::api::method::EventQuery;
use treeherd::herd::EventStream;
use treeherd::model::error::Code;
use treeherd::model::event::{Event, Kind};
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::State;

/// A file system of the test's own, under a state directory.
struct Mount(PathBuf);

fn run(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success())
}

impl Mount {
    /// Puts a file system on a disk there.
    fn disk(own: &Own) -> Option<Self> {
        let (image, at) = (own.dir.path().join("image"), Self::make(own));
        let (image, shown) = (image.to_str().unwrap(), at.to_str().unwrap());
        let is_made = run(&["truncate", "--size=64M", image])
            && run(&["mkfs.ext4", "-q", image])
            && run(&["mount", "-o", "loop", image, shown]);
        is_made.then_some(Self(at))
    }

    /// Puts a file system in memory there, of this size.
    fn memory(own: &Own, size: &str) -> Option<Self> {
        let at = Self::make(own);
        let size = format!("mode=711,size={size}");
        run(&["mount", "-t", "tmpfs", "-o", &size, "none", at.to_str().unwrap()]).then_some(Self(at))
    }

    fn make(own: &Own) -> PathBuf {
        let at = own.dir.path().join("state");
        std::fs::create_dir(&at).unwrap();
        at
    }

    fn freeze(&self) {
        assert!(run(&["fsfreeze", "--freeze", self.0.to_str().unwrap()]));
    }

    fn thaw(&self) -> bool {
        run(&["fsfreeze", "--unfreeze", self.0.to_str().unwrap()])
    }

    /// Leaves no room on it, and returns the file that takes it.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.thaw();
        run(&["umount", "--lazy", self.0.to_str().unwrap()]);
    }
}

fn await_kind(events: &mut EventStream, kind: Kind) -> Event {
    let mut events = events.by_ref().filter_map(|note| note.event);
    events.find(|event| event.kind == kind).unwrap_or_else(|| panic!("no {kind} within {PATIENCE:?}"))
}

/// Reads the whole journal, which is to have no gap.
fn journal(own: &Own) -> Vec<Event> {
    let (mut all, mut since) = (Vec::new(), 0);
    loop {
        let page = own.events(EventQuery { since: Some(since), ..EventQuery::default() }).unwrap();
        assert_eq!(page.lost, 0);
        if page.events.is_empty() {
            return all;
        }
        since = page.last;
        all.extend(page.events);
    }
}

fn kill(pid: i32) {
    assert!(run(&["kill", "-KILL", &pid.to_string()]));
}

#[test]
fn a_disk_that_stalls_delays_no_death_no_kill_and_no_answer() {
    let mut own = daemon_to_be(&[]);
    let Some(disk) = Mount::disk(&own) else { return skip("no loop mounts here") };
    own.restart();
    let [dies, ends, pauses, comes_back] = ["dies", "ends", "pauses", "comes-back"].map(|id| own.sleeper(None, id));
    let mut events = own.follow();
    disk.freeze();
    kill(own.agent_status(&dies).unwrap().pid.unwrap());
    // It is reported while the disk stands still: that is the only way that this goes on.
    await_event(&mut events, Kind::Failed, &dies);
    let stalled = await_kind(&mut events, Kind::StateStalled);
    assert!(stalled.message.contains("takes longer than it may"), "{stalled:?}");
    own.terminate(ids(&[&ends]), Some(Duration::ZERO)).unwrap();
    own.pause_agent(&pauses).unwrap();
    own.restart_agent(&comes_back).unwrap();
    assert_eq!(own.agents().unwrap().len(), 4);
    let refused = own.refused_with("new", |_| {});
    assert_eq!(refused.code, Code::StateUnwritable, "{refused}");
    let mut late = own.follow();
    assert!(disk.thaw());
    await_kind(&mut late, Kind::StateRecovered);
    own.sleeper(None, "new");
    // All of it is written by now, in order, and a next daemon goes on from there.
    let all = journal(&own);
    let kinds: Vec<Kind> = all.iter().map(|event| event.kind).collect();
    let place = |kind| kinds.iter().position(|it| *it == kind).unwrap_or_else(|| panic!("no {kind}: {kinds:?}"));
    assert!(place(Kind::Failed) < place(Kind::Terminated) && place(Kind::Terminated) < place(Kind::Paused));
    assert_eq!(kinds.iter().filter(|kind| matches!(kind, Kind::StateStalled | Kind::StateRecovered)).count(), 2);
    own.crash();
    own.restart();
    let state = |id| own.agent_status(id).map(|status| status.state);
    assert_eq!(state(&pauses).unwrap(), State::Paused);
    assert_eq!(own.agent_status(&comes_back).unwrap().run.0, 2);
    assert_eq!(state(&name("new")).unwrap(), State::Running);
    own.end();
    drop(disk);
}

#[test]
fn on_a_full_disk_nothing_is_begun_that_a_next_daemon_could_not_go_on_with() {
    let mut own = daemon_to_be(&[]);
    let Some(memory) = Mount::memory(&own, "12m") else { return skip("no mounts here") };
    own.restart();
    let mut events = own.follow();
    let filler = memory.fill();
    let spec = |id: usize| {
        let mut spec = AgentSpec::new(name(&format!("a{id}")), ["sleep", "1000"]);
        spec.env.insert("BULK".to_owned(), "x".repeat(100_000));
        spec
    };
    let mut accepted = 0;
    let refused = loop {
        match own.spawn_child_agent(None, spec(accepted)) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 100, "the records have room for these, on a disk that has none");
    };
    assert_eq!(refused.code, Code::StateUnwritable, "{refused}");
    assert!(accepted > 0 && refused.message.contains("No space left"), "{accepted}: {refused}");
    await_kind(&mut events, Kind::StateStalled);
    own.crash();
    own.restart();
    let running = own.agents().unwrap().into_iter().filter(|agent| agent.state == State::Running).count();
    assert_eq!(running, accepted, "whoever was accepted lives, and is known");
    assert_eq!(own.refused(None, spec(accepted)).code, Code::StateUnwritable);
    let mut events = own.follow();
    std::fs::remove_file(filler).unwrap();
    await_kind(&mut events, Kind::StateRecovered);
    own.spawn_child_agent(None, spec(accepted)).unwrap();
    own.end();
    drop(memory);
}

#[test]
fn what_is_written_while_the_disk_is_full_waits_in_the_pipe_and_is_lost_by_nobody() {
    let mut own = daemon_to_be(&[]);
    let Some(memory) = Mount::memory(&own, "12m") else { return skip("no mounts here") };
    own.restart();
    let mut events = own.follow();
    let go = own.dir.path().join("go");
    let script = |id: &str, script: &str| {
        own.spawn_with(id, None, &format!("until [ -e {} ]; do sleep 0.05; done; {script}", go.display()), |_| {})
    };
    let (all, last) = (script("all", "seq 30000; exec sleep 1000"), script("last", "echo last words; exit 3"));
    let filler = memory.fill();
    std::fs::write(&go, "").unwrap();
    let is_stuck = |event: &Event| event.kind == Kind::Notice && event.message.contains("its output cannot be written");
    let notice = events.by_ref().filter_map(|note| note.event).find(is_stuck).unwrap();
    assert!(notice.message.contains("ENOSPC"), "{}", notice.message);
    let ended = own.wait(std::slice::from_ref(&last)).unwrap();
    assert_eq!(ended[0].exit.as_ref().unwrap().status, Some(3), "its end is told all the same");
    assert!(output(&own, &all).len() < 100_000 && output(&own, &last).is_empty());
    own.crash();
    own.restart();
    std::fs::remove_file(filler).unwrap();
    let numbers: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
    until("all is written", || output(&own, &all) == numbers.as_bytes());
    until("the last words are written", || output(&own, &last) == b"last words\n");
    own.terminate_agent(&all, Some(Duration::ZERO)).unwrap();
    own.end();
    drop(memory);
}

#[test]
fn records_that_are_cut_end_nobody() {
    let mut own = daemon(&[]);
    own.sleeper(None, "first");
    let below = own.group(None, "group");
    own.sleeper(Some(&below), "last");
    let living = own.processes();
    own.crash();
    let records = own.dir.path().join("state/records");
    let whole = std::fs::read_to_string(&records).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let mut refused = 0;
    // A cut behind what precedes the record of a run looks as a spawn that was under way does, and that is ended.
    let is_begun =
        |line: &&str| line.starts_with("{\"begun\"") || line.starts_with("{\"birth\"") && line.contains("\"command\"");
    for kept in (1..lines.len()).filter(|kept| !is_begun(&lines[kept - 1])) {
        std::fs::write(&records, lines[..kept].concat()).unwrap();
        let output = own.start().stderr(std::process::Stdio::piped()).output_unless_it_runs();
        let Some(text) = output else {
            // What is left of the records is enough: no agent is missing.
            assert_eq!(own.processes(), living, "{kept} lines");
            continue;
        };
        refused += 1;
        assert!(text.contains("the records are not complete") && text.contains("herd/"), "{kept} lines: {text}");
        assert_eq!(own.processes(), living, "{kept} lines");
    }
    assert!(refused > 2, "{refused}");
    std::fs::write(&records, whole).unwrap();
    own.restart();
    assert_eq!(own.agents().unwrap().len(), 3);
    assert_eq!(own.processes(), living);
    own.finish();
}

/// Runs a daemon that is expected not to start.
trait Refused {
    /// Returns what it said when it ended; none if it began to serve, and then it is killed.
    fn output_unless_it_runs(&mut self) -> Option<String>;
}

impl Refused for Command {
    fn output_unless_it_runs(&mut self) -> Option<String> {
        use std::io::{BufRead, BufReader};
        let mut child = self.spawn().unwrap();
        let mut said = String::new();
        let mut serves = false;
        for line in BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok) {
            serves |= line.contains("listening on");
            said += &(line + "\n");
            if serves {
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
        (!serves).then_some(said)
    }
}

#[test]
fn bytes_that_are_no_event_end_no_reading_of_events() {
    let mut own = daemon(&[]);
    own.sleeper(None, "before");
    own.crash();
    let journal = own.dir.path().join("state/journal");
    let mut text = std::fs::read(&journal).unwrap();
    text.extend(b"\xff\xfe\x80 no text\n{\"seq\":\n\n{\"half\": \"a li\n");
    std::fs::write(&journal, text).unwrap();
    own.restart();
    own.sleeper(None, "after");
    let printed = treeherd(&own, &["events", "--since", "0"]);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains("before") && printed.contains("after"), "{printed}");
    own.finish();
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn no_output_is_left_of_an_agent_that_nobody_knows() {
    let mut own = daemon(&[]);
    let known = own.sleeper(None, "known");
    let state = own.dir.path().join("state");
    for round in 0..3 {
        own.crash();
        // As a spawn that was under way leaves it, or an agent that was just forgotten.
        let left = state.join(format!("agents/left{round}"));
        std::fs::create_dir(&left).unwrap();
        File::create(left.join("stdout")).unwrap();
        own.restart();
        assert!(!left.exists());
        assert_eq!(own.spools(), [known.to_string()].into());
    }
    let ended = own.spawn("ended", "echo the end");
    own.wait(&[ended]).unwrap();
    own.end();
    assert_eq!(entries(&state.join("agents")), Vec::<String>::new(), "an orderly end leaves no output");
    let left: Vec<String> = entries(&state);
    assert_eq!(left, ["agents", "journal", "journal.ends", "lock"], "and nothing but these");
}
