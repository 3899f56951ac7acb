//! SPF records (RFC 7208 sections 4.5, 4.6, 5, 6 and 12): text to terms. Evaluation is under `io::auth`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Spf;
use super::spf_macro::{DomainSpec, valid_macro_string};

/// Terms of one record; a longer record is a permanent error.
const TERMS_MAX: usize = 256;

/// A record that follows the grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Mechanisms with their qualifiers, in order.
    pub directives: Vec<Directive>,
    /// `redirect=`.
    pub redirect: Option<DomainSpec>,
}

/// A mechanism and the result where it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// Pass, Fail, SoftFail or Neutral.
    pub qualifier: Spf,
    /// What must match.
    pub mechanism: Mechanism,
}

/// RFC 7208 section 5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Always matches.
    All,
    /// Matches where another domain's record passes.
    Include(DomainSpec),
    /// Addresses of a domain.
    A(Target),
    /// Addresses of a domain's mail exchangers.
    Mx(Target),
    /// Validated names of the client.
    Ptr(Option<DomainSpec>),
    /// A network.
    Ip4(Ipv4Addr, u8),
    /// A network.
    Ip6(Ipv6Addr, u8),
    /// Any A record.
    Exists(DomainSpec),
}

/// A domain and how many leading bits of its addresses count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The current domain where absent.
    pub domain: Option<DomainSpec>,
    /// 0 to 32.
    pub bits4: u8,
    /// 0 to 128.
    pub bits6: u8,
}

