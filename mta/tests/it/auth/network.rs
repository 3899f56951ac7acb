//! The resolver over real sockets: every kind of record, and servers that behave badly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use sekimori_mta::authentication::{Dmarc, Spf};
use sekimori_mta::io::dns::{Absence, CacheLimits, Cached, Lookup, Mx, Network, NetworkOptions, Resolver};

use super::mail::{envelope, evaluate, message};
use super::stub::{Act, Stub, txt, wire};
use tokio::time::Instant;

fn waiting(stubs: &[&Stub], timeout_ms: u64) -> Network {
    let servers = stubs.iter().map(|stub| stub.address).collect();
    Network::new(&NetworkOptions { servers, timeout_ms, attempts: 2 }).expect("a resolver")
}

/// Waits long enough for a server on a busy machine.
fn network(stubs: &[&Stub]) -> Network {
    waiting(stubs, 3000)
}

fn zone(name: &str, kind: u16) -> Act {
    match (name, kind) {
        ("host.example", 1) => Act::Answer(vec![(1, vec![192, 0, 2, 1]), (1, vec![192, 0, 2, 2])]),
        ("host.example", 28) => Act::Answer(vec![(28, vec![0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])]),
        ("only4.example", 1) => Act::Answer(vec![(1, vec![192, 0, 2, 3])]),
        ("example", 15) => Act::Answer(vec![(15, [&[0, 10][..], &wire("MX.Host.example")].concat()), (15, [&[0, 0][..], &wire("")].concat())]),
        ("1.2.0.192.in-addr.arpa", 12) => Act::Answer(vec![(12, wire("Host.Example"))]),
        ("text.example", 16) => Act::Answer(vec![txt("one"), txt(&"x".repeat(300))]),
        ("sender.example", 16) => Act::Answer(vec![txt("v=spf1 a:host.example -all")]),
        ("_dmarc.sender.example", 16) => Act::Answer(vec![txt("v=DMARC1; p=reject")]),
        ("big.example", 16) => Act::Answer((0..20).map(|_| txt(&"y".repeat(200))).collect()),
        ("huge.example", 16) => Act::Answer((0..100).map(|_| txt(&"z".repeat(250))).collect()),
        ("alias.example", _) => Act::Answer(vec![(5, wire("host.example"))]),
        ("loop1.example", _) => Act::Answer(vec![(5, wire("loop2.example"))]),
        ("loop2.example", _) => Act::Answer(vec![(5, wire("loop1.example"))]),
        ("self.example", _) => Act::Answer(vec![(5, wire("self.example"))]),
        ("fail.example", _) => Act::Code(2),
        ("refused.example", _) => Act::Code(5),
        ("broken.example", _) => Act::Garbage(vec![0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0, 0xff, 0xff, 0xff]),
        ("short.example", _) => Act::Garbage(vec![0x81]),
        ("silent.example", _) => Act::Silence,
        (name, _) if name.ends_with("host.example") || name.ends_with("only4.example") || name == "example" => Act::Answer(vec![]),
        _ => Act::Code(3),
    }
}

#[tokio::test]
async fn every_kind_of_record() {
    let stub = Stub::start(zone).await;
    let network = network(&[&stub]);
    assert_eq!(network.a("host.example").await.records(), [[192, 0, 2, 1], [192, 0, 2, 2]].map(std::net::Ipv4Addr::from));
    assert_eq!(network.aaaa("host.example").await.records(), ["2001:db8::1".parse::<std::net::Ipv6Addr>().expect("an address")]);
    let mx = |preference, exchange: &str| Mx { preference, exchange: exchange.into() };
    let mut found = network.mx("example").await.records().to_vec();
    found.sort();
    assert_eq!(found, [mx(0, ""), mx(10, "mx.host.example")]);
    assert_eq!(network.ptr([192, 0, 2, 1].into()).await.records(), ["host.example".into()]);
    let texts = network.txt("text.example").await;
    assert_eq!(texts.records().iter().map(|text| text.len()).collect::<Vec<_>>(), [3, 300], "the strings of one record are one text");
    assert_eq!(network.a("alias.example").await.records().len(), 2);
    assert_eq!(network.a("none.example").await, Lookup::Absent(Absence::Name));
    assert_eq!(network.aaaa("only4.example").await, Lookup::Absent(Absence::Data));
    assert_eq!(network.lookup_ips("host.example").await.records().len(), 3);
    assert_eq!(network.lookup_ips("only4.example").await.records(), [std::net::IpAddr::from([192, 0, 2, 3])]);
    assert_eq!(network.lookup_ips("none.example").await, Lookup::Absent(Absence::Name));
    assert_eq!(network.lookup_ips("fail.example").await, Lookup::TempError);
}

