//! The steps between: decide, and write what was decided, in an order that is safe to break off anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use sekimori_crds::compile::{Finding, FleetReferences, Lookup, Problem, Reason, check_engine, compile_fleet};
use sekimori_crds::snapshot::{EngineEndpoint, Part, part_json};
use sekimori_crds::stream::{DrainKind as WireDrain, Orders};
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::gather::{Gathered, identities, pods};
use super::{Applied, Controller, Memory, report};
use crate::fleet::Fleet;
use crate::io::clock;
use crate::io::cluster::{ClusterError, apply, if_there, patch_metadata, readable, request, set_finalizer};
use crate::io::hub::{FleetKey, FleetState, PodState};
use crate::names::{self, MANAGER, Slot};
use crate::observe::{self, Heard};
use crate::plan::{self, Plan};
use crate::update::{self, Action, Barred, DrainKind, Observation, Outcome, Serving, Step, Wanted};
use crate::validate;

/// What was applied is applied again from time to time: somebody may have changed it.
pub(super) const APPLY_EVERY: Duration = Duration::from_secs(300);
/// What fails so many times in a row is said, even where it may pass.
const FAILURES_TOLD: u32 = 2;
/// Bytes of the key of the last good configuration on a spool's volume (AES-256).
const SNAPSHOT_KEY_BYTES: usize = 32;

/// One turn. Says when to look again.
pub(super) async fn turn(
    controller: &Controller,
    key: &FleetKey,
    fleet: &GatewayFleet,
    gathered: &Gathered,
    memory: &mut Memory,
) -> Result<Option<u64>, ClusterError> {
    let now_ms = clock::unix_ms();
    let deleting = fleet.metadata.deletion_timestamp.is_some();
    let held = fleet.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == names::FLEET_FINALIZER);
    if deleting && !held {
        // All of ours is done; it waits for somebody else's finalizer, or for the watch to say that it is gone.
        return Ok(None);
    }
    let settings = controller.context.settings.load_full();
    let state = controller.context.hub.fleet(key);
    let claims = gathered.claims.iter().map(|claim| &**claim);
    let mut seen = look((key, &state), gathered.set.as_deref(), gathered.pods.iter().map(|pod| &**pod), claims, &gathered.lost_nodes, now_ms);
    let (engines, broken) = readable(&gathered.engines);
    let (versions, _) = readable(&gathered.versions);
    let world = validate::World {
        engines: engines.clone(),
        versions: versions.clone(),
        secrets: gathered.secrets.iter().map(|(name, keys)| (name.as_str(), keys.clone())).collect(),
        stateful_set: gathered.set.as_deref(),
        csi: gathered.csi,
    };
    let checked = validate::check(fleet, &world, &settings);
    let mut problems = checked.problems;
    let replicas = seen.set_replicas.unwrap_or_else(|| update::replicas_of_new_set(&crate::fleet::wanted(fleet, ""), &seen));
    let planned = checked.fleet.as_ref().and_then(|resolved| match plan::plan(resolved, &settings, replicas) {
        Ok(planned) => Some((resolved, planned)),
        Err(found) => {
            problems.extend(found);
            None
        }
    });
    if !memory.has_expectation {
        let before = fleet.status.as_ref().and_then(|status| status.tenants).unwrap_or_default();
        controller.context.hub.expect_tenants(key, usize::try_from(before).unwrap_or(usize::MAX));
        memory.has_expectation = true;
    }
    configure(controller, key, fleet, &engines, &broken, &versions, planned.as_ref().map(|(resolved, _)| *resolved), &mut problems);
    let plan = planned.as_ref().map(|(_, planned)| planned);
    let mut placed = Ok(());
    if deleting {
        seen.barred =
            stand_by(controller, key, plan.filter(|_| !seen.pods.is_empty() || replicas > 0), (gathered.set.as_deref(), replicas), memory).await?;
    } else if let Some(plan) = plan {
        placed = put_in_place(controller, key, fleet, held, plan, gathered.set.as_deref(), memory).await;
    }
    let (wanted, frozen) = wanted(fleet, plan.filter(|_| placed.is_ok()), gathered.set.as_deref(), &seen);
    let mut step = wanted.as_ref().map(|wanted| update::step(wanted, &seen, now_ms));
    if let Some((wanted, decided)) = wanted.as_ref().zip(step.as_ref()) {
        controller.context.metrics.paused(key, Some(&decided.outcome));
        placed = placed.and(act(controller, key, fleet, gathered, (wanted, &seen), decided).await);
        if decided.actions.contains(&Action::ReleaseFleet) {
            // There is nothing left to say anything about.
            return placed.map(|()| None);
        }
    }
    let again = again(step.as_ref(), now_ms);
    if frozen {
        // What is said is that the pods are kept as they are, and why.
        step = None;
    }
    let pins = planned.map(|(_, planned)| planned.pins);
    memory.failures = if placed.is_ok() { 0 } else { memory.failures.saturating_add(1) };
    match &placed {
        Ok(()) => {}
        Err(error) if error.is_refusal() || (memory.failures >= FAILURES_TOLD && !error.is_conflict()) => {
            step = None;
            let finding = Finding::new("", Reason::InvalidValue, format!("the API server does not take it: {error}"));
            problems.push(Problem::error("", &format!("GatewayFleet {}/{}", key.namespace, key.name), finding));
        }
        // What passes is tried again, and said when it is over.
        Err(_) => return placed.map(|()| None),
    }
    confirm_removals(controller, key, fleet, state.removals_waiting).await?;
    let report = report::Input {
        key,
        fleet,
        problems: &problems,
        pins: pins.as_ref(),
        seen: &seen,
        pods: &gathered.pods,
        step: step.as_ref(),
        state: &state,
        now_ms,
    };
    report::write(controller, &report, &engines, &versions, memory).await?;
    placed.map(|()| again)
}

