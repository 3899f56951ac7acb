//! The sending side of DATA (RFC 5321 section 4.5.2): dots at the beginning of a line are doubled, CRLF.CRLF ends it.
//!
//! Clean stretches are handed out as slices of the message, never copied. Nothing that a reader could take for a line ending leaves but CRLF: a bare
//! CR or a bare LF becomes CRLF (outbound smuggling), and the dot after it is doubled like any other.

use bytes::Bytes;
use memchr::memchr2;

/// The slices to send, in order, the end of data included. Yields nothing more once that was handed out.
#[derive(Debug)]
pub struct Stuffer<'a> {
    rope: &'a [Bytes],
    piece: usize,
    at: usize,
    state: State,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the beginning of a line.
    LineStart,
    /// Within a line.
    Middle,
    /// A CR was handed out, LF must follow.
    AfterCr,
    /// A bare LF comes next, a CR must be handed out first.
    BeforeLf,
}

impl<'a> Stuffer<'a> {
    /// Over the pieces of one message.
    pub const fn new(rope: &'a [Bytes]) -> Self {
        Self { rope, piece: 0, at: 0, state: State::LineStart, ended: false }
    }

    /// Whether the end of data was handed out.
    pub const fn is_done(&self) -> bool {
        self.ended
    }

    fn end(&mut self) -> Option<&'a [u8]> {
        if self.ended {
            return None;
        }
        match self.state {
            State::AfterCr | State::BeforeLf => {
                self.state = State::LineStart;
                Some(b"\n")
            }
            State::LineStart => {
                self.ended = true;
                Some(b".\r\n")
            }
            State::Middle => {
                self.ended = true;
                Some(b"\r\n.\r\n")
            }
        }
    }
}

impl<'a> Iterator for Stuffer<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let Some(piece) = self.rope.get(self.piece) else { return self.end() };
            let rest = piece.get(self.at..).unwrap_or_default();
            let Some(&first) = rest.first() else {
                self.piece += 1;
                self.at = 0;
                continue;
            };
            match self.state {
                State::AfterCr if first != b'\n' => {
                    self.state = State::LineStart;
                    return Some(b"\n");
                }
                State::BeforeLf => {
                    self.state = State::AfterCr;
                    return Some(b"\r");
                }
                State::LineStart if first == b'.' => {
                    self.state = State::Middle;
                    return Some(b".");
                }
                _ => {}
            }
            let (len, state) = clean_stretch(rest, self.state);
            self.state = state;
            self.at += len;
            if len > 0 {
                return rest.get(..len);
            }
        }
    }
}

/// How many bytes can leave as they are, and what comes after them. `rest` is not empty; after a CR it begins with LF; at a line start with no dot.
fn clean_stretch(rest: &[u8], state: State) -> (usize, State) {
    let mut from = usize::from(state == State::AfterCr);
    if from == 1 && rest.get(1) == Some(&b'.') {
        return (1, State::LineStart);
    }
    loop {
        let Some(found) = memchr2(b'\r', b'\n', rest.get(from..).unwrap_or_default()) else {
            let state = if from == rest.len() { State::LineStart } else { State::Middle };
            return (rest.len(), state);
        };
        let here = from + found;
        if rest.get(here) == Some(&b'\n') {
            return (here, State::BeforeLf);
        }
        match rest.get(here + 1) {
            Some(b'\n') => from = here + 2,
            _ => return (here + 1, State::AfterCr),
        }
        if rest.get(from) == Some(&b'.') {
            return (from, State::LineStart);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What must leave, byte by byte and slowly.
    fn reference(message: &[u8]) -> Vec<u8> {
        let mut lines: Vec<Vec<u8>> = vec![vec![]];
        let mut bytes = message.iter().peekable();
        while let Some(&byte) = bytes.next() {
            match byte {
                b'\r' => {
                    bytes.next_if(|next| **next == b'\n');
                    lines.push(vec![]);
                }
                b'\n' => lines.push(vec![]),
                other => lines.last_mut().expect("never empty").push(other),
            }
        }
        if lines.last().is_some_and(Vec::is_empty) {
            lines.pop();
        }
        let mut out = vec![];
        for line in lines {
            if line.first() == Some(&b'.') {
                out.push(b'.');
            }
            out.extend(line);
            out.extend(b"\r\n");
        }
        out.extend(b".\r\n");
        out
    }

    fn sent(pieces: &[&[u8]]) -> Vec<u8> {
        let rope: Vec<Bytes> = pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
        let mut stuffer = Stuffer::new(&rope);
        let mut out = vec![];
        for slice in stuffer.by_ref() {
            assert!(!slice.is_empty());
            out.extend_from_slice(slice);
        }
        assert!(stuffer.is_done() && stuffer.next().is_none());
        out
    }

    #[test]
    fn known_cases() {
        for (message, wire) in [
            (&b""[..], &b".\r\n"[..]),
            (b"a", b"a\r\n.\r\n"),
            (b"a\r\n", b"a\r\n.\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b".\r\n", b"..\r\n.\r\n"),
            (b"a\r\n.\r\nQUIT\r\n", b"a\r\n..\r\nQUIT\r\n.\r\n"),
            (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r.\rb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r\r\n.\r\n", b"a\r\n\r\n..\r\n.\r\n"),
            (b"\r\n\r\n", b"\r\n\r\n.\r\n"),
        ] {
            assert_eq!(sent(&[message]), wire, "{:?}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn clean_mail_is_not_cut() {
        let message = Bytes::from("Subject: x\r\n\r\nA line like any other.\r\n".repeat(1000));
        let slices: Vec<usize> = Stuffer::new(std::slice::from_ref(&message)).map(<[u8]>::len).collect();
        assert_eq!(slices, [message.len(), 3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn every_split_sends_the_same(letters in proptest::collection::vec(0u8..5, 0..24), cuts in proptest::collection::vec(0usize..24, 0..5)) {
            let message: Vec<u8> = letters.iter().map(|letter| b"\r\n.ab"[usize::from(*letter)]).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= message.len()).collect();
            cuts.sort_unstable();
            let mut pieces = vec![];
            let mut from = 0;
            for cut in cuts {
                pieces.push(&message[from..cut]);
                from = cut;
            }
            pieces.push(&message[from..]);
            let wire = sent(&pieces);
            prop_assert_eq!(&wire, &reference(&message));
            for (at, byte) in wire.iter().enumerate() {
                prop_assert!(*byte != b'\n' || wire[at - 1] == b'\r');
                prop_assert!(*byte != b'\r' || wire[at + 1] == b'\n');
            }
            prop_assert_eq!(wire.windows(5).filter(|window| *window == b"\r\n.\r\n").count(), usize::from(wire.len() > 3));
        }
    }
}
