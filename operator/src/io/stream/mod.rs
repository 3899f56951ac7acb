//! The stream's server: TLS, tokens, and one session for each gateway.
//!
//! It listens from the start of the process and answers "not leader" until [`StreamServer::lead`]; then the [`Hub`] says who may follow what.

mod connection;
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
use sekimori_crds::stream::{FromGateway, MESSAGE_BYTES_MAX, TOKEN_REVIEW_EVERY_MS, ToGateway};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::identity::{Identity, Refusal};
use crate::io::clock;
use crate::io::hub::Hub;
use crate::limiter::Limiter;

use connection::Peer;
pub use metrics::StreamMetrics;
pub use review::KubeReviewer;
use review::Remembered;
pub use tls::{Certificates, TlsError};

/// A gateway that went without a word is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Streams of one connection at once.
const STREAMS_PER_CONNECTION: u32 = 4;
/// Messages that wait for one gateway, beside those in its connection's buffers.
const MESSAGES_WAITING_MAX: usize = 2;

/// What strangers may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; a gateway has one. 4096.
    pub connections: usize,
    /// Of them, those of one address. Nodes may stand before their pods. 256.
    pub connections_per_address: usize,
    /// A connection through which no gateway follows ends after this. 30 s.
    pub idle: Duration,
    /// Streams that one address may try to begin: so many at once, and then so many a second. (20, 2)
    pub attempts: (u32, u32),
    /// The API server is asked again about the token of a stream after so long. [`TOKEN_REVIEW_EVERY_MS`].
    pub review_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 256,
            idle: Duration::from_secs(30),
            attempts: (20, 2),
            review_every: Duration::from_millis(TOKEN_REVIEW_EVERY_MS),
        }
    }
}

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
    tls: PathBuf,
    certificates: Arc<Certificates>,
    hub: Arc<ArcSwapOption<Hub>>,
}

impl StreamServer {
    /// Binds and serves, for as long as the process lives. `tls` is a directory with `tls.crt` and `tls.key`, looked at again every ten seconds.
    ///
    /// # Errors
    /// The address cannot be bound, or the certificate cannot be used.
    pub async fn start(listen: SocketAddr, tls: PathBuf, reviewer: Arc<dyn TokenReviewer>, metrics: Arc<StreamMetrics>) -> anyhow::Result<Self> {
        Self::start_with(listen, tls, reviewer, metrics, Limits::default()).await
    }

    /// The same, with other limits.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        listen: SocketAddr,
        tls: PathBuf,
        reviewer: Arc<dyn TokenReviewer>,
        metrics: Arc<StreamMetrics>,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let certificates = Certificates::read(&tls)?;
        certificates.clone().watch(tls.clone());
        let listener = TcpListener::bind(listen).await.with_context(|| format!("--listen {listen}"))?;
        let address = listener.local_addr()?;
        let hub = Arc::new(ArcSwapOption::empty());
        let limiter = Mutex::new(Limiter::new(limits.attempts.0, limits.attempts.1));
        let service = Service { hub: Arc::clone(&hub), reviewer, remembered: Mutex::default(), metrics, limiter, review_every: limits.review_every };
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&certificates.config));
        let service = ConfigurationServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .add_service(service)
            .serve_with_incoming(connection::accepted(listener, acceptor, limits));
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the stream's server ended: gateways go on with the configuration that they have");
            }
        });
        Ok(Self { address, tls, certificates, hub })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Looks at the certificate now, and not only when its time has come.
    pub fn look_at_certificate(&self) {
        self.certificates.look(&self.tls);
    }

    /// This process holds the Lease now: gateways are served from this hub.
    pub fn lead(&self, hub: Hub) {
        self.hub.store(Some(Arc::new(hub)));
    }
}

struct Service {
    hub: Arc<ArcSwapOption<Hub>>,
    reviewer: Arc<dyn TokenReviewer>,
    remembered: Mutex<Remembered>,
    metrics: Arc<StreamMetrics>,
    limiter: Mutex<Limiter<IpAddr>>,
    review_every: Duration,
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

    fn unavailable(&self, label: &str, why: String) -> Status {
        self.metrics.refused.with_label_values(&[label]).inc();
        Status::unavailable(why)
    }

    async fn begin(&self, request: &Request<Streaming<FromGateway>>) -> Result<(Hub, Identity, String), Status> {
        let hub = self.hub.load_full().ok_or_else(|| self.unavailable("not_leader", "not leader: ask again".to_owned()))?;
        // Every connection says who it is; one that did not would share the bound with its like.
        let address = request.extensions().get::<Peer>().map_or_else(|| IpAddr::from([0; 16]), |peer| peer.address.ip());
        let allowed = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).allows(address, clock::unix_ms());
        if !allowed {
            return Err(self.refuse(Refusal::TooMany));
        }
        let token = bearer(request).ok_or_else(|| self.refuse(Refusal::NoToken))?;
        let known = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).find(&token, clock::unix_ms());
        if let Some(identity) = known {
            return Ok((Hub::clone(&hub), identity, token));
        }
        match self.reviewer.review(&token).await {
            Ok(identity) => {
                self.remembered.lock().unwrap_or_else(PoisonError::into_inner).keep(&token, identity.clone(), clock::unix_ms());
                Ok((Hub::clone(&hub), identity, token))
            }
            Err(ReviewError::Refused(refusal)) => Err(self.refuse(refusal)),
            Err(ReviewError::Unavailable(why)) => {
                Err(self.unavailable("unreviewed", format!("the API server cannot be asked about the token, try again: {why}")))
            }
        }
    }
}

#[tonic::async_trait]
impl Configuration for Service {
    type FollowStream = ReceiverStream<Result<ToGateway, Status>>;

    async fn follow(&self, request: Request<Streaming<FromGateway>>) -> Result<Response<Self::FollowStream>, Status> {
        let (hub, identity, token) = self.begin(&request).await?;
        let (sender, receiver) = mpsc::channel(MESSAGES_WAITING_MAX);
        let session = session::Session {
            hub,
            identity,
            token,
            review_every: self.review_every,
            peer: request.extensions().get::<Peer>().cloned(),
            reviewer: Arc::clone(&self.reviewer),
            metrics: Arc::clone(&self.metrics),
            outbound: sender.clone(),
            inbound: request.into_inner(),
        };
        tokio::spawn(async move {
            let status = session.run().await;
            // A gateway that takes nothing, or is gone, is not waited for: the end of the stream says enough.
            if sender.try_send(Err(status)).is_err() {
                tracing::debug!("the gateway was not told why its stream ends");
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[cfg(test)]
mod tests;
