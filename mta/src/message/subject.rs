//! The subject tag: one insertion before the subject, in the subject's own charset. What stands there stays byte for byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use encoding_rs::{Encoding, UTF_8};

use super::Message;
use super::edit::Edit;

/// Characters of a tag that are used.
const TAG_CHARS_MAX: usize = 200;
/// A line should not be longer (RFC 5322 section 2.1.1), and must not be longer.
const LINE_SHOULD: usize = 78;
const LINE_MUST: usize = 998;
/// An encoded word must not be longer (RFC 2047 section 2).
const WORD_MAX: usize = 75;

/// The edit that puts `tag` before the subject; none if the tag is empty, or the subject already begins with it.
///
/// - An ASCII tag is inserted as it is, before the first word of the first Subject field.
/// - Any other tag becomes encoded words in the charset of the subject's first encoded word (or of its raw bytes), or in UTF-8 where that charset lacks a character.
/// - Without a Subject field one is inserted at the top; an empty one is filled.
///
/// White space at the end of a tag is shown before an encoded subject, and is at least one space before plain text.
pub fn tag_edit(message: &Message, tag: &str) -> Option<Edit> {
    let tag: String = tag.chars().filter(|c| !c.is_control()).take(TAG_CHARS_MAX).collect();
    let tag = tag.trim_start();
    let bare = tag.trim_end();
    if bare.is_empty() || message.subject.as_deref().is_some_and(|subject| subject.trim_start().starts_with(bare)) {
        return None;
    }
    let Some(field) = message.fields("Subject").next() else {
        let line = format!("Subject: {}\r\n", written(bare, "utf-8"));
        return Some(Edit { at: 0..0, with: line.into() });
    };
    let value = message.raw.get(field.value.clone()).unwrap_or_default();
    let lead = value.len() - value.trim_ascii_start().len();
    let (before, rest) = value.split_at_checked(lead)?;
    let charset = message.parts.first().and_then(|part| part.charset.as_deref());
    let label = charset_of(rest, charset);
    if rest.is_empty() {
        return Some(Edit { at: field.value.clone(), with: format!(" {}", written(bare, &label)).into() });
    }
    let column = match before.iter().rposition(|byte| *byte == b'\n') {
        Some(line_end) => before.len() - line_end - 1,
        None => field.value.start - field.whole.start + before.len(),
    };
    let line = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
    let prefix = prefix(tag, &label, rest.starts_with(b"=?"), column, line);
    let at = field.value.start + lead;
    Some(Edit { at: at..at, with: format!("{}{prefix}", if lead == 0 { " " } else { "" }).into() })
}

/// The tag and what separates it from the subject, of which `line` bytes follow on the same line.
fn prefix(tag: &str, label: &str, before_encoded: bool, column: usize, line: usize) -> String {
    let bare = tag.trim_end();
    let spaced = bare.len() < tag.len();
    let (text, separator) = if is_plain(bare) {
        // Between text and an encoded word there must be a space, and it is shown.
        (bare.to_owned(), if spaced || before_encoded { tag.get(bare.len()..).filter(|space| !space.is_empty()).unwrap_or(" ") } else { "" })
    } else if before_encoded {
        // Between two encoded words white space is not shown, so the tag's own is encoded with it.
        (written(tag, label), " ")
    } else {
        (written(bare, label), " ")
    };
    let length = column + text.rsplit('\n').next().map_or(0, str::len) + separator.len() + line;
    let foldable = !separator.is_empty() && length > LINE_SHOULD;
    if foldable || length > LINE_MUST { format!("{text}\r\n ") } else { format!("{text}{separator}") }
}

/// Whether text can stand in a header as it is.
fn is_plain(text: &str) -> bool {
    text.is_ascii() && !text.contains("=?")
}

