//! What delivery and the engines need of the rest of the gateway: host names, stores, later scans, and counting.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use sekimori_crds::stream::DrainKind;
use sekimori_crds::vocabulary::EngineClass;
use tokio::sync::watch;

use crate::config::Config;
use crate::disposition::{self, Decision};
use crate::engine::breaker::Phase;
use crate::engine::tally::{Ended, Scan, Tally};
use crate::envelope::Envelope;
use crate::io::delivery::{self, Destination, Rescanner};
use crate::io::dns::{Lookup, Resolver};
use crate::io::engine;
use crate::io::gateway::{Filters, Gateway};
use crate::io::metrics::Metrics;
use crate::io::quarantine::{Item, Key, Kind, Quarantine};
use crate::io::{clock, pipeline, transaction};
use crate::queue::index::Compartment;
use crate::queue::{Group, Meta, Purpose};
use crate::queue_id::QueueId;
use crate::verdict::{AntiVirus, Finding, Opinion};

/// A later scan may take this long.
const RESCAN_WITHIN_MS: u64 = 60_000;

/// Host names over the resolver in force.
pub struct Hosts(pub Arc<ArcSwap<Arc<dyn Resolver>>>);

impl delivery::Hosts for Hosts {
    fn addresses<'a>(&'a self, host: &'a str) -> futures_util::future::BoxFuture<'a, Result<Vec<IpAddr>, String>> {
        Box::pin(async move {
            match self.0.load_full().lookup_ips(host).await {
                Lookup::Records(addresses) => Ok(addresses.to_vec()),
                Lookup::Absent(_) => Err(format!("{host} has no address")),
                Lookup::TempError | Lookup::Malformed => Err(format!("DNS gives no answer for {host}")),
            }
        })
    }
}

/// Counts what engines say.
pub struct Observer {
    metrics: Arc<Metrics>,
    tally: Arc<Mutex<Tally>>,
}

impl Observer {
    /// Into these.
    pub fn new(metrics: Arc<Metrics>, tally: Arc<Mutex<Tally>>) -> Self {
        Self { metrics, tally }
    }
}

/// A finding as a label: few values, none of them a peer's.
fn result_label(finding: &Finding) -> &'static str {
    match finding {
        Finding::Clean => "clean",
        Finding::Spam(score) if score.certain || score.milli >= score.required_milli => "spam",
        Finding::Spam(_) => "ham",
        Finding::Infected(_) => "infected",
        Finding::Unscannable(_) => "unscannable",
        Finding::Failed(_) => "failed",
    }
}

impl engine::Observer for Observer {
    fn scanned(&self, message: QueueId, opinion: &Opinion, took: Duration) {
        let mode = opinion.mode.as_str();
        let result = result_label(&opinion.finding);
        self.metrics.engine_scans.with_label_values(&[&*opinion.engine, &*opinion.version, mode, result]).inc();
        self.metrics.engine_scan_seconds.with_label_values(&[&*opinion.engine, mode]).observe(took.as_secs_f64());
        let scan = Scan { message, engine: Arc::clone(&opinion.engine), ended: Ended::of(&opinion.finding), milliseconds: opinion.millis };
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).add(scan);
    }

    fn probed(&self, engine: &str, passed: bool, breaker: Phase) {
        let not_called = breaker != Phase::Closed;
        let gauge = self.metrics.breaker_open.with_label_values(&[engine]);
        if gauge.get() != i64::from(not_called) {
            tracing::warn!(engine, passed, breaker = breaker.as_str(), "circuit breaker");
        }
        gauge.set(i64::from(not_called));
    }

    fn retired(&self, engine: &str) {
        // One that was never probed has no series, which is as well.
        drop(self.metrics.breaker_open.remove_label_values(&[engine]));
    }
}

/// Quarantine and dead letters for delivery, and later scans.
pub struct Stores {
    quarantine: Quarantine,
    filters: Arc<Filters>,
    config: Arc<ArcSwap<Config>>,
    metrics: Arc<Metrics>,
    closing: (watch::Receiver<bool>, watch::Receiver<DrainKind>),
}

