//! Herds of the foreground whose supervisor and guardian are both gone: what is empty goes, what lives is reported.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::records::Legacy;
use crate::kernel::cgroup::Cgroups;
use crate::kernel::host::Host;
use crate::kernel::{clock, process, socket};

/// What the state directory of a herd in the foreground is called; its process id comes behind it.
pub const RUN_PREFIX: &str = "treeherd-run-";

/// The age below which a state directory may be that of a supervisor which is just starting.
const STARTING: Duration = Duration::from_secs(10);

/// A herd without a supervisor, of which something lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadHerd {
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its herd's cgroup: a directory.
    pub cgroup: PathBuf,
    /// How many processes are in it, with all below.
    pub processes: usize,
}

impl std::fmt::Display for DeadHerd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (state_dir, cgroup) = (self.state_dir.display(), self.cgroup.display());
        write!(f, "{} processes in {cgroup} have no supervisor any more ({state_dir})", self.processes)
    }
}

impl DeadHerd {
    /// Says how to end it.
    #[must_use]
    pub fn remedy(&self) -> String {
        format!("end them with `echo 1 > {}/cgroup.kill`; the next run removes what is left", self.cgroup.display())
    }
}

/// Returns where a herd in the foreground may have its state directory, the best first.
#[must_use]
pub fn run_places() -> [PathBuf; 2] {
    [PathBuf::from("/run"), std::env::temp_dir()]
}

/// Looks for herds of the foreground that are dead, removes those in which nothing lives, and returns the others.
///
/// Dead is one whose lock nobody holds, and that has no guardian. Only what belongs to this process's user counts: who else could
/// make such a directory could have anything removed.
#[must_use]
pub fn dead_herds() -> Vec<DeadHerd> {
    let Ok(host) = Host::discover() else { return Vec::new() };
    let host = Arc::new(host);
    let dirs = run_places().into_iter().flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten());
    dirs.filter(|entry| is_of_a_run(&entry.file_name())).filter_map(|entry| examine(&host, entry.path())).collect()
}

fn is_of_a_run(name: &OsStr) -> bool {
    let pid = name.to_str().and_then(|name| name.strip_prefix(RUN_PREFIX));
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok())
}

fn examine(host: &Arc<Host>, dir: PathBuf) -> Option<DeadHerd> {
    let about = dir.symlink_metadata().ok()?;
    let is_ours = about.is_dir() && about.uid() == process::effective_user();
    let is_old = about.modified().ok()?.elapsed().is_ok_and(|age| age >= STARTING);
    if !is_ours || !is_old || socket::is_state_dir_in_use(&dir) {
        return None;
    }
    let legacy = Legacy::read(&dir).ok()?;
    let here = legacy.filter(|legacy| clock::boot_id().is_ok_and(|boot| boot == legacy.boot)).map(|legacy| legacy.root);
    if let Some(root) = &here {
        let root_dir = host.cgroup2.join(root);
        let count = |leaf: &str| processes_below(&root_dir.join(leaf));
        if count("guardian") > 0 {
            return None;
        }
        let (processes, cgroup) = (count("herd"), root_dir.join("herd"));
        if processes > 0 {
            return Some(DeadHerd { state_dir: dir, cgroup, processes });
        }
    }
    match here.filter(|root| host.cgroup2.join(root).is_dir()).map_or(Ok(()), |root| remove(host, &root)) {
        Ok(()) => {
            std::fs::remove_dir_all(&dir).unwrap_or_else(|error| tracing::warn!("remove {}: {error}", dir.display()))
        }
        Err(error) => tracing::warn!("remove what {} has left: {error}", dir.display()),
    }
    None
}

fn remove(host: &Arc<Host>, root: &str) -> Result<(), crate::model::error::Error> {
    let cgroups = Cgroups::create(host.clone(), root)?;
    let _claim = cgroups.claim()?;
    cgroups.remove_root()?;
    Ok(())
}

fn processes_below(cgroup: &Path) -> usize {
    let own = std::fs::read_to_string(cgroup.join("cgroup.procs")).map_or(0, |text| text.lines().count());
    let below = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    let dirs = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own + dirs.map(|entry| processes_below(&entry.path())).sum::<usize>()
}
