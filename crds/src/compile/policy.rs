//! Policy layers: the fleet's overrides, the tenant, its MailPolicy, the fleet's defaults, built in; field by field, first that speaks wins.

use std::collections::BTreeMap;
use std::fmt;

use super::defaults;
use super::problem::{Finding, Reason};
use crate::snapshot::{AntiSpamPolicy, AntiVirusPolicy, AttachmentPolicy, AuthenticationPolicy, Combine, ListEntry, Lists, Policy, Thresholds};
use crate::v1alpha1::MailPolicySpec;
use crate::v1alpha1::mail_policy::{AntiSpam, AntiVirus, Arc, Authentication, CombineSpec, CombineType, ListEntrySpec, ScoreBounds};
use crate::vocabulary::{Action, CheckMode, TooFewEngines};

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// `GatewayFleet.spec.policyOverrides`.
    FleetOverrides,
    /// `TenantDomain.spec.policy`.
    Tenant,
    /// The MailPolicy of `TenantDomain.spec.policyRef`.
    MailPolicy,
    /// `GatewayFleet.spec.policyDefaults`.
    FleetDefaults,
    /// Nobody.
    BuiltIn,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FleetOverrides => "fleet policyOverrides",
            Self::Tenant => "tenant policy",
            Self::MailPolicy => "policyRef",
            Self::FleetDefaults => "fleet policyDefaults",
            Self::BuiltIn => "built in",
        })
    }
}

/// Where each field of a policy came from, by the field's path below `policy`.
pub type Provenance = BTreeMap<&'static str, Origin>;

/// The policies that bear on one tenant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layers<'a> {
    /// `GatewayFleet.spec.policyOverrides`.
    pub overrides: Option<&'a MailPolicySpec>,
    /// `TenantDomain.spec.policy`.
    pub tenant: Option<&'a MailPolicySpec>,
    /// The MailPolicy of `TenantDomain.spec.policyRef`.
    pub mail_policy: Option<&'a MailPolicySpec>,
    /// `GatewayFleet.spec.policyDefaults`.
    pub defaults: Option<&'a MailPolicySpec>,
}

impl<'a> Layers<'a> {
    fn each(&self) -> impl Iterator<Item = (Origin, &'a MailPolicySpec)> + use<'a> {
        [
            (Origin::FleetOverrides, self.overrides),
            (Origin::Tenant, self.tenant),
            (Origin::MailPolicy, self.mail_policy),
            (Origin::FleetDefaults, self.defaults),
        ]
        .into_iter()
        .filter_map(|(origin, spec)| spec.map(|spec| (origin, spec)))
    }
}

struct Picker<'a> {
    layers: Layers<'a>,
    provenance: Provenance,
}

impl<'a> Picker<'a> {
    /// The value of the first layer that has one, else the built-in one; and notes who that was.
    fn pick<T>(&mut self, path: &'static str, built_in: T, of: impl Fn(&'a MailPolicySpec) -> Option<T>) -> T {
        let found = self.layers.each().find_map(|(origin, spec)| of(spec).map(|value| (origin, value)));
        let (origin, value) = found.unwrap_or((Origin::BuiltIn, built_in));
        self.provenance.insert(path, origin);
        value
    }
}

/// The policy that holds for a tenant, and where each field came from. Nothing is absent.
pub fn effective_policy(layers: Layers<'_>) -> (Policy, Provenance) {
    let mut picker = Picker { layers, provenance: Provenance::new() };
    let built_in = defaults::policy();
    let policy = Policy {
        anti_virus: anti_virus(&mut picker, built_in.anti_virus),
        anti_spam: anti_spam(&mut picker, built_in.anti_spam),
        authentication: authentication(&mut picker, built_in.authentication),
        attachments: AttachmentPolicy {
            block_types: picker.pick("attachments.blockTypes", built_in.attachments.block_types, |p| {
                Some(p.attachments.as_ref()?.block_types.as_ref()?.iter().map(|extension| extension.0.clone()).collect())
            }),
            encrypted_archives: picker
                .pick("attachments.encryptedArchives", built_in.attachments.encrypted_archives, |p| p.attachments.as_ref()?.encrypted_archives),
        },
        lists: Lists {
            allow: picker.pick("lists.allow", built_in.lists.allow, |p| Some(entries(p.lists.as_ref()?.allow.as_ref()?))),
            deny: picker.pick("lists.deny", built_in.lists.deny, |p| Some(entries(p.lists.as_ref()?.deny.as_ref()?))),
        },
    };
    (policy, picker.provenance)
}

