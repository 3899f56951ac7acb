//! The operator behind a proxy that answers badly, beside a fleet that carries mail all the time.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use sekimori_e2e::cluster::CONTROL_ADDRESS;
use sekimori_e2e::cluster::proxy::Proxy;
use sekimori_e2e::ledger::{Balance, Ledger};
use sekimori_e2e::source::{self, Load};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::installation::{FLEET, Fleet, Installation, SYSTEM, rolled_out};
use crate::support::{Stage, eventually};

const OPERATOR: &str = "deployment/sekimori-operator";
const OPERATORS: &str = "app.kubernetes.io/name=sekimori-operator";
/// The recipient of the load.
pub(super) const RECIPIENT: &str = "user@steady.example";
/// No fault of the API server or the operator is felt by a sender: this is what a busy machine may take.
const GAP_MAX: Duration = Duration::from_secs(3);
/// Messages of one connection, and of one turn of a lane.
const PER_SESSION: u64 = 3;
/// A lane rests so long between two turns: the machine is to show faults, not to be busy.
const PAUSE: Duration = Duration::from_millis(150);
/// Lanes that send at once.
const LANES: u64 = 2;
/// Numbers of one lane, and of single messages, above those of the installation.
const NUMBERS: u64 = 1_000_000_000;

/// See the module. Dropped, the operator is sent back to the API server.
pub(super) struct Behind<'a> {
    pub(super) stage: &'a Stage,
    pub(super) installation: &'a Installation,
    pub(super) proxy: Proxy,
    pub(super) steady: Fleet<'a>,
    traffic: Option<Traffic>,
    /// The fleet's pods as they were.
    before: Vec<String>,
    /// Number of the next single message.
    single: AtomicU64,
}

/// An operator's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operator {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) restarts: i64,
}

/// The Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) holder: String,
    pub(super) epoch: u64,
}

impl<'a> Behind<'a> {
    /// Sends the operator here, and lets mail flow through a fleet in a Namespace of this name.
    pub(super) fn begin(stage: &'a Stage, namespace: &str) -> anyhow::Result<Self> {
        let installation = stage.installation()?;
        stage.cluster.recycle_volumes()?;
        let steady = installation.fleet(stage, namespace, 2, "")?;
        steady.serve("steady", "steady.example", "")?;
        let proxy = stage.cluster.fault_proxy()?;
        let mut behind = Self { stage, installation, proxy, steady, traffic: None, before: vec![], single: AtomicU64::new(NUMBERS) };
        behind.send_operator(&[
            format!("KUBERNETES_SERVICE_HOST={CONTROL_ADDRESS}"),
            format!("KUBERNETES_SERVICE_PORT={}", behind.proxy.address.port()),
        ])?;
        behind.is_well(60)?;
        ensure!(behind.proxy.counts().values().sum::<u64>() > 20, "the operator does not ask the proxy: {:?}", behind.proxy.counts());
        behind.before = behind.steady.uids()?;
        behind.traffic = Some(Traffic::begin(&behind.steady)?);
        Ok(behind)
    }

    fn send_operator(&self, variables: &[String]) -> anyhow::Result<()> {
        let mut arguments = vec!["--namespace", SYSTEM, "set", "env", OPERATOR];
        arguments.extend(variables.iter().map(String::as_str));
        self.stage.kubectl(&arguments)?;
        rolled_out(&self.stage.cluster)
    }

