//! Mail that flows while something breaks, with the books kept: lanes that send, a sink in this process, and how long nothing got through.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sekimori_e2e::cluster::CONTROL_ADDRESS;
use sekimori_e2e::ledger::{Balance, Ledger};
use sekimori_e2e::sink::Sink;
use sekimori_e2e::source::{self, Load};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::support::eventually;

/// Where the sink listens, for every tenant of these scenarios.
pub(super) const SINK_PORT: u16 = 2600;
/// Each lane counts from its own number, and no scenario uses another's: a late arrival never stands for a message of somebody else.
static NEXT: AtomicU64 = AtomicU64::new(1);
/// Numbers of one lane.
const NUMBERS: u64 = 1_000_000_000;
/// A lane rests so long between two small loads: the machine is to show faults, not to be busy.
const PAUSE: Duration = Duration::from_millis(100);
/// Messages of one connection.
const PER_SESSION: u64 = 3;

/// A load that runs.
pub(super) struct Traffic {
    runtime: Runtime,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    lanes: Vec<JoinHandle<()>>,
    gap: JoinHandle<Duration>,
    sink: Arc<Sink>,
}

/// What came of it.
pub(super) struct Books {
    pub(super) balance: Balance,
    /// The longest time without a 250.
    pub(super) gap: Duration,
}

impl Books {
    /// As one line of a report.
    pub(super) fn line(&self) -> String {
        let Balance { acknowledged, refused, arrived, duplicates, missing, .. } = self.balance;
        let gap = self.gap.as_secs_f64();
        format!(
            "{acknowledged} answered 250, {arrived} arrived, {missing} missing, {duplicates} twice, {refused} refused, {gap:.1} s without a 250 at most"
        )
    }
}

impl Traffic {
    /// Sends to this recipient through these targets, `lanes` at once on each, until `end`.
    pub(super) fn begin(recipient: &str, targets: &[SocketAddr], lanes: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
        let address = SocketAddr::new(IpAddr::V4(CONTROL_ADDRESS), SINK_PORT);
        let sink = runtime.block_on(Sink::start(address, Some(Arc::clone(&ledger)), false)).with_context(|| format!("a sink at {address}"))?;
        let running = targets.iter().flat_map(|target| std::iter::repeat_n(*target, lanes));
        let running =
            running.map(|target| runtime.spawn(lane(load(target, recipient, PER_SESSION), Arc::clone(&ledger), Arc::clone(&stop)))).collect();
        let gap = runtime.spawn(gap(Arc::clone(&ledger), Arc::clone(&stop)));
        let traffic = Self { runtime, ledger, stop, lanes: running, gap, sink };
        eventually("the load gets through", 30, || {
            let balance = traffic.balance();
            ensure!(balance.arrived > 0, "{balance:?}");
            Ok(())
        })?;
        Ok(traffic)
    }

    /// The books as they are.
    pub(super) fn balance(&self) -> Balance {
        self.ledger.balance()
    }

    /// One message to this recipient at this gateway gets through within so many seconds, counted from now. Says how long it took.
    pub(super) fn gets_through(&self, recipient: &str, target: SocketAddr, within: u64) -> anyhow::Result<f64> {
        let started = Instant::now();
        eventually(&format!("mail for {recipient} through {target}"), within, || {
            let own = Arc::new(Ledger::default());
            let one = load(target, recipient, 1);
            let number = one.first;
            let sent = source::run(Load { messages: 1, ..one }, Arc::clone(&own), Arc::default());
            let ended = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), sent).await });
            let balance = own.balance();
            ensure!(ended.is_ok() && balance.acknowledged == 1, "message {number} got no 250: {balance:?}");
            // In the books of all: it must arrive as well.
            self.ledger.acknowledge(number);
            Ok(())
        })?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Mail still flows: so many more messages are answered 250 within so many seconds.
    pub(super) fn flows(&self, messages: u64, within: u64) -> anyhow::Result<()> {
        let goal = self.balance().acknowledged + messages;
        eventually("mail flows", within, || {
            let balance = self.balance();
            ensure!(balance.acknowledged >= goal, "not yet {goal}: {balance:?}");
            Ok(())
        })
    }

    /// Ends the load and waits until every message that was answered 250 has arrived, whole.
    pub(super) fn end(self, within: u64) -> anyhow::Result<Books> {
        self.stop.store(true, Ordering::Relaxed);
        let gap = self.runtime.block_on(async {
            for lane in self.lanes {
                // A message that is still on its way got no answer, so it promises nothing.
                let abort = lane.abort_handle();
                if tokio::time::timeout(Duration::from_secs(5), lane).await.is_err() {
                    abort.abort();
                }
            }
            self.gap.await
        })?;
        eventually("every 250 has arrived", within, || {
            let balance = self.ledger.balance();
            ensure!(balance.missing == 0, "missing, such as {:?}: {balance:?}", self.ledger.missing(5));
            Ok(())
        })?;
        let balance = self.ledger.balance();
        ensure!(balance.damaged == 0, "damaged: {balance:?}");
        ensure!(self.sink.kept.load(Ordering::Relaxed) >= balance.acknowledged, "the sink kept fewer than were acknowledged: {balance:?}");
        self.runtime.shutdown_timeout(Duration::from_secs(2));
        Ok(Books { balance, gap })
    }
}

fn load(target: SocketAddr, recipient: &str, messages: u64) -> Load {
    Load {
        target,
        sessions: 1,
        messages,
        bytes: 4_000,
        sender: "source@sender.example".into(),
        recipient: recipient.to_owned(),
        per_session: PER_SESSION,
        first: NEXT.fetch_add(1, Ordering::Relaxed) * NUMBERS,
    }
}

/// Small loads, one after another: what a connection could not send is given up as a sender gives up, and the next one is made.
async fn lane(mut load: Load, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        source::run(load.clone(), Arc::clone(&ledger), Arc::clone(&stop)).await;
        load.first += load.messages;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn gap(ledger: Arc<Ledger>, stop: Arc<AtomicBool>) -> Duration {
    let (mut last, mut since, mut longest) = (0, None::<Instant>, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let acknowledged = ledger.balance().acknowledged;
        longest = longest.max(since.map_or(Duration::ZERO, |since| since.elapsed()));
        if acknowledged > last {
            (last, since) = (acknowledged, Some(Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    longest
}
