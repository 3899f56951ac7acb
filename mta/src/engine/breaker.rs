//! The circuit breaker of one engine: when it is called, when it is cut off, and when it is probed (DESIGN.md 4.4).
//!
//! Only a probe decides. Failing scans start one, so that mail crafted by one sender cannot switch an engine off, and an engine is not
//! called before its first probe has passed: a scanner that answers is not yet a scanner that scans.

use std::collections::VecDeque;

/// Tenants that failing scans must span, where so many are active: one tenant's odd mail is not an engine's failure.
pub const TENANTS_MIN: usize = 3;
/// Client networks that failing scans must span, where so many are active: one sender's crafted mail is not an engine's failure.
pub const NETWORKS_MIN: usize = 2;
/// A tenant or network counts as active for this long after its last scan: long against a burst, short against a night.
pub const ACTIVE_FOR_MS: u64 = 600_000;
/// Time between probes of an engine that never passed one: engines start beside the gateway and load for seconds or minutes.
pub const FIRST_PROBE_RETRY_MS: u64 = 1000;
/// Scans looked at, whatever the configuration says.
pub const WINDOW_MAX: usize = 1000;
/// Distinct tenants and networks remembered: more than the minimum, so that one that comes and goes does not push out the rest.
const RECENT_MAX: usize = 16;

/// Bounds of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failing scans within the window that start a probe.
    pub failures: u32,
    /// The last so many scans are looked at.
    pub window: u32,
    /// Milliseconds until an open breaker probes again.
    pub open_for_ms: u64,
    /// Milliseconds between probes of a working engine.
    pub probe_interval_ms: u64,
}

/// Whether the engine is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No probe has passed yet: not called.
    Untested,
    /// Called.
    Closed,
    /// Cut off since a failed probe.
    Open,
}

impl Phase {
    /// The word for status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Untested => "untested",
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

/// One scan that was really tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// No answer, a broken one or no connection.
    pub failed: bool,
    /// Stands for the tenant.
    pub tenant: u64,
    /// Stands for the client's network (/24, /56).
    pub network: u64,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: Settings,
    phase: Phase,
    probe_due_ms: u64,
    window: VecDeque<Sample>,
    failing: usize,
    tenants: Recent,
    networks: Recent,
}

impl Breaker {
    /// Untested, with its first probe due at once.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        Self {
            settings,
            phase: Phase::Untested,
            probe_due_ms: now_ms,
            window: VecDeque::new(),
            failing: 0,
            tenants: Recent::default(),
            networks: Recent::default(),
        }
    }

    /// Takes other bounds; phase and history stay, and the next probe is no later than the new bounds say.
    pub fn configure(&mut self, settings: Settings, now_ms: u64) {
        self.settings = settings;
        self.shrink();
        self.probe_due_ms = self.probe_due_ms.min(now_ms.saturating_add(self.pause_ms()));
    }

    /// Whether the engine is called.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// When the next probe is due.
    pub const fn probe_due_ms(&self) -> u64 {
        self.probe_due_ms
    }

    /// Notes a scan. True: a probe is due now that was not before.
    pub fn record(&mut self, now_ms: u64, sample: Sample) -> bool {
        self.tenants.see(sample.tenant, now_ms);
        self.networks.see(sample.network, now_ms);
        self.failing += usize::from(sample.failed);
        self.window.push_back(sample);
        self.shrink();
        if self.phase != Phase::Closed || self.probe_due_ms <= now_ms || !self.suspicious(now_ms) {
            return false;
        }
        self.probe_due_ms = now_ms;
        true
    }

    /// A probe is due now, whatever the reason (a version that changed).
    pub fn want_probe(&mut self, now_ms: u64) {
        self.probe_due_ms = self.probe_due_ms.min(now_ms);
    }

    /// Notes how a probe ended: it alone opens and closes.
    pub fn probed(&mut self, now_ms: u64, passed: bool) {
        self.phase = match (passed, self.phase) {
            (true, _) => Phase::Closed,
            (false, Phase::Untested) => Phase::Untested,
            (false, _) => Phase::Open,
        };
        self.window.clear();
        self.failing = 0;
        self.probe_due_ms = now_ms.saturating_add(self.pause_ms());
    }

    const fn pause_ms(&self) -> u64 {
        let pause_ms = match self.phase {
            Phase::Untested => FIRST_PROBE_RETRY_MS,
            Phase::Closed => self.settings.probe_interval_ms,
            Phase::Open => self.settings.open_for_ms,
        };
        // A configuration of 0 must not become a probe without end.
        if pause_ms == 0 { 1 } else { pause_ms }
    }

    fn shrink(&mut self) {
        let keep = usize::try_from(self.settings.window).unwrap_or(WINDOW_MAX).clamp(1, WINDOW_MAX);
        while self.window.len() > keep {
            self.failing -= usize::from(self.window.pop_front().is_some_and(|sample| sample.failed));
        }
    }

    fn suspicious(&self, now_ms: u64) -> bool {
        if self.failing == 0 || self.failing < self.settings.failures as usize {
            return false;
        }
        let failing = |key: fn(&Sample) -> u64, enough: usize| {
            let mut seen: Vec<u64> = Vec::with_capacity(enough);
            for sample in self.window.iter().filter(|sample| sample.failed) {
                if !seen.contains(&key(sample)) {
                    seen.push(key(sample));
                }
                if seen.len() >= enough {
                    return true;
                }
            }
            false
        };
        failing(|s| s.tenant, TENANTS_MIN.min(self.tenants.active(now_ms))) && failing(|s| s.network, NETWORKS_MIN.min(self.networks.active(now_ms)))
    }
}

