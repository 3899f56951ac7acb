//! A fleet's life on the cluster: installed, upgraded, smaller, with a broken engine, deleted, and without its operator. Every 250 is delivered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sekimori_e2e::ledger::{Ledger, mark};
use sekimori_e2e::sink::Behaviour;
use sekimori_e2e::source;

use crate::installation::{Answers, FLEET, Fleet, Installation, SYSTEM, condition, rolled_out, tenant, until};
use crate::support::{Outcome, Scenario, Stage, eventually, own_only, seconds};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "fleet::install_to_mail", run: install_to_mail },
    Scenario { name: "fleet::scale_down_waits", run: scale_down_waits },
    Scenario { name: "fleet::a_broken_engine_image", run: a_broken_engine_image },
    Scenario { name: "fleet::deleted_fleet_retires", run: deleted_fleet_retires },
    Scenario { name: "fleet::its_namespace_goes", run: its_namespace_goes },
];

/// Takes the installation away: after all others.
pub(crate) const LAST: &[Scenario] = &[Scenario { name: "fleet::uninstall", run: uninstall }];

/// The fleet's object.
const GATE: &str = "gatewayfleet/gate";

fn install_to_mail(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let started = Instant::now();
    let fleet = installation.fleet(stage, "first", 2, "")?;
    let ready = started.elapsed().as_secs_f64();
    fleet.serve("example-com", "example.com", "")?;
    fleet.post("user@example.com", 1)?;
    fleet.settle(30)?;
    let mail = started.elapsed().as_secs_f64();
    let arrivals = fleet.sink.arrivals();
    let [arrival] = arrivals.as_slice() else { anyhow::bail!("{} messages arrived", arrivals.len()) };
    ensure!(arrival.from == "source@sender.example" && arrival.to == ["user@example.com"], "{arrival:?}");
    let number = sekimori_e2e::ledger::read(&arrival.content).context("a marked message")?.0;
    let sent = mark(number, &source::body(4000));
    let added = arrival.content.strip_suffix(sent.as_slice()).context("the message is not what was sent")?;
    let added = std::str::from_utf8(added)?;
    ensure!(added.ends_with("\r\n") && added.contains("Received: ") && added.contains("by mx.gate.example"), "added: {added}");
    // A stranger's domain is not relayed to.
    let answers = installation.post(fleet.service()?, "user@elsewhere.example", 1, &fleet.ledger)?;
    ensure!(answers == Answers { acknowledged: 0, refused: 1 }, "{answers:?}");
    println!("  helm install to operator {:.1} s; fleet applied to Ready {ready:.1} s, to first mail {mail:.1} s", installation.seconds);

    agrees(&fleet)?;
    helm_test(stage, &fleet)?;
    survives_upgrades(stage, &fleet)?;
    Ok(Outcome::Passed)
}

/// `kubectl sekimori status` says what the objects say.
fn agrees(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    eventually("kubectl sekimori status agrees", 30, || {
        let status = fleet.sekimori(&["status"])?;
        let said = status.pointer("/fleets/0").context("no fleet")?;
        ensure!(said["name"] == FLEET && said["phase"] == "Serving" && said["ready"] == 2 && said["wanted"] == 2, "{status}");
        ensure!(said["servedTenants"] == 1 && said["tenants"]["known"] == 1 && said["tenants"]["notReady"] == 0, "{status}");
        let revision = fleet.namespace.text(GATE, "/status/configRevision")?;
        ensure!(said["configRevision"] == revision.as_str(), "{status}, but {revision}");
        Ok(())
    })
}

