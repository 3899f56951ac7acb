//! File names of a part as other readers may take them: every `filename` and `name` parameter, encoded words in them joined before they are decoded.
//!
//! RFC 2231 forms are mail-parser's to read. What it cannot do is a name whose encoded words split a character (`=?ISO-2022-JP?B?GyRCJD8k?=
//! =?ISO-2022-JP?B?QBsoQg==?=`), which Japanese mailers write, and raw names in the legacy charsets.

use mail_parser::{HeaderName, MessagePart};

use super::words::decode_text;

/// Names of one part that are looked at.
const NAMES_MAX: usize = 16;

/// Every name that a reader may give the part, the likeliest first, without duplicates or control characters.
pub(super) fn file_names(part: &MessagePart<'_>, charset: Option<&str>) -> Vec<String> {
    let mut names = vec![];
    for (field, parameter) in [(HeaderName::ContentDisposition, "filename"), (HeaderName::ContentType, "name")] {
        for header in part.headers().all(field) {
            // mail-parser's list is right unless a plain parameter holds encoded words or is not UTF-8.
            for value in raw_parameters(header.raw_value(), parameter.as_bytes()) {
                let plain = memchr::memmem::find(&value, b"=?").is_none() && !value.contains(&0x1b) && std::str::from_utf8(&value).is_ok();
                if !plain {
                    push(&mut names, &decode_text(&value, charset));
                }
            }
            if let Some(content) = header.value().as_content_type() {
                content.attributes().filter(|(name, _)| *name == parameter).for_each(|(_, value)| push(&mut names, value));
            }
        }
    }
    names
}

fn push(names: &mut Vec<String>, name: &str) {
    // Some readers stop at a NUL, others skip it.
    if let Some((before, _)) = name.split_once('\0') {
        push(names, before);
    }
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let name = name.trim();
    if !name.is_empty() && names.len() < NAMES_MAX && !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

/// Values of the parameters of this very name (so no `name*`), quotes, escapes and folds undone.
fn raw_parameters(value: &[u8], wanted: &[u8]) -> Vec<Vec<u8>> {
    let mut found = vec![];
    let mut rest = value;
    while let Some(at) = next_parameter(rest) {
        rest = rest.get(at..).unwrap_or_default();
        let name_len = rest.iter().position(|byte| matches!(byte, b'=' | b';')).unwrap_or(rest.len());
        let name = rest.get(..name_len).unwrap_or_default().trim_ascii();
        if rest.get(name_len) != Some(&b'=') {
            continue;
        }
        let (text, tail) = parameter_value(rest.get(name_len + 1..).unwrap_or_default().trim_ascii_start());
        if name.eq_ignore_ascii_case(wanted) && found.len() < NAMES_MAX {
            found.push(text);
        }
        rest = tail;
    }
    found
}

/// Behind the next `;` outside quotes.
fn next_parameter(text: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn parameter_value(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let Some(inside) = text.strip_prefix(b"\"") else {
        let len = text.iter().position(|byte| *byte == b';').unwrap_or(text.len());
        return (text.get(..len).unwrap_or_default().trim_ascii().to_vec(), text.get(len..).unwrap_or_default());
    };
    let (mut value, mut bytes) = (Vec::new(), inside);
    while let Some((byte, rest)) = bytes.split_first() {
        bytes = rest;
        match byte {
            b'"' => break,
            b'\r' | b'\n' => {}
            b'\\' if rest.first().is_some_and(|next| matches!(next, b'"' | b'\\')) => {
                value.extend(rest.first());
                bytes = rest.get(1..).unwrap_or_default();
            }
            _ => value.push(*byte),
        }
    }
    (value, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &str, expected: &[&str]) {
        let found: Vec<String> = raw_parameters(value.as_bytes(), b"name").iter().map(|v| String::from_utf8_lossy(v).into_owned()).collect();
        assert_eq!(found, expected, "{value:?}");
    }

    #[test]
    fn finds_parameters() {
        check("a/b; name=x.exe", &["x.exe"]);
        check("a/b;NAME = \"x y.exe\" ; other=1", &["x y.exe"]);
        check("a/b; name=\"a;name=b\\\"c\\\\d\"; name=z", &["a;name=b\"c\\d", "z"]);
        check("a/b; name=\"folded\r\n name\"", &["folded name"]);
        check("a/b; name*=utf-8''x; filename=y; name", &[]);
        check("a/b; x=\"name=no", &[]);
        check("name=no", &[]);
        check("a/b; name=", &[""]);
        check("; ; ;name=x;;", &["x"]);
        check("a/b; name=\"never closed", &["never closed"]);
    }
}
