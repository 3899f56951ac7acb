//! One fleet's configuration as gateways get it: the parts there are, where their history stands, and the way from any earlier position to it.
//!
//! Changes are staged and take effect together ([`Distribution::settle`]), which gives them one number; so a burst of changes is one way, and the hash is
//! right at every number. Nothing here knows a gateway or a socket.
//!
//! **Mass removal** ([`removals`]). What removes more than max(20, 25 %) of the tenants within ten minutes is more likely a mistake (a namespace deleted,
//! an API server restored from an old backup) than a wish. Then the removals wait, and only they: the parts stay, everything else goes on, and
//! [`Distribution::removals_waiting`] says how many, until [`Distribution::confirm_removals`] or until the tenants are back. What a predecessor served
//! counts too, by the fleet's status ([`Distribution::expect_tenants`]) and by what the gateways themselves have ([`Distribution::heard`]; after an API server
//! was restored from a backup its own word is worth nothing): an operator that starts and finds far fewer tenants leaves the gateways as they are.

mod packed;
mod pieces;
mod removals;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use packed::{Packed, Packer, Unpacker};
use removals::Removals;
use sekimori_crds::snapshot::{RollingHash, part_words};
use sekimori_crds::stream::Position;

pub use pieces::{PIECE_BYTES, Pieces, pieces};
pub use removals::{REMOVALS_FREE, REMOVALS_PERCENT, REMOVALS_WINDOW_MS};

/// The key of the fleet's own part.
pub const FLEET_KEY: &str = "fleet";
/// Changed keys that the history names, at most. A gateway that is further behind gets everything.
const HISTORY_KEYS_MAX: usize = 50_000;

/// A key and what became of its part; `None`: it is gone.
type Changed = (Arc<str>, Option<Packed>);

/// A part as it is served.
#[derive(Clone, Debug)]
struct Entry {
    packed: Packed,
    words: [u64; 4],
    /// The number with which it came to be as it is.
    number: u64,
}

/// A part that is not in force yet.
#[derive(Clone, Debug)]
struct Staged {
    packed: Packed,
    words: [u64; 4],
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
#[derive(Debug)]
pub struct Distribution {
    epoch: u64,
    number: u64,
    hash: RollingHash,
    packer: Packer,
    parts: BTreeMap<Arc<str>, Entry>,
    staged: BTreeMap<Arc<str>, Option<Staged>>,
    /// Its numbers follow each other.
    history: VecDeque<Settled>,
    history_keys: usize,
    removals: Removals,
    /// The parts of the present number as a list, while a gateway is on its way to them: hundreds of gateways share one.
    everything: Weak<[Changed]>,
}

/// The way from one position to the present one.
#[derive(Clone, Debug)]
pub struct Way {
    /// Where it leads.
    pub to: Position,
    /// Everything is in it, and what is not is gone.
    pub full: bool,
    changes: Arc<[Changed]>,
    unpacker: Unpacker,
}

impl Way {
    /// Number of parts in it.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether it only says where the gateway is.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Distribution {
    /// Nothing yet, under an epoch that is larger than all before.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            number: 0,
            hash: RollingHash::default(),
            packer: Packer::default(),
            parts: BTreeMap::new(),
            staged: BTreeMap::new(),
            history: VecDeque::new(),
            history_keys: 0,
            removals: Removals::default(),
            everything: Weak::<[Changed; 0]>::new(),
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

    /// The number that it stands at.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Number of tenants in force.
    pub fn tenants(&self) -> usize {
        self.parts.len() - usize::from(self.parts.contains_key(FLEET_KEY))
    }

    /// Number of parts in force.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Bytes of the parts' JSON, and what they take packed (without keys and bookkeeping).
    pub fn bytes(&self) -> (usize, usize) {
        self.parts.values().fold((0, 0), |(json, packed), entry| (json + entry.packed.json_bytes(), packed + entry.packed.packed_bytes()))
    }