/// The charset in which a tag is written, as the subject itself spells it.
fn charset_of(subject: &[u8], part_charset: Option<&str>) -> String {
    let encoded = memchr::memmem::find(subject, b"=?").and_then(|at| subject.get(at + 2..)).and_then(|rest| {
        let label = rest.split(|byte| matches!(byte, b'?' | b'*')).next()?;
        std::str::from_utf8(label).ok().filter(|label| is_label(label)).map(str::to_owned)
    });
    let raw = || match (subject.is_ascii(), std::str::from_utf8(subject)) {
        (true, _) if memchr::memchr(0x1b, subject).is_some() => Some("ISO-2022-JP".to_owned()),
        (true, _) | (_, Ok(_)) => None,
        (false, Err(_)) => part_charset.filter(|label| is_label(label)).map(str::to_owned),
    };
    encoded.or_else(raw).unwrap_or_else(|| "utf-8".to_owned())
}

fn is_label(label: &str) -> bool {
    // Long enough for every real charset, short enough to leave room in an encoded word.
    (1..=30).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'+'))
}

/// Text as it may stand in a header: itself, or encoded words in `label`, or in UTF-8.
fn written(text: &str, label: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    encoded_words(text, label).or_else(|| encoded_words(text, "utf-8")).unwrap_or_default()
}

/// Encoded words, one a line, none splitting a character, the first short enough to stand behind `Subject: `; none if the charset cannot say it.
fn encoded_words(text: &str, label: &str) -> Option<String> {
    let room = ((WORD_MAX - "Subject: ".len()).checked_sub("=??B??=".len() + label.len())? / 4) * 3;
    let mut words: Vec<Vec<u8>> = vec![];
    let mut chunk = String::new();
    for c in text.chars() {
        chunk.push(c);
        let bytes = encode(&chunk, label)?;
        if bytes.len() > room {
            let mut first = chunk.clone();
            first.pop();
            words.push(encode(&first, label)?);
            chunk = c.to_string();
        }
    }
    words.push(encode(&chunk, label)?);
    let words: Vec<String> = words.iter().map(|bytes| format!("=?{label}?B?{}?=", BASE64.encode(bytes))).collect();
    Some(words.join("\r\n "))
}

