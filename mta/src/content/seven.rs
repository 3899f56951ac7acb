//! 7z, through sevenz-rust2 with bounded memory, block by block: an encrypted or broken block does not hide the others.

use std::io::Cursor;

use sevenz_rust2::{Archive, BlockDecoder, Error, Password};

use super::walker::{Trouble, Walker};

/// AES-256 with SHA-256, the only cipher that 7z has.
const AES: [u8; 4] = [0x06, 0xf1, 0x07, 0x01];

pub(super) fn open(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    let memory_kb = walker.limits.dictionary_bytes / 1024;
    let mut source = Cursor::new(content);
    let password = Password::empty();
    let archive = match Archive::read_with_memory_limit(&mut source, &password, memory_kb) {
        Ok(archive) => archive,
        Err(error) => return walker.note(trouble(&error)),
    };
    for file in archive.files.iter().filter(|file| !file.has_stream()) {
        if !walker.admit() {
            return;
        }
        walker.name_only(file.name(), depth);
    }
    for (index, block) in archive.blocks.iter().enumerate() {
        let decoder = BlockDecoder::new_with_memory_limit(1, memory_kb, index, &archive, &password, &mut source);
        if block.coders.iter().any(|coder| coder.encoder_method_id() == AES) {
            walker.note(Trouble::Encrypted);
            for entry in decoder.entries() {
                if !walker.admit() {
                    return;
                }
                walker.name_only(entry.name(), depth);
            }
            continue;
        }
        let result = decoder.for_each_entries(&mut |entry, decoder| {
            if !entry.has_stream() {
                return Ok(true);
            }
            if !walker.admit() {
                return Ok(false);
            }
            let (bytes, failed) = walker.unpack(decoder, content.len());
            walker.member(Some(entry.name()), &bytes, depth);
            if let Some(trouble) = failed {
                walker.note(trouble);
            }
            Ok(failed.is_none())
        });
        if let Err(error) = result {
            walker.note(trouble(&error));
        }
        if !walker.proceed() {
            return;
        }
    }
}

fn trouble(error: &Error) -> Trouble {
    match error {
        Error::PasswordRequired | Error::MaybeBadPassword(_) => Trouble::Encrypted,
        Error::MaxMemLimited { .. }
        | Error::UnsupportedCompressionMethod(_)
        | Error::Unsupported(_)
        | Error::ExternalUnsupported
        | Error::UnsupportedVersion { .. } => Trouble::LimitsExceeded,
        _ => Trouble::Malformed,
    }
}
