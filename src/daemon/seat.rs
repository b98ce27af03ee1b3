//! Where the root cgroup is: never out of what this process was put into, unless it is named.
//!
//! ```text
//! --cgroup PATH                          there
//! delegated to us                        that cgroup
//! a container's own root, or the host's  below the top of what is mounted
//! an allocation                          beside our own cgroup, or else below it
//! anything else                          below the top
//! ```
//!
//! An allocation is a cgroup with a limit, of an engine, of a service manager or of another treeherd: whatever limits, pauses or kills
//! it has to reach the herd as well. It is recognised by the cgroups themselves, and by the environment only where they say nothing.

use std::path::Path;

use super::settings::{DEFAULT_CGROUP, Residence};
use crate::kernel::cgroup::{self, Place};
use crate::kernel::host::Host;
use crate::model::error::{Code, Error};
use crate::model::limits::{Knob, LimitAbove};

/// Variables that engines set for what they run.
const ENGINES: [&str; 4] = ["SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", "NOMAD_ALLOC_ID", "CI"];

/// The root cgroup that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its path below the cgroup2 mount point.
    pub cgroup: String,
    /// Whether the supervisor has to move into a leaf of it: no cgroup hands controllers down while a process is in it.
    pub residence: Residence,
}

/// Chooses the root cgroup of a supervisor that calls it `name`, or that was given one.
///
/// # Errors
/// [`Code::Unsupported`] as [`Host::discover`]; [`Code::BadValue`]: what was given is in a hierarchy that is not cgroup2.
pub fn choose_seat(given: Option<&str>, name: &str) -> Result<Seat, Error> {
    let host = Host::discover()?;
    if let Some(given) = given {
        let cgroup = below_mount(&host.cgroup2, given)?;
        let own = host.own_cgroup.trim_matches('/');
        let is_ours = own == cgroup || own.starts_with(&format!("{cgroup}/"));
        return Ok(Seat { residence: if is_ours { Residence::OwnLeaf } else { Residence::Stay }, cgroup });
    }
    let has_engine = ENGINES.iter().any(|name| std::env::var_os(name).is_some());
    Ok(choose(&Surroundings::of(&host, has_engine), name))
}

/// Lists the limits that hold for a herd which is started by this process, from outside; none where the host cannot be read.
#[must_use]
pub fn limits_above_us() -> Vec<LimitAbove> {
    let seat = choose_seat(None, DEFAULT_CGROUP).ok();
    seat.zip(Host::discover().ok()).map(|(seat, host)| cgroup::limits_above(&host, &seat.cgroup)).unwrap_or_default()
}

/// Turns a path that a user gave into one below the mount point: it may begin with that.
fn below_mount(mount: &Path, given: &str) -> Result<String, Error> {
    let path = Path::new(given);
    let below = match path.strip_prefix(mount) {
        Ok(below) => below.to_str().unwrap_or(given),
        Err(_) if path.starts_with("/sys/fs/cgroup") => {
            let message =
                format!("--cgroup {given}: that is no cgroup of the cgroup2 hierarchy at {}", mount.display());
            return Err(
                Error::new(Code::BadValue, message).remedy("give a path below that directory, with or without it")
            );
        }
        Err(_) => given,
    };
    Ok(below.trim_matches('/').to_owned())
}

/// What the choice depends on.
#[derive(Debug, Default)]
struct Surroundings {
    /// Our own cgroup, below the mount point, without a leading slash; empty for the top.
    own: String,
    delegated: Option<String>,
    /// Whether a cgroup of our path is limited, or is marked as somebody's.
    is_allocated: bool,
    /// Whether our own one is.
    is_own_limited: bool,
    /// Whether the one above us hands controllers down and we may make cgroups in it.
    has_room_beside: bool,
}

impl Surroundings {
    fn of(host: &Host, has_engine: bool) -> Self {
        // The first process of a container has made room at the top for a herd.
        let own = if cgroup::is_first_leaf(host) { "" } else { host.own_cgroup.trim_matches('/') }.to_owned();
        let directory = host.cgroup2.join(&own);
        let limits = cgroup::limits_above(host, &own);
        let below_top = |path: &Path| path.starts_with(&host.cgroup2) && path != host.cgroup2;
        let tasks = default_tasks();
        let counts = |limit: &LimitAbove| below_top(Path::new(&limit.path)) && !is_default(limit, tasks);
        let is_marked = || directory.ancestors().take_while(|path| below_top(path)).any(cgroup::is_somebodys);
        Self {
            is_own_limited: limits.iter().any(|limit| Path::new(&limit.path) == directory && counts(limit)),
            is_allocated: !own.is_empty()
                && (limits.iter().any(counts)
                    || is_agents(&own)
                    || has_engine
                    || !is_login(&own) && (is_in_unit(&own) || is_marked())),
            has_room_beside: directory.parent().is_some_and(cgroup::has_room),
            delegated: host.delegated.as_ref().map(|path| path.trim_matches('/').to_owned()),
            own,
        }
    }
}

/// Says whether a path is in a unit of a service manager.
fn is_in_unit(own: &str) -> bool {
    own.split('/').any(|name| [".service", ".scope"].iter().any(|kind| name.ends_with(kind)))
}

