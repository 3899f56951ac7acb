//! Engine: something that judges mail, where it runs, and how new versions of it are tried.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{Claim, Conditions, LocalRef, Resources, conditions, undescribed};
use super::text::{HostPort, Label, SocketPath, StatusText, Url};
use crate::units::{ByteSize, Duration};
use crate::vocabulary::{EngineClass, EngineMode, EngineProtocol};

/// Something that judges mail, where it runs, and how new versions of it are tried.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sekimori.dev",
    version = "v1alpha1",
    kind = "Engine",
    plural = "engines",
    shortname = "eng",
    category = "sekimori",
    namespaced,
    status = "EngineStatus",
    derive = "PartialEq",
    doc = "Something that judges mail, where it runs, and how new versions of it are tried.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.class"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.stableVersion"),
    printcolumn(name = "Canary", type_ = "string", json_path = ".status.canaryVersion"),
    printcolumn(name = "Breaker", type_ = "string", json_path = ".status.breaker"),
    printcolumn(name = "Signatures", type_ = "integer", description = "age in seconds", json_path = ".status.signatureAgeSeconds", priority = "1"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.protocol.type != 'Builtin' || !has(self.runtime)").message("goes not with protocol Builtin, which runs inside the gateway: leave it out").field_path(".runtime"),
    validation = Rule::new("self.protocol.type == 'Builtin' || has(self.runtime)").message("is required unless the protocol is Builtin: say InPod or External").reason(Reason::FieldValueRequired).field_path(".runtime"),
    validation = Rule::new("self.protocol.type != 'Builtin' || self.class != 'Sandbox'").message("there is no builtin sandbox: class AntiVirus or AntiSpam").field_path(".class")
)]
pub struct EngineSpec {
    /// AntiVirus, AntiSpam or Sandbox. Required.
    pub class: EngineClass,
    /// Engines of one family share a vote. Default: the engine's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Label>,
    /// Enforce, Shadow (measured, not counted) or Disabled. Default: Enforce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<EngineMode>,
    /// What it speaks. Required.
    pub protocol: EngineProtocolSpec,
    /// Where it runs. Required unless the protocol is Builtin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Deadline of one scan, 100ms to 10m. Default: 10s.
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('10m')").message("must be from 100ms to 10m"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Scans at once in each gateway, 1 to 4096. Default: 32.
    #[schemars(range(min = 1, max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Larger messages are Unscannable(TooLarge) for this engine, never silently clean; at least 1Ki. Default: 30Mi.
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity('1Ki')) >= 0").message("must be at least 1Ki"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// Weight of its opinion in percent, 0 to 1000. Default: 100.
    #[schemars(range(max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_percent: Option<u32>,
    /// A known bad sample through the same path; no detection cuts the engine off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Circuit breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<Breaker>,
    /// How a new version is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStrategy>,
}

/// What an engine speaks.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.clamd) || self.type == 'Clamd'").message("goes only with type Clamd: remove it, or change that").field_path(".clamd"),
    validation = Rule::new("!has(self.rspamd) || self.type == 'Rspamd'").message("goes only with type Rspamd: remove it, or change that").field_path(".rspamd"),
    validation = Rule::new("!has(self.spamd) || self.type == 'Spamd'").message("goes only with type Spamd: remove it, or change that").field_path(".spamd"),
    validation = Rule::new("!has(self.icap) || self.type == 'Icap'").message("goes only with type Icap: remove it, or change that").field_path(".icap"),
    validation = Rule::new("self.type != 'Icap' || has(self.icap)").message("is required with type Icap: add it").reason(Reason::FieldValueRequired).field_path(".icap"),
    validation = Rule::new("!has(self.milter) || self.type == 'Milter'").message("goes only with type Milter: remove it, or change that").field_path(".milter"),
    validation = Rule::new("!has(self.http) || self.type == 'Http'").message("goes only with type Http: remove it, or change that").field_path(".http"),
    validation = Rule::new("!has(self.builtin) || self.type == 'Builtin'").message("goes only with type Builtin: remove it, or change that").field_path(".builtin")
)]
pub struct EngineProtocolSpec {
    /// Clamd, Rspamd, Spamd, Icap, Milter, Http or Builtin.
    #[serde(rename = "type")]
    pub kind: EngineProtocol,
    /// Only with type Clamd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamd: Option<NoSettings>,
    /// Only with type Rspamd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rspamd: Option<NoSettings>,
    /// Only with type Spamd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spamd: Option<NoSettings>,
    /// Only with type Icap, and required with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icap: Option<Icap>,
    /// Only with type Milter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milter: Option<NoSettings>,
    /// Only with type Http.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<NoSettings>,
    /// Only with type Builtin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<NoSettings>,
}

