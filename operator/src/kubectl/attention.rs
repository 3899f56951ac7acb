//! What is not as it should be, and the next step.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use super::table::Tone;
use crate::names;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// Something does not work.
    Bad,
    /// Something deserves a look.
    Warning,
    /// Good to know.
    Note,
}

impl Level {
    /// Its colour.
    pub const fn tone(self) -> Tone {
        match self {
            Self::Bad => Tone::Bad,
            Self::Warning => Tone::Warning,
            Self::Note => Tone::Faint,
        }
    }
}

/// The kinds whose conditions are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// GatewayFleet.
    Fleet,
    /// Engine.
    Engine,
    /// TenantDomain.
    Tenant,
}

impl Kind {
    /// As it stands in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fleet => "GatewayFleet",
            Self::Engine => "Engine",
            Self::Tenant => "TenantDomain",
        }
    }

    /// As kubectl takes it.
    const fn plural(self) -> &'static str {
        match self {
            Self::Fleet => "gatewayfleet",
            Self::Engine => "engine",
            Self::Tenant => "tenantdomain",
        }
    }
}

/// An object whose conditions are judged.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its generation.
    pub generation: Option<i64>,
    /// The generation that its status describes.
    pub observed: Option<i64>,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attention {
    /// How bad it is.
    pub level: Level,
    /// Kind, namespace and name.
    pub object: String,
    /// Type of the condition.
    pub condition: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word, for programs.
    pub reason: String,
    /// A sentence, for people.
    pub message: String,
    /// What to do.
    pub next: String,
}

/// What a condition should be, and how bad it is if it is not. `None`: it says nothing about good or bad, or is not ours.
fn expected(condition: &str) -> Option<(&'static str, Level)> {
    Some(match condition {
        "Ready" | "Accepted" | "ResolvedRefs" => ("True", Level::Bad),
        "Programmed" | "Updated" | "Supported" => ("True", Level::Warning),
        "Conflicted" | "ClientIPMasked" | "BreakerOpen" => ("False", Level::Bad),
        "Draining" | "SignaturesStale" | "RouteRefusing" | "RemovalsWaiting" | "ConfigStale" => ("False", Level::Warning),
        "QuarantineNotShared" => ("False", Level::Note),
        _ => return None,
    })
}

/// What is not as it should be with one object, the worst first.
pub fn judge(subject: &Subject<'_>, conditions: &[Condition]) -> Vec<Attention> {
    let object = format!("{} {}/{}", subject.kind.name(), subject.namespace, subject.name);
    let say = |level, condition: &str, status: &str, reason: &str, message: String, next| Attention {
        level,
        object: object.clone(),
        condition: condition.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        next,
    };
    let mut found = vec![];
    let observed = subject.observed.or_else(|| conditions.iter().filter_map(|condition| condition.observed_generation).min());
    if conditions.is_empty() {
        let message = "the operator has not judged it yet".to_owned();
        found.push(say(Level::Warning, "Ready", "Unknown", "NotJudged", message, operator_steps()));
    } else if let (Some(observed), Some(generation)) = (observed, subject.generation)
        && observed < generation
    {
        let message = format!("what is said here is about generation {observed}, and the object is at {generation}");
        found.push(say(Level::Warning, "Ready", "Unknown", "NotJudged", message, operator_steps()));
    }
    for condition in conditions {
        if let Some((should, level)) = expected(&condition.type_)
            && condition.status != should
        {
            let level = if condition.status == "Unknown" { level.max(Level::Warning) } else { level };
            let next = next(subject, &condition.type_, &condition.reason);
            found.push(say(level, &condition.type_, &condition.status, &condition.reason, condition.message.clone(), next));
        }
    }
    found.sort_by_key(|attention| attention.level);
    found
}

fn operator_steps() -> String {
    "wait a moment; if it stays, see whether the operator runs: kubectl get pods -A -l app.kubernetes.io/name=sekimori-operator".to_owned()
}

