//! The fields that the gateway adds, and the forged ones that it takes away: one list of edits for each tenant's copy, everything else byte for byte.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::ops::Range;

use sekimori_crds::vocabulary::{EngineMode, VerdictHeader};

use super::edit::{EditError, Edits, EditsBuilder};
use super::{Message, subject};
use crate::date::rfc5322;
use crate::envelope::Envelope;
use crate::smtp::Address;
use crate::verdict::{Failure, Finding, Opinion, Verdict, printable};

/// The field that tells the verdict.
pub const VERDICT_FIELD: &str = "X-Sekimori-Verdict";
/// The field for rules of mail clients.
pub const SPAM_STATUS_FIELD: &str = "X-Spam-Status";
/// Fields that only we may write; names begin with this.
const OWN_PREFIX: &str = "X-Sekimori-";
/// Characters of a foreign word (a HELO name, an address) that are repeated.
const WORD_CHARS_MAX: usize = 255;

/// What the trace of one copy is made of.
#[derive(Clone, Debug)]
pub struct Trace<'a> {
    /// Our name: `by` in Received.
    pub hostname: &'a str,
    /// The envelope.
    pub envelope: &'a Envelope,
    /// The recipient, if the copy is for one only: `for` in Received.
    pub recipient: Option<&'a Address>,
    /// The whole `Authentication-Results` field with its last CRLF; empty: none.
    pub authentication_results: String,
    /// Whole fields to take away besides those that are ours by name (forged `Authentication-Results`).
    pub forged: Vec<Range<usize>>,
    /// The verdict.
    pub verdict: &'a Verdict,
    /// What the engines said; shadow engines are left out.
    pub opinions: &'a [Opinion],
    /// How much of it is told.
    pub verdict_header: VerdictHeader,
    /// `X-Spam-Status: Yes`.
    pub spam: bool,
    /// Put before the subject.
    pub subject_tag: Option<&'a str>,
}

/// All edits of one copy: at the top `Received`, `Authentication-Results`, `X-Sekimori-Verdict` and `X-Spam-Status`; inbound fields of the last two kinds
/// and the forged ones removed; the subject tagged.
pub fn trace_edits(message: &Message, trace: &Trace<'_>) -> Result<Edits, EditError> {
    let mut head = received_field(trace.hostname, trace.envelope, trace.recipient);
    head.push_str(&trace.authentication_results);
    head.push_str(&verdict_field(trace.verdict, trace.opinions, trace.verdict_header).unwrap_or_default());
    write!(head, "{SPAM_STATUS_FIELD}: {}\r\n", if trace.spam { "Yes" } else { "No" }).ok();
    let mut builder = EditsBuilder::new(message.raw.len());
    match trace.subject_tag.and_then(|tag| subject::tag_edit(message, tag)) {
        // A new Subject field stands with ours.
        Some(edit) if edit.at == (0..0) => head.push_str(&String::from_utf8_lossy(&edit.with)),
        Some(edit) => {
            builder.push(edit);
        }
        None => {}
    }
    if message.raw.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
        // It would continue the last field of ours.
        head.push_str("X-Sekimori-Defect: the message began with a continuation line\r\n");
    }
    builder.insert(0, head);
    // By their beginnings, so that a field which two reasons take away goes once.
    let mut removed: BTreeMap<usize, usize> = own_fields(message).map(|whole| (whole.start, whole.end)).collect();
    removed.extend(trace.forged.iter().map(|whole| (whole.start, whole.end)));
    for whole in joined(removed) {
        builder.remove(whole);
    }
    builder.build()
}

