//! The server's side of a session as a machine without I/O: octets and the time go in, events and replies come out.
//!
//! The machine owns the protocol: sequence, limits, pipelining, framing, the texts of its own replies. It knows nothing of tenants,
//! engines or the spool: [`Event::Mail`], [`Event::Rcpt`], [`Event::Data`] and [`Event::Message`] ask its owner, and until the answer
//! comes it takes no further command (what is pipelined stays in the owner's buffer). A message is accepted only by a [`Promise`] for
//! every recipient; there is no other way to say 250 to the end of data.
//!
//! The owner's loop: read when [`Server::wants_input`]; call [`Server::input`]; take events and answer them, calling `input` again as
//! long as it takes something; write what [`Server::output`] holds before waiting for anything (the peer, an answer that takes long);
//! sleep until [`Server::deadline_ms`] at most, then call [`Server::timeout`]; after [`Server::is_closed`] write the rest and close.

use std::collections::{HashSet, VecDeque};

use bytes::{Buf, Bytes, BytesMut};

pub use super::command::MailCommand;
use super::data::{BareLineEndings, Decoder, Progress};
use super::limits::{Limits, OUTPUT_OCTETS_PAUSE};
use super::reply::table as say;
use super::{Address, Reply};

mod clock;
mod commands;

use clock::Clock;

/// TLS, as far as this session is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsOffer {
    /// STARTTLS is not offered.
    Disabled,
    /// STARTTLS is offered.
    Optional,
    /// No mail before STARTTLS.
    Required,
    /// The session runs inside TLS.
    Established,
}

/// What a listener says of its sessions.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Name in the banner and in answers to EHLO, domain of `<postmaster>`.
    pub hostname: String,
    /// Bounds.
    pub limits: Limits,
    /// TLS at the start of the session.
    pub tls: TlsOffer,
    /// Policy for a CR or LF by itself in content.
    pub bare_line_endings: BareLineEndings,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseReason {
    /// QUIT.
    Quit,
    /// [`Server::refuse_connection`].
    Refused,
    /// An answer of the owner had the code 421.
    Answered,
    /// [`Server::shutdown`].
    Shutdown,
    /// Octets before the banner.
    EarlyTalk,
    /// Octets in clear behind STARTTLS.
    TlsInjection,
    /// Octets behind a command whose answer had to be awaited.
    NotSynchronized,
    /// BDAT.
    Chunking,
    /// Another protocol.
    NotSmtp,
    /// A command line without end.
    EndlessLine,
    /// A refused message that went on beyond the size limit once more.
    EndlessContent,
    /// Too many errors.
    Errors,
    /// Too many refused recipients, or RCPT after RCPT beyond the limit.
    Recipients,
    /// Too many commands that carry no mail.
    IdleCommands,
    /// Enough messages.
    Messages,
    /// No command, no content, or no handshake in time.
    Idle,
    /// Content slower than the least rate.
    Slow,
    /// The transaction took too long.
    Transaction,
    /// The session took too long.
    Session,
}

/// What happened. Those that say so wait for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// EHLO or HELO, already answered.
    Hello {
        /// What the client calls itself: printable ASCII without blanks, nothing else is known of it.
        name: String,
        /// Whether it was EHLO.
        esmtp: bool,
    },
    /// MAIL: awaits [`Server::answer_mail`].
    Mail(MailCommand),
    /// RCPT, not yet accepted in this transaction: awaits [`Server::answer_rcpt`].
    Rcpt(Address),
    /// DATA with at least one accepted recipient: awaits [`Server::answer_data`].
    Data,
    /// The whole content, decoded, CRLF at every line end: awaits [`Server::answer_message`].
    Message(Bytes),
    /// The content was refused with this reply by the machine or by [`Server::refuse_content`]; the transaction is over.
    ContentRefused(Reply),
    /// The transaction under way is over without a message (RSET, EHLO, STARTTLS).
    Reset,
    /// STARTTLS was answered: write the output, make the handshake, call [`Server::start_tls_done`]; if it fails, close.
    StartTls,
    /// The session is over, and with it a transaction under way.
    Closed {
        /// Why.
        reason: CloseReason,
    },
}

