//! What is generated from the types: the definitions as YAML, and the reference pages. A test holds that the files in the repository are these.

use std::fmt::Write as _;

use serde_json::Value;

use crate::compile::defaults;
use crate::snapshot::Combine;
use crate::units::Duration;
use crate::v1alpha1;

/// Every generated file: its path from the root of the repository, and its text.
pub fn files() -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> =
        definitions().into_iter().map(|(name, text)| (format!("helm/sekimori-crds/templates/{name}.yaml"), text)).collect();
    files.push(("docs/reference/crds.md".to_owned(), fields_page()));
    files.push(("docs/reference/defaults.md".to_owned(), defaults_page()));
    files
}

/// The definitions as YAML, by plural name.
pub fn definitions() -> Vec<(String, String)> {
    v1alpha1::definitions()
        .into_iter()
        .map(|definition| {
            let yaml = serde_yaml::to_string(&definition).expect("a definition has only string keys");
            (definition.spec.names.plural, format!("# Generated from crds/src/v1alpha1 by crdgen; do not edit.\n{yaml}"))
        })
        .collect()
}

/// The page of every field.
pub fn fields_page() -> String {
    let mut page = String::from(
        "# Custom resources: every field\n\n\
         Generated from `crds/src/v1alpha1`; do not edit. Group and version: `sekimori.dev/v1alpha1`. Durations are written as 720h, 30m, 10s or 500ms, sizes as \
         64Mi or 500M. What is built in stands in [defaults.md](defaults.md). Rules that a field alone cannot state are listed beneath the table of its kind.\n",
    );
    for definition in v1alpha1::definitions() {
        let names = &definition.spec.names;
        let short = names.short_names.as_deref().unwrap_or_default().join(", ");
        let schema =
            definition.spec.versions.first().and_then(|version| version.schema.as_ref()).and_then(|schema| schema.open_api_v3_schema.as_ref());
        let schema = serde_json::to_value(schema).expect("a schema has only string keys");
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let mut rules = vec![];
        write!(page, "\n## {}\n\n{about} {}, `kubectl get {short}`.\n", names.kind, definition.spec.scope)
            .expect("writing to a String does not fail");
        page.push_str("\n| field | type | meaning |\n|---|---|---|\n");
        for part in ["spec", "status"] {
            if let Some(node) = schema.pointer(&format!("/properties/{part}")) {
                field_rows(node, part, &mut page, &mut rules);
            }
        }
        collect_rules(&schema, "", &mut rules);
        if !rules.is_empty() {
            page.push_str("\n| rule at | a violation says |\n|---|---|\n");
            for (path, message) in rules {
                writeln!(page, "| `{path}` | {} |", cell(&message)).expect("writing to a String does not fail");
            }
        }
    }
    page
}

fn field_rows(node: &Value, path: &str, page: &mut String, rules: &mut Vec<(String, String)>) {
    collect_rules(node, path, rules);
    for (name, field) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{path}.{name}");
        let about = field.get("description").and_then(Value::as_str).unwrap_or_default();
        writeln!(page, "| `{path}` | {} | {} |", kind_of(field), cell(about)).expect("writing to a String does not fail");
        match field.get("items") {
            Some(items) => {
                collect_rules(field, &path, rules);
                field_rows(items, &format!("{path}[]"), page, rules);
            }
            None => field_rows(field, &path, page, rules),
        }
    }
}

fn collect_rules(node: &Value, path: &str, rules: &mut Vec<(String, String)>) {
    for rule in node.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default();
        rules.push((format!("{path}{}", text("fieldPath")), text("message").to_owned()));
    }
}

