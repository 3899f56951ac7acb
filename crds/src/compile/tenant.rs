//! One TenantDomain with what it refers to: its part of the snapshot, or what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::defaults;
use super::ownership::Grants;
use super::policy::{Layers, effective_policy, not_evaluated, not_supported, nothing_at_rest};
use super::problem::{Finding, Problem, Reason};
use super::{Lookup, identity};
use crate::snapshot::{RoutePart, TenantPart};
use crate::v1alpha1::gateway_fleet::NamespacesFrom;
use crate::v1alpha1::tenant_domain::{RecipientsType, Route};
use crate::v1alpha1::{GatewayFleet, MailPolicy, TenantDomain};
use crate::vocabulary::{DeliveryMode, Ownership, RouteLookup, RouteTls};

/// What a TenantDomain refers to.
#[derive(Clone, Debug)]
pub struct References<'a> {
    /// The fleet of `spec.fleetRef`.
    pub fleet: Lookup<'a, GatewayFleet>,
    /// The MailPolicy of `spec.policyRef`; not looked at where there is no policyRef.
    pub mail_policy: Lookup<'a, MailPolicy>,
    /// The labels of the tenant's namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// The grants; none: ownership is not checked here.
    pub grants: Option<&'a Grants>,
}

/// Compiles one tenant.
///
/// # Errors
/// Everything that is wrong with it; the caller keeps its last good form. Claims of other tenants are the caller's business.
pub fn compile_tenant(tenant: &TenantDomain, references: &References<'_>) -> Result<TenantPart, Vec<Problem>> {
    let (namespace, name) = identity(&tenant.metadata);
    let mut findings = vec![];
    admission(tenant, &namespace, references, &mut findings);
    unsupported(tenant, &mut findings);
    let fleet = references.fleet.found();
    let mail_policy = match (&tenant.spec.policy_ref, &references.mail_policy) {
        (None, _) => None,
        (Some(_), Lookup::Found(policy)) => Some(*policy),
        (Some(reference), lookup) => {
            findings.push(lookup.finding("spec.policyRef", "MailPolicy", &namespace, &reference.name));
            None
        }
    };
    let object = format!("TenantDomain {namespace}/{name}");
    if !findings.is_empty() {
        return Err(findings.into_iter().map(|finding| Problem::error("", &object, finding)).collect());
    }
    let (mut policy, _) = effective_policy(layers(tenant, fleet, mail_policy));
    let delivery = tenant.spec.delivery.unwrap_or(defaults::DELIVERY);
    if delivery == DeliveryMode::Inline {
        nothing_at_rest(&mut policy);
    }
    Ok(TenantPart {
        namespace,
        name,
        domains: tenant.spec.domains.iter().map(|domain| domain.0.clone()).collect(),
        state: tenant.spec.state.unwrap_or(defaults::TENANT_STATE),
        suspended_since: tenant.status.as_ref().and_then(|status| status.suspended_since).and_then(|at| u64::try_from(at).ok()),
        enforcement: tenant.spec.enforcement.unwrap_or(defaults::ENFORCEMENT),
        routes: tenant.spec.routes.iter().map(route).collect(),
        delivery,
        soft_bounce: tenant.spec.soft_bounce.unwrap_or(defaults::SOFT_BOUNCE),
        messages_per_hour: tenant.spec.limits.as_ref().and_then(|limits| limits.messages_per_hour),
        policy,
        requires: BTreeSet::new(),
    })
}

/// The policies that bear on a tenant.
pub fn layers<'a>(tenant: &'a TenantDomain, fleet: Option<&'a GatewayFleet>, mail_policy: Option<&'a MailPolicy>) -> Layers<'a> {
    Layers {
        overrides: fleet.and_then(|fleet| fleet.spec.policy_overrides.as_ref()),
        tenant: tenant.spec.policy.as_ref(),
        mail_policy: mail_policy.map(|policy| &policy.spec),
        defaults: fleet.and_then(|fleet| fleet.spec.policy_defaults.as_ref()),
    }
}

fn route(route: &Route) -> RoutePart {
    RoutePart {
        name: route.name.0.clone(),
        host: route.host.0.clone(),
        lookup: route.lookup.unwrap_or(defaults::ROUTE_LOOKUP),
        port: route.port.unwrap_or(defaults::ROUTE_PORT),
        priority: route.priority.unwrap_or(defaults::ROUTE_PRIORITY),
        weight: route.weight.unwrap_or(defaults::ROUTE_WEIGHT),
        tls: route.tls.as_ref().and_then(|tls| tls.mode).unwrap_or(defaults::ROUTE_TLS),
    }
}

