//! Output through pipes: what an agent can do to its own stdout, and what dies without taking bytes along.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use treeherd::api::method::Output as Page;
use treeherd::herd::Herd;
use treeherd::model::event::Kind;
use treeherd::model::id::AgentId;
use treeherd::model::recovery::RestartPolicy;
use treeherd::model::spec::{Rlimit, RlimitPair};
use treeherd::model::stream::Output;
use treeherd::model::units::{Bytes, Max};

/// Finds the keepers of a herd by what they have open: those that splice have files too.
fn keepers(herd: &Own, splices: bool) -> Vec<i32> {
    let state = herd.dir.path().join("state");
    let open = |pid: &Path| {
        let descriptors = std::fs::read_dir(pid.join("fd")).into_iter().flatten().flatten();
        let paths = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        paths.filter(|path| path.starts_with(&state)).collect::<Vec<_>>()
    };
    let is_it = |pid: &i32| {
        let open = open(&Path::new("/proc").join(pid.to_string()));
        is_keeper(*pid) && !open.is_empty() && open.iter().any(|path| path.ends_with("stdout")) == splices
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_it).collect()
}

/// Waits until a herd has one keeper that splices other than this one.
fn await_keeper(herd: &Own, not: Option<i32>) -> i32 {
    await_one(herd, true, not)
}

fn await_one(herd: &Own, splices: bool, not: Option<i32>) -> i32 {
    let mut found = Vec::new();
    until("there is one keeper", || {
        found = keepers(herd, splices);
        found.retain(|pid| Some(*pid) != not);
        found.len() == 1
    });
    found[0]
}

/// Starts an agent whose output is pipes.
fn spawn(herd: &Own, id: &str, script: &str) -> AgentId {
    herd.spawn_with(id, None, script, |spec| spec.output = Output::Pipe)
}

fn signal(pid: i32, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

fn spool(herd: &Own, id: &str, stream: &str) -> PathBuf {
    herd.dir.path().join("state/agents").join(id).join(stream)
}

/// Waits until an agent has ended, and returns what its output was when that was told.
fn said(herd: &Herd, id: &AgentId) -> (String, String) {
    herd.wait(std::slice::from_ref(id)).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output(herd, id)), text(errors(herd, id)))
}

#[test]
fn whoever_opens_its_stdout_again_adds_to_it() {
    let herd = herd();
    let script = "echo one; echo two > /dev/stdout; echo e1 >&2; echo e2 | tee /dev/stderr; echo e3 > /proc/self/fd/2; echo three";
    let id = spawn(&herd, "a", script);
    assert_eq!(said(&herd, &id), ("one\ntwo\ne2\nthree\n".to_owned(), "e1\ne2\ne3\n".to_owned()));
    herd.finish();
}

#[test]
fn another_user_opens_its_own_stdout_and_nobody_elses() {
    let herd = herd();
    let as_nobody = |id: &str, script: &str| {
        herd.spawn_with(id, None, script, |spec| {
            spec.output = Output::Pipe;
            spec.user = Some("nobody".to_owned());
        })
    };
    let a = as_nobody("a", "echo out > /dev/stdout; echo err > /dev/stderr");
    assert_eq!(said(&herd, &a), ("out\n".to_owned(), "err\n".to_owned()));
    let root = spawn(&herd, "root", "echo $$; exec sleep 1000");
    until("it has written its pid", || !output(&herd, &root).is_empty());
    let pid = herd.process_for_agent(&root).unwrap().unwrap();
    let b = as_nobody("b", &format!("echo no > /proc/{pid}/fd/1 || echo refused"));
    assert_eq!(said(&herd, &b).0, "refused\n");
    herd.finish();
}

#[test]
fn a_limit_on_file_sizes_does_not_count_output() {
    let herd = herd();
    let id = herd.spawn_with("a", None, "head -c 100000 /dev/zero; echo $? >&2", |spec| {
        spec.output = Output::Pipe;
        let limit = RlimitPair { soft: Max::Value(4096), hard: Max::Value(4096) };
        spec.rlimits.insert(Rlimit::Fsize, limit);
    });
    let (out, err) = said(&herd, &id);
    assert_eq!((out.len(), err.as_str()), (100_000, "0\n"));
    herd.finish();
}

