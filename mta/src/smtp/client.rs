//! The client side as a machine without I/O (RFC 5321, 2920, 1870, 6152, 6531, 3207).
//!
//! The driver feeds bytes and time in ([`Client::handle_input`], [`Client::handle_trouble`]), and after each asks, in this order: [`Client::poll_transmit`]
//! until there is nothing to write, [`Client::poll_event`] for what happened, [`Client::deadline_ms`] for when to give up. Message content never passes
//! through the machine: at [`Event::SendContent`] the driver writes it itself, stuffed, and says so.

use std::collections::VecDeque;
use std::fmt;
use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};

use super::reply::ReplyReader;
use super::{Address, Reply};

/// Where a dialogue stands: what the next hop is answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Before there is a connection.
    Connect,
    /// The greeting.
    Banner,
    /// EHLO or HELO.
    Ehlo,
    /// STARTTLS and the handshake.
    Tls,
    /// MAIL, or the RSET before it.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, and the content until its end.
    Data,
    /// After the final dot.
    EndOfData,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Banner => "banner",
            Self::Ehlo => "EHLO",
            Self::Tls => "TLS",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::EndOfData => "end of data",
        })
    }
}

/// What came of a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The next hop answered.
    Reply(Reply),
    /// It did not, in time.
    Timeout,
    /// The connection was refused, broke or was closed.
    Disconnected(String),
    /// It answered what no server may.
    Garbage(String),
    /// The message or the demand is beyond what the next hop offers; nothing of it was sent.
    Unable(Unable),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reply(reply) => reply.fmt(f),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Disconnected(why) => write!(f, "connection lost: {why}"),
            Self::Garbage(what) => write!(f, "protocol broken by the server: {what}"),
            Self::Unable(what) => what.fmt(f),
        }
    }
}

/// What the next hop does not offer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    /// Its SIZE.
    #[error("the next hop takes at most {limit_bytes} bytes")]
    TooLarge {
        /// What it announced.
        limit_bytes: u64,
    },
    /// 8BITMIME.
    #[error("the message needs 8BITMIME, which the next hop does not offer")]
    EightBit,
    /// SMTPUTF8.
    #[error("the message needs SMTPUTF8, which the next hop does not offer")]
    Utf8,
    /// An address that cannot be written into a command.
    #[error("an address of the envelope holds a control character")]
    BadAddress,
    /// STARTTLS, where the route requires it.
    #[error("the route requires TLS, which the next hop does not offer")]
    TlsNotOffered,
    /// The handshake or the certificate.
    #[error("TLS failed: {0}")]
    TlsFailed(String),
}

/// Whether STARTTLS is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsUse {
    /// Never.
    Disabled,
    /// Where offered.
    Opportunistic,
    /// Or nothing is sent.
    Required,
}

/// How long each answer is waited for, milliseconds. The defaults are those of RFC 5321 section 4.5.3.2, but for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP connection, 30,000.
    pub connect_ms: u64,
    /// Greeting, 300,000.
    pub banner_ms: u64,
    /// EHLO, HELO and STARTTLS, 300,000.
    pub command_ms: u64,
    /// TLS handshake, 30,000.
    pub handshake_ms: u64,
    /// MAIL and RSET, 300,000.
    pub mail_ms: u64,
    /// Each RCPT, 300,000.
    pub rcpt_ms: u64,
    /// DATA, 120,000.
    pub data_ms: u64,
    /// Each block of content, 180,000.
    pub block_ms: u64,
    /// After the final dot, 600,000.
    pub end_of_data_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect_ms: 30_000,
            banner_ms: 300_000,
            command_ms: 300_000,
            handshake_ms: 30_000,
            mail_ms: 300_000,
            rcpt_ms: 300_000,
            data_ms: 120_000,
            block_ms: 180_000,
            end_of_data_ms: 600_000,
        }
    }
}

/// What the server offered in EHLO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 1870.
    pub size: bool,
    /// Its limit, where it named one.
    pub size_limit_bytes: Option<u64>,
}

impl Extensions {
    fn parse(text: &str) -> Self {
        let mut offered = Self::default();
        for line in text.lines().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
            match keyword.as_str() {
                "PIPELINING" => offered.pipelining = true,
                "8BITMIME" => offered.eight_bit = true,
                "SMTPUTF8" => offered.smtputf8 = true,
                "STARTTLS" => offered.starttls = true,
                "SIZE" => {
                    offered.size = true;
                    offered.size_limit_bytes = words.next().and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
                }
                _ => {}
            }
        }
        offered
    }
}

