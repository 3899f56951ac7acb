use k8s_openapi::api::apps::v1::StatefulSet;
use sekimori_crds::v1alpha1::gateway_fleet::{FleetEngineStatus, GatewayFleetStatus};
use sekimori_crds::v1alpha1::text::{ObjectName, StatusText};
use serde_json::{Value, json};

use super::*;

fn settings() -> Settings {
    Settings {
        gateway_image: "mta:1".to_owned(),
        idle_image: "idle:1".to_owned(),
        stream_address: "operator.sekimori.svc:8443".to_owned(),
        audience: "config".to_owned(),
        authority_pem: String::new(),
        namespace: "sekimori".to_owned(),
        pod_labels: vec![],
        stream_port: 8443,
        bind: std::net::Ipv4Addr::UNSPECIFIED.into(),
        resize: true,
        cluster_networks: vec!["10.96.0.0/12".parse().expect("a network")],
    }
}

fn fleet(spec: &Value) -> GatewayFleet {
    let mut whole = json!({"hostname": "mx.example.net", "listeners": [{"name": "smtp", "port": 2525}], "drain": {"handOver": "Wait"}});
    for (key, value) in spec.as_object().expect("fields") {
        whole[key] = value.clone();
    }
    let object =
        json!({"apiVersion": "sekimori.dev/v1alpha1", "kind": "GatewayFleet", "metadata": {"name": "barrier", "namespace": "post"}, "spec": whole});
    serde_json::from_value(object).expect("a fleet")
}

fn set(storage: &str, class: Option<&str>) -> StatefulSet {
    let claim = json!({"metadata": {"name": "spool"}, "spec": {"accessModes": ["ReadWriteOncePod"], "storageClassName": class, "resources": {"requests": {"storage": storage}}}});
    serde_json::from_value(json!({"spec": {"selector": {}, "template": {}, "volumeClaimTemplates": [claim]}})).expect("a StatefulSet")
}

/// The problems of a fleet, as texts, and whether its pods are made.
fn judged(fleet: &GatewayFleet, world: &World<'_>) -> (Vec<String>, bool) {
    let checked = check(fleet, world, &settings());
    (checked.problems.iter().map(ToString::to_string).collect(), checked.fleet.is_some())
}

#[test]
fn what_is_wrong_with_one_fleet() {
    let cases = [
        (json!({}), true, ""),
        (
            json!({"listeners": [{"name": "a", "port": 2525}, {"name": "b", "port": 2526}]}),
            false,
            "spec.listeners[1].servicePort: listener `a` has port 25",
        ),
        (json!({"listeners": [{"name": "a", "port": 2525}, {"name": "b", "port": 2526, "servicePort": 26}]}), true, ""),
        (json!({"listeners": [{"name": "a", "port": 8025}]}), false, "spec.listeners[0].port: 8025 is the gateway's admin port"),
        (json!({"listeners": [{"name": "admin", "port": 2525}]}), false, "spec.listeners[0].name: `admin`"),
        (json!({"listeners": [{"name": "a", "port": 25}]}), false, "below 1024"),
        (json!({"listeners": [{"name": "a", "port": 2525, "limits": {"messageSize": "256Mi"}}]}), true, ""),
        (
            json!({"listeners": [{"name": "a", "port": 2525, "limits": {"messageSize": "257Mi"}}]}),
            false,
            "spec.listeners[0].limits.messageSize: `257Mi` is more than one client may hold",
        ),
        (json!({"spool": {"storage": "1023Mi"}}), false, "spec.spool.storage: `1023Mi` is too small"),
        (json!({"spool": {"storage": "1Gi"}}), true, ""),
        (json!({"autoscaling": {"minReplicas": 4, "maxReplicas": 9}}), true, "spec.autoscaling: is not supported yet: the fleet runs on 4 gateways"),
        (json!({"autoscaling": {"maxReplicas": 9}}), true, "the fleet runs on 2 gateways"),
        (json!({"autoscaling": {"maxReplicas": 1}}), true, "the fleet runs on 1 gateways"),
        (json!({"drain": {"handOver": "Peers"}}), true, "spec.drain.handOver: `Peers`"),
        (json!({"drain": {}}), true, "spec.drain.handOver: `Peers` (what holds unless said)"),
        (json!({"replicas": 3, "update": {"maxUnavailable": 3}}), true, "spec.update.maxUnavailable: 3 of 3 gateways"),
        (json!({"replicas": 3, "update": {"maxUnavailable": 2}}), true, ""),
        (json!({"replicas": 1}), true, ""),
        (json!({"egress": {"allowedNetworks": ["0.0.0.0/0"]}}), true, "is every address"),
        (json!({"egress": {"allowedNetworks": ["127.0.0.0/8"]}}), true, "the pod's own loopback"),
        (json!({"egress": {"allowedNetworks": ["10.100.0.0/16"]}}), true, "10.100.0.0/16 overlaps 10.96.0.0/12 of the cluster"),
        (
            json!({"egress": {"allowedNetworks": ["10.200.0.0/16", "10.200.1.0/24"]}}),
            true,
            "spec.egress.allowedNetworks[1]: 10.200.1.0/24 is within 10.200.0.0/16",
        ),
        (
            json!({"egress": {"allowedNetworks": ["10.200.0.0/16", "10.200.0.0/16"]}}),
            true,
            "spec.egress.allowedNetworks[1]: 10.200.0.0/16 is within 10.200.0.0/16",
        ),
        (json!({"egress": {"allowedNetworks": ["10.200.0.0/16", "10.201.0.0/16", "fd00::/8"]}}), true, ""),
        (
            json!({"listeners": [{"name": "a", "port": 2525, "proxyProtocol": {"trustedNetworks": ["::/0"]}}]}),
            true,
            "lets everybody write any client address",
        ),
        (json!({"listeners": [{"name": "a", "port": 2525, "tls": {"certificateRefs": [{"name": "x"}]}}]}), true, "there is no Secret post/x"),
        (json!({"engines": [{"name": "clam"}]}), false, "there is no Engine post/clam"),
    ];
    for (spec, made, words) in cases {
        let (problems, is_made) = judged(&fleet(&spec), &World::default());
        assert_eq!(is_made, made, "{spec}: {problems:#?}");
        if words.is_empty() {
            assert!(problems.is_empty(), "{spec}: {problems:#?}");
        } else {
            assert_eq!(problems.len(), 1, "{spec}: {problems:#?}");
            assert!(problems[0].contains(words) && problems[0].contains("GatewayFleet post/barrier"), "{spec}: {problems:#?}");
        }
    }
}

