//! What an agent pays for its output being kept, and what the daemon pays.

use std::time::Instant;

use treeherd::model::event::Kind;
use treeherd::model::spec::AgentSpec;

use crate::Plan;
use crate::bare::{Bare, Program};
use crate::guest::{Daemon, Follower};
use crate::idle::cpu_ns;
use crate::measure::{Spread, Table, Target, alternate};

/// How much a writer writes, and in which pieces.
const WRITERS: [(&str, u64, u64); 2] = [("4 KiB", 4096, 512 << 20), ("100 bytes", 100, 100 << 20)];

pub fn output(plan: &Plan, table: &mut Table) {
    for (name, piece, total) in WRITERS {
        let bare = Bare::new("floor");
        let mut daemon = Daemon::start("output");
        let mut events = Follower::new(&daemon);
        let file = daemon.dir.path().join("floor");
        let count = total / piece;
        let write = format!("dd if=/dev/zero bs={piece} count={count} status=none");
        let bare_argv =
            ["/bin/sh".to_owned(), "-c".to_owned(), format!("exec {write} >>{} 2>/dev/null", file.display())];
        let own_argv = ["/bin/sh".to_owned(), "-c".to_owned(), format!("exec {write}")];
        let program = Program::new(&bare_argv, &[("PATH", "/usr/bin:/bin".to_owned())]);
        let rate = |began: Instant| (count * piece) as f64 / 1e6 / began.elapsed().as_secs_f64();
        let floor = || {
            let began = Instant::now();
            bare.spawn("a", &program).wait();
            let rate = rate(began);
            bare.remove("a");
            std::fs::remove_file(&file).unwrap();
            rate
        };
        let mut costs = Vec::new();
        let pid = daemon.pid();
        let ours = || {
            let id = daemon.fresh();
            let before = cpu_ns(pid);
            let began = Instant::now();
            daemon.spawn(AgentSpec::new(id.clone(), own_argv.clone()));
            events.await_event(&[Kind::Completed], &id);
            let rate = rate(began);
            costs.push((cpu_ns(pid) - before) as f64 / 1e9 / ((count * piece) as f64 / 1e9));
            daemon.forget();
            rate
        };
        let spreads = alternate(plan.rounds(10), floor, ours);
        table.compare(&format!("output in pieces of {name}"), "MB/s", spreads, Target::None);
        table.tell(&format!("the daemon's CPU for it, {name}"), "s/GB", Spread::of(costs), Target::None);
    }
}
