//! The server's certificate: read from a directory, and again when it changed. Streams that are open stay open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The files are looked at this often.
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// Why a certificate cannot be used. Never shows key material.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{path}: {cause}; the chart's value certificates.mode says who makes it")]
    File {
        /// Path.
        path: PathBuf,
        /// Cause.
        cause: String,
    },
    /// rustls would not have it.
    #[error("TLS: {0}")]
    Config(String),
}

/// What is in force.
#[derive(Debug)]
pub struct Certificates {
    pub(super) config: Arc<ServerConfig>,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificates {
    /// Reads `tls.crt` and `tls.key` of a directory.
    ///
    /// # Errors
    /// One is missing, or they cannot be used together.
    pub fn read(directory: &Path) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let current = Arc::new(Current(ArcSwap::from(key(directory)?)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Config(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(Self { config: Arc::new(config), current }))
    }

    /// Looks at the directory from time to time. A pair that cannot be used is told of, and the one in force stays.
    pub(super) fn watch(self: Arc<Self>, directory: PathBuf) {
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(WATCH_EVERY).await;
                self.look(&directory);
            }
        });
    }

    pub(super) fn look(&self, directory: &Path) {
        match key(directory) {
            Ok(read) if read.cert != self.current.0.load().cert => {
                self.current.0.store(read);
                tracing::info!(event = "certificate", "the stream's certificate was replaced");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the stream's certificate cannot be read again: the one in force stays"),
        }
    }
}

fn key(directory: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|error| TlsError::File { path, cause: error.to_string() })
    };
    let wrong = |name: &str, cause: String| TlsError::File { path: directory.join(name), cause };
    let chain =
        CertificateDer::pem_slice_iter(&read("tls.crt")?).collect::<Result<Vec<_>, _>>().map_err(|error| wrong("tls.crt", error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("tls.crt", "it holds no CERTIFICATE".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_slice(&read("tls.key")?).map_err(|error| wrong("tls.key", error.to_string()))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, private, &provider).map_err(|error| wrong("tls.key", error.to_string()))?;
    Ok(Arc::new(certified))
}