/// One message to send.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// MAIL FROM; `None` is the null reverse-path.
    pub sender: Option<Address>,
    /// RCPT TO, at least one.
    pub recipients: Vec<Address>,
    /// Bytes of the content, for SIZE.
    pub size_bytes: u64,
    /// The content has bytes above 127.
    pub eight_bit: bool,
    /// The header has them, and SMTPUTF8 was declared when it was received.
    pub utf8_header: bool,
}

impl Transaction {
    fn needs_utf8(&self) -> bool {
        self.utf8_header || self.addresses().any(|address| !address.local.is_ascii() || !address.domain.is_ascii())
    }

    fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.sender.iter().chain(&self.recipients)
    }

    fn unable(&self, offered: &Extensions) -> Option<Unable> {
        if self.addresses().any(|address| address.local.chars().chain(address.domain.chars()).any(char::is_control)) {
            return Some(Unable::BadAddress);
        }
        if let Some(limit_bytes) = offered.size_limit_bytes.filter(|limit| *limit < self.size_bytes) {
            return Some(Unable::TooLarge { limit_bytes });
        }
        if self.needs_utf8() && !offered.smtputf8 {
            return Some(Unable::Utf8);
        }
        (self.eight_bit && !offered.eight_bit).then_some(Unable::EightBit)
    }
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The answer to each RCPT, in order; `None` where none came.
    pub recipients: Vec<Option<Reply>>,
    /// The answer that decided, and to what.
    pub phase: Phase,
    /// See `phase`.
    pub answer: Answer,
}

/// What the driver has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Shake hands, then call [`Client::handshake_done`], or [`Client::handle_trouble`] with [`Unable::TlsFailed`].
    StartTls,
    /// A transaction may begin.
    Ready,
    /// Write the content; [`Client::content_progress`] after each block, [`Client::content_ending`] before the block that holds the final dot.
    SendContent,
    /// The transaction is over.
    Finished(Finished),
    /// There is no session, or no longer.
    Failed {
        /// Where.
        phase: Phase,
        /// Why.
        answer: Answer,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Banner,
    Ehlo,
    Helo,
    StartTls,
    Handshake,
    Ready,
    Envelope,
    Content,
    EndOfData,
    LoneDot,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Reset,
    Mail,
    Rcpt(usize),
    Data,
}

/// A transaction on its way.
#[derive(Debug)]
struct Exchange {
    transaction: Transaction,
    expected: VecDeque<Expected>,
    mail: Option<Reply>,
    recipients: Vec<Option<Reply>>,
    next_recipient: usize,
    reset_first: bool,
}

/// RCPT commands written before their answers are read: few enough that neither side's window fills up (RFC 2920 section 3.1).
const RECIPIENTS_PER_GROUP: usize = 50;

/// The machine: one connection, several transactions, one after the other.
#[derive(Debug)]
pub struct Client {
    hello: String,
    tls: TlsUse,
    secured: bool,
    timeouts: Timeouts,
    state: State,
    reader: ReplyReader,
    out: BytesMut,
    events: VecDeque<Event>,
    offered: Extensions,
    exchange: Option<Exchange>,
    needs_reset: bool,
    deadline_ms: u64,
}

impl Client {
    /// A machine for a connection that was just made. `hello` is our host name.
    pub fn new(hello: &str, tls: TlsUse, timeouts: Timeouts, now_ms: u64) -> Self {
        Self {
            hello: hello.to_owned(),
            tls,
            secured: false,
            timeouts,
            state: State::Banner,
            reader: ReplyReader::new(),
            out: BytesMut::new(),
            events: VecDeque::new(),
            offered: Extensions::default(),
            exchange: None,
            needs_reset: false,
            deadline_ms: now_ms.saturating_add(timeouts.banner_ms),
        }
    }

    /// What the server offered.
    pub const fn extensions(&self) -> &Extensions {
        &self.offered
    }

    /// Whether the session runs under TLS.
    pub const fn is_secured(&self) -> bool {
        self.secured
    }

