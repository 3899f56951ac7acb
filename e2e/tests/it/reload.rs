//! Configuration that changes while mail flows, and configuration that is wrong.

use std::time::{Duration, Instant};

use crate::support::*;

/// How long a change may take to be in force.
const IN_FORCE: Duration = Duration::from_secs(2);

/// Waits until a recipient is answered with this code; how long that took.
async fn answered(world: &World, to: &str, code: u16) -> Duration {
    let started = Instant::now();
    until(&format!("{to} is answered {code}"), async || {
        let mut session = world.session().await;
        session.say("MAIL FROM:<you@sender.example>").await.expect("250");
        session.say(&format!("RCPT TO:<{to}>")).await.code == code
    })
    .await;
    started.elapsed()
}

/// That the quickest of some tries was quick enough: a busy machine may hold up one of them.
#[track_caller]
fn assert_in_force(tries: &[Duration]) {
    assert!(tries.iter().min().is_some_and(|took| *took < IN_FORCE), "{tries:?}");
}

#[tokio::test]
async fn a_tenant_is_served_two_seconds_after_its_file_was_written() {
    let (world, gateway) = World::with_tenant("").await;
    let port = world.sink.address.port();
    world.send(&["user@example.org"], &mail("hello", "too early")).await.expect("550 5.7.1");
    let (mut written, mut signalled) = (vec![], vec![]);
    for number in 1..=3 {
        world.write("example-org.yaml", &tenant("example-org", "example.org", port, ""));
        written.push(answered(&world, "user@example.org", 250).await);
        world.send(&["user@example.org"], &mail("hello", "new")).await.expect("250");
        assert_intact(&world.arrived(number).await[number - 1], &mail("hello", "new"));
        // Gone again; SIGHUP reads at once what is there.
        std::fs::remove_file(world.manifests().join("example-org.yaml")).expect("removed");
        gateway.signal("HUP").expect("a signal");
        signalled.push(answered(&world, "user@example.org", 550).await);
    }
    assert_in_force(&written);
    assert_in_force(&signalled);
    // The metric says so, and so does the log. (A signal may come when the file was noticed already.)
    until("six reloads", async || gateway.metric("sekimori_reloads_total{result=\"applied\"}").await >= Some(6.0)).await;
    assert!(world.events("reloaded").len() >= 6);
    world.send(&["user@example.com"], &mail("hello", "as before")).await.expect("250");
}

#[tokio::test]
async fn a_transaction_keeps_the_configuration_that_it_began_with() {
    let (world, _gateway) = World::with_tenant("").await;
    let mut session = world.session().await;
    session.envelope(SENDER, &["user@example.com"]).await.expect("354");
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), "  state: Suspended"));
    answered(&world, "user@example.com", 450).await;
    session.content(&mail("hello", "begun before")).await.expect("250");
    world.arrived(1).await;
    // The next transaction of the same session sees the change.
    session.send(SENDER, &["user@example.com"], &mail("hello", "after")).await.expect("450 4.2.1");
}

#[tokio::test]
async fn a_broken_tenant_keeps_its_last_good_form_while_others_change() {
    let (world, mut gateway) = World::with_tenant("").await;
    let port = world.sink.address.port();
    let broken = tenant("example-com", "example.com", port, "  delivery: Sometimes");
    world.write("example-com.yaml", &broken);
    world.write("example-org.yaml", &tenant("example-org", "example.org", port, ""));
    answered(&world, "user@example.org", 250).await;
    world.send(&["user@example.com"], &mail("hello", "last good form")).await.expect("250");
    world.arrived(1).await;
    let log = world.log();
    let line = log.lines().find(|line| line.contains("example-com.yaml")).unwrap_or_else(|| panic!("{log}"));
    for part in ["TenantDomain", "example-com", "spec.delivery", "Sometimes", "\"level\":\"error\""] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
    until("the metric", async || gateway.metric("sekimori_reloads_total{result=\"partly\"}").await == Some(1.0)).await;
    // A file that is no YAML at all removes nobody.
    world.write("example-com.yaml", "spec: [");
    world.write("example-net.yaml", &tenant("example-net", "example.net", port, ""));
    answered(&world, "user@example.net", 250).await;
    world.send(&["user@example.com", "user@example.org"], &mail("hello", "still there")).await.expect("250");
    world.arrived(3).await;
    // It is so after a restart, too.
    assert_eq!(gateway.stop(SOON).await.expect("it stops"), 0);
    let _gateway = world.start().await;
    world.send(&["user@example.com"], &mail("hello", "after a restart")).await.expect("250");
    world.arrived(4).await;
}

