use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::cluster::{Cluster, Where};
use super::exec::{Runner, run_all};
use super::kept::{Pods, operate_in, pods, show_in};
use super::{Screen, report, status, tenants};
use crate::kubectl::cli::{FleetArgs, Selection};
use crate::kubectl::messages::{Call, Output, Queued, Store, Unreachable};
use crate::kubectl::table::Paint;
use crate::kubectl::tenants::Wanted;
use crate::kubectl::trouble::Trouble;
use crate::kubectl::{EXIT_CLUSTER, EXIT_OK, EXIT_PARTIAL, EXIT_USAGE};

const SCREEN: Screen = Screen { json: false, paint: Paint { on: false }, terminal: false };
const JSON: Screen = Screen { json: true, paint: Paint { on: false }, terminal: false };
const GROUP: &str = "/apis/sekimori.dev/v1alpha1";

/// An API server that answers from a function: path with query in, status and JSON out. Notes what it was asked.
fn cluster(answer: impl Fn(&str) -> (u16, Value) + Clone + Send + Sync + 'static) -> (Cluster, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(vec![]));
    let noted = Arc::clone(&asked);
    let router = Router::new().fallback(move |request: Request| {
        let uri = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        noted.lock().expect("no test panics with it").push(uri.clone());
        let (code, body) = answer(&uri);
        async move { reply(code, &body) }
    });
    (Cluster { client: kube::Client::new(router, "mail"), namespace: "mail".to_owned(), chosen: false }, asked)
}

fn reply(code: u16, body: &Value) -> Response {
    // A log is no JSON.
    let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    (StatusCode::from_u16(code).expect("a code"), [("content-type", "application/json")], text).into_response()
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (code, json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code }))
}

fn list(items: Vec<Value>) -> (u16, Value) {
    (200, json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items }))
}

fn fleet(namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet", "metadata": { "namespace": namespace, "name": name, "generation": 1 },
        "spec": { "hostname": "mx.example.net", "replicas": 2, "listeners": [{ "name": "smtp", "port": 2525 }] },
        "status": { "observedGeneration": 1, "phase": "Serving", "readyReplicas": 2 } })
}

fn tenant(namespace: &str, name: &str, ready: &str) -> Value {
    json!({ "metadata": { "namespace": namespace, "name": name, "generation": 1 },
        "spec": { "fleetRef": { "namespace": "mail", "name": "inbound" }, "domains": [format!("{name}.example")], "routes": [{ "name": "r", "host": "mail.example" }] },
        "status": { "observedGeneration": 1, "conditions": [{ "type": "Ready", "status": ready, "reason": "R", "message": "m",
            "lastTransitionTime": "2026-11-25T08:00:00Z", "observedGeneration": 1 }] } })
}

fn pod(name: &str, running: bool) -> Value {
    let state = if running { json!({ "running": {} }) } else { json!({ "waiting": { "reason": "ImagePullBackOff" } }) };
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "mail", "name": name },
        "spec": { "containers": [{ "name": "mta", "env": [{ "name": "X", "value": "hunter2" }] }] },
        "status": { "phase": if running { "Running" } else { "Pending" },
            "containerStatuses": [{ "name": "mta", "ready": running, "restartCount": 0, "image": "i", "imageID": "", "state": state }] } })
}

#[tokio::test]
async fn status_reads_page_by_page_and_skips_what_it_cannot_read() {
    let (cluster, asked) = cluster(|uri| {
        if uri.contains("gatewayfleets") {
            list(vec![fleet("mail", "inbound"), json!({ "metadata": { "namespace": "mail", "name": "newer" }, "spec": { "hostname": 7 } })])
        } else if uri.contains("tenantdomains") && !uri.contains("continue") {
            (200, json!({ "metadata": { "continue": "next" }, "items": [tenant("a", "one", "True")] }))
        } else if uri.contains("tenantdomains") {
            list(vec![tenant("b", "two", "False"), tenant("b", "three", "True")])
        } else {
            list(vec![])
        }
    });
    let said = status::said(&cluster, Where::All, &JSON).await.expect("an answer");
    let view: Value = serde_json::from_str(&said.text).expect("JSON");
    assert_eq!((&view["fleets"][0]["name"], &view["fleets"][0]["wanted"], &view["fleets"][0]["ready"]), (&"inbound".into(), &2.into(), &2.into()));
    assert_eq!(view["fleets"][0]["tenants"]["known"], 3, "{view}");
    assert_eq!(view["fleets"][0]["tenants"]["worst"][0]["name"], "two", "{view}");
    assert!(view["notes"][0].as_str().is_some_and(|note| note.contains("GatewayFleet mail/newer is not shown")), "{view}");
    let asked = asked.lock().expect("no test panics with it");
    assert!(asked.iter().any(|uri| uri.contains("tenantdomains") && uri.contains("continue=next") && uri.contains("limit=500")), "{asked:?}");
}