    /// Whether another transaction may begin.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// When to call [`Self::handle_trouble`] with [`Answer::Timeout`].
    pub const fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    /// The next bytes to write.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Begins a transaction. Only when [`Self::is_ready`]; a message that the next hop cannot take finishes at once, with nothing sent.
    pub fn begin(&mut self, transaction: Transaction, now_ms: u64) {
        debug_assert!(self.is_ready(), "the driver begins only what can begin");
        let recipients = vec![None; transaction.recipients.len()];
        if let Some(unable) = transaction.unable(&self.offered) {
            self.events.push_back(Event::Finished(Finished { recipients, phase: Phase::Mail, answer: Answer::Unable(unable) }));
            return;
        }
        let reset_first = std::mem::take(&mut self.needs_reset);
        self.exchange = Some(Exchange { transaction, expected: VecDeque::new(), mail: None, recipients, next_recipient: 0, reset_first });
        self.state = State::Envelope;
        self.write_group(now_ms);
    }

    /// Says QUIT; the answer is not waited for.
    pub fn quit(&mut self) {
        if self.state != State::Closed {
            self.out.extend_from_slice(b"QUIT\r\n");
            self.state = State::Closed;
        }
    }

    /// The handshake succeeded: everything learnt before it is forgotten (RFC 3207 section 4.2).
    pub fn handshake_done(&mut self, now_ms: u64) {
        self.secured = true;
        self.offered = Extensions::default();
        self.say_hello(now_ms);
    }

    /// A block of content was written.
    pub fn content_progress(&mut self, now_ms: u64) {
        if self.state == State::Content {
            self.deadline_ms = now_ms.saturating_add(self.timeouts.block_ms);
        }
    }

    /// The block that holds the final dot is about to be written: from here on, silence means that nobody knows.
    pub fn content_ending(&mut self, now_ms: u64) {
        if self.state == State::Content {
            self.state = State::EndOfData;
            self.deadline_ms = now_ms.saturating_add(self.timeouts.end_of_data_ms);
        }
    }

    /// Bytes from the server.
    pub fn handle_input(&mut self, bytes: &[u8], now_ms: u64) {
        let mut input = bytes;
        while self.state != State::Closed {
            match self.reader.push(std::mem::take(&mut input)) {
                Ok(Some(reply)) => self.handle_reply(reply, now_ms),
                Ok(None) => break,
                Err(what) => return self.handle_trouble(Answer::Garbage(what.to_string())),
            }
        }
        if self.state == State::Ready && !self.reader.is_idle() {
            self.close();
        }
    }

    /// The connection broke, time ran out, or TLS failed.
    pub fn handle_trouble(&mut self, answer: Answer) {
        let phase = match self.state {
            State::Closed => return,
            State::Banner => Phase::Banner,
            State::Ehlo | State::Helo => Phase::Ehlo,
            State::StartTls | State::Handshake => Phase::Tls,
            State::Ready => return self.close(),
            State::Content => Phase::Data,
            State::EndOfData => Phase::EndOfData,
            State::LoneDot => {
                self.finish_unsent(None);
                return self.close();
            }
            State::Envelope => match self.exchange.as_ref().and_then(|exchange| exchange.expected.front()) {
                None | Some(Expected::Reset | Expected::Mail) => Phase::Mail,
                Some(Expected::Rcpt(_)) => Phase::Rcpt,
                Some(Expected::Data) => Phase::Data,
            },
        };
        self.fail(phase, answer);
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.out.clear();
    }

    /// Ends the session with the transaction, if there is one.
    fn fail(&mut self, phase: Phase, answer: Answer) {
        self.close();
        self.events.push_back(match self.exchange.take() {
            Some(exchange) => Event::Finished(Finished { recipients: exchange.recipients, phase, answer }),
            None => Event::Failed { phase, answer },
        });
    }

    fn handle_reply(&mut self, reply: Reply, now_ms: u64) {
        match self.state {
            State::Banner if reply.code == 220 => self.say_hello(now_ms),
            State::Banner => self.fail(Phase::Banner, Answer::Reply(reply)),
            State::Ehlo if reply.code == 250 => {
                self.offered = Extensions::parse(&reply.text);
                self.after_hello(now_ms);
            }
            State::Ehlo if reply.is_permanent() => {
                self.command(format_args!("HELO {}", self.hello.clone()), State::Helo, self.timeouts.command_ms, now_ms);
            }
            State::Helo if reply.code == 250 => self.after_hello(now_ms),
            State::Ehlo | State::Helo => self.fail(Phase::Ehlo, Answer::Reply(reply)),
            State::StartTls => self.handle_starttls(reply, now_ms),
            State::Envelope => self.handle_envelope_reply(reply, now_ms),
            State::Content if reply.is_positive() || reply.code < 400 => {
                self.fail(Phase::Data, Answer::Garbage(format!("{} before the content ended", reply.code)));
            }
            State::Content => self.fail(Phase::Data, Answer::Reply(reply)),
            State::EndOfData if reply.code < 200 || reply.code / 100 == 3 => {
                self.fail(Phase::EndOfData, Answer::Garbage(format!("{} after the end of data", reply.code)));
            }
            State::EndOfData => self.finish(Phase::EndOfData, Answer::Reply(reply), false),
            State::LoneDot => self.finish_unsent(None),
            State::Ready | State::Handshake | State::Closed => self.close(),
        }
    }

