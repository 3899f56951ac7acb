//! The content of DATA: where it ends, dot-unstuffing (RFC 5321 section 4.5.2), stray CR and LF, and its bounds.
//!
//! Only CRLF.CRLF ends it; the CRLF may be the one that ended the DATA command. A CR or LF by itself neither ends a line for that
//! purpose nor makes a dot behind it a stuffed one, whatever the policy: two servers that disagree about it is how mail is smuggled
//! (CVE-2023-51764 and its kin). Nothing else is ever changed.
//!
//! Works on slices: clean content is found by memchr and appended in runs as long as no dot has to be dropped.

use bytes::Bytes;
use memchr::{memchr, memchr2};

use super::limits::{Limits, RESERVE_OCTETS_MAX};
use super::reply::Fixed;
use super::reply::table as say;

/// What is done about a CR or LF by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareLineEndings {
    /// The message is refused at its end.
    Refuse,
    /// Each becomes CRLF.
    Normalise,
}

/// Why a message is refused at its end. The first in the order of the octets counts, however they came in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A CR or LF by itself.
    BareLineEnding,
    /// A NUL (RFC 5322 section 2.2 and 4): parsers and engines end at it, each elsewhere.
    Nul,
    /// A line beyond `content_line_octets`.
    LineTooLong,
    /// A header section beyond `header_octets`.
    HeaderTooLarge,
    /// More than `header_fields`.
    TooManyFields,
    /// Beyond `message_octets`.
    TooLarge,
}

impl Problem {
    /// What the client hears at the end of data.
    pub const fn reply(self) -> Fixed {
        match self {
            Self::BareLineEnding => say::BARE_LINE_ENDING,
            Self::Nul => say::NUL_IN_CONTENT,
            Self::LineTooLong => say::CONTENT_LINE_TOO_LONG,
            Self::HeaderTooLarge => say::HEADER_TOO_LARGE,
            Self::TooManyFields => say::TOO_MANY_FIELDS,
            Self::TooLarge => say::MESSAGE_TOO_LARGE,
        }
    }
}

/// How far [`Decoder::push`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of it is content.
    More,
    /// The content ended; what follows the first `consumed` octets is the next command.
    End {
        /// Octets of this piece up to and with the terminator.
        consumed: usize,
    },
}

/// Where in a line the next octet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Behind CRLF.
    Start,
    /// Behind CRLF and a dot, which is dropped or ends the content.
    Dot,
    /// Behind CRLF, dot, CR.
    DotCr,
    /// Anywhere else.
    Text,
    /// Behind a CR that is not appended yet.
    TextCr,
}

/// Decodes one message.
#[derive(Debug)]
pub struct Decoder {
    bare: BareLineEndings,
    message_octets: usize,
    line_octets: usize,
    header_octets: usize,
    header_fields: u32,
    at: At,
    content: Vec<u8>,
    /// Set once nothing is kept any more.
    discarding: bool,
    problem: Option<Problem>,
    /// Octets that came since.
    discarded: u64,
    lines: Lines,
}

/// What is known of the line under way and of the header section.
#[derive(Debug, Default)]
struct Lines {
    /// Decoded octets of this line.
    octets: usize,
    /// Its first one.
    first: u8,
    header_over: bool,
    header_octets: usize,
    header_fields: u32,
}

impl Decoder {
    /// For one message of which `size` was announced.
    pub fn new(bare: BareLineEndings, limits: &Limits, size: Option<u64>) -> Self {
        let message_octets = usize::try_from(limits.message_octets).unwrap_or(usize::MAX);
        let reserve = size.and_then(|octets| usize::try_from(octets).ok()).unwrap_or(0).min(RESERVE_OCTETS_MAX).min(message_octets);
        Self {
            bare,
            message_octets,
            line_octets: limits.content_line_octets,
            header_octets: limits.header_octets,
            header_fields: limits.header_fields,
            at: At::Start,
            content: Vec::with_capacity(reserve),
            discarding: false,
            problem: None,
            discarded: 0,
            lines: Lines::default(),
        }
    }

    /// Decoded octets held.
    pub fn len(&self) -> usize {
        self.content.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty()
    }

    /// Octets that came after the content was given up.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Why the message must be refused, as far as it is known yet.
    pub fn problem(&self) -> Option<Problem> {
        self.problem
    }

    /// Gives the memory back; the rest is read to its end and dropped.
    pub fn discard(&mut self) {
        self.discarding = true;
        self.content = Vec::new();
    }

    /// The content, CRLF at every line end, without a copy; empty after [`Self::discard`].
    ///
    /// # Errors
    /// The first [`Problem`].
    pub fn finish(self) -> Result<Bytes, Problem> {
        match self.problem {
            Some(problem) => Err(problem),
            None => Ok(Bytes::from(self.content)),
        }
    }

