//! `run`: puts the parts together. A standby listens and waits for the Lease; the leader works until it is told to stop, or loses it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use prometheus::Registry;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::RunArgs;
use crate::io::admin::{self, Admin};
use crate::io::cluster::{client, if_there, patch_metadata, request};
use crate::io::definitions;
use crate::io::events::Events;
use crate::io::fleet;
use crate::io::hub::{EpochStore, Hub};
use crate::io::lease;
use crate::io::metrics::Metrics;
use crate::io::stream::{KubeReviewer, StreamMetrics, StreamServer};
use crate::io::tenants;
use crate::names::{LEADER_LABEL, MANAGER};
use crate::settings::Settings;

/// The certificates that vouch for us are read again this often.
const AUTHORITY_EVERY: Duration = Duration::from_secs(10);
/// Gauges of the stream are brought up to date this often.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Something cannot be begun, or the Lease was lost: then the process ends, so that nothing of a former leader goes on.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let registry = Registry::new();
    let (metrics, stream_metrics) = (Arc::new(Metrics::new(&registry)?), Arc::new(StreamMetrics::new(&registry)?));
    let ready = Arc::new(AtomicBool::new(false));
    let admin = admin::serve(args.admin, Admin { registry: registry.clone(), ready: Arc::clone(&ready) }).await?;
    let client = client().await.context("the cluster: run in a pod with a ServiceAccount, or set KUBECONFIG")?;
    let reviewer = Arc::new(KubeReviewer::new(client.clone(), args.audience.clone()));
    let server = StreamServer::start(args.listen, args.tls.clone(), reviewer, Arc::clone(&stream_metrics)).await?;
    tracing::info!(event = "started", listen = %server.address(), %admin, "waiting for the Lease {}/{}", args.namespace, args.lease);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stop);
    let settings = Arc::new(ArcSwap::from_pointee(settings(&args)?));
    wait_for_api(&client, &ready);
    let held = tokio::select! {
        held = lease::acquire(&client, &args.namespace, &args.lease, &args.pod) => Arc::new(held),
        () = &mut stop => return Ok(()),
    };
    metrics.leader.set(1);
    let hub = Hub::new(held.epoch().await, Arc::clone(&held) as Arc<dyn EpochStore>);
    let events = Events::new(client.clone(), MANAGER, Some(args.pod.clone()));
    let us = us(&client, &args).await;
    let fleets = fleet::Context {
        client: client.clone(),
        hub: hub.clone(),
        settings: Arc::clone(&settings),
        namespaces: args.watch_namespaces.clone(),
        events: events.clone(),
        metrics: Arc::clone(&metrics),
    };
    let tenants = tenants::Context {
        client: client.clone(),
        hub: hub.clone(),
        operator_namespace: args.namespace.clone(),
        installation_id: args.installation_id.clone(),
        events: events.clone(),
        namespaces: args.watch_namespaces.clone(),
        resolvers: args.resolvers.clone(),
        metrics: Arc::clone(&metrics),
    };
    let work = {
        let (client, leading, server) = (client.clone(), hub.clone(), &server);
        async move {
            // The watches of kinds that are not there yet would only fail; those of older or newer ones work as far as they can.
            definitions::wait_for_definitions(&client).await;
            tokio::select! {
                () = definitions::compare_for_ever(&client, &events, &us) => anyhow::bail!("nobody looks at the definitions any more"),
                ended = fleet::run(fleets, || server.lead(leading)) => ended.context("fleets"),
                ended = tenants::run(tenants) => ended.context("tenants"),
            }
        }
    };
    tokio::spawn(watch_authority(args.tls.clone(), settings));
    tokio::spawn(gauges(hub.clone(), stream_metrics));
    tokio::spawn(mark_leader(client.clone(), args.namespace.clone(), args.pod.clone()));
    tokio::select! {
        () = Arc::clone(&held).keep() => anyhow::bail!("the Lease {}/{} was lost", args.namespace, args.lease),
        ended = work => ended,
        () = &mut stop => {
            held.release().await;
            Ok(())
        }
    }
}

