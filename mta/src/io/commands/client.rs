//! A small HTTP client for the admin port of a running gateway, over TCP or a unix socket.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Where a gateway in a pod listens.
const DEFAULT_SOCKET: &str = "/run/sekimori/admin.sock";
/// Where a gateway alone listens.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8025";
/// A call may take this long; releasing many messages scans each of them again.
const CALL_WITHIN: Duration = Duration::from_secs(300);
/// An answer may be this large: a message of the largest size.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// A call that did not work.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody there.
    #[error("no gateway at {address}: {cause}; is it running, and is --admin right?")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        cause: std::io::Error,
    },
    /// The gateway refused.
    #[error("{0}")]
    Refused(String),
    /// The connection broke, or the answer is none.
    #[error("the gateway at {address} gave no answer: {cause}")]
    Broken {
        /// Where.
        address: String,
        /// Why.
        cause: String,
    },
}

/// The admin port of one gateway.
pub struct AdminClient {
    address: String,
}

impl AdminClient {
    /// The given address, or the default one.
    pub fn new(address: Option<String>) -> Self {
        let default = || if Path::new(DEFAULT_SOCKET).exists() { DEFAULT_SOCKET.to_owned() } else { DEFAULT_ADDRESS.to_owned() };
        Self { address: address.unwrap_or_else(default) }
    }

    /// GET; JSON.
    pub async fn get(&self, path: &str) -> Result<Value, CallError> {
        let bytes = self.call(Method::GET, path, None).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(error))
    }

    /// GET; bytes.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, CallError> {
        self.call(Method::GET, path, None).await
    }

    /// POST; JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        let bytes = self.call(Method::POST, path, Some(body)).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(error))
    }

    fn broken(&self, cause: impl std::fmt::Display) -> CallError {
        CallError::Broken { address: self.address.clone(), cause: cause.to_string() }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes, CallError> {
        let connect_error = |cause| CallError::Connect { address: self.address.clone(), cause };
        let call = async {
            if self.address.contains('/') {
                let stream = UnixStream::connect(self.address.trim_start_matches("unix:")).await.map_err(connect_error)?;
                self.exchange(stream, method, path, body).await
            } else {
                let stream = TcpStream::connect(&self.address).await.map_err(connect_error)?;
                self.exchange(stream, method, path, body).await
            }
        };
        tokio::time::timeout(CALL_WITHIN, call).await.unwrap_or_else(|_| Err(self.broken("it took more than 300 s")))
    }

    async fn exchange<S>(&self, stream: S, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes, CallError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(e))?;
        tokio::spawn(connection);
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.broken(e))?;
        let response = sender.send_request(request).await.map_err(|e| self.broken(e))?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| self.broken(e))?.to_bytes();
        if status.is_success() {
            return Ok(bytes);
        }
        let said = serde_json::from_slice::<Value>(&bytes).ok().and_then(|value| value.get("error").and_then(Value::as_str).map(str::to_owned));
        Err(CallError::Refused(said.unwrap_or_else(|| format!("{status}: {}", String::from_utf8_lossy(&bytes).trim()))))
    }
}
