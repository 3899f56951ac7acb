//! From a fleet to the objects of a cluster: pure, one file for each kind. Nothing here asks a cluster, decides when a pod goes, or knows what is there
//! already, apart from what [`crate::fleet::Fleet`] took over from it.

mod account;
mod authority;
mod disruption;
mod network;
mod patch;
mod pod;
mod services;
mod slots;
mod statefulset;
mod template_hash;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use sekimori_crds::compile::{Finding, Problem};
use sekimori_crds::v1alpha1::{API_VERSION, GatewayFleet};

use crate::fleet::Fleet;
use crate::names;
use crate::settings::Settings;

pub use template_hash::{hash_of, recorded_hash};

/// Everything that belongs to a fleet, ready to be applied in this order: what a pod mounts or may do is there before the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The certificates that vouch for the operator.
    pub authority: ConfigMap,
    /// Who the pods are.
    pub service_account: ServiceAccount,
    /// Whom they may talk to.
    pub network_policy: NetworkPolicy,
    /// Their names.
    pub headless_service: Service,
    /// Where mail comes in.
    pub smtp_service: Service,
    /// How many of them an eviction may take at once.
    pub disruption_budget: PodDisruptionBudget,
    /// The pods.
    pub stateful_set: StatefulSet,
    /// What the status keeps, so that an upgraded operator makes the same pods.
    pub pins: Pins,
}

/// What is pinned in a fleet's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// Image of the gateway.
    pub image: String,
    /// Version of the pod template.
    pub template_version: u32,
    /// The hash of what needs new pods when it changes.
    pub template_hash: String,
    /// For each engine in the pods, the name of the EngineVersion that new pods run.
    pub engine_versions: BTreeMap<String, String>,
}

/// The objects of a fleet. `replicas` is what its StatefulSet has now, and what is wanted only where there is none yet: lowering it is a step of its own
/// ([`crate::update::Action::SetReplicas`]), because a pod with mail stays.
///
/// # Errors
/// What the pod template patch may not do, or what came of it is no pod template. Then nothing is applied, and the pods that there are stay.
pub fn plan(fleet: &Fleet<'_>, settings: &Settings, replicas: u32) -> Result<Plan, Vec<Problem>> {
    let object = format!("GatewayFleet {}/{}", fleet.namespace, fleet.name);
    let in_order = |findings: Vec<Finding>| findings.into_iter().map(|finding| Problem::error("", &object, finding)).collect::<Vec<_>>();
    let (stateful_set, template_hash) = statefulset::stateful_set(fleet, settings, replicas).map_err(in_order)?;
    let engine_versions =
        fleet.in_pod().map(|(engine, _, version)| (engine.name.to_owned(), version.metadata.name.clone().unwrap_or_default())).collect();
    Ok(Plan {
        authority: authority::authority(fleet, settings),
        service_account: account::service_account(fleet),
        network_policy: network::network_policy(fleet, settings),
        headless_service: services::headless(fleet),
        smtp_service: services::smtp(fleet),
        disruption_budget: disruption::disruption_budget(fleet),
        stateful_set,
        pins: Pins { image: fleet.image.clone(), template_version: fleet.template_version, template_hash, engine_versions },
    })
}

/// The labels that select a fleet's pods. They are in the StatefulSet's selector, which cannot be changed.
pub fn selector_labels(fleet: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/name".to_owned(), names::APP.to_owned()), (names::FLEET_LABEL.to_owned(), names::fleet_label(fleet))])
}

/// The same as text, as the scale subresource wants it.
pub fn selector_text(fleet: &str) -> String {
    selector_labels(fleet).into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn selector(fleet: &Fleet<'_>) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(&fleet.name)), ..LabelSelector::default() }
}

fn labels(fleet: &str) -> BTreeMap<String, String> {
    let mut labels = selector_labels(fleet);
    labels.insert("app.kubernetes.io/component".to_owned(), "gateway".to_owned());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), names::MANAGER.to_owned());
    labels.insert("app.kubernetes.io/part-of".to_owned(), "sekimori".to_owned());
    labels
}

/// The metadata of an object of a fleet.
fn metadata(fleet: &Fleet<'_>, name: String) -> ObjectMeta {
    metadata_of(fleet.object, name)
}

/// The same for objects that are no part of the plan. It names no owner as long as the fleet is there: else `kubectl delete --cascade=foreground` would take
/// the pods, and what they mount, before they have delivered their mail.
pub fn metadata_of(fleet: &GatewayFleet, name: String) -> ObjectMeta {
    let labels = labels(fleet.metadata.name.as_deref().unwrap_or_default());
    ObjectMeta { name: Some(name), namespace: fleet.metadata.namespace.clone(), labels: Some(labels), ..ObjectMeta::default() }
}

/// The owner that the objects get when the fleet may go: from then on they go with it.
pub fn owner(fleet: &GatewayFleet) -> OwnerReference {
    OwnerReference {
        api_version: API_VERSION.to_owned(),
        kind: "GatewayFleet".to_owned(),
        name: fleet.metadata.name.clone().unwrap_or_default(),
        uid: fleet.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
