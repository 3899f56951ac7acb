//! An API server that is slow or answers badly, and an operator that dies at a write or in the middle of a change: by a proxy between the two. Mail flows
//! meanwhile, every 250 arrives, and no gateway is touched.

mod behind;
mod clocks;
mod delta;
mod writes;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sekimori_e2e::cluster::proxy::Break;
use sekimori_e2e::cluster::proxy::rules::{Effect, Matching, Rule, Verb};

use crate::support::{Outcome, Scenario, Stage, eventually, own_only};
use behind::Behind;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "api_faults::answers_409_410_429_503", run: answers_409_410_429_503 },
    Scenario { name: "api_faults::slow", run: slow },
    Scenario { name: "api_faults::killed_at_each_write", run: writes::killed_at_each_write },
    Scenario { name: "api_faults::leader_lost_in_mid_delta", run: delta::leader_lost_in_mid_delta },
    Scenario { name: "api_faults::clocks_apart", run: clocks::clocks_apart },
];

/// A scenario behind the proxy; if it fails, it shows what one would look at first.
fn on(stage: &Stage, namespace: &str, scenario: impl FnOnce(&Behind<'_>) -> anyhow::Result<()>) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let behind = Behind::begin(stage, namespace)?;
    scenario(&behind).with_context(|| behind.explain())?;
    behind.end()?;
    Ok(Outcome::Passed)
}

/// A fault for a while.
struct Fault {
    what: &'static str,
    matching: Matching,
    effect: Effect,
    /// What becomes of watches that are open when it begins.
    breaks: Option<Break>,
    seconds: u64,
    /// The Lease cannot be renewed: the leader must end, and another one lead.
    takes_the_lease: bool,
}

/// Nobody asks more often than this while he is refused: requests a second of both operators, on average.
const RATE_MAX: f64 = 25.0;
/// A tenant that was applied meanwhile is served so soon after the fault, in seconds: a watch rests four seconds at most, and a status that could not be
/// written is written again after five.
const PROGRAMMED_WITHIN: u64 = 12;
/// The same if the leader had to end: the kubelet may wait for ten seconds before it starts the container again, and for twenty the next time.
const PROGRAMMED_BY_ANOTHER_WITHIN: u64 = 30;

fn faults() -> Vec<Fault> {
    let but_the_lease = |matching: Matching| matching.except(&["leases"]);
    let writes = || but_the_lease(Matching::verbs(Verb::WRITES));
    let follows = || Matching::verbs(Verb::FOLLOWS);
    let fault = |what, matching, effect, breaks| Fault { what, matching, effect, breaks, seconds: 9, takes_the_lease: false };
    vec![
        fault("409 to every write", writes(), Effect::Answer(409), None),
        fault("410 to every list and watch", follows(), Effect::Answer(410), Some(Break::Cut)),
        fault("410 within the streams of watches", Matching::verbs(&[Verb::Watch]), Effect::ExpireStream, Some(Break::Expire)),
        fault("429 to everything", but_the_lease(Matching::all()), Effect::Answer(429), Some(Break::Cut)),
        // Long enough that a pause which doubles with every refusal would be felt.
        Fault { seconds: 45, ..fault("503 to everything but the Lease", but_the_lease(Matching::all()), Effect::Answer(503), Some(Break::Cut)) },
        Fault {
            takes_the_lease: true,
            seconds: 18,
            ..fault("409 to every write, the Lease's too", Matching::verbs(Verb::WRITES), Effect::Answer(409), None)
        },
        Fault { takes_the_lease: true, seconds: 18, ..fault("503 to everything", Matching::all(), Effect::Answer(503), Some(Break::Cut)) },
    ]
}

fn answers_409_410_429_503(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, "answers", |behind| {
        for (number, fault) in faults().iter().enumerate() {
            meets(behind, fault, number).with_context(|| fault.what)?;
        }
        Ok(())
    })
}

