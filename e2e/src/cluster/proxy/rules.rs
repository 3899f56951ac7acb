//! What is asked of an API server, and which requests meet which fault. Pure: requests come in, effects go out, and everything is counted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// What a request wants, as RBAC calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// One object.
    Get,
    /// Many objects.
    List,
    /// What becomes of many objects.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
    /// Discovery, versions, health.
    Other,
}

impl Verb {
    /// Those that change something.
    pub const WRITES: &[Self] = &[Self::Create, Self::Update, Self::Patch, Self::Delete];
    /// Those that follow a kind.
    pub const FOLLOWS: &[Self] = &[Self::List, Self::Watch];
}

/// A request, as far as rules look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Verb.
    pub verb: Verb,
    /// Plural, with the subresource if there is one: `tenantdomains`, `tenantdomains/status`.
    pub resource: String,
    /// Namespace; empty: none, or all.
    pub namespace: String,
    /// Name; empty for lists, watches and creations.
    pub name: String,
}

impl Asked {
    /// From a method, a path and a query.
    #[must_use]
    pub fn of(method: &str, path: &str, query: &str) -> Self {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let rest = match parts.as_slice() {
            ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
            _ => &[],
        };
        // `namespaces/NAME` alone is the Namespace itself.
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let Some((plural, rest)) = rest.split_first() else {
            return Self { verb: Verb::Other, resource: path.to_owned(), namespace: String::new(), name: String::new() };
        };
        let resource = rest.get(1).map_or_else(|| (*plural).to_owned(), |subresource| format!("{plural}/{subresource}"));
        let watches = query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
        let verb = match method {
            "GET" if watches => Verb::Watch,
            "GET" if rest.is_empty() => Verb::List,
            "GET" => Verb::Get,
            "POST" => Verb::Create,
            "PUT" => Verb::Update,
            "PATCH" => Verb::Patch,
            "DELETE" => Verb::Delete,
            _ => Verb::Other,
        };
        Self { verb, resource, namespace: namespace.to_owned(), name: rest.first().map(|name| (*name).to_owned()).unwrap_or_default() }
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, resource, namespace, name } = self;
        write!(formatter, "{verb:?} {resource} {namespace}/{name}")
    }
}

/// Which requests are meant. An empty list means all.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    /// Verbs.
    pub verbs: Vec<Verb>,
    /// Resources; a plural stands for its subresources too.
    pub resources: Vec<String>,
    /// Resources that are left alone whatever else is said.
    pub except: Vec<String>,
    /// Namespaces.
    pub namespaces: Vec<String>,
}

impl Matching {
    /// Every request.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Requests with these verbs.
    #[must_use]
    pub fn verbs(verbs: &[Verb]) -> Self {
        Self { verbs: verbs.to_vec(), ..Self::default() }
    }

    /// Only of these resources.
    #[must_use]
    pub fn of(mut self, resources: &[&str]) -> Self {
        self.resources = resources.iter().map(|resource| (*resource).to_owned()).collect();
        self
    }

    /// But not of these.
    #[must_use]
    pub fn except(mut self, resources: &[&str]) -> Self {
        self.except = resources.iter().map(|resource| (*resource).to_owned()).collect();
        self
    }

    /// Only in these namespaces.
    #[must_use]
    pub fn within(mut self, namespaces: &[&str]) -> Self {
        self.namespaces = namespaces.iter().map(|namespace| (*namespace).to_owned()).collect();
        self
    }

    fn matches(&self, asked: &Asked) -> bool {
        let plural = asked.resource.split('/').next().unwrap_or_default();
        let named = |names: &[String]| names.iter().any(|name| *name == asked.resource || name == plural);
        (self.verbs.is_empty() || self.verbs.contains(&asked.verb))
            && (self.resources.is_empty() || named(&self.resources))
            && !named(&self.except)
            && (self.namespaces.is_empty() || self.namespaces.contains(&asked.namespace))
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is answered with this code and a proper Status, and never reaches the API server.
    Answer(u16),
    /// It is answered 200, and the stream says at once that the version is too old. For watches.
    ExpireStream,
    /// Its answer comes so much later; of a watch, every event.
    Delay(Duration),
    /// The connection is cut, and the request never reaches the API server.
    CutBefore,
    /// The API server does as asked, and the connection is cut before anybody hears of it.
    CutAfter,
    /// As `CutBefore`, but first it waits for `Proxy::release`: time to kill whoever asked.
    HoldBefore,
    /// As `CutAfter`, likewise.
    HoldAfter,
}

/// A fault for some requests.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which.
    pub matching: Matching,
    /// So many of them pass before it begins.
    pub pass: u64,
    /// So many meet it then; none: all.
    pub times: Option<u64>,
    /// The fault.
    pub effect: Effect,
}

