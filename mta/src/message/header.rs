//! The top header as spans: what is a field, what is not, where the body begins. Nothing is decoded here.
//!
//! A field's name is what RFC 5322 section 2.2 allows (printable ASCII but the colon), with the white space before the colon that section 4.5 still lets
//! readers take. A line that is neither a field nor the continuation of one is skipped together with its continuations, so `Fr om:` is no From.

use memchr::memchr;

use super::{HeaderField, Limits};

/// The top header.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// The fields within the limits.
    pub(super) fields: Vec<HeaderField>,
    /// Where the body begins.
    pub(super) body_offset: usize,
    /// A line is no field.
    pub(super) broken: bool,
    /// There is more than the limits allow; what came later is not in `fields`.
    pub(super) too_large: bool,
}

/// What the line before belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Field,
    NoField,
    BeyondLimits,
}

/// Reads up to the empty line. Linear in the size of the header.
pub(super) fn scan(raw: &[u8], limits: &Limits) -> Header {
    let mut header = Header { fields: Vec::with_capacity(24), ..Header::default() };
    let mut at = 0;
    let mut before = Line::NoField;
    while let Some(rest) = raw.get(at..).filter(|rest| !rest.is_empty()) {
        let end = at + memchr(b'\n', rest).map_or(rest.len(), |found| found + 1);
        let line = without_line_end(raw.get(at..end).unwrap_or_default());
        let continues = matches!(line.first(), Some(b' ' | b'\t'));
        if line.is_empty() {
            at = end;
            break;
        } else if end > limits.header_bytes || (!continues && header.fields.len() >= limits.header_fields) {
            header.too_large = true;
            before = Line::BeyondLimits;
        } else if continues {
            match header.fields.last_mut().filter(|_| before == Line::Field) {
                Some(field) => {
                    field.value.end = at + line.len();
                    field.whole.end = end;
                }
                None => header.broken |= before == Line::NoField,
            }
        } else {
            let field = field(line, at, end);
            before = if field.is_some() { Line::Field } else { Line::NoField };
            header.broken |= field.is_none();
            header.fields.extend(field);
        }
        at = end;
    }
    header.body_offset = at;
    header
}

fn field(line: &[u8], at: usize, end: usize) -> Option<HeaderField> {
    let colon = memchr(b':', line)?;
    let name = line.get(..colon)?.trim_ascii_end();
    let legal = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
    legal.then(|| HeaderField { name: at..at + name.len(), value: at + colon + 1..at + line.len(), whole: at..end })
}

fn without_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields as `name=value`, then the body.
    fn check(raw: &str, fields: &[&str], body: &str, broken: bool) {
        let header = scan(raw.as_bytes(), &Limits::default());
        let text = |span: &std::ops::Range<usize>| raw.get(span.clone()).expect("within");
        let found: Vec<String> = header.fields.iter().map(|f| format!("{}={}", text(&f.name), text(&f.value))).collect();
        assert_eq!(found, fields, "{raw:?}");
        assert_eq!(text(&(header.body_offset..raw.len())), body, "{raw:?}");
        assert_eq!(header.broken, broken, "{raw:?}");
        assert!(!header.too_large);
        for f in &header.fields {
            assert!(text(&f.whole).ends_with('\n') || f.whole.end == raw.len(), "{raw:?}: a field ends with its line");
        }
    }

    #[test]
    fn finds_fields_and_body() {
        check("A: 1\r\nB:2\r\n\r\nbody", &["A= 1", "B=2"], "body", false);
        check("A: 1\r\n folded\r\n\tmore\r\nB:\r\n\r\n", &["A= 1\r\n folded\r\n\tmore", "B="], "", false);
        check("A :1\r\nB\t: 2\r\n\r\nx", &["A=1", "B= 2"], "x", false);
        check("A: no empty line\r\n", &["A= no empty line"], "", false);
        check("A: no line end", &["A= no line end"], "", false);
        check("", &[], "", false);
        check("\r\nbody only", &[], "body only", false);
        check("A: white space is no end\r\n \r\nB: 2\r\n\r\nx", &["A= white space is no end\r\n ", "B= 2"], "x", false);
        check("A: bare LF\nB: 2\n\nx", &["A= bare LF", "B= 2"], "x", false);
    }

    #[test]
    fn what_is_no_field_is_skipped_with_its_continuations() {
        check("From: a@b\r\nFr om: x@evil\r\nTo: c\r\n\r\nx", &["From= a@b", "To= c"], "x", true);
        check("From x@y Mon Jan 1\r\nA: 1\r\n\r\nx", &["A= 1"], "x", true);
        check("A: 1\r\nnonsense\r\n B: hidden\r\nC: 3\r\n\r\nx", &["A= 1", "C= 3"], "x", true);
        check(" first line folded\r\nA: 1\r\n\r\nx", &["A= 1"], "x", true);
        check(": no name\r\nA: 1\r\n\r\nx", &["A= 1"], "x", true);
        check("N\u{e4}me: 8-bit name\r\nA: 1\r\n\r\nx", &["A= 1"], "x", true);
        check("Na\0me: NUL in name\r\nA: 1\r\n\r\nx", &["A= 1"], "x", true);
    }

    #[test]
    fn too_much_is_said_and_the_body_still_found() {
        let limits = Limits { header_fields: 3, header_bytes: 100, ..Limits::default() };
        let raw = b"A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n more\r\n\r\nbody";
        let header = scan(raw, &limits);
        assert_eq!((header.fields.len(), header.too_large, header.broken), (3, true, false));
        assert_eq!(&raw[header.body_offset..], b"body");
        // The limit is the last that is allowed, with its continuation lines.
        let header = scan(b"A: 1\r\nB: 2\r\nC: 3\r\n folded\r\n\r\nbody", &limits);
        assert_eq!((header.fields.len(), header.too_large, header.fields[2].value.clone()), (3, false, 14..25));
        let raw = [b"A: ", &vec![b'x'; 200][..], b"\r\n\r\nbody"].concat();
        let header = scan(&raw, &limits);
        assert_eq!((header.fields.len(), header.too_large), (0, true));
        assert_eq!(&raw[header.body_offset..], b"body");
    }
}
