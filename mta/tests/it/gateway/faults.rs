//! "Nothing unscanned passes silently", over random engines, policies, tenants, stores and servers.
//!
//! Each seed builds a gateway and sends it some messages at once, while each engine answers, hangs, dies or talks nonsense as it likes, one message at
//! a time. Then everything becomes healthy, the queue is drained, and what each recipient got is held against what was answered and what was scanned.
//! What the gateway thinks of itself is not asked, but for its marks in header and metric, which must be there where scans are not.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sekimori_crds::snapshot::{Combine, EnginePart, TenantPart, Thresholds};
use sekimori_crds::vocabulary::{Action, DeliveryMode, Enforcement, EngineClass, EngineMode, TooFewEngines};
use sekimori_mta::io::engine::Job;
use sekimori_mta::io::engine::fake::Step;
use sekimori_mta::message::{Limits, Message, parse};
use sekimori_mta::queue::Meta;
use sekimori_mta::queue::index::State;
use sekimori_mta::verdict::{Failure, Finding, SpamScore, Unscannable};
use tokio::sync::Semaphore;

use super::client::{Answer, Client};
use super::tenants::{header, to};
use super::world::{MemoryDisk, Setup, World, engine};
use crate::delivery::gateway::wait_for;
use crate::delivery::sink::{Act, Script, Sink, say};

const MESSAGES: usize = 12;
const SEEDS: u64 = 60;
const AT_ONCE: usize = 8;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What really happened in the engines, by message.
#[derive(Default)]
struct Scans {
    /// Families of enforced engines that completed a scan, by class.
    complete: BTreeSet<(EngineClass, String)>,
    /// What enforced anti-virus engines could not scan.
    unscannable: BTreeSet<Unscannable>,
    /// An enforced anti-virus engine died of it: it may be convicted, which is a kind of malformed.
    died: bool,
    /// An enforced engine found malware.
    infected: bool,
    /// What the first scan was given: a later one is given the message parsed anew.
    first: Option<Arc<Message>>,
}

type Log = Arc<Mutex<BTreeMap<String, Scans>>>;

const TOO_FEW: &[TooFewEngines] = &[TooFewEngines::Defer, TooFewEngines::Quarantine, TooFewEngines::PassUnscanned];
const ANY: &[Action] = &[Action::Deliver, Action::Tag, Action::Defer, Action::Quarantine, Action::Discard, Action::Reject];

fn random_engines(random: &mut Random) -> Vec<EnginePart> {
    let mut parts = vec![];
    for (class, most) in [(EngineClass::AntiVirus, 3), (EngineClass::AntiSpam, 2)] {
        for n in 0..=random.below(most) {
            let mut part = engine(&format!("{class}{n}").to_lowercase(), class);
            part.timeout = "400ms".parse().unwrap();
            part.breaker.open_for = "200ms".parse().unwrap();
            if n > 0 && random.one_in(4) {
                part.family = format!("{class}0").to_lowercase();
            }
            if n > 0 && random.one_in(4) {
                part.mode = EngineMode::Shadow;
            }
            parts.push(part);
        }
    }
    // It counts for nothing and sees everything, also what no other engine is asked about.
    let mut witness = engine("witness", EngineClass::AntiSpam);
    witness.mode = EngineMode::Shadow;
    parts.push(witness);
    parts
}

