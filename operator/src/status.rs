//! What the operator says about objects: conditions, phases, and the values of the printer columns.
//!
//! A status is written only when it differs, and holds no time that moves by itself: else every write would bring the next one. `lastTransitionTime` moves
//! with the status of its condition alone.

mod engine;
mod engine_rollout;
mod engine_version;
mod fleet;
mod pods;
mod tenant;

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use sekimori_crds::compile::Problem;

pub use engine::engine_status;
pub use engine_rollout::{Known as RolloutKnown, engine_rollout_status};
pub use engine_version::{engine_version_status, in_use};
pub use fleet::{FleetReport, Measured, fleet_status};
pub use pods::{Trouble, troubles};
pub use tenant::{Programmed, TenantReport, tenant_conditions};

/// The longest message that is written, in characters; the API server takes 32768 bytes.
const MESSAGE_CHARS_MAX: usize = 2048;
/// So many problems are written out, the others are counted.
const PROBLEMS_MAX: usize = 4;

/// The conditions that this operator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// It does what it is for.
    Ready,
    /// Its own fields are in order.
    Accepted,
    /// What it refers to is there and in order.
    ResolvedRefs,
    /// Every gateway runs with it.
    Programmed,
    /// Another one has what it claims.
    Conflicted,
    /// The tenant's server refuses us, whatever the mail.
    RouteRefusing,
    /// Everything that it says is acted on.
    Supported,
    /// The pods are of the current template.
    Updated,
    /// Pods leave.
    Draining,
    /// Each gateway has a quarantine of its own.
    QuarantineNotShared,
    /// Many tenants are gone at once, and are served until somebody says that this is meant.
    RemovalsWaiting,
    /// Clients cannot be told apart by their addresses.
    ClientIPMasked,
    /// Gateways run with an old configuration.
    ConfigStale,
    /// Gateways have cut the engine off.
    BreakerOpen,
    /// The engine's signatures are older than its `maxAge`.
    SignaturesStale,
    /// An EngineVersion can be rolled out.
    Available,
    /// An EngineVersion scans.
    Active,
    /// An EngineVersion was replaced.
    Retired,
}

impl ConditionType {
    /// Every one.
    pub const ALL: [Self; 18] = [
        Self::Ready,
        Self::Accepted,
        Self::ResolvedRefs,
        Self::Programmed,
        Self::Conflicted,
        Self::RouteRefusing,
        Self::Supported,
        Self::Updated,
        Self::Draining,
        Self::QuarantineNotShared,
        Self::RemovalsWaiting,
        Self::ClientIPMasked,
        Self::ConfigStale,
        Self::BreakerOpen,
        Self::SignaturesStale,
        Self::Available,
        Self::Active,
        Self::Retired,
    ];
}

