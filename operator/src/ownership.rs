//! Who has which domain. A namespace cannot take a domain by writing a CR: it needs a grant, a DNS proof, or a fleet that trusts everybody. Who was
//! *accepted* first keeps it, and that is recorded, so that an object that is restored or made again does not lose its place to a rival.
//!
//! One [`Ledger`] for each fleet. It is kept in shards (ConfigMaps in the operator's namespace, never in a tenant's), see [`Ledger::shard`] and
//! [`read_shard`]. Nothing here asks DNS or a cluster: what was found comes in as [`Proof`].
//!
//! Rules:
//! * a claim outlives its tenant by 72 hours, or not at all with the annotation `sekimori.dev/release-domains: "true"`; the same holds for a tenant that
//!   takes a domain off its list, and for one whose grant is gone;
//! * wildcards of two tenants may lie within each other only where each proves its own (grants and DNS); else the first one keeps everything below it;
//! * a name that is not a wildcard goes before every wildcard, as in routing;
//! * a DNS failure takes nothing away: a domain that was accepted once is not asked for again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use data_encoding::BASE32_NOPAD;
use sekimori_crds::compile::{Grants, Overlap};
use sekimori_crds::vocabulary::Ownership;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How long a claim outlives its tenant, in milliseconds.
pub const RELEASE_AFTER_MS: u64 = 72 * 3_600_000;
/// Shards of one fleet's ledger. With 100,000 domains each has some 400, about 100 KiB; [`SHARD_BYTES_MAX`] is reached with some 900,000.
pub const SHARDS: usize = 256;
/// No claim is taken into a shard beyond so many octets. The API server takes 1 MiB, and a shard that it does not take could never be recorded again.
pub const SHARD_BYTES_MAX: usize = 900 << 10;
/// A namespace has so many of them: names can be chosen so that they meet in one shard, and then others must still find room there.
pub const NAMESPACE_SHARD_BYTES_MAX: usize = SHARD_BYTES_MAX / 2;
/// Octets of a record apart from its names, with everything in it that may be added later. A record that grows must fit, too.
const RECORD_BYTES: usize = 128;

/// A tenant: namespace and name. Not its uid: a restored object is the same tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tenant {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Tenant {
    /// A tenant.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is known about a namespace's right to a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It may claim it.
    Given,
    /// It may not; the text says what is to be done.
    Missing(String),
    /// It could not be found out now (DNS did not answer). An accepted claim stays, a new one waits.
    Unclear(String),
}

/// Whether the fleet's grants cover a domain.
pub fn granted(grants: &Grants, namespace: &str, domain: &str) -> Proof {
    if grants.cover(namespace, domain) {
        return Proof::Given;
    }
    Proof::Missing(format!("no DomainGrant lets namespace {namespace} claim it: add it to a DomainGrant's spec.domains"))
}

/// What DNS said about the name of [`proof_name`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxtAnswer {
    /// These texts (each with its strings joined); none: there is no such name or no TXT at it.
    Texts(Vec<String>),
    /// No answer that can be relied on.
    Failed(String),
}

/// Where the proof of a domain is looked for. A wildcard's stands at the name below which it is.
pub fn proof_name(domain: &str) -> String {
    format!("_sekimori.{}", domain.strip_prefix("*.").unwrap_or(domain))
}

/// The text that proves it: bound to this installation, the namespace and the domain, so that it is of no use anywhere else.
pub fn proof_text(installation: &str, namespace: &str, domain: &str) -> String {
    let mut hash = Sha256::new();
    // Neither a namespace nor a domain has a line end, so no two triples run together.
    hash.update(format!("{installation}\n{namespace}\n{domain}"));
    format!("v=sekimori1; proof={}", BASE32_NOPAD.encode(&hash.finalize()).to_ascii_lowercase())
}

