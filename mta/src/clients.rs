//! Who connects: whether an address says anything of who it is, and how many of those seen lately do not. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Clients that are remembered at most.
pub const CLIENTS_MAX: usize = 1_000;
/// A client is remembered for so long after it connected, milliseconds.
pub const REMEMBERED_MS: u64 = 600_000;

/// Whether a client's address may be judged. One from the cluster's own networks is a node or a pod that passed the connection on: it hides who sends,
/// and SPF, lists and limits by address would meet the wrong one (DESIGN.md 7).
pub fn is_known(address: IpAddr, cluster_networks: &[IpNet]) -> bool {
    let address = address.to_canonical();
    !cluster_networks.iter().any(|network| network.contains(&address))
}

/// Clients seen lately.
#[derive(Debug, Default)]
pub struct Clients {
    seen: HashMap<IpAddr, (u64, bool)>,
}

impl Clients {
    /// One connected. When too many are remembered, another one that is new is not.
    pub fn saw(&mut self, address: IpAddr, is_known: bool, now_ms: u64) {
        if self.seen.len() >= CLIENTS_MAX && !self.seen.contains_key(&address) {
            self.sweep(now_ms);
            if self.seen.len() >= CLIENTS_MAX {
                return;
            }
        }
        self.seen.insert(address, (now_ms, is_known));
    }

    /// How many, and how many of them hide who they are.
    pub fn count(&mut self, now_ms: u64) -> (u32, u32) {
        self.sweep(now_ms);
        let masked = self.seen.values().filter(|(_, is_known)| !is_known).count();
        (self.seen.len() as u32, masked as u32)
    }

    fn sweep(&mut self, now_ms: u64) {
        self.seen.retain(|_, (at_ms, _)| at_ms.saturating_add(REMEMBERED_MS) > now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_cluster_say_nothing() {
        let networks: Vec<IpNet> = ["10.244.0.0/16", "192.168.7.2/32", "fd00::/8"].iter().map(|text| text.parse().expect("a network")).collect();
        for (address, known) in [
            ("10.244.3.1", false),
            ("::ffff:10.244.3.1", false),
            ("192.168.7.2", false),
            ("192.168.7.3", true),
            ("fd00::1", false),
            ("203.0.113.9", true),
            ("2001:db8::1", true),
            ("127.0.0.1", true),
        ] {
            assert_eq!(is_known(address.parse().expect("an address"), &networks), known, "{address}");
        }
        assert!(is_known("10.244.3.1".parse().expect("an address"), &[]), "alone, nothing is the cluster's");
    }

    #[test]
    fn clients_are_counted_for_ten_minutes_and_bounded() {
        let mut clients = Clients::default();
        clients.saw([10, 0, 0, 1].into(), false, 0);
        clients.saw([203, 0, 113, 9].into(), true, 0);
        clients.saw([203, 0, 113, 9].into(), true, 300_000);
        assert_eq!(clients.count(300_000), (2, 1));
        assert_eq!(clients.count(REMEMBERED_MS), (1, 0));
        (0..5000u32).for_each(|n| clients.saw(IpAddr::from(n.to_be_bytes()), true, 600_000));
        assert_eq!(clients.count(600_000), (CLIENTS_MAX as u32, 0));
        clients.saw([10, 0, 0, 1].into(), false, 2 * REMEMBERED_MS);
        assert_eq!(clients.count(2 * REMEMBERED_MS), (1, 1), "room again");
    }
}
