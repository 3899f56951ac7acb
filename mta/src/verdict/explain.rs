//! A verdict in words: the reply to the sender, one line for logs, and the whole story for people.

use std::fmt::{self, Write as _};

use sekimori_crds::vocabulary::{Action, EngineClass, EngineMode};

use super::{AntiSpam, AntiVirus, Cause, Failure, Finding, Opinion, Unscannable, Verdict};
use crate::smtp::Reply;

/// Characters of a foreign word (a malware name, an error) that are repeated.
const FOREIGN_CHARS_MAX: usize = 100;

/// A word from outside as it may stand in a reply, a header or a log: printable ASCII but `;` `"` and backslash, bounded.
pub(crate) fn printable(text: &str) -> String {
    let legal = |c: char| if (c.is_ascii_graphic() && !matches!(c, ';' | '"' | '\\')) || c == ' ' { c } else { '?' };
    text.chars().take(FOREIGN_CHARS_MAX).map(legal).collect()
}

impl Verdict {
    /// The answer for an action that refuses: it names the reason, and not how close it was.
    pub fn reply_for(&self, action: Action) -> Option<Reply> {
        let cause = self.reasons.first().map(|reason| &reason.cause);
        match action {
            Action::Reject => Some(cause.map_or_else(|| Reply::new(550, (5, 7, 1), "message refused by the recipient's policy"), Cause::refusal)),
            Action::Defer => {
                Some(cause.map_or_else(|| Reply::new(451, (4, 7, 1), "message deferred by the recipient's policy, try again later"), Cause::deferral))
            }
            Action::Deliver | Action::Tag | Action::Quarantine | Action::Discard => None,
        }
    }

    /// Whether mail clients should treat it as unwanted: something about the message itself asked for more than delivery. Trouble of ours does not count.
    pub fn is_unwanted(&self) -> bool {
        let about_us = |cause: &Cause| matches!(cause, Cause::TooFewEngines { .. } | Cause::DnsFailed { .. });
        self.reasons.iter().any(|reason| reason.action > Action::Deliver && !about_us(&reason.cause))
    }

    /// One line: the action and the leading reason.
    pub fn summary(&self) -> String {
        self.reasons.first().map_or_else(|| self.action.to_string(), |reason| format!("{}: {}", self.action, reason.cause))
    }

    /// The whole story, several lines: the action, every reason, what each class came to, and what each engine said, in which version, in how many milliseconds.
    pub fn explanation(&self) -> String {
        let mut out = self.summary();
        let mut line = |text: String| {
            out.push('\n');
            out.push_str(&text);
        };
        self.reasons.iter().for_each(|reason| line(format!("  {} because of {}", reason.action, reason.cause)));
        line(format!("  anti-virus: {}", self.anti_virus));
        line(match self.decibans {
            Some(decibans) => format!("  anti-spam: {}, {decibans} decibans", self.anti_spam),
            None => format!("  anti-spam: {}", self.anti_spam),
        });
        self.unscanned
            .iter()
            .for_each(|class| line(format!("  unscanned: {class}, as too few engines completed a scan, or not everything was looked into")));
        if self.encrypted {
            line("  encrypted: nobody could look into all of it".into());
        }
        self.opinions.iter().for_each(|opinion| line(format!("  {opinion}")));
        out
    }
}

impl Cause {
    fn refusal(&self) -> Reply {
        let (enhanced, text) = match self {
            Self::Infected { name, .. } => ((5, 7, 1), format!("message refused: it contains malware ({})", printable(name))),
            Self::Spf { domain } => ((5, 7, 23), format!("message refused: SPF of {} does not authorise this client", printable(domain))),
            Self::Dmarc { domain } => ((5, 7, 1), format!("message refused: it fails DMARC, and {} asks to reject that", printable(domain))),
            Self::AmbiguousFrom { .. } => ((5, 7, 1), "message refused: From names several domains, so it cannot be told whose mail it is".into()),
            Self::Attachment { extension } => ((5, 7, 1), format!("message refused: attachments of type .{} are not accepted", printable(extension))),
            Self::Denied { .. } | Self::Allowed { .. } => ((5, 7, 1), "message refused by the recipient's policy".into()),
            Self::Certain { .. } | Self::Spam { .. } => ((5, 7, 1), "message refused: it looks like spam".into()),
            Self::Unscannable { what, .. } => ((5, 7, 1), format!("message refused: it cannot be scanned ({what})")),
            Self::Encrypted { .. } => ((5, 7, 1), "message refused: encrypted content cannot be scanned".into()),
            Self::TooFewEngines { .. } => ((5, 7, 1), "message refused: it could not be scanned".into()),
            Self::DnsFailed { check } => ((5, 7, 1), format!("message refused: {check} could not be evaluated")),
        };
        Reply::new(550, enhanced, text)
    }

