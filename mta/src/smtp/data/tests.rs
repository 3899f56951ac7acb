//! The decoder against a naive one that sees the whole input at once and works octet by octet.

use proptest::prelude::*;

use super::*;

/// What a decoder made of a stream: content or problem and how many octets it took, or `None` if the content did not end.
type Outcome = Option<(Result<Vec<u8>, Problem>, usize)>;

fn decode(input: &[u8], cuts: &[usize], bare: BareLineEndings, limits: &Limits) -> Outcome {
    let mut decoder = Decoder::new(bare, limits, None);
    let mut from = 0;
    for to in cuts.iter().copied().chain([input.len()]) {
        match decoder.push(&input[from..to]) {
            Progress::More => from = to,
            Progress::End { consumed } => return Some((decoder.finish().map(|content| content.to_vec()), from + consumed)),
        }
    }
    None
}

/// Finds the terminator in the whole text, takes lines apart at CRLF, drops dots, then looks at each octet.
fn naive(input: &[u8], bare: BareLineEndings, limits: &Limits) -> Outcome {
    let whole = [b"\r\n", input].concat();
    let end = whole.windows(5).position(|window| window == b"\r\n.\r\n")?;
    let mut decoded: Vec<(u8, bool)> = vec![]; // octet, and whether it stands in for a stray one
    let mut stray_at = vec![];
    let raw = &whole[..end + 2];
    let mut at = 2;
    let mut line_start = true;
    while at < raw.len() {
        if line_start && raw[at] == b'.' {
            line_start = false;
            at += 1;
            continue;
        }
        line_start = false;
        if raw[at] == b'\r' && raw.get(at + 1) == Some(&b'\n') {
            decoded.extend([(b'\r', false), (b'\n', false)]);
            line_start = true;
            at += 2;
        } else if raw[at] == b'\r' || raw[at] == b'\n' {
            stray_at.push(decoded.len());
            decoded.extend([(b'\r', true), (b'\n', true)]);
            at += 1;
        } else {
            decoded.push((raw[at], false));
            at += 1;
        }
    }
    let consumed = end + 5 - 2;
    Some((judge(&decoded, &stray_at, bare, limits), consumed))
}

fn judge(decoded: &[(u8, bool)], stray_at: &[usize], bare: BareLineEndings, limits: &Limits) -> Result<Vec<u8>, Problem> {
    let (mut line, mut header, mut fields, mut in_header, mut first) = (0, 0, 0, true, 0u8);
    for (index, &(octet, _)) in decoded.iter().enumerate() {
        if bare == BareLineEndings::Refuse && stray_at.contains(&index) {
            return Err(Problem::BareLineEnding);
        }
        if octet != b'\r' && octet != b'\n' {
            if line == 0 {
                first = octet;
            }
            line += 1;
        }
        if octet == 0 && index as u64 <= limits.message_octets && line <= limits.content_line_octets {
            return Err(Problem::Nul);
        }
        if index as u64 >= limits.message_octets {
            // A line that is too long and a message that is too large at the same octet: the run before the octet fits, so the line counts.
            return Err(if line > limits.content_line_octets { Problem::LineTooLong } else { Problem::TooLarge });
        }
        if line > limits.content_line_octets {
            return Err(Problem::LineTooLong);
        }
        if octet == b'\n' {
            if in_header {
                header += line + 2;
                in_header = line > 0;
                fields += u32::from(line > 0 && first != b' ' && first != b'\t');
                if header > limits.header_octets {
                    return Err(Problem::HeaderTooLarge);
                }
                if fields > limits.header_fields {
                    return Err(Problem::TooManyFields);
                }
            }
            line = 0;
        }
    }
    Ok(decoded.iter().map(|&(octet, _)| octet).collect())
}

const POLICIES: [BareLineEndings; 2] = [BareLineEndings::Refuse, BareLineEndings::Normalise];