impl Stores {
    /// Over these parts.
    pub fn new(
        quarantine: Quarantine,
        filters: Arc<Filters>,
        config: Arc<ArcSwap<Config>>,
        metrics: Arc<Metrics>,
        closing: (watch::Receiver<bool>, watch::Receiver<DrainKind>),
    ) -> Self {
        Self { quarantine, filters, config, metrics, closing }
    }
}

/// Says in the log and in the metrics what a later scan came to: what then passes unscanned must not do so in silence.
fn note(metrics: &Metrics, event: &'static str, envelope: &Envelope, judgement: &pipeline::Judgement, unscanned: &[EngineClass]) {
    for class in unscanned {
        metrics.unscanned.with_label_values(&[class.as_str()]).inc();
    }
    let unscanned: Vec<&str> = unscanned.iter().map(|class| class.as_str()).collect();
    tracing::info!(
        event,
        queue_id = %envelope.id,
        tenant = %judgement.tenant.key,
        recipients = judgement.recipients.len(),
        verdict = %judgement.verdict.action,
        explanation = judgement.verdict.explanation(),
        unscanned = unscanned.join(","),
        "judged again"
    );
}

impl Destination for Stores {
    fn store(&self, copy: delivery::Copy) -> futures_util::future::BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let kind = match copy.compartment {
                Compartment::Quarantine => Kind::Quarantined,
                Compartment::DeadLetters => Kind::DeadLetter,
            };
            let item = Item {
                id: copy.envelope.id,
                tenant: copy.tenant,
                kind,
                reason: copy.reason.to_string(),
                envelope: Envelope::clone(&copy.envelope),
                recipients: copy.recipients.to_vec(),
                edits: copy.content.edits.as_ref().clone(),
                raw: copy.content.raw,
            };
            self.quarantine.store(item).await.map(drop).map_err(|error| error.to_string())
        })
    }
}

impl Rescanner for Stores {
    fn rescan(&self, meta: Arc<Meta>, group: Group, raw: Bytes) -> futures_util::future::BoxFuture<'_, Result<Vec<Group>, String>> {
        Box::pin(async move {
            let config = self.config.load_full();
            let envelope = Arc::new(meta.envelope.clone());
            let message = Arc::new(pipeline::parse(raw).await);
            let terminating = *self.closing.0.borrow() || *self.closing.1.borrow() != DrainKind::None;
            let deadline_ms = clock::monotonic_ms() + RESCAN_WITHIN_MS;
            let judged = pipeline::judge(&self.filters, terminating, &config, &envelope, &group.recipients, message, deadline_ms).await;
            // Whoever is left out of the answer is finished, so a tenant that is not in the configuration (any more) must not be left out in silence.
            if judged.judgements.iter().map(|judgement| judgement.recipients.len()).sum::<usize>() < group.recipients.len() {
                return Err(format!("tenant {} is not in the configuration", group.tenant));
            }
            let mut groups = vec![];
            for judgement in &judged.judgements {
                note(&self.metrics, "rescanned", &envelope, judgement, judgement.passes_unscanned());
                groups.extend(after_acceptance(&config, &envelope, &judged, judgement)?);
            }
            Ok(groups)
        })
    }
}

