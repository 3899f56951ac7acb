//! Generated files are fresh, and the page of built-in values says what the fields' own docs say.

use serde_json::Value;

use sekimori_crds::reference::{default_rows, files};
use sekimori_crds::v1alpha1::definitions;

#[test]
fn generated_files_are_fresh() {
    let stale: Vec<String> = files().into_iter().filter_map(|(path, text)| crate::fresh(&crate::root().join(path), &text).err()).collect();
    assert!(stale.is_empty(), "{}", stale.join("\n"));
}

/// The stream's messages, from their `.proto`.
fn stream_code() -> String {
    let descriptors = protox::compile(["sekimori/v1alpha1/stream.proto"], [crate::root().join("crds/proto")]).expect("a valid .proto");
    let out = tempfile::tempdir().expect("a directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .build_transport(false)
        // One part is sent to many gateways: shared, not copied.
        .bytes(".sekimori.v1alpha1.Change.part")
        .compile_fds(descriptors)
        .expect("code");
    let code = std::fs::read_to_string(out.path().join("sekimori.v1alpha1.rs")).expect("one package, one file");
    format!(
        "// Generated from stream.proto by `make generate`. What it means stands there.\n#![cfg_attr(rustfmt, rustfmt_skip)]\n#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction)]\n{code}"
    )
}

#[test]
fn the_stream_is_what_its_proto_says() {
    let fresh = crate::fresh(&crate::root().join("crds/src/stream/generated.rs"), &stream_code());
    assert!(fresh.is_ok(), "{}", fresh.unwrap_err());
}

#[test]
fn every_definition_in_the_chart_is_generated_and_fits_helm() {
    let templates = crate::root().join("helm/sekimori-crds/templates");
    let mut names: Vec<String> =
        std::fs::read_dir(&templates).expect("templates").map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let mut expected: Vec<String> = definitions().into_iter().map(|definition| format!("{}.yaml", definition.spec.names.plural)).collect();
    expected.sort();
    assert_eq!(names, expected);
    for (path, text) in files().into_iter().filter(|(path, _)| path.starts_with("helm/")) {
        assert!(!text.contains("{{"), "{path}: helm would read this as a template");
        assert!(text.len() < 200_000, "{path} has {} bytes: too large for the annotation of a client-side apply", text.len());
    }
}

fn field<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(schema, |node, name| {
        let (name, is_list) = name.strip_suffix("[]").map_or((name, false), |name| (name, true));
        let node = node.get("properties")?.get(name)?;
        if is_list { node.get("items") } else { Some(node) }
    })
}

#[test]
fn built_in_values_are_those_of_the_docs() {
    let schemas: Vec<(String, Value)> = definitions()
        .into_iter()
        .map(|definition| {
            let schema = definition.spec.versions.into_iter().next().and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
            (definition.spec.names.kind, serde_json::to_value(schema).expect("JSON"))
        })
        .collect();
    for row in default_rows() {
        let schema = &schemas.iter().find(|(kind, _)| kind == row.kind).expect(row.kind).1;
        let field = field(schema, row.field).unwrap_or_else(|| panic!("{} has no field {}", row.kind, row.field));
        let doc = field.get("description").and_then(Value::as_str).unwrap_or_default();
        let says = ["Default", "Built in"]
            .into_iter()
            .any(|word| doc.split(&format!("{word}: ")).nth(1).is_some_and(|rest| rest.trim_end_matches('.').starts_with(row.value.as_str())));
        assert!(says, "{} {}: the page says `{}`, the doc `{doc}`", row.kind, row.field, row.value);
    }
}

#[test]
fn every_default_in_a_doc_is_on_the_page() {
    let rows = default_rows();
    let mut missing = vec![];
    for definition in definitions() {
        let kind = definition.spec.names.kind;
        let schema = definition.spec.versions.into_iter().next().and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
        let schema = serde_json::to_value(schema).expect("JSON");
        walk(schema.pointer("/properties/spec").expect("a spec"), "spec", &mut |path, doc| {
            let policy = ["policy", "policyDefaults", "policyOverrides"].into_iter().any(|part| path.split('.').nth(1) == Some(part));
            // Nothing, none and false are no values to look up.
            let trivial = ["nothing", "none", "false", "no limit"].into_iter().any(|word| doc.contains(&format!("Default: {word}")));
            let stated = doc.contains("Default: ") || doc.contains("Built in: ");
            if stated && !policy && !trivial && !rows.iter().any(|row| row.kind == kind && row.field == path) {
                missing.push(format!("{kind} {path}: {doc}"));
            }
        });
    }
    // Values of the user's own making, and knobs whose built-in value is that of the HPA: their doc is enough.
    let described = ["spec.image", "spec.rollout.steps[].shadow", "spec.autoscaling.behavior", "spec.decision", "objectStore.secretRef"];
    missing.retain(|line| !described.iter().any(|known| line.contains(known)));
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

fn walk(node: &Value, path: &str, visit: &mut impl FnMut(&str, &str)) {
    for (name, field) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{path}.{name}");
        visit(&path, field.get("description").and_then(Value::as_str).unwrap_or_default());
        walk(field, &path, visit);
        if let Some(items) = field.get("items") {
            walk(items, &format!("{path}[]"), visit);
        }
    }
}
