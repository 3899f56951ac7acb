//! Changes to a message as data: a list, applied all-or-nothing, that never copies the message.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Replace `at` (empty: insert before) by `with`.
///
/// In JSON: `{"at":[from,to],"with":"text"}`, and where `with` is not UTF-8 `{"at":[from,to],"with":{"base64":"..."}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Bytes of the original.
    pub at: Range<usize>,
    /// What stands there instead; empty: removed.
    pub with: Bytes,
}

/// A list of edits, sorted, not overlapping. [`EditsBuilder`] makes it.
///
/// What is only taken away is kept apart, as all copies of a message can share it: a sender chooses how many fields that are, and how many tenants there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edits {
    /// Edits that put something there.
    own: Vec<Edit>,
    /// What is only taken away.
    removed: Arc<[Range<usize>]>,
}

impl Default for Edits {
    fn default() -> Self {
        Self { own: vec![], removed: Arc::new([]) }
    }
}

impl From<Vec<Edit>> for Edits {
    /// A list as it is: [`Edits::check`] says whether it is one of a message.
    fn from(list: Vec<Edit>) -> Self {
        let (removed, own): (Vec<Edit>, Vec<Edit>) = list.into_iter().partition(|edit| edit.with.is_empty());
        Self { own, removed: removed.into_iter().map(|edit| edit.at).collect() }
    }
}

/// Why a list of edits is no list of edits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Beyond the end, or backwards.
    #[error("the edit of bytes {from}..{to} does not lie within the message's {raw_len} bytes")]
    OutOfBounds {
        /// First byte.
        from: usize,
        /// Byte after the last.
        to: usize,
        /// Length of the message.
        raw_len: usize,
    },
    /// Two edits want the same byte, or one inserts into what another removes.
    #[error("the edit of bytes {from}..{to} begins before byte {previous_end}, where the one before it ends")]
    Overlap {
        /// First byte.
        from: usize,
        /// Byte after the last.
        to: usize,
        /// Where the previous edit ends.
        previous_end: usize,
    },
}

impl Edits {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.removed.is_empty()
    }

    /// All edits in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = Edit> + '_ {
        let mut own = self.own.iter().peekable();
        let mut removed = self.removed.iter().peekable();
        std::iter::from_fn(move || {
            let own_first = match (own.peek(), removed.peek()) {
                (Some(edit), Some(range)) => (edit.at.start, edit.at.end) <= (range.start, range.end),
                (edit, _) => edit.is_some(),
            };
            if own_first { own.next().cloned() } else { removed.next().map(|range| Edit { at: range.clone(), with: Bytes::new() }) }
        })
    }

    /// What is only taken away.
    pub fn removed(&self) -> &Arc<[Range<usize>]> {
        &self.removed
    }

    /// The same without what is only taken away.
    pub(crate) fn without_removed(&self) -> Self {
        Self { own: self.own.clone(), ..Self::default() }
    }

    /// The same, and these ranges taken away instead of those that were.
    pub(crate) fn with_removed(self, removed: &Arc<[Range<usize>]>) -> Self {
        Self { removed: Arc::clone(removed), ..self }
    }

    /// Uses the other's memory for what is taken away, if that is the same.
    pub(crate) fn share_removed(&mut self, other: &Self) {
        if self.removed == other.removed {
            self.removed = Arc::clone(&other.removed);
        }
    }

    /// Bytes of memory of what is not shared.
    pub fn own_bytes(&self) -> usize {
        self.own.iter().map(|edit| size_of::<Edit>() + edit.with.len()).sum()
    }

    /// Bytes of memory of what is only taken away.
    pub fn removed_bytes(&self) -> usize {
        self.removed.len() * size_of::<Range<usize>>()
    }

    fn len(&self) -> usize {
        self.own.len() + self.removed.len()
    }

    /// Whether every edit lies within `raw_len` bytes and none overlaps another.
    pub fn check(&self, raw_len: usize) -> Result<(), EditError> {
        let mut previous_end = 0;
        for Edit { at: Range { start: from, end: to }, .. } in self.iter() {
            if from > to || to > raw_len {
                return Err(EditError::OutOfBounds { from, to, raw_len });
            }
            if from < previous_end {
                return Err(EditError::Overlap { from, to, previous_end });
            }
            previous_end = to;
        }
        Ok(())
    }

    /// The edited message as slices of `raw` and of the edits, in order, none empty. A list that does not fit `raw` changes nothing at all.
    pub fn apply(&self, raw: &Bytes) -> Vec<Bytes> {
        if self.check(raw.len()).is_err() {
            return vec![raw.clone()];
        }
        let mut rope = Vec::with_capacity(2 * self.len() + 1);
        let mut done = 0;
        for edit in self.iter() {
            rope.push(raw.slice(done..edit.at.start));
            rope.push(edit.with);
            done = edit.at.end;
        }
        rope.push(raw.slice(done..));
        rope.retain(|piece| !piece.is_empty());
        rope
    }

    /// Bytes of the edited message, of an original of `raw_len` bytes.
    pub fn len_after(&self, raw_len: usize) -> usize {
        if self.check(raw_len).is_err() {
            return raw_len;
        }
        self.iter().fold(raw_len, |len, edit| len - edit.at.len() + edit.with.len())
    }
}

