//! A message: parsed once, shared read-only, changed only by a list of edits applied all-or-nothing.

pub(crate) mod address;
pub mod edit;
mod header;
mod params;
pub mod parse;
pub mod subject;
pub mod trace;
mod words;

pub use edit::{Edit, EditError, Edits, EditsBuilder};
pub use parse::{Headline, Limits, headline, parse};

use std::ops::Range;

use bytes::Bytes;

/// A parsed message. Broken structure is not an error: what could not be read is said in `defects`.
#[derive(Clone, Debug)]
pub struct Message {
    /// The bytes as received, CRLF line endings.
    pub raw: Bytes,
    /// Where the body begins, after the empty line; `raw.len()` without one.
    pub body_offset: usize,
    /// The top header fields in order.
    pub headers: Vec<HeaderField>,
    /// Every leaf and every embedded message, depth first. Bounded by [`Limits`].
    pub parts: Vec<Part>,
    /// Addresses of all From fields together, domains lower case (A-labels where they can be made).
    pub from: Vec<Mailbox>,
    /// How many From fields there are.
    pub from_fields: usize,
    /// Decoded Subject, if there is one.
    pub subject: Option<String>,
    /// Message-ID without brackets.
    pub message_id: Option<String>,
    /// Number of Received fields.
    pub received_fields: usize,
    /// What is wrong with it.
    pub defects: Vec<Defect>,
}

/// One header field of the top level, as spans of `raw`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderField {
    /// The name, without colon or white space.
    pub name: Range<usize>,
    /// The value, folded as it is, without the last CRLF.
    pub value: Range<usize>,
    /// The whole field with its last CRLF.
    pub whole: Range<usize>,
}

/// An address of a header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Display name, decoded.
    pub name: Option<String>,
    /// Local part.
    pub local: String,
    /// Domain, lower case.
    pub domain: String,
}

/// One MIME part.
#[derive(Clone, Debug)]
pub struct Part {
    /// Lower-case `type/subtype`; `text/plain` where none is given.
    pub content_type: String,
    /// Declared charset, lower case.
    pub charset: Option<String>,
    /// Decoded file name from Content-Disposition or Content-Type, RFC 2231 and RFC 2047 undone.
    pub file_name: Option<String>,
    /// Further names that other readers may take: of several parameters or fields, each but the first.
    pub other_file_names: Vec<String>,
    /// Nesting depth, 0 is the top.
    pub depth: u16,
    /// Content with the transfer encoding undone; text is not converted from its charset here.
    pub content: Bytes,
    /// The transfer encoding was broken.
    pub encoding_broken: bool,
    /// An embedded message: its parts follow, and what they contain is in this content too.
    pub container: bool,
}

/// Something wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Defect {
    /// More parts than the limit: the rest was not looked at.
    TooManyParts,
    /// Nested deeper than the limit.
    TooDeep,
    /// More header bytes or fields than the limit.
    HeadersTooLarge,
    /// A multipart whose boundary never occurs.
    BoundaryMissing,
    /// A line of the header that is no field.
    BrokenHeader,
    /// More than one From, or none, or none with an address.
    FromCount,
    /// A NUL byte.
    NulByte,
    /// A transfer encoding that is broken or unknown.
    BrokenEncoding,
    /// A field more than once that may stand once (Subject, Date, Content-Type and the like): readers disagree about it.
    DuplicateField,
}

impl Message {
    /// Text of a span, lossy.
    pub fn text(&self, span: &Range<usize>) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.raw.get(span.clone()).unwrap_or_default())
    }

    /// Every file name of every part, also the further ones.
    pub fn file_names(&self) -> Vec<String> {
        self.parts.iter().flat_map(|part| part.file_name.iter().chain(&part.other_file_names)).cloned().collect()
    }

    /// The fields of this name, case-insensitive, in order.
    pub fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a HeaderField> + 'a {
        self.headers.iter().filter(move |field| self.raw.get(field.name.clone()).is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes())))
    }
}

#[cfg(test)]
mod tests;
