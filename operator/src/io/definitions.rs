//! The CustomResourceDefinitions of the cluster: whether they are there, and whether they are those that this operator was built with.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use sekimori_crds::v1alpha1::definitions;
use serde_json::Value;

use crate::io::cluster::request;

/// Between two looks, in seconds.
const LOOK_SECONDS: u64 = 5;

/// How the definitions of a cluster stand to those that this operator was built with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definitions {
    /// Kinds that are not there or not served yet: nothing works without them.
    pub missing: Vec<String>,
    /// Kinds whose definition is another one than this operator's.
    pub differ: Vec<String>,
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
                if !same_fields(&ours, theirs) {
                    outcome.differ.push(name);
                }
            }
            _ => outcome.missing.push(name),
        }
    }
    outcome
}

/// Whether two definitions have the same fields. Words and defaults that the API server adds are no difference.
fn same_fields(ours: &CustomResourceDefinition, theirs: &CustomResourceDefinition) -> bool {
    let fields = |definition: &CustomResourceDefinition| {
        let mut paths = vec![];
        for version in &definition.spec.versions {
            let schema = serde_json::to_value(&version.schema).unwrap_or_default();
            paths_of(&schema["openAPIV3Schema"], &version.name, 0, &mut paths);
        }
        paths.sort();
        paths
    };
    fields(ours) == fields(theirs)
}

fn paths_of(schema: &Value, path: &str, depth: usize, paths: &mut Vec<String>) {
    if depth > 32 {
        return;
    }
    let values = schema["enum"].as_array().map(|values| values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("|")).unwrap_or_default();
    paths.push(format!("{path}:{}:{values}", schema["type"].as_str().unwrap_or_default()));
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        paths_of(property, &format!("{path}.{name}"), depth + 1, paths);
    }
    for (part, below) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[part].is_object() {
            paths_of(&schema[part], &format!("{path}{below}"), depth + 1, paths);
        }
    }
}

/// Waits until every definition is there and served, and says what to do about those that differ from ours.
pub async fn wait_for_definitions(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    loop {
        let mut found = vec![];
        let mut failure = None;
        for ours in definitions() {
            let name = ours.metadata.name.unwrap_or_default();
            match request(|| format!("CustomResourceDefinition {name}"), api.get_opt(&name)).await {
                Ok(definition) => found.extend(definition),
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure.as_ref().filter(|error| error.category() == "forbidden") {
            tracing::warn!(%error, "the CustomResourceDefinitions may not be read; they are taken to be this operator's own");
            return;
        }
        let judged = compare(&found);
        match failure {
            Some(error) => tracing::warn!(%error, "the CustomResourceDefinitions cannot be read; trying again"),
            None if !judged.missing.is_empty() => {
                tracing::warn!(
                    missing = judged.missing.join(", "),
                    "CustomResourceDefinitions are not there or not served yet: install the chart sekimori-crds; waiting for them"
                );
            }
            None => {
                if !judged.differ.is_empty() {
                    tracing::warn!(
                        differ = judged.differ.join(", "),
                        "CustomResourceDefinitions are of another version than this operator: upgrade the chart sekimori-crds, or the operator; fields that only one of the two knows have no effect until then"
                    );
                }
                return;
            }
        }
        tokio::time::sleep(Duration::from_secs(LOOK_SECONDS)).await;
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
        assert_eq!((judged.missing.len(), judged.differ), (0, vec![older[1].metadata.name.clone().expect("a name")]));
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