/// Collects edits in any order.
#[derive(Clone, Debug)]
pub struct EditsBuilder {
    raw_len: usize,
    edits: Vec<Edit>,
}

impl EditsBuilder {
    /// For a message of `raw_len` bytes.
    pub const fn new(raw_len: usize) -> Self {
        Self { raw_len, edits: Vec::new() }
    }

    /// Inserts before byte `at`. Several at one place keep the order of the calls.
    pub fn insert(&mut self, at: usize, with: impl Into<Bytes>) -> &mut Self {
        self.push(Edit { at: at..at, with: with.into() })
    }

    /// Removes bytes.
    pub fn remove(&mut self, at: Range<usize>) -> &mut Self {
        self.push(Edit { at, with: Bytes::new() })
    }

    /// Puts other bytes in their place.
    pub fn replace(&mut self, at: Range<usize>, with: impl Into<Bytes>) -> &mut Self {
        self.push(Edit { at, with: with.into() })
    }

    /// Adds an edit.
    pub fn push(&mut self, edit: Edit) -> &mut Self {
        self.edits.push(edit);
        self
    }

    /// The list, sorted; any error means no edits at all. The builder is empty afterwards.
    pub fn build(&mut self) -> Result<Edits, EditError> {
        let mut list = std::mem::take(&mut self.edits);
        // Insertions first: what is put before a removed range is not inside it.
        list.sort_by_key(|edit| (edit.at.start, edit.at.end));
        list.retain(|edit| edit.at.start != edit.at.end || !edit.with.is_empty());
        let edits = Edits::from(list);
        edits.check(self.raw_len)?;
        Ok(edits)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text<'a> {
    Plain(std::borrow::Cow<'a, str>),
    Binary { base64: std::borrow::Cow<'a, str> },
}

impl Serialize for Edit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let with = match std::str::from_utf8(&self.with) {
            Ok(text) => Text::Plain(text.into()),
            Err(_) => Text::Binary { base64: BASE64.encode(&self.with).into() },
        };
        let mut out = serializer.serialize_struct("Edit", 2)?;
        out.serialize_field("at", &(self.at.start, self.at.end))?;
        out.serialize_field("with", &with)?;
        out.end()
    }
}

impl<'de> Deserialize<'de> for Edit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Edit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an edit: {\"at\":[from,to],\"with\":...}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Edit, A::Error> {
                let (mut at, mut with) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "at" => at = Some(map.next_value::<(usize, usize)>()?),
                        "with" => with = Some(map.next_value::<Text<'static>>()?),
                        other => return Err(de::Error::unknown_field(other, &["at", "with"])),
                    }
                }
                let (start, end) = at.ok_or_else(|| de::Error::missing_field("at"))?;
                let with = match with.ok_or_else(|| de::Error::missing_field("with"))? {
                    Text::Plain(text) => Bytes::from(text.into_owned()),
                    Text::Binary { base64 } => BASE64.decode(base64.as_bytes()).map_err(de::Error::custom)?.into(),
                };
                Ok(Edit { at: start..end, with })
            }
        }
        deserializer.deserialize_struct("Edit", &["at", "with"], Fields)
    }
}

