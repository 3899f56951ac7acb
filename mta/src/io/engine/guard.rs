//! The guard around one engine: deadline, bulkhead, breaker, probe, suspects and convicts.
//!
//! What is decided is in `crate::engine`; here it is carried out. One lock per engine, never held over an await.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use sekimori_crds::snapshot::EnginePart;
use sekimori_crds::vocabulary::{EngineClass, EngineMode};
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{Answer, Engine, Job, Observer};
use crate::engine::breaker::{Breaker, Phase, Sample, Settings as Bounds};
use crate::engine::convicts::{Convicts, Standing};
use crate::engine::probe;
use crate::envelope::Client;
use crate::io::clock;
use crate::message::{Limits, parse};
use crate::verdict::{Failure, Finding, Opinion, Unscannable};

/// Scans at once, whatever the configuration says: each holds a message and a connection.
pub const CONCURRENCY_MAX: u32 = 1024;
/// A scan that our own deadline cut short counts against the engine only if it had this long (or its own timeout, if that is shorter).
pub const FAIR_CHANCE: Duration = Duration::from_secs(1);
/// How long a suspect waits for a dead engine to come back: a supervisor restarts it in a second or two, and its sender is waiting.
pub const RESTART_WAIT: Duration = Duration::from_secs(3);
/// Pauses between looks whether it is back: the first lets a dying process finish, so that its last connections are not taken for a new death.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(50);
const RESTART_PAUSE_MAX: Duration = Duration::from_millis(400);

/// A version that changed starts a probe, but not so soon after the last: two versions behind one address would be probed without end.
const VERSION_PROBE_PAUSE_MS: u64 = 60_000;

/// What the guard works by; replaced as a whole.
struct Settings {
    part: EnginePart,
    name: Arc<str>,
    family: Arc<str>,
    timeout: Duration,
    concurrency: u32,
    permits: Arc<Semaphore>,
    /// Detached shadow scans: as many as the engine's concurrency, so that a slow shadow holds a bounded number of messages.
    detached: Arc<Semaphore>,
}

#[derive(Default)]
struct Counters {
    scans: u64,
    failures: u64,
    deaths: u64,
    convictions: u64,
}

struct State {
    breaker: Breaker,
    convicts: Convicts,
    version: Option<Arc<str>>,
    /// When the last probe ended, and when the last one passed.
    probed_ms: u64,
    passed_ms: u64,
    counters: Counters,
    last_probe: Option<ProbeReport>,
    last_failure: Option<String>,
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeReport {
    /// Whether the engine found the bad sample and passed the good one.
    pub passed: bool,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// How long it took.
    pub millis: u32,
    /// Why it failed.
    pub why: Option<String>,
}

/// An engine as the admin port and the metrics show it.
#[derive(Clone, Debug, Serialize)]
pub struct EngineStatus {
    /// Name.
    pub name: Arc<str>,
    /// Class.
    pub class: EngineClass,
    /// Whether its opinion counts.
    pub mode: EngineMode,
    /// The version that answers, `?` when unknown.
    pub version: Arc<str>,
    /// When its signatures were made, seconds since 1970, if it says so.
    pub signatures_made_s: Option<u64>,
    /// `untested`, `closed` or `open`.
    pub breaker: &'static str,
    /// Scans under way, probes included.
    pub in_flight: u32,
    /// Scans that were tried since the start.
    pub scans: u64,
    /// Those that failed.
    pub failures: u64,
    /// Why the last one failed.
    pub last_failure: Option<String>,
    /// Scans in which the engine died.
    pub deaths: u64,
    /// Messages convicted since the start.
    pub convictions: u64,
    /// Messages that are scanned alone.
    pub suspects: usize,
    /// Messages that are not given to it.
    pub convicts: usize,
    /// The last probe.
    pub last_probe: Option<ProbeReport>,
    /// Milliseconds until the next one.
    pub next_probe_in_ms: u64,
}

/// One engine with everything around it.
pub(super) struct Guard {
    engine: Arc<dyn Engine>,
    settings: ArcSwap<Settings>,
    state: Mutex<State>,
    in_flight: AtomicU32,
    started: Instant,
    open: watch::Sender<bool>,
    probe_wanted: Notify,
    observer: Option<Arc<dyn Observer>>,
    /// It is configured no more. Held while the observer is told of a probe, so that none is told of after that.
    retired: Mutex<bool>,
    changed: watch::Sender<u64>,
}

/// Why there is no answer, and what that says of the engine.
struct Missed {
    failure: Failure,
    blame: Blame,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blame {
    /// It was not asked, or our own deadline left it no fair chance.
    Nobody,
    /// It failed.
    Engine,
    /// It died with the message on it.
    Died,
}

impl Missed {
    const fn unasked(failure: Failure) -> Self {
        Self { failure, blame: Blame::Nobody }
    }
    const fn engine(failure: Failure) -> Self {
        Self { failure, blame: Blame::Engine }
    }
}

impl Settings {
    fn new(part: &EnginePart, before: Option<&Self>) -> Self {
        let concurrency = part.concurrency.clamp(1, CONCURRENCY_MAX);
        let kept = before.filter(|before| before.concurrency == concurrency);
        let permits = || Arc::new(Semaphore::new(concurrency as usize));
        Self {
            name: part.name.as_str().into(),
            family: part.family.as_str().into(),
            timeout: part.timeout.std(),
            concurrency,
            permits: kept.map_or_else(permits, |kept| kept.permits.clone()),
            detached: kept.map_or_else(permits, |kept| kept.detached.clone()),
            part: part.clone(),
        }
    }

