//! Statuses of tenants: written when they differ, at a bounded rate, those that a user waits for first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource as _};
use sekimori_crds::v1alpha1::TenantDomain;
use sekimori_crds::v1alpha1::tenant_domain::TenantDomainStatus;
use tokio::sync::Notify;

use crate::io::clock;
use crate::io::cluster::{apply_status, if_there};
use crate::io::metrics::Metrics;
use crate::limiter::Limiter;
use crate::ownership::Tenant;
use crate::status::{Fact, merge};

/// Statuses at once, and then a second.
const RATE: (u32, u32) = (100, 50);
/// Written at the same time.
const AT_ONCE: usize = 8;
/// One that failed is tried again after so long.
const AGAIN: Duration = Duration::from_secs(5);

/// What is to be said of one tenant.
#[derive(Clone)]
pub(super) struct Said {
    pub(super) facts: Vec<Fact>,
    pub(super) generation: i64,
    pub(super) suspended_since: Option<i64>,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<Tenant, Said>,
    urgent: VecDeque<Tenant>,
    bulk: VecDeque<Tenant>,
}

/// Writes in the background.
#[derive(Clone)]
pub(super) struct Statuses {
    queue: Arc<Mutex<Queue>>,
    woken: Arc<Notify>,
}

impl Statuses {
    pub(super) fn start(client: Client, metrics: Arc<Metrics>) -> Self {
        let statuses = Self { queue: Arc::default(), woken: Arc::new(Notify::new()) };
        let limiter = Arc::new(tokio::sync::Mutex::new(Limiter::new(RATE.0, RATE.1)));
        for _ in 0..AT_ONCE {
            let (statuses, client, metrics, limiter) = (statuses.clone(), client.clone(), Arc::clone(&metrics), Arc::clone(&limiter));
            tokio::spawn(async move { statuses.work(&client, &metrics, &limiter).await });
        }
        statuses
    }

    /// Says this of a tenant, in place of what still waits to be said.
    pub(super) fn say(&self, tenant: &Tenant, said: Said, urgent: bool) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = queue.waiting.insert(tenant.clone(), said).is_some();
        if urgent {
            queue.urgent.push_back(tenant.clone());
        } else if !waits {
            queue.bulk.push_back(tenant.clone());
        }
        drop(queue);
        self.woken.notify_one();
    }

    fn next(&self) -> Option<(Tenant, Said)> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let tenant = match queue.urgent.pop_front() {
                Some(tenant) => tenant,
                None => queue.bulk.pop_front()?,
            };
            // It may stand in both, and be said already.
            if let Some(said) = queue.waiting.remove(&tenant) {
                let more = !queue.waiting.is_empty();
                drop(queue);
                if more {
                    self.woken.notify_one();
                }
                return Some((tenant, said));
            }
        }
    }

    async fn work(&self, client: &Client, metrics: &Metrics, limiter: &tokio::sync::Mutex<Limiter<()>>) {
        loop {
            let Some((tenant, said)) = self.next() else {
                self.woken.notified().await;
                continue;
            };
            while !limiter.lock().await.allows((), clock::unix_ms()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            match write(client, &tenant, &said).await {
                Ok(written) => {
                    if written {
                        metrics.status_writes.with_label_values(&["TenantDomain"]).inc();
                    }
                }
                Err(error) => {
                    tracing::warn!(%tenant, %error, "a status could not be written: it is tried again");
                    let (statuses, tenant) = (self.clone(), tenant.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(AGAIN).await;
                        let newer = statuses.queue.lock().unwrap_or_else(PoisonError::into_inner).waiting.contains_key(&tenant);
                        if !newer {
                            statuses.say(&tenant, said, false);
                        }
                    });
                }
            }
        }
    }
}

/// Writes one status, if it differs. A tenant that changed meanwhile is judged again anyway.
async fn write(client: &Client, tenant: &Tenant, said: &Said) -> Result<bool, crate::io::cluster::ClusterError> {
    let api: Api<DeserializeGuard<TenantDomain>> = Api::namespaced(client.clone(), &tenant.namespace);
    let Some(guard) = if_there(|| format!("TenantDomain {tenant}"), api.get(&tenant.name)).await? else { return Ok(false) };
    if guard.meta().generation.unwrap_or_default() > said.generation && said.generation != 0 {
        return Ok(false);
    }
    let before = guard.0.as_ref().ok().and_then(|object| object.status.clone()).unwrap_or_default();
    let generation = guard.meta().generation;
    let status = TenantDomainStatus {
        observed_generation: generation,
        programmed_pods: None,
        suspended_since: said.suspended_since,
        conditions: merge(&before.conditions, &said.facts, generation, clock::unix_ms()),
    };
    if before == status {
        return Ok(false);
    }
    let api: Api<TenantDomain> = Api::namespaced(client.clone(), &tenant.namespace);
    apply_status(&api, &tenant.name, &status).await?;
    Ok(true)
}
