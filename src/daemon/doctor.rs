//! What this host offers: every check that start-up makes, and which limit is enforced by what.

use std::sync::Arc;

use super::settings::Settings;
use crate::api::method::{Check, Doctor, Enforced, Finding};
use crate::kernel::cgroup::{self, Cgroups};
use crate::kernel::error::errno_text;
use crate::kernel::host::{Binding, Host, KernelVersion, Layout};
use crate::kernel::process;
use crate::kernel::spawn::Way;
use crate::model::limits::{Controller, Knob};
use crate::output::Store;

/// Looks at the host and leaves it as it was. Works without a daemon.
#[must_use]
pub fn doctor(settings: &Settings) -> Doctor {
    let mut checks = Vec::new();
    let host = match Host::discover() {
        Ok(host) => host,
        Err(error) => {
            checks.push(check("host", Finding::Bad, error.message, error.remedy));
            return Doctor { is_fit: false, checks, limits: Vec::new() };
        }
    };
    checks.push(check(
        "kernel",
        Finding::Good,
        format!("{}, {} or newer is needed", host.release, KernelVersion::FLOOR),
        None,
    ));
    let layout = match host.layout {
        Layout::Unified => "unified: cgroup2 has every controller that there is",
        Layout::Hybrid => "hybrid: cgroup2 is the tree, controllers that it lacks are driven through v1",
    };
    checks.push(check("cgroup2", Finding::Good, format!("{} ({layout})", host.cgroup2.display()), None));
    checks.push(root(&host, settings));
    checks.push(above(&host, settings));
    checks.extend(
        super::dead::dead_herds()
            .iter()
            .map(|dead| check("dead herd", Finding::Limited, dead.to_string(), Some(dead.remedy()))),
    );
    checks.push(canary(&host, settings));
    checks.push(output(settings));
    checks.push(watches());
    checks.push(descriptors());
    checks.extend(Controller::ALL.map(|controller| controller_check(&host, controller)));
    match process::capabilities() {
        Ok(capabilities) => checks.extend(capabilities.into_iter().map(|capability| {
            if capability.present {
                check(capability.name, Finding::Good, "there".to_owned(), None)
            } else {
                check(capability.name, Finding::Limited, format!("missing: {}", capability.without), None)
            }
        })),
        Err(error) => checks.push(check("capabilities", Finding::Limited, error.to_string(), None)),
    }
    let limits = Knob::ALL.into_iter().map(|knob| match host.enforcer(knob) {
        Ok(by) => Enforced { limit: knob.name().to_owned(), by: Some(by), why: None },
        Err(error) => Enforced { limit: knob.name().to_owned(), by: None, why: Some(error.to_string()) },
    });
    let limits = limits.collect();
    let is_fit = checks.iter().all(|check| check.outcome != Finding::Bad);
    Doctor { is_fit, checks, limits }
}

fn check(name: &str, outcome: Finding, detail: String, remedy: Option<String>) -> Check {
    Check { name: name.to_owned(), outcome, detail, remedy }
}

/// Says whether the root cgroup can be made where it is to be.
fn root(host: &Host, settings: &Settings) -> Check {
    let root = host.cgroup2.join(settings.cgroup());
    let nearest = root.ancestors().find(|place| place.is_dir()).unwrap_or(&host.cgroup2);
    let name = "root cgroup";
    match rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK) {
        Ok(()) => check(name, Finding::Good, format!("{} can be made", root.display()), None),
        Err(errno) => {
            let remedy = cgroup::remedy(errno).map(str::to_owned);
            check(name, Finding::Bad, format!("{}: {}", nearest.display(), errno_text(errno)), remedy)
        }
    }
}

/// Lists the limits that hold for the herd from outside.
fn above(host: &Host, settings: &Settings) -> Check {
    let limits = cgroup::limits_above(host, settings.cgroup());
    let shown: Vec<String> = limits.iter().map(ToString::to_string).collect();
    let detail = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
    check("limits above", Finding::Good, detail, None)
}

