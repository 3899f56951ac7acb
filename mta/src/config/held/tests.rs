//! Any pieces, in any order: the same parts are in force as if they had come at once.

use proptest::prelude::*;
use sekimori_crds::snapshot::{part_json, stand_in};

use super::super::tests::{fleet, tenant};
use super::*;

fn fine(_: &FleetPart) -> Result<(), String> {
    Ok(())
}

fn fleet_json() -> Vec<u8> {
    part_json(&Part::Fleet(Box::new(fleet())))
}

fn tenant_json(part: TenantPart) -> (String, Vec<u8>) {
    (format!("tenant/{}/{}", part.namespace, part.name), part_json(&Part::Tenant(Box::new(part))))
}

fn sum(parts: &[(String, Vec<u8>)]) -> RollingHash {
    let mut hash = RollingHash::default();
    parts.iter().for_each(|(key, json)| hash.add_words(part_words(key, json)));
    hash
}

fn whole(from: &Held, parts: &[(String, Vec<u8>)], number: u64) -> (Held, bool) {
    let mut way = from.depart(true);
    for (key, json) in parts {
        way.change(key, json, &fine);
    }
    way.arrive(Place { epoch: 1, number, hash: sum(parts) })
}

fn first() -> (Held, Vec<(String, Vec<u8>)>) {
    let parts = vec![
        ("fleet".to_owned(), fleet_json()),
        tenant_json(tenant("a", &["a.example", "*.shared.example"])),
        tenant_json(tenant("b", &["b.example", "*.shared.example"])),
    ];
    let (held, adds_up) = whole(&Held::default(), &parts, 1);
    assert!(adds_up);
    (held, parts)
}

fn owner(held: &Held, domain: &str) -> Option<String> {
    held.config().expect("a fleet").tenant_of(domain).map(|tenant| tenant.key.to_string())
}

/// What an operator that finds far fewer tenants must hear: those with a form that is no good here are the fleet's, too.
#[test]
fn every_tenant_is_counted_and_nothing_else() {
    assert_eq!(Held::default().tenants_known(), 0);
    let (held, parts) = first();
    assert_eq!(held.tenants_known(), 2);
    let mut way = held.depart(false);
    way.change("tenant/mail/later", &stand_in(&["c.example".to_owned()]), &fine);
    let (held, _) = way.arrive(Place { epoch: 1, number: 2, hash: RollingHash::default() });
    assert_eq!((held.refused().len(), held.tenants_known()), (1, 3));
    let (without, _) = whole(&Held::default(), &parts[1..], 1);
    assert_eq!(without.tenants_known(), 2, "the fleet's own part is none of them");
}

#[test]
fn one_part_costs_one_part() {
    let parts: Vec<_> = (0..2000).map(|n| tenant_json(tenant(&format!("t{n}"), &[&format!("t{n}.example")]))).collect();
    let parts: Vec<_> = std::iter::once(("fleet".to_owned(), fleet_json())).chain(parts).collect();
    let (held, _) = whole(&Held::default(), &parts, 1);
    let mut way = held.depart(false);
    let (key, json) = tenant_json(tenant("t7", &["t7.example", "new.example"]));
    way.change(&key, &json, &fine);
    let (next, _) = way.arrive(Place { epoch: 1, number: 2, hash: RollingHash::default() });
    let shared = next.tenants.shared_with(&held.tenants);
    assert!(shared[0] >= 255 && shared[1] >= 253 && shared[2] == 256, "{shared:?}");
    assert!(Arc::ptr_eq(next.fleet().expect("a fleet"), held.fleet().expect("a fleet")));
    assert_eq!(owner(&next, "new.example").as_deref(), Some("default/t7"));
    assert_eq!(owner(&held, "new.example"), None, "who has the one before sees nothing of it");
}

#[test]
fn a_bad_part_keeps_its_last_good_form_and_says_why() {
    let (held, mut parts) = first();
    let mut newer = tenant("a", &["a.example", "more.example"]);
    newer.requires.insert("teleport".into());
    let (key, needs) = tenant_json(newer);
    let unknown = br#"{"part":"tenant","requires":["teleport"],"what":{"is":"this"}}"#.to_vec();
    let nonsense = b"{\"part\":\"tenant\"".to_vec();
    let another = tenant_json(tenant("z", &["z.example"])).1;
    for (json, lacks, message) in [
        (needs, "teleport", "use a newer gateway"),
        (unknown, "teleport", "use a newer gateway"),
        (nonsense, "", "no JSON"),
        (another, "", "another one"),
        (b"{\"part\":\"policy\"}".to_vec(), "", "unknown variant"),
    ] {
        let mut way = held.depart(false);
        way.change(&key, &json, &fine);
        parts[1].1.clone_from(&json);
        let (next, adds_up) = way.arrive(Place { epoch: 1, number: 2, hash: sum(&parts) });
        assert!(adds_up, "what cannot be used still counts in the hash: {message}");
        let why = next.refused().get(key.as_str()).expect("listed");
        assert_eq!(why.lacks, lacks);
        assert!(why.message.contains(message), "{why:?}");
        assert_eq!(owner(&next, "a.example").as_deref(), Some("default/a"), "its last good form stays");
        assert_eq!(owner(&next, "x.shared.example").as_deref(), Some("default/b"), "but a domain is for who says so now");
        let mut back = next.depart(false);
        back.change(&key, &tenant_json(tenant("a", &["a.example", "*.shared.example"])).1, &fine);
        let (back, _) = back.arrive(Place { epoch: 1, number: 3, hash: held.hash() });
        assert!(back.refused().is_empty());
        assert_eq!(back.hash(), held.hash());
        assert_eq!(owner(&back, "x.shared.example").as_deref(), Some("default/a"));
    }
}

