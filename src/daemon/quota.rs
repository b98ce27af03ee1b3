//! How many connections may be open at once, and for whom: agents and users share most of them, each up to a bound of its own, and
//! the rest is reserved for the operator. An agent that holds all it can get, and ends none of it, keeps nobody else out.

use std::collections::BTreeMap;

use super::guard;
use super::supervisor::Supervisor;
use crate::api::{
    CLIENTS_MAX, CLIENTS_OF_AGENT_MAX, CLIENTS_OF_OPERATOR_MIN, CLIENTS_OF_TREE_MAX, CLIENTS_OF_USER_MAX,
};
use crate::kernel::process::effective_user;
use crate::kernel::rights::Stream;
use crate::machine::{AgentKey, Caller};
use crate::model::error::{Code, Error};

/// On whose account a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Account {
    /// Root, or the user that the daemon runs as, outside the herd.
    Operator,
    /// Another user outside the herd.
    User(u32),
    /// An agent, and the root agent above it.
    Agent { agent: AgentKey, tree: AgentKey },
}

/// Returns why one more connection of `of` is refused, if it is: what is used up, and how many of that there are.
fn used_up(open: impl Iterator<Item = Account>, of: Account) -> Option<(&'static str, usize)> {
    let mut counts = BTreeMap::new();
    for account in open {
        *counts.entry(account).or_insert(0) += 1;
    }
    let count = |is_counted: &dyn Fn(&Account) -> bool| -> usize {
        counts.iter().filter(|(account, _)| is_counted(account)).map(|(_, count)| count).sum()
    };
    let is_over =
        |what, most: usize, is_counted: &dyn Fn(&Account) -> bool| (count(is_counted) >= most).then_some((what, most));
    let is_same = |account: &Account| *account == of;
    let of_its_own = match of {
        Account::Operator => None,
        Account::User(_) => is_over("of this user", CLIENTS_OF_USER_MAX, &is_same),
        Account::Agent { tree, .. } => {
            let is_in_tree = |account: &Account| matches!(account, Account::Agent { tree: of, .. } if *of == tree);
            is_over("of this agent", CLIENTS_OF_AGENT_MAX, &is_same)
                .or_else(|| is_over("of the agents of this tree", CLIENTS_OF_TREE_MAX, &is_in_tree))
        }
    };
    let shared = CLIENTS_MAX - CLIENTS_OF_OPERATOR_MIN;
    let of_all_but_the_operator = || {
        is_over("of agents and users", shared, &|account| *account != Account::Operator)
            .filter(|_| of != Account::Operator)
    };
    of_its_own.or_else(of_all_but_the_operator).or_else(|| is_over("altogether", CLIENTS_MAX, &|_| true))
}

impl Supervisor {
    /// Finds the account of a connection.
    pub(super) fn account_of(&self, caller: &Caller) -> Account {
        match (caller.agent, caller.user) {
            (Some(agent), _) => {
                let tree = std::iter::successors(Some(agent), |key| self.machine.parent_of(*key)).last();
                Account::Agent { agent, tree: tree.unwrap_or(agent) }
            }
            (None, Some((uid, _))) if uid != 0 && uid != effective_user() => Account::User(uid),
            (None, _) => Account::Operator,
        }
    }

    /// Refuses a connection that is one too many for its account, or that would take a descriptor out of the operator's reserve.
    pub(super) fn check_quota(&self, stream: &Stream, account: Account) -> Result<(), Error> {
        if account != Account::Operator {
            guard::check_for_guest(stream)?;
        }
        let Some((what, most)) = used_up(self.clients.values().map(|client| client.account), account) else {
            return Ok(());
        };
        let message = format!("{most} connections {what} are open, the most there may be");
        Err(Error::new(Code::TooManyClients, message).remedy("close a connection first"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(agent: u64, tree: u64) -> Account {
        Account::Agent { agent: AgentKey(agent), tree: AgentKey(tree) }
    }

    /// Opens as many connections of each account as are allowed, and returns how many those are.
    fn open(taken: &mut Vec<Account>, account: Account) -> usize {
        let before = taken.len();
        while used_up(taken.iter().copied(), account).is_none() {
            taken.push(account);
        }
        taken.len() - before
    }

    #[test]
    fn nobody_keeps_the_operator_or_another_tree_out() {
        let mut taken = Vec::new();
        assert_eq!(open(&mut taken, agent(1, 1)), CLIENTS_OF_AGENT_MAX);
        let below: usize = (10..100).map(|key| open(&mut taken, agent(key, 1))).sum();
        assert_eq!(CLIENTS_OF_AGENT_MAX + below, CLIENTS_OF_TREE_MAX, "an agent's children are on its tree's account");
        assert_eq!(open(&mut taken, agent(200, 200)), CLIENTS_OF_AGENT_MAX, "another tree has its own");
        assert_eq!(open(&mut taken, Account::User(1000)), CLIENTS_OF_USER_MAX);
        let rest: usize = (300..400).map(|key| open(&mut taken, agent(key, key))).sum();
        assert_eq!((rest, taken.len()), (0, CLIENTS_MAX - CLIENTS_OF_OPERATOR_MIN));
        assert_eq!(open(&mut taken, Account::Operator), CLIENTS_OF_OPERATOR_MIN);
        assert_eq!(
            open(&mut Vec::new(), Account::Operator),
            CLIENTS_MAX,
            "what nobody else takes is the operator's too"
        );
    }
}
