//! Requests made from the schema, from every side: the operator's, an agent's, and that of a stranger to the notify socket.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use treeherd::model::ready::Ready;
use treeherd::model::request::Target;
use treeherd::model::status::{AgentStatus, State};

use super::common::raw::Raw;
use super::common::*;
use super::schema::Requests;
use super::{Until, seed};

/// How long a run takes in a build.
const IN_A_BUILD: Duration = Duration::from_secs(6);

/// How many requests one connection sends: some of them are never answered, and their number is bounded.
const REQUESTS: usize = 40;

/// What the requests were answered with.
#[derive(Default)]
struct Tally {
    requests: u64,
    results: u64,
    errors: BTreeMap<String, u64>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests, {} results, errors {:?}", self.requests, self.results, self.errors)
    }
}

/// Checks every answer against the schema.
struct Judge {
    results: BTreeMap<String, jsonschema::Validator>,
    errors: jsonschema::Validator,
}

impl Judge {
    fn new(methods: &[String]) -> Self {
        let document = serde_json::to_value(treeherd::api::schema::Contract::new()).unwrap();
        let part = |pointer: &str| {
            let mut schema = document.pointer(pointer).unwrap().clone();
            schema["$defs"] = document["$defs"].clone();
            jsonschema::draft202012::new(&schema).unwrap()
        };
        let results = methods.iter().map(|method| (method.clone(), part(&format!("/methods/{method}/result"))));
        Self { results: results.collect(), errors: part("/errors") }
    }

