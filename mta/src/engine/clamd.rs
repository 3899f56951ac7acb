//! What clamd's replies mean: framing, errors, and which names are malware, heuristics or limits.
//!
//! What it could not scan is Unscannable, never clean. Names of heuristics are evidence: they are right often enough to
//! count and wrong too often to refuse mail as malware.

use crate::date::days;
use crate::engine::{Reading, TEXT_BYTES_MAX, harmless};
use crate::verdict::{Evidence, Failure, Finding, Unscannable};

/// Bytes of one reply: a name is at most a few hundred, and an answer without end is no answer.
pub const REPLY_BYTES_MAX: usize = 4096;

/// What a name means that clamd says it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Proof of malware.
    Malware,
    /// Evidence of unwanted mail, in decibans. Uncalibrated: 20 is what a name deserves that is rarely wrong, 10 a frequent guess, 0 says nothing of it.
    Evidence(i32),
    /// It could not look inside, and why.
    Unscannable(Unscannable),
}

/// Names by their beginning, case-insensitive; the first that fits counts, any other name is malware.
const NAMES: &[(&str, Meaning)] = &[
    ("Heuristics.Encrypted.", Meaning::Unscannable(Unscannable::Encrypted)),
    ("Heuristics.Limits.Exceeded", Meaning::Unscannable(Unscannable::LimitsExceeded)),
    ("Heuristics.Phishing.", Meaning::Evidence(10)),
    ("Heuristics.Safebrowsing.", Meaning::Evidence(20)),
    // Card and social security numbers: a matter of data loss, not of unwanted mail.
    ("Heuristics.Structured.", Meaning::Evidence(0)),
    ("Structured.", Meaning::Evidence(0)),
    // A broken picture or partition table, a macro, an odd zip: seen in ordinary mail too.
    ("Heuristics.", Meaning::Evidence(5)),
    ("PUA.", Meaning::Evidence(5)),
    ("Phishing.", Meaning::Evidence(10)),
    ("Email.Phishing.", Meaning::Evidence(20)),
    ("HTML.Phishing.", Meaning::Evidence(20)),
    ("Email.Spam.", Meaning::Evidence(20)),
    // Third-party lists: malware by name stays malware, the rest is what their authors call spam, scam or phishing.
    ("Sanesecurity.Malware.", Meaning::Malware),
    ("Sanesecurity.Rogue.", Meaning::Malware),
    ("Sanesecurity.Badmacro.", Meaning::Malware),
    ("Sanesecurity.Foxhole.", Meaning::Malware),
    ("Sanesecurity.Trojan.", Meaning::Malware),
    ("Sanesecurity.TestSig", Meaning::Evidence(0)),
    ("Sanesecurity.", Meaning::Evidence(15)),
    ("Sanesecurity_", Meaning::Evidence(15)),
    ("winnow.malware.", Meaning::Malware),
    ("winnow.trojan.", Meaning::Malware),
    ("winnow.compromised.", Meaning::Malware),
    ("winnow.", Meaning::Evidence(15)),
    ("SecuriteInfo.com.Spam", Meaning::Evidence(15)),
    ("SecuriteInfo.com.Phish", Meaning::Evidence(15)),
    ("MSRBL-", Meaning::Evidence(10)),
    ("Porcupine.Phishing.", Meaning::Evidence(20)),
    ("Porcupine.Junk.", Meaning::Evidence(15)),
    ("Porcupine.Spam.", Meaning::Evidence(15)),
    ("ScamNailer.", Meaning::Evidence(20)),
    ("Doppelstern.", Meaning::Evidence(15)),
    ("Bofhland.Malware.", Meaning::Malware),
    ("Bofhland.", Meaning::Evidence(15)),
];

/// What is found within clamd's own error texts (lower case) where it tried to scan and could not.
const ERRORS: &[(&str, Unscannable)] = &[
    ("instream size limit exceeded", Unscannable::TooLarge),
    ("time limit", Unscannable::LimitsExceeded),
    ("recursion limit", Unscannable::LimitsExceeded),
    ("cl_emax", Unscannable::LimitsExceeded),
    ("bad format or broken data", Unscannable::Malformed),
    ("can't parse data", Unscannable::Malformed),
    ("can't unpack some data", Unscannable::Malformed),
];

/// The meaning of a name.
pub fn meaning(name: &str) -> Meaning {
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    NAMES.iter().find(|(prefix, _)| begins(prefix)).map_or(Meaning::Malware, |(_, meaning)| *meaning)
}

/// Splits `N: rest` of a session reply. Some errors come without a number.
fn numbered(reply: &str) -> (Option<u64>, &str) {
    let split = reply.split_once(": ").filter(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()));
    match split.map(|(number, rest)| (number.parse().ok(), rest)) {
        Some((Some(number), rest)) => (Some(number), rest),
        _ => (None, reply),
    }
}

