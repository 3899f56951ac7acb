//! `tenants list` and `tenants show`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sekimori_crds::compile::{defaults, layers};
use sekimori_crds::v1alpha1::{GatewayFleet, MailPolicy, TenantDomain};
use serde::Serialize;

use super::attention::{Attention, Kind, Subject, judge};
use super::policy::{PolicyRow, rows};
use super::status::{fleet_of, readiness};
use super::table::{Cell, Paint, Tone, harmless, shortened, table};
use crate::ownership::{Record, Tenant};

/// A message in a list is cut after so many characters.
const MESSAGE_CHARS_MAX: usize = 120;
/// So many domains of a tenant are written out in a list.
const DOMAINS_MAX: usize = 3;

/// The answer of `tenants list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListView {
    /// The tenants, by namespace and name.
    pub tenants: Vec<Row>,
}

/// One tenant in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its domains.
    pub domains: Vec<String>,
    /// Namespace and name of its fleet.
    pub fleet: String,
    /// Active, Hold or Suspended.
    pub state: String,
    /// True, False or Unknown (not judged as it is now).
    pub ready: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Which tenants are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only those of this fleet: a name, or namespace and name.
    pub fleet: Option<String>,
    /// Only those that are not Ready.
    pub not_ready: bool,
}

impl ListView {
    /// Takes a tenant in, if it is wanted.
    pub fn add(&mut self, tenant: &TenantDomain, wanted: &Wanted) {
        let (namespace, name) = fleet_of(tenant);
        let fleet = format!("{namespace}/{name}");
        if wanted.fleet.as_ref().is_some_and(|wanted| *wanted != name && *wanted != fleet) {
            return;
        }
        let (condition, current) = readiness(tenant);
        let (ready, reason, message) = match condition {
            Some(condition) if current => (condition.status.as_str(), condition.reason.as_str(), condition.message.as_str()),
            Some(_) => ("Unknown", "NotJudged", "it was changed, and the operator has not judged the change yet"),
            None => ("Unknown", "NotJudged", "the operator has not judged it yet"),
        };
        if wanted.not_ready && ready == "True" {
            return;
        }
        self.tenants.push(Row {
            namespace: tenant.metadata.namespace.clone().unwrap_or_default(),
            name: tenant.metadata.name.clone().unwrap_or_default(),
            domains: tenant.spec.domains.iter().map(|domain| domain.0.clone()).collect(),
            fleet,
            state: tenant.spec.state.unwrap_or(defaults::TENANT_STATE).to_string(),
            ready: ready.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }

    /// The text for people.
    pub fn text(&self, paint: Paint, wanted: &Wanted) -> String {
        if self.tenants.is_empty() {
            let what = if wanted.not_ready { "no tenant that is not Ready" } else { "no TenantDomain" };
            return format!("{what} here: look with -A{}\n", if wanted.fleet.is_some() { ", or without --fleet" } else { "" });
        }
        let rows: Vec<Vec<Cell>> = self
            .tenants
            .iter()
            .map(|row| {
                let tone = match row.ready.as_str() {
                    "True" => Tone::Good,
                    "False" => Tone::Bad,
                    _ => Tone::Warning,
                };
                let message = if row.ready == "True" { String::new() } else { shortened(&row.message, MESSAGE_CHARS_MAX) };
                vec![
                    format!("{}/{}", row.namespace, row.name).into(),
                    few(&row.domains).into(),
                    row.fleet.as_str().into(),
                    row.state.as_str().into(),
                    Cell::toned(&row.ready, tone),
                    row.reason.as_str().into(),
                    message.into(),
                ]
            })
            .collect();
        table(paint, &["TENANT", "DOMAINS", "FLEET", "STATE", "READY", "REASON", "MESSAGE"], &rows)
    }
}

fn few(domains: &[String]) -> String {
    let text = domains.iter().take(DOMAINS_MAX).map(String::as_str).collect::<Vec<_>>().join(",");
    match domains.len().checked_sub(DOMAINS_MAX) {
        Some(more @ 1..) => format!("{text} +{more}"),
        _ => text,
    }
}

/// What is known about the recorded claims on a tenant's domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimsSeen {
    /// The records of the ledger that were found, by domain.
    Read(BTreeMap<String, Record>),
    /// They could not be read: why.
    NotRead(String),
}

/// What `tenants show` was made from.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// The tenant.
    pub tenant: &'a TenantDomain,
    /// Its fleet, or why it is not here.
    pub fleet: Result<&'a GatewayFleet, String>,
    /// The MailPolicy that it names, or why it is not here. `None`: it names none.
    pub mail_policy: Option<Result<&'a MailPolicy, String>>,
    /// The claims on its domains.
    pub claims: ClaimsSeen,
}

