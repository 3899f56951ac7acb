//! Files within files that are no archives: TNEF attachments, objects in RTF, `data:` URLs in HTML, uuencoded files in text.

use memchr::memmem;

use super::walker::Walker;
use super::{Kind, ole};

/// Files taken out of one stream.
const FILES_MAX: usize = 1_000;

/// Whether there may be something to take out: cheap.
pub(super) fn has_some(kind: Kind, content: &[u8]) -> bool {
    match kind {
        Kind::Tnef => true,
        Kind::Rtf => memmem::find(content, b"\\objdata").is_some(),
        // SVG and pages that begin in an odd way are of no kind of their own.
        Kind::Html | Kind::Other => memmem::find(content, b";base64,").is_some() || uu_begin(content).is_some(),
        Kind::Mail => uu_begin(content).is_some(),
        _ => false,
    }
}

/// Takes out what there is.
pub(super) fn open(walker: &mut Walker<'_>, kind: Kind, content: &[u8], depth: usize) {
    match kind {
        Kind::Tnef => tnef(walker, content, depth),
        Kind::Rtf => rtf(walker, content, depth),
        Kind::Html | Kind::Other => {
            data_urls(walker, content, depth);
            uuencoded(walker, content, depth);
        }
        _ => uuencoded(walker, content, depth),
    }
}

fn take_out(walker: &mut Walker<'_>, name: Option<&str>, bytes: &[u8], depth: usize) -> bool {
    if !walker.admit() || !walker.charge(bytes.len()) {
        return false;
    }
    match name {
        Some(name) => walker.member(Some(name), bytes, depth),
        None => walker.document_stream(bytes, depth),
    }
    true
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(field)).ok()
}

/// TNEF is a list of attributes: level (1 byte), id (4), length (4), data, checksum (2). The title of an attachment may come before or after its data.
fn tnef(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    const TITLE: usize = 0x0001_8010;
    const DATA: usize = 0x0006_800f;
    const RENDERING: usize = 0x0006_9002;
    let mut rest = content.get(6..).unwrap_or_default();
    let mut title: Option<String> = None;
    let mut data: Option<&[u8]> = None;
    for _ in 0..FILES_MAX * 10 {
        let attribute = u32_at(rest, 1).zip(u32_at(rest, 5)).and_then(|(id, length)| Some((id, rest.get(9..)?.get(..length)?)));
        let Some((id, value)) = attribute else { break };
        match id {
            // Each attachment begins with its rendering data.
            RENDERING => {
                if let Some(bytes) = data.take()
                    && !take_out(walker, title.take().as_deref(), bytes, depth)
                {
                    return;
                }
            }
            TITLE => title = Some(String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()),
            DATA => data = Some(value),
            _ => {}
        }
        rest = rest.get(9 + value.len() + 2..).unwrap_or_default();
    }
    if let Some(bytes) = data {
        take_out(walker, title.as_deref(), bytes, depth);
    }
}

/// Objects in RTF are hexadecimal digits; readers skip white space, groups and control words between them, and exploits put those there.
fn rtf(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    for at in memmem::find_iter(content, b"\\objdata").take(FILES_MAX) {
        let (object, read) = hexadecimal(content.get(at + b"\\objdata".len()..).unwrap_or_default());
        if !walker.spend(read) {
            return;
        }
        if !object.is_empty() && (!take_out(walker, None, &object, depth) || !ole_object(walker, &object, depth)) {
            return;
        }
    }
}

/// The bytes, and how much text was read for them.
fn hexadecimal(text: &[u8]) -> (Vec<u8>, usize) {
    let mut out = vec![];
    let mut high: Option<u8> = None;
    let mut open = 0_usize;
    let mut read = 0;
    let mut bytes = text.iter().copied().inspect(|_| read += 1).peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' => open += 1,
            b'}' if open == 0 => break,
            b'}' => open -= 1,
            b'\\' => {
                while bytes.peek().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'*' | b'-' | b'\'')) {
                    bytes.next();
                }
            }
            _ => {
                let Some(digit) = char::from(byte).to_digit(16) else { continue };
                let digit = digit as u8;
                match high.take() {
                    Some(high) => out.push(high << 4 | digit),
                    None => high = Some(digit),
                }
            }
        }
    }
    drop(bytes);
    (out, read)
}

