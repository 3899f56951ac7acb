//! An API server in memory, for tests: GET, LIST, WATCH, POST, PUT, PATCH (apply and merge), DELETE and the status subresource, for every kind alike.
//!
//! What it is faithful in: resource versions, uids, generations, preconditions (409), finalizers and deletion timestamps, 404, writes that change nothing,
//! fields that an applier leaves out, label selectors, and that a write to an object leaves its status alone and the other way round. What it leaves out:
//! schemas, defaults, conflicts between field managers (everybody forces here), and lists, which are applied as a whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// Group, version and plural, such as `apps/v1/statefulsets`; namespace; name.
type Key = (String, String, String);

#[derive(Default)]
struct World {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// What each field manager applied last, by subresource.
    applied: BTreeMap<(Key, String), Value>,
    events: Vec<(u64, Key, &'static str, Value)>,
    writes: Vec<String>,
    /// After so many writes nothing is written any more: 503, as if the operator had died.
    writes_left: Option<usize>,
    /// Each answers one write to such a kind.
    refusals: Vec<(String, u16)>,
    /// Kinds whose watches show nothing for now.
    held: Vec<String>,
}

/// See the module. Clones are the same server.
#[derive(Clone)]
pub(crate) struct ApiServer {
    world: Arc<Mutex<World>>,
    moved: watch::Sender<u64>,
}

impl ApiServer {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { world: Arc::default(), moved: watch::channel(0).0 }
    }

    /// A client of it.
    pub(crate) fn client(&self) -> kube::Client {
        let router = Router::new().fallback(answer).with_state(self.clone());
        kube::Client::new(router, "default")
    }

    fn with<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = f(&mut world);
        let version = world.version;
        drop(world);
        self.moved.send_replace(version);
        outcome
    }

    /// Puts an object there as somebody else would: with its status. `plural` as in `apps/v1/statefulsets`.
    pub(crate) fn put(&self, plural: &str, object: Value) -> Value {
        self.with(|world| {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            let key = (plural.to_owned(), text("namespace"), text("name"));
            world.store(key, object, true)
        })
    }

    /// An object.
    pub(crate) fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.with(|world| world.objects.get(&(plural.to_owned(), namespace.to_owned(), name.to_owned())).cloned())
    }

    /// All objects of a kind.
    pub(crate) fn objects(&self, plural: &str) -> Vec<Value> {
        self.with(|world| world.objects.iter().filter(|(key, _)| key.0 == plural).map(|(_, object)| object.clone()).collect())
    }

    /// Deletes as `kubectl delete` does.
    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.with(|world| world.delete(&(plural.to_owned(), namespace.to_owned(), name.to_owned())));
    }

    /// The writes since the last call but events, as `VERB plural namespace/name`.
    pub(crate) fn take_writes(&self) -> Vec<String> {
        self.with(|world| std::mem::take(&mut world.writes)).into_iter().filter(|write| !write.contains(" events.k8s.io/")).collect()
    }

    /// Whether no write is taken any more.
    pub(crate) fn is_spent(&self) -> bool {
        self.with(|world| world.writes_left == Some(0))
    }

    /// After so many writes every other one is refused with 503.
    pub(crate) fn writes_left(&self, count: Option<usize>) {
        self.with(|world| world.writes_left = count);
    }

    /// Watches of these kinds show nothing new until there are others.
    pub(crate) fn hold_watches(&self, plurals: &[&str]) {
        self.with(|world| world.held = plurals.iter().map(|plural| (*plural).to_owned()).collect());
    }

    /// The next writes to a kind are answered with this code.
    pub(crate) fn refuse(&self, plural: &str, code: u16, times: usize) {
        self.with(|world| world.refusals.extend(std::iter::repeat_n((plural.to_owned(), code), times)));
    }
}