/// What the reply to the scan number `expected` of a session says; `reply` is without its NUL.
///
/// A reply with another number belongs to another scan and is refused, so one message never gets the answer of another.
pub fn read(reply: &[u8], expected: u64) -> Result<Reading, Failure> {
    let wrong = || Failure::Protocol(format!("clamd answered '{}'", harmless(reply)));
    let text = std::str::from_utf8(reply).map_err(|_| wrong())?.trim_end_matches(['\r', '\n']);
    let (number, rest) = numbered(text);
    if number.is_some_and(|number| number != expected) {
        return Err(wrong());
    }
    if let Some(error) = rest.strip_suffix(" ERROR").or_else(|| (rest == "ERROR").then_some("")) {
        let lower = error.to_ascii_lowercase();
        return match ERRORS.iter().find(|(part, _)| lower.contains(part)) {
            Some((_, why)) => Ok(Reading::plain(Finding::Unscannable(*why))),
            None => Err(wrong()),
        };
    }
    // Only an error may come without its number: "OK" or "FOUND" of nobody knows what is no answer.
    let (Some(_), Some(outcome)) = (number, rest.strip_prefix("stream: ")) else {
        return Err(wrong());
    };
    if outcome == "OK" {
        return Ok(Reading::plain(Finding::Clean));
    }
    let name = outcome.strip_suffix(" FOUND").filter(|name| !name.is_empty() && !name.contains(' ')).ok_or_else(wrong)?;
    Ok(found(name))
}

fn found(name: &str) -> Reading {
    // ExtendedDetectionInfo appends (digest:size).
    let name = name.split_once('(').map_or(name, |(name, _)| name);
    let name = if name.is_empty() { "unnamed" } else { name };
    let shown = harmless(name.as_bytes());
    match meaning(name) {
        Meaning::Malware => Reading::plain(Finding::Infected(shown)),
        Meaning::Evidence(decibans) => Reading { finding: Finding::Clean, evidence: vec![Evidence { name: shown, decibans }] },
        Meaning::Unscannable(why) => Reading { finding: Finding::Unscannable(why), evidence: vec![Evidence { name: shown, decibans: 0 }] },
    }
}

/// Engine version and, where clamd has an official database, its number: `1.4.6` or `1.4.6/27123` out of `ClamAV 1.4.6/27123/DATE`.
pub fn version(reply: &[u8]) -> Result<String, Failure> {
    let wrong = || Failure::Protocol(format!("clamd answered '{}' to VERSION", harmless(reply)));
    let text = std::str::from_utf8(reply).map_err(|_| wrong())?;
    let rest = text.trim_end_matches(['\r', '\n']).strip_prefix("ClamAV ").ok_or_else(wrong)?;
    let mut fields = rest.split('/');
    let engine = fields.next().unwrap_or_default();
    let database = fields.next().filter(|number| !number.is_empty());
    let version = database.map_or_else(|| engine.to_owned(), |number| format!("{engine}/{number}"));
    let sound = !engine.is_empty() && version.len() <= TEXT_BYTES_MAX && version.bytes().all(|b| b.is_ascii_graphic());
    if sound { Ok(version) } else { Err(wrong()) }
}

