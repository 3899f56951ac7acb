//! The schemas of the CRDs, applied to YAML as the API server applies them: unknown fields, types, bounds, patterns, keys of lists, and the CEL rules.
//!
//! All findings of a document are collected, each with its path. Transition rules (`oldSelf`) need an earlier object and are the API server's alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value as Json;
use serde_yaml::Value;

use super::cel;
use super::problem::{Finding, Reason, did_you_mean, nearest};
use crate::units::{ByteSize, DURATION_PATTERN, Duration, SIZE_PATTERN};
use crate::v1alpha1::text::{ENGINE_THRESHOLDS_PATTERN, WORDINGS};
use crate::v1alpha1::{self, text};

/// Findings of one document beyond this number are not collected.
const FINDINGS_MAX: usize = 100;

/// The schema of each kind's `spec`.
pub(crate) static SPECS: LazyLock<BTreeMap<String, Node>> = LazyLock::new(|| {
    let mut patterns = HashMap::new();
    v1alpha1::definitions()
        .into_iter()
        .map(|definition| {
            let schema = definition.spec.versions.into_iter().next().and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
            let schema = serde_json::to_value(schema.expect("every definition has a schema")).expect("a schema has only string keys");
            let spec = schema.pointer("/properties/spec").expect("every kind has a spec");
            (definition.spec.names.kind, Node::read(spec, &mut patterns))
        })
        .collect()
});

/// One place in a schema.
#[derive(Debug)]
pub(crate) struct Node {
    shape: Shape,
    rules: Vec<Rule>,
}

#[derive(Debug)]
enum Shape {
    Object { properties: BTreeMap<String, Node>, required: Vec<String> },
    Map { values: Box<Node>, entries_max: usize },
    Free,
    List { items: Box<Node>, items_min: usize, items_max: usize, keys: Keys },
    Text { chars_max: usize, pattern: Option<Regex> },
    Word(Vec<String>),
    Integer { min: i64, max: i64 },
    Boolean,
    Quantity(Regex),
}

/// What makes an item of a list unique.
#[derive(Debug, PartialEq, Eq)]
enum Keys {
    None,
    Whole,
    Fields(Vec<String>),
}

/// A CEL rule.
#[derive(Debug)]
struct Rule {
    expr: cel::Expr,
    message: String,
    field: String,
    reason: Reason,
}

impl Rule {
    fn read(rule: &Json) -> Option<Self> {
        let text = |name: &str| rule.get(name).and_then(Json::as_str).unwrap_or_default();
        let expr = text("rule");
        if expr.contains("oldSelf") {
            return None;
        }
        Some(Self {
            expr: cel::parse(expr).expect("a test holds that every rule reads"),
            message: text("message").to_owned(),
            field: text("fieldPath").to_owned(),
            reason: match text("reason") {
                "FieldValueRequired" => Reason::Missing,
                "FieldValueDuplicate" => Reason::Conflict,
                _ => Reason::InvalidValue,
            },
        })
    }
}

impl Node {
    fn read(schema: &Json, patterns: &mut HashMap<String, Regex>) -> Self {
        let rules = schema.get("x-kubernetes-validations").and_then(Json::as_array).into_iter().flatten().filter_map(Rule::read).collect();
        Self { shape: Shape::read(schema, patterns), rules }
    }
}

