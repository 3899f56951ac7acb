//! An SMTP client that says what it is told to, octet by octet where a scenario wants that.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The gateway answers within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One reply, all its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) text: String,
}

impl Reply {
    /// That it begins with this, such as `550 5.7.1`.
    #[track_caller]
    pub(crate) fn expect(&self, start: &str) -> &Self {
        let line = format!("{} {}", self.code, self.text);
        assert!(line.starts_with(start), "expected {start}, got {line}");
        self
    }
}

/// A session.
pub(crate) struct Smtp {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// What EHLO offered.
    pub(crate) offers: String,
}

impl Smtp {
    /// Connects, and says nothing.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream =
            tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(address)).await.expect("within 10 s").expect("somebody listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self { stream: Box::new(stream), buffer: vec![], offers: String::new() }
    }

    /// Connects and says EHLO.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let mut session = Self::connect(address).await;
        session.reply().await.expect("220 mx.localhost");
        session.hello().await;
        session
    }

    pub(crate) async fn hello(&mut self) {
        let reply = self.say("EHLO client.sender.example").await;
        reply.expect("250");
        self.offers = reply.text;
    }

    /// Goes on in TLS; the certificate is not looked at.
    pub(crate) async fn start_tls(mut self, connector: &tokio_rustls::TlsConnector) -> Self {
        self.say("STARTTLS").await.expect("220");
        assert!(self.buffer.is_empty());
        let name = rustls_pki_types::ServerName::try_from("mx.localhost").expect("a name");
        let stream = tokio::time::timeout(Duration::from_secs(10), connector.connect(name, self.stream)).await.expect("within 10 s").expect("TLS");
        let mut session = Self { stream: Box::new(stream), buffer: vec![], offers: String::new() };
        session.hello().await;
        session
    }

    /// Writes octets.
    pub(crate) async fn write(&mut self, octets: impl AsRef<[u8]>) {
        self.try_write(octets).await.expect("the gateway reads");
    }

    /// Writes octets; an error if the gateway closed.
    pub(crate) async fn try_write(&mut self, octets: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(octets.as_ref()).await?;
        self.stream.flush().await
    }

    /// Sends one line and reads the reply.
    pub(crate) async fn say(&mut self, line: &str) -> Reply {
        self.write(format!("{line}\r\n")).await;
        self.reply().await
    }

    /// Reads one reply.
    pub(crate) async fn reply(&mut self) -> Reply {
        self.next_reply().await.expect("a reply, but the connection was closed")
    }

    /// Reads one reply; `None`: the gateway closed.
    pub(crate) async fn next_reply(&mut self) -> Option<Reply> {
        let mut text = vec![];
        loop {
            let line = self.line().await?;
            let (code, rest) = line.split_at_checked(3).unwrap_or_else(|| panic!("no reply: {line:?}"));
            text.push(rest.get(1..).unwrap_or_default().to_owned());
            if !rest.starts_with('-') {
                return Some(Reply { code: code.parse().unwrap_or_else(|_| panic!("no reply: {line:?}")), text: text.join("\n") });
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            let read = tokio::time::timeout(ANSWER_WITHIN, self.stream.read_buf(&mut self.buffer)).await.expect("an answer in time");
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }

    /// One whole transaction; the first refusal, or the answer to the end of data.
    pub(crate) async fn send(&mut self, from: &str, to: &[&str], content: &[u8]) -> Reply {
        let reply = self.envelope(from, to).await;
        if reply.code != 354 { reply } else { self.content(content).await }
    }

    /// MAIL, RCPT and DATA; the first refusal, or the 354.
    pub(crate) async fn envelope(&mut self, from: &str, to: &[&str]) -> Reply {
        let mut lines = vec![format!("MAIL FROM:<{from}>")];
        lines.extend(to.iter().map(|to| format!("RCPT TO:<{to}>")));
        lines.push("DATA".into());
        for line in lines {
            let reply = self.say(&line).await;
            if reply.code >= 300 {
                return reply;
            }
        }
        unreachable!("DATA is answered 354 or refused")
    }

    /// Content, with dots stuffed, and its end.
    pub(crate) async fn content(&mut self, content: &[u8]) -> Reply {
        let mut stuffed = Vec::with_capacity(content.len() + 64);
        for line in content.split_inclusive(|octet| *octet == b'\n') {
            if line.starts_with(b".") {
                stuffed.push(b'.');
            }
            stuffed.extend_from_slice(line);
        }
        stuffed.extend_from_slice(b".\r\n");
        self.write(stuffed).await;
        self.reply().await
    }

    pub(crate) async fn quit(mut self) {
        self.say("QUIT").await.expect("221");
    }
}
