//! A guest: a small Debian in QEMU that runs one job as root, tells what it said and how it ended, and is gone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the guests are made of, once it has been prepared.
pub struct Kit {
    dir: PathBuf,
    /// What runs them: the kernel's `kvm`, or `tcg`, which emulates them.
    pub accelerator: &'static str,
}

/// What is the first process of a guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FirstProcess {
    /// The script that runs the job: nothing else is in the guest.
    Script,
    /// systemd, with a service that runs the job.
    Systemd,
}

/// A guest that is to run.
pub struct Guest<'a> {
    /// The first two numbers of its kernel's release.
    pub kernel: &'a str,
    /// What is added to the kernel's command line.
    pub options: &'a str,
    pub first: FirstProcess,
    /// Files that it is given, under the paths that they have here.
    pub files: &'a [PathBuf],
    /// Shell commands.
    pub job: &'a str,
    /// A disk that outlives the guest; without one it writes to a copy that nobody keeps.
    pub disk: Option<&'a Path>,
    /// How much of a CPU's time it may take before its power fails. One that hangs takes it too: its clock runs, and something
    /// is always due. Ten times as long may pass here.
    pub limit: Duration,
}

/// What became of a guest.
pub struct Told {
    /// The job's exit status, if it came to its end.
    pub status: Option<i32>,
    /// What the job said, on stdout and stderr.
    pub text: String,
    /// What the kernel and QEMU said.
    pub console: String,
}

/// The part of every guest's command line that does not change: a quiet boot, cgroup2 for every controller, and disks that may
/// take as long as they like: a guest's clock does not wait for them.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=t no_timer_check nokaslr mitigations=off audit=0 lsm= \
                            nvme_core.io_timeout=1000000 cgroup_no_v1=all root=PARTUUID=68726474-01 rootwait rw";

/// How an emulated CPU keeps time: an instruction takes a nanosecond, and when there is nothing to do the next timer is due at
/// once. So a busy host takes nothing of a guest's time, and a guest that waits takes nothing of ours.
const EMULATED_TIME: [&str; 4] = ["-icount", "shift=0,sleep=off", "-rtc", "clock=vm"];

impl Kit {
    /// Downloads and makes what the guests need, unless that was done before.
    ///
    /// # Errors
    /// Why this machine cannot have guests.
    pub fn prepare() -> Result<Self, String> {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/prepare");
        let output = Command::new(&script).arg(&dir).output().map_err(|error| format!("{script:?}: {error}"))?;
        if !output.status.success() {
            return Err(format!("tests/vm/prepare: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let mut kit = Self { dir, accelerator: "tcg" };
        if kit.is_kvm_usable() {
            kit.accelerator = "kvm";
        }
        Ok(kit)
    }

    /// Tries KVM, once: there are hosts that have it and on which no guest of ours comes up.
    fn is_kvm_usable(&self) -> bool {
        let known = self.dir.join("kvm");
        if let Ok(answer) = std::fs::read_to_string(&known) {
            return answer == "usable";
        }
        let kvm = Self { dir: self.dir.clone(), accelerator: "kvm" };
        let trial = Guest {
            kernel: "6.12",
            options: "",
            first: FirstProcess::Script,
            files: &[],
            job: "exit 0",
            disk: None,
            limit: Duration::from_secs(10),
        };
        let is_usable = Path::new("/dev/kvm").exists() && kvm.run(&trial).status == Some(0);
        std::fs::write(known, if is_usable { "usable" } else { "not usable" }).unwrap();
        is_usable
    }

    /// Returns a fresh copy of the guests' disk.
    pub fn new_disk(&self, path: &Path) {
        let copied = Command::new("cp").arg("--sparse=always").arg(self.dir.join("disk")).arg(path).status().unwrap();
        assert!(copied.success());
    }

    /// Runs a guest until it is done, or its time is over.
    pub fn run(&self, guest: &Guest<'_>) -> Told {
        let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| work.path().join(name);
        self.pack(guest, &at("stage"), &at("work"));
        let tree = self.dir.join("tree/usr");
        let libraries = tree.join("lib/x86_64-linux-gnu");
        let first = match guest.first {
            FirstProcess::Script => "init=/usr/sbin/guest-init",
            FirstProcess::Systemd => {
                "init=/usr/lib/systemd/systemd systemd.unit=guest.target systemd.show_status=0 \
                 systemd.unified_cgroup_hierarchy=1"
            }
        };
        let (disk, snapshot) = match guest.disk {
            Some(disk) => (disk.to_owned(), "off"),
            None => (self.dir.join("disk"), "on"),
        };
        let mut qemu = Command::new("sh");
        qemu.args(["-c", "ulimit -t $0 && exec timeout --foreground --signal=KILL $(($0 * 10)) \"$@\""])
            .arg(guest.limit.as_secs().to_string())
            .arg(tree.join("bin/qemu-system-x86_64"))
            .env("LD_LIBRARY_PATH", &libraries)
            .env("QEMU_MODULE_DIR", libraries.join("qemu"))
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "1536", "-smp", "1"])
            .args(["-accel", self.accelerator])
            .args(["-cpu", if self.accelerator == "kvm" { "host" } else { "qemu64,+rdrand" }])
            .arg("-L")
            .arg(tree.join("share/seabios"))
            .arg("-L")
            .arg(tree.join("share/qemu"))
            .arg("-kernel")
            .arg(self.dir.join(format!("linux-{}", guest.kernel)))
            .args(["-append", &format!("{COMMAND_LINE} {first} {}", guest.options)])
            .args(["-device", "nvme,id=disks,serial=disks"])
            .args([
                "-drive",
                &format!("if=none,id=root,file={},format=raw,cache=unsafe,snapshot={snapshot}", disk.display()),
            ])
            .args(["-device", "nvme-ns,bus=disks,nsid=1,drive=root"])
            .args(["-drive", &format!("if=none,id=work,file={},format=raw,readonly=on", at("work").display())])
            .args(["-device", "nvme-ns,bus=disks,nsid=2,drive=work"]);
        if self.accelerator == "tcg" {
            qemu.args(EMULATED_TIME);
        }
        for line in ["console", "text", "status"] {
            qemu.args(["-serial", &format!("file:{}", at(line).display())]);
        }
        let output = qemu.stdin(Stdio::null()).output().unwrap();
        let read = |name: &str| String::from_utf8_lossy(&std::fs::read(at(name)).unwrap_or_default()).into_owned();
        let status = read("status").trim().strip_prefix("exit ").and_then(|status| status.parse().ok());
        let console = read("console") + &String::from_utf8_lossy(&output.stderr);
        Told { status, text: read("text"), console }
    }
}

impl Kit {
    /// Makes a guest's second disk of its files and its job.
    fn pack(&self, guest: &Guest<'_>, stage: &Path, disk: &Path) {
        for file in guest.files {
            let copy = stage.join(file.strip_prefix("/").unwrap());
            std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
            // Without their debug information programs are a third of their size; what cannot be stripped goes as it is.
            let stripped = Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(file).output();
            if !stripped.is_ok_and(|output| output.status.success()) {
                std::fs::copy(file, &copy).unwrap();
            }
        }
        std::fs::create_dir_all(stage).unwrap();
        std::fs::write(stage.join("job"), guest.job).unwrap();
        let mut make = Command::new(self.dir.join("tree/sbin/mke2fs"));
        make.env("LD_LIBRARY_PATH", self.dir.join("tree/usr/lib/x86_64-linux-gnu"))
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "nodiscard,root_owner=0:0", "-d"])
            .arg(stage)
            .arg(disk)
            .arg("1G");
        let made = make.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}
