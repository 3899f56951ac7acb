//! The stream to the operator, this gateway's side: configuration and orders in, acknowledgements and reports out.
//!
//! It comes and goes: nothing of mail depends on it. What arrives is handed on as [`Event`]s, in order; what this side has to say is put into
//! [`Standing`], and the newest of it is said, to whatever operator answers.

mod report;

pub use report::Reporter;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sekimori_crds::snapshot::FORMAT;
use sekimori_crds::stream::configuration_client::ConfigurationClient;
use sekimori_crds::stream::{
    Applied, Changes, DrainKind, FromGateway, Hello, MESSAGE_BYTES_MAX, Orders, Position, REPORT_EVERY_MS, from_gateway, to_gateway,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::config::CAPABILITIES;
use crate::io::clock;

/// Pieces and orders that wait to be taken in, at most: each may have [`MESSAGE_BYTES_MAX`].
const EVENTS_MAX: usize = 4;
/// Messages that wait to be sent, at most.
const OUTBOX_MAX: usize = 16;
/// The operator takes what is sent within this, or is taken for gone.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// TCP and TLS within this. Not long: what a leader that is gone left in the Service swallows connections until the endpoint goes, too.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Octets on their way to us at once: a whole snapshot is some hundred MiB.
const WINDOW_BYTES: u32 = 4 << 20;
/// The stream is answered within this.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// A ping every so often, answered within [`PING_WITHIN`], or the connection is dead.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WITHIN: Duration = Duration::from_secs(5);
/// The last word is heard within this, or not at all.
const FAREWELL_WITHIN: Duration = Duration::from_secs(3);
/// While a drain goes on, its end is looked for this often, so that nobody waits for a report.
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// A token or a CA file is no larger than this, in octets.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Pauses before the next try: doubled from the first to the last, and up to a half less.
const PAUSE_MIN_MS: u64 = 200;
const PAUSE_MAX_MS: u64 = 5_000;
/// After "not leader": another one is there, or will be soon.
const PAUSE_NOT_LEADER_MS: u64 = 1_000;
/// A stream that lived so long was a good one: the next pause is short again, milliseconds.
const GOOD_AFTER_MS: u64 = 5_000;
/// The same failure is logged again after so long, milliseconds.
const LOG_EVERY_MS: u64 = 60_000;

/// Where the operator is, and how it is talked to.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port`.
    pub address: String,
    /// Certificates that vouch for it.
    pub authority: PathBuf,
    /// Our token.
    pub token: PathBuf,
    /// How often the token is looked at for a fresh one. 30 s.
    pub token_every: Duration,
}

/// What came.
#[derive(Debug)]
pub enum Event {
    /// A stream began: what came in pieces before is void.
    Began,
    /// A piece of a way.
    Changes(Changes),
    /// What to do.
    Orders(Orders),
}

/// Where this gateway stands.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The position that it is at; none: it wants everything.
    pub have: Option<Position>,
    /// Tenants that it has.
    pub tenants: u32,
    /// The last acknowledgement.
    pub applied: Option<Applied>,
}

