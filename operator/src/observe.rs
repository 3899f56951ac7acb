//! From objects and reports to what [`crate::update`] looks at: pure.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Node, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use sekimori_crds::stream::{self, DrainKind as WireDrain};

use crate::names;
use crate::plan::recorded_hash;
use crate::update::{Drain, DrainKind, Mark, Observation, PodView, Report, Serving, VolumeView};

/// What the stream knows of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// Whether it follows now.
    pub connected: bool,
    /// Since when that is so, or since when it is known, in milliseconds.
    pub since_ms: u64,
    /// Its last report, and when it came, in milliseconds.
    pub report: Option<(u64, &'a stream::Report)>,
}

/// A gateway that does not follow is waited for so long, in milliseconds: after a change of the leader, or when the API server was away, all come back
/// within that.
pub const RETURN_MS: u64 = 20_000;

/// Everything that is there of one fleet. Objects of other fleets are skipped by name. `lost`: nodes that the control plane has lost, see [`is_lost`].
pub fn observation<'a>(
    fleet: &str,
    set: Option<&StatefulSet>,
    pods: impl IntoIterator<Item = &'a Pod>,
    claims: impl IntoIterator<Item = &'a PersistentVolumeClaim>,
    lost: &BTreeSet<String>,
    now_ms: u64,
    heard: impl Fn(&str) -> Option<Heard<'a>>,
) -> Observation {
    let set_replicas = set.map(|set| set.spec.replicas.and_then(|replicas| u32::try_from(replicas).ok()).unwrap_or(1));
    let mut pods: Vec<PodView> = pods.into_iter().filter_map(|pod| pod_view(fleet, pod, (lost, now_ms), &heard)).collect();
    pods.sort_by_key(|pod| pod.ordinal);
    let mut volumes: Vec<VolumeView> = claims.into_iter().filter_map(|claim| volume_view(fleet, claim)).collect();
    volumes.sort_by_key(|volume| volume.ordinal);
    Observation { set_replicas, pods, volumes, barred: None }
}

/// The number at the end of a name that begins like this. Written as the StatefulSet writes it: without leading zeros.
fn ordinal(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?.strip_prefix('-')?;
    let ordinal: u32 = digits.parse().ok()?;
    (ordinal.to_string() == digits).then_some(ordinal)
}

/// The number of a fleet's pod.
pub fn pod_ordinal(fleet: &str, pod: &Pod) -> Option<u32> {
    ordinal_of(fleet, pod.metadata.name.as_deref()?)
}

/// The number of a fleet's pod of this name.
pub fn ordinal_of(fleet: &str, pod: &str) -> Option<u32> {
    ordinal(pod, &names::stateful_set(fleet))
}

fn milliseconds(time: Option<&Time>) -> u64 {
    time.and_then(|time| u64::try_from(time.0.as_millisecond()).ok()).unwrap_or_default()
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The drain that is written on a pod. One that cannot be read is none: it is written again.
pub fn drain(pod: &Pod) -> Option<Drain> {
    let kind = match annotation(&pod.metadata, names::DRAIN)? {
        "Restart" => DrainKind::Restart,
        "Retire" => DrainKind::Retire,
        _ => return None,
    };
    Some(Drain { kind, since_ms: annotation(&pod.metadata, names::DRAIN_SINCE)?.parse().ok()? })
}

fn pod_view<'a>(fleet: &str, pod: &Pod, (lost, now_ms): (&BTreeSet<String>, u64), heard: &impl Fn(&str) -> Option<Heard<'a>>) -> Option<PodView> {
    let ordinal = pod_ordinal(fleet, pod)?;
    let uid = pod.metadata.uid.clone()?;
    let heard = heard(&uid);
    let created_ms = milliseconds(pod.metadata.creation_timestamp.as_ref());
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready_since = conditions.filter(|condition| condition.type_ == "Ready").find_map(|condition| condition.last_transition_time.as_ref());
    Some(PodView {
        ordinal,
        created_ms,
        template_hash: recorded_hash(pod).map(str::to_owned),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        intake_open: pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::INTAKE_LABEL)).is_some_and(|value| value == names::INTAKE_OPEN),
        drain: drain(pod),
        serving: serving(pod, lost, now_ms, heard),
        serving_since_ms: milliseconds(ready_since).max(created_ms),
        report: heard.and_then(|heard| heard.report).map(|(at_ms, report)| report_of(at_ms, report)),
        uid,
    })
}

fn gateway(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.iter().flatten().find(|status| status.name == names::GATEWAY_CONTAINER)
}

/// Whether the control plane has lost the node: no word of its kubelet, or one that says that it cannot run pods. What its pods' statuses say of containers
/// is then what was last heard.
pub fn is_lost(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status != "True")
}

