use std::net::IpAddr;

use bytes::Bytes;

use super::*;
use crate::envelope::{Client, Recipient};
use crate::message::{HeaderField, Mailbox, Part};
use crate::queue_id::QueueId;
use crate::smtp::Address;

pub(super) fn address(text: &str) -> Address {
    let (local, domain) = text.rsplit_once('@').unwrap();
    Address { local: local.into(), domain: domain.into() }
}

fn envelope() -> Envelope {
    let client = Client { address: [8, 8, 8, 8].into(), helo: "mail.sender.example".into(), esmtp: true, tls: None, address_known: true };
    Envelope {
        id: QueueId::new(0, 0),
        received_ms: DAY_MS,
        client,
        sender: Some(address("a@sender.example")),
        recipients: vec![Recipient { address: address("b@ours.example"), tenant: "t/t".into() }],
        eight_bit: false,
        smtputf8: false,
    }
}

/// Wed, 25 Nov 2026 03:00:00 +0000
const DAY_MS: u64 = 1_795_575_600_000;

const HEADER: &str = "Received: from a by b; x\r\nDate: Wed, 25 Nov 2026 12:00:00 +0900\r\nMessage-ID: <1@sender.example>\r\nFrom: A <a@sender.example>\r\nTo: b@ours.example\r\nSubject: Hello there\r\n";

/// A message from a header of plain fields and parts: this module must not depend on how messages are parsed.
fn message(header: &str, parts: Vec<Part>) -> Message {
    let mut headers = vec![];
    let mut at = 0;
    for line in header.split_inclusive("\r\n") {
        let colon = line.find(':').unwrap();
        headers.push(HeaderField { name: at..at + colon, value: at + colon + 1..at + line.len() - 2, whole: at..at + line.len() });
        at += line.len();
    }
    let value = |name: &str| header.split("\r\n").find_map(|line| line.strip_prefix(&format!("{name}:"))).map(|value| value.trim().to_owned());
    let from: Vec<Mailbox> = value("From")
        .map(|text| {
            let (name, rest) = text.rsplit_once('<').unwrap_or(("", &text));
            let Address { local, domain } = address(rest.trim_end_matches('>'));
            Mailbox { name: Some(name.trim().trim_matches('"').to_owned()), local, domain }
        })
        .into_iter()
        .collect();
    let body: String = parts.iter().map(|part| String::from_utf8_lossy(&part.content).into_owned()).collect();
    Message {
        raw: Bytes::from(format!("{header}\r\n{body}")),
        body_offset: header.len() + 2,
        headers,
        from_fields: usize::from(!from.is_empty()),
        from,
        subject: value("Subject"),
        message_id: value("Message-ID").map(|id| id.trim_matches(['<', '>']).to_owned()),
        received_fields: header.matches("Received:").count(),
        parts,
        defects: vec![],
    }
}

fn text(content_type: &str, content: impl AsRef<[u8]>) -> Part {
    Part {
        content_type: content_type.into(),
        charset: Some("utf-8".into()),
        file_name: None,
        other_file_names: vec![],
        depth: 1,
        content: Bytes::copy_from_slice(content.as_ref()),
        encoding_broken: false,
        container: false,
    }
}

const LETTER: &str = "Dear Bob,\r\n\r\nthank you for the report. We meet on Tuesday at ten, as agreed.\r\n\r\nAlice\r\n";

fn names(message: &Message, envelope: &Envelope) -> Vec<&'static str> {
    judge(message, envelope).signs.iter().map(|sign| sign.name).collect()
}

/// The signs of a letter with one header field changed.
fn with_header(old: &str, new: &str) -> Vec<&'static str> {
    assert!(HEADER.contains(old), "{old}");
    names(&message(&HEADER.replace(old, new), vec![text("text/plain", LETTER)]), &envelope())
}

fn with_parts(parts: Vec<Part>) -> Vec<&'static str> {
    names(&message(HEADER, parts), &envelope())
}

#[test]
fn a_letter_has_no_signs() {
    let judgement = judge(&message(HEADER, vec![text("text/plain", LETTER)]), &envelope());
    assert_eq!(judgement, Judgement::default());
}

