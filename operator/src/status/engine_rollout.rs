//! The status of an EngineRollout. Rollouts are not acted on yet: whoever makes one is told so, and what to do instead.

use sekimori_crds::v1alpha1::EngineRollout;
use sekimori_crds::v1alpha1::engine_rollout::{EngineRolloutStatus, RolloutPhase};
use sekimori_crds::v1alpha1::text::StatusText;

use super::{ConditionType, Fact, Reason, merge};

/// Whether its engine and its versions are there is `known`'s to say: an Engine by name, an EngineVersion by name.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Whether there is such an Engine in the namespace.
    pub engine: &'a dyn Fn(&str) -> bool,
    /// The same of an EngineVersion.
    pub version: &'a dyn Fn(&str) -> bool,
}

/// The status as it should be written.
pub fn engine_rollout_status(rollout: &EngineRollout, known: Known<'_>, now_ms: u64) -> EngineRolloutStatus {
    let before = rollout.status.clone().unwrap_or_default();
    let spec = &rollout.spec;
    let message = format!(
        "rollouts are not acted on yet: nothing moves to {}, and pods run the version that status.engines of their fleet names; to scan with another version now, \
         make a second Engine that names it and add that to the fleet's spec.engines",
        &*spec.to_ref.name
    );
    let early = |kind| Fact::new(kind, false, Reason::NotSupportedYet, message.clone());
    let facts = [early(ConditionType::Ready), early(ConditionType::Supported), resolved(rollout, known)];
    let generation = rollout.metadata.generation;
    EngineRolloutStatus {
        observed_generation: generation,
        phase: Some(RolloutPhase::Pending),
        step: Some(0),
        reason: Some(StatusText(Reason::NotSupportedYet.to_string())),
        message: Some(StatusText(message)),
        conditions: merge(&before.conditions, &facts, generation, now_ms),
        ..before
    }
}

fn resolved(rollout: &EngineRollout, known: Known<'_>) -> Fact {
    let spec = &rollout.spec;
    let mut missing = vec![];
    if !(known.engine)(&spec.engine_ref.name) {
        missing.push(format!("spec.engineRef: there is no Engine {} in this namespace: add it", &*spec.engine_ref.name));
    }
    let versions = [("toRef", Some(&spec.to_ref)), ("fromRef", spec.from_ref.as_ref())];
    for (field, reference) in versions.into_iter().filter_map(|(field, reference)| Some((field, reference?))) {
        if !(known.version)(&reference.name) {
            missing.push(format!("spec.{field}: there is no EngineVersion {} in this namespace: add it", &*reference.name));
        }
    }
    if missing.is_empty() {
        return Fact::new(ConditionType::ResolvedRefs, true, Reason::Resolved, "everything that it refers to is there");
    }
    Fact::new(ConditionType::ResolvedRefs, false, Reason::UnresolvedRef, missing.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whoever_makes_one_is_told_that_nothing_moves() {
        let mut rollout: EngineRollout = serde_json::from_value(json!({
            "apiVersion": "sekimori.dev/v1alpha1", "kind": "EngineRollout", "metadata": {"name": "clam-2", "namespace": "post", "generation": 4},
            "spec": {"engineRef": {"name": "clam"}, "fromRef": {"name": "clam-1"}, "toRef": {"name": "clam-2"}},
        }))
        .expect("a rollout");
        let judge = |rollout: &EngineRollout, there: bool| {
            let is_there = |_: &str| there;
            engine_rollout_status(rollout, Known { engine: &is_there, version: &is_there }, 0)
        };
        let status = judge(&rollout, true);
        assert_eq!(
            (status.phase, status.reason.as_deref(), status.observed_generation),
            (Some(RolloutPhase::Pending), Some("NotSupportedYet"), Some(4))
        );
        let said: Vec<String> =
            status.conditions.iter().map(|condition| format!("{}={} {}", condition.type_, condition.status, condition.reason)).collect();
        assert_eq!(said, ["Ready=False NotSupportedYet", "ResolvedRefs=True Resolved", "Supported=False NotSupportedYet"]);
        assert!(status.conditions[0].message.contains("nothing moves to clam-2") && status.conditions[0].message.contains("spec.engines"));
        rollout.status = Some(status.clone());
        assert_eq!(judge(&rollout, true), status, "said once, nothing more is to be written");
        let missing = judge(&rollout, false);
        assert_eq!(missing.conditions[1].message.matches("there is no").count(), 3, "{}", missing.conditions[1].message);
    }
}
