//! What people ask of the queue: list, retry, hold, release, drop, and figures.

use std::sync::Arc;

use serde::Serialize;

use super::{EntryId, Place, Queue, Slot, Work};
use crate::queue_id::QueueId;

/// Which entries are meant: all criteria that are given must hold; with none, nothing is meant unless `all`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// These messages.
    pub ids: Vec<QueueId>,
    /// `namespace/name` of a tenant.
    pub tenant: Option<String>,
    /// Name of the route of the last attempt.
    pub route: Option<String>,
    /// At least so old, milliseconds.
    pub older_than_ms: Option<u64>,
    /// Everything.
    pub all: bool,
}

impl Filter {
    fn says_something(&self) -> bool {
        self.all || !self.ids.is_empty() || self.tenant.is_some() || self.route.is_some() || self.older_than_ms.is_some()
    }

    fn matches(&self, slot: &Slot, now_ms: u64) -> bool {
        let entry = &slot.entry;
        self.says_something()
            && (self.ids.is_empty() || self.ids.contains(&entry.id.id))
            && self.tenant.as_deref().is_none_or(|tenant| tenant == &*entry.tenant)
            && self.route.as_deref().is_none_or(|route| entry.route.as_deref() == Some(route))
            && self.older_than_ms.is_none_or(|age_ms| now_ms.saturating_sub(entry.received_ms) >= age_ms)
    }
}

/// What an entry is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Due, and waits for our worker only.
    Runnable,
    /// Due, and waits for its route (dead, busy, on hold) or store.
    Waiting,
    /// Its next attempt is later.
    Scheduled,
    /// Being attempted.
    InFlight,
    /// Held by an administrator.
    Held,
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The message.
    pub id: QueueId,
    /// Part of it.
    pub sub: u32,
    /// Tenant.
    pub tenant: Arc<str>,
    /// What is to be done: `deliver`, `rescan`, `quarantine`, `deadLetter`.
    pub purpose: &'static str,
    /// State.
    pub state: State,
    /// Recipients that are not finished, as indexes into the envelope.
    pub recipients: Arc<[u16]>,
    /// Bytes of the message.
    pub size_bytes: u64,
    /// When it came, milliseconds since 1970.
    pub received_ms: u64,
    /// When it is due, milliseconds since 1970.
    pub due_ms: Option<u64>,
    /// Route of the last attempt.
    pub route: Option<Arc<str>>,
    /// Why it is still here.
    pub error: Option<Arc<str>>,
}

/// What can be done with entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Due now.
    Retry,
    /// Not attempted until released.
    Hold,
    /// Undo `Hold`; due now.
    Release,
    /// To the dead letters.
    Drop,
}

/// What an operation did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Affected {
    /// Entries.
    pub count: usize,
    /// Entries that match, but are being attempted right now and were left alone.
    pub in_flight: usize,
    /// The messages, the oldest first, at most 1000.
    pub ids: Vec<QueueId>,
}

/// Figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// [`State::Runnable`].
    pub runnable: usize,
    /// [`State::Waiting`].
    pub waiting: usize,
    /// [`State::Scheduled`].
    pub scheduled: usize,
    /// [`State::InFlight`].
    pub in_flight: usize,
    /// [`State::Held`].
    pub held: usize,
    /// When the oldest came, milliseconds since 1970.
    pub oldest_received_ms: Option<u64>,
}

const IDS_MAX: usize = 1000;

impl Queue {
    /// Entries that match, the oldest first, after `after`, at most `limit`.
    pub fn list(&self, filter: &Filter, now_ms: u64, after: Option<EntryId>, limit: usize) -> Vec<Listed> {
        self.range_from(after).filter(|(_, slot)| filter.matches(slot, now_ms)).take(limit).map(|(_, slot)| self.listed(slot, now_ms)).collect()
    }

