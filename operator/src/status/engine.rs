//! The status of an Engine. Its figures are sums over the gateways, and move all the time: the caller decides how often they are worth a write.

use std::collections::BTreeMap;

use sekimori_crds::compile::{Finding, defaults};
use sekimori_crds::v1alpha1::engine::{BreakerState, EngineStatus};
use sekimori_crds::v1alpha1::text::StatusText;
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};

use super::{ConditionType, Fact, Reason, Trouble, merge};
use crate::measured::EngineMeasures;

/// The status as it should be written. `versions`, `fleets` and `troubles` are those of its namespace.
pub fn engine_status(
    engine: &Engine,
    findings: &[Finding],
    versions: &BTreeMap<&str, &EngineVersion>,
    fleets: &[&GatewayFleet],
    measures: EngineMeasures,
    troubles: &[Trouble],
    now_ms: u64,
) -> EngineStatus {
    let before = engine.status.clone().unwrap_or_default();
    let name = engine.metadata.name.as_deref().unwrap_or_default();
    let recorded: Vec<(&str, &str)> = fleets
        .iter()
        .flat_map(|fleet| {
            let engines = fleet.status.iter().flat_map(|status| &status.engines);
            engines.filter(|known| &*known.name == name).filter_map(|known| Some((fleet.metadata.name.as_deref()?, &**known.version.as_ref()?)))
        })
        .collect();
    let wanted = engine.spec.runtime.as_ref().and_then(|runtime| runtime.in_pod.as_ref()).map(|in_pod| &*in_pod.version_ref.name);
    let resolved = match wanted {
        Some(wanted) if !versions.contains_key(wanted) => Fact::new(
            ConditionType::ResolvedRefs,
            false,
            Reason::UnresolvedRef,
            format!("spec.runtime.inPod.versionRef: there is no EngineVersion {wanted} in this namespace: add it"),
        ),
        _ => Fact::new(ConditionType::ResolvedRefs, true, Reason::Resolved, "everything that it refers to is there"),
    };
    let trouble = troubles.iter().find(|trouble| trouble.is_engine(name));
    let ready = ready(findings, &resolved, wanted, &recorded, &measures, trouble);
    let facts = [ready, resolved, breaker_open(&measures), signatures_stale(engine, &measures)];
    let generation = engine.metadata.generation;
    EngineStatus {
        observed_generation: generation,
        stable_version: recorded.first().map(|(_, version)| StatusText((*version).to_owned())),
        canary_version: before.canary_version,
        breaker: measures.breaker,
        signature_age_seconds: measures.signature_age_seconds,
        versions: measures.versions,
        conditions: merge(&before.conditions, &facts, generation, now_ms),
    }
}

fn ready(
    findings: &[Finding],
    resolved: &Fact,
    wanted: Option<&str>,
    recorded: &[(&str, &str)],
    measures: &EngineMeasures,
    trouble: Option<&Trouble>,
) -> Fact {
    let say = |holds, reason, message: String| Fact::new(ConditionType::Ready, holds, reason, message);
    if let Some(finding) = findings.first() {
        return say(false, Reason::Invalid, format!("{}: {}", finding.field, finding.message));
    }
    if resolved.holds != Some(true) {
        return say(false, resolved.reason, resolved.message.clone());
    }
    if let Some(trouble) = trouble {
        let message =
            format!("{trouble}; gateways judge mail without it meanwhile, and each tenant's minimumEngines and tooFewEngines say what that means");
        return say(false, Reason::ContainerDown, message);
    }
    if measures.breaker == Some(BreakerState::Open) {
        return say(false, Reason::BreakerOpen, CUT_OFF.to_owned());
    }
    let nowhere = measures.gateways > 0 && measures.breaker.is_none();
    if measures.unproved > 0 || nowhere {
        let message = format!(
            "{} of {} gateways take mail without it: it has not found the known sample there, so its opinion does not count; see the log of its container \
             (signatures missing, or it still starts), or spec.runtime.external.address if it is External; each tenant's minimumEngines and tooFewEngines \
             say what is done meanwhile",
            measures.unproved, measures.gateways
        );
        return say(false, Reason::NotProbed, message);
    }
    let other = wanted.and_then(|wanted| recorded.iter().find(|(_, version)| *version != wanted).map(|found| (wanted, found)));
    if let Some((wanted, (fleet, version))) = other {
        let message =
            format!("fleet {fleet} runs {version}; a change to {wanted} is not rolled out yet (NotSupportedYet): pods keep the recorded version");
        return say(true, Reason::NotSupportedYet, message);
    }
    say(true, Reason::Valid, "nothing is wrong".to_owned())
}

const CUT_OFF: &str =
    "a gateway has cut it off, because it failed or did not find the known sample: see its container's log; the others scan meanwhile";

fn breaker_open(measures: &EngineMeasures) -> Fact {
    let say = |holds, reason, message: &str| Fact::new(ConditionType::BreakerOpen, holds, reason, message);
    match measures.breaker {
        Some(BreakerState::Open) => say(true, Reason::BreakerOpen, CUT_OFF),
        _ => say(false, Reason::BreakerClosed, "no gateway has cut it off"),
    }
}

