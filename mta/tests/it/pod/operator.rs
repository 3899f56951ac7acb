//! An operator that serves one fleet's parts over the real protocol, and remembers all that it hears.

#![expect(clippy::unwrap_used, reason = "a test's own helpers")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sekimori_crds::snapshot::{FleetPart, Part, RollingHash, TenantPart, part_json, part_words};
use sekimori_crds::stream::configuration_server::{Configuration, ConfigurationServer};
use sekimori_crds::stream::{Applied, Change, Changes, DrainKind, FromGateway, Hello, Orders, Position, Report, ToGateway, from_gateway, to_gateway};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// All that was heard, and what is served.
pub(super) struct State {
    pub(super) parts: BTreeMap<String, Vec<u8>>,
    pub(super) number: u64,
    pub(super) orders: Orders,
    /// Nothing is answered to a Hello: the caches are not synced.
    pub(super) silent: bool,
    pub(super) not_leader: bool,
    /// Parts in one piece of a way.
    pub(super) per_piece: usize,
    pub(super) hellos: Vec<Hello>,
    pub(super) bearers: Vec<String>,
    pub(super) tokens: Vec<String>,
    pub(super) applied: Vec<Applied>,
    pub(super) reports: Vec<Report>,
    pub(super) refused_streams: usize,
    stream: Option<mpsc::Sender<Result<ToGateway, Status>>>,
}

#[derive(Clone)]
pub(super) struct Operator {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) address: SocketAddr,
    /// What vouches for it, PEM.
    pub(super) authority: String,
    identity: Arc<(String, String)>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl State {
    fn position(&self) -> Position {
        let mut hash = RollingHash::default();
        self.parts.iter().for_each(|(key, json)| hash.add_words(part_words(key, json)));
        Position::new(1, self.number, hash)
    }

    fn send(&self, body: to_gateway::Body) {
        if let Some(stream) = &self.stream {
            // A stream that has just ended will be followed by another.
            drop(stream.try_send(Ok(ToGateway { body: Some(body) })));
        }
    }

    fn way(&self, full: bool, to: Position, changes: Vec<Change>) {
        let pieces: Vec<Vec<Change>> =
            if changes.is_empty() { vec![vec![]] } else { changes.chunks(self.per_piece).map(<[Change]>::to_vec).collect() };
        let count = pieces.len();
        for (index, changes) in pieces.into_iter().enumerate() {
            let changes = Changes { to: Some(to.clone()), full: full && index == 0, last: index + 1 == count, changes };
            self.send(to_gateway::Body::Changes(changes));
        }
    }

    fn everything(&self) {
        let changes = self.parts.iter().map(|(key, part)| Change { key: key.clone(), part: part.clone().into() }).collect();
        self.way(true, self.position(), changes);
    }

    fn heard(&mut self, body: from_gateway::Body) {
        match body {
            from_gateway::Body::Hello(hello) => {
                let current = hello.have.as_ref().is_some_and(|have| have.hash == self.position().hash);
                self.hellos.push(hello);
                if !self.silent {
                    self.send(to_gateway::Body::Orders(self.orders.clone()));
                    if !current {
                        self.everything();
                    }
                }
            }
            from_gateway::Body::Applied(applied) => {
                let resync = applied.resync;
                self.applied.push(applied);
                if resync {
                    self.everything();
                }
            }
            from_gateway::Body::Report(report) => self.reports.push(report),
            from_gateway::Body::Token(token) => self.tokens.push(token),
        }
    }
}

#[tonic::async_trait]
impl Configuration for Operator {
    type FollowStream = ReceiverStream<Result<ToGateway, Status>>;

    async fn follow(&self, request: Request<Streaming<FromGateway>>) -> Result<Response<Self::FollowStream>, Status> {
        let (sender, receiver) = mpsc::channel(1000);
        let own = sender.downgrade();
        {
            let mut state = self.state.lock().unwrap();
            if state.not_leader {
                state.refused_streams += 1;
                return Err(Status::unavailable("not leader"));
            }
            let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            state.bearers.push(bearer);
            state.stream = Some(sender);
        }
        let state = Arc::clone(&self.state);
        let mut messages = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if let Some(body) = message.body {
                    state.lock().unwrap().heard(body);
                }
            }
            // Who has said all is answered with the end.
            let mut state = state.lock().unwrap();
            let own = own.upgrade();
            state.stream.take_if(|stream| own.is_some_and(|own| own.same_channel(stream)));
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Operator {
    pub(super) async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = State {
            parts: BTreeMap::new(),
            number: 1,
            orders: Orders { gateways: 1, ..Orders::default() },
            silent: false,
            not_leader: false,
            per_piece: 2,
            hellos: vec![],
            bearers: vec![],
            tokens: vec![],
            applied: vec![],
            reports: vec![],
            refused_streams: 0,
            stream: None,
        };
        let operator = Self {
            state: Arc::new(Mutex::new(state)),
            address: listener.local_addr().unwrap(),
            authority: made.cert.pem(),
            identity: Arc::new((made.cert.pem(), made.signing_key.serialize_pem())),
            task: Arc::default(),
        };
        operator.serve(listener);
        operator
    }