impl Shape {
    fn read(schema: &Json, patterns: &mut HashMap<String, Regex>) -> Self {
        let number = |name: &str| schema.get(name).and_then(Json::as_f64).map(|n| n as i64);
        let length = |name: &str, default: usize| number(name).and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
        let mut pattern = || {
            let text = schema.get("pattern").and_then(Json::as_str)?;
            let known = patterns.entry(text.to_owned()).or_insert_with(|| Regex::new(text).expect("a test holds that every pattern reads"));
            Some(known.clone())
        };
        if schema.get("x-kubernetes-int-or-string").is_some() {
            return Self::Quantity(pattern().expect("a quantity has its pattern"));
        }
        match schema.get("type").and_then(Json::as_str).unwrap_or_default() {
            "string" => match schema.get("enum").and_then(Json::as_array) {
                Some(words) => Self::Word(words.iter().filter_map(Json::as_str).map(str::to_owned).collect()),
                None => Self::Text { chars_max: length("maxLength", usize::MAX), pattern: pattern() },
            },
            "integer" => Self::Integer { min: number("minimum").unwrap_or(i64::MIN), max: number("maximum").unwrap_or(i64::MAX) },
            "boolean" => Self::Boolean,
            "array" => Self::List {
                items: Box::new(Node::read(schema.get("items").expect("a list has items"), patterns)),
                items_min: length("minItems", 0),
                items_max: length("maxItems", usize::MAX),
                keys: Keys::read(schema),
            },
            _ if schema.get("x-kubernetes-preserve-unknown-fields").is_some() => Self::Free,
            _ => match schema.get("additionalProperties") {
                Some(values) => Self::Map { values: Box::new(Node::read(values, patterns)), entries_max: length("maxProperties", usize::MAX) },
                None => Self::object(schema, patterns),
            },
        }
    }

    fn object(schema: &Json, patterns: &mut HashMap<String, Regex>) -> Self {
        let properties = schema.get("properties").and_then(Json::as_object).into_iter().flatten();
        Self::Object {
            properties: properties.map(|(name, schema)| (name.clone(), Node::read(schema, patterns))).collect(),
            required: schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Object { .. } | Self::Map { .. } | Self::Free => "an object with fields",
            Self::List { .. } => "a list",
            Self::Text { .. } => "text",
            Self::Word(_) => "one word",
            Self::Integer { .. } => "a whole number",
            Self::Boolean => "true or false",
            Self::Quantity(_) => "a quantity such as 500m or 20Gi",
        }
    }
}

impl Keys {
    fn read(schema: &Json) -> Self {
        match schema.get("x-kubernetes-list-type").and_then(Json::as_str) {
            Some("set") => Self::Whole,
            Some("map") => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
                Self::Fields(keys.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect())
            }
            _ => Self::None,
        }
    }
}

/// What is wrong with `value`, which stands at `path`.
pub(crate) fn check(node: &Node, value: &Value, path: &str) -> Vec<Finding> {
    let mut findings = vec![];
    Walk { findings: &mut findings }.visit(node, value, path);
    findings
}

struct Walk<'f> {
    findings: &'f mut Vec<Finding>,
}

