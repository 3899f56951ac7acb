//! What holds for a session and its neighbours: memory, configuration, states of a tenant, the end of the gateway.

use std::time::Duration;

use sekimori_crds::vocabulary::{Action, DeliveryMode, TenantState};
use sekimori_mta::io::clock;
use sekimori_mta::io::engine::fake::Step;
use sekimori_mta::io::gateway::Memory;
use sekimori_mta::io::quarantine::{Filter, Kind};
use sekimori_mta::io::stores::release;
use sekimori_mta::queue::index::State;
use sekimori_mta::verdict::Finding;
use tokio::net::TcpStream;

use super::client::{Client, stuffed};
use super::tenants::{MAIL, header, sized, to, with};
use super::world::{Setup, World};
use crate::delivery::gateway::wait_for;
use crate::delivery::sink::{Script, Sink};

/// A transaction of which some content has come, and no more does.
async fn stalled(world: &World, ip: &str, content: &[u8]) -> Client {
    let before = world.gateway.memory.used_bytes();
    let mut client = Client::connect(world.address, ip).await;
    client.begin("slow@sender.test", &["u@a.example"]).await;
    client.write(content).await;
    wait_for("the content to be charged", || world.gateway.memory.used_bytes() >= before + content.len() as u64 - 2).await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slowest_sender_gives_its_memory_to_the_others() {
    let sink = Sink::start(Script::default()).await;
    let world = Setup { memory: (1_000_000, 100), ..Setup::new(vec![to("a", &sink)]) }.start().await;
    let first = sized(600_000);
    let mut slow = stalled(&world, "192.0.2.1", &first).await;
    // Long ago, so that it is the slower one however fast the rest came.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut fast = Client::connect(world.address, "198.51.100.1").await;
    let answer = fast.send(&["u@a.example"], &sized(700_000)).await;
    assert_eq!(answer.code(), 250, "{answer:?}");
    wait_for("the slow one's memory", || world.gateway.memory.used_bytes() == 0).await;
    assert_eq!(world.metric("sekimori_shed_total{limit=\"messageMemory\"}"), 1);
    // It may go on as long as it likes: nothing of it is kept, and its end is answered.
    slow.write(&stuffed(&sized(5_000_000))).await;
    let said = slow.reply().await;
    assert_eq!((said.code, said.text.as_str()), (452, "4.3.1 Not enough memory for this message now, try again later"));
    assert_eq!(world.gateway.memory.used_bytes(), 0);
    assert_eq!(slow.send(&["u@a.example"], &first).await.code(), 250, "the session goes on");
    assert_eq!(sink.kept_count(), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_has_its_share_and_no_more() {
    let sink = Sink::start(Script::default()).await;
    let world = Setup { memory: (1_000_000, 50), ..Setup::new(vec![to("a", &sink)]) }.start().await;
    let mut held = stalled(&world, "192.0.2.1", &sized(400_000)).await;
    // Long ago, so that it is the slower one however slowly its neighbour's content comes.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(Client::connect(world.address, "192.0.3.77").await.send(&["u@a.example"], &sized(200_000)).await.code(), 250, "another network");
    assert_eq!(world.metric("sekimori_shed_total{limit=\"messageMemory\"}"), 0, "and nobody had to give way for it");
    assert_eq!(Client::connect(world.address, "192.0.2.77").await.send(&["u@a.example"], &sized(200_000)).await.code(), 250, "a faster neighbour");
    held.write(b".\r\n").await;
    assert_eq!(
        held.reply().await.code,
        452,
        "the network's share is used up, so the slowest of the network gives way, though the process has memory left"
    );
    assert_eq!(Client::connect(world.address, "192.0.2.88").await.send(&["u@a.example"], &sized(600_000)).await.code(), 452, "more than the share");
    wait_for("all memory", || world.gateway.memory.used_bytes() == 0).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_given_back_when_a_client_goes_away() {
    let sink = Sink::start(Script::default()).await;
    let world = Setup { memory: (1_000_000, 100), ..Setup::new(vec![to("a", &sink)]) }.start().await;
    drop(stalled(&world, "192.0.2.1", &sized(300_000)).await);
    wait_for("all memory", || world.gateway.memory.used_bytes() == 0).await;
    wait_for("the session to end", || world.gateway.open_sessions() == 0).await;
    assert!(sink.kept().is_empty(), "half a message is none");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behind_nodes_share_no_limit_by_address() {
    let sink = Sink::start(Script::default()).await;
    let mut setup = Setup { memory: (1_000_000, 50), ..Setup::new(vec![to("a", &sink)]) };
    setup.listener.limits.connections_per_address = 2;
    let world = setup.start().await;
    let three = |ip: &'static str| {
        let address = world.address;
        async move {
            let mut open = vec![];
            for _ in 0..3 {
                let mut client = Client::raw(address, ip).await;
                let code = client.reply().await.code;
                open.push((client, code));
            }
            open.into_iter().map(|(_, code)| code).collect::<Vec<_>>()
        }
    };
    assert_eq!(three("10.244.0.1").await, [220, 220, 421], "alone, it is an address like any other");
    world.gateway.cluster_networks.store(std::sync::Arc::new(vec!["10.244.0.0/16".parse().unwrap()]));
    assert_eq!(three("10.244.0.1").await, [220, 220, 220], "a node stands for anybody");
    assert_eq!(three("192.0.2.1").await, [220, 220, 421]);
    let answer = Client::connect(world.address, "10.244.0.1").await.send(&["u@a.example"], &sized(700_000)).await;
    assert_eq!(answer.code(), 250, "nor is there a share of the memory for it");
    assert!(header(&sink.kept()[0].content, "Authentication-Results").contains("spf=none reason=\"the client's address is hidden\""));
    let answer = Client::connect(world.address, "192.0.2.1").await.send(&["u@a.example"], &sized(700_000)).await;
    assert_eq!(answer.code(), 452, "as there is for others");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_of_the_fleet_is_shared() {
    let sink = Sink::start(Script::default()).await;
    let limited = with(to("a", &sink), |part| part.messages_per_hour = Some(40));
    let world = Setup::new(vec![limited]).start().await;
    // A burst holds six minutes' worth: four of forty, and of ten, one.
    world.gateway.sharing.store(4, std::sync::atomic::Ordering::Relaxed);
    let mut client = world.client().await;
    assert_eq!(client.send(&["u@a.example"], MAIL).await.code(), 250);
    let answer = client.send(&["u@a.example"], MAIL).await;
    assert_eq!(answer.recipients[0].code, 450, "{answer:?}");
    world.stop().await;
}

#[test]
fn a_charge_that_was_taken_away_is_not_received() {
    let memory = std::sync::Arc::new(Memory::new(1_000, 100));
    let mut slow = memory.begin(Some([192, 0, 2, 1].into()));
    assert!(slow.grow_to(600));
    std::thread::sleep(Duration::from_millis(20));
    let mut fast = memory.begin(Some([198, 51, 100, 1].into()));
    assert!(fast.grow_to(700));
    // The last of its content had come already when it was chosen: there is nothing more to charge, and still it has no memory.
    assert!(slow.grow_to(600), "nothing more is asked for");
    assert!(!slow.received(), "a message without memory must not be worked on");
    assert!(fast.received());
    drop((slow, fast));
    assert_eq!(memory.used_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_keeps_the_configuration_since_mail() {
    let sink = Sink::start(Script::default()).await;
    let rejects = to("a", &sink);
    let world = Setup::new(vec![rejects.clone()]).start().await;
    world.fake("av").on_mail(|_| Step::Find(Finding::Infected("Worm".into())));
    let mut client = world.client().await;
    client.begin("a@sender.test", &["u@a.example"]).await;
    world.configure(&[with(rejects.clone(), |part| part.policy.anti_virus.infected = Action::Tag), to("b", &sink)]);
    client.write(&stuffed(MAIL)).await;
    assert_eq!(client.reply().await.code, 550, "as it was at MAIL");
    assert_eq!(client.send(&["u@a.example"], MAIL).await.code(), 250, "as it is now");
    assert_eq!(client.send(&["u@b.example"], MAIL).await.code(), 550, "a new tenant is served in the same session");
    client.say("MAIL FROM:<a@sender.test>").await;
    world.configure(&[]);
    assert_eq!(client.say("RCPT TO:<u@a.example>").await.code, 250, "since MAIL, not since RCPT");
    assert_eq!(client.say("RSET").await.code, 250);
    let answer = client.send(&["u@a.example"], MAIL).await;
    assert_eq!((answer.recipients[0].code, answer.end), (550, None), "a tenant that is gone is not served");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_stops_between_transactions_and_not_within() {
    let sink = Sink::start(Script::default()).await;
    let mut world = Setup::new(vec![to("a", &sink)]).start().await;
    world.fake("av").on_mail(|_| Step::After(Duration::from_millis(300), Box::new(Step::Honest)));
    let mut idle = world.client().await;
    let mut named = world.client().await;
    named.begin("a@sender.test", &["named@a.example"]).await;
    let mut scanned = world.client().await;
    scanned.begin("a@sender.test", &["scanned@a.example"]).await;
    scanned.write(&stuffed(MAIL)).await;
    wait_for("the scan", || world.fake("av").scans() == 1).await;
    world.gateway.stopping.send_replace(true);
    world.listener = None;
    let said = idle.reply().await;
    assert_eq!((said.code, said.text.as_str()), (421, "4.3.2 Shutting down, connect again"));
    assert!(idle.is_closed().await);
    assert_eq!(scanned.reply().await.code, 250, "what is being scanned is answered");
    assert_eq!(scanned.reply().await.code, 421);
    named.write(&stuffed(MAIL)).await;
    assert_eq!(named.reply().await.code, 250, "what has begun may finish");
    assert_eq!(named.reply().await.code, 421);
    assert!(named.is_closed().await && scanned.is_closed().await);
    assert_eq!(sink.kept_count(), 2);
    wait_for("sessions to end", || world.gateway.open_sessions() == 0).await;
    TcpStream::connect(world.address).await.expect_err("nobody listens any more");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_finished_though_its_client_hung_up() {
    let sink = Sink::start(Script::default()).await;
    let world = Setup::new(vec![to("a", &sink)]).start().await;
    world.fake("av").on_mail(|_| Step::After(Duration::from_millis(100), Box::new(Step::Honest)));
    let mut client = world.client().await;
    client.begin("a@sender.test", &["u@a.example"]).await;
    client.write(&stuffed(MAIL)).await;
    drop(client);
    wait_for("the copy", || sink.kept_count() == 1).await;
    wait_for("the session to end", || world.gateway.open_sessions() == 0).await;
    assert_eq!(world.gateway.memory.used_bytes(), 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspended_held_and_limited_tenants() {
    let sink = Sink::start(Script::default()).await;
    let now_s = clock::unix_ms() / 1000;
    let suspended =
        |name: &str, since: Option<u64>| with(to(name, &sink), |part| (part.state, part.suspended_since) = (TenantState::Suspended, since));
    let held = with(to("held", &sink), |part| part.state = TenantState::Hold);
    let strict = with(to("strict", &sink), |part| (part.state, part.delivery) = (TenantState::Hold, DeliveryMode::Inline));
    let limited = with(to("limited", &sink), |part| part.messages_per_hour = Some(1));
    let tenants =
        vec![suspended("new", Some(now_s - 60)), suspended("old", Some(now_s - 8 * 24 * 3600)), suspended("some", None), held, strict, limited];
    let world = Setup::new(tenants.clone()).start().await;
    let mut client = world.client().await;
    for (recipient, code, text) in [
        ("u@new.example", 450, "4.2.1"),
        ("u@some.example", 450, "4.2.1"),
        ("u@old.example", 550, "5.2.1"),
        ("u@stranger.example", 550, "5.7.1"),
        ("u@[127.0.0.1]", 550, "5.7.1"),
    ] {
        let said = client.send(&[recipient], MAIL).await.recipients[0].clone();
        assert!(said.code == code && said.text.starts_with(text), "{recipient}: {said:?}");
    }
    assert_eq!(client.send(&["u@strict.example"], MAIL).await.code(), 451, "nothing at rest, so nothing is held");
    assert_eq!(client.send(&["u@held.example"], MAIL).await.code(), 250);
    wait_for("the copy to be held", || world.queue().iter().any(|entry| entry.state == State::Held || entry.state == State::Waiting)).await;
    world.retry();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(sink.kept().is_empty());
    world.configure(&tenants.into_iter().map(|part| with(part, |part| part.state = TenantState::Active)).collect::<Vec<_>>());
    world.drained().await;
    assert_eq!(sink.kept()[0].recipients, ["u@held.example"]);
    assert_eq!(client.send(&["u@limited.example"], MAIL).await.code(), 250);
    let codes: Vec<u16> = {
        let mut codes = vec![];
        for _ in 0..3 {
            codes.push(client.send(&["u@limited.example"], MAIL).await.recipients[0].code);
        }
        codes
    };
    assert!(codes.contains(&450), "{codes:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_scanned_again() {
    let sink = Sink::start(Script::default()).await;
    let keeps = with(to("a", &sink), |part| part.policy.anti_virus.infected = Action::Quarantine);
    let world = Setup::new(vec![keeps]).start().await;
    world.fake("av").on_mail(|_| Step::Find(Finding::Infected("Worm".into())));
    let mut client = world.client().await;
    assert_eq!(client.send(&["u@a.example", "v@a.example"], MAIL).await.code(), 250);
    let key = world.gateway.quarantine.list(&Filter::default())[0].key;
    let why = release(&world.gateway, key).await.expect_err("it is infected");
    assert_eq!(why, "it is infected (Worm) and stays");
    world.fake("av").on_mail(|_| Step::After(Duration::from_millis(50), Box::new(Step::Honest)));
    // Two at once, as two people may ask: one of them does it.
    let (first, second) = tokio::join!(release(&world.gateway, key), release(&world.gateway, key));
    assert_eq!((first, second), (Ok(()), Err("it is being released already".to_owned())));
    world.drained().await;
    let kept = sink.kept();
    assert_eq!((kept.len(), kept[0].recipients.len()), (1, 2));
    assert!(kept[0].content.ends_with(MAIL));
    assert!(header(&kept[0].content, "X-Sekimori-Verdict").contains("anti-virus=clean"));
    assert!(world.kept_for(Kind::Quarantined).await.is_empty(), "what was released is no longer kept");
    release(&world.gateway, key).await.expect_err("once is enough");
    world.stop().await;
}
