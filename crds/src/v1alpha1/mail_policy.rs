//! MailPolicy: a policy that tenants share. The same shape is a tenant's own policy and the fleet's defaults and overrides.
//!
//! No schema default anywhere in here: an absent field is inherited.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{Conditions, LocalRef, conditions, undescribed};
use super::text::{EngineThresholds, Extension, HostName, ListValue, OneLine};
use crate::vocabulary::{Action, CheckMode, ListEntryType, OnTempError, TooFewEngines};

/// What is done with mail. An absent field is inherited: fleet overrides, then the tenant, its MailPolicy, the fleet's defaults, built in.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sekimori.dev",
    version = "v1alpha1",
    kind = "MailPolicy",
    plural = "mailpolicies",
    shortname = "mp",
    category = "sekimori",
    namespaced,
    status = "MailPolicyStatus",
    derive = "PartialEq",
    doc = "A policy that tenants of a namespace share.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(name = "Tenants", type_ = "integer", json_path = ".status.tenants"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct MailPolicySpec {
    /// What is done about malware and about what could not be scanned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anti_virus: Option<AntiVirus>,
    /// What is done about unwanted mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anti_spam: Option<AntiSpam>,
    /// Sender authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// Bounces of mail that the tenant never sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backscatter: Option<Backscatter>,
    /// Attachments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachments: Option<Attachments>,
    /// Allow and deny lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lists: Option<PolicyLists>,
}

/// What is done about malware and about what could not be scanned.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AntiVirus {
    /// When any engine finds malware. Built in: Reject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infected: Option<Action>,
    /// When the message is larger than the engines take. Built in: Quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_large: Option<Action>,
    /// When an engine's own limits (depth, files, time) were exceeded. Built in: Quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits_exceeded: Option<Action>,
    /// When the message is broken beyond reading. Built in: Quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub malformed: Option<Action>,
    /// Complete scans that are needed, 0 to 16. Built in: 1.
    #[schemars(range(max = 16))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_engines: Option<u32>,
    /// With fewer complete scans than that. Built in: Defer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_few_engines: Option<TooFewEngines>,
}

/// What is done about unwanted mail.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AntiSpam {
    /// Complete scans that are needed, 0 to 16. Built in: 1.
    #[schemars(range(max = 16))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_engines: Option<u32>,
    /// How the engines' opinions become one. Built in: LogOdds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<CombineSpec>,
    /// With fewer complete scans than the minimum. Built in: PassUnscanned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_few_engines: Option<TooFewEngines>,
    /// Put before the subject of a tagged message, in the subject's own charset. Built in: none (an empty text is none, too).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_tag: Option<OneLine>,
}

/// How the opinions of anti-spam engines become one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.logOdds) || self.type == 'LogOdds'").message("goes only with type LogOdds: remove it, or change that").field_path(".logOdds"),
    validation = Rule::new("!has(self.weightedSum) || self.type == 'WeightedSum'").message("goes only with type WeightedSum: remove it, or change that").field_path(".weightedSum"),
    validation = Rule::new("!has(self.maximum) || self.type == 'Maximum'").message("goes only with type Maximum: remove it, or change that").field_path(".maximum"),
    validation = Rule::new("!has(self.majority) || self.type == 'Majority'").message("goes only with type Majority: remove it, or change that").field_path(".majority")
)]
pub struct CombineSpec {
    /// LogOdds, WeightedSum, Maximum or Majority.
    #[serde(rename = "type")]
    pub kind: CombineType,
    /// Only with type LogOdds. A layer that states another type than the one below inherits nothing from its member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_odds: Option<LogOdds>,
    /// Only with type WeightedSum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weighted_sum: Option<ScoreBounds>,
    /// Only with type Maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<ScoreBounds>,
    /// Only with type Majority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub majority: Option<Majority>,
}

/// The ways to combine.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum CombineType {
    /// Sum of calibrated log-likelihood ratios, in decibans.
    LogOdds,
    /// Weighted sum of scores, in thresholds of the engines.
    WeightedSum,
    /// The highest score, in thresholds of the engines.
    Maximum,
    /// More than half of the weight says spam.
    Majority,
}

/// Bounds in decibans: 10 is ten to one that it is spam, 20 a hundred to one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.tagAtDecibans) || !has(self.quarantineAtDecibans) || self.tagAtDecibans <= self.quarantineAtDecibans")
        .message("must not be above quarantineAtDecibans").field_path(".tagAtDecibans"),
    validation = Rule::new("!has(self.quarantineAtDecibans) || !has(self.rejectAtDecibans) || self.quarantineAtDecibans <= self.rejectAtDecibans")
        .message("must not be above rejectAtDecibans").field_path(".quarantineAtDecibans"),
    validation = Rule::new("!has(self.tagAtDecibans) || !has(self.rejectAtDecibans) || self.tagAtDecibans <= self.rejectAtDecibans")
        .message("must not be above rejectAtDecibans").field_path(".tagAtDecibans")
)]
pub struct LogOdds {
    /// Added once, in decibans: how likely spam is before anything was looked at; -100 to 100. Built in: 0.
    #[schemars(range(min = -100, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior_decibans: Option<i32>,
    /// From here on tagged, in decibans; -1000 to 1000. Built in: 10.
    #[schemars(range(min = -1000, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag_at_decibans: Option<i32>,
    /// From here on quarantined, in decibans; -1000 to 1000. Built in: 20.
    #[schemars(range(min = -1000, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_at_decibans: Option<i32>,
    /// From here on rejected, in decibans; -1000 to 1000. Built in: 30.
    #[schemars(range(min = -1000, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject_at_decibans: Option<i32>,
}