    /// Whether the fleet's own part is there: without it a gateway has nothing to run.
    pub fn has_fleet(&self) -> bool {
        self.parts.contains_key(FLEET_KEY)
    }

    /// Tenants whose removal waits, or that a predecessor served and that are not here.
    pub fn removals_waiting(&self) -> usize {
        self.removals.waiting() + self.removals.missing(self.tenants())
    }

    /// How many tenants the gateways had when this operator began, as far as it is known (from the fleet's status). If far fewer are found, gateways
    /// that are not at this epoch get nothing until the removal is confirmed or the tenants are there.
    pub fn expect_tenants(&mut self, count: usize) {
        self.removals.expect(count);
    }

    /// A gateway came and has so many tenants, of that position; `None`: it does not know of which. The same as [`Self::expect_tenants`].
    pub fn heard(&mut self, have: Option<&Position>, tenants: usize) {
        let is_foreign = have.is_some_and(|have| self.is_foreign(have));
        if tenants > 0 && (is_foreign || have.is_none_or(|have| have.epoch != self.epoch)) {
            self.removals.heard(have.map(|have| (have.epoch, have.number)), is_foreign, tenants);
        }
    }

    /// A gateway that came with tenants has taken ours in their place: what others come with is older.
    pub fn reached(&mut self) {
        self.removals.settle();
    }

    /// Whether nothing that gateways have is missing here.
    pub fn has_all(&self) -> bool {
        self.removals.missing(self.tenants()) == 0
    }

    /// The number with which a part came to be as it is. `None`: there is no such part, or a change of it is staged.
    pub fn number_of(&self, key: &str) -> Option<u64> {
        if self.staged.contains_key(key) {
            return None;
        }
        self.parts.get(key).map(|entry| entry.number)
    }

    /// Whether there is such a part, in force or staged.
    pub fn contains(&self, key: &str) -> bool {
        self.parts.contains_key(key) || self.staged.contains_key(key)
    }

    /// A part in its newest form, staged ones included.
    pub fn part(&self, key: &str) -> Option<Bytes> {
        let packed = match self.staged.get(key) {
            Some(staged) => staged.as_ref().map(|staged| &staged.packed),
            None => self.parts.get(key).map(|entry| &entry.packed),
        };
        packed.map(|packed| self.packer.unpacker().open().json(packed))
    }

    /// Stages a part. False: it is as it was.
    pub fn put(&mut self, key: &str, json: &[u8]) -> bool {
        self.removals.cancel(key);
        let words = part_words(key, json);
        if self.parts.get(key).is_some_and(|entry| entry.words == words) {
            return self.staged.remove(key).is_some();
        }
        if matches!(self.staged.get(key), Some(Some(staged)) if staged.words == words) {
            return false;
        }
        let packed = self.packer.pack(json, key != FLEET_KEY);
        self.staged.insert(self.key(key), Some(Staged { packed, words }));
        true
    }

    /// Stages a removal. False: there is no such part, or it waits already.
    pub fn remove(&mut self, key: &str) -> bool {
        if !self.parts.contains_key(key) {
            return self.staged.remove(key).is_some();
        }
        if self.removals.waits(key) {
            return self.staged.remove(key).is_some();
        }
        !matches!(self.staged.insert(self.key(key), None), Some(None))
    }

    /// The keys that are in force, for whoever must find out what is gone.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts.keys()
    }

    fn key(&self, key: &str) -> Arc<str> {
        self.parts.get_key_value(key).map_or_else(|| key.into(), |(known, _)| Arc::clone(known))
    }

    /// Lets the removals through that wait, if they are so many. False: they are not, or none do.
    pub fn confirm_removals(&mut self, count: usize) -> bool {
        if count == 0 || count != self.removals_waiting() {
            return false;
        }
        let missing = !self.has_all();
        let confirmed = self.removals.confirm();
        let changes: BTreeMap<Arc<str>, Option<Staged>> = confirmed.into_iter().map(|key| (key, None)).collect();
        let changed = !changes.is_empty();
        self.apply(changes);
        changed || missing
    }

