//! The user's strategic merge patch over the pod template: lists with a key merge by it, other lists and values are replaced, `null` takes away, `$patch:
//! delete` takes an element away.
//!
//! What a patch may not do is looked at twice: its own fields, with the path that the user wrote, and then the outcome, which must have kept everything
//! that the operator made. The second look needs no list of tricks.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use sekimori_crds::compile::{Finding, Reason};
use serde_json::{Map, Value};

use super::pod::restricted;
use crate::fleet::Fleet;
use crate::names;

const PATH: &str = "spec.podTemplate";

/// Fields that a patch may not have anywhere, and why. Beside these, every field whose name begins with `host`.
const FORBIDDEN: [(&str, &str); 11] = [
    ("serviceAccountName", "the pods' account is the operator's: it has no rights, and must not get any"),
    ("serviceAccount", "the pods' account is the operator's: it has no rights, and must not get any"),
    ("automountServiceAccountToken", "a token of the API server has no place in a pod that the Internet talks to"),
    ("serviceAccountToken", "a token of the API server has no place in a pod that the Internet talks to"),
    ("securityContext", "the pods keep to Pod Security `restricted`"),
    ("shareProcessNamespace", "engines must not see the gateway's memory"),
    ("ephemeralContainers", "they are for `kubectl debug`"),
    ("nodeName", "it goes past the scheduler: use nodeSelector or affinity"),
    ("activeDeadlineSeconds", "it would kill the pods with their sessions"),
    ("restartPolicy", "a gateway is always restarted"),
    ("ownerReferences", "the pods belong to their StatefulSet"),
];

/// Maps whose keys are the user's own words.
const FREE_KEYS: [&str; 6] = ["labels", "annotations", "nodeSelector", "matchLabels", "limits", "requests"];

/// Lists of a pod template that merge, and by which field.
const MERGE_KEYS: [(&str, &str); 11] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("imagePullSecrets", "name"),
    ("resourceClaims", "name"),
    ("schedulingGates", "name"),
    ("ports", "containerPort"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("topologySpreadConstraints", "topologyKey"),
];

/// The template with the patch in it.
///
/// # Errors
/// What the patch may not do, and where it is no patch of a pod template.
pub(super) fn apply(made: PodTemplateSpec, patch: &Value, fleet: &Fleet<'_>) -> Result<PodTemplateSpec, Vec<Finding>> {
    let mut findings = vec![];
    fields(patch, PATH, &secrets(fleet), &mut findings);
    if !findings.is_empty() {
        return Err(findings);
    }
    let mut merged = serde_json::to_value(&made).expect("a template has only string keys");
    merge(&mut merged, patch, "", PATH, &mut findings);
    quantities(&mut merged);
    let typed: PodTemplateSpec = match serde_json::from_value(merged.clone()) {
        Ok(typed) => typed,
        Err(error) => {
            findings.push(Finding::new(PATH, Reason::InvalidValue, format!("makes no pod template ({error}): correct its types")));
            return Err(findings);
        }
    };
    let known = serde_json::to_value(&typed).expect("a template has only string keys");
    unknown(&merged, &known, PATH, &mut findings);
    let mut patched = typed;
    kept(&made, &patched, fleet, &mut findings);
    if !findings.is_empty() {
        return Err(findings);
    }
    if let Some(spec) = &mut patched.spec {
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            container.security_context = Some(restricted());
        }
    }
    Ok(patched)
}

/// The Secrets that only the gateway's container may have.
fn secrets<'a>(fleet: &Fleet<'a>) -> BTreeSet<String> {
    let named = fleet.certificates().into_iter().chain(fleet.store_secret()).map(str::to_owned);
    named.chain([names::snapshot_key(&fleet.name)]).collect()
}

/// Forbidden fields of the patch itself.
fn fields(patch: &Value, path: &str, secrets: &BTreeSet<String>, findings: &mut Vec<Finding>) {
    match patch {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                if let Some(why) = forbidden(key) {
                    findings.push(Finding::new(&path, Reason::NotAllowed, format!("may not be patched, because {why}: take it out")));
                } else if let Some(name) = secret_of(key, value).filter(|name| secrets.contains(*name)) {
                    let message = format!("Secret {name} is the gateway's alone, and mounted there already: take it out");
                    findings.push(Finding::new(&path, Reason::NotAllowed, message));
                } else if !FREE_KEYS.contains(&key.as_str()) {
                    fields(value, &path, secrets, findings);
                }
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                fields(value, &format!("{path}[{index}]"), secrets, findings);
            }
        }
        _ => {}
    }
}

