//! clamd's INSTREAM within IDSESSION, over TCP and unix sockets.
//!
//! A connection carries one scan at a time and is then used again. clamd could take several at once and answers out of order; one at a time keeps a
//! large message from holding up a small one, and a connection that clamd closes (a message over its limit) or that we close (a deadline) from taking
//! other messages' answers with it.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::time::Instant;

use super::stream::{Address, Duplex, Endpoint};
use super::{Answer, BoxFuture, Engine, Job};
use crate::engine::clamd::{REPLY_BYTES_MAX, read, signatures_made_s, version};
use crate::engine::{Reading, harmless};
use crate::verdict::{Failure, Finding, Unscannable};

/// Idle connections kept: the usual concurrency of an engine.
pub const IDLE_CONNECTIONS_MAX: usize = 32;
/// An idle connection is not used again after this: clamd's own IdleTimeout is 30 s by default.
pub const IDLE_FOR_MAX: Duration = Duration::from_secs(20);

/// A client of one clamd.
pub struct Clamd {
    endpoint: Endpoint,
    idle: Mutex<Vec<Session>>,
    deaths: AtomicU64,
    /// When its signatures were made, seconds since 1970; 0: unknown.
    signatures_made_s: AtomicU64,
}

/// One connection within IDSESSION.
struct Session {
    stream: Box<dyn Duplex>,
    /// Number that clamd gives to the next command; 1 on a new connection.
    next: u64,
    idle_since: Instant,
}

/// Why a scan got no answer.
enum Broken {
    /// The connection ended with the message on it.
    Died(String),
    /// An answer that is none.
    Wrong(Failure),
}

impl Clamd {
    /// A client; nothing is connected yet.
    pub fn new(address: Address) -> Self {
        Self { endpoint: Endpoint::new(address), idle: Mutex::default(), deaths: AtomicU64::new(0), signatures_made_s: AtomicU64::new(0) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn session(&self) -> Result<Session, Failure> {
        loop {
            let session = self.idle().pop();
            let Some(mut session) = session else { break };
            // Bytes or an end that nobody asked for: clamd closed it, or answers too much.
            let quiet = session.stream.read(&mut [0; 1]).now_or_never().is_none();
            if quiet && session.idle_since.elapsed() < IDLE_FOR_MAX {
                return Ok(session);
            }
        }
        Ok(Session { stream: self.endpoint.connect().await?, next: 1, idle_since: Instant::now() })
    }

    fn keep(&self, mut session: Session) {
        session.idle_since = Instant::now();
        let mut idle = self.idle();
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(session);
        }
    }

    async fn scan(&self, raw: &[u8]) -> Result<Answer, Failure> {
        let Ok(length) = u32::try_from(raw.len()) else {
            return Ok(answer(Reading::plain(Finding::Unscannable(Unscannable::TooLarge))));
        };
        let mut session = self.session().await?;
        match session.scan(raw, length).await {
            Ok((reading, reusable)) => {
                if reusable {
                    self.keep(session);
                }
                Ok(answer(reading))
            }
            Err(Broken::Wrong(failure)) => Err(failure),
            Err(Broken::Died(why)) => {
                self.deaths.fetch_add(1, Ordering::Relaxed);
                self.idle().clear();
                Err(self.endpoint.unreachable(&why))
            }
        }
    }

    async fn version(&self) -> Result<Arc<str>, Failure> {
        let mut stream = self.endpoint.connect().await?;
        let broken = |e: io::Error| self.endpoint.unreachable(&format!("no answer to VERSION: {e}"));
        stream.write_all(b"zVERSION\0").await.map_err(broken)?;
        let mut reply = vec![];
        stream.take(REPLY_BYTES_MAX as u64).read_to_end(&mut reply).await.map_err(broken)?;
        match reply.split_last() {
            Some((0, reply)) => {
                self.signatures_made_s.store(signatures_made_s(reply).unwrap_or(0), Ordering::Relaxed);
                version(reply).map(Arc::from)
            }
            _ => Err(Failure::Protocol(format!("clamd answered '{}' to VERSION", harmless(&reply)))),
        }
    }
}

fn answer(reading: Reading) -> Answer {
    Answer { finding: reading.finding, evidence: reading.evidence, version: None }
}

impl Session {
    /// Writes the command with the message as one chunk, without a copy of it, and reads the reply: also while writing, and also when writing fails,
    /// as clamd says "size limit exceeded" and closes in the middle.
    async fn scan(&mut self, raw: &[u8], length: u32) -> Result<(Reading, bool), Broken> {
        let number = self.next;
        self.next += 1;
        let mut head = Vec::with_capacity(32);
        if number == 1 {
            head.extend_from_slice(b"zIDSESSION\0");
        }
        head.extend_from_slice(b"zINSTREAM\0");
        // A chunk of length 0 ends the stream, so an empty message has none.
        if length > 0 {
            head.extend_from_slice(&length.to_be_bytes());
        }
        let mut slices = [IoSlice::new(&head), IoSlice::new(raw), IoSlice::new(&[0; 4])];
        let mut exchange = Exchange { unwritten: &mut slices, write_error: None, reply: Vec::with_capacity(128) };
        let stream = &mut self.stream;
        poll_fn(|cx| exchange.poll(stream, cx)).await?;
        let Exchange { unwritten, write_error, mut reply } = exchange;
        let all_written = unwritten.is_empty() && write_error.is_none();
        let end = memchr::memchr(0, &reply).unwrap_or(reply.len());
        let surplus = reply.len() > end + 1;
        reply.truncate(end);
        let reading = read(&reply, number).map_err(Broken::Wrong)?;
        if !all_written && reading.finding == Finding::Clean {
            return Err(Broken::Wrong(Failure::Protocol("clamd called a message clean before it had the whole of it".to_owned())));
        }
        let reusable = all_written && !surplus && !reply.ends_with(b"ERROR");
        Ok((reading, reusable))
    }
}

struct Exchange<'a, 'b> {
    unwritten: &'a mut [IoSlice<'b>],
    write_error: Option<io::Error>,
    reply: Vec<u8>,
}

