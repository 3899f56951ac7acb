//! A message that has arrived, until it is answered: judge, then deliver, spool, keep or refuse, and only then promise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sekimori_crds::vocabulary::{Action, DeliveryMode, TenantState};

use crate::config::{Config, Tenant};
use crate::disposition::{self, Copy, Decision, Disposition};
use crate::envelope::Envelope;
use crate::io::accept::{Covered, Discarded, Proof};
use crate::io::clock;
use crate::io::delivery::{Content, Inline};
use crate::io::gateway::{Gateway, MemoryCharge};
use crate::io::metrics::Metrics;
use crate::io::pipeline::{self, Judged, Judgement};
use crate::io::quarantine::{Item, Kind};
use crate::io::record::{self, Outcome};
use crate::io::spool::SpoolError;
use crate::message::{Edits, Message};
use crate::queue::outcome::sanitised;
use crate::queue::{Group, Meta, Purpose};
use crate::smtp::Reply;
use crate::smtp::server::{MessageAnswer, Refusal};

/// Our answer to the end of data comes within this, as many senders give up long before RFC 5321's ten minutes.
const ANSWER_WITHIN_MS: u64 = 60_000;
/// The scan may take this much of it.
const SCAN_WITHIN_MS: u64 = 30_000;
/// An inline delivery may take this long.
const INLINE_WITHIN_MS: u64 = 25_000;
/// What is left for writing to the spool when an inline delivery did not work out.
const SPOOL_RESERVE_MS: u64 = 5_000;
/// The quarantine is given this long for all copies of a message together; then the spool keeps those that are left, and moves them later. (Stored twice it is
/// one copy.)
const STORE_WITHIN: Duration = Duration::from_secs(3);
/// More Received fields than this are a loop (RFC 5321 section 6.3).
const RECEIVED_FIELDS_MAX: usize = 50;

/// What a transaction works with.
pub(crate) struct Work {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// The configuration since MAIL.
    pub config: Arc<Config>,
    /// Name of the listener, for the log.
    pub listener: String,
}

/// A copy of the message for some recipients of one tenant.
struct PlannedCopy {
    tenant: Arc<Tenant>,
    recipients: Vec<u16>,
    edits: Edits,
    copy: Copy,
}

/// The answer where memory for messages is used up; counted as shed.
pub(crate) fn out_of_memory(metrics: &Metrics) -> Reply {
    metrics.shed.with_label_values(&["messageMemory"]).inc();
    Reply::new(452, (4, 3, 1), "Not enough memory for this message now, try again later")
}

/// Bytes of memory that a recipient of an envelope takes: two short texts, and what the log tells of it.
const RECIPIENT_BYTES: u64 = 256;

/// Does everything that a message needs and answers the end of data. `charge` holds the message's memory, and is charged what is made of it.
pub(crate) async fn run(work: Work, envelope: Envelope, raw: Bytes, charge: &mut MemoryCharge) -> MessageAnswer {
    let started_us = clock::monotonic_us();
    let started_ms = clock::monotonic_ms();
    let envelope = Arc::new(envelope);
    let raw_bytes = raw.len() as u64;
    let message = Arc::new(pipeline::parse(raw).await);
    let parse_us = clock::monotonic_us() - started_us;
    let mut outcome = Outcome::new(&work.listener, &envelope, &message);
    if let Some(reply) = unacceptable(&message) {
        outcome.refuse(&work.gateway.metrics, &reply, started_us);
        return refused(reply);
    }
    let everyone: Vec<u16> = (0..envelope.recipients.len()).map(|index| index as u16).collect();
    let mut judged =
        pipeline::judge(&work.gateway.filters, work.gateway.is_closing(), &work.config, &envelope, &everyone, message, started_ms + SCAN_WITHIN_MS)
            .await;
    judged.timings.parse_us = parse_us;
    outcome.judged(&work.gateway.metrics, &judged);

    let copies = match decide(&judged, envelope.recipients.len()) {
        Decision::Refuse(reply) => {
            outcome.refuse(&work.gateway.metrics, &reply, started_us);
            return refused(reply);
        }
        Decision::Proceed { copies } => match plan(&work, &envelope, &judged, copies) {
            Ok(planned) => planned,
            Err(error) => {
                tracing::error!(queue_id = %envelope.id, %error, "the trace headers could not be made");
                let reply = Reply::new(451, (4, 3, 0), "Internal error, try again later");
                outcome.refuse(&work.gateway.metrics, &reply, started_us);
                return refused(reply);
            }
        },
    };
    if !charge.grow_to(raw_bytes.saturating_add(held_bytes(&copies, envelope.recipients.len()))) {
        let reply = out_of_memory(&work.gateway.metrics);
        outcome.refuse(&work.gateway.metrics, &reply, started_us);
        return refused(reply);
    }
    let hand_over = HandOver {
        work: &work,
        envelope: &envelope,
        raw: &judged.message.raw,
        started_ms,
        outcome: &mut outcome,
        covered: Covered::new(format!("queued as {}", envelope.id)),
        spooled: vec![],
        patience: Patience(STORE_WITHIN),
    };
    match hand_over.all(copies).await {
        Ok(covered) => {
            outcome.accept(&work.gateway.metrics, judged.message.raw.len(), started_us);
            MessageAnswer::Accepted(Box::new(covered))
        }
        Err(reply) => {
            outcome.refuse(&work.gateway.metrics, &reply, started_us);
            refused(reply)
        }
    }
}

