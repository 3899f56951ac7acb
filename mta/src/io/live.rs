//! A running gateway and what is put in force anew when its configuration changes, wherever that comes from.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use sekimori_crds::snapshot::{ClassMinimum, FleetPart, ListenerPart};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cli::RunArgs;
use crate::config::Config;
use crate::io::assemble::{Assembled, Parts, assemble, authenticator};
use crate::io::certificates::Certificates;
use crate::io::delivery::Options as DeliveryOptions;
use crate::io::dns::Resolver;
use crate::io::engine::{Builtins, Options as EngineOptions, Warm};
use crate::io::gateway::{Gateway, Memory};
use crate::io::listener::{self, Listener, Settings};
use crate::io::quarantine::{Quarantine, QuarantineOptions};
use crate::io::run::{self, RunError};
use crate::io::spool::{Recovered, Spool, SpoolError, SpoolOptions};
use crate::io::{clock, tls};

/// What a segment needs beside a message: its own headers, and an envelope with a thousand recipients.
const SEGMENT_OVERHEAD_BYTES: u64 = 1 << 20;
/// A transaction that began before its tenant was removed is over after this: half an hour to send, a minute to be answered, and some.
pub(super) const LAST_TRANSACTIONS_MS: u64 = 3_600_000;
/// Kept messages are looked at for expiry this often.
pub(super) const EXPIRE_EVERY: Duration = Duration::from_secs(600);
/// Live records of the spool at most: about 300 bytes of memory each.
const SPOOL_RECORDS_MAX: usize = 2_000_000;

/// Spool and quarantine of a state directory.
pub(super) struct Storage {
    pub(super) spool: Spool,
    pub(super) recovered: Vec<Recovered>,
    pub(super) quarantine: Quarantine,
}

impl Storage {
    /// Opens both, and makes the directory if there is none.
    pub(super) async fn open(args: &RunArgs) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&args.state)
            .map_err(|e| RunError::State(format!("{}: {e}; give another --state directory", args.state.display())))?;
        let (spool, recovered) = open_spool(args).await?;
        let dir = args.state.join("quarantine");
        let (state, spool_bytes) = (args.state.clone(), args.spool_max.0);
        let opened = tokio::task::spawn_blocking(move || {
            let options = QuarantineOptions::of_volume(&state, spool_bytes)?;
            tracing::info!(bytes_max = options.bytes_max, entries_max = options.entries_max, "the quarantine's part of the volume");
            Quarantine::open(dir, options)
        })
        .await?;
        let quarantine = opened.map_err(|e| RunError::State(e.to_string()))?;
        Ok(Self { spool, recovered, quarantine })
    }
}

/// See the module.
pub(super) struct Live {
    pub(super) gateway: Arc<Gateway>,
    resolver: Arc<ArcSwap<Arc<dyn Resolver>>>,
    listeners: HashMap<SocketAddr, Listener>,
    /// Whether mail is to be taken: engines were waited for.
    open: bool,
    args: Arc<RunArgs>,
    /// Certificates from mounted Secrets, in a pod.
    pub(super) certificates: Option<Certificates>,
    worker: (watch::Sender<bool>, JoinHandle<()>),
}

/// A listener as it is to be.
struct PreparedListener {
    address: SocketAddr,
    settings: Settings,
    /// None if it is bound already.
    socket: Option<tokio::net::TcpListener>,
}

impl Live {
    /// Puts a gateway together and starts its queue. Nobody listens before [`Self::open`].
    pub(super) async fn start(
        args: Arc<RunArgs>,
        config: Config,
        storage: Storage,
        builtins: Builtins,
        certificates: Option<Certificates>,
    ) -> anyhow::Result<Self> {
        let waiting = storage.recovered.len();
        let parts = Parts {
            resolver: run::resolver(&config.resolvers)?,
            delivery: DeliveryOptions::default(),
            config,
            spool: storage.spool,
            recovered: storage.recovered,
            quarantine: storage.quarantine,
            engines: EngineOptions::new(builtins, None),
            memory: Memory::new(args.message_memory.0, args.message_memory_network_percent),
        };
        // Every message of the spool is looked at.
        let Assembled { gateway, resolver } = tokio::task::spawn_blocking(move || assemble(parts)).await??;
        let (stop_delivery, delivery_stopped) = watch::channel(false);
        let delivery = gateway.delivery.clone();
        let worker = tokio::spawn(async move { delivery.run(delivery_stopped).await });
        if waiting > 0 {
            tracing::info!(messages = waiting, "recovered from the spool");
        }
        Ok(Self { gateway, resolver, listeners: HashMap::new(), open: false, args, certificates, worker: (stop_delivery, worker) })
    }

    /// Listens from now on.
    pub(super) fn open(&mut self) -> anyhow::Result<()> {
        let listeners = self.prepare_listeners(&self.gateway.config.load())?;
        self.open_listeners(listeners)?;
        self.open = true;
        self.gateway.serving.send_replace(true);
        Ok(())
    }

