//! How the stream's server does with many gateways or many tenants: the real Hub and server, real TLS and the real protocol, a reviewer that takes every
//! token. The gateways are simulated in a process of their own, so that memory and CPU of this one are the server's; they keep sums of the parts and come
//! to the hash by themselves, and a hash that differs fails the run.
//!
//! `cargo run --release -p sekimori-operator --example stream_bench -- --pods 200 --tenants 1000`

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sekimori_crds::compile::{Layers, effective_policy};
use sekimori_crds::snapshot::{FORMAT, Part, RollingHash, part_json, part_words};
use sekimori_crds::stream::configuration_client::ConfigurationClient;
use sekimori_crds::stream::{Applied, Changes, FromGateway, Hello, MESSAGE_BYTES_MAX, REPORT_EVERY_MS, Report, from_gateway, to_gateway};
use sekimori_operator::identity::{Identity, Refusal};
use sekimori_operator::io::hub::{EpochStore, FleetKey, Hub, PodIdentity, Reach};
use sekimori_operator::io::stream::{Limits, ReviewError, StreamMetrics, StreamServer, TokenReviewer};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

#[derive(Clone, Debug, Parser)]
struct Args {
    /// Simulated gateways.
    #[arg(long, default_value_t = 3)]
    pods: usize,
    /// Tenants of the fleet.
    #[arg(long, default_value_t = 1000)]
    tenants: usize,
    /// Changes that are measured.
    #[arg(long, default_value_t = 1000)]
    changes: usize,
    /// How many of them come in a minute.
    #[arg(long, default_value_t = 1000)]
    per_minute: u64,
    /// Only the gateways, of the server at this address. The bench starts itself so.
    #[arg(long, requires = "authority")]
    gateways_of: Option<SocketAddr>,
    /// PEM file of the server's authority, for the gateways.
    #[arg(long)]
    authority: Option<PathBuf>,
}

const NAME: &str = "operator.test";

struct TakesAll;

impl TokenReviewer for TakesAll {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Identity, ReviewError>> {
        async move {
            let number = token.strip_prefix("uid-").ok_or(ReviewError::Refused(Refusal::NotAuthenticated))?;
            Ok(Identity {
                namespace: "mail".into(),
                service_account: "inbound-gateway".into(),
                pod_name: format!("inbound-gateway-{number}"),
                pod_uid: token.into(),
            })
        }
        .boxed()
    }
}

struct NoEpochs;

impl EpochStore for NoEpochs {
    fn raise(&self, _above: u64) -> BoxFuture<'_, Result<u64, String>> {
        async { Err("no gateway of the bench has seen another epoch".to_owned()) }.boxed()
    }
}

/// A tenant as an ordinary one is: a domain, two routes, the built-in policy, and for every fourth a list of its own.
fn tenant(n: usize, messages_per_hour: usize) -> Result<(String, Bytes)> {
    let mut policy = serde_json::to_value(effective_policy(Layers::default()).0)?;
    if n.is_multiple_of(4) {
        let noise = |m: usize| part_words("entry", format!("{n} {m}").as_bytes());
        let entry = |m: usize| json!({"type": "Address", "value": format!("{:x}{:x}@sender-{m}.example", noise(m)[0], noise(m)[1])});
        *policy.pointer_mut("/lists/deny").context("a policy has a deny list")? = (0..5).map(entry).collect();
    }
    let route = |m: usize| {
        let (name, host) = (format!("mx{m}"), format!("mx{m}.customer-{n}.example"));
        json!({"name": name, "host": host, "lookup": "Address", "port": 25, "priority": 10 * m, "weight": 1, "tls": "Opportunistic"})
    };
    let part: Part = serde_json::from_value(json!({
        "part": "tenant", "namespace": format!("customer-{}", n % 1000), "name": format!("tenant-{n}"), "domains": [format!("customer-{n}.example")],
        "state": "Active", "suspendedSince": null, "enforcement": "Enforce", "routes": [route(1), route(2)], "delivery": "InlineElseQueue",
        "softBounce": false, "messagesPerHour": messages_per_hour, "policy": policy, "requires": [],
    }))?;
    Ok((format!("tenant/customer-{}/tenant-{n}", n % 1000), part_json(&part).into()))
}

/// Memory in MiB (now, and at most), and CPU seconds of this process.
fn usage() -> Result<(f64, f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mib = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{name} in /proc/self/status"))?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit_once(')').context("a name in /proc/self/stat")?.1;
    // utime and stime, in ticks of 10 ms.
    let ticks = after.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>()).sum::<Result<f64, _>>()?;
    Ok((mib("VmRSS:")?, mib("VmHWM:")?, ticks / 100.0))
}

