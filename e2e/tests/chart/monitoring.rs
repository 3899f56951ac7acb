//! Alerts and dashboard speak of metrics and labels that exist, and of alerts each can fire.

#![allow(clippy::panic, reason = "a test that cannot read its input says why")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use crate::helm::{EVERYTHING, at, kind, list, object, render, root, text};

/// What Prometheus knows of the pod that it reads.
const TARGET: [&str; 5] = ["namespace", "pod", "container", "job", "instance"];

/// Counted only by a gateway that reads files: an alert on it alone never fires in a cluster.
const FILES_ONLY: [&str; 1] = ["sekimori_reloads_total"];

/// The metrics of both reference pages, which are made from the registries, with the labels that a query can name.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let mut known = BTreeMap::new();
    for page in ["metrics.md", "operator-metrics.md"] {
        let text = std::fs::read_to_string(root().join("docs/reference").join(page)).expect("the page of metrics");
        for line in text.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let &[_, name, kind, labels, ..] = cells.as_slice() else { panic!("{page}: {line}") };
            let name = name.trim_matches('`').to_owned();
            let mut all: BTreeSet<String> = TARGET.map(str::to_owned).into();
            let own = labels.split(',').map(|label| label.trim().trim_matches('`')).filter(|label| !label.is_empty());
            // One that the target has too is renamed, as the monitors do not say honorLabels.
            all.extend(own.map(|label| if TARGET.contains(&label) { format!("exported_{label}") } else { label.to_owned() }));
            if kind != "histogram" {
                known.insert(name, all);
                continue;
            }
            // A histogram is asked for by its parts alone.
            known.extend(["count", "sum"].map(|part| (format!("{name}_{part}"), all.clone())));
            all.insert("le".to_owned());
            known.insert(format!("{name}_bucket"), all);
        }
    }
    for (metric, label) in [("sekimori_engine_scans_total", "result"), ("sekimori_operator_config_behind", "exported_namespace")] {
        assert!(known.get(metric).is_some_and(|labels| labels.contains(label)), "the pages were not understood: {known:?}");
    }
    known
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What is between the bracket that the text begins with and its partner, and what follows.
fn bracketed(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0_usize;
    for (index, c) in text.char_indices() {
        match c {
            '(' | '{' => depth += 1,
            ')' | '}' if depth == 1 => return Some((text.get(1..index)?, text.get(index + 1..)?)),
            ')' | '}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

/// Each metric with the labels that its selector names.
fn selectors(expression: &str) -> Vec<(String, Vec<String>)> {
    let starts = expression.match_indices("sekimori_").filter(|(index, _)| !expression.get(..*index).is_some_and(|before| before.ends_with(is_word)));
    let found = starts.filter_map(|(index, _)| {
        let rest = expression.get(index..)?;
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let inner = if rest.starts_with('{') { bracketed(rest).expect("a selector ends").0 } else { "" };
        let labels = inner.split(',').filter_map(|matcher| matcher.split(['=', '!', '~']).next());
        Some((name.to_owned(), labels.map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect()))
    });
    found.collect()
}

/// Each `by (labels) (operand)`.
fn groupings(expression: &str) -> Vec<(Vec<String>, &str)> {
    let found = expression.match_indices(" by (").map(|(index, _)| {
        let (labels, rest) = expression.get(index + 4..).and_then(bracketed).expect("a list of labels");
        let (operand, _) = bracketed(rest.trim_start()).expect("what is grouped");
        (labels.split(',').map(|label| label.trim().to_owned()).collect(), operand)
    });
    found.collect()
}

/// What is wrong with an expression: metrics and labels that nobody exports, zeros that `or` keeps.
fn mistakes(expression: &str, known: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut mistakes = vec![];
    let all = selectors(expression);
    if all.is_empty() {
        mistakes.push("no metric of ours".to_owned());
    }
    for (metric, labels) in &all {
        match known.get(metric) {
            None => mistakes.push(format!("{metric} is exported by nobody")),
            Some(has) => mistakes.extend(labels.iter().filter(|label| !has.contains(*label)).map(|label| format!("{metric} has no label {label}"))),
        }
    }
    for (labels, operand) in groupings(expression) {
        for (metric, _) in selectors(operand) {
            let has = known.get(&metric).cloned().unwrap_or_default();
            mistakes.extend(labels.iter().filter(|label| !has.contains(*label)).map(|label| format!("by {label}, which {metric} has not")));
        }
    }
    if let Some((before, _)) = expression.split_once("or vector(")
        && before.contains(" by ")
    {
        mistakes.push("vector() has no labels: `or` keeps it beside every group".to_owned());
    }
    if !all.is_empty() && all.iter().all(|(metric, _)| FILES_ONLY.contains(&metric.as_str())) {
        mistakes.push("no gateway of a fleet counts this".to_owned());
    }
    if expression.matches('(').count() != expression.matches(')').count() {
        mistakes.push("parentheses".to_owned());
    }
    mistakes
}

#[test]
fn mistakes_are_found() {
    let known = known();
    for (expression, mistake) in [
        ("sekimori_no_such > 0", "sekimori_no_such is exported by nobody"),
        ("sekimori_session_seconds > 0", "sekimori_session_seconds is exported by nobody"),
        ("sum(rate(sekimori_engine_scans_total{outcome=\"failed\"}[5m])) > 0", "no label outcome"),
        ("max by (pod, engine) (sekimori_queue_oldest_seconds) > 0", "by engine, which"),
        ("max by (fleet, exported_namespace) (sekimori_operator_leader) > 0", "by fleet, which"),
        ("(sum by (namespace) (sekimori_operator_leader) or vector(0)) < 1", "vector() has no labels"),
        ("sum by (pod) (increase(sekimori_reloads_total{result=\"failed\"}[15m])) > 0", "no gateway of a fleet"),
        ("vector(1) > 0", "no metric of ours"),
    ] {
        let found = mistakes(expression, &known);
        assert!(found.iter().any(|found| found.contains(mistake)), "{expression}: {found:?}");
    }
    let sound =
        "histogram_quantile(0.99, sum by (le, engine) (rate(sekimori_engine_scan_seconds_bucket{mode=~\"Enforce\",namespace=\"a\"}[5m]))) > 1";
    assert_eq!(mistakes(sound, &known), Vec::<String>::new());
}

#[test]
fn alerts_speak_of_metrics_that_exist_and_say_what_to_do() {
    let objects = render(EVERYTHING);
    let rules = object(&objects, "PrometheusRule", "sekimori");
    let known = known();
    let mut names = BTreeSet::new();
    for group in list(rules, "spec/groups") {
        for rule in list(group, "rules") {
            let (alert, expression) = (text(rule, "alert"), text(rule, "expr"));
            assert_eq!(mistakes(expression, &known), Vec::<String>::new(), "{alert}");
            assert!(names.insert(alert.to_owned()), "{alert} twice");
            // What the words show must be left by the expression.
            let left: BTreeSet<String> = groupings(expression).into_iter().flat_map(|(labels, _)| labels).collect();
            for field in ["annotations/summary", "annotations/description", "labels/severity"] {
                assert!(!text(rule, field).is_empty(), "{alert}: {field}");
                for shown in text(rule, field).split("$labels.").skip(1) {
                    let shown = shown.split(|c| !is_word(c)).next().unwrap_or_default();
                    assert!(left.contains(shown), "{alert}: {field} shows {shown}, and the expression leaves {left:?}");
                }
            }
        }
    }
    for needed in ["SekimoriNoLeader", "SekimoriConfigurationRefused", "SekimoriDrainTimeout", "SekimoriRemovalsWait", "SekimoriGatewayBehind"] {
        assert!(names.contains(needed), "{needed} is not among {names:?}");
    }
    // Another installation's leader is not ours.
    let no_leader = list(rules, "spec/groups").iter().flat_map(|group| list(group, "rules")).find(|rule| text(rule, "alert") == "SekimoriNoLeader");
    assert_eq!(no_leader.map(|rule| text(rule, "expr")), Some("(sum(sekimori_operator_leader{namespace=\"sekimori\"}) or vector(0)) < 1"));
}

#[test]
fn the_dashboard_speaks_of_metrics_that_exist() {
    let objects = render(EVERYTHING);
    let map = object(&objects, "ConfigMap", "sekimori-dashboard");
    let json = at(map, "data").get("sekimori.json").and_then(serde_yaml::Value::as_str).expect("the dashboard");
    let dashboard: Json = serde_json::from_str(json).expect("JSON");
    let known = known();
    let panels = dashboard.get("panels").and_then(Json::as_array).expect("panels");
    let (mut ids, mut used) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel.get("id").and_then(Json::as_u64)), "an id twice");
        for target in panel.get("targets").and_then(Json::as_array).into_iter().flatten() {
            let expression = target.get("expr").and_then(Json::as_str).expect("an expression");
            assert_eq!(mistakes(expression, &known), Vec::<String>::new(), "{expression}");
            used.extend(selectors(expression).into_iter().map(|(metric, _)| metric));
            let left: BTreeSet<String> = groupings(expression).into_iter().flat_map(|(labels, _)| labels).collect();
            let legend = target.get("legendFormat").and_then(Json::as_str).unwrap_or_default();
            for shown in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                assert!(left.contains(shown.trim()), "{expression} leaves {left:?}, and its legend shows {shown}");
            }
        }
    }
    assert!(used.len() > 15, "{used:?}");
    let variables = dashboard.pointer("/templating/list").and_then(Json::as_array).expect("variables");
    for query in variables.iter().filter_map(|variable| variable.get("query").and_then(Json::as_str)).filter(|query| query.contains("sekimori_")) {
        assert_eq!(mistakes(query, &known), Vec::<String>::new(), "{query}");
    }
}

#[test]
fn nothing_of_it_without_being_asked_for() {
    let objects = render(&["quickstart.enabled=true"]);
    for absent in ["ServiceMonitor", "PodMonitor", "PrometheusRule"] {
        assert!(kind(&objects, absent).is_empty(), "{absent}");
    }
    let monitors = render(&["monitoring.enabled=true", "monitoring.rules.enabled=false", "monitoring.labels.release=prometheus"]);
    assert!(kind(&monitors, "PrometheusRule").is_empty());
    let monitor = object(&monitors, "PodMonitor", "sekimori-gateways");
    assert_eq!(text(monitor, "metadata/labels/release"), "prometheus");
    assert_eq!(text(monitor, "spec/podMetricsEndpoints/0/port"), "admin");
}