/// The stream's other end within this process.
pub struct Follower {
    /// What comes.
    pub events: mpsc::Receiver<Event>,
    /// What is said.
    pub standing: watch::Sender<Standing>,
    farewell: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Follower {
    /// This process is about to end: reports go on, and what still comes is for nobody.
    pub fn wind_up(&mut self) {
        let mut events = std::mem::replace(&mut self.events, mpsc::channel(1).1);
        tokio::spawn(async move { while events.recv().await.is_some() {} });
    }

    /// Says the last word, once nothing can be taken in any more; an operator that does not answer is not waited for longer than [`FAREWELL_WITHIN`].
    pub async fn farewell(mut self) {
        self.farewell.send_replace(true);
        if timeout(FAREWELL_WITHIN, &mut self.task).await.is_err() {
            tracing::warn!("the operator was not told how this gateway ended: it keeps the volume's claim until it knows better");
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a stream ended or did not begin.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: String },
    #[error("cannot connect to the operator at {address}: {cause}")]
    Connect { address: String, cause: String },
    #[error("the operator at {address} is not the leader")]
    NotLeader { address: String },
    #[error("the operator ended the stream: {0}")]
    Status(String),
    #[error("the operator does not take what is sent to it")]
    Stuck,
    #[error("this process ends")]
    Over,
}

/// Follows the operator until the handle is dropped. Must be called within a tokio runtime.
pub fn follow(options: Options, standing: Standing, reporter: Reporter) -> Follower {
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    let standing = watch::Sender::new(standing);
    let farewell = watch::Sender::new(false);
    let stream = Stream { options, events, standing: standing.subscribe(), farewell: farewell.subscribe(), reporter };
    Follower { events: receiver, standing, farewell, task: tokio::spawn(stream.run()) }
}

struct Stream {
    options: Options,
    events: mpsc::Sender<Event>,
    standing: watch::Receiver<Standing>,
    farewell: watch::Receiver<bool>,
    reporter: Reporter,
}

/// The pause before the next try: with the tries that failed in a row, and randomness.
fn pause_ms(failed: u32, not_leader: bool, random: u64) -> u64 {
    let whole = if not_leader { PAUSE_NOT_LEADER_MS } else { PAUSE_MIN_MS.saturating_mul(1 << failed.min(10)).min(PAUSE_MAX_MS) };
    whole - random % (whole / 2)
}

impl Stream {
    async fn run(mut self) {
        let mut failed = 0u32;
        let mut said: Option<(String, u64)> = None;
        loop {
            let began_ms = clock::monotonic_ms();
            let trouble = match self.once().await {
                Err(trouble) => trouble,
                Ok(never) => match never {},
            };
            self.reporter.connected(false);
            let now_ms = clock::monotonic_ms();
            if matches!(trouble, Trouble::Over) {
                return;
            }
            failed = if now_ms.saturating_sub(began_ms) >= GOOD_AFTER_MS + CONNECT_WITHIN.as_millis() as u64 { 0 } else { failed + 1 };
            let text: String = trouble.to_string().chars().take(500).collect();
            if said.as_ref().is_none_or(|(last, at_ms)| *last != text || now_ms >= at_ms + LOG_EVERY_MS) {
                tracing::warn!(error = text, "no stream to the operator: the configuration in force stays");
                said = Some((text, now_ms));
            }
            let not_leader = matches!(trouble, Trouble::NotLeader { .. });
            sleep(Duration::from_millis(pause_ms(failed.saturating_sub(1), not_leader, clock::random() as u64))).await;
        }
    }

    /// One stream, until it ends.
    async fn once(&mut self) -> Result<std::convert::Infallible, Trouble> {
        let mut token = read(&self.options.token).await?;
        let mut client = self.connect().await?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let standing = self.standing.borrow_and_update().clone();
        say(&outbox, from_gateway::Body::Hello(hello(&standing))).await?;
        if let Some(applied) = standing.applied.filter(|_| standing.have.is_some()) {
            // Who leads now may not know what is refused here.
            say(&outbox, from_gateway::Body::Applied(applied)).await?;
        }
        let mut request = Request::new(ReceiverStream::new(messages));
        let bearer = format!("Bearer {token}").parse().map_err(|_| self.file_trouble("it is no token"))?;
        request.metadata_mut().insert("authorization", bearer);
        let opened = timeout(OPEN_WITHIN, client.follow(request)).await.map_err(|_| Trouble::Status("no answer".into()))?;
        let mut incoming = opened.map_err(|status| self.status(&status))?.into_inner();
        self.hand_on(Event::Began).await?;
        self.reporter.connected(true);
        tracing::info!(event = "following", operator = self.options.address, "the stream to the operator is up");

        let mut reports = interval(Duration::from_millis(REPORT_EVERY_MS));
        let mut tokens = interval(self.options.token_every);
        tokens.reset();
        let mut watch = interval(WATCH_EVERY);
        let mut watched = self.reporter.drain();
        loop {
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(message)) => match message.body {
                        Some(to_gateway::Body::Changes(changes)) => self.hand_on(Event::Changes(changes)).await?,
                        Some(to_gateway::Body::Orders(orders)) => self.hand_on(Event::Orders(orders)).await?,
                        None => {}
                    },
                    Ok(None) => return Err(Trouble::Status("without a word".into())),
                    Err(status) => return Err(self.status(&status)),
                },
                changed = self.standing.changed() => {
                    changed.map_err(|_| Trouble::Over)?;
                    let applied = self.standing.borrow_and_update().applied.clone();
                    if let Some(applied) = applied {
                        say(&outbox, from_gateway::Body::Applied(applied)).await?;
                    }
                }
                () = ended(&mut self.farewell) => {
                    say(&outbox, from_gateway::Body::Report(self.reporter.last_word())).await?;
                    // The end of what we say: the operator ends its side when it has heard all of it.
                    drop(outbox);
                    while incoming.message().await.is_ok_and(|message| message.is_some()) {}
                    return Err(Trouble::Over);
                }
                _ = reports.tick() => say(&outbox, from_gateway::Body::Report(self.reporter.report())).await?,
                _ = watch.tick() => {
                    let seen = self.reporter.drain();
                    if seen != watched && (seen.0 != DrainKind::None || watched.0 != DrainKind::None) {
                        say(&outbox, from_gateway::Body::Report(self.reporter.report())).await?;
                        reports.reset();
                    }
                    watched = seen;
                }
                _ = tokens.tick() => match read(&self.options.token).await {
                    Ok(fresh) if fresh != token => {
                        token.clone_from(&fresh);
                        say(&outbox, from_gateway::Body::Token(fresh)).await?;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "the token for the operator cannot be read"),
                },
            }
        }
    }

    async fn connect(&self) -> Result<ConfigurationClient<tonic::transport::Channel>, Trouble> {
        let address = &self.options.address;
        let trouble = |cause: String| Trouble::Connect { address: address.clone(), cause };
        let authority = read(&self.options.authority).await?;
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).trim_matches(['[', ']']);
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name(host);
        let endpoint =
            Endpoint::from_shared(format!("https://{address}")).and_then(|endpoint| endpoint.tls_config(tls)).map_err(|e| trouble(chain(&e)))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true);
        let channel = timeout(CONNECT_WITHIN, endpoint.connect()).await.map_err(|_| trouble("no answer in 3 s".into()))?;
        let channel = channel.map_err(|error| trouble(chain(&error)))?;
        Ok(ConfigurationClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    async fn hand_on(&self, event: Event) -> Result<(), Trouble> {
        self.events.send(event).await.map_err(|_| Trouble::Over)
    }

    fn status(&self, status: &Status) -> Trouble {
        if status.code() == tonic::Code::Unavailable && status.message().contains("not leader") {
            return Trouble::NotLeader { address: self.options.address.clone() };
        }
        Trouble::Status(format!("{:?}: {}", status.code(), status.message()))
    }

    fn file_trouble(&self, cause: &str) -> Trouble {
        Trouble::File { path: self.options.token.clone(), cause: cause.to_owned() }
    }
}

