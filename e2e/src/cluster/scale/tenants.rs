//! The tenants of the run: names, domains and specs, by number. Pure.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// The fleet, and where it is.
pub(super) const FLEET: &str = "gate";
pub(super) const FLEET_NAMESPACE: &str = "scale";
/// The MailPolicy of every namespace.
const POLICY: &str = "standard";

/// Where tenants are, and where their mail goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenants {
    /// How many namespaces share them.
    pub(super) namespaces: usize,
    /// The mail server behind all of them.
    pub(super) server: SocketAddr,
}

impl Tenants {
    /// The namespace of a tenant: neighbours are in different ones.
    pub(super) fn namespace(&self, number: usize) -> String {
        namespace(number % self.namespaces.max(1))
    }

    /// The path of its collection at the API server.
    pub(super) fn collection(&self, number: usize) -> String {
        format!("/apis/sekimori.dev/v1alpha1/namespaces/{}/tenantdomains", self.namespace(number))
    }

    /// Its own path.
    pub(super) fn path(&self, number: usize) -> String {
        format!("{}/{}", self.collection(number), name(number))
    }

    /// As a user would write it: two domains, two servers, a policy with an exception, a limit.
    pub(super) fn object(&self, number: usize) -> Value {
        let domain = domain(number);
        json!({
            "apiVersion": "sekimori.dev/v1alpha1",
            "kind": "TenantDomain",
            "metadata": {"name": name(number), "namespace": self.namespace(number), "labels": {"app.kubernetes.io/managed-by": "billing"}},
            "spec": {
                "fleetRef": {"name": FLEET, "namespace": FLEET_NAMESPACE},
                "domains": domains(number),
                "routes": [
                    {"name": "primary", "host": self.server.ip().to_string(), "port": self.server.port(), "priority": 10, "tls": {"mode": "Disabled"}},
                    {"name": "backup", "host": format!("backup.{domain}"), "priority": 20, "tls": {"mode": "Opportunistic"}},
                ],
                "policyRef": {"name": POLICY},
                "policy": {"antiSpam": {"subjectTag": "[SPAM] "}},
                "limits": {"messagesPerHour": 100_000},
            },
        })
    }
}

/// The n-th namespace.
pub(super) fn namespace(number: usize) -> String {
    format!("customer-{number:03}")
}

/// A tenant's name.
pub(super) fn name(number: usize) -> String {
    format!("tenant-{number:06}")
}

/// Its first domain.
pub(super) fn domain(number: usize) -> String {
    format!("t{number:06}.example")
}

/// All that it has from the beginning.
fn domains(number: usize) -> [String; 2] {
    [domain(number), format!("t{number:06}.example.net")]
}

/// The domain that a change adds.
pub(super) fn added_domain(number: usize) -> String {
    format!("added.t{number:06}.example")
}

/// That change, as a merge patch.
pub(super) fn change(number: usize) -> Value {
    let mut all = domains(number).to_vec();
    all.push(added_domain(number));
    json!({"spec": {"domains": all}})
}

/// The policy of a namespace.
pub(super) fn policy() -> Value {
    json!({
        "apiVersion": "sekimori.dev/v1alpha1",
        "kind": "MailPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "antiVirus": {"infected": "Reject", "tooLarge": "Quarantine"},
            "lists": {"allow": [{"type": "Domain", "value": "partner.example"}], "deny": [{"type": "Network", "value": "198.51.100.0/24"}]},
        },
    })
}

/// The fleet and its engines, one document each.
pub(super) fn fleet(gateways: usize, storage_class: &str) -> [Value; 3] {
    let object = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "sekimori.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": FLEET_NAMESPACE}, "spec": spec});
    [
        object("Engine", "builtin-virus", json!({"class": "AntiVirus", "protocol": {"type": "Builtin"}})),
        object("Engine", "builtin-spam", json!({"class": "AntiSpam", "protocol": {"type": "Builtin"}})),
        object(
            "GatewayFleet",
            FLEET,
            json!({
                "replicas": gateways,
                "hostname": "mx.gate.example",
                "service": {"type": "ClusterIP"},
                "listeners": [{"name": "smtp", "port": 2525}],
                "tenants": {"namespaces": {"from": "All"}, "ownership": "Trust"},
                "engines": [{"name": "builtin-virus"}, {"name": "builtin-spam"}],
                "egress": {"allowedNetworks": ["10.250.0.0/24"]},
                "spool": {"storage": "4Gi", "storageClassName": storage_class},
                "drain": {"handOver": "Wait"},
            }),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_adds_a_domain_that_the_tenant_had_not() {
        let tenants = Tenants { namespaces: 10, server: "10.250.0.1:25".parse().expect("an address") };
        let (object, change) = (tenants.object(123), change(123));
        let before = object["spec"]["domains"].as_array().expect("a list").clone();
        let after = change["spec"]["domains"].as_array().expect("a list").clone();
        assert!(before.iter().all(|domain| after.contains(domain)), "nothing is lost: {after:?}");
        assert!(!before.contains(&json!(added_domain(123))) && after.contains(&json!(added_domain(123))));
        assert_eq!(tenants.path(123), "/apis/sekimori.dev/v1alpha1/namespaces/customer-003/tenantdomains/tenant-000123");
        assert_eq!(object["metadata"]["namespace"], "customer-003");
    }
}
