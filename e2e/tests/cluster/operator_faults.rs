//! Faults around a fleet that carries mail: of its operator, of the API server, of a node, of certificates and tokens. Every 250 must arrive.
//!
//! One installation for all of them, in a namespace of its own; the last scenario takes it away.

mod certificates;
mod installation;
mod tokens;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::support::{Outcome, Scenario, Stage, eventually, own_only};
use installation::{Installation, RECIPIENT, installed, kill_process, remove};
use traffic::Traffic;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "operator_faults::two_operators_and_one_lease", run: two_operators_and_one_lease },
    Scenario { name: "operator_faults::the_operator_is_killed_while_mail_flows", run: the_operator_is_killed_while_mail_flows },
    Scenario { name: "operator_faults::a_gateway_restarts_without_an_operator", run: a_gateway_restarts_without_an_operator },
    Scenario { name: "operator_faults::the_api_server_is_slow_and_away", run: the_api_server_is_slow_and_away },
    Scenario { name: "operator_faults::tokens", run: tokens },
    Scenario { name: "operator_faults::the_streams_certificate_rotates", run: the_streams_certificate_rotates },
    Scenario { name: "operator_faults::a_node_is_lost", run: a_node_is_lost },
    Scenario { name: "operator_faults::the_installation_goes", run: the_installation_goes },
];

/// The Lease expires after 15 s without a renewal, the others look every 2 s, and the container runtime needs a moment.
const NEW_LEADER_WITHIN: u64 = 20;
/// No fault of the operator is felt by a sender: this is what a busy machine may take.
const GAP_MAX: Duration = Duration::from_secs(3);

/// Nobody listens there.
const CLOSED: u16 = 2601;
/// Messages in the keeping of a gateway whose node is lost.
const KEPT: u64 = 20;

/// A scenario on the installation; if it fails, it shows what one would look at first.
fn on(stage: &Stage, scenario: impl FnOnce(&Installation<'_>) -> anyhow::Result<()>) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = installed(stage)?;
    scenario(&installation).inspect_err(|_| installation.explain())?;
    Ok(Outcome::Passed)
}

fn two_operators_and_one_lease(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, |installation| {
        let leader = installation.lease()?.holder;
        for pod in installation.operators()? {
            let metrics = installation.metrics(&pod)?;
            let leads = metrics.lines().any(|line| line == "sekimori_operator_leader 1");
            ensure!(leads == (pod == leader), "{pod}, while {leader} holds the Lease:\n{metrics}");
            let followed = metrics.lines().any(|line| line == "sekimori_operator_stream_gateways 2");
            ensure!(followed == leads, "gateways follow the leader and nobody else; {pod}:\n{metrics}");
        }
        Ok(())
    })
}

/// How the leader ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Its pod is deleted without grace; the process still hears SIGTERM.
    Deleted,
    /// Its process dies at once, and the kubelet starts another one in the pod.
    Killed,
    /// Its process dies at once, and the pod goes too: the Lease has to expire.
    KilledAndDeleted,
}

fn the_operator_is_killed_while_mail_flows(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, |installation| {
        let before = installation.gateways()?;
        let traffic = Traffic::begin(RECIPIENT, &[installation.smtp()?], 3)?;
        for (round, end) in [End::Deleted, End::KilledAndDeleted, End::Killed, End::Deleted, End::KilledAndDeleted].into_iter().enumerate() {
            lose_the_leader(installation, &traffic, end, &format!("killed{round}"))?;
        }
        let books = traffic.end(60)?;
        installation.are_untouched(&before)?;
        ensure!(books.gap < GAP_MAX, "a sender felt it: {}", books.line());
        println!("  {}", books.line());
        Ok(())
    })
}

fn lose_the_leader(installation: &Installation<'_>, traffic: &Traffic, end: End, name: &str) -> anyhow::Result<()> {
    let lease = installation.lease()?;
    let pod = lease.holder.clone();
    let uid = installation.text(&format!("pod/{pod}"), "/metadata/uid")?;
    let started = Instant::now();
    if !matches!(end, End::Deleted) {
        kill_process(&uid, "sekimori-operator")?;
    }
    if !matches!(end, End::Killed) {
        installation.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force", "--wait=false"])?;
    }
    installation.apply(&installation::tenant(name))?;
    let mut next = lease.clone();
    eventually("somebody leads again", NEW_LEADER_WITHIN, || {
        next = installation.lease()?;
        ensure!(next.epoch > lease.epoch && !next.holder.is_empty(), "before {lease:?}, now {next:?}");
        Ok(())
    })?;
    let leads = started.elapsed().as_secs_f64();
    installation.wait(&format!("tenantdomain/{name}"), "condition=Programmed", 15)?;
    let programmed = started.elapsed().as_secs_f64();
    for gateway in installation.gateways()? {
        traffic.gets_through(&format!("user@{name}.example"), gateway.smtp()?, 5)?;
    }
    installation.is_well(40)?;
    println!(
        "  {end:?}: a leader after {leads:.1} s, a tenant applied meanwhile on every gateway after {programmed:.1} s, epoch {} -> {}",
        lease.epoch, next.epoch
    );
    Ok(())
}

