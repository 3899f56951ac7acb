//! The status of a GatewayFleet.

use sekimori_crds::compile::{self, Problem, Severity};
use sekimori_crds::v1alpha1::GatewayFleet;
use sekimori_crds::v1alpha1::gateway_fleet::{FleetEngineStatus, FleetPhase, GatewayFleetStatus, QuarantineStoreType};
use sekimori_crds::v1alpha1::text::{Image, ObjectName, StatusText};

use super::{ConditionType, Fact, Reason, Trouble, merge, sentence};
use crate::fleet::{MAX_UNAVAILABLE, replicas, startup_max_wait_ms};
use crate::names;
use crate::plan::{Pins, selector_text};
use crate::update::{Barred, DrainKind, Observation, Outcome, PROGRESS_MS, Pause, PodView, Serving, Step};

/// What a fleet's status is made of.
#[derive(Clone, Debug)]
pub struct FleetReport<'a> {
    /// The object, with its present status.
    pub fleet: &'a GatewayFleet,
    /// What is wrong with it or deserves a word, from `validate`, `plan` and `compile`.
    pub problems: &'a [Problem],
    /// What was pinned. `None`: an error kept everything as it is, and the pins too.
    pub pins: Option<&'a Pins>,
    /// What is there.
    pub seen: &'a Observation,
    /// What is being done. `None`: an error keeps the pods as they are.
    pub step: Option<&'a Step>,
    /// What the gateways say.
    pub measured: &'a Measured,
    /// Containers that do not run.
    pub troubles: &'a [Trouble],
}

/// What the gateways of a fleet say, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Messages that wait for our own worker, disk or scan slot.
    pub runnable_backlog: Option<u64>,
    /// Age of the oldest message, in seconds.
    pub oldest_message_seconds: Option<u64>,
    /// Revision that every ready gateway runs.
    pub config_revision: Option<String>,
    /// Tenants that are served.
    pub tenants: Option<u32>,
    /// Tenants whose removal waits for a confirmation.
    pub removals_waiting: usize,
    /// Whether every one of enough clients had an address of the cluster's own. `None`: too few came.
    pub clients_masked: Option<bool>,
    /// Gateways that run with an old configuration, or that the operator does not hear from.
    pub stale: Vec<u32>,
    /// Why a gateway does not take the fleet's own newest settings.
    pub refused: Option<String>,
    /// What is wrong with certificates of the listeners, each with the name of its Secret.
    pub certificates: Vec<String>,
}

/// The status as it should be written.
pub fn fleet_status(report: &FleetReport<'_>, now_ms: u64) -> GatewayFleetStatus {
    let before = report.fleet.status.clone().unwrap_or_default();
    let counts = Counts::of(report, now_ms);
    let name = report.fleet.metadata.name.as_deref().unwrap_or_default();
    let facts = [
        ready(&counts, report),
        accepted(report.problems),
        resolved(report),
        supported(report.problems),
        updated(report),
        draining(report),
        quarantine(report.fleet, counts.wanted),
        removals(report.measured),
        client_ip(report.measured),
        stale(report.measured),
    ];
    let generation = report.fleet.metadata.generation;
    GatewayFleetStatus {
        observed_generation: generation,
        phase: Some(phase(&counts, report)),
        replicas: Some(counts.there),
        ready_replicas: Some(counts.ready),
        draining_replicas: Some(counts.draining),
        selector: Some(StatusText(selector_text(name))),
        runnable_backlog: report.measured.runnable_backlog,
        oldest_message_seconds: report.measured.oldest_message_seconds,
        config_revision: report.measured.config_revision.clone().map(StatusText),
        image: report.pins.map_or(before.image, |pins| Some(Image(pins.image.clone()))),
        template_version: report.pins.map_or(before.template_version, |pins| Some(pins.template_version)),
        engines: report.pins.map_or_else(|| before.engines.clone(), |pins| engines(pins, &before.engines)),
        tenants: report.measured.tenants,
        conditions: merge(&before.conditions, &facts, generation, now_ms),
    }
}

/// The versions that new pods run, and what a rollout noted beside them.
fn engines(pins: &Pins, before: &[FleetEngineStatus]) -> Vec<FleetEngineStatus> {
    let canary = |name: &str| before.iter().find(|engine| &*engine.name == name).and_then(|engine| engine.canary.clone());
    pins.engine_versions
        .iter()
        .map(|(name, version)| FleetEngineStatus { name: ObjectName(name.clone()), version: Some(StatusText(version.clone())), canary: canary(name) })
        .collect()
}