/// A refusal; anything else than 4xx and 5xx is a mistake of ours and becomes 451.
pub(crate) fn refused(reply: Reply) -> MessageAnswer {
    let refusal = Refusal::new(reply).or_else(|_| Refusal::new(Reply::new(451, (4, 3, 0), "Internal error, try again later")));
    MessageAnswer::Refused(refusal.expect("451 is a refusal"))
}

/// What no gateway takes, whoever it is for.
fn unacceptable(message: &Message) -> Option<Reply> {
    if message.received_fields > RECEIVED_FIELDS_MAX {
        return Some(Reply::new(554, (5, 4, 6), format!("More than {RECEIVED_FIELDS_MAX} Received fields: a mail loop")));
    }
    None
}

/// One decision for all recipients. A recipient whose tenant went away during the transaction is deferred.
fn decide(judged: &Judged, recipients: usize) -> Decision {
    let gone = Disposition {
        action: Action::Defer,
        reply: Some(Reply::new(451, (4, 3, 0), "The configuration of a recipient's domain changed, try again later")),
        tag: false,
        unwanted: false,
        reason: "the configuration changed".into(),
    };
    let mut dispositions = vec![gone; recipients];
    for judgement in &judged.judgements {
        for index in &judgement.recipients {
            if let Some(slot) = dispositions.get_mut(usize::from(*index)) {
                *slot = judgement.disposition.clone();
            }
        }
    }
    disposition::decide(&dispositions)
}

/// Recipients with the same tenant and the same copy share one form of the message.
fn plan(work: &Work, envelope: &Envelope, judged: &Judged, copies: Vec<(usize, Copy)>) -> Result<Vec<PlannedCopy>, crate::message::EditError> {
    let mut planned: Vec<PlannedCopy> = vec![];
    for (index, copy) in copies {
        let index = index as u16;
        let Some(judgement) = judged.judgements.iter().find(|j| j.recipients.contains(&index)) else { continue };
        if let Some(same) = planned.iter_mut().find(|p| p.tenant.key == judgement.tenant.key && p.copy == copy) {
            same.recipients.push(index);
            continue;
        }
        let mut edits = edits(&work.config, envelope, judged, judgement, &copy)?;
        if let Some(other) = planned.first() {
            edits.share_removed(&other.edits);
        }
        planned.push(PlannedCopy { tenant: Arc::clone(&judgement.tenant), recipients: vec![index], edits, copy });
    }
    Ok(planned)
}

/// Bytes of memory that the forms of a message and its envelope take, written for the spool too.
fn held_bytes(copies: &[PlannedCopy], recipients: usize) -> u64 {
    let own: usize = copies.iter().map(|copy| copy.edits.own_bytes()).sum();
    let shared = copies.first().map_or(0, |copy| copy.edits.removed_bytes());
    // Planned, grouped for the spool, and as text.
    ((own + shared) as u64).saturating_mul(3).saturating_add((recipients as u64).saturating_mul(RECIPIENT_BYTES))
}

/// The form of the message for one tenant's copy.
pub(crate) fn edits(
    config: &Config,
    envelope: &Envelope,
    judged: &Judged,
    judgement: &Judgement,
    copy: &Copy,
) -> Result<Edits, crate::message::EditError> {
    use crate::message::trace::{Trace, trace_edits};
    let fleet = &config.fleet;
    let single = match judgement.recipients.as_slice() {
        [only] => envelope.recipients.get(usize::from(*only)).map(|r| &r.address),
        _ => None,
    };
    let tag =
        matches!(copy, Copy::Deliver { tag: true }).then_some(judgement.tenant.part.policy.anti_spam.subject_tag.as_str()).filter(|t| !t.is_empty());
    trace_edits(
        &judged.message,
        &Trace {
            hostname: &fleet.hostname,
            envelope,
            recipient: single,
            authentication_results: judged.authentication.header_field(&fleet.hostname, envelope),
            forged: crate::authentication::forged_fields(&judged.message, &fleet.hostname),
            verdict: &judgement.verdict,
            opinions: &judged.opinions,
            verdict_header: fleet.verdict_header,
            spam: judgement.disposition.unwanted,
            subject_tag: tag,
        },
    )
}

