//! Replies (RFC 5321 section 4.2, RFC 2034): the type, reading them, writing them, and the table of every reply that we send.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A reply to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// RFC 3463 status, where there is one.
    pub enhanced: Option<(u8, u16, u16)>,
    /// Text, lines separated by LF, without code and status.
    pub text: String,
}

impl Reply {
    /// A reply with an enhanced status.
    pub fn new(code: u16, enhanced: (u8, u16, u16), text: impl Into<String>) -> Self {
        Self { code, enhanced: Some(enhanced), text: text.into() }
    }

    /// 2xx.
    pub const fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }
    /// 4xx.
    pub const fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }
    /// 5xx.
    pub const fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some((class, subject, detail)) = self.enhanced {
            write!(f, " {class}.{subject}.{detail}")?;
        }
        write!(f, " {}", self.text.replace('\n', " / "))
    }
}