impl World {
    /// Writes an object, unless nothing changes.
    fn store(&mut self, key: Key, mut object: Value, with_status: bool) -> Value {
        let before = self.objects.get(&key).cloned();
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        let old = before.as_ref().map(|before| before["metadata"].clone()).unwrap_or_default();
        let fresh = json!(format!("uid-{}", self.version + 1));
        for (field, otherwise) in
            [("uid", fresh), ("creationTimestamp", json!("2026-01-01T00:00:00Z")), ("resourceVersion", json!("0")), ("generation", json!(1))]
        {
            let kept = old.get(field).cloned().unwrap_or_else(|| metadata.get(field).cloned().unwrap_or(otherwise));
            metadata.insert(field.to_owned(), kept);
        }
        if let Some(before) = &before {
            if !with_status {
                match before.get("status") {
                    Some(status) => object["status"] = status.clone(),
                    None => {
                        object.as_object_mut().expect("an object").remove("status");
                    }
                }
            }
            if *before == object {
                return object;
            }
            if before.get("spec") != object.get("spec") {
                object["metadata"]["generation"] = json!(before["metadata"]["generation"].as_u64().unwrap_or(1) + 1);
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let gone = object["metadata"].get("deletionTimestamp").is_some() && object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        let kind = if gone {
            "DELETED"
        } else if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        if gone {
            self.objects.remove(&key);
            self.applied.retain(|(applied, _), _| *applied != key);
        } else {
            self.objects.insert(key.clone(), object.clone());
        }
        self.events.push((self.version, key, kind, object.clone()));
        object
    }

    fn delete(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.get(key).cloned()?;
        if object["metadata"].get("deletionTimestamp").is_none() {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Some(self.store(key.clone(), object, true))
    }

    fn conflict(&self, key: &Key, wanted: &Value) -> Option<(u16, &'static str)> {
        let object = self.objects.get(key)?;
        let differs = |field: &str| wanted.get(field).is_some_and(|wanted| *wanted != object["metadata"][field]);
        (differs("uid") || differs("resourceVersion")).then_some((409, "Conflict"))
    }

    /// `null` takes a field away.
    fn merge(&mut self, key: &Key, patch: &Value, status: bool) -> Result<Value, (u16, &'static str)> {
        let mut object = self.objects.get(key).cloned().ok_or((404, "NotFound"))?;
        if let Some(conflict) = self.conflict(key, &patch["metadata"]) {
            return Err(conflict);
        }
        merge(&mut object, patch);
        Ok(self.store(key.clone(), object, status))
    }

    fn apply(&mut self, key: &Key, patch: &Value, manager: &str, status: bool) -> Result<Value, (u16, &'static str)> {
        if let Some(conflict) = self.conflict(key, &patch["metadata"]) {
            return Err(conflict);
        }
        let mut wanted = patch.clone();
        if let Some(metadata) = wanted["metadata"].as_object_mut() {
            metadata.remove("uid");
            metadata.remove("resourceVersion");
        }
        let (mut object, slot) = (self.objects.get(key).cloned(), (key.clone(), format!("{manager}{}", if status { "#status" } else { "" })));
        if object.is_none() && (status || patch["metadata"].get("uid").is_some()) {
            return Err((404, "NotFound"));
        }
        // Our own kinds have a schema, which asks for a spec.
        if object.is_none() && key.0.starts_with("sekimori.dev/") && wanted.get("spec").is_none() {
            return Err((422, "Invalid"));
        }
        let object = match &mut object {
            Some(object) => {
                if let Some(before) = self.applied.get(&slot) {
                    prune(object, before, &wanted);
                }
                overlay(object, &wanted);
                object.clone()
            }
            None => {
                let mut made = wanted.clone();
                made["metadata"]["namespace"] = json!(key.1);
                made
            }
        };
        self.applied.insert(slot, wanted);
        Ok(self.store(key.clone(), object, status))
    }
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return *object = patch.clone() };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let map = object.as_object_mut().expect("made one");
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Fields of an applier; lists as a whole.
fn overlay(object: &mut Value, wanted: &Value) {
    match (object, wanted) {
        (Value::Object(object), Value::Object(wanted)) => {
            for (key, value) in wanted {
                overlay(object.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (object, wanted) => *object = wanted.clone(),
    }
}

/// Takes away what an applier applied before and does not any more.
fn prune(object: &mut Value, before: &Value, now: &Value) {
    let (Value::Object(object), Value::Object(before)) = (object, before) else { return };
    for (key, value) in before {
        match (now.get(key), object.get_mut(key)) {
            (None, _) => {
                object.remove(key);
            }
            (Some(now), Some(object)) => prune(object, value, now),
            (Some(_), None) => {}
        }
    }
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": message, "code": code});
    (StatusCode::from_u16(code).expect("a code"), axum::Json(body)).into_response()
}

fn query<'a>(request: &'a Request, name: &str) -> Option<String> {
    let text: &'a str = request.uri().query().unwrap_or_default();
    let value = text.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut decoded = vec![];
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex: String = [bytes.next(), bytes.next()].into_iter().flatten().map(char::from).collect();
                u8::from_str_radix(&hex, 16).expect("an escape")
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn selected(object: &Value, selector: Option<&str>) -> bool {
    selector.unwrap_or_default().split(',').filter(|demand| !demand.is_empty()).all(|demand| {
        let (key, value) = demand.split_once('=').expect("key=value");
        object["metadata"]["labels"][key] == json!(value.trim_start_matches('='))
    })
}

async fn answer(State(server): State<ApiServer>, request: Request) -> Response {
    let path: Vec<String> = request.uri().path().trim_start_matches('/').split('/').map(str::to_owned).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let (group, rest) = match path.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return status(404, "NotFound", "no such path"),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let Some((plural, rest)) = rest.split_first() else { return axum::Json(json!({"kind": "APIResourceList", "resources": []})).into_response() };
    let key = |name: &str| (format!("{group}/{plural}"), namespace.to_owned(), name.to_owned());
    match (request.method().clone(), rest) {
        (Method::GET, []) => list(&server, &key(""), &request),
        (Method::GET, [name, ..]) => match server.with(|world| world.objects.get(&key(name)).cloned()) {
            Some(object) => axum::Json(object).into_response(),
            None => status(404, "NotFound", &format!("{plural} \"{name}\" not found")),
        },
        (method, rest) => write(&server, method, &key, rest, request).await,
    }
}

fn list(server: &ApiServer, key: &Key, request: &Request) -> Response {
    let (plural, namespace) = (key.0.clone(), key.1.clone());
    let selector = query(request, "labelSelector");
    let within = move |found: &Key| found.0 == plural && (namespace.is_empty() || found.1 == namespace);
    if query(request, "watch").as_deref() == Some("true") {
        let from = query(request, "resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        return watched(server, within, selector, from);
    }
    let (version, items) = server.with(|world| {
        let found = world.objects.iter().filter(|(key, object)| within(key) && selected(object, selector.as_deref()));
        (world.version, found.map(|(_, object)| object.clone()).collect::<Vec<_>>())
    });
    axum::Json(json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": items})).into_response()
}

fn watched(server: &ApiServer, within: impl Fn(&Key) -> bool + Send + 'static, selector: Option<String>, from: u64) -> Response {
    let state = (server.clone(), server.moved.subscribe(), from, within, selector);
    let stream = futures_util::stream::unfold(state, |(server, mut moved, from, within, selector)| async move {
        loop {
            let (version, lines) = server.with(|world| {
                let new = world.events.iter().filter(|(version, key, _, object)| {
                    *version > from && within(key) && selected(object, selector.as_deref()) && !world.held.contains(&key.0)
                });
                let lines: String = new.map(|(_, _, kind, object)| format!("{}\n", json!({"type": kind, "object": object}))).collect();
                (world.version, lines)
            });
            if !lines.is_empty() {
                return Some((Ok::<_, std::convert::Infallible>(Bytes::from(lines)), (server, moved, version, within, selector)));
            }
            moved.borrow_and_update();
            if server.with(|world| world.version) == version && moved.changed().await.is_err() {
                return None;
            }
        }
    });
    Body::from_stream(stream).into_response()
}

async fn write(server: &ApiServer, method: Method, key: &(dyn Fn(&str) -> Key + Send + Sync), rest: &[&str], request: Request) -> Response {
    let manager = query(&request, "fieldManager").unwrap_or_default();
    let kind = request.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    let bytes = axum::body::to_bytes(request.into_body(), 1 << 24).await.expect("a body");
    let body: Value = if bytes.is_empty() { json!({}) } else { serde_json::from_slice(&bytes).expect("JSON") };
    let name = rest.first().map_or_else(|| body["metadata"]["name"].as_str().unwrap_or_default().to_owned(), |name| (*name).to_owned());
    let (key, is_status) = (key(&name), rest.get(1) == Some(&"status"));
    let outcome = server.with(|world| {
        if world.writes_left == Some(0) {
            return Err((503, "ServiceUnavailable"));
        }
        if let Some(at) = world.refusals.iter().position(|(plural, _)| *plural == key.0) {
            let (_, code) = world.refusals.remove(at);
            return Err((code, if code == 409 { "Conflict" } else { "InternalError" }));
        }
        world.writes_left = world.writes_left.map(|left| left - 1);
        let suffix = if is_status { "/status" } else { "" };
        world.writes.push(format!("{method} {}{suffix} {}/{}", key.0, key.1, key.2));
        match method {
            Method::POST if world.objects.contains_key(&key) => Err((409, "AlreadyExists")),
            Method::POST => {
                let mut object = body;
                object["metadata"]["namespace"] = json!(key.1);
                Ok(world.store(key, object, true))
            }
            Method::PUT => match world.conflict(&key, &body["metadata"]) {
                Some(conflict) => Err(conflict),
                None if !world.objects.contains_key(&key) => Err((404, "NotFound")),
                None => Ok(world.store(key, body, is_status)),
            },
            Method::PATCH if kind.contains("apply-patch") => world.apply(&key, &body, &manager, is_status),
            Method::PATCH => world.merge(&key, &body, is_status),
            Method::DELETE => match world.conflict(&key, &body["preconditions"]) {
                Some(conflict) => Err(conflict),
                None => world.delete(&key).ok_or((404, "NotFound")),
            },
            _ => Err((405, "MethodNotAllowed")),
        }
    });
    match outcome {
        Ok(object) => axum::Json(object).into_response(),
        Err((code, reason)) => status(code, reason, "refused by the API server in memory"),
    }
}