/// When to look again.
fn again(step: Option<&Step>, now_ms: u64) -> Option<u64> {
    let step = step?;
    let acted = step.outcome != Outcome::Done && !step.actions.is_empty();
    step.again_at_ms.or_else(|| acted.then_some(now_ms + 1_000))
}

/// What is wanted of the pods, and whether they are only kept as they are. Whatever is wrong with a fleet, drains that began come to their end, and mail is kept
/// from pods that do not serve: against the template and the number that the StatefulSet has. One that is deleted retires.
fn wanted(fleet: &GatewayFleet, plan: Option<&Plan>, set: Option<&StatefulSet>, seen: &Observation) -> (Option<Wanted>, bool) {
    let present = set.and_then(template_hash);
    if fleet.metadata.deletion_timestamp.is_some() {
        return (Some(crate::fleet::wanted(fleet, &present.unwrap_or_default())), false);
    }
    if let Some(plan) = plan {
        return (Some(crate::fleet::wanted(fleet, &plan.pins.template_hash)), false);
    }
    let kept = present.zip(seen.set_replicas).map(|(hash, replicas)| Wanted { replicas, ..crate::fleet::wanted(fleet, &hash) });
    (kept, true)
}

/// Everything that is there of the fleet.
fn look<'a>(
    (key, state): (&FleetKey, &'a FleetState),
    set: Option<&StatefulSet>,
    pods: impl IntoIterator<Item = &'a Pod>,
    claims: impl IntoIterator<Item = &'a PersistentVolumeClaim>,
    lost: &BTreeSet<String>,
    now_ms: u64,
) -> Observation {
    let heard = |uid: &str| {
        state.pods.get(uid).map(|(_, pod)| Heard {
            connected: pod.connected,
            since_ms: pod.since_ms,
            report: pod.report.as_ref().map(|(at, report)| (*at, &**report)),
        })
    };
    observe::observation(&key.name, set, pods, claims, lost, now_ms, heard)
}

/// Which gateways ended with nothing in their spools. A successor that has said nothing yet may have taken mail.
fn remember_last_words(memory: &mut Memory, key: &FleetKey, state: &FleetState) {
    for (identity, pod) in state.pods.values() {
        let Some(ordinal) = observe::ordinal_of(&key.name, &identity.name) else { continue };
        if pod.report.as_ref().is_some_and(|(_, report)| report.ending && report.sessions == 0 && report.spooled == 0) {
            memory.ended_empty.insert(ordinal);
        } else {
            memory.ended_empty.remove(&ordinal);
        }
    }
}

