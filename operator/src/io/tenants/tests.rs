//! The whole part against an API server that is a function: lists, watches, applies, and refuses when told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use kube::Client;
use prometheus::Registry;
use sekimori_crds::snapshot::stand_in;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::{Context, run};
use crate::io::events::Events;
use crate::io::hub::{EpochStore, FleetKey, Hub};
use crate::io::metrics::Metrics;
use crate::names::claims_shard;
use crate::ownership::shard_of;

const WAIT: Duration = Duration::from_secs(20);

struct OneEpoch;

impl EpochStore for OneEpoch {
    fn raise(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        Box::pin(async move { Ok(above + 1) })
    }
}

#[derive(Default)]
struct Cluster {
    tenants: BTreeMap<(String, String), Value>,
    config_maps: BTreeMap<String, Value>,
    /// Where to send what happens to tenants.
    watches: Vec<mpsc::Sender<Result<Bytes, std::io::Error>>>,
    /// Lists of tenants that were asked for.
    lists: usize,
    /// So many writes of ConfigMaps are refused with 409.
    conflicts: usize,
    /// Writes of these ConfigMaps are refused with 422.
    refused: BTreeSet<String>,
    /// Counts writes of ConfigMaps.
    version: usize,
    /// Each write of claims, and whether the part was in the configuration already.
    claims: Vec<(String, bool)>,
    statuses: usize,
    events: Vec<String>,
    /// More of the spec of the fleets, and of which fleets of namespace `mail` there are; none: `inbound` alone.
    fleets: BTreeMap<String, Value>,
    /// Where to send what happens to fleets.
    fleet_watches: Vec<mpsc::Sender<Result<Bytes, std::io::Error>>>,
}

/// A fleet of namespace `mail` that trusts everybody, with more in its spec.
fn fleet(name: &str, generation: i64, spec: &Value) -> Value {
    let mut whole = json!({"hostname": "mx.example.net", "listeners": [], "tenants": {"ownership": "Trust", "namespaces": {"from": "All"}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    json!({
        "apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet", "spec": whole,
        "metadata": {"name": name, "namespace": "mail", "uid": name, "generation": generation, "resourceVersion": "9"},
    })
}

#[derive(Clone)]
struct Server {
    cluster: Arc<Mutex<Cluster>>,
    hub: Hub,
    metrics: Arc<Metrics>,
    resolver: SocketAddr,
    /// Watches of tenants and of fleets that are of processes before.
    before: (usize, usize),
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(&Registry::new()).expect("metrics"))
}

fn fleet_key() -> FleetKey {
    FleetKey::new("mail", "inbound")
}

fn list(kind: &str, items: Vec<Value>) -> Response {
    let version = if kind.starts_with("Config") || kind.starts_with("Name") { "v1" } else { "sekimori.dev/v1alpha1" };
    Json(json!({"apiVersion": version, "kind": format!("{kind}List"), "metadata": {"resourceVersion": "10"}, "items": items})).into_response()
}

fn failure(code: StatusCode, reason: &str) -> Response {
    let status = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()});
    (code, Json(status)).into_response()
}

