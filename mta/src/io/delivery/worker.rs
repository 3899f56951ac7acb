//! The queue's loop: starts what is due, settles what ended, keeps the clocks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sekimori_crds::vocabulary::TenantState;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::attempt::{Job, Limits, is_of_the_mail};
use super::pool::{NoSlot, Route, Slot};
use super::{Content, Copy, Delivery, locked, work_of};
use crate::config::{Config, Tenant};
use crate::io::clock::{self, monotonic_ms};
use crate::io::spool::SpoolError;
use crate::message::Edits;
use crate::queue::index::{Compartment, Entry, EntryId, Gate, Kind, Part, Work};
use crate::queue::outcome::{Outcome, sanitised};
use crate::queue::{Group, Meta};
use crate::smtp::client::Phase;

/// How often clocks and pools are looked after, milliseconds.
const TICK_MS: u64 = 1_000;
/// A lane whose gate only lacks a slot is asked again after so long at the latest, milliseconds.
const BUSY_MS: u64 = 50;
/// Entries started in one go, so that what ended is settled in between.
const BATCH_MAX: usize = 64;
/// Entries expired in one go.
const EXPIRE_MAX: usize = 1_000;
/// Mail of a tenant that nobody knows, and records that cannot be read, are looked at again after so long, milliseconds.
const UNKNOWN_MS: u64 = 60_000;

/// A message for whose body there was no room is looked at again after so long, milliseconds.
const NO_ROOM_MS: u64 = 200;

/// Bytes as KiB, rounded up.
pub(super) fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32)
}

/// Whether a tenant's mail is accepted but not delivered. Nobody could end the hold of a tenant that was removed: its last mail is delivered, or expires.
pub(super) fn is_on_hold(tenant: &Tenant) -> bool {
    tenant.part.state == TenantState::Hold && !tenant.removed
}

/// What an attempt holds while it runs.
struct Permit {
    /// The right to use a route, where it is a delivery.
    slot: Option<Slot>,
    _attempt: OwnedSemaphorePermit,
    /// Room in memory for message and record.
    _room: OwnedSemaphorePermit,
}

struct Permits {
    attempts: Arc<Semaphore>,
    stores: Arc<Semaphore>,
    rescans: Arc<Semaphore>,
}

impl Delivery {
    /// Works the queue off until `shutdown` turns true; then starts nothing more, gives what is in flight its time, and makes every completion durable.
    pub async fn run(&self, mut shutdown: watch::Receiver<bool>) {
        let options = &self.0.options;
        let permits = Permits {
            attempts: Arc::new(Semaphore::new(options.attempts_max)),
            stores: Arc::new(Semaphore::new(options.stores_max)),
            rescans: Arc::new(Semaphore::new(options.rescans_max)),
        };
        let mut tasks = JoinSet::new();
        let mut running = HashMap::new();
        let mut ticked_ms = 0;
        while !*shutdown.borrow() {
            if monotonic_ms() >= ticked_ms + TICK_MS || ticked_ms == 0 {
                ticked_ms = monotonic_ms();
                self.tick(&mut tasks);
            }
            self.start_due(&permits, &mut tasks, &mut running);
            let pause_ms = self.pause_ms(&permits);
            tokio::select! {
                changed = shutdown.changed() => if changed.is_err() { break },
                () = self.0.wakeup.notified() => {}
                Some(ended) = tasks.join_next_with_id() => {
                    self.ended(ended, &mut running);
                    while let Some(ended) = tasks.try_join_next_with_id() {
                        self.ended(ended, &mut running);
                    }
                }
                () = sleep(Duration::from_millis(pause_ms)) => {}
            }
        }
        self.finish(tasks, running).await;
    }

    async fn finish(&self, mut tasks: JoinSet<()>, mut running: HashMap<Id, EntryId>) {
        let rest = async {
            while let Some(ended) = tasks.join_next_with_id().await {
                self.ended(ended, &mut running);
            }
        };
        if timeout(Duration::from_millis(self.0.options.shutdown_grace_ms), rest).await.is_err() {
            tracing::warn!(attempts = running.len(), "attempts were cut off by shutdown: they are repeated after the next start");
            tasks.shutdown().await;
        }
        for connection in self.0.routes.drain() {
            // One second at most each, and a server that reads takes microseconds.
            tokio::spawn(connection.quit());
        }
        if let Err(error) = self.0.around.spool.flush().await {
            tracing::error!(%error, "completions may be lost: these messages are delivered again after the next start");
        }
    }

