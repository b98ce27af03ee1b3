//! What a spawn that fails tells.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;

use treeherd::kernel::pidfd::Exit;
use treeherd::kernel::spawn::{Launch, Memory, Resource, Rlimit, spawn};
use treeherd::kernel::user::lookup;
use treeherd::model::stage::{SpawnFailure, Stage};

use crate::room::{Room, sink};

fn failure(argv: &[&str], change: impl FnOnce(&mut Launch)) -> SpawnFailure {
    let (room, out) = (Room::new(), sink());
    let mut launch = room.launch(argv, &out);
    change(&mut launch);
    let failure = spawn(&launch).unwrap_err();
    assert_eq!(room.read("cgroup.procs"), "", "nothing of a failed spawn is left");
    failure
}

fn told(failure: &SpawnFailure) -> (Stage, i32) {
    (failure.stage, failure.errno.unwrap())
}

#[test]
fn an_exec_failure_is_told_with_its_stage_errno_and_remedy() {
    let missing = failure(&["/no/such"], |_| {});
    assert_eq!(missing.to_string(), "exec /no/such: No such file or directory (ENOENT)");
    assert_eq!(told(&missing), (Stage::Exec, libc::ENOENT));

    let unknown = failure(&["no-such-command"], |_| {});
    assert_eq!(
        unknown.to_string(),
        "exec no-such-command: No such file or directory (ENOENT); not in any of the 2 directories of PATH"
    );

    let plain = failure(&["/etc/passwd"], |_| {});
    assert_eq!(told(&plain), (Stage::Exec, libc::EACCES));
    assert!(plain.remedy.unwrap().contains("executable"));

    let directory = failure(&["/etc"], |_| {});
    assert_eq!(told(&directory), (Stage::Exec, libc::EACCES));
    assert_eq!(directory.remedy.as_deref(), Some("it is a directory: name a program in it"));
}

#[test]
fn a_file_without_an_interpreter_is_told_and_given_to_no_shell() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let headless = failure(&[&file("headless", "echo hello\n")], |_| {});
    assert_eq!(told(&headless), (Stage::Exec, libc::ENOEXEC));
    assert!(headless.remedy.unwrap().contains("#!"));
    let lost = failure(&[&file("lost", "#!/no/such/interpreter\n")], |_| {});
    assert_eq!(told(&lost), (Stage::Exec, libc::ENOENT));
    assert!(lost.remedy.unwrap().contains("interpreter"));
}

#[test]
fn the_search_passes_over_what_is_missing_and_remembers_what_is_forbidden() {
    let search = |paths: &[&str]| paths.iter().map(|path| CString::new(*path).unwrap()).collect::<Vec<_>>();
    let forbidden = failure(&["x"], |launch| launch.search = search(&["/no/x", "/etc/passwd", "/etc/passwd/x"]));
    assert_eq!(told(&forbidden), (Stage::Exec, libc::EACCES));
    let (room, out) = (Room::new(), sink());
    let mut launch = room.launch(&["true"], &out);
    launch.search = search(&["/no/true", "/etc/passwd", "/bin/true"]);
    crate::room::end(&spawn(&launch).unwrap());
}

#[test]
fn arguments_that_are_too_long_are_told() {
    let long = "x".repeat(128 << 10);
    let failure_of_argument = failure(&["/bin/true", &long], |_| {});
    assert_eq!(told(&failure_of_argument), (Stage::Exec, libc::E2BIG));
    assert!(failure_of_argument.remedy.unwrap().contains("128 KiB"));
    let failure_of_environment =
        failure(&["/bin/true"], |launch| launch.env = vec![CString::new(long.clone()).unwrap()]);
    assert_eq!(told(&failure_of_environment), (Stage::Exec, libc::E2BIG));
    // One byte less, with the zero at its end, is the longest that there is.
    let (room, out) = (Room::new(), sink());
    crate::room::end(&spawn(&room.launch(&["/bin/true", &long[1..]], &out)).unwrap());
}

#[test]
fn a_bad_working_directory_is_told() {
    let missing = failure(&["/bin/true"], |launch| launch.cwd = c"/no/dir".to_owned());
    assert!(missing.to_string().starts_with("cwd /no/dir: No such file or directory (ENOENT); make"), "{missing}");
}

#[test]
fn the_working_directory_is_entered_as_the_user_and_not_as_root() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let refused = failure(&["/bin/true"], |launch| {
        launch.cwd = CString::new(dir.path().to_str().unwrap()).unwrap();
        launch.credentials = Some(lookup(Some("65534"), Some("65534")).unwrap());
    });
    assert_eq!(told(&refused), (Stage::Cwd, libc::EACCES));
    assert_eq!(refused.remedy.as_deref(), Some("the user may not enter this directory"));
}

