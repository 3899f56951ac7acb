//! Command lines: framing, sequence, what each command does.

use std::collections::HashSet;

use bytes::BytesMut;
use memchr::memchr;

use super::super::command::{self, Command, RecipientPath};
use super::super::reply::Fixed;
use super::super::reply::table as say;
use super::super::{Address, Reply};
use super::{CloseReason, Event, MailCommand, Server, State, TlsOffer, Transaction};

impl Server {
    /// Takes one line; false if there is none or nothing may be taken any more.
    pub(super) fn take_line(&mut self, buffer: &mut BytesMut) -> bool {
        let limits = &self.options.limits;
        let (longest, endless) = (limits.command_line_octets, limits.command_line_skip_octets.max(limits.command_line_octets));
        let Some(end) = memchr(b'\n', buffer) else {
            if self.skipped > 0 || buffer.len() > longest {
                self.skipped = self.skipped.saturating_add(buffer.len());
                buffer.clear();
                if self.skipped > endless {
                    self.close(&say::ENDLESS_LINE.into(), CloseReason::EndlessLine);
                }
            }
            return false;
        };
        let line = buffer.split_to(end + 1);
        let octets = std::mem::take(&mut self.skipped).saturating_add(line.len());
        self.clock.command_comes();
        if octets > endless {
            self.close(&say::ENDLESS_LINE.into(), CloseReason::EndlessLine);
        } else if octets > longest {
            self.error(say::LINE_TOO_LONG);
        } else {
            // A line that ends with LF alone is no command, but it does end (it must not swallow the next one).
            let command = line.strip_suffix(b"\r\n").ok_or(say::BAD_LINE).and_then(command::parse);
            self.command(command, !buffer.is_empty());
        }
        matches!(self.state, State::Command)
    }

    /// `followed`: there are octets behind the command already.
    fn command(&mut self, command: Result<Command, Fixed>, followed: bool) {
        let command = match command {
            // RFC 2920 section 3.1: the answers to these must be awaited; and without EHLO the client cannot know that we pipeline.
            Ok(Command::StartTls) if followed => return self.close(&say::TLS_INJECTION.into(), CloseReason::TlsInjection),
            Ok(Command::Bdat) => return self.close(&say::NO_CHUNKING.into(), CloseReason::Chunking),
            Ok(Command::Foreign) => return self.close(&say::NOT_SMTP.into(), CloseReason::NotSmtp),
            Ok(Command::Quit) => return self.close(&say::GOODBYE.into(), CloseReason::Quit),
            _ if followed && self.hello != Some(true) => return self.not_synchronized(),
            Ok(Command::Ehlo(_) | Command::Helo(_) | Command::Data) if followed => return self.not_synchronized(),
            Ok(command) => command,
            Err(reply) => return self.error(reply),
        };
        if self.options.tls == TlsOffer::Required && matches!(command, Command::Mail { .. } | Command::Rcpt(_) | Command::Data | Command::Vrfy) {
            return self.error(say::TLS_REQUIRED);
        }
        match command {
            Command::Ehlo(name) => self.hello(name, true),
            Command::Helo(name) => self.hello(name, false),
            Command::Mail { mail, parameters } => self.mail(mail, parameters),
            Command::Rcpt(path) => self.recipient(path),
            Command::Data => self.data(),
            Command::Rset => {
                self.reset();
                self.idle(&say::OK.into());
                self.between_transactions();
            }
            Command::Noop => self.idle(&say::OK.into()),
            Command::Vrfy => self.idle(&say::NOT_VERIFIED.into()),
            Command::Help => self.idle(&say::HELP.into()),
            Command::StartTls => self.start_tls(),
            Command::Quit | Command::Bdat | Command::Foreign => {}
        }
    }

    fn not_synchronized(&mut self) {
        self.close(&say::NOT_SYNCHRONIZED.into(), CloseReason::NotSynchronized);
    }

    /// An error of syntax or sequence.
    fn error(&mut self, reply: Fixed) {
        self.say(&reply.into());
        self.counts.errors += 1;
        if self.counts.errors >= self.options.limits.errors {
            self.close(&say::TOO_MANY_ERRORS.into(), CloseReason::Errors);
        }
    }

    /// The answer to a command that carries no mail.
    fn idle(&mut self, reply: &Reply) {
        self.counts.idle_commands += 1;
        if self.counts.idle_commands > self.options.limits.idle_commands {
            self.close(&say::TOO_MANY_COMMANDS.into(), CloseReason::IdleCommands);
        } else {
            self.say(reply);
        }
    }