/// `helm test` says that there is nothing to test; with a fleet's name it sends clean mail and samples through it, and fails if one of them passes.
fn helm_test(stage: &Stage, fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let test = || stage.cluster.helm(&["test", "sekimori", "--namespace", SYSTEM, "--logs", "--timeout", "2m"]);
    let said = test()?;
    ensure!(said.contains("no fleet to test"), "{said}");
    // With a sink of its own: its mail is in nobody's books.
    let (sink, _) = fleet.installation.sink()?;
    let (address, port) = (sink.address.ip().to_string(), sink.address.port());
    fleet.namespace.apply(&tenant("probed", "probed.example", &address, port, ""))?;
    fleet.namespace.wait("tenantdomain/probed", "condition=Ready", 30).with_context(|| fleet.explain())?;
    let gateway = format!("tests.gateway={FLEET}-smtp.{}.svc:{}", fleet.namespace.name, fleet.service()?.port());
    let with = |recipient: &str| {
        fleet.installation.upgrade(&stage.cluster, &["--set", &gateway, "--set", recipient, "--set", "tests.waitSeconds=20"])?;
        let started = Instant::now();
        test().map(|said| (said, started.elapsed().as_secs_f64()))
    };
    let (said, took) = with("tests.recipient=user@probed.example").with_context(|| fleet.explain())?;
    ensure!(said.contains("takes clean mail and refuses the test virus and the test spam"), "{said}");
    eventually("the test's clean message arrives", 30, || {
        let arrived = sink.arrivals().len();
        ensure!(arrived == 1, "{arrived} messages");
        Ok(())
    })?;
    // One that the fleet does not serve: the test fails.
    let refused = with("tests.recipient=user@elsewhere.example");
    ensure!(refused.is_err(), "mail for a stranger's domain passes the test: {refused:?}");
    fleet.namespace.kubectl(&["delete", "tenantdomain/probed"])?;
    println!("  helm test: nothing without a fleet; with one {took:.1} s, one message arrived; fails for a domain that is not served");
    Ok(())
}

/// Between two messages that are answered 250, while only the operator is replaced: gateways know nothing of it.
const GAP_MAX: Duration = Duration::from_secs(3);

/// What a steady sender saw.
#[derive(Debug)]
struct Steady {
    sent: u64,
    longest_gap: Duration,
}

/// Sends two messages after the other, every one of which must be answered 250, until `stop`; how long the longest time from answers to answers was.
fn send_steadily(installation: &Installation, target: SocketAddr, ledger: &Arc<Ledger>, stop: &AtomicBool) -> anyhow::Result<Steady> {
    let mut steady = Steady { sent: 0, longest_gap: Duration::ZERO };
    let mut before = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let codes = installation.codes(target, "user@steady.example", 2, ledger)?;
        ensure!(codes == BTreeMap::from([(250, 2)]), "after {} messages: {codes:?}", steady.sent);
        steady.sent += 2;
        steady.longest_gap = steady.longest_gap.max(before.elapsed());
        before = Instant::now();
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(steady)
}

