//! Where the controllers and the stream server meet: parts and orders go in, positions and reports come out. It is shared and cheap to clone.
//!
//! One [`Hub`] lives as long as this process holds the Lease. The controllers never wait for a gateway here, and a gateway never for the cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sekimori_crds::snapshot::FORMAT;
use sekimori_crds::stream::{Applied, DrainKind, Hello, LATENCY_BOUNDS_MS, NAMES_MAX, Orders, Position, Rejection, Report, SAMPLES_MAX};
use tokio::sync::{Notify, watch};

use crate::distribution::{Distribution, Way};
use crate::identity::{Identity, Refusal};
use crate::io::clock;
use crate::names;
use crate::observe::RETURN_MS;

/// Changes within so long after others become one step of the history.
const SETTLE_EVERY: Duration = Duration::from_millis(100);
/// Rejections of one gateway that are kept, at most.
const REJECTIONS_MAX: usize = 10_000;
/// Engines in one report, at most.
const ENGINES_MAX: usize = 64;
/// Capabilities in one Hello, at most.
const CAPABILITIES_MAX: usize = 100;
/// Characters of what a gateway says about one thing, at most.
const TEXT_CHARS_MAX: usize = 500;
/// A gateway that claims an epoch more than this above ours is mistaken or worse, and is served under ours: it must not use all epochs up.
const EPOCHS_AHEAD_MAX: u64 = 1 << 20;
/// What must have said that all it knows was put in, before a gateway is answered.
pub const SOURCES: [&str; 2] = ["fleet", "tenants"];

/// A GatewayFleet by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FleetKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl FleetKey {
    /// A fleet.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// A pod of a fleet that may follow its configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodIdentity {
    /// Its name.
    pub name: Arc<str>,
    /// Its uid: a successor of the same name is another one.
    pub uid: Arc<str>,
}

/// What one gateway said last.
#[derive(Clone, Debug, Default)]
pub struct PodState {
    /// Whether it follows now.
    pub connected: bool,
    /// Since when that is so, in milliseconds. One that never followed does not follow since it is known here: a new leader waits for all of them anew.
    pub since_ms: u64,
    /// What it said first.
    pub hello: Option<Hello>,
    /// The position that it acknowledged last.
    pub applied: Option<Position>,
    /// Parts that it keeps in their last good form at that position.
    pub rejected: Arc<BTreeMap<String, Rejection>>,
    /// Its last report, and when it came by our own clock, in milliseconds.
    pub report: Option<(u64, Arc<Report>)>,
}

/// A fleet's configuration as it is served.
#[derive(Clone, Debug, Default)]
pub struct FleetState {
    /// Where it stands. `None`: nothing is known of it.
    pub position: Option<Position>,
    /// Number of tenants.
    pub tenants: usize,
    /// Whether these are all: the cluster's are known, and none that the gateways have is missing.
    pub has_all: bool,
    /// Tenants whose removal waits for a confirmation, see [`Hub::confirm_removals`].
    pub removals_waiting: usize,
    /// Its pods by uid.
    pub pods: BTreeMap<Arc<str>, (PodIdentity, PodState)>,
}

/// How far a part has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Reach {
    /// Every gateway that does not drain, and follows or should be back in a moment, acknowledged it, and there is at least one.
    Everywhere,
    /// Some have not, or there is none.
    Waiting,
    /// A gateway rejected it.
    Rejected(Rejection),
    /// It is not among the parts.
    Unknown,
}

/// Keeps the epoch where it outlives this process.
pub trait EpochStore: Send + Sync {
    /// Writes an epoch that is larger than `above` and than every one before, and says which.
    fn raise(&self, above: u64) -> BoxFuture<'_, Result<u64, String>>;
}

#[derive(Debug)]
struct Pod {
    identity: PodIdentity,
    state: PodState,
    orders: watch::Sender<Orders>,
    /// Counts the streams of this pod: a newer one ends the one before.
    stream: watch::Sender<u64>,
}