/// Says whether a path is somebody's login, a terminal or a session, which the service manager has put into a unit for its own books:
/// no allocation for that alone.
fn is_login(own: &str) -> bool {
    own.split('/').next() == Some("user.slice")
}

/// Returns how many tasks a service manager grants to whatever has no limit of its own, at least: a tenth of what the kernel takes
/// (systemd has 15 % for a unit, 33 % for a user).
fn default_tasks() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/threads-max").unwrap_or_default();
    text.trim().parse().unwrap_or(u128::MAX) / 10
}

/// Says whether a limit is one that a service manager sets without being asked.
fn is_default(limit: &LimitAbove, tasks: u128) -> bool {
    limit.knob == Knob::PidsMax && limit.setting.amount().is_some_and(|amount| amount >= tasks)
}

/// Says whether a path is the cgroup of a run of another treeherd's agent.
fn is_agents(own: &str) -> bool {
    let mut names = own.rsplit('/');
    let is_run = |name: &str| name.strip_prefix("run-").is_some_and(|run| run.parse::<u64>().is_ok());
    let herd = Place::herd();
    names.by_ref().take(2).any(is_run) && names.any(|name| name == herd.path())
}

fn choose(around: &Surroundings, name: &str) -> Seat {
    let own = around.own.as_str();
    if let Some(delegated) = &around.delegated {
        return Seat { cgroup: delegated.clone(), residence: Residence::OwnLeaf };
    }
    if own.is_empty() || !around.is_allocated {
        return Seat { cgroup: name.to_owned(), residence: Residence::Stay };
    }
    let (above, last) = own.rsplit_once('/').unwrap_or(("", own));
    // A unit, or a run of an agent, is what its owner kills: beside it that would not reach us.
    let is_killed_alone = is_in_unit(last) || is_agents(own);
    if !above.is_empty() && around.has_room_beside && !around.is_own_limited && !is_killed_alone {
        return Seat { cgroup: format!("{above}/{name}"), residence: Residence::Stay };
    }
    Seat { cgroup: format!("{own}/{name}"), residence: Residence::OwnLeaf }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(own: &str) -> Surroundings {
        let is_allocated = !is_login(own) && is_in_unit(own) || is_agents(own);
        Surroundings { own: own.to_owned(), is_allocated, ..Surroundings::default() }
    }

    fn chosen(around: &Surroundings) -> (String, Residence) {
        let seat = choose(around, "herd-of-ours");
        (seat.cgroup, seat.residence)
    }

    #[test]
    fn the_root_is_never_out_of_what_we_were_put_into() {
        use Residence::{OwnLeaf, Stay};
        let step = "system.slice/n1_slurmstepd.scope/job_1/step_0/user/task_0";
        let beside = Surroundings { has_room_beside: true, ..around(step) };
        let table = [
            (around(""), "herd-of-ours", Stay),
            (around("user.slice/user-0.slice/session-3.scope"), "herd-of-ours", Stay),
            (around("user.slice/user-7.slice/user@7.service/app.slice/vte-spawn-1.scope"), "herd-of-ours", Stay),
            (
                Surroundings {
                    is_allocated: true,
                    ..around("user.slice/user-7.slice/user@7.service/app.slice/job.scope")
                },
                "user.slice/user-7.slice/user@7.service/app.slice/job.scope/herd-of-ours",
                OwnLeaf,
            ),
            (around("by-hand"), "herd-of-ours", Stay),
            (Surroundings { is_allocated: true, ..around("by-hand") }, "by-hand/herd-of-ours", OwnLeaf),
            (Surroundings { delegated: Some("s/t.service".into()), ..around("s/t.service/x") }, "s/t.service", OwnLeaf),
            (around("system.slice/ci.service"), "system.slice/ci.service/herd-of-ours", OwnLeaf),
            (beside, "system.slice/n1_slurmstepd.scope/job_1/step_0/user/herd-of-ours", Stay),
            (around(step), &format!("{step}/herd-of-ours"), OwnLeaf),
            (
                Surroundings { has_room_beside: true, is_own_limited: true, ..around(step) },
                &format!("{step}/herd-of-ours"),
                OwnLeaf,
            ),
            (
                Surroundings { has_room_beside: true, ..around("treeherd/herd/a/level-1/b/run-7") },
                "treeherd/herd/a/level-1/b/run-7/herd-of-ours",
                OwnLeaf,
            ),
            (around("treeherd/herd/a/run-7/main"), "treeherd/herd/a/run-7/main/herd-of-ours", OwnLeaf),
        ];
        for (around, cgroup, residence) in table {
            assert_eq!(chosen(&around), (cgroup.to_owned(), residence), "{around:?}");
        }
    }

    #[test]
    fn a_path_may_begin_with_the_mount_point() {
        let unified = Path::new("/sys/fs/cgroup/unified");
        for given in ["a/b", "/a/b", "a/b/", "/sys/fs/cgroup/unified/a/b"] {
            assert_eq!(below_mount(unified, given).unwrap(), "a/b", "{given}");
        }
        assert_eq!(below_mount(unified, "/sys/fs/cgroup/memory/a").unwrap_err().code, Code::BadValue);
    }
}
