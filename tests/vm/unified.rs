//! Limits that only cgroup2 has, or that need a machine of their own: swap, a disk, a processor for two.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Trial;
use treeherd::daemon::Settings;
use treeherd::herd::Herd;
use treeherd::kernel::host::{Host, Layout};
use treeherd::model::event::Kind;
use treeherd::model::id::{AgentId, Level};
use treeherd::model::limits::Knob;
use treeherd::model::request::LimitScope;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::{Cause, State};
use treeherd::model::units::Bytes;

use crate::common::*;
use crate::trials;

pub fn all() -> Vec<Trial> {
    let swap = "[ -e /swap ] || { fallocate -l 256M /swap; chmod 600 /swap; mkswap /swap; swapon /swap; } >/dev/null";
    assert!(Command::new("sh").args(["-c", swap]).status().unwrap().success());
    trials![
        every_limit_that_is_offered_has_its_file_and_is_in_it,
        memory_high_holds_without_a_kill,
        a_rule_on_pressure_tightens_memory_high_and_lets_go_of_it,
        an_oom_kill_takes_one_process_or_the_whole_agent,
        a_group_kill_that_meets_a_child_before_exec_spares_the_daemon,
        a_group_kill_is_not_enabled_over_a_child_that_shares_the_daemons_memory,
        an_oom_between_agents_within_their_limits_is_their_parents,
        swap_is_used_up_to_its_limit,
        forks_are_refused_in_the_name_of_the_limit_that_was_hit,
        a_memory_high_that_is_hit_is_told_with_what_could_be_done,
        a_memory_max_that_is_reached_without_a_kill_is_told,
        weights_divide_a_processor,
        a_quota_holds_for_all_below_it,
        a_quota_of_siblings_holds_for_them_together_and_changes_live,
        controllers_come_to_cgroups_that_are_empty_also_while_all_run,
        rates_hold_on_a_disk_and_change_live,
        output_on_tmpfs_stays_bounded_though_its_writer_is_throttled,
        what_was_enabled_is_disabled_in_the_end,
    ]
}

/// Holds this many MiB in one process of two. They are no zeros: of those some kernels keep one page for all.
fn holder(mebibytes: u32) -> String {
    format!(
        "tr '\\0' x </dev/zero | dd bs={mebibytes}M count=1 iflag=fullblock 2>/dev/null | \
         (dd bs=1 count=1 of=/dev/null 2>/dev/null; echo full; exec sleep 1000)"
    )
}

/// Where an agent's cgroup is.
fn cgroup(herd: &Own, id: &AgentId) -> PathBuf {
    PathBuf::from(herd.agent_status(id).unwrap().cgroup)
}

fn read(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap_or_else(|error| panic!("{file}: {error}")).trim().to_owned()
}

fn number(dir: &Path, file: &str) -> u64 {
    read(dir, file).parse().unwrap()
}

/// Reads a line of a file that has one number on each.
fn count(dir: &Path, file: &str, key: &str) -> u64 {
    let text = read(dir, file);
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).unwrap().parse().unwrap()
}

/// The number of the disk on which a file is.
fn disk_of(path: &Path) -> String {
    let device = rustix::fs::stat(path).unwrap().st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).unwrap();
    if block.join("partition").exists() { read(block.parent().unwrap(), "dev") } else { read(&block, "dev") }
}

fn every_limit_that_is_offered_has_its_file_and_is_in_it() {
    let host = Host::discover().unwrap();
    assert_eq!(host.layout, Layout::Unified);
    let herd = herd();
    let io = format!("{} rbps=1048576 wbps=2097152 riops=100 wiops=200", disk_of(herd.dir.path()));
    let wanted = |knob| match knob {
        Knob::MemoryMax => ("64MiB", "67108864"),
        Knob::MemoryHigh => ("48MiB", "50331648"),
        Knob::MemoryLow => ("8MiB", "8388608"),
        Knob::MemoryMin => ("4MiB", "4194304"),
        Knob::MemorySwapMax => ("16MiB", "16777216"),
        Knob::MemoryOomGroup => ("true", "1"),
        Knob::PidsMax => ("20", "20"),
        Knob::CpuMax => ("50%", "50000 100000"),
        Knob::CpuWeight => ("37", "37"),
        Knob::CpusetCpus => ("0", "0"),
        Knob::IoMax => (io.as_str(), io.as_str()),
        Knob::IoWeight => ("50", "default 50"),
        Knob::Hugetlb2MbMax => ("4MiB", "4194304"),
        Knob::Hugetlb1GbMax => ("1GiB", "1073741824"),
    };
    let mut offered = 0;
    for knob in Knob::ALL {
        let (text, file) = wanted(knob);
        if host.enforcer(knob).is_err() {
            herd.refused_with("refused", |spec| spec.limits = limits(&[&format!("{knob}={text}")]));
            continue;
        }
        let id = herd.program(None, knob.name(), &["sleep", "1000"], |spec| {
            spec.limits = limits(&[&format!("{knob}={text}")]);
        });
        assert_eq!(read(&cgroup(&herd, &id), knob.file()), file, "{knob}");
        offered += 1;
    }
    assert!(offered >= 11, "{offered}");
    herd.finish();
}

