//! The program: the command line, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    treeherd::cli::main()
}