/// Bounds in thresholds of the engines, in quotes: "1" is where an engine itself says spam, "1.5" half as much again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.tagAt) || !has(self.quarantineAt) || double(self.tagAt) <= double(self.quarantineAt)")
        .message("must not be above quarantineAt").field_path(".tagAt"),
    validation = Rule::new("!has(self.quarantineAt) || !has(self.rejectAt) || double(self.quarantineAt) <= double(self.rejectAt)")
        .message("must not be above rejectAt").field_path(".quarantineAt"),
    validation = Rule::new("!has(self.tagAt) || !has(self.rejectAt) || double(self.tagAt) <= double(self.rejectAt)")
        .message("must not be above rejectAt").field_path(".tagAt")
)]
pub struct ScoreBounds {
    /// From here on tagged, in thresholds. Built in: "1".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag_at: Option<EngineThresholds>,
    /// From here on quarantined, in thresholds. Built in: "1.50".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_at: Option<EngineThresholds>,
    /// From here on rejected, in thresholds. Built in: "2".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject_at: Option<EngineThresholds>,
}

/// What a majority leads to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Majority {
    /// What is done when more than half of the weight says spam. Built in: Quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
}

/// Sender authentication.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// SPF (RFC 7208).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spf: Option<Spf>,
    /// DMARC (RFC 9989), and DKIM that it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dmarc: Option<Dmarc>,
    /// ARC (RFC 8617).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arc: Option<Arc>,
}

/// SPF.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Spf {
    /// Disabled, Observe, or Enforce: a fail is refused with 550 5.7.23. Built in: Observe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<CheckMode>,
}

/// DMARC.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Dmarc {
    /// Disabled, Observe, or Enforce: the policy of the From domain's owner is followed. Built in: Enforce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<CheckMode>,
    /// When DNS fails temporarily. Built in: Continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_temp_error: Option<OnTempError>,
}

/// ARC.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Arc {
    /// Disabled, Observe, or Enforce: a chain sealed by a trusted sealer rescues a DMARC fail. Built in: Observe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<CheckMode>,
    /// Domains whose seals count. Built in: none.
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_sealers: Option<Vec<HostName>>,
}

/// Bounces of mail that the tenant never sent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Backscatter {
    /// Disabled, Observe, or Enforce: the null sender needs a valid BATV tag. Built in: Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<CheckMode>,
    /// Secret with the BATV keys, named `0` to `9`. Built in: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalRef>,
}

/// Attachments.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Attachments {
    /// File name extensions, lower case, without the dot, that are rejected, also in archives; of an archive not looked into to its end, `antiVirus.limitsExceeded` holds. Built in: none.
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_types: Option<Vec<Extension>>,
    /// What is done with archives that nobody can look into. Built in: Deliver (marked).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted_archives: Option<Action>,
}

/// Allow and deny lists. A list replaces the inherited one as a whole; an empty list is none.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyLists {
    /// Counts as certainly not spam; never skips anti-virus. Built in: none.
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into(), "value".into()]))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<ListEntrySpec>>,
    /// Counts as certainly spam. Built in: none.
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into(), "value".into()]))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<ListEntrySpec>>,
}

/// One list entry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'Network' || isCIDR(self.value)").message("is not a network: write 192.0.2.0/24 or 2001:db8::/32 (one address: /32 or /128)").field_path(".value"),
    validation = Rule::new("self.type != 'Domain' || self.value.matches('^[a-z0-9_-]+([.][a-z0-9_-]+)*$')").message("is not a domain in lower-case A-labels such as partner.example").field_path(".value"),
    validation = Rule::new("self.type != 'Address' || self.value.matches('^[^@]+@[a-z0-9_-]+([.][a-z0-9_-]+)*$')").message("is not an address such as info@partner.example, its domain in lower-case A-labels").field_path(".value")
)]
pub struct ListEntrySpec {
    /// Domain, Address or Network.
    #[serde(rename = "type")]
    pub kind: ListEntryType,
    /// A domain, an address, or a network in CIDR form.
    pub value: ListValue,
}

/// What the operator found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MailPolicyStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many tenants refer to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<u32>,
    /// Ready, ResolvedRefs.
    #[schemars(schema_with = "conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Conditions,
}
