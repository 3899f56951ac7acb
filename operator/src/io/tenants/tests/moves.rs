//! Tenants that go to another fleet, and domains that go to another tenant.

use super::*;

#[tokio::test]
async fn a_tenant_that_names_a_fleet_that_is_not_there_stays_where_it_was() {
    let server = Server::start(|cluster| {
        one()(cluster);
        cluster.fleets = ["inbound", "second"].map(|name| (name.to_owned(), fleet(name, 1, &json!({})))).into();
    });
    let leader = server.lead();
    server.until("a part", |server| server.part("shop", "one").is_some()).await;
    let good = server.part("shop", "one");
    server.changes("shop", "one", 2, json!({"fleetRef": {"name": "inbuond", "namespace": "mail"}})).await;
    server.until("it is told", |server| server.condition("shop", "one", "Accepted").1.contains("inbuond")).await;
    assert_eq!(server.part("shop", "one"), good, "a typo is no outage");
    assert!(server.condition("shop", "one", "Programmed").1.contains("last good form"));
    server.changes("thief", "two", 1, json!({})).await;
    server.until("a rival is told", |server| server.condition("thief", "two", "Conflicted").0 == "True").await;
    server.until("a recorded form", |server| server.lock().config_maps.keys().any(|name| name.starts_with("good-"))).await;
    leader.abort();
    let next = server.next(2);
    let leader = next.lead();
    next.until("the next leader has it there, too", |server| server.part("shop", "one") == good).await;
    next.until("everybody is judged", |server| server.metrics.tenants_synced.get() == 1).await;
    assert_eq!(next.part("shop", "one"), good);
    next.changes("shop", "one", 3, json!({"fleetRef": {"name": "second", "namespace": "mail"}})).await;
    let there = |server: &Server| server.hub.part(&FleetKey::new("mail", "second"), "tenant/shop/one").is_some();
    next.until("it moves once the other fleet has it", |server| there(server) && server.part("shop", "one").is_none()).await;
    next.until("its domain is free at once", |server| server.part("thief", "two").is_some()).await;
    leader.abort();
}

#[tokio::test]
async fn a_domain_that_another_tenant_has_is_in_no_part_whose_removal_waits() {
    let name = |number: usize| format!("t{number}");
    let domains = |number: usize| json!({"domains": [format!("d{number}.example")]});
    let server = Server::start(|cluster| {
        for number in 0..100 {
            cluster.tenants.insert(("a".to_owned(), name(number)), tenant("a", &name(number), 1, domains(number)));
        }
    });
    let leader = server.lead();
    server.until("all are there", |server| server.hub.fleet(&fleet_key()).tenants == 100).await;
    for number in 0..40 {
        server.goes("a", &name(number), true).await;
    }
    server.until("removals wait", |server| server.hub.fleet(&fleet_key()).removals_waiting > 0).await;
    for number in 0..40 {
        server.changes("b", &name(number), 1, domains(number)).await;
    }
    let holders = |server: &Server, number: usize| {
        let parts = ["a", "b"].map(|namespace| server.part(namespace, &name(number)));
        parts.map(|part| part.is_some_and(|part| String::from_utf8_lossy(&part).contains(&format!("\"d{number}.example\""))))
    };
    server.until("each domain is in the new part alone", |server| (0..40).all(|number| holders(server, number) == [false, true])).await;
    server.until("what waited waits again", |server| server.hub.fleet(&fleet_key()).removals_waiting > 0).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!((0..40).all(|number| holders(&server, number) == [false, true]));
    leader.abort();
}
