//! The table of descriptors, which a child shares with us until it has one of its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use treeherd::kernel::spawn::{get_ready, spawn};

use crate::room::{Room, end, shell, sink};

/// What is behind each of our own descriptors.
fn table() -> BTreeMap<String, PathBuf> {
    let own: Vec<PathBuf> = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path()).collect();
    // The one that read the directory is gone by now.
    own.iter().filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), fs::read_link(path).ok()?))).collect()
}

#[test]
fn a_child_changes_none_of_our_descriptors_however_far_it_comes() {
    crate::leaf::in_a_process_of_its_own("a_child_changes_none_of_our_descriptors", || {
        let (room, out) = (Room::new(), sink());
        let launch = room.launch(&["/bin/sh", "-c", "exit 0"], &out);
        let mut no_directory = room.launch(&["/bin/true"], &out);
        no_directory.cwd = c"/no/such".to_owned();
        let mut no_program = room.launch(&["/no/such"], &out);
        no_program.search = vec![c"/no/such".to_owned()];
        // A file for reading cannot be entered through: the child fails before its table is its own.
        let mut no_entry = room.launch(&["/bin/true"], &out);
        no_entry.enter.push(fs::File::open("/dev/null").unwrap().into());
        get_ready().unwrap();
        let before = table();
        end(&spawn(&launch).unwrap());
        assert_eq!(table(), before, "after a program was executed");
        for (launch, what) in [(no_directory, "directory"), (no_program, "program"), (no_entry, "entry")] {
            spawn(&launch).unwrap_err();
            drop(launch);
            let after = table();
            assert!(
                after.iter().all(|(fd, file)| before.get(fd) == Some(file)),
                "no {what}: {after:?}, not {before:?}"
            );
        }
    });
}

#[test]
fn a_child_among_ten_thousand_descriptors_has_three() {
    const MANY: u64 = 10_000;
    crate::leaf::in_a_process_of_its_own("a_child_among_ten_thousand_descriptors", || {
        let most = treeherd::kernel::process::raise_descriptor_limit().unwrap();
        assert!(most > MANY + 100, "the limit on descriptors is {most}");
        get_ready().unwrap();
        // One in ten is left open on exec, as a careless library would do.
        let file = sink();
        let many: Vec<OwnedFd> = (0..MANY)
            .map(|number| match number % 10 {
                0 => rustix::io::dup(file.as_fd()).unwrap(),
                _ => rustix::io::fcntl_dupfd_cloexec(file.as_fd(), 3).unwrap(),
            })
            .collect();
        // 3 is what ls itself opens to read the directory.
        let seen = shell("exec ls /proc/self/fd", |_| {});
        assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
        drop(many);
    });
}
