//! ZIP, read in every way that some reader reads it.
//!
//! A ZIP says twice what is in it: in a central directory at its end, and in a header before each member. Programs believe one or the other, so a file can show a scanner one
//! content and a user another. Here the members of every central directory *and* every local header outside of their data are unpacked; where the two disagree, both stories are
//! tried and the disagreement is a sign. Sizes are never believed for deflate, which knows its own end.

use memchr::memmem;

use super::evidence;
use super::walker::{Trouble, Walker};

const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const COMMENT_BYTES_MAX: usize = 0xffff;
/// Central directories looked at, the last first.
const DIRECTORIES_MAX: usize = 4;
/// Local headers outside of every directory looked at.
const ORPHANS_MAX: usize = 1_000;

/// What one of the two headers says of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    name: String,
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    size: u64,
    /// Where the local header is.
    at: usize,
}

impl Header {
    fn encrypted(&self) -> bool {
        // 0x2000: the central directory is encrypted and local headers are masked; 99: AES.
        self.flags & 0x2041 != 0 || self.method == 99
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// UTF-8 where it is, else Shift_JIS, which is what Windows writes in Japan and what ASCII looks the same in.
fn name_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(name) => name.to_owned(),
        Err(_) => encoding_rs::SHIFT_JIS.decode_without_bom_handling(bytes).0.into_owned(),
    }
}

/// A central directory: where it begins, and by how much its offsets are short (bytes put before the archive).
struct Directory {
    at: usize,
    end: usize,
    prefix: usize,
}

/// Whether the last bytes are the end of a ZIP whose first listed member is there, whatever the file begins with.
pub(super) fn ends_like_one(content: &[u8]) -> bool {
    directories(content)
        .any(|directory| central(content, directory.at, directory.prefix).is_some_and(|(header, _)| local(content, header.at).is_some()))
}

/// Central directories by their end records, the last first.
fn directories(content: &[u8]) -> impl Iterator<Item = Directory> + '_ {
    let from = content.len().saturating_sub(END_BYTES + COMMENT_BYTES_MAX);
    let tail = content.get(from..).unwrap_or_default();
    memmem::rfind_iter(tail, END).map(move |at| from + at).filter_map(|end| directory(content, end)).take(DIRECTORIES_MAX)
}

fn directory(content: &[u8], end: usize) -> Option<Directory> {
    let mut size = u64::from(u32_at(content, end + 12)?);
    let mut offset = u64::from(u32_at(content, end + 16)?);
    let mut directory_end = end;
    if (size == 0xffff_ffff || offset == 0xffff_ffff || u16_at(content, end + 10)? == 0xffff)
        && let Some(locator) = end.checked_sub(20).filter(|at| content.get(*at..).is_some_and(|rest| rest.starts_with(b"PK\x06\x07")))
    {
        // ZIP64: its record stands right before its locator, wherever the archive begins; a few bytes of extensions are allowed.
        let from = locator.saturating_sub(1024);
        let record = from + memmem::rfind(content.get(from..locator)?, b"PK\x06\x06")?;
        size = u64_at(content, record + 40)?;
        offset = u64_at(content, record + 48)?;
        directory_end = record;
    }
    let size = usize::try_from(size).ok()?;
    let offset = usize::try_from(offset).ok()?;
    let starts = |at: usize| content.get(at..).is_some_and(|rest| rest.starts_with(CENTRAL));
    let by_size = directory_end.checked_sub(size);
    match by_size {
        Some(at) if size > 0 && starts(at) => Some(Directory { at, end: directory_end, prefix: at.saturating_sub(offset) }),
        _ if starts(offset) => Some(Directory { at: offset, end: directory_end, prefix: 0 }),
        Some(at) if size == 0 => Some(Directory { at, end: directory_end, prefix: at.saturating_sub(offset) }),
        _ => None,
    }
}

/// The headers of a central directory, and whether it was read to its end.
fn read_directory(content: &[u8], directory: &Directory, max: usize) -> (Vec<Header>, bool) {
    let mut headers = vec![];
    let mut at = directory.at;
    while at < directory.end && headers.len() < max {
        let Some((header, next)) = central(content, at, directory.prefix) else { return (headers, false) };
        headers.push(header);
        at = next;
    }
    (headers, true)
}

fn central(content: &[u8], at: usize, prefix: usize) -> Option<(Header, usize)> {
    let fixed = content.get(at..at.checked_add(46)?)?;
    if !fixed.starts_with(CENTRAL) {
        return None;
    }
    let name_length = usize::from(u16_at(fixed, 28)?);
    let extra_length = usize::from(u16_at(fixed, 30)?);
    let comment_length = usize::from(u16_at(fixed, 32)?);
    let name = content.get(at + 46..at + 46 + name_length)?;
    let extra = content.get(at + 46 + name_length..at + 46 + name_length + extra_length)?;
    let mut values = [u64::from(u32_at(fixed, 24)?), u64::from(u32_at(fixed, 20)?), u64::from(u32_at(fixed, 42)?)];
    zip64(extra, &mut values);
    let [size, packed, offset] = values;
    let header = Header {
        name: name_of(name),
        flags: u16_at(fixed, 8)?,
        method: u16_at(fixed, 10)?,
        crc: u32_at(fixed, 16)?,
        packed,
        size,
        at: usize::try_from(offset).ok()?.checked_add(prefix)?,
    };
    Some((header, at + 46 + name_length + extra_length + comment_length))
}