/// When its official database was made, seconds since 1970, out of `ClamAV 1.4.6/27123/Sat Jan  6 09:36:39 2026`. Its clock's zone is not said: UTC, in a
/// container.
pub fn signatures_made_s(reply: &[u8]) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = std::str::from_utf8(reply).ok()?.trim_end_matches(['\r', '\n']);
    let fields: Vec<&str> = text.splitn(3, '/').nth(2)?.split_ascii_whitespace().collect();
    let [_, month, day, time, year] = fields.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| name == month)? as u64 + 1;
    let numbers: Vec<u64> = time.splitn(3, ':').map(|digits| digits.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = numbers.as_slice() else { return None };
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let sound = (1..=31).contains(&day) && (1970..=9999).contains(&year) && *hour < 24 && *minute < 60 && *second < 61;
    sound.then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replies() {
        let clean = || Ok(Reading::plain(Finding::Clean));
        let infected = |name: &str| Ok(Reading::plain(Finding::Infected(name.into())));
        let evidence = |name: &str, decibans| Ok(Reading { finding: Finding::Clean, evidence: vec![Evidence { name: name.into(), decibans }] });
        let unscannable = |why, name: &str| {
            let evidence = (!name.is_empty()).then(|| Evidence { name: name.into(), decibans: 0 }).into_iter().collect();
            Ok(Reading { finding: Finding::Unscannable(why), evidence })
        };
        let cases: Vec<(&str, Result<Reading, Failure>)> = vec![
            ("7: stream: OK", clean()),
            ("7: stream: OK\n", clean()),
            ("7: stream: Test.Eicar.UNOFFICIAL FOUND", infected("Test.Eicar.UNOFFICIAL")),
            ("7: stream: Win.Test.EICAR_HDB-1(44d88612fea8a8f36de82e1278abb02f:68) FOUND", infected("Win.Test.EICAR_HDB-1")),
            ("7: stream: Heuristics.Phishing.Email.SpoofedDomain FOUND", evidence("Heuristics.Phishing.Email.SpoofedDomain", 10)),
            ("7: stream: heuristics.ole2.ContainsMacros.VBA FOUND", evidence("heuristics.ole2.ContainsMacros.VBA", 5)),
            ("7: stream: PUA.Win.Packer.Upx-48 FOUND", evidence("PUA.Win.Packer.Upx-48", 5)),
            ("7: stream: Sanesecurity.Phishing.Fake.1.UNOFFICIAL FOUND", evidence("Sanesecurity.Phishing.Fake.1.UNOFFICIAL", 15)),
            ("7: stream: Sanesecurity.Malware.1.UNOFFICIAL FOUND", infected("Sanesecurity.Malware.1.UNOFFICIAL")),
            ("7: stream: Heuristics.Encrypted.Zip FOUND", unscannable(Unscannable::Encrypted, "Heuristics.Encrypted.Zip")),
            (
                "7: stream: Heuristics.Limits.Exceeded.MaxRecursion FOUND",
                unscannable(Unscannable::LimitsExceeded, "Heuristics.Limits.Exceeded.MaxRecursion"),
            ),
            ("7: INSTREAM size limit exceeded. ERROR", unscannable(Unscannable::TooLarge, "")),
            ("INSTREAM size limit exceeded. ERROR", unscannable(Unscannable::TooLarge, "")),
            ("7: stream: Time limit reached ERROR", unscannable(Unscannable::LimitsExceeded, "")),
            ("7: stream: CL_EFORMAT: Bad format or broken data ERROR", unscannable(Unscannable::Malformed, "")),
        ];
        for (reply, expected) in cases {
            assert_eq!(read(reply.as_bytes(), 7), expected, "{reply}");
        }
    }

    #[test]
    fn what_is_no_answer() {
        let replies: &[&[u8]] = &[
            b"",
            b"7",
            b"7:",
            b"7: ",
            b"7: stream: ",
            b"7: stream: FOUND",
            b"7: stream:  FOUND",
            b"7: stream: OK OK",
            b"7: stream: ok",
            b"8: stream: OK",
            b"stream: OK",
            b": stream: OK",
            b"+7: stream: OK",
            b"stream: Eicar FOUND",
            b"7: UNKNOWN COMMAND",
            b"UNKNOWN COMMAND",
            b"COMMAND READ TIMED OUT",
            b"PONG",
            b"7: stream: Can't allocate memory ERROR",
            b"ERROR",
            b"\xff\xfe",
            b"HTTP/1.1 400 Bad Request",
            b"99999999999999999999999: stream: OK",
        ];
        for reply in replies {
            assert!(matches!(read(reply, 7), Err(Failure::Protocol(_))), "{}", harmless(reply));
        }
    }

    #[test]
    fn versions() {
        assert_eq!(signatures_made_s(b"ClamAV 1.4.6/27123/Tue Jan  6 09:36:39 2026\n"), Some(1_767_692_199));
        for unknown in
            [&b"ClamAV 1.4.6"[..], b"ClamAV 1.4.6/27123", b"ClamAV 1/2/Tue Jan  6 99:36:39 2026", b"ClamAV 1/2/Tue Foo  6 09:36:39 2026", b"\xff/1/2"]
        {
            assert_eq!(signatures_made_s(unknown), None, "{}", harmless(unknown));
        }
        assert_eq!(version(b"ClamAV 1.4.6").as_deref(), Ok("1.4.6"));
        assert_eq!(version(b"ClamAV 1.4.6/27123/Sat Jan  6 09:36:39 2026\n").as_deref(), Ok("1.4.6/27123"));
        for wrong in [&b""[..], b"ClamAV ", b"PONG", b"ClamAV 1.4 6", b"ClamAV \x01/2", &[b"ClamAV ".as_slice(), &[b'1'; 4000]].concat()] {
            assert!(version(wrong).is_err(), "{}", harmless(wrong));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_clean_is_said_by_clamd_alone(reply in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Reading { finding: Finding::Clean, evidence }) = read(&reply, 1) {
                prop_assert!(reply.starts_with(b"1: stream: OK") || !evidence.is_empty());
            }
            prop_assert!(version(&reply).is_err() || reply.starts_with(b"ClamAV "));
        }

        #[test]
        fn near_replies(number in "[0-9]{0,3}", middle in "(: ?)?(stream: ?)?[A-Za-z.() ]{0,20}", end in "( OK| FOUND| ERROR|OK)?") {
            let text = format!("{number}{middle}{end}");
            match read(text.as_bytes(), 1) {
                Ok(Reading { finding: Finding::Clean, evidence }) if evidence.is_empty() => prop_assert_eq!(text, "1: stream: OK"),
                Ok(Reading { finding: Finding::Infected(name), .. }) => prop_assert!(text.starts_with("1: stream: ") && !name.is_empty()),
                _ => {}
            }
        }
    }
}
