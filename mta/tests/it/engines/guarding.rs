//! Every engine behind its guard: deadlines, bulkhead, breaker, probes, suspects, shadows. The clock is tokio's, paused.

use std::sync::atomic::{AtomicUsize, Ordering};

use sekimori_mta::io::engine::fake::Step;
use sekimori_mta::io::engine::{Answer, ConnectError};
use sekimori_mta::verdict::{Evidence, Unscannable};
use tokio::time::{Instant, sleep};

use super::*;

fn one(fake: &Arc<Fake>, part: EnginePart) -> (Arc<Engines>, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let options = fakes(&[(&part.name, fake)], &seen);
    (Engines::connect(&[part], options).expect("a list without mistakes"), seen)
}

async fn warm_one(fake: &Arc<Fake>, change: impl FnOnce(&mut EnginePart)) -> (Arc<Engines>, Arc<Seen>) {
    let mut part = part("av", EngineClass::AntiVirus);
    change(&mut part);
    let (engines, seen) = one(fake, part);
    until("warm", || engines.status().iter().all(|status| status.breaker == "closed")).await;
    (engines, seen)
}

#[tokio::test(start_paused = true)]
async fn every_enabled_engine_has_one_opinion() {
    let (virus, spam, shadow, off) =
        (Fake::new(EngineClass::AntiVirus), Fake::new(EngineClass::AntiSpam), Fake::new(EngineClass::AntiVirus), Fake::new(EngineClass::AntiVirus));
    let seen = Arc::new(Seen::default());
    let mut parts = vec![
        part("av", EngineClass::AntiVirus),
        part("shadow", EngineClass::AntiVirus),
        part("off", EngineClass::AntiVirus),
        part("as", EngineClass::AntiSpam),
    ];
    parts[1].mode = EngineMode::Shadow;
    parts[2].mode = EngineMode::Disabled;
    parts[3].weight_percent = 50;
    parts[3].family = "f".into();
    let options = fakes(&[("av", &virus), ("as", &spam), ("shadow", &shadow), ("off", &off)], &seen);
    let engines = Engines::connect(&parts, options).expect("a list without mistakes");
    warm(&engines, 1, 1).await;
    until("the shadow is probed", || shadow.probes() == 2).await;
    spam.on_mail(|_| {
        let evidence = vec![Evidence { name: "E".into(), decibans: 3 }];
        Step::After(Duration::from_millis(70), Box::new(Step::Answer(Answer { finding: Finding::Clean, evidence, version: Some("7".into()) })))
    });
    let opinions = scan(&engines, &job(mail(&sekimori_mta::engine::probe::eicar()))).await;
    let infected = || Finding::Infected("Eicar-Test".into());
    assert_eq!(opinions.len(), 3, "{opinions:?}");
    assert_eq!((&*opinions[0].engine, &opinions[0].finding, opinions[0].mode, &*opinions[0].version), ("av", &infected(), EngineMode::Enforce, "1"));
    let second = &opinions[1];
    assert_eq!((&*second.engine, &*second.family, second.class, &*second.version), ("as", "f", EngineClass::AntiSpam, "7"));
    assert_eq!((second.weight_percent, second.evidence.len()), (50, 1));
    assert!((70..200).contains(&second.millis), "{second:?}");
    assert_eq!((&*opinions[2].engine, &opinions[2].finding, opinions[2].mode), ("shadow", &infected(), EngineMode::Shadow));
    assert_eq!((off.scans(), off.probes()), (0, 0), "a disabled engine is not called");
    assert_eq!(seen.opinions.lock().expect("free").len(), 3);
    assert_eq!(engines.status().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_never_delays_and_is_still_measured() {
    let (virus, shadow) = (Fake::new(EngineClass::AntiVirus), Fake::new(EngineClass::AntiVirus));
    let seen = Arc::new(Seen::default());
    let mut parts = vec![part("av", EngineClass::AntiVirus), part("shadow", EngineClass::AntiVirus)];
    parts[1].mode = EngineMode::Shadow;
    parts[1].concurrency = 3;
    let engines = Engines::connect(&parts, fakes(&[("av", &virus), ("shadow", &shadow)], &seen)).expect("a list without mistakes");
    until("both are probed", || engines.status().iter().all(|status| status.breaker == "closed")).await;
    assert_eq!(engines.warm().anti_virus, 1, "a shadow does not count as warm");
    shadow.on_mail(|_| Step::Hang);
    for _ in 0..5 {
        let begin = Instant::now();
        let opinions = scan(&engines, &job(mail("x"))).await;
        assert!(begin.elapsed() < Duration::from_millis(5), "{:?}", begin.elapsed());
        assert_eq!(opinions.first().map(|o| &o.finding), Some(&Finding::Clean));
    }
    tokio::task::yield_now().await;
    assert_eq!(shadow.scans(), 3, "detached scans are bounded by the shadow's concurrency");
    sleep(Duration::from_secs(3)).await;
    let of_shadow: Vec<Finding> =
        seen.opinions.lock().expect("free").iter().filter(|o| o.mode == EngineMode::Shadow).map(|o| o.finding.clone()).collect();
    assert_eq!(of_shadow.iter().filter(|f| **f == Finding::Failed(Failure::Busy)).count(), 2);
    assert_eq!(of_shadow.iter().filter(|f| **f == Finding::Failed(Failure::Timeout)).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn deadlines() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |_| ()).await;
    fake.on_mail(|_| Step::Hang);
    for (budget_ms, least_ms, most_ms) in [(20_000, 2000, 2100), (300, 250, 400), (0, 0, 50)] {
        let begin = Instant::now();
        let opinions = engines.scan_all(&job(mail("x")), clock::monotonic_ms() + budget_ms).await;
        assert_eq!(opinions[0].finding, Finding::Failed(Failure::Timeout));
        let took_ms = begin.elapsed().as_millis();
        assert!((least_ms..most_ms).contains(&took_ms), "{budget_ms}: {took_ms}");
    }
    assert_eq!((status(&engines).in_flight, status(&engines).failures), (0, 1), "cut short by us: not the engine's failure");
}

#[tokio::test(start_paused = true)]
async fn the_bulkhead_holds_and_waits_only_until_the_deadline() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |part| part.concurrency = 2).await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now2, most2) = (now.clone(), most.clone());
    fake.on_mail(move |_| {
        most2.fetch_max(now2.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Step::After(Duration::from_millis(100), Box::new(Step::Honest))
    });
    let scans = (0..10).map(|n| {
        let (engines, now) = (engines.clone(), now.clone());
        async move {
            let opinions = engines.scan_all(&job(mail(&n.to_string())), clock::monotonic_ms() + 250).await;
            if opinions[0].finding == Finding::Clean {
                now.fetch_sub(1, Ordering::SeqCst);
            }
            opinions[0].finding.clone()
        }
    });
    let findings = futures_util::future::join_all(scans).await;
    let count = |finding: Finding| findings.iter().filter(|f| **f == finding).count();
    assert_eq!((count(Finding::Clean), count(Finding::Failed(Failure::Timeout)), count(Finding::Failed(Failure::Busy))), (4, 2, 4), "{findings:?}");
    assert_eq!((most.load(Ordering::SeqCst), fake.scans()), (2, 6), "never more than two at once, and none is called that has no time left");
    assert_eq!(status(&engines).failures, 0, "neither Busy nor our own short deadline is the engine's failure");
}

