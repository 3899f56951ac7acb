//! Mailboxes of the envelope (RFC 5321 section 4.1.2, RFC 6531): the type and its parser. Knows nothing of domains that exist.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Octets of a path with its brackets (RFC 5321 section 4.5.3.1.3).
pub const PATH_OCTETS_MAX: usize = 256;
/// Octets of a local part. RFC 5321 section 4.5.3.1.1 asks for 64 at least; senders that encode the recipient in it use more.
pub const LOCAL_OCTETS_MAX: usize = 128;
/// Octets of a domain (RFC 5321 section 4.5.3.1.2).
pub const DOMAIN_OCTETS_MAX: usize = 255;
/// Octets of a label of a domain (RFC 1035 section 2.3.4); a label in UTF-8 may be longer than its form in the DNS.
pub const LABEL_OCTETS_MAX: usize = 63;

/// A mailbox of the envelope. The domain is lower case; an address literal keeps its brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// Local part as received, without surrounding quotes taken off.
    pub local: String,
    /// Domain, lower case.
    pub domain: String,
}

/// Why something is no mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not between `<` and `>`.
    #[error("the address does not stand in angle brackets")]
    NoBrackets,
    /// Beyond [`PATH_OCTETS_MAX`], [`LOCAL_OCTETS_MAX`] or [`DOMAIN_OCTETS_MAX`].
    #[error("the address is too long")]
    TooLong,
    /// Octets that are no UTF-8.
    #[error("the address is no UTF-8")]
    NotUtf8,
    /// A source route that is none.
    #[error("the source route before the address is malformed")]
    BadRoute,
    /// The local part is empty or has characters that must be quoted.
    #[error("the local part of the address is malformed")]
    BadLocal,
    /// No `@`, or what follows is neither a domain nor an address literal.
    #[error("the domain of the address is malformed")]
    BadDomain,
}

/// What stands between the brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// `<>`
    Null,
    /// `<postmaster>`, in any case, as written: a mailbox that every server has (RFC 5321 section 4.5.1).
    Postmaster(String),
    /// A mailbox; a source route before it has been dropped (RFC 5321 section 4.1.1.3).
    Mailbox(Address),
}

