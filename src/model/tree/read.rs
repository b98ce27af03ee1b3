//! Walks the tables of a tree file and reads every value where it stands.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistakes::{Mistakes, Span, nearest};
use super::value::{Fault, Field, Value, fields, fields_of, read, read_value, text};
use crate::model::config::{Bounds, HerdConfig};
use crate::model::error::Error;
use crate::model::id::{AgentId, Level};
use crate::model::limits::{Knob, LevelLimits, Limits};
use crate::model::pressure::PressureRule;
use crate::model::rule::compile;
use crate::model::spec::AgentSpec;

/// Limits, and where each of them stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    pub limits: Limits,
    pub places: BTreeMap<Knob, Span>,
}

/// What stands under `[levels.N]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Profile {
    pub each: Placed,
    pub siblings: Placed,
    pub total: Placed,
    pub pressure: Vec<PressureRule>,
}

/// An agent as it is written, before it has found its place.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// Its name, well-formed or not.
    pub name: String,
    /// Where it is declared.
    pub at: Span,
    /// Its parent's name and where that is said.
    pub parent: Option<(String, Span)>,
    /// The names of those that it starts after, and where each is said.
    pub after: Vec<(String, Span)>,
    /// All that could be read. Its limits are in `limits` only, until [`finish`] puts them in.
    pub spec: AgentSpec,
    /// Where the values of its own keys stand, defaults apart.
    pub keys: BTreeMap<String, Span>,
    pub limits: Placed,
}

/// The whole file as it is written.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    pub config: HerdConfig,
    pub herd: Placed,
    pub levels: BTreeMap<Level, Profile>,
    /// In the order of the file.
    pub agents: Vec<Draft>,
}

/// What only an agent with a process can have: a default for it is none for a group.
const OF_PROCESSES: [&str; 6] = ["run_timeout", "ready", "pid_file", "ready_timeout", "watchdog", "stall"];

/// What every agent has for itself.
pub(super) const OWN: [&str; 5] = ["id", "parent", "after", "command", "level"];

/// What can be written in short, as a text, and which of its keys that stands for.
pub(super) const SHORT: [(&str, &str); 3] = [("restart", "policy"), ("children", "strategy"), ("stall", "after")];

const TOP: &[&str] = &["herd", "levels", "defaults", "agents"];

/// Reads a file's text.
pub(super) fn file(text: &str, mistakes: &mut Mistakes<'_>) -> Drafts {
    let (top, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().unwrap_or(0..0);
        if error.message() == "duplicate key" {
            let name = text.get(at.clone()).unwrap_or("a key").trim();
            mistakes.add(
                &at,
                format!("{name} is declared a second time"),
                "a table has each key once: drop or rename one",
            );
        } else {
            mistakes.is_torn = true;
            mistakes.add(&at, format!("not TOML: {}", error.message()), "see https://toml.io for how it is written");
        }
    }
    let mut drafts = Drafts::default();
    let top = fields(top.get_ref());
    let mut reader = Reader { mistakes, defaults: Vec::new(), default_limits: Placed::default() };
    for field in &top {
        let Some(table) = reader.table(field) else { continue };
        match field.name.as_str() {
            "herd" => reader.herd(table, &mut drafts),
            "levels" => reader.levels(table, &mut drafts),
            "defaults" => reader.defaults(table),
            "agents" => {}
            name => reader.unknown(field, "in a tree file", name, TOP),
        }
    }
    if let Some(table) = top.iter().find(|field| field.name == "agents").and_then(table_of) {
        reader.agents(table, None, &mut drafts.agents);
    }
    drafts.agents.sort_by_key(|agent| agent.at.start);
    finish(&mut drafts);
    drafts
}

/// Puts the parents and the limits where the specifications and the configuration have them.
fn finish(drafts: &mut Drafts) {
    for agent in &mut drafts.agents {
        agent.spec.parent = agent.parent.as_ref().and_then(|(name, _)| name.parse().ok());
        agent.spec.limits = agent.limits.limits.clone();
    }
    drafts.config.limits = drafts.herd.limits.clone();
    for (level, profile) in &drafts.levels {
        let limits = LevelLimits {
            each: profile.each.limits.clone(),
            siblings: profile.siblings.limits.clone(),
            total: profile.total.limits.clone(),
            pressure: profile.pressure.clone(),
        };
        drafts.config.levels.insert(*level, limits);
    }
}

fn table_of<'a, 'i>(field: &'a Field<'i>) -> Option<&'a DeTable<'i>> {
    field.value.get_ref().as_table()
}