fn random_tenant(random: &mut Random, name: &str, sink: &Sink) -> TenantPart {
    let mut part = to(name, sink);
    part.delivery = random.pick(&[DeliveryMode::InlineElseQueue, DeliveryMode::InlineElseQueue, DeliveryMode::Queue, DeliveryMode::Inline]);
    if random.one_in(6) {
        part.enforcement = Enforcement::Observe;
    }
    let virus = &mut part.policy.anti_virus;
    virus.infected = if random.one_in(4) { random.pick(ANY) } else { random.pick(&[Action::Quarantine, Action::Reject, Action::Discard]) };
    virus.too_large = random.pick(ANY);
    virus.limits_exceeded = random.pick(ANY);
    virus.malformed = random.pick(ANY);
    virus.minimum_engines = 1 + random.below(2) as u32;
    virus.too_few_engines = random.pick(TOO_FEW);
    part.policy.attachments.encrypted_archives = random.pick(ANY);
    let spam = &mut part.policy.anti_spam;
    spam.minimum_engines = random.below(3) as u32;
    spam.too_few_engines = random.pick(TOO_FEW);
    spam.subject_tag = random.pick(&["", "[SPAM] "]).to_owned();
    spam.combine = if random.one_in(2) {
        Combine::Majority { action: random.pick(&[Action::Tag, Action::Quarantine, Action::Reject]) }
    } else {
        Combine::LogOdds { prior_decibans: -3, at: Thresholds { tag_at: Some(6), quarantine_at: Some(15), reject_at: Some(25) } }
    };
    part
}

/// One engine's behaviour on a message, and whether that is a complete scan.
fn behaviour(random: &mut Random, class: EngineClass, first: bool) -> (Step, bool) {
    let clean = if class == EngineClass::AntiVirus {
        Finding::Clean
    } else {
        let milli = random.pick(&[0, 0, 0, 5_000, 9_000, 20_000]);
        Finding::Spam(SpamScore { milli, required_milli: 6_000, reject_milli: 15_000, certain: milli == 20_000 })
    };
    let later = |ms, finding| Step::After(Duration::from_millis(ms), Box::new(Step::Find(finding)));
    match random.below(20) {
        0 => (Step::Hang, false),
        1 => (Step::Die, false),
        2 => (Step::Panic, false),
        3 => (Step::Fail(Failure::Protocol("garbage".into())), false),
        4 => (Step::Fail(Failure::Unreachable("refused".into())), false),
        5 => (later(60_000, clean), false),
        6 => (Step::Find(Finding::Failed(Failure::Busy)), false),
        // Malware only in a first scan, so that no copy can have been delivered before by an earlier, worse one.
        7 | 8 if first => (Step::Find(Finding::Infected("Worm".into())), false),
        9 if class == EngineClass::AntiVirus => (Step::Find(Finding::Unscannable(Unscannable::Encrypted)), true),
        10 if class == EngineClass::AntiVirus => {
            let kinds = [Unscannable::TooLarge, Unscannable::LimitsExceeded, Unscannable::Malformed];
            (Step::Find(Finding::Unscannable(random.pick(&kinds))), false)
        }
        11 | 12 => (later(20, clean), true),
        _ => (Step::Find(clean), true),
    }
}

