//! Statuses of tenants: written when they differ, at a bounded rate, those that a user waits for first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::{ApiResource, DeserializeGuard, DynamicObject};
use kube::{Api, Client, Resource as _};
use sekimori_crds::v1alpha1::TenantDomain;
use sekimori_crds::v1alpha1::tenant_domain::TenantDomainStatus;
use tokio::sync::Notify;

use crate::io::clock;
use crate::io::cluster::{ClusterError, apply_status, if_there};
use crate::io::events::{Events, News};
use crate::io::metrics::Metrics;
use crate::limiter::Limiter;
use crate::ownership::Tenant;
use crate::status::{ConditionType, Fact, merge};
use crate::turns::Turns;

/// Statuses at once, and then a second: each is a read and a write at the API server, and 100,000 tenants that come at once take 17 minutes.
const RATE: (u32, u32) = (200, 100);
/// Events at once, and then a second.
const EVENT_RATE: (u32, u32) = (25, 5);
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
    /// What is to be said, and whether it stands in the urgent queue.
    waiting: BTreeMap<Tenant, (Said, bool)>,
    /// By namespace: who imports thousands of tenants delays nobody else's.
    urgent: Turns<Tenant>,
    bulk: VecDeque<Tenant>,
}

/// Writes in the background.
#[derive(Clone)]
pub(super) struct Statuses {
    queue: Arc<Mutex<Queue>>,
    woken: Arc<Notify>,
}

impl Statuses {
    pub(super) fn start(client: Client, events: Events, metrics: Arc<Metrics>) -> Self {
        let statuses = Self { queue: Arc::default(), woken: Arc::new(Notify::new()) };
        let limiter = Arc::new(tokio::sync::Mutex::new(Limiter::new(RATE.0, RATE.1)));
        let events = Limited { events, limiter: Arc::new(Mutex::new(Limiter::new(EVENT_RATE.0, EVENT_RATE.1))) };
        for _ in 0..AT_ONCE {
            let (statuses, client, metrics, limiter) = (statuses.clone(), client.clone(), Arc::clone(&metrics), Arc::clone(&limiter));
            let events = events.clone();
            tokio::spawn(async move { statuses.work(&client, &metrics, &limiter, &events).await });
        }
        statuses
    }

    /// Says this of a tenant, in place of what still waits to be said.
    pub(super) fn say(&self, tenant: &Tenant, said: Said, urgent: bool) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let before = queue.waiting.get(tenant).map(|(_, urgent)| *urgent);
        queue.waiting.insert(tenant.clone(), (said, urgent || before == Some(true)));
        if urgent && before != Some(true) {
            queue.urgent.push(&tenant.namespace, tenant.clone());
        } else if before.is_none() {
            queue.bulk.push_back(tenant.clone());
        }
        drop(queue);
        self.woken.notify_one();
    }

    fn next(&self) -> Option<(Tenant, Said)> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let tenant = match queue.urgent.pop() {
                Some(tenant) => tenant,
                None => queue.bulk.pop_front()?,
            };
            // It may stand in both, and be said already.
            if let Some((said, _)) = queue.waiting.remove(&tenant) {
                let more = !queue.waiting.is_empty();
                drop(queue);
                if more {
                    self.woken.notify_one();
                }
                return Some((tenant, said));
            }
        }
    }

    async fn work(&self, client: &Client, metrics: &Metrics, limiter: &tokio::sync::Mutex<Limiter<()>>, events: &Limited) {
        loop {
            let Some((tenant, said)) = self.next() else {
                self.woken.notified().await;
                continue;
            };
            while !limiter.lock().await.allows((), clock::unix_ms()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            match write(client, &tenant, &said, events).await {
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
async fn write(client: &Client, tenant: &Tenant, said: &Said, events: &Limited) -> Result<bool, ClusterError> {
    // Its status is read by itself: it must be known where the rest cannot be read, or it would be written again for ever.
    let resource = ApiResource::erase::<TenantDomain>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &tenant.namespace, &resource);
    let Some(object) = if_there(|| format!("TenantDomain {tenant}"), api.get(&tenant.name)).await? else { return Ok(false) };
    if object.metadata.generation.unwrap_or_default() > said.generation && said.generation != 0 {
        return Ok(false);
    }
    let before: TenantDomainStatus = object.data.get("status").and_then(|status| serde_json::from_value(status.clone()).ok()).unwrap_or_default();
    let generation = object.metadata.generation;
    let status = TenantDomainStatus {
        observed_generation: generation,
        programmed_pods: None,
        suspended_since: said.suspended_since,
        conditions: merge(&before.conditions, &said.facts, generation, clock::unix_ms()),
    };
    if before == status {
        return Ok(false);
    }
    let api: Api<DeserializeGuard<TenantDomain>> = Api::namespaced(client.clone(), &tenant.namespace);
    apply_status(&api, &tenant.name, &status).await?;
    if let Some(event) = news(&before.conditions, &status.conditions) {
        let metadata = object.metadata;
        let about = ObjectReference {
            api_version: Some(TenantDomain::api_version(&()).into_owned()),
            kind: Some(TenantDomain::kind(&()).into_owned()),
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            ..ObjectReference::default()
        };
        events.say(&event, &about).await;
    }
    Ok(true)
}

/// Tells users in events. What is beyond the rate is not told: the conditions say it, too.
#[derive(Clone)]
struct Limited {
    events: Events,
    limiter: Arc<Mutex<Limiter<()>>>,
}

impl Limited {
    async fn say(&self, news: &News, about: &ObjectReference) {
        let allowed = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).allows((), clock::unix_ms());
        if allowed {
            self.events.say(news, about).await;
        }
    }
}

/// The event for a tenant that was accepted, refused, or refused for another reason.
fn news(before: &[Condition], now: &[Condition]) -> Option<News> {
    let kind = ConditionType::Accepted.to_string();
    let of = |conditions: &[Condition]| conditions.iter().find(|condition| condition.type_ == kind).cloned();
    let (before, now) = (of(before), of(now)?);
    if before.is_some_and(|before| before.status == now.status && before.reason == now.reason) {
        return None;
    }
    let good = now.status == "True";
    Some(News { good, reason: if good { kind.clone() } else { now.reason }, action: kind, note: now.message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Reason;

    #[test]
    fn only_a_new_verdict_is_an_event() {
        let conditions = |holds, reason, message: &str| merge(&[], &[Fact::new(ConditionType::Accepted, holds, reason, message)], None, 0);
        let (good, bad) = (conditions(true, Reason::Valid, "fine"), conditions(false, Reason::DomainConflict, "taken"));
        assert_eq!(news(&[], &good).expect("an event").reason, "Accepted");
        let event = news(&good, &bad).expect("an event");
        assert_eq!((event.reason.as_str(), event.note.as_str(), event.good), ("DomainConflict", "taken", false));
        assert!(news(&bad, &conditions(false, Reason::DomainConflict, "taken by another one")).is_none(), "the same verdict");
        assert!(news(&bad, &conditions(false, Reason::Invalid, "wrong")).is_some());
        assert!(news(&good, &good).is_none());
    }
}
