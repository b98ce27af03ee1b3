//! The Debian package in a guest's hands: built here, installed there as a new user would, and each step of the README as it is printed.

use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Failed, Trial};

use crate::common::processes_in;
use crate::guest::{FirstProcess, Kit};
use crate::host;
use crate::systemd::{HERD, done, property, run, until};
use crate::trials;

const README: &str = include_str!("../../README.md");

/// The repository, which is at the same place in the guest as here; there is not much of it there.
const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Builds the package, and hands it to a guest with systemd.
pub fn here(kit: &Kit, name: &str) -> Result<(), Failed> {
    let built = Command::new(".ci/package").env("PROFILE", "dev").current_dir(HERE).output().unwrap();
    if !built.status.success() {
        return Err(format!(".ci/package: {}", String::from_utf8_lossy(&built.stderr)).into());
    }
    let said = String::from_utf8_lossy(&built.stdout);
    let package = said.split('\'').find(|word| word.ends_with(".deb")).ok_or("it names no package")?;
    let files = [package, "examples/fleet.toml"].map(|file| Path::new(HERE).join(file));
    host::part(kit, name, FirstProcess::Systemd, "", files.to_vec())
}

/// The tests of the package, in this order.
pub fn all() -> Vec<Trial> {
    trials![
        one_tree_runs_as_the_readme_says,
        the_package_installs_and_serves_as_the_readme_says,
        a_daemon_and_its_clients_work_as_the_readme_says,
        manuals_and_completions_are_where_they_are_looked_for,
        a_tree_is_a_service_of_its_own_and_lives_in_its_own_cgroup,
        an_upgrade_leaves_the_herd_and_the_next_daemon_is_the_new_one,
        a_removal_ends_the_herd_and_leaves_nothing,
    ]
}

/// Returns how the README installs the service where there is no package, with a program that stands elsewhere.
pub fn installation(program: &Path) -> String {
    let steps = steps("As a service");
    let steps =
        steps.iter().skip_while(|step| !step.starts_with("install")).take_while(|step| !step.contains("enable"));
    let steps: Vec<_> = steps.map(|step| step.replace("target/release/treeherd", program.to_str().unwrap())).collect();
    format!("set -e; cd {HERE}; {}; set +e", steps.join("; "))
}

/// Returns the shell commands under a heading of the README, comments left out, one for each that is printed.
fn steps(heading: &str) -> Vec<String> {
    let (_, section) = README.split_once(&format!("\n### {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n#").next().unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines).map(|line| line.split(" # ").next().unwrap());
    lines.flat_map(|line| line.split(" ; ")).map(|step| step.trim().to_owned()).collect()
}

