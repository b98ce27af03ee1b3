//! The daemon's beginning: its signals, its log, and its settings from flags and a file.

use std::process::ExitCode;

use super::args::{DaemonArgs, Global};
use super::failure::Done;
use super::link::state_dir;
use super::log;
use crate::daemon::{self, EndsWith, Residence, Settings};
use crate::model::config::Flags;
use crate::model::error::{Code, Error};

/// `daemon`
pub(super) fn daemon(global: &Global, args: DaemonArgs) -> Done {
    daemon::check_clone3()?;
    // Before there are other threads.
    daemon::block_irrelevant_signals();
    log::start(global.log_format, "info")
        .map_err(|error| Error::new(Code::Kernel, format!("start the log: {error}")))?;
    let mut settings = Settings::new(state_dir(global));
    settings.socket.clone_from(&global.socket);
    settings.cgroup = daemon::choose_seat(args.cgroup.as_deref(), daemon::DEFAULT_CGROUP)?.cgroup;
    settings.flags = Flags {
        max_levels: args.max_levels,
        max_agents_per_level: args.max_agents_per_level,
        max_children: args.max_children,
        max_agents: args.max_agents,
        cleanup_retention: args.cleanup_retention,
        auto_cleanup: args.no_auto_cleanup.then_some(false),
    };
    settings.residence = Residence::OwnLeaf;
    settings.ends_with = if args.end_with_supervisor { EndsWith::Supervisor } else { EndsWith::Nobody };
    // It is read again at any time, from whatever directory.
    let config = std::path::absolute(args.config.as_deref().unwrap_or(daemon::DEFAULT_CONFIG.as_ref()))
        .map_err(|error| Error::new(Code::BadValue, format!("--config: {error}")))?;
    let loaded = daemon::load(&config, &settings.flags)?;
    (settings.herd, settings.origins, settings.config) = (loaded.herd, loaded.origins, Some(config));
    daemon::serve(settings)?;
    Ok(ExitCode::SUCCESS)
}
