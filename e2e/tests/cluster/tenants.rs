//! Tenants by `kubectl apply`: how soon they are served, bad ones among good ones, and those who reach for what is not theirs.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use sekimori_e2e::cluster::{STORAGE_CLASS, TEST_ZONE};
use sekimori_e2e::dns::Zone;
use sekimori_e2e::sink::Behaviour;
use serde_json::Value;

use crate::installation::{Answers, FLEET, Fleet, SYSTEM, condition, tenant, until};
use crate::support::{Namespace, Outcome, Scenario, Stage, eventually, own_only};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "tenants::applied_to_served", run: applied_to_served },
    Scenario { name: "tenants::hijack", run: hijack },
    Scenario { name: "tenants::not_admitted_and_overlapping", run: not_admitted_and_overlapping },
    Scenario { name: "tenants::ownership_by_dns", run: ownership_by_dns },
    Scenario { name: "tenants::a_server_that_refuses", run: a_server_that_refuses },
];

/// Good tenants.
const TENANTS: usize = 20;
/// One tenant in a small fleet is programmed sooner than that even on a machine that does much else.
const PROGRAMMED_WITHIN_SECONDS: f64 = 10.0;

fn applied_to_served(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let fleet = stage.installation()?.fleet(stage, "served", 2, "")?;
    let mut times = vec![];
    for number in 1..=TENANTS {
        let (name, domain) = (format!("tenant-{number}"), format!("t{number}.example"));
        let started = Instant::now();
        fleet.namespace.apply(&fleet.tenant(&name, &domain, ""))?;
        fleet.namespace.wait(&format!("tenantdomain/{name}"), "condition=Programmed", 30).with_context(|| fleet.explain())?;
        times.push(started.elapsed().as_secs_f64());
        // Programmed means every gateway: mail is taken by each at once.
        for pod in [0, 1] {
            fleet.post_to(fleet.pod(pod)?, &format!("user@{domain}"), 1)?;
        }
    }
    times.sort_by(f64::total_cmp);
    let (median, longest) = (times.get(TENANTS / 2).copied().context("a median")?, times.last().copied().context("a maximum")?);
    println!("  {TENANTS} tenants, kubectl apply to Programmed (both kubectl included): p50 {median:.2} s, max {longest:.2} s");
    ensure!(longest < PROGRAMMED_WITHIN_SECONDS, "{times:?}");
    fleet.settle(30)?;
    bad_among_good(&fleet)?;
    Ok(Outcome::Passed)
}

/// Bad tenants say why, keep their last good form, and are in nobody's way.
fn bad_among_good(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let namespace = &fleet.namespace;
    let missing = "  policyRef: {name: nowhere}\n";
    namespace.apply(&fleet.tenant("bad-policy", "bad-policy.example", missing))?;
    namespace.apply(&fleet.tenant("bad-domain", "t3.example", ""))?;
    let why = namespace.refused(&fleet.tenant("bad-rule", "Upper.example", ""))?;
    ensure!(why.contains("is invalid") && why.contains("spec.domains"), "{why}");
    // One that was good, and turns bad.
    namespace.apply(&fleet.tenant("tenant-5", "t5.example", missing))?;
    for (name, programmed) in [("bad-policy", "NotProgrammed"), ("tenant-5", "LastGoodForm")] {
        let object = format!("tenantdomain/{name}");
        let message = until(namespace, &object, "Accepted", "False", "Invalid", 30).with_context(|| fleet.explain())?;
        ensure!(message.contains("nowhere"), "{name}: {message}");
        until(namespace, &object, "ResolvedRefs", "False", "UnresolvedRef", 5)?;
        until(namespace, &object, "Programmed", "False", programmed, 30).with_context(|| fleet.explain())?;
        println!("  {name}: {message}");
    }
    let conflict = until(namespace, "tenantdomain/bad-domain", "Accepted", "False", "DomainConflict", 30)?;
    ensure!(conflict.contains("t3.example") && conflict.contains("tenant-3"), "{conflict}");
    println!("  bad-domain: {conflict}");
    fleet.serve("after-bad", "after-bad.example", "")?;
    for domain in ["t3.example", "t5.example", "t20.example", "after-bad.example"] {
        for pod in [0, 1] {
            fleet.post_to(fleet.pod(pod)?, &format!("user@{domain}"), 2)?;
        }
    }
    let answers = fleet.installation.post(fleet.service()?, "user@bad-policy.example", 2, &fleet.ledger)?;
    ensure!(answers == Answers { acknowledged: 0, refused: 2 }, "a tenant that never was good: {answers:?}");
    // Set right, it serves.
    fleet.serve("bad-policy", "bad-policy.example", "")?;
    fleet.post("user@bad-policy.example", 2)?;
    let accepted = condition(namespace, "tenantdomain/tenant-3", "Accepted")?;
    ensure!(accepted.status == "True", "the owner of the domain: {accepted:?}");
    println!("  good ones serve on, and the bad one that was set right: {:?}", fleet.settle(30)?);
    Ok(())
}

