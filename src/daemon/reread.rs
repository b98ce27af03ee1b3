//! SIGHUP: the configuration file is read again. What can be applied to a living herd is applied, the rest is told.

use super::config::{load, settings};
use super::supervisor::{Supervisor, now};
use crate::api::method::{Configuration, Configured};
use crate::machine::{Caller, Input, ReplyTo};
use crate::model::config::HerdConfig;
use crate::model::id::Level;
use crate::model::limits::Limits;
use crate::model::request::{LimitScope, Request};

/// Whoever asks on the daemon's own behalf: the outcome goes to the log.
pub(super) const OURSELVES: ReplyTo = ReplyTo { client: 0, call: 0 };

impl Supervisor {
    /// Tells every setting as it is now, and where it comes from.
    pub(super) fn configured(&self) -> Configured {
        let config = self.machine.config().clone();
        let loaded = settings(&self.settings.herd);
        let origin = |name: &str, value: &serde_json::Value| match self.settings.origins.get(name) {
            _ if loaded.get(name) != Some(value) => "changed while it runs".to_owned(),
            Some(origin) => origin.clone(),
            None => "default".to_owned(),
        };
        let settings = settings(&config)
            .into_iter()
            .map(|(name, value)| (name.clone(), Configuration { origin: origin(&name, &value), value }));
        Configured { settings: settings.collect(), config, applied: self.machine.applied().clone() }
    }

    pub(super) fn reread(&mut self) {
        let Some(path) = self.settings.config.clone() else {
            return tracing::warn!("SIGHUP: there is no configuration file to read again; start with --config FILE");
        };
        match load(&path, &self.settings.flags) {
            Ok(loaded) => {
                self.settings.origins = loaded.origins;
                self.reconfigure(loaded.herd);
            }
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
            let caller = Caller { name: "SIGHUP to the daemon".into(), agent: None, user: None };
            self.feed(Input::Asked(OURSELVES, caller, Request::Limit(scope, changed)));
        }
    }
}
