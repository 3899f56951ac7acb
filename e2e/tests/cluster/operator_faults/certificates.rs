//! The certificate that the operator's stream is served with.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::installation::{Installation, NAMESPACE};

/// A handshake with the leader as a gateway makes it, trusting what gateways trust now; the certificate that it showed.
pub(super) fn served(installation: &Installation<'_>) -> anyhow::Result<Vec<u8>> {
    let authority = installation.text("configmap/quickstart-operator-authority", "/data/ca.crt")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let address = installation.service("sekimori-operator")?;
    let name = ServerName::try_from(format!("sekimori-operator.{NAMESPACE}.svc"))?;
    let handshake = async {
        let stream = TcpStream::connect(address).await?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).context("no certificate")?.to_vec();
        anyhow::Ok(shown)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), handshake).await })?
}
