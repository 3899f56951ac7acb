//! Rights: least, and never by a star.

use std::collections::BTreeSet;

use serde_yaml::Value;

use crate::helm::{EVERYTHING, kind, list, object, render, strings, text};

fn every_role(objects: &[Value]) -> Vec<&Value> {
    kind(objects, "ClusterRole").into_iter().chain(kind(objects, "Role")).collect()
}

/// `verb group/resource`, for every combination that a role grants.
fn granted(role: &Value) -> BTreeSet<String> {
    let mut granted = BTreeSet::new();
    for rule in list(role, "rules") {
        for group in strings(rule, "apiGroups") {
            for resource in strings(rule, "resources") {
                granted.extend(strings(rule, "verbs").into_iter().map(|verb| format!("{verb} {group}/{resource}")));
            }
        }
    }
    granted
}

fn may(role: &Value, what: &str) -> bool {
    granted(role).contains(what)
}

#[test]
fn no_star_no_escalation_and_no_other_role_of_the_cluster() {
    for sets in [EVERYTHING, &["rbac.namespaces={mail,post}"]] {
        let objects = render(sets);
        for role in every_role(&objects) {
            let name = text(role, "metadata/name");
            assert!(!list(role, "rules").is_empty(), "{name}");
            for rule in list(role, "rules") {
                for field in ["apiGroups", "resources", "verbs"] {
                    let said = strings(rule, field);
                    assert!(!said.is_empty() && said.iter().all(|word| !word.contains('*')), "{name}: {field} {said:?}");
                }
                for verb in ["escalate", "bind", "impersonate", "deletecollection"] {
                    assert!(!strings(rule, "verbs").contains(&verb), "{name}: {verb}");
                }
            }
        }
        for binding in kind(&objects, "ClusterRoleBinding").into_iter().chain(kind(&objects, "RoleBinding")) {
            assert!(text(binding, "roleRef/name").starts_with("sekimori-operator"), "{binding:?}");
            assert_eq!(list(binding, "subjects").len(), 1);
            assert_eq!((text(binding, "subjects/0/kind"), text(binding, "subjects/0/name")), ("ServiceAccount", "sekimori-operator"));
        }
    }
}

#[test]
fn the_operator_may_what_it_does_and_no_more() {
    let objects = render(&[]);
    // Exactly this: each is a call of the operator's code (`operator/src/io`), and no call lacks here, or scenarios on a cluster fail.
    let exactly = |role: &Value, lines: &[(&str, &str)]| {
        let each = lines.iter().flat_map(|(verbs, what)| verbs.split(' ').map(move |verb| format!("{verb} {what}")));
        let (wanted, has): (BTreeSet<String>, BTreeSet<String>) = (each.collect(), granted(role));
        let (more, fewer): (Vec<_>, Vec<_>) = (has.difference(&wanted).collect(), wanted.difference(&has).collect());
        assert!(more.is_empty() && fewer.is_empty(), "{}: more than needed {more:?}, less {fewer:?}", text(role, "metadata/name"));
    };
    exactly(
        object(&objects, "ClusterRole", "sekimori-operator-sekimori"),
        &[
            // Watched by themselves; fleets and versions get our finalizer.
            ("list watch patch", "sekimori.dev/gatewayfleets"),
            ("list watch patch", "sekimori.dev/engineversions"),
            ("list watch", "sekimori.dev/engines"),
            ("list watch", "sekimori.dev/enginerollouts"),
            ("list watch", "sekimori.dev/mailpolicies"),
            ("list watch", "sekimori.dev/domaingrants"),
            ("get list watch", "sekimori.dev/tenantdomains"),
            ("update", "sekimori.dev/gatewayfleets/finalizers"),
            ("patch", "sekimori.dev/gatewayfleets/status"),
            ("patch", "sekimori.dev/tenantdomains/status"),
            ("patch", "sekimori.dev/mailpolicies/status"),
            ("patch", "sekimori.dev/engines/status"),
            ("patch", "sekimori.dev/engineversions/status"),
            ("patch", "sekimori.dev/enginerollouts/status"),
            ("patch", "sekimori.dev/domaingrants/status"),
            // Applied, and gone with their fleet by the API server's garbage collection.
            ("get list watch create patch", "apps/statefulsets"),
            ("list watch create patch", "/services"),
            ("list watch create patch", "/serviceaccounts"),
            ("list watch create patch", "/configmaps"),
            ("list watch create patch", "networking.k8s.io/networkpolicies"),
            ("list watch create patch", "policy/poddisruptionbudgets"),
            ("get create", "/secrets"),
            ("list watch patch delete", "/pods"),
            ("list watch patch delete", "/persistentvolumeclaims"),
            ("create patch", "events.k8s.io/events"),
            ("get list watch", "/namespaces"),
            ("list watch", "/nodes"),
            ("get list", "storage.k8s.io/storageclasses"),
            ("get", "storage.k8s.io/csidrivers"),
            ("get", "apiextensions.k8s.io/customresourcedefinitions"),
            ("create", "authentication.k8s.io/tokenreviews"),
        ],
    );
    exactly(
        object(&objects, "Role", "sekimori-operator"),
        &[
            ("get create update patch", "coordination.k8s.io/leases"),
            ("get list create patch", "/configmaps"),
            ("get list patch", "/pods"),
            ("create patch", "events.k8s.io/events"),
        ],
    );
}

