//! The page of the operator's metrics, made from its registry: fresh, or the test fails (UPDATE=1 rewrites it).

use std::fmt::Write as _;

use prometheus::Registry;
use sekimori_operator::io::hub::FleetKey;
use sekimori_operator::io::metrics::Metrics;
use sekimori_operator::io::stream::StreamMetrics;
use sekimori_operator::update::Outcome;

use crate::{data, fresh};

#[test]
fn the_page_of_the_metrics() {
    let registry = Registry::new();
    let (metrics, stream) = (Metrics::new(&registry).expect("names"), StreamMetrics::new(&registry).expect("other names"));
    // What has labels is shown once it has a value.
    metrics.turn_seconds.with_label_values(&[""]).observe(0.0);
    metrics.errors.with_label_values(&["", ""]).reset();
    metrics.status_writes.with_label_values(&[""]).reset();
    metrics.paused(&FleetKey::new("", ""), Some(&Outcome::Done));
    stream.behind.with_label_values(&["", ""]).set(0);
    stream.removals_waiting.with_label_values(&["", ""]).set(0);
    stream.refused.with_label_values(&[""]).reset();
    let mut page = "# Metrics of the operator\n\nWhat the operator's `/metrics` shows; the gateways': [metrics.md](metrics.md). Prometheus calls a metric's own label `namespace`\n\
                    `exported_namespace`, because `namespace` is the operator's pod's. Generated: `make generate`.\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    let families = registry.gather();
    // Fields of both structs: one that is new and has labels must be given a value above.
    assert_eq!(families.len(), 14, "a metric has no value here, or is new");
    for family in families {
        let first = family.get_metric().first().expect("a value");
        let labels: Vec<String> = first.get_label().iter().map(|label| format!("`{}`", label.name())).collect();
        let kind = format!("{:?}", family.get_field_type()).to_ascii_lowercase();
        assert!(!family.help().is_empty(), "{} has no meaning", family.name());
        writeln!(page, "| `{}` | {kind} | {} | {} |", family.name(), labels.join(", "), family.help()).expect("a string");
    }
    fresh(&data().join("../../../docs/reference/operator-metrics.md"), &page);
}
