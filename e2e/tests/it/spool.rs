//! The state directory: a full spool, a second process, a directory that cannot be used.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::support::*;

#[tokio::test]
async fn a_full_spool_is_a_4xx_and_loses_nothing() {
    let mut world = World::new().await;
    world.more = ["--spool-segment", "2Mi", "--spool-max", "8Mi"].map(String::from).to_vec();
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", limits: {messagesPerSession: 1000, messageSize: 512Ki}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), "  delivery: Queue"));
    let gateway = world.start().await;
    world.sink.behave(vec![(Behaviour::Down, 1)]);
    let content = |number: usize| mail(&format!("number {number}"), &"0123456789 and more of the same\r\n".repeat(3000));
    let mut session = world.session().await;
    let mut accepted = 0;
    let refused = loop {
        let reply = session.send(SENDER, &["user@example.com"], &content(accepted)).await;
        if reply.code != 250 {
            break reply;
        }
        accepted += 1;
        assert!(accepted < 100, "8 MiB took 100 messages of 100 KB");
    };
    refused.expect("452 4.3.1");
    assert!(accepted > 10, "{accepted}");
    // Not the end of the session, nor of the gateway; it stays so while nothing leaves.
    session.send(SENDER, &["user@example.com"], &content(accepted)).await.expect("452 4.3.1");
    assert_eq!(gateway.get("/readyz").await.expect("an answer"), "ok\n");
    assert_eq!(world.queue().await.len(), accepted);
    // A restart finds everything, and is still full.
    drop(gateway);
    let _gateway = world.start().await;
    assert_eq!(world.queue().await.len(), accepted);
    world.send(&["user@example.com"], &content(accepted)).await.expect("452 4.3.1");
    // The next hop is back: room again.
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    until("an empty queue", async || {
        drop(world.command(&["queue", "retry", "--all"]).await);
        world.queue().await.is_empty()
    })
    .await;
    let arrivals = world.arrived(accepted).await;
    for number in 0..accepted {
        assert!(arrivals.iter().any(|arrival| arrival.content.ends_with(&content(number))), "number {number}");
    }
    until("room", async || world.send(&["user@example.com"], &content(accepted)).await.code == 250).await;
    world.arrived(accepted + 1).await;
}

#[tokio::test]
async fn a_second_process_on_the_same_state_ends_with_3() {
    let (mut world, _gateway) = World::with_tenant("").await;
    let first = std::mem::replace(&mut world.admin, free_port().expect("a free port"));
    let mut second = Gateway::start(&world.options()).expect("it starts");
    assert_eq!(second.ended(SOON).await.expect("it ends"), 3, "{}", world.log());
    let log = world.log();
    let line = log.lines().find(|line| line.contains("lock")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(&world.state().display().to_string()) && line.contains("\"level\":\"error\""), "{line}");
    world.admin = first;
    world.send(&["user@example.com"], &mail("hello", "the first one serves on")).await.expect("250");
    world.arrived(1).await;
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_used_ends_with_3() {
    let world = World::new().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", 1, ""));
    let ended = async |what: &str, options: &GatewayOptions| {
        let mut gateway = Gateway::start(options).expect("it starts");
        let code = gateway.ended(Duration::from_secs(30)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let log = std::fs::read_to_string(&gateway.log).unwrap_or_default();
        assert_eq!(code, 3, "{what}: {log}");
        assert!(log.contains(&options.state.display().to_string()), "{what}: {log}");
    };
    let options = |name: &str| GatewayOptions { state: world.dir.path().join(name), ..world.options() };

    // A file where the spool's directory belongs.
    let blocked = options("blocked");
    std::fs::create_dir(&blocked.state).expect("a new directory");
    std::fs::write(blocked.state.join("spool"), "not a directory").expect("written");
    ended("a file in the way", &blocked).await;

    // Read-only: root writes everywhere, so this is shown only where the tests do not run as root.
    let read_only = options("read-only");
    std::fs::create_dir(&read_only.state).expect("a new directory");
    std::fs::set_permissions(&read_only.state, std::fs::Permissions::from_mode(0o500)).expect("ours");
    if std::fs::write(read_only.state.join("probe"), "").is_err() {
        ended("read-only", &read_only).await;
    }
}

#[tokio::test]
async fn a_corrupt_spool_loses_nothing_else() {
    let mut world = World::new().await;
    world.more = ["--spool-segment", "2Mi"].map(String::from).to_vec();
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", limits: {messageSize: 512Ki}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), "  delivery: Queue"));
    let mut gateway = world.start().await;
    world.sink.behave(vec![(Behaviour::Down, 1)]);
    let marker = "c0rrupt-me";
    for subject in ["one", "two", "three"] {
        world.send(&["user@example.com"], &mail(subject, if subject == "two" { marker } else { "fine" })).await.expect("250");
    }
    assert_eq!(gateway.stop(SOON).await.expect("it stops"), 0);
    let mut damaged = 0;
    for entry in std::fs::read_dir(world.state().join("spool")).expect("the spool") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("readable");
        if let Some(at) = bytes.windows(marker.len()).position(|window| window == marker.as_bytes()) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).expect("written");
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let _gateway = world.start().await;
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    drop(world.command(&["queue", "retry", "--all"]).await);
    // The two others arrive; the third is never sent with another's bytes or damaged, and it does not vanish in silence.
    let arrivals = world.arrived(2).await;
    assert!(arrivals.iter().all(|arrival| arrival.content.ends_with(b"fine\r\n")));
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.arrived(2).await;
    let log = world.log();
    assert!(log.lines().any(|line| (line.contains("corrupt") || line.contains("checksum")) && line.contains("\"level\":\"error\"")), "{log}");
}

#[tokio::test]
async fn a_segment_that_nobody_can_read_is_set_aside_and_named() {
    let (world, mut gateway) = World::with_tenant("  delivery: Queue").await;
    assert_eq!(gateway.stop(SOON).await.expect("it stops"), 0);
    let foreign = world.state().join("spool/segment-00000077");
    let content = vec![0xa5; 1 << 20];
    std::fs::write(&foreign, &content).expect("written");
    let gateway = world.start().await;
    let log = world.log();
    assert!(log.lines().any(|line| line.contains("\"segment\":77") && line.contains("\"level\":\"error\"")), "{log}");
    world.send(&["user@example.com"], &mail("hello", "all the same")).await.expect("250");
    world.arrived(1).await;
    drop(gateway);
    assert!(std::fs::read(&foreign).expect("still there") == content, "it was written to");
}
