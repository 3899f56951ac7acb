//! The leader dies in the middle of a burst of changes: afterwards every gateway serves exactly what is applied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use sekimori_e2e::cluster::Cluster;
use sekimori_e2e::cluster::proxy::rules::Verb;

use super::behind::{Behind, kill, process_of};
use super::on;
use crate::installation::{FLEET, Fleet};
use crate::support::{Outcome, Stage, eventually};

/// Tenants of the fleet, and gateways.
const TENANTS: usize = 200;
const GATEWAYS: usize = 3;
/// Deleted in each burst, and made in it: three bursts stay below what counts as a mass removal (25 % within ten minutes).
const DELETED: usize = 15;
/// After the kill, all is served within so many seconds: the container starts again, takes its Lease back, and the gateways come back to it.
const SERVED_WITHIN: u64 = 60;
/// A gateway answers.
const REPLY_MAX: Duration = Duration::from_secs(20);

pub(super) fn leader_lost_in_mid_delta(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, "delta-steady", |behind| {
        let fleet = behind.installation.fleet(stage, "delta", GATEWAYS as u32, "")?;
        let mut applied: BTreeMap<String, String> = (0..TENANTS).map(|number| (format!("t{number}"), domain(number, 0))).collect();
        let began = Instant::now();
        apply(&stage.cluster, &fleet.namespace.name, &manifests(&fleet, &applied)?)?;
        serves(behind, &fleet, &applied, &BTreeSet::new())?;
        println!("  {TENANTS} tenants applied and served by {GATEWAYS} gateways: {:.1} s", began.elapsed().as_secs_f64());
        let untouched = fleet.uids()?;
        let mut former = BTreeSet::new();
        for (round, statuses) in [(1, 5), (2, 60), (3, 130)] {
            burst(behind, &fleet, &mut applied, &mut former, round, statuses).with_context(|| format!("burst {round}"))?;
            let now = fleet.uids()?;
            ensure!(now == untouched, "gateways were touched: {untouched:?}, then {now:?}");
        }
        Ok(())
    })
}

fn domain(number: usize, round: usize) -> String {
    format!("t{number}-{round}.example")
}

fn manifests(fleet: &Fleet<'_>, tenants: &BTreeMap<String, String>) -> anyhow::Result<String> {
    let mut yaml = String::new();
    for (name, domain) in tenants {
        write!(yaml, "---\n{}", fleet.tenant(name, domain, ""))?;
    }
    Ok(yaml)
}

fn apply(cluster: &Cluster, namespace: &str, yaml: &str) -> anyhow::Result<()> {
    cluster.kubectl(&["--namespace", namespace, "apply", "--server-side", "--field-manager=e2e", "-f", "-"], Some(yaml)).map(drop)
}

/// Changes all tenants but some that are deleted, makes others, and kills the leader after so many statuses.
fn burst(
    behind: &Behind<'_>,
    fleet: &Fleet<'_>,
    applied: &mut BTreeMap<String, String>,
    former: &mut BTreeSet<String>,
    round: usize,
    statuses: u64,
) -> anyhow::Result<()> {
    let lease = behind.lease()?;
    let process = process_of(&behind.leader()?.uid)?;
    let deleted: Vec<String> = applied.keys().take(DELETED).cloned().collect();
    former.extend(applied.values().cloned());
    for name in &deleted {
        applied.remove(name);
    }
    for (number, domain) in applied.values_mut().enumerate() {
        *domain = self::domain(number, round);
    }
    for number in 0..DELETED {
        // Sorted before or after the others at random, as far as a burst is concerned.
        applied.insert(format!("{}{round}-{number}", if number % 2 == 0 { "s" } else { "u" }), format!("new{number}-{round}.example"));
    }
    let written = || behind.proxy.counts().get(&(Verb::Patch, "tenantdomains/status".to_owned())).copied().unwrap_or_default();
    let before = written();
    let (cluster, namespace, yaml) = (&behind.stage.cluster, fleet.namespace.name.as_str(), manifests(fleet, applied)?);
    let started = Instant::now();
    let (killed, seen) = std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let command = ["--namespace", namespace, "delete", "tenantdomain", "--wait=false"];
            cluster.kubectl(&command.into_iter().chain(deleted.iter().map(String::as_str)).collect::<Vec<_>>(), None)?;
            apply(cluster, namespace, &yaml)
        });
        let killed = eventually("the burst is half told", 40, || {
            ensure!(written() >= before + statuses, "{} of {statuses} statuses", written() - before);
            Ok(())
        })
        .and_then(|()| kill(&process))
        .map(|()| started.elapsed().as_secs_f64());
        // What one gateway has of the burst while nobody leads.
        let seen = fleet.pod(0).and_then(|pod| answers(pod, applied.values()));
        changing.join().map_err(|_| anyhow::anyhow!("the thread that applies panicked"))??;
        anyhow::Ok((killed?, seen?))
    })?;
    let ended = Instant::now();
    serves(behind, fleet, applied, former)?;
    let served = ended.elapsed().as_secs_f64();
    let now = behind.lease()?;
    let had = seen.values().filter(|code| **code / 100 == 2).count();
    println!(
        "  burst {round}: {TENANTS} changed tenants, the leader killed {killed:.1} s into it, when a gateway had {had} of them; exactly what is applied on {GATEWAYS} gateways {served:.1} s after the last change, epoch {} -> {}",
        lease.epoch, now.epoch
    );
    ensure!(now.epoch > lease.epoch, "nobody took the Lease: {lease:?}, then {now:?}");
    behind.is_well(60)
}

