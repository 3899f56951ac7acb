//! What sender authentication found: pure results, and the `Authentication-Results` field (RFC 8601) made of them.
//!
//! Pure: records and fields in, terms and results out. Who asks DNS and verifies is `io::auth`.

pub mod dkim;
pub mod dmarc;
pub mod domain;
mod results;
pub mod spf;
pub mod spf_macro;
mod summary;
mod tags;

pub use results::forged_fields;

use serde::{Deserialize, Serialize};

/// A result word of SPF (RFC 7208 section 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spf {
    /// Authorised.
    Pass,
    /// Not authorised.
    Fail,
    /// Probably not authorised.
    SoftFail,
    /// No assertion.
    Neutral,
    /// No record.
    None,
    /// DNS failed for now.
    TempError,
    /// The record cannot be used.
    PermError,
}

/// A result word of one DKIM signature (RFC 8601 section 2.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dkim {
    /// Verified.
    Pass,
    /// Did not verify.
    Fail,
    /// Verified, but not acceptable (weak key, wrong algorithm).
    Policy,
    /// Could not be used.
    Neutral,
    /// DNS failed for now.
    TempError,
    /// The key or signature cannot be used.
    PermError,
}

/// A result word of DMARC (RFC 9989).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dmarc {
    /// Aligned and authenticated.
    Pass,
    /// Not.
    Fail,
    /// No record.
    None,
    /// DNS failed for now.
    TempError,
    /// The record or the From field cannot be used.
    PermError,
}

/// What the domain owner asks for (RFC 9989 section 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DmarcPolicy {
    /// Nothing.
    None,
    /// Treat as suspicious.
    Quarantine,
    /// Refuse.
    Reject,
}

/// One signature's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DkimResult {
    /// Result.
    pub result: Dkim,
    /// `d=`.
    pub domain: String,
    /// `s=`.
    pub selector: String,
    /// First characters of `b=` (RFC 6008).
    pub signature: String,
    /// Why, in words, where it is not a pass.
    pub reason: Option<String>,
}

/// The DMARC result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmarcResult {
    /// Result.
    pub result: Dmarc,
    /// The domain of From.
    pub from_domain: String,
    /// The policy that applies to it (`p`, `sp` or `np`, and `t=y` already applied).
    pub policy: DmarcPolicy,
}

/// Everything that was found; `None` means not evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authentication {
    /// SPF for MAIL FROM, or for HELO with the null sender.
    pub spf: Option<Spf>,
    /// The domain that SPF looked at, and whether it was HELO.
    pub spf_domain: String,
    /// SPF looked at HELO.
    pub spf_helo: bool,
    /// One per signature, at most ten.
    pub dkim: Vec<DkimResult>,
    /// DMARC.
    pub dmarc: Option<DmarcResult>,
}

#[cfg(test)]
mod tests;
