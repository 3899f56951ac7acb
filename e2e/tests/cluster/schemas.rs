//! The CRDs on a real API server: it compiles every rule, estimates its cost, and refuses a CRD that is over budget.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::bounds;
use crate::support::{Outcome, Scenario, Stage};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "schemas::helm_installs_the_definitions", run: helm_installs_the_definitions },
    Scenario { name: "schemas::every_definition_is_established", run: every_definition_is_established },
    Scenario { name: "schemas::the_examples_are_accepted", run: the_examples_are_accepted },
    Scenario { name: "schemas::every_broken_rule_is_refused", run: every_broken_rule_is_refused },
    Scenario { name: "schemas::every_bound_is_kept", run: every_bound_is_kept },
];

/// One object of every kind, with all that they can say.
const WHOLE: &str = "bad-full-example.in.yaml";

/// Applies all of them; also for scenarios that need them and run alone.
pub(crate) fn apply(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let directory = sekimori_e2e::checkout().join("helm/sekimori-crds/templates");
    let directory = directory.to_str().context("a path in UTF-8")?;
    let applied = stage.kubectl(&["apply", "--server-side", "--force-conflicts", "--field-manager=e2e", "-f", directory, "-o", "name"])?;
    let names: Vec<String> = applied.lines().map(str::to_owned).collect();
    for name in &names {
        stage.kubectl(&["wait", "--for=condition=Established", name, "--timeout=20s"])?;
    }
    Ok(names)
}

fn helm_installs_the_definitions(stage: &Stage) -> anyhow::Result<Outcome> {
    let chart = sekimori_e2e::checkout().join("helm/sekimori-crds");
    let chart = chart.to_str().context("a path in UTF-8")?;
    let arguments = ["upgrade", "--install", "sekimori-crds", chart, "--namespace", "default", "--take-ownership"];
    stage.cluster.helm(&arguments)?;
    // The second time it is an upgrade over what is there.
    stage.cluster.helm(&arguments)?;
    let listed = stage.cluster.helm(&["list", "--namespace", "default", "-o", "json"])?;
    ensure!(listed.contains("\"status\":\"deployed\"") && listed.contains("\"revision\":\"2\""), "{listed}");
    Ok(Outcome::Passed)
}

fn every_definition_is_established(stage: &Stage) -> anyhow::Result<Outcome> {
    let names = apply(stage)?;
    let files = std::fs::read_dir(sekimori_e2e::checkout().join("helm/sekimori-crds/templates"))?.count();
    ensure!(names.len() == files, "{files} files, but {names:?}");
    for name in &names {
        let wrong =
            "jsonpath={.status.conditions[?(@.type==\"NonStructuralSchema\")].message}{.status.conditions[?(@.type==\"NamesAccepted\")].status}";
        let wrong = stage.kubectl(&["get", name, "-o", wrong])?;
        ensure!(wrong == "True", "{name}: {wrong}");
    }
    let known = stage.kubectl(&["api-resources", "--categories=sekimori", "-o", "name"])?;
    ensure!(known.lines().count() == files, "the category sekimori has {known}");
    Ok(Outcome::Passed)
}

fn the_examples_are_accepted(stage: &Stage) -> anyhow::Result<Outcome> {
    apply(stage)?;
    let namespace = stage.namespace("mail")?;
    let mut accepted = vec![];
    for directory in ["crds/tests/data/compile", "manifests/quickstart"] {
        let files =
            std::fs::read_dir(sekimori_e2e::checkout().join(directory))?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The whole example is bad only for a gateway alone, which does not do everything in it yet.
            let ours = name == WHOLE || (name.starts_with("good") && name.ends_with(".in.yaml") && !name.contains("foreign-kinds"));
            if directory.ends_with("compile") && !ours {
                continue;
            }
            let text = std::fs::read_to_string(&file)?;
            // Those with Namespaces of their own are about who may be where.
            if text.contains("namespace: team-") {
                continue;
            }
            accepted.push(name);
            // The whole names its Namespace, the others none.
            let arguments = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"];
            let in_namespace = if text.contains("namespace: mail") {
                arguments.to_vec()
            } else {
                [&["--namespace", &namespace.name], arguments.as_slice()].concat()
            };
            let shown = stage.cluster.kubectl(&in_namespace, Some(&text)).with_context(|| file.display().to_string())?;
            ensure!(!shown.is_empty(), "{}: nothing in it", file.display());
        }
    }
    ensure!(accepted.iter().any(|name| name == WHOLE) && accepted.len() > 5, "only {accepted:?}");
    Ok(Outcome::Passed)
}

