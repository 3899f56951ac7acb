//! Reading a next hop's replies from any pieces of its stream. Bounded in line, lines and octets; never interprets a text.

use memchr::memchr;

use super::Reply;

/// Octets of one line of a reply, CRLF included: four times what RFC 5321 section 4.5.3.1.5 allows.
pub const LINE_OCTETS_MAX: usize = 2048;
/// Lines of one reply; EHLO answers of the richest servers have about thirty.
pub const LINES_MAX: usize = 100;
/// Octets that may wait unread: more than a window of pipelined replies.
pub const BUFFER_OCTETS_MAX: usize = 256 * 1024;

/// Why what the peer sent is no reply. After it nothing on that connection can be trusted to be in step: close it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A line beyond [`LINE_OCTETS_MAX`].
    #[error("the reply has a line of more than {LINE_OCTETS_MAX} octets")]
    LineTooLong,
    /// More than [`LINES_MAX`] lines in one reply.
    #[error("the reply has more than {LINES_MAX} lines")]
    TooManyLines,
    /// The peer sent more than was asked for.
    #[error("more than {BUFFER_OCTETS_MAX} octets of replies wait unread")]
    TooMuch,
    /// No three digits from 200 to 599 followed by a blank, a hyphen or the end.
    #[error("the line is no SMTP reply: {0:?}")]
    NotAReply(String),
    /// The lines of one reply have different codes.
    #[error("the lines of one reply have the codes {0} and {1}")]
    MixedCodes(u16, u16),
}

/// Takes octets as they come, gives replies. A line ends with LF, with or without a CR before it.
#[derive(Debug, Default)]
pub struct ReplyReader {
    buffer: Vec<u8>,
    /// Read so far in `buffer`.
    at: usize,
    lines: Vec<String>,
    code: Option<u16>,
    enhanced: Option<(u8, u16, u16)>,
}

