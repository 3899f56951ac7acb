//! Every reply that the server sends by itself. The policy's own replies (unknown recipient, spam, infected) are not here: they come in
//! as [`Reply`] values.

use super::Reply;

/// A reply whose text never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// 200 to 599.
    pub code: u16,
    /// RFC 3463 status; none for 354, which RFC 2034 leaves without.
    pub enhanced: Option<(u8, u16, u16)>,
    /// One line.
    pub text: &'static str,
}

impl From<Fixed> for Reply {
    fn from(fixed: Fixed) -> Self {
        Self { code: fixed.code, enhanced: fixed.enhanced, text: fixed.text.to_owned() }
    }
}

const fn fixed(code: u16, subject: u16, detail: u16, text: &'static str) -> Fixed {
    // The class is the code's first digit: 2, 4 or 5.
    let class = match code / 100 {
        2 => 2,
        4 => 4,
        _ => 5,
    };
    Fixed { code, enhanced: Some((class, subject, detail)), text }
}

/// To MAIL.
pub const SENDER_OK: Fixed = fixed(250, 1, 0, "Sender OK");
/// To RCPT.
pub const RECIPIENT_OK: Fixed = fixed(250, 1, 5, "Recipient OK");
/// To DATA.
pub const SEND_CONTENT: Fixed = Fixed { code: 354, enhanced: None, text: "Send the message, end with <CRLF>.<CRLF>" };
/// To RSET and NOOP.
pub const OK: Fixed = fixed(250, 0, 0, "OK");
/// To QUIT.
pub const GOODBYE: Fixed = fixed(221, 0, 0, "Goodbye");
/// To VRFY: nobody learns here who exists.
pub const NOT_VERIFIED: Fixed = fixed(252, 5, 2, "Cannot verify, send mail to find out");
/// To HELP.
pub const HELP: Fixed = fixed(214, 0, 0, "See RFC 5321");
/// To STARTTLS.
pub const START_TLS: Fixed = fixed(220, 0, 0, "Ready to start TLS");

/// A command nobody knows.
pub const UNKNOWN_COMMAND: Fixed = fixed(500, 5, 2, "Command not recognized");
/// A command line longer than `command_line_octets`.
pub const LINE_TOO_LONG: Fixed = fixed(500, 5, 2, "Command line too long");
/// A command line that ends with LF alone, or holds a CR, NUL or other control character.
pub const BAD_LINE: Fixed = fixed(500, 5, 2, "Command lines are printable characters and end with CRLF");
/// A command of an extension that was not offered.
pub const NOT_IMPLEMENTED: Fixed = fixed(502, 5, 1, "Command not implemented");
/// An argument where none belongs.
pub const NO_ARGUMENT: Fixed = fixed(501, 5, 4, "This command takes no argument");
/// EHLO or HELO without a usable name.
pub const BAD_HELLO: Fixed = fixed(501, 5, 2, "Say EHLO or HELO with your host name");
/// MAIL that is not `FROM:`.
pub const BAD_MAIL: Fixed = fixed(501, 5, 2, "Syntax: MAIL FROM:<address>");
/// RCPT that is not `TO:`.
pub const BAD_RCPT: Fixed = fixed(501, 5, 2, "Syntax: RCPT TO:<address>");
/// An address without angle brackets.
pub const NO_BRACKETS: Fixed = fixed(501, 5, 2, "The address must stand in angle brackets");
/// A sender that is no address.
pub const BAD_SENDER: Fixed = fixed(501, 1, 7, "Bad sender address syntax");
/// A recipient that is no address.
pub const BAD_RECIPIENT: Fixed = fixed(501, 1, 3, "Bad recipient address syntax");
/// `%`, `!` or `@` in a local part: a way through somebody else's relay.
pub const NO_SOURCE_ROUTE: Fixed = fixed(553, 1, 3, "Routing through %, ! or @ in the local part is not done here");
/// A UTF-8 address in a transaction without SMTPUTF8 (RFC 6531 section 3.5).
pub const NEEDS_SMTPUTF8: Fixed = fixed(553, 6, 7, "An internationalized address needs SMTPUTF8");
/// A parameter that is no parameter, or stands twice.
pub const BAD_PARAMETER: Fixed = fixed(501, 5, 4, "Bad or repeated parameter");
/// A parameter of an extension that was not offered.
pub const UNKNOWN_PARAMETER: Fixed = fixed(555, 5, 4, "Parameter not recognized or not implemented");

