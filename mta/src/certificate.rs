//! When a certificate ends: as much of X.509 as that needs. Pure.

use crate::date::days;

/// Seconds since 1970 after which a DER certificate is not valid; `None` where it cannot be read.
pub fn not_after(der: &[u8]) -> Option<u64> {
    let (SEQUENCE, certificate, _) = element(der)? else { return None };
    let (SEQUENCE, body, _) = element(certificate)? else { return None };
    let (first, _, rest) = element(body)?;
    // The version may be left out; then this was the serial number.
    let rest = if first == VERSION { element(rest)?.2 } else { rest };
    let (_, _, rest) = element(rest)?; // signature algorithm
    let (_, _, rest) = element(rest)?; // issuer
    let (SEQUENCE, validity, _) = element(rest)? else { return None };
    let (_, _, rest) = element(validity)?; // not before
    let (kind, time, _) = element(rest)?;
    let text = std::str::from_utf8(time).ok()?.strip_suffix('Z')?;
    let (year, rest) = match kind {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: u64 = number(year)?;
            // RFC 5280 section 4.1.2.5.1.
            (if year >= 50 { 1900 + year } else { 2000 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    let mut fields = [0; 5];
    let mut rest = rest;
    for field in &mut fields {
        let (digits, after) = rest.split_at_checked(2)?;
        *field = number(digits)?;
        rest = after;
    }
    let [month, day, hour, minute, second] = fields;
    let valid = rest.is_empty() && (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    valid.then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Tag, content and what follows of the first element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (short, rest) = rest.split_first()?;
    let (length, rest) = if *short < 0x80 {
        (usize::from(*short), rest)
    } else {
        let (octets, rest) = rest.split_at_checked(usize::from(short & 0x7f)).filter(|(octets, _)| (1..=4).contains(&octets.len()))?;
        (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["mx.example".into()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(year, 3, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn the_end_is_read() {
        // In two digits and, from 2050 on, in four.
        for (year, expected) in [(2027, 1_803_859_200), (2028, 1_835_481_600), (2100, 4_107_542_400)] {
            assert_eq!(not_after(&made(year)), Some(expected), "{year}");
        }
    }

    #[test]
    fn nothing_else_is_read_as_one() {
        let good = made(2027);
        for at in 0..good.len() {
            assert_eq!(not_after(&good[..at]), None, "cut at {at}");
        }
        for at in 0..300.min(good.len()) {
            for value in [0, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                // Whatever comes of it, it is no date beyond the calendar.
                assert!(not_after(&bad).is_none_or(|seconds| seconds < 253_402_300_800 + 86_400 * 31), "{at} {value}");
            }
        }
        assert_eq!(not_after(b""), None);
    }
}
