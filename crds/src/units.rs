//! Durations and sizes as users write them.
//!
//! Durations are those of Gateway API (GEP-2257): `720h`, `1h30m`, `30s`, `500ms`; no days, no sign, no fraction.
//! Sizes are a subset of Kubernetes quantities: `64Mi`, `30Ki`, `1Gi`, `500M`, or a plain number of bytes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time, at least 1 ms when not zero, at most 99999h59m59s999ms (GEP-2257).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Duration(std::time::Duration);

/// The pattern of GEP-2257.
pub const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// The pattern of a size.
pub const SIZE_PATTERN: &str = "^[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?$";

impl Duration {
    /// From whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(std::time::Duration::from_secs(secs))
    }
    /// From milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(std::time::Duration::from_millis(ms))
    }
    /// As the standard library's type.
    pub const fn std(self) -> std::time::Duration {
        self.0
    }
}

impl From<Duration> for std::time::Duration {
    fn from(d: Duration) -> Self {
        d.0
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a duration: write hours, minutes, seconds or milliseconds, such as 720h, 1h30m, 10s or 500ms (no days, no fractions)"
            )
        };
        let mut total_ms: u64 = 0;
        let mut rest = text;
        let mut groups = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            if digits == 0 || digits > 5 || groups == 4 {
                return Err(wrong());
            }
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let (unit_ms, unit_len) = if tail.starts_with("ms") {
                (1, 2)
            } else if tail.starts_with('h') {
                (3_600_000, 1)
            } else if tail.starts_with('m') {
                (60_000, 1)
            } else if tail.starts_with('s') {
                (1000, 1)
            } else {
                return Err(wrong());
            };
            total_ms += number * unit_ms;
            rest = tail.split_at(unit_len).1;
            groups += 1;
        }
        if groups == 0 {
            return Err(wrong());
        }
        Ok(Self::from_millis(total_ms))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = self.0.as_millis();
        if ms == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if ms >= size {
                write!(f, "{}{unit}", ms / size)?;
                ms %= size;
            }
        }
        Ok(())
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1000),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size: write bytes with a unit, such as 64Mi, 500M or 1Gi");
        let (number, factor) = SIZE_UNITS.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|n| (n, *factor))).unwrap_or((text, 1));
        if number.is_empty() || number.len() > 15 || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in SIZE_UNITS.iter().take(4) {
            if self.0 > 0 && self.0.is_multiple_of(*size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

macro_rules! as_text {
    ($type:ident, $pattern:expr, $max:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "maxLength": $max, "pattern": $pattern})
            }
        }
    };
}

as_text!(Duration, DURATION_PATTERN, 32);
as_text!(ByteSize, SIZE_PATTERN, 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for (text, ms) in [("720h", 2_592_000_000), ("1h30m", 5_400_000), ("10s", 10_000), ("500ms", 500), ("0s", 0)] {
            let duration: Duration = text.parse().expect(text);
            assert_eq!(duration.std().as_millis(), ms, "{text}");
            assert_eq!(duration.to_string(), text);
        }
        for text in ["", "1d", "-1s", "1.5h", "h", "123456s", "1h1h1h1h1h", "10"] {
            text.parse::<Duration>().expect_err(text);
        }
    }

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes) in [("64Mi", 64 << 20), ("30Ki", 30 << 10), ("1Gi", 1 << 30), ("7", 7)] {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!(size.0, bytes);
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("500M".parse::<ByteSize>(), Ok(ByteSize(500_000_000)));
        for text in ["", "Mi", "1.5Gi", "-1", "1 Mi", "64MB", "99999999999999Ti"] {
            text.parse::<ByteSize>().expect_err(text);
        }
    }
}
