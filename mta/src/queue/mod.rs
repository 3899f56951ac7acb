//! The queue: what waits, for what, until when. Pure: `now_ms` (milliseconds since 1970) comes in, decisions go out.

pub mod expiry;
pub mod index;
pub mod outcome;
pub mod pacing;
pub mod retry;

pub use index::Queue;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::message::Edits;

/// What is written beside a body in the spool: enough to finish the message after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Meta {
    /// The envelope. A recipient's index in it is its slot in the spool.
    pub envelope: Envelope,
    /// Who gets which form of it; every recipient that is not finished when it is written stands in exactly one.
    pub groups: Vec<Group>,
}

/// Recipients that share a tenant, a form of the message and what is to be done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// [`Meta`] as it is written.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    envelope: Cow<'a, Envelope>,
    /// What is only taken away in the form of every group that says so: it is written once, as senders choose its size, and the number of groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    removed: Vec<(usize, usize)>,
    groups: Vec<WrittenGroup<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WrittenGroup<'a> {
    tenant: Cow<'a, Arc<str>>,
    recipients: Cow<'a, [u16]>,
    edits: Cow<'a, Edits>,
    /// [`Written::removed`] belongs to its edits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    shares_removed: bool,
    purpose: Cow<'a, Purpose>,
}

/// Bytes of memory that a record takes for each of its bytes on disk while it is read: those bytes, and what is made of them, in which a short address and
/// its domain are two allocations.
const RECORD_FACTOR: u64 = 3;

/// Bytes of memory that a message and its record take, at most.
pub const fn memory_bytes(body_bytes: u64, meta_bytes: u64) -> u64 {
    body_bytes.saturating_add(meta_bytes.saturating_mul(RECORD_FACTOR))
}

impl Meta {
    /// As it is written: compact JSON. What is only taken away from the message stands once where several groups have it.
    pub fn encode(&self) -> Bytes {
        let shared = match self.groups.as_slice() {
            [first, rest @ ..] if rest.iter().any(|group| group.edits.removed() == first.edits.removed()) => &first.edits.removed()[..],
            _ => &[],
        };
        let groups = self.groups.iter().map(|group| {
            let shares_removed = !shared.is_empty() && group.edits.removed()[..] == *shared;
            WrittenGroup {
                tenant: Cow::Borrowed(&group.tenant),
                recipients: Cow::Borrowed(&group.recipients),
                edits: if shares_removed { Cow::Owned(group.edits.without_removed()) } else { Cow::Borrowed(&group.edits) },
                shares_removed,
                purpose: Cow::Borrowed(&group.purpose),
            }
        });
        let written = Written {
            envelope: Cow::Borrowed(&self.envelope),
            removed: shared.iter().map(|range| (range.start, range.end)).collect(),
            groups: groups.collect(),
        };
        serde_json::to_vec(&written).expect("only string keys and numbers, which JSON always takes").into()
    }

    /// Reads what [`Self::encode`] wrote. A meta whose groups name a recipient that the envelope lacks is an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let unreadable = |why: &dyn std::fmt::Display| format!("the queue's record does not read: {why}");
        let written: Written<'_> = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
        let removed: Arc<[Range<usize>]> = written.removed.into_iter().map(|(start, end)| start..end).collect();
        let mut groups = vec![];
        for group in written.groups {
            let mut edits = group.edits.into_owned();
            if group.shares_removed {
                edits = edits.with_removed(&removed);
                edits.check(usize::MAX).map_err(|error| unreadable(&error))?;
            }
            let (tenant, recipients, purpose) = (group.tenant.into_owned(), group.recipients.into_owned(), group.purpose.into_owned());
            groups.push(Group { tenant, recipients, edits, purpose });
        }
        let meta = Self { envelope: written.envelope.into_owned(), groups };
        let recipients = meta.envelope.recipients.len();
        match meta.groups.iter().flat_map(|group| &group.recipients).find(|index| usize::from(**index) >= recipients) {
            Some(index) => Err(format!("the queue's record names recipient {index} of {recipients}")),
            None => Ok(meta),
        }
    }
}

#[cfg(test)]
mod tests;