struct Counts {
    wanted: u32,
    there: u32,
    ready: u32,
    draining: u32,
    /// Pods that should serve by now, and do not.
    late: Vec<u32>,
}

impl Counts {
    fn of(report: &FleetReport<'_>, now_ms: u64) -> Self {
        let pods = &report.seen.pods;
        let count = |which: &dyn Fn(&&PodView) -> bool| u32::try_from(pods.iter().filter(which).count()).unwrap_or(u32::MAX);
        let deleting = report.fleet.metadata.deletion_timestamp.is_some();
        let wanted = if deleting { 0 } else { replicas(report.fleet) };
        let patience_ms = startup_max_wait_ms(report.fleet).saturating_add(PROGRESS_MS);
        let late =
            |pod: &&PodView| pod.ordinal < wanted && !serves(pod) && pod.drain.is_none() && now_ms >= pod.created_ms.saturating_add(patience_ms);
        Self {
            wanted,
            there: count(&|_| true),
            ready: count(&|pod| serves(pod) && pod.drain.is_none()),
            draining: count(&|pod| pod.drain.is_some()),
            late: pods.iter().filter(late).map(|pod| pod.ordinal).collect(),
        }
    }
}

fn serves(pod: &PodView) -> bool {
    pod.serving == Serving::Yes && !pod.terminating
}

fn phase(counts: &Counts, report: &FleetReport<'_>) -> FleetPhase {
    let retires = report.seen.pods.iter().any(|pod| pod.drain.is_some_and(|drain| drain.kind == DrainKind::Retire));
    match report.step.map(|step| &step.outcome) {
        Some(Outcome::Paused(_)) => FleetPhase::Paused,
        None if counts.there == 0 && counts.wanted > 0 => FleetPhase::Paused,
        _ if retires || report.fleet.metadata.deletion_timestamp.is_some() => FleetPhase::Draining,
        _ if !counts.late.is_empty() => FleetPhase::Degraded,
        Some(Outcome::Working) => FleetPhase::Progressing,
        _ if counts.ready < counts.wanted => FleetPhase::Degraded,
        _ => FleetPhase::Serving,
    }
}

fn ready(counts: &Counts, report: &FleetReport<'_>) -> Fact {
    let say = |holds, reason, message: String| Fact::new(ConditionType::Ready, holds, reason, message);
    let (ready, wanted) = (counts.ready, counts.wanted);
    if wanted == 0 {
        return say(false, Reason::NoReplicas, "no gateway is wanted: set spec.replicas to take mail".to_owned());
    }
    // Once ready, a fleet stays so while it replaces pods within its budget; at first it takes all of them.
    let before =
        report.fleet.status.iter().flat_map(|status| &status.conditions).any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let budget = report.fleet.spec.update.as_ref().and_then(|update| update.max_unavailable).unwrap_or(MAX_UNAVAILABLE);
    let within = before && counts.late.is_empty() && ready >= wanted.saturating_sub(budget).max(1);
    if ready >= wanted || within {
        let troubled = trouble(report).map_or_else(String::new, |trouble| format!("; {trouble}"));
        return say(true, Reason::Serving, format!("{ready} of {wanted} gateways take mail{troubled}"));
    }
    if counts.there == 0 && report.step.is_none() {
        return say(
            false,
            Reason::NotAccepted,
            "no gateway was made, because something is wrong with the fleet: see the conditions Accepted and ResolvedRefs".to_owned(),
        );
    }
    let names: Vec<String> = report.seen.pods.iter().filter(|pod| pod.ordinal < wanted && !serves(pod)).map(|pod| pod.ordinal.to_string()).collect();
    let who = if names.is_empty() { String::new() } else { format!(" (not: {})", names.join(", ")) };
    let late = if counts.late.is_empty() { "they start" } else { "see `kubectl describe pod` and the log of container mta" };
    let late = trouble(report).unwrap_or_else(|| late.to_owned());
    let reason = if ready == 0 { Reason::NoGateway } else { Reason::TooFewGateways };
    say(false, reason, format!("{ready} of {wanted} gateways take mail{who}: {late}"))
}

/// What keeps gateways from starting, the first of it.
fn trouble(report: &FleetReport<'_>) -> Option<String> {
    let mut gateways = report.troubles.iter().filter(|trouble| trouble.is_gateway());
    let first = gateways.next()?;
    Some(match gateways.count() {
        0 => first.to_string(),
        more => format!("{first} (and {more} more)"),
    })
}

