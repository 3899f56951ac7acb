//! What rspamd's JSON reply to `/checkv2` means.

use std::collections::HashMap;

use serde::Deserialize;

use crate::engine::{Reading, harmless};
use crate::verdict::{Evidence, Failure, Finding, SpamScore};

/// Bytes of one reply: symbols carry options, and a mail with thousands of links has thousands of them.
pub const REPLY_BYTES_MAX: usize = 4 << 20;
/// Symbols kept as explanation, those with the highest scores. They count nothing by themselves: the score already holds them.
pub const SYMBOLS_KEPT_MAX: usize = 5;
/// Scores beyond are clipped: no decision looks further, and sums must not overflow.
const MILLI_MAX: i64 = 1_000_000_000;
/// Where a reply names no threshold for spam, it is this part of the one for rejection: rspamd's own 6 of 15.
const SPAM_SHARE_PERCENT: i64 = 40;
/// And the one for greylisting, 4 of 15.
const GREYLIST_SHARE_PERCENT: i64 = 27;

#[derive(Deserialize)]
struct Reply {
    score: f64,
    required_score: f64,
    action: String,
    symbols: HashMap<String, Symbol>,
    #[serde(default)]
    is_skipped: bool,
    /// There with every mail, `undef` where it has none; not there when there was no mail to scan.
    #[serde(rename = "message-id")]
    message_id: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    thresholds: HashMap<String, f64>,
}

#[derive(Deserialize)]
struct Symbol {
    #[serde(default)]
    score: f64,
}

/// What a reply says of a message.
///
/// - `reject` below the threshold for rejection is a forced one, and GTUBE is answered that way: certain.
/// - `required_score` is rspamd's threshold for rejection. For spam it is `thresholds`, else a share of it, corrected by the action, which is what the engine makes of its own score.
/// - `soft reject` at a score where rspamd greylists is greylisting, which is ours to do or not: the score counts. Below it the engine declined
///   (a rate limit, an unfinished check): no scan.
/// - A reply that was skipped, or has neither message-id nor symbols (an empty body), is no scan.
pub fn read(body: &[u8]) -> Result<Reading, Failure> {
    let reply: Reply = serde_json::from_slice(body)
        .map_err(|e| Failure::Protocol(format!("rspamd's reply is no verdict ({}): '{}'", harmless(e.to_string().as_bytes()), harmless(body))))?;
    let no_scan = |why: &str| Failure::Protocol(format!("rspamd answered '{}' {why}", harmless(reply.action.as_bytes())));
    let milli = milli(reply.score);
    let reject_milli = reply.thresholds.get("reject").map_or_else(|| self::milli(reply.required_score), |score| self::milli(*score));
    if reject_milli <= 1 {
        return Err(no_scan("with a required score that is not above zero"));
    }
    let gtube = reply.symbols.contains_key("GTUBE");
    let certain = match reply.action.as_str() {
        "reject" => gtube || reply.is_skipped || milli < reject_milli,
        "no action" | "greylist" | "add header" | "rewrite subject" | "quarantine" | "discard" => gtube,
        "soft reject" => {
            let greylists = reply.thresholds.get("greylist").map_or(reject_milli * GREYLIST_SHARE_PERCENT / 100, |score| self::milli(*score));
            if milli < greylists && !gtube {
                return Err(no_scan("at a score where it does not greylist: it declined to judge now"));
            }
            gtube
        }
        _ => return Err(no_scan("which is no known action")),
    };
    if reply.is_skipped && !certain {
        return Err(no_scan("and skipped the scan"));
    }
    if (reply.message_id.is_none() || reply.symbols.is_empty()) && !certain {
        return Err(no_scan("with no message-id or no symbol: it saw no mail"));
    }
    let score = SpamScore { milli, required_milli: required_milli(&reply, milli, reject_milli), reject_milli, certain };
    Ok(Reading { finding: Finding::Spam(score), evidence: explanation(&reply.symbols) })
}

/// The threshold for spam, above zero and below `reject_milli`.
fn required_milli(reply: &Reply, milli: i64, reject_milli: i64) -> i64 {
    let named = ["add header", "rewrite subject"].iter().filter_map(|action| reply.thresholds.get(*action)).map(|score| self::milli(*score)).min();
    let assumed = reject_milli * SPAM_SHARE_PERCENT / 100;
    let required = match (named, reply.action.as_str()) {
        (Some(named), _) => named,
        (None, "add header" | "rewrite subject") => assumed.min(milli),
        (None, "no action" | "greylist") => assumed.max(milli.saturating_add(1)),
        (None, _) => assumed,
    };
    required.clamp(1, reject_milli - 1)
}

fn explanation(symbols: &HashMap<String, Symbol>) -> Vec<Evidence> {
    let mut highest: Vec<(i64, &str)> =
        symbols.iter().map(|(name, symbol)| (milli(symbol.score), name.as_str())).filter(|(score, _)| *score > 0).collect();
    highest.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    highest.into_iter().take(SYMBOLS_KEPT_MAX).map(|(_, name)| Evidence { name: harmless(name.as_bytes()), decibans: 0 }).collect()
}

/// Thousandths of a point. `as` saturates, and JSON has no NaN.
fn milli(score: f64) -> i64 {
    ((score * 1000.0).round() as i64).clamp(-MILLI_MAX, MILLI_MAX)
}

