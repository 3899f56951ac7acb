//! `status`: the fleets at a glance.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use sekimori_crds::compile::defaults;
use sekimori_crds::v1alpha1::gateway_fleet::FleetEngineStatus;
use sekimori_crds::v1alpha1::{Engine, GatewayFleet, TenantDomain};
use serde::Serialize;

use super::attention::{Attention, Kind, Level, Subject, judge};
use super::table::{Cell, Paint, Tone, age, harmless, shortened, table};
use crate::fleet::replicas;

/// So many tenants that are not Ready are named for each fleet.
pub const WORST_MAX: usize = 10;
/// So many fleets that tenants name and that are not here are written out.
const STRAY_FLEETS_MAX: usize = 5;
/// A tenant's message is cut after so many characters.
const MESSAGE_CHARS_MAX: usize = 160;

/// Namespace and name of a fleet.
pub type FleetKey = (String, String);

/// Everything that `status` shows; as JSON the shape that its help documents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// The fleets, by namespace and name.
    pub fleets: Vec<FleetView>,
    /// What else is to be said, such as what could not be read.
    pub notes: Vec<String>,
}

/// One fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Progressing, Serving, Degraded, Draining or Paused; absent: not judged yet.
    pub phase: Option<String>,
    /// Gateways that take mail.
    pub ready: u32,
    /// Gateways that are wanted.
    pub wanted: u32,
    /// Gateways that leave.
    pub draining: u32,
    /// Messages that wait for our own worker, disk or scan slot.
    pub runnable_backlog: Option<u64>,
    /// Age of the oldest message, in seconds.
    pub oldest_message_seconds: Option<u64>,
    /// Revision that every ready gateway runs.
    pub config_revision: Option<String>,
    /// Image that the pods are pinned to.
    pub image: Option<String>,
    /// Tenants that are served, as the gateways say.
    pub served_tenants: Option<u32>,
    /// Its engines, in the order of the fleet.
    pub engines: Vec<EngineView>,
    /// What is not as it should be, with the fleet and its engines.
    pub attention: Vec<Attention>,
    /// Its tenants.
    pub tenants: TenantsView,
}

/// One engine of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineView {
    /// Name.
    pub name: String,
    /// AntiVirus, AntiSpam or Sandbox; absent: there is no such Engine.
    pub class: Option<String>,
    /// Enforce, Shadow or Disabled.
    pub mode: Option<String>,
    /// The version that counts.
    pub version: Option<String>,
    /// The version that is tried.
    pub canary: Option<String>,
    /// Closed, Open or HalfOpen, the worst of all gateways.
    pub breaker: Option<String>,
    /// Age of the oldest signatures in use, in seconds.
    pub signature_age_seconds: Option<u64>,
}

/// The tenants of a fleet, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantsView {
    /// Tenants that name the fleet.
    pub known: u64,
    /// Those that are not Ready.
    pub not_ready: u64,
    /// Those that are Ready, and whose server refuses the gateways.
    pub refusing: u64,
    /// The worst of both.
    pub worst: Vec<TroubledTenant>,
}

/// One tenant that is not Ready, or whose server refuses the gateways. They sort by how bad it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TroubledTenant {
    /// 0: nothing of it is served; 1: an earlier form is; 2: it is on its way; 3: nobody knows yet; 4: it is served, and its mail waits for its server.
    pub rank: u8,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// A tenant's Ready condition, and whether it is about the tenant as it is now.
pub fn readiness(tenant: &TenantDomain) -> (Option<&Condition>, bool) {
    let ready = tenant.status.as_ref().and_then(|status| status.conditions.iter().find(|condition| condition.type_ == "Ready"));
    let observed = ready.and_then(|condition| condition.observed_generation).or_else(|| tenant.status.as_ref()?.observed_generation);
    let current = match (observed, tenant.metadata.generation) {
        (Some(observed), Some(generation)) => observed >= generation,
        _ => ready.is_some(),
    };
    (ready, current)
}