#[tokio::test(start_paused = true)]
async fn too_large_is_said_without_a_call() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |part| part.max_bytes = ByteSize(1000)).await;
    assert_eq!(find(&engines, &job(vec![b'x'; 1001])).await, Finding::Unscannable(Unscannable::TooLarge));
    assert_eq!(fake.scans(), 0);
    assert_eq!(find(&engines, &job(vec![b'x'; 1000])).await, Finding::Clean);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_fails_its_probe_is_never_called() {
    type Script = fn(&Job) -> Step;
    let scripts: [(&str, Script); 6] = [
        ("blind", |_| Step::Find(Finding::Clean)),
        ("trigger-happy", |_| Step::Find(Finding::Infected("All".into()))),
        ("limited", |_| Step::Find(Finding::Unscannable(Unscannable::LimitsExceeded))),
        ("failing within its answer", |_| Step::Find(Finding::Failed(Failure::Timeout))),
        ("garbage", |_| Step::Fail(Failure::Protocol("?".into()))),
        ("hanging", |_| Step::Hang),
    ];
    for (what, script) in scripts {
        let fake = Fake::new(EngineClass::AntiVirus);
        fake.on_probe(script);
        let (engines, seen) = one(&fake, part("av", EngineClass::AntiVirus));
        until(what, || status(&engines).last_probe.is_some()).await;
        assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Failed(Failure::BreakerOpen), "{what}");
        assert_eq!((fake.scans(), engines.warm().anti_virus), (0, 0), "{what}");
        assert_eq!(seen.probes.lock().expect("free").first(), Some(&("av".to_owned(), false, Phase::Untested)));
        fake.on_probe(|_| Step::Honest);
        warm(&engines, 1, 0).await;
        assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Clean, "{what}: it is called once it passed");
    }
}