/// Whether DNS proves it. White space and case do not matter; other texts at the name do not either.
pub fn proved(answer: &TxtAnswer, installation: &str, namespace: &str, domain: &str) -> Proof {
    let wanted = proof_text(installation, namespace, domain);
    let plain = |text: &str| text.chars().filter(|c| !c.is_ascii_whitespace()).collect::<String>().trim_end_matches(';').to_ascii_lowercase();
    match answer {
        TxtAnswer::Texts(texts) if texts.iter().any(|text| plain(text) == plain(&wanted)) => Proof::Given,
        TxtAnswer::Texts(_) => Proof::Missing(format!(
            "it is not proved: add the TXT record {} \"{wanted}\"; it is looked for again after half a minute, and then more seldom, up to every 10 minutes",
            proof_name(domain)
        )),
        TxtAnswer::Failed(why) => Proof::Unclear(format!(
            "DNS does not say whether it is proved ({why}): it is asked again; the TXT record is {} \"{wanted}\"",
            proof_name(domain)
        )),
    }
}

/// One recorded claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// The domain or wildcard.
    pub domain: Arc<str>,
    /// Who has it.
    pub holder: Arc<Tenant>,
    /// Since when, in milliseconds.
    pub since_ms: u64,
    /// Since when its tenant claims it no more, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_since_ms: Option<u64>,
    /// What it rests on. `None`: it was recorded before that was, and counts as resting on what the fleet asks for when it is looked at next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<Basis>,
}

impl Record {
    /// Octets that it takes at most.
    fn bytes(&self) -> usize {
        RECORD_BYTES + self.domain.len() + self.holder.namespace.len() + self.holder.name.len()
    }
}

/// What a claim rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Basis {
    /// The fleet trusted everybody.
    Trust,
    /// A grant, or DNS.
    Proof,
}

/// What came of one claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The domain.
    pub domain: String,
    /// What came of it.
    pub verdict: Verdict,
}

/// What came of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is this tenant's.
    Held,
    /// Another one has it.
    Conflict {
        /// Who.
        holder: Arc<Tenant>,
        /// By this claim: the same domain, or a wildcard that overlaps.
        by: Arc<str>,
        /// When it will be free, in milliseconds, if the holder claims it no more.
        free_at_ms: Option<u64>,
    },
    /// There is no proof, or no room; the text says what is to be done.
    Unproved(String),
}

/// Whether wildcards of two tenants may lie within each other.
pub const fn overlap(ownership: Ownership) -> Overlap {
    match ownership {
        Ownership::Grant | Ownership::DnsTxt => Overlap::MoreSpecificWins,
        Ownership::Trust => Overlap::FirstWins,
    }
}

/// The claims on one fleet. Every change costs the tenant's domains and their depth, never the number of tenants.
#[derive(Clone, Debug)]
pub struct Ledger {
    overlap: Overlap,
    /// By shard and domain: one shard is written without a look at the others.
    shards: Vec<BTreeMap<Arc<str>, Record>>,
    /// The domains of each holder.
    held: BTreeMap<Arc<Tenant>, Vec<Arc<str>>>,
    /// For each name above a held wildcard, the wildcards below it; empty where they do not matter.
    below: BTreeMap<String, BTreeSet<Arc<str>>>,
    /// When claims of tenants that are gone run out.
    expiry: BTreeSet<(u64, Arc<str>)>,
    /// Shards that differ from what was last taken for writing.
    dirty: BTreeSet<u8>,
    /// By shard: domains whose claims are new since it was written last. They must not take effect yet.
    fresh: BTreeMap<u8, BTreeSet<Arc<str>>>,
    /// Octets of each shard, at most.
    bytes: Vec<usize>,
}

/// The names above a domain.
fn parents(domain: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(domain.split_once('.').map(|(_, parent)| parent), |name| name.split_once('.').map(|(_, parent)| parent))
}

impl Ledger {
    /// The claims that were recorded. Of two records of one domain (a restored backup beside a newer one) the older claim counts.
    pub fn new(overlap: Overlap, records: impl IntoIterator<Item = Record>) -> Self {
        let shards = vec![BTreeMap::new(); SHARDS];
        let mut ledger = Self {
            overlap,
            shards,
            held: BTreeMap::new(),
            below: BTreeMap::new(),
            expiry: BTreeSet::new(),
            dirty: BTreeSet::new(),
            fresh: BTreeMap::new(),
            bytes: vec![0; SHARDS],
        };
        for record in records {
            match ledger.record(&record.domain) {
                Some(there) if there.since_ms <= record.since_ms => {}
                Some(_) => {
                    ledger.remove(&record.domain);
                    ledger.insert(record);
                }
                None => ledger.insert(record),
            }
        }
        ledger.dirty.clear();
        ledger.fresh.clear();
        ledger
    }

