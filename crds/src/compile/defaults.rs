//! Every built-in value, in one place: what holds where nobody said anything.

use crate::snapshot::{
    AntiSpamPolicy, AntiVirusPolicy, AttachmentPolicy, AuthenticationPolicy, BreakerPart, Combine, ListenerLimits, Lists, Policy, Thresholds,
};
use crate::units::{ByteSize, Duration};
use crate::vocabulary::{
    Action, BareLineEndings, CheckMode, DeliveryMode, Enforcement, EngineMode, ListenerRole, OnTempError, Ownership, RouteLookup, RouteTls,
    TenantState, TooFewEngines, VerdictHeader,
};

/// Namespace of an object that names none, outside a cluster.
pub const NAMESPACE: &str = "default";

/// `GatewayFleet.spec.quarantine.retention`.
pub const QUARANTINE_RETENTION: Duration = Duration::from_secs(720 * 3600);
/// `GatewayFleet.spec.startup.maxWait`.
pub const STARTUP_MAX_WAIT: Duration = Duration::from_secs(300);
/// Warm engines that a class needs before a fleet takes mail, where its own policy says nothing.
pub const STARTUP_MINIMUM_ENGINES: u32 = 1;
/// `GatewayFleet.spec.verdictHeader`.
pub const VERDICT_HEADER: VerdictHeader = VerdictHeader::Summary;
/// `GatewayFleet.spec.tenants.ownership`.
pub const OWNERSHIP: Ownership = Ownership::Grant;
/// `GatewayFleet.spec.drain.timeout`.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(1800);
/// `GatewayFleet.spec.listeners[].role`.
pub const LISTENER_ROLE: ListenerRole = ListenerRole::Inbound;
/// `GatewayFleet.spec.listeners[].bareLineEndings`.
pub const BARE_LINE_ENDINGS: BareLineEndings = BareLineEndings::Refuse;
/// `GatewayFleet.spec.listeners[].limits`.
pub const LISTENER_LIMITS: ListenerLimits =
    ListenerLimits { connections: 2000, connections_per_address: 50, messages_per_session: 100, recipients: 1000, message_size: ByteSize(64 << 20) };

/// `Engine.spec.mode`.
pub const ENGINE_MODE: EngineMode = EngineMode::Enforce;
/// `Engine.spec.runtime.inPod.signatures.maxAge`.
pub const SIGNATURES_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// `Engine.spec.timeout`.
pub const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);
/// `Engine.spec.concurrency`.
pub const ENGINE_CONCURRENCY: u32 = 32;
/// `Engine.spec.maxBytes`.
pub const ENGINE_MAX_BYTES: ByteSize = ByteSize(30 << 20);
/// `Engine.spec.weightPercent`.
pub const ENGINE_WEIGHT_PERCENT: u32 = 100;
/// `Engine.spec.probe.interval`.
pub const ENGINE_PROBE_INTERVAL: Duration = Duration::from_secs(300);
/// `Engine.spec.breaker`.
pub const ENGINE_BREAKER: BreakerPart = BreakerPart { failures: 5, window: 20, open_for: Duration::from_secs(30) };

/// `TenantDomain.spec.state`.
pub const TENANT_STATE: TenantState = TenantState::Active;
/// `TenantDomain.spec.enforcement`.
pub const ENFORCEMENT: Enforcement = Enforcement::Enforce;
/// `TenantDomain.spec.delivery`.
pub const DELIVERY: DeliveryMode = DeliveryMode::InlineElseQueue;
/// `TenantDomain.spec.softBounce`.
pub const SOFT_BOUNCE: bool = false;
/// `TenantDomain.spec.routes[].lookup`.
pub const ROUTE_LOOKUP: RouteLookup = RouteLookup::Address;
/// `TenantDomain.spec.routes[].port`.
pub const ROUTE_PORT: u16 = 25;
/// `TenantDomain.spec.routes[].priority`.
pub const ROUTE_PRIORITY: u32 = 10;
/// `TenantDomain.spec.routes[].weight`.
pub const ROUTE_WEIGHT: u32 = 100;
/// `TenantDomain.spec.routes[].tls.mode`.
pub const ROUTE_TLS: RouteTls = RouteTls::Opportunistic;

/// Bounds of `combine` LogOdds, in decibans.
pub const LOG_ODDS: Thresholds = Thresholds { tag_at: Some(10), quarantine_at: Some(20), reject_at: Some(30) };
/// `combine.logOdds.priorDecibans`.
pub const PRIOR_DECIBANS: i32 = 0;
/// Bounds of `combine` WeightedSum and Maximum, in hundredths of an engine's threshold.
pub const SCORE_BOUNDS: Thresholds = Thresholds { tag_at: Some(100), quarantine_at: Some(150), reject_at: Some(200) };
/// `combine.majority.action`.
pub const MAJORITY_ACTION: Action = Action::Quarantine;

/// The policy where nobody said anything.
pub const fn policy() -> Policy {
    Policy {
        anti_virus: AntiVirusPolicy {
            infected: Action::Reject,
            too_large: Action::Quarantine,
            limits_exceeded: Action::Quarantine,
            malformed: Action::Quarantine,
            minimum_engines: 1,
            too_few_engines: TooFewEngines::Defer,
        },
        anti_spam: AntiSpamPolicy {
            minimum_engines: 1,
            combine: Combine::LogOdds { prior_decibans: PRIOR_DECIBANS, at: LOG_ODDS },
            too_few_engines: TooFewEngines::PassUnscanned,
            subject_tag: String::new(),
        },
        authentication: AuthenticationPolicy { spf: CheckMode::Observe, dmarc: CheckMode::Enforce, on_temp_error: OnTempError::Continue },
        attachments: AttachmentPolicy { block_types: Vec::new(), encrypted_archives: Action::Deliver },
        lists: Lists { allow: Vec::new(), deny: Vec::new() },
    }
}
