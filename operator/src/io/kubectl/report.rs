//! Gathering the support bundle. What cannot be read is named in it; only a cluster that cannot be asked at all ends it.

use std::io::Write as _;

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Event, PersistentVolumeClaim, Pod, Service};
use kube::api::LogParams;
use kube::{Api, Resource};
use sekimori_crds::v1alpha1::{DomainGrant, Engine, EngineRollout, EngineVersion, GatewayFleet, MailPolicy, TenantDomain};
use serde_json::{Value, json};

use super::cluster::{Cluster, Where, within};
use super::exec::{Gateways, run_all};
use super::kept::pods;
use super::tenants::OPERATOR_LABELS;
use crate::io::clock;
use crate::kubectl::cli::FleetArgs;
use crate::kubectl::messages::{Call, Store, figures};
use crate::kubectl::report::{File, LOG_BYTES_MAX, LOGGED_PODS_MAX, OBJECTS_MAX, conditions, index, log_file, objects_file};
use crate::kubectl::table::{Paint, harmless};
use crate::kubectl::trouble::{Asked, Trouble};
use crate::kubectl::{EXIT_OK, EXIT_PARTIAL, Said, redact};
use crate::names::{FLEET_LABEL, MANAGER};

/// Logs that are read at once.
const LOGS_AT_ONCE: usize = 4;
/// Queue figures are waited for so long.
const FIGURES_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

struct Bundle<'a> {
    cluster: &'a Cluster,
    place: Where<'a>,
    files: Vec<File>,
    problems: Vec<String>,
}

/// Gathers and writes it.
pub(crate) async fn write(cluster: &Cluster, out: Option<String>, tail: u32) -> Result<Said, Trouble> {
    let now_ms = clock::unix_ms();
    let place = if cluster.chosen { Where::One(&cluster.namespace) } else { Where::All };
    let (files, problems) = gather(cluster, place, tail).await?;
    let archive = packed(&files, now_ms).map_err(|error| super::trouble(format!("the bundle could not be packed: {error}")))?;
    let name = out.unwrap_or_else(|| format!("sekimori-report-{}.tar.gz", now_ms / 1000));
    let wrong = |error: std::io::Error| Trouble::one(format!("{name} could not be written: {error}; choose another place with -o"));
    let code = if problems.is_empty() { EXIT_OK } else { EXIT_PARTIAL };
    let errors = problems.iter().map(|problem| format!("not in the bundle: {}\n", harmless(problem))).collect();
    if name == "-" {
        std::io::stdout().lock().write_all(&archive).map_err(wrong)?;
        return Ok(Said { text: String::new(), errors, code });
    }
    std::fs::write(&name, &archive).map_err(wrong)?;
    Ok(Said { text: format!("{name}: {} files, {} bytes; look at it before you send it on\n", files.len(), archive.len()), errors, code })
}

/// Every file of the bundle, and what could not be read.
pub(crate) async fn gather(cluster: &Cluster, place: Where<'_>, tail: u32) -> Result<(Vec<File>, Vec<String>), Trouble> {
    let mut bundle = Bundle { cluster, place, files: vec![], problems: vec![] };
    bundle.versions().await?;
    let mut objects = bundle.resources().await;
    // The pods of the gateways, and the operator's, wherever it runs.
    let gateways = bundle.objects::<Pod>("pods/gateways.yaml", Some(FLEET_LABEL), place).await;
    let operator = bundle.objects::<Pod>("pods/operator.yaml", Some(OPERATOR_LABELS), Where::All).await;
    let logged: Vec<Logged> = gateways.iter().chain(&operator).take(LOGGED_PODS_MAX).flat_map(containers).collect();
    bundle.logs(logged, tail).await;
    let managed = format!("app.kubernetes.io/managed-by={MANAGER}");
    objects.extend(bundle.objects::<StatefulSet>("resources/statefulsets.yaml", Some(&managed), place).await);
    bundle.objects::<Service>("resources/services.yaml", Some(&managed), place).await;
    bundle.objects::<ConfigMap>("resources/configmaps.yaml", Some(&managed), place).await;
    bundle.objects::<PersistentVolumeClaim>("resources/persistentvolumeclaims.yaml", Some(FLEET_LABEL), place).await;
    bundle.events().await;
    bundle.files.push(File::new("conditions.txt", conditions(&objects)));
    bundle.figures(&objects).await;
    bundle.status().await;
    let first = index(&bundle.files, &bundle.problems);
    bundle.files.insert(0, first);
    Ok((bundle.files, bundle.problems))
}

