use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use sekimori_crds::compile::Finding;
use serde_json::json;

use super::*;
use crate::update::{Drain, Report};

const DAY_MS: u64 = 86_400_000;

fn fleet() -> GatewayFleet {
    serde_json::from_value(json!({
        "apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet",
        "metadata": {"name": "barrier", "namespace": "post", "generation": 7},
        "spec": {"hostname": "mx.example.net", "replicas": 3, "listeners": [{"name": "smtp", "port": 2525}]},
    }))
    .expect("a fleet")
}

fn pod(ordinal: u32, serving: Serving) -> PodView {
    PodView {
        ordinal,
        uid: ordinal.to_string(),
        created_ms: 0,
        template_hash: Some("t".into()),
        terminating: false,
        intake_open: true,
        drain: None,
        serving,
        serving_since_ms: 0,
        report: None,
    }
}

fn retiring(ordinal: u32, spooled: u64) -> PodView {
    let report = Report { at_ms: 0, draining: Some(DrainKind::Retire), sessions: 0, spooled, kept: 0 };
    PodView { drain: Some(Drain { kind: DrainKind::Retire, since_ms: 0 }), report: Some(report), ..pod(ordinal, Serving::Yes) }
}

fn outcome(outcome: Outcome) -> Option<Step> {
    Some(Step { actions: vec![], outcome, again_at_ms: None })
}

fn judge(fleet: &GatewayFleet, pods: Vec<PodView>, step: Option<&Step>, problems: &[Problem], now_ms: u64) -> GatewayFleetStatus {
    let seen = Observation { set_replicas: Some(3), pods, volumes: vec![], barred: None };
    let measured = Measured {
        runnable_backlog: Some(4),
        oldest_message_seconds: Some(5),
        config_revision: Some("1.9".into()),
        tenants: Some(2),
        ..Measured::default()
    };
    fleet_status(&FleetReport { fleet, problems, pins: None, seen: &seen, step, measured: &measured, troubles: &[] }, now_ms)
}

fn condition(status: &GatewayFleetStatus, kind: &str) -> (String, String, String) {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap_or_else(|| panic!("no {kind}"));
    (found.status.clone(), found.reason.clone(), found.message.clone())
}

#[test]
fn phases_and_ready() {
    use Serving::{No, Yes};
    let yes = |ordinal| pod(ordinal, Yes);
    let young = |ordinal| PodView { created_ms: DAY_MS, ..pod(ordinal, No) };
    let timeout = Outcome::Paused(Pause::DrainTimeout { ordinals: vec![3] });
    let cases = [
        ("all serve", vec![yes(0), yes(1), yes(2)], outcome(Outcome::Done), FleetPhase::Serving, "True", "Serving"),
        ("one starts", vec![yes(0), yes(1), young(2)], outcome(Outcome::Working), FleetPhase::Progressing, "False", "TooFewGateways"),
        ("one is missing", vec![yes(0), yes(1)], outcome(Outcome::Working), FleetPhase::Progressing, "False", "TooFewGateways"),
        ("one is down", vec![yes(0), yes(1), pod(2, No)], outcome(Outcome::Working), FleetPhase::Degraded, "False", "TooFewGateways"),
        ("all are down", vec![pod(0, No), pod(1, No), pod(2, No)], outcome(Outcome::Working), FleetPhase::Degraded, "False", "NoGateway"),
        ("one leaves", vec![yes(0), yes(1), yes(2), retiring(3, 1)], outcome(Outcome::Working), FleetPhase::Draining, "True", "Serving"),
        ("one cannot leave", vec![yes(0), yes(1), yes(2), retiring(3, 1)], outcome(timeout), FleetPhase::Paused, "True", "Serving"),
        ("nothing was made", vec![], None, FleetPhase::Paused, "False", "NotAccepted"),
        ("an error, and all serve", vec![yes(0), yes(1), yes(2)], None, FleetPhase::Serving, "True", "Serving"),
    ];
    for (what, pods, step, phase, ready, reason) in cases {
        let status = judge(&fleet(), pods, step.as_ref(), &[], DAY_MS + 1);
        assert_eq!(status.phase, Some(phase), "{what}");
        let (holds, why, message) = condition(&status, "Ready");
        assert_eq!((holds.as_str(), why.as_str()), (ready, reason), "{what}: {message}");
    }
}