fn accepted(problems: &[Problem]) -> Fact {
    let errors: Vec<&Problem> = problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    if errors.is_empty() {
        return Fact::new(ConditionType::Accepted, true, Reason::Valid, "nothing is wrong");
    }
    let text = sentence(errors);
    // Most problems end with these words themselves.
    let and_pods = if text.ends_with("the pods stay as they are") { "" } else { "; the pods stay as they are" };
    Fact::new(ConditionType::Accepted, false, Reason::Invalid, format!("{text}{and_pods}"))
}

fn resolved(report: &FleetReport<'_>) -> Fact {
    let unresolved: Vec<&Problem> = report.problems.iter().filter(|problem| problem.reason == compile::Reason::UnresolvedRef).collect();
    let certificates = &report.measured.certificates;
    if unresolved.is_empty() && certificates.is_empty() {
        return Fact::new(ConditionType::ResolvedRefs, true, Reason::Resolved, "everything that it refers to is there");
    }
    let reason = if unresolved.is_empty() { Reason::InvalidCertificateRef } else { Reason::UnresolvedRef };
    let missing = (!unresolved.is_empty()).then(|| sentence(unresolved));
    let texts: Vec<String> = missing.into_iter().chain(certificates.iter().cloned()).collect();
    Fact::new(ConditionType::ResolvedRefs, false, reason, texts.join("; "))
}

fn supported(problems: &[Problem]) -> Fact {
    let early: Vec<&Problem> = problems.iter().filter(|problem| problem.reason == compile::Reason::NotSupportedYet).collect();
    if early.is_empty() {
        return Fact::new(ConditionType::Supported, true, Reason::Supported, "everything that it says is acted on");
    }
    Fact::new(ConditionType::Supported, false, Reason::NotSupportedYet, sentence(early))
}

fn updated(report: &FleetReport<'_>) -> Fact {
    let say = |holds, reason, message: String| Fact::new(ConditionType::Updated, holds, reason, message);
    match report.step.map(|step| &step.outcome) {
        Some(Outcome::Done) => say(true, Reason::UpToDate, "every pod is of the current template".to_owned()),
        Some(Outcome::Paused(Pause::ByUser { outdated })) => say(
            false,
            Reason::PausedByUser,
            format!("pods {} are of an older template: set spec.update.paused to false to replace them", list(outdated)),
        ),
        Some(Outcome::Paused(Pause::NotServing { ordinals })) => {
            let why = trouble(report).unwrap_or_else(|| "see `kubectl describe pod`, and correct the fleet".to_owned());
            say(false, Reason::PodsNotServing, format!("pods {} do not take mail, so no other is replaced: {why}", list(ordinals)))
        }
        Some(Outcome::Paused(Pause::VolumeGoing { ordinals })) => say(false, Reason::VolumeDeleted, going(ordinals)),
        // Known long before the time is up that such a pod is given.
        Some(Outcome::Working) if let Some(trouble) = trouble(report) => {
            let message = format!("{trouble}; no more pods are replaced than spec.update.maxUnavailable allows to be away, and the others serve on");
            say(false, Reason::PodsNotServing, message)
        }
        Some(Outcome::Working | Outcome::Paused(Pause::DrainTimeout { .. } | Pause::Stranded { .. })) => {
            say(false, Reason::Updating, "pods come, go or are replaced".to_owned())
        }
        None => Fact::unknown(
            ConditionType::Updated,
            Reason::NotAccepted,
            "the pods stay as they are, because something is wrong with the fleet: see Accepted",
        ),
    }
}

fn draining(report: &FleetReport<'_>) -> Fact {
    let retiring: Vec<&PodView> = report.seen.pods.iter().filter(|pod| pod.drain.is_some_and(|drain| drain.kind == DrainKind::Retire)).collect();
    let ordinals: Vec<u32> = retiring.iter().map(|pod| pod.ordinal).collect();
    let mail: u64 = retiring.iter().filter_map(|pod| pod.report).map(|report| report.spooled).sum();
    if let Some(Outcome::Paused(Pause::DrainTimeout { ordinals })) = report.step.map(|step| &step.outcome) {
        let message = format!(
            "pods {} still have mail after spec.drain.timeout ({mail} messages in all), and nothing is removed: see `kubectl sekimori queue` for what waits, or raise the number of replicas again",
            list(ordinals)
        );
        return Fact::new(ConditionType::Draining, true, Reason::DrainTimeout, message);
    }
    if let Some(Outcome::Paused(Pause::Stranded { ordinals })) = report.step.map(|step| &step.outcome) {
        return Fact::new(ConditionType::Draining, true, Reason::Stranded, stranded(report, ordinals));
    }
    if retiring.is_empty() {
        return Fact::new(ConditionType::Draining, false, Reason::NotDraining, "no pod leaves");
    }
    Fact::new(
        ConditionType::Draining,
        true,
        Reason::Retiring,
        format!("pods {} take no mail and wait until theirs is delivered ({mail} messages)", list(&ordinals)),
    )
}