/// A member without settings so far.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoSettings {}

/// ICAP (RFC 3507).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Icap {
    /// Path of the service, such as `/avscan`. Required.
    pub service: SocketPath,
}

/// Where an engine runs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.inPod) || self.type == 'InPod'").message("goes only with type InPod: remove it, or change that").field_path(".inPod"),
    validation = Rule::new("self.type != 'InPod' || has(self.inPod)").message("is required with type InPod: add it").reason(Reason::FieldValueRequired).field_path(".inPod"),
    validation = Rule::new("!has(self.external) || self.type == 'External'").message("goes only with type External: remove it, or change that").field_path(".external"),
    validation = Rule::new("self.type != 'External' || has(self.external)").message("is required with type External: add it").reason(Reason::FieldValueRequired).field_path(".external")
)]
pub struct Runtime {
    /// InPod or External.
    #[serde(rename = "type")]
    pub kind: RuntimeType,
    /// Only with type InPod, and required with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_pod: Option<InPod>,
    /// Only with type External, and required with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
}

/// Where an engine runs.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum RuntimeType {
    /// In two slots of every pod of the fleet.
    InPod,
    /// Somewhere else, not ours to run.
    External,
}

/// An engine in every pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InPod {
    /// The EngineVersion that is wanted; changing it starts an EngineRollout. Required.
    pub version_ref: LocalRef,
    /// Slots, Replace or Recreate. Default: Slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
    /// Resources of a slot at work. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Resources of an idle slot. Default: requests memory 8Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_resources: Option<Resources>,
    /// Where its signatures come from. Default: InImage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Signatures>,
}

/// How a new version takes over.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum Swap {
    /// In the idle slot, beside the stable one.
    Slots,
    /// In place; the other engines cover meanwhile.
    Replace,
    /// With a new pod.
    Recreate,
}

/// Where signatures come from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.mirror) || self.type == 'Mirror'").message("goes only with type Mirror: remove it, or change that").field_path(".mirror"),
    validation = Rule::new("self.type != 'Mirror' || has(self.mirror)").message("is required with type Mirror: add it").reason(Reason::FieldValueRequired).field_path(".mirror"),
    validation = Rule::new("!has(self.volume) || self.type == 'Volume'").message("goes only with type Volume: remove it, or change that").field_path(".volume"),
    validation = Rule::new("self.type != 'Volume' || has(self.volume)").message("is required with type Volume: add it").reason(Reason::FieldValueRequired).field_path(".volume")
)]
pub struct Signatures {
    /// InImage, Mirror or Volume.
    #[serde(rename = "type")]
    pub kind: SignaturesType,
    /// Older ones raise a condition; at least 1m. Default: 24h.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m')").message("must be at least 1m"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// Only with type Mirror, and required with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Only with type Volume, and required with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Claim>,
}

/// Where signatures come from.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum SignaturesType {
    /// With the image.
    InImage,
    /// From a mirror in the cluster.
    Mirror,
    /// From a volume.
    Volume,
}

/// A mirror of signatures.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Where it is. Required.
    pub url: Url,
}

/// An engine that is not ours to run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.address) != has(self.socket)").message("needs either address or socket, not both"))]
pub struct External {
    /// `host:port`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<HostPort>,
    /// Path of a unix socket. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<SocketPath>,
}

