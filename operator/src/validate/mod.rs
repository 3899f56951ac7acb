//! What CEL cannot state, because it takes more than one object, or what was there before, or what the cluster is: pure, and the only maker of a
//! [`Fleet`].
//!
//! An error keeps the pods as they are; it never takes anything away. A warning is reported and the fleet is made. What only the configuration of the
//! gateways depends on (certificates that are not there, thresholds, lists) is judged by `sekimori_crds::compile` and blocks no pod.

mod engines;
mod networks;
mod spool;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::StatefulSet;
use sekimori_crds::compile::{Finding, Problem, Reason};
use sekimori_crds::v1alpha1::gateway_fleet::HandOver;
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};

use crate::fleet::{Fleet, MAX_UNAVAILABLE, MESSAGE_MIB_MAX, TEMPLATE_VERSION, replicas, service_port};
use crate::names;
use crate::settings::Settings;

/// What a fleet is judged against: objects of its own namespace, and what is there already.
#[derive(Clone, Debug, Default)]
pub struct World<'a> {
    /// Engines by name.
    pub engines: BTreeMap<&'a str, &'a Engine>,
    /// EngineVersions by name.
    pub versions: BTreeMap<&'a str, &'a EngineVersion>,
    /// The keys of Secrets, by the Secret's name. Those that the fleet mounts are enough.
    pub secrets: BTreeMap<&'a str, BTreeSet<String>>,
    /// The fleet's StatefulSet.
    pub stateful_set: Option<&'a StatefulSet>,
    /// Whether the provisioner of the spool's StorageClass is a CSI driver of this cluster, which is what ReadWriteOncePod takes.
    pub csi: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Checked<'a> {
    /// The fleet, unless an error keeps its pods as they are.
    pub fleet: Option<Fleet<'a>>,
    /// Everything that is wrong or deserves a word.
    pub problems: Vec<Problem>,
}

/// Finds what is wrong with a fleet, and resolves what its pods depend on.
pub fn check<'a>(fleet: &'a GatewayFleet, world: &World<'a>, settings: &Settings) -> Checked<'a> {
    let namespace = fleet.metadata.namespace.clone().unwrap_or_default();
    let name = fleet.metadata.name.clone().unwrap_or_default();
    let object = format!("GatewayFleet {namespace}/{name}");
    let mut findings = Findings::default();
    ports(fleet, &mut findings);
    message_sizes(fleet, &mut findings);
    let template_version = template_version(fleet, &mut findings);
    let spool = spool::resolve(fleet, world, &mut findings);
    let engines = engines::resolve(fleet, &namespace, world, &mut findings);
    secrets(fleet, &namespace, world, &mut findings);
    networks::check(fleet, settings, &mut findings);
    budget(fleet, &mut findings);
    not_supported(fleet, &mut findings);
    let image = fleet.spec.image.as_ref().or_else(|| fleet.status.as_ref().and_then(|status| status.image.as_ref()));
    let image = image.map_or_else(|| settings.gateway_image.clone(), |image| image.0.clone());
    let in_order = findings.errors.is_empty();
    let problems = findings.problems(&object);
    let fleet = spool.filter(|_| in_order).map(|spool| Fleet { object: fleet, namespace, name, image, template_version, spool, engines });
    Checked { fleet, problems }
}

