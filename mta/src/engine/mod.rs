//! What is decided about engines without touching one: breaker, suspects and convicts, probe samples, and what the bytes of a reply mean.
//!
//! Pure: state and `now_ms` come in, data goes out. The sockets are in the `io` half.

pub mod breaker;
pub mod clamd;
pub mod convicts;
pub mod probe;
pub mod rspamd;
pub mod tally;

use crate::verdict::{Evidence, Finding};

/// Bytes of an engine's own text (names, errors, versions) that are kept: they end in headers and logs.
pub const TEXT_BYTES_MAX: usize = 120;

/// What a reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The finding.
    pub finding: Finding,
    /// Names that are evidence, not proof.
    pub evidence: Vec<Evidence>,
}

impl Reading {
    /// A finding with no evidence.
    pub const fn plain(finding: Finding) -> Self {
        Self { finding, evidence: vec![] }
    }
}

/// An engine's own text made harmless: printable ASCII, at most [`TEXT_BYTES_MAX`] bytes.
pub fn harmless(text: &[u8]) -> String {
    text.iter().take(TEXT_BYTES_MAX).map(|byte| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_text_cannot_break_a_header() {
        assert_eq!(harmless(b"Win.Test\r\nX-Evil: 1\0\xff"), "Win.Test??X-Evil: 1??");
        assert_eq!(harmless(&[b'a'; 5000]).len(), TEXT_BYTES_MAX);
    }
}
