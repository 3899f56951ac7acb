use proptest::prelude::*;

use super::*;
use sekimori_crds::stream::Changes;

/// A gateway's side, as the `.proto` says it.
#[derive(Clone, Debug, Default)]
struct Gateway {
    parts: BTreeMap<String, Bytes>,
    position: Option<Position>,
}

impl Gateway {
    fn take(&mut self, pieces: impl Iterator<Item = Changes>) {
        for piece in pieces {
            if piece.full {
                self.parts.clear();
            }
            for change in piece.changes {
                if change.part.is_empty() {
                    self.parts.remove(&change.key)
                } else {
                    self.parts.insert(change.key, change.part)
                };
            }
            if piece.last {
                self.position = piece.to;
            }
        }
    }

    fn hash(&self) -> RollingHash {
        let mut hash = RollingHash::default();
        self.parts.iter().for_each(|(key, json)| hash.add_words(part_words(key, json)));
        hash
    }

    fn follow(&mut self, distribution: &mut Distribution) -> bool {
        match distribution.way(self.position.as_ref()) {
            Some(way) => {
                let full = way.full;
                self.take(pieces(way));
                full
            }
            None => false,
        }
    }
}

fn json(text: impl ToString) -> Bytes {
    Bytes::from(format!("{{\"v\":\"{}\"}}", text.to_string()))
}

fn tenants(count: usize) -> Distribution {
    let mut distribution = Distribution::new(1);
    distribution.put(FLEET_KEY, &json("fleet"));
    for n in 0..count {
        distribution.put(&format!("tenant/a/{n}"), &json(n));
    }
    distribution.settle(0);
    distribution
}

#[test]
fn a_change_costs_itself_and_a_burst_one_number() {
    let mut distribution = tenants(1000);
    let mut gateway = Gateway::default();
    assert!(gateway.follow(&mut distribution), "everything at first");
    for n in 0..3 {
        distribution.put(&format!("tenant/a/{n}"), &json("new"));
    }
    assert!(distribution.settle(1));
    let way = distribution.way(gateway.position.as_ref()).expect("a way");
    assert_eq!((way.full, way.len(), way.to.number), (false, 3, 2));
    gateway.follow(&mut distribution);
    assert_eq!(gateway.hash().to_bytes().to_vec(), distribution.position().hash);
    assert!(distribution.way(gateway.position.as_ref()).is_none());
}

#[test]
fn what_is_as_it_was_is_no_change() {
    let mut distribution = tenants(3);
    assert!(!distribution.put("tenant/a/1", &json(1)));
    assert!(!distribution.remove("tenant/a/none"));
    distribution.put("tenant/a/1", &json("other"));
    distribution.put("tenant/a/1", &json(1));
    assert!(!distribution.settle(1), "changed and changed back");
}

#[test]
fn another_history_gets_everything_and_equal_parts_nothing() {
    let mut distribution = tenants(5);
    let here = distribution.position();
    for (epoch, number, hash, full) in [
        (0, here.number, vec![7; 32], true),
        (2, here.number, vec![7; 32], true),
        (1, here.number + 1, vec![7; 32], true),
        (1, here.number, vec![0; 32], true),
        (1, 0, vec![1; 32], true),
        (1, u64::MAX, vec![1; 32], true),
        (u64::MAX, 3, vec![], true),
        (0, 77, here.hash.clone(), false),
        (1, here.number + 1, here.hash.clone(), false),
    ] {
        let way = distribution.way(Some(&Position { epoch, number, hash })).expect("a way");
        assert_eq!((way.full, way.len()), (full, if full { 6 } else { 0 }), "{epoch} {number}");
        assert_eq!(way.to, here);
    }
    assert!(
        distribution.is_foreign(&Position::new(2, 0, RollingHash::default()))
            && distribution.is_foreign(&Position::new(1, 2, RollingHash::default()))
    );
    assert!(!distribution.is_foreign(&Position::new(0, 99, RollingHash::default())) && !distribution.is_foreign(&here));
    let mut old = Gateway::default();
    old.follow(&mut distribution);
    distribution.put("tenant/a/1", &json("new"));
    distribution.settle(1);
    distribution.raise(7);
    distribution.raise(3);
    assert_eq!(distribution.epoch(), 7);
    assert!(old.follow(&mut distribution), "a raised epoch is another history");
    assert_eq!(old.position, Some(distribution.position()));
}

