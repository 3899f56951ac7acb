//! Sender authentication: SPF, DKIM and DMARC of one message, with bounded DNS work.
//!
//! [`Authenticator`] is the seam: what a message is found to be comes from behind it, whoever evaluates.

mod dkim;
mod dmarc;
mod spf;

pub use spf::{Identity, check_host};

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::authentication::Authentication;
use crate::envelope::Envelope;
use crate::io::dns::{Budget, BudgetLimits, Resolver};
use crate::message::Message;

/// What is to be found out. DMARC needs the other two, and they are reported with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// SPF.
    pub spf: bool,
    /// DKIM.
    pub dkim: bool,
    /// DMARC.
    pub dmarc: bool,
}

impl Wanted {
    /// Everything.
    pub const ALL: Self = Self { spf: true, dkim: true, dmarc: true };

    /// What either wants: a message is evaluated once for all its tenants.
    pub fn or(self, other: Self) -> Self {
        Self { spf: self.spf || other.spf, dkim: self.dkim || other.dkim, dmarc: self.dmarc || other.dmarc }
    }
}

/// A message and what is to be found out about it.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Its envelope.
    pub envelope: &'a Envelope,
    /// The message as received.
    pub message: &'a Message,
    /// What is wanted.
    pub want: Wanted,
}

/// Whoever finds out.
pub trait Authenticator: Send + Sync {
    /// Never fails otherwise than by the results, and ends within the budget's time and a little.
    fn evaluate<'a>(&'a self, input: Input<'a>) -> BoxFuture<'a, Authentication>;
}

/// Parts of the count of one message, in this order: SPF, DKIM, DMARC. What a sender lets SPF or DKIM waste is not taken from the question
/// whether the domain in From wants the mail refused.
const SHARES: [u32; 3] = [3, 1, 2];

/// The evaluator of this gateway: our own SPF and DMARC, signatures verified by mail-auth on keys that we fetch.
pub struct Evaluator {
    resolver: Arc<dyn Resolver>,
    limits: BudgetLimits,
    signatures: dkim::Verifier,
}

impl Evaluator {
    /// `resolver` should have a cache in front. Must be called within a tokio runtime.
    pub fn new(resolver: Arc<dyn Resolver>, limits: BudgetLimits) -> Self {
        Self { resolver, limits, signatures: dkim::Verifier::new() }
    }

    async fn find_out(&self, input: Input<'_>) -> Authentication {
        let Input { envelope, message, want } = input;
        let share = |part: u32| self.limits.queries * part / SHARES.iter().sum::<u32>();
        let [for_spf, for_dkim, for_dmarc] = SHARES.map(share);
        let spf_budget = Budget::new(self.resolver.as_ref(), BudgetLimits { queries: for_spf, ..self.limits });
        let dkim_budget = spf_budget.beside(for_dkim);
        let dmarc_budget = spf_budget.beside(for_dmarc);

        let spf = async {
            // Without the client's own address there is nothing to judge (DESIGN.md 7).
            if (want.spf || want.dmarc) && envelope.client.address_known { Some(check_host(&spf_budget, identity(envelope)).await) } else { None }
        };
        let dkim =
            async { if want.dkim || want.dmarc { self.signatures.verify(&dkim_budget, message, envelope.received_ms / 1000).await } else { vec![] } };
        let policy = async { if want.dmarc { Some(dmarc::Evaluation::begin(&dmarc_budget, message).await) } else { None } };
        let (spf, dkim, policy) = futures_util::future::join3(spf, dkim, policy).await;

        let identity = identity(envelope);
        let mut found = Authentication { spf, spf_domain: String::new(), spf_helo: false, dkim, dmarc: None };
        if spf.is_some() {
            identity.domain.clone_into(&mut found.spf_domain);
            found.spf_helo = envelope.sender.is_none();
        }
        if let Some(policy) = policy {
            found.dmarc = policy.finish(&found).await;
        }
        found
    }
}

impl Authenticator for Evaluator {
    fn evaluate<'a>(&'a self, input: Input<'a>) -> BoxFuture<'a, Authentication> {
        Box::pin(self.find_out(input))
    }
}

/// MAIL FROM, or HELO for the null sender (RFC 7208 section 2.4).
fn identity(envelope: &Envelope) -> Identity<'_> {
    let client = &envelope.client;
    match &envelope.sender {
        Some(sender) => Identity { client: client.address, helo: &client.helo, local: &sender.local, domain: &sender.domain },
        None => Identity { client: client.address, helo: &client.helo, local: "postmaster", domain: &client.helo },
    }
}
