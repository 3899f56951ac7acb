//! Scenarios on a real cluster of this machine, one after another: `cargo test -p sekimori-e2e --test cluster [FILTER...]`.
//!
//! This process makes the cluster, starts itself again in the control plane's network namespace (there pods, Services and the API server answer, and pods reach
//! what a scenario serves), and takes the cluster down however that ends. A run that was killed is cleared by the next one.
//!
//! Needs root. `SEKIMORI_E2E_KUBECONFIG=FILE` takes an existing cluster instead: what needs nodes of our own is then reported as skipped, never passed.
//! `SEKIMORI_E2E_CLUSTER=skip` skips all of it, and says so.

#![allow(clippy::disallowed_methods, reason = "tests measure time")]

mod api_faults;
mod bad_input;
mod bounds;
mod crash;
mod engines;
mod faults;
mod fleet;
mod handshake;
mod installation;
mod operator_faults;
mod pods;
mod schemas;
mod support;
mod tenants;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Context as _;
use sekimori_e2e::cluster::{Cluster, EXISTING, Options, Signals, interruptible};

use support::{Outcome, Scenario, Stage};

/// Set in the process that runs the scenarios: the cluster's name.
const INSIDE: &str = "SEKIMORI_E2E_INSIDE";
/// Set to run the long ones too.
const ALL: &str = "SEKIMORI_E2E_ALL";

fn scenarios() -> Vec<Scenario> {
    [
        pods::SCENARIOS,
        schemas::SCENARIOS,
        engines::SCENARIOS,
        faults::SCENARIOS,
        fleet::SCENARIOS,
        tenants::SCENARIOS,
        bad_input::SCENARIOS,
        api_faults::SCENARIOS,
        fleet::LAST,
        operator_faults::SCENARIOS,
        crash::SCENARIOS,
    ]
    .concat()
}

/// Areas that install the charts and let mail flow: all of them together take most of an hour, so they run when a filter names them, or all are asked for.
const LONG_AREAS: [&str; 5] = ["fleet::", "tenants::", "bad_input::", "api_faults::", "operator_faults::"];
/// Of those areas, what every change must pass.
const ALWAYS: [&str; 9] = [
    "fleet::install_to_mail",
    "fleet::a_broken_engine_image",
    "fleet::uninstall",
    "tenants::applied_to_served",
    "tenants::hijack",
    "operator_faults::two_operators_and_one_lease",
    "operator_faults::a_gateway_restarts_without_an_operator",
    "operator_faults::tokens",
    "operator_faults::the_installation_goes",
];

fn is_long(scenario: &Scenario) -> bool {
    LONG_AREAS.iter().any(|area| scenario.name.starts_with(area)) && !ALWAYS.contains(&scenario.name)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Flags are libtest's (`cargo test -- --nocapture` reaches every test binary); only --list means something here.
    let filters: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with('-')).collect();
    let chosen: Vec<Scenario> =
        scenarios().into_iter().filter(|scenario| filters.is_empty() || filters.iter().any(|filter| scenario.name.contains(filter))).collect();
    let all = std::env::var_os(ALL).is_some();
    let (chosen, left): (Vec<Scenario>, Vec<Scenario>) = chosen.into_iter().partition(|scenario| all || !filters.is_empty() || !is_long(scenario));
    if !left.is_empty() && std::env::var_os(INSIDE).is_none() {
        println!("NOT RUN here: {} long scenarios; `make e2e-long` runs them", left.len());
    }
    if arguments.iter().any(|argument| argument == "--list") {
        for scenario in chosen {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("SEKIMORI_E2E_CLUSTER").is_some_and(|value| value == "skip") {
        println!("SKIPPED: {} scenarios on a real cluster, because SEKIMORI_E2E_CLUSTER=skip", chosen.len());
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    let done = match (std::env::var(INSIDE), std::env::var_os(EXISTING)) {
        (Ok(name), _) => Cluster::attach(&name).map(|cluster| run(cluster, &chosen)),
        (Err(_), Some(kubeconfig)) => Cluster::existing(kubeconfig.into()).map(|cluster| run(cluster, &chosen)),
        (Err(_), None) => supervise(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cluster: {error:#}\n(SEKIMORI_E2E_CLUSTER=skip leaves the scenarios on a real cluster out)");
            ExitCode::FAILURE
        }
    }
}

/// Makes the cluster, runs the scenarios in it, takes it down.
fn supervise(arguments: &[String]) -> anyhow::Result<bool> {
    let name = Cluster::free_name("e2e")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = Instant::now();
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let options = Options { name: name.clone(), ..Options::default() };
        let cluster = interruptible(move || {
            let directory = tempfile::tempdir()?;
            Cluster::up(Options { images: support::base_images(directory.path())?, ..options })
        })
        .await?;
        println!("cluster {name}: 2 nodes after {:.1} s; logs in {}", started.elapsed().as_secs_f64(), cluster.scratch().join("log").display());
        let inside: Command = cluster.run_in_control_namespace(std::env::current_exe()?);
        let mut inside = tokio::process::Command::from(inside);
        let mut child = inside.args(arguments).env(INSIDE, &name).kill_on_drop(true).spawn()?;
        let status = tokio::select! {
            status = child.wait() => status?.success(),
            () = signals.next() => false,
        };
        drop(child);
        drop(cluster);
        anyhow::ensure!(Cluster::attach(&name).is_err(), "the cluster is not gone");
        Ok(status)
    })
}

fn run(cluster: Cluster, chosen: &[Scenario]) -> bool {
    let stage = Stage::new(cluster);
    let (mut failed, mut skipped) = (vec![], vec![]);
    println!("\nrunning {} scenarios", chosen.len());
    for scenario in chosen {
        if let Err(error) = stage.room_for_the_next() {
            println!("  volumes of former scenarios could not be made available again: {error:#}");
        }
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&stage)));
        let seconds = started.elapsed().as_secs_f64();
        let outcome = match outcome {
            Ok(Ok(Outcome::Passed)) => "ok".to_owned(),
            Ok(Ok(Outcome::Skipped(why))) => {
                skipped.push(scenario.name);
                format!("SKIPPED: {why}")
            }
            Ok(Err(error)) => {
                failed.push(scenario.name);
                format!("FAILED\n  {}", format!("{error:#}").replace('\n', "\n  "))
            }
            Err(_) => {
                failed.push(scenario.name);
                "FAILED (a panic, above)".to_owned()
            }
        };
        println!("scenario {} ... {outcome} ({seconds:.1} s)", scenario.name);
    }
    let passed = chosen.len() - failed.len() - skipped.len();
    println!("\nscenarios: {passed} passed, {} failed {failed:?}, {} skipped {skipped:?}\n", failed.len(), skipped.len());
    if let Err(error) = stage.finish().context("cleaning up") {
        println!("{error:#}");
        return false;
    }
    failed.is_empty()
}
