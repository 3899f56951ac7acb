//! GatewayFleet: identical gateways, their listeners, engines and storage, and whose mail they take.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::autoscaling::Autoscaling;
use super::common::{Claim, Conditions, LabelSelector, LocalRef, conditions, undescribed};
use super::mail_policy::MailPolicySpec;
use super::text::{AddressPort, AnnotationValue, HostName, Image, Network, ObjectName, PortName, Quantity, StatusText, Url};
use crate::units::{ByteSize, Duration};
use crate::vocabulary::{BareLineEndings, ListenerRole, ListenerTls, Ownership, VerdictHeader};

/// Identical gateways, their listeners, engines and storage, and whose mail they take.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sekimori.dev",
    version = "v1alpha1",
    kind = "GatewayFleet",
    plural = "gatewayfleets",
    shortname = "gwf",
    category = "sekimori",
    namespaced,
    status = "GatewayFleetStatus",
    derive = "PartialEq",
    doc = "Identical gateways, their listeners, engines and storage, and whose mail they take.",
    annotation("helm.sh/resource-policy", "keep"),
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Draining", type_ = "integer", json_path = ".status.drainingReplicas", priority = "1"),
    printcolumn(name = "Backlog", type_ = "integer", json_path = ".status.runnableBacklog"),
    printcolumn(name = "Oldest", type_ = "integer", description = "seconds", json_path = ".status.oldestMessageSeconds"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Hostname", type_ = "string", json_path = ".spec.hostname", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.replicas) || !has(self.autoscaling)").message("excludes autoscaling: leave one of the two out").field_path(".replicas"),
    validation = Rule::new("(has(oldSelf.spool) && has(oldSelf.spool.storageClassName) ? oldSelf.spool.storageClassName : '') == (has(self.spool) && has(self.spool.storageClassName) ? self.spool.storageClassName : '')")
        .message("storageClassName cannot be changed: make a new fleet").reason(Reason::FieldValueForbidden).field_path(".spool")
)]
pub struct GatewayFleetSpec {
    /// Number of gateways, 0 to 1000, instead of autoscaling. Default: 1.
    #[schemars(range(max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Image of the gateway, by digest. Default: the operator's own version when the fleet was made, pinned in the status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// In the banner, in Received, and the authserv-id. Required.
    pub hostname: HostName,
    /// How changes of the pod template reach the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// When a starting gateway takes mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Startup>,
    /// How mail gets in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSpec>,
    /// Listeners, keyed by name. Required, 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]), validation = Rule::new("self.all(a, self.exists_one(b, b.port == a.port))").message("two listeners have the same port").reason(Reason::FieldValueDuplicate))]
    pub listeners: Vec<Listener>,
    /// Whose tenants are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<TenantAdmission>,
    /// The engines to load, keyed by name; their order does not matter. Default: none.
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<LocalRef>,
    /// DNS. Default: the pod's own resolvers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Resolver>,
    /// Where tenant-written destinations may lead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// The spool's volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool: Option<Spool>,
    /// Quarantine and dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
    /// How a gateway leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// How much X-Sekimori-Verdict says: Full, Summary or Disabled. Default: Summary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict_header: Option<VerdictHeader>,
    /// For tenants that say nothing. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_defaults: Option<MailPolicySpec>,
    /// Wins over tenants. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_overrides: Option<MailPolicySpec>,
    /// Number of gateways by load, instead of replicas. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Strategic merge patch over the pod template that the operator makes. Default: nothing.
    #[schemars(schema_with = "free_form")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<serde_json::Value>,
}

fn free_form(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// How changes of the pod template reach the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// Pods that may be away at once, 1 to 1000. Default: 1.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<u32>,
    /// No pod is restarted while true. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

/// When a starting gateway takes mail.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Startup {
    /// Mail is taken once each class has its minimum of warm engines, or after this time; at most 1h. Default: 5m.
    #[x_kube(validation = Rule::new("duration(self) <= duration('1h')").message("must be at most 1h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<Duration>,
}

/// How mail gets in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// LoadBalancer, NodePort or ClusterIP. Default: LoadBalancer.
    #[serde(rename = "type")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ServiceType>,
    /// Local (keeps client addresses) or Cluster. Default: Local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<TrafficPolicy>,
    /// Annotations of the Service. Default: none.
    #[schemars(extend("maxProperties" = 64))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, AnnotationValue>,
}

