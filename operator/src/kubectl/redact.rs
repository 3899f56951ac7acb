//! What must not be in a support bundle. Secrets are never read; this takes out what people put elsewhere: environment variables, parameters, annotations,
//! URLs with credentials, tokens and keys in logs.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::{Map, Value};

/// What stands in place of a secret.
pub const REDACTED: &str = "REDACTED";

/// Annotations whose values are our own or a tool's, and no secret; others keep their key alone.
const KNOWN_ANNOTATIONS: &[&str] = &[
    "sekimori.dev/",
    "helm.sh/",
    "meta.helm.sh/",
    "app.kubernetes.io/",
    "deployment.kubernetes.io/",
    "kubectl.kubernetes.io/restartedAt",
    "checksum/",
];
/// The annotation in which `kubectl apply` repeats the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The part of a key that holds an engine's parameters.
const PARAMETERS: &str = ".parameters.sekimori.dev/";
/// Words in a key whose value is a secret.
const SECRET_WORDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "token",
    "credential",
    "privatekey",
    "private_key",
    "apikey",
    "api_key",
    "accesskey",
    "licencekey",
    "licensekey",
];
/// Keys that end so name a secret and do not hold it.
const REFERENCES: &[&str] = &["name", "names", "ref", "refs", "path", "seconds", "audience", "file", "type", "kind"];
/// Deeper values are cut off.
const DEPTH_MAX: usize = 64;

/// Takes everything secret out of an object. False: it must not be in the bundle at all.
pub fn object(value: &mut Value) -> bool {
    if value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind == "Secret" || kind == "SecretList") {
        return false;
    }
    clean(value, 0);
    true
}

fn clean(value: &mut Value, depth: usize) {
    if depth > DEPTH_MAX {
        *value = Value::String("(too deep)".to_owned());
        return;
    }
    match value {
        Value::String(said) => *said = text(said),
        Value::Array(list) => {
            list.retain(|entry| entry.get("kind").and_then(Value::as_str) != Some("Secret"));
            list.iter_mut().for_each(|entry| clean(entry, depth + 1));
        }
        Value::Object(map) => clean_map(map, depth),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn clean_map(map: &mut Map<String, Value>, depth: usize) {
    map.remove("managedFields");
    for (key, value) in map.iter_mut() {
        match (key.as_str(), &mut *value) {
            ("annotations", Value::Object(annotations)) => clean_annotations(annotations),
            ("parameters", Value::Object(parameters)) => parameters.values_mut().for_each(hide),
            ("env", Value::Array(variables)) => variables.iter_mut().for_each(|variable| clean_variable(variable, depth + 1)),
            (key, Value::String(_)) if is_secret(key) => hide(value),
            _ => clean(value, depth + 1),
        }
    }
}

fn hide(value: &mut Value) {
    *value = Value::String(REDACTED.to_owned());
}

/// A variable's own value goes; where it comes from stays.
fn clean_variable(variable: &mut Value, depth: usize) {
    if let Some(value) = variable.get_mut("value") {
        hide(value);
    }
    clean(variable, depth);
}

fn clean_annotations(annotations: &mut Map<String, Value>) {
    annotations.remove(LAST_APPLIED);
    for (key, value) in annotations.iter_mut() {
        let known = KNOWN_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)) && !key.contains(PARAMETERS) && !is_secret(key);
        match value {
            Value::String(said) if known => *said = text(said),
            other => hide(other),
        }
    }
}

/// Whether the value of such a key is a secret.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let names_it = REFERENCES.iter().any(|end| key.ends_with(end));
    !names_it && (SECRET_WORDS.iter().any(|word| key.contains(word)) || key.ends_with("secret"))
}

/// A pattern of our own.
fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of our own, which a test compiles")
}

static PRIVATE_KEY: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)"));
static USER_IN_URL: LazyLock<Regex> = LazyLock::new(|| pattern(r#"([A-Za-z][A-Za-z0-9+.\-]*://)[^/\s"'?#<>]+@"#));
static AUTHORIZATION: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b((?i-u:bearer|basic))\s+[A-Za-z0-9._~+/=\-]{8,}"));
static JSON_WEB_TOKEN: LazyLock<Regex> = LazyLock::new(|| pattern(r"\beyJ[A-Za-z0-9_\-]{5,}\.[A-Za-z0-9_\-]{5,}(?:\.[A-Za-z0-9_\-]*)?"));
static ACCESS_KEY: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"));
static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r#"([A-Za-z0-9_.\-]*(?i-u:password|passwd|passphrase|secret|token|api[_\-]?key|access[_\-]?key|private[_\-]?key|credential|signature)[A-Za-z0-9_.\-]*)(\\?["']?\s*[=:]\s*\\?["']?)([^\s"',;&}\\]+)"#,
    )
});

