//! From a received message to one verdict per tenant: parse once, authenticate and scan at once, then pure decisions.

use std::sync::Arc;

use bytes::Bytes;
use sekimori_crds::vocabulary::{Action, CheckMode, EngineClass};
use sha2::{Digest as _, Sha256};

use crate::authentication::Authentication;
use crate::config::{Config, Tenant};
use crate::content;
use crate::disposition::{self, Disposition};
use crate::envelope::Envelope;
use crate::io::auth::{Input, Wanted};
use crate::io::clock;
use crate::io::engine::Job;
use crate::io::gateway::Filters;
use crate::message::{self, Message};
use crate::verdict::{self, Facts, Opinion, Verdict};

/// Messages from this size on are parsed on a thread of their own, so that they do not hold up other sessions.
const PARSE_APART_BYTES: usize = 512 * 1024;

/// How long each stage took, microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Parsing.
    pub parse_us: u64,
    /// Engines and authentication together.
    pub scan_us: u64,
    /// Verdict.
    pub verdict_us: u64,
}

/// What one tenant's policy makes of a message.
#[derive(Debug)]
pub struct Judgement {
    /// The tenant.
    pub tenant: Arc<Tenant>,
    /// Its recipients: indexes into the envelope.
    pub recipients: Vec<u16>,
    /// Its verdict.
    pub verdict: Verdict,
    /// What follows for its recipients.
    pub disposition: Disposition,
}

impl Judgement {
    /// Classes of engines that its copies pass unscanned. What is deferred, kept or refused has not passed.
    pub fn passes_unscanned(&self) -> &[EngineClass] {
        if matches!(self.disposition.action, Action::Deliver | Action::Tag) { &self.verdict.unscanned } else { &[] }
    }
}

/// A judged message.
#[derive(Debug)]
pub struct Judged {
    /// The parsed message.
    pub message: Arc<Message>,
    /// What sender authentication found.
    pub authentication: Authentication,
    /// What the engines said.
    pub opinions: Vec<Opinion>,
    /// One per tenant.
    pub judgements: Vec<Judgement>,
    /// Timings.
    pub timings: Timings,
}

/// Parses a message, away from the reactor if it is large.
pub async fn parse(raw: Bytes) -> Message {
    if raw.len() < PARSE_APART_BYTES {
        return message::parse(raw, &message::Limits::default());
    }
    let copy = raw.clone();
    tokio::task::spawn_blocking(move || message::parse(copy, &message::Limits::default())).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the parser broke on a large message: it is treated as unparsed");
        message::parse(raw, &message::Limits { depth: 0, parts: 0, header_bytes: 0, header_fields: 0 })
    })
}

/// Scans and judges a parsed message for the recipients with these indexes, until `deadline_ms` (monotonic).
///
/// `terminating`: the gateway is stopping, so too few engines means defer.
pub async fn judge(
    filters: &Filters,
    terminating: bool,
    config: &Config,
    envelope: &Arc<Envelope>,
    recipients: &[u16],
    message: Arc<Message>,
    deadline_ms: u64,
) -> Judged {
    let mut timings = Timings::default();
    let started = clock::monotonic_us();
    let tenants = by_tenant(config, envelope, recipients);
    let job = Job { message: Arc::clone(&message), envelope: Arc::clone(envelope), digest: Sha256::digest(&message.raw).into() };
    let engines = Arc::clone(&filters.engines);
    let authenticator = filters.authenticator.load_full();
    let wanted = wanted(&tenants);
    let (opinions, authentication) = tokio::join!(
        engines.scan_all(&job, deadline_ms),
        authenticator.evaluate(Input { envelope: envelope.as_ref(), message: &message, want: wanted })
    );
    timings.scan_us = clock::monotonic_us() - started;

    let started = clock::monotonic_us();
    let file_names = if tenants.iter().any(|(tenant, _)| !tenant.part.policy.attachments.block_types.is_empty()) {
        content::inventory(&message, &content::Limits::default()).names
    } else {
        vec![]
    };
    let facts = Facts {
        opinions: &opinions,
        authentication: &authentication,
        client: &envelope.client,
        sender: envelope.sender.as_ref(),
        from: &message.from,
        file_names: &file_names,
        terminating,
    };
    let judgements = tenants
        .into_iter()
        .map(|(tenant, recipients)| {
            let verdict = verdict::judge(&facts, &tenant.part.policy);
            let disposition = disposition::dispose(&verdict, &tenant.part);
            Judgement { tenant, recipients, verdict, disposition }
        })
        .collect();
    timings.verdict_us = clock::monotonic_us() - started;
    Judged { message, authentication, opinions, judgements, timings }
}

/// The recipients by tenant, in the order of first mention. One whose tenant is gone stays out: it is deferred by whoever asks.
fn by_tenant(config: &Config, envelope: &Envelope, recipients: &[u16]) -> Vec<(Arc<Tenant>, Vec<u16>)> {
    let mut tenants: Vec<(Arc<Tenant>, Vec<u16>)> = vec![];
    for index in recipients {
        let Some(recipient) = envelope.recipients.get(usize::from(*index)) else { continue };
        match tenants.iter_mut().find(|(tenant, _)| tenant.key == recipient.tenant) {
            Some((_, indexes)) => indexes.push(*index),
            None => tenants.extend(config.tenant(&recipient.tenant).map(|tenant| (Arc::clone(tenant), vec![*index]))),
        }
    }
    tenants
}

/// What must be evaluated, as some tenant observes or enforces it. Allow lists need DMARC too.
fn wanted(tenants: &[(Arc<Tenant>, Vec<u16>)]) -> Wanted {
    let policies = || tenants.iter().map(|(tenant, _)| &tenant.part.policy);
    let dmarc = policies().any(|policy| policy.authentication.dmarc != CheckMode::Disabled || !policy.lists.allow.is_empty());
    Wanted { spf: dmarc || policies().any(|policy| policy.authentication.spf != CheckMode::Disabled), dkim: dmarc, dmarc }
}
