//! Scanning engines: the trait that a protocol implements, and the guard around every one of them.
//!
//! A new protocol is one new file here and one line in [`connect`]. Engines do not know each other, nor SMTP, nor policy: they answer with a finding.

pub mod builtin_spam;
pub mod builtin_virus;
pub mod clamd;
pub mod fake;
pub mod guard;
pub mod rspamd;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::envelope::Envelope;
use crate::message::Message;
use crate::verdict::{Evidence, Failure, Finding};

/// What an engine is given.
#[derive(Clone, Debug)]
pub struct Job {
    /// The message.
    pub message: Arc<Message>,
    /// Its envelope.
    pub envelope: Arc<Envelope>,
    /// SHA-256 of the raw message: for convictions and caches.
    pub digest: [u8; 32],
}

/// What an engine answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The finding; never [`Finding::Failed`] from an engine itself.
    pub finding: Finding,
    /// Heuristic names.
    pub evidence: Vec<Evidence>,
    /// The version that answered, if the answer or the connection said so.
    pub version: Option<Arc<str>>,
}

/// A boxed future, as `async fn` in a trait is not object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A scanning engine: one protocol to one endpoint. Deadline, concurrency, breaker and probes are the guard's, not its own.
pub trait Engine: Send + Sync {
    /// Scans one message. May be dropped at any await (the deadline), and must then leave nothing behind but a closed connection.
    fn scan<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Answer, Failure>>;

    /// The version in use, asked for over the protocol where it has one.
    fn version(&self) -> BoxFuture<'_, Result<Arc<str>, Failure>>;
}
