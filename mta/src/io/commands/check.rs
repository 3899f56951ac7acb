//! `check`: every error and warning in the manifests.

use std::process::ExitCode;

use sekimori_crds::compile::{Problem, Severity};
use serde_json::json;

use super::{REFUSED, fail};
use crate::cli::{CheckArgs, Output};
use crate::config::{Config, ConfigError};
use crate::io::control::{Manifests, Source};
use crate::io::tls;

/// Reads, compiles, and prints what is wrong.
pub fn run(args: &CheckArgs) -> ExitCode {
    let source = Source::new(&args.source.manifests, &args.source.local);
    let manifests = match Manifests::read(&source.dir, &source.options) {
        Ok(manifests) => manifests,
        Err(error) => return fail(REFUSED, error),
    };
    let mut errors: Vec<String> = vec![];
    match Config::compile(&manifests.compiled.snapshot, &[]) {
        Ok(config) => errors.extend(config.fleet.listeners.iter().filter_map(|part| tls::server_config(part).err()).map(|error| error.to_string())),
        // Why there is none is said already.
        Err(ConfigError::NoFleet) if manifests.problems().any(|problem| problem.severity == Severity::Error) => {}
        Err(error) => errors.push(error.to_string()),
    }
    let count = |severity| manifests.problems().filter(|problem| problem.severity == severity).count();
    let (rejected, warnings) = (count(Severity::Error) + errors.len(), count(Severity::Warning));
    let tenants = manifests.compiled.snapshot.tenants().count();
    match args.output {
        Output::Json => {
            let problems: Vec<_> = manifests.problems().map(problem).collect();
            let hash = manifests.compiled.snapshot.hash().to_string();
            println!("{}", json!({ "problems": problems, "errors": errors, "tenants": tenants, "hash": hash }));
        }
        Output::Text => {
            manifests.problems().for_each(|problem| println!("{problem}"));
            errors.iter().for_each(|error| println!("error: {error}"));
            println!("{}, {}, {}", counted(tenants, "tenant"), counted(rejected, "error"), counted(warnings, "warning"));
        }
    }
    if rejected == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn problem(problem: &Problem) -> serde_json::Value {
    json!({
        "severity": format!("{:?}", problem.severity), "source": problem.source, "object": problem.object, "field": problem.field,
        "reason": format!("{:?}", problem.reason), "message": problem.message,
    })
}