fn meets(behind: &Behind<'_>, fault: &Fault, number: usize) -> anyhow::Result<()> {
    let (lease, operators) = (behind.lease()?, behind.operators()?);
    let asked = || behind.proxy.counts().values().sum::<u64>();
    let (name, before) = (format!("during-{number}"), asked());
    behind.proxy.set(vec![Rule::always(fault.matching.clone(), fault.effect)]);
    if let Some(how) = fault.breaks {
        behind.proxy.break_watches(how);
    }
    behind.steady.namespace.apply(&behind.steady.tenant(&name, &format!("{name}.example"), ""))?;
    behind.mail_flows(10, 20)?;
    std::thread::sleep(Duration::from_secs(fault.seconds));
    let rate = (asked() - before) as f64 / fault.seconds as f64;
    let met: u64 = behind.proxy.tallies().iter().map(|tally| tally.met).sum();
    behind.proxy.clear();
    let ended = Instant::now();
    let within = if fault.takes_the_lease { PROGRAMMED_BY_ANOTHER_WITHIN } else { PROGRAMMED_WITHIN };
    let programmed = behind.steady.namespace.wait(&format!("tenantdomain/{name}"), "condition=Programmed", within);
    programmed.with_context(|| format!("a tenant applied during {}; the proxy counted {:?}", fault.what, behind.proxy.counts()))?;
    let programmed = ended.elapsed().as_secs_f64();
    behind.each_gateway_takes(&format!("user@{name}.example"))?;
    behind.is_well(40)?;
    let (well, now) = (ended.elapsed().as_secs_f64(), behind.lease()?);
    println!(
        "  {} for {} s ({met} met it, {rate:.1} requests a second): a tenant applied meanwhile is Programmed {programmed:.1} s after its end, all well after {well:.1} s; epoch {} -> {}",
        fault.what, fault.seconds, lease.epoch, now.epoch
    );
    ensure!(met > 0, "nobody met it");
    ensure!(rate <= RATE_MAX, "{rate:.1} requests a second");
    behind.is_untouched()?;
    if fault.takes_the_lease {
        ensure!(now.epoch > lease.epoch, "the Lease could not be renewed, and nobody else took it: {lease:?}, then {now:?}");
    } else {
        ensure!(now == lease, "the Lease changed hands: {lease:?}, then {now:?}");
        ensure!(behind.operators()? == operators, "an operator ended: {operators:?}, then {:?}", behind.operators()?);
    }
    Ok(())
}

/// It lasts at least so long, so that the Lease is renewed under it.
const SLOW_FOR: Duration = Duration::from_secs(30);

fn slow(stage: &Stage) -> anyhow::Result<Outcome> {
    on(stage, "slow", |behind| {
        for (delay, within) in [(Duration::from_millis(1500), 30), (Duration::from_secs(5), 60)] {
            let (lease, operators) = (behind.lease()?, behind.operators()?);
            behind.proxy.set(vec![Rule::always(Matching::all(), Effect::Delay(delay))]);
            let name = format!("slow-{}", delay.as_millis());
            behind.steady.namespace.apply(&behind.steady.tenant(&name, &format!("{name}.example"), ""))?;
            let started = Instant::now();
            let mut leaders_max = 0;
            eventually("a tenant is Programmed by a slow API server", within, || {
                leaders_max = leaders_max.max(behind.leading()?.len());
                let condition = crate::installation::condition(&behind.steady.namespace, &format!("tenantdomain/{name}"), "Programmed")?;
                ensure!(condition.status == "True", "{condition:?}");
                Ok(())
            })?;
            let programmed = started.elapsed().as_secs_f64();
            while started.elapsed() < SLOW_FOR {
                leaders_max = leaders_max.max(behind.leading()?.len());
                std::thread::sleep(Duration::from_millis(500));
            }
            behind.mail_flows(10, 20)?;
            behind.proxy.clear();
            behind.is_well(40)?;
            behind.each_gateway_takes(&format!("user@{name}.example"))?;
            let now = behind.lease()?;
            println!(
                "  every answer {:.1} s late: a tenant is Programmed after {programmed:.1} s; epoch {} -> {}, {leaders_max} led at once at most",
                delay.as_secs_f64(),
                lease.epoch,
                now.epoch
            );
            ensure!(leaders_max <= 1, "{leaders_max} operators led at once");
            ensure!(now == lease, "the Lease changed hands: {lease:?}, then {now:?}");
            ensure!(behind.operators()? == operators, "an operator ended: {operators:?}, then {:?}", behind.operators()?);
            behind.is_untouched()?;
        }
        Ok(())
    })
}