#[test]
fn the_table_is_consistent() {
    let mut seen = std::collections::HashSet::new();
    for sign in table::ALL {
        assert!(seen.insert(sign.name), "{} twice", sign.name);
        assert!((1..REQUIRED_MILLI).contains(&sign.milli), "{}: no sign makes spam by itself", sign.name);
        assert!(!sign.why.is_empty());
    }
}

#[test]
fn each_header_sign_is_met() {
    let table: &[(&str, &str, &str)] = &[
        ("Date: Wed, 25 Nov 2026 12:00:00 +0900\r\n", "", "MISSING_DATE"),
        ("Wed, 25 Nov 2026 12:00:00 +0900", "yesterday", "INVALID_DATE"),
        ("+0900", "-1700", "DATE_ZONE_IMPOSSIBLE"),
        (" +0900", "", "DATE_WITHOUT_ZONE"),
        ("<1@", "<001a01c2$e0f1a2b0$0100a8c0@", "OUTLOOK_ID_WITHOUT_OUTLOOK"),
        ("Subject: Hello there", "Subject: Hello\r\nX-MSMail-Priority: High", "PRIORITY_WITHOUT_OUTLOOK"),
        ("Subject: Hello there", "Subject: Hello\r\nX-Priority: 1 (Highest)", "URGENT"),
        ("25 Nov 2026", "28 Nov 2026", "DATE_IN_FUTURE"),
        ("25 Nov 2026", "11 Nov 2026", "DATE_IN_PAST"),
        ("Message-ID: <1@sender.example>\r\n", "", "MISSING_MESSAGE_ID"),
        ("<1@sender.example>", "<12345>", "BROKEN_MESSAGE_ID"),
        ("From: A <a@sender.example>\r\n", "", "MISSING_FROM"),
        ("From: A <", "From: \"pay@bank.test\" <", "FROM_NAME_HAS_OTHER_ADDRESS"),
        ("a@sender.example>\r\nTo", "a@xn--ypal-43d9g.com>\r\nTo", "FROM_DOMAIN_MIXES_SCRIPTS"),
        ("<a@sender", "<kim20481@sender", "FROM_DIGITS"),
        ("To: b@ours.example", "To: undisclosed-recipients:;", "NO_RECIPIENT_FIELD"),
        ("To: b@ours.example", "To: a@sender.example", "TO_IS_FROM"),
        ("Subject: Hello there", "Subject: ", "SUBJECT_MISSING"),
        ("Hello there", "MAKE MONEY FAST", "SUBJECT_ALL_CAPITALS"),
        ("Hello there", "Win now!!!", "SUBJECT_SHOUTS"),
        ("Hello there", "Hello          xk3f9", "SUBJECT_TRAILING_CODE"),
        ("Hello there", "He\u{200b}llo", "INVISIBLE_CHARACTERS"),
        ("Hello there", "Re: Hello", "FORGED_REPLY"),
        ("Hello there", "こんにちは", "RAW_BYTES_IN_HEADER"),
        ("Subject: Hello there", "Subject: Hello\r\nX-Mailer: Microsoft Outlook Express 6.00.2600.0000", "FORGED_OUTLOOK"),
        ("Received: from a by b; x\r\n", "", "NO_RECEIVED"),
    ];
    for (old, new, sign) in table {
        let found = with_header(old, new);
        assert!(found.contains(sign), "{sign}: {found:?}");
    }
    let fine: &[(&str, &str)] = &[
        ("25 Nov 2026 12", "25 Nov 2026 20"),
        ("25 Nov 2026", "23 Nov 2026"),
        ("From: A <", "From: \"a@sender.example\" <"),
        ("a@sender.example>\r\nTo", "a@xn--wgv71a119e.jp>\r\nTo"),
        ("+0900", "GMT"),
        ("+0900", "+1300"),
        ("+0900", "+0900 (JST)"),
        ("Subject: Hello there", "Subject: Hello\r\nX-Priority: 3"),
        ("Hello there", "RFC 5321"),
        ("Hello there", "Really!"),
        ("Subject: Hello there", "In-Reply-To: <0@ours.example>\r\nSubject: Re: Hello"),
        ("Subject: Hello there", "X-MimeOLE: Produced By Microsoft MimeOLE\r\nX-Mailer: Microsoft Outlook Express 6.00\r\nSubject: Hello"),
    ];
    for (old, new) in fine {
        assert_eq!(with_header(old, new), Vec::<&str>::new(), "{new}");
    }
}