/// This pod, for events about the operator itself. Outside a pod there is none to look at, and the events stand for themselves.
async fn us(client: &Client, args: &RunArgs) -> ObjectReference {
    let api: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let uid = if_there(|| format!("Pod {}/{}", args.namespace, args.pod), api.get_metadata(&args.pod))
        .await
        .ok()
        .flatten()
        .and_then(|pod| pod.metadata.uid);
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(args.namespace.clone()),
        name: Some(args.pod.clone()),
        uid,
        ..ObjectReference::default()
    }
}

fn settings(args: &RunArgs) -> anyhow::Result<Settings> {
    let (_, port) = args.stream_address.rsplit_once(':').context("--stream-address: write HOST:PORT")?;
    port.parse::<u16>().with_context(|| format!("--stream-address: `{port}` is no port"))?;
    Ok(Settings {
        gateway_image: args.gateway_image.clone(),
        idle_image: args.idle_image.clone(),
        stream_address: args.stream_address.clone(),
        audience: args.audience.clone(),
        authority_pem: authority(&args.tls)?,
        namespace: args.namespace.clone(),
        pod_labels: vec![("app.kubernetes.io/name".to_owned(), MANAGER.to_owned())],
        stream_port: args.listen.port(),
        bind: args.bind,
        resize: args.resize,
        cluster_networks: args.cluster_networks.clone(),
    })
}

fn authority(tls: &Path) -> anyhow::Result<String> {
    let path = tls.join("ca.crt");
    std::fs::read_to_string(&path).with_context(|| format!("{}: the certificates that vouch for the stream", path.display()))
}

async fn watch_authority(tls: std::path::PathBuf, settings: Arc<ArcSwap<Settings>>) {
    loop {
        tokio::time::sleep(AUTHORITY_EVERY).await;
        match authority(&tls) {
            Ok(authority_pem) if authority_pem != settings.load().authority_pem => {
                settings.rcu(|before| Settings { authority_pem: authority_pem.clone(), ..Settings::clone(before) });
                tracing::info!(event = "authority", "the certificates that vouch for the stream were replaced: gateways get them");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = format!("{error:#}"), "ca.crt cannot be read again: gateways keep the one they have"),
        }
    }
}

async fn gauges(hub: Hub, metrics: Arc<StreamMetrics>) {
    loop {
        metrics.observe(&hub);
        tokio::time::sleep(GAUGES_EVERY).await;
    }
}

/// Ready once the API server answered.
fn wait_for_api(client: &Client, ready: &Arc<AtomicBool>) {
    let (client, ready) = (client.clone(), Arc::clone(ready));
    tokio::spawn(async move {
        loop {
            match request(|| "the API server's version".to_owned(), client.apiserver_version()).await {
                Ok(_) => return ready.store(true, Ordering::Relaxed),
                Err(error) => tracing::warn!(%error, "the API server does not answer"),
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    });
}

/// The Service of the stream leads to the leader: our pod gets the label, others lose it. Outside a pod there is nothing to label.
async fn mark_leader(client: Client, namespace: String, me: String) {
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    loop {
        match label_pods(&api, &me).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "the leader's pod could not be labelled: gateways find it only after that"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn label_pods(api: &Api<Pod>, me: &str) -> Result<(), crate::io::cluster::ClusterError> {
    let params = ListParams::default().labels(&format!("app.kubernetes.io/name={MANAGER},{LEADER_LABEL}=true"));
    let marked = if_there(|| "the operator's pods".to_owned(), api.list(&params)).await?;
    for pod in marked.iter().flat_map(|list| &list.items).filter(|pod| pod.name_any() != me) {
        patch_metadata(api, &pod.name_any(), pod.metadata.uid.as_deref(), json!({"labels": {LEADER_LABEL: null}})).await?;
    }
    patch_metadata(api, me, None, json!({"labels": {LEADER_LABEL: "true"}})).await
}
