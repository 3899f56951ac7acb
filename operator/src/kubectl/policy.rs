//! The effective policy of a tenant, field by field, with where each value came from.

use sekimori_crds::compile::{Layers, effective_policy, nothing_at_rest};
use sekimori_crds::snapshot::{Combine, ListEntry, Policy, Thresholds};
use sekimori_crds::vocabulary::DeliveryMode;
use serde::Serialize;

/// So many entries of a list are written out.
const ENTRIES_MAX: usize = 20;

/// One field of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRow {
    /// Path below `policy`.
    pub field: String,
    /// The value, as users write it.
    pub value: String,
    /// Who said it.
    pub from: String,
}

/// Every field of the policy that holds with these layers and this way of delivery.
pub fn rows(layers: Layers<'_>, delivery: DeliveryMode) -> Vec<PolicyRow> {
    let (said, provenance) = effective_policy(layers);
    let mut holds = said.clone();
    if delivery == DeliveryMode::Inline {
        nothing_at_rest(&mut holds);
    }
    let row = |(path, origin): (&&'static str, _)| {
        let (value, before) = (value(&holds, path), value(&said, path));
        let from =
            if value == before { format!("{origin}") } else { format!("delivery Inline, which keeps nothing (it would be {before}: {origin})") };
        PolicyRow { field: (*path).to_owned(), value, from }
    };
    provenance.iter().map(row).collect()
}

/// The value at a path of the provenance.
fn value(policy: &Policy, path: &str) -> String {
    let Policy { anti_virus: virus, anti_spam: spam, authentication, attachments, lists } = policy;
    match path {
        "antiVirus.infected" => virus.infected.to_string(),
        "antiVirus.tooLarge" => virus.too_large.to_string(),
        "antiVirus.limitsExceeded" => virus.limits_exceeded.to_string(),
        "antiVirus.malformed" => virus.malformed.to_string(),
        "antiVirus.minimumEngines" => virus.minimum_engines.to_string(),
        "antiVirus.tooFewEngines" => virus.too_few_engines.to_string(),
        "antiSpam.minimumEngines" => spam.minimum_engines.to_string(),
        "antiSpam.tooFewEngines" => spam.too_few_engines.to_string(),
        "antiSpam.subjectTag" if spam.subject_tag.is_empty() => "none".to_owned(),
        "antiSpam.subjectTag" => format!("{:?}", spam.subject_tag),
        "authentication.spf.mode" => authentication.spf.to_string(),
        "authentication.dmarc.mode" => authentication.dmarc.to_string(),
        "authentication.dmarc.onTempError" => authentication.on_temp_error.to_string(),
        "attachments.blockTypes" => listed(attachments.block_types.iter().cloned()),
        "attachments.encryptedArchives" => attachments.encrypted_archives.to_string(),
        "lists.allow" => listed(lists.allow.iter().map(entry)),
        "lists.deny" => listed(lists.deny.iter().map(entry)),
        _ => combined(&spam.combine, path.strip_prefix("antiSpam.combine.").unwrap_or(path)),
    }
}

fn combined(combine: &Combine, path: &str) -> String {
    let (kind, hundredths) = match combine {
        Combine::LogOdds { .. } => ("LogOdds", false),
        Combine::WeightedSum { .. } => ("WeightedSum", true),
        Combine::Maximum { .. } => ("Maximum", true),
        Combine::Majority { .. } => ("Majority", false),
    };
    let field = path.rsplit('.').next().unwrap_or(path);
    match (combine, field) {
        (_, "type") => kind.to_owned(),
        (Combine::Majority { action }, "action") => action.to_string(),
        (Combine::LogOdds { prior_decibans, .. }, "priorDecibans") => prior_decibans.to_string(),
        (Combine::LogOdds { at, .. } | Combine::WeightedSum { at } | Combine::Maximum { at }, field) => bound(at, field, hundredths),
        // The provenance names only fields of the type that holds; a test walks through all of them.
        (Combine::Majority { .. }, _) => "-".to_owned(),
    }
}

fn bound(at: &Thresholds, field: &str, hundredths: bool) -> String {
    let bound = match field {
        "tagAt" | "tagAtDecibans" => at.tag_at,
        "quarantineAt" | "quarantineAtDecibans" => at.quarantine_at,
        _ => at.reject_at,
    };
    match bound {
        None => "never".to_owned(),
        Some(bound) if hundredths => {
            let (sign, size) = (if bound < 0 { "-" } else { "" }, bound.unsigned_abs());
            format!("{sign}{}.{:02}", size / 100, size % 100)
        }
        Some(bound) => bound.to_string(),
    }
}

