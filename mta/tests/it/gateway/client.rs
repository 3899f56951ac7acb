//! An SMTP client that says what it is told to, and nothing else.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers")]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// A reply: its code and its whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: u16,
    pub(crate) text: String,
}

/// How a message was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) recipients: Vec<Said>,
    /// The answer to the end of data; none if no recipient was taken.
    pub(crate) end: Option<Said>,
}

impl Answer {
    pub(crate) fn code(&self) -> u16 {
        self.end.as_ref().unwrap_or_else(|| panic!("no recipient was taken: {self:?}")).code
    }

    pub(crate) fn text(&self) -> &str {
        &self.end.as_ref().unwrap_or_else(|| panic!("no recipient was taken: {self:?}")).text
    }
}

/// Dots doubled, and the end of data.
pub(crate) fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 100);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if line.first() == Some(&b'.') {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !content.is_empty() && !content.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

impl Client {
    /// Connects, by a proxy's word from `ip`, and says EHLO.
    pub(crate) async fn connect(address: SocketAddr, ip: &str) -> Self {
        let mut client = Self::raw(address, ip).await;
        let banner = client.reply().await;
        assert_eq!(banner.code, 220, "{banner:?}");
        assert_eq!(client.say("EHLO client.test").await.code, 250);
        client
    }

    /// Connects and says nothing but the PROXY header.
    pub(crate) async fn raw(address: SocketAddr, ip: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self { stream: BufReader::new(stream) };
        client.write(format!("PROXY TCP4 {ip} 127.0.0.1 40000 25\r\n").as_bytes()).await;
        client
    }

    /// What is left of it for TLS.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the gateway reads").unwrap();
    }

    /// The next reply; none when the connection is closed.
    pub(crate) async fn try_reply(&mut self) -> Option<Said> {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await.expect("an answer within 30 s");
            if read.unwrap_or(0) == 0 {
                return None;
            }
            let (code, rest) = (line.get(..3).unwrap(), line.get(3..).unwrap());
            text.push_str(rest.trim_start_matches('-').trim_end());
            if !rest.starts_with('-') {
                return Some(Said { code: code.parse().unwrap(), text: text.trim().to_owned() });
            }
            text.push('\n');
        }
    }

    pub(crate) async fn reply(&mut self) -> Said {
        self.try_reply().await.expect("a reply, not the end")
    }

    pub(crate) async fn say(&mut self, command: &str) -> Said {
        self.write(format!("{command}\r\n").as_bytes()).await;
        self.reply().await
    }

    /// Up to the 354; the codes of the recipients.
    pub(crate) async fn begin(&mut self, from: &str, recipients: &[&str]) -> Vec<Said> {
        let said = self.say(&format!("MAIL FROM:<{from}>")).await;
        assert_eq!(said.code, 250, "{said:?}");
        let mut answers = vec![];
        for recipient in recipients {
            answers.push(self.say(&format!("RCPT TO:<{recipient}>")).await);
        }
        if answers.iter().any(|said| said.code == 250) {
            assert_eq!(self.say("DATA").await.code, 354);
        } else {
            assert_eq!(self.say("RSET").await.code, 250);
        }
        answers
    }

    /// A whole transaction.
    pub(crate) async fn send_from(&mut self, from: &str, recipients: &[&str], content: &[u8]) -> Answer {
        let recipients = self.begin(from, recipients).await;
        if recipients.iter().all(|said| said.code != 250) {
            return Answer { recipients, end: None };
        }
        self.write(&stuffed(content)).await;
        Answer { recipients, end: Some(self.reply().await) }
    }

    pub(crate) async fn send(&mut self, recipients: &[&str], content: &[u8]) -> Answer {
        self.send_from("a@sender.test", recipients, content).await
    }

    /// A whole transaction with a gateway that may be stopping: none if it did not let the content be sent. What was sent must be answered.
    pub(crate) async fn attempt(address: SocketAddr, ip: &str, from: &str, recipients: &[&str], content: &[u8]) -> Option<Answer> {
        let stream = TcpStream::connect(address).await.ok()?;
        let mut client = Self { stream: BufReader::new(stream) };
        client.stream.write_all(format!("PROXY TCP4 {ip} 127.0.0.1 40000 25\r\n").as_bytes()).await.ok()?;
        client.try_reply().await.filter(|said| said.code == 220)?;
        client.try_say("EHLO client.test").await?;
        client.try_say(&format!("MAIL FROM:<{from}>")).await?;
        let mut answers = vec![];
        for recipient in recipients {
            answers.push(client.try_say(&format!("RCPT TO:<{recipient}>")).await?);
        }
        if answers.iter().all(|said| said.code != 250) {
            return Some(Answer { recipients: answers, end: None });
        }
        assert_eq!(client.say("DATA").await.code, 354, "a transaction under way may finish");
        client.write(&stuffed(content)).await;
        Some(Answer { recipients: answers, end: Some(client.reply().await) })
    }

    /// A reply that is not the end of the session.
    async fn try_say(&mut self, command: &str) -> Option<Said> {
        self.stream.write_all(format!("{command}\r\n").as_bytes()).await.ok()?;
        self.try_reply().await.filter(|said| said.code != 421)
    }

    /// Whether the other side has closed, with nothing more to say.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut rest = vec![];
        match timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("closed within 30 s") {
            Ok(_) => rest.is_empty(),
            Err(_) => true,
        }
    }
}