/// Replaces values that are all ones by those of the ZIP64 extra field, which has only the ones that did not fit.
fn zip64(mut extra: &[u8], values: &mut [u64]) {
    while let (Some(id), Some(length)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let end = 4 + usize::from(length);
        let Some(data) = extra.get(4..end) else { return };
        if id == 1 {
            let mut at = 0;
            for value in values.iter_mut().filter(|value| **value == 0xffff_ffff) {
                let Some(wide) = u64_at(data, at) else { return };
                *value = wide;
                at += 8;
            }
            return;
        }
        extra = extra.get(end..).unwrap_or_default();
    }
}

/// The local header at an offset, and where its data begins.
fn local(content: &[u8], at: usize) -> Option<(Header, usize)> {
    let fixed = content.get(at..at.checked_add(30)?)?;
    if !fixed.starts_with(LOCAL) {
        return None;
    }
    let name_length = usize::from(u16_at(fixed, 26)?);
    let extra_length = usize::from(u16_at(fixed, 28)?);
    let name = content.get(at + 30..at + 30 + name_length)?;
    let extra = content.get(at + 30 + name_length..at + 30 + name_length + extra_length)?;
    let mut values = [u64::from(u32_at(fixed, 22)?), u64::from(u32_at(fixed, 18)?)];
    zip64(extra, &mut values);
    let [size, packed] = values;
    let header = Header { name: name_of(name), flags: u16_at(fixed, 6)?, method: u16_at(fixed, 8)?, crc: u32_at(fixed, 14)?, packed, size, at };
    Some((header, at + 30 + name_length + extra_length))
}

pub(super) fn open(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    let mut headers: Vec<Header> = vec![];
    let mut found_directory = false;
    for directory in directories(content) {
        found_directory = true;
        // One more than the budget, so that running out of it is noticed and not a quiet end.
        let (more, whole) = read_directory(content, &directory, walker.limits.entries + 1);
        if !whole {
            walker.note(Trouble::Malformed);
        }
        for header in more {
            if !headers.contains(&header) || headers.len() > 1000 {
                headers.push(header);
            }
        }
    }
    headers.sort_by_key(|header| header.at);
    let mut covered: usize = 0;
    let mut orphans = 0;
    for header in &headers {
        orphans += open_orphans(walker, content, covered, header.at, depth, ORPHANS_MAX - orphans, !found_directory);
        if !walker.admit() {
            return;
        }
        if header.at < covered {
            // Members that share bytes are how a small file becomes a huge one; no archiver writes that.
            walker.note(Trouble::LimitsExceeded);
        }
        covered = covered.max(member(walker, content, header, depth));
    }
    let end = content.len();
    orphans += open_orphans(walker, content, covered, end, depth, ORPHANS_MAX - orphans, !found_directory);
    if !found_directory {
        // Cut off before its directory, or none was ever written.
        walker.note(Trouble::Malformed);
    }
    if orphans == ORPHANS_MAX {
        walker.note(Trouble::LimitsExceeded);
    }
}

/// Unpacks what local headers between two offsets promise, and no directory mentions. Gives how many there were.
///
/// With a directory in place, what cannot be read there is chance (the four bytes occur in programs that unpack themselves); without one it is a broken archive.
fn open_orphans(walker: &mut Walker<'_>, content: &[u8], from: usize, to: usize, depth: usize, max: usize, strict: bool) -> usize {
    let mut at = from;
    let mut count = 0;
    while count < max
        && let Some(step) = content.get(at..to).and_then(|range| memmem::find(range, LOCAL))
    {
        let start = at + step;
        at = start + LOCAL.len();
        let Some((header, data_at)) = local(content, start) else { continue };
        if !strict && !matches!(header.method, 0 | 8 | 12) {
            continue;
        }
        count += 1;
        if !walker.admit() {
            return count;
        }
        if header.encrypted() {
            // Chance has flags too.
            if strict {
                walker.note(Trouble::Encrypted);
            }
            continue;
        }
        let input = content.get(data_at..to).unwrap_or_default();
        let unpacked = decode(walker, &header, input);
        match unpacked.trouble {
            None | Some(Trouble::LimitsExceeded) => {
                if unpacked.trouble.is_some() {
                    walker.note(Trouble::LimitsExceeded);
                }
                walker.member(Some(&header.name), &unpacked.bytes, depth);
                at = at.max(data_at.saturating_add(unpacked.consumed));
            }
            Some(_) if strict => {
                walker.note(Trouble::Malformed);
                walker.member(Some(&header.name), &unpacked.bytes, depth);
            }
            Some(_) => {}
        }
    }
    count
}