/// Text (of a log, a message, a value) without what looks like a secret.
pub fn text(said: &str) -> String {
    let said = PRIVATE_KEY.replace_all(said, REDACTED);
    let said = USER_IN_URL.replace_all(&said, format!("${{1}}{REDACTED}@"));
    let said = AUTHORIZATION.replace_all(&said, format!("${{1}} {REDACTED}"));
    let said = JSON_WEB_TOKEN.replace_all(&said, REDACTED);
    let said = ACCESS_KEY.replace_all(&said, REDACTED);
    let assigned = ASSIGNMENT.replace_all(&said, |found: &Captures<'_>| {
        let part = |index: usize| found.get(index).map_or("", |part| part.as_str());
        let key = part(1).to_ascii_lowercase();
        // `spec.tls.secretRef: Secret x is missing` names one; so does `secretName=x`.
        let value = if REFERENCES.iter().any(|end| key.ends_with(end)) { part(3) } else { REDACTED };
        format!("{}{}{value}", part(1), part(2))
    });
    assigned.into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Every planted secret contains this word.
    const PLANTED: &str = "hunter2";

    #[test]
    fn planted_secrets_are_gone_from_objects() {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "inbound-gateway-0",
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{\"password\":\"hunter2\"}",
                    "example.net/webhook": "hunter2",
                    "sekimori.dev/template-hash": "abc",
                    "engine-clamav-a.parameters.sekimori.dev/LICENCE": "hunter2",
                    "sekimori.dev/api-token": "hunter2",
                },
                "managedFields": [{ "manager": "hunter2" }],
            },
            "spec": {
                "containers": [{
                    "name": "mta",
                    "args": ["run", "--store-password=hunter2", "--proxy=http://user:hunter2@proxy:3128/x"],
                    "env": [
                        { "name": "PLAIN", "value": "hunter2" },
                        { "name": "FROM", "valueFrom": { "secretKeyRef": { "name": "store", "key": "secretAccessKey" } } },
                    ],
                }],
                "volumes": [{ "name": "tls", "secret": { "secretName": "mail-tls" } }],
                "automountServiceAccountToken": false,
                "parameters": { "ANY": "hunter2" },
                "clientSecret": "hunter2",
            },
        });
        assert!(object(&mut pod));
        let said = pod.to_string();
        assert!(!said.contains(PLANTED), "{said}");
        for kept in [
            "mail-tls",
            "secretKeyRef",
            "\"key\":\"secretAccessKey\"",
            "\"sekimori.dev/template-hash\":\"abc\"",
            "proxy:3128/x",
            "\"FROM\"",
            "automountServiceAccountToken\":false",
        ] {
            assert!(said.contains(kept), "{kept} should have stayed in {said}");
        }
    }

    #[test]
    fn secrets_are_no_part_of_it_wherever_they_stand() {
        assert!(!object(&mut json!({ "kind": "Secret", "data": { "a": "aHVudGVyMg==" } })));
        let mut list = json!({ "kind": "List", "items": [{ "kind": "Secret", "data": { "a": "hunter2" } }, { "kind": "ConfigMap" }] });
        assert!(object(&mut list));
        assert_eq!(list, json!({ "kind": "List", "items": [{ "kind": "ConfigMap" }] }));
    }

    #[test]
    fn planted_secrets_are_gone_from_text() {
        for said in [
            "connect to s3://key:hunter2@bucket.example/mail failed",
            "GET https://store.example/x?X-Amz-Signature=hunter2&y=1",
            "Authorization: Bearer hunter2hunter2",
            "authorization: basic dXNlcjpodW50ZXIyhunter2",
            "token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.hunter2",
            "{\"level\":\"INFO\",\"password\":\"hunter2\",\"n\":1}",
            "{\"line\":\"{\\\"api_key\\\":\\\"hunter2\\\"}\"}",
            "PASSWORD=hunter2 started",
            "passphrase: hunter2",
            "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----\n",
            "-----BEGIN PRIVATE KEY-----\nhunter2 and cut off",
        ] {
            let clean = text(said);
            assert!(!clean.contains(PLANTED) && clean.contains(REDACTED), "{said} became {clean}");
        }
        let clean = text("a\n-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\nb\nAKIAIOSFODNN7EXAMPLE");
        assert_eq!(clean, "a\nREDACTED\nb\nREDACTED");
    }

    #[test]
    fn what_names_a_secret_and_what_is_none_stay() {
        for said in [
            "spec.listeners[0].tls.secretRef: Secret mail-tls is missing: make it",
            "secretName: mail-tls",
            "{\"event\":\"accepted\",\"sender\":\"a@example.com\",\"reply\":\"250 2.0.0 01K0000000000000000000000A\"}",
            "https://www.example.org/path?x=1",
            "550 5.7.1 see https://example.org/why",
        ] {
            assert_eq!(text(said), said);
        }
    }
}
