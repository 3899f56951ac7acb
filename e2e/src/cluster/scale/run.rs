//! The run, step by step: tenants come, nothing happens, some change, a gateway more, mail.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::api::{Access, Connection, Pool};
use super::processes::{Phase, Process};
use super::report::{Figures, Fill, Idle, Machine, Mail, NewGateway};
use super::smtp::{Asker, REFUSED_MAX};
use super::tenants::{FLEET, FLEET_NAMESPACE, Tenants, domain, fleet, namespace, policy};
use super::{OPERATOR, Scale, changes, report};
use crate::cluster::quickstart::NAMESPACE;
use crate::cluster::{CONTROL_ADDRESS, Cluster, STORAGE_CLASS, control_plane};
use crate::ledger::Ledger;
use crate::process::request;
use crate::sink::Sink;
use crate::source::{self, Load};

/// The listener of a gateway, and the admin port of an operator.
const SMTP_PORT: u16 = 2525;
const ADMIN_PORT: u16 = 8080;
/// 1 where an operator leads.
const LEADER: &str = "sekimori_operator_leader";
/// A fleet is Ready within this.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// A line of progress so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Conditions are looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Nothing was written for so long: it is quiet.
const QUIET: Duration = Duration::from_secs(5);
/// All tenants are served within this after the last of them was created.
const SERVED_WITHIN: Duration = Duration::from_secs(600);
/// Statuses that an operator writes in a second, at least; fewer is an error.
const STATUSES_PER_SECOND_MIN: usize = 20;
/// A gateway more serves within this.
const NEW_GATEWAY_WITHIN: Duration = Duration::from_secs(180);
/// Tenants of one page of a list.
const PAGE: usize = 500;
/// Connections for the changes.
const CHANGE_CONNECTIONS: usize = 16;

/// A pod of ours.
#[derive(Clone, Debug)]
struct Pod {
    name: String,
    address: IpAddr,
    process: Process,
}

struct Run<'a> {
    scale: &'a Scale,
    access: Arc<Access>,
    api: Connection,
    tenants: Tenants,
    operators: Vec<Pod>,
    leader: usize,
    gateways: Vec<Pod>,
    /// All whose costs are shown: operators, gateways, the control plane.
    processes: Vec<Process>,
    began: Instant,
}

/// Measures everything.
pub(super) async fn measure(scale: &Scale, cluster: &Cluster, machine: Machine) -> anyhow::Result<Figures> {
    let ledger = Arc::new(Ledger::default());
    let sink = Sink::start(SocketAddr::new(CONTROL_ADDRESS.into(), 0), Some(Arc::clone(&ledger)), false).await?;
    let tenants = Tenants { namespaces: scale.namespaces, server: sink.address };
    let mut run = Run::begin(scale, cluster, tenants).await?;
    let fill = run.fill().await?;
    let idle = if fill.programmed_seconds.is_some() { Some(run.idle().await?) } else { None };
    let (changes, samples) = run.changes().await?;
    let new_gateway = run.one_more().await?;
    let mail = run.mail(&ledger, &samples).await?;
    let restarts = run.restarts().await?;
    let leader = run.leader()?.name.clone();
    let Scale { tenants, namespaces, gateways, .. } = *scale;
    let figures = Figures { machine, tenants, namespaces, gateways, fill, idle, changes, new_gateway, mail, leader, restarts, goals: vec![] };
    Ok(figures.judge())
}

