//! Delivery with everything around it but the network made of plain data.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers")]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use sekimori_crds::snapshot::{ClassMinimum, FleetPart, Part, PartKey, Policy, RoutePart, Snapshot, TenantPart};
use sekimori_crds::vocabulary::{DeliveryMode, Enforcement, RouteLookup, RouteTls, TenantState, VerdictHeader};
use sekimori_mta::config::{Config, Tenant};
use sekimori_mta::envelope::{Client, Envelope, Recipient};
use sekimori_mta::io::clock;
use sekimori_mta::io::delivery::{Content, Copy, Delivery, Destination, Hosts, Inline, Options, Rescanner, Surroundings};
use sekimori_mta::io::engine::BoxFuture;
use sekimori_mta::io::spool::{Recovered, Spool, SpoolOptions};
use sekimori_mta::message::Edits;
use sekimori_mta::queue::{Group, Meta, Purpose};
use sekimori_mta::queue_id::QueueId;
use sekimori_mta::smtp::Address;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) struct Names(Mutex<HashMap<String, Vec<IpAddr>>>);

impl Hosts for Names {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, String>> {
        let found = self.0.lock().unwrap().get(host).cloned().ok_or_else(|| "no such name".to_owned());
        Box::pin(async move { found })
    }
}

#[derive(Default)]
pub(crate) struct Stores {
    pub(crate) copies: Mutex<Vec<Copy>>,
    /// Tenants whose store hangs.
    pub(crate) hangs_for: Mutex<Vec<String>>,
    /// Tenants whose store fails.
    pub(crate) fails_for: Mutex<Vec<String>>,
}

impl Destination for Stores {
    fn store(&self, copy: Copy) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            if self.hangs_for.lock().unwrap().iter().any(|tenant| **tenant == *copy.tenant) {
                std::future::pending::<()>().await;
            }
            if self.fails_for.lock().unwrap().iter().any(|tenant| **tenant == *copy.tenant) {
                return Err("the store is absent".into());
            }
            self.copies.lock().unwrap().push(copy);
            Ok(())
        })
    }
}

type Judge = dyn Fn(Group) -> Result<Vec<Group>, String> + Send + Sync;

pub(crate) struct Judging(pub(super) Mutex<Arc<Judge>>);

impl Rescanner for Judging {
    fn rescan(&self, _meta: Arc<Meta>, group: Group, _raw: Bytes) -> BoxFuture<'_, Result<Vec<Group>, String>> {
        let judge = Arc::clone(&self.0.lock().unwrap());
        Box::pin(async move { judge(group) })
    }
}

/// Nothing but what delivery looks at matters here.
pub(crate) fn policy() -> Policy {
    sekimori_crds::compile::defaults::policy()
}

pub(crate) fn route(name: &str, address: SocketAddr) -> RoutePart {
    RoutePart {
        name: name.into(),
        host: address.ip().to_string(),
        lookup: RouteLookup::Address,
        port: address.port(),
        priority: 10,
        weight: 100,
        tls: RouteTls::Disabled,
    }
}

pub(crate) fn tenant(name: &str, routes: Vec<RoutePart>) -> TenantPart {
    TenantPart {
        namespace: "mail".into(),
        name: name.into(),
        domains: vec![format!("{name}.example")],
        state: TenantState::Active,
        suspended_since: None,
        enforcement: Enforcement::Enforce,
        routes,
        delivery: DeliveryMode::InlineElseQueue,
        soft_bounce: false,
        messages_per_hour: None,
        policy: policy(),
        requires: Default::default(),
    }
}

fn config(tenants: &[TenantPart], removed: &[TenantPart], egress: &[&str]) -> Config {
    let fleet = FleetPart {
        namespace: "mail".into(),
        name: "inbound".into(),
        hostname: "mx.example.net".into(),
        listeners: vec![],
        engines: vec![],
        resolver_addresses: vec![],
        egress_allowed_networks: egress.iter().map(|network| network.parse().unwrap()).collect(),
        quarantine_retention: "720h".parse().unwrap(),
        startup_max_wait: "5m".parse().unwrap(),
        startup_minimum_engines: ClassMinimum { anti_virus: 0, anti_spam: 0 },
        verdict_header: VerdictHeader::Summary,
        requires: Default::default(),
    };
    let mut snapshot = Snapshot::default();
    snapshot.parts.insert(PartKey::Fleet, Part::Fleet(Box::new(fleet)));
    for part in tenants {
        let key = PartKey::Tenant { namespace: part.namespace.clone(), name: part.name.clone() };
        snapshot.parts.insert(key, Part::Tenant(Box::new(part.clone())));
    }
    Config::compile(&snapshot, removed).unwrap()
}

