//! A fleet with everything that its pods depend on: what [`crate::validate`] makes, and the only thing that [`crate::plan`] takes.

use sekimori_crds::compile::defaults;
use sekimori_crds::v1alpha1::engine::{External, InPod};
use sekimori_crds::v1alpha1::gateway_fleet::{Listener, Reclaim};
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use sekimori_crds::vocabulary::ListenerRole;

use crate::update::Wanted;

/// The memory of a gateway for messages in flight, in MiB.
pub const MESSAGE_MEMORY_MIB: u64 = 512;
/// The largest message that a listener can take, in MiB: one client network may hold half of the memory.
pub const MESSAGE_MIB_MAX: u64 = MESSAGE_MEMORY_MIB / 2;
/// Version of the pod template that this operator makes for new fleets. It counts up with every change of [`crate::plan`] that changes pods; the older
/// ones stay in the code as long as a fleet may be pinned to them.
pub const TEMPLATE_VERSION: u32 = 1;

/// `GatewayFleet.spec.replicas`.
pub const REPLICAS: u32 = 1;
/// `GatewayFleet.spec.autoscaling.minReplicas`.
pub const MIN_REPLICAS: u32 = 2;
/// `GatewayFleet.spec.update.maxUnavailable`.
pub const MAX_UNAVAILABLE: u32 = 1;
/// `GatewayFleet.spec.spool.storage`.
pub const SPOOL_STORAGE: &str = "20Gi";

/// A fleet that pods can be made of.
#[derive(Clone, Debug)]
pub struct Fleet<'a> {
    /// The object.
    pub object: &'a GatewayFleet,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The gateway's image: the user's, else the one pinned in the status, else the installation's.
    pub image: String,
    /// The pod template's version: the one pinned in the status, else the newest.
    pub template_version: u32,
    /// The spool's volume.
    pub spool: Spool,
    /// The engines in the fleet's order.
    pub engines: Vec<FleetEngine<'a>>,
}

/// The volume of each pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// The size that claims are made with: that of the volumes there are, else the wanted one. A Kubernetes quantity.
    pub storage: String,
    /// The same in bytes.
    pub storage_bytes: u64,
    /// StorageClass. `None`: the cluster's default.
    pub storage_class_name: Option<String>,
    /// Whether one pod alone may have it (`ReadWriteOncePod`), else one node (`ReadWriteOnce`).
    pub once_pod: bool,
}

/// One engine of a fleet.
#[derive(Clone, Debug)]
pub struct FleetEngine<'a> {
    /// Its name.
    pub name: &'a str,
    /// The object.
    pub object: &'a Engine,
    /// Where it runs.
    pub place: Place<'a>,
}

/// Where an engine runs.
#[derive(Clone, Debug)]
pub enum Place<'a> {
    /// Within the gateway.
    Builtin,
    /// Somewhere else.
    External(&'a External),
    /// In two slots of every pod.
    InPod {
        /// What the Engine says of it.
        in_pod: &'a InPod,
        /// The version that new pods run: the recorded one, else the wanted one.
        version: &'a EngineVersion,
    },
}

impl<'a> Fleet<'a> {
    /// The engines in the pods, with the version that new pods run.
    pub fn in_pod(&self) -> impl Iterator<Item = (&FleetEngine<'a>, &'a InPod, &'a EngineVersion)> {
        self.engines.iter().filter_map(|engine| match engine.place {
            Place::InPod { in_pod, version } => Some((engine, in_pod, version)),
            Place::Builtin | Place::External(_) => None,
        })
    }

    /// The Secrets with the listeners' certificates, each once, in the order of the listeners.
    pub fn certificates(&self) -> Vec<&'a str> {
        let mut names = vec![];
        for reference in self.object.spec.listeners.iter().filter_map(|listener| listener.tls.as_ref()).flat_map(|tls| &tls.certificate_refs) {
            if !names.contains(&&*reference.name) {
                names.push(&*reference.name);
            }
        }
        names
    }

    /// The Secret with the object store's credentials.
    pub fn store_secret(&self) -> Option<&'a str> {
        let store = self.object.spec.quarantine.as_ref()?.store.as_ref()?.object_store.as_ref()?;
        store.secret_ref.as_ref().map(|reference| &*reference.name)
    }

    /// Pods that may be away at once.
    pub fn max_unavailable(&self) -> u32 {
        self.object.spec.update.as_ref().and_then(|update| update.max_unavailable).unwrap_or(MAX_UNAVAILABLE)
    }

    /// What [`crate::update::step`] works towards.
    pub fn wanted(&self, template_hash: &str) -> Wanted {
        wanted(self.object, template_hash)
    }
}

