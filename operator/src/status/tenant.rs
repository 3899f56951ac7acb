//! The conditions of a TenantDomain. They are written once for each change of the tenant, never for each gateway: with 100,000 tenants a counter in each
//! would be a flood.

use k8s_openapi::jiff::Timestamp;
use sekimori_crds::compile::{self, Problem};

use super::{ConditionType, Fact, Reason, sentence};
use crate::ownership::{Claim, Tenant, Verdict};

/// How far a tenant's configuration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programmed<'a> {
    /// Every gateway runs with it.
    Everywhere,
    /// Some gateways do not have it yet.
    Waiting,
    /// A gateway said that it needs this, which it does not have.
    NeedsNewerGateway(&'a str),
    /// An earlier form runs, because this one was rejected.
    LastGoodForm,
    /// It is wrong, and its last good form is not known here: gateways that have one go on with it.
    EarlierForm,
    /// Nothing of it runs.
    Nowhere,
}

/// What a tenant's conditions are made of.
#[derive(Clone, Debug)]
pub struct TenantReport<'a> {
    /// Who it is: what it is told about others depends on their namespace.
    pub tenant: &'a Tenant,
    /// What `compile` said.
    pub problems: &'a [Problem],
    /// What the ledger said of each domain.
    pub claims: &'a [Claim],
    /// How far it has come.
    pub programmed: Programmed<'a>,
    /// A gateway says that the tenant's server refuses us, whatever the mail.
    pub refusing: bool,
}

/// The conditions of a tenant.
pub fn tenant_conditions(report: &TenantReport<'_>) -> Vec<Fact> {
    let accepted = accepted(report);
    let programmed = programmed(report.programmed);
    let holds = accepted.holds == Some(true) && programmed.holds == Some(true);
    let first = [&accepted, &programmed].into_iter().find(|fact| fact.holds != Some(true)).unwrap_or(&programmed);
    let ready = Fact::new(ConditionType::Ready, holds, if holds { Reason::Serving } else { first.reason }, first.message.clone());
    let mut facts = vec![ready, accepted, conflicted(report), resolved(report.problems), programmed];
    // Said only while it holds: of 100,000 tenants, few have a server that refuses.
    facts.extend(report.refusing.then(refusing));
    facts
}

/// Nothing is lost by it, so the tenant stays Ready.
fn refusing() -> Fact {
    let message = "its mail server refuses every mail from the gateways, or refuses them already when they connect (the reply is about us or about the server, not about one mail): \
                   what was accepted waits in the queue and is tried again; let the gateways' addresses in at that server, and set spec.routes right; \
                   `kubectl sekimori queue list` shows the server's words";
    Fact::new(ConditionType::RouteRefusing, true, Reason::ServerRefuses, message)
}

fn accepted(report: &TenantReport<'_>) -> Fact {
    let errors: Vec<&Problem> = report.problems.iter().filter(|problem| problem.is_error()).collect();
    if !errors.is_empty() {
        return Fact::new(ConditionType::Accepted, false, Reason::Invalid, sentence(errors));
    }
    let refused: Vec<&Claim> = report.claims.iter().filter(|claim| claim.verdict != Verdict::Held).collect();
    let Some(first) = refused.first() else {
        return Fact::new(ConditionType::Accepted, true, Reason::Valid, "nothing is wrong");
    };
    let reason = if matches!(first.verdict, Verdict::Conflict { .. }) { Reason::DomainConflict } else { Reason::NotOwned };
    Fact::new(ConditionType::Accepted, false, reason, claims(&refused, report.tenant))
}

fn conflicted(report: &TenantReport<'_>) -> Fact {
    let conflicts: Vec<&Claim> = report.claims.iter().filter(|claim| matches!(claim.verdict, Verdict::Conflict { .. })).collect();
    if conflicts.is_empty() {
        return Fact::new(ConditionType::Conflicted, false, Reason::NoConflict, "no other tenant has its domains");
    }
    Fact::new(ConditionType::Conflicted, true, Reason::DomainConflict, claims(&conflicts, report.tenant))
}

fn claims(claims: &[&Claim], tenant: &Tenant) -> String {
    let mut texts: Vec<String> = claims.iter().take(super::PROBLEMS_MAX).map(|claim| told(claim, &tenant.namespace)).collect();
    if let Some(more @ 1..) = claims.len().checked_sub(super::PROBLEMS_MAX) {
        texts.push(format!("and {more} more"));
    }
    texts.join("; ")
}

fn resolved(problems: &[Problem]) -> Fact {
    let unresolved: Vec<&Problem> = problems.iter().filter(|problem| problem.reason == compile::Reason::UnresolvedRef).collect();
    if unresolved.is_empty() {
        return Fact::new(ConditionType::ResolvedRefs, true, Reason::Resolved, "everything that it refers to is there");
    }
    Fact::new(ConditionType::ResolvedRefs, false, Reason::UnresolvedRef, sentence(unresolved))
}

fn programmed(programmed: Programmed<'_>) -> Fact {
    let say = |holds, reason, message: &str| Fact::new(ConditionType::Programmed, holds, reason, message);
    match programmed {
        Programmed::Everywhere => say(true, Reason::Programmed, "every gateway serves it"),
        Programmed::Waiting => say(false, Reason::Waiting, "some gateways do not have it yet: it goes on by itself"),
        Programmed::NeedsNewerGateway(feature) => say(
            false,
            Reason::NeedsNewerGateway,
            &format!("the gateways do not know `{feature}`: move the fleet to a newer spec.image; the last good form serves until then"),
        ),
        Programmed::LastGoodForm => say(false, Reason::LastGoodForm, "its last good form serves, because this one was rejected: see Accepted"),
        Programmed::EarlierForm => say(
            false,
            Reason::NotProgrammed,
            "gateways that have an earlier form of it go on with that, others defer its mail (451 4.3.5) until it is set right: see Accepted",
        ),
        Programmed::Nowhere => say(false, Reason::NotProgrammed, "no gateway serves it: see Accepted"),
    }
}

/// What is said of it to people of a namespace. A holder of another namespace is not named to them: what it is called is its own affair, and a stranger
/// could find out customers by claiming domains. Who runs the fleet finds it in the operator's log and in the recorded claims.
fn told(claim: &Claim, namespace: &str) -> String {
    let Claim { domain, verdict } = claim;
    let (holder, by, free_at_ms) = match verdict {
        Verdict::Held => return format!("`{domain}` is its own"),
        Verdict::Unproved(why) => return format!("`{domain}`: {why}"),
        Verdict::Conflict { holder, by, free_at_ms } => (holder, by, *free_at_ms),
    };
    match (holder.namespace == namespace, free_at_ms) {
        (true, None) => format!("`{domain}`: TenantDomain {holder} came first and holds `{by}`: remove the domain from one of the two"),
        (true, Some(at)) => format!(
            "`{domain}`: TenantDomain {holder}, which is gone, held `{by}` and keeps it for 72 hours, until {}; it is free at once if the tenant is made again, annotated sekimori.dev/release-domains: \"true\", and deleted",
            time(at)
        ),
        (false, None) => format!(
            "`{domain}`: another namespace came first and holds it, or a wildcard that covers it: remove it here; if it is yours, ask who runs the fleet, who sees the holder"
        ),
        (false, Some(at)) => format!(
            "`{domain}`: another namespace held it, or a wildcard that covers it, and keeps it for 72 hours after it let go, until {}: it is this tenant's then; if it cannot wait, ask who runs the fleet, who sees the holder",
            time(at)
        ),
    }
}

/// For people, to the second.
fn time(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests;
