//! OLE compound files: Office encryption, macros, embedded files.

use std::io::{Cursor, Read};

use super::evidence;
use super::walker::{Trouble, Walker};
use super::{Kind, vba};

/// Streams and storages looked at in one file.
const ENTRIES_MAX: usize = 4_000;

pub(super) fn open(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    // Office reads some files that this reader refuses: not seen is not clean.
    let Ok(mut file) = cfb::CompoundFile::open(Cursor::new(content)) else {
        walker.note(Trouble::Malformed);
        return;
    };
    let entries: Vec<(std::path::PathBuf, String, u64)> = file
        .walk()
        .filter(|entry| entry.is_stream())
        .take(ENTRIES_MAX + 1)
        .map(|entry| (entry.path().to_owned(), entry.name().to_owned(), entry.len()))
        .collect();
    if entries.len() > ENTRIES_MAX {
        walker.note(Trouble::LimitsExceeded);
    }
    let named = |name: &str| entries.iter().any(|(_, n, _)| n == name);
    if named("EncryptionInfo") && named("EncryptedPackage") {
        walker.note(Trouble::Encrypted);
        return;
    }
    for (path, name, length) in entries.iter().take(ENTRIES_MAX) {
        if !walker.admit() {
            return;
        }
        let Ok(stream) = file.open_stream(path) else {
            walker.note(Trouble::Malformed);
            continue;
        };
        let packed = usize::try_from(*length).unwrap_or(usize::MAX).min(content.len());
        let (bytes, trouble) = walker.unpack(&mut stream.take(*length), packed);
        if let Some(trouble) = trouble {
            walker.note(trouble);
        }
        let in_vba = path.parent().and_then(std::path::Path::file_name).is_some_and(|parent| parent.eq_ignore_ascii_case("VBA"));
        one_stream(walker, name, in_vba, &bytes, depth);
    }
}

fn one_stream(walker: &mut Walker<'_>, name: &str, in_vba: bool, bytes: &[u8], depth: usize) {
    if in_vba && !name.starts_with("__SRP_") {
        walker.sign(evidence::MACRO_DOCUMENT);
        if let Some(source) = vba::source(bytes) {
            let signs = vba::signs(&source);
            if signs.auto_run {
                walker.sign(evidence::MACRO_AUTO_RUN);
            }
            if signs.suspicious {
                walker.sign(evidence::MACRO_SUSPICIOUS);
            }
            walker.document_stream(&source, depth);
        }
    }
    let encrypted = match name {
        // FibBase: fEncrypted.
        "WordDocument" => bytes.get(11).is_some_and(|flags| flags & 0x01 != 0) && bytes.starts_with(&[0xec, 0xa5]),
        "Workbook" | "Book" => has_file_pass(bytes),
        _ => false,
    };
    if encrypted {
        walker.note(Trouble::Encrypted);
    }
    if name == "\u{1}Ole10Native"
        && let Some((file_name, data)) = bytes.get(4..).and_then(package)
    {
        embedded_file(walker, &file_name, data, depth);
        return;
    }
    if Kind::of(bytes).is_executable() {
        walker.sign(evidence::EMBEDDED_EXECUTABLE);
    }
    walker.document_stream(bytes, depth);
}

/// BIFF: a FILEPASS record (0x002f) stands right after the first BOF, at most a few records later.
fn has_file_pass(mut bytes: &[u8]) -> bool {
    for _ in 0..8 {
        let Some(&[kind_low, kind_high, length_low, length_high]) = bytes.get(..4) else { return false };
        if u16::from_le_bytes([kind_low, kind_high]) == 0x002f {
            return true;
        }
        let length = usize::from(u16::from_le_bytes([length_low, length_high]));
        bytes = bytes.get(4 + length..).unwrap_or_default();
    }
    false
}

/// A file that a document carries, already counted with the stream that it is in.
pub(super) fn embedded_file(walker: &mut Walker<'_>, name: &str, data: &[u8], depth: usize) {
    let runs = Kind::of(data).is_executable() || super::names::extension(name).is_some_and(|e| super::names::is_runnable(&e));
    if runs {
        walker.sign(evidence::EMBEDDED_EXECUTABLE);
    }
    walker.member(Some(name), data, depth);
}

/// The file in a package object (type 2): its label and its bytes.
pub(super) fn package(bytes: &[u8]) -> Option<(String, &[u8])> {
    let c_string = |from: &[u8]| memchr::memchr(0, from).filter(|end| *end < 1024);
    let rest = bytes.strip_prefix(&[2, 0])?;
    let label_end = c_string(rest)?;
    let label = String::from_utf8_lossy(rest.get(..label_end)?).into_owned();
    let rest = rest.get(label_end + 1..)?;
    let rest = rest.get(c_string(rest)? + 1..)?;
    let path_length = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?) as usize;
    let rest = rest.get(8usize.checked_add(path_length)?..)?;
    let size = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let data = rest.get(4..)?;
    Some((label, data.get(..size).unwrap_or(data)))
}
