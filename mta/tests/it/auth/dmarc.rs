//! DMARC through the evaluator: what applies, what aligns, what is uncertain.

use std::sync::Arc;

use mail_auth::dkim::DkimSigner;
use mail_auth::headers::HeaderWriter;
use sekimori_mta::authentication::{Dmarc, DmarcPolicy, Spf};
use sekimori_mta::io::dns::Fake;

use super::mail::{edwards, envelope, evaluate, judge, message};

const CLIENT: &str = "192.0.2.1";

fn mail(from: &str) -> String {
    format!("From: {from}\r\nTo: <b@example.org>\r\nSubject: x\r\n\r\nHello\r\n")
}

/// `mail` signed for `domain`, and its key in the table.
fn signed(mail: &str, domain: &str, fake: Fake) -> (String, Fake) {
    let (key, record) = edwards();
    let signature = DkimSigner::from_key(key).domain(domain).selector("s").headers(["From"]).sign(mail.as_bytes()).expect("signed");
    (format!("{}{mail}", signature.to_header()), fake.txt(&format!("s._domainkey.{domain}"), record))
}

fn spf_passes(fake: Fake, domain: &str) -> Fake {
    fake.txt(domain, format!("v=spf1 ip4:{CLIENT} -all"))
}

#[tokio::test]
async fn alignment_of_spf() {
    let record = |text: &str| Fake::new().txt("_dmarc.example.com", text);
    for (fake, from, sender, expected) in [
        (record("v=DMARC1; p=reject"), "<a@example.com>", "b@example.com", Dmarc::Pass),
        (record("v=DMARC1; p=reject"), "<a@example.com>", "b@Example.COM", Dmarc::Pass),
        (record("v=DMARC1; p=reject"), "<a@example.com>", "b@bounce.example.com", Dmarc::Pass),
        (record("v=DMARC1; p=reject"), "<a@news.example.com>", "b@bounce.example.com", Dmarc::Pass),
        (record("v=DMARC1; p=reject; aspf=s"), "<a@example.com>", "b@bounce.example.com", Dmarc::Fail),
        (record("v=DMARC1; p=reject; aspf=s"), "<a@example.com>", "b@example.com", Dmarc::Pass),
        (record("v=DMARC1; p=reject"), "<a@example.com>", "b@other.example", Dmarc::Fail),
        (record("v=DMARC1; p=reject"), "<a@example.com>", "b@notexample.com", Dmarc::Fail),
        (record("v=DMARC1; p=reject"), "<a@example.com>", "b@com", Dmarc::Fail),
        // `psd=n` cuts a subdomain off from its parent, in both directions.
        (
            record("v=DMARC1; p=reject").txt("_dmarc.shop.example.com", "v=DMARC1; p=reject; psd=n"),
            "<a@example.com>",
            "b@shop.example.com",
            Dmarc::Fail,
        ),
        (
            record("v=DMARC1; p=reject").txt("_dmarc.shop.example.com", "v=DMARC1; p=reject; psd=n"),
            "<a@shop.example.com>",
            "b@example.com",
            Dmarc::Fail,
        ),
        // Two customers of one public suffix are strangers.
        (record("v=DMARC1; p=reject; psd=y"), "<a@one.example.com>", "b@two.example.com", Dmarc::Fail),
        (record("v=DMARC1; p=reject; psd=y"), "<a@one.example.com>", "b@x.one.example.com", Dmarc::Pass),
        (Fake::new(), "<a@example.com>", "b@example.com", Dmarc::None),
        // A record that asks for nothing marks its place all the same.
        (record("v=DMARC1; p=reject").txt("_dmarc.shop.example.com", "v=DMARC1; psd=n"), "<a@example.com>", "b@shop.example.com", Dmarc::Fail),
        (record("v=DMARC1; p=reject").txt("_dmarc.shop.example.com", "v=DMARC1; p=nonsense"), "<a@shop.example.com>", "b@other.example", Dmarc::None),
        (record("v=DMARC1; p=reject").txt("_dmarc.example.com", "v=DMARC1; p=none"), "<a@example.com>", "b@other.example", Dmarc::None),
        (record("v=spf1 -all").txt("_dmarc.example.com", "v=DMARC1; p=none"), "<a@example.com>", "b@other.example", Dmarc::Fail),
    ] {
        let domain = sender.rsplit_once('@').map(|(_, domain)| domain.to_lowercase()).expect("an address");
        let found = judge(spf_passes(fake, &domain), &envelope(CLIENT, Some(sender)), &message(mail(from))).await;
        assert_eq!(found.spf, if domain == "com" { Some(Spf::None) } else { Some(Spf::Pass) });
        assert_eq!(found.dmarc.expect("judged").result, expected, "{from} {sender}");
    }
}

