//! Both charts, installed once for all scenarios that need them; and fleets in namespaces of their own, with mail through them and the books of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sekimori_e2e::cluster::{CONTROL_ADDRESS, Cluster, STORAGE_CLASS, TEST_ZONE_PORT};
use sekimori_e2e::dns;
use sekimori_e2e::images::{archive::Archive, recipes};
use sekimori_e2e::ledger::{Balance, Ledger};
use sekimori_e2e::probe::{self, Probe};
use sekimori_e2e::sink::Sink;
use sekimori_e2e::source::{self, Load};
use serde_json::Value;

use crate::support::{Namespace, Stage, eventually};

/// Where the operator is.
pub(crate) const SYSTEM: &str = "sekimori-system";
/// The only fleet of a scenario's namespace.
pub(crate) const FLEET: &str = "gate";
/// The values' names of our images, and the images.
const IMAGES: [(&str, &str); 4] =
    [("operator", "sekimori-operator"), ("gateway", "sekimori-mta"), ("idle", "sekimori-slot-idle"), ("tools", "sekimori-e2e")];
/// What a load may take until the gateway has answered all of it.
const LOAD_WITHIN: Duration = Duration::from_secs(60);

/// The charts, installed.
pub(crate) struct Installation {
    /// Sinks and sources run in it.
    runtime: tokio::runtime::Runtime,
    /// `helm upgrade` of the chart `sekimori` with the values that it has.
    upgrade: Vec<String>,
    /// How long it took until the operator was there.
    pub(crate) seconds: f64,
    next: AtomicU64,
}

impl Installation {
    /// Packs and loads the images, then `helm install`; returns when the operator is available.
    pub(crate) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let names = IMAGES.map(|(_, image)| image.to_owned());
        let images = recipes::build(&names, &binary("sekimori-mta")?.with_file_name(""), "e2e", directory.path())?;
        for image in &images {
            stage.cluster.load_image(&image.file)?;
        }
        let started = Instant::now();
        let crds = ["upgrade", "--install", "sekimori-crds", &chart("sekimori-crds")?, "--namespace", SYSTEM, "--create-namespace"];
        // Another scenario may have applied the definitions before.
        stage.cluster.helm(&[crds.as_slice(), &["--take-ownership", "--force-conflicts"]].concat())?;
        stage.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        let mut upgrade: Vec<String> = ["upgrade", "--install", "sekimori", &chart("sekimori")?, "--namespace", SYSTEM].map(str::to_owned).to_vec();
        for value in values(&images)? {
            upgrade.extend(["--set".to_owned(), value]);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut installation = Self { runtime, upgrade, seconds: 0.0, next: AtomicU64::new(1) };
        installation.upgrade(&stage.cluster, &[])?;
        installation.seconds = started.elapsed().as_secs_f64();
        Ok(installation)
    }

    /// `helm upgrade` with these arguments more; returns when the operator is available.
    pub(crate) fn upgrade(&self, cluster: &Cluster, more: &[&str]) -> anyhow::Result<()> {
        let arguments: Vec<&str> = self.upgrade.iter().map(String::as_str).chain(more.iter().copied()).collect();
        cluster.helm(&arguments)?;
        rolled_out(cluster)
    }

    /// A sink beside the cluster, with its books.
    pub(crate) fn sink(&self) -> anyhow::Result<(Arc<Sink>, Arc<Ledger>)> {
        let ledger = Arc::new(Ledger::default());
        let sink = self.runtime.block_on(Sink::start(SocketAddr::new(CONTROL_ADDRESS.into(), 0), Some(Arc::clone(&ledger)), true))?;
        Ok((sink, ledger))
    }

    /// Serves the part of the cluster's DNS that is ours to fill; empty at first, until the process ends.
    pub(crate) fn test_zone(&self) -> anyhow::Result<dns::Changing> {
        let zone = dns::Changing::default();
        let address = SocketAddr::new(CONTROL_ADDRESS.into(), TEST_ZONE_PORT);
        self.runtime.block_on(dns::serve_changing(address, Arc::clone(&zone)))?;
        Ok(zone)
    }

