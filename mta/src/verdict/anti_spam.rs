//! Anti-spam: the tenant's lists, then engines that are certain, then the combined score, then too few engines.
//!
//! What engines say is weighed by `weightPercent`; engines of one family share one vote, which is their mean. Engines that are missing drop out. What an
//! engine of another class calls heuristic is evidence: it adds to the score, and is no anti-spam scan. All sums are of integers, rounded down once, so
//! that neither the order of arrival matters nor a higher score can ever lower the result.

use std::collections::BTreeMap;

use sekimori_crds::snapshot::{Combine, Policy, Thresholds};
use sekimori_crds::vocabulary::{Action, EngineClass};

use super::{AntiSpam, Cause, Facts, Finding, Opinion, Reason, SpamScore, families, sender, too_few_action};

/// No opinion but a certain one says more than 39 decibans (8000 to one).
const CLIP_DECIBANS: i64 = 39;
/// An engine's own threshold for spam, and its own threshold for rejection, in decibans: the calibration of a version without labels.
const REQUIRED_DECIBANS: i64 = 10;
const REJECT_DECIBANS: i64 = 30;
/// Scores are computed in thousandths.
const MILLI: i64 = 1000;
/// Keeps any sum of scores far from overflowing, whatever an engine answers.
const HUNDREDTHS_MAX: i64 = 1_000_000;
/// A weight above this is taken for this.
const WEIGHT_PERCENT_MAX: u32 = 1000;

pub(super) struct Judged {
    pub(super) outcome: AntiSpam,
    pub(super) decibans: Option<i32>,
    pub(super) unscanned: bool,
}

/// Judges the opinions that count, and says what is asked for.
pub(super) fn judge(opinions: &[&Opinion], facts: &Facts<'_>, policy: &Policy, reasons: &mut Vec<Reason>) -> Judged {
    let needed = policy.anti_spam.minimum_engines;
    let complete = families(opinions, EngineClass::AntiSpam, |finding| matches!(finding, Finding::Clean | Finding::Spam(_)));
    let combined = combine(opinions, &policy.anti_spam.combine);
    let decibans = combined.score.filter(|_| matches!(policy.anti_spam.combine, Combine::LogOdds { .. }));
    let judged = |outcome: AntiSpam| Judged { outcome, decibans, unscanned: complete < needed || complete == 0 };

    if let Some(entry) = sender::denied(facts, &policy.lists.deny) {
        reasons.push(Reason { action: Action::Reject, cause: Cause::Denied { entry } });
        return judged(AntiSpam::Denied);
    }
    if let Some(entry) = sender::allowed(facts, policy) {
        reasons.push(Reason { action: Action::Deliver, cause: Cause::Allowed { entry } });
        return judged(AntiSpam::Allowed);
    }
    let certain = opinions.iter().filter(|opinion| matches!(opinion.finding, Finding::Spam(SpamScore { certain: true, .. })));
    let mut outcome = None;
    for opinion in certain {
        reasons.push(Reason { action: Action::Reject, cause: Cause::Certain { engine: opinion.engine.clone() } });
        outcome = Some(AntiSpam::Certain);
    }
    if let Some(outcome) = outcome {
        return judged(outcome);
    }
    if combined.action > Action::Deliver {
        reasons.push(Reason { action: combined.action, cause: Cause::Spam { score: combined.score.unwrap_or(0) } });
        outcome = Some(AntiSpam::Spam);
    }
    if complete < needed {
        // What the engines that answered say still counts.
        let action = too_few_action(policy.anti_spam.too_few_engines, facts.terminating);
        reasons.push(Reason { action, cause: Cause::TooFewEngines { class: EngineClass::AntiSpam, complete, needed } });
        return judged(outcome.unwrap_or(AntiSpam::TooFewEngines));
    }
    judged(outcome.unwrap_or(AntiSpam::Ham))
}

struct Combined {
    /// In the unit of the way to combine; none if nobody said anything.
    score: Option<i32>,
    action: Action,
}

fn combine(opinions: &[&Opinion], way: &Combine) -> Combined {
    // An engine of another class without evidence says nothing; with nobody saying anything the prior alone is no verdict.
    let says = |opinion: &Opinion| is_member(opinion) && (opinion.class == EngineClass::AntiSpam || !opinion.evidence.is_empty());
    let members = || opinions.iter().copied().filter(|_| opinions.iter().any(|opinion| says(opinion)));
    let (milli, at) = match way {
        Combine::LogOdds { prior_decibans, at } => (sum(members(), decibans_milli).map(|sum| sum + i64::from(*prior_decibans) * MILLI), at),
        Combine::WeightedSum { at } => (sum(members(), hundredths_milli), at),
        Combine::Maximum { at } => {
            (opinions.iter().copied().filter(|opinion| says(opinion) && opinion.weight_percent > 0).map(hundredths_milli).max(), at)
        }
        Combine::Majority { action } => return majority(opinions, *action),
    };
    let score = milli.map(|milli| saturating_i32(milli.div_euclid(MILLI)));
    Combined { score, action: score.map_or(Action::Deliver, |score| reached(score, at)) }
}