struct Served {
    distribution: Distribution,
    synced: BTreeSet<&'static str>,
    pods: BTreeMap<Arc<str>, Pod>,
    /// Ticks when there is a new way to send.
    moved: watch::Sender<u64>,
}

impl Served {
    fn new(epoch: u64) -> Self {
        Self { distribution: Distribution::new(epoch), synced: BTreeSet::new(), pods: BTreeMap::new(), moved: watch::channel(0).0 }
    }

    fn knows_tenants(&self) -> bool {
        self.synced.contains("tenants")
    }

    /// Nothing waits for anybody's word before it is known what there is.
    fn removals_waiting(&self) -> usize {
        if self.knows_tenants() { self.distribution.removals_waiting() } else { 0 }
    }

    fn answers(&self) -> bool {
        SOURCES.iter().all(|source| self.synced.contains(source)) && self.distribution.has_fleet()
    }
}

struct State {
    epoch: u64,
    fleets: BTreeMap<FleetKey, Served>,
    by_uid: HashMap<Arc<str>, FleetKey>,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    staged: Notify,
    epochs: Arc<dyn EpochStore>,
    /// One raise of the epoch at a time: after a restored cluster, all gateways ask for it at once.
    raising: tokio::sync::Mutex<()>,
}

/// Figures of one fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Gateways that follow now.
    pub gateways: usize,
    /// Parts in force.
    pub parts: usize,
    /// By how many numbers the furthest gateway that follows is behind.
    pub behind: u64,
    /// Tenants whose removal waits.
    pub removals_waiting: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn settle(&self) {
        let now_ms = clock::unix_ms();
        let mut moved = false;
        for served in self.lock().fleets.values_mut() {
            if served.distribution.settle(now_ms) {
                served.moved.send_modify(|count| *count = count.wrapping_add(1));
                moved = true;
            }
        }
        if moved {
            self.tick();
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

impl Hub {
    /// An empty one. `epoch` is larger than every one that was served before. Must be called within a tokio runtime.
    pub fn new(epoch: u64, epochs: Arc<dyn EpochStore>) -> Self {
        let state = Mutex::new(State { epoch, fleets: BTreeMap::new(), by_uid: HashMap::new() });
        let shared = Arc::new(Shared { state, changed: watch::channel(0).0, staged: Notify::new(), epochs, raising: tokio::sync::Mutex::new(()) });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            // The first change is settled at once; those that follow within the pause, together.
            while let Some(shared) = weak.upgrade() {
                let staged = tokio::time::timeout(SETTLE_EVERY, shared.staged.notified()).await.is_ok();
                if staged {
                    shared.settle();
                }
                drop(shared);
                if staged {
                    tokio::time::sleep(SETTLE_EVERY).await;
                }
            }
        });
        Self { shared }
    }

    fn with<T>(&self, fleet: &FleetKey, f: impl FnOnce(&mut Served) -> T) -> T {
        let mut state = self.shared.lock();
        let epoch = state.epoch;
        f(state.fleets.entry(fleet.clone()).or_insert_with(|| Served::new(epoch)))
    }

    /// The pods that may follow a fleet. Others are refused, and cut off.
    pub fn set_pods(&self, fleet: &FleetKey, pods: Vec<PodIdentity>) {
        let mut state = self.shared.lock();
        let State { epoch, fleets, by_uid } = &mut *state;
        let served = fleets.entry(fleet.clone()).or_insert_with(|| Served::new(*epoch));
        let mut before = std::mem::take(&mut served.pods);
        for identity in pods {
            let pod = before.remove(&identity.uid).unwrap_or_else(|| Pod {
                identity: identity.clone(),
                state: PodState { since_ms: clock::unix_ms(), ..PodState::default() },
                orders: watch::channel(Orders::default()).0,
                stream: watch::channel(0).0,
            });
            by_uid.insert(Arc::clone(&identity.uid), fleet.clone());
            served.pods.insert(Arc::clone(&identity.uid), pod);
        }
        // What is left is dropped, and with it the senders that its stream listens to.
        before.keys().for_each(|uid| drop(by_uid.remove(uid)));
    }

    /// What a pod is to do; sent if it changed, and again when the pod comes back. The clock in it counts as no change.
    pub fn set_orders(&self, fleet: &FleetKey, pod_uid: &str, orders: Orders) {
        self.with(fleet, |served| {
            if let Some(pod) = served.pods.get(pod_uid) {
                pod.orders.send_if_modified(|before| {
                    // The first are told even if they are the same as none: the gateway may have others, of a leader before us.
                    let changed = before.now_ms == 0 || Orders { now_ms: 0, ..before.clone() } != Orders { now_ms: 0, ..orders.clone() };
                    *before = orders;
                    changed
                });
            }
        });
    }

    /// Adds or changes a part (`fleet` or `tenant/NAMESPACE/NAME`), as JSON.
    pub fn put(&self, fleet: &FleetKey, key: &str, part: Bytes) {
        if self.with(fleet, |served| served.distribution.put(key, &part)) {
            self.shared.staged.notify_one();
        }
    }

    /// Takes a part away.
    pub fn remove(&self, fleet: &FleetKey, key: &str) {
        if self.with(fleet, |served| served.distribution.remove(key)) {
            self.shared.staged.notify_one();
        }
    }

    /// All that one of [`SOURCES`] knows was put in. Gateways are answered once both said so: a fleet that only looks empty would empty them.
    pub fn synced(&self, fleet: &FleetKey, source: &'static str) {
        let now_ms = clock::unix_ms();
        self.with(fleet, |served| {
            served.distribution.settle(now_ms);
            served.synced.insert(source);
            served.moved.send_modify(|count| *count = count.wrapping_add(1));
        });
        self.shared.tick();
    }

    /// The same, if it was not said yet.
    pub fn synced_once(&self, fleet: &FleetKey, source: &'static str) {
        if !self.with(fleet, |served| served.synced.contains(source)) {
            self.synced(fleet, source);
        }
    }

    /// A part in its newest form.
    pub fn part(&self, fleet: &FleetKey, key: &str) -> Option<Bytes> {
        self.shared.lock().fleets.get(fleet)?.distribution.part(key)
    }

    /// How many tenants the fleet's gateways had when this process began to lead; to be said before [`Self::synced`]. If far fewer are found, gateways keep
    /// what they have, and new ones wait, until [`Self::confirm_removals`], or until the tenants are there.
    pub fn expect_tenants(&self, fleet: &FleetKey, count: usize) {
        self.with(fleet, |served| served.distribution.expect_tenants(count));
    }

    /// Lets the removals through that wait, if they are so many by now.
    pub fn confirm_removals(&self, fleet: &FleetKey, count: usize) {
        self.with(fleet, |served| {
            if served.distribution.confirm_removals(count) {
                served.moved.send_modify(|count| *count = count.wrapping_add(1));
            }
        });
        self.shared.tick();
    }

    /// Forgets a fleet that is gone; its streams end.
    pub fn forget(&self, fleet: &FleetKey) {
        let mut state = self.shared.lock();
        let gone = state.fleets.remove(fleet);
        for uid in gone.iter().flat_map(|served| served.pods.keys()) {
            state.by_uid.remove(uid);
        }
    }

    /// How a fleet stands.
    pub fn fleet(&self, fleet: &FleetKey) -> FleetState {
        let state = self.shared.lock();
        let Some(served) = state.fleets.get(fleet) else { return FleetState::default() };
        FleetState {
            position: Some(served.distribution.position()),
            tenants: served.distribution.tenants(),
            has_all: served.knows_tenants() && served.distribution.has_all(),
            removals_waiting: served.removals_waiting(),
            pods: served.pods.iter().map(|(uid, pod)| (Arc::clone(uid), (pod.identity.clone(), pod.state.clone()))).collect(),
        }
    }

    /// How far a part has come, in its newest form.
    pub fn reach(&self, fleet: &FleetKey, key: &str) -> Reach {
        let state = self.shared.lock();
        let Some(served) = state.fleets.get(fleet) else { return Reach::Unknown };
        if !served.distribution.contains(key) {
            return Reach::Unknown;
        }
        let Some(number) = served.distribution.number_of(key) else { return Reach::Waiting };
        let epoch = served.distribution.epoch();
        let (mut serving, mut waiting) = (0, 0);
        let now_ms = clock::unix_ms();
        // After a change of the leader gateways come back one by one: the first is not all of them.
        let expected = |pod: &Pod| now_ms.saturating_sub(pod.state.since_ms) < RETURN_MS;
        for pod in served.pods.values() {
            if !pod.state.connected {
                waiting += usize::from(expected(pod) && pod.orders.borrow().drain() == DrainKind::None);
                continue;
            }
            let there = pod.state.applied.as_ref().is_some_and(|applied| applied.epoch == epoch && applied.number >= number);
            if let Some(rejection) = pod.state.rejected.get(key).filter(|_| there) {
                return Reach::Rejected(rejection.clone());
            }
            if pod.orders.borrow().drain() == DrainKind::None {
                serving += 1;
                // A list that is full may name fewer than there are.
                waiting += usize::from(!there || pod.state.rejected.len() >= REJECTIONS_MAX);
            }
        }
        if serving > 0 && waiting == 0 { Reach::Everywhere } else { Reach::Waiting }
    }

    /// Tenants (`NAMESPACE/NAME`) whose server refuses a gateway. `None`: no gateway that follows has said anything yet.
    pub fn refusing(&self, fleet: &FleetKey) -> Option<BTreeSet<String>> {
        let state = self.shared.lock();
        let pods = state.fleets.get(fleet)?.pods.values().filter(|pod| pod.state.connected);
        let mut reports = pods.filter_map(|pod| pod.state.report.as_ref()).peekable();
        reports.peek()?;
        Some(reports.flat_map(|(_, report)| report.refusing.iter().cloned()).collect())
    }

    /// Moves whenever a gateway came, went, acknowledged or reported, and when there is something new for them.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Figures by fleet.
    pub fn figures(&self) -> Vec<(FleetKey, Figures)> {
        let state = self.shared.lock();
        state.fleets.iter().map(|(key, served)| (key.clone(), figures(served))).collect()
    }

    /// The place of a gateway that the API server vouches for. An earlier stream of the same pod ends.
    pub(crate) fn seat(&self, identity: &Identity, mut hello: Hello) -> Result<Seat, Refusal> {
        clamp_hello(&mut hello);
        let reads = hello.format == FORMAT;
        let mut state = self.shared.lock();
        let fleet = state.by_uid.get(&*identity.pod_uid).cloned().ok_or(Refusal::NotAGateway)?;
        let served = state.fleets.get_mut(&fleet).ok_or(Refusal::NotAGateway)?;
        let moved = served.moved.subscribe();
        let pod = served.pods.get_mut(&*identity.pod_uid).ok_or(Refusal::NotAGateway)?;
        let is_it = *fleet.namespace == *identity.namespace
            && *pod.identity.name == *identity.pod_name
            && names::gateway_object(&fleet.name) == identity.service_account;
        if !is_it {
            return Err(Refusal::NotAGateway);
        }
        pod.stream.send_modify(|count| *count += 1);
        let (number, stream, orders) = (*pod.stream.borrow(), pod.stream.subscribe(), pod.orders.subscribe());
        let sent = hello.have.clone();
        if !reads {
            tracing::warn!(
                pod = &*pod.identity.name,
                format = hello.format,
                ours = FORMAT,
                "a gateway reads another format of configuration: it gets orders only"
            );
        }
        served.distribution.heard(hello.have.as_ref(), usize::try_from(hello.tenants).unwrap_or(usize::MAX));
        // What it has it acknowledged once; a position that we never had is none of ours.
        let applied = sent.clone().filter(|have| !served.distribution.is_foreign(have));
        pod.state = PodState { connected: true, since_ms: clock::unix_ms(), applied, hello: Some(hello), ..PodState::default() };
        let uid = Arc::clone(&pod.identity.uid);
        drop(state);
        self.shared.tick();
        Ok(Seat { hub: self.clone(), fleet, uid, number, stream, orders, moved, sent, reads })
    }

    /// Goes on above an epoch that a gateway has seen and we have not.
    pub(crate) async fn outdo(&self, seen: u64) -> Result<(), String> {
        let _one = self.shared.raising.lock().await;
        if seen <= self.shared.lock().epoch {
            return Ok(());
        }
        let epoch = self.shared.epochs.raise(seen).await?;
        let mut state = self.shared.lock();
        if epoch <= seen {
            return Err(format!("the epoch was stored as {epoch}, and a gateway has seen {seen} already"));
        }
        state.epoch = epoch;
        for served in state.fleets.values_mut() {
            served.distribution.raise(epoch);
            served.moved.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(())
    }
}

fn figures(served: &Served) -> Figures {
    let here = served.distribution.position();
    let connected = served.pods.values().filter(|pod| pod.state.connected);
    let behind = |pod: &Pod| {
        let applied = pod.state.applied.as_ref().filter(|applied| applied.epoch == here.epoch);
        here.number.saturating_sub(applied.map_or(0, |applied| applied.number))
    };
    Figures {
        gateways: connected.clone().count(),
        parts: served.distribution.parts(),
        behind: connected.map(behind).max().unwrap_or_default(),
        removals_waiting: served.removals_waiting(),
    }
}

/// A gateway's place at the hub for one stream.
pub(crate) struct Seat {
    hub: Hub,
    /// Its fleet.
    pub(crate) fleet: FleetKey,
    uid: Arc<str>,
    number: u64,
    /// Changes or closes when this stream is to end.
    stream: watch::Receiver<u64>,
    /// What it is to do.
    pub(crate) orders: watch::Receiver<Orders>,
    /// Ticks when there may be a new way.
    pub(crate) moved: watch::Receiver<u64>,
    /// Where the gateway is once it has taken what was sent. `None`: it has nothing, or is to have everything.
    sent: Option<Position>,
    /// Whether it reads the format that we write.
    reads: bool,
}

/// What a gateway gets next.
pub(crate) enum Next {
    /// This.
    Way(Way),
    /// Nothing, until something moved.
    Nothing,
    /// It has seen this epoch: first [`Hub::outdo`] it.
    Outdo(u64),
}

impl Seat {
    /// Returns when the stream is to end: the pod is no gateway any more, or has a newer stream.
    pub(crate) async fn ended(&mut self) {
        let number = self.number;
        // Closed or moved on are the same here.
        let _ended = self.stream.wait_for(|count| *count != number).await.is_err();
    }

    /// What the gateway gets, now that it was sent all before. A whole way is only given where `whole` allows it; else nothing is.
    pub(crate) fn next(&mut self, whole: impl FnOnce() -> bool) -> Next {
        let mut state = self.hub.shared.lock();
        let Some(served) = state.fleets.get_mut(&self.fleet).filter(|served| self.reads && served.answers()) else { return Next::Nothing };
        if let Some(seen) = self.sent.as_ref().map(|sent| sent.epoch).filter(|seen| *seen > served.distribution.epoch()) {
            if seen - served.distribution.epoch() <= EPOCHS_AHEAD_MAX {
                return Next::Outdo(seen);
            }
            tracing::warn!(uid = &*self.uid, seen, "a gateway claims an epoch that cannot be: it gets everything under ours");
            self.sent = None;
        }
        let Some(way) = served.distribution.way(self.sent.as_ref()) else { return Next::Nothing };
        if way.full {
            // Where it said it was is of another history, or came to another hash.
            if let Some(pod) = served.pods.get_mut(&self.uid).filter(|pod| *pod.stream.borrow() == self.number) {
                pod.state.applied = None;
            }
            if !whole() {
                return Next::Nothing;
            }
        }
        self.sent = Some(way.to.clone());
        Next::Way(way)
    }

    fn update(&self, f: impl FnOnce(&mut PodState)) {
        let mut state = self.hub.shared.lock();
        let pod = state.fleets.get_mut(&self.fleet).and_then(|served| served.pods.get_mut(&self.uid));
        // A stream that was displaced says nothing any more.
        if let Some(pod) = pod.filter(|pod| *pod.stream.borrow() == self.number) {
            f(&mut pod.state);
            drop(state);
            self.hub.shared.tick();
        }
    }

    /// An acknowledgement. True: the gateway came to another hash and is to have everything again. What it says of an earlier position is settled by
    /// what is under way, and what it was never sent it cannot have.
    pub(crate) fn applied(&mut self, applied: Applied) -> bool {
        let Applied { position: Some(at), rejected, resync } = applied else { return false };
        let Some(sent) = self.sent.as_ref().filter(|sent| (at.epoch, at.number) <= (sent.epoch, sent.number)) else { return false };
        let diverged = (at.epoch, at.number) == (sent.epoch, sent.number) && (resync || at.hash != sent.hash);
        let rejected = clamped(rejected);
        let mut replaced = false;
        self.update(|state| {
            replaced = !diverged && state.hello.as_ref().is_some_and(|hello| hello.tenants > 0);
            state.applied = (!diverged).then_some(at);
            state.rejected = Arc::new(rejected);
        });
        if replaced {
            self.hub.with(&self.fleet, |served| served.distribution.reached());
        }
        if diverged {
            self.sent = None;
        }
        diverged
    }

    /// A report; what is too long in it is cut.
    pub(crate) fn report(&self, mut report: Report) {
        clamp_report(&mut report);
        self.update(|state| state.report = Some((clock::unix_ms(), Arc::new(report))));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.update(|state| {
            state.connected = false;
            state.since_ms = clock::unix_ms();
        });
    }
}

fn clamp(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
        text.truncate(at);
        text.shrink_to_fit();
    }
}

