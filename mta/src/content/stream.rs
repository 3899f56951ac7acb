//! Compressed single streams: gzip and bzip2.

use super::walker::{Trouble, Walker};

/// Members of one gzip or bzip2 file, one after another.
const CONCATENATED_MAX: usize = 1000;

/// RFC 1952. The members of one file are one stream, as gunzip makes it.
pub(super) fn gzip(walker: &mut Walker<'_>, name: Option<&str>, content: &[u8], depth: usize) {
    if !walker.admit() {
        return;
    }
    let mut rest = content;
    let mut stored_name = None;
    let mut out = vec![];
    let mut trouble = None;
    for number in 0.. {
        let is_member = rest.starts_with(b"\x1f\x8b\x08");
        if !is_member || trouble.is_some() {
            // Zero padding and foreign bytes after the last member are ignored by every gunzip.
            break;
        }
        if number == CONCATENATED_MAX {
            trouble = Some(Trouble::LimitsExceeded);
            break;
        }
        let mut decoder = flate2::bufread::GzDecoder::new(rest);
        let (bytes, failed) = walker.unpack(&mut decoder, rest.len());
        if stored_name.is_none() {
            stored_name = decoder.header().and_then(|h| h.filename()).map(|n| String::from_utf8_lossy(n).into_owned());
        }
        append(&mut out, bytes);
        trouble = failed;
        rest = decoder.into_inner();
    }
    finish(walker, stored_name.or_else(|| inner_name(name, &[".gz", ".tgz", ".z"])), &out, trouble, depth);
}

/// bzip2, concatenated streams included.
pub(super) fn bzip2(walker: &mut Walker<'_>, name: Option<&str>, content: &[u8], depth: usize) {
    if !walker.admit() {
        return;
    }
    let mut rest = content;
    let mut out = vec![];
    let mut trouble = None;
    for number in 0.. {
        if !rest.starts_with(b"BZh") || trouble.is_some() {
            break;
        }
        if number == CONCATENATED_MAX {
            trouble = Some(Trouble::LimitsExceeded);
            break;
        }
        let mut decoder = ::bzip2::bufread::BzDecoder::new(rest);
        let (bytes, failed) = walker.unpack(&mut decoder, rest.len());
        append(&mut out, bytes);
        trouble = failed;
        rest = decoder.into_inner();
    }
    finish(walker, inner_name(name, &[".bz2", ".tbz", ".tbz2", ".bz"]), &out, trouble, depth);
}

fn append(out: &mut Vec<u8>, bytes: Vec<u8>) {
    if out.is_empty() {
        *out = bytes;
    } else {
        out.extend_from_slice(&bytes);
    }
}

fn finish(walker: &mut Walker<'_>, name: Option<String>, out: &[u8], trouble: Option<Trouble>, depth: usize) {
    if let Some(trouble) = trouble {
        walker.note(trouble);
    }
    walker.member(name.as_deref(), out, depth);
}

/// The name of what is inside `x.y.gz`: `x.y`.
fn inner_name(name: Option<&str>, suffixes: &[&str]) -> Option<String> {
    let name = name?;
    let lower = name.to_ascii_lowercase();
    let suffix = suffixes.iter().find(|suffix| lower.ends_with(*suffix))?;
    let stem = name.get(..name.len() - suffix.len())?;
    let tar = matches!(*suffix, ".tgz" | ".tbz" | ".tbz2");
    Some(if tar { format!("{stem}.tar") } else { stem.to_owned() })
}
