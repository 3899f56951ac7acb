//! The clamd client against scripted servers: everything that a server can do wrong on the wire.

use std::sync::atomic::{AtomicUsize, Ordering};

use sekimori_mta::engine::probe;
use sekimori_mta::io::engine::Builtins;
use sekimori_mta::verdict::Unscannable;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;

/// What the server does with the stream of one message; probes are always answered rightly.
#[derive(Clone, Debug)]
enum Wire {
    /// The right answer.
    Right,
    /// These bytes; `#` stands for the number of the command.
    Bytes(&'static [u8]),
    /// These bytes, and the connection ends.
    Close(&'static [u8]),
    /// One byte at a time.
    Dripping,
    /// The right answer to mail, and the connection ends.
    Once,
    /// Nothing.
    Hang,
    /// The connection is reset before the message was read.
    Reset,
    /// As clamd does at its size limit: an answer before the message was read, and the connection ends.
    SizeLimit,
    /// "Clean" before the message was read.
    Early,
}

struct Server {
    address: String,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn command(stream: &mut TcpStream) -> Option<String> {
    let mut text = vec![];
    loop {
        match stream.read_u8().await.ok()? {
            0 => return String::from_utf8(text).ok(),
            byte => text.push(byte),
        }
    }
}

async fn content(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut content = vec![];
    loop {
        let length = stream.read_u32().await.ok()?;
        if length == 0 {
            return Some(content);
        }
        let start = content.len();
        content.resize(start + length as usize, 0);
        stream.read_exact(&mut content[start..]).await.ok()?;
    }
}

/// A connection; `None` ends it.
async fn serve(mut stream: TcpStream, wire: Wire) -> Option<()> {
    let mut number = 0;
    loop {
        match command(&mut stream).await?.as_str() {
            "zVERSION" => {
                stream.write_all(b"ClamAV 9.9/123/today\0").await.ok()?;
                return None;
            }
            "zIDSESSION" => {}
            "zINSTREAM" => {
                number += 1;
                if matches!(wire, Wire::Reset | Wire::SizeLimit | Wire::Early) {
                    unread(&mut stream, &wire, number).await?;
                    continue;
                }
                let content = content(&mut stream).await?;
                if memchr::memmem::find(&content, probe::DOMAIN.as_bytes()).is_some() {
                    right(&mut stream, number, &content).await?;
                    continue;
                }
                match &wire {
                    Wire::Bytes(bytes) | Wire::Close(bytes) => {
                        let bytes =
                            bytes.iter().flat_map(|b| if *b == b'#' { number.to_string().into_bytes() } else { vec![*b] }).collect::<Vec<u8>>();
                        stream.write_all(&bytes).await.ok()?;
                        if matches!(wire, Wire::Close(_)) {
                            return None;
                        }
                    }
                    Wire::Dripping => {
                        for byte in format!("{number}: stream: Slow.Virus FOUND\0").bytes() {
                            stream.write_u8(byte).await.ok()?;
                            sleep(Duration::from_millis(1)).await;
                        }
                    }
                    Wire::Once => return right(&mut stream, number, &content).await.and(None),
                    Wire::Hang => sleep(Duration::from_secs(60)).await,
                    _ => right(&mut stream, number, &content).await?,
                }
            }
            _ => return None,
        }
    }
}

/// Answers a large message before it was read; probes are small and answered rightly.
async fn unread(stream: &mut TcpStream, wire: &Wire, number: u32) -> Option<()> {
    let length = stream.read_u32().await.ok()?;
    if length < 100_000 {
        let mut rest = vec![0; length as usize + 4];
        stream.read_exact(&mut rest).await.ok()?;
        return right(stream, number, &rest).await;
    }
    match wire {
        Wire::SizeLimit => stream.write_all(format!("{number}: INSTREAM size limit exceeded. ERROR\0").as_bytes()).await.ok()?,
        Wire::Early => {
            stream.write_all(format!("{number}: stream: OK\0").as_bytes()).await.ok()?;
            sleep(Duration::from_secs(5)).await;
        }
        _ => stream.set_zero_linger().ok()?,
    }
    None
}

async fn right(stream: &mut TcpStream, number: u32, content: &[u8]) -> Option<()> {
    let says = |text: &str| memchr::memmem::find(content, text.as_bytes()).is_some();
    let eicar = probe::eicar();
    let found = says(&eicar) || says(&data_encoding::BASE64.encode(eicar.as_bytes()));
    let outcome = if found { "Eicar FOUND" } else { "OK" };
    stream.write_all(format!("{number}: stream: {outcome}\0").as_bytes()).await.ok()
}

async fn listen(wire: Wire) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream, wire.clone()));
        }
    });
    Server { address, connections, task }
}

async fn clamd(wire: Wire) -> (Server, Arc<Engines>) {
    let server = listen(wire).await;
    let mut part = part("clamav", EngineClass::AntiVirus);
    part.protocol = EngineProtocol::Clamd;
    part.endpoint = EngineEndpoint::Address(server.address.clone());
    part.timeout = units::Duration::from_millis(1000);
    part.breaker.failures = 1000;
    let engines = Engines::connect(&[part], Options::new(Builtins::default(), None)).expect("a list without mistakes");
    warm(&engines, 1, 0).await;
    (server, engines)
}

