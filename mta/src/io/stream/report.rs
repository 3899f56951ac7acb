//! What this gateway reports of itself, from its own figures.

use std::sync::{Arc, Mutex};

use sekimori_crds::stream::{Breaker, DrainKind, EngineReport, NAMES_MAX, Outcome, Report, ScanSample};

use crate::engine::tally::{Ended, Scan};
use crate::io::admin::Place;
use crate::io::clock;
use crate::io::gateway::Gateway;

/// Our own limits whose refusals another gateway would have taken: these count as shed. A tenant's rate is the fleet's, and a client's share of connections
/// its own: more gateways change neither.
const SHED: [&str; 3] = ["connections", "messageMemory", "spool"];

/// Makes reports; before there is a gateway, of the spool that waits for one.
#[derive(Clone)]
pub struct Reporter {
    place: Place,
    before: Arc<Mutex<Before>>,
}

/// What is known before there is a gateway.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    spooled: u64,
    kept: u64,
    draining: DrainKind,
    connected: bool,
}

impl Reporter {
    /// Of the gateway that will be there; until then so many messages wait in its spool and are kept.
    pub fn new(place: Place, spooled: u64, kept: u64) -> Self {
        Self { place, before: Arc::new(Mutex::new(Before { spooled, kept, ..Before::default() })) }
    }

    /// A drain that is ordered before there is a gateway: it takes no mail anyway.
    pub fn draining_already(&self, kind: DrainKind) {
        self.before.lock().expect("no panic while held").draining = kind;
    }

    /// Tells the metric whether the operator is followed.
    pub(super) fn connected(&self, is_up: bool) {
        self.before.lock().expect("no panic while held").connected = is_up;
        self.show();
    }

    /// Shows in the metrics what was learnt, perhaps before there were any.
    pub fn show(&self) {
        let is_up = self.before.lock().expect("no panic while held").connected;
        if let Some(gateway) = self.place.gateway() {
            gateway.metrics.operator_connected.set(i64::from(is_up));
        }
    }

    /// The drain in force, and whether sessions and messages are left: a change of these is worth a report at once.
    pub(super) fn drain(&self) -> (DrainKind, bool, bool) {
        match self.place.gateway() {
            Some(gateway) => (*gateway.draining.borrow(), gateway.open_sessions() > 0, gateway.spool.status().records > 0),
            None => {
                let before = *self.before.lock().expect("no panic while held");
                (before.draining, false, before.spooled > 0)
            }
        }
    }

    /// The last report of all: sessions are over, and the spool is closed.
    pub(super) fn last_word(&self) -> Report {
        Report { ending: true, ..self.report() }
    }

    /// The report. Scans in it are not reported again.
    pub fn report(&self) -> Report {
        match self.place.gateway() {
            Some(gateway) => of_gateway(gateway),
            None => {
                let before = *self.before.lock().expect("no panic while held");
                Report { now_ms: clock::unix_ms(), draining: before.draining.into(), spooled: before.spooled, kept: before.kept, ..Report::default() }
            }
        }
    }
}

fn of_gateway(gateway: &Gateway) -> Report {
    let now_ms = clock::unix_ms();
    // The drain first, the sessions next, the spool last: what a session still spools is in one of them.
    let draining = *gateway.draining.borrow();
    let sessions = gateway.open_sessions();
    let queue = gateway.delivery.statistics();
    // What goes from the spool to the quarantine meanwhile is in one of the three.
    let before = gateway.spool.status().may_hold();
    let kept = gateway.quarantine.status();
    let spool = gateway.spool.status();
    let spooled = spool.may_hold().max(before);
    let (clients, clients_masked) = gateway.clients.lock().expect("no panic while held").count(clock::monotonic_ms());
    let (samples, samples_dropped) = gateway.tally.lock().expect("no panic while held").take();
    Report {
        now_ms,
        draining: draining.into(),
        sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
        spooled,
        kept: kept.may_hold(),
        // With a spool that cannot be written it would only defer.
        serving: *gateway.serving.borrow() && !spool.failed,
        runnable: queue.runnable as u64,
        oldest_seconds: queue.oldest_received_ms.map_or(0, |received_ms| now_ms.saturating_sub(received_ms) / 1000),
        shed: SHED.iter().map(|limit| gateway.metrics.shed.with_label_values(&[limit]).get()).sum(),
        engines: engines(gateway),
        clients,
        clients_masked,
        refusing: refusing(gateway),
        samples: samples.into_iter().map(sample).collect(),
        samples_dropped,
        certificates: gateway.certificates.lock().expect("no panic while held").clone(),
        ending: false,
    }
}

fn engines(gateway: &Gateway) -> Vec<EngineReport> {
    let now_s = clock::unix_ms() / 1000;
    let tally = gateway.tally.lock().expect("no panic while held");
    let report = |engine: crate::io::engine::EngineStatus| {
        let total = tally.total(&engine.name);
        EngineReport {
            name: engine.name.to_string(),
            version: if &*engine.version == "?" { String::new() } else { engine.version.to_string() },
            breaker: match engine.breaker {
                "closed" => Breaker::Closed,
                "open" => Breaker::Open,
                _ => Breaker::Unknown,
            }
            .into(),
            signatures_age_seconds: engine.signatures_made_s.map_or(0, |made_s| now_s.saturating_sub(made_s)),
            scans: total.scans,
            detections: total.detections,
            unscannable: total.unscannable,
            failures: total.failures,
            milliseconds: total.milliseconds,
            latency: total.latency.to_vec(),
        }
    };
    gateway.filters.engines.status().into_iter().map(report).collect()
}

/// Tenants all of whose mail a next hop refuses.
fn refusing(gateway: &Gateway) -> Vec<String> {
    let mut tenants: Vec<String> =
        gateway.delivery.routes().into_iter().filter(|route| route.refusing).map(|route| route.tenant.to_string()).collect();
    tenants.sort();
    tenants.dedup();
    tenants.truncate(NAMES_MAX);
    tenants
}

fn sample(scan: Scan) -> ScanSample {
    ScanSample {
        queue_id: scan.message.to_string(),
        engine: scan.engine.to_string(),
        outcome: match scan.ended {
            Ended::Clean => Outcome::Clean,
            Ended::Detected => Outcome::Detected,
            Ended::Unscannable => Outcome::Unscannable,
            Ended::Failed => Outcome::Failed,
        }
        .into(),
        milliseconds: scan.milliseconds,
    }
}

#[cfg(test)]
mod tests {
    use crate::io::quarantine::QuarantineStatus;
    use crate::io::spool::SpoolStatus;

    /// An operator deletes the volume of a gateway that says that nothing is left.
    #[test]
    fn what_cannot_be_read_is_not_taken_for_empty() {
        assert_eq!((SpoolStatus::default().may_hold(), QuarantineStatus::default().may_hold()), (0, 0));
        assert_eq!(SpoolStatus { records: 2, damaged_segments: 1, ..SpoolStatus::default() }.may_hold(), 3);
        let kept = QuarantineStatus { quarantined: 4, dead_letters: 2, problems: 1, ..QuarantineStatus::default() };
        assert_eq!(kept.may_hold(), 7);
    }
}
