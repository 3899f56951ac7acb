//! How much a route is asked to take: concurrency by feedback, dead destinations, and servers that refuse everything. Pure.
//!
//! The feedback is Postfix's idea: each success adds 1/N to the window N, each failure takes 1/N away, and the window moves by whole steps.

use std::collections::BTreeSet;

/// Bounds of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacingLimits {
    /// Attempts at once when nothing is known. Default 20.
    pub concurrency_initial: u32,
    /// Attempts at once at most. Default 64.
    pub concurrency_max: u32,
    /// Troubles in a row that make a route dead. Default 3.
    pub dead_after: u32,
    /// Pause before the first probe of a dead route, milliseconds; doubled for each one that fails. Default 5 s.
    pub backoff_first_ms: u64,
    /// The longest pause, milliseconds. Default 5 min.
    pub backoff_max_ms: u64,
    /// Refusals, none accepted between them, after which the server is said to refuse everything. Default 10.
    pub refusals: u32,
    /// From so many different senders, and to as many different recipients. Default 3.
    pub refused_senders: usize,
}

impl Default for PacingLimits {
    fn default() -> Self {
        Self {
            concurrency_initial: 20,
            concurrency_max: 64,
            dead_after: 3,
            backoff_first_ms: 5_000,
            backoff_max_ms: 300_000,
            refusals: 10,
            refused_senders: 3,
        }
    }
}

/// Whether an attempt may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes, within [`Pacing::concurrency`].
    Open,
    /// One, to see whether the route is back; say [`Pacing::probe_started`].
    Probe,
    /// Not before then; `None`: a probe is on its way.
    Closed {
        /// Milliseconds.
        until_ms: Option<u64>,
    },
}

/// What is remembered of a route.
#[derive(Clone, Debug)]
pub struct Pacing {
    limits: PacingLimits,
    concurrency: u32,
    surplus: f32,
    troubles: u32,
    dead: Option<Dead>,
    refusals: Refusals,
    trouble: Option<(bool, String)>,
}

#[derive(Clone, Copy, Debug)]
struct Dead {
    until_ms: u64,
    backoff_ms: u64,
    probing: bool,
}

#[derive(Clone, Debug, Default)]
struct Refusals {
    count: u32,
    senders: BTreeSet<u64>,
    recipients: BTreeSet<u64>,
}

impl Pacing {
    /// A route of which nothing is known.
    pub fn new(limits: PacingLimits) -> Self {
        let concurrency = limits.concurrency_initial.clamp(1, limits.concurrency_max.max(1));
        Self { limits, concurrency, surplus: 0.0, troubles: 0, dead: None, refusals: Refusals::default(), trouble: None }
    }

    /// Attempts at once.
    pub const fn concurrency(&self) -> u32 {
        self.concurrency
    }

    /// Whether an attempt may start now.
    pub const fn admission(&self, now_ms: u64) -> Admission {
        match self.dead {
            None => Admission::Open,
            Some(Dead { probing: true, .. }) => Admission::Closed { until_ms: None },
            Some(Dead { until_ms, .. }) if until_ms <= now_ms => Admission::Probe,
            Some(Dead { until_ms, .. }) => Admission::Closed { until_ms: Some(until_ms) },
        }
    }

    /// An attempt that [`Admission::Probe`] allowed has begun.
    pub const fn probe_started(&mut self) {
        if let Some(dead) = &mut self.dead {
            dead.probing = true;
        }
    }

    /// An attempt ended without having learnt anything of the route (it was cut off by us).
    pub const fn abandoned(&mut self, probe: bool) {
        if probe && let Some(dead) = &mut self.dead {
            dead.probing = false;
        }
    }

    /// The server answered as a server should, whatever it said of the mail.
    pub fn answered(&mut self) {
        self.troubles = 0;
        self.dead = None;
        self.trouble = None;
        self.surplus += 1.0 / self.concurrency as f32;
        if self.surplus >= 1.0 {
            self.surplus = 0.0;
            self.concurrency = (self.concurrency + 1).min(self.limits.concurrency_max.max(1));
        }
    }

    /// The server refused in words that are about us or about itself, but perhaps only to this sender: it lives, and the condition is noted. Only
    /// [`Self::refuses_all`] makes that a trouble, or one sender that it blocks could close the route for everybody.
    pub fn objected(&mut self, why: &str) {
        self.answered();
        self.trouble = Some((true, why.to_owned()));
    }

    /// The route failed. `probe`: this attempt was the probe of a dead route.
    pub fn troubled(&mut self, refusing: bool, why: &str, probe: bool, now_ms: u64) {
        self.troubles = self.troubles.saturating_add(1);
        self.trouble = Some((refusing, why.to_owned()));
        self.surplus -= 1.0 / self.concurrency as f32;
        if self.surplus <= -1.0 {
            self.surplus = 0.0;
            self.concurrency = (self.concurrency - 1).max(1);
        }
        let first_ms = self.limits.backoff_first_ms.max(1);
        match &mut self.dead {
            None if self.troubles >= self.limits.dead_after => {
                self.dead = Some(Dead { until_ms: now_ms.saturating_add(first_ms), backoff_ms: first_ms, probing: false });
            }
            Some(dead) if probe => {
                dead.backoff_ms = dead.backoff_ms.saturating_mul(2).min(self.limits.backoff_max_ms.max(first_ms));
                dead.until_ms = now_ms.saturating_add(dead.backoff_ms);
                dead.probing = false;
            }
            // Attempts that began before the route was known to be dead say nothing new.
            _ => {}
        }
    }