    fn tick(&self, tasks: &mut JoinSet<()>) {
        let inner = &self.0;
        let now_ms = clock::unix_ms();
        let config = inner.around.config.load();
        let expired = {
            let mut queue = locked(&inner.queue);
            queue.sync_holds(now_ms, |tenant| config.tenant(tenant).is_some_and(|tenant| is_on_hold(tenant)));
            queue.expire(now_ms, inner.options.lifetime_ms, inner.options.expiry_grace_ms, EXPIRE_MAX)
        };
        inner.figures.expired.add(expired as u64);
        let old = inner.routes.sweep(inner.options.idle_ms, monotonic_ms());
        if !old.is_empty() {
            tasks.spawn(async move {
                for connection in old {
                    connection.quit().await;
                }
            });
        }
    }

    fn pause_ms(&self, permits: &Permits) -> u64 {
        if permits.attempts.available_permits() == 0 {
            return TICK_MS;
        }
        let now_ms = clock::unix_ms();
        let next_ms = locked(&self.0.queue).next_due_ms(now_ms);
        next_ms.map_or(TICK_MS, |next_ms| next_ms.saturating_sub(now_ms).min(TICK_MS))
    }

    fn start_due(&self, permits: &Permits, tasks: &mut JoinSet<()>, running: &mut HashMap<Id, EntryId>) {
        let limit = permits.attempts.available_permits().min(BATCH_MAX);
        if limit == 0 {
            return;
        }
        let now_ms = clock::unix_ms();
        let config = self.0.around.config.load_full();
        let started = locked(&self.0.queue).due(now_ms, limit, |entry| self.gate(entry, &config, permits, now_ms));
        for (entry, permit) in started {
            let id = entry.id;
            let this = self.clone();
            let handle = tasks.spawn(async move { this.work(entry, permit).await });
            running.insert(handle.id(), id);
        }
    }

    /// Whether a lane may start its next entry, and what that reserves. What waits for our own permits or memory is ours: more gateways would help.
    fn gate(&self, entry: &Entry, config: &Config, permits: &Permits, now_ms: u64) -> Gate<Permit> {
        let ours = |wait_ms| Gate::Wait { until_ms: now_ms + wait_ms, foreign: false };
        let (semaphore, tenant) = match entry.work.kind() {
            Kind::Store => (&permits.stores, None),
            Kind::Rescan => (&permits.rescans, None),
            Kind::Deliver => match config.tenant(&entry.tenant) {
                None => return Gate::Wait { until_ms: now_ms + UNKNOWN_MS, foreign: true },
                Some(tenant) if is_on_hold(tenant) => return Gate::Wait { until_ms: now_ms + TICK_MS, foreign: true },
                Some(tenant) => (&permits.attempts, Some(tenant)),
            },
        };
        let Ok(attempt) = Arc::clone(semaphore).try_acquire_owned() else { return ours(BUSY_MS) };
        let room_bytes = entry.memory_bytes().min(self.0.options.bodies_bytes);
        let Ok(room) = Arc::clone(&self.0.bodies).try_acquire_many_owned(kib(room_bytes)) else { return ours(NO_ROOM_MS) };
        let slot = match tenant.map(|tenant| self.slot(entry, tenant, permits)) {
            None => None,
            Some(Ok(slot)) => Some(slot),
            Some(Err((wait_ms, foreign))) => return Gate::Wait { until_ms: now_ms + wait_ms, foreign },
        };
        Gate::Open(Permit { slot, _attempt: attempt, _room: room })
    }

    /// A slot of the tenant's best route that has one, with room in the route's share of memory; or how long to wait, and whether for somebody else.
    fn slot(&self, entry: &Entry, tenant: &Tenant, permits: &Permits) -> Result<Slot, (u64, bool)> {
        let monotonic_ms = monotonic_ms();
        let share_bytes = self.0.options.bodies_bytes / 4;
        // A quarter of what is still free: many hung routes together leave room for the next one.
        let share = u32::try_from(permits.attempts.available_permits() / 4).unwrap_or(u32::MAX);
        let take = |route: &Arc<Route>| route.try_slot(share, monotonic_ms)?.reserve(entry.memory_bytes(), share_bytes, monotonic_ms);
        for route in self.0.usable_routes(tenant, monotonic_ms) {
            if let Ok(slot) = take(&route) {
                return Ok(slot);
            }
        }
        let (mut wait_ms, mut foreign) = (UNKNOWN_MS, true);
        for part in &tenant.part.routes {
            match take(&self.0.routes.route(&tenant.key, part)) {
                Ok(slot) => return Ok(slot),
                Err(NoSlot::Closed { until_ms: Some(until_ms) }) => wait_ms = wait_ms.min(until_ms.saturating_sub(monotonic_ms)),
                Err(other) => {
                    wait_ms = wait_ms.min(BUSY_MS);
                    foreign &= other.is_foreign();
                }
            }
        }
        Err((wait_ms, foreign))
    }

