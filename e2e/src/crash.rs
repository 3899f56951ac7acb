//! `crash`: kill -9 under load with a next hop that flaps, restart, many rounds: the ledger must lose nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::dns::{self, Zone};
use crate::ledger::{Balance, Ledger};
use crate::process::{Gateway, GatewayOptions, free_port};
use crate::sink::{Behaviour, Mix, Sink, splitmix};
use crate::source::{self, Load};

/// Delivery modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The default.
    InlineElseQueue,
    /// Always through the queue.
    Queue,
    /// Never at rest.
    Inline,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Crash {
    /// The gateway's binary.
    pub gateway: PathBuf,
    /// kill -9 so many times.
    pub rounds: u32,
    /// With this delivery mode.
    pub delivery: Delivery,
}

/// After the last round everything must have arrived within this.
const SETTLE_WITHIN: Duration = Duration::from_secs(120);

/// Runs the rounds, lets the queue run empty, and balances the books.
pub async fn run(crash: &Crash) -> anyhow::Result<()> {
    let dir = scratch(&format!("crash-{:?}", crash.delivery))?;
    let ledger = Arc::new(Ledger::default());
    let sink = Sink::start(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), Some(Arc::clone(&ledger)), false).await?;
    let resolver = dns::serve(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), Zone::default()).await?;
    let smtp = free_port()?;
    manifests(&dir.join("manifests"), smtp.port(), sink.address.port(), crash.delivery)?;
    let options = GatewayOptions {
        binary: crash.gateway.clone(),
        manifests: dir.join("manifests"),
        state: dir.join("state"),
        resolver,
        admin: free_port()?,
        more: vec!["--log".into(), "json".into()],
    };
    let stop = Arc::new(AtomicBool::new(false));
    let load = Load {
        target: smtp,
        sessions: 16,
        messages: u64::MAX / 2,
        bytes: 8_000,
        sender: "source@sender.example".into(),
        recipient: "user@example.com".into(),
        per_session: 20,
        first: 1,
    };
    let source = tokio::spawn(source::run(load, Arc::clone(&ledger), Arc::clone(&stop)));
    let mut gateway = Gateway::start(&options)?;
    let mut dice = 0x5eed_u64;
    for round in 1..=crash.rounds {
        gateway.ready(Duration::from_secs(60)).await?;
        let until = Instant::now() + Duration::from_millis(300 + roll(&mut dice) % 700);
        while Instant::now() < until {
            sink.behave(flap(roll(&mut dice)));
            tokio::time::sleep(Duration::from_millis(20 + roll(&mut dice) % 150)).await;
        }
        gateway.kill()?;
        gateway = Gateway::start(&options)?;
        if round % 10 == 0 || round == crash.rounds {
            let balance = ledger.balance();
            println!(
                "{:?}: round {round} of {}, {} acknowledged, {} arrived so far",
                crash.delivery, crash.rounds, balance.acknowledged, balance.arrived
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    sink.behave(vec![(Behaviour::Accept, 1)]);
    gateway.ready(Duration::from_secs(60)).await?;
    source.await?;
    let balance = settle(&gateway, &ledger).await;
    println!("{:?}: {}", crash.delivery, serde_json::to_string(&balance)?);
    ensure!(
        balance.missing == 0,
        "{} acknowledged messages did not arrive, such as {:?}; look into {}",
        balance.missing,
        ledger.missing(5),
        dir.display()
    );
    ensure!(balance.damaged == 0, "{} messages arrived damaged; look into {}", balance.damaged, dir.display());
    ensure!(balance.acknowledged > u64::from(crash.rounds), "only {} messages were acknowledged: that proves nothing", balance.acknowledged);
    let code = gateway.stop(Duration::from_secs(60)).await?;
    ensure!(code == 0, "the gateway ended with {code}");
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Retries every second until nothing is missing, or time is up.
async fn settle(gateway: &Gateway, ledger: &Ledger) -> Balance {
    let started = Instant::now();
    loop {
        let balance = ledger.balance();
        if balance.missing == 0 || started.elapsed() > SETTLE_WITHIN {
            return balance;
        }
        drop(gateway.post("/v1/queue/retry", "{\"all\":true}").await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What the next hop does for the next moments.
fn flap(dice: u64) -> Mix {
    use Behaviour::{Accept, Defer, DeferRecipient, Down, DropAfter, DropBefore};
    match dice % 8 {
        0 => vec![(Down, 1)],
        1 => vec![(Defer, 1)],
        2 => vec![(DropBefore, 1)],
        3 => vec![(Accept, 1), (DropAfter, 1)],
        4 => vec![(Accept, 8), (Defer, 2), (DeferRecipient, 2), (DropBefore, 1), (DropAfter, 1)],
        _ => vec![(Accept, 1)],
    }
}

fn roll(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    splitmix(*state)
}

/// An empty directory of its own.
pub(crate) fn scratch(name: &str) -> std::io::Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("sekimori-{name}-{}", std::process::id()));
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// A fleet with the built-in engines and one tenant whose route leads to the sink.
pub(crate) fn manifests(dir: &Path, smtp_port: u16, sink_port: u16, delivery: Delivery) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let text = format!(
        "apiVersion: sekimori.dev/v1alpha1
kind: GatewayFleet
metadata: {{name: e2e}}
spec:
  hostname: mx.localhost
  listeners: [{{name: smtp, port: {smtp_port}, limits: {{connectionsPerAddress: 1000, messagesPerSession: 10000}}}}]
  tenants: {{ownership: Trust}}
  engines: [{{name: builtin-virus}}, {{name: builtin-spam}}]
  egress: {{allowedNetworks: [127.0.0.0/8]}}
---
apiVersion: sekimori.dev/v1alpha1
kind: Engine
metadata: {{name: builtin-virus}}
spec: {{class: AntiVirus, protocol: {{type: Builtin}}}}
---
apiVersion: sekimori.dev/v1alpha1
kind: Engine
metadata: {{name: builtin-spam}}
spec: {{class: AntiSpam, protocol: {{type: Builtin}}}}
---
apiVersion: sekimori.dev/v1alpha1
kind: TenantDomain
metadata: {{name: example-com}}
spec:
  fleetRef: {{name: e2e}}
  domains: [example.com]
  delivery: {delivery:?}
  routes: [{{name: sink, host: 127.0.0.1, port: {sink_port}, tls: {{mode: Disabled}}}}]
"
    );
    std::fs::write(dir.join("gateway.yaml"), text)
}
