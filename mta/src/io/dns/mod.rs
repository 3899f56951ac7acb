//! DNS: one trait for whoever asks, a resolver over the network, a cache before it, a bound per message, a fake for tests.
//!
//! Every question of the gateway goes through [`Resolver`], so that configured servers, time limits and budgets hold for all.

mod budget;
mod cache;
mod fake;
mod network;

pub use budget::{Budget, BudgetLimits};
pub use cache::{CacheLimits, Cached};
pub use fake::Fake;
pub use network::{Network, NetworkError, NetworkOptions};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::authentication::domain;

/// Bytes of all records of one answer together; a longer answer is [`Lookup::Malformed`].
pub const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Records of one answer; further ones are not looked at.
pub const ANSWER_RECORDS_MAX: usize = 256;

/// The types that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Mail exchangers.
    Mx,
    /// Names of an address.
    Ptr,
    /// Texts.
    Txt,
}

/// A question: a well-formed name (lower case, A-labels, no final dot) and a type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    name: Arc<str>,
    kind: Kind,
}

impl Question {
    /// `None` when no such name can exist in DNS: an empty label, one over 63 bytes, a name over 253.
    pub fn new(name: &str, kind: Kind) -> Option<Self> {
        domain::normalise(name).map(|name| Self { name: name.into(), kind })
    }

    /// The question for the names of an address.
    pub fn reverse(address: IpAddr) -> Self {
        Self { name: reverse_name(address).into(), kind: Kind::Ptr }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// One record's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An address.
    A(Ipv4Addr),
    /// An address.
    Aaaa(Ipv6Addr),
    /// A mail exchanger.
    Mx(Mx),
    /// A name, lower case, without final dot.
    Ptr(Arc<str>),
    /// The character strings of one TXT record put together (RFC 7208 section 3.3).
    Txt(Bytes),
}

impl Record {
    fn bytes(&self) -> usize {
        match self {
            Self::A(_) => 4,
            Self::Aaaa(_) => 16,
            Self::Mx(mx) => mx.exchange.len() + 2,
            Self::Ptr(name) => name.len(),
            Self::Txt(text) => text.len(),
        }
    }
}

/// A mail exchanger; an empty `exchange` is the null MX (RFC 7505).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mx {
    /// Lower is tried first.
    pub preference: u16,
    /// Host, lower case, without final dot.
    pub exchange: Arc<str>,
}

/// How a name has no such records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The name does not exist (NXDOMAIN).
    Name,
    /// The name exists, or may, but has none of this type (NODATA).
    Data,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// At least one.
    Records(Arc<[T]>),
    /// None, for certain.
    Absent(Absence),
    /// No answer for now: time ran out, the server failed, or the budget is used up.
    TempError,
    /// An answer that cannot be used.
    Malformed,
}

impl<T> Lookup<T> {
    /// The records, none when there is no answer.
    pub fn records(&self) -> &[T] {
        match self {
            Self::Records(records) => records,
            Self::Absent(_) | Self::TempError | Self::Malformed => &[],
        }
    }

    /// No answer that could be used: asking again later may give one.
    pub fn failed(&self) -> bool {
        matches!(self, Self::TempError | Self::Malformed)
    }

    /// What `pick` makes of the records; where that is nothing, there is no such data.
    pub fn pick<U>(&self, pick: impl Fn(&T) -> Option<U>) -> Lookup<U> {
        match self {
            Self::Records(records) => {
                let picked: Arc<[U]> = records.iter().filter_map(pick).collect();
                if picked.is_empty() { Lookup::Absent(Absence::Data) } else { Lookup::Records(picked) }
            }
            Self::Absent(absence) => Lookup::Absent(*absence),
            Self::TempError => Lookup::TempError,
            Self::Malformed => Lookup::Malformed,
        }
    }
}

/// An answer and how long it may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The answer.
    pub lookup: Lookup<Record>,
    /// Seconds.
    pub ttl_s: u32,
}

impl Reply {
    /// No answer for now.
    pub const TEMP_ERROR: Self = Self { lookup: Lookup::TempError, ttl_s: 0 };
}

/// Whoever answers questions. Implementations give [`resolve`](Self::resolve); callers use the rest.
pub trait Resolver: Send + Sync {
    /// Answers one question. Never fails otherwise than by what the reply says.
    fn resolve<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Reply>;

    /// Texts of a name.
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Lookup<Bytes>> {
        Box::pin(async move {
            let lookup = ask(self, name, Kind::Txt).await;
            lookup.pick(|record| if let Record::Txt(text) = record { Some(text.clone()) } else { None })
        })
    }

    /// IPv4 addresses of a name.
    fn a<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Lookup<Ipv4Addr>> {
        Box::pin(async move { ask(self, name, Kind::A).await.pick(|record| if let Record::A(address) = record { Some(*address) } else { None }) })
    }

    /// IPv6 addresses of a name.
    fn aaaa<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Lookup<Ipv6Addr>> {
        Box::pin(async move {
            let lookup = ask(self, name, Kind::Aaaa).await;
            lookup.pick(|record| if let Record::Aaaa(address) = record { Some(*address) } else { None })
        })
    }

    /// Mail exchangers of a name, in no order.
    fn mx<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Lookup<Mx>> {
        Box::pin(async move { ask(self, name, Kind::Mx).await.pick(|record| if let Record::Mx(mx) = record { Some(mx.clone()) } else { None }) })
    }

    /// Names of an address.
    fn ptr(&self, address: IpAddr) -> BoxFuture<'_, Lookup<Arc<str>>> {
        Box::pin(async move {
            let question = Question::reverse(address);
            let lookup = self.resolve(&question).await.lookup;
            lookup.pick(|record| if let Record::Ptr(name) = record { Some(name.clone()) } else { None })
        })
    }

    /// All addresses of a host, IPv4 first. Both types are asked for at once; one that fails does not hide the other's addresses.
    fn lookup_ips<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Lookup<IpAddr>> {
        Box::pin(async move {
            let (four, six) = futures_util::future::join(self.a(host), self.aaaa(host)).await;
            let all: Arc<[IpAddr]> = four.records().iter().copied().map(IpAddr::V4).chain(six.records().iter().copied().map(IpAddr::V6)).collect();
            if !all.is_empty() {
                Lookup::Records(all)
            } else if four.failed() || six.failed() {
                Lookup::TempError
            } else if four == Lookup::Absent(Absence::Name) {
                Lookup::Absent(Absence::Name)
            } else {
                Lookup::Absent(Absence::Data)
            }
        })
    }
}

impl<R: Resolver + ?Sized> Resolver for Arc<R> {
    fn resolve<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Reply> {
        self.as_ref().resolve(question)
    }
}

/// A name that cannot be is absent, and nobody is asked.
async fn ask<R: Resolver + ?Sized>(resolver: &R, name: &str, kind: Kind) -> Lookup<Record> {
    match Question::new(name, kind) {
        Some(question) => resolver.resolve(&question).await.lookup,
        None => Lookup::Absent(Absence::Name),
    }
}

/// The name below `in-addr.arpa` or `ip6.arpa` (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let mut name = String::with_capacity(72);
            for octet in v6.octets().iter().rev() {
                for nibble in [octet & 15, octet >> 4] {
                    name.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
                    name.push('.');
                }
            }
            name.push_str("ip6.arpa");
            name
        }
    }
}
