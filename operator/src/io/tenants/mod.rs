//! TenantDomains, MailPolicies and DomainGrants: from watch events to parts of the configuration, claims and statuses.
//!
//! One task owns everything ([`Worker`]), so nothing is judged against half of a change. It works in slices, urgent tenants (a user changed them) before
//! those that follow from something else (a policy, a fleet, a grant), so that one change is not stuck behind 100,000. A claim is written down before it
//! takes effect anywhere.

mod counts;
mod grants;
mod proofs;
mod shards;
mod statuses;
mod worker;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use sekimori_crds::v1alpha1::{DomainGrant, GatewayFleet, MailPolicy, TenantDomain};
use tokio::sync::{Notify, mpsc};

use crate::io::cluster::{Objects, follow, rests};
use crate::io::events::Events;
use crate::io::hub::Hub;
use crate::io::metrics::Metrics;
use crate::ownership::Tenant;

/// Events that wait for the worker, at most; then the watches wait.
const EVENTS_WAITING_MAX: usize = 4096;
/// Tenants in one page of a list.
const PAGE: u32 = 500;

/// What is worked with.
pub struct Context {
    /// The cluster.
    pub client: Client,
    /// Where parts go.
    pub hub: Hub,
    /// Where claims and last good forms are recorded.
    pub operator_namespace: String,
    /// This installation, in proofs of domains.
    pub installation_id: String,
    /// Namespaces to look at; none: all.
    pub namespaces: Vec<String>,
    /// DNS resolvers for proofs; none: the system's.
    pub resolvers: Vec<SocketAddr>,
    /// Writes events.
    pub events: Events,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// Something happened.
enum Event {
    /// A tenant is there, or changed.
    Tenant(Box<DeserializeGuard<TenantDomain>>),
    /// A tenant is gone.
    Gone(Tenant, bool),
    /// A list began: what does not come before its end is gone. Which of the watches.
    Listing(usize),
    /// It ended.
    Listed(usize),
}

/// Something that tenants refer to came, changed or went.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// A MailPolicy.
    Policy(String, String),
    /// A fleet.
    Fleet(String, String),
    /// A grant.
    Grant,
    /// A namespace.
    Namespace(String),
}

/// Changes that the worker has not looked at, each once, however often it came: never more than there are objects.
#[derive(Default)]
struct Changes {
    waiting: Mutex<BTreeSet<Change>>,
    woken: Notify,
}

impl Changes {
    fn say(&self, change: Change) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(change);
        self.woken.notify_one();
    }

    fn take(&self) -> BTreeSet<Change> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What tenants refer to.
struct World {
    policies: Objects<DeserializeGuard<MailPolicy>>,
    fleets: Objects<DeserializeGuard<GatewayFleet>>,
    grants: Store<DeserializeGuard<DomainGrant>>,
    namespaces: Store<Namespace>,
}

/// Works for as long as the process leads.
///
/// # Errors
/// The watches cannot be begun, or recorded claims cannot be read.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
    let changes = Arc::new(Changes::default());
    let world = World::watch(&context, &changes);
    world.policies.ready().await?;
    world.fleets.ready().await?;
    world.grants.wait_until_ready().await?;
    world.namespaces.wait_until_ready().await?;
    let watches = watch_tenants(&context, &sender);
    let dns = Arc::new(proofs::Network::new(&context.resolvers)?);
    worker::Worker::new(context, world, changes, dns, watches).work(events).await
}

impl World {
    fn watch(context: &Context, changes: &Arc<Changes>) -> Self {
        let Context { client, namespaces, .. } = context;
        let names = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
        };
        let (one, two, three, four) = (Arc::clone(changes), Arc::clone(changes), Arc::clone(changes), Arc::clone(changes));
        Self {
            policies: Objects::watch(client, namespaces, None, move |object: &DeserializeGuard<MailPolicy>| {
                let (namespace, name) = names(object.meta());
                one.say(Change::Policy(namespace, name));
            }),
            fleets: Objects::watch(client, namespaces, None, move |object: &DeserializeGuard<GatewayFleet>| {
                let (namespace, name) = names(object.meta());
                two.say(Change::Fleet(namespace, name));
            }),
            grants: follow(Api::all(client.clone()), None, move |_: &DeserializeGuard<DomainGrant>| three.say(Change::Grant)),
            namespaces: follow(Api::all(client.clone()), None, move |namespace: &Namespace| four.say(Change::Namespace(namespace.name_any()))),
        }
    }
}

fn identity(tenant: &DeserializeGuard<TenantDomain>) -> Tenant {
    Tenant::new(tenant.meta().namespace.clone().unwrap_or_default(), tenant.meta().name.clone().unwrap_or_default())
}

fn releases(tenant: &DeserializeGuard<TenantDomain>) -> bool {
    tenant.meta().annotations.as_ref().and_then(|annotations| annotations.get(crate::names::RELEASE_DOMAINS)).is_some_and(|value| value == "true")
}

/// Watches tenants, and says how many watches there are.
fn watch_tenants(context: &Context, sender: &mpsc::Sender<Event>) -> usize {
    let apis: Vec<Api<DeserializeGuard<TenantDomain>>> = if context.namespaces.is_empty() {
        vec![Api::all(context.client.clone())]
    } else {
        context.namespaces.iter().map(|namespace| Api::namespaced(context.client.clone(), namespace)).collect()
    };
    let count = apis.len();
    for (number, api) in apis.into_iter().enumerate() {
        let sender = sender.clone();
        tokio::spawn(async move {
            let stream = watcher(api, watcher::Config::default().page_size(PAGE)).backoff(rests());
            let mut stream = Box::pin(stream);
            while let Some(event) = stream.next().await {
                let event = match event {
                    Ok(watcher::Event::Apply(tenant) | watcher::Event::InitApply(tenant)) => Event::Tenant(Box::new(tenant)),
                    Ok(watcher::Event::Delete(tenant)) => Event::Gone(identity(&tenant), releases(&tenant)),
                    Ok(watcher::Event::Init) => Event::Listing(number),
                    Ok(watcher::Event::InitDone) => Event::Listed(number),
                    Err(error) => {
                        tracing::warn!(kind = "TenantDomain", %error, "the watch broke: it is begun again");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
    }
    count
}

#[cfg(test)]
mod tests;