#[tokio::test]
async fn alignment_of_dkim() {
    for (tags, from, domain, expected) in [
        ("", "<a@example.com>", "example.com", Dmarc::Pass),
        ("", "<a@example.com>", "mail.example.com", Dmarc::Pass),
        ("", "<a@mail.example.com>", "example.com", Dmarc::Pass),
        ("; adkim=s", "<a@example.com>", "mail.example.com", Dmarc::Fail),
        ("", "<a@example.com>", "evil.example", Dmarc::Fail),
    ] {
        let (raw, fake) = signed(&mail(from), domain, Fake::new().txt("_dmarc.example.com", format!("v=DMARC1; p=reject{tags}")));
        let found = judge(fake, &envelope(CLIENT, None), &message(raw)).await;
        assert_eq!(found.dmarc.expect("judged").result, expected, "{from} {domain} {tags}");
    }
}

#[tokio::test]
async fn the_policy_that_applies() {
    use DmarcPolicy::{None as NoPolicy, Quarantine, Reject};
    let all = "v=DMARC1; p=none; sp=quarantine; np=reject";
    for (text, from, exists, expected) in [
        (all, "<a@example.com>", true, NoPolicy),
        (all, "<a@real.example.com>", true, Quarantine),
        (all, "<a@gone.example.com>", false, Reject),
        ("v=DMARC1; p=reject; t=y", "<a@example.com>", true, Quarantine),
        ("v=DMARC1; p=reject; psd=y; np=quarantine", "<a@gone.example.com>", false, Quarantine),
    ] {
        let mut fake = Fake::new().txt("_dmarc.example.com", text);
        if exists {
            fake = fake.a("real.example.com", [192, 0, 2, 9].into());
        }
        let found = judge(fake, &envelope(CLIENT, None), &message(mail(from))).await.dmarc.expect("judged");
        assert_eq!((found.result, found.policy), (Dmarc::Fail, expected), "{text} {from}");
    }
}

#[tokio::test]
async fn from_fields_that_name_no_single_domain() {
    let published = || Fake::new().txt("_dmarc.example.com", "v=DMARC1; p=reject").txt("_dmarc.other.example", "v=DMARC1; p=reject");
    for (head, expected) in [
        ("From: <a@example.com>\r\nFrom: <b@other.example>", Dmarc::PermError),
        ("From: <a@example.com>\r\nFrom: <b@example.com>", Dmarc::PermError),
        ("From: <a@example.com>, <b@other.example>", Dmarc::PermError),
        ("From: <a@example.com>, <b@example.com>", Dmarc::Fail),
        ("From: undisclosed", Dmarc::PermError),
        ("Subject: no from", Dmarc::PermError),
        ("From: <a@[192.0.2.1]>", Dmarc::PermError),
        ("From: <a@exa..mple>", Dmarc::PermError),
        ("From: <a@>", Dmarc::PermError),
        ("From: <a@localhost>", Dmarc::None),
    ] {
        let found = judge(published(), &envelope(CLIENT, None), &message(format!("{head}\r\n\r\nx\r\n"))).await;
        let result = found.dmarc.expect("judged");
        assert_eq!(result.result, expected, "{head}");
        if expected == Dmarc::PermError {
            assert_eq!(result.policy, DmarcPolicy::None);
        }
    }
}

