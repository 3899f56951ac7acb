//! Delivery: while the sender waits ([`Delivery::inline`]), or from the queue ([`Delivery::run`]).
//!
//! What an answer means, when to retry, which route and how fast are decided by `queue` and `route`; here are sockets, tasks and timers. A route has its own
//! connections and its own bound, so that a hung server holds up nobody else's mail.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};

use crate::config::{Config, Tenant};
use crate::envelope::Envelope;
use crate::io::clock;
use crate::io::engine::BoxFuture;
use crate::io::spool::{Durable, Record, Recovered, Spool, SpoolError};
use crate::message::Edits;
use crate::queue::index::{Affected, Compartment, EntryId, Filter, Listed, Operation, Origin, Part, Statistics, Work};
use crate::queue::pacing::PacingLimits;
use crate::queue::retry::RetrySchedule;
use crate::queue::{Group, Meta, Purpose, Queue, expiry};
use crate::smtp::client::Timeouts;

mod attempt;
mod cache;
mod connection;
mod figures;
mod inline;
mod pool;
mod tls;
mod worker;

pub use figures::{Figures, Totals};
pub use inline::{HandedOver, Inline};
pub use pool::RouteStatus;
pub use tls::TlsError;

/// A message in one form: the shared body and the changes to it.
#[derive(Clone, Debug)]
pub struct Content {
    /// As received.
    pub raw: Bytes,
    /// What is changed.
    pub edits: Arc<Edits>,
}

impl Content {
    /// The form as slices, nothing copied. Edits that do not fit the message change nothing at all.
    pub fn rope(&self) -> Vec<Bytes> {
        self.edits.apply(&self.raw)
    }
}

/// Every bound of delivery, with its default.
#[derive(Clone, Debug)]
pub struct Options {
    /// Certificates that a server's must lead to where a route requires TLS, PEM. Default `/etc/ssl/certs/ca-certificates.crt`.
    pub root_certificates: PathBuf,
    /// How long each answer is waited for from the queue; inline never longer than its deadline. RFC 5321's.
    pub timeouts: Timeouts,
    /// Concurrency and dead destinations.
    pub pacing: PacingLimits,
    /// Retries.
    pub retry: RetrySchedule,
    /// Life of a message in the queue, milliseconds. 5 days.
    pub lifetime_ms: u64,
    /// What this process has not tried yet is not expired before it has known it so long, milliseconds. 10 minutes.
    pub expiry_grace_ms: u64,
    /// Inline deliveries of one tenant at once. 64.
    pub inline_per_tenant: u32,
    /// The longest an inline delivery may take, milliseconds. 25 s.
    pub inline_max_ms: u64,
    /// With less time left than this, inline is not tried, milliseconds. 500 ms.
    pub inline_min_ms: u64,
    /// Waiting for a free slot of the route, milliseconds. 2 s; not at all where nothing moves on the route.
    pub inline_slot_wait_ms: u64,
    /// Opening a connection inline, milliseconds. 5 s.
    pub inline_connect_ms: u64,
    /// Larger messages go to the queue, bytes. 32 MiB.
    pub inline_bytes_max: u64,
    /// Recipients of one transaction. 100 (RFC 5321 section 4.5.3.1.8: what every server takes).
    pub recipients_per_transaction: usize,
    /// Unused connections are closed after so long, milliseconds. 30 s.
    pub idle_ms: u64,
    /// Messages over one connection. 100.
    pub messages_per_connection: u32,
    /// Addresses of one host that are tried. 4.
    pub addresses_max: usize,
    /// Routes that one attempt tries. 3.
    pub routes_per_attempt: usize,
    /// Attempts from the queue at once, over all routes. 1000. One route never gets more than a quarter of what the others left free.
    pub attempts_max: usize,
    /// The longest that one attempt from the queue may take, milliseconds. 30 min.
    pub attempt_max_ms: u64,
    /// Copies being moved to stores at once. 16.
    pub stores_max: usize,
    /// A store that does not answer within this has failed, milliseconds. 30 s.
    pub store_timeout_ms: u64,
    /// Pause before a store is tried again, milliseconds. 30 s.
    pub store_retry_ms: u64,
    /// Messages being judged again at once. 8.
    pub rescans_max: usize,
    /// A scan that does not end within this has failed, milliseconds. 2 min.
    pub rescan_timeout_ms: u64,
    /// Bytes of just-spooled bodies and records kept in memory for the first attempt. 64 MiB.
    pub cache_bytes: usize,
    /// Bytes of bodies and records that attempts from the queue hold at once, 256 MiB; one route at most a quarter of it, but always one message.
    pub bodies_bytes: u64,
    /// Entries in the queue, about 0.5 KiB of memory each; more are refused as a full spool. 1,000,000.
    pub entries_max: usize,
    /// How long attempts in flight may go on after shutdown began, milliseconds. 10 s.
    pub shutdown_grace_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root_certificates: "/etc/ssl/certs/ca-certificates.crt".into(),
            timeouts: Timeouts::default(),
            pacing: PacingLimits::default(),
            retry: RetrySchedule::default(),
            lifetime_ms: expiry::LIFETIME_MS,
            expiry_grace_ms: 600_000,
            inline_per_tenant: 64,
            inline_max_ms: 25_000,
            inline_min_ms: 500,
            inline_slot_wait_ms: 2_000,
            inline_connect_ms: 5_000,
            inline_bytes_max: 32 << 20,
            recipients_per_transaction: 100,
            idle_ms: 30_000,
            messages_per_connection: 100,
            addresses_max: 4,
            routes_per_attempt: 3,
            attempts_max: 1_000,
            attempt_max_ms: 1_800_000,
            stores_max: 16,
            store_timeout_ms: 30_000,
            store_retry_ms: 30_000,
            rescans_max: 8,
            rescan_timeout_ms: 120_000,
            cache_bytes: 64 << 20,
            bodies_bytes: 256 << 20,
            entries_max: 1_000_000,
            shutdown_grace_ms: 10_000,
        }
    }
}

