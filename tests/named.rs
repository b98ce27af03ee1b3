//! Errors that name what is wrong: paths, programs that cannot be executed, what the surroundings forbid.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use treeherd::herd::Herd;
use treeherd::model::error::Error;
use treeherd::model::spec::AgentSpec;

fn bad_utf8() -> OsString {
    OsStr::from_bytes(b"x\xffy").to_owned()
}

/// Runs the program, which is to be refused, and returns its status and what it says.
fn refused(change: impl FnOnce(&mut Command)) -> (i32, String) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("treeherd"));
    change(&mut command);
    let out = command.output().unwrap();
    assert!(!out.status.success(), "{command:?}");
    (out.status.code().unwrap(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn says(text: &str, all: &[&str]) {
    all.iter().for_each(|what| assert!(text.contains(what), "{what:?} is not in: {text}"));
}

#[test]
fn a_path_that_is_not_utf_8_works_or_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(bad_utf8());
    std::fs::create_dir(&odd).unwrap();
    // A state directory, a tree file and a socket may be called anything.
    let mut own = daemon_to_be(&[]);
    let state = own.dir.path().join(bad_utf8());
    own.state.clone_from(&state);
    own.restart();
    let spec = AgentSpec::new(name("speaks"), ["sh", "-c", "echo at $NOTIFY_SOCKET; exec sleep 1000"]);
    own.spawn_child_agent(None, spec).unwrap();
    let out = Command::new(assert_cmd::cargo::cargo_bin!("treeherd")).arg("--state-dir").arg(&state).arg("ps").output();
    says(&String::from_utf8_lossy(&out.unwrap().stdout), &["speaks"]);
    let tree = odd.join(bad_utf8());
    std::fs::write(&tree, "[agents.a]\ncommand = [\"true\"]\n").unwrap();
    let out = Command::new(assert_cmd::cargo::cargo_bin!("treeherd")).arg("check").arg(&tree).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // A specification is text.
    for flag in ["--cwd", "--stdin"] {
        let (status, said) = refused(|it| {
            it.arg("--state-dir").arg(&state).args(["spawn", "a", flag]).arg(&odd).args(["--", "true"]);
        });
        assert_eq!(status, 2);
        says(&said, &[&flag[2..], r"x\xFFy", "is not UTF-8", "link"]);
    }
    let (status, said) = refused(|it| {
        it.arg("--state-dir").arg(&state).args(["spawn", "a", "--"]).arg(&odd);
    });
    assert_eq!(status, 2);
    says(&said, &["argument 6", r"x\xFFy", "not UTF-8"]);
    own.finish();
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_its_length_the_limit_and_the_room() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s".repeat(100));
    let length = state.as_os_str().len() + "/treeherd.sock".len();
    let all = [format!("has {length} bytes"), "107".to_owned(), "--state-dir of at most 93 bytes".to_owned()];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let (status, said) = refused(|it| {
        it.arg("--state-dir").arg(&state).args(["daemon", "--cgroup", &unique("long")]);
    });
    assert_eq!(status, 2);
    says(&said, &all);
    assert!(!state.exists(), "nothing was made");
    says(
        &refused(|it| {
            it.arg("--state-dir").arg(&state).arg("ps");
        })
        .1,
        &all,
    );
    says(&Herd::connect(&state.join("treeherd.sock")).unwrap_err().to_string(), &all);
}

/// Starts an agent that is to fail, and returns why.
fn failure(own: &Own, program: &str, change: impl FnOnce(&mut AgentSpec)) -> String {
    let mut spec = AgentSpec::new(name("a"), [program]);
    change(&mut spec);
    let error: Error = own.refused(None, spec);
    error.to_string()
}

struct Files(tempfile::TempDir);

impl Files {
    fn make(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_refused_for_what_it_lacks() {
    let own = herd();
    let files = Files(tempfile::tempdir().unwrap());
    std::fs::set_permissions(files.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = files.make("script", "#! /no/such/interpreter -x\n", 0o755);
    says(
        &failure(&own, &script, |_| {}),
        &["ENOENT", "interpreter /no/such/interpreter", "does not exist", "install it"],
    );
    let dos = files.make("dos", "#!/bin/sh\r\n", 0o755);
    says(&failure(&own, &dos, |_| {}), &["/bin/sh\\r", "carriage return"]);
    let plain = files.make("plain", "#!/bin/sh\n", 0o644);
    says(&failure(&own, &plain, |_| {}), &["EACCES", "not executable", "chmod +x"]);
    let headless = files.make("headless", "#!/etc/passwd\n", 0o755);
    says(&failure(&own, &headless, |_| {}), &["interpreter /etc/passwd", "not executable"]);
    says(&failure(&own, &files.make("empty", "", 0o755), |_| {}), &["ENOEXEC", "empty"]);
    says(&failure(&own, files.0.path().to_str().unwrap(), |_| {}), &["EACCES", "is a directory"]);
    // A program that names a loader which is missing, and one of another machine.
    let program = std::fs::read("/bin/true").unwrap();
    let loader = b"/lib64/ld-linux-x86-64.so.2";
    if let Some(at) = program.windows(loader.len()).position(|it| it == loader) {
        let mut other = program.clone();
        other[at..at + loader.len()].copy_from_slice(b"/no/such/ld-musl-x86_64.so2");
        let other = files.make("other", other, 0o755);
        says(
            &failure(&own, &other, |_| {}),
            &["ENOENT", "loader /no/such/ld-musl-x86_64.so2 does not exist", "static"],
        );
        // As the user that the agent is, who may not read it: nothing is read for it.
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o711)).unwrap();
        let said = failure(&own, &other, |spec| spec.user = Some("65534".to_owned()));
        assert!(!said.contains("musl") && said.contains("the file exists"), "{said}");
    }
    let mut foreign = program;
    foreign[18..20].copy_from_slice(&243u16.to_le_bytes());
    let foreign = files.make("foreign", foreign, 0o755);
    says(&failure(&own, &foreign, |_| {}), &["ENOEXEC", "a program for RISC-V", std::env::consts::ARCH]);
    // The working directory.
    let gone = |spec: &mut AgentSpec| spec.cwd = Some(PathBuf::from("/no/such/directory"));
    says(&failure(&own, "true", gone), &["cwd /no/such/directory", "ENOENT", "make the directory"]);
    let file = |spec: &mut AgentSpec| spec.cwd = Some(PathBuf::from("/etc/passwd"));
    says(&failure(&own, "true", file), &["cwd /etc/passwd", "ENOTDIR", "another cwd"]);
    own.finish();
}

#[test]
fn a_program_on_a_file_system_without_exec_is_refused_for_that() {
    let own = herd();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let mount = |words: &[&str]| Command::new(words[0]).args(&words[1..]).status().is_ok_and(|it| it.success());
    if !mount(&["mount", "-t", "tmpfs", "-o", "noexec,size=1m", "none", at]) {
        return skip("no mounts here");
    }
    let path = dir.path().join("program");
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = failure(&own, path.to_str().unwrap(), |_| {});
    assert!(mount(&["umount", at]));
    says(&said, &["EACCES", "noexec"]);
    own.finish();
}

/// Has a system call answered with an error in a command, by a seccomp filter as a container engine sets one.
#[allow(unsafe_code)]
fn forbid(command: &mut Command, call: libc::c_long, errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k };
    let jump = libc::sock_filter {
        jf: 1,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::try_from(call).unwrap())
    };
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: between fork and exec it makes two system calls, on a filter that it owns.
    unsafe {
        command.pre_exec(move || {
            let filter = filter;
            let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
            let is_set = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0;
            if is_set { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

#[test]
fn a_clone3_that_seccomp_forbids_is_named_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree.toml");
    std::fs::write(&tree, "[agents.a]\ncommand = [\"true\"]\n").unwrap();
    for (errno, named) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
        let cgroup = unique("seccomp");
        let state = dir.path().join(named);
        let daemon = |it: &mut Command| {
            forbid(it, libc::SYS_clone3, errno);
            it.arg("--state-dir").arg(&state).args(["daemon", "--cgroup", &cgroup]);
        };
        let run = |it: &mut Command| {
            forbid(it, libc::SYS_clone3, errno);
            it.args(["run", "--cgroup", &cgroup]).arg(&tree);
        };
        for (_, said) in [refused(daemon), refused(run)] {
            says(&said, &["clone3", named, "seccomp", "Docker"]);
        }
        assert_eq!(leftovers(&cgroup), Vec::<PathBuf>::new());
        assert!(!Path::new(&state).exists(), "nothing was made");
    }
}
