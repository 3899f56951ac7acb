//! What users get wrong, on the real cluster: each is told what to do, mail flows on, and when it is set right all is well without a restart.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::handshake::{Certificate, leaf};
use crate::installation::{FLEET, SYSTEM, condition, until};
use crate::support::{IDLE, Namespace, Outcome, SHELL, Scenario, Stage, eventually, own_only, seconds};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "bad_input::the_only_tenant", run: the_only_tenant },
    Scenario { name: "bad_input::a_gateway_image_that_is_not_there", run: a_gateway_image_that_is_not_there },
    Scenario { name: "bad_input::a_crashing_engine", run: a_crashing_engine },
    Scenario { name: "bad_input::a_rollout_is_told", run: a_rollout_is_told },
    Scenario { name: "bad_input::certificates", run: certificates },
    Scenario { name: "bad_input::references", run: references },
    Scenario { name: "bad_input::definitions_of_another_version", run: definitions_of_another_version },
];

/// The fleet's object.
const GATE: &str = "gatewayfleet/gate";
/// An image that no node has and no registry gives.
const NOWHERE: &str = "registry.local/nowhere@sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Waits until a condition's message has these words in it, whatever its reason; the message.
fn says(namespace: &Namespace<'_>, object: &str, kind: &str, status: &str, words: &[&str], within_s: u64) -> anyhow::Result<String> {
    let mut message = String::new();
    eventually(&format!("{object} {kind}={status}, with {words:?}"), within_s, || {
        let found = condition(namespace, object, kind)?;
        ensure!(found.status == status && words.iter().all(|word| found.message.contains(word)), "{found:?}");
        message = found.message;
        Ok(())
    })?;
    Ok(message)
}

fn the_only_tenant(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let fleet = installation.fleet(stage, "lonely", 2, "")?;
    let namespace = &fleet.namespace;
    fleet.serve("only", "only.example", "  delivery: Queue\n")?;
    fleet.sink.behave(vec![(sekimori_e2e::sink::Behaviour::Defer, 1)]);
    fleet.post("user@only.example", 6)?;
    namespace.kubectl(&["delete", "tenantdomain/only"])?;
    let refused = seconds(|| {
        eventually("each gateway refuses mail for a tenant that is deleted", 30, || {
            for pod in [0, 1] {
                let codes = installation.codes(fleet.pod(pod)?, "user@only.example", 2, &fleet.ledger)?;
                ensure!(codes == BTreeMap::from([(550, 2)]), "gateway {pod}: {codes:?}");
            }
            Ok(())
        })
    })
    .with_context(|| fleet.explain())?;
    // Deleting one of one is no mass removal, and a fleet without tenants is as ready as any.
    eventually("the fleet's status speaks of no tenant", 30, || {
        let status = namespace.json(GATE)?;
        ensure!(status["status"]["tenants"] == 0 && status["status"]["phase"] == "Serving", "{}", status["status"]);
        Ok(())
    })?;
    until(namespace, GATE, "RemovalsWaiting", "False", "NoRemovals", 5)?;
    until(namespace, GATE, "Ready", "True", "Serving", 5)?;
    // What it had accepted before is delivered all the same.
    ensure!(fleet.ledger.balance().missing == 6, "{:?}", fleet.ledger.balance());
    fleet.sink.behave(vec![(sekimori_e2e::sink::Behaviour::Accept, 1)]);
    fleet.sekimori(&["queue", "retry", "--all", "--fleet", FLEET])?;
    fleet.settle(60)?;
    let shown = fleet.shown(&["status"])?;
    print_lines(&shown);
    ensure!(!shown.contains("confirm-removals"), "{shown}");
    fleet.serve("only", "only.example", "")?;
    for pod in [0, 1] {
        fleet.post_to(fleet.pod(pod)?, "user@only.example", 3)?;
    }
    let balance = fleet.settle(30)?;
    println!("  the only tenant deleted: 550 at every gateway after {refused:.1} s, Ready all the time, served again when it is back; {balance:?}");
    Ok(Outcome::Passed)
}

