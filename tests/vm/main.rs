//! Guests: the tests on a real kernel once more where this host is of no help, on cgroup2 with every controller, on kernels
//! of other years, with systemd as the first process.
//!
//! ```text
//! here ── prepare ──> boots a guest ──> runs the test binaries in it, this one too, with the variable below set
//! there ────────────────────────────────────────────────────> the tests that only a guest can make
//! ```
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::process::ExitCode;

use libtest_mimic::Arguments;

#[path = "../common/mod.rs"]
mod common;

mod container;
mod guest;
mod host;
mod hostile;
mod package;
mod systemd;
mod unified;
mod user;

/// Makes trials of functions, under their own names.
macro_rules! trials {
    ($($test:ident),* $(,)?) => {
        vec![$(libtest_mimic::Trial::test(stringify!($test), || {
            $test();
            Ok(())
        })),*]
    };
}
use trials;

/// The variable that tells this binary inside of a guest which tests it is to run there.
const INSIDE: &str = "TREEHERD_TEST_INSIDE";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Ok(part) = std::env::var(INSIDE) {
        let trials = match part.as_str() {
            "unified" => unified::all(),
            "service" => systemd::service(),
            "crash" => systemd::crash(),
            "after_crash" => systemd::after_crash(),
            "package" => package::all(),
            "user" => user::all(),
            "container" => container::all(),
            "hostile" => hostile::all(),
            "without_memory" => hostile::without_memory(),
            other => panic!("there are no tests called {other}"),
        };
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    // A guest has one CPU.
    let conclusion = libtest_mimic::run(&arguments, host::trials(&arguments));
    host::report(conclusion.num_ignored);
    conclusion.exit_code()
}