#[tokio::test(start_paused = true)]
async fn failures_open_the_breaker_by_a_probe_and_it_closes_by_one() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, seen) = warm_one(&fake, |_| ()).await;
    fake.on_mail(|_| Step::Fail(Failure::Protocol("?".into())));
    fake.on_probe(|_| Step::Fail(Failure::Protocol("?".into())));
    for n in 0..5 {
        assert!(is_protocol(&find(&engines, &job_of(mail("x"), n, n)).await), "{n}");
    }
    until("open", || status(&engines).breaker == "open").await;
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Failed(Failure::BreakerOpen));
    assert_eq!((fake.scans(), engines.warm().anti_virus), (5, 0));
    let opened = Instant::now();
    fake.on_mail(|_| Step::Honest);
    fake.on_probe(|_| Step::Honest);
    warm(&engines, 1, 0).await;
    assert!((29_900..30_100).contains(&opened.elapsed().as_millis()), "half-open after openFor: {:?}", opened.elapsed());
    assert_eq!(find(&engines, &job(mail("x"))).await, Finding::Clean);
    let phases: Vec<Phase> = seen.probes.lock().expect("free").iter().map(|(_, _, phase)| *phase).collect();
    assert_eq!(phases, [Phase::Closed, Phase::Open, Phase::Closed]);
}

#[tokio::test(start_paused = true)]
async fn one_senders_crafted_mail_does_not_switch_an_engine_off() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |_| ()).await;
    fake.on_mail(
        |job| if memchr::memmem::find(&job.message.raw, b"crafted").is_some() { Step::Fail(Failure::Protocol("?".into())) } else { Step::Honest },
    );
    let probes = fake.probes();
    for n in 0..9 {
        find(&engines, &job_of(mail("fine"), n, n)).await;
    }
    for _ in 0..40 {
        find(&engines, &job_of(mail("crafted"), 3, 3)).await;
    }
    sleep(Duration::from_millis(10)).await;
    assert_eq!((fake.probes(), status(&engines).breaker), (probes, "closed"), "one tenant and one network do not even start a probe");
    for n in 0..40 {
        find(&engines, &job_of(mail("crafted"), n, n)).await;
        tokio::task::yield_now().await;
    }
    sleep(Duration::from_millis(10)).await;
    assert!(fake.probes() > probes, "over many it starts one");
    assert_eq!((status(&engines).breaker, find(&engines, &job(mail("fine"))).await), ("closed", Finding::Clean), "and the probe decides");
}