impl Target {
    /// Whether one of a domain's addresses stands for the client. Families never mix.
    pub fn covers(&self, address: IpAddr, client: IpAddr) -> bool {
        match (address, client) {
            (IpAddr::V4(address), IpAddr::V4(client)) => covers4(address, self.bits4, client),
            (IpAddr::V6(address), IpAddr::V6(client)) => covers6(address, self.bits6, client),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// The client is in `network/bits`.
pub fn covers4(network: Ipv4Addr, bits: u8, client: Ipv4Addr) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
    (u32::from(network) ^ u32::from(client)) & mask == 0
}

/// The client is in `network/bits`.
pub fn covers6(network: Ipv6Addr, bits: u8, client: Ipv6Addr) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
    (u128::from(network) ^ u128::from(client)) & mask == 0
}

/// What is wrong with a record: the term.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the SPF record has a term that RFC 7208 does not allow: {0:?}")]
pub struct SyntaxError(pub String);

/// Whether a TXT record is an SPF record (RFC 7208 section 4.5): `v=spf1`, then a space or the end.
pub fn is_record(text: &[u8]) -> bool {
    let Some((version, rest)) = text.split_at_checked(6) else { return false };
    version.eq_ignore_ascii_case(b"v=spf1") && matches!(rest.first(), None | Some(b' '))
}

/// Parses a record that [`is_record`] accepts. Any error anywhere makes the whole record unusable (section 4.6).
pub fn parse(text: &[u8]) -> Result<Record, SyntaxError> {
    let rest = text.get(6..).unwrap_or_default();
    if !rest.iter().all(|byte| matches!(byte, 0x20..=0x7e)) {
        return Err(SyntaxError(String::from_utf8_lossy(rest).into_owned()));
    }
    let rest = String::from_utf8_lossy(rest);
    let mut record = Record { directives: vec![], redirect: None };
    let mut explained = false;
    for (number, term) in rest.split(' ').filter(|term| !term.is_empty()).enumerate() {
        let wrong = || SyntaxError(term.chars().take(100).collect());
        if number >= TERMS_MAX {
            return Err(wrong());
        }
        match term.find([':', '/', '=']).and_then(|at| term.split_at_checked(at)) {
            Some((name, value)) if value.starts_with('=') => {
                let value = value.strip_prefix('=').unwrap_or_default();
                modifier(&mut record, &mut explained, name, value).ok_or_else(wrong)?;
            }
            _ => record.directives.push(directive(term).ok_or_else(wrong)?),
        }
    }
    Ok(record)
}

/// `redirect` and `exp` at most once each; unknown ones are checked and left aside (section 6).
fn modifier(record: &mut Record, explained: &mut bool, name: &str, value: &str) -> Option<()> {
    let named =
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !named {
        None
    } else if name.eq_ignore_ascii_case("redirect") {
        if record.redirect.is_some() {
            return None;
        }
        record.redirect = Some(DomainSpec::parse(value)?);
        Some(())
    } else if name.eq_ignore_ascii_case("exp") {
        // What the sender's domain would have us say is not said: only its grammar and number count.
        let first = !std::mem::replace(explained, true);
        (first && DomainSpec::parse(value).is_some()).then_some(())
    } else {
        valid_macro_string(value).then_some(())
    }
}

fn directive(term: &str) -> Option<Directive> {
    let (qualifier, rest) = match term.split_at_checked(1)? {
        ("+", rest) => (Spf::Pass, rest),
        ("-", rest) => (Spf::Fail, rest),
        ("~", rest) => (Spf::SoftFail, rest),
        ("?", rest) => (Spf::Neutral, rest),
        _ => (Spf::Pass, term),
    };
    let end = rest.find([':', '/']).unwrap_or(rest.len());
    let (name, argument) = rest.split_at_checked(end)?;
    let domain = argument.strip_prefix(':');
    let mechanism = match name.to_ascii_lowercase().as_str() {
        "all" if argument.is_empty() => Mechanism::All,
        "include" => Mechanism::Include(DomainSpec::parse(domain?)?),
        "exists" => Mechanism::Exists(DomainSpec::parse(domain?)?),
        "a" => Mechanism::A(target(argument)?),
        "mx" => Mechanism::Mx(target(argument)?),
        "ptr" if argument.is_empty() => Mechanism::Ptr(None),
        "ptr" => Mechanism::Ptr(Some(DomainSpec::parse(domain?)?)),
        "ip4" => {
            let (address, bits) = network(domain?, 32)?;
            Mechanism::Ip4(address.parse().ok()?, bits)
        }
        "ip6" => {
            let (address, bits) = network(domain?, 128)?;
            Mechanism::Ip6(address.parse().ok()?, bits)
        }
        _ => return None,
    };
    Some(Directive { qualifier, mechanism })
}

/// `[":" domain-spec] ["/" bits] ["//" bits]`.
fn target(argument: &str) -> Option<Target> {
    let (rest, bits6) = match argument.rsplit_once("//") {
        Some((rest, bits)) => (rest, prefix_length(bits, 128)?),
        None => (argument, 128),
    };
    // A slash may also stand in the domain: what follows the last one is a length only where it is a number.
    let (rest, bits4) = match rest.rsplit_once('/') {
        Some((rest, bits)) if !bits.contains(['.', '%', '}']) => (rest, prefix_length(bits, 32)?),
        _ => (rest, 32),
    };
    let domain = match rest.strip_prefix(':') {
        Some(domain) => Some(DomainSpec::parse(domain)?),
        None if rest.is_empty() => None,
        None => return None,
    };
    Some(Target { domain, bits4, bits6 })
}

fn network(argument: &str, bits_max: u8) -> Option<(&str, u8)> {
    match argument.split_once('/') {
        Some((address, bits)) => Some((address, prefix_length(bits, bits_max)?)),
        None => Some((argument, bits_max)),
    }
}

/// A number without leading zeros.
fn prefix_length(text: &str, bits_max: u8) -> Option<u8> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|bits| plain && *bits <= bits_max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn which_text_is_a_record() {
        for (text, expected) in [
            ("v=spf1", true),
            ("v=spf1 -all", true),
            ("V=SPF1 -all", true),
            ("v=spf10 -all", false),
            ("v=spf1-all", false),
            (" v=spf1", false),
            ("v=spf", false),
            ("v=spf1\t-all", false),
        ] {
            assert_eq!(is_record(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn terms() {
        for good in [
            "all",
            "-ALL",
            "a",
            "a/24",
            "a//64",
            "a/24//64",
            "a:example.com/0//0",
            "mx:foo/bar.example.com",
            "ptr",
            "ptr:example.com",
            "ip4:192.0.2.0/24",
            "ip6:2001:db8::/32",
            "ip6:::ffff:192.0.2.1",
            "exists:%{i}._spf.%{d2}",
            "include:_spf.example.com.",
            "redirect=example.com",
            "exp=e.example.com",
            "moo=",
            "a=b",
            "x-y_z.1=%{d}/%%",
            "a:%{d}/24",
            "a:1.example",
            "a:x.1a",
            "a:x.1-1",
        ] {
            assert!(parse(format!("v=spf1 {good}").as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            "all.",
            "all:example.com",
            "all/8",
            "+",
            "--all",
            "foo",
            "include",
            "include:",
            "include:example.com/24",
            "a:",
            "a:/24",
            "a/33",
            "a/032",
            "a//129",
            "a//",
            "a/",
            "a/24/",
            "a//64/24",
            "ip4",
            "ip4:",
            "ip4:1.2.3",
            "ip4:1.2.3.4/33",
            "ip4:1.2.3.4/032",
            "ip4:1.2.3.4//32",
            "ip4:1.2.3.4:8",
            "ip6:1.2.3.4",
            "ip6:::1/129",
            "ip6:::g",
            "ptr/24",
            "ptr:",
            "exists",
            "exists:",
            "exists:%{z}",
            "exists:%{i",
            "exists:%",
            "exists:%i.example",
            "a:example.-com",
            "a:example.com-",
            "a:example.123",
            "a:com:8080/24",
            "redirect=",
            "redirect=a.b redirect=a.b",
            "exp=",
            "exp=a.b exp=a.b",
            "-redirect=a.b",
            "1a=b",
            "a:%{d0}",
            "a:%{i0r}",
            "a:%{c}.example.com",
            "all\u{e9}",
            "moo=%",
            "a\tb",
        ] {
            assert!(parse(format!("v=spf1 {bad}").as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefix_lengths() {
        let client = Ipv4Addr::new(192, 0, 2, 129);
        assert!(covers4(Ipv4Addr::new(10, 0, 0, 0), 0, client));
        assert!(covers4(Ipv4Addr::new(192, 0, 2, 128), 25, client));
        assert!(!covers4(Ipv4Addr::new(192, 0, 2, 0), 25, client));
        assert!(covers4(client, 32, client));
        assert!(covers6(Ipv6Addr::UNSPECIFIED, 0, Ipv6Addr::LOCALHOST));
        assert!(!covers6(Ipv6Addr::UNSPECIFIED, 128, Ipv6Addr::LOCALHOST));
        let any6 = Target { domain: None, bits4: 32, bits6: 0 };
        assert!(!any6.covers(IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(client)), "an IPv6 network never matches an IPv4 client");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut record = b"v=spf1 ".to_vec();
            record.extend_from_slice(&text);
            parse(&record).ok();
            is_record(&text);
        }

        #[test]
        fn no_terms_panic(text in "([a-z+~?-]{0,4}[:=/%{}.0-9a-zA-Z+,_-]{0,30} ?){0,8}") {
            parse(format!("v=spf1 {text}").as_bytes()).ok();
        }
    }
}
