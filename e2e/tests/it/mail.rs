//! Mail through the gateway: what is refused, what arrives, what is said about it.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use sekimori_e2e::demo::{self, Demo};

use crate::support::*;

/// A clean message with everything that a careless gateway would change: ISO-2022-JP, a folded and an over-long line, dots, trailing blanks, 8 bit.
fn awkward() -> Vec<u8> {
    let mut message =
        b"From: =?ISO-2022-JP?B?GyRCOjRGIxsoQg==?= <you@sender.example>\r\nTo: user@example.com\r\nSUBJECT: =?ISO-2022-JP?B?GyRCMnE1RBsoQg==?=\r\n \
=?ISO-2022-JP?B?GyRCMnE1RBsoQg==?=\r\nDate: Wed, 25 Nov 2026 08:00:00 +0000\r\nMessage-Id:   <awkward@sender.example>\r\nMIME-Version: 1.0\r\n\
Content-Type: text/plain; charset=iso-2022-jp\r\nX-Empty:\r\n\r\n\x1b$B2q5D\x1b(B   \r\n.\r\n..two\r\n\xff\xfe\r\n"
            .to_vec();
    message.extend_from_slice(&[b'x'; 5000]);
    message.extend_from_slice(b"\r\n\r\n\r\n");
    message
}

#[tokio::test]
async fn the_samples_of_make_run_end_as_they_should() {
    let (dir, [smtp, sink, admin]) = (tempfile::tempdir().expect("a temporary directory"), [(); 3].map(|()| free_port().expect("a free port")));
    let manifests = dir.path().join("manifests");
    std::fs::create_dir(&manifests).expect("a new directory");
    // The manifests of `make run`, on other ports.
    let quickstart = sekimori_e2e::checkout().join("manifests/quickstart/gateway.yaml");
    let text = std::fs::read_to_string(quickstart).expect("the quickstart");
    assert!(text.contains("port: 2525") && text.contains("port: 2526"));
    let text = text.replace("port: 2525", &format!("port: {}", smtp.port())).replace("port: 2526", &format!("port: {}", sink.port()));
    std::fs::write(manifests.join("gateway.yaml"), text).expect("written");
    demo::run(Demo { gateway: binary(), manifests, state: dir.path().join("state"), smtp, sink, admin, once: true }).await.expect("every sample");
}

#[tokio::test]
async fn clean_mail_arrives_as_it_was_sent() {
    let (world, _gateway) = World::with_tenant("").await;
    let sent = [
        mail("hello", "See you on Tuesday."),
        awkward(),
        b"\r\n".to_vec(),
        b"no header at all\r\n".to_vec(),
        mail("large", &"0123456789 more of the same\r\n".repeat(100_000)),
    ];
    let mut session = world.session().await;
    for content in &sent {
        session.send(SENDER, &["user@example.com"], content).await.expect("250");
    }
    session.quit().await;
    for (arrival, content) in world.arrived(sent.len()).await.iter().zip(&sent) {
        assert_intact(arrival, content);
        assert_eq!((arrival.from.as_str(), arrival.to.as_slice()), (SENDER, &["user@example.com".to_owned()][..]));
        assert!(header(&arrival.content, "Received").contains("by mx.localhost"), "{}", header(&arrival.content, "Received"));
    }
    let first = &world.sink.arrivals()[0].content;
    let verdict = header(first, "X-Sekimori-Verdict");
    assert!(verdict.starts_with("action=Deliver; anti-virus=clean; anti-spam=ham;"), "{verdict}");
    assert_eq!(header(first, "X-Spam-Status"), "No");
}

