//! A resolver that answers from a table, for tests.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Absence, Kind, Lookup, Mx, Question, Record, Reply, Resolver, reverse_name};

/// Aliases followed for one question.
const ALIASES_MAX: usize = 8;

/// Seconds that an answer of the table may be kept.
const TTL_S: u32 = 300;

/// A zone table. Names that are not in it, nor above one that is, do not exist.
#[derive(Default)]
pub struct Fake {
    records: HashMap<(String, Kind), Vec<Record>>,
    aliases: HashMap<String, String>,
    failing: HashMap<String, Lookup<Record>>,
    asked: Mutex<Vec<Question>>,
}

impl Fake {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, name: &str, kind: Kind, record: Record) -> Self {
        self.records.entry((name.to_ascii_lowercase(), kind)).or_default().push(record);
        self
    }

    /// Adds a text.
    pub fn txt(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        self.with(name, Kind::Txt, Record::Txt(Bytes::copy_from_slice(text.as_ref())))
    }

    /// Adds an IPv4 address.
    pub fn a(self, name: &str, address: Ipv4Addr) -> Self {
        self.with(name, Kind::A, Record::A(address))
    }

    /// Adds an IPv6 address.
    pub fn aaaa(self, name: &str, address: Ipv6Addr) -> Self {
        self.with(name, Kind::Aaaa, Record::Aaaa(address))
    }

    /// Adds a mail exchanger.
    pub fn mx(self, name: &str, preference: u16, exchange: &str) -> Self {
        self.with(name, Kind::Mx, Record::Mx(Mx { preference, exchange: exchange.to_ascii_lowercase().into() }))
    }

    /// Adds a name of an address.
    pub fn ptr(self, address: IpAddr, name: &str) -> Self {
        self.ptr_at(&reverse_name(address), name)
    }

    /// Adds a PTR record at a name below `arpa`.
    pub fn ptr_at(self, reverse: &str, name: &str) -> Self {
        self.with(reverse, Kind::Ptr, Record::Ptr(name.to_ascii_lowercase().into()))
    }

    /// Adds an alias.
    pub fn cname(mut self, name: &str, target: &str) -> Self {
        self.aliases.insert(name.to_ascii_lowercase(), target.to_ascii_lowercase());
        self
    }

    /// Every question for what the table has not got at this name fails.
    pub fn failing(mut self, name: &str) -> Self {
        self.failing.insert(name.to_ascii_lowercase(), Lookup::TempError);
        self
    }

    /// Every question for what the table has not got at this name gets nonsense.
    pub fn malformed(mut self, name: &str) -> Self {
        self.failing.insert(name.to_ascii_lowercase(), Lookup::Malformed);
        self
    }

    /// What was asked so far, in order.
    pub fn asked(&self) -> Vec<Question> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn exists(&self, name: &str) -> bool {
        let at_or_below = |other: &str| other.strip_suffix(name).is_some_and(|left| left.is_empty() || left.ends_with('.'));
        self.records.keys().any(|(other, _)| at_or_below(other)) || self.aliases.keys().any(|other| at_or_below(other))
    }

    fn answer(&self, question: &Question) -> Lookup<Record> {
        let mut name = question.name();
        for _ in 0..ALIASES_MAX {
            if let Some(records) = self.records.get(&(name.to_owned(), question.kind())) {
                return Lookup::Records(records.iter().cloned().collect::<Arc<[Record]>>());
            }
            if let Some(failure) = self.failing.get(name) {
                return failure.clone();
            }
            match self.aliases.get(name) {
                Some(target) => name = target,
                None => return Lookup::Absent(if self.exists(name) { Absence::Data } else { Absence::Name }),
            }
        }
        Lookup::TempError
    }
}

impl Resolver for Fake {
    fn resolve<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Reply> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(question.clone());
        let reply = Reply { lookup: self.answer(question), ttl_s: TTL_S };
        Box::pin(std::future::ready(reply))
    }
}
