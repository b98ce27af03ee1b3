//! CPUs on v1, where a cgroup has a set of its own and cannot inherit one.
//!
//! Mirrors that lie between two limits are filled with the set above them. So that they inherit in effect, those whose
//! set is the same as that of the cgroup above follow it when it changes: first all are widened top-down to the old and
//! the new set together, then all are narrowed bottom-up to the new one; at every moment each set is within the one above.

use crate::kernel::cgroup::dir::{Dir, Step, walk};
use crate::kernel::error::Result;

const CPUS: &str = "cpuset.cpus";

/// Fills the CPUs and memory nodes of a new mirror from the one above: a cgroup without them takes no process.
pub(crate) fn fill_cpuset(above: &Dir, dir: &Dir) -> Result<()> {
    for file in [CPUS, "cpuset.mems"] {
        if dir.read(file)?.trim().is_empty() {
            dir.write(file, above.read(file)?.trim())?;
        }
    }
    Ok(())
}

/// Sets the CPUs of a mirror and of those below it that follow it. All or none.
pub(super) fn write(dir: &Dir, new: &str) -> Result<()> {
    let old = dir.read(CPUS)?.trim().to_owned();
    let followers = followers(dir, &old)?;
    let both = if old.is_empty() { new.to_owned() } else { format!("{old},{new}") };
    let each = |path: &String, cpus: &str| dir.descend(path)?.write(CPUS, cpus);
    let change = || {
        followers.iter().try_for_each(|path| each(path, &both))?;
        followers.iter().rev().try_for_each(|path| each(path, new))
    };
    change().inspect_err(|_| {
        // The same way back; what cannot be put back is told by whoever reads the limits.
        followers.iter().for_each(|path| drop(each(path, &both)));
        followers.iter().rev().for_each(|path| drop(each(path, &old)));
    })
}

/// Lists the paths, parents first, of a mirror and of all below it that have the same CPUs as everything in between.
fn followers(dir: &Dir, cpus: &str) -> Result<Vec<String>> {
    let mut followers: Vec<String> = Vec::new();
    walk(dir.descend("")?, &mut |step| {
        let Step::Entered { dir, path: Some(path) } = step else { return Ok(()) };
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        let follows_above = path.is_empty() || followers.iter().any(|follower| follower == above);
        if follows_above && dir.read(CPUS)?.trim() == cpus {
            followers.push(path.to_owned());
        }
        Ok(())
    })?;
    Ok(followers)
}
