//! The daemon's configuration: a file, the files of the directory beside it (`config.toml`, `config.d/*.toml`, in the order of their
//! names), and flags. A later one stands over an earlier one, setting by setting; where each comes from is remembered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::model::config::{Flags, HerdConfig};
use crate::model::error::{Code, Error};
use crate::model::tree::{TREE_MAX, Tree};

/// Where a daemon that is told no file looks for one; it need not be there.
pub const DEFAULT_CONFIG: &str = "/etc/treeherd/config.toml";

/// A configuration, with where each setting of it comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// What the herd is held to.
    pub herd: HerdConfig,
    /// `FILE:LINE` or `--flag` by the setting's name, as in `herd.max_levels`; what is not here is a default.
    pub origins: BTreeMap<String, String>,
}

/// Reads a configuration: the `[herd]` and `[levels]` of tree files, and flags over them.
///
/// # Errors
/// [`Code::BadTree`] with every mistake of the first file that has one; a file that cannot be read, or that has agents; settings
/// of several files that do not go together.
pub fn load(path: &Path, flags: &Flags) -> Result<Loaded, Error> {
    let mut merged = toml::Table::new();
    let mut origins = BTreeMap::new();
    for file in files(path)? {
        let text = read(&file)?;
        // It was read as a tree file: it is TOML.
        let (spanned, _) = DeTable::parse_recoverable(&text);
        let mut places = Vec::new();
        leaves(spanned.get_ref(), "", &mut places);
        for (name, offset) in places {
            let line = text[..offset].matches('\n').count() + 1;
            origins.insert(name, format!("{}:{line}", file.display()));
        }
        merge(&mut merged, text.parse().map_err(|error| Error::new(Code::BadTree, format!("{error}")))?);
    }
    let text = merged.to_string();
    let tree = Tree::parse(text.as_bytes()).map_err(|mistakes| {
        let list: Vec<String> =
            mistakes.iter().map(|mistake| format!("{}; {}", mistake.message, mistake.remedy)).collect();
        Error::new(Code::BadTree, format!("the files of {} together: {}", path.display(), list.join("\n")))
    })?;
    origins.extend(
        flags.names().into_iter().map(|name| (format!("herd.{name}"), format!("--{}", name.replace('_', "-")))),
    );
    Ok(Loaded { herd: flags.over(tree.config), origins })
}

/// Lists the files: the one, and those of the directory beside it.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let beside = path.with_extension("d");
    let failed = |error: std::io::Error| Error::new(Code::BadTree, format!("list {}: {error}", beside.display()));
    let mut more = match std::fs::read_dir(&beside) {
        Ok(entries) => {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?
        }
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Vec::new()
        }
        Err(error) => return Err(failed(error)),
    };
    more.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    more.sort();
    let is_there = path != Path::new(DEFAULT_CONFIG) || path.exists();
    Ok(is_there.then(|| path.to_owned()).into_iter().chain(more).collect())
}

/// Reads one file, and refuses it with every mistake in it.
fn read(path: &Path) -> Result<String, Error> {
    use std::io::Read;
    let shown = path.display();
    let failed = |error| Error::new(Code::BadTree, format!("read {shown}: {error}"));
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(TREE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let tree = Tree::parse(&bytes).map_err(|mistakes| {
        let list: Vec<String> =
            mistakes.iter().map(|mistake| format!("{shown}:{mistake}; {}", mistake.remedy)).collect();
        Error::new(Code::BadTree, list.join("\n")).remedy(format!("`treeherd check {shown}` shows each in its place"))
    })?;
    if let Some(agent) = tree.agents.first() {
        let error = Error::new(Code::BadTree, format!("{shown} declares agent {}: a configuration has none", agent.id));
        return Err(error.remedy("run a file with agents with `treeherd run`, or `treeherd apply` it"));
    }
    String::from_utf8(bytes).map_err(|error| Error::new(Code::BadTree, format!("read {shown}: {error}")))
}

/// Lists the settings of a table by their full names, with where their values stand.
fn leaves(table: &DeTable<'_>, above: &str, found: &mut Vec<(String, usize)>) {
    for (key, value) in table {
        let name = if above.is_empty() { key.get_ref().to_string() } else { format!("{above}.{}", key.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) => leaves(inner, &name, found),
            _ => found.push((name, key.span().start)),
        }
    }
}

/// Lays a table over another.
fn merge(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// Lists every setting of a configuration by its name in a file, as in `herd.limits.memory_max`.
pub fn settings(config: &HerdConfig) -> BTreeMap<String, serde_json::Value> {
    let mut found = BTreeMap::new();
    if let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(config) {
        for (field, value) in fields {
            match field.as_str() {
                // What a file has directly in [herd].
                "bounds" => flatten("herd", value, &mut found),
                "levels" => flatten("levels", value, &mut found),
                field => flatten(&format!("herd.{field}"), value, &mut found),
            }
        }
    }
    found
}

fn flatten(name: &str, value: serde_json::Value, found: &mut BTreeMap<String, serde_json::Value>) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.into_iter().for_each(|(field, value)| flatten(&format!("{name}.{field}"), value, found));
        }
        value => {
            found.insert(name.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_and_flags_stand_over_earlier_ones_and_each_setting_knows_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        put(
            "config.toml",
            "[herd]\nmax_levels = 4\nmax_agents = 50\nlimits = { pids_max = 100, memory_max = '1GiB' }\n",
        );
        put("config.d/20-b.toml", "[herd]\nmax_levels = 6\n\n[levels.1]\neach = { pids_max = 5 }\n");
        put("config.d/10-a.toml", "[herd]\nmax_levels = 5\n[herd.limits]\npids_max = 90\n");
        put("config.d/README", "no configuration");
        let flags = Flags { max_agents: Some(7), ..Flags::default() };
        let Loaded { herd, origins } = load(&main, &flags).unwrap();
        assert_eq!((herd.bounds.max_levels, herd.bounds.max_agents), (6, 7));
        let found = settings(&herd);
        assert_eq!(found["herd.limits.pids_max"], 90);
        let from = |name: &str| {
            assert!(found.contains_key(name), "{name} is a setting: {found:?}");
            origins.get(name).map(|origin| origin.rsplit('/').next().unwrap().to_owned())
        };
        assert_eq!(from("herd.max_levels").unwrap(), "20-b.toml:2");
        assert_eq!(from("herd.limits.pids_max").unwrap(), "10-a.toml:4");
        assert_eq!(from("herd.limits.memory_max").unwrap(), "config.toml:4");
        assert_eq!(from("levels.1.each.pids_max").unwrap(), "20-b.toml:5");
        assert_eq!(from("herd.max_agents").unwrap(), "--max-agents");
        assert_eq!(from("herd.cleanup_retention"), None);
    }

    #[test]
    fn files_that_do_not_go_together_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        std::fs::write(&main, "[herd]\nlimits = { pids_max = 10 }\n").unwrap();
        std::fs::write(dir.path().join("config.d/a.toml"), "[levels.1]\neach = { pids_max = 20 }\n").unwrap();
        let error = load(&main, &Flags::default()).unwrap_err();
        assert!(error.message.contains("together") && error.message.contains("pids_max"), "{error}");
        std::fs::remove_file(&main).unwrap();
        assert!(load(&main, &Flags::default()).is_err(), "a file that was named has to be there");
    }
}
