//! rspamd's HTTP protocol: `POST /checkv2`, over TCP and unix sockets, connections kept where the server keeps them (rspamd 3.4 closes each).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST, HeaderValue, SERVER};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::stream::{Address, Endpoint};
use super::{Answer, BoxFuture, Engine, Job};
use crate::engine::harmless;
use crate::engine::rspamd::{REPLY_BYTES_MAX, read, version};
use crate::envelope::Envelope;
use crate::verdict::{Failure, Finding, Unscannable};

/// Idle connections kept: the usual concurrency of an engine.
pub const IDLE_CONNECTIONS_MAX: usize = 32;
/// An idle connection is not used again after this: shorter than the keep-alive time of usual proxies.
pub const IDLE_FOR_MAX: Duration = Duration::from_secs(10);
/// Recipients named to rspamd: its rules about recipients need some of them, its header limits not all of a thousand.
pub const RECIPIENTS_MAX: usize = 100;

/// A client of one rspamd (its normal worker).
pub struct Rspamd {
    endpoint: Endpoint,
    host: HeaderValue,
    idle: Mutex<Vec<Connection>>,
    deaths: AtomicU64,
}

/// One connection and the task that drives it; dropping it closes the connection.
struct Connection {
    requests: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    idle_since: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Rspamd {
    /// A client; nothing is connected yet.
    pub fn new(address: Address) -> Self {
        let host = match &address {
            Address::Tcp(address) => HeaderValue::from_str(address).ok(),
            Address::Unix(_) => None,
        };
        Self {
            endpoint: Endpoint::new(address),
            host: host.unwrap_or(HeaderValue::from_static("localhost")),
            idle: Mutex::default(),
            deaths: AtomicU64::new(0),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reusable(&self) -> Option<Connection> {
        let mut idle = self.idle();
        while let Some(connection) = idle.pop() {
            if connection.requests.is_ready() && connection.idle_since.elapsed() < IDLE_FOR_MAX {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = self.endpoint.connect().await?;
        let (requests, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| self.endpoint.unreachable(&e.to_string()))?;
        // Its errors come back from the request.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Connection { requests, driver, idle_since: Instant::now() })
    }

    fn keep(&self, mut connection: Connection) {
        if !connection.requests.is_closed() {
            connection.idle_since = Instant::now();
            let mut idle = self.idle();
            if idle.len() < IDLE_CONNECTIONS_MAX {
                idle.push(connection);
            }
        }
    }

    /// Sends the request and reads the whole reply. `Err(None)`: the connection was closed before the request was on it.
    async fn exchange(&self, connection: &mut Connection, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Option<Failure>> {
        let broken = |e: hyper::Error| {
            if e.is_canceled() {
                return None;
            }
            let why = format!("{} during a scan", std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string));
            if e.is_parse() || e.is_user() {
                return Some(Failure::Protocol(format!("rspamd: {}", harmless(why.as_bytes()))));
            }
            self.deaths.fetch_add(1, Ordering::Relaxed);
            Some(self.endpoint.unreachable(&why))
        };
        let (head, body) = connection.requests.send_request(request).await.map_err(broken)?.into_parts();
        let collected = Limited::new(body, REPLY_BYTES_MAX).collect().await;
        let bytes = collected.map_err(|e| match e.downcast::<hyper::Error>() {
            Ok(e) => broken(*e),
            Err(e) if e.is::<LengthLimitError>() => Some(Failure::Protocol(format!("rspamd's reply is longer than {REPLY_BYTES_MAX} bytes"))),
            Err(e) => Some(Failure::Protocol(harmless(e.to_string().as_bytes()))),
        })?;
        Ok(Response::from_parts(head, bytes.to_bytes()))
    }

    async fn scan(&self, job: &Job) -> Result<Answer, Failure> {
        let request =
            || request(&self.host, job).map_err(|e| Failure::Protocol(format!("no request can be made: {}", harmless(e.to_string().as_bytes()))));
        if let Some(mut connection) = self.reusable() {
            match self.exchange(&mut connection, request()?).await {
                Ok(response) => return self.answered(connection, &response),
                Err(Some(failure)) => return Err(failure),
                Err(None) => {}
            }
        }
        let mut connection = self.connect().await?;
        match self.exchange(&mut connection, request()?).await {
            Ok(response) => self.answered(connection, &response),
            Err(failure) => Err(failure.unwrap_or_else(|| self.endpoint.unreachable("closed before it was used"))),
        }
    }

    fn answered(&self, connection: Connection, response: &Response<Bytes>) -> Result<Answer, Failure> {
        let version = response.headers().get(SERVER).and_then(|server| version(server.as_bytes())).map(Arc::from);
        if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Ok(Answer { finding: Finding::Unscannable(Unscannable::TooLarge), evidence: vec![], version });
        }
        if response.status() != StatusCode::OK {
            return Err(Failure::Protocol(format!("rspamd answered {}: '{}'", response.status().as_u16(), harmless(response.body()))));
        }
        let reading = read(response.body())?;
        self.keep(connection);
        Ok(Answer { finding: reading.finding, evidence: reading.evidence, version })
    }

    async fn version(&self) -> Result<Arc<str>, Failure> {
        let request = Request::builder().uri("/ping").header(HOST, &self.host).body(Full::default());
        let request = request.map_err(|e| Failure::Protocol(harmless(e.to_string().as_bytes())))?;
        let mut connection = self.connect().await?;
        let response =
            self.exchange(&mut connection, request).await.map_err(|failure| failure.unwrap_or_else(|| self.endpoint.unreachable("closed")))?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Protocol(format!("rspamd answered {} to /ping", response.status().as_u16())));
        }
        Ok(response.headers().get(SERVER).and_then(|server| version(server.as_bytes())).map_or_else(|| Arc::from("?"), Arc::from))
    }
}

/// The request. What HTTP cannot carry in a header is left out, never mangled.
fn request(host: &HeaderValue, job: &Job) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let Envelope { id, client, sender, recipients, .. } = &*job.envelope;
    let mut request = Request::builder().method(Method::POST).uri("/checkv2").header(HOST, host).header(CONNECTION, "keep-alive");
    if let Some(headers) = request.headers_mut() {
        let mut add = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.append(name, value);
            }
        };
        add("queue-id", &id.to_string());
        // An address that is a node's, not the client's, would be judged as the client's.
        if client.address_known {
            add("ip", &client.address.to_string());
            add("helo", &client.helo);
        }
        // Empty for the null reverse-path, so that rspamd does not take the header's.
        add("from", &sender.as_ref().map_or_else(String::new, ToString::to_string));
        recipients.iter().take(RECIPIENTS_MAX).for_each(|recipient| add("rcpt", &recipient.address.to_string()));
    }
    request.body(Full::new(job.message.raw.clone()))
}

impl Engine for Rspamd {
    fn scan<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(self.scan(job))
    }

    fn version(&self) -> BoxFuture<'_, Result<Arc<str>, Failure>> {
        Box::pin(self.version())
    }

    fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Relaxed)
    }
}
