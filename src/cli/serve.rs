//! The daemon's beginning: settings from flags and a file, and its log.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use super::args::{DaemonArgs, Global, LogFormat};
use super::check;
use super::failure::Done;
use super::screen::Screen;
use crate::daemon::{self, Residence, Settings};
use crate::model::config::HerdConfig;
use crate::model::error::{Code, Error};
use crate::model::tree::Tree;

/// Where a daemon keeps its state if nothing else is said.
pub(super) const DEFAULT_STATE_DIR: &str = "/run/treeherd";

/// `daemon`
pub(super) fn daemon(global: &Global, args: DaemonArgs) -> Done {
    log_to_stderr(global.log_format, "info");
    let mut settings = Settings::new(global.state_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR)));
    settings.socket.clone_from(&global.socket);
    settings.cgroup.clone_from(&args.cgroup);
    settings.herd = herd(&args)?;
    settings.residence = Residence::OwnLeaf;
    // It is read again at any time, from whatever directory.
    let absolute = args.config.as_deref().map(std::path::absolute).transpose();
    settings.config = absolute.map_err(|error| Error::new(Code::BadValue, format!("--config: {error}")))?;
    daemon::serve(settings)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns what the herd is held to: the file's words, and the flags' over them.
fn herd(args: &DaemonArgs) -> Result<HerdConfig, Error> {
    let mut herd = args.config.as_deref().map(config).transpose()?.unwrap_or_default();
    let bounds = &mut herd.bounds;
    bounds.max_levels = args.max_levels.unwrap_or(bounds.max_levels);
    bounds.max_agents_per_level = args.max_agents_per_level.unwrap_or(bounds.max_agents_per_level);
    bounds.max_children = args.max_children.unwrap_or(bounds.max_children);
    bounds.max_agents = args.max_agents.unwrap_or(bounds.max_agents);
    herd.cleanup_retention = args.cleanup_retention.unwrap_or(herd.cleanup_retention);
    herd.auto_cleanup &= !args.no_auto_cleanup;
    herd.check()?;
    Ok(herd)
}

/// Reads a configuration: a tree file without agents.
fn config(file: &Path) -> Result<HerdConfig, Error> {
    let bytes = check::read(file)?;
    let tree = Tree::parse(&bytes).map_err(|mistakes| {
        let told: Vec<String> = mistakes.iter().map(|mistake| format!("{}:{mistake}", file.display())).collect();
        Error::new(Code::BadTree, told.join("; ")).remedy(format!("`treeherd check {}` tells more", file.display()))
    })?;
    if tree.agents.is_empty() {
        return Ok(tree.config);
    }
    Err(Error::new(Code::BadTree, format!("{} has agents; a configuration has none", file.display()))
        .remedy("keep [herd] and [levels], or use `treeherd run` for a whole tree"))
}

/// Writes the log to stderr. `RUST_LOG` says how much of it.
pub(super) fn log_to_stderr(format: LogFormat, otherwise: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(otherwise));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let is_coloured = std::io::stderr().is_terminal() && !Screen::refuses_colour();
    // A second one in the same process changes nothing.
    match format {
        LogFormat::Text => log.with_ansi(is_coloured).try_init(),
        LogFormat::Json => log.json().try_init(),
    }
    .unwrap_or_default();
}
