//! Text of a part, and what can be counted in text.

use std::borrow::Cow;

use crate::message::Part;

/// Text looked at of one part; spam shows itself early.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 10;

/// The beginning of a text part, converted from its charset, and whether the charset exists.
pub(super) fn of(part: &Part) -> (Cow<'_, str>, bool) {
    let bytes = part.content.get(..part.content.len().min(TEXT_BYTES_MAX)).unwrap_or_default();
    let label = part.charset.as_deref().unwrap_or("us-ascii");
    // Many programs write ISO-2022-JP and name no charset; its escape sequences say it.
    let escaped = memchr::memmem::find(bytes, b"\x1b$").is_some();
    let encoding = encoding_rs::Encoding::for_label(label.as_bytes());
    match encoding {
        _ if escaped && bytes.is_ascii() => (encoding_rs::ISO_2022_JP.decode_without_bom_handling(bytes).0, true),
        Some(encoding) if encoding == encoding_rs::REPLACEMENT => (String::from_utf8_lossy(bytes), true),
        Some(encoding) => (encoding.decode_without_bom_handling(bytes).0, true),
        None => (String::from_utf8_lossy(bytes), is_known_charset(label)),
    }
}

/// Charsets that exist, and that the Web's list does not have.
fn is_known_charset(label: &str) -> bool {
    let label = label.trim();
    const MORE: &[&str] = &[
        "ansi_x3.4-1968",
        "iso-2022-kr",
        "iso-2022-cn",
        "iso-2022-jp-1",
        "iso-2022-jp-2",
        "iso-2022-jp-3",
        "iso-2022-jp-2004",
        "iso-2022-jp-ms",
        "utf-7",
        "utf-32",
        "unicode-1-1-utf-7",
        "hz-gb-2312",
        "cp437",
        "cp850",
        "cp852",
        "cp932",
        "cp936",
        "cp949",
        "cp950",
        "cp51932",
        "cp50220",
        "cp50221",
        "euc-jp-ms",
        "eucjp-ms",
        "windows-932",
        "iso-10646-ucs-2",
        "viscii",
        "tis-620",
        "big5-hkscs",
        "gb_2312-80",
        "unknown-8bit",
        "x-unknown",
        "x-user-defined",
        "binary",
        "ascii-8bit",
    ];
    label.is_empty()
        || MORE.contains(&label)
        || label.starts_with("iso-8859")
        || label.starts_with("windows-")
        || label.starts_with("cp")
        || label.starts_with("x-mac")
        || label.starts_with("ibm")
}

/// Characters that nobody sees and no language needs. (Joiners and direction marks are needed, by Persian, Hindi or emoji.)
pub(super) const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}' | '\u{2060}' | '\u{180e}' | '\u{034f}' | '\u{2061}'..='\u{2064}' | '\u{e0020}'..='\u{e007f}')
}

/// Counts of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) upper: usize,
    pub(super) lower: usize,
    /// Letters and digits beyond ASCII.
    pub(super) beyond: usize,
    pub(super) digits: usize,
    pub(super) exclamations: usize,
    pub(super) invisible: usize,
}

impl Counts {
    pub(super) fn of(text: &str) -> Self {
        let mut counts = Self::default();
        if text.is_ascii() {
            let mut table = [0_usize; 128];
            for byte in text.bytes() {
                table[usize::from(byte & 0x7f)] += 1;
            }
            let sum = |range: std::ops::RangeInclusive<u8>| range.map(|byte| table[usize::from(byte)]).sum();
            return Self {
                upper: sum(b'A'..=b'Z'),
                lower: sum(b'a'..=b'z'),
                digits: sum(b'0'..=b'9'),
                exclamations: table[usize::from(b'!')],
                ..counts
            };
        }
        for c in text.chars() {
            match c {
                'A'..='Z' => counts.upper += 1,
                'a'..='z' => counts.lower += 1,
                '0'..='9' => counts.digits += 1,
                '!' => counts.exclamations += 1,
                _ if c.is_ascii() => {}
                _ if is_invisible(c) => counts.invisible += 1,
                _ => counts.beyond += usize::from(c.is_alphanumeric()),
            }
        }
        counts
    }