/// Errors and warnings about one object.
#[derive(Debug, Default)]
struct Findings {
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Findings {
    fn error(&mut self, field: impl Into<String>, reason: Reason, message: impl Into<String>) {
        self.errors.push(Finding::new(field, reason, message));
    }

    fn warn(&mut self, field: impl Into<String>, reason: Reason, message: impl Into<String>) {
        self.warnings.push(Finding::new(field, reason, message));
    }

    fn problems(self, object: &str) -> Vec<Problem> {
        let errors = self.errors.into_iter().map(|finding| Problem::error("", object, finding));
        errors.chain(self.warnings.into_iter().map(|finding| Problem::warning("", object, finding))).collect()
    }
}

/// A message that no gateway has the memory for.
fn message_sizes(fleet: &GatewayFleet, findings: &mut Findings) {
    for (index, listener) in fleet.spec.listeners.iter().enumerate() {
        let Some(size) = listener.limits.as_ref().and_then(|limits| limits.message_size) else { continue };
        if size.0 > MESSAGE_MIB_MAX << 20 {
            let message = format!("`{size}` is more than one client may hold of a gateway's memory for messages: write at most {MESSAGE_MIB_MAX}Mi");
            findings.error(format!("spec.listeners[{index}].limits.messageSize"), Reason::InvalidValue, message);
        }
    }
}

/// Two listeners of one Service port, and a listener on the admin port.
fn ports(fleet: &GatewayFleet, findings: &mut Findings) {
    let mut seen: BTreeMap<u16, &str> = BTreeMap::new();
    for (index, listener) in fleet.spec.listeners.iter().enumerate() {
        let port = service_port(listener);
        match seen.get(&port) {
            Some(first) => {
                let message =
                    format!("listener `{first}` has port {port} of the Service already (25 unless said, 587 for Relay): choose another one");
                findings.error(format!("spec.listeners[{index}].servicePort"), Reason::Conflict, message);
            }
            None => {
                seen.insert(port, &listener.name);
            }
        }
        if listener.port == names::ADMIN_PORT {
            let message = format!("{} is the gateway's admin port: choose another one", names::ADMIN_PORT);
            findings.error(format!("spec.listeners[{index}].port"), Reason::Conflict, message);
        }
        if &*listener.name == names::ADMIN_PORT_NAME {
            let message = format!("`{}` is the name of the gateway's admin port: choose another one", names::ADMIN_PORT_NAME);
            findings.error(format!("spec.listeners[{index}].name"), Reason::Conflict, message);
        }
        if listener.port < 1024 {
            let message = format!(
                "{} is below 1024, which a pod without privileges cannot listen on: use 2525 or so, and servicePort {}",
                listener.port, listener.port
            );
            findings.error(format!("spec.listeners[{index}].port"), Reason::InvalidValue, message);
        }
    }
}

/// The template that the fleet is pinned to. One that is newer than this operator knows stops changes, not mail.
fn template_version(fleet: &GatewayFleet, findings: &mut Findings) -> u32 {
    let pinned = fleet.status.as_ref().and_then(|status| status.template_version).unwrap_or(TEMPLATE_VERSION);
    if pinned == 0 || pinned > TEMPLATE_VERSION {
        let message = format!(
            "{pinned} was made by another operator, and this one knows up to {TEMPLATE_VERSION}: upgrade the operator; the pods stay as they are"
        );
        findings.error("status.templateVersion", Reason::NotSupportedYet, message);
    }
    pinned
}

/// Secrets that the pods mount. A missing one keeps no pod from starting, so it is a warning here; the configuration that needs it is not.
fn secrets(fleet: &GatewayFleet, namespace: &str, world: &World<'_>, findings: &mut Findings) {
    let mut look = |field: String, name: &str, keys: [&str; 2]| match world.secrets.get(name) {
        None => {
            findings.warn(field, Reason::UnresolvedRef, format!("there is no Secret {namespace}/{name}: add it, with {} and {}", keys[0], keys[1]))
        }
        Some(there) => {
            for key in keys.into_iter().filter(|key| !there.contains(*key)) {
                let message = format!("Secret {namespace}/{name} has no key `{key}`: add it (it needs {} and {})", keys[0], keys[1]);
                findings.warn(field.clone(), Reason::UnresolvedRef, message);
            }
        }
    };
    for (index, listener) in fleet.spec.listeners.iter().enumerate() {
        for (number, reference) in listener.tls.iter().flat_map(|tls| &tls.certificate_refs).enumerate() {
            look(format!("spec.listeners[{index}].tls.certificateRefs[{number}]"), &reference.name, ["tls.crt", "tls.key"]);
        }
    }
    let store = fleet.spec.quarantine.as_ref().and_then(|quarantine| quarantine.store.as_ref()?.object_store.as_ref()?.secret_ref.as_ref());
    if let Some(reference) = store {
        look("spec.quarantine.store.objectStore.secretRef".to_owned(), &reference.name, ["accessKeyId", "secretAccessKey"]);
    }
}

/// A budget that lets every gateway go at once.
fn budget(fleet: &GatewayFleet, findings: &mut Findings) {
    let (replicas, budget) = (replicas(fleet), fleet.spec.update.as_ref().and_then(|update| update.max_unavailable).unwrap_or(MAX_UNAVAILABLE));
    if replicas > 1 && budget >= replicas {
        let message =
            format!("{budget} of {replicas} gateways may be away at once, so an update or a node's drain may stop all mail: set it below {replicas}");
        findings.warn("spec.update.maxUnavailable", Reason::Suspicious, message);
    }
}

/// What is taken, and does not do yet what it says.
fn not_supported(fleet: &GatewayFleet, findings: &mut Findings) {
    if fleet.spec.autoscaling.is_some() {
        let message =
            format!("is not supported yet: the fleet runs on {} gateways (minReplicas); set replicas instead to choose the number", replicas(fleet));
        findings.warn("spec.autoscaling", Reason::NotSupportedYet, message);
    }
    if fleet.spec.drain.as_ref().is_none_or(|drain| drain.hand_over.is_none_or(|hand_over| hand_over == HandOver::Peers)) {
        let message = "`Peers` (what holds unless said) is not supported yet: a gateway that leaves waits until its mail is delivered; say Wait to take note of it";
        findings.warn("spec.drain.handOver", Reason::NotSupportedYet, message);
    }
}

#[cfg(test)]
mod tests;