#[test]
fn volumes_stay_as_they_were_made() {
    for (spec, storage, class, made, words) in [
        (json!({}), "20Gi", None, true, ""),
        (json!({"spool": {"storage": "20480Mi", "storageClassName": "fast"}}), "20Gi", Some("fast"), true, ""),
        (
            json!({"spool": {"storageClassName": "slow"}}),
            "20Gi",
            Some("fast"),
            false,
            "spec.spool.storageClassName: is `slow` now, and the volumes were made with `fast`",
        ),
        (json!({}), "20Gi", Some("fast"), false, "is the cluster's default now"),
        (json!({"spool": {"storage": "40Gi"}}), "20Gi", None, true, "spec.spool.storage: is 40Gi now, and the volumes were made with 20Gi"),
    ] {
        let set = set(storage, class);
        let (fleet, world) = (fleet(&spec), World { stateful_set: Some(&set), csi: false, ..World::default() });
        let checked = check(&fleet, &world, &settings());
        let problems: Vec<String> = checked.problems.iter().map(ToString::to_string).collect();
        assert_eq!(checked.fleet.is_some(), made, "{problems:#?}");
        assert_eq!(problems.is_empty(), words.is_empty(), "{spec}: {problems:#?}");
        assert!(problems.iter().all(|problem| problem.contains(words)), "{spec}: {problems:#?}");
        if let Some(fleet) = checked.fleet {
            assert_eq!(
                (fleet.spool.storage.as_str(), fleet.spool.storage_class_name.as_deref(), fleet.spool.once_pod),
                (storage, class, true),
                "{spec}"
            );
        }
    }
}

#[test]
fn another_operators_template_stops_changes() {
    for (version, made) in [(0, false), (1, true), (2, false)] {
        let mut fleet = fleet(&json!({}));
        fleet.status = Some(GatewayFleetStatus { template_version: Some(version), ..GatewayFleetStatus::default() });
        let (problems, is_made) = judged(&fleet, &World::default());
        assert_eq!(is_made, made, "{version}: {problems:#?}");
        assert_eq!(problems.iter().any(|problem| problem.contains("upgrade the operator")), !made, "{problems:#?}");
    }
}

#[test]
fn new_pods_run_the_recorded_version() {
    let engine: Engine = serde_json::from_value(json!({
        "metadata": {"name": "clam", "namespace": "post"},
        "apiVersion": "sekimori.dev/v1alpha1", "kind": "Engine",
        "spec": {"class": "AntiVirus", "protocol": {"type": "Clamd"}, "runtime": {"type": "InPod", "inPod": {"versionRef": {"name": "new"}}}},
    }))
    .expect("an engine");
    let version = |name: &str, engine: &str| -> EngineVersion {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "post"},
            "apiVersion": "sekimori.dev/v1alpha1", "kind": "EngineVersion",
            "spec": {"engineRef": {"name": engine}, "version": "1", "image": format!("clam:{name}")},
        }))
        .expect("a version")
    };
    let (old, new, strange) = (version("old", "clam"), version("new", "clam"), version("strange", "other"));
    let mut fleet = fleet(&json!({"engines": [{"name": "clam"}]}));
    let cases = [
        (None, vec![&old, &new], Some("new"), ""),
        (Some("new"), vec![&old, &new], Some("new"), ""),
        (Some("old"), vec![&old, &new], Some("old"), "wants version new, and the fleet runs old"),
        (Some("old"), vec![&old], Some("old"), "wants version new, and the fleet runs old"),
        (Some("old"), vec![&new], None, "there is no EngineVersion post/old, which Engine clam runs in this fleet"),
        (Some("strange"), vec![&strange, &new], None, "EngineVersion post/strange is one of Engine `other`"),
    ];
    for (recorded, versions, runs, words) in cases {
        let engines =
            recorded.map(|version| FleetEngineStatus { name: ObjectName("clam".into()), version: Some(StatusText(version.into())), canary: None });
        fleet.status = Some(GatewayFleetStatus { engines: engines.into_iter().collect(), ..GatewayFleetStatus::default() });
        let world = World {
            engines: [("clam", &engine)].into(),
            versions: versions.iter().map(|version| (version.metadata.name.as_deref().expect("a name"), *version)).collect(),
            ..World::default()
        };
        let checked = check(&fleet, &world, &settings());
        let problems: Vec<String> = checked.problems.iter().map(ToString::to_string).collect();
        let found = checked.fleet.as_ref().and_then(|fleet| fleet.in_pod().next()).and_then(|(_, _, version)| version.metadata.name.as_deref());
        assert_eq!(found, runs, "{recorded:?}: {problems:#?}");
        assert_eq!(problems.is_empty(), words.is_empty(), "{recorded:?}: {problems:#?}");
        assert!(problems.iter().all(|problem| problem.contains(words)), "{recorded:?}: {problems:#?}");
    }
}
