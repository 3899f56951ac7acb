//! The StatefulSet. Nothing in it replaces a pod by itself (`OnDelete`); who goes when is decided by [`crate::update`]. No claim is ever deleted with it.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sekimori_crds::compile::Finding;

use super::{metadata, patch, pod, selector, selector_labels, template_hash};
use crate::fleet::Fleet;
use crate::names;
use crate::settings::Settings;

/// The StatefulSet and the hash of its template.
pub(super) fn stateful_set(fleet: &Fleet<'_>, settings: &Settings, replicas: u32) -> Result<(StatefulSet, String), Vec<Finding>> {
    let made = pod::template(fleet, settings);
    let mut template = match &fleet.object.spec.pod_template {
        Some(patch) => patch::apply(made, patch, fleet)?,
        None => made,
    };
    let hash = template_hash::hash_of(&template, fleet);
    let annotations = template.metadata.get_or_insert_default().annotations.get_or_insert_default();
    annotations.insert(names::TEMPLATE_HASH.to_owned(), hash.clone());
    let set = StatefulSet {
        metadata: metadata(fleet, names::stateful_set(&fleet.name)),
        spec: StatefulSetSpec {
            replicas: Some(i32::try_from(replicas).unwrap_or(i32::MAX)),
            service_name: Some(names::gateway_object(&fleet.name)),
            selector: selector(fleet),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy { type_: Some("OnDelete".to_owned()), rolling_update: None }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            revision_history_limit: Some(3),
            volume_claim_templates: Some(vec![spool_claim(fleet)]),
            template,
            ..StatefulSetSpec::default()
        },
        ..StatefulSet::default()
    };
    Ok((set, hash))
}

/// Claims outlive the fleet, so they have its labels but not it as an owner.
fn spool_claim(fleet: &Fleet<'_>) -> PersistentVolumeClaim {
    let requests = [("storage".to_owned(), Quantity(fleet.spool.storage.clone()))].into();
    let mode = if fleet.spool.once_pod { "ReadWriteOncePod" } else { "ReadWriteOnce" };
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some(names::SPOOL_VOLUME.to_owned()), labels: Some(selector_labels(&fleet.name)), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![mode.to_owned()]),
            resources: Some(VolumeResourceRequirements { requests: Some(requests), limits: None }),
            storage_class_name: fleet.spool.storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
