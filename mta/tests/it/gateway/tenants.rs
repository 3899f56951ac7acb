//! One transaction, several tenants: one answer, and every copy in its place.

use bytes::Bytes;
use sekimori_crds::snapshot::TenantPart;
use sekimori_crds::vocabulary::{Action, DeliveryMode, TooFewEngines};
use sekimori_mta::io::engine::fake::Step;
use sekimori_mta::io::quarantine::Kind;
use sekimori_mta::queue::index::State;
use sekimori_mta::verdict::{Failure, Finding};

use super::client::stuffed;
use super::world::Setup;
use crate::delivery::gateway::{route, tenant, wait_for};
use crate::delivery::sink::{Act, Script, Sink};

pub(crate) const MAIL: &[u8] = b"From: a@sender.test\r\nTo: u@a.example\r\nMessage-ID: <1@sender.test>\r\nSubject: hello\r\n\r\nA line.\r\n";

pub(crate) fn to(name: &str, sink: &Sink) -> TenantPart {
    tenant(name, vec![route("r", sink.address)])
}

pub(crate) fn with(mut part: TenantPart, change: impl FnOnce(&mut TenantPart)) -> TenantPart {
    change(&mut part);
    part
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_rejects_and_the_other_delivers() {
    let sink = Sink::start(Script::default()).await;
    let strict = to("strict", &sink);
    let lax = with(to("lax", &sink), |part| part.policy.anti_virus.infected = Action::Tag);
    let world = Setup::new(vec![strict, lax]).start().await;
    world.fake("av").on_mail(|_| Step::Find(Finding::Infected("Worm".into())));
    let answer = world.client().await.send(&["u@strict.example", "u@lax.example", "v@lax.example"], MAIL).await;
    assert_eq!(answer.code(), 250, "{answer:?}");
    wait_for("the copy", || sink.kept_count() == 1).await;
    assert_eq!(sink.kept()[0].recipients, ["u@lax.example", "v@lax.example"]);
    let kept = world.kept().await;
    assert_eq!(kept.len(), 1);
    assert_eq!((&*kept[0].tenant, kept[0].kind, &kept[0].raw[..]), ("mail/strict", Kind::Quarantined, MAIL));
    assert_eq!(
        world.kept_for(Kind::Quarantined).await,
        ["u@strict.example: Reject: malware Worm (av) (accepted for other recipients)"],
        "the rejected copy is in its own tenant's quarantine"
    );
    assert_eq!(world.metric("sekimori_messages_total{disposition=\"quarantined\"}"), 1);
    assert_eq!(world.metric("sekimori_messages_total{disposition=\"delivered\"}"), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_reject_is_550_and_reject_with_defer_is_451() {
    let sink = Sink::start(Script::default()).await;
    let rejects = to("rejects", &sink);
    let also = to("also", &sink);
    let defers = with(to("defers", &sink), |part| {
        part.policy.anti_virus.minimum_engines = 1;
        part.policy.anti_virus.infected = Action::Defer;
    });
    let world = Setup::new(vec![rejects, also, defers]).start().await;
    world.fake("av").on_mail(|_| Step::Find(Finding::Infected("Worm".into())));
    let mut client = world.client().await;
    let answer = client.send(&["u@rejects.example", "u@also.example"], MAIL).await;
    assert_eq!((answer.code(), answer.text()), (550, "5.7.1 message refused: it contains malware (Worm)"));
    let answer = client.send(&["u@rejects.example", "u@defers.example"], MAIL).await;
    assert_eq!(answer.code(), 451, "{answer:?}");
    assert!(sink.kept().is_empty() && world.kept().await.is_empty() && world.queue().is_empty());
    assert_eq!(world.gateway.spool.status().records, 0);
    assert_eq!(world.metric("sekimori_messages_total{disposition=\"rejected\"}"), 2);
    assert_eq!(world.metric("sekimori_messages_total{disposition=\"deferred\"}"), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discard_is_counted_and_goes_nowhere() {
    let sink = Sink::start(Script::default()).await;
    let discards = with(to("discards", &sink), |part| part.policy.anti_virus.infected = Action::Discard);
    let world = Setup::new(vec![discards]).start().await;
    world.fake("av").on_mail(|_| Step::Find(Finding::Infected("Worm".into())));
    let answer = world.client().await.send(&["u@discards.example", "v@discards.example"], MAIL).await;
    assert_eq!(answer.code(), 250);
    assert!(sink.kept().is_empty() && world.kept().await.is_empty() && world.queue().is_empty());
    assert_eq!(world.metric("sekimori_messages_total{disposition=\"discarded\"}"), 2);
    world.stop().await;
}

/// A body of so many bytes in lines of 78.
pub(super) fn sized(bytes: usize) -> Bytes {
    let mut mail = MAIL.to_vec();
    while mail.len() < bytes {
        mail.extend_from_slice(&[b'x'; 76]);
        mail.extend_from_slice(b"\r\n");
    }
    mail.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_tenants_share_one_written_body() {
    let sink = Sink::start(Script::default()).await;
    let tenants = ["a", "b", "c"].map(|name| to(name, &sink)).to_vec();
    let world = Setup::new(tenants).start().await;
    let body = sized(50_000);
    let mut client = world.client().await;
    // The first message opens a segment, with a header of its own.
    assert_eq!(client.send(&["u@a.example", "u@b.example"], MAIL).await.code(), 250);
    wait_for("the first to be forgotten", || sink.kept_count() == 2 && world.gateway.spool.status().records == 0).await;
    world.gateway.spool.flush().await.unwrap();
    let before = world.gateway.spool.status().written_bytes;
    let answer = client.send(&["u@a.example", "u@b.example", "u@c.example"], &body).await;
    assert_eq!(answer.code(), 250);
    wait_for("three copies", || sink.kept_count() == 5).await;
    wait_for("the record to be forgotten", || world.gateway.spool.status().records == 0).await;
    world.gateway.spool.flush().await.unwrap();
    let written = world.gateway.spool.status().written_bytes - before;
    // The three forms of the header are what differs.
    assert!(written as f64 <= 1.05 * body.len() as f64 + 1024.0, "{written} bytes for {}", body.len());
    assert!(sink.kept()[2..].iter().all(|kept| kept.content.ends_with(&body)));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_inline_delivery_writes_nothing() {
    let sink = Sink::start(Script::default()).await;
    let world = Setup::new(vec![to("a", &sink)]).start().await;
    let before = world.gateway.spool.status();
    let mut client = world.client().await;
    let body = sized(50_000);
    for _ in 0..20 {
        let answer = client.send(&["u@a.example", "v@a.example"], &body).await;
        assert_eq!((answer.code(), answer.text()), (250, "2.0.0 Ok: queued as 4711"));
    }
    assert_eq!(sink.kept_count(), 20);
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    assert_eq!(world.gateway.spool.status(), before, "the spool was not touched");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_writes_five_percent_more_than_the_mail() {
    let sink = Sink::start(Script::default()).await;
    let queued = with(to("a", &sink), |part| part.delivery = DeliveryMode::Queue);
    let world = Setup::new(vec![queued]).start().await;
    let body = sized(50_000);
    let before = world.gateway.spool.status().written_bytes;
    let mut client = world.client().await;
    for _ in 0..20 {
        assert_eq!(client.send(&["u@a.example"], &body).await.code(), 250);
    }
    wait_for("twenty copies", || sink.kept_count() == 20 && world.gateway.spool.status().records == 0).await;
    world.gateway.spool.flush().await.unwrap();
    let ratio = (world.gateway.spool.status().written_bytes - before) as f64 / (20 * body.len()) as f64;
    assert!((1.0..=1.05).contains(&ratio), "{ratio}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenant_defers_while_another_delivers_and_is_judged_later() {
    let sink = Sink::start(Script::default()).await;
    let patient = to("patient", &sink);
    let hasty = with(to("hasty", &sink), |part| part.policy.anti_virus.too_few_engines = TooFewEngines::PassUnscanned);
    let world = Setup::new(vec![patient, hasty]).start().await;
    world.fake("av").on_mail(|_| Step::Fail(Failure::Unreachable("down".into())));
    let answer = world.client().await.send(&["u@patient.example", "u@hasty.example"], MAIL).await;
    assert_eq!(answer.code(), 250, "{answer:?}");
    wait_for("the hasty copy", || sink.kept_count() == 1).await;
    assert_eq!(sink.kept()[0].recipients, ["u@hasty.example"]);
    assert!(header(&sink.kept()[0].content, "X-Sekimori-Verdict").contains("unscanned=AntiVirus"));
    wait_for("a later scan that finds the engine down still", || world.queue().first().is_some_and(|entry| entry.state == State::Scheduled)).await;
    assert_eq!(world.metric("sekimori_unscanned_total{class=\"AntiVirus\"}"), 1, "what is deferred has not passed");
    world.fake("av").on_mail(|_| Step::Honest);
    world.drained().await;
    assert_eq!(sink.kept_count(), 2);
    let late = sink.kept()[1].clone();
    assert_eq!(late.recipients, ["u@patient.example"]);
    assert!(late.content.ends_with(MAIL));
    let verdict = header(&late.content, "X-Sekimori-Verdict");
    assert!(verdict.contains("anti-virus=clean") && !verdict.contains("unscanned"), "{verdict}");
    wait_for("the record to be forgotten", || world.gateway.spool.status().records == 0).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_scan_lets_pass_unscanned_is_counted_too() {
    let sink = Sink::start(Script::default()).await;
    let defers = to("defers", &sink);
    let tags = with(to("tags", &sink), |part| part.policy.anti_virus.too_few_engines = TooFewEngines::PassUnscanned);
    let world = Setup::new(vec![defers.clone(), tags.clone()]).start().await;
    world.fake("av").on_mail(|_| Step::Fail(Failure::Timeout));
    assert_eq!(world.client().await.send(&["u@defers.example", "u@tags.example"], MAIL).await.code(), 250);
    wait_for("the first copy", || sink.kept_count() == 1).await;
    // The tenant decides that it had rather have its mail.
    world.configure(&[with(defers, |part| part.policy.anti_virus.too_few_engines = TooFewEngines::PassUnscanned), tags]);
    world.drained().await;
    assert_eq!(sink.kept()[1].recipients, ["u@defers.example"]);
    assert!(header(&sink.kept()[1].content, "X-Sekimori-Verdict").contains("unscanned=AntiVirus"));
    assert_eq!(world.metric("sekimori_unscanned_total{class=\"AntiVirus\"}"), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_mail_of_a_tenant_that_is_gone_from_the_configuration_is_not_lost() {
    let sink = Sink::start(Script::default()).await;
    let defers = to("defers", &sink);
    let passes = with(to("passes", &sink), |part| part.policy.anti_virus.too_few_engines = TooFewEngines::PassUnscanned);
    let world = Setup::new(vec![defers.clone(), passes.clone()]).start().await;
    world.fake("av").on_mail(|_| Step::Fail(Failure::Timeout));
    let mut client = world.client().await;
    // Its last message was under way when it was removed, so nobody knew that it has mail.
    client.begin("a@sender.test", &["u@defers.example", "u@passes.example"]).await;
    world.configure(std::slice::from_ref(&passes));
    client.write(&stuffed(MAIL)).await;
    assert_eq!(client.reply().await.code, 250);
    for _ in 0..10 {
        world.retry();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(world.queue().iter().map(|entry| (&*entry.tenant, entry.purpose)).collect::<Vec<_>>(), [("mail/defers", "rescan")]);
    world.fake("av").on_mail(|_| Step::Honest);
    world.configure(&[defers, passes]);
    world.drained().await;
    assert_eq!(sink.kept()[1].recipients, ["u@defers.example"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_types_are_found_in_archives() {
    let sink = Sink::start(Script::default()).await;
    let blocks = with(to("blocks", &sink), |part| part.policy.attachments.block_types = vec!["exe".into()]);
    let world = Setup::new(vec![blocks, to("takes", &sink)]).start().await;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    zip.start_file("invoice.pdf.exe", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut zip, b"not a program").unwrap();
    let zipped = data_encoding::BASE64.encode(&zip.finish().unwrap().into_inner());
    let mail = format!(
        "Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: application/zip; name=a.zip\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n",
        zipped.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\r\n")
    );
    let mut client = world.client().await;
    let answer = client.send(&["u@blocks.example"], mail.as_bytes()).await;
    assert_eq!((answer.code(), answer.text()), (550, "5.7.1 message refused: attachments of type .exe are not accepted"));
    assert_eq!(client.send(&["u@takes.example"], mail.as_bytes()).await.code(), 250);
    assert_eq!(client.send(&["u@blocks.example"], MAIL).await.code(), 250);
    world.stop().await;
}

/// The first field of this name, unfolded; empty if there is none.
pub(crate) fn header(content: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(content).replace("\r\n\t", " ").replace("\r\n ", " ");
    let prefix = format!("{name}: ");
    text.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_that_nobody_looked_into_pass_no_blocked_types_in_silence() {
    let sink = Sink::start(Script::default()).await;
    let block = |part: &mut TenantPart| part.policy.attachments.block_types = vec!["exe".into()];
    let keeps = with(to("keeps", &sink), block);
    let passes = with(with(to("passes", &sink), block), |part| part.policy.anti_virus.limits_exceeded = Action::Deliver);
    let world = Setup::new(vec![keeps, passes, to("takes", &sink)]).start().await;
    // Deeper than is looked into.
    let mut content = b"not a program".to_vec();
    for depth in 0..8 {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
        zip.start_file(if depth == 0 { "a.exe" } else { "a.zip" }, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut zip, &content).unwrap();
        content = zip.finish().unwrap().into_inner();
    }
    let zipped = data_encoding::BASE64.encode(&content);
    let mail = format!(
        "Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: application/zip; name=a.zip\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n",
        zipped.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\r\n")
    );
    let mut client = world.client().await;
    assert_eq!(client.send(&["u@keeps.example"], mail.as_bytes()).await.code(), 250);
    assert_eq!(
        world.kept_for(Kind::Quarantined).await,
        ["u@keeps.example: Quarantine: unscannable content: limits exceeded (blocked-types)"],
        "as the policy says of what cannot be scanned"
    );
    assert_eq!(sink.kept_count(), 0);
    assert_eq!(world.metric("sekimori_unscanned_total{class=\"AntiVirus\"}"), 0, "it did not pass");
    assert_eq!(client.send(&["u@passes.example"], mail.as_bytes()).await.code(), 250);
    let verdict = header(&sink.kept()[0].content, "X-Sekimori-Verdict");
    assert!(verdict.contains("unscanned=AntiVirus") && verdict.contains("blocked-types"), "{verdict}");
    assert_eq!(world.metric("sekimori_unscanned_total{class=\"AntiVirus\"}"), 1);
    assert_eq!(client.send(&["u@takes.example"], mail.as_bytes()).await.code(), 250);
    let verdict = header(&sink.kept()[1].content, "X-Sekimori-Verdict");
    assert!(!verdict.contains("unscanned"), "a policy that blocks nothing looks for nothing: {verdict}");
    world.stop().await;
}

/// Fields that only we may write, with others between them, so that each is taken away by itself.
fn forged(fields: usize) -> Vec<u8> {
    let head: String = (0..fields).map(|n| if n % 2 == 0 { "X-Sekimori-a:\r\n".to_owned() } else { format!("X-{n}:\r\n") }).collect();
    format!("From: a@sender.test\r\nSubject: x\r\n{head}\r\nA line.\r\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_mail_to_very_many_tenants_stays_small() {
    let sink = Sink::start(Script { banner: Act::Stall, ..Script::default() }).await;
    let names: Vec<String> = (0..120).map(|n| format!("t{n}")).collect();
    let tenants: Vec<TenantPart> = names.iter().map(|name| with(to(name, &sink), |part| part.delivery = DeliveryMode::Queue)).collect();
    let recipients: Vec<String> = names.iter().map(|name| format!("u@{name}.example")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let mail = forged(990);
    let world = Setup::new(tenants).start().await;
    let answer = world.client().await.send(&recipients, &mail).await;
    assert_eq!(answer.code(), 250, "{answer:?}");
    assert_eq!(answer.recipients.iter().filter(|said| said.code == 250).count(), 100);
    for said in &answer.recipients[100..] {
        assert_eq!((said.code, said.text.as_str()), (452, "4.5.3 Too many domains, send the rest in another transaction"));
    }
    let entries = world.queue();
    assert_eq!(entries.len(), 100);
    let written = world.gateway.spool.read(entries[0].id).await.unwrap().0.len();
    assert!(written < 100 * 2_000, "the record has {written} bytes");
    // After a restart, everything arrives as it should.
    let (setup, dir) = world.stop().await;
    sink.change(|script| script.banner = Act::Accept);
    let world = setup.start_in(dir).await;
    world.drained().await;
    assert_eq!(sink.kept_count(), 100);
    assert!(sink.kept().iter().all(|kept| !kept.content.windows(13).any(|text| text == b"X-Sekimori-a:")), "what was forged is gone");
    world.stop().await;

    // What is made of a message counts as its memory.
    let tenants: Vec<TenantPart> = names.iter().map(|name| to(name, &sink)).collect();
    let world = Setup { memory: (100_000, 100), ..Setup::new(tenants) }.start().await;
    let mut client = world.client().await;
    let answer = client.send(&recipients, &mail).await;
    assert_eq!((answer.code(), answer.text()), (452, "4.3.1 Not enough memory for this message now, try again later"));
    assert!(world.queue().is_empty());
    assert_eq!(client.send(&recipients[..2], &mail).await.code(), 250);
    world.stop().await;
}