    fn say_hello(&mut self, now_ms: u64) {
        self.command(format_args!("EHLO {}", self.hello.clone()), State::Ehlo, self.timeouts.command_ms, now_ms);
    }

    fn command(&mut self, text: fmt::Arguments<'_>, next: State, timeout_ms: u64, now_ms: u64) {
        put(&mut self.out, format_args!("{text}\r\n"));
        self.state = next;
        self.deadline_ms = now_ms.saturating_add(timeout_ms);
    }

    fn after_hello(&mut self, now_ms: u64) {
        if self.secured || self.tls == TlsUse::Disabled {
            self.become_ready();
        } else if self.offered.starttls {
            self.command(format_args!("STARTTLS"), State::StartTls, self.timeouts.command_ms, now_ms);
        } else if self.tls == TlsUse::Required {
            self.fail(Phase::Tls, Answer::Unable(Unable::TlsNotOffered));
        } else {
            self.become_ready();
        }
    }

    fn become_ready(&mut self) {
        self.state = State::Ready;
        self.events.push_back(Event::Ready);
    }

    fn handle_starttls(&mut self, reply: Reply, now_ms: u64) {
        if reply.code == 220 {
            if !self.reader.is_idle() {
                // Somebody between us and the server put words into its mouth.
                return self.fail(Phase::Tls, Answer::Garbage("plain text after the answer to STARTTLS".into()));
            }
            self.state = State::Handshake;
            self.deadline_ms = now_ms.saturating_add(self.timeouts.handshake_ms);
            self.events.push_back(Event::StartTls);
        } else if self.tls == TlsUse::Required || reply.code == 421 {
            self.fail(Phase::Tls, Answer::Reply(reply));
        } else {
            self.become_ready();
        }
    }

    /// Writes what may be written without waiting: everything up to DATA where PIPELINING is offered, else one command.
    fn write_group(&mut self, now_ms: u64) {
        let pipelining = self.offered.pipelining;
        let Some(exchange) = &mut self.exchange else { return };
        let at_once = if pipelining { usize::MAX } else { 1 };
        if exchange.mail.is_none() {
            if std::mem::take(&mut exchange.reset_first) {
                self.out.extend_from_slice(b"RSET\r\n");
                exchange.expected.push_back(Expected::Reset);
            }
            if exchange.expected.len() < at_once {
                write_mail(&mut self.out, &exchange.transaction, &self.offered);
                exchange.expected.push_back(Expected::Mail);
            }
        }
        let group = if pipelining { RECIPIENTS_PER_GROUP } else { 1 };
        let mut written = 0;
        while written < group && exchange.expected.len() < at_once {
            let Some(recipient) = exchange.transaction.recipients.get(exchange.next_recipient) else { break };
            put(&mut self.out, format_args!("RCPT TO:<{recipient}>\r\n"));
            exchange.expected.push_back(Expected::Rcpt(exchange.next_recipient));
            exchange.next_recipient += 1;
            written += 1;
        }
        if exchange.next_recipient == exchange.recipients.len() && exchange.expected.len() < at_once {
            self.out.extend_from_slice(b"DATA\r\n");
            exchange.expected.push_back(Expected::Data);
        }
        self.wait_for_next(now_ms);
    }

    fn wait_for_next(&mut self, now_ms: u64) {
        let wait_ms = match self.exchange.as_ref().and_then(|exchange| exchange.expected.front()) {
            Some(Expected::Rcpt(_)) => self.timeouts.rcpt_ms,
            Some(Expected::Data) => self.timeouts.data_ms,
            _ => self.timeouts.mail_ms,
        };
        self.deadline_ms = now_ms.saturating_add(wait_ms);
    }

