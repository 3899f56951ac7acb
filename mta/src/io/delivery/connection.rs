//! One connection to a next hop: drives the client machine over a socket.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::ServerName;
use sekimori_crds::snapshot::RoutePart;
use sekimori_crds::vocabulary::RouteTls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::{TlsConfigs, TlsError};
use super::{Hosts, Options};
use crate::config::Config;
use crate::io::clock::monotonic_ms;
use crate::smtp::client::{Answer, Client, Event, Finished, Phase, Timeouts, TlsUse, Transaction, Unable};
use crate::smtp::stuff::Stuffer;

/// Slices of one writev.
const SLICES_MAX: usize = 128;
const READ_BYTES: usize = 4096;

/// No session: where and why.
pub(super) type Failure = (Phase, Answer);

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Between the two, or after a handshake that failed.
    Gone,
}

impl Stream {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer).await,
            Self::Tls(stream) => stream.read(buffer).await,
            Self::Gone => Ok(0),
        }
    }

    async fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write_vectored(slices).await,
            Self::Tls(stream) => stream.write_vectored(slices).await,
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(stream) => stream.flush().await,
            Self::Plain(_) | Self::Gone => Ok(()),
        }
    }

    /// Whether what a failed write did not count as written has surely not left.
    const fn counts_exactly(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

/// Makes connections.
pub(super) struct Connector {
    timeouts: Timeouts,
    addresses_max: usize,
    tls: TlsConfigs,
}

impl Connector {
    pub(super) fn new(options: &Options) -> Result<Self, TlsError> {
        Ok(Self { timeouts: options.timeouts, addresses_max: options.addresses_max, tls: TlsConfigs::new(&options.root_certificates)? })
    }

    /// Connects and greets, until a transaction may begin. With opportunistic TLS a failed handshake is followed by one try without.
    pub(super) async fn open(&self, route: &RoutePart, hosts: &dyn Hosts, config: &Config, limit_ms: u64) -> Result<Connection, Failure> {
        let tls = match route.tls {
            RouteTls::Disabled => TlsUse::Disabled,
            RouteTls::Opportunistic => TlsUse::Opportunistic,
            RouteTls::Required | RouteTls::Dane | RouteTls::MtaSts => TlsUse::Required,
        };
        match self.open_with(route, hosts, config, tls, limit_ms).await {
            Err((Phase::Tls, answer)) if tls == TlsUse::Opportunistic && !matches!(answer, Answer::Reply(_)) && monotonic_ms() < limit_ms => {
                self.open_with(route, hosts, config, TlsUse::Disabled, limit_ms).await
            }
            result => result,
        }
    }

    async fn open_with(&self, route: &RoutePart, hosts: &dyn Hosts, config: &Config, tls: TlsUse, limit_ms: u64) -> Result<Connection, Failure> {
        let stream = self.connect(route, hosts, config, limit_ms).await.map_err(|answer| (Phase::Connect, answer))?;
        let mut connection = Connection {
            stream: Stream::Plain(stream),
            client: Client::new(&config.fleet.hostname, tls, self.timeouts, monotonic_ms()),
            buffer: vec![0; READ_BYTES].into(),
            messages: 0,
        };
        loop {
            match connection.next_event(limit_ms).await {
                Event::Ready => return Ok(connection),
                Event::StartTls => connection.shake_hands(&route.host, tls, &self.tls, limit_ms).await,
                Event::Failed { phase, answer } => return Err((phase, answer)),
                Event::SendContent | Event::Finished(_) => return Err((Phase::Ehlo, Answer::Garbage("a transaction that nobody began".into()))),
            }
        }
    }

    async fn connect(&self, route: &RoutePart, hosts: &dyn Hosts, config: &Config, limit_ms: u64) -> Result<TcpStream, Answer> {
        let addresses = match address_literal(&route.host) {
            Some(address) => vec![address],
            None => within(limit_ms, self.timeouts.connect_ms, hosts.addresses(&route.host))
                .await
                .ok_or(Answer::Timeout)?
                .map_err(|why| Answer::Disconnected(format!("{}: {why}", route.host)))?,
        };
        let mut last = Answer::Disconnected(format!("{} has no address", route.host));
        for address in addresses.into_iter().take(self.addresses_max) {
            // Checked here, on the very address that is connected to: a name that changes its mind in between gets nowhere else.
            if !config.egress_allows(address) {
                last = Answer::Disconnected(format!("{address} is neither public nor in the fleet's spec.egress.allowedNetworks"));
                continue;
            }
            last = match within(limit_ms, self.timeouts.connect_ms, TcpStream::connect(SocketAddr::new(address, route.port))).await {
                Some(Ok(stream)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY");
                    }
                    return Ok(stream);
                }
                Some(Err(error)) => Answer::Disconnected(format!("{address} port {}: {error}", route.port)),
                None => Answer::Timeout,
            };
        }
        Err(last)
    }
}

