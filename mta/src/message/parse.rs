//! Parsing, once: the structure by mail-parser (which is iterative and bounded), the header by our own scanner.

use std::collections::HashMap;
use std::sync::OnceLock;

use bytes::Bytes;
use mail_parser::{ContentType, Encoding, HeaderForm, HeaderName, MessageParser, MessagePart, PartFlags, PartId, PartKind, Source};

use super::address::parse_mailboxes;
use super::params::file_names;
use super::words::decode_text;
use super::{Defect, HeaderField, Message, Part, header};

/// Bounds of parsing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nesting of multiparts and embedded messages.
    pub depth: usize,
    /// Parts.
    pub parts: usize,
    /// Bytes of the top header.
    pub header_bytes: usize,
    /// Fields of the top header.
    pub header_fields: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 64, parts: 10_000, header_bytes: 102_400, header_fields: 1000 }
    }
}

/// Fields that RFC 5322 section 3.6 allows once and whose second occurrence makes readers disagree. (From is counted by itself.)
const ONCE: [&str; 10] =
    ["Subject", "Date", "Sender", "Reply-To", "To", "Message-ID", "Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "MIME-Version"];

/// Parses a message; never fails, never recurses. Work and memory are linear in its size, plus the limits.
pub fn parse(raw: Bytes, limits: &Limits) -> Message {
    let header = header::scan(&raw, limits);
    let mut defects = vec![];
    let mut say = |defect: Defect, when: bool| {
        if when && !defects.contains(&defect) {
            defects.push(defect);
        }
    };
    say(Defect::BrokenHeader, header.broken);
    say(Defect::HeadersTooLarge, header.too_large);
    say(Defect::NulByte, memchr::memchr(0, &raw).is_some());
    let parts = read_parts(&raw, limits, &mut say);
    let mut message = Message {
        body_offset: header.body_offset,
        raw,
        headers: header.fields,
        parts,
        from: vec![],
        from_fields: 0,
        subject: None,
        message_id: None,
        received_fields: 0,
        defects: vec![],
    };
    read_fields(&mut message);
    say(Defect::FromCount, message.from_fields != 1 || message.from.is_empty());
    say(Defect::DuplicateField, ONCE.iter().any(|name| message.fields(name).nth(1).is_some()));
    message.defects = defects;
    message
}

/// What people recognise a message by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headline {
    /// Decoded Subject.
    pub subject: Option<String>,
    /// The first address of From.
    pub from: Option<String>,
}

/// Reads the headline without looking at the body.
pub fn headline(raw: &[u8]) -> Headline {
    let header = header::scan(raw, &Limits::default());
    let value = |name: &str| {
        let named = |field: &&HeaderField| raw.get(field.name.clone()).is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()));
        header.fields.iter().find(named).and_then(|field| raw.get(field.value.clone()))
    };
    let mut from = vec![];
    parse_mailboxes(value("From").unwrap_or_default(), &mut from);
    Headline {
        subject: value("Subject").map(|value| decode_text(value, None)),
        from: from.first().map(|mailbox| format!("{}@{}", mailbox.local, mailbox.domain)),
    }
}

fn read_fields(message: &mut Message) {
    let value = |field: &HeaderField| message.raw.get(field.value.clone()).unwrap_or_default();
    let mut from = vec![];
    for field in message.fields("From") {
        parse_mailboxes(value(field), &mut from);
    }
    let charset = message.parts.first().and_then(|part| part.charset.as_deref());
    let subject = message.fields("Subject").next().map(|field| decode_text(value(field), charset));
    let message_id = message.fields("Message-ID").next().and_then(|field| {
        let text = String::from_utf8_lossy(value(field)).trim().to_owned();
        let inner = text.split_once('<').map(|(_, rest)| rest.split('>').next().unwrap_or_default().trim().to_owned());
        Some(inner.unwrap_or(text)).filter(|id| !id.is_empty())
    });
    let from_fields = message.fields("From").count();
    let received_fields = message.fields("Received").count();
    (message.from, message.subject, message.message_id) = (from, subject, message_id);
    (message.from_fields, message.received_fields) = (from_fields, received_fields);
}

/// The parser with every field ignored that is read by our own code, or not at all.
fn parser(limits: &Limits) -> MessageParser {
    static BASE: OnceLock<MessageParser> = OnceLock::new();
    const NOT_OURS: [HeaderName<'static>; 20] = [
        HeaderName::From,
        HeaderName::To,
        HeaderName::Cc,
        HeaderName::Bcc,
        HeaderName::ReplyTo,
        HeaderName::Sender,
        HeaderName::Subject,
        HeaderName::Date,
        HeaderName::MessageId,
        HeaderName::References,
        HeaderName::InReplyTo,
        HeaderName::ReturnPath,
        HeaderName::Received,
        HeaderName::Comments,
        HeaderName::Keywords,
        HeaderName::ListUnsubscribe,
        HeaderName::ListId,
        HeaderName::ListPost,
        HeaderName::ListHelp,
        HeaderName::DkimSignature,
    ];
    let base = BASE.get_or_init(|| {
        let parser = MessageParser::new().unknown_headers(HeaderForm::Ignore);
        NOT_OURS.into_iter().fold(parser, |parser, name| parser.header(name, HeaderForm::Ignore))
    });
    base.clone().max_depth(limits.depth).max_parts(limits.parts)
}

