//! The controller as a whole, against an API server in memory, with pods and gateways played by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sekimori_crds::stream::{Applied, DrainKind as WireDrain, Hello, Report};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::identity::Identity;
use crate::io::api_server::ApiServer;
use crate::io::hub::{EpochStore, Seat};

const FLEETS: &str = "sekimori.dev/v1alpha1/gatewayfleets";
const SETS: &str = "apps/v1/statefulsets";
const SECRETS: &str = "v1/secrets";
const PODS: &str = "v1/pods";
const CLAIMS: &str = "v1/persistentvolumeclaims";
/// No test waits longer.
const PATIENCE: Duration = Duration::from_secs(30);

struct Epochs;

impl EpochStore for Epochs {
    fn raise(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        async move { Ok(above + 1) }.boxed()
    }
}

/// An operator that leads. It dies when it is dropped.
struct Operator {
    hub: Hub,
    task: JoinHandle<anyhow::Result<()>>,
    seats: BTreeMap<String, Seat>,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn settings() -> Settings {
    Settings {
        gateway_image: "mta:1".to_owned(),
        idle_image: "idle:1".to_owned(),
        stream_address: "operator.sekimori.svc:8443".to_owned(),
        audience: "config".to_owned(),
        authority_pem: "-----BEGIN CERTIFICATE-----\n".to_owned(),
        namespace: "sekimori".to_owned(),
        pod_labels: vec![],
        stream_port: 8443,
        bind: std::net::Ipv4Addr::UNSPECIFIED.into(),
        resize: true,
        cluster_networks: vec![],
    }
}

impl Operator {
    fn begin(server: &ApiServer) -> Self {
        let client = server.client();
        let hub = Hub::new(1, Arc::new(Epochs));
        let context = Context {
            client: client.clone(),
            hub: hub.clone(),
            settings: Arc::new(arc_swap::ArcSwap::from_pointee(settings())),
            namespaces: vec![],
            events: Events::new(client, "sekimori-operator", None),
            metrics: Arc::new(Metrics::new(&prometheus::Registry::new()).expect("each name once")),
        };
        Self { hub, task: tokio::spawn(run(context, || {})), seats: BTreeMap::new() }
    }

