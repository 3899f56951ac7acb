//! `queue` and `quarantine` over all gateways of a fleet.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use sekimori_crds::v1alpha1::GatewayFleet;

use super::cluster::{Cluster, Where};
use super::exec::{Gateways, Runner, run_all};
use super::{Screen, once, watched};
use crate::kubectl::cli::{Change, FleetArgs, Listing, QuarantineVerb, QueueVerb, Selection};
use crate::kubectl::messages::{
    Call, Kept, Merged, Message, Queued, Reply, Store, Unreachable, changed, check_change, check_ids, complaint, merge, shortfall, shown, words,
};
use crate::kubectl::trouble::Trouble;
use crate::kubectl::{EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, Said};
use crate::names::GATEWAY_CONTAINER;
use crate::plan::selector_text;

/// Each gateway must have answered after this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// What is released is scanned again, message by message.
const RELEASE_WITHIN: Duration = Duration::from_secs(300);

/// `queue`.
pub(crate) async fn queue(cluster: &Cluster, verb: QueueVerb, screen: &Screen) -> ExitCode {
    let store = Store::Queue;
    match verb {
        QueueVerb::List(listing) => list::<Queued>(cluster, store, None, listing, screen).await,
        QueueVerb::Show { fleet, id } => once(show::<Queued>(cluster, store, &fleet, id, false, screen).await),
        QueueVerb::Retry(change) => once(operate::<Queued>(cluster, store, "retry", change, None, screen).await),
        QueueVerb::Hold(change) => once(operate::<Queued>(cluster, store, "hold", change, None, screen).await),
        QueueVerb::Release(change) => once(operate::<Queued>(cluster, store, "release", change, None, screen).await),
        QueueVerb::Drop(removal) => once(operate::<Queued>(cluster, store, "drop", removal.change, Some(removal.yes), screen).await),
    }
}

/// `quarantine`.
pub(crate) async fn quarantine(cluster: &Cluster, verb: QuarantineVerb, dead_letters: bool, screen: &Screen) -> ExitCode {
    let store = if dead_letters { Store::DeadLetters } else { Store::Quarantine };
    match verb {
        QuarantineVerb::List(listing) => list::<Kept>(cluster, store, None, listing, screen).await,
        QuarantineVerb::Search { text, listing } => list::<Kept>(cluster, store, Some(text), listing, screen).await,
        QuarantineVerb::Show { fleet, id, raw } => once(show::<Kept>(cluster, store, &fleet, id, raw, screen).await),
        QuarantineVerb::Release(change) => once(operate::<Kept>(cluster, store, "release", change, None, screen).await),
        QuarantineVerb::Delete(removal) => once(operate::<Kept>(cluster, store, "delete", removal.change, Some(removal.yes), screen).await),
    }
}

/// The pods of a fleet: those that can be asked, and the others.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    pub(crate) running: Vec<String>,
    pub(crate) others: Vec<Unreachable>,
}

/// The fleet that is meant, and its pods.
pub(crate) async fn pods(cluster: &Cluster, args: &FleetArgs) -> Result<Pods, Trouble> {
    let fleet = match &args.fleet {
        Some(fleet) => fleet.clone(),
        None => only_fleet(cluster).await?,
    };
    let found: Vec<Pod> = cluster.all(Where::One(&cluster.namespace), Some(&selector_text(&fleet)), &mut vec![]).await?;
    if found.is_empty() {
        // A name that is wrong is said so; a fleet without pods has no queue.
        let _: GatewayFleet = cluster.one(&cluster.namespace, &fleet).await?;
        return Err(Trouble::one(format!("the fleet {}/{fleet} has no pod: kubectl sekimori status -n {0}", cluster.namespace)));
    }
    let mut pods = Pods::default();
    for pod in found {
        let name = pod.metadata.name.clone().unwrap_or_default();
        match obstacle(&pod) {
            None => pods.running.push(name),
            Some(error) => pods.others.push(Unreachable { pod: name, error }),
        }
    }
    Ok(pods)
}

/// Why nothing can be run in a pod's gateway.
fn obstacle(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref();
    let gateway = status.and_then(|status| status.container_statuses.as_ref()?.iter().find(|container| container.name == GATEWAY_CONTAINER));
    let state = gateway.and_then(|gateway| gateway.state.as_ref());
    if state.is_some_and(|state| state.running.is_some()) {
        return None;
    }
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    let why = state.and_then(|state| state.waiting.as_ref()?.reason.clone().or_else(|| state.terminated.as_ref()?.reason.clone()));
    let why = why.map(|why| format!(", {why}")).unwrap_or_default();
    Some(format!("its container {GATEWAY_CONTAINER} does not run (the pod is {phase}{why}): kubectl describe pod"))
}

async fn only_fleet(cluster: &Cluster) -> Result<String, Trouble> {
    let namespace = &cluster.namespace;
    let mut names = vec![];
    cluster
        .each::<GatewayFleet>(Where::One(namespace), None, |fleet| {
            names.extend(fleet.metadata.name);
            true
        })
        .await?;
    match names.as_slice() {
        [only] => Ok(only.clone()),
        [] => {
            Err(Trouble::one(format!("there is no GatewayFleet in namespace {namespace}: choose another one with -n (kubectl sekimori status -A)")))
        }
        several => Err(Trouble {
            code: EXIT_USAGE,
            ..Trouble::one(format!("namespace {namespace} has several fleets, say which with --fleet: {}", several.join(", ")))
        }),
    }
}

