//! TLS towards the next hop: any certificate (Opportunistic), or one that verifies for the host (Required).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of roots.
    #[error("root certificates in {path}: {why}")]
    Roots {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The library.
    #[error("TLS cannot be set up: {0}")]
    Library(#[from] Error),
}

/// The two ways.
#[derive(Clone)]
pub(super) struct TlsConfigs {
    /// Any certificate.
    pub(super) any: Arc<ClientConfig>,
    /// One that verifies; `Err` says why there are no roots.
    pub(super) verified: Result<Arc<ClientConfig>, String>,
}

impl TlsConfigs {
    pub(super) fn new(roots: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let any = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(Arc::clone(&provider))))
            .with_no_client_auth();
        let verified = match read_roots(roots)? {
            Some(store) => Ok(Arc::new(
                ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(store)
                    .with_no_client_auth(),
            )),
            None => Err(format!("there are no root certificates: {} does not exist", roots.display())),
        };
        Ok(Self { any: Arc::new(any), verified })
    }
}

/// `None`: no such file.
fn read_roots(path: &Path) -> Result<Option<RootCertStore>, TlsError> {
    let wrong = |why: String| TlsError::Roots { path: path.to_owned(), why };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let mut store = RootCertStore::empty();
    let mut found = vec![];
    for certificate in CertificateDer::pem_slice_iter(&text) {
        found.push(certificate.map_err(|error| wrong(error.to_string()))?);
    }
    let (added, _) = store.add_parsable_certificates(found);
    if added == 0 {
        return Err(wrong("no certificate in it; give a PEM file of root certificates".into()));
    }
    Ok(Some(store))
}

/// Takes every certificate, but still wants the handshake signed with its key: against listeners, not against men in the middle (RFC 7435).
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
