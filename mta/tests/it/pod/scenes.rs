//! What happens to a pod: a first start, changes, restarts with nobody there, drains, tokens, certificates.

#![expect(clippy::unwrap_used, reason = "a test's own helpers")]

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use sekimori_crds::snapshot::{CertificatePart, FleetPart, ListEntry, TenantPart};
use sekimori_crds::stream::{Breaker, DrainKind, Outcome};
use sekimori_crds::vocabulary::{CheckMode, DeliveryMode, ListEntryType, ListenerTls};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_rustls::TlsConnector;

use super::operator::{Operator, fleet_part, tenant_part};
use super::process::{Pod, all_bytes};
use crate::delivery::gateway::wait_for;
use crate::delivery::sink::{Act, Script, Sink, say};
use crate::gateway::client::Client;
use crate::gateway::tenants::{MAIL, header, to, with};
use crate::gateway::world::listener_part;

/// An operator with a fleet and these tenants, and a pod that serves them.
async fn serving(tenants: Vec<TenantPart>) -> (Operator, Pod) {
    let operator = Operator::start().await;
    let mut pod = Pod::new(&operator);
    operator.put(std::iter::once(fleet_part(pod.fleet())).chain(tenants.into_iter().map(tenant_part)).collect());
    pod.start(&operator);
    pod.wait_status("/readyz", 200).await;
    (operator, pod)
}