impl Serialize for Edits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Edits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let edits = Self::from(Vec::deserialize(deserializer)?);
        edits.check(usize::MAX).map_err(de::Error::custom)?;
        Ok(edits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(rope: &[Bytes]) -> Vec<u8> {
        rope.iter().flat_map(|piece| piece.iter().copied()).collect()
    }

    #[test]
    fn applies_in_order_whatever_the_order_of_the_calls() {
        let raw = Bytes::from_static(b"0123456789");
        let edits = EditsBuilder::new(10)
            .remove(5..7)
            .insert(10, "end")
            .insert(0, "a")
            .insert(0, "b")
            .insert(5, "before")
            .insert(7, "after")
            .replace(1..2, "ONE")
            .build()
            .expect("they do not overlap");
        let rope = edits.apply(&raw);
        assert_eq!(joined(&rope), b"ab0ONE234beforeafter789end");
        assert_eq!(edits.len_after(10), joined(&rope).len());
        assert!(rope.iter().all(|piece| !piece.is_empty()));
    }

    #[test]
    fn never_copies_the_message() {
        let raw = Bytes::from(vec![b'x'; 1000]);
        let rope = EditsBuilder::new(1000).insert(0, "head").remove(10..20).build().expect("fits").apply(&raw);
        assert_eq!(rope.len(), 3);
        assert_eq!(rope[1].as_ptr(), raw.as_ptr());
        assert_eq!(rope[2].as_ptr(), raw.slice(20..).as_ptr());
        assert_eq!(Edits::default().apply(&raw)[0].as_ptr(), raw.as_ptr());
        assert!(Edits::default().apply(&Bytes::new()).is_empty());
    }

    #[test]
    fn one_wrong_edit_means_no_edits_at_all() {
        #[expect(clippy::reversed_empty_ranges, reason = "that is the case")]
        let cases: Vec<(Vec<Edit>, &str)> = vec![
            (vec![Edit { at: 0..11, with: Bytes::new() }], "within"),
            (vec![Edit { at: 11..11, with: "x".into() }], "within"),
            (vec![Edit { at: 5..3, with: "x".into() }], "within"),
            (vec![Edit { at: 0..4, with: "x".into() }, Edit { at: 3..5, with: "y".into() }], "begins before"),
            (vec![Edit { at: 0..4, with: "x".into() }, Edit { at: 0..4, with: "y".into() }], "begins before"),
            (vec![Edit { at: 2..6, with: Bytes::new() }, Edit { at: 4..4, with: "inside".into() }], "begins before"),
        ];
        let raw = Bytes::from_static(b"0123456789");
        for (list, says) in cases {
            let mut builder = EditsBuilder::new(10);
            builder.insert(0, "good");
            for edit in &list {
                builder.push(edit.clone());
            }
            let error = builder.build().expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
            // A list from elsewhere, such as a spool written for another message.
            let foreign = Edits::from(list);
            assert_eq!(joined(&foreign.apply(&raw)), b"0123456789");
            assert_eq!(foreign.len_after(10), 10);
        }
    }

    #[test]
    fn json_is_compact_and_reads_back() {
        let edits = Edits::from(vec![
            Edit { at: 0..0, with: "Received: from x\r\n\tby \"y\"\r\n".into() },
            Edit { at: 3..9, with: Bytes::new() },
            Edit { at: 12..12, with: Bytes::from_static(b"Subject: \x83\x58\r\n") },
        ]);
        let json = serde_json::to_string(&edits).expect("it is JSON");
        assert_eq!(
            json,
            r#"[{"at":[0,0],"with":"Received: from x\r\n\tby \"y\"\r\n"},{"at":[3,9],"with":""},{"at":[12,12],"with":{"base64":"U3ViamVjdDogg1gNCg=="}}]"#
        );
        assert_eq!(serde_json::from_str::<Edits>(&json).expect("it reads back"), edits);
        for wrong in [
            r#"[{"at":[5,9],"with":""},{"at":[3,4],"with":""}]"#,
            r#"[{"at":[9,5],"with":""}]"#,
            r#"[{"at":[0,0],"with":{"base64":"!"}}]"#,
            r#"[{"at":[0,0]}]"#,
            r#"[{"with":""}]"#,
            r#"[{"at":[0,0],"with":"","more":1}]"#,
        ] {
            serde_json::from_str::<Edits>(wrong).expect_err(wrong);
        }
    }

    proptest! {
        #[test]
        fn apply_equals_a_naive_splice(
            raw in proptest::collection::vec(any::<u8>(), 0..60),
            wanted in proptest::collection::vec((0usize..70, 0usize..10, proptest::collection::vec(any::<u8>(), 0..5)), 0..8),
        ) {
            let mut builder = EditsBuilder::new(raw.len());
            for (at, len, with) in &wanted {
                builder.replace(*at..at + len, with.clone());
            }
            let bytes = Bytes::from(raw.clone());
            let Ok(edits) = builder.build() else {
                // A second opinion on why: something lies outside, or two want the same place.
                let outside = wanted.iter().any(|(at, len, with)| at + len > raw.len() && (*len > 0 || !with.is_empty()));
                let inside = |at: usize, (from, len, _): &(usize, usize, Vec<u8>)| *from < at && at < from + len;
                let clash = wanted.iter().enumerate().any(|(i, one)| wanted.iter().enumerate().any(|(j, two)| {
                    i != j && (inside(one.0, two) || inside(one.0 + one.1, two) || (one.0 == two.0 && one.1 > 0 && two.1 > 0))
                }));
                prop_assert!(outside || clash);
                return Ok(());
            };
            let mut naive = raw.clone();
            for edit in edits.iter().collect::<Vec<_>>().iter().rev() {
                naive.splice(edit.at.clone(), edit.with.iter().copied());
            }
            let rope = edits.apply(&bytes);
            prop_assert_eq!(&joined(&rope), &naive);
            prop_assert_eq!(edits.len_after(raw.len()), naive.len());
            let json = serde_json::to_string(&edits).expect("it is JSON");
            prop_assert_eq!(serde_json::from_str::<Edits>(&json).expect("it reads back"), edits);
        }
    }
}
