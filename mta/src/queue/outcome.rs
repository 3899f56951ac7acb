//! What an answer of the next hop means for the mail (DESIGN.md 4.7): a table, and nothing else.

use std::fmt;

use crate::smtp::Reply;
use crate::smtp::client::{Answer, Finished, Phase, Unable};

/// What is known beside the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// `softBounce`: every 5xx of the next hop is a retry.
    pub soft_bounce: bool,
    /// The next hop has refused everything over several senders.
    pub refuses_all: bool,
}

/// What it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The next hop has it.
    Delivered,
    /// It never will take it, and it is the mail's fault. The reply is fit to be ours.
    RefusedPermanently(Reply),
    /// Later.
    Retry(Reply),
    /// After the final dot nobody knows.
    Unknown(String),
    /// The server's trouble, not the mail's: another route, or later.
    RouteTrouble(Trouble),
}

/// What is wrong with a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// It answers, but with refusals that are about us or about itself: condition `RouteRefusing`.
    pub refusing: bool,
    /// For people.
    pub why: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What a server says that does not want to relay for us. Compared in lower case, after everything in angle brackets and quotes was taken out.
const RELAYING_DENIED: &[&str] = &[
    "relay access denied",
    "relaying denied",
    "relaying not allowed",
    "relaying not permitted",
    "relaying is not allowed",
    "relaying is prohibited",
    "relaying prohibited",
    "relay not permitted",
    "relay not allowed",
    "relay denied",
    "not permitted to relay",
    "not allowed to relay",
    "unable to relay",
    "cannot relay",
    "refuse to relay",
    "we do not relay",
    "don't relay",
    "no relaying",
    "allowed rcpthosts",
];

/// Reads one answer.
pub fn judge(phase: Phase, answer: &Answer, mode: Mode) -> Outcome {
    let reply = match answer {
        Answer::Reply(reply) => reply,
        Answer::Unable(unable) => return judge_unable(unable, mode),
        Answer::Timeout | Answer::Disconnected(_) | Answer::Garbage(_) if phase == Phase::EndOfData => return Outcome::Unknown(answer.to_string()),
        Answer::Timeout | Answer::Disconnected(_) | Answer::Garbage(_) => return trouble(phase, answer, false),
    };
    if phase == Phase::EndOfData && reply.is_positive() {
        return Outcome::Delivered;
    }
    if reply.code == 421 {
        // The server is going away; where this came after the final dot it still says that the message was not taken.
        return trouble(phase, answer, false);
    }
    match (phase, reply.code / 100) {
        (Phase::Connect | Phase::Banner | Phase::Ehlo | Phase::Tls, class) => trouble(phase, answer, class == 5),
        (Phase::Mail, 5) => trouble(phase, answer, true),
        (Phase::Mail | Phase::Rcpt | Phase::Data | Phase::EndOfData, 4) => Outcome::Retry(sanitised(reply)),
        (Phase::Rcpt | Phase::Data | Phase::EndOfData, 5) => judge_refusal(phase, reply, mode),
        (Phase::EndOfData, _) => Outcome::Unknown(answer.to_string()),
        _ => trouble(phase, answer, false),
    }
}

/// Reads a whole transaction: what it means for each recipient, in order; `Err` where it says nothing of the mail but only of the route.
pub fn judge_all(finished: &Finished, mode: Mode) -> Result<Vec<Outcome>, Trouble> {
    let end = judge(finished.phase, &finished.answer, mode);
    if let Outcome::RouteTrouble(trouble) = end {
        return Err(trouble);
    }
    let any_accepted = finished.recipients.iter().flatten().any(Reply::is_positive);
    let mut outcomes = Vec::with_capacity(finished.recipients.len());
    for answer in &finished.recipients {
        let outcome = match answer {
            // After a refused MAIL the answers to RCPT only say that there was none.
            Some(refusal) if finished.phase != Phase::Mail && !refusal.is_positive() => judge(Phase::Rcpt, &Answer::Reply(refusal.clone()), mode),
            _ => end.clone(),
        };
        outcomes.push(match (outcome, answer) {
            // Relaying denied for one of several, while it takes the others: later, for this one.
            (Outcome::RouteTrouble(_), Some(refusal)) if any_accepted => Outcome::Retry(sanitised(refusal)),
            (Outcome::RouteTrouble(trouble), _) => return Err(trouble),
            (outcome, _) => outcome,
        });
    }
    Ok(outcomes)
}

fn judge_refusal(phase: Phase, reply: &Reply, mode: Mode) -> Outcome {
    if denies_relaying(reply) || mode.refuses_all {
        return trouble(phase, &Answer::Reply(reply.clone()), true);
    }
    if mode.soft_bounce { Outcome::Retry(sanitised(reply)) } else { Outcome::RefusedPermanently(sanitised(reply)) }
}