    /// Where it listens, for the log.
    pub(super) fn listening(&self) -> String {
        self.listeners.values().map(|listener| listener.address.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Puts another configuration in force: all of it, or nothing.
    pub(super) fn apply(&mut self, config: Config) -> anyhow::Result<()> {
        let before = self.gateway.config.load_full();
        if Arc::ptr_eq(&config.fleet, &before.fleet) {
            // Tenants alone: nothing else is touched, so that one of them costs one of them.
            self.gateway.config.store(Arc::new(config));
            return Ok(());
        }
        // Everything that can fail comes first.
        let listeners = if self.open { Some(self.prepare_listeners(&config)?) } else { None };
        let changed_resolver = if config.resolvers == before.resolvers { None } else { Some(run::resolver(&config.resolvers)?) };
        self.gateway.filters.engines.reconfigure(&config.fleet.engines)?;
        if let Some(resolver) = changed_resolver {
            self.gateway.filters.authenticator.store(Arc::new(authenticator(&resolver)));
            self.resolver.store(Arc::new(resolver));
        }
        self.gateway.quarantine.set_retention(config.fleet.quarantine_retention.std().as_millis() as u64);
        self.gateway.config.store(Arc::new(config));
        listeners.map_or(Ok(()), |listeners| self.open_listeners(listeners))
    }

    /// Looks for changed certificates, and puts them in force for new connections.
    pub(super) async fn refresh_certificates(&mut self) {
        let config = self.gateway.config.load_full();
        let Some(certificates) = self.certificates.take() else { return };
        let metrics = Arc::clone(&self.gateway.metrics);
        let (listeners, hostname) = (config.fleet.listeners.clone(), config.fleet.hostname.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut certificates = certificates;
            let changed = certificates.refresh(&listeners, &metrics);
            let reports = certificates.reports(&listeners, &hostname);
            (certificates, changed, reports)
        });
        let Ok((certificates, changed, reports)) = read.await else {
            tracing::error!("the certificates could not be read: those in force stay");
            return;
        };
        self.certificates = Some(certificates);
        *self.gateway.certificates.lock().expect("no panic while held") = reports;
        if changed && self.open {
            match self.prepare_listeners(&config).and_then(|listeners| self.open_listeners(listeners)) {
                Ok(()) => tracing::info!(event = "certificates", "changed certificates are in force for new connections"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "changed certificates cannot be put in force"),
            }
        }
    }

    /// Deletes what was kept long enough, without holding anything up.
    pub(super) fn expire(&self) {
        let quarantine = self.gateway.quarantine.clone();
        tokio::spawn(async move {
            match quarantine.expire(clock::unix_ms()).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(event = "expired", count, "kept messages past their retention were deleted"),
                Err(error) => tracing::error!(%error, "kept messages could not be expired"),
            }
        });
    }

    /// What the listeners of a configuration are to be: settings for each, and a socket where none is bound yet.
    fn prepare_listeners(&self, config: &Config) -> anyhow::Result<Vec<PreparedListener>> {
        let prepare = |part: &ListenerPart| {
            let part = &self.certificates.as_ref().map_or_else(|| part.clone(), |certificates| certificates.fill(part));
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
}

/// Says so where mail is taken without enough engines.
pub(super) fn note_cold(warm: Warm, minimum: ClassMinimum) {
    if !warm.covers(minimum) {
        tracing::warn!(
            ?warm,
            ?minimum,
            "engines are still not ready: mail is taken all the same, and policies say what happens to what is not scanned"
        );
    }
}

/// Why a fleet's settings cannot be run here.
pub(super) fn check_fleet(fleet: &FleetPart, args: &RunArgs) -> Result<(), String> {
    // A message that does not fit a segment could never be spooled: it would be deferred for ever.
    let fits = args.spool_segment.0.saturating_sub(SEGMENT_OVERHEAD_BYTES);
    match fleet.listeners.iter().find(|listener| listener.limits.message_size.0 > fits) {
        Some(listener) => Err(format!(
            "listener {}: limits.messageSize {} does not fit a spool segment of {} (1Mi of it is for the envelope); lower it, or raise --spool-segment",
            listener.name, listener.limits.message_size, args.spool_segment
        )),
        None => Ok(()),
    }
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

pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Stop,
    Reload,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hangup: signal(SignalKind::hangup())? })
    }

    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// A stop; before there is anything to reload.
    pub(super) async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

/// Restart-drain: sessions end at their next boundary, attempts in flight get their time, the spool is closed. Whether it is.
pub(super) async fn stop(live: Live) -> bool {
    let timeout = live.args.stop_timeout.std();
    let Live { gateway, listeners, worker: (stop_delivery, worker), .. } = live;
    tracing::info!(event = "stopping", sessions = gateway.open_sessions(), "stopping");
    gateway.serving.send_replace(false);
    gateway.stopping.send_replace(true);
    drop(listeners);
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
    let closed = gateway.spool.clone().close().await.inspect_err(not_closed).is_ok();
    if closed {
        tracing::info!(event = "stopped", "stopped");
    }
    closed
}

pub(super) fn not_closed(error: &SpoolError) {
    tracing::error!(%error, "the spool was not closed cleanly: its last completions may be repeated");
}