/// For a fleet that is deleted: its pods keep what they mount, and volumes with mail get their pods back if their StatefulSet was deleted, too. Says why not.
async fn stand_by(
    controller: &Controller,
    key: &FleetKey,
    plan: Option<&Plan>,
    (set, replicas): (Option<&StatefulSet>, u32),
    memory: &mut Memory,
) -> Result<Option<Barred>, ClusterError> {
    if set.is_none() && replicas > 0 {
        let namespaces: Api<Namespace> = Api::all(controller.context.client.clone());
        let namespace = if_there(|| format!("Namespace {}", key.namespace), namespaces.get_metadata(&key.namespace)).await?;
        if namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            return Ok(Some(Barred::Namespace { empty: memory.ended_empty.clone() }));
        }
        if plan.is_none() {
            return Ok(Some(Barred::Invalid));
        }
    }
    let Some(plan) = plan else { return Ok(None) };
    let mut place = Place { controller, namespace: &key.namespace, memory };
    match place.surroundings(plan).await {
        Err(error) if !error.is_refusal() => return Err(error),
        Err(error) => {
            tracing::warn!(%error, fleet = %key.name, namespace = %key.namespace, "something that the pods of a deleted fleet need is not there")
        }
        Ok(()) => {}
    }
    if set.is_none() && replicas > 0 {
        place.memory.applied.remove("statefulSet");
        place.put("statefulSet", &plan.stateful_set).await?;
    }
    Ok(None)
}

/// The hash of the template that new pods are made of now.
fn template_hash(set: &StatefulSet) -> Option<String> {
    set.spec.template.metadata.as_ref()?.annotations.as_ref()?.get(names::TEMPLATE_HASH).cloned()
}

/// The fleet's own part of the configuration. One that does not compile keeps its last good form.
#[allow(clippy::too_many_arguments, reason = "each is one thing that the part is made of")]
fn configure(
    controller: &Controller,
    key: &FleetKey,
    fleet: &GatewayFleet,
    engines: &BTreeMap<&str, &Engine>,
    broken: &BTreeMap<&str, &str>,
    versions: &BTreeMap<&str, &EngineVersion>,
    resolved: Option<&Fleet<'_>>,
    problems: &mut Vec<Problem>,
) {
    let lookup = |engine| if check_engine(engine).is_empty() { Lookup::Found(engine) } else { Lookup::Rejected };
    let mut found: BTreeMap<&str, Lookup<'_, Engine>> = engines.iter().map(|(name, engine)| (*name, lookup(*engine))).collect();
    found.extend(broken.keys().map(|name| (*name, Lookup::Rejected)));
    let in_pod = resolved.into_iter().flat_map(Fleet::in_pod);
    let recorded: Vec<(&str, &EngineVersion)> = in_pod.map(|(engine, _, version)| (engine.name, version)).collect();
    let endpoints = recorded.iter().map(|(name, _)| ((*name).to_owned(), EngineEndpoint::Socket(names::slot_socket(name, Slot::A)))).collect();
    let references =
        FleetReferences { engines: found, engine_versions: versions.clone(), endpoints, mounted_certificates: true, ..FleetReferences::default() };
    match compile_fleet(fleet, &references) {
        Ok(mut part) => {
            // Gateways are told the version that their slots run, not the one that is wished for.
            for engine in &mut part.engines {
                if let Some((_, version)) = recorded.iter().find(|(name, _)| *name == engine.name) {
                    engine.version = Some(version.spec.version.0.clone());
                }
            }
            controller.context.hub.put(key, "fleet", Bytes::from(part_json(&Part::Fleet(Box::new(part)))));
        }
        Err(found) => {
            let new: Vec<Problem> = found.into_iter().filter(|problem| !problems.iter().any(|known| known.field == problem.field)).collect();
            problems.extend(new);
        }
    }
    controller.context.hub.synced_once(key, "fleet");
}

