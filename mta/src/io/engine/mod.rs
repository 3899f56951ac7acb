//! Scanning engines: the trait that a protocol implements, the guard around every one of them, and the collection that a message is given to.
//!
//! A new protocol is one new file here and one line in [`connect_engine`]. Engines do not know each other, nor SMTP, nor policy: they answer with a finding.

pub mod builtin_spam;
pub mod builtin_virus;
pub mod clamd;
mod collection;
pub mod fake;
pub mod guard;
pub mod rspamd;
mod stream;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use sekimori_crds::snapshot::{EngineEndpoint, EnginePart};
use sekimori_crds::vocabulary::{EngineClass, EngineMode, EngineProtocol};

use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

pub use collection::{Connector, ENGINES_MAX, Engines, Observer, Options, Warm};
pub use guard::{EngineStatus, ProbeReport};
pub use stream::Address;

use crate::envelope::Envelope;
use crate::message::Message;
use crate::verdict::{Evidence, Failure, Finding};

/// What an engine is given.
#[derive(Clone, Debug)]
pub struct Job {
    /// The message.
    pub message: Arc<Message>,
    /// Its envelope.
    pub envelope: Arc<Envelope>,
    /// Made when somebody asks, once for all engines.
    digest: Arc<OnceCell<[u8; 32]>>,
}

/// A message of this size and more is hashed on a thread of its own.
const HASH_APART_BYTES: usize = 512 << 10;

impl Job {
    /// A message to scan.
    pub fn new(message: Arc<Message>, envelope: Arc<Envelope>) -> Self {
        Self { message, envelope, digest: Arc::default() }
    }

    /// SHA-256 of the raw message: for convictions and caches. It costs as much as a scan by a quick engine, and is needed where an engine died lately.
    pub async fn digest(&self) -> [u8; 32] {
        let make = async || {
            let raw = self.message.raw.clone();
            if raw.len() >= HASH_APART_BYTES
                && let Ok(digest) = tokio::task::spawn_blocking(move || Sha256::digest(&raw).into()).await
            {
                return digest;
            }
            Sha256::digest(&self.message.raw).into()
        };
        *self.digest.get_or_init(make).await
    }
}

/// What an engine answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The finding; never [`Finding::Failed`] from an engine itself.
    pub finding: Finding,
    /// Heuristic names.
    pub evidence: Vec<Evidence>,
    /// The version that answered, if the answer or the connection said so.
    pub version: Option<Arc<str>>,
}

/// A boxed future, as `async fn` in a trait is not object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A scanning engine: one protocol to one endpoint. Deadline, concurrency, breaker and probes are the guard's, not its own.
pub trait Engine: Send + Sync {
    /// Scans one message. May be dropped at any await (the deadline), and must then leave nothing behind but a closed connection.
    fn scan<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Answer, Failure>>;

    /// The version in use, asked for over the protocol where it has one. It must not touch a connection that was used before: an answer means that
    /// the engine lives now.
    fn version(&self) -> BoxFuture<'_, Result<Arc<str>, Failure>>;

    /// When its signatures were made, seconds since 1970, where its answer to [`Self::version`] says so.
    fn signatures_made_s(&self) -> Option<u64> {
        None
    }

    /// How often a connection broke with a message on it, ever. A scan that fails as [`Failure::Unreachable`] while this grew was in flight when the
    /// engine died, so its message is a suspect. An engine that cannot die, or tells it by a panic, leaves it at 0.
    fn deaths(&self) -> u64 {
        0
    }
}

/// Why an engine cannot be connected. All of these are the configuration's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The protocol is not one of this build.
    #[error("engine '{engine}': this build does not speak {protocol}; use Clamd, Rspamd or Builtin")]
    NotSupported {
        /// Name of the engine.
        engine: String,
        /// Its protocol.
        protocol: EngineProtocol,
    },
    /// An endpoint that does not fit the protocol.
    #[error("engine '{engine}': {protocol} needs an address (host:port) or a socket path; a Builtin engine has neither")]
    Endpoint {
        /// Name of the engine.
        engine: String,
        /// Its protocol.
        protocol: EngineProtocol,
    },
    /// No such engine inside this gateway.
    #[error("engine '{engine}': there is no built-in engine of class {class} here; use AntiVirus or AntiSpam")]
    NoBuiltin {
        /// Name of the engine.
        engine: String,
        /// Its class.
        class: EngineClass,
    },
    /// Two engines of one name.
    #[error("engine '{engine}' is listed twice; names are keys")]
    Duplicate {
        /// The name.
        engine: String,
    },
    /// More engines than a message is given to.
    #[error("{count} engines, at most {ENGINES_MAX}; remove or disable some")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// The engines inside this gateway, made by whoever starts it.
#[derive(Clone, Default)]
pub struct Builtins {
    /// For class AntiVirus.
    pub virus: Option<Arc<dyn Engine>>,
    /// For class AntiSpam.
    pub spam: Option<Arc<dyn Engine>>,
}

/// Whether [`Engines`] would take these engines: what can be known without any of them.
pub fn check(parts: &[EnginePart]) -> Result<(), ConnectError> {
    let spam: Arc<dyn Engine> = Arc::new(builtin_spam::BuiltinSpam::new());
    let builtins = Builtins { virus: Some(Arc::clone(&spam)), spam: Some(spam) };
    let enabled: Vec<&EnginePart> = parts.iter().filter(|part| part.mode != EngineMode::Disabled).collect();
    if enabled.len() > ENGINES_MAX {
        return Err(ConnectError::TooMany { count: enabled.len() });
    }
    let mut names = std::collections::HashSet::new();
    for part in enabled {
        if !names.insert(part.name.as_str()) {
            return Err(ConnectError::Duplicate { engine: part.name.clone() });
        }
        connect_engine(part, &builtins)?;
    }
    Ok(())
}

/// Makes the client of an engine; connections are made when needed. One line per protocol.
pub fn connect_engine(part: &EnginePart, builtins: &Builtins) -> Result<Arc<dyn Engine>, ConnectError> {
    let address = || match &part.endpoint {
        EngineEndpoint::Address(address) => Ok(stream::Address::Tcp(address.clone())),
        EngineEndpoint::Socket(path) => Ok(stream::Address::Unix(path.into())),
        EngineEndpoint::Builtin => Err(ConnectError::Endpoint { engine: part.name.clone(), protocol: part.protocol }),
    };
    let builtin =
        |engine: &Option<Arc<dyn Engine>>| engine.clone().ok_or_else(|| ConnectError::NoBuiltin { engine: part.name.clone(), class: part.class });
    match part.protocol {
        EngineProtocol::Clamd => Ok(Arc::new(clamd::Clamd::new(address()?))),
        EngineProtocol::Rspamd => Ok(Arc::new(rspamd::Rspamd::new(address()?))),
        EngineProtocol::Builtin => match part.class {
            EngineClass::AntiVirus => builtin(&builtins.virus),
            EngineClass::AntiSpam => builtin(&builtins.spam),
            EngineClass::Sandbox => builtin(&None),
        },
        EngineProtocol::Spamd | EngineProtocol::Icap | EngineProtocol::Milter | EngineProtocol::Http => {
            Err(ConnectError::NotSupported { engine: part.name.clone(), protocol: part.protocol })
        }
    }
}