#[test]
fn a_fleet_that_was_ready_stays_so_within_its_budget() {
    let ready = |holds: &str| {
        let mut fleet = fleet();
        let condition = Condition {
            type_: "Ready".into(),
            status: holds.into(),
            reason: "Serving".into(),
            message: String::new(),
            observed_generation: Some(6),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        fleet.status = Some(GatewayFleetStatus { conditions: vec![condition], ..GatewayFleetStatus::default() });
        fleet
    };
    let young = |ordinal| PodView { created_ms: DAY_MS, ..pod(ordinal, Serving::No) };
    let one_away = vec![pod(0, Serving::Yes), pod(1, Serving::Yes), young(2)];
    let two_away = vec![pod(0, Serving::Yes), young(1), young(2)];
    let late = vec![pod(0, Serving::Yes), pod(1, Serving::Yes), pod(2, Serving::No)];
    let working = outcome(Outcome::Working);
    for (before, pods, after) in [("True", &one_away, "True"), ("True", &two_away, "False"), ("True", &late, "False"), ("False", &one_away, "False")]
    {
        let status = judge(&ready(before), pods.clone(), working.as_ref(), &[], DAY_MS + 1);
        assert_eq!(condition(&status, "Ready").0, after, "before {before}, {pods:?}");
    }
}

#[test]
fn printer_columns() {
    let pods = vec![pod(0, Serving::Yes), pod(1, Serving::Yes), pod(2, Serving::Unknown), retiring(3, 12)];
    let status = judge(&fleet(), pods, outcome(Outcome::Working).as_ref(), &[], 1000);
    assert_eq!((status.replicas, status.ready_replicas, status.draining_replicas), (Some(4), Some(2), Some(1)));
    assert_eq!(status.selector.as_deref(), Some("app.kubernetes.io/name=sekimori-mta,sekimori.dev/fleet=barrier"));
    assert_eq!((status.runnable_backlog, status.oldest_message_seconds, status.tenants), (Some(4), Some(5), Some(2)));
    assert_eq!(status.config_revision.as_deref(), Some("1.9"));
    assert_eq!(status.observed_generation, Some(7));
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(7)));
    let (holds, reason, message) = condition(&status, "Draining");
    assert_eq!((holds.as_str(), reason.as_str()), ("True", "Retiring"));
    assert!(message.contains("pods 3") && message.contains("12 messages"), "{message}");
}

#[test]
fn problems_go_where_they_belong() {
    use compile::Reason::{InvalidValue, NotSupportedYet, UnresolvedRef};
    let finding = |reason| Finding::new("spec.x", reason, "is so: do this");
    let error = |reason| Problem::error("", "GatewayFleet post/barrier", finding(reason));
    let warning = |reason| Problem::warning("", "GatewayFleet post/barrier", finding(reason));
    for (problem, accepted, resolved, supported) in [
        (error(InvalidValue), "False", "True", "True"),
        (error(UnresolvedRef), "False", "False", "True"),
        (warning(UnresolvedRef), "True", "False", "True"),
        (warning(NotSupportedYet), "True", "True", "False"),
        (error(NotSupportedYet), "False", "True", "False"),
    ] {
        let status = judge(&fleet(), vec![], None, std::slice::from_ref(&problem), 0);
        for (kind, holds) in [("Accepted", accepted), ("ResolvedRefs", resolved), ("Supported", supported)] {
            let (found, _, message) = condition(&status, kind);
            assert_eq!(found, holds, "{kind} after {problem}");
            assert_eq!(found == "False", message.contains("spec.x: is so: do this"), "{kind}: {message}");
        }
    }
}

