//! Last step: what is said about a fleet. A status is written only when it differs; what changed in its conditions is an event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Resource as _};
use sekimori_crds::compile::Problem;
use sekimori_crds::v1alpha1::gateway_fleet::GatewayFleetStatus;
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use tokio::time::Instant;

use super::apply::pod_state;
use super::{Controller, Memory, engines};
use crate::distribution::FLEET_KEY;
use crate::io::cluster::{ClusterError, apply_status};
use crate::io::events::News;
use crate::io::hub::{FleetKey, FleetState, Reach};
use crate::measured::{self, Gateway, Newest};
use crate::plan::Pins;
use crate::status::{BAD_IF_TRUE, FleetReport, fleet_status, troubles};
use crate::update::{Observation, Serving, Step};

/// What a report is made of.
pub(super) struct Input<'a> {
    pub(super) key: &'a FleetKey,
    pub(super) fleet: &'a GatewayFleet,
    pub(super) problems: &'a [Problem],
    pub(super) pins: Option<&'a Pins>,
    pub(super) seen: &'a Observation,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) step: Option<&'a Step>,
    pub(super) state: &'a FleetState,
    pub(super) now_ms: u64,
}

/// Figures that always move are written this often.
const FIGURES_EVERY: Duration = Duration::from_secs(10);

pub(super) async fn write(
    controller: &Controller,
    input: &Input<'_>,
    all_engines: &BTreeMap<&str, &Engine>,
    versions: &BTreeMap<&str, &EngineVersion>,
    memory: &mut Memory,
) -> Result<(), ClusterError> {
    let position = input.state.position.clone().unwrap_or_default();
    if memory.newest.as_ref().is_none_or(|newest| newest.position != position) {
        memory.newest = Some(Newest { position, since_ms: input.now_ms });
    }
    let gateways: Vec<Gateway<'_>> = input
        .seen
        .pods
        .iter()
        .map(|pod| {
            let state = pod_state(input.state, &pod.uid);
            Gateway {
                ordinal: pod.ordinal,
                created_ms: pod.created_ms,
                serves: pod.serving == Serving::Yes && pod.drain.is_none(),
                connected: state.is_some_and(|state| state.connected),
                since_ms: state.map_or(0, |state| state.since_ms),
                applied: state.and_then(|state| state.applied.as_ref()),
                report: state.and_then(|state| state.report.as_ref()).map(|(at, report)| (*at, &**report)),
            }
        })
        .collect();
    // What the leader before us wrote is what the gateways have: it stays until all of that is here, also for the leader after us.
    let before = input.fleet.status.as_ref().and_then(|status| status.tenants).and_then(|tenants| usize::try_from(tenants).ok());
    let tenants = before.filter(|_| !input.state.has_all).unwrap_or(input.state.tenants);
    let mut measured = measured::measured(&gateways, memory.newest.as_ref(), tenants, input.state.removals_waiting, input.now_ms);
    if let Reach::Rejected(rejection) = controller.context.hub.reach(input.key, FLEET_KEY) {
        measured.refused = Some(rejection.message);
    }
    let troubles = troubles(input.pods.iter().map(|pod| &**pod), input.now_ms);
    let report = FleetReport {
        fleet: input.fleet,
        problems: input.problems,
        pins: input.pins,
        seen: input.seen,
        step: input.step,
        measured: &measured,
        troubles: &troubles,
    };
    let status = fleet_status(&report, input.now_ms);
    if worth_a_write(input.fleet.status.as_ref(), &status, memory.status_written) {
        let api: Api<GatewayFleet> = Api::namespaced(controller.context.client.clone(), &input.key.namespace);
        apply_status(&api, &input.key.name, &status).await?;
        memory.status_written = Some(Instant::now());
        controller.context.metrics.status_writes.with_label_values(&["GatewayFleet"]).inc();
        let before = input.fleet.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        publish(controller, input.fleet, before, &status.conditions).await;
    }
    engines::report(controller, input, all_engines, versions, memory).await
}

/// Whether a status differs by more than figures that always move, or their time has come.
fn worth_a_write(before: Option<&GatewayFleetStatus>, now: &GatewayFleetStatus, written: Option<Instant>) -> bool {
    let Some(before) = before else { return true };
    let calm = |status: &GatewayFleetStatus| GatewayFleetStatus { runnable_backlog: None, oldest_message_seconds: None, ..status.clone() };
    if calm(before) != calm(now) {
        return true;
    }
    before != now && written.is_none_or(|written| written.elapsed() >= FIGURES_EVERY)
}

/// One event for each condition that changed. An event that cannot be written is no reason to stop.
async fn publish(controller: &Controller, fleet: &GatewayFleet, before: &[Condition], after: &[Condition]) {
    for condition in after {
        let known = before.iter().find(|known| known.type_ == condition.type_);
        if known.is_some_and(|known| known.status == condition.status && known.reason == condition.reason) {
            continue;
        }
        let good = (condition.status == "True") != BAD_IF_TRUE.contains(&condition.type_.as_str());
        if known.is_none() && good {
            continue;
        }
        let note = format!("{}: {}", condition.type_, condition.message);
        let news = News { good, reason: condition.reason.clone(), action: condition.type_.clone(), note };
        controller.context.events.say(&news, &fleet.object_ref(&())).await;
    }
}
