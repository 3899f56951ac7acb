//! Engines and EngineVersions: their statuses, and the finalizer of a version that is in use. Engines are looked at with the fleets of their namespace, whose
//! gateways say what is in their statuses; versions by themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Api;
use sekimori_crds::compile::check_engine;
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use tokio::time::Instant;

use super::report::Input;
use super::{Controller, Memory, until_next_look};
use crate::io::clock;
use crate::io::cluster::{ClusterError, apply_status, set_finalizer};
use crate::io::hub::FleetKey;
use crate::measured;
use crate::status::{engine_status, engine_version_status, in_use, troubles};

/// Finalizer of an EngineVersion that is in use.
const VERSION_FINALIZER: &str = "sekimori.dev/in-use";
/// Figures that always move are written this often.
const FIGURES_EVERY: Duration = Duration::from_secs(60);

/// What is said about the engines of a fleet's namespace. Figures are those of all fleets in it.
pub(super) async fn report(
    controller: &Controller,
    input: &Input<'_>,
    engines: &BTreeMap<&str, &Engine>,
    versions: &BTreeMap<&str, &EngineVersion>,
    memory: &mut Memory,
) -> Result<(), ClusterError> {
    let client = &controller.context.client;
    let guards: Vec<_> = controller.world.fleets.of(&input.key.namespace).collect();
    let fleets: Vec<&GatewayFleet> = guards.iter().filter_map(|guard| guard.0.as_ref().ok()).collect();
    let states: Vec<_> = fleets
        .iter()
        .map(|fleet| controller.context.hub.fleet(&FleetKey::new(&input.key.namespace, fleet.metadata.name.as_deref().unwrap_or_default())))
        .collect();
    let reports = || states.iter().flat_map(|state| state.pods.values()).filter_map(|(_, pod)| pod.report.as_ref()).map(|(_, report)| &**report);
    let api: Api<Engine> = Api::namespaced(client.clone(), &input.key.namespace);
    let figures = memory.engines_written.is_none_or(|written| written.elapsed() >= FIGURES_EVERY);
    if figures {
        memory.engines_written = Some(Instant::now());
    }
    let pods: Vec<_> = controller.world.pods.of(&input.key.namespace).collect();
    let troubles = troubles(pods.iter().map(|pod| &**pod), input.now_ms);
    for (name, engine) in engines {
        let mut measures = measured::engine(name, reports());
        if let Some(before) = engine.status.as_ref().filter(|_| !figures) {
            measures.versions.clone_from(&before.versions);
            measures.signature_age_seconds = before.signature_age_seconds;
        }
        let status = engine_status(engine, &check_engine(engine), versions, &fleets, measures, &troubles, input.now_ms);
        if engine.status.as_ref() != Some(&status) {
            apply_status(&api, name, &status).await?;
            controller.context.metrics.status_writes.with_label_values(&["Engine"]).inc();
        }
    }
    Ok(())
}

/// Looks at every EngineVersion whenever something changed that may use one, in namespaces without a fleet too: a finalizer that nobody takes off holds the
/// namespace. It ends with the task that awaits it.
pub(super) async fn work(controller: &Controller) -> std::convert::Infallible {
    loop {
        until_next_look(look(controller).await, &controller.due.versions, "an EngineVersion").await;
    }
}

async fn look(controller: &Controller) -> Result<(), ClusterError> {
    let world = &controller.world;
    let guards: Vec<_> = world.versions.all().collect();
    for version in guards.iter().filter_map(|guard| guard.0.as_ref().ok()) {
        match look_at(controller, version).await {
            // It was deleted meanwhile.
            Err(error) if error.category() == "not_found" => {}
            other => other?,
        }
    }
    Ok(())
}

async fn look_at(controller: &Controller, version: &EngineVersion) -> Result<(), ClusterError> {
    let (namespace, name) = (version.metadata.namespace.as_deref().unwrap_or_default(), version.metadata.name.as_deref().unwrap_or_default());
    let (engines, fleets): (Vec<_>, Vec<_>) = (controller.world.engines.of(namespace).collect(), controller.world.fleets.of(namespace).collect());
    let engines_read: Vec<&Engine> = engines.iter().filter_map(|guard| guard.0.as_ref().ok()).collect();
    let fleets_read: Vec<&GatewayFleet> = fleets.iter().filter_map(|guard| guard.0.as_ref().ok()).collect();
    // What cannot be read may use it.
    let all_read = engines_read.len() == engines.len() && fleets_read.len() == fleets.len();
    let api: Api<EngineVersion> = Api::namespaced(controller.context.client.clone(), namespace);
    let used = in_use(version, &engines_read, &fleets_read);
    let held = version.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == VERSION_FINALIZER);
    let goes = version.metadata.deletion_timestamp.is_some();
    if (used && !held && !goes) || (!used && held && all_read) {
        set_finalizer(&api, name, version.metadata.uid.as_deref(), used.then_some(VERSION_FINALIZER)).await?;
        if goes {
            return Ok(());
        }
    }
    if all_read {
        let status = engine_version_status(version, &engines_read, &fleets_read, clock::unix_ms());
        if version.status.as_ref() != Some(&status) {
            apply_status(&api, name, &status).await?;
            controller.context.metrics.status_writes.with_label_values(&["EngineVersion"]).inc();
        }
    }
    Ok(())
}