#[tokio::test]
async fn without_the_definitions_it_says_how_to_install_them() {
    let (cluster, _) = cluster(|_| (404, json!("404 page not found\n")));
    let trouble = status::said(&cluster, Where::All, &SCREEN).await.expect_err("no definitions");
    assert!(trouble.code == EXIT_CLUSTER && trouble.text.contains("helm install sekimori-crds"), "{trouble}");
}

#[tokio::test]
async fn forbidden_names_the_role() {
    let (cluster, _) = cluster(|_| refusal(403, "Forbidden", "gatewayfleets.sekimori.dev is forbidden: User \"u\" cannot list"));
    for place in [Where::All, Where::One("mail")] {
        let trouble = status::said(&cluster, place, &SCREEN).await.expect_err("forbidden");
        assert!(trouble.forbidden && trouble.text.contains("sekimori-viewer") && trouble.text.contains("User \"u\" cannot list"), "{trouble}");
    }
}

#[tokio::test]
async fn who_may_see_one_namespace_sees_that_one() {
    let (cluster, _) = cluster(|uri| match uri {
        uri if uri.starts_with(&format!("{GROUP}/tenantdomains")) => refusal(403, "Forbidden", "no"),
        uri if uri.contains("/namespaces/mail/tenantdomains") => list(vec![tenant("mail", "one", "True")]),
        uri if uri.contains("/namespaces/mail/gatewayfleets") => list(vec![fleet("mail", "inbound")]),
        uri if uri.contains("engines") => list(vec![]),
        _ => refusal(403, "Forbidden", "no"),
    });
    let said = status::said(&cluster, Where::One("mail"), &SCREEN).await.expect("an answer");
    assert!(said.text.contains("mail/inbound  Serving  2/2") && said.text.contains("only tenants of this namespace are counted"), "{}", said.text);
}

#[tokio::test]
async fn an_api_server_that_is_away_or_busy() {
    let away = Cluster {
        client: kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().expect("a URL"))).expect("a client"),
        namespace: "mail".to_owned(),
        chosen: false,
    };
    let trouble = status::said(&away, Where::All, &SCREEN).await.expect_err("nobody there");
    assert!(trouble.code == EXIT_CLUSTER && trouble.text.contains("does not answer") && trouble.text.contains("get-contexts"), "{trouble}");
    let (busy, _) = cluster(|_| refusal(429, "TooManyRequests", "slow down"));
    let trouble = tenants::list(&busy, Where::All, &Wanted::default(), &SCREEN).await.expect_err("busy");
    assert!(trouble.text.contains("try again in a moment"), "{trouble}");
}

#[tokio::test]
async fn tenants_are_listed_and_shown() {
    let (cluster, _) = cluster(|uri| match uri {
        uri if uri.contains("/tenantdomains/one") => (200, tenant("mail", "one", "True")),
        uri if uri.contains("/tenantdomains/") => refusal(404, "NotFound", "tenantdomains.sekimori.dev \"x\" not found"),
        uri if uri.contains("tenantdomains") => list(vec![tenant("mail", "one", "True"), tenant("mail", "two", "False")]),
        uri if uri.contains("/gatewayfleets/inbound") => (200, fleet("mail", "inbound")),
        _ => refusal(403, "Forbidden", "no"),
    });
    let wanted = Wanted { fleet: Some("inbound".to_owned()), not_ready: true };
    let said = tenants::list(&cluster, Where::One("mail"), &wanted, &SCREEN).await.expect("a list");
    assert!(said.text.contains("mail/two") && !said.text.contains("mail/one"), "{}", said.text);
    let said = tenants::show(&cluster, "one", &SCREEN).await.expect("a tenant");
    assert!(said.text.contains("antiVirus.infected") && said.text.contains("who holds the domains was not read"), "{}", said.text);
    let trouble = tenants::show(&cluster, "x", &SCREEN).await.expect_err("no such tenant");
    assert!(trouble.code == EXIT_PARTIAL && trouble.text.contains("no TenantDomain x in namespace mail"), "{trouble}");
}

