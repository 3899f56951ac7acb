//! The schemas: everything is bounded and documented, every pattern and rule reads, and our own evaluation of the rules agrees with an independent one.

use std::path::Path;

use kube_cel::{ScopeContext, Validator, analyze_rule, compile_schema};
use serde_json::Value;

use sekimori_crds::compile::{Input, Options, compile, read_documents};
use sekimori_crds::v1alpha1::definitions;

fn schemas() -> Vec<(String, Value)> {
    definitions()
        .into_iter()
        .map(|definition| {
            let schema = definition.spec.versions.into_iter().next().and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
            (definition.spec.names.kind, serde_json::to_value(schema).expect("JSON"))
        })
        .collect()
}

fn walk(node: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, node);
    for (name, field) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
        walk(field, &format!("{path}.{name}"), visit);
    }
    for part in ["items", "additionalProperties"] {
        if let Some(inner) = node.get(part) {
            walk(inner, &format!("{path}[]"), visit);
        }
    }
}

#[test]
fn everything_is_bounded_and_documented() {
    let mut wrong = vec![];
    for (kind, schema) in schemas() {
        walk(&schema, &kind, &mut |path, node| {
            let has = |name: &str| node.get(name).is_some();
            let of = |name: &str| node.get("type").and_then(Value::as_str) == Some(name);
            let named = !path.ends_with("[]")
                && path.matches('.').count() > 0
                && !path.ends_with(".metadata")
                && !path.ends_with(".apiVersion")
                && !path.ends_with(".kind");
            if of("string") && !has("maxLength") && !has("enum") && named {
                wrong.push(format!("{path}: text without maxLength"));
            }
            if of("array") && !has("maxItems") {
                wrong.push(format!("{path}: list without maxItems"));
            }
            if of("array") && !has("x-kubernetes-list-type") {
                wrong.push(format!("{path}: list that does not say how it merges"));
            }
            if has("additionalProperties") && !has("maxProperties") {
                wrong.push(format!("{path}: map without maxProperties"));
            }
            let generation = path.ends_with("Generation") || path.ends_with("Since");
            if of("integer") && path.contains(".spec") && !generation && !(has("minimum") && has("maximum")) {
                wrong.push(format!("{path}: number without bounds"));
            }
            if named && !path.ends_with(".conditions") && !path.ends_with(".status") && !path.ends_with(".spec") && !has("description") {
                wrong.push(format!("{path}: no description"));
            }
            for forbidden in ["default", "nullable", "oneOf", "anyOf", "$ref"] {
                if has(forbidden) {
                    wrong.push(format!("{path}: {forbidden}"));
                }
            }
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_kind_has_what_kubectl_wants() {
    for definition in definitions() {
        let names = &definition.spec.names;
        let version = definition.spec.versions.first().expect("a version");
        assert_eq!(names.categories.as_deref(), Some(&["sekimori".to_owned()][..]), "{}", names.kind);
        assert_eq!(names.short_names.as_ref().map(Vec::len), Some(1), "{}", names.kind);
        assert!(version.additional_printer_columns.as_ref().is_some_and(|columns| columns.len() >= 3), "{}", names.kind);
        let subresources = version.subresources.as_ref().expect("the status is a subresource");
        assert!(subresources.status.is_some());
        assert_eq!(subresources.scale.is_some(), names.kind == "GatewayFleet");
    }
}

/// Documents of all golden cases, good and bad, that are of our kinds and whose shape the schema accepts as far as types go.
fn documents() -> Vec<(String, Value)> {
    let folder = Path::new("tests/data/compile");
    let mut paths: Vec<_> = std::fs::read_dir(folder).expect("cases").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let mut found = vec![];
    for path in paths.iter().filter(|path| path.to_string_lossy().ends_with(".in.yaml")) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).expect("readable");
        for document in read_documents(&name, &text).unwrap_or_default() {
            if let Ok(value) = serde_json::to_value(&document.value) {
                found.push((document.source, value));
            }
        }
    }
    found
}

#[test]
fn our_rules_and_an_independent_cel_agree() {
    let schemas = schemas();
    let (mut compared, mut violations) = (0, std::collections::BTreeSet::new());
    for (source, value) in documents() {
        let Some((_, schema)) = schemas.iter().find(|(kind, _)| value.get("kind").and_then(Value::as_str) == Some(kind)) else { continue };
        let input = Input {
            documents: vec![sekimori_crds::compile::Document { source: source.clone(), value: serde_yaml::to_value(&value).expect("YAML") }],
        };
        let problems = compile(&input, &Options::default()).problems;
        let messages = messages(schema);
        // The API server evaluates rules only where the shape is right; so do we, and only such documents can be compared.
        let shape = problems.iter().any(|problem| {
            problem.is_error()
                && !problem.source.is_empty()
                && !messages.iter().any(|message| problem.message.ends_with(message.as_str()))
                && is_shape(problem)
        });
        if shape {
            continue;
        }
        let ours: std::collections::BTreeSet<String> =
            problems.iter().filter_map(|problem| messages.iter().find(|message| problem.message.ends_with(message.as_str()))).cloned().collect();
        let theirs: std::collections::BTreeSet<String> = match Validator::new().validate(schema, &value, None) {
            Ok(()) => std::collections::BTreeSet::new(),
            Err(errors) => errors.into_iter().map(|error| error.message).collect(),
        };
        assert_eq!(ours, theirs, "{source}");
        compared += 1;
        violations.extend(ours);
    }
    assert!(compared > 60, "only {compared} documents were compared");
    assert!(violations.len() >= 15, "only these rules were ever violated: {violations:?}");
}

fn is_shape(problem: &sekimori_crds::compile::Problem) -> bool {
    use sekimori_crds::compile::Reason::{Conflict, InvalidValue, Missing, UnknownField, Unreadable};
    matches!(problem.reason, UnknownField | InvalidValue | Unreadable)
        || (matches!(problem.reason, Missing | Conflict) && problem.field.starts_with("spec"))
}

fn messages(schema: &Value) -> Vec<String> {
    let mut messages = vec![];
    walk(schema, "", &mut |_, node| {
        for rule in node.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
            messages.extend(rule.get("message").and_then(Value::as_str).map(str::to_owned));
        }
    });
    messages
}

/// Every rule of every schema, violated once: by itself, against both evaluations. The table is complete, or the test says what is missing.
#[test]
fn every_rule_can_be_violated_and_both_evaluations_see_it() {
    let text = std::fs::read_to_string(Path::new("tests/data/rules.yaml")).expect("the table");
    let schemas = schemas();
    let mut missing: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    for (kind, schema) in &schemas {
        walk(schema, kind, &mut |path, node| {
            for rule in node.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default();
                if !text("rule").contains("oldSelf") {
                    missing.insert(text("rule").to_owned(), format!("{path}: {}", text("message")));
                }
            }
        });
    }
    for document in read_documents("rules.yaml", &text).expect("YAML") {
        let value = serde_json::to_value(&document.value).expect("JSON");
        let kind = value.get("kind").and_then(Value::as_str).expect("a kind");
        let schema = &schemas.iter().find(|(known, _)| known == kind).expect("one of our kinds").1;
        let theirs = Validator::new().validate(schema, &value, None).expect_err("a violation");
        let theirs: Vec<(String, String)> = theirs.into_iter().map(|error| (error.rule, error.message)).collect();
        let [(rule, message)] = theirs.as_slice() else { panic!("{}: {theirs:?} is not one violation", document.source) };
        let compiled = compile(&Input { documents: vec![document.clone()] }, &Options::default());
        let ours: Vec<_> = compiled.problems.iter().filter(|problem| problem.is_error() && !problem.source.is_empty()).collect();
        assert!(matches!(ours.as_slice(), [one] if one.message.ends_with(message.as_str())), "{}: theirs {message}, ours {ours:?}", document.source);
        missing.remove(rule.as_str());
    }
    assert!(missing.is_empty(), "no document in rules.yaml violates\n{missing:#?}");
}

