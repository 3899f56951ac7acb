//! Custom resources to parts of a snapshot: pure, one object at a time.
//!
//! [`compile`] reads a whole directory's documents for a gateway that runs alone; [`compile_tenant`] and [`compile_fleet`] are the same decisions object by
//! object, for whoever has the objects already. What is wrong with one object rejects that object alone. No file, no clock, no cluster in here.

mod cel;
pub mod defaults;
mod documents;
mod fleet;
mod objects;
mod ownership;
mod policy;
mod problem;
mod schema;
mod tenant;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use documents::{DOCUMENT_DEPTH_MAX, DOCUMENT_VALUES_MAX, Document, FILE_BYTES_MAX, FILE_DOCUMENTS_MAX, FILE_VALUES_MAX, read_documents};
pub use fleet::{FleetReferences, Values, check_engine, compile_fleet};
pub use ownership::{Claims, Grants, Overlap};
pub use policy::{Layers, Origin, Provenance, effective_policy, nothing_at_rest};
pub use problem::{Finding, Problem, Reason, Severity};
pub use tenant::{References, compile_tenant, layers};

use crate::snapshot::{ClassMinimum, EngineEndpoint, Part, PartKey, Snapshot, TenantPart};
use crate::v1alpha1::{DomainGrant, GatewayFleet, TenantDomain};
use crate::vocabulary::{EngineProtocol, Ownership};
use objects::{Known, Object, Objects};
use problem::did_you_mean;

/// Everything that a directory says.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// The documents in the order of their files and in them.
    pub documents: Vec<Document>,
}

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where engines listen here, by name: `unix:/path` or `host:port` (`--engine NAME=ADDRESS`).
    pub engine_endpoints: BTreeMap<String, String>,
    /// `address:port` of DNS resolvers; wins over the fleet's own (`--resolver`).
    pub resolvers: Vec<String>,
    /// Outside a cluster: fields that only a cluster acts on are named in a warning.
    pub standalone: bool,
    /// Namespace of an object that names none.
    pub default_namespace: Cow<'static, str>,
}

impl Default for Options {
    fn default() -> Self {
        Self { engine_endpoints: BTreeMap::new(), resolvers: vec![], standalone: true, default_namespace: Cow::Borrowed(defaults::NAMESPACE) }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The parts of every object that is in order.
    pub snapshot: Snapshot,
    /// Everything that is wrong or deserves a word.
    pub problems: Vec<Problem>,
    /// Parts whose object is there and was rejected: their last good form should stay, see [`Compiled::over`].
    pub rejected: BTreeSet<PartKey>,
}

impl Compiled {
    /// Whether any document was rejected.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }

    /// The new snapshot, with the last good form of what was rejected. A domain that another tenant has now is taken out of a kept form.
    pub fn over(&self, previous: &Snapshot) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        let taken: BTreeSet<&str> = self.snapshot.tenants().flat_map(|(_, tenant)| tenant.domains.iter().map(String::as_str)).collect();
        for key in &self.rejected {
            match previous.parts.get(key) {
                Some(Part::Tenant(kept)) => {
                    let mut kept = kept.clone();
                    kept.domains.retain(|domain| !taken.contains(domain.as_str()));
                    if !kept.domains.is_empty() {
                        snapshot.parts.insert(key.clone(), Part::Tenant(kept));
                    }
                }
                Some(kept @ Part::Fleet(_)) => {
                    snapshot.parts.insert(key.clone(), kept.clone());
                }
                None => {}
            }
        }
        snapshot
    }
}

/// An object that is referred to.
#[derive(Debug)]
pub enum Lookup<'a, T> {
    /// It is there and in order.
    Found(&'a T),
    /// It is there and was rejected; its own problems say why.
    Rejected,
    /// It is not there.
    Missing {
        /// A similar name that is there.
        near: Option<&'a str>,
    },
}

impl<T> Clone for Lookup<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Lookup<'_, T> {}

impl<'a, T> Lookup<'a, T> {
    /// The object, if it is there and in order.
    pub const fn found(&self) -> Option<&'a T> {
        match self {
            Self::Found(object) => Some(*object),
            Self::Rejected | Self::Missing { .. } => None,
        }
    }

    fn finding(&self, field: &str, kind: &str, namespace: &str, name: &str) -> Finding {
        let message = match self {
            Self::Missing { near } => {
                let near = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
                format!("there is no {kind} {namespace}/{name}{near}: add it, or correct the reference")
            }
            Self::Found(_) | Self::Rejected => format!("{kind} {namespace}/{name} was rejected: correct its own errors first"),
        };
        Finding::new(field, Reason::UnresolvedRef, message)
    }
}