    fn ended(&self, ended: Result<(Id, ()), JoinError>, running: &mut HashMap<Id, EntryId>) {
        match ended {
            Ok((task, ())) => drop(running.remove(&task)),
            Err(error) => {
                // A bug of ours must not take the message with it.
                tracing::error!(%error, "an attempt broke off");
                if let Some(id) = running.remove(&error.id()) {
                    let mut queue = locked(&self.0.queue);
                    let entry = queue.of_message(id.id).find(|entry| entry.id == id).cloned();
                    if let Some(entry) = entry {
                        let now_ms = clock::unix_ms();
                        queue.settle(id, vec![again(&entry, now_ms + UNKNOWN_MS, "the attempt broke off")], now_ms);
                    }
                }
            }
        }
    }

    async fn work(&self, entry: Entry, permit: Permit) {
        let parts = self.attempt(&entry, permit).await;
        let now_ms = clock::unix_ms();
        let mut queue = locked(&self.0.queue);
        let left = queue.settle(entry.id, parts, now_ms);
        queue.wake(&entry.tenant, now_ms);
        drop(queue);
        if left == 0 {
            locked(&self.0.cache).remove(entry.id.id);
        }
    }

    async fn attempt(&self, entry: &Entry, mut permit: Permit) -> Vec<Part> {
        match self.load(entry).await {
            Ok((meta, raw)) => match (permit.slot.take(), &entry.work) {
                (Some(slot), Work::Deliver { .. }) => self.deliver(entry, slot, &meta, raw).await,
                (_, Work::Store { compartment, reason }) => self.store(entry, *compartment, reason, &meta, raw).await,
                (_, Work::Rescan) => self.rescan(entry, meta, raw).await,
                (None, Work::Deliver { .. }) => vec![again(entry, clock::unix_ms(), "no route was reserved")],
            },
            Err(parts) => parts,
        }
    }

    /// Meta and body, from memory or from the spool; `Err`: what to do instead.
    async fn load(&self, entry: &Entry) -> Result<(Arc<Meta>, Bytes), Vec<Part>> {
        let cached = locked(&self.0.cache).get(entry.id.id);
        if let Some(found) = cached {
            return Ok(found);
        }
        let why = match self.0.around.spool.read(entry.id.id).await {
            Ok((written, raw)) => match Meta::decode(&written) {
                Ok(meta) => {
                    let meta = Arc::new(meta);
                    // After a start nothing is in memory: what one copy has read the message's other copies need not read again.
                    if locked(&self.0.queue).of_message(entry.id.id).nth(1).is_some() {
                        locked(&self.0.cache).put(entry.id.id, Arc::clone(&meta), written.len(), raw.clone());
                    }
                    return Ok((meta, raw));
                }
                Err(why) => why,
            },
            // Finished already.
            Err(SpoolError::Unknown(_)) => return Err(vec![]),
            Err(error) => error.to_string(),
        };
        tracing::error!(queue_id = %entry.id.id, why, "a message in the spool cannot be read");
        self.0.figures.unreadable.add(1);
        Err(vec![again(entry, clock::unix_ms() + UNKNOWN_MS, &why)])
    }

    async fn deliver(&self, entry: &Entry, slot: Slot, meta: &Meta, raw: Bytes) -> Vec<Part> {
        let inner = &self.0;
        let config = inner.around.config.load_full();
        let Some((tenant, content)) = config.tenant(&entry.tenant).zip(content(entry, meta, raw)) else {
            return vec![again(entry, clock::unix_ms() + UNKNOWN_MS, "the tenant is not known")];
        };
        if entry.work == (Work::Deliver { maybe_delivered: true }) {
            inner.figures.maybe_delivered_retries.add(1);
        }
        let job = Job::new(tenant, &meta.envelope, &content);
        let all_ms = monotonic_ms() + inner.options.attempt_max_ms;
        let mut sorter = Sorter::new(entry);
        let mut slot = slot;
        let mut tried = 1;
        let mut left = &entry.recipients[..];
        while !left.is_empty() {
            let (now, later) = left.split_at(left.len().min(inner.options.recipients_per_transaction.max(1)));
            match inner.over_route(&mut slot, &job, now, Limits { open_ms: all_ms, all_ms }).await {
                Ok(answered) => {
                    let reply = answered.reply.as_ref().map(|reply| sanitised(reply).to_string());
                    let recipients = now.len();
                    tracing::info!(event = "attempt", queue_id = %entry.id.id, tenant = %entry.tenant, route = %slot.route.name, recipients, reply, "answered");
                    sorter.take(now, answered.outcomes, &slot.route.name);
                    self.complete(entry, &mut sorter);
                    left = later;
                }
                Err(failed) => {
                    tried += 1;
                    let next = (tried <= inner.options.routes_per_attempt).then(|| self.another_slot(tenant, &slot)).flatten();
                    match next {
                        Some(another) => slot = another,
                        None => {
                            sorter.failed(left, failed.phase, &failed.trouble.why, &slot.route.name);
                            break;
                        }
                    }
                }
            }
        }
        self.parts(entry, sorter)
    }

