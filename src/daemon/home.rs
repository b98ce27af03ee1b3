//! The cgroup of an agent, its whole subtree. Nobody listens to it until something hangs on what it will say: that it is frozen,
//! or that it is empty after its removal was refused. Most agents are born and end without either.

use std::os::fd::AsFd;

use super::body::Watched;
use super::leaf::WATCH_RETRY;
use super::supervisor::{Chore, Supervisor};
use crate::kernel::clock;
use crate::machine::{AgentKey, Frost, Input};

impl Supervisor {
    /// Listens to an agent's cgroup from now on, and tells the machine what it says now: what changed before has woken nobody.
    ///
    /// Read here and not on a hand: what it read could be older than news that is already told.
    pub(super) fn listen_at_home(&mut self, key: AgentKey) {
        let Some(body) = self.bodies.get_mut(&key) else { return };
        if body.home_watch.is_none() {
            let dir = self.tools.cgroups.open_dir(&body.home);
            match dir.and_then(|dir| self.tools.watches.add_modify(dir.as_fd(), "cgroup.events")) {
                Ok(watch) => {
                    body.home_watch = Some(watch);
                    self.watched.insert(watch, Watched::Home(key));
                }
                Err(error) if error.is_gone() => return,
                Err(error) => {
                    let home = &body.home;
                    tracing::error!("watch {home}: {error}; it is looked at every {} ms", WATCH_RETRY.as_millis());
                    self.chores.insert((clock::monotonic() + WATCH_RETRY, Chore::Home(key)));
                }
            }
        }
        self.look_at_home(key);
    }

    /// Tells the machine what the cgroup of an agent says.
    pub(super) fn look_at_home(&mut self, key: AgentKey) {
        let Some(body) = self.bodies.get(&key) else { return };
        let Ok(events) = self.tools.cgroups.events(&body.home) else { return };
        self.feed(Input::FrostSeen { agent: key, frost: if events.frozen { Frost::Frozen } else { Frost::Thawed } });
        if !events.populated {
            self.feed(Input::SubtreeEmptied(key));
        }
    }
}
