//! Documents to objects: kind, identity, schema, and what else a directory may hold.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

use super::fleet::{Values, check_engine};
use super::policy::not_supported;
use super::problem::{Finding, Problem, Reason, did_you_mean, nearest};
use super::schema::{self, SPECS, clipped};
use super::{Document, Lookup, Options};
use crate::v1alpha1::{
    API_VERSION, DomainGrant, Engine, EngineRollout, EngineVersion, GROUP, GatewayFleet, MailPolicy, MailPolicySpec, TenantDomain,
};

/// The fields of every object.
const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
/// The fields of `metadata`.
const METADATA: [&str; 15] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "ownerReferences",
    "managedFields",
    "selfLink",
];

/// Which object a document is.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub index: usize,
    pub source: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// Of a TenantDomain that was rejected: the domains that could be read.
    pub domains: Vec<String>,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// An object and what it says; nothing where it was rejected.
#[derive(Debug)]
pub(crate) struct Known<T> {
    pub object: Object,
    pub typed: Option<T>,
}

impl<T> Known<T> {
    pub(crate) fn lookup(&self) -> Lookup<'_, T> {
        self.typed.as_ref().map_or(Lookup::Rejected, Lookup::Found)
    }
}

type ByName<T> = BTreeMap<(String, String), T>;

/// Everything in a directory, by kind, namespace and name.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub fleets: ByName<Known<GatewayFleet>>,
    pub engines: ByName<Known<Engine>>,
    pub policies: ByName<Known<MailPolicy>>,
    pub tenants: ByName<Known<TenantDomain>>,
    pub grants: ByName<Known<DomainGrant>>,
    pub secrets: ByName<Values>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl Objects {
    pub(crate) fn read(documents: &[Document], options: &Options, problems: &mut Vec<Problem>) -> Self {
        let mut reader = Reader { objects: Self::default(), options, problems, seen: HashMap::new() };
        for (index, document) in documents.iter().enumerate() {
            reader.document(index, document);
        }
        let Reader { mut objects, .. } = reader;
        objects.name_namespaces();
        objects
    }

    pub(crate) fn policy<'a>(&'a self, namespace: &str, name: &str) -> Lookup<'a, MailPolicy> {
        match self.policies.get(&(namespace.to_owned(), name.to_owned())) {
            Some(known) => known.lookup(),
            None => Lookup::Missing { near: nearest(name, self.policies.keys().filter(|(ns, _)| ns == namespace).map(|(_, name)| name.as_str())) },
        }
    }

    pub(crate) fn labels(&self, namespace: &str) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.namespaces.get(namespace).unwrap_or(&NONE)
    }

    /// Every namespace of a tenant has the label that Kubernetes gives it.
    fn name_namespaces(&mut self) {
        let names: Vec<String> = self.tenants.keys().map(|(namespace, _)| namespace.clone()).collect();
        for name in names {
            self.namespaces.entry(name.clone()).or_default().insert("kubernetes.io/metadata.name".into(), name);
        }
    }
}

struct Reader<'p> {
    objects: Objects,
    options: &'p Options,
    problems: &'p mut Vec<Problem>,
    /// Where each object was first seen.
    seen: HashMap<String, String>,
}

