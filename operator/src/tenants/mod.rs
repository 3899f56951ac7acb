//! Tenants: a compact index of them, and the judgement of one. Pure.
//!
//! With 100,000 tenants nothing is kept whole: of each there is the JSON of what decides about it ([`Known`]), and what was said of it as one number. Its
//! part of the configuration lies with [`crate::distribution`] alone.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use sekimori_crds::compile::{Finding, Lookup, Problem, Reason, References, compile_tenant};
use sekimori_crds::snapshot::{EARLIER_FORM, Part, TenantPart};
use sekimori_crds::v1alpha1::{GatewayFleet, MailPolicy, TenantDomain};
use sekimori_crds::vocabulary::{Ownership, TenantState};

use crate::ownership::{Claim, Ledger, Proof, Tenant, Verdict};
use crate::status::{ConditionType, Fact};

/// What is kept of a tenant.
#[derive(Clone, Debug)]
pub struct Known {
    /// The object's `spec`, its identity and generation, as compact JSON. `Err`: what is wrong with an object that cannot be read.
    pub object: Result<Box<[u8]>, Box<str>>,
    /// The fleet that it names: namespace and name.
    pub fleet: Option<(Arc<str>, Arc<str>)>,
    /// The MailPolicy that it names.
    pub policy: Option<Arc<str>>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Whether its domains are free as soon as it goes.
    pub release: bool,
    /// Since when it is suspended, seconds since 1970.
    pub suspended_since: Option<i64>,
    /// Its status is of this generation.
    pub current: bool,
    /// What its status says, see [`digest`].
    pub said: u64,
    /// What it should say; 0: it was not judged yet.
    pub wanted: u64,
    /// Nothing was wrong with it when it was judged last.
    pub good: bool,
    /// Its server refuses the gateways: as they say, and before they do, as its status says.
    pub refusing: bool,
}

/// Names that recur in many tenants, each kept once.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<Arc<str>, ()>);

impl Names {
    /// The name, shared.
    pub fn share(&mut self, name: &str) -> Arc<str> {
        if let Some((known, ())) = self.0.get_key_value(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.0.insert(Arc::clone(&name), ());
        name
    }
}

impl Known {
    /// From an object as it was read. `before` is what was known of it.
    pub fn new(mut object: TenantDomain, names: &mut Names, before: Option<&Self>, now_s: i64) -> Self {
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let reference = &object.spec.fleet_ref;
        let fleet = (names.share(reference.namespace.as_deref().unwrap_or(&namespace)), names.share(&reference.name));
        let policy = object.spec.policy_ref.as_ref().map(|reference| names.share(&reference.name));
        let status = object.status.take().unwrap_or_default();
        let suspended = object.spec.state == Some(TenantState::Suspended);
        // What the status says may be of an earlier suspension: what was seen since counts more.
        let since = match before {
            Some(before) if before.object.is_ok() => before.suspended_since.unwrap_or(now_s),
            _ => before.and_then(|before| before.suspended_since).or(status.suspended_since).unwrap_or(now_s),
        };
        let annotations = object.metadata.annotations.take().unwrap_or_default();
        let said = digest(
            status
                .conditions
                .iter()
                .map(|condition| (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_str(), condition.message.as_str())),
            status.observed_generation,
            status.suspended_since,
        );
        let generation = object.metadata.generation;
        // Nothing that moves with a status: else every status that is written would bring another judgement.
        object.metadata =
            ObjectMeta { name: object.metadata.name.take(), namespace: object.metadata.namespace.take(), generation, ..ObjectMeta::default() };
        Self {
            fleet: Some(fleet),
            policy,
            generation: generation.unwrap_or_default(),
            current: status.observed_generation == generation,
            release: annotations.get(crate::names::RELEASE_DOMAINS).is_some_and(|value| value == "true"),
            suspended_since: suspended.then_some(since),
            said,
            wanted: before.map_or(0, |before| before.wanted),
            good: before.is_some_and(|before| before.good),
            refusing: before.map_or_else(|| is_refusing(&status.conditions), |before| before.refusing),
            object: Ok(serde_json::to_vec(&object).expect("an object has only string keys").into()),
        }
    }

    /// An object that cannot be read. What it named before stays its own.
    pub fn unreadable(error: &str, before: Option<&Self>) -> Self {
        Self {
            object: Err(error.into()),
            fleet: before.and_then(|before| before.fleet.clone()),
            policy: before.and_then(|before| before.policy.clone()),
            generation: 0,
            current: false,
            release: before.is_some_and(|before| before.release),
            suspended_since: before.and_then(|before| before.suspended_since),
            said: before.map_or(0, |before| before.said),
            wanted: before.map_or(0, |before| before.wanted),
            good: before.is_some_and(|before| before.good),
            refusing: before.is_some_and(|before| before.refusing),
        }
    }
}

fn is_refusing(conditions: &[Condition]) -> bool {
    let kind = ConditionType::RouteRefusing.to_string();
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// What a status says, as one number: conditions without their times, generation, suspension.
pub fn digest<'a>(
    conditions: impl Iterator<Item = (&'a str, &'a str, &'a str, &'a str)>,
    observed_generation: Option<i64>,
    suspended_since: Option<i64>,
) -> u64 {
    let mut all: Vec<_> = conditions.collect();
    all.sort_unstable();
    let mut hasher = DefaultHasher::new();
    (all, observed_generation, suspended_since).hash(&mut hasher);
    hasher.finish()
}

/// The same of what is to be said.
pub fn digest_of(facts: &[Fact], observed_generation: Option<i64>, suspended_since: Option<i64>) -> u64 {
    let texts: Vec<(String, &str, String, &str)> = facts
        .iter()
        .map(|fact| {
            let status = fact.holds.map_or("Unknown", |holds| if holds { "True" } else { "False" });
            (fact.kind.to_string(), status, fact.reason.to_string(), fact.message.as_str())
        })
        .collect();
    digest(
        texts.iter().map(|(kind, status, reason, message)| (kind.as_str(), *status, reason.as_str(), *message)),
        observed_generation,
        suspended_since,
    )
}

/// What a tenant is judged against.
pub struct Against<'a> {
    /// The fleet that it names.
    pub fleet: Lookup<'a, GatewayFleet>,
    /// The MailPolicy that it names.
    pub policy: Lookup<'a, MailPolicy>,
    /// Labels of its namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Judged {
    /// Its part. `None`: its last good form stays.
    pub part: Option<TenantPart>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// What the ledger said of each domain.
    pub claims: Vec<Claim>,
    /// The generation that was judged.
    pub generation: i64,
}

