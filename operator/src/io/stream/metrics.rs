//! Metrics of the stream.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::io::hub::Hub;

/// See each field.
#[derive(Debug)]
pub struct StreamMetrics {
    /// Gateways that follow.
    pub gateways: IntGauge,
    /// Parts that are served.
    pub parts: IntGauge,
    /// By how many changes the furthest gateway of a fleet is behind.
    pub behind: IntGaugeVec,
    /// Tenants of a fleet whose removal waits for a confirmation.
    pub removals_waiting: IntGaugeVec,
    /// Streams and tokens that were refused, and streams that were cut off.
    pub refused: IntCounterVec,
    /// Bytes of parts that were sent.
    pub sent_bytes: IntCounter,
    /// Whole snapshots that were sent.
    pub snapshots: IntCounter,
}

impl StreamMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            gateways: IntGauge::new("sekimori_operator_stream_gateways", "Gateways that follow the configuration")?,
            parts: IntGauge::new("sekimori_operator_config_parts", "Parts of configuration that are served: one for each fleet and each tenant")?,
            behind: IntGaugeVec::new(
                Opts::new("sekimori_operator_config_behind", "By how many changes the furthest gateway of a fleet is behind"),
                &["namespace", "fleet"],
            )?,
            removals_waiting: IntGaugeVec::new(
                Opts::new("sekimori_operator_config_removals_waiting", "Tenants of a fleet whose removal waits for a confirmation"),
                &["namespace", "fleet"],
            )?,
            refused: IntCounterVec::new(Opts::new("sekimori_operator_stream_refused_total", "Streams and tokens that were refused"), &["reason"])?,
            sent_bytes: IntCounter::new("sekimori_operator_stream_sent_bytes_total", "Bytes of parts that were sent to gateways")?,
            snapshots: IntCounter::new("sekimori_operator_stream_snapshots_total", "Whole snapshots that were sent to gateways")?,
        };
        registry.register(Box::new(metrics.gateways.clone()))?;
        registry.register(Box::new(metrics.parts.clone()))?;
        registry.register(Box::new(metrics.behind.clone()))?;
        registry.register(Box::new(metrics.removals_waiting.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.sent_bytes.clone()))?;
        registry.register(Box::new(metrics.snapshots.clone()))?;
        Ok(metrics)
    }

    /// Takes over what the hub counts.
    pub fn observe(&self, hub: &Hub) {
        let figures = hub.figures();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.gateways.set(number(figures.iter().map(|(_, figures)| figures.gateways).sum()));
        self.parts.set(number(figures.iter().map(|(_, figures)| figures.parts).sum()));
        // Fleets that are gone leave no series behind.
        self.behind.reset();
        self.removals_waiting.reset();
        for (key, figures) in figures {
            let labels = [&*key.namespace, &*key.name];
            self.behind.with_label_values(&labels).set(i64::try_from(figures.behind).unwrap_or(i64::MAX));
            self.removals_waiting.with_label_values(&labels).set(number(figures.removals_waiting));
        }
    }
}