/// Short enough for tests, long enough for a busy machine.
pub(crate) fn options() -> Options {
    let mut options = Options { root_certificates: "/nonexistent".into(), ..Options::default() };
    let short_ms = 700;
    options.timeouts.connect_ms = short_ms;
    options.timeouts.banner_ms = short_ms;
    options.timeouts.command_ms = short_ms;
    options.timeouts.handshake_ms = short_ms;
    options.timeouts.mail_ms = short_ms;
    options.timeouts.rcpt_ms = short_ms;
    options.timeouts.data_ms = short_ms;
    options.timeouts.block_ms = short_ms;
    options.timeouts.end_of_data_ms = short_ms;
    options.pacing.backoff_first_ms = 100;
    options.pacing.backoff_max_ms = 200;
    options.retry.first_ms = 60_000;
    options.retry.maybe_delivered_ms = 60_000;
    options.inline_min_ms = 1;
    options.store_retry_ms = 100;
    options.shutdown_grace_ms = 300;
    options
}

/// A spool in a directory of its own, which goes with the second value.
pub(crate) fn spool() -> (Spool, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (spool, found) =
        Spool::open(SpoolOptions { dir: dir.path().to_owned(), segment_bytes: 8 << 20, segments_max: 32, records_max: 100_000 }).unwrap();
    assert!(found.is_empty());
    (spool, dir)
}

