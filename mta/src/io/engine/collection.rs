//! All engines of the fleet: a message is given to every one of them at once.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use sekimori_crds::snapshot::{ClassMinimum, EnginePart};
use sekimori_crds::vocabulary::{EngineClass, EngineMode};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::guard::{EngineStatus, Guard};
use super::{Builtins, ConnectError, Engine, Job, connect_engine};
use crate::engine::breaker::Phase;
use crate::io::clock;
use crate::queue_id::QueueId;
use crate::verdict::Opinion;

/// Engines that are not disabled: each costs every message a scan.
pub const ENGINES_MAX: usize = 32;
/// A deadline further away than this is brought nearer: timers stay small, and nobody waits an hour.
const BUDGET_MAX: Duration = Duration::from_secs(3600);

/// Is told of everything that metrics count. Called in the scan's own task: it must neither block nor wait.
pub trait Observer: Send + Sync {
    /// An opinion on a message, of an enforced or a shadow engine, and how long it took.
    fn scanned(&self, message: QueueId, opinion: &Opinion, took: Duration);
    /// A probe ended, and the breaker is now so.
    fn probed(&self, engine: &str, passed: bool, breaker: Phase);
    /// No engine of this name is configured any more, or it is disabled: nothing is told of it after this.
    fn retired(&self, engine: &str);
}

/// Makes the client of an engine; [`connect_engine`] but in tests.
pub type Connector = Arc<dyn Fn(&EnginePart) -> Result<Arc<dyn Engine>, ConnectError> + Send + Sync>;

/// What [`Engines`] needs besides the configuration.
#[derive(Clone)]
pub struct Options {
    /// Makes clients.
    pub connector: Connector,
    /// Counts; none: nobody does.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Options {
    /// The real protocols and these built-in engines.
    pub fn new(builtins: Builtins, observer: Option<Arc<dyn Observer>>) -> Self {
        Self { connector: Arc::new(move |part| connect_engine(part, &builtins)), observer }
    }
}

/// Enforced engines whose last probe passed, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warm {
    /// Anti-virus engines.
    pub anti_virus: u32,
    /// Anti-spam engines.
    pub anti_spam: u32,
}

impl Warm {
    /// Whether each class has its minimum.
    pub const fn covers(self, minimum: ClassMinimum) -> bool {
        self.anti_virus >= minimum.anti_virus && self.anti_spam >= minimum.anti_spam
    }
}

/// The engines of the fleet.
pub struct Engines {
    running: ArcSwap<Vec<Running>>,
    options: Options,
    changed: watch::Sender<u64>,
}

#[derive(Clone)]
struct Running {
    guard: Arc<Guard>,
    _prober: Arc<Prober>,
}

/// Probes as long as somebody holds it.
struct Prober(JoinHandle<()>);

impl Drop for Prober {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Engines {
    /// Makes a client and a guard for each engine that is not disabled, and starts probing. Needs a tokio runtime; connects nothing by itself.
    pub fn connect(parts: &[EnginePart], options: Options) -> Result<Arc<Self>, ConnectError> {
        let engines = Self { running: ArcSwap::default(), options, changed: watch::Sender::new(0) };
        engines.reconfigure(parts)?;
        Ok(Arc::new(engines))
    }

    /// Takes another list of engines, all or nothing. An engine with the same name, class, protocol and endpoint keeps its connections, breaker and
    /// history, whatever else of it changed; scans under way end as they began.
    pub fn reconfigure(&self, parts: &[EnginePart]) -> Result<(), ConnectError> {
        let enabled: Vec<&EnginePart> = parts.iter().filter(|part| part.mode != EngineMode::Disabled).collect();
        if enabled.len() > ENGINES_MAX {
            return Err(ConnectError::TooMany { count: enabled.len() });
        }
        let mut names = std::collections::HashSet::new();
        if let Some(twice) = enabled.iter().find(|part| !names.insert(part.name.as_str())) {
            return Err(ConnectError::Duplicate { engine: twice.name.clone() });
        }
        let before = self.running.load_full();
        let mut plan = Vec::with_capacity(enabled.len());
        for part in enabled {
            let kept = before.iter().find(|running| running.guard.is_of(part));
            plan.push((part, kept.cloned().map_or_else(|| (self.options.connector)(part).map(Err), |kept| Ok(Ok(kept)))?));
        }
        let running = plan.into_iter().map(|(part, engine)| match engine {
            Ok(kept) => {
                kept.guard.configure(part);
                kept
            }
            Err(engine) => self.start(engine, part),
        });
        let running: Vec<Running> = running.collect();
        // A probe of theirs that ends late must neither bring a name back nor speak for a successor of the same name.
        let kept = |guard: &Arc<Guard>| running.iter().any(|running| Arc::ptr_eq(&running.guard, guard));
        let gone: Vec<Arc<Guard>> = before.iter().map(|running| Arc::clone(&running.guard)).filter(|guard| !kept(guard)).collect();
        gone.iter().for_each(|guard| guard.retire());
        for guard in gone {
            let name = guard.name();
            if let Some(observer) = self.options.observer.as_ref().filter(|_| !running.iter().any(|running| running.guard.name() == name)) {
                observer.retired(&name);
            }
        }
        self.running.store(Arc::new(running));
        self.changed.send_modify(|changes| *changes += 1);
        Ok(())
    }

