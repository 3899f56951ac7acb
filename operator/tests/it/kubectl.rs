//! `kubectl sekimori` as people see it: whole clusters in, text and JSON out; and the page with its help.

use std::fmt::Write as _;

use clap::CommandFactory as _;
use sekimori_crds::v1alpha1::{Engine, GatewayFleet, MailPolicy, TenantDomain};
use sekimori_operator::kubectl::cli::Cli;
use sekimori_operator::kubectl::status::{self, Tally};
use sekimori_operator::kubectl::table::Paint;
use sekimori_operator::kubectl::tenants::{ClaimsSeen, Found, ListView, Wanted, show};
use sekimori_operator::ownership::{Record, Tenant};
use serde::de::DeserializeOwned;

use crate::{data, fresh};

/// The objects of one kind in a file of documents.
fn read<K: DeserializeOwned>(name: &str, kind: &str) -> Vec<K> {
    let path = data().join("kubectl").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| <serde_yaml::Value as serde::Deserialize>::deserialize(document).unwrap_or_else(|error| panic!("{name}: {error}")))
        .filter(|value| value.get("kind").and_then(serde_yaml::Value::as_str) == Some(kind))
        .map(|value| serde_yaml::from_value(value).unwrap_or_else(|error| panic!("{name}: {kind}: {error}")))
        .collect()
}

fn tally(tenants: &[TenantDomain]) -> Tally {
    let mut tally = Tally::default();
    tenants.iter().for_each(|tenant| tally.add(tenant));
    tally
}

/// As JSON, by name, whatever serde_json was built with.
fn sorted(view: &impl serde::Serialize) -> String {
    let mut value = serde_json::json!(view);
    value.sort_all_objects();
    format!("{value:#}\n")
}

#[test]
fn status_of_an_empty_a_sound_and_a_broken_cluster() {
    for name in ["empty", "sound", "broken"] {
        let input = format!("{name}.in.yaml");
        let tenants: Vec<TenantDomain> = read(&input, "TenantDomain");
        let (fleets, engines): (Vec<GatewayFleet>, Vec<Engine>) = (read(&input, "GatewayFleet"), read(&input, "Engine"));
        let view = status::view(&fleets, &engines, tally(&tenants), vec![]);
        fresh(&data().join("kubectl").join(format!("{name}.status.txt")), &status::text(&view, Paint::default()));
        fresh(&data().join("kubectl").join(format!("{name}.status.json")), &sorted(&view));
        let mut list = ListView::default();
        tenants.iter().for_each(|tenant| list.add(tenant, &Wanted::default()));
        fresh(&data().join("kubectl").join(format!("{name}.tenants.txt")), &list.text(Paint::default(), &Wanted::default()));
    }
}

#[test]
fn one_tenant_with_its_effective_policy() {
    let (fleets, policies): (Vec<GatewayFleet>, Vec<MailPolicy>) = (read("broken.in.yaml", "GatewayFleet"), read("broken.in.yaml", "MailPolicy"));
    let tenants: Vec<TenantDomain> = read("broken.in.yaml", "TenantDomain");
    let tenant = tenants.iter().find(|tenant| tenant.metadata.name.as_deref() == Some("example-com")).expect("it is in the file");
    let record = |domain: &str, holder: &str, gone_since_ms| {
        let record = Record { domain: domain.into(), holder: Tenant::new("mail", holder).into(), since_ms: 1, gone_since_ms, basis: None };
        (domain.to_owned(), record)
    };
    let claims = [record("example.com", "example-com", None), record("example.net", "rival", None), record("example.org", "former", Some(5))];
    let found = Found { tenant, fleet: Ok(&fleets[0]), mail_policy: Some(Ok(&policies[0])), claims: ClaimsSeen::Read(claims.into()) };
    let view = show(&found);
    fresh(&data().join("kubectl/tenant.txt"), &view.text(Paint::default()));
    fresh(&data().join("kubectl/tenant.json"), &sorted(&view));
    let nothing = Found {
        tenant,
        fleet: Err("there is no GatewayFleet inbound in namespace mail".to_owned()),
        mail_policy: Some(Err("you may not get mailpolicies".to_owned())),
        claims: ClaimsSeen::NotRead("you may not list pods".to_owned()),
    };
    fresh(&data().join("kubectl/tenant-alone.txt"), &show(&nothing).text(Paint::default()));
}