/// The last distinct keys and when each was last seen.
#[derive(Clone, Debug, Default)]
struct Recent {
    seen: Vec<(u64, u64)>,
}

impl Recent {
    fn see(&mut self, key: u64, now_ms: u64) {
        if let Some((_, last_ms)) = self.seen.iter_mut().find(|(k, _)| *k == key) {
            *last_ms = now_ms;
            return;
        }
        if self.seen.len() >= RECENT_MAX
            && let Some(oldest) = (0..self.seen.len()).min_by_key(|i| self.seen.get(*i).map(|(_, last_ms)| *last_ms))
        {
            self.seen.swap_remove(oldest);
        }
        self.seen.push((key, now_ms));
    }

    fn active(&self, now_ms: u64) -> usize {
        self.seen.iter().filter(|(_, last_ms)| now_ms.saturating_sub(*last_ms) < ACTIVE_FOR_MS).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings = Settings { failures: 5, window: 20, open_for_ms: 30_000, probe_interval_ms: 300_000 };

    fn working() -> Breaker {
        let mut breaker = Breaker::new(SETTINGS, 0);
        breaker.probed(0, true);
        breaker
    }

    fn sample(failed: bool, tenant: u64, network: u64) -> Sample {
        Sample { failed, tenant, network }
    }

    #[test]
    fn not_called_before_its_first_probe_passed() {
        let mut breaker = Breaker::new(SETTINGS, 7);
        assert_eq!((breaker.phase(), breaker.probe_due_ms()), (Phase::Untested, 7));
        breaker.probed(8, false);
        assert_eq!((breaker.phase(), breaker.probe_due_ms()), (Phase::Untested, 8 + FIRST_PROBE_RETRY_MS));
        breaker.probed(2000, true);
        assert_eq!((breaker.phase(), breaker.probe_due_ms()), (Phase::Closed, 302_000));
    }

    #[test]
    fn failures_start_a_probe_and_the_probe_decides() {
        for passed in [true, false] {
            let mut breaker = working();
            for n in 0..4 {
                assert!(!breaker.record(10, sample(true, n, n)), "failure {n}");
            }
            assert!(breaker.record(11, sample(true, 4, 4)));
            assert_eq!((breaker.phase(), breaker.probe_due_ms()), (Phase::Closed, 11), "failing scans alone never open it");
            assert!(!breaker.record(11, sample(true, 5, 5)), "one probe is enough");
            breaker.probed(12, passed);
            if passed {
                assert_eq!((breaker.phase(), breaker.probe_due_ms()), (Phase::Closed, 300_012));
                assert!(!breaker.record(13, sample(true, 6, 6)), "the count starts again");
            } else {
                assert_eq!((breaker.phase(), breaker.probe_due_ms()), (Phase::Open, 30_012));
                breaker.probed(30_012, false);
                assert_eq!((breaker.phase(), breaker.probe_due_ms()), (Phase::Open, 60_012));
                breaker.probed(60_012, true);
                assert_eq!(breaker.phase(), Phase::Closed);
            }
        }
    }

    #[test]
    fn how_far_failures_must_spread() {
        // (active tenants, active networks, failing tenants, failing networks, probe)
        let cases = [
            (1, 1, 1, 1, true),
            (9, 9, 1, 9, false),
            (9, 9, 2, 9, false),
            (9, 9, 3, 9, true),
            (9, 9, 9, 1, false),
            (9, 9, 9, 2, true),
            (2, 9, 2, 2, true),
            (2, 9, 1, 2, false),
            (9, 1, 3, 1, true),
        ];
        for (tenants, networks, failing_tenants, failing_networks, probe) in cases {
            let mut breaker = working();
            for n in 0..9 {
                breaker.record(1, sample(false, n % tenants, n % networks));
            }
            let started = (0..9).any(|n| breaker.record(2, sample(true, n % failing_tenants, n % failing_networks)));
            assert_eq!(started, probe, "{tenants} {networks} {failing_tenants} {failing_networks}");
        }
    }

    #[test]
    fn a_tenant_of_yesterday_is_not_waited_for() {
        let mut breaker = working();
        for n in 0..9 {
            breaker.record(1, sample(false, n, n));
        }
        let later = 2 + ACTIVE_FOR_MS;
        breaker.probed(later, true);
        assert!((0..5).any(|_| breaker.record(later, sample(true, 1, 1))));
    }

    #[test]
    fn failures_leave_the_window() {
        let mut breaker = working();
        for n in 0..4 {
            breaker.record(1, sample(true, n, n));
        }
        for n in 0..20 {
            breaker.record(1, sample(false, n, n));
        }
        assert!(!breaker.record(1, sample(true, 1, 1)));
        breaker.configure(Settings { window: 0, failures: 0, open_for_ms: 0, probe_interval_ms: 0 }, 5);
        assert_eq!(breaker.probe_due_ms(), 6, "shorter intervals hold at once, and 0 is not a busy loop");
        assert_eq!(breaker.window.len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Scan(Sample),
        Probe(bool),
        Configure(u32, u32),
    }

    fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
        let event = prop_oneof![
            8 => (any::<bool>(), 0..4_u64, 0..3_u64).prop_map(|(failed, tenant, network)| Event::Scan(sample(failed, tenant, network))),
            1 => any::<bool>().prop_map(Event::Probe),
            1 => (0..30_u32, 0..30_u32).prop_map(|(failures, window)| Event::Configure(failures, window)),
        ];
        prop::collection::vec((0..100_000_u64, event), 0..200)
    }

    proptest! {
        #[test]
        fn only_probes_change_the_phase_and_one_is_always_due(events in events()) {
            let mut breaker = Breaker::new(SETTINGS, 0);
            let mut now_ms = 0;
            for (step_ms, event) in events {
                now_ms += step_ms;
                let before = breaker.phase();
                match event {
                    Event::Scan(sample) => {
                        let probe = breaker.record(now_ms, sample);
                        prop_assert_eq!(breaker.phase(), before);
                        prop_assert!(!probe || (before == Phase::Closed && breaker.probe_due_ms() == now_ms && sample.failed | (breaker.failing > 0)));
                    }
                    Event::Probe(passed) => {
                        breaker.probed(now_ms, passed);
                        prop_assert_eq!(breaker.phase() == Phase::Closed, passed);
                        prop_assert!(breaker.probe_due_ms() > now_ms);
                    }
                    Event::Configure(failures, window) => {
                        breaker.configure(Settings { failures, window, ..SETTINGS }, now_ms);
                        prop_assert_eq!(breaker.phase(), before);
                    }
                }
                prop_assert_eq!(breaker.failing, breaker.window.iter().filter(|s| s.failed).count());
                prop_assert!(breaker.window.len() <= breaker.settings.window.max(1) as usize);
                prop_assert!(breaker.tenants.seen.len() <= RECENT_MAX);
                prop_assert!(breaker.probe_due_ms() <= now_ms + SETTINGS.probe_interval_ms);
            }
        }
    }
}
