use futures_util::FutureExt as _;

use super::*;

struct Epochs;

impl EpochStore for Epochs {
    fn raise(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        // As a Lease that could not be written right: it stores what was there before.
        async move { Ok(if above == 50 { 50 } else { above + 1 }) }.boxed()
    }
}

fn identity(n: u32) -> Identity {
    Identity {
        namespace: "mail".into(),
        service_account: "inbound-gateway".into(),
        pod_name: format!("inbound-gateway-{n}"),
        pod_uid: format!("uid-{n}"),
    }
}

/// A fleet with three tenants and two pods, complete.
fn hub() -> (Hub, FleetKey) {
    let (hub, fleet) = (Hub::new(3, Arc::new(Epochs)), FleetKey::new("mail", "inbound"));
    let pod = |n: u32| PodIdentity { name: format!("inbound-gateway-{n}").into(), uid: format!("uid-{n}").into() };
    hub.set_pods(&fleet, vec![pod(0), pod(1)]);
    hub.put(&fleet, "fleet", Bytes::from_static(b"{}"));
    for n in 0..3 {
        hub.put(&fleet, &format!("tenant/a/{n}"), Bytes::from(format!("{{\"n\":{n}}}")));
    }
    hub.synced(&fleet, "fleet");
    hub.synced(&fleet, "tenants");
    (hub, fleet)
}

