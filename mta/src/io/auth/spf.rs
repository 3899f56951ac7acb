//! `check_host()` of RFC 7208 section 4 over any [`Resolver`].

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::authentication::spf::{self, Directive, Mechanism, Target, covers4, covers6};
use crate::authentication::spf_macro::{DomainSpec, Values};
use crate::authentication::{Spf, domain};
use crate::io::dns::{Absence, Lookup, Resolver};

/// Terms that cost lookups, in all records of one evaluation (section 4.6.4).
const TERMS_MAX: u32 = 10;

/// Lookups that find nothing (section 4.6.4).
const VOIDS_MAX: u32 = 2;

/// Mail exchangers of one `mx`, and names of one address (section 4.6.4).
const NAMES_MAX: usize = 10;

/// Who sent it, as SPF asks.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The client's address; an IPv4-mapped one counts as IPv4.
    pub client: IpAddr,
    /// What it said in HELO.
    pub helo: &'a str,
    /// Local part of MAIL FROM; `postmaster` where it has none.
    pub local: &'a str,
    /// Domain of MAIL FROM, or HELO for the null sender.
    pub domain: &'a str,
}

/// Evaluates. Never fails otherwise than by the result.
pub async fn check_host(resolver: &dyn Resolver, identity: Identity<'_>) -> Spf {
    // A name of one label, an address literal or a malformed name has no record (section 4.3).
    let Some(start) = domain::mail_domain(identity.domain) else { return Spf::None };
    let client = match identity.client {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    };
    let local = if identity.local.is_empty() { "postmaster" } else { identity.local };
    let mut evaluation =
        Evaluation { resolver, identity: Identity { client, local, ..identity }, sender_domain: start.clone(), terms: 0, voids: 0, validated: None };
    evaluation.check(start).await.unwrap_or_else(|stop| match stop {
        Stop::Temporary => Spf::TempError,
        Stop::Permanent => Spf::PermError,
    })
}

/// The whole evaluation ends.
enum Stop {
    Temporary,
    Permanent,
}

struct Evaluation<'a> {
    resolver: &'a dyn Resolver,
    identity: Identity<'a>,
    sender_domain: String,
    terms: u32,
    voids: u32,
    /// Validated names of the client, once they were asked for.
    validated: Option<Arc<[Arc<str>]>>,
}

