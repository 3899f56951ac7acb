//! A whole gateway in this process: real listener, spool, quarantine and delivery; engines and DNS that do as they are told.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sekimori_crds::snapshot::{
    BreakerPart, ClassMinimum, EngineEndpoint, EnginePart, FleetPart, ListenerLimits, ListenerPart, Part, PartKey, Snapshot, TenantPart,
};
use sekimori_crds::units::ByteSize;
use sekimori_crds::vocabulary::{BareLineEndings, EngineClass, EngineMode, EngineProtocol, ListenerRole, ListenerTls, VerdictHeader};
use sekimori_mta::config::Config;
use sekimori_mta::io::assemble::{Assembled, Parts, assemble};
use sekimori_mta::io::delivery::Options;
use sekimori_mta::io::dns::{self, Resolver};
use sekimori_mta::io::engine::fake::{Fake, connector};
use sekimori_mta::io::engine::{Builtins, Options as EngineOptions};
use sekimori_mta::io::gateway::{Gateway, Memory};
use sekimori_mta::io::listener::{self, Listener, Settings};
use sekimori_mta::io::quarantine::{Filter as Kept, Item, Kind, Quarantine, QuarantineOptions};
use sekimori_mta::io::spool::{Disk, Recovered, Spool, SpoolOptions};
use sekimori_mta::io::tls::server_config;
use sekimori_mta::queue::index::{Filter, Listed, Operation};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::Client;
use crate::delivery::gateway::wait_for;

/// A disk in memory that can be told to fail.
#[derive(Default)]
pub(super) struct MemoryDisk {
    segments: Mutex<BTreeMap<u32, Vec<u8>>>,
    /// Writes and syncs fail.
    pub(super) broken: AtomicBool,
    /// No further segment can be made.
    pub(super) no_space: AtomicBool,
}

impl MemoryDisk {
    fn check(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }
}

impl Disk for MemoryDisk {
    fn segments(&self) -> io::Result<Vec<(u32, u64)>> {
        Ok(self.segments.lock().unwrap().iter().map(|(number, bytes)| (*number, bytes.len() as u64)).collect())
    }

    fn create(&self, segment: u32, bytes: u64) -> io::Result<()> {
        self.check()?;
        if self.no_space.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.segments.lock().unwrap().insert(segment, vec![0; bytes as usize]);
        Ok(())
    }