/// MAIL before EHLO.
pub const HELLO_FIRST: Fixed = fixed(503, 5, 1, "Say EHLO first");
/// STARTTLS after HELO.
pub const EHLO_FIRST: Fixed = fixed(503, 5, 1, "Say EHLO before STARTTLS");
/// MAIL in a transaction.
pub const SENDER_GIVEN: Fixed = fixed(503, 5, 1, "The sender is already given");
/// RCPT before MAIL.
pub const MAIL_FIRST: Fixed = fixed(503, 5, 1, "Say MAIL first");
/// DATA before RCPT.
pub const RCPT_FIRST: Fixed = fixed(503, 5, 1, "Say RCPT first");
/// DATA after every recipient was refused.
pub const NO_RECIPIENTS: Fixed = fixed(554, 5, 1, "No valid recipients");
/// STARTTLS inside TLS.
pub const TLS_ACTIVE: Fixed = fixed(503, 5, 1, "TLS is already active");
/// Anything but EHLO, STARTTLS, NOOP, RSET and QUIT where TLS is required.
pub const TLS_REQUIRED: Fixed = fixed(530, 7, 0, "Say STARTTLS first");

/// More recipients than `recipients`.
pub const TOO_MANY_RECIPIENTS: Fixed = fixed(452, 5, 3, "Too many recipients, send the rest in another transaction");
/// More tenants than `TENANTS_MAX`.
pub const TOO_MANY_TENANTS: Fixed = fixed(452, 5, 3, "Too many domains, send the rest in another transaction");
/// SIZE or the content beyond `message_octets`.
pub const MESSAGE_TOO_LARGE: Fixed = fixed(552, 3, 4, "Message exceeds the size limit");
/// A CR or LF by itself where the listener says Refuse.
pub const BARE_LINE_ENDING: Fixed = fixed(550, 5, 2, "Message has a bare CR or LF, lines must end with CRLF");
/// A NUL in the content.
pub const NUL_IN_CONTENT: Fixed = fixed(550, 6, 0, "Message has a NUL character");
/// A line longer than `content_line_octets`.
pub const CONTENT_LINE_TOO_LONG: Fixed = fixed(550, 6, 0, "Message has a line that is too long");
/// A header section longer than `header_octets`.
pub const HEADER_TOO_LARGE: Fixed = fixed(552, 3, 4, "Message header section is too large");
/// More header fields than `header_fields`.
pub const TOO_MANY_FIELDS: Fixed = fixed(552, 3, 4, "Message has too many header fields");
/// The pipeline gave no promise for every recipient, or an answer that is none.
pub const INTERNAL_ERROR: Fixed = fixed(451, 3, 0, "Internal error, try again later");

/// Octets before the banner. Closes.
pub const EARLY_TALK: Fixed = fixed(554, 5, 1, "You spoke before the greeting");
/// Octets behind STARTTLS in clear (CVE-2011-0411). Closes.
pub const TLS_INJECTION: Fixed = fixed(501, 5, 1, "Nothing may follow STARTTLS before TLS");
/// Octets behind a command whose answer must be awaited (RFC 2920 section 3.1). Closes.
pub const NOT_SYNCHRONIZED: Fixed = fixed(503, 5, 1, "You must wait for the answer to that command");
/// BDAT, whose chunk would be taken for commands. Closes.
pub const NO_CHUNKING: Fixed = fixed(502, 5, 1, "CHUNKING is not offered");
/// A browser or another protocol's client. Closes.
pub const NOT_SMTP: Fixed = fixed(554, 5, 1, "This is an SMTP server");
/// A line that never ends. Closes.
pub const ENDLESS_LINE: Fixed = fixed(421, 7, 0, "Command line without end, closing");
/// More errors than `errors`. Closes.
pub const TOO_MANY_ERRORS: Fixed = fixed(421, 7, 0, "Too many errors, closing");
/// More refused recipients than `recipients_refused`. Closes.
pub const TOO_MANY_REFUSED: Fixed = fixed(421, 7, 0, "Too many refused recipients, closing");
/// More RCPT commands than the limit allows for. Closes.
pub const RECIPIENT_FLOOD: Fixed = fixed(421, 7, 0, "Too many recipients after the limit, closing");
/// More commands that carry no mail than `idle_commands`. Closes.
pub const TOO_MANY_COMMANDS: Fixed = fixed(421, 7, 0, "Too many commands without mail, closing");
/// More messages than `messages_per_session`. Closes.
pub const TOO_MANY_MESSAGES: Fixed = fixed(421, 7, 0, "Enough messages for one connection, connect again");
/// No command within `command_ms`. Closes.
pub const COMMAND_TIMEOUT: Fixed = fixed(421, 4, 2, "No command for too long, closing");
/// No content within `content_idle_ms`. Closes.
pub const CONTENT_TIMEOUT: Fixed = fixed(421, 4, 2, "No content for too long, closing");
/// Content slower than `content_octets_per_second`. Closes.
pub const TOO_SLOW: Fixed = fixed(421, 4, 2, "Content comes too slowly, closing");
/// A transaction longer than `transaction_ms`. Closes.
pub const TRANSACTION_TIMEOUT: Fixed = fixed(421, 4, 2, "Transaction takes too long, closing");
/// A session longer than `session_ms`. Closes.
pub const SESSION_TIMEOUT: Fixed = fixed(421, 4, 2, "Session takes too long, connect again");
/// Drain. Closes.
pub const SHUTTING_DOWN: Fixed = fixed(421, 3, 2, "Shutting down, connect again");

