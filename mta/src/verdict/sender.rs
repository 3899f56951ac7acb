//! What follows from who sent it and what is attached: allow and deny lists, enforced SPF and DMARC, blocked file types.

use std::collections::BTreeSet;

use ipnet::IpNet;
use sekimori_crds::snapshot::{ListEntry, Policy};
use sekimori_crds::vocabulary::{Action, CheckMode, ListEntryType, OnTempError};

use super::anti_virus::unscannable_action;
use super::{Cause, Facts, Reason, Unscannable};
use crate::authentication::{Dmarc, DmarcPolicy, Spf};
use crate::message::address::normal_domain;

/// Stands for an engine where a reason is that names of files could not be had.
const BLOCKED_TYPES: &str = "blocked-types";

/// The first entry of the deny list that matches: the client's network (where its address may be judged), the envelope sender, or any From, verified or not.
pub(super) fn denied(facts: &Facts<'_>, entries: &[ListEntry]) -> Option<String> {
    if entries.is_empty() {
        return None;
    }
    let sender = facts.sender.map(|sender| Subject::new(&sender.local, &sender.domain));
    let from = facts.from.iter().map(|from| Subject::new(&from.local, &from.domain));
    let subjects: Vec<Subject<'_>> = sender.into_iter().chain(from).collect();
    let matches = |entry: &&ListEntry| match entry.kind {
        ListEntryType::Network => in_network(facts, &entry.value),
        ListEntryType::Domain => subjects.iter().any(|subject| subject.is_in_domain(&entry.value)),
        ListEntryType::Address => subjects.iter().any(|subject| subject.is_address(&entry.value)),
    };
    entries.iter().find(matches).map(named)
}

/// The first entry of the allow list that matches: the client's network, or every From while DMARC passes for their domain.
///
/// With DMARC disabled by the tenant nothing is verified, so that only networks can match.
pub(super) fn allowed(facts: &Facts<'_>, policy: &Policy) -> Option<String> {
    if policy.lists.allow.is_empty() {
        return None;
    }
    let from: Vec<Subject<'_>> = facts.from.iter().map(|from| Subject::new(&from.local, &from.domain)).collect();
    let passes =
        facts.authentication.dmarc.as_ref().filter(|dmarc| dmarc.result == Dmarc::Pass && policy.authentication.dmarc != CheckMode::Disabled);
    let verified = passes.is_some_and(|dmarc| {
        let domain = normal_domain(&dmarc.from_domain);
        !from.is_empty() && from.iter().all(|subject| subject.domain == domain)
    });
    let matches = |entry: &&ListEntry| match entry.kind {
        ListEntryType::Network => in_network(facts, &entry.value),
        ListEntryType::Domain => verified && from.iter().all(|subject| subject.is_in_domain(&entry.value)),
        ListEntryType::Address => verified && from.iter().all(|subject| subject.is_address(&entry.value)),
    };
    policy.lists.allow.iter().find(matches).map(named)
}

/// Someone whom a list entry may mean.
struct Subject<'a> {
    local: &'a str,
    /// As [`normal_domain`] makes it.
    domain: String,
}

impl<'a> Subject<'a> {
    fn new(local: &'a str, domain: &str) -> Self {
        Self { local, domain: normal_domain(domain) }
    }

    /// The domain itself, or with `*.` before it every name below.
    fn is_in_domain(&self, entry: &str) -> bool {
        match entry.strip_prefix("*.") {
            Some(parent) => {
                let parent = normal_domain(parent);
                self.domain.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            None if entry.is_ascii() => self.domain.eq_ignore_ascii_case(entry.trim_end_matches('.')),
            None => self.domain == normal_domain(entry),
        }
    }

    /// Local parts are compared without regard to case: what people write in a list is seldom exact, and no server tells two such mailboxes apart.
    fn is_address(&self, entry: &str) -> bool {
        entry.rsplit_once('@').is_some_and(|(local, domain)| {
            let same = if local.is_ascii() { self.local.eq_ignore_ascii_case(local) } else { self.local.to_lowercase() == local.to_lowercase() };
            same && !domain.starts_with("*.") && self.is_in_domain(domain)
        })
    }
}

fn named(entry: &ListEntry) -> String {
    format!("{}:{}", entry.kind, entry.value)
}

fn in_network(facts: &Facts<'_>, value: &str) -> bool {
    let address = facts.client.address.to_canonical();
    let network = value.parse::<IpNet>().ok().or_else(|| value.parse().ok().map(|address: std::net::IpAddr| address.into()));
    facts.client.address_known && network.is_some_and(|network| network.contains(&address))
}

/// SPF and DMARC, where the policy enforces them.
pub(super) fn judge_authentication(facts: &Facts<'_>, policy: &Policy, reasons: &mut Vec<Reason>) {
    let found = facts.authentication;
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
    // A second From would be a way around every DMARC policy. None at all forges nobody.
    let domains: BTreeSet<String> = facts.from.iter().map(|from| normal_domain(&from.domain)).collect();
    if domains.len() > 1 && dmarc.is_some_and(|dmarc| dmarc.result == Dmarc::PermError) {
        let domains = u32::try_from(domains.len()).unwrap_or(u32::MAX);
        reasons.push(Reason { action: Action::Reject, cause: Cause::AmbiguousFrom { domains } });
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

/// File names with a blocked extension. Dots and spaces at the end are no part of a name where it matters, nor is what follows a colon. Whether names are missing that
/// the policy wanted to see: an archive that nobody looked into is one that cannot be scanned.
pub(super) fn judge_attachments(facts: &Facts<'_>, policy: &Policy, reasons: &mut Vec<Reason>) -> bool {
    let extensions = policy.attachments.block_types.iter().map(|extension| extension.trim_start_matches('.').to_lowercase());
    let extensions: Vec<String> = extensions.filter(|extension| !extension.is_empty()).collect();
    if extensions.is_empty() {
        return false;
    }
    let blocked = |name: &String| {
        let name = name.to_lowercase();
        let end = |c: char| c == '.' || c.is_whitespace();
        let forms = [name.trim_end_matches(end), name.split(':').next().unwrap_or_default().trim_end_matches(end)];
        let has = |extension: &&String| forms.iter().any(|name| name.strip_suffix(extension.as_str()).is_some_and(|rest| rest.ends_with('.')));
        extensions.iter().find(has).cloned()
    };
    let found: BTreeSet<String> = facts.file_names.iter().filter_map(blocked).collect();
    reasons.extend(found.into_iter().map(|extension| Reason { action: Action::Reject, cause: Cause::Attachment { extension } }));
    if facts.file_names_cut {
        let what = Unscannable::LimitsExceeded;
        reasons.push(Reason { action: unscannable_action(what, policy), cause: Cause::Unscannable { engine: BLOCKED_TYPES.into(), what } });
    }
    facts.file_names_cut
}
