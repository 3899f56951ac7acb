//! One task per connection: read, machine, act, write. What is decided about a message is decided elsewhere.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sekimori_crds::snapshot::ListenerLimits;
use sekimori_crds::stream::DrainKind;
use sekimori_crds::vocabulary::{self, DeliveryMode, ListenerTls, TenantState};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::config::{Config, Tenant};
use crate::envelope::{Client, Envelope, Recipient};
use crate::io::clock;
use crate::io::gateway::{Gateway, MemoryCharge};
use crate::io::listener::{Settings, TLS_HANDSHAKE_TIMEOUT};
use crate::io::tls;
use crate::io::transaction;
use crate::smtp::data::BareLineEndings;
use crate::smtp::limits::{Limits, RECIPIENTS_MAX, TENANTS_MAX, WRITE_MS};
use crate::smtp::reply::table as say;
use crate::smtp::server::{Event, MailCommand, MessageAnswer, Server, ServerOptions, TlsOffer};
use crate::smtp::{Address, Reply};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// A stream must be shut down within this.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);
/// A suspended tenant's mail is deferred for this long, then refused.
const SUSPENDED_DEFER_SECONDS: u64 = 7 * 24 * 3600;

/// Who is connected to what.
pub(crate) struct Peer {
    /// The client's address, by the PROXY header where one is taken.
    pub address: IpAddr,
    /// Whether it may be judged: a node or a pod of the cluster hides who it is.
    pub address_known: bool,
    /// The listener's settings, for the whole connection.
    pub listener: Arc<Settings>,
}

/// The transaction under way.
struct Transaction {
    config: Arc<Config>,
    command: MailCommand,
    recipients: Vec<Recipient>,
    tenants: Vec<Arc<Tenant>>,
    charge: MemoryCharge,
}

struct Session {
    gateway: Arc<Gateway>,
    peer: Peer,
    server: Server,
    client: Client,
    transaction: Option<Transaction>,
    stopping: watch::Receiver<bool>,
    draining: watch::Receiver<DrainKind>,
    stop_told: bool,
    /// Recipients of the transaction that lost its memory, until its content has been refused.
    forgotten_recipients: usize,
    started_us: u64,
    _counted: Arc<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.gateway.metrics.session_seconds.observe((clock::monotonic_us() - self.started_us) as f64 / 1e6);
    }
}

/// What a session was woken by, other than input.
enum Woken {
    Stop,
    Evicted,
    Late,
}

/// Why a conversation on one stream ended.
enum Ended {
    Closed,
    StartTls,
}

/// Serves a connection that begins in plain text.
pub(crate) async fn serve(mut stream: TcpStream, mut buffer: BytesMut, peer: Peer, gateway: Arc<Gateway>) {
    let offer = match (&peer.listener.tls, peer.listener.part.tls) {
        (None, _) | (_, ListenerTls::Disabled | ListenerTls::Implicit) => TlsOffer::Disabled,
        (Some(_), ListenerTls::Opportunistic) => TlsOffer::Optional,
        (Some(_), ListenerTls::Required) => TlsOffer::Required,
    };
    let mut session = Session::new(peer, gateway, offer, None, &mut buffer);
    let ended = session.converse(&mut stream, &mut buffer).await;
    if let (Ok(Ended::StartTls), Some(config)) = (&ended, session.peer.listener.tls.clone()) {
        match tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, tokio_rustls::TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(mut stream)) => {
                let description = tls::describe(stream.get_ref().1);
                session.client.tls = Some(description.clone());
                session.server.start_tls_done(description, clock::monotonic_ms());
                let ended = session.converse(&mut stream, &mut buffer).await;
                session.log_end(ended.err());
            }
            Ok(Err(error)) => tracing::debug!(client = %session.peer.address, %error, "STARTTLS failed"),
            Err(_) => tracing::debug!(client = %session.peer.address, "STARTTLS timed out"),
        }
        return;
    }
    session.log_end(ended.err());
}

/// Serves a connection that began with TLS.
pub(crate) async fn serve_tls<S: AsyncRead + AsyncWrite + Unpin>(mut stream: tokio_rustls::server::TlsStream<S>, peer: Peer, gateway: Arc<Gateway>) {
    let description = tls::describe(stream.get_ref().1);
    let mut buffer = BytesMut::new();
    let mut session = Session::new(peer, gateway, TlsOffer::Established, Some(description), &mut buffer);
    let ended = session.converse(&mut stream, &mut buffer).await;
    session.log_end(ended.err());
}