fn identity(metadata: &ObjectMeta) -> (String, String) {
    (metadata.namespace.clone().unwrap_or_else(|| defaults::NAMESPACE.to_owned()), metadata.name.clone().unwrap_or_default())
}

/// Compiles what a directory says.
pub fn compile(input: &Input, options: &Options) -> Compiled {
    let mut problems = vec![];
    let objects = Objects::read(&input.documents, options, &mut problems);
    let mut run = Run {
        objects: &objects,
        options,
        compiled: Compiled { problems, ..Compiled::default() },
        endpoints: BTreeMap::new(),
        resolvers: vec![],
        engines: None,
    };
    run.command_line();
    run.policies_and_engines();
    let fleet = run.fleet();
    run.tenants(fleet);
    run.compiled
}

struct Run<'a> {
    objects: &'a Objects,
    options: &'a Options,
    compiled: Compiled,
    endpoints: BTreeMap<String, EngineEndpoint>,
    resolvers: Vec<String>,
    /// How many engines of the fleet count, and how many it wants itself.
    engines: Option<(ClassMinimum, ClassMinimum)>,
}

impl<'a> Run<'a> {
    fn error(&mut self, object: &Object, finding: Finding) {
        self.compiled.problems.push(Problem::error(&object.source, &object.to_string(), finding));
    }

    fn warn(&mut self, object: &Object, finding: Finding) {
        self.compiled.problems.push(Problem::warning(&object.source, &object.to_string(), finding));
    }

    fn cluster_only(&mut self, object: &Object, fields: &[String]) {
        if self.options.standalone && !fields.is_empty() {
            let message = format!("only a cluster acts on {}: no effect here", fields.join(", "));
            self.warn(object, Finding::new("", Reason::ClusterOnly, message));
        }
    }

    fn command_line(&mut self) {
        for (name, address) in &self.options.engine_endpoints {
            let endpoint = match address.strip_prefix("unix:") {
                Some(path) => (path.starts_with('/') && path.len() <= 107).then(|| EngineEndpoint::Socket(path.to_owned())),
                None => schema::is_host_port(address).then(|| EngineEndpoint::Address(address.clone())),
            };
            match endpoint {
                Some(endpoint) => {
                    self.endpoints.insert(name.clone(), endpoint);
                }
                None => {
                    let message = format!(
                        "`{}` says not where an engine listens: write --engine {name}=unix:/run/{name}.sock or --engine {name}=127.0.0.1:3310",
                        schema::clipped(address)
                    );
                    self.compiled.problems.push(Problem::error("--engine", "", Finding::new("", Reason::InvalidValue, message)));
                }
            }
        }
        for address in &self.options.resolvers {
            if address.parse::<std::net::SocketAddr>().is_ok() {
                self.resolvers.push(address.clone());
            } else {
                let message = format!("`{}` is not an address and port: write --resolver 192.0.2.53:53", schema::clipped(address));
                self.compiled.problems.push(Problem::error("--resolver", "", Finding::new("", Reason::InvalidValue, message)));
            }
        }
        let known: BTreeSet<&str> = self.objects.engines.keys().map(|(_, name)| name.as_str()).collect();
        for name in self.options.engine_endpoints.keys().filter(|name| !known.contains(name.as_str())) {
            let near = did_you_mean(name, known.iter().copied());
            let message = format!("there is no Engine `{}`{near}: the option has no effect, remove it", schema::clipped(name));
            self.compiled.problems.push(Problem::warning("--engine", "", Finding::new("", Reason::Unused, message)));
        }
    }

    /// What objects without a part of their own deserve to hear.
    fn policies_and_engines(&mut self) {
        for known in self.objects.policies.values() {
            if let Some(finding) = known.typed.as_ref().and_then(|policy| policy::not_evaluated(&policy.spec, "spec")) {
                self.warn(&known.object, finding);
            }
        }
        for known in self.objects.grants.values() {
            if known.typed.as_ref().is_some_and(|grant| !grant.spec.relay_networks.is_empty()) {
                let message = "has no effect yet: relaying is not supported, leave it out or expect nothing of it";
                self.warn(&known.object, Finding::new("spec.relayNetworks", Reason::NotSupportedYet, message));
            }
        }
        for known in self.objects.engines.values() {
            let Some(engine) = &known.typed else { continue };
            self.cluster_only(
                &known.object,
                &fleet::engine_cluster_only_fields(engine, self.options.engine_endpoints.contains_key(&known.object.name)),
            );
            if engine.spec.protocol.kind == EngineProtocol::Builtin && self.options.engine_endpoints.contains_key(&known.object.name) {
                self.warn(
                    &known.object,
                    Finding::new("spec.protocol", Reason::Unused, "runs inside the gateway: --engine has no effect on it, remove that option"),
                );
            }
        }
    }

