//! Evidence of spam in header, envelope, structure and text: a table of signs and a sum. Pure; reads each part once; knows no language.

mod body;
mod header;
mod html;
pub mod table;
mod text;

#[cfg(test)]
mod tests;

use memchr::memmem;

use self::table::Sign;
use crate::envelope::Envelope;
use crate::message::Message;

/// From here on it is spam, thousandths of a point.
pub const REQUIRED_MILLI: i64 = 5_000;
/// From here on it may be refused, thousandths of a point.
pub const REJECT_MILLI: i64 = 15_000;
/// The score of a message with GTUBE in it.
pub const GTUBE_MILLI: i64 = 1_000_000;

/// The test string for anti-spam engines, in two pieces, so that mail about this source is no test.
const GTUBE: &str = concat!("XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X");

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The sum, thousandths of a point.
    pub milli: i64,
    /// GTUBE is in it.
    pub certain: bool,
    /// The signs, each once, in the order they were met.
    pub signs: Vec<&'static Sign>,
}

struct Look<'a> {
    message: &'a Message,
    envelope: &'a Envelope,
    signs: Vec<&'static Sign>,
}

impl Look<'_> {
    fn add(&mut self, sign: &'static Sign) {
        if !self.signs.contains(&sign) {
            self.signs.push(sign);
        }
    }
}

/// Judges a message.
pub fn judge(message: &Message, envelope: &Envelope) -> Judgement {
    let mut look = Look { message, envelope, signs: vec![] };
    look.header();
    look.envelope();
    look.structure();
    look.body();
    let certain = has_gtube(message);
    let (absent, present): (Vec<&Sign>, Vec<&Sign>) = look.signs.iter().partition(|sign| table::ABSENCES.contains(sign));
    let sum = |signs: Vec<&Sign>| signs.iter().map(|sign| sign.milli).sum::<i64>();
    let milli = sum(present) + sum(absent).min(table::ABSENCES_MILLI_MAX);
    Judgement { milli: if certain { GTUBE_MILLI } else { milli }, certain, signs: look.signs }
}

/// The string in one piece, in the body as it stands or in any decoded text part. Cut by a line end it is not the string.
fn has_gtube(message: &Message) -> bool {
    let finder = memmem::Finder::new(GTUBE.as_bytes());
    let body = message.raw.get(message.body_offset..).unwrap_or_default();
    let decoded = message.parts.iter().filter(|part| part.content_type.starts_with("text/"));
    finder.find(body).is_some()
        || decoded.into_iter().any(|part| finder.find(&part.content).is_some() || is_wide(part) && finder.find(text::of(part).0.as_bytes()).is_some())
}

/// UTF-16 has no byte of ASCII text beside another.
fn is_wide(part: &crate::message::Part) -> bool {
    part.charset.as_deref().is_some_and(|charset| charset.starts_with("utf-16") || charset.starts_with("utf-7"))
}