fn forbidden(key: &str) -> Option<&'static str> {
    if key.starts_with("host") {
        return Some("the pods have nothing of their node's");
    }
    FORBIDDEN.into_iter().find(|(field, _)| *field == key).map(|(_, why)| why)
}

/// The Secret that a field names, if it is one that does.
fn secret_of<'a>(key: &str, value: &'a Value) -> Option<&'a str> {
    match key {
        "secretName" => value.as_str(),
        "secret" | "secretRef" | "secretKeyRef" | "nodePublishSecretRef" => value.get("name").and_then(Value::as_str),
        _ => None,
    }
}

fn merge(target: &mut Value, patch: &Value, field: &str, path: &str, findings: &mut Vec<Finding>) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => merge_map(target, patch, path, findings),
        (Value::Array(target), Value::Array(patch)) if merge_key(field).is_some() => merge_list(target, patch, field, path, findings),
        (target, patch) => {
            // What was not there is made by merging into nothing, so that directives are seen there too.
            *target = match patch {
                Value::Object(_) => Value::Object(Map::new()),
                Value::Array(_) if merge_key(field).is_some() => Value::Array(vec![]),
                other => {
                    *target = other.clone();
                    return;
                }
            };
            merge(target, patch, field, path, findings);
        }
    }
}

fn merge_key(field: &str) -> Option<&'static str> {
    MERGE_KEYS.into_iter().find(|(list, _)| *list == field).map(|(_, key)| key)
}

fn merge_map(target: &mut Map<String, Value>, patch: &Map<String, Value>, path: &str, findings: &mut Vec<Finding>) {
    for (key, value) in patch {
        let path = format!("{path}.{key}");
        if key.starts_with('$') {
            let message = "is not understood here: only `$patch: delete` in an element of a list is, and null takes a field away";
            findings.push(Finding::new(path, Reason::InvalidValue, message));
        } else if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value, key, &path, findings);
        }
    }
}

fn merge_list(target: &mut Vec<Value>, patch: &[Value], field: &str, path: &str, findings: &mut Vec<Finding>) {
    let Some(key) = merge_key(field) else { return };
    for (index, element) in patch.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some(name) = element.get(key) else {
            findings.push(Finding::new(path, Reason::Missing, format!("has no `{key}`, by which this list merges: add it")));
            continue;
        };
        let found = target.iter().position(|there| there.get(key) == Some(name));
        if element.get("$patch").and_then(Value::as_str) == Some("delete") {
            if let Some(found) = found {
                target.remove(found);
            }
            continue;
        }
        match found.and_then(|found| target.get_mut(found)) {
            Some(there) => merge(there, element, "", &path, findings),
            None => {
                let mut added = Value::Object(Map::new());
                merge(&mut added, element, "", &path, findings);
                target.push(added);
            }
        }
    }
}

/// Quantities that were written as numbers, as texts.
fn quantities(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::Object(amounts) if key == "limits" || key == "requests" => {
                        for amount in amounts.values_mut().filter(|amount| amount.is_number()) {
                            *amount = Value::String(amount.to_string());
                        }
                    }
                    Value::Number(amount) if key == "sizeLimit" => *value = Value::String(amount.to_string()),
                    _ => quantities(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(quantities),
        _ => {}
    }
}

/// Fields that a pod template does not have: the API server would drop them in silence.
fn unknown(merged: &Value, known: &Value, path: &str, findings: &mut Vec<Finding>) {
    match (merged, known) {
        (Value::Object(merged), Value::Object(known)) => {
            for (key, value) in merged {
                let path = format!("{path}.{key}");
                match known.get(key) {
                    Some(known) => unknown(value, known, &path, findings),
                    None if value.is_null() => {}
                    None => {
                        findings.push(Finding::new(path, Reason::UnknownField, "is no field of a pod template: correct its name, or take it out"))
                    }
                }
            }
        }
        (Value::Array(merged), Value::Array(known)) => {
            for (index, (merged, known)) in merged.iter().zip(known).enumerate() {
                unknown(merged, known, &format!("{path}[{index}]"), findings);
            }
        }
        _ => {}
    }
}

