use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use sekimori_crds::snapshot::{FORMAT, RollingHash, part_words};
use sekimori_crds::stream::configuration_client::ConfigurationClient;
use sekimori_crds::stream::{Applied, DrainKind, Hello, Orders, Position, Rejection, Report, from_gateway, to_gateway};
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::*;
use crate::io::hub::{EpochStore, FleetKey, PodIdentity, Reach};

/// Tokens are `NAMESPACE ACCOUNT POD UID`, or a refusal, or no answer; what a token means can be changed under way.
struct FakeReviewer(Mutex<BTreeMap<String, ReviewError>>);

impl TokenReviewer for FakeReviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Identity, ReviewError>> {
        let overruled = self.0.lock().expect("no panic").get(token).cloned();
        async move {
            if let Some(error) = overruled {
                return Err(error);
            }
            let mut words = token.split(' ').map(str::to_owned);
            let mut next = || words.next().ok_or(ReviewError::Refused(Refusal::NotAuthenticated));
            Ok(Identity { namespace: next()?, service_account: next()?, pod_name: next()?, pod_uid: next()? })
        }
        .boxed()
    }
}

struct Epochs(AtomicU64);

impl EpochStore for Epochs {
    fn raise(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        self.0.fetch_max(above, Ordering::SeqCst);
        let epoch = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        async move { Ok(epoch) }.boxed()
    }
}

const TOKEN: &str = "mail inbound-gateway inbound-gateway-0 uid-0";

struct World {
    server: StreamServer,
    hub: Hub,
    fleet: FleetKey,
    reviewer: Arc<FakeReviewer>,
    metrics: Arc<StreamMetrics>,
    tls: tempfile::TempDir,
    authority: String,
}

/// An authority and its certificate.
fn authority() -> (rcgen::Issuer<'static, rcgen::KeyPair>, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![]).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("signed").pem();
    (rcgen::Issuer::new(params, key), pem)
}

fn certify(issuer: &rcgen::Issuer<'static, rcgen::KeyPair>, directory: &std::path::Path) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["operator.test".to_owned()]).expect("a name").signed_by(&key, issuer).expect("signed");
    std::fs::write(directory.join("tls.crt"), certificate.pem()).expect("written");
    std::fs::write(directory.join("tls.key"), key.serialize_pem()).expect("written");
}

impl World {
    async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let (issuer, authority) = authority();
        let tls = tempfile::tempdir().expect("a directory");
        certify(&issuer, tls.path());
        let reviewer = Arc::new(FakeReviewer(Mutex::default()));
        let metrics = Arc::new(StreamMetrics::new(&prometheus::Registry::new()).expect("metrics"));
        let server = StreamServer::start_with(
            "127.0.0.1:0".parse().expect("an address"),
            tls.path().to_owned(),
            Arc::clone(&reviewer) as Arc<dyn TokenReviewer>,
            Arc::clone(&metrics),
            limits,
        )
        .await
        .expect("started");
        let hub = Hub::new(5, Arc::new(Epochs(AtomicU64::new(5))));
        let fleet = FleetKey::new("mail", "inbound");
        Self { server, hub, fleet, reviewer, metrics, tls, authority }
    }

    /// With a leader, one pod, and everything put in.
    async fn leading(tenants: usize) -> Self {
        Self::leading_with(tenants, Limits::default()).await
    }

    async fn leading_with(tenants: usize, limits: Limits) -> Self {
        let world = Self::with(limits).await;
        world.hub.set_pods(&world.fleet, vec![pod(0)]);
        world.hub.put(&world.fleet, "fleet", Bytes::from_static(b"{\"f\":1}"));
        for n in 0..tenants {
            world.hub.put(&world.fleet, &format!("tenant/mail/{n}"), Bytes::from(format!("{{\"n\":{n}}}")));
        }
        world.hub.synced(&world.fleet, "fleet");
        world.hub.synced(&world.fleet, "tenants");
        world.server.lead(world.hub.clone());
        world
    }

    /// Gateways that follow.
    fn following(&self) -> usize {
        self.hub.figures().iter().map(|(_, figures)| figures.gateways).sum()
    }

    async fn client(&self) -> ConfigurationClient<Channel> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.authority)).domain_name("operator.test");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.server.address())).expect("an address").tls_config(tls).expect("TLS");
        ConfigurationClient::new(endpoint.connect().await.expect("connected"))
    }

    async fn follow(&self, token: &str, have: Option<Position>) -> Result<Gateway, Status> {
        self.greet(token, Hello { have, format: FORMAT, ..Hello::default() }).await
    }

    async fn greet(&self, token: &str, hello: Hello) -> Result<Gateway, Status> {
        let (sender, receiver) = mpsc::channel(16);
        let have = hello.have.clone();
        sender.send(FromGateway { body: Some(from_gateway::Body::Hello(hello)) }).await.expect("room");
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        let inbound = self.client().await.follow(request).await?.into_inner();
        Ok(Gateway { sender, inbound, parts: BTreeMap::new(), position: have, orders: None, pieces: 0, full: false })
    }
}