#[test]
fn a_bare_message_of_a_script_is_no_spam_for_that() {
    let judgement = judge(&message("", vec![text("text/plain", "backup of db1 finished: 12 files, 0 errors\r\n")]), &envelope());
    assert!(judgement.signs.len() >= 6 && judgement.milli < REQUIRED_MILLI, "{judgement:?}");
}

#[test]
fn each_envelope_sign_is_met() {
    let letter = message(HEADER, vec![text("text/plain", LETTER)]);
    let greet = |helo: &str, address: IpAddr, known: bool| {
        let mut envelope = envelope();
        (envelope.client.helo, envelope.client.address, envelope.client.address_known) = (helo.into(), address, known);
        names(&letter, &envelope)
    };
    let public: IpAddr = [8, 8, 8, 8].into();
    let table: &[(&str, IpAddr, bool, &[&str])] = &[
        ("ours.example", public, true, &["HELO_IS_OURS"]),
        ("8.8.8.8", public, true, &["HELO_IS_BARE_ADDRESS"]),
        ("[9.9.9.9]", public, true, &["HELO_OTHER_ADDRESS"]),
        ("[8.8.8.8]", public, true, &[]),
        ("[IPv6:2606:4700::1]", "2606:4700::1".parse().unwrap(), true, &[]),
        ("friend", public, true, &["HELO_NOT_QUALIFIED"]),
        ("ours.example", [10, 0, 0, 1].into(), true, &[]),
        ("ours.example", public, false, &[]),
    ];
    for (helo, address, known, expected) in table {
        assert_eq!(greet(helo, *address, *known), *expected, "{helo}");
    }
    let mut to_itself = envelope();
    to_itself.sender = Some(address("b@ours.example"));
    assert_eq!(names(&letter, &to_itself), ["SENDER_IS_RECIPIENT"]);
    let from_us = message(&HEADER.replace("a@sender", "c@ours"), vec![text("text/plain", LETTER)]);
    assert_eq!(names(&from_us, &envelope()), ["FROM_IS_OUR_DOMAIN"]);
    let mut many = envelope();
    many.recipients = (0..30).map(|i| Recipient { address: address(&format!("{i}@ours.example")), tenant: "t/t".into() }).collect();
    assert_eq!(names(&letter, &many), ["MANY_RECIPIENTS"]);
}