fn judge_unable(unable: &Unable, mode: Mode) -> Outcome {
    let text = unable.to_string();
    let reply = match unable {
        Unable::TooLarge { .. } => Reply::new(552, (5, 3, 4), text),
        Unable::EightBit => Reply::new(554, (5, 6, 3), text),
        Unable::Utf8 => Reply::new(553, (5, 6, 7), text),
        Unable::BadAddress => Reply::new(553, (5, 1, 3), text),
        Unable::TlsNotOffered => return Outcome::RouteTrouble(Trouble { refusing: true, why: text }),
        Unable::TlsFailed(_) => return Outcome::RouteTrouble(Trouble { refusing: false, why: text }),
    };
    if mode.soft_bounce { Outcome::Retry(reply) } else { Outcome::RefusedPermanently(reply) }
}

fn trouble(phase: Phase, answer: &Answer, refusing: bool) -> Outcome {
    let answer = match answer {
        Answer::Reply(reply) => Answer::Reply(sanitised_text(reply)),
        other => other.clone(),
    };
    Outcome::RouteTrouble(Trouble { refusing, why: format!("{phase}: {answer}") })
}

/// A 5.7.x, or a refusal without a status, whose own words (not the addresses that it repeats) say that it does not relay.
fn denies_relaying(reply: &Reply) -> bool {
    if reply.enhanced.is_some_and(|(_, subject, _)| subject != 7) {
        return false;
    }
    let mut closing = None;
    let own_words: String = reply
        .text
        .chars()
        .filter(|letter| match (closing, letter) {
            (Some(end), letter) => {
                if *letter == end {
                    closing = None;
                }
                false
            }
            (None, '<') => {
                closing = Some('>');
                false
            }
            (None, '"') => {
                closing = Some('"');
                false
            }
            (None, _) => true,
        })
        .map(|letter| if letter == '\n' { ' ' } else { letter.to_ascii_lowercase() })
        .collect();
    RELAYING_DENIED.iter().any(|words| own_words.contains(words))
}

/// Characters of a foreign reply that go on to others.
const TEXT_CHARS_MAX: usize = 300;

fn sanitised_text(reply: &Reply) -> Reply {
    let text: String = reply
        .text
        .chars()
        .take(TEXT_CHARS_MAX)
        .map(|letter| {
            if letter == ' ' || letter.is_ascii_graphic() {
                letter
            } else if letter == '\n' {
                ' '
            } else {
                '?'
            }
        })
        .collect();
    Reply { code: reply.code, enhanced: reply.enhanced, text: text.trim().to_owned() }
}

