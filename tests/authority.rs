//! What an agent may ask for: at most what it has, of nobody but those below it, and it reads nobody else.
#![allow(clippy::unwrap_used)]

mod common;

use common::raw::Raw;
use common::*;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use treeherd::herd::Herd;
use treeherd::kernel::notify::Inbox;
use treeherd::kernel::socket::{self, SOCKET_MODE, claim_state_dir};
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::spec::{AgentSpec, Rlimit};

/// The group that may use the socket in these tests.
const GROUP: u32 = 54321;

/// What the agents of the tests below are: this binary again.
#[test]
fn role() {
    if std::env::var(ROLE).is_ok_and(|role| role == "asker") {
        let mut raw = Raw::connect(Path::new(&std::env::var("SOCKET").unwrap()));
        for line in std::env::var("REQUESTS").unwrap().lines() {
            println!("answer {}", raw.ask(line));
        }
        println!("answer null");
        std::io::stdout().flush().unwrap();
        // The agents that it has started end with it.
        loop {
            std::thread::park();
        }
    }
}

fn request(method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
}

/// A herd whose socket a group may use, and this binary where any user can execute it.
struct Open {
    herd: Own,
    program: PathBuf,
    _dir: tempfile::TempDir,
}

impl Open {
    fn new() -> Self {
        let (herd, dir) = (herd(), tempfile::tempdir().unwrap());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = dir.path().join("asker");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        std::fs::set_permissions(herd.dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        chown(herd.socket(), None, Some(GROUP)).unwrap();
        Self { herd, program, _dir: dir }
    }

    /// Starts an agent that asks for all of this, one after the other, and returns the answers.
    fn ask(&self, id: &str, before: &[&str], requests: &[String], change: impl FnOnce(&mut AgentSpec)) -> Vec<Value> {
        let command = [before, &[self.program.to_str().unwrap()], &AS_ROLE[..]].concat();
        let id = self.herd.program(None, id, &command, |spec| {
            spec.env.insert(ROLE.to_owned(), "asker".to_owned());
            spec.env.insert("SOCKET".to_owned(), self.herd.socket().to_str().unwrap().to_owned());
            spec.env.insert("REQUESTS".to_owned(), requests.join("\n"));
            change(spec);
        });
        await_line(&self.herd, &id, "answer null");
        let said = String::from_utf8(output(&self.herd, &id)).unwrap();
        let answers = said.lines().filter_map(|line| line.split_once("answer ")).map(|(_, answer)| answer);
        let answers: Vec<Value> = answers.map(|answer| serde_json::from_str(answer).unwrap()).collect();
        assert_eq!(answers.len(), requests.len() + 1, "{said}");
        answers
    }
}

fn code(answer: &Value) -> &str {
    answer["error"]["data"]["code"].as_str().unwrap_or("ok")
}

/// Makes an agent one that is nobody, with little.
fn little(spec: &mut AgentSpec) {
    (spec.user, spec.group) = (Some("65534".into()), Some(GROUP.to_string()));
    (spec.nice, spec.oom_score_adj) = (Some(10), Some(500));
    spec.rlimits.insert(Rlimit::Nofile, "100:100".parse().unwrap());
    spec.priority = 1.try_into().unwrap();
    spec.limits = limits(&["pids_max=50"]);
}

#[test]
fn an_agent_gives_its_children_at_most_what_it_has() {
    let open = Open::new();
    let wishes = [
        ("user", json!({ "user": "root" })),
        ("user", json!({ "user": "0" })),
        ("group", json!({ "user": "65534", "group": "0" })),
        ("inherit_env", json!({ "inherit_env": ["PATH"] })),
        ("nice", json!({ "nice": -20 })),
        ("nice", json!({ "nice": 9 })),
        ("ionice", json!({ "ionice": { "class": "realtime", "level": 0 } })),
        ("rlimits.nofile", json!({ "rlimits": { "nofile": "100:101" } })),
        ("oom_score_adj", json!({ "oom_score_adj": 499 })),
        ("priority", json!({ "priority": 2 })),
        ("session", json!({ "session": "others" })),
        ("grace", json!({ "grace": "1h" })),
        ("pids_max", json!({ "limits": { "pids_max": 51 } })),
    ];
    let spawn = |id: usize, wish: &Value| {
        let mut spec = json!({ "id": format!("c{id}"), "parent": "evil", "command": ["sleep", "1000"] });
        spec.as_object_mut().unwrap().extend(wish.as_object().unwrap().clone());
        request("spawn", &spec)
    };
    let mut requests: Vec<_> = wishes.iter().enumerate().map(|(id, (_, wish))| spawn(id, wish)).collect();
    let look = "id -u; id -g; nice; ulimit -Hn; cat /proc/self/oom_score_adj; sleep 1000";
    requests.push(request("spawn", &json!({ "id": "plain", "parent": "evil", "command": ["sh", "-c", look] })));
    requests.push(request("limit", &json!({ "scope": { "agent": "plain" }, "limits": { "pids_max": 51 } })));
    requests.push(request("restart", &json!({ "id": "plain" })));
    let answers = open.ask("evil", &[], &requests, little);
    let evil: AgentId = name("evil");
    let trail = open.herd.events_of(&evil);
    let reported: Vec<&Event> = trail.iter().filter(|event| event.kind == Kind::Forbidden).collect();
    for ((field, wish), answer) in wishes.iter().zip(&answers) {
        let wanted = if *field == "pids_max" { "limit_too_wide" } else { "forbidden" };
        assert_eq!(code(answer), wanted, "{wish}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(field), "{message}");
        assert!(answer["error"]["data"]["remedy"].is_string(), "{answer}");
        assert!(reported.iter().any(|event| event.message.contains(message)), "{message} is reported");
    }
    let [plain, limit, restart] = &answers[wishes.len()..wishes.len() + 3] else { panic!("{answers:?}") };
    assert_eq!((code(plain), code(limit), code(restart)), ("ok", "limit_too_wide", "ok"));
    assert_eq!(reported.len(), wishes.len() + 1, "{reported:?}");
    let plain = name("plain");
    await_line(&open.herd, &plain, "500");
    let said = String::from_utf8(output(&open.herd, &plain)).unwrap();
    // Its first run may have been ended in the middle of this.
    assert!(said.contains(&format!("65534\n{GROUP}\n10\n100\n500\n")), "{said}");
    open.herd.finish();
}

#[test]
fn an_agent_that_gave_up_root_asks_as_what_it_has_become() {
    let open = Open::new();
    let group = GROUP.to_string();
    let drop = ["setpriv", "--reuid", "65534", "--regid", &group, "--clear-groups"];
    let look = ["sh", "-c", "id -u; sleep 1000"];
    let spawn = |id: &str, user: Option<&str>| {
        request("spawn", &json!({ "id": id, "parent": "former", "command": look, "user": user }))
    };
    let answers = open.ask("former", &drop, &[spawn("root", Some("root")), spawn("open", None)], |_| {});
    assert_eq!(code(&answers[0]), "forbidden", "{}", answers[0]);
    assert_eq!(code(&answers[1]), "ok", "{}", answers[1]);
    await_line(&open.herd, &name("open"), "65534");
    open.herd.finish();
}

#[test]
fn a_file_that_an_agent_cannot_read_is_no_childs_stdin() {
    let open = Open::new();
    let secret = open.herd.dir.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let stdin = json!({ "id": "c", "parent": "evil", "command": ["cat"], "stdin": secret });
    let answers = open.ask("evil", &[], &[request("spawn", &stdin)], little);
    assert_eq!(code(&answers[0]), "spawn_failed", "{}", answers[0]);
    open.herd.finish();
}

#[test]
fn an_agent_reads_nobody_but_itself_and_those_below_it() {
    let open = Open::new();
    let victim = open.herd.program(None, "victim", &["sleep", "1000"], |spec| {
        spec.metadata.insert("k".into(), json!("s3cret"));
    });
    let pid = open.herd.agent_status(&victim).unwrap().pid.unwrap();
    let ids = json!({ "ids": ["victim"] });
    let forbidden = [
        ("ps", json!({ "target": ids })),
        ("ps", json!({ "parent": "victim" })),
        ("show", json!({ "id": "victim" })),
        ("explain", json!({ "id": "victim" })),
        ("logs", json!({ "id": "victim" })),
        ("logs", json!({ "id": "victim", "follow": true })),
        ("follow", json!({ "target": ids })),
        ("follow", json!({ "target": "all" })),
        ("follow", json!({ "target": { "level": 0 } })),
        ("events", json!({})),
        ("events", json!({ "follow": true })),
        ("events", json!({ "since": 0, "agent": "victim" })),
        ("events", json!({ "since": 0, "parent": "victim" })),
        ("config", json!({})),
        ("doctor", json!({})),
        ("stats", json!({ "agents": true })),
    ];
    let mut requests: Vec<_> = forbidden.iter().map(|(method, params)| request(method, params)).collect();
    requests.push(request("process", &json!({ "pid": pid })));
    requests.push(request("spawn", &json!({ "id": "own", "parent": "evil", "command": ["sleep", "1000"] })));
    requests.push(request("ps", &json!({})));
    requests.push(request("ps", &json!({ "target": { "level": 0 } })));
    requests.push(request("events", &json!({ "since": 0, "parent": "evil" })));
    let answers = open.ask("evil", &[], &requests, little);
    for ((method, params), answer) in forbidden.iter().zip(&answers) {
        assert_eq!(code(answer), "forbidden", "{method} {params}: {answer}");
    }
    let rest = &answers[forbidden.len()..];
    assert_eq!(code(&rest[0]), "no_such_agent", "{}", rest[0]);
    let listed = |answer: &Value| -> Vec<String> {
        answer["result"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((listed(&rest[2]), listed(&rest[3])), (vec!["evil".into(), "own".into()], vec!["evil".into()]));
    assert_eq!(rest[4]["result"]["events"][0]["agent"], "own");
    assert!(!answers.iter().any(|answer| answer.to_string().contains("s3cret")), "{answers:?}");
    open.herd.finish();
}

#[test]
fn who_follows_an_agents_events_hears_nobody_who_has_its_name_before_or_after() {
    let herd = herd();
    let follow = |raw: &mut Raw, params: Value| assert!(raw.call("events", &params)["result"].is_object());
    let forget = |id: &AgentId| {
        herd.terminate(ids(&[id]), Some(Duration::ZERO)).unwrap();
        herd.cleanup(ids(&[id])).unwrap();
    };
    let parent = herd.group(None, "parent");
    let mut raw = Raw::connect(&herd.socket());
    // One that has the name before, one that is followed, and one that has it after.
    forget(&herd.sleeper(Some(&parent), "x"));
    let second = herd.sleeper(Some(&parent), "x");
    let key = herd.events_of(&second).last().unwrap().agent_key.unwrap();
    follow(&mut raw, json!({ "follow": true, "since": 0, "agent": "x" }));
    forget(&second);
    // On the same connection: what comes in the order of its numbers comes to both.
    raw.send(&format!("{}\n", json!({ "jsonrpc": "2.0", "id": 8, "method": "events", "params": { "follow": true } })));
    herd.sleeper(Some(&parent), "x");
    herd.sleeper(None, "last");
    let mut heard = Vec::new();
    loop {
        let note = raw.line().unwrap();
        let (call, event) = (&note["params"]["call"], &note["params"]["event"]);
        if call == 7 {
            heard.push(event["agent_key"].as_u64().unwrap());
        }
        if call == 8 && event["agent"] == "last" && event["kind"] == "process:started" {
            break;
        }
    }
    assert!(heard.len() >= 3 && heard.iter().all(|heard| *heard == key), "{key}: {heard:?}");
    // A name that nobody has yet is the next one's.
    follow(&mut raw, json!({ "follow": true, "agent": "y" }));
    forget(&herd.sleeper(None, "y"));
    let all = herd.events_of(&name("y"));
    assert!(all.iter().all(|event| event.agent_key == all[0].agent_key), "{all:?}");
    herd.finish();
}

#[test]
fn an_agent_does_not_read_the_history_of_who_had_a_name_before() {
    let open = Open::new();
    let mut events = open.herd.follow();
    let before = open.herd.program(None, "child", &["sh", "-c", "exit 3"], |_| {});
    await_event(&mut events, Kind::Failed, &before);
    open.herd.cleanup(ids(&[&before])).unwrap();
    let requests = [
        request("spawn", &json!({ "id": "child", "parent": "evil", "command": ["sleep", "1000"] })),
        request("events", &json!({ "since": 0, "agent": "child" })),
    ];
    let answers = open.ask("evil", &[], &requests, little);
    let kinds: Vec<_> = answers[1]["result"]["events"].as_array().unwrap().iter().map(|event| &event["kind"]).collect();
    assert_eq!(kinds, ["process:spawned", "process:started"]);
    open.herd.finish();
}

#[test]
fn a_socket_that_others_could_replace_is_refused_by_the_name_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (claim, place) = (claim_state_dir(&dir.path().join("state")).unwrap(), dir.path().join("place"));
    let socket = place.join("s");
    std::fs::create_dir(&place).unwrap();
    let allow = |mode| std::fs::set_permissions(&place, std::fs::Permissions::from_mode(mode)).unwrap();
    let bind = || socket::bind(&claim, &socket, None, SOCKET_MODE);
    for mode in [0o777, 0o775, 0o757] {
        allow(mode);
        let error = bind().expect_err("others can write there");
        assert!(error.message.contains(&format!("{} can be written to by others (mode {mode:04o})", place.display())));
        assert!(error.remedy.unwrap().contains(&format!("chmod go-w {}", place.display())));
    }
    allow(0o755);
    chown(&place, Some(65534), None).unwrap();
    let error = bind().expect_err("its owner can write there");
    assert!(error.message.contains("belongs to user 65534"), "{error}");
    assert!(!socket.exists());
    chown(&place, Some(0), None).unwrap();
    for mode in [0o755, 0o1777] {
        allow(mode);
        let bound = bind().unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        drop(bound);
    }
    // The daemon reports it as its own error.
    allow(0o777);
    std::fs::remove_file(&socket).unwrap();
    let own = daemon_to_be(&["--socket", socket.to_str().unwrap()]);
    let output = own.start().stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("can be written to by others"), "{said}");
}

#[test]
fn the_mode_of_a_socket_is_set_on_no_file_that_replaces_it() {
    const ROUNDS: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let claim = claim_state_dir(&dir.path().join("state")).unwrap();
    let [socket, victim, link] = ["s", "victim", "link"].map(|name| dir.path().join(name));
    std::fs::write(&victim, "precious").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let is_bound = || std::fs::symlink_metadata(&socket).is_ok_and(|about| about.file_type().is_socket());
                if is_bound() && std::os::unix::fs::symlink(&victim, &link).is_ok() {
                    std::fs::rename(&link, &socket).unwrap();
                }
            }
        });
        for _ in 0..ROUNDS {
            drop(std::fs::remove_file(&socket));
            drop(socket::bind(&claim, &socket, None, SOCKET_MODE));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(std::fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
#[allow(unsafe_code)]
fn a_socket_has_its_mode_under_every_umask() {
    if !alone("a_socket_has_its_mode_under_every_umask") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let claim = claim_state_dir(&dir.path().join("state")).unwrap();
    for umask in [0, 0o022, 0o777] {
        // SAFETY: it changes this process alone, which exists for this.
        unsafe { libc::umask(umask) };
        let [clients, notes] = [format!("c{umask}"), format!("n{umask}")].map(|name| claim.path().join(name));
        let _bound = socket::bind(&claim, &clients, None, SOCKET_MODE).unwrap();
        let _inbox = Inbox::bind(&claim, &notes).unwrap();
        let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(clients), mode(notes)], [SOCKET_MODE, 0o666], "umask {umask:o}");
    }
}

