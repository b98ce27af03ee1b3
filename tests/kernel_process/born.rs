//! What a child is like when its program begins.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use treeherd::kernel::pidfd::{Exit, cgroup_of};
use treeherd::kernel::spawn::{IoPriority, Memory, Resource, Rlimit, Way, get_ready, spawn};
use treeherd::kernel::user::{Account, Credentials};
use treeherd::model::stage::Stage;

use crate::room::{Room, end, shell, sink, text, until};

fn nobody() -> Credentials {
    Credentials {
        uid: 65534,
        gid: 65534,
        groups: vec![65534, 4242],
        account: Account { name: "nobody".to_owned(), home: "/".into() },
    }
}

fn status_line<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim()
}

#[test]
fn a_child_has_stdin_stdout_stderr_and_no_other_descriptor() {
    // One that is deliberately not closed on exec, as a careless library would open it.
    let leaky = rustix::io::dup(sink()).unwrap();
    // 3 is what ls itself opens to read the directory.
    let seen = shell("exec ls /proc/self/fd", |_| {});
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    drop(leaky);
}

#[test]
fn a_child_may_have_one_descriptor_more_under_the_number_that_is_asked_for() {
    let listed = |number: i32| {
        let said = sink();
        let seen = shell(&format!("echo told >/proc/$$/fd/{number}; exec ls /proc/self/fd"), |launch| {
            launch.passed = Some((said.try_clone().unwrap(), number));
        });
        (seen.split_whitespace().collect::<Vec<_>>().join(" "), text(&said))
    };
    assert_eq!(listed(3), ("0 1 2 3 4".to_owned(), "told\n".to_owned()));
    assert_eq!(listed(1023), ("0 1 1023 2 3".to_owned(), "told\n".to_owned()));
    // The parent has it under this very number already.
    let said = sink();
    let own = rustix::io::fcntl_dupfd_cloexec(&said, 40).unwrap();
    let number = own.as_raw_fd();
    let seen = shell(&format!("echo told >/proc/$$/fd/{number}; exec ls /proc/self/fd"), |launch| {
        launch.passed = Some((own, number));
    });
    assert_eq!((seen.split_whitespace().count(), text(&said)), (5, "told\n".to_owned()));
}

#[test]
fn a_variable_may_hold_the_childs_own_pid() {
    let seen =
        shell("echo $WATCHDOG_PID $$; exec env", |launch| launch.pid_variable = Some(c"WATCHDOG_PID".to_owned()));
    let (told, true_pid) = seen.lines().next().unwrap().split_once(' ').unwrap();
    assert_eq!(told, true_pid);
    assert_eq!(seen.lines().filter(|line| line.starts_with("WATCHDOG_PID=")).count(), 1);
}

#[test]
fn a_child_has_no_signal_blocked_or_ignored() {
    // Rust itself ignores SIGPIPE in this process; block some in this thread, too.
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGTERM);
    blocked.thread_block().unwrap();
    let status = shell("exec cat /proc/self/status", |_| {});
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(status_line(&status, name), "0000000000000000", "{name}");
    }
    let ours = nix::sys::signal::SigSet::thread_get_mask().unwrap();
    assert!(ours.contains(nix::sys::signal::Signal::SIGTERM), "the spawning thread's own mask is as before");
    assert!(!ours.contains(nix::sys::signal::Signal::SIGUSR1), "the spawning thread's own mask is as before");
}

#[test]
#[allow(unsafe_code)]
fn a_signal_that_is_ignored_since_the_last_spawn_is_not_ignored_in_the_next_child() {
    crate::leaf::in_a_process_of_its_own("a_signal_that_is_ignored_since_the_last_spawn", || {
        let ignored_if = |known: u64| {
            let status = shell("exec cat /proc/self/status", |launch| launch.ignored = known);
            u64::from_str_radix(status_line(&status, "SigIgn"), 16).unwrap()
        };
        let ignored = || ignored_if(u64::MAX);
        assert_eq!(ignored(), 0);
        for signal in [libc::SIGUSR1, libc::SIGRTMIN(), libc::SIGRTMAX()] {
            // SAFETY: to ignore a signal runs no code of ours.
            assert_ne!(unsafe { libc::signal(signal, libc::SIG_IGN) }, libc::SIG_ERR);
        }
        assert_eq!(ignored(), 0);
        let ours = treeherd::kernel::process::ignored_signals().unwrap();
        assert!(ours.count_ones() >= 4, "those and SIGPIPE");
        assert_eq!((ignored_if(ours), ignored_if(0)), (0, ours), "what is known to be ignored is enough");
    });
}