    /// Sends so many messages to a recipient; how many were answered 250, and how many were refused.
    pub(crate) fn post(&self, target: SocketAddr, recipient: &str, messages: u64, ledger: &Arc<Ledger>) -> anyhow::Result<Answers> {
        let before = ledger.balance();
        let load = Load {
            target,
            sessions: 2,
            messages,
            bytes: 4000,
            sender: "source@sender.example".into(),
            recipient: recipient.into(),
            per_session: 5,
            first: self.next.fetch_add(messages, Ordering::Relaxed),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let done = self.runtime.block_on(async {
            let sending = source::run(load, Arc::clone(ledger), Arc::clone(&stop));
            tokio::time::timeout(LOAD_WITHIN, sending).await
        });
        stop.store(true, Ordering::Relaxed);
        let after = ledger.balance();
        let answers = Answers { acknowledged: after.acknowledged - before.acknowledged, refused: after.refused - before.refused };
        ensure!(done.is_ok(), "{recipient} at {target}: {answers:?} of {messages} after {LOAD_WITHIN:?}");
        Ok(answers)
    }

    /// A clean message must be taken, EICAR and GTUBE must not be.
    pub(crate) fn probe(&self, target: SocketAddr, recipient: &str) -> anyhow::Result<()> {
        let probe =
            Probe { gateway: target.to_string(), sender: "probe@sender.example".into(), recipient: recipient.into(), wait: Duration::from_secs(30) };
        self.runtime.block_on(probe::run(&probe))
    }

    /// The same as [`Self::post`]; how often each reply code decided about a message.
    pub(crate) fn codes(&self, target: SocketAddr, recipient: &str, messages: u64, ledger: &Arc<Ledger>) -> anyhow::Result<BTreeMap<u16, u64>> {
        let before = ledger.codes();
        self.post(target, recipient, messages, ledger)?;
        let more = |(code, count): (u16, u64)| Some((code, count - before.get(&code).copied().unwrap_or(0))).filter(|(_, count)| *count > 0);
        Ok(ledger.codes().into_iter().filter_map(more).collect())
    }

    /// A fleet in a Namespace of its own, with the built-in engines and a sink; returns when it is Ready. `fields` are more of its spec.
    pub(crate) fn fleet<'a>(&'a self, stage: &'a Stage, namespace: &str, replicas: u32, fields: &str) -> anyhow::Result<Fleet<'a>> {
        let fleet = self.fleet_unready(stage, namespace, replicas, fields)?;
        fleet.namespace.wait(&format!("gatewayfleet/{FLEET}"), "condition=Ready", 90).with_context(|| fleet.explain())?;
        Ok(fleet)
    }

    /// The same, without waiting.
    pub(crate) fn fleet_unready<'a>(&'a self, stage: &'a Stage, namespace: &str, replicas: u32, fields: &str) -> anyhow::Result<Fleet<'a>> {
        let namespace = stage.namespace(namespace)?;
        let (sink, ledger) = self.sink()?;
        let fleet = Fleet { installation: self, namespace, sink, ledger };
        fleet.namespace.apply(&manifest(replicas, fields))?;
        Ok(fleet)
    }
}

/// What a load was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
}

/// A fleet `gate`, and its tenants' server.
pub(crate) struct Fleet<'a> {
    pub(crate) installation: &'a Installation,
    pub(crate) namespace: Namespace<'a>,
    pub(crate) sink: Arc<Sink>,
    pub(crate) ledger: Arc<Ledger>,
}

