//! The support bundle: which files, and what stands in them.

use serde_json::Value;

use super::redact;

/// Most objects of one kind in the bundle.
pub const OBJECTS_MAX: usize = 5000;
/// Most pods whose logs are in the bundle.
pub const LOGGED_PODS_MAX: usize = 50;
/// Most bytes of one log.
pub const LOG_BYTES_MAX: i64 = 4 << 20;

/// One file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Path below the bundle's directory.
    pub path: String,
    /// Content.
    pub content: Vec<u8>,
}

impl File {
    /// A file.
    pub fn new(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content: content.into() }
    }
}

/// Objects of one kind as YAML documents, without secrets; how many were left out is said.
pub fn objects_file(path: &str, objects: Vec<Value>, cut: bool) -> File {
    let mut text = String::new();
    if cut {
        text.push_str(&format!("# only the first {OBJECTS_MAX} of them\n"));
    }
    for mut object in objects {
        if redact::object(&mut object) {
            object.sort_all_objects();
            text.push_str("---\n");
            text.push_str(&serde_yaml::to_string(&object).unwrap_or_else(|error| format!("# this object is no YAML: {error}\n")));
        }
    }
    File::new(path, text)
}

/// A log, without what looks like a secret.
pub fn log_file(path: String, log: &str) -> File {
    File::new(path, redact::text(log))
}

/// Conditions of every object that has some, one line each: what a reader looks for first.
pub fn conditions(objects: &[Value]) -> String {
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut lines = vec![];
    for object in objects {
        let metadata = object.get("metadata").cloned().unwrap_or_default();
        let generation = metadata.get("generation").and_then(Value::as_i64);
        for condition in object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten() {
            let observed = condition.get("observedGeneration").and_then(Value::as_i64);
            let stale = if observed.zip(generation).is_some_and(|(observed, generation)| observed < generation) { " (stale)" } else { "" };
            lines.push(format!(
                "{} {}/{} {}={}{stale} {} since {}: {}\n",
                text(object, "kind"),
                text(&metadata, "namespace"),
                text(&metadata, "name"),
                text(condition, "type"),
                text(condition, "status"),
                text(condition, "reason"),
                text(condition, "lastTransitionTime"),
                redact::text(&text(condition, "message")),
            ));
        }
    }
    lines.concat()
}

/// The first page of the bundle.
pub fn index(files: &[File], problems: &[String]) -> File {
    let mut text = "Support bundle of Sekimori.\n\nSecrets were not read. What looked like a secret elsewhere is replaced by REDACTED: environment variables, engine parameters, foreign\n\
                    annotations, credentials in URLs, tokens, private keys. Domains, tenants' names and mail addresses in logs are in here: look before you send it on.\n\nFiles:\n"
        .to_owned();
    for file in files {
        text.push_str(&format!("  {:>10}  {}\n", file.content.len(), file.path));
    }
    text.push_str(if problems.is_empty() { "\nEverything could be read.\n" } else { "\nWhat could not be read:\n" });
    for problem in problems {
        text.push_str(&format!("  {}\n", redact::text(problem)));
    }
    File::new("README.txt", text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_clean_documents() {
        let objects = vec![
            json!({ "kind": "Secret", "data": { "x": "hunter2" } }),
            json!({ "kind": "ConfigMap", "data": { "password": "hunter2", "a": "b" } }),
        ];
        let file = objects_file("x.yaml", objects, true);
        assert_eq!(
            String::from_utf8_lossy(&file.content),
            "# only the first 5000 of them\n---\ndata:\n  a: b\n  password: REDACTED\nkind: ConfigMap\n"
        );
    }

    #[test]
    fn conditions_are_lines() {
        let object = json!({ "kind": "Engine", "metadata": { "namespace": "mail", "name": "clamav", "generation": 3 }, "status": { "conditions": [
            { "type": "Ready", "status": "False", "reason": "X", "message": "no https://u:hunter2@h/", "observedGeneration": 2, "lastTransitionTime": "T" }] } });
        assert_eq!(conditions(&[object, json!({})]), "Engine mail/clamav Ready=False (stale) X since T: no https://REDACTED@h/\n");
    }

    #[test]
    fn the_index_names_files_and_gaps() {
        let text = String::from_utf8(index(&[File::new("a.yaml", "12345")], &["events: forbidden".to_owned()]).content).expect("text");
        assert!(text.contains("         5  a.yaml\n") && text.contains("What could not be read:\n  events: forbidden\n"), "{text}");
    }
}
