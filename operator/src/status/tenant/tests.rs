use sekimori_crds::compile::Finding;

use super::*;
use crate::ownership::Tenant;

fn claim(verdict: Verdict) -> Claim {
    Claim { domain: "example.com".to_owned(), verdict }
}

fn conflict() -> Verdict {
    Verdict::Conflict { holder: Tenant::new("mail", "first").into(), by: "*.com.example".into(), free_at_ms: None }
}

fn me() -> Tenant {
    Tenant::new("mail", "second")
}

/// Status and reason of Ready, Accepted, Conflicted, ResolvedRefs and Programmed.
fn judged(problems: &[Problem], claims: &[Claim], programmed: Programmed<'_>) -> Vec<String> {
    let facts = tenant_conditions(&TenantReport { tenant: &me(), problems, claims, programmed, refusing: false });
    let order: Vec<ConditionType> = facts.iter().map(|fact| fact.kind).collect();
    assert_eq!(
        order,
        [ConditionType::Ready, ConditionType::Accepted, ConditionType::Conflicted, ConditionType::ResolvedRefs, ConditionType::Programmed]
    );
    facts.iter().map(|fact| format!("{} {}", if fact.holds == Some(true) { "yes" } else { "no" }, fact.reason)).collect()
}

#[test]
fn each_kind_of_trouble_has_its_place() {
    use compile::Reason::{InvalidValue, NotSupportedYet, UnresolvedRef};
    let error = |reason| vec![Problem::error("", "TenantDomain mail/x", Finding::new("spec.routes[0].host", reason, "is wrong: correct it"))];
    let warning = vec![Problem::warning("", "TenantDomain mail/x", Finding::new("spec.policy", NotSupportedYet, "is not evaluated"))];
    let held = || vec![claim(Verdict::Held)];
    let cases = [
        (vec![], held(), Programmed::Everywhere, ["yes Serving", "yes Valid", "no NoConflict", "yes Resolved", "yes Programmed"]),
        (warning, held(), Programmed::Everywhere, ["yes Serving", "yes Valid", "no NoConflict", "yes Resolved", "yes Programmed"]),
        (vec![], held(), Programmed::Waiting, ["no Waiting", "yes Valid", "no NoConflict", "yes Resolved", "no Waiting"]),
        (
            vec![],
            held(),
            Programmed::NeedsNewerGateway("relay"),
            ["no NeedsNewerGateway", "yes Valid", "no NoConflict", "yes Resolved", "no NeedsNewerGateway"],
        ),
        (error(InvalidValue), held(), Programmed::LastGoodForm, ["no Invalid", "no Invalid", "no NoConflict", "yes Resolved", "no LastGoodForm"]),
        (
            error(UnresolvedRef),
            held(),
            Programmed::LastGoodForm,
            ["no Invalid", "no Invalid", "no NoConflict", "no UnresolvedRef", "no LastGoodForm"],
        ),
        (
            vec![],
            vec![claim(conflict())],
            Programmed::Nowhere,
            ["no DomainConflict", "no DomainConflict", "yes DomainConflict", "yes Resolved", "no NotProgrammed"],
        ),
        (
            vec![],
            vec![claim(Verdict::Unproved("add the TXT record".into()))],
            Programmed::Nowhere,
            ["no NotOwned", "no NotOwned", "no NoConflict", "yes Resolved", "no NotProgrammed"],
        ),
    ];
    for (problems, claims, programmed, expected) in cases {
        assert_eq!(judged(&problems, &claims, programmed), expected, "{problems:?} {claims:?} {programmed:?}");
    }
}

#[test]
fn ready_repeats_the_message_that_says_what_to_do() {
    let claims = [claim(conflict())];
    let facts = tenant_conditions(&TenantReport { tenant: &me(), problems: &[], claims: &claims, programmed: Programmed::Nowhere, refusing: false });
    assert!(facts[0].message.contains("mail/first came first") && facts[0].message.contains("remove the domain"), "{}", facts[0].message);
    let many: Vec<Claim> = (0..9).map(|number| Claim { domain: format!("d{number}.example"), verdict: conflict() }).collect();
    let facts = tenant_conditions(&TenantReport { tenant: &me(), problems: &[], claims: &many, programmed: Programmed::Nowhere, refusing: false });
    assert!(facts[2].message.ends_with("and 5 more"), "{}", facts[2].message);
}

#[test]
fn a_holder_of_another_namespace_is_not_named() {
    let stranger = Tenant::new("elsewhere", "second");
    for free_at_ms in [None, Some(1_795_000_000_000)] {
        let verdict = Verdict::Conflict { holder: Tenant::new("mail", "first").into(), by: "*.corp.example".into(), free_at_ms };
        let claims = [claim(verdict)];
        let facts =
            tenant_conditions(&TenantReport { tenant: &stranger, problems: &[], claims: &claims, programmed: Programmed::Nowhere, refusing: false });
        for fact in &facts {
            for secret in ["mail/", "first/", "TenantDomain first", "corp.example"] {
                assert!(!fact.message.contains(secret), "{secret}: {}", fact.message);
            }
        }
        assert!(facts[1].message.contains("`example.com`: another namespace") && facts[1].message.contains("ask who runs the fleet"), "{facts:?}");
        assert_eq!(free_at_ms.is_some(), facts[1].message.contains("2026-11-18T"), "{}", facts[1].message);
    }
}

#[test]
fn a_holder_that_is_gone_is_told_of_with_the_time_and_the_way_out() {
    let verdict = Verdict::Conflict { holder: Tenant::new("mail", "first").into(), by: "example.com".into(), free_at_ms: Some(73 * 3_600_000) };
    let said = told(&claim(verdict), "mail");
    assert!(said.contains("release-domains") && said.contains("until 1970-01-04T01:00:00Z"), "{said}");
}

#[test]
fn a_server_that_refuses_is_told_of_and_takes_no_readiness() {
    let report = TenantReport { tenant: &me(), problems: &[], claims: &[claim(Verdict::Held)], programmed: Programmed::Everywhere, refusing: true };
    let facts = tenant_conditions(&report);
    assert_eq!((facts[0].kind, facts[0].holds), (ConditionType::Ready, Some(true)));
    let refusing = facts.iter().find(|fact| fact.kind == ConditionType::RouteRefusing).expect("it is told of");
    assert_eq!((refusing.holds, refusing.reason), (Some(true), Reason::ServerRefuses));
    assert!(refusing.message.contains("waits in the queue") && refusing.message.contains("kubectl sekimori queue"), "{}", refusing.message);
    let facts = tenant_conditions(&TenantReport { refusing: false, ..report });
    assert!(facts.iter().all(|fact| fact.kind != ConditionType::RouteRefusing));
}
