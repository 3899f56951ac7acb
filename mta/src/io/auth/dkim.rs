//! DKIM: our own look at each signature and key, our own fetching of keys, and mail-auth for canonical forms, hashes and signatures.
//!
//! mail-auth asks no DNS here: it is given a cache that answers every question, with a key that we fetched or with an error.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use mail_auth::dkim::{DkimError, DomainKey, Signature, VerifySignature};
use mail_auth::dns::{ToFqdn, TxtRecordParser};
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{
    AuthenticatedMessage, DkimResult as Outcome, DnsCache, DnsError, Error, MessageAuthenticator, NoCache, Parameters, ResolverCache, TxtRecord,
};

use crate::authentication::dkim::{Algorithm, Candidate, SIGNATURES_MAX, Screened, screen, screen_key};
use crate::authentication::{Dkim, DkimResult};
use crate::io::dns::{Lookup, Resolver};
use crate::message::{Defect, HeaderField, Message};

/// Bytes of a message that are hashed on the spot; longer ones go to a thread that may block.
const BYTES_ON_THE_SPOT: usize = 128 * 1024;

/// Bytes of a header in which signatures are verified: mail-auth reads all of it again.
const HEADER_BYTES_MAX: usize = 256 * 1024;

/// Signatures that are verified on the spot.
const SIGNATURES_ON_THE_SPOT: usize = 3;

/// Verifies signatures.
pub(super) struct Verifier {
    /// `None` where it could not be built: then no signature can be verified.
    mail_auth: Option<Arc<MessageAuthenticator>>,
}

/// One signature on its way.
struct Job {
    screened: Screened,
    /// Which DKIM-Signature field of the message it is.
    value: std::ops::Range<usize>,
    key: Option<Bytes>,
}

impl Verifier {
    pub(super) fn new() -> Self {
        // A resolver without any server: whatever got past the cache would fail at once.
        let mail_auth = MessageAuthenticator::new(ResolverConfig::default(), ResolverOpts::default()).ok();
        Self { mail_auth: mail_auth.map(Arc::new) }
    }

    /// One result for each of the first ten signatures, in order.
    pub(super) async fn verify(&self, resolver: &dyn Resolver, message: &Message, now_s: u64) -> Vec<DkimResult> {
        let fields = message.fields("DKIM-Signature").take(SIGNATURES_MAX);
        let mut jobs: Vec<Job> = fields
            .map(|field| {
                let value = message.raw.get(field.value.clone()).unwrap_or_default();
                Job { screened: screen(value, message, now_s), value: field.value.clone(), key: None }
            })
            .collect();
        join_all(jobs.iter_mut().map(|job| fetch(resolver, job))).await;
        let waiting = jobs.iter().filter(|job| job.key.is_some()).count();
        if waiting == 0 {
            return jobs.into_iter().map(|job| job.screened.result).collect();
        }
        for job in jobs.iter_mut().filter(|job| job.key.is_some()) {
            job.screened.result.reason = Some("signature could not be verified".to_owned());
        }
        let large = message.body_offset > HEADER_BYTES_MAX || message.defects.contains(&Defect::HeadersTooLarge);
        let Some(mail_auth) = self.mail_auth.clone().filter(|_| !large) else { return unverified(jobs) };
        let value = |field: &HeaderField| message.raw.get(field.value.clone()).map(|value| message.raw.slice_ref(value)).unwrap_or_default();
        let task = Task {
            mail_auth,
            raw: message.raw.clone(),
            body_offset: message.body_offset,
            from: message.fields("From").next().map(value).unwrap_or_default(),
            signatures: message.fields("DKIM-Signature").count(),
            jobs,
        };
        let frames: Vec<DkimResult> = task.jobs.iter().map(|job| job.screened.result.clone()).collect();
        // Hostile bytes meet foreign code here: should it ever panic, that costs the signatures and nothing else.
        let guarded = move || std::panic::catch_unwind(AssertUnwindSafe(|| task.run())).ok();
        let verified = if message.raw.len() <= BYTES_ON_THE_SPOT && waiting <= SIGNATURES_ON_THE_SPOT {
            guarded()
        } else {
            tokio::task::spawn_blocking(guarded).await.ok().flatten()
        };
        verified.unwrap_or(frames)
    }
}

