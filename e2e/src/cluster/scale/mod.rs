//! `cluster scale`: the figures that need everything: a real API server, two operators, a fleet, and very many tenants.
//!
//! This process makes the cluster and installs the charts, then starts itself again in the control plane's network namespace, where the API server and the
//! pods answer; there [`run`] measures. However that ends, the cluster is taken down.

mod api;
mod changes;
mod processes;
mod report;
mod run;
mod smtp;
mod tenants;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};

use super::quickstart::{self, NAMESPACE};
use super::{Cluster, Options, Signals, interruptible};

/// The operator's Deployment, with whose name its pods' names begin.
const OPERATOR: &str = "sekimori-operator";

/// What is measured.
#[derive(Args, Clone, Debug)]
pub struct Scale {
    /// The cluster's name; it is made anew, and taken down at the end
    #[arg(long, default_value = "scale")]
    name: String,
    /// Nodes
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Where our built programs are
    #[arg(long, default_value = "target/release")]
    binaries: PathBuf,
    /// Where the charts are
    #[arg(long, default_value = "helm")]
    charts: PathBuf,
    /// TenantDomains, before the changes
    #[arg(long, default_value_t = 100_000)]
    tenants: usize,
    /// Namespaces that they are spread over
    #[arg(long, default_value_t = 100)]
    namespaces: usize,
    /// Gateways, before one more is ordered
    #[arg(long, default_value_t = 3)]
    gateways: usize,
    /// Tenants that are made or changed each minute, half and half
    #[arg(long, default_value_t = 1_000)]
    changes_per_minute: u32,
    /// Minutes of changes
    #[arg(long, default_value_t = 2)]
    minutes: u32,
    /// Seconds for which the idle operator is watched
    #[arg(long, default_value_t = 120)]
    idle_seconds: u32,
    /// Minutes to wait until each tenant's status is written; then the run goes on, and the idle operator is not measured. Default: as long as it takes
    #[arg(long)]
    programmed_minutes: Option<u64>,
    /// Requests to the API server at once while tenants are made
    #[arg(long, default_value_t = 16)]
    writers: usize,
    /// What is printed at the end; progress goes to standard error
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Append the figures to this file
    #[arg(long)]
    write: Option<PathBuf>,
    /// For itself: measure at the cluster of this name, from within its network
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

/// Does it. A missed goal is a figure like any other; an error is one.
pub(super) async fn main(scale: Scale) -> anyhow::Result<i32> {
    if scale.inside {
        return inside(&scale).await.map(|()| 0);
    }
    ensure!(scale.tenants > 0 && scale.namespaces > 0 && scale.gateways > 0 && scale.writers > 0, "none of it may be 0");
    ensure!(scale.namespaces <= 1_000, "--namespaces {}: at most 1000", scale.namespaces);
    // Heard from the first moment on: the cluster must be away before this process is.
    let mut signals = Signals::new()?;
    let (name, made) = (scale.name.clone(), scale.clone());
    let cluster = interruptible(move || up(&made)).await?;
    let inside = cluster.run_in_control_namespace(std::env::current_exe()?);
    let mut inside = tokio::process::Command::from(inside);
    let mut child = inside.args(std::env::args_os().skip(1)).arg("--inside").kill_on_drop(true).spawn()?;
    let code = tokio::select! {
        status = child.wait() => status?.code(),
        () = signals.next() => None,
    };
    // Before the cluster goes, so that nothing asks a cluster that is not there.
    child.kill().await.ok();
    let began = Instant::now();
    tokio::task::spawn_blocking(move || drop(cluster)).await?;
    ensure!(super::state::State::read(&name).is_none(), "something of cluster {name} is left: `sekimori-e2e cluster down --name {name}` tries again");
    eprintln!("the cluster is down, after {:.1} s", began.elapsed().as_secs_f64());
    Ok(code.unwrap_or(1))
}

/// A cluster with both charts.
fn up(scale: &Scale) -> anyhow::Result<Cluster> {
    let began = Instant::now();
    let directory = tempfile::tempdir()?;
    let images = quickstart::images(&scale.binaries, directory.path())?;
    let cluster = Cluster::up(Options {
        nodes: scale.nodes,
        name: scale.name.clone(),
        images: images.iter().map(|image| image.file.clone()).collect(),
        ..Options::default()
    })?;
    quickstart::install(&cluster, &scale.charts, &images, &["quickstart.enabled=false".into()])?;
    let rollout = ["rollout", "status", &format!("deployment/{OPERATOR}"), "--namespace", NAMESPACE, "--timeout=120s"];
    cluster.kubectl_within(&rollout, None, std::time::Duration::from_secs(130))?.checked()?;
    eprintln!("{:>7.1} s  cluster {} and both charts", began.elapsed().as_secs_f64(), scale.name);
    Ok(cluster)
}

async fn inside(scale: &Scale) -> anyhow::Result<()> {
    let cluster = Cluster::attach(&scale.name)?;
    let machine = report::Machine::here(scale.command());
    let figures = match run::measure(scale, &cluster, machine).await {
        Ok(figures) => figures,
        Err(error) => {
            // Of 100,000 tenants nothing is shown.
            let (operators, gateways) = ("app.kubernetes.io/component=operator", format!("sekimori.dev/fleet={}", tenants::FLEET));
            quickstart::show(
                &cluster,
                &[
                    &["get", "pods,gatewayfleets", "--all-namespaces", "-o", "wide"],
                    &["get", "events", "--namespace", tenants::FLEET_NAMESPACE, "--sort-by=.lastTimestamp"],
                    &["logs", "--namespace", NAMESPACE, "-l", operators, "--tail=20", "--prefix"],
                    &["logs", "--namespace", tenants::FLEET_NAMESPACE, "-l", &gateways, "-c", "mta", "--tail=10", "--prefix"],
                ],
            );
            return Err(error);
        }
    };
    match scale.output {
        Output::Table => println!("{}", figures.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&figures)?),
    }
    if let Some(path) = &scale.write {
        let before = std::fs::read_to_string(path).unwrap_or_default();
        std::fs::write(path, before + &figures.section()).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

impl Scale {
    /// The command as somebody else would type it: what was measured, not where on this machine.
    fn command(&self) -> String {
        let Self { tenants, namespaces, gateways, changes_per_minute, minutes, .. } = self;
        let profile = self.binaries.file_name().map_or_else(String::new, |name| format!(" (programs: {})", name.to_string_lossy()));
        format!(
            "sekimori-e2e cluster scale --tenants {tenants} --namespaces {namespaces} --gateways {gateways} --changes-per-minute {changes_per_minute} --minutes \
             {minutes}{profile}"
        )
    }
}
