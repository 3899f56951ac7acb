//! What the next hop does, what tenants say, and what senders hear of it.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;

use crate::support::*;

/// Two tenants: example.com, whose server does not answer, and example.org, whose server does. Nobody waits for the other's server.
async fn another_tenant_is_not_held_up(port: u16) {
    let world = World::new().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", port, ""));
    world.write("example-org.yaml", &tenant("example-org", "example.org", world.sink.address.port(), ""));
    let _gateway = world.start().await;
    let mut hanging = vec![];
    for _ in 0..12 {
        let mut session = world.session().await;
        session.envelope(SENDER, &["user@example.com"]).await.expect("354");
        session.write(b"Subject: hangs\r\n\r\n.\r\n").await;
        hanging.push(session);
    }
    for _ in 0..20 {
        let started = Instant::now();
        world.send(&["user@example.org"], &mail("hello", "quick")).await.expect("250");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    world.arrived(20).await;
    // A message for both is queued at once, and the copy for the quick one leaves.
    let started = Instant::now();
    world.send(&["user@example.com", "user@example.org"], &mail("hello", "both")).await.expect("250");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    world.arrived(21).await;
}

/// A server that takes connections and treats each like this.
async fn server<F: Future<Output = ()> + Send + 'static>(treat: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(stream));
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_never_speaks_holds_up_nobody_else() {
    let port = server(async |stream: tokio::net::TcpStream| {
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    })
    .await;
    another_tenant_is_not_held_up(port).await;
}

#[tokio::test]
async fn a_server_that_drips_its_greeting_holds_up_nobody_else() {
    let port = server(async |mut stream: tokio::net::TcpStream| {
        use tokio::io::AsyncWriteExt as _;
        loop {
            if stream.write_all(b"220-wait\r\n").await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
    another_tenant_is_not_held_up(port).await;
}

#[tokio::test]
async fn a_server_that_is_gone_in_mid_message_holds_up_nobody_else() {
    // Half open: it greets, takes everything, and says nothing any more.
    let port = server(async |mut stream: tokio::net::TcpStream| {
        use tokio::io::AsyncWriteExt as _;
        drop(stream.write_all(b"220 half\r\n").await);
        let mut buffer = vec![0; 65536];
        while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
    })
    .await;
    another_tenant_is_not_held_up(port).await;
}

#[tokio::test]
async fn the_next_hops_refusal_is_ours_unless_the_tenant_bounces_softly() {
    let world = World::new().await;
    let port = world.sink.address.port();
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", port, ""));
    world.write("example-org.yaml", &tenant("example-org", "example.org", port, "  softBounce: true"));
    let _gateway = world.start().await;
    world.send(&["unknown@example.com"], &mail("hello", "nobody")).await.expect("550 5.1.1 no such mailbox");
    world.sink.behave(vec![(Behaviour::Refuse, 1)]);
    world.send(&["user@example.com"], &mail("hello", "unwanted")).await.expect("554 5.6.0 not wanted here");
    assert!(world.queue().await.is_empty());
    world.send(&["user@example.org"], &mail("hello", "unwanted")).await.expect("250");
    world.send(&["unknown@example.org"], &mail("hello", "nobody")).await.expect("250");
    world.queue_settles(2, "scheduled").await;
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    drop(world.command(&["queue", "retry", "--all"]).await);
    world.arrived(1).await;
    let left = world.queue_settles(1, "scheduled").await;
    assert!(left[0]["error"].as_str().is_some_and(|error| error.contains("550 5.1.1")), "{left:?}");
}

#[tokio::test]
async fn some_recipients_refused_and_some_deferred() {
    let (world, _gateway) = World::with_tenant("").await;
    let everybody = ["user@example.com", "unknown@example.com", "busy@example.com", "other@example.com"];
    world.send(&everybody, &mail("hello", "partial")).await.expect("250");
    let arrival = world.arrived(1).await.remove(0);
    assert_eq!(arrival.to, ["user@example.com", "other@example.com"]);
    // The refused copy does not vanish, and the deferred one is tried again.
    let dead = messages(world.command_json(&["quarantine", "list", "--dead-letters"]).await);
    assert_eq!((dead.len(), &dead[0]["recipients"][0]), (1, &"unknown@example.com".into()), "{dead:?}");
    assert!(dead[0]["reason"].as_str().is_some_and(|reason| reason.contains("550 5.1.1 no such mailbox")), "{dead:?}");
    let queued = world.queue_settles(1, "scheduled").await;
    let id = queued[0]["id"].as_str().expect("an id");
    let shown = world.command_json(&["queue", "show", id]).await;
    assert_eq!(shown["entries"][0]["recipients"].as_array().map(Vec::len), Some(1), "{shown}");
    let line = world.events("message").remove(0);
    assert_eq!(line["disposition"], serde_json::json!({"delivered": 2, "queued": 1, "dead-letter": 1}), "{line}");
}

#[tokio::test]
async fn a_server_that_refuses_us_is_not_the_mails_fault() {
    let (world, gateway) = World::with_tenant("").await;
    world.sink.behave(vec![(Behaviour::RefuseSender, 1)]);
    world.send(&["user@example.com"], &mail("hello", "kept")).await.expect("250");
    assert_eq!(world.queue().await.len(), 1);
    let status: serde_json::Value = serde_json::from_str(&gateway.get("/v1/status").await.expect("an answer")).expect("JSON");
    assert!(status["routes"].to_string().contains("550"), "{status}");
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    until("it arrives", async || {
        drop(world.command(&["queue", "retry", "--all"]).await);
        !world.sink.arrivals().is_empty()
    })
    .await;
    assert_intact(&world.arrived(1).await[0], &mail("hello", "kept"));
}

#[tokio::test]
async fn inline_keeps_nothing_at_rest() {
    let (world, _gateway) = World::with_tenant("  delivery: Inline").await;
    let mut session = world.session().await;
    session.say("MAIL FROM:<you@sender.example>").await.expect("250");
    session.say("RCPT TO:<user@example.com>").await.expect("250");
    session.say("RCPT TO:<other@example.com>").await.expect("452 4.5.3");
    session.say("DATA").await.expect("354");
    session.content(&mail("hello", "one")).await.expect("250");
    world.arrived(1).await;
    session.send(SENDER, &["unknown@example.com"], &mail("hello", "nobody")).await.expect("550 5.1.1");
    session.send(SENDER, &["busy@example.com"], &mail("hello", "later")).await.expect("451 4");
    for behaviour in [Behaviour::Defer, Behaviour::DropBefore, Behaviour::DropAfter, Behaviour::RefuseSender, Behaviour::Down] {
        world.sink.behave(vec![(behaviour, 1)]);
        let reply = session.send(SENDER, &["user@example.com"], &mail("hello", "not now")).await;
        assert_eq!(reply.code, 451, "{behaviour:?}: {reply:?}");
    }
    assert!(world.queue().await.is_empty());
    assert!(messages(world.command_json(&["quarantine", "list", "--dead-letters"]).await).is_empty());
    let spooled = std::fs::read_dir(world.state().join("spool")).expect("the spool").flatten();
    for segment in spooled.map(|entry| std::fs::read(entry.path()).expect("readable")) {
        assert!(!segment.windows(7).any(|window| window == b"not now"), "it was written down");
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_queued_and_marked() {
    let (world, gateway) = World::with_tenant("").await;
    world.sink.behave(vec![(Behaviour::DropAfter, 1)]);
    world.send(&["user@example.com"], &mail("hello", "perhaps twice")).await.expect("250");
    world.queue_settles(1, "scheduled").await;
    assert_eq!(gateway.metric("sekimori_delivery_ambiguous_total").await, Some(1.0));
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    drop(world.command(&["queue", "retry", "--all"]).await);
    world.arrived(2).await;
    until("an empty queue", async || world.queue().await.is_empty()).await;
}

#[tokio::test]
async fn a_suspended_tenant_and_one_on_hold() {
    let world = World::new().await;
    let port = world.sink.address.port();
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", port, "  state: Suspended"));
    world.write("example-org.yaml", &tenant("example-org", "example.org", port, "  state: Hold"));
    world.write("example-net.yaml", &tenant("example-net", "example.net", port, "  state: Hold\n  delivery: Inline"));
    let _gateway = world.start().await;
    world.send(&["user@example.com"], &mail("hello", "suspended")).await.expect("450 4.2.1");
    world.send(&["user@example.net"], &mail("hello", "never at rest")).await.expect("451 4.2.1");
    world.send(&["user@example.org"], &mail("hello", "held")).await.expect("250");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.sink.arrivals().len(), 0);
    assert_eq!(world.queue().await.len(), 1);
    world.write("example-org.yaml", &tenant("example-org", "example.org", port, "  state: Active"));
    assert_intact(&world.arrived(1).await[0], &mail("hello", "held"));
}

#[tokio::test]
async fn a_tenants_rate() {
    let (world, _gateway) = World::with_tenant("  limits: {messagesPerHour: 60}").await;
    world.write("example-org.yaml", &tenant("example-org", "example.org", world.sink.address.port(), ""));
    let mut session = world.session().await;
    let mut accepted = 0;
    loop {
        let reply = session.send(SENDER, &["user@example.com"], &mail("hello", "one of many")).await;
        if reply.code != 250 {
            reply.expect("450 4.7.1");
            break;
        }
        accepted += 1;
        assert!(accepted <= 61, "60 an hour");
    }
    assert!(accepted >= 1);
    until("the other tenant", async || world.send(&["user@example.org"], &mail("hello", "other")).await.code == 250).await;
}

#[tokio::test]
async fn loopback_is_no_destination_unless_the_fleet_says_so() {
    let world = World::new().await;
    let closed = fleet(world.smtp.port(), "", "").replace("allowedNetworks: [127.0.0.0/8]", "allowedNetworks: []");
    world.write("fleet.yaml", &closed);
    let by_name = tenant("example-org", "example.org", world.sink.address.port(), "").replace("host: 127.0.0.1", "host: sink.example");
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    world.write("example-org.yaml", &by_name);
    let _gateway = world.start().await;
    for to in ["user@example.com", "user@example.org"] {
        world.send(&[to], &mail("hello", "not into the cluster")).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.sink.arrivals().len(), 0);
    // Allowed: by address and by name.
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    until("both", async || {
        drop(world.command(&["queue", "retry", "--all"]).await);
        let to: Vec<String> = world.sink.arrivals().into_iter().flat_map(|arrival| arrival.to).collect();
        to.contains(&"user@example.org".into())
    })
    .await;
}