/// Gets the key of a signature that is worth it, and looks at it.
async fn fetch(resolver: &dyn Resolver, job: &mut Job) {
    let Some(candidate) = &job.screened.candidate else { return };
    let (result, reason) = match resolver.txt(&candidate.key_name).await {
        Lookup::Records(records) => match usable_key(&records, candidate) {
            Ok(key) => {
                job.key = Some(key);
                return;
            }
            Err(refusal) => refusal,
        },
        Lookup::Absent(_) => (Dkim::PermError, "no key"),
        Lookup::TempError | Lookup::Malformed => (Dkim::TempError, "key could not be fetched"),
    };
    job.screened.result.result = result;
    job.screened.result.reason = Some(reason.to_owned());
}

/// The first record that can be used, else why the first cannot.
fn usable_key(records: &[Bytes], candidate: &Candidate) -> Result<Bytes, (Dkim, &'static str)> {
    let mut refusal = None;
    for record in records {
        match screen_key(record, candidate) {
            Ok(()) => return Ok(record.clone()),
            Err(why) => refusal = refusal.or(Some(why)),
        }
    }
    Err(refusal.unwrap_or((Dkim::PermError, "no key")))
}

fn unverified(jobs: Vec<Job>) -> Vec<DkimResult> {
    jobs.into_iter().map(|job| job.screened.result).collect()
}

/// Everything that the processor does, without waiting for anything.
struct Task {
    mail_auth: Arc<MessageAuthenticator>,
    raw: Bytes,
    body_offset: usize,
    /// Value of the one From field.
    from: Bytes,
    /// DKIM-Signature fields of the message.
    signatures: usize,
    jobs: Vec<Job>,
}

impl Task {
    fn run(mut self) -> Vec<DkimResult> {
        let raw = self.raw.clone();
        let parsed = AuthenticatedMessage::parse(&raw);
        let Some(mut parsed) = parsed.filter(|parsed| self.same_view(parsed)) else {
            for job in self.jobs.iter_mut().filter(|job| job.key.is_some()) {
                set(job, Dkim::Neutral, "header of the message is broken");
            }
            return unverified(self.jobs);
        };
        let wanted = self.wanted(&parsed);
        let mut number = 0;
        parsed.retain_dkim_signatures(|_| {
            let keep = wanted.iter().any(|(place, _)| *place == number);
            number += 1;
            if keep { Ok(()) } else { Err(DkimError::UnsupportedAlgorithm) }
        });
        let keys = Keys::new(&parsed, wanted.iter().map(|(_, job)| self.jobs.get(*job).and_then(|job| job.key.as_ref())));
        let outputs = self.mail_auth.verify_dkim(Parameters::new(&parsed).with_cache(&keys)).now_or_never().unwrap_or_default();
        // Rejected ones come first and have no signature; the rest follow in the order of their fields.
        let verified = outputs.iter().filter(|output| output.signature().is_some());
        for ((_, job), output) in wanted.iter().zip(verified) {
            if let Some(job) = self.jobs.get_mut(*job) {
                let (result, reason) = if output.is_atps() { (Dkim::Pass, "") } else { outcome(output.result()) };
                set(job, result, reason);
            }
        }
        unverified(self.jobs)
    }

    /// mail-auth reads the header once more: what it sees must be what the rest of the gateway sees, or a signature might cover another message.
    fn same_view(&self, parsed: &AuthenticatedMessage<'_>) -> bool {
        let named = |name: &'static str| parsed.headers().iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
        let mut from = named("from").map(|(_, value)| value.trim_ascii());
        parsed.body_offset() == self.body_offset
            && (from.next(), from.next()) == (Some(self.from.trim_ascii()), None)
            && named("dkim-signature").count() == self.signatures
    }

