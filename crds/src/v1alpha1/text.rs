//! Bounded strings: each knows its length, its pattern, and the words that explain the pattern to somebody who got it wrong.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::json;

/// What a pattern means, for error texts.
#[derive(Clone, Copy, Debug)]
pub struct Wording {
    /// The pattern as it stands in the schema.
    pub pattern: &'static str,
    /// "must be ...".
    pub words: &'static str,
}

macro_rules! texts {
    ($($(#[$meta:meta])* $name:ident { max: $max:expr, pattern: $pattern:expr, words: $words:expr $(, rule: $rule:expr => $message:expr)? })+) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
            #[serde(transparent)]
            pub struct $name(pub String);

            impl Deref for $name {
                type Target = str;
                fn deref(&self) -> &str {
                    &self.0
                }
            }

            impl From<&str> for $name {
                fn from(text: &str) -> Self {
                    Self(text.to_owned())
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(&self.0)
                }
            }

            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($name).into()
                }
                fn inline_schema() -> bool {
                    true
                }
                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    #[allow(unused_mut, reason = "only texts with a rule change it")]
                    let mut schema = json_schema!({"type": "string", "maxLength": $max, "pattern": $pattern});
                    $(schema.insert("x-kubernetes-validations".into(), json!([{"rule": $rule, "message": $message}]));)?
                    schema
                }
            }
        )+

        /// What each pattern of this file means.
        pub const WORDINGS: &[Wording] = &[$(Wording { pattern: $pattern, words: $words }),+];
    };
}

/// One label of a domain name, lower case (underscores exist in real names).
macro_rules! label {
    () => {
        "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
    };
}
/// 1 to 65535.
macro_rules! port {
    () => {
        "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
    };
}
/// A dotted quad.
macro_rules! ipv4 {
    () => {
        "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}

texts! {
    /// Name of an object (DNS subdomain).
    ObjectName { max: 253, pattern: "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$",
        words: "the name of an object: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit" }
    /// Name of a namespace, a listener or a route (DNS label).
    Label { max: 63, pattern: "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        words: "at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit" }
    /// Name of a port (as Kubernetes wants it).
    PortName { max: 15, pattern: "^[a-z]([-a-z0-9]{0,13}[a-z0-9])?$",
        words: "at most 15 lower-case letters, digits and '-', beginning with a letter" }
    /// A domain, or `*.` and a domain of at least two labels; lower-case A-labels.
    Domain { max: 253, pattern: concat!("^(\\*\\.(", label!(), "\\.)+|(", label!(), "\\.)*)", label!(), "$"),
        words: "a domain in lower-case A-labels such as example.com, or *.example.com for every name below it" }
    /// A host name, lower-case A-labels.
    HostName { max: 253, pattern: concat!("^(", label!(), "\\.)*", label!(), "$"),
        words: "a host name in lower-case A-labels such as mx.example.net" }
    /// A host name or an IP address without brackets.
    RouteHost { max: 253, pattern: concat!("^((", label!(), "\\.)*", label!(), "|[0-9a-f:.]{2,45})$"),
        words: "a host name in lower-case A-labels such as mail.example.com, or an IP address without brackets and port",
        rule: "!self.matches('^[0-9.]+$') && !self.contains(':') || isIP(self)" => "is neither a host name nor an IP address: write 192.0.2.1 or 2001:db8::1, and the port in its own field" }
    /// A network in CIDR form.
    Network { max: 43, pattern: "^[0-9a-fA-F:.]{2,39}/[0-9]{1,3}$",
        words: "a network with its prefix length such as 192.0.2.0/24 or 2001:db8::/32 (one address: /32 or /128)",
        rule: "isCIDR(self)" => "is not a network: write 192.0.2.0/24 or 2001:db8::/32" }
    /// `host:port`.
    HostPort { max: 259, pattern: concat!("^([A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\\[[0-9a-fA-F:.]{2,45}\\]):", port!(), "$"),
        words: "host and port such as rspamd.mail.svc:11333, 192.0.2.1:3310 or [2001:db8::1]:3310" }
    /// `address:port`, no name.
    AddressPort { max: 53, pattern: concat!("^(", ipv4!(), "|\\[[0-9a-fA-F:]{2,39}\\]):", port!(), "$"),
        words: "an IP address and a port such as 192.0.2.53:53 or [2001:db8::53]:53" }
    /// A container image; a digest is preferred.
    Image { max: 512, pattern: "^[A-Za-z0-9][A-Za-z0-9._/:@-]*$", words: "a container image such as registry.example/name@sha256:..." }
    /// An absolute path of a unix socket (the kernel's bound is 107 bytes).
    SocketPath { max: 107, pattern: "^/[!-~]+$", words: "an absolute path such as /run/clamd.sock" }
    /// A URL.
    Url { max: 1024, pattern: "^[a-z][a-z0-9+.-]{0,15}://[!-~]+$", words: "a URL such as https://mirror.example/clamav" }
    /// A version.
    Version { max: 63, pattern: "^[0-9A-Za-z][0-9A-Za-z._+~:-]*$", words: "a version in quotes such as \"1.4.3\"" }
    /// A file name extension.
    Extension { max: 32, pattern: "^[a-z0-9][a-z0-9._+-]*$", words: "a file name extension in lower case without the leading dot, such as exe" }
    /// Printable text on one line.
    OneLine { max: 128, pattern: "^[^\\x00-\\x1f\\x7f]*$", words: "at most 128 characters on one line, without control characters" }
    /// What a list entry compares with.
    ListValue { max: 320, pattern: "^[!-~]+$", words: "a domain, an address or a network, in ASCII without spaces" }
    /// A mail address.
    MailAddress { max: 320, pattern: "^[^\\s@]{1,64}@[^\\s@]{1,255}$", words: "an address such as info@example.com" }
    /// A value of an annotation.
    AnnotationValue { max: 4096, pattern: "^[^\\x00]*$", words: "at most 4096 characters" }
    /// A label's value or key.
    LabelText { max: 317, pattern: "^[A-Za-z0-9]?[A-Za-z0-9._/-]*$", words: "a label: letters, digits, '-', '_', '.' and '/'" }
    /// A DKIM selector.
    Selector { max: 63, pattern: concat!("^(", label!(), "\\.)*", label!(), "$"), words: "a DKIM selector such as s1, in lower case" }
    /// Any short text of a status.
    StatusText { max: 1024, pattern: "^[^\\x00]*$", words: "at most 1024 characters" }
}

/// A Kubernetes quantity, written as a number or in quotes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

/// The pattern of a quantity.
pub const QUANTITY_PATTERN: &str = "^[0-9]{1,15}(\\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$";

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Number(number) => Self(number.to_string()),
            Form::Text(text) => Self(text),
        })
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-int-or-string": true, "maxLength": 32, "pattern": QUANTITY_PATTERN})
    }
}

