//! A gateway in a pod: its configuration follows the operator's, is kept on the volume of its spool, and is in force whether or not anybody answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use sekimori_crds::snapshot::FleetPart;
use sekimori_crds::stream::{Applied, Change, Changes, DrainKind, Orders, Position, Rejection};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::RunArgs;
use crate::config::{Held, Place, Way};
use crate::io::certificates::Certificates;
use crate::io::engine::{Builtins, Warm};
use crate::io::last_good::{self, DELTA_BYTES_MAX, Delta, Found, Keeper};
use crate::io::live::{self, Asked, EXPIRE_EVERY, LAST_TRANSACTIONS_MS, Live, Signals, Storage};
use crate::io::run::{self, RunError};
use crate::io::stream::{self, Event, Follower, Reporter, Standing};
use crate::io::{admin, clock, engine};

/// The token is never looked at more often.
const TOKEN_EVERY_MIN: Duration = Duration::from_millis(100);
/// Mounted certificates are read this often.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(10);
/// Removed tenants are looked after, and listeners that could not be opened are tried again, this often.
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(5);
/// What lies on the volume is checked this often.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// The operator's clock may be so far from ours, milliseconds, before it is said.
const CLOCKS_APART_MS: u64 = 30_000;
/// Refused parts named in one acknowledgement, at most; with a few hundred octets each it stays below what a message may have.
const REJECTED_MAX: usize = 10_000;
/// Cluster networks that are taken, at most.
const NETWORKS_MAX: usize = 10_000;
/// A piece with more octets is read on a thread of its own.
const APART_BYTES: usize = 64 << 10;
/// What a restart must know of the orders before the operator is there again.
const ORDERS_FILE: &str = "orders.json";
/// The file of the orders is no larger, in octets.
const ORDERS_BYTES_MAX: u64 = 1 << 20;

/// What lasts of the orders over a restart: without it a gateway that starts alone would judge senders by the addresses of nodes.
/// A drain does not: whoever ordered it orders it again, and the pod that comes back from a restart-drain is to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Lasting {
    gateways: u32,
    cluster_networks: Vec<IpNet>,
}

/// The way that is being walked.
struct Walk {
    way: Way,
    to: Place,
    full: bool,
    /// As it came, for the journal; `None` when it is too much for it.
    changes: Option<Vec<(String, Bytes)>>,
    bytes: usize,
}

struct Pod {
    args: Arc<RunArgs>,
    held: Held,
    walk: Option<Walk>,
    writer: last_good::Writer,
    follower: Follower,
    reporter: Reporter,
    lasting: Lasting,
    drain: DrainKind,
    /// Until there is a configuration to run.
    waiting: Option<Box<(Storage, Builtins)>>,
    live: Option<Live>,
    warming: Option<JoinHandle<Warm>>,
    /// Engines were waited for: listen as soon as it is possible.
    to_open: bool,
    place: admin::Place,
    /// What is to be said later: that everything is wanted again, although everything has just come.
    ask_again: Option<Standing>,
    /// When a tenant was first missed, by key; monotonic.
    gone_since_ms: HashMap<Arc<str>, u64>,
}

/// Runs until SIGTERM or SIGINT.
pub(super) async fn run(args: Arc<RunArgs>, operator: &str, place: admin::Place, admin: SocketAddr) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let (Some(authority), Some(token)) = (args.operator_ca.clone(), args.operator_token.clone()) else {
        return Err(RunError::Refused("--operator needs --operator-ca and --operator-token".into()).into());
    };
    let name = std::env::var("SEKIMORI_POD").unwrap_or_default();
    tracing::info!(event = "starting", pod = name, operator, admin = %admin, "starting");
    let storage = Storage::open(&args).await?;
    let reporter = Reporter::new(place.clone(), storage.spool.status().may_hold(), storage.quarantine.status().may_hold());
    let (keeper, held, lasting) = load(&args).await?;
    let builtins = run::engines(&args).await?;
    let standing = Standing { have: held.place().map(position), tenants: held.tenants_known(), applied: None };
    let options =
        stream::Options { address: operator.to_owned(), authority, token, token_every: args.operator_token_every.std().max(TOKEN_EVERY_MIN) };
    let (writer, writing) = last_good::Writer::start(keeper);
    let mut pod = Pod {
        follower: stream::follow(options, standing, reporter.clone()),
        args,
        held,
        walk: None,
        writer,
        reporter,
        lasting,
        drain: DrainKind::None,
        waiting: Some(Box::new((storage, builtins))),
        live: None,
        warming: None,
        to_open: false,
        place,
        ask_again: None,
        gone_since_ms: HashMap::new(),
    };
    pod.start_gateway().await?;
    if pod.live.is_none() {
        tracing::info!(event = "waiting", "no configuration yet: waiting for the operator");
    }
    pod.until_stopped(&mut signals).await?;
    let Pod { live, writer, mut follower, warming, waiting, .. } = pod;
    follower.wind_up();
    drop(writer);
    if let Some(warming) = warming {
        warming.abort();
    }
    let closed = match (live, waiting) {
        (Some(live), _) => live::stop(live).await,
        (None, Some(waiting)) => waiting.0.spool.clone().close().await.inspect_err(live::not_closed).is_ok(),
        (None, None) => false,
    };
    // The operator hears of the end, so the stream goes last.
    if closed {
        follower.farewell().await;
    }
    if let Err(error) = writing.await {
        tracing::error!(%error, "the last good configuration may lack its newest changes");
    }
    Ok(())
}