/// What to do about a condition that is not as it should be.
fn next(subject: &Subject<'_>, condition: &str, reason: &str) -> String {
    let Subject { kind, namespace, name, .. } = *subject;
    let edit = format!("kubectl edit {} -n {namespace} {name}", kind.plural());
    let pods = format!("kubectl get pods -n {namespace} -l {}={}", names::FLEET_LABEL, names::fleet_label(name));
    match (kind, condition, reason) {
        (Kind::Fleet, "Ready", "NoReplicas") => format!("kubectl scale gatewayfleet -n {namespace} {name} --replicas=2"),
        (Kind::Fleet, "Ready", "NotAccepted") => "correct what Accepted and ResolvedRefs name".to_owned(),
        (Kind::Fleet, "Ready", _) => {
            format!("{pods}, then kubectl describe and kubectl logs -c {} of those that are not ready", names::GATEWAY_CONTAINER)
        }
        (Kind::Fleet, "Updated", "PausedByUser") => {
            format!("kubectl patch gatewayfleet -n {namespace} {name} --type=merge -p '{{\"spec\":{{\"update\":{{\"paused\":false}}}}}}'")
        }
        (Kind::Fleet, "Updated", "PodsNotServing") => {
            format!("{pods}, then kubectl describe and kubectl logs -c {} of those that do not serve", names::GATEWAY_CONTAINER)
        }
        (Kind::Fleet, "Updated", _) => "nothing: it goes on by itself".to_owned(),
        (Kind::Fleet, "Draining", "DrainTimeout") => format!("kubectl sekimori queue list -n {namespace} --fleet {name}"),
        (Kind::Fleet, "Draining", _) => {
            format!("nothing: it goes on by itself; what waits: kubectl sekimori queue list -n {namespace} --fleet {name}")
        }
        (Kind::Fleet, "ClientIPMasked", _) => {
            format!("{edit}: spec.service.externalTrafficPolicy Local, or PROXY protocol on the listener; until then nothing judges by address")
        }
        (Kind::Fleet, "RemovalsWaiting", _) => {
            format!(
                "restore the tenants, or: kubectl annotate gatewayfleet -n {namespace} {name} {}=NUMBER, with the number that the message names",
                names::CONFIRM_REMOVALS
            )
        }
        (Kind::Fleet, "ConfigStale", _) => format!("{pods}; then kubectl logs -n {namespace} POD -c {}", names::GATEWAY_CONTAINER),
        (Kind::Fleet, "QuarantineNotShared", _) => {
            format!("nothing, or {edit}: spec.quarantine.store; all of them: kubectl sekimori quarantine list -n {namespace} --fleet {name}")
        }
        (Kind::Engine, "Ready", "ContainerDown") => format!(
            "kubectl describe pod, and kubectl logs -n {namespace} -c, of what the message names; to go on without it, take {name} off the fleet's spec.engines, or name an Engine there whose EngineVersion has a good image"
        ),
        (Kind::Engine, "BreakerOpen", _) => {
            "mail is judged without it until its probe succeeds: see its container in the pods (kubectl logs -c), or its address if it is External"
                .to_owned()
        }
        (Kind::Engine, "SignaturesStale", _) => "see that signatures are fetched: the mirror, the volume or the image of the engine".to_owned(),
        (Kind::Tenant, "Ready", "Waiting") | (Kind::Tenant, "Programmed", "Waiting") => "nothing: it goes on by itself".to_owned(),
        (Kind::Tenant, "Ready", "NotOwned") | (Kind::Tenant, "Accepted", "NotOwned") => {
            "prove the domain as the message says: a DomainGrant for the namespace, or the TXT record".to_owned()
        }
        (Kind::Tenant, _, "DomainConflict") => format!("{edit}: take the domain off this tenant or off the one that holds it"),
        (Kind::Tenant, "RouteRefusing", _) => "ask the owner of the tenant's server; mail waits in the queue until then".to_owned(),
        (Kind::Tenant, "Ready" | "Programmed", _) => format!("kubectl sekimori tenants show -n {namespace} {name}"),
        (_, "ResolvedRefs", "InvalidCertificateRef") => {
            "replace the Secret that the message names: the gateways take the new certificate within a minute, without a restart".to_owned()
        }
        (_, "ResolvedRefs", _) => "make what the message names as missing, or correct the reference".to_owned(),
        (_, "Supported", _) => format!("nothing, or {edit}: leave out what is not acted on yet"),
        (_, "Accepted", _) => format!("{edit}: correct the fields that the message names"),
        _ => format!("kubectl describe {} -n {namespace} {name}", kind.plural()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::status::ConditionType;

    fn condition(type_: &str, status: &str, reason: &str) -> Condition {
        Condition {
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            message: "why".to_owned(),
            observed_generation: Some(2),
            reason: reason.to_owned(),
            status: status.to_owned(),
            type_: type_.to_owned(),
        }
    }

    fn subject(kind: Kind) -> Subject<'static> {
        Subject { kind, namespace: "mail", name: "inbound", generation: Some(2), observed: Some(2) }
    }

    #[test]
    fn what_is_as_it_should_be_is_not_named() {
        let fine =
            [condition("Ready", "True", "Serving"), condition("Draining", "False", "NotDraining"), condition("example.net/Audited", "False", "X")];
        assert_eq!(judge(&subject(Kind::Fleet), &fine), []);
    }

    #[test]
    fn the_worst_comes_first_and_each_has_a_next_step() {
        let conditions = [
            condition("QuarantineNotShared", "True", "PerPodStore"),
            condition("Updated", "False", "PausedByUser"),
            condition("Ready", "False", "NoGateway"),
        ];
        let found = judge(&subject(Kind::Fleet), &conditions);
        assert_eq!(found.iter().map(|attention| attention.condition.as_str()).collect::<Vec<_>>(), ["Ready", "Updated", "QuarantineNotShared"]);
        assert!(found[0].next.contains("-l sekimori.dev/fleet=inbound"), "{found:?}");
        assert!(found[1].next.contains("{\"spec\":{\"update\":{\"paused\":false}}}"), "{found:?}");
    }

    #[test]
    fn a_status_of_an_earlier_generation_is_named() {
        let late = Subject { generation: Some(3), ..subject(Kind::Tenant) };
        let found = judge(&late, &[condition("Ready", "True", "Serving")]);
        assert_eq!((found.len(), found[0].reason.as_str()), (1, "NotJudged"));
        assert_eq!(judge(&subject(Kind::Tenant), &[])[0].reason, "NotJudged", "nothing was said at all");
    }

    /// A condition that the operator learns to write must be judged here, or be named as one that says nothing about good or bad.
    #[test]
    fn every_condition_of_the_operator_is_known() {
        for kind in ConditionType::ALL {
            let neutral = matches!(kind, ConditionType::Available | ConditionType::Active | ConditionType::Retired);
            let expected = expected(&kind.to_string());
            assert_eq!(expected.is_none(), neutral, "{kind}");
            // The operator's events and this page call the same things bad.
            let bad = crate::status::BAD_IF_TRUE.contains(&kind.to_string().as_str());
            assert!(expected.is_none_or(|(good, _)| (good == "False") == bad), "{kind}");
        }
    }
}
