use proptest::prelude::*;
use sekimori_crds::compile::Claims;
use sekimori_crds::snapshot::PartKey;
use sekimori_crds::v1alpha1::{DomainGrant, DomainGrantSpec};

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn tenant(name: &str) -> Tenant {
    Tenant::new("mail", name)
}

fn given(domains: &[&str]) -> Vec<(String, Proof)> {
    domains.iter().map(|domain| ((*domain).to_owned(), Proof::Given)).collect()
}

fn held(claims: &[Claim]) -> Vec<bool> {
    claims.iter().map(|claim| claim.verdict == Verdict::Held).collect()
}

#[test]
fn the_first_accepted_claim_keeps_it_until_72_hours_after_its_tenant() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    assert_eq!(held(&ledger.claim(&tenant("one"), &given(&["example.com"]), 0)), [true]);
    let rival = ledger.claim(&tenant("two"), &given(&["example.com"]), 1);
    assert_eq!(rival[0].verdict, Verdict::Conflict { holder: tenant("one").into(), by: "example.com".into(), free_at_ms: None });
    ledger.gone(&tenant("one"), false, HOUR_MS);
    let rival = ledger.claim(&tenant("two"), &given(&["example.com"]), 73 * HOUR_MS - 1);
    assert_eq!(rival[0].verdict, Verdict::Conflict { holder: tenant("one").into(), by: "example.com".into(), free_at_ms: Some(73 * HOUR_MS) });
    assert_eq!(held(&ledger.claim(&tenant("two"), &given(&["example.com"]), 73 * HOUR_MS)), [true]);
}

#[test]
fn a_tenant_that_comes_back_has_not_lost_its_place() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 0);
    ledger.gone(&tenant("one"), false, HOUR_MS);
    ledger.gone(&tenant("one"), false, 50 * HOUR_MS);
    assert_eq!(ledger.next_expiry_ms(), Some(73 * HOUR_MS), "a second look does not start the clock again");
    assert_eq!(held(&ledger.claim(&tenant("one"), &given(&["example.com"]), 60 * HOUR_MS)), [true]);
    assert_eq!(ledger.next_expiry_ms(), None);
    assert!(ledger.expire(1000 * HOUR_MS).is_empty());
    assert_eq!(ledger.record("example.com").map(|record| record.since_ms), Some(0));
}

#[test]
fn the_annotation_releases_at_once() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    ledger.claim(&tenant("one"), &given(&["example.com", "*.example.com"]), 0);
    ledger.gone(&tenant("one"), true, 1);
    assert_eq!(held(&ledger.claim(&tenant("two"), &given(&["example.com", "*.example.com"]), 1)), [true, true]);
}

#[test]
fn a_domain_taken_off_the_list_runs_out_alone() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    ledger.claim(&tenant("one"), &given(&["example.com", "example.net"]), 0);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 5);
    assert_eq!(ledger.expire(5 + RELEASE_AFTER_MS), ["example.net".into()]);
    assert!(ledger.record("example.com").is_some());
}

#[test]
fn a_grant_that_goes_starts_the_clock_and_one_that_comes_back_stops_it() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 0);
    let missing = [("example.com".to_owned(), Proof::Missing("no grant".into()))];
    assert_eq!(ledger.claim(&tenant("one"), &missing, 10)[0].verdict, Verdict::Unproved("no grant".into()));
    assert_eq!(held(&ledger.claim(&tenant("two"), &given(&["example.com"]), 20)), [false]);
    assert_eq!(held(&ledger.claim(&tenant("one"), &given(&["example.com"]), 30)), [true]);
    ledger.claim(&tenant("one"), &missing, 40);
    assert_eq!(held(&ledger.claim(&tenant("two"), &given(&["example.com"]), 40 + RELEASE_AFTER_MS)), [true]);
}

#[test]
fn a_dns_failure_revokes_nothing_and_gives_nothing() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    let unclear = |domain: &str| [(domain.to_owned(), Proof::Unclear("SERVFAIL".into()))];
    assert_eq!(held(&ledger.claim(&tenant("one"), &unclear("example.com"), 0)), [false]);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 1);
    assert_eq!(held(&ledger.claim(&tenant("one"), &unclear("example.com"), 2)), [true]);
    assert_eq!(ledger.next_expiry_ms(), None);
}

