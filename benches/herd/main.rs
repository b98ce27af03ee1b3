//! What supervision costs: each thing that treeherd does, beside the bare kernel calls that do the same, in turn in one run.
//!
//! ```text
//! cargo bench                                everything
//! cargo bench -- --only spawn,exit           some of it
//! cargo bench -- --quick --json FILE         a tenth of the rounds; the table as JSON, too
//! ```
//!
//! The daemon is a process of its own, reached over its socket, as in life. Needs root and a cgroup2 mount. Absolute times
//! depend on the machine and on who else uses it; the ratio of the medians is what the targets are about.
#![allow(clippy::unwrap_used)]

mod bare;
mod crowd;
mod flock;
mod guest;
mod idle;
mod load;
mod machine;
mod measure;
mod output;
mod scale;
mod spawn;
mod tiny;

use std::path::PathBuf;

use measure::Table;

/// What was asked for on the command line.
pub struct Plan {
    json: Option<PathBuf>,
    only: Vec<String>,
    is_quick: bool,
}

type Bench = fn(&Plan, &mut Table);

impl Plan {
    fn from_args() -> Self {
        let mut plan = Self { json: None, only: Vec::new(), is_quick: false };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--json" => plan.json = args.next().map(PathBuf::from),
                "--only" => plan.only = args.next().unwrap_or_default().split(',').map(str::to_owned).collect(),
                "--quick" => plan.is_quick = true,
                // Cargo's own.
                "--bench" => {}
                other => panic!("{other}: known are --json FILE, --only NAME,NAME, --quick"),
            }
        }
        plan
    }

    /// Scales a number of rounds.
    pub fn rounds(&self, full: usize) -> usize {
        if self.is_quick { (full / 10).max(3) } else { full }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == name)
    }
}

fn main() {
    if guest::play_role() {
        return;
    }
    let plan = Plan::from_args();
    let benches: [(&str, Bench); 13] = [
        ("machine", machine::machine),
        ("hello", spawn::hello),
        ("spawn", spawn::spawn),
        ("spawn-kept", spawn::spawn_kept),
        ("spawn-served", spawn::spawn_served),
        ("exit", spawn::exit),
        ("terminate", crowd::terminate),
        ("pause", crowd::pause),
        ("idle", idle::idle),
        ("output", output::output),
        ("load", load::load),
        ("cost", load::cost),
        ("scale", scale::scale),
    ];
    // What the floor leaves is reaped here: another one may take its time, and a bench has used up all pids by then.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let mut janitor = guest::employ_janitor();
    let mut table = Table::default();
    for (name, bench) in benches {
        if plan.wants(name) {
            eprintln!("{name} …");
            bench(&plan, &mut table);
        }
    }
    println!("{table}");
    if let Some(path) = &plan.json {
        std::fs::write(path, table.to_json()).unwrap();
    }
    drop(janitor.stdin.take());
    assert!(janitor.wait().unwrap().success(), "the janitor could not do its work");
}