fn kind_of(field: &Value) -> String {
    let text = |name: &str| field.get(name).and_then(Value::as_str).unwrap_or_default();
    if field.get("x-kubernetes-int-or-string").is_some() {
        return "quantity".to_owned();
    }
    if let Some(words) = field.get("enum").and_then(Value::as_array) {
        return words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" \\| ");
    }
    match text("type") {
        "array" => {
            format!("list of {}, at most {}", field.get("items").map(kind_of).unwrap_or_default(), field.get("maxItems").unwrap_or(&Value::Null))
        }
        "string" => field.get("maxLength").map_or_else(|| "text".to_owned(), |max| format!("text, at most {max} characters")),
        other => other.to_owned(),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// One built-in value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRow {
    /// The kind of object.
    pub kind: &'static str,
    /// The path of the field.
    pub field: &'static str,
    /// The value where nobody said anything.
    pub value: String,
}

/// Every built-in value of a kind's fields; MailPolicy stands for every place where a policy may be.
pub fn default_rows() -> Vec<DefaultRow> {
    let mut rows = fleet_rows();
    rows.extend(engine_rows());
    rows.extend(tenant_rows());
    rows.extend(policy_rows());
    rows
}

fn rows<const N: usize>(kind: &'static str, values: [(&'static str, String); N]) -> Vec<DefaultRow> {
    values.into_iter().map(|(field, value)| DefaultRow { kind, field, value }).collect()
}

fn fleet_rows() -> Vec<DefaultRow> {
    let limits = defaults::LISTENER_LIMITS;
    rows(
        "GatewayFleet",
        [
            ("spec.replicas", "1".into()),
            ("spec.update.maxUnavailable", "1".into()),
            ("spec.update.paused", "false".into()),
            ("spec.startup.maxWait", short(defaults::STARTUP_MAX_WAIT)),
            ("spec.service.type", "LoadBalancer".into()),
            ("spec.service.externalTrafficPolicy", "Local".into()),
            ("spec.listeners[].servicePort", "25, for role Relay 587".into()),
            ("spec.listeners[].role", defaults::LISTENER_ROLE.to_string()),
            ("spec.listeners[].tls", "Disabled".into()),
            ("spec.listeners[].tls.mode", "Opportunistic with a certificate, else Disabled".into()),
            ("spec.listeners[].bareLineEndings", defaults::BARE_LINE_ENDINGS.to_string()),
            ("spec.listeners[].limits.connections", limits.connections.to_string()),
            ("spec.listeners[].limits.connectionsPerAddress", limits.connections_per_address.to_string()),
            ("spec.listeners[].limits.messagesPerSession", limits.messages_per_session.to_string()),
            ("spec.listeners[].limits.recipients", limits.recipients.to_string()),
            ("spec.listeners[].limits.messageSize", limits.message_size.to_string()),
            ("spec.tenants.namespaces", "the fleet's own".into()),
            ("spec.tenants.ownership", defaults::OWNERSHIP.to_string()),
            ("spec.resolver", "the pod's own resolvers".into()),
            ("spec.resolver.addresses", "the pod's own".into()),
            ("spec.egress.allowedNetworks", "none".into()),
            ("spec.spool.storage", "20Gi".into()),
            ("spec.spool.storageClassName", "the cluster's default class".into()),
            ("spec.spool.reclaim", "WhenEmpty".into()),
            ("spec.quarantine.store", "PerPod".into()),
            ("spec.quarantine.retention", short(defaults::QUARANTINE_RETENTION)),
            ("spec.drain.timeout", short(defaults::DRAIN_TIMEOUT)),
            ("spec.drain.handOver", "Peers".into()),
            ("spec.verdictHeader", defaults::VERDICT_HEADER.to_string()),
            ("spec.autoscaling.minReplicas", "2".into()),
            ("spec.autoscaling.metrics", "RunnableBacklog \"500\", ScanSaturation 70, ShedRate \"1\"".into()),
        ],
    )
}

