//! A stand-in until the shell is there.

use crate::api::client::Client;
use crate::daemon::Settings;
use crate::model::error::{Code, Error};

/// A herd.
#[derive(Debug)]
pub struct Herd(());

impl Herd {
    /// Starts a supervisor within this process.
    ///
    /// # Errors
    /// Always.
    pub fn start(_settings: Settings) -> Result<Self, Error> {
        Err(Error::new(Code::Unsupported, "this build has no supervisor"))
    }

    /// Opens a connection to it.
    ///
    /// # Errors
    /// Always.
    pub fn connect_client(&self) -> Result<Client, Error> {
        Err(Error::new(Code::Unsupported, "this build has no supervisor"))
    }

    /// Waits until the supervisor has ended.
    ///
    /// # Errors
    /// Never.
    pub fn join(self) -> Result<(), Error> {
        Ok(())
    }
}
