//! What a client may ask for: the one place that decides it, for requests that change something and for those that read.
//!
//! Outside the herd a client is the operator. An agent acts on the agents below itself, reads itself and those, and gives
//! to those that it starts at most what it has. Everything else is refused as [`Code::Forbidden`], and what was to be
//! changed is reported as [`Kind::Forbidden`](crate::model::event::Kind::Forbidden).

use super::Machine;
use super::input::{AgentKey, Caller};
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::request::{LimitScope, Request, Target};
use crate::model::spec::AgentSpec;
use crate::model::within::{self, Baseline};

impl Machine {
    /// Tells what agents have that ask for nothing.
    pub fn set_baseline(&mut self, baseline: Baseline) {
        self.baseline = baseline;
    }

    /// Refuses an agent anything that is not below itself.
    pub(super) fn permit(&self, caller: &Caller, request: &Request) -> Result<(), Error> {
        let Some(own) = caller.agent else { return Ok(()) };
        let is_below = |id: &AgentId| {
            self.ids.get(id).is_none_or(|key| *key != own && self.ancestors(*key).any(|above| above == own))
        };
        let is_target_below = |target: &Target| matches!(target, Target::Ids(ids) if ids.iter().all(is_below));
        let allowed = match request {
            Request::Spawn(spec) => {
                let is_within = |id: &AgentId| self.ids.get(id) == Some(&own) || is_below(id);
                // A file is the operator's.
                let is_declared = spec.declared_by.is_some();
                !is_declared && spec.parent.as_ref().is_some_and(is_within) && spec.after.iter().all(is_within)
            }
            Request::Pause(target)
            | Request::Resume(target)
            | Request::Terminate(target, _)
            | Request::Cleanup(target) => is_target_below(target),
            Request::Limit(LimitScope::Agent(id), _) | Request::Restart(id) => is_below(id),
            Request::Limit(..) | Request::Lift(..) | Request::Declare(..) | Request::Shutdown(_) => false,
            Request::Wait(ids) => ids.iter().all(is_below),
        };
        if allowed {
            return Ok(());
        }
        let message = format!("{} is an agent of this herd and may act only on agents below itself", self.asker(own));
        Err(Error::new(Code::Forbidden, message).remedy("name agents below it, or ask from outside the herd"))
    }

    /// Fills what the specification of an agent's child leaves open with what the agent has, and refuses it if it is wider.
    /// What the operator asks for stays as it is.
    pub(super) fn narrow(&self, caller: &Caller, spec: &mut AgentSpec) -> Result<(), Error> {
        let Some(own) = caller.agent else { return Ok(()) };
        let Some(asker) = self.agents.get(&own).map(|agent| &agent.spec) else {
            let message = format!("spawn {}: the agent that asks is not known any more", spec.id);
            return Err(Error::new(Code::Forbidden, message).remedy("ask from outside the herd"));
        };
        let (uid, gid) = caller.user.unwrap_or((self.baseline.uid, 0));
        let asker = within::as_user(asker, uid, gid, &self.baseline);
        within::inherit(spec, &asker);
        within::is_within(spec, &asker, &self.baseline).map_err(|wider| {
            let (field, wish, has) = (wider.field, wider.wish, wider.has);
            let message = format!("spawn {}: {field} = {wish} is wider than what {} has: {has}", spec.id, asker.id);
            Error::new(Code::Forbidden, message)
                .remedy(format!("leave {field} out, ask for {has}, or have the operator spawn it"))
        })
    }

    /// Says whether a client may read all of an agent: an agent may read itself and those below it.
    #[must_use]
    pub fn may_read(&self, caller: &Caller, key: AgentKey) -> bool {
        caller.agent.is_none_or(|own| self.is_within(key, own))
    }

    /// Finds an agent that a client reads.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`]; [`Code::Forbidden`]: the client may not.
    pub fn find_readable(&self, caller: &Caller, id: &AgentId) -> Result<AgentKey, Error> {
        let key = self.find(id)?;
        match caller.agent {
            Some(own) if !self.may_read(caller, key) => Err(self.forbidden_read(own, &id.to_string())),
            _ => Ok(key),
        }
    }

    /// Finds the agents that a client lists. To an agent there are no others than itself and those below it.
    ///
    /// # Errors
    /// As [`Machine::select`] and [`Machine::find_readable`].
    pub fn select_readable(&self, caller: &Caller, target: &Target) -> Result<Vec<AgentKey>, Error> {
        if let Target::Ids(ids) = target {
            ids.iter().try_for_each(|id| self.find_readable(caller, id).map(drop))?;
        }
        let mut keys = self.select(target)?;
        keys.retain(|key| self.may_read(caller, *key));
        Ok(keys)
    }

    /// Refuses an agent what tells of the whole herd, or of the host.
    ///
    /// # Errors
    /// [`Code::Forbidden`].
    pub fn permit_whole(&self, caller: &Caller, what: &str) -> Result<(), Error> {
        caller.agent.map_or(Ok(()), |own| Err(self.forbidden_read(own, what)))
    }

    fn forbidden_read(&self, own: AgentKey, what: &str) -> Error {
        let message = format!("{} is an agent of this herd and may not read {what}", self.asker(own));
        Error::new(Code::Forbidden, message)
            .remedy("name the agent itself or one below it, or ask from outside the herd")
    }

    fn asker(&self, own: AgentKey) -> &str {
        self.agents.get(&own).map_or("the client", |agent| agent.spec.id.as_str())
    }
}
