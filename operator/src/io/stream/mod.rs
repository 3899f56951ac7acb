//! The stream's server: TLS, tokens, and one session for each gateway.
//!
//! It listens from the start of the process and answers "not leader" until [`StreamServer::lead`]; then the [`Hub`] says who may follow what.

mod metrics;
mod review;
mod session;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use sekimori_crds::stream::configuration_server::{Configuration, ConfigurationServer};
use sekimori_crds::stream::{FromGateway, MESSAGE_BYTES_MAX, ToGateway};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::identity::{Identity, Refusal};
use crate::io::clock;
use crate::io::hub::Hub;
use crate::limiter::Limiter;

pub use metrics::StreamMetrics;
pub use review::KubeReviewer;
pub use tls::{Certificates, TlsError};

/// Connections at once; a fleet has one a pod.
const CONNECTIONS_MAX: usize = 4096;
/// A TLS handshake may take so long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A gateway that went without a word is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Streams of one connection at once.
const STREAMS_PER_CONNECTION: u32 = 4;
/// Pieces that wait for one gateway.
const PIECES_WAITING_MAX: usize = 2;
/// Attempts of one address: so many at once, and then so many a second.
const ATTEMPTS: (u32, u32) = (20, 2);

/// Why a review came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReviewError {
    /// The token is not taken.
    Refused(Refusal),
    /// The API server could not be asked.
    Unavailable(String),
}

/// Asks the API server about a token.
pub trait TokenReviewer: Send + Sync + 'static {
    /// Who it belongs to.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Identity, ReviewError>>;
}

/// A running server.
pub struct StreamServer {
    address: SocketAddr,
    hub: Arc<ArcSwapOption<Hub>>,
}

impl StreamServer {
    /// Binds and serves, for as long as the process lives. `tls` is a directory with `tls.crt` and `tls.key`, looked at again every ten seconds.
    ///
    /// # Errors
    /// The address cannot be bound, or the certificate cannot be used.
    pub async fn start(listen: SocketAddr, tls: PathBuf, reviewer: Arc<dyn TokenReviewer>, metrics: Arc<StreamMetrics>) -> anyhow::Result<Self> {
        let certificates = Certificates::read(&tls)?;
        certificates.clone().watch(tls);
        let listener = TcpListener::bind(listen).await.with_context(|| format!("--listen {listen}"))?;
        let address = listener.local_addr()?;
        let hub = Arc::new(ArcSwapOption::empty());
        let service = Service { hub: Arc::clone(&hub), reviewer, metrics, limiter: Arc::new(Mutex::new(Limiter::new(ATTEMPTS.0, ATTEMPTS.1))) };
        let service = ConfigurationServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .add_service(service)
            .serve_with_incoming(accepted(listener, certificates));
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the stream's server ended: gateways go on with the configuration that they have");
            }
        });
        Ok(Self { address, hub })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// This process holds the Lease now: gateways are served from this hub.
    pub fn lead(&self, hub: Hub) {
        self.hub.store(Some(Arc::new(hub)));
    }
}

type Accepted = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

/// Connections past their handshake. Bounded in number, and none holds up another.
fn accepted(listener: TcpListener, certificates: Arc<Certificates>) -> ReceiverStream<std::io::Result<Accepted>> {
    let (sender, receiver) = mpsc::channel(16);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&certificates.config));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
                if sender.send(Ok(stream)).await.is_err() {
                    tracing::debug!("the server is gone");
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

struct Service {
    hub: Arc<ArcSwapOption<Hub>>,
    reviewer: Arc<dyn TokenReviewer>,
    metrics: Arc<StreamMetrics>,
    limiter: Arc<Mutex<Limiter<IpAddr>>>,
}

fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::NoToken | Refusal::NotAuthenticated | Refusal::WrongAudience => Status::unauthenticated(refusal.to_string()),
        Refusal::TooMany => Status::resource_exhausted(refusal.to_string()),
        Refusal::NotAServiceAccount | Refusal::NotBoundToAPod | Refusal::NotAGateway | Refusal::AnotherPod => {
            Status::permission_denied(refusal.to_string())
        }
    }
}

fn bearer<T>(request: &Request<T>) -> Option<String> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(str::trim).filter(|token| !token.is_empty()).map(str::to_owned)
}

impl Service {
    fn refuse(&self, refusal: Refusal) -> Status {
        self.metrics.refused.with_label_values(&[refusal.label()]).inc();
        refused(refusal)
    }

    async fn begin(&self, request: &Request<Streaming<FromGateway>>) -> Result<(Hub, Identity, String), Status> {
        let hub = self.hub.load_full().ok_or_else(|| Status::unavailable("not leader: ask again"))?;
        let peer = request.remote_addr().map(|address| address.ip());
        let allowed = peer.is_none_or(|peer| self.limiter.lock().unwrap_or_else(PoisonError::into_inner).allows(peer, clock::unix_ms()));
        if !allowed {
            return Err(self.refuse(Refusal::TooMany));
        }
        let token = bearer(request).ok_or_else(|| self.refuse(Refusal::NoToken))?;
        match self.reviewer.review(&token).await {
            Ok(identity) => Ok((Hub::clone(&hub), identity, token)),
            Err(ReviewError::Refused(refusal)) => Err(self.refuse(refusal)),
            Err(ReviewError::Unavailable(why)) => Err(Status::unavailable(format!("the API server cannot be asked about the token: {why}"))),
        }
    }
}

#[tonic::async_trait]
impl Configuration for Service {
    type FollowStream = ReceiverStream<Result<ToGateway, Status>>;

    async fn follow(&self, request: Request<Streaming<FromGateway>>) -> Result<Response<Self::FollowStream>, Status> {
        let (hub, identity, token) = self.begin(&request).await?;
        let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let session = session::Session {
            hub,
            identity,
            token,
            reviewer: Arc::clone(&self.reviewer),
            metrics: Arc::clone(&self.metrics),
            outbound: sender.clone(),
            inbound: request.into_inner(),
        };
        tokio::spawn(async move {
            let status = session.run().await;
            // The gateway may be gone already; then nobody wants to know why.
            if sender.send(Err(status)).await.is_err() {
                tracing::debug!("the gateway was gone first");
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[cfg(test)]
mod tests;