/// Bytes in the charset that a label names; none if it has no such character.
fn encode(text: &str, label: &str) -> Option<Vec<u8>> {
    let encoding = Encoding::for_label(label.as_bytes())?;
    if encoding.output_encoding() != encoding && encoding != UTF_8 {
        return None;
    }
    let (bytes, _, lacking) = encoding.encode(text);
    // Browsers take `iso-8859-1` and `us-ascii` for windows-1252; mail readers need not.
    let lower = label.to_ascii_lowercase();
    let beyond = match lower.as_str() {
        _ if encoding != encoding_rs::WINDOWS_1252 || lower.contains("1252") => false,
        "iso-8859-1" | "iso8859-1" | "latin1" | "l1" => bytes.iter().any(|byte| (0x80..0xa0).contains(byte)),
        _ => !bytes.is_ascii(),
    };
    (!lacking && !beyond).then(|| bytes.into_owned())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{Limits, parse};

    fn read(raw: &[u8]) -> Message {
        parse(Bytes::copy_from_slice(raw), &Limits::default())
    }

    fn tagged(header: &[u8], tag: &str) -> (Vec<u8>, Message) {
        let message = read(&[header, b"From: a@b\r\n\r\nbody"].concat());
        let edits = crate::message::edit::EditsBuilder::new(message.raw.len()).push(tag_edit(&message, tag).expect("a tag")).build().expect("fits");
        let bytes = edits.apply(&message.raw).concat();
        let after = read(&bytes);
        (bytes, after)
    }

    /// Subject field, tag: what the field becomes, and how it reads.
    fn check(header: &[u8], tag: &str, becomes: &[u8], reads: &str) {
        let (bytes, after) = tagged(header, tag);
        let expected = [becomes, b"From: a@b\r\n\r\nbody"].concat();
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&expected), "{tag:?}");
        assert_eq!(bytes, expected);
        assert_eq!(after.subject.as_deref(), Some(reads), "{tag:?}");
        assert!(tag_edit(&after, tag).is_none(), "tagged twice: {}", String::from_utf8_lossy(&bytes));
        for word in String::from_utf8_lossy(&bytes).split_whitespace().filter(|word| word.starts_with("=?") && word.ends_with("?=")) {
            assert!(word.len() <= WORD_MAX, "{word}");
        }
    }

    #[test]
    fn an_ascii_tag_is_a_plain_prefix() {
        check(b"Subject: hello\r\n", "[SPAM] ", b"Subject: [SPAM] hello\r\n", "[SPAM] hello");
        check(b"Subject:hello\r\n", "[SPAM] ", b"Subject: [SPAM] hello\r\n", "[SPAM] hello");
        check(b"Subject: hello\r\n", "*", b"Subject: *hello\r\n", "*hello");
        check(b"sUBJECT :\t hello\r\n", "[SPAM] ", b"sUBJECT :\t [SPAM] hello\r\n", "[SPAM] hello");
        check(b"Subject:\r\n hello\r\n", "[SPAM] ", b"Subject:\r\n [SPAM] hello\r\n", "[SPAM] hello");
        check(b"Subject:\r\n", "[SPAM] ", b"Subject: [SPAM]\r\n", "[SPAM]");
        check(b"Subject:  \r\n", "[SPAM] ", b"Subject: [SPAM]\r\n", "[SPAM]");
        check(b"", "[SPAM] ", b"Subject: [SPAM]\r\n", "[SPAM]");
        check(b"Subject: Re: [SPAM] hello\r\n", "[SPAM] ", b"Subject: [SPAM] Re: [SPAM] hello\r\n", "[SPAM] Re: [SPAM] hello");
    }

    #[test]
    fn encoded_subjects_stay_byte_for_byte() {
        check(
            b"Subject: =?ISO-2022-JP?B?GyRCJD8k?=\r\n =?ISO-2022-JP?B?QBsoQg==?=\r\n",
            "[SPAM] ",
            b"Subject: [SPAM] =?ISO-2022-JP?B?GyRCJD8k?=\r\n =?ISO-2022-JP?B?QBsoQg==?=\r\n",
            "[SPAM] ただ",
        );
        check(b"Subject: =?Shift_JIS?B?g1g=?=\r\n", "[SPAM]", b"Subject: [SPAM] =?Shift_JIS?B?g1g=?=\r\n", "[SPAM] ス");
        check(b"Subject: =?EUC-JP?B?pLM=?= x\r\n", "[SPAM] ", b"Subject: [SPAM] =?EUC-JP?B?pLM=?= x\r\n", "[SPAM] こ x");
        check(b"Subject: \x1b$B$?$@\x1b(B\r\n", "[SPAM] ", b"Subject: [SPAM] \x1b$B$?$@\x1b(B\r\n", "[SPAM] ただ");
        check(b"Subject: \xe3\x81\x82\r\n", "[SPAM] ", b"Subject: [SPAM] \xe3\x81\x82\r\n", "[SPAM] あ");
        let raw = b"Subject: \x83\x58\r\nContent-Type: text/plain; charset=shift_jis\r\n";
        check(raw, "[SPAM] ", b"Subject: [SPAM] \x83\x58\r\nContent-Type: text/plain; charset=shift_jis\r\n", "[SPAM] ス");
    }

    #[test]
    fn a_tag_that_is_not_ascii_takes_the_charset_of_the_subject() {
        check(
            b"Subject: =?ISO-2022-JP?B?GyRCJD8kQBsoQg==?=\r\n",
            "[迷惑] ",
            b"Subject: =?ISO-2022-JP?B?WxskQkxCT0cbKEJdIA==?=\r\n =?ISO-2022-JP?B?GyRCJD8kQBsoQg==?=\r\n",
            "[迷惑] ただ",
        );
        check(b"Subject: =?Shift_JIS?B?g1g=?=\r\n", "迷惑 ", b"Subject: =?Shift_JIS?B?lsCYZiA=?= =?Shift_JIS?B?g1g=?=\r\n", "迷惑 ス");
        check(b"Subject: hello\r\n", "迷惑 ", b"Subject: =?utf-8?B?6L+35oOR?= hello\r\n", "迷惑 hello");
        check(b"", "迷惑 ", b"Subject: =?utf-8?B?6L+35oOR?=\r\n", "迷惑");
        check(b"Subject:\r\n", "迷惑 ", b"Subject: =?utf-8?B?6L+35oOR?=\r\n", "迷惑");
        // Charsets that cannot say it, are not known, or are not for mail.
        for label in ["ISO-8859-1", "us-ascii", "x-unknown", "utf-16le", "iso-2022-kr"] {
            let header = format!("Subject: =?{label}?Q?a?=\r\n");
            let (bytes, after) = tagged(header.as_bytes(), "迷惑 ");
            assert!(bytes.starts_with(b"Subject: =?utf-8?B?6L+35oORIA==?= =?"), "{label}: {}", String::from_utf8_lossy(&bytes));
            assert!(after.subject.is_some_and(|subject| subject.starts_with("迷惑 ")), "{label}");
        }
        check(b"Subject: =?iso-8859-1?Q?=E9?=\r\n", "\u{e4} ", b"Subject: =?iso-8859-1?B?5CA=?= =?iso-8859-1?Q?=E9?=\r\n", "\u{e4} \u{e9}");
        // U+201C is in windows-1252, which browsers take for iso-8859-1, and not in it.
        check(b"Subject: =?iso-8859-1?Q?=E9?=\r\n", "\u{201c} ", b"Subject: =?utf-8?B?4oCcIA==?= =?iso-8859-1?Q?=E9?=\r\n", "\u{201c} \u{e9}");
        // A language suffix is no part of the charset.
        check(b"Subject: =?utf-8*ja?B?44GC?=\r\n", "\u{e4} ", b"Subject: =?utf-8?B?w6Qg?= =?utf-8*ja?B?44GC?=\r\n", "\u{e4} あ");
        // What looks like an encoded word must be encoded.
        check(b"Subject: x\r\n", "=?a?", b"Subject: =?utf-8?B?PT9hPw==?= x\r\n", "=?a? x");
    }

    #[test]
    fn lines_stay_short() {
        let long = "x".repeat(65);
        let (bytes, after) = tagged(format!("Subject: {long}\r\n").as_bytes(), "[SPAM] ");
        assert!(bytes.starts_with(format!("Subject: [SPAM]\r\n {long}\r\n").as_bytes()), "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(after.subject, Some(format!("[SPAM] {long}")));
        let (bytes, _) = tagged(format!("Subject: {}\r\n", "x".repeat(987)).as_bytes(), "[SPAM]");
        assert!(bytes.split(|byte| *byte == b'\n').all(|line| line.len() <= LINE_MUST + 1));
        let (bytes, after) = tagged(b"Subject: =?ISO-2022-JP?B?GyRCJD8kQBsoQg==?=\r\n", &"迷惑メール".repeat(15));
        assert!(bytes.split(|byte| *byte == b'\n').all(|line| line.len() <= LINE_SHOULD + 1), "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(after.subject, Some(format!("{}ただ", "迷惑メール".repeat(15))));
    }

    #[test]
    fn nothing_to_do_and_nothing_to_break() {
        for tag in ["", " ", "\r\n", "\0"] {
            assert!(tag_edit(&read(b"Subject: x\r\n\r\n"), tag).is_none(), "{tag:?}");
        }
        let message = read(b"Subject: =?utf-8?B?6L+35oOR?= x\r\n\r\n");
        assert!(tag_edit(&message, "迷惑 ").is_none(), "it is tagged already");
        let (bytes, _) = tagged(b"Subject: x\r\n", "[SPAM]\r\nBcc: y@z ");
        assert!(bytes.starts_with(b"Subject: [SPAM]Bcc: y@z x\r\n"), "a tag injects no field");
        let edit = tag_edit(&read(b"Subject: x\r\n\r\n"), &"\u{1f4a9}".repeat(10_000)).expect("a tag");
        assert!(edit.with.len() < 2000);
    }
}