#[tokio::test]
async fn a_header_that_was_not_read_to_its_end_may_hold_another_from() {
    let mut parsed = message(mail("<a@example.com>"));
    parsed.defects.push(sekimori_mta::message::Defect::HeadersTooLarge);
    let fake = spf_passes(Fake::new().txt("_dmarc.example.com", "v=DMARC1; p=reject"), "example.com");
    let found = judge(fake, &envelope(CLIENT, Some("a@example.com")), &parsed).await;
    assert_eq!((found.spf, found.dmarc.expect("judged").result), (Some(Spf::Pass), Dmarc::PermError));
}

#[tokio::test]
async fn internationalised_from() {
    let fake = Fake::new().txt("_dmarc.xn--r8jz45g.jp", "v=DMARC1; p=reject");
    let found = judge(fake, &envelope(CLIENT, None), &message(mail("<a@例え.jp>"))).await.dmarc.expect("judged");
    assert_eq!((found.result, found.from_domain.as_str(), found.policy), (Dmarc::Fail, "xn--r8jz45g.jp", DmarcPolicy::Reject));
}

#[tokio::test]
async fn what_dns_does_not_say_is_no_failure() {
    let record = || Fake::new().txt("_dmarc.example.com", "v=DMARC1; p=reject");
    let from = mail("<a@example.com>");
    let from_below = mail("<a@x.example.com>");
    // The policy itself.
    let found = judge(Fake::new().failing("_dmarc.example.com"), &envelope(CLIENT, None), &message(&from)).await;
    assert_eq!(found.dmarc.expect("judged").result, Dmarc::TempError);
    let found = judge(record().failing("_dmarc.x.example.com"), &envelope(CLIENT, None), &message(from_below)).await;
    assert_eq!(found.dmarc.expect("judged").result, Dmarc::TempError);
    // An aligned identity that might have passed.
    let found = judge(record().failing("example.com"), &envelope(CLIENT, Some("b@example.com")), &message(&from)).await;
    assert_eq!((found.spf, found.dmarc.expect("judged").result), (Some(Spf::TempError), Dmarc::TempError));
    let (raw, _) = signed(&from, "example.com", Fake::new());
    let found = judge(record().failing("s._domainkey.example.com"), &envelope(CLIENT, None), &message(raw)).await;
    assert_eq!(found.dmarc.expect("judged").result, Dmarc::TempError);
    // A stranger's trouble is no excuse.
    let found = judge(record().failing("evil.example"), &envelope(CLIENT, Some("b@evil.example")), &message(&from)).await;
    assert_eq!((found.spf, found.dmarc.expect("judged").result), (Some(Spf::TempError), Dmarc::Fail));
}

#[tokio::test]
async fn a_masked_client_is_not_judged_by_its_address() {
    let fake = || Fake::new().txt("_dmarc.example.com", "v=DMARC1; p=reject").txt("example.com", "v=spf1 -all");
    let mut masked = envelope("10.0.0.1", Some("b@example.com"));
    masked.client.address_known = false;
    let table = Arc::new(fake());
    let found = evaluate(table.clone(), &masked, &message(mail("<a@example.com>"))).await;
    assert_eq!((found.spf, &found.dmarc, found.spf_domain.as_str()), (None, &None, ""), "SPF might have passed: nothing can be said");
    assert!(table.asked().iter().all(|question| question.name().starts_with("_dmarc.")), "SPF asks nothing");
    let (raw, fake) = signed(&mail("<a@example.com>"), "example.com", fake());
    let found = judge(fake, &masked, &message(raw)).await;
    assert_eq!(found.dmarc.expect("DKIM suffices").result, Dmarc::Pass);
}

#[tokio::test]
async fn the_null_sender_is_judged_by_helo() {
    let fake = spf_passes(Fake::new(), "mail.helo.example").txt("_dmarc.helo.example", "v=DMARC1; p=reject");
    let found = judge(fake, &envelope(CLIENT, None), &message(mail("<mailer-daemon@helo.example>"))).await;
    assert_eq!((found.spf, found.spf_helo, found.spf_domain.as_str()), (Some(Spf::Pass), true, "mail.helo.example"));
    assert_eq!(found.dmarc.expect("judged").result, Dmarc::Pass);
}