    fn judge(&self, sent: &BTreeMap<String, (String, String)>, answer: &Value, tally: &mut Tally) {
        if let Some(error) = answer.get("error") {
            assert!(self.errors.is_valid(error), "{answer}");
            *tally.errors.entry(error["data"]["code"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
            return;
        }
        let (method, line) = &sent[answer["id"].as_str().unwrap()];
        assert!(self.results[method].is_valid(&answer["result"]), "{line} is answered by {answer}");
        tally.results += 1;
    }
}

/// Sends requests of these methods until the time is over, and checks what comes back.
fn fuzz(socket: &Path, requests: &mut Requests, methods: &[String], until: &Until) -> Tally {
    let judge = Judge::new(&requests.methods);
    let mut tally = Tally::default();
    while until.goes_on() {
        let mut raw = Raw::connect(socket);
        let mut sent = BTreeMap::new();
        for number in 0..REQUESTS {
            // What is spawned is what the other requests are about.
            let is_spawn = requests.one_in(4);
            let method =
                if is_spawn { "spawn".into() } else { methods[requests.chance.usize(..methods.len())].clone() };
            let line = requests.line(&number.to_string(), &method).replace('\n', " ");
            raw.send(&format!("{line}\n"));
            sent.insert(number.to_string(), (method, line));
            tally.requests += 1;
        }
        // What is asked last is answered: those before it may wait, for the end of an agent for one.
        raw.send("{\"jsonrpc\":\"2.0\",\"id\":\"last\",\"method\":\"hello\"}\n");
        loop {
            let answer = raw.line().expect("the connection stays open");
            if answer["id"] == "last" {
                break;
            }
            if answer.get("method").is_none() {
                judge.judge(&sent, &answer, &mut tally);
            }
        }
    }
    tally
}

fn without(methods: &[String], left_out: &[&str]) -> Vec<String> {
    methods.iter().filter(|method| !left_out.contains(&method.as_str())).cloned().collect()
}

#[test]
fn a_fuzzed_operator_gets_answers_as_the_schema_says() {
    let seed = seed();
    let mut herd = daemon(&["--max-agents-per-level", "60"]);
    let mut requests = Requests::new(seed, &["a", "b", "c"]);
    herd.limit(treeherd::model::request::LimitScope::Herd, limits(&["pids_max=400"])).unwrap();
    let top = herd.group(None, "a");
    herd.sleeper(Some(&top), "b");
    // Whoever may shut the herd down does, and there is nothing left to ask.
    let methods = without(&requests.methods, &["shutdown"]);
    let tally = fuzz(&herd.socket(), &mut requests, &methods, &Until::after(IN_A_BUILD));
    println!("operator: {tally}");
    assert!(tally.results > 0 && tally.errors.len() > 3, "{tally}");
    herd.terminate(Target::All, Some(Duration::ZERO)).unwrap();
    assert!(herd.agents().unwrap().iter().all(|agent| agent.state.has_ended() || agent.state == State::Group));
    herd.end();
}

/// The part of an agent's status that no other agent may change.
fn standing(agents: &[AgentStatus], below: &str) -> BTreeSet<String> {
    let all: BTreeMap<_, _> = agents.iter().map(|agent| (agent.id.as_str(), agent)).collect();
    let is_below = |agent: &&AgentStatus| {
        let parent = |agent: &&AgentStatus| agent.parent.as_ref().and_then(|id| all.get(id.as_str()).copied());
        std::iter::successors(Some(*agent), parent).any(|above| above.id.as_str() == below)
    };
    let others = agents.iter().filter(|agent| !is_below(agent));
    others
        .map(|it| format!("{} {} {:?} {:?} {:?} {:?}", it.id, it.state, it.pid, it.paused, it.run, it.limits))
        .collect()
}

/// An agent's side: fuzzes over the socket that it was given, and prints the outcome.
pub fn from_inside() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let mut requests = Requests::new(variable("FUZZ_SEED").parse().unwrap(), &["top", "victim", "evil"]);
    let methods = requests.methods.clone();
    let seconds = variable("FUZZ_SECONDS").parse().unwrap();
    let until = Until(std::time::Instant::now() + Duration::from_secs_f64(seconds));
    let tally = fuzz(Path::new(&variable("FUZZ_SOCKET")), &mut requests, &methods, &until);
    println!("agent: {tally}");
    assert!(tally.errors.get("forbidden").is_some_and(|refused| *refused > 0), "{tally}");
}

#[test]
fn a_fuzzing_agent_changes_nothing_but_what_is_below_it() {
    let seed = seed();
    let mut herd = daemon(&["--max-agents-per-level", "60"]);
    let top = herd.group(None, "top");
    let victim = herd.sleeper(Some(&top), "victim");
    herd.sleeper(Some(&victim), "below-victim");
    let time = endurance().unwrap_or(IN_A_BUILD);
    let evil = herd.role(Some(&top), "evil", "fuzz", |spec| {
        spec.limits = limits(&["pids_max=300"]);
        spec.env.insert("FUZZ_SOCKET".to_owned(), herd.socket().to_str().unwrap().to_owned());
        spec.env.insert("FUZZ_SEED".to_owned(), seed.to_string());
        spec.env.insert("FUZZ_SECONDS".to_owned(), time.as_secs_f64().to_string());
    });
    let before = standing(&herd.agents().unwrap(), "evil");
    // It prints nothing that ends before the time is over: whether it runs is seen from its state.
    herd.wait(std::slice::from_ref(&evil)).unwrap();
    let said = String::from_utf8_lossy(&output(&herd, &evil)).into_owned();
    println!("{said}");
    assert!(said.contains("agent: "), "{said}{}", String::from_utf8_lossy(&errors(&herd, &evil)));
    assert_eq!(standing(&herd.agents().unwrap(), "evil"), before);
    herd.end();
}

/// Finds the notify socket: the only one in the state directory that anybody may send to.
fn notify_socket(herd: &Own) -> PathBuf {
    herd.dir.path().join("state/notify")
}

#[test]
fn a_stranger_at_the_notify_socket_speaks_for_no_agent() {
    let mut chance = fastrand::Rng::with_seed(seed());
    let mut herd = daemon(&[]);
    let waiting = herd.program(None, "waiting", &["sleep", "1000"], |spec| {
        spec.ready = Some(Ready::Notify);
        spec.ready_timeout = Some(Duration::from_secs(24 * 3600));
        spec.watchdog = Some(Duration::from_secs(24 * 3600));
    });
    let before = standing(&herd.agents().unwrap(), "none");
    let stranger = UnixDatagram::unbound().unwrap();
    stranger.connect(notify_socket(&herd)).unwrap();
    stranger.set_write_timeout(Some(PATIENCE)).unwrap();
    let pid = herd.agent_status(&waiting).unwrap().pid.unwrap().to_string();
    let fields = ["READY=1", "STOPPING=1", "WATCHDOG=1", "WATCHDOG=trigger", "STATUS=evil\u{1b}[2J", "RELOADING=1"];
    let (time, mut letters) = (Until::after(IN_A_BUILD), 0u64);
    while time.goes_on() {
        let mut letter: Vec<u8> = (0..chance.usize(..6)).fold(Vec::new(), |mut text, _| {
            text.extend_from_slice(fields[chance.usize(..fields.len())].as_bytes());
            text.push(if chance.bool() { b'\n' } else { 0 });
            text
        });
        match chance.u32(..4) {
            0 => letter.extend(format!("MAINPID={pid}\nEXTEND_TIMEOUT_USEC={}", chance.u64(..)).into_bytes()),
            1 => (0..chance.usize(..20_000)).for_each(|_| letter.push(chance.u8(..))),
            _ => {}
        }
        // One that is too long for the socket is refused by the kernel.
        letters += u64::from(stranger.send(&letter).is_ok());
    }
    println!("stranger: {letters} messages");
    assert_eq!(standing(&herd.agents().unwrap(), "none"), before);
    until("messages of strangers are counted", || herd.stats().unwrap().notes_refused > 0);
    herd.end();
}