fn anti_virus(picker: &mut Picker<'_>, built_in: AntiVirusPolicy) -> AntiVirusPolicy {
    fn of(policy: &MailPolicySpec) -> Option<&AntiVirus> {
        policy.anti_virus.as_ref()
    }
    AntiVirusPolicy {
        infected: picker.pick("antiVirus.infected", built_in.infected, |p| of(p)?.infected),
        too_large: picker.pick("antiVirus.tooLarge", built_in.too_large, |p| of(p)?.too_large),
        limits_exceeded: picker.pick("antiVirus.limitsExceeded", built_in.limits_exceeded, |p| of(p)?.limits_exceeded),
        malformed: picker.pick("antiVirus.malformed", built_in.malformed, |p| of(p)?.malformed),
        minimum_engines: picker.pick("antiVirus.minimumEngines", built_in.minimum_engines, |p| of(p)?.minimum_engines),
        too_few_engines: picker.pick("antiVirus.tooFewEngines", built_in.too_few_engines, |p| of(p)?.too_few_engines),
    }
}

fn anti_spam(picker: &mut Picker<'_>, built_in: AntiSpamPolicy) -> AntiSpamPolicy {
    fn of(policy: &MailPolicySpec) -> Option<&AntiSpam> {
        policy.anti_spam.as_ref()
    }
    AntiSpamPolicy {
        minimum_engines: picker.pick("antiSpam.minimumEngines", built_in.minimum_engines, |p| of(p)?.minimum_engines),
        combine: combine(picker),
        too_few_engines: picker.pick("antiSpam.tooFewEngines", built_in.too_few_engines, |p| of(p)?.too_few_engines),
        subject_tag: picker.pick("antiSpam.subjectTag", built_in.subject_tag, |p| of(p)?.subject_tag.as_ref().map(|tag| tag.0.clone())),
    }
}

/// The type of the first layer that states one; its bounds from every layer that states the same type.
fn combine(picker: &mut Picker<'_>) -> Combine {
    fn of(policy: &MailPolicySpec) -> Option<&CombineSpec> {
        policy.anti_spam.as_ref()?.combine.as_ref()
    }
    type Bounds = fn(&CombineSpec) -> Option<&ScoreBounds>;
    let kind = picker.pick("antiSpam.combine.type", CombineType::LogOdds, |p| Some(of(p)?.kind));
    let mut scores = |paths: [&'static str; 3], bounds: Bounds| {
        let hundredths = defaults::SCORE_BOUNDS;
        Thresholds {
            tag_at: picker.pick(paths[0], hundredths.tag_at, |p| Some(Some(bounds(of(p)?)?.tag_at?.hundredths))),
            quarantine_at: picker.pick(paths[1], hundredths.quarantine_at, |p| Some(Some(bounds(of(p)?)?.quarantine_at?.hundredths))),
            reject_at: picker.pick(paths[2], hundredths.reject_at, |p| Some(Some(bounds(of(p)?)?.reject_at?.hundredths))),
        }
    };
    match kind {
        CombineType::WeightedSum => Combine::WeightedSum {
            at: scores(
                ["antiSpam.combine.weightedSum.tagAt", "antiSpam.combine.weightedSum.quarantineAt", "antiSpam.combine.weightedSum.rejectAt"],
                |combine| combine.weighted_sum.as_ref(),
            ),
        },
        CombineType::Maximum => Combine::Maximum {
            at: scores(["antiSpam.combine.maximum.tagAt", "antiSpam.combine.maximum.quarantineAt", "antiSpam.combine.maximum.rejectAt"], |combine| {
                combine.maximum.as_ref()
            }),
        },
        CombineType::Majority => Combine::Majority {
            action: picker.pick("antiSpam.combine.majority.action", defaults::MAJORITY_ACTION, |p| of(p)?.majority.as_ref()?.action),
        },
        CombineType::LogOdds => log_odds(picker),
    }
}

fn log_odds(picker: &mut Picker<'_>) -> Combine {
    use crate::v1alpha1::mail_policy::LogOdds;
    fn of(policy: &MailPolicySpec) -> Option<&LogOdds> {
        policy.anti_spam.as_ref()?.combine.as_ref()?.log_odds.as_ref()
    }
    let built_in = defaults::LOG_ODDS;
    Combine::LogOdds {
        prior_decibans: picker.pick("antiSpam.combine.logOdds.priorDecibans", defaults::PRIOR_DECIBANS, |p| of(p)?.prior_decibans),
        at: Thresholds {
            tag_at: picker.pick("antiSpam.combine.logOdds.tagAtDecibans", built_in.tag_at, |p| of(p)?.tag_at_decibans.map(Some)),
            quarantine_at: picker
                .pick("antiSpam.combine.logOdds.quarantineAtDecibans", built_in.quarantine_at, |p| of(p)?.quarantine_at_decibans.map(Some)),
            reject_at: picker.pick("antiSpam.combine.logOdds.rejectAtDecibans", built_in.reject_at, |p| of(p)?.reject_at_decibans.map(Some)),
        },
    }
}