/// What stands behind a 250: for each recipient a place that the message is in, or somebody who answers for it.
pub trait Promise: Send {
    /// How many of the transaction's recipients it covers.
    fn recipients(&self) -> usize;
    /// What the client is told, such as `queued as 01HZX`.
    fn text(&self) -> String;
}

/// A reply that refuses, for now or for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(Reply);

impl Refusal {
    /// Takes a 4xx or 5xx.
    ///
    /// # Errors
    /// Any other reply comes back.
    pub fn new(reply: Reply) -> Result<Self, Reply> {
        if reply.is_transient() || reply.is_permanent() { Ok(Self(reply)) } else { Err(reply) }
    }

    /// The reply.
    pub fn reply(&self) -> &Reply {
        &self.0
    }
}

/// The answer to the end of data.
pub enum MessageAnswer {
    /// 250, if the promise covers every accepted recipient; else 451.
    Accepted(Box<dyn Promise>),
    /// 4xx or 5xx.
    Refused(Refusal),
}

impl std::fmt::Debug for MessageAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accepted(promise) => write!(f, "Accepted({:?} for {})", promise.text(), promise.recipients()),
            Self::Refused(refusal) => write!(f, "Refused({})", refusal.0),
        }
    }
}

/// What the machine waits for.
#[derive(Debug)]
enum State {
    /// [`Server::greet`].
    Silent,
    /// A command.
    Command,
    /// The answer to MAIL.
    Mail(MailCommand),
    /// The answer to RCPT.
    Rcpt(Address),
    /// The answer to DATA.
    Data,
    /// The end of the content.
    Content(Box<Content>),
    /// The answer to the message.
    Message,
    /// The handshake.
    Tls,
    /// Nothing any more.
    Closed,
}

#[derive(Debug)]
struct Content {
    decoder: Decoder,
    /// By the owner.
    refused: Option<Reply>,
    begun: bool,
}

#[derive(Debug)]
struct Transaction {
    size: Option<u64>,
    smtputf8: bool,
    recipients: HashSet<Address>,
    recipient_commands: u32,
}

/// Since the last accepted message, or of the session.
#[derive(Debug, Default)]
struct Counts {
    errors: u32,
    idle_commands: u32,
    recipients_refused: u32,
    messages: u32,
    misuses: u32,
}

/// One session.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    state: State,
    /// `Some(true)` after EHLO, `Some(false)` after HELO.
    hello: Option<bool>,
    tls: Option<String>,
    transaction: Option<Transaction>,
    counts: Counts,
    clock: Clock,
    /// Octets of a command line that is too long, dropped so far.
    skipped: usize,
    draining: bool,
    early_talk: bool,
    events: VecDeque<Event>,
    output: BytesMut,
    encoded: Vec<u8>,
}

impl Server {
    /// A session that begins now; nothing is sent before [`Self::greet`] or [`Self::refuse_connection`].
    pub fn new(options: ServerOptions, now_ms: u64) -> Self {
        Self {
            options,
            state: State::Silent,
            hello: None,
            tls: None,
            transaction: None,
            counts: Counts::default(),
            clock: Clock::new(now_ms),
            skipped: 0,
            draining: false,
            early_talk: false,
            events: VecDeque::new(),
            output: BytesMut::new(),
            encoded: Vec::new(),
        }
    }

    /// Queues the banner. To notice a client that talks first, give [`Self::input`] what has come before.
    pub fn greet(&mut self) {
        match self.state {
            State::Silent => {
                let banner = say::banner(&self.options.hostname);
                self.say(&banner);
                self.state = State::Command;
                self.clock.restart();
                self.between_transactions();
            }
            _ => self.misuse(),
        }
    }

    /// Refuses the connection instead of greeting: 421 or 554. Closes.
    pub fn refuse_connection(&mut self, reply: Reply) {
        match self.state {
            State::Silent => self.close(&negative(reply), CloseReason::Refused),
            _ => self.misuse(),
        }
    }

