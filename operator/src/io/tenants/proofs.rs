//! Proofs of domains by DNS: asked in the background, remembered, and asked again while they are missing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::ownership::{Proof, TxtAnswer, proof_name, proved};

/// Questions at once.
const QUESTIONS_MAX: usize = 16;
/// One question may take so long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A missing proof is asked for again after so long, doubling up to the second, in milliseconds.
const AGAIN_MS: (u64, u64) = (30_000, 600_000);
/// What nobody asked for again for so long after its time is forgotten, in milliseconds.
const FORGOTTEN_MS: u64 = 60_000;
/// Domains that are remembered, at most.
const REMEMBERED_MAX: usize = 200_000;

/// Asks for TXT records.
pub(super) trait Txt: Send + Sync {
    /// The texts at a name.
    fn texts<'a>(&'a self, name: &'a str) -> futures_util::future::BoxFuture<'a, TxtAnswer>;
}

/// A resolver over the network.
pub(super) struct Network(TokioResolver);

impl Network {
    pub(super) fn new(servers: &[SocketAddr]) -> anyhow::Result<Self> {
        let (config, mut options) = if servers.is_empty() {
            let (system, options) =
                hickory_resolver::system_conf::read_system_conf().context("the system's DNS configuration; or name --resolvers")?;
            (ResolverConfig::from_parts(None, vec![], system.name_servers().to_vec()), options)
        } else {
            let servers = servers.iter().map(server).collect();
            (ResolverConfig::from_parts(None, vec![], servers), ResolverOpts::default())
        };
        options.timeout = TIMEOUT;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()?;
        Ok(Self(resolver))
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections.iter_mut().for_each(|connection| connection.port = address.port());
    server
}

impl Txt for Network {
    fn texts<'a>(&'a self, name: &'a str) -> futures_util::future::BoxFuture<'a, TxtAnswer> {
        Box::pin(async move {
            // Absolute, so that no search list is tried.
            match self.0.lookup(format!("{name}."), RecordType::TXT).await {
                Ok(answer) => {
                    let text = |data: &RData| match data {
                        RData::TXT(txt) => Some(txt.txt_data.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect::<String>()),
                        _ => None,
                    };
                    TxtAnswer::Texts(answer.answers().iter().filter_map(|record| text(&record.data)).collect())
                }
                Err(error) if error.is_no_records_found() || error.is_nx_domain() => TxtAnswer::Texts(vec![]),
                Err(error) => TxtAnswer::Failed(error.to_string()),
            }
        })
    }
}

/// A domain as a namespace claims it.
type Domain = (Arc<str>, Arc<str>);

struct Asked {
    proof: Proof,
    again_at_ms: u64,
    pause_ms: u64,
    under_way: bool,
}

/// What is known of proofs, by namespace and domain.
pub(super) struct Proofs {
    installation: Arc<str>,
    dns: Arc<dyn Txt>,
    known: BTreeMap<(Arc<str>, Arc<str>), Asked>,
    room: Arc<Semaphore>,
    answers: JoinSet<(Domain, Proof)>,
}

impl Proofs {
    pub(super) fn new(installation: &str, dns: Arc<dyn Txt>) -> Self {
        Self {
            installation: installation.into(),
            dns,
            known: BTreeMap::new(),
            room: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            answers: JoinSet::new(),
        }
    }

    /// What is known now; asks if nothing is, or if it is time to ask again.
    pub(super) fn of(&mut self, namespace: &str, domain: &str, now_ms: u64) -> Proof {
        let key: (Arc<str>, Arc<str>) = (namespace.into(), domain.into());
        if self.known.len() >= REMEMBERED_MAX && !self.known.contains_key(&key) {
            return Proof::Unclear("too many domains are being asked for: it is its turn later".to_owned());
        }
        let asked = self.known.entry(key.clone()).or_insert_with(|| Asked {
            proof: Proof::Unclear("it is being asked for".to_owned()),
            again_at_ms: now_ms,
            pause_ms: AGAIN_MS.0,
            under_way: false,
        });
        if !asked.under_way && asked.again_at_ms <= now_ms && asked.proof != Proof::Given {
            asked.under_way = true;
            let (dns, room, installation) = (Arc::clone(&self.dns), Arc::clone(&self.room), Arc::clone(&self.installation));
            self.answers.spawn(async move {
                let _room = room.acquire_owned().await;
                let name = proof_name(&key.1);
                let answer = match tokio::time::timeout(TIMEOUT * 2, dns.texts(&name)).await {
                    Ok(answer) => answer,
                    Err(_) => TxtAnswer::Failed("no answer in time".to_owned()),
                };
                let proof = proved(&answer, &installation, &key.0, &key.1);
                (key, proof)
            });
        }
        asked.proof.clone()
    }

    /// Waits for an answer; never returns while none is under way. Says whose: the namespace.
    pub(super) async fn answer(&mut self, now_ms: impl Fn() -> u64) -> Arc<str> {
        loop {
            let Some(Ok((key, proof))) = self.answers.join_next().await else {
                std::future::pending::<()>().await;
                continue;
            };
            if let Some(asked) = self.known.get_mut(&key) {
                asked.under_way = false;
                asked.proof = proof;
                asked.again_at_ms = now_ms().saturating_add(asked.pause_ms);
                asked.pause_ms = asked.pause_ms.saturating_mul(2).min(AGAIN_MS.1);
            }
            return key.0;
        }
    }

    /// Namespaces whose missing proofs are due to be asked for again.
    pub(super) fn due(&mut self, now_ms: u64) -> Vec<Arc<str>> {
        // Whoever still wants to know has asked by now.
        self.known.retain(|_, asked| asked.under_way || asked.again_at_ms.saturating_add(FORGOTTEN_MS) > now_ms);
        let mut due: Vec<Arc<str>> = self
            .known
            .iter()
            .filter(|(_, asked)| !asked.under_way && asked.proof != Proof::Given && asked.again_at_ms <= now_ms)
            .map(|((namespace, _), _)| Arc::clone(namespace))
            .collect();
        due.dedup();
        due
    }
}