#[test]
fn a_tenant_that_comes_back_does_not_count_nor_do_confirmed_removals() {
    let mut distribution = tenants(40);
    for n in 0..60 {
        let key = format!("tenant/a/{}", n % 20);
        distribution.remove(&key);
        distribution.settle(n);
        distribution.put(&key, &json("again"));
        distribution.settle(n);
    }
    assert_eq!((distribution.tenants(), distribution.removals_waiting()), (40, 0), "sixty replacements are no removal");
    for n in 0..30 {
        distribution.remove(&format!("tenant/a/{n}"));
    }
    distribution.settle(100);
    assert!(!distribution.confirm_removals(29), "that many were not asked about");
    assert!(distribution.confirm_removals(30) && !distribution.confirm_removals(0));
    distribution.remove("tenant/a/39");
    distribution.settle(103);
    assert_eq!((distribution.tenants(), distribution.removals_waiting()), (9, 0));
}

#[test]
fn a_successor_that_finds_far_fewer_tenants_leaves_gateways_alone() {
    let mut before = tenants(100);
    let mut gateway = Gateway::default();
    gateway.follow(&mut before);
    let had = gateway.position.clone();
    let mut distribution = Distribution::new(2);
    distribution.expect_tenants(100);
    distribution.put(FLEET_KEY, &json("fleet"));
    for n in 0..74 {
        distribution.put(&format!("tenant/a/{n}"), &json(n));
    }
    distribution.settle(0);
    assert_eq!(distribution.removals_waiting(), 26);
    assert!(distribution.way(had.as_ref()).is_none(), "it keeps what it has");
    let mut new = Gateway::default();
    assert!(distribution.way(None).is_none(), "one that has nothing would refuse the mail of those that are missing");
    distribution.put("tenant/b/new", &json("new"));
    distribution.put("tenant/a/1", &json("changed"));
    let mut confirmed = Distribution::new(3);
    confirmed.expect_tenants(100);
    confirmed.put(FLEET_KEY, &json("fleet"));
    confirmed.settle(0);
    assert_eq!((confirmed.removals_waiting(), confirmed.confirm_removals(100), confirmed.removals_waiting()), (100, true, 0));
    assert!(confirmed.way(had.as_ref()).expect("a way").full);
    distribution.settle(1);
    assert_eq!(distribution.removals_waiting(), 0, "75 of 100 are near enough");
    assert!(gateway.follow(&mut distribution) && new.follow(&mut distribution));
    assert_eq!((gateway.hash(), gateway.parts.len()), (new.hash(), 76));
}

/// As after an API server was restored from a backup: what the status says is as old as the tenants.
#[test]
fn what_gateways_have_counts_more_than_what_the_cluster_remembers() {
    let position = |epoch, number| Position::new(epoch, number, RollingHash::default());
    let begin = || {
        let mut distribution = Distribution::new(2);
        distribution.expect_tenants(50);
        distribution.put(FLEET_KEY, &json("fleet"));
        for n in 0..50 {
            distribution.put(&format!("tenant/a/{n}"), &json(n));
        }
        distribution.settle(0);
        assert!(distribution.has_all() && distribution.way(None).is_some());
        distribution
    };
    // The gateway is ahead of the restored epoch, or behind it, or does not know where it stands.
    for have in [Some(position(7, 3)), Some(position(1, 3)), None] {
        let mut restored = begin();
        restored.heard(have.as_ref(), 100);
        assert_eq!(restored.removals_waiting(), 50);
        assert!(restored.way(have.as_ref()).is_none() && restored.way(None).is_none(), "{have:?}");
        restored.raise(8);
        assert!(restored.way(have.as_ref()).is_none(), "{have:?}");
        assert!(restored.confirm_removals(50) && restored.way(have.as_ref()).is_some_and(|way| way.full));
        restored.heard(have.as_ref(), 100);
        assert_eq!(restored.removals_waiting(), 0, "the next gateway is not asked about again");
    }
    // One that was away for a month comes before those that followed all the time, and after they did.
    let mut distribution = begin();
    distribution.heard(Some(&position(1, 900)), 50);
    distribution.heard(Some(&position(1, 3)), 1000);
    assert!(distribution.has_all(), "an older position says nothing");
    let mut distribution = begin();
    distribution.reached();
    distribution.heard(Some(&position(1, 999)), 1000);
    distribution.heard(None, 1000);
    assert!(distribution.has_all(), "others have taken ours");
    distribution.heard(Some(&position(2, 0)), 1000);
    assert!(distribution.has_all(), "one of ours");
    distribution.heard(Some(&position(9, 1)), 1000);
    assert!(!distribution.has_all(), "one of a later history than ours");
}

