//! The openspf suite for RFC 7208 as a gate. What differs must be listed, with its reason, in `rfc7208-exceptions.txt`, and must differ exactly so.

use std::collections::BTreeMap;
use std::path::Path;

use sekimori_mta::authentication::Spf;
use sekimori_mta::io::auth::{Identity, check_host};
use sekimori_mta::io::dns::Fake;
use serde::Deserialize;
use serde_yaml::Value;

#[derive(Deserialize)]
struct Scenario {
    tests: BTreeMap<String, Case>,
    zonedata: BTreeMap<String, Vec<Value>>,
}

#[derive(Deserialize)]
struct Case {
    helo: String,
    host: String,
    mailfrom: String,
    result: Value,
}

fn data(name: &str) -> String {
    let path = Path::new("tests/data/auth").join(name);
    std::fs::read_to_string(path).expect("test data is there")
}

fn text(value: &Value) -> Vec<u8> {
    match value {
        Value::Sequence(parts) => parts.iter().flat_map(text).collect(),
        Value::String(text) => text.chars().flat_map(|c| if (c as u32) < 256 { vec![c as u8] } else { c.to_string().into_bytes() }).collect(),
        other => unreachable!("not a text: {other:?}"),
    }
}

/// The suite's own rules: SPF entries count as TXT unless the name has TXT entries; `TXT: NONE` blocks even that.
fn zone(zonedata: &BTreeMap<String, Vec<Value>>) -> Fake {
    let mut fake = Fake::new();
    for (name, entries) in zonedata {
        let entry_of = |kind: &str| entries.iter().any(|entry| entry.get(kind).is_some());
        for entry in entries {
            if entry.as_str() == Some("TIMEOUT") {
                fake = fake.failing(name);
                continue;
            }
            for (kind, value) in entry.as_mapping().expect("an entry is a mapping or TIMEOUT") {
                let word = value.as_str().unwrap_or_default();
                fake = match kind.as_str().expect("a type") {
                    "SPF" if entry_of("TXT") => fake,
                    "TXT" | "SPF" if word == "NONE" => fake,
                    "TXT" | "SPF" if word == "TIMEOUT" => fake.failing(name),
                    "TXT" | "SPF" => fake.txt(name, text(value)),
                    "A" => fake.a(name, word.parse().expect("IPv4")),
                    "AAAA" => fake.aaaa(name, word.parse().expect("IPv6")),
                    "MX" => fake.mx(
                        name,
                        value.get(0).and_then(Value::as_u64).expect("a preference") as u16,
                        value.get(1).and_then(Value::as_str).expect("a host"),
                    ),
                    "PTR" => fake.ptr_at(name, word),
                    "CNAME" => fake.cname(name, word),
                    other => unreachable!("unknown type {other}"),
                };
            }
        }
    }
    fake
}

fn word(spf: Spf) -> &'static str {
    match spf {
        Spf::Pass => "pass",
        Spf::Fail => "fail",
        Spf::SoftFail => "softfail",
        Spf::Neutral => "neutral",
        Spf::None => "none",
        Spf::TempError => "temperror",
        Spf::PermError => "permerror",
    }
}

/// Where a widely used library lets mail pass that must not, and fails what must pass. These may never be excepted.
const FALSE_PASSES: &[&str] = &[
    "cidr6-0-ip4",
    "cidr6-ip4",
    "a-cidr6-0-ip4mapped",
    "mx-cidr6-0-ip4mapped",
    "exists-ip6only",
    "badip4",
    "control-char-policy",
    "cidr4-33",
    "cidr4-032",
    "multitxt1",
    "multitxt2",
];
const FALSE_FAILS: &[&str] = &["ptr-match-implicit", "ptr-match-ip6"];

#[tokio::test]
async fn openspf_suite() {
    let mut exceptions: BTreeMap<String, String> = data("rfc7208-exceptions.txt")
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split_whitespace();
            (words.next().expect("a test").to_owned(), words.next().expect("our result").to_owned())
        })
        .collect();
    let (mut count, mut named, mut wrong) = (0, 0, vec![]);
    for document in serde_yaml::Deserializer::from_str(&data("rfc7208-tests.yml")) {
        let scenario = Scenario::deserialize(document).expect("a scenario");
        let fake = zone(&scenario.zonedata);
        for (name, case) in &scenario.tests {
            count += 1;
            let (local, domain) = case.mailfrom.rsplit_once('@').unwrap_or(("postmaster", &case.mailfrom));
            let domain = if case.mailfrom.is_empty() { &case.helo } else { domain };
            let client = case.host.parse().expect("an address");
            let found = word(check_host(&fake, Identity { client, helo: &case.helo, local, domain }).await);
            let expected: Vec<&str> = match &case.result {
                Value::Sequence(all) => all.iter().filter_map(Value::as_str).collect(),
                one => one.as_str().into_iter().collect(),
            };
            if FALSE_PASSES.contains(&name.as_str()) {
                named += 1;
                assert_ne!(found, "pass", "{name}");
            }
            if FALSE_FAILS.contains(&name.as_str()) {
                named += 1;
                assert_eq!(found, "pass", "{name}");
            }
            match exceptions.remove(name) {
                Some(listed) if listed == found && !expected.contains(&found) => {}
                Some(listed) => wrong.push(format!("{name}: listed with {listed}, but found {found}, expected {expected:?}")),
                None if expected.contains(&found) => {}
                None => wrong.push(format!("{name}: found {found}, expected {expected:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(exceptions.is_empty(), "listed, but not in the suite: {exceptions:?}");
    assert_eq!((count, named), (203, FALSE_PASSES.len() + FALSE_FAILS.len()));
}