/// What a judgement means for mail that was accepted before: nobody can be refused any more, so what is to be rejected is kept in quarantine.
fn after_acceptance(
    config: &Config,
    envelope: &Envelope,
    judged: &pipeline::Judged,
    judgement: &pipeline::Judgement,
) -> Result<Option<Group>, String> {
    use crate::disposition::Copy;
    let copy = match disposition::decide(std::slice::from_ref(&judgement.disposition)) {
        Decision::Proceed { copies } => copies.into_iter().next().map(|(_, copy)| copy),
        Decision::Refuse(reply) if reply.is_permanent() => {
            Some(Copy::Quarantine { reason: format!("on a later scan: {}", judgement.disposition.reason) })
        }
        Decision::Refuse(_) => Some(Copy::Rescan),
    };
    let Some(copy) = copy else { return Ok(None) };
    let purpose = match &copy {
        Copy::Deliver { .. } => Purpose::Deliver { maybe_delivered: false },
        Copy::Quarantine { reason } => Purpose::Quarantine { reason: reason.clone() },
        Copy::Rescan => Purpose::Rescan,
        Copy::Discard { reason } => {
            tracing::info!(event = "discarded", queue_id = %envelope.id, tenant = %judgement.tenant.key, reason, "discarded by policy on a later scan");
            return Ok(None);
        }
    };
    let edits = transaction::edits(config, envelope, judged, judgement, &copy).map_err(|error| error.to_string())?;
    Ok(Some(Group { tenant: Arc::clone(&judgement.tenant.key), recipients: judgement.recipients.clone(), edits, purpose }))
}

/// Copies that are being released.
static RELEASING: Mutex<BTreeSet<Key>> = Mutex::new(BTreeSet::new());

/// One copy's release under way: two at once would deliver it twice.
struct Releasing(Key);

impl Releasing {
    fn begin(key: Key) -> Result<Self, String> {
        let begun = RELEASING.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        if begun { Ok(Self(key)) } else { Err("it is being released already".into()) }
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        RELEASING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Scans a kept message again and hands it to delivery; it is deleted from the store once the spool has it. `Err`: why it stays.
pub async fn release(gateway: &Gateway, key: Key) -> Result<(), String> {
    let _releasing = Releasing::begin(key)?;
    let item = gateway.quarantine.read(key).await.map_err(|error| error.to_string())?;
    let config = gateway.config.load_full();
    let envelope = Arc::new(item.envelope.clone());
    let message = Arc::new(pipeline::parse(item.raw.clone()).await);
    let deadline_ms = clock::monotonic_ms() + RESCAN_WITHIN_MS;
    let judged = pipeline::judge(&gateway.filters, gateway.is_closing(), &config, &envelope, &item.recipients, message, deadline_ms).await;
    let judgement =
        judged.judgements.first().ok_or_else(|| format!("tenant {} is not in the configuration: nobody knows where to deliver", item.tenant))?;
    match &judgement.verdict.anti_virus {
        AntiVirus::Infected(name) => return Err(format!("it is infected ({name}) and stays")),
        AntiVirus::TooFewEngines => return Err("too few anti-virus engines could scan it now: try again later".into()),
        AntiVirus::Clean | AntiVirus::Encrypted | AntiVirus::Unscannable(_) => {}
    }
    let copy = disposition::Copy::Deliver { tag: false };
    let edits = transaction::edits(&config, &envelope, &judged, judgement, &copy).map_err(|error| error.to_string())?;
    let group =
        Group { tenant: Arc::clone(&item.tenant), recipients: item.recipients.clone(), edits, purpose: Purpose::Deliver { maybe_delivered: false } };
    // Its own name, as the spool may still know the old one.
    let mut renamed = item.envelope.clone();
    renamed.id = clock::queue_id();
    renamed.received_ms = clock::unix_ms();
    gateway.delivery.submit(Meta { envelope: renamed, groups: vec![group] }, item.raw.clone()).await.map_err(|error| error.to_string())?;
    note(&gateway.metrics, "released", &envelope, judgement, &judgement.verdict.unscanned);
    gateway.quarantine.delete(key).await.map_err(|error| format!("it is on its way, but could not be deleted: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::engine::Observer as _;

    #[test]
    fn an_engine_that_is_gone_leaves_no_breaker_behind() {
        let metrics = Arc::new(Metrics::new());
        let observer = Observer::new(Arc::clone(&metrics), Arc::default());
        let shown = || String::from_utf8(metrics.text()).expect("text").contains("sekimori_breaker_open{engine=\"clamav\"}");
        observer.probed("clamav", false, Phase::Open);
        assert!(shown(), "an open breaker is shown");
        observer.retired("clamav");
        assert!(!shown(), "the alert on it would never end");
        observer.retired("never-probed");
    }
}