    fn deferral(&self) -> Reply {
        let (enhanced, text) = match self {
            Self::TooFewEngines { .. } => ((4, 3, 0), "message cannot be scanned at the moment, try again later".to_owned()),
            Self::DnsFailed { check } if check == "SPF" => ((4, 7, 24), "SPF cannot be evaluated at the moment, try again later".to_owned()),
            Self::DnsFailed { check } => ((4, 7, 0), format!("{check} cannot be evaluated at the moment, try again later")),
            _ => ((4, 7, 1), "message deferred by the recipient's policy, try again later".to_owned()),
        };
        Reply::new(451, enhanced, text)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Infected { engine, name } => write!(f, "malware {} ({engine})", printable(name)),
            Self::Spf { domain } => write!(f, "SPF fail of {}", printable(domain)),
            Self::Dmarc { domain } => write!(f, "DMARC fail of {}", printable(domain)),
            Self::AmbiguousFrom { domains } => write!(f, "From names {domains} domains"),
            Self::Attachment { extension } => write!(f, "attachment type .{}", printable(extension)),
            Self::Denied { entry } => write!(f, "deny list entry {}", printable(entry)),
            Self::Allowed { entry } => write!(f, "allow list entry {}", printable(entry)),
            Self::Certain { engine } => write!(f, "certain spam ({engine})"),
            Self::Spam { score } => write!(f, "spam score {score}"),
            Self::Unscannable { engine, what } => write!(f, "unscannable content: {what} ({engine})"),
            Self::Encrypted { engine } => write!(f, "encrypted content ({engine})"),
            Self::TooFewEngines { class, complete, needed } => write!(f, "too few {class} engines ({complete} of {needed})"),
            Self::DnsFailed { check } => write!(f, "a temporary DNS failure for {check}"),
        }
    }
}

impl fmt::Display for AntiVirus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Infected(name) => write!(f, "infected({})", printable(name)),
            Self::Encrypted => f.write_str("encrypted"),
            Self::Clean => f.write_str("clean"),
            Self::Unscannable(what) => write!(f, "unscannable({what})"),
            Self::TooFewEngines => f.write_str("too-few-engines"),
        }
    }
}

impl fmt::Display for AntiSpam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "denied",
            Self::Allowed => "allowed",
            Self::Certain => "certain",
            Self::Spam => "spam",
            Self::Ham => "ham",
            Self::TooFewEngines => "too-few-engines",
        })
    }
}

impl fmt::Display for Unscannable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encrypted => "encrypted",
            Self::TooLarge => "too large",
            Self::LimitsExceeded => "limits exceeded",
            Self::Malformed => "malformed",
            Self::Convicted => "convicted",
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::BreakerOpen => f.write_str("breaker open"),
            Self::Busy => f.write_str("busy"),
            Self::Unreachable(why) => write!(f, "unreachable: {}", printable(why)),
            Self::Protocol(why) => write!(f, "protocol: {}", printable(why)),
        }
    }
}

/// Thousandths as a decimal number.
pub(crate) fn decimal(milli: i64) -> String {
    let (sign, magnitude) = (if milli < 0 { "-" } else { "" }, milli.unsigned_abs());
    let mut out = format!("{sign}{}.{:03}", magnitude / 1000, magnitude % 1000);
    while out.ends_with('0') {
        out.pop();
    }
    if out.ends_with('.') {
        out.pop();
    }
    out
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("clean"),
            Self::Spam(score) => {
                write!(f, "score({}/{})", decimal(score.milli), decimal(score.required_milli))?;
                f.write_str(if score.certain { " certain" } else { "" })
            }
            Self::Infected(name) => write!(f, "infected({})", printable(name)),
            Self::Unscannable(what) => write!(f, "unscannable({what})"),
            Self::Failed(why) => write!(f, "failed({why})"),
        }
    }
}

impl fmt::Display for Opinion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = match self.class {
            EngineClass::AntiVirus => "anti-virus",
            EngineClass::AntiSpam => "anti-spam",
            EngineClass::Sandbox => "sandbox",
        };
        write!(f, "{} {} ({class}): {} in {} ms", self.engine, printable(&self.version), self.finding, self.millis)?;
        let mut evidence = String::new();
        for (i, item) in self.evidence.iter().enumerate() {
            write!(evidence, "{}{} {:+}", if i == 0 { "" } else { ", " }, printable(&item.name), item.decibans).ok();
        }
        if !evidence.is_empty() {
            write!(f, ", evidence: {evidence}")?;
        }
        match self.mode {
            EngineMode::Shadow => f.write_str(" [shadow, not counted]"),
            EngineMode::Enforce | EngineMode::Disabled => Ok(()),
        }
    }
}
