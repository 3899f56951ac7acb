//! VBA source out of a module stream (MS-OVBA 2.4.1), and what in it matters.

use memchr::memmem;

/// Source kept of one module.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// The source of a module stream: the compressed container is found by the attribute line that every module begins with.
pub(super) fn source(stream: &[u8]) -> Option<Vec<u8>> {
    // Signature byte, chunk header (2), flags (1, all literals), then `Attribut`.
    let start = memmem::find(stream, b"\0Attribut")?.checked_sub(3)?;
    decompress(stream.get(start..)?)
}

/// Decompresses a container; what can be read of a broken one.
pub(super) fn decompress(container: &[u8]) -> Option<Vec<u8>> {
    let (signature, mut rest) = container.split_first()?;
    if *signature != 1 {
        return None;
    }
    let mut out = vec![];
    while out.len() < SOURCE_BYTES_MAX
        && let Some(head) = rest.get(..2)
    {
        let head = u16::from_le_bytes([head[0], head[1]]);
        if head >> 12 & 7 != 3 {
            break;
        }
        let length = usize::from(head & 0x0fff) + 1;
        let data = rest.get(2..2 + length).or_else(|| rest.get(2..)).unwrap_or_default();
        if head & 0x8000 != 0 {
            compressed_chunk(data, &mut out);
        } else {
            out.extend_from_slice(data);
        }
        rest = rest.get(2 + length..).unwrap_or_default();
    }
    Some(out)
}

fn compressed_chunk(mut data: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    while let Some((flags, after)) = data.split_first() {
        data = after;
        for bit in 0..8 {
            if flags >> bit & 1 == 0 {
                let Some((literal, after)) = data.split_first() else { return };
                out.push(*literal);
                data = after;
                continue;
            }
            let Some(token) = data.get(..2) else { return };
            let token = u16::from_le_bytes([token[0], token[1]]);
            data = data.get(2..).unwrap_or_default();
            let position = out.len() - start;
            // Offset bits: ceil(log2(position)), at least 4, at most 12.
            let offset_bits = position.max(1).next_power_of_two().trailing_zeros().clamp(4, 12);
            let length_mask = 0xffff_u16 >> offset_bits;
            let length = usize::from(token & length_mask) + 3;
            let offset = usize::from(token >> (16 - offset_bits)) + 1;
            if offset > position {
                return;
            }
            for _ in 0..length {
                let byte = out.get(out.len() - offset).copied().unwrap_or(0);
                out.push(byte);
            }
            if out.len() - start > 4096 {
                return;
            }
        }
    }
}

/// Procedures that Office runs by itself. Lower case.
const AUTO_RUN: &[&str] = &[
    "autoexec",
    "autoopen",
    "autoclose",
    "autonew",
    "autoexit",
    "auto_open",
    "auto_close",
    "auto_activate",
    "document_open",
    "document_close",
    "document_new",
    "document_beforeclose",
    "documentopen",
    "workbook_open",
    "workbook_close",
    "workbook_activate",
    "workbook_beforeclose",
    "presentationopen",
    "slideshownextslide",
    "_layout",
    "_onconnecting",
    "_painted",
];

/// What a macro has no need for in a form or a calculation. Lower case.
const SUSPICIOUS: &[&str] = &[
    "wscript.shell",
    "shell(",
    "shellexecute",
    "powershell",
    "cmd.exe",
    "cmd /c",
    "mshta",
    "urldownloadtofile",
    "msxml2.xmlhttp",
    "winhttp.winhttprequest",
    "adodb.stream",
    "virtualalloc",
    "createthread",
    "rtlmovememory",
    "winmgmts:",
    "certutil",
    "regsvr32",
    "rundll32",
    "bitsadmin",
];

/// What a macro does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MacroSigns {
    pub(super) auto_run: bool,
    pub(super) suspicious: bool,
}

/// Looks for both kinds of words.
pub(super) fn signs(source: &[u8]) -> MacroSigns {
    let text = source.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| memmem::find(&text, word.as_bytes()).is_some());
    MacroSigns { auto_run: has(AUTO_RUN), suspicious: has(SUSPICIOUS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of MS-OVBA 3.2.2 has copy tokens of every kind; this one is made by hand: `aaaaaaaaaa` as one literal and one copy.
    #[test]
    fn containers_are_decompressed() {
        // Signature; header: 4 bytes of data (length 3 + 1 - 1), signature bits 3, compressed; flags 0b10; 'a'; copy of 9 at offset 1.
        let data = [0b10, b'a', 6, 0];
        let head = 0x8000_u16 | 3 << 12 | (data.len() as u16 - 1);
        let mut container = vec![1];
        container.extend_from_slice(&head.to_le_bytes());
        container.extend_from_slice(&data);
        assert_eq!(decompress(&container).unwrap(), b"aaaaaaaaaa");
        assert_eq!(decompress(&[]), None);
        assert_eq!(decompress(&[2, 0, 0]), None);
        assert_eq!(decompress(&[1, 0xff]), Some(vec![]));
    }

    #[test]
    fn words_are_found_in_any_case() {
        assert_eq!(signs(b"Sub AutoOpen()\r\nCreateObject(\"WScript.Shell\")"), MacroSigns { auto_run: true, suspicious: true });
        assert_eq!(signs(b"Function Tax(x)\r\nTax = x * 0.1\r\nEnd Function"), MacroSigns::default());
    }
}