/// Tries what start-up tries: whether a child can be cloned into a fresh cgroup. Leaves nothing.
fn canary(host: &Host, settings: &Settings) -> Check {
    let name = "clone into a cgroup";
    // Where the root cgroup is or is to be: elsewhere nothing may be made.
    let root = host.cgroup2.join(settings.cgroup());
    let place = root.ancestors().find(|place| place.is_dir()).unwrap_or(&host.cgroup2);
    let place = place.strip_prefix(&host.cgroup2).unwrap_or(place);
    let root = place.join(format!("treeherd-doctor-{}", std::process::id())).display().to_string();
    let tried = Cgroups::create(Arc::new(host.clone()), &root).and_then(|cgroups| {
        let way = super::start::canary(&cgroups);
        cgroups.remove_root()?;
        way
    });
    match tried {
        Ok(Way::CloneInto) => check(name, Finding::Good, "works".to_owned(), None),
        Ok(Way::EnterItself) => {
            let detail = "children are killed at birth here (this process's own cgroup was killed once); they enter by themselves";
            check(
                name,
                Finding::Limited,
                detail.to_owned(),
                Some("a daemon in a fresh cgroup is not affected".to_owned()),
            )
        }
        Err(error) => check(name, Finding::Bad, error.message, error.remedy),
    }
}

/// Says whether the output on disk is bounded where it is kept.
fn output(settings: &Settings) -> Check {
    let name = "bounded output";
    let shown = settings.state_dir.display();
    if !settings.state_dir.is_dir() {
        return check(
            name,
            Finding::Good,
            format!("{shown} is not there yet; it is looked at when a daemon makes it"),
            None,
        );
    }
    match Store::open(&settings.state_dir) {
        Ok(store) if store.punches() => check(name, Finding::Good, format!("{shown} gives space back"), None),
        Ok(_) => {
            let remedy = "use a --state-dir on ext4, xfs, btrfs or tmpfs";
            check(name, Finding::Limited, format!("{shown} cannot punch holes"), Some(remedy.to_owned()))
        }
        Err(error) => check(name, Finding::Bad, error.message, error.remedy),
    }
}

/// Says how many agents can be watched: each takes up to four watches.
fn watches() -> Check {
    let name = "inotify watches";
    let file = "/proc/sys/fs/inotify/max_user_watches";
    let most = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match most {
        Some(most) if most >= 65_536 => {
            check(name, Finding::Good, format!("{most}, enough for {} agents", most / 4), None)
        }
        Some(most) => {
            let remedy = "sysctl fs.inotify.max_user_watches=524288";
            check(name, Finding::Limited, format!("{most}, enough for {} agents", most / 4), Some(remedy.to_owned()))
        }
        None => check(name, Finding::Bad, format!("{file} cannot be read"), Some("mount /proc".to_owned())),
    }
}

/// Says how many agents there can be descriptors for: each takes one, those with a v1 memory limit two.
fn descriptors() -> Check {
    match process::raise_descriptor_limit() {
        Ok(most) => check("descriptors", Finding::Good, format!("{most} (RLIMIT_NOFILE)"), None),
        Err(error) => check("descriptors", Finding::Limited, error.to_string(), None),
    }
}

fn controller_check(host: &Host, controller: Controller) -> Check {
    let name = format!("controller {controller}");
    match host.binding(controller) {
        Binding::V2 => check(&name, Finding::Good, "cgroup2".to_owned(), None),
        Binding::V1 { mount } => check(&name, Finding::Good, format!("v1 at {}", mount.display()), None),
        Binding::Absent { why } => {
            let remedy = format!(
                "its limits are refused; see cgroup_disable= on the kernel's command line, or delegate {controller}"
            );
            check(&name, Finding::Limited, why.clone(), Some(remedy))
        }
    }
}