    /// A recipient was accepted and the content too.
    pub fn accepted(&mut self) {
        self.refusals = Refusals::default();
    }

    /// A recipient was refused for good. Senders and recipients as hashes.
    pub fn refused(&mut self, sender: u64, recipient: u64) {
        self.refusals.count = self.refusals.count.saturating_add(1);
        if self.refusals.senders.len() < self.limits.refused_senders {
            self.refusals.senders.insert(sender);
        }
        if self.refusals.recipients.len() < self.limits.refused_senders {
            self.refusals.recipients.insert(recipient);
        }
    }

    /// Whether everything was refused lately, over several senders and recipients: then the next refusal is the server's trouble.
    pub fn refuses_all(&self) -> bool {
        let seen = &self.refusals;
        seen.count >= self.limits.refusals
            && seen.senders.len() >= self.limits.refused_senders
            && seen.recipients.len() >= self.limits.refused_senders
    }

    /// Probe at once (somebody asked for it).
    pub const fn retry_now(&mut self, now_ms: u64) {
        if let Some(dead) = &mut self.dead {
            dead.until_ms = now_ms;
        }
    }

    /// Whether the route is dead.
    pub const fn is_dead(&self) -> bool {
        self.dead.is_some()
    }

    /// The trouble it is in: whether it is refusing, and why.
    pub fn trouble(&self) -> Option<(bool, &str)> {
        self.trouble.as_ref().map(|(refusing, why)| (*refusing, why.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_after_three_then_one_probe_at_a_time() {
        let mut pacing = Pacing::new(PacingLimits::default());
        for _ in 0..2 {
            pacing.troubled(false, "refused", false, 1_000);
            assert_eq!(pacing.admission(1_000), Admission::Open);
        }
        pacing.troubled(false, "refused", false, 1_000);
        assert_eq!(pacing.admission(5_999), Admission::Closed { until_ms: Some(6_000) });
        pacing.troubled(false, "a straggler", false, 3_000);
        assert_eq!(pacing.admission(6_000), Admission::Probe, "a straggler moves nothing");
        pacing.probe_started();
        assert_eq!(pacing.admission(6_000), Admission::Closed { until_ms: None });
        pacing.abandoned(true);
        assert_eq!(pacing.admission(6_000), Admission::Probe);
        let mut now_ms = 6_000;
        for pause_ms in [10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000] {
            pacing.probe_started();
            pacing.troubled(false, "refused", true, now_ms);
            assert_eq!(pacing.admission(now_ms), Admission::Closed { until_ms: Some(now_ms + pause_ms) });
            now_ms += pause_ms;
        }
        pacing.probe_started();
        pacing.answered();
        assert_eq!(pacing.admission(now_ms), Admission::Open);
        assert!(pacing.trouble().is_none());
    }

    #[test]
    fn the_window_follows() {
        let mut pacing = Pacing::new(PacingLimits { dead_after: u32::MAX, ..PacingLimits::default() });
        for _ in 0..25 {
            pacing.answered();
        }
        assert_eq!(pacing.concurrency(), 21, "a whole window of successes is one step");
        for _ in 0..10_000 {
            pacing.answered();
        }
        assert_eq!(pacing.concurrency(), 64);
        for alternating in 0..1_000 {
            if alternating % 2 == 0 { pacing.answered() } else { pacing.troubled(false, "x", false, 0) }
        }
        assert!(pacing.concurrency() >= 63, "as many good as bad moves nothing: {}", pacing.concurrency());
        for _ in 0..10_000 {
            pacing.troubled(false, "x", false, 0);
        }
        assert_eq!(pacing.concurrency(), 1);
    }

    #[test]
    fn an_objection_is_noted_but_closes_nothing() {
        let mut pacing = Pacing::new(PacingLimits::default());
        for _ in 0..100 {
            pacing.objected("MAIL: 550 not you");
        }
        assert_eq!((pacing.admission(0), pacing.trouble()), (Admission::Open, Some((true, "MAIL: 550 not you"))));
        pacing.answered();
        assert_eq!(pacing.trouble(), None);
    }

    #[test]
    fn refusing_needs_several_of_everything() {
        let limits = PacingLimits::default();
        // Refusals, senders, recipients.
        for (count, senders, recipients, all) in [(10, 3, 3, true), (9, 3, 3, false), (100, 2, 50, false), (100, 50, 2, false), (100, 50, 50, true)] {
            let mut pacing = Pacing::new(limits);
            for n in 0..count {
                pacing.refused(n % senders, n % recipients);
            }
            assert_eq!(pacing.refuses_all(), all, "{count} {senders} {recipients}");
            pacing.accepted();
            assert!(!pacing.refuses_all());
        }
    }
}
