//! The custom resources, one file per kind, and their definitions as Kubernetes wants them.
//!
//! House rules: a union has `type` and one member named after it; references are objects with `name`; lists that merge are keyed; every string, list
//! and map is bounded; a rule that one object can state is CEL in its schema; no schema defaults (what is absent is inherited or built in, and the
//! built-in values stand in `compile::defaults`). No client, no decision about a cluster.

#![allow(unreachable_pub, reason = "KubeSchema copies each struct, with its `pub`, into a function")]
#![allow(clippy::duplicated_attributes, reason = "a printer column repeats the names of its settings")]

pub mod autoscaling;
pub mod common;
pub mod domain_grant;
pub mod engine;
pub mod engine_rollout;
pub mod engine_version;
pub mod gateway_fleet;
pub mod mail_policy;
pub mod tenant_domain;
pub mod text;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::CustomResourceExt;
use serde_json::Value;

pub use domain_grant::{DomainGrant, DomainGrantSpec};
pub use engine::{Engine, EngineSpec};
pub use engine_rollout::{EngineRollout, EngineRolloutSpec};
pub use engine_version::{EngineVersion, EngineVersionSpec};
pub use gateway_fleet::{GatewayFleet, GatewayFleetSpec};
pub use mail_policy::{MailPolicy, MailPolicySpec};
pub use tenant_domain::{TenantDomain, TenantDomainSpec};

/// Group and version of every kind.
pub const API_VERSION: &str = "sekimori.dev/v1alpha1";

/// The group of every kind.
pub const GROUP: &str = "sekimori.dev";

/// The definitions of all kinds, as they are installed.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let raw =
        [GatewayFleet::crd(), TenantDomain::crd(), MailPolicy::crd(), Engine::crd(), EngineVersion::crd(), EngineRollout::crd(), DomainGrant::crd()];
    raw.into_iter()
        .map(|definition| {
            let mut value = serde_json::to_value(definition).expect("a definition has only string keys");
            tidy(&mut value);
            serde_json::from_value(value).expect("only keywords were taken away")
        })
        .collect()
}

/// Takes away what schemars says and Kubernetes does not want: `nullable` (a null is a mistake, not a value) and formats that it does not know.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            if map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}