/// What was kept on the volume.
async fn load(args: &Arc<RunArgs>) -> anyhow::Result<(Keeper, Held, Lasting)> {
    let args = Arc::clone(args);
    let began_ms = clock::monotonic_ms();
    let loaded = tokio::task::spawn_blocking(move || {
        let check = |fleet: &FleetPart| check_fleet(fleet, &args);
        let (keeper, found) = Keeper::open(&args.state, args.snapshot_key.as_deref(), &check);
        (keeper, found, read_orders(&args.state))
    });
    let (keeper, found, lasting) = loaded.await?;
    let held = match found {
        Found::Nothing => Held::default(),
        Found::Held(held) => {
            let took_ms = clock::monotonic_ms().saturating_sub(began_ms);
            tracing::info!(event = "last-good", tenants = held.tenants().len(), hash = %held.hash(), took_ms, "the last good configuration is in force");
            *held
        }
        Found::Unusable(why) => {
            tracing::error!(why, "the last good configuration cannot be used: waiting for the operator");
            Held::default()
        }
    };
    Ok((keeper, held, lasting))
}

/// What can be known of a fleet's settings before they are put in force. A gateway must not end because of them: the next ones come to this process.
fn check_fleet(fleet: &FleetPart, args: &RunArgs) -> Result<(), String> {
    live::check_fleet(fleet, args)?;
    engine::check(&fleet.engines).map_err(|error| error.to_string())
}

fn read_orders(state: &Path) -> Lasting {
    let path = state.join(ORDERS_FILE);
    let fits = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= ORDERS_BYTES_MAX);
    let read = fits.then(|| std::fs::read(&path).ok()).flatten();
    read.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn write_orders(state: PathBuf, lasting: &Lasting) {
    let text = serde_json::to_vec(lasting).expect("numbers and networks");
    let (path, new) = (state.join(ORDERS_FILE), state.join("orders.json.new"));
    let written = std::fs::write(&new, text).and_then(|()| std::fs::File::open(&new)?.sync_all()).and_then(|()| std::fs::rename(&new, &path));
    if let Err(error) = written {
        tracing::warn!(%error, "the operator's orders cannot be kept: after a restart without it, senders may be judged by the addresses of nodes");
    }
}

fn position(place: Place) -> Position {
    Position::new(place.epoch, place.number, place.hash)
}

fn place_of(position: Option<&Position>) -> Option<Place> {
    let position = position?;
    Some(Place { epoch: position.epoch, number: position.number, hash: position.rolling_hash()? })
}

impl Pod {
    /// Starts the gateway if there is a configuration, and it does not run yet.
    async fn start_gateway(&mut self) -> anyhow::Result<()> {
        let Ok(config) = self.held.config() else { return Ok(()) };
        let Some(waiting) = self.waiting.take() else { return Ok(()) };
        let (storage, builtins) = *waiting;
        let (minimum, max_wait) = (config.fleet.startup_minimum_engines, config.fleet.startup_max_wait);
        let certificates = Certificates::new(&self.args.certificates);
        let mut live = Live::start(Arc::clone(&self.args), config, storage, builtins, Some(certificates)).await?;
        self.place.set(Arc::clone(&live.gateway));
        live.refresh_certificates().await;
        let gateway = Arc::clone(&live.gateway);
        self.live = Some(live);
        self.obey();
        self.note_refused();
        self.reporter.show();
        self.warming = Some(tokio::spawn(async move {
            let warm = gateway.filters.engines.warm_up(minimum, max_wait.std()).await;
            live::note_cold(warm, minimum);
            warm
        }));
        Ok(())
    }