/// The types of conditions that say something bad when they hold; the others do when they do not.
pub const BAD_IF_TRUE: [&str; 9] = [
    "Conflicted",
    "RouteRefusing",
    "Draining",
    "QuarantineNotShared",
    "RemovalsWaiting",
    "ClientIPMasked",
    "ConfigStale",
    "BreakerOpen",
    "SignaturesStale",
];

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Why a condition is as it is, for programs. Each word has one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Ready: every gateway takes mail.
    Serving,
    /// Ready: none is wanted.
    NoReplicas,
    /// Ready: some gateways do not take mail.
    TooFewGateways,
    /// Ready: no gateway takes mail.
    NoGateway,
    /// Ready: what it needs is not in order.
    NotAccepted,
    /// Accepted: nothing is wrong.
    Valid,
    /// Accepted: fields are wrong.
    Invalid,
    /// Accepted: the namespace has not proved that it may claim the domain.
    NotOwned,
    /// Accepted, Conflicted: another tenant has the domain.
    DomainConflict,
    /// Conflicted: nobody else has them.
    NoConflict,
    /// RouteRefusing: a gateway says so.
    ServerRefuses,
    /// ResolvedRefs: everything is there.
    Resolved,
    /// ResolvedRefs: something is missing.
    UnresolvedRef,
    /// ResolvedRefs: a listener's certificate cannot be used, has ended, or is for other names.
    InvalidCertificateRef,
    /// Supported: everything is acted on.
    Supported,
    /// Supported: something is not acted on yet.
    NotSupportedYet,
    /// Updated: every pod is of the current template.
    UpToDate,
    /// Updated: pods are replaced.
    Updating,
    /// Updated: `update.paused`.
    PausedByUser,
    /// Updated: pods of the new template do not serve.
    PodsNotServing,
    /// Updated: somebody deletes the claim of a pod that runs.
    VolumeDeleted,
    /// Draining: volumes may have mail, and no pod can be made for them.
    Stranded,
    /// Draining: no pod leaves.
    NotDraining,
    /// Draining: pods leave.
    Retiring,
    /// Draining: pods still have mail after `drain.timeout`.
    DrainTimeout,
    /// QuarantineNotShared: one store for all.
    SharedStore,
    /// QuarantineNotShared: a store in each pod.
    PerPodStore,
    /// RemovalsWaiting: they wait for a confirmation.
    ConfirmationNeeded,
    /// RemovalsWaiting: none wait.
    NoRemovals,
    /// ClientIPMasked: every client has an address of the cluster's own.
    ClusterAddressesOnly,
    /// ClientIPMasked: clients come with their own addresses, or too few came to tell.
    ClientsSeen,
    /// ConfigStale: gateways lag behind, or do not follow.
    GatewaysBehind,
    /// ConfigStale: gateways do not take the fleet's newest settings.
    SettingsRefused,
    /// ConfigStale: every gateway has the newest configuration.
    Current,
    /// Programmed: every gateway runs with it.
    Programmed,
    /// Programmed: some gateways do not have it yet.
    Waiting,
    /// Programmed: it needs a newer gateway.
    NeedsNewerGateway,
    /// Programmed: an earlier form of it runs.
    LastGoodForm,
    /// Programmed: nothing of it runs.
    NotProgrammed,
    /// Ready of an Engine: its container does not run somewhere.
    ContainerDown,
    /// Ready, BreakerOpen of an Engine: a gateway has cut it off.
    BreakerOpen,
    /// BreakerOpen: no gateway has cut it off.
    BreakerClosed,
    /// Ready of an Engine: it has not found the known sample yet, so its opinion does not count.
    NotProbed,
    /// SignaturesStale: older than `maxAge`.
    SignaturesOld,
    /// SignaturesStale: not older than `maxAge`.
    SignaturesFresh,
    /// SignaturesStale: the engine says nothing of their age.
    NoSignatureAge,
    /// Available, Active, Retired of an EngineVersion: a fleet runs it.
    InUse,
    /// The same: no fleet runs it.
    NotInUse,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// One condition, as it is judged now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Which.
    pub kind: ConditionType,
    /// Whether it holds. `None`: nobody knows.
    pub holds: Option<bool>,
    /// Why, for programs.
    pub reason: Reason,
    /// Why, and what to do, for people.
    pub message: String,
}

impl Fact {
    /// A condition that holds or does not.
    pub fn new(kind: ConditionType, holds: bool, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, holds: Some(holds), reason, message: message.into() }
    }

    /// A condition that nobody knows about.
    pub fn unknown(kind: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, holds: None, reason, message: message.into() }
    }
}

/// The conditions with these facts in them, sorted by type. Ours that are judged no more go; those of others stay as they are.
pub fn merge(existing: &[Condition], facts: &[Fact], generation: Option<i64>, now_ms: u64) -> Vec<Condition> {
    let ours = |kind: &str| ConditionType::ALL.iter().any(|ours| ours.to_string() == kind);
    let mut merged: Vec<Condition> = existing.iter().filter(|condition| !ours(&condition.type_)).cloned().collect();
    for fact in facts {
        let type_ = fact.kind.to_string();
        let status = fact.holds.map_or("Unknown", |holds| if holds { "True" } else { "False" }).to_owned();
        let since = existing.iter().find(|before| before.type_ == type_ && before.status == status).map(|before| before.last_transition_time.clone());
        merged.push(Condition {
            last_transition_time: since.unwrap_or_else(|| time(now_ms)),
            message: fact.message.chars().take(MESSAGE_CHARS_MAX).collect(),
            observed_generation: generation,
            reason: fact.reason.to_string(),
            status,
            type_,
        });
    }
    merged.sort_by(|a, b| a.type_.cmp(&b.type_));
    merged
}

