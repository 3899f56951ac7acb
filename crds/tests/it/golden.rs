//! Golden cases: `data/compile/NAME.in.yaml` -> `NAME.out.yaml`.
//!
//! Comments at the head of a case are the command line and its company: `# engine: NAME=ADDRESS`, `# resolver: ADDRESS`, `# with: FILE` (read after it, from
//! the same folder). A case whose name begins with `good-` has no errors and shows its parts whole; one that begins with `bad-` has at least one error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sekimori_crds::compile::{Compiled, Input, Options, Problem, compile, read_documents};
use sekimori_crds::snapshot::{Part, PartKey, Snapshot};
use serde::Serialize;

#[derive(Serialize)]
struct Outcome<'a> {
    problems: Vec<String>,
    rejected: Vec<String>,
    parts: Parts<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Parts<'a> {
    Whole(&'a BTreeMap<PartKey, Part>),
    Keys(Vec<String>),
}

fn folder() -> PathBuf {
    PathBuf::from("tests/data/compile")
}

fn read(name: &str, text: &str, input: &mut Input) -> Result<(), Problem> {
    input.documents.extend(read_documents(name, text)?);
    Ok(())
}

/// Reads a case and compiles it.
pub(crate) fn run(name: &str, text: &str) -> Compiled {
    let mut options = Options::default();
    let mut input = Input::default();
    let mut unreadable = read(name, text, &mut input).err();
    for line in text.lines().take_while(|line| line.starts_with('#')) {
        match line.trim_start_matches('#').trim().split_once(": ") {
            Some(("engine", value)) => {
                let (name, address) = value.split_once('=').unwrap_or((value, ""));
                options.engine_endpoints.insert(name.into(), address.into());
            }
            Some(("resolver", value)) => options.resolvers.push(value.into()),
            Some(("with", file)) => {
                let text = std::fs::read_to_string(folder().join(file)).unwrap_or_default();
                unreadable = read(file, &text, &mut input).err().or(unreadable);
            }
            _ => {}
        }
    }
    let mut compiled = compile(&input, &options);
    compiled.problems.splice(0..0, unreadable);
    compiled
}

pub(crate) fn cases() -> Vec<(String, String)> {
    let mut cases: Vec<(String, String)> = std::fs::read_dir(folder())
        .expect("the folder of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_suffix(".in.yaml")?.to_owned();
            Some((name, std::fs::read_to_string(&path).expect("readable")))
        })
        .collect();
    cases.sort();
    cases
}

#[test]
fn golden_cases() {
    let mut wrong = vec![];
    for (name, text) in cases() {
        let compiled = run(&format!("{name}.yaml"), &text);
        let good = name.starts_with("good-");
        if compiled.has_errors() == good {
            wrong.push(format!("{name}: errors are {}expected: {:?}", if good { "not " } else { "" }, compiled.problems));
        }
        let outcome = Outcome {
            problems: compiled.problems.iter().map(ToString::to_string).collect(),
            rejected: compiled.rejected.iter().map(ToString::to_string).collect(),
            parts: if good {
                Parts::Whole(&compiled.snapshot.parts)
            } else {
                Parts::Keys(compiled.snapshot.parts.keys().map(ToString::to_string).collect())
            },
        };
        // By way of JSON, so that a union is a field and no YAML tag.
        let mut value = serde_json::to_value(&outcome).expect("JSON");
        // Whether or not another crate of the build asks serde_json to keep the order of insertion.
        value.sort_all_objects();
        let yaml = serde_yaml::to_string(&value).expect("YAML");
        wrong.extend(crate::fresh(&folder().join(format!("{name}.out.yaml")), &yaml).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_are_enough_cases_and_each_error_says_where_and_what_to_do() {
    let cases = cases();
    let number = |start: &str| cases.iter().filter(|(name, _)| name.starts_with(start)).count();
    assert!(number("good-") >= 15, "{} good cases", number("good-"));
    assert!(number("bad-") >= 40, "{} bad cases", number("bad-"));
    let mut reasons = BTreeSet::new();
    for (name, text) in cases.iter().filter(|(name, _)| name.starts_with("bad-")) {
        for problem in run(&format!("{name}.yaml"), text).problems {
            assert!(!problem.source.is_empty() || problem.object.is_empty(), "{name}: {problem} names no file");
            assert!(!problem.field.is_empty() || !problem.message.is_empty(), "{name}: {problem} says nothing");
            assert!(problem.message.len() > 10 && !problem.message.ends_with('.'), "{name}: {problem}");
            let advice = [
                "add",
                "remove",
                "write",
                "use ",
                "did you mean",
                "leave",
                "must ",
                "put ",
                "choose",
                "are allowed",
                "correct",
                "say ",
                "the fields here are",
                "needs",
                "out of bounds",
                "is not",
                "begin with",
                "encode",
                "replace",
                "give",
                "target type",
                "two listeners",
                "is required",
                "change",
                "nothing is recorded",
                "only a cluster acts",
                "there is no builtin",
                "there is no GatewayFleet",
                "came first",
            ];
            assert!(advice.iter().any(|word| problem.message.contains(word)), "{name}: {problem} says not what to do");
            reasons.insert(problem.reason);
        }
    }
    assert!(reasons.len() >= 10, "the bad cases show only {reasons:?}");
}

#[test]
fn a_snapshot_of_format_1_still_loads() {
    let path = Path::new("tests/data/snapshot/format-1.json");
    let text = std::fs::read_to_string(path).expect("the golden snapshot");
    let snapshot: Snapshot = serde_json::from_str(&text).expect("format 1 loads");
    assert_eq!(snapshot.format, 1);
    assert!(snapshot.fleet().is_some());
    assert_eq!(snapshot.tenants().count(), 2);
    // Written by the first version and never rewritten: the hash of these parts is what gateways in the field report.
    assert_eq!(snapshot.hash().to_string(), include_str!("../data/snapshot/format-1.hash").trim());
    let again: Snapshot = serde_json::from_str(&serde_json::to_string(&snapshot).expect("JSON")).expect("its own JSON");
    assert_eq!(again, snapshot);
}

#[test]
fn the_examples_of_the_manifests_compile() {
    let text = std::fs::read_to_string(crate::root().join("manifests/quickstart/gateway.yaml")).expect("the quickstart");
    let compiled = run("gateway.yaml", &text);
    assert_eq!(compiled.problems, []);
    assert_eq!(compiled.snapshot.parts.len(), 2);
}