fn usage(text: String) -> Trouble {
    Trouble { code: EXIT_USAGE, ..Trouble::one(text) }
}

/// Ids as the gateways write them.
fn capital(ids: &[String]) -> Vec<String> {
    ids.iter().map(|id| id.to_ascii_uppercase()).collect()
}

async fn list<M: Message>(cluster: &Cluster, store: Store, text: Option<String>, listing: Listing, screen: &Screen) -> ExitCode {
    let Listing { fleet, mut selection, watch } = listing;
    selection.ids = capital(&selection.ids);
    if let Err(wrong) = check_ids(&selection.ids) {
        return once(Err(usage(wrong)));
    }
    let words = words(&selection, &selection.ids);
    let call = text.map_or_else(|| Call::List(words.clone()), |text| Call::Search(words.clone(), text));
    watched(watch, screen, async || {
        let pods = pods(cluster, &fleet).await?;
        let merged: Merged<M> = everywhere(&Gateways { cluster }, &pods, store, &call, &selection.ids).await?;
        Ok(merged.said(screen.json, screen.paint))
    })
    .await
}

/// One list of all gateways.
pub(crate) async fn everywhere<M: Message>(
    runner: &impl Runner,
    pods: &Pods,
    store: Store,
    call: &Call,
    wanted: &[String],
) -> Result<Merged<M>, Trouble> {
    let command = call.command(store);
    let jobs = pods.running.iter().map(|pod| (pod.clone(), command.clone())).collect();
    let replies = run_all(runner, jobs, ANSWER_WITHIN).await?;
    let mut merged = merge(&replies, wanted);
    merged.unreachable.extend(pods.others.iter().cloned());
    Ok(merged)
}

async fn show<M: Message>(cluster: &Cluster, store: Store, fleet: &FleetArgs, id: String, raw: bool, screen: &Screen) -> Result<Said, Trouble> {
    let ids = capital(&[id]);
    check_ids(&ids).map_err(usage)?;
    let pods = pods(cluster, fleet).await?;
    show_in::<M>(&Gateways { cluster }, &pods, store, &ids, raw, screen).await
}

/// Finds a message, then shows it as its gateway knows it.
pub(crate) async fn show_in<M: Message>(
    runner: &impl Runner,
    pods: &Pods,
    store: Store,
    ids: &[String],
    raw: bool,
    screen: &Screen,
) -> Result<Said, Trouble> {
    let found: Merged<M> = everywhere(runner, pods, store, &Call::List(ids.to_vec()), ids).await?;
    let Some((pod, id)) = found.places().into_iter().find_map(|(pod, ids)| ids.into_iter().next().map(|id| (pod, id))) else {
        return Ok(Said { text: String::new(), errors: shortfall(&found.unreachable, &found.missing), code: EXIT_PARTIAL });
    };
    let replies = run_all(runner, vec![(pod, Call::Show { id, raw }.command(store))], ANSWER_WITHIN).await?;
    let Some(reply) = replies.first() else { return Err(super::trouble("no reply of a gateway that was asked")) };
    Ok(if raw { written(reply) } else { shown(reply, screen.json) })
}

/// The message's bytes go out as they are: they may be no text.
fn written(reply: &Reply) -> Said {
    let wrong = |error: String| Said { text: String::new(), errors: format!("{}: {error}\n", reply.pod), code: EXIT_PARTIAL };
    match &reply.outcome {
        Ok(output) if output.code == 0 => match std::io::stdout().lock().write_all(&output.stdout) {
            Ok(()) => Said { code: EXIT_OK, ..Said::default() },
            Err(error) => wrong(error.to_string()),
        },
        Ok(output) => wrong(complaint(output)),
        Err(error) => wrong(error.clone()),
    }
}

async fn operate<M: Message>(
    cluster: &Cluster,
    store: Store,
    verb: &'static str,
    mut change: Change,
    removal: Option<bool>,
    screen: &Screen,
) -> Result<Said, Trouble> {
    change.selection.ids = capital(&change.selection.ids);
    check_change(verb, &change.selection, change.dry_run, removal).map_err(usage)?;
    let pods = pods(cluster, &change.fleet).await?;
    operate_in::<M>(&Gateways { cluster }, &pods, store, verb, &change.selection, change.dry_run, screen).await
}

/// A change: with ids in those gateways that have them, else in every one.
pub(crate) async fn operate_in<M: Message>(
    runner: &impl Runner,
    pods: &Pods,
    store: Store,
    verb: &'static str,
    selection: &Selection,
    dry_run: bool,
    screen: &Screen,
) -> Result<Said, Trouble> {
    let (places, unreachable, missing) = if selection.ids.is_empty() {
        (pods.running.iter().map(|pod| (pod.clone(), vec![])).collect(), pods.others.clone(), vec![])
    } else {
        let found: Merged<M> = everywhere(runner, pods, store, &Call::List(words(selection, &selection.ids)), &selection.ids).await?;
        (found.places(), found.unreachable, found.missing)
    };
    let command = |ids: &[String]| {
        let mut words = words(selection, ids);
        if dry_run {
            words.push("--dry-run".to_owned());
        }
        Call::Change(verb, words).command(store)
    };
    let jobs = places.iter().map(|(pod, ids)| (pod.clone(), command(ids))).collect();
    let timeout = if verb == "release" && store != Store::Queue { RELEASE_WITHIN } else { ANSWER_WITHIN };
    let replies = run_all(runner, jobs, timeout).await?;
    Ok(changed(&replies, dry_run, unreachable, &missing, screen.json))
}
