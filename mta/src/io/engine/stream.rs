//! A stream to an engine: TCP or a unix socket.

use std::io;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::engine::harmless;
use crate::verdict::Failure;

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `host:port`; names are resolved by the system at each connection.
    Tcp(String),
    /// Path of a unix socket.
    Unix(PathBuf),
}

/// Bytes both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Address {
    /// A new connection. The guard's deadline bounds it.
    pub(super) async fn connect(&self) -> Result<Box<dyn Duplex>, Failure> {
        let stream: io::Result<Box<dyn Duplex>> = match self {
            Self::Tcp(address) => TcpStream::connect(address.as_str()).await.and_then(|stream| {
                stream.set_nodelay(true)?;
                Ok(Box::new(stream) as Box<dyn Duplex>)
            }),
            Self::Unix(path) => UnixStream::connect(path).await.map(|stream| Box::new(stream) as Box<dyn Duplex>),
        };
        stream.map_err(|e| self.unreachable(&format!("cannot connect: {e}")))
    }

    /// The failure that names this address.
    pub(super) fn unreachable(&self, why: &str) -> Failure {
        let text = match self {
            Self::Tcp(address) => format!("{address}: {why}"),
            Self::Unix(path) => format!("{}: {why}", path.display()),
        };
        Failure::Unreachable(harmless(text.as_bytes()))
    }
}
