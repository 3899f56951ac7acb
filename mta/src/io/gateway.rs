//! What every part of a running gateway shares.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use sekimori_crds::stream::{CertificateReport, DrainKind};
use tokio::sync::{Notify, watch};

use crate::budget::{Budget, Charge};
use crate::clients::{self, Clients};
use crate::config::Config;
use crate::engine::tally::Tally;
use crate::io::auth::Authenticator;
use crate::io::clock;
use crate::io::delivery::Delivery;
use crate::io::engine::Engines;
use crate::io::metrics::Metrics;
use crate::io::quarantine::Quarantine;
use crate::io::spool::Spool;
use crate::rates::Rates;

/// The parts of a running gateway. A transaction takes its `Arc<Config>` once and keeps it.
pub struct Gateway {
    /// The configuration in force.
    pub config: Arc<ArcSwap<Config>>,
    /// What judges messages.
    pub filters: Arc<Filters>,
    /// Delivery and the queue.
    pub delivery: Delivery,
    /// The spool.
    pub spool: Spool,
    /// Quarantine and dead letters.
    pub quarantine: Quarantine,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Memory for messages in flight.
    pub memory: Arc<Memory>,
    /// Tenants' rates.
    pub rates: Mutex<Rates>,
    /// Becomes true when the gateway stops.
    pub stopping: watch::Sender<bool>,
    /// The drain that the operator ordered: no new mail is taken while there is one. It may be taken back.
    pub draining: watch::Sender<DrainKind>,
    /// Networks whose addresses hide who connects: nodes and pods of the cluster. Empty where a gateway runs alone.
    pub cluster_networks: ArcSwap<Vec<IpNet>>,
    /// Gateways that share the fleet's rates; 0: unknown, as 1.
    pub sharing: AtomicU32,
    /// Clients seen lately.
    pub clients: Mutex<Clients>,
    /// What engines said, for reports.
    pub tally: Arc<Mutex<Tally>>,
    /// The listeners' certificates from mounted Secrets, for reports.
    pub certificates: Mutex<Vec<CertificateReport>>,
    /// Whether mail is taken.
    pub serving: watch::Sender<bool>,
    /// Each session holds one.
    pub sessions: Arc<()>,
}

impl Gateway {
    /// Whether the gateway is stopping.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Whether it takes no new mail, as it stops or drains: too few engines then always means defer.
    pub fn is_closing(&self) -> bool {
        self.is_stopping() || *self.draining.borrow() != DrainKind::None
    }

    /// This gateway's part of a rate of the fleet.
    pub fn share_of_rate(&self, messages_per_hour: u32) -> u32 {
        crate::rates::share(messages_per_hour, self.sharing.load(Ordering::Relaxed))
    }

    /// Notes a client, and whether its address may be judged.
    pub fn meet(&self, client: IpAddr) -> bool {
        let is_known = clients::is_known(client, &self.cluster_networks.load());
        self.clients.lock().expect("no panic while held").saw(client, is_known, clock::monotonic_ms());
        is_known
    }

    /// Open sessions.
    pub fn open_sessions(&self) -> usize {
        Arc::strong_count(&self.sessions) - 1
    }
}

/// What judges messages, as it is in force now.
pub struct Filters {
    /// The engines.
    pub engines: Arc<Engines>,
    /// Sender authentication.
    pub authenticator: ArcSwap<Box<dyn Authenticator>>,
}

/// The memory budget, shared.
#[derive(Debug)]
pub struct Memory {
    inner: Mutex<(Budget, HashMap<u64, Arc<Notify>>)>,
}

impl Memory {
    /// See [`Budget::new`].
    pub fn new(capacity_bytes: u64, network_share_percent: u64) -> Self {
        Self { inner: Mutex::new((Budget::new(capacity_bytes, network_share_percent), HashMap::new())) }
    }

    /// Begins a transaction's charge; it ends when the value is dropped. `client` is `None` where the address hides who it is.
    pub fn begin(self: &Arc<Self>, client: Option<IpAddr>) -> MemoryCharge {
        let evicted = Arc::new(Notify::new());
        let mut inner = self.inner.lock().expect("no panic while held");
        let id = inner.0.begin(client, clock::monotonic_ms());
        inner.1.insert(id, Arc::clone(&evicted));
        MemoryCharge { memory: Arc::clone(self), id, evicted, bytes: 0 }
    }

    /// Bytes charged now.
    pub fn used_bytes(&self) -> u64 {
        self.inner.lock().expect("no panic while held").0.used_bytes()
    }
}

/// One transaction's charge.
#[derive(Debug)]
pub struct MemoryCharge {
    memory: Arc<Memory>,
    id: u64,
    /// Notified when the budget takes the memory away: the content is to be refused at once.
    pub evicted: Arc<Notify>,
    bytes: u64,
}

impl MemoryCharge {
    /// Charges up to `bytes` in all; false: refuse the content with 452.
    pub fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let mut inner = self.memory.inner.lock().expect("no panic while held");
        let granted = match inner.0.charge(self.id, more, clock::monotonic_ms()) {
            Charge::Granted => true,
            Charge::Evict(victim) => {
                if let Some(notify) = inner.1.remove(&victim) {
                    notify.notify_one();
                }
                true
            }
            Charge::Refused => false,
        };
        if granted {
            self.bytes = bytes;
        }
        granted
    }

    /// All content has arrived, and its memory is safe now. False: it was taken away before; refuse the content with 452.
    #[must_use]
    pub fn received(&self) -> bool {
        self.memory.inner.lock().expect("no panic while held").0.received(self.id)
    }
}

impl Drop for MemoryCharge {
    fn drop(&mut self) {
        let mut inner = self.memory.inner.lock().expect("no panic while held");
        inner.0.end(self.id);
        inner.1.remove(&self.id);
    }
}