/// DomainGrants of a scenario, which belong to no Namespace; removed when it ends.
struct Grants<'a>(&'a Stage);

impl Grants<'_> {
    fn grant(&self, name: &str, namespace: &str, domains: &str) -> anyhow::Result<()> {
        let text = format!(
            "apiVersion: sekimori.dev/v1alpha1\nkind: DomainGrant\nmetadata: {{name: {name}, labels: {{e2e: hijack}}}}\nspec: {{namespaces: [{namespace}], domains: [{domains}]}}\n"
        );
        self.0.cluster.kubectl(&["apply", "--server-side", "--field-manager=e2e", "-f", "-"], Some(&text)).map(drop)
    }
}

impl Drop for Grants<'_> {
    fn drop(&mut self) {
        self.0.kubectl(&["delete", "domaingrants", "-l", "e2e=hijack"]).ok();
    }
}

fn hijack(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let grants = Grants(stage);
    let fleet = installation.fleet(stage, "victim", 2, "  tenants: {namespaces: {from: All}, ownership: Grant}\n")?;
    grants.grant("victim", "victim", "mine.example, inward-1.example, inward-2.example, inward-3.example")?;
    fleet.serve("mine", "mine.example", "")?;
    let thief = Thief { namespace: stage.namespace("thief")?, port: 0, at: "victim" };
    let (sink, ledger) = installation.sink()?;
    let thief = Thief { port: sink.address.port(), ..thief };

    // Without a grant.
    thief.claims("steal", "mine.example", "")?;
    thief.claims("own", "theirs.example", "")?;
    for name in ["steal", "own"] {
        let message =
            until(&thief.namespace, &format!("tenantdomain/{name}"), "Accepted", "False", "NotOwned", 30).with_context(|| fleet.explain())?;
        ensure!(message.contains("DomainGrant"), "{message}");
        println!("  {name}: {message}");
    }
    let refused = installation.post(fleet.service()?, "user@theirs.example", 2, &ledger)?;
    ensure!(refused == Answers { acknowledged: 0, refused: 2 }, "a domain that nobody was granted: {refused:?}");

    // With one: what is free is theirs, what somebody has is not.
    grants.grant("thief", "thief", "mine.example, theirs.example")?;
    thief.namespace.wait("tenantdomain/own", "condition=Ready", 30).with_context(|| fleet.explain())?;
    let conflict = until(&thief.namespace, "tenantdomain/steal", "Conflicted", "True", "DomainConflict", 30).with_context(|| fleet.explain())?;
    ensure!(conflict.contains("mine.example") && conflict.contains("another namespace"), "{conflict}");
    println!("  steal, granted: {conflict}");
    holder_is_not_named(&thief, "steal")?;
    let log =
        stage.kubectl(&["logs", "--namespace", SYSTEM, "-l", "app.kubernetes.io/name=sekimori-operator,sekimori.dev/leader=true", "--tail=2000"])?;
    ensure!(log.contains("victim/mine"), "the operator's log does not say who holds the domain: {log}");
    fleet.post("user@mine.example", 10)?;
    fleet.settle(30)?;
    ensure!(sink.arrivals().is_empty(), "the thief got mail");
    let answers = installation.post(fleet.service()?, "user@theirs.example", 3, &ledger)?;
    ensure!(answers == Answers { acknowledged: 3, refused: 0 }, "{answers:?}");
    eventually("the thief's own mail", 30, || {
        let balance = ledger.balance();
        ensure!(balance.missing == 0 && balance.damaged == 0, "{balance:?}");
        Ok(())
    })?;

    another_namespace(&fleet, &thief)?;
    anothers_secrets(&fleet, &thief)?;
    into_the_cluster(&fleet)?;
    ensure!(sink.arrivals().iter().all(|arrival| arrival.to == ["user@theirs.example"]), "the thief got others' mail");
    Ok(Outcome::Passed)
}

