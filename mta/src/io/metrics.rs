//! Every metric: name, labels and what it says. `/metrics` shows them in Prometheus's text format.

use std::sync::Mutex;

use prometheus::{Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use sekimori_crds::vocabulary::EngineClass;

/// Bounds of the latency histograms, seconds: from a scan in memory to the deadline of a session.
const SECONDS: &[f64] = &[0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// The gateway's metrics. Every name starts with `sekimori_`; no label has an unbounded set of values.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    following: Mutex<()>,
    /// Recipients' copies by what became of them.
    pub messages: IntCounterVec,
    /// Bytes of messages that were accepted with 250.
    pub accepted_bytes: IntCounter,
    /// Bytes that the spool wrote, its own overhead included.
    pub spool_written_bytes: IntCounter,
    /// Syncs of the spool.
    pub spool_syncs: IntCounter,
    /// Whether a write or sync of the spool failed.
    pub spool_failed: IntGauge,
    /// What the spool holds and cannot read, by kind.
    pub spool_corrupt: IntGaugeVec,
    /// Messages that passed a class of engines unscanned, by class.
    pub unscanned: IntCounterVec,
    /// Scans by engine, version, mode and result.
    pub engine_scans: IntCounterVec,
    /// Seconds of a scan.
    pub engine_scan_seconds: HistogramVec,
    /// 1 while an engine is cut off.
    pub breaker_open: IntGaugeVec,
    /// Messages in the queue by state.
    pub queue_messages: IntGaugeVec,
    /// Age of the oldest message in the queue, seconds.
    pub queue_oldest_seconds: IntGauge,
    /// Deliveries whose outcome is unknown after the final dot.
    pub delivery_ambiguous: IntCounter,
    /// Deliveries by how they were made and what came of them.
    pub deliveries: IntCounterVec,
    /// Seconds of a session.
    pub session_seconds: Histogram,
    /// Seconds of a stage of a message's way.
    pub stage_seconds: HistogramVec,
    /// Open connections by listener.
    pub connections: IntGaugeVec,
    /// Refusals by our own limits, by limit.
    pub shed: IntCounterVec,
    /// Bytes of messages in flight.
    pub message_memory_bytes: IntGauge,
    /// Quarantined messages and dead letters.
    pub quarantine_messages: IntGaugeVec,
    /// Configuration reloads by result.
    pub reloads: IntCounterVec,
    /// When a listener's certificate ends, seconds since 1970; 0 where there is none that can be used.
    pub certificate_not_after: IntGaugeVec,
    /// 1 while the operator's stream is up.
    pub operator_connected: IntGauge,
    /// Parts of the configuration whose newest form is not in force.
    pub refused_parts: IntGauge,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let metrics = Self::unlabelled();
        // What can be counted is there from the start, at zero: an alert on a metric that is missing never fires.
        for disposition in ["delivered", "queued", "quarantined", "discarded", "deferred", "rejected", "dead-letter"] {
            metrics.messages.with_label_values(&[disposition]).reset();
        }
        for class in [EngineClass::AntiVirus, EngineClass::AntiSpam] {
            metrics.unscanned.with_label_values(&[class.as_str()]).reset();
        }
        for limit in ["connections", "connectionsPerAddress", "messageMemory", "messagesPerHour", "spool"] {
            metrics.shed.with_label_values(&[limit]).reset();
        }
        for kind in ["record", "segment"] {
            metrics.spool_corrupt.with_label_values(&[kind]).set(0);
        }
        for result in ["applied", "partly", "failed"] {
            metrics.reloads.with_label_values(&[result]).reset();
        }
        for outcome in ["delivered", "refused", "not-possible", "unknown"] {
            metrics.deliveries.with_label_values(&["inline", outcome]).reset();
        }
        metrics
    }

    fn unlabelled() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| register(&registry, IntCounter::with_opts(opts(name, help)));
        let counters = |name: &str, help: &str, labels: &[&str]| register(&registry, IntCounterVec::new(opts(name, help), labels));
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::with_opts(opts(name, help)));
        let gauges = |name: &str, help: &str, labels: &[&str]| register(&registry, IntGaugeVec::new(opts(name, help), labels));
        let seconds = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, HistogramVec::new(HistogramOpts::new(format!("sekimori_{name}"), help).buckets(SECONDS.to_vec()), labels))
        };
        Self {
            messages: counters("messages_total", "Recipients' copies by what became of them", &["disposition"]),
            accepted_bytes: counter("accepted_bytes_total", "Bytes of messages accepted with 250"),
            spool_written_bytes: counter("spool_written_bytes_total", "Bytes written by the spool since start, its own overhead included"),
            spool_syncs: counter("spool_syncs_total", "Syncs of the spool since start"),
            spool_failed: gauge("spool_failed", "1 after a write or sync of the spool failed: nothing is written until the gateway starts again"),
            spool_corrupt: gauges(
                "spool_corrupt",
                "Acknowledged mail in the spool that cannot be read, and is kept: records, and segments with unreadable parts",
                &["kind"],
            ),
            unscanned: counters("unscanned_total", "Messages that passed a class of engines unscanned", &["class"]),
            engine_scans: counters("engine_scans_total", "Scans by engine, version, mode and result", &["engine", "version", "mode", "result"]),
            engine_scan_seconds: seconds("engine_scan_seconds", "Seconds of a scan", &["engine", "mode"]),
            breaker_open: gauges(
                "breaker_open",
                "1 while an engine is not called: its circuit breaker cut it off, or it has not found the known sample yet",
                &["engine"],
            ),
            queue_messages: gauges("queue_messages", "Messages in the queue by state", &["state"]),
            queue_oldest_seconds: gauge("queue_oldest_seconds", "Age of the oldest message in the queue"),
            delivery_ambiguous: counter("delivery_ambiguous_total", "Deliveries whose outcome is unknown after the final dot, since start"),
            deliveries: counters(
                "deliveries_total",
                "Deliveries by path and outcome: inline by message, from the queue by recipient (deferred: by attempt)",
                &["path", "outcome"],
            ),
            session_seconds: {
                let options = HistogramOpts::new("sekimori_session_seconds", "Seconds of an SMTP session").buckets(SECONDS.to_vec());
                register(&registry, Histogram::with_opts(options))
            },
            stage_seconds: seconds("stage_seconds", "Seconds of a stage of a message's way", &["stage"]),
            connections: gauges("connections", "Open connections by listener", &["listener"]),
            shed: counters("shed_total", "Refusals with 4xx by our own limits", &["limit"]),
            message_memory_bytes: gauge("message_memory_bytes", "Bytes of messages in flight, charged to the memory budget"),
            quarantine_messages: gauges("quarantine_messages", "Messages kept", &["kind"]),
            reloads: counters("reloads_total", "Configuration reloads by result", &["result"]),
            certificate_not_after: gauges(
                "certificate_not_after_seconds",
                "When a listener's certificate from a mounted Secret ends, seconds since 1970; 0 where none can be used",
                &["certificate"],
            ),
            operator_connected: gauge("operator_connected", "1 while the configuration is followed from the operator; 0 alone"),
            refused_parts: gauge("refused_parts", "Parts of the configuration whose newest form is not in force here"),
            registry,
            following: Mutex::default(),
        }
    }

    /// Brings a counter up to a total that is counted elsewhere. Two scrapes at once do not count it twice.
    pub fn follow(&self, counter: &IntCounter, total: u64) {
        let _one = self.following.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        counter.inc_by(total.saturating_sub(counter.get()));
    }

    /// Name, type, labels and meaning of each metric that has a value, for the reference page.
    pub fn table(&self) -> Vec<[String; 4]> {
        let labels = |family: &prometheus::proto::MetricFamily| {
            let first = family.get_metric().first();
            let labels = first.iter().flat_map(|metric| metric.get_label()).map(|label| format!("`{}`", label.name()));
            labels.collect::<Vec<_>>().join(", ")
        };
        let families = self.registry.gather();
        let row = |f: &prometheus::proto::MetricFamily| {
            [f.name().to_owned(), format!("{:?}", f.get_field_type()).to_ascii_lowercase(), labels(f), f.help().to_owned()]
        };
        families.iter().map(row).collect()
    }

    /// The text of `/metrics`.
    pub fn text(&self) -> Vec<u8> {
        let mut text = vec![];
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("sekimori_{name}"), help)
}