/// Time for several waits together.
struct Patience(Duration);

impl Patience {
    /// What came of it, if that was in time. Without time left nothing is begun.
    async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        if self.0.is_zero() {
            return None;
        }
        let began_us = clock::monotonic_us();
        let done = tokio::time::timeout(self.0, work).await.ok();
        self.0 = if done.is_some() { self.0.saturating_sub(Duration::from_micros(clock::monotonic_us() - began_us)) } else { Duration::ZERO };
        done
    }
}

/// What is being done so that every copy ends somewhere safe.
struct HandOver<'a> {
    work: &'a Work,
    envelope: &'a Arc<Envelope>,
    raw: &'a Bytes,
    started_ms: u64,
    outcome: &'a mut Outcome,
    /// Who is covered so far, and by what.
    covered: Covered,
    /// What goes to the spool, in one write for all.
    spooled: Vec<Group>,
    /// How long stores are still waited for.
    patience: Patience,
}

impl HandOver<'_> {
    /// All copies; the reply if one of them ends nowhere.
    async fn all(mut self, copies: Vec<PlannedCopy>) -> Result<Covered, Reply> {
        let mut deliveries: Vec<PlannedCopy> = vec![];
        for planned in copies {
            match &planned.copy {
                Copy::Deliver { .. } => deliveries.push(planned),
                Copy::Discard { reason } => {
                    let proof = Discarded::log(self.envelope.id, &planned.tenant.key, planned.recipients.len(), reason);
                    self.outcome.became("discarded", &planned.recipients);
                    self.covered.by(planned.recipients, Proof::Discarded(proof));
                }
                Copy::Quarantine { reason } => {
                    let reason = reason.clone();
                    self.keep(planned, Kind::Quarantined, reason).await;
                }
                Copy::Rescan => {
                    self.outcome.became("deferred", &planned.recipients);
                    self.spool(&planned, Purpose::Rescan);
                }
            }
        }
        self.deliver(deliveries).await?;
        if !self.spooled.is_empty() {
            let groups = std::mem::take(&mut self.spooled);
            let recipients: Vec<u16> = groups.iter().flat_map(|group| group.recipients.iter().copied()).collect();
            let meta = Meta { envelope: Envelope::clone(self.envelope), groups };
            let durable = self.work.gateway.delivery.submit(meta, self.raw.clone()).await.map_err(|error| {
                tracing::warn!(queue_id = %self.envelope.id, %error, "not spooled");
                if matches!(error, SpoolError::Full { .. }) {
                    self.work.gateway.metrics.shed.with_label_values(&["spool"]).inc();
                }
                record::spool_refusal(&error)
            })?;
            self.covered.by(recipients, Proof::Durable(durable));
        }
        Ok(self.covered)
    }

    fn spool(&mut self, planned: &PlannedCopy, purpose: Purpose) {
        let (tenant, recipients) = (Arc::clone(&planned.tenant.key), planned.recipients.clone());
        self.spooled.push(Group { tenant, recipients, edits: planned.edits.clone(), purpose });
    }

    fn queue(&mut self, planned: &PlannedCopy, maybe_delivered: bool) {
        self.outcome.became("queued", &planned.recipients);
        self.spool(planned, Purpose::Deliver { maybe_delivered });
    }

    /// Puts a copy into the quarantine or the dead letters; the spool keeps it if the store cannot take it now.
    async fn keep(&mut self, planned: PlannedCopy, kind: Kind, reason: String) {
        self.outcome.became(if kind == Kind::Quarantined { "quarantined" } else { "dead-letter" }, &planned.recipients);
        let item = Item {
            id: self.envelope.id,
            tenant: Arc::clone(&planned.tenant.key),
            kind,
            reason: reason.clone(),
            envelope: Envelope::clone(self.envelope),
            recipients: planned.recipients.clone(),
            edits: planned.edits.clone(),
            raw: self.raw.clone(),
        };
        let stored = self.patience.wait_for(self.work.gateway.quarantine.store(item)).await;
        match stored.ok_or_else(|| "it did not answer in time".to_owned()).and_then(|stored| stored.map_err(|error| error.to_string())) {
            Ok(stored) => self.covered.by(planned.recipients, Proof::Stored(stored)),
            Err(error) => {
                tracing::warn!(queue_id = %self.envelope.id, tenant = %planned.tenant.key, error, "the store is away: the spool keeps the copy");
                let purpose = match kind {
                    Kind::Quarantined => Purpose::Quarantine { reason },
                    Kind::DeadLetter => Purpose::DeadLetter { reason },
                };
                self.spool(&planned, purpose);
            }
        }
    }

    /// Delivers while the sender waits where that is allowed and possible; leaves the rest to the queue.
    async fn deliver(&mut self, deliveries: Vec<PlannedCopy>) -> Result<(), Reply> {
        // One route and one content: anything else is written anyway, and one write serves all.
        let alone = deliveries.len() == 1 && self.spooled.is_empty();
        for planned in deliveries {
            let part = &planned.tenant.part;
            let waits = part.state == TenantState::Hold;
            let strict = part.delivery == DeliveryMode::Inline;
            if strict && waits {
                return Err(Reply::new(451, (4, 2, 1), "Deliveries to this domain are on hold, try again later"));
            }
            if !alone || waits || part.delivery == DeliveryMode::Queue {
                self.queue(&planned, false);
                continue;
            }
            let content = Content { raw: self.raw.clone(), edits: Arc::new(planned.edits.clone()) };
            let deadline_ms = (clock::monotonic_ms() + INLINE_WITHIN_MS).min(self.started_ms + ANSWER_WITHIN_MS - SPOOL_RESERVE_MS);
            let started_us = clock::monotonic_us();
            let inline = self.work.gateway.delivery.inline(&planned.tenant, self.envelope, &planned.recipients, &content, deadline_ms).await;
            self.outcome.delivered(&self.work.gateway.metrics, &inline, clock::monotonic_us() - started_us);
            self.after_inline(planned, inline, strict).await?;
        }
        Ok(())
    }

    /// What an inline delivery's end means for the recipients.
    async fn after_inline(&mut self, mut planned: PlannedCopy, inline: Inline, strict: bool) -> Result<(), Reply> {
        match inline {
            Inline::Delivered { handed_over, reply, refused, deferred, .. } => {
                self.outcome.became("delivered", handed_over.recipients());
                self.covered.say(sanitised(&reply).text);
                self.covered.by(handed_over.recipients().to_vec(), Proof::HandedOver(handed_over));
                if !deferred.is_empty() {
                    planned.recipients = deferred.iter().map(|(index, _)| *index).collect();
                    self.queue(&planned, false);
                }
                let mut by_reply: BTreeMap<String, Vec<u16>> = BTreeMap::new();
                for (index, reply) in refused {
                    by_reply.entry(reply.to_string()).or_default().push(index);
                }
                for (reply, recipients) in by_reply {
                    let copy =
                        PlannedCopy { tenant: Arc::clone(&planned.tenant), recipients, edits: planned.edits.clone(), copy: planned.copy.clone() };
                    self.keep(copy, Kind::DeadLetter, format!("refused by the next hop: {reply}")).await;
                }
            }
            // Nobody was promised anything yet: the next hop's refusal is ours.
            Inline::Refused(reply) if self.covered.is_empty() => return Err(reply),
            Inline::Refused(reply) => self.keep(planned, Kind::DeadLetter, format!("refused by the next hop: {reply}")).await,
            Inline::NotPossible { why } if strict => {
                return Err(Reply::new(451, (4, 4, 1), format!("The next hop cannot take it now ({why}), try again later")));
            }
            Inline::Unknown { why } if strict => {
                return Err(Reply::new(451, (4, 4, 2), format!("The next hop did not say whether it took it ({why}), try again later")));
            }
            Inline::NotPossible { .. } => self.queue(&planned, false),
            Inline::Unknown { .. } => self.queue(&planned, true),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_that_hangs_is_waited_for_once() {
        let began_us = clock::monotonic_us();
        let mut patience = Patience(Duration::from_millis(60));
        assert_eq!(patience.wait_for(tokio::time::sleep(Duration::from_millis(20))).await, Some(()));
        for _ in 0..200 {
            assert_eq!(patience.wait_for(std::future::pending::<()>()).await, None);
        }
        let took_ms = (clock::monotonic_us() - began_us) / 1000;
        assert!((60..2_000).contains(&took_ms), "{took_ms} ms for all, not for each");
        assert_eq!(patience.wait_for(std::future::ready(())).await, None, "nothing is begun without time left");
    }
}
