use std::time::Duration;

use super::*;
use crate::model::limits::Knob;
use crate::model::spec::{RestartPolicy, Strategy};

const GOOD: &str = r#"
[herd]
max_levels = 4
max_agents_per_level = 5
cleanup_retention = "5s"
auto_cleanup = false
limits = { memory_max = "1GiB", pids_max = 512 }

[levels.1]
each = { memory_max = "256MiB", pids_max = 50 }
siblings = { memory_max = "512MiB" }
total = { pids_max = 300 }

[defaults]
grace = "3s"
env = { MODE = "slow", KEPT = "yes" }
restart = { policy = "on-failure", delay = "2s" }

[agents.worker-2]
parent = "boss"
command = "echo $MODE; exec sleep 60"
env = { MODE = "fast" }

[agents.boss]
command = ["sh", "-c", "wait"]
limits = { memory_max = "300MiB" }
restart = "never"

[agents.boss.agents.worker-1]
command = ["sleep", "60"]
restart = { delay = "1s" }
nice = 5
run_timeout = "1h"
rules = [{ pattern = "^panic", stream = "stderr", action = "fail", name = "panic" }, { pattern = 'disk \S+ full' }]
"#;

fn mistakes(text: &str) -> Vec<Mistake> {
    Tree::parse(text.as_bytes()).expect_err(text)
}

#[test]
fn a_good_file_becomes_a_herd_with_parents_before_children() {
    let tree = Tree::parse(GOOD.as_bytes()).unwrap();
    let ids: Vec<_> = tree.agents.iter().map(|agent| agent.id.as_str()).collect();
    assert_eq!(ids, ["boss", "worker-2", "worker-1"]);
    assert_eq!(tree.depth(), 2);
    assert_eq!((tree.config.bounds.max_levels, tree.config.auto_cleanup), (4, false));
    assert!(tree.config.limits.get(Knob::MemoryMax).is_some());
    let [boss, second, first] = &tree.agents[..] else { panic!("three agents") };
    assert_eq!(first.parent.as_ref(), Some(&boss.id));
    assert_eq!(second.parent.as_ref(), Some(&boss.id));
    assert_eq!(second.command, ["sh", "-c", "echo $MODE; exec sleep 60"]);
    assert_eq!((second.env["MODE"].as_str(), second.env["KEPT"].as_str()), ("fast", "yes"));
    assert_eq!(boss.restart.policy, RestartPolicy::Never);
    assert_eq!((first.restart.policy, first.restart.delay), (RestartPolicy::OnFailure, Duration::from_secs(1)));
    assert_eq!(first.grace, Duration::from_secs(3));
    assert!(boss.limits.get(Knob::MemoryMax).is_some() && first.limits.is_empty(), "each is the herd's to give");
}

#[test]
fn a_file_may_be_empty_or_have_groups_only() {
    assert_eq!(Tree::parse(b"").unwrap().agents, []);
    let tree = Tree::parse(b"[agents.a.agents.b]\ncommand = 'x'").unwrap();
    assert!(tree.agents[0].is_group() && !tree.agents[1].is_group());
}

