//! The two containers of each engine in the pods. A slot sees its own socket directory, its scratch directory and its signatures: no secret, no spool, no
//! token, no other engine. Slots have no probes: the gateway judges engines itself, and a pod must not become unready because an engine is.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, ResourceRequirements, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sekimori_crds::v1alpha1::common::Resources;
use sekimori_crds::v1alpha1::engine::{InPod, SignaturesType};

use super::pod::{mount, restricted};
use crate::fleet::{Fleet, FleetEngine};
use crate::names::{self, Slot, paths};
use crate::settings::Settings;

/// What an idle slot reserves unless the Engine says otherwise.
const IDLE_MEMORY: &str = "8Mi";

/// Both slots of every engine in the pods: `a` with the recorded version, `b` idle.
pub(super) fn containers(fleet: &Fleet<'_>, settings: &Settings) -> Vec<Container> {
    let mut containers = vec![];
    for (engine, in_pod, version) in fleet.in_pod() {
        for slot in Slot::ALL {
            let image = if slot == Slot::A { &version.spec.image.0 } else { &settings.idle_image };
            let parameters = version.spec.parameters.keys().map(|parameter| parameter_variable(engine.name, slot, parameter));
            let mut env = vec![variable("SEKIMORI_ENGINE_SOCKET", &format!("{}/{}", paths::SLOT, paths::SOCKET_FILE))];
            if let Some(mirror) = in_pod.signatures.as_ref().and_then(|signatures| signatures.mirror.as_ref()) {
                env.push(variable("SEKIMORI_SIGNATURES_MIRROR", &mirror.url));
            }
            env.extend(parameters);
            containers.push(Container {
                name: names::slot_container(engine.name, slot),
                image: Some(image.clone()),
                env: Some(env),
                resources: Some(resources(in_pod, slot, settings)),
                security_context: Some(restricted()),
                volume_mounts: Some(mounts(engine, in_pod, slot)),
                ..Container::default()
            });
        }
    }
    containers
}

/// The parameters of the versions that new pods run, as annotations of the pod.
pub(super) fn annotations(fleet: &Fleet<'_>) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    for (engine, _, version) in fleet.in_pod() {
        for (parameter, value) in &version.spec.parameters {
            annotations.insert(names::parameter_annotation(engine.name, Slot::A, parameter), value.0.clone());
        }
    }
    annotations
}

/// The volumes that only slots have.
pub(super) fn volumes(fleet: &Fleet<'_>) -> Vec<Volume> {
    let mut volumes = vec![];
    if fleet.in_pod().next().is_some() {
        let empty = |name: &str| Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
        volumes.extend([empty(names::ENGINES_VOLUME), empty(names::SCRATCH_VOLUME)]);
    }
    for (engine, in_pod, _) in fleet.in_pod() {
        if let Some(claim) = in_pod.signatures.as_ref().and_then(|signatures| signatures.volume.as_ref()) {
            let source = PersistentVolumeClaimVolumeSource { claim_name: claim.claim_name.0.clone(), read_only: Some(true) };
            volumes.push(Volume { name: names::signatures_volume(engine.name), persistent_volume_claim: Some(source), ..Volume::default() });
        }
    }
    volumes
}

fn mounts(engine: &FleetEngine<'_>, in_pod: &InPod, slot: Slot) -> Vec<VolumeMount> {
    let path = names::slot_path(engine.name, slot);
    let below = |volume: &str, at: &str, sub_path: String| VolumeMount { sub_path: Some(sub_path), ..mount(volume, at) };
    let mut mounts = vec![below(names::ENGINES_VOLUME, paths::SLOT, path.clone()), below(names::SCRATCH_VOLUME, "/tmp", format!("{path}/tmp"))];
    match in_pod.signatures.as_ref().map_or(SignaturesType::InImage, |signatures| signatures.kind) {
        SignaturesType::InImage => {}
        SignaturesType::Mirror => mounts.push(below(names::SCRATCH_VOLUME, paths::SIGNATURES, format!("{path}/signatures"))),
        SignaturesType::Volume => {
            mounts.push(VolumeMount { read_only: Some(true), ..mount(&names::signatures_volume(engine.name), paths::SIGNATURES) });
        }
    }
    mounts
}

/// Limits are the engine's in both slots, because a limit cannot be lowered safely in a running pod. The idle slot reserves little, and more only while a
/// version warms up in it; where requests cannot be resized, it reserves everything at once.
fn resources(in_pod: &InPod, slot: Slot, settings: &Settings) -> ResourceRequirements {
    let quantities = |map: &BTreeMap<String, sekimori_crds::v1alpha1::text::Quantity>| {
        let map: BTreeMap<String, Quantity> = map.iter().map(|(name, quantity)| (name.clone(), Quantity(quantity.0.clone()))).collect();
        (!map.is_empty()).then_some(map)
    };
    let nothing = Resources::default();
    let at_work = in_pod.resources.as_ref().unwrap_or(&nothing);
    let mut requests = match &in_pod.idle_resources {
        _ if slot == Slot::A || !settings.resize => quantities(&at_work.requests),
        Some(idle) => quantities(&idle.requests),
        None => None,
    };
    if slot == Slot::B && settings.resize {
        // What has a limit and no request would be requested up to its limit.
        let requests = requests.get_or_insert_default();
        let unsaid: Vec<&str> = at_work.limits.keys().map(String::as_str).chain(["memory"]).filter(|name| !requests.contains_key(*name)).collect();
        requests.extend(unsaid.into_iter().map(|name| (name.to_owned(), Quantity(if name == "memory" { IDLE_MEMORY } else { "0" }.to_owned()))));
    }
    ResourceRequirements { requests, limits: quantities(&at_work.limits), claims: None }
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

fn parameter_variable(engine: &str, slot: Slot, parameter: &str) -> EnvVar {
    let field_path = format!("metadata.annotations['{}']", names::parameter_annotation(engine, slot, parameter));
    let source = EnvVarSource { field_ref: Some(ObjectFieldSelector { api_version: None, field_path }), ..EnvVarSource::default() };
    EnvVar { name: parameter.to_owned(), value: None, value_from: Some(source) }
}
