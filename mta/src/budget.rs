//! Memory for messages in flight: a byte budget for the process, charged as bytes arrive, with a share per client network.
//!
//! When the budget is used up, the slowest transaction has to give its memory back (DESIGN.md 4.3): a few clients that
//! drip large messages must not be able to keep everybody else out. Pure: the caller tells who is evicted.

use std::collections::HashMap;
use std::net::IpAddr;

/// What a charge led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// The bytes are charged.
    Granted,
    /// The bytes are charged once this other transaction has been refused: its memory counts as free already.
    Evict(u64),
    /// This transaction is refused with 452 4.3.1 and charged nothing more.
    Refused,
}

/// A client network: /24 for IPv4, /56 for IPv6.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) & 0xffff_ff00).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !((1 << 72) - 1)).into()),
    }
}

#[derive(Debug)]
struct Transaction {
    /// `None`: its address says nothing, so that only the whole budget bounds it.
    network: Option<IpAddr>,
    bytes: u64,
    started_ms: u64,
    /// Content still arrives: only such a transaction can be evicted.
    receiving: bool,
}

/// The budget.
#[derive(Debug)]
pub struct Budget {
    capacity_bytes: u64,
    network_share_bytes: u64,
    used_bytes: u64,
    networks: HashMap<IpAddr, u64>,
    transactions: HashMap<u64, Transaction>,
    next: u64,
}

impl Budget {
    /// `network_share_percent` (1 to 100) of the capacity is the most that one client network may hold.
    pub fn new(capacity_bytes: u64, network_share_percent: u64) -> Self {
        Self {
            capacity_bytes,
            network_share_bytes: (capacity_bytes / 100).saturating_mul(network_share_percent.clamp(1, 100)),
            used_bytes: 0,
            networks: HashMap::new(),
            transactions: HashMap::new(),
            next: 0,
        }
    }

    /// A new transaction, charged nothing yet. `client` is `None` where the address hides who it is.
    pub fn begin(&mut self, client: Option<IpAddr>, now_ms: u64) -> u64 {
        self.next += 1;
        self.transactions.insert(self.next, Transaction { network: client.map(network_of), bytes: 0, started_ms: now_ms, receiving: true });
        self.next
    }

    /// Charges bytes that arrived.
    pub fn charge(&mut self, id: u64, bytes: u64, now_ms: u64) -> Charge {
        let Some(transaction) = self.transactions.get(&id) else { return Charge::Refused };
        let network = transaction.network;
        let held = network.and_then(|network| self.networks.get(&network).copied()).unwrap_or(0);
        let share_used_up = network.is_some() && held + bytes > self.network_share_bytes;
        if !share_used_up && self.used_bytes + bytes <= self.capacity_bytes {
            self.add(id, network, bytes);
            return Charge::Granted;
        }
        // Within a network, too: behind one address of a proxy or a node, a few slow clients must not keep all the others out.
        let Some(victim) = self.slowest(now_ms, network.filter(|_| share_used_up)) else { return Charge::Refused };
        let frees = self.transactions.get(&victim).map_or(0, |t| t.bytes);
        let still_beyond = share_used_up && held + bytes > self.network_share_bytes + frees;
        if victim == id || still_beyond || self.used_bytes + bytes > self.capacity_bytes + frees {
            return Charge::Refused;
        }
        self.end(victim);
        self.add(id, network, bytes);
        Charge::Evict(victim)
    }

    /// All content has arrived: from now on it cannot be evicted. False: it was before, and has no memory.
    pub fn received(&mut self, id: u64) -> bool {
        let transaction = self.transactions.get_mut(&id);
        transaction.map(|transaction| transaction.receiving = false).is_some()
    }

    /// The transaction is over, or was refused: its memory is free.
    pub fn end(&mut self, id: u64) {
        if let Some(transaction) = self.transactions.remove(&id) {
            self.used_bytes -= transaction.bytes;
            if let Some(network) = transaction.network
                && let Some(held) = self.networks.get_mut(&network)
            {
                *held -= transaction.bytes;
                if *held == 0 {
                    self.networks.remove(&network);
                }
            }
        }
    }

    /// Bytes charged now.
    pub const fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    fn add(&mut self, id: u64, network: Option<IpAddr>, bytes: u64) {
        if let Some(transaction) = self.transactions.get_mut(&id) {
            transaction.bytes += bytes;
            self.used_bytes += bytes;
            if let Some(network) = network {
                *self.networks.entry(network).or_insert(0) += bytes;
            }
        }
    }

