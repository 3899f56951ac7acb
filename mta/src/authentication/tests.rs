//! What DKIM refuses before any cryptography, and the Authentication-Results field.

use bytes::Bytes;
use proptest::prelude::*;

use super::dkim::{Candidate, screen, screen_key};
use super::*;
use crate::envelope::{Client, Envelope};
use crate::message::{HeaderField, Message};
use crate::queue_id::QueueId;
use crate::smtp::Address;

const RSA_512: &str =
    "MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAL6E5SwppW5zm3Y0mLi3hD3LslsSmMxh5wmh8k9CNutM6KHlVbPE2D5P2lxrKzxiRPSm43tMsSpw6D86MmNxFqECAwEAAQ==";
const RSA_1024: &str = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDF/XE6nSR6u26+PGvbAwzq/MwzA8G9k5S8j3EzdPJRHKiz7ouHL05N42saHa5c3Cd7uIwlyZ8smYq2f9945rMSpQyK7kqFa5iIv39k9v29I2VHYJExsHm1xJJhrYwO0idJHD70A/OaXh3A9CyN/kvXRHvbir2UD/+n3QLVP3HuHQIDAQAB";
const RSA_1024_PKCS1: &str = "MIGJAoGBAMX9cTqdJHq7br48a9sDDOr8zDMDwb2TlLyPcTN08lEcqLPui4cvTk3jaxodrlzcJ3u4jCXJnyyZirZ/33jmsxKlDIruSoVrmIi/f2T2/b0jZUdgkTGwebXEkmGtjA7SJ0kcPvQD85peHcD0LI3+S9dEe9uKvZQP/6fdAtU/ce4dAgMBAAE=";

/// Fields as they are, one string each without the last CRLF; no body.
fn message(fields: &[&str]) -> Message {
    let mut raw = String::new();
    let mut headers = vec![];
    for field in fields {
        let start = raw.len();
        raw.push_str(field);
        let colon = field.find(':').expect("a field has a colon");
        headers.push(HeaderField { name: start..start + colon, value: start + colon + 1..raw.len(), whole: start..raw.len() + 2 });
        raw.push_str("\r\n");
    }
    raw.push_str("\r\n");
    let from_fields = fields.iter().filter(|field| field.to_ascii_lowercase().starts_with("from:")).count();
    Message {
        body_offset: raw.len(),
        raw: Bytes::from(raw),
        headers,
        parts: vec![],
        from: vec![],
        from_fields,
        subject: None,
        message_id: None,
        received_fields: 0,
        defects: vec![],
    }
}

fn envelope(sender: Option<(&str, &str)>, smtputf8: bool) -> Envelope {
    Envelope {
        id: QueueId::new(1, 1),
        received_ms: 0,
        client: Client { address: [192, 0, 2, 1].into(), helo: "h.example".into(), esmtp: true, tls: None, address_known: true },
        sender: sender.map(|(local, domain)| Address { local: local.into(), domain: domain.into() }),
        recipients: vec![],
        eight_bit: false,
        smtputf8,
    }
}

const GOOD: &str =
    "v=1; a=rsa-sha256; d=Example.com; s=sel; h=From:To:\r\n Subject; bh=YQ==; b=YWJj\r\n ZGVm; t=100; x=2000; i=u@mail.example.com; q=dns/txt";

#[test]
fn a_signature_that_is_worth_verifying() {
    let screened = screen(GOOD.as_bytes(), &message(&["From: a@example.com", "To: b@example.org"]), 1000);
    let candidate = screened.candidate.expect("nothing is wrong with it");
    assert_eq!(
        (candidate.key_name.as_str(), candidate.domain.as_str(), candidate.identity_below),
        ("sel._domainkey.example.com", "example.com", true)
    );
    assert_eq!((screened.result.signature.as_str(), screened.result.selector.as_str()), ("YWJjZGVm", "sel"));
}