    fn start(&self, engine: Arc<dyn Engine>, part: &EnginePart) -> Running {
        let guard = Arc::new(Guard::new(engine, part, self.options.observer.clone(), self.changed.clone()));
        let prober = tokio::spawn(guard.clone().keep_probing());
        Running { guard, _prober: Arc::new(Prober(prober)) }
    }

    /// Gives the message to every engine at once and returns when all enforced ones have answered or `deadline_ms` (of [`clock::monotonic_ms`]) is there.
    ///
    /// Each enforced engine has exactly one opinion in the list, in the order of the configuration. Shadow engines run by themselves: those that have
    /// answered by then follow, marked by their mode; the observer is told of the rest.
    pub async fn scan_all(&self, job: &Job, deadline_ms: u64) -> Vec<Opinion> {
        let budget = Duration::from_millis(deadline_ms.saturating_sub(clock::monotonic_ms()));
        let deadline = Instant::now() + budget.min(BUDGET_MAX);
        let running = self.running.load_full();
        let mut shadows = self.start_shadows(&running, job);
        let enforced = running.iter().filter(|running| running.guard.mode() == EngineMode::Enforce);
        let mut opinions = join_all(enforced.map(|running| running.guard.scan(job, deadline))).await;
        while let Some(Ok(opinion)) = shadows.as_mut().map(mpsc::Receiver::try_recv) {
            opinions.push(opinion);
        }
        opinions
    }

    fn start_shadows(&self, running: &[Running], job: &Job) -> Option<mpsc::Receiver<Opinion>> {
        let shadows: Vec<&Running> = running.iter().filter(|running| running.guard.mode() == EngineMode::Shadow).collect();
        if shadows.is_empty() {
            return None;
        }
        let (sender, receiver) = mpsc::channel(shadows.len());
        for Running { guard, .. } in shadows {
            let sender = sender.clone();
            // Nobody may be listening any more: the observer was told already.
            let tell = move |opinion| drop(sender.try_send(opinion));
            match guard.detach() {
                None => tell(guard.too_busy(job)),
                Some(place) => {
                    let (guard, job) = (guard.clone(), job.clone());
                    tokio::spawn(async move {
                        tell(guard.scan(&job, Instant::now() + BUDGET_MAX).await);
                        drop(place);
                    });
                }
            }
        }
        Some(receiver)
    }

    /// Enforced engines whose last probe passed.
    pub fn warm(&self) -> Warm {
        let mut warm = Warm::default();
        for Running { guard, .. } in self.running.load().iter() {
            if guard.mode() == EngineMode::Enforce && guard.is_warm() {
                match guard.class() {
                    EngineClass::AntiVirus => warm.anti_virus += 1,
                    EngineClass::AntiSpam => warm.anti_spam += 1,
                    EngineClass::Sandbox => {}
                }
            }
        }
        warm
    }

    /// Waits until each class has its minimum of warm engines, at most `max_wait`; says how many there are.
    pub async fn warm_up(&self, minimum: ClassMinimum, max_wait: Duration) -> Warm {
        let mut changed = self.changed.subscribe();
        let covered = changed.wait_for(|_| self.warm().covers(minimum));
        // In time or not: the counts say it.
        drop(timeout(max_wait.min(BUDGET_MAX), covered).await);
        self.warm()
    }

    /// Every engine that is not disabled, in the order of the configuration.
    pub fn status(&self) -> Vec<EngineStatus> {
        self.running.load().iter().map(|running| running.guard.status()).collect()
    }
}