impl Reader<'_> {
    fn document(&mut self, index: usize, document: &Document) {
        let Document { source, value } = document;
        let Some(map) = value.as_mapping() else {
            self.refuse(source, "", Finding::new("", Reason::Unreadable, "is no object: begin with apiVersion, kind and metadata"));
            return;
        };
        let text = |name: &str| map.get(name).and_then(Value::as_str);
        let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            let missing = if text("kind").is_none() { "kind" } else { "apiVersion" };
            self.refuse(
                source,
                "",
                Finding::new(missing, Reason::Missing, "is required: such as apiVersion sekimori.dev/v1alpha1, kind TenantDomain"),
            );
            return;
        };
        let object = match self.identify(index, source, kind, map) {
            Ok(object) => object,
            Err(finding) => return self.refuse(source, &clipped(kind), finding),
        };
        let name = object.to_string();
        if !(version == API_VERSION && SPECS.contains_key(kind)) {
            return self.foreign(version, kind, map, object);
        }
        if let Some(first) = self.seen.insert(name.clone(), source.clone()) {
            self.seen.insert(name.clone(), first.clone());
            return self.refuse(
                source,
                &name,
                Finding::new("", Reason::Conflict, format!("the same object is in {first} already: remove one of the two")),
            );
        }
        let findings = frame(kind, map);
        let sound = findings.is_empty();
        findings.into_iter().for_each(|finding| self.refuse(source, &name, finding));
        self.own(kind, map, object, sound);
    }

    fn refuse(&mut self, source: &str, object: &str, finding: Finding) {
        self.problems.push(Problem::error(source, object, finding));
    }

    fn identify(&self, index: usize, source: &str, kind: &str, map: &Mapping) -> Result<Object, Finding> {
        let metadata = map.get("metadata").unwrap_or(&Value::Null);
        let text = |name: &str| match metadata.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(Finding::new(format!("metadata.{name}"), Reason::InvalidValue, "must be text: put it in quotes")),
        };
        let name = text("name")?.ok_or_else(|| Finding::new("metadata.name", Reason::Missing, "is required: give the object a name"))?;
        let namespace = text("namespace")?;
        let cluster_scoped = matches!(kind, "DomainGrant" | "Namespace");
        if cluster_scoped && namespace.is_some() && kind == "DomainGrant" {
            return Err(Finding::new(
                "metadata.namespace",
                Reason::InvalidValue,
                "a DomainGrant belongs to the cluster, not to a namespace: leave it out",
            ));
        }
        for (field, value, dots) in [("metadata.name", Some(name), true), ("metadata.namespace", namespace, false)] {
            if let Some(value) = value.filter(|value| !is_object_name(value, dots)) {
                let message = format!(
                    "`{}` is not a name: use lower-case letters, digits{} and '-', beginning and ending with a letter or digit",
                    clipped(value),
                    if dots { ", '.'" } else { "" }
                );
                return Err(Finding::new(field, Reason::InvalidValue, message));
            }
        }
        let namespace = if cluster_scoped { "" } else { namespace.unwrap_or(&self.options.default_namespace) };
        Ok(Object {
            index,
            source: source.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            domains: vec![],
        })
    }

    /// One of our kinds.
    fn own(&mut self, kind: &str, map: &Mapping, mut object: Object, sound: bool) {
        let spec = map.get("spec").unwrap_or(&Value::Null);
        let key = (object.namespace.clone(), object.name.clone());
        match kind {
            "GatewayFleet" => {
                let typed = self.typed(spec, &object, sound, |_| vec![]);
                self.objects.fleets.insert(key, Known { typed: typed.map(|spec| placed(GatewayFleet::new(&object.name, spec), &object)), object });
            }
            "Engine" => {
                let typed = self.typed(spec, &object, sound, |spec: &crate::v1alpha1::EngineSpec| check_engine(&Engine::new("", spec.clone())));
                self.objects.engines.insert(key, Known { typed: typed.map(|spec| placed(Engine::new(&object.name, spec), &object)), object });
            }
            "MailPolicy" => {
                let typed = self.typed(spec, &object, sound, |spec: &MailPolicySpec| not_supported(spec, "spec"));
                self.objects.policies.insert(key, Known { typed: typed.map(|spec| placed(MailPolicy::new(&object.name, spec), &object)), object });
            }
            "TenantDomain" => {
                let typed = self.typed(spec, &object, sound, |_| vec![]);
                if typed.is_none() {
                    let domains = spec.get("domains").and_then(Value::as_sequence).into_iter().flatten();
                    object.domains = domains.filter_map(Value::as_str).map(str::to_owned).collect();
                }
                self.objects.tenants.insert(key, Known { typed: typed.map(|spec| placed(TenantDomain::new(&object.name, spec), &object)), object });
            }
            "DomainGrant" => {
                let typed = self.typed(spec, &object, sound, |_| vec![]);
                self.objects.grants.insert(key, Known { typed: typed.map(|spec| DomainGrant::new(&object.name, spec)), object });
            }
            // Read so that mistakes are seen; a gateway alone has no use for them.
            "EngineVersion" => drop(self.typed(spec, &object, sound, |_| vec![]).map(|spec| EngineVersion::new(&object.name, spec))),
            _ => drop(self.typed(spec, &object, sound, |_| vec![]).map(|spec| EngineRollout::new(&object.name, spec))),
        }
    }

    fn typed<T: DeserializeOwned>(&mut self, spec: &Value, object: &Object, sound: bool, check: impl Fn(&T) -> Vec<Finding>) -> Option<T> {
        if !sound {
            return None;
        }
        let findings = match T::deserialize(spec) {
            Ok(typed) => match check(&typed) {
                findings if findings.is_empty() => return Some(typed),
                findings => findings,
            },
            Err(error) => vec![Finding::new("spec", Reason::InvalidValue, format!("cannot be read: {error}"))],
        };
        findings.into_iter().for_each(|finding| self.refuse(&object.source, &object.to_string(), finding));
        None
    }

    /// Not one of our kinds: what tenants and fleets refer to, what looks like ours, and what is none of our business.
    fn foreign(&mut self, version: &str, kind: &str, map: &Mapping, object: Object) {
        let name = object.to_string();
        let (group, _) = version.split_once('/').unwrap_or(("", version));
        let ours = SPECS.keys().map(String::as_str);
        match (version, kind) {
            ("v1", "Secret") => match values(map) {
                Ok(values) => {
                    if self.objects.secrets.insert((object.namespace.clone(), object.name.clone()), values).is_some() {
                        self.refuse(&object.source, &name, Finding::new("", Reason::Conflict, "there are two of that name: remove one of the two"));
                    }
                }
                Err(finding) => self.refuse(&object.source, &name, finding),
            },
            ("v1", "ConfigMap") => {}
            ("v1", "Namespace") => {
                let labels = map.get("metadata").and_then(|metadata| metadata.get("labels")).and_then(Value::as_mapping).into_iter().flatten();
                let labels = labels.filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value.as_str()?.to_owned())));
                self.objects.namespaces.entry(object.name).or_default().extend(labels);
            }
            _ if group == GROUP && SPECS.contains_key(kind) => {
                let message = format!("`{}` is not known: write {API_VERSION}", clipped(version));
                self.refuse(&object.source, &name, Finding::new("apiVersion", Reason::UnknownKind, message));
            }
            _ if group == GROUP => {
                let near = did_you_mean(kind, ours);
                let message = format!("`{}` is not a kind of {GROUP}{near}", clipped(kind));
                self.refuse(&object.source, &name, Finding::new("kind", Reason::UnknownKind, message));
            }
            _ if SPECS.contains_key(kind) => {
                let message = format!("`{}` is not the version of {kind}: write {API_VERSION}", clipped(version));
                self.refuse(&object.source, &name, Finding::new("apiVersion", Reason::UnknownKind, message));
            }
            _ => {
                let finding = Finding::new("", Reason::Unused, "a gateway has no use for this kind: it is not read");
                self.problems.push(Problem::warning(&object.source, &name, finding));
            }
        }
    }
}

