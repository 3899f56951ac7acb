//! An API server that answers badly: a TLS proxy before the real one, for clients that a scenario sends here. It passes requests on with their tokens, streams
//! watches, and does to them what the rules say that a scenario sets meanwhile.
//!
//! It speaks HTTP/1.1 only, and upgrades no connection: `exec` and `port-forward` do not pass.

pub mod rules;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use self::rules::{Asked, Counts, Effect, RETRY_AFTER_SECONDS, Rule, Rules, Tally, Verb, expired_event, status};
use super::pki::Serving;

/// Events of one watch on their way.
const EVENTS_MAX: usize = 1024;

/// What happens to watches that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The connection is cut.
    Cut,
    /// The stream says that the version is too old, and ends.
    Expire,
}

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    /// Connections live in it.
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    upstream: SocketAddr,
    connector: TlsConnector,
    rules: Mutex<Rules>,
    held: Mutex<Option<Asked>>,
    released: watch::Sender<u64>,
    breaks: watch::Sender<Option<Break>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Listens on a free port of `address`, and passes on to `upstream`, whose authority is in the file `authority`.
    pub(super) fn start(address: SocketAddr, upstream: SocketAddr, serving: &Serving, authority: &Path) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority).with_context(|| authority.display().to_string())? {
            roots.add(certificate?)?;
        }
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let chain = CertificateDer::pem_slice_iter(serving.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(serving.key.as_bytes())?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let shared = Arc::new(Shared {
            upstream,
            connector: TlsConnector::from(Arc::new(client)),
            rules: Mutex::default(),
            held: Mutex::default(),
            released: watch::Sender::new(0),
            breaks: watch::Sender::new(None),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(address)).with_context(|| format!("a proxy at {address}"))?;
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, TlsAcceptor::from(Arc::new(server)), Arc::clone(&shared)));
        Ok(Self { address, shared, _runtime: runtime })
    }

    /// From now on these rules and no others.
    pub fn set(&self, rules: Vec<Rule>) {
        lock(&self.shared.rules).set(rules);
    }

    /// No faults any more.
    pub fn clear(&self) {
        self.set(vec![]);
    }

    /// Ends every watch that is open.
    pub fn break_watches(&self, how: Break) {
        self.shared.breaks.send_replace(Some(how));
    }

    /// What became of each rule that is in force.
    #[must_use]
    pub fn tallies(&self) -> Vec<Tally> {
        lock(&self.shared.rules).tallies()
    }

    /// The request that a rule holds at the moment.
    #[must_use]
    pub fn held(&self) -> Option<Asked> {
        lock(&self.shared.held).clone()
    }

    /// Cuts the connections whose request is held.
    pub fn release(&self) {
        *lock(&self.shared.held) = None;
        self.shared.released.send_modify(|count| *count += 1);
    }

    /// Requests so far, by verb and resource.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.shared.rules).counts().clone()
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(serve(stream, acceptor.clone(), Arc::clone(&shared)));
    }
}

/// One connection of a client. It has one to the API server of its own, which lives as long.
async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    stream.set_nodelay(true).ok();
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let upstream = Arc::new(tokio::sync::Mutex::new(None));
    let service = service_fn(move |request| {
        let (shared, upstream) = (Arc::clone(&shared), Arc::clone(&upstream));
        async move { handle(shared, upstream, request).await }
    });
    // An error here is a cut that a rule asked for, or a client that went away.
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

type Upstream = Arc<tokio::sync::Mutex<Option<SendRequest<Full<Bytes>>>>>;
type Answer = Response<BoxBody<Bytes, io::Error>>;

/// The connection ends here.
fn cut() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

async fn handle(shared: Arc<Shared>, upstream: Upstream, request: Request<Incoming>) -> io::Result<Answer> {
    let asked = Asked::of(request.method().as_str(), request.uri().path(), request.uri().query().unwrap_or_default());
    let effect = lock(&shared.rules).decide(&asked);
    match effect {
        Some(Effect::Answer(code)) => return refused(code),
        Some(Effect::ExpireStream) => return json(StatusCode::OK, expired_event()),
        Some(Effect::CutBefore) => return Err(cut()),
        Some(Effect::HoldBefore) => return Err(hold(&shared, asked).await),
        Some(Effect::Delay(_) | Effect::CutAfter | Effect::HoldAfter) | None => {}
    }
    let mut connection = upstream.lock().await;
    let (response, sender) = forward(&shared, connection.take(), request).await?;
    if asked.verb == Verb::Watch {
        // The stream has this connection to the API server for itself.
        drop(connection);
        if let Some(Effect::Delay(delay)) = effect {
            tokio::time::sleep(delay).await;
        }
        let (head, body) = response.into_parts();
        return Ok(Response::from_parts(head, streamed(shared, asked, body, sender).boxed()));
    }
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    *connection = Some(sender);
    drop(connection);
    match effect {
        Some(Effect::CutAfter) => return Err(cut()),
        Some(Effect::HoldAfter) => return Err(hold(&shared, asked).await),
        Some(Effect::Delay(delay)) => tokio::time::sleep(delay).await,
        _ => {}
    }
    Ok(Response::from_parts(head, whole(body)))
}