fn read_parts(raw: &Bytes, limits: &Limits, say: &mut impl FnMut(Defect, bool)) -> Vec<Part> {
    let Some(parsed) = parser(limits).parse(raw.as_ref()) else {
        // No header and no empty line: all of it is text, also what our own scanner took for a broken header.
        return vec![Part {
            content_type: "text/plain".into(),
            charset: None,
            file_name: None,
            other_file_names: vec![],
            depth: 0,
            content: raw.clone(),
            encoding_broken: false,
            container: false,
        }];
    };
    let full = parsed.parts().len() >= limits.parts;
    let mut reader = PartReader { raw, decoded: HashMap::new(), depths: Vec::with_capacity(parsed.parts().len()) };
    let mut parts = vec![];
    for part in parsed.parts() {
        let limited = part.flags().intersects(PartFlags::LIMIT_REACHED | PartFlags::NESTING_LIMIT);
        say(Defect::TooManyParts, limited && full);
        say(Defect::TooDeep, limited && !full);
        let depth = reader.depth(&part);
        let has_children = part.children().len() > 0;
        if part.is_multipart() && has_children && !limited {
            continue;
        }
        let read = reader.read(&part, depth);
        say(Defect::BoundaryMissing, read.content_type.starts_with("multipart/") && !limited);
        say(Defect::BrokenEncoding, read.encoding_broken);
        let twice = |name: HeaderName<'static>| part.headers().all(name).nth(1).is_some();
        say(
            Defect::DuplicateField,
            twice(HeaderName::ContentType) || twice(HeaderName::ContentTransferEncoding) || twice(HeaderName::ContentDisposition),
        );
        parts.push(read);
    }
    parts
}

struct PartReader<'a> {
    raw: &'a Bytes,
    /// Contents of transfer-encoded embedded messages, which their parts are slices of.
    decoded: HashMap<PartId, Bytes>,
    /// Nesting depth by part id.
    depths: Vec<u16>,
}

impl PartReader<'_> {
    /// Depth of this part; parts are asked in the order of their ids.
    fn depth(&mut self, part: &MessagePart<'_>) -> u16 {
        let id = part.id() as usize;
        let known = self.depths.get(id).copied();
        let depth = match part.parent() {
            Some(parent) => self.depths.get(parent.id() as usize).map_or(0, |depth| depth + 1),
            // The root of an embedded message was given its depth when its container was asked.
            None => known.unwrap_or(0),
        };
        self.set_depth(id, depth);
        if let Some(nested) = part.nested() {
            self.set_depth(nested.root_part().id() as usize, depth + 1);
        }
        depth
    }

    fn set_depth(&mut self, id: usize, depth: u16) {
        if self.depths.len() <= id {
            self.depths.resize(id + 1, 0);
        }
        if let Some(slot) = self.depths.get_mut(id) {
            *slot = depth;
        }
    }

    fn read(&mut self, part: &MessagePart<'_>, depth: u16) -> Part {
        let content_type = part.content_type();
        let charset = content_type.and_then(|content| content.attribute("charset")).map(|charset| charset.trim().to_ascii_lowercase());
        let container = matches!(part.kind(), PartKind::Message(_)) || part.children().len() > 0;
        let (content, encoding_broken) = self.content(part);
        let mut names = file_names(part, charset.as_deref());
        let file_name = (!names.is_empty()).then(|| names.remove(0));
        Part {
            content_type: type_name(part, content_type),
            charset: charset.filter(|charset| !charset.is_empty()),
            file_name,
            other_file_names: names,
            depth,
            content,
            encoding_broken,
            container,
        }
    }

    fn content(&mut self, part: &MessagePart<'_>) -> (Bytes, bool) {
        let source = match part.message().source() {
            Source::Raw => self.raw.clone(),
            Source::Decoded(container) => self.decoded.get(&container).cloned().unwrap_or_default(),
        };
        let end = (part.offset_end() as usize).min(source.len());
        let body = source.slice((part.offset_body() as usize).min(end)..end);
        if let Some(nested) = part.nested()
            && nested.source() == Source::Decoded(part.id())
        {
            let content = Bytes::copy_from_slice(nested.source_bytes());
            self.decoded.insert(part.id(), content.clone());
            return (content, part.encoding().decode_checked(&body).1);
        }
        let (encoding, known) = match (part.has_known_transfer_encoding(), part.encoding()) {
            (true, encoding) => (encoding, true),
            (false, _) => (likely_encoding(part), false),
        };
        let (decoded, malformed) = encoding.decode_checked(&body);
        let content = match decoded {
            std::borrow::Cow::Borrowed(_) => body.clone(),
            std::borrow::Cow::Owned(owned) => Bytes::from(owned),
        };
        (content, malformed || !known)
    }
}

/// What readers make of a transfer encoding that is written wrongly, such as `"base64"` or `base64;`.
fn likely_encoding(part: &MessagePart<'_>) -> Encoding {
    let written = part.headers().get(HeaderName::ContentTransferEncoding).map_or(&[][..], |header| header.raw_value()).to_ascii_lowercase();
    if memchr::memmem::find(&written, b"base64").is_some() {
        Encoding::Base64
    } else if memchr::memmem::find(&written, b"quoted-printable").is_some() {
        Encoding::QuotedPrintable
    } else {
        Encoding::None
    }
}

/// `type/subtype`, lower case; RFC 2045 section 5.2 and RFC 2046 section 5.1.5 where there is none.
fn type_name(part: &MessagePart<'_>, content_type: Option<ContentType<'_>>) -> String {
    let embedded = matches!(part.kind(), PartKind::Message(_));
    match content_type.map(|content| (content.ctype(), content.subtype())) {
        Some((kind, Some(subtype))) if !kind.is_empty() && !subtype.is_empty() => format!("{kind}/{subtype}"),
        _ if embedded => "message/rfc822".into(),
        Some((kind, _)) if !kind.is_empty() && kind != "text" => "application/octet-stream".into(),
        _ => "text/plain".into(),
    }
}
