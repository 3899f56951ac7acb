//! What was kept comes back, whatever happened to the tail of its journal; and nobody without the key reads it.

use proptest::prelude::*;
use sekimori_crds::snapshot::part_words;

use super::*;
use crate::config::tests::{fleet, tenant};

fn fine(_: &FleetPart) -> Result<(), String> {
    Ok(())
}

fn fleet_json() -> Vec<u8> {
    part_json(&Part::Fleet(Box::new(fleet())))
}

fn tenant_json(name: &str, domain: &str) -> (String, Bytes) {
    (format!("tenant/default/{name}"), part_json(&Part::Tenant(Box::new(tenant(name, &[domain])))).into())
}

/// A way over these changes, as the operator would send it.
fn delta(held: &Held, number: u64, changes: Vec<(String, Bytes)>) -> (Delta, Held) {
    let mut hash = held.hash();
    for (key, part) in &changes {
        if let Some(words) = held.words_of(key) {
            hash.remove_words(*words);
        }
        if !part.is_empty() {
            hash.add_words(part_words(key, part));
        }
    }
    let delta = Delta { to: Some(Place { epoch: 3, number, hash }), changes, fleet_refused: None };
    let next = delta.follow(held, &fine);
    (delta, next)
}

fn first() -> (Delta, Held) {
    delta(&Held::default(), 1, vec![("fleet".into(), fleet_json().into()), tenant_json("a", "a.example"), tenant_json("b", "b.example")])
}

fn load(dir: &Path, key: Option<&Path>) -> (Keeper, Held) {
    match Keeper::open(dir, key, &fine) {
        (keeper, Found::Held(held)) => (keeper, *held),
        (_, other) => panic!("{other:?}"),
    }
}

/// All that matters of it.
fn seen(held: &Held) -> (Option<Place>, RollingHash, Vec<String>, Vec<String>) {
    let mut tenants: Vec<String> =
        held.tenants().iter().map(|t| format!("{} {:?} removed={} kept={}", t.key, t.part.domains, t.removed, t.kept)).collect();
    tenants.sort();
    (held.place(), held.hash(), tenants, held.refused().keys().map(ToString::to_string).collect())
}

fn key_file(dir: &Path, byte: u8) -> PathBuf {
    let path = dir.join(format!("key-{byte}"));
    std::fs::write(&path, [byte; 32]).expect("written");
    path
}

#[test]
fn what_was_kept_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = key_file(dir.path(), 7);
    let (mut keeper, found) = Keeper::open(dir.path(), Some(&key), &fine);
    assert!(matches!(found, Found::Nothing));
    let (way, held) = first();
    keeper.keep(Some(&way), &held).expect("kept");
    let (way, held) = delta(&held, 2, vec![tenant_json("c", "c.example"), ("tenant/default/b".into(), Bytes::new())]);
    keeper.keep(Some(&way), &held).expect("kept");
    let (mut again, loaded) = load(dir.path(), Some(&key));
    assert_eq!(seen(&loaded), seen(&held));
    assert!(loaded.tenants().tenant("default/b").is_some_and(|tenant| tenant.removed), "mail may wait for it");
    again.keep(None, &loaded).expect("a new base");
    let (_, loaded) = load(dir.path(), Some(&key));
    assert_eq!(seen(&loaded), seen(&held));
    assert_eq!(loaded.config().expect("a fleet").fleet.hostname, "mx.localhost");
}

#[test]
fn secrets_are_not_readable_and_another_key_does_not_open_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let (key, other) = (key_file(dir.path(), 1), key_file(dir.path(), 2));
    let (mut keeper, _) = Keeper::open(dir.path(), Some(&key), &fine);
    let (way, held) = first();
    keeper.keep(Some(&way), &held).expect("kept");
    let (way, held) = delta(&held, 2, vec![tenant_json("c", "secret-word.example")]);
    keeper.keep(Some(&way), &held).expect("kept");
    for name in [BASE, JOURNAL] {
        let path = dir.path().join(name);
        let bytes = std::fs::read(&path).expect("there");
        for word in ["secret-word", "a.example", "mx.localhost", "default"] {
            assert!(!bytes.windows(word.len()).any(|window| window == word.as_bytes()), "{name} shows {word}");
        }
        // Compression alone would hide them too: what is there is no zstd.
        assert!(!bytes.windows(4).any(|window| window == [0x28, 0xb5, 0x2f, 0xfd]), "{name} is only compressed");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
    for (key, why) in [(Some(other.as_path()), "another key"), (None, "no key"), (Some(Path::new("/nonexistent")), "snapshot key")] {
        match Keeper::open(dir.path(), key, &fine).1 {
            Found::Unusable(said) => assert!(said.contains(why), "{said}"),
            found => panic!("{found:?}"),
        }
    }
    let (mut keeper, _) = Keeper::open(dir.path(), Some(Path::new("/nonexistent")), &fine);
    let before = std::fs::read(dir.path().join(BASE)).expect("there");
    let error = keeper.keep(None, &held).expect_err("never in clear").to_string();
    assert!(error.contains("in clear"), "{error}");
    assert_eq!(std::fs::read(dir.path().join(BASE)).expect("there"), before, "what is there stays: its key may come back");
}

