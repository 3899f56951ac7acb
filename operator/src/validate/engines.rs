//! The engines of a fleet, and the version of each that new pods run: the one recorded in the status, and for an engine that is new to the fleet the one
//! that its Engine names. A changed `versionRef` changes nothing here; it is reported, and a rollout (which is not there yet) would move the record.

use std::collections::{BTreeMap, BTreeSet};

use sekimori_crds::compile::Reason;
use sekimori_crds::v1alpha1::engine::{InPod, RuntimeType};
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use sekimori_crds::vocabulary::EngineProtocol;

use super::{Findings, World};
use crate::fleet::{FleetEngine, Place};
use crate::names;

pub(super) fn resolve<'a>(fleet: &'a GatewayFleet, namespace: &str, world: &World<'a>, findings: &mut Findings) -> Vec<FleetEngine<'a>> {
    let mut engines = vec![];
    let recorded: BTreeMap<&str, &str> =
        fleet.status.iter().flat_map(|status| &status.engines).filter_map(|engine| Some((&*engine.name, &**engine.version.as_ref()?))).collect();
    let mut directories = BTreeSet::new();
    for (index, reference) in fleet.spec.engines.iter().enumerate() {
        let path = format!("spec.engines[{index}]");
        let name: &'a str = &reference.name;
        let Some(engine) = world.engines.get(name).copied() else {
            let message = format!("there is no Engine {namespace}/{name}: add it, or remove this entry; until then the pods stay as they are");
            findings.error(path, Reason::UnresolvedRef, message);
            continue;
        };
        if !directories.insert(names::engine_directory(name)) {
            findings.error(path, Reason::Conflict, format!("`{name}` has the same short name as another engine: rename one of the two"));
            continue;
        }
        if let Some(place) = place(engine, name, &path, namespace, world, recorded.get(name).copied(), findings) {
            engines.push(FleetEngine { name, object: engine, place });
        }
    }
    engines
}

fn place<'a>(
    engine: &'a Engine,
    name: &str,
    path: &str,
    namespace: &str,
    world: &World<'a>,
    recorded: Option<&str>,
    findings: &mut Findings,
) -> Option<Place<'a>> {
    if engine.spec.protocol.kind == EngineProtocol::Builtin {
        return Some(Place::Builtin);
    }
    let runtime = engine.spec.runtime.as_ref();
    match runtime.map(|runtime| (runtime.kind, &runtime.in_pod, &runtime.external)) {
        Some((RuntimeType::External, _, Some(external))) => {
            if let Some(socket) = &external.socket {
                let message = format!(
                    "Engine {namespace}/{name} says socket `{socket}`, which is in no pod: mount it through spec.podTemplate, or use address, or runtime InPod"
                );
                findings.warn(path, Reason::Suspicious, message);
            }
            Some(Place::External(external))
        }
        Some((RuntimeType::InPod, Some(in_pod), _)) => {
            let version = version(in_pod, name, path, namespace, world, recorded, findings)?;
            parameters(version, path, findings);
            Some(Place::InPod { in_pod, version })
        }
        _ => {
            let message = format!("Engine {namespace}/{name} does not say where it runs: give it spec.runtime with InPod or External");
            findings.error(path, Reason::Missing, message);
            None
        }
    }
}

fn version<'a>(
    in_pod: &InPod,
    name: &str,
    path: &str,
    namespace: &str,
    world: &World<'a>,
    recorded: Option<&str>,
    findings: &mut Findings,
) -> Option<&'a EngineVersion> {
    let wanted = &*in_pod.version_ref.name;
    let mut find = |version: &str, why: &str| match world.versions.get(version) {
        None => {
            let message = format!("there is no EngineVersion {namespace}/{version}, {why}: add it; until then the pods stay as they are");
            findings.error(path, Reason::UnresolvedRef, message);
            None
        }
        Some(found) if *found.spec.engine_ref.name != *name => {
            let message = format!(
                "EngineVersion {namespace}/{version} is one of Engine `{}`, not of `{name}`: name one of `{name}`",
                found.spec.engine_ref.name
            );
            findings.error(path, Reason::InvalidValue, message);
            None
        }
        Some(found) => Some(*found),
    };
    let Some(recorded) = recorded else {
        return find(wanted, &format!("which Engine {name} wants"));
    };
    let found = find(recorded, &format!("which Engine {name} runs in this fleet (status.engines)"))?;
    if recorded != wanted {
        let message = format!(
            "Engine {namespace}/{name} wants version {wanted}, and the fleet runs {recorded}: moving to another version is not supported yet, so new pods run {recorded} too"
        );
        findings.warn(path, Reason::NotSupportedYet, message);
    }
    Some(found)
}

/// Parameters are environment variables, handed over by annotations of the same name.
fn parameters(version: &EngineVersion, path: &str, findings: &mut Findings) {
    let good = |key: &str| {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = key.as_bytes();
        key.len() <= names::LABEL_LENGTH_MAX
            && bytes.iter().copied().all(word)
            && ends(bytes.first())
            && ends(bytes.last())
            && !bytes.first().is_some_and(u8::is_ascii_digit)
            && !key.starts_with("SEKIMORI_")
    };
    for key in version.spec.parameters.keys().filter(|key| !good(key)) {
        let name = version.metadata.name.as_deref().unwrap_or_default();
        let message = format!(
            "EngineVersion {name} has a parameter `{}`: use at most 63 letters, digits and '_', beginning with a letter and ending with a letter or digit, and not SEKIMORI_",
            key.chars().take(80).collect::<String>()
        );
        findings.error(path, Reason::InvalidValue, message);
    }
}
