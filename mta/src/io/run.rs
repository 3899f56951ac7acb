//! `run`: puts the parts together, serves until told to stop, reloads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use sekimori_crds::compile::Severity;
use sekimori_crds::snapshot::{ListenerPart, Snapshot};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::RunArgs;
use crate::config::Config;
use crate::io::assemble::{Assembled, Parts, assemble, authenticator};
use crate::io::control::{self, LastGood, Manifests, Source};
use crate::io::delivery::Options as DeliveryOptions;
use crate::io::dns::{CacheLimits, Cached, Network, NetworkOptions, Resolver};
use crate::io::engine::builtin_spam::BuiltinSpam;
use crate::io::engine::builtin_virus::{BuiltinVirus, BuiltinVirusOptions};
use crate::io::engine::{Builtins, Options as EngineOptions};
use crate::io::gateway::{Gateway, Memory};
use crate::io::listener::{self, Listener, Settings};
use crate::io::quarantine::{Quarantine, QuarantineOptions};
use crate::io::spool::{Spool, SpoolError, SpoolOptions};
use crate::io::{admin, clock, tls};

/// The manifests are looked at this often.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// What a segment needs beside a message: its own headers, and an envelope with a thousand recipients.
const SEGMENT_OVERHEAD_BYTES: u64 = 1 << 20;
/// Kept messages are looked at for expiry this often.
const EXPIRE_EVERY: Duration = Duration::from_secs(600);
/// A transaction that began before its tenant was removed is over after this: half an hour to send, a minute to be answered, and some.
const LAST_TRANSACTIONS_MS: u64 = 3_600_000;
/// Live records of the spool at most: about 300 bytes of memory each.
const SPOOL_RECORDS_MAX: usize = 2_000_000;

/// Why `run` ended otherwise than by being told to: with the exit code for it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The manifests cannot be run.
    #[error("{0}")]
    Refused(String),
    /// The state directory must not be used.
    #[error("{0}")]
    State(String),
}

/// Each session and each delivery holds a socket, and the usual soft limit of 1024 open files is for another century: up to the hard limit.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The system's resolver, or the given ones, with a cache in front. Must be called within a tokio runtime.
pub fn resolver(servers: &[SocketAddr]) -> anyhow::Result<Arc<dyn Resolver>> {
    let network = Network::new(&NetworkOptions { servers: servers.to_vec(), ..NetworkOptions::default() })?;
    Ok(Arc::new(Cached::new(network, CacheLimits::default())))
}

/// The built-in engines. Blocking: rules are read and compiled.
pub fn builtins(rules: Option<PathBuf>) -> anyhow::Result<Builtins> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let options = BuiltinVirusOptions { rules_dir: rules, threads, ..BuiltinVirusOptions::default() };
    let virus = BuiltinVirus::start(&options).context("the rules of the built-in anti-virus engine")?;
    Ok(Builtins { virus: Some(Arc::new(virus)), spam: Some(Arc::new(BuiltinSpam::new())) })
}

/// What is put in force anew when the configuration changes.
struct Live {
    gateway: Arc<Gateway>,
    resolver: Arc<ArcSwap<Arc<dyn Resolver>>>,
    listeners: HashMap<SocketAddr, Listener>,
    args: Arc<RunArgs>,
    source: Source,
    last: LastGood,
    /// When a tenant was first missed, by key; monotonic.
    gone_since_ms: HashMap<String, u64>,
}

/// A listener as it is to be.
struct PreparedListener {
    address: SocketAddr,
    settings: Settings,
    /// None if it is bound already.
    socket: Option<tokio::net::TcpListener>,
}

