//! The admin port: liveness, readiness, metrics, and the API behind the verbs `queue` and `quarantine`.
//!
//! `/livez`, `/readyz` and `/metrics` are open. Alone, `/v1` answers only requests for a loopback host name, and changes need a JSON body, so that
//! no web page in a browser on this machine can reach it. In a pod it is on a unix socket of its own, which the file's mode guards, and the port, which
//! other pods reach, has nothing but health and metrics. Who changed what is logged.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use axum::{Json, Router, extract};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::io::clock;
use crate::io::gateway::Gateway;
use crate::io::quarantine::{self, Kind};
use crate::io::stores;
use crate::queue::index::{Filter, Operation};
use crate::queue_id::QueueId;

/// Most entries that one call lists.
const LIST_MAX: usize = 10_000;
/// Most queue ids that one log line names.
const LOGGED_IDS_MAX: usize = 100;
/// Most bytes of a request's body.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Which messages are meant, in a query or a body.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selection {
    /// Queue ids; in a query separated by commas.
    #[serde(deserialize_with = "ids", skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<QueueId>,
    /// Every message.
    pub all: bool,
    /// `namespace/name`.
    pub tenant: Option<String>,
    /// Name of a route.
    pub route: Option<String>,
    /// Milliseconds.
    pub older_than_ms: Option<u64>,
    /// Dead letters instead of the quarantine.
    pub dead_letters: bool,
    /// Text to look for in sender, recipients, subject or reason.
    pub text: Option<String>,
    /// Only say what would be done.
    pub dry_run: bool,
}

fn ids<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<QueueId>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Text(String),
    }
    let texts = match Either::deserialize(deserializer)? {
        Either::List(texts) => texts,
        Either::Text(text) => text.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect(),
    };
    texts.iter().map(|id| id.parse().map_err(serde::de::Error::custom)).collect()
}

impl Selection {
    fn filter(&self) -> Filter {
        Filter { ids: self.ids.clone(), tenant: self.tenant.clone(), route: self.route.clone(), older_than_ms: self.older_than_ms, all: self.all }
    }

    const fn is_empty(&self) -> bool {
        self.ids.is_empty() && !self.all && self.tenant.is_none() && self.route.is_none() && self.older_than_ms.is_none()
    }

    const fn kind(&self) -> Kind {
        if self.dead_letters { Kind::DeadLetter } else { Kind::Quarantined }
    }
}

/// A selection in a query. What is wrong with it is said like every other error.
struct Asked(Selection);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let query = Query::<Selection>::from_request_parts(parts, state).await;
        query.map(|Query(selection)| Self(selection)).map_err(|rejection| refuse(rejection.status(), rejection.body_text()))
    }
}

/// A selection in a body, likewise.
struct Told(Selection);

impl<S: Send + Sync> FromRequest<S> for Told {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let body = Json::<Selection>::from_request(request, state).await;
        body.map(|Json(selection)| Self(selection)).map_err(|rejection| refuse(rejection.status(), rejection.body_text()))
    }
}

/// The gateway, once there is one: until then this process only lives.
#[derive(Clone, Default)]
pub struct Place(Arc<OnceLock<Arc<Gateway>>>);

impl Place {
    /// The gateway, once there is one.
    pub fn gateway(&self) -> Option<&Arc<Gateway>> {
        self.0.get()
    }

    /// There it is.
    pub fn set(&self, gateway: Arc<Gateway>) {
        if self.0.set(gateway).is_err() {
            tracing::error!("a second gateway in one process: the admin port keeps to the first");
        }
    }
}

/// The gateway, or 503 while it is not there yet.
struct Up(Arc<Gateway>);

impl FromRequestParts<Place> for Up {
    type Rejection = Response;

    async fn from_request_parts(_: &mut Parts, place: &Place) -> Result<Self, Response> {
        let starting = || refuse(StatusCode::SERVICE_UNAVAILABLE, "starting: the spool is being read, or the configuration has not come yet");
        place.0.get().cloned().map(Self).ok_or_else(starting)
    }
}

/// Who is connected.
#[derive(Clone, Copy, Debug)]
enum Caller {
    /// From somewhere.
    Address(SocketAddr),
    /// Over the unix socket, which only its owner can open.
    Socket,
}

impl Connected<IncomingStream<'_, tokio::net::TcpListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, tokio::net::TcpListener>) -> Self {
        Self::Address(*stream.remote_addr())
    }
}

impl Connected<IncomingStream<'_, tokio::net::UnixListener>> for Caller {
    fn connect_info(_: IncomingStream<'_, tokio::net::UnixListener>) -> Self {
        Self::Socket
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Socket => f.write_str("the admin socket"),
        }
    }
}

