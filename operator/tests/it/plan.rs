//! Whole fleets as golden files: `tests/data/plan/NAME.in.yaml` holds what is there, `NAME.out.yaml` what is wrong and what is made.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, Secret};
use sekimori_crds::v1alpha1::gateway_fleet::{FleetEngineStatus, FleetPhase, GatewayFleetStatus};
use sekimori_crds::v1alpha1::text::{Image, ObjectName, StatusText};
use sekimori_crds::v1alpha1::{Engine, EngineVersion, GatewayFleet};
use sekimori_operator::names::{self, Slot};
use sekimori_operator::plan::{self, Plan, plan};
use sekimori_operator::settings::Settings;
use sekimori_operator::status::{FleetReport, Measured, fleet_status};
use sekimori_operator::update::{Observation, Outcome, PodView, Serving, VolumeView, step};
use sekimori_operator::validate::{World, check};
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{data, fresh};

/// A change of what is there.
type Change<'a> = (&'a str, &'a dyn Fn(&mut There));

/// An installation with other names than the chart's.
fn settings() -> Settings {
    Settings {
        gateway_image: "registry.example/sekimori-mta@sha256:aaaa".to_owned(),
        idle_image: "registry.example/sekimori-idle@sha256:bbbb".to_owned(),
        stream_address: "keeper.barrier.svc:9443".to_owned(),
        audience: "keeper-config".to_owned(),
        authority_pem: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
        namespace: "barrier".to_owned(),
        pod_labels: vec![("app.kubernetes.io/name".to_owned(), "keeper".to_owned())],
        stream_port: 9444,
        bind: std::net::Ipv6Addr::UNSPECIFIED.into(),
        resize: true,
        cluster_networks: vec!["10.96.0.0/12".parse().expect("a network")],
    }
}

/// What a file says is there.
#[derive(Default)]
struct There {
    fleet: Option<GatewayFleet>,
    engines: Vec<Engine>,
    versions: Vec<EngineVersion>,
    secrets: Vec<Secret>,
}

impl There {
    fn read(text: &str) -> Self {
        let mut there = Self::default();
        for document in serde_yaml::Deserializer::from_str(text) {
            let value = Value::deserialize(document).expect("YAML");
            match value.get("kind").and_then(Value::as_str).expect("a kind") {
                "GatewayFleet" => there.fleet = Some(typed(value)),
                "Engine" => there.engines.push(typed(value)),
                "EngineVersion" => there.versions.push(typed(value)),
                "Secret" => there.secrets.push(typed(value)),
                kind => panic!("{kind} has no place here"),
            }
        }
        there
    }