impl Bundle<'_> {
    /// Also the question whether there is a cluster at all.
    async fn versions(&mut self) -> Result<(), Trouble> {
        let asked = Asked { verb: "get", resource: "version", group: "", namespace: None, name: None };
        let version = within(&asked, self.cluster.client.apiserver_version()).await?;
        let value = json!({ "plugin": env!("CARGO_PKG_VERSION"), "kubernetes": version.git_version, "platform": version.platform });
        self.files.push(File::new("versions.json", format!("{value:#}\n")));
        Ok(())
    }

    async fn resources(&mut self) -> Vec<Value> {
        let place = self.place;
        let mut all = self.objects::<GatewayFleet>("resources/gatewayfleets.yaml", None, place).await;
        all.extend(self.objects::<Engine>("resources/engines.yaml", None, place).await);
        all.extend(self.objects::<EngineVersion>("resources/engineversions.yaml", None, place).await);
        all.extend(self.objects::<EngineRollout>("resources/enginerollouts.yaml", None, place).await);
        all.extend(self.objects::<MailPolicy>("resources/mailpolicies.yaml", None, place).await);
        all.extend(self.objects::<TenantDomain>("resources/tenantdomains.yaml", None, place).await);
        all.extend(self.objects::<DomainGrant>("resources/domaingrants.yaml", None, Where::All).await);
        all
    }

    /// Objects of one kind, into one file.
    async fn objects<K: Resource<DynamicType = ()>>(&mut self, path: &str, labels: Option<&str>, place: Where<'_>) -> Vec<Value> {
        let mut objects = vec![];
        let read = self.cluster.each::<K>(place, labels, |object| {
            objects.push(json!(object));
            objects.len() <= OBJECTS_MAX
        });
        if let Err(trouble) = read.await {
            self.problems.push(trouble.text);
            return objects;
        }
        let cut = objects.len() > OBJECTS_MAX;
        objects.truncate(OBJECTS_MAX);
        self.files.push(objects_file(path, objects.clone(), cut));
        objects
    }

    /// Events about our kinds and pods.
    async fn events(&mut self) {
        let events = self.objects::<Event>("events.yaml", None, self.place).await;
        let ours = |event: &Value| {
            let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let about = text("/involvedObject/apiVersion");
            about.starts_with("sekimori.dev/") || text("/source/component").contains("sekimori") || text("/involvedObject/name").contains("-gateway-")
        };
        let kept: Vec<Value> = events.into_iter().filter(ours).collect();
        if self.files.pop_if(|file| file.path == "events.yaml").is_some() {
            self.files.push(objects_file("events.yaml", kept, false));
        }
    }

    async fn logs(&mut self, logged: Vec<Logged>, tail: u32) {
        let client = &self.cluster.client;
        let read: Vec<(Logged, Result<String, Trouble>)> = stream::iter(logged)
            .map(|logged| async move {
                let api: Api<Pod> = Api::namespaced(client.clone(), &logged.namespace);
                let params = LogParams {
                    container: Some(logged.container.clone()),
                    tail_lines: Some(i64::from(tail)),
                    limit_bytes: Some(LOG_BYTES_MAX),
                    previous: logged.previous,
                    timestamps: true,
                    ..LogParams::default()
                };
                let asked =
                    Asked { verb: "get the log of", resource: "pods", group: "", namespace: Some(&logged.namespace), name: Some(&logged.pod) };
                let log = within(&asked, api.logs(&logged.pod, &params)).await;
                (logged, log)
            })
            .buffered(LOGS_AT_ONCE)
            .collect()
            .await;
        for (Logged { namespace, pod, container, previous }, log) in read {
            let suffix = if previous { ".previous" } else { "" };
            match log {
                Ok(log) => self.files.push(log_file(format!("logs/{namespace}.{pod}.{container}{suffix}.log"), &log)),
                Err(trouble) => self.problems.push(format!("log of {namespace}/{pod} {container}{suffix}: {trouble}")),
            }
        }
    }

    /// Counts of each fleet's queue.
    async fn figures(&mut self, objects: &[Value]) {
        let text = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        for fleet in objects.iter().filter(|object| text(object, "/kind") == "GatewayFleet") {
            let (namespace, name) = (text(fleet, "/metadata/namespace"), text(fleet, "/metadata/name"));
            let cluster = Cluster { namespace: namespace.clone(), ..self.cluster.clone() };
            let figures = async {
                let pods = pods(&cluster, &FleetArgs { fleet: Some(name.clone()) }).await?;
                let command = Call::List(vec![]).command(Store::Queue);
                let jobs = pods.running.iter().map(|pod| (pod.clone(), command.clone())).collect();
                let replies = run_all(&Gateways { cluster: &cluster }, jobs, FIGURES_WITHIN).await?;
                Ok::<Value, Trouble>(json!({ "queue": figures(&replies), "notRunning": pods.others }))
            };
            match figures.await {
                Ok(mut value) => {
                    redact::object(&mut value);
                    self.files.push(File::new(format!("queues/{namespace}.{name}.json"), format!("{value:#}\n")));
                }
                Err(trouble) => self.problems.push(format!("queue of {namespace}/{name}: {trouble}")),
            }
        }
    }

    async fn status(&mut self) {
        match super::status::read(self.cluster, self.place).await {
            Ok(view) => self.files.push(File::new("status.txt", redact::text(&crate::kubectl::status::text(&view, Paint::default())))),
            Err(trouble) => self.problems.push(trouble.text),
        }
    }
}

/// A container whose log is read.
struct Logged {
    namespace: String,
    pod: String,
    container: String,
    previous: bool,
}

/// Every container of a pod that ran, and its run before where it was restarted.
fn containers(pod: &Value) -> Vec<Logged> {
    let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut logged = vec![];
    for status in pod.pointer("/status/containerStatuses").and_then(Value::as_array).into_iter().flatten() {
        let one = |previous| Logged {
            namespace: text(pod, "/metadata/namespace"),
            pod: text(pod, "/metadata/name"),
            container: text(status, "/name"),
            previous,
        };
        let restarts = status.get("restartCount").and_then(Value::as_u64).unwrap_or(0);
        if status.pointer("/state/waiting").is_none() {
            logged.push(one(false));
        }
        if restarts > 0 {
            logged.push(one(true));
        }
    }
    logged
}

/// The archive, all files below one directory.
fn packed(files: &[File], now_ms: u64) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(vec![], flate2::Compression::default()));
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now_ms / 1000);
        archive.append_data(&mut header, format!("sekimori-report/{}", file.path), file.content.as_slice())?;
    }
    archive.into_inner()?.finish()
}
