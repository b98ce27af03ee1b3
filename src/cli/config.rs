//! `config show`: every setting of the herd, and where it comes from.

use std::process::ExitCode;

use super::args::Global;
use super::failure::Done;
use super::link::connect;
use super::screen::{Cell, DIM, PLAIN, Screen};
use crate::api::method::{Call, Configured, Nothing};

/// `config show`
pub(super) fn show(global: &Global, screen: &mut Screen) -> Done {
    let configured: Configured = connect(global)?.call(&Call::Config(Nothing {}))?;
    if screen.is_json {
        screen.json(&configured.settings)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<Cell>> = configured
        .settings
        .iter()
        .map(|(name, setting)| {
            let style = if setting.origin == "default" { DIM } else { PLAIN };
            let cells = [name.clone(), setting.value.to_string(), setting.origin.clone()];
            cells.into_iter().map(|text| Cell::new(text).style(style)).collect()
        })
        .collect();
    screen.table(&["SETTING", "VALUE", "FROM"], &rows)?;
    Ok(ExitCode::SUCCESS)
}
