//! The peers: what each is called, how it is told what to run, how it is started and how it is ended.
//!
//! Each gets the cheapest form that it documents: no shell where it can do without, no logger where nobody writes, no delay
//! before a restart where it can be turned off, and a second until the kill where a service does not stop.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a peer is to run, and where it may write.
pub struct Job<'a> {
    pub dir: &'a Path,
    /// A cgroup that does not exist yet, below the cgroup2 mount.
    pub cgroup: String,
    /// Each service's command: one word, or more.
    pub services: Vec<Vec<String>>,
    /// Whether what the services write is to be kept.
    pub is_kept: bool,
}

/// How everything is ended.
pub enum End {
    /// By a signal to the process that was started.
    Signal(i32),
    /// By a command; then by the signal, if that process is not gone.
    Command(fn(&Kit, &Job<'_>) -> Command, Option<i32>),
    /// It has no such thing.
    None,
}

/// A supervisor.
pub struct Peer {
    pub name: &'static str,
    /// What has to be known beside its figures.
    pub note: &'static str,
    /// The program that must be there.
    program: &'static str,
    /// Writes its configuration; returns how it is started.
    pub lay: fn(&Kit, &Job<'_>) -> Command,
    pub end: End,
}

/// What is never measured, and why.
pub const ABSENT: [(&str, &str); 3] = [
    ("pueue", "runs what is queued once: it restarts nothing"),
    ("process-compose", "is in none of these archives: its sources want modules that are in none of them either"),
    (
        "monit",
        "starts only programs that go into the background and write a pid file, and looks at those at best once a second",
    ),
];

pub const OURS: &str = "treeherd";
pub const DAEMON: &str = "treeherd daemon";
pub const BARE: &str = "bare loop";
pub const SYSTEMD: &str = "systemd";

pub const PEERS: [Peer; 13] = [
    Peer {
        name: OURS,
        note: "`treeherd run FILE`, which also shows what its agents write",
        program: "",
        lay: treeherd,
        end: End::Signal(libc::SIGTERM),
    },
    Peer {
        name: DAEMON,
        note: "`treeherd daemon`, then `treeherd apply FILE`; the daemon takes nice -10 for itself",
        program: "",
        lay: treeherd_daemon,
        end: End::Signal(libc::SIGTERM),
    },
    Peer {
        name: BARE,
        note: "`posix_spawn` and `wait` in a loop, and nothing else: the floor",
        program: "",
        lay: bare,
        end: End::None,
    },
    Peer {
        name: "dinit",
        note: "`restart-delay = 0`, no limit on restarts",
        program: "dinit",
        lay: dinit,
        end: End::Signal(libc::SIGTERM),
    },
    Peer {
        name: "s6",
        note: "`s6-svscan`, which waits a second before each restart",
        program: "s6-svscan",
        lay: s6,
        end: End::Signal(libc::SIGTERM),
    },
    Peer {
        name: "runit",
        note: "`runsvdir`; no service starts twice within a second: here each has run for longer when it is killed",
        program: "runsvdir",
        lay: runit,
        end: End::Command(|kit, job| kit.command("sv", ["-w", "1", "force-shutdown"], scan(job)), Some(libc::SIGHUP)),
    },
    Peer {
        name: "daemontools",
        note: "`svscan`; as for runit; it never kills what does not stop",
        program: "svscan",
        lay: daemontools,
        end: End::Command(|kit, job| kit.command("svc", ["-dx"], scan(job)), Some(libc::SIGTERM)),
    },
    Peer {
        name: "supervisord",
        note: "`startsecs = 0`",
        program: "supervisord",
        lay: supervisord,
        end: End::Signal(libc::SIGTERM),
    },
    Peer {
        name: "circus",
        note: "looks at its children every `check_delay`: 1 s here, 5 s by default",
        program: "circusd",
        lay: circus,
        end: End::Signal(libc::SIGTERM),
    },
    Peer {
        name: "pm2",
        note: "`restart_delay: 0`; the start is `pm2 start`, with its daemon",
        program: "pm2",
        lay: pm2,
        end: End::Command(
            |kit, job| {
                let mut kill = kit.command("pm2", ["kill"], []);
                kill.env("PM2_HOME", job.dir.join("pm2"));
                kill
            },
            None,
        ),
    },
    Peer {
        name: "horust",
        note: "`strategy = \"always\"`, `backoff = \"0s\"`",
        program: "horust",
        lay: horust,
        end: End::Signal(libc::SIGTERM),
    },
    Peer {
        name: "pitchfork",
        note: "`supervisor run --boot`; `retry = true`, for which it looks every `interval`: 1 s here, 10 s by default",
        program: "pitchfork",
        lay: pitchfork,
        end: End::Signal(libc::SIGTERM),
    },
    Peer {
        name: SYSTEMD,
        note: "`RestartSec=0`, no limit on starts; the start is `systemctl start` of a target, and its memory that of all of PID 1",
        program: "systemctl",
        lay: systemd,
        end: End::Command(
            |kit, job| {
                let mut stop = kit.command("systemctl", ["stop"], []);
                stop.args((0..job.services.len()).map(|index| format!("{}-s{index}.service", unit_prefix(job))));
                stop
            },
            None,
        ),
    },
];

impl Peer {
    /// Returns its version, or why it cannot be measured here.
    pub fn version(&self, kit: &Kit) -> Result<String, String> {
        match self.name {
            OURS | DAEMON => Ok(env!("CARGO_PKG_VERSION").to_owned()),
            BARE => Ok("-".to_owned()),
            SYSTEMD if !Path::new("/run/systemd/system").exists() => {
                Err("is not PID 1 of this machine; `-- --guest` measures it, and treeherd, in one of which it is"
                    .to_owned())
            }
            _ if kit.find(self.program).is_some() => Ok(kit.version(self.name, self.program)),
            _ => Err(kit.why_not(self.name)),
        }
    }
}

/// Where the peers' programs are.
pub struct Kit(pub PathBuf);

impl Kit {
    fn find(&self, program: &str) -> Option<PathBuf> {
        let own = ["supervisor/bin", "circus/bin", "npm/node_modules/.bin", "cargo/bin"];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = own.iter().map(|dir| self.0.join(dir));
        own.chain(std::env::split_paths(&path)).map(|dir| dir.join(program)).find(|path| path.is_file())
    }

    /// Makes a command of a program that was found before.
    fn command<const N: usize>(
        &self,
        program: &str,
        words: [&str; N],
        paths: impl IntoIterator<Item = PathBuf>,
    ) -> Command {
        let mut command = Command::new(self.find(program).unwrap_or_else(|| program.into()));
        command.args(words).args(paths);
        command
    }

    /// What the installer has written down, or the first number in what the program itself says.
    fn version(&self, name: &str, program: &str) -> String {
        let known = std::fs::read_to_string(self.0.join("versions")).unwrap_or_default();
        if let Some(version) = known.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')) {
            return version.to_owned();
        }
        let said = self.command(program, ["--version"], []).output().map(|output| output.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        let mut words = said.split(|c: char| c.is_whitespace() || c == ',');
        let number = words.find(|word| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()));
        number.unwrap_or("?").trim_end_matches('.').to_owned()
    }

    fn why_not(&self, name: &str) -> String {
        let known = std::fs::read_to_string(self.0.join("versions")).unwrap_or_default();
        let reason = known.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        reason.unwrap_or("not in PATH; `benches/peers/install target/peers` brings what the archives have").to_owned()
    }
}

fn own_program() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn executable(path: &Path, text: &str) {
    write(path, text);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Writes the herd's table, and all of the tree file.
fn tree(job: &Job<'_>) -> (PathBuf, PathBuf) {
    let count = job.services.len();
    let herd = format!("[herd]\nmax_agents_per_level = {count}\nrestart_burst = 100000\n");
    let mut text = herd.clone() + "[defaults]\ngrace = \"1s\"\n";
    text += "restart = { policy = \"always\", delay = \"0s\", intensity = 100000 }\n";
    for (index, words) in job.services.iter().enumerate() {
        writeln!(text, "[agents.s{index}]\ncommand = {words:?}").unwrap();
    }
    let (config, file) = (job.dir.join("config.toml"), job.dir.join("tree.toml"));
    write(&config, &herd);
    write(&file, &text);
    (config, file)
}

fn treeherd(_: &Kit, job: &Job<'_>) -> Command {
    let (_, file) = tree(job);
    let mut command = Command::new(env!("CARGO_BIN_EXE_treeherd"));
    command.args(["run", "--quiet", "--cgroup", &job.cgroup, "--state-dir"]).arg(job.dir.join("state")).arg(file);
    command
}

fn treeherd_daemon(_: &Kit, job: &Job<'_>) -> Command {
    const SCRIPT: &str = "(until [ -S \"$2/treeherd.sock\" ]; do sleep 0.01; done
        exec \"$0\" apply --state-dir \"$2\" \"$4\") &
        exec \"$0\" daemon --cgroup \"$1\" --state-dir \"$2\" --config \"$3\"";
    let (config, file) = tree(job);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT, env!("CARGO_BIN_EXE_treeherd"), &job.cgroup]).arg(job.dir.join("state"));
    command.args([config, file]);
    command
}

/// A file with a command a line, for [`crate::roles::bare`].
fn bare(_: &Kit, job: &Job<'_>) -> Command {
    let text: String = job.services.iter().map(|words| words.join(" ") + "\n").collect();
    let file = job.dir.join("commands");
    write(&file, &text);
    let mut command = Command::new(own_program());
    command.env(crate::roles::ROLE, format!("bare:{}", file.display()));
    command
}

/// A directory for each service, with a program `run`; and one for what keeps its output.
fn scan_dir(job: &Job<'_>, logger: impl Fn(&Path) -> String) -> PathBuf {
    let scan = job.dir.join("scan");
    for (index, words) in job.services.iter().enumerate() {
        let service = scan.join(format!("s{index}"));
        std::fs::create_dir_all(&service).unwrap();
        match words.as_slice() {
            [program] => std::os::unix::fs::symlink(program, service.join("run")).unwrap(),
            words => executable(&service.join("run"), &format!("#!/bin/sh\nexec {} 2>&1\n", words.join(" "))),
        }
        if job.is_kept {
            let log = job.dir.join(format!("log{index}"));
            std::fs::create_dir(&log).unwrap();
            executable(&service.join("log/run"), &format!("#!/bin/sh\nexec {}\n", logger(&log)));
        }
    }
    scan
}

fn scan(job: &Job<'_>) -> Vec<PathBuf> {
    (0..job.services.len()).map(|index| job.dir.join(format!("scan/s{index}"))).collect()
}

fn s6(kit: &Kit, job: &Job<'_>) -> Command {
    let dir = scan_dir(job, |log| format!("s6-log n4 s4194304 {}", log.display()));
    scan(job).iter().for_each(|service| write(&service.join("timeout-kill"), "1000\n"));
    kit.command("s6-svscan", ["-c", "4000"], [dir])
}

fn runit(kit: &Kit, job: &Job<'_>) -> Command {
    let dir = scan_dir(job, |log| format!("svlogd {}", log.display()));
    kit.command("runsvdir", ["-P"], [dir])
}

fn daemontools(kit: &Kit, job: &Job<'_>) -> Command {
    let dir = scan_dir(job, |log| format!("multilog n4 s4194304 {}", log.display()));
    kit.command("svscan", [], [dir])
}

fn dinit(kit: &Kit, job: &Job<'_>) -> Command {
    let services = job.dir.join("dinit.d");
    let mut boot = "type = internal\n".to_owned();
    for (index, words) in job.services.iter().enumerate() {
        let mut text = format!("type = process\ncommand = {}\nrestart = true\nrestart-delay = 0\n", words.join(" "));
        text += "restart-limit-count = 0\nstop-timeout = 1\n";
        if job.is_kept {
            writeln!(text, "logfile = {}", job.dir.join(format!("log{index}")).display()).unwrap();
        }
        write(&services.join(format!("s{index}")), &text);
        writeln!(boot, "waits-for = s{index}").unwrap();
    }
    write(&services.join("boot"), &boot);
    let mut command = kit.command("dinit", ["--user", "-q", "-d"], [services]);
    command.arg("-p").arg(job.dir.join("control")).arg("boot");
    command
}

fn supervisord(kit: &Kit, job: &Job<'_>) -> Command {
    // Every child closes so many descriptors: no more than are needed, and its default at least.
    let minfds = (4 * job.services.len() + 100).max(1024);
    let dir = job.dir.display();
    let mut text = format!(
        "[supervisord]\nnodaemon = true\nuser = root\nminfds = {minfds}\nminprocs = 4000\nchildlogdir = {dir}\n"
    );
    writeln!(text, "logfile = {dir}/supervisord.log\npidfile = {dir}/supervisord.pid").unwrap();
    for (index, words) in job.services.iter().enumerate() {
        writeln!(text, "[program:s{index}]\ncommand = {}\nautorestart = true\nstartsecs = 0", words.join(" ")).unwrap();
        text += "startretries = 1000000\nstopwaitsecs = 1\n";
    }
    let file = job.dir.join("supervisord.conf");
    write(&file, &text);
    kit.command("supervisord", ["-n", "-c"], [file])
}

fn circus(kit: &Kit, job: &Job<'_>) -> Command {
    let dir = job.dir.display();
    let mut text = format!("[circus]\ncheck_delay = 1\nwarmup_delay = 0\nendpoint = ipc://{dir}/endpoint\n");
    writeln!(text, "pubsub_endpoint = ipc://{dir}/pubsub").unwrap();
    for (index, words) in job.services.iter().enumerate() {
        writeln!(text, "[watcher:s{index}]\ncmd = {}\ngraceful_timeout = 1\nmax_retry = -1", words.join(" ")).unwrap();
        if job.is_kept {
            writeln!(text, "stdout_stream.class = FileStream\nstdout_stream.filename = {dir}/log{index}").unwrap();
        }
    }
    let file = job.dir.join("circus.ini");
    write(&file, &text);
    kit.command("circusd", [], [file])
}

fn pm2(kit: &Kit, job: &Job<'_>) -> Command {
    let app = |(index, words): (usize, &Vec<String>)| {
        serde_json::json!({
            "name": format!("s{index}"), "script": words[0], "args": words[1..], "interpreter": "none", "exec_mode": "fork",
            "autorestart": true, "restart_delay": 0, "min_uptime": 0, "max_restarts": 1_000_000, "kill_timeout": 1000,
        })
    };
    let apps: Vec<_> = job.services.iter().enumerate().map(app).collect();
    let file = job.dir.join("apps.json");
    write(&file, &serde_json::json!({ "apps": apps }).to_string());
    let mut command = kit.command("pm2", ["start"], [file]);
    command.env("PM2_HOME", job.dir.join("pm2"));
    command
}

fn horust(kit: &Kit, job: &Job<'_>) -> Command {
    let services = job.dir.join("horust");
    for (index, words) in job.services.iter().enumerate() {
        let mut text = format!("command = {:?}\n", words.join(" "));
        if job.is_kept {
            let log = job.dir.join(format!("log{index}"));
            write!(text, "stdout = {log:?}\nstdout-rotate-size = \"4 MB\"\n").unwrap();
        }
        text += "[restart]\nstrategy = \"always\"\nbackoff = \"0s\"\n[termination]\nwait = \"1s\"\n";
        write(&services.join(format!("s{index}.toml")), &text);
    }
    let mut command = kit.command("horust", ["--services-path"], [services]);
    command.arg("--uds-folder-path").arg(job.dir);
    command
}

fn pitchfork(kit: &Kit, job: &Job<'_>) -> Command {
    let mut text = "[settings.general]\ninterval = \"1s\"\n".to_owned();
    for (index, words) in job.services.iter().enumerate() {
        let exec = format!("exec {}", words.join(" "));
        writeln!(text, "[daemons.s{index}]\nrun = {exec:?}\nboot_start = true\nretry = true").unwrap();
        text += "stop_signal = { signal = \"SIGTERM\", timeout = \"1s\" }\n";
    }
    write(&job.dir.join("config/config.toml"), &text);
    let mut command = kit.command("pitchfork", ["supervisor", "run", "--boot"], []);
    command.env("PITCHFORK_CONFIG_DIR", job.dir.join("config")).env("PITCHFORK_STATE_DIR", job.dir.join("state"));
    command.current_dir(job.dir);
    command
}

/// The units of a run have names that no earlier one had: so they are read when they are started, and nothing is reloaded.
fn unit_prefix(job: &Job<'_>) -> String {
    job.cgroup.replace('/', "-")
}

fn systemd(kit: &Kit, job: &Job<'_>) -> Command {
    let prefix = unit_prefix(job);
    let mut target = "[Unit]\n".to_owned();
    for (index, words) in job.services.iter().enumerate() {
        let unit = format!("{prefix}-s{index}.service");
        let mut text = format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart={}\n", words.join(" "));
        text += "Restart=always\nRestartSec=0\nTimeoutStopSec=1\nStandardOutput=null\nStandardError=null\n";
        write(&Path::new(UNITS).join(&unit), &text);
        writeln!(target, "Wants={unit}").unwrap();
    }
    write(&Path::new(UNITS).join(format!("{prefix}.target")), &target);
    let mut command = kit.command("systemctl", ["start"], []);
    command.arg(format!("{prefix}.target"));
    command
}

/// Where units stand that do not outlive the machine.
const UNITS: &str = "/run/systemd/system";
