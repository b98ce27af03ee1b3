//! What the host offers.

use std::process::ExitCode;

use super::args::{DoctorArgs, Global};
use super::failure::{Done, FAILED};
use super::link::{connect, state_dir};
use super::screen::{BAD, BOLD, Cell, DIM, GOOD, Screen, WARN, plain};
use crate::api::method::{Call, Doctor, Finding, Nothing};
use crate::daemon;

/// `doctor`: asks the daemon if one answers, and looks for itself if not.
pub(super) fn doctor(global: &Global, args: DoctorArgs, screen: &mut Screen) -> Done {
    let answered = connect(global).ok().and_then(|mut daemon| daemon.call::<Doctor>(&Call::Doctor(Nothing {})).ok());
    let doctor = answered.unwrap_or_else(|| {
        let mut settings = daemon::Settings::new(state_dir(global));
        // Why the host cannot be read is among the checks.
        if let Ok(seat) = daemon::choose_seat(args.cgroup.as_deref(), daemon::DEFAULT_CGROUP) {
            settings.cgroup = seat.cgroup;
        }
        daemon::doctor(&settings)
    });
    if screen.is_json {
        screen.json(&doctor)?
    } else {
        show(&doctor, screen)?
    }
    Ok(if doctor.is_fit { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn show(doctor: &Doctor, screen: &mut Screen) -> std::io::Result<()> {
    for check in &doctor.checks {
        let (mark, style) = match check.outcome {
            Finding::Good => ("good   ", GOOD),
            Finding::Limited => ("limited", WARN),
            Finding::Bad => ("bad    ", BAD),
        };
        let name = screen.paint(BOLD, &format!("{:<20}", plain(&check.name)));
        screen.line(&format!("{} {name} {}", screen.paint(style, mark), plain(&check.detail)))?;
        if let Some(remedy) = &check.remedy {
            screen.line(&format!("  help: {}", plain(remedy)))?;
        }
    }
    if !doctor.limits.is_empty() {
        screen.line("")?;
        let rows: Vec<_> = doctor
            .limits
            .iter()
            .map(|limit| {
                let by = match (&limit.by, &limit.why) {
                    (Some(by), _) => Cell::new(by.as_str()),
                    (None, Some(why)) => Cell::new(format!("refused: {why}")).style(WARN),
                    (None, None) => Cell::new("refused").style(WARN),
                };
                vec![Cell::new(limit.limit.as_str()).style(BOLD), by]
            })
            .collect();
        screen.table(&["LIMIT", "ENFORCED BY"], &rows)?;
    }
    let verdict = if doctor.is_fit { "a supervisor can work here" } else { "no supervisor can work here" };
    let style = if doctor.is_fit { DIM } else { BAD };
    let verdict = screen.paint(style, verdict);
    screen.line(&verdict)
}