#[test]
fn asyncio_takes_stdout_for_a_pipe() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("no python3");
    }
    let herd = herd();
    // What does not fit into the pipe at once it writes later, unless it believes that nobody reads.
    let script = "import asyncio, sys\n\
        async def main():\n    \
            loop = asyncio.get_running_loop()\n    \
            over = loop.create_future()\n    \
            P = type('P', (asyncio.Protocol,), {'connection_lost': lambda self, why: over.set_result(why)})\n    \
            transport, _ = await loop.connect_write_pipe(P, sys.stdout)\n    \
            transport.write(b'by asyncio\\n' * 20000)\n    \
            transport.close()\n    \
            why = await over\n    \
            if why: sys.exit(repr(why))\n\
        asyncio.run(main())";
    let id = herd.program(None, "a", &["python3", "-c", script], |spec| spec.output = Output::Pipe);
    let (out, err) = said(&herd, &id);
    assert_eq!((out.len(), err.as_str()), (220_000, ""));
    herd.finish();
}

#[test]
fn the_last_words_of_a_run_are_there_when_its_end_is_told() {
    let herd = herd();
    let mut events = herd.follow();
    for round in 0..30 {
        let id = spawn(&herd, &format!("a{round}"), "head -c 60000 /dev/zero; echo last words >&2; kill -9 $$");
        let event = await_event(&mut events, Kind::Failed, &id);
        assert_eq!(event.exit.unwrap().last_lines, ["last words"]);
        assert_eq!((output(&herd, &id).len(), errors(&herd, &id)), (60_000, b"last words\n".to_vec()));
    }
    herd.finish();
}

#[test]
fn each_run_has_its_own_last_words_though_all_write_to_the_same_pipe() {
    let herd = herd();
    let mut events = herd.follow();
    let script = "echo run $$ >&2; exit 3";
    let id = herd.spawn_with("a", None, script, |spec| {
        spec.output = Output::Pipe;
        spec.restart.policy = RestartPolicy::OnFailure;
        spec.restart.delay = std::time::Duration::from_millis(1);
        spec.restart.intensity = 100;
    });
    for _ in 0..5 {
        let event = await_event(&mut events, Kind::Failed, &id);
        let lines = event.exit.unwrap().last_lines;
        let pid = event.pid.map(|pid| pid.to_string()).unwrap_or_default();
        assert!(lines.last().unwrap().ends_with(&pid), "{lines:?} of {pid}");
    }
    herd.finish();
}

#[test]
fn what_is_written_while_no_daemon_lives_is_kept() {
    let mut herd = daemon(&[]);
    let go = herd.dir.path().join("go");
    let script =
        format!("until [ -e {} ]; do sleep 0.05; done; seq 200000; echo end >&2; exec sleep 1000", go.display());
    let a = spawn(&herd, "a", &script);
    let short =
        spawn(&herd, "short", &format!("until [ -e {} ]; do sleep 0.05; done; echo its last words", go.display()));
    let keeper = await_keeper(&herd, None);
    herd.crash();
    std::fs::write(&go, "").unwrap();
    // Far more than a pipe holds: somebody empties it.
    until("all is written", || std::fs::read(spool(&herd, "a", "stderr")).unwrap() == b"end\n");
    herd.restart();
    assert_eq!(await_keeper(&herd, None), keeper, "the keeper is the same one");
    let all: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(output(&herd, &a) == all.as_bytes(), "not a byte is missing or doubled");
    assert_eq!(said(&herd, &short).0, "its last words\n");
    herd.terminate(ids(&[&a]), None).unwrap();
    herd.finish();
    until("the keeper has ended with the herd", || process_state(keeper).is_none_or(|state| state == 'Z'));
}