/// The fleet that a tenant names.
pub fn fleet_of(tenant: &TenantDomain) -> FleetKey {
    let own = tenant.metadata.namespace.as_deref().unwrap_or_default();
    let namespace = tenant.spec.fleet_ref.namespace.as_deref().unwrap_or(own);
    (namespace.to_owned(), tenant.spec.fleet_ref.name.0.clone())
}

/// Counts tenants as they are read, page by page: memory does not grow with their number, only with the number of fleets they name.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    fleets: BTreeMap<FleetKey, TenantsView>,
}

impl Tally {
    /// Counts one.
    pub fn add(&mut self, tenant: &TenantDomain) {
        let view = self.fleets.entry(fleet_of(tenant)).or_default();
        view.known += 1;
        let Some(troubled) = troubled(tenant) else { return };
        if troubled.rank == REFUSING_RANK {
            view.refusing += 1;
        } else {
            view.not_ready += 1;
        }
        let place = view.worst.partition_point(|other| *other < troubled);
        if place < WORST_MAX {
            view.worst.insert(place, troubled);
            view.worst.truncate(WORST_MAX);
        }
    }
}

/// See [`TroubledTenant::rank`].
const REFUSING_RANK: u8 = 4;

/// A tenant that is not Ready, or whose server refuses, and how bad it is.
fn troubled(tenant: &TenantDomain) -> Option<TroubledTenant> {
    let (ready, current) = readiness(tenant);
    let (rank, reason, message) = match ready {
        None => (3, "NotJudged", "the operator has not judged it yet"),
        Some(condition) if condition.status == "True" && current => {
            let mut conditions = tenant.status.iter().flat_map(|status| &status.conditions);
            let refusing = conditions.find(|condition| condition.type_ == "RouteRefusing" && condition.status == "True")?;
            (REFUSING_RANK, "RouteRefusing", refusing.message.as_str())
        }
        Some(condition) if condition.status == "True" => (3, "NotJudged", "it was changed, and the operator has not judged the change yet"),
        Some(condition) => {
            let programmed = tenant.status.iter().flat_map(|status| &status.conditions).find(|condition| condition.type_ == "Programmed");
            let rank = match programmed.map(|condition| (condition.status.as_str(), condition.reason.as_str())) {
                Some(("True", _)) => 1,
                Some((_, "LastGoodForm" | "NeedsNewerGateway")) => 1,
                Some((_, "Waiting")) => 2,
                _ => 0,
            };
            (rank, condition.reason.as_str(), condition.message.as_str())
        }
    };
    Some(TroubledTenant {
        rank,
        namespace: tenant.metadata.namespace.clone().unwrap_or_default(),
        name: tenant.metadata.name.clone().unwrap_or_default(),
        reason: reason.to_owned(),
        message: message.to_owned(),
    })
}

/// The whole, from what was read.
pub fn view(fleets: &[GatewayFleet], engines: &[Engine], mut tally: Tally, mut notes: Vec<String>) -> StatusView {
    let mut views: Vec<FleetView> = fleets.iter().map(|fleet| fleet_view(fleet, engines, &mut tally)).collect();
    views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    // What is left belongs to fleets that are not here. Where only one namespace was read, that says nothing.
    let strays = tally.fleets.len();
    for ((namespace, name), tenants) in tally.fleets.into_iter().take(STRAY_FLEETS_MAX) {
        let who = counted(tenants.known, "tenant");
        notes.push(format!("of {who} the fleet {namespace}/{name} is not among these: make it, look with -A, or correct spec.fleetRef"));
    }
    if let Some(more @ 1..) = strays.checked_sub(STRAY_FLEETS_MAX) {
        notes.push(format!("and of {} the same is true", counted(more as u64, "other fleet")));
    }
    StatusView { fleets: views, notes }
}