/// Host names to addresses. Address literals never get here.
pub trait Hosts: Send + Sync {
    /// A and AAAA of a host, in the order in which to try them. `Err`: why there is none, for people.
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<std::net::IpAddr>, String>>;
}

/// A copy for a store.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Quarantine or dead letters.
    pub compartment: Compartment,
    /// `namespace/name` of the tenant.
    pub tenant: Arc<str>,
    /// The envelope.
    pub envelope: Arc<Envelope>,
    /// Whose copy it is: indexes into the envelope.
    pub recipients: Arc<[u16]>,
    /// The message in the form that they would have got.
    pub content: Content,
    /// Why, for people.
    pub reason: Arc<str>,
}

/// Quarantine and dead letters.
pub trait Destination: Send + Sync {
    /// Keeps a copy. `Ok` only when it is as safe as it was in the spool. Storing the same copy twice (after a crash) must do no harm.
    fn store(&self, copy: Copy) -> BoxFuture<'_, Result<(), String>>;
}

/// Judges spooled mail again.
pub trait Rescanner: Send + Sync {
    /// New groups for the recipients of a group; a recipient that is left out is finished (discarded by policy). A group with [`Purpose::Rescan`], or `Err`, means: not yet.
    fn rescan(&self, meta: Arc<Meta>, group: Group, raw: Bytes) -> BoxFuture<'_, Result<Vec<Group>, String>>;
}

/// What delivery needs of the rest of the gateway.
pub struct Surroundings {
    /// The configuration in force.
    pub config: Arc<ArcSwap<Config>>,
    /// The spool.
    pub spool: Spool,
    /// Host names.
    pub hosts: Arc<dyn Hosts>,
    /// Stores.
    pub destination: Arc<dyn Destination>,
    /// Later scans.
    pub rescanner: Arc<dyn Rescanner>,
}

/// The handle: cheap to clone.
#[derive(Clone)]
pub struct Delivery(Arc<Inner>);

struct Inner {
    options: Options,
    around: Surroundings,
    routes: pool::Routes,
    connector: connection::Connector,
    queue: Mutex<Queue>,
    cache: Mutex<cache::Cache>,
    inline: Mutex<HashMap<Arc<str>, u32>>,
    wakeup: Notify,
    /// [`Options::bodies_bytes`], in KiB.
    bodies: Arc<Semaphore>,
    figures: Figures,
}

