//! A client of the API server: one connection, kept, and nothing else. Many of them at once make the load.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// One request may take so long.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A request that could not be answered (a connection that broke, 429, 5xx) is sent again so often.
const TRIES: u32 = 5;
/// The pause before it is.
const AGAIN: Duration = Duration::from_millis(200);

/// Where an API server is, and who asks.
pub(super) struct Access {
    host: String,
    name: ServerName<'static>,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

impl Access {
    /// As a kubeconfig of this harness says it: an IP address, and everything else in the file.
    pub(super) fn from_kubeconfig(path: &Path) -> anyhow::Result<Arc<Self>> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let config: serde_yaml::Value = serde_yaml::from_str(&text)?;
        let text = |names: [&str; 3]| {
            let [list, kind, field] = names;
            config[list][0][kind][field].as_str().map(str::to_owned).with_context(|| format!("{}: no {list}[0].{kind}.{field}", path.display()))
        };
        let pem = |field: [&str; 3]| base64::engine::general_purpose::STANDARD.decode(text(field)?).context("base64");
        let server = text(["clusters", "cluster", "server"])?;
        let host = server.strip_prefix("https://").with_context(|| format!("{server}: not https"))?.to_owned();
        let address: SocketAddr = host.parse().with_context(|| format!("{server}: an address and a port were expected"))?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem(["clusters", "cluster", "certificate-authority-data"])?) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&pem(["users", "user", "client-certificate-data"])?).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem(["users", "user", "client-key-data"])?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Arc::new(Self { host, name: ServerName::IpAddress(address.ip().into()), address, tls: Arc::new(tls) }))
    }

    /// A connection, made when it is first needed.
    pub(super) fn connection(self: &Arc<Self>) -> Connection {
        Connection { access: Arc::clone(self), sender: None }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    /// POST: that it is there already is no error when it was asked for a second time.
    Create,
    /// PATCH with a JSON merge patch.
    Merge,
}

/// A kept connection.
pub(super) struct Connection {
    access: Arc<Access>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// An object or a list, as the type that the caller needs of it.
    pub(super) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> anyhow::Result<T> {
        let body = self.send(Verb::Get, path, Bytes::new()).await?;
        serde_json::from_slice(&body).with_context(|| format!("GET {path}"))
    }

    /// Text, such as a log.
    pub(super) async fn text(&mut self, path: &str) -> anyhow::Result<String> {
        let body = self.send(Verb::Get, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Creates an object in the collection at a path.
    pub(super) async fn create(&mut self, path: &str, object: &Value) -> anyhow::Result<()> {
        self.send(Verb::Create, path, Bytes::from(serde_json::to_vec(object)?)).await.map(drop)
    }

    /// Changes the object at a path.
    pub(super) async fn merge(&mut self, path: &str, patch: &Value) -> anyhow::Result<()> {
        self.send(Verb::Merge, path, Bytes::from(serde_json::to_vec(patch)?)).await.map(drop)
    }

    async fn send(&mut self, verb: Verb, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let mut last = None;
        for number in 0..TRIES {
            if number > 0 {
                tokio::time::sleep(AGAIN * number).await;
            }
            let answer = tokio::time::timeout(ANSWER_WITHIN, self.once(verb, path, body.clone())).await;
            match answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", ANSWER_WITHIN.as_secs()))) {
                Ok((status, answer)) if status.is_success() => return Ok(answer),
                Ok((StatusCode::CONFLICT, answer)) if verb == Verb::Create && number > 0 => return Ok(answer),
                Ok((status, answer)) => {
                    let said = serde_json::from_slice::<Value>(&answer).ok().and_then(|value| value["message"].as_str().map(str::to_owned));
                    let said = said.unwrap_or_else(|| String::from_utf8_lossy(&answer).into_owned());
                    if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
                        bail!("{verb:?} {path}: {status}: {said}");
                    }
                    last = Some(anyhow::anyhow!("{status}: {said}"));
                }
                Err(error) => {
                    self.sender = None;
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("not tried")).context(format!("{verb:?} {path}, tried {TRIES} times")))
    }

    async fn once(&mut self, verb: Verb, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            self.sender = Some(self.connect().await?);
        }
        let sender = self.sender.as_mut().context("connected above")?;
        sender.ready().await?;
        let (method, content) = match verb {
            Verb::Get => (Method::GET, "application/json"),
            Verb::Create => (Method::POST, "application/json"),
            Verb::Merge => (Method::PATCH, "application/merge-patch+json"),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.access.host)
            .header("accept", "application/json")
            .header("content-type", content)
            .body(Full::new(body))?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        Ok((parts.status, body.collect().await?.to_bytes()))
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.access.address).await.with_context(|| format!("the API server at {}", self.access.address))?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(Arc::clone(&self.access.tls)).connect(self.access.name.clone(), stream).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with its sender; what broke it is told to whoever sent.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Connections that many tasks share.
pub(super) struct Pool {
    free: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Connection>>,
    back: tokio::sync::mpsc::Sender<Connection>,
}

impl Pool {
    /// So many.
    pub(super) fn new(access: &Arc<Access>, size: usize) -> anyhow::Result<Arc<Self>> {
        ensure!(size > 0, "a pool of no connections");
        let (back, free) = tokio::sync::mpsc::channel(size);
        for _ in 0..size {
            back.try_send(access.connection())?;
        }
        Ok(Arc::new(Self { free: tokio::sync::Mutex::new(free), back }))
    }

    /// One that nobody uses; give it back.
    pub(super) async fn take(&self) -> anyhow::Result<Connection> {
        self.free.lock().await.recv().await.context("this pool holds its own sender")
    }

    /// Here it is.
    pub(super) fn give_back(&self, connection: Connection) {
        // There is room for all that were taken.
        self.back.try_send(connection).ok();
    }
}