fn engine_rows() -> Vec<DefaultRow> {
    let breaker = defaults::ENGINE_BREAKER;
    rows(
        "Engine",
        [
            ("spec.family", "the engine's name".into()),
            ("spec.mode", defaults::ENGINE_MODE.to_string()),
            ("spec.runtime.inPod.swap", "Slots".into()),
            ("spec.runtime.inPod.idleResources", "requests memory 8Mi".into()),
            ("spec.runtime.inPod.signatures", "InImage".into()),
            ("spec.runtime.inPod.signatures.maxAge", short(defaults::SIGNATURES_MAX_AGE)),
            ("spec.timeout", short(defaults::ENGINE_TIMEOUT)),
            ("spec.concurrency", defaults::ENGINE_CONCURRENCY.to_string()),
            ("spec.maxBytes", defaults::ENGINE_MAX_BYTES.to_string()),
            ("spec.weightPercent", defaults::ENGINE_WEIGHT_PERCENT.to_string()),
            ("spec.probe.interval", short(defaults::ENGINE_PROBE_INTERVAL)),
            ("spec.breaker.failures", breaker.failures.to_string()),
            ("spec.breaker.window", breaker.window.to_string()),
            ("spec.breaker.openFor", short(breaker.open_for)),
            ("spec.rollout.steps", "one pod with 2000 messages and 1h in shadow, then 25 percent, then all".into()),
            ("spec.rollout.analysis.missed.maxPercent", "2".into()),
            ("spec.rollout.analysis.errors.maxPerMille", "5".into()),
            ("spec.rollout.analysis.latency.p99MaxPercent", "125".into()),
            ("spec.rollout.analysis.minCampaigns", "30".into()),
            ("spec.rollout.analysis.maxDuration", "168h".into()),
            ("spec.rollout.onInconclusive", "Pause".into()),
        ],
    )
}

fn tenant_rows() -> Vec<DefaultRow> {
    rows(
        "TenantDomain",
        [
            ("spec.fleetRef.namespace", "the namespace of the object that refers to it".into()),
            ("spec.state", defaults::TENANT_STATE.to_string()),
            ("spec.enforcement", defaults::ENFORCEMENT.to_string()),
            ("spec.routes[].lookup", defaults::ROUTE_LOOKUP.to_string()),
            ("spec.routes[].port", defaults::ROUTE_PORT.to_string()),
            ("spec.routes[].priority", defaults::ROUTE_PRIORITY.to_string()),
            ("spec.routes[].weight", defaults::ROUTE_WEIGHT.to_string()),
            ("spec.routes[].tls", defaults::ROUTE_TLS.to_string()),
            ("spec.routes[].tls.mode", defaults::ROUTE_TLS.to_string()),
            ("spec.delivery", defaults::DELIVERY.to_string()),
            ("spec.softBounce", defaults::SOFT_BOUNCE.to_string()),
            ("spec.recipients", "Any".into()),
            ("spec.recipients.callAhead.cacheFor", "1h".into()),
            ("spec.limits.messagesPerHour", "no limit".into()),
        ],
    )
}

