//! The `Authentication-Results` field (RFC 8601): ours written, forged ones found.

use std::fmt::Write;
use std::ops::Range;

use super::{Authentication, Dkim, DkimResult, Dmarc, DmarcPolicy, Spf, domain};
use crate::envelope::Envelope;
use crate::message::Message;

/// Bytes of any value in the field; what is longer is cut.
const VALUE_BYTES_MAX: usize = 256;

/// Bytes of a line after which the next property begins another.
const LINE_BYTES: usize = 100;

impl Authentication {
    /// One folded field with its last CRLF. What came from outside is cut, freed of control characters (and, unless the message is SMTPUTF8, of all
    /// that is not ASCII) and quoted where needed: it can neither end the field nor add a result.
    pub fn header_field(&self, authserv_id: &str, envelope: &Envelope) -> String {
        let mut field = Field { text: format!("Authentication-Results: {}", clean(authserv_id, false)), utf8: envelope.smtputf8 };
        if let Some(spf) = self.spf {
            field.result("spf", spf_word(spf));
            if self.spf_helo {
                field.property("smtp.helo", &self.spf_domain);
            } else if let Some(sender) = &envelope.sender {
                field.mailbox("smtp.mailfrom", &sender.local, &sender.domain);
            }
        }
        if self.spf.is_none() && !envelope.client.address_known {
            // Our own words only: they need no care.
            field.text.push_str(";\r\n\tspf=none reason=\"the client's address is hidden\"");
        }
        for signature in &self.dkim {
            field.dkim(signature);
        }
        // DMARC was judged, so signatures were looked for.
        if self.dkim.is_empty() && self.dmarc.is_some() {
            field.result("dkim", "none");
        }
        if let Some(dmarc) = &self.dmarc {
            field.result("dmarc", dmarc_word(dmarc.result));
            if matches!(dmarc.result, Dmarc::Pass | Dmarc::Fail) {
                // A comment; fixed words only.
                write!(field.text, " (p={})", policy_word(dmarc.policy)).ok();
            }
            if !dmarc.from_domain.is_empty() {
                field.property("header.from", &dmarc.from_domain);
            }
        }
        if self.spf.is_none() && self.dkim.is_empty() && self.dmarc.is_none() && envelope.client.address_known {
            field.text.push_str("; none");
        }
        field.text.push_str("\r\n");
        field.text
    }
}

struct Field {
    text: String,
    utf8: bool,
}

impl Field {
    fn result(&mut self, method: &str, word: &str) {
        self.text.push_str(";\r\n\t");
        self.text.push_str(method);
        self.text.push('=');
        self.text.push_str(word);
    }

    /// A space, or the next line where this one is long enough (RFC 5322 section 2.1.1).
    fn space(&mut self) {
        let line = self.text.rsplit('\n').next().map_or(0, str::len);
        self.text.push_str(if line < LINE_BYTES { " " } else { "\r\n\t" });
    }

    fn property(&mut self, name: &str, value: &str) {
        self.space();
        self.text.push_str(name);
        self.text.push('=');
        quote_into(&mut self.text, &clean(value, self.utf8));
    }

    /// `local@domain` where both are plain, else the whole as one quoted string.
    fn mailbox(&mut self, name: &str, local: &str, domain: &str) {
        let (local, domain) = (clean(local, self.utf8), clean(domain, self.utf8));
        self.space();
        if domain.bytes().all(token_byte) && local.bytes().all(token_byte) && !local.is_empty() {
            write!(self.text, "{name}={local}@{domain}").ok();
        } else {
            self.text.push_str(name);
            self.text.push('=');
            quote_into(&mut self.text, &format!("{local}@{domain}"));
        }
    }

    fn dkim(&mut self, signature: &DkimResult) {
        self.result("dkim", dkim_word(signature.result));
        if let Some(reason) = &signature.reason {
            self.property("reason", reason);
        }
        for (name, value) in [("header.d", &signature.domain), ("header.s", &signature.selector), ("header.b", &signature.signature)] {
            if !value.is_empty() {
                self.property(name, value);
            }
        }
    }
}

/// At most so many bytes, no control characters, no bare non-ASCII unless wanted.
fn clean(value: &str, utf8: bool) -> String {
    let mut text = String::with_capacity(value.len().min(VALUE_BYTES_MAX));
    for c in value.chars() {
        let c = if c.is_control() || (!utf8 && !c.is_ascii()) || matches!(c, '\u{2028}' | '\u{2029}') { '?' } else { c };
        if text.len() + c.len_utf8() > VALUE_BYTES_MAX {
            break;
        }
        text.push(c);
    }
    text
}