fn a_gateway_restarts_without_an_operator(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, |installation| {
        let before = installation.gateways()?;
        let [first, other] = before.as_slice() else { anyhow::bail!("two gateways") };
        let traffic = Traffic::begin(RECIPIENT, &[installation.smtp()?], 3)?;
        installation.operators_are(0)?;
        let started = Instant::now();
        installation.kubectl(&["delete", "pod", &first.name, "--wait=false"])?;
        eventually("a new pod that is Ready", 90, || {
            let uid = installation.text(&format!("pod/{}", first.name), "/metadata/uid")?;
            ensure!(uid != first.uid, "still the old one");
            installation.wait(&format!("pod/{}", first.name), "condition=Ready", 5)
        })?;
        let ready = started.elapsed().as_secs_f64();
        let alone = installation.gateways()?;
        let again = alone.iter().find(|gateway| gateway.name == first.name).map(installation::Gateway::smtp).transpose()?;
        let again = again.ok_or_else(|| anyhow::anyhow!("{} is gone", first.name))?;
        let through = traffic.gets_through(RECIPIENT, again, 10)?;
        traffic.flows(20, 20)?;
        ensure!(alone.contains(other), "the other gateway was touched: {alone:?}");
        installation.operators_are(2)?;
        installation.is_well(60)?;
        let programmed = installation.programs("operator-is-back", 20)?;
        for gateway in installation.gateways()? {
            traffic.gets_through("user@operator-is-back.example", gateway.smtp()?, 5)?;
        }
        // Long enough for an operator to think better of it.
        std::thread::sleep(Duration::from_secs(5));
        let books = traffic.end(60)?;
        installation.are_untouched(&alone)?;
        println!(
            "  no operator: a new pod is Ready after {ready:.1} s and takes mail {through:.1} s later; the operator back, a tenant takes {programmed:.1} s"
        );
        println!("  {}", books.line());
        Ok(())
    })
}

fn the_api_server_is_slow_and_away(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, |installation| {
        let before = installation.gateways()?;
        let traffic = Traffic::begin(RECIPIENT, &[installation.smtp()?], 3)?;
        for (what, seconds) in [("hangs", 8), ("is away", 20)] {
            let epoch = installation.lease()?.epoch;
            let acknowledged = traffic.balance().acknowledged;
            if what == "hangs" {
                stage.cluster.api_server_pause()?
            } else {
                stage.cluster.api_server_stop()?
            }
            std::thread::sleep(Duration::from_secs(seconds));
            let meanwhile = traffic.balance().acknowledged - acknowledged;
            stage.cluster.api_server_start()?;
            let started = Instant::now();
            installation.is_well(90)?;
            let well = started.elapsed().as_secs_f64();
            let name = if what == "hangs" { "after-a-pause" } else { "after-a-stop" };
            let programmed = installation.programs(name, 20)?;
            for gateway in installation.gateways()? {
                traffic.gets_through(&format!("user@{name}.example"), gateway.smtp()?, 5)?;
            }
            ensure!(meanwhile >= seconds, "only {meanwhile} messages in {seconds} s");
            let after = installation.lease()?.epoch;
            println!(
                "  the API server {what} for {seconds} s: {meanwhile} messages meanwhile; all well {well:.1} s later, a tenant then takes {programmed:.1} s, epoch {epoch} -> {after}"
            );
        }
        let books = traffic.end(60)?;
        installation.are_untouched(&before)?;
        ensure!(books.gap < GAP_MAX, "a sender felt it: {}", books.line());
        println!("  {}", books.line());
        Ok(())
    })
}

fn tokens(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, |installation| {
        let before = installation.gateways()?;
        let traffic = Traffic::begin(RECIPIENT, &[installation.smtp()?], 2)?;
        tokens::attack(installation)?;
        // A stream with a gateway's own token took that gateway's place for a moment.
        installation.is_well(30)?;
        installation.programs("after-the-attacks", 20)?;
        for gateway in installation.gateways()? {
            traffic.gets_through("user@after-the-attacks.example", gateway.smtp()?, 5)?;
        }
        let books = traffic.end(60)?;
        installation.are_untouched(&before)?;
        ensure!(books.gap < GAP_MAX, "a sender felt it: {}", books.line());
        println!("  {}", books.line());
        Ok(())
    })
}