#[test]
fn no_text_of_an_agent_forges_a_line_of_the_log() {
    let mut own = daemon(&[]);
    own.crash();
    let log = own.dir.path().join("log");
    let mut daemon = own.start().stderr(Stdio::from(std::fs::File::create(&log).unwrap())).spawn().unwrap();
    let mut connected = None;
    until("the daemon answers", || {
        connected = Herd::connect(&own.socket()).ok().filter(|herd| herd.agents().is_ok());
        connected.is_some()
    });
    let herd = connected.unwrap();
    let forged = "x\r\n2026-01-01T00:00:00Z  WARN process:failed forged\u{202e}\u{1b}[2J";
    let script = format!("printf '%s\\n' '{}' | tr '~' '\\n'; exit 3", forged.replace('\n', "~"));
    let mut spec = AgentSpec::new(name("noisy"), ["sh", "-c", &script]);
    spec.rules = vec!["WARN".parse().unwrap()];
    let mut events = herd.follow_events(Default::default()).unwrap();
    events.set_timeout(Some(PATIENCE)).unwrap();
    herd.spawn_child_agent(None, spec).unwrap();
    await_event(&mut events, Kind::Notice, &name("noisy"));
    let mut spec = AgentSpec::new(name("cwd"), ["true"]);
    spec.cwd = Some(format!("/{forged}").into());
    herd.spawn_child_agent(None, spec).unwrap_err();
    let mut raw = Raw::connect(&own.socket());
    raw.call("spawn", &json!({ "id": "stdin", "command": ["true"], "stdin": format!("/{forged}") }));
    herd.shutdown(Some(Duration::ZERO)).unwrap();
    assert!(daemon.wait().unwrap().success());
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("process:notice"), "{text}");
    for line in text.lines() {
        let is_ours = line.split_whitespace().next().is_some_and(|time| time.ends_with('Z') && time.starts_with("20"));
        assert!(is_ours && !line.starts_with("2026-01-01"), "{line:?} in {text}");
        assert!(!line.contains(|c: char| c.is_control() && c != '\t' || c == '\u{202e}'), "{line:?}");
    }
}