fn pod(n: usize) -> PodIdentity {
    PodIdentity { name: format!("inbound-gateway-{n}").into(), uid: format!("uid-{n}").into() }
}

struct Gateway {
    sender: mpsc::Sender<FromGateway>,
    inbound: Streaming<ToGateway>,
    parts: BTreeMap<String, Bytes>,
    position: Option<Position>,
    orders: Option<Orders>,
    pieces: usize,
    full: bool,
}

impl Gateway {
    async fn say(&self, body: from_gateway::Body) {
        self.sender.send(FromGateway { body: Some(body) }).await.expect("room");
    }

    /// Takes messages until this holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            let said = tokio::time::timeout_at(deadline, self.inbound.message()).await.unwrap_or_else(|_| panic!("timed out: {what}"));
            match said.expect("no error").expect("the stream is open").body {
                Some(to_gateway::Body::Changes(changes)) => self.take(changes),
                Some(to_gateway::Body::Orders(orders)) => self.orders = Some(orders),
                None => {}
            }
        }
    }

    fn take(&mut self, changes: sekimori_crds::stream::Changes) {
        self.pieces += 1;
        if changes.full {
            self.full = true;
            self.parts.clear();
        }
        for change in changes.changes {
            if change.part.is_empty() {
                self.parts.remove(&change.key)
            } else {
                self.parts.insert(change.key, change.part)
            };
        }
        if changes.last {
            self.position = changes.to;
        }
    }

    fn hash(&self) -> RollingHash {
        let mut hash = RollingHash::default();
        self.parts.iter().for_each(|(key, json)| hash.add_words(part_words(key, json)));
        hash
    }

    fn is_right(&self) -> bool {
        self.position.as_ref().is_some_and(|position| position.hash == self.hash().to_bytes())
    }

    async fn acknowledge(&self, rejected: Vec<Rejection>) {
        self.say(from_gateway::Body::Applied(Applied { position: self.position.clone(), rejected, resync: false })).await;
    }

    /// How it ends.
    async fn end(mut self) -> Status {
        loop {
            match tokio::time::timeout(Duration::from_secs(20), self.inbound.message()).await.expect("it ends") {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not so within ten seconds: {what}");
}

#[tokio::test]
async fn snapshot_then_deltas_acknowledged() {
    let world = World::leading(300).await;
    let mut gateway = world.follow(TOKEN, None).await.expect("accepted");
    gateway.until("everything", |g| g.parts.len() == 301).await;
    assert!(gateway.full && gateway.is_right());
    assert_eq!(world.hub.reach(&world.fleet, "tenant/mail/1"), Reach::Waiting);
    gateway.acknowledge(vec![]).await;
    eventually("acknowledged", || world.hub.reach(&world.fleet, "tenant/mail/1") == Reach::Everywhere).await;
    let before = gateway.pieces;
    world.hub.put(&world.fleet, "tenant/mail/1", Bytes::from_static(b"{\"n\":\"new\"}"));
    assert_eq!(world.hub.reach(&world.fleet, "tenant/mail/1"), Reach::Waiting);
    gateway.until("the change", |g| g.parts.get("tenant/mail/1").is_some_and(|part| **part == *b"{\"n\":\"new\"}")).await;
    assert_eq!(gateway.pieces, before + 1);
    assert!(gateway.is_right());
    let rejection = Rejection { key: "tenant/mail/1".into(), lacks: "Arc".into(), message: String::new() };
    gateway.acknowledge(vec![rejection.clone()]).await;
    eventually("rejected", || world.hub.reach(&world.fleet, "tenant/mail/1") == Reach::Rejected(rejection.clone())).await;
    assert_eq!(world.hub.reach(&world.fleet, "tenant/mail/none"), Reach::Unknown);
    gateway.say(from_gateway::Body::Report(Report { sessions: 7, ..Report::default() })).await;
    let report = || world.hub.fleet(&world.fleet).pods.get("uid-0").and_then(|(_, state)| state.report.clone());
    eventually("reported", || report().is_some_and(|(_, report)| report.sessions == 7)).await;
}

#[tokio::test]
async fn who_comes_back_gets_only_what_is_new() {
    let world = World::leading(50).await;
    let mut gateway = world.follow(TOKEN, None).await.expect("accepted");
    gateway.until("everything", |g| g.position.is_some()).await;
    let (parts, position) = (gateway.parts.clone(), gateway.position.clone());
    drop(gateway);
    eventually("gone", || world.following() == 0).await;
    world.hub.remove(&world.fleet, "tenant/mail/3");
    let mut back = world.follow(TOKEN, position).await.expect("accepted");
    back.parts = parts;
    back.until("the removal", |g| g.parts.len() == 50).await;
    assert!(!back.full && back.is_right());
}

#[tokio::test]
async fn nobody_is_answered_before_everything_was_put_in() {
    let world = World::new().await;
    world.hub.set_pods(&world.fleet, vec![pod(0)]);
    world.server.lead(world.hub.clone());
    let mut gateway = world.follow(TOKEN, None).await.expect("accepted");
    world.hub.set_orders(&world.fleet, "uid-0", Orders { gateways: 3, ..Orders::default() });
    gateway.until("orders", |g| g.orders.as_ref().is_some_and(|orders| orders.gateways == 3)).await;
    world.hub.put(&world.fleet, "fleet", Bytes::from_static(b"{}"));
    world.hub.synced(&world.fleet, "fleet");
    world.hub.set_orders(&world.fleet, "uid-0", Orders { gateways: 4, ..Orders::default() });
    gateway.until("orders", |g| g.orders.as_ref().is_some_and(|orders| orders.gateways == 4)).await;
    assert_eq!(gateway.pieces, 0, "one source is not all");
    world.hub.synced(&world.fleet, "tenants");
    gateway.until("everything", |g| g.position.is_some()).await;
    world.hub.set_orders(&world.fleet, "uid-0", Orders { drain: DrainKind::Retire.into(), ..Orders::default() });
    gateway.until("the drain", |g| g.orders.as_ref().is_some_and(|orders| orders.drain() == DrainKind::Retire)).await;
}

#[tokio::test]
async fn who_is_no_gateway_is_refused() {
    let world = World::leading(1).await;
    let refusals = [
        ("garbage", Code::Unauthenticated),
        ("mail inbound-gateway inbound-gateway-1 uid-0", Code::PermissionDenied),
        ("mail inbound-gateway inbound-gateway-0 uid-9", Code::PermissionDenied),
        ("mail default inbound-gateway-0 uid-0", Code::PermissionDenied),
        ("other inbound-gateway inbound-gateway-0 uid-0", Code::PermissionDenied),
    ];
    for (token, code) in refusals {
        let status = match world.follow(token, None).await {
            Err(status) => status,
            Ok(gateway) => gateway.end().await,
        };
        assert_eq!(status.code(), code, "{token}: {status}");
    }
    world.reviewer.0.lock().expect("no panic").insert(TOKEN.into(), ReviewError::Refused(Refusal::WrongAudience));
    assert_eq!(world.follow(TOKEN, None).await.map(drop).expect_err("refused").code(), Code::Unauthenticated);
    world.reviewer.0.lock().expect("no panic").insert(TOKEN.into(), ReviewError::Unavailable("away".into()));
    assert_eq!(world.follow(TOKEN, None).await.map(drop).expect_err("refused").code(), Code::Unavailable);
    let (_sender, receiver) = mpsc::channel(1);
    let status = world.client().await.follow(Request::new(ReceiverStream::new(receiver))).await.map(drop).expect_err("refused");
    assert_eq!((status.code(), world.metrics.refused.with_label_values(&["no_token"]).get()), (Code::Unauthenticated, 1));
}

#[tokio::test]
async fn attempts_of_one_address_are_bounded() {
    let world = World::leading(1).await;
    let mut codes = vec![];
    for _ in 0..30 {
        codes.push(world.follow("garbage", None).await.map(drop).expect_err("refused").code());
    }
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
}

#[tokio::test]
async fn a_standby_says_that_it_is_one() {
    let world = World::new().await;
    let status = world.follow(TOKEN, None).await.map(drop).expect_err("refused");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "not leader: ask again"));
}