#[test]
fn overlapping_wildcards() {
    for (overlap, first, second, wins) in [
        (Overlap::FirstWins, "*.example.com", "*.a.example.com", false),
        (Overlap::FirstWins, "*.a.example.com", "*.example.com", false),
        (Overlap::FirstWins, "*.example.com", "a.example.com", true),
        (Overlap::FirstWins, "*.a.example.com", "*.b.example.com", true),
        (Overlap::MoreSpecificWins, "*.example.com", "*.a.example.com", true),
        (Overlap::MoreSpecificWins, "*.example.com", "*.example.com", false),
    ] {
        let mut ledger = Ledger::new(overlap, []);
        ledger.claim(&tenant("one"), &given(&[first]), 0);
        assert_eq!(held(&ledger.claim(&tenant("two"), &given(&[second]), 1)), [wins], "{overlap:?} {first} {second}");
        ledger.gone(&tenant("one"), true, 2);
        assert_eq!(held(&ledger.claim(&tenant("two"), &given(&[second]), 3)), [true], "free after release: {overlap:?} {first} {second}");
    }
}

#[test]
fn the_proof_is_bound_to_all_three_and_fixed_for_ever() {
    assert_eq!(
        proof_text("installation-1", "mail", "example.com"),
        "v=sekimori1; proof=xcu4ejjqg2thvlbzpvjymofkxboo2xjj4nxj5qnzjfxu7bowoq4a",
        "a changed text would ask every customer for a new record"
    );
    let texts = [
        proof_text("i", "mail", "example.com"),
        proof_text("j", "mail", "example.com"),
        proof_text("i", "other", "example.com"),
        proof_text("i", "mail", "*.example.com"),
    ];
    assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), texts.len());
    assert_eq!(proof_name("*.example.com"), "_sekimori.example.com");
    assert_eq!(proof_name("example.com"), "_sekimori.example.com");
}

#[test]
fn what_dns_says() {
    let text = proof_text("i", "mail", "example.com");
    let answer = |texts: &[&str]| TxtAnswer::Texts(texts.iter().map(|text| (*text).to_owned()).collect());
    let judged = |answer: &TxtAnswer| proved(answer, "i", "mail", "example.com");
    let loose = text.to_uppercase().replace("; ", ";") + ";";
    for given in [answer(&[&text]), answer(&["v=spf1 -all", &text]), answer(&[&loose])] {
        assert_eq!(judged(&given), Proof::Given, "{given:?}");
    }
    let other = proof_text("i", "rival", "example.com");
    for missing in [answer(&[]), answer(&["v=spf1 -all"]), answer(&[&other]), answer(&["v=sekimori1; proof="])] {
        assert!(matches!(judged(&missing), Proof::Missing(why) if why.contains("_sekimori.example.com") && why.contains(&text)), "{missing:?}");
    }
    assert!(matches!(judged(&TxtAnswer::Failed("timeout".into())), Proof::Unclear(why) if why.contains("timeout")));
}

#[test]
fn grants_say_who_may() {
    let spec = DomainGrantSpec { namespaces: vec!["mail".into()], domains: vec!["*.example.com".into()], relay_networks: vec![] };
    let grant = DomainGrant::new("g", spec);
    let grants = Grants::new([&grant]);
    assert_eq!(granted(&grants, "mail", "a.example.com"), Proof::Given);
    assert!(matches!(granted(&grants, "mail", "example.com"), Proof::Missing(why) if why.contains("DomainGrant")));
}

#[test]
fn a_shard_comes_back_as_it_was_and_a_damaged_one_is_refused() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    ledger.claim(&tenant("one"), &given(&["example.com", "*.example.net", "example.org"]), 7);
    ledger.gone(&tenant("one"), false, 9);
    let shards = ledger.take_dirty();
    assert!(!shards.is_empty() && ledger.take_dirty().is_empty());
    let records: Vec<Record> = shards.iter().flat_map(|shard| read_shard(&ledger.shard(*shard)).expect("our own text")).collect();
    let again = Ledger::new(Overlap::MoreSpecificWins, records);
    assert_eq!(again.records().collect::<Vec<_>>(), ledger.records().collect::<Vec<_>>());
    assert_eq!(again.next_expiry_ms(), ledger.next_expiry_ms());
    for (text, line) in
        [("{}", 1), ("\n\nnonsense", 3), ("{\"domain\":\"a.b\",\"holder\":{\"namespace\":\"n\",\"name\":\"x\"},\"sinceMs\":1,\"extra\":2}", 1)]
    {
        assert_eq!(read_shard(text).expect_err(text).line, line);
    }
    assert_eq!(shard_of("example.com"), 0xa3, "records are looked for where they were written");
}

#[test]
fn of_two_records_the_older_claim_counts() {
    let record =
        |name: &str, since_ms| Record { domain: "example.com".into(), holder: tenant(name).into(), since_ms, gone_since_ms: None, basis: None };
    for records in [[record("old", 1), record("new", 2)], [record("new", 2), record("old", 1)]] {
        let ledger = Ledger::new(Overlap::MoreSpecificWins, records);
        assert_eq!(ledger.record("example.com").map(|record| record.holder.name.as_str()), Some("old"));
        assert_eq!(ledger.records().count(), 1);
    }
}

