//! The operator's metrics, apart from the stream's.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

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
            turn_seconds: HistogramVec::new(HistogramOpts::new("sekimori_operator_reconcile_seconds", "Time of one turn of one object"), &["kind"])?,
            errors: IntCounterVec::new(Opts::new("sekimori_operator_reconcile_errors_total", "Turns that failed"), &["kind", "category"])?,
            status_writes: IntCounterVec::new(Opts::new("sekimori_operator_status_writes_total", "Statuses that were written"), &["kind"])?,
        };
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.fleets_synced.clone()))?;
        registry.register(Box::new(metrics.tenants_synced.clone()))?;
        registry.register(Box::new(metrics.turn_seconds.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.status_writes.clone()))?;
        Ok(metrics)
    }
}