/// RFC 2045 `token`; other characters are quoted.
fn token_byte(byte: u8) -> bool {
    byte >= 0x80
        || (byte.is_ascii_graphic()
            && !matches!(byte, b'(' | b')' | b'<' | b'>' | b'@' | b',' | b';' | b':' | b'\\' | b'"' | b'/' | b'[' | b']' | b'?' | b'='))
}

fn quote_into(out: &mut String, value: &str) {
    if !value.is_empty() && value.bytes().all(token_byte) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

fn spf_word(spf: Spf) -> &'static str {
    match spf {
        Spf::Pass => "pass",
        Spf::Fail => "fail",
        Spf::SoftFail => "softfail",
        Spf::Neutral => "neutral",
        Spf::None => "none",
        Spf::TempError => "temperror",
        Spf::PermError => "permerror",
    }
}

fn dkim_word(dkim: Dkim) -> &'static str {
    match dkim {
        Dkim::Pass => "pass",
        Dkim::Fail => "fail",
        Dkim::Policy => "policy",
        Dkim::Neutral => "neutral",
        Dkim::TempError => "temperror",
        Dkim::PermError => "permerror",
    }
}

fn dmarc_word(dmarc: Dmarc) -> &'static str {
    match dmarc {
        Dmarc::Pass => "pass",
        Dmarc::Fail => "fail",
        Dmarc::None => "none",
        Dmarc::TempError => "temperror",
        Dmarc::PermError => "permerror",
    }
}

fn policy_word(policy: DmarcPolicy) -> &'static str {
    match policy {
        DmarcPolicy::None => "none",
        DmarcPolicy::Quarantine => "quarantine",
        DmarcPolicy::Reject => "reject",
    }
}

/// Whole fields that claim to be ours and must go before ours is added (RFC 8601 section 5). `ARC-Authentication-Results` is another field and stays.
pub fn forged_fields(message: &Message, authserv_id: &str) -> Vec<Range<usize>> {
    message
        .fields("Authentication-Results")
        .filter(|field| claims(message.raw.get(field.value.clone()).unwrap_or_default(), authserv_id))
        .map(|field| field.whole.clone())
        .collect()
}

/// Whether a field's authserv-id is ours. One that cannot be read counts as ours where our name stands before its first semicolon: another reader
/// may be more patient than this one.
fn claims(value: &[u8], authserv_id: &str) -> bool {
    let value = String::from_utf8_lossy(value);
    match read_id(&value) {
        Some(id) => same_host(&id, authserv_id),
        None => {
            let head = value.split(';').next().unwrap_or_default().to_ascii_lowercase();
            head.contains(&authserv_id.to_ascii_lowercase())
        }
    }
}

fn same_host(left: &str, right: &str) -> bool {
    left.eq_ignore_ascii_case(right) || matches!((domain::normalise(left), domain::normalise(right)), (Some(left), Some(right)) if left == right)
}

/// `[CFWS] value [CFWS version] [CFWS] (";" or the end)`; `None` where it is otherwise.
fn read_id(value: &str) -> Option<String> {
    let rest = skip_cfws(value)?;
    let (id, rest) = match rest.strip_prefix('"') {
        Some(quoted) => quoted_string(quoted)?,
        None => {
            let end =
                rest.find(|c: char| c.is_whitespace() || matches!(c, ';' | '(' | '"' | ')' | '\\' | '/' | ',' | '=' | ':')).unwrap_or(rest.len());
            let (id, rest) = rest.split_at_checked(end)?;
            (id.to_owned(), rest)
        }
    };
    let rest = skip_cfws(rest)?.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = skip_cfws(rest)?;
    (!id.is_empty() && (rest.is_empty() || rest.starts_with(';'))).then_some(id)
}

/// White space and comments, which nest; `None` where one is not closed.
fn skip_cfws(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if depth > 0 => escaped = true,
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            _ if depth > 0 || c.is_whitespace() => {}
            _ => return text.get(at..),
        }
    }
    (depth == 0).then_some("")
}

/// What stands up to the closing quote, and what follows.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut found = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                escaped = false;
                found.push(c);
            }
            '\\' => escaped = true,
            '"' => return Some((found, text.get(at + 1..)?)),
            '\r' | '\n' => {}
            _ => found.push(c),
        }
    }
    None
}