    /// Every pod's gateway follows, does what it is told, and reports. `spooled`: messages in each.
    fn gateways(&mut self, server: &ApiServer, spooled: u64) {
        let key = FleetKey::new("post", "inbound");
        self.hub.synced_once(&key, "tenants");
        for pod in server.objects(PODS) {
            let (name, uid) = (text(&pod, "name"), text(&pod, "uid"));
            if !self.seats.contains_key(&uid) {
                let identity = Identity { namespace: "post".into(), service_account: "inbound-gateway".into(), pod_name: name, pod_uid: uid.clone() };
                // One that is not known yet comes back.
                let hello = Hello { format: sekimori_crds::snapshot::FORMAT, ..Hello::default() };
                let Ok(seat) = self.hub.seat(&identity, hello) else { continue };
                self.seats.insert(uid.clone(), seat);
            }
            let seat = self.seats.get_mut(&uid).expect("a seat");
            // What was sent can be acknowledged.
            seat.next(|| true);
            let draining = seat.orders.borrow().drain();
            let position = self.hub.fleet(&key).position;
            let before = self.hub.fleet(&key).pods.get(uid.as_str()).and_then(|(_, state)| state.report.clone());
            // Every few seconds, and at once when something changed.
            let old =
                before.is_none_or(|(at_ms, report)| clock::unix_ms() - at_ms > 1_500 || report.draining() != draining || report.spooled != spooled);
            if old {
                seat.applied(Applied { position, ..Applied::default() });
                seat.report(Report { draining: draining.into(), serving: draining == WireDrain::None, spooled, ..Report::default() });
            }
        }
    }
}

fn text(object: &Value, field: &str) -> String {
    object["metadata"][field].as_str().unwrap_or_default().to_owned()
}

fn fleet(server: &ApiServer, spec: &Value) {
    let mut whole =
        json!({"hostname": "mx.example.net", "listeners": [{"name": "smtp", "port": 2525}], "drain": {"handOver": "Wait"}, "replicas": 2});
    for (key, value) in spec.as_object().expect("fields") {
        whole[key] = value.clone();
    }
    let mut object = server.object(FLEETS, "post", "inbound").unwrap_or_else(
        || json!({"apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet", "metadata": {"name": "inbound", "namespace": "post"}}),
    );
    object["spec"] = whole;
    server.put(FLEETS, object);
}

/// The StatefulSet controller and the kubelet, once.
fn kubelet(server: &ApiServer) {
    for set in server.objects(SETS) {
        let replicas = set["spec"]["replicas"].as_u64().expect("replicas");
        let set_name = text(&set, "name");
        for ordinal in 0..replicas {
            let name = format!("{set_name}-{ordinal}");
            if server.object(PODS, "post", &name).is_some() {
                continue;
            }
            let claim = format!("spool-{name}");
            if server.object(CLAIMS, "post", &claim).is_none() {
                let labels = set["spec"]["volumeClaimTemplates"][0]["metadata"]["labels"].clone();
                let metadata = json!({"name": claim, "namespace": "post", "labels": labels});
                server.put(CLAIMS, json!({"metadata": metadata, "spec": {}, "status": {"phase": "Bound"}}));
            }
            let mut metadata = set["spec"]["template"]["metadata"].clone();
            metadata["name"] = json!(name);
            metadata["namespace"] = json!("post");
            metadata["ownerReferences"] =
                json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": set_name, "uid": set["metadata"]["uid"], "controller": true}]);
            let container = json!({"name": "mta", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}});
            let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            server.put(
                PODS,
                json!({
                    "metadata": metadata, "spec": {"containers": []},
                    "status": {"phase": "Running", "conditions": [ready], "containerStatuses": [container]},
                }),
            );
        }
        let beyond =
            |pod: &Value| text(pod, "name").rsplit('-').next().and_then(|digits| digits.parse::<u64>().ok()).is_some_and(|number| number >= replicas);
        for pod in server.objects(PODS).iter().filter(|pod| beyond(pod)) {
            server.delete(PODS, "post", &text(pod, "name"));
        }
    }
}

