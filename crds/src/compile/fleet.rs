//! One GatewayFleet with its engines and certificates: its part of the snapshot, or what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::defaults;
use super::policy::{not_evaluated, not_supported, startup_minimum};
use super::problem::{Finding, Problem, Reason, did_you_mean};
use super::{Lookup, identity};
use crate::snapshot::{BreakerPart, CertificatePart, ClassMinimum, EngineEndpoint, EnginePart, FleetPart, ListenerLimits, ListenerPart};
use crate::v1alpha1::engine::RuntimeType;
use crate::v1alpha1::gateway_fleet::{Limits, Listener, QuarantineStoreType};
use crate::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use crate::vocabulary::{EngineClass, EngineMode, EngineProtocol, ListenerRole, ListenerTls};

/// The values of one Secret or ConfigMap, by key.
pub type Values = BTreeMap<String, Vec<u8>>;

/// What a GatewayFleet refers to.
#[derive(Clone, Debug, Default)]
pub struct FleetReferences<'a> {
    /// The Engines of the fleet's namespace, by name; one that was rejected is there as such.
    pub engines: BTreeMap<&'a str, Lookup<'a, Engine>>,
    /// The EngineVersions of the fleet's namespace, by name. Empty: versions are not used.
    pub engine_versions: BTreeMap<&'a str, &'a EngineVersion>,
    /// The Secrets of the fleet's namespace, by name.
    pub secrets: BTreeMap<&'a str, &'a Values>,
    /// Where engines listen, by name: required for those that run InPod, wins over the address of an External one.
    pub endpoints: BTreeMap<String, EngineEndpoint>,
    /// Resolvers that win over the fleet's own. Empty: the fleet's own.
    pub resolvers: Vec<String>,
    /// The gateway reads its certificates from mounted Secrets: parts name them and hold no key, and one that is missing is no error.
    pub mounted_certificates: bool,
}

/// Compiles one fleet.
///
/// # Errors
/// Everything that is wrong with it, its engines and its certificates; the caller keeps its last good form.
pub fn compile_fleet(fleet: &GatewayFleet, references: &FleetReferences<'_>) -> Result<FleetPart, Vec<Problem>> {
    let (namespace, name) = identity(&fleet.metadata);
    let spec = &fleet.spec;
    let mut findings = vec![];
    unsupported(fleet, &mut findings);
    let listeners =
        spec.listeners.iter().enumerate().map(|(index, listener)| listener_part(index, listener, &namespace, references, &mut findings)).collect();
    let engines = engine_parts(fleet, &namespace, references, &mut findings);
    let object = format!("GatewayFleet {namespace}/{name}");
    if !findings.is_empty() {
        return Err(findings.into_iter().map(|finding| Problem::error("", &object, finding)).collect());
    }
    let own_resolvers = || spec.resolver.iter().flat_map(|resolver| resolver.addresses.iter().map(|address| address.0.clone())).collect();
    Ok(FleetPart {
        namespace,
        name,
        hostname: spec.hostname.0.clone(),
        listeners,
        engines,
        resolver_addresses: if references.resolvers.is_empty() { own_resolvers() } else { references.resolvers.clone() },
        egress_allowed_networks: networks(spec.egress.iter().flat_map(|egress| &egress.allowed_networks)),
        quarantine_retention: spec.quarantine.as_ref().and_then(|quarantine| quarantine.retention).unwrap_or(defaults::QUARANTINE_RETENTION),
        startup_max_wait: spec.startup.as_ref().and_then(|startup| startup.max_wait).unwrap_or(defaults::STARTUP_MAX_WAIT),
        startup_minimum_engines: startup_minimum(spec.policy_overrides.as_ref(), spec.policy_defaults.as_ref()),
        verdict_header: spec.verdict_header.unwrap_or(defaults::VERDICT_HEADER),
        requires: BTreeSet::new(),
    })
}

fn networks<'a>(networks: impl Iterator<Item = &'a crate::v1alpha1::text::Network>) -> Vec<IpNet> {
    networks.filter_map(|network| network.parse::<IpNet>().ok()).map(|network| network.trunc()).collect()
}