/// Rules about changes are the API server's alone: here the independent evaluation shows that they say what they should.
#[test]
fn transition_rules_refuse_what_they_should() {
    let schemas = schemas();
    let check = |kind: &str, old: &str, new: &str, allowed: bool| {
        let schema = &schemas.iter().find(|(known, _)| known == kind).expect("one of our kinds").1;
        let object = |spec: &str| serde_yaml::from_str::<Value>(&format!("{{kind: {kind}, spec: {spec}}}")).expect("YAML");
        let outcome = Validator::new().validate(schema, &object(new), Some(&object(old)));
        assert_eq!(outcome.is_ok(), allowed, "{kind} from {old} to {new}: {outcome:?}");
    };
    let version = |version: &str| format!("{{engineRef: {{name: e}}, version: '{version}', image: x}}");
    check("EngineVersion", &version("1"), &version("1"), true);
    check("EngineVersion", &version("1"), &version("2"), false);
    let fleet = |spool: &str| format!("{{hostname: a.example, listeners: [{{name: smtp, port: 25}}]{spool}}}");
    for (old, new, allowed) in [
        ("", "", true),
        ("", ", spool: {storage: 1Gi}", true),
        ("", ", spool: {storageClassName: fast}", false),
        (", spool: {storageClassName: fast}", ", spool: {storageClassName: fast, storage: 2Gi}", true),
        (", spool: {storageClassName: fast}", ", spool: {storageClassName: slow}", false),
        (", spool: {storageClassName: fast}", ", spool: {storage: 1Gi}", false),
        (", spool: {storageClassName: fast}", "", false),
    ] {
        check("GatewayFleet", &fleet(old), &fleet(new), allowed);
    }
    let rollout = |to: &str, more: &str| format!("{{engineRef: {{name: e}}, toRef: {{name: {to}}}{more}}}");
    for (old, new, allowed) in [
        (rollout("b", ""), rollout("b", ", paused: true"), true),
        (rollout("b", ""), rollout("b", ", decision: Promote"), true),
        (rollout("b", ", decision: Promote"), rollout("b", ", decision: Promote"), true),
        (rollout("b", ", decision: Promote"), rollout("b", ", decision: Abort"), false),
        (rollout("b", ", decision: Promote"), rollout("b", ""), false),
        (rollout("b", ""), rollout("c", ""), false),
        (rollout("b", ""), rollout("b", ", fromRef: {name: a}"), false),
        (rollout("b", ", fromRef: {name: a}"), rollout("b", ", fromRef: {name: b}"), false),
    ] {
        check("EngineRollout", &old, &new, allowed);
    }
}

/// Cost and scope of each rule as far as they can be told without an API server.
#[test]
fn no_rule_is_unbounded_or_out_of_scope() {
    let mut wrong = vec![];
    for (kind, schema) in schemas() {
        walk(&schema, &kind, &mut |path, node| {
            for rule in node.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                let text = rule.get("rule").and_then(Value::as_str).unwrap_or_default();
                let warnings = analyze_rule(text, &compile_schema(node), ScopeContext::CrdValidation);
                // The analysis does not know the variables that a quantifier binds.
                let bound =
                    |message: &str| ["'a'", "'b'"].iter().any(|name| message.starts_with(&format!("variable {name}")) && text.contains("self.all(a"));
                wrong.extend(
                    warnings.into_iter().filter(|warning| !bound(&warning.message)).map(|warning| format!("{path}: {text}: {}", warning.message)),
                );
            }
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