    /// Of those (of a network) that hold memory and still receive, the one with the fewest bytes per millisecond; the older one of two equals.
    fn slowest(&self, now_ms: u64, network: Option<IpAddr>) -> Option<u64> {
        self.transactions
            .iter()
            .filter(|(_, t)| t.receiving && t.bytes > 0 && network.is_none_or(|network| t.network == Some(network)))
            .min_by_key(|(id, t)| (t.bytes.saturating_mul(1000) / now_ms.saturating_sub(t.started_ms).max(1), **id))
            .map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_slowest_gives_its_memory_back() {
        let mut budget = Budget::new(1000, 100);
        let slow = budget.begin(Some(ip("192.0.2.1")), 0);
        let fast = budget.begin(Some(ip("198.51.100.1")), 9_000);
        assert_eq!(budget.charge(slow, 500, 0), Charge::Granted);
        assert_eq!(budget.charge(fast, 500, 9_900), Charge::Granted);
        assert_eq!(budget.charge(fast, 400, 10_000), Charge::Evict(slow));
        assert_eq!(budget.used_bytes(), 900);
        assert_eq!(budget.charge(slow, 1, 10_000), Charge::Refused, "an evicted transaction is charged nothing more");
    }

    #[test]
    fn the_slowest_asking_is_refused_itself() {
        let mut budget = Budget::new(1000, 100);
        let fast = budget.begin(Some(ip("198.51.100.1")), 0);
        let slow = budget.begin(Some(ip("192.0.2.1")), 0);
        assert_eq!(budget.charge(fast, 900, 10), Charge::Granted);
        assert_eq!(budget.charge(slow, 100, 10), Charge::Granted);
        assert_eq!(budget.charge(slow, 100, 20), Charge::Refused);
    }

    #[test]
    fn received_content_is_not_evicted() {
        let mut budget = Budget::new(1000, 100);
        let done = budget.begin(Some(ip("192.0.2.1")), 0);
        assert_eq!(budget.charge(done, 1000, 0), Charge::Granted);
        budget.received(done);
        let late = budget.begin(Some(ip("198.51.100.1")), 0);
        assert_eq!(budget.charge(late, 1, 10), Charge::Refused);
        budget.end(done);
        assert_eq!(budget.charge(late, 1, 20), Charge::Granted);
    }

    #[test]
    fn one_network_has_its_share_only() {
        let mut budget = Budget::new(1000, 25);
        let a = budget.begin(Some(ip("192.0.2.1")), 0);
        let b = budget.begin(Some(ip("192.0.2.200")), 0);
        let other = budget.begin(Some(ip("192.0.3.1")), 0);
        assert_eq!(budget.charge(a, 200, 0), Charge::Granted);
        budget.received(a);
        assert_eq!(budget.charge(b, 51, 0), Charge::Refused);
        assert_eq!(budget.charge(b, 50, 0), Charge::Granted);
        assert_eq!(budget.charge(other, 250, 0), Charge::Granted);
    }

    #[test]
    fn the_slowest_of_a_network_gives_way_to_its_neighbours() {
        let mut budget = Budget::new(1000, 50);
        let elsewhere = budget.begin(Some(ip("198.51.100.1")), 0);
        let slow = budget.begin(Some(ip("192.0.2.1")), 0);
        assert_eq!(budget.charge(elsewhere, 1, 0), Charge::Granted, "slower, but its memory is of no use here");
        assert_eq!(budget.charge(slow, 400, 0), Charge::Granted);
        let quick = budget.begin(Some(ip("192.0.2.2")), 9_000);
        assert_eq!(budget.charge(quick, 100, 9_001), Charge::Granted);
        assert_eq!(budget.charge(quick, 501, 9_002), Charge::Refused, "nobody has more than the share");
        assert_eq!(budget.charge(quick, 200, 9_002), Charge::Evict(slow));
        assert_eq!(budget.used_bytes(), 301);
    }

    #[test]
    fn clients_that_hide_share_the_whole() {
        let mut budget = Budget::new(1000, 25);
        let (a, b) = (budget.begin(None, 0), budget.begin(None, 0));
        assert_eq!(budget.charge(a, 600, 0), Charge::Granted);
        assert_eq!(budget.charge(b, 400, 0), Charge::Granted);
        assert_eq!(budget.charge(b, 1, 1000), Charge::Refused, "but not more than that");
    }

    #[test]
    fn networks_are_slash_24_and_slash_56() {
        assert_eq!(network_of(ip("192.0.2.77")), ip("192.0.2.0"));
        assert_eq!(network_of(ip("::ffff:192.0.2.77")), ip("192.0.2.0"));
        assert_eq!(network_of(ip("2001:db8:1:2ff:3::1")), ip("2001:db8:1:200::"));
    }

    proptest::proptest! {
        #[test]
        fn what_is_charged_is_given_back(steps in proptest::collection::vec((0u8..4, 0u64..6, 0u64..700), 1..200)) {
            let mut budget = Budget::new(1000, 60);
            let mut open: Vec<u64> = vec![];
            for (now, (kind, which, bytes)) in steps.into_iter().enumerate() {
                let id = open.get(which as usize % open.len().max(1)).copied();
                match (kind, id) {
                    (0, _) => open.push(budget.begin((which % 4 != 3).then(|| IpAddr::from([192, 0, which as u8, 1])), now as u64)),
                    (1, Some(id)) => { let _ = budget.charge(id, bytes, now as u64); }
                    (2, Some(id)) => { budget.received(id); }
                    (_, Some(id)) => { budget.end(id); open.retain(|o| *o != id); }
                    (_, None) => {}
                }
                proptest::prop_assert!(budget.used_bytes() <= 1000);
                proptest::prop_assert_eq!(budget.used_bytes(), budget.transactions.values().map(|t| t.bytes).sum::<u64>());
                let unknown: u64 = budget.transactions.values().filter(|t| t.network.is_none()).map(|t| t.bytes).sum();
                proptest::prop_assert_eq!(budget.used_bytes(), budget.networks.values().sum::<u64>() + unknown);
                proptest::prop_assert!(budget.networks.values().all(|held| *held <= 600));
            }
            for id in open { budget.end(id); }
            proptest::prop_assert_eq!(budget.used_bytes(), 0);
        }
    }
}