fn entry(entry: &ListEntry) -> String {
    format!("{} {}", entry.kind, entry.value)
}

fn listed(entries: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = entries.collect();
    if all.is_empty() {
        return "none".to_owned();
    }
    let more = all.len().saturating_sub(ENTRIES_MAX);
    let mut text = all.iter().take(ENTRIES_MAX).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use sekimori_crds::v1alpha1::MailPolicySpec;

    use super::*;

    fn spec(yaml: &str) -> MailPolicySpec {
        serde_yaml::from_str(yaml).expect("a policy")
    }

    fn at<'a>(rows: &'a [PolicyRow], field: &str) -> (&'a str, &'a str) {
        rows.iter().find(|row| row.field == field).map_or_else(|| panic!("{field} is missing"), |row| (row.value.as_str(), row.from.as_str()))
    }

    #[test]
    fn every_field_has_a_value_with_every_way_to_combine() {
        for kind in ["LogOdds", "WeightedSum", "Maximum", "Majority"] {
            let tenant = spec(&format!("{{antiSpam: {{combine: {{type: {kind}}}}}}}"));
            let rows = rows(Layers { tenant: Some(&tenant), ..Layers::default() }, DeliveryMode::Queue);
            assert!(rows.len() > 15, "{kind}: {rows:?}");
            assert_eq!(at(&rows, "antiSpam.combine.type"), (kind, "tenant policy"));
            for row in &rows {
                assert!(!row.value.is_empty() && row.value != "-", "{kind}: {row:?}");
            }
        }
    }

    #[test]
    fn each_value_names_its_layer() {
        let overrides = spec("{antiVirus: {infected: Discard}}");
        let tenant =
            spec("{antiSpam: {combine: {type: WeightedSum, weightedSum: {tagAt: '0.5'}}}, lists: {allow: [{type: Domain, value: partner.example}]}}");
        let shared = spec("{antiSpam: {combine: {type: WeightedSum, weightedSum: {rejectAt: '12.25'}}, subjectTag: '[S] '}}");
        let of_fleet = spec("{attachments: {blockTypes: [exe, js]}}");
        let layers = Layers { overrides: Some(&overrides), tenant: Some(&tenant), mail_policy: Some(&shared), defaults: Some(&of_fleet) };
        let rows = rows(layers, DeliveryMode::Queue);
        assert_eq!(at(&rows, "antiVirus.infected"), ("Discard", "fleet policyOverrides"));
        assert_eq!(at(&rows, "antiSpam.combine.weightedSum.tagAt"), ("0.50", "tenant policy"));
        assert_eq!(at(&rows, "antiSpam.combine.weightedSum.rejectAt"), ("12.25", "policyRef"));
        assert_eq!(at(&rows, "antiSpam.subjectTag"), ("\"[S] \"", "policyRef"));
        assert_eq!(at(&rows, "attachments.blockTypes"), ("exe, js", "fleet policyDefaults"));
        assert_eq!(at(&rows, "lists.allow"), ("Domain partner.example", "tenant policy"));
        assert_eq!(at(&rows, "lists.deny"), ("none", "built in"));
    }

    #[test]
    fn what_delivery_inline_changes_is_named() {
        let shared = spec("{antiVirus: {infected: Quarantine}}");
        let layers = Layers { mail_policy: Some(&shared), ..Layers::default() };
        let kept = rows(layers, DeliveryMode::InlineElseQueue);
        assert_eq!(at(&kept, "antiVirus.infected"), ("Quarantine", "policyRef"));
        let inline = rows(layers, DeliveryMode::Inline);
        assert_eq!(at(&inline, "antiVirus.infected"), ("Reject", "delivery Inline, which keeps nothing (it would be Quarantine: policyRef)"));
        assert_eq!(at(&inline, "antiSpam.combine.logOdds.quarantineAtDecibans").0, "never");
    }

    #[test]
    fn long_lists_are_counted() {
        assert_eq!(
            listed((0..22).map(|number| number.to_string())),
            format!("{} and 2 more", (0..20).map(|n| n.to_string()).collect::<Vec<_>>().join(", "))
        );
    }
}
