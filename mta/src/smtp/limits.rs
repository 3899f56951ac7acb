//! Every bound of the server machine, in one place: name, unit, default, why, and what a client hears when it goes beyond.
//! Bounds of single syntax elements that nobody would ever set stand here as constants, the rest are fields of [`Limits`].

use super::address::{DOMAIN_OCTETS_MAX, LOCAL_OCTETS_MAX, PATH_OCTETS_MAX};
use super::proxy::{V1_OCTETS_MAX, V2_OCTETS_MAX};
use super::reply::Fixed;
use super::reply::table as say;

/// Octets of the name in EHLO or HELO (a domain has 255 at most, RFC 5321 section 4.5.3.1.2).
pub const HELLO_OCTETS_MAX: usize = 255;
/// Octets of replies that wait to be written before the machine takes no further command.
pub const OUTPUT_OCTETS_PAUSE: usize = 16 * 1024;
/// Octets that a reader should have read and not yet given to the machine: one read's worth. Pipelined commands wait there while an
/// answer is pending.
pub const INPUT_OCTETS_MAX: usize = 64 * 1024;
/// Octets reserved for a message at most because of what SIZE says, before any of it has come.
pub const RESERVE_OCTETS_MAX: usize = 256 * 1024;
/// Tenants of one transaction: each has a judgement and a form of the message of its own. The 100 recipients that RFC 5321 section 4.5.3.1.8 demands may all be of
/// different ones.
pub const TENANTS_MAX: usize = 100;
/// Recipients of one transaction, whatever a listener says: the indexes of recipients are 16 bits wide.
pub const RECIPIENTS_MAX: u32 = 50_000;
/// How long a PROXY header may take, milliseconds.
pub const PROXY_HEADER_MS: u64 = 3_000;
/// How long the peer may take to read a reply, milliseconds.
pub const WRITE_MS: u64 = 60_000;

/// The bounds of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets of a command line with its CRLF.
    pub command_line_octets: usize,
    /// Octets of a command line that is too long, before it counts as endless.
    pub command_line_skip_octets: usize,
    /// Accepted recipients of one transaction.
    pub recipients: u32,
    /// Recipients refused with 5xx since the last accepted message, or as many as were accepted in the transaction.
    pub recipients_refused: u32,
    /// Octets of a message, decoded.
    pub message_octets: u64,
    /// Messages of one session.
    pub messages_per_session: u32,
    /// Octets of a line of content without CRLF.
    pub content_line_octets: usize,
    /// Octets of the header section.
    pub header_octets: usize,
    /// Fields of the header section.
    pub header_fields: u32,
    /// Errors of syntax and sequence since the last accepted message.
    pub errors: u32,
    /// Commands that carry no mail since the last DATA.
    pub idle_commands: u32,
    /// Milliseconds to the next complete command.
    pub command_ms: u64,
    /// Milliseconds between two pieces of content.
    pub content_idle_ms: u64,
    /// Least average rate of content, octets per second.
    pub content_octets_per_second: u64,
    /// Milliseconds before the rate of content counts.
    pub content_grace_ms: u64,
    /// Milliseconds from MAIL to the end of data.
    pub transaction_ms: u64,
    /// Milliseconds after which a session ends between two transactions.
    pub session_ms: u64,
    /// Milliseconds from STARTTLS to the end of the handshake.
    pub tls_handshake_ms: u64,
    /// Whether a client that speaks before the banner is refused; else it is served and [`super::server::Server::early_talk`] says so.
    pub refuse_early_talk: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command_line_octets: 2048,
            command_line_skip_octets: 64 * 1024,
            recipients: 1000,
            recipients_refused: 100,
            message_octets: 64 * 1024 * 1024,
            messages_per_session: 100,
            content_line_octets: 64 * 1024,
            header_octets: 100 * 1024,
            header_fields: 1000,
            errors: 20,
            idle_commands: 100,
            command_ms: 60_000,
            content_idle_ms: 60_000,
            content_octets_per_second: 500,
            content_grace_ms: 30_000,
            transaction_ms: 1_800_000,
            session_ms: 3_600_000,
            tls_handshake_ms: 30_000,
            refuse_early_talk: true,
        }
    }
}

impl Limits {
    /// RCPT commands of one transaction before it counts as a flood. A client that pipelines twice the limit is told 452 for each
    /// recipient too many and sends them in its next transaction.
    pub const fn recipient_commands(&self) -> u32 {
        self.recipients.saturating_mul(2).saturating_add(self.recipients_refused)
    }
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Name of the field of [`Limits`] or of the constant.
    pub name: &'static str,
    /// What it counts.
    pub unit: &'static str,
    /// Its value unless the listener says otherwise.
    pub default: u64,
    /// Why there is one, and why it is that large.
    pub reason: &'static str,
    /// What the client hears; none where nothing can be said any more, or nothing needs to be.
    pub reply: Option<Fixed>,
    /// Whether the connection is closed.
    pub closes: bool,
}