#[tokio::test(start_paused = true)]
async fn a_periodic_probe_finds_an_engine_that_went_blind() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |_| ()).await;
    fake.on_probe(|_| Step::Find(Finding::Clean));
    sleep(Duration::from_secs(301)).await;
    assert_eq!(status(&engines).breaker, "open");
    let why = status(&engines).last_probe.and_then(|probe| probe.why).expect("a reason");
    assert_eq!(why, "it answered Clean to the known bad sample");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_does_not_outwait_the_breaker() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |part| {
        part.concurrency = 1;
        part.timeout = units::Duration::from_secs(400);
        part.breaker.failures = 1;
    })
    .await;
    fake.on_mail(|_| Step::Hang);
    fake.on_probe(|_| Step::Find(Finding::Clean));
    let begin = Instant::now();
    let first = tokio::spawn({
        let engines = engines.clone();
        async move { engines.scan_all(&job(mail("1")), clock::monotonic_ms() + 900_000).await }
    });
    sleep(Duration::from_secs(1)).await;
    let second = engines.scan_all(&job(mail("2")), clock::monotonic_ms() + 900_000).await;
    assert_eq!(second[0].finding, Finding::Failed(Failure::BreakerOpen));
    assert!(begin.elapsed() < Duration::from_secs(302), "the periodic probe at 300 s cut it off: {:?}", begin.elapsed());
    assert_eq!(first.await.expect("no panic")[0].finding, Finding::Failed(Failure::Timeout));
}

/// An engine that dies of one content, and takes all that is in flight with it.
fn mortal(fake: &Arc<Fake>, how: Step) {
    fake.on_mail(move |job| {
        let deadly = memchr::memmem::find(&job.message.raw, b"deadly").is_some();
        Step::After(Duration::from_millis(10), Box::new(if deadly { how.clone() } else { Step::Honest }))
    });
}

#[tokio::test(start_paused = true)]
async fn who_kills_the_engine_alone_is_convicted_by_content() {
    for how in [Step::Die, Step::Panic] {
        let fake = Fake::new(EngineClass::AntiVirus);
        let (engines, _) = warm_one(&fake, |_| ()).await;
        mortal(&fake, how);
        let deadly = job_of(mail("deadly"), 1, 1);
        assert_eq!(find(&engines, &deadly).await, Finding::Unscannable(Unscannable::Convicted));
        assert_eq!(
            (fake.scans(), status(&engines).deaths, status(&engines).convictions, status(&engines).convicts),
            (2, 2, 1, 1),
            "once with others, once alone"
        );
        assert_eq!(find(&engines, &job_of(mail("deadly"), 2, 2)).await, Finding::Unscannable(Unscannable::Convicted), "from anybody");
        assert_eq!(fake.scans(), 2, "and the engine is not asked again");
        assert_eq!(find(&engines, &job(mail("fine"))).await, Finding::Clean);
        sleep(Duration::from_secs(24 * 3600)).await;
        assert_eq!(find(&engines, &deadly).await, Finding::Unscannable(Unscannable::Convicted));
        assert_eq!(fake.scans(), 5, "after 24 h it is tried again");
        fake.on_version(Ok("2"));
        sleep(Duration::from_secs(301)).await;
        assert_eq!((status(&engines).convicts, &*status(&engines).version), (0, "2"), "another version gets another chance");
    }
}

