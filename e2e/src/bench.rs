//! `bench`: the gateway beside Postfix, same source, same sink, same machine, one run. Ratios are what counts; absolute figures depend on the machine.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::crash::{Delivery, manifests, scratch};
use crate::dns::{self, Zone};
use crate::ledger::Ledger;
use crate::process::{Gateway, GatewayOptions, cpu_seconds, free_port};
use crate::sink::Sink;
use crate::source::{self, Load};

/// A run.
#[derive(Debug)]
pub struct Bench {
    /// The gateway's binary.
    pub gateway: PathBuf,
    /// Messages of one measurement.
    pub messages: u64,
    /// Bytes of one message.
    pub bytes: usize,
    /// Sessions at once.
    pub sessions: usize,
    /// Append the figures to this file.
    pub write: Option<PathBuf>,
}

/// Each is measured so often, in turn, and the median is what is shown.
const ROUNDS: usize = 3;
/// Messages that come first and do not count: connections, caches, preallocated segments.
const WARM_UP: u64 = 500;
/// All messages of one measurement must have arrived within this.
const ARRIVE_WITHIN: Duration = Duration::from_secs(300);

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Figures {
    messages_per_second: f64,
    cpu_ms_per_message: f64,
    spool_ratio: Option<f64>,
}

/// Measures and prints a table.
pub async fn run(bench: Bench) -> anyhow::Result<()> {
    let sink = Sink::start(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), None, false).await?;
    let zone = Zone::default().txt("sender.example", "v=spf1 ip4:127.0.0.1 -all").txt("_dmarc.sender.example", "v=DMARC1; p=none");
    let resolver = dns::serve(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), zone).await?;
    let mut rows: [Vec<Figures>; 3] = Default::default();
    for round in 0..ROUNDS {
        eprintln!("round {} of {ROUNDS}", round + 1);
        let [postfix, inline, queue] = &mut rows;
        postfix.push(measure_postfix(&bench, &sink).await?);
        inline.push(measure_gateway(&bench, &sink, resolver, Delivery::InlineElseQueue).await?);
        queue.push(measure_gateway(&bench, &sink, resolver, Delivery::Queue).await?);
    }
    let [postfix, inline, queue] = rows.map(|figures| median(&figures));
    let text = table(&bench, postfix, inline, queue);
    println!("{text}");
    if let Some(path) = &bench.write {
        let before = std::fs::read_to_string(path).unwrap_or_default();
        std::fs::write(path, format!("{before}\n{text}"))?;
    }
    Ok(())
}

fn table(bench: &Bench, postfix: Figures, inline: Figures, queue: Figures) -> String {
    let date =
        Command::new("date").args(["-u", "+%Y-%m-%d"]).output().map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let mut text = format!(
        "## {date}: beside Postfix\n\n`make bench`: {} messages of {} bytes, {} sessions, no TLS, median of {ROUNDS} rounds in turn.\n\n\
         | | messages/s | of Postfix | CPU ms/message | of Postfix | spool bytes / accepted byte |\n|---|---|---|---|---|---|\n",
        bench.messages, bench.bytes, bench.sessions
    );
    for (name, figures) in [
        ("Postfix, relaying, no filter", postfix),
        ("Sekimori `InlineElseQueue`, built-in engines", inline),
        ("Sekimori `Queue`, built-in engines", queue),
    ] {
        let spool = figures.spool_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        writeln!(
            text,
            "| {name} | {:.0} | {:.2} | {:.3} | {:.2} | {spool} |",
            figures.messages_per_second,
            figures.messages_per_second / postfix.messages_per_second,
            figures.cpu_ms_per_message,
            figures.cpu_ms_per_message / postfix.cpu_ms_per_message,
        )
        .ok();
    }
    text
}

/// The figures of the round with the median rate.
fn median(figures: &[Figures]) -> Figures {
    let mut sorted = figures.to_vec();
    sorted.sort_by(|a, b| a.messages_per_second.total_cmp(&b.messages_per_second));
    sorted.get(sorted.len() / 2).copied().unwrap_or(Figures { messages_per_second: 0.0, cpu_ms_per_message: 0.0, spool_ratio: None })
}

