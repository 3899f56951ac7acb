//! The stream between a gateway and the operator: what `proto/sekimori/v1alpha1/stream.proto` says, as Rust, and what both sides must agree on.
//!
//! `generated.rs` is made from the `.proto` without a protoc binary (`make generate`) and checked fresh by a test.

mod generated;

pub use generated::*;

use crate::snapshot::RollingHash;

/// Bytes of parts in one piece of a way, at most, unless one part alone has more. With their keys and framing they stay below [`MESSAGE_BYTES_MAX`].
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// The largest message that either side decodes, in bytes. A part is far below it: every list and string in it is bounded.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Between two reports of a gateway, in milliseconds.
pub const REPORT_EVERY_MS: u64 = 2_000;
/// Samples of scans in one report, at most.
pub const SAMPLES_MAX: usize = 256;
/// Clients, refusing tenants and certificates named in one report, at most.
pub const NAMES_MAX: usize = 1_000;
/// A stream is asked for a fresh look at its token after so long, in milliseconds.
pub const TOKEN_REVIEW_EVERY_MS: u64 = 600_000;
/// Upper bounds of [`EngineReport::latency`]'s counters but the last, in milliseconds.
pub const LATENCY_BOUNDS_MS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

impl Position {
    /// A position.
    pub fn new(epoch: u64, number: u64, hash: RollingHash) -> Self {
        Self { epoch, number, hash: hash.to_bytes().to_vec() }
    }

    /// The hash. `None`: it has not 32 bytes.
    pub fn rolling_hash(&self) -> Option<RollingHash> {
        <[u8; 32]>::try_from(self.hash.as_slice()).ok().map(RollingHash::from_bytes)
    }
}
