//! What runs here: one guest for each kernel and all test binaries, and an honest count of what passed inside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::guest::{FirstProcess, Guest, Kit, Told};
use crate::{INSIDE, package, user};

/// The kernels of the guests, by the first two numbers of their release.
const KERNELS: [&str; 2] = ["6.12", "6.1"];

/// The test binaries that ask nothing of the kernel, or nothing that the others do not, or a whole machine, or what a guest lacks (a
/// terminal, time for a hundred clients); all others run in guests, too.
const ELSEWHERE: [&str; 17] = [
    "apply",
    "check",
    "cli_usage",
    "cost",
    "instructions",
    "load",
    "policy",
    "recovery",
    "restored",
    "rules",
    "scarce",
    "schema",
    "simulation",
    "texts",
    "tidy",
    "top",
    "words",
];

/// Of those, the ones whose outcome does not depend on how old the kernel is: the newest one is enough for them.
const ON_THE_NEWEST: [&str; 9] =
    ["acceptance", "after", "delegate", "follow", "named", "origin", "pipes", "ready", "user"];

/// Tests that are left out in guests: they burn processors or take volume, of which an emulated one has too little, or need Python
/// or a terminal.
const WITHOUT: [&str; 15] = [
    "a_fifo_or_a_terminal_that_is_stdin",
    "ten_thousand_connections",
    "a_slow_reader_of_events",
    "a_delegated_agent_reaches_neither",
    "a_page_read_while_old_output",
    "agents_for_whose_pipes_one_keeper",
    "a_thousand_messages",
    "flood_of",
    "item_2_a_fork_bomb",
    "item_5_gigabytes",
    "item_6_exit_3",
    "item_8_kill_9",
    "item_10_ten_levels",
    "io_that_is_waited_for",
    "asyncio_takes",
];

/// How much of a CPU's time a guest may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// How a guest runs a binary's tests: before and after, the kernel has the same cgroups. Programs are read before: a guest's
/// clock does not wait for its disk. What hangs is killed.
const RUN: &str = "trace() { ls -d /sys/fs/cgroup/*/ 2>/dev/null; }
tests() {
    echo \"=== $1\"
    before=$(trace)
    cat \"$2\" $TREEHERD >/dev/null
    timeout --foreground --signal=KILL 300 \"$2\" --show-output --test-threads=4 $WITHOUT
    status=$?
    [ \"$(trace)\" = \"$before\" ] || { trace; echo 'these cgroups are left'; status=1; }
    echo \"=== $1: $status\"
}
";

/// The guests there were, and how long each took.
static GUESTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What was told in guests about the tests of each binary, and how many of them passed.
static TOLD: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());

/// Lists all tests here, those of one binary on all kernels side by side: they are in different guests.
pub fn trials(arguments: &Arguments) -> Vec<Trial> {
    let is_wanted = |name: &str| !arguments.is_filtered_out(&Trial::test(name, || Ok(())));
    let name = |kernel: &str, binary: &str| format!("linux_{kernel}::{binary}");
    let runs_on = |kernel: &str, binary: &String| kernel == KERNELS[0] || !ON_THE_NEWEST.contains(&binary.as_str());
    let guests = KERNELS.map(|kernel| {
        let is_run = |binary: &String| runs_on(kernel, binary) && is_wanted(&name(kernel, binary));
        let binaries = binaries().into_iter().filter(is_run).collect();
        Arc::new(Shared { kernel, binaries, told: OnceLock::new() })
    });
    let mut trials = Vec::new();
    let (both, newest): (Vec<_>, Vec<_>) = binaries().into_iter().partition(|binary| runs_on(KERNELS[1], binary));
    for binary in both.into_iter().chain(newest) {
        for guest in guests.clone().into_iter().filter(|guest| runs_on(guest.kernel, &binary)) {
            let binary = binary.clone();
            trials.push(in_guest(name(guest.kernel, &binary), move |kit, name| guest.binary(kit, name, &binary)));
        }
    }
    // The first test on a kernel boots its guest, and the others on it wait for that: tests with guests of their own come in between.
    let waits = trials.split_off(KERNELS.len().min(trials.len()));
    trials.push(in_guest("systemd::service".to_owned(), service));
    trials.push(in_guest("systemd::power_failure".to_owned(), power_failure));
    trials.push(in_guest("systemd::package".to_owned(), package::here));
    trials.push(in_guest("systemd::user".to_owned(), user::here));
    for (name, options) in [("container", ""), ("hostile", ""), ("without_memory", "cgroup_disable=memory")] {
        let test = move |kit: &Kit, name: &str| part(kit, name, FirstProcess::Script, options, Vec::new());
        trials.push(in_guest(name.to_owned(), test));
    }
    trials.extend(waits);
    trials
}