fn certify(directory: &Path) -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec![])?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(directory.join("ca.crt"), params.self_signed(&key)?.pem())?;
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate()?;
    std::fs::write(directory.join("tls.crt"), rcgen::CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &issuer)?.pem())?;
    std::fs::write(directory.join("tls.key"), key.serialize_pem())?;
    Ok(())
}

/// Waits until every gateway has everything.
async fn reached(hub: &Hub, fleet: &FleetKey, pods: usize) -> Result<()> {
    let mut changed = hub.changed();
    let everywhere = || {
        let all = hub.figures().iter().all(|(_, figures)| figures.gateways == pods && figures.behind == 0);
        all && hub.reach(fleet, "fleet") == Reach::Everywhere
    };
    let all = async {
        while !everywhere() {
            changed.changed().await?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(300), all).await.context("not every gateway had everything within five minutes")?
}

/// Makes the changes in their time, and says how long each took until every gateway had acknowledged it, in milliseconds, sorted.
async fn changes(args: &Args, hub: &Hub, fleet: &FleetKey) -> Result<Vec<f64>> {
    let mut changed = hub.changed();
    let mut ticks = tokio::time::interval(Duration::from_nanos(60_000_000_000 / args.per_minute));
    let mut on_the_way: BTreeMap<String, Instant> = BTreeMap::new();
    let (mut took, mut made) = (vec![], 0);
    let deadline = Instant::now() + Duration::from_secs(60 * (2 + args.changes as u64 / args.per_minute));
    while made < args.changes || !on_the_way.is_empty() {
        tokio::select! {
            _ = ticks.tick(), if made < args.changes => {
                // A large odd step: neighbours in time are none in the order of keys.
                let (key, part) = tenant(made * 7919 % args.tenants, 1_000_000 + made)?;
                let began = Instant::now();
                hub.put(fleet, &key, part);
                // A tenant that changes again on its way counts from its first change.
                on_the_way.entry(key).or_insert(began);
                made += 1;
            }
            moved = changed.changed() => {
                moved?;
                on_the_way.retain(|key, began| {
                    let there = hub.reach(fleet, key) == Reach::Everywhere;
                    if there {
                        took.push(began.elapsed().as_secs_f64() * 1000.0);
                    }
                    !there
                });
            }
            () = tokio::time::sleep_until(deadline) => anyhow::bail!("{} changes never came to every gateway", on_the_way.len()),
        }
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}

async fn load(args: &Args, hub: &Hub, fleet: &FleetKey) -> Result<()> {
    let pod = |n: usize| PodIdentity { name: format!("inbound-gateway-{n}").into(), uid: format!("uid-{n}").into() };
    hub.set_pods(fleet, (0..args.pods).map(pod).collect());
    let (empty_mib, _, before) = usage()?;
    let (began, mut json_bytes) = (Instant::now(), 0);
    hub.put(fleet, "fleet", Bytes::from_static(b"{\"part\":\"fleet\"}"));
    for n in 0..args.tenants {
        let (key, part) = tenant(n, 1000)?;
        json_bytes += part.len();
        hub.put(fleet, &key, part);
    }
    hub.synced(fleet, "fleet");
    hub.synced(fleet, "tenants");
    let (mib, _, after) = usage()?;
    let (seconds, cpu, json_mib) = (began.elapsed().as_secs_f64(), after - before, json_bytes as f64 / 1_048_576.0);
    println!("{} gateways, {} tenants of {} bytes on average ({json_mib:.1} MiB of JSON)", args.pods, args.tenants, json_bytes / args.tenants);
    println!("load:      {seconds:.2} s, {cpu:.2} s of CPU, making the parts included; memory {empty_mib:.1} -> {mib:.1} MiB");
    Ok(())
}

async fn serve(args: Args) -> Result<()> {
    let directory = tempfile::tempdir()?;
    certify(directory.path())?;
    let metrics = Arc::new(StreamMetrics::new(&prometheus::Registry::new())?);
    // All simulated gateways come from one address.
    let limits = Limits { attempts: (100_000, 10_000), connections_per_address: 4096, ..Limits::default() };
    let tls = directory.path().to_owned();
    let server = StreamServer::start_with("127.0.0.1:0".parse()?, tls, Arc::new(TakesAll), Arc::clone(&metrics), limits).await?;
    let hub = Hub::new(1, Arc::new(NoEpochs));
    let fleet = FleetKey::new("mail", "inbound");
    load(&args, &hub, &fleet).await?;
    server.lead(hub.clone());

    let (began, before) = (Instant::now(), usage()?.2);
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--gateways-of", &server.address().to_string(), "--pods", &args.pods.to_string(), "--authority"])
        .arg(directory.path().join("ca.crt"))
        .kill_on_drop(true)
        .spawn()?;
    reached(&hub, &fleet, args.pods).await?;
    let (mib, most_mib, after) = usage()?;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), after - before);
    println!("snapshots: {seconds:.2} s until the last of all gateways acknowledged, {cpu:.2} s of CPU; memory {mib:.1}, at most {most_mib:.1} MiB");

    let (began, before) = (Instant::now(), usage()?.2);
    let took = changes(&args, &hub, &fleet).await?;
    let (mib, most_mib, after) = usage()?;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), after - before);
    let quantile = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
    println!("changes:   {} in {seconds:.1} s, {cpu:.2} s of CPU; memory {mib:.1}, at most {most_mib:.1} MiB", args.changes);
    println!("           put to acknowledged by all: p50 {:.1}, p99 {:.1}, max {:.1} ms", quantile(50), quantile(99), quantile(100));
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("idle:      {:.1} % of a core for 10 s, with the reports of all gateways", (usage()?.2 - after) * 10.0);
    ensure!(child.try_wait()?.is_none(), "the gateways ended before the bench: they say why");
    ensure!(metrics.snapshots.get() == args.pods as u64, "{} whole snapshots for {} gateways", metrics.snapshots.get(), args.pods);
    child.kill().await?;
    Ok(())
}