/// Another Namespace, with a mail server of its own.
struct Thief<'a> {
    namespace: Namespace<'a>,
    port: u16,
    /// The Namespace of the fleet that it wants to be at.
    at: &'static str,
}

impl Thief<'_> {
    fn claims(&self, name: &str, domain: &str, fields: &str) -> anyhow::Result<()> {
        self.namespace.apply(&self.tenant(name, domain, fields))
    }

    fn tenant(&self, name: &str, domain: &str, fields: &str) -> String {
        tenant(name, domain, "10.250.0.1", self.port, fields)
            .replace("fleetRef: {name: gate}", &format!("fleetRef: {{name: gate, namespace: {}}}", self.at))
    }
}

/// Policies and Secrets of another Namespace cannot be named, nor found by their name.
fn another_namespace(fleet: &Fleet<'_>, thief: &Thief<'_>) -> anyhow::Result<()> {
    fleet
        .namespace
        .apply("apiVersion: sekimori.dev/v1alpha1\nkind: MailPolicy\nmetadata: {name: lenient}\nspec: {antiVirus: {infected: Deliver}}\n")?;
    let why = thief.namespace.refused(&thief.tenant("own", "theirs.example", "  policyRef: {name: lenient, namespace: victim}\n"))?;
    ensure!(why.contains("namespace"), "{why}");
    thief.claims("own", "theirs.example", "  policyRef: {name: lenient}\n")?;
    let message = until(&thief.namespace, "tenantdomain/own", "Accepted", "False", "Invalid", 30).with_context(|| fleet.explain())?;
    ensure!(message.contains("lenient"), "{message}");
    until(&thief.namespace, "tenantdomain/own", "Programmed", "False", "LastGoodForm", 30)?;
    println!("  a policy of another namespace: {message}");
    Ok(())
}

/// Whatever is said to a loser of another Namespace, it is not the holder's Namespace or name.
fn holder_is_not_named(thief: &Thief<'_>, name: &str) -> anyhow::Result<()> {
    let mut said = thief.namespace.json(&format!("tenantdomain/{name}"))?["status"].to_string();
    said.push_str(&thief.namespace.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message} {.items[*].note}"])?);
    // `victim` is in the tenant's own fleetRef; in what is said of it, it has no place.
    ensure!(!said.contains("victim/mine") && !said.contains("TenantDomain mine"), "the holder is named: {said}");
    Ok(())
}

