//! Which daemon is meant, where it keeps its state, and the connection to it.

use std::path::PathBuf;

use super::args::Global;
use crate::api::DEFAULT_SOCKET;
use crate::api::client::Client;
use crate::model::error::{Code, Error};

/// The variable that names the socket where no flag does.
pub(super) const SOCKET_VARIABLE: &str = "TREEHERD_SOCKET";

/// Where root's daemon keeps its state if nothing else is said.
const STATE_DIR: &str = "/run/treeherd";

/// Returns where a daemon keeps its state: `--state-dir`, else a place of this user's.
pub(super) fn state_dir(global: &Global) -> PathBuf {
    global.state_dir.clone().or_else(own_state_dir).unwrap_or_else(|| PathBuf::from(STATE_DIR))
}

/// Returns where the daemon of somebody who is not root keeps its state.
fn own_state_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    dir.filter(|_| !rustix::process::geteuid().is_root()).map(|dir| PathBuf::from(dir).join("treeherd"))
}

/// Lists the sockets that may be meant, the likeliest first: `--socket`, else the one in `--state-dir`, else `TREEHERD_SOCKET`, else
/// this user's own daemon's, and root's.
fn candidates(global: &Global, variable: Option<PathBuf>, own: Option<PathBuf>) -> Vec<PathBuf> {
    let in_dir = |dir: PathBuf| dir.join("treeherd.sock");
    let named = global.socket.clone().or_else(|| global.state_dir.clone().map(in_dir)).or(variable);
    match named {
        Some(named) => vec![named],
        None => own.map(in_dir).into_iter().chain([PathBuf::from(DEFAULT_SOCKET)]).collect(),
    }
}

/// Connects to the daemon that is meant.
pub(super) fn connect(global: &Global) -> Result<Client, Error> {
    let variable = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let mut outcome = Err(Error::new(Code::NoDaemon, "there is no socket to look for"));
    for socket in candidates(global, variable, own_state_dir()) {
        outcome = Client::connect(&socket);
        if !matches!(&outcome, Err(error) if error.code == Code::NoDaemon) {
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearest_to_the_command_names_the_socket() {
        let mut global = Global::default();
        let sockets = |global: &Global, variable: Option<&str>, own: Option<&str>| {
            let found = candidates(global, variable.map(PathBuf::from), own.map(PathBuf::from));
            found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(sockets(&global, None, None), [DEFAULT_SOCKET]);
        assert_eq!(sockets(&global, None, Some("/run/user/7")), ["/run/user/7/treeherd.sock", DEFAULT_SOCKET]);
        assert_eq!(sockets(&global, Some("/v"), Some("/run/user/7")), ["/v"]);
        global.state_dir = Some("/s".into());
        assert_eq!(sockets(&global, Some("/v"), None), ["/s/treeherd.sock"]);
        global.socket = Some("/f".into());
        assert_eq!(sockets(&global, Some("/v"), None), ["/f"]);
    }
}