/// Whether a listener that takes no mail in clear has no certificate to offer TLS with.
fn tls_is_missing(listener: &Settings, offered: bool) -> bool {
    listener.part.tls == ListenerTls::Required && !offered
}

/// The bounds of a session. Whatever was written, no more recipients than can be told apart.
fn limits(part: &ListenerLimits) -> Limits {
    Limits {
        message_octets: part.message_size.0,
        recipients: part.recipients.min(RECIPIENTS_MAX),
        messages_per_session: part.messages_per_session,
        ..Limits::default()
    }
}

impl Session {
    /// `buffer`: what the client has sent already, which is before the banner.
    fn new(peer: Peer, gateway: Arc<Gateway>, tls: TlsOffer, description: Option<String>, buffer: &mut BytesMut) -> Self {
        let part = &peer.listener.part;
        let tls_offered = tls != TlsOffer::Disabled;
        let limits = limits(&part.limits);
        let hostname = gateway.config.load().fleet.hostname.clone();
        let bare_line_endings = match part.bare_line_endings {
            vocabulary::BareLineEndings::Refuse => BareLineEndings::Refuse,
            vocabulary::BareLineEndings::Normalise => BareLineEndings::Normalise,
        };
        let mut server = Server::new(ServerOptions { hostname, limits, tls, bare_line_endings }, clock::monotonic_ms());
        let (stopping, draining, counted) = (gateway.stopping.subscribe(), gateway.draining.subscribe(), Arc::clone(&gateway.sessions));
        if *stopping.borrow() || *draining.borrow() != DrainKind::None {
            server.refuse_connection(Reply::new(421, (4, 3, 2), "The gateway is stopping, try again later"));
        } else if tls_is_missing(&peer.listener, tls_offered) {
            // A permanent refusal would bounce what the next try delivers, and to take it in clear is what the listener forbids.
            server.refuse_connection(Reply::new(421, (4, 7, 0), "TLS is required here and not available now, try again later"));
        } else {
            server.input(clock::monotonic_ms(), buffer);
            if !server.is_closed() {
                server.greet();
            }
        }
        let client = Client { address: peer.address, helo: String::new(), esmtp: false, tls: description, address_known: peer.address_known };
        let started_us = clock::monotonic_us();
        Self {
            gateway,
            peer,
            server,
            client,
            transaction: None,
            stopping,
            draining,
            stop_told: false,
            forgotten_recipients: 0,
            started_us,
            _counted: counted,
        }
    }

