//! What this host offers: every check that start-up makes, and which limit is enforced by what.

use super::settings::Settings;
use crate::api::method::{Check, Doctor, Enforced, Finding};
use crate::kernel::host::{Binding, Host, KernelVersion, Layout};
use crate::kernel::process;
use crate::model::limits::{Controller, Knob};

/// Looks at the host, changing nothing. Works without a daemon.
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
    let root = host.cgroup2.join(settings.cgroup.trim_matches('/'));
    let nearest = root.ancestors().find(|place| place.is_dir()).unwrap_or(&host.cgroup2);
    let name = "root cgroup";
    match rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK) {
        Ok(()) => check(name, Finding::Good, format!("{} can be made", root.display()), None),
        Err(errno) => {
            let remedy =
                "run as root, or within a delegated cgroup: systemd-run --user --scope -p Delegate=yes treeherd …";
            check(name, Finding::Bad, format!("{}: {errno}", nearest.display()), Some(remedy.to_owned()))
        }
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
