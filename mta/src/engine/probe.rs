//! The samples that a probe scans, and what an engine must say of them.
//!
//! "No threat" is no evidence of a scan: only an engine that finds the known bad sample, and does not find it in the good one, is called.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use sekimori_crds::vocabulary::EngineClass;

use crate::envelope::{Client, Envelope, Recipient};
use crate::queue_id::QueueId;
use crate::smtp::Address;
use crate::verdict::Finding;

/// The domain of a probe's envelope: reserved (RFC 2606), so no mail from outside that is taken for a probe means anything.
pub const DOMAIN: &str = "probe.sekimori.invalid";

// In pieces, so that no scanner takes this program for the test file.
const EICAR: [&str; 3] = [r"X5O!P%@AP[4\PZX54(P^)7CC)7}$", "EICAR-STANDARD-ANTI", "VIRUS-TEST-FILE!$H+H*"];
const GTUBE: [&str; 3] = ["XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI", "-UBE-TEST-EMAIL*C.34X"];

/// The EICAR test file, 68 bytes.
pub fn eicar() -> String {
    EICAR.concat()
}

/// The GTUBE line.
pub fn gtube() -> String {
    GTUBE.concat()
}

/// Which sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// Must be found.
    Bad,
    /// Must not be found.
    Good,
}

/// The raw message of a sample, dated now: an old date is evidence of spam.
pub fn message(class: EngineClass, sample: Sample, now_unix_ms: u64) -> Bytes {
    let date = mail_parser::DateTime::from_timestamp(i64::try_from(now_unix_ms / 1000).unwrap_or(0)).to_rfc822();
    let head = format!(
        "Date: {date}\r\nFrom: Gateway probe <probe@{DOMAIN}>\r\nTo: <probe@{DOMAIN}>\r\nSubject: Minutes of the weekly meeting\r\nMessage-ID: <{now_unix_ms}@{DOMAIN}>\r\nMIME-Version: 1.0\r\n"
    );
    let text = "The minutes of the weekly meeting are attached. The next one is on Tuesday at ten.\r\n";
    let file = match (class, sample) {
        (EngineClass::AntiVirus | EngineClass::Sandbox, Sample::Bad) => eicar(),
        (EngineClass::AntiVirus | EngineClass::Sandbox, Sample::Good) => "Nobody was absent.\r\n".to_owned(),
        (EngineClass::AntiSpam, sample) => {
            let line = if sample == Sample::Bad { format!("{}\r\n", gtube()) } else { String::new() };
            return format!("{head}Content-Type: text/plain; charset=utf-8\r\n\r\n{text}{line}").into();
        }
    };
    let encoded = data_encoding::BASE64.encode(file.as_bytes());
    format!(
        "{head}Content-Type: multipart/mixed; boundary=\"probe\"\r\n\r\n--probe\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n--probe\r\nContent-Type: application/octet-stream; name=\"minutes.com\"\r\nContent-Disposition: attachment; filename=\"minutes.com\"\r\nContent-Transfer-Encoding: base64\r\n\r\n{encoded}\r\n--probe--\r\n"
    )
    .into()
}

/// The envelope of a probe: from nowhere in particular, so that no rule about addresses has a say.
pub fn envelope(now_unix_ms: u64) -> Envelope {
    let address = Address { local: "probe".into(), domain: DOMAIN.into() };
    Envelope {
        id: QueueId::new(now_unix_ms, 0),
        received_ms: now_unix_ms,
        client: Client { address: IpAddr::V4(Ipv4Addr::LOCALHOST), helo: DOMAIN.into(), esmtp: true, tls: None, address_known: false },
        sender: Some(address.clone()),
        recipients: vec![Recipient { address, tenant: Arc::from("") }],
        eight_bit: false,
        smtputf8: false,
    }
}

/// Whether the finding is the right one.
pub fn right(class: EngineClass, sample: Sample, finding: &Finding) -> bool {
    match (class, sample, finding) {
        (EngineClass::AntiVirus | EngineClass::Sandbox, Sample::Bad, finding) => matches!(finding, Finding::Infected(_)),
        (EngineClass::AntiVirus | EngineClass::Sandbox, Sample::Good, finding) => *finding == Finding::Clean,
        (EngineClass::AntiSpam, Sample::Bad, Finding::Spam(score)) => score.certain || score.milli >= score.reject_milli,
        // An engine that calls this spam calls everything spam (2010-01-01, 3.5 points for every message).
        (EngineClass::AntiSpam, Sample::Good, Finding::Spam(score)) => !score.certain && score.milli < score.required_milli,
        (EngineClass::AntiSpam, ..) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Failure, SpamScore, Unscannable};

    #[test]
    fn samples_are_what_they_should_be() {
        assert_eq!((eicar().len(), gtube().len()), (68, 68));
        for class in [EngineClass::AntiVirus, EngineClass::AntiSpam, EngineClass::Sandbox] {
            for sample in [Sample::Bad, Sample::Good] {
                let raw = message(class, sample, 1_795_600_000_123);
                let text = std::str::from_utf8(&raw).expect("ASCII");
                assert!(text.starts_with("Date: Wed, 25 Nov 2026 "), "{text}");
                assert!(text.ends_with("\r\n") && !text.replace("\r\n", "").contains(['\r', '\n']));
                assert!(text.lines().all(|line| line.len() < 998));
                let bad = text.contains(&gtube()) || text.contains(&data_encoding::BASE64.encode(eicar().as_bytes()));
                assert_eq!(bad, sample == Sample::Bad);
            }
        }
    }

    #[test]
    fn right_answers() {
        let spam = |milli, certain| Finding::Spam(SpamScore { milli, required_milli: 6000, reject_milli: 15_000, certain });
        let wrong_for_all = [Finding::Failed(Failure::Timeout), Finding::Unscannable(Unscannable::LimitsExceeded)];
        for class in [EngineClass::AntiVirus, EngineClass::AntiSpam, EngineClass::Sandbox] {
            for finding in &wrong_for_all {
                assert!(!right(class, Sample::Bad, finding) && !right(class, Sample::Good, finding), "{class} {finding:?}");
            }
        }
        let infected = Finding::Infected("Eicar".into());
        // (class, finding, right for bad, right for good)
        let cases = [
            (EngineClass::AntiVirus, infected.clone(), true, false),
            (EngineClass::AntiVirus, Finding::Clean, false, true),
            (EngineClass::AntiVirus, spam(99_000, true), false, false),
            (EngineClass::AntiSpam, infected, false, false),
            (EngineClass::AntiSpam, Finding::Clean, false, false),
            (EngineClass::AntiSpam, spam(0, true), true, false),
            (EngineClass::AntiSpam, spam(15_000, false), true, false),
            (EngineClass::AntiSpam, spam(14_999, false), false, false),
            (EngineClass::AntiSpam, spam(6000, false), false, false),
            (EngineClass::AntiSpam, spam(5999, false), false, true),
        ];
        for (class, finding, bad, good) in cases {
            assert_eq!((right(class, Sample::Bad, &finding), right(class, Sample::Good, &finding)), (bad, good), "{class} {finding:?}");
        }
    }
}