#[test]
fn domains_of_a_part_that_cannot_be_used_are_deferred_where_nobody_else_serves_them() {
    let (held, mut parts) = first();
    let defers = |held: &Held, domain: &str| held.config().expect("a fleet").defers(domain);
    let key = "tenant/default/late".to_owned();
    let names = ["late.example", "*.late.example", "a.example"].map(str::to_owned);
    parts.push((key.clone(), stand_in(&names)));
    let (next, adds_up) = whole(&held, &parts, 2);
    assert!(adds_up);
    assert_eq!(["late.example", "deep.down.late.example", "later.example"].map(|domain| defers(&next, domain)), [true, true, false]);
    assert_eq!(owner(&next, "a.example").as_deref(), Some("default/a"), "who serves a domain is asked first");
    assert_eq!((owner(&next, "late.example"), next.refused().len()), (None, 1));

    // A tenant that was good keeps its form, and what a newer form would add is deferred.
    let mut way = next.depart(false);
    way.change("tenant/default/b", &stand_in(&["b.example".to_owned(), "more.example".to_owned()]), &fine);
    let (later, _) = way.arrive(Place { epoch: 1, number: 3, hash: RollingHash::default() });
    assert_eq!((owner(&later, "b.example").as_deref(), owner(&later, "more.example")), (Some("default/b"), None));
    assert!(defers(&later, "more.example"));

    // It can be used now; or it is gone.
    let mut way = later.depart(false);
    way.change(&key, &tenant_json(tenant("late", &["late.example"])).1, &fine);
    way.change("tenant/default/b", b"", &fine);
    let (last, _) = way.arrive(Place { epoch: 1, number: 4, hash: RollingHash::default() });
    assert_eq!(["late.example", "x.late.example", "more.example"].map(|domain| defers(&last, domain)), [false, false, false]);
    assert_eq!(owner(&last, "late.example").as_deref(), Some("default/late"));
}

#[test]
fn an_unknown_kind_of_part_is_refused_alone() {
    let (held, mut parts) = first();
    parts.push(("quota/default/x".into(), b"{\"part\":\"quota\"}".to_vec()));
    let (next, adds_up) = whole(&held, &parts, 2);
    assert!(adds_up);
    assert_eq!(next.refused().keys().map(|key| &**key).collect::<Vec<_>>(), ["quota/default/x"]);
    assert_eq!(owner(&next, "b.example").as_deref(), Some("default/b"));
}

#[test]
fn what_is_not_in_a_whole_snapshot_is_gone_but_known_until_forgotten() {
    let (held, parts) = first();
    let (mut next, adds_up) = whole(&held, &parts[..2], 2);
    assert!(adds_up);
    assert_eq!(owner(&next, "b.example"), None);
    assert!(next.tenants().tenant("default/b").is_some_and(|tenant| tenant.removed));
    assert_eq!(next.forget(|key| key == "default/b"), 0);
    assert_eq!(next.forget(|_| false), 1);
    assert!(next.tenants().tenant("default/b").is_none());
    let (back, _) = whole(&next, &parts, 3);
    assert_eq!(owner(&back, "b.example").as_deref(), Some("default/b"));
}

#[test]
fn parts_that_do_not_add_up_are_in_force_but_not_arrived() {
    let (held, _) = first();
    let mut way = held.depart(false);
    way.change("tenant/default/b", b"", &fine);
    let (next, adds_up) = way.arrive(Place { epoch: 1, number: 2, hash: held.hash() });
    assert!(!adds_up);
    assert_eq!((next.place(), owner(&next, "b.example")), (None, None));
}

