//! Metrics of the stream.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::io::hub::Hub;

/// See each field.
#[derive(Debug)]
pub struct StreamMetrics {
    /// Gateways that follow.
    pub gateways: IntGauge,
    /// Parts that are served.
    pub parts: IntGauge,
    /// Streams and tokens that were refused.
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
            refused: IntCounterVec::new(Opts::new("sekimori_operator_stream_refused_total", "Streams and tokens that were refused"), &["reason"])?,
            sent_bytes: IntCounter::new("sekimori_operator_stream_sent_bytes_total", "Bytes of parts that were sent to gateways")?,
            snapshots: IntCounter::new("sekimori_operator_stream_snapshots_total", "Whole snapshots that were sent to gateways")?,
        };
        registry.register(Box::new(metrics.gateways.clone()))?;
        registry.register(Box::new(metrics.parts.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.sent_bytes.clone()))?;
        registry.register(Box::new(metrics.snapshots.clone()))?;
        Ok(metrics)
    }

    /// Takes over what the hub counts.
    pub fn observe(&self, hub: &Hub) {
        let (gateways, parts) = hub.counts();
        self.gateways.set(i64::try_from(gateways).unwrap_or(i64::MAX));
        self.parts.set(i64::try_from(parts).unwrap_or(i64::MAX));
    }
}