/// A score in thresholds of the engines, in quotes: `"1"` is where an engine itself says spam. Two decimals at most; held as hundredths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineThresholds {
    /// Hundredths of a threshold.
    pub hundredths: i32,
}

/// The pattern of [`EngineThresholds`].
pub const ENGINE_THRESHOLDS_PATTERN: &str = "^[0-9]{1,4}(\\.[0-9]{1,2})?$";

impl fmt::Display for EngineThresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.hundredths / 100, self.hundredths % 100);
        if part == 0 { write!(f, "{whole}") } else { write!(f, "{whole}.{part:02}") }
    }
}

impl std::str::FromStr for EngineThresholds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a number of thresholds: write \"1\" or \"1.5\", with at most two decimals");
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str, most: usize| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole, 4) || !digits(part, 2) {
            return Err(wrong());
        }
        let whole: i32 = whole.parse().map_err(|_| wrong())?;
        let hundredths: i32 = format!("{part:0<2}").parse().map_err(|_| wrong())?;
        Ok(Self { hundredths: whole * 100 + hundredths })
    }
}

impl Serialize for EngineThresholds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EngineThresholds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for EngineThresholds {
    fn schema_name() -> Cow<'static, str> {
        "EngineThresholds".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 7, "pattern": ENGINE_THRESHOLDS_PATTERN})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_read_and_print() {
        for (text, hundredths) in [("1", 100), ("1.5", 150), ("0.75", 75), ("9999", 999_900)] {
            assert_eq!(text.parse::<EngineThresholds>().expect(text).hundredths, hundredths);
        }
        assert_eq!(EngineThresholds { hundredths: 150 }.to_string(), "1.50");
        for text in ["", ".", "1.", ".5", "-1", "1.234", "10000", "1,5"] {
            text.parse::<EngineThresholds>().expect_err(text);
        }
    }

    #[test]
    fn every_pattern_is_a_regular_expression_that_differs_in_meaning() {
        for wording in WORDINGS {
            regex::Regex::new(wording.pattern).expect(wording.pattern);
            let same: Vec<_> = WORDINGS.iter().filter(|other| other.pattern == wording.pattern && other.words != wording.words).collect();
            assert!(same.len() <= 1 || wording.pattern == "^[^\\x00]*$", "{} has several meanings", wording.pattern);
        }
    }
}