#[tokio::test]
async fn right_answers_over_one_connection() {
    let (server, engines) = clamd(Wire::Right).await;
    let before = server.connections.load(Ordering::SeqCst);
    for n in 0..20 {
        assert_eq!(find(&engines, &job(mail(&n.to_string()))).await, Finding::Clean);
        assert_eq!(find(&engines, &job(mail(&probe::eicar()))).await, Finding::Infected("Eicar".into()));
    }
    assert_eq!(find(&engines, &job("")).await, Finding::Clean, "an empty message is a stream without a chunk");
    assert_eq!(server.connections.load(Ordering::SeqCst), before, "the connection of the probe serves on");
    assert_eq!(&*status(&engines).version, "9.9/123");
}

#[tokio::test]
async fn a_slow_answer_is_an_answer() {
    let (_server, engines) = clamd(Wire::Dripping).await;
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Infected("Slow.Virus".into()));
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let replies: [&'static [u8]; 9] = [
        b"\0",
        b"PONG\0",
        b"220 mx.example.com ESMTP\r\n\0",
        b"99: stream: OK\0",
        b"stream: OK\0",
        b"#: stream: OK but\0",
        b"#: stream: Can't allocate memory ERROR\0",
        b"\xff\xfe\xfd\0",
        &[b'x'; 10_000],
    ];
    for reply in replies {
        let (_server, engines) = clamd(Wire::Bytes(reply)).await;
        let finding = find(&engines, &job(mail("x"))).await;
        assert!(is_protocol(&finding), "{}: {finding:?}", String::from_utf8_lossy(reply));
        assert_eq!(status(&engines).deaths, 0);
    }
}

/// Replies of other scans, as a session with several in flight would bring them: never taken.
#[tokio::test]
async fn an_answer_out_of_order_is_refused_and_its_connection_not_used_again() {
    let (server, engines) = clamd(Wire::Bytes(b"1: stream: OK\0")).await;
    let before = server.connections.load(Ordering::SeqCst);
    // The probes were numbers 1 and 2 of the kept connection, so this one is number 3.
    assert!(is_protocol(&find(&engines, &job(mail("x"))).await));
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Clean, "on a new connection it is number 1");
    assert_eq!(server.connections.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn surplus_bytes_spoil_the_connection_not_the_answer() {
    let (server, engines) = clamd(Wire::Bytes(b"#: stream: OK\0#: stream: OK\0")).await;
    let before = server.connections.load(Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Clean);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), before + 2);
}

#[tokio::test]
async fn half_an_answer_or_none_makes_a_suspect_and_then_a_convict() {
    for end in [&b""[..], b"#: stream: O", b"#: stream: OK"] {
        let (_server, engines) = clamd(Wire::Close(end)).await;
        assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Unscannable(Unscannable::Convicted), "{}", String::from_utf8_lossy(end));
        assert_eq!(status(&engines).deaths, 2);
    }
}

#[tokio::test]
async fn a_hanging_server_costs_the_deadline_and_no_more() {
    let (_server, engines) = clamd(Wire::Hang).await;
    let begin = Instant::now();
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Failed(Failure::Timeout));
    assert!((900..1900).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    assert_eq!(status(&engines).in_flight, 0);
}

#[tokio::test]
async fn the_answer_is_read_even_when_writing_fails() {
    let (_server, engines) = clamd(Wire::SizeLimit).await;
    for _ in 0..5 {
        assert_eq!(find(&engines, &job(vec![b'x'; 8 << 20])).await, Finding::Unscannable(Unscannable::TooLarge));
    }
    assert_eq!(status(&engines).deaths, 0);
}

#[tokio::test]
async fn a_reset_in_the_middle_is_a_death() {
    let (_server, engines) = clamd(Wire::Reset).await;
    assert_eq!(find(&engines, &job(vec![b'x'; 8 << 20])).await, Finding::Unscannable(Unscannable::Convicted));
    assert_eq!(status(&engines).deaths, 2);
}

#[tokio::test]
async fn clean_before_it_had_the_message_is_no_answer() {
    let (_server, engines) = clamd(Wire::Early).await;
    let finding = find(&engines, &job(vec![b'x'; 24 << 20])).await;
    assert!(is_protocol(&finding), "{finding:?}");
}

#[tokio::test]
async fn nobody_listens_and_then_somebody_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let mut part = part("clamav", EngineClass::AntiVirus);
    part.protocol = EngineProtocol::Clamd;
    part.endpoint = EngineEndpoint::Address(address.to_string());
    let engines = Engines::connect(&[part], Options::new(Builtins::default(), None)).expect("a list without mistakes");
    until("a probe", || status(&engines).last_probe.is_some()).await;
    let why = status(&engines).last_probe.and_then(|probe| probe.why).expect("a reason");
    assert!(why.contains("Unreachable") && why.contains(&address.to_string()), "{why}");
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Failed(Failure::BreakerOpen));
    let listener = TcpListener::bind(address).await.expect("the port is still free");
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            tokio::spawn(serve(stream, Wire::Right));
        }
    });
    warm(&engines, 1, 0).await;
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Clean);
    server.abort();
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_is_not_used() {
    let (server, engines) = clamd(Wire::Once).await;
    let before = server.connections.load(Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Clean);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((server.connections.load(Ordering::SeqCst), status(&engines).deaths), (before + 2, 0), "the first came over the probe's connection");
}
