//! What follows from who sent it and what is attached: allow and deny lists, enforced SPF and DMARC, blocked file types.

use ipnet::IpNet;
use sekimori_crds::snapshot::{ListEntry, Policy};
use sekimori_crds::vocabulary::{Action, CheckMode, ListEntryType, OnTempError};

use super::{Cause, Facts, Reason};
use crate::authentication::{Authentication, Dmarc, DmarcPolicy, Spf};
use crate::message::address::normal_domain;

/// The first entry of the deny list that matches: the client's network (where its address may be judged), the envelope sender, or any From, verified or not.
pub(super) fn denied(facts: &Facts<'_>, entries: &[ListEntry]) -> Option<String> {
    let matches = |entry: &&ListEntry| {
        let sender = facts.sender.map(|sender| (sender.local.as_str(), sender.domain.as_str()));
        let mut from = facts.from.iter().map(|from| (from.local.as_str(), from.domain.as_str()));
        match entry.kind {
            ListEntryType::Network => in_network(facts, &entry.value),
            ListEntryType::Domain => sender.into_iter().chain(from).any(|(_, domain)| is_domain(domain, &entry.value)),
            ListEntryType::Address => {
                sender.is_some_and(|address| is_address(address, &entry.value)) || from.any(|address| is_address(address, &entry.value))
            }
        }
    };
    entries.iter().find(matches).map(named)
}

/// The first entry of the allow list that matches: the client's network, or every From while DMARC passes for their domain.
///
/// With DMARC disabled by the tenant nothing is verified, so that only networks can match.
pub(super) fn allowed(facts: &Facts<'_>, policy: &Policy) -> Option<String> {
    let verified = facts
        .authentication
        .dmarc
        .as_ref()
        .filter(|dmarc| dmarc.result == Dmarc::Pass && policy.authentication.dmarc != CheckMode::Disabled)
        .map(|dmarc| normal_domain(&dmarc.from_domain))
        .filter(|domain| !facts.from.is_empty() && facts.from.iter().all(|from| from.domain == *domain));
    let matches = |entry: &&ListEntry| match entry.kind {
        ListEntryType::Network => in_network(facts, &entry.value),
        ListEntryType::Domain => verified.as_ref().is_some_and(|domain| is_domain(domain, &entry.value)),
        ListEntryType::Address => {
            verified.is_some() && facts.from.iter().all(|from| is_address((from.local.as_str(), from.domain.as_str()), &entry.value))
        }
    };
    policy.lists.allow.iter().find(matches).map(named)
}

fn named(entry: &ListEntry) -> String {
    format!("{}:{}", entry.kind, entry.value)
}

fn in_network(facts: &Facts<'_>, value: &str) -> bool {
    let address = facts.client.address.to_canonical();
    let network = value.parse::<IpNet>().ok().or_else(|| value.parse().ok().map(|address: std::net::IpAddr| address.into()));
    facts.client.address_known && network.is_some_and(|network| network.contains(&address))
}

/// The domain itself, or with `*.` before it every name below.
fn is_domain(domain: &str, entry: &str) -> bool {
    let domain = normal_domain(domain);
    match entry.strip_prefix("*.") {
        Some(parent) => domain.strip_suffix(&normal_domain(parent)).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => domain == normal_domain(entry),
    }
}

/// Local parts are compared without regard to case: what people write in a list is seldom exact, and no server tells two such mailboxes apart.
fn is_address((local, domain): (&str, &str), entry: &str) -> bool {
    entry.rsplit_once('@').is_some_and(|(entry_local, entry_domain)| {
        local.to_lowercase() == entry_local.to_lowercase() && normal_domain(domain) == normal_domain(entry_domain)
    })
}

/// SPF and DMARC, where the policy enforces them.
pub(super) fn judge_authentication(found: &Authentication, policy: &Policy, reasons: &mut Vec<Reason>) {
    let wanted = &policy.authentication;
    let mut dns_failed = |check: &str| {
        if wanted.on_temp_error == OnTempError::Defer {
            reasons.push(Reason { action: Action::Defer, cause: Cause::DnsFailed { check: check.into() } });
        }
    };
    let spf = found.spf.filter(|_| wanted.spf == CheckMode::Enforce);
    let dmarc = found.dmarc.as_ref().filter(|_| wanted.dmarc == CheckMode::Enforce);
    if spf == Some(Spf::TempError) {
        dns_failed("SPF");
    }
    if dmarc.is_some_and(|dmarc| dmarc.result == Dmarc::TempError) {
        dns_failed("DMARC");
    }
    if spf == Some(Spf::Fail) {
        reasons.push(Reason { action: Action::Reject, cause: Cause::Spf { domain: found.spf_domain.clone() } });
    }
    if let Some(dmarc) = dmarc.filter(|dmarc| dmarc.result == Dmarc::Fail) {
        let action = match dmarc.policy {
            DmarcPolicy::None => return,
            DmarcPolicy::Quarantine => Action::Quarantine,
            DmarcPolicy::Reject => Action::Reject,
        };
        reasons.push(Reason { action, cause: Cause::Dmarc { domain: dmarc.from_domain.clone() } });
    }
}

/// File names with a blocked extension. Dots and spaces at the end are no part of a name where it matters, nor is what follows a colon.
pub(super) fn judge_attachments(file_names: &[String], policy: &Policy, reasons: &mut Vec<Reason>) {
    let blocked = |name: &String| {
        let name = name.to_lowercase();
        let whole = name.trim_end_matches(|c: char| c == '.' || c.is_whitespace());
        let before_stream = name.split(':').next().unwrap_or_default().trim_end_matches(|c: char| c == '.' || c.is_whitespace());
        policy
            .attachments
            .block_types
            .iter()
            .map(|extension| extension.trim_start_matches('.').to_lowercase())
            .filter(|extension| !extension.is_empty())
            .find(|extension| [whole, before_stream].iter().any(|name| name.strip_suffix(extension.as_str()).is_some_and(|rest| rest.ends_with('.'))))
    };
    let mut found: Vec<String> = file_names.iter().filter_map(blocked).collect();
    found.sort();
    found.dedup();
    reasons.extend(found.into_iter().map(|extension| Reason { action: Action::Reject, cause: Cause::Attachment { extension } }));
}
