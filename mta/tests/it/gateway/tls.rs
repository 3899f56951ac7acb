//! TLS of the listeners behind a proxy: what is said in the clear never becomes part of what is said inside.

#![expect(clippy::unwrap_used, reason = "a test's own helpers")]

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sekimori_crds::snapshot::CertificatePart;
use sekimori_crds::vocabulary::ListenerTls;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::client::stuffed;
use super::tenants::{MAIL, header, to};
use super::world::{Setup, World, listener_part};
use crate::delivery::sink::{Script, Sink};

async fn start(tls: ListenerTls) -> (World, Sink, TlsConnector) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["mx.example.net".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate.der().to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let part = CertificatePart { name: "mx".into(), chain_pem: certificate.pem(), key_pem: key.serialize_pem() };
    let sink = Sink::start(Script::default()).await;
    let mut setup = Setup::new(vec![to("a", &sink)]);
    setup.listener = listener_part();
    (setup.listener.tls, setup.listener.certificates) = (tls, vec![part]);
    (setup.start().await, sink, connector)
}

/// A proxy that sends its header and the client's first bytes in one piece; or its header with something else, and the client's first bytes later.
async fn proxied(world: &World, before: &'static [u8]) -> DuplexStream {
    let (client, mut inner) = tokio::io::duplex(1 << 16);
    let mut gateway = TcpStream::connect(world.address).await.unwrap();
    tokio::spawn(async move {
        let mut first = vec![0; 1 << 14];
        let length = inner.read(&mut first).await.unwrap();
        let head: &[u8] = b"PROXY TCP4 192.0.2.1 127.0.0.1 40000 25\r\n";
        if before.is_empty() {
            gateway.write_all(&[head, &first[..length]].concat()).await.unwrap();
        } else {
            gateway.write_all(&[head, before].concat()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            gateway.write_all(&first[..length]).await.unwrap();
        }
        // Either end may go first.
        tokio::io::copy_bidirectional(&mut inner, &mut gateway).await.ok();
    });
    client
}

async fn line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        if line.get(3..4) != Some("-") {
            return line.trim_end().to_owned();
        }
    }
}

async fn deliver<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>) {
    for (command, code) in [("EHLO client.test", "250"), ("MAIL FROM:<a@sender.test>", "250"), ("RCPT TO:<u@a.example>", "250"), ("DATA", "354")] {
        stream.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let said = line(stream).await;
        assert!(said.starts_with(code), "{command}: {said}");
    }
    stream.write_all(&stuffed(MAIL)).await.unwrap();
    stream.flush().await.unwrap();
    assert!(line(stream).await.starts_with("250"));
}

fn name() -> ServerName<'static> {
    "mx.example.net".try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_right_behind_the_proxy_header_is_a_handshake() {
    let (world, sink, connector) = start(ListenerTls::Implicit).await;
    let stream = connector.connect(name(), proxied(&world, b"").await).await.expect("TLS from the first byte behind the header");
    let mut stream = BufReader::new(stream);
    assert!(line(&mut stream).await.starts_with("220"));
    deliver(&mut stream).await;
    assert!(header(&sink.kept()[0].content, "Received").contains("from client.test ([192.0.2.1]) by mx.example.net with ESMTPS (TLSv1.3"));
    drop(stream);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_in_the_clear_before_a_handshake_are_no_part_of_the_session() {
    let (world, sink, connector) = start(ListenerTls::Implicit).await;
    let injected = b"EHLO evil.test\r\n";
    if let Ok(stream) = connector.connect(name(), proxied(&world, injected).await).await {
        let mut stream = BufReader::new(stream);
        let said = line(&mut stream).await;
        panic!("a session began with {said} and goes on with {}", line(&mut stream).await);
    }
    assert!(sink.kept().is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starttls_and_nothing_of_what_was_said_before() {
    let (world, sink, connector) = start(ListenerTls::Required).await;
    let mut plain = BufReader::new(TcpStream::connect(world.address).await.unwrap());
    for (command, code) in
        [("PROXY TCP4 192.0.2.1 127.0.0.1 40000 25", "220"), ("EHLO before.test", "250"), ("MAIL FROM:<a@sender.test>", "530"), ("STARTTLS", "220")]
    {
        plain.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
        let said = line(&mut plain).await;
        assert!(said.starts_with(code), "{command}: {said}");
    }
    let mut secure = BufReader::new(connector.connect(name(), plain.into_inner()).await.unwrap());
    secure.write_all(b"MAIL FROM:<a@sender.test>\r\n").await.unwrap();
    secure.flush().await.unwrap();
    assert!(line(&mut secure).await.starts_with("503"), "EHLO first, again");
    deliver(&mut secure).await;
    assert!(header(&sink.kept()[0].content, "Received").starts_with("from client.test"));
    drop(secure);
    // What is pipelined behind STARTTLS could be an injection.
    let mut plain = BufReader::new(TcpStream::connect(world.address).await.unwrap());
    plain.write_all(b"PROXY TCP4 192.0.2.1 127.0.0.1 40000 25\r\n").await.unwrap();
    assert!(line(&mut plain).await.starts_with("220"));
    plain.write_all(b"EHLO x.test\r\n").await.unwrap();
    assert!(line(&mut plain).await.starts_with("250"));
    plain.write_all(b"STARTTLS\r\nEHLO evil.test\r\n").await.unwrap();
    let said = line(&mut plain).await;
    assert!(said.starts_with('5') || said.starts_with("421"), "{said}");
    drop(plain);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_talks_right_behind_the_proxy_header_talks_before_the_banner() {
    let (world, sink, _) = start(ListenerTls::Opportunistic).await;
    let mut client = BufReader::new(TcpStream::connect(world.address).await.unwrap());
    client.write_all(b"PROXY TCP4 192.0.2.1 127.0.0.1 40000 25\r\nEHLO early.test\r\n").await.unwrap();
    let said = line(&mut client).await;
    assert!(said.starts_with("554"), "{said}");
    assert!(sink.kept().is_empty());
    drop(client);
    world.stop().await;
}
