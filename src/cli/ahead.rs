//! Calls that are asked for before the last one is answered, several at a time: the daemon has its next one while an answer is on
//! its way.
//!
//! What is decided by an answer is not asked for before it: who asks looks at what is open ([`Asked::is_open`]), and hears first.

use std::collections::BTreeMap;

use crate::api::client::Client;
use crate::api::message::Outcome;
use crate::api::method::Call;
use crate::model::error::Error;

/// How many calls are open at a time: enough that every hand which spawns has its next one, few enough that what ends the asking
/// finds little under way.
const MOST: usize = 16;

/// The calls of one client that are not answered, each with what it is about.
pub(super) struct Asked<T>(BTreeMap<u64, T>);

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Asked<T> {
    /// Says whether so many calls are open that one has to be heard first.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MOST
    }

    /// Says whether all are answered.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Says whether a call about such a thing is open.
    pub(super) fn is_open(&self, is_such: impl FnMut(&T) -> bool) -> bool {
        self.0.values().any(is_such)
    }

    /// Asks without waiting for the answer.
    ///
    /// # Errors
    /// As [`Client::ask`], with what it was about.
    pub(super) fn ask(&mut self, client: &mut Client, call: &Call, about: T) -> Result<(), (T, Error)> {
        match client.ask(call) {
            Ok(number) => {
                self.0.insert(number, about);
                Ok(())
            }
            Err(error) => Err((about, error)),
        }
    }

    /// Waits for an answer, and returns what it is about with it; with the reason all that are open if none will come.
    pub(super) fn hear(&mut self, client: &mut Client) -> Vec<(T, Outcome)> {
        match client.answer() {
            Ok((Some(number), outcome)) => self.0.remove(&number).map(|about| (about, outcome)).into_iter().collect(),
            // The daemon is gone, or could not make out whose call it refused: then it does not hear the others either.
            Err(error) | Ok((None, Err(error))) => {
                std::mem::take(&mut self.0).into_values().map(|about| (about, Err(error.clone()))).collect()
            }
            Ok((None, Ok(_))) => Vec::new(),
        }
    }
}
