//! The one log line per message, and the counters that go with it.

use std::collections::BTreeMap;

use sekimori_crds::vocabulary::EngineClass;
use serde::Serialize;

use crate::envelope::Envelope;
use crate::io::clock;
use crate::io::delivery::Inline;
use crate::io::metrics::Metrics;
use crate::io::pipeline::Judged;
use crate::io::spool::SpoolError;
use crate::message::Message;
use crate::smtp::Reply;
use crate::verdict::Opinion;

/// What is logged of one message. The names are relied on by scripts.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    queue_id: String,
    listener: String,
    client: String,
    /// The address is of the cluster and hides who it is: nothing was judged by it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    client_masked: bool,
    helo: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<String>,
    sender: String,
    recipients: Vec<String>,
    size: usize,
    message_id: Option<String>,
    tenants: Vec<TenantOutcome>,
    authentication: Option<String>,
    engines: Vec<EngineOutcome>,
    disposition: BTreeMap<&'static str, usize>,
    reply: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<String>,
    timings_us: Timings,
    /// What passes unscanned, once for each tenant and class, if the message is accepted.
    #[serde(skip)]
    unscanned: Vec<EngineClass>,
}

#[derive(Debug, Serialize)]
struct TenantOutcome {
    tenant: String,
    recipients: usize,
    verdict: String,
    explanation: String,
    unscanned: bool,
}

#[derive(Debug, Serialize)]
struct EngineOutcome {
    engine: String,
    version: String,
    mode: &'static str,
    result: String,
    millis: u32,
}

#[derive(Debug, Default, Serialize)]
struct Timings {
    parse: u64,
    scan: u64,
    verdict: u64,
    deliver: u64,
    total: u64,
}

impl Outcome {
    pub(crate) fn new(listener: &str, envelope: &Envelope, message: &Message) -> Self {
        Self {
            queue_id: envelope.id.to_string(),
            listener: listener.to_owned(),
            client: envelope.client.address.to_string(),
            client_masked: !envelope.client.address_known,
            helo: envelope.client.helo.clone(),
            tls: envelope.client.tls.clone(),
            sender: envelope.sender.as_ref().map_or_else(|| "<>".to_owned(), ToString::to_string),
            recipients: envelope.recipients.iter().map(|r| r.address.to_string()).collect(),
            size: message.raw.len(),
            message_id: message.message_id.clone(),
            tenants: vec![],
            authentication: None,
            engines: vec![],
            disposition: BTreeMap::new(),
            reply: String::new(),
            delivery: None,
            timings_us: Timings::default(),
            unscanned: vec![],
        }
    }

    /// Notes the verdicts, and what is to pass unscanned.
    pub(crate) fn judged(&mut self, metrics: &Metrics, judged: &Judged) {
        self.timings_us.parse = judged.timings.parse_us;
        self.timings_us.scan = judged.timings.scan_us;
        self.timings_us.verdict = judged.timings.verdict_us;
        for (stage, us) in [("parse", judged.timings.parse_us), ("scan", judged.timings.scan_us), ("verdict", judged.timings.verdict_us)] {
            metrics.stage_seconds.with_label_values(&[stage]).observe(us as f64 / 1e6);
        }
        self.authentication = Some(judged.authentication.summary());
        self.engines = judged.opinions.iter().map(EngineOutcome::from).collect();
        for judgement in &judged.judgements {
            self.unscanned.extend(judgement.passes_unscanned());
            self.tenants.push(TenantOutcome {
                tenant: judgement.tenant.key.to_string(),
                recipients: judgement.recipients.len(),
                verdict: judgement.verdict.action.to_string(),
                explanation: judgement.verdict.explanation(),
                unscanned: !judgement.verdict.unscanned.is_empty(),
            });
        }
    }

    /// Some recipients' copies came to this.
    pub(crate) fn became(&mut self, what: &'static str, recipients: &[u16]) {
        if !recipients.is_empty() {
            *self.disposition.entry(what).or_default() += recipients.len();
        }
    }

    /// How an inline delivery went.
    pub(crate) fn delivered(&mut self, metrics: &Metrics, inline: &Inline, us: u64) {
        let (word, text) = match inline {
            Inline::Delivered { route, reply, .. } => ("delivered", format!("{route}: {reply}")),
            Inline::Refused(reply) => ("refused", reply.to_string()),
            Inline::NotPossible { why } => ("not-possible", why.clone()),
            Inline::Unknown { why } => ("unknown", why.clone()),
        };
        metrics.deliveries.with_label_values(&["inline", word]).inc();
        metrics.stage_seconds.with_label_values(&["deliver"]).observe(us as f64 / 1e6);
        self.timings_us.deliver = us;
        self.delivery = Some(format!("inline {word}: {text}"));
    }

    /// The message was answered with 250.
    pub(crate) fn accept(mut self, metrics: &Metrics, bytes: usize, started_us: u64) {
        metrics.accepted_bytes.inc_by(bytes as u64);
        // Not before: a message that is refused in the end has passed nothing, and its sender tries again and again.
        for class in &self.unscanned {
            metrics.unscanned.with_label_values(&[class.as_str()]).inc();
        }
        "250".clone_into(&mut self.reply);
        self.write(metrics, started_us);
    }

    /// The message was refused.
    pub(crate) fn refuse(&mut self, metrics: &Metrics, reply: &Reply, started_us: u64) {
        self.disposition.clear();
        let what = if reply.is_transient() { "deferred" } else { "rejected" };
        self.disposition.insert(what, self.recipients.len());
        self.reply = reply.to_string();
        self.write(metrics, started_us);
    }

    fn write(&mut self, metrics: &Metrics, started_us: u64) {
        self.timings_us.total = clock::monotonic_us() - started_us;
        metrics.stage_seconds.with_label_values(&["total"]).observe(self.timings_us.total as f64 / 1e6);
        for (disposition, count) in &self.disposition {
            metrics.messages.with_label_values(&[disposition]).inc_by(*count as u64);
        }
        match serde_json::to_string(self) {
            Ok(record) => tracing::info!(event = "message", record_json = record),
            Err(error) => tracing::error!(%error, queue_id = self.queue_id, "a message's record could not be written"),
        }
    }
}

impl From<&Opinion> for EngineOutcome {
    fn from(opinion: &Opinion) -> Self {
        Self {
            engine: opinion.engine.to_string(),
            version: opinion.version.to_string(),
            mode: opinion.mode.as_str(),
            result: opinion.finding.to_string(),
            millis: opinion.millis,
        }
    }
}

/// What a sender is told when the spool did not take its message.
pub(crate) fn spool_refusal(error: &SpoolError) -> Reply {
    match error {
        SpoolError::Full { .. } => Reply::new(452, (4, 3, 1), "Not enough disk space now, try again later"),
        _ => Reply::new(451, (4, 3, 0), "The message cannot be stored now, try again later"),
    }
}
