//! A machine of which systemd is PID 1: a guest in which this program runs again, with systemd as one more peer.
//!
//! Where it is emulated, an instruction takes a nanosecond of its clock, and nothing else takes any: so its figures are how much each has
//! to do, user and kernel together, and no other load on this machine changes them.

use std::path::PathBuf;
use std::time::Duration;

use crate::guest::{FirstProcess, Guest, Kit};
use crate::peer::{BARE, DAEMON, SYSTEMD};
use crate::report::{keep, put_into_readme};

/// How much of a CPU's time the guest may take.
const LIMIT: Duration = Duration::from_secs(3_000);

/// Measures in the guest, prints its tables, and puts them into README if they are for it.
pub fn run(is_quick: bool, is_for_readme: bool) {
    let kit = Kit::prepare().unwrap_or_else(|why| panic!("there can be no guest here: {why}"));
    let (own, treeherd) = (std::env::current_exe().unwrap(), PathBuf::from(env!("CARGO_BIN_EXE_treeherd")));
    let quick = if is_quick { "--quick" } else { "" };
    // What is not on disk yet when it is measured would be told as its own slowness. What is said besides is the console's.
    let job = format!(
        "cat {own} {} >/dev/null\n{own} {quick} --json --peers '{DAEMON},{BARE},{SYSTEMD}' --only up,up-1000,live,terminate 2>/dev/ttyS0",
        treeherd.display(),
        own = own.display(),
    );
    let guest = Guest {
        kernel: "6.12",
        options: "",
        first: FirstProcess::Systemd,
        files: &[own, treeherd],
        job: &job,
        disk: None,
        limit: LIMIT,
    };
    let told = kit.run(&guest);
    assert_eq!(told.status, Some(0), "{}\n{}", told.text, told.console);
    let told: serde_json::Value = serde_json::from_str(&told.text).unwrap();
    let table = format!("{}\n", told["table"].as_str().unwrap().trim_end());
    println!("{}: {table}", kit.accelerator);
    if is_for_readme {
        put_into_readme("peers in a guest", &table);
        keep("guest.json", &told["figures"]);
    }
}
