//! SIGHUP: the configuration file is read again. What can be applied to a living herd is applied, the rest is told.

use super::supervisor::{Supervisor, now};
use crate::machine::{Caller, Input, ReplyTo};
use crate::model::config::HerdConfig;
use crate::model::error::{Code, Error};
use crate::model::id::Level;
use crate::model::limits::Limits;
use crate::model::request::{LimitScope, Request};
use crate::model::tree::Tree;

/// Whoever asks on the daemon's own behalf: the outcome goes to the log.
pub(super) const OURSELVES: ReplyTo = ReplyTo { client: 0, call: 0 };

/// Reads a configuration file: the `[herd]` and `[levels]` of a tree file.
///
/// # Errors
/// [`Code::BadTree`] with every mistake in it; a file that cannot be read, or that has agents.
pub fn read_config(path: &std::path::Path) -> Result<HerdConfig, Error> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| Error::new(Code::BadTree, format!("read {shown}: {error}")))?;
    let tree = Tree::parse(&bytes).map_err(|mistakes| {
        let list: Vec<String> =
            mistakes.iter().map(|mistake| format!("{shown}:{mistake}; {}", mistake.remedy)).collect();
        Error::new(Code::BadTree, list.join("\n")).remedy(format!("`treeherd check {shown}` shows each in its place"))
    })?;
    if let Some(agent) = tree.agents.first() {
        let error = Error::new(Code::BadTree, format!("{shown} declares agent {}: a configuration has none", agent.id));
        return Err(error.remedy("run a file with agents with `treeherd run`"));
    }
    Ok(tree.config)
}

impl Supervisor {
    pub(super) fn reread(&mut self) {
        let Some(path) = self.settings.config.clone() else {
            return tracing::warn!("SIGHUP: there is no configuration file to read again; start with --config FILE");
        };
        match read_config(&path) {
            Ok(config) => self.reconfigure(self.settings.flags.over(config)),
            Err(error) => tracing::error!("SIGHUP: nothing is changed: {error}"),
        }
    }

    fn reconfigure(&mut self, config: HerdConfig) {
        let before = self.machine.config().clone();
        self.detection.set_bound(config.failure_detection_timeout);
        let mut effects = Vec::new();
        self.machine.reconfigure(now(), &config, &mut effects);
        self.settings.herd = config.clone();
        self.perform_all(effects);
        self.relimit(LimitScope::Herd, &before.limits, &config.limits);
        let levels: std::collections::BTreeSet<Level> =
            before.levels.keys().chain(config.levels.keys()).copied().collect();
        for level in levels {
            let (old, new) = (before.level(level), config.level(level));
            self.relimit(LimitScope::Each(level), &old.each, &new.each);
            self.relimit(LimitScope::Siblings(level), &old.siblings, &new.siblings);
            self.relimit(LimitScope::Total(level), &old.total, &new.total);
        }
        tracing::info!("SIGHUP: the configuration is read again");
    }

    /// Asks for what has changed; a limit that is not in the file any more is told, as there is no telling what it should become.
    fn relimit(&mut self, scope: LimitScope, old: &Limits, new: &Limits) {
        for (knob, setting) in old.iter().filter(|(knob, _)| new.get(*knob).is_none()) {
            tracing::warn!(
                "SIGHUP: {knob} = {setting} of {scope:?} stays until it is set to something else, or to max"
            );
        }
        let changed: Limits = new
            .iter()
            .filter(|(knob, setting)| old.get(*knob) != Some(setting))
            .map(|(knob, setting)| (knob, setting.clone()))
            .collect();
        if !changed.is_empty() {
            let caller = Caller { name: "SIGHUP to the daemon".into(), agent: None };
            self.feed(Input::Asked(OURSELVES, caller, Request::Limit(scope, changed)));
        }
    }
}
