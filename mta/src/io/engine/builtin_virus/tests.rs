use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::envelope::{Client, Envelope};
use crate::io::clock;
use crate::message::Part;

/// In two pieces, so that a scanner that reads this file is not alarmed.
const EICAR: &str = concat!("X5O!P%@AP[4\\PZX54(P^)7CC)7}", "$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*");

fn part(content_type: &str, name: Option<&str>, content: &[u8]) -> Part {
    Part {
        content_type: content_type.into(),
        charset: None,
        file_name: name.map(str::to_owned),
        other_file_names: vec![],
        depth: 1,
        content: Bytes::copy_from_slice(content),
        encoding_broken: false,
        container: false,
    }
}

fn job(raw: &str, parts: Vec<Part>) -> Job {
    let message = Message {
        raw: Bytes::copy_from_slice(raw.as_bytes()),
        body_offset: 0,
        headers: vec![],
        parts,
        from: vec![],
        from_fields: 1,
        subject: None,
        message_id: None,
        received_fields: 0,
        defects: vec![],
    };
    let client = Client { address: [192, 0, 2, 1].into(), helo: "a.example".into(), esmtp: true, tls: None, address_known: true };
    let envelope = Envelope { id: clock::queue_id(), received_ms: 0, client, sender: None, recipients: vec![], eight_bit: false, smtputf8: false };
    Job::new(Arc::new(message), Arc::new(envelope))
}

fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(vec![]));
    for (name, content) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn engine() -> BuiltinVirus {
    BuiltinVirus::start(&BuiltinVirusOptions { threads: 1, ..BuiltinVirusOptions::default() }).unwrap()
}

fn names(answer: &Answer) -> Vec<&str> {
    answer.evidence.iter().map(|evidence| evidence.name.as_str()).collect()
}

#[tokio::test]
async fn eicar_is_found_in_every_wrapping() {
    let engine = engine();
    let inner = zip_of(&[("eicar.com", EICAR.as_bytes())]);
    let deep = zip_of(&[("a.zip", &zip_of(&[("b.zip", &zip_of(&[("c.zip", &inner)]))]))]);
    let mut cut = zip_of(&[("eicar.com", EICAR.as_bytes()), ("x", b"y")]);
    cut.truncate(cut.len() - 30);
    let table = [
        ("attached", "", vec![part("application/octet-stream", Some("a.txt"), EICAR.as_bytes())]),
        ("zip", "", vec![part("text/plain", None, b"hello"), part("application/zip", Some("a.zip"), &inner)]),
        ("four zips", "", vec![part("application/zip", Some("a.zip"), &deep)]),
        ("a broken zip", "", vec![part("application/zip", Some("a.zip"), &cut)]),
        (
            "beside an encrypted one",
            "",
            vec![part("application/zip", Some("e.zip"), &encrypted_zip()), part("application/zip", Some("a.zip"), &inner)],
        ),
        (
            "after an encrypted one",
            "",
            vec![part("application/zip", Some("a.zip"), &inner), part("application/zip", Some("e.zip"), &encrypted_zip())],
        ),
        ("broken MIME", EICAR, vec![]),
    ];
    for (name, raw, parts) in table {
        let answer = engine.scan(&job(raw, parts)).await.unwrap();
        assert_eq!(answer.finding, Finding::Infected("EICAR_Test_File".into()), "{name}");
    }
}

fn encrypted_zip() -> Vec<u8> {
    std::fs::read(Path::new("tests/data/mail/archives/encrypted.zip")).unwrap()
}

#[tokio::test]
async fn answers_say_what_was_seen() {
    let engine = engine();
    let clean = engine.scan(&job("Subject: hi\r\n\r\nhello\r\n", vec![part("text/plain", None, b"hello")])).await.unwrap();
    assert_eq!(clean.finding, Finding::Clean);
    assert!(clean.evidence.is_empty());
    assert_eq!(clean.version, Some(engine.version().await.unwrap()));

    let encrypted = engine.scan(&job("", vec![part("application/zip", Some("e.zip"), &encrypted_zip())])).await.unwrap();
    assert_eq!(encrypted.finding, Finding::Unscannable(Unscannable::Encrypted));

    // Executable content is evidence and never malware.
    let program = engine.scan(&job("", vec![part("application/zip", Some("a.zip"), &zip_of(&[("報告書.pdf.exe", b"MZ")]))])).await.unwrap();
    assert_eq!(program.finding, Finding::Clean);
    assert_eq!(names(&program), ["EXECUTABLE_IN_ARCHIVE", "DOUBLE_EXTENSION"]);
}

