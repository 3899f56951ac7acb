//! Runs helm, reads what it renders.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize as _;
use serde_yaml::Value;

pub(crate) use sekimori_e2e::checkout as root;

/// Where helm is. A test without it fails: a chart that nobody rendered is not tested.
fn binary() -> PathBuf {
    if let Some(said) = std::env::var_os("SEKIMORI_HELM") {
        return said.into();
    }
    let cache = std::env::home_dir().map(|home| home.join(".cache/sekimori/cluster-bin"));
    let beside = |directory: &Path| Some(directory.join("helm")).filter(|helm| helm.is_file());
    let versions = |cache: &Path| {
        let mut directories: Vec<PathBuf> = std::fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path()).collect();
        directories.sort();
        directories.iter().rev().find_map(|directory| beside(directory))
    };
    let cached = cache.as_deref().and_then(|cache| versions(cache).or_else(|| beside(cache)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    cached
        .or_else(|| std::env::split_paths(&path).find_map(|directory| beside(&directory)))
        .expect("no helm: `make cluster` builds one into ~/.cache/sekimori/cluster-bin; or say where it is in SEKIMORI_HELM, or put it into PATH")
}

pub(crate) fn helm(arguments: &[&str]) -> Output {
    // No cluster of whoever runs the tests is ever asked.
    Command::new(binary()).args(arguments).current_dir(root()).env("KUBECONFIG", "/nonexistent").output().expect("helm starts")
}

fn template(sets: &[&str]) -> Output {
    let mut arguments = vec!["template", "sekimori", "helm/sekimori", "--namespace", "sekimori"];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    helm(&arguments)
}

/// What the chart makes with these values.
pub(crate) fn render(sets: &[&str]) -> Vec<Value> {
    let output = template(sets);
    assert!(output.status.success(), "{sets:?}: {}", String::from_utf8_lossy(&output.stderr));
    documents(&String::from_utf8(output.stdout).expect("UTF-8"))
}

/// What helm says to these values, which it must refuse.
pub(crate) fn refused(sets: &[&str]) -> String {
    let output = template(sets);
    assert!(!output.status.success(), "{sets:?} is accepted");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn documents(text: &str) -> Vec<Value> {
    let read = serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).expect("YAML"));
    read.filter(|value| !value.is_null()).collect()
}

/// The value at a path such as `spec/template/spec`; null if there is none.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    const NOTHING: &Value = &Value::Null;
    path.split('/').fold(value, |value, key| match key.parse::<usize>() {
        Ok(index) if value.is_sequence() => value.get(index).unwrap_or(NOTHING),
        _ => value.get(key).unwrap_or(NOTHING),
    })
}

pub(crate) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

pub(crate) fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_sequence().map_or(&[], Vec::as_slice)
}

pub(crate) fn strings<'a>(value: &'a Value, path: &str) -> Vec<&'a str> {
    list(value, path).iter().filter_map(Value::as_str).collect()
}

pub(crate) fn kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| text(object, "kind") == kind).collect()
}

/// The one object of this kind and name.
pub(crate) fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let all: Vec<_> = objects.iter().filter(|object| text(object, "kind") == kind && text(object, "metadata/name") == name).collect();
    assert_eq!(all.len(), 1, "objects {kind}/{name}");
    all.first().expect("one, as just seen")
}

/// The pod of everything that makes pods: name, metadata and spec.
pub(crate) fn pods(objects: &[Value]) -> Vec<(String, &Value)> {
    let of = |object| match text(object, "kind") {
        "Pod" => Some(at(object, "spec")),
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => Some(at(object, "spec/template/spec")),
        "CronJob" => Some(at(object, "spec/jobTemplate/spec/template/spec")),
        _ => None,
    };
    objects.iter().filter_map(|object| Some((format!("{}/{}", text(object, "kind"), text(object, "metadata/name")), of(object)?))).collect()
}

/// Everything that the chart can make, in both modes of certificates.
pub(crate) const EVERYTHING: &[&str] = &["quickstart.enabled=true", "monitoring.enabled=true"];
