//! What every later scenario stands on: pods run, keep their volumes, find each other, and take a new image in place.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::support::{IDLE, Outcome, RESTRICTED, SHELL, Scenario, Stage, eventually, own_only, pod, seconds};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "pods::nodes_are_ready", run: nodes_are_ready },
    Scenario { name: "pods::restricted_runs_and_others_are_refused", run: restricted_runs_and_others_are_refused },
    Scenario { name: "pods::a_digest_names_an_image_and_a_wrong_one_is_not_pulled", run: digests },
    Scenario { name: "pods::a_stateful_set_keeps_its_volumes", run: a_stateful_set_keeps_its_volumes },
    Scenario { name: "pods::names_are_found", run: names_are_found },
    Scenario { name: "pods::an_image_is_patched_in_place", run: an_image_is_patched_in_place },
];

fn nodes_are_ready(stage: &Stage) -> anyhow::Result<Outcome> {
    let nodes = stage.kubectl(&[
        "get",
        "nodes",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}",
    ])?;
    let ready = nodes.lines().filter(|line| line.ends_with(" True")).count();
    ensure!(ready >= 2.max(stage.cluster.nodes()), "nodes: {nodes}");
    Ok(Outcome::Passed)
}

fn restricted_runs_and_others_are_refused(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let namespace = stage.namespace("restricted")?;
    namespace.apply(&pod("good", SHELL, ", args: [\"sleep 600\"], resources: {limits: {memory: 32Mi}}"))?;
    namespace.wait("pod/good", "condition=Ready", 30)?;
    let seen = namespace.shell("good", "id -u; (: > /x) 2>&1; cat /proc/1/status")?;
    ensure!(seen.starts_with("65532\n"), "not the image's user: {seen}");
    ensure!(seen.contains("Read-only file system"), "the root is writable: {seen}");
    ensure!(seen.contains("Seccomp:\t2") && seen.contains("NoNewPrivs:\t1") && seen.contains("CapEff:\t0000000000000000"), "{seen}");
    let why = namespace.refused("apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: [{name: main, image: x}]}\n")?;
    ensure!(why.contains("violates PodSecurity \"restricted"), "{why}");
    Ok(Outcome::Passed)
}

fn digests(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let namespace = stage.namespace("digests")?;
    let pinned = stage.image(&sekimori_e2e::images::recipes::slot_idle("digest")?)?.pinned();
    namespace.apply(&pod("pinned", &pinned, ""))?;
    namespace.wait("pod/pinned", "condition=Ready", 30)?;
    let wrong = format!("{}@sha256:{}", "registry.local/sekimori-slot-idle", "0".repeat(64));
    namespace.apply(&pod("wrong", &wrong, ""))?;
    eventually("the kubelet says that it cannot pull", 30, || {
        let why = namespace.text("pod/wrong", "/status/containerStatuses/0/state/waiting/reason")?;
        ensure!(["ErrImagePull", "ImagePullBackOff"].contains(&why.as_str()), "{why}");
        Ok(())
    })?;
    Ok(Outcome::Passed)
}

