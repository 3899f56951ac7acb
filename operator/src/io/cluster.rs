//! The cluster: one way to write an object, one way to watch a kind.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::client::ClientBuilder;
use kube::client::retry::RetryPolicy;
use kube::core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::reflector::{self, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::buffer::BufferLayer;
use tower::retry::RetryLayer;

use crate::names::MANAGER;

/// Field manager of statuses.
pub const STATUS_MANAGER: &str = "sekimori-operator/status";
/// Field manager of finalizers.
pub const FINALIZER_MANAGER: &str = "sekimori-operator/finalizer";
/// One request may take so long, with the client's own repetitions.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Objects in one page of a list.
const PAGE: u32 = 500;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server refused it, or could not be asked.
    #[error("{what}: {cause}")]
    Request {
        /// What was tried.
        what: String,
        /// Cause.
        cause: kube::Error,
    },
    /// Nobody else's fault.
    #[error("{what}: {cause}")]
    Local {
        /// What was tried.
        what: String,
        /// Cause.
        cause: String,
    },
    /// No answer.
    #[error("{what}: no answer within 15 seconds")]
    Timeout {
        /// What was tried.
        what: String,
    },
}

impl ClusterError {
    /// For metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Local { .. } => "local",
            Self::Request { cause: kube::Error::Api(status), .. } => match status.code {
                403 => "forbidden",
                404 => "not_found",
                409 => "conflict",
                422 => "invalid",
                429 => "throttled",
                500.. => "server",
                _ => "refused",
            },
            Self::Request { .. } => "transport",
        }
    }

    /// The API server will not take it next time either: people must know.
    pub fn is_refusal(&self) -> bool {
        matches!(self.category(), "forbidden" | "invalid" | "refused")
    }

    /// Somebody else was faster: a new look is all it takes.
    pub fn is_conflict(&self) -> bool {
        self.category() == "conflict"
    }
}

/// A request that meets 429, 503 or 504 is repeated by the client itself so often, with pauses from the first to the second, or as long as the API server
/// asks for. What kube does by default (15 times, at last after minutes) keeps a watch asleep long after an outage.
const REPETITIONS: (u32, Duration, Duration) = (2, Duration::from_millis(100), Duration::from_secs(1));
/// Requests that wait for the client.
const REQUESTS_MAX: usize = 1024;

/// A client for the cluster that this process is in, or that KUBECONFIG names.
///
/// # Errors
/// There is none.
pub async fn client() -> anyhow::Result<Client> {
    client_of(Config::infer().await?)
}

fn client_of(mut config: Config) -> anyhow::Result<Client> {
    let (times, first, longest) = REPETITIONS;
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)?;
    let repeats = RetryLayer::new(RetryPolicy::new(first, longest, times, true)?);
    Ok(builder.with_layer(&BufferLayer::new(REQUESTS_MAX)).with_layer(&repeats).build())
}

/// Awaits a request, but not for ever.
pub async fn request<T>(what: impl FnOnce() -> String, request: impl Future<Output = kube::Result<T>>) -> Result<T, ClusterError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(cause)) => Err(ClusterError::Request { what: what(), cause }),
        Err(_) => Err(ClusterError::Timeout { what: what() }),
    }
}

/// The same, where it is fine if the object is not there (any more).
pub async fn if_there<T>(what: impl FnOnce() -> String, asked: impl Future<Output = kube::Result<T>>) -> Result<Option<T>, ClusterError> {
    match request(what, asked).await {
        Ok(answer) => Ok(Some(answer)),
        Err(ClusterError::Request { cause: kube::Error::Api(status), .. }) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Server-side apply of a whole object that is ours.
pub async fn apply<K>(client: &Client, namespace: &str, object: &K) -> Result<K, ClusterError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
{
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(MANAGER).force();
    request(|| format!("apply {} {namespace}/{name}", K::kind(&())), api.patch(&name, &params, &Patch::Apply(object))).await
}

/// Server-side apply of a status.
pub async fn apply_status<K>(api: &Api<K>, name: &str, status: &impl Serialize) -> Result<(), ClusterError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let patch = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "status": status});
    let params = PatchParams::apply(STATUS_MANAGER).force();
    request(|| format!("status of {} {name}", K::kind(&())), api.patch_status(name, &params, &Patch::Apply(patch))).await.map(drop)
}

