//! The promise behind a 250 at the end of DATA: every recipient is covered by something that cannot be lost.
//!
//! The proofs can be made only where the thing itself is done: [`Durable`] after the spool's sync, [`HandedOver`] after the next hop's 250,
//! [`Stored`] after the quarantine's sync. There is no other way to accept a message (DESIGN.md 4.7).

use std::collections::BTreeSet;

use crate::io::delivery::HandedOver;
use crate::io::quarantine::Stored;
use crate::io::spool::Durable;
use crate::queue_id::QueueId;
use crate::smtp::server::Promise;

/// What covers some recipients.
#[derive(Debug)]
pub enum Proof {
    /// A synced spool record.
    Durable(Durable),
    /// The next hop's own 250.
    HandedOver(HandedOver),
    /// The quarantine store's acknowledged write.
    Stored(Stored),
    /// Dropped by policy, in the log.
    Discarded(Discarded),
}

/// A discard that was logged.
#[derive(Debug)]
pub struct Discarded(());

impl Discarded {
    /// Logs the discard; that is what makes it one.
    pub fn log(id: QueueId, tenant: &str, recipients: usize, reason: &str) -> Self {
        tracing::info!(event = "discarded", queue_id = %id, tenant, recipients, reason, "discarded by policy");
        Self(())
    }
}

/// Which recipients (indexes into the envelope) are covered by what.
#[derive(Debug, Default)]
pub struct Covered {
    recipients: BTreeSet<u16>,
    text: String,
    proofs: Vec<Proof>,
}

impl Covered {
    /// Nobody yet; `text` is what the sender is told.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Adds recipients and what covers them.
    pub fn by(&mut self, recipients: impl IntoIterator<Item = u16>, proof: Proof) {
        self.recipients.extend(recipients);
        self.proofs.push(proof);
    }

    /// What the sender is told.
    pub fn say(&mut self, text: impl Into<String>) {
        self.text = text.into();
    }

    /// Whether nobody is covered.
    pub fn is_empty(&self) -> bool {
        self.recipients.is_empty()
    }
}

impl Promise for Covered {
    fn recipients(&self) -> usize {
        self.recipients.len()
    }

    fn text(&self) -> String {
        self.text.clone()
    }
}