impl Rule {
    /// For every request that matches.
    #[must_use]
    pub const fn always(matching: Matching, effect: Effect) -> Self {
        Self { matching, pass: 0, times: None, effect }
    }

    /// For the one with this number, counted from 1.
    #[must_use]
    pub const fn nth(matching: Matching, number: u64, effect: Effect) -> Self {
        Self { matching, pass: number.saturating_sub(1), times: Some(1), effect }
    }
}

/// How often what was asked.
pub type Counts = BTreeMap<(Verb, String), u64>;

/// What became of a rule that is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that it names.
    pub matched: u64,
    /// Those that met its effect.
    pub met: u64,
}

#[derive(Debug)]
struct InForce {
    rule: Rule,
    tally: Tally,
}

impl InForce {
    const fn is_due(&self) -> bool {
        let passed = self.tally.matched > self.rule.pass;
        passed
            && match self.rule.times {
                Some(times) => self.tally.met < times,
                None => true,
            }
    }
}

/// The rules in force, and the counts.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<InForce>,
    counts: Counts,
}

impl Rules {
    /// These and no others. Counts go on.
    pub fn set(&mut self, rules: Vec<Rule>) {
        self.rules = rules.into_iter().map(|rule| InForce { rule, tally: Tally::default() }).collect();
    }

    /// Counts a request, and says what it meets. The first rule that is due decides.
    pub fn decide(&mut self, asked: &Asked) -> Option<Effect> {
        *self.counts.entry((asked.verb, asked.resource.clone())).or_default() += 1;
        let mut decided = None;
        for entry in self.rules.iter_mut().filter(|entry| entry.rule.matching.matches(asked)) {
            entry.tally.matched += 1;
            if decided.is_none() && entry.is_due() {
                entry.tally.met += 1;
                decided = Some(entry.rule.effect);
            }
        }
        decided
    }

    /// How late the events of a watch come, one that began before the rule did too. Only a rule without an end counts.
    #[must_use]
    pub fn latency(&self, asked: &Asked) -> Duration {
        let late = self.rules.iter().map(|entry| &entry.rule).filter(|rule| rule.times.is_none() && rule.matching.matches(asked));
        late.filter_map(|rule| if let Effect::Delay(delay) = rule.effect { Some(delay) } else { None }).max().unwrap_or_default()
    }

    /// What became of each rule, in their order.
    #[must_use]
    pub fn tallies(&self) -> Vec<Tally> {
        self.rules.iter().map(|entry| entry.tally).collect()
    }

    /// What was asked so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// A Status as API servers write it.
#[must_use]
pub fn status(code: u16) -> Value {
    let (reason, message) = match code {
        409 => {
            ("Conflict", "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version and try again")
        }
        410 => ("Expired", "too old resource version: 1 (2)"),
        429 => ("TooManyRequests", "too many requests, please try again later"),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        _ => ("InternalError", "a fault that a test asked for"),
    };
    let mut status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code});
    if code == 429
        && let Some(fields) = status.as_object_mut()
    {
        fields.insert("details".to_owned(), json!({"retryAfterSeconds": RETRY_AFTER_SECONDS}));
    }
    status
}

/// What a 429 asks for.
pub const RETRY_AFTER_SECONDS: u64 = 1;

