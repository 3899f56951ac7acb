//! Values: explained, and a wrong one is refused with words that name it.

use serde_json::Value;

use crate::helm::{helm, refused, root};

#[test]
fn lint_finds_nothing() {
    for (chart, sets) in [
        ("helm/sekimori", ""),
        ("helm/sekimori", "quickstart.enabled=true,monitoring.enabled=true"),
        ("helm/sekimori", "certificates.mode=CertManager,rbac.namespaces={a,b}"),
        ("helm/sekimori-crds", ""),
    ] {
        let output = helm(&["lint", "--strict", "--kube-version", "1.33.0", chart, "--set", sets]);
        assert!(output.status.success(), "{chart} {sets}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_wrong_value_is_refused_by_name() {
    for (set, words) in [
        ("operator.replica=3", &["/operator", "replica", "not allowed"][..]),
        ("quickstart.enabledd=true", &["/quickstart", "enabledd"]),
        ("operator.replicas=many", &["/operator/replicas", "integer"]),
        ("operator.replicas=50", &["/operator/replicas", "5"]),
        ("certificates.mode=Manual", &["/certificates/mode", "SelfMade", "CertManager"]),
        ("certificates.rotate=-1", &["/certificates/rotate"]),
        ("images.operator.digest=latest", &["/images/operator/digest"]),
        ("clusterNetworks={ten}", &["/clusterNetworks/0"]),
        ("rbac.namespaces={Mail}", &["/rbac/namespaces/0"]),
        ("tests.gateway=inbound", &["/tests/gateway"]),
        ("installationId=a b", &["/installationId"]),
        ("admissionPolicies.actions={Allow}", &["/admissionPolicies/actions/0", "Deny"]),
        ("quickstart.enabled=true,rbac.namespaces={mail}", &["rbac.namespaces", "add it there"]),
        ("serviceAccount.create=false", &["serviceAccount.name"]),
    ] {
        let said = refused(&[set]);
        for word in words {
            assert!(said.contains(word), "{set}: `{word}` is not in: {said}");
        }
    }
}

#[test]
fn too_old_a_kubernetes_is_refused() {
    let output = helm(&["template", "sekimori", "helm/sekimori", "--kube-version", "1.32.0"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("1.33"));
}

/// Names of all values below a schema, and whether each is explained and closed.
fn walk(schema: &Value, path: &str, names: &mut Vec<String>, wrong: &mut Vec<String>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
        wrong.push(format!("{path}: takes any name"));
    }
    for (name, property) in properties {
        let path = format!("{path}.{name}");
        let description = property.get("description").and_then(Value::as_str).unwrap_or_default();
        if !description.ends_with('.') {
            wrong.push(format!("{path}: not explained in whole sentences: {description:?}"));
        }
        if property.get("properties").is_none() && name != "global" {
            names.push(path.trim_start_matches('.').to_owned());
        }
        walk(property, &path, names, wrong);
    }
}

#[test]
fn every_value_is_explained_has_a_default_and_stands_in_the_readme() {
    let read = |path: &str| std::fs::read_to_string(root().join("helm/sekimori").join(path)).expect(path);
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let defaults: serde_yaml::Value = serde_yaml::from_str(&read("values.yaml")).expect("YAML");
    let readme = read("README.md");
    let (mut names, mut wrong) = (vec![], vec![]);
    walk(&schema, "", &mut names, &mut wrong);
    assert!(names.len() > 50, "{}", names.len());
    for name in names {
        if name.split('.').try_fold(&defaults, |value, key| value.get(key)).is_none() {
            wrong.push(format!("{name}: no default in values.yaml"));
        }
        if !readme.contains(&format!("`{name}`")) {
            wrong.push(format!("{name}: not in README.md"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
