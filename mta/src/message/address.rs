//! Addresses of a From field (RFC 5322 sections 3.4 and 4.4), for judging the sender: rather one address too many than one overlooked.
//!
//! Comments, quoted local parts, groups, routes, folded and encoded names are read as they are meant. What is no valid list still yields every address
//! that a mail reader might show: `<a@good> <b@evil>` is two.

use super::Mailbox;
use super::words::decode_text;

/// Addresses of one message that are looked at.
pub(super) const MAILBOXES_MAX: usize = 100;

/// Appends the addresses of one field's value.
pub(super) fn parse_mailboxes(value: &[u8], found: &mut Vec<Mailbox>) {
    let mut item = Item::default();
    let mut tokens = Tokens { rest: value };
    while let Some(token) = tokens.next() {
        if found.len() >= MAILBOXES_MAX {
            return;
        }
        match token {
            Token::Comment(text) => item.comment = Some(text),
            Token::Angle(inner) => {
                // What stood before an earlier `<...>` of the same item was that one's name.
                let name = item.display_name();
                found.extend(angle_mailbox(inner, name));
                item = Item::default();
            }
            // Behind a colon the name of a group ends: without an address in it, it is dropped.
            Token::Separator(_) => {
                found.extend(std::mem::take(&mut item).bare_mailbox());
            }
            Token::At => {
                item.at_sign();
            }
            Token::Quoted(text) => item.push(&text),
            Token::Word(text) => item.push(text),
            Token::Space => item.spaced = true,
        }
    }
    if found.len() < MAILBOXES_MAX {
        found.extend(item.bare_mailbox());
    }
}

/// What was read since the last separator.
#[derive(Default)]
struct Item {
    /// Words as they stand, quotes undone, single spaces between.
    words: Vec<u8>,
    /// White space stood before what comes next.
    spaced: bool,
    /// Where the last `@` outside quotes and comments is in `words`.
    at: Option<usize>,
    comment: Option<Vec<u8>>,
}

impl Item {
    fn at_sign(&mut self) {
        self.at = Some(self.words.len());
        self.words.push(b'@');
        self.spaced = false;
    }

    fn push(&mut self, text: &[u8]) {
        // White space around `@` means nothing; between words of a name it is one space.
        if self.spaced && !self.words.is_empty() && !self.words.ends_with(b"@") {
            self.words.push(b' ');
        }
        self.spaced = false;
        self.words.extend_from_slice(text);
    }

    fn display_name(&mut self) -> Option<String> {
        let words = std::mem::take(&mut self.words);
        let text = if words.is_empty() { self.comment.take().unwrap_or_default() } else { words };
        decoded(&text)
    }

    fn bare_mailbox(mut self) -> Option<Mailbox> {
        let at = self.at?;
        let name = self.comment.take().and_then(|text| decoded(&text));
        let (local, domain) = (self.words.get(..at)?, self.words.get(at + 1..)?);
        let domain = domain.split(|byte| *byte == b' ').next().unwrap_or_default();
        mailbox(local.trim_ascii(), domain, name)
    }
}

fn angle_mailbox(inner: &[u8], name: Option<String>) -> Option<Mailbox> {
    let mut item = Item::default();
    let mut tokens = Tokens { rest: inner };
    // A route (`@one,@two:local@domain`) is dropped.
    let mut route = inner.trim_ascii_start().starts_with(b"@");
    while let Some(token) = tokens.next() {
        match token {
            Token::Separator(b':') if route => {
                item = Item::default();
                route = false;
            }
            Token::Separator(byte) => item.words.push(byte),
            Token::At => item.at_sign(),
            Token::Quoted(text) => item.words.extend_from_slice(&text),
            Token::Word(text) => item.words.extend_from_slice(text),
            Token::Space | Token::Comment(_) | Token::Angle(_) => {}
        }
    }
    let at = item.at?;
    mailbox(item.words.get(..at)?, item.words.get(at + 1..)?, name)
}

fn mailbox(local: &[u8], domain: &[u8], name: Option<String>) -> Option<Mailbox> {
    let domain = normal_domain(&String::from_utf8_lossy(domain));
    (!domain.is_empty()).then(|| Mailbox { name, local: String::from_utf8_lossy(local).into_owned(), domain })
}