#[tokio::test]
async fn the_mail_of_a_removed_tenant_is_still_delivered() {
    let world = World::new().await;
    let other = new_sink().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), "  delivery: Queue"));
    world.write("example-org.yaml", &tenant("example-org", "example.org", other.address.port(), ""));
    let gateway = world.start().await;
    world.sink.behave(vec![(Behaviour::Defer, 1)]);
    world.send(&["user@example.com"], &mail("hello", "queued")).await.expect("250");
    world.queue_settles(1, "scheduled").await;
    std::fs::remove_file(world.manifests().join("example-com.yaml")).expect("removed");
    answered(&world, "user@example.com", 550).await;
    world.send(&["user@example.org"], &mail("hello", "other")).await.expect("250");
    // Its last form is known after a restart, too.
    drop(gateway);
    let _gateway = world.start().await;
    world.queue_settles(1, "scheduled").await;
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    let done = world.command(&["queue", "retry", "--tenant", "default/example-com"]).await;
    assert_eq!((done.code, done.out.as_str()), (0, "1 message changed\n"));
    assert_intact(&world.arrived(1).await[0], &mail("hello", "queued"));
    until("an empty queue", async || world.queue().await.is_empty()).await;
}

#[tokio::test]
async fn a_listener_moves_to_another_port() {
    let (mut world, _gateway) = World::with_tenant("").await;
    let mut staying = world.session().await;
    let before = world.smtp;
    world.smtp = free_port().expect("a free port");
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", limits: {messageSize: 1Mi}", ""));
    until("the new port", async || tokio::net::TcpStream::connect(world.smtp).await.is_ok()).await;
    until("the old port is closed", async || tokio::net::TcpStream::connect(before).await.is_err()).await;
    assert!(world.session().await.offers.contains("SIZE 1048576"));
    // Who was connected goes on with what he was told.
    staying.send(SENDER, &["user@example.com"], &mail("hello", "on the old connection")).await.expect("250");
    world.send(&["user@example.com"], &mail("hello", "on the new port")).await.expect("250");
    world.arrived(2).await;
}

#[tokio::test]
async fn a_port_that_is_taken_does_not_stop_the_gateway() {
    let (world, gateway) = World::with_tenant("").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    world.write("fleet.yaml", &fleet(taken.local_addr().expect("bound").port(), "", ""));
    until("a failed reload", async || gateway.metric("sekimori_reloads_total{result=\"failed\"}").await == Some(1.0)).await;
    let log = world.log();
    assert!(log.contains("cannot bind") && log.contains("spec.listeners"), "{log}");
    assert!(log.contains("the old one stays"), "{log}");
    world.send(&["user@example.com"], &mail("hello", "on the old port")).await.expect("250");
}