/// Secrets of another Namespace cannot be named, and one's own of the same name is another one: nothing of theirs gets into a message or a pod.
fn anothers_secrets(fleet: &Fleet<'_>, thief: &Thief<'_>) -> anyhow::Result<()> {
    for (name, labels) in [("labelled", "{sekimori.dev/config: \"true\"}"), ("plain", "{}")] {
        fleet.namespace.apply(&format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, labels: {labels}}}\nstringData: {{private.pem: victims-secret, user: victims-secret, tls.crt: victims-secret, tls.key: victims-secret}}\n"
        ))?;
        for field in [
            format!("  outbound: {{credentialsSecretRef: {{name: {name}, namespace: victim}}}}\n"),
            format!("  outbound: {{dkim: [{{selector: s1, secretRef: {{name: {name}, namespace: victim}}}}]}}\n"),
        ] {
            let why = thief.namespace.refused(&thief.tenant("reach", "theirs.example", &field))?;
            ensure!(why.contains("namespace"), "{why}");
        }
        let listener = |reference: &str| {
            let listener = format!("  listeners: [{{name: smtp, port: 2525, tls: {{certificateRefs: [{reference}]}}}}]\n");
            format!(
                "apiVersion: sekimori.dev/v1alpha1\nkind: GatewayFleet\nmetadata: {{name: copy}}\nspec:\n  hostname: mx.copy.example\n  replicas: 1\n  service: {{type: ClusterIP}}\n  spool: {{storage: 1Gi, storageClassName: {STORAGE_CLASS}}}\n{listener}"
            )
        };
        let why = thief.namespace.refused(&listener(&format!("{{name: {name}, namespace: victim}}")))?;
        ensure!(why.contains("namespace"), "{why}");
        thief.namespace.apply(&listener(&format!("{{name: {name}}}")))?;
        let message = until(&thief.namespace, "gatewayfleet/copy", "ResolvedRefs", "False", "UnresolvedRef", 30)?;
        ensure!(message.contains(&format!("there is no Secret thief/{name}")), "{message}");
        println!("  a Secret of another namespace: {message}");
        // A tenant may say its own Secret's name, and that is all that it says.
        thief.claims("reach", "theirs.example", &format!("  outbound: {{dkim: [{{selector: s1, secretRef: {{name: {name}}}}}]}}\n"))?;
        eventually("the tenant is judged", 30, || condition(&thief.namespace, "tenantdomain/reach", "Accepted").map(drop))?;
        let all = thief.namespace.kubectl(&["get", "sekimori,pods,configmaps,secrets,events", "-o", "json"])?;
        ensure!(!all.contains("victims-secret"), "the thief can read it");
    }
    thief.namespace.kubectl(&["delete", "gatewayfleet/copy", "tenantdomain/reach", "--wait=false"]).map(drop)
}

