//! What a stream of bytes is, by its content. Names are judged in `names`.

/// Type of content, by magic bytes only: a name is never believed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// ZIP.
    Zip,
    /// A document or package that is a ZIP inside (OOXML, ODF, EPUB, JAR): opened like one, but people do not call it one.
    ZipBased,
    /// RFC 1952.
    Gzip,
    /// bzip2.
    Bzip2,
    /// 7z.
    SevenZip,
    /// POSIX, GNU or old tar.
    Tar,
    /// cpio, all four forms.
    Cpio,
    /// RAR 1.5 to 4.
    Rar4,
    /// RAR 5.
    Rar5,
    /// Microsoft cabinet.
    Cab,
    /// ISO 9660 or UDF image.
    Iso,
    /// VHD or VHDX image.
    DiskImage,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// lzip.
    Lzip,
    /// ARJ.
    Arj,
    /// ACE.
    Ace,
    /// LHA and LZH.
    Lha,
    /// Compiled HTML help.
    Chm,
    /// Transport-neutral encapsulation (winmail.dat).
    Tnef,
    /// OLE compound file: Office before 2007, MSI, MSG, encrypted OOXML, vbaProject.bin.
    Ole,
    /// Rich text.
    Rtf,
    /// Portable document.
    Pdf,
    /// OneNote section.
    OneNote,
    /// Windows or DOS executable.
    Pe,
    /// Unix executable.
    Elf,
    /// macOS executable.
    MachO,
    /// Windows shortcut.
    Lnk,
    /// A script with an interpreter line.
    Script,
    /// HTML.
    Html,
    /// A mail message or an mbox.
    Mail,
    /// A picture.
    Image,
    /// Anything else.
    Other,
}

impl Kind {
    /// The type of these bytes.
    pub fn of(content: &[u8]) -> Self {
        by_prefix(content).or_else(|| by_offset(content)).or_else(|| by_text(content)).unwrap_or(Self::Other)
    }

    /// A file extension that stands for the type, lower case without dot, for comparison with a list of blocked types; `None` where names say more.
    pub const fn extension(self) -> Option<&'static str> {
        Some(match self {
            Self::Zip => "zip",
            Self::Gzip => "gz",
            Self::Bzip2 => "bz2",
            Self::SevenZip => "7z",
            Self::Tar => "tar",
            Self::Cpio => "cpio",
            Self::Rar4 | Self::Rar5 => "rar",
            Self::Cab => "cab",
            Self::Iso => "iso",
            Self::DiskImage => "vhd",
            Self::Xz => "xz",
            Self::Zstd => "zst",
            Self::Lzip => "lz",
            Self::Arj => "arj",
            Self::Ace => "ace",
            Self::Lha => "lzh",
            Self::Chm => "chm",
            Self::Rtf => "rtf",
            Self::Pdf => "pdf",
            Self::OneNote => "one",
            Self::Pe => "exe",
            Self::Elf => "elf",
            Self::Lnk => "lnk",
            Self::Script => "sh",
            Self::ZipBased | Self::Tnef | Self::Ole | Self::MachO | Self::Html | Self::Mail | Self::Image | Self::Other => return None,
        })
    }

    /// Runs when opened, whatever it is called.
    pub const fn is_executable(self) -> bool {
        matches!(self, Self::Pe | Self::Elf | Self::MachO | Self::Lnk | Self::Chm)
    }

    /// An archive type that this build recognises and does not open.
    pub const fn is_closed_archive(self) -> bool {
        matches!(
            self,
            Self::Rar4
                | Self::Rar5
                | Self::Cab
                | Self::Iso
                | Self::DiskImage
                | Self::Xz
                | Self::Zstd
                | Self::Lzip
                | Self::Arj
                | Self::Ace
                | Self::Lha
        )
    }
}

fn by_prefix(content: &[u8]) -> Option<Kind> {
    const TABLE: &[(&[u8], Kind)] = &[
        (b"PK\x03\x04", Kind::Zip),
        (b"PK\x05\x06", Kind::Zip),
        (b"PK00PK\x03\x04", Kind::Zip),
        (b"PK\x07\x08PK\x03\x04", Kind::Zip),
        (b"\x1f\x8b\x08", Kind::Gzip),
        (b"7z\xbc\xaf\x27\x1c", Kind::SevenZip),
        (b"Rar!\x1a\x07\x00", Kind::Rar4),
        (b"Rar!\x1a\x07\x01\x00", Kind::Rar5),
        (b"MSCF\0\0\0\0", Kind::Cab),
        (b"\xfd7zXZ\0", Kind::Xz),
        (b"\x28\xb5\x2f\xfd", Kind::Zstd),
        (b"LZIP\x01", Kind::Lzip),
        (b"070701", Kind::Cpio),
        (b"070702", Kind::Cpio),
        (b"070707", Kind::Cpio),
        (b"\xc7\x71", Kind::Cpio),
        (b"\x71\xc7", Kind::Cpio),
        (b"ITSF\x03\0\0\0", Kind::Chm),
        (b"\x78\x9f\x3e\x22", Kind::Tnef),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind::Ole),
        (b"{\\rt", Kind::Rtf),
        (b"%PDF-", Kind::Pdf),
        (b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d", Kind::OneNote),
        (b"\x7fELF", Kind::Elf),
        (b"\xfe\xed\xfa\xce", Kind::MachO),
        (b"\xfe\xed\xfa\xcf", Kind::MachO),
        (b"\xce\xfa\xed\xfe", Kind::MachO),
        (b"\xcf\xfa\xed\xfe", Kind::MachO),
        (b"\x4c\0\0\0\x01\x14\x02\0", Kind::Lnk),
        (b"vhdxfile", Kind::DiskImage),
        (b"conectix", Kind::DiskImage),
        (b"\x89PNG\r\n\x1a\n", Kind::Image),
        (b"\xff\xd8\xff", Kind::Image),
        (b"GIF8", Kind::Image),
        (b"#!/", Kind::Script),
        (b"#! /", Kind::Script),
    ];
    let found = TABLE.iter().find(|(magic, _)| content.starts_with(magic)).map(|(_, kind)| *kind);
    match found {
        Some(Kind::Zip) if is_zip_based(content) => Some(Kind::ZipBased),
        Some(kind) => Some(kind),
        None if content.starts_with(b"BZh") && is_bzip2(content) => Some(Kind::Bzip2),
        None if content.starts_with(b"MZ") && is_pe(content) => Some(Kind::Pe),
        None if content.starts_with(&[0x60, 0xea]) && is_arj(content) => Some(Kind::Arj),
        None => None,
    }
}

