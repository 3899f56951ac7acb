//! The steps between: decide, and write what was decided, in an order that is safe to break off anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use sekimori_crds::compile::{Finding, FleetReferences, Lookup, Problem, Reason, check_engine, compile_fleet};
use sekimori_crds::snapshot::{EngineEndpoint, Part, part_json};
use sekimori_crds::stream::{DrainKind as WireDrain, Orders};
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::gather::{Gathered, identities};
use super::{Applied, Controller, Memory, report};
use crate::fleet::Fleet;
use crate::io::clock;
use crate::io::cluster::{ClusterError, apply, if_there, patch_metadata, readable, request, set_finalizer};
use crate::io::hub::{FleetKey, PodState};
use crate::names::{self, MANAGER, Slot};
use crate::observe::{self, Heard};
use crate::plan::{self, Plan};
use crate::update::{self, Action, DrainKind, Observation, Outcome, Serving, Step};
use crate::validate;

/// What was applied is applied again from time to time: somebody may have changed it.
pub(super) const APPLY_EVERY: Duration = Duration::from_secs(300);
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
    let heard = |uid: &str| {
        state.pods.get(uid).map(|(_, pod)| Heard {
            connected: pod.connected,
            since_ms: pod.since_ms,
            report: pod.report.as_ref().map(|(at, report)| (*at, &**report)),
        })
    };
    let seen = observe::observation(
        &key.name,
        gathered.set.as_deref(),
        gathered.pods.iter().map(|pod| &**pod),
        gathered.claims.iter().map(|claim| &**claim),
        &gathered.lost_nodes,
        now_ms,
        heard,
    );
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
    let replicas = seen.set_replicas.unwrap_or_else(|| crate::fleet::replicas(fleet));
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
    orders(controller, key, gathered, &seen, now_ms);
    let (mut step, mut placed) = (None, Ok(()));
    if let Some((_, planned)) = planned.as_ref().filter(|_| !deleting) {
        placed = put_in_place(controller, key, fleet, held, planned, gathered.set.as_deref(), memory).await;
    }
    // A fleet that is deleted is retired whatever is wrong with it: its pods are measured against the template that they have.
    let present = gathered.set.as_deref().filter(|_| deleting).and_then(template_hash);
    let hash = planned.as_ref().map(|(_, planned)| planned.pins.template_hash.clone()).filter(|_| !deleting).or(present);
    if let Some(hash) = hash.or_else(|| deleting.then(String::new)).filter(|_| placed.is_ok()) {
        let decided = update::step(&crate::fleet::wanted(fleet, &hash), &seen, now_ms);
        controller.context.metrics.paused(key, Some(&decided.outcome));
        placed = act(controller, key, fleet, gathered, &decided).await;
        if decided.actions.contains(&Action::ReleaseFleet) {
            // There is nothing left to say anything about.
            return placed.map(|()| None);
        }
        step = Some(decided);
    }
    let pins = planned.map(|(_, planned)| planned.pins);
    match &placed {
        Ok(()) => {}
        Err(error) if error.is_refusal() => {
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
    placed?;
    Ok(match step {
        Some(Step { outcome: Outcome::Done, again_at_ms, .. }) => again_at_ms,
        Some(Step { again_at_ms, actions, .. }) => again_at_ms.or_else(|| (!actions.is_empty()).then_some(now_ms + 1_000)),
        None => None,
    })
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

/// Who may follow, and what each is to do.
fn orders(controller: &Controller, key: &FleetKey, gathered: &Gathered, seen: &Observation, now_ms: u64) {
    let hub = &controller.context.hub;
    hub.set_pods(key, identities(&gathered.pods));
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
    if !memory.has_key {
        make_snapshot_key(controller, key, fleet).await?;
        memory.has_key = true;
    }
    let Plan { authority, service_account, network_policy, headless_service, smtp_service, disruption_budget, stateful_set, pins: _ } = planned;
    let mut place = Place { controller, namespace: &key.namespace, memory };
    place.put("authority", authority).await?;
    place.put("serviceAccount", service_account).await?;
    place.put("networkPolicy", network_policy).await?;
    place.put("headlessService", headless_service).await?;
    place.put("smtpService", smtp_service).await?;
    place.put("disruptionBudget", disruption_budget).await?;
    if set.is_none() {
        place.memory.applied.remove("statefulSet");
    }
    place.put("statefulSet", stateful_set).await
}

struct Place<'a> {
    controller: &'a Controller,
    namespace: &'a str,
    memory: &'a mut Memory,
}

impl Place<'_> {
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
        metadata: plan::owned_metadata(fleet, name.clone()),
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
async fn act(controller: &Controller, key: &FleetKey, fleet: &GatewayFleet, gathered: &Gathered, step: &Step) -> Result<(), ClusterError> {
    let client = &controller.context.client;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.namespace);
    for action in &step.actions {
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
            Action::ClearVolumeMark { ordinal } | Action::MarkVolumeEmpty { ordinal } => {
                let value = if matches!(action, Action::MarkVolumeEmpty { .. }) { json!("true") } else { json!(null) };
                patch_metadata(&claims, &names::spool_claim(&key.name, *ordinal), None, json!({"annotations": {names::VOLUME_EMPTY: value}})).await?;
            }
            Action::DeletePod { ordinal, uid } => {
                let name = names::pod(&key.name, *ordinal);
                let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                match if_there(|| format!("delete Pod {}/{name}", key.namespace), pods.delete(&name, &params)).await {
                    Err(error) if error.is_conflict() => {}
                    other => drop(other?),
                }
            }
            Action::SetReplicas { replicas } => {
                let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &key.namespace);
                let name = names::stateful_set(&key.name);
                let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                // Decided by this very look at it: fewer replicas than somebody else wants by now would take pods away.
                let version = gathered.set.as_ref().and_then(|set| set.metadata.resource_version.as_deref());
                let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}));
                if_there(|| format!("replicas of StatefulSet {}/{name}", key.namespace), sets.patch(&name, &params, &patch)).await?;
            }
            Action::DeleteVolume { ordinal } => {
                let name = names::spool_claim(&key.name, *ordinal);
                let claim = gathered.claims.iter().find(|claim| claim.metadata.name.as_deref() == Some(&*name));
                // A claim of that name which came since may have mail.
                let uid = claim.and_then(|claim| claim.metadata.uid.clone());
                let params = DeleteParams { preconditions: Some(Preconditions { uid, resource_version: None }), ..DeleteParams::default() };
                if_there(|| format!("delete PersistentVolumeClaim {}/{name}", key.namespace), claims.delete(&name, &params)).await?;
            }
            Action::ReleaseFleet => {
                let api: Api<GatewayFleet> = Api::namespaced(client.clone(), &key.namespace);
                set_finalizer(&api, &key.name, fleet.metadata.uid.as_deref(), None).await?;
            }
        }
    }
    Ok(())
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
pub(super) fn pod_state<'a>(state: &'a crate::io::hub::FleetState, uid: &str) -> Option<&'a PodState> {
    state.pods.get(uid).map(|(_, pod)| pod)
}
