//! TLS of the listeners: certificates by SNI, rustls with aws-lc-rs.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sekimori_crds::snapshot::{CertificatePart, ListenerPart};
use sekimori_crds::vocabulary::ListenerTls;

/// Why a certificate cannot be used. Never shows key material.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// `tls.crt` has no usable certificate.
    #[error("listener {listener}: Secret {secret}: tls.crt holds no certificate that can be read ({cause})")]
    Chain {
        /// Listener.
        listener: String,
        /// Secret.
        secret: String,
        /// Cause.
        cause: String,
    },
    /// `tls.key` is no usable key.
    #[error("listener {listener}: Secret {secret}: tls.key holds no private key that can be used ({cause})")]
    Key {
        /// Listener.
        listener: String,
        /// Secret.
        secret: String,
        /// Cause.
        cause: String,
    },
    /// Nothing was refused by us, but rustls would not have it.
    #[error("listener {listener}: {cause}")]
    Config {
        /// Listener.
        listener: String,
        /// Cause.
        cause: String,
    },
}

/// The acceptor's configuration of a listener; `None` with TLS disabled or without a certificate.
pub fn server_config(listener: &ListenerPart) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    if listener.tls == ListenerTls::Disabled || listener.certificates.is_empty() {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let keys = listener.certificates.iter().map(|part| certified_key(&listener.name, part, &provider)).collect::<Result<Vec<_>, _>>()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Config { listener: listener.name.clone(), cause: error.to_string() })?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(BySni(keys)));
    Ok(Some(Arc::new(config)))
}

/// Whether a certificate and its key can be used.
pub fn check(listener: &str, part: &CertificatePart) -> Result<(), TlsError> {
    certified_key(listener, part, &rustls::crypto::aws_lc_rs::default_provider()).map(drop)
}

/// When a certificate ends, seconds since 1970; `None` where it cannot be read.
pub fn not_after(part: &CertificatePart) -> Option<u64> {
    let first = CertificateDer::pem_slice_iter(part.chain_pem.as_bytes()).next()?.ok()?;
    crate::certificate::not_after(&first)
}

/// Whether a certificate is for a name.
pub fn is_for(part: &CertificatePart, hostname: &str) -> bool {
    let first = CertificateDer::pem_slice_iter(part.chain_pem.as_bytes()).next().and_then(Result::ok);
    let parsed = first.as_ref().and_then(|der| ParsedCertificate::try_from(der).ok());
    let name = ServerName::try_from(hostname).ok();
    parsed.zip(name).is_some_and(|(certificate, name)| verify_server_name(&certificate, &name).is_ok())
}

fn certified_key(listener: &str, part: &CertificatePart, provider: &rustls::crypto::CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain_error = |cause: String| TlsError::Chain { listener: listener.to_owned(), secret: part.name.clone(), cause };
    let key_error = |cause: String| TlsError::Key { listener: listener.to_owned(), secret: part.name.clone(), cause };
    let chain = CertificateDer::pem_slice_iter(part.chain_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|e| chain_error(e.to_string()))?;
    let Some(leaf) = chain.first() else { return Err(chain_error("no CERTIFICATE block".into())) };
    // Else the key would be blamed for not belonging to it.
    ParsedCertificate::try_from(leaf).map_err(|error| chain_error(format!("what is in its CERTIFICATE block is none: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(part.key_pem.as_bytes()).map_err(|e| key_error(e.to_string()))?;
    let signing = provider.key_provider.load_private_key(key).map_err(|e| key_error(e.to_string()))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|e| key_error(format!("it does not belong to the certificate: {e}")))?;
    Ok(Arc::new(certified))
}

/// The first certificate that is valid for the name that the client asks for, else the first.
#[derive(Debug)]
struct BySni(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| self.0.iter().find(|key| covers(key, &name)));
        named.or_else(|| self.0.first()).cloned()
    }
}

fn covers(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    key.end_entity_cert().ok().and_then(|der| ParsedCertificate::try_from(der).ok()).is_some_and(|cert| verify_server_name(&cert, name).is_ok())
}

/// `TLSv1.3 TLS13_AES_256_GCM_SHA384`, for `Received` and the log.
pub fn describe(connection: &rustls::ServerConnection) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLS",
    };
    let suite = connection.negotiated_cipher_suite().map_or_else(String::new, |suite| format!(" {:?}", suite.suite()));
    format!("{version}{suite}")
}

#[cfg(test)]
pub(crate) mod tests {
    use sekimori_crds::snapshot::ListenerLimits;
    use sekimori_crds::units::ByteSize;
    use sekimori_crds::vocabulary::{BareLineEndings, ListenerRole};

    use super::*;

    fn part(names: &[&str]) -> CertificatePart {
        let made = rcgen::generate_simple_self_signed(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).expect("a certificate");
        CertificatePart { name: names.join("-"), chain_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }

    pub(crate) fn listener(certificates: Vec<CertificatePart>) -> ListenerPart {
        ListenerPart {
            name: "smtp".into(),
            port: 0,
            role: ListenerRole::Inbound,
            tls: ListenerTls::Opportunistic,
            certificates,
            proxy_trusted_networks: None,
            bare_line_endings: BareLineEndings::Refuse,
            limits: ListenerLimits { connections: 1, connections_per_address: 1, messages_per_session: 1, recipients: 1, message_size: ByteSize(1) },
        }
    }

    #[test]
    fn wrong_certificates_are_named_and_keys_are_not_shown() {
        let good = part(&["mx.example"]);
        assert!(server_config(&listener(vec![good.clone()])).expect("usable").is_some());
        assert!(server_config(&listener(vec![])).expect("none").is_none());
        let foreign = CertificatePart { key_pem: part(&["other.example"]).key_pem, ..good.clone() };
        let empty = CertificatePart { chain_pem: String::new(), ..good.clone() };
        let nonsense = CertificatePart { chain_pem: "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n".into(), ..good.clone() };
        let garbage = CertificatePart { key_pem: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".into(), ..good.clone() };
        for (wrong, what) in [
            (foreign, "does not belong"),
            (empty, "tls.crt holds no certificate"),
            (nonsense, "tls.crt holds no certificate"),
            (garbage, "tls.key holds no private key"),
        ] {
            let text = server_config(&listener(vec![wrong.clone()])).expect_err(what).to_string();
            assert!(text.contains(what) && text.contains("listener smtp: Secret mx.example"), "{text}");
            assert!(!text.contains("PRIVATE KEY-----"), "{text}");
        }
        assert!(!format!("{good:?}").contains("PRIVATE"), "Debug must not show the key");
    }

    #[test]
    fn the_certificate_follows_the_name() {
        let parts = [part(&["a.example"]), part(&["b.example", "*.c.example"])];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let keys: Vec<_> = parts.iter().map(|p| certified_key("smtp", p, &provider).expect("usable")).collect();
        for (name, index) in [("a.example", 0), ("b.example", 1), ("x.c.example", 1)] {
            let name = ServerName::try_from(name).expect("a name");
            let found = keys.iter().position(|key| covers(key, &name));
            assert_eq!(found, Some(index), "{name:?}");
        }
    }
}
