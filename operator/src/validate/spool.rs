//! The spool's volume. A StatefulSet's claims cannot be changed, so what they were made with stays, and a wish for something else is answered.

use sekimori_crds::compile::Reason;
use sekimori_crds::v1alpha1::GatewayFleet;

use super::{Findings, World};
use crate::fleet::{SPOOL_STORAGE, Spool, quantity_bytes};
use crate::names;

/// The smallest volume that a spool with its reserved segment, a quarantine and a snapshot work on.
const STORAGE_BYTES_MIN: u64 = 1 << 30;

pub(super) fn resolve(fleet: &GatewayFleet, world: &World<'_>, findings: &mut Findings) -> Option<Spool> {
    let said = fleet.spec.spool.as_ref();
    let storage = said.and_then(|spool| spool.storage.as_ref()).map_or(SPOOL_STORAGE, |storage| &storage.0);
    let bytes = quantity_bytes(storage);
    if bytes.is_none_or(|bytes| bytes < STORAGE_BYTES_MIN) {
        findings.error("spec.spool.storage", Reason::InvalidValue, format!("`{storage}` is too small, or no size: write at least 1Gi"));
    }
    let class = said.and_then(|spool| spool.storage_class_name.as_ref()).map(|class| class.0.clone());
    let wanted = Spool { storage: storage.to_owned(), storage_bytes: bytes?, storage_class_name: class, once_pod: world.csi };
    let Some(made) = existing(world) else { return Some(wanted) };
    // Kubernetes writes the default class into a claim, but not into the template: an absent class there is what the fleet was made with.
    if made.storage_class_name != wanted.storage_class_name {
        let class = |spool: &Spool| spool.storage_class_name.clone().map_or_else(|| "the cluster's default".to_owned(), |class| format!("`{class}`"));
        let message = format!(
            "is {} now, and the volumes were made with {}; it cannot be changed: put it back, or make a new fleet",
            class(&wanted),
            class(&made)
        );
        findings.error("spec.spool.storageClassName", Reason::NotAllowed, message);
    }
    if made.storage_bytes != wanted.storage_bytes {
        let claim = names::spool_claim(fleet.metadata.name.as_deref().unwrap_or_default(), 0);
        let message = format!(
            "is {} now, and the volumes were made with {}, which new ones get too: resize each claim yourself (`kubectl edit pvc {claim}`), or make a new fleet",
            wanted.storage, made.storage
        );
        findings.warn("spec.spool.storage", Reason::NotSupportedYet, message);
    }
    Some(made)
}

/// What the claims of the StatefulSet that is there are made with.
fn existing(world: &World<'_>) -> Option<Spool> {
    let spec = &world.stateful_set?.spec;
    let claim = spec.volume_claim_templates.iter().flatten().find(|claim| claim.metadata.name.as_deref() == Some(names::SPOOL_VOLUME))?;
    let claim = claim.spec.as_ref()?;
    let storage = claim.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.clone();
    Some(Spool {
        storage_bytes: quantity_bytes(&storage)?,
        storage,
        storage_class_name: claim.storage_class_name.clone(),
        once_pod: claim.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod"),
    })
}
