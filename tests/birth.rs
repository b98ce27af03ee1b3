//! What an agent is born with, whoever started its supervisor.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::*;
use treeherd::herd::Herd;
use treeherd::model::spec::AgentSpec;
use treeherd::model::spec::RestartPolicy;

/// Prints what a program inherits without asking for it, one `name=value` a line.
const LOOK: &str = r#"
    echo umask=$(umask); echo nofile=$(ulimit -Sn)
    grep -E '^(SigBlk|SigIgn|Groups|Cpus_allowed|CapInh|CapAmb):' /proc/self/status | tr -d ' ' | sed 's/:\t*/=/'
    for file in coredump_filter oom_score_adj timerslack_ns personality; do echo $file=$(cat /proc/self/$file); done
    stat() { sed 's/.*) //' /proc/self/stat | cut -d' ' -f$1; }
    echo tty=$(stat 5) nice=$(stat 17) policy=$(stat 39) | tr ' ' '\n'
    echo ionice=$(ionice -p $$)
    test -e /proc/self/numa_maps && echo memory=$(head -n 1 /proc/self/numa_maps | cut -d' ' -f2)
    echo secrets=$(grep -c odd-secret /proc/keys)
"#;

/// Takes on what an administrator's shell may have, of each kind something. What the host refuses is left out.
#[allow(unsafe_code)]
fn become_odd() {
    const SET_TIMERSLACK: libc::c_int = 29;
    const IOPRIO_IDLE: libc::c_long = 3 << 13;
    const MPOL_PREFERRED: libc::c_long = 1;
    const KEY_SPEC_SESSION_KEYRING: libc::c_long = -3;
    let on_the_first_node = 1u64;
    let groups = [1, 2];
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: hard_limit() };
    let batch = libc::sched_param { sched_priority: 0 };
    for (file, value) in [("coredump_filter", "0"), ("oom_score_adj", "200"), ("timerslack_ns", "9000000")] {
        std::fs::write(format!("/proc/self/{file}"), value).unwrap();
    }
    // SAFETY: each call reads memory that outlives it, and changes this process alone, which exists for this.
    unsafe {
        libc::umask(0o077);
        libc::setgroups(groups.len(), groups.as_ptr());
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const batch);
        libc::setpriority(libc::PRIO_PROCESS, 0, 5);
        libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
        libc::prctl(SET_TIMERSLACK, 9_000_000);
        let mut first: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut first);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const first);
        libc::syscall(libc::SYS_ioprio_set, 1, 0, IOPRIO_IDLE);
        libc::syscall(libc::SYS_set_mempolicy, MPOL_PREFERRED, &raw const on_the_first_node, 64);
        libc::syscall(libc::SYS_keyctl, 1, c"odd".as_ptr());
        let (kind, name) = (c"user".as_ptr(), c"odd-secret".as_ptr());
        libc::syscall(libc::SYS_add_key, kind, name, c"x".as_ptr(), 1, KEY_SPEC_SESSION_KEYRING);
        for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGUSR1] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGUSR2);
    blocked.thread_block().unwrap();
}

