//! How much an agent may change, and so how many events it can cause: a thousand requests at once, then a hundred a second. The others
//! wait for their turn, and the connection with them. People and programs outside the herd wait for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::supervisor::{Chore, Supervisor};
use crate::api::method::Call;
use crate::kernel::clock;
use crate::machine::AgentKey;
use crate::model::time::Monotonic;

/// How many changes an agent may ask for at once.
const CHANGES_BURST: u32 = 1_000;

/// How often it may ask for one more.
const CHANGE_INTERVAL: Duration = Duration::from_millis(10);

/// When each agent's account will be full again; one that is full has none.
#[derive(Debug, Default)]
pub(super) struct Allowances(BTreeMap<AgentKey, Monotonic>);

impl Allowances {
    /// Takes one change from an agent's account, or returns when there will be one.
    fn take(&mut self, agent: AgentKey, now: Monotonic) -> Option<Monotonic> {
        let full_at = self.0.entry(agent).or_insert(now);
        let next = (*full_at).max(now) + CHANGE_INTERVAL;
        let due = next - CHANGE_INTERVAL * CHANGES_BURST;
        if due > now {
            return Some(due);
        }
        *full_at = next;
        // Whoever asks seldom leaves nothing behind.
        if self.0.len() > CHANGES_BURST as usize {
            self.0.retain(|_, full_at| *full_at > now);
        }
        None
    }
}

impl Supervisor {
    /// Puts a request off until its agent may change something again; else gives it back.
    pub(super) fn put_off(&mut self, client_id: u64, id: Option<&Value>, call: Call) -> Option<Call> {
        let Some(agent) = self.clients.get(&client_id).and_then(|client| client.caller.agent) else {
            return Some(call);
        };
        let Some(due) = self.allowances.take(agent, clock::monotonic()) else { return Some(call) };
        let number = self.fresh();
        if let Some(client) = self.clients.get_mut(&client_id) {
            client.put_off = Some((id.cloned(), call));
            client.reading = Some(number);
            self.chores.insert((due, Chore::Take(client_id)));
        }
        None
    }

    pub(super) fn take_what_was_put_off(&mut self, client_id: u64) {
        let Some(client) = self.clients.get_mut(&client_id) else { return };
        let Some((id, call)) = client.put_off.take() else { return };
        client.reading = None;
        self.stirred.insert(client_id);
        self.take_request(client_id, id.as_ref(), Ok(call));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_changes_much_at_once_and_then_a_little_at_a_time() {
        let mut allowances = Allowances::default();
        let (agent, now) = (AgentKey(7), clock::monotonic());
        let taken = (0..5_000).take_while(|_| allowances.take(agent, now).is_none()).count();
        assert_eq!(taken, CHANGES_BURST as usize);
        assert_eq!(allowances.take(agent, now), Some(now + CHANGE_INTERVAL));
        assert_eq!(allowances.take(AgentKey(8), now), None, "another agent has its own");
        let later = now + CHANGE_INTERVAL * 10;
        assert_eq!((0..20).filter(|_| allowances.take(agent, later).is_none()).count(), 10);
    }
}