/// Judges one tenant. What it may claim is claimed in the ledger; `proof` says what is known of a domain.
pub fn judge(
    tenant: &Tenant,
    known: &Known,
    against: &Against<'_>,
    ledger: Option<&mut Ledger>,
    proof: impl Fn(&str) -> Proof,
    now_ms: u64,
) -> Judged {
    let text = format!("TenantDomain {tenant}");
    let broken = |message: String| Problem::error("", &text, Finding::new("", Reason::InvalidValue, message));
    let parsed = match &known.object {
        Ok(json) => serde_json::from_slice::<TenantDomain>(json).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let mut object = match parsed {
        Ok(object) => object,
        Err(error) => {
            let message = format!("this operator cannot read it ({error}): upgrade the operator, or correct it; its last good form stays");
            return Judged { part: None, problems: vec![broken(message)], claims: vec![], generation: known.generation };
        }
    };
    // Without what the fleet says, its overrides and whom it admits would count for nothing; so what runs stays, and so do claims.
    if matches!(against.fleet, Lookup::Rejected) {
        let message = format!(
            "GatewayFleet {} cannot be read by this operator: upgrade the operator, or correct the fleet; the tenant's last good form stays",
            object.spec.fleet_ref.name
        );
        let problem = Problem::error("", &text, Finding::new("spec.fleetRef", Reason::UnresolvedRef, message));
        return Judged { part: None, problems: vec![problem], claims: vec![], generation: known.generation };
    }
    object.status.get_or_insert_default().suspended_since = known.suspended_since;
    // Ownership is the ledger's business, so the grants are not looked at a second time.
    let references = References { fleet: against.fleet, mail_policy: against.policy, namespace_labels: against.namespace_labels, grants: None };
    let compiled = compile_tenant(&object, &references);
    let refused = compiled
        .as_ref()
        .is_err_and(|problems| problems.iter().any(|problem| problem.reason == Reason::NotAllowed || problem.field == "spec.fleetRef"));
    let claims = match ledger {
        // Who may not be at this fleet claims nothing there; any other error leaves its domains its own.
        Some(ledger) if !refused => {
            let domains: Vec<(String, Proof)> = object.spec.domains.iter().map(|domain| (domain.0.clone(), proof(&domain.0))).collect();
            ledger.claim(tenant, &domains, now_ms)
        }
        // What a namespace held that is not admitted any more runs out, as with a grant that is gone.
        Some(ledger) if compiled.as_ref().is_err_and(|problems| problems.iter().any(|problem| problem.reason == Reason::NotAllowed)) => {
            ledger.gone(tenant, false, now_ms);
            vec![]
        }
        _ => vec![],
    };
    let held = claims.iter().all(|claim| claim.verdict == Verdict::Held) && !claims.is_empty();
    let (part, problems) = match compiled {
        Ok(part) => (held.then_some(part), vec![]),
        Err(problems) => (None, problems),
    };
    Judged { part, problems, claims, generation: known.generation }
}

/// What is left of a tenant that is wrong now.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    /// Its last good form, with only the domains that are still its own.
    Form(Box<TenantPart>),
    /// Its domains alone: no form is known here.
    Domains(Vec<String>),
    /// No domain is its own.
    Nothing,
}

/// What is left of a tenant. `form`: its last good one as JSON, where one is known.
pub fn left_of(form: Option<&[u8]>, tenant: &Tenant, ledger: &Ledger) -> Left {
    match form.map(serde_json::from_slice) {
        Some(Ok(Part::Tenant(mut form))) => {
            form.domains.retain(|domain| ledger.record(domain).is_some_and(|record| *record.holder == *tenant));
            if form.domains.is_empty() { Left::Nothing } else { Left::Form(form) }
        }
        _ => {
            let mut domains: Vec<String> = ledger.held_by(tenant).map(ToString::to_string).collect();
            domains.sort_unstable();
            if domains.is_empty() { Left::Nothing } else { Left::Domains(domains) }
        }
    }
}

/// Whether a part says only that an earlier form stays.
pub fn is_stand_in(json: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Requires {
        #[serde(default)]
        requires: Vec<String>,
    }
    serde_json::from_slice(json).is_ok_and(|part: Requires| part.requires.iter().any(|capability| capability == EARLIER_FORM))
}

/// How a fleet wants domains proved.
pub fn ownership(fleet: &GatewayFleet) -> Ownership {
    fleet.spec.tenants.as_ref().and_then(|tenants| tenants.ownership).unwrap_or(sekimori_crds::compile::defaults::OWNERSHIP)
}

#[cfg(test)]
mod tests;
