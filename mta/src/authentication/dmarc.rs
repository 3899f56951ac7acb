//! DMARC records and the tree of domains (RFC 9989): pure.

use super::domain;
use super::{DmarcPolicy, tags};

/// Lookups of one walk up the tree (RFC 9989 section 4.10).
const WALK_MAX: usize = 8;

/// What a record says of the place of its domain in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicSuffix {
    /// `psd=y`: names below are registered by others.
    Yes,
    /// `psd=n`: an organisational domain.
    No,
    /// Not said.
    Unset,
}

/// A policy record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// It asks for something that can be done; otherwise it only marks a place in the tree (RFC 9989 section 4.10.1).
    pub usable: bool,
    /// `p=`.
    pub policy: DmarcPolicy,
    /// `sp=`: for subdomains.
    pub subdomains: Option<DmarcPolicy>,
    /// `np=`: for subdomains that do not exist.
    pub nonexistent: Option<DmarcPolicy>,
    /// `adkim=s`.
    pub strict_dkim: bool,
    /// `aspf=s`.
    pub strict_spf: bool,
    /// `t=y`: the policy is to be softened by one step.
    pub testing: bool,
    /// `psd=`.
    pub public_suffix: PublicSuffix,
}

/// Whether a TXT record is meant as a DMARC record: `v=DMARC1`, exactly so, stands first.
pub fn is_record(text: &[u8]) -> bool {
    let first = text.split(|byte| *byte == b';').next().unwrap_or_default();
    let mut halves = first.splitn(2, |byte| *byte == b'=');
    halves.next().is_some_and(|name| name.trim_ascii() == b"v") && halves.next().is_some_and(|value| value.trim_ascii() == b"DMARC1")
}

/// Parses a record that [`is_record`] accepts. Without a valid `p`, or with an invalid `sp` or `np`, it counts as `p=none` where somebody is named to
/// report to, and is not usable otherwise (RFC 9989 section 4.10.1).
pub fn parse(text: &[u8]) -> Record {
    let text = String::from_utf8_lossy(text);
    let mut record = Record {
        usable: true,
        policy: DmarcPolicy::None,
        subdomains: None,
        nonexistent: None,
        strict_dkim: false,
        strict_spf: false,
        testing: false,
        public_suffix: PublicSuffix::Unset,
    };
    let (mut stated, mut broken, mut reported) = (false, false, false);
    // Unknown tags and what is no tag are left aside; of a tag given twice the first counts.
    let mut seen: Vec<String> = vec![];
    for (name, value) in tags::lenient(&text) {
        if seen.contains(&name) {
            continue;
        }
        match name.as_str() {
            "p" => match policy(&value) {
                Some(policy) => (record.policy, stated) = (policy, true),
                None => broken = true,
            },
            "sp" => match policy(&value) {
                Some(policy) => record.subdomains = Some(policy),
                None => broken = true,
            },
            "np" => match policy(&value) {
                Some(policy) => record.nonexistent = Some(policy),
                None => broken = true,
            },
            "adkim" => record.strict_dkim = value.eq_ignore_ascii_case("s"),
            "aspf" => record.strict_spf = value.eq_ignore_ascii_case("s"),
            "t" => record.testing = value.eq_ignore_ascii_case("y"),
            "psd" if value.eq_ignore_ascii_case("y") => record.public_suffix = PublicSuffix::Yes,
            "psd" if value.eq_ignore_ascii_case("n") => record.public_suffix = PublicSuffix::No,
            "rua" => reported = value.split(',').any(report_address),
            _ => {}
        }
        seen.push(name);
    }
    if !stated || broken {
        record = Record { usable: reported, policy: DmarcPolicy::None, subdomains: None, nonexistent: None, ..record };
    }
    record
}

fn policy(value: &str) -> Option<DmarcPolicy> {
    [("none", DmarcPolicy::None), ("quarantine", DmarcPolicy::Quarantine), ("reject", DmarcPolicy::Reject)]
        .into_iter()
        .find_map(|(word, policy)| value.eq_ignore_ascii_case(word).then_some(policy))
}