#[test]
fn each_body_sign_is_met() {
    let page = |body: &str| vec![text("text/plain", LETTER), text("text/html", format!("<p>{LETTER}</p>{body}"))];
    let mut bad_charset = text("text/plain", LETTER);
    bad_charset.charset = Some("default_charset".into());
    let mut no_charset = text("text/html", LETTER);
    no_charset.charset = None;
    let mut named = text("application/octet-stream", "x");
    named.file_name = Some("請求書.pdf.js".into());
    let mut broken = text("text/plain", LETTER);
    broken.encoding_broken = true;
    let hidden = "word ".repeat(100);
    let table: Vec<(&str, Vec<Part>)> = vec![
        ("HTML_ONLY", vec![text("text/html", format!("<p>{LETTER}"))]),
        ("EMPTY_ALTERNATIVE", vec![text("text/plain", "\r\n"), text("text/html", format!("<p>{LETTER}{LETTER}"))]),
        (
            "ALTERNATIVES_DIFFER",
            vec![
                text("text/plain", format!("{LETTER}The quick brown fox jumps over a lazy dog, packs my box with five dozen jugs")),
                text(
                    "text/html",
                    "6 + 7 = 13; 平素より格別のご高配を賜り、厚く御礼申し上げます。このたび弊社では下記のとおり新しいサービスを開始いたしましたのでご案内申し上げます。ぜひ一度お試しくださいますようお願いいたします。",
                ),
            ],
        ),
        ("HTML_HIDDEN_TEXT", page(&format!("<span style='display:none'>{hidden}</span>"))),
        ("HTML_SPLIT_WORDS", page("via<!-- a -->gra mort<!-- b -->gage lo<!-- c -->an")),
        ("HTML_FORM", page("<form action=x>")),
        ("HTML_SCRIPT", page("<script>x</script>")),
        ("HTML_BIG_COLOURED", page("<font size=7 color=red>WOW</font>")),
        ("URL_BARE_ADDRESS", page("<a href='http://10.2.3.4/x'>here</a>")),
        ("URL_WITH_USER", vec![text("text/plain", format!("{LETTER}http://www.bank.test@evil.example/"))]),
        ("LINK_SHOWS_OTHER_HOST", page("<a href='http://evil.example/'>http://bank.test/</a>")),
        ("URL_ONLY", vec![text("text/plain", "look: http://a.example/some/long/path/to/a/page\r\n")]),
        ("IMAGE_ONLY", vec![text("text/html", "<img src='http://a.example/x.png'>")]),
        ("BODY_CAPITALS", vec![text("text/plain", LETTER.to_uppercase().repeat(3))]),
        ("BODY_INVISIBLE_CHARACTERS", vec![text("text/plain", LETTER.replace('e', "\u{200b}e").repeat(2))]),
        ("BODY_SHOUTS", vec![text("text/plain", "Buy now! Cheap! Fast! Today! Only here! Great!")]),
        ("EMPTY_MESSAGE", vec![text("text/plain", "\r\n")]),
        ("UNKNOWN_CHARSET", vec![bad_charset]),
        ("HTML_WITHOUT_CHARSET", vec![no_charset]),
        ("DOUBLE_EXTENSION", vec![text("text/plain", LETTER), named.clone()]),
        ("RUNNABLE_ATTACHMENT", vec![text("text/plain", LETTER), named]),
        ("BROKEN_ENCODING", vec![broken]),
    ];
    for (sign, parts) in table {
        let found = with_parts(parts);
        assert!(found.contains(&sign), "{sign}: {found:?}");
    }
    let base64 = HEADER.to_owned() + "Content-Transfer-Encoding: base64\r\n";
    assert_eq!(names(&message(&base64, vec![text("text/plain", LETTER)]), &envelope()), ["ENCODED_ASCII_TEXT"]);
    let mut defects = message(HEADER, vec![text("text/plain", LETTER)]);
    defects.defects = vec![
        crate::message::Defect::BrokenHeader,
        crate::message::Defect::NulByte,
        crate::message::Defect::BoundaryMissing,
        crate::message::Defect::TooManyParts,
    ];
    assert_eq!(names(&defects, &envelope()), ["BROKEN_HEADER", "NUL_BYTE", "BOUNDARY_MISSING", "TOO_MANY_PARTS"]);
}

