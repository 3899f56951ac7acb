//! Clients that do not play by the rules, over real sockets.

use std::time::Duration;

use crate::support::*;

/// What is between two messages if a server can be fooled into seeing an end of data where there is none.
const ENDS: [&[u8]; 12] = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\n.\r",
    b"\r\n.\r\r\n",
    b"\n..\r\n",
    b"\r\n\0.\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n.\x0b\r\n",
];

/// Every variant of SMTP smuggling is one message or a refusal, never two messages.
#[tokio::test]
async fn smuggled_messages_do_not_arrive() {
    for (listener, refuses) in [("", true), (", bareLineEndings: Normalise", false)] {
        let world = World::new().await;
        world.write("fleet.yaml", &fleet(world.smtp.port(), listener, ""));
        world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
        let _gateway = world.start().await;
        let mut kept = 0;
        for end in ENDS {
            let mut session = world.session().await;
            session.envelope(SENDER, &["user@example.com"]).await.expect("354");
            let mut octets = mail("outer", "first half").trim_ascii_end().to_vec();
            octets.extend_from_slice(end);
            octets.extend_from_slice(
                b"MAIL FROM:<admin@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nSubject: smuggled\r\n\r\nforged\r\n.\r\n",
            );
            session.write(octets).await;
            let reply = session.reply().await;
            assert!(reply.code == 250 || reply.code / 100 == 5, "{end:?}: {reply:?}");
            kept += usize::from(reply.code == 250);
            if refuses && !matches!(end, b"\r\n.\x0b\r\n") {
                assert_eq!(reply.code, 550, "{end:?}: {reply:?}");
            }
            // No second answer: nothing else of it was taken for commands.
            session.write(b"NOOP\r\n").await;
            let next = session.next_reply().await;
            assert!(next.as_ref().is_none_or(|reply| reply.code == 250 && reply.text.contains("OK") || reply.code == 421), "{end:?}: {next:?}");
            session.write(b"QUIT\r\n").await;
            assert_eq!(session.reply().await.code, 221, "{end:?}");
        }
        let arrivals = world.arrived(kept).await;
        for arrival in &arrivals {
            assert_eq!(arrival.to, ["user@example.com"], "{arrival:?}");
            // What leaves has no bare line ending that could fool the next server.
            let bare = arrival.content.windows(2).any(|pair| (pair[1] == b'\n') != (pair[0] == b'\r'));
            assert!(!bare, "{listener}: {:?}", String::from_utf8_lossy(&arrival.content));
        }
    }
}

#[tokio::test]
async fn nothing_said_before_tls_counts_within() {
    let world = World::new().await;
    let made = rcgen::generate_simple_self_signed(["mx.localhost".to_owned()]).expect("a certificate");
    let secret = serde_json::json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "mx-cert" },
        "stringData": { "tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem() } });
    world.write("secret.yaml", &secret.to_string());
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", tls: {mode: Opportunistic, certificateRefs: [{name: mx-cert}]}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let _gateway = world.start().await;
    let mut session = world.session().await;
    session.write(b"STARTTLS\r\nMAIL FROM:<injected@sender.example>\r\n").await;
    session.reply().await.expect("501 5.5.1");
    assert_eq!(session.next_reply().await, None, "and the connection is closed");
    // A client that says STARTTLS and then no TLS holds nothing up and gets nothing.
    let mut session = world.session().await;
    session.say("STARTTLS").await.expect("220");
    drop(session.try_write(b"MAIL FROM:<a@sender.example>\r\n").await);
    let mut session = world.session().await;
    session.send(SENDER, &["user@example.com"], &mail("hello", "others")).await.expect("250");
    assert_eq!(world.arrived(1).await[0].from, SENDER);
}

