//! The guard against mass removals: which removals of tenants take effect, and which wait for the user's word.
//!
//! Removals count together for [`REMOVALS_WINDOW_MS`]: a slow drip of them is a mass removal too, as long as it is faster than a quarter of the tenants in
//! ten minutes. A tenant that comes back no longer counts, and confirmed removals do not count either.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Removals of so many tenants never wait.
pub const REMOVALS_FREE: usize = 20;
/// Nor do removals of this share of the tenants, in percent.
pub const REMOVALS_PERCENT: usize = 25;
/// Removals count together for so long, in milliseconds.
pub const REMOVALS_WINDOW_MS: u64 = 600_000;

#[derive(Clone, Debug, Default)]
pub(super) struct Removals {
    /// Tenants that were let go, and when. Never more than the limit lets through.
    recent: BTreeMap<Arc<str>, u64>,
    /// Tenants that stay until they are confirmed.
    waiting: BTreeSet<Arc<str>>,
    /// Tenants that a predecessor served. 0: unknown, or they were here.
    expected: usize,
    /// Of the gateways that came with a configuration, the newest epoch and number.
    heard_at: Option<(u64, u64)>,
    /// What gateways came with says nothing more: one has taken ours in its place, or the user said that it is meant.
    is_settled: bool,
}

const fn limit(tenants: usize) -> usize {
    let share = tenants.saturating_mul(REMOVALS_PERCENT) / 100;
    if share > REMOVALS_FREE { share } else { REMOVALS_FREE }
}

impl Removals {
    /// Whether tenants may go now, of so many that there are. If not, they wait.
    pub(super) fn allow(&mut self, going: &[Arc<str>], tenants: usize, now_ms: u64) -> bool {
        self.recent.retain(|_, at_ms| at_ms.saturating_add(REMOVALS_WINDOW_MS) > now_ms);
        if going.is_empty() {
            return true;
        }
        let together = going.len() + self.recent.len() + self.waiting.len();
        let allowed = together <= limit(tenants + self.recent.len());
        if allowed {
            self.recent.extend(going.iter().map(|key| (Arc::clone(key), now_ms)));
        } else {
            self.waiting.extend(going.iter().cloned());
        }
        allowed
    }

    /// A tenant is there: its removal neither waits nor counts.
    pub(super) fn cancel(&mut self, key: &str) {
        self.waiting.remove(key);
        self.recent.remove(key);
    }

    /// Whether a tenant's removal waits.
    pub(super) fn waits(&self, key: &str) -> bool {
        self.waiting.contains(key)
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The user's word: those that waited.
    pub(super) fn confirm(&mut self) -> BTreeSet<Arc<str>> {
        self.expected = 0;
        self.is_settled = true;
        self.recent.clear();
        std::mem::take(&mut self.waiting)
    }

    /// See [`super::Distribution::expect_tenants`].
    pub(super) fn expect(&mut self, count: usize) {
        self.expected = self.expected.max(count);
    }

    /// See [`super::Distribution::heard`]. One that was away for long may have had more than the others, rightly: only the newest count.
    pub(super) fn heard(&mut self, at: Option<(u64, u64)>, is_foreign: bool, count: usize) {
        if (self.is_settled && !is_foreign) || at < self.heard_at {
            return;
        }
        self.heard_at = at;
        self.expect(count);
    }

    /// A gateway that had a configuration has ours now.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
    }

    /// So many tenants are in force: as many as expected, or near enough, end the expectation.
    pub(super) fn arrived(&mut self, tenants: usize) {
        if self.missing(tenants) == 0 {
            self.expected = 0;
        }
    }

    /// How many of the expected tenants are not there; 0 if few enough to go on.
    pub(super) fn missing(&self, tenants: usize) -> usize {
        let missing = self.expected.saturating_sub(tenants);
        if missing > limit(self.expected) { missing } else { 0 }
    }
}
