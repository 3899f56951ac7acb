//! EngineVersion: one immutable version of an engine.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{Conditions, LocalRef, conditions, undescribed};
use super::text::{AnnotationValue, Image, Version};

/// One version of an engine; immutable, and not deletable while it is referred to.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sekimori.dev",
    version = "v1alpha1",
    kind = "EngineVersion",
    plural = "engineversions",
    shortname = "engv",
    category = "sekimori",
    namespaced,
    status = "EngineVersionStatus",
    derive = "PartialEq",
    doc = "One immutable version of an engine.",
    annotation("helm.sh/resource-policy", "keep"),
    validation = Rule::new("self.spec == oldSelf.spec").message("an EngineVersion cannot be changed: make a new one").field_path(".spec"),
    printcolumn(name = "Engine", type_ = "string", json_path = ".spec.engineRef.name"),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct EngineVersionSpec {
    /// The Engine, in the same namespace. Required.
    pub engine_ref: LocalRef,
    /// Its version, in quotes. Required.
    pub version: Version,
    /// Its image; a digest is preferred. Required.
    pub image: Image,
    /// Environment of its container. Default: none.
    #[schemars(extend("maxProperties" = 64))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, AnnotationValue>,
}

/// What the operator found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EngineVersionStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Available, Active or Retired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<EngineVersionPhase>,
    /// Ready, Available, Active, Retired, ResolvedRefs.
    #[schemars(schema_with = "conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Conditions,
}

/// The life of a version.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum EngineVersionPhase {
    /// Can be rolled out.
    Available,
    /// Scans.
    Active,
    /// Was replaced.
    Retired,
}