/// Who may follow, and what each is to do: what is written on the pods, and needs nothing else.
pub(super) fn orders(controller: &Controller, key: &FleetKey, memory: &mut Memory) {
    let (hub, now_ms) = (&controller.context.hub, clock::unix_ms());
    let pods = pods(&controller.world, key);
    // Of pods that are gone by now, too: the hub forgets them at the next step.
    remember_last_words(memory, key, &hub.fleet(key));
    hub.set_pods(key, identities(&pods));
    let lost = controller.world.lost_nodes();
    let state = hub.fleet(key);
    remember_last_words(memory, key, &state);
    let seen = look((key, &state), None, pods.iter().map(|pod| &**pod), [], &lost, now_ms);
    let gateways = seen.pods.iter().filter(|pod| pod.serving == Serving::Yes && pod.drain.is_none()).count();
    let networks = cluster_networks(controller);
    for pod in &seen.pods {
        let drain = match pod.drain.map(|drain| drain.kind) {
            None => WireDrain::None,
            Some(DrainKind::Restart) => WireDrain::Restart,
            Some(DrainKind::Retire) => WireDrain::Retire,
        };
        let orders =
            Orders { drain: drain.into(), gateways: u32::try_from(gateways.max(1)).unwrap_or(u32::MAX), cluster_networks: networks.clone(), now_ms };
        hub.set_orders(key, &pod.uid, orders);
    }
}

/// Addresses of nodes and pods, as far as anybody says them.
fn cluster_networks(controller: &Controller) -> Vec<String> {
    let mut networks: BTreeSet<String> = controller.context.settings.load().cluster_networks.iter().map(ToString::to_string).collect();
    for node in controller.world.nodes.state() {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        for address in addresses.filter(|address| address.type_ == "InternalIP") {
            if let Ok(address) = address.address.parse::<std::net::IpAddr>() {
                networks.insert(ipnet::IpNet::from(address).to_string());
            }
        }
        networks.extend(node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten()).cloned());
    }
    networks.into_iter().collect()
}

/// The objects of a fleet, in the order of the plan: what a pod mounts or may do is there before the pod.
async fn put_in_place(
    controller: &Controller,
    key: &FleetKey,
    fleet: &GatewayFleet,
    held: bool,
    planned: &Plan,
    set: Option<&StatefulSet>,
    memory: &mut Memory,
) -> Result<(), ClusterError> {
    // The watch may still show the object as it was before we wrote; whatever is newer has the finalizer, or lost it.
    let version = &fleet.metadata.resource_version;
    if !held && (version.is_none() || memory.finalizer_over != *version) {
        let api: Api<GatewayFleet> = Api::namespaced(controller.context.client.clone(), &key.namespace);
        set_finalizer(&api, &key.name, fleet.metadata.uid.as_deref(), Some(names::FLEET_FINALIZER)).await?;
        memory.finalizer_over.clone_from(version);
    }
    // Nobody watches Secrets; one that somebody deleted comes back before long.
    if memory.key_seen.is_none_or(|seen| seen.elapsed() >= APPLY_EVERY) {
        make_snapshot_key(controller, key, fleet).await?;
        memory.key_seen = Some(Instant::now());
    }
    let mut place = Place { controller, namespace: &key.namespace, memory };
    place.surroundings(planned).await?;
    if set.is_none() {
        place.memory.applied.remove("statefulSet");
    }
    place.put("statefulSet", &planned.stateful_set).await
}

struct Place<'a> {
    controller: &'a Controller,
    namespace: &'a str,
    memory: &'a mut Memory,
}

impl Place<'_> {
    /// Everything that is there before the pods.
    async fn surroundings(&mut self, plan: &Plan) -> Result<(), ClusterError> {
        let Plan { authority, service_account, network_policy, headless_service, smtp_service, disruption_budget, stateful_set: _, pins: _ } = plan;
        self.put("authority", authority).await?;
        self.put("serviceAccount", service_account).await?;
        self.put("networkPolicy", network_policy).await?;
        self.put("headlessService", headless_service).await?;
        self.put("smtpService", smtp_service).await?;
        self.put("disruptionBudget", disruption_budget).await
    }

    /// Applies an object if it is not as it was applied last.
    async fn put<K>(&mut self, what: &'static str, object: &K) -> Result<(), ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
    {
        let text = serde_json::to_vec(object).expect("an object of ours has only string keys");
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(&text));
        if self.memory.applied.get(what).is_some_and(|before| before.hash == hash && before.at.elapsed() < APPLY_EVERY) {
            return Ok(());
        }
        let written = apply(&self.controller.context.client, self.namespace, object).await?;
        let version = written.meta().resource_version.clone().unwrap_or_default();
        self.memory.applied.insert(what, Applied { hash, at: Instant::now(), version });
        Ok(())
    }
}