/// The types of a Service.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum ServiceType {
    /// A load balancer of the cloud.
    LoadBalancer,
    /// A port of every node.
    NodePort,
    /// Inside the cluster only.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
}

/// Where a connection may be sent.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum TrafficPolicy {
    /// To pods of the node that it reached.
    Local,
    /// To any pod; client addresses are lost.
    Cluster,
}

/// One SMTP listener.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.role) || self.role != 'Relay' || (has(self.tls) && has(self.tls.mode) && (self.tls.mode == 'Required' || self.tls.mode == 'Implicit'))")
    .message("role Relay takes passwords: tls.mode must be Required or Implicit").field_path(".role"))]
pub struct Listener {
    /// Unique within the fleet. Required.
    pub name: PortName,
    /// TCP port of the container. Required.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// TCP port of the Service. Default: 25, for role Relay 587.
    #[schemars(range(min = 1, max = 65535))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_port: Option<u16>,
    /// Inbound or Relay. Default: Inbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<ListenerRole>,
    /// TLS. Default: Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTlsSpec>,
    /// Present: a PROXY header is required from the trusted networks and refused from others. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// What is done with a bare CR or LF in content: Refuse or Normalise. Default: Refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bare_line_endings: Option<BareLineEndings>,
    /// Bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// TLS of a listener.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.mode) || self.mode == 'Disabled' || (has(self.certificateRefs) && self.certificateRefs.size() > 0)")
    .message("needs a certificate unless mode is Disabled: name a Secret with tls.crt and tls.key").reason(Reason::FieldValueRequired).field_path(".certificateRefs"))]
pub struct ListenerTlsSpec {
    /// Disabled, Opportunistic, Required or Implicit. Default: Opportunistic with a certificate, else Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ListenerTls>,
    /// Secrets with `tls.crt` and `tls.key`, keyed by name; the first is the default, the others by SNI. Default: none.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificate_refs: Vec<LocalRef>,
}

/// PROXY protocol.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProxyProtocol {
    /// From these a PROXY header is required. Required; an empty list trusts nobody.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub trusted_networks: Vec<Network>,
}

/// Bounds of a listener.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Open connections, 1 to 100000. Default: 2000.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Open connections of one client address, 1 to 100000. Default: 50.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_per_address: Option<u32>,
    /// Transactions in one session, 1 to 100000. Default: 100.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_session: Option<u32>,
    /// Recipients of one transaction, 100 to 50000 (RFC 5321 4.5.3.1.8 demands 100). Default: 1000.
    #[schemars(range(min = 100, max = 50_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipients: Option<u32>,
    /// Bytes of one message, at least 64Ki, at most 2Gi, and in a cluster at most 256Mi, which is half of a pod's memory for messages. Default: 64Mi.
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity('64Ki')) >= 0 && quantity(self).compareTo(quantity('2Gi')) <= 0").message("must be from 64Ki to 2Gi"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_size: Option<ByteSize>,
}

/// Whose tenants are served.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TenantAdmission {
    /// From which namespaces. Default: the fleet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<TenantNamespaces>,
    /// How a namespace proves that it may claim a domain: Grant, DnsTxt or Trust. Default: Grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Ownership>,
}

/// From which namespaces tenants come.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.from != 'Selector' || has(self.selector)").message("is required with from Selector: add it").reason(Reason::FieldValueRequired).field_path(".selector"),
    validation = Rule::new("!has(self.selector) || self.from == 'Selector'").message("goes only with from Selector: remove it, or change that").field_path(".selector")
)]
pub struct TenantNamespaces {
    /// Same, All or Selector.
    pub from: NamespacesFrom,
    /// Labels of the namespaces, only with Selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Which namespaces.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum NamespacesFrom {
    /// The fleet's own.
    Same,
    /// Every one.
    All,
    /// Those with certain labels.
    Selector,
}

/// DNS.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resolver {
    /// `address:port` of DNS resolvers, asked in this order. Default: the pod's own.
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<AddressPort>,
}

