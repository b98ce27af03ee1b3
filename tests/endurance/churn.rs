//! Work for a daemon that is to be killed, or to last: agents that end in ways that are known beforehand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use treeherd::herd::Herd;
use treeherd::model::id::AgentId;
use treeherd::model::recovery::RestartPolicy;
use treeherd::model::spec::AgentSpec;

use super::common::name;

/// Clients that start and end agents until they are stopped, whatever becomes of the daemon.
pub struct Churn {
    is_over: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

/// The status with which an agent of the churn ends, if it is one that ends by itself.
pub fn expected(id: &AgentId) -> Option<i32> {
    let number: u64 = id.as_str().strip_prefix("brief-")?.parse().ok()?;
    i32::try_from(number % 251).ok()
}

/// What such an agent writes before it ends.
pub fn expected_output(id: &AgentId) -> Vec<u8> {
    format!("{id} wrote this\n").into_bytes()
}

impl Churn {
    /// Starts so many clients on a socket.
    pub fn start(socket: &Path, clients: u64, seed: u64) -> Self {
        let (is_over, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |client| {
            let (socket, is_over, made) = (socket.to_path_buf(), is_over.clone(), made.clone());
            let mut chance = fastrand::Rng::with_seed(seed.wrapping_add(client));
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(herd) = Herd::connect(&socket) else {
                        std::thread::park_timeout(Duration::from_millis(2));
                        continue;
                    };
                    while !is_over.load(Ordering::Relaxed) && step(&herd, &made, &mut chance) {}
                }
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { is_over, made, clients }
    }

    pub fn stop(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        self.made.load(Ordering::Relaxed)
    }
}

/// Asks for one thing. Returns whether the daemon is still there.
fn step(herd: &Herd, made: &AtomicU64, chance: &mut fastrand::Rng) -> bool {
    let number = made.fetch_add(1, Ordering::Relaxed);
    let below = Some(name("churn"));
    let outcome = match chance.u32(..6) {
        0 => {
            let id = name(&format!("ended-{number}"));
            let spec = AgentSpec::new(id.clone(), ["sh", "-c", "sleep 1000 & exec sleep 1000"]);
            let spawned = herd.spawn_child_agent(below.as_ref(), spec);
            spawned.and_then(|_| herd.terminate_agent(&id, Some(Duration::ZERO))).map(drop)
        }
        1 => {
            let id = name(&format!("again-{}", number % 8));
            let mut spec = AgentSpec::new(id.clone(), ["sh", "-c", "sleep 0.05; exit 3"]);
            spec.restart.policy = RestartPolicy::Always;
            (spec.restart.delay, spec.restart.factor, spec.restart.intensity) =
                (Duration::from_millis(5), 1.0, 1 << 20);
            let _often_there = herd.spawn_child_agent(below.as_ref(), spec);
            herd.pause_agent(&id).and_then(|_| herd.resume_agent(&id)).map(drop)
        }
        _ => {
            let id = name(&format!("brief-{number}"));
            let status = expected(&id).unwrap();
            let script = format!("echo {id} wrote this; sleep 0.0$(({number} % 10)); exit {status}");
            herd.spawn_child_agent(below.as_ref(), AgentSpec::new(id, ["sh", "-c", &script])).map(drop)
        }
    };
    // Refusals belong to it: the herd is full at times.
    outcome.is_ok() || herd.stats().is_ok()
}

/// Counts the files and directories below a directory, by the names of the topmost ones.
pub fn files(dir: &std::path::Path) -> BTreeMap<String, usize> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let below = super::common::directories_below(&entry.path());
            let inside = below.iter().flat_map(std::fs::read_dir).flatten().count();
            (entry.file_name().to_string_lossy().into_owned(), inside)
        })
        .collect()
}