/// Serves everything on a unix socket that only this user can open. One that was left behind is replaced.
pub fn serve_socket(path: &Path, place: Place) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    // Under another name until nobody else can open it.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = tokio::net::UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    let router = router(true).with_state(place).into_make_service_with_connect_info::<Caller>();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(socket, router).await {
            tracing::error!(%error, "the admin socket ended");
        }
    });
    Ok(())
}

/// Starts serving; where. `with_api`: not only health and metrics.
pub fn serve(address: SocketAddr, with_api: bool, place: Place) -> std::io::Result<SocketAddr> {
    let socket = crate::io::listener::bind(address)?;
    let address = socket.local_addr()?;
    let router = router(with_api).with_state(place).into_make_service_with_connect_info::<Caller>();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(socket, router).await {
            tracing::error!(%error, "the admin port ended");
        }
    });
    Ok(address)
}

fn router(with_api: bool) -> Router<Place> {
    let api = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/queue", get(queue_list))
        .route("/v1/queue/{id}", get(queue_show).post(queue_operate))
        .route("/v1/quarantine", get(quarantine_list))
        .route("/v1/quarantine/{id}", get(quarantine_show).post(quarantine_operate))
        .route("/v1/quarantine/{id}/raw", get(quarantine_raw))
        .route("/v1/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")) }))
        .layer(middleware::from_fn(local_only))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX));
    let open = Router::new().route("/livez", get(live)).route("/readyz", get(ready)).route("/metrics", get(metrics));
    if with_api { open.merge(api) } else { open }
}

/// Whether the API may answer: whoever is connected is on this machine, and means it by name. A request that a browser was talked into has another host
/// name; one from elsewhere can write any name, so the name alone proves nothing.
fn is_local(peer: Option<std::net::IpAddr>, host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
    let named = name == "localhost" || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    named && peer.is_some_and(|peer| peer.to_canonical().is_loopback())
}

/// Only for this machine, and changes only with a JSON body.
async fn local_only(request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<ConnectInfo<Caller>>().map(|ConnectInfo(caller)| *caller);
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let local = match caller {
        Some(Caller::Socket) => true,
        Some(Caller::Address(peer)) => is_local(Some(peer.ip()), host),
        None => false,
    };
    if !local {
        return refuse(StatusCode::FORBIDDEN, "the admin API answers requests from this machine for a loopback host name only");
    }
    let json = request.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if request.method() != axum::http::Method::GET && !json {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "changes need a body of type application/json");
    }
    next.run(request).await
}

fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(json!({ "error": error.into() }))).into_response()
}

/// A spool that could not be written once is written again only after it was opened anew: a restart does that, and the queue is as it was.
async fn live(State(place): State<Place>) -> Response {
    if place.gateway().is_some_and(|gateway| gateway.spool.status().failed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the spool cannot be written until the gateway starts again\n").into_response();
    }
    "ok\n".into_response()
}

