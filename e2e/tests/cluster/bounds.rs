//! Every bound of every field of the CRDs, broken one at a time before a real API server. What is broken is derived from the schemas, so that a new field needs
//! no new document.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

/// A value that breaks one bound.
pub(crate) struct Broken {
    /// `spec.listeners[0].port`.
    pub(crate) path: String,
    /// Such as `maximum 65535`.
    pub(crate) bound: String,
    /// The whole object, with a name of its own.
    pub(crate) object: Value,
}

/// Levels of a schema; ours have fewer.
const DEPTH_MAX: usize = 24;
/// Matches none of our patterns.
const NONSENSE: &str = "\u{0}! no such thing !\u{1}";

/// The definitions' kinds and the schemas of their specs.
pub(crate) fn schemas(directory: &Path) -> anyhow::Result<Vec<(String, Value)>> {
    let mut found = vec![];
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        let definition: Value = serde_yaml::from_str(&std::fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        let kind = definition["spec"]["names"]["kind"].as_str().context("a kind")?.to_owned();
        let versions = definition["spec"]["versions"].as_array().cloned().unwrap_or_default();
        found.extend(versions.iter().map(|version| (kind.clone(), version["schema"]["openAPIV3Schema"]["properties"]["spec"].clone())));
    }
    Ok(found)
}

/// Every way to break one bound of `base`, an object that is accepted. Fields that it lacks are made up: the rest of such an object may be wrong, too.
pub(crate) fn broken(base: &Value, schema: &Value) -> Vec<Broken> {
    let mut steps = vec![];
    walk(schema, base.get("spec").unwrap_or(&Value::Null), &mut vec![Step::Field("spec".to_owned())], &mut steps);
    let mut seen = BTreeSet::new();
    steps
        .into_iter()
        .filter(|(path, bound, _)| seen.insert((text(path), bound.clone())))
        .map(|(path, bound, value)| {
            let mut object = base.clone();
            put(&mut object, &path, value);
            Broken { path: text(&path), bound, object }
        })
        .collect()
}

#[derive(Clone)]
enum Step {
    Field(String),
    Item,
}

type Found = Vec<(Vec<Step>, String, Value)>;

fn text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => text.extend([".", name]),
            Step::Item => text.push_str("[0]"),
        }
    }
    text
}

/// Puts a value there, and makes what is missing on the way.
fn put(object: &mut Value, path: &[Step], value: Value) {
    let mut place = object;
    for step in path {
        place = match step {
            Step::Field(name) => {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                &mut place[name.as_str()]
            }
            Step::Item => {
                if place.as_array().is_none_or(Vec::is_empty) {
                    *place = json!([null]);
                }
                &mut place[0]
            }
        };
    }
    *place = value;
}

fn walk(schema: &Value, value: &Value, path: &mut Vec<Step>, found: &mut Found) {
    if path.len() > DEPTH_MAX || schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    let mut say = |bound: String, value: Value| found.push((path.clone(), bound, value));
    match schema["type"].as_str() {
        Some("string") => {
            let has_bound = ["enum", "pattern", "format"].iter().any(|bound| !schema[*bound].is_null());
            if has_bound {
                say("enum or pattern".to_owned(), json!(NONSENSE));
            }
            if let Some(most) = schema["maxLength"].as_u64().and_then(|most| usize::try_from(most).ok()) {
                say(format!("maxLength {most}"), json!("a".repeat(most + 1)));
            }
            if schema["minLength"].as_u64().is_some_and(|least| least > 0) {
                say("minLength".to_owned(), json!(""));
            }
            say("type string".to_owned(), json!({"not": "a string"}));
        }
        Some("integer" | "number") => {
            if let Some(least) = schema["minimum"].as_f64() {
                say(format!("minimum {least}"), json!(least as i64 - 1));
            }
            if let Some(most) = schema["maximum"].as_f64() {
                say(format!("maximum {most}"), json!(most as i64 + 1));
            }
            say("type number".to_owned(), json!("many"));
        }
        Some("boolean") => say("type boolean".to_owned(), json!("perhaps")),
        Some("array") => {
            let first = value.get(0).cloned().unwrap_or(Value::Null);
            if let Some(most) = schema["maxItems"].as_u64().and_then(|most| usize::try_from(most).ok()) {
                say(format!("maxItems {most}"), Value::Array(vec![first.clone(); most + 1]));
            }
            if schema["minItems"].as_u64().is_some_and(|least| least > 0) {
                say("minItems".to_owned(), json!([]));
            }
            say("type array".to_owned(), json!("one"));
            path.push(Step::Item);
            walk(&schema["items"], &first, path, found);
            path.pop();
        }
        Some("object") => {
            say("type object".to_owned(), json!("one"));
            for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                // A field that is not there: null is dropped by the API server, and then it is missing.
                found.push(([path.as_slice(), &[Step::Field(required.to_owned())]].concat(), "required".to_owned(), Value::Null));
            }
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                path.push(Step::Field(name.clone()));
                walk(property, &value[name.as_str()], path, found);
                path.pop();
            }
            if let Some(most) = schema["maxProperties"].as_u64() {
                let many: Map<String, Value> = (0..=most).map(|number| (format!("key-{number}"), json!("value"))).collect();
                found.push((path.clone(), format!("maxProperties {most}"), Value::Object(many)));
            }
            if schema["additionalProperties"].is_object() {
                path.push(Step::Field("key".to_owned()));
                walk(&schema["additionalProperties"], &Value::Null, path, found);
                path.pop();
            }
        }
        _ => {}
    }
}