/// The key of tenants' secrets in the last good configuration: made once, and never written again.
async fn make_snapshot_key(controller: &Controller, key: &FleetKey, fleet: &GatewayFleet) -> Result<(), ClusterError> {
    let name = names::snapshot_key(&key.name);
    let api: Api<Secret> = Api::namespaced(controller.context.client.clone(), &key.namespace);
    let what = || format!("Secret {}/{name}", key.namespace);
    if if_there(what, api.get_metadata(&name)).await?.is_some() {
        return Ok(());
    }
    let mut bytes = vec![0; SNAPSHOT_KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| ClusterError::Local { what: what(), cause: format!("the system has no randomness ({error})") })?;
    let secret = Secret {
        // Owned from the start, unlike all else: the right to patch Secrets is no small one. A pod has its key mounted, and one that finds none waits for us.
        metadata: ObjectMeta { owner_references: Some(vec![plan::owner(fleet)]), ..plan::metadata_of(fleet, name.clone()) },
        data: Some([("key".to_owned(), ByteString(bytes))].into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    match request(what, api.create(&PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }, &secret)).await {
        // Somebody was faster, and theirs is as good.
        Err(error) if error.is_conflict() => Ok(()),
        other => other.map(drop),
    }
}

/// Does what was decided, in order. What fails ends the turn.
async fn act(
    controller: &Controller,
    key: &FleetKey,
    fleet: &GatewayFleet,
    gathered: &Gathered,
    (wanted, seen): (&Wanted, &Observation),
    step: &Step,
) -> Result<(), ClusterError> {
    let client = &controller.context.client;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.namespace);
    for action in &step.actions {
        let mut fresh = vec![];
        if is_final(action, seen) {
            match decided_again(controller, key, &gathered.lost_nodes, (wanted, seen), action).await? {
                Some(found) => fresh = found,
                None => {
                    tracing::info!(event = "dropped", fleet = %key.name, namespace = %key.namespace, ?action, "the API server knows better by now: looked at again");
                    return Ok(());
                }
            }
        }
        let claim = |ordinal: u32| {
            let name = names::spool_claim(&key.name, ordinal);
            let known = fresh.iter().chain(gathered.claims.iter().map(|claim| &**claim)).find(|claim| claim.metadata.name.as_deref() == Some(&*name));
            (name, known.map(|claim| claim.metadata.clone()).unwrap_or_default())
        };
        tracing::info!(event = "action", fleet = %key.name, namespace = %key.namespace, ?action, "a step of the fleet");
        match action {
            Action::StartDrain { ordinal, uid, drain } => {
                let annotations = json!({names::DRAIN: format!("{:?}", drain.kind), names::DRAIN_SINCE: drain.since_ms.to_string()});
                patch_metadata(&pods, &names::pod(&key.name, *ordinal), Some(uid), json!({"annotations": annotations})).await?;
            }
            Action::EndDrain { ordinal, uid } => {
                let annotations = json!({names::DRAIN: null, names::DRAIN_SINCE: null});
                patch_metadata(&pods, &names::pod(&key.name, *ordinal), Some(uid), json!({"annotations": annotations})).await?;
            }
            Action::SetIntake { ordinal, uid, open } => {
                let value = if *open { json!(names::INTAKE_OPEN) } else { json!(null) };
                patch_metadata(&pods, &names::pod(&key.name, *ordinal), Some(uid), json!({"labels": {names::INTAKE_LABEL: value}})).await?;
            }
            Action::ClearVolumeMark { ordinal } => mark(&claims, claim(*ordinal), None).await?,
            Action::MarkVolume { ordinal, mark: text } => mark(&claims, claim(*ordinal), Some(observe::mark_text(*text))).await?,
            Action::HoldVolume { ordinal } => hold(&claims, claim(*ordinal)).await?,
            Action::ReleaseVolume { ordinal } => let_go(&claims, &claim(*ordinal)).await?,
            Action::DeletePod { ordinal, uid } => {
                let name = names::pod(&key.name, *ordinal);
                let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                match if_there(|| format!("delete Pod {}/{name}", key.namespace), pods.delete(&name, &params)).await {
                    Err(error) if error.is_conflict() => {}
                    other => drop(other?),
                }
            }
            Action::SetReplicas { replicas } => set_replicas(client, key, gathered.set.as_deref(), *replicas).await?,
            Action::DeleteVolume { ordinal } => {
                let (name, metadata) = claim(*ordinal);
                // A claim of that name which came since may have mail, and so may one whose mark was taken off.
                let preconditions = Preconditions { uid: metadata.uid.clone(), resource_version: metadata.resource_version.clone() };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                if_there(|| format!("delete PersistentVolumeClaim {}/{name}", key.namespace), claims.delete(&name, &params)).await?;
                let_go(&claims, &(name, metadata)).await?;
            }
            Action::ReleaseFleet => release(client, key, fleet, &fresh).await?,
        }
    }
    Ok(())
}