#[tokio::test]
async fn long_answers_come_over_tcp() {
    let stub = Stub::start(zone).await;
    let network = network(&[&stub]);
    assert_eq!(network.txt("big.example").await.records().len(), 20);
    assert_eq!(stub.counts().1, 1);
    assert_eq!(network.txt("huge.example").await, Lookup::Malformed, "25,000 bytes are more than any record needs");
}

#[tokio::test]
async fn servers_that_behave_badly() {
    let stub = Stub::start(zone).await;
    let network = waiting(&[&stub], 150);
    for name in ["fail.example", "refused.example", "broken.example", "short.example", "silent.example", "loop1.example", "self.example"] {
        let start = Instant::now();
        let found = network.txt(name).await;
        assert!(found.records().is_empty(), "{name}: {found:?}");
        assert!(!name.starts_with("loop") || found != Lookup::Absent(Absence::Name), "{name}: {found:?}");
        if !name.contains("loop") && !name.contains("self") {
            assert!(found.failed(), "{name}: {found:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(3), "{name}: {:?}", start.elapsed());
    }
    let (udp, tcp) = stub.counts();
    assert!(udp + tcp < 120, "an alias that leads back to itself costs {udp} + {tcp} questions");
}

#[tokio::test]
async fn a_second_server_helps_a_silent_one_out() {
    let (silent, good) = (Stub::start(|_, _| Act::Silence).await, Stub::start(zone).await);
    let network = waiting(&[&silent, &good], 700);
    assert_eq!(network.a("host.example").await.records().len(), 2);
}

#[tokio::test]
async fn a_silent_server_costs_a_bounded_time_and_then_little() {
    let stub = Stub::start(|_, _| Act::Silence).await;
    let cached = Arc::new(Cached::new(waiting(&[&stub], 150), CacheLimits { failure_ttl_s: 60, ..CacheLimits::default() }));
    let mail = message("From: <a@sender.example>\r\n\r\nx\r\n");
    let start = Instant::now();
    let found = evaluate(cached.clone(), &envelope("192.0.2.1", Some("a@sender.example")), &mail).await;
    assert_eq!((found.spf, found.dmarc.map(|dmarc| dmarc.result)), (Some(Spf::TempError), Some(Dmarc::TempError)));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let before = stub.counts();
    assert!(before.0 >= 2, "it was asked");
    evaluate(cached, &envelope("192.0.2.1", Some("a@sender.example")), &mail).await;
    assert_eq!(stub.counts(), before, "the failure is remembered");
}

#[tokio::test]
async fn a_dead_resolver_gets_less_patience_until_it_answers() {
    let alive = Arc::new(AtomicBool::new(false));
    let state = alive.clone();
    let stub = Stub::start(move |name, kind| if state.load(Ordering::SeqCst) { zone(name, kind) } else { Act::Silence }).await;
    let network = waiting(&[&stub], 300);
    join_all((0..8).map(|_| network.a("host.example"))).await;
    let start = Instant::now();
    assert_eq!(network.a("host.example").await, Lookup::TempError);
    assert!(start.elapsed() < Duration::from_millis(550), "one short attempt, not two long ones: {:?}", start.elapsed());
    alive.store(true, Ordering::SeqCst);
    let mut answered = false;
    for _ in 0..20 {
        answered |= network.a("host.example").await.records().len() == 2;
    }
    assert!(answered, "it is still asked, and believed again");
    alive.store(false, Ordering::SeqCst);
    let start = Instant::now();
    network.a("host.example").await;
    assert!(start.elapsed() > Duration::from_millis(300), "patience is back: {:?}", start.elapsed());
}

#[tokio::test]
async fn nobody_listens() {
    // A port that is never handed out for port 0, so that no other test gets it.
    let servers = vec!["127.0.0.1:1".parse().expect("an address")];
    let network = Network::new(&NetworkOptions { servers, timeout_ms: 150, attempts: 2 }).expect("a resolver");
    assert_eq!(network.a("host.example").await, Lookup::TempError);
}

#[tokio::test]
async fn the_whole_way() {
    let stub = Stub::start(zone).await;
    let cached = Arc::new(Cached::new(network(&[&stub]), CacheLimits::default()));
    let mail = message("From: <a@sender.example>\r\n\r\nx\r\n");
    for (client, spf, dmarc) in [("192.0.2.2", Spf::Pass, Dmarc::Pass), ("192.0.2.9", Spf::Fail, Dmarc::Fail)] {
        let found = evaluate(cached.clone(), &envelope(client, Some("a@sender.example")), &mail).await;
        assert_eq!((found.spf, found.dmarc.map(|found| found.result)), (Some(spf), Some(dmarc)));
    }
    let (udp, _) = stub.counts();
    assert_eq!(udp, 4, "sender, host, and the walk from _dmarc.sender.example to _dmarc.example, once");
}