#[tokio::test]
async fn forged_trace_fields_do_not_arrive() {
    let (world, _gateway) = World::with_tenant("").await;
    let honest = "Authentication-Results: elsewhere.example; spf=pass\r\n";
    let mut sent = format!(
        "X-Sekimori-Verdict: Deliver\r\nX-SEKIMORI-Anything: forged\r\nX-Spam-Status: No, really\r\nAuthentication-Results: mx.localhost; dmarc=pass\r\n\
         \theader.from=bank.example\r\n{honest}"
    )
    .into_bytes();
    sent.extend_from_slice(&mail("hello", "forged"));
    world.send(&["user@example.com"], &sent).await.expect("250");
    let arrival = world.arrived(1).await.remove(0);
    let text = String::from_utf8_lossy(&arrival.content).into_owned();
    for (name, count) in [("X-Sekimori-", 1), ("X-SEKIMORI-", 0), ("X-Spam-Status", 1), ("Authentication-Results: mx.localhost", 1), (honest, 1)] {
        assert_eq!(text.matches(name).count(), count, "{name} in\n{text}");
    }
    assert!(!text.contains("forged\r\nX-Spam") && !text.contains("header.from=bank.example"), "{text}");
    assert!(text.ends_with(&format!("{honest}{}", String::from_utf8_lossy(&mail("hello", "forged")))), "{text}");
}

/// Debian's swaks, as a person would call it.
async fn swaks(world: &World, more: &[&str]) -> Done {
    let program = PathBuf::from("/usr/bin/swaks");
    assert!(program.exists(), "this test needs swaks: apt-get install -y --no-install-recommends swaks libnet-ssleay-perl");
    let port = world.smtp.port().to_string();
    let mut arguments =
        vec!["--server", "127.0.0.1", "--port", &port, "--helo", "client.sender.example", "--from", SENDER, "--to", "user@example.com"];
    arguments.extend(more);
    run(program, &arguments, b"").await
}

/// EICAR and GTUBE are refused with a reason, clean mail goes through unchanged: by swaks, with these more arguments.
pub(crate) async fn swaks_sends_bad_and_good(world: &World, more: &[&str]) {
    let file = |name: &str, content: &[u8]| {
        let path = world.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        format!("@{}", path.display())
    };
    let before = world.sink.arrivals().len();
    let (attached, text) = (file("eicar.com", eicar().as_bytes()), file("gtube.txt", format!("{}\n", gtube()).as_bytes()));
    for (what, arguments, reason) in [
        (
            "EICAR attached",
            ["--attach-type", "application/octet-stream", "--attach", attached.as_str()],
            "550 5.7.1 message refused: it contains malware",
        ),
        ("GTUBE", ["--header", "Subject: offer", "--body", text.as_str()], "550 5.7.1 message refused: it looks like spam"),
    ] {
        let done = swaks(world, &[&arguments, more].concat()).await;
        assert!(done.out.contains(reason), "{what}: {done:?}");
        assert_ne!(done.code, 0, "{what}");
    }
    // A file with bare LF, as files have; swaks sends CRLF.
    let mut clean = awkward();
    let lines: Vec<u8> = clean.iter().copied().filter(|octet| *octet != b'\r').collect();
    let done = swaks(world, &[&["--data", file("clean.eml", &lines).as_str()], more].concat()).await;
    // swaks puts a line end of its own behind the file.
    clean.extend_from_slice(b"\r\n");
    assert_eq!(done.code, 0, "{done:?}");
    let arrivals = world.arrived(before + 1).await;
    assert_intact(&arrivals[before], &clean);
}

#[tokio::test]
async fn swaks_in_clear_and_over_starttls() {
    let world = World::new().await;
    let made = rcgen::generate_simple_self_signed(["mx.localhost".to_owned()]).expect("a certificate");
    let secret = serde_json::json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "mx-cert" },
        "stringData": { "tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem() } });
    world.write("secret.yaml", &secret.to_string());
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", tls: {mode: Opportunistic, certificateRefs: [{name: mx-cert}]}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let _gateway = world.start().await;
    swaks_sends_bad_and_good(&world, &[]).await;
    swaks_sends_bad_and_good(&world, &["--tls"]).await;
    let received: Vec<String> = world.sink.arrivals().iter().map(|arrival| header(&arrival.content, "Received")).collect();
    assert!(received[0].contains("with ESMTP ") && received[1].contains("with ESMTPS "), "{received:?}");
    let tls: Vec<bool> = world.events("message").iter().map(|line| line["tls"].is_string()).collect();
    assert_eq!(tls, [false, false, false, true, true, true]);
    assert!(!world.log().contains("PRIVATE KEY"), "a key in the log");
}

