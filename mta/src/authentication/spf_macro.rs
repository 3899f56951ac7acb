//! Macros of SPF (RFC 7208 section 7).

use std::fmt::Write;
use std::net::IpAddr;

use super::domain;

/// A `domain-spec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainSpec(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Macro(Macro),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Macro {
    letter: char,
    /// Right-hand parts kept; `None` keeps all.
    keep: Option<usize>,
    reverse: bool,
    /// What the value is split at; a dot where none is given.
    delimiters: String,
    escape: bool,
}

/// What macros stand for.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// Local part of the sender.
    pub local: &'a str,
    /// Domain of the sender.
    pub sender_domain: &'a str,
    /// The domain whose record is looked at.
    pub domain: &'a str,
    /// The client.
    pub client: IpAddr,
    /// What the client said in HELO.
    pub helo: &'a str,
    /// A validated name of the client, or `unknown`.
    pub validated: &'a str,
}

/// Bytes of one expansion; what is longer is cut, and then is no domain name anyway.
const EXPANSION_BYTES_MAX: usize = 2048;

/// Bytes of a name (RFC 7208 section 7.3: left labels are taken off until it fits).
const NAME_BYTES_MAX: usize = 253;

impl DomainSpec {
    /// `macro-string domain-end`: it must end with a macro, or with a dot and a label that is not all digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts = macro_string(text)?;
        match parts.last()? {
            Part::Macro(_) => Some(Self(parts)),
            // `%%`, `%_` and `%-` are macros too, though nothing comes of a name that ends so.
            Part::Literal(_) if text.ends_with("%%") || text.ends_with("%_") || text.ends_with("%-") => Some(Self(parts)),
            Part::Literal(literal) => {
                let literal = literal.strip_suffix('.').unwrap_or(literal);
                let (_, label) = literal.rsplit_once('.')?;
                top_label(label).then_some(Self(parts))
            }
        }
    }

    /// `%{p}` is in it, which costs lookups.
    pub fn needs_validated(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Macro(Macro { letter: 'p', .. })))
    }

    /// The name, or `None` where no such name can exist: then nothing matches (section 4.8).
    pub fn expand(&self, values: &Values<'_>) -> Option<String> {
        let mut name = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => name.push_str(literal),
                Part::Macro(expansion) => expansion.expand(values, &mut name),
            }
            if name.len() > EXPANSION_BYTES_MAX {
                return None;
            }
        }
        let mut rest = name.strip_suffix('.').unwrap_or(&name);
        while rest.len() > NAME_BYTES_MAX {
            rest = domain::parent(rest)?;
        }
        domain::normalise(rest)
    }
}

/// Whether an unknown modifier's value follows the grammar.
pub(super) fn valid_macro_string(text: &str) -> bool {
    text.is_empty() || macro_string(text).is_some()
}

