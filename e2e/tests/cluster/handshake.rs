//! STARTTLS with a gateway: which certificate it offers. And certificates to give it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

/// No step of a handshake takes longer.
const WITHIN: Duration = Duration::from_secs(10);

/// A certificate that vouches for itself.
pub(crate) struct Certificate {
    pub(crate) pem: String,
    pub(crate) key: String,
    pub(crate) der: Vec<u8>,
}

impl Certificate {
    /// For a name, until a year.
    pub(crate) fn new(name: &str, until_year: i32) -> anyhow::Result<Self> {
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()])?;
        parameters.not_before = rcgen::date_time_ymd(2019, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let key = rcgen::KeyPair::generate()?;
        let certificate = parameters.self_signed(&key)?;
        Ok(Self { pem: certificate.pem(), key: key.serialize_pem(), der: certificate.der().to_vec() })
    }
}

/// The certificate that a listener offers after STARTTLS.
pub(crate) fn leaf(listener: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&listener, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut write = &stream;
    reply(&mut reader, "220")?;
    write.write_all(b"EHLO client.example\r\n")?;
    let extensions = reply(&mut reader, "250")?;
    ensure!(extensions.contains("STARTTLS"), "STARTTLS is not offered: {extensions}");
    write.write_all(b"STARTTLS\r\n")?;
    reply(&mut reader, "220")?;
    let provider = Arc::new(default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakesAny(provider)))
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("mx.gate.example")?)?;
    let mut socket = &stream;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    let leaf = connection.peer_certificates().and_then(<[_]>::first).map(|certificate| certificate.to_vec());
    leaf.context("no certificate")
}

/// A whole reply; an error if it is another one.
fn reply(reader: &mut BufReader<TcpStream>, code: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the gateway hung up after {text:?}");
        ensure!(line.starts_with(code), "{line}");
        let last = !line.starts_with(&format!("{code}-"));
        text.push_str(&line);
        if last {
            return Ok(text);
        }
    }
}

/// What is offered is looked at, not trusted.
#[derive(Debug)]
struct TakesAny(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for TakesAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