impl Walk<'_> {
    fn say(&mut self, field: &str, reason: Reason, message: impl Into<String>) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding::new(field, reason, message));
        }
    }

    fn visit(&mut self, node: &Node, value: &Value, path: &str) {
        let before = self.findings.len();
        match (&node.shape, value) {
            (Shape::Object { properties, required }, Value::Mapping(map)) => self.object(properties, required, map, path),
            (Shape::Map { values, entries_max }, Value::Mapping(map)) => {
                if map.len() > *entries_max {
                    self.say(path, Reason::InvalidValue, format!("has {} entries, at most {entries_max} are allowed", map.len()));
                }
                for (key, value) in map {
                    self.visit(values, value, &format!("{path}.{}", shown(key)));
                }
            }
            (Shape::Free, Value::Mapping(_)) => {}
            (Shape::List { items, items_min, items_max, keys }, Value::Sequence(list)) => {
                self.list(items, (*items_min, *items_max), keys, list, path);
            }
            (Shape::Text { chars_max, pattern }, Value::String(text)) => self.text(*chars_max, pattern.as_ref(), text, path),
            (Shape::Word(words), Value::String(text)) => {
                if !words.contains(text) {
                    let near = did_you_mean(text, words.iter().map(String::as_str));
                    self.say(path, Reason::InvalidValue, format!("`{}` is not one of {}{near}", clipped(text), words.join(", ")));
                }
            }
            (Shape::Integer { min, max }, Value::Number(number)) => match number.as_i64() {
                Some(n) if n < *min || n > *max => self.say(path, Reason::InvalidValue, format!("{n} is out of bounds: {min} to {max}")),
                Some(_) => {}
                None => self.say(path, Reason::InvalidValue, format!("{number} is not a whole number from {min} to {max}")),
            },
            (Shape::Boolean, Value::Bool(_)) => {}
            (Shape::Quantity(pattern), value @ (Value::String(_) | Value::Number(_))) => {
                let text = shown(value);
                if text.len() > 32 || !pattern.is_match(&text) {
                    self.say(path, Reason::InvalidValue, format!("`{}` is not a quantity: write 500m, 2 or 20Gi", clipped(&text)));
                }
            }
            (shape, Value::Null) => self.say(path, Reason::InvalidValue, format!("is empty: give {}, or leave the field out", shape.name())),
            (Shape::Word(words), value) => {
                self.say(path, Reason::InvalidValue, format!("must be one of {}, not {}", words.join(", "), described(value)))
            }
            (shape @ Shape::Text { .. }, Value::Number(_) | Value::Bool(_)) => {
                self.say(
                    path,
                    Reason::InvalidValue,
                    format!("must be {}, but YAML reads {} as something else: put it in quotes", shape.name(), shown(value)),
                );
            }
            (shape, value) => self.say(path, Reason::InvalidValue, format!("must be {}, not {}", shape.name(), described(value))),
        }
        if self.findings.len() == before {
            for rule in node.rules.iter().filter(|rule| !cel::holds(&rule.expr, value)) {
                let shown = if let Value::String(text) = value { format!("`{}` ", clipped(text)) } else { String::new() };
                self.say(&format!("{path}{}", rule.field), rule.reason, format!("{shown}{}", rule.message));
            }
        }
    }

    fn object(&mut self, properties: &BTreeMap<String, Node>, required: &[String], map: &serde_yaml::Mapping, path: &str) {
        for (key, value) in map {
            let name = shown(key);
            match properties.get(&name) {
                Some(node) => self.visit(node, value, &format!("{path}.{name}")),
                None => {
                    // What is not there yet is more likely meant than what is.
                    let absent = properties.keys().map(String::as_str).filter(|known| !map.contains_key(*known));
                    let near = nearest(&name, absent).or_else(|| nearest(&name, properties.keys().map(String::as_str)));
                    self.say(
                        &format!("{path}.{}", clipped(&name)),
                        Reason::UnknownField,
                        unknown_field(&name, near, properties.keys().map(String::as_str)),
                    );
                }
            }
        }
        for name in required.iter().filter(|name| !map.contains_key(name.as_str())) {
            self.say(&format!("{path}.{name}"), Reason::Missing, "is required: add it");
        }
    }

    fn list(&mut self, items: &Node, bounds: (usize, usize), keys: &Keys, list: &[Value], path: &str) {
        let (min, max) = bounds;
        if list.len() < min {
            self.say(path, Reason::Missing, "must have at least one entry: add one");
        }
        if list.len() > max {
            self.say(path, Reason::InvalidValue, format!("has {} entries, at most {max} are allowed", list.len()));
            return;
        }
        let mut seen = HashSet::new();
        for (index, item) in list.iter().enumerate() {
            let place = format!("{path}[{index}]");
            self.visit(items, item, &place);
            let key = match keys {
                Keys::None => continue,
                Keys::Whole => shown(item),
                Keys::Fields(names) => names.iter().map(|name| item.get(name.as_str()).map(shown).unwrap_or_default()).collect::<Vec<_>>().join(" "),
            };
            if !key.trim().is_empty() && !seen.insert(key.clone()) {
                self.say(&place, Reason::Conflict, format!("`{}` is there twice: remove one of the two", clipped(&key)));
            }
        }
    }

    fn text(&mut self, chars_max: usize, pattern: Option<&Regex>, text: &str, path: &str) {
        let chars = text.chars().count();
        if chars > chars_max {
            self.say(path, Reason::InvalidValue, format!("has {chars} characters, at most {chars_max} are allowed"));
            return;
        }
        let Some(pattern) = pattern else { return };
        let refused = match pattern.as_str() {
            DURATION_PATTERN => text.parse::<Duration>().err(),
            SIZE_PATTERN => text.parse::<ByteSize>().err(),
            ENGINE_THRESHOLDS_PATTERN => text.parse::<text::EngineThresholds>().err(),
            _ if pattern.is_match(text) => None,
            _ => Some(not_that(text, pattern)),
        };
        if let Some(message) = refused {
            self.say(path, Reason::InvalidValue, message);
        }
    }
}