/// A reply of the next hop, fit to be sent on as ours: one line of printable ASCII, a status that agrees with the code, and no code that speaks of the
/// dialogue between us and the next hop (syntax, sequence, authentication).
pub fn sanitised(reply: &Reply) -> Reply {
    let mut ours = sanitised_text(reply);
    ours.code = match reply.code {
        500..=504 | 521 | 530..=538 | 555 | 560..=599 => 550,
        400..=449 | 453..=499 => 451,
        code => code,
    };
    let class = (ours.code / 100) as u8;
    ours.enhanced = Some(reply.enhanced.filter(|enhanced| enhanced.0 == class).unwrap_or((class, 0, 0)));
    if ours.text.is_empty() {
        ours.text = "refused by the recipient's server".into();
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        let (code, rest) = text.split_at(3);
        let rest = rest.trim_start();
        let mut words = rest.splitn(2, ' ');
        let numbers: Vec<u16> = words.next().unwrap_or_default().split('.').filter_map(|n| n.parse().ok()).collect();
        match numbers[..] {
            [class, subject, detail] => Reply::new(code.parse().unwrap(), (class as u8, subject, detail), words.next().unwrap_or_default()),
            _ => Reply { code: code.parse().unwrap(), enhanced: None, text: rest.to_owned() },
        }
    }

    /// `timeout`, `lost`, `garbage`, or a reply.
    fn answer(text: &str) -> Answer {
        match text {
            "timeout" => Answer::Timeout,
            "lost" => Answer::Disconnected("reset".into()),
            "garbage" => Answer::Garbage("xyz".into()),
            "too large" => Answer::Unable(Unable::TooLarge { limit_bytes: 9 }),
            "8bit" => Answer::Unable(Unable::EightBit),
            "utf8" => Answer::Unable(Unable::Utf8),
            "no tls" => Answer::Unable(Unable::TlsNotOffered),
            "bad tls" => Answer::Unable(Unable::TlsFailed("expired".into())),
            "bad address" => Answer::Unable(Unable::BadAddress),
            reply_text => Answer::Reply(reply(reply_text)),
        }
    }

    fn word(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Delivered => "delivered",
            Outcome::RefusedPermanently(_) => "refused",
            Outcome::Retry(_) => "retry",
            Outcome::Unknown(_) => "unknown",
            Outcome::RouteTrouble(Trouble { refusing: true, .. }) => "refusing",
            Outcome::RouteTrouble(Trouble { refusing: false, .. }) => "trouble",
        }
    }

    /// The map: phase, answer, what it means plainly, under softBounce, and when the server refuses everything.
    const ROWS: &[(Phase, &str, &str, &str, &str)] = &[
        (Phase::Connect, "timeout", "trouble", "trouble", "trouble"),
        (Phase::Connect, "lost", "trouble", "trouble", "trouble"),
        (Phase::Banner, "timeout", "trouble", "trouble", "trouble"),
        (Phase::Banner, "lost", "trouble", "trouble", "trouble"),
        (Phase::Banner, "garbage", "trouble", "trouble", "trouble"),
        (Phase::Banner, "421 4.3.2 closing", "trouble", "trouble", "trouble"),
        (Phase::Banner, "450 later", "trouble", "trouble", "trouble"),
        (Phase::Banner, "554 5.7.1 no service for you", "refusing", "refusing", "refusing"),
        (Phase::Ehlo, "timeout", "trouble", "trouble", "trouble"),
        (Phase::Ehlo, "lost", "trouble", "trouble", "trouble"),
        (Phase::Ehlo, "450 later", "trouble", "trouble", "trouble"),
        (Phase::Ehlo, "550 bad name", "refusing", "refusing", "refusing"),
        (Phase::Tls, "timeout", "trouble", "trouble", "trouble"),
        (Phase::Tls, "454 4.7.0 not now", "trouble", "trouble", "trouble"),
        (Phase::Tls, "554 5.7.3 no", "refusing", "refusing", "refusing"),
        (Phase::Tls, "no tls", "refusing", "refusing", "refusing"),
        (Phase::Tls, "bad tls", "trouble", "trouble", "trouble"),
        (Phase::Mail, "timeout", "trouble", "trouble", "trouble"),
        (Phase::Mail, "lost", "trouble", "trouble", "trouble"),
        (Phase::Mail, "421 4.3.2 closing", "trouble", "trouble", "trouble"),
        (Phase::Mail, "451 4.7.1 greylisted", "retry", "retry", "retry"),
        (Phase::Mail, "550 5.7.1 sender refused", "refusing", "refusing", "refusing"),
        (Phase::Mail, "too large", "refused", "retry", "refused"),
        (Phase::Mail, "8bit", "refused", "retry", "refused"),
        (Phase::Mail, "utf8", "refused", "retry", "refused"),
        (Phase::Mail, "bad address", "refused", "retry", "refused"),
        (Phase::Rcpt, "timeout", "trouble", "trouble", "trouble"),
        (Phase::Rcpt, "lost", "trouble", "trouble", "trouble"),
        (Phase::Rcpt, "garbage", "trouble", "trouble", "trouble"),
        (Phase::Rcpt, "421 closing", "trouble", "trouble", "trouble"),
        (Phase::Rcpt, "450 4.2.1 busy", "retry", "retry", "retry"),
        (Phase::Rcpt, "550 5.1.1 no such user", "refused", "retry", "refusing"),
        (Phase::Rcpt, "554 5.7.1 <a@b>: Relay access denied", "refusing", "refusing", "refusing"),
        (Phase::Rcpt, "550 relay not permitted", "refusing", "refusing", "refusing"),
        (Phase::Rcpt, "550 5.7.1 blocked by policy", "refused", "retry", "refusing"),
        (Phase::Rcpt, "550 5.1.2 Relaying denied", "refused", "retry", "refusing"),
        (Phase::Rcpt, "550 5.7.1 <\"relay access denied\"@evil.example>: blocked", "refused", "retry", "refusing"),
        (Phase::Rcpt, "550 5.7.1 \"relay access denied\"@evil.example is blocked", "refused", "retry", "refusing"),
        (Phase::Data, "timeout", "trouble", "trouble", "trouble"),
        (Phase::Data, "lost", "trouble", "trouble", "trouble"),
        (Phase::Data, "garbage", "trouble", "trouble", "trouble"),
        (Phase::Data, "451 4.3.0 later", "retry", "retry", "retry"),
        (Phase::Data, "554 5.5.1 no", "refused", "retry", "refusing"),
        (Phase::Data, "250 what", "trouble", "trouble", "trouble"),
        (Phase::EndOfData, "250 2.0.0 ok", "delivered", "delivered", "delivered"),
        (Phase::EndOfData, "421 4.3.2 closing", "trouble", "trouble", "trouble"),
        (Phase::EndOfData, "452 4.3.1 full", "retry", "retry", "retry"),
        (Phase::EndOfData, "550 5.7.1 spam", "refused", "retry", "refusing"),
        (Phase::EndOfData, "554 5.7.1 relaying denied", "refusing", "refusing", "refusing"),
        (Phase::EndOfData, "354 what", "unknown", "unknown", "unknown"),
        (Phase::EndOfData, "timeout", "unknown", "unknown", "unknown"),
        (Phase::EndOfData, "lost", "unknown", "unknown", "unknown"),
        (Phase::EndOfData, "garbage", "unknown", "unknown", "unknown"),
    ];

    #[test]
    fn the_map() {
        for (phase, text, plain, soft, all) in ROWS {
            let modes = [
                (Mode::default(), plain),
                (Mode { soft_bounce: true, ..Mode::default() }, soft),
                (Mode { refuses_all: true, ..Mode::default() }, all),
            ];
            for (mode, wanted) in modes {
                assert_eq!(word(&judge(*phase, &answer(text), mode)), *wanted, "{phase} {text} {mode:?}");
            }
        }
    }

    #[test]
    fn whole_transactions() {
        // Answers to RCPT, the phase and answer that ended it, what each recipient gets (or the route's trouble).
        for (recipients, phase, end, wanted) in [
            (vec!["250 ok", "250 ok"], Phase::EndOfData, "250 ok", vec!["delivered", "delivered"]),
            (vec!["250 ok", "550 5.1.1 no", "450 later"], Phase::EndOfData, "250 ok", vec!["delivered", "refused", "retry"]),
            (vec!["250 ok", "550 5.1.1 no"], Phase::EndOfData, "550 5.7.1 spam", vec!["refused", "refused"]),
            (vec!["250 ok", "550 5.1.1 no"], Phase::EndOfData, "450 later", vec!["retry", "refused"]),
            (vec!["250 ok", "550 5.1.1 no"], Phase::EndOfData, "timeout", vec!["unknown", "refused"]),
            (vec!["250 ok", "550 5.7.1 relaying denied"], Phase::EndOfData, "250 ok", vec!["delivered", "retry"]),
            (vec!["550 5.1.1 no", "550 5.7.1 relaying denied"], Phase::Rcpt, "550 5.7.1 relaying denied", vec!["refusing"]),
            (vec!["550 5.1.1 no", "450 later"], Phase::Rcpt, "450 later", vec!["refused", "retry"]),
            (vec!["250 ok"], Phase::Data, "554 no", vec!["refused"]),
            (vec!["250 ok"], Phase::Data, "lost", vec!["trouble"]),
            (vec!["", ""], Phase::Mail, "550 no", vec!["refusing"]),
            (vec!["503 mail first", ""], Phase::Mail, "450 no", vec!["retry", "retry"]),
            (vec!["", ""], Phase::Mail, "450 no", vec!["retry", "retry"]),
            (vec!["", ""], Phase::Mail, "too large", vec!["refused", "refused"]),
        ] {
            let recipients = recipients.into_iter().map(|text| (!text.is_empty()).then(|| reply(text))).collect();
            let finished = Finished { recipients, phase, answer: answer(end) };
            let got: Vec<&str> = match judge_all(&finished, Mode::default()) {
                Ok(outcomes) => outcomes.iter().map(word).collect(),
                Err(trouble) => vec![word(&Outcome::RouteTrouble(trouble))],
            };
            assert_eq!(got, wanted, "{finished:?}");
        }
    }

    #[test]
    fn foreign_words_are_cleaned() {
        for (from, to) in [
            ("550 5.1.1 no such user", "550 5.1.1 no such user"),
            ("550 no such user", "550 5.0.0 no such user"),
            ("530 5.7.0 authenticate", "550 5.7.0 authenticate"),
            ("550 4.1.1 odd", "550 5.0.0 odd"),
            ("503 5.5.1 sequence", "550 5.5.1 sequence"),
            ("552 5.2.2 full\r\n250 ok\u{7f}\u{e9}", "552 5.2.2 full? 250 ok??"),
            ("554", "554 5.0.0 refused by the recipient's server"),
            ("452 4.2.2 full", "452 4.2.2 full"),
            ("421 4.7.0 slow down", "451 4.7.0 slow down"),
        ] {
            assert_eq!(sanitised(&reply(from)).to_string(), to);
        }
        let long = sanitised(&Reply { code: 550, enhanced: None, text: "x".repeat(10_000) });
        assert_eq!(long.text.len(), TEXT_CHARS_MAX);
    }
}
