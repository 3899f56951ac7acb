//! What a gateway runs from: a keyed sum of one fleet part and one part per tenant.
//!
//! Plain data, complete by itself (references are resolved, defaults and overrides applied), with no Kubernetes type in it. `compile` makes parts,
//! a gateway reads them; the same document is kept on disk as the last good one. Parts are compared and shipped one by one, so a
//! change of one tenant costs the size of one tenant, and a part that a gateway does not understand rejects that tenant alone (`requires`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use crate::units::{ByteSize, Duration};
use crate::vocabulary::{
    Action, BareLineEndings, CheckMode, DeliveryMode, Enforcement, EngineClass, EngineMode, EngineProtocol, ListEntryType, ListenerRole, ListenerTls,
    OnTempError, RouteLookup, RouteTls, TenantState, TooFewEngines, VerdictHeader,
};

/// The version of the document's shape. A reader refuses another one.
pub const FORMAT: u32 = 1;

/// Names one part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PartKey {
    /// The fleet's own settings. Written `fleet`.
    Fleet,
    /// One TenantDomain object. Written `tenant/NAMESPACE/NAME`.
    Tenant {
        /// Namespace of the object.
        namespace: String,
        /// Name of the object.
        name: String,
    },
}

impl fmt::Display for PartKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("fleet"),
            Self::Tenant { namespace, name } => write!(f, "tenant/{namespace}/{name}"),
        }
    }
}

impl FromStr for PartKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "fleet" {
            return Ok(Self::Fleet);
        }
        text.strip_prefix("tenant/")
            .and_then(|rest| rest.split_once('/'))
            .map(|(namespace, name)| Self::Tenant { namespace: namespace.into(), name: name.into() })
            .ok_or_else(|| format!("'{text}' is not a part key: 'fleet' or 'tenant/NAMESPACE/NAME'"))
    }
}

impl Serialize for PartKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PartKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// One part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "camelCase")]
pub enum Part {
    /// The fleet's settings.
    Fleet(Box<FleetPart>),
    /// One tenant.
    Tenant(Box<TenantPart>),
}

/// 32 bytes that stand for a set of parts; see [`Snapshot::hash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RollingHash([u64; 4]);

impl RollingHash {
    /// Adds a part.
    pub fn add(&mut self, key: &PartKey, part: &Part) {
        self.add_words(part_words(&key.to_string(), &part_json(part)));
    }

    /// Takes a part away that was added before.
    pub fn remove(&mut self, key: &PartKey, part: &Part) {
        self.remove_words(part_words(&key.to_string(), &part_json(part)));
    }

    /// Adds what [`part_words`] made of a part.
    pub fn add_words(&mut self, words: [u64; 4]) {
        for (sum, word) in self.0.iter_mut().zip(words) {
            *sum = sum.wrapping_add(word);
        }
    }

    /// Takes away what was added before.
    pub fn remove_words(&mut self, words: [u64; 4]) {
        for (sum, word) in self.0.iter_mut().zip(words) {
            *sum = sum.wrapping_sub(word);
        }
    }

    /// As bytes, most significant first.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (eight, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *eight = word.to_be_bytes();
        }
        bytes
    }

    /// The reverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, eight) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_be_bytes(*eight);
        }
        Self(words)
    }
}

/// A part as it goes over the stream and into the hash.
pub fn part_json(part: &Part) -> Vec<u8> {
    serde_json::to_vec(part).expect("a part has only string keys, so it always becomes JSON")
}

/// What one part adds to a [`RollingHash`]: a function of its key and of its JSON as it was sent, so that a gateway of another version, which would write
/// the part differently, comes to the same sum.
pub fn part_words(key: &str, json: &[u8]) -> [u64; 4] {
    let mut hasher = Sha256::new();
    hasher.update((key.len() as u64).to_be_bytes());
    hasher.update(key.as_bytes());
    hasher.update(json);
    RollingHash::from_bytes(hasher.finalize().into()).0
}

impl fmt::Display for RollingHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, "{word:016x}"))
    }
}

/// All that a gateway needs to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`FORMAT`].
    pub format: u32,
    /// The parts by key.
    pub parts: BTreeMap<PartKey, Part>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { format: FORMAT, parts: BTreeMap::new() }
    }
}

impl Snapshot {
    /// The sum of the parts' hashes: equal sets have equal hashes, in whatever order they came, and one changed part needs one subtraction and one addition.
    pub fn hash(&self) -> RollingHash {
        let mut sum = RollingHash::default();
        self.parts.iter().for_each(|(key, part)| sum.add(key, part));
        sum
    }

    /// The fleet part, if there is one.
    pub fn fleet(&self) -> Option<&FleetPart> {
        match self.parts.get(&PartKey::Fleet) {
            Some(Part::Fleet(fleet)) => Some(fleet),
            _ => None,
        }
    }

