//! A bound on how often somebody may do something: one token bucket for each. Pure.

use std::collections::HashMap;
use std::hash::Hash;

/// Those that are kept track of, at most. Beyond it, full buckets (which say nothing) are forgotten; and if there are none, all are.
const KEYS_MAX: usize = 4096;

/// Token buckets by key.
#[derive(Debug)]
pub struct Limiter<K> {
    burst_milli: u64,
    per_second: u64,
    /// Thousandths of a token, and when.
    buckets: HashMap<K, (u64, u64)>,
}

impl<K: Eq + Hash> Limiter<K> {
    /// `burst` at once, then `per_second`.
    pub fn new(burst: u32, per_second: u32) -> Self {
        Self { burst_milli: u64::from(burst) * 1000, per_second: u64::from(per_second), buckets: HashMap::new() }
    }

    /// Takes one token; false: there is none.
    pub fn allows(&mut self, key: K, now_ms: u64) -> bool {
        let (burst, per_second) = (self.burst_milli, self.per_second);
        let filled = |(milli, at): (u64, u64)| now_ms.saturating_sub(at).saturating_mul(per_second).saturating_add(milli).min(burst);
        if self.buckets.len() >= KEYS_MAX && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, bucket| filled(*bucket) < burst);
            if self.buckets.len() >= KEYS_MAX {
                self.buckets.clear();
            }
        }
        let bucket = self.buckets.entry(key).or_insert((burst, now_ms));
        let milli = filled(*bucket);
        let granted = milli >= 1000;
        *bucket = (milli - if granted { 1000 } else { 0 }, now_ms.max(bucket.1));
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_rate_for_each() {
        let mut limiter = Limiter::new(3, 2);
        assert_eq!((0..5).filter(|_| limiter.allows("a", 0)).count(), 3);
        assert!(limiter.allows("b", 0), "another one has its own");
        assert!(!limiter.allows("a", 400), "not yet");
        assert!(limiter.allows("a", 500));
        assert!(!limiter.allows("a", 500));
        assert_eq!((0..9).filter(|_| limiter.allows("a", 1_000_000)).count(), 3, "never more than the burst");
    }

    #[test]
    fn it_is_bounded() {
        let mut limiter = Limiter::new(1, 1);
        for key in 0..10_000 {
            limiter.allows(key, 0);
        }
        assert!(limiter.buckets.len() <= KEYS_MAX);
    }
}
