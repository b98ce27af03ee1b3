//! How much of a program is in memory.

use treeherd::kernel::host::KernelVersion;
use treeherd::kernel::program;

use crate::common::alone;

/// Returns how much of this program's text is in memory, in KiB.
fn resident() -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let own = std::env::current_exe().unwrap();
    let mut mappings =
        smaps.lines().skip_while(|line| !(line.contains(" r-xp ") && line.ends_with(own.to_str().unwrap())));
    let rss = mappings.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Lets go of the program, and returns how much of it is back when something was done.
fn resident_after_work() -> u64 {
    program::forget().unwrap();
    assert!(resident() > 0, "what looks is in it");
    resident()
}

#[test]
fn of_a_sparse_program_only_what_is_used_comes_in() {
    if !alone("program::of_a_sparse_program_only_what_is_used_comes_in") {
        return;
    }
    let dense = resident_after_work();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let sparse = match program::sparse() {
        Ok(sparse) => sparse,
        Err(error) => {
            let needed = KernelVersion { major: 6, minor: 7, patch: 0 };
            assert!(KernelVersion::from_release(&release).unwrap() < needed, "{release}: {error}");
            assert!(error.to_string().contains("it takes Linux 6.7"), "{error}");
            return assert_eq!(resident_after_work(), dense, "nothing is changed");
        }
    };
    let of_it = resident_after_work();
    assert!(of_it < dense / 2, "{of_it} KiB, of {dense}");
    drop(sparse);
    assert!(resident_after_work() > of_it * 2, "it ends with what was returned");
}