/// Where tenant-written destinations may lead.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// Private and loopback networks where routes and call-ahead may lead, checked after DNS; public addresses always. Default: none.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_networks: Vec<Network>,
}

/// The spool's volume.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Spool {
    /// Size of each pod's volume, as a Kubernetes quantity. Default: 20Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Quantity>,
    /// StorageClass; cannot be changed. Default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<ObjectName>,
    /// What becomes of a retired pod's volume: WhenEmpty, Retain or Abandon. Default: WhenEmpty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim: Option<Reclaim>,
}

/// What becomes of a retired pod's volume.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum Reclaim {
    /// Deleted once its spool is empty.
    WhenEmpty,
    /// Kept.
    Retain,
    /// Deleted even with mail in it.
    Abandon,
}

/// Quarantine and dead letters.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Quarantine {
    /// Where they are kept. Default: PerPod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<QuarantineStore>,
    /// How long they are kept, 1h to 99999h. Default: 720h.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h')").message("must be at least 1h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Duration>,
}

/// Where quarantined mail and dead letters are kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.volume) || self.type == 'Volume'").message("goes only with type Volume: remove it, or change that").field_path(".volume"),
    validation = Rule::new("self.type != 'Volume' || has(self.volume)").message("is required with type Volume: add it").reason(Reason::FieldValueRequired).field_path(".volume"),
    validation = Rule::new("!has(self.objectStore) || self.type == 'ObjectStore'").message("goes only with type ObjectStore: remove it, or change that").field_path(".objectStore"),
    validation = Rule::new("self.type != 'ObjectStore' || has(self.objectStore)").message("is required with type ObjectStore: add it").reason(Reason::FieldValueRequired).field_path(".objectStore")
)]
pub struct QuarantineStore {
    /// PerPod, Volume or ObjectStore.
    #[serde(rename = "type")]
    pub kind: QuarantineStoreType,
    /// Only with type Volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Claim>,
    /// Only with type ObjectStore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
}

/// The kinds of store.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum QuarantineStoreType {
    /// On the spool's volume of each pod.
    PerPod,
    /// On one shared volume.
    Volume,
    /// In an object store (S3 and others).
    ObjectStore,
}

/// An object store.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStore {
    /// Bucket and prefix, such as `s3://bucket/prefix`. Required.
    pub url: Url,
    /// Secret with `accessKeyId` and `secretAccessKey`. Default: the pod's own identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalRef>,
}

/// How a gateway leaves.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// After this time draining pauses and alerts; 1m to 168h. Default: 30m.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('168h')").message("must be from 1m to 168h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What becomes of mail that waits: Peers (handed over) or Wait. Default: Peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over: Option<HandOver>,
}

/// What becomes of mail that waits in a leaving gateway.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum HandOver {
    /// It is handed to other gateways of the fleet.
    Peers,
    /// The gateway stays until it is delivered.
    Wait,
}

/// What the operator found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayFleetStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Progressing, Serving, Degraded, Draining or Paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<FleetPhase>,
    /// Pods that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Pods that take mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<u32>,
    /// Pods that leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining_replicas: Option<u32>,
    /// The pods' label selector as text, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<StatusText>,
    /// Messages that wait for our own worker, disk or scan slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runnable_backlog: Option<u64>,
    /// Age of the oldest message, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_message_seconds: Option<u64>,
    /// Revision of the configuration that every ready pod runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_revision: Option<StatusText>,
    /// Image that the pods are pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Version of the pod template that the pods are pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_version: Option<u32>,
    /// Versions of the engines, keyed by name.
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<FleetEngineStatus>,
    /// Tenants that are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<u32>,
    /// Ready, ResolvedRefs, Draining, ClientIPMasked, QuarantineNotShared.
    #[schemars(schema_with = "conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Conditions,
}

/// The life of a fleet.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum FleetPhase {
    /// Pods come or change.
    Progressing,
    /// All is as wanted.
    Serving,
    /// Mail is taken by fewer pods than wanted.
    Degraded,
    /// Pods leave.
    Draining,
    /// Waits for the user.
    Paused,
}

/// One engine of a fleet.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FleetEngineStatus {
    /// Name of the Engine.
    pub name: ObjectName,
    /// The version that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<StatusText>,
    /// The version that is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<StatusText>,
}
