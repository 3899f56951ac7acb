//! The queue's index: every copy that waits, by tenant and by when it is due.
//!
//! Copies stand in lanes, one per tenant and kind of work, and lanes take turns: a million messages for a dead destination delay nobody else's. Only what is
//! needed to choose is in memory; envelope and edits stay in the spool.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde::Serialize;

use super::expiry::{HoldClock, is_expired};
use crate::message::Edits;
use crate::queue_id::QueueId;

mod admin;

pub use admin::{Affected, Filter, Listed, Operation, State, Statistics};

/// Names one entry: part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    /// The message.
    pub id: QueueId,
    /// Which part of it; no other part has the number while this one lives.
    pub sub: u32,
}

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Compartment {
    /// The tenant's quarantine.
    Quarantine,
    /// The tenant's dead letters: accepted, but never to be delivered.
    DeadLetters,
}

/// What is to be done with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Deliver it.
    Deliver {
        /// It may have arrived already.
        maybe_delivered: bool,
    },
    /// Judge it again.
    Rescan,
    /// Move it to a store.
    Store {
        /// Which.
        compartment: Compartment,
        /// Why, for people.
        reason: Arc<str>,
    },
}

/// The kinds of work, each with lanes of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// [`Work::Deliver`].
    Deliver,
    /// [`Work::Rescan`].
    Rescan,
    /// [`Work::Store`].
    Store,
}

impl Work {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Deliver { .. } => Kind::Deliver,
            Self::Rescan => Kind::Rescan,
            Self::Store { .. } => Kind::Store,
        }
    }
}

/// A lane: entries that wait for the same thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey {
    /// `namespace/name` of the tenant.
    pub tenant: Arc<str>,
    /// What is to be done.
    pub kind: Kind,
}

/// What the queue knows of an entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// `namespace/name` of the tenant.
    pub tenant: Arc<str>,
    /// Which of the message's groups it came from.
    pub group: u16,
    /// Recipients (indexes into the envelope) that are not finished.
    pub recipients: Arc<[u16]>,
    /// What is to be done.
    pub work: Work,
    /// The form of the message, where it is not the group's own any more.
    pub form: Option<Arc<Edits>>,
    /// When the message came.
    pub received_ms: u64,
    /// Bytes of the message.
    pub size_bytes: u64,
    /// Bytes of its record in the spool, without the message.
    pub meta_bytes: u64,
    /// The route of the last attempt.
    pub route: Option<Arc<str>>,
    /// Why it is still here.
    pub error: Option<Arc<str>>,
}

/// A new entry, or what is left of one.
#[derive(Clone, Debug)]
pub struct Part {
    /// See [`Entry`].
    pub recipients: Vec<u16>,
    /// See [`Entry`].
    pub work: Work,
    /// See [`Entry`].
    pub form: Option<Arc<Edits>>,
    /// When to do it.
    pub due_ms: u64,
    /// See [`Entry`].
    pub route: Option<Arc<str>>,
    /// See [`Entry`].
    pub error: Option<Arc<str>>,
}

