//! Signatures: published samples, our own, and tricks.

use std::sync::Arc;
use std::time::Duration;

use mail_auth::dkim::{Canonicalization, DkimSigner};
use mail_auth::headers::HeaderWriter;
use sekimori_mta::authentication::{Dkim, DkimResult};
use sekimori_mta::io::dns::Fake;
use sekimori_mta::message::Message;

use super::mail::{edwards, envelope, evaluate, judge, message, rsa};

/// RFC 8463 appendix A.3.
const SAMPLE: &str = "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r
 d=football.example.com; i=@football.example.com;\r
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r
 subject : date : message-id : from : subject : date;\r
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r
 d=football.example.com; i=@football.example.com;\r
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r
 date : message-id : from : subject : date;\r
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3\r
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz\r
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=\r
From: Joe SixPack <joe@football.example.com>\r
To: Suzie Q <suzie@shopping.example.net>\r
Subject: Is dinner ready?\r
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r
Message-ID: <20030712040037.46341.5F8J@football.example.com>\r
\r
Hi.\r
\r
We lost the game.  Are you hungry yet?\r
\r
Joe.\r
";

fn sample_keys() -> Fake {
    Fake::new().txt("brisbane._domainkey.football.example.com", "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=").txt(
        "test._domainkey.football.example.com",
        "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutAC\
             DfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB",
    )
}

async fn signatures(fake: Fake, message: &Message) -> Vec<DkimResult> {
    judge(fake, &envelope("192.0.2.1", None), message).await.dkim
}

async fn words(fake: Fake, raw: impl Into<String>) -> Vec<Dkim> {
    signatures(fake, &message(raw)).await.iter().map(|one| one.result).collect()
}

const MAIL: &str =
    "From: A <a@example.com>\r\nTo: B <b@example.org>\r\nSubject: Hello\r\nDate: Fri, 11 Jul 2025 21:00:37 -0700\r\n\r\nHello  there. \r\n\r\n\r\n";

fn signed(headers: &[&str], mail: &str) -> (String, Fake) {
    let (key, record) = rsa();
    let signature =
        DkimSigner::from_key(key).domain("example.com").selector("s").headers(headers.iter().copied()).sign(mail.as_bytes()).expect("signed");
    (format!("{}{mail}", signature.to_header()), Fake::new().txt("s._domainkey.example.com", record))
}

#[tokio::test]
async fn the_sample_of_rfc_8463() {
    let found = signatures(sample_keys(), &message(SAMPLE)).await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|one| one.result == Dkim::Pass && one.domain == "football.example.com" && one.reason.is_none()), "{found:?}");
    assert_eq!((found[0].selector.as_str(), found[0].signature.as_str()), ("brisbane", "/gCrinpcQOoI"));
    // Relaxed forms bear other white space and letter case, not other words.
    assert_eq!(words(sample_keys(), SAMPLE.replace("Subject: Is dinner", "SUBJECT:   Is  dinner")).await, [Dkim::Pass, Dkim::Pass]);
    assert_eq!(words(sample_keys(), SAMPLE.replace("dinner", "lunch")).await, [Dkim::Fail, Dkim::Fail]);
    assert_eq!(words(sample_keys(), SAMPLE.replace("We lost", "We won")).await, [Dkim::Fail, Dkim::Fail]);
    assert_eq!(words(sample_keys(), SAMPLE.replacen("s=test", "s=missing", 1)).await, [Dkim::Pass, Dkim::PermError]);
}

#[tokio::test]
async fn canonical_forms() {
    for header in [Canonicalization::Simple, Canonicalization::Relaxed] {
        for body in [Canonicalization::Simple, Canonicalization::Relaxed] {
            for (mail, note) in [
                (MAIL.to_owned(), "text"),
                (MAIL.replace("Hello  there. \r\n\r\n\r\n", ""), "no body"),
                (MAIL.replace("there. \r\n", "there\r\n \t\r\n"), "white lines"),
            ] {
                let (key, record) = edwards();
                let signer = DkimSigner::from_key(key).domain("example.com").selector("s").headers(["From", "To", "Subject"]);
                let signature = signer.header_canonicalization(header).body_canonicalization(body).sign(mail.as_bytes()).expect("signed");
                let fake = Fake::new().txt("s._domainkey.example.com", record);
                assert_eq!(words(fake, format!("{}{mail}", signature.to_header())).await, [Dkim::Pass], "{header:?}/{body:?} {note}");
            }
        }
    }
}