#[test]
fn a_fleet_that_cannot_be_run_keeps_the_one_before() {
    let (held, _) = first();
    let mut other = fleet();
    other.hostname = "other.example".into();
    let json = part_json(&Part::Fleet(Box::new(other)));
    let mut way = held.depart(false);
    way.change("fleet", &json, &|_| Err("listener smtp: too large".into()));
    let (next, _) = way.clone().arrive(Place { epoch: 1, number: 2, hash: RollingHash::default() });
    assert_eq!(next.fleet().expect("kept").hostname, "mx.localhost");
    assert_eq!(next.refused()["fleet"].message, "listener smtp: too large");
    // The same again is looked at again.
    way.change("fleet", &json, &fine);
    let (mut next, _) = way.arrive(Place { epoch: 1, number: 2, hash: RollingHash::default() });
    assert_eq!(next.fleet().expect("taken").hostname, "other.example");
    next.refuse_fleet(held.fleet(), "port 25 is taken");
    assert_eq!(next.config().expect("kept").fleet.hostname, "mx.localhost");
    let mut gone = next.depart(false);
    gone.change("fleet", b"", &fine);
    let (gone, _) = gone.arrive(Place { epoch: 1, number: 3, hash: RollingHash::default() });
    assert!(gone.config().is_ok() && gone.refused().is_empty(), "a fleet that is gone stops nobody");
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Bad(u8),
    Gone(u8),
}

fn steps() -> impl Strategy<Value = Vec<(bool, Vec<Step>)>> {
    let step = prop_oneof![
        4 => (0u8..6, 0u8..6).prop_map(|(who, what)| Step::Put(who, what)),
        1 => (0u8..6).prop_map(Step::Bad),
        1 => (0u8..6).prop_map(Step::Gone),
    ];
    prop::collection::vec((any::<bool>(), prop::collection::vec(step, 0..6)), 1..12)
}

proptest! {
    /// Whatever the ways, the domains are served as a compile of the newest good forms would have it, and the hash is that of what was sent.
    #[test]
    fn any_ways_end_where_one_would(ways in steps()) {
        let mut held = Held::default();
        let mut sent: BTreeMap<String, Vec<u8>> = [("fleet".to_owned(), fleet_json())].into();
        // The last good form of each tenant that is there, and whether it is a kept one.
        let mut forms: BTreeMap<String, (Vec<u8>, bool)> = BTreeMap::new();
        for (number, (full, steps)) in ways.into_iter().enumerate() {
            let full = full || number == 0;
            let before = sent.clone();
            for step in steps {
                match step {
                    Step::Put(who, what) => sent.extend([tenant_json(tenant(&format!("t{who}"), &[&format!("d{what}.example"), "*.example"]))]),
                    Step::Bad(who) => sent.extend([(format!("tenant/default/t{who}"), b"{}".to_vec())]),
                    Step::Gone(who) => drop(sent.remove(&format!("tenant/default/t{who}"))),
                }
            }
            let mut way = held.depart(full);
            if full {
                sent.iter().for_each(|(key, json)| way.change(key, json, &fine));
            } else {
                let keys: std::collections::BTreeSet<&String> = before.keys().chain(sent.keys()).collect();
                for key in keys.into_iter().filter(|key| before.get(*key) != sent.get(*key)) {
                    way.change(key, sent.get(key).map_or(&[], Vec::as_slice), &fine);
                }
            }
            let all: Vec<_> = sent.clone().into_iter().collect();
            let (next, adds_up) = way.arrive(Place { epoch: 1, number: number as u64, hash: sum(&all) });
            prop_assert!(adds_up);
            forms.retain(|key, _| sent.contains_key(key));
            for (key, json) in sent.iter().filter(|(key, _)| key.as_str() != "fleet") {
                if json.as_slice() != b"{}" {
                    forms.insert(key.clone(), (json.clone(), false));
                } else if let Some(form) = forms.get_mut(key) {
                    form.1 = true;
                }
            }
            held = next;
        }
        // What is refused is refused, and what is good is as one compile has it.
        let bad: Vec<&String> = sent.iter().filter(|(_, json)| json.as_slice() == b"{}").map(|(key, _)| key).collect();
        prop_assert_eq!(held.refused().keys().map(|key| key.to_string()).collect::<Vec<_>>(), bad.iter().map(|key| (*key).clone()).collect::<Vec<_>>());
        let config = held.config().expect("a fleet");
        let mut tenants: Vec<(bool, TenantPart)> = vec![];
        for (json, kept) in forms.into_values() {
            match serde_json::from_slice(&json).expect("a part") {
                Part::Tenant(part) => tenants.push((kept, *part)),
                Part::Fleet(_) => prop_assert!(false, "only tenants were put there"),
            }
        }
        tenants.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        for domain in ["d0.example", "d1.example", "d2.example", "d3.example", "d4.example", "d5.example", "any.example"] {
            let owner = |name: &str| tenants.iter().find(|(_, part)| part.domains.iter().any(|claimed| claimed == name)).map(|(_, part)| part.name.clone());
            let expected = owner(domain).or_else(|| owner("*.example"));
            prop_assert_eq!(config.tenant_of(domain).map(|tenant| tenant.part.name.clone()), expected, "{}", domain);
        }
    }
}
