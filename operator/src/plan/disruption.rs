//! How many pods an eviction may take at once. A pod that is not ready may always go: a bad engine must not block the drain of a node.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{metadata, selector};
use crate::fleet::Fleet;
use crate::names;

pub(super) fn disruption_budget(fleet: &Fleet<'_>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(fleet, names::gateway_object(&fleet.name)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(i32::try_from(fleet.max_unavailable()).unwrap_or(i32::MAX))),
            selector: Some(selector(fleet)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