/// Adds our finalizer, or takes it away. With the uid it is this very object: an apply without it would make one that is gone anew.
pub async fn set_finalizer<K>(api: &Api<K>, name: &str, uid: Option<&str>, finalizer: Option<&str>) -> Result<(), ClusterError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let finalizers: Vec<&str> = finalizer.into_iter().collect();
    let patch = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name, "uid": uid, "finalizers": finalizers}});
    let params = PatchParams::apply(FINALIZER_MANAGER).force();
    match if_there(|| format!("finalizer of {} {name}", K::kind(&())), api.patch(name, &params, &Patch::Apply(patch))).await {
        // Gone, or another one by now.
        Err(error) if error.is_conflict() && finalizer.is_none() => Ok(()),
        other => other.map(drop),
    }
}

/// Changes labels and annotations of one very object: a successor of the same name is left alone. Not there any more is fine.
pub async fn patch_metadata<K>(api: &Api<K>, name: &str, uid: Option<&str>, mut metadata: Value) -> Result<(), ClusterError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    if let (Some(uid), Some(fields)) = (uid, metadata.as_object_mut()) {
        fields.insert("uid".to_owned(), json!(uid));
    }
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"metadata": metadata}));
    match if_there(|| format!("change {} {name}", K::kind(&())), api.patch(name, &params, &patch)).await {
        // It has another uid now.
        Err(error) if error.is_conflict() && uid.is_some() => Ok(()),
        other => other.map(drop),
    }
}

/// The objects of one kind, in the namespaces that are looked at.
pub struct Objects<K: Resource + Clone + 'static>
where
    K::DynamicType: Eq + Hash + Clone,
{
    stores: Vec<Store<K>>,
}

impl<K> Objects<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Watches namespaces; none: all. `seen` is told of every object that came, changed or went.
    pub fn watch(client: &Client, namespaces: &[String], labels: Option<&str>, seen: impl Fn(&K) + Clone + Send + Sync + 'static) -> Self {
        Self { stores: apis(client, namespaces).into_iter().map(|api| follow(api, labels, seen.clone())).collect() }
    }
}

/// Tells of every object that came, changed or went, without keeping any; for as long as the process lives.
pub fn watch_metadata<K>(client: &Client, namespaces: &[String], labels: &str, seen: impl Fn(&ObjectMeta) + Clone + Send + 'static)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    for api in apis::<PartialObjectMeta<K>>(client, namespaces) {
        let (config, seen) = (watcher::Config::default().page_size(PAGE).labels(labels), seen.clone());
        let mut stream = Box::pin(watcher(api, config).backoff(rests()));
        tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                match event {
                    Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object) | watcher::Event::InitApply(object)) => seen(&object.metadata),
                    Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                    Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "the watch broke: it is begun again"),
                }
            }
        });
    }
}

/// One for each namespace; none: one for all.
fn apis<K>(client: &Client, namespaces: &[String]) -> Vec<Api<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    if namespaces.is_empty() {
        vec![Api::all(client.clone())]
    } else {
        namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
    }
}

/// How long a watch that broke rests before it is begun again: doubling, from the first to the second. After a longer one everybody who applied something
/// would wait for nothing; with a dozen watches this is a few requests a second.
const WATCH_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));
/// A watch that went well for so long is one that never broke.
const WATCH_IS_GOOD: Duration = Duration::from_secs(60);

/// See [`WATCH_AGAIN`].
pub struct Rests {
    next: Duration,
    last: Option<Instant>,
}

impl Iterator for Rests {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let since_last = self.last.map(|last| last.elapsed());
        self.last = Some(Instant::now());
        Some(self.rest(since_last))
    }
}

