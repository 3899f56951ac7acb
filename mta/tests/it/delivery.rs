//! Delivery over real TCP to a scriptable server: every row of the outcome map, and servers that hang, lie and vanish.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers")]

pub(crate) mod gateway;
pub(crate) mod sink;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gateway::{Gateway, envelope, envelope_from, mail, options, route, tenant, wait_for, word};
use sekimori_crds::vocabulary::{RouteTls, TenantState};
use sekimori_mta::io::clock;
use sekimori_mta::io::delivery::{Content, Inline, Options};
use sekimori_mta::io::spool::Record;
use sekimori_mta::message::Edits;
use sekimori_mta::message::edit::Edit;
use sekimori_mta::queue::index::{Compartment, Filter, Operation, State, Statistics};
use sekimori_mta::queue::{Group, Purpose};
use sink::{Act, Script, Sink, say};

/// Sets one act of a script.
fn script(at: &str, act: Act) -> Script {
    let mut script = Script::default();
    match at {
        "banner" => script.banner = act,
        "ehlo" => script.ehlo = act,
        "mail" => script.mail = act,
        "rcpt" => script.rcpt = Arc::new(move |_| act.clone()),
        "data" => script.data = act,
        "content" => script.content = act,
        "end" => script.end = act,
        other => panic!("no place {other}"),
    }
    script
}