/// The names of the test binaries that run in guests: this one, which finds itself inside, is one of them.
fn binaries() -> BTreeSet<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let sources = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let names = sources.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| !ELSEWHERE.contains(&name.as_str())).chain(["vm".to_owned()]).collect()
}

/// Prints what the guests told, and loudly if there were none and so many tests were left out.
pub fn report(ignored: u64) {
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let guests = GUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    told.iter().map(|(line, _)| line).chain(&*guests).for_each(|line| println!("{line}"));
    println!("in {} guests {} tests passed", guests.len(), told.iter().map(|(_, passed)| passed).sum::<u32>());
    if let (Some(Err(why)), 1..) = (KIT.get(), ignored) {
        eprintln!("\nSKIPPED: {ignored} test binaries in guests. {why}\n");
    }
}

static KIT: OnceLock<Result<Kit, String>> = OnceLock::new();

/// A test that needs guests. Where there can be none it is counted as ignored, or fails if they are required.
fn in_guest(name: String, test: impl FnOnce(&Kit, &str) -> Result<(), Failed> + Send + 'static) -> Trial {
    let own = name.clone();
    Trial::ignorable_test(name, move || match KIT.get_or_init(prepare) {
        Ok(kit) => test(kit, &own).map(|()| Completion::Completed),
        Err(why) if is_required() => Err(Failed::from(why.clone())),
        Err(_) => Ok(Completion::ignored_with("there can be no guests here")),
    })
}

/// Makes everything ready, so that no guest's time is spent on it.
fn prepare() -> Result<Kit, String> {
    let kit = Kit::prepare()?;
    programs();
    Ok(kit)
}

fn is_required() -> bool {
    std::env::var("REQUIRE").unwrap_or_default().split(',').any(|tier| tier == "vm")
}

/// A guest for all test binaries of a kernel that were asked for, booted for the first of them.
struct Shared {
    kernel: &'static str,
    binaries: Vec<String>,
    told: OnceLock<Told>,
}

impl Shared {
    /// Says whether all tests of a binary passed.
    fn binary(&self, kit: &Kit, name: &str, binary: &str) -> Result<(), Failed> {
        let told = self.told.get_or_init(|| self.run(kit));
        // What a kernel of that age has not, a test may skip there; it says so, and that is told.
        let begin = format!("=== {binary}\n");
        let part = told.text.split_once(&begin).map_or("it was not reached", |(_, rest)| rest);
        let (text, end) = part.split_once(&format!("=== {binary}: ")).unwrap_or((part, ""));
        let status = end.lines().next().and_then(|status| status.parse().ok());
        tests_passed(name, &Told { status, text: text.to_owned(), console: told.console.clone() })
    }

    fn run(&self, kit: &Kit) -> Told {
        let chosen = self.binaries.iter().map(|binary| (binary, &programs()[binary]));
        let without: String = WITHOUT.iter().map(|test| format!(" --skip {test}")).collect();
        let treeherd = &programs()["treeherd"];
        let own = format!("TREEHERD={}\nWITHOUT='{without}'\n", treeherd.display());
        let mut job = environment("unified") + &own + RUN;
        chosen.clone().for_each(|(name, program)| job += &format!("tests {name} {}\n", program.display()));
        let files: Vec<_> = chosen.map(|(_, program)| program).chain([treeherd]).cloned().collect();
        let (kernel, first) = (self.kernel, FirstProcess::Script);
        let guest = Guest { kernel, options: "", first, files: &files, job: &job, disk: None, limit: LIMIT };
        run(kit, &format!("linux_{kernel}"), &guest)
    }
}