    /// Takes what it can from the front of `buffer`. What is left waits for an answer, for output to be taken, or for the rest of its
    /// line (at most `command_line_octets`).
    pub fn input(&mut self, now_ms: u64, buffer: &mut BytesMut) {
        self.clock.tick(now_ms);
        while !buffer.is_empty() {
            let goes_on = match self.state {
                State::Silent => {
                    self.early_talk = true;
                    if self.options.limits.refuse_early_talk {
                        self.close(&say::EARLY_TALK.into(), CloseReason::EarlyTalk);
                    }
                    false
                }
                State::Command => self.output.len() < OUTPUT_OCTETS_PAUSE && self.take_line(buffer),
                State::Content(_) => self.take_content(buffer),
                State::Tls => {
                    self.close(&say::TLS_INJECTION.into(), CloseReason::TlsInjection);
                    false
                }
                State::Closed => {
                    buffer.clear();
                    false
                }
                State::Mail(_) | State::Rcpt(_) | State::Data | State::Message => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// The next event, if there is one.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Replies to be written. Those of a pipelined group are here together. The owner takes them out (`split`, `advance`).
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Whether more octets would get anywhere. False while an answer is awaited, during the handshake, after the end, and while more
    /// than [`OUTPUT_OCTETS_PAUSE`] wait to be written.
    pub fn wants_input(&self) -> bool {
        match self.state {
            State::Silent | State::Command => self.output.len() < OUTPUT_OCTETS_PAUSE,
            State::Content(_) => true,
            State::Mail(_) | State::Rcpt(_) | State::Data | State::Message | State::Tls | State::Closed => false,
        }
    }

    /// Answers [`Event::Mail`]: `Err` holds a 4xx or 5xx; any other code becomes 451.
    pub fn answer_mail(&mut self, answer: Result<(), Reply>) {
        let State::Mail(_) = self.state else { return self.misuse() };
        let State::Mail(mail) = std::mem::replace(&mut self.state, State::Command) else { return };
        self.clock.restart();
        match answer {
            Ok(()) => {
                self.transaction = Some(Transaction::new(&mail));
                self.say(&say::SENDER_OK.into());
            }
            Err(reply) => {
                self.refuse_idly(reply);
                self.between_transactions();
            }
        }
    }

    /// Answers [`Event::Rcpt`]: `Err` holds a 4xx or 5xx; any other code becomes 451.
    pub fn answer_rcpt(&mut self, answer: Result<(), Reply>) {
        let State::Rcpt(_) = self.state else { return self.misuse() };
        let State::Rcpt(address) = std::mem::replace(&mut self.state, State::Command) else { return };
        self.clock.restart();
        match answer {
            Ok(()) => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.recipients.insert(address);
                }
                self.say(&say::RECIPIENT_OK.into());
            }
            Err(reply) => self.refuse_recipient(reply),
        }
    }

    /// Answers [`Event::Data`]: `Ok` says 354; `Err` holds a 4xx or 5xx, and the transaction stays.
    pub fn answer_data(&mut self, answer: Result<(), Reply>) {
        let State::Data = self.state else { return self.misuse() };
        self.state = State::Command;
        self.clock.restart();
        match answer {
            Ok(()) => {
                let size = self.transaction.as_ref().and_then(|transaction| transaction.size);
                let decoder = Decoder::new(self.options.bare_line_endings, &self.options.limits, size);
                self.counts.messages += 1;
                self.counts.idle_commands = 0;
                self.clock.content_begins();
                self.say(&say::SEND_CONTENT.into());
                self.state = State::Content(Box::new(Content { decoder, refused: None, begun: false }));
            }
            Err(reply) => self.refuse_idly(reply),
        }
    }

    /// Octets of the content under way that are held, for the owner's memory budget. 0 outside DATA and once the content is refused.
    pub fn content_len(&self) -> usize {
        match &self.state {
            State::Content(content) => content.decoder.len(),
            _ => 0,
        }
    }

    /// Gives up the content under way: its memory is free at once, the rest is read and dropped, and its end is answered with `reply`
    /// (4xx or 5xx, any other code becomes 451). If more than `message_octets` follow, the answer comes early and the session ends.
    /// If the machine has already found its own reason to refuse, that one stays.
    pub fn refuse_content(&mut self, reply: Reply) {
        match &mut self.state {
            State::Content(content) => {
                content.refused.get_or_insert_with(|| negative(reply));
                content.decoder.discard();
            }
            _ => self.misuse(),
        }
    }

    /// Answers [`Event::Message`]; the transaction is over.
    pub fn answer_message(&mut self, answer: MessageAnswer) {
        let State::Message = self.state else { return self.misuse() };
        self.state = State::Command;
        self.clock.restart();
        let recipients = self.transaction.take().map_or(0, |transaction| transaction.recipients.len());
        match answer {
            MessageAnswer::Accepted(promise) if promise.recipients() == recipients => {
                self.counts.errors = 0;
                self.counts.recipients_refused = 0;
                self.say(&say::accepted(promise.text()));
            }
            MessageAnswer::Accepted(_) => {
                self.misuse();
                self.say(&say::INTERNAL_ERROR.into());
            }
            MessageAnswer::Refused(refusal) => self.refuse(refusal.0),
        }
        self.between_transactions();
    }

    /// The handshake after [`Event::StartTls`] is done; `tls` names version and cipher. What was said before it is forgotten
    /// (RFC 3207 section 4.2).
    pub fn start_tls_done(&mut self, tls: String, now_ms: u64) {
        self.clock.tick(now_ms);
        match self.state {
            State::Tls => {
                self.tls = Some(tls);
                self.options.tls = TlsOffer::Established;
                self.hello = None;
                self.state = State::Command;
                self.clock.restart();
                self.between_transactions();
            }
            _ => self.misuse(),
        }
    }

    /// Ends the session with 421 at the next boundary between transactions, which may be now. A transaction under way may finish.
    pub fn shutdown(&mut self) {
        self.draining = true;
        if matches!(self.state, State::Silent | State::Command) {
            self.between_transactions();
        }
    }

    /// When [`Self::timeout`] is due, in the terms of `now_ms`; `u64::MAX` while nothing is awaited from the peer. It may lie in the
    /// past after an answer that took long: `timeout` then only starts the clock again.
    pub fn deadline_ms(&self) -> u64 {
        self.due().map_or(u64::MAX, |due| due.at_ms)
    }

    /// Ends the session if something is overdue at `now_ms`; else does nothing.
    pub fn timeout(&mut self, now_ms: u64) {
        self.clock.tick(now_ms);
        if let Some(due) = self.due()
            && due.at_ms <= now_ms
        {
            match due.reply {
                Some(reply) => self.close(&reply.into(), due.reason),
                None => self.end(due.reason),
            }
        }
    }

    /// Whether the session is over. Write what [`Self::output`] holds, then close.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether a MAIL was accepted or is being answered, and its transaction is not over.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some() || matches!(self.state, State::Mail(_))
    }

