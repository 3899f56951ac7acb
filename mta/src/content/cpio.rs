//! cpio: binary in both byte orders, old octal, and the two "new" hexadecimal forms.

use super::walker::{Trouble, Walker};

/// One header, read.
struct Header {
    /// Bytes of the header itself.
    length: usize,
    name_size: usize,
    file_size: usize,
    /// What name and data are padded to.
    align: usize,
}

fn number(field: Option<&[u8]>, radix: u32) -> Option<usize> {
    usize::from_str_radix(std::str::from_utf8(field?).ok()?, radix).ok()
}

fn header(bytes: &[u8]) -> Option<Header> {
    match bytes.get(..6)? {
        b"070701" | b"070702" => {
            Some(Header { length: 110, name_size: number(bytes.get(94..102), 16)?, file_size: number(bytes.get(54..62), 16)?, align: 4 })
        }
        b"070707" => Some(Header { length: 76, name_size: number(bytes.get(59..65), 8)?, file_size: number(bytes.get(65..76), 8)?, align: 1 }),
        magic => {
            let little = magic.starts_with(&[0xc7, 0x71]);
            if !little && !magic.starts_with(&[0x71, 0xc7]) {
                return None;
            }
            let word = |at: usize| {
                let pair: [u8; 2] = bytes.get(at..at + 2)?.try_into().ok()?;
                Some(usize::from(if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }))
            };
            Some(Header { length: 26, name_size: word(20)?, file_size: word(22)? << 16 | word(24)?, align: 2 })
        }
    }
}

pub(super) fn open(walker: &mut Walker<'_>, content: &[u8], depth: usize) {
    let mut at: usize = 0;
    loop {
        let rest = content.get(at..).unwrap_or_default();
        let Some(head) = header(rest) else {
            // The two-byte magic of the binary form is met by chance: only what began as one can be broken.
            if at > 0 {
                walker.note(Trouble::Malformed);
            }
            return;
        };
        let padded = |length: usize| length.checked_next_multiple_of(head.align);
        let name = rest.get(head.length..).and_then(|r| r.get(..head.name_size));
        let data_at = head.length.checked_add(head.name_size).and_then(padded);
        let name = name.filter(|name| head.align != 2 || name.ends_with(b"\0") && name.len() < 1024);
        let (Some(name), Some(data_at)) = (name, data_at) else {
            if at > 0 || head.align != 2 {
                walker.note(Trouble::Malformed);
            }
            return;
        };
        let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned();
        if name == "TRAILER!!!" {
            return;
        }
        let data = rest.get(data_at..).unwrap_or_default();
        if head.file_size > data.len() {
            if at > 0 || head.align != 2 {
                walker.note(Trouble::Malformed);
            } else {
                return;
            }
        }
        let data = data.get(..head.file_size).unwrap_or(data);
        if !walker.admit() || !walker.charge(data.len()) {
            return;
        }
        walker.member(Some(&name), data, depth);
        let Some(next) = data_at.checked_add(head.file_size).and_then(padded).and_then(|length| at.checked_add(length)) else { return };
        at = next;
    }
}
