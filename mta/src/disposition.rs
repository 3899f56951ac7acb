//! What becomes of a message for each recipient, and the one answer that SMTP has for all of them: pure.

use sekimori_crds::snapshot::TenantPart;
use sekimori_crds::vocabulary::{Action, DeliveryMode, Enforcement};
use serde::{Deserialize, Serialize};

use crate::smtp::Reply;
use crate::verdict::{Cause, Verdict};

/// What becomes of a message for one recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disposition {
    /// What is done.
    pub action: Action,
    /// The answer, for Reject and Defer.
    pub reply: Option<Reply>,
    /// The subject gets the policy's tag (where it has one).
    pub tag: bool,
    /// `X-Spam-Status: Yes`. True for everything that is unwanted, whether or not it is acted on.
    pub unwanted: bool,
    /// Why, in one line, for the quarantine, the log and people.
    pub reason: String,
}

/// The disposition for a recipient of `tenant`. (Its state Hold or Suspended is dealt with at RCPT.)
///
/// With `enforcement: Observe` everything is delivered; the headers still tell the verdict, but the subject stays as it is, as a tag is an action.
/// An `Inline` tenant keeps nothing at rest: Quarantine becomes Reject, unless only our own trouble asks for it (too few engines): that becomes Defer,
/// as a sender must not be told for ever that a mail is bad which nobody has scanned.
pub fn dispose(verdict: &Verdict, tenant: &TenantPart) -> Disposition {
    let mut action = verdict.action;
    if tenant.delivery == DeliveryMode::Inline && action == Action::Quarantine {
        let harshest = verdict.reasons.iter().filter(|reason| reason.action == action);
        let only_our_trouble = harshest.clone().count() > 0 && harshest.clone().all(|reason| matches!(reason.cause, Cause::TooFewEngines { .. }));
        action = if only_our_trouble { Action::Defer } else { Action::Reject };
    }
    if tenant.enforcement == Enforcement::Observe {
        action = Action::Deliver;
    }
    Disposition { action, reply: verdict.reply_for(action), tag: action == Action::Tag, unwanted: verdict.is_unwanted(), reason: verdict.summary() }
}

/// What becomes of one recipient's copy of a message that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Deliver.
    Deliver {
        /// With the subject tag.
        tag: bool,
    },
    /// Keep in the tenant's quarantine.
    Quarantine {
        /// Why.
        reason: String,
    },
    /// Drop, logged.
    Discard {
        /// Why.
        reason: String,
    },
    /// Spool, and judge again later.
    Rescan,
}

/// The one answer at the end of DATA, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody's copy is accepted.
    Refuse(Reply),
    /// 250, once each copy is where it belongs.
    Proceed {
        /// By index of the recipient, each once, in order.
        copies: Vec<(usize, Copy)>,
    },
}

/// Decides for all recipients of one transaction.
///
/// - All reject: the first one's 5xx. All defer: the first one's 4xx.
/// - Some reject, the others defer: the first 4xx. Nobody wants it yet, so nothing need be kept, and the next attempt is judged afresh for everybody;
///   a 5xx would lose the deferred copies, a 250 would put the rejected ones at rest for no one's sake.
/// - Else it is accepted: rejected copies go to their tenant's quarantine, deferred ones are spooled for a later scan.
pub fn decide(dispositions: &[Disposition]) -> Decision {
    let refused = |disposition: &Disposition| matches!(disposition.action, Action::Reject | Action::Defer);
    if !dispositions.is_empty() && dispositions.iter().all(refused) {
        let deferred = dispositions.iter().find(|disposition| disposition.action == Action::Defer);
        let answer = deferred.or_else(|| dispositions.first());
        return Decision::Refuse(answer.map_or_else(unexplained, refusal));
    }
    Decision::Proceed { copies: dispositions.iter().map(copy).enumerate().collect() }
}

fn copy(disposition: &Disposition) -> Copy {
    let reason = || disposition.reason.clone();
    match disposition.action {
        Action::Deliver | Action::Tag => Copy::Deliver { tag: disposition.tag },
        Action::Quarantine => Copy::Quarantine { reason: reason() },
        Action::Reject => Copy::Quarantine { reason: format!("{} (accepted for other recipients)", disposition.reason) },
        Action::Discard => Copy::Discard { reason: reason() },
        Action::Defer => Copy::Rescan,
    }
}

fn refusal(disposition: &Disposition) -> Reply {
    disposition.reply.clone().unwrap_or_else(|| match disposition.action {
        Action::Reject => Reply::new(550, (5, 7, 1), "message refused by the recipient's policy"),
        _ => unexplained(),
    })
}