/// What [`crate::update::step`] works towards. It takes no [`Fleet`], because one that is deleted is retired even if something is wrong with it.
pub fn wanted(object: &GatewayFleet, template_hash: &str) -> Wanted {
    let spec = &object.spec;
    let drain_timeout = spec.drain.as_ref().and_then(|drain| drain.timeout).unwrap_or(defaults::DRAIN_TIMEOUT);
    Wanted {
        replicas: replicas(object),
        max_unavailable: spec.update.as_ref().and_then(|update| update.max_unavailable).unwrap_or(MAX_UNAVAILABLE),
        paused: spec.update.as_ref().and_then(|update| update.paused).unwrap_or(false),
        deleting: object.metadata.deletion_timestamp.is_some(),
        template_hash: template_hash.to_owned(),
        drain_timeout_ms: u64::try_from(drain_timeout.std().as_millis()).unwrap_or(u64::MAX),
        startup_max_wait_ms: startup_max_wait_ms(object),
        reclaim: spec.spool.as_ref().and_then(|spool| spool.reclaim).unwrap_or(Reclaim::WhenEmpty),
    }
}

/// How many gateways are wanted. Autoscaling is not supported yet: a fleet with it runs on its `minReplicas`.
pub fn replicas(fleet: &GatewayFleet) -> u32 {
    match &fleet.spec.autoscaling {
        Some(autoscaling) => autoscaling.min_replicas.unwrap_or(MIN_REPLICAS).min(autoscaling.max_replicas),
        None => fleet.spec.replicas.unwrap_or(REPLICAS),
    }
}

/// How long a starting gateway may wait for its engines, in milliseconds.
pub fn startup_max_wait_ms(fleet: &GatewayFleet) -> u64 {
    let wait = fleet.spec.startup.as_ref().and_then(|startup| startup.max_wait).unwrap_or(defaults::STARTUP_MAX_WAIT);
    u64::try_from(wait.std().as_millis()).unwrap_or(u64::MAX)
}

/// The Service's port of a listener.
pub fn service_port(listener: &Listener) -> u16 {
    listener.service_port.unwrap_or_else(|| match listener.role.unwrap_or(defaults::LISTENER_ROLE) {
        ListenerRole::Inbound => 25,
        ListenerRole::Relay => 587,
    })
}

/// The bytes that a Kubernetes quantity of storage means, rounded up. `None`: it is none, or beyond 2^63.
pub fn quantity_bytes(quantity: &str) -> Option<u64> {
    let digits = quantity.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = quantity.split_at_checked(digits)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let factor: u128 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        // Thousandths of a byte: Kubernetes takes them and rounds up.
        "m" => return whole.parse::<u64>().ok().filter(|_| fraction.is_empty()).map(|thousandths| thousandths.div_ceil(1000)),
        _ => return None,
    };
    if whole.is_empty() || whole.len() > 15 || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let units = whole.parse::<u128>().ok()? * denominator + fraction;
    u64::try_from((units * factor).div_ceil(denominator)).ok().filter(|bytes| i64::try_from(*bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_storage() {
        for (text, bytes) in [
            ("20Gi", 20 << 30),
            ("1.5Gi", 3 << 29),
            ("500M", 500_000_000),
            ("7", 7),
            ("1500m", 2),
            ("0.1", 1),
            ("999999999999999", 999_999_999_999_999),
        ] {
            assert_eq!(quantity_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "Gi", "1.2.3", "-1", "1 Gi", "1Pi", "999999999999999Ti", "1.5m", "ö"] {
            assert_eq!(quantity_bytes(text), None, "{text}");
        }
    }
}
