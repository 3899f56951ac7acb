//! Lookups and checks of the compiled configuration.

use sekimori_crds::snapshot::{ClassMinimum, FleetPart, Part, PartKey, Snapshot, TenantPart};
use sekimori_crds::units::Duration;
use sekimori_crds::vocabulary::{DeliveryMode, Enforcement, TenantState, VerdictHeader};

use super::*;

pub(crate) fn fleet() -> FleetPart {
    FleetPart {
        namespace: "default".into(),
        name: "local".into(),
        hostname: "mx.localhost".into(),
        listeners: vec![],
        engines: vec![],
        resolver_addresses: vec!["127.0.0.1:53".into()],
        egress_allowed_networks: vec!["127.0.0.0/8".parse().expect("a network")],
        quarantine_retention: Duration::from_secs(3600),
        startup_max_wait: Duration::from_secs(300),
        startup_minimum_engines: ClassMinimum { anti_virus: 1, anti_spam: 1 },
        verdict_header: VerdictHeader::Summary,
        requires: [].into(),
    }
}

pub(crate) fn tenant(name: &str, domains: &[&str]) -> TenantPart {
    TenantPart {
        namespace: "default".into(),
        name: name.into(),
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        state: TenantState::Active,
        suspended_since: None,
        enforcement: Enforcement::Enforce,
        routes: vec![],
        delivery: DeliveryMode::InlineElseQueue,
        soft_bounce: false,
        messages_per_hour: None,
        policy: sekimori_crds::compile::defaults::policy(),
        requires: [].into(),
    }
}

fn snapshot(tenants: &[TenantPart]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.parts.insert(PartKey::Fleet, Part::Fleet(Box::new(fleet())));
    for tenant in tenants {
        let key = PartKey::Tenant { namespace: tenant.namespace.clone(), name: tenant.name.clone() };
        snapshot.parts.insert(key, Part::Tenant(Box::new(tenant.clone())));
    }
    snapshot
}

#[test]
fn the_exact_name_wins_then_the_nearest_wildcard() {
    let parts = [tenant("exact", &["a.example.com"]), tenant("near", &["*.example.com"]), tenant("far", &["*.com", "example.com"])];
    let config = Config::compile(&snapshot(&parts), &[]).expect("a good snapshot");
    for (domain, expected) in [
        ("a.example.com", Some("default/exact")),
        ("b.example.com", Some("default/near")),
        ("x.y.example.com", Some("default/near")),
        ("example.com", Some("default/far")),
        ("other.com", Some("default/far")),
        ("com", None),
        ("example.org", None),
        ("", None),
    ] {
        assert_eq!(config.tenant_of(domain).map(|t| &*t.key), expected, "{domain}");
    }
}

#[test]
fn a_removed_tenant_keeps_its_form_but_takes_no_mail() {
    let gone = tenant("gone", &["gone.example"]);
    let config = Config::compile(&snapshot(&[]), std::slice::from_ref(&gone)).expect("a good snapshot");
    assert!(config.tenant_of("gone.example").is_none());
    assert!(config.tenant("default/gone").is_some_and(|t| t.removed));
    let back = Config::compile(&snapshot(std::slice::from_ref(&gone)), std::slice::from_ref(&gone)).expect("a good snapshot");
    assert!(back.tenant("default/gone").is_some_and(|t| !t.removed), "one that is back is not removed");
}

#[test]
fn what_cannot_be_run_is_said() {
    assert_eq!(Config::compile(&Snapshot::default(), &[]).err(), Some(ConfigError::NoFleet));
    assert_eq!(Config::compile(&Snapshot { format: 9, ..Snapshot::default() }, &[]).err(), Some(ConfigError::Format(9)));
    let mut newer = fleet();
    newer.requires.insert("teleport".into());
    let mut needs = Snapshot::default();
    needs.parts.insert(PartKey::Fleet, Part::Fleet(Box::new(newer)));
    assert!(matches!(Config::compile(&needs, &[]).err(), Some(ConfigError::NeedsNewerGateway { .. })));
    let mut wrong = fleet();
    wrong.resolver_addresses = vec!["ns.example".into()];
    needs.parts.insert(PartKey::Fleet, Part::Fleet(Box::new(wrong)));
    assert!(matches!(Config::compile(&needs, &[]).err(), Some(ConfigError::Resolver { .. })));
}

#[test]
fn routes_lead_to_public_addresses_and_listed_networks() {
    let config = Config::compile(&snapshot(&[]), &[]).expect("a good snapshot");
    for (address, allowed) in [
        ("127.0.0.1", true),
        ("::ffff:127.0.0.1", true),
        ("8.8.8.8", true),
        ("2606:4700::1", true),
        ("10.0.0.1", false),
        ("::ffff:10.0.0.1", false),
        ("169.254.169.254", false),
        ("100.64.0.1", false),
        ("0.0.0.0", false),
        ("::1", false),
        ("fe80::1", false),
        ("fd00::1", false),
        ("64:ff9b::a00:1", false),
        ("2002:a00:1::", false),
        ("224.0.0.1", false),
    ] {
        assert_eq!(config.egress_allows(address.parse().expect("an address")), allowed, "{address}");
    }
}