    fn bounds(&self) -> Bounds {
        let ms = |duration: sekimori_crds::units::Duration| u64::try_from(duration.std().as_millis()).unwrap_or(u64::MAX);
        let breaker = &self.part.breaker;
        Bounds {
            failures: breaker.failures,
            window: breaker.window,
            open_for_ms: ms(breaker.open_for),
            probe_interval_ms: ms(self.part.probe_interval),
        }
    }
}

impl Guard {
    pub(super) fn new(engine: Arc<dyn Engine>, part: &EnginePart, observer: Option<Arc<dyn Observer>>, changed: watch::Sender<u64>) -> Self {
        let settings = Settings::new(part, None);
        let state = State {
            breaker: Breaker::new(settings.bounds(), 0),
            convicts: Convicts::default(),
            version: None,
            probed_ms: 0,
            passed_ms: 0,
            counters: Counters::default(),
            last_probe: None,
            last_failure: None,
        };
        Self {
            engine,
            settings: ArcSwap::from_pointee(settings),
            state: Mutex::new(state),
            in_flight: AtomicU32::new(0),
            started: Instant::now(),
            open: watch::Sender::new(true),
            probe_wanted: Notify::new(),
            observer,
            retired: Mutex::new(false),
            changed,
        }
    }

    /// It is configured no more: scans under way end as they began, and nothing is told of its probes.
    pub(super) fn retire(&self) {
        *self.retired.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.settings.load().name)
    }

    /// Takes other settings of the same engine; scans under way end by the old ones.
    pub(super) fn configure(&self, part: &EnginePart) {
        let settings = Settings::new(part, Some(&self.settings.load()));
        let bounds = settings.bounds();
        self.settings.store(Arc::new(settings));
        let now_ms = self.now_ms();
        self.state().breaker.configure(bounds, now_ms);
        self.probe_wanted.notify_one();
    }

    /// Whether `part` is the same engine, only with other settings.
    pub(super) fn is_of(&self, part: &EnginePart) -> bool {
        let mine = &self.settings.load().part;
        (&mine.name, mine.class, mine.protocol, &mine.endpoint) == (&part.name, part.class, part.protocol, &part.endpoint)
    }

    pub(super) fn class(&self) -> EngineClass {
        self.settings.load().part.class
    }

    pub(super) fn mode(&self) -> EngineMode {
        self.settings.load().part.mode
    }

    /// Whether its last probe passed.
    pub(super) fn is_warm(&self) -> bool {
        !*self.open.borrow()
    }

