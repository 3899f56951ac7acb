//! The books: what was promised and what arrived. Every 250 must arrive at least once, and the bytes must be those that were sent.
//!
//! A message carries its number and the digest of itself in its first header field, `X-Load: <number> <digest>`. What a gateway adds stands above that
//! field, so everything from it on must arrive byte for byte. Source and sink run in one process and share this ledger.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

/// One message's entries.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    acknowledged: bool,
    refused: bool,
    arrived: u32,
    damaged: u32,
}

/// The ledger.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<HashMap<u64, Entry>>,
    /// How often each reply code decided about a message.
    codes: Mutex<BTreeMap<u16, u64>>,
}

/// The balance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Balance {
    /// Messages that were answered 250.
    pub acknowledged: u64,
    /// Messages that were answered 4xx or 5xx.
    pub refused: u64,
    /// Different messages that arrived.
    pub arrived: u64,
    /// Arrivals beyond the first.
    pub duplicates: u64,
    /// Acknowledged, but not arrived: lost.
    pub missing: u64,
    /// Arrivals whose bytes changed.
    pub damaged: u64,
}

impl Ledger {
    /// The message was answered 250.
    pub fn acknowledge(&self, number: u64) {
        self.entry(number, |entry| entry.acknowledged = true);
    }

    /// The message was refused.
    pub fn refuse(&self, number: u64) {
        self.entry(number, |entry| entry.refused = true);
    }

    /// The message was answered with this: 250 is a promise, anything else a refusal. Counted by code.
    pub fn answer(&self, number: u64, code: u16) {
        *self.codes.lock().expect("no panic while held").entry(code).or_default() += 1;
        if code == 250 { self.acknowledge(number) } else { self.refuse(number) }
    }

    /// How often each reply code decided about a message so far.
    pub fn codes(&self) -> BTreeMap<u16, u64> {
        self.codes.lock().expect("no panic while held").clone()
    }

    /// The message was kept by the sink.
    pub fn arrive(&self, number: u64, intact: bool) {
        self.entry(number, |entry| {
            entry.arrived += 1;
            entry.damaged += u32::from(!intact);
        });
    }

    /// The balance now.
    pub fn balance(&self) -> Balance {
        let entries = self.entries.lock().expect("no panic while held");
        let mut balance = Balance::default();
        for entry in entries.values() {
            balance.acknowledged += u64::from(entry.acknowledged);
            balance.refused += u64::from(entry.refused);
            balance.arrived += u64::from(entry.arrived > 0);
            balance.duplicates += u64::from(entry.arrived.saturating_sub(1));
            balance.missing += u64::from(entry.acknowledged && entry.arrived == 0);
            balance.damaged += u64::from(entry.damaged);
        }
        balance
    }

    /// Numbers of up to `limit` messages that are missing.
    pub fn missing(&self, limit: usize) -> Vec<u64> {
        let entries = self.entries.lock().expect("no panic while held");
        let mut numbers: Vec<u64> = entries.iter().filter(|(_, e)| e.acknowledged && e.arrived == 0).map(|(n, _)| *n).collect();
        numbers.sort_unstable();
        numbers.truncate(limit);
        numbers
    }

    fn entry(&self, number: u64, change: impl FnOnce(&mut Entry)) {
        change(self.entries.lock().expect("no panic while held").entry(number).or_default());
    }
}

/// 64 bits of a digest of the bytes: enough to notice any change that is not made on purpose.
pub fn digest(bytes: &[u8]) -> u64 {
    // FNV over 8-byte words: a few microseconds for 50 KB, as source and sink share two cores with what they measure.
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64;
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        hash = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME).rotate_left(23);
    }
    for byte in tail {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME).rotate_left(23);
    }
    hash
}

/// The name of the field that carries number and digest.
pub const FIELD: &str = "X-Load";

/// Puts the field before the rest of a message.
pub fn mark(number: u64, rest: &[u8]) -> Vec<u8> {
    let mut message = format!("{FIELD}: {number} {:016x}\r\n", digest(rest)).into_bytes();
    message.extend_from_slice(rest);
    message
}

/// Finds the field in a message that arrived: its number, and whether everything below is as it was sent.
pub fn read(message: &[u8]) -> Option<(u64, bool)> {
    let start = memchr::memmem::find(message, b"X-Load: ").filter(|at| *at == 0 || message.get(at - 1) == Some(&b'\n'))?;
    let (_, field) = message.split_at(start);
    let end = memchr::memmem::find(field, b"\r\n")?;
    let (line, rest) = field.split_at(end + 2);
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace().skip(1);
    let number = words.next()?.parse().ok()?;
    let sent = u64::from_str_radix(words.next()?, 16).ok()?;
    Some((number, digest(rest) == sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_balance() {
        let ledger = Ledger::default();
        ledger.acknowledge(1);
        ledger.acknowledge(2);
        ledger.refuse(3);
        ledger.arrive(1, true);
        ledger.arrive(1, true);
        ledger.arrive(4, false);
        let expected = Balance { acknowledged: 2, refused: 1, arrived: 2, duplicates: 1, missing: 1, damaged: 1 };
        assert_eq!(ledger.balance(), expected);
        assert_eq!(ledger.missing(9), [2]);
    }

    #[test]
    fn codes_are_counted() {
        let ledger = Ledger::default();
        for (number, code) in [(1, 250), (2, 451), (3, 451), (4, 550)] {
            ledger.answer(number, code);
        }
        assert_eq!(ledger.codes(), BTreeMap::from([(250, 1), (451, 2), (550, 1)]));
        let balance = ledger.balance();
        assert_eq!((balance.acknowledged, balance.refused), (1, 3));
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let message = mark(77, b"Subject: x\r\n\r\nbody of some length, so that words and tail both count\r\n");
        let mut arrived = b"Received: from somewhere\r\n".to_vec();
        arrived.extend_from_slice(&message);
        assert_eq!(read(&arrived), Some((77, true)));
        for at in arrived.len() - 60..arrived.len() {
            let mut changed = arrived.clone();
            changed[at] ^= 1;
            assert_eq!(read(&changed), Some((77, false)), "byte {at}");
        }
        let mut longer = arrived.clone();
        longer.push(b'x');
        assert_eq!(read(&longer), Some((77, false)));
        assert_eq!(read(b"Subject: y\r\n\r\n"), None);
    }
}