fn unsupported(fleet: &GatewayFleet, findings: &mut Vec<Finding>) {
    for (index, listener) in fleet.spec.listeners.iter().enumerate() {
        if listener.role == Some(ListenerRole::Relay) {
            let message = "`Relay` is not supported yet: remove this listener, or use Inbound";
            findings.push(Finding::new(format!("spec.listeners[{index}].role"), Reason::NotSupportedYet, message));
        }
    }
    let store = fleet.spec.quarantine.as_ref().and_then(|quarantine| quarantine.store.as_ref()).map(|store| store.kind);
    if let Some(kind @ (QuarantineStoreType::Volume | QuarantineStoreType::ObjectStore)) = store {
        let message = format!("`{kind:?}` is not supported yet: use PerPod, or leave store out");
        findings.push(Finding::new("spec.quarantine.store.type", Reason::NotSupportedYet, message));
    }
    findings.extend(fleet.spec.policy_defaults.iter().flat_map(|policy| not_supported(policy, "spec.policyDefaults")));
    findings.extend(fleet.spec.policy_overrides.iter().flat_map(|policy| not_supported(policy, "spec.policyOverrides")));
}

fn listener_part(index: usize, listener: &Listener, namespace: &str, references: &FleetReferences<'_>, findings: &mut Vec<Finding>) -> ListenerPart {
    let path = format!("spec.listeners[{index}]");
    let tls = listener.tls.as_ref();
    let refs = tls.map(|tls| tls.certificate_refs.as_slice()).unwrap_or_default();
    let mode = tls.and_then(|tls| tls.mode).unwrap_or(if refs.is_empty() { ListenerTls::Disabled } else { ListenerTls::Opportunistic });
    let mut certificates = vec![];
    // A Secret of a feature that is off need not exist.
    for (index, reference) in refs.iter().enumerate().filter(|_| mode != ListenerTls::Disabled) {
        let path = format!("{path}.tls.certificateRefs[{index}]");
        match certificate(&reference.name, namespace, references) {
            Ok(part) => certificates.push(part),
            Err((reason, message)) => findings.push(Finding::new(path, reason, message)),
        }
    }
    ListenerPart {
        name: listener.name.0.clone(),
        port: listener.port,
        role: listener.role.unwrap_or(defaults::LISTENER_ROLE),
        tls: mode,
        certificates,
        proxy_trusted_networks: listener.proxy_protocol.as_ref().map(|proxy| networks(proxy.trusted_networks.iter())),
        bare_line_endings: listener.bare_line_endings.unwrap_or(defaults::BARE_LINE_ENDINGS),
        limits: limits(listener.limits.as_ref()),
    }
}

fn limits(limits: Option<&Limits>) -> ListenerLimits {
    let built_in = defaults::LISTENER_LIMITS;
    let Some(limits) = limits else { return built_in };
    ListenerLimits {
        connections: limits.connections.unwrap_or(built_in.connections),
        connections_per_address: limits.connections_per_address.unwrap_or(built_in.connections_per_address),
        messages_per_session: limits.messages_per_session.unwrap_or(built_in.messages_per_session),
        recipients: limits.recipients.unwrap_or(built_in.recipients),
        message_size: limits.message_size.unwrap_or(built_in.message_size),
    }
}

fn certificate(name: &str, namespace: &str, references: &FleetReferences<'_>) -> Result<CertificatePart, (Reason, String)> {
    if references.mounted_certificates {
        return Ok(CertificatePart { name: name.to_owned(), chain_pem: String::new(), key_pem: String::new() });
    }
    let Some(secret) = references.secrets.get(name) else {
        let near = did_you_mean(name, references.secrets.keys().copied());
        return Err((Reason::UnresolvedRef, format!("there is no Secret {namespace}/{name}{near}: add one with tls.crt and tls.key")));
    };
    let pem = |key: &str, begins: &str| {
        let bytes = secret.get(key).ok_or_else(|| (Reason::UnresolvedRef, format!("Secret {namespace}/{name} has no key `{key}`: add it")))?;
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(begins)));
        text.map(str::to_owned)
            .ok_or_else(|| (Reason::InvalidValue, format!("`{key}` of Secret {namespace}/{name} is not PEM with a {begins}: replace it")))
    };
    Ok(CertificatePart { name: name.to_owned(), chain_pem: pem("tls.crt", "CERTIFICATE")?, key_pem: pem("tls.key", "PRIVATE KEY")? })
}