    /// The fleet wants domains proved in another way from now on. Claims stay as they are, and so does what is still to be written.
    pub fn set_overlap(&mut self, overlap: Overlap) {
        self.overlap = overlap;
        self.below.clear();
        let wildcards: Vec<Arc<str>> = self.records().map(|record| &record.domain).filter(|domain| domain.starts_with("*.")).cloned().collect();
        wildcards.iter().for_each(|domain| self.index_below(domain));
    }

    /// Whether a claim is recorded nowhere yet.
    pub fn is_fresh(&self, domain: &str) -> bool {
        self.fresh.get(&shard_of(domain)).is_some_and(|fresh| fresh.contains(domain))
    }

    /// What a claim that is taken now rests on.
    const fn basis(&self) -> Basis {
        match self.overlap {
            Overlap::FirstWins => Basis::Trust,
            Overlap::MoreSpecificWins => Basis::Proof,
        }
    }

    /// Who has a domain.
    pub fn record(&self, domain: &str) -> Option<&Record> {
        self.shards.get(usize::from(shard_of(domain)))?.get(domain)
    }

    fn records_of(&mut self, domain: &str) -> &mut BTreeMap<Arc<str>, Record> {
        self.shards.get_mut(usize::from(shard_of(domain))).expect("there are as many shards as a byte has values")
    }

    /// The domains that a tenant holds, those that run out included.
    pub fn held_by(&self, tenant: &Tenant) -> impl Iterator<Item = &Arc<str>> {
        self.held.get(tenant).into_iter().flatten()
    }

    /// Everybody who holds a domain.
    pub fn holders(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.held.keys()
    }

