//! The resolver over the network: hickory, with our servers, our times, and no cache of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::lookup::Lookup as Answer;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

use super::{ANSWER_BYTES_MAX, ANSWER_RECORDS_MAX, Absence, Kind, Lookup, Mx, Question, Record, Reply, Resolver};

/// Seconds that an absence is kept when the server does not say (no SOA record).
const NEGATIVE_TTL_DEFAULT_S: u32 = 60;

/// Questions in a row that got no answer at all, after which less patience is spent on each: a dead resolver must not hold up all mail. Nothing is
/// refused for it, so that names whose servers are silent, asked for on purpose, do no worse than that.
const SILENCE_MAX: u32 = 8;

/// The part of `timeout_ms` that is waited for then, once.
const SILENT_TIMEOUT_DIVISOR: u32 = 3;

/// Whom to ask and how long to wait.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Servers, asked over UDP, and over TCP when an answer is cut short. None: those of the system (`/etc/resolv.conf`).
    pub servers: Vec<SocketAddr>,
    /// Milliseconds that one attempt waits.
    pub timeout_ms: u64,
    /// Attempts for one question, the first included.
    pub attempts: u32,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self { servers: vec![], timeout_ms: 1500, attempts: 2 }
    }
}

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The system's own configuration.
    #[error("the system's DNS configuration cannot be read ({0}); name DNS servers explicitly")]
    System(String),
    /// Hickory refuses.
    #[error("the DNS resolver cannot be set up: {0}")]
    SetUp(String),
}

/// A resolver over the network.
pub struct Network {
    resolver: TokioResolver,
    timeout: Duration,
    attempts: u32,
    /// Questions in a row without any answer.
    unanswered: AtomicU32,
}

impl Network {
    /// Must be called within a tokio runtime. Asks nothing yet.
    pub fn new(options: &NetworkOptions) -> Result<Self, NetworkError> {
        let (config, mut hickory) = if options.servers.is_empty() {
            let (system, hickory) = hickory_resolver::system_conf::read_system_conf().map_err(|error| NetworkError::System(error.to_string()))?;
            // No search list: every name that we ask for is complete.
            (ResolverConfig::from_parts(None, vec![], system.name_servers().to_vec()), hickory)
        } else {
            let servers = options.servers.iter().map(server).collect();
            (ResolverConfig::from_parts(None, vec![], servers), ResolverOpts::default())
        };
        hickory.timeout = Duration::from_millis(options.timeout_ms);
        hickory.attempts = 0;
        hickory.cache_size = 0;
        hickory.use_hosts_file = ResolveHosts::Never;
        hickory.edns0 = true;
        hickory.preserve_intermediates = false;
        hickory.num_concurrent_reqs = 1;
        hickory.max_active_requests = 1024;
        hickory.server_ordering_strategy = ServerOrderingStrategy::QueryStatistics;
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(hickory)
            .build()
            .map_err(|error| NetworkError::SetUp(error.to_string()))?;
        Ok(Self { resolver, timeout: Duration::from_millis(options.timeout_ms), attempts: options.attempts.max(1), unanswered: AtomicU32::new(0) })
    }

    /// One attempt after another; only what may be otherwise the next time is tried again.
    async fn ask(&self, question: &Question) -> Reply {
        let Ok(mut name) = Name::from_labels(question.name().split('.').map(str::as_bytes)) else {
            return Reply { lookup: Lookup::Absent(Absence::Name), ttl_s: NEGATIVE_TTL_DEFAULT_S };
        };
        name.set_fqdn(true);
        let kind = record_type(question.kind());
        // The answer may be cut short and asked for again over TCP: hence twice the time of one exchange.
        let (attempts, patience) = match self.unanswered.load(Ordering::Relaxed) {
            0..SILENCE_MAX => (self.attempts, self.timeout * 2),
            _ => (1, self.timeout / SILENT_TIMEOUT_DIVISOR),
        };
        let mut answered = false;
        let mut last = Reply::TEMP_ERROR;
        for _ in 0..attempts {
            last = match tokio::time::timeout(patience, self.resolver.lookup(name.clone(), kind)).await {
                Ok(Ok(answer)) => {
                    answered = true;
                    records(&answer, question.kind())
                }
                Ok(Err(error)) => {
                    answered |= matches!(error, NetError::Dns(_));
                    refusal(&error)
                }
                Err(_) => Reply::TEMP_ERROR,
            };
            if last.lookup != Lookup::TempError {
                break;
            }
        }
        if answered {
            self.unanswered.store(0, Ordering::Relaxed);
        } else {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
        last
    }
}

impl Resolver for Network {
    fn resolve<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Reply> {
        Box::pin(self.ask(question))
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].into_iter().map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.collect())
}

fn record_type(kind: Kind) -> RecordType {
    match kind {
        Kind::A => RecordType::A,
        Kind::Aaaa => RecordType::AAAA,
        Kind::Mx => RecordType::MX,
        Kind::Ptr => RecordType::PTR,
        Kind::Txt => RecordType::TXT,
    }
}

fn refusal(error: &NetError) -> Reply {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let ttl_s = none.negative_ttl.unwrap_or(NEGATIVE_TTL_DEFAULT_S);
            match none.response_code {
                ResponseCode::NXDomain => Reply { lookup: Lookup::Absent(Absence::Name), ttl_s },
                ResponseCode::NoError => Reply { lookup: Lookup::Absent(Absence::Data), ttl_s },
                _ => Reply::TEMP_ERROR,
            }
        }
        NetError::Proto(_) => Reply { lookup: Lookup::Malformed, ttl_s: 0 },
        _ => Reply::TEMP_ERROR,
    }
}

/// The records of the type that was asked for (an alias on the way is not one).
fn records(answer: &Answer, kind: Kind) -> Reply {
    let mut ttl_s = u32::MAX;
    let mut bytes = 0;
    let mut found = vec![];
    for record in answer.answers().iter().take(ANSWER_RECORDS_MAX) {
        ttl_s = ttl_s.min(record.ttl);
        let Some(record) = convert(&record.data, kind) else { continue };
        bytes += record.bytes();
        if bytes > ANSWER_BYTES_MAX {
            return Reply { lookup: Lookup::Malformed, ttl_s: 0 };
        }
        found.push(record);
    }
    if found.is_empty() {
        return Reply { lookup: Lookup::Absent(Absence::Data), ttl_s: NEGATIVE_TTL_DEFAULT_S };
    }
    Reply { lookup: Lookup::Records(found.into()), ttl_s }
}

fn convert(data: &RData, kind: Kind) -> Option<Record> {
    match (data, kind) {
        (RData::A(address), Kind::A) => Some(Record::A(address.0)),
        (RData::AAAA(address), Kind::Aaaa) => Some(Record::Aaaa(address.0)),
        (RData::MX(mx), Kind::Mx) => Some(Record::Mx(Mx { preference: mx.preference, exchange: name_text(&mx.exchange)? })),
        (RData::PTR(name), Kind::Ptr) => Some(Record::Ptr(name_text(&name.0)?)),
        (RData::TXT(text), Kind::Txt) => Some(Record::Txt(match text.txt_data.as_ref() {
            [one] => Bytes::copy_from_slice(one),
            many => Bytes::from(many.concat()),
        })),
        _ => None,
    }
}

/// Lower case, no final dot; the root is empty. `None` for labels that hold a dot or are no text: nothing of ours asks for such a name.
fn name_text(name: &Name) -> Option<Arc<str>> {
    let mut text = String::with_capacity(64);
    for label in name.iter() {
        let label = std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))?;
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(label);
    }
    text.make_ascii_lowercase();
    Some(text.into())
}