/// Ranges of which one begins where the other ends become one: whole fields, between which nothing is put.
fn joined(fields: BTreeMap<usize, usize>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = vec![];
    for (start, end) in fields {
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// Inbound fields that only we may write, with their continuation lines.
pub fn own_fields(message: &Message) -> impl Iterator<Item = Range<usize>> + '_ {
    let ours = |name: &[u8]| {
        let prefix = name.get(..OWN_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(OWN_PREFIX.as_bytes()));
        prefix || name.eq_ignore_ascii_case(SPAM_STATUS_FIELD.as_bytes())
    };
    message.headers.iter().filter(move |field| message.raw.get(field.name.clone()).is_some_and(ours)).map(|field| field.whole.clone())
}

/// The `Received` field (RFC 5321 section 4.4, RFC 6531 section 4.3) with its last CRLF. What came from outside cannot leave its place.
pub fn received_field(hostname: &str, envelope: &Envelope, recipient: Option<&Address>) -> String {
    let client = &envelope.client;
    let helo = host_word(&client.helo);
    let address = match client.address.to_canonical() {
        IpAddr::V4(address) => format!("[{address}]"),
        IpAddr::V6(address) => format!("[IPv6:{address}]"),
    };
    let protocol = match (envelope.smtputf8, client.esmtp, client.tls.is_some()) {
        (true, _, true) => "UTF8SMTPS",
        (true, _, false) => "UTF8SMTP",
        (false, true, true) => "ESMTPS",
        (false, true, false) => "ESMTP",
        (false, false, _) => "SMTP",
    };
    let mut field = format!("Received: from {helo} ({address})\r\n\tby {} with {protocol}", host_word(hostname));
    if let Some(tls) = &client.tls {
        write!(field, " ({})", comment(tls)).ok();
    }
    write!(field, "\r\n\tid {}", envelope.id).ok();
    if let Some(recipient) = recipient.map(ToString::to_string).filter(|address| is_safe_address(address, envelope.smtputf8)) {
        write!(field, " for <{recipient}>").ok();
    }
    write!(field, ";\r\n\t{}\r\n", rfc5322(envelope.received_ms)).ok();
    field
}

/// The `X-Sekimori-Verdict` field with its last CRLF; none when there is nothing to say in this form.
///
/// `key=value` items, separated by `;`; a value with a space stands in quotes, and no value holds a quote, a semicolon or a backslash. In order: `action`;
/// `anti-virus` and `anti-spam` (what each class came to); with Full `decibans`, `reason`, and for each engine an item `engine=NAME version=V opinion=O
/// ms=N`; `unscanned=CLASS[,CLASS]`; `encrypted=yes`. With Disabled only the last two, and no field without them.
pub fn verdict_field(verdict: &Verdict, opinions: &[Opinion], form: VerdictHeader) -> Option<String> {
    let mut items: Vec<String> = vec![];
    if form != VerdictHeader::Disabled {
        items.push(format!("action={}", verdict.action));
        items.push(item("anti-virus", &verdict.anti_virus.to_string()));
        items.push(item("anti-spam", &verdict.anti_spam.to_string()));
    }
    if form == VerdictHeader::Full {
        items.extend(verdict.decibans.map(|decibans| format!("decibans={decibans}")));
        items.extend(verdict.reasons.first().map(|reason| item("reason", &reason.cause.to_string())));
        let mut counted: Vec<&Opinion> = opinions.iter().filter(|opinion| opinion.mode == EngineMode::Enforce).collect();
        counted.sort_by(|a, b| (a.class, &a.engine).cmp(&(b.class, &b.engine)));
        items.extend(counted.into_iter().map(|opinion| {
            let (engine, version) = (item("engine", &opinion.engine), item("version", &opinion.version));
            format!("{engine} {version} {} ms={}", item("opinion", &said(&opinion.finding)), opinion.millis)
        }));
    }
    if !verdict.unscanned.is_empty() {
        let classes: Vec<&str> = verdict.unscanned.iter().map(|class| class.as_str()).collect();
        items.push(format!("unscanned={}", classes.join(",")));
    }
    if verdict.encrypted {
        items.push("encrypted=yes".into());
    }
    (!items.is_empty()).then(|| format!("{VERDICT_FIELD}: {}\r\n", folded(&items)))
}

/// Items on lines of at most 78 bytes where that is possible.
fn folded(items: &[String]) -> String {
    const LINE_SHOULD: usize = 78;
    let mut out = String::new();
    let mut column = VERDICT_FIELD.len() + 2;
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            let fits = column + item.len() + 3 <= LINE_SHOULD;
            out.push_str(if fits { "; " } else { ";\r\n\t" });
            column = if fits { column + 2 } else { 8 };
        }
        out.push_str(item);
        column += item.len();
    }
    out
}