/// What cannot be taken back.
fn is_final(action: &Action, seen: &Observation) -> bool {
    match action {
        Action::DeletePod { .. } | Action::DeleteVolume { .. } | Action::ReleaseVolume { .. } | Action::ReleaseFleet => true,
        Action::SetReplicas { replicas } => seen.set_replicas.is_some_and(|set| set > *replicas),
        _ => false,
    }
}

/// Decides once more, from what the API server itself says: what the watches showed may be minutes old. `None`: it is decided no more. Else the claims as they
/// are now.
async fn decided_again(
    controller: &Controller,
    key: &FleetKey,
    lost: &BTreeSet<String>,
    (wanted, seen): (&Wanted, &Observation),
    action: &Action,
) -> Result<Option<Vec<PersistentVolumeClaim>>, ClusterError> {
    let client = &controller.context.client;
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={}", names::APP));
    let (sets, pods, claims): (Api<StatefulSet>, Api<Pod>, Api<PersistentVolumeClaim>) = (
        Api::namespaced(client.clone(), &key.namespace),
        Api::namespaced(client.clone(), &key.namespace),
        Api::namespaced(client.clone(), &key.namespace),
    );
    let name = names::stateful_set(&key.name);
    let set = if_there(|| format!("StatefulSet {}/{name}", key.namespace), sets.get(&name)).await?;
    // The claims last: a mark or a deletion that is seen is at least as new as the pods.
    let pods = request(|| format!("Pods in {}", key.namespace), pods.list(&ours)).await?.items;
    let claims = request(|| format!("PersistentVolumeClaims in {}", key.namespace), claims.list(&ours)).await?.items;
    let now_ms = clock::unix_ms();
    let state = controller.context.hub.fleet(key);
    let now = Observation { barred: seen.barred.clone(), ..look((key, &state), set.as_ref(), &pods, &claims, lost, now_ms) };
    Ok(update::step(wanted, &now, now_ms).actions.contains(action).then_some(claims))
}

/// Writes replicas, as they were decided by this very look at the StatefulSet: fewer than somebody else wants by now would take pods away.
async fn set_replicas(client: &Client, key: &FleetKey, set: Option<&StatefulSet>, replicas: u32) -> Result<(), ClusterError> {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &key.namespace);
    let name = names::stateful_set(&key.name);
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let version = set.and_then(|set| set.metadata.resource_version.as_deref());
    let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}));
    if_there(|| format!("replicas of StatefulSet {}/{name}", key.namespace), sets.patch(&name, &params, &patch)).await.map(drop)
}