/// Lower case, A-labels where they can be made, no dot at the end.
pub(crate) fn normal_domain(domain: &str) -> String {
    // Names longer than DNS allows are nobody's; making A-labels of them would be wasted work.
    const NAME_BYTES_MAX: usize = 1024;
    let domain = domain.trim().trim_end_matches('.');
    if domain.is_ascii() || domain.len() > NAME_BYTES_MAX {
        return domain.to_ascii_lowercase();
    }
    idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_lowercase())
}

/// A name, folds and encoded words undone.
fn decoded(text: &[u8]) -> Option<String> {
    let name = decode_text(text, None);
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

enum Token<'a> {
    Word(&'a [u8]),
    Quoted(Vec<u8>),
    Comment(Vec<u8>),
    /// What stands between `<` and `>`, or the end.
    Angle(&'a [u8]),
    At,
    /// One of `,` `;` `:`.
    Separator(u8),
    Space,
}

struct Tokens<'a> {
    rest: &'a [u8],
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        let (first, rest) = self.rest.split_first()?;
        Some(match first {
            b' ' | b'\t' | b'\r' | b'\n' => {
                self.rest = rest.trim_ascii_start();
                Token::Space
            }
            b'@' => {
                self.rest = rest;
                Token::At
            }
            b',' | b';' | b':' => {
                self.rest = rest;
                Token::Separator(*first)
            }
            b'"' => Token::Quoted(self.delimited(rest, None)),
            b'(' => Token::Comment(self.delimited(rest, Some(b'('))),
            b'<' => Token::Angle(self.angle(rest)),
            b'[' => self.take(1 + rest.iter().position(|byte| *byte == b']').map_or(rest.len(), |at| at + 1)),
            b'>' => {
                self.rest = rest;
                Token::Space
            }
            _ => self.take(self.rest.iter().position(|byte| b" \t\r\n@,;:\"(<>[".contains(byte)).unwrap_or(self.rest.len())),
        })
    }

    fn take(&mut self, len: usize) -> Token<'a> {
        let (word, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, &[]));
        self.rest = rest;
        Token::Word(word)
    }

    /// A quoted string, or with `opens` a comment, which nests: counted, not recursed into.
    fn delimited(&mut self, inside: &'a [u8], opens: Option<u8>) -> Vec<u8> {
        let closes = if opens.is_some() { b')' } else { b'"' };
        let (mut text, mut depth, mut bytes) = (Vec::new(), 1_usize, inside);
        while let Some((byte, rest)) = bytes.split_first() {
            bytes = rest;
            match byte {
                b'\\' => {
                    if let Some((escaped, rest)) = bytes.split_first() {
                        text.push(*escaped);
                        bytes = rest;
                    }
                }
                b'\r' | b'\n' => {}
                _ if *byte == closes => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                    text.push(*byte);
                }
                _ => {
                    depth += usize::from(opens == Some(*byte));
                    text.push(*byte);
                }
            }
        }
        self.rest = bytes;
        text
    }

    /// Up to the `>` outside quotes; up to a second `<`, as `<a@b <c@d>` hides nothing.
    fn angle(&mut self, inside: &'a [u8]) -> &'a [u8] {
        let mut quoted = false;
        let mut escaped = false;
        for (at, byte) in inside.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b'>' if !quoted => {
                    self.rest = inside.get(at + 1..).unwrap_or_default();
                    return inside.get(..at).unwrap_or_default();
                }
                b'<' if !quoted => {
                    self.rest = inside.get(at..).unwrap_or_default();
                    return inside.get(..at).unwrap_or_default();
                }
                _ => {}
            }
        }
        self.rest = &[];
        inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &[u8], expected: &[(&str, &str, &str)]) {
        let mut found = vec![];
        parse_mailboxes(value, &mut found);
        let found: Vec<(&str, &str, &str)> =
            found.iter().map(|m| (m.name.as_deref().unwrap_or_default(), m.local.as_str(), m.domain.as_str())).collect();
        assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(value));
    }

    #[test]
    fn reads_what_the_rfc_allows() {
        check(b" Ann <ann@Example.COM>", &[("Ann", "ann", "example.com")]);
        check(b"ann@example.com", &[("", "ann", "example.com")]);
        check(b"<ann@example.com>", &[("", "ann", "example.com")]);
        check(b"\"Ann, \\\"the\\\" Boss\" <ann@example.com>", &[("Ann, \"the\" Boss", "ann", "example.com")]);
        check(b"ann@example.com (Ann (really))", &[("Ann (really)", "ann", "example.com")]);
        check(b"a (c) @ (d) b.com", &[("d", "a", "b.com")]);
        check(b"\"a b\"@c.com", &[("", "a b", "c.com")]);
        check(b"\"x@y\"@c.com", &[("", "x@y", "c.com")]);
        check(b"N <\"a>b\"@c.com>", &[("N", "a>b", "c.com")]);
        check(b"a@b.com,\r\n\tC <c@d.com>", &[("", "a", "b.com"), ("C", "c", "d.com")]);
        check(b"team: a@b.com, C <c@d.com>;, e@f.com", &[("", "a", "b.com"), ("C", "c", "d.com"), ("", "e", "f.com")]);
        check(b"undisclosed-recipients:;", &[]);
        check(b"R <@x,@y:a@b.com>", &[("R", "a", "b.com")]);
        check(b"a@[127.0.0.1]", &[("", "a", "[127.0.0.1]")]);
        check(b"a@[IPv6:2001:db8::1]", &[("", "a", "[ipv6:2001:db8::1]")]);
        check(b"a@b.com.", &[("", "a", "b.com")]);
        check("a@ドメイン.jp".as_bytes(), &[("", "a", "xn--eckwd4c7c.jp")]);
        check(b"First\r\n Last <a@b.com>", &[("First Last", "a", "b.com")]);
    }

    #[test]
    fn reads_encoded_names() {
        check(b"=?utf-8?q?a=40good?= <b@evil.com>", &[("a@good", "b", "evil.com")]);
        check(b"=?ISO-2022-JP?B?GyRCJD8k?=\r\n =?ISO-2022-JP?B?QBsoQg==?= <a@b.com>", &[("ただ", "a", "b.com")]);
        check(b"\"=?UTF-8?B?44E=?= =?UTF-8?B?gg==?=\" <a@b.com>", &[("あ", "a", "b.com")]);
        // A name that decodes to an address is a name.
        check(b"=?utf-8?q?a=40good.com?=", &[]);
    }

    #[test]
    fn hides_no_address_in_what_is_no_list() {
        check(b"\"a@good.com\" <b@evil.com>", &[("a@good.com", "b", "evil.com")]);
        check(b"a@good.com <b@evil.com>", &[("a@good.com", "b", "evil.com")]);
        check(b"<a@good.com> <b@evil.com>", &[("", "a", "good.com"), ("", "b", "evil.com")]);
        check(b"a<b@c.com>d@e.com", &[("a", "b", "c.com"), ("", "d", "e.com")]);
        check(b"b@evil.com (a@good.com)", &[("a@good.com", "b", "evil.com")]);
        check(b"(<a@b.com>) c@d.com", &[("<a@b.com>", "c", "d.com")]);
        check(b"a@b.com;c@d.com", &[("", "a", "b.com"), ("", "c", "d.com")]);
        check(b"<a@good.com <b@evil.com>", &[("", "a", "good.com"), ("", "b", "evil.com")]);
        check(b"a@b@c.com", &[("", "a@b", "c.com")]);
        check(b"a@b.com c.com", &[("", "a", "b.com")]);
        check(b"a@b.com \"x@y.com\"", &[("", "a", "b.com")]);
        check(b"<a@b.com\"x@y.com\">", &[("", "a", "b.comx@y.com")]);
        check(b"<a@b", &[("", "a", "b")]);
        check(b"a@b>", &[("", "a", "b")]);
        check(b"\"open <a@b.com>", &[]);
        check(b"(open <a@b.com>", &[]);
        for nothing in [&b""[..], b" ", b"x", b"@", b"a@", b"<>", b"<@>", b"[", b"\\", b"\"", b"(", b"<", b",,;:"] {
            check(nothing, &[]);
        }
    }

    #[test]
    fn is_bounded() {
        let mut found = vec![];
        parse_mailboxes("a@b.com,".repeat(20_000).as_bytes(), &mut found);
        assert_eq!(found.len(), MAILBOXES_MAX);
        for hostile in [b"(".repeat(200_000), b"<".repeat(200_000), b"\"".repeat(200_000), b"@".repeat(200_000), b"a<b@c>".repeat(40_000)] {
            found.clear();
            parse_mailboxes(&hostile, &mut found);
            assert!(found.len() <= MAILBOXES_MAX);
        }
    }
}