#[test]
fn what_waits_for_somebody_says_for_what() {
    for (pause, kind, reason, words) in [
        (Pause::ByUser { outdated: vec![0, 2] }, "Updated", "PausedByUser", "pods 0, 2 are of an older template: set spec.update.paused"),
        (Pause::NotServing { ordinals: vec![2] }, "Updated", "PodsNotServing", "pods 2 do not take mail"),
        (Pause::DrainTimeout { ordinals: vec![3] }, "Draining", "DrainTimeout", "nothing is removed"),
        (Pause::VolumeGoing { ordinals: vec![2] }, "Updated", "VolumeDeleted", "claim of pods 2"),
        (Pause::Stranded { ordinals: vec![7] }, "Draining", "Stranded", "spools of pods 7 may have mail"),
    ] {
        let status = judge(&fleet(), vec![retiring(3, 9)], outcome(Outcome::Paused(pause)).as_ref(), &[], 0);
        let (_, found, message) = condition(&status, kind);
        assert_eq!(found, reason);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn pins_stay_when_an_error_keeps_the_pods() {
    let mut fleet = fleet();
    let engine = FleetEngineStatus { name: ObjectName("clam".into()), version: Some("clam-1".into()), canary: Some("clam-2".into()) };
    fleet.status = Some(GatewayFleetStatus {
        image: Some("old".into()),
        template_version: Some(1),
        engines: vec![engine.clone()],
        ..GatewayFleetStatus::default()
    });
    let status = judge(&fleet, vec![], None, &[], 0);
    assert_eq!((status.image.as_deref(), status.template_version, &status.engines), (Some("old"), Some(1), &vec![engine.clone()]));
    let pins = Pins {
        image: "new".into(),
        template_version: 1,
        template_hash: "t".into(),
        engine_versions: [("clam".to_owned(), "clam-1".to_owned())].into(),
    };
    let seen = Observation::default();
    let report =
        FleetReport { fleet: &fleet, problems: &[], pins: Some(&pins), seen: &seen, step: None, measured: &Measured::default(), troubles: &[] };
    let status = fleet_status(&report, 0);
    assert_eq!((status.image.as_deref(), &status.engines), (Some("new"), &vec![engine]), "a rollout's canary stays beside the version");
}

#[test]
fn a_second_look_writes_nothing() {
    let mut fleet = fleet();
    let pods = vec![pod(0, Serving::Yes), pod(1, Serving::Yes), pod(2, Serving::Yes)];
    let first = judge(&fleet, pods.clone(), outcome(Outcome::Done).as_ref(), &[], 1000);
    fleet.status = Some(first.clone());
    assert_eq!(judge(&fleet, pods, outcome(Outcome::Done).as_ref(), &[], 999_000), first);
}

#[test]
fn a_quarantine_in_each_pod_is_said() {
    assert_eq!(condition(&judge(&fleet(), vec![], None, &[], 0), "QuarantineNotShared").0, "True");
    let mut one = fleet();
    one.spec.replicas = Some(1);
    assert_eq!(condition(&judge(&one, vec![], None, &[], 0), "QuarantineNotShared").0, "False");
}

#[test]
fn a_gateway_that_cannot_start_is_named_at_once_with_its_image() {
    let fleet = fleet();
    let seen = Observation {
        set_replicas: Some(3),
        pods: vec![pod(0, Serving::Yes), pod(1, Serving::Yes), pod(2, Serving::No)],
        volumes: vec![],
        barred: None,
    };
    let trouble =
        |pod: &str, container: &str| Trouble { pod: pod.into(), container: Some(container.into()), why: "image mta:9 cannot be pulled".into() };
    let troubles = [trouble("barrier-gateway-2", "mta")];
    let step = outcome(Outcome::Working);
    let measured = Measured::default();
    let report = FleetReport { fleet: &fleet, problems: &[], pins: None, seen: &seen, step: step.as_ref(), measured: &measured, troubles: &troubles };
    let status = fleet_status(&report, DAY_MS);
    let named = "pod barrier-gateway-2, container mta: image mta:9 cannot be pulled";
    let (_, reason, message) = condition(&status, "Updated");
    assert!(reason == "PodsNotServing" && message.starts_with(named), "{reason} {message}");
    assert!(condition(&status, "Ready").2.contains(named));
    // An engine's container is the Engine's matter.
    let troubles = [trouble("barrier-gateway-2", "engine-clamav-a")];
    let status = fleet_status(&FleetReport { troubles: &troubles, ..report }, DAY_MS);
    assert_eq!(condition(&status, "Updated").1, "Updating");
}

#[test]
fn settings_that_gateways_refuse_are_told_before_all_that_is_merely_late() {
    let fleet = fleet();
    let seen = Observation { set_replicas: Some(3), pods: vec![pod(0, Serving::Yes)], ..Observation::default() };
    let measured = Measured { refused: Some("listener mx: too large".into()), stale: vec![1], ..Measured::default() };
    let report = FleetReport { fleet: &fleet, problems: &[], pins: None, seen: &seen, step: None, measured: &measured, troubles: &[] };
    let said = condition(&fleet_status(&report, DAY_MS), "ConfigStale");
    assert_eq!((said.0.as_str(), said.1.as_str()), ("True", "SettingsRefused"));
    assert!(said.2.ends_with("listener mx: too large"), "{}", said.2);
}

#[test]
fn a_certificate_that_is_there_and_no_good_is_a_matter_of_references() {
    let fleet = fleet();
    let seen = Observation { set_replicas: Some(3), pods: vec![pod(0, Serving::Yes)], volumes: vec![], barred: None };
    let measured = Measured { certificates: vec!["Secret post/mx: has ended".into()], ..Measured::default() };
    let report = FleetReport { fleet: &fleet, problems: &[], pins: None, seen: &seen, step: None, measured: &measured, troubles: &[] };
    let status = fleet_status(&report, DAY_MS);
    assert_eq!(condition(&status, "ResolvedRefs"), ("False".into(), "InvalidCertificateRef".into(), "Secret post/mx: has ended".into()));
}
