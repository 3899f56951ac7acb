//! The admin port and the verbs over it: queue, quarantine, dead letters, health, metrics.

use std::time::Duration;

use sekimori_e2e::process::request;

use crate::support::*;

/// GTUBE goes into the quarantine here, and so does malware.
const QUARANTINES: &str = "  policy: {antiVirus: {infected: Quarantine}, antiSpam: {combine: {type: LogOdds, logOdds: {quarantineAtDecibans: 20, rejectAtDecibans: 30}}}, \
                           lists: {deny: []}, attachments: {blockTypes: [exe]}}";

/// A message with one attachment that the policy above keeps.
fn with_virus(subject: &str) -> Vec<u8> {
    mail(subject, &eicar())
}

#[tokio::test]
async fn quarantine_list_show_search_release_delete() {
    let (world, _gateway) = World::with_tenant(QUARANTINES).await;
    world.send(&["user@example.com"], &with_virus("first invoice")).await.expect("250");
    world.send(&["user@example.com", "other@example.com"], &with_virus("second")).await.expect("250");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.sink.arrivals().len(), 0, "what is quarantined is not delivered");

    let list = messages(world.command_json(&["quarantine", "list"]).await);
    let [first, second] = list.as_slice() else { panic!("{list:?}") };
    assert_eq!(
        (&first["subject"], &first["tenant"], &first["sender"]),
        (&"first invoice".into(), &"default/example-com".into(), &SENDER.into()),
        "{first}"
    );
    assert!(first["reason"].as_str().is_some_and(|reason| reason.contains("malware")), "{first}");
    assert_eq!(second["recipients"], serde_json::json!(["user@example.com", "other@example.com"]), "{second}");
    let id = first["id"].as_str().expect("an id");

    let text = world.command(&["quarantine", "list"]).await;
    let lines: Vec<&str> = text.out.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("ID ") && lines[1].starts_with(id) && lines[1].contains("first invoice"), "{text:?}");
    let found = messages(world.command_json(&["quarantine", "search", "INVOICE"]).await);
    assert_eq!((found.len(), &found[0]["id"]), (1, &first["id"]), "{found:?}");
    assert!(world.command(&["quarantine", "search", "no such thing"]).await.out.contains("nothing is kept here"));
    assert!(world.command(&["quarantine", "list", "--dead-letters"]).await.out.contains("nothing is kept here"));

    let raw = world.command(&["quarantine", "show", "--raw", id]).await;
    assert_eq!((raw.code, raw.out.as_bytes()), (0, with_virus("first invoice").as_slice()));
    let shown = world.command_json(&["quarantine", "show", id]).await;
    assert!(shown["envelope"]["recipients"][0]["address"].to_string().contains("user"), "{shown}");

    // What is infected stays, and says so.
    let release = world.command(&["quarantine", "release", id]).await;
    assert_eq!(release.code, 1, "{release:?}");
    assert!(release.out.contains(id) && release.out.contains("infected"), "{release:?}");
    assert_eq!(messages(world.command_json(&["quarantine", "list"]).await).len(), 2);

    let dry = world.command(&["quarantine", "delete", "--all", "--dry-run"]).await;
    assert_eq!((dry.code, dry.out.trim()), (0, "2 messages would be changed"));
    assert_eq!(messages(world.command_json(&["quarantine", "list"]).await).len(), 2);
    let deleted = world.command(&["quarantine", "delete", id]).await;
    assert_eq!((deleted.code, deleted.out.trim()), (0, "1 message changed"));
    let missing = world.command(&["quarantine", "show", id]).await;
    assert!(missing.code == 1 && missing.err.contains(id), "{missing:?}");
    // Who did what is in the log.
    let verbs: Vec<String> = world.events("admin").iter().map(|line| line["verb"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(verbs, ["quarantine release", "quarantine delete", "quarantine delete"]);
    assert_eq!(world.events("admin")[2]["ids"], id);
}

#[tokio::test]
async fn what_is_released_is_scanned_again_and_delivered() {
    let spam = "  policy: {antiSpam: {combine: {type: LogOdds, logOdds: {tagAtDecibans: 0, quarantineAtDecibans: 0, rejectAtDecibans: 100}}}}";
    let (world, gateway) = World::with_tenant(spam).await;
    world.send(&["user@example.com"], &mail("false alarm", "wanted")).await.expect("250");
    assert_eq!(gateway.metric("sekimori_quarantine_messages{kind=\"quarantined\"}").await, Some(1.0));
    // Kept over a restart.
    drop(gateway);
    let gateway = world.start().await;
    let list = messages(world.command_json(&["quarantine", "list"]).await);
    let released = world.command(&["quarantine", "release", "--tenant", "default/example-com"]).await;
    assert_eq!((released.code, released.out.trim()), (0, "1 message changed"), "{list:?}");
    assert_intact(&world.arrived(1).await[0], &mail("false alarm", "wanted"));
    assert_eq!(world.events("released")[0]["queue_id"], list[0]["id"]);
    assert!(messages(world.command_json(&["quarantine", "list"]).await).is_empty());
    assert_eq!(gateway.metric("sekimori_quarantine_messages{kind=\"quarantined\"}").await, Some(0.0));
}

#[tokio::test]
async fn queue_list_show_hold_release_retry_drop() {
    let (world, gateway) = World::with_tenant("  delivery: Queue").await;
    assert_eq!(world.command(&["queue", "list"]).await.out.trim(), "the queue is empty");
    world.sink.behave(vec![(Behaviour::Defer, 1)]);
    for subject in ["one", "two"] {
        world.send(&["user@example.com"], &mail(subject, "waits")).await.expect("250");
    }
    let queued = world.queue_settles(2, "scheduled").await;
    let (first, second) = (queued[0]["id"].as_str().expect("an id").to_owned(), queued[1]["id"].as_str().expect("an id").to_owned());
    assert!(queued[0]["error"].as_str().is_some_and(|error| error.contains("451 4.3.0 not now")), "{queued:?}");
    assert_eq!(gateway.metric("sekimori_queue_messages{state=\"scheduled\"}").await, Some(2.0));
    let table = world.command(&["queue", "list"]).await;
    let lines: Vec<&str> = table.out.lines().collect();
    assert!(lines.len() == 3 && lines[1].starts_with(&first) && lines[1].contains("scheduled") && lines[1].contains("not now"), "{table:?}");
    let shown = world.command(&["queue", "show", &first]).await;
    assert!(shown.code == 0 && shown.out.contains("user") && shown.out.contains("scheduled"), "{shown:?}");

    let dry = world.command(&["queue", "hold", "--all", "--dry-run"]).await;
    assert_eq!((dry.code, dry.out.trim()), (0, "2 messages would be changed"));
    let held = world.command(&["queue", "hold", &first]).await;
    assert_eq!((held.code, held.out.trim()), (0, "1 message changed"), "{held:?}");
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    let retried = world.command(&["queue", "retry", "--route", "sink"]).await;
    assert_eq!((retried.code, retried.out.trim()), (0, "1 message changed"), "{retried:?}");
    world.arrived(1).await;
    let left = world.queue_settles(1, "held").await;
    assert_eq!(left[0]["id"], first.as_str());
    let released = world.command(&["queue", "release", &first]).await;
    assert_eq!(released.code, 0, "{released:?}");
    world.arrived(2).await;
    until("an empty queue", async || world.queue().await.is_empty()).await;

    // Dropped is not gone: it is among the dead letters, and comes back from there.
    world.sink.behave(vec![(Behaviour::Defer, 1)]);
    world.send(&["user@example.com"], &mail("three", "dropped")).await.expect("250");
    world.queue_settles(1, "scheduled").await;
    let dropped = world.command(&["queue", "drop", "--tenant", "default/example-com", "--older-than", "0s"]).await;
    assert_eq!((dropped.code, dropped.out.trim()), (0, "1 message changed"), "{dropped:?}");
    until("a dead letter", async || messages(world.command_json(&["quarantine", "list", "--dead-letters"]).await).len() == 1).await;
    let dead = messages(world.command_json(&["quarantine", "list", "--dead-letters"]).await);
    assert_eq!((&dead[0]["subject"], &dead[0]["reason"]), (&"three".into(), &"dropped by an administrator".into()));
    assert!(messages(world.command_json(&["quarantine", "list"]).await).is_empty());
    until("an empty queue", async || world.queue().await.is_empty()).await;
    world.sink.behave(vec![(Behaviour::Accept, 1)]);
    let back = world.command(&["quarantine", "release", "--dead-letters", "--all"]).await;
    assert_eq!(back.code, 0, "{back:?}");
    assert_intact(&world.arrived(3).await[2], &mail("three", "dropped"));
    let unknown = world.command(&["queue", "show", &second]).await;
    assert!(unknown.code == 1 && unknown.err.contains(&second), "{unknown:?}");
}

#[tokio::test]
async fn verbs_that_are_called_wrong_say_how_to_call_them() {
    let (world, _gateway) = World::with_tenant("").await;
    let done = world.command(&["queue", "drop"]).await;
    assert!(done.code == 2 && done.err.contains("--all"), "{done:?}");
    let done = world.command(&["queue", "show", "nonsense"]).await;
    assert!(done.code == 1 && done.err.contains("nonsense"), "{done:?}");
    let done = world.command(&["queue", "retry", "nonsense"]).await;
    assert!(done.code != 0 && done.err.contains("nonsense"), "{done:?}");
    let done = world.command(&["queue", "retry", "--older-than", "3d"]).await;
    assert!(done.code == 2 && done.err.contains("3d"), "{done:?}");
    let nobody = free_port().expect("a free port").to_string();
    let done = command(&["queue", "list", "--admin", &nobody], b"").await;
    assert!(done.code == 1 && done.err.contains(&nobody) && done.err.contains("--admin"), "{done:?}");
}

#[tokio::test]
async fn health_metrics_and_the_api_itself() {
    let (world, gateway) = World::with_tenant("").await;
    world.send(&["user@example.com"], &mail("hello", "clean")).await.expect("250");
    world.send(&["user@example.com"], &mail("offer", &gtube())).await.expect("550");
    world.arrived(1).await;
    assert_eq!(gateway.get("/livez").await.expect("an answer"), "ok\n");
    assert_eq!(gateway.get("/readyz").await.expect("an answer"), "ok\n");
    until("the sessions are counted", async || gateway.metric("sekimori_session_seconds_count").await == Some(2.0)).await;
    let metrics = gateway.get("/metrics").await.expect("an answer");
    for name in [
        "sekimori_messages_total{disposition=\"delivered\"} 1\n",
        "sekimori_messages_total{disposition=\"rejected\"} 1\n",
        "sekimori_accepted_bytes_total ",
        "sekimori_spool_written_bytes_total ",
        "# TYPE sekimori_unscanned_total counter",
        "sekimori_engine_scans_total{engine=\"builtin-spam\",mode=\"Enforce\",result=\"spam\",version=",
        "sekimori_engine_scan_seconds_count{engine=\"builtin-virus\",mode=\"Enforce\"} 2\n",
        "sekimori_breaker_open{engine=\"builtin-virus\"} 0\n",
        "sekimori_queue_messages{state=\"scheduled\"} 0\n",
        "sekimori_queue_oldest_seconds 0\n",
        "sekimori_delivery_ambiguous_total 0\n",
        "sekimori_session_seconds_count 2\n",
        "sekimori_stage_seconds_count{stage=\"scan\"} 2\n",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let api: serde_json::Value = serde_json::from_str(&gateway.get("/v1/openapi.json").await.expect("an answer")).expect("JSON");
    assert!(api["paths"]["/v1/queue/{id}"]["post"].is_object(), "{api}");
    let status: serde_json::Value = serde_json::from_str(&gateway.get("/v1/status").await.expect("an answer")).expect("JSON");
    assert_eq!((&status["fleet"], &status["tenants"], &status["serving"]), (&"test".into(), &1.into(), &true.into()), "{status}");
}

#[tokio::test]
async fn a_web_page_cannot_reach_the_api() {
    let (world, gateway) = World::with_tenant("").await;
    let raw = |line: &str, headers: &str, body: &str| {
        format!("{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
    };
    let (all, json) = ("{\"all\":true}", "Content-Type: application/json\r\n");
    let port = gateway.admin.port();
    let local = format!("Host: 127.0.0.1:{port}\r\n");
    for (what, request_text, expected) in [
        ("a foreign name that points here", raw("GET /v1/queue", "Host: evil.example\r\n", ""), 403),
        ("one that looks like loopback", raw("GET /v1/queue", "Host: 127.0.0.1.evil.example\r\n", ""), 403),
        ("with a port", raw("GET /v1/queue", &format!("Host: evil.example:{port}\r\n"), ""), 403),
        ("a form", raw("POST /v1/queue/drop", &format!("{local}Content-Type: text/plain\r\n"), all), 415),
        ("no type", raw("POST /v1/queue/drop", &local, all), 415),
        ("a foreign name with JSON", raw("POST /v1/queue/drop", &format!("Host: evil.example\r\n{json}"), all), 403),
        ("local", raw("GET /v1/queue", &local, ""), 200),
        ("local by name", raw("GET /v1/queue", "Host: localhost\r\n", ""), 200),
        ("local, IPv6", raw("GET /v1/queue", "Host: [::1]:8025\r\n", ""), 200),
        ("local with JSON", raw("POST /v1/queue/retry", &format!("{local}{json}"), all), 200),
        ("nothing selected", raw("POST /v1/queue/drop", &format!("{local}{json}"), "{}"), 400),
        ("a verb that there is not", raw("POST /v1/queue/explode", &format!("{local}{json}"), all), 404),
        ("a field that there is not", raw("POST /v1/queue/drop", &format!("{local}{json}"), "{\"everything\":true}"), 422),
        ("no JSON", raw("POST /v1/queue/drop", &format!("{local}{json}"), "all"), 400),
        ("too large", raw("POST /v1/queue/drop", &format!("{local}{json}"), &format!("{{\"text\":\"{}\"}}", "x".repeat(2 << 20))), 413),
    ] {
        // A body that is too large may be answered before it was read.
        match request(world.admin, &request_text).await {
            Ok((status, body)) => assert_eq!(status, expected, "{what}: {body}"),
            Err(error) => assert_eq!(expected, 413, "{what}: {error}"),
        }
    }
}