struct Reader<'m, 's, 'i> {
    mistakes: &'m mut Mistakes<'s>,
    /// What `[defaults]` lays under every agent, its limits apart.
    defaults: Vec<Field<'i>>,
    default_limits: Placed,
}

impl<'i> Reader<'_, '_, 'i> {
    fn table<'a>(&mut self, field: &'a Field<'i>) -> Option<&'a DeTable<'i>> {
        let table = table_of(field);
        if table.is_none() {
            let kind = field.value.get_ref().type_str();
            let message = format!("{} is a table, found {kind}", field.name);
            self.mistakes.add(&field.value.span(), message, format!("write [{0}] or {0} = {{ … }}", field.name));
        }
        table
    }

    /// Tells of a key that nobody knows; not in a torn file, where a key may stand in the wrong table.
    fn unknown(&mut self, field: &Field<'_>, place: &str, name: &str, known: &[&str]) {
        if self.mistakes.is_torn {
            return;
        }
        let shown: String = name.chars().take(80).collect();
        self.mistakes.add(&field.at, format!("there is no key {shown:?} {place}"), nearest(name, known));
    }

    fn herd(&mut self, table: &DeTable<'i>, drafts: &mut Drafts) {
        let bounds = fields_of::<Bounds>();
        let rest = fields_of::<HerdConfig>().iter().filter(|name| !matches!(**name, "bounds" | "levels"));
        let known: Vec<&str> = bounds.iter().chain(rest).copied().collect();
        let (mut of_bounds, mut of_config) = (Vec::new(), Vec::new());
        for field in fields(table) {
            if field.name == "limits" {
                drafts.herd = self.limits(&field);
            } else if bounds.contains(&field.name.as_str()) {
                if self.is_good::<Bounds>(&[&field], &field, Bounds::check) {
                    of_bounds.push(field);
                }
            } else if known.contains(&field.name.as_str()) {
                if self.is_good::<HerdConfig>(&[&field], &field, HerdConfig::check) {
                    of_config.push(field);
                }
            } else {
                self.unknown(&field, "in [herd]", &field.name, &known);
            }
        }
        drafts.config = read(&of_config.iter().collect::<Vec<_>>()).unwrap_or_default();
        drafts.config.bounds = read(&of_bounds.iter().collect::<Vec<_>>()).unwrap_or_default();
    }

    fn levels(&mut self, table: &DeTable<'i>, drafts: &mut Drafts) {
        for field in fields(table) {
            let level = field.name.parse::<u16>().ok().filter(|level| level.to_string() == field.name);
            let Some(level) = level.map(Level) else {
                let message = format!("{:?} is not a level", field.name.chars().take(40).collect::<String>());
                self.mistakes.add(&field.at, message, "levels are numbers, 0 for the agents without a parent");
                continue;
            };
            let Some(table) = self.table(&field) else { continue };
            let mut profile = Profile::default();
            for part in fields(table) {
                match part.name.as_str() {
                    "each" => profile.each = self.limits(&part),
                    "siblings" => profile.siblings = self.limits(&part),
                    "total" => profile.total = self.limits(&part),
                    "pressure"
                        if self.is_good::<LevelLimits>(&[&part], &part, |level| {
                            PressureRule::check_all(&level.pressure)
                        }) =>
                    {
                        profile.pressure = read::<LevelLimits>(&[&part]).unwrap_or_default().pressure;
                    }
                    "pressure" => {}
                    name => self.unknown(&part, "for a level", name, fields_of::<LevelLimits>()),
                }
            }
            drafts.levels.insert(level, profile);
        }
    }

    fn defaults(&mut self, table: &DeTable<'i>) {
        let mut known: Vec<&str> = fields_of::<AgentSpec>().to_vec();
        known.retain(|name| !OWN.contains(name));
        let mut kept = Vec::new();
        for field in fields(table) {
            match field.name.as_str() {
                "limits" => self.default_limits = self.limits(&field),
                name if OWN.contains(&name) || name == "agents" => {
                    let message = format!("{} cannot have a default", field.name);
                    self.mistakes.add(&field.at, message, "give it to each agent that needs it");
                }
                name if !known.contains(&name) => self.unknown(&field, "in [defaults]", name, &known),
                _ => kept.extend(self.agent_field("defaults", field)),
            }
        }
        self.defaults = kept;
    }

    fn agents(&mut self, table: &DeTable<'i>, parent: Option<(&str, &Span)>, agents: &mut Vec<Draft>) {
        for field in fields(table) {
            if let Err(error) = field.name.parse::<AgentId>() {
                self.mistakes.add_error(&field.at, error, "rename it");
            }
            if let Some(table) = self.table(&field) {
                self.agent(&field, table, parent, agents);
            }
        }
    }

    fn agent(&mut self, field: &Field<'i>, table: &DeTable<'i>, nest: Option<(&str, &Span)>, agents: &mut Vec<Draft>) {
        let known = [fields_of::<AgentSpec>(), &["agents"]].concat();
        let known: Vec<&str> = known.into_iter().filter(|name| *name != "id").collect();
        let mut parent = nest.map(|(name, at)| (name.to_owned(), at.clone()));
        let (mut own, mut limits, mut keys) = (Vec::new(), Placed::default(), BTreeMap::new());
        let mut after = Vec::new();
        for part in fields(table) {
            match part.name.as_str() {
                "agents" => {
                    if let Some(table) = self.table(&part) {
                        self.agents(table, Some((&field.name, &field.at)), agents);
                    }
                }
                "parent" => parent = self.parent(&part, parent),
                "limits" => limits = self.limits(&part),
                "id" => self.mistakes.add(&part.at, "an agent's id is its table's name", "drop the key"),
                name if !known.contains(&name) => self.unknown(&part, "for an agent", name, &known),
                name => {
                    keys.insert(name.to_owned(), part.value.span());
                    let part = self.agent_field(&field.name, part);
                    after.extend(part.iter().filter(|part| part.name == "after").flat_map(names));
                    own.extend(part);
                }
            }
        }
        let spec = self.assemble(field, own);
        let mut all = self.default_limits.clone();
        all.limits = all.limits.overlaid(&limits.limits);
        all.places.extend(limits.places);
        let (name, at) = (field.name.clone(), field.at.clone());
        agents.push(Draft { name, at, parent, after, spec, keys, limits: all });
    }

    fn parent(&mut self, field: &Field<'_>, nest: Option<(String, Span)>) -> Option<(String, Span)> {
        let name = match read_value::<AgentId>(&field.value) {
            Ok(name) => name.to_string(),
            Err(fault) => {
                self.mistakes.add_fault(&field.value.span(), "parent", fault, "as in parent = \"boss\"");
                return nest;
            }
        };
        let Some((above, _)) = &nest else { return Some((name, field.value.span())) };
        let message = format!("the parent is said twice: by its place it is {above}, by name {name}");
        self.mistakes.add(&field.at, message, "drop the key, or move the table out of the other agent's");
        nest
    }

    /// Lays an agent's own fields over the defaults and makes its specification.
    fn assemble(&mut self, agent: &Field<'i>, own: Vec<Field<'i>>) -> AgentSpec {
        let mut laid: Vec<Field<'i>> = vec![id_field(&agent.name)];
        let is_group = !own.iter().any(|own| own.name == "command");
        for default in &self.defaults {
            if is_group && OF_PROCESSES.contains(&default.name.as_str()) {
                continue;
            }
            let mut default = default.clone();
            if let Some(own) = own.iter().find(|own| own.name == default.name) {
                merge(&mut default.value, &own.value);
            }
            laid.push(default);
        }
        laid.extend(own.into_iter().filter(|own| !self.defaults.iter().any(|default| default.name == own.name)));
        let spec = read::<AgentSpec>(&laid.iter().collect::<Vec<_>>());
        match spec.map_err(|fault| self.mistakes.add_fault(&agent.at, &agent.name, fault, "write it in another way")) {
            Ok(spec) => {
                if let Err(error) = spec.check() {
                    self.mistakes.add_error(&agent.at, error, "look at this agent's keys and at [defaults]");
                }
                spec
            }
            Err(()) => AgentSpec::group(placeholder()),
        }
    }

    /// Reads one key of an agent by itself; returns it if it is good.
    fn agent_field(&mut self, agent: &str, mut field: Field<'i>) -> Option<Field<'i>> {
        respell(&mut field);
        let id = id_field(agent);
        // By itself a key is looked at as that of an agent with a process; whether this one is a group is not known yet.
        let command = command_field();
        let around = if field.name == "command" { vec![&id] } else { vec![&id, &command] };
        let alone = |entry| [around.as_slice(), &[entry]].concat();
        let is_good: Vec<bool> =
            entries(&field).iter().map(|entry| self.is_good::<AgentSpec>(&alone(entry), entry, |_| Ok(()))).collect();
        if is_good.contains(&false) {
            return None;
        }
        let has_rules = field.name == "rules";
        let check = |spec: &AgentSpec| {
            spec.check()?;
            if has_rules { compile(&spec.rules).map(drop) } else { Ok(()) }
        };
        let fields = [around.as_slice(), &[&field]].concat();
        self.is_good::<AgentSpec>(&fields, &field, check).then_some(field)
    }

    /// Tries fields on the type that they are for.
    fn is_good<T: DeserializeOwned>(
        &mut self,
        fields: &[&Field<'i>],
        field: &Field<'i>,
        check: impl FnOnce(&T) -> Result<(), Error>,
    ) -> bool {
        let (at, example) = (field.value.span(), example(&field.name));
        match read::<T>(fields) {
            Err(fault) => self.mistakes.add_fault(&at, &field.name, fault, example),
            Ok(value) => match check(&value) {
                Err(error) => self.mistakes.add_error(&at, error, example),
                Ok(()) => return true,
            },
        }
        false
    }

    fn limits(&mut self, field: &Field<'i>) -> Placed {
        let mut placed = Placed::default();
        let mut seen = BTreeSet::new();
        let Some(table) = self.table(field) else { return placed };
        for entry in fields(table) {
            let knob = match entry.name.parse::<Knob>() {
                Ok(knob) => knob,
                Err(error) => {
                    self.mistakes.add_error(&entry.at, error, "see `treeherd spawn --help` for all");
                    continue;
                }
            };
            if !seen.insert(knob) {
                self.mistakes.add(&entry.at, format!("{knob} is limited twice here"), "drop one");
                continue;
            }
            match setting_text(&entry.value).map(|text| knob.parse(&text)) {
                Ok(Ok(setting)) => {
                    placed.limits.set(knob, setting);
                    placed.places.insert(knob, entry.value.span());
                }
                Ok(Err(error)) => self.mistakes.add_error(&entry.value.span(), error, knob.help()),
                Err(fault) => self.mistakes.add_fault(&entry.value.span(), knob.name(), fault, knob.help()),
            }
        }
        placed
    }
}

/// Returns each entry of a table or list that is read entry by entry, as if it were there alone: one bad entry must not hide the
/// next one.
fn entries<'i>(field: &Field<'i>) -> Vec<Field<'i>> {
    let alone = |at: Span, value| Field { value: Spanned::new(at, value), ..field.clone() };
    match (field.name.as_str(), field.value.get_ref()) {
        ("env" | "rlimits" | "restart" | "children", DeValue::Table(table)) => {
            let entry = |entry: &Field<'i>| {
                let key = Spanned::new(entry.at.clone(), Cow::Owned(entry.name.clone()));
                alone(entry.value.span(), DeValue::Table(DeTable::from_iter([(key, entry.value.clone())])))
            };
            fields(table).iter().map(entry).collect()
        }
        ("rules" | "after", DeValue::Array(list)) => list
            .iter()
            .map(|entry| alone(entry.span(), DeValue::Array(std::iter::once(entry.clone()).collect())))
            .collect(),
        _ => Vec::new(),
    }
}

