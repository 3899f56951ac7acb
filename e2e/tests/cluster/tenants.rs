//! Tenants by `kubectl apply`: how soon they are served, bad ones among good ones, and those who reach for what is not theirs.

use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::installation::{Answers, Fleet, condition, tenant, until};
use crate::support::{Namespace, Outcome, Scenario, Stage, eventually, own_only};

pub(crate) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "tenants::applied_to_served", run: applied_to_served }, Scenario { name: "tenants::hijack", run: hijack }];

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
    let thief = Thief { namespace: stage.namespace("thief")?, port: 0 };
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
    ensure!(conflict.contains("mine.example"), "{conflict}");
    println!("  steal, granted: {conflict}");
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
    into_the_cluster(&fleet)?;
    ensure!(sink.arrivals().iter().all(|arrival| arrival.to == ["user@theirs.example"]), "the thief got others' mail");
    Ok(Outcome::Passed)
}

/// Another Namespace, with a mail server of its own.
struct Thief<'a> {
    namespace: Namespace<'a>,
    port: u16,
}

impl Thief<'_> {
    fn claims(&self, name: &str, domain: &str, fields: &str) -> anyhow::Result<()> {
        self.namespace.apply(&self.tenant(name, domain, fields))
    }

    fn tenant(&self, name: &str, domain: &str, fields: &str) -> String {
        tenant(name, domain, "10.250.0.1", self.port, fields).replace("fleetRef: {name: gate}", "fleetRef: {name: gate, namespace: victim}")
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
    let tried = fleet.sekimori(&["queue", "retry", "--all", "--fleet", "gate"])?;
    ensure!(tried["count"] == 6, "{tried}");
    std::thread::sleep(std::time::Duration::from_secs(5));
    let balance = fleet.ledger.balance();
    ensure!(fleet.queue()?.len() == 6 && balance.missing == 6 && balance.arrived == 10, "{balance:?}");
    println!("  routes into the cluster, tried twice, never delivered: {}", said.join("; "));
    Ok(())
}