/// Runs a part of this binary's tests in a guest on the newest kernel, with these options and, besides the programs, these files.
pub fn part(kit: &Kit, name: &str, first: FirstProcess, options: &str, mut files: Vec<PathBuf>) -> Result<(), Failed> {
    let part = name.rsplit("::").next().unwrap();
    let program = &programs()["vm"];
    files.extend([program.clone(), programs()["treeherd"].clone()]);
    let job = format!("{}exec {} --test-threads=1", environment(part), program.display());
    let guest = Guest { kernel: KERNELS[0], options, first, files: &files, job: &job, disk: None, limit: LIMIT };
    tests_passed(name, &run(kit, name, &guest))
}

/// Runs a part of this binary's tests in a guest with systemd and the service.
fn with_systemd(kit: &Kit, part: &str, disk: Option<&Path>) -> Told {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(here.join("systemd")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let (program, treeherd) = (&programs()["vm"], &programs()["treeherd"]);
    files.extend([program.clone(), treeherd.clone()]);
    let install = package::installation(treeherd);
    let job = format!("{}{install}\nexec {} --test-threads=1", environment(part), program.display());
    let first = FirstProcess::Systemd;
    let guest = Guest { kernel: KERNELS[0], options: "", first, files: &files, job: &job, disk, limit: LIMIT };
    run(kit, &format!("systemd::{part}"), &guest)
}

/// Runs a guest, and notes how long it took.
fn run(kit: &Kit, name: &str, guest: &Guest<'_>) -> Told {
    let begun = Instant::now();
    let told = kit.run(guest);
    let line = format!("{name}: a guest, {:.0} s", begun.elapsed().as_secs_f32());
    GUESTS.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    told
}

/// The service's tests, in one guest.
fn service(kit: &Kit, name: &str) -> Result<(), Failed> {
    tests_passed(name, &with_systemd(kit, "service", None))
}

/// One guest whose power fails, and another one on its disk.
fn power_failure(kit: &Kit, name: &str) -> Result<(), Failed> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = dir.path().join("disk");
    kit.new_disk(&disk);
    let crashed = with_systemd(kit, "crash", Some(&disk));
    if crashed.status.is_some() || !crashed.console.contains("sysrq: Resetting") {
        return Err(failure(&crashed));
    }
    tests_passed(name, &with_systemd(kit, "after_crash", Some(&disk)))
}

/// What every test in a guest is told: which part of this binary it is.
fn environment(part: &str) -> String {
    format!("export RUST_BACKTRACE=1 NO_COLOR=1 {INSIDE}={part}\n")
}

/// Says whether all tests of a guest passed, and that there were any.
fn tests_passed(name: &str, told: &Told) -> Result<(), Failed> {
    let result = told.text.lines().rfind(|line| line.starts_with("test result:")).unwrap_or("no test result");
    let count =
        |what: &str| result.split("; ").find_map(|part| part.strip_suffix(what)?.rsplit(' ').next()?.parse().ok());
    let passed: u32 = count(" passed").unwrap_or(0);
    let skipped = told.text.lines().filter(|line| line.starts_with("skipped: ")).map(|line| format!("\n    {line}"));
    let result = result.trim_start_matches("test result: ");
    let line = format!("{name}: {result}{}", skipped.collect::<String>());
    TOLD.lock().unwrap_or_else(PoisonError::into_inner).push((line, passed));
    let is_well = told.status == Some(0) && count(" failed") == Some(0) && passed > 0;
    if is_well { Ok(()) } else { Err(failure(told)) }
}

/// Tells all that a guest said.
fn failure(told: &Told) -> Failed {
    let end = told.status.map_or("it came to no end".to_owned(), |status| format!("it ended with {status}"));
    Failed::from(format!("{end}\n--- what it said:\n{}\n--- its console:\n{}", told.text, told.console))
}

/// The programs of this package, by name: this asks cargo, which has just built them, so that no older one is taken.
fn programs() -> &'static BTreeMap<String, PathBuf> {
    static PROGRAMS: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--no-run", "--quiet", "--message-format=json"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8(output.stdout).unwrap();
        let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let program = |artifact: serde_json::Value| {
            let executable = artifact["executable"].as_str()?;
            let is_unit_test = artifact["profile"]["test"] == true && artifact["target"]["kind"][0] != "test";
            (!is_unit_test)
                .then(|| (artifact["target"]["name"].as_str().unwrap().to_owned(), PathBuf::from(executable)))
        };
        artifacts.filter_map(program).collect()
    })
}
