//! The charts in a namespace of these scenarios' own, with an operator that looks at this namespace alone.

use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use sekimori_e2e::cluster::CONTROL_ADDRESS;
use sekimori_e2e::images::recipes;
use serde_json::Value;

use super::traffic::SINK_PORT;
use crate::support::{Namespace, Stage, eventually};

/// Where operator and fleet are.
pub(super) const NAMESPACE: &str = "sekimori-faults";
/// Where every installation here puts the definitions.
const DEFINITIONS: &str = "sekimori-system";
/// The recipient of the load.
pub(super) const RECIPIENT: &str = "user@faults.example";
/// Where a gateway listens.
pub(super) const SMTP: u16 = 2525;
/// The values' names of our images, and the images.
const IMAGES: [(&str, &str); 4] =
    [("operator", "sekimori-operator"), ("gateway", "sekimori-mta"), ("idle", "sekimori-slot-idle"), ("tools", "sekimori-e2e")];

/// Whether it is there; scenarios run one after another.
static THERE: Mutex<bool> = Mutex::new(false);

/// The installation. It stays for the next scenario; `remove` is the last one.
pub(super) struct Installation<'a>(ManuallyDrop<Namespace<'a>>);

impl<'a> Deref for Installation<'a> {
    type Target = Namespace<'a>;

    fn deref(&self) -> &Namespace<'a> {
        &self.0
    }
}

fn chart(name: &str) -> String {
    sekimori_e2e::checkout().join("helm").join(name).display().to_string()
}

/// Our programs lie beside this one.
fn binaries() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    program.parent().and_then(Path::parent).map(Path::to_owned).context("a test lies in target/PROFILE/deps")
}

/// The installation, made by whoever asks first.
pub(super) fn installed(stage: &Stage) -> anyhow::Result<Installation<'_>> {
    let mut there = THERE.lock().ok().context("an earlier scenario broke while it installed")?;
    let namespace = Installation(ManuallyDrop::new(if *there { Namespace { stage, name: NAMESPACE.into() } } else { stage.namespace(NAMESPACE)? }));
    if !*there {
        install(stage, &namespace)?;
        *there = true;
    }
    namespace.is_well(60)?;
    Ok(namespace)
}

fn install(stage: &Stage, namespace: &Installation<'_>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let names = IMAGES.map(|(_, image)| image.to_owned());
    let mut values = vec![
        format!("image.registry={}", recipes::REGISTRY),
        "quickstart.enabled=true".into(),
        "clusterNetworks={10.88.0.0/16,10.96.0.0/24,10.250.0.0/24}".into(),
        format!("rbac.namespaces={{{NAMESPACE}}}"),
        "admissionPolicies.enabled=false".into(),
    ];
    for ((value, name), archive) in IMAGES.iter().zip(recipes::build(&names, &binaries()?, "faults", directory.path())?) {
        let image = stage.cluster.load_image(&archive.file)?;
        values.push(format!("images.{value}.repository={name}"));
        values.push(format!("images.{value}.digest={}", image.digest));
    }
    // The definitions of a release that is gone are still there.
    let definitions = ["upgrade", "--install", "sekimori-crds", &chart("sekimori-crds"), "--namespace", DEFINITIONS, "--create-namespace"];
    stage.cluster.helm(&[definitions.as_slice(), &["--take-ownership", "--force-conflicts"]].concat())?;
    stage.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
    helm(stage, "install", &values, &[])?;
    for (object, condition) in [("deployment/sekimori-operator", "condition=Available"), ("gatewayfleet/quickstart", "condition=Ready")] {
        namespace.wait(object, condition, 120)?;
    }
    namespace.apply(&tenant("faults"))?;
    namespace.wait("tenantdomain/faults", "condition=Programmed", 30)
}

fn helm(stage: &Stage, verb: &str, values: &[String], more: &[&str]) -> anyhow::Result<String> {
    let path = chart("sekimori");
    let mut arguments = vec![verb, "sekimori", &path, "--namespace", NAMESPACE];
    arguments.extend(more);
    for value in values {
        arguments.extend(["--set", value]);
    }
    stage.cluster.helm(&arguments)
}

/// A tenant for NAME.example whose mail comes to our sink.
pub(super) fn tenant(name: &str) -> String {
    tenant_to(name, SINK_PORT)
}