    /// The tenants.
    pub fn tenants(&self) -> impl Iterator<Item = (&PartKey, &TenantPart)> {
        self.parts.iter().filter_map(|(key, part)| match part {
            Part::Tenant(tenant) => Some((key, &**tenant)),
            Part::Fleet(_) => None,
        })
    }
}

/// The fleet's own settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FleetPart {
    /// Namespace of the GatewayFleet.
    pub namespace: String,
    /// Name of the GatewayFleet.
    pub name: String,
    /// In the banner, in `Received`, and the authserv-id.
    pub hostname: String,
    /// At least one.
    pub listeners: Vec<ListenerPart>,
    /// The engines that the fleet loads.
    pub engines: Vec<EnginePart>,
    /// `address:port` of DNS resolvers; empty: the system's.
    pub resolver_addresses: Vec<String>,
    /// Private and loopback networks where routes may lead.
    pub egress_allowed_networks: Vec<IpNet>,
    /// How long quarantined mail and dead letters are kept.
    pub quarantine_retention: Duration,
    /// How long a starting gateway waits for its engines.
    pub startup_max_wait: Duration,
    /// The fleet's own minimum of warm engines before it takes mail.
    pub startup_minimum_engines: ClassMinimum,
    /// What the trace header says.
    pub verdict_header: VerdictHeader,
    /// Capabilities that a gateway must have to use this part.
    pub requires: BTreeSet<String>,
}

/// A number per engine class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClassMinimum {
    /// Anti-virus engines.
    pub anti_virus: u32,
    /// Anti-spam engines.
    pub anti_spam: u32,
}

/// One SMTP listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerPart {
    /// Unique within the fleet.
    pub name: String,
    /// TCP port to bind.
    pub port: u16,
    /// Inbound or Relay.
    pub role: ListenerRole,
    /// What TLS is offered.
    pub tls: ListenerTls,
    /// Certificates, the first is the default, the rest by SNI. Empty only with `tls` Disabled.
    pub certificates: Vec<CertificatePart>,
    /// Present: a PROXY header is required from these networks and refused from others. `Some(empty)` trusts nobody.
    pub proxy_trusted_networks: Option<Vec<IpNet>>,
    /// Bare CR and LF in content.
    pub bare_line_endings: BareLineEndings,
    /// Bounds.
    pub limits: ListenerLimits,
}

/// A certificate chain with its key, PEM. Its Debug does not show the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificatePart {
    /// Name of the Secret that it came from.
    pub name: String,
    /// `tls.crt`.
    pub chain_pem: String,
    /// `tls.key`.
    pub key_pem: String,
}

impl fmt::Debug for CertificatePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificatePart").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The bounds of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerLimits {
    /// Open connections.
    pub connections: u32,
    /// Open connections of one client address.
    pub connections_per_address: u32,
    /// Transactions in one session.
    pub messages_per_session: u32,
    /// RCPT commands accepted in one transaction.
    pub recipients: u32,
    /// Bytes of one message.
    pub message_size: ByteSize,
}

/// One engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnginePart {
    /// Name of the Engine object.
    pub name: String,
    /// Class.
    pub class: EngineClass,
    /// Engines of one family share a vote.
    pub family: String,
    /// Whether its opinion counts.
    pub mode: EngineMode,
    /// Protocol.
    pub protocol: EngineProtocol,
    /// Where it listens.
    pub endpoint: EngineEndpoint,
    /// The version that the operator or user names (InPod engines).
    pub version: Option<String>,
    /// Deadline of one scan.
    pub timeout: Duration,
    /// Scans at once.
    pub concurrency: u32,
    /// Larger messages are Unscannable(TooLarge) for it.
    pub max_bytes: ByteSize,
    /// Weight of its opinion, 100 is full.
    pub weight_percent: u32,
    /// Time between probes.
    pub probe_interval: Duration,
    /// Circuit breaker.
    pub breaker: BreakerPart,
}

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EngineEndpoint {
    /// Inside the gateway.
    Builtin,
    /// `host:port`.
    Address(String),
    /// Path of a unix socket.
    Socket(String),
}

/// A circuit breaker's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BreakerPart {
    /// Failures that start a probe.
    pub failures: u32,
    /// The last so many scans are looked at.
    pub window: u32,
    /// Time until an open breaker probes again.
    pub open_for: Duration,
}

/// A capability that no gateway has: a part that requires it says that the tenant is there with its domains, and that whoever has an earlier form of it
/// keeps that. For a tenant that cannot be compiled, and whose last good form the operator does not know. See [`stand_in`].
pub const EARLIER_FORM: &str = "earlier-form";

/// JSON in place of a tenant's part, see [`EARLIER_FORM`]. Gateways without an earlier form defer mail for its domains.
pub fn stand_in(domains: &[String]) -> Vec<u8> {
    serde_json::json!({"requires": [EARLIER_FORM], "domains": domains}).to_string().into_bytes()
}