/// The probe.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Time between probes, 1s to 24h. Default: 5m.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("must be from 1s to 24h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
}

/// The circuit breaker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.failures) ? self.failures : 5) <= (has(self.window) ? self.window : 20)").message("must not be above window (failures is 5 and window 20 unless said)").field_path(".failures"))]
pub struct Breaker {
    /// Failures that start a probe, 1 to 1000; counted over several tenants and client networks. Default: 5.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// The last so many scans are looked at, 1 to 1000. Default: 20.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Time until an open breaker probes again, 100ms to 1h. Default: 30s.
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('1h')").message("must be from 100ms to 1h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_for: Option<Duration>,
}

/// How a new version is tried.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStrategy {
    /// One after the other. Default: one pod with 2000 messages and 1h in shadow, then 25 percent, then all.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<RolloutStep>,
    /// What is compared between canary and stable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
    /// Pause or RollBack. Default: Pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_inconclusive: Option<OnInconclusive>,
}

/// One step.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.pods) != has(self.podsPercent)").message("needs either pods or podsPercent, not both"))]
pub struct RolloutStep {
    /// So many pods, 1 to 1000. Default: none.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<u32>,
    /// So many percent of the pods, 1 to 100. Default: none.
    #[schemars(range(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_percent: Option<u32>,
    /// What is scanned in shadow before the version counts. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
}

/// Scanning in shadow.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// At least so many messages, 0 to 10000000. Default: 0.
    #[schemars(range(max = 10_000_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<u32>,
    /// At least so long. Default: 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
}

/// What is compared between canary and stable.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// What only the stable version finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<Missed>,
    /// What only the canary finds. Present: it is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub false_positives: Option<NoSettings>,
    /// Known bad and good mail, replayed through both. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<Corpus>,
    /// Failed scans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<Errors>,
    /// Scan times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Campaigns that are needed for a judgement, 1 to 100000. Default: 30.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_campaigns: Option<u32>,
    /// Inconclusive after this time; at least 1m. Default: 168h.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m')").message("must be at least 1m"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Duration>,
}

/// What only the stable version finds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Missed {
    /// The upper bound of its share in percent, 0 to 100. Default: 2.
    #[schemars(range(max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_percent: Option<u32>,
}

/// Known bad and good mail.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Corpus {
    /// ConfigMap with the mail. Required.
    pub config_map_ref: LocalRef,
}

/// Failed scans.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Errors {
    /// At most so many of a thousand, 0 to 1000. Default: 5.
    #[schemars(range(max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_mille: Option<u32>,
}

/// Scan times.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// The canary's 99th percentile in percent of the stable version's, 100 to 10000. Default: 125.
    #[schemars(range(min = 100, max = 10_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_max_percent: Option<u32>,
}

/// What follows when the analysis cannot decide.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum OnInconclusive {
    /// Wait for the user.
    Pause,
    /// Go back to the stable version.
    RollBack,
}

/// What the operator found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EngineStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The version that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_version: Option<StatusText>,
    /// The version that is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_version: Option<StatusText>,
    /// Closed, Open or HalfOpen, the worst of all gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerState>,
    /// Age of the oldest signatures in use, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_age_seconds: Option<u64>,
    /// What was measured, keyed by version.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["version".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<EngineVersionMeasures>,
    /// Ready, ResolvedRefs, SignaturesStale, BreakerOpen.
    #[schemars(schema_with = "conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Conditions,
}

/// The state of a circuit breaker.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum BreakerState {
    /// The engine is called.
    Closed,
    /// It is not called.
    Open,
    /// It is probed.
    HalfOpen,
}

/// What was measured of one version.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EngineVersionMeasures {
    /// The version.
    pub version: StatusText,
    /// Complete scans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scans: Option<u64>,
    /// Scans that found something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detections: Option<u64>,
    /// Scans that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<u64>,
    /// 99th percentile of the scan time, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_milliseconds: Option<u64>,
}