#[tokio::test(start_paused = true)]
async fn the_innocent_that_were_in_flight_are_scanned_alone_and_acquitted() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |_| ()).await;
    // The first death takes everything in flight along; afterwards only the deadly one kills.
    let calls = Arc::new(AtomicUsize::new(0));
    let (alone, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (calls2, alone2, most2) = (calls.clone(), alone.clone(), most.clone());
    fake.on_mail(move |job| {
        let deadly = memchr::memmem::find(&job.message.raw, b"deadly").is_some();
        if calls2.fetch_add(1, Ordering::SeqCst) >= 4 {
            most2.fetch_max(alone2.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        }
        let step = if deadly || calls2.load(Ordering::SeqCst) <= 4 { Step::Die } else { Step::Honest };
        Step::After(Duration::from_millis(10), Box::new(step))
    });
    let scans = ["deadly", "a", "b", "c"].map(|text| {
        let (engines, alone) = (engines.clone(), alone.clone());
        async move {
            let opinions = scan(&engines, &job(mail(text))).await;
            alone.fetch_sub(1, Ordering::SeqCst);
            opinions[0].finding.clone()
        }
    });
    let findings = futures_util::future::join_all(scans).await;
    assert_eq!(findings[0], Finding::Unscannable(Unscannable::Convicted));
    assert!(findings.iter().skip(1).all(|finding| *finding == Finding::Clean), "{findings:?}");
    assert_eq!((calls.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (8, 1), "each once more, one at a time");
    assert_eq!((status(&engines).suspects, status(&engines).convicts), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_suspect_of_an_engine_that_stays_away_fails_soon_and_is_scanned_alone_later() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |_| ()).await;
    mortal(&fake, Step::Die);
    fake.on_version(Err(Failure::Unreachable("refused".into())));
    let begin = Instant::now();
    assert_eq!(find(&engines, &job(mail("deadly"))).await, Finding::Failed(Failure::Unreachable("refused".into())));
    assert!(begin.elapsed() < Duration::from_millis(3100), "{:?}", begin.elapsed());
    assert_eq!((status(&engines).suspects, fake.scans()), (1, 1));
    fake.on_version(Ok("1"));
    assert_eq!(find(&engines, &job(mail("deadly"))).await, Finding::Unscannable(Unscannable::Convicted));
    assert_eq!(fake.scans(), 2, "one death more, not two");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_dies_of_everything_convicts_nobody() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |_| ()).await;
    fake.on_mail(|_| Step::Die);
    fake.on_probe(|_| Step::Die);
    for n in 0..5 {
        find(&engines, &job_of(mail(&n.to_string()), n, n)).await;
    }
    until("open", || status(&engines).breaker == "open").await;
    fake.on_mail(|_| Step::Honest);
    fake.on_probe(|_| Step::Honest);
    warm(&engines, 1, 0).await;
    for n in 0..5 {
        assert_eq!(find(&engines, &job_of(mail(&n.to_string()), n, n)).await, Finding::Clean, "{n}: it was not the mail's fault");
    }
}

#[tokio::test(start_paused = true)]
async fn convicted_mail_sent_again_and_again_says_nothing_of_the_engine() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |_| ()).await;
    mortal(&fake, Step::Die);
    find(&engines, &job(mail("deadly"))).await;
    let (scans, probes) = (status(&engines).scans, fake.probes());
    for n in 0..40 {
        find(&engines, &job_of(mail("deadly"), n, n)).await;
    }
    sleep(Duration::from_millis(10)).await;
    assert_eq!((status(&engines).scans, fake.probes()), (scans, probes));
}