fn authentication(picker: &mut Picker<'_>, built_in: AuthenticationPolicy) -> AuthenticationPolicy {
    fn of(policy: &MailPolicySpec) -> Option<&Authentication> {
        policy.authentication.as_ref()
    }
    AuthenticationPolicy {
        spf: picker.pick("authentication.spf.mode", built_in.spf, |p| of(p)?.spf.as_ref()?.mode),
        dmarc: picker.pick("authentication.dmarc.mode", built_in.dmarc, |p| of(p)?.dmarc.as_ref()?.mode),
        on_temp_error: picker.pick("authentication.dmarc.onTempError", built_in.on_temp_error, |p| of(p)?.dmarc.as_ref()?.on_temp_error),
    }
}

fn entries(list: &[ListEntrySpec]) -> Vec<ListEntry> {
    list.iter().map(|entry| ListEntry { kind: entry.kind, value: entry.value.0.clone() }).collect()
}

/// The fleet's own minimum of warm engines: its overrides, else its defaults, else 1; never a tenant's.
pub(crate) fn startup_minimum(overrides: Option<&MailPolicySpec>, of_defaults: Option<&MailPolicySpec>) -> crate::snapshot::ClassMinimum {
    let pick = |of: fn(&MailPolicySpec) -> Option<u32>| {
        overrides.and_then(of).or_else(|| of_defaults.and_then(of)).unwrap_or(defaults::STARTUP_MINIMUM_ENGINES)
    };
    crate::snapshot::ClassMinimum {
        anti_virus: pick(|policy| policy.anti_virus.as_ref()?.minimum_engines),
        anti_spam: pick(|policy| policy.anti_spam.as_ref()?.minimum_engines),
    }
}

/// What becomes of a policy whose tenant keeps nothing at rest: Quarantine becomes Reject, and for want of engines Defer.
pub fn nothing_at_rest(policy: &mut Policy) {
    let AntiVirusPolicy { infected, too_large, limits_exceeded, malformed, minimum_engines: _, too_few_engines } = &mut policy.anti_virus;
    for action in [infected, too_large, limits_exceeded, malformed, &mut policy.attachments.encrypted_archives] {
        if *action == Action::Quarantine {
            *action = Action::Reject;
        }
    }
    for too_few in [too_few_engines, &mut policy.anti_spam.too_few_engines] {
        if *too_few == TooFewEngines::Quarantine {
            *too_few = TooFewEngines::Defer;
        }
    }
    match &mut policy.anti_spam.combine {
        Combine::LogOdds { at, .. } | Combine::WeightedSum { at } | Combine::Maximum { at } => {
            if let Some(quarantine_at) = at.quarantine_at.take() {
                at.reject_at = Some(at.reject_at.map_or(quarantine_at, |reject_at| reject_at.min(quarantine_at)));
            }
        }
        Combine::Majority { action } => {
            if *action == Action::Quarantine {
                *action = Action::Reject;
            }
        }
    }
}

/// What a policy asks for that this build does not do. `path` is where the policy stands, such as `spec.policy`.
pub(crate) fn not_supported(policy: &MailPolicySpec, path: &str) -> Vec<Finding> {
    let mut findings = vec![];
    let mut say = |field: &str, message: String| findings.push(Finding::new(format!("{path}.{field}"), Reason::NotSupportedYet, message));
    if let Some(mode @ (CheckMode::Observe | CheckMode::Enforce)) = policy.backscatter.as_ref().and_then(|backscatter| backscatter.mode) {
        say("backscatter.mode", format!("`{mode}` is not supported yet: use Disabled"));
    }
    if let Some(Arc { mode, trusted_sealers }) = policy.authentication.as_ref().and_then(|authentication| authentication.arc.as_ref()) {
        if *mode == Some(CheckMode::Enforce) {
            say("authentication.arc.mode", "`Enforce` is not supported yet: use Disabled, or leave it out".to_owned());
        }
        if trusted_sealers.as_ref().is_some_and(|sealers| !sealers.is_empty()) {
            say("authentication.arc.trustedSealers", "is not supported yet: leave it out".to_owned());
        }
    }
    findings
}

