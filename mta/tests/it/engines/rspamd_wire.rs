//! The rspamd client against scripted servers: everything that a server can do wrong on the wire.

use std::sync::atomic::{AtomicUsize, Ordering};

use sekimori_mta::engine::probe;
use sekimori_mta::io::engine::Builtins;
use sekimori_mta::verdict::{SpamScore, Unscannable};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;

const HAM: &str =
    r#"{"is_skipped":false,"score":2.5,"required_score":15.0,"action":"no action","symbols":{"A":{"name":"A","score":2.5}},"message-id":"undef"}"#;
const GTUBE: &str = r#"{"is_skipped":true,"score":15.0,"required_score":15.0,"action":"reject","symbols":{"GTUBE":{"name":"GTUBE","score":0.0}}}"#;

/// What the server does with mail; probes and pings are always answered rightly.
#[derive(Clone, Debug)]
enum Wire {
    /// Ham, and the connection is kept.
    Right,
    /// Ham, and the connection is closed, as rspamd 3.4 does.
    RightAndClose,
    /// Exactly these bytes, and the connection ends.
    Bytes(Vec<u8>),
    /// Ham, one byte at a time.
    Dripping,
    /// Nothing.
    Hang,
    /// The connection is reset before the message was read.
    Reset,
}

struct Server {
    address: String,
    connections: Arc<AtomicUsize>,
    /// Heads of the requests about mail.
    heads: Arc<Mutex<Vec<String>>>,
    /// Their bodies.
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn reply(body: &str, connection: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nConnection: {connection}\r\nServer: rspamd/9.9\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

async fn serve(mut stream: TcpStream, wire: Wire, heads: Arc<Mutex<Vec<String>>>, bodies: Arc<Mutex<Vec<Vec<u8>>>>) -> Option<()> {
    loop {
        let head = head(&mut stream).await?;
        if head.starts_with("GET /ping ") {
            stream.write_all(&reply("pong\r\n", "close")).await.ok()?;
            return None;
        }
        let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
        let of_probe = head.contains(probe::DOMAIN);
        if !of_probe && matches!(wire, Wire::Reset) {
            stream.set_zero_linger().ok()?;
            return None;
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        if of_probe {
            let found = memchr::memmem::find(&body, probe::gtube().as_bytes()).is_some();
            stream.write_all(&reply(if found { GTUBE } else { HAM }, "keep-alive")).await.ok()?;
            continue;
        }
        heads.lock().expect("free").push(head);
        bodies.lock().expect("free").push(body);
        match &wire {
            Wire::Right => stream.write_all(&reply(HAM, "keep-alive")).await.ok()?,
            Wire::RightAndClose => {
                stream.write_all(&reply(HAM, "close")).await.ok()?;
                return None;
            }
            Wire::Bytes(bytes) => {
                stream.write_all(bytes).await.ok()?;
                return None;
            }
            Wire::Dripping => {
                for byte in reply(HAM, "close") {
                    stream.write_u8(byte).await.ok()?;
                    stream.flush().await.ok()?;
                }
                return None;
            }
            Wire::Hang | Wire::Reset => sleep(Duration::from_secs(60)).await,
        }
    }
}

async fn rspamd(wire: Wire) -> (Server, Arc<Engines>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let (connections, heads, bodies) = (Arc::new(AtomicUsize::new(0)), Arc::default(), Arc::default());
    let task = tokio::spawn({
        let (connections, heads, bodies) = (Arc::clone(&connections), Arc::clone(&heads), Arc::clone(&bodies));
        async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, wire.clone(), Arc::clone(&heads), Arc::clone(&bodies)));
            }
        }
    });
    let mut part = part("rspamd", EngineClass::AntiSpam);
    part.protocol = EngineProtocol::Rspamd;
    part.endpoint = EngineEndpoint::Address(address.clone());
    part.timeout = units::Duration::from_millis(1000);
    part.breaker.failures = 1000;
    let engines = Engines::connect(&[part], Options::new(Builtins::default(), None)).expect("a list without mistakes");
    warm(&engines, 0, 1).await;
    (Server { address, connections, heads, bodies, task }, engines)
}

const fn ham() -> Finding {
    Finding::Spam(SpamScore { milli: 2500, required_milli: 6000, reject_milli: 15_000, certain: false })
}

#[tokio::test]
async fn what_is_asked_and_how_it_is_read() {
    let (server, engines) = rspamd(Wire::Right).await;
    let before = server.connections.load(Ordering::SeqCst);
    for n in 0..20 {
        let opinions = scan(&engines, &job(mail(&n.to_string()))).await;
        assert_eq!((&opinions[0].finding, &*opinions[0].version), (&ham(), "9.9"));
        assert_eq!(opinions[0].evidence.len(), 1);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), before, "the kept connection serves on");
    let head = server.heads.lock().expect("free").first().cloned().expect("a request");
    let lines = [
        "POST /checkv2 HTTP/1.1",
        "ip: 192.0.1.10",
        "helo: mx.example.net",
        "from: s@example.net",
        "rcpt: a@example.com",
        "queue-id: 00000000010000000000000001",
    ];
    for line in lines.into_iter().chain([&*format!("host: {}", server.address)]) {
        assert!(head.lines().any(|l| l == line), "{line} is missing in\n{head}");
    }
    assert_eq!(server.bodies.lock().expect("free").first(), Some(&mail("0").into_bytes()), "byte for byte");
}

