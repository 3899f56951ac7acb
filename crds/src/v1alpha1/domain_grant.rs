//! DomainGrant: which namespaces may claim which domains.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{Conditions, conditions};
use super::text::{Domain, Label, Network};

/// Which namespaces may claim which domains, and relay from which networks.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sekimori.dev",
    version = "v1alpha1",
    kind = "DomainGrant",
    plural = "domaingrants",
    shortname = "dg",
    category = "sekimori",
    status = "DomainGrantStatus",
    derive = "PartialEq",
    doc = "Which namespaces may claim which domains, and relay from which networks.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.namespaces"),
    printcolumn(name = "Domains", type_ = "string", json_path = ".spec.domains"),
    printcolumn(name = "Claims", type_ = "integer", json_path = ".status.claims"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct DomainGrantSpec {
    /// Names of namespaces. Required, 1 to 256.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Vec<Label>,
    /// Domains; `*.example.com` covers every name below example.com (and wildcards there), not example.com itself. Required, 1 to 1000.
    #[schemars(length(min = 1, max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub domains: Vec<Domain>,
    /// Networks from which tenants of these namespaces may let mail be relayed. Default: none.
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relay_networks: Vec<Network>,
}

/// What the operator found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DomainGrantStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Tenants that rely on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<u32>,
    /// Domains that are claimed by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_domains: Option<u32>,
    /// Ready.
    #[schemars(schema_with = "conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Conditions,
}
