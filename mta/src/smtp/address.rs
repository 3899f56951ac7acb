//! Mailboxes of the envelope (RFC 5321 section 4.1.2, RFC 6531).

use std::fmt;

use serde::{Deserialize, Serialize};

/// A mailbox of the envelope. The domain is lower case; an address literal keeps its brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// Local part as received, without surrounding quotes taken off.
    pub local: String,
    /// Domain, lower case.
    pub domain: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}