/// What is locked here is never left half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Delivery {
    /// Makes the handle; nothing runs before [`Self::run`]. Fails only on certificates that are there but do not read.
    pub fn new(options: Options, around: Surroundings) -> Result<Self, TlsError> {
        let connector = connection::Connector::new(&options)?;
        let routes = pool::Routes::new(options.pacing);
        let bodies = Arc::new(Semaphore::new(worker::kib(options.bodies_bytes) as usize));
        let cache = Mutex::new(cache::Cache::new(options.cache_bytes));
        Ok(Self(Arc::new(Inner {
            options,
            around,
            routes,
            connector,
            queue: Mutex::default(),
            cache,
            inline: Mutex::default(),
            wakeup: Notify::new(),
            bodies,
            figures: Figures::default(),
        })))
    }

    /// Takes on what the spool recovered, before [`Self::run`]. Answers the records that do not read: they stay in the spool, untouched. Blocking.
    pub fn recovered(&self, records: Vec<Recovered>) -> Vec<(crate::queue_id::QueueId, String)> {
        let now_ms = clock::unix_ms();
        let config = self.0.around.config.load();
        let mut unreadable = vec![];
        for record in records {
            match self.0.around.spool.read_meta(record.id).map_err(|error| error.to_string()).and_then(|meta| Meta::decode(&meta)) {
                Ok(meta) => {
                    let named: std::collections::BTreeSet<u16> = meta.groups.iter().flat_map(|group| group.recipients.iter().copied()).collect();
                    let stray: Vec<u16> = (0..record.slots).filter(|slot| !named.contains(slot) && !record.done.contains(slot)).collect();
                    if !stray.is_empty() {
                        self.0.around.spool.complete(record.id, stray);
                    }
                    self.schedule(&meta, (record.body_len as u64, record.meta_len as u64), |slot| record.done.contains(&slot), &config, true, now_ms);
                }
                Err(why) => {
                    tracing::error!(queue_id = %record.id, why, "a record of the spool cannot be delivered: it stays where it is");
                    self.0.figures.unreadable.add(1);
                    unreadable.push((record.id, why));
                }
            }
        }
        self.0.wakeup.notify_one();
        unreadable
    }

    /// Writes and syncs a message, then schedules it. Goes on to its end even when the caller does not wait for it.
    pub async fn submit(&self, meta: Meta, raw: Bytes) -> Result<Durable, SpoolError> {
        let this = self.clone();
        let id = meta.envelope.id;
        // A task of its own: were the append cut off half-way, the record would be on disk but nobody would deliver it before the next start.
        let task = tokio::spawn(async move { this.append_and_schedule(meta, raw).await });
        task.await.unwrap_or(Err(SpoolError::Unknown(id)))
    }

    async fn append_and_schedule(&self, meta: Meta, raw: Bytes) -> Result<Durable, SpoolError> {
        let inner = &self.0;
        if locked(&inner.queue).len() + meta.groups.len() > inner.options.entries_max {
            return Err(SpoolError::Full { dir: "memory".into(), limit: format!("{} copies in the queue's index", inner.options.entries_max) });
        }
        let id = meta.envelope.id;
        let slots = u16::try_from(meta.envelope.recipients.len()).unwrap_or(u16::MAX);
        let mut finished = vec![true; usize::from(slots)];
        for index in meta.groups.iter().flat_map(|group| &group.recipients) {
            if let Some(flag) = finished.get_mut(usize::from(*index)) {
                *flag = false;
            }
        }
        let affinity = meta.groups.first().map_or(0, |group| hash(&group.tenant));
        let written = meta.encode();
        let (size_bytes, meta_bytes) = (raw.len() as u64, written.len());
        let durable = inner.around.spool.append(Record { id, meta: written, body: raw.clone(), slots, affinity }).await?;
        let finished: Vec<u16> = (0..slots).filter(|slot| finished.get(usize::from(*slot)) == Some(&true)).collect();
        if !finished.is_empty() {
            inner.around.spool.complete(id, finished);
        }
        let meta = Arc::new(meta);
        locked(&inner.cache).put(id, Arc::clone(&meta), meta_bytes, raw);
        let config = inner.around.config.load();
        self.schedule(&meta, (size_bytes, meta_bytes as u64), |_| false, &config, false, clock::unix_ms());
        inner.figures.queued.add(1);
        inner.wakeup.notify_one();
        Ok(durable)
    }

    /// `bytes`: of body and meta as they are written.
    fn schedule(&self, meta: &Meta, bytes: (u64, u64), is_done: impl Fn(u16) -> bool, config: &Config, recovered: bool, now_ms: u64) {
        let received_ms = meta.envelope.received_ms;
        for (index, group) in meta.groups.iter().enumerate() {
            let recipients: Vec<u16> = group.recipients.iter().copied().filter(|slot| !is_done(*slot)).collect();
            if recipients.is_empty() {
                continue;
            }
            // How long a recovered message was on hold is not written down: what is on hold now counts as having been so from the beginning.
            let on_hold = config.tenant(&group.tenant).is_some_and(|tenant| worker::is_on_hold(tenant));
            let held_before_ms = if on_hold && recovered { now_ms.saturating_sub(received_ms) } else { 0 };
            let (size_bytes, meta_bytes) = bytes;
            let origin = Origin { id: meta.envelope.id, received_ms, size_bytes, meta_bytes, held_before_ms, on_hold };
            let work = work_of(&group.purpose);
            let wait_ms = if work == (Work::Deliver { maybe_delivered: true }) { self.0.options.retry.maybe_delivered_ms } else { 0 };
            let due_ms = if wait_ms > 0 { (received_ms + wait_ms).max(now_ms) } else { now_ms };
            let part = Part { recipients, work, form: None, due_ms, route: None, error: None };
            locked(&self.0.queue).insert(origin, &group.tenant, u16::try_from(index).unwrap_or(u16::MAX), part, now_ms);
        }
    }

    /// Entries that match, the oldest first, after `after`, at most `limit`.
    pub fn list(&self, filter: &Filter, after: Option<EntryId>, limit: usize) -> Vec<Listed> {
        locked(&self.0.queue).list(filter, clock::unix_ms(), after, limit)
    }

    /// What is known of one message in the queue: its record.
    pub async fn show(&self, id: crate::queue_id::QueueId) -> Result<Meta, String> {
        let (meta, _) = self.0.around.spool.read(id).await.map_err(|error| error.to_string())?;
        Meta::decode(&meta)
    }

    /// Retries, holds, releases or drops what matches; with `dry_run` only says what that would be. A retry also probes dead routes.
    pub fn operate(&self, operation: Operation, filter: &Filter, dry_run: bool) -> Affected {
        let now_ms = clock::unix_ms();
        if operation == Operation::Retry && !dry_run {
            self.0.routes.probe_now(filter.tenant.as_deref(), clock::monotonic_ms());
        }
        let affected = locked(&self.0.queue).operate(operation, filter, now_ms, dry_run);
        self.0.wakeup.notify_one();
        affected
    }

    /// Figures of the queue.
    pub fn statistics(&self) -> Statistics {
        locked(&self.0.queue).statistics(clock::unix_ms())
    }

    /// Keys of tenants that have mail here.
    pub fn tenants_with_mail(&self) -> std::collections::BTreeSet<Arc<str>> {
        locked(&self.0.queue).tenants()
    }

    /// Counters since start.
    pub fn figures(&self) -> &Figures {
        &self.0.figures
    }

    /// Every route that was used lately.
    pub fn routes(&self) -> Vec<RouteStatus> {
        self.0.routes.status()
    }
}

fn work_of(purpose: &Purpose) -> Work {
    match purpose {
        Purpose::Deliver { maybe_delivered } => Work::Deliver { maybe_delivered: *maybe_delivered },
        Purpose::Rescan => Work::Rescan,
        Purpose::Quarantine { reason } => Work::Store { compartment: Compartment::Quarantine, reason: reason.as_str().into() },
        Purpose::DeadLetter { reason } => Work::Store { compartment: Compartment::DeadLetters, reason: reason.as_str().into() },
    }
}

/// For telling things apart, not for security.
fn hash(value: &impl std::hash::Hash) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}

fn tenant_routes(tenant: &Tenant) -> &[sekimori_crds::snapshot::RoutePart] {
    &tenant.part.routes
}