/// Whether the gateway takes mail. `No` only where it is certain: its container does not run, its node is lost and it has not followed for a while, or it says
/// so itself now. The pod's own Ready says little: an engine's container that crash-loops takes it away.
fn serving(pod: &Pod, lost: &BTreeSet<String>, now_ms: u64, heard: Option<Heard<'_>>) -> Serving {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if matches!(phase, "Failed" | "Succeeded") {
        return Serving::No;
    }
    let Some(container) = gateway(pod) else {
        // Not started anywhere yet. A pod that ran has the status of its containers.
        return if phase == "Pending" { Serving::No } else { Serving::Unknown };
    };
    let state = container.state.clone().unwrap_or_default();
    if state.waiting.is_some() || state.terminated.is_some() {
        return Serving::No;
    }
    if let Some((_, report)) = heard.filter(|heard| heard.connected).and_then(|heard| heard.report) {
        return if report.serving || report.draining() != WireDrain::None { Serving::Yes } else { Serving::No };
    }
    // Kubernetes takes a lost node's pods off every other Service, too. But it takes all nodes for lost when the API server was away, and then a new leader has
    // heard of nobody yet: who never followed it is waited for.
    let is_away = heard.is_some_and(|heard| heard.report.is_some() || now_ms.saturating_sub(heard.since_ms) >= RETURN_MS);
    if is_away && pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some_and(|node| lost.contains(node)) {
        return Serving::No;
    }
    if container.ready { Serving::Yes } else { Serving::Unknown }
}

fn report_of(at_ms: u64, report: &stream::Report) -> Report {
    let draining = match report.draining() {
        WireDrain::None => None,
        WireDrain::Restart => Some(DrainKind::Restart),
        WireDrain::Retire => Some(DrainKind::Retire),
    };
    Report { at_ms, draining, sessions: report.sessions, spooled: report.spooled, kept: report.kept }
}

/// The number of a fleet's claim.
pub fn claim_ordinal(fleet: &str, claim: &PersistentVolumeClaim) -> Option<u32> {
    ordinal(claim.metadata.name.as_deref()?, &format!("{}-{}", names::SPOOL_VOLUME, names::stateful_set(fleet)))
}

fn volume_view(fleet: &str, claim: &PersistentVolumeClaim) -> Option<VolumeView> {
    let ordinal = claim_ordinal(fleet, claim)?;
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase != "Pending");
    let mark = match annotation(&claim.metadata, names::VOLUME_EMPTY) {
        Some("true") => Some(Mark::Empty),
        Some("kept") => Some(Mark::Kept),
        Some("abandoned") => Some(Mark::Abandoned),
        _ => None,
    };
    let held = claim.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == names::SPOOL_FINALIZER);
    Some(VolumeView { ordinal, bound, mark, terminating: claim.metadata.deletion_timestamp.is_some(), held })
}