/// Gives an engine its scripts. After `calm` it is honest.
fn script(world: &World, part: &EnginePart, seed: u64, probes_fail: bool, calm: &Arc<AtomicBool>, log: &Log) {
    let fake = world.fake(&part.name);
    let mut calls: BTreeMap<String, u64> = BTreeMap::new();
    let (name, class, family) = (part.name.clone(), part.class, part.family.clone());
    let (enforced, is_witness) = (part.mode == EngineMode::Enforce, part.name == "witness");
    let (log, quiet) = (Arc::clone(log), Arc::clone(calm));
    fake.on_mail(move |job: &Job| {
        let message = job.message.message_id.clone().unwrap_or_default();
        let call = calls.entry(message.clone()).or_default();
        let mut random = Random(seed ^ hash(&format!("{message} {name} {call}")));
        *call += 1;
        let mut log = log.lock().unwrap();
        let scans = log.entry(message).or_default();
        let first = Arc::ptr_eq(scans.first.get_or_insert_with(|| Arc::clone(&job.message)), &job.message);
        let (step, complete) = if quiet.load(Ordering::SeqCst) || is_witness { (Step::Honest, true) } else { behaviour(&mut random, class, first) };
        if enforced {
            scans.infected |= matches!(step, Step::Find(Finding::Infected(_)));
            if let (EngineClass::AntiVirus, Step::Find(Finding::Unscannable(what))) = (class, &step) {
                scans.unscannable.insert(*what);
            }
            scans.died |= class == EngineClass::AntiVirus && matches!(step, Step::Die | Step::Panic);
            if complete {
                scans.complete.insert((class, family.clone()));
            }
        }
        step
    });
    let (mut random, quiet) = (Random(seed ^ hash(&part.name)), Arc::clone(calm));
    fake.on_probe(move |_| {
        if probes_fail && !is_witness && !quiet.load(Ordering::SeqCst) && random.one_in(3) { Step::Fail(Failure::Timeout) } else { Step::Honest }
    });
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A message that was sent, and how it was answered.
struct Sent {
    id: String,
    recipients: Vec<String>,
    answer: Answer,
}

async fn send(address: std::net::SocketAddr, seed: u64, n: usize, tenants: usize) -> Sent {
    let mut random = Random(seed.wrapping_mul(1_000) + n as u64);
    let mut recipients: Vec<String> = vec![];
    for _ in 0..=random.below(4) {
        let user = random.pick(&["ok", "fine", "good", "nice", "full", "bad"]);
        let recipient = format!("{user}{}@t{}.example", recipients.len(), random.below(tenants as u64));
        recipients.push(recipient);
    }
    let mut client = Client::connect(address, &format!("192.0.{}.1", random.below(5))).await;
    let id = format!("{n}.{seed}@sender.test");
    let filler = "x".repeat(random.below(70) as usize);
    let mail =
        format!("From: a@sender.test\r\nMessage-ID: <{id}>\r\nSubject: {n}\r\n\r\n{}", format!("{filler}\r\n").repeat(random.below(200) as usize));
    let asked: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let answer = client.send_from(&format!("a{n}@sender.test"), &asked, mail.as_bytes()).await;
    Sent { id, recipients, answer }
}

/// Everything about one seed that the checks need.
struct Story {
    tenants: Vec<TenantPart>,
    sent: Vec<Sent>,
    log: Log,
    disk_broken: bool,
}

async fn one_seed(seed: u64) {
    let mut random = Random(seed);
    let sink = Sink::start(Script {
        rcpt: Arc::new(|address| match address {
            _ if address.starts_with("bad") => say("550 5.1.1 no such user"),
            _ if address.starts_with("full") => say("452 4.2.2 mailbox full"),
            _ => Act::Accept,
        }),
        ..Script::default()
    })
    .await;
    let names: Vec<String> = (0..=random.below(3)).map(|n| format!("t{n}")).collect();
    let tenants: Vec<TenantPart> = names.iter().map(|name| random_tenant(&mut random, name, &sink)).collect();
    let disk = Arc::new(MemoryDisk::default());
    let engines = random_engines(&mut random);
    let mut setup = Setup { engines: engines.clone(), disk: Some(Arc::clone(&disk)), segment_bytes: 1 << 20, ..Setup::new(tenants.clone()) };
    setup.delivery.store_retry_ms = 20;
    let world = setup.start().await;
    let (calm, log) = (Arc::new(AtomicBool::new(false)), Log::default());
    let probes_fail = random.one_in(3);
    for part in &engines {
        script(&world, part, seed, probes_fail, &calm, &log);
    }
    let (disk_broken, store_away) = (random.one_in(8), random.one_in(5));
    disk.broken.store(disk_broken, Ordering::SeqCst);
    if store_away {
        world.quarantine_works(false);
    }
    let senders: Vec<_> = (0..MESSAGES).map(|n| tokio::spawn(send(world.address, seed, n, tenants.len()))).collect();
    let mut sent = vec![];
    for sender in senders {
        sent.push(sender.await.unwrap());
    }
    calm.store(true, Ordering::SeqCst);
    if store_away {
        world.quarantine_works(true);
    }
    sink.change(|script| script.rcpt = Arc::new(|address| if address.starts_with("bad") { say("550 5.1.1 no such user") } else { Act::Accept }));
    settled(&world).await;
    Story { tenants, sent, log, disk_broken }.check(&world, &sink).await;
}

/// Waits until nothing is left to be done but scans that no engine can complete: the policy wants more engines than there are, or the message killed one.
async fn settled(world: &World) {
    wait_for("engines to be back", || world.gateway.filters.engines.status().iter().all(|engine| engine.breaker == "closed")).await;
    let mut rounds = 0;
    for _ in 0..500 {
        let queue = world.queue();
        rounds = if queue.iter().all(|entry| entry.purpose == "rescan" && entry.state != State::InFlight) { rounds + 1 } else { 0 };
        if queue.is_empty() || rounds == 10 {
            return;
        }
        world.retry();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("after ten seconds this is still to be done: {:?}", world.queue());
}

impl Story {
    async fn check(&self, world: &World, sink: &Sink) {
        // Recipients by message: those whose copy arrived (as often as it did), those whose copy is kept in a store or the spool.
        let mut arrived: BTreeMap<(String, String), usize> = BTreeMap::new();
        let mut kept: BTreeSet<(String, String)> = BTreeSet::new();
        let mut marked: BTreeSet<(String, String)> = BTreeSet::new();
        for copy in sink.kept() {
            let id = header(&copy.content, "Message-ID").trim_matches(['<', '>']).to_owned();
            for recipient in &copy.recipients {
                *arrived.entry((id.clone(), recipient.clone())).or_default() += 1;
                if self.passed(&id, recipient, &copy.content) {
                    marked.insert((id.clone(), self.tenant(recipient).name.clone()));
                }
            }
        }
        for item in world.kept().await {
            let id = message_id(item.raw.clone());
            for index in &item.recipients {
                kept.insert((id.clone(), item.envelope.recipients[usize::from(*index)].address.to_string()));
            }
        }
        let mut waiting = BTreeSet::new();
        for entry in world.queue() {
            let (meta, raw) = world.gateway.spool.read(entry.id).await.unwrap();
            let envelope = Meta::decode(&meta).unwrap().envelope;
            waiting
                .extend(entry.recipients.iter().map(|index| (message_id(raw.clone()), envelope.recipients[usize::from(*index)].address.to_string())));
        }
        kept.extend(waiting);
        for message in &self.sent {
            self.accounted(message, &arrived, &kept);
        }
        let counted = world.metric("sekimori_unscanned_total{class=\"AntiVirus\"}");
        assert!(counted >= marked.len() as u64, "{} copies passed unscanned, the metric says {counted}", marked.len());
    }

    fn tenant(&self, recipient: &str) -> &TenantPart {
        self.tenants.iter().find(|tenant| recipient.ends_with(&format!("@{}", tenant.domains[0]))).expect("one of ours")
    }

    /// Checks one copy that arrived; whether it is marked as not scanned for viruses.
    fn passed(&self, id: &str, recipient: &str, content: &[u8]) -> bool {
        let verdict = header(content, "X-Sekimori-Verdict");
        let unscanned = verdict.split("; ").find_map(|item| item.strip_prefix("unscanned=")).unwrap_or_default();
        let policy = &self.tenant(recipient).policy;
        let log = self.log.lock().unwrap();
        let nothing = Scans::default();
        let scans = log.get(id).unwrap_or(&nothing);
        for (class, needed) in
            [(EngineClass::AntiVirus, policy.anti_virus.minimum_engines), (EngineClass::AntiSpam, policy.anti_spam.minimum_engines)]
        {
            let complete = scans.complete.iter().filter(|(of, _)| *of == class).count();
            let enough = complete >= needed.max(1) as usize;
            let known_bad = class == EngineClass::AntiVirus && scans.infected;
            let silent = !unscanned.split(',').any(|marked| marked == class.as_str());
            assert!(enough || known_bad || !silent, "{id} passed to {recipient} with {complete} of {needed} {class} scans and no mark: {verdict}");
        }
        let tenant = self.tenant(recipient);
        let acted_on = tenant.enforcement == Enforcement::Enforce && policy.anti_virus.infected > Action::Defer;
        assert!(!(scans.infected && acted_on), "{id} is infected and passed to {recipient}, whose policy is {}", policy.anti_virus.infected);
        let marked = unscanned.split(',').any(|class| class == "AntiVirus");
        let wanted = tenant.enforcement == Enforcement::Observe || may_pass(scans, tenant);
        assert!(!marked || wanted, "{id} passed unscanned to {recipient}, and nothing in its policy says so: {verdict}; {:?}", policy.anti_virus);
        marked
    }

    fn accounted(&self, message: &Sent, arrived: &BTreeMap<(String, String), usize>, kept: &BTreeSet<(String, String)>) {
        let Sent { id, recipients, answer } = message;
        let place = |recipient: &String| (id.clone(), recipient.clone());
        let taken: Vec<&String> =
            recipients.iter().zip(&answer.recipients).filter(|(_, said)| said.code == 250).map(|(recipient, _)| recipient).collect();
        // The one exception: a next hop took some recipients and not all, and then the disk did not take the rest. Twice is better than never.
        let split = self.disk_broken && taken.iter().any(|user| user.starts_with("bad") || user.starts_with("full"));
        let code = answer.end.as_ref().map_or(0, |said| said.code);
        for recipient in recipients {
            let (copies, is_kept) = (arrived.get(&place(recipient)).copied().unwrap_or(0), kept.contains(&place(recipient)));
            let what = format!("{id} for {recipient}: answered {code}, {copies} copies arrived, kept: {is_kept}; {answer:?}");
            assert!(copies + usize::from(is_kept) <= 1, "more than one copy: {what}");
            if !taken.contains(&recipient) {
                assert!(copies == 0 && !is_kept, "a refused recipient: {what}");
            } else if code == 250 {
                assert!(copies > 0 || is_kept || self.may_discard(recipient), "lost: {what}");
            } else {
                assert!(code == 451 || code == 452 || (500..600).contains(&code), "{what}");
                assert!(copies == 0 || split, "refused and delivered all the same: {what}");
            }
        }
    }

    fn may_discard(&self, recipient: &str) -> bool {
        let tenant = self.tenant(recipient);
        let policy = &tenant.policy;
        let virus = &policy.anti_virus;
        let actions = [virus.infected, virus.too_large, virus.limits_exceeded, virus.malformed, policy.attachments.encrypted_archives];
        tenant.enforcement == Enforcement::Enforce && actions.contains(&Action::Discard)
    }
}

/// Whether a policy lets something pass that too few engines have scanned.
fn may_pass(scans: &Scans, tenant: &TenantPart) -> bool {
    let policy = &tenant.policy;
    let action = |what: &Unscannable| match what {
        Unscannable::Encrypted => policy.attachments.encrypted_archives,
        Unscannable::TooLarge => policy.anti_virus.too_large,
        Unscannable::LimitsExceeded => policy.anti_virus.limits_exceeded,
        Unscannable::Malformed | Unscannable::Convicted => policy.anti_virus.malformed,
    };
    let convicted = scans.died.then_some(Unscannable::Convicted);
    let passes = |what: &Unscannable| matches!(action(what), Action::Deliver | Action::Tag);
    policy.anti_virus.too_few_engines == TooFewEngines::PassUnscanned || scans.unscannable.iter().chain(&convicted).any(passes)
}

fn message_id(raw: Bytes) -> String {
    parse(raw, &Limits::default()).message_id.unwrap_or_default()
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value}")))
}

/// One seed again: `GATEWAY_SEED=7 cargo test -p sekimori-mta --test it nothing_unscanned`. More of them: `GATEWAY_SEEDS=1000`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_unscanned_passes_silently() {
    let seeds = match setting("GATEWAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("GATEWAY_SEEDS").unwrap_or(SEEDS),
    };
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = vec![];
    for seed in seeds {
        let place = Arc::clone(&room).acquire_owned().await.unwrap();
        running.push((
            seed,
            tokio::spawn(async move {
                one_seed(seed).await;
                drop(place);
            }),
        ));
    }
    let mut failed = vec![];
    for (seed, task) in running {
        if task.await.is_err() {
            failed.push(format!("GATEWAY_SEED={seed}"));
        }
    }
    assert!(failed.is_empty(), "what went wrong stands above; to repeat it: {}", failed.join(", "));
}