fn a_stateful_set_keeps_its_volumes(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let namespace = stage.namespace("volumes")?;
    namespace.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: keep}}\nspec: {{clusterIP: None, selector: {{app: keep}}}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: keep}}\nspec:\n  serviceName: keep\n  replicas: 2\n  podManagementPolicy: Parallel\n  \
         updateStrategy: {{type: OnDelete}}\n  selector: {{matchLabels: {{app: keep}}}}\n  template:\n    metadata: {{labels: {{app: keep}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      securityContext: {{fsGroup: 65532}}\n      containers:\n      \
         - {{name: main, image: \"{SHELL}\", args: [\"sleep 600\"], securityContext: {RESTRICTED}, volumeMounts: [{{name: spool, mountPath: /spool}}]}}\n  \
         volumeClaimTemplates:\n  - metadata: {{name: spool}}\n    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}\n"
    ))?;
    let ready = seconds(|| namespace.wait("statefulset/keep", "jsonpath={.status.readyReplicas}=2", 60))?;
    for number in 0..2 {
        namespace.shell(&format!("keep-{number}"), &format!("echo mail of {number} > /spool/mail"))?;
    }
    let before = namespace.text("pod/keep-0", "/metadata/uid")?;
    namespace.kubectl(&["delete", "pod", "keep-0", "--wait=true"])?;
    eventually("a new keep-0", 60, || {
        ensure!(namespace.text("pod/keep-0", "/metadata/uid")? != before, "still the old one");
        namespace.wait("pod/keep-0", "condition=Ready", 5)
    })?;
    ensure!(namespace.shell("keep-0", "cat /spool/mail")? == "mail of 0\n", "the volume is not the one it was");
    println!("  a StatefulSet of two with volumes: Ready after {ready:.1} s");
    namespace.kubectl(&["delete", "statefulset/keep", "pvc/spool-keep-0", "pvc/spool-keep-1"])?;
    if stage.cluster.is_own() {
        eventually("both volumes are free again", 30, || {
            stage.cluster.recycle_volumes()?;
            let states = stage.kubectl(&["get", "pv", "-o", "jsonpath={.items[*].status.phase}"])?;
            ensure!(states.split(' ').all(|state| state == "Available"), "{states}");
            Ok(())
        })?;
    }
    Ok(Outcome::Passed)
}

fn names_are_found(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let namespace = stage.namespace("names")?;
    namespace.apply(&pod("client", SHELL, ", args: [\"sleep 600\"]"))?;
    namespace.apply(&pod("server", SHELL, ", args: [\"sleep 600\"], ports: [{containerPort: 2525}]"))?;
    namespace
        .apply("apiVersion: v1\nkind: Service\nmetadata: {name: plain}\nspec: {selector: {app: server}, ports: [{port: 25, targetPort: 2525}]}\n")?;
    namespace.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: headless}\nspec: {clusterIP: None, selector: {app: server}, ports: [{port: 2525}]}\n",
    )?;
    namespace.wait("pod/client", "condition=Ready", 30)?;
    namespace.wait("pod/server", "condition=Ready", 30)?;
    let expected = [("plain.names.svc", namespace.service("plain")?.ip()), ("headless", namespace.address("server")?)];
    for (name, address) in expected {
        eventually(name, 15, || {
            let answer = namespace.shell("client", &format!("getent ahostsv4 {name}"))?;
            ensure!(answer.starts_with(&format!("{address} ")), "{name} is {answer}, not {address}");
            Ok(())
        })?;
    }
    let away = seconds(|| {
        let answer = namespace.shell("client", "getent ahostsv4 elsewhere.example. || echo none")?;
        ensure!(answer == "none\n", "{answer}");
        Ok(())
    })?;
    ensure!(!stage.cluster.is_own() || away < 5.0, "a name outside took {away:.1} s to fail");
    Ok(Outcome::Passed)
}

fn an_image_is_patched_in_place(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let namespace = stage.namespace("swap")?;
    namespace.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: swap}}\nspec:\n  terminationGracePeriodSeconds: 5\n  containers:\n  \
         - {{name: gateway, image: \"{SHELL}\", args: [\"sleep 600\"], securityContext: {RESTRICTED}}}\n  - {{name: slot-b, image: \"{IDLE}\", securityContext: {RESTRICTED}}}\n"
    ))?;
    namespace.wait("pod/swap", "condition=Ready", 30)?;
    let container = |pod: &Value, name: &str| -> anyhow::Result<Value> {
        let all = pod.pointer("/status/containerStatuses").and_then(Value::as_array).context("container statuses")?;
        all.iter().find(|status| status.get("name").and_then(Value::as_str) == Some(name)).cloned().context("a container of this name")
    };
    let before = namespace.json("pod/swap")?;
    let other = if stage.cluster.is_own() {
        stage.image(&sekimori_e2e::images::recipes::slot_idle("next")?)?.reference()
    } else {
        return Ok(Outcome::Skipped("a second image needs nodes of our own".into()));
    };
    namespace.kubectl(&[
        "patch",
        "pod",
        "swap",
        "-p",
        &format!("{{\"spec\":{{\"containers\":[{{\"name\":\"slot-b\",\"image\":\"{other}\"}}]}}}}"),
    ])?;
    let took = seconds(|| {
        eventually("a new container", 20, || {
            let after = container(&namespace.json("pod/swap")?, "slot-b")?;
            ensure!(after["containerID"] != container(&before, "slot-b")?["containerID"] && after.pointer("/state/running").is_some(), "{after}");
            ensure!(after["restartCount"] == 1, "{after}");
            Ok(())
        })
    })?;
    let after = namespace.json("pod/swap")?;
    ensure!(container(&before, "gateway")? == container(&after, "gateway")?, "the other container was touched");
    ensure!(after.pointer("/metadata/uid") == before.pointer("/metadata/uid"), "another pod");
    ensure!(Duration::from_secs_f64(took) < Duration::from_secs(10), "an idle slot took {took:.1} s to end");
    println!("  a slot's image patched: a new container after {took:.1} s, the other one untouched");
    Ok(Outcome::Passed)
}
