//! Manifests: those rendered from the chart are fresh, and everything that speaks of ours compiles.

use std::path::{Path, PathBuf};

use sekimori_crds::compile::{Compiled, Input, Options, compile, read_documents};
use serde_yaml::Value;

use crate::helm::{at, helm, kind, list, object, render, root, text};

const QUICKSTART: &str = "manifests/quickstart-cluster/quickstart.yaml";
const HEAD: &str = "# What `--set quickstart.enabled=true` of the chart makes, in namespace sekimori. Generated from helm/sekimori: make generate.\n";

fn quickstart() -> String {
    let mut arguments = vec!["template", "sekimori", "helm/sekimori", "--namespace", "sekimori", "--set", "quickstart.enabled=true"];
    arguments.extend(["--show-only", "templates/quickstart/fleet.yaml", "--show-only", "templates/quickstart/sink.yaml"]);
    let output = helm(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    format!("{HEAD}{}", String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn the_rendered_quickstart_is_fresh() {
    let (path, rendered) = (root().join(QUICKSTART), quickstart());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &rendered).expect("written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == rendered, "{QUICKSTART} is not what the chart makes: make generate");
}

/// Our own documents of a text, compiled as a cluster would.
fn compiled(name: &str, text: &str) -> Compiled {
    let ours: Vec<_> = text.split("\n---").filter(|document| document.contains("apiVersion: sekimori.dev/")).collect();
    assert!(!ours.is_empty(), "{name}: none of our kinds");
    let documents = read_documents(name, &ours.join("\n---\n")).expect("readable");
    // Where engines listen in a pod is the operator's to say.
    let in_pods =
        if text.contains("type: InPod") { vec![("clamav".to_owned(), "unix:/run/sekimori/engines/clamav/a/engine.sock".to_owned())] } else { vec![] };
    compile(&Input { documents }, &Options { standalone: false, engine_endpoints: in_pods.into_iter().collect(), ..Options::default() })
}

fn errors(compiled: &Compiled) -> Vec<String> {
    compiled.problems.iter().filter(|problem| problem.is_error()).map(|problem| format!("{problem:?}")).collect()
}

#[test]
fn the_quickstart_compiles_without_a_word() {
    for sets in
        [&[][..], &["clusterNetworks={10.244.0.0/16,fd00:1::/64}"], &["quickstart.domain=shop.example.org", "quickstart.storageClassName=fast"]]
    {
        let mut all = vec!["quickstart.enabled=true"];
        all.extend(sets);
        let objects = render(&all);
        let text: Vec<String> = objects.iter().map(|object| serde_yaml::to_string(object).expect("YAML")).collect();
        let compiled = compiled("quickstart", &text.join("\n---\n"));
        assert_eq!(compiled.problems.iter().map(|problem| format!("{problem:?}")).collect::<Vec<_>>(), Vec::<String>::new(), "{sets:?}");
        assert_eq!(compiled.snapshot.parts.len(), 2, "{sets:?}: a fleet and a tenant");
    }
}

#[test]
fn an_uninstall_leaves_what_holds_mail_and_words() {
    let objects = render(&["quickstart.enabled=true"]);
    let ours: Vec<&Value> = objects.iter().filter(|object| text(object, "apiVersion").starts_with("sekimori.dev/")).collect();
    assert_eq!(ours.len(), 4);
    for object in ours {
        let policy = at(object, "metadata/annotations").get("helm.sh/resource-policy").and_then(Value::as_str);
        assert_eq!(policy, Some("keep"), "{}", text(object, "metadata/name"));
    }
    let route = text(object(&objects, "TenantDomain", "example-com"), "spec/routes/0/host");
    let sink = object(&objects, "Service", "quickstart-sink");
    assert_eq!(route, format!("{}.{}.svc.cluster.local", text(sink, "metadata/name"), text(sink, "metadata/namespace")));
    assert_eq!(at(sink, "spec/ports/0/port"), at(object(&objects, "TenantDomain", "example-com"), "spec/routes/0/port"));
    assert_eq!(kind(&render(&[]), "GatewayFleet").len(), 0);
}

#[test]
fn the_test_pod_knows_whether_there_is_a_fleet() {
    let arguments = |sets: &[&str]| {
        let objects = render(sets);
        let pod = object(&objects, "Pod", "sekimori-test-mail");
        list(pod, "spec/containers/0/args").iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(arguments(&[]), ["probe"]);
    assert_eq!(
        arguments(&["quickstart.enabled=true", "quickstart.namespace=mail"]),
        ["probe", "--gateway=quickstart-smtp.mail.svc:25", "--recipient=user@example.com", "--wait=120"]
    );
    let own = arguments(&["tests.gateway=inbound-smtp.mail.svc:25", "tests.recipient=me@my.example"]);
    assert_eq!(own, ["probe", "--gateway=inbound-smtp.mail.svc:25", "--recipient=me@my.example", "--wait=120"]);
}

fn yaml_files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "{}", directory.display());
    files
}

/// Every file below a directory that people read or apply.
fn texts(directory: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            texts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn routes_of_examples_name_their_servers_completely() {
    let mut files = vec![root().join("README.md"), root().join("helm/sekimori/README.md")];
    texts(&root().join("manifests"), &mut files);
    texts(&root().join("docs"), &mut files);
    let mut complete = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        // Gateways apply no search list to the host of a route.
        for host in text.split("host: ").skip(1).filter_map(|rest| rest.split([',', '}', ' ', '\n']).next()).filter(|host| host.contains(".svc")) {
            assert!(host.ends_with(".svc.cluster.local"), "{}: {host} is not a complete name", file.display());
            complete += 1;
        }
    }
    assert!(complete >= 3, "{complete} were found: the quickstart's, the second tenant's and the README's");
}

#[test]
fn every_example_compiles() {
    // Tenants are given the fleet that they name, from the example of fleets.
    let read = |path: &Path| std::fs::read_to_string(path).expect("readable");
    let manifests = root().join("manifests");
    let base = read(&manifests.join("tenants/fleet.yaml"));
    for file in yaml_files(&manifests.join("tenants")) {
        // The simplest one joins the quickstart's fleet.
        let fleet = if file.ends_with("simple.yaml") { &quickstart() } else { &base };
        let text = if file.ends_with("fleet.yaml") { base.clone() } else { format!("{fleet}\n---\n{}", read(&file)) };
        assert_eq!(errors(&compiled("tenants", &text)), Vec::<String>::new(), "{}", file.display());
    }
    for directory in ["canary", "autoscaling"] {
        for file in yaml_files(&manifests.join(directory)) {
            let compiled = compiled(directory, &read(&file));
            assert_eq!(errors(&compiled), Vec::<String>::new(), "{}", file.display());
        }
    }
}
