//! The daemon is killed again and again, under churn and in the middle of an adoption: every agent, end, exit code and line of
//! output is accounted for, once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use treeherd::api::method::EventQuery;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::request::Target;
use treeherd::model::status::Cause;

use super::churn::{self, Churn};
use super::common::*;
use super::{Until, seed};

/// What the crash loop counted.
#[derive(Debug, Default)]
struct Counts {
    kills: u64,
    kills_in_an_adoption: u64,
    events: u64,
    runs: u64,
    ends: u64,
    exit_codes: u64,
    lost: u64,
    outputs: u64,
}

/// What is known of the runs so far, from the events.
#[derive(Default)]
struct Ledger {
    last: u64,
    /// The runs that have begun and not ended.
    open: BTreeSet<(AgentId, u32)>,
    counts: Counts,
}

impl Ledger {
    /// Takes in what was written down since the last time.
    fn take_in(&mut self, own: &Own) {
        loop {
            let query = EventQuery { since: Some(self.last), ..EventQuery::default() };
            let page = own.events(query).unwrap();
            assert_eq!(page.lost, 0, "the journal was read in time");
            for event in &page.events {
                assert_eq!(event.seq, self.last + 1, "events are numbered without gaps");
                self.last = event.seq;
                self.count(event);
            }
            if page.events.is_empty() {
                return;
            }
        }
    }

    fn count(&mut self, event: &Event) {
        self.counts.events += 1;
        let Some(run) = event.agent.clone().zip(event.run.map(|run| run.0)) else { return };
        if event.kind == Kind::Started {
            self.counts.runs += 1;
            assert!(self.open.insert(run.clone()), "{run:?} has started twice");
        } else if event.kind.is_terminal() {
            // An agent that was never started may be terminated, too.
            if self.open.remove(&run) {
                self.counts.ends += 1;
            } else {
                let was_never_started = event.exit.as_ref().is_some_and(|it| it.cause == Cause::Exec);
                assert!(event.kind == Kind::Terminated || was_never_started, "{event:?}");
            }
            self.check_exit(event, &run.0);
        }
    }

    fn check_exit(&mut self, event: &Event, id: &AgentId) {
        let Some((status, exit)) = churn::expected(id).zip(event.exit.as_ref()) else { return };
        match exit.cause {
            Cause::Lost => self.counts.lost += 1,
            Cause::Exit => {
                assert_eq!(exit.status, Some(status), "{id}");
                self.counts.exit_codes += 1;
            }
            _ => {}
        }
    }
}

#[test]
fn a_crash_loop_accounts_for_every_run() {
    let seed = seed();
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut own = daemon(&["--max-agents-per-level", "200", "--cleanup-retention", "1h"]);
    own.group(None, "churn");
    let steady: Vec<AgentId> = (0..5).map(|number| own.sleeper(None, &format!("steady-{number}"))).collect();
    let pids: Vec<_> = steady.iter().map(|id| own.agent_status(id).unwrap().pid).collect();
    let mut ledger = Ledger::default();
    let churn = Churn::start(&own.socket(), 3, seed);
    let time = Until::after(Duration::from_secs(15));
    while time.goes_on() {
        std::thread::park_timeout(Duration::from_millis(chance.u64(50..400)));
        own.crash();
        ledger.counts.kills += 1;
        if chance.u32(..3) == 0 {
            // It dies again before it serves, somewhere in its adoption.
            let mut daemon = own.start().spawn().unwrap();
            std::thread::park_timeout(Duration::from_micros(chance.u64(500..40_000)));
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            ledger.counts.kills_in_an_adoption += 1;
        }
        own.restart();
        ledger.take_in(&own);
        check_outputs(&own, &mut ledger.counts);
        for (id, pid) in steady.iter().zip(&pids) {
            assert_eq!(own.agent_status(id).unwrap().pid, *pid, "{id} goes on");
        }
    }
    let made = churn.stop();
    own.terminate(Target::All, Some(Duration::ZERO)).unwrap();
    ledger.take_in(&own);
    assert_eq!(ledger.open, BTreeSet::new(), "every run that began has ended, once");
    assert_eq!(own.processes(), Vec::<i32>::new());
    own.cleanup(Target::All).unwrap();
    // A cleaned-up agent's output is removed behind the answer.
    until("no output is left", || own.spools().is_empty());
    let cgroups: Vec<_> = own.cgroups().into_iter().filter(|path| path.to_string_lossy().contains("/herd/")).collect();
    println!("{made} requests, {:?}, cgroups left {}, spools left 0", ledger.counts, cgroups.len());
    assert_eq!(cgroups, Vec::<std::path::PathBuf>::new());
    assert!(ledger.counts.exit_codes > 0 && ledger.counts.outputs > 0);
    own.end();
    let left: BTreeMap<_, _> = churn::files(&own.dir.path().join("state"));
    println!("after the shutdown: {left:?}");
}

/// Checks the output of those that have ended well by themselves, and forgets them.
fn check_outputs(own: &Own, counts: &mut Counts) {
    let ended = own.agents().unwrap().into_iter().filter(|agent| agent.state.has_ended());
    for agent in ended {
        if churn::expected(&agent.id).is_some() && agent.exit.as_ref().is_some_and(|exit| exit.cause == Cause::Exit) {
            let said = output(own, &agent.id);
            assert_eq!(said, churn::expected_output(&agent.id), "{}: {}", agent.id, String::from_utf8_lossy(&said));
            counts.outputs += 1;
        }
        own.cleanup(ids(&[&agent.id])).unwrap();
    }
}