fn report_address(uri: &str) -> bool {
    uri.trim().split_once(':').is_some_and(|(scheme, rest)| scheme.eq_ignore_ascii_case("mailto") && rest.contains('@'))
}

impl Record {
    /// What is asked for: `own` when the record stands at the very domain of From, else `exists` says whether that domain does.
    pub fn applied(&self, own: bool, exists: bool) -> DmarcPolicy {
        let stated = if own {
            self.policy
        } else {
            let subdomains = self.subdomains.unwrap_or(self.policy);
            if exists { subdomains } else { self.nonexistent.unwrap_or(subdomains) }
        };
        match (stated, self.testing) {
            (DmarcPolicy::Reject, true) => DmarcPolicy::Quarantine,
            (DmarcPolicy::Quarantine, true) => DmarcPolicy::None,
            (stated, _) => stated,
        }
    }
}

/// The domains whose records a walk looks at, longest first: the domain itself, then at most seven labels and fewer.
pub fn walk(name: &str) -> Vec<&str> {
    let labels = name.split('.').count();
    let mut names = vec![name];
    let mut rest = name;
    let mut left = labels;
    while let Some(shorter) = domain::parent(rest) {
        rest = shorter;
        left -= 1;
        if left < WALK_MAX {
            names.push(rest);
        }
    }
    names
}

/// The records that a walk found, longest name first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found(Vec<(String, Record)>);

impl Found {
    /// Adds the next record; `false` when the walk ends with it. `first` is the name that the walk began with.
    pub fn add(&mut self, name: &str, record: Record) -> bool {
        let ends = record.public_suffix != PublicSuffix::Unset;
        self.0.push((name.to_owned(), record));
        !ends
    }

    /// The organisational domain of `start` (RFC 9989 section 4.10.2).
    pub fn organisational<'a>(&'a self, start: &'a str) -> &'a str {
        for (name, record) in &self.0 {
            match record.public_suffix {
                PublicSuffix::No => return name,
                PublicSuffix::Yes if name != start => return one_below(start, name),
                PublicSuffix::Yes | PublicSuffix::Unset => {}
            }
        }
        self.0.last().map_or(start, |(name, _)| name)
    }

    /// The record that applies to `start`, and whether it stands there: its own, its organisation's, or its public suffix's.
    pub fn policy(&self, start: &str) -> Option<(&Record, bool)> {
        let at = |wanted: &str| self.0.iter().find(|(name, _)| name == wanted).map(|(_, record)| record);
        if let Some(record) = at(start) {
            return Some((record, true));
        }
        let organisational = self.organisational(start);
        let suffix = || self.0.iter().find(|(_, record)| record.public_suffix == PublicSuffix::Yes).map(|(_, record)| record);
        at(organisational).or_else(suffix).map(|record| (record, false))
    }
}