fn placed<T: kube::Resource>(mut typed: T, object: &Object) -> T {
    typed.meta_mut().namespace = Some(object.namespace.clone());
    typed
}

/// Everything but the meaning: the fields around `spec`, and `spec` against its schema.
fn frame(kind: &str, map: &Mapping) -> Vec<Finding> {
    let mut findings = vec![];
    let mut unknown = |path: &str, key: &Value, known: &[&str]| {
        if let Some(name) = key.as_str().filter(|name| !known.contains(name)) {
            let message = schema::unknown_field(name, nearest(name, known.iter().copied()), known.iter().copied());
            findings.push(Finding::new(format!("{path}{}", clipped(name)), Reason::UnknownField, message));
        }
    };
    map.keys().for_each(|key| unknown("", key, &FIELDS));
    map.get("metadata").and_then(Value::as_mapping).into_iter().flatten().for_each(|(key, _)| unknown("metadata.", key, &METADATA));
    match (map.get("spec"), SPECS.get(kind)) {
        (Some(spec), Some(node)) => findings.extend(schema::check(node, spec, "spec")),
        _ => findings.push(Finding::new("spec", Reason::Missing, "is required: add it")),
    }
    findings
}

/// The values of a Secret: `data` in base64, `stringData` as it is.
fn values(map: &Mapping) -> Result<Values, Finding> {
    let mut values = Values::new();
    for (field, encoded) in [("data", true), ("stringData", false)] {
        for (key, value) in map.get(field).and_then(Value::as_mapping).into_iter().flatten() {
            let path = format!("{field}[{}]", clipped(key.as_str().unwrap_or_default()));
            let Some(text) = value.as_str() else { return Err(Finding::new(path, Reason::InvalidValue, "must be text: put it in quotes")) };
            let bytes = if encoded {
                let plain: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                STANDARD.decode(plain).map_err(|_| Finding::new(path, Reason::InvalidValue, "is not base64: encode it, or move it to stringData"))?
            } else {
                text.as_bytes().to_vec()
            };
            values.insert(key.as_str().unwrap_or_default().to_owned(), bytes);
        }
    }
    Ok(values)
}

/// A DNS label, or with `dots` a DNS subdomain.
fn is_object_name(name: &str, dots: bool) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (dots && c == '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= if dots { 253 } else { 63 } && name.chars().all(fits) && ends(name.chars().next()) && ends(name.chars().next_back())
}