async fn ready(Up(gateway): Up) -> Response {
    let status = gateway.spool.status();
    if status.failed {
        return (StatusCode::SERVICE_UNAVAILABLE, "the spool cannot be written\n").into_response();
    }
    if gateway.is_closing() || !*gateway.serving.borrow() {
        let why = match (gateway.is_stopping(), gateway.is_closing()) {
            (true, _) => "stopping\n",
            (false, true) => "draining\n",
            (false, false) => "waiting for engines\n",
        };
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
    "ok\n".into_response()
}

/// Gauges are brought up to date when they are asked for.
async fn metrics(Up(gateway): Up) -> Response {
    let metrics = &gateway.metrics;
    let spool = gateway.spool.status();
    metrics.follow(&metrics.spool_written_bytes, spool.written_bytes);
    metrics.follow(&metrics.spool_syncs, spool.syncs);
    metrics.spool_failed.set(i64::from(spool.failed));
    metrics.spool_corrupt.with_label_values(&["record"]).set(signed(spool.corrupt_records as u64));
    metrics.spool_corrupt.with_label_values(&["segment"]).set(i64::from(spool.damaged_segments));
    let queue = gateway.delivery.statistics();
    let states = [
        ("runnable", queue.runnable),
        ("waiting", queue.waiting),
        ("scheduled", queue.scheduled),
        ("inFlight", queue.in_flight),
        ("held", queue.held),
    ];
    for (state, count) in states {
        metrics.queue_messages.with_label_values(&[state]).set(signed(count as u64));
    }
    let oldest_ms = queue.oldest_received_ms.map_or(0, |received_ms| clock::unix_ms().saturating_sub(received_ms));
    metrics.queue_oldest_seconds.set(signed(oldest_ms / 1000));
    let figures = gateway.delivery.figures().totals();
    metrics.follow(&metrics.delivery_ambiguous, figures.ambiguous);
    for (outcome, total) in
        [("delivered", figures.delivered), ("refused", figures.refused), ("deferred", figures.deferred), ("expired", figures.expired)]
    {
        metrics.follow(&metrics.deliveries.with_label_values(&["queue", outcome]), total);
    }
    metrics.message_memory_bytes.set(signed(gateway.memory.used_bytes()));
    let kept = gateway.quarantine.status();
    for (label, count) in [("quarantined", kept.quarantined), ("dead-letter", kept.dead_letters)] {
        metrics.quarantine_messages.with_label_values(&[label]).set(signed(count as u64));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.text()).into_response()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

async fn status(Up(gateway): Up) -> Json<serde_json::Value> {
    let config = gateway.config.load();
    let spool = gateway.spool.status();
    Json(json!({
        "fleet": config.fleet.name,
        "hostname": config.fleet.hostname,
        "configurationHash": config.hash.to_string(),
        "tenants": config.tenants().len(),
        "serving": *gateway.serving.borrow(),
        "sessions": gateway.open_sessions(),
        "engines": gateway.filters.engines.status(),
        "queue": gateway.delivery.statistics(),
        "routes": gateway.delivery.routes(),
        "spool": {
            "records": spool.records, "liveBytes": spool.live_bytes, "writtenBytes": spool.written_bytes, "syncs": spool.syncs,
            "segments": spool.segments, "corruptRecords": spool.corrupt_records,
            "damagedSegments": spool.damaged_segments, "failed": spool.failed, "full": spool.full,
        },
    }))
}

async fn queue_list(Up(gateway): Up, Asked(mut selection): Asked) -> Response {
    selection.all |= selection.is_empty();
    let messages = gateway.delivery.list(&selection.filter(), None, LIST_MAX);
    Json(json!({ "messages": messages, "now": clock::unix_ms(), "complete": messages.len() < LIST_MAX })).into_response()
}

async fn queue_show(Up(gateway): Up, extract::Path(id): extract::Path<String>) -> Response {
    let id: QueueId = match id.parse() {
        Ok(id) => id,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let filter = Filter { ids: vec![id], ..Filter::default() };
    match gateway.delivery.show(id).await {
        Ok(meta) => Json(json!({ "envelope": meta.envelope, "groups": meta.groups, "entries": gateway.delivery.list(&filter, None, LIST_MAX) }))
            .into_response(),
        Err(error) => refuse(StatusCode::NOT_FOUND, error),
    }
}

async fn queue_operate(
    Up(gateway): Up,
    ConnectInfo(peer): ConnectInfo<Caller>,
    extract::Path(verb): extract::Path<String>,
    Told(selection): Told,
) -> Response {
    let operation = match verb.as_str() {
        "retry" => Operation::Retry,
        "hold" => Operation::Hold,
        "release" => Operation::Release,
        "drop" => Operation::Drop,
        _ => return refuse(StatusCode::NOT_FOUND, format!("no verb '{verb}': retry, hold, release or drop")),
    };
    if selection.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "say which messages: ids, all, tenant, route or olderThanMs");
    }
    let affected = gateway.delivery.operate(operation, &selection.filter(), selection.dry_run);
    let (verb, ids) = (format!("queue {verb}"), named(&affected.ids));
    tracing::info!(event = "admin", verb, who = %peer, count = affected.count, ids, dry_run = selection.dry_run, "queue changed");
    Json(affected).into_response()
}

/// Queue ids for the log, the first of them if they are many.
fn named(ids: &[QueueId]) -> String {
    let shown: Vec<String> = ids.iter().take(LOGGED_IDS_MAX).map(ToString::to_string).collect();
    let more = ids.len().saturating_sub(LOGGED_IDS_MAX);
    if more == 0 { shown.join(" ") } else { format!("{} and {more} more", shown.join(" ")) }
}

async fn quarantine_list(Up(gateway): Up, Asked(mut selection): Asked) -> Response {
    selection.all |= selection.is_empty();
    let messages: Vec<quarantine::Entry> = kept(&gateway, &selection).iter().map(|entry| entry.as_ref().clone()).collect();
    Json(json!({ "messages": messages, "now": clock::unix_ms(), "complete": messages.len() < LIST_MAX })).into_response()
}

/// The kept copies that are meant, the oldest first.
fn kept(gateway: &Gateway, selection: &Selection) -> Vec<Arc<quarantine::Entry>> {
    let now_ms = clock::unix_ms();
    let filter = quarantine::Filter {
        id: match selection.ids.as_slice() {
            [only] => Some(*only),
            _ => None,
        },
        tenant: selection.tenant.clone(),
        kind: Some(selection.kind()),
        before_ms: selection.older_than_ms.map(|age_ms| now_ms.saturating_sub(age_ms)),
        text: selection.text.clone(),
        limit: 0,
    };
    let mut entries = gateway.quarantine.list(&filter);
    entries.retain(|entry| selection.ids.is_empty() || selection.ids.contains(&entry.id));
    entries.truncate(LIST_MAX);
    entries
}

/// The one kept copy of this id and kind.
async fn find(gateway: &Gateway, id: &str, selection: &Selection) -> Result<(Arc<quarantine::Entry>, quarantine::Item), Box<Response>> {
    let id: QueueId = id.parse().map_err(|error: String| Box::new(refuse(StatusCode::BAD_REQUEST, error)))?;
    let found = kept(gateway, &Selection { ids: vec![id], ..selection.clone() });
    match found.as_slice() {
        [one] => match gateway.quarantine.read(one.key).await {
            Ok(item) => Ok((Arc::clone(one), item)),
            Err(error) => Err(Box::new(refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))),
        },
        [] => Err(Box::new(refuse(StatusCode::NOT_FOUND, format!("no message {id} is kept here")))),
        _ => Err(Box::new(refuse(StatusCode::CONFLICT, format!("message {id} is kept for several tenants: say which with tenant")))),
    }
}