    /// Sends the operator back, and closes the books: every 250 has arrived, no sender felt anything, no gateway was touched.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        self.has_its_rights()?;
        self.send_back()?;
        let traffic = self.traffic.take().context("a load")?;
        let gap = traffic.end();
        let balance = self.steady.settle(60)?;
        self.is_untouched()?;
        let Balance { acknowledged, refused, arrived, duplicates, missing, .. } = balance;
        let line = format!(
            "{acknowledged} answered 250, {arrived} arrived, {missing} missing, {duplicates} twice, {refused} refused, {:.1} s without a 250 at most",
            gap.as_secs_f64()
        );
        println!("  mail: {line}");
        ensure!(gap < GAP_MAX, "a sender felt it: {line}");
        ensure!(refused == 0, "a sender was refused: {line}");
        Ok(())
    }

    /// Faults lead the operator to requests that it makes at no other time: it may make them.
    fn has_its_rights(&self) -> anyhow::Result<()> {
        let log = self.stage.kubectl(&["--namespace", SYSTEM, "logs", "-l", OPERATORS, "--tail=-1", "--prefix"])?;
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("is forbidden: User")).collect();
        ensure!(refused.is_empty(), "{refused:#?}");
        Ok(())
    }

    fn send_back(&self) -> anyhow::Result<()> {
        self.proxy.clear();
        self.proxy.release();
        self.send_operator(&["KUBERNETES_SERVICE_HOST-".into(), "KUBERNETES_SERVICE_PORT-".into()])?;
        self.is_well(60)
    }

    /// The pods that carry the mail are the same, and none of their containers was started again.
    pub(super) fn is_untouched(&self) -> anyhow::Result<()> {
        let now = self.steady.uids()?;
        ensure!(now == self.before, "gateways were touched: {:?}, then {now:?}", self.before);
        Ok(())
    }

    /// Operators' pods that stay, by name.
    pub(super) fn operators(&self) -> anyhow::Result<Vec<Operator>> {
        let listed = self.stage.kubectl(&["--namespace", SYSTEM, "get", "pods", "-l", OPERATORS, "-o", "json"])?;
        let listed: Value = serde_json::from_str(&listed)?;
        let pods = listed["items"].as_array().context("pods")?;
        let text = |pod: &Value, field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
        Ok(pods
            .iter()
            .filter(|pod| pod["metadata"].get("deletionTimestamp").is_none())
            .map(|pod| Operator {
                name: text(pod, "name"),
                uid: text(pod, "uid"),
                restarts: pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default(),
            })
            .collect())
    }

    pub(super) fn lease(&self) -> anyhow::Result<Lease> {
        let lease = self.stage.kubectl(&["--namespace", SYSTEM, "get", "lease/sekimori-operator", "-o", "json"])?;
        let lease: Value = serde_json::from_str(&lease)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let epoch = text(&lease["metadata"]["annotations"]["sekimori.dev/epoch"]).parse().context("the Lease's epoch")?;
        Ok(Lease { holder: text(&lease["spec"]["holderIdentity"]), epoch })
    }

    /// The pod that holds the Lease.
    pub(super) fn leader(&self) -> anyhow::Result<Operator> {
        let holder = self.lease()?.holder;
        let operators = self.operators()?;
        operators
            .iter()
            .find(|operator| operator.name == holder)
            .cloned()
            .with_context(|| format!("{holder} holds the Lease; there are {operators:?}"))
    }

    /// A line of the leader's metrics; an error if it does not lead by its own account.
    pub(super) fn metric(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let metrics = self.metrics(&self.lease()?.holder)?;
        ensure!(metrics.lines().any(|line| line == "sekimori_operator_leader 1"), "the holder of the Lease does not lead");
        Ok(metrics.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect())
    }

    fn metrics(&self, pod: &str) -> anyhow::Result<String> {
        self.stage.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy/metrics")])
    }

    /// Operators that say that they lead.
    pub(super) fn leading(&self) -> anyhow::Result<Vec<String>> {
        let mut leading = vec![];
        for operator in self.operators()? {
            // One that starts again has no metrics yet, and does not lead.
            if self.metrics(&operator.name).is_ok_and(|metrics| metrics.lines().any(|line| line == "sekimori_operator_leader 1")) {
                leading.push(operator.name);
            }
        }
        Ok(leading)
    }

    /// Until two operators are there of which one leads and is followed, and the fleet is Ready and up to date.
    pub(super) fn is_well(&self, within: u64) -> anyhow::Result<()> {
        eventually("two operators, and a fleet that is Ready", within, || {
            let operators = self.operators()?;
            ensure!(operators.len() == 2, "{operators:?}");
            self.leader()?;
            let gateways = self.metric("sekimori_operator_stream_gateways ")?;
            let followed: u64 = gateways.first().and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default();
            ensure!(followed >= 2, "gateways that follow: {gateways:?}");
            let fleet = format!("gatewayfleet/{FLEET}");
            for (kind, wanted) in [("Ready", "True"), ("ConfigStale", "False")] {
                let condition = crate::installation::condition(&self.steady.namespace, &fleet, kind)?;
                ensure!(condition.status == wanted, "{kind} of the fleet: {condition:?}");
            }
            Ok(())
        })
        .with_context(|| self.explain())
    }

    /// What one would look at first.
    pub(super) fn explain(&self) -> String {
        let log = ["logs", "--namespace", SYSTEM, "-l", OPERATORS, "--tail=40", "--prefix"];
        let log = self.stage.kubectl(&log).unwrap_or_else(|error| format!("{error:#}"));
        format!("{}\n{log}\nasked so far: {:?}", self.steady.explain(), self.proxy.counts())
    }

    /// Each gateway takes a message for this recipient. Beside the load, so with an account of its own; the books of all know it too, so it must arrive.
    pub(super) fn each_gateway_takes(&self, recipient: &str) -> anyhow::Result<()> {
        let traffic = self.traffic.as_ref().context("a load")?;
        for ordinal in [0, 1] {
            let target = self.steady.pod(ordinal)?;
            let own = Arc::new(Ledger::default());
            let first = self.single.fetch_add(1, Ordering::Relaxed);
            let one = Load { sessions: 1, messages: 1, per_session: 1, ..load(target, recipient, first) };
            let sent = source::run(one, Arc::clone(&own), Arc::default());
            let ended = traffic.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), sent).await });
            let balance = own.balance();
            ensure!(ended.is_ok() && balance.acknowledged == 1, "{recipient} at gateway {ordinal}: {balance:?}");
            self.steady.ledger.acknowledge(first);
        }
        Ok(())
    }

    /// Mail flows: so many more messages are answered within so many seconds.
    pub(super) fn mail_flows(&self, messages: u64, within: u64) -> anyhow::Result<()> {
        let goal = self.steady.ledger.balance().acknowledged + messages;
        eventually("mail flows", within, || {
            let balance = self.steady.ledger.balance();
            ensure!(balance.acknowledged >= goal, "not yet {goal}: {balance:?}");
            Ok(())
        })
    }
}

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        // After `end` this changes nothing; after a failure the next scenario needs an operator that works.
        if let Some(traffic) = self.traffic.take() {
            traffic.end();
            self.send_back().ok();
        }
    }
}