impl Rests {
    fn rest(&mut self, since_last: Option<Duration>) -> Duration {
        if since_last.is_some_and(|since| since > WATCH_IS_GOOD) {
            self.next = WATCH_AGAIN.0;
        }
        let rest = self.next;
        self.next = rest.saturating_mul(2).min(WATCH_AGAIN.1);
        rest
    }
}

impl Backoff for Rests {
    /// Called on every event. One whose list is answered and whose watch breaks at once must not begin with the shortest rest each time.
    fn reset(&mut self) {}
}

/// For a watch.
pub fn rests() -> Rests {
    Rests { next: WATCH_AGAIN.0, last: None }
}

/// Fills a store, for as long as the process lives. Errors are repeated with a growing pause.
pub fn follow<K>(api: Api<K>, labels: Option<&str>, seen: impl Fn(&K) + Send + Sync + 'static) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let mut config = watcher::Config::default().page_size(PAGE);
    if let Some(labels) = labels {
        config = config.labels(labels);
    }
    let stream = watcher(api, config).backoff(rests()).modify(|object| object.managed_fields_mut().clear());
    let mut stream = Box::pin(reflector::reflector(writer, stream));
    tokio::spawn(async move {
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object) | watcher::Event::InitApply(object)) => seen(&object),
                Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "the watch broke: it is begun again"),
            }
        }
    });
    store
}

impl<K> Objects<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// Everything was listed once.
    pub async fn ready(&self) -> anyhow::Result<()> {
        for store in &self.stores {
            store.wait_until_ready().await?;
        }
        Ok(())
    }

    /// All objects.
    pub fn all(&self) -> impl Iterator<Item = std::sync::Arc<K>> {
        self.stores.iter().flat_map(Store::state)
    }

    /// One of them, without a look at the others.
    pub fn one(&self, namespace: &str, name: &str) -> Option<std::sync::Arc<K>> {
        let reference = reflector::ObjectRef::<K>::new(name).within(namespace);
        self.stores.iter().find_map(|store| store.get(&reference))
    }

    /// Those of one namespace.
    pub fn of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = std::sync::Arc<K>> + 'a {
        self.all().filter(move |object| object.meta().namespace.as_deref() == Some(namespace))
    }
}

/// Objects that could be read, by name; the others by what is wrong with them.
pub fn readable<K: Resource>(objects: &[std::sync::Arc<DeserializeGuard<K>>]) -> (BTreeMap<&str, &K>, BTreeMap<&str, &str>) {
    let (mut good, mut bad) = (BTreeMap::new(), BTreeMap::new());
    for object in objects {
        match &object.0 {
            Ok(object) => drop(good.insert(object.meta().name.as_deref().unwrap_or_default(), object)),
            Err(invalid) => drop(bad.insert(invalid.metadata.name.as_deref().unwrap_or_default(), invalid.error.as_str())),
        }
    }
    (good, bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_breaks_again_and_again_rests_longer_but_never_long() {
        let mut rests = rests();
        let soon = Some(Duration::from_secs(5));
        let breaks: Vec<u128> = [None, soon, soon, soon, soon].into_iter().map(|since| rests.rest(since).as_millis()).collect();
        assert_eq!(breaks, [500, 1_000, 2_000, 4_000, 4_000]);
        Backoff::reset(&mut rests);
        assert_eq!(rests.rest(soon).as_millis(), 4_000, "one event between two breaks does not make it a good one");
        assert_eq!(rests.rest(Some(WATCH_IS_GOOD + Duration::from_secs(1))).as_millis(), 500);
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_is_asked_three_times_and_then_somebody_hears_of_it() {
        let asked = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counting = std::sync::Arc::clone(&asked);
        let away = axum::Router::new().fallback(move || {
            counting.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async { axum::http::StatusCode::SERVICE_UNAVAILABLE }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, away).await });
        let client = client_of(Config::new(format!("http://{address}").parse().expect("a URI"))).expect("a client");
        let answered = tokio::time::timeout(Duration::from_secs(5), client.apiserver_version()).await.expect("not for minutes");
        assert!(answered.is_err());
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1 + REPETITIONS.0);
    }
}