/// An OLE 1 object: version, format, three strings with lengths, then the native data: a compound file, or a package with a file name.
fn ole_object(walker: &mut Walker<'_>, object: &[u8], depth: usize) -> bool {
    let mut at = 8;
    for _ in 0..3 {
        let Some(next) = u32_at(object, at).and_then(|length| at.checked_add(4)?.checked_add(length)) else { return true };
        at = next;
    }
    let Some(native) = at.checked_add(4).and_then(|at| object.get(at..)) else { return true };
    if let Some((name, data)) = ole::package(native) {
        ole::embedded_file(walker, &name, data, depth);
        return walker.proceed();
    }
    if Kind::of(native) == Kind::Other { true } else { take_out(walker, None, native, depth) }
}

/// `data:type;base64,...`: how a page carries a file.
fn data_urls(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    for at in memmem::find_iter(content, b";base64,").take(FILES_MAX) {
        let bytes = base64(content.get(at + b";base64,".len()..).unwrap_or_default());
        if !bytes.is_empty() && !take_out(walker, None, &bytes, depth) {
            return;
        }
    }
}

/// Base64 to the first byte that is neither that nor white space. Sloppy, as browsers are.
fn base64(text: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    out
}

/// Where a uuencoded file begins: `begin`, a mode in octal, a name, at the start of a line. Gives the name and what follows the line.
fn uu_begin(text: &[u8]) -> Option<(String, &[u8])> {
    for at in memmem::find_iter(text, b"begin ") {
        let at_line_start = at == 0 || text.get(at - 1) == Some(&b'\n');
        let line_and_rest = text.get(at + 6..)?;
        let mode = line_and_rest.iter().take_while(|b| (b'0'..=b'7').contains(b)).count();
        if !at_line_start || !(3..=4).contains(&mode) || line_and_rest.get(mode) != Some(&b' ') {
            continue;
        }
        let end = memchr::memchr(b'\n', line_and_rest)?;
        let name = String::from_utf8_lossy(line_and_rest.get(mode + 1..end).unwrap_or_default().trim_ascii()).into_owned();
        return Some((name, line_and_rest.get(end + 1..)?));
    }
    None
}

fn uuencoded(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    let mut rest = content;
    for _ in 0..FILES_MAX {
        let Some((name, body)) = uu_begin(rest) else { return };
        let mut out = vec![];
        let mut used = 0;
        for line in body.split_inclusive(|b| *b == b'\n') {
            used += line.len();
            if !uu_line(line.trim_ascii_end(), &mut out) {
                break;
            }
        }
        if !out.is_empty() && !take_out(walker, Some(&name), &out, depth) {
            return;
        }
        rest = body.get(used..).unwrap_or_default();
    }
}

/// One line: its length, then four characters for three bytes. `false` where the file ends.
fn uu_line(line: &[u8], out: &mut Vec<u8>) -> bool {
    let value = |byte: u8| (0x20..=0x60).contains(&byte).then(|| byte.wrapping_sub(0x20) & 0x3f);
    let Some((length, data)) = line.split_first() else { return false };
    let Some(length) = value(*length).filter(|length| *length > 0).map(usize::from) else { return false };
    let before = out.len();
    for four in data.chunks(4) {
        let mut bits = 0_u32;
        for at in 0..4 {
            // Trailing spaces are often lost on the way.
            let Some(six) = value(four.get(at).copied().unwrap_or(b' ')) else { return false };
            bits = bits << 6 | u32::from(six);
        }
        out.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    // Whole groups of them too.
    out.resize(before + length, 0);
    true
}
