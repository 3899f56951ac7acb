//! The queue: what waits, for what, until when. Pure: `now_ms` (milliseconds since 1970) comes in, decisions go out.

pub mod expiry;
pub mod index;
pub mod outcome;
pub mod pacing;
pub mod retry;

pub use index::Queue;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::message::Edits;

/// What is written beside a body in the spool: enough to finish the message after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The envelope. A recipient's index in it is its slot in the spool.
    pub envelope: Envelope,
    /// Who gets which form of it; every recipient that is not finished when it is written stands in exactly one.
    pub groups: Vec<Group>,
}

/// Recipients that share a tenant, a form of the message and what is to be done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// `namespace/name` of the tenant.
    pub tenant: Arc<str>,
    /// Indexes into the envelope's recipients.
    pub recipients: Vec<u16>,
    /// The form of the message: edits of the shared body.
    pub edits: Edits,
    /// What is to be done.
    pub purpose: Purpose,
}

/// What is to be done with a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Deliver to the tenant's server.
    Deliver {
        /// An attempt ended unknown after the final dot: the first retry waits, and is counted.
        maybe_delivered: bool,
    },
    /// Judge again later (its recipients' disposition was Defer while others' was not).
    Rescan,
    /// Move to the tenant's quarantine.
    Quarantine {
        /// Why, for people.
        reason: String,
    },
    /// Move to the tenant's dead letters.
    DeadLetter {
        /// Why, for people.
        reason: String,
    },
}

impl Meta {
    /// As it is written: compact JSON.
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("only string keys and numbers, which JSON always takes").into()
    }

    /// Reads what [`Self::encode`] wrote. A meta whose groups name a recipient that the envelope lacks is an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let meta: Self = serde_json::from_slice(bytes).map_err(|error| format!("the queue's record does not read: {error}"))?;
        let recipients = meta.envelope.recipients.len();
        match meta.groups.iter().flat_map(|group| &group.recipients).find(|index| usize::from(**index) >= recipients) {
            Some(index) => Err(format!("the queue's record names recipient {index} of {recipients}")),
            None => Ok(meta),
        }
    }
}

#[cfg(test)]
mod tests;
