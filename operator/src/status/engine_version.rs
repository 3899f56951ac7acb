//! The status of an EngineVersion, and whether it may go: one that a fleet runs, or that an Engine wants, holds a finalizer.

use sekimori_crds::v1alpha1::engine_version::{EngineVersionPhase, EngineVersionStatus};
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};

use super::{ConditionType, Fact, Reason, merge};

/// The fleets of its namespace that run a version, by name, tried ones included.
fn runs<'a>(name: &str, fleets: &[&'a GatewayFleet]) -> Vec<&'a str> {
    let names = |fleet: &&&GatewayFleet| {
        let mut engines = fleet.status.iter().flat_map(|status| &status.engines);
        engines.any(|engine| [&engine.version, &engine.canary].into_iter().flatten().any(|version| **version == *name))
    };
    fleets.iter().filter(names).map(|fleet| fleet.metadata.name.as_deref().unwrap_or_default()).collect()
}

/// Whether a version must stay: a fleet runs it, or an Engine names it.
pub fn in_use(version: &EngineVersion, engines: &[&Engine], fleets: &[&GatewayFleet]) -> bool {
    let name = version.metadata.name.as_deref().unwrap_or_default();
    let wanted = |engine: &&Engine| {
        engine.spec.runtime.as_ref().and_then(|runtime| runtime.in_pod.as_ref()).is_some_and(|in_pod| *in_pod.version_ref.name == *name)
    };
    engines.iter().any(wanted) || !runs(name, fleets).is_empty()
}

/// The status as it should be written. `engines` and `fleets` are those of its namespace.
pub fn engine_version_status(version: &EngineVersion, engines: &[&Engine], fleets: &[&GatewayFleet], now_ms: u64) -> EngineVersionStatus {
    let before = version.status.clone().unwrap_or_default();
    let name = version.metadata.name.as_deref().unwrap_or_default();
    let engine = &version.spec.engine_ref.name;
    let there = engines.iter().any(|found| found.metadata.name.as_deref() == Some(&**engine));
    let running = runs(name, fleets);
    let phase = match before.phase {
        _ if !running.is_empty() => EngineVersionPhase::Active,
        Some(EngineVersionPhase::Active | EngineVersionPhase::Retired) => EngineVersionPhase::Retired,
        _ => EngineVersionPhase::Available,
    };
    let (reason, message) = match phase {
        EngineVersionPhase::Active => (Reason::InUse, format!("runs in {}", running.join(", "))),
        EngineVersionPhase::Available => (Reason::NotInUse, "no fleet has run it yet: name it in its Engine's versionRef".to_owned()),
        EngineVersionPhase::Retired => (Reason::NotInUse, "was replaced; it can be named again in its Engine's versionRef, or deleted".to_owned()),
    };
    let say = |kind, holds| Fact::new(kind, holds, reason, message.clone());
    let resolved = if there {
        Fact::new(ConditionType::ResolvedRefs, true, Reason::Resolved, "its Engine is there")
    } else {
        Fact::new(
            ConditionType::ResolvedRefs,
            false,
            Reason::UnresolvedRef,
            format!("spec.engineRef: there is no Engine {engine} in this namespace: add it"),
        )
    };
    let ready =
        Fact::new(ConditionType::Ready, there, if there { reason } else { Reason::UnresolvedRef }, if there { &message } else { &resolved.message });
    let facts = [
        ready,
        resolved,
        say(ConditionType::Available, phase == EngineVersionPhase::Available),
        say(ConditionType::Active, phase == EngineVersionPhase::Active),
        say(ConditionType::Retired, phase == EngineVersionPhase::Retired),
    ];
    let generation = version.metadata.generation;
    EngineVersionStatus { observed_generation: generation, phase: Some(phase), conditions: merge(&before.conditions, &facts, generation, now_ms) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn version(phase: Option<&str>) -> EngineVersion {
        serde_json::from_value(json!({
            "apiVersion": "sekimori.dev/v1alpha1", "kind": "EngineVersion", "metadata": {"name": "clam-1", "namespace": "post"},
            "spec": {"engineRef": {"name": "clam"}, "version": "1", "image": "clam:1"}, "status": {"phase": phase},
        }))
        .expect("a version")
    }

    fn engine(wants: &str) -> Engine {
        serde_json::from_value(json!({
            "apiVersion": "sekimori.dev/v1alpha1", "kind": "Engine", "metadata": {"name": "clam", "namespace": "post"},
            "spec": {"class": "AntiVirus", "protocol": {"type": "Clamd"}, "runtime": {"type": "InPod", "inPod": {"versionRef": {"name": wants}}}},
        }))
        .expect("an engine")
    }

    fn fleet(version: Option<&str>, canary: Option<&str>) -> GatewayFleet {
        serde_json::from_value(json!({
            "apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet", "metadata": {"name": "barrier", "namespace": "post"},
            "spec": {"hostname": "mx.example.net", "listeners": []}, "status": {"engines": [{"name": "clam", "version": version, "canary": canary}]},
        }))
        .expect("a fleet")
    }

    #[test]
    fn phases_and_finalizers() {
        use EngineVersionPhase::{Active, Available, Retired};
        for (before, wants, runs, canary, phase, used) in [
            (None, "clam-2", None, None, Available, false),
            (None, "clam-1", None, None, Available, true),
            (Some("Available"), "clam-1", Some("clam-1"), None, Active, true),
            (Some("Available"), "clam-1", Some("clam-0"), Some("clam-1"), Active, true),
            (Some("Active"), "clam-2", Some("clam-1"), Some("clam-2"), Active, true),
            (Some("Active"), "clam-2", Some("clam-2"), None, Retired, false),
            (Some("Retired"), "clam-2", Some("clam-2"), None, Retired, false),
            (Some("Retired"), "clam-1", Some("clam-1"), None, Active, true),
        ] {
            let (version, engine, fleet) = (version(before), engine(wants), fleet(runs, canary));
            let status = engine_version_status(&version, &[&engine], &[&fleet], 0);
            let what = format!("{before:?} {wants} {runs:?} {canary:?}");
            assert_eq!(status.phase, Some(phase), "{what}");
            assert_eq!(in_use(&version, &[&engine], &[&fleet]), used, "{what}");
            let holds: Vec<&str> =
                status.conditions.iter().filter(|condition| condition.status == "True").map(|condition| condition.type_.as_str()).collect();
            let mut expected = [format!("{phase:?}"), "Ready".to_owned(), "ResolvedRefs".to_owned()];
            expected.sort();
            assert_eq!(holds, expected, "{what}");
        }
    }

    #[test]
    fn without_its_engine_it_is_not_ready() {
        let status = engine_version_status(&version(None), &[], &[], 0);
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").expect("a condition");
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "UnresolvedRef"));
        assert!(ready.message.contains("no Engine clam"), "{}", ready.message);
    }
}
