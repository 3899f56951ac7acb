//! Every pod keeps to Pod Security `restricted`; every image comes from the values; the operator is told what it must be told.

use serde_yaml::Value;

use crate::helm::{EVERYTHING, at, documents, kind, list, object, pods, render, root, strings, text};

/// What is wrong with a pod, by the rules of `restricted` and ours.
fn violations(pod: &Value) -> Vec<String> {
    let mut wrong = vec![];
    let mut must = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    must(at(pod, "securityContext/runAsNonRoot").as_bool() == Some(true), "runAsNonRoot".into());
    must(at(pod, "securityContext/runAsUser").as_u64() == Some(65532), "runAsUser".into());
    must(text(pod, "securityContext/seccompProfile/type") == "RuntimeDefault", "seccomp".into());
    for host in ["hostNetwork", "hostPID", "hostIPC"] {
        must(at(pod, host).is_null(), host.into());
    }
    for volume in list(pod, "volumes") {
        must(at(volume, "hostPath").is_null(), "hostPath".into());
    }
    for container in list(pod, "containers").iter().chain(list(pod, "initContainers")) {
        let name = text(container, "name");
        must(at(container, "securityContext/allowPrivilegeEscalation").as_bool() == Some(false), format!("{name}: allowPrivilegeEscalation"));
        must(at(container, "securityContext/readOnlyRootFilesystem").as_bool() == Some(true), format!("{name}: readOnlyRootFilesystem"));
        must(strings(container, "securityContext/capabilities/drop") == ["ALL"], format!("{name}: capabilities"));
        must(at(container, "securityContext/capabilities/add").is_null(), format!("{name}: capabilities added"));
        must(at(container, "securityContext/privileged").is_null(), format!("{name}: privileged"));
        must(!at(container, "resources/limits/memory").is_null(), format!("{name}: no memory limit"));
        must(!at(container, "resources/requests/memory").is_null(), format!("{name}: no memory request"));
        must(list(container, "ports").iter().all(|port| at(port, "hostPort").is_null()), format!("{name}: hostPort"));
    }
    wrong
}