/// Runs a gateway until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let args = Arc::new(args);
    let source = Source::new(&args.source);
    std::fs::create_dir_all(&args.state).map_err(|e| RunError::State(format!("{}: {e}; give another --state directory", args.state.display())))?;
    let (spool, recovered) = open_spool(&args).await?;
    let dir = args.state.join("quarantine");
    let opened = tokio::task::spawn_blocking(move || Quarantine::open(dir, QuarantineOptions::default())).await?;
    let quarantine = opened.map_err(|e| RunError::State(e.to_string()))?;

    let manifests = read(&source).await?;
    let last_good = LastGood::read(&args.state).unwrap_or_default();
    // Before the queue is read nobody knows who has mail: every tenant that is gone is kept until then.
    let mut last = last_good.merge(&manifests, clock::unix_ms() / 1000, |_| true);
    report(&manifests);
    let config = compile(&last.snapshot, &last, &args)?;
    let rules = args.source.rules.clone();
    let builtins = tokio::task::spawn_blocking(move || builtins(rules)).await??;
    let (minimum, max_wait) = (config.fleet.startup_minimum_engines, config.fleet.startup_max_wait);
    let waiting = recovered.len();
    let Assembled { gateway, resolver } = assemble(Parts {
        resolver: resolver(&config.resolvers)?,
        delivery: DeliveryOptions::new(config.fleet.hostname.clone()),
        config,
        spool,
        recovered,
        quarantine,
        engines: EngineOptions::new(builtins, None),
        memory: Memory::new(args.message_memory.0, args.message_memory_network_percent),
    })?;
    last.removed.retain(|t| gateway.delivery.tenants_with_mail().contains(format!("{}/{}", t.namespace, t.name).as_str()));
    let admin_address = admin::serve(args.admin, Arc::clone(&gateway)).await.with_context(|| format!("the admin port {}", args.admin))?;
    let (stop_delivery, delivery_stopped) = watch::channel(false);
    let worker = tokio::spawn({
        let delivery = gateway.delivery.clone();
        async move { delivery.run(delivery_stopped).await }
    });
    if waiting > 0 {
        tracing::info!(messages = waiting, "recovered from the spool");
    }
    let mut live = Live {
        gateway: Arc::clone(&gateway),
        resolver,
        listeners: HashMap::new(),
        args: Arc::clone(&args),
        source,
        last,
        gone_since_ms: HashMap::new(),
    };
    let mut signals = Signals::new()?;
    let warm = tokio::select! {
        warm = gateway.filters.engines.warm_up(minimum, max_wait.std()) => Some(warm),
        () = signals.stop() => None,
    };
    if let Some(warm) = warm {
        if !warm.covers(minimum) {
            tracing::warn!(
                ?warm,
                ?minimum,
                "engines are still not ready: mail is taken all the same, and policies say what happens to what is not scanned"
            );
        }
        let listeners = live.prepare_listeners(&gateway.config.load())?;
        live.open_listeners(listeners)?;
        live.write_last_good();
        gateway.serving.send_replace(true);
        let listening: Vec<String> = live.listeners.keys().map(ToString::to_string).collect();
        tracing::info!(event = "serving", listeners = listening.join(", "), admin = %admin_address, hash = %gateway.config.load().hash, "serving");
        live.until_stopped(manifests.digest, &mut signals).await;
    }
    stop(&gateway, live, stop_delivery, worker, args.stop_timeout.std()).await;
    Ok(())
}

async fn open_spool(args: &RunArgs) -> anyhow::Result<(Spool, Vec<crate::io::spool::Recovered>)> {
    let options = SpoolOptions {
        dir: args.state.join("spool"),
        segment_bytes: args.spool_segment.0,
        segments_max: u32::try_from(args.spool_max.0 / args.spool_segment.0.max(1)).unwrap_or(u32::MAX),
        records_max: SPOOL_RECORDS_MAX,
    };
    let opened = tokio::task::spawn_blocking(move || Spool::open(options)).await?;
    opened.map_err(|error| match error {
        SpoolError::Locked { .. } => RunError::State(format!("{error}")).into(),
        other => RunError::State(format!("{other}; the state directory cannot be used")).into(),
    })
}

async fn read(source: &Source) -> anyhow::Result<Manifests> {
    let source = source.clone();
    let read = tokio::task::spawn_blocking(move || Manifests::read(&source.dir, &source.options)).await?;
    Ok(read.map_err(|error| RunError::Refused(error.to_string()))?)
}