    fn named(name: &str) -> Self {
        let path = data().join(format!("plan/{name}.in.yaml"));
        Self::read(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn fleet(&mut self) -> &mut GatewayFleet {
        self.fleet.as_mut().expect("a fleet")
    }

    fn world(&self) -> World<'_> {
        World {
            engines: self.engines.iter().map(|engine| (engine.metadata.name.as_deref().expect("a name"), engine)).collect(),
            versions: self.versions.iter().map(|version| (version.metadata.name.as_deref().expect("a name"), version)).collect(),
            secrets: self
                .secrets
                .iter()
                .map(|secret| {
                    (secret.metadata.name.as_deref().expect("a name"), secret.string_data.iter().flatten().map(|(key, _)| key.clone()).collect())
                })
                .collect(),
            stateful_set: None,
            csi: true,
        }
    }

    /// The plan, or what is wrong.
    fn plan(&self, settings: &Settings) -> (Vec<String>, Option<Plan>) {
        let checked = check(self.fleet.as_ref().expect("a fleet"), &self.world(), settings);
        let mut problems: Vec<String> = checked.problems.iter().map(ToString::to_string).collect();
        let Some(fleet) = checked.fleet else { return (problems, None) };
        let replicas = fleet.wanted("").replicas;
        match plan(&fleet, settings, replicas) {
            Ok(plan) => (problems, Some(plan)),
            Err(errors) => {
                problems.extend(errors.iter().map(ToString::to_string));
                (problems, None)
            }
        }
    }

    fn made(&self) -> Plan {
        let (problems, plan) = self.plan(&settings());
        plan.unwrap_or_else(|| panic!("no plan: {problems:#?}"))
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// Every object, in the order in which it is applied.
fn documents(plan: &Plan) -> Vec<Value> {
    // Without `..`: an object that is forgotten here is forgotten in the golden files.
    let Plan { authority, service_account, network_policy, headless_service, smtp_service, disruption_budget, stateful_set, pins } = plan;
    let value = |object: Result<Value, serde_json::Error>| object.expect("an object has only string keys");
    assert_eq!(
        plan::recorded_hash(&Pod { metadata: stateful_set.spec.template.metadata.clone().expect("metadata"), ..Pod::default() }),
        Some(&*pins.template_hash)
    );
    vec![
        value(serde_json::to_value(authority)),
        value(serde_json::to_value(service_account)),
        value(serde_json::to_value(network_policy)),
        value(serde_json::to_value(headless_service)),
        value(serde_json::to_value(smtp_service)),
        value(serde_json::to_value(disruption_budget)),
        value(serde_json::to_value(stateful_set)),
    ]
}

#[test]
fn golden() {
    let mut names: Vec<String> = std::fs::read_dir(data().join("plan"))
        .expect("golden files")
        .filter_map(|entry| Some(entry.expect("an entry").file_name().to_str()?.strip_suffix(".in.yaml")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 4, "the golden files are not where they are looked for: {names:?}");
    for name in names {
        let (problems, plan) = There::named(&name).plan(&settings());
        let mut text: String = problems.iter().fold(String::new(), |mut text, problem| {
            writeln!(text, "# {problem}").expect("a String takes everything");
            text
        });
        if plan.is_none() {
            text.push_str("# no plan: the pods stay as they are\n");
        }
        for mut document in plan.iter().flat_map(documents) {
            // Whether or not another crate of the build asks serde_json to keep the order of insertion.
            document.sort_all_objects();
            write!(text, "---\n{}", serde_yaml::to_string(&document).expect("YAML")).expect("a String takes everything");
        }
        fresh(&data().join(format!("plan/{name}.out.yaml")), &text);
    }
}

fn template(plan: &Plan) -> &PodTemplateSpec {
    &plan.stateful_set.spec.template
}

/// Pod Security `restricted`, as far as a template can break it, and what this project asks beyond.
#[test]
fn every_container_is_restricted() {
    for name in ["full", "minimal", "patched"] {
        let plan = There::named(name).made();
        let spec = template(&plan).spec.as_ref().expect("a pod");
        let pod = spec.security_context.as_ref().expect("a security context");
        assert_eq!((pod.run_as_non_root, pod.seccomp_profile.as_ref().map(|profile| profile.type_.as_str())), (Some(true), Some("RuntimeDefault")));
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!((spec.host_network, spec.host_pid, spec.host_ipc), (None, None, None));
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let security = container.security_context.as_ref().unwrap_or_else(|| panic!("{name}: {} has no security context", container.name));
            assert_eq!(security.allow_privilege_escalation, Some(false), "{}", container.name);
            assert_eq!(security.run_as_non_root, Some(true), "{}", container.name);
            assert_eq!(security.read_only_root_filesystem, Some(true), "{}", container.name);
            let capabilities = security.capabilities.as_ref().expect("capabilities");
            assert_eq!((capabilities.drop.as_deref(), &capabilities.add), (Some(&["ALL".to_owned()][..]), &None), "{}", container.name);
            assert!(container.ports.iter().flatten().all(|port| port.host_port.is_none()), "{}", container.name);
        }
        let kinds = spec.volumes.iter().flatten().all(|volume| {
            volume.config_map.is_some()
                || volume.empty_dir.is_some()
                || volume.persistent_volume_claim.is_some()
                || volume.projected.is_some()
                || volume.secret.is_some()
        });
        assert!(kinds, "{name}: a volume that `restricted` does not know");
    }
}

#[test]
fn only_the_gateway_has_secrets_the_spool_and_the_token() {
    let plan = There::named("full").made();
    let spec = template(&plan).spec.as_ref().expect("a pod");
    let secret: Vec<&str> = spec
        .volumes
        .iter()
        .flatten()
        .filter(|volume| volume.secret.is_some() || volume.projected.is_some())
        .map(|volume| volume.name.as_str())
        .collect();
    assert!(secret.len() >= 4, "{secret:?}");
    let mut engines = 0;
    for container in spec.containers.iter().filter(|container| container.name != names::GATEWAY_CONTAINER) {
        engines += 1;
        for mount in container.volume_mounts.iter().flatten() {
            assert!(
                !secret.contains(&mount.name.as_str()) && mount.name != names::SPOOL_VOLUME && mount.name != names::RUN_VOLUME,
                "{}: {}",
                container.name,
                mount.name
            );
            assert!(mount.sub_path.is_some() || mount.read_only == Some(true), "{} sees all of {}", container.name, mount.name);
        }
    }
    assert_eq!(engines, 4, "two engines in the pods, two slots each");
}

#[test]
fn an_engine_version_changes_no_pod_and_neither_does_an_operator_upgrade() {
    let mut there = There::named("full");
    let before = there.made();
    // The fleet as it is after the first plan: everything pinned.
    there.fleet().status = Some(GatewayFleetStatus {
        image: Some(Image(before.pins.image.clone())),
        template_version: Some(before.pins.template_version),
        engines: before
            .pins
            .engine_versions
            .iter()
            .map(|(name, version)| FleetEngineStatus { name: ObjectName(name.clone()), version: Some(StatusText(version.clone())), canary: None })
            .collect(),
        ..GatewayFleetStatus::default()
    });
    // The user wants another version: reported, and nothing else.
    let in_pod = there.engines[0].spec.runtime.as_mut().and_then(|runtime| runtime.in_pod.as_mut()).expect("in the pods");
    in_pod.version_ref.name = "clam-2".into();
    let (problems, wanted) = there.plan(&settings());
    assert_eq!(wanted.as_ref(), Some(&before));
    assert!(problems.iter().any(|problem| problem.contains("clam-2") && problem.contains("new pods run clam-1 too")), "{problems:#?}");
    // The record moves, as a rollout will do at its end: the template's images and parameters follow, the hash does not.
    there
        .fleet()
        .status
        .as_mut()
        .expect("a status")
        .engines
        .iter_mut()
        .filter(|engine| &*engine.name == "clam")
        .for_each(|engine| engine.version = Some("clam-2".into()));
    let moved = there.made();
    assert_ne!(moved.stateful_set, before.stateful_set);
    assert_eq!(moved.pins.template_hash, before.pins.template_hash);
    // A newer operator: other images of its own.
    let newer = Settings {
        gateway_image: "registry.example/sekimori-mta@sha256:cccc".into(),
        idle_image: "registry.example/sekimori-idle@sha256:dddd".into(),
        ..settings()
    };
    assert_eq!(there.plan(&newer).1.expect("a plan").pins.template_hash, before.pins.template_hash);
    let minimal = There::named("minimal");
    let old = minimal.made();
    let mut pinned = There::named("minimal");
    pinned.fleet().status =
        Some(GatewayFleetStatus { image: Some(Image(old.pins.image.clone())), template_version: Some(1), ..GatewayFleetStatus::default() });
    assert_eq!(pinned.plan(&newer).1, Some(old), "a fleet without an image of its own keeps the one it was made with");
}

/// One turn of a reconciler as it will be: everything in its order, twice.
#[test]
fn a_whole_turn_and_a_second_one_that_changes_nothing() {
    let mut there = There::named("minimal");
    let mut statuses = vec![];
    for _ in 0..2 {
        let fleet = there.fleet.clone().expect("a fleet");
        let checked = check(&fleet, &there.world(), &settings());
        let resolved = checked.fleet.expect("nothing is wrong");
        let plan = plan(&resolved, &settings(), resolved.wanted("").replicas).expect("a plan");
        let pod = PodView {
            ordinal: 0,
            uid: "1".into(),
            created_ms: 0,
            template_hash: Some(plan.pins.template_hash.clone()),
            terminating: false,
            intake_open: true,
            drain: None,
            serving: Serving::Yes,
            serving_since_ms: 0,
            report: None,
        };
        let seen = Observation {
            set_replicas: Some(1),
            pods: vec![pod],
            volumes: vec![VolumeView { ordinal: 0, bound: true, held: true, ..VolumeView::default() }],
            barred: None,
        };
        let decided = step(&resolved.wanted(&plan.pins.template_hash), &seen, 1000);
        assert_eq!((decided.actions.as_slice(), &decided.outcome, decided.again_at_ms), (&[][..], &Outcome::Done, None));
        let report = FleetReport {
            fleet: &fleet,
            problems: &checked.problems,
            pins: Some(&plan.pins),
            seen: &seen,
            step: Some(&decided),
            measured: &Measured::default(),
            troubles: &[],
        };
        let status = fleet_status(&report, 1000 * statuses.len() as u64);
        assert_eq!(status.phase, Some(FleetPhase::Serving));
        assert_eq!(status.image.as_deref(), Some(settings().gateway_image.as_str()));
        there.fleet().status = Some(status.clone());
        statuses.push(status);
    }
    assert_eq!(statuses[0], statuses[1]);
}

#[test]
fn the_largest_message_fits_a_spool_segment() {
    for (size, argument) in [("64Mi", None), ("65Mi", Some("--spool-segment=73Mi")), ("256Mi", Some("--spool-segment=264Mi"))] {
        let mut case = There::named("minimal");
        case.fleet().spec.listeners[0].limits = Some(typed(serde_json::json!({"messageSize": size})));
        let plan = case.made();
        let arguments = template(&plan).spec.as_ref().expect("a pod").containers[0].args.clone().expect("arguments");
        assert_eq!(arguments.iter().find(|argument| argument.starts_with("--spool-segment")).map(String::as_str), argument, "{size}");
    }
}

#[test]
fn what_needs_new_pods_changes_the_hash() {
    let hash = |change: &dyn Fn(&mut There)| {
        let mut there = There::named("full");
        change(&mut there);
        there.made().pins.template_hash
    };
    let before = hash(&|_| ());
    let changes: [Change<'_>; 6] = [
        ("another image", &|there| there.fleet().spec.image = Some("registry.example/sekimori-mta@sha256:9999".into())),
        ("one listener fewer", &|there| drop(there.fleet().spec.listeners.pop())),
        ("one engine fewer", &|there| drop(there.fleet().spec.engines.remove(0))),
        ("a patch", &|there| there.fleet().spec.pod_template = Some(serde_json::json!({"spec": {"priorityClassName": "mail"}}))),
        ("other resources", &|there| {
            let in_pod = there.engines[0].spec.runtime.as_mut().and_then(|runtime| runtime.in_pod.as_mut()).expect("in the pods");
            in_pod.resources = None;
        }),
        ("a larger volume", &|there| {
            there.fleet().spec.spool.as_mut().expect("a spool").storage = Some(sekimori_crds::v1alpha1::text::Quantity("60Gi".into()))
        }),
    ];
    for (what, change) in changes {
        assert_ne!(hash(change), before, "{what}");
    }
    let same: [Change<'_>; 3] = [
        ("another hostname", &|there| there.fleet().spec.hostname = "mx2.example.net".into()),
        ("another budget", &|there| there.fleet().spec.update.as_mut().expect("update").max_unavailable = Some(3)),
        ("an engine switched off", &|there| there.engines[0].spec.mode = Some(sekimori_crds::vocabulary::EngineMode::Disabled)),
    ];
    for (what, change) in same {
        assert_eq!(hash(change), before, "{what} comes by configuration");
    }
}

#[test]
fn an_idle_slot_reserves_little_where_requests_can_grow_and_everything_where_not() {
    let requests = |resize: bool, slot: Slot| {
        let plan = There::named("full").plan(&Settings { resize, ..settings() }).1.expect("a plan");
        let name = names::slot_container("clam", slot);
        let spec = template(&plan).spec.as_ref().expect("a pod");
        let container = spec.containers.iter().find(|container| container.name == name).expect("a slot");
        let resources = container.resources.clone().expect("resources");
        assert_eq!(resources.limits.expect("limits")["memory"].0, "3Gi", "both slots carry the limit");
        resources.requests.expect("requests")["memory"].0.clone()
    };
    assert_eq!((requests(true, Slot::A).as_str(), requests(true, Slot::B).as_str()), ("1400Mi", "16Mi"));
    assert_eq!((requests(false, Slot::A).as_str(), requests(false, Slot::B).as_str()), ("1400Mi", "1400Mi"));
}

/// What a patch may not do, and the words that say so.
#[test]
fn forbidden_patches() {
    let cases: &[(&str, &str)] = &[
        ("{spec: {serviceAccountName: admin}}", "spec.podTemplate.spec.serviceAccountName"),
        ("{spec: {serviceAccount: admin}}", "spec.podTemplate.spec.serviceAccount"),
        ("{spec: {serviceAccountName: null}}", "spec.podTemplate.spec.serviceAccountName"),
        ("{spec: {automountServiceAccountToken: true}}", "automountServiceAccountToken"),
        ("{spec: {hostNetwork: true}}", "spec.podTemplate.spec.hostNetwork"),
        ("{spec: {hostPID: true}}", "hostPID"),
        ("{spec: {hostAliases: [{ip: 10.0.0.1, hostnames: [a]}]}}", "hostAliases"),
        ("{spec: {securityContext: {runAsUser: 0}}}", "spec.podTemplate.spec.securityContext"),
        ("{spec: {securityContext: null}}", "spec.podTemplate.spec.securityContext"),
        ("{spec: {containers: [{name: mta, securityContext: {privileged: true}}]}}", "spec.podTemplate.spec.containers[0].securityContext"),
        ("{spec: {initContainers: [{name: x, image: y, securityContext: {runAsUser: 0}}]}}", "initContainers[0].securityContext"),
        ("{spec: {containers: [{name: mta, ports: [{containerPort: 2525, hostPort: 25}]}]}}", "hostPort"),
        ("{spec: {volumes: [{name: x, hostPath: {path: /}}]}}", "spec.podTemplate.spec.volumes[0].hostPath"),
        ("{spec: {volumes: [{name: x, projected: {sources: [{serviceAccountToken: {path: t}}]}}]}}", "serviceAccountToken"),
        ("{spec: {volumes: [{name: x, secret: {secretName: mx-cert}}]}}", "Secret mx-cert is the gateway's alone"),
        ("{spec: {volumes: [{name: x, projected: {sources: [{secret: {name: s3-keys}}]}}]}}", "Secret s3-keys is the gateway's alone"),
        (
            "{spec: {containers: [{name: engine-clam-a, envFrom: [{secretRef: {name: barrier-snapshot-key}}]}]}}",
            "Secret barrier-snapshot-key is the gateway's alone",
        ),
        ("{spec: {volumes: [{name: x, persistentVolumeClaim: {claimName: spool-barrier-gateway-1}}]}}", "names a spool"),
        ("{spec: {volumes: [{name: operator-token, emptyDir: {}}]}}", "volume `operator-token` is the operator's"),
        ("{spec: {volumes: [{name: engines, $patch: delete}]}}", "volume `engines` is the operator's"),
        ("{spec: {volumes: null}}", "volume `operator-token` is the operator's"),
        ("{spec: {containers: [{name: mta, image: evil}]}}", "set spec.image"),
        ("{spec: {containers: [{name: mta, args: [run]}]}}", "`args` of container `mta`"),
        ("{spec: {containers: [{name: mta, command: [sh]}]}}", "`command` of container `mta`"),
        (
            "{spec: {containers: [{name: mta, volumeMounts: [{mountPath: /var/lib/sekimori, name: x}]}], volumes: [{name: x, emptyDir: {}}]}}",
            "`volumeMounts` of container `mta`",
        ),
        ("{spec: {containers: [{name: mta, $patch: delete}]}}", "container `mta` is the operator's"),
        ("{spec: {containers: [{name: engine-clam-b, image: evil}]}}", "name an EngineVersion"),
        (
            "{spec: {containers: [{name: engine-clam-a, volumeMounts: [{mountPath: /spool, name: spool}]}]}}",
            "container `engine-clam-a` may not mount volume `spool`",
        ),
        (
            "{spec: {containers: [{name: x, image: y, volumeMounts: [{mountPath: /t, name: operator-token}]}]}}",
            "container `x` may not mount volume `operator-token`",
        ),
        ("{spec: {containers: [{name: engine-clam-a, env: [{name: SEKIMORI_ENGINE_SOCKET, value: /x}]}]}}", "the operator's own variables"),
        ("{spec: {containers: [{image: y}]}}", "has no `name`"),
        ("{spec: {containers: [{$patch: replace}]}}", "has no `name`"),
        ("{spec: {$patch: replace}}", "spec.podTemplate.spec.$patch"),
        ("{spec: {'$retainKeys': [a]}}", "$retainKeys"),
        ("{spec: null}", "may not be taken away"),
        ("{metadata: null}", "may not be taken away"),
        ("{metadata: {labels: {sekimori.dev/intake: closed}}}", "`sekimori.dev/intake` is the operator's"),
        ("{metadata: {labels: {sekimori.dev/intake: null}}}", "`sekimori.dev/intake` is the operator's"),
        ("{metadata: {labels: {app.kubernetes.io/name: other}}}", "`app.kubernetes.io/name` is the operator's"),
        ("{metadata: {annotations: {sekimori.dev/template-hash: '0'}}}", "in the operator's own domain"),
        ("{metadata: {finalizers: [x]}}", "only labels and annotations"),
        ("{spec: {shareProcessNamespace: true}}", "shareProcessNamespace"),
        ("{spec: {restartPolicy: Never}}", "restartPolicy"),
        ("{spec: {priorityClas: x}}", "spec.podTemplate.spec.priorityClas: is no field of a pod template"),
        ("{spec: {containers: [{name: mta, livenessProb: {}}]}}", "is no field of a pod template"),
        ("{spec: {priorityClassName: [a]}}", "makes no pod template"),
        ("{spec: {containers: x}}", "makes no pod template"),
    ];
    for (patch, words) in cases {
        let mut there = There::named("full");
        there.fleet().spec.pod_template = Some(serde_yaml::from_str(patch).expect(patch));
        let (problems, plan) = there.plan(&settings());
        assert!(plan.is_none(), "{patch} was taken");
        assert!(problems.iter().any(|problem| problem.contains("spec.podTemplate") && problem.contains(words)), "{patch}: {problems:#?}");
    }
}

#[test]
fn long_names_keep_every_bound() {
    let mut there = There::named("full");
    let long = format!("fleet.{}", "x".repeat(240));
    there.fleet().metadata.name = Some(long);
    let engine = format!("engine.{}", "y".repeat(240));
    there.engines[0].metadata.name = Some(engine.clone());
    there.fleet().spec.engines[0].name = ObjectName(engine.clone());
    for version in &mut there.versions {
        if &*version.spec.engine_ref.name == "clam" {
            version.spec.engine_ref.name = ObjectName(engine.clone());
        }
    }
    let plan = there.made();
    let spec = template(&plan).spec.as_ref().expect("a pod");
    let mut seen: BTreeMap<&str, ()> = BTreeMap::new();
    for container in &spec.containers {
        assert!(container.name.len() <= 63 && !container.name.contains('.'), "{}", container.name);
        assert!(seen.insert(&container.name, ()).is_none(), "{} is there twice", container.name);
    }
    assert!(plan.stateful_set.metadata.name.as_ref().is_some_and(|name| name.len() <= 52));
    assert!(names::slot_socket(&engine, Slot::B).len() <= 107);
    for (key, value) in plan.stateful_set.metadata.labels.iter().flatten() {
        assert!(value.len() <= 63, "{key}: {value}");
    }
}