#[tokio::test]
async fn a_pod_that_goes_and_a_second_stream_end_the_first() {
    let world = World::leading(1).await;
    let first = world.follow(TOKEN, None).await.expect("accepted");
    eventually("connected", || world.following() == 1).await;
    let second = world.follow(TOKEN, None).await.expect("accepted");
    assert_eq!(first.end().await.code(), Code::Aborted);
    assert_eq!(world.following(), 1, "the end of the first takes nothing from the second");
    world.hub.set_pods(&world.fleet, vec![pod(1)]);
    assert_eq!(second.end().await.code(), Code::Aborted);
}

#[tokio::test]
async fn a_fresh_token_must_be_the_same_pods_and_good() {
    let world = World::leading(1).await;
    world.hub.set_pods(&world.fleet, vec![pod(0), pod(1)]);
    let gateway = world.follow(TOKEN, None).await.expect("accepted");
    gateway.say(from_gateway::Body::Token(TOKEN.into())).await;
    gateway.say(from_gateway::Body::Token("mail inbound-gateway inbound-gateway-1 uid-1".into())).await;
    assert_eq!(gateway.end().await.code(), Code::PermissionDenied);
    let gateway = world.follow(TOKEN, None).await.expect("accepted");
    world.reviewer.0.lock().expect("no panic").insert("late".into(), ReviewError::Unavailable("away".into()));
    gateway.say(from_gateway::Body::Token("late".into())).await;
    world.hub.set_orders(&world.fleet, "uid-0", Orders { gateways: 9, ..Orders::default() });
    let mut gateway = gateway;
    gateway.until("it goes on", |g| g.orders.as_ref().is_some_and(|orders| orders.gateways == 9)).await;
    gateway.say(from_gateway::Body::Token("expired".into())).await;
    assert_eq!(gateway.end().await.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn another_hash_gets_everything_again() {
    let world = World::leading(5).await;
    let mut gateway = world.follow(TOKEN, None).await.expect("accepted");
    gateway.until("everything", |g| g.position.is_some()).await;
    gateway.full = false;
    gateway.say(from_gateway::Body::Applied(Applied { position: gateway.position.clone(), rejected: vec![], resync: true })).await;
    gateway.until("everything again", |g| g.full && g.is_right()).await;
}

#[tokio::test]
async fn a_gateway_that_saw_a_later_epoch_raises_ours() {
    let world = World::leading(5).await;
    let mut gateway = world.follow(TOKEN, Some(Position::new(70, 3, RollingHash::default()))).await.expect("accepted");
    gateway.until("everything", |g| g.full && g.is_right()).await;
    assert_eq!(gateway.position.as_ref().map(|position| position.epoch), Some(71));
    let mut other = world.follow(TOKEN, gateway.position.clone()).await.expect("accepted");
    other.parts = gateway.parts.clone();
    world.hub.put(&world.fleet, "tenant/mail/new", Bytes::from_static(b"{}"));
    other.until("the change", |g| g.parts.len() == 7).await;
    assert!(!other.full, "and goes on from there");
}

#[tokio::test]
async fn a_new_certificate_ends_no_stream() {
    let mut world = World::leading(1).await;
    world.hub.set_pods(&world.fleet, vec![pod(0), pod(1)]);
    let mut before = world.follow(TOKEN, None).await.expect("accepted");
    before.until("everything", |g| g.position.is_some()).await;
    let (issuer, pem) = authority();
    certify(&issuer, world.tls.path());
    let key = std::fs::read(world.tls.path().join("tls.key")).expect("a key");
    std::fs::write(world.tls.path().join("tls.key"), "garbage").expect("written");
    world.server.look_at_certificate();
    drop(world.client().await);
    let error = Certificates::read(world.tls.path()).expect_err("garbage").to_string();
    assert!(error.contains("tls.key") && !error.contains("garbage"), "{error}");
    std::fs::write(world.tls.path().join("tls.key"), key).expect("written");
    world.server.look_at_certificate();
    world.authority = pem;
    let mut after = world.follow("mail inbound-gateway inbound-gateway-1 uid-1", None).await.expect("the new certificate is shown");
    world.hub.put(&world.fleet, "tenant/mail/new", Bytes::from_static(b"{}"));
    before.until("the change", |g| g.parts.contains_key("tenant/mail/new")).await;
    after.until("the change", |g| g.parts.contains_key("tenant/mail/new")).await;
}

#[tokio::test]
async fn who_is_no_gateway_raises_no_epoch_and_nobody_uses_them_up() {
    let world = World::leading(3).await;
    let foreign = Position::new(70, 3, RollingHash::default());
    let stranger = world.follow("other default stranger uid-77", Some(foreign)).await.expect("its token is good");
    assert_eq!(stranger.end().await.code(), Code::PermissionDenied);
    let mut liar = world.follow(TOKEN, Some(Position::new(u64::MAX, u64::MAX, RollingHash::default()))).await.expect("accepted");
    liar.until("everything", |g| g.full && g.is_right()).await;
    assert_eq!(liar.position.as_ref().map(|position| position.epoch), Some(5), "the epoch is as it was");
}

#[tokio::test]
async fn an_expired_token_ends_a_stream_at_its_next_review_and_an_absent_api_server_does_not() {
    let world = World::leading_with(1, Limits { review_every: Duration::from_millis(200), ..Limits::default() }).await;
    let mut gateway = world.follow(TOKEN, None).await.expect("accepted");
    gateway.until("everything", |g| g.position.is_some()).await;
    world.reviewer.0.lock().expect("no panic").insert(TOKEN.into(), ReviewError::Unavailable("away".into()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.hub.put(&world.fleet, "tenant/mail/new", Bytes::from_static(b"{}"));
    gateway.until("it goes on", |g| g.parts.contains_key("tenant/mail/new")).await;
    drop(gateway);
    world.reviewer.0.lock().expect("no panic").clear();
    let gateway = world.follow(TOKEN, None).await.expect("accepted");
    world.reviewer.0.lock().expect("no panic").insert(TOKEN.into(), ReviewError::Refused(Refusal::NotAuthenticated));
    assert_eq!(gateway.end().await.code(), Code::Unauthenticated);
    assert_eq!(world.metrics.refused.with_label_values(&["not_authenticated"]).get(), 1);
}

#[tokio::test]
async fn a_slow_gateway_holds_up_nobody_and_is_still_heard_and_cut_off() {
    let world = World::leading(0).await;
    let noise = |n: u64| -> Vec<u8> { (0..60_000).map(|m| part_words("", &[n as u8, (m % 251) as u8, (m / 251) as u8])[0] as u8).collect() };
    for n in 0..60 {
        world.hub.put(&world.fleet, &format!("tenant/mail/{n}"), noise(n).into());
    }
    world.hub.set_pods(&world.fleet, vec![pod(0), pod(1)]);
    let slow = world.follow(TOKEN, None).await.expect("accepted");
    eventually("connected", || world.following() == 1).await;
    let mut other = world.follow("mail inbound-gateway inbound-gateway-1 uid-1", None).await.expect("accepted");
    other.until("everything", |g| g.parts.len() == 61 && g.is_right()).await;
    let sent = world.metrics.sent_bytes.get();
    assert!(sent < 2 * 60 * 60_000, "the slow one was not sent everything: {sent}");
    slow.say(from_gateway::Body::Report(Report { sessions: 7, ..Report::default() })).await;
    let sessions = || world.hub.fleet(&world.fleet).pods.get("uid-0").and_then(|(_, state)| state.report.as_ref().map(|(_, report)| report.sessions));
    eventually("heard while it takes nothing", || sessions() == Some(7)).await;
    // The server, this test and each session hold the reviewer.
    let sessions = || Arc::strong_count(&world.reviewer) - 2;
    assert_eq!(sessions(), 2);
    world.hub.set_pods(&world.fleet, vec![pod(1)]);
    eventually("its session ended although it never took a thing", || sessions() == 1).await;
}

#[tokio::test]
async fn who_reads_another_format_gets_orders_only() {
    let world = World::leading(3).await;
    let mut gateway = world.greet(TOKEN, Hello { format: FORMAT + 1, ..Hello::default() }).await.expect("accepted");
    world.hub.set_orders(&world.fleet, "uid-0", Orders { drain: DrainKind::Restart.into(), ..Orders::default() });
    gateway.until("the drain", |g| g.orders.as_ref().is_some_and(|orders| orders.drain() == DrainKind::Restart)).await;
    assert_eq!(gateway.pieces, 0);
}

#[tokio::test]
async fn a_new_leader_with_the_same_parts_resends_nothing() {
    let world = World::leading(50).await;
    let mut gateway = world.follow(TOKEN, None).await.expect("accepted");
    gateway.until("everything", |g| g.position.is_some()).await;
    let next = World::leading(50).await;
    let earlier = gateway.position.clone().map(|position| Position { epoch: 4, number: 99, ..position });
    let mut again = next.follow(TOKEN, earlier).await.expect("accepted");
    again.parts = gateway.parts.clone();
    again.until("where it is now", |g| g.position == gateway.position).await;
    assert!(!again.full && again.is_right());
    assert_eq!(next.metrics.snapshots.get(), 0);
    again.acknowledge(vec![]).await;
    eventually("acknowledged", || next.hub.reach(&next.fleet, "tenant/mail/1") == Reach::Everywhere).await;
}

/// Whether the other end closes a connection within a second.
async fn closed(stream: &mut tokio::net::TcpStream) -> bool {
    use tokio::io::AsyncReadExt as _;
    matches!(tokio::time::timeout(Duration::from_secs(1), stream.read(&mut [0; 1])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn connections_of_one_address_are_bounded() {
    let world = World::leading_with(1, Limits { connections_per_address: 2, ..Limits::default() }).await;
    let connect = || tokio::net::TcpStream::connect(world.server.address());
    let (mut first, _second) = (connect().await.expect("connected"), connect().await.expect("connected"));
    assert!(closed(&mut connect().await.expect("connected")).await, "the third is one too many");
    assert!(!closed(&mut first).await);
    drop(first);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!closed(&mut connect().await.expect("connected")).await, "one that is gone makes room");
}

#[tokio::test]
async fn a_connection_through_which_nobody_follows_is_closed() {
    let world = World::leading_with(1, Limits { idle: Duration::from_millis(300), connections_per_address: 2, ..Limits::default() }).await;
    let mut gateway = world.follow(TOKEN, None).await.expect("accepted");
    gateway.until("everything", |g| g.position.is_some()).await;
    let _idle = world.client().await;
    let mut third = tokio::net::TcpStream::connect(world.server.address()).await.expect("connected");
    assert!(closed(&mut third).await, "both places are taken");
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut third = tokio::net::TcpStream::connect(world.server.address()).await.expect("connected");
    assert!(!closed(&mut third).await, "the idle one is gone");
    world.hub.put(&world.fleet, "tenant/mail/new", Bytes::from_static(b"{}"));
    gateway.until("the one that follows goes on", |g| g.parts.contains_key("tenant/mail/new")).await;
}

#[tokio::test]
async fn a_flood_of_messages_is_cut_off() {
    let world = World::leading(1).await;
    let gateway = world.follow(TOKEN, None).await.expect("accepted");
    for _ in 0..400 {
        if gateway.sender.send(FromGateway { body: Some(from_gateway::Body::Report(Report::default())) }).await.is_err() {
            break;
        }
    }
    assert_eq!(gateway.end().await.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_gateway_that_is_not_back_yet_is_waited_for() {
    let world = World::leading(1).await;
    world.hub.set_pods(&world.fleet, vec![pod(0), pod(1)]);
    let mut first = world.follow(TOKEN, None).await.expect("accepted");
    first.until("everything", |g| g.position.is_some()).await;
    first.acknowledge(vec![]).await;
    let applied = || world.hub.fleet(&world.fleet).pods.get("uid-0").is_some_and(|(_, state)| state.applied.is_some());
    eventually("the first acknowledged", applied).await;
    assert_eq!(world.hub.reach(&world.fleet, "tenant/mail/0"), Reach::Waiting, "the other one serves too, and has it not");
    let mut second = world.follow("mail inbound-gateway inbound-gateway-1 uid-1", None).await.expect("accepted");
    second.until("everything", |g| g.position.is_some()).await;
    second.acknowledge(vec![]).await;
    eventually("both", || world.hub.reach(&world.fleet, "tenant/mail/0") == Reach::Everywhere).await;
}
