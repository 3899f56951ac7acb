//! The pod template before the user's patch. It passes Pod Security `restricted`, has no right at the API server, and carries the intake label, so that
//! mail flows to new pods even while no operator runs.

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, Lifecycle,
    LifecycleHandler, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource, ResourceRequirements,
    SeccompProfile, SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection, SleepAction, TopologySpreadConstraint, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sekimori_crds::v1alpha1::GatewayFleet;

use super::{labels, selector, slots};
use crate::fleet::{Fleet, MESSAGE_MEMORY_MIB};
use crate::names::{self, paths};
use crate::settings::Settings;

/// The user and group of every container, and the group of the volumes.
const USER: i64 = 65532;
/// Before SIGTERM, in seconds: the time until no proxy sends new connections here any more.
const SETTLE_SECONDS: i64 = 5;
/// How long the gateway may take to end its sessions after SIGTERM, in seconds.
const STOP_SECONDS: i64 = 300;
/// The whole of it, with room for the last sync. What waits longer (mail in the spool) waits before the deletion, never here.
const GRACE_SECONDS: i64 = SETTLE_SECONDS + STOP_SECONDS + 25;
/// Life of the token for the operator, in seconds; the kubelet renews it at four fifths.
const TOKEN_SECONDS: i64 = 3600;
/// What the gateway reserves. Its memory is the budget of messages in flight and a quarter more; the pod template patch may say otherwise.
const GATEWAY_REQUESTS: [(&str, &str); 2] = [("cpu", "100m"), ("memory", "640Mi")];
/// The spool's share of its volume in percent; quarantine, dead letters and the last good snapshot have the rest.
const SPOOL_PERCENT: u64 = 80;
/// The largest message that is sure to fit a segment of the gateway's own choice (72 MiB), in MiB.
const SEGMENT_MESSAGE_MIB_MAX: u64 = 64;
/// What a segment has beside its largest message, in MiB: the envelope and the segment's own.
const SEGMENT_ROOM_MIB: u64 = 8;
/// Readable by the group that every container is in, and by nobody else.
const SECRET_MODE: i32 = 0o440;

pub(super) fn template(fleet: &Fleet<'_>, settings: &Settings) -> PodTemplateSpec {
    let mut pod_labels = labels(&fleet.name);
    pod_labels.insert(names::INTAKE_LABEL.to_owned(), names::INTAKE_OPEN.to_owned());
    let annotations = slots::annotations(fleet);
    let mut containers = vec![gateway(fleet, settings)];
    containers.extend(slots::containers(fleet, settings));
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod_labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(names::gateway_object(&fleet.name)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            security_context: Some(pod_security()),
            topology_spread_constraints: Some(vec![spread(fleet, "kubernetes.io/hostname"), spread(fleet, "topology.kubernetes.io/zone")]),
            containers,
            volumes: Some(volumes(fleet, settings)),
            ..PodSpec::default()
        }),
    }
}

fn gateway(fleet: &Fleet<'_>, settings: &Settings) -> Container {
    let mut ports: Vec<ContainerPort> = fleet.object.spec.listeners.iter().map(|listener| container_port(&listener.name, listener.port)).collect();
    ports.push(container_port(names::ADMIN_PORT_NAME, names::ADMIN_PORT));
    let name = EnvVarSource {
        field_ref: Some(ObjectFieldSelector { api_version: None, field_path: "metadata.name".to_owned() }),
        ..EnvVarSource::default()
    };
    let requests = GATEWAY_REQUESTS.into_iter().map(|(name, quantity)| (name.to_owned(), Quantity(quantity.to_owned()))).collect();
    Container {
        name: names::GATEWAY_CONTAINER.to_owned(),
        image: Some(fleet.image.clone()),
        args: Some(arguments(fleet, settings)),
        env: Some(vec![EnvVar { name: "SEKIMORI_POD".to_owned(), value: None, value_from: Some(name) }]),
        ports: Some(ports),
        resources: Some(ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() }),
        security_context: Some(restricted()),
        // A large spool takes its time to be recovered, and being killed in it would only begin it again.
        startup_probe: Some(probe("/livez", 2, 300)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 5, 2)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler { sleep: Some(SleepAction { seconds: SETTLE_SECONDS }), ..LifecycleHandler::default() }),
            ..Lifecycle::default()
        }),
        volume_mounts: Some(mounts(fleet)),
        ..Container::default()
    }
}

/// The command line of a gateway in a pod: its configuration comes from the operator, everything else from here.
fn arguments(fleet: &Fleet<'_>, settings: &Settings) -> Vec<String> {
    // Whole MiB: a number of bytes may have more digits than the gateway reads.
    let spool_mib = (fleet.spool.storage_bytes >> 20) * SPOOL_PERCENT / 100;
    let bind = settings.bind;
    let admin = std::net::SocketAddr::new(bind, names::ADMIN_PORT);
    let segment = segment_mib(fleet.object).map(|mib| format!("--spool-segment={mib}Mi"));
    let arguments = [
        "run".to_owned(),
        format!("--operator={}", settings.stream_address),
        format!("--operator-ca={}", paths::AUTHORITY),
        format!("--operator-token={}", paths::TOKEN),
        format!("--snapshot-key={}/key", paths::SNAPSHOT_KEY),
        format!("--state={}", paths::STATE),
        format!("--bind={bind}"),
        format!("--admin={admin}"),
        format!("--admin-socket={}", paths::ADMIN_SOCKET),
        format!("--message-memory={MESSAGE_MEMORY_MIB}Mi"),
        format!("--spool-max={spool_mib}Mi"),
        format!("--stop-timeout={STOP_SECONDS}s"),
        "--log=json".to_owned(),
    ];
    arguments.into_iter().chain(segment).collect()
}