fn hard_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Returns what an agent sees, by name.
fn look(herd: &Herd, id: &str, change: impl FnOnce(&mut AgentSpec)) -> BTreeMap<String, String> {
    let mut spec = AgentSpec::new(name(id), ["sh", "-c", &format!("{LOOK}\necho done; exec sleep 1000")]);
    change(&mut spec);
    herd.spawn_child_agent(None, spec).unwrap_or_else(|error| panic!("{error}"));
    await_line(herd, &name(id), "done");
    let text = String::from_utf8(output(herd, &name(id))).unwrap();
    text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

/// What is the same on every host.
fn assert_clean(seen: &BTreeMap<String, String>, groups: &str) {
    let fixed = [
        ("umask", "0022"),
        ("SigBlk", "0000000000000000"),
        ("SigIgn", "0000000000000000"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("Groups", groups),
        ("timerslack_ns", "50000"),
        ("personality", "00000000"),
        ("tty", "0"),
        ("nice", "0"),
        ("policy", "0"),
        ("nofile", &hard_limit().min(1024).to_string()),
    ];
    for (name, value) in fixed {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name}: {seen:?}");
    }
}

#[test]
fn an_agent_is_born_the_same_whoever_started_the_daemon() {
    if !alone("an_agent_is_born_the_same_whoever_started_the_daemon") {
        return;
    }
    let as_nobody = |spec: &mut AgentSpec| spec.user = Some("nobody".to_owned());
    let plain = daemon(&[]);
    let expected = [look(&plain, "root", |_| {}), look(&plain, "nobody", as_nobody)];
    plain.finish();
    become_odd();
    let odd = daemon(&[]);
    let seen = [look(&odd, "root", |_| {}), look(&odd, "nobody", as_nobody)];
    // A restart is a spawner thread's child, and the first start the loop's own.
    let first = odd.dir.path().join("first");
    let again = look(&odd, "again", |spec| {
        spec.command[2].insert_str(0, &format!("mkdir {} && exit 1\n", first.display()));
        spec.restart.policy = RestartPolicy::OnFailure;
        spec.restart.delay = std::time::Duration::from_millis(10);
    });
    odd.finish();
    assert_clean(&seen[0], "");
    assert_clean(&again, "");
    assert_eq!(seen[0]["coredump_filter"], "00000033");
    assert_eq!(seen[0]["oom_score_adj"], "0");
    assert_eq!(seen[1]["secrets"], "0", "the starter's keyring is not the agent's");
    // Root may view every key of its user, those of other sessions on this host among them.
    let without_keys = |mut of: [BTreeMap<String, String>; 2]| {
        of[0].remove("secrets");
        of
    };
    assert_eq!(without_keys(seen), without_keys(expected));
}

#[test]
fn a_herd_in_somebody_elses_program_leaves_that_program_as_it_is() {
    if !alone("a_herd_in_somebody_elses_program_leaves_that_program_as_it_is") {
        return;
    }
    become_odd();
    let own = || {
        let file = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap();
        let kept = ["Umask", "Groups", "Cpus_allowed_list", "SigIgn", "SigBlk", "CapInh"];
        let kept = |line: &&str| line.split_once(':').is_some_and(|(name, _)| kept.contains(&name));
        // This thread's: the C library's `setgroups` signals every other thread, which blocks that
        // signal meanwhile.
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let status: Vec<_> = status.lines().filter(kept).map(str::to_owned).collect();
        (status, file("limits"), file("coredump_filter"), file("oom_score_adj"), file("personality"))
    };
    let before = own();
    let herd = herd();
    let seen = look(&herd, "a", |_| {});
    assert_clean(&seen, "");
    assert_eq!(own(), before);
    herd.finish();
    assert_eq!(own(), before);
}

#[test]
fn what_an_agent_is_born_with_can_be_asked_for() {
    let herd = daemon(&[]);
    let seen = look(&herd, "asked", |spec| {
        spec.umask = Some("027".parse().unwrap());
        spec.nice = Some(7);
        spec.rlimits.insert(treeherd::model::spec::Rlimit::Nofile, "100:200".parse().unwrap());
    });
    assert_eq!((&*seen["umask"], &*seen["nice"], &*seen["nofile"]), ("0027", "7", "100"));
    herd.finish();
}

#[test]
fn a_daemon_with_a_real_time_policy_keeps_it_in_every_thread_and_gives_it_to_no_agent() {
    let prefix = ["chrt", "--rr", "2"];
    if !std::process::Command::new(prefix[0]).args(&prefix[1..]).arg("true").status().is_ok_and(|it| it.success()) {
        return skip("no real-time policy can be taken here");
    }
    let herd = daemon_by(&prefix, &[]);
    assert_eq!(look(&herd, "a", |_| {})["policy"], "0");
    let policy_of = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(38)?.parse::<i32>().ok()
    };
    let tasks = std::fs::read_dir(format!("/proc/{}/task", herd.pid())).unwrap();
    let policies: Vec<i32> = tasks.filter_map(|task| policy_of(task.unwrap())).collect();
    assert!(policies.len() > 5 && policies.iter().all(|it| *it == libc::SCHED_RR), "{policies:?}");
    herd.finish();
}