#[test]
fn signatures_that_are_not() {
    let one = ["From: a@example.com"];
    let two_from = ["From: a@example.com", "From: b@example.com"];
    let two_subjects = ["From: a@example.com", "Subject: a", "subject: b"];
    let long = format!("{GOOD}; n={}", "x".repeat(20_000));
    let many = GOOD.replace("h=From", &format!("h=From{}", ":x".repeat(128)));
    for (value, fields, result, reason) in [
        (GOOD.replace("rsa-sha256", "rsa-sha1"), &one[..], Dkim::Policy, "rsa-sha1 is not accepted"),
        (GOOD.replace("rsa-sha256", "rsa-md5"), &one, Dkim::Neutral, "signature algorithm is unknown"),
        (format!("{GOOD}; l=10"), &one, Dkim::Policy, "body length limit is not accepted"),
        (format!("{GOOD}; l=0"), &one, Dkim::Policy, "body length limit is not accepted"),
        (GOOD.replace("x=2000", "x=1000"), &one, Dkim::PermError, "signature has expired"),
        (GOOD.replace("t=100", "t=3000"), &one, Dkim::PermError, "signature has expired"),
        (GOOD.replace("x=2000", "x=soon"), &one, Dkim::Neutral, "a time of the signature is malformed"),
        (GOOD.replace("From:", ""), &one, Dkim::PermError, "From is not signed"),
        (GOOD.into(), &two_from, Dkim::Policy, "message has not exactly one From"),
        (GOOD.into(), &[], Dkim::Policy, "message has not exactly one From"),
        (GOOD.into(), &two_subjects, Dkim::Policy, "a second field of a signed name is not signed"),
        (GOOD.replace("v=1", "v=2"), &one, Dkim::Neutral, "signature version is not 1"),
        (GOOD.replace("v=1; ", ""), &one, Dkim::Neutral, "signature lacks a required tag"),
        (GOOD.replace("bh=YQ==; ", ""), &one, Dkim::Neutral, "signature lacks a required tag"),
        (format!("{GOOD}; d=other.example"), &one, Dkim::Neutral, "signature is no valid tag list"),
        (GOOD.replace("d=Example.com", "d=a..b"), &one, Dkim::Neutral, "signing domain is malformed"),
        (GOOD.replace("d=Example.com", "d=com"), &one, Dkim::Neutral, "signing domain is malformed"),
        (GOOD.replace("i=u@mail.example.com", "i=u@notexample.com"), &one, Dkim::PermError, "identity is outside the signing domain"),
        (GOOD.replace("i=u@mail.example.com", "i=u"), &one, Dkim::Neutral, "identity has no domain"),
        (GOOD.replace("q=dns/txt", "q=https"), &one, Dkim::Neutral, "key query method is unknown"),
        (GOOD.replace("s=sel", &format!("s={}", "s".repeat(64))), &one, Dkim::Neutral, "selector is malformed"),
        (GOOD.replace("s=sel", "s=s*l"), &one, Dkim::Neutral, "selector is malformed"),
        (GOOD.replace("s=sel", "s=s..l"), &one, Dkim::Neutral, "selector is malformed"),
        (long, &one, Dkim::Neutral, "signature field too long"),
        (many, &one, Dkim::Neutral, "too many signed fields"),
    ] {
        let screened = screen(value.as_bytes(), &message(fields), 1000);
        assert_eq!((screened.result.result, screened.result.reason.as_deref()), (result, Some(reason)), "{value}");
        assert!(screened.candidate.is_none());
    }
}

#[test]
fn oversigned_fields_may_be_absent_and_second_ones_may_be_signed() {
    let value = GOOD.replace("h=From:", "h=From:From:Subject:");
    let fields = ["From: a@example.com", "Subject: a", "Subject: b"];
    assert!(screen(value.as_bytes(), &message(&fields), 1000).candidate.is_some());
}

