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

    fn follow(&mut self, distribution: &Distribution) -> bool {
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
    distribution.put(FLEET_KEY, json("fleet"));
    for n in 0..count {
        distribution.put(&format!("tenant/a/{n}"), json(n));
    }
    distribution.settle(0);
    distribution
}

#[test]
fn a_change_costs_itself_and_a_burst_one_number() {
    let mut distribution = tenants(1000);
    let mut gateway = Gateway::default();
    assert!(gateway.follow(&distribution), "everything at first");
    for n in 0..3 {
        distribution.put(&format!("tenant/a/{n}"), json("new"));
    }
    assert!(distribution.settle(1));
    let way = distribution.way(gateway.position.as_ref()).expect("a way");
    assert_eq!((way.full, way.changes.len(), way.to.number), (false, 3, 2));
    gateway.follow(&distribution);
    assert_eq!(gateway.hash().to_bytes().to_vec(), distribution.position().hash);
    assert!(distribution.way(gateway.position.as_ref()).is_none());
}

#[test]
fn what_is_as_it_was_is_no_change() {
    let mut distribution = tenants(3);
    assert!(!distribution.put("tenant/a/1", json(1)));
    assert!(!distribution.remove("tenant/a/none"));
    distribution.put("tenant/a/1", json("other"));
    distribution.put("tenant/a/1", json(1));
    assert!(!distribution.settle(1), "changed and changed back");
}

#[test]
fn another_history_gets_everything() {
    let distribution = tenants(5);
    let here = distribution.position();
    for (epoch, number, hash) in [
        (0, here.number, here.hash.clone()),
        (2, here.number, here.hash.clone()),
        (1, here.number + 1, here.hash.clone()),
        (1, here.number, vec![0; 32]),
        (1, 0, vec![1; 32]),
    ] {
        let way = distribution.way(Some(&Position { epoch, number, hash })).expect("a way");
        assert!(way.full && way.changes.len() == 6, "{epoch} {number}");
    }
    let mut raised = distribution;
    raised.raise(7);
    assert!(raised.way(Some(&here)).expect("a way").full, "a raised epoch is another history");
    raised.raise(3);
    assert_eq!(raised.epoch(), 7);
}

#[test]
fn mass_removals_wait_and_only_they() {
    let mut distribution = tenants(100);
    for n in 0..26 {
        distribution.remove(&format!("tenant/a/{n}"));
    }
    distribution.put("tenant/b/new", json("new"));
    assert!(distribution.settle(1), "the new tenant");
    assert_eq!((distribution.tenants(), distribution.removals_waiting()), (101, 26));
    distribution.put("tenant/a/3", json(3));
    assert_eq!(distribution.removals_waiting(), 25, "it is back");
    assert!(!distribution.remove("tenant/a/4"), "it waits already");
    assert!(distribution.confirm_removals(2));
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
    distribution.put(FLEET_KEY, json("fleet"));
    for n in 0..40 {
        distribution.put(&format!("tenant/a/{n}"), json("x".repeat(100_000)));
    }
    distribution.put("tenant/a/huge", json("x".repeat(3 << 20)));
    distribution.settle(0);
    let all: Vec<Changes> = pieces(distribution.way(None).expect("a way")).collect();
    assert!(all.len() > 4);
    for (index, piece) in all.iter().enumerate() {
        let bytes: usize = piece.changes.iter().map(|change| change.part.len()).sum();
        assert!(bytes <= sekimori_crds::stream::PIECE_BYTES_MAX || piece.changes.len() == 1);
        assert_eq!((piece.full, piece.last), (index == 0, index == all.len() - 1));
    }
    let empty = Way { to: distribution.position(), full: true, changes: vec![] };
    assert_eq!(pieces(empty).count(), 1, "an empty way is put in force, too");
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
                2 => { gateways[usize::from(value) % 3].follow(&distribution); }
                _ => { distribution.put(&key, json(value)); }
            }
        }
        distribution.settle(1000);
        for gateway in &mut gateways {
            gateway.follow(&distribution);
            prop_assert_eq!(gateway.hash().to_bytes().to_vec(), distribution.position().hash);
            prop_assert_eq!(gateway.parts.len(), distribution.keys().count());
            prop_assert!(distribution.way(gateway.position.as_ref()).is_none());
        }
    }
}
