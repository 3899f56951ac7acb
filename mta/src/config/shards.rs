//! A map in shards that copies share: a change costs one shard, not the whole.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

/// Shards of one map. With 100,000 entries a changed shard has some 400 of them to copy.
const SHARDS: usize = 256;

/// See the module. A clone costs [`SHARDS`] counts.
#[derive(Clone, Debug)]
pub(super) struct Shards<V> {
    /// Seeded, as the keys are tenants' own: nobody can fill one shard alone.
    hasher: RandomState,
    shards: Vec<Arc<HashMap<Arc<str>, V>>>,
    len: usize,
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Arc::default()).collect(), len: 0 }
    }
}

impl<V: Clone> Shards<V> {
    fn place(&self, key: &str) -> usize {
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }

    pub(super) fn get(&self, key: &str) -> Option<&V> {
        self.shards.get(self.place(key))?.get(key)
    }

    /// Puts a value in; the one before.
    pub(super) fn insert(&mut self, key: Arc<str>, value: V) -> Option<V> {
        let place = self.place(&key);
        let before = Arc::make_mut(self.shards.get_mut(place)?).insert(key, value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Takes a value out. Nothing is copied where there is none.
    pub(super) fn remove(&mut self, key: &str) -> Option<V> {
        let place = self.place(key);
        let shard = self.shards.get_mut(place).filter(|shard| shard.contains_key(key))?;
        let before = Arc::make_mut(shard).remove(key);
        self.len -= usize::from(before.is_some());
        before
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Shards that both have in common, for tests of what a change costs.
    #[cfg(test)]
    pub(super) fn shared_with(&self, other: &Self) -> usize {
        self.shards.iter().zip(&other.shards).filter(|(mine, theirs)| Arc::ptr_eq(mine, theirs)).count()
    }
}