#[test]
fn after_a_start_who_is_not_there_is_gone() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 0);
    ledger.claim(&tenant("two"), &given(&["example.net"]), 0);
    ledger.reconcile(&BTreeSet::from([tenant("two")]), 5);
    assert_eq!(ledger.expire(5 + RELEASE_AFTER_MS), ["example.com".into()]);
}

/// So many names that meet in one shard, as long as names may be.
fn meeting(count: usize) -> Vec<(String, Proof)> {
    let label = "a".repeat(60);
    let names = (0..).map(|number: u32| format!("g{number}.{label}.{label}.{label}.example.com"));
    names.filter(|name| shard_of(name) == 0).take(count).map(|name| (name, Proof::Given)).collect()
}

#[test]
fn a_shard_never_becomes_larger_than_can_be_written_and_one_namespace_leaves_room_for_others() {
    let names = meeting(2_800);
    let (first, others) = names.split_at(1_400);
    let now_ms = 1_764_000_000_000;
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    let greedy = Tenant::new("greedy", "one");
    let claims = ledger.claim(&greedy, first, now_ms);
    let refused: Vec<&Claim> = claims.iter().filter(|claim| claim.verdict != Verdict::Held).collect();
    assert!(!refused.is_empty() && refused.len() < 300, "{}", refused.len());
    assert!(matches!(&refused[0].verdict, Verdict::Unproved(why) if why.contains("450 KiB") && why.contains("release domains")), "{refused:?}");
    let (some, more) = others.split_at(600);
    assert!(held(&ledger.claim(&Tenant::new("other", "one"), some, now_ms)).iter().all(|held| *held), "there is room for others");
    let late = ledger.claim(&Tenant::new("late", "one"), more, now_ms);
    let last = late.last().map(|claim| &claim.verdict);
    assert!(matches!(last, Some(Verdict::Unproved(why)) if why.contains("900 KiB")), "{last:?}");
    for namespace in ["other", "late"] {
        ledger.gone(&Tenant::new(namespace, "one"), false, now_ms);
    }
    let text = ledger.shard(0);
    assert!(text.len() <= SHARD_BYTES_MAX && text.len() > SHARD_BYTES_MAX * 8 / 10, "{} octets", text.len());
    let again = Ledger::new(Overlap::MoreSpecificWins, read_shard(&text).expect("our own text"));
    assert_eq!(again.bytes, ledger.bytes);
    assert!(text.len() <= ledger.bytes[0], "no record is longer than it was counted");
    ledger.gone(&greedy, true, now_ms);
    let last = late.last().map(|claim| (claim.domain.clone(), Proof::Given)).expect("a claim");
    assert_eq!(held(&ledger.claim(&Tenant::new("new", "one"), &[last], now_ms)), [true], "released domains make room");
}

#[test]
fn another_way_to_prove_domains_loses_nothing_that_is_to_be_written() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    ledger.claim(&tenant("one"), &given(&["*.example.com", "example.com"]), 1);
    ledger.set_overlap(Overlap::FirstWins);
    assert_eq!(ledger.dirty, ["*.example.com", "example.com"].map(shard_of).into());
    assert!(ledger.is_fresh("example.com"));
    assert_eq!(held(&ledger.claim(&tenant("two"), &given(&["*.a.example.com"]), 2)), [false]);
    assert_eq!(ledger.below, Ledger::new(Overlap::FirstWins, ledger.records().cloned()).below);
    ledger.set_overlap(Overlap::MoreSpecificWins);
    assert_eq!(held(&ledger.claim(&tenant("two"), &given(&["*.a.example.com"]), 3)), [true]);
}

#[test]
fn what_is_written_is_fresh_no_more() {
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, []);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 1);
    ledger.written(shard_of("example.com").wrapping_add(1));
    assert!(ledger.is_fresh("example.com"));
    ledger.written(shard_of("example.com"));
    assert!(!ledger.is_fresh("example.com"));
    ledger.gone(&tenant("one"), false, 2);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 3);
    assert!(!ledger.is_fresh("example.com"), "it is recorded as its own all the time");
    ledger.gone(&tenant("one"), true, 4);
    ledger.claim(&tenant("two"), &given(&["example.com"]), 5);
    assert!(ledger.is_fresh("example.com"), "another one has it now");
}