/// Whether everything that the operator made is still there.
fn kept(made: &PodTemplateSpec, patched: &PodTemplateSpec, fleet: &Fleet<'_>, findings: &mut Vec<Finding>) {
    let mut say = |field: String, message: String| findings.push(Finding::new(format!("{PATH}.{field}"), Reason::NotAllowed, message));
    metadata_kept(made, patched, &mut say);
    let (Some(made), Some(patched)) = (&made.spec, &patched.spec) else {
        return say("spec".to_owned(), "may not be taken away".to_owned());
    };
    let own_volumes: BTreeSet<&str> = made.volumes.iter().flatten().map(|volume| volume.name.as_str()).chain([names::SPOOL_VOLUME]).collect();
    for volume in made.volumes.iter().flatten() {
        if !patched.volumes.iter().flatten().any(|there| there == volume) {
            say("spec.volumes".to_owned(), format!("volume `{}` is the operator's: leave it as it is, and give your own another name", volume.name));
        }
    }
    let claims = format!("{}-{}-", names::SPOOL_VOLUME, names::stateful_set(&fleet.name));
    for volume in patched.volumes.iter().flatten() {
        let claim = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.as_str()).unwrap_or_default();
        if volume.name == names::SPOOL_VOLUME || claim.starts_with(&claims) {
            say("spec.volumes".to_owned(), format!("volume `{}` is or names a spool, which belongs to one pod alone: take it out", volume.name));
        }
    }
    for container in &made.containers {
        match patched.containers.iter().find(|there| there.name == container.name) {
            Some(there) => container_kept(container, there, &mut say),
            None => say("spec.containers".to_owned(), format!("container `{}` is the operator's: leave it there", container.name)),
        }
    }
    foreign_mounts(made, patched, &own_volumes, &mut say);
}

fn metadata_kept(made: &PodTemplateSpec, patched: &PodTemplateSpec, say: &mut impl FnMut(String, String)) {
    let (Some(made), Some(patched)) = (&made.metadata, &patched.metadata) else {
        return say("metadata".to_owned(), "may not be taken away".to_owned());
    };
    for (what, made, patched) in [("labels", &made.labels, &patched.labels), ("annotations", &made.annotations, &patched.annotations)] {
        let nothing = std::collections::BTreeMap::new();
        let (made, patched) = (made.as_ref().unwrap_or(&nothing), patched.as_ref().unwrap_or(&nothing));
        for (key, value) in made {
            if patched.get(key) != Some(value) {
                say(format!("metadata.{what}"), format!("`{key}` is the operator's: leave it as it is"));
            }
        }
        let ours = |key: &str| key.split_once('/').is_some_and(|(domain, _)| domain == "sekimori.dev" || domain.ends_with(".sekimori.dev"));
        for key in patched.keys().filter(|key| ours(key) && !made.contains_key(*key)) {
            say(format!("metadata.{what}"), format!("`{key}` is in the operator's own domain: choose another name"));
        }
    }
    let rest = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        let mut metadata = metadata.clone();
        (metadata.labels, metadata.annotations) = (None, None);
        metadata
    };
    if rest(made) != rest(patched) {
        say("metadata".to_owned(), "only labels and annotations can be patched: take the rest out".to_owned());
    }
}

fn container_kept(made: &Container, patched: &Container, say: &mut impl FnMut(String, String)) {
    let name = &made.name;
    let mut fixed = |field: &str, same: bool, instead: &str| {
        if !same {
            say("spec.containers".to_owned(), format!("`{field}` of container `{name}` may not be patched: {instead}"));
        }
    };
    let image = if name == names::GATEWAY_CONTAINER { "set spec.image" } else { "name an EngineVersion in the Engine's versionRef" };
    fixed("image", made.image == patched.image, image);
    fixed("command", made.command == patched.command, "it is the image's");
    fixed("args", made.args == patched.args, "they are the operator's");
    fixed("ports", made.ports == patched.ports, "they follow spec.listeners");
    let kept = |variable: &k8s_openapi::api::core::v1::EnvVar| patched.env.iter().flatten().any(|there| there == variable);
    fixed("env", made.env.iter().flatten().all(kept), "the operator's own variables stay as they are");
    let kept = |mount: &k8s_openapi::api::core::v1::VolumeMount| patched.volume_mounts.iter().flatten().any(|there| there == mount);
    fixed("volumeMounts", made.volume_mounts.iter().flatten().all(kept), "the operator's own mounts stay as they are");
}

/// Whether a container has a volume of ours that it was not given: an engine the spool, a stranger the token.
fn foreign_mounts(made: &PodSpec, patched: &PodSpec, own_volumes: &BTreeSet<&str>, say: &mut impl FnMut(String, String)) {
    for container in patched.containers.iter().chain(patched.init_containers.iter().flatten()) {
        let given = made.containers.iter().find(|there| there.name == container.name).and_then(|there| there.volume_mounts.as_ref());
        for mount in container.volume_mounts.iter().flatten().filter(|mount| own_volumes.contains(mount.name.as_str())) {
            if !given.is_some_and(|given| given.contains(mount)) {
                say(
                    "spec.containers".to_owned(),
                    format!("container `{}` may not mount volume `{}`, which is the operator's: take that mount out", container.name, mount.name),
                );
            }
        }
    }
}
