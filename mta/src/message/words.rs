//! Text of header fields: folds and encoded words (RFC 2047) undone, legacy charsets read as Japanese mailers write them.
//!
//! Adjacent encoded words of one charset are joined before they are converted, as many split a character. In ISO-2022-JP each word rightly ends in ASCII and
//! the next one begins by leaving it again; browsers' decoders call such an empty stretch an error and show U+FFFD, so it is taken out first.

use mail_parser::{Charset, Encoding};

/// An encoded word looked for is given up after so many bytes. (RFC 2047 allows 75; some mailers write lines of hundreds.)
const WORD_BYTES_MAX: usize = 1024;

/// A value as people read it. Raw bytes are read as [`decode_raw`] does.
pub(super) fn decode_text(value: &[u8], charset: Option<&str>) -> String {
    let value = unfolded(value);
    let mut out = String::with_capacity(value.len());
    let mut pending: Option<Joined> = None;
    let mut rest = &value[..];
    while let Some(start) = memchr::memmem::find(rest, b"=?") {
        let (before, candidate) = rest.split_at_checked(start).unwrap_or((rest, &[]));
        let Some((word, tail)) = encoded_word(candidate) else {
            // No word: the two characters are text.
            let (text, tail) = rest.split_at_checked(start + 2).unwrap_or((rest, &[]));
            flush(&mut pending, &mut out);
            out.push_str(&decode_raw(text, charset));
            rest = tail;
            continue;
        };
        // White space between two words is not shown.
        let adjacent = pending.is_some() && before.iter().all(u8::is_ascii_whitespace);
        if !adjacent {
            flush(&mut pending, &mut out);
            out.push_str(&decode_raw(before, charset));
        }
        match &mut pending {
            Some(joined) if joined.label.eq_ignore_ascii_case(word.label) => joined.bytes.extend_from_slice(&word.bytes),
            _ => {
                flush(&mut pending, &mut out);
                pending = Some(Joined { label: word.label.to_owned(), bytes: word.bytes });
            }
        }
        rest = tail;
    }
    flush(&mut pending, &mut out);
    out.push_str(&decode_raw(rest, charset));
    out
}

/// Bytes of a header that are not encoded: ISO-2022-JP where its escape sequences stand, UTF-8 where they are that, else the part's charset, else lossy.
pub(super) fn decode_raw(value: &[u8], charset: Option<&str>) -> String {
    let escaped = memchr::memmem::find(value, b"\x1b$").is_some() || memchr::memmem::find(value, b"\x1b(").is_some();
    if escaped && value.is_ascii() {
        return convert(value, "iso-2022-jp");
    }
    match (std::str::from_utf8(value), charset) {
        (Ok(text), _) => text.to_owned(),
        (Err(_), Some(label)) => convert(value, label),
        (Err(_), None) => String::from_utf8_lossy(value).into_owned(),
    }
}

/// Bytes in the charset that a label names, names of Windows and Mac variants included; an unknown one is read as UTF-8.
fn convert(bytes: &[u8], label: &str) -> String {
    let label = label.to_ascii_lowercase();
    let charset = match label.as_str() {
        "iso-2022-jp-ms" | "iso-2022-jp-1" | "iso-2022-jp-2" | "iso-2022-jp-3" | "cp50220" | "cp50221" | "cp50222" => Some(Charset::Iso2022Jp),
        "cp932" | "ms932" | "windows-932" | "x-ms-cp932" | "sjis-win" => Charset::from_label(b"shift_jis"),
        "eucjp-ms" | "eucjp-win" | "cp51932" | "eucjp" => Charset::from_label(b"euc-jp"),
        other => Charset::from_label(other.as_bytes()),
    };
    match charset {
        Some(Charset::Iso2022Jp) => Charset::Iso2022Jp.decode(&without_empty_stretches(bytes)).into_owned(),
        Some(charset) => charset.decode(bytes).into_owned(),
        None => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// Takes out an escape sequence that another one follows at once.
fn without_empty_stretches(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((byte, tail)) = rest.split_first() {
        match escape_len(rest) {
            Some(len) if rest.get(len..).is_some_and(|after| escape_len(after).is_some()) => rest = rest.get(len..).unwrap_or_default(),
            _ => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    out
}

/// Length of the ISO-2022-JP escape sequence here.
fn escape_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [0x1b, b'$', b'(', b'D', ..] => Some(4),
        [0x1b, b'$', b'B' | b'@', ..] | [0x1b, b'(', b'B' | b'J' | b'I', ..] => Some(3),
        _ => None,
    }
}

struct Joined {
    label: String,
    bytes: Vec<u8>,
}

fn flush(pending: &mut Option<Joined>, out: &mut String) {
    if let Some(joined) = pending.take() {
        out.push_str(&convert(&joined.bytes, &joined.label));
    }
}

struct Word<'a> {
    label: &'a str,
    bytes: Vec<u8>,
}

/// The encoded word at the start, and what follows it.
fn encoded_word(text: &[u8]) -> Option<(Word<'_>, &[u8])> {
    let inside = text.strip_prefix(b"=?")?;
    let label_len = memchr::memchr(b'?', inside.get(..inside.len().min(WORD_BYTES_MAX))?)?;
    let (label, rest) = inside.split_at_checked(label_len)?;
    let label = std::str::from_utf8(label.split(|byte| *byte == b'*').next()?).ok()?;
    if label.is_empty() || !label.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let [b'?', encoding, b'?', rest @ ..] = rest else { return None };
    let window = rest.get(..rest.len().min(WORD_BYTES_MAX))?;
    let end = memchr::memmem::find(window, b"?=")?;
    let (encoded, tail) = rest.split_at_checked(end)?;
    let bytes = match encoding {
        b'B' | b'b' => Encoding::Base64.decode(encoded).into_owned(),
        b'Q' | b'q' => {
            let spaces: Vec<u8> = encoded.iter().map(|byte| if *byte == b'_' { b' ' } else { *byte }).collect();
            quoted(&spaces)
        }
        _ => return None,
    };
    Some((Word { label, bytes }, tail.get(2..).unwrap_or_default()))
}

fn quoted(text: &[u8]) -> Vec<u8> {
    let hex = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'=', [high, low, after @ ..]) if let (Some(high), Some(low)) = (hex(*high), hex(*low)) => {
                out.push(high << 4 | low);
                rest = after;
            }
            _ => out.push(*byte),
        }
    }
    out
}

