//! Replies (RFC 5321 section 4.2, RFC 2034): the type and how it is written. [`reader`] reads those of a next hop,
//! [`table`] holds every reply that we send ourselves.

use std::fmt;

use serde::{Deserialize, Serialize};

pub mod reader;
pub mod table;

pub use reader::{ReplyError, ReplyReader};
pub use table::Fixed;

/// Octets of one reply line, CRLF included (RFC 5321 section 4.5.3.1.5).
pub const LINE_OCTETS_MAX: usize = 512;
/// Lines of one reply that we write; what a longer text says beyond them is dropped.
pub const LINES_MAX: usize = 50;

/// A reply to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// RFC 3463 status, where there is one.
    pub enhanced: Option<(u8, u16, u16)>,
    /// Text, lines separated by LF, without code and status.
    pub text: String,
}

impl Reply {
    /// A reply with an enhanced status.
    pub fn new(code: u16, enhanced: (u8, u16, u16), text: impl Into<String>) -> Self {
        Self { code, enhanced: Some(enhanced), text: text.into() }
    }

    /// 2xx.
    pub const fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }
    /// 3xx: the peer waits for more (354).
    pub const fn is_intermediate(&self) -> bool {
        self.code / 100 == 3
    }
    /// 4xx.
    pub const fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }
    /// 5xx.
    pub const fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// Appends the reply as it goes over the wire. Whatever the text holds (it may come from a next hop or an engine), what is
    /// written is one well-formed reply: a LF begins a further line of the same reply, any other octet that is not printable ASCII
    /// becomes `?`, a long line continues on the next one, and no line is longer than [`LINE_OCTETS_MAX`]. A code that is none is
    /// written as 451; a status of another class than the code is left out (RFC 2034 section 4).
    pub fn encode(&self, out: &mut Vec<u8>) {
        let code = if (200..600).contains(&self.code) { self.code } else { 451 };
        let prefix = match self.enhanced {
            Some((class, subject, detail)) if u16::from(class) == code / 100 && subject < 1000 && detail < 1000 => {
                format!("{class}.{subject}.{detail} ")
            }
            _ => String::new(),
        };
        // Code, separator and CRLF take six octets.
        let room = LINE_OCTETS_MAX - 6 - prefix.len();
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for line in self.text.trim_end_matches(['\r', '\n']).split('\n') {
            wrap(line.strip_suffix('\r').unwrap_or(line), room, &mut lines);
            if lines.len() >= LINES_MAX {
                lines.truncate(LINES_MAX);
                break;
            }
        }
        for (index, line) in lines.iter().enumerate() {
            out.extend_from_slice(code.to_string().as_bytes());
            out.push(if index + 1 == lines.len() { b' ' } else { b'-' });
            out.extend_from_slice(prefix.as_bytes());
            out.extend_from_slice(line);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Splits one line of text into pieces of at most `room` printable octets, at a blank where there is one in the second half.
fn wrap(line: &str, room: usize, lines: &mut Vec<Vec<u8>>) {
    let printable: Vec<u8> = line
        .chars()
        .map(|c| match c {
            ' '..='~' => u8::try_from(c).unwrap_or(b'?'),
            '\t' => b' ',
            _ => b'?',
        })
        .collect();
    let mut rest = printable.as_slice();
    while rest.len() > room && lines.len() < LINES_MAX {
        let cut = rest.iter().take(room).rposition(|&c| c == b' ').filter(|&at| at > room / 2).unwrap_or(room);
        let (piece, after) = rest.split_at(cut);
        lines.push(piece.to_vec());
        rest = after.strip_prefix(b" ").unwrap_or(after);
    }
    lines.push(rest.to_vec());
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some((class, subject, detail)) = self.enhanced {
            write!(f, " {class}.{subject}.{detail}")?;
        }
        write!(f, " {}", self.text.replace('\n', " / "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.encode(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn writes_replies() {
        let long = "word ".repeat(300);
        let cases: &[(Reply, &str)] = &[
            (Reply::new(250, (2, 0, 0), "OK"), "250 2.0.0 OK\r\n"),
            (
                Reply { code: 250, enhanced: None, text: "mx.example\nPIPELINING\nSIZE 10".into() },
                "250-mx.example\r\n250-PIPELINING\r\n250 SIZE 10\r\n",
            ),
            (Reply::new(550, (5, 1, 1), "a\nb"), "550-5.1.1 a\r\n550 5.1.1 b\r\n"),
            (Reply::new(550, (5, 1, 1), ""), "550 5.1.1 \r\n"),
            (Reply::new(550, (5, 1, 1), "a\r\n"), "550 5.1.1 a\r\n"),
            // What a hostile next hop may put into a text stays text of this reply.
            (Reply::new(550, (5, 0, 0), "no\r\n250 2.0.0 yes"), "550-5.0.0 no\r\n550 5.0.0 250 2.0.0 yes\r\n"),
            (Reply::new(550, (5, 0, 0), "a\0b\rc\u{7f}関\td"), "550 5.0.0 a?b?c?? d\r\n"),
            (Reply::new(550, (4, 0, 0), "class of another code"), "550 class of another code\r\n"),
            (Reply::new(7, (2, 0, 0), "no code"), "451 no code\r\n"),
            (Reply::new(9999, (2, 0, 0), "no code"), "451 no code\r\n"),
        ];
        for (reply, expected) in cases {
            assert_eq!(&encoded(reply), expected, "{reply:?}");
        }
        let wrapped = encoded(&Reply::new(550, (5, 0, 0), long.trim_end()));
        assert_eq!(wrapped.lines().count(), 3, "{wrapped}");
        assert_eq!(wrapped.matches("word").count(), 300, "wrapping cuts at blanks and loses nothing");
    }

    proptest! {
        #[test]
        fn any_text_is_one_well_formed_reply(code: u16, status: Option<(u8, u16, u16)>, text in "(?s).{0,3000}") {
            let out = encoded(&Reply { code, enhanced: status, text });
            let lines: Vec<&str> = out.split_inclusive("\r\n").collect();
            prop_assert!(!lines.is_empty() && lines.len() <= LINES_MAX);
            for (index, line) in lines.iter().enumerate() {
                prop_assert!(line.len() <= LINE_OCTETS_MAX && line.ends_with("\r\n"));
                prop_assert!(line.trim_end_matches("\r\n").bytes().all(|c| (b' '..=b'~').contains(&c)));
                let separator = line.as_bytes()[3];
                prop_assert_eq!(separator, if index + 1 == lines.len() { b' ' } else { b'-' });
                prop_assert_eq!(line.get(..3), lines[0].get(..3));
            }
            let mut reader = ReplyReader::new();
            let read = reader.push(out.as_bytes()).expect("our own replies are readable").expect("complete");
            prop_assert_eq!(read.code, if (200..600).contains(&code) { code } else { 451 });
        }
    }
}
