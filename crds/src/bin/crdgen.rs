//! Prints what is generated from the types: the CustomResourceDefinitions as YAML (no argument), or a page (`fields`, `defaults`).

use std::io::{self, Write};
use std::process::ExitCode;

use sekimori_crds::reference;

fn main() -> ExitCode {
    let text = match std::env::args().nth(1).as_deref() {
        None => reference::definitions().into_iter().map(|(_, yaml)| format!("---\n{yaml}")).collect(),
        Some("fields") => reference::fields_page(),
        Some("defaults") => reference::defaults_page(),
        Some(_) => {
            return if writeln!(io::stderr(), "usage: crdgen [fields|defaults]").is_ok() { ExitCode::from(2) } else { ExitCode::FAILURE };
        }
    };
    if io::stdout().write_all(text.as_bytes()).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
