//! GatewayFleets, one at a time: gather, validate, plan and step, apply, report.
//!
//! `gather` and `apply` talk to the cluster; between them everything is decided by pure functions (`validate`, `plan`, `update`, `status`), from what was
//! gathered. Each turn begins with a new look, so a turn that was cut short anywhere is repaired by the next one.

mod apply;
mod engines;
mod gather;
mod report;
mod rollouts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource};
use sekimori_crds::v1alpha1::{Engine, EngineRollout, EngineVersion, GatewayFleet};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::io::clock;
use crate::io::cluster::{ClusterError, Objects, follow, watch_metadata};
use crate::io::events::{Events, News};
use crate::io::hub::{FleetKey, Hub};
use crate::io::metrics::Metrics;
use crate::measured::Newest;
use crate::settings::Settings;
use crate::{names, observe};

/// Fleets that are worked on at once.
const FLEETS_AT_ONCE: usize = 4;
/// Events within so long are one.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Reports of gateways are looked at this often.
const REPORTS_EVERY: Duration = Duration::from_secs(1);
/// One turn of one fleet may take so long.
const TURN_MAX: Duration = Duration::from_secs(60);
/// After an error a fleet is looked at again after so long, doubling up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// A fleet is looked at from time to time even if nothing seems to happen.
const IDLE: Duration = Duration::from_secs(300);

