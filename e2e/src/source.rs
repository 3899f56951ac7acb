//! A load source: sessions that send marked messages and enter every answer in the ledger.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ledger::{self, Ledger};

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub target: SocketAddr,
    /// Sessions at once.
    pub sessions: usize,
    /// Messages in all.
    pub messages: u64,
    /// Bytes of one message, about.
    pub bytes: usize,
    /// MAIL FROM.
    pub sender: String,
    /// RCPT TO.
    pub recipient: String,
    /// Transactions in one session before it is opened anew.
    pub per_session: u64,
    /// Number of the first message.
    pub first: u64,
}

/// Runs a load to its end, or until `stop` says so. A lost connection or a refusal is entered and the next message is sent.
pub async fn run(load: Load, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    let body = Arc::new(body(load.bytes));
    let next = Arc::new(AtomicU64::new(load.first));
    let end = load.first + load.messages;
    let load = Arc::new(load);
    let mut sessions = vec![];
    for _ in 0..load.sessions {
        let (load, ledger, stop, next, body) = (Arc::clone(&load), Arc::clone(&ledger), Arc::clone(&stop), Arc::clone(&next), Arc::clone(&body));
        sessions.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) && next.load(Ordering::Relaxed) < end {
                let outcome = session(&load, &ledger, &stop, &next, end, &body).await;
                if outcome.is_err() {
                    // The gateway is away or hung up: not faster than a real sender.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }));
    }
    for session in sessions {
        if let Err(error) = session.await {
            tracing::error!(%error, "a source session broke");
        }
    }
}

/// A message's rest: plausible header and text of about this size, the same for all messages.
pub fn body(bytes: usize) -> Vec<u8> {
    let mut rest = b"From: Load Source <source@sender.example>\r\nTo: <user@example.com>\r\nSubject: =?UTF-8?B?44Ki44Kv44K744K544Ot44Kw?= report\r\n\
Date: Wed, 25 Nov 2026 08:00:00 +0000\r\nMessage-ID: <load@sender.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
        .to_vec();
    let mut line = 0_u32;
    while rest.len() < bytes {
        rest.extend_from_slice(format!("{line:06} The quarterly figures are attached below, please read them before the meeting.\r\n").as_bytes());
        line += 1;
    }
    rest
}

struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    /// Reads one whole reply; its code.
    async fn reply(&mut self) -> std::io::Result<u16> {
        loop {
            while let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                let line = self.buffer.get(..end).unwrap_or_default();
                let last = line.get(3) != Some(&b'-');
                let code = line.get(..3).and_then(|code| std::str::from_utf8(code).ok()).and_then(|code| code.parse().ok());
                self.buffer.advance(end + 2);
                if last {
                    return code.ok_or_else(|| std::io::ErrorKind::InvalidData.into());
                }
            }
            let read = tokio::time::timeout(Duration::from_secs(90), self.stream.read_buf(&mut self.buffer)).await;
            if read.map_err(|_| std::io::ErrorKind::TimedOut)?? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn expect(&mut self, class: u16) -> std::io::Result<()> {
        if self.reply().await? / 100 == class { Ok(()) } else { Err(std::io::ErrorKind::ConnectionRefused.into()) }
    }
}

async fn session(load: &Load, ledger: &Ledger, stop: &AtomicBool, next: &AtomicU64, end: u64, body: &[u8]) -> std::io::Result<()> {
    let stream = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(load.target)).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    let mut connection = Connection { stream, buffer: BytesMut::with_capacity(4096) };
    connection.expect(2).await?;
    connection.stream.write_all(b"EHLO source.sender.example\r\n").await?;
    connection.expect(2).await?;
    for _ in 0..load.per_session {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= end || stop.load(Ordering::Relaxed) {
            break;
        }
        let envelope = format!("MAIL FROM:<{}>\r\nRCPT TO:<{}>\r\nDATA\r\n", load.sender, load.recipient);
        connection.stream.write_all(envelope.as_bytes()).await?;
        let mail = connection.reply().await?;
        let recipient = connection.reply().await?;
        let data = connection.reply().await?;
        if data != 354 {
            let decided = [mail, recipient].into_iter().find(|code| code / 100 != 2).unwrap_or(data);
            ledger.answer(number, decided);
            if mail / 100 != 2 || recipient / 100 == 4 {
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            // The sender stands; without this the next one would be one too many.
            connection.stream.write_all(b"RSET\r\n").await?;
            connection.expect(2).await?;
            continue;
        }
        let mut message = ledger::mark(number, body);
        message.extend_from_slice(b".\r\n");
        connection.stream.write_all(&message).await?;
        let code = connection.reply().await?;
        ledger.answer(number, code);
    }
    connection.stream.write_all(b"QUIT\r\n").await?;
    connection.expect(2).await
}
