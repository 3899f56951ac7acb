//! TenantDomain: a customer's domains, the way to its mail server, and what is done with its mail.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{Conditions, LocalRef, NamespacedRef, conditions, undescribed};
use super::mail_policy::MailPolicySpec;
use super::text::{Domain, Label, MailAddress, Network, RouteHost, Selector};
use crate::units::Duration;
use crate::vocabulary::{DeliveryMode, Enforcement, RouteLookup, RouteTls, TenantState};

/// A customer's domains, the way to its mail server, and what is done with its mail.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sekimori.dev",
    version = "v1alpha1",
    kind = "TenantDomain",
    plural = "tenantdomains",
    shortname = "td",
    category = "sekimori",
    namespaced,
    status = "TenantDomainStatus",
    derive = "PartialEq",
    doc = "A customer's domains, the way to its mail server, and what is done with its mail.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(name = "Domains", type_ = "string", json_path = ".spec.domains"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state", priority = "1"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Programmed", type_ = "string", json_path = ".status.conditions[?(@.type==\"Programmed\")].status"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.delivery) || self.delivery != 'Inline' || !has(self.policy) || !has(self.policy.antiVirus) || ((!has(self.policy.antiVirus.infected) || self.policy.antiVirus.infected != 'Quarantine') && (!has(self.policy.antiVirus.tooLarge) || self.policy.antiVirus.tooLarge != 'Quarantine') && (!has(self.policy.antiVirus.limitsExceeded) || self.policy.antiVirus.limitsExceeded != 'Quarantine') && (!has(self.policy.antiVirus.malformed) || self.policy.antiVirus.malformed != 'Quarantine') && (!has(self.policy.antiVirus.tooFewEngines) || self.policy.antiVirus.tooFewEngines != 'Quarantine'))")
        .message("says Quarantine, but delivery Inline keeps nothing at rest: choose Reject or Defer, or delivery InlineElseQueue").field_path(".policy.antiVirus"),
    validation = Rule::new("!has(self.delivery) || self.delivery != 'Inline' || !has(self.policy) || !has(self.policy.antiSpam) || ((!has(self.policy.antiSpam.tooFewEngines) || self.policy.antiSpam.tooFewEngines != 'Quarantine') && (!has(self.policy.antiSpam.combine) || ((!has(self.policy.antiSpam.combine.logOdds) || !has(self.policy.antiSpam.combine.logOdds.quarantineAtDecibans)) && (!has(self.policy.antiSpam.combine.weightedSum) || !has(self.policy.antiSpam.combine.weightedSum.quarantineAt)) && (!has(self.policy.antiSpam.combine.maximum) || !has(self.policy.antiSpam.combine.maximum.quarantineAt)) && (!has(self.policy.antiSpam.combine.majority) || !has(self.policy.antiSpam.combine.majority.action) || self.policy.antiSpam.combine.majority.action != 'Quarantine'))))")
        .message("speaks of quarantine, but delivery Inline keeps nothing at rest: leave that field out or choose Reject, or delivery InlineElseQueue").field_path(".policy.antiSpam"),
    validation = Rule::new("!has(self.delivery) || self.delivery != 'Inline' || !has(self.policy) || !has(self.policy.attachments) || !has(self.policy.attachments.encryptedArchives) || self.policy.attachments.encryptedArchives != 'Quarantine'")
        .message("says Quarantine, but delivery Inline keeps nothing at rest: choose Deliver or Reject, or delivery InlineElseQueue").field_path(".policy.attachments")
)]
pub struct TenantDomainSpec {
    /// The GatewayFleet that serves it. Required.
    pub fleet_ref: NamespacedRef,
    /// Active, Hold (accept, deliver nothing) or Suspended (refuse). Default: Active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TenantState>,
    /// Enforce, or Observe: judge and mark everything, act on nothing but delivery (for migrations). Default: Enforce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,
    /// The domains, lower-case A-labels; `*.example.com` is every name below example.com, not example.com itself. Required, 1 to 256.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub domains: Vec<Domain>,
    /// The ways to the customer's mail server, keyed by name. Required, 1 to 32.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub routes: Vec<Route>,
    /// InlineElseQueue, Queue, or Inline (never at rest; so no quarantine and no hold). Default: InlineElseQueue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliveryMode>,
    /// Every 5xx of the next hop is a retry: for migrations. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_bounce: Option<bool>,
    /// Which recipients exist. Default: Any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipients: Option<Recipients>,
    /// A MailPolicy of the same namespace. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<LocalRef>,
    /// Wins over policyRef, field by field. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<MailPolicySpec>,
    /// Limits, for the whole fleet. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<TenantLimits>,
    /// Mail from the tenant to the Internet. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Outbound>,
}