fn policy_rows() -> Vec<DefaultRow> {
    let policy = defaults::policy();
    let (virus, spam) = (&policy.anti_virus, &policy.anti_spam);
    let number = |bound: Option<i32>| bound.map_or_else(|| "never".to_owned(), |bound| bound.to_string());
    let threshold = |bound: Option<i32>| {
        bound.map_or_else(|| "never".to_owned(), |hundredths| format!("\"{}\"", v1alpha1::text::EngineThresholds { hundredths }))
    };
    let combine = match spam.combine {
        Combine::LogOdds { .. } => "LogOdds",
        Combine::WeightedSum { .. } => "WeightedSum",
        Combine::Maximum { .. } => "Maximum",
        Combine::Majority { .. } => "Majority",
    };
    let (odds, scores) = (defaults::LOG_ODDS, defaults::SCORE_BOUNDS);
    rows(
        "MailPolicy",
        [
            ("spec.antiVirus.infected", virus.infected.to_string()),
            ("spec.antiVirus.tooLarge", virus.too_large.to_string()),
            ("spec.antiVirus.limitsExceeded", virus.limits_exceeded.to_string()),
            ("spec.antiVirus.malformed", virus.malformed.to_string()),
            ("spec.antiVirus.minimumEngines", virus.minimum_engines.to_string()),
            ("spec.antiVirus.tooFewEngines", virus.too_few_engines.to_string()),
            ("spec.antiSpam.minimumEngines", spam.minimum_engines.to_string()),
            ("spec.antiSpam.combine", combine.to_owned()),
            ("spec.antiSpam.combine.logOdds.priorDecibans", defaults::PRIOR_DECIBANS.to_string()),
            ("spec.antiSpam.combine.logOdds.tagAtDecibans", number(odds.tag_at)),
            ("spec.antiSpam.combine.logOdds.quarantineAtDecibans", number(odds.quarantine_at)),
            ("spec.antiSpam.combine.logOdds.rejectAtDecibans", number(odds.reject_at)),
            ("spec.antiSpam.combine.weightedSum.tagAt", threshold(scores.tag_at)),
            ("spec.antiSpam.combine.weightedSum.quarantineAt", threshold(scores.quarantine_at)),
            ("spec.antiSpam.combine.weightedSum.rejectAt", threshold(scores.reject_at)),
            ("spec.antiSpam.combine.maximum.tagAt", threshold(scores.tag_at)),
            ("spec.antiSpam.combine.maximum.quarantineAt", threshold(scores.quarantine_at)),
            ("spec.antiSpam.combine.maximum.rejectAt", threshold(scores.reject_at)),
            ("spec.antiSpam.combine.majority.action", defaults::MAJORITY_ACTION.to_string()),
            ("spec.antiSpam.tooFewEngines", spam.too_few_engines.to_string()),
            ("spec.antiSpam.subjectTag", "none".into()),
            ("spec.authentication.spf.mode", policy.authentication.spf.to_string()),
            ("spec.authentication.dmarc.mode", policy.authentication.dmarc.to_string()),
            ("spec.authentication.dmarc.onTempError", policy.authentication.on_temp_error.to_string()),
            ("spec.authentication.arc.mode", "Observe".into()),
            ("spec.authentication.arc.trustedSealers", "none".into()),
            ("spec.backscatter.mode", "Disabled".into()),
            ("spec.backscatter.secretRef", "none".into()),
            ("spec.attachments.blockTypes", "none".into()),
            ("spec.attachments.encryptedArchives", policy.attachments.encrypted_archives.to_string()),
            ("spec.lists.allow", "none".into()),
            ("spec.lists.deny", "none".into()),
        ],
    )
}

/// A duration as people write it: whole hours or minutes where it is so.
fn short(duration: Duration) -> String {
    let text = duration.to_string();
    let hours = duration.std().as_secs() / 3600;
    if hours > 0 && duration == Duration::from_secs(hours * 3600) { format!("{hours}h") } else { text }
}

/// The page of built-in values.
pub fn defaults_page() -> String {
    let mut page = String::from(
        "# Built-in values\n\n\
         Generated from `crds/src/compile/defaults.rs`; do not edit. The schemas of the custom resources have no defaults: what is absent is inherited or built in.\n\n\
         A policy is looked up field by field: `GatewayFleet.spec.policyOverrides`, `TenantDomain.spec.policy`, the MailPolicy of `TenantDomain.spec.policyRef`, \
         `GatewayFleet.spec.policyDefaults`, and at last the values of MailPolicy below. A list replaces an inherited one as a whole. A layer that states a \
         `combine.type` inherits bounds only from layers that state the same type.\n\n\
         With delivery `Inline` nothing is at rest: an inherited Quarantine becomes Reject, for want of engines Defer, and a quarantine bound becomes a reject bound.\n\n\
         Not evaluated yet: ARC (`authentication.arc`). `Observe` is the built-in value, but nothing is recorded about ARC so far; `Enforce` and trusted sealers are refused.\n\n\
         A fleet takes mail once each class has its own `minimumEngines` warm: `policyOverrides`, else `policyDefaults`, else 1.\n\n\
         | kind | field | value |\n|---|---|---|\n",
    );
    for row in default_rows() {
        writeln!(page, "| {} | `{}` | {} |", row.kind, row.field, cell(&row.value)).expect("writing to a String does not fail");
    }
    page
}
