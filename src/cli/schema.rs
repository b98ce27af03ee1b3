//! `schema`: the contract, for programs and for those who write them. It needs no daemon.

use std::io;
use std::process::ExitCode;

use serde::Serialize;

use super::args::SchemaArgs;
use super::failure::Done;
use super::screen::Screen;
use crate::api::schema::Contract;
use crate::model::tree;

/// `schema`
pub(super) fn schema(args: &SchemaArgs, screen: &mut Screen) -> Done {
    if args.tree {
        print(&tree::schema(), screen)?
    } else {
        print(&Contract::new(), screen)?
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a document: on one line with `--json`.
fn print<T: Serialize>(document: &T, screen: &mut Screen) -> io::Result<()> {
    if screen.is_json {
        return screen.json(document);
    }
    screen.line(&serde_json::to_string_pretty(document)?)
}