/// Whole seconds, as the API server keeps them.
fn time(now_ms: u64) -> Time {
    let seconds = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

/// Problems in one message: each with its field, and those of other objects with their name.
fn sentence<'a>(problems: impl IntoIterator<Item = &'a Problem>) -> String {
    let problems: Vec<&Problem> = problems.into_iter().collect();
    let mut texts: Vec<String> = problems
        .iter()
        .take(PROBLEMS_MAX)
        .map(|problem| if problem.field.is_empty() { problem.message.clone() } else { format!("{}: {}", problem.field, problem.message) })
        .collect();
    if let Some(more @ 1..) = problems.len().checked_sub(PROBLEMS_MAX) {
        texts.push(format!("and {more} more"));
    }
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(holds: bool, message: &str) -> Fact {
        Fact::new(ConditionType::Ready, holds, if holds { Reason::Serving } else { Reason::NoGateway }, message)
    }

    #[test]
    fn the_time_moves_with_the_status_alone() {
        let first = merge(&[], &[fact(false, "one")], Some(1), 1_000);
        assert_eq!(first[0].last_transition_time, time(1_000));
        let same = merge(&first, &[fact(false, "two")], Some(2), 9_000);
        assert_eq!(same[0].last_transition_time, time(1_000), "another message is no transition");
        assert_eq!((same[0].observed_generation, same[0].message.as_str()), (Some(2), "two"));
        let other = merge(&same, &[fact(true, "three")], Some(2), 9_000);
        assert_eq!(other[0].last_transition_time, time(9_000));
        let unknown = merge(&other, &[Fact::unknown(ConditionType::Ready, Reason::Waiting, "")], Some(2), 12_000);
        assert_eq!((unknown[0].status.as_str(), &unknown[0].last_transition_time), ("Unknown", &time(12_000)));
    }

    #[test]
    fn strangers_stay_and_ours_go_when_they_are_judged_no_more() {
        let mut stranger = merge(&[], &[fact(true, "")], None, 0).remove(0);
        "example.net/Audited".clone_into(&mut stranger.type_);
        let draining = Fact::new(ConditionType::Draining, true, Reason::Retiring, "");
        let before = merge(std::slice::from_ref(&stranger), &[draining, fact(true, "")], Some(1), 0);
        assert_eq!(before.iter().map(|condition| condition.type_.as_str()).collect::<Vec<_>>(), ["Draining", "Ready", "example.net/Audited"]);
        let after = merge(&before, &[fact(true, "")], Some(1), 5_000);
        assert_eq!(after.iter().map(|condition| condition.type_.as_str()).collect::<Vec<_>>(), ["Ready", "example.net/Audited"]);
        assert_eq!(merge(&after, &[fact(true, "")], Some(1), 99_000), after, "nothing new: nothing to write");
    }

    #[test]
    fn a_message_is_bounded() {
        let long = merge(&[], &[fact(true, &"é".repeat(9_000))], None, 0);
        assert_eq!(long[0].message.chars().count(), MESSAGE_CHARS_MAX);
        let problem =
            |field: &str| Problem::error("", "X", sekimori_crds::compile::Finding::new(field, sekimori_crds::compile::Reason::Missing, "is missing"));
        let problems: Vec<Problem> = ["a", "b", "c", "d", "e", "f"].map(problem).into();
        assert_eq!(sentence(&problems), "a: is missing; b: is missing; c: is missing; d: is missing; and 2 more");
        assert_eq!(sentence(&problems[..1]), "a: is missing");
    }

    #[test]
    fn every_type_is_listed_once() {
        let names: std::collections::BTreeSet<String> = ConditionType::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), ConditionType::ALL.len());
    }
}
