//! What makes a DKIM signature or key unacceptable before any cryptography (RFC 6376, RFC 8301, RFC 8463): pure.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::{Dkim, DkimResult, domain, tags};
use crate::message::Message;

/// Signatures that are looked at; further ones are neither verified nor their keys fetched.
pub const SIGNATURES_MAX: usize = 10;

/// Bytes of one signature field.
const FIELD_BYTES_MAX: usize = 16 * 1024;

/// Names in `h=`; each costs a search through the header.
const SIGNED_NAMES_MAX: usize = 128;

/// Bits of an RSA key (RFC 8301 section 3.2; the upper bound is ours, against keys that take long to use).
const RSA_BITS_MIN: usize = 1024;
const RSA_BITS_MAX: usize = 8192;

/// Characters of `b=` that name a signature (RFC 6008 section 3).
const SHOWN_CHARACTERS: usize = 12;

/// Fields of which a message has one: a second one that is not signed changes what is read.
const ONCE: &[&str] = &["from", "reply-to", "to", "cc", "subject", "date", "message-id", "mime-version", "content-type", "content-transfer-encoding"];

/// The algorithm of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// `rsa-sha256`.
    Rsa,
    /// `ed25519-sha256`.
    Ed25519,
}

/// A signature whose key is worth fetching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// `d=`, normalised.
    pub domain: String,
    /// Where its key is: `s._domainkey.d`, normalised.
    pub key_name: String,
    /// The domain of `i=` is not `d=` itself.
    pub identity_below: bool,
}

/// What a look at one signature field says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screened {
    /// The result where there is no candidate; the frame of it where there is.
    pub result: DkimResult,
    /// Set where the signature is to be verified.
    pub candidate: Option<Candidate>,
}

/// Looks at the value of one DKIM-Signature field.
pub fn screen(value: &[u8], message: &Message, now_s: u64) -> Screened {
    let mut result = DkimResult { result: Dkim::Neutral, domain: String::new(), selector: String::new(), signature: String::new(), reason: None };
    let candidate = match examine(value, message, now_s, &mut result) {
        Ok(candidate) => Some(candidate),
        Err((word, reason)) => {
            result.result = word;
            result.reason = Some(reason.to_owned());
            None
        }
    };
    Screened { result, candidate }
}

type Refusal = (Dkim, &'static str);

fn examine(value: &[u8], message: &Message, now_s: u64, result: &mut DkimResult) -> Result<Candidate, Refusal> {
    if value.len() > FIELD_BYTES_MAX {
        return Err((Dkim::Neutral, "signature field too long"));
    }
    let text = std::str::from_utf8(value).map_err(|_| (Dkim::Neutral, "signature is not text"))?;
    let list = tags::strict(text).ok_or((Dkim::Neutral, "signature is no valid tag list"))?;
    let tag = |name: &str| list.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let need = |name: &str| tag(name).filter(|value| !value.is_empty()).ok_or((Dkim::Neutral, "signature lacks a required tag"));

    let signing = domain::mail_domain(&tags::unfolded(need("d")?)).ok_or((Dkim::Neutral, "signing domain is malformed"))?;
    result.domain.clone_from(&signing);
    let selector = tags::unfolded(need("s")?);
    result.selector.clone_from(&selector);
    result.signature = tags::unfolded(need("b")?).chars().filter(char::is_ascii_graphic).take(SHOWN_CHARACTERS).collect();
    need("bh")?;
    if need("v")? != "1" {
        return Err((Dkim::Neutral, "signature version is not 1"));
    }
    let algorithm = match tags::unfolded(need("a")?).to_ascii_lowercase().as_str() {
        "rsa-sha256" => Algorithm::Rsa,
        "ed25519-sha256" => Algorithm::Ed25519,
        "rsa-sha1" => return Err((Dkim::Policy, "rsa-sha1 is not accepted")),
        _ => return Err((Dkim::Neutral, "signature algorithm is unknown")),
    };
    // Odd characters are refused: servers that choke on them would turn a failure into a temporary error, at the sender's choice.
    let key_name = domain::normalise(&format!("{selector}._domainkey.{signing}"))
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')))
        .ok_or((Dkim::Neutral, "selector is malformed"))?;
    if tag("q").is_some_and(|methods| !methods.split(':').any(|method| method.trim().eq_ignore_ascii_case("dns/txt"))) {
        return Err((Dkim::Neutral, "key query method is unknown"));
    }
    if tag("l").is_some() {
        return Err((Dkim::Policy, "body length limit is not accepted"));
    }
    let identity_below = identity(tag("i"), &signing)?;
    times(tag("t"), tag("x"), now_s)?;
    signed_fields(need("h")?, message)?;
    Ok(Candidate { algorithm, domain: signing, key_name, identity_below })
}

/// Whether the domain of `i=` lies below `d=`; elsewhere it may not lie.
fn identity(identity: Option<&str>, signing: &str) -> Result<bool, Refusal> {
    let Some(identity) = identity else { return Ok(false) };
    let (_, name) = identity.rsplit_once('@').ok_or((Dkim::Neutral, "identity has no domain"))?;
    let name = domain::normalise(&tags::unfolded(name)).ok_or((Dkim::Neutral, "identity domain is malformed"))?;
    if domain::at_or_below(&name, signing) { Ok(name != signing) } else { Err((Dkim::PermError, "identity is outside the signing domain")) }
}

fn times(signed: Option<&str>, expires: Option<&str>, now_s: u64) -> Result<(), Refusal> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number beyond ours is in a far future.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX)).ok_or((Dkim::Neutral, "a time of the signature is malformed"))
    };
    let signed = signed.map(number).transpose()?;
    let Some(expires) = expires.map(number).transpose()? else { return Ok(()) };
    if expires <= now_s || signed.is_some_and(|signed| expires <= signed) { Err((Dkim::PermError, "signature has expired")) } else { Ok(()) }
}