/// The sums of the parts that a gateway has.
#[derive(Default)]
struct Sums {
    hash: RollingHash,
    parts: HashMap<Box<str>, [u64; 4]>,
}

impl Sums {
    fn take(&mut self, changes: &Changes) {
        if changes.full {
            *self = Self::default();
        }
        for change in &changes.changes {
            let new = (!change.part.is_empty()).then(|| part_words(&change.key, &change.part));
            let old = match new {
                Some(words) => self.parts.insert(change.key.as_str().into(), words),
                None => self.parts.remove(change.key.as_str()),
            };
            old.into_iter().for_each(|words| self.hash.remove_words(words));
            new.into_iter().for_each(|words| self.hash.add_words(words));
        }
    }
}

async fn gateway(n: usize, address: SocketAddr, authority: String) -> Result<()> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name(NAME);
    // The windows are the gateway's own.
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?.initial_stream_window_size(4 << 20).initial_connection_window_size(4 << 20);
    let mut client = ConfigurationClient::new(endpoint.tls_config(tls)?.connect().await?).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let (sender, receiver) = mpsc::channel(16);
    let say = async |body| sender.send(FromGateway { body: Some(body) }).await.context("the server takes nothing");
    say(from_gateway::Body::Hello(Hello { version: "bench".into(), format: FORMAT, ..Hello::default() })).await?;
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("authorization", format!("Bearer uid-{n}").parse()?);
    let mut inbound = client.follow(request).await?.into_inner();
    let mut reports = tokio::time::interval(Duration::from_millis(REPORT_EVERY_MS));
    let mut sums = Sums::default();
    loop {
        tokio::select! {
            _ = reports.tick() => say(from_gateway::Body::Report(Report { serving: true, ..Report::default() })).await?,
            said = inbound.message() => {
                let Some(to_gateway::Body::Changes(changes)) = said?.context("the server ended the stream")?.body else { continue };
                sums.take(&changes);
                if let (true, Some(to)) = (changes.last, changes.to) {
                    ensure!(to.hash == sums.hash.to_bytes(), "gateway {n} came to another hash at {}", to.number);
                    say(from_gateway::Body::Applied(Applied { position: Some(to), ..Applied::default() })).await?;
                }
            }
        }
    }
}

async fn gateways(args: Args, address: SocketAddr) -> Result<()> {
    let authority = std::fs::read_to_string(args.authority.context("--authority")?)?;
    let mut all = tokio::task::JoinSet::new();
    (0..args.pods).for_each(|n| drop(all.spawn(gateway(n, address, authority.clone()))));
    all.join_next().await.context("no gateway")??
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.pods > 0 && args.tenants > 0 && args.changes > 0 && args.per_minute > 0, "none of the numbers may be 0");
    match args.gateways_of {
        Some(address) => gateways(args, address).await,
        None => serve(args).await,
    }
}