/// Every fixed reply, for the test and the reference page.
pub const ALL: &[Fixed] = &[
    SENDER_OK,
    RECIPIENT_OK,
    SEND_CONTENT,
    OK,
    GOODBYE,
    NOT_VERIFIED,
    HELP,
    START_TLS,
    UNKNOWN_COMMAND,
    LINE_TOO_LONG,
    BAD_LINE,
    NOT_IMPLEMENTED,
    NO_ARGUMENT,
    BAD_HELLO,
    BAD_MAIL,
    BAD_RCPT,
    NO_BRACKETS,
    BAD_SENDER,
    BAD_RECIPIENT,
    NO_SOURCE_ROUTE,
    NEEDS_SMTPUTF8,
    BAD_PARAMETER,
    UNKNOWN_PARAMETER,
    HELLO_FIRST,
    EHLO_FIRST,
    SENDER_GIVEN,
    MAIL_FIRST,
    RCPT_FIRST,
    NO_RECIPIENTS,
    TLS_ACTIVE,
    TLS_REQUIRED,
    TOO_MANY_RECIPIENTS,
    TOO_MANY_TENANTS,
    MESSAGE_TOO_LARGE,
    BARE_LINE_ENDING,
    NUL_IN_CONTENT,
    CONTENT_LINE_TOO_LONG,
    HEADER_TOO_LARGE,
    TOO_MANY_FIELDS,
    INTERNAL_ERROR,
    EARLY_TALK,
    TLS_INJECTION,
    NOT_SYNCHRONIZED,
    NO_CHUNKING,
    NOT_SMTP,
    ENDLESS_LINE,
    TOO_MANY_ERRORS,
    TOO_MANY_REFUSED,
    RECIPIENT_FLOOD,
    TOO_MANY_COMMANDS,
    TOO_MANY_MESSAGES,
    COMMAND_TIMEOUT,
    CONTENT_TIMEOUT,
    TOO_SLOW,
    TRANSACTION_TIMEOUT,
    SESSION_TIMEOUT,
    SHUTTING_DOWN,
];

/// The banner.
pub fn banner(hostname: &str) -> Reply {
    Reply { code: 220, enhanced: None, text: format!("{hostname} ESMTP") }
}

/// To HELO.
pub fn hello(hostname: &str) -> Reply {
    Reply { code: 250, enhanced: None, text: hostname.to_owned() }
}

/// To EHLO. `size_octets` is announced by SIZE (RFC 1870), `start_tls` says whether STARTTLS is offered.
pub fn extended_hello(hostname: &str, size_octets: u64, start_tls: bool) -> Reply {
    let tls = if start_tls { "\nSTARTTLS" } else { "" };
    let text = format!("{hostname}\nPIPELINING\nSIZE {size_octets}{tls}\nENHANCEDSTATUSCODES\n8BITMIME\nSMTPUTF8");
    Reply { code: 250, enhanced: None, text }
}

/// To the end of data. Only the server machine says it, and only for a promise that covers every recipient.
pub(in crate::smtp) fn accepted(text: String) -> Reply {
    Reply::new(250, (2, 0, 0), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_is_one_short_line_with_a_status_of_its_class() {
        for fixed in ALL {
            let mut out = Vec::new();
            Reply::from(*fixed).encode(&mut out);
            let line = String::from_utf8(out).expect("ASCII");
            assert!(line.len() <= 80 && line.matches("\r\n").count() == 1, "{line}");
            match fixed.enhanced {
                Some((class, ..)) => assert!(u16::from(class) == fixed.code / 100 && line.starts_with(&format!("{} {class}.", fixed.code)), "{line}"),
                None => assert_eq!(fixed.code, 354, "{line}"),
            }
        }
        for (index, one) in ALL.iter().enumerate() {
            assert!(ALL.iter().skip(index + 1).all(|other| other.text != one.text), "two replies say {:?}", one.text);
        }
    }
}
