//! How the end of a process is learned.

use std::os::fd::AsFd;

use rustix::process::Signal;
use treeherd::kernel::pidfd::{self, Exit};
use treeherd::kernel::spawn::spawn;

use crate::room::{Room, end, sink, until};

#[test]
fn the_end_of_a_child_is_told_once_with_its_status_and_usage() {
    let (room, out) = (Room::new(), sink());
    let child =
        spawn(&room.launch(&["/bin/sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit 7"], &out))
            .unwrap();
    assert_eq!(pidfd::try_wait(child.pidfd.as_fd()).unwrap(), None, "it lives");
    let ended = end(&child);
    assert_eq!(ended.status, Exit::Code(7));
    assert!(ended.rusage.user_us + ended.rusage.system_us > 0);
    assert!(ended.rusage.max_rss_bytes > 100 << 10);
    assert_eq!(pidfd::try_wait(child.pidfd.as_fd()).unwrap_err().errno, rustix::io::Errno::CHILD);
}

#[test]
fn a_signal_reaches_the_process_of_the_pidfd_and_nobody_after_it() {
    let (room, out) = (Room::new(), sink());
    let child = spawn(&room.launch(&["sleep", "1000"], &out)).unwrap();
    assert!(!pidfd::has_ended(child.pidfd.as_fd()).unwrap());
    pidfd::signal(child.pidfd.as_fd(), Signal::TERM).unwrap();
    assert_eq!(end(&child).status, Exit::Signal { number: 15, core: false });
    let gone = pidfd::signal(child.pidfd.as_fd(), Signal::TERM).unwrap_err();
    assert!(gone.is_gone(), "{gone}");
}

#[test]
fn the_exit_of_a_process_that_is_not_our_child_is_told_once_it_is_reaped() {
    let (room, out) = (Room::new(), sink());
    // The shell's child is not ours; the shell reaps it, and lives on.
    let script = "sh -c 'echo $$; kill -STOP $$; exit 55' & wait $!; echo reaped; sleep 1000";
    let child = spawn(&room.launch(&["/bin/sh", "-c", script], &out)).unwrap();
    until("the grandchild tells its pid", || crate::room::text(&out).ends_with('\n'));
    let grandchild = pidfd::open(crate::room::text(&out).trim().parse().unwrap()).unwrap();
    assert_eq!(pidfd::exit_info(grandchild.as_fd()).unwrap(), None, "it lives");
    until("it is continued and ends", || {
        pidfd::signal(grandchild.as_fd(), Signal::CONT).ok();
        pidfd::has_ended(grandchild.as_fd()).unwrap()
    });
    until("its parent reaps it", || crate::room::text(&out).contains("reaped"));
    match pidfd::exit_info(grandchild.as_fd()).unwrap() {
        Some(exit) => assert_eq!(exit, Exit::Code(55)),
        None => eprintln!("skipped: this kernel does not keep the exit of reaped processes"),
    }
    pidfd::signal(child.pidfd.as_fd(), Signal::KILL).unwrap();
    end(&child);
}

#[test]
fn the_exit_of_a_zombie_is_told_by_procfs_until_it_has_been_reaped_and_by_its_pidfd_from_then_on() {
    let (room, out) = (Room::new(), sink());
    let child = spawn(&room.launch(&["/bin/false"], &out)).unwrap();
    until("it is a zombie", || pidfd::has_ended(child.pidfd.as_fd()).unwrap());
    let before = pidfd::exit_info(child.pidfd.as_fd()).unwrap();
    eprintln!("exit of a zombie by its pidfd: {before:?}");
    assert_eq!(pidfd::zombie_exit(child.pidfd.as_fd()), Some(Exit::Code(1)), "procfs tells it");
    end(&child);
    assert_eq!(pidfd::zombie_exit(child.pidfd.as_fd()), None, "it is nobody's any more");
    let after = pidfd::exit_info(child.pidfd.as_fd()).unwrap();
    assert!(after.is_none() || after == Some(Exit::Code(1)));
}
