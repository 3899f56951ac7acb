//! `cluster quickstart`: images, a cluster, both charts, and mail that flows.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;

use super::process::wait_until;
use super::{Cluster, Options};
use crate::images::archive::Archive;
use crate::images::recipes;

/// Where the operator is installed, and the fleet too.
pub(super) const NAMESPACE: &str = "sekimori-system";
/// The values' names of our images, and the images.
const IMAGES: [(&str, &str); 4] =
    [("operator", "sekimori-operator"), ("gateway", "sekimori-mta"), ("idle", "sekimori-slot-idle"), ("tools", "sekimori-e2e")];

/// What the quickstart is made of.
#[derive(Args, Debug)]
pub struct Quickstart {
    #[command(flatten)]
    pub(super) name: super::cli::Name,
    /// Nodes
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Where our built programs are
    #[arg(long, default_value = "target/release")]
    binaries: PathBuf,
    /// Where the charts are
    #[arg(long, default_value = "helm")]
    charts: PathBuf,
    /// Return when mail flows, and leave the cluster running
    #[arg(long)]
    pub(super) detach: bool,
}

impl Quickstart {
    /// The cluster, with mail flowing. Its name is free or the remains of a run that died.
    pub(super) fn up(&self) -> anyhow::Result<Cluster> {
        let started = Instant::now();
        let said = |what: &str| println!("{:>6.1} s  {what}", started.elapsed().as_secs_f64());
        let directory = tempfile::tempdir()?;
        let images = images(&self.binaries, directory.path())?;
        said("images packed");
        let cluster = Cluster::up(Options {
            nodes: self.nodes,
            name: self.name.name.clone(),
            images: images.iter().map(|image| image.file.clone()).collect(),
            detached: self.detach,
            ..Options::default()
        })?;
        said("cluster up");
        let installed = Instant::now();
        let done = install(&cluster, &self.charts, &images, &["quickstart.enabled=true".into()]).and_then(|()| {
            said("charts installed");
            wait(&cluster)
        });
        if let Err(error) = done {
            explain(&cluster);
            if self.detach {
                println!("the cluster stays for a look: {} cluster down --name {} takes it down", super::cli::us(), self.name.name);
            }
            return Err(error);
        }
        said(&format!("mail flows, {:.1} s after `helm install` began", installed.elapsed().as_secs_f64()));
        Ok(cluster)
    }

    /// What to try now.
    pub(super) fn next(&self) {
        let (name, us) = (&self.name.name, format!("{} cluster", super::cli::us()));
        println!(
            "\nNext:\n  {us} kubectl --name {name} get sekimori -A\n  {us} helm --name {name} test sekimori -n {NAMESPACE} --logs\n  \
             {us} kubectl --name {name} logs -n {NAMESPACE} deployment/quickstart-sink -f\n  \
             {us} run --name {name} bash      # a shell where pods and Services answer, with kubectl, helm and `kubectl sekimori`\n  \
             {us} down --name {name}"
        );
    }
}

/// Packs what the charts need.
pub(super) fn images(binaries: &Path, directory: &Path) -> anyhow::Result<Vec<Archive>> {
    recipes::build(&IMAGES.map(|(_, image)| image.to_owned()), binaries, env!("CARGO_PKG_VERSION"), directory)
}

/// Installs both charts with these images, and with more values.
pub(super) fn install(cluster: &Cluster, charts: &Path, images: &[Archive], more: &[String]) -> anyhow::Result<()> {
    let chart = |name: &str| {
        let path = charts.join(name);
        path.is_dir()
            .then(|| path.display().to_string())
            .with_context(|| format!("{}: no such chart; run this from the repository's root", path.display()))
    };
    cluster.helm(&["install", "sekimori-crds", &chart("sekimori-crds")?, "--namespace", NAMESPACE, "--create-namespace"])?;
    // The second chart asks the API server whether it knows the kinds.
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], None)?;
    let mut values = vec![format!("image.registry={}", recipes::REGISTRY), "clusterNetworks={10.88.0.0/16,10.96.0.0/24,10.250.0.0/24}".into()];
    for (value, name) in IMAGES {
        let image = images.iter().find(|image| image.repository.ends_with(&format!("/{name}"))).with_context(|| format!("no image {name}"))?;
        values.push(format!("images.{value}.repository={name}"));
        values.push(format!("images.{value}.digest={}", image.digest));
    }
    values.extend_from_slice(more);
    let mut arguments = vec!["install".to_owned(), "sekimori".into(), chart("sekimori")?, "--namespace".into(), NAMESPACE.into()];
    for value in values {
        arguments.extend(["--set".to_owned(), value]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    cluster.helm(&arguments).map(drop)
}

/// Until the fleet and its tenant are Ready and mail gets through.
fn wait(cluster: &Cluster) -> anyhow::Result<()> {
    for object in ["deployment/sekimori-operator", "gatewayfleet/quickstart", "tenantdomain/example-com"] {
        let condition = if object.starts_with("deployment") { "--for=condition=Available" } else { "--for=condition=Ready" };
        let arguments = ["wait", condition, object, "--namespace", NAMESPACE, "--timeout=120s"];
        cluster.kubectl_within(&arguments, None, Duration::from_secs(130))?.checked()?;
    }
    let address = cluster
        .kubectl(&["get", "service/quickstart-smtp", "--namespace", NAMESPACE, "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"], None)?;
    let mut probe = cluster.run_in_control_namespace(std::env::current_exe()?);
    let status = probe.args(["probe", "--recipient=user@example.com", "--wait=60", "--gateway", &address]).status()?;
    ensure!(status.success(), "the gateway at {address} does not do what it should");
    wait_until("the clean message arrives at the sink", Duration::from_secs(30), || {
        let printed = cluster.kubectl(&["logs", "deployment/quickstart-sink", "--namespace", NAMESPACE], None)?;
        ensure!(printed.contains("to <user@example.com>"), "the sink prints: {printed}");
        Ok(())
    })
}

/// What one would look at first.
fn explain(cluster: &Cluster) {
    show(
        cluster,
        &[
            &["get", "pods,sekimori", "--namespace", NAMESPACE, "-o", "wide"],
            &["get", "events", "--namespace", NAMESPACE, "--sort-by=.lastTimestamp"],
            &["logs", "deployment/sekimori-operator", "--namespace", NAMESPACE, "--tail=20"],
        ],
    );
}

/// What these commands of kubectl say, on standard error.
pub(super) fn show(cluster: &Cluster, commands: &[&[&str]]) {
    for arguments in commands {
        eprintln!("\nkubectl {}\n{}", arguments.join(" "), cluster.kubectl(arguments, None).unwrap_or_else(|error| format!("{error:#}")));
    }
}
