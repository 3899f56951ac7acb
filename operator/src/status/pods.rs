//! Why a container of a pod does not run, in words that stay the same from one try of the kubelet to the next: they are written into statuses.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::names;

/// A container that ended this lately, and more than once, is told of even while it runs again, in milliseconds: its next end is near.
const ENDED_LATELY_MS: u64 = 600_000;
/// Characters of what the kubelet or the scheduler says, at most.
const WORDS_CHARS_MAX: usize = 300;

/// A container that does not run, or a pod that is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Name of the pod.
    pub pod: String,
    /// The container. `None`: the pod has no node.
    pub container: Option<String>,
    /// What is wrong, and with which image.
    pub why: String,
}

impl Trouble {
    /// Whether it keeps the gateway itself from starting.
    pub fn is_gateway(&self) -> bool {
        self.container.as_ref().is_none_or(|container| container == names::GATEWAY_CONTAINER)
    }

    /// Whether it is about a slot of this engine.
    pub fn is_engine(&self, engine: &str) -> bool {
        [names::Slot::A, names::Slot::B].iter().any(|slot| self.container.as_ref().is_some_and(|name| *name == names::slot_container(engine, *slot)))
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.container {
            Some(container) => write!(f, "pod {}, container {container}: {}", self.pod, self.why),
            None => write!(f, "pod {}: {}", self.pod, self.why),
        }
    }
}

/// Everything that keeps containers of these pods from running, by pod and container.
pub fn troubles<'a>(pods: impl IntoIterator<Item = &'a Pod>, now_ms: u64) -> Vec<Trouble> {
    let mut found: Vec<Trouble> = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).flat_map(|pod| of(pod, now_ms)).collect();
    found.sort_by(|a, b| (&a.pod, &a.container).cmp(&(&b.pod, &b.container)));
    found
}

fn of(pod: &Pod, now_ms: u64) -> Vec<Trouble> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let Some(status) = &pod.status else { return vec![] };
    let unschedulable =
        status.conditions.iter().flatten().find(|condition| {
            condition.type_ == "PodScheduled" && condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable")
        });
    if let Some(condition) = unschedulable {
        let why = format!("no node takes it ({})", words(condition.message.as_deref().unwrap_or_default()));
        return vec![Trouble { pod: name, container: None, why }];
    }
    let image = |container: &str| {
        let spec = pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        spec.filter(|spec| spec.name == container).find_map(|spec| spec.image.clone()).unwrap_or_default()
    };
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.filter_map(|container| {
        let why = why(container, &image(&container.name), now_ms)?;
        Some(Trouble { pod: name.clone(), container: Some(container.name.clone()), why })
    })
    .collect()
}

fn why(container: &ContainerStatus, image: &str, now_ms: u64) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let said = words(waiting.message.as_deref().unwrap_or_default());
        match reason {
            // The kubelet says these by turns.
            "ErrImagePull" | "ImagePullBackOff" => {
                return Some(format!("image {image} cannot be pulled (ImagePullBackOff): correct it, or the pull secret"));
            }
            "InvalidImageName" => return Some(format!("`{image}` is no name of an image (InvalidImageName): correct it")),
            "ErrImageNeverPull" => return Some(format!("image {image} is not on the node, and is never pulled (ErrImageNeverPull)")),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                return Some(format!("cannot be started ({reason}: {said})"));
            }
            _ => {}
        }
    }
    let ended = state.terminated.as_ref().or_else(|| container.last_state.as_ref()?.terminated.as_ref())?;
    let finished_ms = ended.finished_at.as_ref().and_then(|time| u64::try_from(time.0.as_millisecond()).ok()).unwrap_or_default();
    let runs = state.running.is_some();
    let lately = now_ms.saturating_sub(finished_ms) < ENDED_LATELY_MS;
    let again_and_again = container.restart_count >= 2 && lately;
    if container.restart_count == 0 || (runs && !again_and_again) {
        return None;
    }
    let reason = ended.reason.as_deref().unwrap_or("Error");
    Some(format!("image {image} starts, and ends again and again ({reason}, exit code {}): see `kubectl logs --previous`", ended.exit_code))
}