    /// Ends a transaction under way.
    fn reset(&mut self) {
        if self.transaction.take().is_some() {
            self.events.push_back(Event::Reset);
        }
    }

    fn hello(&mut self, name: String, esmtp: bool) {
        self.reset();
        self.hello = Some(esmtp);
        let hostname = &self.options.hostname;
        let reply = if esmtp {
            let start_tls = matches!(self.options.tls, TlsOffer::Optional | TlsOffer::Required);
            say::extended_hello(hostname, self.options.limits.message_octets, start_tls)
        } else {
            say::hello(hostname)
        };
        self.idle(&reply);
        if !self.is_closed() {
            self.events.push_back(Event::Hello { name, esmtp });
            self.between_transactions();
        }
    }

    fn mail(&mut self, mail: MailCommand, parameters: bool) {
        let limits = &self.options.limits;
        let refusal = match self.hello {
            None => say::HELLO_FIRST,
            _ if self.transaction.is_some() => say::SENDER_GIVEN,
            _ if self.counts.messages >= limits.messages_per_session => {
                return self.close(&say::TOO_MANY_MESSAGES.into(), CloseReason::Messages);
            }
            _ if self.clock.session_is_over(limits.session_ms) => {
                return self.close(&say::SESSION_TIMEOUT.into(), CloseReason::Session);
            }
            Some(false) if parameters => say::UNKNOWN_PARAMETER,
            _ if mail.size.is_some_and(|size| size > limits.message_octets) => return self.idle(&say::MESSAGE_TOO_LARGE.into()),
            _ => {
                self.clock.transaction_begins();
                self.events.push_back(Event::Mail(mail.clone()));
                self.state = State::Mail(mail);
                return;
            }
        };
        self.error(refusal);
    }

    fn recipient(&mut self, path: RecipientPath) {
        let limits = &self.options.limits;
        let Some(transaction) = &mut self.transaction else { return self.error(say::MAIL_FIRST) };
        let address = match path {
            RecipientPath::Mailbox(address) => address,
            RecipientPath::Postmaster(local) => Address { local, domain: self.options.hostname.to_lowercase() },
        };
        transaction.recipient_commands += 1;
        let most = usize::try_from(limits.recipients).unwrap_or(usize::MAX);
        if transaction.recipient_commands > limits.recipient_commands() {
            self.close(&say::RECIPIENT_FLOOD.into(), CloseReason::Recipients);
        } else if address.has_route_in_local() {
            self.refuse_recipient(say::NO_SOURCE_ROUTE.into());
        } else if !address.is_ascii() && !transaction.smtputf8 {
            self.error(say::NEEDS_SMTPUTF8);
        } else if transaction.recipients.contains(&address) {
            self.say(&say::RECIPIENT_OK.into());
        } else if transaction.recipients.len() >= most {
            self.say(&say::TOO_MANY_RECIPIENTS.into());
        } else {
            self.events.push_back(Event::Rcpt(address.clone()));
            self.state = State::Rcpt(address);
        }
    }

    fn data(&mut self) {
        match &self.transaction {
            None => self.error(say::MAIL_FIRST),
            Some(Transaction { recipients, recipient_commands: 0, .. }) if recipients.is_empty() => self.error(say::RCPT_FIRST),
            Some(transaction) if transaction.recipients.is_empty() => self.error(say::NO_RECIPIENTS),
            Some(_) => {
                self.events.push_back(Event::Data);
                self.state = State::Data;
            }
        }
    }

    fn start_tls(&mut self) {
        match self.options.tls {
            TlsOffer::Disabled => self.error(say::NOT_IMPLEMENTED),
            TlsOffer::Established => self.error(say::TLS_ACTIVE),
            TlsOffer::Optional | TlsOffer::Required if self.hello != Some(true) => self.error(say::EHLO_FIRST),
            TlsOffer::Optional | TlsOffer::Required => {
                self.reset();
                self.idle(&say::START_TLS.into());
                if !self.is_closed() {
                    self.events.push_back(Event::StartTls);
                    self.state = State::Tls;
                }
            }
        }
    }
}

impl Transaction {
    pub(super) fn new(mail: &MailCommand) -> Self {
        Self { size: mail.size, smtputf8: mail.smtputf8, recipients: HashSet::new(), recipient_commands: 0 }
    }
}
