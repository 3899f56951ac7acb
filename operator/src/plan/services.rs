//! The two Services. The SMTP one follows the intake label and publishes addresses that are not ready: a container that crash-loops makes its whole pod
//! not ready, which must not take the fleet off its Service exactly when a bad engine strikes.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sekimori_crds::v1alpha1::gateway_fleet::{ServiceType, TrafficPolicy};

use super::{metadata, selector_labels};
use crate::fleet::{Fleet, service_port};
use crate::names;

/// The names of the pods, ready or not: gateways find each other while they drain.
pub(super) fn headless(fleet: &Fleet<'_>) -> Service {
    Service {
        metadata: metadata(fleet, names::gateway_object(&fleet.name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            ip_family_policy: Some("PreferDualStack".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector_labels(&fleet.name)),
            ports: Some(vec![port(names::ADMIN_PORT_NAME, names::ADMIN_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Where mail comes in.
pub(super) fn smtp(fleet: &Fleet<'_>) -> Service {
    let said = fleet.object.spec.service.as_ref();
    let kind = said.and_then(|service| service.kind).unwrap_or(ServiceType::LoadBalancer);
    let policy = said.and_then(|service| service.external_traffic_policy).unwrap_or(TrafficPolicy::Local);
    let mut selector = selector_labels(&fleet.name);
    selector.insert(names::INTAKE_LABEL.to_owned(), names::INTAKE_OPEN.to_owned());
    let mut metadata = metadata(fleet, names::smtp_service(&fleet.name));
    let annotations = said.map(|service| &service.annotations).filter(|annotations| !annotations.is_empty());
    metadata.annotations = annotations.map(|annotations| annotations.iter().map(|(key, value)| (key.clone(), value.0.clone())).collect());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_name(kind).to_owned()),
            // The field exists only where traffic comes from outside.
            external_traffic_policy: (kind != ServiceType::ClusterIp).then(|| format!("{policy:?}")),
            ip_family_policy: Some("PreferDualStack".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector),
            ports: Some(fleet.object.spec.listeners.iter().map(|listener| port(&listener.name, service_port(listener))).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

const fn type_name(kind: ServiceType) -> &'static str {
    match kind {
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::NodePort => "NodePort",
        ServiceType::ClusterIp => "ClusterIP",
    }
}

/// A port that leads to the container port of the same name.
fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}
