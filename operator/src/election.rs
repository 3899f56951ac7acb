//! Who leads: one decision about the Lease, pure. Expiry is judged by how long *we* have seen the Lease unchanged, never by comparing clocks: those of two
//! machines differ.

/// The Lease is valid so long after its last change, in milliseconds.
pub const DURATION_MS: u64 = 15_000;
/// The holder renews it this often, in milliseconds.
pub const RENEW_MS: u64 = 3_000;
/// A holder that could not renew it for so long stops leading: sooner than anybody may take it, in milliseconds. An API server that needs just under half of
/// it for an answer is slow, and no reason to change the leader.
pub const GIVE_UP_MS: u64 = 12_000;
/// One request may take so long, in milliseconds.
pub const REQUEST_MS: u64 = 7_000;
/// A renewal that failed is tried again after so long, in milliseconds.
pub const RETRY_MS: u64 = 1_000;
/// The others look this often, in milliseconds.
pub const LOOK_MS: u64 = 2_000;

/// The Lease as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it; empty: nobody.
    pub holder: String,
    /// Changes with every write.
    pub version: String,
    /// The epoch that it records.
    pub epoch: u64,
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    last: Option<(Seen, u64)>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Make the Lease.
    Create,
    /// Take it, over this version of it and no other, with this epoch.
    Take {
        /// The version that it is taken over.
        version: String,
        /// The epoch to record.
        epoch: u64,
    },
    /// Somebody else has it.
    Wait,
}

impl Watch {
    /// Decides on what was read at `now_ms` of a clock that never goes back.
    pub fn decide(&mut self, me: &str, seen: Option<Seen>, now_ms: u64) -> Decision {
        let Some(seen) = seen else {
            self.last = None;
            return Decision::Create;
        };
        let since = match &self.last {
            Some((last, since)) if *last == seen => *since,
            _ => {
                self.last = Some((seen.clone(), now_ms));
                now_ms
            }
        };
        // Ours from before a restart, given back, or not renewed for as long as we have looked.
        if seen.holder == me || seen.holder.is_empty() || now_ms.saturating_sub(since) >= DURATION_MS {
            return Decision::Take { version: seen.version, epoch: seen.epoch + 1 };
        }
        Decision::Wait
    }
}

/// How long a holder rests before the next renewal, if the last one that went well was sent so long ago: a slow answer is part of the rest.
pub const fn rest_ms(sent_ago_ms: u64) -> u64 {
    RENEW_MS.saturating_sub(sent_ago_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a holder keeps the Lease if every answer comes so late.
    fn keeps(latency_ms: u64) -> bool {
        let (mut now_ms, mut sent_ms) = (latency_ms, 0);
        (0..50).all(|_| {
            let began_ms = now_ms + rest_ms(now_ms - sent_ms);
            now_ms = began_ms + latency_ms;
            let in_time = latency_ms < REQUEST_MS && now_ms - sent_ms < GIVE_UP_MS;
            sent_ms = began_ms;
            in_time
        })
    }

    #[test]
    fn a_slow_api_server_is_no_reason_to_lose_the_lease() {
        for latency_ms in [0, 20, 1_500, 3_000, 5_000, 5_900] {
            assert!(keeps(latency_ms), "{latency_ms} ms");
        }
        assert!(!keeps(GIVE_UP_MS / 2), "another one may be about to take it");
    }

    fn seen(holder: &str, version: &str) -> Option<Seen> {
        Some(Seen { holder: holder.to_owned(), version: version.to_owned(), epoch: 4 })
    }

    #[test]
    fn a_lease_that_is_renewed_is_never_taken() {
        let mut watch = Watch::default();
        for turn in 0..100_u64 {
            let version = (turn / 2).to_string();
            assert_eq!(watch.decide("me", seen("other", &version), turn * 2_500), Decision::Wait);
        }
    }

    #[test]
    fn one_that_nobody_renews_is_taken_after_its_duration_as_we_saw_it() {
        let mut watch = Watch::default();
        assert_eq!(watch.decide("me", seen("other", "7"), 1_000_000), Decision::Wait, "however old it says it is");
        assert_eq!(watch.decide("me", seen("other", "7"), 1_000_000 + DURATION_MS - 1), Decision::Wait);
        assert_eq!(watch.decide("me", seen("other", "7"), 1_000_000 + DURATION_MS), Decision::Take { version: "7".to_owned(), epoch: 5 });
    }

    #[test]
    fn what_is_free_or_ours_is_taken_at_once_and_what_is_missing_is_made() {
        assert_eq!(Watch::default().decide("me", None, 0), Decision::Create);
        for holder in ["", "me"] {
            assert_eq!(Watch::default().decide("me", seen(holder, "7"), 0), Decision::Take { version: "7".to_owned(), epoch: 5 });
        }
    }

    #[test]
    fn a_holder_gives_up_before_another_may_take_it() {
        const { assert!(GIVE_UP_MS + RENEW_MS <= DURATION_MS && RENEW_MS < GIVE_UP_MS && 2 * RENEW_MS + RETRY_MS <= GIVE_UP_MS) };
    }
}