/// From must be signed, and no field of which there is one may occur more often than it is signed (RFC 6376 sections 5.4 and 8.15).
fn signed_fields(list: &str, message: &Message) -> Result<(), Refusal> {
    let names: Vec<String> = list.split(':').map(|name| tags::unfolded(name).to_ascii_lowercase()).collect();
    if names.len() > SIGNED_NAMES_MAX {
        return Err((Dkim::Neutral, "too many signed fields"));
    }
    if !names.iter().any(|name| name == "from") {
        return Err((Dkim::PermError, "From is not signed"));
    }
    if message.from_fields != 1 || message.fields("from").count() != 1 {
        return Err((Dkim::Policy, "message has not exactly one From"));
    }
    for name in ONCE {
        let signed = names.iter().filter(|other| other == name).count();
        let present = message.fields(name).count();
        if signed > 0 && present > signed && present > 1 {
            return Err((Dkim::Policy, "a second field of a signed name is not signed"));
        }
    }
    Ok(())
}

/// Looks at a key record (RFC 6376 section 3.6.1) for this signature.
pub fn screen_key(record: &[u8], candidate: &Candidate) -> Result<(), Refusal> {
    let text = std::str::from_utf8(record).map_err(|_| (Dkim::PermError, "key record is not text"))?;
    let list = tags::strict(text).ok_or((Dkim::PermError, "key record is no valid tag list"))?;
    let tag = |name: &str| list.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let listed = |name: &str, wanted: &[&str]| {
        tag(name).is_none_or(|words| words.split(':').map(str::trim).any(|word| wanted.iter().any(|wanted| word.eq_ignore_ascii_case(wanted))))
    };
    let version_first = list.first().is_some_and(|(name, _)| *name == "v");
    if tag("v").is_some_and(|version| version != "DKIM1" || !version_first) {
        return Err((Dkim::PermError, "key record version is not DKIM1"));
    }
    let key = tags::unfolded(tag("p").ok_or((Dkim::PermError, "key record has no key"))?);
    if key.is_empty() {
        return Err((Dkim::PermError, "key is revoked"));
    }
    if !listed("h", &["sha256"]) || !listed("s", &["*", "email"]) {
        return Err((Dkim::PermError, "key is not for this use"));
    }
    let strict = tag("t").is_some_and(|flags| flags.split(':').any(|flag| flag.trim().eq_ignore_ascii_case("s")));
    if strict && candidate.identity_below {
        return Err((Dkim::PermError, "key does not allow an identity below its domain"));
    }
    let kind = tag("k").unwrap_or("rsa");
    match candidate.algorithm {
        Algorithm::Rsa if kind.eq_ignore_ascii_case("rsa") => {
            let der = STANDARD.decode(&key).or_else(|_| STANDARD_NO_PAD.decode(&key)).map_err(|_| (Dkim::PermError, "key is malformed"))?;
            match rsa_bits(&der).ok_or((Dkim::PermError, "key is malformed"))? {
                ..RSA_BITS_MIN => Err((Dkim::Policy, "RSA key is too short")),
                RSA_BITS_MIN..=RSA_BITS_MAX => Ok(()),
                _ => Err((Dkim::Policy, "RSA key is too long")),
            }
        }
        Algorithm::Ed25519 if kind.eq_ignore_ascii_case("ed25519") => Ok(()),
        Algorithm::Rsa | Algorithm::Ed25519 => Err((Dkim::PermError, "key is of another algorithm")),
    }
}

/// Bits of the modulus in a SubjectPublicKeyInfo or an RSAPublicKey (DER).
fn rsa_bits(der: &[u8]) -> Option<usize> {
    const INTEGER: u8 = 0x02;
    const BIT_STRING: u8 = 0x03;
    const SEQUENCE: u8 = 0x30;
    let (outer, _) = der_value(der, SEQUENCE)?;
    let modulus = if let Some((_, after)) = der_value(outer, SEQUENCE) {
        let (bits, _) = der_value(after, BIT_STRING)?;
        let (inner, _) = der_value(bits.strip_prefix(&[0])?, SEQUENCE)?;
        der_value(inner, INTEGER)?.0
    } else {
        der_value(outer, INTEGER)?.0
    };
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let significant = modulus.get(zeros..)?;
    let first = significant.first()?;
    Some(significant.len() * 8 - first.leading_zeros() as usize)
}

/// The content of a DER value of this tag, and what follows it.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    if *found != tag {
        return None;
    }
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}