impl Fleet<'_> {
    /// A tenant whose mail goes to the fleet's sink; `fields` are more of its spec.
    pub(crate) fn tenant(&self, name: &str, domain: &str, fields: &str) -> String {
        tenant(name, domain, &self.sink.address.ip().to_string(), self.sink.address.port(), fields)
    }

    /// Applies that tenant and waits until it is Ready.
    pub(crate) fn serve(&self, name: &str, domain: &str, fields: &str) -> anyhow::Result<()> {
        self.namespace.apply(&self.tenant(name, domain, fields))?;
        self.namespace.wait(&format!("tenantdomain/{name}"), "condition=Ready", 30).with_context(|| self.explain())
    }

    /// The Service for mail.
    pub(crate) fn service(&self) -> anyhow::Result<SocketAddr> {
        self.namespace.service(&format!("{FLEET}-smtp"))
    }

    /// The listener of one gateway.
    pub(crate) fn pod(&self, ordinal: usize) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(self.namespace.address(&format!("{FLEET}-gateway-{ordinal}"))?, 2525))
    }

    /// Sends through the Service; every message must be answered 250.
    pub(crate) fn post(&self, recipient: &str, messages: u64) -> anyhow::Result<()> {
        self.post_to(self.service()?, recipient, messages)
    }

    /// The same to one gateway.
    pub(crate) fn post_to(&self, target: SocketAddr, recipient: &str, messages: u64) -> anyhow::Result<()> {
        let answers = self.installation.post(target, recipient, messages, &self.ledger)?;
        ensure!(answers == Answers { acknowledged: messages, refused: 0 }, "{recipient} at {target}: {answers:?}\n{}", self.explain());
        Ok(())
    }

    /// Until every 250 has arrived; nothing may be damaged.
    pub(crate) fn settle(&self, seconds: u64) -> anyhow::Result<Balance> {
        eventually("every 250 arrives", seconds, || {
            let balance = self.ledger.balance();
            ensure!(balance.missing == 0, "{balance:?}");
            Ok(())
        })
        .with_context(|| self.explain())?;
        let balance = self.ledger.balance();
        ensure!(balance.damaged == 0, "{balance:?}");
        Ok(balance)
    }

    /// `kubectl sekimori ARGUMENTS --output json` in the fleet's Namespace.
    pub(crate) fn sekimori(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.namespace.sekimori(arguments)
    }

    /// `kubectl sekimori ARGUMENTS` in the fleet's Namespace, as people see it.
    pub(crate) fn shown(&self, arguments: &[&str]) -> anyhow::Result<String> {
        Ok(self.namespace.plugin(arguments)?.stdout)
    }

    /// Messages in the queues of all gateways.
    pub(crate) fn queue(&self) -> anyhow::Result<Vec<Value>> {
        let listed = self.sekimori(&["queue", "list", "--fleet", FLEET])?;
        ensure!(listed["complete"] == true, "{listed}");
        listed["messages"].as_array().cloned().context("messages")
    }

    /// The gateways' pods and their uids.
    pub(crate) fn uids(&self) -> anyhow::Result<Vec<String>> {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
        let listed = self.namespace.kubectl(&["get", "pods", "-l", &format!("sekimori.dev/fleet={FLEET}"), "-o", path])?;
        let mut uids: Vec<String> = listed.lines().map(str::to_owned).collect();
        uids.sort();
        Ok(uids)
    }

    /// The addresses that the Service sends mail to.
    pub(crate) fn endpoints(&self) -> anyhow::Result<Vec<String>> {
        let service = format!("kubernetes.io/service-name={FLEET}-smtp");
        let path = "jsonpath={range .items[*].endpoints[?(@.conditions.ready==true)]}{.addresses[0]}{\"\\n\"}{end}";
        let listed = self.namespace.kubectl(&["get", "endpointslices", "-l", &service, "-o", path])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// What one would look at first.
    pub(crate) fn explain(&self) -> String {
        let shown = |arguments: &[&str]| self.namespace.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        let log = ["logs", "--namespace", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--tail=15", "--prefix"];
        format!(
            "{}\n{}\n{}",
            shown(&["get", "pods,pvc,gatewayfleets,tenantdomains", "-o", "wide"]),
            shown(&["get", "events", "--sort-by=.lastTimestamp"]),
            self.namespace.stage.kubectl(&log).unwrap_or_else(|error| format!("{error:#}"))
        )
    }
}

/// A condition of an object.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A condition that speaks of the object as it is now.
pub(crate) fn condition(namespace: &Namespace<'_>, object: &str, kind: &str) -> anyhow::Result<Condition> {
    let json = namespace.json(object)?;
    let conditions = json.pointer("/status/conditions").and_then(Value::as_array).context("no conditions")?;
    let found = conditions.iter().find(|condition| condition["type"] == kind).with_context(|| format!("{object} has no condition {kind}"))?;
    ensure!(found["observedGeneration"] == json["metadata"]["generation"], "{object}: {kind} is of an older generation: {found}");
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    Ok(Condition { status: text("status"), reason: text("reason"), message: text("message") })
}

/// Waits for a condition's status and reason; its message.
pub(crate) fn until(namespace: &Namespace<'_>, object: &str, kind: &str, status: &str, reason: &str, seconds: u64) -> anyhow::Result<String> {
    let mut message = String::new();
    eventually(&format!("{object} {kind}={status} ({reason})"), seconds, || {
        let found = condition(namespace, object, kind)?;
        ensure!(found.status == status && found.reason == reason, "{found:?}");
        message = found.message;
        Ok(())
    })?;
    Ok(message)
}

/// Until the operator's Deployment is as wanted.
pub(crate) fn rolled_out(cluster: &Cluster) -> anyhow::Result<()> {
    let arguments = ["rollout", "status", "deployment/sekimori-operator", "--namespace", SYSTEM, "--timeout=120s"];
    cluster.kubectl_within(&arguments, None, Duration::from_secs(130))?.checked().map(drop)
}

/// One of our programs, built by `cargo test --workspace`.
pub(crate) fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let path = test.parent().and_then(Path::parent).context("target/PROFILE/deps/NAME")?.join(name);
    ensure!(path.exists(), "{} is missing: cargo build --workspace --bins", path.display());
    Ok(path)
}

