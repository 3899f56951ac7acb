//! What must hold for any directory: order of documents, isolation of tenants, and the rolling hash.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sekimori_crds::compile::{Document, Input, Options, compile, read_documents};
use sekimori_crds::snapshot::{Part, PartKey, RollingHash, Snapshot};

const FLEET: &str = "
apiVersion: sekimori.dev/v1alpha1
kind: GatewayFleet
metadata: {name: f}
spec: {hostname: mx.example.net, listeners: [{name: smtp, port: 2525}], tenants: {ownership: Trust}, engines: [{name: v}]}
---
apiVersion: sekimori.dev/v1alpha1
kind: Engine
metadata: {name: v}
spec: {class: AntiVirus, protocol: {type: Builtin}}
---
apiVersion: sekimori.dev/v1alpha1
kind: MailPolicy
metadata: {name: p}
spec: {antiVirus: {infected: Quarantine}}
";

fn tenant(number: usize, port: u16, broken: bool) -> String {
    let (policy, field) = (if number.is_multiple_of(3) { ", policyRef: {name: p}" } else { "" }, if broken { ", statte: Active" } else { "" });
    format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: TenantDomain\nmetadata: {{name: t{number}}}\nspec: {{fleetRef: {{name: f}}, domains: [t{number}.example, '*.t{number}.example'], \
         routes: [{{name: r, host: mail.t{number}.example, port: {port}}}]{policy}{field}}}\n"
    )
}

fn documents(texts: &[String]) -> Vec<Document> {
    let mut documents = read_documents("fleet.yaml", FLEET).expect("YAML");
    for (index, text) in texts.iter().enumerate() {
        documents.extend(read_documents(&format!("t{index}.yaml"), text).expect("YAML"));
    }
    documents
}

fn snapshot(documents: Vec<Document>) -> Snapshot {
    compile(&Input { documents }, &Options::default()).snapshot
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_documents_changes_nothing(ports in prop::collection::vec(1u16.., 1..12), seed in any::<u64>()) {
        let texts: Vec<String> = ports.iter().enumerate().map(|(number, port)| tenant(number, *port, false)).collect();
        let documents = documents(&texts);
        let mut shuffled = documents.clone();
        let mut state = seed | 1;
        for index in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(index, usize::try_from(state >> 33).unwrap_or(0) % (index + 1));
        }
        let (a, b) = (snapshot(documents), snapshot(shuffled));
        prop_assert_eq!(a.parts.len(), texts.len() + 1);
        prop_assert_eq!(a.hash(), b.hash());
        prop_assert_eq!(a, b);
    }

    #[test]
    fn one_broken_tenant_leaves_the_others_as_they_are(number in 1usize..12, broken in 0usize..12) {
        let broken = broken % number;
        let sound: Vec<String> = (0..number).map(|index| tenant(index, 25, false)).collect();
        let mut with_broken = sound.clone();
        with_broken[broken] = tenant(broken, 25, true);
        let (before, after) = (snapshot(documents(&sound)), compile(&Input { documents: documents(&with_broken) }, &Options::default()));
        let key = PartKey::Tenant { namespace: "default".into(), name: format!("t{broken}") };
        prop_assert!(after.rejected.contains(&key));
        let mut expected = before.parts.clone();
        prop_assert!(expected.remove(&key).is_some());
        prop_assert_eq!(&after.snapshot.parts, &expected);
        // And with its last good form nothing at all has changed.
        prop_assert_eq!(after.over(&before), before);
    }

    #[test]
    fn the_hash_is_a_sum(ports in prop::collection::vec(1u16.., 1..12), removed in any::<prop::sample::Index>()) {
        let texts: Vec<String> = ports.iter().enumerate().map(|(number, port)| tenant(number, *port, false)).collect();
        let snapshot = snapshot(documents(&texts));
        let all: Vec<(&PartKey, &Part)> = snapshot.parts.iter().collect();
        let mut sum = RollingHash::default();
        all.iter().rev().for_each(|(key, part)| sum.add(key, part));
        prop_assert_eq!(sum, snapshot.hash());
        let (key, part) = all[removed.index(all.len())];
        sum.remove(key, part);
        let mut fewer = snapshot.clone();
        fewer.parts.remove(key);
        prop_assert_eq!(sum, fewer.hash());
        prop_assert_ne!(sum, snapshot.hash());
    }

    /// Damaged cases: cut, doubled and exchanged bytes. Whatever comes out is one thing or the other for each object, and the same each time.
    #[test]
    fn damaged_documents_are_taken_or_rejected(case in any::<prop::sample::Index>(), cut in 0usize..4000, length in 0usize..40, put in "[ -~\n]{0,6}") {
        let cases = crate::golden::cases();
        let text = &cases[case.index(cases.len())].1;
        let mut chars: Vec<char> = text.chars().collect();
        let start = cut % chars.len().max(1);
        let end = (start + length).min(chars.len());
        chars.splice(start..end, put.chars());
        let text: String = chars.into_iter().collect();
        let (once, again) = (crate::golden::run("case.yaml", &text), crate::golden::run("case.yaml", &text));
        prop_assert_eq!(&once.problems, &again.problems);
        prop_assert_eq!(once.snapshot.hash(), again.snapshot.hash());
        prop_assert!(once.rejected.iter().all(|key| !once.snapshot.parts.contains_key(key)));
        prop_assert!(once.rejected.is_empty() || once.has_errors());
        prop_assert!(once.snapshot.tenants().all(|(_, tenant)| !tenant.domains.is_empty() && !tenant.routes.is_empty()));
    }
}

#[test]
fn a_kept_form_gives_up_a_domain_that_somebody_else_has_now() {
    let before = snapshot(documents(&[tenant(0, 25, false), tenant(1, 25, false)]));
    // t0 no longer compiles and no longer names its domains; t1 takes one of them.
    let texts =
        [tenant(0, 25, true).replace("t0.example", "elsewhere.example"), tenant(1, 25, false).replace("[t1.example", "[t1.example, t0.example")];
    let compiled = compile(&Input { documents: documents(&texts) }, &Options::default());
    let after = compiled.over(&before);
    let domains: BTreeMap<String, Vec<String>> = after.tenants().map(|(key, tenant)| (key.to_string(), tenant.domains.clone())).collect();
    assert_eq!(domains["tenant/default/t0"], ["*.t0.example"]);
    assert_eq!(domains["tenant/default/t1"], ["t1.example", "t0.example", "*.t1.example"]);
}

/// Ten thousand tenants in one go, with grants, wildcards and a shared policy. The bound is wide (an unoptimised build on a busy machine); a quadratic
/// search for conflicts would miss it by far. Prints the time: `cargo test -p sekimori-crds --release -- --nocapture ten_thousand`.
#[test]
fn ten_thousand_tenants_compile_in_time() {
    let texts: Vec<String> = (0..10_000).map(|number| tenant(number, 25, false)).collect();
    let documents = documents(&[texts.join("---\n")]);
    assert_eq!(documents.len(), 10_003);
    #[expect(clippy::disallowed_methods, reason = "a test measures")]
    let start = std::time::Instant::now();
    let compiled = compile(&Input { documents }, &Options::default());
    let took = start.elapsed();
    println!("10,000 tenants: {took:?}");
    assert_eq!(compiled.snapshot.parts.len(), 10_001);
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}