#[tokio::test]
async fn the_fleet_that_is_meant_and_its_pods() {
    let (one, _) = cluster(|uri| match uri {
        uri if uri.contains("gatewayfleets") => list(vec![fleet("mail", "inbound")]),
        uri if uri.contains("pods") && uri.contains("fleet%3Dinbound") => list(vec![pod("inbound-gateway-0", true), pod("inbound-gateway-1", false)]),
        _ => list(vec![]),
    });
    let found = pods(&one, &FleetArgs { fleet: None }).await.expect("the only fleet");
    assert_eq!(found.running, ["inbound-gateway-0"]);
    assert!(found.others[0].pod == "inbound-gateway-1" && found.others[0].error.contains("Pending, ImagePullBackOff"), "{found:?}");
    let (two, _) = cluster(|_| list(vec![fleet("mail", "inbound"), fleet("mail", "outbound")]));
    let trouble = pods(&two, &FleetArgs { fleet: None }).await.expect_err("which one?");
    assert!(trouble.code == EXIT_USAGE && trouble.text.contains("--fleet: inbound, outbound"), "{trouble}");
    let (none, _) = cluster(|uri| if uri.contains("gatewayfleets/") { refusal(404, "NotFound", "not found") } else { list(vec![]) });
    let trouble = pods(&none, &FleetArgs { fleet: Some("inbuond".to_owned()) }).await.expect_err("no such fleet");
    assert!(trouble.text.contains("no GatewayFleet inbuond in namespace mail"), "{trouble}");
}

/// Gateways without a cluster. Notes what was run where, and how many at once.
struct Fake {
    answer: fn(&str, &[String]) -> Result<Output, Trouble>,
    ran: Mutex<Vec<(String, String)>>,
    at_once: Mutex<(usize, usize)>,
}

impl Fake {
    fn new(answer: fn(&str, &[String]) -> Result<Output, Trouble>) -> Self {
        Self { answer, ran: Mutex::new(vec![]), at_once: Mutex::new((0, 0)) }
    }
}

impl Runner for Fake {
    async fn run(&self, pod: &str, command: &[String]) -> Result<Output, Trouble> {
        self.ran.lock().expect("no test panics with it").push((pod.to_owned(), command.join(" ")));
        let count = |by: isize| {
            let mut at_once = self.at_once.lock().expect("no test panics with it");
            at_once.0 = at_once.0.saturating_add_signed(by);
            at_once.1 = at_once.1.max(at_once.0);
        };
        count(1);
        tokio::time::sleep(Duration::from_millis(1)).await;
        count(-1);
        if pod == "gw-hangs" {
            std::future::pending::<()>().await;
        }
        (self.answer)(pod, command)
    }
}

fn ok(text: &str) -> Result<Output, Trouble> {
    Ok(Output { stdout: text.as_bytes().to_vec(), stderr: String::new(), code: 0 })
}

const ID: &str = "01M89CDEJW09FZZ61H1J9A76TS";
const OTHER: &str = "01M89CDEKX3EQC9KDZJXEWHVJV";

