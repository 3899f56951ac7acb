//! Rates: how many messages a tenant may receive in an hour, as token buckets. Pure.

use std::collections::HashMap;
use std::sync::Arc;

/// Most tenants that are kept track of at once; beyond it, full buckets (which say nothing) are forgotten.
pub const BUCKETS_MAX: usize = 200_000;

/// One gateway's share of a rate that so many share, rounded up: together they may let through a little more, none is left with nothing.
pub const fn share(messages_per_hour: u32, gateways: u32) -> u32 {
    messages_per_hour.div_ceil(if gateways == 0 { 1 } else { gateways })
}

/// Milliseconds of allowance that a bucket holds: a burst of six minutes' worth, so that an hour's allowance cannot come in one second.
const BURST_MS: u64 = 360_000;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Thousandths of a message.
    milli: u64,
    at_ms: u64,
}

/// The buckets of all tenants.
#[derive(Debug, Default)]
pub struct Rates {
    buckets: HashMap<Arc<str>, Bucket>,
}

impl Rates {
    /// Whether a tenant has a message's worth left; false: to be answered 450 4.7.1. Nothing is taken, so that RCPT alone uses nothing up.
    pub fn allows(&mut self, tenant: &Arc<str>, messages_per_hour: u32, now_ms: u64) -> bool {
        self.refilled(tenant, messages_per_hour, now_ms).milli >= 1000
    }

    /// Takes one message's worth for a tenant; false: there was none left.
    pub fn take(&mut self, tenant: &Arc<str>, messages_per_hour: u32, now_ms: u64) -> bool {
        let bucket = self.refilled(tenant, messages_per_hour, now_ms);
        if bucket.milli < 1000 {
            return false;
        }
        bucket.milli -= 1000;
        true
    }

    fn refilled(&mut self, tenant: &Arc<str>, messages_per_hour: u32, now_ms: u64) -> &mut Bucket {
        let capacity = Self::capacity_milli(messages_per_hour);
        if self.buckets.len() >= BUCKETS_MAX && !self.buckets.contains_key(tenant) {
            self.buckets.retain(|_, bucket| now_ms.saturating_sub(bucket.at_ms) < BURST_MS);
        }
        let bucket = self.buckets.entry(Arc::clone(tenant)).or_insert(Bucket { milli: capacity, at_ms: now_ms });
        let gained = now_ms.saturating_sub(bucket.at_ms).saturating_mul(u64::from(messages_per_hour)) / 3600;
        // Time that earned less than a thousandth of a message is not used up, or a slow rate would never earn anything.
        if gained > 0 {
            bucket.milli = bucket.milli.saturating_add(gained).min(capacity);
            bucket.at_ms = now_ms;
        }
        bucket
    }

    fn capacity_milli(messages_per_hour: u32) -> u64 {
        (u64::from(messages_per_hour) * BURST_MS / 3600).max(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_shared_by_the_gateways() {
        for (rate, gateways, expected) in [(100, 0, 100), (100, 1, 100), (100, 3, 34), (2, 5, 1), (0, 5, 0), (u32::MAX, 1, u32::MAX)] {
            assert_eq!(share(rate, gateways), expected, "{rate} over {gateways}");
        }
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut rates = Rates::default();
        let tenant: Arc<str> = "a/b".into();
        let taken = |rates: &mut Rates, now_ms, tries| (0..tries).filter(|_| rates.take(&tenant, 3600, now_ms)).count();
        assert_eq!(taken(&mut rates, 0, 1000), 360, "six minutes' worth at once");
        assert_eq!(taken(&mut rates, 10_000, 1000), 10, "then one a second");
        assert_eq!(taken(&mut rates, 100_000_000, 1000), 360, "never more than the burst");
    }

    #[test]
    fn asking_often_does_not_starve_a_slow_rate() {
        let mut rates = Rates::default();
        let tenant: Arc<str> = "a/b".into();
        assert!(rates.take(&tenant, 1, 0));
        let granted = (1..=3_600_000u64 / 100).filter(|step| rates.take(&tenant, 1, step * 100)).count();
        assert_eq!(granted, 1, "one in the following hour, however often it was asked");
    }

    #[test]
    fn asking_takes_nothing() {
        let mut rates = Rates::default();
        let tenant: Arc<str> = "a/b".into();
        assert!((0..1000).all(|_| rates.allows(&tenant, 1, 0)));
        assert!(rates.take(&tenant, 1, 0));
        assert!(!rates.allows(&tenant, 1, 0));
    }

    #[test]
    fn tenants_do_not_share() {
        let mut rates = Rates::default();
        assert!(rates.take(&"a/a".into(), 1, 0));
        assert!(!rates.take(&"a/a".into(), 1, 0));
        assert!(rates.take(&"a/b".into(), 1, 0));
    }
}
