use std::fmt::Write as _;
use std::time::Duration;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn read(raw: impl Into<Vec<u8>>) -> Message {
    parse(Bytes::from(raw.into()), &Limits::default())
}

/// One line per part, then the defects.
fn outline(message: &Message) -> String {
    let mut out = String::new();
    for part in &message.parts {
        let content: String = String::from_utf8_lossy(&part.content).chars().take(40).collect();
        write!(out, "{}{} {:?}", "  ".repeat(part.depth.into()), part.content_type, content).ok();
        for name in part.file_name.iter().chain(&part.other_file_names) {
            write!(out, " name={name:?}").ok();
        }
        for (said, word) in [(part.container, " container"), (part.encoding_broken, " broken")] {
            out.push_str(if said { word } else { "" });
        }
        if let Some(charset) = &part.charset {
            write!(out, " charset={charset}").ok();
        }
        out.push('\n');
    }
    write!(out, "{:?}", message.defects).ok();
    out
}

#[expect(clippy::needless_pass_by_value, reason = "so that a case is one call")]
fn check(raw: impl Into<Vec<u8>>, expected: Expect) {
    expected.assert_eq(&outline(&read(raw)));
}

/// A message with one part under these MIME fields.
fn single(fields: &str, body: &str) -> String {
    format!("From: a@b\r\n{fields}\r\n\r\n{body}")
}