/// The answer of `tenants show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShowView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Namespace and name of its fleet.
    pub fleet: String,
    /// Active, Hold or Suspended.
    pub state: String,
    /// Enforce or Observe.
    pub enforcement: String,
    /// InlineElseQueue, Queue or Inline.
    pub delivery: String,
    /// How the fleet wants ownership proved; absent: the fleet could not be read.
    pub ownership: Option<String>,
    /// Its domains and who holds them.
    pub domains: Vec<DomainRow>,
    /// The ways to its servers, by priority.
    pub routes: Vec<RouteRow>,
    /// Its conditions.
    pub conditions: Vec<ConditionRow>,
    /// The effective policy.
    pub policy: Vec<PolicyRow>,
    /// What is not as it should be.
    pub attention: Vec<Attention>,
    /// What could not be read, and what follows from it.
    pub notes: Vec<String>,
}

/// One domain of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DomainRow {
    /// The domain.
    pub name: String,
    /// Who holds it, for people.
    pub claim: String,
}

/// One route, with nothing left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// Name.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// Address or Mx.
    pub lookup: String,
    /// TCP port.
    pub port: u16,
    /// Lower first.
    pub priority: u32,
    /// Share within one priority.
    pub weight: u32,
    /// TLS towards it.
    pub tls: String,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionRow {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// The generation that it was judged for.
    pub observed_generation: Option<i64>,
    /// Whether that is the present one.
    pub current: bool,
}

/// Everything about one tenant.
pub fn show(found: &Found<'_>) -> ShowView {
    let spec = &found.tenant.spec;
    let own = Tenant::new(found.tenant.metadata.namespace.clone().unwrap_or_default(), found.tenant.metadata.name.clone().unwrap_or_default());
    let (fleet_namespace, fleet_name) = fleet_of(found.tenant);
    let mut notes = vec![];
    if let Err(why) = &found.fleet {
        notes.push(format!("the fleet's defaults and overrides are not in the policy above: {why}"));
    }
    if let Some(Err(why)) = &found.mail_policy {
        notes.push(format!("the MailPolicy is not in the policy above: {why}"));
    }
    if let ClaimsSeen::NotRead(why) = &found.claims {
        notes.push(format!("who holds the domains was not read, so see the conditions Accepted and Conflicted: {why}"));
    }
    let fleet = found.fleet.as_ref().ok().copied();
    let mail_policy = found.mail_policy.as_ref().and_then(|policy| policy.as_ref().ok()).copied();
    let delivery = spec.delivery.unwrap_or(defaults::DELIVERY);
    let status = found.tenant.status.clone().unwrap_or_default();
    let subject = Subject {
        kind: Kind::Tenant,
        namespace: &own.namespace,
        name: &own.name,
        generation: found.tenant.metadata.generation,
        observed: status.observed_generation,
    };
    let generation = found.tenant.metadata.generation;
    let conditions = status.conditions.iter().map(|condition| ConditionRow {
        kind: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        observed_generation: condition.observed_generation,
        current: condition.observed_generation.zip(generation).is_none_or(|(observed, generation)| observed >= generation),
    });
    ShowView {
        fleet: format!("{fleet_namespace}/{fleet_name}"),
        state: spec.state.unwrap_or(defaults::TENANT_STATE).to_string(),
        enforcement: spec.enforcement.unwrap_or(defaults::ENFORCEMENT).to_string(),
        delivery: delivery.to_string(),
        ownership: fleet.map(|fleet| fleet.spec.tenants.as_ref().and_then(|tenants| tenants.ownership).unwrap_or(defaults::OWNERSHIP).to_string()),
        domains: spec.domains.iter().map(|domain| DomainRow { name: domain.0.clone(), claim: claim(&domain.0, &own, &found.claims) }).collect(),
        routes: routes(found.tenant),
        conditions: conditions.collect(),
        policy: rows(layers(found.tenant, fleet, mail_policy), delivery),
        attention: judge(&subject, &status.conditions),
        notes,
        namespace: own.namespace,
        name: own.name,
    }
}

