//! The CustomResourceDefinitions of the cluster: whether they are there, and whether they are those that this operator was built with.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use sekimori_crds::v1alpha1::definitions;
use serde_json::Value;

use crate::io::cluster::{ClusterError, request};
use crate::io::events::{Events, News};

/// Between two looks, in seconds.
const LOOK_SECONDS: u64 = 5;
/// Between two looks once they are there.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// So many differences are named, the others counted.
const NAMED_MAX: usize = 4;

/// How the definitions of a cluster stand to those that this operator was built with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definitions {
    /// Kinds that are not there or not served yet: nothing works without them.
    pub missing: Vec<String>,
    /// What the cluster's definitions lack: they are older than this operator. Kind, field or value, one text each.
    pub lacking: Vec<String>,
    /// What they have and this operator does not know: they are newer.
    pub unknown: Vec<String>,
}

impl Definitions {
    /// One word, for programs.
    pub const fn reason(&self) -> &'static str {
        match (self.lacking.is_empty(), self.unknown.is_empty()) {
            (true, true) => "DefinitionsMatch",
            (false, true) => "DefinitionsOlder",
            (true, false) => "DefinitionsNewer",
            (false, false) => "DefinitionsDiffer",
        }
    }

    /// What is to be said of definitions of another version; `None`: they are ours.
    pub fn difference(&self) -> Option<String> {
        let few = |all: &[String]| {
            let texts = all.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
            match all.len().checked_sub(NAMED_MAX) {
                Some(more @ 1..) => format!("{texts} and {more} more"),
                _ => texts,
            }
        };
        let older = || {
            format!(
                "the CustomResourceDefinitions are older than this operator: upgrade the chart sekimori-crds; until then they drop what it could do ({})",
                few(&self.lacking)
            )
        };
        let newer = || {
            format!(
                "the CustomResourceDefinitions are newer than this operator: upgrade the operator; until then it does not act on {}",
                few(&self.unknown)
            )
        };
        match (self.lacking.is_empty(), self.unknown.is_empty()) {
            (true, true) => None,
            (false, true) => Some(older()),
            (true, false) => Some(newer()),
            (false, false) => Some(format!("{}. And: {}", older(), newer())),
        }
    }
}

/// Compares a cluster's definitions with our own.
pub fn compare(found: &[CustomResourceDefinition]) -> Definitions {
    let mut outcome = Definitions::default();
    for ours in definitions() {
        let name = ours.metadata.name.clone().unwrap_or_default();
        let theirs = found.iter().find(|theirs| theirs.metadata.name == ours.metadata.name);
        let established = theirs
            .and_then(|theirs| theirs.status.as_ref())
            .and_then(|status| status.conditions.as_ref())
            .is_some_and(|conditions| conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True"));
        match theirs {
            Some(theirs) if established => {
                let (expected, found) = (fields(&ours), fields(theirs));
                outcome.lacking.extend(expected.difference(&found).map(|field| format!("{name} {field}")));
                outcome.unknown.extend(found.difference(&expected).map(|field| format!("{name} {field}")));
            }
            _ => outcome.missing.push(name),
        }
    }
    outcome
}

/// The fields of a definition, with their types, and the values of enums. Words and defaults that the API server adds are no field.
fn fields(definition: &CustomResourceDefinition) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for version in &definition.spec.versions {
        let schema = serde_json::to_value(&version.schema).unwrap_or_default();
        paths_of(&schema["openAPIV3Schema"], &version.name, 0, &mut paths);
    }
    paths
}

fn paths_of(schema: &Value, path: &str, depth: usize, paths: &mut BTreeSet<String>) {
    if depth > 32 {
        return;
    }
    match schema["type"].as_str() {
        Some(kind) => paths.insert(format!("{path} ({kind})")),
        None => paths.insert(path.to_owned()),
    };
    paths.extend(schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(|value| format!("{path}={value}")));
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        paths_of(property, &format!("{path}.{name}"), depth + 1, paths);
    }
    for (part, below) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[part].is_object() {
            paths_of(&schema[part], &format!("{path}{below}"), depth + 1, paths);
        }
    }
}

async fn look(client: &Client) -> Result<Definitions, ClusterError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut found = vec![];
    for ours in definitions() {
        let name = ours.metadata.name.unwrap_or_default();
        found.extend(request(|| format!("CustomResourceDefinition {name}"), api.get_opt(&name)).await?);
    }
    Ok(compare(&found))
}

