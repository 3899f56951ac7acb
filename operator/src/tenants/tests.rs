use sekimori_crds::snapshot::{part_json, stand_in};
use serde_json::{Value, json};

use super::*;
use crate::ownership::overlap;
use crate::status::{ConditionType, Reason as StatusReason};

fn fleet(ownership: &str) -> GatewayFleet {
    serde_json::from_value(json!({
        "apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet", "metadata": {"name": "inbound", "namespace": "mail"},
        "spec": {"hostname": "mx.example.net", "listeners": [], "tenants": {"ownership": ownership, "namespaces": {"from": "All"}}},
    }))
    .expect("a fleet")
}

fn tenant(namespace: &str, name: &str, spec: &Value) -> (Tenant, TenantDomain) {
    let mut whole = json!({"fleetRef": {"name": "inbound", "namespace": "mail"}, "domains": ["example.com"], "routes": [{"name": "r", "host": "mail.example.com"}]});
    for (key, value) in spec.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    let object = json!({"apiVersion": "sekimori.dev/v1alpha1", "kind": "TenantDomain", "metadata": {"name": name, "namespace": namespace, "generation": 3}, "spec": whole});
    (Tenant::new(namespace, name), serde_json::from_value(object).expect("a tenant"))
}

struct World {
    fleet: GatewayFleet,
    ledger: Ledger,
    names: Names,
}

impl World {
    fn new(ownership_said: &str) -> Self {
        let fleet = fleet(ownership_said);
        let ledger = Ledger::new(overlap(ownership(&fleet)), []);
        Self { fleet, ledger, names: Names::default() }
    }

    fn judge(&mut self, namespace: &str, name: &str, spec: &Value, proof: impl Fn(&str) -> Proof) -> Judged {
        let (tenant, object) = tenant(namespace, name, spec);
        let known = Known::new(object, &mut self.names, None, 100);
        let against = Against { fleet: Lookup::Found(&self.fleet), policy: Lookup::Missing { near: None }, namespace_labels: &BTreeMap::new() };
        judge(&tenant, &known, &against, Some(&mut self.ledger), proof, 1_000)
    }
}

fn given(_: &str) -> Proof {
    Proof::Given
}

#[test]
fn a_tenant_with_its_domains_gets_a_part() {
    let mut world = World::new("Trust");
    let judged = world.judge("shop", "one", &json!({}), given);
    let part = judged.part.expect("a part");
    assert_eq!((part.namespace.as_str(), part.domains.as_slice(), judged.generation), ("shop", ["example.com".to_owned()].as_slice(), 3));
    assert!(judged.problems.is_empty());
}

#[test]
fn a_second_owner_gets_none_and_changes_nothing_for_the_first() {
    let mut world = World::new("Trust");
    world.judge("shop", "one", &json!({}), given);
    let second = world.judge("thief", "two", &json!({"domains": ["example.com", "own.example"]}), given);
    assert!(second.part.is_none(), "all or nothing");
    assert!(matches!(second.claims[0].verdict, Verdict::Conflict { .. }) && second.claims[1].verdict == Verdict::Held);
    assert!(world.judge("shop", "one", &json!({}), given).part.is_some());
}

#[test]
fn without_a_proof_there_is_nothing() {
    let mut world = World::new("Grant");
    let missing = |_: &str| Proof::Missing("no DomainGrant".to_owned());
    let judged = world.judge("thief", "two", &json!({}), missing);
    assert!(judged.part.is_none() && judged.claims[0].verdict == Verdict::Unproved("no DomainGrant".to_owned()));
    let unclear = |_: &str| Proof::Unclear("DNS is silent".to_owned());
    assert!(world.judge("thief", "two", &json!({}), unclear).part.is_none());
    assert!(world.judge("shop", "one", &json!({}), given).part.is_some());
    assert!(world.judge("shop", "one", &json!({}), unclear).part.is_some(), "what is held stays while DNS is silent");
}

#[test]
fn a_wrong_tenant_keeps_its_domains_and_one_that_is_not_served_claims_none() {
    let mut world = World::new("Trust");
    world.judge("shop", "one", &json!({}), given);
    let wrong = world.judge("shop", "one", &json!({"policyRef": {"name": "none"}}), given);
    assert!(wrong.part.is_none() && wrong.problems[0].field == "spec.policyRef");
    assert!(matches!(world.judge("thief", "two", &json!({}), given).claims[0].verdict, Verdict::Conflict { .. }));
    let other_fleet = json!({"fleetRef": {"name": "inbound", "namespace": "mail"}, "domains": ["free.example"]});
    world.fleet.spec.tenants.as_mut().expect("tenants").namespaces = None;
    let refused = world.judge("thief", "two", &other_fleet, given);
    assert!(refused.part.is_none() && refused.claims.is_empty() && refused.problems[0].field == "spec.fleetRef", "{:?}", refused.problems);
    assert!(world.ledger.record("free.example").is_none());
}

