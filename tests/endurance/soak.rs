//! A day in short: churn for as long as asked, and what the daemon holds before, in between and after.

use std::path::Path;
use std::time::Duration;

use treeherd::model::request::Target;

use super::churn::{self, Churn};
use super::common::*;
use super::{Until, seed};

/// What a daemon holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    resident_kib: u64,
    descriptors: usize,
    watches: usize,
    cgroups: usize,
    files: usize,
    threads: usize,
}

impl Held {
    fn by(own: &Own) -> Self {
        let pid = own.daemon_pid();
        let proc = Path::new("/proc").join(pid.to_string());
        let status = std::fs::read_to_string(proc.join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let infos = std::fs::read_dir(proc.join("fdinfo")).unwrap().flatten();
        let watches = infos.filter_map(|info| std::fs::read_to_string(info.path()).ok());
        Self {
            resident_kib: field("VmRSS:"),
            descriptors: std::fs::read_dir(proc.join("fd")).unwrap().count(),
            watches: watches.map(|text| text.lines().filter(|line| line.starts_with("inotify ")).count()).sum(),
            cgroups: own.cgroups().len(),
            files: churn::files(&own.dir.path().join("state")).values().map(|inside| inside + 1).sum(),
            threads: usize::try_from(field("Threads:")).unwrap(),
        }
    }
}

#[test]
fn a_soak_leaves_the_daemon_as_it_was() {
    let seed = seed();
    let mut own = daemon(&["--max-agents-per-level", "60", "--cleanup-retention", "500ms"]);
    // The first round fills what is filled once: caches, the heap, the stock of files.
    let mut rounds = Vec::new();
    let time = Until::after(Duration::from_secs(12));
    while time.goes_on() || rounds.len() < 3 {
        own.group(None, "churn");
        let churn = Churn::start(&own.socket(), 3, seed + rounds.len() as u64);
        std::thread::park_timeout(Duration::from_secs(if endurance().is_some() { 60 } else { 3 }));
        let made = churn.stop();
        own.terminate(Target::All, Some(Duration::ZERO)).unwrap();
        own.cleanup(Target::All).unwrap();
        until("what has ended is removed", || {
            let has_runs = own.cgroups().iter().any(|path| path.join("run-1").exists());
            own.agents().unwrap().is_empty() && !has_runs && own.spools().is_empty()
        });
        let held = Held::by(&own);
        println!("round {}: {made} requests, {held:?}", rounds.len() + 1);
        rounds.push(held);
    }
    let (first, last) = (rounds[0], rounds[rounds.len() - 1]);
    // Which of the helpers and files at hand are in use differs with the load; a leak of one a request would be hundreds a round.
    let most = |now: usize, then: usize| now <= then + 40;
    assert!(most(last.descriptors, first.descriptors) && most(last.watches, first.watches), "{rounds:?}");
    assert!(most(last.threads, first.threads) && most(last.cgroups, first.cgroups), "{rounds:?}");
    assert!(most(last.files, first.files), "{rounds:?}");
    assert!(last.resident_kib < first.resident_kib + first.resident_kib / 4 + 2048, "{rounds:?}");
    own.end();
}