/// The version out of a `Server: rspamd/3.4` header.
pub fn version(server: &[u8]) -> Option<String> {
    let version = std::str::from_utf8(server).ok()?.strip_prefix("rspamd/")?;
    (!version.is_empty() && version.len() <= 40 && version.bytes().all(|b| b.is_ascii_graphic())).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn score(body: &str) -> SpamScore {
        match read(body.as_bytes()) {
            Ok(Reading { finding: Finding::Spam(score), .. }) => score,
            other => panic!("{body}: {other:?}"),
        }
    }

    fn reply(score: f64, action: &str, more: &str) -> String {
        format!(
            r#"{{"is_skipped":false,"score":{score},"required_score":15.0,"action":"{action}","symbols":{{"A":{{"name":"A","score":1.0}}}},"message-id":"undef"{more}}}"#
        )
    }

    #[test]
    fn scores_and_thresholds() {
        let all = r#","thresholds":{"reject":20.0,"add header":8.0,"greylist":5.0}"#;
        // (score, action, more, milli, required, reject, certain)
        let cases = [
            (2.4, "no action", "", 2400, 6000, 15_000, false),
            (-3.25, "no action", "", -3250, 6000, 15_000, false),
            (9.6, "add header", "", 9600, 6000, 15_000, false),
            (5.0, "add header", "", 5000, 5000, 15_000, false),
            (7.0, "no action", "", 7000, 7001, 15_000, false),
            (4.5, "greylist", "", 4500, 6000, 15_000, false),
            (4.5, "soft reject", "", 4500, 6000, 15_000, false),
            (16.0, "reject", "", 16_000, 6000, 15_000, false),
            (3.0, "reject", "", 3000, 6000, 15_000, true),
            (9.6, "add header", all, 9600, 8000, 20_000, false),
            (16.0, "reject", all, 16_000, 8000, 20_000, true),
            (1e300, "reject", "", MILLI_MAX, 6000, 15_000, false),
        ];
        for (points, action, more, milli, required_milli, reject_milli, certain) in cases {
            assert_eq!(score(&reply(points, action, more)), SpamScore { milli, required_milli, reject_milli, certain }, "{points} {action} {more}");
        }
    }

    #[test]
    fn gtube_as_rspamd_says_it() {
        let body = r#"{"is_skipped":true,"score":15.0,"required_score":15.0,"action":"reject","symbols":{"GTUBE":{"name":"GTUBE","score":0.0,"metric_score":0.0}},"messages":{"smtp_message":"Gtube pattern"}}"#;
        assert!(score(body).certain);
    }

    #[test]
    fn symbols_explain_and_count_nothing() {
        let body = reply(3.0, "no action", "").replace(
            r#""A":{"name":"A","score":1.0}"#,
            r#""LOW":{"score":0.1},"HAM":{"score":-3},"B":{"score":2},"A":{"score":2},"C":{"score":9},"D":{},"E":{"score":1},"F":{"score":1}"#,
        );
        let evidence = read(body.as_bytes()).expect("a verdict").evidence;
        assert_eq!(evidence.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["C", "A", "B", "E", "F"]);
        assert!(evidence.iter().all(|e| e.decibans == 0));
    }

    #[test]
    fn what_is_no_scan() {
        let cases = [
            String::new(),
            "[]".into(),
            "{}".into(),
            "null".into(),
            "<html>502 Bad Gateway</html>".into(),
            r#"{"error":"invalid command"}"#.into(),
            // What it says to an empty body.
            r#"{"is_skipped":false,"score":0.0,"required_score":15.0,"action":"no action","symbols":{},"messages":{},"time_real":0.000267}"#.into(),
            r#"{"is_skipped":false,"score":0.0,"required_score":15.0,"action":"no action","symbols":{"R_SPF_DNSFAIL":{"score":0.0}},"messages":{}}"#
                .into(),
            reply(0.0, "no action", "").replace(r#""A":{"name":"A","score":1.0}"#, ""),
            reply(0.0, "no action", "").replace(r#""is_skipped":false"#, r#""is_skipped":true"#),
            reply(0.0, "soft reject", ""),
            reply(0.0, "launch", ""),
            reply(3.0, "no action", "").replace("15.0", "0.0"),
            reply(3.0, "no action", "").replace("15.0", "-4"),
            reply(3.0, "no action", "").replace("15.0", "\"many\""),
            reply(3.0, "no action", "").replace('}', ""),
            "[".repeat(100_000),
        ];
        for body in cases {
            assert!(matches!(read(body.as_bytes()), Err(Failure::Protocol(_))), "{}", harmless(body.as_bytes()));
        }
    }

    #[test]
    fn versions() {
        assert_eq!(version(b"rspamd/3.4").as_deref(), Some("3.4"));
        for other in [&b"nginx"[..], b"rspamd/", b"rspamd/3 4", b"rspamd/\xff"] {
            assert_eq!(version(other), None);
        }
    }

    proptest! {
        #[test]
        fn thresholds_are_always_in_order(points in -1e6..1e6_f64, required in -1.0..100.0_f64, spam in prop::option::of(-10.0..100.0_f64), action in "no action|greylist|add header|soft reject|reject|x") {
            let more = spam.map(|s| format!(r#","thresholds":{{"add header":{s}}}"#)).unwrap_or_default();
            let body = reply(points, &action, &more).replace("15.0", &format!("{required}"));
            let judged = read(body.as_bytes());
            prop_assert!(judged.is_ok() || action == "x" || action == "soft reject" || required < 0.01, "{body}");
            if let Ok(Reading { finding: Finding::Spam(score), .. }) = judged {
                prop_assert!(0 < score.required_milli && score.required_milli < score.reject_milli);
                prop_assert!(score.milli.abs() <= MILLI_MAX);
            }
        }

        #[test]
        fn any_bytes(body in prop::collection::vec(any::<u8>(), 0..300), cut in 0..200_usize) {
            prop_assert!(read(&body).is_err());
            let whole = reply(3.0, "no action", "");
            let half: Vec<u8> = whole.bytes().take(cut).collect();
            prop_assert!(read(&half).is_err() || half.len() == whole.len());
        }
    }
}