/// gw-0 has the one message, gw-1 none.
fn gateway(pod: &str, command: &[String]) -> Result<Output, Trouble> {
    let verb = command.get(2).map(String::as_str).unwrap_or_default();
    match (pod, verb) {
        ("gw-0", "list") => ok(&format!(
            "{{\"messages\":[{{\"id\":\"{ID}\",\"sub\":0,\"tenant\":\"a/b\",\"purpose\":\"deliver\",\"state\":\"held\",\"recipients\":[0],\"sizeBytes\":1,\"receivedMs\":1,\
             \"dueMs\":null,\"route\":null,\"error\":null}}],\"now\":2,\"complete\":true}}"
        )),
        (_, "list") => ok("{\"messages\":[],\"now\":2,\"complete\":true}"),
        ("gw-0", "show") => ok("{\"envelope\":{}}"),
        ("gw-0", "retry") => ok("{\"count\":1,\"inFlight\":0,\"ids\":[]}"),
        (_, "retry") => ok("{\"count\":0,\"inFlight\":0,\"ids\":[]}"),
        _ => Err(Trouble::one("unexpected")),
    }
}

fn running(names: &[&str]) -> Pods {
    Pods { running: names.iter().map(|name| (*name).to_owned()).collect(), others: vec![] }
}

#[tokio::test]
async fn ids_are_found_in_the_right_pod_and_changed_only_there() {
    let fake = Fake::new(gateway);
    let selection = Selection { ids: vec![ID.to_owned(), OTHER.to_owned()], ..Selection::default() };
    let said = operate_in::<Queued>(&fake, &running(&["gw-0", "gw-1"]), Store::Queue, "retry", &selection, false, &SCREEN).await.expect("done");
    assert_eq!((said.code, said.text.as_str()), (EXIT_PARTIAL, "1 message changed\n"));
    assert!(said.errors.contains(&format!("{OTHER}: no gateway has it")), "{said:?}");
    let retries: Vec<(String, String)> = fake.ran.lock().expect("ours").iter().filter(|(_, command)| command.contains("retry")).cloned().collect();
    assert_eq!(retries, [("gw-0".to_owned(), format!("sekimori-mta queue retry --output json {ID}"))]);

    let said = show_in::<Queued>(&fake, &running(&["gw-0", "gw-1"]), Store::Queue, &[ID.to_owned()], false, &SCREEN).await.expect("done");
    assert!(said.code == EXIT_OK && said.text.starts_with("gateway gw-0\n"), "{said:?}");
}

#[tokio::test]
async fn without_ids_every_gateway_is_asked_and_who_is_not_reached_is_named() {
    let fake = Fake::new(gateway);
    let mut pods = running(&["gw-0", "gw-1"]);
    pods.others.push(Unreachable { pod: "gw-2".to_owned(), error: "its container mta does not run".to_owned() });
    let all = Selection { all: true, ..Selection::default() };
    let said = operate_in::<Queued>(&fake, &pods, Store::Queue, "retry", &all, true, &SCREEN).await.expect("done");
    assert!(said.code == EXIT_PARTIAL && said.text.starts_with("1 message would be changed\n") && said.errors.contains("gw-2"), "{said:?}");
    let ran = fake.ran.lock().expect("ours");
    assert!(ran.iter().all(|(_, command)| command == "sekimori-mta queue retry --output json --all --dry-run") && ran.len() == 2, "{ran:?}");
}

#[tokio::test]
async fn a_few_at_once_each_with_its_deadline() {
    let fake = Fake::new(gateway);
    let mut names: Vec<String> = (0..30).map(|number| format!("gw-{number:02}")).collect();
    names.push("gw-hangs".to_owned());
    let command = Call::List(vec![]).command(Store::Queue);
    let jobs = names.iter().map(|name| (name.clone(), command.clone())).collect();
    let replies = run_all(&fake, jobs, Duration::from_secs(1)).await.expect("replies");
    assert_eq!(replies.iter().map(|reply| reply.pod.clone()).collect::<Vec<_>>(), names, "in the order of the pods");
    assert_eq!(replies[30].outcome, Err("no answer in 1 s".to_owned()));
    assert!(replies.iter().take(30).all(|reply| reply.outcome.is_ok()));
    assert_eq!(fake.at_once.lock().expect("ours").1, 8);
}