/// A mark as it is written on a volume's claim.
pub const fn mark_text(mark: Mark) -> &'static str {
    match mark {
        Mark::Empty => "true",
        Mark::Kept => "kept",
        Mark::Abandoned => "abandoned",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "uid": format!("uid of {name}"), "creationTimestamp": "1970-01-01T00:01:40Z",
                "labels": {"sekimori.dev/intake": "open"}, "annotations": {"sekimori.dev/template-hash": "h"},
            },
            "status": status,
        }))
        .expect("a pod")
    }

    fn running(ready: bool) -> Value {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:03:20Z"}],
            "containerStatuses": [
                {"name": "engine-clamav-a", "ready": false, "restartCount": 9, "image": "", "imageID": "", "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
                {"name": "mta", "ready": ready, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}]})
    }

    const NOW_MS: u64 = 1_000_000;

    fn see(pod: &Pod, heard: Option<Heard<'_>>) -> PodView {
        observation("inbound", None, [pod], [], &BTreeSet::from(["lost".to_owned()]), NOW_MS, |_| heard).pods.remove(0)
    }

    #[test]
    fn a_pod_is_read_from_its_object() {
        let view = see(&pod("inbound-gateway-3", &running(true)), None);
        assert_eq!((view.ordinal, view.created_ms, view.serving_since_ms), (3, 100_000, 200_000));
        assert_eq!((view.template_hash.as_deref(), view.intake_open, view.terminating, view.drain), (Some("h"), true, false, None));
    }

    #[test]
    fn others_pods_and_claims_are_skipped() {
        let pods = ["inbound-gateway-0", "inbound-gateway-00", "inbound-gateway", "inbound-gateway-x", "other-gateway-0", "inbound-gateway-2-0"]
            .map(|name| pod(name, &json!({})));
        let claim = |name: &str, status: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": name, "annotations": {"sekimori.dev/empty": "true"}}, "status": status}))
                .expect("a claim")
        };
        let claims = [
            claim("spool-inbound-gateway-1", json!({"phase": "Bound"})),
            claim("spool-inbound-gateway-0", json!({"phase": "Pending"})),
            claim("data-inbound-gateway-0", json!({})),
        ];
        let seen = observation("inbound", None, &pods, &claims, &BTreeSet::new(), NOW_MS, |_| None);
        assert_eq!(seen.pods.iter().map(|pod| pod.ordinal).collect::<Vec<_>>(), [0]);
        let marked = VolumeView { mark: Some(Mark::Empty), ..VolumeView::default() };
        assert_eq!(seen.volumes, [marked, VolumeView { ordinal: 1, bound: true, ..marked }]);
    }

    #[test]
    fn a_claim_says_what_is_on_its_volume_and_who_holds_it() {
        for (mark, text) in [(None, "false"), (Some(Mark::Empty), "true"), (Some(Mark::Kept), "kept"), (Some(Mark::Abandoned), "abandoned")] {
            let claim: PersistentVolumeClaim = serde_json::from_value(json!({
                "metadata": {
                    "name": "spool-inbound-gateway-1", "annotations": {"sekimori.dev/empty": text}, "deletionTimestamp": "1970-01-01T00:01:40Z",
                    "finalizers": ["kubernetes.io/pvc-protection", "sekimori.dev/spool"],
                },
                "status": {"phase": "Bound"},
            }))
            .expect("a claim");
            let seen = observation("inbound", None, [], [&claim], &BTreeSet::new(), NOW_MS, |_| None);
            assert_eq!(seen.volumes, [VolumeView { ordinal: 1, bound: true, mark, terminating: true, held: true }]);
            assert!(mark.is_none_or(|mark| mark_text(mark) == text));
        }
    }

    #[test]
    fn not_serving_is_said_only_when_it_is_certain() {
        let says = |serving: bool, draining: WireDrain| stream::Report { serving, draining: draining.into(), ..stream::Report::default() };
        let (yes, no, drains) = (says(true, WireDrain::None), says(false, WireDrain::None), says(false, WireDrain::Retire));
        let heard = |connected, report| Some(Heard { connected, since_ms: NOW_MS, report: Some((1, report)) });
        let waiting = json!({"phase": "Running", "containerStatuses": [
            {"name": "mta", "ready": false, "restartCount": 3, "image": "", "imageID": "", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        for (status, heard, expected) in [
            (json!({}), None, Serving::No),
            (json!({"phase": "Pending"}), None, Serving::No),
            (json!({"phase": "Failed"}), heard(true, &yes), Serving::No),
            (json!({"phase": "Running"}), None, Serving::Unknown),
            (waiting, heard(true, &yes), Serving::No),
            (running(true), None, Serving::Yes),
            (running(false), None, Serving::Unknown),
            (running(false), heard(true, &yes), Serving::Yes),
            (running(true), heard(true, &no), Serving::No),
            (running(false), heard(true, &drains), Serving::Yes),
            (running(false), heard(false, &no), Serving::Unknown),
        ] {
            assert_eq!(see(&pod("inbound-gateway-0", &status), heard).serving, expected, "{status}");
        }
    }

    #[test]
    fn a_pod_of_a_lost_node_serves_if_it_still_says_so() {
        let on = |node: &str| {
            let mut pod = pod("inbound-gateway-0", &running(true));
            pod.spec = Some(serde_json::from_value(json!({"nodeName": node, "containers": []})).expect("a spec"));
            pod
        };
        let says = stream::Report { serving: true, ..stream::Report::default() };
        let heard = |connected, report, ago_ms| Some(Heard { connected, since_ms: NOW_MS - ago_ms, report });
        let said = Some((1, &says));
        for (node, heard, expected) in [
            ("lost", None, Serving::Yes),
            ("lost", heard(false, None, RETURN_MS - 1), Serving::Yes),
            ("lost", heard(false, None, RETURN_MS), Serving::No),
            ("lost", heard(false, said, 0), Serving::No),
            ("lost", heard(true, said, RETURN_MS), Serving::Yes),
            ("there", heard(false, said, RETURN_MS), Serving::Yes),
        ] {
            assert_eq!(see(&on(node), heard).serving, expected, "{node}, {heard:?}");
        }
        let node = |status: &str| -> Node {
            serde_json::from_value(
                json!({"status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": status}]}}),
            )
            .expect("a node")
        };
        assert_eq!(["True", "False", "Unknown"].map(|status| is_lost(&node(status))), [false, true, true]);
        assert!(!is_lost(&Node::default()), "nothing is known of it yet");
    }

    #[test]
    fn a_drain_is_read_as_it_was_written() {
        let mut drained = pod("inbound-gateway-0", &running(true));
        let annotations = drained.metadata.annotations.get_or_insert_default();
        annotations.insert(names::DRAIN.to_owned(), "Retire".to_owned());
        assert_eq!(drain(&drained), None, "half of it is none");
        drained.metadata.annotations.get_or_insert_default().insert(names::DRAIN_SINCE.to_owned(), "77".to_owned());
        assert_eq!(drain(&drained), Some(Drain { kind: DrainKind::Retire, since_ms: 77 }));
        drained.metadata.annotations.get_or_insert_default().insert(names::DRAIN.to_owned(), "Nonsense".to_owned());
        assert_eq!(drain(&drained), None);
    }
}