/// A line, a column, and a part of the message; `|` stands between parts of which one will do.
type Told = (usize, usize, &'static str);

/// Each bad file with the place and a part of the message of each mistake in it.
const BAD: &[(&str, &[Told])] = &[
    ("[agents.a\ncommand = 'x'", &[(1, 10, "not TOML")]),
    ("[agents.a]\ncommand = ", &[(2, 11, "not TOML")]),
    ("[agent.a]", &[(1, 2, "there is no key \"agent\" in a tree file")]),
    ("[herd]\nmax_level = 3", &[(2, 1, "\"max_level\"")]),
    ("[herd]\nbounds = {}", &[(2, 1, "\"bounds\"")]),
    ("[herd]\nmax_levels = 0", &[(2, 14, "max_levels = 0 is out of range")]),
    ("[herd]\nmax_levels = 99999999999999999999999", &[(2, 14, "above the largest number")]),
    ("[herd]\nmax_agents = 'many'", &[(2, 14, "max_agents")]),
    ("[herd]\ncleanup_retention = '10 parsecs'", &[(2, 21, "not a duration")]),
    ("[herd]\ncleanup_retention = []", &[(2, 21, "cleanup_retention")]),
    ("herd = 3", &[(1, 8, "herd is a table")]),
    ("[herd]\nlimits = { memory_max = '10XB' }", &[(2, 25, "unknown unit")]),
    ("[herd]\nlimits = { memory_mx = 1 }", &[(2, 12, "memory_mx")]),
    ("[herd]\nlimits = { pids_max = -1 }", &[(2, 23, "pids_max")]),
    ("[herd]\nlimits = { memory_max = 18446744073709551616 }", &[(2, 25, "largest size")]),
    ("[herd]\nlimits = { memory_max = [] }", &[(2, 25, "memory_max")]),
    ("[herd]\nlimits = { memory_max = '1GiB', 'memory.max' = '2GiB' }", &[(2, 33, "limited twice")]),
    ("[levels.x]", &[(1, 9, "\"x\" is not a level")]),
    ("[levels.-1]", &[(1, 9, "is not a level")]),
    ("[levels.12]\neach = { pids_max = 5 }", &[(2, 21, "there is no level 12")]),
    ("[levels.0]\nsiblings = { pids_max = 5 }", &[(2, 25, "level 0 have no parent")]),
    ("[levels.1]\ntotal = { cpuset_cpus = '0' }", &[(2, 25, "no amount")]),
    ("[levels.1]\nevery = {}", &[(2, 1, "\"every\"")]),
    (
        "[herd]\nlimits.memory_max = '1GiB'\n[levels.2]\neach.memory_max = '2GiB'",
        &[(4, 19, "wider than the 1GiB that the whole herd has")],
    ),
    ("[defaults]\nid = 'x'\ncommand = 'x'\nniec = 3", &[(2, 1, "id"), (3, 1, "command"), (4, 1, "\"niec\"")]),
    ("[defaults]\nnice = 40", &[(2, 8, "-20 and 19 (got ")]),
    ("[agents]\n'../x' = {}\n'' = {}\n'cgroup.procs' = {}", &[(2, 1, "'/'|'.'|begin"), (3, 1, "empty"), (4, 1, "'.'")]),
    ("[agents.a]\ncomand = 'x'", &[(2, 1, "\"comand\"")]),
    ("[agents.a]\nid = 'b'", &[(2, 1, "table's name")]),
    ("[agents]\na = 3", &[(2, 5, "a is a table")]),
    ("[agents.a]\ncommand = 3", &[(2, 11, "command")]),
    ("[agents.a]\ncommand = ['x', 3]", &[(2, 17, "command")]),
    ("[agents.a]\ncommand = ['']", &[(2, 11, "name is empty")]),
    ("[agents.a]\npriority = 11", &[(2, 12, "priority 11")]),
    ("[agents.a]\nstop_signal = 'SIGFOO'", &[(2, 15, "SIGFOO")]),
    ("[agents.a]\ngrace = true", &[(2, 9, "grace")]),
    ("[agents.a]\ncwd = 'here'", &[(2, 7, "not absolute")]),
    ("[agents.a]\noutput_max = '1KiB'", &[(2, 14, "64KiB")]),
    ("[agents.a]\nstall = '5m'", &[(1, 9, "stall: a group has no process")]),
    ("[agents.a]\ncommand = 'x'\nstall = '999ms'", &[(3, 9, "stall: must be between 1s and a year (got 999ms)")]),
    ("[agents.a]\ncommand = 'x'\nstall = { action = 'fail' }", &[(3, 9, "missing field `after`")]),
    ("[agents.a]\ncommand = 'x'\nstall = { after = '5m', action = 'kill' }", &[(3, 34, "\"kill\" is not known here")]),
    ("[agents.a]\nrun_timeout = '5s'", &[(1, 9, "run_timeout: a group has no process")]),
    ("[agents.a]\nrules = [{ pattern = 'x' }]", &[(1, 9, "rules: a group has no process")]),
    (
        "[agents.a]\nrules = [\n { pattern = 'a[' },\n { pattern = 'a|', action = 'die' }, { stream = 'stdin' },\n { pattern = 'a|' }]",
        &[
            (3, 14, "\"a[\" is not a pattern: unclosed character class, at its character 2"),
            (4, 14, "matches every line"),
            (4, 49, "\"stdin\""),
            (5, 14, "\"a|\" matches every line"),
        ],
    ),
    ("[agents.a]\nrules = [{ pattern = '\\w{1000}' }]", &[(2, 22, "takes more than")]),
    ("[agents.a]\nrestart = 'sometimes'", &[(2, 11, "\"sometimes\" is not known here")]),
    ("[agents.a]\nrestart = { polcy = 'always', delay = 'x' }", &[(2, 13, "\"polcy\""), (2, 39, "not a duration")]),
    ("[agents.a]\nrestart = { delay = '2m' }", &[(2, 11, "delay must be at most max_delay, 1m (got 2m)")]),
    ("[agents.a]\nenv = { A = 1, B = [] }", &[(2, 13, "env"), (2, 20, "env")]),
    ("[agents.a]\nrlimits = { nofiles = 1, core = 'x' }", &[(2, 13, "nofiles"), (2, 33, "core|size")]),
    ("[agents.a]\nionice = { level = 3 }", &[(2, 10, "class")]),
    ("[agents.a]\non_main_exit = 'stop'", &[(2, 16, "\"stop\"")]),
    ("[agents.a]\nstop_signal_to = 'none'", &[(2, 18, "\"none\"")]),
    ("[agents.a]\nlevel = 1", &[(2, 9, "by its parent it is 0")]),
    ("[agents.a]\nagents = 3", &[(2, 10, "agents is a table")]),
    ("[agents.a]\n[agents.a]", &[(2, 9, "a is declared a second time")]),
    ("[agents.a.agents.x]\n[agents.b.agents.x]", &[(2, 18, "first time at line 1, column 18")]),
    ("[agents.a]\n[agents.b]\nparent = 'aa'", &[(3, 10, "aa, is not in this file")]),
    ("[agents.a]\nparent = 'x y'", &[(2, 10, "' '")]),
    ("[agents.a]\n[agents.b]\n[agents.a.agents.c]\nparent = 'b'", &[(4, 1, "by its place it is a, by name b")]),
    ("[agents.a]\nparent = 'a'", &[(2, 10, "a -> a")]),
    (
        "[agents.a]\nparent = 'c'\n[agents.b]\nparent = 'a'\n[agents.c]\nparent = 'b'\n[agents.d]\nparent = 'c'",
        &[(2, 10, "a -> c -> b -> a")],
    ),
    ("[herd]\nmax_levels = 1\n[agents.a.agents.b.agents.c]", &[(3, 18, "b stands at level 1")]),
    ("[herd]\nmax_agents_per_level = 1\n[agents.a]\n[agents.b]\n[agents.c]", &[(4, 9, "max_agents_per_level = 1")]),
    ("[herd]\nmax_children = 1\n[agents.a.agents.b]\n[agents.a.agents.c]", &[(4, 18, "below a")]),
    (
        "[agents.a]\nlimits.memory_max = '1GiB'\n[agents.a.agents.b]\nlimits.memory_max = '2GiB'",
        &[(4, 21, "b: memory_max = 2GiB is wider than the 1GiB that it inherits")],
    ),
    (
        "[levels.1]\nsiblings = { pids_max = 9 }\n[agents.a.agents.b.agents.c]\nlimits = { pids_max = 10 }",
        &[(4, 23, "c: pids_max = 10 is wider than the 9")],
    ),
    (
        "[herd]\nlimits.pids_max = 9\n[defaults]\nlimits.pids_max = 10\n[agents.a]",
        &[(4, 19, "a: pids_max = 10 is wider")],
    ),
    ("[levels.0]\ntotal.pids_max = 9\n[agents.a]", &[(3, 9, "a has no pids_max")]),
    (
        "[levels.0]\ntotal.pids_max = 9\neach.pids_max = 5\n[agents.a]\n[agents.b]",
        &[(5, 9, "b is one too many for level 0's total of pids_max = 9")],
    ),
];

#[test]
fn every_mistake_is_told_with_its_place_and_a_remedy() {
    for (text, expected) in BAD {
        let found = mistakes(text);
        let told: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{text}\n{told:#?}");
        for (mistake, (line, column, part)) in found.iter().zip(*expected) {
            assert_eq!((mistake.line, mistake.column), (*line, *column), "{text}\n{told:#?}");
            assert!(part.split('|').any(|part| mistake.message.contains(part)), "{text}\n{told:#?}");
            assert!(!mistake.remedy.is_empty(), "{text}");
            assert!(!mistake.message.contains("untagged"), "{text}\n{told:#?}");
        }
    }
}

#[test]
fn a_name_that_is_nearly_right_is_answered_with_the_right_one() {
    for (text, wanted) in [
        ("[agents.a]\ncomand = 'x'", "did you mean command?"),
        ("[herd]\nmax_level = 3", "did you mean max_levels?"),
        ("[agents.a]\nlimits = { memory_mx = 3 }", "did you mean memory_max?"),
        ("[agents.a]\nrestart = 'on_failure'", "did you mean on-failure?"),
        ("[agents.boss]\n[agents.b]\nparent = 'bos'", "did you mean boss?"),
        ("[levels.0]\nsibling = {}", "did you mean siblings?"),
        ("[agents.a]\nrestart = { polcy = 'always' }", "did you mean policy?"),
    ] {
        assert!(mistakes(text)[0].remedy.contains(wanted), "{:?}", mistakes(text));
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_and_in_order() {
    let text =
        "[herd]\nmax_levels = 0\n[levels.x]\n[agents.a]\nnice = 50\ngrace = 'x'\n[agents.b]\nparent = 'zz'\n[agnts]\n";
    let found = mistakes(text);
    let lines: Vec<_> = found.iter().map(|mistake| mistake.line).collect();
    assert_eq!(lines, [2, 3, 5, 6, 8, 9]);
}

#[test]
fn a_torn_file_is_not_blamed_for_what_its_torn_part_may_hold() {
    let found = mistakes("[agents.boss\n[agents.b]\nparent = 'boss'\nnice = 50");
    assert!(found.iter().all(|mistake| !mistake.message.contains("not in this file")), "{found:?}");
    assert!(found.iter().any(|mistake| mistake.message.contains("-20 and 19 (got ")), "{found:?}");
}

#[test]
fn columns_count_characters_and_hostile_bytes_have_places() {
    assert_eq!(mistakes("[agents.a]\ntype = 'ä' ; x")[0].line, 2);
    let found = Tree::parse(b"[agents.a]\n# \xc3\xa4 \xff").unwrap_err();
    assert_eq!((found[0].line, found[0].column), (2, 5));
    assert_eq!(Tree::parse(&vec![b'#'; TREE_MAX + 1]).unwrap_err().len(), 1);
}

#[test]
fn deep_and_long_files_are_answered_too() {
    let deep = "a.".repeat(50_000) + "a = 1";
    assert!(!mistakes(&deep).is_empty());
    let nested = "x = ".to_owned() + &"[".repeat(50_000);
    assert!(!mistakes(&nested).is_empty());
    let mut chain = "[herd]\nmax_levels = 200\n[agents.a0]\n".to_owned();
    for index in 1..200 {
        chain += &format!("[agents.a{index}]\nparent = 'a{}'\n", index - 1);
    }
    assert_eq!(Tree::parse(chain.as_bytes()).unwrap().depth(), 200);
    let orphans: String = (0..5000).map(|index| format!("[agents.a{index}]\nparent = 'b'\n")).collect();
    assert!(mistakes(&orphans).len() >= 1000);
}

#[test]
fn no_change_of_a_good_file_makes_the_reader_panic() {
    let mut random = fastrand::Rng::with_seed(17);
    let words = ["[", "]", "=", "'", "\"", "\n", "{", "}", ".", "-1", "ä", "\0", "agents", "parent = 'boss'", "limits"];
    for _ in 0..3000 {
        let mut bytes = GOOD.as_bytes().to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            let end = random.usize(at..bytes.len().min(at + 20));
            let with = match random.u8(..4) {
                0 => Vec::new(),
                1 => vec![random.u8(..)],
                2 => random.choice(words).unwrap_or("").as_bytes().to_vec(),
                _ => bytes[end..bytes.len().min(end + 40)].to_vec(),
            };
            bytes.splice(at..end, with);
        }
        if let Err(found) = Tree::parse(&bytes) {
            assert!(!found.is_empty());
            assert!(found.is_sorted());
        }
    }
}

#[test]
fn supervision_is_read_in_its_short_and_its_long_form() {
    let text = r#"
[herd]
restart_rate = "300/m"
restart_burst = 7
[agents.fleet]
children = "one-for-all"
spawn_budget = 3
[agents.fleet.agents.a]
command = "x"
children = { strategy = "rest-for-one", intensity = 3, period = "5s" }
significant = true
"#;
    let tree = Tree::parse(text.as_bytes()).unwrap();
    let [fleet, a] = &tree.agents[..] else { panic!("two agents") };
    assert_eq!((fleet.children.strategy, fleet.children.intensity), (Strategy::OneForAll, None));
    assert_eq!((a.children.strategy, a.children.intensity), (Strategy::RestForOne, Some(3)));
    assert_eq!((a.children.period, a.significant, fleet.spawn_budget), (Duration::from_secs(5), true, Some(3)));
    assert_eq!((tree.config.restart_rate.to_string().as_str(), tree.config.restart_burst), ("300/m", 7));
}

#[test]
fn mistakes_in_supervision_are_told_where_they_stand() {
    let text = r#"
[herd]
restart_rate = "20 a second"
restart_burst = 0
[agents.empty]
children = "one-for-all"
[agents.root]
command = "x"
significant = true
children = "all"
spawn_budget = 1
[agents.root.agents.a]
command = "x"
spawn_budget = 2
[agents.root.agents.b]
command = "x"
children = "rest-for-one"
"#;
    let found: Vec<(usize, String)> = mistakes(text).into_iter().map(|it| (it.line, it.message)).collect();
    let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [3, 4, 6, 9, 10, 11, 14], "{found:#?}");
    for (line, word) in [(3, "rate"), (6, "none in this file"), (9, "no parent"), (11, "2 agents below"), (14, "wider")]
    {
        assert!(found.iter().any(|(at, message)| *at == line && message.contains(word)), "{word}: {found:#?}");
    }
}

#[test]
fn agents_stand_in_an_order_in_which_each_can_be_started() {
    let text = "[agents.web]\nafter = ['db', 'lead']\ncommand = 'w'\n[agents.web.agents.probe]\ncommand = 'p'\n\
                [agents.data]\n[agents.data.agents.db]\nafter = ['disk']\ncommand = 'd'\n[agents.disk]\n\
                [agents.lead]\nafter = ['data']\ncommand = 'l'\n[agents.lead.agents.a]\nafter = ['lead', 'probe']\n";
    let tree = Tree::parse(text.as_bytes()).unwrap();
    let names: Vec<&str> = tree.agents.iter().map(|agent| agent.id.as_str()).collect();
    assert_eq!(names, ["data", "disk", "db", "lead", "web", "probe", "a"]);
    assert_eq!(tree.agents[4].after, ["db", "lead"].map(|name| name.parse().unwrap()).into());
}

#[test]
fn starts_that_wait_for_nobody_or_in_a_circle_are_told_where_that_is_said() {
    let text = r#"
[defaults]
after = ["db"]
[agents.db]
command = "d"
after = ["web"]
[agents.web]
command = "w"
after = ["dbb", "mid"]
[agents.mid]
after = ["db"]
[agents.self]
after = ["self"]
[agents.bad]
after = ["../x", "web", "gone"]
[agents.top]
after = ["leaf"]
[agents.top.agents.leaf]
[agents.p]
after = ["d"]
[agents.p.agents.c]
[agents.q.agents.d]
after = ["c"]
"#;
    let found: Vec<_> = mistakes(text).into_iter().map(|it| (it.line, it.column, it.message, it.remedy)).collect();
    let places: Vec<_> = found.iter().map(|(line, column, ..)| (*line, *column)).collect();
    assert_eq!(places, [(3, 1), (6, 10), (9, 10), (13, 9), (15, 10), (17, 10), (20, 10)], "{found:#?}");
    for (line, words) in [
        (3, "after cannot have a default"),
        (6, "the starts wait in a circle: db -> web -> mid -> db"),
        (9, "web starts after dbb, which is not in this file"),
        (13, "it cannot start after itself"),
        (17, "top -> leaf -> top; leaf stands below top and starts after it anyway"),
        (20, "p -> d -> c -> p; c stands below p and starts after it anyway"),
    ] {
        assert!(found.iter().any(|(at, _, message, _)| *at == line && message.contains(words)), "{words}: {found:#?}");
    }
    let (.., remedy) = &found[2];
    assert!(remedy.starts_with("did you mean db?"), "{remedy}");
    let (.., remedy) = &found[1];
    assert_eq!(remedy, "drop web from the after of db, or another one of the circle");
}

#[test]
fn who_may_not_wait_while_another_one_has_to_wait_before_it_is_told() {
    let text = |web: &str, tail: &str| {
        let queue = "admission = \"queue\"";
        format!(
            "[herd]\nmax_agents_per_level = 1\n[agents.db]\n[agents.cache]\n{queue}\n[agents.cache.agents.part]\n\
             [agents.web]\n{web}\nafter = [\"db\", \"cache\"]\n{tail}"
        )
    };
    let found = mistakes(&text("level = 0", ""));
    let told: Vec<_> = found.iter().map(|it| (it.line, it.column, it.message.as_str())).collect();
    assert!(told.contains(&(9, 16, "web may not wait, and cache has to wait for room before it")), "{told:?}");
    assert!(told.contains(&(6, 22, "part may not wait, and cache has to wait for room before it")), "{told:?}");
    assert!(found[0].remedy.starts_with("let part wait, too, with admission = \"queue\""), "{found:?}");
    // Who waits itself may; and so may who comes after one that has room.
    let all_wait =
        text("admission = \"queue\"", "[agents.cache.agents.part2]\n").replace("[agents.cache.agents.part]", "");
    let found = mistakes(&all_wait);
    assert!(found.iter().all(|it| it.message.starts_with("part2 ")), "{found:?}");
    let roomy = "[agents.db]\nadmission = \"queue\"\n[agents.db.agents.web]\nafter = [\"db\"]\n";
    assert_eq!(Tree::parse(format!("[herd]\nmax_agents_per_level = 1\n{roomy}").as_bytes()).unwrap().agents.len(), 2);
}

#[test]
fn a_long_line_of_starts_is_put_in_order() {
    let line: String = (0..20_000).map(|n| format!("[agents.a{n}]\nafter = ['a{}']\n", n + 1)).collect();
    let text = format!("[herd]\nmax_agents = 100000\nmax_agents_per_level = 100000\n{line}[agents.a20000]\n");
    let tree = Tree::parse(text.as_bytes()).unwrap();
    assert_eq!((tree.agents[0].id.as_str(), tree.agents[20_000].id.as_str()), ("a20000", "a0"));
}

#[test]
fn the_schema_of_a_file_takes_what_the_reader_takes_and_refuses_what_it_refuses() {
    let document = serde_json::to_value(schema()).unwrap();
    jsonschema::draft202012::meta::validate(&document).unwrap();
    let validator = jsonschema::draft202012::new(&document).unwrap();
    for text in [
        GOOD,
        include_str!("../../../examples/fleet.toml"),
        "[agents.a]\ncommand = 'x'\nstall = '5m'\nrestart = 'always'\nchildren = 'one-for-all'\n[agents.a.agents.b]",
        "[herd]\npressure = [{ resource = 'memory', above = '15%' }]\nrestart_rate = '20/s'",
        "",
    ] {
        let file: serde_json::Value = toml::from_str(text).unwrap();
        let wrong: Vec<_> = validator.iter_errors(&file).map(|error| error.to_string()).collect();
        assert_eq!((wrong, Tree::parse(text.as_bytes()).err()), (Vec::new(), None), "{text}");
    }
    for text in [
        "[no]",
        "[herd]\nbounds = {}",
        "[herd]\nlevels = {}",
        "[herd]\nmax_levls = 4",
        "[herd]\nlimits = { pids_mux = 4 }",
        "[levels.x]",
        "[levels.01]",
        "[levels.1]\nall = {}",
        "[defaults]\ncommand = 'x'",
        "[defaults]\nagents = {}",
        "[agents.a]\nid = 'a'",
        "[agents.a]\ncommand = 7",
        "[agents.a]\nrestart = 'sometimes'",
        "[agents.a]\ncommand = 'x'\nstall = { action = 'fail' }",
        "[agents.a.agents.'b.c']",
        "[agents.a.agents.b]\nnice = 50",
    ] {
        let file: serde_json::Value = toml::from_str(text).unwrap();
        assert!(!validator.is_valid(&file), "the schema takes {text}");
        assert!(Tree::parse(text.as_bytes()).is_err(), "the reader takes {text}");
    }
}