/// Whether an opinion takes part in its family's mean. An engine of another class does with or without evidence, so that more evidence never weighs less.
fn is_member(opinion: &Opinion) -> bool {
    match opinion.class {
        EngineClass::AntiSpam => matches!(opinion.finding, Finding::Spam(_) | Finding::Clean),
        EngineClass::AntiVirus | EngineClass::Sandbox => !matches!(opinion.finding, Finding::Failed(_)),
    }
}

/// The harshest action whose bound is reached.
fn reached(score: i32, at: &Thresholds) -> Action {
    let bounds = [(at.reject_at, Action::Reject), (at.quarantine_at, Action::Quarantine), (at.tag_at, Action::Tag)];
    bounds.into_iter().find(|(bound, _)| bound.is_some_and(|bound| score >= bound)).map_or(Action::Deliver, |(_, action)| action)
}

/// Weighted sum over families of the mean of their members, in thousandths; none without a member.
fn sum<'a>(opinions: impl Iterator<Item = &'a Opinion>, value: impl Fn(&Opinion) -> i64) -> Option<i64> {
    let mut votes: BTreeMap<(EngineClass, &str), (i64, i64)> = BTreeMap::new();
    for opinion in opinions.filter(|opinion| is_member(opinion)) {
        let (sum, members) = votes.entry((opinion.class, &opinion.family)).or_default();
        *sum += value(opinion) * i64::from(opinion.weight_percent.min(WEIGHT_PERCENT_MAX));
        *members += 1;
    }
    (!votes.is_empty()).then(|| votes.values().map(|(sum, members)| sum.div_euclid(100 * members)).sum())
}

/// More than half of the weight says spam, each engine by its own threshold. Evidence does not vote: an engine without any does not say that it is ham.
fn majority(opinions: &[&Opinion], action: Action) -> Combined {
    let voters = || opinions.iter().copied().filter(|opinion| opinion.class == EngineClass::AntiSpam);
    let says_spam = |opinion: &Opinion| matches!(&opinion.finding, Finding::Spam(score) if score.milli >= score.required_milli);
    let spam = sum(voters(), |opinion| if says_spam(opinion) { 100 * MILLI } else { 0 });
    match (spam, sum(voters(), |_| 100 * MILLI)) {
        (Some(spam), Some(all)) if all > 0 => {
            let action = if 2 * spam > all { action } else { Action::Deliver };
            Combined { score: Some(saturating_i32(100 * spam / all)), action }
        }
        _ => Combined { score: None, action: Action::Deliver },
    }
}

/// What an opinion says, in thousandths of a deciban, clipped.
fn decibans_milli(opinion: &Opinion) -> i64 {
    let clip = CLIP_DECIBANS * MILLI;
    let own = match &opinion.finding {
        Finding::Spam(score) => native_milli(score),
        _ => 0,
    };
    (own + evidence(opinion) * MILLI).clamp(-clip, clip)
}

/// The line through (required, +10) and (reject, +30), in thousandths of a deciban.
fn native_milli(score: &SpamScore) -> i64 {
    let over = i128::from(score.milli) - i128::from(score.required_milli);
    let span = (i128::from(score.reject_milli) - i128::from(score.required_milli)).max(1);
    let rise = i128::from((REJECT_DECIBANS - REQUIRED_DECIBANS) * MILLI);
    let clip = i128::from(CLIP_DECIBANS * MILLI);
    let line = i128::from(REQUIRED_DECIBANS * MILLI) + (over * rise).div_euclid(span);
    i64::try_from(line.clamp(-clip, clip)).unwrap_or(0)
}

/// What an opinion says, in thousandths of hundredths of its own threshold. Ten decibans of evidence are as much as one threshold.
fn hundredths_milli(opinion: &Opinion) -> i64 {
    let own = match &opinion.finding {
        Finding::Spam(score) => {
            let max = i128::from(HUNDREDTHS_MAX * MILLI);
            let hundredths = (i128::from(score.milli) * 100 * i128::from(MILLI)).div_euclid(i128::from(score.required_milli.max(1)));
            i64::try_from(hundredths.clamp(-max, max)).unwrap_or(0)
        }
        _ => 0,
    };
    own + evidence(opinion) * (100 / REQUIRED_DECIBANS * MILLI)
}

/// Sum of an opinion's evidence in decibans, clipped.
fn evidence(opinion: &Opinion) -> i64 {
    opinion.evidence.iter().map(|evidence| i64::from(evidence.decibans)).sum::<i64>().clamp(-CLIP_DECIBANS, CLIP_DECIBANS)
}

fn saturating_i32(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(if value < 0 { i32::MIN } else { i32::MAX })
}
