//! EngineRollout: one attempt to bring a new version of an engine out; made by the operator.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{Conditions, LocalRef, conditions, undescribed};
use super::text::{ObjectName, StatusText};

/// One attempt to bring a new version of an engine out. The operator makes it; `paused` and `decision` are the user's levers.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sekimori.dev",
    version = "v1alpha1",
    kind = "EngineRollout",
    plural = "enginerollouts",
    shortname = "engr",
    category = "sekimori",
    namespaced,
    status = "EngineRolloutStatus",
    derive = "PartialEq",
    doc = "One attempt to bring a new version of an engine out; made by the operator.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(name = "Engine", type_ = "string", json_path = ".spec.engineRef.name"),
    printcolumn(name = "To", type_ = "string", json_path = ".spec.toRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.step"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.engineRef == oldSelf.engineRef && self.toRef == oldSelf.toRef && has(self.fromRef) == has(oldSelf.fromRef) && (!has(self.fromRef) || self.fromRef == oldSelf.fromRef)")
        .message("engineRef, fromRef and toRef cannot be changed").reason(Reason::FieldValueForbidden),
    validation = Rule::new("!has(oldSelf.decision) || (has(self.decision) && self.decision == oldSelf.decision)")
        .message("was made and cannot be changed").reason(Reason::FieldValueForbidden).field_path(".decision")
)]
pub struct EngineRolloutSpec {
    /// The Engine. Required.
    pub engine_ref: LocalRef,
    /// The version before. Default: none (the engine's first version).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_ref: Option<LocalRef>,
    /// The version that is tried. Required.
    pub to_ref: LocalRef,
    /// Nothing moves while true. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Promote or Abort, set once. Default: the analysis decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// The user's decision.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum Decision {
    /// The new version goes to every pod.
    Promote,
    /// Back to the version before.
    Abort,
}

/// What the operator did and found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EngineRolloutStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the attempt stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<RolloutPhase>,
    /// Number of the step, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// One CamelCase word for the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<StatusText>,
    /// A sentence about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<StatusText>,
    /// State per pod, keyed by name.
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<RolloutPod>,
    /// What the analysis found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<RolloutAnalysis>,
    /// Ready, ResolvedRefs.
    #[schemars(schema_with = "conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Conditions,
}

/// Where an attempt stands.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum RolloutPhase {
    /// Waits for its turn.
    Pending,
    /// Moves.
    Progressing,
    /// Waits for the user.
    Paused,
    /// The new version scans everywhere.
    Succeeded,
    /// The version before scans everywhere.
    Failed,
}

/// One pod of an attempt.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutPod {
    /// Name of the pod.
    pub name: ObjectName,
    /// What the pod does with the version.
    pub state: StatusText,
}

/// What the analysis found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutAnalysis {
    /// Messages that both versions scanned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,
    /// Campaigns among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaigns: Option<u64>,
    /// Found by the stable version only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// Found by the canary only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<u64>,
    /// Passed, Failed or Inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<StatusText>,
}