/// `192.0.2.1`, `2001:db8::1`, `[192.0.2.1]`, `[IPv6:2001:db8::1]`.
fn address_literal(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    inner.strip_prefix("IPv6:").unwrap_or(inner).parse().ok()
}

/// Waits at most `at_most_ms`, and never beyond `limit_ms`.
async fn within<T>(limit_ms: u64, at_most_ms: u64, work: impl Future<Output = T>) -> Option<T> {
    let wait_ms = limit_ms.saturating_sub(monotonic_ms()).min(at_most_ms);
    timeout(Duration::from_millis(wait_ms), work).await.ok()
}

/// One session.
pub(super) struct Connection {
    stream: Stream,
    client: Client,
    buffer: Box<[u8]>,
    /// Messages that went over it.
    pub(super) messages: u32,
}

impl Connection {
    /// Whether another transaction may begin.
    pub(super) fn is_ready(&self) -> bool {
        self.client.is_ready()
    }

    /// Whether the server has hung up, or said something unasked, since it was last used. Where that cannot be told without reading, it says no.
    pub(super) fn is_stale(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => !matches!(stream.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock),
            Stream::Tls(_) => false,
            Stream::Gone => true,
        }
    }

    /// Sends one message. `limit_ms`: when to give up, whatever the phase (monotonic).
    pub(super) async fn send(&mut self, transaction: Transaction, rope: &[Bytes], limit_ms: u64) -> Finished {
        let recipients = transaction.recipients.len();
        self.messages += 1;
        self.client.begin(transaction, monotonic_ms());
        loop {
            match self.next_event(limit_ms).await {
                Event::SendContent => self.send_content(rope, limit_ms).await,
                Event::Finished(finished) => return finished,
                Event::Failed { phase, answer } => return Finished { recipients: vec![None; recipients], phase, answer },
                Event::Ready | Event::StartTls => {}
            }
        }
    }

    /// Says goodbye without waiting for an answer.
    pub(super) async fn quit(mut self) {
        self.client.quit();
        if let Some(bytes) = self.client.poll_transmit() {
            let goodbye = async {
                self.write_all(&bytes).await?;
                match &mut self.stream {
                    Stream::Tls(stream) => stream.shutdown().await,
                    Stream::Plain(stream) => stream.shutdown().await,
                    Stream::Gone => Ok(()),
                }
            };
            if let Ok(Err(error)) = timeout(Duration::from_secs(1), goodbye).await {
                tracing::trace!(%error, "QUIT");
            }
        }
    }

    /// Writes what is to be written and reads until something happened.
    async fn next_event(&mut self, limit_ms: u64) -> Event {
        loop {
            while let Some(bytes) = self.client.poll_transmit() {
                let wait_ms = self.client.deadline_ms().saturating_sub(monotonic_ms());
                match within(limit_ms, wait_ms, self.write_all(&bytes)).await {
                    Some(Ok(())) => {}
                    Some(Err(error)) => self.lost(Answer::Disconnected(error.to_string()), limit_ms).await,
                    None => self.client.handle_trouble(Answer::Timeout),
                }
            }
            if let Some(event) = self.client.poll_event() {
                return event;
            }
            if !self.read_once(limit_ms).await {
                let over = || Event::Failed { phase: Phase::Connect, answer: Answer::Disconnected("the session is over".into()) };
                return self.client.poll_event().unwrap_or_else(over);
            }
        }
    }

    /// Whether there may be more.
    async fn read_once(&mut self, limit_ms: u64) -> bool {
        let wait_ms = self.client.deadline_ms().saturating_sub(monotonic_ms());
        match within(limit_ms, wait_ms, self.stream.read(&mut self.buffer)).await {
            Some(Ok(0)) => self.client.handle_trouble(Answer::Disconnected("closed by the server".into())),
            Some(Ok(count)) => {
                let bytes = self.buffer.get(..count).unwrap_or_default();
                self.client.handle_input(bytes, monotonic_ms());
                return true;
            }
            Some(Err(error)) => self.client.handle_trouble(Answer::Disconnected(error.to_string())),
            None => self.client.handle_trouble(Answer::Timeout),
        }
        false
    }

    /// A write failed or got stuck: what the server said before that is worth more than the error.
    async fn lost(&mut self, answer: Answer, limit_ms: u64) {
        if let Some(Ok(count)) = within(limit_ms, 1000, self.stream.read(&mut self.buffer)).await {
            let bytes = self.buffer.get(..count).unwrap_or_default();
            self.client.handle_input(bytes, monotonic_ms());
        }
        self.client.handle_trouble(answer);
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = [IoSlice::new(bytes)];
        let mut rest = &mut rest[..];
        while !rest.is_empty() {
            match self.stream.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => IoSlice::advance_slices(&mut rest, count),
            }
        }
        self.stream.flush().await
    }

    /// The content, stuffed: few large writes, nothing copied.
    async fn send_content(&mut self, rope: &[Bytes], limit_ms: u64) {
        let mut stuffer = Stuffer::new(rope);
        let mut batch = Vec::with_capacity(8);
        while !stuffer.is_done() {
            batch.clear();
            batch.extend(stuffer.by_ref().take(SLICES_MAX).map(IoSlice::new));
            let mut rest = &mut batch[..];
            while !rest.is_empty() {
                let last = stuffer.is_done();
                if last && !self.stream.counts_exactly() {
                    self.client.content_ending(monotonic_ms());
                }
                let wait_ms = self.client.deadline_ms().saturating_sub(monotonic_ms());
                match within(limit_ms, wait_ms, self.stream.write(rest)).await {
                    Some(Ok(0)) => return self.client.handle_trouble(Answer::Disconnected("closed by the server".into())),
                    Some(Ok(count)) => IoSlice::advance_slices(&mut rest, count),
                    Some(Err(error)) => return self.lost(Answer::Disconnected(error.to_string()), limit_ms).await,
                    None => return self.lost(Answer::Timeout, limit_ms).await,
                }
                self.client.content_progress(monotonic_ms());
            }
        }
        self.client.content_ending(monotonic_ms());
        match within(limit_ms, self.client.deadline_ms().saturating_sub(monotonic_ms()), self.stream.flush()).await {
            Some(Ok(())) => {}
            Some(Err(error)) => self.lost(Answer::Disconnected(error.to_string()), limit_ms).await,
            None => self.client.handle_trouble(Answer::Timeout),
        }
    }

    async fn shake_hands(&mut self, host: &str, tls: TlsUse, configs: &TlsConfigs, limit_ms: u64) {
        let failed = |why: String| Answer::Unable(Unable::TlsFailed(why));
        let config = match (tls, &configs.verified) {
            (TlsUse::Required, Ok(verified)) => Arc::clone(verified),
            (TlsUse::Required, Err(why)) => return self.client.handle_trouble(failed(why.clone())),
            _ => Arc::clone(&configs.any),
        };
        let name = match address_literal(host) {
            Some(address) => ServerName::IpAddress(address.into()),
            None => match ServerName::try_from(host.to_owned()) {
                Ok(name) => name,
                Err(error) => return self.client.handle_trouble(failed(format!("{host}: {error}"))),
            },
        };
        let Stream::Plain(stream) = std::mem::replace(&mut self.stream, Stream::Gone) else {
            return self.client.handle_trouble(failed("twice".into()));
        };
        let wait_ms = self.client.deadline_ms().saturating_sub(monotonic_ms());
        match within(limit_ms, wait_ms, TlsConnector::from(config).connect(name, stream)).await {
            Some(Ok(stream)) => {
                self.stream = Stream::Tls(Box::new(stream));
                self.client.handshake_done(monotonic_ms());
            }
            Some(Err(error)) => self.client.handle_trouble(failed(error.to_string())),
            None => self.client.handle_trouble(Answer::Timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        for (host, address) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("[192.0.2.1]", Some("192.0.2.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[IPv6:2001:db8::1]", Some("2001:db8::1")),
            ("mail.example", None),
            ("[mail.example]", None),
        ] {
            assert_eq!(address_literal(host), address.map(|a| a.parse().unwrap()), "{host}");
        }
    }
}
