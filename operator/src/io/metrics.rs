//! The operator's metrics, apart from the stream's.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::io::hub::FleetKey;
use crate::update::{Outcome, Pause};

/// Bounds of the times of turns, seconds. A turn may take a minute, so the default bounds, which end at ten seconds, would hide every slow one.
const SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0];

/// See each field.
#[derive(Debug)]
pub struct Metrics {
    /// Whether this process holds the Lease.
    pub leader: IntGauge,
    /// Whether fleets and what belongs to them were listed.
    pub fleets_synced: IntGauge,
    /// Whether tenants were listed.
    pub tenants_synced: IntGauge,
    /// Time of one turn of one object.
    pub turn_seconds: HistogramVec,
    /// Turns that failed.
    pub errors: IntCounterVec,
    /// Statuses that were written.
    pub status_writes: IntCounterVec,
    /// Pods that a fleet waits for somebody's word about, by why.
    pub paused_pods: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            leader: IntGauge::new("sekimori_operator_leader", "1 while this process holds the Lease")?,
            fleets_synced: IntGauge::new("sekimori_operator_fleets_synced", "1 once fleets, engines and pods were listed")?,
            tenants_synced: IntGauge::new("sekimori_operator_tenants_synced", "1 once tenants, policies and grants were listed")?,
            turn_seconds: HistogramVec::new(
                HistogramOpts::new("sekimori_operator_reconcile_seconds", "Time of one turn of one fleet").buckets(SECONDS.to_vec()),
                &["kind"],
            )?,
            errors: IntCounterVec::new(Opts::new("sekimori_operator_reconcile_errors_total", "Turns that failed"), &["kind", "category"])?,
            status_writes: IntCounterVec::new(Opts::new("sekimori_operator_status_writes_total", "Statuses that were written"), &["kind"])?,
            paused_pods: IntGaugeVec::new(
                Opts::new(
                    "sekimori_operator_fleet_paused_pods",
                    "Pods for which a fleet waits for somebody: DrainTimeout, NotServing, VolumeGoing, Stranded or ByUser",
                ),
                &["namespace", "fleet", "reason"],
            )?,
        };
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.fleets_synced.clone()))?;
        registry.register(Box::new(metrics.tenants_synced.clone()))?;
        registry.register(Box::new(metrics.turn_seconds.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.status_writes.clone()))?;
        registry.register(Box::new(metrics.paused_pods.clone()))?;
        Ok(metrics)
    }

    /// What a fleet waits for; `None`: the fleet is gone, and leaves no series behind.
    pub fn paused(&self, fleet: &FleetKey, outcome: Option<&Outcome>) {
        let now = match outcome {
            Some(Outcome::Paused(Pause::ByUser { outdated })) => ("ByUser", outdated.len()),
            Some(Outcome::Paused(Pause::NotServing { ordinals })) => ("NotServing", ordinals.len()),
            Some(Outcome::Paused(Pause::DrainTimeout { ordinals })) => ("DrainTimeout", ordinals.len()),
            Some(Outcome::Paused(Pause::VolumeGoing { ordinals })) => ("VolumeGoing", ordinals.len()),
            Some(Outcome::Paused(Pause::Stranded { ordinals })) => ("Stranded", ordinals.len()),
            Some(Outcome::Done | Outcome::Working) | None => ("", 0),
        };
        for reason in ["ByUser", "NotServing", "DrainTimeout", "VolumeGoing", "Stranded"] {
            let labels = [&*fleet.namespace, &*fleet.name, reason];
            if outcome.is_some() {
                let count = if now.0 == reason { now.1 } else { 0 };
                self.paused_pods.with_label_values(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            } else {
                // One that was never there is no error.
                drop(self.paused_pods.remove_label_values(&labels));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_of_a_minute_can_be_told_from_one_of_ten_seconds() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).expect("names of its own");
        metrics.turn_seconds.with_label_values(&["GatewayFleet"]).observe(61.0);
        let families = registry.gather();
        let turns = families.iter().find(|family| family.name() == "sekimori_operator_reconcile_seconds").expect("the histogram");
        let bounds: Vec<f64> = turns.get_metric()[0].get_histogram().get_bucket().iter().map(prometheus::proto::Bucket::upper_bound).collect();
        // The alert compares with 10 s, and a quantile is never above the last bound that is finite.
        let finite = bounds.iter().copied().filter(|bound| bound.is_finite()).fold(0.0, f64::max);
        assert!(finite > 60.0 && bounds.iter().filter(|bound| **bound > 10.0 && **bound <= 60.0).count() >= 3, "{bounds:?}");
    }

    #[test]
    fn what_a_fleet_waits_for_is_said_and_taken_back() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).expect("names of its own");
        let (fleet, series) =
            (FleetKey::new("mail", "inbound"), |reason: &str| metrics.paused_pods.with_label_values(&["mail", "inbound", reason]).get());
        metrics.paused(&fleet, Some(&Outcome::Paused(Pause::DrainTimeout { ordinals: vec![2, 3] })));
        assert_eq!((series("DrainTimeout"), series("NotServing"), series("ByUser")), (2, 0, 0));
        metrics.paused(&fleet, Some(&Outcome::Paused(Pause::NotServing { ordinals: vec![1] })));
        assert_eq!((series("DrainTimeout"), series("NotServing")), (0, 1));
        metrics.paused(&fleet, Some(&Outcome::Done));
        assert_eq!((series("DrainTimeout"), series("NotServing"), series("ByUser")), (0, 0, 0));
        metrics.paused(&fleet, None);
        assert!(registry.gather().iter().all(|family| family.name() != "sekimori_operator_fleet_paused_pods"), "no series of a fleet that is gone");
    }
}