/// Routes to a Service, to a pod, and to a name that leads there: accepted mail stays queued, and the queue says why.
fn into_the_cluster(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let pod = fleet.pod(0)?;
    let routes = [
        ("inward-1", "10.96.0.1".to_owned(), 443),
        ("inward-2", pod.ip().to_string(), pod.port()),
        ("inward-3", "kubernetes.default.svc.cluster.local".into(), 443),
    ];
    for (name, host, port) in &routes {
        fleet.namespace.apply(&tenant(name, &format!("{name}.example"), host, *port, "  delivery: Queue\n"))?;
        fleet.namespace.wait(&format!("tenantdomain/{name}"), "condition=Programmed", 30).with_context(|| fleet.explain())?;
        fleet.post(&format!("user@{name}.example"), 2)?;
    }
    let mut said = vec![];
    eventually("each message was tried, and the queue says why it stays", 60, || {
        let queue = fleet.queue()?;
        ensure!(queue.len() == 6, "{queue:?}");
        for message in &queue {
            let error = message["error"].as_str().context("no error yet")?;
            ensure!(error.contains("spec.egress.allowedNetworks"), "{message}");
        }
        said = queue.iter().map(|message| message["error"].to_string()).collect();
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    said.sort();
    said.dedup();
    // A due time moves with the end of an attempt, so one that moved beyond the retry means that this one was tried again.
    let due = |queue: &[Value]| -> anyhow::Result<BTreeMap<String, u64>> {
        let one = |message: &Value| Some((format!("{}/{}", message["id"].as_str()?, message["sub"]), message["dueMs"].as_u64()?));
        queue.iter().map(|message| one(message).with_context(|| format!("no due time: {message}"))).collect()
    };
    let before = due(&fleet.queue()?)?;
    let tried = fleet.sekimori(&["queue", "retry", "--all", "--fleet", "gate"])?;
    ensure!(tried["count"] == 6, "{tried}");
    eventually("each message was tried a second time", 60, || {
        let queue = fleet.queue()?;
        let after = due(&queue)?;
        ensure!(after.len() == 6 && after.keys().eq(before.keys()), "{queue:?}");
        let again = after.iter().filter(|(id, due_ms)| before.get(*id).is_some_and(|before| *due_ms > before)).count();
        ensure!(again == 6, "{again} of 6 were: {queue:?}");
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    let balance = fleet.ledger.balance();
    ensure!(fleet.queue()?.len() == 6 && balance.missing == 6 && balance.arrived == 10, "{balance:?}");
    println!("  routes into the cluster, tried twice, never delivered: {}", said.join("; "));
    Ok(())
}

/// A fleet that serves its own Namespace alone; and wildcards within each other at a fleet that trusts everybody.
fn not_admitted_and_overlapping(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let fleet = installation.fleet(stage, "household", 1, "")?;
    let (sink, ledger) = installation.sink()?;
    let thief = Thief { namespace: stage.namespace("lodger")?, port: sink.address.port(), at: "household" };
    fleet.serve("corp", "*.hq.corp.example", "")?;
    thief.claims("guest", "guest.example", "")?;
    let message = until(&thief.namespace, "tenantdomain/guest", "Accepted", "False", "Invalid", 30).with_context(|| fleet.explain())?;
    ensure!(message.contains("spec.fleetRef") || message.contains("spec.tenants.namespaces"), "{message}");
    println!("  not admitted: {message}");
    let codes = installation.codes(fleet.service()?, "user@guest.example", 2, &ledger)?;
    ensure!(codes == BTreeMap::from([(550, 2)]), "{codes:?}");

    // Admitted, as everybody is. A wildcard within another's is still not theirs.
    fleet.namespace.kubectl(&["patch", "gatewayfleet/gate", "--type=merge", "-p", "{\"spec\":{\"tenants\":{\"namespaces\":{\"from\":\"All\"}}}}"])?;
    thief.namespace.wait("tenantdomain/guest", "condition=Ready", 30).with_context(|| fleet.explain())?;
    for (name, domain) in [("below", "*.sales.hq.corp.example"), ("above", "*.corp.example"), ("same", "*.hq.corp.example")] {
        thief.claims(name, domain, "")?;
        let object = format!("tenantdomain/{name}");
        let message = until(&thief.namespace, &object, "Conflicted", "True", "DomainConflict", 30).with_context(|| fleet.explain())?;
        ensure!(message.contains("another namespace") && !message.contains("household/") && !message.contains("TenantDomain corp"), "{message}");
        println!("  {domain}: {message}");
    }
    fleet.post("user@east.sales.hq.corp.example", 5)?;
    let balance = fleet.settle(30)?;
    ensure!(sink.arrivals().is_empty(), "the thief got mail");
    println!("  {balance:?}");
    Ok(Outcome::Passed)
}

/// A TXT record proves a domain; without one it is not served, and once accepted it stays, as a DNS that fails must take nothing away.
fn ownership_by_dns(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let fleet = installation.fleet(stage, "proved", 1, "  tenants: {ownership: DnsTxt}\n")?;
    // Nobody serves the zone yet: DNS fails, and that proves nothing.
    let domain = format!("shop.{TEST_ZONE}");
    let recipient = format!("user@{domain}");
    fleet.namespace.apply(&fleet.tenant("shop", &domain, ""))?;
    let object = "tenantdomain/shop";
    let unclear = until(&fleet.namespace, object, "Accepted", "False", "NotOwned", 30).with_context(|| fleet.explain())?;
    println!("  DNS fails: {unclear}");
    let zone_served = installation.test_zone()?;
    let mut message = String::new();
    eventually("the record to publish is named", 60, || {
        let accepted = condition(&fleet.namespace, object, "Accepted")?;
        ensure!(accepted.status == "False" && accepted.reason == "NotOwned" && accepted.message.contains("add the TXT record"), "{accepted:?}");
        message = accepted.message;
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    println!("  {message}");
    let codes = installation.codes(fleet.service()?, &recipient, 2, &fleet.ledger)?;
    ensure!(codes == BTreeMap::from([(550, 2)]), "a domain that is not proved: {codes:?}");
    // As people read it: the name, and the text in quotes.
    let name = format!("_sekimori.{domain}");
    let (_, after) = message.split_once(&format!("{name} \"")).with_context(|| format!("no record in {message}"))?;
    let (text, _) = after.split_once('"').context("no end of the text")?;
    ensure!(text.starts_with("v=sekimori1; proof="), "{text}");

    // Somebody else's proof is none, and other texts at the name do not matter.
    let publish = |texts: &[&str]| {
        let zone = texts.iter().fold(Zone::default(), |zone, text| zone.txt(&name, text));
        *zone_served.write().expect("no panic while held") = zone;
    };
    publish(&["v=sekimori1; proof=aaaaaaaa", "an SPF record of somebody", text]);
    let published = Instant::now();
    fleet.namespace.wait(object, "condition=Ready", 150).with_context(|| fleet.explain())?;
    let accepted = published.elapsed().as_secs_f64();
    fleet.post(&recipient, 5)?;

    // Withdrawn, and then no DNS that answers: what was accepted stays, over a change of the tenant and a new leader too.
    publish(&[]);
    fleet.namespace.apply(&fleet.tenant("shop", &domain, "  softBounce: true\n"))?;
    fleet.namespace.wait(object, "condition=Ready", 30).with_context(|| fleet.explain())?;
    stage.kubectl(&["rollout", "restart", "deployment/sekimori-operator", "--namespace", SYSTEM])?;
    crate::installation::rolled_out(&stage.cluster)?;
    fleet.serve("other", "other.elsewhere.example", "").err().context("a domain of nobody was accepted")?;
    until(&fleet.namespace, object, "Accepted", "True", "Valid", 30).with_context(|| fleet.explain())?;
    fleet.post(&recipient, 5)?;
    let balance = fleet.settle(30)?;
    println!("  accepted {accepted:.1} s after the record was published, and not taken away when it was withdrawn; {balance:?}");
    Ok(Outcome::Passed)
}

/// A server that refuses us, whatever the mail: what was accepted waits, the tenant says so, and takes it back when the server does.
fn a_server_that_refuses(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let fleet = stage.installation()?.fleet(stage, "refusing", 2, "")?;
    fleet.serve("blocked", "blocked.example", "  delivery: Queue\n")?;
    fleet.sink.behave(vec![(Behaviour::RefuseSender, 1)]);
    for pod in [0, 1] {
        fleet.post_to(fleet.pod(pod)?, "user@blocked.example", 3)?;
    }
    let object = "tenantdomain/blocked";
    let message = until(&fleet.namespace, object, "RouteRefusing", "True", "ServerRefuses", 60).with_context(|| fleet.explain())?;
    println!("  {message}");
    let ready = condition(&fleet.namespace, object, "Ready")?;
    ensure!(ready.status == "True", "nothing is lost by it: {ready:?}");
    let shown = fleet.sekimori(&["status"])?.to_string();
    ensure!(shown.contains("RouteRefusing"), "{shown}");
    fleet.sink.behave(vec![(Behaviour::Accept, 1)]);
    fleet.sekimori(&["queue", "retry", "--all", "--fleet", FLEET])?;
    let balance = fleet.settle(60)?;
    eventually("the condition goes", 60, || {
        ensure!(condition(&fleet.namespace, object, "RouteRefusing").is_err(), "{:?}", condition(&fleet.namespace, object, "RouteRefusing"));
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    println!("  {balance:?}");
    Ok(Outcome::Passed)
}