fn engine_parts(fleet: &GatewayFleet, namespace: &str, references: &FleetReferences<'_>, findings: &mut Vec<Finding>) -> Vec<EnginePart> {
    let mut parts = vec![];
    for (index, reference) in fleet.spec.engines.iter().enumerate() {
        let path = format!("spec.engines[{index}]");
        let engine = match references.engines.get(&*reference.name) {
            Some(Lookup::Found(engine)) => *engine,
            Some(lookup) => {
                findings.push(lookup.finding(&path, "Engine", namespace, &reference.name));
                continue;
            }
            None => {
                let near = did_you_mean(&reference.name, references.engines.keys().copied());
                findings.push(Finding::new(
                    &path,
                    Reason::UnresolvedRef,
                    format!("there is no Engine {namespace}/{}{near}: add it, or remove this entry", reference.name),
                ));
                continue;
            }
        };
        // An engine that is switched off is not called, so nothing about it has to work.
        if engine.spec.mode == Some(EngineMode::Disabled) {
            continue;
        }
        match endpoint(engine, &reference.name, references) {
            Ok(endpoint) => parts.push(engine_part(engine, &reference.name, endpoint, references)),
            Err(message) => findings.push(Finding::new(&path, Reason::Missing, message)),
        }
    }
    parts
}

fn endpoint(engine: &Engine, name: &str, references: &FleetReferences<'_>) -> Result<EngineEndpoint, String> {
    if engine.spec.protocol.kind == EngineProtocol::Builtin {
        return Ok(EngineEndpoint::Builtin);
    }
    if let Some(endpoint) = references.endpoints.get(name) {
        return Ok(endpoint.clone());
    }
    let external = engine.spec.runtime.as_ref().and_then(|runtime| runtime.external.as_ref());
    if let Some(address) = external.and_then(|external| external.address.as_ref()) {
        return Ok(EngineEndpoint::Address(address.0.clone()));
    }
    if let Some(socket) = external.and_then(|external| external.socket.as_ref()) {
        return Ok(EngineEndpoint::Socket(socket.0.clone()));
    }
    Err(format!(
        "Engine {name} runs in the pods of a cluster; say where it listens here: --engine {name}=unix:/run/{name}.sock or --engine {name}=127.0.0.1:PORT"
    ))
}

fn engine_part(engine: &Engine, name: &str, endpoint: EngineEndpoint, references: &FleetReferences<'_>) -> EnginePart {
    let spec = &engine.spec;
    let breaker = spec.breaker.as_ref();
    let built_in = defaults::ENGINE_BREAKER;
    let in_pod = spec
        .runtime
        .as_ref()
        .and_then(|runtime| runtime.in_pod.as_ref())
        .filter(|_| spec.runtime.as_ref().is_some_and(|r| r.kind == RuntimeType::InPod));
    let version = in_pod.and_then(|in_pod| references.engine_versions.get(&*in_pod.version_ref.name)).map(|version| version.spec.version.0.clone());
    EnginePart {
        name: name.to_owned(),
        class: spec.class,
        family: spec.family.as_ref().map_or_else(|| name.to_owned(), |family| family.0.clone()),
        mode: spec.mode.unwrap_or(defaults::ENGINE_MODE),
        protocol: spec.protocol.kind,
        endpoint,
        version,
        timeout: spec.timeout.unwrap_or(defaults::ENGINE_TIMEOUT),
        concurrency: spec.concurrency.unwrap_or(defaults::ENGINE_CONCURRENCY),
        max_bytes: spec.max_bytes.unwrap_or(defaults::ENGINE_MAX_BYTES),
        weight_percent: spec.weight_percent.unwrap_or(defaults::ENGINE_WEIGHT_PERCENT),
        probe_interval: spec.probe.as_ref().and_then(|probe| probe.interval).unwrap_or(defaults::ENGINE_PROBE_INTERVAL),
        breaker: BreakerPart {
            failures: breaker.and_then(|breaker| breaker.failures).unwrap_or(built_in.failures),
            window: breaker.and_then(|breaker| breaker.window).unwrap_or(built_in.window),
            open_for: breaker.and_then(|breaker| breaker.open_for).unwrap_or(built_in.open_for),
        },
    }
}

