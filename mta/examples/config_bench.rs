//! Measures what the configuration of many tenants costs a gateway in a pod. Not part of the product.
//!
//! `cargo run --release -p sekimori-mta --example config_bench -- [TENANTS]` (default 100,000): a whole snapshot, one tenant changed, the last good
//! configuration written, one change added to its journal, and all of it loaded again, sealed under a key.

use std::sync::Arc;

use anyhow::Context as _;
use sekimori_crds::compile::defaults;
use sekimori_crds::snapshot::{ClassMinimum, FleetPart, ListEntry, Part, RollingHash, RoutePart, TenantPart, part_json, part_words};
use sekimori_crds::vocabulary::{DeliveryMode, Enforcement, ListEntryType, RouteLookup, RouteTls, TenantState, VerdictHeader};
use sekimori_mta::config::{Held, Place};
use sekimori_mta::io::clock::monotonic_us;
use sekimori_mta::io::last_good::{Delta, Found, Keeper};

fn fleet() -> anyhow::Result<FleetPart> {
    Ok(FleetPart {
        namespace: "mail".into(),
        name: "inbound".into(),
        hostname: "mx.example.net".into(),
        listeners: vec![],
        engines: vec![],
        resolver_addresses: vec![],
        egress_allowed_networks: vec![],
        quarantine_retention: "720h".parse().map_err(anyhow::Error::msg)?,
        startup_max_wait: "5m".parse().map_err(anyhow::Error::msg)?,
        startup_minimum_engines: ClassMinimum { anti_virus: 1, anti_spam: 1 },
        verdict_header: VerdictHeader::Summary,
        requires: [].into(),
    })
}

/// Two domains, one route, a deny list of five.
fn tenant(number: usize, form: usize) -> (String, bytes::Bytes) {
    let name = format!("customer-{number}");
    let mut policy = defaults::policy();
    let entry = |n: usize| ListEntry { kind: ListEntryType::Domain, value: format!("bad-{n}.example") };
    policy.lists.deny = (form..form + 5).map(entry).collect();
    let route = RoutePart {
        name: "primary".into(),
        host: format!("mail.{name}.example"),
        lookup: RouteLookup::Address,
        port: 25,
        priority: 10,
        weight: 100,
        tls: RouteTls::Opportunistic,
    };
    let part = TenantPart {
        namespace: format!("team-{}", number % 500),
        name: name.clone(),
        domains: vec![format!("{name}.example"), format!("*.{name}.example")],
        state: TenantState::Active,
        suspended_since: None,
        enforcement: Enforcement::Enforce,
        routes: vec![route],
        delivery: DeliveryMode::InlineElseQueue,
        soft_bounce: false,
        messages_per_hour: Some(10_000),
        policy,
        requires: [].into(),
    };
    (format!("tenant/{}/{}", part.namespace, part.name), part_json(&Part::Tenant(Box::new(part))).into())
}

fn fine(_: &FleetPart) -> Result<(), String> {
    Ok(())
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began_us = monotonic_us();
    let done = work();
    println!("{what}: {:.3} ms", (monotonic_us() - began_us) as f64 / 1000.0);
    done
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next().and_then(|kib| kib.parse::<u64>().ok())).unwrap_or(0) / 1024
}

fn main() -> anyhow::Result<()> {
    let tenants: usize = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse()).context("TENANTS is a number")?;
    let mut parts = vec![("fleet".to_owned(), bytes::Bytes::from(part_json(&Part::Fleet(Box::new(fleet()?)))))];
    parts.extend((0..tenants).map(|number| tenant(number, 0)));
    let octets: usize = parts.iter().map(|(key, part)| key.len() + part.len()).sum();
    println!("{tenants} tenants, {} MiB of JSON", octets >> 20);
    let mut hash = RollingHash::default();
    parts.iter().for_each(|(key, part)| hash.add_words(part_words(key, part)));
    let before_mib = resident_mib();
    let place = Place { epoch: 1, number: 1, hash };
    let held = timed("whole snapshot", || {
        let mut way = Held::default().depart(true);
        parts.iter().for_each(|(key, part)| way.change(key, part, &fine));
        way.arrive(place).0
    });
    anyhow::ensure!(held.place() == Some(place) && held.tenants().len() == tenants, "it did not arrive");
    println!("memory of it: {} MiB", resident_mib() - before_mib);
    timed("the same again", || {
        let mut way = held.depart(true);
        parts.iter().for_each(|(key, part)| way.change(key, part, &fine));
        drop(way.arrive(place));
    });
    drop(parts);

    let dir = std::env::temp_dir().join(format!("config-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let key = dir.join("key");
    std::fs::write(&key, [7; 32])?;
    let (mut keeper, _) = Keeper::open(&dir, Some(&key), &fine);
    timed("base written and synced", || keeper.keep(None, &held))?;

    // Each changes one tenant, as the stream does; the configuration before is held, as a transaction holds it.
    let (rounds, mut now, mut slowest_us) = (1000, Arc::new(held), 0);
    let (mut in_force, mut kept_us, began_us) = (now.config()?, 0, monotonic_us());
    for round in 0..rounds {
        let (key, part) = tenant(round * 97 % tenants, round + 1);
        let one_us = monotonic_us();
        let mut hash = now.hash();
        now.words_of(&key).into_iter().for_each(|words| hash.remove_words(*words));
        hash.add_words(part_words(&key, &part));
        let to = Place { epoch: 1, number: 2 + round as u64, hash };
        let mut way = now.depart(false);
        way.change(&key, &part, &fine);
        now = Arc::new(way.arrive(to).0);
        in_force = now.config()?;
        slowest_us = slowest_us.max(monotonic_us() - one_us);
        let keep_us = monotonic_us();
        keeper.keep(Some(&Delta { to: Some(to), changes: vec![(key, part)], fleet_refused: None }), &now)?;
        kept_us += monotonic_us() - keep_us;
    }
    let all_us = monotonic_us() - began_us - kept_us;
    println!("one tenant changed: {} µs, the slowest {slowest_us} µs; to the journal {} µs", all_us / rounds as u64, kept_us / rounds as u64);
    anyhow::ensure!(in_force.hash == now.hash(), "the last one is not in force");
    let (base, journal) = keeper.bytes();
    println!("base {} MiB, journal of {rounds} changes {} KiB", base >> 20, journal >> 10);
    drop((in_force, keeper));

    let found = timed("loaded: base and journal", || Keeper::open(&dir, Some(&key), &fine).1);
    let Found::Held(loaded) = found else { anyhow::bail!("not found again: {found:?}") };
    anyhow::ensure!(loaded.place() == now.place(), "another place than was kept");
    timed("dropped", || drop(loaded));
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