fn chart(name: &str) -> anyhow::Result<String> {
    let path = sekimori_e2e::checkout().join("helm").join(name);
    path.to_str().map(str::to_owned).context("a path in UTF-8")
}

fn values(images: &[Archive]) -> anyhow::Result<Vec<String>> {
    let mut values = vec![
        format!("image.registry={}", recipes::REGISTRY),
        "quickstart.enabled=false".into(),
        "clusterNetworks={10.88.0.0/16,10.96.0.0/24,10.250.0.0/24}".into(),
    ];
    for (value, name) in IMAGES {
        let image = images.iter().find(|image| image.repository.ends_with(&format!("/{name}"))).with_context(|| format!("no image {name}"))?;
        values.push(format!("images.{value}.repository={name}"));
        values.push(format!("images.{value}.digest={}", image.digest));
    }
    Ok(values)
}

fn manifest(replicas: u32, fields: &str) -> String {
    let engines = if fields.contains("engines:") { "" } else { "  engines: [{name: builtin-virus}, {name: builtin-spam}]\n" };
    let listeners = if fields.contains("listeners:") { "" } else { "  listeners: [{name: smtp, port: 2525}]\n" };
    let tenants = if fields.contains("tenants:") { "" } else { "  tenants: {ownership: Trust}\n" };
    let spool = if fields.contains("spool:") { String::new() } else { format!("  spool: {{storage: 1Gi, storageClassName: {STORAGE_CLASS}}}\n") };
    format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: GatewayFleet\nmetadata: {{name: {FLEET}}}\nspec:\n  replicas: {replicas}\n  hostname: mx.gate.example\n  \
         service: {{type: ClusterIP}}\n{listeners}  egress: {{allowedNetworks: [10.250.0.0/24]}}\n  \
         drain: {{handOver: Wait}}\n{spool}{tenants}{engines}{fields}---\n\
         apiVersion: sekimori.dev/v1alpha1\nkind: Engine\nmetadata: {{name: builtin-virus}}\nspec: {{class: AntiVirus, protocol: {{type: Builtin}}}}\n---\n\
         apiVersion: sekimori.dev/v1alpha1\nkind: Engine\nmetadata: {{name: builtin-spam}}\nspec: {{class: AntiSpam, protocol: {{type: Builtin}}}}\n"
    )
}

/// A TenantDomain with one route; `fields` are more of its spec.
pub(crate) fn tenant(name: &str, domain: &str, host: &str, port: u16, fields: &str) -> String {
    format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: TenantDomain\nmetadata: {{name: {name}}}\nspec:\n  fleetRef: {{name: {FLEET}}}\n  domains: [\"{domain}\"]\n  \
         routes: [{{name: server, host: {host}, port: {port}, tls: {{mode: Disabled}}}}]\n{fields}"
    )
}