/// Without lines, and not too long.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(WORDS_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW_MS: u64 = 10_000_000;

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "gate-gateway-1"},
            "spec": {"containers": [{"name": "mta", "image": "mta:2"}, {"name": "engine-clamav-a", "image": "clam:9"}]}, "status": status,
        }))
        .expect("a pod")
    }

    fn container(state: &Value, restarts: i32, last: &Value) -> Value {
        json!({"name": "mta", "ready": false, "restartCount": restarts, "image": "", "imageID": "", "state": state, "lastState": last})
    }

    fn said(state: &Value, restarts: i32, last: &Value) -> Option<String> {
        let pod = pod(&json!({"containerStatuses": [container(state, restarts, last)]}));
        troubles([&pod], NOW_MS).first().map(ToString::to_string)
    }

    #[test]
    fn what_keeps_a_container_from_running_is_told_in_words_that_stay() {
        let none = json!({});
        let waits = |reason: &str| json!({"waiting": {"reason": reason, "message": format!("{reason}\n at 12:00:01")}});
        let ended = |at: &str| json!({"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": at}});
        let (lately, long_ago, runs) = (ended("1970-01-01T02:45:00Z"), ended("1970-01-01T01:00:00Z"), json!({"running": {}}));
        for (state, restarts, last, expected) in [
            (&waits("ContainerCreating"), 0, &none, None),
            (&waits("ErrImagePull"), 0, &none, Some("pod gate-gateway-1, container mta: image mta:2 cannot be pulled (ImagePullBackOff)")),
            (&waits("ImagePullBackOff"), 0, &none, Some("pod gate-gateway-1, container mta: image mta:2 cannot be pulled (ImagePullBackOff)")),
            (&waits("CreateContainerConfigError"), 0, &none, Some("(CreateContainerConfigError: CreateContainerConfigError at 12:00:01)")),
            (&waits("CrashLoopBackOff"), 5, &lately, Some("image mta:2 starts, and ends again and again (Error, exit code 3)")),
            (&runs, 5, &lately, Some("ends again and again (Error, exit code 3)")),
            (&runs, 1, &lately, None),
            (&runs, 5, &long_ago, None),
            (&runs, 0, &none, None),
        ] {
            let said = said(state, restarts, last);
            assert_eq!(said.is_some(), expected.is_some(), "{state} {restarts}: {said:?}");
            assert!(expected.is_none_or(|expected| said.as_ref().is_some_and(|said| said.contains(expected))), "{state}: {said:?}");
        }
    }

    #[test]
    fn a_pod_without_a_node_and_whose_slot_it_is() {
        let pending = pod(
            &json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes:\n no memory"}]}),
        );
        let found = troubles([&pending], NOW_MS);
        assert_eq!(found[0].to_string(), "pod gate-gateway-1: no node takes it (0/2 nodes: no memory)");
        assert!(found[0].is_gateway() && !found[0].is_engine("clamav"));
        let slot = Trouble { pod: "p".into(), container: Some(names::slot_container("clamav", names::Slot::B)), why: String::new() };
        assert!(slot.is_engine("clamav") && !slot.is_engine("rspamd") && !slot.is_gateway());
    }

    #[test]
    fn one_that_goes_is_nobodys_trouble() {
        let mut going = pod(&json!({"containerStatuses": [container(&json!({"waiting": {"reason": "ErrImagePull"}}), 0, &json!({}))]}));
        going.metadata.deletion_timestamp =
            going.metadata.creation_timestamp.clone().or_else(|| serde_json::from_value(json!("1970-01-01T00:00:00Z")).ok());
        assert_eq!(troubles([&going], NOW_MS), []);
    }
}