fn claim(domain: &str, own: &Tenant, claims: &ClaimsSeen) -> String {
    let ClaimsSeen::Read(records) = claims else { return "not read".to_owned() };
    match records.get(domain) {
        None => "nobody's yet".to_owned(),
        Some(record) if *record.holder == *own => "this tenant's".to_owned(),
        Some(record) if record.gone_since_ms.is_some() => format!("still kept for {}, which is gone", record.holder),
        Some(record) => format!("held by {}", record.holder),
    }
}

fn routes(tenant: &TenantDomain) -> Vec<RouteRow> {
    let mut rows: Vec<RouteRow> = tenant
        .spec
        .routes
        .iter()
        .map(|route| RouteRow {
            name: route.name.0.clone(),
            host: route.host.0.clone(),
            lookup: route.lookup.unwrap_or(defaults::ROUTE_LOOKUP).to_string(),
            port: route.port.unwrap_or(defaults::ROUTE_PORT),
            priority: route.priority.unwrap_or(defaults::ROUTE_PRIORITY),
            weight: route.weight.unwrap_or(defaults::ROUTE_WEIGHT),
            tls: route.tls.as_ref().and_then(|tls| tls.mode).unwrap_or(defaults::ROUTE_TLS).to_string(),
        })
        .collect();
    rows.sort_by_key(|route| route.priority);
    rows
}

impl ShowView {
    /// The text for people.
    pub fn text(&self, paint: Paint) -> String {
        let mut text = format!(
            "{}\n  fleet        {}\n  state        {}\n  enforcement  {}\n  delivery     {}\n  ownership    {}\n",
            paint.tone(Tone::Strong, &harmless(&format!("TenantDomain {}/{}", self.namespace, self.name))),
            harmless(&self.fleet),
            self.state,
            self.enforcement,
            self.delivery,
            self.ownership.as_deref().unwrap_or("-"),
        );
        let mut section = |rows: Vec<Vec<Cell>>, head: &[&str]| {
            if !rows.is_empty() {
                text.push('\n');
                text.push_str(&table(paint, head, &rows));
            }
        };
        section(self.domains.iter().map(|row| vec![Cell::from(&row.name), Cell::from(&row.claim)]).collect(), &["DOMAIN", "CLAIM"]);
        let routes = self.routes.iter().map(|row| {
            let (port, priority, weight) = (row.port.to_string(), row.priority.to_string(), row.weight.to_string());
            vec![
                Cell::from(&row.name),
                Cell::from(&row.host),
                Cell::from(&row.lookup),
                port.into(),
                priority.into(),
                weight.into(),
                Cell::from(&row.tls),
            ]
        });
        section(routes.collect(), &["ROUTE", "HOST", "LOOKUP", "PORT", "PRIORITY", "WEIGHT", "TLS"]);
        let conditions = self.conditions.iter().map(|row| {
            let bad = self.attention.iter().find(|attention| attention.condition == row.kind);
            let status =
                if row.current { row.status.clone() } else { format!("{} (of generation {})", row.status, row.observed_generation.unwrap_or(0)) };
            let status = Cell::toned(status, bad.map_or(Tone::Good, |attention| attention.level.tone()));
            vec![Cell::from(&row.kind), status, Cell::from(&row.reason), Cell::from(&row.message)]
        });
        section(conditions.collect(), &["CONDITION", "STATUS", "REASON", "MESSAGE"]);
        section(
            self.policy
                .iter()
                .map(|row| {
                    let from = if row.from == "built in" { Cell::toned(&row.from, Tone::Faint) } else { Cell::from(&row.from) };
                    vec![Cell::from(&row.field), Cell::from(&row.value), from]
                })
                .collect(),
            &["POLICY", "VALUE", "FROM"],
        );
        for attention in &self.attention {
            let what = paint.tone(attention.level.tone(), &harmless(&format!("{}={} ({})", attention.condition, attention.status, attention.reason)));
            write!(text, "\n{what}: {}\n  next: {}\n", harmless(&attention.message), harmless(&attention.next)).expect("a string takes it");
        }
        for note in &self.notes {
            write!(text, "\n{} {}\n", paint.tone(Tone::Faint, "note:"), harmless(note)).expect("a string takes it");
        }
        text
    }
}