    /// A place for a detached scan, if one is free.
    pub(super) fn detach(&self) -> Option<OwnedSemaphorePermit> {
        self.settings.load().detached.clone().try_acquire_owned().ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// One opinion, whatever happens, by `deadline` at the latest.
    pub(super) async fn scan(&self, job: &Job, deadline: Instant) -> Opinion {
        let settings = self.settings.load_full();
        let started = Instant::now();
        let standing = match self.standing(&settings, job).await {
            Ok(standing) => standing,
            Err(known) => return self.opinion(&settings, job, started, known),
        };
        let result = self.judge(&settings, job, deadline, standing).await;
        self.record(job, &result);
        self.opinion(&settings, job, started, result.map_err(|missed| missed.failure))
    }

    /// The opinion of a shadow that has no place for another scan.
    pub(super) fn too_busy(&self, job: &Job) -> Opinion {
        self.opinion(&self.settings.load(), job, Instant::now(), Err(Failure::Busy))
    }

    fn opinion(&self, settings: &Settings, job: &Job, started: Instant, result: Result<Answer, Failure>) -> Opinion {
        let answer = result.unwrap_or_else(|failure| Answer { finding: Finding::Failed(failure), evidence: vec![], version: None });
        let took = started.elapsed();
        let opinion = Opinion {
            engine: settings.name.clone(),
            family: settings.family.clone(),
            class: settings.part.class,
            version: self.version_of(settings, answer.version),
            mode: settings.part.mode,
            weight_percent: settings.part.weight_percent,
            millis: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
            finding: answer.finding,
            evidence: answer.evidence,
        };
        if let Some(observer) = &self.observer {
            observer.scanned(job.envelope.id, &opinion, took);
        }
        opinion
    }

    /// What the answer says, else what the engine said last, else what its object says. A version that changed wants a probe.
    fn version_of(&self, settings: &Settings, answered: Option<Arc<str>>) -> Arc<str> {
        let mut state = self.state();
        if let Some(version) = answered {
            if state.version.as_ref().is_some_and(|known| *known != version) {
                self.version_changed(&mut state);
            }
            state.version = Some(version.clone());
            return version;
        }
        state.version.clone().or_else(|| settings.part.version.as_deref().map(Arc::from)).unwrap_or_else(|| Arc::from("?"))
    }

    fn version_changed(&self, state: &mut State) {
        let now_ms = self.now_ms();
        if now_ms.saturating_sub(state.probed_ms) >= VERSION_PROBE_PAUSE_MS {
            state.convicts = Convicts::default();
            state.breaker.want_probe(now_ms);
            self.probe_wanted.notify_one();
        }
    }

    /// How the engine is asked, or what is known without asking.
    async fn standing(&self, settings: &Settings, job: &Job) -> Result<Standing, Result<Answer, Failure>> {
        if job.message.raw.len() as u64 > settings.part.max_bytes.0 {
            return Err(Ok(unscannable(Unscannable::TooLarge)));
        }
        // Nearly always nobody is in the book, and the message need not be hashed.
        let book_is_empty = self.state().convicts.counts() == (0, 0);
        let digest = if book_is_empty { None } else { Some(job.digest().await) };
        let (standing, phase) = {
            let state = self.state();
            let standing = digest.map_or(Standing::Free, |digest| state.convicts.standing(&digest, self.now_ms()));
            (standing, state.breaker.phase())
        };
        match standing {
            Standing::Convict => Err(Ok(unscannable(Unscannable::Convicted))),
            _ if phase != Phase::Closed => Err(Err(Failure::BreakerOpen)),
            standing => Ok(standing),
        }
    }

    async fn judge(&self, settings: &Settings, job: &Job, deadline: Instant, standing: Standing) -> Result<Answer, Missed> {
        if standing != Standing::Free {
            return self.scan_alone(settings, job, deadline, None).await;
        }
        let permit = self.permit(settings, 1, deadline).await?;
        match self.attempt(settings, job, deadline).await {
            Err(Missed { failure, blame: Blame::Died }) => {
                drop(permit);
                self.suspect(job).await;
                // It died, whatever kept the second scan from happening.
                self.scan_alone(settings, job, deadline, Some(failure)).await.map_err(|missed| Missed::engine(missed.failure))
            }
            result => result,
        }
    }

    /// A place in the bulkhead. Waits no longer than the deadline, nor for an engine that was cut off meanwhile.
    async fn permit<'a>(&self, settings: &'a Settings, count: u32, deadline: Instant) -> Result<SemaphorePermit<'a>, Missed> {
        if let Ok(permit) = settings.permits.try_acquire_many(count) {
            return Ok(permit);
        }
        let deadline = deadline.min(Instant::now() + settings.timeout);
        let mut open = self.open.subscribe();
        let permit = tokio::select! {
            biased;
            _ = open.wait_for(|open| *open) => Err(Failure::BreakerOpen),
            permit = timeout_at(deadline, settings.permits.acquire_many(count)) => {
                // A place that comes free at the very end is of no use: the engine would be called for nothing.
                permit.ok().and_then(Result::ok).filter(|_| Instant::now() < deadline).ok_or(Failure::Busy)
            }
        };
        permit.map_err(Missed::unasked)
    }