/// Of many troubled tenants the worst are named, whatever the order they are read in; the others are counted.
#[test]
fn the_worst_tenants_are_named_and_the_others_counted() {
    let template: Vec<TenantDomain> = read("broken.in.yaml", "TenantDomain");
    let waiting = template.iter().find(|tenant| tenant.metadata.name.as_deref() == Some("fresh")).expect("it is in the file");
    let refused = template.iter().find(|tenant| tenant.metadata.name.as_deref() == Some("example-com")).expect("it is in the file");
    let mut many = vec![];
    for number in 0..40 {
        let mut tenant = if number % 8 == 7 { refused.clone() } else { waiting.clone() };
        tenant.metadata.name = Some(format!("tenant-{number:02}"));
        many.push(tenant);
    }
    let fleets: Vec<GatewayFleet> = read("broken.in.yaml", "GatewayFleet");
    let forwards = status::view(&fleets, &[], tally(&many), vec![]);
    many.reverse();
    let backwards = status::view(&fleets, &[], tally(&many), vec![]);
    assert_eq!(forwards, backwards);
    let tenants = &forwards.fleets.iter().find(|fleet| fleet.name == "inbound").expect("the fleet").tenants;
    assert_eq!((tenants.known, tenants.not_ready, tenants.worst.len()), (40, 40, 10));
    let names: Vec<&str> = tenants.worst.iter().map(|tenant| tenant.name.as_str()).collect();
    assert_eq!(names[..6], ["tenant-07", "tenant-15", "tenant-23", "tenant-31", "tenant-39", "tenant-00"]);
    assert!(status::text(&forwards, Paint::default()).contains("and 30 more: kubectl sekimori tenants list"));
}

#[test]
fn a_tenant_whose_server_refuses_is_named_though_it_is_ready() {
    let mut tenants: Vec<TenantDomain> = read("sound.in.yaml", "TenantDomain");
    let refusing = serde_json::json!({
        "type": "RouteRefusing", "status": "True", "reason": "ServerRefuses", "message": "its mail server refuses", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let first = tenants.first_mut().expect("a tenant");
    first.status.get_or_insert_default().conditions.push(serde_json::from_value(refusing).expect("a condition"));
    let fleets: Vec<GatewayFleet> = read("sound.in.yaml", "GatewayFleet");
    let view = status::view(&fleets, &[], tally(&tenants), vec![]);
    let seen: Vec<(u64, u64)> = view.fleets.iter().map(|fleet| (fleet.tenants.not_ready, fleet.tenants.refusing)).collect();
    assert_eq!(seen.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)), (0, 1));
    let text = status::text(&view, Paint::default());
    assert!(text.contains("not Ready, 1 whose server refuses mail") && text.contains("RouteRefusing"), "{text}");
}

#[test]
fn the_page_of_the_commands_is_fresh() {
    let mut page = "# kubectl sekimori\n\nWhat `--help` says. Generated: `make generate`.\n".to_owned();
    let mut root = Cli::command().term_width(110);
    root.build();
    walk(&root, &mut vec!["kubectl".to_owned()], &mut page);
    fresh(&data().join("../../../docs/reference/kubectl.md"), &page);
}

fn walk(command: &clap::Command, names: &mut Vec<String>, page: &mut String) {
    names.push(command.get_name().trim_start_matches("kubectl-").to_owned());
    let text = command.clone().render_long_help().to_string();
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    write!(page, "\n## {}\n\n```\n{}\n```\n", names.join(" "), text.join("\n").trim()).expect("a string takes it");
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help" && !verb.is_hide_set()) {
        walk(verb, names, page);
    }
    names.pop();
}