#[tokio::test]
async fn what_is_left_out() {
    let (server, engines) = rspamd(Wire::Right).await;
    let mut job = job(mail("x"));
    let mut envelope = (*job.envelope).clone();
    envelope.client.address_known = false;
    envelope.sender = None;
    envelope.recipients =
        (0..1000).map(|n| Recipient { address: Address { local: format!("r{n}"), domain: "example.com".into() }, tenant: "t".into() }).collect();
    envelope.recipients[0].address.local = "a\r\nRcpt: forged".into();
    envelope.recipients[1].address.local = "関守".into();
    job.envelope = Arc::new(envelope);
    assert_eq!(find(&engines, &job).await, ham());
    let head = server.heads.lock().expect("free").first().cloned().expect("a request");
    assert!(!head.contains("ip:") && !head.contains("helo:"), "an address that is a node's is not named:\n{head}");
    assert!(!head.contains("forged"), "{head}");
    assert!(head.contains("rcpt: 関守@example.com\r\n") && head.contains("\r\nfrom: \r\n"), "{head}");
    assert_eq!(head.matches("rcpt: ").count(), 99, "of a hundred one cannot be said in HTTP");
}

#[tokio::test]
async fn a_server_that_closes_costs_connections_but_no_answers() {
    let (server, engines) = rspamd(Wire::RightAndClose).await;
    for _ in 0..10 {
        assert_eq!(find(&engines, &job(mail("x"))).await, ham());
    }
    assert!(server.connections.load(Ordering::SeqCst) >= 10);
    assert_eq!((status(&engines).deaths, status(&engines).failures), (0, 0));
}

#[tokio::test]
async fn a_slow_answer_is_an_answer() {
    let (_server, engines) = rspamd(Wire::Dripping).await;
    assert_eq!(find(&engines, &job(mail("x"))).await, ham());
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let status_of = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}").into_bytes();
    let replies = [
        b"220 mx.example.com ESMTP\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01".to_vec(),
        status_of("500 Oops"),
        status_of("404 Not Found"),
        status_of("200 OK"),
        reply("", "close"),
        reply("<html>", "close"),
        reply(r#"{"error":"no such thing"}"#, "close"),
        reply(&HAM.replace(r#""A":{"name":"A","score":2.5}"#, ""), "close"),
        reply(&HAM.replace("false", "true"), "close"),
        [&b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"[..], &vec![b' '; 6 << 20]].concat(),
        [&b"HTTP/1.1 200 OK\r\nX: "[..], &vec![b'x'; 1 << 20]].concat(),
    ];
    for bytes in replies {
        let shown = String::from_utf8_lossy(bytes.get(..60.min(bytes.len())).expect("in range")).into_owned();
        let (_server, engines) = rspamd(Wire::Bytes(bytes)).await;
        let finding = find(&engines, &job(mail("x"))).await;
        assert!(is_protocol(&finding), "{shown}: {finding:?}");
        assert_eq!(status(&engines).deaths, 0, "{shown}");
    }
}

#[tokio::test]
async fn its_own_size_limit_is_unscannable() {
    let (_server, engines) = rspamd(Wire::Bytes(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n".to_vec())).await;
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Unscannable(Unscannable::TooLarge));
}

#[tokio::test]
async fn half_an_answer_or_none_makes_a_suspect_and_then_a_convict() {
    let whole = reply(HAM, "close");
    for length in [0, 5, 40, whole.len() - 1] {
        let (_server, engines) = rspamd(Wire::Bytes(whole.get(..length).expect("in range").to_vec())).await;
        assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Unscannable(Unscannable::Convicted), "{length}");
        assert_eq!(status(&engines).deaths, 2);
    }
    let (_server, engines) = rspamd(Wire::Reset).await;
    assert_eq!(find(&engines, &job(vec![b'x'; 8 << 20])).await, Finding::Unscannable(Unscannable::Convicted));
}

#[tokio::test]
async fn a_hanging_server_costs_the_deadline_and_no_more() {
    let (_server, engines) = rspamd(Wire::Hang).await;
    let begin = Instant::now();
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Failed(Failure::Timeout));
    assert!((900..1900).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    assert_eq!(status(&engines).in_flight, 0);
}

#[tokio::test]
async fn nobody_listens() {
    let (server, engines) = rspamd(Wire::Right).await;
    let mut gone = part("rspamd", EngineClass::AntiSpam);
    gone.protocol = EngineProtocol::Rspamd;
    gone.endpoint = EngineEndpoint::Socket("/nonexistent/rspamd.sock".into());
    engines.reconfigure(&[gone]).expect("a list without mistakes");
    until("a probe", || status(&engines).last_probe.is_some()).await;
    let why = status(&engines).last_probe.and_then(|probe| probe.why).expect("a reason");
    assert!(why.contains("Unreachable") && why.contains("/nonexistent/rspamd.sock"), "{why}");
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Failed(Failure::BreakerOpen));
    assert_eq!(server.heads.lock().expect("free").len(), 0, "another endpoint is another engine");
}
