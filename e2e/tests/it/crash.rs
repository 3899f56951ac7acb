//! kill -9 and SIGTERM under load: the ledger loses nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sekimori_e2e::crash::{self, Crash};
use sekimori_e2e::ledger::Ledger;
use sekimori_e2e::sink::Sink;
use sekimori_e2e::source::{self, Load};

use crate::support::*;

/// The long run (`make test-long`) does 50.
const ROUNDS: u32 = 4;

async fn killed_again_and_again(delivery: Delivery) {
    crash::run(&Crash { gateway: binary(), rounds: ROUNDS, delivery }).await.expect("nothing is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_with_inline_else_queue() {
    killed_again_and_again(Delivery::InlineElseQueue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_with_queue() {
    killed_again_and_again(Delivery::Queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_with_inline() {
    killed_again_and_again(Delivery::Inline).await;
}

fn load(world: &World) -> Load {
    Load {
        target: world.smtp,
        sessions: 8,
        messages: u64::MAX / 2,
        bytes: 8_000,
        sender: "source@sender.example".into(),
        recipient: "user@example.com".into(),
        per_session: 50,
        first: 1,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_ends_with_0_and_a_restart_goes_on() {
    let mut world = World::new().await;
    let ledger = Arc::new(Ledger::default());
    world.sink = Sink::start(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), Some(Arc::clone(&ledger)), false).await.expect("a free port");
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", limits: {connectionsPerAddress: 100}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), "  delivery: Queue"));
    let mut gateway = world.start().await;
    // The next hop defers every second message, so that the queue is never empty.
    world.sink.behave(vec![(Behaviour::Accept, 1), (Behaviour::Defer, 1)]);
    let stop = Arc::new(AtomicBool::new(false));
    let source = tokio::spawn(source::run(load(&world), Arc::clone(&ledger), Arc::clone(&stop)));
    until("some load", async || ledger.balance().acknowledged > 100).await;
    assert_eq!(gateway.stop(Duration::from_secs(30)).await.expect("it stops"), 0, "{}", world.log());
    let stopped = ledger.balance();
    assert!(stopped.missing > 0, "the queue was empty, so nothing was tested: {stopped:?}");
    let log = world.log();
    assert!(log.contains("\"event\":\"stopped\"") && !log.contains("cut off"), "{log}");

    let gateway = world.start().await;
    stop.store(true, Ordering::Relaxed);
    source.await.expect("the source");
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    until("nothing is missing", async || {
        drop(gateway.post("/v1/queue/retry", "{\"all\":true}").await);
        tokio::time::sleep(Duration::from_millis(200)).await;
        ledger.balance().missing == 0
    })
    .await;
    let balance = ledger.balance();
    assert_eq!(balance.damaged, 0, "{balance:?}");
    // A clean stop leaves nothing in doubt.
    assert_eq!(balance.duplicates, 0, "{balance:?}");
    until("an empty queue", async || world.queue().await.is_empty()).await;
}

#[tokio::test]
async fn sigterm_while_the_next_hop_hangs_keeps_the_message() {
    let mut world = World::new().await;
    world.more = vec!["--stop-timeout".into(), "1s".into()];
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), "  delivery: Queue"));
    let mut gateway = world.start().await;
    world.sink.behave(vec![(Behaviour::Stall, 1)]);
    world.send(&["user@example.com"], &mail("hello", "kept")).await.expect("250");
    world.queue_settles(1, "inFlight").await;
    // A client that holds its session is told, and cannot hold up the stop.
    let mut idle = world.session().await;
    let mut busy = world.session().await;
    busy.envelope(SENDER, &["user@example.com"]).await.expect("354");
    let stopping = tokio::time::timeout(Duration::from_secs(40), gateway.stop(Duration::from_secs(30)));
    let (code, said) = tokio::join!(stopping, idle.next_reply());
    said.expect("a reply").expect("421 4.3.2");
    assert_eq!(code.expect("in time").expect("it stops"), 0, "{}", world.log());
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    let gateway = world.start().await;
    drop(gateway.post("/v1/queue/retry", "{\"all\":true}").await);
    assert_intact(&world.arrived(1).await[0], &mail("hello", "kept"));
}