#[tokio::test]
async fn signatures_that_verify_and_yet_do_not_pass() {
    let (key, record) = rsa();
    let keys = || Fake::new().txt("s._domainkey.example.com", &record);
    let signer = || DkimSigner::from_key(rsa().0).domain("example.com").selector("s").headers(["From", "Subject"]);
    let with = |signature: mail_auth::dkim::Signature| format!("{}{MAIL}", signature.to_header());

    let limited = with(signer().body_length(true).sign(MAIL.as_bytes()).expect("signed"));
    assert!(limited.contains("l="));
    assert_eq!(words(keys(), format!("{limited}<a href=evil>")).await, [Dkim::Policy], "what was added after l= is not signed");

    let (mail, fake) = signed(&["To", "Subject"], MAIL);
    let header = mail.split("From: A").next().expect("the signature").to_ascii_lowercase();
    assert!(!header.contains("from"), "the signer left From out: {header}");
    assert_eq!(words(fake, mail).await, [Dkim::PermError], "From is not signed");

    // Verifiers sign from the bottom; readers may show the top.
    let (mail, fake) = signed(&["From", "To", "Subject"], MAIL);
    let mail = mail.replacen("From: A", "From: Boss <boss@example.com>\r\nFrom: A", 1);
    assert_eq!(words(fake, mail).await, [Dkim::Policy], "a second From");
    let (mail, fake) = signed(&["From", "To", "Subject"], MAIL);
    assert_eq!(words(fake, mail.replacen("From: A", "Subject: Pay now\r\nFrom: A", 1)).await, [Dkim::Policy], "a second Subject");
    let (mail, fake) = signed(&["From", "To", "Subject", "Subject"], MAIL);
    assert_eq!(
        words(fake, mail.replacen("From: A", "Subject: Pay now\r\nFrom: A", 1)).await,
        [Dkim::Fail],
        "oversigned: the second Subject breaks it"
    );

    let strict = record.replace("v=DKIM1;", "v=DKIM1; t=s;");
    let below = || with(signer().identity("u@mail.example.com").sign(MAIL.as_bytes()).expect("signed"));
    assert_eq!(words(keys(), below()).await, [Dkim::Pass]);
    assert_eq!(words(Fake::new().txt("s._domainkey.example.com", strict), below()).await, [Dkim::PermError]);
    let sha1_only = record.replace("v=DKIM1;", "v=DKIM1; h=sha1;");
    assert_eq!(words(Fake::new().txt("s._domainkey.example.com", sha1_only), below()).await, [Dkim::PermError]);
    drop(key);
}

