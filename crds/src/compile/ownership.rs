//! Who may claim which domain, and who was first. Linear in the number of domains: lookups by name and by each parent, no pairwise comparison.

use std::collections::{HashMap, HashSet};

use crate::snapshot::PartKey;
use crate::v1alpha1::DomainGrant;

/// The names above `domain`: for `a.b.example.com` these are `b.example.com`, `example.com`, `com`.
fn parents(domain: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(domain.split_once('.').map(|(_, parent)| parent), |name| name.split_once('.').map(|(_, parent)| parent))
}

/// The grants, by namespace and domain.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    granted: HashSet<(String, String)>,
}

impl Grants {
    /// An index of these grants.
    pub fn new<'a>(grants: impl IntoIterator<Item = &'a DomainGrant>) -> Self {
        let mut granted = HashSet::new();
        for grant in grants {
            for namespace in &grant.spec.namespaces {
                granted.extend(grant.spec.domains.iter().map(|domain| (namespace.0.clone(), domain.0.clone())));
            }
        }
        Self { granted }
    }

    /// Whether a namespace may claim a domain or wildcard: the same is granted, or a wildcard above it.
    pub fn cover(&self, namespace: &str, domain: &str) -> bool {
        let has = |domain: String| self.granted.contains(&(namespace.to_owned(), domain));
        let name = domain.strip_prefix("*.").unwrap_or(domain);
        has(domain.to_owned()) || parents(name).any(|parent| has(format!("*.{parent}")))
    }
}

/// Whether a more specific wildcard of another tenant may lie within a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// The more specific one wins: its own grant covers it.
    MoreSpecificWins,
    /// The first claim keeps it: nothing proves the second.
    FirstWins,
}

/// Which tenant claimed which domain first.
#[derive(Debug)]
pub struct Claims {
    overlap: Overlap,
    holders: HashMap<String, PartKey>,
    /// For each name above a claimed wildcard, who claimed one below it: `*.a.example.com` is below `example.com`.
    below: HashMap<String, Vec<(PartKey, String)>>,
}

impl Claims {
    /// No claim yet.
    pub fn new(overlap: Overlap) -> Self {
        Self { overlap, holders: HashMap::new(), below: HashMap::new() }
    }

    /// Who holds `domain`, or overlaps with it, other than `claimant`; and by which claim.
    pub fn rival(&self, claimant: &PartKey, domain: &str) -> Option<(&PartKey, String)> {
        let other = |domain: &str| self.holders.get(domain).filter(|holder| *holder != claimant);
        if let Some(holder) = other(domain) {
            return Some((holder, domain.to_owned()));
        }
        let name = domain.strip_prefix("*.").filter(|_| self.overlap == Overlap::FirstWins)?;
        let above = parents(name).map(|parent| format!("*.{parent}")).find_map(|wildcard| other(&wildcard).map(|holder| (holder, wildcard.clone())));
        above.or_else(|| {
            let below = self.below.get(name)?.iter().find(|(holder, _)| holder != claimant)?;
            Some((&below.0, below.1.clone()))
        })
    }

    /// Notes a claim. An earlier one of another tenant stays.
    pub fn claim(&mut self, claimant: &PartKey, domain: &str) {
        if self.holders.contains_key(domain) {
            return;
        }
        self.holders.insert(domain.to_owned(), claimant.clone());
        if self.overlap == Overlap::FirstWins
            && let Some(name) = domain.strip_prefix("*.")
        {
            for parent in parents(name) {
                let known = self.below.entry(parent.to_owned()).or_default();
                // Two different claimants are enough to tell any third that there is a rival.
                if known.len() < 2 && known.iter().all(|(holder, _)| holder != claimant) {
                    known.push((claimant.clone(), domain.to_owned()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1alpha1::DomainGrantSpec;

    #[test]
    fn a_grant_covers_itself_and_a_wildcard_covers_below() {
        let spec =
            DomainGrantSpec { namespaces: vec!["mail".into()], domains: vec!["example.com".into(), "*.example.net".into()], relay_networks: vec![] };
        let grant = DomainGrant::new("g", spec);
        let grants = Grants::new([&grant]);
        for (namespace, domain, covered) in [
            ("mail", "example.com", true),
            ("other", "example.com", false),
            ("mail", "a.example.com", false),
            ("mail", "*.example.com", false),
            ("mail", "example.net", false),
            ("mail", "*.example.net", true),
            ("mail", "a.b.example.net", true),
            ("mail", "*.b.example.net", true),
            ("mail", "aexample.net", false),
            ("mail", "*.net", false),
        ] {
            assert_eq!(grants.cover(namespace, domain), covered, "{namespace} {domain}");
        }
    }

    #[test]
    fn the_first_claim_keeps_it() {
        let key = |name: &str| PartKey::Tenant { namespace: "n".into(), name: name.into() };
        for (overlap, first, second, rivals) in [
            (Overlap::FirstWins, "example.com", "example.com", true),
            (Overlap::FirstWins, "*.example.com", "*.example.com", true),
            (Overlap::FirstWins, "*.example.com", "*.a.example.com", true),
            (Overlap::FirstWins, "*.a.example.com", "*.example.com", true),
            (Overlap::FirstWins, "*.example.com", "a.example.com", false),
            (Overlap::FirstWins, "*.example.com", "example.com", false),
            (Overlap::FirstWins, "*.a.example.com", "*.b.example.com", false),
            (Overlap::MoreSpecificWins, "*.example.com", "*.a.example.com", false),
            (Overlap::MoreSpecificWins, "*.example.com", "*.example.com", true),
        ] {
            let mut claims = Claims::new(overlap);
            claims.claim(&key("a"), first);
            assert_eq!(claims.rival(&key("b"), second).is_some(), rivals, "{overlap:?} {first} {second}");
            assert!(claims.rival(&key("a"), second).is_none(), "a tenant is no rival of itself: {first} {second}");
        }
    }
}