#[test]
fn a_fleet_that_cannot_be_read_makes_nobody_free_of_its_overrides() {
    let mut world = World::new("Trust");
    world.judge("shop", "one", &json!({}), given);
    let claims: Vec<_> = world.ledger.records().cloned().collect();
    for (namespace, name, spec) in [
        ("shop", "one", json!({"policy": {"antiVirus": {"infected": "Deliver"}}, "domains": ["example.com", "more.example"]})),
        ("stranger", "two", json!({"domains": ["free.example"]})),
    ] {
        let (tenant, object) = tenant(namespace, name, &spec);
        let known = Known::new(object, &mut world.names, None, 100);
        let against = Against { fleet: Lookup::Rejected, policy: Lookup::Missing { near: None }, namespace_labels: &BTreeMap::new() };
        let judged = judge(&tenant, &known, &against, Some(&mut world.ledger), given, 2_000);
        assert!(judged.part.is_none() && judged.claims.is_empty(), "{judged:?}");
        assert_eq!(judged.problems[0].field, "spec.fleetRef");
        assert!(judged.problems[0].message.contains("upgrade the operator"), "{:?}", judged.problems);
    }
    assert_eq!(world.ledger.records().cloned().collect::<Vec<_>>(), claims, "the ledger is left alone");
}

#[test]
fn an_object_that_cannot_be_read_is_told_of() {
    let known = Known::unreadable("unknown variant", None);
    let against = Against { fleet: Lookup::Missing { near: None }, policy: Lookup::Missing { near: None }, namespace_labels: &BTreeMap::new() };
    let judged = judge(&Tenant::new("a", "b"), &known, &against, None, given, 0);
    assert!(judged.part.is_none() && judged.problems[0].message.contains("unknown variant"));
}

#[test]
fn a_suspension_counts_from_when_it_was_first_seen() {
    let mut names = Names::default();
    let (_, object) = tenant("a", "b", &json!({"state": "Suspended"}));
    let first = Known::new(object.clone(), &mut names, None, 500);
    assert_eq!(first.suspended_since, Some(500));
    assert_eq!(Known::new(object.clone(), &mut names, Some(&first), 900).suspended_since, Some(500));
    let mut told = object;
    told.status.get_or_insert_default().suspended_since = Some(77);
    assert_eq!(Known::new(told, &mut names, None, 900).suspended_since, Some(77), "over a new leader, too");
    let (_, active) = tenant("a", "b", &json!({}));
    assert_eq!(Known::new(active, &mut names, Some(&first), 900).suspended_since, None);
}

fn kept(part: &TenantPart, tenant: &Tenant, ledger: &Ledger) -> Option<TenantPart> {
    match left_of(Some(&part_json(&Part::Tenant(Box::new(part.clone())))), tenant, ledger) {
        Left::Form(form) => Some(*form),
        Left::Domains(_) | Left::Nothing => None,
    }
}

#[test]
fn without_a_known_form_the_domains_are_left() {
    let mut world = World::new("Trust");
    world.judge("shop", "one", &json!({"domains": ["example.net", "example.com"]}), given).part.expect("a part");
    let (one, other) = (Tenant::new("shop", "one"), Tenant::new("shop", "other"));
    let domains = vec!["example.com".to_owned(), "example.net".to_owned()];
    assert_eq!(left_of(None, &one, &world.ledger), Left::Domains(domains.clone()));
    assert_eq!(left_of(None, &other, &world.ledger), Left::Nothing);
    let stand_in = stand_in(&domains);
    assert!(is_stand_in(&stand_in));
    assert_eq!(left_of(Some(&stand_in), &one, &world.ledger), Left::Domains(domains), "it is no form itself");
    let part = world.judge("shop", "one", &json!({}), given).part.expect("a part");
    assert!(!is_stand_in(&part_json(&Part::Tenant(Box::new(part)))));
}