/// What a policy asks for that this build takes without doing it.
pub(crate) fn not_evaluated(policy: &MailPolicySpec, path: &str) -> Option<Finding> {
    let mode = policy.authentication.as_ref()?.arc.as_ref()?.mode?;
    (mode == CheckMode::Observe).then(|| {
        Finding::new(
            format!("{path}.authentication.arc.mode"),
            Reason::NotSupportedYet,
            "`Observe`: ARC is not evaluated yet; nothing is recorded about it",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> MailPolicySpec {
        serde_yaml::from_str(yaml).expect("a policy")
    }

    #[test]
    fn each_field_comes_from_the_first_layer_that_speaks() {
        let overrides = spec("{antiVirus: {infected: Discard}}");
        let tenant = spec("{antiVirus: {infected: Deliver, tooLarge: Tag}, antiSpam: {subjectTag: ''}}");
        let shared = spec("{antiVirus: {infected: Tag, tooLarge: Reject, malformed: Reject}, antiSpam: {subjectTag: '[S] '}}");
        let of_fleet = spec("{antiVirus: {malformed: Deliver, limitsExceeded: Defer}, attachments: {blockTypes: [exe]}}");
        let layers = Layers { overrides: Some(&overrides), tenant: Some(&tenant), mail_policy: Some(&shared), defaults: Some(&of_fleet) };
        let (policy, provenance) = effective_policy(layers);
        let virus = &policy.anti_virus;
        assert_eq!((virus.infected, provenance["antiVirus.infected"]), (Action::Discard, Origin::FleetOverrides));
        assert_eq!((virus.too_large, provenance["antiVirus.tooLarge"]), (Action::Tag, Origin::Tenant));
        assert_eq!((virus.malformed, provenance["antiVirus.malformed"]), (Action::Reject, Origin::MailPolicy));
        assert_eq!((virus.limits_exceeded, provenance["antiVirus.limitsExceeded"]), (Action::Defer, Origin::FleetDefaults));
        assert_eq!((virus.minimum_engines, provenance["antiVirus.minimumEngines"]), (1, Origin::BuiltIn));
        assert_eq!((policy.anti_spam.subject_tag.as_str(), provenance["antiSpam.subjectTag"]), ("", Origin::Tenant));
        assert_eq!(policy.attachments.block_types, ["exe"]);
    }

    #[test]
    fn nothing_said_is_built_in() {
        let (policy, provenance) = effective_policy(Layers::default());
        assert_eq!(policy, defaults::policy());
        assert!(provenance.len() > 20 && provenance.values().all(|origin| *origin == Origin::BuiltIn));
    }

    #[test]
    fn bounds_are_inherited_from_the_same_type_only() {
        let tenant = spec("{antiSpam: {combine: {type: Maximum, maximum: {tagAt: '0.5'}}}}");
        let shared = spec("{antiSpam: {combine: {type: WeightedSum, weightedSum: {rejectAt: '9'}}}}");
        let of_fleet = spec("{antiSpam: {combine: {type: Maximum, maximum: {tagAt: '3', rejectAt: '7.25'}}}}");
        let (policy, provenance) =
            effective_policy(Layers { tenant: Some(&tenant), mail_policy: Some(&shared), defaults: Some(&of_fleet), ..Layers::default() });
        assert_eq!(
            policy.anti_spam.combine,
            Combine::Maximum { at: Thresholds { tag_at: Some(50), quarantine_at: Some(150), reject_at: Some(725) } }
        );
        assert_eq!(provenance["antiSpam.combine.maximum.rejectAt"], Origin::FleetDefaults);
    }

    #[test]
    fn nothing_at_rest_leaves_no_quarantine() {
        for combine in ["{type: LogOdds}", "{type: WeightedSum}", "{type: Maximum, maximum: {rejectAt: '1'}}", "{type: Majority}"] {
            let all = "infected: Quarantine, tooLarge: Quarantine, limitsExceeded: Quarantine, malformed: Quarantine, tooFewEngines: Quarantine";
            let all = spec(&format!(
                "{{antiVirus: {{{all}}}, antiSpam: {{tooFewEngines: Quarantine, combine: {combine}}}, attachments: {{encryptedArchives: Quarantine}}}}"
            ));
            let (mut policy, _) = effective_policy(Layers { defaults: Some(&all), ..Layers::default() });
            nothing_at_rest(&mut policy);
            let text = serde_json::to_string(&policy).expect("JSON");
            assert!(!text.contains("Quarantine") && !text.replace("\"quarantineAt\":null", "").contains("quarantineAt"), "{text}");
        }
    }

    #[test]
    fn the_fleets_own_minimum_is_never_a_tenants() {
        let (overrides, of_fleet) =
            (spec("{antiVirus: {minimumEngines: 3}}"), spec("{antiVirus: {minimumEngines: 2}, antiSpam: {minimumEngines: 0}}"));
        let minimum = startup_minimum(Some(&overrides), Some(&of_fleet));
        assert_eq!((minimum.anti_virus, minimum.anti_spam), (3, 0));
        assert_eq!(startup_minimum(None, None).anti_spam, 1);
    }
}