#[test]
fn keys() {
    let rsa = screen(GOOD.as_bytes(), &message(&["From: a@example.com"]), 1000).candidate.expect("worth it");
    let exact = Candidate { identity_below: false, ..rsa.clone() };
    let edwards = Candidate { algorithm: super::dkim::Algorithm::Ed25519, ..exact.clone() };
    let good = format!("v=DKIM1; k=rsa; p={RSA_1024}");
    for (record, candidate, result) in [
        (good.clone(), &rsa, None),
        (format!("p={RSA_1024_PKCS1}"), &rsa, None),
        (format!("p={RSA_1024}; n=note; x=y"), &rsa, None),
        (format!("v=DKIM1; h=sha1:sha256; s=email; p={RSA_1024}"), &rsa, None),
        (format!("v=DKIM1; t=s; p={RSA_1024}"), &exact, None),
        (format!("v=DKIM1; t=y:s; p={RSA_1024}"), &rsa, Some(Dkim::PermError)),
        (format!("v=DKIM1; p={RSA_512}"), &rsa, Some(Dkim::Policy)),
        (format!("v=DKIM1; h=sha1; p={RSA_1024}"), &rsa, Some(Dkim::PermError)),
        (format!("v=DKIM1; s=tlsrpt; p={RSA_1024}"), &rsa, Some(Dkim::PermError)),
        (format!("v=DKIM2; p={RSA_1024}"), &rsa, Some(Dkim::PermError)),
        (format!("p={RSA_1024}; v=DKIM1"), &rsa, Some(Dkim::PermError)),
        ("v=DKIM1; p=".into(), &rsa, Some(Dkim::PermError)),
        ("v=DKIM1".into(), &rsa, Some(Dkim::PermError)),
        ("v=DKIM1; p=YWJj".into(), &rsa, Some(Dkim::PermError)),
        ("v=DKIM1; p=%%%".into(), &rsa, Some(Dkim::PermError)),
        (String::new(), &rsa, Some(Dkim::PermError)),
        (good, &edwards, Some(Dkim::PermError)),
        ("k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=".into(), &edwards, None),
        ("k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=".into(), &exact, Some(Dkim::PermError)),
    ] {
        assert_eq!(screen_key(record.as_bytes(), candidate).err().map(|(word, _)| word), result, "{record}");
    }
}