fn compile(snapshot: &Snapshot, last: &LastGood, args: &RunArgs) -> Result<Config, RunError> {
    let config = Config::compile(snapshot, &last.removed).map_err(|error| RunError::Refused(format!("nothing to run: {error}")))?;
    // A message that does not fit a segment could never be spooled: it would be deferred for ever.
    let fits = args.spool_segment.0.saturating_sub(SEGMENT_OVERHEAD_BYTES);
    match config.fleet.listeners.iter().find(|listener| listener.limits.message_size.0 > fits) {
        Some(listener) => Err(RunError::Refused(format!(
            "listener {}: limits.messageSize {} does not fit a spool segment of {} (1Mi of it is for the envelope); lower it, or raise --spool-segment",
            listener.name, listener.limits.message_size, args.spool_segment
        ))),
        None => Ok(config),
    }
}

fn report(manifests: &Manifests) -> usize {
    let problems: Vec<_> = manifests.problems().collect();
    control::report(&problems);
    problems.iter().filter(|problem| problem.severity == Severity::Error).count()
}

impl Live {
    /// Serves until a signal says stop; reloads on SIGHUP and when a file changed.
    async fn until_stopped(&mut self, mut digest: [u8; 32], signals: &mut Signals) {
        let mut watch = tokio::time::interval(WATCH_EVERY);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut expire = tokio::time::interval(EXPIRE_EVERY);
        loop {
            tokio::select! {
                _ = expire.tick() => self.expire(),
                asked = signals.next() => match asked {
                    Asked::Stop => return,
                    Asked::Reload => digest = self.reload().await.unwrap_or(digest),
                },
                _ = watch.tick() => {
                    let dir = self.source.dir.clone();
                    match tokio::task::spawn_blocking(move || control::digest_of(&dir)).await {
                        // Twice the same, so that a file is not read while it is being written.
                        Ok(seen) if seen != digest => {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            digest = self.reload().await.unwrap_or(seen);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Deletes what was kept long enough, without holding anything up.
    fn expire(&self) {
        let quarantine = self.gateway.quarantine.clone();
        tokio::spawn(async move {
            match quarantine.expire(clock::unix_ms()).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(event = "expired", count, "kept messages past their retention were deleted"),
                Err(error) => tracing::error!(%error, "kept messages could not be expired"),
            }
        });
    }

    /// Reads the manifests again and puts them in force, as far as they are good.
    async fn reload(&mut self) -> Option<[u8; 32]> {
        let manifests = match read(&self.source).await {
            Ok(manifests) => manifests,
            Err(error) => {
                tracing::error!(%error, "the manifests cannot be read: the configuration stays as it is");
                self.gateway.metrics.reloads.with_label_values(&["failed"]).inc();
                return None;
            }
        };
        let errors = report(&manifests);
        let next = self.merge(&manifests);
        match self.apply(next) {
            Ok(()) => {
                let result = if errors == 0 { "applied" } else { "partly" };
                self.gateway.metrics.reloads.with_label_values(&[result]).inc();
                tracing::info!(event = "reloaded", errors, hash = %self.gateway.config.load().hash, "configuration in force");
            }
            Err(error) => {
                self.gateway.metrics.reloads.with_label_values(&["failed"]).inc();
                tracing::error!(error = format!("{error:#}"), "the new configuration cannot be put in force: the old one stays");
            }
        }
        Some(manifests.digest)
    }

    /// Adds what stays of the configuration so far. A tenant that is gone is remembered while it has mail, and until its last transactions are over.
    fn merge(&mut self, manifests: &Manifests) -> LastGood {
        let (now_ms, with_mail) = (clock::monotonic_ms(), self.gateway.delivery.tenants_with_mail());
        let mut gone_since_ms = HashMap::new();
        let next = self.last.merge(manifests, clock::unix_ms() / 1000, |tenant| {
            let since_ms = self.gone_since_ms.get(tenant).copied().unwrap_or(now_ms);
            gone_since_ms.insert(tenant.to_owned(), since_ms);
            with_mail.contains(tenant) || now_ms.saturating_sub(since_ms) < LAST_TRANSACTIONS_MS
        });
        self.gone_since_ms = gone_since_ms;
        next
    }

    fn apply(&mut self, next: LastGood) -> anyhow::Result<()> {
        let config = compile(&next.snapshot, &next, &self.args)?;
        // Everything that can fail comes first.
        let listeners = self.prepare_listeners(&config)?;
        let before = self.gateway.config.load_full();
        let changed_resolver = if config.resolvers == before.resolvers { None } else { Some(self::resolver(&config.resolvers)?) };
        self.gateway.filters.engines.reconfigure(&config.fleet.engines)?;
        if let Some(resolver) = changed_resolver {
            self.gateway.filters.authenticator.store(Arc::new(authenticator(&resolver)));
            self.resolver.store(Arc::new(resolver));
        }
        self.gateway.quarantine.set_retention(config.fleet.quarantine_retention.std().as_millis() as u64);
        self.gateway.config.store(Arc::new(config));
        self.last = next;
        self.open_listeners(listeners)?;
        self.write_last_good();
        Ok(())
    }

    /// What the listeners of a configuration are to be: settings for each, and a socket where none is bound yet.
    fn prepare_listeners(&self, config: &Config) -> anyhow::Result<Vec<PreparedListener>> {
        let prepare = |part: &ListenerPart| {
            let settings = Settings { part: part.clone(), tls: tls::server_config(part)? };
            let address = SocketAddr::new(self.args.bind, part.port);
            let named = || format!("listener {} cannot bind {address}; stop whoever has the port, or change spec.listeners[].port", part.name);
            let socket = if self.listeners.contains_key(&address) { None } else { Some(listener::bind(address).with_context(named)?) };
            Ok(PreparedListener { address, settings, socket })
        };
        config.fleet.listeners.iter().map(prepare).collect()
    }

    /// Serves what is new, changes what is there, lets go of what is gone.
    fn open_listeners(&mut self, prepared: Vec<PreparedListener>) -> anyhow::Result<()> {
        self.listeners.retain(|bound, _| prepared.iter().any(|listener| listener.address == *bound));
        for PreparedListener { address, settings, socket } in prepared {
            if let Some(listener) = self.listeners.get(&address) {
                listener.settings.send_replace(Arc::new(settings));
            } else if let Some(socket) = socket {
                self.listeners.insert(address, Listener::serve(socket, settings, Arc::clone(&self.gateway))?);
            }
        }
        Ok(())
    }

    fn write_last_good(&self) {
        if let Err(error) = self.last.write(&self.args.state) {
            tracing::error!(%error, "the last good snapshot cannot be written: a start with bad manifests would not find it");
        }
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Stop,
    Reload,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hangup: signal(SignalKind::hangup())? })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// A stop; before there is anything to reload.
    async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

/// Restart-drain: sessions end at their next boundary, attempts in flight get their time, the spool is closed.
async fn stop(gateway: &Arc<Gateway>, live: Live, stop_delivery: watch::Sender<bool>, worker: tokio::task::JoinHandle<()>, timeout: Duration) {
    tracing::info!(event = "stopping", sessions = gateway.open_sessions(), "stopping");
    gateway.serving.send_replace(false);
    gateway.stopping.send_replace(true);
    drop(live);
    let sessions_over = async {
        while gateway.open_sessions() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(timeout, sessions_over).await.is_err() {
        tracing::warn!(
            sessions = gateway.open_sessions(),
            "sessions were cut off: what they sent and we did not answer is sent again by their clients"
        );
    }
    stop_delivery.send_replace(true);
    if let Err(error) = worker.await {
        tracing::error!(%error, "the delivery worker broke");
    }
    match gateway.spool.clone().close().await {
        Ok(()) => tracing::info!(event = "stopped", "stopped"),
        Err(error) => tracing::error!(%error, "the spool was not closed cleanly: its last completions may be repeated"),
    }
}
