//! The guard around engines, with scripted engines behind it; the protocols against scripted servers; and against the real ones.

#![allow(clippy::panic, reason = "a test's helpers may fail the test")]

mod clamd_wire;
mod guarding;
#[path = "real_engines/mod.rs"]
mod real_engines;
mod rspamd_wire;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sekimori_crds::snapshot::{BreakerPart, ClassMinimum, EngineEndpoint, EnginePart};
use sekimori_crds::units::{self, ByteSize};
use sekimori_crds::vocabulary::{EngineClass, EngineMode, EngineProtocol};
use sekimori_mta::engine::breaker::Phase;
use sekimori_mta::envelope::{Client, Envelope, Recipient};
use sekimori_mta::io::clock;
use sekimori_mta::io::engine::fake::{Fake, connector};
use sekimori_mta::io::engine::{EngineStatus, Engines, Job, Observer, Options};
use sekimori_mta::message::{Limits, parse};
use sekimori_mta::queue_id::QueueId;
use sekimori_mta::smtp::Address;
use sekimori_mta::verdict::{Failure, Finding, Opinion};

/// A job from tenant number `tenant` and network number `network`.
fn job_of(raw: impl Into<Bytes>, tenant: u8, network: u8) -> Job {
    let raw = raw.into();
    let address = Address { local: "a".into(), domain: "example.com".into() };
    let envelope = Envelope {
        id: QueueId::new(1, u128::from(tenant)),
        received_ms: 1,
        client: Client { address: IpAddr::from([192, 0, network, 10]), helo: "mx.example.net".into(), esmtp: true, tls: None, address_known: true },
        sender: Some(Address { local: "s".into(), domain: "example.net".into() }),
        recipients: vec![Recipient { address, tenant: format!("mail/t{tenant}").into() }],
        eight_bit: false,
        smtputf8: false,
    };
    Job::new(Arc::new(parse(raw, &Limits::default())), Arc::new(envelope))
}

fn job(raw: impl Into<Bytes>) -> Job {
    job_of(raw, 1, 1)
}

/// A mail with this text.
fn mail(text: &str) -> String {
    format!("From: <s@example.net>\r\nTo: <a@example.com>\r\nSubject: s\r\nMessage-ID: <1@example.net>\r\n\r\n{text}\r\n")
}

fn part(name: &str, class: EngineClass) -> EnginePart {
    EnginePart {
        name: name.into(),
        class,
        family: name.into(),
        mode: EngineMode::Enforce,
        protocol: EngineProtocol::Builtin,
        endpoint: EngineEndpoint::Builtin,
        version: None,
        timeout: units::Duration::from_secs(2),
        concurrency: 8,
        max_bytes: ByteSize(30 << 20),
        weight_percent: 100,
        probe_interval: units::Duration::from_secs(300),
        breaker: BreakerPart { failures: 5, window: 20, open_for: units::Duration::from_secs(30) },
    }
}

/// Everything that an observer was told.
#[derive(Default)]
struct Seen {
    opinions: Mutex<Vec<Opinion>>,
    probes: Mutex<Vec<(String, bool, Phase)>>,
    retired: Mutex<Vec<String>>,
}

impl Observer for Seen {
    fn scanned(&self, _message: QueueId, opinion: &Opinion, _took: Duration) {
        self.opinions.lock().expect("no panic while held").push(opinion.clone());
    }
    fn probed(&self, engine: &str, passed: bool, breaker: Phase) {
        self.probes.lock().expect("no panic while held").push((engine.into(), passed, breaker));
    }
    fn retired(&self, engine: &str) {
        self.retired.lock().expect("no panic while held").push(engine.into());
    }
}

/// Engines by name instead of by protocol.
fn fakes(fakes: &[(&str, &Arc<Fake>)], seen: &Arc<Seen>) -> Options {
    Options { connector: connector(fakes), observer: Some(seen.clone()) }
}

/// Waits until so many anti-virus and anti-spam engines are warm.
async fn warm(engines: &Engines, anti_virus: u32, anti_spam: u32) {
    let minimum = ClassMinimum { anti_virus, anti_spam };
    let warm = engines.warm_up(minimum, Duration::from_secs(40)).await;
    assert!(warm.covers(minimum), "{warm:?}: {:?}", engines.status());
}

async fn scan(engines: &Engines, job: &Job) -> Vec<Opinion> {
    engines.scan_all(job, clock::monotonic_ms() + 20_000).await
}

/// The finding of the only enforced engine.
async fn find(engines: &Engines, job: &Job) -> Finding {
    let opinions = scan(engines, job).await;
    assert_eq!(opinions.len(), 1, "{opinions:?}");
    opinions.into_iter().next().expect("one").finding
}

/// The status of the only engine.
fn status(engines: &Engines) -> EngineStatus {
    engines.status().into_iter().next().expect("an engine")
}

fn is_protocol(finding: &Finding) -> bool {
    matches!(finding, Finding::Failed(Failure::Protocol(_)))
}

/// Polls until it holds; real time, as engines and servers are other tasks and processes.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