/// What people see, indented.
fn print_lines(text: &str) {
    for line in text.lines() {
        println!("    | {line}");
    }
}

fn a_gateway_image_that_is_not_there(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let fleet = stage.installation()?.fleet(stage, "image", 2, "")?;
    let namespace = &fleet.namespace;
    fleet.serve("example-com", "example.com", "")?;
    fleet.post("user@example.com", 5)?;
    let (good, before) = (namespace.text(GATE, "/status/image")?, fleet.uids()?);
    let set_image = |image: &str| {
        let patch = json!({"spec": {"image": image}}).to_string();
        namespace.kubectl(&["patch", GATE, "--type=merge", "-p", &patch]).map(drop)
    };
    set_image(NOWHERE)?;
    let named = ["pod gate-gateway-1, container mta", NOWHERE, "cannot be pulled", "correct it"];
    let message = says(namespace, GATE, "Updated", "False", &named, 90).with_context(|| fleet.explain())?;
    println!("  Updated: {message}");
    says(namespace, GATE, "Ready", "True", &["1 of 2 gateways take mail", NOWHERE], 10)?;
    let shown = fleet.shown(&["status"])?;
    print_lines(&shown);
    ensure!(shown.contains("cannot be pulled"), "{shown}");
    // The other one is left alone, and has all the mail.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        fleet.post("user@example.com", 2)?;
        let uids = fleet.uids()?;
        ensure!(uids.first() == before.first(), "the gateway that serves was touched: {before:?}, then {uids:?}");
        ensure!(fleet.endpoints()? == [fleet.pod(0)?.ip().to_string()], "the Service sends mail to {:?}", fleet.endpoints()?);
        std::thread::sleep(Duration::from_secs(1));
    }
    set_image(&good)?;
    let mended = seconds(|| {
        until(namespace, GATE, "Updated", "True", "UpToDate", 120)?;
        eventually("both gateways are on the Service", 30, || {
            ensure!(fleet.endpoints()?.len() == 2, "{:?}", fleet.endpoints()?);
            Ok(())
        })
    })
    .with_context(|| fleet.explain())?;
    for pod in [0, 1] {
        fleet.post_to(fleet.pod(pod)?, "user@example.com", 3)?;
    }
    ensure!(fleet.uids()?.first() == before.first(), "the gateway that served was touched: {before:?}, then {:?}", fleet.uids()?);
    let balance = fleet.settle(30)?;
    println!("  one gateway waits for its image, the other serves on; all well {mended:.1} s after it was corrected; {balance:?}");
    Ok(Outcome::Passed)
}

