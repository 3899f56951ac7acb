//! What of a pod template needs new pods when it changes: everything but the slots' images and the parameters that go with them. Those change in running
//! pods, and a pod whose slots differ from the template is no outdated pod.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

use crate::fleet::Fleet;
use crate::names::{self, Slot};

const HASH_LENGTH: usize = 16;

/// The hash of a template. Equal templates have equal hashes: maps are sorted, and what is absent is not written.
pub fn hash_of(template: &PodTemplateSpec, fleet: &Fleet<'_>) -> String {
    let mut template = template.clone();
    let slots: Vec<(String, String)> = fleet
        .in_pod()
        .flat_map(|(engine, _, _)| {
            Slot::ALL.map(|slot| (names::slot_container(engine.name, slot), names::parameter_annotation(engine.name, slot, "")))
        })
        .collect();
    if let Some(annotations) = template.metadata.as_mut().and_then(|metadata| metadata.annotations.as_mut()) {
        annotations.retain(|key, _| *key != names::TEMPLATE_HASH && !slots.iter().any(|(_, prefix)| key.starts_with(prefix.as_str())));
    }
    if let Some(metadata) = template.metadata.as_mut()
        && metadata.annotations.as_ref().is_some_and(std::collections::BTreeMap::is_empty)
    {
        metadata.annotations = None;
    }
    for container in template.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        let Some((_, prefix)) = slots.iter().find(|(name, _)| *name == container.name) else { continue };
        container.image = None;
        let source = format!("metadata.annotations['{prefix}");
        container.env.get_or_insert_default().retain(|variable| {
            let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
            !field.is_some_and(|field| field.field_path.starts_with(&source))
        });
    }
    let text = serde_json::to_vec(&template).expect("a template has only string keys");
    names::short_hash(&text, HASH_LENGTH)
}

/// The hash that a pod was made with. `None`: it is none of ours, or somebody took the annotation away; such a pod counts as outdated.
pub fn recorded_hash(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(names::TEMPLATE_HASH).map(String::as_str)
}