    async fn attempt(&self, settings: &Settings, job: &Job, deadline: Instant) -> Result<Answer, Missed> {
        let deaths = self.engine.deaths();
        let _counted = InFlight::enter(&self.in_flight);
        let started = Instant::now();
        // The engine's own code is called within the future, so that a panic there is caught as well.
        let scan = AssertUnwindSafe(async { self.engine.scan(job).await }).catch_unwind();
        match timeout_at(deadline.min(started + settings.timeout), scan).await {
            Err(_) if started.elapsed() < FAIR_CHANCE.min(settings.timeout) => Err(Missed::unasked(Failure::Timeout)),
            Err(_) => Err(Missed::engine(Failure::Timeout)),
            Ok(Err(_)) => Err(Missed { failure: Failure::Protocol("the engine panicked".to_owned()), blame: Blame::Died }),
            Ok(Ok(Err(failure))) => {
                let died = matches!(failure, Failure::Unreachable(_)) && self.engine.deaths() > deaths;
                Err(Missed { failure, blame: if died { Blame::Died } else { Blame::Engine } })
            }
            Ok(Ok(Ok(Answer { finding: Finding::Failed(failure), .. }))) => Err(Missed::engine(failure)),
            Ok(Ok(Ok(answer))) => Ok(answer),
        }
    }

    async fn suspect(&self, job: &Job) {
        let digest = job.digest().await;
        let now_ms = self.now_ms();
        let mut state = self.state();
        state.counters.deaths += 1;
        state.convicts.suspect(digest, now_ms);
    }

    /// A suspect's scan: nothing else in flight, on an engine that has just shown that it lives. If it dies of that, the message is convicted.
    async fn scan_alone(&self, settings: &Settings, job: &Job, deadline: Instant, first: Option<Failure>) -> Result<Answer, Missed> {
        let _alone = self.permit(settings, settings.concurrency, deadline).await?;
        self.wait_alive(deadline, first).await?;
        let result = self.attempt(settings, job, deadline).await;
        let (now_ms, digest) = (self.now_ms(), job.digest().await);
        match result {
            Ok(answer) => {
                self.state().convicts.acquit(&digest);
                Ok(answer)
            }
            Err(Missed { blame: Blame::Died, failure }) => {
                let mut state = self.state();
                state.counters.deaths += 1;
                state.counters.convictions += 1;
                state.convicts.convict(digest, now_ms);
                tracing::warn!(engine = &*settings.name, queue_id = %job.envelope.id, ?failure, "engine died of one message alone: it is not given to it for 24 h");
                Ok(unscannable(Unscannable::Convicted))
            }
            missed => missed,
        }
    }

