//! Pieces make no difference, and the content ends at the first CRLF.CRLF and nowhere else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sekimori_mta_fuzz::pieces;
use sekimori_mta_fuzz::smtp::data::{Decoder, Progress};
use sekimori_mta_fuzz::smtp::{BareLineEndings, Limits};

fuzz_target!(|data: &[u8]| {
    let Some((&mind, data)) = data.split_first() else { return };
    let bare = if mind & 1 == 0 { BareLineEndings::Refuse } else { BareLineEndings::Normalise };
    let tight = Limits { message_octets: 100, content_line_octets: 30, header_octets: 60, header_fields: 4, ..Limits::default() };
    let limits = if mind & 2 == 0 { tight } else { Limits::default() };
    let whole = pieces(data).concat();

    let mut one = Decoder::new(bare, &limits, None);
    let at_once = one.push(&whole);
    let end = [b"\r\n", whole.as_slice()].concat().windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 3);
    assert_eq!(at_once, end.map_or(Progress::More, |consumed| Progress::End { consumed }));

    let mut other = Decoder::new(bare, &limits, Some(u64::from(mind)));
    let mut taken = 0;
    let mut ended = None;
    for piece in pieces(data) {
        match other.push(piece) {
            Progress::More => taken += piece.len(),
            Progress::End { consumed } => {
                ended = Some(taken + consumed);
                break;
            }
        }
        assert!(other.len() as u64 <= limits.message_octets);
    }
    assert_eq!(ended, end);
    let (one, other) = (one.finish(), other.finish());
    if ended.is_some() {
        assert_eq!(one, other);
        if let Ok(content) = one {
            let stray = content.iter().enumerate().any(|(at, &octet)| match octet {
                b'\r' => content.get(at + 1) != Some(&b'\n'),
                b'\n' => at == 0 || content[at - 1] != b'\r',
                _ => octet == 0,
            });
            assert!(!stray, "every line ends with CRLF, no NUL");
        }
    }
});
