//! Alerts and dashboard speak of metrics that exist.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use crate::helm::{EVERYTHING, at, kind, list, object, render, root, text};

/// What the operator exports for dashboards and alerts; its own page of metrics is its part's.
const OPERATOR: [&str; 5] = [
    "sekimori_operator_leader",
    "sekimori_operator_reconcile_seconds",
    "sekimori_operator_stream_gateways",
    "sekimori_operator_config_parts",
    "sekimori_operator_status_writes_total",
];

fn known() -> BTreeSet<String> {
    let page = std::fs::read_to_string(root().join("docs/reference/metrics.md")).expect("the page of metrics");
    let mut known: BTreeSet<String> = OPERATOR.map(str::to_owned).into();
    let mut histograms = vec!["sekimori_operator_reconcile_seconds".to_owned()];
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (Some(name), Some(kind)) = (cells.get(1), cells.get(2)) else { continue };
        let name = name.trim_matches('`').to_owned();
        if *kind == "histogram" {
            histograms.push(name);
        } else {
            known.insert(name);
        }
    }
    // A histogram is asked for by its parts alone.
    for name in histograms {
        known.remove(&name);
        known.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}")));
    }
    assert!(known.contains("sekimori_queue_oldest_seconds"), "the page was not understood: {known:?}");
    known
}

fn metrics(expression: &str) -> BTreeSet<String> {
    expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("sekimori_")).map(str::to_owned).collect()
}

#[test]
fn alerts_speak_of_metrics_that_exist_and_say_what_to_do() {
    let objects = render(EVERYTHING);
    let rules = object(&objects, "PrometheusRule", "sekimori");
    let known = known();
    let (mut names, mut count) = (BTreeSet::new(), 0);
    for group in list(rules, "spec/groups") {
        for rule in list(group, "rules") {
            let (alert, expression) = (text(rule, "alert"), text(rule, "expr"));
            let used = metrics(expression);
            assert!(!used.is_empty() && used.is_subset(&known), "{alert}: {:?}", used.difference(&known));
            assert!(names.insert(alert.to_owned()), "{alert} twice");
            for field in ["annotations/summary", "annotations/description", "labels/severity"] {
                assert!(!text(rule, field).is_empty(), "{alert}: {field}");
            }
            assert_eq!(expression.matches('(').count(), expression.matches(')').count(), "{alert}");
            count += 1;
        }
    }
    assert!(count >= 10, "{count}");
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
            used.extend(metrics(target.get("expr").and_then(Json::as_str).expect("an expression")));
        }
    }
    assert!(used.len() > 15 && used.is_subset(&known), "{:?}", used.difference(&known));
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