#[test]
fn the_field() {
    let dkim = |result, reason: Option<&str>| DkimResult {
        result,
        domain: "example.com".into(),
        selector: "s1".into(),
        signature: "YWJj/+==".into(),
        reason: reason.map(str::to_owned),
    };
    let all = Authentication {
        spf: Some(Spf::SoftFail),
        spf_domain: "bounce.example.com".into(),
        spf_helo: false,
        dkim: vec![dkim(Dkim::Pass, None), dkim(Dkim::Policy, Some("RSA key is too short"))],
        dmarc: Some(DmarcResult { result: Dmarc::Pass, from_domain: "example.com".into(), policy: DmarcPolicy::Reject }),
    };
    let field = all.header_field("mx.gateway.example", &envelope(Some(("me", "bounce.example.com")), false));
    expect_test::expect![[r#"
        Authentication-Results: mx.gateway.example;
        	spf=softfail smtp.mailfrom=me@bounce.example.com;
        	dkim=pass header.d=example.com header.s=s1 header.b="YWJj/+==";
        	dkim=policy reason="RSA key is too short" header.d=example.com header.s=s1 header.b="YWJj/+==";
        	dmarc=pass (p=reject) header.from=example.com
    "#]]
    .assert_eq(&field.replace("\r\n", "\n"));
    let none = Authentication::default().header_field("mx", &envelope(None, false));
    assert_eq!(none, "Authentication-Results: mx; none\r\n");
    let helo = Authentication { spf: Some(Spf::Fail), spf_domain: "h.example".into(), spf_helo: true, ..Authentication::default() };
    assert_eq!(helo.header_field("mx", &envelope(None, false)), "Authentication-Results: mx;\r\n\tspf=fail smtp.helo=h.example\r\n");
}

#[test]
fn nothing_can_be_smuggled_into_the_field() {
    let spf = Authentication { spf: Some(Spf::Fail), spf_domain: "x".into(), ..Authentication::default() };
    for (local, domain, expected) in [
        ("a; spf=pass", "e.example", "\"a; spf=pass@e.example\""),
        ("a\r\nX: y", "e.example", "\"a??X: y@e.example\""),
        ("\"q\\\"", "e.example", "\"\\\"q\\\\\\\"@e.example\""),
        ("a(", "e.example", "\"a(@e.example\""),
        ("é", "e.example", "\"?@e.example\""),
        ("a", "[192.0.2.1]", "\"a@[192.0.2.1]\""),
        ("", "e.example", "\"@e.example\""),
    ] {
        let field = spf.header_field("mx", &envelope(Some((local, domain)), false));
        assert_eq!(field, format!("Authentication-Results: mx;\r\n\tspf=fail smtp.mailfrom={expected}\r\n"));
    }
    let field = spf.header_field("mx", &envelope(Some(("é", "例え.jp")), true));
    assert!(field.contains("smtp.mailfrom=é@例え.jp"), "{field}");
}

#[test]
fn forged_fields_are_found() {
    let id = "mx.gateway.example";
    for (value, forged) in [
        (" mx.gateway.example; spf=pass", true),
        ("MX.Gateway.Example; spf=pass", true),
        (" mx.gateway.example. ; spf=pass", true),
        (" (a (nested) \\) comment) mx.gateway.example (x) 1 ; spf=pass", true),
        ("\r\n mx.gateway.example\r\n\t1\r\n ; dkim=pass", true),
        (" \"mx.gateway.example\"; none", true),
        (" \"mx.\\gateway.example\"; none", true),
        (" mx.gateway.example", true),
        (" (unclosed mx.gateway.example; spf=pass", true),
        (" mx.gateway.example spf=pass", true),
        (" mx.gateway.example/x; spf=pass", true),
        (" other.example; x=mx.gateway.example", false),
        (" other.example (mx.gateway.example); spf=pass", false),
        (" notmx.gateway.example; spf=pass", false),
        ("", false),
    ] {
        let message =
            message(&["From: a@b.example", &format!("AUTHENTICATION-Results:{value}"), &format!("ARC-Authentication-Results: i=1;{value}")]);
        let found = forged_fields(&message, id);
        let whole = message.headers.get(1).expect("the second field").whole.clone();
        assert_eq!(found, if forged { vec![whole] } else { vec![] }, "{value:?}");
    }
    let unicode = message(&["Authentication-Results: 例え.jp; spf=pass"]);
    assert_eq!(forged_fields(&unicode, "xn--r8jz45g.jp").len(), 1);
}

/// Reads a field as RFC 8601 says, quoted strings and comments respected: the results that a reader would believe.
fn results(field: &str) -> Vec<String> {
    let body = field.strip_prefix("Authentication-Results:").and_then(|body| body.strip_suffix("\r\n")).expect("one field with its end");
    let unfolded = body.replace("\r\n\t", " ");
    assert!(!unfolded.contains(['\r', '\n', '\0']), "a line break within: {field:?}");
    let (mut parts, mut part, mut quoted, mut escaped) = (vec![], String::new(), false, false);
    for c in unfolded.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' if !quoted => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(if quoted { '_' } else { c });
    }
    assert!(!quoted, "a string that does not end: {field:?}");
    parts.push(part);
    parts.into_iter().skip(1).map(|part| part.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

proptest! {
    #[test]
    fn any_values_give_one_field_with_our_results_only(
        local in "\\PC{0,300}|[\\x00-\\x7f]{0,80}", domain in "[\\x00-\\x7f]{0,300}|\\PC{0,20}", selector in "[\\x00-\\x7f]{0,80}",
        reason in proptest::option::of("[\\x00-\\x7f]{0,80}"), smtputf8 in any::<bool>(),
    ) {
        let found = Authentication {
            spf: Some(Spf::Fail),
            spf_domain: domain.clone(),
            spf_helo: false,
            dkim: vec![DkimResult { result: Dkim::Fail, domain: domain.clone(), selector: selector.clone(), signature: selector, reason }],
            dmarc: Some(DmarcResult { result: Dmarc::Fail, from_domain: domain.clone(), policy: DmarcPolicy::None }),
        };
        let sent = envelope(Some((&local, &domain)), smtputf8);
        let field = found.header_field("mx.example", &sent);
        prop_assert_eq!(results(&field), ["spf=fail", "dkim=fail", "dmarc=fail"]);
        prop_assert!(smtputf8 || field.is_ascii());
        prop_assert!(field.lines().all(|line| line.len() < 998));
        let helo = Authentication { spf_helo: true, ..found };
        prop_assert_eq!(results(&helo.header_field("mx.example", &sent)).len(), 3);
    }

    #[test]
    fn no_bytes_panic(value in "[\\x00-\\x7f]{0,120}|\\PC{0,60}", key in proptest::collection::vec(any::<u8>(), 0..120)) {
        let value = value.replace(['\r', '\n'], " ");
        let mail = message(&["From: a@b.example", &format!("Authentication-Results:{value}")]);
        forged_fields(&mail, "mx.example");
        screen(value.as_bytes(), &mail, 0);
        screen(&key, &mail, 0);
        if let Some(candidate) = screen(GOOD.as_bytes(), &mail, 0).candidate {
            screen_key(&key, &candidate).ok();
        }
    }
}