/// The same with a server at another port.
pub(super) fn tenant_to(name: &str, port: u16) -> String {
    format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: TenantDomain\nmetadata: {{name: {name}}}\nspec:\n  fleetRef: {{name: quickstart}}\n  domains: [{name}.example]\n  \
         routes: [{{name: sink, host: {CONTROL_ADDRESS}, port: {port}, tls: {{mode: Disabled}}}}]\n"
    )
}

/// A gateway's pod, as far as a restart would show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gateway {
    pub(super) name: String,
    pub(super) uid: String,
    restarts: Vec<i64>,
    pub(super) node: String,
    pub(super) address: String,
}

impl Gateway {
    /// Where it takes mail.
    pub(super) fn smtp(&self) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(self.address.parse().with_context(|| format!("{} has no address", self.name))?, SMTP))
    }
}

/// The Lease.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) holder: String,
    pub(super) epoch: u64,
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

impl Installation<'_> {
    /// Pods with a label.
    fn pods(&self, label: &str) -> anyhow::Result<Vec<Value>> {
        let listed: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-l", label, "-o", "json"])?)?;
        Ok(listed.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
    }

    /// The fleet's pods, by name.
    pub(super) fn gateways(&self) -> anyhow::Result<Vec<Gateway>> {
        let pods = self.pods("sekimori.dev/fleet=quickstart")?;
        let mut all: Vec<Gateway> = pods
            .iter()
            .map(|pod| Gateway {
                name: text(pod, "/metadata/name"),
                uid: text(pod, "/metadata/uid"),
                restarts: pod
                    .pointer("/status/containerStatuses")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|status| status.get("restartCount").and_then(Value::as_i64))
                    .collect(),
                node: text(pod, "/spec/nodeName"),
                address: text(pod, "/status/podIP"),
            })
            .collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        ensure!(all.len() == 2, "two gateways, please: {all:?}");
        Ok(all)
    }

    /// Names of the operators' pods, those that are not on their way out.
    pub(super) fn operators(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.pods("app.kubernetes.io/name=sekimori-operator")?;
        Ok(pods.iter().filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none()).map(|pod| text(pod, "/metadata/name")).collect())
    }

    /// Names of the pods that the stream's Service leads to.
    pub(super) fn labelled(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.pods("app.kubernetes.io/name=sekimori-operator,sekimori.dev/leader=true")?;
        Ok(pods.iter().map(|pod| text(pod, "/metadata/name")).collect())
    }

    pub(super) fn lease(&self) -> anyhow::Result<Lease> {
        let lease = self.json("lease/sekimori-operator")?;
        let epoch = text(&lease, "/metadata/annotations/sekimori.dev~1epoch").parse().context("the Lease's epoch")?;
        Ok(Lease { holder: text(&lease, "/spec/holderIdentity"), epoch })
    }

    /// Where the Service takes mail.
    pub(super) fn smtp(&self) -> anyhow::Result<SocketAddr> {
        self.service("quickstart-smtp")
    }

    /// A condition's status; empty if it is not there.
    pub(super) fn condition(&self, object: &str, name: &str) -> anyhow::Result<String> {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={{.status.conditions[?(@.type==\"{name}\")].status}}")])
    }

    /// Applies a tenant and waits until every gateway has it; how long that took, in seconds.
    pub(super) fn programs(&self, name: &str, within: u64) -> anyhow::Result<f64> {
        crate::support::seconds(|| {
            eventually("the tenant is applied", within, || self.apply(&tenant(name)))?;
            self.wait(&format!("tenantdomain/{name}"), "condition=Programmed", within)
        })
    }

    /// Scales the operator.
    pub(super) fn operators_are(&self, count: usize) -> anyhow::Result<()> {
        self.kubectl(&["scale", "deployment/sekimori-operator", &format!("--replicas={count}")])?;
        eventually("so many operators", 60, || {
            let pods = self.pods("app.kubernetes.io/name=sekimori-operator")?;
            ensure!(pods.len() == count, "{} pods, not {count}", pods.len());
            Ok(())
        })?;
        if count == 0 { Ok(()) } else { self.wait("deployment/sekimori-operator", &format!("jsonpath={{.status.readyReplicas}}={count}"), 60) }
    }

    /// Metrics of an operator's pod.
    pub(super) fn metrics(&self, pod: &str) -> anyhow::Result<String> {
        self.stage.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{}/pods/{pod}:8080/proxy/metrics", self.name)])
    }

    /// Metrics of the one that holds the Lease.
    pub(super) fn leader_metrics(&self) -> anyhow::Result<String> {
        self.metrics(&self.lease()?.holder)
    }

    /// Everybody is there: two operators of which one leads, two gateways that follow.
    pub(super) fn is_well(&self, within: u64) -> anyhow::Result<()> {
        eventually("two operators and a fleet that is Ready", within, || {
            let (operators, labelled, lease) = (self.operators()?, self.labelled()?, self.lease()?);
            ensure!(operators.len() == 2 && labelled == [lease.holder.clone()], "{operators:?}, labelled {labelled:?}, {lease:?}");
            // The Lease names its last holder until it runs out, and conditions are as their writer left them.
            let metrics = self.metrics(&lease.holder)?;
            for wanted in ["sekimori_operator_leader 1", "sekimori_operator_stream_gateways 2"] {
                ensure!(metrics.lines().any(|line| line == wanted), "{} does not say `{wanted}`", lease.holder);
            }
            for pod in self.pods("sekimori.dev/fleet=quickstart")? {
                let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
                let ready = conditions.iter().any(|condition| text(condition, "/type") == "Ready" && text(condition, "/status") == "True");
                ensure!(ready, "{} is not Ready", text(&pod, "/metadata/name"));
            }
            for (name, wanted) in [("Ready", "True"), ("ConfigStale", "False")] {
                let status = self.condition("gatewayfleet/quickstart", name)?;
                ensure!(status == wanted, "{name} of the fleet is `{status}`");
            }
            Ok(())
        })
    }

    /// The same pods, and none of their containers was started again.
    pub(super) fn are_untouched(&self, before: &[Gateway]) -> anyhow::Result<()> {
        let after = self.gateways()?;
        ensure!(after == before, "gateways were touched: {before:?}, then {after:?}");
        Ok(())
    }

    /// The same release with another value.
    pub(super) fn upgrade(&self, value: &str) -> anyhow::Result<()> {
        helm(self.stage, "upgrade", &[value.to_owned()], &["--reuse-values"]).map(drop)
    }

    /// What one would look at first.
    pub(super) fn explain(&self) {
        for arguments in [
            ["get", "pods,sekimori,lease", "-o", "wide"].as_slice(),
            &["get", "gatewayfleet/quickstart", "-o", "jsonpath={.status}"],
            &["logs", "-l", "app.kubernetes.io/name=sekimori-operator", "--tail=25", "--prefix"],
            &["logs", "-l", "sekimori.dev/fleet=quickstart", "-c", "mta", "--tail=2000", "--prefix"],
        ] {
            let said = self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
            // The load's own messages would hide everything else.
            let lines: Vec<&str> = said.lines().filter(|line| !line.contains("\"event\":\"message\"")).collect();
            let last = lines.len().saturating_sub(50);
            println!("  kubectl {}\n{}", arguments.join(" "), lines.into_iter().skip(last).collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The pod's main process dies without a farewell. Processes of all nodes are this machine's.
pub(super) fn kill_process(pod_uid: &str, program: &str) -> anyhow::Result<()> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let read = |file: &str| std::fs::read(path.join(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        if read("cgroup").contains(pod_uid) && read("cmdline").split('\0').next().is_some_and(|first| first.ends_with(program)) {
            let id = entry.file_name().to_string_lossy().into_owned();
            let status = std::process::Command::new("kill").args(["-KILL", &id]).status()?;
            ensure!(status.success(), "process {id} of pod {pod_uid} could not be killed");
            return Ok(());
        }
    }
    bail!("no {program} runs in pod {pod_uid}")
}

/// Takes it away while the operator is still there to take its fleet apart; definitions stay, as for every release.
pub(super) fn remove(stage: &Stage) -> anyhow::Result<f64> {
    let namespace = installed(stage)?;
    let mut there = THERE.lock().ok().context("an earlier scenario broke")?;
    let took = crate::support::seconds(|| {
        let kinds = ["delete", "gatewayfleet,tenantdomain,engine", "--all", "--namespace", NAMESPACE, "--timeout=120s"];
        stage.cluster.kubectl_within(&kinds, None, Duration::from_secs(130))?.checked()?;
        Ok(())
    })?;
    stage.cluster.helm(&["uninstall", "sekimori", "--namespace", NAMESPACE, "--wait"])?;
    stage.cluster.helm(&["uninstall", "sekimori-crds", "--namespace", DEFINITIONS])?;
    *there = false;
    drop(ManuallyDrop::into_inner(namespace.0));
    Ok(took)
}