    async fn until_stopped(&mut self, signals: &mut Signals) -> anyhow::Result<()> {
        let mut certificates = interval(CERTIFICATES_EVERY);
        certificates.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look_after = interval(LOOK_AFTER_EVERY);
        look_after.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut expire = interval(EXPIRE_EVERY);
        let mut check = interval(CHECK_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let warm = async {
                match &mut self.warming {
                    Some(warming) => warming.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Stop => return Ok(()),
                    Asked::Reload => self.refresh_certificates().await,
                },
                event = self.follower.events.recv() => match event {
                    Some(event) => self.event(event).await?,
                    None => return Err(anyhow::anyhow!("the stream's task ended")),
                },
                _ = warm => {
                    self.warming = None;
                    self.to_open = true;
                    self.open();
                }
                _ = certificates.tick() => self.refresh_certificates().await,
                _ = look_after.tick() => self.look_after(),
                _ = check.tick() => self.writer.check(Arc::new(self.held.clone())),
                _ = expire.tick() => if let Some(live) = &self.live { live.expire() },
            }
        }
    }

    async fn refresh_certificates(&mut self) {
        if let Some(live) = &mut self.live {
            live.refresh_certificates().await;
        }
    }

    /// Listens. A port that is taken is tried again: another configuration may come, and this process is what it comes to.
    fn open(&mut self) {
        let Some(live) = self.live.as_mut().filter(|_| self.to_open) else { return };
        match live.open() {
            Ok(()) => {
                self.to_open = false;
                let hash = live.gateway.config.load().hash;
                tracing::info!(event = "serving", listeners = live.listening(), %hash, "serving");
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "cannot listen: tried again"),
        }
    }

    fn look_after(&mut self) {
        self.open();
        if let Some(standing) = self.ask_again.take() {
            self.follower.standing.send_replace(standing);
        }
        let Some(live) = &mut self.live else { return };
        if self.held.tenants().removed().next().is_none() {
            self.gone_since_ms.clear();
            return;
        }
        let (now_ms, with_mail) = (clock::monotonic_ms(), live.gateway.delivery.tenants_with_mail());
        let before = std::mem::take(&mut self.gone_since_ms);
        let since = &mut self.gone_since_ms;
        let forgotten = self.held.forget(|key| {
            let since_ms = before.get(key).copied().unwrap_or(now_ms);
            let needed = with_mail.contains(key) || now_ms.saturating_sub(since_ms) < LAST_TRANSACTIONS_MS;
            if needed {
                since.insert(key.into(), since_ms);
            }
            needed
        });
        if forgotten > 0
            && let Ok(config) = self.held.config()
            && let Err(error) = live.apply(config)
        {
            tracing::error!(error = format!("{error:#}"), "removed tenants stay");
        }
    }