/// The operator's process in a pod of this uid. Processes of all nodes are this machine's.
pub(super) fn process_of(pod_uid: &str) -> anyhow::Result<String> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        if file(&path, "cgroup").contains(pod_uid)
            && file(&path, "cmdline").split('\0').next().is_some_and(|first| first.ends_with("sekimori-operator"))
        {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    bail!("no operator runs in pod {pod_uid}")
}

fn file(process: &Path, name: &str) -> String {
    std::fs::read(process.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// SIGKILL; returns when the process is gone.
pub(super) fn kill(process: &str) -> anyhow::Result<()> {
    let status = std::process::Command::new("kill").args(["-KILL", process]).status()?;
    ensure!(status.success(), "process {process} could not be killed");
    let path = Path::new("/proc").join(process);
    eventually("the process is gone", 10, || {
        // A zombie that nobody asked for yet writes nothing any more.
        ensure!(!path.exists() || file(&path, "cmdline").is_empty(), "process {process} still runs");
        Ok(())
    })
}

/// A load that runs.
struct Traffic {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    lanes: Vec<JoinHandle<()>>,
    gap: JoinHandle<Duration>,
}

impl Traffic {
    /// Sends to the recipient through the fleet's Service.
    fn begin(fleet: &Fleet<'_>) -> anyhow::Result<Self> {
        let target = fleet.service()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let stop = Arc::new(AtomicBool::new(false));
        let lanes = (0..LANES).map(|lane| load(target, RECIPIENT, (lane + 2) * NUMBERS));
        let lanes = lanes.map(|load| runtime.spawn(sends(load, Arc::clone(&fleet.ledger), Arc::clone(&stop)))).collect();
        let gap = runtime.spawn(longest_gap(Arc::clone(&fleet.ledger), Arc::clone(&stop)));
        Ok(Self { runtime, stop, lanes, gap })
    }

    /// Ends it; the longest time without a 250.
    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let gap = self.runtime.block_on(async {
            for lane in self.lanes {
                // A message that is still on its way got no answer, so it promises nothing.
                let abort = lane.abort_handle();
                if tokio::time::timeout(Duration::from_secs(5), lane).await.is_err() {
                    abort.abort();
                }
            }
            self.gap.await.unwrap_or(Duration::MAX)
        });
        self.runtime.shutdown_timeout(Duration::from_secs(2));
        gap
    }
}

fn load(target: SocketAddr, recipient: &str, first: u64) -> Load {
    Load {
        target,
        sessions: 1,
        messages: PER_SESSION,
        bytes: 4_000,
        sender: "source@sender.example".into(),
        recipient: recipient.to_owned(),
        per_session: PER_SESSION,
        first,
    }
}

async fn sends(mut load: Load, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        source::run(load.clone(), Arc::clone(&ledger), Arc::clone(&stop)).await;
        load.first += load.messages;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn longest_gap(ledger: Arc<Ledger>, stop: Arc<AtomicBool>) -> Duration {
    let (mut seen, mut since, mut longest) = (ledger.balance().acknowledged, Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let acknowledged = ledger.balance().acknowledged;
        longest = longest.max(since.elapsed());
        if acknowledged > seen {
            (seen, since) = (acknowledged, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    longest
}