/// `helm upgrade` and `helm rollback` replace the operator and no gateway, and mail flows all the time.
fn survives_upgrades(stage: &Stage, fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let annotation = || {
        let path = "jsonpath={.spec.template.metadata.annotations.e2e}";
        stage.kubectl(&["get", "deployment/sekimori-operator", "--namespace", SYSTEM, "-o", path])
    };
    let before = fleet.uids()?;
    ensure!(before.len() == 2, "{before:?}");
    // With books of its own, so that nothing else is counted in them.
    let (sink, ledger) = fleet.installation.sink()?;
    let steady = tenant("steady", "steady.example", &sink.address.ip().to_string(), sink.address.port(), "");
    fleet.namespace.apply(&steady)?;
    fleet.namespace.wait("tenantdomain/steady", "condition=Ready", 30).with_context(|| fleet.explain())?;
    let (installation, target, stop) = (fleet.installation, fleet.service()?, AtomicBool::new(false));
    let (steady, took, back) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_steadily(installation, target, &ledger, &stop));
        let changed = upgrade_and_back(stage, fleet, annotation);
        stop.store(true, Ordering::Relaxed);
        let steady = sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
        let (took, back) = changed?;
        anyhow::Ok((steady.with_context(|| fleet.explain())?, took, back))
    })?;
    ensure!(steady.longest_gap < GAP_MAX, "no answer for {:?}: {steady:?}", steady.longest_gap);
    ensure!(steady.sent >= 50, "only {} messages while it was upgraded", steady.sent);
    eventually("every 250 of the steady sender arrives", 30, || {
        let balance = ledger.balance();
        ensure!(balance.acknowledged == steady.sent && balance.missing == 0 && balance.damaged == 0, "{balance:?}");
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    let balance = fleet.settle(30)?;
    let after = fleet.uids()?;
    ensure!(before == after, "gateways were replaced or restarted: {before:?}, then {after:?}");
    println!(
        "  upgrade {took:.1} s, rollback {back:.1} s, no gateway touched; {} messages meanwhile, all 250, all delivered, longest gap {:.2} s; {balance:?}",
        steady.sent,
        steady.longest_gap.as_secs_f64()
    );
    Ok(())
}

/// Both, with a word with the new operator after each; how long each took.
fn upgrade_and_back(stage: &Stage, fleet: &Fleet<'_>, annotation: impl Fn() -> anyhow::Result<String>) -> anyhow::Result<(f64, f64)> {
    let took = seconds(|| fleet.installation.upgrade(&stage.cluster, &["--set", "operator.podAnnotations.e2e=upgraded"]))?;
    ensure!(annotation()? == "upgraded", "the upgrade changed nothing");
    fleet.serve("after-upgrade", "upgrade.example", "")?;
    fleet.post("user@upgrade.example", 5)?;
    let back = seconds(|| {
        stage.cluster.helm(&["rollback", "sekimori", "--namespace", SYSTEM])?;
        rolled_out(&stage.cluster)
    })?;
    ensure!(annotation()?.is_empty(), "the rollback changed nothing");
    // The new leader has judged the fleet and hands out configuration again.
    fleet.serve("after-rollback", "rollback.example", "")?;
    fleet.post("user@rollback.example", 5)?;
    Ok((took, back))
}

fn scale_down_waits(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let fleet = stage.installation()?.fleet(stage, "smaller", 2, "")?;
    fleet.serve("example-com", "example.com", "  delivery: Queue\n")?;
    fleet.sink.behave(vec![(Behaviour::Defer, 1)]);
    fleet.post_to(fleet.pod(0)?, "user@example.com", 10)?;
    fleet.post_to(fleet.pod(1)?, "user@example.com", 20)?;
    let (uids, going) = (fleet.uids()?, fleet.pod(1)?.ip().to_string());
    fleet.namespace.kubectl(&["scale", GATE, "--replicas=1"])?;
    eventually("the condition Draining speaks of 20 messages", 60, || {
        let draining = condition(&fleet.namespace, GATE, "Draining")?;
        ensure!(draining.status == "True" && draining.reason == "Retiring" && draining.message.contains("20 messages"), "{draining:?}");
        Ok(())
    })?;
    eventually("no mail is sent to the pod that goes", 20, || {
        let endpoints = fleet.endpoints()?;
        ensure!(endpoints.len() == 1 && !endpoints.contains(&going), "{endpoints:?}");
        Ok(())
    })?;
    // As long as a report holds, and more.
    let waited = Instant::now();
    while waited.elapsed() < Duration::from_secs(40) {
        ensure!(fleet.uids()? == uids, "a pod with mail is gone or restarted: {uids:?}, then {:?}", fleet.uids()?);
        std::thread::sleep(Duration::from_secs(2));
    }
    fleet.post("user@example.com", 5)?;
    ensure!(fleet.ledger.balance().arrived == 0, "the sink deferred, but {:?}", fleet.ledger.balance());
    ensure!(fleet.queue()?.len() == 35, "{} messages wait", fleet.queue()?.len());

    fleet.sink.behave(vec![(Behaviour::Accept, 1)]);
    fleet.sekimori(&["queue", "retry", "--all", "--fleet", FLEET])?;
    let balance = fleet.settle(60)?;
    let gone = seconds(|| pod_gone(&fleet))?;
    eventually("the volume of the pod that is gone is deleted", 30, || {
        let claims = fleet.namespace.kubectl(&["get", "pvc", "-o", "name"])?;
        ensure!(claims.trim() == "persistentvolumeclaim/spool-gate-gateway-0", "{claims}");
        Ok(())
    })?;
    until(&fleet.namespace, GATE, "Draining", "False", "NotDraining", 30)?;
    println!("  the pod with mail stayed for 40 s; gone {gone:.1} s after its mail was delivered, and its volume too; {balance:?}");
    retained(&fleet)?;
    Ok(Outcome::Passed)
}

fn pod_gone(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    eventually("pod 1 goes", 120, || {
        let uids = fleet.uids()?;
        ensure!(uids.len() == 1 && uids.iter().all(|pod| pod.starts_with("gate-gateway-0 ")), "{uids:?}");
        Ok(())
    })
    .with_context(|| fleet.explain())
}

/// With `reclaim: Retain` the volume stays.
fn retained(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    fleet.namespace.kubectl(&["patch", GATE, "--type=merge", "-p", "{\"spec\":{\"replicas\":2,\"spool\":{\"reclaim\":\"Retain\"}}}"])?;
    eventually("two gateways", 90, || {
        let endpoints = fleet.endpoints()?;
        ensure!(endpoints.len() == 2, "{endpoints:?}");
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    fleet.post_to(fleet.pod(1)?, "user@example.com", 3)?;
    fleet.settle(30)?;
    fleet.namespace.kubectl(&["scale", GATE, "--replicas=1"])?;
    let gone = seconds(|| pod_gone(fleet))?;
    until(&fleet.namespace, GATE, "Draining", "False", "NotDraining", 30)?;
    let claims = fleet.namespace.kubectl(&["get", "pvc", "-o", "name"])?;
    ensure!(claims.contains("spool-gate-gateway-0") && claims.contains("spool-gate-gateway-1"), "{claims}");
    println!("  reclaim Retain: an empty pod is gone after {gone:.1} s, its volume stays");
    Ok(())
}

fn a_broken_engine_image(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let engines = "  engines: [{name: builtin-virus}, {name: builtin-spam}, {name: clamav}]\n  startup: {maxWait: 10s}\n";
    let fleet = installation.fleet_unready(stage, "broken", 2, engines)?;
    let image = format!("registry.local/nowhere@sha256:{}", "0".repeat(64));
    fleet.namespace.apply(&format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: Engine\nmetadata: {{name: clamav}}\nspec:\n  class: AntiVirus\n  protocol: {{type: Clamd}}\n  \
         runtime: {{type: InPod, inPod: {{versionRef: {{name: clamav-1}}}}}}\n---\n\
         apiVersion: sekimori.dev/v1alpha1\nkind: EngineVersion\nmetadata: {{name: clamav-1}}\n\
         spec: {{engineRef: {{name: clamav}}, version: \"1\", image: \"{image}\"}}\n"
    ))?;
    let policy = |otherwise: &str| format!("  policy: {{antiVirus: {{minimumEngines: 2, tooFewEngines: {otherwise}}}}}\n");
    fleet.namespace.apply(&fleet.tenant("strict", "strict.example", &policy("Defer")))?;
    fleet.namespace.apply(&fleet.tenant("content", "content.example", &policy("PassUnscanned")))?;
    let pulled = "jsonpath={range .items[*]}{.status.containerStatuses[*].state.waiting.reason} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}";
    eventually("pods whose engine cannot be pulled are not ready", 90, || {
        let states = fleet.namespace.kubectl(&["get", "pods", "-l", &format!("sekimori.dev/fleet={FLEET}"), "-o", pulled])?;
        let broken = |line: &str| (line.contains("ImagePull")) && line.ends_with("False");
        ensure!(states.lines().count() == 2 && states.lines().all(broken), "{states}");
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    let served = seconds(|| {
        eventually("the Service has both pods", 60, || {
            let endpoints = fleet.endpoints()?;
            ensure!(endpoints.len() == 2, "{endpoints:?}");
            fleet.namespace.kubectl(&["wait", "--for=condition=Programmed", "tenantdomain", "--all", "--timeout=5s"]).map(drop)
        })
        .with_context(|| fleet.explain())
    })?;
    for pod in [0, 1] {
        eventually("a gateway takes mail after startup.maxWait", 60, || {
            let answers = installation.post(fleet.pod(pod)?, "user@content.example", 1, &fleet.ledger)?;
            ensure!(answers.acknowledged == 1, "{answers:?}");
            Ok(())
        })
        .with_context(|| fleet.explain())?;
    }
    fleet.post("user@content.example", 10)?;
    let strict = installation.codes(fleet.service()?, "user@strict.example", 4, &fleet.ledger)?;
    ensure!(strict == BTreeMap::from([(451, 4)]), "a tenant that wants two engines, and to defer: {strict:?}");
    let said = condition(&fleet.namespace, "engine/clamav", "Ready")?;
    ensure!(said.reason == "ContainerDown" && said.message.contains(&image) && said.message.contains("cannot be pulled"), "{said:?}");
    println!("  Engine Ready: {}", said.message);
    let balance = fleet.settle(30)?;
    ensure!(fleet.sink.arrivals().iter().all(|arrival| arrival.to == ["user@content.example"]), "mail of the strict tenant arrived");
    println!("  both pods NotReady and on the Service {served:.1} s later; one tenant's mail flows, the other's is deferred; {balance:?}");
    Ok(Outcome::Passed)
}

fn deleted_fleet_retires(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let gone = |fleet: &Fleet<'_>| {
        eventually("the fleet is gone", 120, || {
            let left = fleet.namespace.kubectl(&["get", "gatewayfleets,pods,statefulsets", "-o", "name"])?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
        .with_context(|| fleet.explain())
    };
    let empty = installation.fleet(stage, "empty", 1, "")?;
    empty.serve("example-com", "example.com", "")?;
    empty.post("user@example.com", 3)?;
    empty.settle(30)?;
    empty.namespace.kubectl(&["delete", GATE, "--wait=false"])?;
    let without = seconds(|| gone(&empty))?;

    let full = installation.fleet(stage, "full", 1, "")?;
    full.serve("example-com", "example.com", "  delivery: Queue\n")?;
    full.sink.behave(vec![(Behaviour::Defer, 1)]);
    full.post("user@example.com", 7)?;
    let uids = full.uids()?;
    full.namespace.kubectl(&["delete", GATE, "--wait=false"])?;
    let message = until(&full.namespace, GATE, "Draining", "True", "Retiring", 30)?;
    let waited = Instant::now();
    while waited.elapsed() < Duration::from_secs(40) {
        ensure!(full.uids()? == uids, "a pod with mail is gone or restarted: {uids:?}, then {:?}", full.uids()?);
        std::thread::sleep(Duration::from_secs(2));
    }
    full.sink.behave(vec![(Behaviour::Accept, 1)]);
    full.sekimori(&["queue", "retry", "--all", "--fleet", FLEET])?;
    let balance = full.settle(60)?;
    let with = seconds(|| gone(&full))?;
    println!("  deleted when empty: gone after {without:.1} s; with mail it waits ({message}), and is gone {with:.1} s after the mail; {balance:?}");
    Ok(Outcome::Passed)
}

/// Kubernetes ends the pods at once. A gateway that says at its end that nothing waits lets its claim go; mail keeps the claim, and the namespace with it.
fn its_namespace_goes(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    // Kubernetes deletes a namespace's pods first, and looks again after half of the longest grace period: a short one spares minutes.
    let brief = "  podTemplate: {spec: {terminationGracePeriodSeconds: 20}}\n";
    let delete = |fleet: &Fleet<'_>| stage.kubectl(&["delete", "namespace", &fleet.namespace.name, "--wait=false"]).map(drop);
    let gone = |fleet: &Fleet<'_>| {
        eventually("the namespace is gone", 90, || {
            let left = stage.kubectl(&["get", "namespace", &fleet.namespace.name, "--ignore-not-found", "-o", "name"])?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
        .with_context(|| fleet.explain())
    };
    let empty = installation.fleet(stage, "goes", 2, brief)?;
    empty.serve("example-com", "example.com", "")?;
    empty.post("user@example.com", 20)?;
    delete(&empty)?;
    let without = seconds(|| gone(&empty))?;
    let balance = empty.ledger.balance();
    ensure!(balance.missing == 0, "mail went with the namespace: {balance:?}");

    let full = installation.fleet(stage, "stays", 1, brief)?;
    full.serve("example-com", "example.com", "  delivery: Queue\n")?;
    full.sink.behave(vec![(Behaviour::Defer, 1)]);
    full.post("user@example.com", 7)?;
    delete(&full)?;
    let message = until(&full.namespace, GATE, "Draining", "True", "Stranded", 90)?;
    ensure!(message.contains("the namespace is being deleted"), "{message}");
    // Longer than any report holds.
    std::thread::sleep(Duration::from_secs(40));
    let left = full.namespace.kubectl(&["get", "pods,pvc,gatewayfleets", "-o", "name"])?;
    let expected = "persistentvolumeclaim/spool-gate-gateway-0\ngatewayfleet.sekimori.dev/gate";
    ensure!(left.trim() == expected, "{left}\n{}", full.explain());
    full.namespace.kubectl(&["patch", "pvc/spool-gate-gateway-0", "--type=merge", "-p", "{\"metadata\":{\"finalizers\":null}}"])?;
    let with = seconds(|| gone(&full))?;
    println!(
        "  a namespace with an idle fleet: gone after {without:.1} s, {balance:?}; with mail it stays ({message}), and is gone {with:.1} s after the mail was given up"
    );
    Ok(Outcome::Passed)
}

/// The charts go; fleets, pods and spools stay, and mail flows on.
fn uninstall(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let fleet = stage.installation()?.fleet(stage, "left", 2, "")?;
    fleet.serve("example-com", "example.com", "  delivery: Queue\n")?;
    fleet.sink.behave(vec![(Behaviour::Defer, 1)]);
    fleet.post("user@example.com", 10)?;
    let objects = ["get", "gatewayfleets,tenantdomains,engines,pvc,statefulsets,services", "-o", "name"];
    let (uids, before) = (fleet.uids()?, fleet.namespace.kubectl(&objects)?);
    let took = seconds(|| {
        stage.cluster.helm(&["uninstall", "sekimori", "--namespace", SYSTEM, "--wait"])?;
        stage.cluster.helm(&["uninstall", "sekimori-crds", "--namespace", SYSTEM]).map(drop)
    })?;
    let operators = stage.kubectl(&["get", "deployments", "--namespace", SYSTEM, "-o", "name"])?;
    ensure!(operators.is_empty(), "{operators}");
    // Long enough for a garbage collector that was told to.
    std::thread::sleep(Duration::from_secs(10));
    let after = fleet.namespace.kubectl(&objects)?;
    ensure!(before == after && before.matches("persistentvolumeclaim/").count() == 2, "before:\n{before}after:\n{after}");
    fleet.post("user@example.com", 10)?;
    fleet.sink.behave(vec![(Behaviour::Accept, 1)]);
    fleet.sekimori(&["queue", "retry", "--all", "--fleet", FLEET])?;
    let balance = fleet.settle(60)?;
    ensure!(fleet.uids()? == uids, "gateways were replaced or restarted: {uids:?}, then {:?}", fleet.uids()?);
    println!("  both charts uninstalled in {took:.1} s; objects, pods and spools stay, mail flows on: {balance:?}");
    Ok(Outcome::Passed)
}