async fn quarantine_show(Up(gateway): Up, extract::Path(id): extract::Path<String>, Asked(selection): Asked) -> Response {
    match find(&gateway, &id, &selection).await {
        Ok((entry, item)) => Json(json!({ "entry": *entry, "envelope": item.envelope })).into_response(),
        Err(response) => *response,
    }
}

async fn quarantine_raw(Up(gateway): Up, extract::Path(id): extract::Path<String>, Asked(selection): Asked) -> Response {
    match find(&gateway, &id, &selection).await {
        Ok((_, item)) => ([(header::CONTENT_TYPE, "application/octet-stream")], item.raw).into_response(),
        Err(response) => *response,
    }
}

async fn quarantine_operate(
    Up(gateway): Up,
    ConnectInfo(peer): ConnectInfo<Caller>,
    extract::Path(verb): extract::Path<String>,
    Told(selection): Told,
) -> Response {
    if !matches!(verb.as_str(), "release" | "delete") {
        return refuse(StatusCode::NOT_FOUND, format!("no verb '{verb}': release or delete"));
    }
    if selection.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "say which messages: ids, all, tenant or olderThanMs");
    }
    let (mut done, mut failed) = (vec![], vec![]);
    for listed in kept(&gateway, &selection) {
        let result = match (selection.dry_run, verb.as_str()) {
            (true, _) => Ok(()),
            (false, "delete") => gateway.quarantine.delete(listed.key).await.map_err(|error| error.to_string()),
            _ => stores::release(&gateway, listed.key).await,
        };
        match result {
            Ok(()) => done.push(listed.id),
            Err(error) => failed.push(json!({ "id": listed.id, "error": error })),
        }
    }
    let (verb, ids) = (format!("quarantine {verb}"), named(&done));
    tracing::info!(event = "admin", verb, who = %peer, count = done.len(), failed = failed.len(), ids, dry_run = selection.dry_run, "quarantine changed");
    Json(json!({ "count": done.len(), "ids": done, "failed": failed })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_for_this_machine_only() {
        for (peer, host, local) in [
            ("127.0.0.1", "localhost", true),
            ("127.0.0.1", "localhost:8025", true),
            ("127.0.0.9", "127.0.0.1:8025", true),
            ("::1", "[::1]:8025", true),
            ("::ffff:127.0.0.1", "localhost", true),
            // A bound public address must not open it: the name is the client's to write.
            ("192.0.2.1", "localhost", false),
            ("192.0.2.1", "127.0.0.1:8025", false),
            ("::ffff:192.0.2.1", "localhost", false),
            ("2001:db8::1", "[::1]", false),
            // A name that leads to 127.0.0.1 is how a browser is talked into it.
            ("127.0.0.1", "evil.example", false),
            ("127.0.0.1", "localhost.evil.example:8025", false),
            ("127.0.0.1", "192.0.2.1", false),
            ("127.0.0.1", "", false),
        ] {
            assert_eq!(is_local(peer.parse().ok(), host), local, "{peer} {host}");
        }
        assert!(!is_local(None, "localhost"), "nobody known is nobody local");
    }
}
