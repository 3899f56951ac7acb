//! A 250 is a promise: with a broken disk, a full one, an absent store, or while stopping, it is not given, or kept all the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sekimori_crds::stream::DrainKind;
use sekimori_crds::vocabulary::{Action, DeliveryMode, Enforcement, EngineClass, TooFewEngines};
use sekimori_mta::io::engine::fake::Step;
use sekimori_mta::io::quarantine::Kind;
use sekimori_mta::queue::index::State;
use sekimori_mta::verdict::{Failure, Finding, Unscannable};

use super::client::{Client, stuffed};
use super::tenants::{MAIL, header, sized, to, with};
use super::world::{MemoryDisk, Setup, engine};
use crate::delivery::gateway::wait_for;
use crate::delivery::sink::{Act, Script, Sink, say};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_disk_is_451_and_nothing_is_claimed() {
    let sink = Sink::start(Script::default()).await;
    let disk = Arc::new(MemoryDisk::default());
    let queued = with(to("queued", &sink), |part| part.delivery = DeliveryMode::Queue);
    let world = Setup { disk: Some(Arc::clone(&disk)), ..Setup::new(vec![queued, to("inline", &sink)]) }.start().await;
    let mut client = world.client().await;
    assert_eq!(client.send(&["u@queued.example"], MAIL).await.code(), 250);
    wait_for("the first copy", || sink.kept_count() == 1).await;
    disk.broken.store(true, Ordering::SeqCst);
    let answer = client.send(&["v@queued.example"], MAIL).await;
    assert_eq!((answer.code(), answer.text()), (451, "4.3.0 The message cannot be stored now, try again later"));
    // Two tenants are two copies, so this one needs the spool as well.
    assert_eq!(client.send(&["v@queued.example", "v@inline.example"], MAIL).await.code(), 451);
    // What can be handed over at once needs no disk.
    assert_eq!(client.send(&["w@inline.example"], MAIL).await.code(), 250);
    // Even when the disk works again: a sync that failed is not tried again on that file.
    disk.broken.store(false, Ordering::SeqCst);
    assert_eq!(client.send(&["v@queued.example"], MAIL).await.code(), 451);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sink.kept().iter().map(|kept| kept.recipients.concat()).collect::<Vec<_>>(), ["u@queued.example", "w@inline.example"]);
    assert!(world.queue().is_empty(), "nothing that was refused is delivered later");
    assert_eq!(world.metric("sekimori_messages_total{disposition=\"deferred\"}"), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_452_and_ends_when_there_is_room_again() {
    let sink = Sink::start(Script { banner: say("421 4.3.2 later"), ..Script::default() }).await;
    let disk = Arc::new(MemoryDisk::default());
    let world = Setup { disk: Some(Arc::clone(&disk)), segment_bytes: 256 << 10, segments_max: 4, ..Setup::new(vec![to("a", &sink)]) }.start().await;
    let body = sized(50_000);
    let mut client = world.client().await;
    let mut accepted = 0;
    let refusal = loop {
        let answer = client.send(&["u@a.example"], &body).await;
        if answer.code() != 250 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 50, "four segments of 256 KiB hold no more than 20 of these");
    };
    assert_eq!((refusal.code(), refusal.text()), (452, "4.3.1 Not enough disk space now, try again later"));
    assert!(accepted >= 10, "{accepted}");
    assert_eq!(world.queue().len(), accepted);
    assert!(sink.kept().is_empty());
    sink.change(|script| script.banner = Act::Accept);
    world.drained().await;
    assert_eq!(sink.kept_count(), accepted, "everything that was accepted, and nothing else");
    wait_for("room again", || world.gateway.spool.status().records == 0).await;
    assert_eq!(client.send(&["u@a.example"], &body).await.code(), 250);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spool_keeps_what_the_quarantine_cannot_take() {
    let sink = Sink::start(Script::default()).await;
    let keeps = with(to("keeps", &sink), |part| part.policy.anti_virus.infected = Action::Quarantine);
    let other = with(to("other", &sink), |part| part.policy.anti_virus.infected = Action::Deliver);
    let world = Setup::new(vec![keeps, other]).start().await;
    world.fake("av").on_mail(|_| Step::Find(Finding::Infected("Worm".into())));
    world.quarantine_works(false);
    let answer = world.client().await.send(&["u@keeps.example", "u@other.example"], MAIL).await;
    assert_eq!(answer.code(), 250, "{answer:?}");
    wait_for("the other tenant's copy", || sink.kept_count() == 1).await;
    assert_eq!(sink.kept()[0].recipients, ["u@other.example"], "an absent store holds up nobody else");
    wait_for("its entry to be settled", || world.queue().len() == 1).await;
    let waiting: Vec<(String, &str)> = world.queue().iter().map(|entry| (entry.tenant.to_string(), entry.purpose)).collect();
    assert_eq!(waiting, [("mail/keeps".to_owned(), "quarantine")]);
    assert_eq!(world.gateway.spool.status().records, 1);
    world.quarantine_works(true);
    wait_for("the copy to move", || world.queue().is_empty()).await;
    assert_eq!(world.kept_for(Kind::Quarantined).await, ["u@keeps.example: Quarantine: malware Worm (av)"]);
    assert_eq!(world.kept().await[0].raw, MAIL);
    wait_for("the record to be forgotten", || world.gateway.spool.status().records == 0).await;
    assert_eq!(sink.kept_count(), 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_store_nor_disk_is_451() {
    let sink = Sink::start(Script::default()).await;
    let disk = Arc::new(MemoryDisk::default());
    let keeps = with(to("keeps", &sink), |part| part.policy.anti_virus.infected = Action::Quarantine);
    let world = Setup { disk: Some(Arc::clone(&disk)), ..Setup::new(vec![keeps]) }.start().await;
    world.fake("av").on_mail(|_| Step::Find(Finding::Infected("Worm".into())));
    world.quarantine_works(false);
    disk.broken.store(true, Ordering::SeqCst);
    assert_eq!(world.client().await.send(&["u@keeps.example"], MAIL).await.code(), 451);
    assert!(world.queue().is_empty() && sink.kept().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_hop_refuses_one_of_two() {
    let sink = Sink::start(Script {
        rcpt: Arc::new(|address| if address.starts_with("bad") { say("550 5.1.1 no such user") } else { Act::Accept }),
        ..Script::default()
    })
    .await;
    let world = Setup::new(vec![to("a", &sink)]).start().await;
    let mut client = world.client().await;
    assert_eq!(client.send(&["good@a.example", "bad@a.example"], MAIL).await.code(), 250);
    assert_eq!(sink.kept()[0].recipients, ["good@a.example"]);
    assert_eq!(world.kept_for(Kind::DeadLetter).await, ["bad@a.example: refused by the next hop: 550 5.1.1 no such user"]);
    let answer = client.send(&["bad@a.example"], MAIL).await;
    assert_eq!((answer.code(), answer.text()), (550, "5.1.1 no such user"), "nobody was promised anything, so its answer is ours");
    assert_eq!(world.kept().await.len(), 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inline_tenant_has_nothing_at_rest() {
    let sink = Sink::start(Script { banner: say("421 4.3.2 later"), ..Script::default() }).await;
    let inline = with(to("strict", &sink), |part| {
        part.delivery = DeliveryMode::Inline;
        part.policy.anti_virus.infected = Action::Quarantine;
        part.policy.anti_virus.too_few_engines = TooFewEngines::Quarantine;
    });
    let world = Setup::new(vec![inline, to("other", &sink)]).start().await;
    let mut client = world.client().await;
    let answer = client.send(&["u@strict.example", "v@strict.example", "w@other.example"], MAIL).await;
    assert_eq!(answer.recipients.iter().map(|said| said.code).collect::<Vec<_>>(), [250, 452, 452]);
    assert_eq!(answer.code(), 451, "{answer:?}");
    let answer = client.send(&["w@other.example", "u@strict.example"], MAIL).await;
    assert_eq!(answer.recipients.iter().map(|said| said.code).collect::<Vec<_>>(), [250, 452]);
    assert_eq!(answer.code(), 250, "the other tenant's mail is queued");
    for (step, code) in [(Step::Find(Finding::Infected("Worm".into())), 550), (Step::Fail(Failure::Timeout), 451)] {
        world.fake("av").on_mail(move |_| step.clone());
        assert_eq!(client.send(&["u@strict.example"], MAIL).await.code(), code);
    }
    world.fake("av").on_mail(|_| Step::Honest);
    sink.change(|script| script.banner = Act::Accept);
    world.drained().await;
    sink.change(|script| script.end = Act::KeepAndDrop);
    tokio::time::sleep(Duration::from_millis(250)).await;
    let written = world.gateway.spool.status().written_bytes;
    let before = sink.kept_count();
    let answer = client.send(&["u@strict.example"], MAIL).await;
    assert_eq!(answer.code(), 451, "nobody knows whether it was taken: {answer:?}");
    assert_eq!(sink.kept_count(), before + 1);
    assert!(world.kept().await.is_empty() && world.queue().is_empty());
    assert_eq!(world.gateway.spool.status().written_bytes, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_spooled_and_tried_again() {
    let sink = Sink::start(Script { end: Act::KeepAndDrop, ..Script::default() }).await;
    let world = Setup::new(vec![to("a", &sink)]).start().await;
    assert_eq!(world.client().await.send(&["u@a.example"], MAIL).await.code(), 250);
    assert_eq!((sink.kept_count(), world.queue().len()), (1, 1));
    assert_eq!(world.gateway.delivery.figures().ambiguous.value(), 1);
    sink.change(|script| script.end = Act::Accept);
    world.drained().await;
    assert_eq!(sink.kept_count(), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_stopping_too_few_engines_defers_whatever_the_policy() {
    let sink = Sink::start(Script::default()).await;
    let passes = with(to("passes", &sink), |part| {
        part.policy.anti_virus.too_few_engines = TooFewEngines::PassUnscanned;
        part.policy.anti_spam.too_few_engines = TooFewEngines::PassUnscanned;
    });
    let world = Setup::new(vec![passes]).start().await;
    world.fake("av").on_mail(|_| Step::Fail(Failure::Timeout));
    let mut client = world.client().await;
    assert_eq!(client.send(&["u@passes.example"], MAIL).await.code(), 250);
    assert!(header(&sink.kept()[0].content, "X-Sekimori-Verdict").contains("unscanned=AntiVirus"));
    client.begin("a@sender.test", &["v@passes.example"]).await;
    world.gateway.stopping.send_replace(true);
    client.write(&stuffed(MAIL)).await;
    assert_eq!(client.reply().await.code, 451);
    assert_eq!(client.reply().await.code, 421, "and then the session ends");
    assert!(client.is_closed().await);
    assert_eq!(sink.kept_count(), 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_draining_too_few_engines_defers_and_afterwards_the_policy_holds_again() {
    let sink = Sink::start(Script::default()).await;
    let passes = with(to("passes", &sink), |part| {
        part.policy.anti_virus.too_few_engines = TooFewEngines::PassUnscanned;
        part.policy.anti_spam.too_few_engines = TooFewEngines::PassUnscanned;
    });
    let world = Setup::new(vec![passes]).start().await;
    world.fake("av").on_mail(|_| Step::Fail(Failure::Timeout));
    for kind in [DrainKind::Restart, DrainKind::Retire] {
        let mut client = world.client().await;
        client.begin("a@sender.test", &["v@passes.example"]).await;
        world.gateway.draining.send_replace(kind);
        client.write(&stuffed(MAIL)).await;
        assert_eq!(client.reply().await.code, 451);
        assert_eq!(client.reply().await.code, 421, "and then the session ends");
        assert!(client.is_closed().await);
        let mut late = Client::raw(world.address, "192.0.2.1").await;
        assert_eq!(late.reply().await.code, 421, "the listener still answers");
        assert!(late.is_closed().await);
        world.gateway.draining.send_replace(DrainKind::None);
        assert_eq!(world.client().await.send(&["u@passes.example"], MAIL).await.code(), 250);
    }
    assert_eq!(sink.kept_count(), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observed_tenant_gets_its_mail_whatever_is_found() {
    let sink = Sink::start(Script::default()).await;
    let observed = with(to("observed", &sink), |part| part.enforcement = Enforcement::Observe);
    let world = Setup::new(vec![observed]).start().await;
    world.fake("av").on_mail(|_| Step::Find(Finding::Infected("Worm".into())));
    let mut client = world.client().await;
    assert_eq!(client.send(&["u@observed.example"], MAIL).await.code(), 250);
    let kept = sink.kept();
    assert!(header(&kept[0].content, "X-Sekimori-Verdict").starts_with("action=Reject; anti-virus=infected(Worm)"));
    assert_eq!(header(&kept[0].content, "X-Spam-Status"), "Yes");
    world.fake("av").on_mail(|_| Step::Fail(Failure::Timeout));
    assert_eq!(client.send(&["u@observed.example"], MAIL).await.code(), 250);
    assert!(header(&sink.kept()[1].content, "X-Sekimori-Verdict").contains("unscanned=AntiVirus"));
    assert_eq!(world.metric("sekimori_unscanned_total{class=\"AntiVirus\"}"), 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_everything_goes_on_where_it_was() {
    let sink = Sink::start(Script { banner: say("421 4.3.2 later"), ..Script::default() }).await;
    let tenants = [
        to("delivers", &sink),
        with(to("defers", &sink), |part| part.policy.anti_virus.minimum_engines = 2),
        with(to("keeps", &sink), |part| part.policy.anti_virus.too_large = Action::Quarantine),
    ];
    let engines = vec![engine("av", EngineClass::AntiVirus), engine("second", EngineClass::AntiVirus), engine("as", EngineClass::AntiSpam)];
    let world = Setup { engines, ..Setup::new(tenants.to_vec()) }.start().await;
    world.fake("second").on_mail(|_| Step::Fail(Failure::Timeout));
    world.quarantine_works(false);
    let mut client = world.client().await;
    let body = sized(30_000);
    assert_eq!(client.send(&["u@delivers.example", "v@delivers.example", "u@defers.example"], &body).await.code(), 250);
    world.fake("av").on_mail(|_| Step::Find(Finding::Unscannable(Unscannable::TooLarge)));
    assert_eq!(client.send(&["u@keeps.example"], &body).await.code(), 250);
    drop(client);
    wait_for("three copies to wait", || world.queue().len() == 3 && world.queue().iter().all(|entry| entry.state != State::InFlight)).await;
    world.quarantine_works(true);
    let (setup, dir) = world.stop().await;
    assert!(sink.kept().is_empty());

    sink.change(|script| script.banner = Act::Accept);
    let world = setup.start_in(dir).await;
    world.drained().await;
    let mut arrived: Vec<String> = sink.kept().into_iter().flat_map(|kept| kept.recipients).collect();
    arrived.sort();
    assert_eq!(arrived, ["u@defers.example", "u@delivers.example", "v@delivers.example"]);
    assert!(sink.kept().iter().all(|kept| kept.content.ends_with(&body) && header(&kept.content, "X-Sekimori-Verdict").contains("anti-virus=clean")));
    assert_eq!(world.kept_for(Kind::Quarantined).await, ["u@keeps.example: Quarantine: unscannable content: too large (av)"]);
    wait_for("every record to be forgotten", || world.gateway.spool.status().records == 0).await;
    let (setup, dir) = world.stop().await;
    let world = setup.start_in(dir).await;
    assert!(world.queue().is_empty(), "what is finished does not come back");
    assert_eq!(world.kept().await.len(), 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_in_the_end_passed_nothing_unscanned() {
    let sink = Sink::start(Script::default()).await;
    let disk = Arc::new(MemoryDisk::default());
    let passes = |name: &str| {
        with(to(name, &sink), |part| {
            part.delivery = DeliveryMode::Queue;
            part.policy.anti_virus.too_few_engines = TooFewEngines::PassUnscanned;
        })
    };
    let full = Setup { disk: Some(Arc::clone(&disk)), ..Setup::new(vec![passes("a"), passes("b")]) }.start().await;
    full.fake("av").on_mail(|_| Step::Fail(Failure::Timeout));
    let mut client = full.client().await;
    assert_eq!(client.send(&["u@a.example", "u@b.example"], MAIL).await.code(), 250);
    let unscanned = "sekimori_unscanned_total{class=\"AntiVirus\"}";
    assert_eq!(full.metric(unscanned), 2);
    disk.broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(client.send(&["u@a.example", "u@b.example"], MAIL).await.code(), 451);
    }
    assert_eq!(full.metric(unscanned), 2, "each try would count otherwise");
    assert_eq!(full.metric("sekimori_messages_total{disposition=\"deferred\"}"), 6);
    // Content that the session itself refuses counts its recipients' copies too.
    assert_eq!(client.send(&["u@a.example", "v@a.example", "u@b.example"], b"Subject: x\r\n\r\na\0b\r\n").await.code(), 550);
    assert_eq!(full.metric("sekimori_messages_total{disposition=\"rejected\"}"), 3);
}