/// Twice: after the second time nothing is left of what the gateways began with.
fn the_streams_certificate_rotates(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, |installation| {
        let before = installation.gateways()?;
        let traffic = Traffic::begin(RECIPIENT, &[installation.smtp()?], 3)?;
        for round in 1..=2 {
            let old = certificates::served(installation)?;
            let (started, epoch) = (Instant::now(), installation.lease()?.epoch);
            installation.upgrade(&format!("certificates.rotate={round}"))?;
            // The kubelet brings a changed Secret within a minute or so, and the operator looks every ten seconds.
            eventually("the operator serves with the new certificate", 120, || {
                ensure!(certificates::served(installation)? != old, "still the old one");
                Ok(())
            })?;
            let served = started.elapsed().as_secs_f64();
            ensure!(installation.lease()?.epoch == epoch, "the rotation cost the leader its Lease");
            // Streams that are open stay open; a new leader makes every gateway look at the new certificate.
            lose_the_leader(installation, &traffic, End::Deleted, &format!("rotated{round}"))?;
            println!("  rotation {round}: in use after {served:.1} s");
        }
        let books = traffic.end(60)?;
        installation.are_untouched(&before)?;
        ensure!(books.gap < GAP_MAX, "a sender felt it: {}", books.line());
        println!("  {}", books.line());
        Ok(())
    })
}

fn a_node_is_lost(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, |installation| {
        let before = installation.gateways()?;
        let mut nodes: Vec<&str> = before.iter().map(|gateway| gateway.node.as_str()).collect();
        nodes.sort_unstable();
        ensure!(nodes == ["node1", "node2"], "a gateway on each node, please: {before:?}");
        // Half of all connections meet the lost node's address until it is out of the Service, and hang for ten seconds each.
        let traffic = Traffic::begin(RECIPIENT, &[installation.smtp()?], 12)?;
        traffic.flows(50, 30)?;
        // What the lost gateway has taken and not delivered: its server does not listen yet.
        installation.apply(&installation::tenant_to("kept", CLOSED))?;
        installation.wait("tenantdomain/kept", "condition=Programmed", 20)?;
        let lost = before.iter().find(|gateway| gateway.node == "node2").map(installation::Gateway::smtp).transpose()?;
        let lost = lost.ok_or_else(|| anyhow::anyhow!("no gateway on node2"))?;
        for _ in 0..KEPT {
            traffic.gets_through("user@kept.example", lost, 10)?;
        }
        installation.apply(&installation::tenant("kept"))?;
        installation.wait("tenantdomain/kept", "condition=Programmed", 20)?;
        stage.cluster.node_kill(2)?;
        let started = Instant::now();
        let survived = the_service_goes_on(installation, &traffic);
        let lost = started.elapsed().as_secs_f64();
        let missing = traffic.balance().missing;
        ensure!(missing >= KEPT, "the lost gateway had {KEPT} messages, but only {missing} are missing");
        // Whatever came of it: later scenarios need the node.
        stage.cluster.node_start(2)?;
        let noticed = survived?;
        installation.is_well(120)?;
        let back = started.elapsed().as_secs_f64() - lost;
        traffic.flows(50, 30)?;
        let after = installation.gateways()?;
        for gateway in &after {
            traffic.gets_through(RECIPIENT, gateway.smtp()?, 20)?;
        }
        installation.sekimori(&["queue", "retry", "--all", "--fleet", "quickstart"])?;
        let books = traffic.end(60)?;
        println!(
            "  a lost node is out of the Service after {noticed:.1} s; after {lost:.1} s it came back with {missing} messages in its keeping, all well {back:.1} s later"
        );
        println!("  {}", books.line());
        ensure!(books.gap < Duration::from_secs(15), "senders with retries waited too long: {}", books.line());
        let uids = |all: &[installation::Gateway]| all.iter().map(|gateway| gateway.uid.clone()).collect::<Vec<_>>();
        ensure!(uids(&before) == uids(&after), "another pod in place of one that came back: {before:?}, then {after:?}");
        Ok(())
    })
}

/// Mail flows while the node is away, first for those who try again, then for everybody; after how many seconds.
fn the_service_goes_on(installation: &Installation<'_>, traffic: &Traffic) -> anyhow::Result<f64> {
    let started = Instant::now();
    traffic.flows(10, 30)?;
    eventually("the lost pod is not of the Service any more", 60, || {
        let slices = installation.kubectl(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=quickstart-smtp",
            "-o",
            "jsonpath={range .items[*].endpoints[?(@.conditions.ready==true)]}{.nodeName}{\"\\n\"}{end}",
        ])?;
        ensure!(slices.lines().collect::<Vec<_>>() == ["node1"], "ready endpoints on {slices:?}");
        Ok(())
    })?;
    let noticed = started.elapsed().as_secs_f64();
    let service = installation.smtp()?;
    // Every node's kube-proxy needs a moment to follow, and until then every other connection meets the lost pod.
    eventually("six in a row that do not meet the lost pod", 20, || (0..6).try_for_each(|_| traffic.gets_through(RECIPIENT, service, 5).map(drop)))?;
    traffic.flows(30, 30)?;
    Ok(noticed)
}

fn the_installation_goes(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let took = remove(stage)?;
    println!("  a fleet and its tenants deleted, and the release gone: {took:.1} s");
    Ok(Outcome::Passed)
}
