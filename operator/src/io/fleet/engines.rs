//! Engines and EngineVersions: their statuses, and the finalizer of a version that is in use.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Api;
use sekimori_crds::compile::check_engine;
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use tokio::time::Instant;

use super::report::Input;
use super::{Controller, Memory};
use crate::io::cluster::{ClusterError, apply_status, set_finalizer};
use crate::io::hub::FleetKey;
use crate::measured;
use crate::status::{engine_status, engine_version_status, in_use, troubles};

/// Finalizer of an EngineVersion that is in use.
const VERSION_FINALIZER: &str = "sekimori.dev/in-use";
/// Figures that always move are written this often.
const FIGURES_EVERY: Duration = Duration::from_secs(60);

/// What is said about the engines and versions of a fleet's namespace. Figures are those of all fleets in it.
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
    let all: Vec<&Engine> = engines.values().copied().collect();
    let api: Api<EngineVersion> = Api::namespaced(client.clone(), &input.key.namespace);
    for (name, version) in versions {
        let used = in_use(version, &all, &fleets);
        let held = version.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == VERSION_FINALIZER);
        if used != held && !(used && version.metadata.deletion_timestamp.is_some()) {
            set_finalizer(&api, name, version.metadata.uid.as_deref(), used.then_some(VERSION_FINALIZER)).await?;
        }
        let status = engine_version_status(version, &all, &fleets, input.now_ms);
        if version.status.as_ref() != Some(&status) {
            apply_status(&api, name, &status).await?;
            controller.context.metrics.status_writes.with_label_values(&["EngineVersion"]).inc();
        }
    }
    Ok(())
}