/// Waits until every definition is there and served.
pub async fn wait_for_definitions(client: &Client) {
    loop {
        match look(client).await {
            Err(error) if error.category() == "forbidden" => {
                tracing::warn!(%error, "the CustomResourceDefinitions may not be read; they are taken to be this operator's own");
                return;
            }
            Err(error) => tracing::warn!(%error, "the CustomResourceDefinitions cannot be read; trying again"),
            Ok(judged) if !judged.missing.is_empty() => {
                tracing::warn!(
                    missing = judged.missing.join(", "),
                    "CustomResourceDefinitions are not there or not served yet: install the chart sekimori-crds; waiting for them"
                );
            }
            Ok(_) => return,
        }
        tokio::time::sleep(Duration::from_secs(LOOK_SECONDS)).await;
    }
}

/// Says in the log and in events about `us` when the definitions become others than ours, and when they are ours again. Never returns.
pub async fn compare_for_ever(client: &Client, events: &Events, us: &ObjectReference) {
    let mut said = None;
    loop {
        match look(client).await {
            Err(error) if error.category() == "forbidden" => return std::future::pending().await,
            // Said by those who need the API server more.
            Err(error) => tracing::debug!(%error, "the CustomResourceDefinitions cannot be read; trying again"),
            Ok(judged) => {
                let difference = judged.difference();
                if difference != said {
                    let note = match &difference {
                        Some(difference) => difference.clone(),
                        None => "the CustomResourceDefinitions are those of this operator".to_owned(),
                    };
                    if difference.is_some() {
                        tracing::warn!(event = "definitions", "{note}");
                    } else {
                        tracing::info!(event = "definitions", "{note}");
                    }
                    let news = News { good: difference.is_none(), reason: judged.reason().to_owned(), action: "Compare".to_owned(), note };
                    events.say(&news, us).await;
                    said = difference;
                }
            }
        }
        tokio::time::sleep(COMPARE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(mut definition: CustomResourceDefinition, established: bool) -> CustomResourceDefinition {
        let conditions = serde_json::json!({"conditions": [{"type": "Established", "status": if established { "True" } else { "False" }}]});
        definition.status = serde_json::from_value(conditions).ok();
        definition
    }

    #[test]
    fn definitions_are_compared() {
        let ours: Vec<CustomResourceDefinition> = definitions().into_iter().map(|definition| served(definition, true)).collect();
        assert_eq!(compare(&ours), Definitions::default());
        let mut fewer = ours.clone();
        fewer[0] = served(fewer[0].clone(), false);
        let gone = fewer.remove(3).metadata.name.expect("a name");
        let judged = compare(&fewer);
        assert_eq!(judged.missing, [ours[0].metadata.name.clone().expect("a name"), gone]);
        // An older one, without a field.
        let mut older = ours;
        let schema = older[1].spec.versions[0].schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()).expect("a schema");
        let spec = schema.properties.as_mut().and_then(|properties| properties.get_mut("spec")).expect("a spec");
        let removed = spec.properties.as_mut().and_then(|properties| properties.pop_first());
        assert!(removed.is_some());
        let judged = compare(&older);
        let name = older[1].metadata.name.clone().expect("a name");
        assert!(judged.missing.is_empty() && judged.unknown.is_empty() && !judged.lacking.is_empty(), "{judged:?}");
        assert!(judged.lacking.iter().all(|field| field.starts_with(&name)), "{judged:?}");
        let said = judged.difference().expect("something to say");
        assert!(said.contains("upgrade the chart sekimori-crds") && !said.contains("upgrade the operator"), "{said}");
    }

    #[test]
    fn a_value_that_is_not_known_is_named() {
        let mut newer: Vec<CustomResourceDefinition> = definitions().into_iter().map(|definition| served(definition, true)).collect();
        let tenants = newer.iter_mut().find(|definition| definition.spec.names.kind == "TenantDomain").expect("TenantDomain");
        let mut json = serde_json::to_value(&*tenants).expect("JSON");
        let values = json.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/state/enum").expect("an enum");
        values.as_array_mut().expect("values").push("Paused".into());
        *tenants = serde_json::from_value(json).expect("a definition");
        let judged = compare(&newer);
        assert_eq!(judged.unknown, ["tenantdomains.sekimori.dev v1alpha1.spec.state=Paused"]);
        let said = judged.difference().expect("something to say");
        assert!(said.contains("upgrade the operator") && said.contains("spec.state=Paused"), "{said}");
        assert_eq!(Definitions::default().difference(), None);
    }

    #[test]
    fn words_and_server_defaults_are_no_difference() {
        let mut theirs: Vec<CustomResourceDefinition> = definitions().into_iter().map(|definition| served(definition, true)).collect();
        let schema = theirs[0].spec.versions[0].schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()).expect("a schema");
        schema.description = Some("another one".to_owned());
        theirs[0].spec.preserve_unknown_fields = Some(false);
        assert_eq!(compare(&theirs), Definitions::default());
    }
}
