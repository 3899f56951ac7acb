//! The name of a message on its way: 26 characters of Crockford base32, 48 bits of time and 80 random bits (the layout of a ULID), so names sort by age.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A queue id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub u128);

impl QueueId {
    /// From milliseconds since 1970 and randomness, of which 80 bits are used.
    pub const fn new(now_ms: u64, random: u128) -> Self {
        Self(((now_ms as u128 & 0xffff_ffff_ffff) << 80) | (random & ((1 << 80) - 1)))
    }

    /// When it was made, milliseconds since 1970.
    pub const fn created_ms(self) -> u64 {
        (self.0 >> 80) as u64
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        (0..26).rev().try_for_each(|i| f.write_char(ALPHABET[(self.0 >> (i * 5)) as usize & 31] as char))
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for QueueId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a queue id: 26 characters of 0-9 and A-Z without I, L, O and U");
        if text.len() != 26 {
            return Err(wrong());
        }
        let mut value: u128 = 0;
        for (i, byte) in text.bytes().enumerate() {
            let digit = ALPHABET.iter().position(|a| *a == byte.to_ascii_uppercase()).ok_or_else(wrong)? as u128;
            if i == 0 && digit > 7 {
                return Err(wrong());
            }
            value = (value << 5) | digit;
        }
        Ok(Self(value))
    }
}

impl Serialize for QueueId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QueueId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for id in [QueueId::new(0, 0), QueueId::new(1_795_600_000_123, u128::MAX), QueueId(u128::MAX), QueueId(1)] {
            assert_eq!(id.to_string().len(), 26);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!(QueueId::new(1_795_600_000_123, 5).created_ms(), 1_795_600_000_123);
        for wrong in ["", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "0123456789012345678901234I", "../../etc/passwd0000000000"] {
            wrong.parse::<QueueId>().expect_err(wrong);
        }
    }
}