fn fleet_view(fleet: &GatewayFleet, engines: &[Engine], tally: &mut Tally) -> FleetView {
    let (namespace, name) = (fleet.metadata.namespace.clone().unwrap_or_default(), fleet.metadata.name.clone().unwrap_or_default());
    let status = fleet.status.clone().unwrap_or_default();
    let subject = Subject {
        kind: Kind::Fleet,
        namespace: &namespace,
        name: &name,
        generation: fleet.metadata.generation,
        observed: status.observed_generation,
    };
    let mut attention = judge(&subject, &status.conditions);
    let mut views = vec![];
    for reference in &fleet.spec.engines {
        let engine = engines
            .iter()
            .find(|engine| engine.metadata.namespace.as_ref() == Some(&namespace) && engine.metadata.name.as_ref() == Some(&reference.name.0));
        if let Some(engine) = engine {
            let of_engine = engine.status.clone().unwrap_or_default();
            let observed = of_engine.observed_generation;
            let subject =
                Subject { kind: Kind::Engine, namespace: &namespace, name: &reference.name.0, generation: engine.metadata.generation, observed };
            // An engine about which nothing was ever said is the fleet's matter, which names what is wrong with it.
            if !of_engine.conditions.is_empty() {
                attention.extend(judge(&subject, &of_engine.conditions));
            }
        }
        views.push(engine_view(&reference.name.0, engine, &status.engines));
    }
    attention.sort_by_key(|attention| attention.level);
    let tenants = tally.fleets.remove(&(namespace.clone(), name.clone())).unwrap_or_default();
    FleetView {
        phase: status.phase.map(|phase| format!("{phase:?}")),
        ready: status.ready_replicas.unwrap_or(0),
        wanted: if fleet.metadata.deletion_timestamp.is_some() { 0 } else { replicas(fleet) },
        draining: status.draining_replicas.unwrap_or(0),
        runnable_backlog: status.runnable_backlog,
        oldest_message_seconds: status.oldest_message_seconds,
        config_revision: status.config_revision.map(|text| text.0),
        image: status.image.map(|image| image.0),
        served_tenants: status.tenants,
        engines: views,
        attention,
        tenants,
        namespace,
        name,
    }
}

fn engine_view(name: &str, engine: Option<&Engine>, of_fleet: &[FleetEngineStatus]) -> EngineView {
    let here = of_fleet.iter().find(|status| &*status.name == name);
    let status = engine.and_then(|engine| engine.status.as_ref());
    EngineView {
        name: name.to_owned(),
        class: engine.map(|engine| engine.spec.class.to_string()),
        mode: engine.map(|engine| engine.spec.mode.unwrap_or(defaults::ENGINE_MODE).to_string()),
        version: here.and_then(|here| here.version.clone()).or_else(|| status?.stable_version.clone()).map(|text| text.0),
        canary: here.and_then(|here| here.canary.clone()).or_else(|| status?.canary_version.clone()).map(|text| text.0),
        breaker: status.and_then(|status| status.breaker).map(|breaker| format!("{breaker:?}")),
        signature_age_seconds: status.and_then(|status| status.signature_age_seconds),
    }
}

/// The text for people.
pub fn text(view: &StatusView, paint: Paint) -> String {
    let mut text = String::new();
    if view.fleets.is_empty() {
        text.push_str("no GatewayFleet here: look with -A, or make one (manifests/quickstart-cluster is an example)\n");
    } else {
        text.push_str(&fleets_table(&view.fleets, paint));
        if view.fleets.iter().any(|fleet| !fleet.engines.is_empty()) {
            text.push('\n');
            text.push_str(&engines_table(&view.fleets, paint));
        }
        attention_text(&mut text, &view.fleets, paint);
        tenants_text(&mut text, &view.fleets, paint);
    }
    for note in &view.notes {
        write!(text, "\n{} {}\n", paint.tone(Tone::Faint, "note:"), harmless(note)).expect("a string takes it");
    }
    text
}

fn fleets_table(fleets: &[FleetView], paint: Paint) -> String {
    let rows: Vec<Vec<Cell>> = fleets
        .iter()
        .map(|fleet| {
            let tone = match fleet.phase.as_deref() {
                Some("Serving") => Tone::Good,
                Some("Degraded") => Tone::Bad,
                _ => Tone::Warning,
            };
            vec![
                format!("{}/{}", fleet.namespace, fleet.name).into(),
                Cell::toned(fleet.phase.as_deref().unwrap_or("-"), tone),
                format!("{}/{}", fleet.ready, fleet.wanted).into(),
                fleet.draining.to_string().into(),
                or_dash(fleet.runnable_backlog.map(|count| count.to_string())).into(),
                or_dash(fleet.oldest_message_seconds.map(age)).into(),
                or_dash(fleet.served_tenants.map(|count| count.to_string())).into(),
                or_dash(fleet.config_revision.clone()).into(),
            ]
        })
        .collect();
    table(paint, &["FLEET", "PHASE", "READY", "DRAINING", "BACKLOG", "OLDEST", "TENANTS", "REVISION"], &rows)
}

