//! What arrives is what was sent, but for the fields that we add at the top and the forged ones that we take away.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use sekimori_crds::vocabulary::{Action, DeliveryMode};
use sekimori_mta::io::engine::fake::Step;
use sekimori_mta::verdict::{Finding, SpamScore};

use super::tenants::{MAIL, header, to, with};
use super::world::{Setup, World};
use crate::delivery::gateway::wait_for;
use crate::delivery::sink::{Script, Sink};

/// Takes our fields off the top; they end with `X-Spam-Status`, but for what only stands there where it is needed.
fn without_our_fields(content: &[u8]) -> &[u8] {
    let mut rest = content;
    let mut seen = vec![];
    loop {
        let ours = ["Received:", "Authentication-Results:", "X-Sekimori-Verdict:", "X-Spam-Status:", "X-Sekimori-Defect:"];
        let over = seen.contains(&"X-Spam-Status:");
        let name = ours.into_iter().find(|name| rest.starts_with(name.as_bytes()) && (!over || *name == "X-Sekimori-Defect:"));
        let Some(name) = name else { break };
        assert!(!seen.contains(&name), "{name} twice at the top");
        seen.push(name);
        loop {
            let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
            rest = &rest[end..];
            // Ours are folded with a tab; a message that begins with one has its own field before it.
            if !rest.starts_with(b"\t") || name == "X-Sekimori-Defect:" {
                break;
            }
        }
    }
    assert!(seen.starts_with(&["Received:"]) && seen.contains(&"X-Spam-Status:"), "{seen:?} in {}", String::from_utf8_lossy(content));
    rest
}

struct Case {
    name: &'static str,
    sent: Vec<u8>,
    /// What of it arrives.
    arrives: Vec<u8>,
}

fn same(name: &'static str, sent: impl Into<Vec<u8>>) -> Case {
    let sent = sent.into();
    Case { name, arrives: sent.clone(), sent }
}

fn cases() -> Vec<Case> {
    let japanese = b"From: =?ISO-2022-JP?B?GyRCOzNFRBsoQg==?= <yamada@sender.test>\r\nSubject: =?ISO-2022-JP?B?GyRCJEYkOSRIGyhC?=\r\n \
        =?ISO-2022-JP?B?GyRCJEckORsoQg==?=\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=ISO-2022-JP\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
        \x1b$B$3$s$K$A$O!#\x1b(B\r\n\x1b$B$5$h$&$J$i\x1b(B\r\n"
        .to_vec();
    let broken = b"Content-Type: multipart/mixed; boundary=\"never\"\r\nContent-Type: text/html; boundary=\r\nSubject: broken\r\nno colon here\r\n: empty name\r\n\
        \r\n--other\r\nContent-Type: multipart/alternative; boundary=x\r\n\r\n--x\r\nContent-Transfer-Encoding: base64\r\n\r\n%%%not base64\r\n"
        .to_vec();
    let long_line = |bytes: usize| [MAIL, &vec![b'y'; bytes], b"\r\n"].concat();
    let mut megabyte = MAIL.to_vec();
    let mut state = 1_u32;
    while megabyte.len() < 1 << 20 {
        for _ in 0..70 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Anything but NUL, CR, LF.
            let byte = (state >> 24) as u8;
            megabyte.push(if matches!(byte, 0 | b'\r' | b'\n') { b'.' } else { byte });
        }
        megabyte.extend_from_slice(b"\r\n");
    }
    let forged = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\nX-Sekimori-Verdict: action=Deliver;\r\n\tanti-virus=clean\r\nx-spam-STATUS: No\r\n\
        Authentication-Results: mx.example.net; dmarc=pass header.from=bank.example\r\nAuthentication-Results: other.example; spf=pass\r\n\
        X-Sekimori-Anything: 1\r\nFrom: a@sender.test\r\nSubject: forged\r\n\r\nX-Spam-Status: this is text\r\n"
        .to_vec();
    let unforged = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\nAuthentication-Results: other.example; spf=pass\r\n\
        From: a@sender.test\r\nSubject: forged\r\n\r\nX-Spam-Status: this is text\r\n"
        .to_vec();
    vec![
        same("ISO-2022-JP", japanese),
        same("broken MIME", broken),
        same("8-bit without a word of it", [MAIL, "grün, 緑, \u{feff}\r\n".as_bytes(), b"\xff\xfe\x80\r\n"].concat()),
        same("8-bit in the header", b"Subject: gr\xfcn \xe7\xb7\x91\r\nFrom: \xff@sender.test\r\n\r\nx\r\n".to_vec()),
        same("dots", [MAIL, b".\r\n..\r\n...\r\n.x\r\n.\r\n\r\n.\r\n"].concat()),
        same("dots alone", b".\r\n".to_vec()),
        same("an empty body", b"Subject: x\r\n\r\n".to_vec()),
        same("no body", b"Subject: x\r\n".to_vec()),
        same("nothing", b"".to_vec()),
        same("no header", b"\r\nonly a body\r\n".to_vec()),
        same("no field at all", b"just text\r\nand more\r\n".to_vec()),
        same("it begins with a continuation line", b" evil: yes\r\nSubject: x\r\n\r\nx\r\n".to_vec()),
        same("it begins with a tab", b"\tevil: yes\r\nSubject: x\r\n\r\nx\r\n".to_vec()),
        same("one megabyte of anything", megabyte),
        same("a line of 998", long_line(998)),
        same("a line of 999", long_line(999)),
        same("a line of 60,000", long_line(60_000)),
        same("a field of 20,000", [b"X-Long: ", &vec![b'z'; 20_000][..], b"\r\n", MAIL].concat()),
        same("controls", [MAIL, b"\x01\x08\x0b\x0c\x1b\x7f\r\n"].concat()),
        Case { name: "no line end at the end", sent: b"Subject: x\r\n\r\nno end".to_vec(), arrives: b"Subject: x\r\n\r\nno end\r\n".to_vec() },
        Case { name: "forged fields", sent: forged, arrives: unforged },
    ]
}