/// Every text over the four octets that matter up to length 7, whole, octet by octet, and cut at every place.
#[test]
fn every_short_text_in_every_two_pieces() {
    let limits = Limits::default();
    let mut ended = 0;
    for length in 0..=7usize {
        for number in 0..4usize.pow(u32::try_from(length).expect("small")) {
            let mut text: Vec<u8> = (0..length).map(|digit| b".\r\nx"[number >> (2 * digit) & 3]).collect();
            // With the terminator behind it every text ends somewhere; without it some do.
            for tail in [b"".as_slice(), b"\r\n.\r\n"] {
                let before = text.len();
                text.extend_from_slice(tail);
                for bare in POLICIES {
                    let expected = naive(&text, bare, &limits);
                    ended += usize::from(expected.is_some());
                    for cut in 0..=text.len() {
                        assert_eq!(decode(&text, &[cut], bare, &limits), expected, "{bare:?} {:?} cut at {cut}", String::from_utf8_lossy(&text));
                    }
                    let all: Vec<usize> = (0..text.len()).collect();
                    assert_eq!(decode(&text, &all, bare, &limits), expected, "{bare:?} {:?} octet by octet", String::from_utf8_lossy(&text));
                }
                text.truncate(before);
            }
        }
    }
    assert!(ended > 4usize.pow(7), "the table has texts that end");
}

/// Every way to cut a text into any number of pieces.
#[test]
fn every_cut_of_the_classic_tricks() {
    let limits = Limits::default();
    for text in [
        b"a\r\n.\r\nQUIT\r\n".as_slice(),
        b"a\n.\r\nb\r\n.\r\n",
        b"a\r.\rb\r\n.\r\n",
        b"..\r\r\n.\r\n.\r\n",
        b".\r\n.\r\n",
        b"a\r\n.\rb\n.\r\n.\r\n",
        b".\r.\r\n\r\n.\r\n",
    ] {
        for bare in POLICIES {
            let expected = naive(text, bare, &limits);
            for mask in 0..1u32 << (text.len() - 1) {
                let cuts: Vec<usize> = (1..text.len()).filter(|at| mask >> (at - 1) & 1 == 1).collect();
                assert_eq!(decode(text, &cuts, bare, &limits), expected, "{bare:?} {:?} {cuts:?}", String::from_utf8_lossy(text));
            }
        }
    }
}

#[test]
fn smuggling_tricks_do_not_end_the_content() {
    let refused = Some(Err(Problem::BareLineEnding));
    let cases: &[(&[u8], &[u8])] = &[
        // What goes in before the real terminator, and what Normalise makes of it.
        (b"a\n.\n", b"a\r\n.\r\n\r\n"),
        (b"a\n.\r\n", b"a\r\n.\r\n"),
        (b"a\r.\r", b"a\r\n.\r\n\r\n"),
        (b"a\r.\r\n", b"a\r\n.\r\n"),
        (b"a\r\n.\n", b"a\r\n\r\n\r\n"),
        (b"a\r\n.\r", b"a\r\n\r\n\r\n"),
        (b"a\n.\r", b"a\r\n.\r\n\r\n"),
        (b"a\r\n.\r\r\n", b"a\r\n\r\n\r\n"),
        (b"a\r\n\n.\r\n", b"a\r\n\r\n.\r\n"),
        (b"a\n..\r\n", b"a\r\n..\r\n"),
        (b"\n.\r\n", b"\r\n.\r\n"),
    ];
    for (trick, normalised) in cases {
        let tail: &[u8] = if trick.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" };
        let input = [trick, tail].concat();
        let limits = Limits::default();
        let shown = String::from_utf8_lossy(trick).into_owned();
        let (outcome, consumed) = decode(&input, &[], BareLineEndings::Refuse, &limits).expect("it ends");
        assert_eq!((Some(outcome), consumed), (refused.clone(), input.len()), "{shown:?}");
        let (outcome, consumed) = decode(&input, &[], BareLineEndings::Normalise, &limits).expect("it ends");
        assert_eq!((outcome.as_deref(), consumed), (Ok(*normalised), input.len()), "{shown:?}");
    }
    // CR CR LF . CR LF holds the true terminator: everything up to it is content, nothing is stripped.
    let input = b"a\r\r\n.\r\nb";
    assert_eq!(decode(input, &[], BareLineEndings::Normalise, &Limits::default()), Some((Ok(b"a\r\n\r\n".to_vec()), 7)));
}