/// One way to the customer's mail server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.lookup) || self.lookup != 'Mx' || !isIP(self.host)")
    .message("is an IP address, which has no MX: use lookup Address").field_path(".host"))]
pub struct Route {
    /// Unique within the tenant. Required.
    pub name: Label,
    /// Host name, or an IP address without brackets. Required.
    pub host: RouteHost,
    /// Address (A and AAAA) or Mx. Default: Address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookup: Option<RouteLookup>,
    /// TCP port. Default: 25.
    #[schemars(range(min = 1, max = 65535))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Lower first, 0 to 65535. Default: 10.
    #[schemars(range(max = 65535))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Share within one priority, 1 to 65535. Default: 100.
    #[schemars(range(min = 1, max = 65535))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// TLS towards it. Default: Opportunistic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RouteTlsSpec>,
}

/// TLS towards a route.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RouteTlsSpec {
    /// Disabled, Opportunistic, Required, Dane or MtaSts. Default: Opportunistic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<RouteTls>,
}

/// Which recipients exist.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.callAhead) || self.type == 'CallAhead'").message("goes only with type CallAhead: remove it, or change that").field_path(".callAhead"),
    validation = Rule::new("!has(self.list) || self.type == 'List'").message("goes only with type List: remove it, or change that").field_path(".list"),
    validation = Rule::new("self.type != 'List' || has(self.list)").message("is required with type List: add it").reason(Reason::FieldValueRequired).field_path(".list")
)]
pub struct Recipients {
    /// Any, CallAhead or List.
    #[serde(rename = "type")]
    pub kind: RecipientsType,
    /// Only with type CallAhead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_ahead: Option<CallAhead>,
    /// Only with type List.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<RecipientList>,
}

/// How recipients are known.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = undescribed)]
pub enum RecipientsType {
    /// Every address of the domains is taken.
    Any,
    /// The tenant's server is asked.
    CallAhead,
    /// They are listed.
    List,
}

/// Asking the tenant's server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CallAhead {
    /// How long an answer counts. Default: 1h.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('168h')").message("must be from 1m to 168h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_for: Option<Duration>,
}

/// Recipients that are listed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.configMapRef) || has(self.addresses)").message("needs configMapRef or addresses").reason(Reason::FieldValueRequired))]
pub struct RecipientList {
    /// ConfigMap whose key `addresses` has one address a line. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<LocalRef>,
    /// The addresses themselves. Default: none.
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<MailAddress>,
}

/// Limits of a tenant, for the whole fleet.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TenantLimits {
    /// Messages in an hour, 1 to 1000000000; the operator hands each pod its share. Default: no limit.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_hour: Option<u32>,
}

/// Mail from the tenant to the Internet.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Outbound {
    /// Secret with one key per user, its value a password hash. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalRef>,
    /// Networks that may relay without a password; they count only within the grant's relayNetworks. Default: none.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relay_from: Vec<Network>,
    /// Signatures, keyed by selector. Default: none.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["selector".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dkim: Vec<DkimKey>,
}

/// One DKIM key.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DkimKey {
    /// The selector, `s1` for `s1._domainkey`. Required.
    pub selector: Selector,
    /// Secret with the key `private.pem`. Required.
    pub secret_ref: LocalRef,
}

/// What the operator and the gateways say about it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TenantDomainStatus {
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many pods of the fleet serve this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programmed_pods: Option<u32>,
    /// Since when it is suspended, seconds since 1970.
    #[schemars(range(min = 0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_since: Option<i64>,
    /// Ready, Accepted, Programmed, Conflicted, ResolvedRefs, RouteRefusing.
    #[schemars(schema_with = "conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Conditions,
}
