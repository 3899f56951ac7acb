//! The queue: what waits, for what, until when. Pure: `now_ms` (milliseconds since 1970) comes in, decisions go out.

use std::sync::Arc;

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