/// An error with its causes, which tonic keeps for itself.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn hello(standing: &Standing) -> Hello {
    Hello {
        version: env!("CARGO_PKG_VERSION").into(),
        capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
        format: FORMAT,
        have: standing.have.clone(),
        tenants: standing.tenants,
        now_ms: clock::unix_ms(),
    }
}

/// Waits until it is time for the last word; for ever if there will be none.
async fn ended(farewell: &mut watch::Receiver<bool>) {
    if farewell.wait_for(|ended| *ended).await.is_err() {
        std::future::pending().await
    }
}

async fn say(outbox: &mpsc::Sender<FromGateway>, body: from_gateway::Body) -> Result<(), Trouble> {
    match timeout(SEND_WITHIN, outbox.send(FromGateway { body: Some(body) })).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Trouble::Stuck),
    }
}

/// A small text file, without white space around it.
async fn read(path: &Path) -> Result<String, Trouble> {
    let trouble = |cause: String| Trouble::File { path: path.to_owned(), cause };
    let length = tokio::fs::metadata(path).await.map_err(|error| trouble(error.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(trouble(format!("{length} octets, at most {FILE_BYTES_MAX}")));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|error| trouble(error.to_string()))?;
    if text.trim().is_empty() { Err(trouble("it is empty".into())) } else { Ok(text.trim().to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_bounds() {
        for (failed, not_leader, least, most) in [
            (0, false, 101, 200),
            (1, false, 201, 400),
            (4, false, 1601, 3200),
            (5, false, 2501, 5000),
            (u32::MAX, false, 2501, 5000),
            (9, true, 501, 1000),
        ] {
            for random in [0, 1, 99, 12_345, u64::MAX] {
                let pause = pause_ms(failed, not_leader, random);
                assert!((least..=most).contains(&pause), "{failed} {not_leader} {random}: {pause}");
            }
        }
    }
}