fn engines_table(fleets: &[FleetView], paint: Paint) -> String {
    let mut rows = vec![];
    for fleet in fleets {
        for engine in &fleet.engines {
            let breaker = match engine.breaker.as_deref() {
                Some("Closed") => Cell::toned("Closed", Tone::Good),
                Some(state) => Cell::toned(state, Tone::Bad),
                None => "-".into(),
            };
            rows.push(vec![
                format!("{}/{}", fleet.namespace, fleet.name).into(),
                engine.name.as_str().into(),
                engine.class.as_ref().map_or_else(|| Cell::toned("(missing)", Tone::Bad), Cell::from),
                or_dash(engine.mode.clone()).into(),
                or_dash(engine.version.clone()).into(),
                or_dash(engine.canary.clone()).into(),
                breaker,
                or_dash(engine.signature_age_seconds.map(age)).into(),
            ]);
        }
    }
    table(paint, &["FLEET", "ENGINE", "CLASS", "MODE", "VERSION", "CANARY", "BREAKER", "SIGNATURES"], &rows)
}

fn attention_text(text: &mut String, fleets: &[FleetView], paint: Paint) {
    let all: Vec<&Attention> = fleets.iter().flat_map(|fleet| &fleet.attention).collect();
    if all.is_empty() {
        text.push_str("\nEverything is as it should be with the fleets and their engines.\n");
        return;
    }
    let (notes, rest): (Vec<&Attention>, Vec<&Attention>) = all.into_iter().partition(|attention| attention.level == Level::Note);
    for (head, list) in [("NOT AS IT SHOULD BE", rest), ("GOOD TO KNOW", notes)] {
        if !list.is_empty() {
            write!(text, "\n{}\n", paint.tone(Tone::Strong, head)).expect("a string takes it");
        }
        for attention in list {
            let Attention { level, object, condition, status, reason, message, next } = attention;
            let what = paint.tone(level.tone(), &harmless(&format!("{condition}={status} ({reason})")));
            write!(text, "  {}  {what}\n    {}\n    next: {}\n", harmless(object), harmless(message), harmless(next)).expect("a string takes it");
        }
    }
}

fn tenants_text(text: &mut String, fleets: &[FleetView], paint: Paint) {
    for fleet in fleets.iter().filter(|fleet| fleet.tenants.not_ready + fleet.tenants.refusing > 0) {
        let TenantsView { known, not_ready, refusing, worst } = &fleet.tenants;
        let waits = if *refusing > 0 { format!(", {refusing} whose server refuses mail") } else { String::new() };
        let head = format!("TENANTS OF {}/{}: {not_ready} of {known} not Ready{waits}", fleet.namespace, fleet.name);
        write!(text, "\n{}\n", paint.tone(Tone::Strong, &harmless(&head))).expect("a string takes it");
        let rows: Vec<Vec<Cell>> = worst
            .iter()
            .map(|tenant| {
                let tone = if tenant.rank == 0 { Tone::Bad } else { Tone::Warning };
                vec![
                    format!("  {}/{}", tenant.namespace, tenant.name).into(),
                    Cell::toned(&tenant.reason, tone),
                    shortened(&tenant.message, MESSAGE_CHARS_MAX).into(),
                ]
            })
            .collect();
        text.push_str(&table(paint, &["  TENANT", "REASON", "MESSAGE"], &rows));
        if let Some(more @ 1..) = (not_ready + refusing).checked_sub(worst.len() as u64) {
            writeln!(text, "  and {more} more: kubectl sekimori tenants list -A --not-ready --fleet {}/{}", fleet.namespace, fleet.name)
                .expect("a string takes it");
        }
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// `1 tenant`, `2 tenants`.
pub(super) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