impl Evaluation<'_> {
    /// One domain's record. Recursion is bounded by `TERMS_MAX`: each level costs a term.
    fn check(&mut self, name: String) -> BoxFuture<'_, Result<Spf, Stop>> {
        Box::pin(async move {
            let Some(record) = self.record(&name).await? else { return Ok(Spf::None) };
            for directive in &record.directives {
                if self.matches(directive, &name).await? {
                    return Ok(directive.qualifier);
                }
            }
            let Some(redirect) = &record.redirect else { return Ok(Spf::Neutral) };
            self.term()?;
            let Some(target) = self.expand(redirect, &name).await else { return Err(Stop::Permanent) };
            match self.check(target).await? {
                Spf::None => Err(Stop::Permanent),
                result => Ok(result),
            }
        })
    }

    async fn record(&self, name: &str) -> Result<Option<spf::Record>, Stop> {
        let texts = match self.resolver.txt(name).await {
            Lookup::Records(texts) => texts,
            Lookup::Absent(_) => return Ok(None),
            Lookup::TempError | Lookup::Malformed => return Err(Stop::Temporary),
        };
        let mut records = texts.iter().filter(|text| spf::is_record(text));
        match (records.next(), records.next()) {
            (None, _) => Ok(None),
            (Some(text), None) => spf::parse(text).map(Some).map_err(|_| Stop::Permanent),
            (Some(_), Some(_)) => Err(Stop::Permanent),
        }
    }

    async fn matches(&mut self, directive: &Directive, name: &str) -> Result<bool, Stop> {
        match &directive.mechanism {
            Mechanism::All => Ok(true),
            Mechanism::Ip4(network, bits) => Ok(matches!(self.identity.client, IpAddr::V4(client) if covers4(*network, *bits, client))),
            Mechanism::Ip6(network, bits) => Ok(matches!(self.identity.client, IpAddr::V6(client) if covers6(*network, *bits, client))),
            Mechanism::Include(spec) => {
                self.term()?;
                let Some(target) = self.expand(spec, name).await else { return Err(Stop::Permanent) };
                match self.check(target).await? {
                    Spf::Pass => Ok(true),
                    Spf::Fail | Spf::SoftFail | Spf::Neutral => Ok(false),
                    Spf::TempError => Err(Stop::Temporary),
                    Spf::None | Spf::PermError => Err(Stop::Permanent),
                }
            }
            Mechanism::A(target) => {
                self.term()?;
                let Some(host) = self.target(target.domain.as_ref(), name).await else { return Ok(false) };
                let addresses = self.addresses(&host).await;
                let addresses = self.counted(addresses)?;
                Ok(addresses.iter().any(|address| target.covers(*address, self.identity.client)))
            }
            Mechanism::Mx(target) => {
                self.term()?;
                self.mx(target, name).await
            }
            Mechanism::Ptr(spec) => {
                self.term()?;
                let Some(target) = self.target(spec.as_ref(), name).await else { return Ok(false) };
                Ok(self.validated().await.iter().any(|host| domain::at_or_below(host, &target)))
            }
            Mechanism::Exists(spec) => {
                self.term()?;
                let Some(host) = self.expand(spec, name).await else { return Ok(false) };
                let found = self.resolver.a(&host).await;
                Ok(!self.counted(found)?.is_empty())
            }
        }
    }

    async fn mx(&mut self, target: &Target, name: &str) -> Result<bool, Stop> {
        let Some(host) = self.target(target.domain.as_ref(), name).await else { return Ok(false) };
        let found = self.resolver.mx(&host).await;
        let exchangers = self.counted(found)?;
        if exchangers.len() > NAMES_MAX {
            return Err(Stop::Permanent);
        }
        for exchanger in exchangers.iter() {
            // An exchanger without an address of the client's family is usual, and not counted as a void lookup.
            match self.addresses(&exchanger.exchange).await {
                Lookup::Records(addresses) if addresses.iter().any(|address| target.covers(*address, self.identity.client)) => return Ok(true),
                Lookup::Records(_) | Lookup::Absent(_) => {}
                Lookup::TempError | Lookup::Malformed => return Err(Stop::Temporary),
            }
        }
        Ok(false)
    }

    fn term(&mut self) -> Result<(), Stop> {
        self.terms += 1;
        if self.terms > TERMS_MAX { Err(Stop::Permanent) } else { Ok(()) }
    }

    /// The records of a lookup that counts where it is void.
    fn counted<T>(&mut self, lookup: Lookup<T>) -> Result<Arc<[T]>, Stop> {
        match lookup {
            Lookup::Records(records) => Ok(records),
            Lookup::Absent(Absence::Name | Absence::Data) => {
                self.voids += 1;
                if self.voids > VOIDS_MAX { Err(Stop::Permanent) } else { Ok(Arc::new([])) }
            }
            Lookup::TempError | Lookup::Malformed => Err(Stop::Temporary),
        }
    }

    /// Addresses of the client's family.
    async fn addresses(&self, host: &str) -> Lookup<IpAddr> {
        if self.identity.client.is_ipv4() {
            self.resolver.a(host).await.pick(|address| Some(IpAddr::V4(*address)))
        } else {
            self.resolver.aaaa(host).await.pick(|address| Some(IpAddr::V6(*address)))
        }
    }

    async fn target(&mut self, spec: Option<&DomainSpec>, name: &str) -> Option<String> {
        match spec {
            Some(spec) => self.expand(spec, name).await,
            None => Some(name.to_owned()),
        }
    }

    async fn expand(&mut self, spec: &DomainSpec, name: &str) -> Option<String> {
        let names = if spec.needs_validated() { self.validated().await } else { Arc::new([]) };
        let validated = names.iter().find(|host| host.as_ref() == name);
        let validated = validated.or_else(|| names.iter().find(|host| domain::at_or_below(host, name))).or_else(|| names.first());
        spec.expand(&Values {
            local: self.identity.local,
            sender_domain: &self.sender_domain,
            domain: name,
            client: self.identity.client,
            helo: self.identity.helo,
            validated: validated.map_or("unknown", |host| host),
        })
    }

    /// Names of the client that lead back to it (section 5.5); failures leave names out.
    async fn validated(&mut self) -> Arc<[Arc<str>]> {
        if let Some(names) = &self.validated {
            return names.clone();
        }
        let mut names = vec![];
        for host in self.resolver.ptr(self.identity.client).await.records().iter().take(NAMES_MAX) {
            if self.addresses(host).await.records().contains(&self.identity.client) {
                names.push(host.clone());
            }
        }
        let names: Arc<[Arc<str>]> = names.into();
        self.validated = Some(names.clone());
        names
    }
}