#[tokio::test]
async fn another_resolver_is_asked_from_then_on() {
    let world = World::new().await;
    let fleet = |port| fleet(world.smtp.port(), "", &format!("\n  resolver: {{addresses: [\"127.0.0.1:{port}\"]}}"));
    let any = std::net::SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 0);
    let zone = |policy| sekimori_e2e::dns::Zone::default().txt("bank.example", "v=spf1 -all").txt("_dmarc.bank.example", policy);
    let mild = sekimori_e2e::dns::serve(any, zone("v=DMARC1; p=none")).await.expect("a free port");
    let strict = sekimori_e2e::dns::serve(any, zone("v=DMARC1; p=reject")).await.expect("a free port");
    world.write("fleet.yaml", &fleet(mild.port()));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let options = world.options();
    // Without --resolver, which would win over the fleet's.
    let log = std::fs::File::create(world.dir.path().join("state.log")).expect("a log");
    let _child = tokio::process::Command::new(&options.binary)
        .arg("run")
        .args([std::path::Path::new("--manifests"), &options.manifests, std::path::Path::new("--state"), &options.state])
        .args(["--admin", &options.admin.to_string()])
        .stdout(log.try_clone().expect("another handle"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    until("it listens", async || tokio::net::TcpStream::connect(world.smtp).await.is_ok()).await;
    let forged = String::from_utf8(mail("urgent", "please pay")).expect("text").replace(SENDER, "ceo@bank.example").into_bytes();
    let mut session = world.session().await;
    session.send("ceo@bank.example", &["user@example.com"], &forged).await.expect("250");
    world.write("fleet.yaml", &fleet(strict.port()));
    until("the reload", async || !world.events("reloaded").is_empty()).await;
    session.send("ceo@bank.example", &["user@example.com"], &forged).await.expect("550 5.7.1 message refused: it fails DMARC");
    world.arrived(1).await;
}

/// What `check` says about these files.
async fn checked(world: &World, more: &[&str]) -> Done {
    let dir = world.manifests().display().to_string();
    let mut arguments = vec!["check", "--manifests", &dir];
    arguments.extend(more);
    command(&arguments, b"").await
}

#[tokio::test]
async fn wrong_manifests_are_named_with_file_document_and_field() {
    let world = World::new().await;
    let good = fleet(world.smtp.port(), "", "");
    let port = world.sink.address.port();
    let cases: &[(&str, &str, String, &[&str])] = &[
        (
            "an unknown field",
            "t.yaml",
            tenant("a", "example.com", port, "  softbounce: true"),
            &["t.yaml", "TenantDomain", "a", "spec.softbounce", "softBounce"],
        ),
        ("a wrong value", "t.yaml", tenant("a", "example.com", port, "  delivery: Fast"), &["t.yaml", "spec.delivery", "InlineElseQueue"]),
        ("a domain that is none", "t.yaml", tenant("a", "Example.Com", port, ""), &["t.yaml", "spec.domains", "lower"]),
        (
            "not yet supported",
            "t.yaml",
            tenant("a", "example.com", port, "  recipients: {type: CallAhead}"),
            &["NotSupportedYet", "spec.recipients", "CallAhead"],
        ),
        ("a policy that is not there", "t.yaml", tenant("a", "example.com", port, "  policyRef: {name: nowhere}"), &["spec.policyRef", "nowhere"]),
        ("a file that is no YAML", "t.yaml", "kind: [".into(), &["t.yaml"]),
        ("no kind", "t.yaml", "apiVersion: sekimori.dev/v1alpha1\nmetadata: {name: a}\n".into(), &["t.yaml", "kind"]),
        (
            "a wrong kind",
            "t.yaml",
            "apiVersion: sekimori.dev/v1alpha1\nkind: TenantDomian\nmetadata: {name: a}\n".into(),
            &["t.yaml", "TenantDomain"],
        ),
        ("two fleets", "t.yaml", fleet_with(1, "", "").replace("name: test", "name: other"), &["GatewayFleet"]),
        ("an engine nobody defined", "g.yaml", fleet_with(world.smtp.port(), "", "\n  engines: [{name: ghost}]"), &["spec.engines", "ghost"]),
    ];
    for (what, file, text, parts) in cases {
        world.write("g.yaml", &good);
        world.write(file, text);
        let done = checked(&world, &[]).await;
        assert_eq!(done.code, 1, "{what}: {done:?}");
        for part in *parts {
            assert!(done.out.contains(part), "{what}: {part} is missing in {}", done.out);
        }
        let json: serde_json::Value = serde_json::from_str(&checked(&world, &["--output", "json"]).await.out).expect("JSON");
        assert!(
            json["problems"].as_array().is_some_and(|list| !list.is_empty()) || json["errors"].as_array().is_some_and(|list| !list.is_empty()),
            "{what}: {json}"
        );
        std::fs::remove_file(world.manifests().join(file)).expect("removed");
    }
    world.write("g.yaml", &good);
    world.write("t.yaml", &tenant("a", "example.com", port, ""));
    let done = checked(&world, &[]).await;
    assert_eq!((done.code, done.out.lines().last()), (0, Some("1 tenant, 0 errors, 0 warnings")), "{done:?}");
}

#[tokio::test]
async fn manifests_that_cannot_be_run_end_with_1_and_say_why() {
    let world = World::new().await;
    let ended = async |what: &str, parts: &[&str]| {
        let mut gateway = Gateway::start(&world.options()).expect("it starts");
        let code = gateway.ended(SOON).await.unwrap_or_else(|error| panic!("{what}: {error}\n{}", world.log()));
        assert_eq!(code, 1, "{what}: {}", world.log());
        for part in parts {
            assert!(world.log().contains(part), "{what}: {part} is missing in {}", world.log());
        }
    };
    ended("no file", &["no *.yaml file"]).await;
    world.write("t.yaml", &tenant("a", "example.com", 1, ""));
    ended("no fleet", &["GatewayFleet"]).await;
    world.write("g.yaml", &fleet(world.smtp.port(), ", tls: {mode: Opportunistic, certificateRefs: [{name: gone}]}", ""));
    ended("no certificate", &["g.yaml", "gone"]).await;
    std::fs::remove_dir_all(world.manifests()).expect("removed");
    ended("no directory", &["No such file"]).await;
}

#[tokio::test]
async fn a_message_size_that_no_spool_segment_holds_ends_with_1() {
    let mut world = World::new().await;
    world.more = ["--spool-segment", "2Mi"].map(String::from).to_vec();
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    let mut gateway = Gateway::start(&world.options()).expect("it starts");
    assert_eq!(gateway.ended(SOON).await.expect("it ends"), 1, "{}", world.log());
    let log = world.log();
    assert!(log.contains("limits.messageSize 64Mi") && log.contains("--spool-segment"), "{log}");
}