/// Size of a spool segment, where the gateway's own is too small for the largest message that a listener takes. `None`: it is not.
fn segment_mib(fleet: &GatewayFleet) -> Option<u64> {
    let sizes = fleet.spec.listeners.iter().filter_map(|listener| listener.limits.as_ref()?.message_size);
    let largest_mib = sizes.map(|size| size.0.div_ceil(1 << 20)).max()?;
    (largest_mib > SEGMENT_MESSAGE_MIB_MAX).then_some(largest_mib + SEGMENT_ROOM_MIB)
}

fn mounts(fleet: &Fleet<'_>) -> Vec<VolumeMount> {
    let read = |volume: &str, at: &str| VolumeMount { read_only: Some(true), ..mount(volume, at) };
    let mut mounts = vec![
        mount(names::SPOOL_VOLUME, paths::STATE),
        mount(names::RUN_VOLUME, paths::RUN),
        VolumeMount { sub_path: Some("tmp".to_owned()), ..mount(names::RUN_VOLUME, "/tmp") },
        read(names::TOKEN_VOLUME, paths::TOKEN_DIRECTORY),
        read(names::AUTHORITY_VOLUME, paths::AUTHORITY_DIRECTORY),
        read(names::SNAPSHOT_KEY_VOLUME, paths::SNAPSHOT_KEY),
    ];
    if fleet.in_pod().next().is_some() {
        mounts.push(mount(names::ENGINES_VOLUME, paths::ENGINES));
    }
    for secret in fleet.certificates() {
        mounts.push(read(&names::certificate_volume(secret), &format!("{}/{secret}", paths::CERTIFICATES)));
    }
    if fleet.store_secret().is_some() {
        mounts.push(read(names::STORE_VOLUME, paths::STORE));
    }
    mounts
}

/// The volumes, apart from the spool's, which is a claim template of the StatefulSet.
fn volumes(fleet: &Fleet<'_>, settings: &Settings) -> Vec<Volume> {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            audience: Some(settings.audience.clone()),
            expiration_seconds: Some(TOKEN_SECONDS),
            path: "token".to_owned(),
            ..ServiceAccountTokenProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let token = ProjectedVolumeSource { default_mode: Some(SECRET_MODE), sources: Some(vec![token]), ..ProjectedVolumeSource::default() };
    let authority = ConfigMapVolumeSource { name: names::authority(&fleet.name), ..ConfigMapVolumeSource::default() };
    let run =
        EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: Some(Quantity("64Mi".to_owned())), ..EmptyDirVolumeSource::default() };
    let mut volumes = vec![
        Volume { name: names::RUN_VOLUME.to_owned(), empty_dir: Some(run), ..Volume::default() },
        Volume { name: names::TOKEN_VOLUME.to_owned(), projected: Some(token), ..Volume::default() },
        Volume { name: names::AUTHORITY_VOLUME.to_owned(), config_map: Some(authority), ..Volume::default() },
        secret(names::SNAPSHOT_KEY_VOLUME, &names::snapshot_key(&fleet.name)),
    ];
    volumes.extend(slots::volumes(fleet));
    volumes.extend(fleet.certificates().into_iter().map(|name| secret(&names::certificate_volume(name), name)));
    volumes.extend(fleet.store_secret().map(|name| secret(names::STORE_VOLUME, name)));
    volumes
}

/// A Secret that may be missing: one that was deleted must not keep a pod from coming back with the mail in its spool. The gateway says what it lacks.
fn secret(volume: &str, name: &str) -> Volume {
    let source = SecretVolumeSource {
        secret_name: Some(name.to_owned()),
        optional: Some(true),
        default_mode: Some(SECRET_MODE),
        ..SecretVolumeSource::default()
    };
    Volume { name: volume.to_owned(), secret: Some(source), ..Volume::default() }
}

pub(super) fn mount(volume: &str, at: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: at.to_owned(), ..VolumeMount::default() }
}

/// What Pod Security `restricted` asks of a container, and a read-only root.
pub(super) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        ..SecurityContext::default()
    }
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        // A spool has many files: their owner is not changed at every start.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// Spread as evenly as the cluster allows; a pod that finds no other place is better than none.
fn spread(fleet: &Fleet<'_>, key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        label_selector: Some(selector(fleet)),
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..TopologySpreadConstraint::default()
    }
}

fn container_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: i32::from(port), protocol: Some("TCP".to_owned()), ..ContainerPort::default() }
}

fn probe(path: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(names::ADMIN_PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}