    /// Talks until the connection closes or is to become TLS.
    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut S, buffer: &mut BytesMut) -> std::io::Result<Ended> {
        loop {
            let before = buffer.len();
            self.server.input(clock::monotonic_ms(), buffer);
            self.charge();
            let mut idle = buffer.len() == before;
            while let Some(event) = self.server.poll_event() {
                idle = false;
                match event {
                    Event::StartTls => {
                        self.flush(stream).await?;
                        return Ok(Ended::StartTls);
                    }
                    Event::Message(content) => {
                        // What the client may already see (nothing, mostly) goes out before the scan, as the scan takes time.
                        self.flush(stream).await?;
                        let answer = self.message(content).await;
                        self.server.answer_message(answer);
                    }
                    event => self.event(event),
                }
            }
            // The machine takes no input while many replies wait to be written, so after a flush there may be more to do.
            if !idle && !buffer.is_empty() && !self.server.is_closed() {
                if !self.server.wants_input() {
                    self.flush(stream).await?;
                }
                continue;
            }
            self.flush(stream).await?;
            if self.server.is_closed() {
                // Over TLS this writes, and somebody who does not read must not keep a session for ever.
                tokio::time::timeout(SHUTDOWN_WITHIN, stream.shutdown()).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
                return Ok(Ended::Closed);
            }
            if !self.wait(stream, buffer).await? {
                return Ok(Ended::Closed);
            }
        }
    }

    /// Waits for input, a deadline, an eviction or the stop; false: the client is gone.
    async fn wait<S: AsyncRead + Unpin>(&mut self, stream: &mut S, buffer: &mut BytesMut) -> std::io::Result<bool> {
        let left = Duration::from_millis(self.server.deadline_ms().saturating_sub(clock::monotonic_ms()));
        if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
            buffer.reserve(READ_BYTES);
        }
        let Self { transaction, stopping, draining, .. } = self;
        let evicted = async {
            match transaction {
                Some(transaction) => transaction.charge.evicted.notified().await,
                None => std::future::pending().await,
            }
        };
        let stop_told = self.stop_told;
        let woken = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop), if !stop_told => Woken::Stop,
            // Taken back, it still ends this session: its client comes again.
            _ = draining.wait_for(|drain| *drain != DrainKind::None), if !stop_told => Woken::Stop,
            () = evicted => Woken::Evicted,
            read = stream.read_buf(buffer) => return Ok(read? > 0),
            () = tokio::time::sleep(left) => Woken::Late,
        };
        match woken {
            Woken::Stop => {
                self.stop_told = true;
                self.server.shutdown();
            }
            Woken::Evicted => self.out_of_memory(),
            Woken::Late => self.server.timeout(clock::monotonic_ms()),
        }
        Ok(true)
    }

    async fn flush<S: AsyncWrite + Unpin>(&mut self, stream: &mut S) -> std::io::Result<()> {
        let output = self.server.output();
        if output.is_empty() {
            return Ok(());
        }
        let written = tokio::time::timeout(Duration::from_millis(WRITE_MS), stream.write_all(output)).await;
        output.clear();
        written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
        stream.flush().await
    }

    /// Charges the content that has arrived to the memory budget.
    fn charge(&mut self) {
        let bytes = self.server.content_len() as u64;
        if let Some(transaction) = &mut self.transaction
            && !transaction.charge.grow_to(bytes)
        {
            self.out_of_memory();
        }
    }

    /// The budget has no more for this message: its memory is given back at once.
    fn out_of_memory(&mut self) {
        self.server.refuse_content(transaction::out_of_memory(&self.gateway.metrics));
        self.forgotten_recipients = self.transaction.take().map_or(0, |transaction| transaction.recipients.len());
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Hello { name, esmtp } => {
                self.client.helo = name;
                self.client.esmtp = esmtp;
            }
            Event::Mail(command) => {
                self.transaction = Some(Transaction {
                    config: self.gateway.config.load_full(),
                    command,
                    recipients: vec![],
                    tenants: vec![],
                    charge: self.gateway.memory.begin(self.client.address_known.then_some(self.client.address)),
                });
                self.server.answer_mail(Ok(()));
            }
            Event::Rcpt(address) => {
                let answer = self.recipient(address);
                self.server.answer_rcpt(answer);
            }
            Event::Data => self.server.answer_data(Ok(())),
            Event::ContentRefused(reply) => {
                tracing::info!(event = "content-refused", client = %self.client.address, helo = self.client.helo, reply = %reply, "content refused");
                // The metric counts recipients' copies, as it does for a message that is refused later.
                let forgotten = std::mem::take(&mut self.forgotten_recipients);
                let copies = self.transaction.take().map_or(forgotten, |transaction| transaction.recipients.len());
                let what = if reply.is_transient() { "deferred" } else { "rejected" };
                self.gateway.metrics.messages.with_label_values(&[what]).inc_by(copies as u64);
            }
            Event::Reset => self.transaction = None,
            Event::Closed { reason } => {
                self.transaction = None;
                tracing::debug!(client = %self.client.address, helo = self.client.helo, ?reason, "session over");
            }
            Event::Message(_) | Event::StartTls => {}
        }
    }

    /// Whether we take mail for a recipient.
    fn recipient(&mut self, address: Address) -> Result<(), Reply> {
        let Some(transaction) = &mut self.transaction else { return Err(Reply::new(503, (5, 5, 1), "MAIL first")) };
        let domain = idna::domain_to_ascii(&address.domain).unwrap_or_default();
        let tenant = transaction.config.tenant_of(&domain).ok_or_else(|| {
            if transaction.config.defers(&domain) {
                Reply::new(451, (4, 3, 5), format!("<{address}>: the configuration of {} cannot be used here yet, try again later", address.domain))
            } else {
                Reply::new(550, (5, 7, 1), format!("<{address}>: relaying denied, this gateway does not serve {}", address.domain))
            }
        })?;
        if tenant.part.state == TenantState::Suspended {
            let since = tenant.part.suspended_since.unwrap_or_else(|| clock::unix_ms() / 1000);
            return Err(if clock::unix_ms() / 1000 < since + SUSPENDED_DEFER_SECONDS {
                Reply::new(450, (4, 2, 1), format!("<{address}>: the domain is suspended, try again later"))
            } else {
                Reply::new(550, (5, 2, 1), format!("<{address}>: the domain is suspended"))
            });
        }
        // One recipient per transaction, so that the next hop's answer can be ours.
        let inline = tenant.part.delivery == DeliveryMode::Inline || transaction.tenants.iter().any(|t| t.part.delivery == DeliveryMode::Inline);
        if inline && !transaction.recipients.is_empty() {
            return Err(Reply::new(452, (4, 5, 3), "One recipient per message, send the others in their own"));
        }
        if !transaction.tenants.iter().any(|known| known.key == tenant.key) {
            if transaction.tenants.len() >= TENANTS_MAX {
                return Err(say::TOO_MANY_TENANTS.into());
            }
            if let Some(per_hour) = tenant.part.messages_per_hour {
                let mut rates = self.gateway.rates.lock().expect("no panic while held");
                if !rates.allows(&tenant.key, self.gateway.share_of_rate(per_hour), clock::monotonic_ms()) {
                    self.gateway.metrics.shed.with_label_values(&["messagesPerHour"]).inc();
                    return Err(Reply::new(450, (4, 7, 1), format!("<{address}>: the domain's message rate is exceeded, try again later")));
                }
            }
            transaction.tenants.push(Arc::clone(tenant));
        }
        let recipient = Recipient { address, tenant: Arc::clone(&tenant.key) };
        transaction.recipients.push(recipient);
        Ok(())
    }

    /// A message that has come counts for each of its tenants' rates.
    fn charge_rates(&self, tenants: &[Arc<Tenant>]) {
        for tenant in tenants {
            if let Some(per_hour) = tenant.part.messages_per_hour {
                self.gateway.rates.lock().expect("no panic while held").take(
                    &tenant.key,
                    self.gateway.share_of_rate(per_hour),
                    clock::monotonic_ms(),
                );
            }
        }
    }

    /// All of a message is here: what is to be said.
    async fn message(&mut self, content: Bytes) -> MessageAnswer {
        let Some(mut transaction) = self.transaction.take() else {
            return transaction::refused(Reply::new(451, (4, 3, 0), "Internal error, try again later"));
        };
        if !transaction.charge.grow_to(content.len() as u64) || !transaction.charge.received() {
            self.gateway.metrics.shed.with_label_values(&["messageMemory"]).inc();
            return transaction::refused(Reply::new(452, (4, 3, 1), "Not enough memory for this message now, try again later"));
        }
        self.charge_rates(&transaction.tenants);
        let envelope = Envelope {
            id: clock::queue_id(),
            received_ms: clock::unix_ms(),
            client: self.client.clone(),
            sender: transaction.command.from,
            recipients: transaction.recipients,
            eight_bit: transaction.command.eight_bit,
            smtputf8: transaction.command.smtputf8,
        };
        // Its own task: if the client hangs up meanwhile, or something in it panics, the message still comes to an end of its own.
        let listener = Arc::clone(&self.peer.listener);
        let work = transaction::Work { gateway: Arc::clone(&self.gateway), config: transaction.config, listener: listener.part.name.clone() };
        let mut charge = transaction.charge;
        let task = tokio::spawn(async move { transaction::run(work, envelope, content, &mut charge).await });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a transaction broke");
            transaction::refused(Reply::new(451, (4, 3, 0), "Internal error, try again later"))
        })
    }

    fn log_end(&self, error: Option<std::io::Error>) {
        if let Some(error) = error {
            tracing::debug!(client = %self.client.address, helo = self.client.helo, %error, "connection lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipient_of_a_transaction_has_an_index() {
        let part = |recipients| ListenerLimits {
            connections: 1,
            connections_per_address: 1,
            messages_per_session: 1,
            recipients,
            message_size: sekimori_crds::units::ByteSize(1 << 20),
        };
        assert_eq!(limits(&part(1_000)).recipients, 1_000);
        assert_eq!(limits(&part(100_000)).recipients, RECIPIENTS_MAX, "an older schema allowed this");
        assert!(u16::try_from(RECIPIENTS_MAX).is_ok());
    }
}
