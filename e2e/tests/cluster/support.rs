//! What a scenario has at hand. It runs in the control plane's namespace: pods, Services and the API server answer it, pods reach it at `CONTROL_ADDRESS`.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sekimori_e2e::cluster::Cluster;
use sekimori_e2e::cluster::process::{Finished, run, wait_until};
use sekimori_e2e::images::archive::{Archive, Image};
use sekimori_e2e::images::recipes;
use serde_json::Value;

use crate::installation::{Installation, binary};

/// A scenario by name.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// What a filter looks at: `area::what_holds`.
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Stage) -> anyhow::Result<Outcome>,
}

/// How it ended, if it did not fail.
pub(crate) enum Outcome {
    Passed,
    /// And why; printed and counted.
    Skipped(String),
}

/// The image of a container that does nothing.
pub(crate) const IDLE: &str = "registry.local/sekimori-slot-idle:test";
/// The image of a container with a shell.
pub(crate) const SHELL: &str = "registry.local/shell:test";

/// What every scenario may count on.
pub(crate) fn base_images(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut shell = Image::new(SHELL, &["/usr/bin/bash", "-c"])?;
    for program in ["bash", "cat", "getent", "id", "ls", "sleep"] {
        shell.files.program_at(&Path::new("/usr/bin").join(program), &format!("/usr/bin/{program}"))?;
    }
    shell.files.data("/etc/nsswitch.conf", b"hosts: files dns\n", 0o644);
    shell.files.directory("/tmp", 0o1777);
    Ok(vec![recipes::slot_idle("test")?.write(directory)?.file, shell.write(directory)?.file])
}

/// The cluster, and what belongs to a run.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    installation: OnceCell<Installation>,
}

/// Volumes that a scenario may use.
const ROOM: usize = 6;

impl Stage {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster, installation: OnceCell::new() }
    }

    /// Both charts, installed by the first scenario that asks.
    pub(crate) fn installation(&self) -> anyhow::Result<&Installation> {
        if let Some(installation) = self.installation.get() {
            return Ok(installation);
        }
        let made = Installation::new(self).context("installing the charts")?;
        Ok(self.installation.get_or_init(|| made))
    }

    /// After the last scenario.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        drop(self.cluster);
        Ok(())
    }

    /// Builds an image and loads it on every node.
    pub(crate) fn image(&self, image: &Image) -> anyhow::Result<Archive> {
        let directory = tempfile::tempdir()?;
        self.cluster.load_image(&image.write(directory.path())?.file)
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(arguments, None)
    }

    /// What former scenarios left in volumes goes, so that a long run does not come to the last volume; their pods may still be about to end. A cluster of
    /// somebody else's is left alone.
    pub(crate) fn room_for_the_next(&self) -> anyhow::Result<()> {
        if own_only(self).is_some() {
            return Ok(());
        }
        eventually(&format!("{ROOM} free volumes"), 60, || {
            self.cluster.recycle_volumes()?;
            let all = self.kubectl(&["get", "pv", "--no-headers"])?;
            let free = all.lines().filter(|line| line.contains(" Available ")).count();
            ensure!(free >= ROOM, "{all}");
            Ok(())
        })
    }

    /// A Namespace under Pod Security `restricted`, removed when it is dropped. Not before its ServiceAccount is there: a pod made earlier would be refused.
    pub(crate) fn namespace(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/enforce-version: latest}}}}\n"
        );
        self.cluster.kubectl(&["apply", "-f", "-"], Some(&text))?;
        let namespace = Namespace { stage: self, name: name.to_owned() };
        eventually("the ServiceAccount default", 20, || namespace.kubectl(&["get", "serviceaccount", "default"]).map(drop))?;
        Ok(namespace)
    }
}

/// A Namespace of a scenario.
pub(crate) struct Namespace<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) name: String,
}

