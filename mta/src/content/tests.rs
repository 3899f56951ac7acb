//! Samples are made here, or by `7z`, `zip` and `tar` under `tests/data/mail/archives` (password of the encrypted ones: `infected`).

use std::io::{Cursor, Read, Write};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::message::Part;

const NEEDLE: &[u8] = b"needle-in-the-haystack";

pub(crate) fn part(name: Option<&str>, content: &[u8]) -> Part {
    Part {
        content_type: "application/octet-stream".into(),
        charset: None,
        file_name: name.map(str::to_owned),
        other_file_names: vec![],
        depth: 1,
        content: Bytes::copy_from_slice(content),
        encoding_broken: false,
        container: false,
    }
}

pub(crate) fn message(parts: Vec<Part>) -> Message {
    Message {
        raw: Bytes::new(),
        body_offset: 0,
        headers: vec![],
        parts,
        from: vec![],
        from_fields: 0,
        subject: None,
        message_id: None,
        received_fields: 0,
        defects: vec![],
    }
}

/// Collects what it is shown.
#[derive(Default)]
struct Seen {
    items: Vec<(Option<String>, usize, Kind, usize)>,
    needles: usize,
    steps_left: Option<usize>,
}

impl Visitor for Seen {
    fn item(&mut self, item: &Item<'_>) -> ControlFlow<()> {
        self.items.push((item.name.map(str::to_owned), item.depth, item.kind, item.content.len()));
        self.needles += usize::from(memchr::memmem::find(item.content, NEEDLE).is_some() && matches!(item.kind, Kind::Other | Kind::Pe | Kind::Html));
        ControlFlow::Continue(())
    }

    fn proceed(&mut self) -> bool {
        match &mut self.steps_left {
            Some(0) => false,
            Some(steps) => {
                *steps -= 1;
                true
            }
            None => true,
        }
    }
}

fn look_with(limits: &Limits, name: &str, content: &[u8]) -> (Seen, Inventory) {
    let mut seen = Seen::default();
    let inventory = walk(&message(vec![part(Some(name), content)]), limits, &mut seen);
    (seen, inventory)
}

fn look(name: &str, content: &[u8]) -> (Seen, Inventory) {
    look_with(&Limits::default(), name, content)
}

fn fixture(name: &str) -> Vec<u8> {
    let path = std::path::Path::new("tests/data/mail/archives").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    zip_with(members, ::zip::CompressionMethod::Deflated)
}

