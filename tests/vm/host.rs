//! What runs here: one guest for each test binary and kernel, and an honest count of what passed inside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed, Trial};

use crate::INSIDE;
use crate::guest::{FirstProcess, Guest, Kit, Told};

/// The kernels of the guests, by the first two numbers of their release.
const KERNELS: [&str; 2] = ["6.12", "6.1"];

/// The test binaries that ask nothing of the kernel; all others run in guests, too.
const ELSEWHERE: [&str; 4] = ["check", "cli_usage", "simulation", "tidy"];

/// Tests that are left out in guests: they measure time, which an emulated CPU has too little of, or take volume, which is the
/// same everywhere.
const WITHOUT: [&str; 7] = [
    "ten_thousand_connections",
    "a_slow_reader_of_events",
    "item_2_a_fork_bomb",
    "item_5_gigabytes",
    "item_6_exit_3",
    "item_8_kill_9",
    "item_10_ten_levels",
];

/// How long a guest may take.
const LIMIT: Duration = Duration::from_secs(240);

/// What is done in a guest before its tests: it is noted which cgroups there are.
const BEFORE: &str = "trace() { ls -d /sys/fs/cgroup/*/ 2>/dev/null; }
before=$(trace)
";

/// What is done after them: the kernel has no trace of them.
const AFTER: &str = "status=$?
[ \"$(trace)\" = \"$before\" ] || { trace; echo 'these cgroups are left'; exit 1; }
exit $status
";

/// What each guest told about its tests, and how many of them passed.
static TOLD: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for kernel in KERNELS {
        for binary in binaries() {
            let name = format!("linux_{kernel}::{binary}");
            trials.push(in_guest(name, move |kit, name| test_binary(kit, name, kernel, &binary)));
        }
    }
    trials.push(in_guest("systemd::service".to_owned(), service));
    trials.push(in_guest("systemd::power_failure".to_owned(), power_failure));
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

/// Prints what the guests told, and loudly if there were none.
pub fn report() {
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    told.iter().for_each(|(line, _)| println!("{line}"));
    println!("in {} guests {} tests passed", told.len(), told.iter().map(|(_, passed)| passed).sum::<u32>());
    if let Some(Err(why)) = KIT.get() {
        eprintln!("\nSKIPPED: every test in a guest. {why}\n");
    }
}

static KIT: OnceLock<Result<Kit, String>> = OnceLock::new();

/// A test that needs guests. Where there can be none it is counted as ignored, or fails if they are required.
fn in_guest(name: String, test: impl FnOnce(&Kit, &str) -> Result<(), Failed> + Send + 'static) -> Trial {
    let own = name.clone();
    Trial::ignorable_test(name, move || {
        if !is_required() {
            return Ok(Completion::ignored_with("guests take many minutes: ask for them with REQUIRE=vm"));
        }
        match KIT.get_or_init(prepare) {
            Ok(kit) => test(kit, &own).map(|()| Completion::Completed),
            Err(why) => Err(Failed::from(why.clone())),
        }
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

/// Runs all tests of a binary in a guest.
fn test_binary(kit: &Kit, name: &str, kernel: &str, binary: &str) -> Result<(), Failed> {
    let without: String = WITHOUT.iter().map(|test| format!(" --skip {test}")).collect();
    let program = &programs()[binary];
    let files = [program.clone(), programs()["treeherd"].clone()];
    // What a kernel of that age has not, a test may skip there; it says so, and that is told.
    let job = format!("{}{BEFORE}{} --show-output{without}\n{AFTER}", environment("unified"), program.display());
    let begun = Instant::now();
    let first = FirstProcess::Script;
    let told = kit.run(&Guest { kernel, first, files: &files, job: &job, disk: None, limit: LIMIT });
    tests_passed(name, begun, &told)
}

/// Runs a part of this binary's tests in a guest with systemd and the service.
fn with_systemd(kit: &Kit, part: &str, disk: Option<&Path>) -> Told {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(here.join("systemd")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let (program, treeherd) = (&programs()["vm"], &programs()["treeherd"]);
    files.extend([program.clone(), treeherd.clone()]);
    // As the README has it.
    let install = format!(
        "cd {}
        mkdir -p /etc/sysusers.d
        install -m 755 {} /usr/bin/
        install -m 644 systemd/treeherd*.s* /etc/systemd/system/
        install -m 644 systemd/sysusers.conf /etc/sysusers.d/treeherd.conf && systemd-sysusers
        systemctl daemon-reload
        ",
        here.display(),
        treeherd.display()
    );
    let job = format!("{}{install}\nexec {} --test-threads=1", environment(part), program.display());
    let first = FirstProcess::Systemd;
    kit.run(&Guest { kernel: KERNELS[0], first, files: &files, job: &job, disk, limit: LIMIT })
}

/// The service's tests, in one guest.
fn service(kit: &Kit, name: &str) -> Result<(), Failed> {
    let begun = Instant::now();
    tests_passed(name, begun, &with_systemd(kit, "service", None))
}

/// One guest whose power fails, and another one on its disk.
fn power_failure(kit: &Kit, name: &str) -> Result<(), Failed> {
    let begun = Instant::now();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = dir.path().join("disk");
    kit.new_disk(&disk);
    let crashed = with_systemd(kit, "crash", Some(&disk));
    if crashed.status.is_some() || !crashed.console.contains("sysrq: Resetting") {
        return Err(failure(&crashed));
    }
    tests_passed(name, begun, &with_systemd(kit, "after_crash", Some(&disk)))
}

/// What every test in a guest is told: which part of this binary it is.
fn environment(part: &str) -> String {
    format!("export RUST_BACKTRACE=1 NO_COLOR=1 {INSIDE}={part}\n")
}

/// Says whether all tests of a guest passed, and that there were any.
fn tests_passed(name: &str, begun: Instant, told: &Told) -> Result<(), Failed> {
    let result = told.text.lines().rfind(|line| line.starts_with("test result:")).unwrap_or("no test result");
    let count =
        |what: &str| result.split("; ").find_map(|part| part.strip_suffix(what)?.rsplit(' ').next()?.parse().ok());
    let passed: u32 = count(" passed").unwrap_or(0);
    let skipped = told.text.lines().filter(|line| line.starts_with("skipped: ")).map(|line| format!("\n    {line}"));
    let result = result.trim_start_matches("test result: ");
    let line = format!("{name}: {result} ({:.0} s){}", begun.elapsed().as_secs_f32(), skipped.collect::<String>());
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