/// Says that there is no such field, and which one may be meant.
pub(crate) fn unknown_field<'a>(name: &str, near: Option<&str>, known: impl Iterator<Item = &'a str>) -> String {
    let name = clipped(name);
    let known = known.collect::<Vec<_>>().join(", ");
    match near {
        Some(near) => format!("unknown field `{name}`, did you mean `{near}`?"),
        None if known.is_empty() => format!("unknown field `{name}`: there are no fields here, remove it"),
        None => format!("unknown field `{name}`: the fields here are {known}"),
    }
}

/// Says what a text should have been, with a suggestion where there is an obvious one.
fn not_that(text: &str, pattern: &Regex) -> String {
    let words = WORDINGS.iter().find(|wording| wording.pattern == pattern.as_str()).map_or("text that fits its pattern", |wording| wording.words);
    // Free text has no obvious repair.
    let free = pattern.as_str().starts_with("^[^");
    let repaired = repaired(text).into_iter().filter(|_| !free).find(|candidate| candidate != text && pattern.is_match(candidate));
    let advice = repaired.map(|repaired| format!("; write `{repaired}`")).unwrap_or_default();
    format!("`{}` is not {words}{advice}", clipped(text))
}

/// What somebody may have meant: lower case, no surrounding space, no final dot, A-labels, no brackets, no leading dot, no port, a prefix length.
fn repaired(text: &str) -> Vec<String> {
    let plain = text.trim().trim_end_matches('.').to_lowercase();
    let (star, name) = plain.strip_prefix("*.").map_or(("", plain.as_str()), |name| ("*.", name));
    let ascii = idna::domain_to_ascii(name).map(|name| format!("{star}{name}")).unwrap_or_default();
    let bare = plain.trim_start_matches('.').trim_start_matches('[').trim_end_matches(']').to_owned();
    let after_at = plain.rsplit('@').next().unwrap_or_default().to_owned();
    let one_address = match text.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(address)) => format!("{address}/32"),
        Ok(std::net::IpAddr::V6(address)) => format!("{address}/128"),
        Err(_) => String::new(),
    };
    let without_port = plain.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(host, _)| host.to_owned()).unwrap_or_default();
    vec![plain, ascii, bare, after_at, one_address, without_port]
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(b) => b.to_string(),
        other => serde_yaml::to_string(other).unwrap_or_default().trim_end().to_owned(),
    }
}

/// Whether a text is `host:port`, the host a name, an IPv4 address or an IPv6 address in brackets.
pub(crate) fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let named = !host.is_empty() && host.len() <= 253 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let bracketed = text.parse::<std::net::SocketAddrV6>().is_ok();
    port.parse::<u16>().is_ok_and(|port| port > 0) && (named || bracketed)
}

/// At most 80 characters of what somebody wrote, on one line.
pub(crate) fn clipped(text: &str) -> String {
    let mut short: String = text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(80).is_some() {
        short.push_str("...");
    }
    short
}

fn described(value: &Value) -> String {
    match value {
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "an object with fields".to_owned(),
        Value::Tagged(tagged) => format!("something with the YAML tag {}", clipped(&tagged.tag.to_string())),
        Value::String(text) => format!("the text `{}`", clipped(text)),
        other => shown(other),
    }
}