#[tokio::test]
async fn addresses_in_every_writing() {
    let (world, _gateway) = World::with_tenant("").await;
    let mut session = world.session().await;
    session.say("RCPT TO:<user@example.com>").await.expect("503 5.5.1");
    session.say("MAIL FROM: <you@sender.example>").await.expect("250");
    session.say("RCPT TO: <a@example.com>").await.expect("250");
    session.say("rcpt to:<b@EXAMPLE.com>").await.expect("250");
    session.say("RCPT TO:c@example.com").await.expect("501 5.5.2");
    session.say("RCPT TO:<\"d e\"@example.com>").await.expect("250");
    session.say("RCPT TO:<@relay.example:e@example.com>").await;
    for wrong in
        ["RCPT TO:<>", "RCPT TO:<f@>", "RCPT TO:<f@example.com", "RCPT TO:<f@exam ple.com>", "RCPT FROM:<f@example.com>", "RCPT TO:<f@@example.com>"]
    {
        let reply = session.say(wrong).await;
        assert_eq!(reply.code, 501, "{wrong}: {reply:?}");
    }
    session.say("RCPT TO:<user%elsewhere.example@example.com>").await.expect("553 5.1.3");
    session.say("RCPT TO:<user@elsewhere.example>").await.expect("550 5.7.1");
    session.say("RCPT TO:<user@sub.example.com>").await.expect("550 5.7.1");
    session.say("DATA").await.expect("354");
    session.content(&mail("hello", "addresses")).await.expect("250");
    let to = world.arrived(1).await.remove(0).to;
    assert!(to.contains(&"a@example.com".to_owned()) && to.iter().any(|to| to.eq_ignore_ascii_case("b@example.com")), "{to:?}");
}

#[tokio::test]
async fn endless_lines_headers_and_content() {
    let world = World::new().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", limits: {messageSize: 1Mi}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let gateway = world.start().await;
    // A command line too long is refused, one without end is cut off.
    let mut session = world.session().await;
    session.say(&format!("NOOP {}", "x".repeat(3000))).await.expect("500 5.5.2");
    session.say("NOOP").await.expect("250");
    drop(session.try_write("x".repeat(1 << 20)).await);
    session.reply().await.expect("421 4.7.0");
    // Content: one line, many fields, a long header, too many octets; the session goes on.
    let mut session = world.session().await;
    let long_line = format!("Subject: x\r\n\r\n{}\r\n", "x".repeat(200_000));
    let many_fields = format!("{}\r\nbody\r\n", "X-Flood: 1\r\n".repeat(5_000));
    let long_header = format!("{}\r\nbody\r\n", format!("X-Flood: {}\r\n", "x".repeat(900)).repeat(300));
    let too_large = format!("Subject: x\r\n\r\n{}", "0123456789 0123456789 0123456789\r\n".repeat(40_000));
    for (content, reply) in [(long_line, "550 5.6.0"), (many_fields, "552 5.3.4"), (long_header, "552 5.3.4"), (too_large, "552 5.3.4")] {
        session.send(SENDER, &["user@example.com"], content.as_bytes()).await.expect(reply);
    }
    session.say("MAIL FROM:<you@sender.example> SIZE=99999999").await.expect("552 5.3.4");
    session.send(SENDER, &["user@example.com"], &mail("hello", "all is well")).await.expect("250");
    // A flood of recipients nobody has is cut off.
    let mut session = world.session().await;
    session.say("MAIL FROM:<you@sender.example>").await.expect("250");
    let mut refused = 0;
    let last = loop {
        let reply = session.say(&format!("RCPT TO:<guess{refused}@elsewhere.example>")).await;
        if reply.code != 550 {
            break reply;
        }
        refused += 1;
        assert!(refused < 1000);
    };
    last.expect("421 4.7.0");
    // A mail loop.
    let mut session = world.session().await;
    let mut looping = "Received: from a by b; Wed, 25 Nov 2026 08:00:00 +0000\r\n".repeat(60).into_bytes();
    looping.extend_from_slice(&mail("hello", "again and again"));
    session.send(SENDER, &["user@example.com"], &looping).await.expect("554 5.4.6");
    // Another protocol.
    let mut session = Smtp::connect(world.smtp).await;
    session.reply().await.expect("220");
    session.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    session.reply().await.expect("554 5.5.1");
    assert_eq!(session.next_reply().await, None);
    world.arrived(1).await;
    assert_eq!(gateway.get("/livez").await.expect("an answer"), "ok\n");
}

#[tokio::test]
async fn talking_before_the_greeting() {
    let (world, _gateway) = World::with_tenant("").await;
    // It depends on who is quicker; whoever is refused is refused with a reason.
    let mut session = Smtp::connect(world.smtp).await;
    session.write(b"EHLO bot\r\nMAIL FROM:<a@sender.example>\r\n").await;
    let first = session.reply().await;
    assert!(first.code == 220 || first.code == 554, "{first:?}");
    world.send(&["user@example.com"], &mail("hello", "others")).await.expect("250");
}

