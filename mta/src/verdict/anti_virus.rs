//! Anti-virus, in this order: Infected by any engine of any class; Encrypted; Clean by enough complete scans; other Unscannable; too few engines.
//!
//! Engines of one family share a vote: `minimumEngines` counts families. One member's complete scan is its family's; Infected by one member is enough.

use sekimori_crds::snapshot::Policy;
use sekimori_crds::vocabulary::{Action, EngineClass};

use super::{AntiVirus, Cause, Finding, Opinion, Reason, Unscannable, families, too_few_action};

pub(super) struct Judged {
    pub(super) outcome: AntiVirus,
    pub(super) unscanned: bool,
    pub(super) encrypted: bool,
}

/// Judges the opinions that count, and says what is asked for.
pub(super) fn judge(opinions: &[&Opinion], policy: &Policy, terminating: bool, reasons: &mut Vec<Reason>) -> Judged {
    let needed = policy.anti_virus.minimum_engines;
    let ours = || opinions.iter().filter(|opinion| opinion.class == EngineClass::AntiVirus);
    let complete = families(opinions, EngineClass::AntiVirus, |finding| *finding == Finding::Clean);
    // An engine that met something encrypted has scanned the rest.
    let scanned =
        families(opinions, EngineClass::AntiVirus, |finding| matches!(finding, Finding::Clean | Finding::Unscannable(Unscannable::Encrypted)));
    let answered = families(opinions, EngineClass::AntiVirus, |finding| matches!(finding, Finding::Clean | Finding::Unscannable(_)));
    let encrypted_by = ours().find(|opinion| opinion.finding == Finding::Unscannable(Unscannable::Encrypted));
    let infected: Vec<(&Opinion, &String)> = opinions
        .iter()
        .filter_map(|opinion| match &opinion.finding {
            Finding::Infected(name) => Some((*opinion, name)),
            _ => None,
        })
        .collect();
    let unscannable: Vec<(&Opinion, Unscannable)> = ours()
        .filter_map(|opinion| match opinion.finding {
            Finding::Unscannable(what) if what != Unscannable::Encrypted => Some((*opinion, what)),
            _ => None,
        })
        .collect();
    let too_few = |action: Action| Reason { action, cause: Cause::TooFewEngines { class: EngineClass::AntiVirus, complete, needed } };

    let outcome = if let Some((_, name)) = infected.first() {
        reasons.extend(infected.iter().map(|(opinion, name)| Reason {
            action: policy.anti_virus.infected,
            cause: Cause::Infected { engine: opinion.engine.clone(), name: (*name).clone() },
        }));
        AntiVirus::Infected((*name).clone())
    } else if let Some(opinion) = encrypted_by {
        reasons.push(Reason { action: policy.attachments.encrypted_archives, cause: Cause::Encrypted { engine: opinion.engine.clone() } });
        reasons.extend((terminating && answered < needed).then(|| too_few(Action::Defer)));
        AntiVirus::Encrypted
    } else if complete >= needed {
        AntiVirus::Clean
    } else if !unscannable.is_empty() {
        let found = unscannable.iter().map(|(opinion, what)| Reason {
            action: unscannable_action(*what, policy),
            cause: Cause::Unscannable { engine: opinion.engine.clone(), what: *what },
        });
        reasons.extend(found);
        reasons.extend((terminating && answered < needed).then(|| too_few(Action::Defer)));
        let harshest = unscannable.iter().map(|(_, what)| *what).max_by_key(|what| (unscannable_action(*what, policy), *what));
        AntiVirus::Unscannable(harshest.unwrap_or(Unscannable::Malformed))
    } else {
        reasons.push(too_few(too_few_action(policy.anti_virus.too_few_engines, terminating)));
        AntiVirus::TooFewEngines
    };
    // A message in which malware was found is not called unscanned.
    let unscanned = infected.is_empty() && (scanned < needed || scanned == 0);
    Judged { outcome, unscanned, encrypted: encrypted_by.is_some() }
}

/// Content that killed an engine is treated as malformed: it is broken beyond that engine's reading.
pub(super) const fn unscannable_action(what: Unscannable, policy: &Policy) -> Action {
    match what {
        Unscannable::TooLarge => policy.anti_virus.too_large,
        Unscannable::LimitsExceeded => policy.anti_virus.limits_exceeded,
        Unscannable::Malformed | Unscannable::Convicted => policy.anti_virus.malformed,
        Unscannable::Encrypted => policy.attachments.encrypted_archives,
    }
}