fn memory_high_holds_without_a_kill() {
    let herd = herd();
    let id = herd.spawn_with("a", None, &holder(40), |spec| spec.limits = limits(&["memory_high=16MiB"]));
    await_line(&herd, &id, "full");
    let dir = cgroup(&herd, &id);
    assert!(count(&dir, "memory.events", "high") > 0);
    assert!(number(&dir, "memory.swap.current") > 0, "what is over it was taken back");
    assert_eq!(count(&dir, "memory.events", "oom"), 0);
    assert_eq!(herd.agent_status(&id).unwrap().state, State::Running);
    herd.finish();
}

fn a_rule_on_pressure_tightens_memory_high_and_lets_go_of_it() {
    let herd = herd();
    let mut events = herd.follow();
    let (file, stop) = (herd.dir.path().join("file"), herd.dir.path().join("stop"));
    let script = format!(
        "dd if=/dev/zero of={0} bs=1M count=48 2>/dev/null; while [ ! -e {1} ]; do cat {0} >/dev/null; done; exec sleep 1000",
        file.display(),
        stop.display()
    );
    let id = herd.spawn_with("a", None, &script, |spec| {
        spec.limits = limits(&["memory_max=32MiB"]);
        spec.pressure = vec!["memory some 1% 2s warn,tighten".parse().unwrap()];
    });
    let dir = cgroup(&herd, &id);
    await_event(&mut events, Kind::PressureTightens, &id);
    while read(&dir, "memory.high") == "max" {
        let_pass("0.05");
    }
    assert!(number(&dir, "memory.high") < 32 << 20, "below what it uses");
    std::fs::write(&stop, "").unwrap();
    await_event(&mut events, Kind::PressureGone, &id);
    while read(&dir, "memory.high") != "max" {
        let_pass("0.05");
    }
    herd.finish();
}

fn an_oom_kill_takes_one_process_or_the_whole_agent() {
    let herd = herd();
    let mut events = herd.follow();
    let script = "sleep 1000 & tail /dev/zero; echo went on; exec sleep 1000";
    let one = herd.spawn_with("one", None, script, |spec| {
        spec.limits = limits(&["memory_max=16MiB", "memory_swap_max=0"]);
    });
    await_line(&herd, &one, "went on");
    assert_eq!(count(&cgroup(&herd, &one), "memory.events.local", "oom_kill"), 1);
    let all = herd.spawn_with("all", None, script, |spec| {
        spec.limits = limits(&["memory_max=16MiB", "memory_swap_max=0", "memory_oom_group=true"]);
    });
    let exit = await_event(&mut events, Kind::Failed, &all).exit.unwrap();
    assert_eq!((exit.cause, exit.oom.unwrap().culprit.as_deref()), (Cause::Oom, Some("all")));
    assert_eq!(exit.signal.as_deref(), Some("SIGKILL"), "the main process went with the one that ate");
    assert_eq!(herd.agent_status(&one).unwrap().state, State::Running);
    herd.finish();
}

/// Starts an agent whose program cannot start, below another one, and returns when its process is
/// there.
fn held(herd: &Own, top: &AgentId, program: &Path) -> std::process::Child {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("treeherd"));
    command.arg("--socket").arg(herd.socket()).args(["spawn", "held", "--parent", top.as_str(), "--"]).arg(program);
    let asked = command.spawn().unwrap();
    let procs = cgroup(herd, top).join("level-1/held/run-1/cgroup.procs");
    until("it is born", || std::fs::read_to_string(&procs).is_ok_and(|pids| !pids.is_empty()));
    asked
}