    /// What [`Self::start_tls_done`] was told.
    pub fn tls(&self) -> Option<&str> {
        self.tls.as_deref()
    }

    /// Whether the client spoke before the banner.
    pub fn early_talk(&self) -> bool {
        self.early_talk
    }

    /// How often the owner called a method that did not fit the state, or promised for the wrong number of recipients. Such calls do
    /// nothing (the promise says 451); the owner should log a defect if this is not 0.
    pub fn misuses(&self) -> u32 {
        self.counts.misuses
    }

    fn take_content(&mut self, buffer: &mut BytesMut) -> bool {
        let State::Content(content) = &mut self.state else { return false };
        if !content.begun && !self.output.is_empty() {
            // The 354 is not written yet: this was sent without waiting for it.
            self.close(&say::NOT_SYNCHRONIZED.into(), CloseReason::NotSynchronized);
            return false;
        }
        content.begun = true;
        match content.decoder.push(buffer) {
            Progress::More => {
                self.clock.content_comes(buffer.len());
                let endless = content.decoder.discarded() > self.options.limits.message_octets;
                buffer.clear();
                if endless && let State::Content(content) = std::mem::replace(&mut self.state, State::Command) {
                    let reply = self.refuse_at_end(*content).unwrap_or_else(|| say::MESSAGE_TOO_LARGE.into());
                    self.close(&reply, CloseReason::EndlessContent);
                }
            }
            Progress::End { consumed } => {
                self.clock.content_comes(consumed);
                buffer.advance(consumed);
                if let State::Content(content) = std::mem::replace(&mut self.state, State::Message) {
                    self.content_ends(*content);
                }
            }
        }
        true
    }