/// One tenant: a TenantDomain with everything that it refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TenantPart {
    /// Namespace of the TenantDomain.
    pub namespace: String,
    /// Name of the TenantDomain.
    pub name: String,
    /// Lower-case A-labels; `*.example.com` covers every name below, not `example.com` itself.
    pub domains: Vec<String>,
    /// State.
    pub state: TenantState,
    /// Since when it is suspended, seconds since 1970; only with `state: Suspended`, where it is known.
    pub suspended_since: Option<u64>,
    /// Whether verdicts are acted on.
    pub enforcement: Enforcement,
    /// At least one.
    pub routes: Vec<RoutePart>,
    /// How accepted mail is handed over.
    pub delivery: DeliveryMode,
    /// Every 5xx of the next hop is a retry.
    pub soft_bounce: bool,
    /// This gateway's share of the rate for the fleet; none: no limit.
    pub messages_per_hour: Option<u32>,
    /// The effective policy.
    pub policy: Policy,
    /// Capabilities that a gateway must have to use this part.
    pub requires: BTreeSet<String>,
}

/// One way to the tenant's mail server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoutePart {
    /// Unique within the tenant.
    pub name: String,
    /// Host name or address literal.
    pub host: String,
    /// How the host becomes addresses.
    pub lookup: RouteLookup,
    /// TCP port.
    pub port: u16,
    /// Lower first.
    pub priority: u32,
    /// Share within one priority.
    pub weight: u32,
    /// TLS demand.
    pub tls: RouteTls,
}

/// A tenant's effective policy: nothing is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Malware.
    pub anti_virus: AntiVirusPolicy,
    /// Unwanted mail.
    pub anti_spam: AntiSpamPolicy,
    /// SPF, DKIM, DMARC.
    pub authentication: AuthenticationPolicy,
    /// Attachments.
    pub attachments: AttachmentPolicy,
    /// Allow and deny lists.
    pub lists: Lists,
}

/// What is done about malware and about what could not be scanned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AntiVirusPolicy {
    /// Infected by any engine.
    pub infected: Action,
    /// Larger than an engine takes.
    pub too_large: Action,
    /// An engine's limits (depth, files, time) were exceeded.
    pub limits_exceeded: Action,
    /// Broken beyond reading.
    pub malformed: Action,
    /// Complete scans needed.
    pub minimum_engines: u32,
    /// With fewer.
    pub too_few_engines: TooFewEngines,
}

/// What is done about spam.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AntiSpamPolicy {
    /// Complete scans needed.
    pub minimum_engines: u32,
    /// How opinions become one.
    pub combine: Combine,
    /// With fewer engines.
    pub too_few_engines: TooFewEngines,
    /// Put before the subject of a tagged message; empty: none.
    pub subject_tag: String,
}

/// How anti-spam opinions become one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Combine {
    /// Sum of calibrated log-likelihood ratios, in decibans.
    LogOdds {
        /// Added once.
        prior_decibans: i32,
        /// Bounds in decibans.
        at: Thresholds,
    },
    /// Weighted sum of scores, in hundredths of each engine's own threshold (100: the engine says spam).
    WeightedSum {
        /// Bounds in hundredths of a threshold.
        at: Thresholds,
    },
    /// The highest score, in hundredths of each engine's own threshold.
    Maximum {
        /// Bounds in hundredths of a threshold.
        at: Thresholds,
    },
    /// More than half of the weight says spam.
    Majority {
        /// What then happens.
        action: Action,
    },
}

/// From where on a score is acted on; absent: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Thresholds {
    /// Tag.
    pub tag_at: Option<i32>,
    /// Quarantine.
    pub quarantine_at: Option<i32>,
    /// Reject.
    pub reject_at: Option<i32>,
}

/// Sender authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationPolicy {
    /// SPF (RFC 7208). Enforce: a fail is refused with 550 5.7.23.
    pub spf: CheckMode,
    /// DMARC (RFC 9989), and DKIM that it needs. Enforce: the domain owner's policy is followed.
    pub dmarc: CheckMode,
    /// When DNS fails.
    pub on_temp_error: OnTempError,
}

/// Attachments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachmentPolicy {
    /// File name extensions without the dot, lower case, that are rejected.
    pub block_types: Vec<String>,
    /// What is done with archives that nobody can look into.
    pub encrypted_archives: Action,
}

/// Allow and deny lists. Allow never skips anti-virus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lists {
    /// Counts as certainly not spam.
    pub allow: Vec<ListEntry>,
    /// Counts as certainly spam.
    pub deny: Vec<ListEntry>,
}

/// One list entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListEntry {
    /// What it compares.
    #[serde(rename = "type")]
    pub kind: ListEntryType,
    /// A domain, an address or a network.
    pub value: String,
}
