//! The numbers beside every peer: treeherd and other supervisors do the same work, on the same machine, in turn in one run.
//!
//! ```text
//! benches/peers/install target/peers           brings the peers, from the package archives alone, and installs nothing
//! cargo bench --bench peers                    the table on stdout
//! cargo bench --bench peers -- --readme        the table and the chart into README, the figures into benches/peers/
//! cargo bench --bench peers -- --only up,live --peers treeherd,s6 --quick
//! cargo bench --bench peers -- --guest         beside systemd, in a machine of which it is PID 1; with --readme, too
//! ```
//!
//! A service is a program of 300 bytes that tells its time and its pid over a fifo as its first act, so that every peer is
//! measured by the same clock and from outside. Each peer runs in a cgroup of this run's own; whatever it leaves behind ends
//! with that. A peer that cannot be run is listed with the reason. Needs root and a cgroup2 mount.
#![allow(clippy::unwrap_used)]

#[expect(dead_code, reason = "a disk that outlives a guest is the tests'")]
#[path = "../../tests/vm/guest.rs"]
mod guest;
mod machine;
mod measure;
mod peer;
mod report;
mod roles;
mod samples;
#[path = "../herd/tiny.rs"]
mod tiny;
mod yard;

use std::path::{Path, PathBuf};

use peer::{ABSENT, Kit, OURS, PEERS, Peer};
use samples::Samples;
use yard::Bell;

/// What was asked for on the command line.
#[derive(Default)]
struct Plan {
    is_quick: bool,
    is_for_readme: bool,
    is_for_guest: bool,
    is_for_programs: bool,
    only: Vec<String>,
    peers: Vec<String>,
}

impl Plan {
    fn from_args() -> Self {
        let mut plan = Self::default();
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut list = || args.next().unwrap_or_default().split(',').map(str::to_owned).collect();
            match arg.as_str() {
                "--only" => plan.only = list(),
                "--peers" => plan.peers = list(),
                "--quick" => plan.is_quick = true,
                "--readme" => plan.is_for_readme = true,
                "--guest" => plan.is_for_guest = true,
                "--json" => plan.is_for_programs = true,
                // Cargo's own.
                "--bench" => {}
                other => {
                    panic!("{other}: known are --only NAME,NAME, --peers NAME,NAME, --quick, --readme, --guest, --json")
                }
            }
        }
        plan
    }

    fn wants(list: &[String], name: &str) -> bool {
        list.is_empty() || list.iter().any(|wanted| wanted == name)
    }
}

/// What is done in a round, and how often.
const WORKS: [(&str, usize); 5] = [("up", 11), ("up-1000", 2), ("live", 2), ("terminate", 2), ("output", 2)];

fn main() {
    if roles::play() {
        return;
    }
    let plan = Plan::from_args();
    if plan.is_for_guest {
        return machine::run(plan.is_quick, plan.is_for_readme);
    }
    let kit = Kit(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers"));
    // Whoever loses its parent comes to us, and is reaped.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let overlaid = yard::overlay(&kit.0.join("tree"));
    // As urgent as the most urgent of the measured ones: who starves hears nothing in time.
    rustix::process::setsid().ok();
    rustix::process::nice(-10).unwrap();
    let mut present: Vec<(&Peer, String)> = Vec::new();
    let mut absent: Vec<(&str, String)> = Vec::new();
    // Who was not asked for is not missed.
    if plan.peers.is_empty() {
        absent.extend(ABSENT.map(|(name, why)| (name, why.to_owned())));
    }
    for peer in PEERS.iter().filter(|peer| Plan::wants(&plan.peers, peer.name) || peer.name == OURS) {
        match peer.version(&kit) {
            Ok(version) => present.push((peer, version)),
            Err(why) => absent.push((peer.name, overlaid.clone().err().unwrap_or(why))),
        }
    }
    let mut samples = Samples::default();
    for (work, rounds) in WORKS.into_iter().filter(|(work, _)| Plan::wants(&plan.only, work)) {
        for round in 0..if plan.is_quick { 1 } else { rounds } {
            // Another one begins each time.
            for at in 0..present.len() {
                let peer = present[(at + round) % present.len()].0;
                eprintln!("{work} {}: {}", round + 1, peer.name);
                run(work, &kit, peer, &mut samples);
            }
        }
    }
    let report = report::Report { present, absent, samples, is_quick: plan.is_quick };
    if plan.is_for_programs {
        let all = serde_json::json!({ "table": report.markdown(), "figures": report.json() });
        return println!("{all}");
    }
    println!("{}", report.markdown());
    report.verdicts().iter().for_each(|verdict| println!("{verdict}"));
    if plan.is_for_readme {
        report.write();
    }
}

fn run(work: &str, kit: &Kit, peer: &Peer, samples: &mut Samples) {
    let program = |bell: &Bell| {
        let dir: PathBuf = bell.path.parent().unwrap().to_owned();
        tiny::write(&dir, &bell.path)
    };
    match work {
        "up" => measure::up(kit, peer, 50, &program, samples),
        "up-1000" => measure::up(kit, peer, 1_000, &program, samples),
        "live" => measure::live(kit, peer, &program, samples),
        "terminate" => measure::terminate(kit, peer, samples),
        "output" => measure::output(kit, peer, samples),
        other => unreachable!("{other}"),
    }
}
