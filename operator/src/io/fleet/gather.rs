//! First step: everything that a fleet depends on, as it is now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use kube::Api;
use kube::core::DeserializeGuard;
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use tokio::time::Instant;

use super::{Controller, Memory, MountedSecrets, World};
use crate::io::cluster::{ClusterError, if_there};
use crate::io::hub::{FleetKey, PodIdentity};
use crate::{names, observe};

/// The keys of mounted Secrets are looked at this often.
const SECRETS_EVERY: Duration = Duration::from_secs(30);

/// What a turn is decided from.
pub(super) struct Gathered {
    pub(super) engines: Vec<Arc<DeserializeGuard<Engine>>>,
    pub(super) versions: Vec<Arc<DeserializeGuard<EngineVersion>>>,
    pub(super) secrets: BTreeMap<String, BTreeSet<String>>,
    pub(super) set: Option<Arc<StatefulSet>>,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) claims: Vec<Arc<PersistentVolumeClaim>>,
    pub(super) csi: bool,
    pub(super) lost_nodes: BTreeSet<String>,
}

pub(super) async fn gather(controller: &Controller, key: &FleetKey, fleet: &GatewayFleet, memory: &mut Memory) -> Result<Gathered, ClusterError> {
    let world = &controller.world;
    let set_name = names::stateful_set(&key.name);
    let set = world.sets.of(&key.namespace).find(|set| set.metadata.name.as_deref() == Some(&*set_name));
    let set = match set {
        Some(set) => Some(set),
        // Only one that is certainly not there may be made: it would be made with the wanted replicas, past pods with mail in them.
        None => {
            let api: Api<StatefulSet> = Api::namespaced(controller.context.client.clone(), &key.namespace);
            if_there(|| format!("StatefulSet {}/{set_name}", key.namespace), api.get(&set_name)).await?.map(Arc::new)
        }
    };
    // Only where there are no volumes yet does the class matter; what a claim was made with stays.
    let csi = if set.is_none() { has_csi(controller, fleet).await? } else { false };
    Ok(Gathered {
        engines: world.engines.of(&key.namespace).collect(),
        versions: world.versions.of(&key.namespace).collect(),
        secrets: secrets(controller, key, fleet, memory).await?,
        pods: pods(world, key),
        claims: world.claims.of(&key.namespace).collect(),
        set,
        csi,
        lost_nodes: world.lost_nodes(),
    })
}

/// The fleet's pods.
pub(super) fn pods(world: &World, key: &FleetKey) -> Vec<Arc<Pod>> {
    world.pods.of(&key.namespace).filter(|pod| observe::pod_ordinal(&key.name, pod).is_some()).collect()
}

/// Who may follow.
pub(super) fn identities(pods: &[Arc<Pod>]) -> Vec<PodIdentity> {
    let identity = |pod: &Arc<Pod>| Some(PodIdentity { name: pod.metadata.name.as_deref()?.into(), uid: pod.metadata.uid.as_deref()?.into() });
    pods.iter().filter_map(identity).collect()
}

/// The keys, never the values, of the Secrets that the pods mount.
async fn secrets(
    controller: &Controller,
    key: &FleetKey,
    fleet: &GatewayFleet,
    memory: &mut Memory,
) -> Result<BTreeMap<String, BTreeSet<String>>, ClusterError> {
    let generation = fleet.metadata.generation;
    if let Some(known) = &memory.secrets
        && known.looked_at.elapsed() < SECRETS_EVERY
        && known.generation == generation
    {
        return Ok(known.keys.clone());
    }
    let api: Api<Secret> = Api::namespaced(controller.context.client.clone(), &key.namespace);
    let listeners = fleet.spec.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    let store = fleet.spec.quarantine.as_ref().and_then(|quarantine| quarantine.store.as_ref()?.object_store.as_ref()?.secret_ref.as_ref());
    let wanted: BTreeSet<&str> =
        listeners.flat_map(|tls| &tls.certificate_refs).map(|reference| &*reference.name).chain(store.map(|reference| &*reference.name)).collect();
    let mut found = BTreeMap::new();
    for name in wanted {
        let secret = if_there(|| format!("Secret {}/{name}", key.namespace), api.get(name)).await?;
        if let Some(secret) = secret {
            found.insert(name.to_owned(), secret.data.into_iter().flatten().map(|(key, _)| key).collect());
        }
    }
    memory.secrets = Some(MountedSecrets { looked_at: Instant::now(), generation, keys: found.clone() });
    Ok(found)
}

/// Whether the spool's StorageClass belongs to a CSI driver of this cluster.
async fn has_csi(controller: &Controller, fleet: &GatewayFleet) -> Result<bool, ClusterError> {
    let client = &controller.context.client;
    let classes: Api<StorageClass> = Api::all(client.clone());
    let named = fleet.spec.spool.as_ref().and_then(|spool| spool.storage_class_name.as_ref()).map(|name| name.0.clone());
    let class = match named {
        Some(name) => if_there(|| format!("StorageClass {name}"), classes.get(&name)).await?,
        None => {
            let all = crate::io::cluster::request(|| "StorageClasses".to_owned(), classes.list(&kube::api::ListParams::default())).await?;
            let is_default = |class: &StorageClass| {
                let annotations = class.metadata.annotations.as_ref();
                annotations
                    .and_then(|annotations| annotations.get("storageclass.kubernetes.io/is-default-class"))
                    .is_some_and(|value| value == "true")
            };
            all.items.into_iter().find(is_default)
        }
    };
    // What is built into Kubernetes has a slash in its name, and is no CSI driver.
    let Some(class) = class.filter(|class| !class.provisioner.contains('/')) else { return Ok(false) };
    let drivers: Api<CSIDriver> = Api::all(client.clone());
    Ok(if_there(|| format!("CSIDriver {}", class.provisioner), drivers.get(&class.provisioner)).await?.is_some())
}
