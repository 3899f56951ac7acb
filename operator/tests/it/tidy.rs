//! The layout as a test: `io/` touches the world, everything else is pure; functions fit a screen, files a reader.

use std::path::{Path, PathBuf};

/// Words that only `src/io/`, `src/main.rs` and tests may say, and what to do instead.
const WORLDLY: &[(&str, &str)] = &[
    ("tokio::", "take data and `now_ms`, return data; the caller under io/ awaits"),
    ("std::fs", "read under io/, pass the bytes"),
    ("std::net::Tcp", "connect under io/"),
    ("std::net::Udp", "connect under io/"),
    ("std::os::unix::net", "connect under io/"),
    ("std::time::Instant", "pass `now_ms`"),
    ("std::time::SystemTime", "pass `now_ms`"),
    ("std::thread", "spawn under io/"),
    ("std::env", "read under io/, pass the value"),
    ("getrandom", "pass the random number"),
    ("kube::Client", "ask the cluster under io/"),
    ("kube::Api", "ask the cluster under io/"),
    ("crate::io", "io imports the pure code, never the other way round"),
];

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 100;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a source directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn files() -> Vec<(String, String)> {
    let root = Path::new("src");
    let mut found = vec![];
    sources(root, &mut found);
    found.sort();
    assert!(found.len() > 15, "the walk found only {} files: it is looking in the wrong place", found.len());
    found
        .into_iter()
        .map(|path| (path.strip_prefix(root).expect("below the root").display().to_string(), std::fs::read_to_string(&path).expect("readable")))
        .collect()
}

/// The part of a file before its unit tests, and without comment lines.
fn production(text: &str) -> Vec<&str> {
    text.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]")).filter(|line| !line.trim_start().starts_with("//")).collect()
}

#[test]
fn only_io_touches_the_world() {
    let mut wrong = vec![];
    for (name, text) in files() {
        if name.starts_with("io/") || name == "main.rs" || name.ends_with("tests.rs") {
            continue;
        }
        for (number, line) in production(&text).iter().enumerate() {
            for (word, instead) in WORLDLY {
                if line.contains(word) {
                    wrong.push(format!("{name} (line {} without comments) says {word}: {instead}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Modules know each other in one direction only: `plan` never decides when a pod goes, and `update` never makes one.
#[test]
fn decisions_keep_apart() {
    const NEVER: &[(&str, &[&str])] = &[
        ("names.rs", &["crate::"]),
        ("settings.rs", &["crate::"]),
        ("update.rs", &["crate::plan::", "crate::validate", "crate::fleet", "crate::status", "k8s_openapi"]),
        ("ownership", &["crate::", "k8s_openapi"]),
        ("plan/", &["crate::update", "crate::validate", "crate::status", "crate::ownership"]),
        ("validate/", &["crate::plan", "crate::update", "crate::status", "crate::ownership"]),
    ];
    let files = files();
    for (place, words) in NEVER {
        let mut found = false;
        for (name, text) in files.iter().filter(|(name, _)| name.starts_with(place) && !name.ends_with("tests.rs")) {
            found = true;
            for line in production(text) {
                for word in *words {
                    assert!(!line.contains(word), "{name} may not know {word}: {line}");
                }
            }
        }
        assert!(found, "there is no {place}: the rule looks at nothing");
    }
}

#[test]
fn files_and_functions_fit() {
    let mut wrong = vec![];
    for (name, text) in files() {
        let lines: Vec<&str> = text.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]")).collect();
        if lines.len() > FILE_LINES_MAX && !name.ends_with("tests.rs") {
            wrong.push(format!("{name}: {} lines, at most {FILE_LINES_MAX}", lines.len()));
        }
        let mut open: Option<(usize, usize, &str)> = None;
        for (number, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let word = line
                .trim_start()
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ")
                .trim_start_matches("const ")
                .trim_start_matches("async ");
            if word.starts_with("fn ") {
                open = Some((number, indent, line.trim()));
            } else if let Some((start, at, head)) = open
                && indent == at
                && line.trim() == "}"
            {
                if number - start > FUNCTION_LINES_MAX {
                    wrong.push(format!("{name}:{}: {} lines, at most {FUNCTION_LINES_MAX}: {head}", start + 1, number - start));
                }
                open = None;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