#[test]
fn problems_free_the_memory_and_keep_the_framing() {
    let limits = Limits { message_octets: 40, content_line_octets: 10, header_octets: 30, header_fields: 3, ..Limits::default() };
    let cases: &[(&[u8], Option<Problem>)] = &[
        (b"a: b\r\n\r\n0123456789\r\n0123456789\r\n0123456\r\n", Some(Problem::TooLarge)),
        (b"a: b\r\n\r\n0123456789\r\n0123456789\r\n012345\r\n\r\n", Some(Problem::TooLarge)),
        (b"a: b\r\n\r\n0123456789\r\n0123456789\r\n012345\r\n", None),
        (b"a: b\r\n\r\n01234567890\r\n", Some(Problem::LineTooLong)),
        (b"a: b\r\n\r\n.0123456789\r\n", None),
        (b"a: b\r\n\r\nx\0\r\n", Some(Problem::Nul)),
        (b"a: b\r\n c\r\n d\r\n e\r\n f\r\n g\r\n hi\r\n", Some(Problem::HeaderTooLarge)),
        (b"a: b\r\nc: d\r\ne: f\r\n g\r\nh: i\r\n\r\n", Some(Problem::TooManyFields)),
        (b"a: b\r\nc: d\r\ne: f\r\n g\r\n\r\n", None),
    ];
    for (text, problem) in cases {
        let mut decoder = Decoder::new(BareLineEndings::Refuse, &limits, Some(u64::MAX));
        assert_eq!(decoder.push(text), Progress::More);
        assert_eq!(decoder.problem(), *problem, "{:?}", String::from_utf8_lossy(text));
        assert!(problem.is_none() || (decoder.is_empty() && decoder.content.capacity() == 0));
        assert_eq!(decoder.push(b".\r\nRSET\r\n"), Progress::End { consumed: 3 });
    }
}

/// Two problems at one octet: the same one is named, however the octets come.
#[test]
fn problems_at_the_same_octet() {
    let limits = Limits { message_octets: 8, content_line_octets: 8, ..Limits::default() };
    for (text, problem) in [
        (b"01234567\0\r\n".as_slice(), Problem::LineTooLong),
        (b"\r\n012345\0\r\n", Problem::Nul),
        (b"\r\n0123456\0\r\n", Problem::TooLarge),
        (b"\r\n012345\r\n", Problem::TooLarge),
        (b"\r\n012345\n", Problem::BareLineEnding),
        (b"\r\n0123456\n", Problem::TooLarge),
    ] {
        let input = [text, b"\r\n.\r\n"].concat();
        for cut in 0..=input.len() {
            let outcome = decode(&input, &[cut], BareLineEndings::Refuse, &limits).map(|(outcome, _)| outcome);
            assert_eq!(outcome, Some(Err(problem)), "{} cut at {cut}", text.escape_ascii());
        }
    }
}

#[test]
fn content_is_handed_over_without_a_copy() {
    let mut decoder = Decoder::new(BareLineEndings::Refuse, &Limits::default(), Some(1000));
    assert_eq!(decoder.push(b"0123456789\r\n"), Progress::More);
    let address = decoder.content.as_ptr();
    assert_eq!(decoder.push(b".\r\n"), Progress::End { consumed: 3 });
    assert_eq!(decoder.finish().expect("clean").as_ptr(), address);
}

fn octet() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(b"\r\n".to_vec()),
        2 => Just(b".".to_vec()),
        1 => Just(b"\r".to_vec()),
        1 => Just(b"\n".to_vec()),
        1 => Just(b"\r\n.".to_vec()),
        1 => Just(b"\r\n ".to_vec()),
        8 => proptest::collection::vec(b'a'..=b'e', 1..20),
        1 => Just(vec![0u8]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn long_texts_in_any_pieces_within_tight_limits(
        parts in proptest::collection::vec(octet(), 0..80),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
        message_octets in prop_oneof![20u64..600, Just(10_000)],
        content_line_octets in prop_oneof![10usize..60, Just(10_000)],
        header_octets in prop_oneof![20usize..200, Just(10_000)],
        header_fields in prop_oneof![1u32..20, Just(10_000)],
        normalise: bool,
    ) {
        let mut text = parts.concat();
        text.extend_from_slice(b"\r\n.\r\nnext");
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.sort_unstable();
        let limits = Limits { message_octets, content_line_octets, header_octets, header_fields, ..Limits::default() };
        let bare = POLICIES[usize::from(normalise)];
        prop_assert_eq!(decode(&text, &cuts, bare, &limits), naive(&text, bare, &limits));
    }
}