#[tokio::test(start_paused = true)]
async fn another_version_is_probed_at_once_but_not_without_end() {
    let fake = Fake::new(EngineClass::AntiVirus);
    let (engines, _) = warm_one(&fake, |_| ()).await;
    let mut version = 0;
    fake.on_mail(move |_| {
        version += 1;
        Step::Answer(Answer { finding: Finding::Clean, evidence: vec![], version: Some(version.to_string().into()) })
    });
    sleep(Duration::from_secs(61)).await;
    let probes = fake.probes();
    for n in 1..=100 {
        assert_eq!(&*scan(&engines, &job(mail("x"))).await[0].version, n.to_string());
        tokio::task::yield_now().await;
    }
    sleep(Duration::from_millis(10)).await;
    assert_eq!(fake.probes(), probes + 2, "one probe of two samples");
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_keeps_what_did_not_change() {
    let (virus, spam) = (Fake::new(EngineClass::AntiVirus), Fake::new(EngineClass::AntiSpam));
    let seen = Arc::new(Seen::default());
    let options = fakes(&[("av", &virus), ("as", &spam)], &seen);
    let engines = Engines::connect(&[part("av", EngineClass::AntiVirus)], options).expect("a list without mistakes");
    warm(&engines, 1, 0).await;
    find(&engines, &job(mail("x"))).await;
    let probes = virus.probes();
    let mut changed = part("av", EngineClass::AntiVirus);
    changed.mode = EngineMode::Shadow;
    changed.concurrency = 2;
    changed.weight_percent = 70;
    engines.reconfigure(&[part("as", EngineClass::AntiSpam), changed]).expect("a list without mistakes");
    warm(&engines, 0, 1).await;
    let both = engines.status();
    assert_eq!((&*both[1].name, both[1].mode, both[1].breaker, both[1].scans), ("av", EngineMode::Shadow, "closed", 1));
    assert_eq!(virus.probes(), probes, "it stays warm");
    let twice = engines.reconfigure(&[part("as", EngineClass::AntiSpam), part("as", EngineClass::AntiSpam)]);
    assert_eq!(twice, Err(ConnectError::Duplicate { engine: "as".into() }));
    assert_eq!(engines.status().len(), 2, "a list with a mistake changes nothing");
    assert!(seen.retired.lock().expect("no panic while held").is_empty(), "what was kept was not taken away");
    engines.reconfigure(&[part("as", EngineClass::AntiSpam)]).expect("a list without mistakes");
    assert_eq!(*seen.retired.lock().expect("no panic while held"), ["av"]);
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(virus.probes(), probes, "an engine that is gone is not probed");
    let mut disabled = part("as", EngineClass::AntiSpam);
    disabled.mode = EngineMode::Disabled;
    engines.reconfigure(&[disabled]).expect("a list without mistakes");
    assert_eq!(*seen.retired.lock().expect("no panic while held"), ["av", "as"]);
}

#[tokio::test]
async fn lists_with_mistakes() {
    let options = || Options::new(sekimori_mta::io::engine::Builtins::default(), None);
    let with = |protocol, class| EnginePart { protocol, ..part("e", class) };
    let cases = [
        (
            with(EngineProtocol::Clamd, EngineClass::AntiVirus),
            "engine 'e': Clamd needs an address (host:port) or a socket path; a Builtin engine has neither",
        ),
        (with(EngineProtocol::Icap, EngineClass::AntiVirus), "engine 'e': this build does not speak Icap; use Clamd, Rspamd or Builtin"),
        (
            with(EngineProtocol::Builtin, EngineClass::Sandbox),
            "engine 'e': there is no built-in engine of class Sandbox here; use AntiVirus or AntiSpam",
        ),
    ];
    for (part, text) in cases {
        assert_eq!(Engines::connect(&[part], options()).err().map(|e| e.to_string()).as_deref(), Some(text));
    }
    let many: Vec<EnginePart> = (0..33).map(|n| part(&n.to_string(), EngineClass::AntiVirus)).collect();
    assert_eq!(Engines::connect(&many, options()).err(), Some(ConnectError::TooMany { count: 33 }));
}

/// The guard must cost nothing that shows at 64 sessions: an unoptimised build still gives a message to four engines in well under a tenth of a millisecond.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guards_own_cost() {
    const SESSIONS: u32 = 64;
    const MAILS: u32 = 100;
    let engine =
        [Fake::new(EngineClass::AntiVirus), Fake::new(EngineClass::AntiVirus), Fake::new(EngineClass::AntiSpam), Fake::new(EngineClass::AntiSpam)];
    engine.iter().for_each(|fake| fake.on_mail(|_| Step::Find(Finding::Clean)));
    let parts: Vec<EnginePart> = ["a", "b", "c", "d"]
        .iter()
        .zip([EngineClass::AntiVirus, EngineClass::AntiVirus, EngineClass::AntiSpam, EngineClass::AntiSpam])
        .map(|(name, class)| EnginePart { concurrency: 32, ..part(name, class) })
        .collect();
    let seen = Arc::new(Seen::default());
    let options = Options { observer: None, ..fakes(&[("a", &engine[0]), ("b", &engine[1]), ("c", &engine[2]), ("d", &engine[3])], &seen) };
    let engines = Engines::connect(&parts, options).expect("a list without mistakes");
    warm(&engines, 2, 2).await;
    let message = job(vec![b'x'; 50_000]);
    let begin = Instant::now();
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|_| {
            let (engines, message) = (engines.clone(), message.clone());
            tokio::spawn(async move {
                for _ in 0..MAILS {
                    let opinions = scan(&engines, &message).await;
                    assert!(opinions.iter().all(|o| o.finding == Finding::Clean));
                }
            })
        })
        .collect();
    for session in sessions {
        session.await.expect("no panic");
    }
    let each = begin.elapsed() / (SESSIONS * MAILS);
    println!("{each:?} per message through four guards, {SESSIONS} sessions, unoptimised build");
    assert!(each < Duration::from_millis(1), "{each:?} per message");
}