fn a_group_kill_that_meets_a_child_before_exec_spares_the_daemon() {
    let herd = daemon(&[]);
    let mut events = herd.follow();
    let (program, go) = (herd.dir.path().join("program"), herd.dir.path().join("go"));
    std::fs::copy("/bin/true", &program).unwrap();
    let lease = lease(&program);
    let top = herd.group(None, "top");
    let texts = ["memory_max=24MiB", "memory_swap_max=0", "memory_oom_group=true"];
    herd.limit(LimitScope::Agent(top.clone()), limits(&texts)).unwrap();
    let script = format!("until [ -e {} ]; do sleep 0.05; done; exec tail /dev/zero", go.display());
    let eater = herd.spawn_below(&top, "eater", &script);
    let mut asked = held(&herd, &top, &program);
    std::fs::write(go, "").unwrap();
    let exit = await_event(&mut events, Kind::Failed, &eater).exit.unwrap();
    assert_eq!(exit.cause, Cause::Oom);
    assert!(!asked.wait().unwrap().success(), "the child is killed with its group");
    herd.sleeper(None, "other");
    drop(lease);
    herd.finish();
}

fn a_group_kill_is_not_enabled_over_a_child_that_shares_the_daemons_memory() {
    let herd = daemon(&[]);
    let program = herd.dir.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let lease = lease(&program);
    let top = herd.group(None, "top");
    herd.limit(LimitScope::Agent(top.clone()), limits(&["memory_max=24MiB"])).unwrap();
    let mut asked = held(&herd, &top, &program);
    let enable = || herd.limit(LimitScope::Agent(top.clone()), limits(&["memory_oom_group=true"]));
    let error = enable().unwrap_err();
    assert!(error.message.contains("herd/top/level-1/held/run-1 has not started yet"), "{error}");
    assert_eq!(read(&cgroup(&herd, &top), "memory.oom.group"), "0");
    drop(lease);
    assert!(asked.wait().unwrap().success());
    enable().unwrap();
    herd.finish();
}

fn an_oom_between_agents_within_their_limits_is_their_parents() {
    let herd = herd();
    let mut events = herd.follow();
    let top = herd.group(None, "top");
    herd.limit(LimitScope::Agent(top.clone()), limits(&["memory_max=64MiB", "memory_swap_max=0"])).unwrap();
    let middle =
        herd.program(Some(&top), "middle", &["sleep", "1000"], |spec| spec.limits = limits(&["memory_max=48MiB"]));
    let hold =
        |id: &str| herd.spawn_with(id, Some(&middle), &holder(30), |spec| spec.limits = limits(&["memory_max=40MiB"]));
    await_line(&herd, &hold("first"), "full");
    let second = hold("second");
    let oom = loop {
        let event = events.next().unwrap().event.unwrap();
        if let Some(oom) = event.oom.or_else(|| event.exit.and_then(|exit| exit.oom)) {
            break oom;
        }
    };
    assert_eq!((oom.culprit.as_deref(), oom.limit_bytes), (Some("middle"), Some(48 << 20)));
    // Room is made where it was missing, while they run.
    herd.terminate(ids(&[&name("first"), &second]), Some(Duration::ZERO)).unwrap();
    herd.limit(LimitScope::Agent(middle.clone()), limits(&["memory_max=64MiB"])).unwrap();
    await_line(&herd, &hold("third"), "full");
    herd.finish();
}

fn swap_is_used_up_to_its_limit() {
    let herd = herd();
    let mut events = herd.follow();
    let hold = |id: &str, swap: &str| {
        herd.spawn_with(id, None, &holder(40), |spec| {
            spec.limits = limits(&["memory_max=24MiB", &format!("memory_swap_max={swap}")]);
        })
    };
    let with = hold("with", "64MiB");
    await_line(&herd, &with, "full");
    assert!(number(&cgroup(&herd, &with), "memory.swap.current") > 8 << 20);
    hold("without", "0");
    let oom = loop {
        let event = events.next().unwrap().event.unwrap();
        if let Some(oom) = event.oom.or_else(|| event.exit.and_then(|exit| exit.oom)) {
            break oom;
        }
    };
    assert_eq!(oom.culprit.as_deref(), Some("without"));
    herd.finish();
}