    /// Letters and digits of any script.
    pub(super) const fn letters(&self) -> usize {
        self.upper + self.lower + self.beyond + self.digits
    }
}

/// One URL in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Url<'a> {
    /// Host as it stands, without port.
    pub(super) host: &'a str,
    /// There is something before an `@`.
    pub(super) has_user: bool,
    /// All of it, as far as it goes.
    pub(super) length: usize,
}

/// The URL that a text begins with.
pub(super) fn url(text: &str) -> Option<Url<'_>> {
    let is_scheme = |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let scheme = ["http://", "https://"].into_iter().find(|scheme| is_scheme(scheme))?;
    let rest = text.get(scheme.len()..)?;
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '\\' | ')' | ']') || !c.is_ascii() && !c.is_alphanumeric();
    let whole = rest.split(ends).next().unwrap_or_default();
    let authority = whole.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host_port) = authority.rsplit_once('@').map_or(("", authority), |(user, host)| (user, host));
    let host = host_port.split(':').next().unwrap_or_default();
    (!host.is_empty()).then_some(Url { host, has_user: !user.is_empty(), length: scheme.len() + whole.len() })
}

/// URLs of a text, at most `max`.
pub(super) fn urls(text: &str, max: usize) -> Vec<Url<'_>> {
    let mut found = vec![];
    let mut rest = text;
    while found.len() < max
        && let Some(at) = memchr::memmem::find(rest.as_bytes(), b"://")
    {
        // Back over the scheme.
        let start = if rest.as_bytes().get(..at).is_some_and(|before| before.ends_with(b"s") || before.ends_with(b"S")) {
            at.checked_sub(5)
        } else {
            at.checked_sub(4)
        };
        let here = start.and_then(|start| rest.get(start..)).and_then(url);
        let next = at + 3;
        found.extend(here);
        rest = rest.get(next..).unwrap_or_default();
    }
    found
}

/// Whether a host is an IPv4 address in any notation that browsers take.
pub(super) fn is_bare_address(host: &str) -> bool {
    let numeric = |label: &str| {
        let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
        !label.is_empty() && hex.map_or_else(|| label.bytes().all(|b| b.is_ascii_digit()), |hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    host.split('.').count() <= 4 && host.split('.').all(numeric)
}

/// The last two labels, or three where the second is as short as a registry's own (`co.jp`): enough to compare two hosts.
pub(super) fn site(host: &str) -> &str {
    let host = host.trim_end_matches('.');
    let mut dots = host.rmatch_indices('.').map(|(at, _)| at);
    let (Some(last), second, third) = (dots.next(), dots.next(), dots.next()) else { return host };
    let Some(second) = second else { return host };
    let is_registry = host.len() - last <= 3 && last - second <= 4;
    let cut = if is_registry { third } else { Some(second) };
    cut.and_then(|at| host.get(at + 1..)).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let text = "See http://a.example/x, HTTPS://user@b.example:8080?y and ftp://c.example; http:// and (http://1.2.3.4/)。http://日本.example、";
        let hosts: Vec<_> = urls(text, 10).into_iter().map(|url| (url.host, url.has_user)).collect();
        assert_eq!(hosts, [("a.example", false), ("b.example", true), ("1.2.3.4", false), ("日本.example", false)]);
    }

    #[test]
    fn sites_are_compared() {
        for (host, expected) in [
            ("www.example.com", "example.com"),
            ("a.b.example.co.jp", "example.co.jp"),
            ("example.com", "example.com"),
            ("localhost", "localhost"),
            ("x.ne.jp", "x.ne.jp"),
            ("", ""),
        ] {
            assert_eq!(site(host), expected);
        }
        for (host, bare) in [("1.2.3.4", true), ("3232235777", true), ("0x7f.1", true), ("1.2.3.4.example", false), ("a", false), ("", false)] {
            assert_eq!(is_bare_address(host), bare, "{host}");
        }
    }
}