#[test]
fn a_child_leads_a_session_of_its_own_inside_its_leaf() {
    let (room, out) = (Room::new(), sink());
    let child = spawn(&room.launch(&["/bin/sh", "-c", "cat /proc/$$/stat; exec cat /proc/self/cgroup"], &out)).unwrap();
    assert_eq!(end(&child).status, Exit::Code(0));
    let seen = text(&out);
    let fields: Vec<&str> = seen.lines().next().unwrap().rsplit_once(") ").unwrap().1.split(' ').collect();
    let pid = child.pid.to_string();
    assert_eq!((fields[2], fields[3], fields[4]), (pid.as_str(), pid.as_str(), "0"), "pgrp, session, tty");
    let name = room.path.file_name().unwrap().to_str().unwrap();
    assert!(seen.lines().any(|line| line == format!("0::/{name}")), "{seen}");
}

#[test]
fn arguments_environment_and_directory_arrive_exactly() {
    let out = sink();
    let room = Room::new();
    let mut launch =
        room.launch(&["sh", "-c", "pwd; echo \"$0|$1|$2\"; echo $SHLVL; exec env", "a b", "", "ü\n"], &out);
    launch.env = vec![c"X=1 2".to_owned(), c"PATH=/usr/bin:/bin".to_owned()];
    launch.cwd = c"/proc".to_owned();
    assert_eq!(end(&spawn(&launch).unwrap()).status, Exit::Code(0));
    let seen = text(&out);
    assert!(seen.starts_with("/proc\na b||ü\n"), "{seen}");
    assert!(seen.contains("X=1 2\n") && !seen.contains("HOME="), "{seen}");
}

#[test]
fn output_may_go_to_what_is_our_own_descriptor_0() {
    crate::leaf::in_a_process_of_its_own("output_may_go_to_what_is_our_own_descriptor_0", || {
        let (room, spare) = (Room::new(), sink());
        let mut launch = room.launch(&["/bin/sh", "-c", "cat; echo here"], &spare);
        nix::unistd::close(0).unwrap();
        launch.stdout = sink();
        assert_eq!(launch.stdout.as_raw_fd(), 0, "the lowest number that is free");
        assert_eq!(end(&spawn(&launch).unwrap()).status, Exit::Code(0));
        assert_eq!(text(&launch.stdout), "here\n");
    });
}

#[test]
fn a_child_reads_from_a_null_of_its_own_unless_it_is_given_something_else() {
    let what = || shell("readlink /proc/self/fd/0; cat; grep flags /proc/self/fdinfo/0", |_| {});
    let null = "/dev/null\nflags:\t0100000\n";
    assert_eq!(what(), null);
    shell("true", |launch| launch.stdin = Some(c"/etc/passwd".to_owned()));
    assert_eq!(what(), null, "what the child before was given is forgotten");
    get_ready().unwrap();
    assert_eq!(what(), null);
}

#[test]
fn one_file_may_be_stdin_stdout_and_stderr() {
    let file = tempfile::NamedTempFile::new().unwrap();
    shell("echo out; echo err >&2; readlink /proc/self/fd/0", |launch| {
        launch.stdin = Some(CString::new(file.path().as_os_str().as_bytes()).unwrap());
        launch.stdout = file.reopen().unwrap().into();
        launch.stderr = launch.stdout.try_clone().unwrap();
    });
    let seen = std::fs::read_to_string(file.path()).unwrap();
    assert_eq!(seen, format!("out\nerr\n{}\n", file.path().display()));
}