    /// Signatures to verify: their place among those that mail-auth could parse, and among our jobs.
    fn wanted(&mut self, parsed: &AuthenticatedMessage<'_>) -> Vec<(usize, usize)> {
        let mut wanted = vec![];
        let mut place = 0;
        for (number, job) in self.jobs.iter_mut().enumerate() {
            let value = self.raw.get(job.value.clone()).unwrap_or_default();
            // The same tests as in `AuthenticatedMessage`: what fails them is not in its list.
            let Some(signature) = Signature::parse(value).ok().filter(|signature| signature.l == 0) else {
                if job.key.is_some() {
                    set(job, Dkim::Neutral, "signature cannot be read");
                }
                continue;
            };
            if job.key.is_some() {
                let same = parsed.dkim_signatures().get(place).is_some_and(|header| header.header == signature);
                if same && agrees(&signature, &job.screened) {
                    wanted.push((place, number));
                } else {
                    set(job, Dkim::Neutral, "signature is ambiguous");
                }
            }
            place += 1;
        }
        wanted
    }
}

/// mail-auth's reading of a signature and ours are the same.
fn agrees(signature: &Signature, screened: &Screened) -> bool {
    let Some(candidate) = &screened.candidate else { return false };
    let algorithm = match candidate.algorithm {
        Algorithm::Rsa => mail_auth::crypto::Algorithm::RsaSha256,
        Algorithm::Ed25519 => mail_auth::crypto::Algorithm::Ed25519Sha256,
    };
    let key_name = crate::authentication::domain::normalise(&signature.domain_key());
    signature.a == algorithm && signature.v == 1 && key_name.as_deref() == Some(&candidate.key_name)
}

fn set(job: &mut Job, result: Dkim, reason: &str) {
    job.screened.result.result = result;
    job.screened.result.reason = (!reason.is_empty()).then(|| reason.to_owned());
}

fn outcome(outcome: &Outcome) -> (Dkim, &'static str) {
    match outcome {
        Outcome::Pass => (Dkim::Pass, ""),
        Outcome::Neutral(Error::Dkim(DkimError::BodyHashMismatch)) => (Dkim::Fail, "body was changed"),
        Outcome::Neutral(Error::Dkim(DkimError::SignatureExpired)) => (Dkim::PermError, "signature has expired"),
        Outcome::Fail(Error::Dkim(DkimError::AuidMismatch)) => (Dkim::PermError, "identity is outside the signing domain"),
        Outcome::Fail(_) => (Dkim::Fail, "signature does not verify"),
        Outcome::PermError(_) => (Dkim::PermError, "key cannot be used"),
        Outcome::TempError(_) => (Dkim::TempError, "key could not be fetched"),
        Outcome::Neutral(_) | Outcome::None => (Dkim::Neutral, "signature cannot be read"),
    }
}

/// The keys of one message, as the cache that mail-auth looks into before it would ask DNS.
struct Keys(HashMap<Box<str>, TxtRecord>);

impl Keys {
    /// `keys` in the order of the signatures that were kept.
    fn new<'a>(parsed: &AuthenticatedMessage<'_>, keys: impl Iterator<Item = Option<&'a Bytes>>) -> Self {
        let names = parsed.dkim_signatures().iter().map(|header| header.header.domain_key().to_fqdn().into_owned().into_boxed_str());
        let records = keys.map(|key| TxtRecord::from(DomainKey::parse(key.map_or(&[][..], |key| key))));
        Self(names.zip(records).collect())
    }
}

impl ResolverCache<Box<str>, TxtRecord> for Keys {
    /// Answers always: what is not here does not exist.
    fn get<Q>(&self, name: &Q) -> Option<TxtRecord>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        Some(self.0.get(name).cloned().unwrap_or(TxtRecord::Error(Error::Dns(DnsError::InvalidRecordType))))
    }

    fn remove<Q>(&self, _: &Q) -> Option<TxtRecord>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: TxtRecord, _: Instant) {}
}

impl DnsCache for Keys {
    type Txt = Self;
    type Mx = NoCache;
    type Ipv4 = NoCache;
    type Ipv6 = NoCache;
    type Ptr = NoCache;

    fn txt(&self) -> Option<&Self> {
        Some(self)
    }

    fn mx(&self) -> Option<&NoCache> {
        None
    }

    fn ipv4(&self) -> Option<&NoCache> {
        None
    }

    fn ipv6(&self) -> Option<&NoCache> {
        None
    }

    fn ptr(&self) -> Option<&NoCache> {
        None
    }
}