    /// A slot of a route after this one, in their order of preference.
    fn another_slot(&self, tenant: &Tenant, failed: &Slot) -> Option<Slot> {
        let now_ms = monotonic_ms();
        let order = |part: &sekimori_crds::snapshot::RoutePart| (part.priority, u32::MAX - part.weight);
        self.0
            .usable_routes(tenant, now_ms)
            .into_iter()
            .filter(|route| route.name != failed.route.name && order(&route.part) >= order(&failed.route.part))
            .find_map(|route| route.try_slot(u32::MAX, now_ms).ok())
    }

    fn complete(&self, entry: &Entry, sorter: &mut Sorter) {
        let delivered = std::mem::take(&mut sorter.delivered);
        if !delivered.is_empty() {
            self.0.figures.delivered.add(delivered.len() as u64);
            self.0.around.spool.complete(entry.id.id, delivered);
        }
    }

    /// A new form, in which what is taken away shares the memory of the message's other new forms.
    fn sharing(&self, entry: &Entry, mut edits: Edits) -> Edits {
        for other in locked(&self.0.queue).of_message(entry.id.id).filter_map(|other| other.form.as_deref()) {
            edits.share_removed(other);
        }
        edits
    }

    /// What is left of an entry after an attempt.
    fn parts(&self, entry: &Entry, sorter: Sorter) -> Vec<Part> {
        let options = &self.0.options;
        let figures = &self.0.figures;
        let now_ms = clock::unix_ms();
        let next_ms = options.retry.next_ms(entry.received_ms, now_ms, entry.id.id.0 as u64);
        let part = |recipients, work, due_ms, error: Option<Arc<str>>| Part {
            recipients,
            work,
            form: entry.form.clone(),
            due_ms,
            route: sorter.route.clone(),
            error,
        };
        let mut parts = vec![];
        for (reason, recipients) in sorter.refused {
            figures.refused.add(recipients.len() as u64);
            let work = Work::Store { compartment: Compartment::DeadLetters, reason: Arc::clone(&reason) };
            parts.push(part(recipients, work, now_ms, Some(reason)));
        }
        if let Some((why, recipients)) = sorter.deferred {
            figures.deferred.add(1);
            parts.push(part(recipients, Work::Deliver { maybe_delivered: false }, next_ms, Some(why)));
        }
        if let Some((why, recipients)) = sorter.unknown {
            figures.ambiguous.add(1);
            let due_ms = next_ms.max(now_ms + options.retry.maybe_delivered_ms);
            parts.push(part(recipients, Work::Deliver { maybe_delivered: true }, due_ms, Some(why)));
        }
        if let Some((phase, why, recipients)) = sorter.failed {
            figures.deferred.add(1);
            // Before MAIL it cannot be the message's fault: as soon as the route is back. Later it may be, and the message must not be what probes the route for ever.
            let due_ms = if is_of_the_mail(phase) { next_ms } else { now_ms + options.pacing.backoff_first_ms };
            parts.push(part(recipients, entry.work.clone(), due_ms, Some(why)));
        }
        parts
    }

    async fn store(&self, entry: &Entry, compartment: Compartment, reason: &Arc<str>, meta: &Meta, raw: Bytes) -> Vec<Part> {
        let inner = &self.0;
        let wait_ms = inner.options.store_retry_ms;
        let Some(content) = content(entry, meta, raw) else {
            return vec![again(entry, clock::unix_ms() + wait_ms, "its group is not in the record")];
        };
        let copy = Copy {
            compartment,
            tenant: Arc::clone(&entry.tenant),
            envelope: Arc::new(meta.envelope.clone()),
            recipients: Arc::clone(&entry.recipients),
            content,
            reason: Arc::clone(reason),
        };
        let stored = timeout(Duration::from_millis(inner.options.store_timeout_ms), inner.around.destination.store(copy)).await;
        match stored.unwrap_or_else(|_| Err("the store did not answer in time".into())) {
            Ok(()) => {
                inner.figures.stored.add(1);
                inner.around.spool.complete(entry.id.id, entry.recipients.iter().copied());
                vec![]
            }
            Err(why) => {
                inner.figures.store_failures.add(1);
                tracing::warn!(queue_id = %entry.id.id, tenant = %entry.tenant, why, "a copy could not be moved to its store");
                vec![again(entry, clock::unix_ms() + wait_ms, &why)]
            }
        }
    }