    async fn event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Began => self.walk = None,
            Event::Changes(changes) => self.changes(changes).await?,
            Event::Orders(orders) => self.orders(&orders).await,
        }
        Ok(())
    }

    /// One piece of a way.
    async fn changes(&mut self, piece: Changes) -> anyhow::Result<()> {
        let Some(to) = place_of(piece.to.as_ref()) else {
            tracing::error!("a piece of configuration without a position: left out");
            return Ok(());
        };
        let mut walk = match self.walk.take() {
            Some(walk) if walk.to == to && !piece.full => walk,
            before => {
                if before.is_some() {
                    tracing::warn!("a way to another position began before the last one ended: that one is void");
                }
                Walk { way: self.held.depart(piece.full), to, full: piece.full, changes: (!piece.full).then(Vec::new), bytes: 0 }
            }
        };
        let args = Arc::clone(&self.args);
        let bytes = piece.changes.iter().map(|change| change.key.len() + change.part.len()).sum::<usize>();
        walk.bytes += bytes;
        let last = piece.last;
        let step = move || {
            let check = |fleet: &FleetPart| check_fleet(fleet, &args);
            for Change { key, part } in piece.changes {
                walk.way.change(&key, &part, &check);
                if walk.bytes > DELTA_BYTES_MAX {
                    walk.changes = None;
                }
                if let Some(changes) = &mut walk.changes {
                    changes.push((key, part));
                }
            }
            walk
        };
        let walk = if bytes > APART_BYTES { tokio::task::spawn_blocking(step).await? } else { step() };
        if last {
            self.arrive(walk).await
        } else {
            self.walk = Some(walk);
            Ok(())
        }
    }

    /// The way is walked: what it led to is put in force, kept, and acknowledged.
    async fn arrive(&mut self, walk: Walk) -> anyhow::Result<()> {
        let Walk { way, to, full, changes, .. } = walk;
        let (next, adds_up) = if full { tokio::task::spawn_blocking(move || way.arrive(to)).await? } else { way.arrive(to) };
        let before = std::mem::replace(&mut self.held, next);
        let mut fleet_refused = None;
        if let Some(live) = &mut self.live
            && let Ok(config) = self.held.config()
            && let Err(error) = live.apply(config)
        {
            let why = format!("{error:#}");
            tracing::error!(error = why, "the fleet's newest settings cannot be put in force: the ones before stay");
            self.held.refuse_fleet(before.fleet(), &why);
            fleet_refused = Some(why);
            if let Ok(config) = self.held.config() {
                live.apply(config)?;
            }
        }
        if self.live.is_none() {
            self.start_gateway().await?;
        }
        if full {
            let (tenants, hash) = (self.held.tenants().len(), self.held.hash());
            tracing::info!(event = "configured", tenants, refused = self.held.refused().len(), %hash, "the whole configuration came");
            // As many tenants are freed as there were.
            tokio::task::spawn_blocking(move || drop(before));
        }
        if !adds_up {
            tracing::warn!(
                epoch = to.epoch,
                number = to.number,
                full,
                "the parts do not add up to what the operator promised: everything is asked for"
            );
        }
        let delta = changes.map(|changes| Delta { to: adds_up.then_some(to), changes, fleet_refused });
        self.writer.keep(delta, Arc::new(self.held.clone())).await;
        self.note_refused();
        let standing =
            Standing { have: self.held.place().map(position), tenants: self.held.tenants_known(), applied: Some(self.applied(to, adds_up)) };
        if full && !adds_up {
            // Asked for at once, what does not add up would come again and again.
            self.ask_again = Some(standing);
            self.follower.standing.send_replace(Standing::default());
        } else {
            self.ask_again = None;
            self.follower.standing.send_replace(standing);
        }
        Ok(())
    }

    fn applied(&self, to: Place, adds_up: bool) -> Applied {
        let refused = self.held.refused();
        if refused.len() > REJECTED_MAX {
            tracing::warn!(refused = refused.len(), "more parts are refused than the operator is told of");
        }
        let rejected = refused.iter().take(REJECTED_MAX).map(|(key, why)| Rejection {
            key: key.to_string(),
            lacks: why.lacks.clone(),
            message: why.message.clone(),
        });
        Applied { position: Some(position(to)), rejected: rejected.collect(), resync: !adds_up }
    }

    fn note_refused(&self) {
        if let Some(live) = &self.live {
            let count = self.held.refused().len();
            live.gateway.metrics.refused_parts.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    async fn orders(&mut self, orders: &Orders) {
        self.drain = orders.drain();
        let apart_ms = clock::unix_ms().abs_diff(orders.now_ms);
        if orders.now_ms > 0 && apart_ms > CLOCKS_APART_MS {
            tracing::warn!(apart_ms, "the operator's clock and ours are apart: ages and expiry go by ours");
        }
        let networks = orders.cluster_networks.iter().take(NETWORKS_MAX).filter_map(|text| match text.parse::<IpNet>() {
            Ok(network) => Some(network),
            Err(error) => {
                tracing::warn!(network = text, %error, "a cluster network is no CIDR and is left out");
                None
            }
        });
        let lasting = Lasting { gateways: orders.gateways, cluster_networks: networks.collect() };
        if lasting != self.lasting {
            self.lasting = lasting.clone();
            let state = self.args.state.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || write_orders(state, &lasting)).await {
                tracing::error!(%error, "the orders were not kept");
            }
        }
        self.obey();
    }

    /// Does what is ordered.
    fn obey(&self) {
        self.reporter.draining_already(self.drain);
        let Some(live) = &self.live else { return };
        let gateway = &live.gateway;
        gateway.sharing.store(self.lasting.gateways, Ordering::Relaxed);
        if **gateway.cluster_networks.load() != self.lasting.cluster_networks {
            gateway.cluster_networks.store(Arc::new(self.lasting.cluster_networks.clone()));
        }
        let drain = self.drain;
        let changed = gateway.draining.send_if_modified(|now| std::mem::replace(now, drain) != drain);
        if changed {
            match drain {
                DrainKind::None => tracing::info!(event = "undrained", "mail is taken again"),
                DrainKind::Restart | DrainKind::Retire => {
                    tracing::info!(event = "draining", kind = ?drain, sessions = gateway.open_sessions(), "no new mail is taken: sessions end");
                }
            }
        }
    }
}