fn item(key: &str, value: &str) -> String {
    let value = printable(value);
    let bare = !value.is_empty() && !value.contains([' ', '=', ',']);
    if bare { format!("{key}={value}") } else { format!("{key}=\"{value}\"") }
}

/// An opinion for strangers: what failed inside is not for the recipients of a mail.
fn said(finding: &Finding) -> String {
    match finding {
        Finding::Failed(why) => {
            let word = match why {
                Failure::Timeout => "timeout",
                Failure::BreakerOpen => "breaker",
                Failure::Busy => "busy",
                Failure::Unreachable(_) => "unreachable",
                Failure::Protocol(_) => "protocol",
            };
            format!("failed({word})")
        }
        other => other.to_string(),
    }
}

/// A host name or address literal as the other side gave it; anything that is neither loses the characters that could mean something here.
fn host_word(name: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let word: String = name.chars().take(WORD_CHARS_MAX).map(|c| if legal(c) { c } else { '?' }).collect();
    if word.is_empty() { "unknown".into() } else { word }
}

/// The inside of a comment.
fn comment(text: &str) -> String {
    text.chars().take(WORD_CHARS_MAX).map(|c| if (c.is_ascii_graphic() && !matches!(c, '(' | ')' | '\\')) || c == ' ' { c } else { '?' }).collect()
}