fn zip_with(members: &[(&str, &[u8])], method: ::zip::CompressionMethod) -> Vec<u8> {
    let mut writer = ::zip::ZipWriter::new(Cursor::new(vec![]));
    for (name, content) in members {
        writer.start_file(*name, ::zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn gzip_of(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn bzip2_of(content: &[u8]) -> Vec<u8> {
    let mut encoder = ::bzip2::write::BzEncoder::new(vec![], ::bzip2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(vec![]);
    for (name, content) in members {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn ole_of(streams: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = cfb::CompoundFile::create(Cursor::new(vec![])).unwrap();
    for (path, content) in streams {
        let path = std::path::Path::new(path);
        if let Some(parent) = path.parent()
            && !file.exists(parent)
        {
            file.create_storage_all(parent).unwrap();
        }
        file.create_stream(path).unwrap().write_all(content).unwrap();
    }
    file.flush().unwrap();
    file.into_inner().into_inner()
}

fn names_of(inventory: &Inventory) -> Vec<&str> {
    inventory.evidence.iter().map(|evidence| evidence.name.as_str()).collect()
}

#[test]
fn every_kind_of_archive_is_opened() {
    let text = [b"some text before ".as_slice(), NEEDLE, b" and after"].concat();
    let member: &[(&str, &[u8])] = &[("letter.txt", &text)];
    let table = [
        ("a.zip", zip_of(member)),
        ("stored.zip", zip_with(member, ::zip::CompressionMethod::Stored)),
        ("a.txt.gz", gzip_of(&text)),
        ("a.txt.bz2", bzip2_of(&text)),
        ("a.tar", tar_of(member)),
        ("a.tgz", gzip_of(&tar_of(member))),
        ("zip in zip", zip_of(&[("inner.zip", &zip_of(member))])),
        ("four deep", zip_of(&[("1.tgz", &gzip_of(&tar_of(&[("2.zip", &zip_of(member))])))])),
        ("plain.7z", fixture("plain.7z")),
        ("ustar.tar", fixture("ustar.tar")),
        ("newc.cpio", fixture("newc.cpio")),
        ("letter.tar.bz2", fixture("letter.tar.bz2")),
        ("doc", ole_of(&[("/Data", &text)])),
    ];
    for (name, content) in table {
        let (seen, inventory) = look(name, &content);
        assert_eq!(seen.needles, 1, "{name}: {:?} {inventory:?}", seen.items);
        assert_eq!(inventory.unscannable(), None, "{name}");
        assert!(inventory.evidence.is_empty(), "{name}: {:?}", inventory.evidence);
    }
}

#[test]
fn what_is_not_opened_says_why() {
    let rar5 = |kind: &[u8]| [b"Rar!\x1a\x07\x01\x00".as_slice(), b"\0\0\0\0", kind].concat();
    let rar4 = |flags: u8, file_flags: u8| {
        let main = [0, 0, 0x73, flags, 0, 13, 0, 0, 0, 0, 0, 0, 0];
        let file = [0, 0, 0x74, file_flags, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        [b"Rar!\x1a\x07\x00".as_slice(), &main, &file].concat()
    };
    let mut iso = vec![0; 0x8800];
    iso.splice(0x8001..0x8006, *b"CD001");
    let table: &[(&str, Vec<u8>, Unscannable)] = &[
        ("encrypted.zip", fixture("encrypted.zip"), Unscannable::Encrypted),
        ("encrypted-aes.zip", fixture("encrypted-aes.zip"), Unscannable::Encrypted),
        ("encrypted.7z", fixture("encrypted.7z"), Unscannable::Encrypted),
        ("encrypted-names.7z", fixture("encrypted-names.7z"), Unscannable::Encrypted),
        ("in a zip", zip_of(&[("inner.zip", &fixture("encrypted.zip"))]), Unscannable::Encrypted),
        ("rar5 encrypted headers", rar5(&[1, 4]), Unscannable::Encrypted),
        // Size 6: type 2 (file), flags 1 (extra area), extra size 2, one field, record of size 1 and type 1 (encryption).
        ("rar5 encrypted file", rar5(&[6, 2, 1, 2, 0, 1, 1]), Unscannable::Encrypted),
        ("rar5", rar5(&[2, 2, 0]), Unscannable::LimitsExceeded),
        ("rar4 encrypted headers", rar4(0x80, 0), Unscannable::Encrypted),
        ("rar4 encrypted file", rar4(0, 4), Unscannable::Encrypted),
        ("rar4", rar4(0, 0), Unscannable::LimitsExceeded),
        ("ooxml", ole_of(&[("/EncryptionInfo", b"x"), ("/EncryptedPackage", b"y")]), Unscannable::Encrypted),
        ("old word", ole_of(&[("/WordDocument", b"\xec\xa5\xc1\0\0\0\0\0\0\0\0\x01\0\0\0\0")]), Unscannable::Encrypted),
        ("old excel", ole_of(&[("/Workbook", b"\x09\x08\x02\0\0\x06\x2f\0\x02\0\0\0")]), Unscannable::Encrypted),
        ("a.iso", iso, Unscannable::LimitsExceeded),
        ("a.cab", b"MSCF\0\0\0\0rest".to_vec(), Unscannable::LimitsExceeded),
        ("a.xz", fixture("letter.txt.xz"), Unscannable::LimitsExceeded),
        ("deflate64.zip", fixture("deflate64.zip"), Unscannable::LimitsExceeded),
        ("ppmd.7z", fixture("ppmd.7z"), Unscannable::LimitsExceeded),
        ("lzma.zip", fixture("lzma.zip"), Unscannable::LimitsExceeded),
    ];
    for (name, content, why) in table {
        let (seen, inventory) = look(name, content);
        assert_eq!(inventory.unscannable(), Some(*why), "{name}: {:?} {inventory:?}", seen.items);
    }
    let (_, inventory) = look("encrypted.zip", &fixture("encrypted.zip"));
    assert_eq!(inventory.names, ["encrypted.zip", "letter.txt"], "names of encrypted members are known");
}

#[test]
fn an_encrypted_archive_beside_a_bomb_does_not_carry_it() {
    let bomb = gzip_of(&vec![0; 8 << 20]);
    let parts = vec![part(Some("a.zip"), &fixture("encrypted.zip")), part(Some("b.gz"), &bomb)];
    let inventory = inventory(&message(parts), &Limits::default());
    assert!(inventory.encrypted);
    assert_eq!(inventory.unscannable(), Some(Unscannable::LimitsExceeded));
}

#[test]
fn bombs_are_bounded() {
    let limits = Limits { output_bytes: 4 << 20, ..Limits::default() };
    let zeros = vec![0; 3 << 20];
    let flat = zip_of(&[("0", &zeros), ("1", &zeros), ("2", &zeros)]);
    let mut nested = gzip_of(NEEDLE);
    for _ in 0..8 {
        nested = gzip_of(&nested);
    }
    let many: Vec<(String, &[u8])> = (0..300).map(|i| (format!("{i}.txt"), b"x".as_slice())).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    let table = [
        ("ratio.gz", gzip_of(&zeros), limits),
        ("ratio.bz2", bzip2_of(&zeros), limits),
        ("ratio.zip", zip_of(&[("0", &zeros)]), limits),
        ("total.zip", flat, Limits { ratio: usize::MAX, ..limits }),
        ("nested", nested, limits),
        ("entries.zip", zip_of(&many), Limits { entries: 200, ..limits }),
        ("entries.tar", tar_of(&many), Limits { entries: 200, ..limits }),
        ("stored.tar", tar_of(&[("a", &zeros), ("b", &zeros)]), limits),
    ];
    for (name, content, limits) in table {
        let (seen, inventory) = look_with(&limits, name, &content);
        assert_eq!(inventory.unscannable(), Some(Unscannable::LimitsExceeded), "{name}");
        assert!(inventory.output_bytes <= limits.output_bytes + zeros.len() + 1, "{name}: {}", inventory.output_bytes);
        assert!(inventory.entries <= limits.entries, "{name}");
        assert!(seen.items.iter().all(|(_, depth, ..)| *depth <= limits.depth), "{name}");
    }
}

#[test]
fn small_files_that_compress_well_are_no_bombs() {
    let (_, inventory) = look("spaces.zip", &zip_of(&[("spaces.txt", &vec![b' '; 900 << 10])]));
    assert_eq!(inventory.unscannable(), None);
}

#[test]
fn the_visitor_can_end_it() {
    let members: Vec<(String, Vec<u8>)> = (0..100).map(|i| (format!("{i}.txt"), vec![b'x'; 10])).collect();
    let members: Vec<(&str, &[u8])> = members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let mut seen = Seen { steps_left: Some(20), ..Seen::default() };
    let inventory = walk(&message(vec![part(Some("a.zip"), &zip_of(&members))]), &Limits::default(), &mut seen);
    assert!(seen.items.len() < 30, "{}", seen.items.len());
    assert_eq!(inventory.unscannable(), Some(Unscannable::LimitsExceeded));

    struct First(usize);
    impl Visitor for First {
        fn item(&mut self, _: &Item<'_>) -> ControlFlow<()> {
            self.0 += 1;
            ControlFlow::Break(())
        }
    }
    let mut first = First(0);
    let inventory = walk(&message(vec![part(None, b"a"), part(None, b"b")]), &Limits::default(), &mut first);
    assert_eq!((first.0, inventory.unscannable()), (1, None));
}

#[test]
fn broken_archives_show_what_can_be_read() {
    let text: Vec<u8> = [NEEDLE, &(0..60_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>()].concat();
    let whole_zip = zip_of(&[("letter.txt", &text), ("second.txt", b"more")]);
    let whole_gzip = gzip_of(&text);
    let whole_tar = tar_of(&[("letter.txt", &text), ("second.txt", b"more")]);
    let whole_7z = fixture("plain.7z");
    let mut bad_sum = zip_with(&[("letter.txt", NEEDLE)], ::zip::CompressionMethod::Stored);
    let at = memchr::memmem::find(&bad_sum, NEEDLE).unwrap() + NEEDLE.len() - 1;
    bad_sum[at + 1 - NEEDLE.len()] ^= 0x20;
    let table: &[(&str, &[u8], usize)] = &[
        ("cut.zip", &whole_zip[..whole_zip.len() / 2], 1),
        ("no directory.zip", &whole_zip[..memchr::memmem::find(&whole_zip, b"PK\x01\x02").unwrap()], 1),
        ("cut.gz", &whole_gzip[..whole_gzip.len() / 2], 1),
        ("cut.tar", &whole_tar[..whole_tar.len() / 2], 1),
        ("cut.7z", &whole_7z[..whole_7z.len() / 2], 0),
        ("bad checksum.zip", &bad_sum, 0),
        ("only a head.zip", b"PK\x03\x04", 0),
        ("only a head.7z", b"7z\xbc\xaf\x27\x1c", 0),
        ("only a head.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0),
    ];
    for (name, content, needles) in table {
        let (seen, inventory) = look(name, content);
        assert_eq!(inventory.unscannable(), Some(Unscannable::Malformed), "{name}: {inventory:?}");
        assert_eq!(seen.needles, *needles, "{name}: {:?}", seen.items);
    }
}

mod zip_tricks {
    use super::*;

    fn replace(bytes: &mut [u8], at: usize, with: &[u8]) {
        bytes[at..at + with.len()].copy_from_slice(with);
    }

    fn stored() -> Vec<u8> {
        zip_with(&[("letter.txt", NEEDLE)], ::zip::CompressionMethod::Stored)
    }

    #[test]
    fn bytes_before_the_archive_change_nothing() {
        for prefix in [b"MZ\0\0\0\0\0\0\0\0".repeat(20), b"\x89PNG\r\n\x1a\n".repeat(9), b"some text\r\n".to_vec()] {
            let content = [prefix.clone(), zip_of(&[("letter.txt", NEEDLE)])].concat();
            let (seen, inventory) = look("picture.png", &content);
            assert_eq!(seen.needles, 1, "{:?}", seen.items);
            assert_eq!(names_of(&inventory).contains(&"ARCHIVE_BEHIND_OTHER_TYPE"), !prefix.starts_with(b"MZ"));
            assert_eq!(inventory.unscannable(), None);
        }
    }

    #[test]
    fn the_local_header_may_tell_another_name() {
        let mut content = stored();
        replace(&mut content, 30, b"letter.exe");
        let (seen, inventory) = look("a.zip", &content);
        assert_eq!(seen.needles, 1);
        assert_eq!(inventory.names, ["a.zip", "letter.exe", "letter.txt"]);
        assert!(names_of(&inventory).contains(&"ARCHIVE_HEADERS_DISAGREE"), "{inventory:?}");
        assert!(names_of(&inventory).contains(&"EXECUTABLE_IN_ARCHIVE"), "{inventory:?}");
    }

    #[test]
    fn the_directory_may_claim_encryption_or_an_empty_member() {
        let at = |content: &[u8]| memchr::memmem::find(content, b"PK\x01\x02").unwrap();
        let mut lied = stored();
        let central = at(&lied);
        replace(&mut lied, central + 8, &[1, 0]);
        let (seen, inventory) = look("a.zip", &lied);
        assert_eq!((seen.needles, inventory.encrypted), (1, false), "{inventory:?}");

        let mut empty = stored();
        let central = at(&empty);
        replace(&mut empty, central + 16, &[0; 12]);
        let (seen, inventory) = look("a.zip", &empty);
        assert_eq!(seen.needles, 1, "{:?}", seen.items);
        assert!(names_of(&inventory).contains(&"ARCHIVE_HEADERS_DISAGREE"));
    }

    #[test]
    fn members_outside_of_the_directory_are_seen() {
        let hidden = stored();
        let hidden = &hidden[..memchr::memmem::find(&hidden, b"PK\x01\x02").unwrap()];
        let shown = zip_of(&[("harmless.txt", b"nothing here")]);
        let (seen, inventory) = look("a.zip", &[hidden, &shown].concat());
        assert_eq!(seen.needles, 1, "{:?}", seen.items);
        assert_eq!(inventory.unscannable(), None);
    }

    #[test]
    fn every_central_directory_is_read() {
        let (seen, _) = look("a.zip", &[stored(), zip_of(&[("harmless.txt", b"nothing here")])].concat());
        assert_eq!(seen.needles, 1, "{:?}", seen.items);
        let (seen, _) = look("a.zip", &[zip_of(&[("harmless.txt", b"nothing here")]), stored()].concat());
        assert_eq!(seen.needles, 1, "{:?}", seen.items);
    }

    #[test]
    fn members_that_share_bytes_are_a_bomb() {
        let mut content = zip_of(&[("a", &[b'x'; 1000]), ("b", &[b'x'; 1000]), ("c", &[b'x'; 1000])]);
        let mut from = 0;
        while let Some(step) = memchr::memmem::find(&content[from..], b"PK\x01\x02") {
            from += step + 4;
            replace(&mut content, from - 4 + 42, &[0; 4]);
        }
        let (_, inventory) = look("a.zip", &content);
        assert_eq!(inventory.unscannable(), Some(Unscannable::LimitsExceeded), "{inventory:?}");
    }

    #[test]
    fn sizes_that_lie_hide_nothing() {
        let mut content = zip_of(&[("letter.txt", &[NEEDLE, &[b'x'; 5000]].concat())]);
        let central = memchr::memmem::find(&content, b"PK\x01\x02").unwrap();
        for at in [18, 22, central + 20, central + 24] {
            replace(&mut content, at, &[1, 0, 0, 0]);
        }
        let (seen, inventory) = look("a.zip", &content);
        assert_eq!(seen.needles, 1, "{:?}", seen.items);
        assert_eq!(inventory.unscannable(), Some(Unscannable::Malformed));
    }

    #[test]
    fn odd_names_are_kept_and_judged() {
        let content =
            zip_of(&[("../../up.txt", b"1"), ("/root.txt", b"2"), ("invoice\u{202e}fdp.exe", b"3"), ("見積.pdf.js", b"4"), ("nul\0.txt", b"5")]);
        let (_, inventory) = look("a.zip", &content);
        assert_eq!(inventory.names.len(), 6, "{:?}", inventory.names);
        for sign in ["ESCAPING_MEMBER_NAME", "DIRECTION_OVERRIDE_NAME", "DOUBLE_EXTENSION", "EXECUTABLE_IN_ARCHIVE"] {
            assert!(names_of(&inventory).contains(&sign), "{sign}: {inventory:?}");
        }
        let block: Vec<String> = vec![".JS".into()];
        assert_eq!(inventory.blocked_by(&block), Some(".JS"));
        assert_eq!(inventory.blocked_by(&["docm".to_owned(), "zip".to_owned()]), Some("zip"));
        assert_eq!(inventory.blocked_by(&["docm".to_owned()]), None);
    }

    #[test]
    fn a_name_in_shift_jis_is_read() {
        let (name, _, _) = encoding_rs::SHIFT_JIS.encode("請求書.exe");
        let mut content = zip_of(&[(&"x".repeat(name.len()), b"1")]);
        let placeholder = "x".repeat(name.len());
        while let Some(at) = memchr::memmem::find(&content, placeholder.as_bytes()) {
            replace(&mut content, at, &name);
        }
        let (_, inventory) = look("a.zip", &content);
        assert_eq!(inventory.names, ["a.zip", "請求書.exe"]);
    }
}

#[test]
fn programs_are_seen_under_any_name() {
    let mut program = vec![0; 0x100];
    program.splice(..2, *b"MZ");
    program[0x3c] = 0x80;
    program.splice(0x80..0x82, *b"PE");
    let (_, inventory) = look("photo.jpg", &program);
    assert_eq!(names_of(&inventory), ["EXECUTABLE_ATTACHED", "DISGUISED_EXECUTABLE"]);
    assert_eq!(inventory.blocked_by(&["exe".to_owned()]), Some("exe"));
    let (_, inventory) = look("a.zip", &zip_of(&[("tool.exe", &program)]));
    assert_eq!(names_of(&inventory), ["EXECUTABLE_IN_ARCHIVE"]);
}

/// A module stream: some bytes before, then a container of literals only.
fn module(source: &str) -> Vec<u8> {
    let mut data = vec![];
    for eight in source.as_bytes().chunks(8) {
        data.push(0);
        data.extend_from_slice(eight);
    }
    let head = 0xb000_u16 | (data.len() as u16 - 1);
    [b"performance cache".as_slice(), &[1], &head.to_le_bytes(), &data].concat()
}

#[test]
fn macros_are_evidence() {
    let quiet =
        ole_of(&[("/VBA/ThisDocument", &module("Attribute VB_Name = \"ThisDocument\"\r\nFunction Tax(x)\r\nEnd Function\r\n")), ("/VBA/dir", b"x")]);
    let loud = ole_of(&[(
        "/Macros/VBA/M",
        &module("Attribute VB_Name = \"M\"\r\nSub AutoOpen()\r\nCreateObject(\"WScript.Shell\").Run \"calc\"\r\nEnd Sub\r\n"),
    )]);
    let (_, inventory) = look("a.doc", &quiet);
    assert_eq!(names_of(&inventory), ["MACRO_DOCUMENT"]);
    let (_, inventory) = look("a.docm", &zip_of(&[("[Content_Types].xml", b"<Types/>"), ("word/vbaProject.bin", &loud)]));
    assert_eq!(names_of(&inventory), ["MACRO_DOCUMENT", "MACRO_AUTO_RUN", "MACRO_SUSPICIOUS"]);
    assert!(inventory.types.contains(&Kind::ZipBased) && inventory.blocked_by(&["zip".to_owned()]).is_none());
}

#[test]
fn a_program_in_a_document_is_found() {
    let mut native = vec![0, 0, 0, 0, 2, 0];
    native.extend_from_slice(b"invoice.js\0C:\\invoice.js\0\0\0\x03\0\x04\0\0\0x.y\0");
    native.extend_from_slice(&(NEEDLE.len() as u32).to_le_bytes());
    native.extend_from_slice(NEEDLE);
    let (seen, inventory) = look("a.doc", &ole_of(&[("/ObjectPool/_1/\u{1}Ole10Native", &native)]));
    assert_eq!(seen.needles, 1, "{:?}", seen.items);
    assert!(names_of(&inventory).contains(&"EMBEDDED_EXECUTABLE"), "{inventory:?}");
    assert!(inventory.names.contains(&"invoice.js".to_owned()));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn files_within_files_are_taken_out() {
    let zip = zip_of(&[("letter.txt", NEEDLE)]);
    let attribute = |id: u32, data: &[u8]| [&[2], id.to_le_bytes().as_slice(), &(data.len() as u32).to_le_bytes(), data, &[0, 0]].concat();
    let tnef = [
        b"\x78\x9f\x3e\x22\x01\0".as_slice(),
        &attribute(0x0006_9002, b"x"),
        &attribute(0x0001_8010, b"a.zip\0"),
        &attribute(0x0006_800f, &zip),
        &attribute(0x0006_9002, b"x"),
        &attribute(0x0006_800f, b"other"),
    ]
    .concat();
    let package = [b"\x02\0a.zip\0c:\\a.zip\0\0\0\x03\0\x02\0\0\0x\0".as_slice(), &(zip.len() as u32).to_le_bytes(), &zip].concat();
    let object = [b"\x01\x05\0\0\x02\0\0\0\x08\0\0\0Package\0\0\0\0\0\0\0\0\0".as_slice(), &(package.len() as u32).to_le_bytes(), &package].concat();
    let digits = hex(&object);
    let (first, second) = digits.split_at(31);
    let rtf = format!("{{\\rtf1{{\\object{{\\*\\objdata {first}\r\n{{\\*\\junk}} {second}}}}}}}");
    let document = ole_of(&[("/Package", &zip)]);
    let object = [b"\x01\x05\0\0\x02\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0".as_slice(), &(document.len() as u32).to_le_bytes(), &document].concat();
    let rtf_document = format!("{{\\rtf1{{\\*\\objdata {}}}}}", hex(&object));
    let encoded = data_encoding::BASE64.encode(&zip);
    let (first, second) = encoded.split_at(50);
    let page = format!("<html><a href=\"data:application/zip;base64,{first}\r\n {second}\">invoice</a>");
    let mut uu = String::from("Hello,\r\nbegin 644 a.zip\r\n");
    for line in zip.chunks(45) {
        uu.push(char::from(0x20 + line.len() as u8));
        for three in line.chunks(3) {
            let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            uu.extend([18, 12, 6, 0].map(|shift| char::from(0x20 + (bits >> shift & 0x3f) as u8)));
        }
        uu.push_str("\r\n");
    }
    uu.push_str("`\r\nend\r\n");
    let table: &[(&str, &[u8])] = &[
        ("winmail.dat", &tnef),
        ("package.rtf", rtf.as_bytes()),
        ("document.rtf", rtf_document.as_bytes()),
        ("page.html", page.as_bytes()),
        ("uu.txt", uu.as_bytes()),
    ];
    for (name, content) in table {
        let (seen, inventory) = look(name, content);
        assert_eq!(seen.needles, 1, "{name}: {:?}", seen.items);
        assert_eq!(inventory.unscannable(), None, "{name}");
        for cut in (0..content.len()).step_by(content.len() / 50 + 1) {
            look(name, &content[..cut]);
        }
    }
    for harmless in ["I begin 2024 with a letter", "begin 644\r\n", "begin 7777777 x\r\n", "<p>;base64,", "{\\rtf1 \\objdata"] {
        let (_, inventory) = look("x", harmless.as_bytes());
        assert_eq!((inventory.unscannable(), inventory.names.len()), (None, 1), "{harmless}");
    }
}

#[test]
fn what_the_parser_did_not_look_at_is_said() {
    let mut message = message(vec![part(None, b"x")]);
    message.defects.push(crate::message::Defect::TooManyParts);
    assert_eq!(inventory(&message, &Limits::default()).unscannable(), Some(Unscannable::LimitsExceeded));
}

#[test]
fn an_embedded_message_is_shown_by_its_parts_only() {
    let mut container = part(Some("forwarded.eml"), b"Subject: x\r\n\r\nneedle-in-the-haystack");
    container.container = true;
    let mut seen = Seen::default();
    let mut letter = part(None, NEEDLE);
    letter.other_file_names.push("second.exe".into());
    let inventory = walk(&message(vec![container, letter]), &Limits::default(), &mut seen);
    assert_eq!((seen.items.len(), seen.needles), (1, 1), "{:?}", seen.items);
    assert_eq!(inventory.names, ["forwarded.eml", "second.exe"]);
    assert_eq!(names_of(&inventory), ["EXECUTABLE_ATTACHED"], "a name that only some readers take is judged");
}

#[test]
fn names_are_bounded() {
    let long = format!("{}.txt", "長".repeat(10_000));
    let parts = (0..100).map(|_| part(Some(&long), b"x")).chain([part(Some("last.exe"), b"x")]).collect();
    let inventory = inventory(&message(parts), &Limits { names: 1, ..Limits::default() });
    assert_eq!(inventory.names.len(), 1);
    assert_eq!(inventory.names[0].chars().count(), 255);
    assert_eq!(names_of(&inventory), ["EXECUTABLE_ATTACHED"], "a name beyond the bound is judged all the same");
}

/// Wrappings that Debian's package clamav-testfiles makes of one harmless program; without the package there is nothing to check.
#[test]
fn wrappings_of_a_known_program() {
    let directory = std::path::Path::new("/usr/share/clamav-testfiles");
    let Ok(program) = std::fs::read(directory.join("clam.exe")) else { return };
    struct Find<'a>(&'a [u8], bool);
    impl Visitor for Find<'_> {
        fn item(&mut self, item: &Item<'_>) -> ControlFlow<()> {
            self.1 |= memchr::memmem::find(item.content, self.0).is_some();
            ControlFlow::Continue(())
        }
    }
    let mut opened = vec![];
    let mut closed = vec![];
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut content = vec![];
        std::fs::File::open(&path).unwrap().read_to_end(&mut content).unwrap();
        let mut find = Find(&program, false);
        let inventory = walk(&message(vec![part(Some(&name), &content)]), &Limits::default(), &mut find);
        if find.1 { opened.push(name) } else { closed.push(format!("{name}: {:?}", inventory.unscannable())) }
    }
    opened.sort();
    closed.sort();
    println!("{} opened: {opened:?}\n{} not: {closed:#?}", opened.len(), closed.len());
    for must in [
        "clam.exe",
        "clam.7z",
        "clam.zip",
        "clam.tar.gz",
        "clam.exe.bz2",
        "clam.bz2.zip",
        "clam.newc.cpio",
        "clam.odc.cpio",
        "clam.bin-le.cpio",
        "clam.bin-be.cpio",
        "clam.exe.rtf",
        "clam.tnef",
        "clam.exe.html",
    ] {
        assert!(opened.iter().any(|name| name == must), "{must}");
    }
}

/// One of each format, to mutate.
fn seeds() -> Vec<Vec<u8>> {
    let text = NEEDLE.repeat(50);
    let member: &[(&str, &[u8])] = &[("letter.txt", &text), ("b/c.bin", b"\0\x01\x02")];
    let mut seeds = vec![
        zip_of(member),
        zip_with(member, ::zip::CompressionMethod::Stored),
        gzip_of(&tar_of(member)),
        tar_of(member),
        bzip2_of(&text),
        ole_of(&[
            ("/Macros/VBA/M", &module("Attribute VB_Name = \"M\"\r\nSub AutoOpen()\r\n")),
            ("/WordDocument", &text),
            ("/\u{1}Ole10Native", &text),
        ]),
        zip_of(&[("inner.zip", &zip_of(member)), ("x.gz", &gzip_of(&text))]),
        b"Rar!\x1a\x07\x01\x00\0\0\0\0\x06\x02\x01\x02\0\x01\x01".to_vec(),
        b"Rar!\x1a\x07\x00\0\0\x73\0\0\x0d\0\0\0\0\0\0\0\0\0\x74\x04\0\x20\0\0\0\0\0".to_vec(),
    ];
    for name in ["plain.7z", "ppmd.7z", "encrypted.7z", "encrypted-names.7z", "encrypted-aes.zip", "ustar.tar", "deflate64.zip"] {
        seeds.push(fixture(name));
    }
    let newc = [b"070701".as_slice(), &[b'0'; 48], b"00000003", &[b'0'; 32], b"00000002", b"00000000", b"a\0abc\0"].concat();
    seeds.push(newc);
    seeds
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic_or_exceed_the_limits(
        seed in 0..17usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0u8), Just(0xff), Just(0x7f), any::<u8>()]), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        doubled in any::<bool>(),
    ) {
        thread_local!(static SEEDS: Vec<Vec<u8>> = seeds());
        let mut bytes = SEEDS.with(|seeds| seeds[seed % seeds.len()].clone());
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        if doubled {
            bytes.extend_from_within(..);
        }
        let limits = Limits { output_bytes: 1 << 20, entries: 100, dictionary_bytes: 4 << 20, ..Limits::default() };
        let mut seen = Seen::default();
        let inventory = walk(&message(vec![part(Some("x"), &bytes)]), &limits, &mut seen);
        prop_assert!(inventory.entries <= limits.entries);
        prop_assert!(inventory.output_bytes <= limits.output_bytes + bytes.len() + 1);
    }

    #[test]
    fn vba_containers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        vba::decompress(&bytes);
        vba::source(&[b"\x01\0\0\0Attribut".as_slice(), &bytes].concat());
    }
}