    /// The one fleet of the directory, compiled. `None`: there is none that can be read.
    fn fleet(&mut self) -> Option<&'a Known<GatewayFleet>> {
        let mut fleets: Vec<&Known<GatewayFleet>> = self.objects.fleets.values().collect();
        fleets.sort_by_key(|known| known.object.index);
        let Some((first, others)) = fleets.split_first() else {
            let message = "there is no GatewayFleet: add one, with hostname and listeners";
            self.compiled.problems.push(Problem::error("", "", Finding::new("", Reason::Missing, message)));
            self.compiled.rejected.insert(PartKey::Fleet);
            return None;
        };
        for other in others {
            let message = format!("there may be one GatewayFleet in a directory, and {} came first: remove one of the two", first.object);
            self.error(&other.object, Finding::new("", Reason::Conflict, message));
        }
        let outcome = first.typed.as_ref().map(|fleet| (fleet, compile_fleet(fleet, &self.fleet_references(&first.object.namespace))));
        match outcome {
            Some((fleet, Ok(part))) => {
                let (there, wanted) = (fleet::counting_engines(&part), part.startup_minimum_engines);
                self.engines = Some((there, wanted));
                self.compiled.snapshot.parts.insert(PartKey::Fleet, Part::Fleet(Box::new(part)));
                self.cluster_only(&first.object, &fleet::cluster_only_fields(fleet));
                for finding in fleet::warnings(fleet).into_iter().chain(fleet::short_of_engines("spec.engines", there, wanted)) {
                    self.warn(&first.object, finding);
                }
            }
            Some((_, Err(problems))) => {
                self.compiled.problems.extend(problems.into_iter().map(|problem| Problem { source: first.object.source.clone(), ..problem }));
                self.compiled.rejected.insert(PartKey::Fleet);
            }
            None => {
                self.compiled.rejected.insert(PartKey::Fleet);
            }
        }
        Some(first)
    }

    fn fleet_references(&self, namespace: &str) -> FleetReferences<'a> {
        let here = |key: &(String, String)| key.0 == namespace;
        FleetReferences {
            engines: self.objects.engines.iter().filter(|(key, _)| here(key)).map(|(key, known)| (key.1.as_str(), known.lookup())).collect(),
            engine_versions: BTreeMap::new(),
            secrets: self.objects.secrets.iter().filter(|(key, _)| here(key)).map(|(key, values)| (key.1.as_str(), values)).collect(),
            endpoints: self.endpoints.clone(),
            resolvers: self.resolvers.clone(),
            mounted_certificates: false,
        }
    }

    fn tenants(&mut self, fleet: Option<&'a Known<GatewayFleet>>) {
        let grants: Vec<&DomainGrant> = self.objects.grants.values().filter_map(|known| known.typed.as_ref()).collect();
        let has_grants = !self.objects.grants.is_empty();
        let index = has_grants.then(|| Grants::new(grants));
        let ownership = fleet
            .and_then(|known| known.typed.as_ref())
            .map(|fleet| fleet.spec.tenants.as_ref().and_then(|tenants| tenants.ownership).unwrap_or(defaults::OWNERSHIP));
        if let (Some(known), Some(ownership), false) = (fleet, ownership, self.objects.tenants.is_empty()) {
            self.unchecked_ownership(&known.object, ownership, has_grants);
        }
        let checked = ownership == Some(Ownership::Grant) && has_grants;
        let mut claims = Claims::new(if checked { Overlap::MoreSpecificWins } else { Overlap::FirstWins });
        let mut tenants: Vec<&Known<TenantDomain>> = self.objects.tenants.values().collect();
        tenants.sort_by_key(|known| known.object.index);
        for known in tenants {
            self.tenant(known, fleet, index.as_ref(), &mut claims);
        }
    }

    fn unchecked_ownership(&mut self, fleet: &Object, ownership: Ownership, has_grants: bool) {
        let message = match ownership {
            Ownership::Grant if !has_grants => {
                "`Grant` counts as Trust here, because there is no DomainGrant in this directory: add one, or say ownership: Trust"
            }
            Ownership::DnsTxt => {
                "`DnsTxt` counts as Trust here: ownership is proved by DNS in a cluster only; say ownership: Trust, or Grant with a DomainGrant"
            }
            Ownership::Grant | Ownership::Trust => return,
        };
        self.warn(fleet, Finding::new("spec.tenants.ownership", Reason::Suspicious, message));
    }

    fn tenant(&mut self, known: &'a Known<TenantDomain>, fleet: Option<&'a Known<GatewayFleet>>, grants: Option<&Grants>, claims: &mut Claims) {
        let object = &known.object;
        let key = PartKey::Tenant { namespace: object.namespace.clone(), name: object.name.clone() };
        let Some(tenant) = &known.typed else {
            // Rejected already. What it holds stays its own as far as it can be read, so that an error here changes nothing for others.
            for domain in &object.domains {
                claims.claim(&key, domain);
            }
            self.compiled.rejected.insert(key);
            return;
        };
        let references = self.references(object, tenant, fleet, grants);
        let outcome = compile_tenant(tenant, &references);
        let conflicts = conflicts(tenant, &key, claims);
        // Who may not claim, or claims at another fleet, holds nothing; any other error leaves its domains its own.
        let refused = |problem: &Problem| problem.reason == Reason::NotAllowed || problem.field == "spec.fleetRef";
        if !outcome.as_ref().is_err_and(|problems| problems.iter().any(refused)) {
            tenant.spec.domains.iter().for_each(|domain| claims.claim(&key, domain));
        }
        match outcome {
            Ok(part) if conflicts.is_empty() => {
                if let Some(fleet) = references.fleet.found() {
                    for finding in tenant::warnings(tenant, fleet).into_iter().chain(self.wants_more_engines(&part)) {
                        self.warn(object, finding);
                    }
                    self.compiled.snapshot.parts.insert(key, Part::Tenant(Box::new(part)));
                } else {
                    self.compiled.rejected.insert(key);
                }
            }
            outcome => {
                let errors = outcome.err().unwrap_or_default().into_iter().map(|problem| Problem { source: object.source.clone(), ..problem });
                self.compiled.problems.extend(errors);
                for finding in conflicts {
                    self.error(object, finding);
                }
                self.compiled.rejected.insert(key);
            }
        }
    }

    /// A tenant that wants more engines than there are, and more than the fleet itself (which was told already).
    fn wants_more_engines(&self, part: &TenantPart) -> Vec<Finding> {
        let Some((there, fleet)) = self.engines else { return vec![] };
        let beyond = |wanted: u32, fleet: u32| if wanted > fleet { wanted } else { 0 };
        let wanted = ClassMinimum {
            anti_virus: beyond(part.policy.anti_virus.minimum_engines, fleet.anti_virus),
            anti_spam: beyond(part.policy.anti_spam.minimum_engines, fleet.anti_spam),
        };
        fleet::short_of_engines("spec.policy", there, wanted)
    }

    fn references<'r>(
        &self,
        object: &Object,
        tenant: &TenantDomain,
        fleet: Option<&'a Known<GatewayFleet>>,
        grants: Option<&'r Grants>,
    ) -> References<'r>
    where
        'a: 'r,
    {
        let namespace = tenant.spec.fleet_ref.namespace.as_deref().unwrap_or(&object.namespace);
        let meant = |known: &&Known<GatewayFleet>| known.object.namespace == namespace && known.object.name == *tenant.spec.fleet_ref.name;
        // The first fleet of the directory is the one that is served; a second one was refused.
        let fleet = match fleet.filter(meant) {
            Some(known) => known.lookup(),
            None => Lookup::Missing { near: fleet.map(|known| known.object.name.as_str()) },
        };
        let policy_name = tenant.spec.policy_ref.as_ref().map(|reference| reference.name.0.clone()).unwrap_or_default();
        References {
            fleet,
            mail_policy: self.objects.policy(&object.namespace, &policy_name),
            namespace_labels: self.objects.labels(&object.namespace),
            grants,
        }
    }
}

fn conflicts(tenant: &TenantDomain, key: &PartKey, claims: &Claims) -> Vec<Finding> {
    let mut findings = vec![];
    for (index, domain) in tenant.spec.domains.iter().enumerate() {
        if let Some((PartKey::Tenant { namespace, name }, by)) = claims.rival(key, domain) {
            let message = format!("TenantDomain {namespace}/{name} came first and holds `{by}`: remove the domain from one of the two");
            findings.push(Finding::new(format!("spec.domains[{index}]"), Reason::Conflict, message));
        }
    }
    findings
}