/// What the controller works with.
pub struct Context {
    /// The cluster.
    pub client: Client,
    /// Where configuration and orders go, and reports come from.
    pub hub: Hub,
    /// The installation.
    pub settings: Arc<arc_swap::ArcSwap<Settings>>,
    /// Namespaces to look at; none: all.
    pub namespaces: Vec<String>,
    /// Writes events.
    pub events: Events,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// Everything that is watched.
struct World {
    fleets: Objects<DeserializeGuard<GatewayFleet>>,
    engines: Objects<DeserializeGuard<Engine>>,
    versions: Objects<DeserializeGuard<EngineVersion>>,
    rollouts: Objects<DeserializeGuard<EngineRollout>>,
    sets: Objects<StatefulSet>,
    pods: Objects<Pod>,
    claims: Objects<PersistentVolumeClaim>,
    nodes: Store<Node>,
}

/// What is remembered of a fleet between two turns. Nothing that a new leader would lack.
#[derive(Default)]
struct Memory {
    /// The objects as they were applied last, by what each is in the plan.
    applied: BTreeMap<&'static str, Applied>,
    /// The keys of the Secrets that the pods mount.
    secrets: Option<MountedSecrets>,
    /// Since when the configuration is the newest one.
    newest: Option<Newest>,
    /// When the snapshot key was seen to be there.
    key_seen: Option<Instant>,
    /// The version of the object that our finalizer was added to.
    finalizer_over: Option<String>,
    /// The hub knows how many tenants the gateways had when we began to lead.
    has_expectation: bool,
    /// Ordinals whose last gateway said, when it ended, that nothing waits.
    ended_empty: BTreeSet<u32>,
    /// Turns in a row that could not do what they should.
    failures: u32,
    /// When the status was written last.
    status_written: Option<Instant>,
    /// When the figures of the engines were written last.
    engines_written: Option<Instant>,
}

/// An object as it was applied.
struct Applied {
    hash: String,
    at: Instant,
    /// `metadata.resourceVersion` after that.
    version: String,
}

/// The keys of the Secrets that a fleet's pods mount.
struct MountedSecrets {
    looked_at: Instant,
    /// Of this generation of the fleet.
    generation: Option<i64>,
    keys: BTreeMap<String, BTreeSet<String>>,
}

struct Controller {
    context: Context,
    world: World,
    memory: Mutex<BTreeMap<FleetKey, Arc<tokio::sync::Mutex<Memory>>>>,
    due: Arc<Due>,
}

/// Fleets that are to be looked at, and when.
#[derive(Default)]
struct Due {
    fleets: Mutex<BTreeMap<FleetKey, Instant>>,
    /// Namespaces in which something happened.
    namespaces: Mutex<BTreeSet<String>>,
    /// By namespace and the label of the fleet, the versions of its objects that came since its last turn: somebody changed or deleted one, perhaps we.
    touched: Mutex<BTreeMap<(String, String), BTreeSet<String>>>,
    woken: Notify,
    /// An EngineRollout, or what it may refer to, is another one now.
    rollouts: Notify,
    /// An EngineVersion, or what may use it, is another one now.
    versions: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Due {
    /// Looks at a fleet at this time, or sooner if that was planned.
    fn at(&self, fleet: &FleetKey, at: Instant) {
        let mut fleets = lock(&self.fleets);
        let planned = fleets.entry(fleet.clone()).or_insert(at);
        *planned = (*planned).min(at);
        drop(fleets);
        self.woken.notify_one();
    }

    /// An object of a fleet's is another one now, or gone.
    fn touched(&self, object: &ObjectMeta) {
        let Some(label) = object.labels.as_ref().and_then(|labels| labels.get(names::FLEET_LABEL)) else { return };
        let fleet = (object.namespace.clone().unwrap_or_default(), label.clone());
        lock(&self.touched).entry(fleet).or_default().insert(object.resource_version.clone().unwrap_or_default());
        self.namespace(object.namespace.as_deref());
    }

    fn namespace(&self, namespace: Option<&str>) {
        lock(&self.namespaces).insert(namespace.unwrap_or_default().to_owned());
        self.woken.notify_one();
    }
}

fn key_of(fleet: &DeserializeGuard<GatewayFleet>) -> FleetKey {
    FleetKey::new(fleet.meta().namespace.as_deref().unwrap_or_default(), fleet.meta().name.as_deref().unwrap_or_default())
}

/// Works for as long as the process leads. `known` is called once it is clear which pods are gateways: who is answered before that would be sent away.
///
/// # Errors
/// The watches cannot be begun.
pub async fn run(context: Context, known: impl FnOnce()) -> anyhow::Result<()> {
    let due = Arc::new(Due::default());
    let world = World::watch(&context, &due);
    world.ready().await?;
    tracing::info!(event = "synced", fleets = world.fleets.all().count(), "fleets, engines and pods are known");
    context.metrics.fleets_synced.set(1);
    let controller = Arc::new(Controller { context, world, memory: Mutex::default(), due });
    let now = Instant::now();
    for fleet in controller.world.fleets.all() {
        let key = key_of(&fleet);
        apply::orders(&controller, &key, &mut *controller.memory(&key).lock().await);
        controller.due.at(&key, now);
    }
    known();
    tokio::select! {
        ended = Arc::clone(&controller).work() => ended,
        never = rollouts::work(&controller) => match never {},
        never = engines::work(&controller) => match never {},
    }
}

impl World {
    fn watch(context: &Context, due: &Arc<Due>) -> Self {
        let Context { client, namespaces, .. } = context;
        let ours = format!("app.kubernetes.io/name={}", names::APP);
        fn mark<K: Resource>(due: &Arc<Due>) -> impl Fn(&K) + Clone + Send + Sync + 'static {
            let due = Arc::clone(due);
            move |object: &K| due.namespace(object.meta().namespace.as_deref())
        }
        let touched = Arc::clone(due);
        let touched = move |object: &ObjectMeta| touched.touched(object);
        watch_metadata::<Service>(client, namespaces, &ours, touched.clone());
        watch_metadata::<ConfigMap>(client, namespaces, &ours, touched.clone());
        watch_metadata::<ServiceAccount>(client, namespaces, &ours, touched.clone());
        watch_metadata::<NetworkPolicy>(client, namespaces, &ours, touched.clone());
        watch_metadata::<PodDisruptionBudget>(client, namespaces, &ours, touched);
        fn mark_rollouts<K: Resource>(due: &Arc<Due>) -> impl Fn(&K) + Clone + Send + Sync + 'static {
            let due = Arc::clone(due);
            move |object: &K| {
                due.rollouts.notify_one();
                due.versions.notify_one();
                due.namespace(object.meta().namespace.as_deref());
            }
        }
        let fleet_due = Arc::clone(due);
        Self {
            fleets: Objects::watch(client, namespaces, None, move |fleet| {
                fleet_due.versions.notify_one();
                fleet_due.at(&key_of(fleet), Instant::now() + DEBOUNCE);
            }),
            engines: Objects::watch(client, namespaces, None, mark_rollouts(due)),
            versions: Objects::watch(client, namespaces, None, mark_rollouts(due)),
            rollouts: Objects::watch(client, namespaces, None, mark_rollouts(due)),
            sets: Objects::watch(client, namespaces, Some(&ours), mark(due)),
            pods: Objects::watch(client, namespaces, Some(&ours), mark(due)),
            claims: Objects::watch(client, namespaces, Some(&ours), mark(due)),
            nodes: follow(Api::all(client.clone()), None, |_| {}),
        }
    }