impl Address {
    /// Parses `local@domain` without brackets. UTF-8 is taken ([`Self::is_ascii`] says whether there is any).
    ///
    /// The local part is more liberal than the grammar in one point: dots may lead, trail and repeat, as in old addresses of Japanese
    /// mobile carriers that are still in use.
    ///
    /// # Errors
    /// [`AddressError`]
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.len() + 2 > PATH_OCTETS_MAX {
            return Err(AddressError::TooLong);
        }
        let end = local_end(text).ok_or(AddressError::BadLocal)?;
        let (local, rest) = text.split_at_checked(end).ok_or(AddressError::BadLocal)?;
        let domain = rest.strip_prefix('@').ok_or(if rest.is_empty() { AddressError::BadDomain } else { AddressError::BadLocal })?;
        if local.len() > LOCAL_OCTETS_MAX {
            return Err(AddressError::TooLong);
        }
        Ok(Self { local: local.to_owned(), domain: parse_domain(domain)? })
    }

    /// Whether it can go over a connection without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii() && self.domain.is_ascii()
    }

    /// Whether the domain is an address literal such as `[192.0.2.1]`.
    pub fn is_literal(&self) -> bool {
        self.domain.starts_with('[')
    }

    /// Whether the local part asks to be sent on from here: `user%elsewhere`, `elsewhere!user`, `"user@elsewhere"`.
    pub fn has_route_in_local(&self) -> bool {
        self.local.contains(['%', '!', '@'])
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// Parses `<...>` at the start of `input`; returns what follows the closing bracket.
///
/// # Errors
/// [`AddressError`]
pub fn parse_path(input: &[u8]) -> Result<(Path, &[u8]), AddressError> {
    let inner = input.strip_prefix(b"<").ok_or(AddressError::NoBrackets)?;
    let end = closing_bracket(inner).ok_or(AddressError::NoBrackets)?;
    let (inner, rest) = inner.split_at(end);
    let rest = rest.strip_prefix(b">").unwrap_or(rest);
    if inner.len() + 2 > PATH_OCTETS_MAX {
        return Err(AddressError::TooLong);
    }
    let text = std::str::from_utf8(inner).map_err(|_| AddressError::NotUtf8)?;
    if text.is_empty() {
        return Ok((Path::Null, rest));
    }
    if text.eq_ignore_ascii_case("postmaster") {
        return Ok((Path::Postmaster(text.to_owned()), rest));
    }
    Ok((Path::Mailbox(Address::parse(without_route(text)?)?), rest))
}

/// Where the bracket closes: the first `>` outside a quoted string.
fn closing_bracket(inner: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    inner.iter().position(|&c| {
        let closes = c == b'>' && !quoted;
        match c {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        closes
    })
}

/// Drops `@one,@two:`.
fn without_route(text: &str) -> Result<&str, AddressError> {
    if !text.starts_with('@') {
        return Ok(text);
    }
    // An address literal in the route may hold colons; the mailbox begins behind the first one outside brackets.
    let mut literal = false;
    let colon = text.find(|c| {
        match c {
            '[' => literal = true,
            ']' => literal = false,
            _ => {}
        }
        c == ':' && !literal
    });
    let (route, mailbox) = colon.and_then(|at| text.split_at_checked(at)).ok_or(AddressError::BadRoute)?;
    for hop in route.split(',') {
        parse_domain(hop.strip_prefix('@').ok_or(AddressError::BadRoute)?).map_err(|_| AddressError::BadRoute)?;
    }
    mailbox.strip_prefix(':').ok_or(AddressError::BadRoute)
}

/// Octets of the local part at the start of `text`.
fn local_end(text: &str) -> Option<usize> {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut escaped = false;
        for (at, c) in quoted.char_indices() {
            match c {
                c if c.is_control() => return None,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => return Some(at + 2),
                _ => {}
            }
        }
        return None;
    }
    let end = text.find(|c| !is_atom(c) && c != '.').unwrap_or(text.len());
    // Dots alone name nobody.
    text.split_at_checked(end).filter(|(local, _)| local.contains(|c| c != '.')).map(|_| end)
}

/// RFC 5322 section 3.2.3 with RFC 6531 section 3.3.
fn is_atom(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || (!c.is_ascii() && !c.is_control())
}

/// Lower case domain or address literal. Underscores are taken: sender domains have them.
pub(in crate::smtp) fn parse_domain(text: &str) -> Result<String, AddressError> {
    if text.len() > DOMAIN_OCTETS_MAX {
        return Err(AddressError::TooLong);
    }
    if let Some(literal) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return parse_literal(literal).ok_or(AddressError::BadDomain);
    }
    let fits = |label: &str| {
        let within = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || (!c.is_ascii() && !c.is_control() && !c.is_whitespace());
        !label.is_empty()
            && (label.len() <= LABEL_OCTETS_MAX || !label.is_ascii())
            && label.chars().all(within)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !text.split('.').all(fits) {
        return Err(AddressError::BadDomain);
    }
    let lower = if text.is_ascii() { text.to_ascii_lowercase() } else { text.to_lowercase() };
    // Some letters grow in lower case.
    if lower.len() > DOMAIN_OCTETS_MAX { Err(AddressError::TooLong) } else { Ok(lower) }
}

/// IPv4 and IPv6 only: no other tag was ever registered (RFC 5321 section 4.1.3).
fn parse_literal(literal: &str) -> Option<String> {
    if let Ok(address) = literal.parse::<Ipv4Addr>() {
        return Some(format!("[{address}]"));
    }
    let (tag, address) = literal.split_once(':')?;
    let address = address.parse::<Ipv6Addr>().ok().filter(|_| tag.eq_ignore_ascii_case("IPv6"))?;
    Some(format!("[ipv6:{address}]"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_mailboxes() {
        let label = "a".repeat(LABEL_OCTETS_MAX);
        let long_local = format!("{}@example.com", "x".repeat(LOCAL_OCTETS_MAX));
        let long_label = format!("a@{label}.example");
        let cases: &[(&str, &str, &str)] = &[
            ("a@example.com", "a", "example.com"),
            ("A.B@Example.COM", "A.B", "example.com"),
            ("a+b=c/d%e!f@example.com", "a+b=c/d%e!f", "example.com"),
            (".a..b.@docomo.example", ".a..b.", "docomo.example"),
            ("\"a b\"@example.com", "\"a b\"", "example.com"),
            (r#""a\"b\\@c>"@example.com"#, r#""a\"b\\@c>""#, "example.com"),
            ("\"\"@example.com", "\"\"", "example.com"),
            ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
            ("a@[IPv6:2001:DB8::1]", "a", "[ipv6:2001:db8::1]"),
            ("a@localhost", "a", "localhost"),
            ("a@_dmarc.example", "a", "_dmarc.example"),
            ("a@1.2.3.4", "a", "1.2.3.4"),
            ("関守@例え.テスト", "関守", "例え.テスト"),
            ("é@ÉXAMPLE.com", "é", "éxample.com"),
            (&long_local, &"x".repeat(LOCAL_OCTETS_MAX), "example.com"),
            (&long_label, "a", &format!("{label}.example")),
        ];
        for (text, local, domain) in cases {
            let expected = Address { local: (*local).into(), domain: (*domain).into() };
            assert_eq!(Address::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_mailbox() {
        use AddressError::{BadDomain, BadLocal, TooLong};
        let long_local = format!("{}@example.com", "x".repeat(LOCAL_OCTETS_MAX + 1));
        let long = format!("a@{}", "b.".repeat(130));
        let long_label = format!("a@{}.example", "b".repeat(LABEL_OCTETS_MAX + 1));
        let cases: &[(&str, AddressError)] = &[
            ("", BadLocal),
            ("a", BadDomain),
            ("a@", BadDomain),
            ("@example.com", BadLocal),
            ("..@example.com", BadLocal),
            ("a b@example.com", BadLocal),
            ("a@b@example.com", BadDomain),
            ("a<b@example.com", BadLocal),
            ("\"a@example.com", BadLocal),
            ("\"a\"b@example.com", BadLocal),
            ("\"a\u{1}\"@example.com", BadLocal),
            ("\"a\\\u{7f}\"@example.com", BadLocal),
            ("a\u{85}@example.com", BadLocal),
            ("a@example..com", BadDomain),
            ("a@.example.com", BadDomain),
            ("a@example.com.", BadDomain),
            ("a@-example.com", BadDomain),
            ("a@example-.com", BadDomain),
            ("a@exa mple.com", BadDomain),
            ("a@exa\u{3000}mple.com", BadDomain),
            ("a@[192.0.2.256]", BadDomain),
            ("a@[2001:db8::1]", BadDomain),
            ("a@[IPv6:192.0.2.1]", BadDomain),
            ("a@[x-tag:content]", BadDomain),
            ("a@[192.0.2.1", BadDomain),
            ("a@[192.0.2.1].example", BadDomain),
            (&long_local, TooLong),
            (&long, TooLong),
            (&long_label, BadDomain),
        ];
        for (text, expected) in cases {
            assert_eq!(Address::parse(text), Err(*expected), "{text}");
        }
    }

    #[test]
    fn takes_paths() {
        let mailbox = |text: &str| Path::Mailbox(Address::parse(text).expect("a mailbox"));
        type Parsed = Result<(Path, &'static [u8]), AddressError>;
        let cases: &[(&[u8], Parsed)] = &[
            (b"<>", Ok((Path::Null, b""))),
            (b"<a@b.example> SIZE=1", Ok((mailbox("a@b.example"), b" SIZE=1"))),
            (b"<PostMaster>", Ok((Path::Postmaster("PostMaster".into()), b""))),
            (b"<@one.example,@two.example:a@b.example>", Ok((mailbox("a@b.example"), b""))),
            (b"<@[IPv6:2001:db8::1]:a@b.example>", Ok((mailbox("a@b.example"), b""))),
            (b"<\"a>b\"@b.example>x", Ok((mailbox("\"a>b\"@b.example"), b"x"))),
            (b"<\"a\\\">b\"@b.example>", Ok((mailbox("\"a\\\">b\"@b.example"), b""))),
            (b"a@b.example", Err(AddressError::NoBrackets)),
            (b"<a@b.example", Err(AddressError::NoBrackets)),
            (b"< a@b.example>", Err(AddressError::BadLocal)),
            (b"<@one.example>", Err(AddressError::BadRoute)),
            (b"<@one.example,two.example:a@b.example>", Err(AddressError::BadRoute)),
            (b"<@:a@b.example>", Err(AddressError::BadRoute)),
            (b"<a\xff@b.example>", Err(AddressError::NotUtf8)),
        ];
        for (input, expected) in cases {
            assert_eq!(&parse_path(input), expected, "{}", String::from_utf8_lossy(input));
        }
    }

    proptest! {
        #[test]
        fn what_was_parsed_parses_again(text in "[a-zA-Z\"\\\\@.\\[\\]:0-9éİ関<> %-]{0,40}") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
            }
        }

        #[test]
        fn any_octets_are_no_panic(input: Vec<u8>) {
            let bracketed = [b"<".as_slice(), &input, b">"].concat();
            drop(parse_path(&input));
            drop(parse_path(&bracketed));
        }
    }
}