/// What is wrong with an Engine by itself.
pub fn check_engine(engine: &Engine) -> Vec<Finding> {
    let mut findings = vec![];
    let mut say = |field: &str, message: String| findings.push(Finding::new(field, Reason::NotSupportedYet, message));
    if engine.spec.class == EngineClass::Sandbox {
        say("spec.class", "`Sandbox` is not supported yet: remove this engine from the fleet and here".to_owned());
    }
    match engine.spec.protocol.kind {
        EngineProtocol::Clamd | EngineProtocol::Rspamd | EngineProtocol::Builtin => {}
        kind => say("spec.protocol.type", format!("`{kind}` is not supported yet: use Clamd, Rspamd or Builtin")),
    }
    findings
}

/// What is taken but deserves a word.
pub(crate) fn warnings(fleet: &GatewayFleet) -> Vec<Finding> {
    let spec = &fleet.spec;
    let mut findings: Vec<Finding> = spec.policy_defaults.iter().filter_map(|policy| not_evaluated(policy, "spec.policyDefaults")).collect();
    findings.extend(spec.policy_overrides.iter().filter_map(|policy| not_evaluated(policy, "spec.policyOverrides")));
    findings
}

/// How many engines of each class count.
pub(crate) fn counting_engines(part: &FleetPart) -> ClassMinimum {
    let count = |class: EngineClass| part.engines.iter().filter(|engine| engine.class == class && engine.mode == EngineMode::Enforce).count();
    let number = |class| u32::try_from(count(class)).unwrap_or(u32::MAX);
    ClassMinimum { anti_virus: number(EngineClass::AntiVirus), anti_spam: number(EngineClass::AntiSpam) }
}

/// Says where fewer engines count than a minimum, so that `tooFewEngines` would decide about every message.
pub(crate) fn short_of_engines(field: &str, there: ClassMinimum, wanted: ClassMinimum) -> Vec<Finding> {
    [("AntiVirus", "antiVirus", there.anti_virus, wanted.anti_virus), ("AntiSpam", "antiSpam", there.anti_spam, wanted.anti_spam)]
        .into_iter()
        .filter(|(_, _, there, wanted)| there < wanted)
        .map(|(class, policy, there, wanted)| {
            let message = format!(
                "{there} {class} engines of the fleet are in mode Enforce, and {policy}.minimumEngines is {wanted}: {policy}.tooFewEngines decides about every message; add engines or lower the minimum"
            );
            Finding::new(field, Reason::Suspicious, message)
        })
        .collect()
}

/// The fields that only a cluster acts on.
pub(crate) fn cluster_only_fields(fleet: &GatewayFleet) -> Vec<String> {
    let spec = &fleet.spec;
    let stated = [
        ("spec.image", spec.image.is_some()),
        ("spec.replicas", spec.replicas.is_some()),
        ("spec.autoscaling", spec.autoscaling.is_some()),
        ("spec.update", spec.update.is_some()),
        ("spec.service", spec.service.is_some()),
        ("spec.spool", spec.spool.is_some()),
        ("spec.drain", spec.drain.is_some()),
        ("spec.podTemplate", spec.pod_template.is_some()),
    ];
    let mut fields: Vec<String> = stated.into_iter().filter(|(_, stated)| *stated).map(|(field, _)| field.to_owned()).collect();
    let ports = spec.listeners.iter().enumerate().filter(|(_, listener)| listener.service_port.is_some());
    fields.extend(ports.map(|(index, _)| format!("spec.listeners[{index}].servicePort")));
    fields
}

/// The fields of an Engine that only a cluster acts on. What runs in pods there is named by `--engine` here, which is said already.
pub(crate) fn engine_cluster_only_fields(engine: &Engine, named_here: bool) -> Vec<String> {
    let in_pod = !named_here && engine.spec.runtime.as_ref().is_some_and(|runtime| runtime.in_pod.is_some());
    [("spec.runtime.inPod", in_pod), ("spec.rollout", engine.spec.rollout.is_some())]
        .into_iter()
        .filter(|(_, stated)| *stated)
        .map(|(field, _)| field.to_owned())
        .collect()
}