impl Exchange<'_, '_> {
    fn poll(&mut self, stream: &mut Box<dyn Duplex>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.unwritten.is_empty() && self.write_error.is_none() {
            match Pin::new(&mut *stream).poll_write_vectored(cx, self.unwritten) {
                Poll::Ready(Ok(0)) => self.write_error = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => IoSlice::advance_slices(&mut self.unwritten, written),
                Poll::Ready(Err(e)) => self.write_error = Some(e),
                Poll::Pending => break,
            }
        }
        let mut space = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.reply.extend_from_slice(buffer.filled());
                    if memchr::memchr(0, buffer.filled()).is_some() {
                        return Poll::Ready(Ok(()));
                    }
                    if self.reply.len() > REPLY_BYTES_MAX {
                        let failure = Failure::Protocol(format!("clamd's reply has no end: '{}'", harmless(&self.reply)));
                        return Poll::Ready(Err(Broken::Wrong(failure)));
                    }
                }
                Poll::Ready(ended) => {
                    let why = ended.err().or_else(|| self.write_error.take()).map_or_else(|| "it was closed".to_owned(), |e| e.to_string());
                    return Poll::Ready(Err(Broken::Died(format!("the connection broke during a scan: {why}"))));
                }
            }
        }
    }
}

impl Engine for Clamd {
    fn scan<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(self.scan(&job.message.raw))
    }

    fn version(&self) -> BoxFuture<'_, Result<Arc<str>, Failure>> {
        Box::pin(self.version())
    }

    fn signatures_made_s(&self) -> Option<u64> {
        Some(self.signatures_made_s.load(Ordering::Relaxed)).filter(|made_s| *made_s > 0)
    }

    fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Relaxed)
    }
}
