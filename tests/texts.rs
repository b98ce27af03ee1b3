//! Every text that a user can meet, as it stands. `cargo insta review` shows what a change makes of
//! each.
#![allow(clippy::unwrap_used)]
use std::fmt::Write;
use std::process::{Command, Output};

fn ran(command: &mut Command, shown: &str, into: &mut String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    writeln!(into, "$ treeherd {shown}").unwrap();
    into.push_str(&String::from_utf8(stdout).unwrap());
    for line in String::from_utf8(stderr).unwrap().lines() {
        writeln!(into, "stderr: {line}").unwrap();
    }
    writeln!(into, "status: {}\n", status.code().unwrap()).unwrap();
}

fn program(words: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("treeherd"));
    command.env_remove("TREEHERD_SOCKET").env("COLUMNS", "100").env("TZ", "UTC").args(words);
    command
}

#[test]
fn the_help_of_every_verb() {
    let all = String::from_utf8(program(&["--help"]).output().unwrap().stdout).unwrap();
    insta::assert_snapshot!("help", all);
    let verbs = all.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let verbs: Vec<&str> = verbs.lines().filter(|line| line.as_bytes()[2] != b' ').collect();
    assert!(verbs.len() > 20, "{verbs:?}");
    for verb in verbs {
        let verb = verb.split_whitespace().next().unwrap();
        let text = String::from_utf8(program(&[verb, "--help"]).output().unwrap().stdout).unwrap();
        insta::assert_snapshot!(format!("help_{verb}"), text);
    }
}

#[test]
fn what_is_wrong_with_a_command_line() {
    let mut text = String::new();
    for words in [
        "",
        "frobnicate",
        "spwan a",
        "pause",
        "pause a --all",
        "spawn a",
        "spawn ../x -- true",
        "spawn cgroup.procs -- true",
        "spawn a --memory-max 10XB -- true",
        "spawn a --pids-max -3 -- true",
        "spawn a --cpu-max 1/0 -- true",
        "spawn a --nice 40 -- true",
        "spawn a --umask 999 -- true",
        "spawn a --restart sometimes -- true",
        "spawn a --grace soon -- true",
        "spawn a --env X -- true",
        "spawn a --rlimit nofile=many -- true",
        "spawn a --ionice best-effort:9 -- true",
        "spawn a --stop-signal SIGFOO -- true",
        "spawn a --rule ( -- true",
        "spawn a --ready sometime -- true",
        "spawn a --stall never -- true",
        "spawn a --pressure memory -- true",
        "spawn a --output-max 1 -- true",
        "limit a",
        "limit pids_max=4",
        "limit a pids_max",
        "limit a pids=4",
        "terminate a --grace soon",
        "logs",
        "logs a --all",
        "events --since yesterday",
        "wait",
        "daemon --max-levels 0 --state-dir /nonexistent/dir",
        "daemon --config /nonexistent/file",
        "run /nonexistent/file",
        "check /nonexistent/file",
        "top",
        "ps",
        "spawn a -- true",
        "apply /nonexistent/file",
        "man nothing",
        "completions ksh",
    ] {
        let words: Vec<&str> = words.split_whitespace().collect();
        let mut command = program(&words);
        command.env("TREEHERD_SOCKET", "/nonexistent/socket");
        ran(&mut command, &words.join(" "), &mut text);
    }
    insta::assert_snapshot!(text);
}