#[test]
fn a_child_becomes_its_user_with_exactly_its_groups() {
    let status = shell("exec cat /proc/self/status", |launch| launch.credentials = Some(nobody()));
    assert_eq!(status_line(&status, "Uid"), "65534\t65534\t65534\t65534");
    assert_eq!(status_line(&status, "Gid"), "65534\t65534\t65534\t65534");
    assert_eq!(status_line(&status, "Groups"), "4242 65534");
    for name in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status_line(&status, name), "0000000000000000", "{name}");
    }
    assert_eq!(status_line(&status, "NoNewPrivs"), "0", "only when asked");
    let asked = shell("exec cat /proc/self/status", |launch| launch.no_new_privs = true);
    assert_eq!(status_line(&asked, "NoNewPrivs"), "1");
}

#[test]
fn giving_up_the_user_leaves_the_shared_memory_untraceable() {
    shell("exec true", |launch| launch.credentials = Some(nobody()));
    let dumpable = rustix::process::dumpable_behavior().unwrap();
    assert_ne!(dumpable, rustix::process::DumpableBehavior::Dumpable);
}

#[test]
fn limits_and_priorities_are_set_before_the_program_begins() {
    let seen = shell("ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/self/stat /proc/self/oom_score_adj", |launch| {
        let rlimit = |name, soft, hard| Rlimit { resource: Resource::from_name(name).unwrap(), soft, hard };
        launch.rlimits = vec![rlimit("nofile", 64, 128), rlimit("core", 0, 0)];
        launch.oom_score_adj = Some(500);
        launch.nice = Some(7);
        launch.ionice = Some(IoPriority::Idle);
    });
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..3], ["64", "128", "0"]);
    assert_eq!(lines[3].rsplit_once(") ").unwrap().1.split(' ').nth(16), Some("7"), "nice");
    assert_eq!(lines[4], "500");
}

#[test]
fn a_limit_of_three_descriptors_is_a_legal_one() {
    // After the limit nothing may be opened any more on the way to exec, except by the kernel itself.
    let out = sink();
    let room = Room::new();
    let mut launch = room.launch(&["/bin/sh", "-c", "echo $1"], &out);
    launch.rlimits = vec![Rlimit { resource: Resource::from_name("nofile").unwrap(), soft: 3, hard: 3 }];
    launch.oom_score_adj = Some(100);
    let child = spawn(&launch).unwrap();
    // The loader cannot open libc: the program began, and ended as it likes.
    assert!(matches!(end(&child).status, Exit::Code(_)));
}

#[test]
fn oom_score_adj_is_0_unless_asked_for() {
    assert_eq!(shell("exec cat /proc/self/oom_score_adj", |_| {}), "0\n");
}

#[test]
fn a_child_is_in_its_v1_mirrors_before_its_program_begins() {
    let mirrors: Vec<Room> = ["pids", "memory", "cpu"].into_iter().filter_map(Room::v1).collect();
    let seen = shell("exec cat /proc/self/cgroup", |launch| {
        launch.enter.extend(mirrors.iter().map(Room::procs));
    });
    for mirror in &mirrors {
        let name = mirror.path.file_name().unwrap().to_str().unwrap();
        assert!(seen.lines().any(|line| line.ends_with(&format!(":/{name}"))), "{name}: {seen}");
    }
}

#[test]
fn two_hundred_spawns_leave_no_descriptor_and_no_zombie() {
    // In a process of its own: the other tests of this one open descriptors meanwhile.
    crate::leaf::in_a_process_of_its_own("two_hundred_spawns", || {
        let room = Room::new();
        let out = sink();
        let launch = room.launch(&["/bin/true"], &out);
        let mut missing = room.launch(&["/no/such"], &out);
        missing.search = vec![c"/no/such".to_owned()];
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        // A thread's first spawn opens what it keeps for all of them.
        end(&spawn(&launch).unwrap());
        let before = descriptors();
        for _ in 0..100 {
            end(&spawn(&launch).unwrap());
            spawn(&missing).unwrap_err();
        }
        assert_eq!(descriptors(), before);
        let none = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        assert_eq!(none, Err(nix::errno::Errno::ECHILD), "no child is left");
    });
}

#[test]
fn several_threads_spawn_at_once_on_stacks_of_their_own() {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..10 {
                    let word = format!("{thread}-{round}");
                    assert_eq!(shell(&format!("echo {word}"), |_| {}).trim(), word);
                }
            });
        }
    });
}