fn forks_are_refused_in_the_name_of_the_limit_that_was_hit() {
    let herd = herd();
    let mut events = herd.follow();
    let top = herd.program(None, "top", &["sleep", "1000"], |spec| spec.limits = limits(&["pids_max=30"]));
    let script = "while :; do sleep 1000 & done";
    let child = herd.spawn_with("child", Some(&top), script, |spec| spec.limits = limits(&["pids_max=5"]));
    let told = await_event(&mut events, Kind::Limit, &child);
    assert!(told.message.contains("pids_max=5"), "{}", told.message);
    await_event(&mut events, Kind::Failed, &child);
    // What comes after is told after what was hit before.
    let next = herd.spawn_with("next", Some(&top), script, |spec| spec.limits = limits(&["pids_max=6"]));
    await_event(&mut events, Kind::Limit, &next);
    let of_top: Vec<_> = herd.events_of(&top).into_iter().filter(|event| event.kind == Kind::Limit).collect();
    assert!(of_top.is_empty(), "its own limit was not: {of_top:?}");
    herd.finish();
}

fn a_memory_high_that_is_hit_is_told_with_what_could_be_done() {
    let herd = herd();
    let mut events = herd.follow();
    let top = herd.program(None, "top", &["sleep", "1000"], |spec| spec.limits = limits(&["memory_high=16MiB"]));
    herd.spawn_with("below", Some(&top), &holder(40), |_| {});
    let told = await_event(&mut events, Kind::Limit, &top);
    assert!(told.message.contains("memory_high=16777216 of top was hit"), "{}", told.message);
    assert!(told.message.contains("a rule on memory pressure could act on it"), "{}", told.message);
    assert_eq!(told.hit.unwrap().culprit, "top");
    herd.finish();
}

fn a_memory_max_that_is_reached_without_a_kill_is_told() {
    let herd = herd();
    let mut events = herd.follow();
    let file = Path::new("/var/tmp").join(unique("file"));
    // Pages of a file are given back: nobody has to die.
    let script = format!("dd if=/dev/zero of={} bs=1M count=48", file.display());
    let id = herd.spawn_with("a", None, &script, |spec| spec.limits = limits(&["memory_max=16MiB"]));
    let told = await_event(&mut events, Kind::Limit, &id);
    assert!(told.message.contains("memory is reclaimed, and nothing is killed"), "{}", told.message);
    await_event(&mut events, Kind::Completed, &id);
    std::fs::remove_file(file).unwrap();
    herd.finish();
}

fn weights_divide_a_processor() {
    let herd = herd();
    let busy = |id: &str, weight: &str| {
        herd.spawn_with(id, None, "while :; do :; done", |spec| spec.limits = limits(&["cpuset_cpus=0", weight]))
    };
    let both = [busy("light", "cpu_weight=100"), busy("heavy", "cpu_weight=400")];
    let used = || both.each_ref().map(|id| cpu_used(cgroup(&herd, id).to_str().unwrap()));
    let before = used();
    let_pass("3");
    let after = used();
    let ratio = (after[1] - before[1]) as f64 / (after[0] - before[0]) as f64;
    assert!((2.5..6.5).contains(&ratio), "4 to 1 is their right, {ratio} to 1 they had");
    herd.finish();
}

fn a_quota_holds_for_all_below_it() {
    let herd = herd();
    let top = herd.program(None, "top", &["sleep", "1000"], |spec| spec.limits = limits(&["cpu_max=20%"]));
    for id in ["first", "second"] {
        herd.spawn_below(&top, id, "while :; do :; done");
    }
    let dir = cgroup(&herd, &top);
    let (begun, before) = (std::time::Instant::now(), cpu_used(dir.to_str().unwrap()));
    let_pass("2");
    let share = (cpu_used(dir.to_str().unwrap()) - before) as f64 / begun.elapsed().as_micros() as f64;
    assert!(share < 0.3 && count(&dir, "cpu.stat", "nr_throttled") > 0, "20% together, they used {share}");
    herd.finish();
}

fn a_quota_of_siblings_holds_for_them_together_and_changes_live() {
    let herd = herd();
    let top = herd.group(None, "top");
    herd.limit(LimitScope::Siblings(Level(1)), limits(&["cpu_max=20%"])).unwrap();
    let both = ["first", "second"].map(|id| herd.spawn_below(&top, id, "while :; do :; done"));
    let dirs = both.each_ref().map(|id| cgroup(&herd, id));
    let share = || {
        let used = || dirs.iter().map(|dir| cpu_used(dir.to_str().unwrap())).sum::<u64>();
        let (begun, before) = (std::time::Instant::now(), used());
        let_pass("2");
        (used() - before) as f64 / begun.elapsed().as_micros() as f64
    };
    let narrow = share();
    assert!(narrow < 0.3, "20% together, they used {narrow}");
    herd.limit(LimitScope::Siblings(Level(1)), limits(&["cpu_max=max"])).unwrap();
    // What they may use now they get only while the host gives the guest its processor.
    until("they use more than half of the processor", || share() > 0.5);
    herd.finish();
}