impl ReplyReader {
    /// With nothing read.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what was read and returns the next complete reply, if there is one. Replies that came in one piece wait: call with an
    /// empty slice until `None`.
    ///
    /// # Errors
    /// [`ReplyError`]; the reader is of no use afterwards.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Reply>, ReplyError> {
        if self.waiting_octets() + bytes.len() > BUFFER_OCTETS_MAX {
            return Err(ReplyError::TooMuch);
        }
        if !bytes.is_empty() {
            self.buffer.drain(..self.at);
            self.at = 0;
            self.buffer.extend_from_slice(bytes);
        }
        while let Some(line) = self.line()? {
            if let Some(reply) = self.take(&line)? {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// Octets that were pushed and belong to no reply returned yet, those of a reply begun left out. Before TLS starts it must be 0:
    /// what came in clear after the answer to STARTTLS must not be taken for an answer inside TLS.
    pub fn waiting_octets(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// Whether the reader stands between two replies with nothing waiting.
    pub fn is_idle(&self) -> bool {
        self.waiting_octets() == 0 && self.code.is_none()
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, ReplyError> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        match memchr(b'\n', rest) {
            Some(end) if end >= LINE_OCTETS_MAX => Err(ReplyError::LineTooLong),
            Some(end) => {
                let line = rest.get(..end).unwrap_or_default();
                let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
                self.at += end + 1;
                Ok(Some(line))
            }
            None if rest.len() >= LINE_OCTETS_MAX => Err(ReplyError::LineTooLong),
            None => Ok(None),
        }
    }

    fn take(&mut self, line: &[u8]) -> Result<Option<Reply>, ReplyError> {
        let (code, last, text) = split(line).ok_or_else(|| ReplyError::NotAReply(excerpt(line)))?;
        if let Some(first) = self.code
            && first != code
        {
            return Err(ReplyError::MixedCodes(first, code));
        }
        let (enhanced, text) = status(code, text);
        if self.lines.is_empty() {
            self.enhanced = enhanced;
        }
        self.code = Some(code);
        self.lines.push(String::from_utf8_lossy(text).into_owned());
        if last {
            self.code = None;
            return Ok(Some(Reply { code, enhanced: self.enhanced.take(), text: std::mem::take(&mut self.lines).join("\n") }));
        }
        if self.lines.len() >= LINES_MAX {
            return Err(ReplyError::TooManyLines);
        }
        Ok(None)
    }
}

/// Code, whether it is the last line, text.
fn split(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (digits, rest) = line.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    if !(200..600).contains(&code) {
        return None;
    }
    match rest.split_first() {
        None => Some((code, true, rest)),
        Some((b' ', text)) => Some((code, true, text)),
        Some((b'-', text)) => Some((code, false, text)),
        Some(_) => None,
    }
}

/// Takes an RFC 3463 status of the code's own class off the text.
fn status(code: u16, text: &[u8]) -> (Option<(u8, u16, u16)>, &[u8]) {
    let end = memchr(b' ', text).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let mut fields = word.split(|&c| c == b'.').map(number);
    if let (Some(Some(class)), Some(Some(subject)), Some(Some(detail)), None) = (fields.next(), fields.next(), fields.next(), fields.next())
        && class == code / 100
        && let Ok(class) = u8::try_from(class)
    {
        return (Some((class, subject, detail)), rest.strip_prefix(b" ").unwrap_or(rest));
    }
    (None, text)
}

/// One to three digits.
fn number(field: &[u8]) -> Option<u16> {
    let fits = matches!(field.len(), 1..=3) && field.iter().all(u8::is_ascii_digit);
    fits.then(|| field.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0')))
}

fn excerpt(line: &[u8]) -> String {
    String::from_utf8_lossy(line.get(..60).unwrap_or(line)).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(input: &[u8], step: usize) -> Result<Vec<Reply>, ReplyError> {
        let mut reader = ReplyReader::new();
        let mut replies = vec![];
        for piece in input.chunks(step.max(1)) {
            let mut next = reader.push(piece)?;
            while let Some(reply) = next {
                replies.push(reply);
                next = reader.push(b"")?;
            }
        }
        assert!(reader.waiting_octets() <= LINE_OCTETS_MAX);
        Ok(replies)
    }

    #[test]
    fn reads_replies_in_any_pieces() {
        let plain = |code, text: &str| Reply { code, enhanced: None, text: text.into() };
        let input =
            b"220 mx.example ESMTP\r\n250-mx.example\r\n250-SIZE 10\r\n250 8BITMIME\r\n250 2.1.0 ok\r\n550-5.1.1 no\r\n550 5.1.1 user\n354\r\n\
            250 2.1.5\r\n451 5.7.1 other class\r\n550 5.7 two\r\n550 5.7.1234 long\r\n550 5.7.1.2 four\r\n550 5.7.26 dmarc\r\n250 \xff\r\n";
        let expected = vec![
            plain(220, "mx.example ESMTP"),
            plain(250, "mx.example\nSIZE 10\n8BITMIME"),
            Reply::new(250, (2, 1, 0), "ok"),
            Reply::new(550, (5, 1, 1), "no\nuser"),
            plain(354, ""),
            Reply::new(250, (2, 1, 5), ""),
            plain(451, "5.7.1 other class"),
            plain(550, "5.7 two"),
            plain(550, "5.7.1234 long"),
            plain(550, "5.7.1.2 four"),
            Reply::new(550, (5, 7, 26), "dmarc"),
            plain(250, "\u{fffd}"),
        ];
        for step in 1..input.len() {
            assert_eq!(all(input, step), Ok(expected.clone()), "in pieces of {step}");
        }
    }

    #[test]
    fn refuses_what_is_no_reply() {
        let long = [b"250 ".as_slice(), &[b'x'; LINE_OCTETS_MAX]].concat();
        let many = b"250-x\r\n".repeat(LINES_MAX);
        let cases: &[(&[u8], ReplyError)] = &[
            (b"\r\n", ReplyError::NotAReply(String::new())),
            (b"HTTP/1.1 400 Bad Request\r\n", ReplyError::NotAReply("HTTP/1.1 400 Bad Request".into())),
            (b"25 ok\r\n", ReplyError::NotAReply("25 ok".into())),
            (b"2500 ok\r\n", ReplyError::NotAReply("2500 ok".into())),
            (b"250_ok\r\n", ReplyError::NotAReply("250_ok".into())),
            (b"199 ok\r\n", ReplyError::NotAReply("199 ok".into())),
            (b"600 ok\r\n", ReplyError::NotAReply("600 ok".into())),
            (b"250-a\r\n550 b\r\n", ReplyError::MixedCodes(250, 550)),
            (&long, ReplyError::LineTooLong),
            (&many, ReplyError::TooManyLines),
        ];
        for (input, expected) in cases {
            for step in [1, 7, input.len()] {
                assert_eq!(all(input, step).as_ref(), Err(expected), "in pieces of {step}");
            }
        }
        let mut reader = ReplyReader::new();
        assert_eq!(reader.push(&b"250 a\r\n".repeat(BUFFER_OCTETS_MAX / 7 + 1)), Err(ReplyError::TooMuch));
    }

    #[test]
    fn knows_what_waits() {
        let mut reader = ReplyReader::new();
        assert!(reader.is_idle());
        assert_eq!(reader.push(b"220 go\r\n250 injected\r\n").expect("a reply").expect("complete").code, 220);
        assert_eq!(reader.waiting_octets(), 14, "a plaintext answer behind the one to STARTTLS is seen");
        assert!(!reader.is_idle());
    }

    proptest! {
        #[test]
        fn never_panics_and_does_not_depend_on_pieces(input in proptest::collection::vec(prop_oneof![Just(b'2'), Just(b'5'), Just(b'0'), Just(b'-'), Just(b' '), Just(b'.'), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..200), step in 1usize..9) {
            prop_assert_eq!(all(&input, step), all(&input, usize::MAX));
        }
    }
}
