//! A stand-in until the shell is there.

mod settings;

pub use settings::{Residence, Settings};

use crate::api::method::Doctor;
use crate::model::error::{Code, Error};

/// Runs a daemon in the foreground.
///
/// # Errors
/// Always.
pub fn serve(_settings: Settings) -> Result<(), Error> {
    Err(Error::new(Code::Unsupported, "this build has no supervisor"))
}

/// Looks at the host.
#[must_use]
pub fn doctor(_settings: &Settings) -> Doctor {
    Doctor::default()
}