/// Sends it to whoever still watches.
async fn send(senders: Vec<mpsc::Sender<Result<Bytes, std::io::Error>>>, what: &Value) {
    // One that came later took its place, and one of a process before is read by nobody.
    let sender = senders.into_iter().rfind(|sender| !sender.is_closed()).expect("somebody watches");
    sender.send(Ok(Bytes::from(format!("{what}\n")))).await.expect("somebody watches");
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self, kind: &str) -> Response {
        let mut cluster = self.lock();
        match kind {
            "gatewayfleets" if cluster.fleets.is_empty() => list("GatewayFleet", vec![fleet("inbound", 1, &json!({}))]),
            "gatewayfleets" => list("GatewayFleet", cluster.fleets.values().cloned().collect()),
            "tenantdomains" => {
                cluster.lists += 1;
                list("TenantDomain", cluster.tenants.values().cloned().collect())
            }
            "configmaps" => list("ConfigMap", cluster.config_maps.values().cloned().collect()),
            "mailpolicies" => list("MailPolicy", vec![]),
            "domaingrants" => list("DomainGrant", vec![]),
            _ => list("Namespace", vec![]),
        }
    }

    fn watched(&self, kind: &str) -> Response {
        let (sender, receiver) = mpsc::channel(16);
        if kind == "tenantdomains" {
            self.lock().watches.push(sender);
            return Body::from_stream(ReceiverStream::new(receiver)).into_response();
        }
        if kind == "gatewayfleets" {
            self.lock().fleet_watches.push(sender);
            return Body::from_stream(ReceiverStream::new(receiver)).into_response();
        }
        Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>()).into_response()
    }

    /// As the API server does: a write that names a version is refused where there is another one, and nothing is made twice.
    fn write_config_map(&self, name: &str, mut map: Value, make: bool) -> Response {
        let mut cluster = self.lock();
        if cluster.conflicts > 0 {
            cluster.conflicts -= 1;
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        if cluster.refused.contains(name) {
            return failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid");
        }
        let there = cluster.config_maps.get(name).map(|there| there["metadata"]["resourceVersion"].clone());
        let fits = if make { there.is_none() } else { there.is_some() && there == map["metadata"].get("resourceVersion").cloned() };
        if !fits {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        if name.starts_with("claims-") {
            let placed = self.hub.part(&fleet_key(), "tenant/shop/one").is_some();
            cluster.claims.push((name.to_owned(), placed));
        }
        cluster.version += 1;
        map["metadata"]["resourceVersion"] = json!(format!("{}", cluster.version));
        cluster.config_maps.insert(name.to_owned(), map.clone());
        Json(map).into_response()
    }

    fn write_status(&self, key: &(String, String), patch: &Value) -> Response {
        let mut cluster = self.lock();
        cluster.statuses += 1;
        let Some(tenant) = cluster.tenants.get_mut(key) else { return failure(StatusCode::NOT_FOUND, "NotFound") };
        tenant["status"] = patch["status"].clone();
        Json(tenant.clone()).into_response()
    }

    async fn answer(State(server): State<Self>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path: Vec<&str> = parts.uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let body = axum::body::to_bytes(body, 1 << 22).await.unwrap_or_default();
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_watch = parts.uri.query().is_some_and(|query| query.contains("watch=true"));
        match (parts.method, path.as_slice()) {
            (Method::GET, [.., kind]) if is_watch => server.watched(kind),
            (Method::GET, ["apis", _, _, "namespaces", namespace, "tenantdomains", name]) => {
                let key = ((*namespace).to_owned(), (*name).to_owned());
                let found = server.lock().tenants.get(&key).cloned();
                found.map_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound"), |tenant| Json(tenant).into_response())
            }
            (Method::GET, [.., "configmaps", name]) => {
                let found = server.lock().config_maps.get(*name).cloned();
                found.map_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound"), |map| Json(map).into_response())
            }
            (Method::GET, [.., kind]) => server.listed(kind),
            (Method::POST, [.., "configmaps"]) => {
                let name = json["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                server.write_config_map(&name, json, true)
            }
            (Method::PATCH, [.., "configmaps", name]) => server.write_config_map(name, json, false),
            (Method::PATCH, [.., "namespaces", namespace, "tenantdomains", name, "status"]) => {
                server.write_status(&((*namespace).to_owned(), (*name).to_owned()), &json)
            }
            (Method::POST, [.., "events"]) => {
                server.lock().events.push(json["reason"].as_str().unwrap_or_default().to_owned());
                (StatusCode::CREATED, Json(json)).into_response()
            }
            _ => failure(StatusCode::NOT_FOUND, "NotFound"),
        }
    }

    fn start(prepare: impl FnOnce(&mut Cluster)) -> Self {
        let resolver = "127.0.0.1:1".parse().expect("an address");
        let server = Self { cluster: Arc::default(), hub: Hub::new(1, Arc::new(OneEpoch)), metrics: metrics(), resolver, before: (0, 0) };
        prepare(&mut server.lock());
        server
    }

    /// The same cluster, and another process.
    fn next(&self, epoch: u64) -> Self {
        let cluster = self.lock();
        let before = (cluster.watches.len(), cluster.fleet_watches.len());
        drop(cluster);
        Self { hub: Hub::new(epoch, Arc::new(OneEpoch)), metrics: metrics(), before, ..self.clone() }
    }

    /// A leader begins.
    fn lead(&self) -> JoinHandle<anyhow::Result<()>> {
        let router = Router::new().fallback(Self::answer).with_state(self.clone());
        let client = Client::new(router, "default");
        let context = Context {
            events: Events::new(client.clone(), "sekimori-operator", None),
            client,
            hub: self.hub.clone(),
            operator_namespace: "system".to_owned(),
            installation_id: "here".to_owned(),
            namespaces: vec![],
            resolvers: vec![self.resolver],
            metrics: Arc::clone(&self.metrics),
        };
        tokio::spawn(run(context))
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(WAIT, async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what}");
    }

    fn part(&self, namespace: &str, name: &str) -> Option<Bytes> {
        self.hub.part(&fleet_key(), &format!("tenant/{namespace}/{name}"))
    }

    /// Something happens to a tenant; the watch tells of it.
    async fn happens(&self, what: &str, object: Value) {
        self.until("a watch", |server| server.lock().watches.len() > server.before.0).await;
        let senders = self.lock().watches.iter().skip(self.before.0).cloned().collect();
        send(senders, &json!({"type": what, "object": object})).await;
    }

    /// A fleet is there now, or is another one.
    async fn fleet_changes(&self, name: &str, generation: i64, spec: Value) {
        let object = fleet(name, generation, &spec);
        self.lock().fleets.insert(name.to_owned(), object.clone());
        self.until("a watch of fleets", |server| server.lock().fleet_watches.len() > server.before.1).await;
        let senders = self.lock().fleet_watches.iter().skip(self.before.1).cloned().collect();
        send(senders, &json!({"type": "MODIFIED", "object": object})).await;
    }

    /// What the tenant's condition says: its status and its message.
    fn condition(&self, namespace: &str, name: &str, kind: &str) -> (String, String) {
        let cluster = self.lock();
        let tenant = cluster.tenants.get(&(namespace.to_owned(), name.to_owned()));
        let conditions = tenant.and_then(|tenant| tenant["status"]["conditions"].as_array().cloned()).unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        let text = |field: &str| found.and_then(|condition| condition[field].as_str()).unwrap_or_default().to_owned();
        (text("status"), text("message"))
    }

    /// A tenant is deleted.
    async fn goes(&self, namespace: &str, name: &str, release: bool) {
        let gone = self.lock().tenants.remove(&(namespace.to_owned(), name.to_owned()));
        let mut gone = gone.expect("it was there");
        gone["metadata"]["annotations"] = json!({"sekimori.dev/release-domains": release.to_string()});
        self.happens("DELETED", gone).await;
    }

    async fn changes(&self, namespace: &str, name: &str, generation: i64, spec: Value) {
        let mut object = tenant(namespace, name, generation, spec);
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(before) = self.lock().tenants.get(&key) {
            object["status"] = before["status"].clone();
        }
        self.lock().tenants.insert(key, object.clone());
        self.happens("MODIFIED", object).await;
    }
}

fn tenant(namespace: &str, name: &str, generation: i64, spec: Value) -> Value {
    let mut whole = json!({"fleetRef": {"name": "inbound", "namespace": "mail"}, "domains": ["example.com"], "routes": [{"name": "r", "host": "mail.example.com"}]});
    for (key, value) in spec.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    json!({
        "apiVersion": "sekimori.dev/v1alpha1", "kind": "TenantDomain", "spec": whole,
        "metadata": {"name": name, "namespace": namespace, "uid": name, "generation": generation, "resourceVersion": "9"},
    })
}

fn one() -> impl FnOnce(&mut Cluster) {
    |cluster| {
        cluster.tenants.insert(("shop".to_owned(), "one".to_owned()), tenant("shop", "one", 1, json!({})));
    }
}

#[tokio::test]
async fn a_claim_is_recorded_before_it_takes_effect_and_a_refused_record_is_tried_again() {
    let server = Server::start(|cluster| {
        one()(cluster);
        cluster.conflicts = 2;
    });
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    let shard = claims_shard("mail", "inbound", shard_of("example.com"));
    assert_eq!(server.lock().claims, [(shard, false)], "the record came first");
    assert_eq!(server.lock().conflicts, 0);
    leader.abort();
}

#[tokio::test]
async fn a_status_is_written_once_and_told_of_once() {
    let server = Server::start(one());
    let leader = server.lead();
    server.until("a status", |server| server.lock().statuses == 1).await;
    let told = server.lock().tenants.values().next().cloned().expect("a tenant");
    assert_eq!(told["status"]["observedGeneration"], 1);
    server.until("an event", |server| !server.lock().events.is_empty()).await;
    for version in 11..14 {
        let mut again = told.clone();
        again["metadata"]["resourceVersion"] = json!(version.to_string());
        server.happens("MODIFIED", again).await;
    }
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(server.lock().statuses, 1);
    assert_eq!(server.lock().events, ["Accepted"]);
    leader.abort();
}

#[tokio::test]
async fn a_watch_that_is_too_old_is_begun_again_and_removes_nobody() {
    let server = Server::start(one());
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    let before = server.part("shop", "one");
    let status =
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": "too old", "reason": "Expired", "code": 410});
    server.happens("ERROR", status).await;
    server.until("another list", |server| server.lock().lists >= 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.part("shop", "one"), before);
    leader.abort();
}

#[tokio::test]
async fn a_wrong_tenant_keeps_its_last_good_form_under_the_next_leader_too() {
    let server = Server::start(one());
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    let good = server.part("shop", "one");
    server.changes("shop", "one", 2, json!({"policyRef": {"name": "none"}})).await;
    server.until("a recorded form", |server| server.lock().config_maps.keys().any(|name| name.starts_with("good-"))).await;
    assert_eq!(server.part("shop", "one"), good);
    leader.abort();
    let next = server.next(2);
    let leader = next.lead();
    next.until("the last good form", |server| server.part("shop", "one").is_some()).await;
    assert_eq!(next.part("shop", "one"), good);
    leader.abort();
}

#[tokio::test]
async fn a_tenant_that_turned_wrong_while_nobody_led_stays_with_the_gateways() {
    let server = Server::start(one());
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    leader.abort();
    server.changes("shop", "one", 2, json!({"policyRef": {"name": "none"}})).await;
    let next = server.next(2);
    let leader = next.lead();
    next.until("a stand-in", |server| server.part("shop", "one").is_some()).await;
    let stand_in = stand_in(&["example.com".to_owned()]);
    assert_eq!(next.part("shop", "one").as_deref(), Some(stand_in.as_slice()));
    next.changes("shop", "one", 3, json!({"policyRef": {"name": "none-either"}})).await;
    next.until("another status", |server| server.lock().tenants.values().all(|tenant| tenant["status"]["observedGeneration"] == 3)).await;
    assert_eq!(next.part("shop", "one").as_deref(), Some(stand_in.as_slice()), "it is not taken for a form");
    next.changes("shop", "one", 4, json!({})).await;
    next.until("a part", |server| server.part("shop", "one").is_some_and(|part| part != stand_in)).await;
    leader.abort();
}

#[tokio::test]
async fn a_tenant_that_cannot_be_read_is_served_by_the_next_leader_too() {
    let server = Server::start(one());
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    let good = server.part("shop", "one");
    server.changes("shop", "one", 2, json!({"state": "FromTheFuture"})).await;
    server.until("a recorded form", |server| server.lock().config_maps.keys().any(|name| name.starts_with("good-"))).await;
    leader.abort();
    let next = server.next(2);
    let leader = next.lead();
    next.until("the last good form", |server| server.part("shop", "one").is_some()).await;
    assert_eq!(next.part("shop", "one"), good);
    leader.abort();
}

#[tokio::test]
async fn a_tenant_that_cannot_be_read_is_told_so_once() {
    let server = Server::start(one());
    let leader = server.lead();
    server.until("a status", |server| server.lock().statuses == 1).await;
    server.changes("shop", "one", 2, json!({"state": "FromTheFuture"})).await;
    server.until("another status", |server| server.lock().statuses == 2).await;
    let told = server.lock().tenants.values().next().cloned().expect("a tenant");
    let text = told["status"]["conditions"].to_string();
    assert!(text.contains("upgrade the operator"), "{text}");
    // The write is seen as a change, and so is anything else that touches the object.
    for version in 11..14 {
        let mut again = told.clone();
        again["metadata"]["resourceVersion"] = json!(version.to_string());
        server.happens("MODIFIED", again).await;
    }
    // Beyond the second in which a new time of transition would make a difference.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(server.lock().statuses, 2, "what is said already is not written again");
    leader.abort();
}

#[tokio::test]
async fn a_broken_line_costs_only_itself_and_is_not_lost() {
    let name = claims_shard("mail", "inbound", shard_of("example.com"));
    let record = r#"{"domain":"example.com","holder":{"namespace":"shop","name":"one"},"sinceMs":5}"#;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"records": format!("{record}\nbroken\n")},
        "metadata": {"name": name, "resourceVersion": "0", "labels": {"sekimori.dev/record": "claims"}, "annotations": {"sekimori.dev/fleet": "mail/inbound"}},
    });
    let server = Server::start(|cluster| {
        one()(cluster);
        cluster.tenants.insert(("thief".to_owned(), "two".to_owned()), tenant("thief", "two", 1, json!({"domains": ["other.example"]})));
        cluster.config_maps.insert(name.clone(), map);
    });
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    server.until("both are told", |server| server.lock().statuses >= 2).await;
    assert!(server.part("thief", "two").is_none(), "no new claim while a line cannot be read");
    server.changes("shop", "one", 2, json!({"domains": ["gone.example"]})).await;
    server.until("the shard is written", |server| !server.lock().claims.is_empty()).await;
    let text = server.lock().config_maps[&name]["data"]["records"].as_str().unwrap_or_default().to_owned();
    assert!(text.ends_with("broken\n") && text.contains("example.com"), "{text}");
    leader.abort();
}

#[tokio::test]
async fn a_fleet_that_cannot_be_read_changes_no_part_and_is_answered_for_once_it_can_be() {
    let server = Server::start(one());
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    let good = server.part("shop", "one");
    server.fleet_changes("inbound", 2, json!({"policyOverrides": {"antiVirus": {"infected": "FromTheFuture"}}})).await;
    server.until("it is told", |server| server.condition("shop", "one", "Accepted").1.contains("cannot be read")).await;
    server.changes("shop", "one", 2, json!({"policy": {"antiVirus": {"infected": "Deliver"}}, "domains": ["example.com", "more.example"]})).await;
    server.changes("thief", "two", 1, json!({"domains": ["free.example"]})).await;
    server.until("both are told", |server| server.condition("thief", "two", "Accepted").0 == "False").await;
    assert_eq!(server.part("shop", "one"), good);
    assert_eq!(server.part("thief", "two"), None);
    assert!(!server.lock().config_maps.keys().any(|name| name.starts_with("good-")), "nothing is to be recorded of a thousand tenants");
    server.fleet_changes("inbound", 3, json!({})).await;
    server.until("both have parts", |server| server.part("shop", "one") != good && server.part("thief", "two").is_some()).await;
    leader.abort();
}

mod moves;
mod records;
