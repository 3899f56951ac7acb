//! One verdict from many opinions: pure.

use std::sync::Arc;

use sekimori_crds::vocabulary::{EngineClass, EngineMode};
use serde::{Deserialize, Serialize};

/// What one engine said of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opinion {
    /// Name of the engine.
    pub engine: Arc<str>,
    /// Engines of one family share a vote.
    pub family: Arc<str>,
    /// Its class.
    pub class: EngineClass,
    /// The version that answered, as the engine or its object says; `?` when unknown.
    pub version: Arc<str>,
    /// Enforce counts; Shadow is only measured.
    pub mode: EngineMode,
    /// Weight, 100 is full.
    pub weight_percent: u32,
    /// How long it took.
    pub millis: u32,
    /// What it found.
    pub finding: Finding,
    /// Heuristic names: evidence of spam by an engine of any class, never proof of malware.
    pub evidence: Vec<Evidence>,
}

/// What a scan found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// A complete scan found nothing (anti-virus).
    Clean,
    /// A complete scan gave a score (anti-spam), low or high.
    Spam(SpamScore),
    /// Malware, by this name.
    Infected(String),
    /// A scan that could not see everything.
    Unscannable(Unscannable),
    /// No scan.
    Failed(Failure),
}

/// Why a scan could not see everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unscannable {
    /// Content is encrypted.
    Encrypted,
    /// The message is larger than the engine takes.
    TooLarge,
    /// Depth, number, size or time within the engine ran out.
    LimitsExceeded,
    /// Content is broken beyond reading.
    Malformed,
    /// This content killed the engine before (a conviction), so it is not given to it again.
    Convicted,
}

/// Why there was no scan.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Failure {
    /// No answer within the deadline.
    Timeout,
    /// Cut off by its circuit breaker.
    BreakerOpen,
    /// All its scan slots stayed taken.
    Busy,
    /// No connection, or it broke.
    Unreachable(String),
    /// An answer that the protocol does not allow.
    Protocol(String),
}

/// A score in the engine's own unit, and what the engine makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpamScore {
    /// Thousandths of a point.
    pub milli: i64,
    /// Its threshold for spam, thousandths of a point, above zero.
    pub required_milli: i64,
    /// Its threshold for rejection, thousandths of a point, above `required_milli`.
    pub reject_milli: i64,
    /// The engine is certain (GTUBE, forced reject): decides alone.
    pub certain: bool,
}

/// Something that makes spam more likely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The name that the engine gave.
    pub name: String,
    /// How much it says.
    pub decibans: i32,
}