    async fn ready(&self) -> anyhow::Result<()> {
        self.fleets.ready().await?;
        self.engines.ready().await?;
        self.versions.ready().await?;
        self.rollouts.ready().await?;
        self.sets.ready().await?;
        self.pods.ready().await?;
        self.claims.ready().await?;
        Ok(self.nodes.wait_until_ready().await?)
    }

    /// Names of nodes that the control plane has lost.
    fn lost_nodes(&self) -> BTreeSet<String> {
        self.nodes.state().iter().filter(|node| observe::is_lost(node)).filter_map(|node| node.metadata.name.clone()).collect()
    }

    fn fleet(&self, key: &FleetKey) -> Option<Arc<DeserializeGuard<GatewayFleet>>> {
        self.fleets.one(&key.namespace, &key.name)
    }
}

/// After a look: returns when something changed, or some time after an error.
async fn until_next_look(looked: Result<(), ClusterError>, changed: &Notify, what: &str) {
    /// Between two looks, however much changes.
    const PAUSE: Duration = Duration::from_millis(500);
    /// After an error it is tried again after so long.
    const RETRY: Duration = Duration::from_secs(10);
    match looked {
        Ok(()) => changed.notified().await,
        Err(error) => {
            tracing::warn!(%error, "{what} could not be written: it is tried again");
            tokio::time::sleep(RETRY).await;
        }
    }
    tokio::time::sleep(PAUSE).await;
}

type Turned = (FleetKey, Result<Option<u64>, String>);