/// Runs a step in a directory. What follows for ever is ended after a while, and has to have said something.
fn step(dir: &Path, step: &str) -> String {
    let follows = step.split(' ').any(|word| word == "-f");
    let script = if follows { format!("timeout 3 {step} || [ $? = 124 ]") } else { step.to_owned() };
    // At a terminal, somebody is in the scope of a login.
    let login = ["systemd-run", "--quiet", "--scope", "--slice=user-0.slice", "bash", "-c", &script];
    let output = Command::new(login[0]).args(&login[1..]).current_dir(dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{step}: {}\n{said}", output.status);
    assert!(!follows || !said.is_empty(), "{step}: it says nothing");
    said.into_owned()
}

/// Where the steps that need a program or a tree file find one.
fn workshop() -> PathBuf {
    let dir = PathBuf::from("/root/workshop");
    std::fs::create_dir_all(dir.join("examples")).unwrap();
    for program in ["planner", "worker"] {
        std::fs::write(dir.join(program), "#!/bin/sh\necho \"$0 at work\"\nexec sleep 1000\n").unwrap();
        done(&["chmod", "755", dir.join(program).to_str().unwrap()]);
    }
    std::fs::copy(Path::new(HERE).join("examples/fleet.toml"), dir.join("examples/fleet.toml")).unwrap();
    let tree = README.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    std::fs::write(dir.join("fleet.toml"), tree).unwrap();
    dir
}

/// The program for the steps that come before the package.
fn treeherd() -> String {
    assert_cmd::cargo::cargo_bin!("treeherd").display().to_string()
}

fn one_tree_runs_as_the_readme_says() {
    let dir = workshop();
    let [check, run] = steps("One tree, in the foreground").try_into().unwrap();
    let with_program = |step: &str| step.replacen("treeherd", &treeherd(), 1);
    step(&dir, &with_program(&check));
    // Of this fleet two are to fail.
    let said = step(&dir, &format!("{} ; [ $? = 1 ]", with_program(&run)));
    assert!(said.contains("third time lucky") && said.contains("12 is all I get"), "{said}");
    // The tree of the text has a planner that ends at SIGINT.
    done(&["timeout", "60", &treeherd(), "check", dir.join("fleet.toml").to_str().unwrap()]);
}

fn the_package_installs_and_serves_as_the_readme_says() {
    let steps = steps("As a service");
    // It was built before this; what is printed for where there is no dpkg is for other guests.
    let with_package =
        steps.iter().skip_while(|step| !step.starts_with("dpkg")).take_while(|step| !step.contains("cargo"));
    for printed in with_package {
        if printed.contains("journalctl") {
            done(&["treeherd", "spawn", "worker", "--", "sleep", "1000"]);
            until("the agent's field is in the journal", || !run(&["journalctl", "AGENT=worker"]).stdout.is_empty());
        }
        step(Path::new(HERE), printed);
    }
    assert_eq!((property("ActiveState"), property("UnitFileState")), ("active".to_owned(), "enabled".to_owned()));
    assert!(done(&["stat", "-c", "%a %U %G", "/run/treeherd/treeherd.sock"]).ends_with("660 root treeherd"));
    let shown = done(&["treeherd", "config", "show"]);
    assert!(shown.contains("herd.max_levels") && shown.contains("default"), "{shown}");
    done(&["treeherd", "doctor"]);
}

fn a_daemon_and_its_clients_work_as_the_readme_says() {
    done(&["systemctl", "stop", "treeherd.socket", "treeherd"]);
    let dir = workshop();
    for printed in steps("A daemon and its clients") {
        match printed.as_str() {
            // Neither nc nor a terminal is here.
            "treeherd top" => {}
            json if json.contains("nc -U") => {}
            daemon if daemon.ends_with('&') => {
                step(&dir, &format!("setsid {} >/dev/null 2>&1 {}", daemon.trim_end_matches(" &"), "&"));
                until("it answers", || run(&["treeherd", "ps"]).status.success());
            }
            "treeherd wait worker" => {
                step(&dir, "treeherd terminate worker --now");
                // Somebody ended it: that is no success.
                step(&dir, &format!("{printed} ; [ $? = 1 ]"));
            }
            other => drop(step(&dir, other)),
        }
    }
    until("nothing is left of it", || !Path::new("/sys/fs/cgroup/treeherd").exists());
    done(&["systemctl", "start", "treeherd.socket", "treeherd"]);
}

fn manuals_and_completions_are_where_they_are_looked_for() {
    let listed = done(&["dpkg", "-L", "treeherd"]);
    let pages: Vec<&str> = listed.lines().filter(|file| file.ends_with(".1.gz")).collect();
    assert!(
        pages.len() > 20 && pages.contains(&"/usr/share/man/man1/treeherd.1.gz"),
        "and one for each verb: {pages:?}"
    );
    for page in pages {
        let text = done(&["zcat", page]);
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    assert!(done(&["zcat", "/usr/share/man/man1/treeherd-spawn.1.gz"]).contains("memory\\-max"));
    let script = "source /usr/share/bash-completion/completions/treeherd
        COMP_WORDS=(treeherd spawn --memory-m) COMP_CWORD=2
        _treeherd treeherd --memory-m spawn; echo \"${COMPREPLY[@]}\"";
    assert_eq!(done(&["bash", "-c", script]), "--memory-max --memory-min");
    for file in ["/usr/share/zsh/vendor-completions/_treeherd", "/usr/share/fish/vendor_completions.d/treeherd.fish"] {
        assert!(listed.lines().any(|line| line == file), "{file}");
    }
}

fn a_tree_is_a_service_of_its_own_and_lives_in_its_own_cgroup() {
    let tree = "[agents.a]\ncommand = 'exec sleep 1000'\nlimits = { pids_max = 7 }\n";
    std::fs::write("/etc/treeherd/own.toml", tree).unwrap();
    done(&["systemctl", "start", "treeherd@own"]);
    let cgroup = done(&["systemctl", "show", "--property=ControlGroup", "--value", "treeherd@own"]);
    let home = PathBuf::from(format!("/sys/fs/cgroup{cgroup}"));
    let limit = || std::fs::read_to_string(home.join("herd/a/pids.max")).unwrap_or_default();
    until("its agent has its limit", || limit() == "7\n");
    until("it runs", || processes_in(home.join("herd").to_str().unwrap()).len() == 1);
    done(&["systemctl", "stop", "treeherd@own"]);
    assert!(!home.exists());
    // A tree that has ended is started again: nothing that it left stands in the way.
    std::fs::write("/etc/treeherd/own.toml", tree.replace("exec sleep 1000", "true")).unwrap();
    for _ in 0..2 {
        done(&["systemctl", "start", "treeherd@own"]);
        let state = || done(&["systemctl", "show", "--property=ActiveState", "--value", "treeherd@own"]);
        until("it ends", || state() != "active");
        assert_eq!(state(), "inactive");
    }
}

fn an_upgrade_leaves_the_herd_and_the_next_daemon_is_the_new_one() {
    done(&["treeherd", "spawn", "before", "--", "sleep", "1000"]);
    let (daemon, restarts, agents) = (property("MainPID"), property("NRestarts"), processes_in(HERD));
    step(Path::new(HERE), "dpkg -i target/treeherd_*.deb");
    assert_eq!((property("MainPID"), processes_in(HERD)), (daemon, agents.clone()), "dpkg touches neither");
    done(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "treeherd"]);
    until("the next one serves", || property("NRestarts") != restarts && property("ActiveState") == "active");
    assert_eq!(processes_in(HERD), agents);
    let program = std::fs::read_link(format!("/proc/{}/exe", property("MainPID"))).unwrap();
    assert_eq!(program, Path::new("/usr/bin/treeherd"), "and not the deleted one");
    done(&["treeherd", "terminate", "before", "--now"]);
}

fn a_removal_ends_the_herd_and_leaves_nothing() {
    done(&["treeherd", "spawn", "last", "--", "sleep", "1000"]);
    done(&["rm", "/etc/treeherd/own.toml"]);
    done(&["dpkg", "--remove", "treeherd"]);
    assert!(!Path::new(HERD).parent().unwrap().exists(), "its cgroup is gone");
    assert_eq!(property("LoadState"), "not-found");
    for place in ["/usr/bin/treeherd", "/etc/treeherd", "/lib/systemd/system/treeherd.service"] {
        assert!(!Path::new(place).exists(), "{place}");
    }
}