/// The event that ends a watch whose version is too old, with its line end.
#[must_use]
pub fn expired_event() -> String {
    format!("{}\n", json!({"type": "ERROR", "object": status(410)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: Verb, resource: &str, namespace: &str, name: &str) -> Asked {
        Asked { verb, resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn requests_are_told_apart() {
        let cases = [
            (("GET", "/api/v1/namespaces/mail/pods", ""), asked(Verb::List, "pods", "mail", "")),
            (("GET", "/api/v1/pods", "limit=500&watch=false"), asked(Verb::List, "pods", "", "")),
            (("GET", "/api/v1/pods", "allowWatchBookmarks=true&watch=true"), asked(Verb::Watch, "pods", "", "")),
            (("GET", "/api/v1/namespaces/mail", ""), asked(Verb::Get, "namespaces", "", "mail")),
            (("GET", "/api/v1/namespaces", ""), asked(Verb::List, "namespaces", "", "")),
            (
                ("PATCH", "/apis/sekimori.dev/v1alpha1/namespaces/mail/tenantdomains/a/status", "force=true"),
                asked(Verb::Patch, "tenantdomains/status", "mail", "a"),
            ),
            (("POST", "/apis/authentication.k8s.io/v1/tokenreviews", ""), asked(Verb::Create, "tokenreviews", "", "")),
            (("PUT", "/apis/coordination.k8s.io/v1/namespaces/system/leases/operator", ""), asked(Verb::Update, "leases", "system", "operator")),
            (("DELETE", "/apis/apps/v1/namespaces/mail/statefulsets/a", ""), asked(Verb::Delete, "statefulsets", "mail", "a")),
            (("GET", "/version", ""), asked(Verb::Other, "/version", "", "")),
            (("GET", "/apis/sekimori.dev/v1alpha1", ""), asked(Verb::Other, "/apis/sekimori.dev/v1alpha1", "", "")),
        ];
        for ((method, path, query), wanted) in cases {
            assert_eq!(Asked::of(method, path, query), wanted, "{method} {path}?{query}");
        }
    }

    #[test]
    fn a_rule_means_what_it_names_and_nothing_else() {
        let matching = Matching::verbs(Verb::WRITES).of(&["tenantdomains", "leases"]).except(&["leases"]).within(&["mail"]);
        let cases = [
            (asked(Verb::Patch, "tenantdomains", "mail", "a"), true),
            (asked(Verb::Patch, "tenantdomains/status", "mail", "a"), true),
            (asked(Verb::Patch, "tenantdomains", "other", "a"), false),
            (asked(Verb::Get, "tenantdomains", "mail", "a"), false),
            (asked(Verb::Update, "leases", "mail", "a"), false),
            (asked(Verb::Create, "pods", "mail", ""), false),
        ];
        for (request, wanted) in cases {
            assert_eq!(matching.matches(&request), wanted, "{request}");
        }
        let status = Matching::all().of(&["tenantdomains/status"]);
        assert!(status.matches(&asked(Verb::Patch, "tenantdomains/status", "mail", "a")), "a subresource by its name");
        assert!(!status.matches(&asked(Verb::Patch, "tenantdomains", "mail", "a")), "and it alone");
        assert!(Matching::all().matches(&asked(Verb::Other, "/version", "", "")));
    }

    #[test]
    fn the_nth_meets_it_once_and_all_are_counted() {
        let mut rules = Rules::default();
        rules.set(vec![Rule::nth(Matching::verbs(Verb::WRITES), 3, Effect::CutAfter)]);
        let (write, read) = (asked(Verb::Patch, "pods", "mail", "a"), asked(Verb::Get, "pods", "mail", "a"));
        let met: Vec<Option<Effect>> = [&write, &read, &write, &write, &write].into_iter().map(|request| rules.decide(request)).collect();
        assert_eq!(met, [None, None, None, Some(Effect::CutAfter), None]);
        assert_eq!(rules.tallies(), [Tally { matched: 4, met: 1 }]);
        assert_eq!(rules.counts()[&(Verb::Patch, "pods".to_owned())], 4);
        assert_eq!(rules.counts()[&(Verb::Get, "pods".to_owned())], 1);
    }

    #[test]
    fn the_first_rule_that_is_due_decides_and_an_exhausted_one_does_not() {
        let mut rules = Rules::default();
        rules.set(vec![
            Rule { matching: Matching::all(), pass: 1, times: Some(2), effect: Effect::Answer(429) },
            Rule::always(Matching::verbs(&[Verb::List]), Effect::Answer(503)),
        ]);
        let list = asked(Verb::List, "pods", "", "");
        let met: Vec<Option<Effect>> = (0..5).map(|_| rules.decide(&list)).collect();
        let (throttled, away) = (Some(Effect::Answer(429)), Some(Effect::Answer(503)));
        assert_eq!(met, [away, throttled, throttled, away, away]);
        assert_eq!(rules.tallies(), [Tally { matched: 5, met: 2 }, Tally { matched: 5, met: 3 }]);
        rules.set(vec![]);
        assert_eq!((rules.decide(&list), rules.tallies()), (None, vec![]));
    }

    #[test]
    fn a_delay_holds_for_watches_that_are_open() {
        let mut rules = Rules::default();
        let watch = asked(Verb::Watch, "pods", "", "");
        assert_eq!(rules.latency(&watch), Duration::ZERO);
        rules.set(vec![Rule::always(Matching::all(), Effect::Delay(Duration::from_millis(1500)))]);
        assert_eq!(rules.latency(&watch), Duration::from_millis(1500));
        assert!(rules.counts().is_empty(), "an event is no request");
    }

    #[test]
    fn a_status_is_one_that_clients_understand() {
        for (code, reason) in [(409, "Conflict"), (410, "Expired"), (429, "TooManyRequests"), (503, "ServiceUnavailable")] {
            let status = status(code);
            assert_eq!((&status["kind"], &status["code"], &status["reason"]), (&json!("Status"), &json!(code), &json!(reason)));
        }
        assert_eq!(status(429)["details"]["retryAfterSeconds"], RETRY_AFTER_SECONDS);
        let event: Value = serde_json::from_str(&expired_event()).expect("JSON");
        assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
        assert!(expired_event().ends_with('\n'));
    }
}
