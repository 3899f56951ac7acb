//! Which way to a tenant's server: priority first, then weight.

use sekimori_crds::snapshot::RoutePart;

/// The usable routes in the order in which to try them: lower priorities first, within one priority a draw by weight (each place is drawn from those that are left).
/// A route of weight 0 comes after all others of its priority. The same `random` gives the same order.
pub fn order(routes: &[RoutePart], usable: impl Fn(&RoutePart) -> bool, random: u64) -> Vec<&RoutePart> {
    let mut left: Vec<&RoutePart> = routes.iter().filter(|route| usable(route)).collect();
    left.sort_by_key(|route| route.priority);
    if left.len() < 2 {
        return left;
    }
    let mut ordered = Vec::with_capacity(left.len());
    let mut random = random;
    while let Some(priority) = left.first().map(|route| route.priority) {
        let same = left.iter().take_while(|route| route.priority == priority).count();
        let total: u64 = left.iter().take(same).map(|route| u64::from(route.weight)).sum();
        random = mixed(random);
        let mut drawn = if total == 0 { 0 } else { random % total };
        let mut chosen = 0;
        for (index, route) in left.iter().take(same).enumerate() {
            let weight = u64::from(route.weight);
            if weight > drawn {
                chosen = index;
                break;
            }
            drawn -= weight;
        }
        ordered.push(left.remove(chosen));
    }
    ordered
}

/// The next number of a sequence that looks random (splitmix64).
const fn mixed(seed: u64) -> u64 {
    let mut word = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use sekimori_crds::vocabulary::{RouteLookup, RouteTls};

    use super::*;

    fn route(name: &str, priority: u32, weight: u32) -> RoutePart {
        RoutePart { name: name.into(), host: "h".into(), lookup: RouteLookup::Address, port: 25, priority, weight, tls: RouteTls::Disabled }
    }

    fn names(routes: &[RoutePart], down: &[&str], random: u64) -> Vec<String> {
        order(routes, |route| !down.contains(&route.name.as_str()), random).iter().map(|route| route.name.clone()).collect()
    }

    #[test]
    fn priority_then_weight() {
        let routes = [route("backup", 20, 100), route("a", 10, 300), route("b", 10, 100), route("last", 10, 0)];
        let mut first_a = 0;
        for random in 0..4000 {
            let got = names(&routes, &[], random);
            assert_eq!(got.len(), 4);
            assert_eq!(got[3], "backup");
            assert_eq!(got[2], "last");
            first_a += usize::from(got[0] == "a");
            assert_eq!(got, names(&routes, &[], random), "the same number, the same order");
        }
        assert!((2850..3150).contains(&first_a), "three of four, got {first_a} of 4000");
    }

    #[test]
    fn what_is_down_is_skipped() {
        let routes = [route("a", 10, 100), route("b", 10, 100), route("backup", 20, 100)];
        for (down, wanted) in [(vec!["a"], vec!["b", "backup"]), (vec!["a", "b"], vec!["backup"]), (vec!["a", "b", "backup"], vec![])] {
            assert_eq!(names(&routes, &down, 7), wanted);
        }
        assert!(names(&[], &[], 7).is_empty());
    }

    #[test]
    fn no_weight_at_all() {
        assert_eq!(names(&[route("a", 1, 0), route("b", 1, 0)], &[], 3), ["a", "b"]);
    }
}
