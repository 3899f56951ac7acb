//! One verdict from many opinions: pure.
//!
//! Nothing here knows how an opinion was had, nor what becomes of the message: that is the disposition's ([`crate::disposition`]).

mod anti_spam;
mod anti_virus;
mod explain;
mod sender;

pub(crate) use explain::printable;

use std::collections::BTreeSet;
use std::sync::Arc;

use sekimori_crds::snapshot::Policy;
use sekimori_crds::vocabulary::{Action, EngineClass, EngineMode, TooFewEngines};
use serde::{Deserialize, Serialize};

use crate::authentication::Authentication;
use crate::envelope::Client;
use crate::message::Mailbox;
use crate::smtp::{Address, Reply};

/// What one engine said of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opinion {
    /// Name of the engine.
    pub engine: Arc<str>,
    /// Engines of one family share a vote.
    pub family: Arc<str>,
    /// Its class.
    pub class: EngineClass,
    /// The version that answered, as the engine or its object says; `?` when unknown.
    pub version: Arc<str>,
    /// Enforce counts; Shadow is only measured.
    pub mode: EngineMode,
    /// Weight, 100 is full.
    pub weight_percent: u32,
    /// How long it took.
    pub millis: u32,
    /// What it found.
    pub finding: Finding,
    /// Heuristic names: evidence of spam by an engine of any class, never proof of malware.
    pub evidence: Vec<Evidence>,
}

/// What a scan found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// A complete scan found nothing (anti-virus).
    Clean,
    /// A complete scan gave a score (anti-spam), low or high.
    Spam(SpamScore),
    /// Malware, by this name.
    Infected(String),
    /// A scan that could not see everything.
    Unscannable(Unscannable),
    /// No scan.
    Failed(Failure),
}

/// Why a scan could not see everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unscannable {
    /// Content is encrypted.
    Encrypted,
    /// The message is larger than the engine takes.
    TooLarge,
    /// Depth, number, size or time within the engine ran out.
    LimitsExceeded,
    /// Content is broken beyond reading.
    Malformed,
    /// This content killed the engine before (a conviction), so it is not given to it again.
    Convicted,
}

/// Why there was no scan.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Failure {
    /// No answer within the deadline.
    Timeout,
    /// Cut off by its circuit breaker.
    BreakerOpen,
    /// All its scan slots stayed taken.
    Busy,
    /// No connection, or it broke.
    Unreachable(String),
    /// An answer that the protocol does not allow.
    Protocol(String),
}

/// A score in the engine's own unit, and what the engine makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpamScore {
    /// Thousandths of a point.
    pub milli: i64,
    /// Its threshold for spam, thousandths of a point, above zero.
    pub required_milli: i64,
    /// Its threshold for rejection, thousandths of a point, above `required_milli`.
    pub reject_milli: i64,
    /// The engine is certain (GTUBE, forced reject): decides alone.
    pub certain: bool,
}

/// Something that makes spam more likely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The name that the engine gave.
    pub name: String,
    /// How much it says.
    pub decibans: i32,
}

/// What a verdict is made of, besides the policy.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What the engines said, in any order.
    pub opinions: &'a [Opinion],
    /// What sender authentication found.
    pub authentication: &'a Authentication,
    /// Who is connected.
    pub client: &'a Client,
    /// MAIL FROM; `None` is the null reverse-path.
    pub sender: Option<&'a Address>,
    /// Addresses of From.
    pub from: &'a [Mailbox],
    /// File names of attachments ([`crate::message::Message::file_names`]).
    pub file_names: &'a [String],
    /// File names are missing: an archive was not looked into, or not to its end. Counts where a policy blocks types.
    pub file_names_cut: bool,
    /// The gateway is about to end: too few engines always means defer.
    pub terminating: bool,
}

/// What anti-virus came to, first match wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AntiVirus {
    /// An engine found malware of this name.
    Infected(String),
    /// Content is encrypted, so that nobody could look into it.
    Encrypted,
    /// Complete scans by enough engines found nothing.
    Clean,
    /// Not enough complete scans, as content could not be scanned.
    Unscannable(Unscannable),
    /// Not enough complete scans, as engines are missing.
    TooFewEngines,
}

/// What anti-spam came to, first match wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AntiSpam {
    /// An entry of the tenant's deny list.
    Denied,
    /// An entry of the tenant's allow list.
    Allowed,
    /// An engine is certain that it is spam.
    Certain,
    /// The score reached a threshold.
    Spam,
    /// It reached none.
    Ham,
    /// Not enough complete scans, and those that there are reach no threshold.
    TooFewEngines,
}

/// Something that asks for an action.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    /// What is asked for.
    pub action: Action,
    /// Why.
    pub cause: Cause,
}