#[test]
fn what_a_claim_rests_on_is_recorded() {
    let basis = |ledger: &Ledger| ledger.record("example.com").and_then(|record| record.basis);
    let old = r#"{"domain":"example.com","holder":{"namespace":"mail","name":"one"},"sinceMs":5}"#;
    let mut ledger = Ledger::new(Overlap::FirstWins, read_shard(old).expect("a record of before"));
    assert_eq!(basis(&ledger), None);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 6);
    assert_eq!(basis(&ledger), Some(Basis::Trust));
    let mut ledger = Ledger::new(Overlap::MoreSpecificWins, read_shard(&ledger.shard(shard_of("example.com"))).expect("our own text"));
    assert_eq!(basis(&ledger), Some(Basis::Trust));
    let unclear = [("example.com".to_owned(), Proof::Unclear("SERVFAIL".into()))];
    assert_eq!(held(&ledger.claim(&tenant("one"), &unclear, 7)), [true]);
    assert_eq!(basis(&ledger), Some(Basis::Trust), "it is not proved yet");
    ledger.take_dirty();
    ledger.claim(&tenant("one"), &given(&["example.com"]), 8);
    assert_eq!(basis(&ledger), Some(Basis::Proof));
    assert_eq!(ledger.take_dirty(), [shard_of("example.com")].into());
    ledger.set_overlap(Overlap::FirstWins);
    ledger.claim(&tenant("one"), &given(&["example.com"]), 9);
    assert_eq!(basis(&ledger), Some(Basis::Proof), "trust takes no proof away");
}

/// A small world of domains, so that they meet.
fn domain() -> impl Strategy<Value = String> {
    (proptest::bool::ANY, proptest::collection::vec("[ab]", 0..3)).prop_map(|(wildcard, labels)| {
        format!("{}{}example.com", if wildcard { "*." } else { "" }, labels.iter().map(|label| format!("{label}.")).collect::<String>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// While nobody goes, the ledger agrees with the contract's own rule, which decides when a gateway runs alone.
    #[test]
    fn it_agrees_with_the_contract(first_wins in proptest::bool::ANY, claims in proptest::collection::vec((0..4_u8, domain()), 0..24)) {
        let overlap = if first_wins { Overlap::FirstWins } else { Overlap::MoreSpecificWins };
        let (mut ledger, mut contract) = (Ledger::new(overlap, []), Claims::new(overlap));
        let mut said: BTreeMap<u8, Vec<String>> = BTreeMap::new();
        for (now, (who, domain)) in claims.into_iter().enumerate() {
            let key = PartKey::Tenant { namespace: "mail".into(), name: who.to_string() };
            let free = contract.rival(&key, &domain).is_none();
            if free {
                contract.claim(&key, &domain);
            }
            let domains = said.entry(who).or_default();
            domains.push(domain.clone());
            let list: Vec<(String, Proof)> = domains.iter().map(|domain| (domain.clone(), Proof::Given)).collect();
            let outcome = ledger.claim(&tenant(&who.to_string()), &list, now as u64);
            prop_assert_eq!(outcome.last().map(|claim| claim.verdict == Verdict::Held), Some(free), "{} {}", who, domain);
        }
    }

    /// Whatever happens, its indexes say the same as its records, and what is written is what is read.
    #[test]
    fn its_indexes_follow_its_records(steps in proptest::collection::vec((0..4_u8, proptest::collection::vec(domain(), 0..4), 0..4_u8, 0..50_u64), 0..24)) {
        let mut ledger = Ledger::new(Overlap::FirstWins, []);
        let mut now = 0;
        for (who, domains, what, hours) in steps {
            now += hours * HOUR_MS;
            let tenant = tenant(&who.to_string());
            match what {
                0 => ledger.gone(&tenant, false, now),
                1 => ledger.gone(&tenant, true, now),
                _ => {
                    let claims: Vec<(String, Proof)> = domains.into_iter().map(|domain| (domain, Proof::Given)).collect();
                    ledger.claim(&tenant, &claims, now);
                }
            }
        }
        ledger.expire(now);
        let again = Ledger::new(Overlap::FirstWins, ledger.records().cloned());
        let sorted = |ledger: &Ledger| -> Vec<(Arc<Tenant>, BTreeSet<Arc<str>>)> {
            ledger.held.iter().map(|(tenant, domains)| (Arc::clone(tenant), domains.iter().cloned().collect())).collect()
        };
        prop_assert_eq!(sorted(&ledger), sorted(&again));
        prop_assert!(ledger.held.values().map(Vec::len).sum::<usize>() == ledger.records().count());
        prop_assert_eq!(&ledger.below, &again.below);
        prop_assert_eq!(&ledger.bytes, &again.bytes);
        prop_assert_eq!(&ledger.expiry, &again.expiry);
        let written: Vec<Record> = (0..=u8::MAX).flat_map(|shard| read_shard(&ledger.shard(shard)).expect("our own text")).collect();
        prop_assert_eq!(written, ledger.records().cloned().collect::<Vec<_>>());
    }
}
