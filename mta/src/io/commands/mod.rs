//! The verbs of the command line that do not serve: `check`, `scan`, `queue`, `quarantine`.

pub mod check;
pub mod client;
pub mod kept;
pub mod scan;

use std::process::ExitCode;

/// The input was refused.
pub const REFUSED: u8 = 1;
/// The call was wrong.
pub const USAGE: u8 = 2;
/// A state directory that must not be used.
pub const STATE: u8 = 3;

/// Prints an error for people and gives the exit code.
pub(crate) fn fail(code: u8, error: impl std::fmt::Display) -> ExitCode {
    eprintln!("sekimori-mta: {error}");
    ExitCode::from(code)
}