impl Controller {
    async fn work(self: Arc<Self>) -> anyhow::Result<()> {
        let mut running: BTreeSet<FleetKey> = BTreeSet::new();
        let mut failures: BTreeMap<FleetKey, u32> = BTreeMap::new();
        let mut turns: JoinSet<Turned> = JoinSet::new();
        let mut reports = self.context.hub.changed();
        let mut look_at_reports = tokio::time::interval(REPORTS_EVERY);
        look_at_reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.spread();
            self.begin(&mut running, &mut turns);
            tokio::select! {
                () = self.due.woken.notified() => {}
                () = tokio::time::sleep_until(self.next_due(&running)) => {}
                _ = look_at_reports.tick() => if reports.has_changed().unwrap_or(false) {
                    reports.mark_unchanged();
                    let now = Instant::now();
                    self.world.fleets.all().for_each(|fleet| self.due.at(&key_of(&fleet), now));
                },
                Some(turned) = turns.join_next() => {
                    // A turn that panicked is found in the log; its fleet must not stay marked as being worked on, so the process ends and begins again.
                    let (key, result) = turned?;
                    running.remove(&key);
                    self.after(key, result, &mut failures);
                }
            }
        }
    }

    /// What happened in a namespace concerns each of its fleets.
    fn spread(&self) {
        let namespaces = std::mem::take(&mut *lock(&self.due.namespaces));
        let at = Instant::now() + DEBOUNCE;
        if !namespaces.is_empty() {
            // What a fleet that is gone left behind is nobody's.
            let is_of = |label: &str, fleet: &DeserializeGuard<GatewayFleet>| names::fleet_label(&key_of(fleet).name) == label;
            lock(&self.due.touched).retain(|(namespace, label), _| self.world.fleets.of(namespace).any(|fleet| is_of(label, &fleet)));
        }
        for namespace in &namespaces {
            self.world.fleets.of(namespace).for_each(|fleet| self.due.at(&key_of(&fleet), at));
        }
    }

    fn next_due(&self, running: &BTreeSet<FleetKey>) -> Instant {
        let idle = Instant::now() + IDLE;
        if running.len() >= FLEETS_AT_ONCE {
            return idle;
        }
        lock(&self.due.fleets).iter().filter(|(key, _)| !running.contains(*key)).map(|(_, at)| *at).min().unwrap_or(idle)
    }

    fn begin(self: &Arc<Self>, running: &mut BTreeSet<FleetKey>, turns: &mut JoinSet<Turned>) {
        let now = Instant::now();
        let mut fleets = lock(&self.due.fleets);
        while running.len() < FLEETS_AT_ONCE {
            let Some(key) = fleets.iter().find(|(key, at)| **at <= now && !running.contains(*key)).map(|(key, _)| key.clone()) else { break };
            fleets.remove(&key);
            running.insert(key.clone());
            let controller = Arc::clone(self);
            turns.spawn(async move {
                let result = match tokio::time::timeout(TURN_MAX, controller.turn(&key)).await {
                    Ok(Ok(again)) => Ok(again),
                    Ok(Err(error)) => {
                        controller.context.metrics.errors.with_label_values(&["GatewayFleet", error.category()]).inc();
                        Err(error.to_string())
                    }
                    Err(_) => Err("the turn took more than a minute".to_owned()),
                };
                (key, result)
            });
        }
    }

    fn after(&self, key: FleetKey, result: Result<Option<u64>, String>, failures: &mut BTreeMap<FleetKey, u32>) {
        let now = Instant::now();
        match result {
            Ok(again_at_ms) => {
                failures.remove(&key);
                let wait = again_at_ms.map_or(IDLE, |at| Duration::from_millis(at.saturating_sub(clock::unix_ms()).max(100)));
                if self.world.fleet(&key).is_some() {
                    self.due.at(&key, now + wait.min(IDLE));
                }
            }
            Err(error) => {
                let count = failures.entry(key.clone()).or_default();
                *count = count.saturating_add(1);
                let pause = RETRY.0.saturating_mul(1_u32.checked_shl(*count - 1).unwrap_or(u32::MAX)).min(RETRY.1);
                tracing::warn!(fleet = %key.name, namespace = %key.namespace, error, pause_ms = pause.as_millis() as u64, "a fleet could not be brought to what is wanted: tried again");
                self.due.at(&key, now + pause);
            }
        }
    }

    fn memory(&self, key: &FleetKey) -> Arc<tokio::sync::Mutex<Memory>> {
        Arc::clone(lock(&self.memory).entry(key.clone()).or_default())
    }

    /// One turn of one fleet. Says when to look again.
    async fn turn(&self, key: &FleetKey) -> Result<Option<u64>, ClusterError> {
        let timer = self.context.metrics.turn_seconds.with_label_values(&["GatewayFleet"]).start_timer();
        let Some(guard) = self.world.fleet(key) else {
            self.context.hub.forget(key);
            self.context.metrics.paused(key, None);
            lock(&self.memory).remove(key);
            timer.stop_and_discard();
            return Ok(None);
        };
        let memory = self.memory(key);
        let mut memory = memory.lock().await;
        let touched = lock(&self.due.touched).remove(&(key.namespace.to_string(), names::fleet_label(&key.name))).unwrap_or_default();
        if !touched.iter().all(|version| memory.applied.values().any(|applied| applied.version == *version)) {
            // An apply that changes nothing brings no event, so this ends.
            memory.applied.clear();
        }
        // Before anything that can fail, and for a fleet that cannot be read, too: what its gateways are to do stands on their pods.
        apply::orders(self, key, &mut memory);
        let again = match &guard.0 {
            Ok(fleet) => {
                let gathered = gather::gather(self, key, fleet, &mut memory).await?;
                apply::turn(self, key, fleet, &gathered, &mut memory).await
            }
            Err(invalid) => {
                // A newer API than ours, most likely. The pods stay, and go on with what they have.
                tracing::error!(fleet = %key.name, namespace = %key.namespace, error = invalid.error, "the fleet cannot be read by this operator: upgrade it, or the CRDs; its pods stay as they are");
                // Its status is left alone: what it records of its pods is still true, and ours would be incomplete.
                let note = format!(
                    "this operator cannot read the fleet: {}; upgrade the operator, or the CRDs, to the other's version, or correct the field; its pods stay as they are",
                    invalid.error
                );
                let news = News { good: false, reason: "Unreadable".to_owned(), action: "Read".to_owned(), note };
                self.context.events.say(&news, &guard.object_ref(&())).await;
                Ok(None)
            }
        };
        timer.observe_duration();
        again
    }
}

#[cfg(test)]
mod tests;
