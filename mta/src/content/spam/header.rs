//! Signs of the header and the envelope.

use std::net::IpAddr;

use mail_parser::DateTime;

use super::Look;
use super::table::*;
use super::text::{Counts, is_invisible};
use crate::message::Defect;

const HOUR_MS: i64 = 3_600_000;
/// Recipients of one message here that are none of To and Cc.
const RECIPIENTS_UNNAMED: usize = 20;

impl Look<'_> {
    /// The first field of this name, unfolded, trimmed.
    fn field(&self, name: &str) -> Option<String> {
        let field = self.message.fields(name).next()?;
        Some(self.message.text(&field.value).replace(['\r', '\n'], "").trim().to_owned())
    }

    pub(super) fn header(&mut self) {
        self.defects();
        self.date();
        self.message_id();
        self.from();
        self.recipients();
        self.subject();
        self.mail_program();
        if self.message.received_fields == 0 {
            self.add(NO_RECEIVED);
        }
    }

    fn defects(&mut self) {
        for defect in &self.message.defects {
            match defect {
                Defect::BrokenHeader => self.add(BROKEN_HEADER),
                Defect::NulByte => self.add(NUL_BYTE),
                Defect::BoundaryMissing => self.add(BOUNDARY_MISSING),
                Defect::BrokenEncoding => self.add(BROKEN_ENCODING),
                Defect::TooManyParts | Defect::TooDeep => self.add(TOO_MANY_PARTS),
                _ => {}
            }
        }
        if self.message.from_fields > 1 {
            self.add(SEVERAL_FROM);
        } else if self.message.from.is_empty() {
            self.add(MISSING_FROM);
        }
        for name in ["Subject", "From"] {
            let raw = self.message.fields(name).any(|field| self.message.raw.get(field.value.clone()).is_some_and(|value| !value.is_ascii()));
            if raw && !self.envelope.smtputf8 {
                self.add(RAW_BYTES_IN_HEADER);
            }
        }
    }

    fn date(&mut self) {
        let Some(text) = self.field("Date") else { return self.add(MISSING_DATE) };
        match zone(&text) {
            Some(minutes) if !(-12 * 60..=14 * 60).contains(&minutes) => return self.add(DATE_ZONE_IMPOSSIBLE),
            None if text.split(' ').next_back().is_some_and(|last| last.contains(':') || last.bytes().all(|b| b.is_ascii_digit())) => {
                self.add(DATE_WITHOUT_ZONE)
            }
            _ => {}
        }
        let Some(date) = DateTime::parse_rfc822(&text).filter(DateTime::is_valid) else { return self.add(INVALID_DATE) };
        if self.envelope.received_ms == 0 {
            return;
        }
        let received_ms = i64::try_from(self.envelope.received_ms).unwrap_or(i64::MAX);
        let ahead_ms = date.to_timestamp().saturating_mul(1000).saturating_sub(received_ms);
        if ahead_ms > 24 * HOUR_MS {
            self.add(DATE_IN_FUTURE);
        } else if ahead_ms < -96 * HOUR_MS {
            self.add(DATE_IN_PAST);
        }
    }

    fn message_id(&mut self) {
        match &self.message.message_id {
            None => self.add(MISSING_MESSAGE_ID),
            Some(id) if !id.contains('@') || id.contains(char::is_whitespace) || id.starts_with('@') || id.ends_with('@') => {
                self.add(BROKEN_MESSAGE_ID)
            }
            Some(_) => {}
        }
    }

    fn from(&mut self) {
        let message = self.message;
        for mailbox in message.from.iter().take(10) {
            let name = mailbox.name.as_deref().unwrap_or_default();
            if name_has_other_address(name, &mailbox.domain) {
                self.add(FROM_NAME_HAS_OTHER_ADDRESS);
            }
            if name.chars().any(is_invisible) {
                self.add(INVISIBLE_CHARACTERS);
            }
            if mixes_scripts(&mailbox.domain) {
                self.add(FROM_DOMAIN_MIXES_SCRIPTS);
            }
            let digits = mailbox.local.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
            if digits >= 4 && mailbox.local.starts_with(|c: char| c.is_ascii_alphabetic()) {
                self.add(FROM_DIGITS);
            }
        }
    }

    fn recipients(&mut self) {
        let to = self.field("To").unwrap_or_default().to_lowercase();
        let cc = self.field("Cc").unwrap_or_default().to_lowercase();
        let named = |address: &str| to.contains(address) || cc.contains(address);
        if !to.contains('@') && !cc.contains('@') {
            self.add(NO_RECIPIENT_FIELD);
        }
        if let [from] = self.message.from.as_slice() {
            let address = format!("{}@{}", from.local, from.domain).to_lowercase();
            if to.matches('@').count() == 1 && cc.is_empty() && to.contains(&address) {
                self.add(TO_IS_FROM);
            }
        }
        let recipients = &self.envelope.recipients;
        let unnamed = recipients.len() > RECIPIENTS_UNNAMED
            && !recipients.iter().take(100).any(|recipient| named(&recipient.address.to_string().to_lowercase()));
        if unnamed {
            self.add(MANY_RECIPIENTS);
        }
    }

    fn subject(&mut self) {
        let subject = self.message.subject.as_deref().unwrap_or_default().trim();
        let counts = Counts::of(subject);
        if subject.is_empty() {
            return self.add(SUBJECT_MISSING);
        }
        if counts.upper >= 10 && counts.lower == 0 && counts.beyond == 0 {
            self.add(SUBJECT_ALL_CAPITALS);
        }
        if counts.exclamations > 1 || counts.exclamations == 1 && subject.contains(['?', '$']) {
            self.add(SUBJECT_SHOUTS);
        }
        if counts.invisible > 0 {
            self.add(INVISIBLE_CHARACTERS);
        }
        if has_trailing_code(subject) {
            self.add(SUBJECT_TRAILING_CODE);
        }
        let reply = subject.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("re:"));
        if reply && self.message.fields("References").next().is_none() && self.message.fields("In-Reply-To").next().is_none() {
            self.add(FORGED_REPLY);
        }
    }

    /// Outlook Express always wrote X-MimeOLE, Outlook before 2007 that or a Thread-Index; `<001a01c2$e0f1a2b0$0100a8c0@host>` is a Message-ID of theirs.
    fn mail_program(&mut self) {
        let has = |name| self.message.fields(name).next().is_some();
        let ole = has("X-MimeOLE") || has("Thread-Index");
        let msmail_priority = has("X-MSMail-Priority");
        let program = self.field("X-Mailer").unwrap_or_default();
        let old = ["Microsoft Outlook Express", "Microsoft Outlook, Build", "Microsoft Outlook IMO", "Microsoft Outlook CWS"];
        if old.iter().any(|name| program.starts_with(name)) && !ole {
            self.add(FORGED_OUTLOOK);
        }
        let is_outlook = ole || program.contains("Outlook");
        if !is_outlook && self.message.message_id.as_deref().is_some_and(|id| id.matches('$').count() >= 2) {
            self.add(OUTLOOK_ID_WITHOUT_OUTLOOK);
        }
        if !is_outlook && msmail_priority {
            self.add(PRIORITY_WITHOUT_OUTLOOK);
        }
        if self.field("X-Priority").is_some_and(|priority| priority.starts_with('1')) {
            self.add(URGENT);
        }
    }

    pub(super) fn envelope(&mut self) {
        let envelope = self.envelope;
        let recipients = &envelope.recipients;
        let is_ours = |domain: &str| recipients.iter().any(|recipient| recipient.address.domain.eq_ignore_ascii_case(domain));
        if let Some(sender) = &envelope.sender
            && recipients
                .iter()
                .any(|recipient| recipient.address.domain == sender.domain && recipient.address.local.eq_ignore_ascii_case(&sender.local))
        {
            self.add(SENDER_IS_RECIPIENT);
        }
        let client = &envelope.client;
        // From inside (a private network, a node's address) a greeting and a domain of ours are ordinary.
        if !client.address_known || !crate::config::is_public(client.address.to_canonical()) {
            return;
        }
        if self.message.from.iter().any(|from| is_ours(&from.domain)) {
            self.add(FROM_IS_OUR_DOMAIN);
        }
        let helo = client.helo.trim();
        if is_ours(helo) {
            self.add(HELO_IS_OURS);
        } else if helo.parse::<IpAddr>().is_ok() {
            self.add(HELO_IS_BARE_ADDRESS);
        } else if let Some(literal) = helo.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let text = literal.strip_prefix("IPv6:").unwrap_or(literal);
            if text.parse::<IpAddr>().ok().is_none_or(|address| address.to_canonical() != client.address.to_canonical()) {
                self.add(HELO_OTHER_ADDRESS);
            }
        } else if !helo.trim_end_matches('.').contains('.') {
            self.add(HELO_NOT_QUALIFIED);
        }
    }
}