const fn answers(name: &'static str, unit: &'static str, default: u64, reply: Fixed, reason: &'static str) -> Limit {
    Limit { name, unit, default, reason, reply: Some(reply), closes: false }
}

const fn closes(name: &'static str, unit: &'static str, default: u64, reply: Fixed, reason: &'static str) -> Limit {
    Limit { name, unit, default, reason, reply: Some(reply), closes: true }
}

const fn silent(name: &'static str, unit: &'static str, default: u64, closes: bool, reason: &'static str) -> Limit {
    Limit { name, unit, default, reason, reply: None, closes }
}

/// Every bound, for the reference page and for the test that none is missing.
pub fn table() -> Vec<Limit> {
    let limits = Limits::default();
    [commands(&limits), content(&limits), times(&limits), elements()].concat()
}

fn octets(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn commands(limits: &Limits) -> Vec<Limit> {
    let line = octets(limits.command_line_octets);
    let skip = octets(limits.command_line_skip_octets);
    let flood = limits.recipient_commands().into();
    vec![
        answers("command_line_octets", "octets", line, say::LINE_TOO_LONG, "RFC 5321 says 512, extensions add to it; two long UTF-8 paths fit"),
        closes("command_line_skip_octets", "octets", skip, say::ENDLESS_LINE, "who sends 64 KiB without a line end is no mail client"),
        answers("recipients", "recipients", limits.recipients.into(), say::TOO_MANY_RECIPIENTS, "RFC 5321 asks for 100 at least; lists use 1000"),
        closes(
            "recipients_refused",
            "recipients",
            limits.recipients_refused.into(),
            say::TOO_MANY_REFUSED,
            "nobody tries out a dictionary of names here",
        ),
        closes(
            "recipient_commands",
            "commands",
            flood,
            say::RECIPIENT_FLOOD,
            "twice the recipients and those refused: beyond it nobody listens to 452",
        ),
        closes(
            "messages_per_session",
            "messages",
            limits.messages_per_session.into(),
            say::TOO_MANY_MESSAGES,
            "spreads a big sender over the pods again",
        ),
        closes("errors", "replies", limits.errors.into(), say::TOO_MANY_ERRORS, "a client that errs twenty times does not listen"),
        closes(
            "idle_commands",
            "commands",
            limits.idle_commands.into(),
            say::TOO_MANY_COMMANDS,
            "NOOP, RSET, VRFY, EHLO and refused MAIL hold a connection for nothing",
        ),
        closes(
            "refuse_early_talk",
            "1 or 0",
            limits.refuse_early_talk.into(),
            say::EARLY_TALK,
            "RFC 5321 section 4.3.1: a client waits for the greeting; bots do not",
        ),
    ]
}

fn content(limits: &Limits) -> Vec<Limit> {
    let (line, header) = (octets(limits.content_line_octets), octets(limits.header_octets));
    vec![
        answers(
            "message_octets",
            "octets",
            limits.message_octets,
            say::MESSAGE_TOO_LARGE,
            "a message is held in memory while it is scanned; announced by SIZE",
        ),
        closes(
            "discarded_octets",
            "octets",
            limits.message_octets,
            say::MESSAGE_TOO_LARGE,
            "message_octets once more: a refused message is read no further",
        ),
        answers(
            "content_line_octets",
            "octets",
            line,
            say::CONTENT_LINE_TOO_LONG,
            "RFC 5322 says 998; newsletters put a page in one line; nothing is ever folded here",
        ),
        answers("header_octets", "octets", header, say::HEADER_TOO_LARGE, "every filter reads the whole header section"),
        answers("header_fields", "fields", limits.header_fields.into(), say::TOO_MANY_FIELDS, "every filter walks the fields"),
    ]
}

fn times(limits: &Limits) -> Vec<Limit> {
    vec![
        closes(
            "command_ms",
            "ms",
            limits.command_ms,
            say::COMMAND_TIMEOUT,
            "a mail server speaks in milliseconds; counted to the end of a command, not to its next octet",
        ),
        closes("content_idle_ms", "ms", limits.content_idle_ms, say::CONTENT_TIMEOUT, "a burst at the start earns no right to stall later"),
        closes(
            "content_octets_per_second",
            "octets/s",
            limits.content_octets_per_second,
            say::TOO_SLOW,
            "an octet now and then must not hold memory and a connection",
        ),
        silent("content_grace_ms", "ms", limits.content_grace_ms, false, "a slow start is no slow sender"),
        closes(
            "transaction_ms",
            "ms",
            limits.transaction_ms,
            say::TRANSACTION_TIMEOUT,
            "64 MiB at 37 KB/s; the least rate alone would allow 37 hours",
        ),
        closes(
            "session_ms",
            "ms",
            limits.session_ms,
            say::SESSION_TIMEOUT,
            "new settings of listener and TLS reach every client; never inside a transaction",
        ),
        silent("tls_handshake_ms", "ms", limits.tls_handshake_ms, true, "two round trips; nothing can be said inside a handshake"),
        silent("PROXY_HEADER_MS", "ms", PROXY_HEADER_MS, true, "a proxy sends it with the first segment"),
        silent("WRITE_MS", "ms", WRITE_MS, true, "replies fit into any window"),
    ]
}

/// Bounds that no listener sets.
fn elements() -> Vec<Limit> {
    vec![
        answers(
            "TENANTS_MAX",
            "tenants",
            octets(TENANTS_MAX),
            say::TOO_MANY_TENANTS,
            "each tenant gets a judgement and a form of the message of its own",
        ),
        answers(
            "RECIPIENTS_MAX",
            "recipients",
            RECIPIENTS_MAX.into(),
            say::TOO_MANY_RECIPIENTS,
            "no listener may allow more recipients: their indexes are 16 bits wide",
        ),
        answers("HELLO_OCTETS_MAX", "octets", octets(HELLO_OCTETS_MAX), say::BAD_HELLO, "a domain has 255"),
        answers("PATH_OCTETS_MAX", "octets", octets(PATH_OCTETS_MAX), say::BAD_RECIPIENT, "RFC 5321 section 4.5.3.1.3"),
        answers(
            "LOCAL_OCTETS_MAX",
            "octets",
            octets(LOCAL_OCTETS_MAX),
            say::BAD_RECIPIENT,
            "RFC 5321 asks for 64 at least; return paths that encode a recipient use more",
        ),
        answers("DOMAIN_OCTETS_MAX", "octets", octets(DOMAIN_OCTETS_MAX), say::BAD_RECIPIENT, "RFC 5321 section 4.5.3.1.2"),
        silent("OUTPUT_OCTETS_PAUSE", "octets", octets(OUTPUT_OCTETS_PAUSE), false, "a client that does not read its replies is not read either"),
        silent(
            "INPUT_OCTETS_MAX",
            "octets",
            octets(INPUT_OCTETS_MAX),
            false,
            "what is pipelined behind a pending answer waits here, then in the kernel",
        ),
        silent("RESERVE_OCTETS_MAX", "octets", octets(RESERVE_OCTETS_MAX), false, "SIZE is a claim, memory follows what came"),
        silent("V1_OCTETS_MAX", "octets", octets(V1_OCTETS_MAX), true, "the longest PROXY version 1 line that its specification knows"),
        silent("V2_OCTETS_MAX", "octets", octets(V2_OCTETS_MAX), true, "extensions of a TLS proxy take some hundred octets"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_says_why_and_closes_only_with_a_closing_reply() {
        let table = table();
        for (index, limit) in table.iter().enumerate() {
            assert!(!limit.reason.is_empty() && !limit.unit.is_empty(), "{limit:?}");
            assert!(limit.default > 0, "{limit:?}");
            assert!(table.iter().skip(index + 1).all(|other| other.name != limit.name), "{limit:?} stands twice");
            if let Some(reply) = limit.reply {
                assert!(reply.code >= 400, "{limit:?}");
                assert!(limit.closes || reply.code != 421, "421 always closes: {limit:?}");
            }
        }
        // Every field of Limits has its row; two rows follow from others.
        let derived = ["recipient_commands", "discarded_octets"];
        let shown = format!("{:?}", Limits::default());
        let fields: Vec<&str> = shown.split(['{', ',']).filter_map(|part| part.split_once(": ")).map(|(name, _)| name.trim()).collect();
        assert!(fields.len() > 15, "{fields:?}");
        for field in &fields {
            assert!(table.iter().any(|limit| limit.name == *field), "no row for {field}");
        }
        for limit in &table {
            let constant = limit.name.chars().all(|c| c.is_uppercase() || c.is_ascii_digit() || c == '_');
            assert!(constant || derived.contains(&limit.name) || fields.contains(&limit.name), "{limit:?} bounds nothing");
        }
    }
}
