//! Number of gateways by load: the shapes and knobs of autoscaling/v2.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::common::undescribed;
use super::text::Quantity;

/// Number of gateways by load.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.minReplicas) || self.minReplicas <= self.maxReplicas").message("must not be above maxReplicas").field_path(".minReplicas"))]
pub struct Autoscaling {
    /// At least so many, 1 to 1000. Default: 2.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<u32>,
    /// At most so many, 1 to 1000. Required.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: u32,
    /// What is measured, keyed by type; the highest demand counts. Default: RunnableBacklog "500", ScanSaturation 70, ShedRate "1".
    #[schemars(length(max = 3))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// How fast it may go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
}

/// One measure.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'ScanSaturation' || self.target.type == 'Utilization'").message("ScanSaturation is a share: target type Utilization").field_path(".target.type"),
    validation = Rule::new("self.type == 'ScanSaturation' || self.target.type == 'AverageValue'").message("is not a share: target type AverageValue").field_path(".target.type")
)]
pub struct Metric {
    /// RunnableBacklog, ScanSaturation or ShedRate.
    #[serde(rename = "type")]
    pub kind: MetricType,
    /// What is aimed at.
    pub target: MetricTarget,
}

/// What can be measured.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum MetricType {
    /// Messages that wait for our own worker, disk or scan slot.
    RunnableBacklog,
    /// Share of the scan slots in use, shadow engines excluded.
    ScanSaturation,
    /// Transactions per second that our own limits refused with 4xx.
    ShedRate,
}

/// What is aimed at.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.averageValue) == (self.type == 'AverageValue')").message("goes with type AverageValue, and only with it").field_path(".averageValue"),
    validation = Rule::new("has(self.averageUtilization) == (self.type == 'Utilization')").message("goes with type Utilization, and only with it").field_path(".averageUtilization")
)]
pub struct MetricTarget {
    /// AverageValue or Utilization.
    #[serde(rename = "type")]
    pub kind: MetricTargetType,
    /// Per pod, as a Kubernetes quantity; only with type AverageValue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_value: Option<Quantity>,
    /// In percent, 1 to 100; only with type Utilization.
    #[schemars(range(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_utilization: Option<u32>,
}

/// How a target is written.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum MetricTargetType {
    /// A value per pod.
    AverageValue,
    /// A share in percent.
    Utilization,
}

/// How fast the number may change.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Behavior {
    /// Upwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScalingRules>,
    /// Downwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScalingRules>,
}

/// How fast the number may change in one direction.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingRules {
    /// The most cautious demand of the last so many seconds counts, 0 to 3600. Default: 0 upwards, 300 downwards.
    #[schemars(range(max = 3600))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stabilization_window_seconds: Option<u32>,
    /// Max, Min or Disabled. Default: Max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select_policy: Option<SelectPolicy>,
    /// Bounds of a change, keyed by type. Default: 4 pods or 100 percent in 15 s upwards, 100 percent in 15 s downwards.
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<ScalingPolicy>,
}

/// Which bound counts.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum SelectPolicy {
    /// The widest.
    Max,
    /// The narrowest.
    Min,
    /// No change in this direction.
    Disabled,
}

/// One bound of a change.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingPolicy {
    /// Pods or Percent.
    #[serde(rename = "type")]
    pub kind: ScalingPolicyType,
    /// So many pods or percent, 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    pub value: u32,
    /// In so many seconds, 1 to 1800.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: u32,
}

/// What a bound counts.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum ScalingPolicyType {
    /// Pods.
    Pods,
    /// Percent of the pods there are.
    Percent,
}