#[test]
fn a_list_of_namespaces_keeps_the_operator_out_of_all_others() {
    let objects = render(&["rbac.namespaces={mail,post}"]);
    let cluster = object(&objects, "ClusterRole", "sekimori-operator-sekimori");
    for right in granted(cluster) {
        let harmless = [
            "domaingrants",
            "/namespaces",
            "/nodes",
            "storageclasses",
            "csidrivers",
            "tokenreviews",
            "get apiextensions.k8s.io/customresourcedefinitions",
        ];
        assert!(harmless.iter().any(|what| right.contains(what)), "cluster-wide: {right}");
    }
    let wide = render(&[]);
    let fleets: Vec<_> = kind(&objects, "Role").into_iter().filter(|role| text(role, "metadata/name") == "sekimori-operator-fleets").collect();
    assert_eq!(fleets.iter().map(|role| text(role, "metadata/namespace")).collect::<Vec<_>>(), ["mail", "post"]);
    for role in fleets {
        let both: BTreeSet<_> = granted(role).union(&granted(cluster)).cloned().collect();
        assert_eq!(both, granted(object(&wide, "ClusterRole", "sekimori-operator-sekimori")), "the same rights, in fewer places");
    }
    let operator = object(&objects, "Deployment", "sekimori-operator");
    assert!(strings(operator, "spec/template/spec/containers/0/args").contains(&"--watch-namespaces=mail,post"));
}

#[test]
fn roles_for_people() {
    let objects = render(&[]);
    let [viewer, editor, admin] =
        ["sekimori-viewer", "sekimori-tenant-editor", "sekimori-fleet-admin"].map(|name| object(&objects, "ClusterRole", name));
    assert!(granted(viewer).iter().all(|right| ["get ", "list ", "watch "].iter().any(|verb| right.starts_with(verb))), "{viewer:?}");
    assert!(may(editor, "create sekimori.dev/tenantdomains") && !may(editor, "patch sekimori.dev/gatewayfleets"));
    assert!(may(admin, "patch sekimori.dev/gatewayfleets/scale") && may(admin, "create /pods/exec"));
    // `kubectl sekimori` names this role to whoever may not read one of these.
    for resource in ["/pods", "/events", "/services", "/configmaps", "/persistentvolumeclaims", "apps/statefulsets"] {
        assert!(may(admin, &format!("list {resource}")) && !may(viewer, &format!("list {resource}")), "{resource}");
    }
    assert!(may(admin, "get /pods/log"));
    for role in [viewer, editor, admin] {
        let writes =
            granted(role).into_iter().filter(|right| right.contains("domaingrants") || right.contains("secrets") || right.contains("/status"));
        let writes: Vec<_> = writes.filter(|right| !["get ", "list ", "watch "].iter().any(|verb| right.starts_with(verb))).collect();
        assert!(writes.is_empty(), "{writes:?}");
        assert!(format!("{:?}", role.get("metadata")).contains("aggregate-to-"));
    }
    let alone = render(&["rbac.userRoles.aggregate=false"]);
    assert!(!format!("{alone:?}").contains("aggregate-to-"));
    assert!(kind(&render(&["rbac.userRoles.create=false"]), "ClusterRole").len() == 1);
}