/// Whether an address can stand in `for <...>`. One that cannot is left out: half an address would be a wrong one.
fn is_safe_address(address: &str, utf8: bool) -> bool {
    let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>' | '(' | ')' | ';') || utf8 && !c.is_ascii() && !c.is_control();
    address.len() <= WORD_CHARS_MAX + 66 && address.chars().all(legal)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use expect_test::expect;
    use proptest::prelude::*;
    use sekimori_crds::vocabulary::{Action, EngineClass};

    use super::*;
    use crate::envelope::Client;
    use crate::message::{Limits, parse};
    use crate::queue_id::QueueId;
    use crate::verdict::{AntiSpam, AntiVirus, Cause, Reason, SpamScore, Unscannable};

    fn envelope() -> Envelope {
        Envelope {
            id: QueueId::new(1_795_594_103_000, 7),
            received_ms: 1_795_594_103_000,
            client: Client { address: IpAddr::from([192, 0, 2, 1]), helo: "mail.sender.example".into(), esmtp: true, tls: None, address_known: true },
            sender: None,
            recipients: vec![],
            eight_bit: false,
            smtputf8: false,
        }
    }

    fn opinion(engine: &str, class: EngineClass, version: &str, finding: Finding) -> Opinion {
        Opinion {
            engine: engine.into(),
            family: engine.into(),
            class,
            version: version.into(),
            mode: EngineMode::Enforce,
            weight_percent: 100,
            millis: 12,
            finding,
            evidence: vec![],
        }
    }

    fn verdict() -> Verdict {
        Verdict {
            action: Action::Tag,
            reply: None,
            anti_virus: AntiVirus::Clean,
            anti_spam: AntiSpam::Spam,
            decibans: Some(14),
            unscanned: vec![],
            encrypted: false,
            reasons: vec![Reason { action: Action::Tag, cause: Cause::Spam { score: 14 } }],
            opinions: vec![],
        }
    }

    fn opinions() -> Vec<Opinion> {
        let score = SpamScore { milli: 7800, required_milli: 6000, reject_milli: 15_000, certain: false };
        let mut shadow = opinion("candidate", EngineClass::AntiVirus, "2", Finding::Infected("X".into()));
        shadow.mode = EngineMode::Shadow;
        vec![
            opinion("rspamd", EngineClass::AntiSpam, "3.8.4", Finding::Spam(score)),
            shadow,
            opinion("clamav", EngineClass::AntiVirus, "1.4.3 / 27500", Finding::Clean),
            opinion("other", EngineClass::AntiVirus, "?", Finding::Failed(Failure::Unreachable("10.0.0.9:3310: connection refused".into()))),
        ]
    }

    #[test]
    fn received() {
        let mut envelope = envelope();
        expect![[r#"
            Received: from mail.sender.example ([192.0.2.1])
            	by mx.example.net with ESMTP
            	id 01M88VZA6R0000000000000007;
            	Wed, 25 Nov 2026 08:08:23 +0000
        "#]]
        .assert_eq(&received_field("mx.example.net", &envelope, None).replace('\r', ""));
        envelope.client.tls = Some("TLSv1.3 TLS13_AES_256_GCM_SHA384".into());
        envelope.client.address = "2001:db8::1".parse().expect("an address");
        let recipient = Address { local: "ann".into(), domain: "example.com".into() };
        expect![[r#"
            Received: from mail.sender.example ([IPv6:2001:db8::1])
            	by mx.example.net with ESMTPS (TLSv1.3 TLS13_AES_256_GCM_SHA384)
            	id 01M88VZA6R0000000000000007 for <ann@example.com>;
            	Wed, 25 Nov 2026 08:08:23 +0000
        "#]]
        .assert_eq(&received_field("mx.example.net", &envelope, Some(&recipient)).replace('\r', ""));
        for (utf8, esmtp, tls, word) in [
            (true, true, true, "with UTF8SMTPS ("),
            (true, true, false, "with UTF8SMTP\r\n"),
            (false, false, false, "with SMTP\r\n"),
            (false, true, false, "with ESMTP\r\n"),
        ] {
            (envelope.smtputf8, envelope.client.esmtp) = (utf8, esmtp);
            envelope.client.tls = tls.then(|| "TLSv1.2 X".into());
            let field = received_field("mx.example.net", &envelope, None);
            assert!(field.contains(word), "{field}");
        }
        envelope.client.address = "::ffff:192.0.2.9".parse().expect("an address");
        assert!(received_field("h", &envelope, None).contains("([192.0.2.9])"));
    }

    #[test]
    fn nothing_from_outside_leaves_its_place() {
        let mut envelope = envelope();
        envelope.client.helo = "a\r\nX-Injected: yes (x) by evil; \u{202e}".into();
        envelope.client.tls = Some("TLS) by evil (\r\n".into());
        let field = received_field("h", &envelope, Some(&Address { local: "a>; by evil".into(), domain: "b".into() }));
        assert!(
            field.starts_with("Received: from a??X-Injected:?yes??x??by?evil??? ([192.0.2.1])\r\n\tby h with ESMTPS (TLS? by evil ???)\r\n"),
            "{field}"
        );
        assert_eq!(field.matches("\r\n").count(), 4);
        assert!(!field.contains("for <"), "{field}");
        let unicode = Address { local: "あ".into(), domain: "b".into() };
        assert!(!received_field("h", &envelope, Some(&unicode)).contains("for <"));
        envelope.smtputf8 = true;
        assert!(received_field("h", &envelope, Some(&unicode)).contains("for <あ@b>"));
        envelope.client.helo = String::new();
        assert!(received_field("h", &envelope, None).starts_with("Received: from unknown ("));
        envelope.client.helo = "x".repeat(10_000);
        assert!(received_field("h", &envelope, None).len() < 500);
    }

    #[test]
    fn dates() {
        for (ms, text) in [
            (0, "Thu, 1 Jan 1970 00:00:00 +0000"),
            (951_782_399_999, "Mon, 28 Feb 2000 23:59:59 +0000"),
            (951_782_400_000, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (951_868_800_000, "Wed, 1 Mar 2000 00:00:00 +0000"),
            (1_795_594_103_000, "Wed, 25 Nov 2026 08:08:23 +0000"),
            (1_798_761_599_000, "Thu, 31 Dec 2026 23:59:59 +0000"),
            (4_107_542_400_000, "Mon, 1 Mar 2100 00:00:00 +0000"),
        ] {
            assert_eq!(rfc5322(ms), text);
        }
        assert!(rfc5322(u64::MAX).ends_with("+0000"));
    }

    #[test]
    fn the_verdict_in_three_forms() {
        let field = |verdict: &Verdict, form| verdict_field(verdict, &opinions(), form).unwrap_or_default().replace('\r', "");
        expect![[r#"
            X-Sekimori-Verdict: action=Tag; anti-virus=clean; anti-spam=spam; decibans=14;
            	reason="spam score 14";
            	engine=clamav version="1.4.3 / 27500" opinion=clean ms=12;
            	engine=other version=? opinion=failed(unreachable) ms=12;
            	engine=rspamd version=3.8.4 opinion=score(7.8/6) ms=12
        "#]]
        .assert_eq(&field(&verdict(), VerdictHeader::Full));
        assert_eq!(field(&verdict(), VerdictHeader::Summary), "X-Sekimori-Verdict: action=Tag; anti-virus=clean; anti-spam=spam\n");
        assert_eq!(field(&verdict(), VerdictHeader::Disabled), "");
        let mut marked = verdict();
        marked.unscanned = vec![EngineClass::AntiVirus, EngineClass::AntiSpam];
        assert_eq!(field(&marked, VerdictHeader::Disabled), "X-Sekimori-Verdict: unscanned=AntiVirus,AntiSpam\n");
        marked.encrypted = true;
        marked.unscanned = vec![EngineClass::AntiSpam];
        marked.anti_virus = AntiVirus::Unscannable(Unscannable::TooLarge);
        assert_eq!(field(&marked, VerdictHeader::Disabled), "X-Sekimori-Verdict: unscanned=AntiSpam; encrypted=yes\n");
        for form in [VerdictHeader::Summary, VerdictHeader::Full] {
            let field = field(&marked, form);
            assert!(field.contains("anti-virus=\"unscannable(too large)\"") && field.ends_with("unscanned=AntiSpam; encrypted=yes\n"), "{field}");
        }
    }

    #[test]
    fn engines_cannot_write_fields() {
        let evil = "x\r\nX-Injected: 1; action=Deliver \"\u{e9}";
        let opinions = vec![opinion(evil, EngineClass::AntiVirus, evil, Finding::Infected(evil.into()))];
        let mut verdict = verdict();
        verdict.anti_virus = AntiVirus::Infected(evil.into());
        verdict.reasons = vec![Reason { action: Action::Reject, cause: Cause::Infected { engine: Arc::from(evil), name: evil.into() } }];
        let field = verdict_field(&verdict, &opinions, VerdictHeader::Full).expect("a field");
        assert!(field.is_ascii() && !field.contains("\nX-Injected"), "{field}");
        assert!(field.split("\r\n").filter(|line| !line.is_empty()).skip(1).all(|line| line.starts_with('\t')), "{field}");
        assert_eq!(field.matches("action=").count() - field.matches("? action=").count(), 1, "{field}");
    }

    fn trace<'a>(envelope: &'a Envelope, verdict: &'a Verdict) -> Trace<'a> {
        Trace {
            hostname: "mx.example.net",
            envelope,
            recipient: None,
            authentication_results: "Authentication-Results: mx.example.net; none\r\n".into(),
            forged: vec![],
            verdict,
            opinions: &[],
            verdict_header: VerdictHeader::Summary,
            spam: true,
            subject_tag: Some("[SPAM] "),
        }
    }

    #[test]
    fn one_list_of_edits() {
        let raw = "X-Sekimori-Verdict: action=Deliver;\r\n forged=yes\r\nReceived: old\r\nAuthentication-Results: mx.example.net; dkim=pass\r\n\
                   x-spam-status : No\r\nFrom: a@b\r\nFr om: x\r\nSubject: hello\r\nx-sekimori-other: 1\r\nX-Sekimori: stays\r\n\r\nX-Spam-Status: in the body\r\n";
        let message = parse(Bytes::from(raw), &Limits::default());
        let (envelope, verdict) = (envelope(), verdict());
        let forged: Vec<Range<usize>> = message.fields("Authentication-Results").map(|field| field.whole.clone()).collect();
        // One of them twice, as two reasons may take the same field away.
        let own = own_fields(&message).next().expect("one");
        let trace = Trace { forged: [forged, vec![own]].concat(), ..trace(&envelope, &verdict) };
        let edits = trace_edits(&message, &trace).expect("they fit");
        let out = String::from_utf8(edits.apply(&message.raw).concat()).expect("text");
        expect![[r#"
            Received: from mail.sender.example ([192.0.2.1])
            	by mx.example.net with ESMTP
            	id 01M88VZA6R0000000000000007;
            	Wed, 25 Nov 2026 08:08:23 +0000
            Authentication-Results: mx.example.net; none
            X-Sekimori-Verdict: action=Tag; anti-virus=clean; anti-spam=spam
            X-Spam-Status: Yes
            Received: old
            From: a@b
            Fr om: x
            Subject: [SPAM] hello
            X-Sekimori: stays

            X-Spam-Status: in the body
        "#]]
        .assert_eq(&out.replace('\r', ""));
        assert_eq!(out.len(), edits.len_after(raw.len()));
    }

    #[test]
    fn a_message_that_begins_with_a_continuation_line_continues_nothing_of_ours() {
        let message = parse(Bytes::from_static(b" evil\r\nFrom: a@b\r\n\r\nx"), &Limits::default());
        let (envelope, verdict) = (envelope(), verdict());
        let out = trace_edits(&message, &trace(&envelope, &verdict)).expect("they fit").apply(&message.raw).concat();
        let text = String::from_utf8(out).expect("text");
        assert!(
            text.contains("X-Spam-Status: Yes\r\nSubject: [SPAM]\r\nX-Sekimori-Defect: the message began with a continuation line\r\n evil\r\n"),
            "{text}"
        );
    }

    #[test]
    fn a_wrong_span_means_no_edits() {
        let message = parse(Bytes::from_static(b"From: a@b\r\n\r\nx"), &Limits::default());
        let (envelope, verdict) = (envelope(), verdict());
        for forged in [[0..5, 3..9], [0..1000, 2000..2001]] {
            let forged = forged.to_vec();
            trace_edits(&message, &Trace { forged, ..trace(&envelope, &verdict) }).expect_err("it does not fit");
        }
    }

    proptest! {
        /// Whatever arrives leaves byte for byte, but for the head that we add and the fields that are ours.
        #[test]
        fn the_rest_is_byte_for_byte(pieces in proptest::collection::vec(0..PIECES.len(), 0..30)) {
            let raw: Vec<u8> = pieces.iter().flat_map(|piece| PIECES[*piece].iter().copied()).collect();
            let message = parse(Bytes::from(raw.clone()), &Limits::default());
            let (envelope, verdict) = (envelope(), verdict());
            let edits = trace_edits(&message, &Trace { subject_tag: None, ..trace(&envelope, &verdict) }).expect("they fit");
            let out = edits.apply(&message.raw).concat();
            let mut rest = raw.clone();
            for whole in own_fields(&message).collect::<Vec<_>>().into_iter().rev() {
                rest.drain(whole);
            }
            prop_assert!(out.ends_with(&rest));
            let head = parse(Bytes::from(out[..out.len() - rest.len()].to_vec()), &Limits::default());
            let fields = if matches!(raw.first(), Some(b' ')) { 5 } else { 4 };
            prop_assert_eq!(head.headers.len(), fields);
            // None of theirs are left in the rest, and the rest does not continue ours.
            let after = parse(Bytes::from(out), &Limits::default());
            prop_assert_eq!(own_fields(&after).count(), fields - 2);
            let status: Vec<_> = after.fields(SPAM_STATUS_FIELD).map(|field| after.text(&field.value).into_owned()).collect();
            prop_assert_eq!(status, [" Yes"]);
        }
    }

    const PIECES: &[&[u8]] = &[
        b"From: a@b\r\n",
        b"X-Spam-Status: No\r\n",
        b"X-Sekimori-Verdict: action=Deliver\r\n",
        b"x-sEkimori-x :y\r\n z\r\n",
        b" folded\r\n",
        b"broken\r\n",
        b"\r\n",
        b"Subject: =?ISO-2022-JP?B?GyRCJD8bKEI=?=\r\n",
        b"body \xff\0\r\n",
        b"Subject: \x83\x58",
    ];
}