/// `*( macro-expand / macro-literal )`; at least one.
fn macro_string(text: &str) -> Option<Vec<Part>> {
    let mut parts = vec![];
    let mut literal = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = rest.strip_prefix(first)?;
        match first {
            '%' => {
                let second = rest.chars().next()?;
                rest = rest.strip_prefix(second)?;
                match second {
                    '%' => literal.push('%'),
                    '_' => literal.push(' '),
                    '-' => literal.push_str("%20"),
                    '{' => {
                        let (inside, after) = rest.split_once('}')?;
                        rest = after;
                        if !literal.is_empty() {
                            parts.push(Part::Literal(std::mem::take(&mut literal)));
                        }
                        parts.push(Part::Macro(Macro::parse(inside)?));
                    }
                    _ => return None,
                }
            }
            '!'..='~' => literal.push(first),
            _ => return None,
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    (!parts.is_empty()).then_some(parts)
}

/// `toplabel`: letters, digits and inner hyphens, not digits alone.
fn top_label(label: &str) -> bool {
    let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && !label.bytes().all(|byte| byte.is_ascii_digit())
}

impl Macro {
    /// What stands between `%{` and `}`.
    fn parse(inside: &str) -> Option<Self> {
        let first = inside.chars().next()?;
        let letter = first.to_ascii_lowercase();
        // `c`, `r` and `t` belong to explanations only.
        if !matches!(letter, 's' | 'l' | 'o' | 'd' | 'i' | 'p' | 'h' | 'v') {
            return None;
        }
        let rest = inside.strip_prefix(first)?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = rest.split_at_checked(digits)?;
        let keep = match number {
            "" => None,
            // A number too large for us keeps everything that there can be.
            _ => Some(number.parse().unwrap_or(usize::MAX)).filter(|keep| *keep > 0).map(Some)?,
        };
        let reverse = rest.starts_with(['r', 'R']);
        let delimiters = if reverse { rest.get(1..)? } else { rest };
        let allowed = delimiters.bytes().all(|byte| matches!(byte, b'.' | b'-' | b'+' | b',' | b'/' | b'_' | b'='));
        let delimiters = if delimiters.is_empty() { ".".to_owned() } else { delimiters.to_owned() };
        allowed.then_some(Self { letter, keep, reverse, delimiters, escape: first.is_ascii_uppercase() })
    }

    fn expand(&self, values: &Values<'_>, name: &mut String) {
        let owned;
        let value = match self.letter {
            's' => {
                owned = format!("{}@{}", values.local, values.sender_domain);
                &owned
            }
            'l' => values.local,
            'o' => values.sender_domain,
            'd' => values.domain,
            'i' => {
                owned = dotted(values.client);
                &owned
            }
            'p' => values.validated,
            'h' => values.helo,
            'v' if values.client.is_ipv4() => "in-addr",
            _ => "ip6",
        };
        let mut parts: Vec<&str> = value.split(|c| self.delimiters.contains(c)).collect();
        if self.reverse {
            parts.reverse();
        }
        let skip = self.keep.map_or(0, |keep| parts.len().saturating_sub(keep));
        let mut separator = "";
        for part in parts.into_iter().skip(skip) {
            name.push_str(separator);
            separator = ".";
            if self.escape {
                percent_encode(part, name);
            } else {
                name.push_str(part);
            }
        }
    }
}

/// `%{i}`: IPv6 as nibbles with dots between.
fn dotted(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 15]);
            let mut text = String::with_capacity(64);
            for nibble in nibbles {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
            text
        }
    }
}

/// Everything but the unreserved characters of RFC 3986.
fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            write!(out, "%{byte:02X}").ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> Values<'static> {
        Values {
            local: "strong-bad",
            sender_domain: "email.example.com",
            domain: "email.example.com",
            client: IpAddr::from([192, 0, 2, 3]),
            helo: "mail.example.com",
            validated: "unknown",
        }
    }

    #[test]
    fn the_examples_of_section_7_4() {
        for (text, expected) in [
            ("%{s}.x", "strong-bad@email.example.com.x"),
            ("%{o}", "email.example.com"),
            ("%{d}", "email.example.com"),
            ("%{d4}", "email.example.com"),
            ("%{d2}", "example.com"),
            ("%{d1}", "com"),
            ("%{dr}", "com.example.email"),
            ("%{d2r}", "example.email"),
            ("%{l}.x", "strong-bad.x"),
            ("%{l-}.x", "strong.bad.x"),
            ("%{lr-}.x", "bad.strong.x"),
            ("%{l1r-}.x", "strong.x"),
            ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
            ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
            ("%{d99999999999999999999}", "email.example.com"),
        ] {
            assert_eq!(DomainSpec::parse(text).and_then(|spec| spec.expand(&values())).as_deref(), Some(expected), "{text}");
        }
        let six = Values { client: "2001:db8::cb01".parse().expect("an address"), ..values() };
        let spec = DomainSpec::parse("%{ir}.%{v}._spf.%{d2}").expect("valid");
        let expected = "1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6._spf.example.com";
        assert_eq!(spec.expand(&six).as_deref(), Some(expected));
    }

    #[test]
    fn long_names_lose_labels_on_the_left() {
        let local = "a.".repeat(200);
        let spec = DomainSpec::parse("%{l}example.com").expect("valid");
        let name = spec.expand(&Values { local: &local, ..values() }).expect("fits");
        assert!(name.len() <= 253 && name.ends_with(".example.com"), "{name}");
        assert_eq!(spec.expand(&Values { local: &"a".repeat(3000), ..values() }), None);
        assert_eq!(DomainSpec::parse("a..b.example").expect("valid").expand(&values()), None, "an empty label");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[%{}a-zA-Z0-9.+,/_=-]{0,60}", local in "\\PC{0,80}", helo in "\\PC{0,80}") {
            valid_macro_string(&text);
            if let Some(spec) = DomainSpec::parse(&text) {
                let name = spec.expand(&Values { local: &local, helo: &helo, ..values() });
                prop_assert!(name.is_none_or(|name| name.len() <= 253));
            }
        }
    }
}
