//! From a received message to one verdict per tenant: parse once, authenticate and scan at once, then pure decisions.

use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use sekimori_crds::vocabulary::{Action, CheckMode, EngineClass};

use crate::authentication::Authentication;
use crate::config::{Config, Tenant};
use crate::content;
use crate::disposition::{self, Disposition};
use crate::envelope::Envelope;
use crate::io::auth::{Input, Wanted};
use crate::io::clock;
use crate::io::engine::Job;
use crate::io::gateway::Filters;
use crate::io::walks::Walks;
use crate::message::{self, Message};
use crate::verdict::{self, Facts, Opinion, Verdict};

/// Messages from this size on are parsed on a thread of their own, so that they do not hold up other sessions.
const PARSE_APART_BYTES: usize = 512 * 1024;

/// Messages whose archives are looked into for names at once: each may hold 64 MiB meanwhile. Half of them at most are of one client network.
static WALKS: LazyLock<Walks> = LazyLock::new(|| Walks::new(4, 2));
/// Looking for names takes this long at most.
const WALK_MS_MAX: u64 = 5_000;

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
/// `terminating`: the gateway is stopping or draining, so too few engines means defer.
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
    let job = Job::new(Arc::clone(&message), Arc::clone(envelope));
    let engines = Arc::clone(&filters.engines);
    let authenticator = filters.authenticator.load_full();
    let wanted = wanted(&tenants);
    let names_wanted = tenants.iter().any(|(tenant, _)| !tenant.part.policy.attachments.block_types.is_empty());
    let (opinions, authentication, names) = tokio::join!(
        engines.scan_all(&job, deadline_ms),
        authenticator.evaluate(Input { envelope: envelope.as_ref(), message: &message, want: wanted }),
        async { if names_wanted { Some(attachment_names(&message, envelope, deadline_ms).await) } else { None } }
    );
    timings.scan_us = clock::monotonic_us() - started;

    let started = clock::monotonic_us();
    let names = names.unwrap_or_default();
    let facts = Facts {
        opinions: &opinions,
        authentication: &authentication,
        client: &envelope.client,
        sender: envelope.sender.as_ref(),
        from: &message.from,
        file_names: &names.found,
        file_names_cut: names.cut,
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

/// Looks into archives for names only, and not longer than it may.
struct Names {
    until_ms: u64,
}

impl content::Visitor for Names {
    fn item(&mut self, _: &content::Item<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn proceed(&mut self) -> bool {
        clock::monotonic_ms() < self.until_ms
    }
}

/// Names of attachments and of what is in archives.
#[derive(Debug, Default)]
struct AttachmentNames {
    found: Vec<String>,
    /// Some archive was not looked into, or not to its end.
    cut: bool,
}

/// Names of attachments and of what is in archives, as far as they can be found in time. Away from the reactor, a few at a time: unpacking takes as much time
/// and memory as the sender likes, up to the walk's limits. A message without archives needs no place among them.
async fn attachment_names(message: &Arc<Message>, envelope: &Envelope, deadline_ms: u64) -> AttachmentNames {
    let queue_id = envelope.id;
    let client = envelope.client.address_known.then_some(envelope.client.address);
    if !content::has_insides(message) {
        return AttachmentNames { found: message.file_names(), cut: false };
    }
    let left = Duration::from_millis(deadline_ms.saturating_sub(clock::monotonic_ms()));
    if let Ok(Some(place)) = tokio::time::timeout(left, WALKS.place(client)).await {
        let message = Arc::clone(message);
        let mut names = Names { until_ms: deadline_ms.min(clock::monotonic_ms() + WALK_MS_MAX) };
        let walk = tokio::task::spawn_blocking(move || {
            let found = content::walk(&message, &content::Limits::default(), &mut names);
            drop(place);
            (found.names, found.limits_exceeded)
        });
        if let Ok((found, cut)) = walk.await {
            if cut {
                tracing::warn!(%queue_id, "archives were not looked into completely for blocked types: the policy for exceeded limits holds");
            }
            return AttachmentNames { found, cut };
        }
    }
    tracing::warn!(%queue_id, "archives were not looked into for blocked types: the policy for exceeded limits holds");
    AttachmentNames { found: message.file_names(), cut: true }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(content_type: &str, content: &[u8]) -> Arc<Message> {
        let head = format!("MIME-Version: 1.0\r\nContent-Type: {content_type}; name=\"a.bin\"\r\nContent-Transfer-Encoding: base64\r\n\r\n");
        let raw = [head.as_bytes(), data_encoding::BASE64.encode(content).as_bytes(), b"\r\n"].concat();
        Arc::new(message::parse(raw.into(), &message::Limits::default()))
    }

    #[tokio::test]
    async fn without_a_place_an_archive_counts_as_not_looked_into() {
        let mut all = vec![];
        for _ in 0..4 {
            all.push(WALKS.place(None).await.expect("never closed"));
        }
        let client = crate::envelope::Client { address: [192, 0, 2, 1].into(), helo: "x".into(), esmtp: true, tls: None, address_known: true };
        let id = crate::queue_id::QueueId(1);
        let envelope = Envelope { id, received_ms: 0, client, sender: None, recipients: vec![], eight_bit: false, smtputf8: false };
        let soon_ms = clock::monotonic_ms() + 50;
        let found = attachment_names(&message("application/x-bzip2", b"BZh91AY&SY and so on"), &envelope, soon_ms).await;
        assert!(found.cut, "{found:?}");
        assert_eq!(found.found, ["a.bin"]);
        let found = attachment_names(&message("text/plain", b"nothing inside"), &envelope, soon_ms).await;
        assert!(!found.cut, "without an archive no place is needed: {found:?}");
        assert_eq!(found.found, ["a.bin"]);
        drop(all);
    }
}
