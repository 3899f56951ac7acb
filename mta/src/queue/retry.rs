//! When the next attempt is due. Attempts follow from age, so that a retry writes nothing.

/// The schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySchedule {
    /// Milliseconds until the second attempt; doubled for each one after it. Default 5 minutes.
    pub first_ms: u64,
    /// The longest pause, milliseconds. Default 4,000 s.
    pub pause_max_ms: u64,
    /// A message that may have been delivered waits at least so long before its first retry, milliseconds. Default 15 minutes.
    pub maybe_delivered_ms: u64,
}

impl Default for RetrySchedule {
    fn default() -> Self {
        Self { first_ms: 300_000, pause_max_ms: 4_000_000, maybe_delivered_ms: 900_000 }
    }
}

impl RetrySchedule {
    /// When to try again after an attempt that ended at `now_ms`: the next point of the schedule that the message's age has not reached, spread by up to an eighth of the
    /// pause (`spread`: any number that differs between messages), so that mail that came together does not come back together.
    pub fn next_ms(&self, received_ms: u64, now_ms: u64, spread: u64) -> u64 {
        let age_ms = now_ms.saturating_sub(received_ms);
        let (mut at_ms, mut pause_ms) = (0u64, self.first_ms.max(1));
        while at_ms <= age_ms {
            if pause_ms >= self.pause_max_ms.max(1) {
                pause_ms = self.pause_max_ms.max(1);
                // From here on the points are evenly spaced: jump.
                at_ms += ((age_ms - at_ms) / pause_ms + 1) * pause_ms;
                break;
            }
            at_ms += pause_ms;
            pause_ms = pause_ms.saturating_mul(2);
        }
        let wait_ms = at_ms - age_ms;
        // Hardly any pause is left where an attempt took long: half of the pause is the least.
        let wait_ms = wait_ms.max(pause_ms.min(self.pause_max_ms.max(1)) / 4).max(1);
        now_ms + wait_ms + spread % (wait_ms / 8 + 1)
    }

    /// How many attempts a message of this age has had, when all went by the schedule.
    pub fn attempts(&self, age_ms: u64) -> u32 {
        let (mut at_ms, mut pause_ms, mut attempts) = (0u64, self.first_ms.max(1), 0u32);
        while at_ms <= age_ms {
            attempts += 1;
            if pause_ms >= self.pause_max_ms.max(1) {
                let pause_ms = self.pause_max_ms.max(1);
                return attempts.saturating_add(u32::try_from((age_ms - at_ms) / pause_ms).unwrap_or(u32::MAX));
            }
            at_ms += pause_ms;
            pause_ms = pause_ms.saturating_mul(2);
        }
        attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: u64 = 60_000;

    #[test]
    fn the_schedule() {
        let schedule = RetrySchedule::default();
        // Age at the attempt (minutes), minutes until the next one, attempts so far.
        for (age, wait, attempts) in [(0, 5, 1), (5, 10, 2), (15, 20, 3), (35, 40, 4), (75, 66, 5), (10, 5, 2), (55, 20, 4), (7 * 24 * 60, 0, 155)] {
            let (age_ms, got_ms) = (age * MINUTE_MS, schedule.next_ms(0, age * MINUTE_MS, 0) - age * MINUTE_MS);
            if wait > 0 {
                assert_eq!(got_ms / MINUTE_MS, wait, "at {age} minutes");
            }
            assert!(got_ms <= schedule.pause_max_ms);
            assert_eq!(schedule.attempts(age_ms), attempts, "at {age} minutes");
        }
    }

    #[test]
    fn a_whole_life() {
        let schedule = RetrySchedule::default();
        let (mut now_ms, mut attempts) = (1_000, 0);
        while now_ms < 1_000 + 5 * 24 * 60 * MINUTE_MS {
            let next_ms = schedule.next_ms(1_000, now_ms, u64::MAX / 3);
            assert!(next_ms > now_ms && next_ms - now_ms <= schedule.pause_max_ms + schedule.pause_max_ms / 8);
            now_ms = next_ms;
            attempts += 1;
        }
        assert!((70..125).contains(&attempts), "{attempts} attempts in five days");
    }

    #[test]
    fn odd_numbers_are_harmless() {
        for schedule in [
            RetrySchedule { first_ms: 0, pause_max_ms: 0, maybe_delivered_ms: 0 },
            RetrySchedule { first_ms: u64::MAX / 4, pause_max_ms: u64::MAX / 4, maybe_delivered_ms: 0 },
            RetrySchedule { first_ms: 10, pause_max_ms: 1, maybe_delivered_ms: 0 },
        ] {
            for (received_ms, now_ms) in [(0, 0), (5, 0), (0, 1 << 50)] {
                assert!(schedule.next_ms(received_ms, now_ms, 77) > now_ms);
                assert!(schedule.attempts(now_ms.saturating_sub(received_ms)) >= 1);
            }
        }
    }
}
