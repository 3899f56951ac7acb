//! What 100,000 tenants cost the part that judges them: memory, time for all, time for one more. Prints figures, decides nothing.
//!
//! `cargo run -p sekimori-operator --example tenants_bench [-- TENANTS]`; say which profile it was built with.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;

use sekimori_crds::compile::Lookup;
use sekimori_crds::snapshot::{Part, part_json};
use sekimori_crds::v1alpha1::{GatewayFleet, TenantDomain};
use sekimori_operator::ownership::{Ledger, Proof, Tenant, overlap};
use sekimori_operator::tenants::{Against, Judged, Known, Names, judge, ownership};
use serde_json::json;

/// Resident memory of this process, in MiB.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

fn object(number: usize) -> Result<TenantDomain, serde_json::Error> {
    serde_json::from_value(json!({
        "apiVersion": "sekimori.dev/v1alpha1", "kind": "TenantDomain",
        "metadata": {
            "name": format!("tenant-{number}"), "namespace": format!("customer-{}", number / 10), "generation": 1,
            "uid": format!("00000000-0000-4000-8000-{number:012}"), "resourceVersion": number.to_string(),
            "labels": {"app.kubernetes.io/managed-by": "billing"},
        },
        "spec": {
            "fleetRef": {"name": "inbound", "namespace": "mail"}, "domains": [format!("t{number}.example.com"), format!("t{number}.example.net")],
            "routes": [
                {"name": "main", "host": format!("mail.t{number}.example.com"), "priority": 10},
                {"name": "other", "host": format!("backup.t{number}.example.com"), "priority": 20},
            ],
            "limits": {"messagesPerHour": 5000},
        },
    }))
}

struct Bench {
    fleet: GatewayFleet,
    ledger: Ledger,
    names: Names,
    tenants: BTreeMap<Tenant, Known>,
}

impl Bench {
    fn take(&mut self, object: TenantDomain) -> Tenant {
        let tenant = Tenant::new(object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default());
        let known = Known::new(object, &mut self.names, self.tenants.get(&tenant), 0);
        self.tenants.insert(tenant.clone(), known);
        tenant
    }

    fn judge(&mut self, tenant: &Tenant) -> Option<Judged> {
        let known = self.tenants.get(tenant)?;
        let none = BTreeMap::new();
        let against = Against { fleet: Lookup::Found(&self.fleet), policy: Lookup::Missing { near: None }, namespace_labels: &none };
        Some(judge(tenant, known, &against, Some(&mut self.ledger), |_| Proof::Given, 1_000))
    }

    /// Judges all, and says how many parts came of it and how long they are together.
    fn judge_all(&mut self) -> (usize, usize) {
        let all: Vec<Tenant> = self.tenants.keys().cloned().collect();
        let parts = all.iter().filter_map(|tenant| self.judge(tenant)?.part).map(|part| part_json(&Part::Tenant(Box::new(part))).len());
        parts.fold((0, 0), |(count, bytes), length| (count + 1, bytes + length))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let fleet: GatewayFleet = serde_json::from_value(json!({
        "apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet", "metadata": {"name": "inbound", "namespace": "mail"},
        "spec": {"hostname": "mx.example.net", "listeners": [], "tenants": {"ownership": "Trust", "namespaces": {"from": "All"}}},
    }))?;
    let ledger = Ledger::new(overlap(ownership(&fleet)), []);
    let mut bench = Bench { fleet, ledger, names: Names::default(), tenants: BTreeMap::new() };
    let profile = if cfg!(debug_assertions) { "with debug assertions" } else { "without debug assertions" };
    let empty = resident_mib();
    let begun = Instant::now();
    for number in 0..count {
        let object = object(number)?;
        bench.take(object);
    }
    let (indexed, took) = (resident_mib(), begun.elapsed());
    println!("{profile}, {count} tenants with two domains each");
    println!("index:            {:.0} MiB more than the {empty:.0} MiB before, {took:.1?} with the making of the objects", indexed - empty);
    for round in ["first judgement", "judged again"] {
        let begun = Instant::now();
        let (parts, bytes) = bench.judge_all();
        let seconds = begun.elapsed().as_secs_f64();
        println!("{round}:  {seconds:.2} s, {:.0} a second, {parts} parts of {} bytes on average", count as f64 / seconds, bytes / parts.max(1));
    }
    println!("index and claims: {:.0} MiB more than before", resident_mib() - empty);
    let mut slowest = std::time::Duration::ZERO;
    for number in 0..100.min(count) {
        let mut changed = object(number)?;
        changed.metadata.generation = Some(2);
        let begun = Instant::now();
        let tenant = bench.take(changed);
        let part = bench.judge(&tenant).and_then(|judged| judged.part).ok_or("a changed tenant has a part")?;
        let length = part_json(&Part::Tenant(Box::new(part))).len();
        slowest = slowest.max(begun.elapsed());
        std::hint::black_box(length);
    }
    println!("one change:       {slowest:.1?} from the object to the part, the slowest of 100");
    Ok(())
}