#[test]
fn a_kept_form_loses_what_is_another_ones() {
    let mut world = World::new("Trust");
    let part = world.judge("shop", "one", &json!({"domains": ["example.com", "example.net"]}), given).part.expect("a part");
    let one = Tenant::new("shop", "one");
    assert_eq!(kept(&part, &one, &world.ledger).expect("a form").domains.len(), 2);
    world.ledger.claim(&one, &[("example.com".to_owned(), Proof::Given)], 0);
    world.ledger.expire(u64::MAX);
    assert_eq!(kept(&part, &one, &world.ledger).expect("a form").domains, ["example.com"]);
    assert_eq!(kept(&part, &Tenant::new("thief", "two"), &world.ledger), None);
}

#[test]
fn what_was_said_is_known_from_the_status_and_from_the_facts() {
    let facts = [
        Fact::new(ConditionType::Ready, true, StatusReason::Serving, "fine"),
        Fact::unknown(ConditionType::Programmed, StatusReason::Waiting, "not yet"),
    ];
    let said = digest([("Programmed", "Unknown", "Waiting", "not yet"), ("Ready", "True", "Serving", "fine")].into_iter(), Some(3), None);
    assert_eq!(digest_of(&facts, Some(3), None), said);
    assert_ne!(digest_of(&facts, Some(4), None), said);
    assert_ne!(digest_of(&facts[..1], Some(3), None), said);
}

#[test]
fn what_moves_with_a_status_is_not_kept() {
    let mut names = Names::default();
    let (_, mut object) = tenant("a", "b", &json!({}));
    let before = Known::new(object.clone(), &mut names, None, 0);
    object.metadata.resource_version = Some("12".to_owned());
    object.metadata.uid = Some("u".to_owned());
    object.status.get_or_insert_default().observed_generation = Some(3);
    let after = Known::new(object, &mut names, Some(&before), 0);
    assert_eq!(before.object, after.object);
    assert!(after.current && !before.current);
}

#[test]
fn a_new_suspension_does_not_count_from_the_one_before() {
    let mut names = Names::default();
    let (_, mut suspended) = tenant("a", "b", &json!({"state": "Suspended"}));
    suspended.status.get_or_insert_default().suspended_since = Some(77);
    let (_, mut active) = tenant("a", "b", &json!({}));
    active.status.clone_from(&suspended.status);
    let known = Known::new(suspended.clone(), &mut names, None, 900);
    assert_eq!(known.suspended_since, Some(77));
    let unread = Known::unreadable("what", Some(&known));
    assert_eq!(unread.suspended_since, Some(77));
    assert_eq!(Known::new(suspended.clone(), &mut names, Some(&unread), 950).suspended_since, Some(77));
    let known = Known::new(active, &mut names, Some(&known), 1_000);
    assert_eq!(known.suspended_since, None);
    assert_eq!(Known::new(suspended, &mut names, Some(&known), 1_100).suspended_since, Some(1_100));
}

#[test]
fn a_grant_that_goes_takes_the_domain_after_72_hours() {
    let mut world = World::new("Grant");
    let part = world.judge("shop", "one", &json!({}), given).part.expect("a part");
    let one = Tenant::new("shop", "one");
    let missing = |_: &str| Proof::Missing("no DomainGrant".to_owned());
    assert!(world.judge("shop", "one", &json!({}), missing).part.is_none());
    let end = 1_000 + crate::ownership::RELEASE_AFTER_MS;
    assert!(world.ledger.expire(end - 1).is_empty());
    assert!(kept(&part, &one, &world.ledger).is_some(), "it serves until then");
    assert!(matches!(world.judge("thief", "two", &json!({}), given).claims[0].verdict, Verdict::Conflict { free_at_ms: Some(at), .. } if at == end));
    assert_eq!(world.ledger.expire(end), [Arc::from("example.com")]);
    assert_eq!(kept(&part, &one, &world.ledger), None);
    assert!(world.judge("thief", "two", &json!({}), given).part.is_some());
}