/// Lines of an agent that each have a mistake, and of a herd.
const AGENT: &[&str] = &[
    "command = \"sh\"",
    "command = []",
    "command = [\"\"]",
    "command = [\"a\\u0000\"]",
    "comand = [\"sh\"]",
    "cwd = \"work\"",
    "stdin = \"in\"",
    "pid_file = \"p\"",
    "env = { \"A=B\" = \"c\" }",
    "env = { A = 3 }",
    "inherit_env = [\"\"]",
    "user = \"\"",
    "user = \"nobody-of-this-name\"",
    "group = \"none-of-this-name\"",
    "after = [\"a\"]",
    "after = [\"nowhere\"]",
    "parent = \"nowhere\"",
    "level = 3",
    "priority = \"high\"",
    "type = \"\"",
    "capabilities = \"one\"",
    "oom_score_adj = 2000",
    "nice = 40",
    "ionice = \"idle:3\"",
    "ionice = \"fast\"",
    "umask = \"888\"",
    "umask = 18",
    "output = \"paper\"",
    "output_max = \"1KiB\"",
    "output_max = \"1TiB\"",
    "grace = \"400 days\"",
    "grace = 3",
    "run_timeout = \"0s\"",
    "run_timeout = \"400d\"",
    "stop_signal = \"SIGNOPE\"",
    "stop_signal_to = \"some\"",
    "on_main_exit = \"leave\"",
    "on_oom = \"cry\"",
    "rlimits = { nofile = \"many\" }",
    "rlimits = { nofile = { soft = 9, hard = 3 } }",
    "rlimits = { files = 3 }",
    "limits = { memory_max = \"10XB\" }",
    "limits = { memory_max = 0 }",
    "limits = { memory = 3 }",
    "limits = { cpu_max = \"none\" }",
    "limits = { cpu_weight = 0 }",
    "limits = { cpuset_cpus = \"a-b\" }",
    "limits = { io_max = \"x\" }",
    "limits = { pids_max = -1 }",
    "restart = \"always\"",
    "restart = { policy = \"sometimes\" }",
    "restart = { delay = \"400d\" }",
    "restart = { factor = 0.5 }",
    "restart = { jitter = 2.0 }",
    "restart = { delay = \"10s\", max_delay = \"1s\" }",
    "restart = { intensity = -1 }",
    "restart = { period = \"0s\" }",
    "children = { strategy = \"some\" }",
    "children = { intensity = -1 }",
    "significant = 1",
    "spawn_budget = -1",
    "ready = \"soon\"",
    "ready = { line = \"(\" }",
    "ready_timeout = \"3s\"",
    "watchdog = \"0s\"",
    "stall = \"0s\"",
    "stall = { after = \"1s\", action = \"cry\" }",
    "rules = [{ pattern = \"(\" }]",
    "rules = [{ pattern = \"\" }]",
    "rules = [{ pattern = \"a\", action = \"cry\" }]",
    "pressure = [{ what = \"sun\" }]",
    "pressure = [{ what = \"memory\", share = 200 }]",
    "metadata = 3",
    "session = \"../x\"",
    "admission = \"push\"",
    "agents.b = 3",
    "agents.\"..\" = {}",
    "delegated = true",
];

const HERD: &[&str] = &[
    "max_levels = 0",
    "max_levels = 100",
    "max_agents = 0",
    "max_agents = 1000000",
    "max_children = 0",
    "max_agents_per_level = 0",
    "restart_rate = \"often\"",
    "restart_burst = 0",
    "kill_timeout = \"0s\"",
    "cleanup_retention = \"400d\"",
    "limits = { memory_max = \"10XB\" }",
    "levels = 3",
    "level = 3",
    "max_depth = 3",
];

#[test]
fn what_is_wrong_with_a_tree_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree.toml");
    let mut text = String::new();
    let mut check = |source: &str| {
        std::fs::write(&path, source).unwrap();
        let Output { stdout, stderr, .. } = program(&["check", path.to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        writeln!(text, "{}", said.trim_end().replace(path.to_str().unwrap(), "tree.toml")).unwrap();
    };
    for line in AGENT {
        let command = if line.starts_with("com") { "" } else { "command = [\"true\"]\n" };
        check(&format!("[agents.a]\n{command}{line}\n"));
    }
    for line in HERD {
        check(&format!("[herd]\n{line}\n"));
    }
    for source in [
        "",
        "agents = 3",
        "[agent.a]\ncommand = [\"x\"]",
        "[agents.a",
        "[agents.a]\ncommand = [\"x\"]\n[agents.a]\n",
        "[agents.\"a b\"]\ncommand = [\"x\"]",
        "[agents.a]\nparent = \"b\"\n[agents.b]\nparent = \"a\"",
        "[agents.a]\nafter = [\"b\"]\n[agents.b]\nafter = [\"a\"]",
        "\u{feff}\0",
        "[herd]\nmax_agents = 1\n[agents.a]\n[agents.b]\n",
        "[herd]\nmax_levels = 1\n[agents.a.agents.b]\n",
        "[herd.limits]\nmemory_max = \"1MiB\"\n[agents.a]\ncommand = [\"x\"]\nlimits.memory_max = \"2MiB\"",
        "[agents.g]\nrun_timeout = \"3s\"",
        "[agents.g]\nstall = \"3s\"",
        "[agents.g]\nready = \"notify\"",
        "[agents.g]\nrules = [{ pattern = \"a\" }]",
        "[agents.g]\nwatchdog = \"3s\"",
    ] {
        check(source);
    }
    insta::assert_snapshot!(text);
}
