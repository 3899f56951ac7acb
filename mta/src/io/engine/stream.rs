//! A stream to an engine: TCP or a unix socket.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::Instant;

use crate::engine::harmless;
use crate::verdict::Failure;

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `host:port`; names are resolved by the system.
    Tcp(String),
    /// Path of a unix socket.
    Unix(PathBuf),
}

/// Bytes both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// How long a resolved name is used again: an engine that closes each connection must not cost a look-up per message, and one that moves is found soon.
const RESOLVED_FOR: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Where an engine listens, and what its name last was.
pub(super) struct Endpoint {
    address: Address,
    resolved: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Endpoint {
    pub(super) const fn new(address: Address) -> Self {
        Self { address, resolved: Mutex::new(None) }
    }

    /// A new connection. The guard's deadline bounds it.
    pub(super) async fn connect(&self) -> Result<Box<dyn Duplex>, Failure> {
        let stream = match &self.address {
            Address::Tcp(name) => self.connect_tcp(name).await,
            Address::Unix(path) => UnixStream::connect(path).await.map(|stream| Box::new(stream) as Box<dyn Duplex>),
        };
        stream.map_err(|e| self.unreachable(&format!("cannot connect: {e}")))
    }

    async fn connect_tcp(&self, name: &str) -> io::Result<Box<dyn Duplex>> {
        let addresses = self.addresses(name).await?;
        let stream = TcpStream::connect(&*addresses).await.inspect_err(|_| self.remember(None))?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let known = self.resolved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((since, addresses)) = known
            && since.elapsed() < RESOLVED_FOR
        {
            return Ok(addresses);
        }
        let addresses: Vec<SocketAddr> = lookup_host(name).await?.take(ADDRESSES_MAX).collect();
        self.remember(Some((Instant::now(), addresses.clone())));
        Ok(addresses)
    }

    fn remember(&self, resolved: Option<(Instant, Vec<SocketAddr>)>) {
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = resolved;
    }

    /// The failure that names this address.
    pub(super) fn unreachable(&self, why: &str) -> Failure {
        let text = match &self.address {
            Address::Tcp(address) => format!("{address}: {why}"),
            Address::Unix(path) => format!("{}: {why}", path.display()),
        };
        Failure::Unreachable(harmless(text.as_bytes()))
    }
}