/// Where, what, what inline says, what the queue does with it (`delivered`, `dead letter`, or how it is scheduled: `soon`, `later`, `much later`).
fn rows() -> Vec<(&'static str, Act, &'static str, &'static str)> {
    vec![
        ("banner", Act::Accept, "delivered", "delivered"),
        ("banner", Act::Slow(50), "delivered", "delivered"),
        ("banner", say("421 4.3.2 busy"), "not possible", "soon"),
        ("banner", say("450 later"), "not possible", "soon"),
        ("banner", say("554 5.7.1 go away"), "not possible", "soon"),
        ("banner", say("hello there"), "not possible", "soon"),
        ("banner", Act::Stall, "not possible", "soon"),
        ("banner", Act::Drop, "not possible", "soon"),
        ("ehlo", say("421 4.3.2 busy"), "not possible", "soon"),
        ("ehlo", say("502 5.5.1 what is EHLO"), "delivered", "delivered"),
        ("ehlo", Act::Stall, "not possible", "soon"),
        ("ehlo", Act::Drop, "not possible", "soon"),
        ("mail", say("451 4.7.1 greylisted"), "not possible", "later"),
        ("mail", say("550 5.7.1 not you"), "not possible", "later"),
        ("mail", say("421 4.3.2 closing"), "not possible", "later"),
        ("mail", Act::Stall, "not possible", "later"),
        ("mail", Act::Drop, "not possible", "later"),
        ("mail", say("250-x\r\n251 y"), "not possible", "later"),
        ("rcpt", say("450 4.2.1 busy"), "not possible", "later"),
        ("rcpt", say("550 5.1.1 no such user"), "refused", "dead letter"),
        ("rcpt", say("554 5.7.1 Relay access denied"), "not possible", "later"),
        ("rcpt", Act::Stall, "not possible", "later"),
        ("rcpt", Act::Drop, "not possible", "later"),
        ("data", say("451 4.3.0 later"), "not possible", "later"),
        ("data", say("554 5.6.0 no"), "refused", "dead letter"),
        ("data", say("250 what"), "not possible", "later"),
        ("data", Act::Stall, "not possible", "later"),
        ("data", Act::Drop, "not possible", "later"),
        ("content", say("552 5.3.4 enough"), "refused", "dead letter"),
        ("content", say("452 4.3.1 full"), "not possible", "later"),
        ("end", say("452 4.3.1 full"), "not possible", "later"),
        ("end", say("550 5.7.1 spam"), "refused", "dead letter"),
        ("end", say("421 4.3.2 closing"), "not possible", "later"),
        ("end", Act::Slow(100), "delivered", "delivered"),
        ("end", Act::Stall, "unknown", "much later"),
        ("end", Act::Drop, "unknown", "much later"),
        ("end", Act::KeepAndDrop, "unknown", "much later"),
        ("end", Act::KeepAndStall, "unknown", "much later"),
        ("end", say("garbage"), "unknown", "much later"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_the_outcome_map() {
    let tasks: Vec<_> = rows().into_iter().map(|(at, act, inline, queued)| tokio::spawn(one_row(at, act, inline, queued))).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn one_row(at: &'static str, act: Act, inline: &'static str, queued: &'static str) {
    let row = format!("{at} {act:?}");
    let sink = Sink::start(script(at, act)).await;
    let mut options = options();
    options.pacing.dead_after = u32::MAX;
    options.retry.maybe_delivered_ms = 600_000;
    let backoff_ms = 5_000;
    options.pacing.backoff_first_ms = backoff_ms;
    let mut gateway = Gateway::new(options, &[tenant("t", vec![route("r", sink.address)])]);
    let got = gateway.inline(&envelope("t", &["u"]), &mail()).await;
    assert_eq!(word(&got), inline, "{row}: {got:?}");
    if let Inline::Delivered { handed_over, refused, deferred, .. } = &got {
        assert_eq!((handed_over.recipients(), refused.len(), deferred.len()), (&[0][..], 0, 0));
        assert_eq!(sink.kept()[0].content, mail());
    }
    assert_eq!(gateway.delivery.figures().ambiguous.value(), u64::from(inline == "unknown"), "{row}");

    let message = envelope("t", &["u"]);
    gateway.run();
    gateway.queue(&message, &mail()).await;
    wait_for(&format!("the queue's first attempt at {row}"), || {
        let listed = gateway.delivery.list(&Filter { all: true, ..Filter::default() }, None, 10);
        listed.first().is_none_or(|entry| entry.error.is_some() && entry.state != State::InFlight)
    })
    .await;
    let listed = gateway.delivery.list(&Filter { all: true, ..Filter::default() }, None, 10);
    let copies = gateway.stores.copies.lock().unwrap().len();
    let now_ms = clock::unix_ms();
    let became = match listed.first() {
        None if copies == 0 => "delivered",
        None => "dead letter",
        Some(entry) => match entry.due_ms.unwrap().saturating_sub(now_ms) {
            0..=5_000 => "soon",
            5_001..=100_000 => "later",
            _ => "much later",
        },
    };
    assert_eq!(became, queued, "{row}: {listed:?}");
    let gone = matches!(queued, "delivered" | "dead letter");
    assert_eq!(gateway.spool.read(message.id).await.is_err(), gone, "{row}: what is not finished stays in the spool");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_route_holds_up_nobody() {
    let hung = Sink::start(script("banner", Act::Stall)).await;
    let good = Sink::start(Script::default()).await;
    let mut options = options();
    options.timeouts.banner_ms = 60_000;
    let mut gateway = Gateway::new(options, &[tenant("hung", vec![route("r", hung.address)]), tenant("good", vec![route("r", good.address)])]);
    for _ in 0..1_000 {
        gateway.queue(&envelope("hung", &["u"]), &mail()).await;
    }
    gateway.run();
    wait_for("the hung route to be full", || gateway.delivery.statistics().in_flight == 20).await;
    let begun_ms = clock::monotonic_ms();
    for _ in 0..200 {
        gateway.queue(&envelope("good", &["u"]), &mail()).await;
    }
    wait_for("the good route's mail", || good.kept_count() == 200).await;
    assert!(matches!(gateway.inline(&envelope("good", &["u"]), &mail()).await, Inline::Delivered { .. }));
    let took_ms = clock::monotonic_ms() - begun_ms;
    assert!(took_ms < 3_000, "took {took_ms} ms");
    let begun_ms = clock::monotonic_ms();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let got = gateway.inline(&envelope("hung", &["u"]), &mail()).await;
    assert_eq!(word(&got), "not possible");
    assert!(clock::monotonic_ms() - begun_ms < 2_800, "a route on which nothing moves is not waited for");
    let figures = gateway.delivery.statistics();
    assert_eq!((figures.in_flight, figures.waiting), (20, 980), "{figures:?}");
    assert!(figures.oldest_received_ms.is_some());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_what_waits_for_a_hung_route_is_never_runnable() {
    let hung = Sink::start(script("banner", Act::Stall)).await;
    let good = Sink::start(Script::default()).await;
    let mut options = options();
    // Its attempts end and begin all the time.
    options.timeouts.banner_ms = 30;
    let mut gateway = Gateway::new(options, &[tenant("hung", vec![route("r", hung.address)]), tenant("good", vec![route("r", good.address)])]);
    for _ in 0..300 {
        gateway.queue(&envelope("hung", &["u"]), &mail()).await;
    }
    gateway.run();
    wait_for("the hung route to be looked at", || gateway.delivery.statistics().waiting > 200).await;
    let filter = Filter { tenant: Some("mail/hung".into()), ..Filter::default() };
    let until_ms = clock::monotonic_ms() + 2_000;
    let (mut looks, mut sent) = (0, 0);
    while clock::monotonic_ms() < until_ms {
        if looks % 20 == 0 {
            gateway.queue(&envelope("good", &["u"]), &mail()).await;
            sent += 1;
        }
        let runnable = gateway.delivery.list(&filter, None, 1_000).iter().filter(|entry| entry.state == State::Runnable).count();
        assert_eq!(runnable, 0, "look {looks}");
        looks += 1;
        tokio::task::yield_now().await;
    }
    assert!(looks > 100, "{looks}");
    wait_for("the good route's mail", || good.kept_count() == sent).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_hung_routes_together_leave_room_for_one_that_works() {
    let hung = Sink::start(script("banner", Act::Stall)).await;
    let good = Sink::start(Script::default()).await;
    let mut options = options();
    options.timeouts.banner_ms = 60_000;
    options.attempts_max = 64;
    let names: Vec<String> = (0..30).map(|n| format!("hung{n}")).collect();
    let mut tenants: Vec<_> = names.iter().map(|name| tenant(name, vec![route("r", hung.address)])).collect();
    tenants.push(tenant("good", vec![route("r", good.address)]));
    let mut gateway = Gateway::new(options, &tenants);
    gateway.run();
    for name in names.iter().cycle().take(600) {
        gateway.queue(&envelope(name, &["u"]), &mail()).await;
    }
    wait_for("every hung route to be tried", || gateway.delivery.statistics().in_flight >= 30).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..50 {
        gateway.queue(&envelope("good", &["u"]), &mail()).await;
    }
    wait_for("the good route's mail", || good.kept_count() == 50).await;
    // Looked at often, as a lane counts as runnable from its wake-up until the worker's next look: in whatever state, nothing is ever missing or twice.
    let mut unsettled = vec![];
    for _ in 0..300 {
        let figures = gateway.delivery.statistics();
        assert_eq!(figures.runnable + figures.waiting + figures.scheduled + figures.in_flight + figures.held, 600, "{figures:?}");
        if figures.waiting + figures.in_flight != 600 {
            unsettled.push(figures);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let elsewhere = |figures: &Statistics| figures.scheduled + figures.held;
    assert!(unsettled.iter().all(|figures| elsewhere(figures) == 0), "{unsettled:?}");
    wait_for("the hung routes' mail to wait", || {
        let figures = gateway.delivery.statistics();
        figures.waiting + figures.in_flight == 600
    })
    .await;
    gateway.stop().await;
}

/// Some 100 KB.
fn large_mail() -> Bytes {
    [b"Subject: x\r\n\r\n".to_vec(), b"large\r\n".repeat(14_000)].concat().into()
}

/// A MiB for attempts, and servers that never greet are waited for.
fn little_memory() -> Options {
    let mut options = options();
    options.timeouts.banner_ms = 60_000;
    options.bodies_bytes = 1 << 20;
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_behind_a_hung_server_leave_room_for_others() {
    let hung = Sink::start(script("banner", Act::Stall)).await;
    let good = Sink::start(Script::default()).await;
    let options = Options { cache_bytes: 0, ..little_memory() };
    let mut gateway = Gateway::new(options, &[tenant("hung", vec![route("r", hung.address)]), tenant("good", vec![route("r", good.address)])]);
    let large = large_mail();
    gateway.run();
    for _ in 0..12 {
        gateway.queue(&envelope("hung", &["u"]), &large).await;
    }
    wait_for("the hung server's connections", || hung.open() >= 2).await;
    for _ in 0..12 {
        gateway.queue(&envelope("good", &["u"]), &large).await;
    }
    wait_for("the good server's mail", || good.kept_count() == 12).await;
    assert_eq!(hung.connections(), 2, "a quarter of a MiB holds two of these");
    assert!(good.kept().iter().all(|kept| kept.content == large));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_records_of_small_mail_take_memory_too() {
    let hung = Sink::start(script("banner", Act::Stall)).await;
    let mut gateway = Gateway::new(little_memory(), &[tenant("hung", vec![route("r", hung.address)])]);
    gateway.run();
    let users: Vec<String> = (0..500).map(|n| format!("user{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    for _ in 0..8 {
        gateway.queue(&envelope("hung", &users), &mail()).await;
    }
    wait_for("the hung server's connections", || hung.open() >= 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(hung.connections(), 2, "five hundred recipients are more than the few bytes of the mail");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_our_memory_is_runnable() {
    let hung = Sink::start(script("banner", Act::Stall)).await;
    let good = Sink::start(Script::default()).await;
    let options = Options { cache_bytes: 0, ..little_memory() };
    let names: Vec<String> = (0..5).map(|n| format!("hung{n}")).collect();
    let mut tenants: Vec<_> = names.iter().map(|name| tenant(name, vec![route("r", hung.address)])).collect();
    tenants.push(tenant("good", vec![route("r", good.address)]));
    let mut gateway = Gateway::new(options, &tenants);
    let large = large_mail();
    gateway.run();
    for name in names.iter().cycle().take(20) {
        gateway.queue(&envelope(name, &["u"]), &large).await;
    }
    wait_for("all memory to be taken", || gateway.delivery.statistics().in_flight == 10).await;
    for _ in 0..12 {
        gateway.queue(&envelope("good", &["u"]), &large).await;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let of = |name: &str| {
        let filter = Filter { tenant: Some(format!("mail/{name}")), ..Filter::default() };
        gateway.delivery.list(&filter, None, 100).iter().map(|entry| entry.state).collect::<Vec<State>>()
    };
    for look in 0..100 {
        assert_eq!(of("good"), [State::Runnable; 12], "look {look}: another gateway would deliver them");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(good.kept_count(), 0);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_used_again() {
    let sink = Sink::start(Script::default()).await;
    let mut options = options();
    options.messages_per_connection = 10;
    options.idle_ms = 300;
    let mut gateway = Gateway::new(options, &[tenant("t", vec![route("r", sink.address)])]);
    for _ in 0..25 {
        assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "delivered");
    }
    assert_eq!((sink.connections(), sink.kept_count()), (3, 25), "ten messages each");
    assert_eq!(gateway.delivery.figures().reused.value(), 22);
    gateway.run();
    wait_for("the idle connection to be closed", || sink.open() == 0).await;
    // The server hangs up on its own: the next message goes over a fresh connection, and nobody notices.
    sink.change(|script| script.messages = 1);
    for n in 0..5 {
        assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "delivered", "message {n}");
    }
    assert_eq!((sink.connections(), sink.kept_count()), (8, 30));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_that_fails_before_mail_was_answered_costs_nothing() {
    let sink = Sink::start(Script::default()).await;
    let gateway = Gateway::new(options(), &[tenant("t", vec![route("r", sink.address)])]);
    assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "delivered");
    // As servers do whose idle timeout strikes just then.
    for (n, act) in [say("421 4.4.2 idle too long"), Act::Drop].into_iter().enumerate() {
        sink.change(|script| script.later_mail = Some(act));
        assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "delivered");
        assert_eq!((sink.connections(), sink.kept_count()), (n + 2, n + 2));
    }
    assert_eq!(gateway.delivery.figures().stale.value(), 2);
    assert_eq!(gateway.delivery.figures().route_troubles.value(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_recipients_are_refused() {
    let sink = Sink::start(Script::default()).await;
    sink.change(|script| {
        script.rcpt = Arc::new(|address| match address.split('@').next().unwrap() {
            "bad" => say("550 5.1.1 no such user"),
            "full" => say("452 4.2.2 mailbox full"),
            _ => Act::Accept,
        });
    });
    let mut gateway = Gateway::new(options(), &[tenant("t", vec![route("r", sink.address)])]);
    let message = envelope("t", &["good", "bad", "full", "fine"]);
    match gateway.inline(&message, &mail()).await {
        Inline::Delivered { handed_over, route, refused, deferred, reply } => {
            assert_eq!(&*route, "r");
            assert_eq!(handed_over.recipients(), [0, 3]);
            assert_eq!(refused.iter().map(|(index, reply)| (*index, reply.to_string())).collect::<Vec<_>>(), [(1, "550 5.1.1 no such user".into())]);
            assert_eq!(deferred.iter().map(|(index, reply)| (*index, reply.code)).collect::<Vec<_>>(), [(2, 452)]);
            assert_eq!(reply.text, "Ok: queued as 4711");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(sink.kept()[0].recipients, ["good@t.example", "fine@t.example"]);

    gateway.run();
    gateway.queue(&message, &mail()).await;
    wait_for("the refused copy in the dead letters", || gateway.stores.copies.lock().unwrap().len() == 1).await;
    let copy = gateway.stores.copies.lock().unwrap()[0].clone();
    assert_eq!((copy.compartment, &copy.recipients[..]), (Compartment::DeadLetters, &[1][..]));
    assert_eq!(&*copy.reason, "refused by route r: 550 5.1.1 no such user");
    wait_for("one copy left", || gateway.delivery.statistics().scheduled == 1).await;
    let left = gateway.delivery.list(&Filter { ids: vec![message.id], ..Filter::default() }, None, 10);
    assert_eq!(&left[0].recipients[..], [2]);
    sink.change(|script| script.rcpt = Arc::new(|_| Act::Accept));
    assert_eq!(gateway.delivery.operate(Operation::Retry, &Filter { route: Some("r".into()), ..Filter::default() }, false).count, 1);
    wait_for("the last copy", || sink.kept_count() == 3).await;
    assert_eq!(sink.kept()[2].recipients, ["full@t.example"]);
    wait_for("an empty queue", || gateway.delivery.statistics() == Default::default()).await;
    gateway.spool.read(message.id).await.expect_err("every slot is done, so the record is forgotten");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_everything_is_not_believed() {
    let sink = Sink::start(script("rcpt", say("550 5.1.1 no such user"))).await;
    let mut options = options();
    options.pacing.refusals = 6;
    options.pacing.dead_after = 2;
    options.pacing.backoff_first_ms = 50;
    options.pacing.backoff_max_ms = 50;
    let mut gateway = Gateway::new(options, &[tenant("t", vec![route("r", sink.address)])]);
    let mut words = vec![];
    for n in 0..8 {
        let message = envelope_from(&format!("s{n}@sender.test"), "t", &[&format!("u{n}")]);
        words.push(word(&gateway.inline(&message, &mail()).await));
    }
    assert_eq!(words[..6], ["refused"; 6]);
    assert_eq!(words[6..], ["not possible"; 2]);
    let status = &gateway.delivery.routes()[0];
    assert!(status.refusing && status.dead, "{status:?}");
    // It comes to its senses: the queue's mail finds out.
    gateway.run();
    gateway.queue(&envelope("t", &["u"]), &mail()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(gateway.stores.copies.lock().unwrap().is_empty(), "nothing is given up meanwhile");
    sink.change(|script| script.rcpt = Arc::new(|_| Act::Accept));
    wait_for("the route to be back", || {
        gateway.delivery.operate(Operation::Retry, &Filter { all: true, ..Filter::default() }, false);
        sink.kept_count() == 1
    })
    .await;
    wait_for("no condition any more", || !gateway.delivery.routes()[0].refusing).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_the_server_blocks_closes_the_route_for_nobody() {
    let sink = Sink::start(Script { blocked_sender: "blocked@", ..Script::default() }).await;
    let mut gateway = Gateway::new(options(), &[tenant("t", vec![route("r", sink.address)])]);
    gateway.run();
    for _ in 0..30 {
        gateway.queue(&envelope_from("blocked@sender.test", "t", &["u"]), &mail()).await;
    }
    wait_for("the blocked ones to be put off", || gateway.delivery.statistics().scheduled == 30).await;
    let status = &gateway.delivery.routes()[0];
    assert!(status.refusing && !status.dead, "{status:?}");
    gateway.queue(&envelope("t", &["u"]), &mail()).await;
    assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "delivered");
    wait_for("the good one", || sink.kept_count() == 2).await;
    assert!(!gateway.delivery.routes()[0].refusing);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_mail_to_a_server_that_stops_reading_or_speaks_too_early() {
    let raw: Bytes =
        b"Subject: x\r\n\r\n".iter().copied().chain(b"filling up every buffer on the way\r\n".repeat(400_000)).collect::<Vec<u8>>().into();
    let mut tasks = vec![];
    for (act, wanted) in [
        (Act::Stall, "not possible"),
        (Act::Drop, "not possible"),
        (say("552 5.3.4 enough\r\n"), "refused"),
        (say("421 4.3.2 closing"), "not possible"),
    ] {
        let raw = raw.clone();
        tasks.push(tokio::spawn(async move {
            let sink = Sink::start(script("content", act.clone())).await;
            let gateway = Gateway::new(options(), &[tenant("t", vec![route("r", sink.address)])]);
            let got = gateway.inline(&envelope("t", &["u"]), &raw).await;
            let ambiguous = gateway.delivery.figures().ambiguous.value();
            assert_eq!((word(&got), ambiguous), (wanted, 0), "{act:?}: the final dot never left: {got:?}");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soft_bounce_makes_every_refusal_a_retry() {
    let sink = Sink::start(script("rcpt", say("550 5.1.1 no such user"))).await;
    let part = sekimori_crds::snapshot::TenantPart { soft_bounce: true, ..tenant("t", vec![route("r", sink.address)]) };
    let mut gateway = Gateway::new(options(), &[part]);
    assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "not possible");
    gateway.run();
    gateway.queue(&envelope("t", &["u"]), &mail()).await;
    wait_for("the attempt", || gateway.delivery.figures().deferred.value() == 1).await;
    sink.change(|script| *script = self::script("end", say("550 5.7.1 spam")));
    gateway.delivery.operate(Operation::Retry, &Filter { all: true, ..Filter::default() }, false);
    wait_for("the second attempt", || gateway.delivery.figures().deferred.value() == 2).await;
    assert!(gateway.stores.copies.lock().unwrap().is_empty());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_tried_again_late_and_counted() {
    let sink = Sink::start(script("end", Act::KeepAndDrop)).await;
    let mut options = options();
    options.retry.maybe_delivered_ms = 300;
    let mut gateway = Gateway::new(options, &[tenant("t", vec![route("r", sink.address)])]);
    gateway.run();
    let message = envelope("t", &["u"]);
    assert_eq!(word(&gateway.inline(&message, &mail()).await), "unknown");
    sink.change(|script| script.end = Act::Accept);
    let begun_ms = clock::monotonic_ms();
    gateway.submit(&message, Purpose::Deliver { maybe_delivered: true }, &mail()).await;
    assert_eq!(gateway.delivery.statistics().scheduled, 1);
    wait_for("the retry", || sink.kept_count() == 2).await;
    assert!(clock::monotonic_ms() - begun_ms >= 200, "the first retry waits");
    let kept = sink.kept();
    assert_eq!(kept[0].content, kept[1].content, "the same message, so that the server can tell");
    wait_for("an empty queue", || gateway.delivery.statistics() == Default::default()).await;
    let figures = gateway.delivery.figures().totals();
    assert_eq!((figures.ambiguous, figures.maybe_delivered_retries, figures.delivered), (1, 1, 1));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_lets_finish_what_is_on_its_way_and_waits_no_longer() {
    for (act, kept, left) in [(Act::Slow(300), 1, false), (Act::Stall, 0, true)] {
        let sink = Sink::start(script("end", act)).await;
        let mut options = options();
        options.timeouts.end_of_data_ms = 60_000;
        options.shutdown_grace_ms = 800;
        let mut gateway = Gateway::new(options, &[tenant("t", vec![route("r", sink.address)])]);
        gateway.run();
        let message = envelope("t", &["u"]);
        gateway.queue(&message, &mail()).await;
        wait_for("the attempt", || gateway.delivery.statistics().in_flight == 1 && sink.open() == 1).await;
        let begun_ms = clock::monotonic_ms();
        gateway.stop().await;
        assert!(clock::monotonic_ms() - begun_ms < 1_500);
        assert_eq!(sink.kept_count(), kept);
        assert_eq!(gateway.spool.read(message.id).await.is_ok(), left, "what was cut off is still in the spool");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_the_queue_goes_on() {
    let sink = Sink::start(Script::default()).await;
    let tenants = [tenant("t", vec![route("r", sink.address)])];
    let (spool, _dir) = gateway::spool();
    let before = Gateway::with_spool(options(), &tenants, spool.clone());
    let messages: Vec<_> = (0..20).map(|_| envelope("t", &["u", "v"])).collect();
    for message in &messages {
        before.queue(message, &mail()).await;
    }
    let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    let half = envelope("t", &["u"]).id;
    let (meta, body) = (Bytes::from_static(b"{\"half\":"), mail());
    spool.append(Record { id: half, meta, body, slots: 1, affinity: 0 }).await.unwrap();
    let mut records = before.recovered(&[&ids[..], &[half]].concat()).await;
    drop(before);
    // One recipient of the first was finished; a record that nobody can read.
    records[0].done.insert(0);
    let mut after = Gateway::with_spool(options(), &tenants, spool);
    let unreadable = after.delivery.recovered(records);
    assert_eq!(unreadable.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [half]);
    after.run();
    wait_for("what was left", || sink.kept_count() == 20).await;
    let recipients: BTreeMap<_, _> = sink.kept().into_iter().fold(BTreeMap::new(), |mut counts, kept| {
        *counts.entry(kept.recipients.len()).or_insert(0) += 1;
        counts
    });
    assert_eq!(recipients, BTreeMap::from([(1, 1), (2, 19)]));
    after.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_hold_and_a_tenant_that_nobody_knows() {
    let sink = Sink::start(Script::default()).await;
    let active = tenant("t", vec![route("r", sink.address)]);
    let held = sekimori_crds::snapshot::TenantPart { state: TenantState::Hold, ..active.clone() };
    let mut options = options();
    options.lifetime_ms = 500;
    options.expiry_grace_ms = 0;
    let mut gateway = Gateway::new(options, &[held]);
    gateway.run();
    assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "not possible");
    gateway.queue(&envelope("t", &["u"]), &mail()).await;
    gateway.queue(&envelope("unknown", &["u"]), &mail()).await;
    wait_for("the unknown tenant's mail to expire", || gateway.stores.copies.lock().unwrap().len() == 1).await;
    let copy = gateway.stores.copies.lock().unwrap()[0].clone();
    assert_eq!((copy.compartment, &*copy.tenant, &*copy.reason), (Compartment::DeadLetters, "mail/unknown", "expired"));
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!((sink.kept_count(), gateway.delivery.statistics().waiting), (0, 1), "on hold nothing is delivered and nothing expires");
    gateway.configure(&[active], &["127.0.0.0/8"]);
    wait_for("the mail that was held", || sink.kept_count() == 1).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_tenant_is_on_hold_no_longer() {
    let sink = Sink::start(Script::default()).await;
    let held = sekimori_crds::snapshot::TenantPart { state: TenantState::Hold, ..tenant("t", vec![route("r", sink.address)]) };
    let mut gateway = Gateway::new(options(), std::slice::from_ref(&held));
    gateway.run();
    gateway.queue(&envelope("t", &["u"]), &mail()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((sink.kept_count(), gateway.delivery.statistics().waiting), (0, 1));
    gateway.remove(&[held]);
    wait_for("the mail that nobody could release any more", || sink.kept_count() == 1).await;
    wait_for("the queue to be empty", || gateway.delivery.tenants_with_mail().is_empty()).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_fail_or_hang_delay_nobody_else() {
    let mut options = options();
    options.store_timeout_ms = 200;
    let sink = Sink::start(Script::default()).await;
    let tenants: Vec<_> = ["absent", "hanging", "fine"].iter().map(|name| tenant(name, vec![route("r", sink.address)])).collect();
    let mut gateway = Gateway::new(options, &tenants);
    gateway.stores.fails_for.lock().unwrap().push("mail/absent".into());
    gateway.stores.hangs_for.lock().unwrap().push("mail/hanging".into());
    gateway.run();
    for name in ["absent", "hanging", "fine"] {
        gateway.submit(&envelope(name, &["u"]), Purpose::Quarantine { reason: "Infected by test".into() }, &mail()).await;
    }
    wait_for("the fine one", || gateway.stores.copies.lock().unwrap().len() == 1).await;
    wait_for("failures", || gateway.delivery.figures().store_failures.value() >= 2).await;
    gateway.stores.fails_for.lock().unwrap().clear();
    gateway.stores.hangs_for.lock().unwrap().clear();
    wait_for("all three", || gateway.stores.copies.lock().unwrap().len() == 3).await;
    let copy = gateway.stores.copies.lock().unwrap()[0].clone();
    assert_eq!((copy.compartment, &*copy.reason, copy.content.raw.clone()), (Compartment::Quarantine, "Infected by test", mail()));
    wait_for("an empty queue", || gateway.delivery.statistics() == Default::default()).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deferred_is_judged_again() {
    let sink = Sink::start(Script::default()).await;
    let mut gateway = Gateway::new(options(), &[tenant("t", vec![route("r", sink.address)])]);
    gateway.run();
    let message = envelope("t", &["clean", "spam", "discarded", "undecided"]);
    *gateway.judging.0.lock().unwrap() = Arc::new(|group| {
        let one = |index, purpose, edits| Group { tenant: Arc::clone(&group.tenant), recipients: vec![index], edits, purpose };
        let marked = Edits::from(vec![Edit { at: 0..0, with: Bytes::from_static(b"X-Sekimori-Verdict: late\r\n") }]);
        Ok(vec![
            one(0, Purpose::Deliver { maybe_delivered: false }, marked),
            one(1, Purpose::Quarantine { reason: "spam".into() }, Edits::default()),
            one(3, Purpose::Rescan, Edits::default()),
        ])
    });
    gateway.submit(&message, Purpose::Rescan, &mail()).await;
    wait_for("delivery", || sink.kept_count() == 1).await;
    assert!(sink.kept()[0].content.starts_with(b"X-Sekimori-Verdict: late\r\nMessage-ID"));
    wait_for("quarantine", || gateway.stores.copies.lock().unwrap().len() == 1).await;
    // The store has its copy a moment before the queue knows.
    let rest = Statistics { scheduled: 1, ..Statistics::default() };
    wait_for("the rest", || Statistics { oldest_received_ms: None, ..gateway.delivery.statistics() } == rest).await;
    let left = gateway.delivery.list(&Filter { all: true, ..Filter::default() }, None, 10);
    assert_eq!((left.len(), left[0].purpose, &left[0].recipients[..]), (1, "rescan", &[3][..]));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_route_is_taken_when_one_is_down() {
    let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sink = Sink::start(Script::default()).await;
    let backup = sekimori_crds::snapshot::RoutePart { priority: 20, ..route("backup", sink.address) };
    let mut gateway = Gateway::new(options(), &[tenant("t", vec![backup, route("primary", refused)])]);
    assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "delivered");
    gateway.run();
    gateway.queue(&envelope("t", &["u"]), &mail()).await;
    wait_for("the queue's mail", || sink.kept_count() == 2).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_lead_only_where_the_fleet_lets_them() {
    let sink = Sink::start(Script::default()).await;
    let by_name = sekimori_crds::snapshot::RoutePart { host: "inside.test".into(), ..route("r", sink.address) };
    let tenants = [tenant("t", vec![by_name])];
    let gateway = Gateway::new(options(), &tenants);
    gateway.name("inside.test", &["127.0.0.1"]);
    gateway.configure(&tenants, &["10.0.0.0/8"]);
    match gateway.inline(&envelope("t", &["u"]), &mail()).await {
        Inline::NotPossible { why } => assert!(why.contains("allowedNetworks"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(sink.connections(), 0);
    gateway.configure(&tenants, &["127.0.0.0/8"]);
    assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "delivered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_offer_less() {
    let plain = Sink::start(Script { extensions: vec![], ..Script::default() }).await;
    let full = Sink::start(Script::default()).await;
    let small = Sink::start(Script { extensions: vec!["SIZE 20"], ..Script::default() }).await;
    let tenants = [("plain", &plain), ("full", &full), ("small", &small)].map(|(name, sink)| tenant(name, vec![route("r", sink.address)]));
    let gateway = Gateway::new(options(), &tenants);
    let eight_bit = Bytes::from("Subject: caf\u{e9}\r\n\r\nna\u{ef}ve\r\n");
    let mut utf8 = envelope("plain", &["u"]);
    utf8.smtputf8 = true;
    let mut utf8_address = envelope("plain", &["u"]);
    utf8_address.recipients[0].address.local = "us\u{e9}r".into();
    for (message, raw, wanted) in [
        (envelope("plain", &["u", "v", "w"]), mail(), "delivered"),
        (envelope("plain", &["u"]), eight_bit.clone(), "554 5.6.3"),
        (utf8.clone(), mail(), "delivered"),
        (utf8.clone(), eight_bit.clone(), "553 5.6.7"),
        (utf8_address, mail(), "553 5.6.7"),
        (envelope("small", &["u"]), mail(), "552 5.3.4"),
        (envelope("full", &["u"]), eight_bit.clone(), "delivered"),
        (envelope("full", &["u"]), mail(), "delivered"),
    ] {
        match gateway.inline(&message, &raw).await {
            Inline::Delivered { .. } => assert_eq!(wanted, "delivered"),
            Inline::Refused(reply) => assert!(reply.to_string().starts_with(wanted), "{reply} instead of {wanted}"),
            other => panic!("{other:?} instead of {wanted}"),
        }
    }
    assert_eq!((plain.kept_count(), plain.connections(), small.kept_count()), (2, 1, 0));
    assert_eq!(plain.kept()[0].mail, "MAIL FROM:<a@sender.test>");
    assert_eq!(plain.kept()[0].recipients.len(), 3);
    let size = eight_bit.len();
    assert_eq!(full.kept()[0].mail, format!("MAIL FROM:<a@sender.test> SIZE={size} BODY=8BITMIME"));
    assert_eq!(full.kept()[0].content, eight_bit);
    assert_eq!(full.kept()[1].mail, format!("MAIL FROM:<a@sender.test> SIZE={}", mail().len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_accepted_but_the_server_wants_content() {
    let sink = Sink::start(script("rcpt", say("550 5.1.1 no such user"))).await;
    let gateway = Gateway::new(options(), &[tenant("t", vec![route("r", sink.address)])]);
    assert_eq!(word(&gateway.inline(&envelope("t", &["u", "v"]), &mail()).await), "refused");
    assert_eq!((sink.lone_dots(), sink.kept_count()), (1, 0), "the shortest content there is, for nobody");
    sink.change(|script| script.rcpt = Arc::new(|_| Act::Accept));
    assert_eq!(word(&gateway.inline(&envelope("t", &["u"]), &mail()).await), "delivered");
    assert_eq!(sink.connections(), 1, "and the connection is still good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_and_large_messages_arrive_byte_for_byte() {
    let sink = Sink::start(Script::default()).await;
    let gateway = Gateway::new(options(), &[tenant("t", vec![route("r", sink.address)])]);
    let mut raw = b"Subject: large\r\nX-Forged: yes\r\n\r\n".to_vec();
    for n in 0..60_000u32 {
        raw.extend_from_slice(format!("{}line {n} of a message\r\n", if n % 7 == 0 { "." } else { "" }).as_bytes());
    }
    let raw = Bytes::from(raw);
    let edits = Edits::from(vec![Edit { at: 0..0, with: Bytes::from_static(b"Received: by us\r\n") }, Edit { at: 16..31, with: Bytes::new() }]);
    let mut wanted = b"Received: by us\r\nSubject: large\r\n".to_vec();
    wanted.extend_from_slice(&raw[31..]);
    let message = Arc::new(envelope("t", &["u"]));
    let content = Content { raw, edits: Arc::new(edits) };
    let deadline_ms = clock::monotonic_ms() + 10_000;
    let got = gateway.delivery.inline(&gateway.tenant("t"), &message, &[0], &content, deadline_ms).await;
    assert_eq!(word(&got), "delivered", "{got:?}");
    assert!(sink.kept()[0].content == wanted, "the bytes differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preconditions_of_inline() {
    let sink = Sink::start(script("end", Act::Slow(300))).await;
    let mut options = options();
    options.inline_per_tenant = 2;
    options.inline_bytes_max = 1_000;
    options.inline_min_ms = 100;
    options.recipients_per_transaction = 3;
    let gateway = Gateway::new(options, &[tenant("t", vec![route("r", sink.address)])]);
    let why = |inline: Inline| match inline {
        Inline::NotPossible { why } => why,
        other => panic!("{other:?}"),
    };
    let (one, two, three) = (envelope("t", &["u"]), envelope("t", &["u"]), envelope("t", &["u"]));
    let raw = mail();
    let (one, two, three) = tokio::join!(gateway.inline(&one, &raw), gateway.inline(&two, &raw), gateway.inline(&three, &raw));
    assert_eq!((word(&one), word(&two)), ("delivered", "delivered"));
    assert!(why(three).contains("2 inline deliveries"));
    assert!(why(gateway.inline(&envelope("t", &["u"]), &vec![b'x'; 1_001].into()).await).contains("1000 bytes"));
    assert!(why(gateway.inline(&envelope("t", &["a", "b", "c", "d"]), &raw).await).contains("recipients"));
    let content = Content { raw, edits: Arc::default() };
    let (tenant, message) = (gateway.tenant("t"), Arc::new(envelope("t", &["u"])));
    let soon_ms = clock::monotonic_ms() + 50;
    assert!(why(gateway.delivery.inline(&tenant, &message, &[0], &content, soon_ms).await).contains("ms were left"));
    // Time runs out after the final dot: nobody knows.
    let soon_ms = clock::monotonic_ms() + 200;
    assert_eq!(word(&gateway.delivery.inline(&tenant, &message, &[0], &content, soon_ms).await), "unknown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_lets_one_message_try() {
    let sink = Sink::start(script("banner", Act::Drop)).await;
    let mut options = options();
    options.pacing.dead_after = 3;
    options.pacing.backoff_first_ms = 300;
    options.pacing.backoff_max_ms = 300;
    let mut gateway = Gateway::new(options, &[tenant("t", vec![route("r", sink.address)])]);
    for _ in 0..50 {
        gateway.queue(&envelope("t", &["u"]), &mail()).await;
    }
    gateway.run();
    wait_for("the route to be dead", || gateway.delivery.routes().first().is_some_and(|route| route.dead)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let at_first = sink.connections();
    assert!(at_first <= 30, "{at_first} connections: no more than began before it was known");
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let probes = sink.connections() - at_first;
    assert!((1..=5).contains(&probes), "{probes} probes in a second with a pause of 300 ms");
    sink.change(|script| script.banner = Act::Accept);
    wait_for("everything", || sink.kept_count() == 50).await;
    gateway.stop().await;
}

mod tls {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server certificate for `host`, and the PEM of the authority that signed it.
    fn acceptor(host: &str) -> (TlsAcceptor, String) {
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(vec![]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        (TlsAcceptor::from(Arc::new(config)), root.pem())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_each_demand_accepts() {
        let (good, root) = acceptor("sink.test");
        let dir = tempfile::tempdir().unwrap();
        let roots = dir.path().join("roots.pem");
        std::fs::write(&roots, root).unwrap();
        let extensions = vec!["PIPELINING", "STARTTLS", "8BITMIME"];
        let offers = Script { extensions: extensions.clone(), acceptor: Some(good.clone()), ..Script::default() };
        // What the server does, the route's demand, its host name, the result, whether the mail went over TLS.
        for (what, script, demand, host, wanted, secured) in [
            ("offers", offers.clone(), RouteTls::Disabled, "sink.test", "delivered", false),
            ("offers", offers.clone(), RouteTls::Opportunistic, "sink.test", "delivered", true),
            ("offers", offers.clone(), RouteTls::Opportunistic, "other.test", "delivered", true),
            ("offers", offers.clone(), RouteTls::Required, "sink.test", "delivered", true),
            ("offers", offers.clone(), RouteTls::Required, "other.test", "not possible", false),
            ("offers not", Script::default(), RouteTls::Opportunistic, "sink.test", "delivered", false),
            ("offers not", Script::default(), RouteTls::Required, "sink.test", "not possible", false),
            ("cannot", Script { acceptor: None, ..offers.clone() }, RouteTls::Opportunistic, "sink.test", "delivered", false),
            ("cannot", Script { acceptor: None, ..offers.clone() }, RouteTls::Required, "sink.test", "not possible", false),
            ("refuses", Script { starttls: say("454 4.7.0 not now"), ..offers.clone() }, RouteTls::Opportunistic, "sink.test", "delivered", false),
            ("refuses", Script { starttls: say("454 4.7.0 not now"), ..offers.clone() }, RouteTls::Required, "sink.test", "not possible", false),
            ("injects", Script { starttls: say("220 go\r\n250 injected"), ..offers.clone() }, RouteTls::Required, "sink.test", "not possible", false),
        ] {
            let sink = Sink::start(script).await;
            let mut options = options();
            options.root_certificates = roots.clone();
            let by_name = sekimori_crds::snapshot::RoutePart { host: host.into(), tls: demand, ..route("r", sink.address) };
            let gateway = Gateway::new(options, &[tenant("t", vec![by_name])]);
            gateway.name(host, &["127.0.0.1"]);
            for _ in 0..2 {
                let got = gateway.inline(&envelope("t", &["u"]), &mail()).await;
                assert_eq!(word(&got), wanted, "{what}, {demand:?}, {host}: {got:?}");
            }
            for kept in sink.kept() {
                assert_eq!((kept.tls, kept.content), (secured, mail().to_vec()), "{what}, {demand:?}, {host}");
            }
        }
    }
}