#[tokio::test]
async fn connections_per_address_and_in_all() {
    let world = World::new().await;
    let limits = ", limits: {connections: 6, connectionsPerAddress: 3}, proxyProtocol: {trustedNetworks: [127.0.0.0/8]}";
    world.write("fleet.yaml", &fleet(world.smtp.port(), limits, ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let gateway = world.start().await;
    let from = async |address: &str| {
        let mut session = Smtp::connect(world.smtp).await;
        session.write(format!("PROXY TCP4 {address} 127.0.0.1 4711 25\r\n")).await;
        let reply = session.reply().await;
        (session, reply)
    };
    let mut open = vec![];
    for _ in 0..3 {
        let (session, reply) = from("192.0.2.1").await;
        reply.expect("220");
        open.push(session);
    }
    let (mut refused, reply) = from("192.0.2.1").await;
    reply.expect("421 4.7.0 Too many connections from your address");
    assert_eq!(refused.next_reply().await, None);
    for address in ["192.0.2.2", "192.0.2.3", "192.0.2.4"] {
        let (session, reply) = from(address).await;
        reply.expect("220");
        open.push(session);
    }
    from("192.0.2.5").await.1.expect("421 4.3.2 Too many connections");
    assert_eq!(gateway.metric("sekimori_shed_total{limit=\"connectionsPerAddress\"}").await, Some(1.0));
    assert_eq!(gateway.metric("sekimori_shed_total{limit=\"connections\"}").await, Some(1.0));
    // Who leaves makes room.
    open.remove(0).quit().await;
    until("room", async || from("192.0.2.1").await.1.code == 220).await;
}

#[tokio::test]
async fn the_proxy_header_tells_the_client() {
    let world = World::new().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", proxyProtocol: {trustedNetworks: [127.0.0.0/8]}", ""));
    world.write(
        "example-com.yaml",
        &tenant("example-com", "example.com", world.sink.address.port(), "  policy: {authentication: {dmarc: {mode: Disabled}}}"),
    );
    let _gateway = world.start().await;
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    v2.extend_from_slice(&[203, 0, 113, 9, 127, 0, 0, 1, 0x12, 0x67, 0, 25]);
    let mut v2_six = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24".to_vec();
    v2_six.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    v2_six.extend_from_slice(&[0; 16]);
    v2_six.extend_from_slice(&[0x12, 0x67, 0, 25]);
    for (number, (head, expected)) in [
        (b"PROXY TCP4 192.0.2.77 127.0.0.1 4711 25\r\n".to_vec(), "[192.0.2.77]"),
        (b"PROXY TCP6 2001:db8::5 ::1 4711 25\r\n".to_vec(), "[IPv6:2001:db8::5]"),
        (v2, "[203.0.113.9]"),
        (v2_six, "[IPv6:2001:db8::7]"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "[127.0.0.1]"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut session = Smtp::connect(world.smtp).await;
        session.write(head).await;
        session.reply().await.expect("220");
        session.hello().await;
        session.send(SENDER, &["user@example.com"], &mail("hello", "by a proxy")).await.expect("250");
        let received = header(&world.arrived(number + 1).await[number].content, "Received");
        assert!(received.contains(expected), "{expected}: {received}");
    }
    // None, or garbage: closed without a word.
    for head in [&b"EHLO no.proxy\r\n"[..], b"PROXY TCP4 nonsense\r\n", b"PROXY TCP4 999.0.0.1 127.0.0.1 1 25\r\n"] {
        let mut session = Smtp::connect(world.smtp).await;
        session.write(head).await;
        assert_eq!(session.next_reply().await, None, "{head:?}");
    }
    assert!(world.log().contains("no usable PROXY header"), "{}", world.log());
}

#[tokio::test]
async fn a_proxy_header_from_anybody_else_is_refused() {
    let world = World::new().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", proxyProtocol: {trustedNetworks: [192.0.2.0/24]}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let _gateway = world.start().await;
    let mut session = Smtp::connect(world.smtp).await;
    session.reply().await.expect("220");
    let reply = session.say("PROXY TCP4 192.0.2.77 127.0.0.1 4711 25").await;
    assert!(reply.code >= 500, "{reply:?}");
    // Direct clients are served.
    world.send(&["user@example.com"], &mail("hello", "direct")).await.expect("250");
    assert!(header(&world.arrived(1).await[0].content, "Received").contains("[127.0.0.1]"));
}

#[tokio::test]
async fn memory_is_bounded_and_the_slowest_gives_way() {
    let mut world = World::new().await;
    world.more = ["--message-memory", "2Mi", "--message-memory-network-percent", "50"].map(String::from).to_vec();
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let gateway = world.start().await;
    let half = "0123456789 0123456789 0123456789\r\n".repeat(18_000);
    // One drips 600 KB and stops; another one comes with as much.
    let mut slow = world.session().await;
    slow.envelope(SENDER, &["user@example.com"]).await.expect("354");
    slow.write(format!("Subject: slow\r\n\r\n{half}")).await;
    until("its memory is charged", async || gateway.metric("sekimori_message_memory_bytes").await > Some(600_000.0)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut quick = world.session().await;
    let sent = mail("quick", &half);
    quick.send(SENDER, &["user@example.com"], &sent).await.expect("250");
    slow.write(b"the end\r\n.\r\n").await;
    slow.reply().await.expect("452 4.3.1");
    // It may try again at once.
    slow.send(SENDER, &["user@example.com"], &mail("again", "smaller")).await.expect("250");
    // One message beyond the whole budget is refused by itself.
    quick.send(SENDER, &["user@example.com"], &mail("huge", &half.repeat(3))).await.expect("452 4.3.1");
    assert_intact(&world.arrived(2).await[0], &sent);
    assert_eq!(gateway.metric("sekimori_shed_total{limit=\"messageMemory\"}").await, Some(2.0));
    drop((slow, quick));
    until("all of it is given back", async || gateway.metric("sekimori_message_memory_bytes").await == Some(0.0)).await;
}

#[tokio::test]
async fn one_network_cannot_take_all_the_memory() {
    let mut world = World::new().await;
    world.more = ["--message-memory", "2Mi", "--message-memory-network-percent", "50"].map(String::from).to_vec();
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", proxyProtocol: {trustedNetworks: [127.0.0.0/8]}", ""));
    world.write(
        "example-com.yaml",
        &tenant("example-com", "example.com", world.sink.address.port(), "  policy: {authentication: {dmarc: {mode: Disabled}}}"),
    );
    let gateway = world.start().await;
    let from = async |address: &str| {
        let mut session = Smtp::connect(world.smtp).await;
        session.write(format!("PROXY TCP4 {address} 127.0.0.1 4711 25\r\n")).await;
        session.reply().await.expect("220");
        session.hello().await;
        session
    };
    let most = "0123456789 0123456789 0123456789\r\n".repeat(28_000);
    let mut first = from("192.0.2.1").await;
    first.envelope(SENDER, &["user@example.com"]).await.expect("354");
    first.write(format!("Subject: holds most of its share\r\n\r\n{most}")).await;
    until("its memory is charged", async || gateway.metric("sekimori_message_memory_bytes").await > Some(900_000.0)).await;
    // As much from another network goes through, and does not cost the first one anything.
    from("198.51.100.1").await.send(SENDER, &["user@example.com"], &mail("elsewhere", &most)).await.expect("250");
    // A neighbour that cannot fit into the share even alone is refused.
    from("192.0.2.200").await.send(SENDER, &["user@example.com"], &mail("neighbour", &most.repeat(2))).await.expect("452 4.3.1");
}

#[tokio::test]
async fn pipelined_mail_and_mail_after_mail() {
    let world = World::new().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), ", limits: {messagesPerSession: 5}", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    let _gateway = world.start().await;
    let mut session = world.session().await;
    let envelope = b"MAIL FROM:<you@sender.example>\r\nRCPT TO:<user@example.com>\r\nRCPT TO:<user@elsewhere.example>\r\nDATA\r\n";
    let content = |number: usize| mail(&format!("number {number}"), "pipelined");
    session.write(envelope).await;
    for number in 0..5 {
        for code in ["250", "250", "550", "354"] {
            session.reply().await.expect(code);
        }
        // The next envelope comes with the end of this content.
        let next: &[u8] = if number < 4 { envelope } else { b"NOOP\r\n" };
        session.write([&content(number), &b".\r\n"[..], next].concat()).await;
        session.reply().await.expect("250");
    }
    session.reply().await.expect("250");
    for (number, arrival) in world.arrived(5).await.iter().enumerate() {
        assert_intact(arrival, &content(number));
    }
    // That was all for this connection.
    session.say("MAIL FROM:<you@sender.example>").await.expect("421 4.7.0 Enough messages");
    assert_eq!(session.next_reply().await, None);
}
