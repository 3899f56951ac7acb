//! When the queue gives up. Time on `Hold` does not count.

/// Default life of a message in the queue, milliseconds: 5 days.
pub const LIFETIME_MS: u64 = 5 * 24 * 3_600_000;

/// How long a tenant's mail was on hold, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldClock {
    total_ms: u64,
    since_ms: Option<u64>,
}

impl HoldClock {
    /// Says whether the tenant is on hold now.
    pub fn set(&mut self, held: bool, now_ms: u64) {
        match (held, self.since_ms) {
            (true, None) => self.since_ms = Some(now_ms),
            (false, Some(since_ms)) => {
                self.total_ms += now_ms.saturating_sub(since_ms);
                self.since_ms = None;
            }
            _ => {}
        }
    }

    /// Whether it is on hold.
    pub const fn is_held(&self) -> bool {
        self.since_ms.is_some()
    }

    /// Milliseconds on hold until now.
    pub fn total_ms(&self, now_ms: u64) -> u64 {
        self.total_ms + self.since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms))
    }
}

/// Whether a message is over: its age without the time on hold since it came (`held_ms`) has reached `lifetime_ms`.
pub const fn is_expired(received_ms: u64, held_ms: u64, lifetime_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(received_ms).saturating_sub(held_ms) >= lifetime_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hold_stops_the_clock() {
        let mut clock = HoldClock::default();
        for (now_ms, held, total_ms) in
            [(0, false, 0), (10, true, 0), (30, true, 20), (30, false, 20), (90, false, 20), (100, true, 20), (130, true, 50)]
        {
            clock.set(held, now_ms);
            assert_eq!(clock.total_ms(now_ms), total_ms, "at {now_ms}");
            assert_eq!(clock.is_held(), held);
        }
        for (age_ms, held_ms, expired) in [(99, 0, false), (100, 0, true), (150, 50, true), (149, 50, false), (0, 500, false)] {
            assert_eq!(is_expired(1000, held_ms, 100, 1000 + age_ms), expired);
        }
    }
}