fn clamp_hello(hello: &mut Hello) {
    clamp(&mut hello.version);
    hello.capabilities.truncate(CAPABILITIES_MAX);
    hello.capabilities.iter_mut().for_each(clamp);
    // A position whose hash is none was never ours.
    hello.have.take_if(|have| have.rolling_hash().is_none());
}

fn clamped(rejected: Vec<Rejection>) -> BTreeMap<String, Rejection> {
    let clamped = rejected.into_iter().take(REJECTIONS_MAX).map(|mut rejection| {
        let Rejection { key, lacks, message } = &mut rejection;
        [key, lacks, message].into_iter().for_each(clamp);
        (rejection.key.clone(), rejection)
    });
    clamped.collect()
}

fn clamp_report(report: &mut Report) {
    report.refusing.truncate(NAMES_MAX);
    report.refusing.iter_mut().for_each(clamp);
    report.certificates.truncate(NAMES_MAX);
    for certificate in &mut report.certificates {
        clamp(&mut certificate.name);
        clamp(&mut certificate.trouble);
    }
    report.samples.truncate(SAMPLES_MAX);
    for sample in &mut report.samples {
        clamp(&mut sample.queue_id);
        clamp(&mut sample.engine);
    }
    report.engines.truncate(ENGINES_MAX);
    for engine in &mut report.engines {
        clamp(&mut engine.name);
        clamp(&mut engine.version);
        engine.latency.truncate(LATENCY_BOUNDS_MS.len() + 1);
    }
}

#[cfg(test)]
mod tests;