    /// Puts in force what is staged, under one new number. False: nothing was.
    pub fn settle(&mut self, now_ms: u64) -> bool {
        let mut staged = std::mem::take(&mut self.staged);
        let going: Vec<Arc<str>> =
            staged.iter().filter(|(key, part)| part.is_none() && &***key != FLEET_KEY).map(|(key, _)| Arc::clone(key)).collect();
        if !self.removals.allow(&going, self.tenants(), now_ms) {
            staged.retain(|key, part| part.is_some() || &**key == FLEET_KEY);
        }
        self.apply(staged)
    }

    fn apply(&mut self, changes: BTreeMap<Arc<str>, Option<Staged>>) -> bool {
        if changes.is_empty() {
            return false;
        }
        let before = self.hash;
        self.number += 1;
        self.everything = Weak::<[Changed; 0]>::new();
        let mut keys = Vec::with_capacity(changes.len());
        for (key, part) in changes {
            let old = match part {
                Some(Staged { packed, words }) => {
                    self.hash.add_words(words);
                    self.parts.insert(Arc::clone(&key), Entry { packed, words, number: self.number })
                }
                None => self.parts.remove(&key),
            };
            if let Some(old) = old {
                self.hash.remove_words(old.words);
            }
            keys.push(key);
        }
        self.removals.arrived(self.tenants());
        self.history_keys += keys.len();
        self.history.push_back(Settled { number: self.number, before, keys });
        while self.history_keys > HISTORY_KEYS_MAX {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_keys -= oldest.keys.len();
        }
        true
    }

    /// Whether a position cannot be one of ours: then this history must go on under a larger epoch than that one's.
    pub const fn is_foreign(&self, position: &Position) -> bool {
        position.epoch > self.epoch || (position.epoch == self.epoch && position.number > self.number)
    }

    /// The way from a position. `None`: it is the present one, or nothing may be sent to there (see [`Self::expect_tenants`]); a gateway that has nothing waits
    /// then, too: it would refuse the mail of all tenants that are missing.
    ///
    /// Equal hashes are equal parts, whatever the epoch: who has them only gets to know where it is, so a new leader costs next to nothing.
    pub fn way(&mut self, from: Option<&Position>) -> Option<Way> {
        let to = self.position();
        if from == Some(&to) || (from.is_none_or(|from| from.epoch != self.epoch) && !self.has_all()) {
            return None;
        }
        let Some(from) = from else { return Some(self.all(to)) };
        if from.hash == to.hash {
            return Some(self.nothing());
        }
        let first = self.history.front().and_then(|oldest| from.number.checked_add(1)?.checked_sub(oldest.number)).map(|first| first as usize);
        let next = first.and_then(|first| self.history.get(first)).filter(|next| from.epoch == self.epoch && from.hash == next.before.to_bytes());
        let (Some(first), Some(_)) = (first, next) else { return Some(self.all(to)) };
        let keys: BTreeSet<&Arc<str>> = self.history.iter().skip(first).flat_map(|settled| &settled.keys).collect();
        let changes = keys.into_iter().map(|key| (Arc::clone(key), self.parts.get(key).map(|entry| entry.packed.clone()))).collect();
        Some(Way { to, full: false, changes, unpacker: self.packer.unpacker() })
    }

    /// The way that changes nothing and says where we are.
    pub fn nothing(&self) -> Way {
        Way { to: self.position(), full: false, changes: Arc::new([]), unpacker: Unpacker::default() }
    }

    fn all(&mut self, to: Position) -> Way {
        let changes = self.everything.upgrade().unwrap_or_else(|| {
            let all: Arc<[Changed]> = self.parts.iter().map(|(key, entry)| (Arc::clone(key), Some(entry.packed.clone()))).collect();
            self.everything = Arc::downgrade(&all);
            all
        });
        Way { to, full: true, changes, unpacker: self.packer.unpacker() }
    }
}

#[cfg(test)]
mod tests;
