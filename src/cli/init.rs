//! As PID 1, of a container or of a machine: this process only passes signals on and reaps what is reparented to it; a second one,
//! started at once with the same command line, is what was asked for. So the supervisor waits for its own children only, and
//! nothing that an agent leaves behind becomes a zombie for ever. Both leave the container's cgroup to the herd.

use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::failure::Failure;
use crate::daemon;
use crate::model::error::{Code, Error};

/// Added to the number of the signal that ended a process: what shells make of it.
const SIGNALLED: i32 = 128;

/// Says whether everything that loses its parent becomes a child of this process.
pub(super) fn is_init() -> bool {
    std::process::id() == 1
}

/// Says whether this process is the second one, started by this program as PID 1.
pub(super) fn is_parent() -> bool {
    let program = |path| std::fs::read_link(path).ok();
    Pid::parent() == Pid::from_raw(1) && program("/proc/1/exe").is_some_and(|it| program("/proc/self/exe") == Some(it))
}

/// Runs this program a second time, and returns its exit status when it has ended.
pub(super) fn run() -> ExitCode {
    match supervise() {
        Ok(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(u8::MAX)),
        Err(error) => Failure::from(error).report(false),
    }
}

fn supervise() -> Result<i32, Error> {
    let failed = |what: &str, error: std::io::Error| Error::new(Code::Kernel, format!("as PID 1: {what}: {error}"));
    // Before the child is there: its end is not missed.
    let mut signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2])
        .map_err(|error| failed("listen to signals", error))?;
    daemon::step_aside();
    let program = std::env::current_exe().map_err(|error| failed("find this program", error))?;
    let child = Command::new(program).args(std::env::args_os().skip(1)).spawn();
    let child = child.map_err(|error| failed("start the supervisor", error))?.id();
    let child = Pid::from_raw(child.cast_signed());
    for signal in &mut signals {
        if signal == SIGCHLD {
            if let Some(status) = reap(child) {
                return Ok(status);
            }
        } else if let Ok(signal) = Signal::try_from(signal) {
            // It may have ended just now: then its end is next.
            kill(child, signal).unwrap_or_default();
        }
    }
    Err(Error::new(Code::Kernel, "as PID 1: no signal can come any more"))
}

/// Reaps whatever has ended, and returns how the child did, if it is among them.
fn reap(child: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Some(SIGNALLED + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(_) => {}
        }
    }
}