/// What all entries of a message share.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Its name.
    pub id: QueueId,
    /// When it came.
    pub received_ms: u64,
    /// Its bytes.
    pub size_bytes: u64,
    /// Bytes of its record in the spool, without the message.
    pub meta_bytes: u64,
    /// Time on hold before this process knew it, milliseconds.
    pub held_before_ms: u64,
    /// Its tenant is on hold now.
    pub on_hold: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Scheduled(u64),
    InFlight { hold: bool },
    Held,
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    place: Place,
    inserted_ms: u64,
    /// The lane's hold clock when it came, less what it had been on hold before.
    hold_base_ms: i64,
    attempted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LanePlace {
    /// Nothing scheduled.
    Idle,
    /// In the round.
    Runnable,
    /// Until then.
    Sleeping(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    /// Its gate opens, or waits for us.
    No,
    /// It was closed, and opened in this call of [`Queue::due`]: perhaps only for the few slots that came free.
    Ajar(u64),
    /// Its gate waits for somebody else.
    Yes,
}

#[derive(Debug)]
struct Lane {
    /// Which one of this key it is: each that is made anew has a larger number.
    made: u64,
    scheduled: BTreeSet<(u64, EntryId)>,
    entries: usize,
    place: LanePlace,
    /// Due entries do not move: its gate has put it to sleep.
    waiting: bool,
    /// Whether what is due waits for somebody else.
    blocked: Blocked,
    hold: HoldClock,
    /// The last reason, shared by all whose reason is the same: a million messages behind a dead route are not worth a million copies of it.
    error: Option<Arc<str>>,
}

impl Entry {
    /// Bytes of memory that an attempt takes, at most.
    pub const fn memory_bytes(&self) -> u64 {
        super::memory_bytes(self.size_bytes, self.meta_bytes)
    }
}

impl Lane {
    /// Whether what is due waits for somebody else, as its gate said last. That its sleep is over changes nothing: a hung route is asked again and again,
    /// and what waits for it never waited for us.
    const fn is_blocked(&self) -> bool {
        !matches!(self.blocked, Blocked::No)
    }
}

/// Whether a lane may start one more.
#[derive(Debug)]
pub enum Gate<P> {
    /// Yes; what was reserved for it.
    Open(P),
    /// Not before `until_ms`, or until [`Queue::wake`].
    Wait {
        /// Milliseconds since 1970.
        until_ms: u64,
        /// It waits for somebody else (its route, a tenant's hold), not for us.
        foreign: bool,
    },
}

/// The index.
#[derive(Debug, Default)]
pub struct Queue {
    /// Boxed: in the map's half-full nodes a slot would cost twice its size.
    entries: BTreeMap<EntryId, Box<Slot>>,
    in_flight: usize,
    held: usize,
    lanes: HashMap<LaneKey, Lane>,
    round: VecDeque<(LaneKey, u64)>,
    sleeping: BTreeSet<(u64, LaneKey)>,
    /// Where [`Queue::expire`] stopped looking.
    expired_until: Option<EntryId>,
    /// Calls of [`Queue::due`].
    calls: u64,
    /// Counts the lanes that were made, at least.
    made: u64,
}

/// Entries that [`Queue::expire`] looks at in one call.
const EXPIRE_LOOKS_MAX: usize = 20_000;

impl Queue {
    /// Entries, in whatever state.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a part of a message.
    pub fn insert(&mut self, origin: Origin, tenant: &Arc<str>, group: u16, part: Part, now_ms: u64) -> EntryId {
        let id = EntryId { id: origin.id, sub: self.next_sub(origin.id) };
        let entry = Entry {
            id,
            tenant: Arc::clone(tenant),
            group,
            recipients: part.recipients.into(),
            work: part.work,
            form: part.form,
            received_ms: origin.received_ms,
            size_bytes: origin.size_bytes,
            meta_bytes: origin.meta_bytes,
            route: part.route,
            error: part.error,
        };
        let slot = Slot { entry, place: Place::Held, inserted_ms: now_ms, hold_base_ms: 0, attempted: false };
        let key = lane_of(&slot.entry);
        self.put(slot, part.due_ms, now_ms, i64::try_from(origin.held_before_ms).unwrap_or(i64::MAX));
        if origin.on_hold
            && key.kind != Kind::Store
            && let Some(lane) = self.lanes.get_mut(&key)
        {
            lane.hold.set(true, now_ms);
        }
        id
    }

    fn next_sub(&self, id: QueueId) -> u32 {
        let all = EntryId { id, sub: 0 }..=EntryId { id, sub: u32::MAX };
        self.entries.range(all).next_back().map_or(0, |(last, _)| last.sub.saturating_add(1))
    }

    /// Puts a slot into its lane and schedules it.
    fn put(&mut self, mut slot: Slot, due_ms: u64, now_ms: u64, held_ms: i64) {
        self.made += 1;
        let made = self.made;
        let lane = self.lanes.entry(lane_of(&slot.entry)).or_insert_with(|| Lane {
            made,
            scheduled: BTreeSet::new(),
            entries: 0,
            place: LanePlace::Idle,
            waiting: false,
            blocked: Blocked::No,
            hold: HoldClock::default(),
            error: None,
        });
        lane.entries += 1;
        if lane.error == slot.entry.error {
            slot.entry.error.clone_from(&lane.error);
        } else {
            lane.error.clone_from(&slot.entry.error);
        }
        slot.hold_base_ms = i64::try_from(lane.hold.total_ms(now_ms)).unwrap_or(i64::MAX).saturating_sub(held_ms);
        slot.place = Place::Held;
        let id = slot.entry.id;
        self.entries.insert(id, Box::new(slot));
        self.held += 1;
        self.schedule(id, due_ms);
    }

    /// Takes an entry out, its lane's place for it included.
    fn take(&mut self, id: EntryId) -> Option<Slot> {
        let slot = *self.entries.remove(&id)?;
        self.count(slot.place, None);
        let key = lane_of(&slot.entry);
        if let Some(lane) = self.lanes.get_mut(&key) {
            if let Place::Scheduled(due_ms) = slot.place {
                lane.scheduled.remove(&(due_ms, id));
            }
            lane.entries -= 1;
            if lane.entries == 0 {
                if let LanePlace::Sleeping(wake_ms) = lane.place {
                    self.sleeping.remove(&(wake_ms, key.clone()));
                }
                // Where it stands in the round, `due` finds that it is gone.
                self.lanes.remove(&key);
            }
        }
        Some(slot)
    }

    fn unschedule(&mut self, id: EntryId, place: Place) {
        let Some(slot) = self.entries.get_mut(&id) else { return };
        if let Place::Scheduled(due_ms) = slot.place
            && let Some(lane) = self.lanes.get_mut(&lane_of(&slot.entry))
        {
            lane.scheduled.remove(&(due_ms, id));
        }
        let before = std::mem::replace(&mut slot.place, place);
        self.count(before, Some(place));
    }

    /// Keeps the figures that are counted along.
    const fn count(&mut self, before: Place, after: Option<Place>) {
        match before {
            Place::InFlight { .. } => self.in_flight -= 1,
            Place::Held => self.held -= 1,
            Place::Scheduled(_) => {}
        }
        match after {
            Some(Place::InFlight { .. }) => self.in_flight += 1,
            Some(Place::Held) => self.held += 1,
            Some(Place::Scheduled(_)) | None => {}
        }
    }

    fn schedule(&mut self, id: EntryId, due_ms: u64) {
        self.unschedule(id, Place::Scheduled(due_ms));
        let Some(slot) = self.entries.get(&id) else { return };
        let key = lane_of(&slot.entry);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.scheduled.insert((due_ms, id));
        match lane.place {
            LanePlace::Runnable => {}
            // A lane that its gate has put to sleep stays so: one more message opens no route.
            LanePlace::Sleeping(_) if lane.waiting => {}
            LanePlace::Sleeping(wake_ms) if wake_ms <= due_ms => {}
            LanePlace::Sleeping(wake_ms) => {
                self.sleeping.remove(&(wake_ms, key.clone()));
                lane.place = LanePlace::Sleeping(due_ms);
                self.sleeping.insert((due_ms, key));
            }
            LanePlace::Idle => {
                lane.place = LanePlace::Sleeping(due_ms);
                self.sleeping.insert((due_ms, key));
            }
        }
    }

    /// What may start now, at most `limit`: one entry of each lane in turn, as long as the lane's gate opens for it. What is given out is in flight until [`Self::settle`].
    pub fn due<P>(&mut self, now_ms: u64, limit: usize, mut gate: impl FnMut(&Entry) -> Gate<P>) -> Vec<(Entry, P)> {
        self.calls += 1;
        while let Some((wake_ms, _)) = self.sleeping.first()
            && *wake_ms <= now_ms
            && let Some((_, key)) = self.sleeping.pop_first()
        {
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.place = LanePlace::Runnable;
                lane.waiting = false;
                self.round.push_back((key, lane.made));
            }
        }
        let mut started = vec![];
        while started.len() < limit
            && let Some((key, made)) = self.round.pop_front()
        {
            // A lane that became empty since it was put into the round is gone, and one that was made anew has a turn of its own.
            let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.made == made && lane.place == LanePlace::Runnable) else { continue };
            let Some((due_ms, id)) = lane.scheduled.first().copied() else {
                lane.place = LanePlace::Idle;
                continue;
            };
            // What is scheduled is there.
            let Some(slot) = self.entries.get_mut(&id) else {
                lane.scheduled.pop_first();
                self.round.push_back((key, made));
                continue;
            };
            let wake_ms = if due_ms > now_ms {
                due_ms
            } else {
                match gate(&slot.entry) {
                    Gate::Open(reserved) => {
                        lane.blocked = match lane.blocked {
                            Blocked::Yes => Blocked::Ajar(self.calls),
                            Blocked::Ajar(call) if call == self.calls => Blocked::Ajar(call),
                            Blocked::Ajar(_) | Blocked::No => Blocked::No,
                        };
                        lane.scheduled.pop_first();
                        slot.place = Place::InFlight { hold: false };
                        self.in_flight += 1;
                        slot.attempted = true;
                        started.push((slot.entry.clone(), reserved));
                        self.round.push_back((key, made));
                        continue;
                    }
                    Gate::Wait { until_ms, foreign } => {
                        lane.waiting = true;
                        lane.blocked = if foreign { Blocked::Yes } else { Blocked::No };
                        until_ms.max(now_ms + 1)
                    }
                }
            };
            lane.place = LanePlace::Sleeping(wake_ms);
            self.sleeping.insert((wake_ms, key));
        }
        started
    }

    /// When [`Self::due`] has something to do again, milliseconds since 1970.
    pub fn next_due_ms(&self, now_ms: u64) -> Option<u64> {
        if self.round.is_empty() { self.sleeping.first().map(|(wake_ms, _)| *wake_ms) } else { Some(now_ms) }
    }

    /// A gate of this tenant may open again.
    pub fn wake(&mut self, tenant: &Arc<str>, now_ms: u64) {
        for kind in [Kind::Deliver, Kind::Rescan, Kind::Store] {
            let key = LaneKey { tenant: Arc::clone(tenant), kind };
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            if let LanePlace::Sleeping(wake_ms) = lane.place
                && lane.waiting
            {
                self.sleeping.remove(&(wake_ms, key.clone()));
                lane.place = LanePlace::Sleeping(now_ms);
                self.sleeping.insert((now_ms, key));
            }
        }
    }

    /// The end of an attempt: what is left of the entry, in parts; recipients in none of them are finished. Answers what this message still has here.
    pub fn settle(&mut self, id: EntryId, parts: Vec<Part>, now_ms: u64) -> usize {
        let Some(slot) = self.take_for_settling(id, now_ms) else { return self.of_message(id.id).count() };
        let mut keep = Some(id.sub);
        for part in parts.into_iter().filter(|part| !part.recipients.is_empty()) {
            let sub = keep.take().unwrap_or_else(|| self.next_sub(id.id).max(id.sub.saturating_add(1)));
            let entry = Entry {
                id: EntryId { id: id.id, sub },
                recipients: part.recipients.into(),
                work: part.work,
                form: part.form,
                route: part.route.or_else(|| slot.0.entry.route.clone()),
                error: part.error,
                ..slot.0.entry.clone()
            };
            let held_ms = slot.1;
            let hold = slot.0.place == Place::InFlight { hold: true };
            let id = entry.id;
            let new = Slot { entry, place: Place::Held, inserted_ms: slot.0.inserted_ms, hold_base_ms: 0, attempted: slot.0.attempted };
            self.put(new, part.due_ms, now_ms, held_ms);
            if hold {
                self.unschedule(id, Place::Held);
            }
        }
        self.of_message(id.id).count()
    }

    fn take_for_settling(&mut self, id: EntryId, now_ms: u64) -> Option<(Slot, i64)> {
        let held_ms = self.held_ms(self.entries.get(&id)?, now_ms);
        self.take(id).map(|slot| (slot, held_ms))
    }

    fn held_ms(&self, slot: &Slot, now_ms: u64) -> i64 {
        let total_ms = self.lanes.get(&lane_of(&slot.entry)).map_or(0, |lane| lane.hold.total_ms(now_ms));
        i64::try_from(total_ms).unwrap_or(i64::MAX).saturating_sub(slot.hold_base_ms)
    }

    /// The entries of one message.
    pub fn of_message(&self, id: QueueId) -> impl Iterator<Item = &Entry> {
        self.entries.range(EntryId { id, sub: 0 }..=EntryId { id, sub: u32::MAX }).map(|(_, slot)| &slot.entry)
    }

    /// Tells the expiry clocks which tenants are on hold. At least once a second.
    pub fn sync_holds(&mut self, now_ms: u64, mut is_held: impl FnMut(&str) -> bool) {
        let mut released = vec![];
        for (key, lane) in &mut self.lanes {
            let held = key.kind != Kind::Store && is_held(&key.tenant);
            if lane.hold.is_held() && !held {
                released.push(Arc::clone(&key.tenant));
            }
            lane.hold.set(held, now_ms);
        }
        for tenant in released {
            self.wake(&tenant, now_ms);
        }
    }

    /// Sends what is older than `lifetime_ms`, without time on hold, to the dead letters; at most `limit` at once, looking at a part of the queue in each call. What this process has not tried yet, and has known
    /// for less than `grace_ms`, gets its chance first. Answers how many expired.
    pub fn expire(&mut self, now_ms: u64, lifetime_ms: u64, grace_ms: u64, limit: usize) -> usize {
        let (mut over, mut stopped) = (vec![], None);
        let from = self.expired_until.take();
        for (looked, (id, slot)) in self.range_from(from).enumerate() {
            // Names sort by age, give or take the time that a message takes to come in.
            if id.id.created_ms().saturating_add(lifetime_ms) > now_ms.saturating_add(3_600_000) {
                break;
            }
            if looked >= EXPIRE_LOOKS_MAX || over.len() >= limit {
                stopped = Some(*id);
                break;
            }
            let held_ms = u64::try_from(self.held_ms(slot, now_ms)).unwrap_or(0);
            let tried = slot.attempted || now_ms.saturating_sub(slot.inserted_ms) >= grace_ms;
            if matches!(slot.place, Place::Scheduled(_))
                && slot.entry.work.kind() != Kind::Store
                && tried
                && is_expired(slot.entry.received_ms, held_ms, lifetime_ms, now_ms)
            {
                over.push(*id);
            }
        }
        self.expired_until = stopped;
        for id in &over {
            let last = self.entries.get(id).and_then(|slot| slot.entry.error.clone());
            let reason = match last {
                Some(error) => format!("expired; the last attempt: {error}"),
                None => "expired".to_owned(),
            };
            self.move_to_dead_letters(*id, &reason.into(), now_ms);
        }
        over.len()
    }

    fn move_to_dead_letters(&mut self, id: EntryId, reason: &Arc<str>, now_ms: u64) {
        let Some(mut slot) = self.take(id) else { return };
        slot.entry.work = Work::Store { compartment: Compartment::DeadLetters, reason: Arc::clone(reason) };
        self.put(slot, now_ms, now_ms, 0);
    }

    /// The tenants that have an entry here.
    pub fn tenants(&self) -> BTreeSet<Arc<str>> {
        self.lanes.keys().map(|key| Arc::clone(&key.tenant)).collect()
    }

    fn range_from(&self, after: Option<EntryId>) -> impl Iterator<Item = (&EntryId, &Box<Slot>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range((from, Bound::Unbounded))
    }
}

fn lane_of(entry: &Entry) -> LaneKey {
    LaneKey { tenant: Arc::clone(&entry.tenant), kind: entry.work.kind() }
}

#[cfg(test)]
mod tests;