/// Writes or takes off the mark of one very claim.
async fn mark(claims: &Api<PersistentVolumeClaim>, (name, metadata): (String, ObjectMeta), text: Option<&str>) -> Result<(), ClusterError> {
    patch_metadata(claims, &name, metadata.uid.as_deref(), json!({"annotations": {names::VOLUME_EMPTY: text}})).await
}

/// Puts our finalizer on a claim.
async fn hold(claims: &Api<PersistentVolumeClaim>, (name, metadata): (String, ObjectMeta)) -> Result<(), ClusterError> {
    match set_finalizer(claims, &name, metadata.uid.as_deref(), Some(names::SPOOL_FINALIZER)).await {
        // It is another one, or somebody deletes it since; the next look shows that.
        Err(error) if error.is_conflict() || error.category() == "invalid" => {
            tracing::warn!(%error, "the claim of a spool takes no finalizer any more");
            Ok(())
        }
        other => other,
    }
}

/// Takes our finalizer off a claim.
async fn let_go(claims: &Api<PersistentVolumeClaim>, (name, metadata): &(String, ObjectMeta)) -> Result<(), ClusterError> {
    if !metadata.finalizers.iter().flatten().any(|finalizer| finalizer == names::SPOOL_FINALIZER) {
        return Ok(());
    }
    set_finalizer(claims, name, metadata.uid.as_deref(), None).await
}

/// Nothing is left that must outlive the fleet: its objects go with it, and nobody is there any more who would let go of the claims that are kept.
async fn release(client: &Client, key: &FleetKey, fleet: &GatewayFleet, claims: &[PersistentVolumeClaim]) -> Result<(), ClusterError> {
    async fn own<K>(client: &Client, key: &FleetKey, name: String, owner: &Value) -> Result<(), ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(client.clone(), &key.namespace);
        patch_metadata(&api, &name, None, json!({"ownerReferences": [owner]})).await
    }
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.namespace);
    for claim in claims.iter().filter(|claim| observe::claim_ordinal(&key.name, claim).is_some()) {
        let_go(&api, &(claim.metadata.name.clone().unwrap_or_default(), claim.metadata.clone())).await?;
    }
    let owner = serde_json::to_value(plan::owner(fleet)).expect("an owner has only string keys");
    let (name, common) = (&*key.name, names::gateway_object(&key.name));
    own::<StatefulSet>(client, key, names::stateful_set(name), &owner).await?;
    own::<PodDisruptionBudget>(client, key, common.clone(), &owner).await?;
    own::<Service>(client, key, names::smtp_service(name), &owner).await?;
    own::<Service>(client, key, common.clone(), &owner).await?;
    own::<NetworkPolicy>(client, key, common.clone(), &owner).await?;
    own::<ServiceAccount>(client, key, common, &owner).await?;
    own::<ConfigMap>(client, key, names::authority(name), &owner).await?;
    let api: Api<GatewayFleet> = Api::namespaced(client.clone(), &key.namespace);
    set_finalizer(&api, &key.name, fleet.metadata.uid.as_deref(), None).await
}

/// The annotation lets exactly as many removals through as it names, once.
async fn confirm_removals(controller: &Controller, key: &FleetKey, fleet: &GatewayFleet, waiting: usize) -> Result<(), ClusterError> {
    let said = fleet.metadata.annotations.as_ref().and_then(|annotations| annotations.get(names::CONFIRM_REMOVALS));
    let Some(said) = said.filter(|said| waiting > 0 && **said == waiting.to_string()) else { return Ok(()) };
    tracing::warn!(event = "removals", fleet = %key.name, namespace = %key.namespace, count = said, "removals were confirmed");
    // The word goes first: one that stayed would let the next loss of as many through unasked.
    let api: Api<GatewayFleet> = Api::namespaced(controller.context.client.clone(), &key.namespace);
    patch_metadata(&api, &key.name, fleet.metadata.uid.as_deref(), json!({"annotations": {names::CONFIRM_REMOVALS: null}})).await?;
    controller.context.hub.confirm_removals(key, waiting);
    Ok(())
}

/// What the hub knows of a pod.
pub(super) fn pod_state<'a>(state: &'a FleetState, uid: &str) -> Option<&'a PodState> {
    state.pods.get(uid).map(|(_, pod)| pod)
}