fn signatures_stale(engine: &Engine, measures: &EngineMeasures) -> Fact {
    let say = |holds, reason, message: String| Fact::new(ConditionType::SignaturesStale, holds, reason, message);
    let Some(age_s) = measures.signature_age_seconds else {
        return say(false, Reason::NoSignatureAge, "the engine says nothing of the age of its signatures".to_owned());
    };
    let in_pod = engine.spec.runtime.as_ref().and_then(|runtime| runtime.in_pod.as_ref());
    let said = in_pod.and_then(|in_pod| in_pod.signatures.as_ref()?.max_age);
    let max_age = said.unwrap_or(defaults::SIGNATURES_MAX_AGE);
    if age_s <= max_age.std().as_secs() {
        return say(false, Reason::SignaturesFresh, "the oldest signatures in use are not older than maxAge".to_owned());
    }
    let message = format!(
        "the oldest signatures in use are older than {max_age}, which is all that spec.runtime.inPod.signatures.maxAge allows: see that the mirror, the volume or the image \
         of the engine brings new ones, or raise it"
    );
    say(true, Reason::SignaturesOld, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn engine() -> Engine {
        serde_json::from_value(json!({
            "apiVersion": "sekimori.dev/v1alpha1", "kind": "Engine", "metadata": {"name": "clam", "namespace": "post", "generation": 3},
            "spec": {"class": "AntiVirus", "protocol": {"type": "Clamd"}, "runtime": {"type": "InPod", "inPod": {"versionRef": {"name": "clam-2"}}}},
        }))
        .expect("an engine")
    }

    #[test]
    fn what_it_says() {
        let version: EngineVersion = serde_json::from_value(json!({
            "apiVersion": "sekimori.dev/v1alpha1", "kind": "EngineVersion", "metadata": {"name": "clam-2"},
            "spec": {"engineRef": {"name": "clam"}, "version": "2", "image": "clam:2"},
        }))
        .expect("a version");
        let fleet: GatewayFleet = serde_json::from_value(json!({
            "apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet", "metadata": {"name": "barrier"},
            "spec": {"hostname": "mx.example.net", "listeners": []}, "status": {"engines": [{"name": "clam", "version": "clam-1"}]},
        }))
        .expect("a fleet");
        let there = BTreeMap::from([("clam-2", &version)]);
        let none = BTreeMap::new();
        let open = EngineMeasures { breaker: Some(BreakerState::Open), ..EngineMeasures::default() };
        type Case<'a> = (&'a BTreeMap<&'a str, &'a EngineVersion>, &'a [&'a GatewayFleet], EngineMeasures, &'a str, &'a str);
        let seen = |breaker, gateways, unproved| EngineMeasures { breaker, gateways, unproved, ..EngineMeasures::default() };
        let cases: [Case<'_>; 7] = [
            (&there, &[], seen(None, 2, 0), "False", "NotProbed"),
            (&there, &[], seen(Some(BreakerState::Closed), 2, 1), "False", "NotProbed"),
            (&there, &[], seen(Some(BreakerState::Closed), 2, 0), "True", "Valid"),
            (&none, &[], EngineMeasures::default(), "False", "UnresolvedRef"),
            (&there, &[], EngineMeasures::default(), "True", "Valid"),
            (&there, &[&fleet], EngineMeasures::default(), "True", "NotSupportedYet"),
            (&there, &[], open, "False", "BreakerOpen"),
        ];
        for (versions, fleets, measures, holds, reason) in cases {
            let status = engine_status(&engine(), &[], versions, fleets, measures, &[], 0);
            let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").expect("a condition");
            assert_eq!((ready.status.as_str(), ready.reason.as_str(), status.observed_generation), (holds, reason, Some(3)));
        }
        let status = engine_status(&engine(), &[], &there, &[&fleet], EngineMeasures::default(), &[], 0);
        assert_eq!(status.stable_version.as_deref(), Some("clam-1"));
        let stale = |signatures: serde_json::Value, age| {
            let mut engine = engine();
            let in_pod = engine.spec.runtime.as_mut().and_then(|runtime| runtime.in_pod.as_mut()).expect("in the pod");
            in_pod.signatures = serde_json::from_value(signatures).expect("signatures");
            let measures = EngineMeasures { signature_age_seconds: age, ..EngineMeasures::default() };
            let status = engine_status(&engine, &[], &there, &[], measures, &[], 0);
            let condition = status.conditions.into_iter().find(|condition| condition.type_ == "SignaturesStale").expect("a condition");
            (condition.status, condition.reason, condition.message)
        };
        let hour = json!({"type": "InImage", "maxAge": "1h"});
        for (signatures, age, holds, reason) in [
            (json!(null), None, "False", "NoSignatureAge"),
            (json!(null), Some(86_400), "False", "SignaturesFresh"),
            (json!(null), Some(86_401), "True", "SignaturesOld"),
            (hour.clone(), Some(3_600), "False", "SignaturesFresh"),
            (hour.clone(), Some(3_601), "True", "SignaturesOld"),
        ] {
            let said = stale(signatures, age);
            assert_eq!((said.0.as_str(), said.1.as_str()), (holds, reason), "{age:?}");
        }
        assert!(stale(hour, Some(7_200)).2.contains("older than 1h"));
        // Why it does not run says more than that it was cut off.
        let container = crate::names::slot_container("clam", crate::names::Slot::A);
        let trouble = Trouble { pod: "barrier-gateway-0".into(), container: Some(container), why: "image clam:2 cannot be pulled".into() };
        let open = EngineMeasures { breaker: Some(BreakerState::Open), ..EngineMeasures::default() };
        let status = engine_status(&engine(), &[], &there, &[&fleet], open, &[trouble], 0);
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").expect("a condition");
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "ContainerDown"));
        assert!(ready.message.starts_with("pod barrier-gateway-0, container engine-clam-a: image clam:2"), "{}", ready.message);
    }
}
