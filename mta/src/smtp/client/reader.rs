//! Replies out of a stream of bytes, bounded.

use crate::smtp::Reply;

/// Bytes of one line at most, with its ending. RFC 5321 allows 512; servers that say more are not rare.
const LINE_BYTES_MAX: usize = 2048;
/// Bytes of one reply at most.
const REPLY_BYTES_MAX: usize = 32_768;

/// Why it is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReplyError {
    #[error("a reply line longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    #[error("a reply longer than {REPLY_BYTES_MAX} bytes")]
    TooLong,
    #[error("a line that does not begin with a reply code")]
    NoCode,
    #[error("two codes in one reply")]
    TwoCodes,
}

/// Collects lines until a reply is whole.
#[derive(Debug, Default)]
pub(super) struct ReplyReader {
    buffer: Vec<u8>,
    code: Option<u16>,
    text: String,
}

impl ReplyReader {
    /// Whether no byte waits to be understood.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.code.is_none()
    }

    /// Takes bytes and gives the next whole reply; call again with nothing for the one after it.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Option<Reply>, ReplyError> {
        self.buffer.extend_from_slice(bytes);
        let mut from = 0;
        let mut whole = None;
        while let Some(end) = memchr::memchr(b'\n', self.buffer.get(from..).unwrap_or_default()) {
            let line = self.buffer.get(from..from + end).unwrap_or_default();
            if end >= LINE_BYTES_MAX {
                return Err(ReplyError::LineTooLong);
            }
            from += end + 1;
            let (code, last, text) = split_line(line.strip_suffix(b"\r").unwrap_or(line))?;
            if self.code.replace(code).is_some_and(|before| before != code) {
                return Err(ReplyError::TwoCodes);
            }
            if self.text.len() + text.len() > REPLY_BYTES_MAX {
                return Err(ReplyError::TooLong);
            }
            if last {
                self.text.push_str(&text);
                whole = Some(code);
                break;
            }
            self.text.push_str(&text);
            self.text.push('\n');
        }
        self.buffer.drain(..from);
        match whole {
            Some(code) => {
                self.code = None;
                Ok(Some(with_status(code, &std::mem::take(&mut self.text))))
            }
            None if self.buffer.len() >= LINE_BYTES_MAX => Err(ReplyError::LineTooLong),
            None => Ok(None),
        }
    }
}

/// Code, whether the line is the last, text.
fn split_line(line: &[u8]) -> Result<(u16, bool, std::borrow::Cow<'_, str>), ReplyError> {
    let (digits, rest) = line.split_at_checked(3).ok_or(ReplyError::NoCode)?;
    let code = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u16>().ok())
        .filter(|code| (100..600).contains(code))
        .ok_or(ReplyError::NoCode)?;
    match rest.split_first() {
        None => Ok((code, true, "".into())),
        Some((b' ', text)) => Ok((code, true, String::from_utf8_lossy(text))),
        Some((b'-', text)) => Ok((code, false, String::from_utf8_lossy(text))),
        Some(_) => Err(ReplyError::NoCode),
    }
}

/// Takes the enhanced status (RFC 2034) off every line that has the first line's.
fn with_status(code: u16, text: &str) -> Reply {
    let Some(status) = text.lines().next().and_then(|line| line.split(' ').next()) else {
        return Reply { code, enhanced: None, text: text.to_owned() };
    };
    let Some(enhanced) = parse_status(status).filter(|enhanced| u16::from(enhanced.0) == code / 100) else {
        return Reply { code, enhanced: None, text: text.to_owned() };
    };
    let lines: Vec<&str> =
        text.split('\n').map(|line| line.strip_prefix(status).map_or(line, |rest| rest.strip_prefix(' ').unwrap_or(rest))).collect();
    Reply { code, enhanced: Some(enhanced), text: lines.join("\n") }
}

fn parse_status(text: &str) -> Option<(u8, u16, u16)> {
    let mut numbers = text.split('.');
    let status = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    (numbers.next().is_none() && matches!(status.0, 2 | 4 | 5) && status.1 < 1000 && status.2 < 1000).then_some(status)
}
