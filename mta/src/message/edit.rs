//! Changes to a message as data: a list, applied all-or-nothing, that never copies the message.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Replace `at` (empty: insert before) by `with`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Bytes of the original.
    pub at: Range<usize>,
    /// What stands there instead; empty: removed.
    pub with: Bytes,
}

/// A list of edits, sorted, not overlapping.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edits(pub Vec<Edit>);