    /// Every claim.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.shards.iter().flat_map(BTreeMap::values)
    }

    /// The domains that a tenant says now, each with its proof. What it said before and says no more begins to run out.
    pub fn claim(&mut self, tenant: &Tenant, domains: &[(String, Proof)], now_ms: u64) -> Vec<Claim> {
        self.expire(now_ms);
        let said: BTreeSet<&str> = domains.iter().map(|(domain, _)| domain.as_str()).collect();
        let dropped: Vec<Arc<str>> = self.held.get(tenant).into_iter().flatten().filter(|domain| !said.contains(&***domain)).cloned().collect();
        for domain in dropped {
            self.mark_gone(&domain, Some(now_ms));
        }
        domains.iter().map(|(domain, proof)| Claim { domain: domain.clone(), verdict: self.one(tenant, domain, proof, now_ms) }).collect()
    }

    fn one(&mut self, tenant: &Tenant, domain: &str, proof: &Proof, now_ms: u64) -> Verdict {
        let held = self.record(domain).is_some_and(|record| *record.holder == *tenant);
        match proof {
            Proof::Missing(why) if held => {
                // It loses its place only after a while: a grant that was edited by mistake comes back.
                self.mark_gone(domain, Some(now_ms));
                return Verdict::Unproved(why.clone());
            }
            Proof::Missing(why) => return Verdict::Unproved(why.clone()),
            Proof::Unclear(why) if !held => return Verdict::Unproved(why.clone()),
            Proof::Given | Proof::Unclear(_) => {}
        }
        if held {
            self.mark_gone(domain, None);
            self.rest_on(domain, matches!(proof, Proof::Given));
            return Verdict::Held;
        }
        if let Some(rival) = self.rival(tenant, domain) {
            let free_at_ms = rival.gone_since_ms.map(|since| since.saturating_add(RELEASE_AFTER_MS));
            return Verdict::Conflict { holder: rival.holder.clone(), by: rival.domain.clone(), free_at_ms };
        }
        let holder = self.held.get_key_value(tenant).map_or_else(|| Arc::new(tenant.clone()), |(known, _)| Arc::clone(known));
        let record = Record { domain: domain.into(), holder, since_ms: now_ms, gone_since_ms: None, basis: Some(self.basis()) };
        if let Some(why) = self.no_room(&record) {
            return Verdict::Unproved(why);
        }
        self.insert(record);
        Verdict::Held
    }

    /// Why there is no room for a claim. A walk over its shard only where that is half full.
    fn no_room(&self, record: &Record) -> Option<String> {
        let shard = usize::from(shard_of(&record.domain));
        let all = self.bytes.get(shard).copied().unwrap_or_default() + record.bytes();
        if all > SHARD_BYTES_MAX {
            return Some(format!(
                "the claims that are recorded together with it are full ({} KiB of claims on this fleet, the most that one of {SHARDS} records may have): release domains that are not in use, or use another fleet for it",
                SHARD_BYTES_MAX >> 10
            ));
        }
        if all <= NAMESPACE_SHARD_BYTES_MAX {
            return None;
        }
        let namespace = &record.holder.namespace;
        let theirs = self.shards.get(shard)?.values().filter(|known| known.holder.namespace == *namespace).map(Record::bytes).sum::<usize>();
        (theirs + record.bytes() > NAMESPACE_SHARD_BYTES_MAX).then(|| {
            format!(
                "namespace {namespace} has as many claims recorded together with it as a namespace may have ({} KiB in one of {SHARDS} records): release domains that are not in use, or claim a wildcard for many of them",
                NAMESPACE_SHARD_BYTES_MAX >> 10
            )
        })
    }

    /// A claim that is held was looked at again. Once proved it stays so, whatever the fleet asks for later.
    fn rest_on(&mut self, domain: &str, given: bool) {
        let basis = self.basis();
        let Some(record) = self.records_of(domain).get_mut(domain) else { return };
        let now = match (record.basis, basis) {
            (None, basis) => basis,
            (Some(Basis::Trust), Basis::Proof) if given => Basis::Proof,
            (Some(before), _) => before,
        };
        if record.basis != Some(now) {
            record.basis = Some(now);
            self.dirty.insert(shard_of(domain));
        }
    }

    /// A tenant that is deleted. `release`: it had the annotation, so its domains are free at once.
    pub fn gone(&mut self, tenant: &Tenant, release: bool, now_ms: u64) {
        let domains: Vec<Arc<str>> = self.held.get(tenant).into_iter().flatten().cloned().collect();
        for domain in domains {
            if release {
                self.remove(&domain);
            } else {
                self.mark_gone(&domain, Some(now_ms));
            }
        }
    }

    /// After a start: every holder that is not among the tenants there are is gone, for as long as is known.
    pub fn reconcile(&mut self, there: &BTreeSet<Tenant>, now_ms: u64) {
        let gone: Vec<Arc<Tenant>> = self.held.keys().filter(|holder| !there.contains(&***holder)).cloned().collect();
        for tenant in gone {
            self.gone(&tenant, false, now_ms);
        }
    }

    /// Releases what has run out, and says which domains are free now: their rivals are to be looked at again.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Arc<str>> {
        let mut freed = vec![];
        while let Some((at, domain)) = self.expiry.first().cloned() {
            if at > now_ms {
                break;
            }
            self.remove(&domain);
            freed.push(domain);
        }
        freed
    }

    /// When [`Self::expire`] has something to do next, in milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// Who has a domain, or overlaps with it, other than `tenant`.
    fn rival(&self, tenant: &Tenant, domain: &str) -> Option<&Record> {
        let other = |domain: &str| self.record(domain).filter(|record| *record.holder != *tenant);
        if let Some(record) = other(domain) {
            return Some(record);
        }
        let name = domain.strip_prefix("*.").filter(|_| self.overlap == Overlap::FirstWins)?;
        let above = parents(name).find_map(|parent| other(&format!("*.{parent}")));
        above.or_else(|| self.below.get(name)?.iter().find_map(|wildcard| other(wildcard)))
    }

    fn insert(&mut self, record: Record) {
        let domain = Arc::clone(&record.domain);
        let shard = shard_of(&domain);
        self.dirty.insert(shard);
        self.fresh.entry(shard).or_default().insert(Arc::clone(&domain));
        if let Some(bytes) = self.bytes.get_mut(usize::from(shard)) {
            *bytes += record.bytes();
        }
        self.held.entry(Arc::clone(&record.holder)).or_default().push(Arc::clone(&domain));
        self.index_below(&domain);
        if let Some(since) = record.gone_since_ms {
            self.expiry.insert((since.saturating_add(RELEASE_AFTER_MS), domain.clone()));
        }
        self.records_of(&domain).insert(domain, record);
    }

    fn index_below(&mut self, domain: &Arc<str>) {
        if self.overlap == Overlap::FirstWins
            && let Some(name) = domain.strip_prefix("*.")
        {
            for parent in parents(name) {
                self.below.entry(parent.to_owned()).or_default().insert(Arc::clone(domain));
            }
        }
    }

    fn remove(&mut self, domain: &str) {
        let Some(record) = self.records_of(domain).remove(domain) else { return };
        let shard = shard_of(domain);
        self.dirty.insert(shard);
        if let Some(fresh) = self.fresh.get_mut(&shard) {
            fresh.remove(domain);
        }
        if let Some(bytes) = self.bytes.get_mut(usize::from(shard)) {
            *bytes = bytes.saturating_sub(record.bytes());
        }
        if let Some(held) = self.held.get_mut(&record.holder) {
            held.retain(|held| **held != *domain);
            if held.is_empty() {
                self.held.remove(&record.holder);
            }
        }
        for parent in domain.strip_prefix("*.").into_iter().flat_map(parents) {
            if let Some(below) = self.below.get_mut(parent) {
                below.remove(domain);
                if below.is_empty() {
                    self.below.remove(parent);
                }
            }
        }
        if let Some(since) = record.gone_since_ms {
            self.expiry.remove(&(since.saturating_add(RELEASE_AFTER_MS), Arc::from(domain)));
        }
    }

    /// Starts or stops the clock of a claim; one that runs already is not started again.
    fn mark_gone(&mut self, domain: &str, gone_since_ms: Option<u64>) {
        let Some(record) = self.records_of(domain).get_mut(domain) else { return };
        if record.gone_since_ms.is_some() == gone_since_ms.is_some() {
            return;
        }
        let before = std::mem::replace(&mut record.gone_since_ms, gone_since_ms);
        if let Some(since) = before {
            self.expiry.remove(&(since.saturating_add(RELEASE_AFTER_MS), Arc::from(domain)));
        }
        if let Some(since) = gone_since_ms {
            self.expiry.insert((since.saturating_add(RELEASE_AFTER_MS), Arc::from(domain)));
        }
        self.dirty.insert(shard_of(domain));
    }

    /// The shards that changed since they were last taken. They are written before a claim is told to anybody; what could not be written is put back
    /// with [`Self::keep_dirty`].
    pub fn take_dirty(&mut self) -> BTreeSet<u8> {
        std::mem::take(&mut self.dirty)
    }

    /// A shard that could not be written.
    pub fn keep_dirty(&mut self, shard: u8) {
        self.dirty.insert(shard);
    }

    /// A shard was written as it is: what is in it may take effect.
    pub fn written(&mut self, shard: u8) {
        self.fresh.remove(&shard);
    }

    /// The text of one shard, one record a line.
    pub fn shard(&self, shard: u8) -> String {
        let mut text = String::new();
        for record in self.shards.get(usize::from(shard)).into_iter().flat_map(BTreeMap::values) {
            text.push_str(&serde_json::to_string(record).expect("a record has only string keys"));
            text.push('\n');
        }
        text
    }
}

/// The shard of a domain. It must never change: a record would be read from one shard and written to another.
pub fn shard_of(domain: &str) -> u8 {
    Sha256::digest(domain.as_bytes()).first().copied().unwrap_or_default()
}

/// A line of a shard that is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for ShardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} is no claim ({}): restore the ConfigMap from a backup, or delete the line to give the domain up", self.line, self.message)
    }
}

/// Reads a shard.
///
/// # Errors
/// The first line that is no record. The caller accepts no new claim until it is corrected: a lost record would give a domain away.
pub fn read_shard(text: &str) -> Result<Vec<Record>, ShardError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| serde_json::from_str(line).map_err(|error| ShardError { line: index + 1, message: error.to_string() })).collect()
}

#[cfg(test)]
mod tests;
