//! A machine of which systemd is PID 1: a guest in which this program runs again, with systemd as one more peer.
//!
//! Where it is emulated, an instruction takes a nanosecond of its clock, and nothing else takes any: so its figures are how much each has
//! to do, user and kernel together, and no other load on this machine changes them.

use std::path::PathBuf;
use std::time::Duration;

use crate::guest::{FirstProcess, Guest, Kit};
use crate::peer::{BARE, DAEMON, SYSTEMD};
use crate::report::{keep, put_into_readme};

/// How many bytes of a file the kernel maps around one that is used: 64 KiB unless somebody says otherwise.
const FAULT_AROUND: &str = "/sys/kernel/debug/fault_around_bytes";

/// How much of a CPU's time the guest may take.
const LIMIT: Duration = Duration::from_secs(3_000);

/// Measures in the guest, prints its tables, and puts them into README if they are for it.
pub fn run(is_quick: bool, is_for_readme: bool) {
    let kit = Kit::prepare().unwrap_or_else(|why| panic!("there can be no guest here: {why}"));
    let (own, treeherd) = (std::env::current_exe().unwrap(), PathBuf::from(env!("CARGO_BIN_EXE_treeherd")));
    let quick = if is_quick { "--quick" } else { "" };
    // What is not on disk yet when it is measured would be told as its own slowness. What is said besides is the console's.
    let measure = format!("{} {quick} --json --peers '{DAEMON},{BARE},{SYSTEMD}' 2>/dev/ttyS0 --only", own.display());
    let job = format!(
        "cat {} {} >/dev/null\n{measure} up,up-1000,live,terminate || exit
        mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null\necho 4096 >{FAULT_AROUND} && {measure} up",
        own.display(),
        treeherd.display(),
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
    let mut told = serde_json::Deserializer::from_str(&told.text).into_iter::<serde_json::Value>().map(Result::unwrap);
    let (all, alone) = (told.next().unwrap(), told.next().unwrap());
    let (around, alone) = (memory(&all), memory(&alone));
    let table = format!(
        "{}\n\nWhere the kernel maps the page that is used, and none of the 15 around it, the daemon with 50 agents has {alone:.0} KiB, not \
         {around:.0}: so much of it is program that is there and not used.\n",
        all["table"].as_str().unwrap().trim_end()
    );
    println!("{}: {table}", kit.accelerator);
    if is_for_readme {
        put_into_readme("peers in a guest", &table);
        keep("guest.json", &all["figures"]);
    }
}

/// Returns the memory of the daemon with 50 agents, in KiB.
fn memory(all: &serde_json::Value) -> f64 {
    let figures = all["figures"]["figures"].as_array().unwrap();
    let figure = figures.iter().find(|figure| figure["measure"] == "pss-50" && figure["peer"] == DAEMON).unwrap();
    figure["p50"].as_f64().unwrap()
}