fn register<M: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("a constant name, constant labels");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_people_rely_on() {
        let metrics = Metrics::new();
        metrics.messages.with_label_values(&["delivered"]).inc();
        metrics.unscanned.with_label_values(&["AntiVirus"]).inc();
        metrics.engine_scans.with_label_values(&["clamav", "1.4.3", "Enforce", "clean"]).inc();
        metrics.engine_scan_seconds.with_label_values(&["clamav", "Enforce"]).observe(0.001);
        metrics.breaker_open.with_label_values(&["clamav"]).set(0);
        metrics.queue_messages.with_label_values(&["runnable"]).set(0);
        metrics.stage_seconds.with_label_values(&["scan"]).observe(0.001);
        let text = String::from_utf8(metrics.text()).expect("text");
        for name in [
            "sekimori_messages_total{disposition=\"delivered\"} 1",
            "sekimori_accepted_bytes_total 0",
            "sekimori_spool_written_bytes_total 0",
            "sekimori_unscanned_total{class=\"AntiVirus\"} 1",
            "sekimori_engine_scans_total{engine=\"clamav\",mode=\"Enforce\",result=\"clean\",version=\"1.4.3\"} 1",
            "sekimori_engine_scan_seconds_count{engine=\"clamav\",mode=\"Enforce\"} 1",
            "sekimori_breaker_open{engine=\"clamav\"} 0",
            "sekimori_queue_messages{state=\"runnable\"} 0",
            "sekimori_queue_oldest_seconds 0",
            "sekimori_delivery_ambiguous_total 0",
            "sekimori_session_seconds_count 0",
            "sekimori_stage_seconds_count{stage=\"scan\"} 1",
        ] {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
    }
}