async fn code(pod: &Pod, recipient: &str) -> u16 {
    let answer = Client::connect(pod.smtp, "192.0.2.1").await.send(&[recipient], MAIL).await;
    answer.end.map_or_else(|| answer.recipients[0].code, |end| end.code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_waits_then_every_change_is_followed() {
    let sink = Sink::start(Script::default()).await;
    let operator = Operator::start().await;
    let mut pod = Pod::new(&operator);
    operator.with(|state| {
        state.silent = true;
        state.not_leader = true;
    });
    operator.put(vec![fleet_part(pod.fleet()), tenant_part(to("a", &sink)), tenant_part(to("b", &sink))]);
    pod.start(&operator);
    pod.wait_status("/livez", 200).await;
    operator.wait("a refused stream", |state| (state.refused_streams > 1).then_some(())).await;
    operator.with(|state| state.not_leader = false);
    let hello = operator.wait("a hello", |state| state.hellos.first().cloned()).await;
    assert_eq!((hello.have, hello.format), (None, 1));
    assert!(!hello.version.is_empty() && hello.now_ms > 1_700_000_000_000);
    assert_eq!(operator.with(|state| state.bearers[0].clone()), "Bearer first-token");
    assert_eq!((pod.get("/livez").await.0, pod.get("/readyz").await.0, pod.listens().await), (200, 503, false));

    // Everything, in pieces.
    operator.speak();
    let first = operator.with(|state| state.applied.last().and_then(|applied| applied.position.clone()));
    assert_eq!(first, None);
    pod.wait_status("/readyz", 200).await;
    assert_eq!(code(&pod, "u@a.example").await, 250);
    assert_eq!(code(&pod, "u@c.example").await, 550);

    // A tenant comes, one changes, one goes.
    let position = operator.put(vec![tenant_part(to("c", &sink))]);
    assert!(operator.reached(&position).await.rejected.is_empty());
    assert_eq!(code(&pod, "u@c.example").await, 250);
    let position = operator.put(vec![
        tenant_part(with(to("a", &sink), |part| part.domains.push("more.example".into()))),
        ("tenant/mail/b".into(), vec![]),
        tenant_part(to("d", &sink)),
    ]);
    operator.reached(&position).await;
    assert_eq!((code(&pod, "u@more.example").await, code(&pod, "u@b.example").await, code(&pod, "u@d.example").await), (250, 550, 250));

    // One that cannot be used keeps its form, whatever else comes with it.
    let newer = with(to("a", &sink), |part| {
        part.requires.insert("teleport".into());
        part.domains.push("newer.example".into());
    });
    let position = operator.put(vec![tenant_part(newer), tenant_part(to("e", &sink)), ("tenant/mail/d".into(), b"{\"part\":\"tenant\"}".to_vec())]);
    let applied = operator.reached(&position).await;
    let rejected: Vec<_> = applied.rejected.iter().map(|one| (one.key.as_str(), one.lacks.as_str())).collect();
    assert_eq!((rejected, applied.resync), (vec![("tenant/mail/a", "teleport"), ("tenant/mail/d", "")], false));
    assert!(applied.rejected.iter().all(|one| !one.message.is_empty()));
    for (recipient, expected) in [("u@more.example", 250), ("u@newer.example", 451), ("u@d.example", 250), ("u@e.example", 250)] {
        assert_eq!(code(&pod, recipient).await, expected, "{recipient}");
    }
    let (_, metrics) = pod.get("/metrics").await;
    assert!(metrics.contains("sekimori_refused_parts 2\n") && metrics.contains("sekimori_operator_connected 1\n"));

    // Parts that do not add up: everything again.
    let applied = operator.with(|state| state.applied.len());
    operator.put_wrongly("tenant/mail/stray", tenant_part(to("stray", &sink)).1);
    operator.wait("a resync", |state| state.applied.iter().skip(applied).any(|applied| applied.resync).then_some(())).await;
    let back = operator.wait("the way back", |state| state.applied.last().filter(|applied| !applied.resync).cloned()).await;
    assert_eq!(back.rejected.len(), 2);
    assert_eq!((code(&pod, "u@stray.example").await, code(&pod, "u@e.example").await), (550, 250));

    // Everything, and it does not add up: in force, and asked for again, but not at once.
    let applied = operator.with(|state| state.applied.len());
    operator.everything_wrongly();
    operator.wait("another resync", |state| state.applied.iter().skip(applied).any(|applied| applied.resync).then_some(())).await;
    assert!(operator.with(|state| state.applied.len()) <= applied + 2, "once");
    operator.wait("the way back", |state| state.applied.last().filter(|applied| !applied.resync).cloned()).await;
    assert_eq!(code(&pod, "u@e.example").await, 250);

    // A fleet that cannot be run here keeps the one before, and its tenants go on.
    let mut fleet = pod.fleet();
    fleet.listeners[0].port = pod.admin.port();
    let position = operator.put(vec![fleet_part(fleet), tenant_part(to("f", &sink))]);
    let applied = operator.reached(&position).await;
    assert!(applied.rejected.iter().any(|one| one.key == "fleet" && one.message.contains("cannot bind")), "{applied:?}");
    assert_eq!(code(&pod, "u@f.example").await, 250);

    // Another name of the fleet's, for clients and for servers.
    let other = Sink::start(Script::default()).await;
    let position = operator.put(vec![fleet_part(FleetPart { hostname: "mx.renamed.test".into(), ..pod.fleet() }), tenant_part(to("g", &other))]);
    operator.reached(&position).await;
    assert_eq!(code(&pod, "u@g.example").await, 250);
    assert_eq!((other.kept_count(), other.greetings()), (1, vec!["mx.renamed.test".to_owned()]));
    pod.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_needs_no_operator_but_the_key() {
    let sink = Sink::start(Script::default()).await;
    let secret = with(to("secret-word", &sink), |part| {
        part.policy.lists.allow = vec![ListEntry { kind: ListEntryType::Network, value: "203.0.113.77".into() }];
    });
    let (operator, mut pod) = serving(vec![secret]).await;
    operator.order(|orders| orders.cluster_networks = vec!["10.0.0.0/8".into()]);
    let newest = with(to("newest", &sink), |part| {
        part.requires.insert("teleport".into());
    });
    let position = operator.put(vec![tenant_part(to("later", &sink)), tenant_part(newest)]);
    operator.reached(&position).await;
    assert_eq!(code(&pod, "u@newest.example").await, 451, "a tenant's domain whose part needs a newer gateway");
    wait_for("the journal", || std::fs::metadata(pod.path("state/configuration.journal")).is_ok_and(|file| file.len() > 100)).await;
    wait_for("the orders", || std::fs::read_to_string(pod.path("state/orders.json")).is_ok_and(|text| text.contains("10.0.0.0/8"))).await;
    pod.kill();
    operator.stop().await;
    let kept = all_bytes(&pod.path("state"));
    for word in ["secret-word", "203.0.113.77", "later.example"] {
        assert!(!kept.windows(word.len()).any(|window| window == word.as_bytes()), "{word} lies on the volume in clear");
    }

    pod.start(&operator);
    pod.wait_status("/readyz", 200).await;
    assert_eq!((code(&pod, "u@later.example").await, code(&pod, "u@secret-word.example").await), (250, 250));
    assert_eq!(code(&pod, "u@newest.example").await, 451);
    let before = sink.kept_count();
    assert_eq!(Client::connect(pod.smtp, "10.1.2.3").await.send(&["u@later.example"], MAIL).await.code(), 250);
    wait_for("the mail", || sink.kept_count() == before + 1).await;
    let masked = header(&sink.kept()[before].content, "Authentication-Results");
    assert!(masked.contains("spf=none reason="), "what hides a sender is known without the operator: {masked}");
    pod.terminate().await;

    std::fs::write(pod.path("key"), [43; 32]).unwrap();
    pod.start(&operator);
    pod.wait_status("/livez", 200).await;
    wait_for("the log", || pod.log().contains("another key")).await;
    assert_eq!((pod.get("/readyz").await.0, pod.listens().await), (503, false), "it waits for the operator");
    pod.terminate().await;

    std::fs::write(pod.path("key"), [42; 32]).unwrap();
    pod.start(&operator);
    pod.wait_status("/readyz", 200).await;
    assert_eq!(code(&pod, "u@later.example").await, 250, "the right key again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_token_is_sent_and_used() {
    let sink = Sink::start(Script::default()).await;
    let (operator, pod) = serving(vec![to("a", &sink)]).await;
    std::fs::write(pod.path("token"), "second-token").unwrap();
    operator.wait("the fresh token", |state| (state.tokens == ["second-token"]).then_some(())).await;
    operator.cut();
    operator.wait("another stream", |state| (state.bearers.last().map(String::as_str) == Some("Bearer second-token")).then_some(())).await;
    let hello = operator.wait("its hello", |state| (state.hellos.len() > 1).then(|| state.hellos.last().cloned()).flatten()).await;
    let have = hello.have.expect("it has a configuration");
    assert_eq!(have.hash, operator.with(|state| state.applied.last().and_then(|applied| applied.position.clone())).unwrap().hash);
    assert_eq!(code(&pod, "u@a.example").await, 250);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_intake_politely_and_can_be_taken_back() {
    let sink = Sink::start(Script::default()).await;
    let (operator, pod) = serving(vec![to("a", &sink)]).await;
    let mut idle = Client::connect(pod.smtp, "192.0.2.1").await;
    let mut busy = Client::connect(pod.smtp, "192.0.2.2").await;
    busy.begin("a@sender.test", &["u@a.example"]).await;
    operator.report("two sessions", |report| report.sessions == 2 && report.draining() == DrainKind::None && report.serving).await;
    operator.drain(DrainKind::Restart);
    let report = operator.report("a drain", |report| report.draining() == DrainKind::Restart).await;
    assert!(report.sessions >= 1);
    assert_eq!(idle.reply().await.code, 421);
    assert!(idle.is_closed().await);
    let mut late = Client::raw(pod.smtp, "192.0.2.3").await;
    let said = late.reply().await;
    assert_eq!((said.code, said.text.starts_with("4.3.2")), (421, true), "{said:?}");
    let (status, why) = pod.get("/readyz").await;
    assert_eq!((status, why.as_str()), (503, "draining\n"));
    // A transaction under way ends as it would have.
    busy.write(&crate::gateway::client::stuffed(MAIL)).await;
    assert_eq!(busy.reply().await.code, 250);
    assert_eq!(busy.reply().await.code, 421);
    operator.report("no sessions", |report| report.sessions == 0 && report.draining() == DrainKind::Restart).await;
    operator.drain(DrainKind::None);
    operator.report("the drain to be taken back", |report| report.draining() == DrainKind::None).await;
    pod.wait_status("/readyz", 200).await;
    assert_eq!(code(&pod, "u@a.example").await, 250);
    assert_eq!(sink.kept_count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retiring_pod_delivers_what_is_due_and_counts_what_is_left() {
    let sink = Sink::start(Script { banner: say("421 4.3.2 later"), ..Script::default() }).await;
    let (operator, mut pod) = serving(vec![with(to("a", &sink), |part| part.delivery = DeliveryMode::Queue)]).await;
    for _ in 0..2 {
        assert_eq!(code(&pod, "u@a.example").await, 250);
    }
    operator.report("two in the spool", |report| report.spooled == 2).await;
    let id = pod.verb(&["queue", "list", "--output", "json"]);
    let id = id.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_else(|| unreachable!("{id}")).to_owned();
    pod.verb(&["queue", "hold", &id]);
    operator.drain(DrainKind::Retire);
    let report = operator.report("the drain", |report| report.draining() == DrainKind::Retire && report.sessions == 0).await;
    assert_eq!(report.spooled, 2, "held mail counts");
    sink.change(|script| script.banner = Act::Accept);
    pod.verb(&["queue", "retry", "--all"]);
    operator.report("one left", |report| report.spooled == 1).await;
    pod.verb(&["queue", "release", &id]);
    let report = operator.report("an empty spool", |report| report.spooled == 0).await;
    assert_eq!((report.draining(), report.runnable, report.oldest_seconds), (DrainKind::Retire, 0, 0));
    assert_eq!(sink.kept_count(), 2);
    assert_eq!(pod.get("/readyz").await.0, 503);
    pod.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_word_counts_what_is_left_and_a_killed_pod_has_none() {
    let sink = Sink::start(Script { banner: say("421 4.3.2 later"), ..Script::default() }).await;
    let (operator, mut pod) = serving(vec![with(to("a", &sink), |part| part.delivery = DeliveryMode::Queue)]).await;
    assert_eq!(code(&pod, "u@a.example").await, 250);
    let mut idle = Client::connect(pod.smtp, "192.0.2.1").await;
    pod.terminate().await;
    assert_eq!(idle.reply().await.code, 421);
    let (last, earlier) = operator.with(|state| state.reports.split_last().map(|(last, earlier)| (last.clone(), earlier.to_vec()))).unwrap();
    assert_eq!((last.ending, last.sessions, last.spooled, last.serving), (true, 0, 1, false));
    assert!(earlier.iter().all(|report| !report.ending));
    pod.start(&operator);
    pod.wait_status("/readyz", 200).await;
    operator.report("the same message", |report| !report.ending && report.spooled == 1).await;
    pod.kill();
    operator.cut();
    assert!(operator.with(|state| state.reports.last().is_some_and(|report| !report.ending)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_say_what_engines_and_clients_did() {
    let sink = Sink::start(Script::default()).await;
    let enforcing = with(to("a", &sink), |part| {
        part.policy.authentication.spf = CheckMode::Enforce;
        part.policy.lists.deny = vec![ListEntry { kind: ListEntryType::Network, value: "10.0.0.0/8".into() }];
    });
    let (operator, pod) = serving(vec![enforcing]).await;
    assert_eq!(Client::connect(pod.smtp, "10.1.2.3").await.send(&["u@a.example"], MAIL).await.code(), 550, "its address is on the list");
    operator.order(|orders| {
        orders.cluster_networks = vec!["10.0.0.0/8".into(), "nonsense".into()];
        orders.gateways = 3;
    });
    operator
        .wait("orders to be kept", |_| {
            std::fs::read_to_string(pod.path("state/orders.json")).is_ok_and(|text| text.contains("10.0.0.0/8")).then_some(())
        })
        .await;
    assert_eq!(Client::connect(pod.smtp, "10.1.2.3").await.send(&["u@a.example"], MAIL).await.code(), 250, "now it says nothing");
    let report = operator.report("both clients", |report| report.engines.iter().all(|engine| engine.scans >= 2)).await;
    assert_eq!((report.clients, report.clients_masked), (1, 1));
    for engine in &report.engines {
        assert_eq!((engine.breaker(), engine.failures, engine.latency.len()), (Breaker::Closed, 0, 12), "{engine:?}");
        assert_eq!(engine.latency.iter().sum::<u64>(), engine.scans);
    }
    let samples: Vec<_> = operator.with(|state| state.reports.iter().flat_map(|report| report.samples.clone()).collect());
    assert_eq!(samples.iter().filter(|sample| sample.engine == "builtin-virus" && sample.outcome() == Outcome::Clean).count(), 2, "{samples:?}");
    let log = pod.log();
    assert!(log.contains("client_masked"), "the log says so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_shows_health_and_the_socket_the_rest() {
    let sink = Sink::start(Script::default()).await;
    let (_operator, pod) = serving(vec![to("a", &sink)]).await;
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(pod.get(path).await.0, 200, "{path}");
    }
    for path in ["/v1/status", "/v1/queue", "/v1/quarantine", "/v1/openapi.json"] {
        assert_eq!(pod.get(path).await.0, 404, "{path} is for the socket alone");
    }
    assert_eq!(std::fs::metadata(pod.path("admin.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(pod.verb(&["queue", "list", "--output", "json"]).contains("messages"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_without_its_certificate_loses_no_mail() {
    let sink = Sink::start(Script::default()).await;
    let operator = Operator::start().await;
    let mut pod = Pod::new(&operator);
    let mut listener = listener_part();
    listener.tls = ListenerTls::Required;
    listener.certificates = vec![CertificatePart { name: "mx".into(), chain_pem: String::new(), key_pem: String::new() }];
    operator.put(vec![fleet_part(pod.fleet_with(listener.clone())), tenant_part(to("a", &sink))]);
    pod.start(&operator);
    pod.wait_status("/readyz", 200).await;
    let said = Client::raw(pod.smtp, "192.0.2.1").await.reply().await;
    assert_eq!((said.code, said.text.contains("TLS")), (421, true), "neither in clear nor for good: {said:?}");

    let made = rcgen::generate_simple_self_signed(vec!["mx.example.net".to_owned()]).unwrap();
    std::fs::create_dir_all(pod.path("tls/mx")).unwrap();
    std::fs::write(pod.path("tls/mx/tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(pod.path("tls/mx/tls.key"), made.signing_key.serialize_pem()).unwrap();
    pod.signal("-HUP");
    wait_for("the certificate", || pod.log().contains("changed certificates are in force")).await;
    let mut client = Client::connect(pod.smtp, "192.0.2.1").await;
    assert_eq!(client.say("MAIL FROM:<a@sender.test>").await.code, 530);
    assert_eq!(client.say("STARTTLS").await.code, 220);

    // With TLS on request, mail comes in clear rather than not at all.
    listener.tls = ListenerTls::Opportunistic;
    listener.certificates[0].name = "absent".into();
    let position = operator.put(vec![fleet_part(pod.fleet_with(listener))]);
    assert!(operator.reached(&position).await.rejected.is_empty());
    pod.signal("-HUP");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(code(&pod, "u@a.example").await, 250);
}

/// One message inside TLS by a client that trusts these certificates; which of them it was shown.
async fn send_over_tls(pod: &Pod, trusted: &[rcgen::CertifiedKey<rcgen::KeyPair>]) -> usize {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|made| roots.add(made.cert.der().clone()).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let mut plain = Client::connect(pod.smtp, "192.0.2.1").await;
    assert_eq!(plain.say("STARTTLS").await.code, 220);
    let stream = connector.connect("mx.example.net".try_into().unwrap(), plain.into_stream()).await.expect("a whole certificate with its own key");
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let mut stream = BufReader::new(stream);
    for (command, code) in [
        ("EHLO client.test", "250"),
        ("MAIL FROM:<a@sender.test>", "250"),
        ("RCPT TO:<u@a.example>", "250"),
        ("DATA", "354"),
        ("Subject: x\r\n\r\nx\r\n.", "250"),
    ] {
        stream.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut line = String::new();
        while line.as_bytes().get(3) != Some(&b' ') {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
        }
        assert!(line.starts_with(code), "{command}: {line}");
    }
    trusted.iter().position(|made| made.cert.der()[..] == shown[..]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_under_load() {
    let sink = Sink::start(Script::default()).await;
    let operator = Operator::start().await;
    let mut pod = Pod::new(&operator);
    let mut listener = listener_part();
    listener.tls = ListenerTls::Required;
    listener.certificates = vec![CertificatePart { name: "mx".into(), chain_pem: String::new(), key_pem: String::new() }];
    operator.put(vec![fleet_part(pod.fleet_with(listener)), tenant_part(to("a", &sink))]);
    let made: Vec<_> = (0..4).map(|_| rcgen::generate_simple_self_signed(vec!["mx.example.net".to_owned()]).unwrap()).collect();
    let secret = pod.path("tls/mx");
    let mount = |version: usize| {
        // As the kubelet does it.
        let dir = secret.join(format!("..{version}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("tls.crt"), made[version].cert.pem()).unwrap();
        std::fs::write(dir.join("tls.key"), made[version].signing_key.serialize_pem()).unwrap();
        std::os::unix::fs::symlink(format!("..{version}"), secret.join("..next")).unwrap();
        std::fs::rename(secret.join("..next"), secret.join("..data")).unwrap();
    };
    mount(0);
    pod.start(&operator);
    pod.wait_status("/readyz", 200).await;
    let mut shown = vec![];
    for version in 1..4 {
        mount(version);
        pod.signal("-HUP");
        let from = shown.len();
        while shown.last() != Some(&version) {
            assert!(shown.len() < from + 200, "the certificate does not come: {shown:?}");
            shown.push(send_over_tls(&pod, &made).await);
        }
    }
    assert!(shown.is_sorted(), "{shown:?}");
    wait_for("all mail", || sink.kept_count() == shown.len()).await;
}
