//! Changes of tenants at a steady rate, and how long each takes from the API write to the moment at which every gateway serves it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::api::Pool;
use super::report::Times;
use super::smtp::{Asker, REFUSED_MAX};
use super::tenants::{Tenants, added_domain, change, domain};

/// Each gateway is asked this often.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// A change that is not served everywhere after so long counts as never.
pub(super) const SERVED_WITHIN: Duration = Duration::from_secs(60);
/// A gateway that does not answer is tried again for so long.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// What is changed, and how fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) per_minute: u32,
    pub(super) minutes: u32,
    /// Tenants there are: new ones have numbers from here on, changed ones numbers below.
    pub(super) tenants: usize,
}

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    New(usize),
    Patch(usize),
}

impl Plan {
    fn total(&self) -> usize {
        (self.per_minute * self.minutes) as usize
    }

    /// New and changed tenants in turn; those that are changed are spread over all.
    fn change(&self, number: usize) -> Change {
        if number.is_multiple_of(2) {
            return Change::New(self.tenants + number / 2);
        }
        let stride = (self.tenants / (self.total() / 2).max(1)).max(1);
        Change::Patch(number / 2 * stride % self.tenants.max(1))
    }

    /// When it is due, from the beginning.
    fn due(&self, number: usize) -> Duration {
        Duration::from_secs(60) * u32::try_from(number).unwrap_or(u32::MAX) / self.per_minute.max(1)
    }
}

/// A domain that is to be served.
struct Awaited {
    sent: Instant,
    new: bool,
    /// By gateway: how long after it was sent.
    seen: Vec<Option<Duration>>,
}

/// What is awaited, and what has come.
#[derive(Default)]
struct Board {
    awaited: BTreeMap<String, Awaited>,
    new: Vec<Duration>,
    changed: Vec<Duration>,
}

impl Board {
    /// A gateway serves it.
    fn seen(&mut self, domain: &str, gateway: usize, now: Instant) {
        let Some(awaited) = self.awaited.get_mut(domain) else { return };
        let took = now.saturating_duration_since(awaited.sent);
        if let Some(seen) = awaited.seen.get_mut(gateway) {
            seen.get_or_insert(took);
        }
        // Everywhere is where the slowest is.
        let Some(everywhere) = awaited.seen.iter().copied().collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()) else { return };
        let list = if awaited.new { &mut self.new } else { &mut self.changed };
        list.push(everywhere);
        self.awaited.remove(domain);
    }

    fn unseen_by(&self, gateway: usize) -> Vec<String> {
        let unseen = |awaited: &Awaited| awaited.seen.get(gateway).is_some_and(Option::is_none);
        self.awaited.iter().filter(|(_, awaited)| unseen(awaited)).map(|(domain, _)| domain.clone()).collect()
    }
}

type Shared = Arc<Mutex<Board>>;

fn locked(board: &Shared) -> std::sync::MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How it went.
pub(super) struct Outcome {
    pub(super) new: Times,
    pub(super) changed: Times,
    /// The API server's part: from the write to its answer.
    pub(super) written: Times,
    /// Not served everywhere within [`SERVED_WITHIN`].
    pub(super) never: usize,
    /// A domain of a new tenant, and one that a change added.
    pub(super) samples: Vec<String>,
}

/// Writes the changes and watches them arrive.
pub(super) async fn run(plan: Plan, tenants: Tenants, pool: &Arc<Pool>, gateways: &[SocketAddr]) -> anyhow::Result<Outcome> {
    ensure!(plan.per_minute > 0, "no changes to make");
    ensure!(plan.tenants >= plan.total().div_ceil(2), "{} changes need {} tenants: raise --tenants", plan.total(), plan.total().div_ceil(2));
    let board = Shared::default();
    let mut askers: Vec<JoinHandle<anyhow::Result<()>>> =
        gateways.iter().enumerate().map(|(number, address)| tokio::spawn(ask(Arc::clone(&board), number, *address))).collect();
    let done = write_and_wait(plan, tenants, pool, gateways.len(), &board, &mut askers).await;
    askers.iter().for_each(JoinHandle::abort);
    let written = done?;
    let board = locked(&board);
    let sample = |number: usize| match plan.change(number) {
        Change::New(tenant) => domain(tenant),
        Change::Patch(tenant) => added_domain(tenant),
    };
    Ok(Outcome {
        new: Times::of(&board.new),
        changed: Times::of(&board.changed),
        written: Times::of(&written),
        never: board.awaited.len(),
        samples: (0..plan.total().min(2)).map(sample).filter(|domain| !board.awaited.contains_key(domain)).collect(),
    })
}

