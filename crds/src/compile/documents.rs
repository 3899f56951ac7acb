//! Text to documents: several in one file, each with its own number, under a budget that aliases and nesting cannot escape.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

use super::problem::{Finding, Problem, Reason};

/// Bytes of one file.
pub const FILE_BYTES_MAX: usize = 32 << 20;
/// Documents of one file.
pub const FILE_DOCUMENTS_MAX: usize = 100_000;
/// Values of one document, after aliases were followed; 32 bytes of text count as one.
pub const DOCUMENT_VALUES_MAX: u32 = 200_000;
/// Values of one file, counted the same way.
pub const FILE_VALUES_MAX: u32 = 5_000_000;
/// Levels of one document.
pub const DOCUMENT_DEPTH_MAX: u32 = 64;

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// File and number of the document in it, from 1: `tenants.yaml#2`.
    pub source: String,
    /// What it says.
    pub value: Value,
}

/// Reads the documents of one file. Empty documents are left out.
///
/// # Errors
/// The first document that is no YAML or beyond the bounds: the file is refused as a whole, because nobody knows what it would have said.
pub fn read_documents(file_name: &str, text: &str) -> Result<Vec<Document>, Problem> {
    let refuse = |source: &str, message: String| Err(Problem::error(source, "", Finding::new("", Reason::Unreadable, message)));
    if text.len() > FILE_BYTES_MAX {
        return refuse(file_name, format!("the file has {} bytes, at most {FILE_BYTES_MAX} are read: split it", text.len()));
    }
    let mut documents = vec![];
    let mut file_values = FILE_VALUES_MAX;
    for (number, (first_line, part)) in split(text).into_iter().enumerate() {
        let source = format!("{file_name}#{}", number + 1);
        if number >= FILE_DOCUMENTS_MAX {
            return refuse(&source, format!("the file has more than {FILE_DOCUMENTS_MAX} documents: split it"));
        }
        let allowed = file_values.min(DOCUMENT_VALUES_MAX);
        let budget = Budget { values: Cell::new(allowed) };
        let outcome = Bounded { budget: &budget, depth: 0 }.deserialize(serde_yaml::Deserializer::from_str(part));
        file_values -= allowed - budget.values.get();
        match outcome {
            Ok(Value::Null) => {}
            Ok(value) => documents.push(Document { source, value }),
            Err(error) => {
                let line = error.location().map_or_else(String::new, |at| format!("line {}, column {}: ", first_line + at.line(), at.column()));
                let what = error.to_string();
                let what = what.split(" at line ").next().unwrap_or_default();
                return refuse(&source, format!("{line}this is not YAML that can be read: {what}; correct it"));
            }
        }
    }
    Ok(documents)
}

/// The documents' texts and the number of lines before each. A line that begins with `---` separates documents wherever it stands (YAML 1.2, 9.1.2).
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut parts = vec![];
    let (mut rest, mut line, mut length, mut first) = (text, 0, 0, 0);
    for piece in text.split_inclusive('\n') {
        let marker = piece.strip_prefix("---").is_some_and(|after| after.is_empty() || after.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            let (part, tail) = rest.split_at(length);
            if line > 0 && !only_comments(part) || !parts.is_empty() {
                parts.push((first, part));
            }
            (rest, length, first) = (tail, 0, line);
        }
        length += piece.len();
        line += 1;
    }
    parts.push((first, rest));
    parts
}

fn only_comments(part: &str) -> bool {
    part.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with(['#', '%']))
}

struct Budget {
    values: Cell<u32>,
}

impl Budget {
    fn charge<E: de::Error>(&self, values: usize) -> Result<(), E> {
        let left = u32::try_from(values).ok().and_then(|values| self.values.get().checked_sub(values));
        let left = left.ok_or_else(|| E::custom("it is too large, or its aliases make it so: split it"))?;
        self.values.set(left);
        Ok(())
    }

    fn text<E: de::Error>(&self, text: &str) -> Result<(), E> {
        self.charge(text.len() / 32)
    }
}

#[derive(Clone, Copy)]
struct Bounded<'b> {
    budget: &'b Budget,
    depth: u32,
}

impl Bounded<'_> {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth >= DOCUMENT_DEPTH_MAX {
            return Err(E::custom(format!("it is nested more than {DOCUMENT_DEPTH_MAX} levels deep")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.budget.charge(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain YAML value without tags")
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }
    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }
    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        self.budget.text(text)?;
        Ok(Value::String(text.to_owned()))
    }
    fn visit_string<E: de::Error>(self, text: String) -> Result<Value, E> {
        self.budget.text(&text)?;
        Ok(Value::String(text))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut list = vec![];
        while let Some(item) = access.next_element_seed(deeper)? {
            list.push(item);
        }
        Ok(Value::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut map = Mapping::new();
        while let Some(key) = access.next_key_seed(deeper)? {
            let Value::String(key) = key else { return Err(de::Error::custom(format!("the key {key:?} is no text: put it in quotes"))) };
            let value = access.next_value_seed(deeper)?;
            if map.contains_key(key.as_str()) {
                return Err(de::Error::custom(format!("the field `{key}` is there twice")));
            }
            map.insert(Value::String(key), value);
        }
        Ok(Value::Mapping(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_numbered_as_they_stand() {
        let text = "# head\n---\na: 1\n--- # second\nb: |\n  text\n  ---x\n---\n\n---\nc: 3\n";
        let documents = read_documents("f.yaml", text).expect("YAML");
        assert_eq!(documents.iter().map(|d| d.source.as_str()).collect::<Vec<_>>(), ["f.yaml#1", "f.yaml#2", "f.yaml#4"]);
    }

    #[test]
    fn a_broken_document_is_named_with_its_line() {
        let problem = read_documents("f.yaml", "a: 1\n---\nb: [1\nc: 2\n").expect_err("broken");
        assert_eq!(problem.source, "f.yaml#2");
        assert!(problem.message.starts_with("line 4"), "{problem}");
    }

    #[test]
    fn bounds_hold_against_aliases_depth_and_duplicates() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..9 {
            let before = format!("*a{}, ", n - 1).repeat(10);
            bomb.push_str(&format!("a{n}: &a{n} [{}]\n", before.trim_end_matches(", ")));
        }
        let deep = format!("a: {}{}", "[".repeat(5000), "]".repeat(5000));
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(1000));
        for (text, word) in [
            (long.as_str(), "aliases"),
            (bomb.as_str(), "YAML"),
            (deep.as_str(), "YAML"),
            ("a: 1\na: 2\n", "twice"),
            ("1: a\n", "quotes"),
            ("a: !x {b: 1}\n", "YAML"),
            ("\u{1}", "YAML"),
        ] {
            let problem = read_documents("f.yaml", text).expect_err("beyond the bounds");
            assert!(problem.message.contains(word), "{problem}");
        }
    }
}