/// What came out of a member's data.
struct Unpacked {
    bytes: Vec<u8>,
    consumed: usize,
    trouble: Option<Trouble>,
}

/// Unpacks a member that a directory lists. Gives where its data ends.
fn member(walker: &mut Walker<'_>, content: &[u8], central: &Header, depth: usize) -> usize {
    let Some((local, data_at)) = local(content, central.at) else {
        walker.name_only(&central.name, depth);
        // With the central directory encrypted its offsets are masked as well.
        walker.note(if central.encrypted() { Trouble::Encrypted } else { Trouble::Malformed });
        return central.at;
    };
    // With a data descriptor (flag 8) the local header need not know sizes and checksum.
    let told = local.flags & 8 == 0 || central.method == 0 && local.packed != 0;
    let other_data = told && (local.packed, local.size, local.crc) != (central.packed, central.size, central.crc);
    let disagree = other_data || local.name != central.name || local.method != central.method || local.encrypted() != central.encrypted();
    if local.name != central.name {
        walker.name_only(&local.name, depth);
    }
    let input = content.get(data_at..).unwrap_or_default();
    let packed = usize::try_from(central.packed).unwrap_or(usize::MAX).min(input.len());
    if central.encrypted() && local.encrypted() {
        walker.note(Trouble::Encrypted);
        walker.name_only(&central.name, depth);
        return data_at + packed;
    }
    let unpacked = decode(walker, central, input);
    let mut consumed = unpacked.consumed;
    let failed = unpacked.trouble;
    walker.member(Some(&central.name), &unpacked.bytes, depth);
    drop(unpacked);
    // What the directory describes one way may be what the local header says, for readers that go by that.
    let other_way = local.method != central.method || local.method == 0 && other_data || failed.is_some() && disagree;
    if other_way {
        let other = decode(walker, &local, input);
        walker.member(Some(&local.name), &other.bytes, depth);
        consumed = consumed.max(other.consumed);
    }
    if let Some(trouble) = failed {
        walker.note(if central.encrypted() || local.encrypted() { Trouble::Encrypted } else { trouble });
    }
    if disagree {
        walker.sign(evidence::ARCHIVE_HEADERS_DISAGREE);
    }
    data_at + consumed
}

/// Decodes the data of a member, and checks length and checksum.
fn decode(walker: &mut Walker<'_>, header: &Header, input: &[u8]) -> Unpacked {
    let packed = usize::try_from(header.packed).unwrap_or(usize::MAX).min(input.len());
    let (bytes, consumed, trouble) = match header.method {
        0 => {
            let whole = header.packed <= input.len() as u64;
            // Stored with a length that only the descriptor after it knows: to the next record.
            let unknown = header.packed == 0 && header.flags & 8 != 0 && header.crc == 0;
            let packed =
                if unknown { memmem::find(input, b"PK\x07\x08").or_else(|| memmem::find(input, LOCAL)).unwrap_or(input.len()) } else { packed };
            let data = input.get(..packed).unwrap_or_default();
            if !walker.charge(data.len()) {
                return Unpacked { bytes: vec![], consumed: packed, trouble: Some(Trouble::LimitsExceeded) };
            }
            (data.to_vec(), packed, (!whole).then_some(Trouble::Malformed))
        }
        8 => {
            let mut decoder = flate2::bufread::DeflateDecoder::new(input);
            // The ratio is taken of what went in, not of what the header says; it is checked again at the end.
            let (bytes, trouble) = walker.unpack(&mut decoder, if packed == 0 { input.len() } else { packed });
            let consumed = decoder.total_in() as usize;
            (bytes, consumed, trouble)
        }
        12 => {
            let mut decoder = ::bzip2::bufread::BzDecoder::new(input.get(..packed).filter(|data| !data.is_empty()).unwrap_or(input));
            let (bytes, trouble) = walker.unpack(&mut decoder, packed.max(1));
            (bytes, packed, trouble)
        }
        // Deflate64, implode, LZMA, PPMd and so on.
        _ => (vec![], packed, Some(Trouble::LimitsExceeded)),
    };
    let afforded = walker.spend(consumed);
    let trouble = if afforded { trouble } else { Some(Trouble::LimitsExceeded) };
    let ratio_max = consumed.saturating_mul(walker.limits.ratio).max(walker.limits.ratio_floor_bytes);
    let trouble = trouble.or_else(|| (bytes.len() > ratio_max).then_some(Trouble::LimitsExceeded)).or_else(|| {
        // With a data descriptor a local header has zeros.
        let told = header.flags & 8 == 0 || header.crc != 0 || header.size != 0;
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        (told && (crc.sum() != header.crc || bytes.len() as u64 != header.size)).then_some(Trouble::Malformed)
    });
    Unpacked { bytes, consumed, trouble }
}
