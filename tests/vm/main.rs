//! Guests: the tests on a real kernel once more where this host is of no help, on cgroup2 with every controller, on kernels
//! of other years, with systemd as the first process.
//!
//! ```text
//! here ── prepare ──> boots a guest for each test binary ──> boots this binary in a guest, with the variable below set
//! there ────────────────────────────────────────────────────> the tests that only a guest can make
//! ```
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::ExitCode;

use libtest_mimic::Arguments;

mod guest;
mod host;

/// The variable that tells this binary inside of a guest which tests it is to run there.
const INSIDE: &str = "TREEHERD_TEST_INSIDE";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if let Ok(part) = std::env::var(INSIDE) {
        panic!("{part}");
    }
    // A guest has as many CPUs as it needs of this machine: one at a time.
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, host::trials());
    host::report();
    conclusion.exit_code()
}