#[test]
fn a_process_is_found_by_its_cgroup() {
    let (room, out) = (Room::new(), sink());
    let child = spawn(&room.launch(&["sleep", "1000"], &out)).unwrap();
    let name = room.path.file_name().unwrap().to_str().unwrap();
    assert_eq!(cgroup_of(child.pid).unwrap(), Some(format!("/{name}")));
    assert_eq!(cgroup_of(i32::MAX).unwrap(), None);
    room.write("cgroup.kill", "1");
    assert_eq!(end(&child).status, Exit::Signal { number: 9, core: false });
    assert_ne!(Room::way(), Way::EnterItself, "this test process's own cgroup was never killed");
}

#[test]
fn a_file_that_is_stdin_is_opened_with_the_rights_of_the_user_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| CString::new(dir.path().join(name).as_os_str().as_bytes()).unwrap();
    for (name, mode) in [("secret", 0o600), ("open", 0o644)] {
        std::fs::write(dir.path().join(name), name).unwrap();
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let as_nobody = |name: &str| {
        let (room, out) = (Room::new(), sink());
        let mut launch = room.launch(&["cat"], &out);
        (launch.credentials, launch.stdin) = (Some(nobody()), Some(path(name)));
        spawn(&launch).map(|child| (end(&child).status, text(&out)))
    };
    assert_eq!(as_nobody("open").unwrap(), (Exit::Code(0), "open".to_owned()));
    let refused = as_nobody("secret").unwrap_err();
    assert_eq!((refused.stage, refused.errno), (Stage::Stdin, Some(libc::EACCES)), "{refused}");
    let as_root = shell("cat", |launch| launch.stdin = Some(path("secret")));
    assert_eq!(as_root, "secret");
    let missing = as_nobody("missing").unwrap_err();
    assert_eq!((missing.stage, missing.errno), (Stage::Stdin, Some(libc::ENOENT)), "{missing}");
}

/// Opens a terminal that nobody has, and returns its master and its path.
#[allow(unsafe_code)]
fn terminal() -> (OwnedFd, CString) {
    let master = std::fs::File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let mut name = [0; 64];
    // SAFETY: the descriptor is a master's, and the name has as much room as is said.
    unsafe {
        assert_eq!(libc::unlockpt(master.as_raw_fd()), 0);
        assert_eq!(libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()), 0);
        (master.into(), std::ffi::CStr::from_ptr(name.as_ptr()).to_owned())
    }
}

#[test]
fn a_fifo_or_a_terminal_that_is_stdin_holds_nobody_up_and_becomes_nobodys_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let fifo = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    let seen = shell("cat; grep ^flags /proc/self/fdinfo/0", |launch| launch.stdin = Some(fifo));
    assert_eq!(seen, "flags:\t0100000\n", "no O_NONBLOCK is left");
    let (_master, terminal) = terminal();
    let stat = shell("exec cat /proc/self/stat", |launch| launch.stdin = Some(terminal));
    assert_eq!(stat.rsplit_once(") ").unwrap().1.split(' ').nth(4), Some("0"), "no controlling terminal");
}

#[test]
fn a_child_that_hangs_in_exec_shares_memory_only_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    for (memory, shares) in [(Memory::Shared, true), (Memory::Copied, false)] {
        let (room, out) = (Room::new(), sink());
        let mut launch = room.launch(&[program.to_str().unwrap()], &out);
        launch.memory = memory;
        let lease = crate::common::lease(&program);
        std::thread::scope(|scope| {
            let spawned = scope.spawn(|| spawn(&launch).unwrap());
            let child = || room.read("cgroup.procs").trim().parse::<i32>().ok();
            until("it is born", || child().is_some());
            const KCMP_VM: i32 = 1;
            // SAFETY: it takes numbers and touches no memory.
            #[allow(unsafe_code)]
            let differs = unsafe { libc::syscall(libc::SYS_kcmp, std::process::id(), child().unwrap(), KCMP_VM, 0, 0) };
            drop(lease);
            let status = end(&spawned.join().unwrap()).status;
            assert_eq!((differs == 0, status), (shares, Exit::Code(0)), "{memory:?}");
        });
    }
}
