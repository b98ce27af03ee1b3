//! What a decision and a request cost, in instructions: numbers that a busy machine does not change. Callgrind counts; each
//! count is the difference of two runs, so that what comes before and after is not in it.
//!
//! The counts below are those of one compiler and this profile. They are held to within [`TOLERANCE`] there; with another
//! compiler only their growth with the number of agents is. Whoever changes them on purpose writes down what the failure says.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../benches/herd/flock.rs"]
mod flock;

use std::process::Command;

use flock::Flock;
use treeherd::api::message::{Incoming, answer_line, result};
use treeherd::api::method::Call;

/// The compiler that the counts are from.
const COMPILER: &str = "rustc 1.95.0";

/// The counts: of a failure with its restart among so many agents, and of a request that is read and answered.
const RESTART: [(u32, u64); 3] = [(10, 130_538), (300, 195_558), (3_000, 217_610)];
const REQUEST: u64 = 329_510;

/// By which part a count may differ.
const TOLERANCE: f64 = 0.03;

/// By how much a restart among the most agents may cost more than among the fewest: trees grow with the logarithm.
const GROWTH_MOST: f64 = 2.0;

/// The variable that tells this binary, started again, what is to be done, and how often.
const WORK: &str = "TREEHERD_INSTRUCTIONS";

/// Does so many restarts, or requests, if it is told to.
#[test]
fn the_work_that_is_counted() {
    let Ok(work) = std::env::var(WORK) else { return };
    let (what, times) = work.split_once(':').unwrap();
    let times: usize = times.parse().unwrap();
    match what {
        "request" => (0..times).for_each(|_| request()),
        agents => {
            let mut flock = Flock::new(agents.parse().unwrap());
            (0..times).for_each(|_| flock.restart());
        }
    }
}

fn request() {
    let line = br#"{"jsonrpc":"2.0","id":7,"method":"spawn","params":{"id":"worker","parent":"planner","command":["sleep","9"],"env":{"A":"b"},"limits":{"memory_max":"1GiB","pids_max":64},"restart":{"policy":"on-failure","delay":"1s"}}}"#;
    let incoming: Incoming<'_> = serde_json::from_slice(line).unwrap();
    let call = Call::parse(&incoming.method, incoming.params).unwrap();
    let Call::Spawn(spec) = call else { panic!("{}", call.method()) };
    std::hint::black_box(answer_line(&incoming.id.unwrap(), Ok(result(&spec).unwrap())));
}

/// Counts the instructions of one piece of work.
fn count(what: &str) -> u64 {
    let run = |times: u64| -> u64 {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe().unwrap());
        let output =
            valgrind.args(["the_work_that_is_counted", "--exact"]).env(WORK, format!("{what}:{times}")).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
        let collected =
            said.lines().find_map(|line| line.split_once("Collected : ")).expect("callgrind tells its count");
        collected.1.trim().parse().unwrap()
    };
    let (few, many) = (50, 250);
    (run(many) - run(few)) / (many - few)
}

#[test]
fn a_restart_costs_what_it_did_and_hardly_more_among_many_agents() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return common::skip("valgrind is not installed: it counts the instructions");
    }
    let counts: Vec<u64> = RESTART.iter().map(|(agents, _)| count(&agents.to_string())).collect();
    let (first, last) = (counts[0], counts[counts.len() - 1]);
    assert!(last as f64 <= first as f64 * GROWTH_MOST, "the cost of a restart grows with the herd: {counts:?}");
    let wanted: Vec<u64> = RESTART.iter().map(|(_, wanted)| *wanted).collect();
    compare(&counts, &wanted);
}

#[test]
fn a_request_costs_what_it_did() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return common::skip("valgrind is not installed: it counts the instructions");
    }
    compare(&[count("request")], &[REQUEST]);
}

/// Compares counts with those that are written down, if they are this compiler's.
fn compare(counts: &[u64], wanted: &[u64]) {
    let version = Command::new(std::env::var("RUSTC").unwrap_or("rustc".to_owned())).arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if !version.starts_with(COMPILER) {
        return eprintln!("not compared: {counts:?} by {}, the others are by {COMPILER}", version.trim());
    }
    let is_near = |(count, wanted): (&u64, &u64)| (*count as f64 - *wanted as f64).abs() <= *wanted as f64 * TOLERANCE;
    assert!(counts.iter().zip(wanted).all(is_near), "instructions: {counts:?}, and written down are {wanted:?}");
}