#[test]
fn what_was_in_clear_is_sealed_as_soon_as_there_is_a_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut keeper, _) = Keeper::open(dir.path(), None, &fine);
    let (way, held) = first();
    keeper.keep(Some(&way), &held).expect("kept");
    let key = key_file(dir.path(), 1);
    let (mut keeper, loaded) = load(dir.path(), Some(&key));
    assert_eq!(seen(&loaded), seen(&held));
    let (way, held) = delta(&loaded, 2, vec![tenant_json("c", "c.example")]);
    keeper.keep(Some(&way), &held).expect("kept");
    assert!(matches!(Keeper::open(dir.path(), None, &fine).1, Found::Unusable(_)));
    assert_eq!(seen(&load(dir.path(), Some(&key)).1), seen(&held));
}

#[test]
fn a_check_makes_up_for_what_failed_and_follows_the_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("key");
    let (mut keeper, _) = Keeper::open(dir.path(), Some(&key), &fine);
    let (way, held) = first();
    keeper.keep(Some(&way), &held).expect_err("there is no key yet");
    keeper.check(&held).expect_err("nor now");
    std::fs::write(&key, [1; 32]).expect("written");
    keeper.check(&held).expect("now there is one");
    assert_eq!(seen(&load(dir.path(), Some(&key)).1), seen(&held));
    let base = std::fs::read(dir.path().join(BASE)).expect("there");
    keeper.check(&held).expect("nothing to do");
    assert_eq!(std::fs::read(dir.path().join(BASE)).expect("there"), base);
    std::fs::remove_file(&key).expect("removed");
    keeper.check(&held).expect("what is open goes on");
    let (way, held) = delta(&held, 2, vec![tenant_json("c", "c.example")]);
    keeper.keep(Some(&way), &held).expect("under the key that was");
    std::fs::write(&key, [2; 32]).expect("written");
    keeper.check(&held).expect("sealed anew");
    assert_eq!(seen(&load(dir.path(), Some(&key)).1), seen(&held));
    // One that cannot be read is not written over before there is something better.
    std::fs::write(&key, [3; 32]).expect("written");
    let (mut stranger, found) = Keeper::open(dir.path(), Some(&key), &fine);
    assert!(matches!(found, Found::Unusable(_)));
    stranger.check(&Held::default()).expect("nothing to do");
    std::fs::write(&key, [2; 32]).expect("written");
    assert_eq!(seen(&load(dir.path(), Some(&key)).1), seen(&held));
}

#[test]
fn a_damaged_base_is_not_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut keeper, _) = Keeper::open(dir.path(), None, &fine);
    let (way, held) = first();
    keeper.keep(Some(&way), &held).expect("kept");
    let path = dir.path().join(BASE);
    let good = std::fs::read(&path).expect("there");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).expect("written");
        assert!(matches!(Keeper::open(dir.path(), None, &fine).1, Found::Unusable(_)), "byte {at}");
        std::fs::write(&path, &good[..at]).expect("written");
        assert!(matches!(Keeper::open(dir.path(), None, &fine).1, Found::Unusable(_)), "cut at {at}");
    }
}

#[test]
fn a_part_that_was_refused_is_asked_for_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut keeper, _) = Keeper::open(dir.path(), None, &fine);
    let (way, held) = first();
    keeper.keep(Some(&way), &held).expect("kept");
    for base in [false, true] {
        let (way, held) = delta(&held, 2, vec![("tenant/default/a".into(), Bytes::from_static(b"{\"requires\":[\"teleport\"]}"))]);
        assert!(held.place().is_some());
        keeper.keep((!base).then_some(&way), &held).expect("kept");
        let loaded = load(dir.path(), None).1;
        assert_eq!((loaded.place(), loaded.hash()), (None, held.hash()), "this build may be able to use it");
        assert!(loaded.tenants().tenant("default/a").is_some_and(|tenant| tenant.kept));
        assert_eq!(loaded.refused(), held.refused());
    }
}