/// Returns the names in a list of agents, with their places.
fn names(list: &Field<'_>) -> Vec<(String, Span)> {
    let entries = list.value.get_ref().as_array().into_iter().flatten();
    entries.filter_map(|entry| Some((read_value::<String>(entry).ok()?, entry.span()))).collect()
}

/// Returns a limit's value as the text that its parser takes.
fn setting_text(value: &Value<'_>) -> Result<String, Fault> {
    match value.get_ref() {
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Integer(_) => read_value::<u64>(value).map(|number| number.to_string()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Ok(flag.to_string()),
        _ => text(value),
    }
}

/// Turns the short spellings into the long ones: a command line for `sh`; a restart policy, a strategy or a stall's time alone.
fn respell(field: &mut Field<'_>) {
    let span = field.value.span();
    let DeValue::String(short) = field.value.get_ref().clone() else { return };
    let long = |value| Spanned::new(span.clone(), value);
    if field.name == "command" {
        let words = [Cow::Borrowed("sh"), Cow::Borrowed("-c"), short];
        field.value = long(DeValue::Array(words.into_iter().map(|word| long(DeValue::String(word))).collect()));
    } else if let Some((_, key)) = SHORT.iter().find(|(name, _)| *name == field.name) {
        let entry = (long_key(key, &span), long(DeValue::String(short)));
        field.value = long(DeValue::Table(DeTable::from_iter([entry])));
    }
}

fn long_key(name: &'static str, span: &Span) -> Spanned<Cow<'static, str>> {
    Spanned::new(span.clone(), Cow::Borrowed(name))
}

/// Lays `over` over a default: tables key by key, anything else as a whole.
fn merge<'i>(under: &mut Value<'i>, over: &Value<'i>) {
    match (under.get_mut(), over.get_ref()) {
        (DeValue::Table(under), DeValue::Table(over)) => {
            for (key, value) in over.iter() {
                under.remove(key);
                under.insert(key.clone(), value.clone());
            }
        }
        _ => *under = over.clone(),
    }
}

/// Stands in for an id that is not well-formed and told as such; no tree with one gets out.
fn placeholder() -> AgentId {
    "x".parse().expect("x is a letter")
}

fn id_field<'i>(name: &str) -> Field<'i> {
    let id = name.parse().unwrap_or_else(|_| placeholder());
    let value = Spanned::new(0..0, DeValue::String(Cow::Owned(id.to_string())));
    Field { name: "id".to_owned(), at: 0..0, value }
}

fn command_field<'i>() -> Field<'i> {
    let word = Spanned::new(0..0, DeValue::String(Cow::Borrowed("sh")));
    let words = std::iter::once(word).collect();
    Field { name: "command".to_owned(), at: 0..0, value: Spanned::new(0..0, DeValue::Array(words)) }
}

/// Returns how a key is written.
fn example(key: &str) -> &'static str {
    match key {
        "command" => "as in command = [\"sleep\", \"60\"], or a text for sh -c",
        "type" => "as in type = \"worker\"",
        "priority" => "use 0 (least urgent) to 10 (most urgent)",
        "session" => "as in session = \"nightly\"",
        "level" => "drop it: the level follows from the parent",
        "after" => "use a list of agents, as in after = [\"db\", \"cache\"]",
        "capabilities" | "inherit_env" => "use a list of texts, as in [\"LANG\", \"TERM\"]",
        "metadata" => "as in metadata = { ticket = 17 }",
        "cwd" | "stdin" | "pid_file" => "use an absolute path, as in \"/srv/work\"",
        "env" => "as in env = { MODE = \"fast\" }: names without `=`, values as texts",
        "user" | "group" => "use a name or a number, as a text",
        "rlimits" => "as in rlimits = { nofile = 1024, core = \"0:max\" }",
        "oom_score_adj" => "use -1000 (never chosen) to 1000 (chosen first)",
        "nice" => "use -20 (most CPU time) to 19 (least)",
        "umask" => "use an octal text, as in umask = \"027\"",
        "ionice" => "as in ionice = { class = \"best-effort\", level = 7 }",
        "restart" => "as in restart = \"on-failure\", or { policy = \"on-failure\", delay = \"1s\" }",
        "pressure" => {
            "as in pressure = [{ resource = \"memory\", above = \"15%\", window = \"2s\", steps = [\"warn\"] }]"
        }
        "children" => {
            "as in children = \"one-for-all\", or { strategy = \"one-for-all\", intensity = 3, period = \"5s\" }"
        }
        "significant" | "delegate" => "use true or false",
        "spawn_budget" => "use a whole number, as in 20",
        "restart_rate" => "as in restart_rate = \"20/s\", \"300/m\" or \"1000/h\"",
        "restart_burst" => "use 1 to 100000, as in 100",
        "on_main_exit" => "use \"terminate\" or \"wait\"",
        "stop_signal_to" => "use \"all\" or \"main\"",
        "on_oom" => "use \"continue\", \"kill\" or \"fail\"",
        "rules" => "as in rules = [{ pattern = \"^panic\", stream = \"stderr\", action = \"fail\" }]",
        "stop_signal" => "as in stop_signal = \"SIGINT\"",
        "output" => "use \"pipe\", \"file\" or \"null\"",
        "output_max" => "use 64KiB to 1GiB, as in output_max = \"16MiB\"",
        "ready" => "as in ready = \"notify\", { pattern = \"^listening\", stream = \"stdout\" } or { fd = 3 }",
        "stall" => "as in stall = \"5m\", or { after = \"5m\", action = \"fail\" }; a group has none",
        "admission" => "use \"refuse\" or \"queue\"",
        "auto_cleanup" => "use true or false",
        "max_levels" | "max_agents_per_level" | "max_children" | "max_agents" => "use a whole number, as in 20",
        _ => "use a duration, as in \"250ms\", \"10s\", \"1m 30s\"",
    }
}