#[tokio::test]
async fn who_may_not_exec_is_told_once() {
    let forbidden = Fake::new(|_, _| Err(Trouble { forbidden: true, ..Trouble::cluster("you may not exec in pods: role sekimori-fleet-admin") }));
    let jobs = vec![("gw-0".to_owned(), vec![]), ("gw-1".to_owned(), vec![])];
    let trouble = run_all(&forbidden, jobs, Duration::from_secs(1)).await.expect_err("forbidden");
    assert!(trouble.code == EXIT_CLUSTER && trouble.text.contains("sekimori-fleet-admin"), "{trouble}");
}

/// Secrets are planted wherever people put them; none may be in any file, and no Secret may even be asked for.
#[tokio::test]
async fn the_bundle_holds_no_planted_secret() {
    let (cluster, asked) = cluster(|uri| {
        let mut annotated = fleet("mail", "inbound");
        annotated["metadata"]["annotations"] = json!({
            "kubectl.kubernetes.io/last-applied-configuration": "{\"x\":\"hunter2\"}", "example.net/hook": "https://u:hunter2@h/" });
        annotated["spec"]["podTemplate"] = json!({ "spec": { "containers": [{ "name": "mta", "env": [{ "name": "P", "value": "hunter2" }] }] } });
        annotated["status"]["conditions"] = json!([{ "type": "Ready", "status": "False", "reason": "X", "message": "s3://k:hunter2@bucket failed",
            "lastTransitionTime": "2026-11-25T08:00:00Z", "observedGeneration": 1 }]);
        match uri {
            uri if uri.contains("/version") => (
                200,
                json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.3", "gitCommit": "c", "gitTreeState": "clean",
                "buildDate": "d", "goVersion": "g", "compiler": "gc", "platform": "linux/amd64" }),
            ),
            uri if uri.contains("/log") => (200, json!("starting\npassword=hunter2\nAuthorization: Bearer hunter2hunter2\n")),
            uri if uri.contains("engineversions") => {
                list(vec![json!({ "metadata": { "namespace": "mail", "name": "v" }, "spec": { "parameters": { "KEY": "hunter2" } } })])
            }
            uri if uri.contains("gatewayfleets") => list(vec![annotated]),
            uri if uri.contains("configmaps") => {
                list(vec![json!({ "metadata": { "namespace": "mail", "name": "c" }, "data": { "password": "hunter2", "ca.crt": "public" } })])
            }
            uri if uri.contains("events") => list(vec![
                json!({ "metadata": { "namespace": "mail", "name": "e" }, "involvedObject": { "apiVersion": "sekimori.dev/v1alpha1" },
                "message": "token=hunter2" }),
                json!({ "metadata": { "name": "stranger" }, "message": "hunter2" }),
            ]),
            uri if uri.contains("pods") && !uri.contains("name%3Dsekimori-mta") => list(vec![pod("inbound-gateway-0", true)]),
            uri if uri.contains("domaingrants") => refusal(403, "Forbidden", "no"),
            _ => list(vec![]),
        }
    });
    let (files, problems) = report::gather(&cluster, Where::All, 100).await.expect("a bundle");
    let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for path in [
        "README.txt",
        "versions.json",
        "resources/gatewayfleets.yaml",
        "pods/gateways.yaml",
        "logs/mail.inbound-gateway-0.mta.log",
        "conditions.txt",
        "status.txt",
        "events.yaml",
    ] {
        assert!(paths.contains(&path), "{path} is missing in {paths:?}");
    }
    for file in &files {
        let text = String::from_utf8_lossy(&file.content);
        assert!(!text.contains("hunter2"), "{}: {text}", file.path);
    }
    let text =
        |path: &str| files.iter().find(|file| file.path == path).map(|file| String::from_utf8_lossy(&file.content).into_owned()).unwrap_or_default();
    assert!(text("resources/configmaps.yaml").contains("ca.crt: public"), "what is no secret stays");
    assert!(text("conditions.txt").contains("GatewayFleet mail/inbound Ready=False X"), "{}", text("conditions.txt"));
    assert!(text("events.yaml").contains("token=REDACTED") && !text("events.yaml").contains("stranger"));
    assert!(problems.iter().any(|problem| problem.contains("domaingrants")) && text("README.txt").contains("domaingrants"), "{problems:?}");
    assert!(!asked.lock().expect("ours").iter().any(|uri| uri.contains("secrets")), "Secrets are never read");
}
