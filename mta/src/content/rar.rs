//! Archives that are recognised and not opened: whether they are at least seen to be encrypted.

use super::Kind;
use super::walker::Trouble;

/// Headers looked at.
const HEADERS_MAX: usize = 10_000;

/// Why the content of this closed archive was not seen.
pub(super) fn trouble(kind: Kind, content: &[u8]) -> Trouble {
    let encrypted = match kind {
        Kind::Rar4 => rar4_encrypted(content),
        Kind::Rar5 => rar5_encrypted(content),
        Kind::Arj => content.get(8).is_some_and(|flags| flags & 1 != 0),
        _ => false,
    };
    if encrypted { Trouble::Encrypted } else { Trouble::LimitsExceeded }
}

/// RAR 1.5 to 4: the archive header says that headers are encrypted (0x0080), or a file header says that the file is (0x0004).
fn rar4_encrypted(content: &[u8]) -> bool {
    let mut at = 7;
    for _ in 0..HEADERS_MAX {
        let Some(&[_, _, kind, flags_low, flags_high, size_low, size_high]) = content.get(at..at + 7) else { return false };
        let flags = u16::from_le_bytes([flags_low, flags_high]);
        let size = usize::from(u16::from_le_bytes([size_low, size_high]));
        if kind == 0x73 && flags & 0x0080 != 0 || kind == 0x74 && flags & 0x0004 != 0 {
            return true;
        }
        let has_data = kind == 0x74 || flags & 0x8000 != 0;
        let data = if has_data { content.get(at + 7..at + 11).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize) } else { 0 };
        if size < 7 {
            return false;
        }
        at += size + data;
    }
    false
}

/// A variable-length number of RAR 5: its value, and what follows.
fn vint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(i + 1..)?));
        }
    }
    None
}

/// RAR 5: a header of type 4 encrypts all headers; a file header (2) with an extra record of type 1 is an encrypted file.
fn rar5_encrypted(content: &[u8]) -> bool {
    let mut rest = content.get(8..).unwrap_or_default();
    for _ in 0..HEADERS_MAX {
        match rar5_header(rest) {
            Some((true, _)) => return true,
            Some((false, next)) => rest = next,
            None => return false,
        }
    }
    false
}

fn rar5_header(bytes: &[u8]) -> Option<(bool, &[u8])> {
    let (size, after) = vint(bytes.get(4..)?)?;
    let size = usize::try_from(size).ok()?;
    let (header, after) = after.split_at_checked(size)?;
    let (kind, fields) = vint(header)?;
    if kind == 4 {
        return Some((true, after));
    }
    let (flags, fields) = vint(fields)?;
    let (extra, fields) = if flags & 1 != 0 { vint(fields)? } else { (0, fields) };
    let (data, _) = if flags & 2 != 0 { vint(fields)? } else { (0, fields) };
    let extra_area = header.get(header.len().checked_sub(usize::try_from(extra).ok()?)?..)?;
    let encrypted = kind == 2 && has_encryption_record(extra_area);
    Some((encrypted, after.get(usize::try_from(data).ok()?..)?))
}

fn has_encryption_record(mut area: &[u8]) -> bool {
    while let Some((size, after)) = vint(area) {
        let Some(record) = usize::try_from(size).ok().and_then(|size| after.get(..size)) else { return false };
        if vint(record).is_some_and(|(kind, _)| kind == 1) {
            return true;
        }
        area = after.get(record.len()..).unwrap_or_default();
        if record.is_empty() {
            return false;
        }
    }
    false
}
