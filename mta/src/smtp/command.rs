//! Commands (RFC 5321 section 4.1.1 and the extensions offered): octets of one line become a command, or the reply that says why not.
//! Sequence and policy are not looked at here.

use memchr::memchr2;

use super::address::{Address, AddressError, Path, parse_path};
use super::limits::HELLO_OCTETS_MAX;
use super::reply::Fixed;
use super::reply::table as say;

/// MAIL with the parameters of the extensions that are offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailCommand {
    /// `None` is the null reverse-path.
    pub from: Option<Address>,
    /// SIZE, octets as claimed (RFC 1870).
    pub size: Option<u64>,
    /// BODY=8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
}

/// RCPT's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientPath {
    /// A mailbox.
    Mailbox(Address),
    /// `<postmaster>` as written: that of this host.
    Postmaster(String),
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// EHLO with the client's name.
    Ehlo(String),
    /// HELO with the client's name.
    Helo(String),
    /// MAIL.
    Mail {
        /// What it says.
        mail: MailCommand,
        /// Whether there were parameters, which only ESMTP has.
        parameters: bool,
    },
    /// RCPT.
    Rcpt(RecipientPath),
    /// DATA.
    Data,
    /// RSET.
    Rset,
    /// NOOP.
    Noop,
    /// QUIT.
    Quit,
    /// VRFY.
    Vrfy,
    /// HELP.
    Help,
    /// STARTTLS.
    StartTls,
    /// BDAT, which is not offered: its chunk follows.
    Bdat,
    /// The first line of another protocol, such as an HTTP request.
    Foreign,
}

/// Parses a line without its line end.
///
/// # Errors
/// The reply to give.
pub fn parse(line: &[u8]) -> Result<Command, Fixed> {
    if line.iter().any(|&c| (c < b' ' && c != b'\t') || c == 0x7f) {
        return Err(say::BAD_LINE);
    }
    let line = line.trim_ascii_end();
    let (verb, argument) = line.split_at(memchr2(b' ', b'\t', line).unwrap_or(line.len()));
    let argument = argument.trim_ascii_start();
    let alone = |command| if argument.is_empty() { Ok(command) } else { Err(say::NO_ARGUMENT) };
    match verb.to_ascii_uppercase().as_slice() {
        b"EHLO" => hello(argument).map(Command::Ehlo),
        b"HELO" => hello(argument).map(Command::Helo),
        b"MAIL" => mail(argument),
        b"RCPT" => recipient(argument),
        b"DATA" => alone(Command::Data),
        b"RSET" => alone(Command::Rset),
        b"QUIT" => alone(Command::Quit),
        b"STARTTLS" => alone(Command::StartTls),
        b"NOOP" => Ok(Command::Noop),
        b"VRFY" => Ok(Command::Vrfy),
        b"HELP" => Ok(Command::Help),
        b"BDAT" => Ok(Command::Bdat),
        b"GET" | b"POST" | b"PUT" | b"HEAD" | b"CONNECT" | b"OPTIONS" => Ok(Command::Foreign),
        b"AUTH" | b"ETRN" | b"EXPN" | b"TURN" | b"ATRN" | b"BURL" | b"SEND" | b"SOML" | b"SAML" => Err(say::NOT_IMPLEMENTED),
        _ => Err(say::UNKNOWN_COMMAND),
    }
}

/// Any one word: what clients call themselves is often no domain.
fn hello(argument: &[u8]) -> Result<String, Fixed> {
    let fits = (1..=HELLO_OCTETS_MAX).contains(&argument.len()) && argument.iter().all(u8::is_ascii_graphic);
    let name = std::str::from_utf8(argument).map_err(|_| say::BAD_HELLO)?;
    if fits { Ok(name.to_owned()) } else { Err(say::BAD_HELLO) }
}

/// Takes `FROM:` or `TO:` off, in any case, and blanks behind it, which RFC 5321 section 3.3 forbids and many clients send.
fn after_keyword<'line>(argument: &'line [u8], keyword: &[u8]) -> Option<&'line [u8]> {
    let (start, rest) = argument.split_at_checked(keyword.len())?;
    start.eq_ignore_ascii_case(keyword).then(|| rest.trim_ascii_start())
}