/// Every document of the table that the CRDs' own tests use, one by one: what our evaluation of a rule refuses, the API server must refuse.
fn every_broken_rule_is_refused(stage: &Stage) -> anyhow::Result<Outcome> {
    apply(stage)?;
    let namespace = stage.namespace("rules")?;
    let text = std::fs::read_to_string(sekimori_e2e::checkout().join("crds/tests/data/rules.yaml"))?;
    let documents: Vec<&str> = text.split("\n---\n").collect();
    ensure!(documents.len() >= 50, "only {} documents", documents.len());
    for document in &documents {
        let why = namespace.refused(document)?;
        ensure!(why.contains("is invalid"), "refused for another reason: {why}\n{document}");
    }
    // Strict field validation: a misspelt field must not be dropped in silence.
    let misspelt = "apiVersion: sekimori.dev/v1alpha1\nkind: GatewayFleet\nmetadata: {name: x}\nspec: {hostname: mx.example.net, listeners: [{name: smtp, port: 2525}], replica: 1}\n";
    let why = namespace.refused(misspelt)?;
    ensure!(why.contains("replica"), "{why}");
    println!("  {} documents, each against one rule: all refused", documents.len());
    Ok(Outcome::Passed)
}

/// Bounds that are not one field's, but a rule's about several: see [`every_broken_rule_is_refused`].
fn every_bound_is_kept(stage: &Stage) -> anyhow::Result<Outcome> {
    apply(stage)?;
    let namespace = stage.namespace("bounds")?;
    let text = std::fs::read_to_string(sekimori_e2e::checkout().join("crds/tests/data/compile").join(WHOLE))?;
    let bases: Vec<Value> = text
        .split("\n---\n")
        .map(serde_yaml::from_str::<Value>)
        .filter(|base| base.as_ref().is_ok_and(Value::is_object))
        .collect::<Result<_, _>>()?;
    let mut all = vec![];
    for (kind, schema) in bounds::schemas(&sekimori_e2e::checkout().join("helm/sekimori-crds/templates"))? {
        let base = bases.iter().find(|base| base["kind"] == kind.as_str()).with_context(|| format!("{WHOLE} has no {kind}"))?;
        let before = all.len();
        all.extend(bounds::broken(base, &schema));
        ensure!(all.len() > before, "{kind} has no bounds");
    }
    for (number, broken) in all.iter_mut().enumerate() {
        broken.object["metadata"]["name"] = format!("bound-{number}").into();
        if broken.object["metadata"]["namespace"].is_string() {
            broken.object["metadata"]["namespace"] = namespace.name.as_str().into();
        }
    }
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": all.iter().map(|broken| &broken.object).collect::<Vec<_>>()});
    let arguments = ["--namespace", &namespace.name, "create", "--dry-run=server", "--validate=false", "-f", "-"];
    let finished = stage.cluster.kubectl_within(&arguments, Some(&list.to_string()), Duration::from_secs(120))?;
    ensure!(!finished.success, "all {} were accepted", all.len());
    let refusals: Vec<&str> = finished.stderr.split("Error from server").collect();
    let unnoticed: Vec<String> = all
        .iter()
        .enumerate()
        .filter(|(number, broken)| {
            let name = format!("\"bound-{number}\"");
            // Of what it does not decode the API server does not name the object, only the field.
            !refusals.iter().any(|refusal| refusal.contains(&broken.path) && (refusal.contains(&name) || !refusal.contains("\"bound-")))
        })
        .map(|(_, broken)| format!("{} {}: {}", broken.object["kind"], broken.path, broken.bound))
        .collect();
    ensure!(unnoticed.is_empty(), "{} of {} bounds are not kept:\n{}", unnoticed.len(), all.len(), unnoticed.join("\n"));
    println!("  {} bounds of fields, each broken alone: all refused", all.len());
    Ok(Outcome::Passed)
}