impl Namespace<'_> {
    /// kubectl in this Namespace.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.stage.cluster.kubectl(&[&["--namespace", &self.name], arguments].concat(), None)
    }

    /// Server-side apply of YAML.
    pub(crate) fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        let arguments = ["--namespace", &self.name, "apply", "--server-side", "--field-manager=e2e", "-f", "-"];
        self.stage.cluster.kubectl(&arguments, Some(yaml)).map(drop)
    }

    /// Applies what must be refused; the API server's reason.
    pub(crate) fn refused(&self, yaml: &str) -> anyhow::Result<String> {
        let arguments = ["--namespace", &self.name, "apply", "--server-side", "--dry-run=server", "--field-manager=e2e", "-f", "-"];
        let finished = self.stage.cluster.kubectl_within(&arguments, Some(yaml), Duration::from_secs(30))?;
        ensure!(!finished.success, "accepted, but should have been refused:\n{yaml}");
        Ok(finished.stderr)
    }

    /// `kubectl wait --for=WHAT OBJECT`; the error shows the object and its events.
    pub(crate) fn wait(&self, object: &str, what: &str, seconds: u64) -> anyhow::Result<()> {
        let (what, timeout) = (format!("--for={what}"), format!("--timeout={seconds}s"));
        let arguments = ["--namespace", &self.name, "wait", &what, object, &timeout];
        let waited = self.stage.cluster.kubectl_within(&arguments, None, Duration::from_secs(seconds + 10))?.checked();
        waited.map(drop).with_context(|| {
            let shown = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
            format!("{}\n{}", shown(&["get", object, "-o", "wide"]), shown(&["get", "events", "--sort-by=.lastTimestamp"]))
        })
    }

    /// An object as JSON.
    pub(crate) fn json(&self, object: &str) -> anyhow::Result<Value> {
        serde_json::from_str(&self.kubectl(&["get", object, "-o", "json"])?).map_err(Into::into)
    }

    /// A string of an object, by JSON pointer.
    pub(crate) fn text(&self, object: &str, pointer: &str) -> anyhow::Result<String> {
        let json = self.json(object)?;
        json.pointer(pointer).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("{object} has no text at {pointer}"))
    }

    /// `kubectl sekimori ARGUMENTS`.
    pub(crate) fn plugin(&self, arguments: &[&str]) -> anyhow::Result<Finished> {
        let cluster = &self.stage.cluster;
        let mut command = cluster.run_in_control_namespace(binary("kubectl-sekimori")?);
        command.env("KUBECONFIG", cluster.kubeconfig()).args(arguments).args(["--namespace", &self.name]);
        run(&mut command, None, Duration::from_secs(60))
    }

    /// The same with `--output json`; it must succeed.
    pub(crate) fn sekimori(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let printed = self.plugin(&[arguments, &["--output", "json"]].concat())?.checked()?;
        serde_json::from_str(&printed).with_context(|| printed.clone())
    }

    /// Runs bash in a container.
    pub(crate) fn shell(&self, pod: &str, script: &str) -> anyhow::Result<String> {
        self.kubectl(&["exec", pod, "--", "/usr/bin/bash", "-c", script])
    }

    /// A Service's address and first port, reachable from a scenario.
    pub(crate) fn service(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let json = self.json(&format!("service/{name}"))?;
        let address = json.pointer("/spec/clusterIP").and_then(Value::as_str).context("clusterIP")?.parse()?;
        let port = json.pointer("/spec/ports/0/port").and_then(Value::as_u64).context("a port")?;
        Ok(SocketAddr::new(address, u16::try_from(port)?))
    }

    /// A pod's address.
    pub(crate) fn address(&self, pod: &str) -> anyhow::Result<std::net::IpAddr> {
        self.text(&format!("pod/{pod}"), "/status/podIP")?.parse().map_err(Into::into)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // The cluster goes anyway; this only keeps pods of one scenario out of the next one's way.
        self.stage.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"], None).ok();
        // Spools that still have mail are held by the operator, as they should be; here nobody needs it. Deleted first, as a claim that stays is held again.
        self.kubectl(&["delete", "pvc", "--all", "--wait=false"]).ok();
        let claims = self.kubectl(&["get", "pvc", "-o", "name"]).unwrap_or_default();
        for claim in claims.lines() {
            self.kubectl(&["patch", claim, "--type=merge", "-p", "{\"metadata\":{\"finalizers\":null}}"]).ok();
        }
    }
}

/// Tries until it holds.
pub(crate) fn eventually(what: &str, seconds: u64, condition: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    wait_until(what, Duration::from_secs(seconds), condition)
}

/// How long it took.
pub(crate) fn seconds(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Security context of a container that `restricted` admits, with a read-only root.
pub(crate) const RESTRICTED: &str = "{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, \
     capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}";

/// A pod with one container, `main`.
pub(crate) fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 2\n  containers:\n  \
         - {{name: main, image: \"{image}\", imagePullPolicy: IfNotPresent, securityContext: {RESTRICTED}{more}}}\n"
    )
}

/// For a scenario that needs nodes of our own.
pub(crate) fn own_only(stage: &Stage) -> Option<Outcome> {
    (!stage.cluster.is_own()).then(|| Outcome::Skipped("an existing cluster's nodes are not ours: no images can be loaded, no faults made".into()))
}