/// The name of one label more than `suffix` above or at `name`.
fn one_below<'a>(name: &'a str, suffix: &str) -> &'a str {
    let mut rest = name;
    while let Some(shorter) = domain::parent(rest) {
        if shorter == suffix {
            return rest;
        }
        rest = shorter;
    }
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records() {
        use DmarcPolicy::{None as NoPolicy, Quarantine, Reject};
        for (text, expected) in [
            ("v=DMARC1; p=reject", Some((Reject, None, None))),
            ("v=DMARC1;p=Quarantine;sp=none;np=reject", Some((Quarantine, Some(NoPolicy), Some(Reject)))),
            ("v = DMARC1 ; p = reject ; ", Some((Reject, None, None))),
            ("v=DMARC1; rua=mailto:a@b.example", Some((NoPolicy, None, None))),
            ("v=DMARC1; p=bogus; rua=mailto:a@b.example", Some((NoPolicy, None, None))),
            ("v=DMARC1; p=reject; sp=bogus; rua=mailto:a@b.example", Some((NoPolicy, None, None))),
            ("v=DMARC1; p=reject; sp=bogus", None),
            ("v=DMARC1", None),
            ("v=DMARC1; p=", None),
            ("v=DMARC1; p=reject; p=none", Some((Reject, None, None))),
            ("v=DMARC1; p=reject; pct=0; rf=afrf; nonsense", Some((Reject, None, None))),
        ] {
            assert!(is_record(text.as_bytes()), "{text}");
            let record = parse(text.as_bytes());
            let found = record.usable.then_some((record.policy, record.subdomains, record.nonexistent));
            assert_eq!(found, expected, "{text}");
        }
        for text in ["v=DMARC12; p=reject", "v=dmarc1; p=reject", "V=DMARC1; p=reject", "p=reject; v=DMARC1", "", "v", "x v=DMARC1"] {
            assert!(!is_record(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_is_applied() {
        use DmarcPolicy::{None as NoPolicy, Quarantine, Reject};
        for (text, own, exists, expected) in [
            ("v=DMARC1; p=reject; sp=none; np=quarantine", true, true, Reject),
            ("v=DMARC1; p=reject; sp=none; np=quarantine", false, true, NoPolicy),
            ("v=DMARC1; p=reject; sp=none; np=quarantine", false, false, Quarantine),
            ("v=DMARC1; p=reject; sp=quarantine", false, false, Quarantine),
            ("v=DMARC1; p=reject", false, false, Reject),
            ("v=DMARC1; p=reject; t=y", true, true, Quarantine),
            ("v=DMARC1; p=quarantine; t=y", true, true, NoPolicy),
            ("v=DMARC1; p=none; np=reject; t=y", false, false, Quarantine),
        ] {
            assert_eq!(parse(text.as_bytes()).applied(own, exists), expected, "{text} {own} {exists}");
        }
    }

    #[test]
    fn walks() {
        assert_eq!(walk("a.b.example.com"), ["a.b.example.com", "b.example.com", "example.com", "com"]);
        assert_eq!(walk("com"), ["com"]);
        let long = "a.b.c.d.e.f.g.h.i.j.mail.example.com";
        let names = walk(long);
        assert_eq!(names.len(), 8);
        assert_eq!(names.first().copied(), Some(long));
        assert_eq!(names.get(1).copied(), Some("g.h.i.j.mail.example.com"));
        assert_eq!(walk("1.2.3.4.5.6.7.8").get(1).copied(), Some("2.3.4.5.6.7.8"));
    }

    #[test]
    fn organisational_domains() {
        for (start, records, organisational, own) in [
            ("a.mail.example.com", vec![("example.com", "")], "example.com", Some(false)),
            ("a.mail.example.com", vec![("mail.example.com", ""), ("example.com", "")], "example.com", Some(false)),
            ("a.mail.example.com", vec![("mail.example.com", "psd=n")], "mail.example.com", Some(false)),
            ("a.b.example.com", vec![("example.com", "psd=y")], "b.example.com", Some(false)),
            ("giant.bank.example", vec![("giant.bank.example", ""), ("bank.example", "psd=y")], "giant.bank.example", Some(true)),
            ("bank.example", vec![("bank.example", "psd=y")], "bank.example", Some(true)),
            ("example.com", vec![], "example.com", None),
        ] {
            let mut found = Found::default();
            for (name, tag) in records {
                found.add(name, parse(format!("v=DMARC1; p=reject; {tag}").as_bytes()));
            }
            assert_eq!(found.organisational(start), organisational, "{start}");
            assert_eq!(found.policy(start).map(|(_, own)| own), own, "{start}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(any::<u8>(), 0..200), name in "[a-z.]{0,40}") {
            is_record(&text);
            parse(&text);
            prop_assert!(walk(&name).len() <= 8);
            let mut found = Found::default();
            found.add("x", parse(b"v=DMARC1; p=none; psd=y"));
            found.policy(&name);
        }
    }
}
