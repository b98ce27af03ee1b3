//! Which daemon is meant, and the connection to it.

use std::path::PathBuf;

use super::args::Global;
use crate::api::DEFAULT_SOCKET;
use crate::api::client::Client;
use crate::model::error::Error;

/// The variable that names the socket where no flag does.
pub(super) const SOCKET_VARIABLE: &str = "TREEHERD_SOCKET";

/// Returns the socket: `--socket`, else the one in `--state-dir`, else `TREEHERD_SOCKET`, else the default.
pub(super) fn socket(global: &Global) -> PathBuf {
    choose(global, std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
}

fn choose(global: &Global, variable: Option<PathBuf>) -> PathBuf {
    let in_state_dir = || global.state_dir.as_ref().map(|dir| dir.join("treeherd.sock"));
    global.socket.clone().or_else(in_state_dir).or(variable).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
}

/// Connects to the daemon that is meant.
pub(super) fn connect(global: &Global) -> Result<Client, Error> {
    Client::connect(&socket(global))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearest_to_the_command_names_the_socket() {
        let mut global = Global::default();
        assert_eq!(choose(&global, None), PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(choose(&global, Some("/v".into())), PathBuf::from("/v"));
        global.state_dir = Some("/s".into());
        assert_eq!(choose(&global, Some("/v".into())), PathBuf::from("/s/treeherd.sock"));
        global.socket = Some("/f".into());
        assert_eq!(choose(&global, Some("/v".into())), PathBuf::from("/f"));
    }
}