impl<'a> Run<'a> {
    /// Makes the fleet, and finds the processes.
    async fn begin(scale: &'a Scale, cluster: &Cluster, tenants: Tenants) -> anyhow::Result<Self> {
        let access = Access::from_kubeconfig(&cluster.kubeconfig())?;
        let (api, began) = (access.connection(), Instant::now());
        let (operators, gateways, processes) = (vec![], vec![], vec![]);
        let mut run = Self { scale, access, api, tenants, operators, leader: 0, gateways, processes, began };
        run.create_namespace(FLEET_NAMESPACE).await?;
        for object in fleet(scale.gateways, STORAGE_CLASS) {
            let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
            run.api.create(&format!("/apis/sekimori.dev/v1alpha1/namespaces/{FLEET_NAMESPACE}/{kind}s"), &object).await?;
        }
        run.fleet_ready().await?;
        run.operators = run.pods(NAMESPACE, "app.kubernetes.io/component=operator", OPERATOR).await?;
        run.gateways = run.pods(FLEET_NAMESPACE, &format!("sekimori.dev/fleet={FLEET}"), "sekimori-mta").await?;
        ensure!(run.gateways.len() == scale.gateways, "{} gateways of {}", run.gateways.len(), scale.gateways);
        run.find_leader().await?;
        run.processes = run.operators.iter().chain(&run.gateways).map(|pod| pod.process.clone()).collect();
        run.processes.extend(control_plane::processes(cluster)?.into_iter().map(|(name, pid)| Process { name: name.to_owned(), pid }));
        run.said(&format!("{} gateways and {} operators", run.gateways.len(), run.operators.len()));
        Ok(run)
    }

