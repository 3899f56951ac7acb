//! `run`: puts the parts together, serves until told to stop; here from manifests in a directory, which are read again when they change.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sekimori_crds::compile::Severity;

use crate::cli::RunArgs;
use crate::config::Config;
use crate::io::control::{self, LastGood, Manifests, Source};
use crate::io::dns::{CacheLimits, Cached, Network, NetworkOptions, Resolver};
use crate::io::engine::Builtins;
use crate::io::engine::builtin_spam::BuiltinSpam;
use crate::io::engine::builtin_virus::{BuiltinVirus, BuiltinVirusOptions};
use crate::io::live::{self, Asked, EXPIRE_EVERY, LAST_TRANSACTIONS_MS, Live, Signals, Storage};
use crate::io::{admin, clock, pod};

/// The manifests are looked at this often.
const WATCH_EVERY: Duration = Duration::from_secs(1);

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

/// A gateway that runs from manifests.
struct Standalone {
    live: Live,
    args: Arc<RunArgs>,
    source: Source,
    last: LastGood,
    /// When a tenant was first missed, by key; monotonic.
    gone_since_ms: HashMap<String, u64>,
}

/// Runs a gateway until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let args = Arc::new(args);
    let place = admin::Place::default();
    let admin = admin::serve(args.admin, args.admin_socket.is_none(), place.clone()).with_context(|| format!("the admin port {}", args.admin))?;
    if let Some(path) = &args.admin_socket {
        admin::serve_socket(path, place.clone()).with_context(|| format!("the admin socket {}", path.display()))?;
    }
    match (&args.manifests, &args.operator) {
        (_, Some(operator)) => pod::run(Arc::clone(&args), operator, place, admin).await,
        (Some(manifests), None) => alone(Arc::clone(&args), manifests, place, admin).await,
        (None, None) => Err(RunError::Refused("where the configuration comes from is not said: give --manifests or --operator".into()).into()),
    }
}

/// The built-in engines with the rules of this machine.
pub(super) async fn engines(args: &RunArgs) -> anyhow::Result<Builtins> {
    let rules = args.local.rules.clone();
    tokio::task::spawn_blocking(move || builtins(rules)).await?
}

async fn alone(args: Arc<RunArgs>, manifests: &Path, place: admin::Place, admin: SocketAddr) -> anyhow::Result<()> {
    let source = Source::new(manifests, &args.local);
    let storage = Storage::open(&args).await?;
    let manifests = read(&source).await?;
    let last_good = LastGood::read(&args.state).unwrap_or_default();
    // Before the queue is read nobody knows who has mail: every tenant that is gone is kept until then.
    let mut last = last_good.merge(&manifests, clock::unix_ms() / 1000, |_| true);
    report(&manifests);
    let config = compile(&last, &args)?;
    let (minimum, max_wait) = (config.fleet.startup_minimum_engines, config.fleet.startup_max_wait);
    let live = Live::start(Arc::clone(&args), config, storage, engines(&args).await?, None).await?;
    let gateway = Arc::clone(&live.gateway);
    place.set(Arc::clone(&gateway));
    let with_mail = gateway.delivery.tenants_with_mail();
    last.removed.retain(|t| with_mail.contains(format!("{}/{}", t.namespace, t.name).as_str()));
    let mut running = Standalone { live, args, source, last, gone_since_ms: HashMap::new() };
    let mut signals = Signals::new()?;
    let warm = tokio::select! {
        warm = gateway.filters.engines.warm_up(minimum, max_wait.std()) => Some(warm),
        () = signals.stop() => None,
    };
    if let Some(warm) = warm {
        live::note_cold(warm, minimum);
        running.live.open()?;
        running.write_last_good();
        tracing::info!(event = "serving", listeners = running.live.listening(), admin = %admin, hash = %gateway.config.load().hash, "serving");
        running.until_stopped(manifests.digest, &mut signals).await;
    }
    live::stop(running.live).await;
    Ok(())
}

async fn read(source: &Source) -> anyhow::Result<Manifests> {
    let source = source.clone();
    let read = tokio::task::spawn_blocking(move || Manifests::read(&source.dir, &source.options)).await?;
    Ok(read.map_err(|error| RunError::Refused(error.to_string()))?)
}

fn compile(last: &LastGood, args: &RunArgs) -> Result<Config, RunError> {
    let config = Config::compile(&last.snapshot, &last.removed).map_err(|error| RunError::Refused(format!("nothing to run: {error}")))?;
    live::check_fleet(&config.fleet, args).map_err(RunError::Refused)?;
    Ok(config)
}

fn report(manifests: &Manifests) -> usize {
    let problems: Vec<_> = manifests.problems().collect();
    control::report(&problems);
    problems.iter().filter(|problem| problem.severity == Severity::Error).count()
}

impl Standalone {
    /// Serves until a signal says stop; reloads on SIGHUP and when a file changed.
    async fn until_stopped(&mut self, mut digest: [u8; 32], signals: &mut Signals) {
        let mut watch = tokio::time::interval(WATCH_EVERY);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut expire = tokio::time::interval(EXPIRE_EVERY);
        loop {
            tokio::select! {
                _ = expire.tick() => self.live.expire(),
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

    /// Reads the manifests again and puts them in force, as far as they are good.
    async fn reload(&mut self) -> Option<[u8; 32]> {
        let manifests = match read(&self.source).await {
            Ok(manifests) => manifests,
            Err(error) => {
                tracing::error!(%error, "the manifests cannot be read: the configuration stays as it is");
                self.live.gateway.metrics.reloads.with_label_values(&["failed"]).inc();
                return None;
            }
        };
        let errors = report(&manifests);
        let next = self.merge(&manifests);
        match self.apply(next) {
            Ok(()) => {
                let result = if errors == 0 { "applied" } else { "partly" };
                self.live.gateway.metrics.reloads.with_label_values(&[result]).inc();
                tracing::info!(event = "reloaded", errors, hash = %self.live.gateway.config.load().hash, "configuration in force");
            }
            Err(error) => {
                self.live.gateway.metrics.reloads.with_label_values(&["failed"]).inc();
                tracing::error!(error = format!("{error:#}"), "the new configuration cannot be put in force: the old one stays");
            }
        }
        Some(manifests.digest)
    }

    /// Adds what stays of the configuration so far. A tenant that is gone is remembered while it has mail, and until its last transactions are over.
    fn merge(&mut self, manifests: &Manifests) -> LastGood {
        let (now_ms, with_mail) = (clock::monotonic_ms(), self.live.gateway.delivery.tenants_with_mail());
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
        self.live.apply(compile(&next, &self.args)?)?;
        self.last = next;
        self.write_last_good();
        Ok(())
    }

    fn write_last_good(&self) {
        if let Err(error) = self.last.write(&self.args.state) {
            tracing::error!(%error, "the last good snapshot cannot be written: a start with bad manifests would not find it");
        }
    }
}
