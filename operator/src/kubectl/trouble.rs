//! What the API server refused, and what to do about it.

use super::{EXIT_CLUSTER, EXIT_PARTIAL};

/// The ClusterRole that lets people read our own kinds: what `status` and `tenants` show.
pub const VIEW_ROLE: &str = "sekimori-viewer";
/// The ClusterRole that lets people run verbs in the gateways and read what fleets consist of: pods, logs, events and the like, for `queue`, `quarantine` and
/// `report`.
pub const OPERATE_ROLE: &str = "sekimori-fleet-admin";

/// What was asked of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// `list`, `get` or `exec in`.
    pub verb: &'a str,
    /// Plural, as in a role: `gatewayfleets`, `pods`.
    pub resource: &'a str,
    /// The group; empty: the core.
    pub group: &'a str,
    /// Where; none: everywhere.
    pub namespace: Option<&'a str>,
    /// Which; none: all.
    pub name: Option<&'a str>,
}

/// What the API server answered, or that it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A refusal: HTTP code and message.
    Refused {
        /// HTTP code.
        code: u16,
        /// What it said.
        message: String,
    },
    /// No answer at all.
    Unreachable(String),
    /// An answer that is not what was asked for.
    Unreadable(String),
}

/// An error for people, with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Trouble {
    /// The sentence.
    pub text: String,
    /// The exit code.
    pub code: u8,
    /// Whether it was a 403, which callers may get around by asking for less.
    pub forbidden: bool,
    /// Whether a named object is not there.
    pub missing: bool,
}

impl Trouble {
    /// An error of the cluster as a whole.
    pub fn cluster(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: EXIT_CLUSTER, forbidden: false, missing: false }
    }

    /// An error of one thing among others.
    pub fn one(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: EXIT_PARTIAL, forbidden: false, missing: false }
    }
}

/// Names the trouble and the next step.
pub fn explain(asked: &Asked<'_>, answer: &Answer) -> Trouble {
    let place = asked.namespace.map_or_else(|| "in every namespace".to_owned(), |namespace| format!("in namespace {namespace}"));
    let Asked { verb, resource, group, .. } = *asked;
    match answer {
        Answer::Refused { code: 404, message } => match asked.name {
            Some(name) if !message.contains("could not find the requested resource") => Trouble {
                text: format!("there is no {} {name} {place}: look with kubectl get {resource} -A", singular(resource)),
                missing: true,
                ..Trouble::one("")
            },
            _ if group == sekimori_crds::v1alpha1::GROUP => Trouble::cluster(format!(
                "this cluster does not know {resource}.{group}: install Sekimori's definitions (helm install sekimori-crds helm/sekimori-crds), or choose another cluster with --context"
            )),
            _ => Trouble::cluster(format!("this cluster does not know {resource}: {message}")),
        },
        Answer::Refused { code: 403, message } => {
            let role = if group == sekimori_crds::v1alpha1::GROUP { VIEW_ROLE } else { OPERATE_ROLE };
            let bind = asked.namespace.map_or_else(
                || format!("kubectl create clusterrolebinding NAME --clusterrole={role} --user=YOU, or look at one namespace with -n"),
                |namespace| format!("kubectl create rolebinding NAME -n {namespace} --clusterrole={role} --user=YOU"),
            );
            Trouble {
                text: format!(
                    "you may not {verb} {resource} {place}: ask an administrator for the role {role} ({bind}); the API server says: {message}"
                ),
                forbidden: true,
                ..Trouble::cluster("")
            }
        }
        Answer::Refused { code: 401, .. } => {
            Trouble::cluster("the API server does not know you: log in again, or choose another user with --context (kubectl config get-contexts)")
        }
        Answer::Refused { code: 410, .. } => Trouble::cluster(format!("the list of {resource} changed while it was read: try again")),
        Answer::Refused { code: 429 | 503, message } => {
            Trouble::cluster(format!("the API server is busy and did not {verb} {resource} {place}: try again in a moment ({message})"))
        }
        Answer::Refused { code, message } => Trouble::cluster(format!("the API server did not {verb} {resource} {place}: {code} {message}")),
        Answer::Unreachable(cause) => Trouble::cluster(format!(
            "the API server does not answer ({cause}): is the context right (kubectl config get-contexts), and the cluster there?"
        )),
        Answer::Unreadable(cause) => Trouble::cluster(format!(
            "what the API server says about {resource} {place} cannot be read ({cause}): this plugin and the installed definitions are of different versions; use those of one release"
        )),
    }
}

/// Good enough for the names that are asked for.
fn singular(resource: &str) -> &str {
    match resource {
        "tenantdomains" => "TenantDomain",
        "gatewayfleets" => "GatewayFleet",
        "mailpolicies" => "MailPolicy",
        "pods" => "pod",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(verb: &'a str, resource: &'a str, namespace: Option<&'a str>, name: Option<&'a str>) -> Asked<'a> {
        let group = if matches!(resource, "pods" | "events") { "" } else { "sekimori.dev" };
        Asked { verb, resource, group, namespace, name }
    }

    fn refused(code: u16, message: &str) -> Answer {
        Answer::Refused { code, message: message.to_owned() }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let list = asked("list", "gatewayfleets", None, None);
        let named = asked("get", "tenantdomains", Some("mail"), Some("x"));
        let exec = asked("exec in", "pods", Some("mail"), Some("inbound-gateway-0"));
        let (pods, log) = (asked("list", "pods", Some("mail"), None), asked("get the log of", "pods", Some("mail"), Some("inbound-gateway-0")));
        let events = asked("list", "events", None, None);
        for (asked, answer, code, words) in [
            (&list, refused(404, "404 page not found"), 3, &["helm install sekimori-crds", "--context"][..]),
            (&named, refused(404, "the server could not find the requested resource"), 3, &["helm install sekimori-crds"]),
            (&named, refused(404, "tenantdomains.sekimori.dev \"x\" not found"), 1, &["no TenantDomain x in namespace mail", "kubectl get"]),
            (&list, refused(403, "nope"), 3, &["sekimori-viewer", "-n", "clusterrolebinding", "nope"]),
            (&named, refused(403, "nope"), 3, &["sekimori-viewer", "rolebinding NAME -n mail"]),
            (&exec, refused(403, "nope"), 3, &["sekimori-fleet-admin", "exec in pods"]),
            // The viewer's role has neither: it would be a dead end.
            (&pods, refused(403, "nope"), 3, &["for the role sekimori-fleet-admin", "list pods"]),
            (&log, refused(403, "nope"), 3, &["for the role sekimori-fleet-admin", "the log of pods"]),
            (&events, refused(403, "nope"), 3, &["for the role sekimori-fleet-admin", "clusterrolebinding"]),
            (&list, refused(401, ""), 3, &["log in again"]),
            (&list, refused(429, "slow down"), 3, &["try again"]),
            (&list, refused(500, "etcd"), 3, &["500 etcd"]),
            (&list, Answer::Unreachable("connection refused".into()), 3, &["kubectl config get-contexts", "connection refused"]),
            (&list, Answer::Unreadable("missing field".into()), 3, &["different versions"]),
        ] {
            let trouble = explain(asked, &answer);
            assert_eq!(trouble.code, code, "{trouble}");
            for word in words {
                assert!(trouble.text.contains(word), "{word} is missing in: {trouble}");
            }
        }
        assert!(explain(&list, &refused(403, "")).forbidden && explain(&named, &refused(404, "not found")).missing);
    }
}