/// Splits what follows a path into parameters; there must be a blank between.
fn parameters(rest: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Fixed> {
    if rest.first().is_some_and(|&c| c != b' ' && c != b'\t') {
        return Err(say::BAD_PARAMETER);
    }
    Ok(rest.split(|&c| c == b' ' || c == b'\t').filter(|word| !word.is_empty()))
}

/// `KEYWORD` or `KEYWORD=value` (RFC 5321 section 4.1.2).
fn parameter(word: &[u8]) -> Result<(Vec<u8>, Option<&[u8]>), Fixed> {
    let mut halves = word.splitn(2, |&c| c == b'=');
    let (keyword, value) = (halves.next().unwrap_or_default(), halves.next());
    let named = keyword.first().is_some_and(u8::is_ascii_alphanumeric) && keyword.iter().all(|&c| c.is_ascii_alphanumeric() || c == b'-');
    let valued = value.is_none_or(|value| !value.is_empty() && value.iter().all(|&c| c != b'=' && c >= 0x21));
    if named && valued { Ok((keyword.to_ascii_uppercase(), value)) } else { Err(say::BAD_PARAMETER) }
}

fn mail(argument: &[u8]) -> Result<Command, Fixed> {
    let rest = after_keyword(argument, b"FROM:").ok_or(say::BAD_MAIL)?;
    let (path, rest) = parse_path(rest).map_err(|error| match error {
        AddressError::NoBrackets => say::NO_BRACKETS,
        _ => say::BAD_SENDER,
    })?;
    let from = match path {
        Path::Null => None,
        Path::Mailbox(address) => Some(address),
        Path::Postmaster(_) => return Err(say::BAD_SENDER),
    };
    let mut mail = MailCommand { from, size: None, eight_bit: false, smtputf8: false };
    let mut body_given = false;
    let mut any = false;
    for word in parameters(rest)? {
        any = true;
        let (keyword, value) = parameter(word)?;
        let repeated = match (keyword.as_slice(), value) {
            (b"SIZE", Some(digits)) => mail.size.replace(size(digits)?).is_some(),
            (b"SMTPUTF8", None) => std::mem::replace(&mut mail.smtputf8, true),
            (b"BODY", Some(body)) if body.eq_ignore_ascii_case(b"7BIT") => std::mem::replace(&mut body_given, true),
            (b"BODY", Some(body)) if body.eq_ignore_ascii_case(b"8BITMIME") => {
                mail.eight_bit = true;
                std::mem::replace(&mut body_given, true)
            }
            (b"SIZE" | b"BODY", None) | (b"SMTPUTF8", Some(_)) => true,
            _ => return Err(say::UNKNOWN_PARAMETER),
        };
        if repeated {
            return Err(say::BAD_PARAMETER);
        }
    }
    if !mail.smtputf8 && mail.from.as_ref().is_some_and(|address| !address.is_ascii()) {
        return Err(say::NEEDS_SMTPUTF8);
    }
    Ok(Command::Mail { mail, parameters: any })
}

/// One to twenty digits; more than fits is more than any limit.
fn size(digits: &[u8]) -> Result<u64, Fixed> {
    if !matches!(digits.len(), 1..=20) || !digits.iter().all(u8::is_ascii_digit) {
        return Err(say::BAD_PARAMETER);
    }
    Ok(digits.iter().fold(0u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

fn recipient(argument: &[u8]) -> Result<Command, Fixed> {
    let rest = after_keyword(argument, b"TO:").ok_or(say::BAD_RCPT)?;
    let (path, rest) = parse_path(rest).map_err(|error| match error {
        AddressError::NoBrackets => say::NO_BRACKETS,
        _ => say::BAD_RECIPIENT,
    })?;
    let path = match path {
        Path::Null => return Err(say::BAD_RECIPIENT),
        Path::Mailbox(address) => RecipientPath::Mailbox(address),
        Path::Postmaster(written) => RecipientPath::Postmaster(written),
    };
    if let Some(word) = parameters(rest)?.next() {
        parameter(word)?;
        return Err(say::UNKNOWN_PARAMETER);
    }
    Ok(Command::Rcpt(path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    fn mail_of(from: &str) -> MailCommand {
        MailCommand { from: (!from.is_empty()).then(|| address(from)), size: None, eight_bit: false, smtputf8: false }
    }

    #[test]
    fn takes_commands() {
        let mail = |mail, parameters| Command::Mail { mail, parameters };
        let rcpt = |text: &str| Command::Rcpt(RecipientPath::Mailbox(address(text)));
        let long = "h".repeat(HELLO_OCTETS_MAX);
        let ehlo_long = format!("EHLO {long}");
        let cases: &[(&str, Command)] = &[
            ("EHLO mx.example", Command::Ehlo("mx.example".into())),
            ("ehlo  [192.0.2.1] ", Command::Ehlo("[192.0.2.1]".into())),
            ("HELO a_b!", Command::Helo("a_b!".into())),
            (&ehlo_long, Command::Ehlo(long)),
            ("MAIL FROM:<>", mail(mail_of(""), false)),
            ("mail from:<a@b.example>", mail(mail_of("a@b.example"), false)),
            ("MAIL FROM: <a@b.example>", mail(mail_of("a@b.example"), false)),
            ("MAIL FROM:<@x.example:a@b.example>", mail(mail_of("a@b.example"), false)),
            ("MAIL FROM:<> SIZE=10", mail(MailCommand { size: Some(10), ..mail_of("") }, true)),
            (
                "MAIL FROM:<>  size=99999999999999999999\tBODY=8bitmime ",
                mail(MailCommand { size: Some(u64::MAX), eight_bit: true, ..mail_of("") }, true),
            ),
            ("MAIL FROM:<> BODY=7BIT", mail(mail_of(""), true)),
            ("MAIL FROM:<関@例え.example> SMTPUTF8", mail(MailCommand { smtputf8: true, ..mail_of("関@例え.example") }, true)),
            ("RCPT TO:<a@b.example>", rcpt("a@b.example")),
            ("RCPT TO: <a@b.example>", rcpt("a@b.example")),
            ("RCPT  to:\t<\"a b\"@b.example> ", rcpt("\"a b\"@b.example")),
            ("RCPT TO:<@x.example,@y.example:a@b.example>", rcpt("a@b.example")),
            ("RCPT TO:<関@b.example>", rcpt("関@b.example")),
            ("RCPT TO:<Postmaster>", Command::Rcpt(RecipientPath::Postmaster("Postmaster".into()))),
            ("data", Command::Data),
            ("DATA ", Command::Data),
            ("RSET", Command::Rset),
            ("NOOP", Command::Noop),
            ("NOOP anything", Command::Noop),
            ("QUIT", Command::Quit),
            ("VRFY a", Command::Vrfy),
            ("HELP MAIL", Command::Help),
            ("StartTLS", Command::StartTls),
            ("BDAT 10 LAST", Command::Bdat),
            ("GET / HTTP/1.1", Command::Foreign),
            ("POST / HTTP/1.1", Command::Foreign),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line.as_bytes()).as_ref(), Ok(expected), "{line}");
        }
    }

    #[test]
    fn answers_what_is_no_command() {
        let long = format!("EHLO {}", "h".repeat(HELLO_OCTETS_MAX + 1));
        let cases: &[(&[u8], Fixed)] = &[
            (b"", say::UNKNOWN_COMMAND),
            (b" EHLO x", say::UNKNOWN_COMMAND),
            (b"XYZZY", say::UNKNOWN_COMMAND),
            (b"\xff\xfe", say::UNKNOWN_COMMAND),
            (b"NOOP\0", say::BAD_LINE),
            (b"MAIL FROM:<a@b.example>\rRCPT TO:<c@d.example>", say::BAD_LINE),
            (b"\x16\x03\x01\x02", say::BAD_LINE),
            (b"EHLO", say::BAD_HELLO),
            (b"EHLO ", say::BAD_HELLO),
            (b"EHLO a b", say::BAD_HELLO),
            (b"EHLO a\xffb", say::BAD_HELLO),
            ("EHLO 例え".as_bytes(), say::BAD_HELLO),
            (long.as_bytes(), say::BAD_HELLO),
            (b"MAIL", say::BAD_MAIL),
            (b"MAIL <a@b.example>", say::BAD_MAIL),
            (b"MAIL TO:<a@b.example>", say::BAD_MAIL),
            (b"MAIL FROM <a@b.example>", say::BAD_MAIL),
            (b"MAIL FROM:a@b.example", say::NO_BRACKETS),
            (b"MAIL FROM:", say::NO_BRACKETS),
            (b"MAIL FROM:<a@b.example", say::NO_BRACKETS),
            (b"MAIL FROM:<a>", say::BAD_SENDER),
            (b"MAIL FROM:<postmaster>", say::BAD_SENDER),
            (b"MAIL FROM:<a\xff@b.example>", say::BAD_SENDER),
            ("MAIL FROM:<関@b.example>".as_bytes(), say::NEEDS_SMTPUTF8),
            (b"MAIL FROM:<>SIZE=1", say::BAD_PARAMETER),
            (b"MAIL FROM:<> SIZE", say::BAD_PARAMETER),
            (b"MAIL FROM:<> SIZE=", say::BAD_PARAMETER),
            (b"MAIL FROM:<> SIZE=1x", say::BAD_PARAMETER),
            (b"MAIL FROM:<> SIZE=-1", say::BAD_PARAMETER),
            (b"MAIL FROM:<> SIZE=1 SIZE=1", say::BAD_PARAMETER),
            (b"MAIL FROM:<> SIZE=123456789012345678901", say::BAD_PARAMETER),
            (b"MAIL FROM:<> SMTPUTF8=1", say::BAD_PARAMETER),
            (b"MAIL FROM:<> SMTPUTF8 SMTPUTF8", say::BAD_PARAMETER),
            (b"MAIL FROM:<> BODY=7BIT BODY=8BITMIME", say::BAD_PARAMETER),
            (b"MAIL FROM:<> =x", say::BAD_PARAMETER),
            (b"MAIL FROM:<> x=y=z", say::BAD_PARAMETER),
            (b"MAIL FROM:<> BODY=BINARYMIME", say::UNKNOWN_PARAMETER),
            (b"MAIL FROM:<> RET=HDRS", say::UNKNOWN_PARAMETER),
            (b"MAIL FROM:<> ENVID=1", say::UNKNOWN_PARAMETER),
            (b"MAIL FROM:<> AUTH=<>", say::UNKNOWN_PARAMETER),
            (b"RCPT", say::BAD_RCPT),
            (b"RCPT FROM:<a@b.example>", say::BAD_RCPT),
            (b"RCPT TO:a@b.example", say::NO_BRACKETS),
            (b"RCPT TO: a@b.example", say::NO_BRACKETS),
            (b"RCPT TO:<>", say::BAD_RECIPIENT),
            (b"RCPT TO:<a>", say::BAD_RECIPIENT),
            (b"RCPT TO:<a@>", say::BAD_RECIPIENT),
            (b"RCPT TO:<a@b.example> NOTIFY=NEVER", say::UNKNOWN_PARAMETER),
            (b"RCPT TO:<a@b.example> ORCPT=rfc822;a@b.example", say::UNKNOWN_PARAMETER),
            (b"RCPT TO:<a@b.example>x", say::BAD_PARAMETER),
            (b"RCPT TO:<a@b.example> <c@d.example>", say::BAD_PARAMETER),
            (b"DATA now", say::NO_ARGUMENT),
            (b"RSET x", say::NO_ARGUMENT),
            (b"QUIT x", say::NO_ARGUMENT),
            (b"STARTTLS x", say::NO_ARGUMENT),
            (b"AUTH PLAIN AGEAYg==", say::NOT_IMPLEMENTED),
            (b"EXPN list", say::NOT_IMPLEMENTED),
            (b"ETRN example.com", say::NOT_IMPLEMENTED),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line), Err(*expected), "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_command_or_a_reply(line: Vec<u8>, start in 0usize..5) {
            let line = [[b"".as_slice(), b"MAIL FROM:<", b"RCPT TO:<a@b> ", b"MAIL FROM:<> ", b"EHLO "][start], &line].concat();
            if let Err(reply) = parse(&line) {
                prop_assert!(reply.code >= 500);
            }
        }
    }
}