    async fn rescan(&self, entry: &Entry, meta: Arc<Meta>, raw: Bytes) -> Vec<Part> {
        let inner = &self.0;
        let now_ms = clock::unix_ms();
        let next_ms = inner.options.retry.next_ms(entry.received_ms, now_ms, entry.id.id.0 as u64);
        let Some(group) = meta.groups.get(usize::from(entry.group)) else { return vec![again(entry, next_ms, "its group is not in the record")] };
        let group = Group { recipients: entry.recipients.to_vec(), ..group.clone() };
        let judged =
            timeout(Duration::from_millis(inner.options.rescan_timeout_ms), inner.around.rescanner.rescan(Arc::clone(&meta), group, raw)).await;
        let groups = match judged.unwrap_or_else(|_| Err("the scan did not end in time".into())) {
            Ok(groups) => groups,
            Err(why) => return vec![again(entry, next_ms, &why)],
        };
        inner.figures.rescanned.add(1);
        let mut left = entry.recipients.to_vec();
        let mut parts = vec![];
        for group in groups {
            let recipients: Vec<u16> = group.recipients.iter().copied().filter(|index| left.contains(index)).collect();
            left.retain(|index| !recipients.contains(index));
            let work = work_of(&group.purpose);
            let due_ms = if work == Work::Rescan { next_ms } else { now_ms };
            let form = if work == Work::Rescan { entry.form.clone() } else { Some(Arc::new(self.sharing(entry, group.edits))) };
            parts.push(Part { recipients, work, form, due_ms, route: None, error: None });
        }
        if !left.is_empty() {
            inner.around.spool.complete(entry.id.id, left);
        }
        parts
    }
}

/// The whole entry once more.
fn again(entry: &Entry, due_ms: u64, why: &str) -> Part {
    let form = entry.form.clone();
    Part { recipients: entry.recipients.to_vec(), work: entry.work.clone(), form, due_ms, route: entry.route.clone(), error: Some(why.into()) }
}

fn content(entry: &Entry, meta: &Meta, raw: Bytes) -> Option<Content> {
    let edits = match &entry.form {
        Some(form) => Arc::clone(form),
        None => Arc::new(meta.groups.get(usize::from(entry.group))?.edits.clone()),
    };
    Some(Content { raw, edits })
}

/// Recipients by what became of them.
struct Sorter {
    delivered: Vec<u16>,
    refused: Vec<(Arc<str>, Vec<u16>)>,
    deferred: Option<(Arc<str>, Vec<u16>)>,
    unknown: Option<(Arc<str>, Vec<u16>)>,
    failed: Option<(Phase, Arc<str>, Vec<u16>)>,
    route: Option<Arc<str>>,
}

impl Sorter {
    fn new(entry: &Entry) -> Self {
        Self { delivered: vec![], refused: vec![], deferred: None, unknown: None, failed: None, route: entry.route.clone() }
    }

    fn take(&mut self, recipients: &[u16], outcomes: Vec<Outcome>, route: &Arc<str>) {
        self.route = Some(Arc::clone(route));
        for (index, outcome) in recipients.iter().copied().zip(outcomes) {
            match outcome {
                Outcome::Delivered => self.delivered.push(index),
                Outcome::RefusedPermanently(reply) => {
                    let reason: Arc<str> = format!("refused by route {route}: {reply}").into();
                    match self.refused.iter_mut().find(|(known, _)| *known == reason) {
                        Some((_, others)) => others.push(index),
                        None => self.refused.push((reason, vec![index])),
                    }
                }
                Outcome::Retry(reply) => self.deferred.get_or_insert_with(|| (reply.to_string().into(), vec![])).1.push(index),
                Outcome::Unknown(why) => self.unknown.get_or_insert_with(|| (why.into(), vec![])).1.push(index),
                Outcome::RouteTrouble(trouble) => self.deferred.get_or_insert_with(|| (trouble.why.into(), vec![])).1.push(index),
            }
        }
    }

    fn failed(&mut self, recipients: &[u16], phase: Phase, why: &str, route: &Arc<str>) {
        self.route = Some(Arc::clone(route));
        self.failed = Some((phase, why.into(), recipients.to_vec()));
    }
}