fn unexplained() -> Reply {
    Reply::new(451, (4, 7, 1), "message deferred by the recipient's policy, try again later")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sekimori_crds::snapshot::Policy;
    use sekimori_crds::vocabulary::{EngineClass, TenantState};

    use super::*;
    use crate::verdict::{AntiSpam, AntiVirus, Reason};

    fn tenant(delivery: DeliveryMode, enforcement: Enforcement) -> TenantPart {
        let policy: Policy = serde_json::from_str(
            r#"{"antiVirus":{"infected":"Reject","tooLarge":"Quarantine","limitsExceeded":"Quarantine","malformed":"Quarantine","minimumEngines":1,
            "tooFewEngines":"Defer"},"antiSpam":{"minimumEngines":1,"combine":{"majority":{"action":"Tag"}},"tooFewEngines":"PassUnscanned","subjectTag":""},
            "authentication":{"spf":"Observe","dmarc":"Enforce","onTempError":"Continue"},
            "attachments":{"blockTypes":[],"encryptedArchives":"Deliver"},"lists":{"allow":[],"deny":[]}}"#,
        )
        .expect("a policy");
        TenantPart {
            namespace: "n".into(),
            name: "t".into(),
            domains: vec!["example.com".into()],
            state: TenantState::Active,
            suspended_since: None,
            enforcement,
            routes: vec![],
            delivery,
            soft_bounce: false,
            messages_per_hour: None,
            policy,
            requires: BTreeSet::new(),
        }
    }

    fn verdict(action: Action, cause: Cause) -> Verdict {
        let mut verdict = Verdict {
            action,
            reply: None,
            anti_virus: AntiVirus::Clean,
            anti_spam: AntiSpam::Spam,
            decibans: Some(25),
            unscanned: vec![],
            encrypted: false,
            reasons: vec![Reason { action, cause }],
            opinions: vec![],
        };
        verdict.reply = verdict.reply_for(action);
        verdict
    }

    /// Action that is asked for, mode, enforcement: action that is done, code, tag, unwanted.
    fn check(cause: &Cause, asked: Action, delivery: DeliveryMode, enforcement: Enforcement, done: Action, code: Option<u16>, unwanted: bool) {
        let found = dispose(&verdict(asked, cause.clone()), &tenant(delivery, enforcement));
        let what = format!("{asked} because of {cause}, {delivery}, {enforcement}");
        assert_eq!((found.action, found.reply.as_ref().map(|reply| reply.code)), (done, code), "{what}");
        assert_eq!((found.tag, found.unwanted), (done == Action::Tag, unwanted), "{what}");
        assert!(found.reason.starts_with(asked.as_str()), "{what}: {}", found.reason);
    }

    #[test]
    fn a_tenant_gets_what_its_verdict_asks_for() {
        let spam = Cause::Spam { score: 25 };
        for delivery in [DeliveryMode::InlineElseQueue, DeliveryMode::Queue] {
            for (asked, code) in [
                (Action::Deliver, None),
                (Action::Tag, None),
                (Action::Defer, Some(451)),
                (Action::Quarantine, None),
                (Action::Discard, None),
                (Action::Reject, Some(550)),
            ] {
                check(&spam, asked, delivery, Enforcement::Enforce, asked, code, asked != Action::Deliver);
            }
        }
    }

    #[test]
    fn observe_acts_on_nothing_and_marks_everything() {
        for delivery in DeliveryMode::ALL {
            for asked in Action::ALL {
                check(&Cause::Spam { score: 25 }, *asked, *delivery, Enforcement::Observe, Action::Deliver, None, *asked != Action::Deliver);
            }
        }
    }

    #[test]
    fn inline_keeps_nothing_at_rest() {
        let few = Cause::TooFewEngines { class: EngineClass::AntiVirus, complete: 0, needed: 1 };
        let spam = Cause::Spam { score: 25 };
        let inline =
            |cause: &Cause, asked, done, code, unwanted| check(cause, asked, DeliveryMode::Inline, Enforcement::Enforce, done, code, unwanted);
        inline(&spam, Action::Quarantine, Action::Reject, Some(550), true);
        inline(&few, Action::Quarantine, Action::Defer, Some(451), false);
        inline(&spam, Action::Reject, Action::Reject, Some(550), true);
        inline(&spam, Action::Discard, Action::Discard, None, true);
        inline(&spam, Action::Tag, Action::Tag, None, true);
        let mut both = verdict(Action::Quarantine, few);
        both.reasons.push(Reason { action: Action::Quarantine, cause: spam });
        assert_eq!(dispose(&both, &tenant(DeliveryMode::Inline, Enforcement::Enforce)).action, Action::Reject);
    }

    fn disposition(action: Action, recipient: usize) -> Disposition {
        let reply = match action {
            Action::Reject => Some(Reply::new(550, (5, 7, 1), format!("refused {recipient}"))),
            Action::Defer => Some(Reply::new(451, (4, 7, 1), format!("deferred {recipient}"))),
            _ => None,
        };
        Disposition { action, reply, tag: action == Action::Tag, unwanted: action != Action::Deliver, reason: format!("reason {recipient}") }
    }

    /// The answer and the copies in a few letters: D deliver, T deliver with tag, Q quarantine, X discard, R rescan.
    fn outline(actions: &[Action]) -> String {
        let dispositions: Vec<Disposition> = actions.iter().enumerate().map(|(i, action)| disposition(*action, i)).collect();
        match decide(&dispositions) {
            Decision::Refuse(reply) => format!("{} {}", reply.code, reply.text),
            Decision::Proceed { copies } => {
                let mut letters = String::from("250 ");
                for (i, (index, copy)) in copies.into_iter().enumerate() {
                    assert_eq!(i, index);
                    let (letter, reason) = match copy {
                        Copy::Deliver { tag: false } => ("D", None),
                        Copy::Deliver { tag: true } => ("T", None),
                        Copy::Quarantine { reason } => ("Q", Some(reason)),
                        Copy::Discard { reason } => ("X", Some(reason)),
                        Copy::Rescan => ("R", None),
                    };
                    assert!(reason.is_none_or(|reason| reason.starts_with(&format!("reason {index}"))));
                    letters.push_str(letter);
                }
                letters
            }
        }
    }

    #[test]
    fn every_pair_of_recipients() {
        // Rows: the first recipient; columns: the second. In the order Deliver, Tag, Defer, Quarantine, Discard, Reject.
        let table = [
            ["250 DD", "250 DT", "250 DR", "250 DQ", "250 DX", "250 DQ"],
            ["250 TD", "250 TT", "250 TR", "250 TQ", "250 TX", "250 TQ"],
            ["250 RD", "250 RT", "451 deferred 0", "250 RQ", "250 RX", "451 deferred 0"],
            ["250 QD", "250 QT", "250 QR", "250 QQ", "250 QX", "250 QQ"],
            ["250 XD", "250 XT", "250 XR", "250 XQ", "250 XX", "250 XQ"],
            ["250 QD", "250 QT", "451 deferred 1", "250 QQ", "250 QX", "550 refused 0"],
        ];
        for (row, first) in table.iter().zip(Action::ALL) {
            for (expected, second) in row.iter().zip(Action::ALL) {
                assert_eq!(outline(&[*first, *second]), *expected, "{first}, {second}");
            }
        }
    }

    #[test]
    fn every_three_recipients() {
        let letter = |action: &Action| ["D", "T", "R", "Q", "X", "Q"][Action::ALL.iter().position(|a| a == action).expect("one of them")];
        let mut counts = [0; 3];
        for a in Action::ALL {
            for b in Action::ALL {
                for c in Action::ALL {
                    let all = [*a, *b, *c];
                    let rejects = all.iter().filter(|action| **action == Action::Reject).count();
                    let defers: Vec<usize> = (0..3).filter(|i| all[*i] == Action::Defer).collect();
                    let (expected, kind) = match (rejects, defers.len()) {
                        (3, _) => ("550 refused 0".to_owned(), 0),
                        (r, d) if r + d == 3 => (format!("451 deferred {}", defers[0]), 1),
                        _ => (format!("250 {}{}{}", letter(a), letter(b), letter(c)), 2),
                    };
                    assert_eq!(outline(&all), expected, "{all:?}");
                    counts[kind] += 1;
                }
            }
        }
        assert_eq!(counts, [1, 7, 208]);
    }

    #[test]
    fn one_recipient_and_none() {
        let outlines: Vec<String> = Action::ALL.iter().map(|action| outline(&[*action])).collect();
        assert_eq!(outlines, ["250 D", "250 T", "451 deferred 0", "250 Q", "250 X", "550 refused 0"]);
        assert_eq!(decide(&[]), Decision::Proceed { copies: vec![] });
        // A disposition that lost its reply is still refused, never accepted.
        let bare = |action| Disposition { reply: None, ..disposition(action, 0) };
        assert!(matches!(decide(&[bare(Action::Reject)]), Decision::Refuse(reply) if reply.code == 550));
        assert!(matches!(decide(&[bare(Action::Defer)]), Decision::Refuse(reply) if reply.code == 451));
    }
}