    fn listed(&self, slot: &Slot, now_ms: u64) -> Listed {
        let entry = &slot.entry;
        Listed {
            id: entry.id.id,
            sub: entry.id.sub,
            tenant: Arc::clone(&entry.tenant),
            purpose: match &entry.work {
                Work::Deliver { .. } => "deliver",
                Work::Rescan => "rescan",
                Work::Store { compartment: super::Compartment::Quarantine, .. } => "quarantine",
                Work::Store { compartment: super::Compartment::DeadLetters, .. } => "deadLetter",
            },
            state: self.state(slot, now_ms),
            recipients: Arc::clone(&entry.recipients),
            size_bytes: entry.size_bytes,
            received_ms: entry.received_ms,
            due_ms: match slot.place {
                Place::Scheduled(due_ms) => Some(due_ms),
                Place::InFlight { .. } | Place::Held => None,
            },
            route: entry.route.clone(),
            error: entry.error.clone(),
        }
    }

    fn state(&self, slot: &Slot, now_ms: u64) -> State {
        match slot.place {
            Place::InFlight { .. } => State::InFlight,
            Place::Held => State::Held,
            Place::Scheduled(due_ms) if due_ms > now_ms => State::Scheduled,
            Place::Scheduled(_) => {
                let lane = self.lanes.get(&super::lane_of(&slot.entry));
                if lane.is_some_and(|lane| lane.is_blocked()) { State::Waiting } else { State::Runnable }
            }
        }
    }

    /// Does something with all entries that match, or with `dry_run` only says with which.
    pub fn operate(&mut self, operation: Operation, filter: &Filter, now_ms: u64, dry_run: bool) -> Affected {
        let mut affected = Affected::default();
        let mut ids = vec![];
        for (id, slot) in &self.entries {
            if !filter.matches(slot, now_ms) {
                continue;
            }
            let applies = match (operation, slot.place) {
                (Operation::Hold, Place::InFlight { hold }) => !hold,
                (_, Place::InFlight { .. }) => {
                    affected.in_flight += 1;
                    false
                }
                (Operation::Retry | Operation::Hold, place) => matches!(place, Place::Scheduled(_)),
                (Operation::Release, place) => place == Place::Held,
                (Operation::Drop, _) => !matches!(slot.entry.work, Work::Store { compartment: super::Compartment::DeadLetters, .. }),
            };
            if applies {
                ids.push(*id);
            }
        }
        affected.count = ids.len();
        for id in &ids {
            if affected.ids.last() != Some(&id.id) && affected.ids.len() < IDS_MAX {
                affected.ids.push(id.id);
            }
        }
        if !dry_run {
            ids.into_iter().for_each(|id| self.operate_on(operation, id, now_ms));
        }
        affected
    }

    fn operate_on(&mut self, operation: Operation, id: EntryId, now_ms: u64) {
        let in_flight = self.entries.get(&id).is_some_and(|slot| matches!(slot.place, Place::InFlight { .. }));
        match operation {
            Operation::Retry | Operation::Release => {
                self.schedule(id, now_ms);
                if let Some(tenant) = self.entries.get(&id).map(|slot| Arc::clone(&slot.entry.tenant)) {
                    self.wake(&tenant, now_ms);
                }
            }
            Operation::Hold if in_flight => {
                if let Some(slot) = self.entries.get_mut(&id) {
                    slot.place = Place::InFlight { hold: true };
                }
            }
            Operation::Hold => self.unschedule(id, Place::Held),
            Operation::Drop => self.move_to_dead_letters(id, &"dropped by an administrator".into(), now_ms),
        }
    }

    /// Figures.
    pub fn statistics(&self, now_ms: u64) -> Statistics {
        let oldest_received_ms = self.entries.first_key_value().map(|(_, slot)| slot.entry.received_ms);
        let mut figures = Statistics { in_flight: self.in_flight, held: self.held, oldest_received_ms, ..Statistics::default() };
        for lane in self.lanes.values() {
            let due = match lane.scheduled.last() {
                // A backlog is mostly due as a whole: no need to count it.
                Some((last_ms, _)) if *last_ms <= now_ms => lane.scheduled.len(),
                _ => lane.scheduled.iter().take_while(|(due_ms, _)| *due_ms <= now_ms).count(),
            };
            figures.scheduled += lane.scheduled.len() - due;
            *if lane.is_blocked() { &mut figures.waiting } else { &mut figures.runnable } += due;
        }
        figures
    }
}