#[test]
fn japanese_mail_has_no_signs() {
    let sentence = "いつもお世話になっております。株式会社見本の山田です。先日お送りいただいた資料の件、確認いたしました。来週火曜日の午前十時にお伺いいたします！よろしくお願いいたします！\r\n";
    let (jis, _, _) = encoding_rs::ISO_2022_JP.encode(sentence);
    for (charset, content) in [
        (Some("iso-2022-jp"), jis.to_vec()),
        (None, jis.to_vec()),
        (Some("shift_jis"), encoding_rs::SHIFT_JIS.encode(sentence).0.into_owned()),
        (Some("euc-jp"), encoding_rs::EUC_JP.encode(sentence).0.into_owned()),
        (Some("utf-8"), sentence.as_bytes().to_vec()),
        (Some("cp932"), encoding_rs::SHIFT_JIS.encode(sentence).0.into_owned()),
        (Some("iso-2022-jp-ms"), jis.to_vec()),
    ] {
        // The subject as encoded words that split in the middle of the text, and what the parser makes of it.
        let header = HEADER
            .replace("Hello there", "=?ISO-2022-JP?B?GyRCJCpAJE9DJEskSiRDJEYbKEI=?= =?ISO-2022-JP?B?GyRCJCokaiReJDkbKEI=?=")
            .replace("From: A", "From: =?ISO-2022-JP?B?GyRCOzNFRBsoQg==?=")
            + "Content-Transfer-Encoding: base64\r\n";
        let mut part = text("text/plain", content);
        part.charset = charset.map(str::to_owned);
        let mut message = message(&header, vec![part]);
        message.subject = Some("お世話になっております".into());
        message.from[0].name = Some("山田".into());
        assert_eq!(names(&message, &envelope()), Vec::<&str>::new(), "{charset:?}");
    }
    // Other scripts without capitals or spaces.
    for sentence in [
        "שלום רב, תודה על הדוח. ניפגש ביום שלישי בשעה עשר כפי שסוכם",
        "Уважаемый коллега, спасибо за отчёт. Встречаемся во вторник",
        "สวัสดีครับ ขอบคุณสำหรับรายงาน เราจะพบกันวันอังคาร",
        "نامه‌ای که فرستادید رسید، سپاس‌گزارم",
    ] {
        let mut message = message(HEADER, vec![text("text/plain", sentence), text("text/html", format!("<html dir=rtl><p>{sentence}</p></html>"))]);
        message.subject = Some(sentence.into());
        assert_eq!(names(&message, &envelope()), Vec::<&str>::new(), "{sentence}");
    }
}

#[test]
fn gtube_is_certain_in_one_piece_only() {
    let of = |parts: Vec<Part>| judge(&message(HEADER, parts), &envelope()).certain;
    let wide: Vec<u8> = format!("x\r\n{GTUBE}\r\n").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut wide = text("text/plain", wide);
    wide.charset = Some("utf-16le".into());
    let (first, second) = GTUBE.split_at(30);
    assert!(of(vec![text("text/plain", format!("Hello\r\n{GTUBE}\r\n"))]));
    assert!(of(vec![text("text/plain", LETTER), text("text/html", format!("<p>{GTUBE}</p>"))]));
    assert!(of(vec![wide]));
    assert!(!of(vec![text("text/plain", format!("{first}\r\n{second}"))]));
    assert!(!of(vec![text("text/plain", format!("{first}=\r\n{second}"))]));
    assert!(!of(vec![text("text/plain", GTUBE.to_lowercase())]));
    assert!(!of(vec![]), "and not in the header: {GTUBE}");

    // Encoded: the parts are decoded, the raw body has no such string.
    let mut encoded = message(HEADER, vec![text("text/plain", GTUBE)]);
    encoded.raw = Bytes::from(format!("{HEADER}\r\nWEpTKkM0SkRCUUFETjE="));
    let judgement = judge(&encoded, &envelope());
    assert_eq!((judgement.certain, judgement.milli), (true, GTUBE_MILLI));
    // In a broken MIME that has no parts, the raw body is looked at.
    let mut broken = message(HEADER, vec![]);
    broken.raw = Bytes::from(format!("{HEADER}\r\n--x\r\n{GTUBE}\r\n"));
    assert!(judge(&broken, &envelope()).certain);
}

proptest::proptest! {
    #[test]
    fn no_text_panics(header in "[ -~\u{80}-\u{3000}]{0,80}", body in "\\PC{0,300}", tags in proptest::collection::vec("(<[a-z/!-]{0,5}( (href|style|size)=[\"']?(http://|display:none|5)?[^>]{0,10})?>?|&#?x?[0-9a-z]{0,9};?|\\PC{0,5})", 0..20)) {
        let mut message = message(HEADER, vec![text("text/plain", &body), text("text/html", tags.concat())]);
        message.subject = Some(header.clone());
        message.from[0].name = Some(header.clone());
        message.from[0].domain = header;
        judge(&message, &envelope());
    }
}