/// Claims that somebody deletes while their pods run.
fn going(ordinals: &[u32]) -> String {
    format!(
        "somebody deletes the spool's claim of pods {}, which is held because it may have mail: they are not restarted, and nobody should delete them; lower spec.replicas below the first of them until they are gone, so that their mail is delivered, and raise it again",
        list(ordinals)
    )
}

/// Volumes that get no pod.
fn stranded(report: &FleetReport<'_>, ordinals: &[u32]) -> String {
    let claims =
        format!("the spools of pods {} may have mail, and their claims are held with the finalizer {}", list(ordinals), names::SPOOL_FINALIZER);
    let why = match report.seen.barred {
        Some(Barred::Namespace { .. }) => "the namespace is being deleted, so no pod can deliver it: copy the volumes, or give the mail up",
        Some(Barred::Invalid) => "no pod can be made that delivers it: correct what Accepted and ResolvedRefs say, or give the mail up",
        None => "no fleet has pods of such numbers: copy the volumes, or give the mail up",
    };
    format!("{claims}; {why} by taking that finalizer off the claims and deleting them")
}

fn quarantine(fleet: &GatewayFleet, wanted: u32) -> Fact {
    let store =
        fleet.spec.quarantine.as_ref().and_then(|quarantine| quarantine.store.as_ref()).map_or(QuarantineStoreType::PerPod, |store| store.kind);
    if store != QuarantineStoreType::PerPod || wanted < 2 {
        return Fact::new(ConditionType::QuarantineNotShared, false, Reason::SharedStore, "there is one quarantine");
    }
    let message =
        "each gateway keeps a quarantine on its own volume: `kubectl sekimori quarantine` lists them all; set spec.quarantine.store to share one";
    Fact::new(ConditionType::QuarantineNotShared, true, Reason::PerPodStore, message)
}

fn removals(measured: &Measured) -> Fact {
    let count = measured.removals_waiting;
    if count == 0 {
        return Fact::new(ConditionType::RemovalsWaiting, false, Reason::NoRemovals, "no removal waits");
    }
    let message = format!(
        "{count} tenants are gone at once, and are served on until you say that this is meant: annotate the fleet with sekimori.dev/confirm-removals=\"{count}\", or restore them"
    );
    Fact::new(ConditionType::RemovalsWaiting, true, Reason::ConfirmationNeeded, message)
}

fn client_ip(measured: &Measured) -> Fact {
    if measured.clients_masked == Some(true) {
        let message = "every client comes with an address of a node or pod, so nothing that judges by address is applied (SPF, address lists, limits of one address): \
                       set spec.service.externalTrafficPolicy to Local, or use a load balancer with the PROXY protocol and spec.listeners[].proxyProtocol";
        return Fact::new(ConditionType::ClientIPMasked, true, Reason::ClusterAddressesOnly, message);
    }
    let message = if measured.clients_masked.is_some() { "clients come with their own addresses" } else { "too few clients came to tell" };
    Fact::new(ConditionType::ClientIPMasked, false, Reason::ClientsSeen, message)
}

fn stale(measured: &Measured) -> Fact {
    if let Some(why) = &measured.refused {
        let message = format!("gateways refuse the fleet's newest settings, and run with those before (one that has none takes no mail): {why}");
        return Fact::new(ConditionType::ConfigStale, true, Reason::SettingsRefused, message);
    }
    if measured.stale.is_empty() {
        return Fact::new(ConditionType::ConfigStale, false, Reason::Current, "every gateway has the newest configuration");
    }
    let message = format!(
        "pods {} have not taken the newest configuration for a minute: one that serves does so with its last one; see the log of container mta for why they cannot follow",
        list(&measured.stale)
    );
    Fact::new(ConditionType::ConfigStale, true, Reason::GatewaysBehind, message)
}

fn list(ordinals: &[u32]) -> String {
    ordinals.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