#[test]
fn a_form_of_a_newer_gateway_still_says_whose_its_domains_are() {
    let newer = |domain: &str| {
        let (key, json) = tenant_json(&domain.replace('.', "-"), domain);
        let mut json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        json.as_object_mut()
            .and_then(|part| part.values_mut().find_map(|value| value.as_object_mut()))
            .expect("an object")
            .insert("new".into(), 1.into());
        json["fromTheFuture"] = true.into();
        let json = serde_json::to_vec(&json).expect("JSON");
        assert!(serde_json::from_slice::<Part>(&json).is_err(), "this build does not read it");
        (key, json)
    };
    let mut frame = vec![];
    let mut add = |key: &str, json: &[u8], removed: bool, refused: Option<Refused>| {
        let head = EntryHead { key: key.to_owned(), words: Some(part_words(key, json)), removed, refused };
        put(&mut frame, &serde_json::to_vec(&head).expect("JSON"));
        put(&mut frame, json);
    };
    add("fleet", &fleet_json(), false, None);
    let (key, json) = newer("a.example");
    add(&key, &json, false, None);
    let (key, json) = newer("*.b.example");
    add(&key, &json, false, Some(Refused { domains: vec!["c.example".into()], ..Refused::default() }));
    let (key, json) = newer("gone.example");
    add(&key, &json, true, None);
    let mut held = Held::default();
    assert_eq!(restore(&mut held, &frame), Some(4));
    held.restored(None);
    let config = held.config().expect("the fleet's settings are there, so it serves");
    for domain in ["a.example", "x.b.example", "c.example"] {
        assert!(config.defers(domain), "{domain} is deferred, not refused for good");
    }
    assert!(!config.defers("gone.example") && !config.defers("other.example"));
}

#[test]
fn a_fleet_that_did_not_work_is_not_taken_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut keeper, _) = Keeper::open(dir.path(), None, &fine);
    let (way, held) = first();
    keeper.keep(Some(&way), &held).expect("kept");
    let mut other = fleet();
    other.hostname = "other.example".into();
    let (mut way, mut next) = delta(&held, 2, vec![("fleet".into(), part_json(&Part::Fleet(Box::new(other))).into())]);
    next.refuse_fleet(held.fleet(), "port 25 is taken");
    way.fleet_refused = Some("port 25 is taken".into());
    keeper.keep(Some(&way), &next).expect("kept");
    let loaded = load(dir.path(), None).1;
    assert_eq!(loaded.fleet().expect("the one before").hostname, "mx.localhost");
    assert_eq!(loaded.refused()["fleet"].message, "port 25 is taken");
}

#[derive(Clone, Debug)]
enum Step {
    Way(Vec<(u8, u8)>),
    Base,
    Restart,
    Tear(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec((0u8..5, 0u8..6), 0..4).prop_map(Step::Way),
        1 => Just(Step::Base),
        2 => Just(Step::Restart),
        2 => (1u16..2000).prop_map(Step::Tear),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Any ways, new bases, restarts and torn journals: what comes back is a state that was there, the newest one unless a tail was torn off.
    #[test]
    fn ways_restarts_and_torn_tails(steps in steps(), sealed in any::<bool>()) {
        let dir = tempfile::tempdir().expect("a directory");
        let key = sealed.then(|| key_file(dir.path(), 9));
        let (mut keeper, _) = Keeper::open(dir.path(), key.as_deref(), &fine);
        let (way, mut held) = first();
        keeper.keep(Some(&way), &held).expect("kept");
        let mut states = vec![seen(&held)];
        let mut number = 1;
        for step in steps {
            match step {
                Step::Way(changes) => {
                    number += 1;
                    let changes = changes.into_iter().map(|(who, what)| {
                        let (key, part) = tenant_json(&format!("t{who}"), &format!("d{what}.example"));
                        (key, if what == 0 { Bytes::new() } else { part })
                    });
                    // A key once a way, as the operator sends them.
                    let changes: std::collections::BTreeMap<_, _> = changes.collect();
                    let (way, next) = delta(&held, number, changes.into_iter().collect());
                    keeper.keep(Some(&way), &next).expect("kept");
                    held = next;
                    states.push(seen(&held));
                }
                Step::Base => keeper.keep(None, &held).expect("kept"),
                Step::Restart | Step::Tear(_) => {
                    drop(keeper);
                    if let Step::Tear(octets) = step {
                        let file = File::options().write(true).open(dir.path().join(JOURNAL)).expect("a journal");
                        let length = file.metadata().expect("there").len();
                        file.set_len(length.saturating_sub(u64::from(octets))).expect("torn");
                    }
                    let (again, loaded) = load(dir.path(), key.as_deref());
                    let state = seen(&loaded);
                    let at = states.iter().rposition(|known| *known == state);
                    prop_assert!(at.is_some(), "{state:?}");
                    if matches!(step, Step::Restart) {
                        prop_assert_eq!(&state, &seen(&held));
                    }
                    (keeper, held) = (again, loaded);
                    number = held.place().map_or(number, |place| place.number.max(number));
                }
            }
        }
    }
}