/// On a cgroup with processes the kernel takes some controllers, and makes it a threaded one: its limits would be nobody's.
fn controllers_come_to_cgroups_that_are_empty_also_while_all_run() {
    let herd = herd();
    let top = herd.sleeper(None, "top");
    let middle = herd.sleeper(Some(&top), "middle");
    let leaf = herd.sleeper(Some(&middle), "leaf");
    for (id, texts) in [
        (&leaf, ["pids_max=20", "cpu_max=50%", "memory_max=32MiB"]),
        (&top, ["pids_max=40", "cpu_max=90%", "memory_max=64MiB"]),
    ] {
        herd.limit(LimitScope::Agent(id.clone()), limits(&texts)).unwrap();
    }
    assert_eq!(read(&cgroup(&herd, &leaf), "memory.max"), (32 << 20).to_string());
    for dir in herd.cgroups() {
        assert_eq!(read(&dir, "cgroup.type"), "domain", "{}", dir.display());
        let is_inner = !read(&dir, "cgroup.subtree_control").is_empty();
        assert!(!is_inner || read(&dir, "cgroup.procs").is_empty(), "{} has processes of its own", dir.display());
    }
    herd.finish();
}

fn rates_hold_on_a_disk_and_change_live() {
    let herd = herd();
    let mut events = herd.follow();
    let dir = tempfile::tempdir_in("/root").unwrap();
    let (disk, file) = (disk_of(dir.path()), dir.path().join("file"));
    let write = format!("exec dd if=/dev/zero of={} bs=256K count=16 oflag=direct", file.display());
    let begin = |id: &str, rate: &str| {
        herd.spawn_with(id, None, &write, |spec| spec.limits = limits(&[&format!("io_max={disk} wbps={rate}")]))
    };
    let slow = begin("slow", "1MiB");
    let exit = await_event(&mut events, Kind::Completed, &slow).exit.unwrap();
    assert!(exit.run_ms > 2_500, "4 MiB at 1 MiB/s took {} ms", exit.run_ms);
    // At this rate it would take an hour, which nobody waits for here.
    let freed = begin("freed", "1KiB");
    herd.limit(LimitScope::Agent(freed.clone()), limits(&[&format!("io_max={disk} wbps=max")])).unwrap();
    await_event(&mut events, Kind::Completed, &freed);
    herd.finish();
}

fn output_on_tmpfs_stays_bounded_though_its_writer_is_throttled() {
    let state = Path::new("/run").join(unique("state"));
    let herd = herd_with(|settings| settings.state_dir = state.clone());
    // A writer that is stopped in the middle of a write, again and again; its output counts as its memory.
    let id = herd.spawn_with("a", None, "yes | head -c 40000000", |spec| {
        spec.output_max = Bytes(1 << 20);
        spec.limits = limits(&["memory_max=24MiB", "memory_swap_max=0", "cpu_max=50%"]);
    });
    let status = herd.wait(std::slice::from_ref(&id)).unwrap().remove(0);
    assert_eq!(status.state, State::Completed, "{:?}", status.exit);
    herd.finish();
    std::fs::remove_dir_all(state).unwrap();
}

fn what_was_enabled_is_disabled_in_the_end() {
    let delegated = unique("delegated");
    let dir = Path::new("/sys/fs/cgroup").join(&delegated);
    std::fs::create_dir(&dir).unwrap();
    let state = tempfile::tempdir().unwrap();
    let herd = Herd::start(Settings { cgroup: delegated, ..Settings::new(state.path()) }).unwrap();
    let mut spec = AgentSpec::new(name("a"), ["sleep", "1000"]);
    spec.limits = limits(&["memory_max=64MiB", "pids_max=5"]);
    herd.spawn_child_agent(None, spec).unwrap();
    assert_eq!(read(&dir, "cgroup.subtree_control"), "memory pids");
    herd.shutdown(Some(Duration::ZERO)).unwrap();
    assert_eq!(read(&dir, "cgroup.subtree_control"), "", "who was given it gets it back as it was");
    std::fs::remove_dir(&dir).unwrap();
}
