//! One fleet's configuration as gateways get it: the parts there are, where their history stands, and the way from any earlier position to it.
//!
//! Changes are staged and take effect together ([`Distribution::settle`]), which gives them one number; so a burst of changes is one way, and the hash is
//! right at every number. Nothing here knows a gateway or a socket.
//!
//! **Mass removal.** What removes more than max(20, 25 %) of the tenants within ten minutes is more likely a mistake (a namespace deleted, an API server
//! restored from an old backup) than a wish. Then the removals wait, and only they: the parts stay, everything else goes on, and
//! [`Distribution::removals_waiting`] says how many, until [`Distribution::confirm_removals`] or until the tenants are back.

mod pieces;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use sekimori_crds::snapshot::{RollingHash, part_words};
use sekimori_crds::stream::Position;

pub use pieces::pieces;

/// The key of the fleet's own part.
pub const FLEET_KEY: &str = "fleet";
/// Removals of so many tenants never wait.
pub const REMOVALS_FREE: usize = 20;
/// Nor do removals of this share of the tenants, in percent.
pub const REMOVALS_PERCENT: usize = 25;
/// Removals count together for so long, in milliseconds.
pub const REMOVALS_WINDOW_MS: u64 = 600_000;
/// Changed keys that the history names, at most. A gateway that is further behind gets everything.
const HISTORY_KEYS_MAX: usize = 50_000;

/// A part as it is served.
#[derive(Clone, Debug)]
struct Entry {
    json: Bytes,
    words: [u64; 4],
    /// The number with which it came to be as it is.
    number: u64,
}

/// What changed with one number.
#[derive(Clone, Debug)]
struct Settled {
    number: u64,
    /// The hash before it.
    before: RollingHash,
    keys: Vec<Arc<str>>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Distribution {
    epoch: u64,
    number: u64,
    hash: RollingHash,
    parts: BTreeMap<Arc<str>, Entry>,
    staged: BTreeMap<Arc<str>, Option<Bytes>>,
    history: VecDeque<Settled>,
    history_keys: usize,
    /// When how many tenants were removed.
    removed: VecDeque<(u64, usize)>,
    waiting: BTreeSet<Arc<str>>,
}

/// The way from one position to the present one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where it leads.
    pub to: Position,
    /// Everything is in it, and what is not is gone.
    pub full: bool,
    /// Parts by key; `None`: it is gone.
    pub changes: Vec<(Arc<str>, Option<Bytes>)>,
}