#[tokio::test]
async fn tls_required_takes_no_mail_in_clear() {
    let world = World::new().await;
    let made = rcgen::generate_simple_self_signed(["mx.localhost".to_owned()]).expect("a certificate");
    let secret = serde_json::json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "mx-cert" },
        "stringData": { "tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem() } });
    world.write("secret.yaml", &secret.to_string());
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", tls: {mode: Required, certificateRefs: [{name: mx-cert}]}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let _gateway = world.start().await;
    let mut session = world.session().await;
    assert!(session.offers.contains("STARTTLS"));
    session.say("MAIL FROM:<a@sender.example>").await.expect("530 5.7.0");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut session = session.start_tls(&tokio_rustls::TlsConnector::from(Arc::new(config))).await;
    assert!(!session.offers.contains("STARTTLS"));
    session.send(SENDER, &["user@example.com"], &mail("hello", "over TLS")).await.expect("250");
    assert_intact(&world.arrived(1).await[0], &mail("hello", "over TLS"));
}

#[tokio::test]
async fn one_json_line_for_each_message() {
    let (world, _gateway) = World::with_tenant("").await;
    world.send(&["user@example.com"], &mail("hello", "clean")).await.expect("250");
    world.send(&["user@example.com"], &mail("offer", &gtube())).await.expect("550");
    let lines = world.events("message");
    let [clean, spam] = lines.as_slice() else { panic!("{}", world.log()) };
    assert_eq!(clean["queue_id"].as_str().map(str::len), Some(26), "{clean}");
    assert_eq!((&clean["client"], &clean["helo"]), (&"127.0.0.1".into(), &"client.sender.example".into()), "{clean}");
    assert_eq!((&clean["sender"], &clean["recipients"]), (&SENDER.into(), &serde_json::json!(["user@example.com"])), "{clean}");
    assert_eq!((&clean["size"], &clean["message_id"]), (&mail("hello", "clean").len().into(), &"test@sender.example".into()), "{clean}");
    assert_eq!((&clean["tenants"][0]["tenant"], &clean["tenants"][0]["verdict"]), (&"default/example-com".into(), &"Deliver".into()), "{clean}");
    assert_eq!((&clean["disposition"], &clean["reply"]), (&serde_json::json!({"delivered": 1}), &"250".into()), "{clean}");
    assert_eq!(clean["engines"].as_array().map(Vec::len), Some(2), "{clean}");
    for stage in ["parse", "scan", "verdict", "deliver", "total"] {
        assert!(clean["timings_us"][stage].is_u64(), "{stage}: {clean}");
    }
    assert!(clean["timings_us"]["total"].as_u64() >= clean["timings_us"]["scan"].as_u64(), "{clean}");
    assert_eq!((&spam["disposition"], &spam["tenants"][0]["verdict"]), (&serde_json::json!({"rejected": 1}), &"Reject".into()), "{spam}");
    assert!(spam["reply"].as_str().is_some_and(|reply| reply.starts_with("550 5.7.1")), "{spam}");
}

#[tokio::test]
async fn a_log_for_people_has_one_line_for_each_message() {
    let mut world = World::new().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    world.more = vec!["--log".into(), "text".into()];
    let _gateway = world.start().await;
    world.send(&["user@example.com"], &mail("offer", &gtube())).await.expect("550");
    let log = world.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(SENDER)).collect();
    let [line] = lines.as_slice() else { panic!("{log}") };
    for part in ["you@sender.example -> user@example.com", "rejected 1", "550 5.7.1", "certain spam"] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
    assert!(line.len() < 300 && !line.contains(['\u{1b}', '\u{fffd}', '{']), "{line}");
}