#[tokio::test]
async fn heuristic_rules_are_evidence() {
    let engine = engine();
    let shortcut = [b"\x4c\0\0\0\x01\x14\x02\0".as_slice(), b"p\0o\0w\0e\0r\0s\0h\0e\0l\0l\0"].concat();
    let table: &[(&[u8], &str)] = &[
        (b"{\\rtf1{\\object\\objemb\\objupdate{\\*\\objdata 01}}", "RTF_Self_Updating_Object"),
        (b"{\\rtf1{\\*\\objdata 0b0000004571756174696F6E2E3300}}", "RTF_Equation_Object"),
        (&shortcut, "Shortcut_Runs_Interpreter"),
        (b"x = CreateObject(\"MSXML2.XMLHTTP\"): CreateObject(\"ADODB.Stream\"): CreateObject(\"WScript.Shell\")", "Script_Downloads_And_Runs"),
        (b"<script>var b = new Blob([atob(x)]); a.href = URL.createObjectURL(b); a.download = 'x.iso'</script>", "Page_Builds_Download"),
        (
            b"<Relationship Type=\"http://schemas.openxmlformats.org/officeDocument/2006/relationships/attachedTemplate\" Target=\"https://x.example/t.dotm\" TargetMode=\"External\"/>",
            "OOXML_Remote_Template",
        ),
        (b"location.href = \"ms-msdt:/id PCWDiagnostic /param IT_RebrowseForFile=x\"", "Diagnostic_Tool_Handler"),
        (b"powershell -w hidden -enc SQBFAFgAIAAoAE4AZQB3AC0ATwBiAGoAZQBjAHQAIABOAGUAdAAuAFcAZQBiAEMAbABpAGUAbgB0ACkA", "PowerShell_Hidden_Encoded"),
    ];
    for (content, rule) in table {
        let answer = engine.scan(&job("", vec![part("application/octet-stream", None, content)])).await.unwrap();
        assert_eq!(answer.finding, Finding::Clean, "{rule}");
        assert!(names(&answer).contains(rule), "{rule}: {:?}", answer.evidence);
        let raw = String::from_utf8_lossy(content);
        let answer = engine.scan(&job(&raw, vec![])).await.unwrap();
        assert!(answer.evidence.is_empty(), "{rule}: in the raw message heuristics mean nothing: {:?}", answer.evidence);
    }
}

#[tokio::test]
async fn rules_come_from_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let options = BuiltinVirusOptions { rules_dir: Some(directory.path().to_owned()), threads: 1, ..BuiltinVirusOptions::default() };
    let empty = BuiltinVirus::start(&options).unwrap().version().await.unwrap();
    std::fs::write(directory.path().join("own.yar"), "rule Own { meta: kind = \"malware\" strings: $a = \"our own sample\" condition: $a }").unwrap();
    std::fs::write(directory.path().join("README.md"), "not a rule").unwrap();
    let engine = BuiltinVirus::start(&options).unwrap();
    assert_ne!(engine.version().await.unwrap(), empty, "the version says which rules");
    let answer = engine.scan(&job("", vec![part("text/plain", None, b"this is our own sample")])).await.unwrap();
    assert_eq!(answer.finding, Finding::Infected("Own".into()));

    std::fs::write(directory.path().join("bad.yar"), "rule Bad {\n  condition:\n    1 +\n}").unwrap();
    let error = BuiltinVirus::start(&options).unwrap_err().to_string();
    assert!(error.contains("bad.yar, line"), "{error}");
    let missing = BuiltinVirusOptions { rules_dir: Some(directory.path().join("missing")), ..options };
    let error = BuiltinVirus::start(&missing).unwrap_err().to_string();
    assert!(error.contains("missing") && error.contains("check that it exists"), "{error}");
}