/// Whether the fleet is there, serves the tenant's namespace, and a grant covers its domains.
fn admission(tenant: &TenantDomain, namespace: &str, references: &References<'_>, findings: &mut Vec<Finding>) {
    let reference = &tenant.spec.fleet_ref;
    let fleet_namespace = reference.namespace.as_deref().unwrap_or(namespace);
    let Lookup::Found(fleet) = references.fleet else {
        // A fleet that was rejected says so itself; its tenants are looked at as far as possible without it.
        if matches!(references.fleet, Lookup::Missing { .. }) {
            findings.push(references.fleet.finding("spec.fleetRef", "GatewayFleet", fleet_namespace, &reference.name));
        }
        return;
    };
    let admission = fleet.spec.tenants.as_ref();
    let namespaces = admission.and_then(|tenants| tenants.namespaces.as_ref());
    let served = match namespaces.map_or(NamespacesFrom::Same, |namespaces| namespaces.from) {
        NamespacesFrom::Same => namespace == identity(&fleet.metadata).0,
        NamespacesFrom::All => true,
        NamespacesFrom::Selector => {
            namespaces.and_then(|namespaces| namespaces.selector.as_ref()).is_some_and(|selector| selector.matches(references.namespace_labels))
        }
    };
    if !served {
        let message = format!(
            "GatewayFleet {} does not serve tenants of namespace {namespace}: put the tenant into the fleet's namespace, or change the fleet's spec.tenants.namespaces",
            reference.name
        );
        findings.push(Finding::new("spec.fleetRef", Reason::NotAllowed, message));
    }
    let ownership = admission.and_then(|tenants| tenants.ownership).unwrap_or(defaults::OWNERSHIP);
    let Some(grants) = references.grants.filter(|_| ownership == Ownership::Grant) else { return };
    for (index, domain) in tenant.spec.domains.iter().enumerate().filter(|(_, domain)| !grants.cover(namespace, domain)) {
        let message = format!("no DomainGrant lets namespace {namespace} claim `{domain}`: add it to a DomainGrant's spec.domains");
        findings.push(Finding::new(format!("spec.domains[{index}]"), Reason::NotAllowed, message));
    }
}

fn unsupported(tenant: &TenantDomain, findings: &mut Vec<Finding>) {
    let mut say = |field: String, message: String| findings.push(Finding::new(field, Reason::NotSupportedYet, message));
    for (index, route) in tenant.spec.routes.iter().enumerate() {
        if route.lookup == Some(RouteLookup::Mx) {
            say(format!("spec.routes[{index}].lookup"), "`Mx` is not supported yet: name the server itself, with lookup Address".to_owned());
        }
        if let Some(mode @ (RouteTls::Dane | RouteTls::MtaSts)) = route.tls.as_ref().and_then(|tls| tls.mode) {
            say(format!("spec.routes[{index}].tls.mode"), format!("`{mode}` is not supported yet: use Required or Opportunistic"));
        }
    }
    if let Some(kind @ (RecipientsType::CallAhead | RecipientsType::List)) = tenant.spec.recipients.as_ref().map(|recipients| recipients.kind) {
        say("spec.recipients.type".to_owned(), format!("`{kind:?}` is not supported yet: use Any, or leave recipients out"));
    }
    if tenant.spec.outbound.is_some() {
        say("spec.outbound".to_owned(), "mail from tenants to the Internet is not supported yet: leave it out".to_owned());
    }
    findings.extend(tenant.spec.policy.iter().flat_map(|policy| not_supported(policy, "spec.policy")));
}

/// What is taken but deserves a word: routes that the fleet's egress rules will refuse, and what is not evaluated.
pub(crate) fn warnings(tenant: &TenantDomain, fleet: &GatewayFleet) -> Vec<Finding> {
    let mut findings: Vec<Finding> = tenant.spec.policy.iter().filter_map(|policy| not_evaluated(policy, "spec.policy")).collect();
    let networks = fleet.spec.egress.iter().flat_map(|egress| &egress.allowed_networks);
    let allowed: Vec<IpNet> = networks.filter_map(|network| network.parse().ok()).collect();
    for (index, route) in tenant.spec.routes.iter().enumerate() {
        let Ok(address) = route.host.parse::<IpAddr>() else { continue };
        if !is_public(address) && !allowed.iter().any(|network| network.contains(&address)) {
            let message = format!(
                "{address} is not a public address, and the fleet's spec.egress.allowedNetworks does not list it: nothing will be delivered there until it does"
            );
            findings.push(Finding::new(format!("spec.routes[{index}].host"), Reason::Suspicious, message));
        }
    }
    findings
}

/// Whether an address is one that routes may always lead to, as far as can be told without the list of the gateway itself.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unique_local() || v6.is_unicast_link_local()),
    }
}
