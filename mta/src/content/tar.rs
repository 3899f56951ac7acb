//! tar: POSIX, GNU and old, read by checksum and not by magic.

use super::walker::{Trouble, Walker};

const BLOCK: usize = 512;
/// A long name is read to this length.
const LONG_NAME_MAX: usize = 4096;

/// Whether the first block is a header: its checksum fits.
pub(super) fn is_tar(content: &[u8]) -> bool {
    content.get(..BLOCK).is_some_and(|block| block.first() != Some(&0) && checksum_fits(block))
}

fn checksum_fits(block: &[u8]) -> bool {
    let Some(stored) = block.get(148..156).and_then(octal) else { return false };
    let sum: u64 = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
    sum == stored
}

/// Octal digits with spaces and NULs around them, or GNU's base 256.
fn octal(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        let low = field.get(field.len().saturating_sub(8)..)?;
        return Some(low.iter().fold(0, |value, b| value << 8 | u64::from(*b)));
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(['\0', ' ']);
    if digits.is_empty() { None } else { u64::from_str_radix(digits, 8).ok() }
}

fn text(field: &[u8]) -> String {
    let end = memchr::memchr(0, field).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

/// The name that a `path=` record of a PAX header gives.
fn pax_path(content: &[u8]) -> Option<String> {
    let at = memchr::memmem::find(content, b" path=")? + 6;
    let rest = content.get(at..)?;
    let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len()).min(LONG_NAME_MAX);
    Some(String::from_utf8_lossy(rest.get(..end)?).into_owned())
}

pub(super) fn open(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    let mut rest = content;
    let mut long_name: Option<String> = None;
    loop {
        let Some((block, after)) = rest.split_at_checked(BLOCK) else {
            // An archive may end without its two empty blocks, but not within one.
            if !rest.iter().all(|b| *b == 0) {
                walker.note(Trouble::Malformed);
            }
            return;
        };
        if block.iter().all(|b| *b == 0) {
            // Two empty blocks end it. Some writers put an archive behind an archive, and `tar -i` reads it: look on for a header.
            let Some(next) = next_header(after) else { return };
            rest = next;
            continue;
        }
        if !checksum_fits(block) {
            walker.note(Trouble::Malformed);
            let Some(next) = next_header(after) else { return };
            rest = next;
            continue;
        }
        if !walker.admit() {
            return;
        }
        let size = block.get(124..136).and_then(octal).and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        let kind = block.get(156).copied().unwrap_or(0);
        // Links and directories have no content, whatever their size says.
        let size = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        let whole = size <= after.len();
        let data = after.get(..size).unwrap_or(after);
        if !whole {
            walker.note(Trouble::Malformed);
        }
        match kind {
            b'L' => long_name = Some(text(data.get(..data.len().min(LONG_NAME_MAX)).unwrap_or_default())),
            b'x' => long_name = pax_path(data).or(long_name),
            b'K' | b'g' => {}
            _ => {
                let name = long_name.take().unwrap_or_else(|| header_name(block));
                if !walker.charge(data.len()) {
                    return;
                }
                walker.member(Some(&name), data, depth);
            }
        }
        let Some(next) = size.checked_next_multiple_of(BLOCK).and_then(|padded| after.get(padded..)) else { return };
        rest = next;
    }
}

fn header_name(block: &[u8]) -> String {
    let name = text(block.get(..100).unwrap_or_default());
    let prefix = if block.get(257..262) == Some(b"ustar") { text(block.get(345..500).unwrap_or_default()) } else { String::new() };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

/// The next block that is a header.
fn next_header(rest: &[u8]) -> Option<&[u8]> {
    let skip = rest.as_chunks::<BLOCK>().0.iter().position(|block| block.iter().any(|b| *b != 0) && checksum_fits(block))?;
    rest.get(skip * BLOCK..)
}