pub(crate) struct Gateway {
    pub(crate) delivery: Delivery,
    pub(crate) spool: Spool,
    pub(crate) stores: Arc<Stores>,
    pub(crate) judging: Arc<Judging>,
    names: Arc<Names>,
    config: Arc<ArcSwap<Config>>,
    shutdown: watch::Sender<bool>,
    running: Option<JoinHandle<()>>,
    #[expect(dead_code, reason = "the spool's directory goes with the gateway")]
    dir: Option<TempDir>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Gateway {
    pub(crate) fn new(options: Options, tenants: &[TenantPart]) -> Self {
        let (spool, dir) = spool();
        Self { dir: Some(dir), ..Self::with_spool(options, tenants, spool) }
    }

    pub(crate) fn with_spool(options: Options, tenants: &[TenantPart], spool: Spool) -> Self {
        let config = Arc::new(ArcSwap::from_pointee(config(tenants, &[], &["127.0.0.0/8"])));
        let stores = Arc::new(Stores::default());
        let judging = Arc::new(Judging(Mutex::new(Arc::new(|_| Err("nobody judges here".into())))));
        let names = Arc::new(Names(Mutex::default()));
        let around = Surroundings {
            config: Arc::clone(&config),
            spool: spool.clone(),
            hosts: Arc::clone(&names) as Arc<dyn Hosts>,
            destination: Arc::clone(&stores) as Arc<dyn Destination>,
            rescanner: Arc::clone(&judging) as Arc<dyn Rescanner>,
        };
        let delivery = Delivery::new(options, around).unwrap();
        Self { delivery, spool, stores, judging, names, config, shutdown: watch::channel(false).0, running: None, dir: None }
    }

    pub(crate) fn run(&mut self) {
        let (delivery, shutdown) = (self.delivery.clone(), self.shutdown.subscribe());
        self.running = Some(tokio::spawn(async move { delivery.run(shutdown).await }));
    }

    pub(crate) async fn stop(&mut self) {
        self.shutdown.send_replace(true);
        if let Some(running) = self.running.take() {
            running.await.unwrap();
        }
    }

    pub(crate) fn configure(&self, tenants: &[TenantPart], egress: &[&str]) {
        self.config.store(Arc::new(config(tenants, &[], egress)));
    }

    /// Puts a configuration in force without these tenants, which have mail here.
    pub(crate) fn remove(&self, tenants: &[TenantPart]) {
        self.config.store(Arc::new(config(&[], tenants, &["127.0.0.0/8"])));
    }

    pub(crate) fn name(&self, host: &str, addresses: &[&str]) {
        self.names.0.lock().unwrap().insert(host.into(), addresses.iter().map(|a| a.parse().unwrap()).collect());
    }

    pub(crate) fn tenant(&self, name: &str) -> Arc<Tenant> {
        Arc::clone(self.config.load().tenant(&format!("mail/{name}")).unwrap())
    }

    /// Inline, with ten seconds.
    pub(crate) async fn inline(&self, envelope: &Envelope, raw: &Bytes) -> Inline {
        let tenant = self.config.load().tenant(&envelope.recipients[0].tenant).cloned().unwrap();
        let recipients: Vec<u16> = (0..envelope.recipients.len() as u16).collect();
        let content = Content { raw: raw.clone(), edits: Arc::new(Edits::default()) };
        self.delivery.inline(&tenant, &Arc::new(envelope.clone()), &recipients, &content, clock::monotonic_ms() + 10_000).await
    }

    pub(crate) async fn submit(&self, envelope: &Envelope, purpose: Purpose, raw: &Bytes) {
        let group = Group {
            tenant: Arc::clone(&envelope.recipients[0].tenant),
            recipients: (0..envelope.recipients.len() as u16).collect(),
            edits: Edits::default(),
            purpose,
        };
        self.delivery.submit(Meta { envelope: envelope.clone(), groups: vec![group] }, raw.clone()).await.unwrap();
    }

    pub(crate) async fn queue(&self, envelope: &Envelope, raw: &Bytes) {
        self.submit(envelope, Purpose::Deliver { maybe_delivered: false }, raw).await;
    }

    /// What a restart would find of these messages.
    pub(crate) async fn recovered(&self, ids: &[QueueId]) -> Vec<Recovered> {
        let mut found = vec![];
        for id in ids {
            if let Ok((meta, body)) = self.spool.read(*id).await {
                let slots = Meta::decode(&meta).map_or(1, |meta| meta.envelope.recipients.len() as u16);
                found.push(Recovered { id: *id, meta_len: meta.len(), body_len: body.len(), slots, done: Default::default() });
            }
        }
        found
    }
}

/// An envelope from `sender` to `users` of one tenant.
pub(crate) fn envelope_from(sender: &str, tenant: &str, users: &[&str]) -> Envelope {
    let now_ms = clock::unix_ms();
    let domain = |text: &str| text.split_once('@').map(|(local, domain)| Address { local: local.into(), domain: domain.into() });
    Envelope {
        id: QueueId::new(now_ms, u128::from(NEXT.fetch_add(1, Ordering::SeqCst))),
        received_ms: now_ms,
        client: Client { address: [192, 0, 2, 9].into(), helo: "client.test".into(), esmtp: true, tls: None, address_known: true },
        sender: domain(sender),
        recipients: users
            .iter()
            .map(|user| Recipient {
                address: Address { local: (*user).into(), domain: format!("{tenant}.example") },
                tenant: format!("mail/{tenant}").into(),
            })
            .collect(),
        eight_bit: false,
        smtputf8: false,
    }
}

pub(crate) fn envelope(tenant: &str, users: &[&str]) -> Envelope {
    envelope_from("a@sender.test", tenant, users)
}

pub(crate) fn mail() -> Bytes {
    Bytes::from_static(b"Message-ID: <1@sender.test>\r\nSubject: hello\r\n\r\nA line.\r\n.hidden\r\n..\r\n.\r\nLast line.\r\n")
}

pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited ten seconds for: {what}");
}

pub(crate) fn word(inline: &Inline) -> &'static str {
    match inline {
        Inline::Delivered { .. } => "delivered",
        Inline::Refused(_) => "refused",
        Inline::NotPossible { .. } => "not possible",
        Inline::Unknown { .. } => "unknown",
    }
}