/// Why an action is asked for. In the order in which a reply prefers them when several ask for the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// Malware.
    Infected {
        /// The engine.
        engine: Arc<str>,
        /// The name that it gave.
        name: String,
    },
    /// SPF fail, enforced.
    Spf {
        /// The domain that does not authorise the client.
        domain: String,
    },
    /// DMARC fail, enforced.
    Dmarc {
        /// The domain of From.
        domain: String,
    },
    /// From names several domains, so that nobody can say whose mail it is, and DMARC is enforced.
    AmbiguousFrom {
        /// How many.
        domains: u32,
    },
    /// A blocked file type.
    Attachment {
        /// The extension.
        extension: String,
    },
    /// An entry of the deny list.
    Denied {
        /// The entry, `Type:value`.
        entry: String,
    },
    /// An engine is certain.
    Certain {
        /// The engine.
        engine: Arc<str>,
    },
    /// The spam score.
    Spam {
        /// The score, in the unit of the policy's way to combine.
        score: i32,
    },
    /// Content that could not be scanned.
    Unscannable {
        /// The engine.
        engine: Arc<str>,
        /// Why not.
        what: Unscannable,
    },
    /// Encrypted content.
    Encrypted {
        /// The engine.
        engine: Arc<str>,
    },
    /// Fewer complete scans than the policy's minimum.
    TooFewEngines {
        /// The class.
        class: EngineClass,
        /// Engine families that completed a scan.
        complete: u32,
        /// Minimum.
        needed: u32,
    },
    /// DNS failed for SPF or DMARC.
    DnsFailed {
        /// `SPF` or `DMARC`.
        check: String,
    },
    /// An entry of the allow list: asks for nothing, and says why nothing else does.
    Allowed {
        /// The entry, `Type:value`.
        entry: String,
    },
}

/// One verdict: what is to be done with a message under one policy, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The harshest action that anything asks for.
    pub action: Action,
    /// The answer at the end of DATA, for Reject and Defer.
    pub reply: Option<Reply>,
    /// What anti-virus came to.
    pub anti_virus: AntiVirus,
    /// What anti-spam came to.
    pub anti_spam: AntiSpam,
    /// The spam score in decibans (10: ten to one that it is spam), if the policy combines by log-odds and an engine answered.
    pub decibans: Option<i32>,
    /// Classes with fewer complete scans than the policy's minimum, or with none; anti-virus also where archives were not looked into for blocked types.
    pub unscanned: Vec<EngineClass>,
    /// An engine met encrypted content.
    pub encrypted: bool,
    /// Everything that asked for an action, the harshest first.
    pub reasons: Vec<Reason>,
    /// The opinions that it was made of, sorted by class and engine; shadow engines are among them and did not count.
    pub opinions: Vec<Opinion>,
}

/// Judges a message under one policy. Pure; the order of the opinions does not matter, and shadow opinions change nothing.
///
/// Each class asks for an action: anti-virus, sender authentication, attachments, anti-spam. The harshest is the verdict's.
pub fn judge(facts: &Facts<'_>, policy: &Policy) -> Verdict {
    let mut opinions = facts.opinions.to_vec();
    opinions.sort_by(|a, b| (a.class, &a.engine, &a.version).cmp(&(b.class, &b.engine, &b.version)));
    let counted: Vec<&Opinion> = opinions.iter().filter(|opinion| opinion.mode == EngineMode::Enforce).collect();
    let mut reasons = vec![];
    let virus = anti_virus::judge(&counted, policy, facts.terminating, &mut reasons);
    let spam = anti_spam::judge(&counted, facts, policy, &mut reasons);
    sender::judge_authentication(facts, policy, &mut reasons);
    let attachments_cut = sender::judge_attachments(facts, policy, &mut reasons);
    let virus_unscanned = virus.unscanned || attachments_cut && !matches!(virus.outcome, AntiVirus::Infected(_));
    reasons.sort_by(|a, b| b.action.cmp(&a.action).then_with(|| a.cause.cmp(&b.cause)));
    let action = reasons.first().map_or(Action::Deliver, |reason| reason.action);
    let mut verdict = Verdict {
        action,
        reply: None,
        anti_virus: virus.outcome,
        anti_spam: spam.outcome,
        decibans: spam.decibans,
        unscanned: virus_unscanned.then_some(EngineClass::AntiVirus).into_iter().chain(spam.unscanned.then_some(EngineClass::AntiSpam)).collect(),
        encrypted: virus.encrypted,
        reasons,
        opinions,
    };
    verdict.reply = verdict.reply_for(action);
    verdict
}

/// Families of which an engine satisfies `wanted`: engines of one family share a vote, so they are counted once.
fn families(opinions: &[&Opinion], class: EngineClass, wanted: impl Fn(&Finding) -> bool) -> u32 {
    let names: BTreeSet<&str> =
        opinions.iter().filter(|opinion| opinion.class == class && wanted(&opinion.finding)).map(|opinion| &*opinion.family).collect();
    u32::try_from(names.len()).unwrap_or(u32::MAX)
}

/// What a policy does with too few engines; while terminating it is always Defer.
const fn too_few_action(policy: TooFewEngines, terminating: bool) -> Action {
    match policy {
        _ if terminating => Action::Defer,
        TooFewEngines::Defer => Action::Defer,
        TooFewEngines::Quarantine => Action::Quarantine,
        TooFewEngines::PassUnscanned => Action::Deliver,
    }
}

#[cfg(test)]
mod tests;