    /// Decodes the next piece.
    pub fn push(&mut self, input: &[u8]) -> Progress {
        let mut next = 0;
        // Content from here to `next` waits to be appended in one run.
        let mut run = 0;
        while let Some(&octet) = input.get(next) {
            match (self.at, octet) {
                (At::Start, b'.') => {
                    self.append(between(input, run, next));
                    next += 1;
                    run = next;
                    self.at = At::Dot;
                }
                (At::Dot, b'\r') => {
                    next += 1;
                    run = next;
                    self.at = At::DotCr;
                }
                (At::DotCr, b'\n') => return Progress::End { consumed: next + 1 },
                (At::TextCr, b'\n') => {
                    next += 1;
                    run = next;
                    self.append(b"\r\n");
                    if let Some(problem) = self.line_ends() {
                        self.fail(problem);
                    }
                    self.at = At::Start;
                }
                (At::DotCr | At::TextCr, _) => {
                    self.stray();
                    self.at = At::Text;
                }
                (At::Start | At::Dot, _) => self.at = At::Text,
                (At::Text, _) => self.text(input, &mut run, &mut next),
            }
        }
        self.append(between(input, run, next));
        Progress::More
    }

    /// One line, or what is there of it, from `next` on.
    fn text(&mut self, input: &[u8], run: &mut usize, next: &mut usize) {
        let rest = between(input, *next, input.len());
        let stop = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
        if let Some(fits) = self.line_grows(between(rest, 0, stop)) {
            self.append(between(input, *run, *next + fits));
            *run = *next + fits;
            self.fail(Problem::LineTooLong);
        }
        *next += stop;
        match (input.get(*next), input.get(*next + 1)) {
            (None, _) => {}
            (Some(b'\r'), Some(b'\n')) => {
                *next += 2;
                if let Some(problem) = self.line_ends() {
                    self.append(between(input, *run, *next));
                    *run = *next;
                    self.fail(problem);
                }
                self.at = At::Start;
            }
            (Some(b'\r'), None) => {
                self.append(between(input, *run, *next));
                *next += 1;
                *run = *next;
                self.at = At::TextCr;
            }
            (Some(_), _) => {
                self.append(between(input, *run, *next));
                *next += 1;
                *run = *next;
                self.stray();
            }
        }
    }

    /// A CR or LF by itself.
    fn stray(&mut self) {
        match self.bare {
            BareLineEndings::Refuse => self.fail(Problem::BareLineEnding),
            BareLineEndings::Normalise => {
                self.append(b"\r\n");
                if let Some(problem) = self.line_ends() {
                    self.fail(problem);
                }
            }
        }
    }

    fn append(&mut self, run: &[u8]) {
        if self.discarding {
            self.discarded = self.discarded.saturating_add(u64::try_from(run.len()).unwrap_or(u64::MAX));
            return;
        }
        let room = self.message_octets.saturating_sub(self.content.len());
        match memchr(0, run) {
            Some(at) if at <= room => self.fail(Problem::Nul),
            _ if run.len() > room => self.fail(Problem::TooLarge),
            _ => self.content.extend_from_slice(run),
        }
    }

    fn fail(&mut self, problem: Problem) {
        if !self.discarding {
            self.problem = Some(problem);
            self.discard();
        }
    }

    /// Counts octets of the line; `Some` is how many of them still fit.
    fn line_grows(&mut self, octets: &[u8]) -> Option<usize> {
        if self.lines.octets == 0
            && let Some(&first) = octets.first()
        {
            self.lines.first = first;
        }
        let room = self.line_octets.saturating_sub(self.lines.octets);
        self.lines.octets = self.lines.octets.saturating_add(octets.len());
        (octets.len() > room).then_some(room)
    }

    /// Counts the line as one of the header section, and begins the next.
    fn line_ends(&mut self) -> Option<Problem> {
        let octets = std::mem::take(&mut self.lines.octets);
        let lines = &mut self.lines;
        if lines.header_over {
            return None;
        }
        lines.header_octets = lines.header_octets.saturating_add(octets + 2);
        if octets == 0 {
            lines.header_over = true;
        } else if !matches!(lines.first, b' ' | b'\t') {
            lines.header_fields += 1;
        }
        if lines.header_octets > self.header_octets {
            Some(Problem::HeaderTooLarge)
        } else if lines.header_fields > self.header_fields {
            Some(Problem::TooManyFields)
        } else {
            None
        }
    }
}

fn between(input: &[u8], from: usize, to: usize) -> &[u8] {
    input.get(from..to).unwrap_or_default()
}

#[cfg(test)]
mod tests;
