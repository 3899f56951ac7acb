//! The operator is killed at a write, before the API server has it or before the operator has the answer: whatever was half done, the next one finishes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sekimori_e2e::cluster::proxy::Proxy;
use sekimori_e2e::cluster::proxy::rules::{Asked, Effect, Matching, Rule, Verb};

use super::behind::{Behind, kill, process_of};
use super::on;
use crate::installation::{Answers, FLEET, Fleet, SYSTEM, condition};
use crate::support::{Outcome, Stage, eventually};

/// Set to kill at every write instead of some of them: half an hour.
const EVERY: &str = "SEKIMORI_E2E_EVERY_WRITE";
/// So many writes are tried, spread over all of a run, unless all are asked for.
const SAMPLES: u64 = 10;
/// No run takes more writes; one that seems to is a loop.
const WRITES_MAX: u64 = 300;
/// From a fleet's creation to its end with all that is asked for, whoever died meanwhile.
const RUN_WITHIN: u64 = 90;
/// What a fleet and its tenants are made of, and what their operators leave elsewhere.
const KINDS: &str = "gatewayfleet,tenantdomain,engine,statefulset,controllerrevision,pod,service,configmap,secret,serviceaccount,networkpolicy,pdb,pvc,role,rolebinding";

/// What came of one run.
struct Run {
    /// Writes until all was as asked for.
    writes: u64,
    /// The write at which the operator died.
    killed_at: Option<Asked>,
    /// What was there at the end.
    objects: BTreeSet<String>,
    /// What is left of it in the operator's Namespace when the fleet is deleted.
    left: BTreeSet<String>,
    seconds: f64,
}

pub(super) fn killed_at_each_write(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, "writes", |behind| {
        let clean = run(behind, None)?;
        println!(
            "  without a fault: {} writes, {} objects, {:.1} s; when it is deleted the operator keeps {:?}",
            clean.writes,
            clean.objects.len(),
            clean.seconds,
            clean.left
        );
        ensure!((10..WRITES_MAX).contains(&clean.writes), "{} writes", clean.writes);
        let step = if std::env::var_os(EVERY).is_some() { 1 } else { clean.writes.div_ceil(SAMPLES).max(1) };
        let mut number = 1;
        loop {
            ensure!(number < WRITES_MAX, "a run of {number} writes");
            let effect = if (number / step).is_multiple_of(2) { Effect::HoldBefore } else { Effect::HoldAfter };
            let done = run(behind, Some((number, effect))).with_context(|| format!("killed at write {number} ({effect:?})"))?;
            ensure!(
                done.objects == clean.objects,
                "killed at write {number} ({effect:?}), {:?}: {}",
                done.killed_at,
                difference(&clean.objects, &done.objects)
            );
            ensure!(done.left == clean.left, "killed at write {number}, then deleted: {}", difference(&clean.left, &done.left));
            let Some(asked) = done.killed_at else {
                ensure!(number * 2 > clean.writes, "write {number} was not reached, of {} without a fault", clean.writes);
                println!("  write {number}: not reached, so that was all of them");
                return Ok(());
            };
            let when = if effect == Effect::HoldBefore { "before" } else { "after" };
            println!("  killed {when} write {number} ({asked}): all done after {:.1} s and {} writes", done.seconds, done.writes);
            replace_the_leader(behind)?;
            number += step;
        }
    })
}

fn difference(clean: &BTreeSet<String>, done: &BTreeSet<String>) -> String {
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| one.difference(other).cloned().collect::<Vec<_>>();
    format!("missing {:?}, too many {:?}", only(clean, done), only(done, clean))
}

/// The kubelet waits longer and longer before it starts a container again; a new pod has no such past.
fn replace_the_leader(behind: &Behind<'_>) -> anyhow::Result<()> {
    let leader = behind.leader()?;
    behind.stage.kubectl(&["--namespace", SYSTEM, "delete", "pod", &leader.name, "--wait=false"])?;
    eventually("another leader", 30, || {
        let now = behind.leader()?;
        ensure!(now.uid != leader.uid, "still {now:?}");
        Ok(())
    })?;
    behind.is_well(40)
}

/// A fleet of one and a tenant, then a fleet of two and another domain; the operator dies at the write with this number.
fn run(behind: &Behind<'_>, fault: Option<(u64, Effect)>) -> anyhow::Result<Run> {
    let number = fault.map_or(0, |(number, _)| number);
    let name = format!("write-{number}");
    let matching = Matching::verbs(Verb::WRITES).within(&[&name, SYSTEM]).except(&["leases", "events"]);
    let process = process_of(&behind.leader()?.uid)?;
    behind.stage.cluster.recycle_volumes().ok();
    let before = records(behind)?;
    let (number, effect) = fault.unwrap_or((u64::MAX, Effect::HoldBefore));
    behind.proxy.set(vec![Rule::nth(matching, number, effect)]);
    let started = Instant::now();
    let (proxy, done) = (&behind.proxy, AtomicBool::new(false));
    let (fleet, killed_at) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| kills(proxy, &process, &done));
        let fleet = go_through(behind, &name);
        done.store(true, Ordering::Relaxed);
        let killed_at = killer.join().map_err(|_| anyhow::anyhow!("the thread that kills panicked"))??;
        anyhow::Ok((fleet?, killed_at))
    })?;
    let writes = behind.proxy.tallies().first().map_or(0, |tally| tally.matched);
    behind.proxy.clear();
    let seconds = started.elapsed().as_secs_f64();
    serves(&fleet).with_context(|| fleet.explain())?;
    let mut objects = objects(&fleet)?;
    objects.extend(made(&before, &records(behind)?, &name));
    goes(&fleet).with_context(|| fleet.explain())?;
    let left = made(&before, &records(behind)?, &name);
    Ok(Run { writes, killed_at, objects, left, seconds })
}