/// Waits for `release`.
async fn hold(shared: &Shared, asked: Asked) -> io::Error {
    let mut released = shared.released.subscribe();
    *lock(&shared.held) = Some(asked);
    released.changed().await.ok();
    cut()
}

fn whole(body: impl Into<Bytes>) -> BoxBody<Bytes, io::Error> {
    Full::new(body.into()).map_err(|error: Infallible| match error {}).boxed()
}

fn json(code: StatusCode, body: String) -> io::Result<Answer> {
    let mut response = Response::new(whole(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn refused(code: u16) -> io::Result<Answer> {
    let mut response = json(StatusCode::from_u16(code).map_err(io::Error::other)?, status(code).to_string())?;
    if code == 429 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
    Ok(response)
}

/// Passes a request on, over this connection if it still stands.
async fn forward(
    shared: &Shared,
    connection: Option<SendRequest<Full<Bytes>>>,
    request: Request<Incoming>,
) -> io::Result<(Response<Incoming>, SendRequest<Full<Bytes>>)> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let mut standing = None;
    if let Some(mut sender) = connection {
        standing = sender.ready().await.is_ok().then_some(sender);
    }
    let mut sender = match standing {
        Some(sender) => sender,
        None => connect(shared).await?,
    };
    let response = sender.send_request(Request::from_parts(head, Full::new(body))).await.map_err(io::Error::other)?;
    Ok((response, sender))
}

async fn connect(shared: &Shared) -> io::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(shared.upstream).await?;
    stream.set_nodelay(true)?;
    let stream = shared.connector.connect(ServerName::from(shared.upstream.ip()), stream).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}

/// A body that comes through a channel.
struct Streamed(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|received| received.map(|data| data.map(Frame::data)))
    }
}

type Late = (Instant, io::Result<Bytes>);

fn streamed(shared: Arc<Shared>, asked: Asked, body: Incoming, sender: SendRequest<Full<Bytes>>) -> Streamed {
    let (late, mut waiting) = mpsc::channel::<Late>(EVENTS_MAX);
    let (out, received) = mpsc::channel(1);
    // Two tasks: what is late must not keep what follows from being read, or a delay would add up.
    tokio::spawn(async move {
        pump(&shared, &asked, body, &late).await;
        drop(sender);
    });
    tokio::spawn(async move {
        while let Some((due, data)) = waiting.recv().await {
            tokio::time::sleep_until(due).await;
            if out.send(data).await.is_err() {
                return;
            }
        }
    });
    Streamed(received)
}

async fn pump(shared: &Shared, asked: &Asked, mut body: Incoming, late: &mpsc::Sender<Late>) {
    let mut breaks = shared.breaks.subscribe();
    // Events are lines; our own one goes between two of them.
    let mut between = true;
    loop {
        let data = tokio::select! {
            frame = body.frame() => match frame.map(|frame| frame.map(Frame::into_data)) {
                None => return,
                Some(Ok(Ok(data))) => data,
                Some(Ok(Err(_))) => continue,
                Some(Err(error)) => {
                    late.send((Instant::now(), Err(io::Error::other(error)))).await.ok();
                    return;
                }
            },
            changed = breaks.changed() => {
                let how = *breaks.borrow_and_update();
                let last = if changed.is_ok() && how == Some(Break::Expire) && between { Ok(expired_event().into()) } else { Err(cut()) };
                late.send((Instant::now(), last)).await.ok();
                return;
            }
            () = late.closed() => return,
        };
        between = data.ends_with(b"\n");
        let due = Instant::now() + lock(&shared.rules).latency(asked);
        if late.send((due, Ok(data))).await.is_err() {
            return;
        }
    }
}