    fn said(&self, what: &str) {
        eprintln!("{:>7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    fn leader(&self) -> anyhow::Result<&Pod> {
        self.operators.get(self.leader).context("an operator that leads")
    }

    async fn create_namespace(&mut self, name: &str) -> anyhow::Result<()> {
        self.api.create("/api/v1/namespaces", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await
    }

    async fn fleet_ready(&mut self) -> anyhow::Result<()> {
        let path = format!("/apis/sekimori.dev/v1alpha1/namespaces/{FLEET_NAMESPACE}/gatewayfleets/{FLEET}");
        let began = Instant::now();
        loop {
            let object: Value = self.api.get(&path).await?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            if conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
                return Ok(());
            }
            ensure!(began.elapsed() < READY_WITHIN, "the fleet is not Ready after {} s: {}", READY_WITHIN.as_secs(), object["status"]);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The running pods with a label, and the process of a program in each.
    async fn pods(&mut self, namespace: &str, label: &str, program: &str) -> anyhow::Result<Vec<Pod>> {
        let list: Value = self.api.get(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector={label}")).await?;
        let pod = |pod: &Value| {
            let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} of a pod"));
            let name = text("/metadata/name")?.to_owned();
            Ok(Pod { process: Process::of_pod(&name, text("/metadata/uid")?, program)?, address: text("/status/podIP")?.parse()?, name })
        };
        list["items"].as_array().into_iter().flatten().map(pod).collect()
    }

    /// Containers that began again, of all our pods.
    async fn restarts(&mut self) -> anyhow::Result<u64> {
        let mut count = 0;
        for namespace in [NAMESPACE, FLEET_NAMESPACE] {
            let list: Value = self.api.get(&format!("/api/v1/namespaces/{namespace}/pods")).await?;
            let statuses = list["items"].as_array().into_iter().flatten().flat_map(|pod| pod["status"]["containerStatuses"].as_array()).flatten();
            count += statuses.filter_map(|status| status["restartCount"].as_u64()).sum::<u64>();
        }
        Ok(count)
    }

    async fn find_leader(&mut self) -> anyhow::Result<()> {
        for (number, operator) in self.operators.iter().enumerate() {
            if value(&metrics(operator).await?, LEADER) == Some(1.0) {
                self.leader = number;
                return Ok(());
            }
        }
        bail!("none of {} operators leads", self.operators.len())
    }

    /// A metric of the leader; 0 before it was ever counted. That it leads no more is an error: the figures would be of two.
    async fn led(&self, name: &str) -> anyhow::Result<f64> {
        let leader = self.leader()?;
        let text = metrics(leader).await?;
        ensure!(value(&text, LEADER) == Some(1.0), "{} leads no more: is this machine too busy for an API server?", leader.name);
        Ok(value(&text, name).unwrap_or_default())
    }

    async fn statuses(&self) -> anyhow::Result<u64> {
        Ok(self.led("sekimori_operator_status_writes_total{kind=\"TenantDomain\"}").await? as u64)
    }

    /// All tenants come at once.
    async fn fill(&mut self) -> anyhow::Result<Fill> {
        for number in 0..self.scale.namespaces {
            let namespace = namespace(number);
            self.create_namespace(&namespace).await?;
            self.api.create(&format!("/apis/sekimori.dev/v1alpha1/namespaces/{namespace}/mailpolicies"), &policy()).await?;
        }
        let (phase, statuses) = (Phase::begin(&self.processes)?, self.statuses().await?);
        let began = Instant::now();
        self.create_all().await?;
        let create_seconds = began.elapsed().as_secs_f64();
        self.said(&format!("{} tenants created in {create_seconds:.1} s", self.scale.tenants));
        self.all_served().await?;
        let served_seconds = began.elapsed().as_secs_f64();
        self.said(&format!("each is served by every gateway, {:.1} s after the last was created", served_seconds - create_seconds));
        let programmed_seconds = self.all_programmed(began).await?;
        let (status_writes, status_seconds) =
            (self.statuses().await? - statuses, programmed_seconds.unwrap_or_else(|| began.elapsed().as_secs_f64()));
        self.said(&format!("{} Programmed, {status_writes} status writes", if programmed_seconds.is_some() { "each is" } else { "not yet all are" }));
        Ok(Fill { create_seconds, served_seconds, programmed_seconds, status_writes, status_seconds, costs: phase.costs()? })
    }

    async fn create_all(&self) -> anyhow::Result<()> {
        let (next, count, tenants) = (Arc::new(AtomicUsize::new(0)), self.scale.tenants, self.tenants);
        let mut writers = JoinSet::new();
        for _ in 0..self.scale.writers {
            let (next, mut connection) = (Arc::clone(&next), self.access.connection());
            writers.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(());
                    }
                    connection.create(&tenants.collection(number), &tenants.object(number)).await?;
                }
            });
        }
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        progress.tick().await;
        loop {
            tokio::select! {
                done = writers.join_next() => match done {
                    Some(done) => done??,
                    None => return Ok(()),
                },
                _ = progress.tick() => {
                    let parts = self.led("sekimori_operator_config_parts").await?;
                    self.said(&format!("  {} created, the operator serves {parts:.0} parts", next.load(Ordering::Relaxed).min(count)));
                }
            }
        }
    }

    /// Until every gateway takes mail for every tenant, by its own word.
    async fn all_served(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let parts = self.scale.tenants as f64;
        let behind = format!("sekimori_operator_config_behind{{fleet=\"{FLEET}\",namespace=\"{FLEET_NAMESPACE}\"}}");
        // Not asked before the operator thinks so: 100,000 questions cost something, too.
        while self.led("sekimori_operator_config_parts").await? <= parts || self.led(&behind).await? > 0.0 {
            ensure!(began.elapsed() < SERVED_WITHIN, "the operator did not hand all tenants to every gateway within {} s", SERVED_WITHIN.as_secs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let mut gateways = JoinSet::new();
        for gateway in &self.gateways {
            let (address, count) = (SocketAddr::new(gateway.address, SMTP_PORT), self.scale.tenants);
            gateways.spawn(async move { serves(address, (0..count).map(domain).collect(), SERVED_WITHIN).await });
        }
        while let Some(done) = gateways.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Until each tenant's status says that it is Programmed; after how many seconds the last one did. None: it was not to be waited for so long.
    async fn all_programmed(&mut self, began: Instant) -> anyhow::Result<Option<f64>> {
        let (waiting, patience) = (Instant::now(), self.scale.programmed_minutes.map(|minutes| Duration::from_secs(60 * minutes)));
        let within = began.elapsed() + Duration::from_secs((self.scale.tenants / STATUSES_PER_SECOND_MIN) as u64) + SERVED_WITHIN;
        let (mut last, mut since, mut told) = (self.statuses().await?, Instant::now(), Instant::now());
        loop {
            tokio::time::sleep(LOOK_EVERY * 4).await;
            let now = self.statuses().await?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if patience.is_some_and(|patience| waiting.elapsed() > patience) {
                return Ok(None);
            }
            if told.elapsed() > PROGRESS_EVERY * 3 {
                told = Instant::now();
                self.said(&format!("  {now} statuses written"));
            }
            if since.elapsed() > QUIET {
                let (all, programmed) = self.programmed().await?;
                if programmed == all {
                    ensure!(all == self.scale.tenants, "{all} tenants at the API server, {} were created", self.scale.tenants);
                    return Ok(Some(since.duration_since(began).as_secs_f64()));
                }
                since = Instant::now();
                self.said(&format!("  {programmed} of {all} are Programmed"));
            }
            ensure!(began.elapsed() < within, "not every tenant is Programmed after {} s; {last} statuses were written", within.as_secs());
        }
    }

    /// How many tenants there are, and how many of them are Programmed as they are now.
    async fn programmed(&mut self) -> anyhow::Result<(usize, usize)> {
        let (mut all, mut programmed, mut more) = (0, 0, String::new());
        loop {
            let page: Page = self.api.get(&format!("/apis/sekimori.dev/v1alpha1/tenantdomains?limit={PAGE}{more}")).await?;
            all += page.items.len();
            programmed += page.items.iter().filter(|item| item.is_programmed()).count();
            match page.metadata.next.filter(|token| !token.is_empty()) {
                Some(token) => more = format!("&continue={token}"),
                None => return Ok((all, programmed)),
            }
        }
    }

    /// Nothing happens, and what that costs.
    async fn idle(&self) -> anyhow::Result<Idle> {
        self.quiet().await?;
        let seconds = u64::from(self.scale.idle_seconds.max(1));
        self.said(&format!("quiet: {seconds} s of nothing"));
        let (phase, began) = (Phase::begin(&self.processes)?, Instant::now());
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let (costs, seconds) = (phase.costs()?, began.elapsed().as_secs_f64());
        let leader = &self.leader()?.name;
        let cpu = costs.iter().find(|cost| cost.name == *leader).map(|cost| cost.cpu_seconds).context("the leader's costs")?;
        Ok(Idle { seconds, leader_percent: cpu / seconds * 100.0, costs })
    }

    /// Until the operator has written nothing for a while.
    async fn quiet(&self) -> anyhow::Result<()> {
        let (began, mut last, mut since) = (Instant::now(), self.statuses().await?, Instant::now());
        while since.elapsed() < QUIET {
            ensure!(began.elapsed() < SERVED_WITHIN, "the operator still writes statuses after {} s: {last}", SERVED_WITHIN.as_secs());
            tokio::time::sleep(LOOK_EVERY * 4).await;
            let now = self.statuses().await?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Changes at a steady rate; and domains that came by them.
    async fn changes(&self) -> anyhow::Result<(report::Changes, Vec<String>)> {
        let Scale { changes_per_minute: per_minute, minutes, tenants, .. } = *self.scale;
        self.said(&format!("{per_minute} changes a minute for {minutes} min"));
        let pool = Pool::new(&self.access, CHANGE_CONNECTIONS)?;
        let gateways: Vec<SocketAddr> = self.gateways.iter().map(|gateway| SocketAddr::new(gateway.address, SMTP_PORT)).collect();
        let phase = Phase::begin(&self.processes)?;
        let outcome = changes::run(changes::Plan { per_minute, minutes, tenants }, self.tenants, &pool, &gateways).await?;
        let costs = phase.costs()?;
        let changes::Outcome { new, changed, written, never, samples } = outcome;
        self.said(&format!("served after (p99) {:.0} ms (new), {:.0} ms (changed)", new.p99_ms, changed.p99_ms));
        Ok((report::Changes { per_minute, minutes, new, changed, written, never_served: never, costs }, samples))
    }

    /// One gateway more: a new pod on a new volume.
    async fn one_more(&mut self) -> anyhow::Result<NewGateway> {
        let path = format!("/apis/sekimori.dev/v1alpha1/namespaces/{FLEET_NAMESPACE}/gatewayfleets/{FLEET}");
        let ordered = Instant::now();
        self.api.merge(&path, &json!({"spec": {"replicas": self.scale.gateways + 1}})).await?;
        let name = format!("{FLEET}-gateway-{}", self.scale.gateways);
        let label = format!("sekimori.dev/fleet={FLEET}");
        let pod = loop {
            ensure!(ordered.elapsed() < NEW_GATEWAY_WITHIN, "no pod {name} after {} s", NEW_GATEWAY_WITHIN.as_secs());
            // Until it has an address and a process, this is an error.
            if let Ok(pods) = self.pods(FLEET_NAMESPACE, &label, "sekimori-mta").await
                && let Some(pod) = pods.into_iter().find(|pod| pod.name == name)
            {
                break pod;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let (address, count) = (SocketAddr::new(pod.address, SMTP_PORT), self.scale.tenants);
        let sample = (0..REFUSED_MAX).map(|number| domain(number * (count - 1) / REFUSED_MAX.max(1))).chain([domain(count - 1)]);
        serves(address, sample.collect(), NEW_GATEWAY_WITHIN).await?;
        let (serves_seconds, ordered_to_serves_seconds) = (pod.process.age_seconds()?, ordered.elapsed().as_secs_f64());
        self.said(&format!("{name} serves, {serves_seconds:.2} s after its process began"));
        serves(address, (0..count).map(domain).collect(), NEW_GATEWAY_WITHIN).await?;
        let log = self.api.text(&format!("/api/v1/namespaces/{FLEET_NAMESPACE}/pods/{name}/log?container=mta&timestamps=true")).await?;
        self.gateways.push(pod);
        Ok(NewGateway { serves_seconds, ordered_to_serves_seconds, snapshot_seconds: snapshot_seconds(&log) })
    }

    /// A message for tenants old and new through every gateway; each must arrive.
    async fn mail(&self, ledger: &Arc<Ledger>, samples: &[String]) -> anyhow::Result<Mail> {
        let count = self.scale.tenants;
        let domains: Vec<String> = [0, count / 2, count - 1].map(domain).into_iter().chain(samples.iter().cloned()).collect();
        let mut first = 1;
        for gateway in &self.gateways {
            for domain in &domains {
                let load = Load {
                    target: SocketAddr::new(gateway.address, SMTP_PORT),
                    sessions: 1,
                    messages: 1,
                    bytes: 4_000,
                    sender: "source@sender.example".into(),
                    recipient: format!("user@{domain}"),
                    per_session: 1,
                    first,
                };
                first += 1;
                source::run(load, Arc::clone(ledger), Arc::new(AtomicBool::new(false))).await;
            }
        }
        let (sent, began) = (first - 1, Instant::now());
        while ledger.balance().missing > 0 && began.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let balance = ledger.balance();
        let whole = balance.acknowledged == sent && balance.missing == 0 && balance.damaged == 0;
        ensure!(whole, "{sent} messages were sent, and this became of them: {balance:?}");
        self.said(&format!("{sent} messages through {} gateways, and all arrived", self.gateways.len()));
        Ok(Mail { acknowledged: balance.acknowledged, arrived: balance.arrived })
    }
}

/// The metrics of an operator.
async fn metrics(operator: &Pod) -> anyhow::Result<String> {
    let asked = "GET /metrics HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n";
    let (status, text) =
        request(SocketAddr::new(operator.address, ADMIN_PORT), asked).await.with_context(|| format!("metrics of {}", operator.name))?;
    ensure!(status == 200, "metrics of {}: {status}", operator.name);
    Ok(text)
}

/// One of them, by its name with labels.
fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Until a gateway serves all of these.
async fn serves(address: SocketAddr, mut domains: Vec<String>, within: Duration) -> anyhow::Result<()> {
    let (mut asker, began) = (Asker::new(address), Instant::now());
    loop {
        let trouble = match asker.missing(domains.iter().cloned()).await {
            Ok(missing) if missing.is_empty() => return Ok(()),
            Ok(missing) => {
                domains = missing;
                format!("{} domains are not served, such as {:?}", domains.len(), domains.first())
            }
            Err(error) => format!("{error:#}"),
        };
        ensure!(began.elapsed() < within, "the gateway at {address} after {} s: {trouble}", within.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// From the open stream to the whole configuration in force, by a gateway's log (JSON).
fn snapshot_seconds(log: &str) -> Option<f64> {
    let mut times = BTreeMap::new();
    for line in log.lines() {
        // The kubelet's time stamp before the line, RFC 3339 in UTC.
        let (stamp, line) = line.split_once(' ')?;
        let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
        if let (Some(event), Some(seconds)) = (record["event"].as_str(), seconds_of_day(stamp)) {
            times.entry(event.to_owned()).or_insert(seconds);
        }
    }
    let took = times.get("configured")? - times.get("following")?;
    // Over midnight.
    Some(if took < 0.0 { took + 86_400.0 } else { took })
}

/// Seconds since midnight of `2026-11-25T15:27:07.123456789Z`.
fn seconds_of_day(stamp: &str) -> Option<f64> {
    let time = stamp.split_once('T')?.1.strip_suffix('Z')?;
    let numbers: Vec<f64> = time.split(':').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    match numbers.as_slice() {
        [hours, minutes, seconds] => Some(hours * 3600.0 + minutes * 60.0 + seconds),
        _ => None,
    }
}

/// What is needed of a list of tenants.
#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct PageMetadata {
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    metadata: ItemMetadata,
    #[serde(default)]
    status: ItemStatus,
}

#[derive(Deserialize)]
struct ItemMetadata {
    generation: Option<i64>,
}

#[derive(Default, Deserialize)]
struct ItemStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    observed_generation: Option<i64>,
}

impl Item {
    fn is_programmed(&self) -> bool {
        let said = |condition: &Condition| {
            condition.r#type == "Programmed" && condition.status == "True" && condition.observed_generation == self.metadata.generation
        };
        self.status.conditions.iter().any(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_read_from_the_log() {
        let log = "2026-11-25T15:27:07.5Z {\"event\":\"starting\"}\n2026-11-25T15:27:08.25Z {\"event\":\"following\"}\n2026-11-25T15:27:08.3Z no JSON\n\
                   2026-11-25T15:27:10.75Z {\"event\":\"configured\",\"tenants\":3}\n2026-11-25T16:00:00Z {\"event\":\"configured\"}\n";
        assert_eq!(snapshot_seconds(log), Some(2.5), "the first of each");
        assert_eq!(snapshot_seconds("2026-11-25T23:59:59Z {\"event\":\"following\"}\n2026-11-26T00:00:01Z {\"event\":\"configured\"}\n"), Some(2.0));
        assert_eq!(snapshot_seconds("2026-11-25T15:27:07Z {\"event\":\"following\"}\n"), None);
    }

    #[test]
    fn programmed_is_said_of_the_tenant_as_it_is() {
        let item = |generation: i64, status: &str| {
            let text = format!(
                "{{\"metadata\": {{\"generation\": 2}}, \"status\": {{\"conditions\": [{{\"type\": \"Programmed\", \"status\": \"{status}\", \"observedGeneration\": {generation}}}]}}}}"
            );
            serde_json::from_str::<Item>(&text).expect("an item").is_programmed()
        };
        assert!(item(2, "True") && !item(1, "True") && !item(2, "False"));
        assert!(!serde_json::from_str::<Item>("{\"metadata\": {}}").expect("new").is_programmed());
    }
}