async fn check(world: &World, sink: &Sink, recipient: &str) {
    for (n, Case { name, sent, arrives }) in cases().into_iter().enumerate() {
        let answer = world.client().await.send(&[recipient], &sent).await;
        assert_eq!(answer.code(), 250, "{name}: {answer:?}");
        wait_for(name, || sink.kept_count() == n + 1).await;
        let kept = sink.kept().pop().unwrap();
        let rest = without_our_fields(&kept.content);
        if rest != arrives {
            let at = rest.iter().zip(&arrives).position(|(a, b)| a != b).unwrap_or_else(|| rest.len().min(arrives.len()));
            panic!("{name}: {} bytes arrive, {} should, the first difference at {at}", rest.len(), arrives.len());
        }
        assert!(!kept.content.starts_with(b"Received: from a"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_as_they_were_sent_inline() {
    let sink = Sink::start(Script::default()).await;
    let world = Setup::new(vec![to("a", &sink)]).start().await;
    check(&world, &sink, "u@a.example").await;
    assert_eq!(world.gateway.spool.status().records, 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_as_they_were_sent_through_the_queue() {
    let sink = Sink::start(Script::default()).await;
    let queued = with(to("a", &sink), |part| part.delivery = DeliveryMode::Queue);
    // Nothing of the bodies stays in memory, so that every byte comes from the disk.
    let mut setup = Setup::new(vec![queued]);
    setup.delivery.cache_bytes = 0;
    let world = setup.start().await;
    check(&world, &sink, "u@a.example").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_next_hop_should_see_is_refused() {
    let sink = Sink::start(Script::default()).await;
    let world = Setup::new(vec![to("a", &sink)]).start().await;
    for (name, content, code) in [
        ("a bare LF", b"Subject: x\r\n\r\nsmuggled\n.\r\nMAIL FROM:<x@y>\r\n".to_vec(), 550),
        ("a bare CR", b"Subject: x\r\n\r\na\rb\r\n".to_vec(), 550),
        ("a NUL", b"Subject: x\r\n\r\na\0b\r\n".to_vec(), 550),
        ("a line of 70,000", [MAIL, &vec![b'x'; 70_000], b"\r\n"].concat(), 550),
        ("51 Received fields", [b"Received: x\r\n".repeat(51), MAIL.to_vec()].concat(), 554),
    ] {
        let answer = world.client().await.send(&["u@a.example"], &content).await;
        assert_eq!(answer.code(), code, "{name}: {answer:?}");
    }
    assert!(sink.kept().is_empty() && world.queue().is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tagged_spam_has_the_tag_in_the_subject_and_nowhere_else() {
    let sink = Sink::start(Script::default()).await;
    let tags = with(to("tags", &sink), |part| part.policy.anti_spam.subject_tag = "[SPAM] ".into());
    let world = Setup::new(vec![tags.clone(), with(to("plain", &sink), |part| part.policy = tags.policy.clone())]).start().await;
    world.fake("as").on_mail(|_| Step::Find(Finding::Spam(SpamScore { milli: 9_000, required_milli: 6_000, reject_milli: 15_000, certain: false })));
    let mut client = world.client().await;
    assert_eq!(client.send(&["u@tags.example"], MAIL).await.code(), 250);
    let kept = sink.kept()[0].content.clone();
    assert_eq!(header(&kept, "X-Spam-Status"), "Yes");
    let expected = String::from_utf8(MAIL.to_vec()).unwrap().replace("Subject: hello", "Subject: [SPAM] hello");
    assert_eq!(String::from_utf8_lossy(without_our_fields(&kept)), expected);
    let japanese = b"Subject: =?ISO-2022-JP?B?GyRCJEYkOSRIGyhC?=\r\n\r\n\x1b$B$3\x1b(B\r\n";
    assert_eq!(client.send(&["u@tags.example"], japanese).await.code(), 250);
    let kept = sink.kept()[1].content.clone();
    assert_eq!(without_our_fields(&kept), b"Subject: [SPAM] =?ISO-2022-JP?B?GyRCJEYkOSRIGyhC?=\r\n\r\n\x1b$B$3\x1b(B\r\n");
    // Observed mail is marked for clients, but its subject is left alone: a tag is an action.
    world.configure(&[with(tags, |part| part.enforcement = sekimori_crds::vocabulary::Enforcement::Observe)]);
    assert_eq!(client.send(&["u@tags.example"], MAIL).await.code(), 250);
    let kept = sink.kept()[2].content.clone();
    assert_eq!((header(&kept, "X-Spam-Status").as_str(), without_our_fields(&kept)), ("Yes", MAIL));
    // Two tenants, two forms of one body: one is tagged, the other is not.
    let lenient = with(to("plain", &sink), |part| {
        part.policy.anti_spam.subject_tag = String::new();
        part.policy.anti_virus.infected = Action::Reject;
    });
    world.configure(&[with(to("tags", &sink), |part| part.policy.anti_spam.subject_tag = "[SPAM] ".into()), lenient]);
    assert_eq!(client.send(&["u@tags.example", "u@plain.example"], MAIL).await.code(), 250);
    wait_for("both", || sink.kept_count() == 5).await;
    for kept in &sink.kept()[3..] {
        let tagged = kept.recipients == ["u@tags.example"];
        assert_eq!(without_our_fields(&kept.content), if tagged { expected.as_bytes() } else { MAIL });
    }
    world.stop().await;
}