/// The offset of a date in minutes, if it has a numeric one.
fn zone(date: &str) -> Option<i32> {
    let text = date.split(' ').find(|word| word.len() == 5 && word.starts_with(['+', '-']))?;
    let number: i32 = text.get(1..)?.parse().ok()?;
    let minutes = number / 100 * 60 + number % 100;
    Some(if text.starts_with('-') { -minutes } else { minutes })
}

/// Whether a display name shows an address that is not of this domain or of one above or below it.
fn name_has_other_address(name: &str, domain: &str) -> bool {
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    name.match_indices('@').take(10).any(|(at, _)| {
        let after = name.get(at + 1..).unwrap_or_default();
        let shown = after.split(|c: char| !is_host(c)).next().unwrap_or_default().trim_matches('.').to_ascii_lowercase();
        let before_is_local = name.get(..at).is_some_and(|before| before.ends_with(is_host));
        before_is_local && shown.contains('.') && super::text::site(&shown) != super::text::site(domain)
    })
}

/// Whether a label of a domain mixes Latin with Cyrillic, Greek or Armenian letters.
fn mixes_scripts(domain: &str) -> bool {
    if domain.is_ascii() && !domain.contains("xn--") {
        return false;
    }
    let (unicode, _) = idna::domain_to_unicode(domain);
    unicode.split('.').any(|label| {
        let latin = label.chars().any(|c| c.is_ascii_alphabetic());
        let look_alike = label.chars().any(|c| matches!(c, '\u{370}'..='\u{3ff}' | '\u{400}'..='\u{52f}' | '\u{530}'..='\u{58f}'));
        latin && look_alike
    })
}