/// Until every gateway accepts the domain of each tenant that is applied, refuses all that were, and says that it has the leader's configuration.
fn serves(behind: &Behind<'_>, fleet: &Fleet<'_>, applied: &BTreeMap<String, String>, former: &BTreeSet<String>) -> anyhow::Result<()> {
    let object = format!("gatewayfleet/{FLEET}");
    eventually("the gateways have the leader's configuration", SERVED_WITHIN, || {
        let status = fleet.namespace.json(&object)?["status"].clone();
        // It is there only while epoch, number and hash of every gateway are the leader's.
        let revision = status["configRevision"].as_str().context("gateways differ from their leader: no configRevision")?.to_owned();
        let epoch = behind.lease()?.epoch.to_string();
        ensure!(revision.split('.').next() == Some(epoch.as_str()), "configRevision {revision} is not of the leader's epoch {epoch}");
        ensure!(status["tenants"].as_u64() == Some(applied.len() as u64), "{} tenants in the status", status["tenants"]);
        let behind_by = behind.metric(&format!("sekimori_operator_config_behind{{fleet=\"{FLEET}\",namespace=\"delta\"}}"))?;
        ensure!(behind_by.iter().any(|line| line.ends_with(" 0")), "{behind_by:?}");
        for ordinal in 0..GATEWAYS {
            let pod = fleet.pod(ordinal)?;
            let taken = answers(pod, applied.values().chain(former))?;
            let wrong: Vec<(&String, &u16)> =
                taken.iter().filter(|(domain, code)| **code != if applied.values().any(|applied| applied == *domain) { 250 } else { 550 }).collect();
            ensure!(wrong.is_empty(), "gateway {ordinal}: {} of {} domains answered wrongly, such as {:?}", wrong.len(), taken.len(), wrong.first());
        }
        Ok(())
    })
    .with_context(|| fleet.explain())?;
    // Then every tenant says so as well.
    eventually("every tenant is Programmed", 30, || {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Programmed\")].status} {.status.observedGeneration} {.metadata.generation}{\"\\n\"}{end}";
        let listed = fleet.namespace.kubectl(&["get", "tenantdomains", "-o", path])?;
        let programmed =
            |line: &&str| matches!(line.split(' ').collect::<Vec<_>>().as_slice(), [_, "True", observed, generation] if observed == generation);
        let (good, bad): (Vec<&str>, Vec<&str>) = listed.lines().partition(programmed);
        ensure!(good.len() == applied.len() && bad.is_empty(), "{} are, {} are not, such as {:?}", good.len(), bad.len(), bad.first());
        Ok(())
    })
}

/// What a gateway answers to a recipient in each of these domains.
fn answers<'a>(gateway: SocketAddr, domains: impl Iterator<Item = &'a String>) -> anyhow::Result<BTreeMap<String, u16>> {
    let mut answers = BTreeMap::new();
    let mut session = Session::open(gateway)?;
    for domain in domains {
        let mut code = session.recipient(domain);
        if code.is_err() {
            // A session that refused many recipients is closed.
            session = Session::open(gateway)?;
            code = session.recipient(domain);
        }
        answers.insert(domain.clone(), code?);
    }
    Ok(answers)
}

/// An SMTP session that sends nothing.
struct Session {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Session {
    fn open(gateway: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&gateway, REPLY_MAX)?;
        stream.set_read_timeout(Some(REPLY_MAX))?;
        stream.set_nodelay(true)?;
        let mut session = Self { reader: BufReader::new(stream.try_clone()?), stream };
        session.expect(220)?;
        session.stream.write_all(b"EHLO probe.sender.example\r\n")?;
        session.expect(250)?;
        Ok(session)
    }

    fn recipient(&mut self, domain: &str) -> anyhow::Result<u16> {
        write!(self.stream, "MAIL FROM:<probe@sender.example>\r\nRCPT TO:<user@{domain}>\r\nRSET\r\n")?;
        self.expect(250)?;
        let code = self.reply()?;
        self.expect(250)?;
        Ok(code)
    }

    fn expect(&mut self, wanted: u16) -> anyhow::Result<()> {
        match self.reply()? {
            code if code == wanted => Ok(()),
            code => bail!("{code}, not {wanted}"),
        }
    }

    fn reply(&mut self) -> anyhow::Result<u16> {
        loop {
            let mut line = String::new();
            ensure!(self.reader.read_line(&mut line)? > 0, "the connection was closed");
            if line.as_bytes().get(3) != Some(&b'-') {
                return line.get(..3).context("a reply")?.parse().with_context(|| line.clone());
            }
        }
    }
}