/// Plays pods and gateways until something holds.
async fn until(server: &ApiServer, operator: &mut Operator, spooled: u64, what: &str, holds: impl Fn(&ApiServer) -> bool) {
    let begun = Instant::now();
    while !holds(server) {
        assert!(begun.elapsed() < PATIENCE, "{what}: it did not come to that; the fleet: {:#?}", server.object(FLEETS, "post", "inbound"));
        assert!(!operator.task.is_finished(), "{what}: the operator ended");
        kubelet(server);
        operator.gateways(server, spooled);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The status of a condition of the fleet.
fn condition(server: &ApiServer, kind: &str) -> Option<(String, String)> {
    let fleet = server.object(FLEETS, "post", "inbound")?;
    let found = fleet["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)?.clone();
    Some((found["status"].as_str()?.to_owned(), found["message"].as_str()?.to_owned()))
}

fn is_true(server: &ApiServer, kind: &str) -> bool {
    condition(server, kind).is_some_and(|(status, _)| status == "True")
}

fn serves(server: &ApiServer) -> bool {
    server.object(FLEETS, "post", "inbound").is_some_and(|fleet| fleet["status"]["phase"] == "Serving" && fleet["status"]["readyReplicas"] == 2)
}

fn replicas(server: &ApiServer) -> Option<u64> {
    server.object(SETS, "post", "inbound-gateway")?["spec"]["replicas"].as_u64()
}

/// Everything but the fleet itself, without what differs from run to run.
fn made(server: &ApiServer) -> Vec<Value> {
    let kinds =
        ["v1/configmaps", "v1/serviceaccounts", "networking.k8s.io/v1/networkpolicies", "v1/services", "policy/v1/poddisruptionbudgets", SETS];
    let mut objects: Vec<Value> = kinds.iter().flat_map(|kind| server.objects(kind)).collect();
    for object in &mut objects {
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        for field in ["uid", "resourceVersion", "generation"] {
            metadata.remove(field);
        }
    }
    objects
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_made_in_order_and_then_there_is_silence() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 0, "serving", serves).await;
    until(&server, &mut operator, 0, "a revision", |server| {
        server.object(FLEETS, "post", "inbound").is_some_and(|fleet| fleet["status"]["configRevision"].is_string())
    })
    .await;
    let writes = server.take_writes();
    let first = [
        "PATCH sekimori.dev/v1alpha1/gatewayfleets post/inbound",
        "POST v1/secrets post/inbound-snapshot-key",
        "PATCH v1/configmaps post/inbound-operator-authority",
        "PATCH v1/serviceaccounts post/inbound-gateway",
        "PATCH networking.k8s.io/v1/networkpolicies post/inbound-gateway",
        "PATCH v1/services post/inbound-gateway",
        "PATCH v1/services post/inbound-smtp",
        "PATCH policy/v1/poddisruptionbudgets post/inbound-gateway",
        "PATCH apps/v1/statefulsets post/inbound-gateway",
    ];
    assert_eq!(writes.iter().take(first.len()).map(String::as_str).collect::<Vec<_>>(), first);
    let claims = |write: &&String| write.starts_with("PATCH v1/persistentvolumeclaims post/spool-inbound-gateway-");
    assert_eq!(writes.iter().filter(claims).count(), 2, "each claim is held, once: {writes:#?}");
    assert!(writes.iter().skip(first.len()).all(|write| write.contains("/status ") || claims(&write)), "{writes:#?}");
    // What is still on its way comes to its end; then gateways report on, and nothing is written.
    for _ in 0..2 {
        server.take_writes();
        let silence = Instant::now();
        until(&server, &mut operator, 0, "silence", |_| silence.elapsed() > Duration::from_secs(2)).await;
    }
    assert_eq!(server.take_writes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_deletes_or_changes_comes_back_at_once() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 0, "serving", serves).await;
    let started = Instant::now();
    let service = server.object("v1/services", "post", "inbound-smtp").expect("a Service");
    server.delete("v1/services", "post", "inbound-smtp");
    until(&server, &mut operator, 0, "the Service again", |server| server.object("v1/services", "post", "inbound-smtp").is_some()).await;
    let mut changed = server.object("v1/services", "post", "inbound-smtp").expect("a Service");
    assert_eq!(changed["spec"], service["spec"]);
    changed["spec"]["publishNotReadyAddresses"] = json!(false);
    server.put("v1/services", changed);
    let as_it_was = |server: &ApiServer| server.object("v1/services", "post", "inbound-smtp").is_some_and(|now| now["spec"] == service["spec"]);
    until(&server, &mut operator, 0, "the Service as it was", as_it_was).await;
    assert!(started.elapsed() < super::apply::APPLY_EVERY / 2, "not by the look that comes every few minutes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_dies_after_any_write_is_no_loss() {
    let reference = ApiServer::new();
    fleet(&reference, &json!({}));
    let mut operator = Operator::begin(&reference);
    until(&reference, &mut operator, 0, "serving", serves).await;
    drop(operator);
    let expected = made(&reference);
    assert_eq!(expected.len(), 7);
    for survives in 0..12 {
        let server = ApiServer::new();
        fleet(&server, &json!({}));
        server.writes_left(Some(survives));
        let mut operator = Operator::begin(&server);
        until(&server, &mut operator, 0, "its last write", ApiServer::is_spent).await;
        // It tries on for a moment, and is not heard.
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(operator);
        let key = server.object(SECRETS, "post", "inbound-snapshot-key");
        server.writes_left(None);
        let mut operator = Operator::begin(&server);
        until(&server, &mut operator, 0, "serving", serves).await;
        assert_eq!(made(&server), expected, "after {survives} writes");
        let after = server.object(SECRETS, "post", "inbound-snapshot-key").expect("a key");
        assert!(key.is_none_or(|key| key == after), "after {survives} writes: the key was written again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_that_pass_are_tried_again() {
    for (code, plural) in [(409, SETS), (429, "v1/services"), (500, "v1/configmaps"), (503, FLEETS)] {
        let server = ApiServer::new();
        fleet(&server, &json!({}));
        server.refuse(plural, code, 2);
        let mut operator = Operator::begin(&server);
        until(&server, &mut operator, 0, &format!("serving after {code}"), serves).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_api_server_does_not_take_is_said() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    server.refuse(SETS, 422, 1_000);
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 0, "Accepted is False", |server| {
        condition(server, "Accepted").is_some_and(|(status, message)| status == "False" && message.contains("inbound-gateway"))
    })
    .await;
    assert_eq!(server.objects(SETS).len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_fleet_retires_its_gateways_first() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 3, "serving", serves).await;
    server.delete(FLEETS, "post", "inbound");
    retires(&server, &mut operator).await;
}

/// From the deletion to the end: nothing goes while there is mail.
async fn retires(server: &ApiServer, operator: &mut Operator) {
    let drains = |server: &ApiServer| {
        let pods = server.objects(PODS);
        pods.len() == 2
            && pods
                .iter()
                .all(|pod| pod["metadata"]["annotations"][names::DRAIN] == "Retire" && pod["metadata"]["labels"].get(names::INTAKE_LABEL).is_none())
    };
    until(server, operator, 3, "both pods retire", drains).await;
    let waited = Instant::now();
    until(server, operator, 3, "mail is waited for", |_| waited.elapsed() > Duration::from_secs(2)).await;
    assert_eq!((replicas(server), server.objects(PODS).len(), server.objects(CLAIMS).len()), (Some(2), 2, 2));
    assert!(server.object(FLEETS, "post", "inbound").is_some());
    until(server, operator, 0, "the fleet is gone", |server| server.object(FLEETS, "post", "inbound").is_none()).await;
    assert_eq!((server.objects(PODS).len(), server.objects(CLAIMS).len()), (0, 0), "empty volumes go with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_fleet_keeps_its_pods_and_can_still_be_deleted() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 3, "serving", serves).await;
    let before = made(&server);
    fleet(&server, &json!({"replicas": 1, "engines": [{"name": "missing"}]}));
    until(&server, &mut operator, 3, "it is rejected", |server| {
        condition(server, "Accepted").is_some_and(|(status, message)| status == "False" && message.contains("missing"))
    })
    .await;
    let waited = Instant::now();
    until(&server, &mut operator, 3, "nothing happens", |_| waited.elapsed() > Duration::from_secs(1)).await;
    assert_eq!(made(&server), before);
    assert!(server.objects(PODS).iter().all(|pod| pod["metadata"]["annotations"].get(names::DRAIN).is_none()));
    server.delete(FLEETS, "post", "inbound");
    retires(&server, &mut operator).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_that_is_there_and_not_seen_keeps_its_replicas() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 3, "serving", serves).await;
    drop(operator);
    // Somebody took the label off that it is watched by, and nobody knows what the third pod's volume holds.
    let mut set = server.object(SETS, "post", "inbound-gateway").expect("a StatefulSet");
    set["metadata"].as_object_mut().expect("metadata").remove("labels");
    set["spec"]["replicas"] = json!(3);
    server.put(SETS, set);
    kubelet(&server);
    server.delete(PODS, "post", "inbound-gateway-2");
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 3, "the label is back", |server| {
        server.object(SETS, "post", "inbound-gateway").is_some_and(|set| set["metadata"]["labels"].is_object())
    })
    .await;
    assert_eq!(replicas(&server), Some(3), "lowered past a volume with mail");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_replicas_wait_for_the_mail() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 3, "serving", serves).await;
    fleet(&server, &json!({"replicas": 1}));
    until(&server, &mut operator, 3, "Draining", |server| is_true(server, "Draining")).await;
    let waited = Instant::now();
    until(&server, &mut operator, 3, "mail is waited for", |_| waited.elapsed() > Duration::from_secs(2)).await;
    assert_eq!(replicas(&server), Some(2));
    assert!(server.object(PODS, "post", "inbound-gateway-0").is_some_and(|pod| pod["metadata"]["annotations"].get(names::DRAIN).is_none()));
    until(&server, &mut operator, 0, "one is left", |server| server.objects(PODS).len() == 1 && server.objects(CLAIMS).len() == 1).await;
    assert!(server.object(PODS, "post", "inbound-gateway-0").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pod_goes_on_the_word_of_a_watch_that_is_behind() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 3, "serving", serves).await;
    fleet(&server, &json!({"replicas": 1}));
    let drain = |server: &ApiServer| {
        server.object(PODS, "post", "inbound-gateway-1").is_some_and(|pod| pod["metadata"]["annotations"].get(names::DRAIN).is_some())
    };
    until(&server, &mut operator, 3, "a retirement", drain).await;
    let begun = Instant::now();
    until(&server, &mut operator, 3, "the watch shows it", |_| begun.elapsed() > Duration::from_millis(500)).await;
    server.hold_watches(&[PODS]);
    // Another leader ended the drain: the gateway takes mail again, though it once reported that it has none.
    let mut pod = server.object(PODS, "post", "inbound-gateway-1").expect("a pod");
    pod["metadata"]["annotations"].as_object_mut().expect("annotations").remove(names::DRAIN);
    server.put(PODS, pod);
    let begun = Instant::now();
    until(&server, &mut operator, 0, "turns on what is not true any more", |_| begun.elapsed() > 2 * REPORTS_EVERY).await;
    assert_eq!(replicas(&server), Some(2));
    server.hold_watches(&[]);
    until(&server, &mut operator, 0, "the retirement begins anew and ends", |server| replicas(server) == Some(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_deleted_during_a_retirement_comes_back_for_its_mail() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 3, "serving", serves).await;
    assert!(
        server.object(SETS, "post", "inbound-gateway").is_some_and(|set| set["metadata"].get("ownerReferences").is_none()),
        "foreground deletion takes it"
    );
    server.delete(FLEETS, "post", "inbound");
    // As the garbage collector does it, or somebody who is in a hurry.
    server.delete(SETS, "post", "inbound-gateway");
    for ordinal in 0..2 {
        server.delete(PODS, "post", &format!("inbound-gateway-{ordinal}"));
    }
    retires(&server, &mut operator).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_empty_spools_and_waits_for_full_ones() {
    // One that was killed may have taken mail since its last report.
    for (spooled, killed, let_go) in [(0, false, true), (3, false, false), (0, true, false)] {
        let server = ApiServer::new();
        fleet(&server, &json!({}));
        let mut operator = Operator::begin(&server);
        until(&server, &mut operator, spooled, "serving", serves).await;
        until(&server, &mut operator, spooled, "claims are held", |server| {
            server.objects(CLAIMS).iter().all(|claim| claim["metadata"]["finalizers"] == json!([names::SPOOL_FINALIZER]))
        })
        .await;
        let reported = Instant::now();
        until(&server, &mut operator, spooled, "reports are looked at", |_| reported.elapsed() > 2 * REPORTS_EVERY).await;
        for seat in operator.seats.values().filter(|_| !killed) {
            seat.report(Report { ending: true, spooled, ..Report::default() });
        }
        server.put("v1/namespaces", json!({"metadata": {"name": "post", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["kubernetes"]}}));
        server.delete(FLEETS, "post", "inbound");
        server.delete(SETS, "post", "inbound-gateway");
        for ordinal in 0..2 {
            server.delete(PODS, "post", &format!("inbound-gateway-{ordinal}"));
            server.delete(CLAIMS, "post", &format!("spool-inbound-gateway-{ordinal}"));
        }
        let gone = |server: &ApiServer| server.objects(FLEETS).is_empty() && server.objects(CLAIMS).is_empty();
        let told = |server: &ApiServer| condition(server, "Draining").is_some_and(|(_, message)| message.contains("the namespace is being deleted"));
        until(&server, &mut operator, spooled, "its end", |server| if let_go { gone(server) } else { told(server) }).await;
        assert_eq!(server.objects(CLAIMS).len(), if let_go { 0 } else { 2 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_wrong_with_a_fleet_a_drain_that_began_ends() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 0, "serving", serves).await;
    fleet(&server, &json!({"engines": [{"name": "missing"}]}));
    until(&server, &mut operator, 0, "it is rejected", |server| condition(server, "Accepted").is_some_and(|(status, _)| status == "False")).await;
    let mut pod = server.object(PODS, "post", "inbound-gateway-1").expect("a pod");
    pod["metadata"]["annotations"][names::DRAIN] = json!("Restart");
    pod["metadata"]["annotations"][names::DRAIN_SINCE] = json!(clock::unix_ms().to_string());
    pod["metadata"]["labels"].as_object_mut().expect("labels").remove(names::INTAKE_LABEL);
    server.put(PODS, pod);
    until(&server, &mut operator, 0, "it takes mail again", |server| {
        server.object(PODS, "post", "inbound-gateway-1").is_some_and(|pod| {
            pod["metadata"]["annotations"].get(names::DRAIN).is_none() && pod["metadata"]["labels"][names::INTAKE_LABEL] == names::INTAKE_OPEN
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_nobody_uses_goes_without_a_fleet() {
    const VERSIONS: &str = "sekimori.dev/v1alpha1/engineversions";
    let server = ApiServer::new();
    let version = json!({
        "apiVersion": "sekimori.dev/v1alpha1", "kind": "EngineVersion",
        "metadata": {"name": "clamav-1", "namespace": "post", "finalizers": ["sekimori.dev/in-use"]},
        "spec": {"engineRef": {"name": "clamav"}, "version": "1.4.3", "image": "clamav:1.4.3"},
    });
    // As it was written by the operator that held it.
    server.put(VERSIONS, version);
    let mut operator = Operator::begin(&server);
    server.delete(VERSIONS, "post", "clamav-1");
    until(&server, &mut operator, 0, "it is gone", |server| server.objects(VERSIONS).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_again_and_again_is_said_even_where_it_may_pass() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    server.refuse("v1/configmaps", 500, 1_000);
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 0, "Accepted is False", |server| {
        condition(server, "Accepted").is_some_and(|(status, message)| status == "False" && message.contains("inbound-operator-authority"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_of_a_fleet_that_cannot_be_read_are_told_what_stands_on_their_pods() {
    let server = ApiServer::new();
    fleet(&server, &json!({}));
    let mut operator = Operator::begin(&server);
    until(&server, &mut operator, 0, "serving", serves).await;
    drop(operator);
    fleet(&server, &json!({"listeners": "none of ours"}));
    let mut pod = server.object(PODS, "post", "inbound-gateway-1").expect("a pod");
    let uid = text(&pod, "uid");
    pod["metadata"]["annotations"][names::DRAIN] = json!("Retire");
    pod["metadata"]["annotations"][names::DRAIN_SINCE] = json!(clock::unix_ms().to_string());
    server.put(PODS, pod);
    let mut operator = Operator::begin(&server);
    let begun = Instant::now();
    while !operator.seats.get(&uid).is_some_and(|seat| seat.orders.borrow().drain() == WireDrain::Retire) {
        assert!(begun.elapsed() < PATIENCE, "it was told nothing");
        operator.gateways(&server, 3);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