#[test]
fn a_stdin_on_procfs_or_behind_its_links_shows_nothing_of_the_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/proc/self/smaps", &link).unwrap();
    let refused = |cwd: &str, stdin: &str| {
        failure(&["/bin/true"], |launch| {
            launch.cwd = CString::new(cwd).unwrap();
            launch.stdin = Some(CString::new(stdin).unwrap());
            launch.credentials = Some(lookup(Some("65534"), Some("65534")).unwrap());
        })
    };
    let file = refused("/", "/proc/self/maps");
    assert!(
        file.to_string().starts_with("stdin /proc/self/maps: Operation not permitted (EPERM); it is on procfs"),
        "{file}"
    );
    for (cwd, stdin) in [
        ("/", link.to_str().unwrap()),
        ("/proc/self", "maps"),
        ("/proc/thread-self", "smaps"),
        ("/", "/proc/self/task/../smaps_rollup"),
    ] {
        let file = refused(cwd, stdin);
        assert_eq!(told(&file), (Stage::Stdin, libc::EPERM), "{file}");
    }
    for stdin in ["/proc/self/exe", "/dev/stdout", "/dev/fd/2", "/proc/self/cwd/etc/passwd"] {
        let link = refused("/", stdin);
        assert_eq!(told(&link), (Stage::Stdin, libc::ELOOP), "{link}");
        assert!(link.remedy.as_deref().unwrap().contains("procfs"), "{link}");
    }
}

#[test]
fn a_limit_that_cannot_be_set_is_told_by_name() {
    let nofile = |soft, hard| Rlimit { resource: Resource::from_name("nofile").unwrap(), soft, hard };
    let inverted = failure(&["/bin/true"], |launch| launch.rlimits = vec![nofile(10, 10), nofile(9, 8)]);
    assert_eq!(told(&inverted), (Stage::Rlimits, libc::EINVAL));
    assert!(inverted.message.starts_with("nofile 9:8: "), "{inverted}");
}

#[test]
fn an_oom_score_adj_that_was_asked_for_and_is_not_offered_is_a_failure_and_the_default_is_not() {
    if rustix::thread::capabilities(None).unwrap().effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
        eprintln!("skipped: with CAP_SYS_RESOURCE every value is offered");
        return;
    }
    let refused = failure(&["/bin/true"], |launch| launch.oom_score_adj = Some(-500));
    assert_eq!(told(&refused), (Stage::OomScoreAdj, libc::EACCES));
    assert!(refused.remedy.unwrap().contains("CAP_SYS_RESOURCE"));
}

#[test]
fn a_removed_leaf_is_told_at_clone() {
    let (room, out) = (Room::new(), sink());
    let launch = room.launch(&["/bin/true"], &out);
    std::fs::remove_dir(&room.path).unwrap();
    let gone = spawn(&launch).unwrap_err();
    assert_eq!(told(&gone), (Stage::Clone, libc::ENOENT));
    assert_eq!(gone.remedy.as_deref(), Some("the cgroup has been removed"));
    // The room is gone already; its guard finds nothing to remove.
    std::fs::create_dir(&room.path).unwrap();
}

#[test]
fn a_removed_mirror_is_told_at_enter() {
    let Some(mirror) = Room::v1("pids") else { return };
    let procs = mirror.procs();
    drop(mirror);
    let gone = failure(&["/bin/true"], |launch| launch.enter.push(procs));
    assert_eq!(told(&gone), (Stage::Enter, libc::ENODEV));
}

#[test]
fn a_v1_pids_limit_does_not_stop_the_child_from_entering_but_from_forking() {
    let Some(mirror) = Room::v1("pids") else { return };
    for (limit, ended) in [("0", 2), ("1", 2), ("2", 0)] {
        mirror.write("pids.max", limit);
        let (room, out) = (Room::new(), sink());
        let mut launch = room.launch(&["/bin/sh", "-c", "(exit 0); echo went on"], &out);
        launch.enter.push(mirror.procs());
        let child = spawn(&launch).expect("entering is never refused, whatever the limit");
        // dash ends with 2 when it cannot fork.
        assert_eq!(crate::room::end(&child).status, Exit::Code(ended), "pids.max {limit}");
    }
}

#[test]
fn clone_into_a_cgroup_whose_pids_max_is_reached_is_eagain() {
    let (room, out) = (Room::new(), sink());
    if !room.read("cgroup.controllers").contains("pids") {
        eprintln!("skipped: cgroup2 has no pids controller here");
        return;
    }
    room.write("pids.max", "0");
    let full = spawn(&room.launch(&["/bin/true"], &out)).unwrap_err();
    assert_eq!(told(&full), (Stage::Clone, libc::EAGAIN));
}

#[test]
fn a_child_with_memory_of_its_own_reports_each_stage_as_one_with_shared_memory() {
    let missing: fn(&mut Launch) = |launch| launch.cwd = c"/no/dir".to_owned();
    let inverted: fn(&mut Launch) = |launch| {
        let nofile = Resource::from_name("nofile").unwrap();
        launch.rlimits = vec![Rlimit { resource: nofile, soft: 9, hard: 8 }];
    };
    let changes: [fn(&mut Launch); 5] = [
        missing,
        inverted,
        |launch| launch.stdin = Some(c"/no/file".to_owned()),
        |_| {},
        |launch| {
            launch.search = vec![c"/no/x".to_owned(), c"/etc/passwd".to_owned()];
        },
    ];
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    for change in changes {
        let [shared, copied] = [Memory::Shared, Memory::Copied].map(|memory| {
            failure(&[script.to_str().unwrap()], |launch| {
                launch.memory = memory;
                change(launch);
            })
        });
        assert_eq!(shared, copied);
    }
}