    /// Waits for an engine to answer on a new connection; one that has just died gets a pause first.
    async fn wait_alive(&self, deadline: Instant, first: Option<Failure>) -> Result<(), Missed> {
        let until = deadline.min(Instant::now() + RESTART_WAIT);
        let mut pause = RESTART_PAUSE_MIN;
        let mut died = first.is_some();
        let mut failure = first.unwrap_or(Failure::Timeout);
        loop {
            if died {
                if Instant::now() + pause >= until {
                    return Err(Missed::engine(failure));
                }
                sleep(pause).await;
                pause = (pause * 2).min(RESTART_PAUSE_MAX);
            }
            if *self.open.borrow() {
                return Err(Missed::unasked(Failure::BreakerOpen));
            }
            match timeout_at(until, self.engine.version()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(why)) => failure = why,
                Err(_) => return Err(Missed::engine(failure)),
            }
            died = true;
        }
    }

    /// Tells the breaker of a scan that was really tried.
    fn record(&self, job: &Job, result: &Result<Answer, Missed>) {
        let why = match result {
            Ok(Answer { finding: Finding::Unscannable(Unscannable::Convicted), .. }) => Some("it died of a message".to_owned()),
            Ok(_) => None,
            Err(Missed { blame: Blame::Nobody, .. }) => return,
            Err(Missed { failure, .. }) => Some(format!("{failure:?}")),
        };
        let sample = Sample { failed: why.is_some(), tenant: tenant_key(job), network: network_key(&job.envelope.client) };
        let now_ms = self.now_ms();
        let mut state = self.state();
        state.counters.scans += 1;
        if why.is_some() {
            state.counters.failures += 1;
            state.last_failure = why;
        }
        if state.breaker.record(now_ms, sample) {
            self.probe_wanted.notify_one();
        }
    }

    /// Probes whenever one is due; ends when its task is aborted.
    pub(super) async fn keep_probing(self: Arc<Self>) {
        loop {
            let due_ms = self.state().breaker.probe_due_ms();
            tokio::select! {
                () = sleep_until(self.started + Duration::from_millis(due_ms)) => self.probe().await,
                () = self.probe_wanted.notified() => {}
            }
        }
    }

    async fn probe(&self) {
        let settings = self.settings.load_full();
        let started = Instant::now();
        let why = self.probe_failure(&settings).await;
        let passed = why.is_none();
        let report = ProbeReport { passed, at_ms: clock::unix_ms(), millis: u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX), why };
        let now_ms = self.now_ms();
        let (before, after) = {
            let mut state = self.state();
            let before = state.breaker.phase();
            state.breaker.probed(now_ms, passed);
            state.last_probe = Some(report.clone());
            state.probed_ms = now_ms;
            if passed {
                state.passed_ms = now_ms;
            }
            (before, state.breaker.phase())
        };
        self.open.send_replace(after != Phase::Closed);
        if let Some(observer) = &self.observer {
            let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
            if !*retired {
                observer.probed(&settings.name, passed, after);
            }
        }
        if before != after {
            self.changed.send_modify(|changes| *changes += 1);
            match &report.why {
                None => tracing::info!(engine = &*settings.name, "engine passed its probe: it is called"),
                Some(why) => tracing::warn!(engine = &*settings.name, why, "engine failed its probe: it is cut off"),
            }
        }
    }

    /// Both samples through the path of every scan, but for the bulkhead: an engine that is only busy must not look blind.
    async fn probe_failure(&self, settings: &Settings) -> Option<String> {
        if let Ok(Ok(version)) = timeout_at(Instant::now() + settings.timeout, self.engine.version()).await {
            let mut state = self.state();
            if state.version.as_ref().is_some_and(|known| *known != version) {
                state.convicts = Convicts::default();
            }
            state.version = Some(version).filter(|version| &**version != "?").or_else(|| state.version.take());
        }
        let class = settings.part.class;
        for sample in [probe::Sample::Bad, probe::Sample::Good] {
            let job = probe_job(class, sample);
            let found = match self.attempt(settings, &job, Instant::now() + settings.timeout).await {
                Ok(answer) => answer.finding,
                Err(Missed { failure, blame }) => {
                    if blame == Blame::Died {
                        self.pardon();
                    }
                    Finding::Failed(failure)
                }
            };
            if !probe::right(class, sample, &found) {
                return Some(format!("it answered {found:?} to the known {} sample", if sample == probe::Sample::Bad { "bad" } else { "good" }));
            }
        }
        None
    }

    /// It dies of the known samples too, so those that it died of lately are innocent.
    fn pardon(&self) {
        let mut state = self.state();
        let since_ms = state.passed_ms;
        state.convicts.forget_since(since_ms);
    }

    pub(super) fn status(&self) -> EngineStatus {
        let settings = self.settings.load_full();
        let version = self.version_of(&settings, None);
        let state = self.state();
        let (suspects, convicts) = state.convicts.counts();
        EngineStatus {
            name: settings.name.clone(),
            class: settings.part.class,
            mode: settings.part.mode,
            version,
            signatures_made_s: self.engine.signatures_made_s(),
            breaker: state.breaker.phase().as_str(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            scans: state.counters.scans,
            failures: state.counters.failures,
            last_failure: state.last_failure.clone(),
            deaths: state.counters.deaths,
            convictions: state.counters.convictions,
            suspects,
            convicts,
            last_probe: state.last_probe.clone(),
            next_probe_in_ms: state.breaker.probe_due_ms().saturating_sub(self.now_ms()),
        }
    }
}

const fn unscannable(why: Unscannable) -> Answer {
    Answer { finding: Finding::Unscannable(why), evidence: vec![], version: None }
}

fn probe_job(class: EngineClass, sample: probe::Sample) -> Job {
    let now_ms = clock::unix_ms();
    let raw = probe::message(class, sample, now_ms);
    Job::new(Arc::new(parse(raw, &Limits::default())), Arc::new(probe::envelope(now_ms)))
}

/// Stands for a tenant or a network in the breaker: 64 bits of FNV-1a, as only "the same or not" is asked, about a few.
fn key(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The first recipient's tenant: one scan speaks for one tenant, so that one mail to many does not look like trouble of all.
fn tenant_key(job: &Job) -> u64 {
    job.envelope.recipients.first().map_or(0, |recipient| key(recipient.tenant.as_bytes()))
}

/// The client's network: /24 of IPv4, also where it is mapped, /56 of IPv6. Clients that hide who they are count as one.
fn network_key(client: &Client) -> u64 {
    if !client.address_known {
        return 0;
    }
    match client.address.to_canonical() {
        IpAddr::V4(address) => key(address.octets().split_at(3).0),
        IpAddr::V6(address) => key(address.octets().split_at(7).0),
    }
}

struct InFlight<'a>(&'a AtomicU32);

impl<'a> InFlight<'a> {
    fn enter(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