#[test]
fn a_namespace_that_is_not_admitted_any_more_loses_its_domains_after_72_hours() {
    let mut world = World::new("Trust");
    let part = world.judge("shop", "one", &json!({}), given).part.expect("a part");
    let (one, before) = (Tenant::new("shop", "one"), world.fleet.clone());
    world.fleet.spec.tenants.as_mut().expect("tenants").namespaces = None;
    let refused = world.judge("shop", "one", &json!({}), given);
    assert!(refused.part.is_none() && refused.claims.is_empty());
    let end = 1_000 + crate::ownership::RELEASE_AFTER_MS;
    assert_eq!(world.ledger.next_expiry_ms(), Some(end));
    assert!(kept(&part, &one, &world.ledger).is_some(), "it serves until then");
    let evicting = std::mem::replace(&mut world.fleet, before);
    assert!(world.judge("shop", "one", &json!({}), given).part.is_some());
    assert_eq!(world.ledger.next_expiry_ms(), None, "it was admitted again in time");
    world.fleet = evicting;
    world.judge("shop", "one", &json!({}), given);
    assert_eq!(world.ledger.expire(end), [Arc::from("example.com")]);
    assert_eq!(kept(&part, &one, &world.ledger), None);
    assert!(world.judge("mail", "owner", &json!({}), given).part.is_some(), "whose it is has it at last");
}

#[test]
fn the_policy_is_the_namespaces_own() {
    let mut world = World::new("Trust");
    let judged = world.judge("thief", "two", &json!({"policyRef": {"name": "theirs"}}), given);
    assert_eq!(judged.problems[0].field, "spec.policyRef");
    let (_, object) = tenant("thief", "two", &json!({"policyRef": {"name": "theirs", "namespace": "shop"}}));
    let reference = serde_json::to_value(object.spec.policy_ref).expect("json");
    assert_eq!(reference, json!({"name": "theirs"}), "another namespace cannot be named");
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    const TENANTS: usize = 4;

    /// What happens: to which tenant, and which spec it has then. `None`: it is deleted.
    fn events() -> impl Strategy<Value = Vec<(usize, Option<usize>)>> {
        prop::collection::vec((0..TENANTS, prop::option::weighted(0.8, 0_usize..4)), 1..24)
    }

    /// Its own domains, or (`shared`) those that others want, too; the last one is wrong.
    fn spec(number: usize, variant: usize, shared: bool) -> Value {
        let name = |index: usize| if shared { format!("d{}.example", (number + index) % 3) } else { format!("t{number}d{index}.example") };
        match variant {
            0 => json!({"domains": [name(0)]}),
            1 => json!({"domains": [name(0), name(1)], "delivery": "Inline"}),
            2 => json!({"domains": [format!("*.{}", name(1))], "state": "Suspended"}),
            _ => json!({"domains": [name(0)], "policyRef": {"name": "none"}}),
        }
    }

    fn place(number: usize) -> (String, String) {
        (format!("space-{number}"), "one".to_owned())
    }

    proptest! {
        #[test]
        fn only_the_last_form_counts(events in events()) {
            let mut lived = World::new("Trust");
            let mut last: BTreeMap<usize, usize> = BTreeMap::new();
            for (number, variant) in events {
                let (namespace, name) = place(number);
                if let Some(variant) = variant {
                    lived.judge(&namespace, &name, &spec(number, variant, false), given);
                    last.insert(number, variant);
                } else {
                    lived.ledger.gone(&Tenant::new(namespace, name), false, 1_000);
                    last.remove(&number);
                }
            }
            let mut fresh = World::new("Trust");
            for (number, variant) in last.iter().rev() {
                let (namespace, name) = place(*number);
                let wanted = spec(*number, *variant, false);
                let (ours, theirs) = (lived.judge(&namespace, &name, &wanted, given), fresh.judge(&namespace, &name, &wanted, given));
                prop_assert_eq!(ours.part, theirs.part);
                prop_assert_eq!(ours.claims, theirs.claims);
            }
        }

        #[test]
        fn no_domain_is_ever_at_two_tenants(events in events()) {
            let mut world = World::new("Trust");
            let mut parts: BTreeMap<usize, TenantPart> = BTreeMap::new();
            for (number, variant) in events {
                let (namespace, name) = place(number);
                let tenant = Tenant::new(namespace.as_str(), name.as_str());
                let Some(variant) = variant else {
                    world.ledger.gone(&tenant, true, 1_000);
                    parts.remove(&number);
                    continue;
                };
                let judged = world.judge(&namespace, &name, &spec(number, variant, true), given);
                let part = judged.part.or_else(|| kept(&parts.remove(&number)?, &tenant, &world.ledger));
                if let Some(part) = part {
                    parts.insert(number, part);
                }
                let all: Vec<&String> = parts.values().flat_map(|part| &part.domains).collect();
                let different: std::collections::BTreeSet<&&String> = all.iter().collect();
                prop_assert_eq!(all.len(), different.len(), "{:?}", parts);
            }
        }
    }
}