    fn content_ends(&mut self, content: Content) {
        if content.refused.is_some() || content.decoder.problem().is_some() {
            self.state = State::Command;
            if let Some(reply) = self.refuse_at_end(content) {
                self.refuse(reply);
            }
            self.between_transactions();
        } else if let Ok(message) = content.decoder.finish() {
            self.events.push_back(Event::Message(message));
        }
    }

    /// Ends the transaction of a refused content; the reply is still to be given.
    fn refuse_at_end(&mut self, content: Content) -> Option<Reply> {
        self.transaction = None;
        self.clock.restart();
        let reply = content.decoder.problem().map(|problem| problem.reply().into()).or(content.refused)?;
        self.events.push_back(Event::ContentRefused(reply.clone()));
        Some(reply)
    }

    /// Gives the owner's refusal of MAIL or DATA, which nobody may ask for without end.
    fn refuse_idly(&mut self, reply: Reply) {
        self.counts.idle_commands += 1;
        self.refuse(reply);
        if self.counts.idle_commands > self.options.limits.idle_commands {
            self.close(&say::TOO_MANY_COMMANDS.into(), CloseReason::IdleCommands);
        }
    }

    fn refuse_recipient(&mut self, reply: Reply) {
        if reply.is_permanent() {
            self.counts.recipients_refused += 1;
        }
        self.refuse(reply);
        // A list with many dead addresses among living ones must get through; a dictionary has hardly a living one.
        let accepted = self.transaction.as_ref().map_or(0, |transaction| transaction.recipients.len());
        let allowed = self.options.limits.recipients_refused.max(u32::try_from(accepted).unwrap_or(u32::MAX));
        if self.counts.recipients_refused > allowed {
            self.close(&say::TOO_MANY_REFUSED.into(), CloseReason::Recipients);
        }
    }

    /// Gives the owner's refusal; 421 closes (RFC 5321 section 3.8).
    fn refuse(&mut self, reply: Reply) {
        let reply = negative(reply);
        if reply.code == 421 {
            self.close(&reply, CloseReason::Answered);
        } else {
            self.say(&reply);
        }
    }

    /// A place where the session may end for reasons of our own.
    fn between_transactions(&mut self) {
        if self.draining && !self.in_transaction() && !self.is_closed() {
            self.close(&say::SHUTTING_DOWN.into(), CloseReason::Shutdown);
        }
    }

    fn say(&mut self, reply: &Reply) {
        self.encoded.clear();
        reply.encode(&mut self.encoded);
        self.output.extend_from_slice(&self.encoded);
    }

    fn close(&mut self, reply: &Reply, reason: CloseReason) {
        if !self.is_closed() {
            self.say(reply);
            self.end(reason);
        }
    }

    fn end(&mut self, reason: CloseReason) {
        self.state = State::Closed;
        self.transaction = None;
        self.events.push_back(Event::Closed { reason });
    }

    fn misuse(&mut self) {
        self.counts.misuses += 1;
    }
}

/// An owner's refusal that refuses nothing must not become a yes.
fn negative(reply: Reply) -> Reply {
    if reply.is_transient() || reply.is_permanent() { reply } else { say::INTERNAL_ERROR.into() }
}

#[cfg(test)]
mod tests;