#[test]
fn parts_are_packed_and_come_out_as_they_went_in() {
    let mut distribution = Distribution::new(1);
    let filler: String = (0..40).map(|n| format!("\"setting{n}\":\"a default that all tenants share\",")).collect();
    let part = |n: usize| format!("{{{filler}\"name\":\"tenant-{n}\"}}").into_bytes();
    for n in 0..1000 {
        distribution.put(&format!("tenant/a/{n}"), &part(n));
    }
    distribution.put("tenant/b/empty", b"{}");
    distribution.put("tenant/b/random", &(0..4000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<u8>>());
    distribution.settle(0);
    let (json, packed) = distribution.bytes();
    assert!(packed * 10 < json, "{packed} of {json}");
    let mut gateway = Gateway::default();
    gateway.follow(&mut distribution);
    assert_eq!(gateway.parts.get("tenant/a/77").map(|part| part.to_vec()), Some(part(77)));
    assert_eq!(gateway.hash().to_bytes().to_vec(), distribution.position().hash);
    assert_eq!(distribution.part("tenant/a/78").map(|part| part.to_vec()), Some(part(78)));
    distribution.put("tenant/a/78", b"{}");
    distribution.remove("tenant/a/79");
    assert_eq!((distribution.part("tenant/a/78"), distribution.part("tenant/a/79")), (Some(Bytes::from_static(b"{}")), None), "staged ones count");
}

#[test]
fn mass_removals_wait_and_only_they() {
    let mut distribution = tenants(100);
    for n in 0..26 {
        distribution.remove(&format!("tenant/a/{n}"));
    }
    distribution.put("tenant/b/new", &json("new"));
    assert!(distribution.settle(1), "the new tenant");
    assert_eq!((distribution.tenants(), distribution.removals_waiting()), (101, 26));
    distribution.put("tenant/a/3", &json(3));
    assert_eq!(distribution.removals_waiting(), 25, "it is back");
    assert!(!distribution.remove("tenant/a/4"), "it waits already");
    assert!(distribution.confirm_removals(25));
    assert_eq!((distribution.tenants(), distribution.removals_waiting()), (76, 0));
}

#[test]
fn a_few_removals_do_not_wait_but_a_drip_of_them_does() {
    let mut distribution = tenants(40);
    for n in 0..20 {
        distribution.remove(&format!("tenant/a/{n}"));
        distribution.settle(n);
    }
    assert_eq!((distribution.tenants(), distribution.removals_waiting()), (20, 0), "twenty are free");
    distribution.remove("tenant/a/20");
    distribution.settle(21);
    assert_eq!((distribution.tenants(), distribution.removals_waiting()), (20, 1), "one more within ten minutes is not");
    distribution.remove("tenant/a/21");
    distribution.settle(22 + REMOVALS_WINDOW_MS);
    assert_eq!((distribution.tenants(), distribution.removals_waiting()), (19, 1), "later it is, and what waits goes on waiting");
}

#[test]
fn pieces_fit_and_end_with_the_last() {
    let mut distribution = Distribution::new(1);
    distribution.put(FLEET_KEY, &json("fleet"));
    for n in 0..40 {
        distribution.put(&format!("tenant/a/{n}"), &json("x".repeat(100_000)));
    }
    distribution.put("tenant/a/huge", &json("x".repeat(3 << 20)));
    distribution.settle(0);
    let all: Vec<Changes> = pieces(distribution.way(None).expect("a way")).collect();
    assert!(all.len() > 4);
    for (index, piece) in all.iter().enumerate() {
        let bytes: usize = piece.changes.iter().map(|change| change.part.len()).sum();
        assert!(bytes <= PIECE_BYTES || piece.changes.len() == 1);
        assert_eq!((piece.full, piece.last), (index == 0, index == all.len() - 1));
    }
    assert_eq!(pieces(distribution.nothing()).count(), 1, "an empty way is put in force, too");
}

proptest! {
    #[test]
    fn a_gateway_from_anywhere_comes_to_the_same(
        steps in prop::collection::vec((0_u8..12, 0_u8..4, 0_u8..5), 1..80),
    ) {
        let mut distribution = Distribution::new(1);
        let mut gateways = [Gateway::default(), Gateway::default(), Gateway::default()];
        for (now_ms, (key, value, action)) in steps.into_iter().enumerate() {
            let key = if key == 0 { FLEET_KEY.to_owned() } else { format!("tenant/a/{key}") };
            match action {
                0 => { distribution.remove(&key); }
                1 => { distribution.settle(now_ms as u64); }
                2 => { gateways[usize::from(value) % 3].follow(&mut distribution); }
                _ => { distribution.put(&key, &json(value)); }
            }
        }
        distribution.settle(1000);
        for gateway in &mut gateways {
            gateway.follow(&mut distribution);
            prop_assert_eq!(gateway.hash().to_bytes().to_vec(), distribution.position().hash);
            prop_assert_eq!(gateway.parts.len(), distribution.keys().count());
            prop_assert!(distribution.way(gateway.position.as_ref()).is_none());
        }
    }
}