    fn handle_envelope_reply(&mut self, reply: Reply, now_ms: u64) {
        let Some(exchange) = &mut self.exchange else { return self.close() };
        let Some(expected) = exchange.expected.pop_front() else { return self.close() };
        if reply.code == 421 || !(200..600).contains(&reply.code) || (reply.code / 100 == 3 && expected != Expected::Data) {
            let phase = match expected {
                Expected::Reset | Expected::Mail => Phase::Mail,
                Expected::Rcpt(_) => Phase::Rcpt,
                Expected::Data => Phase::Data,
            };
            let answer = if reply.code == 421 { Answer::Reply(reply) } else { Answer::Garbage(format!("{} to {phase}", reply.code)) };
            return self.fail(phase, answer);
        }
        match expected {
            Expected::Reset if reply.is_positive() => {}
            Expected::Reset => return self.fail(Phase::Mail, Answer::Garbage(format!("{} to RSET", reply.code))),
            Expected::Mail => exchange.mail = Some(reply),
            Expected::Rcpt(index) => {
                if let Some(slot) = exchange.recipients.get_mut(index) {
                    *slot = Some(reply);
                }
            }
            Expected::Data => return self.handle_data_reply(reply, now_ms),
        }
        let exchange = self.exchange.as_ref().expect("taken only at the end of the transaction");
        if !exchange.expected.is_empty() {
            return self.wait_for_next(now_ms);
        }
        let mail_refused = exchange.mail.as_ref().is_some_and(|mail| !mail.is_positive());
        let all_answered = exchange.next_recipient == exchange.recipients.len();
        if mail_refused || (all_answered && !exchange.any_accepted()) {
            self.finish_unsent(None);
        } else {
            self.write_group(now_ms);
        }
    }

    fn handle_data_reply(&mut self, reply: Reply, now_ms: u64) {
        let wanted = self.exchange.as_ref().is_some_and(|exchange| exchange.any_accepted() && exchange.mail.as_ref().is_some_and(Reply::is_positive));
        match (reply.code / 100, wanted) {
            (3, true) => {
                self.state = State::Content;
                self.deadline_ms = now_ms.saturating_add(self.timeouts.block_ms);
                self.events.push_back(Event::SendContent);
            }
            // Nobody to send to, yet the server waits for content: the shortest there is, for no recipient (RFC 2920 section 3.1).
            (3, false) => {
                self.command(format_args!("."), State::LoneDot, self.timeouts.end_of_data_ms, now_ms);
            }
            (2, _) => self.fail(Phase::Data, Answer::Garbage(format!("{} to DATA", reply.code))),
            _ => self.finish_unsent(Some(reply)),
        }
    }

    /// The end of a transaction in which no content was sent: the earliest refusal is the reason.
    fn finish_unsent(&mut self, data: Option<Reply>) {
        let Some(exchange) = &self.exchange else { return self.close() };
        let refused_mail = exchange.mail.clone().filter(|mail| !mail.is_positive());
        let (phase, reply) = match (refused_mail, data) {
            (Some(mail), _) => (Phase::Mail, Some(mail)),
            (None, Some(data)) if exchange.any_accepted() => (Phase::Data, Some(data)),
            _ => (Phase::Rcpt, exchange.recipients.iter().flatten().next_back().cloned()),
        };
        let answer = reply.map_or_else(|| Answer::Garbage("no recipient was answered".into()), Answer::Reply);
        let reset = self.state != State::LoneDot;
        self.finish(phase, answer, reset);
    }

    fn finish(&mut self, phase: Phase, answer: Answer, needs_reset: bool) {
        let Some(exchange) = self.exchange.take() else { return self.close() };
        let closing = matches!(&answer, Answer::Reply(reply) if reply.code == 421);
        self.state = if closing { State::Closed } else { State::Ready };
        self.needs_reset = needs_reset;
        self.events.push_back(Event::Finished(Finished { recipients: exchange.recipients, phase, answer }));
    }
}

impl Exchange {
    fn any_accepted(&self) -> bool {
        self.recipients.iter().flatten().any(Reply::is_positive)
    }
}

fn put(out: &mut BytesMut, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes what is written to it");
}

fn write_mail(out: &mut BytesMut, transaction: &Transaction, offered: &Extensions) {
    out.extend_from_slice(b"MAIL FROM:<");
    if let Some(sender) = &transaction.sender {
        put(out, format_args!("{sender}"));
    }
    out.extend_from_slice(b">");
    if offered.size {
        put(out, format_args!(" SIZE={}", transaction.size_bytes));
    }
    if offered.eight_bit && transaction.eight_bit {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if offered.smtputf8 && transaction.needs_utf8() {
        out.extend_from_slice(b" SMTPUTF8");
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
