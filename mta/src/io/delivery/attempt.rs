//! One attempt to hand one form of a message to one route.

use bytes::Bytes;
use memchr::memmem;

use super::connection::Connection;
use super::pool::Slot;
use super::{Content, Inner, hash};
use crate::config::Tenant;
use crate::envelope::Envelope;
use crate::io::clock::monotonic_ms;
use crate::queue::outcome::{Mode, Outcome, Trouble, judge_all};
use crate::smtp::Reply;
use crate::smtp::client::{Answer, Finished, Phase, Transaction};

/// What is to be handed over.
pub(super) struct Job<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) envelope: &'a Envelope,
    rope: Vec<Bytes>,
    size_bytes: u64,
    eight_bit: bool,
    utf8_header: bool,
}

impl<'a> Job<'a> {
    pub(super) fn new(tenant: &'a Tenant, envelope: &'a Envelope, content: &Content) -> Self {
        let rope = content.rope();
        Self {
            tenant,
            envelope,
            size_bytes: rope.iter().map(|piece| piece.len() as u64).sum(),
            eight_bit: rope.iter().any(|piece| !piece.is_ascii()),
            utf8_header: envelope.smtputf8 && has_utf8_header(content),
            rope,
        }
    }

    pub(super) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn transaction(&self, recipients: &[u16]) -> Transaction {
        Transaction {
            sender: self.envelope.sender.clone(),
            recipients: recipients.iter().filter_map(|index| self.envelope.recipients.get(usize::from(*index))).map(|r| r.address.clone()).collect(),
            size_bytes: self.size_bytes,
            eight_bit: self.eight_bit,
            utf8_header: self.utf8_header,
        }
    }
}

fn has_utf8_header(content: &Content) -> bool {
    let end = memmem::find(&content.raw, b"\r\n\r\n").unwrap_or(content.raw.len());
    !content.raw.get(..end).unwrap_or_default().is_ascii() || content.edits.iter().any(|edit| !edit.with.is_ascii())
}

/// What the next hop said of each recipient, in the order of the attempt, and its last word.
pub(super) struct Answered {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) reply: Option<Reply>,
}

/// How far a failing route got.
pub(super) struct RouteFailed {
    pub(super) phase: Phase,
    pub(super) trouble: Trouble,
}

/// When to give up, monotonic milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Having a session.
    pub(super) open_ms: u64,
    /// Everything.
    pub(super) all_ms: u64,
}

impl Inner {
    /// One transaction, over a pooled connection or a new one. A pooled one that fails before MAIL was answered costs nothing and is replaced.
    pub(super) async fn over_route(&self, slot: &mut Slot, job: &Job<'_>, recipients: &[u16], limits: Limits) -> Result<Answered, RouteFailed> {
        let transaction = job.transaction(recipients);
        let (finished, connection) = self.send(slot, &transaction, &job.rope, limits).await;
        let now_ms = monotonic_ms();
        if let Some(connection) = connection {
            if connection.is_ready() && connection.messages < self.options.messages_per_connection {
                slot.keep(connection, now_ms);
            } else if connection.is_ready() {
                connection.quit().await;
            }
        }
        let mode = Mode { soft_bounce: job.tenant.part.soft_bounce, refuses_all: slot.refuses_all() };
        let judged = judge_all(&finished, mode);
        self.learn(slot, job, recipients, &finished, &judged);
        match judged {
            Ok(outcomes) => {
                let reply = match finished.answer {
                    Answer::Reply(reply) => Some(reply),
                    _ => None,
                };
                Ok(Answered { outcomes, reply })
            }
            Err(trouble) => {
                self.figures.route_troubles.add(1);
                tracing::info!(tenant = %job.tenant.key, route = %slot.route.name, queue_id = %job.envelope.id, %trouble, "route in trouble");
                Err(RouteFailed { phase: finished.phase, trouble })
            }
        }
    }

    async fn send(&self, slot: &Slot, transaction: &Transaction, rope: &[Bytes], limits: Limits) -> (Finished, Option<Connection>) {
        while let Some(mut connection) = slot.pooled(self.options.idle_ms, monotonic_ms()) {
            if !connection.is_stale() {
                let finished = connection.send(transaction.clone(), rope, limits.all_ms).await;
                if !is_stale_failure(&finished) {
                    self.figures.reused.add(1);
                    return (finished, Some(connection));
                }
            }
            self.figures.stale.add(1);
        }
        let config = self.around.config.load_full();
        self.figures.connections.add(1);
        match self.connector.open(&slot.route.part, &*self.around.hosts, &config, limits.open_ms.min(limits.all_ms)).await {
            Ok(mut connection) => (connection.send(transaction.clone(), rope, limits.all_ms).await, Some(connection)),
            Err((phase, answer)) => (Finished { recipients: vec![None; transaction.recipients.len()], phase, answer }, None),
        }
    }

    /// What the attempt says of the route.
    fn learn(&self, slot: &mut Slot, job: &Job<'_>, recipients: &[u16], finished: &Finished, judged: &Result<Vec<Outcome>, Trouble>) {
        let now_ms = monotonic_ms();
        let sender = hash(&job.envelope.sender);
        let recipient = |index: &u16| hash(&job.envelope.recipients.get(usize::from(*index)).map(|recipient| &recipient.address));
        slot.report(now_ms, |pacing, probe| {
            let outcomes = match judged {
                Ok(outcomes) => outcomes,
                Err(trouble) if trouble.refusing && is_of_the_mail(finished.phase) => {
                    recipients.iter().for_each(|index| pacing.refused(sender, recipient(index)));
                    return if pacing.refuses_all() { pacing.troubled(true, &trouble.why, probe, now_ms) } else { pacing.objected(&trouble.why) };
                }
                Err(trouble) => return pacing.troubled(trouble.refusing, &trouble.why, probe, now_ms),
            };
            if let Some(Outcome::Unknown(why)) = outcomes.iter().find(|outcome| matches!(outcome, Outcome::Unknown(_))) {
                return pacing.troubled(false, why, probe, now_ms);
            }
            // Nothing was sent, nothing was learnt.
            if matches!(finished.answer, Answer::Unable(_)) {
                return pacing.abandoned(probe);
            }
            pacing.answered();
            if outcomes.contains(&Outcome::Delivered) {
                return pacing.accepted();
            }
            for (index, _) in recipients.iter().zip(outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::RefusedPermanently(_))) {
                pacing.refused(sender, recipient(index));
            }
        });
    }
}

/// From MAIL on an answer may be about this one message.
pub(super) const fn is_of_the_mail(phase: Phase) -> bool {
    matches!(phase, Phase::Mail | Phase::Rcpt | Phase::Data | Phase::EndOfData)
}

/// The server had hung up before it saw anything of this message.
fn is_stale_failure(finished: &Finished) -> bool {
    finished.phase == Phase::Mail
        && match &finished.answer {
            Answer::Disconnected(_) => true,
            Answer::Reply(reply) => reply.code == 421,
            _ => false,
        }
}