    fn read_at(&self, segment: u32, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let segments = self.segments.lock().unwrap();
        let bytes = segments.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        let from = offset as usize;
        buffer.copy_from_slice(bytes.get(from..from + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, segment: u32, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.check()?;
        let mut segments = self.segments.lock().unwrap();
        let bytes = segments.get_mut(&segment).ok_or(io::ErrorKind::NotFound)?;
        let mut at = offset as usize;
        for part in parts {
            bytes.get_mut(at..at + part.len()).ok_or(io::ErrorKind::WriteZero)?.copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    }

    fn sync(&self, _segment: u32) -> io::Result<()> {
        self.check()
    }

    fn fence(&self) -> io::Result<u64> {
        Ok(1)
    }
}

pub(crate) fn engine(name: &str, class: EngineClass) -> EnginePart {
    EnginePart {
        name: name.into(),
        class,
        family: name.into(),
        mode: EngineMode::Enforce,
        protocol: EngineProtocol::Clamd,
        endpoint: EngineEndpoint::Address("127.0.0.1:1".into()),
        version: None,
        timeout: "500ms".parse().unwrap(),
        concurrency: 32,
        max_bytes: ByteSize(64 << 20),
        weight_percent: 100,
        probe_interval: "1h".parse().unwrap(),
        breaker: BreakerPart { failures: 5, window: 20, open_for: "1s".parse().unwrap() },
    }
}

pub(crate) fn listener_part() -> ListenerPart {
    ListenerPart {
        name: "smtp".into(),
        port: 25,
        role: ListenerRole::Inbound,
        tls: ListenerTls::Disabled,
        certificates: vec![],
        // Every test client says by PROXY where it comes from.
        proxy_trusted_networks: Some(vec!["127.0.0.0/8".parse().unwrap()]),
        bare_line_endings: BareLineEndings::Refuse,
        limits: ListenerLimits {
            connections: 1000,
            connections_per_address: 1000,
            messages_per_session: 1000,
            recipients: 1000,
            message_size: ByteSize(32 << 20),
        },
    }
}

/// What a gateway is to be like; the defaults are healthy: an honest engine `av` and an honest engine `as`.
pub(super) struct Setup {
    pub(super) tenants: Vec<TenantPart>,
    pub(super) engines: Vec<EnginePart>,
    pub(super) listener: ListenerPart,
    pub(super) delivery: Options,
    /// Bytes, and the percent that one network may hold.
    pub(super) memory: (u64, u64),
    pub(super) dns: Arc<dns::Fake>,
    pub(super) verdict_header: VerdictHeader,
    /// In memory instead of a directory.
    pub(super) disk: Option<Arc<MemoryDisk>>,
    pub(super) segment_bytes: u64,
    pub(super) segments_max: u32,
    pub(super) warm: ClassMinimum,
}

impl Setup {
    pub(super) fn new(tenants: Vec<TenantPart>) -> Self {
        let mut delivery = crate::delivery::gateway::options();
        // A busy machine must not make a healthy server look slow.
        for timeout_ms in [
            &mut delivery.timeouts.connect_ms,
            &mut delivery.timeouts.banner_ms,
            &mut delivery.timeouts.command_ms,
            &mut delivery.timeouts.mail_ms,
            &mut delivery.timeouts.rcpt_ms,
            &mut delivery.timeouts.data_ms,
            &mut delivery.timeouts.block_ms,
            &mut delivery.timeouts.end_of_data_ms,
        ] {
            *timeout_ms = 10_000;
        }
        Self {
            tenants,
            engines: vec![engine("av", EngineClass::AntiVirus), engine("as", EngineClass::AntiSpam)],
            listener: listener_part(),
            delivery,
            memory: (256 << 20, 100),
            dns: Arc::default(),
            verdict_header: VerdictHeader::Full,
            disk: None,
            segment_bytes: 4 << 20,
            segments_max: 16,
            warm: ClassMinimum { anti_virus: 1, anti_spam: 1 },
        }
    }

    fn snapshot(&self, tenants: &[TenantPart]) -> Snapshot {
        let fleet = FleetPart {
            namespace: "mail".into(),
            name: "inbound".into(),
            hostname: "mx.example.net".into(),
            listeners: vec![self.listener.clone()],
            engines: self.engines.clone(),
            resolver_addresses: vec![],
            egress_allowed_networks: vec!["127.0.0.0/8".parse().unwrap()],
            quarantine_retention: "720h".parse().unwrap(),
            startup_max_wait: "5m".parse().unwrap(),
            startup_minimum_engines: self.warm,
            verdict_header: self.verdict_header,
            requires: BTreeSet::default(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.parts.insert(PartKey::Fleet, Part::Fleet(Box::new(fleet)));
        for part in tenants {
            let key = PartKey::Tenant { namespace: part.namespace.clone(), name: part.name.clone() };
            snapshot.parts.insert(key, Part::Tenant(Box::new(part.clone())));
        }
        snapshot
    }

    fn open_spool(&self, dir: PathBuf) -> (Spool, Vec<Recovered>) {
        let options = SpoolOptions { dir, segment_bytes: self.segment_bytes, segments_max: self.segments_max, records_max: 100_000 };
        match &self.disk {
            Some(disk) => Spool::open_with_disk(options, Arc::clone(disk) as _).unwrap(),
            None => Spool::open(options).unwrap(),
        }
    }

    /// Starts it in a new directory.
    pub(super) async fn start(self) -> World {
        self.start_in(tempfile::tempdir().unwrap()).await
    }

    /// Starts it in the directory of another that has stopped.
    pub(super) async fn start_in(self, dir: TempDir) -> World {
        let (spool, recovered) = self.open_spool(dir.path().join("spool"));
        let quarantine = Quarantine::open(dir.path().join("quarantine"), QuarantineOptions::default()).unwrap();
        let fakes: BTreeMap<String, Arc<Fake>> = self.engines.iter().map(|part| (part.name.clone(), Fake::new(part.class))).collect();
        let named: Vec<(&str, &Arc<Fake>)> = fakes.iter().map(|(name, fake)| (name.as_str(), fake)).collect();
        let config = Config::compile(&self.snapshot(&self.tenants), &[]).unwrap();
        let engines = EngineOptions { connector: connector(&named), ..EngineOptions::new(Builtins::default(), None) };
        let Assembled { gateway, .. } = assemble(Parts {
            config,
            spool,
            recovered,
            quarantine,
            resolver: Arc::clone(&self.dns) as Arc<dyn Resolver>,
            engines,
            delivery: self.delivery.clone(),
            memory: Memory::new(self.memory.0, self.memory.1),
        })
        .unwrap();
        let warm = gateway.filters.engines.warm_up(self.warm, Duration::from_secs(10)).await;
        assert!(warm.covers(self.warm), "{warm:?}");
        let socket = listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener =
            Listener::serve(socket, Settings { part: self.listener.clone(), tls: server_config(&self.listener).unwrap() }, Arc::clone(&gateway))
                .unwrap();
        let mut world = World { gateway, address: listener.address, listener: Some(listener), fakes, dir, setup: self, worker: None };
        world.run_queue();
        world
    }
}

pub(super) struct World {
    pub(super) gateway: Arc<Gateway>,
    pub(super) address: SocketAddr,
    pub(super) listener: Option<Listener>,
    pub(super) fakes: BTreeMap<String, Arc<Fake>>,
    pub(super) dir: TempDir,
    setup: Setup,
    worker: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl World {
    fn run_queue(&mut self) {
        let (stop, stopped) = watch::channel(false);
        let delivery = self.gateway.delivery.clone();
        self.worker = Some((stop, tokio::spawn(async move { delivery.run(stopped).await })));
    }

    /// Starts the queue's work again, as a restart would, or stops it.
    pub(super) async fn queue_runs(&mut self, runs: bool) {
        if let Some((stop, worker)) = self.worker.take() {
            stop.send_replace(true);
            worker.await.unwrap();
        }
        if runs {
            self.run_queue();
        }
    }

    /// Puts other tenants in force, as a reload does.
    pub(super) fn configure(&self, tenants: &[TenantPart]) {
        self.gateway.config.store(Arc::new(Config::compile(&self.setup.snapshot(tenants), &[]).unwrap()));
    }

    pub(super) fn fake(&self, name: &str) -> &Arc<Fake> {
        self.fakes.get(name).unwrap_or_else(|| panic!("no engine {name}"))
    }

    pub(super) async fn client(&self) -> Client {
        Client::connect(self.address, "192.0.2.1").await
    }

    pub(super) fn queue(&self) -> Vec<Listed> {
        self.gateway.delivery.list(&Filter { all: true, ..Filter::default() }, None, 10_000)
    }

    pub(super) fn retry(&self) {
        self.gateway.delivery.operate(Operation::Retry, &Filter { all: true, ..Filter::default() }, false);
    }

    /// Retries until nothing is left in the queue.
    pub(super) async fn drained(&self) {
        for _ in 0..600 {
            if self.queue().is_empty() {
                return;
            }
            self.retry();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the queue is not empty after 12 s: {:?}", self.queue());
    }

    /// Everything that is kept, of both kinds, with content.
    pub(super) async fn kept(&self) -> Vec<Item> {
        let mut items = vec![];
        for entry in self.gateway.quarantine.list(&Kept::default()) {
            items.push(self.gateway.quarantine.read(entry.key).await.unwrap());
        }
        items
    }

    /// `user@domain: reason` of each kept recipient of one kind, sorted.
    pub(super) async fn kept_for(&self, kind: Kind) -> Vec<String> {
        let mut lines = vec![];
        for item in self.kept().await.into_iter().filter(|item| item.kind == kind) {
            for index in &item.recipients {
                lines.push(format!("{}: {}", item.envelope.recipients[usize::from(*index)].address, item.reason));
            }
        }
        lines.sort();
        lines
    }

    /// The value of a counter with one label, or without.
    pub(super) fn metric(&self, name: &str) -> u64 {
        let text = String::from_utf8(self.gateway.metrics.text()).unwrap();
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit_once(' ')).map_or(0, |(_, value)| value.parse().unwrap())
    }

    /// Makes the quarantine unable to store, or able again.
    pub(super) fn quarantine_works(&self, works: bool) {
        for kind in ["quarantined", "dead-letters"] {
            let (here, away) = (self.dir.path().join("quarantine").join(kind), self.dir.path().join(kind));
            let (from, to) = if works { (away, here) } else { (here, away) };
            std::fs::rename(from, to).unwrap();
        }
    }

    /// Ends everything in the order of a shutdown; what it could be started from again.
    pub(super) async fn stop(mut self) -> (Setup, TempDir) {
        self.gateway.stopping.send_replace(true);
        self.listener = None;
        wait_for("sessions to end", || self.gateway.open_sessions() == 0).await;
        self.queue_runs(false).await;
        self.gateway.spool.clone().close().await.unwrap();
        (self.setup, self.dir)
    }
}