/// The first member is one that only such packages begin with.
fn is_zip_based(content: &[u8]) -> bool {
    const FIRST: &[&[u8]] = &[b"[Content_Types].xml", b"_rels/", b"docProps/", b"word/", b"xl/", b"ppt/", b"mimetype", b"META-INF/"];
    content.get(30..).is_some_and(|name| FIRST.iter().any(|first| name.starts_with(first)))
}

/// A level digit, then the magic of a block or of the end of the stream.
fn is_bzip2(content: &[u8]) -> bool {
    content.get(3).is_some_and(|level| (b'1'..=b'9').contains(level))
        && content.get(4..10).is_some_and(|magic| magic == [0x31, 0x41, 0x59, 0x26, 0x53, 0x59] || magic == [0x17, 0x72, 0x45, 0x38, 0x50, 0x90])
}

/// `MZ` begins words too: something of the DOS header has to fit, or the rest has to be binary.
fn is_pe(content: &[u8]) -> bool {
    let header = content.get(0x3c..0x40).and_then(|b| b.try_into().ok()).map(|b| u32::from_le_bytes(b) as usize);
    let new_header = header.and_then(|at| content.get(at..at.checked_add(2)?));
    matches!(new_header, Some(b"PE" | b"NE" | b"LE" | b"LX")) || content.iter().take(64).filter(|b| **b == 0).count() >= 4
}

/// The size of the first header, and the type of its archive member is "comment" (2).
fn is_arj(content: &[u8]) -> bool {
    let size = content.get(2..4).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    (30..=2600).contains(&size) && content.get(10) == Some(&2)
}

fn by_offset(content: &[u8]) -> Option<Kind> {
    let at = |offset: usize, magic: &[u8]| content.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(7, b"**ACE**") {
        return Some(Kind::Ace);
    }
    if at(2, b"-lh") && content.get(6) == Some(&b'-') || at(2, b"-lz") && content.get(6) == Some(&b'-') {
        return Some(Kind::Lha);
    }
    let image = [0x8001, 0x8801, 0x9001].iter().any(|offset| at(*offset, b"CD001") || at(*offset, b"BEA01") || at(*offset, b"NSR0"));
    if image {
        return Some(Kind::Iso);
    }
    if super::tar::is_tar(content) {
        return Some(Kind::Tar);
    }
    // Readers find a PDF's header anywhere in the first kilobyte.
    let head = content.get(..content.len().min(1024)).unwrap_or_default();
    memchr::memmem::find(head, b"%PDF-").map(|_| Kind::Pdf)
}

fn by_text(content: &[u8]) -> Option<Kind> {
    let head = content.get(..content.len().min(512)).unwrap_or_default();
    let text = head.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<script") || begins(b"<head") || begins(b"<body") {
        return Some(Kind::Html);
    }
    const FIELDS: &[&[u8]] = &[
        b"received:",
        b"return-path:",
        b"delivered-to:",
        b"mime-version:",
        b"message-id:",
        b"from:",
        b"date:",
        b"subject:",
        b"to:",
        b"x-mozilla-status:",
    ];
    if text.starts_with(b"From ") && head.contains(&b'@') || FIELDS.iter().any(|field| begins(field)) {
        return Some(Kind::Mail);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_by_content() {
        let mut iso = vec![0; 0x8001];
        iso.extend_from_slice(b"CD001");
        let mut pe = vec![0; 0x80];
        pe.splice(..2, *b"MZ");
        let table: &[(&[u8], Kind)] = &[
            (b"PK\x03\x04rest", Kind::Zip),
            (b"PK are initials", Kind::Other),
            (b"BZh is how it begins", Kind::Other),
            (b"BZh91AY&SYxx", Kind::Bzip2),
            (b"MZ are initials, and this is text that goes on for a while, longer than a header", Kind::Other),
            (&pe, Kind::Pe),
            (&iso, Kind::Iso),
            (b"\r\n<!DOCTYPE HTML>", Kind::Html),
            (b"Received: from a by b", Kind::Mail),
            (b"From here on", Kind::Other),
            (b"\0\0-lh5-\0", Kind::Lha),
            (b"junk %PDF-1.4", Kind::Pdf),
            (b"", Kind::Other),
        ];
        for (content, kind) in table {
            assert_eq!(Kind::of(content), *kind, "{}", String::from_utf8_lossy(content));
        }
    }
}