#[tokio::test]
async fn one_message_and_three_policies() {
    let world = World::new().await;
    let port = world.sink.address.port();
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", port, ""));
    world.write("example-org.yaml", &tenant("example-org", "example.org", port, "  enforcement: Observe"));
    world.write("example-net.yaml", &tenant("example-net", "example.net", port, "  policy: {antiVirus: {infected: Discard}}"));
    let _gateway = world.start().await;
    let virus = mail("file", &eicar());
    // One rejects, one only observes, one discards: 250, and each copy ends where its tenant says.
    world.send(&["user@example.com", "user@example.org", "user@example.net"], &virus).await.expect("250");
    let arrival = world.arrived(1).await.remove(0);
    assert_eq!(arrival.to, ["user@example.org"]);
    assert_intact(&arrival, &virus);
    let verdict = header(&arrival.content, "X-Sekimori-Verdict");
    assert!(verdict.starts_with("action=Reject; anti-virus=infected("), "{verdict}");
    assert_eq!(header(&arrival.content, "X-Spam-Status"), "Yes");
    let kept = messages(world.command_json(&["quarantine", "list"]).await);
    assert!(kept.len() == 1 && kept[0]["tenant"] == "default/example-com", "{kept:?}");
    assert!(kept[0]["reason"].as_str().is_some_and(|reason| reason.contains("accepted for other recipients")), "{kept:?}");
    let line = world.events("message").remove(0);
    assert_eq!(line["disposition"], serde_json::json!({"delivered": 1, "quarantined": 1, "discarded": 1}), "{line}");
    // Alone, each hears its own answer.
    world.send(&["user@example.com"], &virus).await.expect("550 5.7.1");
    world.send(&["user@example.net"], &virus).await.expect("250");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    world.arrived(1).await;
}

#[tokio::test]
async fn a_subject_is_tagged_in_its_own_charset() {
    let policy = "  policy: {antiSpam: {subjectTag: \"[SPAM] \", combine: {type: LogOdds, logOdds: {tagAtDecibans: 0, quarantineAtDecibans: 90, rejectAtDecibans: 100}}}}";
    let (world, _gateway) = World::with_tenant(policy).await;
    let sent = awkward();
    world.send(&["user@example.com"], &sent).await.expect("250");
    let arrival = world.arrived(1).await.remove(0);
    let text = String::from_utf8_lossy(&arrival.content).into_owned();
    let subject = header(&arrival.content, "Subject") + &header(&arrival.content, "SUBJECT");
    let encoded = base64::engine::general_purpose::STANDARD.encode("[SPAM] ");
    let tagged = subject.starts_with("[SPAM] =?") || subject.contains(encoded.get(..8).expect("eight characters"));
    assert!(tagged && subject.to_ascii_lowercase().contains("=?iso-2022-jp?b?"), "{text}");
    assert_eq!(header(&arrival.content, "X-Spam-Status"), "Yes");
    // Everything else is as it was.
    let body = sent.windows(4).position(|window| window == b"\r\n\r\n").expect("a body");
    assert!(arrival.content.ends_with(&sent[body..]), "{text}");
}

#[tokio::test]
async fn a_name_server_that_is_silent_holds_nothing_up_for_long() {
    let mut world = World::new().await;
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    world.resolver = silent.local_addr().expect("bound");
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let _gateway = world.start().await;
    let started = std::time::Instant::now();
    world.send(&["user@example.com"], &mail("hello", "no DNS")).await.expect("250");
    assert!(started.elapsed() < std::time::Duration::from_secs(25), "{:?}", started.elapsed());
    let results = header(&world.arrived(1).await[0].content, "Authentication-Results");
    assert!(results.contains("spf=temperror"), "{results}");
}