#[tokio::test]
async fn a_bomb_is_limits_exceeded() {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    encoder.write_all(&vec![0; 20 << 20]).unwrap();
    let bomb = encoder.finish().unwrap();
    let answer = engine().scan(&job("", vec![part("application/gzip", Some("a.gz"), &bomb)])).await.unwrap();
    assert_eq!(answer.finding, Finding::Unscannable(Unscannable::LimitsExceeded));
}

#[tokio::test]
async fn many_messages_share_few_threads() {
    let engine = Arc::new(BuiltinVirus::start(&BuiltinVirusOptions::default()).unwrap());
    let tasks: Vec<_> = (0..60)
        .map(|number| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move {
                let content = if number % 3 == 0 { zip_of(&[("a", EICAR.as_bytes())]) } else { zip_of(&[("a", b"x")]) };
                let answer = engine.scan(&job("", vec![part("application/zip", None, &content)])).await.unwrap();
                assert_eq!(answer.finding == Finding::Clean, number % 3 != 0, "{number}");
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

fn answer(finding: Finding) -> Answer {
    Answer { finding, evidence: vec![], version: None }
}

/// A body that hangs on messages that say so, panics on others, and finds the rest clean.
fn odd_body(made: Arc<AtomicUsize>, hang: std::sync::mpsc::Receiver<()>) -> Arc<pool::Body> {
    let hang = std::sync::Mutex::new(hang);
    Arc::new(move |work| {
        made.fetch_add(1, Ordering::Relaxed);
        work(&mut |message, _| {
            match &*message.raw {
                b"hang" => drop(hang.lock().unwrap().recv()),
                b"panic" => panic!("asked to"),
                _ => {}
            }
            answer(Finding::Clean)
        });
    })
}

#[tokio::test]
async fn a_stuck_scan_is_left_behind() {
    let (release, hang) = std::sync::mpsc::channel();
    let made = Arc::new(AtomicUsize::new(0));
    let pool = Pool::start(1, 50, 50, odd_body(Arc::clone(&made), hang));
    let stuck = pool.scan(job("hang", vec![]).message).await.unwrap();
    assert_eq!(stuck.finding, Finding::Unscannable(Unscannable::LimitsExceeded));
    // The only thread hangs until the end of this test; the next message may come before it counts as lost.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let next = pool.scan(job("x", vec![]).message).await.unwrap();
    assert_eq!(next.finding, Finding::Clean);
    assert_eq!(made.load(Ordering::Relaxed), 2, "another thread took its place");
    drop(release);
}

#[tokio::test]
async fn a_panic_is_one_message_s_trouble() {
    let (_release, hang) = std::sync::mpsc::channel();
    let made = Arc::new(AtomicUsize::new(0));
    let pool = Pool::start(1, 5_000, 2_000, odd_body(Arc::clone(&made), hang));
    assert!(matches!(pool.scan(job("panic", vec![]).message).await, Err(Failure::Unreachable(_))));
    assert_eq!(pool.scan(job("x", vec![]).message).await.unwrap().finding, Finding::Clean);
    assert_eq!(made.load(Ordering::Relaxed), 2, "the scanner is made anew");
}

#[tokio::test]
async fn a_dropped_scan_is_not_done() {
    let (release, hang) = std::sync::mpsc::channel();
    let made = Arc::new(AtomicUsize::new(0));
    let pool = Arc::new(Pool::start(1, 5_000, 2_000, odd_body(made, hang)));
    let hung = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.scan(job("hang", vec![]).message).await }
    });
    tokio::task::yield_now().await;
    // Waits behind the first, and is given up: a panic would show that it was scanned nevertheless.
    let given_up = tokio::time::timeout(Duration::from_millis(50), pool.scan(job("panic", vec![]).message)).await;
    assert!(given_up.is_err());
    release.send(()).unwrap();
    assert_eq!(hung.await.unwrap().unwrap().finding, Finding::Clean);
    assert_eq!(pool.scan(job("x", vec![]).message).await.unwrap().finding, Finding::Clean);
}