#[test]
fn every_pod_is_restricted() {
    let objects = render(EVERYTHING);
    let all = pods(&objects);
    assert_eq!(all.len(), 3, "operator, sink, test");
    for (name, pod) in all {
        assert_eq!(violations(pod), Vec::<String>::new(), "{name}");
        let token = if name == "Deployment/sekimori-operator" { None } else { Some(false) };
        assert_eq!(at(pod, "automountServiceAccountToken").as_bool(), token, "{name}");
    }
    let mirror = std::fs::read_to_string(root().join("manifests/engines/mirror.yaml")).expect("the mirror");
    for (name, pod) in pods(&documents(&mirror)) {
        assert_eq!(violations(pod), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn every_image_comes_from_the_values() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let sets: Vec<String> = ["operator", "gateway", "idle", "tools"].iter().map(|image| format!("images.{image}.digest={digest}")).collect();
    let mut sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    sets.extend(EVERYTHING);
    sets.extend(["image.registry=r.example/x/", "image.pullPolicy=Never", "image.pullSecrets={one}"]);
    let objects = render(&sets);
    for (name, pod) in pods(&objects) {
        assert_eq!(text(pod, "imagePullSecrets/0/name"), "one", "{name}");
        for container in list(pod, "containers") {
            let image = text(container, "image");
            assert!(image.starts_with("r.example/x/sekimori-") && image.ends_with(&digest), "{name}: {image}");
            assert_eq!(text(container, "imagePullPolicy"), "Never", "{name}");
        }
    }
    let tagged = render(&["images.gateway.tag=v2", "image.registry="]);
    let arguments = arguments(&tagged);
    assert!(arguments.contains(&"--gateway-image=sekimori-mta:v2".to_owned()), "{arguments:?}");
}

fn arguments(objects: &[Value]) -> Vec<String> {
    let operator = object(objects, "Deployment", "sekimori-operator");
    strings(operator, "spec/template/spec/containers/0/args").into_iter().map(str::to_owned).collect()
}

#[test]
fn what_the_operator_is_told() {
    let said = arguments(&render(&["clusterNetworks={10.0.0.0/8,fd00::/8}", "installationId=one", "inPlaceResize=false"]));
    assert_eq!(
        said,
        [
            "run",
            "--namespace=$(POD_NAMESPACE)",
            "--pod=$(POD_NAME)",
            "--lease=sekimori-operator",
            "--listen=[::]:8443",
            "--admin=[::]:8080",
            "--tls=/etc/sekimori/tls",
            "--stream-address=sekimori-operator.sekimori.svc:8443",
            "--audience=sekimori",
            "--gateway-image=registry.example/sekimori-mta:0.1.0",
            "--idle-image=registry.example/sekimori-slot-idle:0.1.0",
            "--installation-id=one",
            "--cluster-networks=10.0.0.0/8,fd00::/8",
            "--log=json",
        ]
    );
    let four = arguments(&render(&["bindAddress=0.0.0.0"]));
    for argument in ["--listen=0.0.0.0:8443", "--admin=0.0.0.0:8080", "--bind=0.0.0.0", "--resize"] {
        assert!(four.contains(&argument.to_owned()), "{argument}: {four:?}");
    }
}

#[test]
fn the_service_leads_to_the_leader_alone_and_selectors_match_the_pods() {
    let objects = render(EVERYTHING);
    let service = object(&objects, "Service", "sekimori-operator");
    let operator = object(&objects, "Deployment", "sekimori-operator");
    let labels = at(operator, "spec/template/metadata/labels");
    let selector = at(service, "spec/selector").as_mapping().expect("a selector");
    for (key, value) in selector {
        if key.as_str() == Some("sekimori.dev/leader") {
            assert_eq!(value.as_str(), Some("true"), "text, not a boolean");
            assert!(labels.get("sekimori.dev/leader").is_none(), "the operator sets it, not the template");
        } else {
            assert_eq!(labels.get(key), Some(value), "{key:?}");
        }
    }
    assert!(selector.len() == 3 && at(service, "spec/publishNotReadyAddresses").as_bool() == Some(false));
    assert_eq!(at(operator, "spec/replicas").as_u64(), Some(2));
    for budget in kind(&objects, "PodDisruptionBudget") {
        assert_eq!(text(budget, "spec/unhealthyPodEvictionPolicy"), "AlwaysAllow");
    }
    assert!(kind(&render(&["operator.replicas=1"]), "PodDisruptionBudget").is_empty(), "a budget for one pod blocks every drain");
}

#[test]
fn the_installation_id_is_kept_and_does_not_change_from_one_rendering_to_the_next() {
    let id = |sets: &[&str]| text(object(&render(sets), "ConfigMap", "sekimori-installation"), "data/id").to_owned();
    assert_eq!(id(&[]), id(&[]));
    assert!(!id(&[]).is_empty());
    assert_eq!(id(&["installationId=from-a-backup"]), "from-a-backup");
    let objects = render(&[]);
    let annotations = at(object(&objects, "ConfigMap", "sekimori-installation"), "metadata/annotations");
    assert_eq!(annotations.get("helm.sh/resource-policy").and_then(Value::as_str), Some("keep"));
}

#[test]
fn admission_names_the_operators_account_and_denies() {
    let objects = render(&["serviceAccount.name=keeper"]);
    let policies = kind(&objects, "ValidatingAdmissionPolicy");
    assert_eq!(policies.len(), 2);
    for policy in &policies {
        // The one that looks at every StatefulSet of the cluster must not stop somebody else's by a mistake of its own.
        let failing = if text(policy, "metadata/name").ends_with("-scale") { "Ignore" } else { "Fail" };
        assert_eq!(text(policy, "spec/failurePolicy"), failing);
        // An ordinary request has no `subResource` at all: reading it unasked is an error, and once was a denial of every update.
        let expressions = format!("{:?}", policy.get("spec"));
        assert_eq!(expressions.matches("request.subResource ").count(), expressions.matches("has(request.subResource)").count());
        let binding = object(&objects, "ValidatingAdmissionPolicyBinding", text(policy, "metadata/name"));
        assert_eq!(strings(binding, "spec/validationActions"), ["Deny"]);
        assert_eq!(text(binding, "spec/policyName"), text(policy, "metadata/name"));
    }
    let scale = object(&objects, "ValidatingAdmissionPolicy", "sekimori-operator-sekimori-scale");
    assert!(format!("{scale:?}").contains("system:serviceaccount:sekimori:keeper"));
    assert!(kind(&render(&["admissionPolicies.enabled=false"]), "ValidatingAdmissionPolicy").is_empty());
}