async fn write_and_wait(
    plan: Plan,
    tenants: Tenants,
    pool: &Arc<Pool>,
    gateways: usize,
    board: &Shared,
    askers: &mut [JoinHandle<anyhow::Result<()>>],
) -> anyhow::Result<Vec<Duration>> {
    let began = tokio::time::Instant::now();
    let mut writes = JoinSet::new();
    let mut written = vec![];
    for number in 0..plan.total() {
        sleep_until(began + plan.due(number)).await;
        let (pool, board, change) = (Arc::clone(pool), Arc::clone(board), plan.change(number));
        writes.spawn(async move { write(change, tenants, &pool, gateways, &board).await });
        while let Some(done) = writes.try_join_next() {
            written.push(done??);
        }
        ended(askers).await?;
    }
    while let Some(done) = writes.join_next().await {
        written.push(done??);
    }
    let deadline = Instant::now() + SERVED_WITHIN;
    while !locked(board).awaited.is_empty() && Instant::now() < deadline {
        ended(askers).await?;
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(written)
}

/// An asker ends only when it must give up.
async fn ended(askers: &mut [JoinHandle<anyhow::Result<()>>]) -> anyhow::Result<()> {
    for asker in askers.iter_mut().filter(|asker| asker.is_finished()) {
        asker.await??;
    }
    Ok(())
}

/// One change; how long the API server took. The clock begins before anything else, as it does for a user.
async fn write(change_: Change, tenants: Tenants, pool: &Pool, gateways: usize, board: &Shared) -> anyhow::Result<Duration> {
    let sent = Instant::now();
    let (domain, new) = match change_ {
        Change::New(number) => (domain(number), true),
        Change::Patch(number) => (added_domain(number), false),
    };
    locked(board).awaited.insert(domain, Awaited { sent, new, seen: vec![None; gateways] });
    let mut connection = pool.take().await?;
    let done = match change_ {
        Change::New(number) => connection.create(&tenants.collection(number), &tenants.object(number)).await,
        Change::Patch(number) => connection.merge(&tenants.path(number), &change(number)).await,
    };
    pool.give_back(connection);
    done?;
    Ok(sent.elapsed())
}

/// Asks one gateway again and again for what it has not served yet.
async fn ask(board: Shared, gateway: usize, address: SocketAddr) -> anyhow::Result<()> {
    let mut asker = Asker::new(address);
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answered = Instant::now();
    loop {
        ticks.tick().await;
        let unseen = locked(&board).unseen_by(gateway);
        for some in unseen.chunks(REFUSED_MAX) {
            match asker.served(some).await {
                Ok(answers) => {
                    answered = Instant::now();
                    let mut board = locked(&board);
                    for (domain, _) in some.iter().zip(answers).filter(|(_, served)| *served) {
                        board.seen(domain, gateway, answered);
                    }
                }
                Err(error) if answered.elapsed() > AWAY_MAX => return Err(error).with_context(|| format!("the gateway at {address}")),
                Err(_) => {}
            }
        }
        if unseen.is_empty() {
            answered = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_are_new_and_no_tenant_is_changed_twice() {
        let plan = Plan { per_minute: 1_000, minutes: 2, tenants: 100_000 };
        let (mut new, mut changed) = (vec![], vec![]);
        for number in 0..plan.total() {
            match plan.change(number) {
                Change::New(tenant) => new.push(tenant),
                Change::Patch(tenant) => changed.push(tenant),
            }
        }
        assert_eq!((new.len(), changed.len()), (1_000, 1_000));
        assert!(new.iter().all(|tenant| *tenant >= 100_000) && changed.iter().all(|tenant| *tenant < 100_000));
        changed.sort_unstable();
        changed.dedup();
        assert_eq!(changed.len(), 1_000);
        assert!(changed.last().is_some_and(|last| *last > 90_000), "spread over all");
        assert_eq!(plan.due(500), Duration::from_secs(30));
    }

    #[test]
    fn served_is_when_the_last_gateway_serves() {
        let mut board = Board::default();
        let sent = Instant::now();
        let at = |ms| sent + Duration::from_millis(ms);
        board.awaited.insert("a".into(), Awaited { sent, new: true, seen: vec![None; 2] });
        board.seen("a", 1, at(300));
        board.seen("a", 1, at(900));
        board.seen("b", 0, at(1));
        assert_eq!((board.unseen_by(0), board.unseen_by(1)), (vec!["a".to_owned()], vec![]));
        board.seen("a", 0, at(200));
        assert_eq!(board.new, [Duration::from_millis(300)], "the first time at the slower one");
        assert!(board.awaited.is_empty() && board.changed.is_empty());
    }
}