/// Sends a load and waits until all of it has arrived; how long that took.
async fn load(bench: &Bench, target: SocketAddr, sink: &Sink, messages: u64) -> anyhow::Result<Duration> {
    let ledger = Arc::new(Ledger::default());
    let before = sink.kept.load(Ordering::Relaxed);
    let load = Load {
        target,
        sessions: bench.sessions,
        messages,
        bytes: bench.bytes,
        sender: "source@sender.example".into(),
        recipient: "user@example.com".into(),
        per_session: 1000,
        first: 1,
    };
    let started = Instant::now();
    source::run(load, Arc::clone(&ledger), Arc::new(AtomicBool::new(false))).await;
    let balance = ledger.balance();
    ensure!(balance.acknowledged == messages, "{} of {messages} messages were acknowledged, {} refused", balance.acknowledged, balance.refused);
    while sink.kept.load(Ordering::Relaxed) - before < messages {
        if started.elapsed() > ARRIVE_WITHIN {
            bail!("{} of {messages} messages arrived within {} s", sink.kept.load(Ordering::Relaxed) - before, ARRIVE_WITHIN.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(started.elapsed())
}

async fn measure_gateway(bench: &Bench, sink: &Sink, resolver: SocketAddr, delivery: Delivery) -> anyhow::Result<Figures> {
    let dir = scratch(&format!("bench-{delivery:?}"))?;
    let smtp = free_port()?;
    manifests(&dir.join("manifests"), smtp.port(), sink.address.port(), delivery)?;
    let mut gateway = Gateway::start(&GatewayOptions {
        binary: bench.gateway.clone(),
        manifests: dir.join("manifests"),
        state: dir.join("state"),
        resolver,
        admin: free_port()?,
        more: vec![],
    })?;
    gateway.ready(Duration::from_secs(60)).await?;
    load(bench, smtp, sink, WARM_UP).await?;
    let cpu = cpu_seconds(gateway.pid())?;
    let (spooled, accepted) =
        (metric(&gateway, "sekimori_spool_written_bytes_total").await?, metric(&gateway, "sekimori_accepted_bytes_total").await?);
    let took = load(bench, smtp, sink, bench.messages).await?;
    let cpu = cpu_seconds(gateway.pid())? - cpu;
    // Completions ride the next batch, or go by themselves after 100 ms: they belong to the figure.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let spooled = metric(&gateway, "sekimori_spool_written_bytes_total").await? - spooled;
    let accepted = metric(&gateway, "sekimori_accepted_bytes_total").await? - accepted;
    let code = gateway.stop(Duration::from_secs(60)).await?;
    ensure!(code == 0, "the gateway ended with {code}");
    std::fs::remove_dir_all(&dir)?;
    Ok(Figures {
        messages_per_second: bench.messages as f64 / took.as_secs_f64(),
        cpu_ms_per_message: cpu * 1000.0 / bench.messages as f64,
        spool_ratio: Some(spooled / accepted),
    })
}

async fn metric(gateway: &Gateway, name: &str) -> anyhow::Result<f64> {
    gateway.metric(name).await.with_context(|| format!("{name} is missing in /metrics"))
}

/// Postfix, started in directories of its own. Ended when dropped.
struct Postfix {
    dir: PathBuf,
    master: u32,
}

impl Postfix {
    fn start(dir: &Path, port: u16, sink_port: u16) -> anyhow::Result<Self> {
        let config = dir.join("conf");
        std::fs::create_dir_all(&config)?;
        std::fs::create_dir_all(dir.join("spool"))?;
        std::fs::create_dir_all(dir.join("data"))?;
        // Its master writes there as this user.
        let owned = Command::new("chown").arg("postfix").arg(dir.join("data")).status()?;
        ensure!(owned.success(), "chown postfix: is Postfix installed, and are you root?");
        let shown = dir.display();
        std::fs::write(
            config.join("main.cf"),
            format!(
                "compatibility_level = 3.6\nqueue_directory = {shown}/spool\ndata_directory = {shown}/data\ncommand_directory = /usr/sbin\n\
                 daemon_directory = /usr/lib/postfix/sbin\nmeta_directory = /etc/postfix\nmail_owner = postfix\nsetgid_group = postdrop\n\
                 myhostname = mx.localhost\nmydestination =\nalias_maps =\nlocal_recipient_maps =\nrelay_domains = example.com\n\
                 relay_transport = smtp:[127.0.0.1]:{sink_port}\nmynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
                 smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\nsmtpd_peername_lookup = no\nsmtp_dns_support_level = disabled\n\
                 smtp_host_lookup = native\ndefault_process_limit = 200\ndefault_destination_concurrency_limit = 64\n\
                 initial_destination_concurrency = 64\nsmtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\nin_flow_delay = 0\n\
                 smtpd_tls_security_level = none\nsmtp_tls_security_level = none\nmaillog_file = {shown}/mail.log\nmaillog_file_prefixes = {shown}\n\
                 message_size_limit = 104857600\nsmtpd_junk_command_limit = 100000\n"
            ),
        )?;
        std::fs::write(
            config.join("master.cf"),
            format!(
                "127.0.0.1:{port} inet n - n - 200 smtpd\npickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n\
                 rewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\n\
                 verify unix - - n - 1 verify\nflush unix n - n 1000? 0 flush\nproxymap unix - - n - - proxymap\nsmtp unix - - n - 200 smtp\n\
                 relay unix - - n - 200 smtp\nshowq unix n - n - - showq\nerror unix - - n - - error\nretry unix - - n - - error\n\
                 discard unix - - n - - discard\nlocal unix - n n - - local\nanvil unix - - n - 1 anvil\nscache unix - - n - 1 scache\n\
                 postlog unix-dgram n - n - 1 postlogd\n"
            ),
        )?;
        let config_text = config.display().to_string();
        let started = Command::new("postfix").args(["-c", &config_text, "start"]).output().context("postfix: apt-get install postfix")?;
        ensure!(started.status.success(), "postfix did not start; see {shown}/mail.log");
        let pid = std::fs::read_to_string(dir.join("spool/pid/master.pid")).context("Postfix's master.pid")?;
        Ok(Self { dir: dir.to_owned(), master: pid.trim().parse()? })
    }

    /// CPU time of master and everything below it, ended children included.
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mut parents = std::collections::HashMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
            parents.insert(pid, parent.unwrap_or(0));
        }
        let below = |pid: &u32| {
            let mut at = *pid;
            while at != self.master && at > 1 {
                at = parents.get(&at).copied().unwrap_or(0);
            }
            at == self.master
        };
        Ok(parents.keys().filter(|pid| below(pid)).filter_map(|pid| cpu_seconds(*pid).ok()).sum())
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let config = self.dir.join("conf").display().to_string();
        drop(Command::new("postfix").args(["-c", &config, "stop"]).output());
    }
}

async fn measure_postfix(bench: &Bench, sink: &Sink) -> anyhow::Result<Figures> {
    let dir = scratch("bench-postfix")?;
    let smtp = free_port()?;
    let postfix = Postfix::start(&dir, smtp.port(), sink.address.port())?;
    let ready = Instant::now();
    while tokio::net::TcpStream::connect(smtp).await.is_err() {
        ensure!(ready.elapsed() < Duration::from_secs(20), "Postfix does not listen on {smtp}; see {}/mail.log", dir.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    load(bench, smtp, sink, WARM_UP).await?;
    let cpu = postfix.cpu_seconds()?;
    let took = load(bench, smtp, sink, bench.messages).await?;
    let cpu = postfix.cpu_seconds()? - cpu;
    drop(postfix);
    std::fs::remove_dir_all(&dir)?;
    Ok(Figures {
        messages_per_second: bench.messages as f64 / took.as_secs_f64(),
        cpu_ms_per_message: cpu * 1000.0 / bench.messages as f64,
        spool_ratio: None,
    })
}