fn sit(hub: &Hub, n: u32, hello: Hello) -> Seat {
    hub.seat(&identity(n), Hello { format: FORMAT, ..hello }).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn to(seat: &mut Seat) -> Position {
    match seat.next(|| true) {
        Next::Way(way) => way.to,
        Next::Nothing => panic!("nothing to send"),
        Next::Outdo(seen) => panic!("outdo {seen}"),
    }
}

fn apply(seat: &mut Seat, at: &Position) -> bool {
    seat.applied(Applied { position: Some(at.clone()), ..Applied::default() })
}

#[tokio::test]
async fn a_new_leader_waits_for_every_gateway_anew() {
    let before_ms = clock::unix_ms();
    let (hub, fleet) = hub();
    let pods = hub.fleet(&fleet).pods;
    assert_eq!(pods.len(), 2);
    assert!(pods.values().all(|(_, pod)| !pod.connected && pod.since_ms >= before_ms), "nobody is missed before he could be back: {pods:?}");
}

#[tokio::test]
async fn who_drains_need_not_have_a_part_and_who_never_was_there_does_not_count() {
    let (hub, fleet) = hub();
    let (mut one, mut two) = (sit(&hub, 0, Hello::default()), sit(&hub, 1, Hello::default()));
    let here = to(&mut one);
    assert!(!apply(&mut one, &here));
    assert_eq!(hub.reach(&fleet, "tenant/a/1"), Reach::Waiting, "the other one has not");
    assert_eq!(hub.figures().first().map(|(_, figures)| (figures.gateways, figures.parts, figures.behind)), Some((2, 4, here.number)));
    hub.set_orders(&fleet, "uid-1", Orders { drain: DrainKind::Retire.into(), ..Orders::default() });
    assert_eq!(hub.reach(&fleet, "tenant/a/1"), Reach::Everywhere);
    to(&mut two);
    apply(&mut two, &here);
    assert_eq!(hub.figures().first().map(|(_, figures)| figures.behind), Some(0));
}

#[tokio::test]
async fn what_a_gateway_claims_is_not_taken_for_reached() {
    let (hub, fleet) = hub();
    let only = hub.fleet(&fleet).pods.into_values().map(|(pod, _)| pod).filter(|pod| &*pod.uid == "uid-0");
    hub.set_pods(&fleet, only.collect());
    let here = hub.fleet(&fleet).position.expect("complete");
    let ahead = Position { number: here.number + 9, hash: vec![7; 32], ..here };
    let mut seat = sit(&hub, 0, Hello { have: Some(ahead.clone()), ..Hello::default() });
    assert_eq!(hub.reach(&fleet, "tenant/a/1"), Reach::Waiting, "a position that we never had");
    assert_eq!(to(&mut seat), here);
    assert!(!apply(&mut seat, &ahead), "it was never sent that");
    assert_eq!(hub.reach(&fleet, "tenant/a/1"), Reach::Waiting);
    assert!(apply(&mut seat, &Position { hash: vec![9; 32], ..here.clone() }), "another hash: everything again");
    assert_eq!(hub.reach(&fleet, "tenant/a/1"), Reach::Waiting);
    assert!(matches!(seat.next(|| false), Next::Nothing), "not now");
    assert_eq!(to(&mut seat), here);
    apply(&mut seat, &here);
    assert_eq!(hub.reach(&fleet, "tenant/a/1"), Reach::Everywhere);
}

#[tokio::test]
async fn an_epoch_that_was_not_stored_higher_is_none() {
    let (hub, _) = hub();
    assert!(hub.outdo(50).await.is_err_and(|error| error.contains("stored as 50")));
    let (one, two) = tokio::join!(hub.outdo(60), hub.outdo(60));
    assert_eq!((one, two, hub.shared.lock().epoch), (Ok(()), Ok(()), 61), "once for all");
}

#[tokio::test]
async fn a_mass_removal_across_leaders_waits() {
    let hub = Hub::new(3, Arc::new(Epochs));
    let fleet = FleetKey::new("mail", "inbound");
    hub.set_pods(&fleet, vec![PodIdentity { name: "inbound-gateway-0".into(), uid: "uid-0".into() }]);
    hub.expect_tenants(&fleet, 100);
    hub.put(&fleet, "fleet", Bytes::from_static(b"{}"));
    hub.synced(&fleet, "fleet");
    hub.synced(&fleet, "tenants");
    let had = Position { epoch: 2, number: 7, hash: vec![5; 32] };
    let mut seat = sit(&hub, 0, Hello { have: Some(had), ..Hello::default() });
    assert!(matches!(seat.next(|| true), Next::Nothing), "the gateway keeps its hundred tenants");
    assert_eq!(hub.fleet(&fleet).removals_waiting, 100);
    assert!(!hub.fleet(&fleet).has_all, "the status keeps to what the gateways have");
    hub.confirm_removals(&fleet, 99);
    assert!(matches!(seat.next(|| true), Next::Nothing), "not that many");
    hub.confirm_removals(&fleet, 100);
    assert_eq!((to(&mut seat).epoch, hub.fleet(&fleet).removals_waiting), (3, 0));
}

/// What a gateway has is said by itself: the status was written by a leader that had found nothing, and the gateway could not say where it stands.
#[tokio::test]
async fn a_gateway_with_tenants_keeps_them_whatever_the_status_says() {
    let hub = Hub::new(3, Arc::new(Epochs));
    let fleet = FleetKey::new("mail", "inbound");
    hub.set_pods(&fleet, vec![PodIdentity { name: "inbound-gateway-0".into(), uid: "uid-0".into() }]);
    hub.expect_tenants(&fleet, 0);
    hub.put(&fleet, "fleet", Bytes::from_static(b"{}"));
    hub.synced(&fleet, "fleet");
    let mut seat = sit(&hub, 0, Hello { tenants: 100, ..Hello::default() });
    assert_eq!((hub.fleet(&fleet).removals_waiting, hub.fleet(&fleet).has_all), (0, false), "nobody is asked before the tenants are known");
    hub.synced(&fleet, "tenants");
    assert!(matches!(seat.next(|| true), Next::Nothing));
    assert_eq!((hub.fleet(&fleet).removals_waiting, hub.fleet(&fleet).has_all), (100, false));
    for n in 0..100 {
        hub.put(&fleet, &format!("tenant/a/{n}"), Bytes::from_static(b"{}"));
    }
    hub.synced(&fleet, "tenants");
    assert_eq!((hub.fleet(&fleet).removals_waiting, hub.fleet(&fleet).has_all), (0, true));
    let here = to(&mut seat);
    assert!(!apply(&mut seat, &here));
}

#[tokio::test]
async fn what_gateways_say_is_bounded() {
    let (hub, fleet) = hub();
    let mut seat = sit(&hub, 0, Hello { version: "v".repeat(9999), ..Hello::default() });
    let here = to(&mut seat);
    let rejected = (0..20_000).map(|n| Rejection { key: format!("tenant/a/{n}"), lacks: String::new(), message: "é".repeat(999) }).collect();
    seat.applied(Applied { position: Some(here), rejected, resync: false });
    let many = Report {
        refusing: vec!["x".into(); 5000],
        samples: vec![Default::default(); 999],
        engines: vec![Default::default(); 999],
        ..Report::default()
    };
    seat.report(many);
    let state = hub.fleet(&fleet).pods.remove("uid-0").expect("the pod").1;
    assert_eq!(state.rejected.len(), REJECTIONS_MAX);
    assert!(state.rejected.values().all(|rejection| rejection.message.chars().count() == TEXT_CHARS_MAX));
    let report = state.report.expect("a report").1;
    assert_eq!((report.refusing.len(), report.samples.len(), report.engines.len()), (NAMES_MAX, SAMPLES_MAX, ENGINES_MAX));
    assert_eq!(state.hello.expect("a hello").version.len(), TEXT_CHARS_MAX);
}
