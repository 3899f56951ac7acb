//! What becomes of claims that cannot be recorded, and of records that another process wrote.

use super::*;

fn claims_map(name: &str, text: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"records": text},
        "metadata": {"name": name, "resourceVersion": "0", "labels": {"sekimori.dev/record": "claims"}, "annotations": {"sekimori.dev/fleet": "mail/inbound"}},
    })
}

#[tokio::test]
async fn a_shard_that_cannot_be_written_stops_only_who_has_a_new_claim_in_it() {
    let (new, old) = (claims_shard("mail", "inbound", shard_of("example.com")), claims_shard("mail", "inbound", shard_of("kept.example")));
    let server = Server::start(|cluster| {
        one()(cluster);
        for (name, domains) in
            [("two", json!(["other.example"])), ("three", json!(["kept.example"])), ("four", json!(["kept.example.net", "example.com"]))]
        {
            cluster.tenants.insert(("shop".to_owned(), name.to_owned()), tenant("shop", name, 1, json!({"domains": domains})));
        }
        let record = r#"{"domain":"kept.example","holder":{"namespace":"shop","name":"three"},"sinceMs":5}"#;
        cluster.config_maps.insert(old.clone(), claims_map(&old, record));
        let four = claims_shard("mail", "inbound", shard_of("kept.example.net"));
        let record = r#"{"domain":"kept.example.net","holder":{"namespace":"shop","name":"four"},"sinceMs":5}"#;
        cluster.config_maps.insert(four.clone(), claims_map(&four, record));
        cluster.refused = [new.clone(), old].into();
    });
    // Who comes second loses the domain: here by name, as both come at once.
    let leader = server.lead();
    server.until("the others have parts", |server| server.part("shop", "two").is_some() && server.part("shop", "three").is_some()).await;
    server.until("gateways are answered", |server| server.metrics.tenants_synced.get() == 1).await;
    assert_eq!(server.part("shop", "one"), None, "its claim is not recorded");
    let stand_in = stand_in(&["kept.example.net".to_owned()]);
    assert_eq!(server.part("shop", "four").as_deref(), Some(stand_in.as_slice()), "gateways keep what they have of it");
    server
        .until("who waits is told", |server| {
            ["one", "four"].iter().any(|name| server.condition("shop", name, "Accepted").1.contains("does not take the record"))
        })
        .await;
    server.lock().refused.clear();
    server.until("it is recorded at last", |server| ["one", "four"].iter().any(|name| server.condition("shop", name, "Accepted").0 == "True")).await;
    assert!(server.lock().config_maps.contains_key(&new));
    leader.abort();
}

#[tokio::test]
async fn a_record_that_another_process_wrote_is_not_written_over() {
    let server = Server::start(one());
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    let shard = claims_shard("mail", "inbound", shard_of("example.com"));
    // A version that somebody else made, with what we wrote in it, is none of our business.
    server.lock().config_maps.get_mut(&shard).expect("it is recorded")["metadata"]["resourceVersion"] = json!("77");
    server.changes("shop", "one", 2, json!({"domains": ["second.example"]})).await;
    server
        .until("it is written over", |server| {
            server.lock().config_maps[&shard]["data"]["records"].as_str().is_some_and(|text| text.contains("goneSinceMs"))
        })
        .await;
    // A newer leader recorded a claim.
    let theirs = r#"{"domain":"example.com","holder":{"namespace":"other","name":"theirs"},"sinceMs":5}"#;
    {
        let mut cluster = server.lock();
        let map = cluster.config_maps.get_mut(&shard).expect("it is recorded");
        (map["metadata"]["resourceVersion"], map["data"]["records"]) = (json!("78"), json!(theirs));
    }
    server.changes("shop", "one", 3, json!({"domains": ["example.com"]})).await;
    let ended = tokio::time::timeout(WAIT, leader).await.expect("it leads no more").expect("no panic");
    let said = format!("{:#}", ended.expect_err("and says why"));
    assert!(said.contains(&shard) && said.contains("another process"), "{said}");
    assert_eq!(server.lock().config_maps[&shard]["data"]["records"], theirs);
}

/// A DNS server that knows no name.
async fn no_such_name() -> SocketAddr {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut packet = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            // The question comes back: a response, recursion available, no such name, nothing in it but the question.
            let end = 12 + packet.iter().take(length).skip(12).position(|octet| *octet == 0).unwrap_or_default() + 5;
            (packet[2], packet[3]) = (0x81, 0x83);
            packet[6..12].fill(0);
            drop(socket.send_to(&packet[..end.min(length)], from).await);
        }
    });
    address
}

#[tokio::test]
async fn dns_is_asked_for_what_was_only_trusted() {
    let mut server = Server::start(one());
    server.resolver = no_such_name().await;
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    let good = server.part("shop", "one");
    server.fleet_changes("inbound", 2, json!({"tenants": {"ownership": "DnsTxt", "namespaces": {"from": "All"}}})).await;
    server.until("it is not proved", |server| server.condition("shop", "one", "Accepted").1.contains("it is not proved")).await;
    assert_eq!(server.part("shop", "one"), good, "it serves for 72 hours");
    let shard = claims_shard("mail", "inbound", shard_of("example.com"));
    server
        .until("the clock runs", |server| {
            server.lock().config_maps[&shard]["data"]["records"].as_str().is_some_and(|text| text.contains("goneSinceMs"))
        })
        .await;
    leader.abort();
}
