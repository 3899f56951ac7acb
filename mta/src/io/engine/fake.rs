//! A scriptable engine inside the process, for tests and demonstrations: it stands where a real engine stands, behind the same guard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sekimori_crds::vocabulary::EngineClass;

use super::{Answer, BoxFuture, ConnectError, Connector, Engine, Job};
use crate::engine::probe;
use crate::verdict::{Failure, Finding, SpamScore};

/// What the engine does with one message.
#[derive(Clone, Debug)]
pub enum Step {
    /// What an honest engine of its class does: finds EICAR or GTUBE, and nothing else.
    Honest,
    /// Answers this.
    Find(Finding),
    /// Answers this, with evidence and version.
    Answer(Answer),
    /// Fails so.
    Fail(Failure),
    /// The connection breaks with the message on it.
    Die,
    /// A bug in its client.
    Panic,
    /// Never answers.
    Hang,
    /// Waits first.
    After(Duration, Box<Self>),
}

type Script = Box<dyn FnMut(&Job) -> Step + Send>;

/// The engine. Mail and probes have scripts of their own; both begin honest.
pub struct Fake {
    class: EngineClass,
    mail: Mutex<Script>,
    probe: Mutex<Script>,
    version: Mutex<Result<Arc<str>, Failure>>,
    scans: AtomicU64,
    probes: AtomicU64,
    deaths: AtomicU64,
}

impl Fake {
    /// An honest engine of this class, version `1`.
    pub fn new(class: EngineClass) -> Arc<Self> {
        let honest = || Mutex::new(Box::new(|_: &Job| Step::Honest) as Script);
        Arc::new(Self {
            class,
            mail: honest(),
            probe: honest(),
            version: Mutex::new(Ok(Arc::from("1"))),
            scans: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            deaths: AtomicU64::new(0),
        })
    }

    /// What it does with mail from now on.
    pub fn on_mail(&self, script: impl FnMut(&Job) -> Step + Send + 'static) {
        *self.mail.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// What it does with probes from now on.
    pub fn on_probe(&self, script: impl FnMut(&Job) -> Step + Send + 'static) {
        *self.probe.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// What it says of its version from now on.
    pub fn on_version(&self, version: Result<&str, Failure>) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version.map(Arc::from);
    }

    /// Mail that it was given.
    pub fn scans(&self) -> u64 {
        self.scans.load(Ordering::SeqCst)
    }

    /// Probes that it was given.
    pub fn probes(&self) -> u64 {
        self.probes.load(Ordering::SeqCst)
    }

    fn step(&self, job: &Job) -> Step {
        let of_probe = job.envelope.sender.as_ref().is_some_and(|sender| sender.domain == probe::DOMAIN);
        let (script, count) = if of_probe { (&self.probe, &self.probes) } else { (&self.mail, &self.scans) };
        count.fetch_add(1, Ordering::SeqCst);
        let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
        script(job)
    }

    fn honest(&self, job: &Job) -> Finding {
        let says = |text: &str| memchr::memmem::find(&job.message.raw, text.as_bytes()).is_some();
        if self.class == EngineClass::AntiSpam {
            let certain = says(&probe::gtube());
            return Finding::Spam(SpamScore { milli: if certain { 15_000 } else { 0 }, required_milli: 6000, reject_milli: 15_000, certain });
        }
        let eicar = probe::eicar();
        if says(&eicar) || says(&data_encoding::BASE64.encode(eicar.as_bytes())) { Finding::Infected("Eicar-Test".into()) } else { Finding::Clean }
    }
}

/// Connects engines by their names to these, whatever protocol they claim; a name that is not there is an error.
pub fn connector(fakes: &[(&str, &Arc<Fake>)]) -> Connector {
    let fakes: Vec<(String, Arc<Fake>)> = fakes.iter().map(|(name, fake)| ((*name).to_owned(), Arc::clone(fake))).collect();
    Arc::new(move |part| {
        let fake = fakes.iter().find(|(name, _)| *name == part.name).map(|(_, fake)| Arc::clone(fake) as Arc<dyn Engine>);
        fake.ok_or_else(|| ConnectError::NoBuiltin { engine: part.name.clone(), class: part.class })
    })
}

impl Engine for Fake {
    fn scan<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            let plain = |finding| Ok(Answer { finding, evidence: vec![], version: None });
            let mut step = self.step(job);
            while let Step::After(pause, then) = step {
                tokio::time::sleep(pause).await;
                step = *then;
            }
            match step {
                Step::Honest | Step::After(..) => plain(self.honest(job)),
                Step::Find(finding) => plain(finding),
                Step::Answer(answer) => Ok(answer),
                Step::Fail(failure) => Err(failure),
                Step::Die => {
                    self.deaths.fetch_add(1, Ordering::SeqCst);
                    Err(Failure::Unreachable("the connection broke during a scan".into()))
                }
                Step::Panic => std::panic::resume_unwind(Box::new("as the script says")),
                Step::Hang => std::future::pending().await,
            }
        })
    }

    fn version(&self) -> BoxFuture<'_, Result<Arc<str>, Failure>> {
        let version = self.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(std::future::ready(version))
    }

    fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::SeqCst)
    }
}