    fn serve(&self, listener: TcpListener) {
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(&self.identity.0, &self.identity.1));
        let server = Server::builder().tls_config(tls).unwrap().add_service(ConfigurationServer::new(self.clone()));
        let task = tokio::spawn(async move { server.serve_with_incoming(TcpListenerStream::new(listener).filter(Result::is_ok)).await.unwrap() });
        *self.task.lock().unwrap() = Some(task);
    }

    /// Goes away, with every connection.
    pub(super) async fn stop(&self) {
        let task = self.task.lock().unwrap().take().unwrap();
        task.abort();
        drop(task.await);
        self.state.lock().unwrap().stream = None;
    }

    /// Ends the stream that there is.
    pub(super) fn cut(&self) {
        self.state.lock().unwrap().stream = None;
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap())
    }

    /// Puts parts in place, as a delta; where it leads.
    pub(super) fn put(&self, parts: Vec<(String, Vec<u8>)>) -> Position {
        self.with(|state| {
            state.number += 1;
            let changes = parts.iter().map(|(key, part)| Change { key: key.clone(), part: part.clone().into() }).collect();
            for (key, part) in parts {
                if part.is_empty() {
                    state.parts.remove(&key);
                } else {
                    state.parts.insert(key, part);
                }
            }
            let to = state.position();
            state.way(false, to.clone(), changes);
            to
        })
    }

    /// Sends a delta whose hash is another one than its parts have.
    pub(super) fn put_wrongly(&self, key: &str, part: Vec<u8>) {
        self.with(|state| {
            state.number += 1;
            let mut to = state.position();
            to.hash = vec![7; 32];
            state.way(false, to, vec![Change { key: key.to_owned(), part: part.into() }]);
        });
    }

    /// Sends everything under a hash that it does not have.
    pub(super) fn everything_wrongly(&self) {
        self.with(|state| {
            state.number += 1;
            let mut to = state.position();
            to.hash = vec![9; 32];
            let changes = state.parts.iter().map(|(key, part)| Change { key: key.clone(), part: part.clone().into() }).collect();
            state.way(true, to, changes);
        });
    }

    pub(super) fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.with(|state| {
            change(&mut state.orders);
            state.send(to_gateway::Body::Orders(state.orders.clone()));
        });
    }

    pub(super) fn drain(&self, kind: DrainKind) {
        self.order(|orders| orders.drain = kind.into());
    }

    /// Answers the caches' silence: everything is sent.
    pub(super) fn speak(&self) {
        self.with(|state| {
            state.silent = false;
            state.send(to_gateway::Body::Orders(state.orders.clone()));
            state.everything();
        });
    }

    /// Waits until something is so.
    pub(super) async fn wait<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        for _ in 0..1500 {
            if let Some(found) = self.with(|state| look(state)) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (applied, report) = self.with(|state| (state.applied.last().cloned(), state.reports.last().cloned()));
        unreachable!("waited 30 s for {what}; the last words: {applied:?} {report:?}");
    }

    /// Waits for the acknowledgement of a position.
    pub(super) async fn reached(&self, position: &Position) -> Applied {
        self.wait("a position", |state| state.applied.iter().rfind(|applied| applied.position.as_ref() == Some(position)).cloned()).await
    }

    /// Waits for a report from now on.
    pub(super) async fn report(&self, what: &str, mut is_so: impl FnMut(&Report) -> bool) -> Report {
        let from = self.with(|state| state.reports.len());
        self.wait(what, |state| state.reports.iter().skip(from).find(|report| is_so(report)).cloned()).await
    }
}

pub(super) fn fleet_part(fleet: FleetPart) -> (String, Vec<u8>) {
    ("fleet".to_owned(), part_json(&Part::Fleet(Box::new(fleet))))
}

pub(super) fn tenant_part(tenant: TenantPart) -> (String, Vec<u8>) {
    (format!("tenant/{}/{}", tenant.namespace, tenant.name), part_json(&Part::Tenant(Box::new(tenant))))
}