#[test]
fn structure() {
    check(
        "From: a@b\r\n\r\nplain",
        expect![[r#"
        text/plain "plain"
        []"#]],
    );
    check(
        single("Content-Type: Text/HTML; charset=\"UTF-8\"\r\nContent-Transfer-Encoding: quoted-printable", "a=3Db=\r\nc"),
        expect![[r#"
        text/html "a=bc" charset=utf-8
        []"#]],
    );
    check(
        single(
            "Content-Type: multipart/mixed; boundary=o",
            "preamble\r\n--o\r\nContent-Type: multipart/alternative; boundary=i\r\n\r\n--i\r\n\r\none\r\n--i\r\nContent-Type: text/html\r\n\r\ntwo\r\n--i--\r\n\
             --o\r\nContent-Type: application/zip; name=a.zip\r\nContent-Transfer-Encoding: base64\r\n\r\nUEsDBA==\r\n--o--\r\nepilogue",
        ),
        expect![[r#"
                text/plain "one"
                text/html "two"
              application/zip "PK\u{3}\u{4}" name="a.zip"
            []"#]],
    );
    check(
        single(
            "Content-Type: multipart/mixed; boundary=o",
            "--o\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\nContent-Type: multipart/mixed; boundary=n\r\n\r\n--n\r\n\r\ndeep\r\n--n--\r\n--o\r\n\r\nafter\r\n--o--\r\n",
        ),
        expect![[r#"
              message/rfc822 "Subject: in\r\nContent-Type: multipart/mix" container
                  text/plain "deep"
              text/plain "after"
            []"#]],
    );
    check(
        single("Content-Type: multipart/digest; boundary=z", "--z\r\n\r\nSubject: in\r\n\r\nx\r\n--z--\r\n"),
        expect![[r#"
          message/rfc822 "Subject: in\r\n\r\nx" container
            text/plain "x"
        []"#]],
    );
}

#[test]
fn an_encoded_embedded_message_is_looked_into() {
    let inner =
        "Subject: in\r\nContent-Type: multipart/mixed; boundary=n\r\n\r\n--n\r\nContent-Type: text/plain; name=v.exe\r\n\r\nevil\r\n--n--\r\n";
    let encoded = data_encoding::BASE64.encode(inner.as_bytes());
    let message = read(single("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64", &encoded));
    expect![[r#"
        message/rfc822 "Subject: in\r\nContent-Type: multipart/mix" container
            text/plain "evil" name="v.exe"
        []"#]]
    .assert_eq(&outline(&message));
    assert_eq!(message.parts[0].content, inner.as_bytes());
    // Parts of the decoded message are slices of it, not copies.
    assert!(message.parts[0].content.as_ptr_range().contains(&message.parts[1].content.as_ptr()));
    let twice =
        data_encoding::BASE64.encode(format!("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n{encoded}").as_bytes());
    check(
        single("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64", &twice),
        expect![[r#"
        message/rfc822 "Content-Type: message/rfc822\r\nContent-Tr" container
          message/rfc822 "Subject: in\r\nContent-Type: multipart/mix" container
              text/plain "evil" name="v.exe"
        []"#]],
    );
}

#[test]
fn broken_structure_hides_nothing_from_scanners() {
    check(
        single("Content-Type: multipart/mixed; boundary=never", "the whole\r\nbody"),
        expect![[r#"
        multipart/mixed "the whole\r\nbody"
        [BoundaryMissing]"#]],
    );
    check(
        single("Content-Type: multipart/mixed; boundary=z", "before\r\n--z--\r\nafter"),
        expect![[r#"
        multipart/mixed "before\r\n--z--\r\nafter"
        [BoundaryMissing]"#]],
    );
    check(
        single("Content-Type: multipart/mixed", "--z\r\n\r\nfoo\r\n--z--\r\n"),
        expect![[r#"
        multipart/mixed "--z\r\n\r\nfoo\r\n--z--\r\n"
        [BoundaryMissing]"#]],
    );
    check(
        single("Content-Type: multipart/mixed; boundary=z", "--z\r\n\r\nnever closed"),
        expect![[r#"
          text/plain "never closed"
        []"#]],
    );
    check(
        single("Content-Type: multipart/mixed; boundary=z\r\nContent-Transfer-Encoding: base64", "LS16DQoNCmhlbGxvDQotLXotLQ0K"),
        expect![[r#"
        multipart/mixed "--z\r\n\r\nhello\r\n--z--\r\n"
        [BoundaryMissing]"#]],
    );
    check(
        single("Content-Transfer-Encoding: \"base64\"", "aGVsbG8="),
        expect![[r#"
        text/plain "hello" broken
        [BrokenEncoding]"#]],
    );
    check(
        single("Content-Transfer-Encoding: x-uuencode", "begin 644 a"),
        expect![[r#"
        text/plain "begin 644 a" broken
        [BrokenEncoding]"#]],
    );
    check(
        single("Content-Transfer-Encoding: base64", "aGVs!!bG8=\r\n====aGVsbG8="),
        expect![[r#"
        text/plain "hellohello" broken
        [BrokenEncoding]"#]],
    );
    check(
        single("Content-Transfer-Encoding: quoted-printable", "a=ZZb=\r\n=4"),
        expect![[r#"
        text/plain "a=ZZb=4" broken
        [BrokenEncoding]"#]],
    );
}

#[test]
fn broken_headers_hide_nothing_from_scanners() {
    check(
        single("Content-Type: text", "x"),
        expect![[r#"
        text/plain "x"
        []"#]],
    );
    check(
        single("Content-Type: ; charset=x", "x"),
        expect![[r#"
        text/plain "x"
        []"#]],
    );
    check(
        single("Content-Type: text/plain\r\nContent-Type: application/zip", "x"),
        expect![[r#"
        application/zip "x"
        [DuplicateField]"#]],
    );
    check(
        "no header at all",
        expect![[r#"
            text/plain "no header at all"
            [BrokenHeader, FromCount]"#]],
    );
    check(
        "",
        expect![[r#"
        text/plain ""
        [FromCount]"#]],
    );
    check(
        "\r\nheadless",
        expect![[r#"
        text/plain "headless"
        [FromCount]"#]],
    );
    check(
        "From: a@b\r\n",
        expect![[r#"
        text/plain ""
        []"#]],
    );
    check(
        "From: a@b\r\nFr om: x@evil\r\n\r\nx",
        expect![[r#"
        text/plain "x"
        [BrokenHeader]"#]],
    );
    check(
        "From: a@b\r\nFrom: c@d\r\nSubject: 1\r\nSubject: 2\r\n\r\nNUL \0",
        expect![[r#"
        text/plain "NUL \0"
        [NulByte, FromCount, DuplicateField]"#]],
    );
}

#[test]
fn names_of_attachments() {
    let name = |fields: &str| {
        let message = read(single(fields, "x"));
        message.file_names()
    };
    let cases: &[(&str, &[&str])] = &[
        ("Content-Disposition: attachment; filename=a.exe", &["a.exe"]),
        ("Content-Type: application/zip; name=\"a b.zip\"", &["a b.zip"]),
        ("Content-Disposition: attachment; filename=a.txt\r\nContent-Type: text/plain; name=b.exe", &["a.txt", "b.exe"]),
        ("Content-Disposition: attachment; filename=a.txt; filename=b.exe", &["a.txt", "b.exe"]),
        ("Content-Disposition: attachment; filename=a.txt\r\nContent-Disposition: attachment; filename=b.exe", &["a.txt", "b.exe"]),
        ("Content-Disposition: attachment; filename*=utf-8''%E3%81%82.exe; filename=a.txt", &["あ.exe", "a.txt"]),
        ("Content-Disposition: attachment; filename*0*=iso-2022-jp''%1B$B%24?; filename*1*=%1B%28B.e; filename*2=xe", &["た.exe"]),
        ("Content-Disposition: attachment; filename*=shift_jis''%83%58.exe", &["ス.exe"]),
        ("Content-Disposition: attachment; filename=\"=?UTF-8?B?44E=?= =?UTF-8?B?gi5leGU=?=\"", &["あ.exe", "\u{fffd} \u{fffd}.exe"]),
        ("Content-Type: application/zip; name=\"=?ISO-2022-JP?B?GyRCJD8k?=\r\n =?ISO-2022-JP?B?QBsoQi56aXA=?=\"", &["ただ.zip"]),
        ("Content-Type: application/x; name==?UTF-8?Q?a.e?=\r\n\t=?UTF-8?Q?xe?=", &["a.exe"]),
        ("Content-Disposition: attachment; filename=\"\u{1b}$B$?$@\u{1b}(B.exe\"", &["ただ.exe"]),
        ("Content-Disposition: attachment; filename=\"a.ex\r\n e\"", &["a.ex e"]),
        ("Content-Disposition: attachment; filename=\"a\\\"b.exe\"", &["a\"b.exe"]),
        ("Content-Disposition: attachment; filename=\"a.exe\0.txt\"", &["a.exe", "a.exe.txt"]),
        ("Content-Disposition: attachment; filename=\"\"", &[]),
        ("Content-Disposition: attachment; filename", &[]),
        ("Content-Disposition: attachment", &[]),
    ];
    for (fields, expected) in cases {
        let found = name(fields);
        let missing: Vec<&&str> = expected.iter().filter(|want| !found.iter().any(|have| have == **want)).collect();
        assert!(missing.is_empty() && found.first().map(String::as_str) == expected.first().copied(), "{fields:?}: {found:?}, expected {expected:?}");
    }
    let raw = [b"Content-Type: text/plain; charset=shift_jis; name=\"\x83\x58.exe\"\r\n\r\nx".as_slice()].concat();
    assert_eq!(read(raw).parts[0].file_name.as_deref(), Some("ス.exe"));
}

#[test]
fn fields_of_the_top() {
    let message = read(
        "Received: one\r\nReceived: two\r\nMessage-ID:  <id@x> \r\nFrom: =?ISO-2022-JP?B?GyRCJD8k?=\r\n =?ISO-2022-JP?B?QBsoQg==?= <A@Example.COM>, g: c@d.com;\r\n\
         Subject: =?ISO-2022-JP?B?GyRCJD8k?=\r\n =?ISO-2022-JP?B?QBsoQg==?= end\r\nSubject: second\r\n\r\nx",
    );
    assert_eq!(message.subject.as_deref(), Some("ただ end"));
    assert_eq!(message.message_id.as_deref(), Some("id@x"));
    assert_eq!((message.received_fields, message.from_fields), (2, 1));
    assert_eq!(message.from[0], Mailbox { name: Some("ただ".into()), local: "A".into(), domain: "example.com".into() });
    assert_eq!(message.from[1].domain, "d.com");
    assert_eq!(message.defects, [Defect::DuplicateField]);
    assert_eq!(message.fields("SUBJECT").count(), 2);
    assert_eq!(message.text(&message.headers[0].value), " one");
}

#[test]
fn subjects_in_every_charset() {
    let cases: &[(&[u8], &str)] = &[
        (b"Subject: plain\r\n", "plain"),
        (b"Subject:\r\n folded\r\n\tonce more\r\n", "folded once more"),
        (b"Subject:\r\n", ""),
        (b"Subject: =?UTF-8?B?44E=?= =?UTF-8?B?gg==?=\r\n", "あ"),
        (b"Subject: =?EUC-JP?B?pLM=?=\r\n", "こ"),
        (b"Subject: =?Shift_JIS?B?g1g=?=\r\n", "ス"),
        (b"Subject: =?gb2312?B?xOM=?=\r\n", "你"),
        (b"Subject: =?x-unknown?Q?a=E9?=\r\n", "a\u{fffd}"),
        (b"Subject: \x1b$B$?$@\x1b(B raw\r\n", "ただ raw"),
        (b"Subject: \xe3\x81\x82\r\n", "あ"),
        (b"Subject: =?UTF-8?B?broken\r\n", "=?UTF-8?B?broken"),
        // A charset that lies: bytes that are not in it.
        (b"Subject: =?UTF-8?B?g1g=?=\r\n", "\u{fffd}X"),
        (b"Subject: =?US-ASCII?B?44GC?=\r\n", "ã\u{fffd}‚"),
    ];
    for (header, expected) in cases {
        let message = read([*header, b"From: a@b\r\n\r\nx"].concat());
        assert_eq!(message.subject.as_deref(), Some(*expected), "{:?}", String::from_utf8_lossy(header));
    }
    let raw = b"Subject: \x83\x58\r\nContent-Type: text/plain; charset=Shift_JIS\r\n\r\nx";
    assert_eq!(read(raw.to_vec()).subject.as_deref(), Some("ス"));
    assert_eq!(read("From: a@b\r\n\r\n").subject, None);
}

#[test]
fn identity_content_is_never_copied() {
    let message = read(single(
        "Content-Type: multipart/mixed; boundary=z",
        "--z\r\n\r\nplain\r\n--z\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nnothing to undo\r\n--z--",
    ));
    let raw = message.raw.as_ptr_range();
    assert!(message.parts.iter().all(|part| raw.contains(&part.content.as_ptr())), "{}", outline(&message));
    assert_eq!(message.parts.len(), 2);
}

/// Runs with the smallest stack that the gateway's threads have.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(work).expect("a thread");
    thread.join().expect("no panic, no overflow");
}

#[test]
fn hostile_depth_and_number_are_bounded() {
    on_a_small_stack(|| {
        let mut deep = String::from("From: a@b\r\n");
        for level in 0..100_000 {
            write!(deep, "Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n").ok();
        }
        let message = read(deep);
        assert!(message.defects.contains(&Defect::TooDeep));
        assert!(message.parts.iter().all(|part| part.depth <= 64));
        assert!(message.parts.iter().map(|part| part.content.len()).sum::<usize>() > 1_000_000, "what is too deep is still content");
    });
    on_a_small_stack(|| {
        let nested = "Content-Type: message/rfc822\r\n\r\n".repeat(2 * 1024 * 1024 / 32);
        let message = read(nested);
        assert!(message.defects.contains(&Defect::TooDeep));
        assert!(message.parts.len() <= 64);
    });
    on_a_small_stack(|| {
        let many = format!("From: a@b\r\nContent-Type: multipart/mixed; boundary=z\r\n\r\n{}", "--z\r\n\r\nx\r\n".repeat(50_000));
        let message = read(many);
        assert!(message.defects.contains(&Defect::TooManyParts) && !message.defects.contains(&Defect::TooDeep));
        assert!(message.parts.len() <= 10_000);
    });
    on_a_small_stack(|| {
        let mut encoded = String::from("Subject: innermost\r\n\r\nx");
        for _ in 0..6 {
            let body = data_encoding::BASE64.encode(encoded.as_bytes());
            encoded = format!("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n{body}");
        }
        assert!(read(encoded).defects.contains(&Defect::TooDeep));
    });
}

#[test]
fn hostile_headers_are_bounded() {
    let message = read("X: y\r\n".repeat(5000) + "From: a@b\r\n\r\nbody");
    assert_eq!(message.headers.len(), 1000);
    assert!(message.defects.contains(&Defect::HeadersTooLarge));
    assert_eq!(message.raw.slice(message.body_offset..), "body");
    let message = read(format!("From: {}\r\n\r\nx", "a@b,".repeat(20_000)));
    assert_eq!(message.from.len(), 100);
    let names = "; filename=x.exe".repeat(10_000);
    assert!(read(format!("Content-Disposition: attachment{names}\r\n\r\nx")).file_names().len() <= 16);
    let message = read(format!("Content-Type: text/plain{}\r\n\r\nx", "; a=(((((".repeat(10_000)));
    assert_eq!(message.parts.len(), 1);
}

#[test]
fn linear_time() {
    // Shapes that have cost others quadratic time. Ten seconds are for a slow machine with a debug build; quadratic work would take minutes.
    let shapes: Vec<(&str, String)> = vec![
        ("boundaries in boundaries", format!("Content-Type: multipart/mixed; boundary=a\r\n\r\n{}", "--aa\r\n".repeat(300_000))),
        ("dashes", format!("Content-Type: multipart/mixed; boundary=a\r\n\r\n{}", "-".repeat(2_000_000))),
        ("encoded words", format!("Subject: {}\r\n\r\nx", "=?utf-8?q?a?= ".repeat(7000))),
        ("opening words", format!("Subject: {}\r\n\r\nx", "=?utf-8?q?".repeat(9000))),
        ("comments", format!("From: {}\r\n\r\nx", "(".repeat(100_000))),
        ("folds", format!("From: {}\r\n\r\nx", "\r\n ".repeat(33_000))),
        ("broken lines", "nonsense\r\n".repeat(200_000)),
        ("equals", format!("Content-Transfer-Encoding: base64\r\n\r\n{}", "=".repeat(2_000_000))),
    ];
    for (what, raw) in shapes {
        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _parsed = read(raw);
            done.send(()).expect("the test waits");
        });
        finished.recv_timeout(Duration::from_secs(10)).expect(what);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_message(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
        let message = read(raw.clone());
        prop_assert!(message.body_offset <= raw.len());
    }

    #[test]
    fn any_pieces_are_a_message(picks in proptest::collection::vec(0..PIECES.len(), 0..40)) {
        let raw: Vec<u8> = picks.iter().flat_map(|pick| PIECES[*pick].iter().copied()).collect();
        let message = read(raw);
        for field in &message.headers {
            let whole = message.raw.get(field.whole.clone()).expect("within the message");
            prop_assert!(whole.ends_with(b"\n") || field.whole.end == message.raw.len());
            prop_assert!(field.whole.start == field.name.start && field.name.end < field.value.start && field.value.end <= field.whole.end);
            prop_assert!(field.whole.end <= message.body_offset);
        }
        for pair in message.headers.windows(2) {
            prop_assert!(pair[0].whole.end <= pair[1].whole.start);
        }
    }
}

const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"From: a@b\r\n",
    b"From: =?iso-2022-jp?B?GyRC?= <a@b>\r\n",
    b"Subject: =?utf-8?q?=E3",
    b"?=",
    b"Content-Type: multipart/mixed; boundary=z\r\n",
    b"Content-Type: message/rfc822\r\n",
    b"Content-Type: text/plain; name=\"=?utf-8?b?",
    b"Content-Disposition: attachment; filename*0*=utf-8''%E3%81; filename*1=",
    b"Content-Transfer-Encoding: base64\r\n",
    b"Content-Transfer-Encoding: quoted-printable\r\n",
    b"--z\r\n",
    b"--z--\r\n",
    b"--z",
    b"\r\n\r\n",
    b"UEsDBA==",
    b"=3D=\r\n",
    b"\0",
    b"\xff\xfe",
    b"\x1b$B$?\x1b(B",
    b"broken line\r\n",
    b"\"",
    b";",
];
