//! What runs here: one guest for each test binary and kernel, and an honest count of what passed inside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed, Trial};

use crate::INSIDE;
use crate::guest::{FirstProcess, Guest, Kit, Told};

/// The kernels of the guests, by the first two numbers of their release.
const KERNELS: [&str; 2] = ["6.12", "6.1"];

/// A test binary that runs in a guest.
struct Binary {
    name: &'static str,
    /// How long it may take there, in seconds.
    limit: u64,
    /// Tests that are left out there: they measure time, which an emulated CPU has too little of, or take volume, which is
    /// the same everywhere.
    without: &'static [&'static str],
}

const BINARIES: [Binary; 10] = [
    Binary { name: "kernel_process", limit: 120, without: &[] },
    Binary { name: "kernel_cgroups", limit: 120, without: &[] },
    Binary { name: "limits", limit: 120, without: &[] },
    Binary { name: "origin", limit: 180, without: &[] },
    Binary { name: "failures", limit: 120, without: &[] },
    Binary { name: "service", limit: 120, without: &[] },
    Binary { name: "init", limit: 120, without: &[] },
    Binary { name: "api", limit: 180, without: &["ten_thousand_connections", "a_slow_reader_of_events"] },
    Binary { name: "acceptance", limit: 240, without: &["item_2", "item_5", "item_6"] },
    // This one: it finds itself inside.
    Binary { name: "vm", limit: 180, without: &[] },
];

/// What is done in a guest before its tests: there is swap, and it is noted which cgroups there are.
const BEFORE: &str = "fallocate -l 256M /swap && chmod 600 /swap && mkswap /swap >/dev/null && swapon /swap
trace() { ls -d /sys/fs/cgroup/*/ 2>/dev/null; }
before=$(trace)
";

/// What is done after them: the kernel has no trace of them.
const AFTER: &str = "status=$?
[ \"$(trace)\" = \"$before\" ] || { trace; echo 'these cgroups are left'; exit 1; }
exit $status
";

/// What each guest told about its tests.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for kernel in KERNELS {
        for binary in &BINARIES {
            let name = format!("linux_{kernel}::{}", binary.name);
            trials.push(in_guest(name, move |kit, name| test_binary(kit, name, kernel, binary)));
        }
    }
    trials.push(in_guest("systemd::service".to_owned(), service));
    trials.push(in_guest("systemd::power_failure".to_owned(), power_failure));
    trials
}

/// Prints what the guests told, and loudly if there were none.
pub fn report() {
    for line in TOLD.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{line}");
    }
    if let Some(Err(why)) = KIT.get() {
        eprintln!("\nSKIPPED: every test in a guest. {why}\n");
    }
}

static KIT: OnceLock<Result<Kit, String>> = OnceLock::new();

/// A test that needs guests. Where there can be none it is counted as ignored, or fails if they are required.
fn in_guest(name: String, test: impl FnOnce(&Kit, &str) -> Result<(), Failed> + Send + 'static) -> Trial {
    let own = name.clone();
    Trial::ignorable_test(name, move || match KIT.get_or_init(|| Kit::prepare().inspect(|_| drop(programs()))) {
        Ok(kit) => test(kit, &own).map(|()| Completion::Completed),
        Err(why) if is_required() => Err(Failed::from(why)),
        Err(_) => Ok(Completion::ignored_with("there are no guests here")),
    })
}

fn is_required() -> bool {
    std::env::var("REQUIRE").unwrap_or_default().split(',').any(|tier| tier == "vm")
}

/// Runs all tests of a binary in a guest.
fn test_binary(kit: &Kit, name: &str, kernel: &str, binary: &Binary) -> Result<(), Failed> {
    let without: String = binary.without.iter().map(|test| format!(" --skip {test}")).collect();
    let program = &programs()[binary.name];
    let files = [program.clone(), programs()["treeherd"].clone()];
    let job = format!("{}{BEFORE}{}{without}\n{AFTER}", environment("unified"), program.display());
    let limit = Duration::from_secs(binary.limit);
    let begun = Instant::now();
    let told = kit.run(&Guest { kernel, first: FirstProcess::Script, files: &files, job: &job, disk: None, limit });
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
    let limit = Duration::from_secs(180);
    kit.run(&Guest { kernel: KERNELS[0], first: FirstProcess::Systemd, files: &files, job: &job, disk, limit })
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

/// What every test in a guest is told: nothing may be skipped there, and which part of this binary it is.
fn environment(part: &str) -> String {
    format!("export REQUIRE=kernel RUST_BACKTRACE=1 NO_COLOR=1 {INSIDE}={part}\n")
}

/// Says whether all tests of a guest passed, and that there were any.
fn tests_passed(name: &str, begun: Instant, told: &Told) -> Result<(), Failed> {
    let result = told.text.lines().rfind(|line| line.starts_with("test result:")).unwrap_or("no test result");
    let result = result.trim_start_matches("test result: ");
    let summary = format!("{name}: {result} ({:.0} s with its boot)", begun.elapsed().as_secs_f32());
    TOLD.lock().unwrap_or_else(PoisonError::into_inner).push(summary);
    let is_well = told.status == Some(0) && result.contains(" 0 failed") && !result.contains(" 0 passed");
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
