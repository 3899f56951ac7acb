//! The certificate of the operator's stream.

use base64::Engine as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_yaml::Value;
use tokio_rustls::rustls;

use crate::helm::{at, kind, list, object, render, strings, text};

const NAMES: [&str; 4] =
    ["sekimori-operator", "sekimori-operator.sekimori", "sekimori-operator.sekimori.svc", "sekimori-operator.sekimori.svc.cluster.local"];

fn data(secret: &Value, key: &str) -> Vec<u8> {
    let encoded = at(secret, "data").get(key).and_then(Value::as_str).unwrap_or_default();
    base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64")
}

#[test]
fn self_made_a_client_that_trusts_the_authority_takes_the_certificate() {
    let objects = render(&[]);
    let tls = object(&objects, "Secret", "sekimori-operator-tls");
    let authorities: Vec<_> = CertificateDer::pem_slice_iter(&data(tls, "ca.crt")).collect::<Result<_, _>>().expect("PEM");
    assert_eq!(authorities.len(), 2, "the one in use and the next one");
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&data(tls, "tls.crt")).collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(&data(tls, "tls.key")).expect("a key");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().expect("versions");
    server.with_no_client_auth().with_single_cert(chain.clone(), key).expect("key and certificate belong together");

    let trusting = |authority: &CertificateDer<'static>| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.clone()).expect("an authority");
        rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build().expect("a verifier")
    };
    let (leaf, rest) = chain.split_first().expect("a certificate");
    let takes = |authority, name: &'static str| {
        let name = ServerName::try_from(name).expect("a name");
        let now = rustls_pki_types::UnixTime::now();
        rustls::client::danger::ServerCertVerifier::verify_server_cert(&*trusting(authority), leaf, rest, &name, &[], now).is_ok()
    };
    let [current, next] = authorities.as_slice() else { panic!("two") };
    for name in NAMES {
        assert!(takes(current, name), "{name}");
        assert!(!takes(next, name), "{name}: the next authority has signed nothing yet");
    }
    assert!(!takes(current, "other.sekimori.svc"));
}

#[test]
fn self_made_the_key_of_an_authority_is_mounted_nowhere() {
    let objects = render(&[]);
    let tls = object(&objects, "Secret", "sekimori-operator-tls");
    let keys: Vec<_> = at(tls, "data").as_mapping().expect("data").keys().filter_map(Value::as_str).collect();
    assert_eq!(keys, ["tls.crt", "tls.key", "ca.crt"]);
    let authority = object(&objects, "Secret", "sekimori-operator-ca");
    assert!(at(authority, "data").get("current.key").is_none(), "it has signed what it was made for");
    let operator = object(&objects, "Deployment", "sekimori-operator");
    let volumes = list(operator, "spec/template/spec/volumes");
    assert_eq!(volumes.len(), 1);
    assert_eq!(text(operator, "spec/template/spec/volumes/0/secret/secretName"), "sekimori-operator-tls");
    assert_eq!(list(operator, "spec/template/spec/volumes/0/secret/items").len(), 3);
    assert!(at(operator, "spec/template/spec/containers/0/volumeMounts/0/subPath").is_null(), "a subPath is never updated");
}

#[test]
fn by_cert_manager() {
    let objects = render(&["certificates.mode=CertManager"]);
    assert!(kind(&objects, "Secret").is_empty());
    let certificate = object(&objects, "Certificate", "sekimori-operator-tls");
    assert_eq!(strings(certificate, "spec/dnsNames"), NAMES);
    assert!(strings(certificate, "spec/usages").contains(&"server auth"));
    assert_eq!(text(certificate, "spec/secretName"), "sekimori-operator-tls");
    assert!(!text(certificate, "spec/duration").is_empty() && !text(certificate, "spec/renewBefore").is_empty());
    let issuer = text(certificate, "spec/issuerRef/name");
    assert_eq!(text(object(&objects, "Issuer", issuer), "spec/ca/secretName"), "sekimori-operator-ca");
    let given = render(&[
        "certificates.mode=CertManager",
        "certificates.certManager.issuerRef.name=ours",
        "certificates.certManager.issuerRef.kind=ClusterIssuer",
    ]);
    assert!(kind(&given, "Issuer").is_empty());
    let certificate = object(&given, "Certificate", "sekimori-operator-tls");
    assert_eq!((text(certificate, "spec/issuerRef/name"), text(certificate, "spec/issuerRef/kind")), ("ours", "ClusterIssuer"));
}
