//! Messages, envelopes and signatures for these tests.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use mail_auth::crypto::{Ed25519Key, RsaKey, Sha256};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sekimori_mta::authentication::Authentication;
use sekimori_mta::envelope::{Client, Envelope};
use sekimori_mta::io::auth::{Authenticator, Evaluator, Input, Wanted};
use sekimori_mta::io::dns::{BudgetLimits, Fake, Resolver};
use sekimori_mta::message::{HeaderField, Mailbox, Message};
use sekimori_mta::queue_id::QueueId;
use sekimori_mta::smtp::Address;

/// When these messages arrive, seconds since 1970.
pub(super) const NOW_S: u64 = 1_800_000_000;

/// A message as the parser would make it of well-formed mail; addresses of From stand in angle brackets.
pub(super) fn message(raw: impl Into<String>) -> Message {
    let raw = raw.into();
    let body_offset = raw.find("\r\n\r\n").map_or(raw.len(), |at| at + 4);
    let mut headers: Vec<HeaderField> = vec![];
    let mut start = 0;
    for line in raw.split_at(body_offset).0.split_inclusive("\r\n") {
        let end = start + line.len();
        if line.starts_with([' ', '\t']) {
            let field = headers.last_mut().expect("a field before its next line");
            field.whole.end = end;
            field.value.end = end - 2;
        } else if let Some(colon) = line.find(':') {
            headers.push(HeaderField { name: start..start + colon, value: start + colon + 1..end - 2, whole: start..end });
        }
        start = end;
    }
    let mut message = Message {
        raw: Bytes::from(raw),
        body_offset,
        headers,
        parts: vec![],
        from: vec![],
        from_fields: 0,
        subject: None,
        message_id: None,
        received_fields: 0,
        defects: vec![],
    };
    let from: Vec<String> = message.fields("from").map(|field| message.text(&field.value).into_owned()).collect();
    message.from_fields = from.len();
    message.from = from
        .iter()
        .flat_map(|value| value.split('<').skip(1).filter_map(|rest| rest.split('>').next()?.rsplit_once('@')))
        .map(|(local, domain)| Mailbox { name: None, local: local.into(), domain: domain.to_lowercase() })
        .collect();
    message
}

pub(super) fn envelope(client: &str, sender: Option<&str>) -> Envelope {
    Envelope {
        id: QueueId::new(NOW_S * 1000, 1),
        received_ms: NOW_S * 1000,
        client: Client {
            address: client.parse::<IpAddr>().expect("an address"),
            helo: "mail.helo.example".into(),
            esmtp: true,
            tls: None,
            address_known: true,
        },
        sender: sender.map(|sender| {
            let (local, domain) = sender.rsplit_once('@').expect("an address");
            Address { local: local.into(), domain: domain.into() }
        }),
        recipients: vec![],
        eight_bit: false,
        smtputf8: false,
    }
}

pub(super) async fn evaluate(resolver: Arc<dyn Resolver>, envelope: &Envelope, message: &Message) -> Authentication {
    Evaluator::new(resolver, BudgetLimits::default()).evaluate(Input { envelope, message, want: Wanted::ALL }).await
}

pub(super) async fn judge(fake: Fake, envelope: &Envelope, message: &Message) -> Authentication {
    evaluate(Arc::new(fake), envelope, message).await
}

/// A key of 2048 bits, made once, and its record.
pub(super) fn rsa() -> (RsaKey<Sha256>, String) {
    static KEY: OnceLock<Vec<u8>> = OnceLock::new();
    let der = KEY.get_or_init(|| rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("a key").serialize_der());
    let key = RsaKey::<Sha256>::from_key_der(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice()))).expect("a key");
    let record = format!("v=DKIM1; k=rsa; p={}", base64(&key.public_key()));
    (key, record)
}

/// A key and its record.
pub(super) fn edwards() -> (Ed25519Key, String) {
    let key = Ed25519Key::from_pkcs8_der(&Ed25519Key::generate_pkcs8().expect("a key")).expect("a key");
    let record = format!("v=DKIM1; k=ed25519; p={}", base64(&key.public_key()));
    (key, record)
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}