fn a_crashing_engine(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let engines = "  engines: [{name: builtin-virus}, {name: builtin-spam}, {name: clamav}]\n  startup: {maxWait: 10s}\n";
    let fleet = installation.fleet_unready(stage, "crashes", 2, engines)?;
    let namespace = &fleet.namespace;
    // A shell without a script ends at once, with a complaint.
    namespace.apply(&in_pod("clamav", SHELL))?;
    let policy = |otherwise: &str| format!("  policy: {{antiVirus: {{minimumEngines: 2, tooFewEngines: {otherwise}}}}}\n");
    namespace.apply(&fleet.tenant("strict", "strict.example", &policy("Defer")))?;
    namespace.apply(&fleet.tenant("content", "content.example", &policy("PassUnscanned")))?;
    let restarts = "jsonpath={range .items[*]}{.status.containerStatuses[?(@.name==\"engine-clamav-a\")].restartCount}{\"\\n\"}{end}";
    eventually("the engine's container ends again and again in both pods", 120, || {
        let counts = namespace.kubectl(&["get", "pods", "-l", &format!("sekimori.dev/fleet={FLEET}"), "-o", restarts])?;
        let counts: Vec<u32> = counts.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(counts.len() == 2 && counts.iter().all(|count| *count >= 2), "{counts:?}");
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    let message = says(namespace, "engine/clamav", "Ready", "False", &["container engine-clamav-a", SHELL, "ends again and again", "exit code"], 30)
        .with_context(|| fleet.explain())?;
    println!("  Engine Ready: {message}");
    namespace.wait(GATE, "condition=Ready", 60).with_context(|| fleet.explain())?;
    eventually("the fleet stays on its Service", 60, || {
        ensure!(fleet.endpoints()?.len() == 2, "{:?}", fleet.endpoints()?);
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    namespace.kubectl(&["wait", "--for=condition=Programmed", "tenantdomain", "--all", "--timeout=30s"])?;
    let started = Instant::now();
    let mut deferred = 0;
    while started.elapsed() < Duration::from_secs(20) {
        for pod in [0, 1] {
            fleet.post_to(fleet.pod(pod)?, "user@content.example", 2)?;
            let codes = installation.codes(fleet.pod(pod)?, "user@strict.example", 2, &fleet.ledger)?;
            ensure!(codes == BTreeMap::from([(451, 2)]), "a tenant that wants two engines, and to defer: {codes:?}");
            deferred += 2;
        }
        ensure!(fleet.endpoints()?.len() == 2, "{:?}", fleet.endpoints()?);
    }
    print_lines(&fleet.shown(&["status"])?);
    let balance = fleet.settle(30)?;
    ensure!(fleet.sink.arrivals().iter().all(|arrival| arrival.to == ["user@content.example"]), "mail of the strict tenant arrived");
    println!("  every container of an engine crash-loops: {deferred} of one tenant deferred with 451, the other's delivered; {balance:?}");
    Ok(Outcome::Passed)
}

/// An engine in the pods, and its version.
fn in_pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: Engine\nmetadata: {{name: {name}}}\nspec:\n  class: AntiVirus\n  protocol: {{type: Clamd}}\n  \
         runtime: {{type: InPod, inPod: {{versionRef: {{name: {name}-1}}}}}}\n---\n{}",
        version(name, image)
    )
}

fn version(engine: &str, image: &str) -> String {
    format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: EngineVersion\nmetadata: {{name: {engine}-1}}\nspec: {{engineRef: {{name: {engine}}}, version: \"1\", image: \"{image}\"}}\n"
    )
}

fn a_rollout_is_told(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    stage.installation()?;
    // No fleet is here, and it is told all the same.
    let namespace = stage.namespace("rollout")?;
    namespace.apply(
        "apiVersion: sekimori.dev/v1alpha1\nkind: EngineRollout\nmetadata: {name: clamav-1}\nspec: {engineRef: {name: clamav}, toRef: {name: clamav-1}}\n",
    )?;
    let rollout = "enginerollout/clamav-1";
    let message = until(&namespace, rollout, "Supported", "False", "NotSupportedYet", 15)?;
    until(&namespace, rollout, "Ready", "False", "NotSupportedYet", 5)?;
    println!("  {message}");
    says(&namespace, rollout, "ResolvedRefs", "False", &["no Engine clamav", "no EngineVersion clamav-1"], 5)?;
    namespace.apply(&in_pod("clamav", IDLE))?;
    until(&namespace, rollout, "ResolvedRefs", "True", "Resolved", 15)?;
    let row = namespace.kubectl(&["get", rollout])?;
    print_lines(&row);
    ensure!(row.contains("Pending") && row.contains("NotSupportedYet"), "{row}");
    Ok(Outcome::Passed)
}

/// A Secret with a listener's certificate.
fn secret(name: &str, data: &BTreeMap<&str, &str>) -> String {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque", "stringData": data}).to_string()
}

const WITH_TLS: &str = "  listeners: [{name: smtp, port: 2525, tls: {mode: Opportunistic, certificateRefs: [{name: mx}]}}]\n";

fn certificates(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let fleet = stage.installation()?.fleet_unready(stage, "certs", 1, WITH_TLS)?;
    let namespace = &fleet.namespace;
    let put = |certificate: &str, key: Option<&str>| {
        // Replaced as a whole, so that a key that is left out is gone.
        let data = [("tls.crt", certificate)].into_iter().chain(key.map(|key| ("tls.key", key))).collect();
        namespace.kubectl(&["delete", "secret/mx", "--ignore-not-found"])?;
        namespace.apply(&secret("mx", &data))
    };
    let first = Certificate::new("mx.gate.example", 2100)?;
    put(&first.pem, Some(&first.key))?;
    namespace.wait(GATE, "condition=Ready", 90).with_context(|| fleet.explain())?;
    fleet.serve("example-com", "example.com", "")?;
    let pods = fleet.uids()?;
    let gateway = fleet.pod(0)?;
    let offers = |what: &str, certificate: &Certificate| {
        eventually(&format!("{what} is offered"), 60, || {
            let offered = leaf(gateway)?;
            ensure!(offered == certificate.der, "another certificate is offered");
            Ok(())
        })
        .with_context(|| fleet.explain())
    };
    let is_well = || until(namespace, GATE, "ResolvedRefs", "True", "Resolved", 60).with_context(|| fleet.explain());
    offers("the first certificate", &first)?;
    is_well()?;

    let foreign = Certificate::new("mx.other.example", 2100)?;
    put(&foreign.pem, Some(&foreign.key))?;
    let names = says(namespace, GATE, "ResolvedRefs", "False", &["Secret mx", "other names", "mx.gate.example"], 60)?;
    offers("one for other names", &foreign)?;
    fleet.post("user@example.com", 3)?;

    let ended = Certificate::new("mx.gate.example", 2020)?;
    put(&ended.pem, Some(&ended.key))?;
    let old = says(namespace, GATE, "ResolvedRefs", "False", &["Secret mx", "ended on 2020-", "renew it"], 60)?;
    fleet.post("user@example.com", 3)?;

    let renewed = Certificate::new("mx.gate.example", 2100)?;
    put(&renewed.pem, Some(&renewed.key))?;
    let taken = seconds(|| offers("the renewed certificate", &renewed))?;
    is_well()?;

    let garbage = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n";
    put(garbage, Some(&renewed.key))?;
    let broken = says(namespace, GATE, "ResolvedRefs", "False", &["Secret mx", "the one before stays in force", "tls.crt"], 60)?;
    offers("the one before garbage", &renewed)?;
    put(&renewed.pem, None)?;
    let half = says(namespace, GATE, "ResolvedRefs", "False", &["has no key `tls.key`", "the one before stays in force"], 60)?;
    offers("the one before the key went", &renewed)?;
    fleet.post("user@example.com", 3)?;
    namespace.kubectl(&["delete", "secret/mx"])?;
    let missing = says(namespace, GATE, "ResolvedRefs", "False", &["there is no Secret certs/mx", "the one before stays in force"], 60)?;
    offers("the one before the Secret was deleted", &renewed)?;
    fleet.post("user@example.com", 3)?;
    print_lines(&fleet.shown(&["status"])?);
    let last = Certificate::new("mx.gate.example", 2100)?;
    put(&last.pem, Some(&last.key))?;
    offers("the certificate of the Secret that is back", &last)?;
    is_well()?;
    fleet.post("user@example.com", 3)?;
    ensure!(fleet.uids()? == pods, "a gateway was restarted: {pods:?}, then {:?}", fleet.uids()?);
    let balance = fleet.settle(30)?;
    for said in [names, old, broken, half, missing] {
        println!("  {said}");
    }
    println!("  a renewed certificate is offered after {taken:.1} s, without a restart; {balance:?}");
    Ok(Outcome::Passed)
}

fn references(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let fields = format!("{WITH_TLS}  engines: [{{name: builtin-virus}}, {{name: builtin-spam}}, {{name: later}}]\n  startup: {{maxWait: 10s}}\n");
    let installation = stage.installation()?;
    let fleet = installation.fleet_unready(stage, "refs", 1, &fields)?;
    let namespace = &fleet.namespace;
    namespace.apply(&fleet.tenant("early", "early.example", "  policyRef: {name: later}\n"))?;
    let mut told =
        vec![says(namespace, GATE, "Accepted", "False", &["there is no Engine refs/later", "add it"], 30).with_context(|| fleet.explain())?];
    told.push(says(namespace, GATE, "ResolvedRefs", "False", &["no Engine refs/later", "there is no Secret refs/mx"], 10)?);
    until(namespace, GATE, "Ready", "False", "NotAccepted", 10)?;
    told.push(says(namespace, "tenantdomain/early", "ResolvedRefs", "False", &["MailPolicy", "later"], 10)?);
    print_lines(&namespace.kubectl(&["get", "sekimori"])?);
    let whole = in_pod("later", IDLE);
    let (engine, _) = whole.split_once("---\n").context("two documents")?;
    namespace.apply(engine)?;
    told.push(says(namespace, GATE, "Accepted", "False", &["no EngineVersion refs/later-1", "add it"], 30)?);
    namespace.apply(&version("later", IDLE))?;
    let ready = seconds(|| namespace.wait(GATE, "condition=Ready", 90)).with_context(|| fleet.explain())?;
    // The fleet takes mail without the certificate; the tenant waits for its policy. Its domain is its own, and the operator cannot know that no gateway ever
    // had a form of it: its mail is deferred, not refused for good.
    let codes = installation.codes(fleet.service()?, "user@early.example", 2, &fleet.ledger)?;
    ensure!(codes == BTreeMap::from([(451, 2)]), "a tenant that never was good: {codes:?}");
    fleet.serve("on-time", "on-time.example", "")?;
    fleet.post("user@on-time.example", 5)?;
    let pods = fleet.uids()?;
    namespace.apply("apiVersion: sekimori.dev/v1alpha1\nkind: MailPolicy\nmetadata: {name: later}\nspec: {antiVirus: {minimumEngines: 1}}\n")?;
    namespace.wait("tenantdomain/early", "condition=Ready", 30).with_context(|| fleet.explain())?;
    fleet.post("user@early.example", 5)?;
    let certificate = Certificate::new("mx.gate.example", 2100)?;
    namespace.apply(&secret("mx", &[("tls.crt", certificate.pem.as_str()), ("tls.key", certificate.key.as_str())].into()))?;
    let offered = seconds(|| {
        eventually("STARTTLS with the certificate that came later", 90, || {
            ensure!(leaf(fleet.pod(0)?)? == certificate.der, "another certificate");
            Ok(())
        })
    })
    .with_context(|| fleet.explain())?;
    until(namespace, GATE, "ResolvedRefs", "True", "Resolved", 60).with_context(|| fleet.explain())?;
    ensure!(fleet.uids()? == pods, "a gateway was restarted: {pods:?}, then {:?}", fleet.uids()?);
    let balance = fleet.settle(30)?;
    for said in told {
        println!("  {said}");
    }
    println!(
        "  Ready {ready:.1} s after the last Engine's version came; the certificate {offered:.1} s after its Secret, without a restart; {balance:?}"
    );
    Ok(Outcome::Passed)
}

/// A definition as it is; put back when it is dropped.
struct Definition<'a> {
    stage: &'a Stage,
    name: &'static str,
    whole: Value,
}

impl<'a> Definition<'a> {
    fn of(stage: &'a Stage, name: &'static str) -> anyhow::Result<Self> {
        let mut whole: Value = serde_json::from_str(&stage.kubectl(&["get", "crd", name, "-o", "json"])?)?;
        for field in ["resourceVersion", "managedFields", "uid", "creationTimestamp", "generation"] {
            whole["metadata"].as_object_mut().context("metadata")?.remove(field);
        }
        whole.as_object_mut().context("an object")?.remove("status");
        Ok(Self { stage, name, whole })
    }

    fn replace(&self, change: impl FnOnce(&mut Value) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut changed = self.whole.clone();
        change(changed.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").context("spec")?)?;
        self.stage.cluster.kubectl(&["replace", "-f", "-"], Some(&changed.to_string()))?;
        self.stage.kubectl(&["wait", "--for=condition=Established", "crd", self.name, "--timeout=20s"]).map(drop)
    }
}

impl Drop for Definition<'_> {
    fn drop(&mut self) {
        self.replace(|_| Ok(())).ok();
    }
}

/// Events about the operator itself that have these words.
fn operator_says(stage: &Stage, words: &[&str]) -> anyhow::Result<String> {
    let path = "jsonpath={range .items[*]}{.note}{.message}{\"\\n\"}{end}";
    let events = stage.kubectl(&["get", "events", "--namespace", SYSTEM, "-o", path])?;
    let found = events.lines().find(|line| words.iter().all(|word| line.contains(word)));
    found.map(str::to_owned).with_context(|| format!("no event with {words:?} among:\n{events}"))
}

fn definitions_of_another_version(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let fleet = stage.installation()?.fleet(stage, "skew", 1, "")?;
    let namespace = &fleet.namespace;
    fleet.serve("steady", "steady.example", "")?;
    fleet.serve("forward", "forward.example", "")?;
    let definition = Definition::of(stage, "tenantdomains.sekimori.dev")?;

    // Older: a field that the operator knows is not there.
    definition.replace(|fields| fields.as_object_mut().and_then(|fields| fields.remove("softBounce")).map(drop).context("softBounce"))?;
    let mut older = String::new();
    eventually("an event says to upgrade sekimori-crds", 90, || {
        older = operator_says(stage, &["tenantdomains.sekimori.dev", "softBounce", "upgrade the chart sekimori-crds"])?;
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    eventually("the API server refuses the field that it does not know", 20, || {
        let why = namespace.refused(&fleet.tenant("steady", "steady.example", "  softBounce: true\n"))?;
        ensure!(why.contains("softBounce"), "{why}");
        Ok(())
    })?;
    fleet.serve("older", "older.example", "")?;
    for domain in ["steady.example", "older.example"] {
        fleet.post(&format!("user@{domain}"), 3)?;
    }

    // Newer: a value that the operator does not know.
    definition.replace(|fields| {
        fields["state"]["enum"].as_array_mut().context("an enum")?.push(json!("Paused"));
        Ok(())
    })?;
    let mut newer = String::new();
    eventually("an event says to upgrade the operator", 90, || {
        newer = operator_says(stage, &["tenantdomains.sekimori.dev", "spec.state=Paused", "upgrade the operator"])?;
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    eventually("a tenant with the new value is taken by the API server", 20, || {
        namespace.apply(&fleet.tenant("forward", "forward.example", "  state: Paused\n"))
    })?;
    let unreadable = says(namespace, "tenantdomain/forward", "Accepted", "False", &["cannot read it", "upgrade the operator", "last good form"], 30)
        .with_context(|| fleet.explain())?;
    until(namespace, "tenantdomain/forward", "Programmed", "False", "LastGoodForm", 10)?;
    // Said once: not written again and again.
    let version = namespace.text("tenantdomain/forward", "/metadata/resourceVersion")?;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(12) {
        for domain in ["steady.example", "forward.example"] {
            fleet.post(&format!("user@{domain}"), 1)?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let now = namespace.text("tenantdomain/forward", "/metadata/resourceVersion")?;
    ensure!(now == version, "the status of an object that cannot be read is written again and again: {version}, then {now}");
    fleet.serve("newer", "newer.example", "")?;
    fleet.post("user@newer.example", 3)?;
    print_lines(&fleet.shown(&["status"])?);
    // Set right, and the definition with it.
    fleet.serve("forward", "forward.example", "")?;
    drop(definition);
    eventually("an event says that all is well", 90, || operator_says(stage, &["are those of this operator"]).map(drop))?;
    namespace.apply(&fleet.tenant("steady", "steady.example", "  softBounce: true\n"))?;
    namespace.wait("tenantdomain/steady", "condition=Ready", 30)?;
    fleet.post("user@steady.example", 3)?;
    let balance = fleet.settle(30)?;
    for said in [older, newer, unreadable] {
        println!("  {said}");
    }
    println!("  {balance:?}");
    Ok(Outcome::Passed)
}