#[test]
fn a_killed_keeper_is_replaced_and_takes_no_byte_along() {
    let herd = daemon(&[]);
    let mut events = herd.follow();
    let a =
        spawn(&herd, "a", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo $i; done; echo end >&2; exec sleep 1000");
    let (mut last, mut last_holder) = (None, None);
    for round in 0..4 {
        let splices = round % 2 == 0;
        let both = (await_keeper(&herd, last), await_one(&herd, false, last_holder));
        let keeper = if splices { both.0 } else { both.1 };
        signal(keeper, "KILL");
        let is_lost = |event: &treeherd::model::event::Event| event.kind == Kind::KeeperLost;
        events.by_ref().filter_map(|note| note.event).find(is_lost).expect("its end is told");
        *(if splices { &mut last } else { &mut last_holder }) = Some(keeper);
    }
    await_line(&herd, &a, "end");
    let all: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
    assert!(output(&herd, &a) == all.as_bytes(), "not a byte is missing or doubled");
    let b = spawn(&herd, "b", "echo of one that came later");
    assert_eq!(said(&herd, &b).0, "of one that came later\n");
    herd.finish();
}

#[test]
fn agents_that_write_while_every_keeper_is_killed_live_and_lose_nothing() {
    let herd = daemon(&[]);
    let a = spawn(&herd, "a", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo $i; done; echo end >&2");
    let mut last = Vec::new();
    for _ in 0..5 {
        let mut both = Vec::new();
        until("there are two new keepers", || {
            both = [keepers(&herd, true), keepers(&herd, false)].concat();
            both.len() == 2 && both.iter().all(|pid| !last.contains(pid))
        });
        both.iter().for_each(|pid| signal(*pid, "KILL"));
        last = both;
    }
    let ended = herd.wait(std::slice::from_ref(&a)).unwrap();
    assert_eq!(ended[0].exit.as_ref().unwrap().status, Some(0), "it was no SIGPIPE");
    until("all is written", || errors(&herd, &a) == b"end\n");
    let all: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
    until("not a byte is missing or doubled", || output(&herd, &a) == all.as_bytes());
    herd.finish();
}

#[test]
fn agents_for_whose_pipes_one_keeper_has_too_few_descriptors_are_kept_by_several() {
    let few = ["sh", "-c", "ulimit -n 512; exec \"$@\"", "sh"];
    let mut herd = daemon_by(&few, &["--max-agents-per-level", "1000", "--max-children", "1000"]);
    let agents: Vec<AgentId> = (0..150)
        .map(|number| spawn(&herd, &format!("a{number}"), &format!("echo {number}; exec sleep 1000")))
        .collect();
    // Four descriptors for each agent: 125 of 512.
    assert_eq!((keepers(&herd, true).len(), keepers(&herd, false).len()), (2, 2));
    let all_have_written = |herd: &Own| {
        for (number, id) in agents.iter().enumerate() {
            until("it has written", || output(herd, id) == format!("{number}\n").as_bytes());
        }
    };
    all_have_written(&herd);
    herd.crash();
    herd.restart();
    assert_eq!((keepers(&herd, true).len(), keepers(&herd, false).len()), (2, 2), "the same ones");
    all_have_written(&herd);
    herd.finish();
}

#[test]
fn a_keeper_that_stands_still_holds_up_no_end_and_loses_nothing() {
    let herd = daemon(&[]);
    let a = spawn(&herd, "a", "head -c 1000000 /dev/zero; echo end >&2");
    let b = spawn(&herd, "b", "read line < /dev/zero; exit 3");
    let keeper = await_keeper(&herd, None);
    signal(keeper, "STOP");
    let c = spawn(&herd, "c", "echo last words; exit 4");
    let ended = herd.wait(std::slice::from_ref(&c)).unwrap();
    assert_eq!(ended[0].exit.as_ref().unwrap().status, Some(4), "its end is told all the same");
    signal(keeper, "CONT");
    assert_eq!(said(&herd, &a).0.len(), 1_000_000, "whoever filled its pipe has waited");
    until("what was left in the pipe is there", || output(&herd, &c) == b"last words\n");
    herd.terminate(ids(&[&b]), Some(std::time::Duration::ZERO)).unwrap();
    herd.finish();
}

#[test]
fn keepers_end_by_themselves_when_nobody_is_left() {
    let mut herd = daemon(&[]);
    let a = spawn(&herd, "a", "sleep 0.3; echo end");
    let keeper = await_keeper(&herd, None);
    drop(a);
    herd.crash();
    until("the keeper has ended", || process_state(keeper).is_none_or(|state| state == 'Z'));
    assert_eq!(std::fs::read(spool(&herd, "a", "stdout")).unwrap(), b"end\n");
    herd.restart();
    let b = spawn(&herd, "b", "echo of the next one");
    assert_eq!(said(&herd, &b).0, "of the next one\n");
    herd.finish();
}

#[test]
fn an_agent_cannot_grow_the_disk_by_what_it_does_to_its_stdout() {
    let herd = herd();
    let script = "fallocate -l 100M /proc/self/fd/1 2>/dev/null; fallocate -n -o 1G -l 100M /proc/self/fd/1 2>/dev/null
        truncate -s 1G /proc/self/fd/1 2>/dev/null; truncate -s 0 /proc/self/fd/1 2>/dev/null
        head -c 3000000 /dev/zero; echo end >&2";
    let id = herd.spawn_with("a", None, script, |spec| {
        spec.output = Output::Pipe;
        spec.output_max = Bytes(64 << 10);
    });
    assert_eq!(said(&herd, &id).1, "end\n");
    until("the space is given back", || {
        let about = std::fs::metadata(spool(&herd, "a", "stdout")).unwrap();
        assert_eq!(about.len(), 3_000_000, "offsets are what was written, no more and no less");
        about.blocks() * 512 <= 256 << 10
    });
    herd.finish();
}

#[test]
fn files_and_nothing_at_all_are_still_a_choice() {
    let herd = herd();
    let looks = "readlink /proc/self/fd/1; [ -p /dev/stdout ] && echo a pipe";
    let of = |id: &str, output: Output| herd.spawn_with(id, None, looks, |spec| spec.output = output);
    let (file, null, pipe) = (of("file", Output::File), of("null", Output::Null), of("pipe", Output::Pipe));
    let state = herd.dir.path().join("state/agents");
    assert_eq!(said(&herd, &file).0, format!("{}\n", state.join("file/stdout").display()));
    assert_eq!(said(&herd, &null), (String::new(), String::new()));
    assert_eq!(said(&herd, &pipe).0, format!("{}\na pipe\n", state.join("pipe/stdout.pipe").display()));
    herd.finish();
}

#[test]
fn a_reader_is_told_what_is_gone_before_the_first_line() {
    let herd = herd();
    let id = herd.spawn_with("a", None, "seq 100000", |spec| {
        spec.output = Output::Pipe;
        spec.output_max = Bytes(64 << 10);
    });
    herd.wait(std::slice::from_ref(&id)).unwrap();
    until("something is gone", || spool_blocks(&herd, "a") < 400 << 10);
    for words in [&["logs", "a"][..], &["logs", "a", "--lines", "90000"], &["logs", "a", "--follow"]] {
        let told = treeherd(&herd, words);
        let (first, lines) = (String::from_utf8(told.stderr).unwrap(), String::from_utf8(told.stdout).unwrap());
        assert!(first.contains("bytes of stdout are gone"), "{words:?}: {first:?}");
        assert!(lines.ends_with("stdout 100000\n") && !lines.contains(" stdout 1\n"), "{words:?}");
    }
    let told = treeherd(&herd, &["logs", "a", "--lines", "3"]);
    assert_eq!(String::from_utf8(told.stderr).unwrap(), "", "whoever gets what was asked for misses nothing");
    herd.finish();
}

/// Checks that a page holds what `yes 12345` wrote at its offsets, and accounts for every byte of standard output from an offset on.
fn check_page(page: &Page, from: u64) {
    let gone = page.gone.stdout.unwrap();
    let read: usize = page.pieces.iter().map(|piece| piece.data.len()).sum();
    assert_eq!(page.next.stdout, Some(from + gone + read as u64), "every byte is read or reported as gone");
    for piece in &page.pieces {
        let wanted = b"12345\n".iter().cycle().skip(usize::try_from(piece.offset % 6).unwrap());
        assert!(piece.data.iter().zip(wanted).all(|(a, b)| a == b), "the bytes at {} are others", piece.offset);
    }
}

#[test]
fn a_page_read_while_old_output_is_given_back_has_no_byte_that_was_not_written() {
    let herd = herd();
    let id = herd.spawn_with("a", None, "yes 12345 | head -c 20000000", |spec| {
        spec.output = Output::Pipe;
        spec.output_max = Bytes(64 << 10);
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // What is read is always the oldest output: the next to be given back.
            scope.spawn(|| {
                while !herd.agent_status(&id).unwrap().state.has_ended() {
                    check_page(&herd.agent_output(&id, 0).unwrap(), 0);
                }
            });
        }
    });
    herd.finish();
}

fn spool_blocks(herd: &Own, id: &str) -> u64 {
    std::fs::metadata(spool(herd, id, "stdout")).unwrap().blocks() * 512
}

#[test]
fn every_line_knows_its_time_also_after_an_adoption() {
    let mut herd = daemon(&[]);
    let go = herd.dir.path().join("go");
    let a = spawn(
        &herd,
        "a",
        &format!("echo one; until [ -e {} ]; do sleep 0.05; done; echo two; exec sleep 1000", go.display()),
    );
    await_line(&herd, &a, "one");
    let time_of = |herd: &Own, from| {
        let page = herd.agent_output(&a, from).unwrap();
        page.pieces.first().and_then(|piece| piece.time)
    };
    let before = time_of(&herd, 0).expect("it was seen");
    until("that is stored", || spool(&herd, "a", "stdout.times").metadata().is_ok_and(|about| about.len() > 0));
    herd.crash();
    std::fs::write(&go, "").unwrap();
    until("it has written", || std::fs::read(spool(&herd, "a", "stdout")).unwrap() == b"one\ntwo\n");
    herd.restart();
    assert_eq!(time_of(&herd, 0), Some(before), "as it was told before");
    assert!(time_of(&herd, 4) > Some(before), "of what no daemon saw, when it was written");
    herd.terminate(ids(&[&a]), None).unwrap();
    herd.finish();
}

#[test]
fn an_agent_that_holds_the_lock_of_its_pipe_holds_up_no_adoption() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("no python3");
    }
    let mut herd = daemon(&[]);
    let (go, held) = (herd.dir.path().join("go"), herd.dir.path().join("held"));
    // The kernel holds a pipe's lock while a splice into it waits for its source.
    let script = format!(
        "import os, socket, time\n\
         pipe = os.open('/proc/self/fd/1', os.O_RDWR)\n\
         a, b = socket.socketpair()\n\
         while not os.path.exists('{}'): time.sleep(0.05)\n\
         open('{}', 'w').close()\n\
         os.splice(a.fileno(), pipe, 4096)",
        go.display(),
        held.display()
    );
    let holder = herd.program(None, "holder", &["python3", "-c", &script], |spec| spec.output = Output::Pipe);
    let other = spawn(&herd, "other", "read line < /dev/zero");
    let holder_pid = herd.process_for_agent(&holder).unwrap().unwrap();
    let own = |id: &str| std::fs::read_link(format!("/proc/{id}/fd/1")).is_ok();
    until("both run", || own(&holder_pid.to_string()));
    let both = [await_keeper(&herd, None), await_one(&herd, false, None)];
    herd.crash();
    both.iter().for_each(|pid| signal(*pid, "KILL"));
    until("no keeper is left", || both.iter().all(|pid| process_state(*pid).is_none_or(|state| state == 'Z')));
    std::fs::write(&go, "").unwrap();
    until("the lock is held", || held.exists() && process_state(holder_pid) == Some('S'));
    herd.restart();
    let b = spawn(&herd, "b", "echo of another one");
    assert_eq!(said(&herd, &b).0, "of another one\n");
    let is_kept = |keeper: i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{keeper}/fd")).into_iter().flatten().flatten();
        let mut paths = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        paths.any(|path| path == spool(&herd, "other", "stdout"))
    };
    until("the other one is kept", || keepers(&herd, true).into_iter().any(is_kept));
    herd.terminate(ids(&[&holder, &other]), Some(std::time::Duration::ZERO)).unwrap();
    herd.finish();
}

#[test]
fn a_keeper_that_was_held_up_forgets_every_agent_that_was_cleaned_up_meanwhile() {
    // More orders than a socket holds.
    const AGENTS: usize = 400;
    let herd = daemon(&["--max-agents-per-level", "1000", "--max-children", "1000"]);
    let live = spawn(&herd, "live", "exec sleep 1000");
    let both = [await_keeper(&herd, None), await_one(&herd, false, None)];
    let open = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = both.map(open);
    let agents: Vec<AgentId> = (0..AGENTS).map(|number| spawn(&herd, &format!("a{number}"), "true")).collect();
    herd.wait(&agents).unwrap();
    both.iter().for_each(|pid| signal(*pid, "STOP"));
    herd.cleanup(ids(&agents.iter().collect::<Vec<_>>())).unwrap();
    both.iter().for_each(|pid| signal(*pid, "CONT"));
    // Pipes that are ready for agents to come are kept as well.
    let is_small = |(pid, before): (i32, usize)| open(pid) < before + 100;
    until("all are forgotten", || both.into_iter().zip(before).all(is_small));
    herd.terminate(ids(&[&live]), Some(std::time::Duration::ZERO)).unwrap();
    herd.finish();
}