#[tokio::test]
async fn expiry_is_judged_by_the_time_of_arrival() {
    let signature = DkimSigner::from_key(rsa().0).domain("example.com").selector("s").headers(["From"]);
    let signed = signature.expiration(Duration::from_secs(3600)).sign(MAIL.as_bytes()).expect("signed");
    let mail = message(format!("{}{MAIL}", signed.to_header()));
    for (received_s, result) in [(signed.t, Dkim::Pass), (signed.x - 1, Dkim::Pass), (signed.x, Dkim::PermError), (signed.x + 1, Dkim::PermError)] {
        let mut envelope = envelope("192.0.2.1", None);
        envelope.received_ms = received_s * 1000;
        let found = judge(Fake::new().txt("s._domainkey.example.com", rsa().1), &envelope, &mail).await.dkim;
        assert_eq!(found.first().map(|one| one.result), Some(result), "{received_s}");
    }
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_or_used() {
    let name = "s._domainkey.example.com";
    let (_, record) = rsa();
    for (fake, result) in [
        (Fake::new(), Dkim::PermError),
        (Fake::new().failing(name), Dkim::TempError),
        (Fake::new().malformed(name), Dkim::TempError),
        (Fake::new().txt(name, "v=DKIM1; p="), Dkim::PermError),
        (Fake::new().txt(name, "v=spf1 -all"), Dkim::PermError),
        (Fake::new().txt(name, "v=spf1 -all").txt(name, &record), Dkim::Pass),
        (Fake::new().cname(name, "k.elsewhere.example").txt("k.elsewhere.example", &record), Dkim::Pass),
        (Fake::new().cname(name, "x.example").cname("x.example", name), Dkim::TempError),
        (Fake::new().txt(name, edwards().1), Dkim::PermError),
        (Fake::new().txt(name, record.replace("AQAB", "AAAA")), Dkim::Fail),
    ] {
        let (mail, _) = signed(&["From"], MAIL);
        let found = signatures(fake, &message(mail)).await;
        assert_eq!(found.first().map(|one| one.result), Some(result), "{found:?}");
    }
}

#[tokio::test]
async fn internationalised_signing_domains() {
    let (key, record) = edwards();
    let signature = DkimSigner::from_key(key).domain("例え.jp").selector("s").headers(["From"]).sign(MAIL.as_bytes()).expect("signed");
    let found = signatures(Fake::new().txt("s._domainkey.xn--r8jz45g.jp", record), &message(format!("{}{MAIL}", signature.to_header()))).await;
    assert_eq!(found.first().map(|one| (one.result, one.domain.as_str())), Some((Dkim::Pass, "xn--r8jz45g.jp")), "{found:?}");
}

#[tokio::test]
async fn third_party_authorisation_costs_nothing_and_grants_nothing() {
    let (key, record) = rsa();
    let signer = DkimSigner::from_key(key).domain("third.example").selector("s").headers(["From"]).atps("example.com").reporting(true);
    let mail = message(format!("{}{MAIL}", signer.sign(MAIL.as_bytes()).expect("signed").to_header()));
    let fake = Arc::new(Fake::new().txt("s._domainkey.third.example", record));
    let found = evaluate(fake.clone(), &envelope("192.0.2.1", None), &mail).await;
    assert_eq!(found.dkim.first().map(|one| (one.result, one.domain.as_str())), Some((Dkim::Pass, "third.example")));
    let asked: Vec<String> = fake.asked().iter().map(|question| question.name().to_owned()).collect();
    assert!(!asked.iter().any(|name| name.contains("_atps") || name.contains("_report")), "{asked:?}");
}

#[tokio::test]
async fn two_thousand_signatures_cost_ten() {
    let (key, record) = rsa();
    let real = DkimSigner::from_key(key).domain("example.com").selector("s").headers(["From"]).sign(MAIL.as_bytes()).expect("signed").to_header();
    let (from, rest) = MAIL.split_once("\r\n").expect("a first line");
    let mut raw = format!("{from}\r\n");
    for number in 0..2000 {
        raw.push_str(&real.replacen("s=s;", &format!("s=s{number};"), 1));
    }
    raw.push_str(rest);
    assert!(raw.contains("s=s1999;"), "every signature has its own selector");
    let mut fake = Fake::new();
    for number in 0..2000 {
        fake = fake.txt(&format!("s{number}._domainkey.example.com"), &record);
    }
    let fake = Arc::new(fake);
    let found = evaluate(fake.clone(), &envelope("192.0.2.1", None), &message(raw)).await;
    assert_eq!(found.dkim.len(), 10);
    let keys = fake.asked().iter().filter(|question| question.name().contains("_domainkey")).count();
    assert_eq!(keys, 10, "only the keys of the first ten are fetched");
}

#[tokio::test]
async fn a_header_that_is_read_in_two_ways_passes_nothing() {
    let (mail, fake) = signed(&["From", "To", "Subject"], MAIL);
    let parsed = message(mail);
    let neutral = |found: Vec<DkimResult>| assert_eq!(found.first().map(|one| one.result), Some(Dkim::Neutral));
    let mut body = parsed.clone();
    body.body_offset -= 1;
    neutral(signatures(fake, &body).await);
    // Another field is From for us than for whoever verifies.
    let mut from = parsed.clone();
    let place = from.headers.iter().position(|field| from.text(&field.name) == "From").expect("a From");
    from.headers[place].value.end -= 1;
    neutral(signatures(signed(&["From"], MAIL).1, &from).await);
}

#[tokio::test]
async fn long_messages_and_many_signatures_are_verified_elsewhere() {
    let long = format!("{MAIL}{}", "Some line of text that is repeated.\r\n".repeat(30_000));
    let (mail, fake) = signed(&["From", "Subject"], &long);
    assert!(mail.len() > 1_000_000);
    assert_eq!(words(fake, mail.clone()).await, [Dkim::Pass]);
    let (_, fake) = signed(&["From"], MAIL);
    assert_eq!(words(fake, mail.replacen("repeated.\r\nSome", "repeated!\r\nSome", 1)).await, [Dkim::Fail]);
    let (key, record) = rsa();
    let header = DkimSigner::from_key(key).domain("example.com").selector("s").headers(["From"]).sign(MAIL.as_bytes()).expect("signed").to_header();
    let fake = Fake::new().txt("s._domainkey.example.com", record);
    let broken = header.replacen("s=s;", "s=t;", 1);
    let mail = format!("{header}{header}{broken}{header}{header}{MAIL}");
    assert_eq!(words(fake, mail).await, [Dkim::Pass, Dkim::Pass, Dkim::PermError, Dkim::Pass, Dkim::Pass], "each result stands at its signature");
}

#[tokio::test]
async fn a_header_too_large_is_not_read_again() {
    let (mail, fake) = signed(&["From"], MAIL);
    let mail = mail.replacen("\r\n\r\n", &format!("\r\nX: {}\r\n\r\n", "y".repeat(300_000)), 1);
    let found = signatures(fake, &message(mail)).await;
    assert_eq!(found.first().map(|one| (one.result, one.reason.as_deref())), Some((Dkim::Neutral, Some("signature could not be verified"))));
}
