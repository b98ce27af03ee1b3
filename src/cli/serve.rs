//! The daemon's beginning: settings from flags and a file, and its log.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::args::{DaemonArgs, Global, LogFormat};
use super::failure::Done;
use super::link::state_dir;
use super::screen::Screen;
use crate::daemon::{self, Residence, Settings};
use crate::model::config::Flags;
use crate::model::error::{Code, Error};

/// `daemon`
pub(super) fn daemon(global: &Global, args: DaemonArgs) -> Done {
    log_to_stderr(global.log_format, "info");
    let mut settings = Settings::new(state_dir(global));
    settings.socket.clone_from(&global.socket);
    settings.cgroup = args.cgroup.unwrap_or_else(daemon::default_cgroup);
    settings.flags = Flags {
        max_levels: args.max_levels,
        max_agents_per_level: args.max_agents_per_level,
        max_children: args.max_children,
        max_agents: args.max_agents,
        cleanup_retention: args.cleanup_retention,
        auto_cleanup: args.no_auto_cleanup.then_some(false),
    };
    settings.residence = Residence::OwnLeaf;
    // It is read again at any time, from whatever directory.
    let config = std::path::absolute(args.config.as_deref().unwrap_or(daemon::DEFAULT_CONFIG.as_ref()))
        .map_err(|error| Error::new(Code::BadValue, format!("--config: {error}")))?;
    let loaded = daemon::load(&config, &settings.flags)?;
    (settings.herd, settings.origins, settings.config) = (loaded.herd, loaded.origins, Some(config));
    daemon::serve(settings)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the log to stderr, or straight to the journal if that is where stderr goes: there `agent`, `level` and `run` are fields
/// (`journalctl AGENT=worker`). `RUST_LOG` says how much of it.
pub(super) fn log_to_stderr(format: LogFormat, otherwise: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(otherwise));
    if format == LogFormat::Text
        && goes_to_the_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_field_prefix(None).with_syslog_identifier("treeherd".to_owned());
        // A second one in the same process changes nothing.
        return tracing_subscriber::registry().with(filter).with(journal).try_init().unwrap_or_default();
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let is_coloured = std::io::stderr().is_terminal() && !Screen::refuses_colour();
    match format {
        LogFormat::Text => log.with_ansi(is_coloured).try_init(),
        LogFormat::Json => log.json().try_init(),
    }
    .unwrap_or_default();
}

/// Says whether stderr is the journal's: systemd.exec(5), `JOURNAL_STREAM`.
fn goes_to_the_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let own = rustix::fs::fstat(std::io::stderr()).ok().map(|about| format!("{}:{}", about.st_dev, about.st_ino));
    named.is_some() && named == own
}
