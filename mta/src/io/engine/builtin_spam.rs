//! The anti-spam engine inside the gateway: the signs of `content::spam`. It asks nobody and learns nothing, so it answers at once.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Answer, BoxFuture, Engine, Job};
use crate::content::spam::{self, REJECT_MILLI, REQUIRED_MILLI, table};
use crate::verdict::{Evidence, Failure, Finding, SpamScore};

/// The engine.
#[derive(Debug)]
pub struct BuiltinSpam {
    version: Arc<str>,
}

impl BuiltinSpam {
    /// An engine. Its version names the table: `builtin-<version of this crate>+rules-<first 8 digits of the table's SHA-256>`.
    pub fn new() -> Self {
        let mut hash = Sha256::new();
        for sign in table::ALL {
            hash.update(sign.name);
            hash.update(sign.milli.to_le_bytes());
        }
        let digest = hash.finalize();
        let short = digest.iter().take(4).fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
        Self { version: format!("builtin-{}+rules-{short:08x}", env!("CARGO_PKG_VERSION")).into() }
    }
}

impl Default for BuiltinSpam {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for BuiltinSpam {
    fn scan<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            let judgement = spam::judge(&job.message, &job.envelope);
            // The score counts; the names explain it, and weigh nothing by themselves, or they would count twice.
            let evidence = judgement.signs.iter().map(|sign| Evidence { name: sign.name.to_owned(), decibans: 0 }).collect();
            let score = SpamScore { milli: judgement.milli, required_milli: REQUIRED_MILLI, reject_milli: REJECT_MILLI, certain: judgement.certain };
            Ok(Answer { finding: Finding::Spam(score), evidence, version: Some(Arc::clone(&self.version)) })
        })
    }

    fn version(&self) -> BoxFuture<'_, Result<Arc<str>, Failure>> {
        Box::pin(async { Ok(Arc::clone(&self.version)) })
    }
}