/// Without the line ends of folds and the white space around them, which becomes one space.
fn unfolded(value: &[u8]) -> Vec<u8> {
    let value = value.trim_ascii();
    let mut out = Vec::with_capacity(value.len());
    for line in value.split(|byte| matches!(byte, b'\r' | b'\n')) {
        let text = if out.is_empty() { line.trim_ascii_end() } else { line.trim_ascii() };
        if !text.is_empty() {
            if !out.is_empty() {
                out.push(b' ');
            }
            out.extend_from_slice(text);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &[u8], reads: &str) {
        assert_eq!(decode_text(value, None), reads, "{:?}", String::from_utf8_lossy(value));
    }

    #[test]
    fn folds_and_words() {
        check(b"  plain ", "plain");
        check(b"a  b\r\n\tc\r\n \r\n d", "a  b c d");
        check(b"=?utf-8?q?a_b=3D?=", "a b=");
        check(b"x =?utf-8?Q?=E3=81=82?= y", "x あ y");
        check(b"=?utf-8?q?a?= =?utf-8?q?b?= c =?utf-8?q?d?=", "ab c d");
        check(b"=?utf-8?q?a?=\r\n =?iso-8859-1?q?=E9?=", "aé");
        check(b"=?utf-8?q?a?=x=?utf-8?q?b?=", "axb");
        check(b"=?utf-8*en?q?a?=", "a");
        check(b"=?utf-8?q?a b?=", "a b");
        check(b"=?utf-8?B?44GC", "=?utf-8?B?44GC");
        check(b"=?utf-8?x?a?=", "=?utf-8?x?a?=");
        check(b"=??q?a?=", "=??q?a?=");
        check(b"=?", "=?");
        check(b"=?utf-8?q?=ZZ=4?=", "=ZZ=4");
        check(b"=?x-unknown?q?=E3=81=82?=", "あ");
        check(b"a = b =", "a = b =");
    }

    #[test]
    fn characters_split_over_words() {
        check(b"=?UTF-8?B?44E=?= =?UTF-8?B?gg==?=", "あ");
        check(b"=?UTF-8?Q?=E3?= =?utf-8?B?gYI=?=", "あ");
        check(b"=?Shift_JIS?B?gw==?=\r\n =?Shift_JIS?B?WA==?=", "ス");
        check(b"=?ISO-2022-JP?B?GyRCJD8k?=\r\n =?ISO-2022-JP?B?QBsoQg==?=", "ただ");
        // The ordinary case: each word returns to ASCII, the next one leaves it.
        check(b"=?ISO-2022-JP?B?GyRCJD8bKEI=?=\r\n =?ISO-2022-JP?B?GyRCJEAbKEI=?=", "ただ");
        check(b"=?iso-2022-jp?B?GyRCJD8bKEI=?= =?ISO-2022-JP?Q?abc?= =?ISO-2022-JP?B?GyRCJEAbKEI=?=", "たabcだ");
        check(b"=?cp50220?B?GyRCJD8bKEI=?= =?windows-932?B?g1g=?=", "たス");
        check(b"\x1b$B$?\x1b(B\x1b$B$@\x1b(B", "ただ");
    }

    #[test]
    fn raw_bytes() {
        assert_eq!(decode_text(b"\x83\x58 =?utf-8?q?a?=", Some("Shift_JIS")), "ス a");
        assert_eq!(decode_text(b"\x83\x58", None), "\u{fffd}X");
        assert_eq!(decode_text("あ".as_bytes(), Some("Shift_JIS")), "あ");
        assert_eq!(decode_text(b"\xa4\xb3", Some("euc-jp")), "こ");
    }

    #[test]
    fn is_linear() {
        for hostile in
            [b"=?utf-8?q?".repeat(10_000), b"=?".repeat(50_000), b"=?a?".repeat(25_000), b"=?utf-8?q?a?= ".repeat(7000), b"\x1b$B".repeat(30_000)]
        {
            assert!(decode_text(&hostile, None).len() <= 3 * hostile.len());
        }
    }
}