/// Waits for the write, and kills the process while it is held.
fn kills(proxy: &Proxy, process: &str, done: &AtomicBool) -> anyhow::Result<Option<Asked>> {
    while !done.load(Ordering::Relaxed) {
        if let Some(asked) = proxy.held() {
            kill(process)?;
            proxy.release();
            return Ok(Some(asked));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(None)
}

fn go_through<'a>(behind: &'a Behind<'a>, name: &str) -> anyhow::Result<Fleet<'a>> {
    let fleet = behind.installation.fleet_unready(behind.stage, name, 1, "")?;
    fleet.namespace.apply(&fleet.tenant("mover", "first.example", ""))?;
    settled(&fleet, 1).with_context(|| fleet.explain())?;
    fleet.namespace.kubectl(&["patch", "gatewayfleet", FLEET, "--type=merge", "-p", "{\"spec\":{\"replicas\":2}}"])?;
    fleet.namespace.apply(&fleet.tenant("mover", "second.example", ""))?;
    settled(&fleet, 2).with_context(|| fleet.explain())?;
    Ok(fleet)
}

/// The fleet is Ready with so many pods, and the tenant is Programmed as it is now.
fn settled(fleet: &Fleet<'_>, replicas: i64) -> anyhow::Result<()> {
    eventually(&format!("a fleet of {replicas} and its tenant"), RUN_WITHIN, || {
        for (object, kind) in [(format!("gatewayfleet/{FLEET}"), "Ready"), ("tenantdomain/mover".to_owned(), "Programmed")] {
            let condition = condition(&fleet.namespace, &object, kind)?;
            ensure!(condition.status == "True", "{object} {kind}: {condition:?}");
        }
        let set = fleet.namespace.json(&format!("statefulset/{FLEET}-gateway"))?;
        ensure!(set["status"]["readyReplicas"].as_i64() == Some(replicas), "{}", set["status"]);
        ensure!(fleet.endpoints()?.len() as i64 == replicas, "the Service leads to {:?}", fleet.endpoints()?);
        Ok(())
    })
}

/// Every gateway serves the tenant as it is, and not as it was.
fn serves(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    for pod in [0, 1] {
        let target = fleet.pod(pod)?;
        fleet.post_to(target, "user@second.example", 2)?;
        let former = fleet.installation.post(target, "user@first.example", 1, &fleet.ledger)?;
        ensure!(former == Answers { acknowledged: 0, refused: 1 }, "a domain that was given up, at gateway {pod}: {former:?}");
    }
    let uids = fleet.uids()?;
    ensure!(
        uids.len() == 2 && uids.iter().all(|line| line.split(' ').skip(2).all(|restarts| restarts == "0")),
        "a gateway was started again: {uids:?}"
    );
    fleet.settle(30).map(drop)
}

fn objects(fleet: &Fleet<'_>) -> anyhow::Result<BTreeSet<String>> {
    // An address of a slice and a revision of a set have made up names.
    let listed = fleet.namespace.kubectl(&["get", KINDS, "-o", "name"])?;
    let plain = |line: &str| match line.split_once("controllerrevision") {
        Some((_, revision)) => format!("controllerrevision {}", revision.rsplit_once('-').map_or(revision, |(set, _)| set)),
        None => line.to_owned(),
    };
    let lines: Vec<String> = listed.lines().map(plain).collect();
    let all: BTreeSet<String> = lines.iter().cloned().collect();
    ensure!(all.len() == lines.len(), "two revisions of a set: {lines:?}");
    Ok(all)
}

/// What operators keep in their own Namespace.
fn records(behind: &Behind<'_>) -> anyhow::Result<BTreeSet<String>> {
    let listed = behind.stage.kubectl(&["--namespace", SYSTEM, "get", "configmaps,secrets", "-o", "name"])?;
    // Releases of the charts are helm's.
    Ok(listed.lines().filter(|line| !line.contains("sh.helm")).map(str::to_owned).collect())
}

/// What came to the operator's records, without what differs from fleet to fleet: the Namespace, and a digest of it.
fn made(before: &BTreeSet<String>, now: &BTreeSet<String>, namespace: &str) -> BTreeSet<String> {
    let digest = |part: &&str| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let plain = |record: &String| {
        let record = record.replace(namespace, "NAMESPACE");
        record.split('-').map(|part| if digest(&part) { "DIGEST" } else { part }).collect::<Vec<_>>().join("-")
    };
    now.difference(before).map(plain).collect()
}

/// The fleet and its tenant are deleted; nothing of theirs is left but the volumes' claims.
fn goes(fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let kinds = ["--namespace", &fleet.namespace.name, "delete", "gatewayfleet,tenantdomain,engine", "--all", "--timeout=60s"];
    fleet.namespace.stage.cluster.kubectl_within(&kinds, None, Duration::from_secs(70))?.checked()?;
    eventually("nothing of the fleet is left", 60, || {
        let left = fleet.namespace.kubectl(&["get", KINDS, "-o", "name"])?;
        let ours = |line: &&str| {
            !["persistentvolumeclaim/", "configmap/kube-root-ca.crt", "serviceaccount/default"].iter().any(|known| line.starts_with(known))
        };
        let left: Vec<&str> = left.lines().filter(ours).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
