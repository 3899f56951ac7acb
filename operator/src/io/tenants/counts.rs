//! Statuses of MailPolicies and DomainGrants: how many rely on them. Counted together, from time to time.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::{Api, Client};
use sekimori_crds::compile::Grants;
use sekimori_crds::v1alpha1::domain_grant::DomainGrantStatus;
use sekimori_crds::v1alpha1::mail_policy::MailPolicyStatus;
use sekimori_crds::v1alpha1::{DomainGrant, MailPolicy};

use super::World;
use crate::io::clock;
use crate::io::cluster::{ClusterError, apply_status};
use crate::io::metrics::Metrics;
use crate::ownership::Tenant;
use crate::status::{ConditionType, Fact, Reason, merge};

/// A domain, and who holds it.
type Held = (Arc<str>, Arc<Tenant>);
/// Objects as they were read.
type Read<K> = Vec<Arc<DeserializeGuard<K>>>;

/// What was counted.
#[derive(Default)]
pub(super) struct Counted {
    /// Tenants by namespace and name of their MailPolicy.
    pub(super) policies: BTreeMap<(String, Arc<str>), u32>,
    /// Domains that are held, with their holders, by namespace.
    pub(super) held: BTreeMap<String, Vec<Held>>,
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Says it, where it differs. False: some of it could not be said.
pub(super) async fn say(client: Client, policies: Read<MailPolicy>, grants: Read<DomainGrant>, counted: Counted, metrics: Arc<Metrics>) -> bool {
    let mut all_said = true;
    let fine = |message: &str| [Fact::new(ConditionType::Ready, true, Reason::Valid, message)];
    for policy in policies.iter().filter_map(|guard| guard.0.as_ref().ok()) {
        let (namespace, name) = (policy.metadata.namespace.clone().unwrap_or_default(), policy.metadata.name.clone().unwrap_or_default());
        let before = policy.status.clone().unwrap_or_default();
        let generation = policy.metadata.generation;
        let status = MailPolicyStatus {
            observed_generation: generation,
            tenants: Some(counted.policies.get(&(namespace.clone(), name.as_str().into())).copied().unwrap_or_default()),
            conditions: merge(&before.conditions, &fine("nothing is wrong"), generation, clock::unix_ms()),
        };
        if before != status {
            let api: Api<MailPolicy> = Api::namespaced(client.clone(), &namespace);
            all_said &= written("MailPolicy", apply_status(&api, &name, &status).await, &metrics);
        }
    }
    for grant in grants.iter().filter_map(|guard| guard.0.as_ref().ok()) {
        let index = Grants::new([grant]);
        let mut domains = 0;
        let mut tenants: Vec<&Tenant> = vec![];
        for namespace in &grant.spec.namespaces {
            for (domain, holder) in counted.held.get(&namespace.0).into_iter().flatten().filter(|(domain, _)| index.cover(&namespace.0, domain)) {
                domains += usize::from(!domain.is_empty());
                tenants.push(holder);
            }
        }
        tenants.sort_unstable();
        tenants.dedup();
        let before = grant.status.clone().unwrap_or_default();
        let generation = grant.metadata.generation;
        let status = DomainGrantStatus {
            observed_generation: generation,
            claims: Some(number(tenants.len())),
            claimed_domains: Some(number(domains)),
            conditions: merge(&before.conditions, &fine("nothing is wrong"), generation, clock::unix_ms()),
        };
        if before != status {
            let api: Api<DomainGrant> = Api::all(client.clone());
            all_said &= written("DomainGrant", apply_status(&api, grant.metadata.name.as_deref().unwrap_or_default(), &status).await, &metrics);
        }
    }
    all_said
}

fn written(kind: &str, result: Result<(), ClusterError>, metrics: &Metrics) -> bool {
    match result {
        Ok(()) => metrics.status_writes.with_label_values(&[kind]).inc(),
        Err(error) => {
            tracing::warn!(kind, %error, "a count could not be said: it is tried again");
            return false;
        }
    }
    true
}

/// The objects to say it of.
pub(super) fn subjects(world: &World) -> (Read<MailPolicy>, Read<DomainGrant>) {
    (world.policies.all().collect(), world.grants.state())
}