/// `Subject text          abc123`: at least six spaces, then one word of Latin letters or digits at the end.
fn has_trailing_code(subject: &str) -> bool {
    let code = subject.rsplit(' ').next().unwrap_or_default();
    let before = subject.get(..subject.len() - code.len()).unwrap_or_default();
    let spaces = before.len() - before.trim_end_matches(' ').len();
    spaces >= 6
        && (3..=30).contains(&code.len())
        && code.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'[' | b']' | b'(' | b')' | b'-'))
        && !before.trim_end().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_with_addresses() {
        let table = [
            ("Support <support@bank.test>", "evil.example", true),
            ("support@bank.test", "evil.example", true),
            ("taro@example.com", "example.com", false),
            ("taro@mail.example.co.jp", "example.co.jp", false),
            ("taro @ home", "example.com", false),
            ("山田太郎＠営業", "example.jp", false),
            ("@handle", "example.com", false),
            ("", "example.com", false),
        ];
        for (name, domain, expected) in table {
            assert_eq!(name_has_other_address(name, domain), expected, "{name}");
        }
    }

    #[test]
    fn only_look_alikes_are_mixed_scripts() {
        // раypal with two Cyrillic letters; a Japanese, a German and a Russian name.
        let mixed = idna::domain_to_ascii("р\u{430}ypal.com").unwrap();
        let table = [
            (mixed.as_str(), true),
            ("xn--wgv71a119e.jp", false),
            ("xn--bcher-kva.example", false),
            ("xn--e1afmkfd.xn--p1ai", false),
            ("example.com", false),
            ("xn--", false),
        ];
        for (domain, expected) in table {
            assert_eq!(mixes_scripts(domain), expected, "{domain}");
        }
    }

    #[test]
    fn codes_at_the_end_of_a_subject() {
        for (subject, expected) in [
            ("Lower rates           xk3f9", true),
            ("Re: a b", false),
            ("名前　　　　　　　　様", false),
            ("          abc", false),
            ("See   below", false),
        ] {
            assert_eq!(has_trailing_code(subject), expected, "{subject}");
        }
    }
}