impl Distribution {
    /// Nothing yet, under an epoch that is larger than all before.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            number: 0,
            hash: RollingHash::default(),
            parts: BTreeMap::new(),
            staged: BTreeMap::new(),
            history: VecDeque::new(),
            history_keys: 0,
            removed: VecDeque::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Goes on under a larger epoch: every position so far is one of another history.
    pub fn raise(&mut self, epoch: u64) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.history.clear();
            self.history_keys = 0;
        }
    }

    /// The epoch.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        Position::new(self.epoch, self.number, self.hash)
    }

    /// Number of tenants.
    pub fn tenants(&self) -> usize {
        self.parts.len() - usize::from(self.parts.contains_key(FLEET_KEY))
    }

    /// Whether the fleet's own part is there: without it a gateway has nothing to run.
    pub fn has_fleet(&self) -> bool {
        self.parts.contains_key(FLEET_KEY)
    }

    /// Tenants whose removal waits.
    pub fn removals_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The number with which a part came to be as it is. `None`: there is no such part, or a change of it is staged.
    pub fn number_of(&self, key: &str) -> Option<u64> {
        if self.staged.contains_key(key) {
            return None;
        }
        self.parts.get(key).map(|entry| entry.number)
    }

    /// Stages a part. False: it is as it was.
    pub fn put(&mut self, key: &str, json: Bytes) -> bool {
        self.waiting.remove(key);
        if self.parts.get(key).is_some_and(|entry| entry.json == json) {
            return self.staged.remove(key).is_some();
        }
        self.staged.insert(self.key(key), Some(json));
        true
    }

    /// Stages a removal. False: there is no such part.
    pub fn remove(&mut self, key: &str) -> bool {
        if !self.parts.contains_key(key) {
            return self.staged.remove(key).is_some();
        }
        if self.waiting.contains(key) {
            return false;
        }
        self.staged.insert(self.key(key), None);
        true
    }

    /// Whether there is such a part, staged or in force.
    pub fn contains(&self, key: &str) -> bool {
        self.parts.contains_key(key) || self.staged.contains_key(key)
    }

    /// A part in its newest form, staged ones included.
    pub fn part(&self, key: &str) -> Option<Bytes> {
        match self.staged.get(key) {
            Some(staged) => staged.clone(),
            None => self.parts.get(key).map(|entry| entry.json.clone()),
        }
    }

    /// The keys that are there, for whoever must find out what is gone.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts.keys()
    }

    fn key(&self, key: &str) -> Arc<str> {
        self.parts.get_key_value(key).map_or_else(|| key.into(), |(known, _)| Arc::clone(known))
    }

    /// Lets the removals through that wait.
    pub fn confirm_removals(&mut self, now_ms: u64) -> bool {
        let confirmed = std::mem::take(&mut self.waiting);
        self.removed.clear();
        self.apply(confirmed.into_iter().map(|key| (key, None)).collect(), now_ms)
    }

    /// Puts in force what is staged, under one new number. False: nothing was.
    pub fn settle(&mut self, now_ms: u64) -> bool {
        let mut staged = std::mem::take(&mut self.staged);
        while self.removed.front().is_some_and(|(at, _)| at.saturating_add(REMOVALS_WINDOW_MS) <= now_ms) {
            self.removed.pop_front();
        }
        let going = staged.iter().filter(|(key, part)| part.is_none() && &***key != FLEET_KEY).count();
        let recently: usize = self.removed.iter().map(|(_, count)| count).sum();
        let limit = REMOVALS_FREE.max((self.tenants() + recently) * REMOVALS_PERCENT / 100);
        if going > 0 && going + recently + self.waiting.len() > limit {
            let tenants: Vec<Arc<str>> =
                staged.iter().filter(|(key, part)| part.is_none() && &***key != FLEET_KEY).map(|(key, _)| Arc::clone(key)).collect();
            staged.retain(|key, part| part.is_some() || &**key == FLEET_KEY);
            self.waiting.extend(tenants);
        }
        self.apply(staged, now_ms)
    }

    fn apply(&mut self, changes: BTreeMap<Arc<str>, Option<Bytes>>, now_ms: u64) -> bool {
        if changes.is_empty() {
            return false;
        }
        let before = self.hash;
        self.number += 1;
        let mut removed = 0;
        let mut keys = Vec::with_capacity(changes.len());
        for (key, json) in changes {
            if let Some(old) = self.parts.remove(&key) {
                self.hash.remove_words(old.words);
            }
            match json {
                Some(json) => {
                    let words = part_words(&key, &json);
                    self.hash.add_words(words);
                    self.parts.insert(Arc::clone(&key), Entry { json, words, number: self.number });
                }
                None => removed += 1,
            }
            keys.push(key);
        }
        if removed > 0 {
            self.removed.push_back((now_ms, removed));
        }
        self.history_keys += keys.len();
        self.history.push_back(Settled { number: self.number, before, keys });
        while self.history_keys > HISTORY_KEYS_MAX {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_keys -= oldest.keys.len();
        }
        true
    }

    /// The way from a position. `None`: it is the present one.
    pub fn way(&self, from: Option<&Position>) -> Option<Way> {
        let to = self.position();
        let Some(from) = from.filter(|from| from.epoch == self.epoch && from.number <= self.number) else { return Some(self.everything(to)) };
        if from.number == self.number {
            return if from.hash == to.hash { None } else { Some(self.everything(to)) };
        }
        let first = self.history.iter().position(|settled| settled.number == from.number + 1);
        let known = first.and_then(|first| self.history.get(first)).is_some_and(|next| from.hash == next.before.to_bytes());
        let Some(first) = first.filter(|_| known) else { return Some(self.everything(to)) };
        let keys: BTreeSet<&Arc<str>> = self.history.iter().skip(first).flat_map(|settled| &settled.keys).collect();
        let changes = keys.into_iter().map(|key| (Arc::clone(key), self.parts.get(key).map(|entry| entry.json.clone()))).collect();
        Some(Way { to, full: false, changes })
    }

    fn everything(&self, to: Position) -> Way {
        Way { to, full: true, changes: self.parts.iter().map(|(key, entry)| (Arc::clone(key), Some(entry.json.clone()))).collect() }
    }
}

#[cfg(test)]
mod tests;
