//! DMARC (RFC 9989): the walk up the tree, the policy that applies, alignment.

use std::collections::HashMap;

use crate::authentication::dmarc::{self, Found, Record};
use crate::authentication::{Authentication, Dkim, Dmarc, DmarcPolicy, DmarcResult, Spf, domain};
use crate::io::dns::{Absence, Budget, Lookup, Resolver};
use crate::message::{Defect, Message};

/// DNS gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Temporary;

/// What each name's lookup gave, so that no name is asked for twice.
#[derive(Default)]
struct Asked(HashMap<String, Option<Record>>);

impl Asked {
    async fn record(&mut self, resolver: &dyn Resolver, name: &str) -> Result<Option<Record>, Temporary> {
        if let Some(known) = self.0.get(name) {
            return Ok(known.clone());
        }
        let texts = match resolver.txt(&format!("_dmarc.{name}")).await {
            Lookup::Records(texts) => texts,
            Lookup::Absent(_) => std::sync::Arc::new([]),
            Lookup::TempError | Lookup::Malformed => return Err(Temporary),
        };
        let mut records = texts.iter().filter(|text| dmarc::is_record(text));
        // Several records are none (RFC 9989 section 4.10).
        let record = match (records.next(), records.next()) {
            (Some(text), None) => Some(dmarc::parse(text)),
            _ => None,
        };
        self.0.insert(name.to_owned(), record.clone());
        Ok(record)
    }

    async fn walk(&mut self, resolver: &dyn Resolver, start: &str) -> Result<Found, Temporary> {
        let mut found = Found::default();
        for name in dmarc::walk(start) {
            if let Some(record) = self.record(resolver, name).await?
                && !found.add(name, record)
            {
                break;
            }
        }
        Ok(found)
    }
}

/// The policy of From's domain, before SPF and DKIM are known.
enum Policy {
    /// The result is known already.
    Settled(Dmarc),
    Applies {
        policy: DmarcPolicy,
        strict_spf: bool,
        strict_dkim: bool,
        organisational: String,
    },
}

/// One message's evaluation: begun beside SPF and DKIM, finished with their results.
pub(super) struct Evaluation<'a> {
    resolver: &'a Budget<'a>,
    from_domain: String,
    policy: Policy,
    asked: Asked,
}

impl<'a> Evaluation<'a> {
    pub(super) async fn begin(resolver: &'a Budget<'a>, message: &Message) -> Self {
        let mut asked = Asked::default();
        let (from_domain, usable) = from_domain(message);
        let policy = if usable { applying(resolver, &mut asked, &from_domain).await } else { Policy::Settled(Dmarc::PermError) };
        Self { resolver, from_domain, policy, asked }
    }

    /// `None` where SPF could not be judged and only it could have passed: nothing can be said then.
    pub(super) async fn finish(mut self, found: &Authentication) -> Option<DmarcResult> {
        let (result, policy) = match std::mem::replace(&mut self.policy, Policy::Settled(Dmarc::None)) {
            Policy::Settled(result) => (result, DmarcPolicy::None),
            Policy::Applies { policy, strict_spf, strict_dkim, organisational } => {
                let result = self.judge(found, strict_spf, strict_dkim, &organisational).await;
                if found.spf.is_none() && result == Dmarc::Fail {
                    return None;
                }
                (result, policy)
            }
        };
        Some(DmarcResult { result, from_domain: self.from_domain, policy })
    }

    async fn judge(&mut self, found: &Authentication, strict_spf: bool, strict_dkim: bool, organisational: &str) -> Dmarc {
        let spf = found.spf.map(|result| (result == Spf::Pass, result == Spf::TempError, found.spf_domain.as_str(), strict_spf));
        let dkim = found.dkim.iter().map(|one| (one.result == Dkim::Pass, one.result == Dkim::TempError, one.domain.as_str(), strict_dkim));
        let mut undecided = false;
        for (passed, failed_for_now, identifier, strict) in spf.into_iter().chain(dkim) {
            if !passed && !failed_for_now {
                continue;
            }
            match self.aligned(identifier, strict, organisational).await {
                Ok(true) if passed => return Dmarc::Pass,
                Ok(true) | Err(Temporary) => undecided = true,
                Ok(false) => {}
            }
        }
        if undecided { Dmarc::TempError } else { Dmarc::Fail }
    }

    /// RFC 9989 section 4.4: the same domain, or, relaxed, the same organisational domain.
    async fn aligned(&mut self, identifier: &str, strict: bool, organisational: &str) -> Result<bool, Temporary> {
        let Some(identifier) = domain::normalise(identifier) else { return Ok(false) };
        if identifier == self.from_domain {
            return Ok(true);
        }
        // The organisational domain of a name is the name or one above it: elsewhere nobody need be asked.
        if strict || !domain::at_or_below(&identifier, organisational) {
            return Ok(false);
        }
        let found = self.asked.walk(self.resolver, &identifier).await?;
        Ok(found.organisational(&identifier) == organisational)
    }
}

/// The domain of From, and whether it is one that a policy can be looked up for: exactly one From field, all its addresses in one
/// domain, and no part of the header left unread, where another might be.
fn from_domain(message: &Message) -> (String, bool) {
    let mut domains = message.from.iter().map(|mailbox| domain::normalise(&mailbox.domain).filter(|name| usable(name)));
    let Some(first) = domains.next() else { return (String::new(), false) };
    let same = domains.all(|other| other == first);
    let name = first.clone().unwrap_or_else(|| message.from.first().map(|mailbox| mailbox.domain.clone()).unwrap_or_default());
    let complete = !message.defects.contains(&Defect::HeadersTooLarge);
    (name, first.is_some() && same && message.from_fields == 1 && complete)
}

fn usable(name: &str) -> bool {
    !name.starts_with('[') && name.bytes().all(|byte| byte.is_ascii_graphic())
}

async fn applying(resolver: &dyn Resolver, asked: &mut Asked, from_domain: &str) -> Policy {
    let Ok(found) = asked.walk(resolver, from_domain).await else { return Policy::Settled(Dmarc::TempError) };
    let Some((record, own)) = found.policy(from_domain).filter(|(record, _)| record.usable) else { return Policy::Settled(Dmarc::None) };
    // Only where `np` would say something else does it matter whether the domain exists.
    let matters = !own && record.applied(false, true) != record.applied(false, false);
    let exists = !matters || exists(resolver, from_domain).await;
    Policy::Applies {
        policy: record.applied(own, exists),
        strict_spf: record.strict_spf,
        strict_dkim: record.strict_dkim,
        organisational: found.organisational(from_domain).to_owned(),
    }
}

/// RFC 9989 section 3.2.13: a domain without A, AAAA and MX records does not exist. When in doubt it does.
async fn exists(resolver: &dyn Resolver, name: &str) -> bool {
    let decided = |absence: &Absence| *absence == Absence::Name;
    match resolver.a(name).await {
        Lookup::Absent(absence) if decided(&absence) => return false,
        Lookup::Absent(_) => {}
        Lookup::Records(_) | Lookup::TempError | Lookup::Malformed => return true,
    }
    match resolver.aaaa(name).await {
        Lookup::Absent(_) => {}
        Lookup::Records(_) | Lookup::TempError | Lookup::Malformed => return true,
    }
    !matches!(resolver.mx(name).await, Lookup::Absent(_))
}
