//! The table of signs: what each says, in thousandths of a point, and why.
//!
//! Points are modest: no single sign reaches the threshold of 5 points, so that one odd habit never makes spam of somebody's mail. They were set on one half of the public
//! SpamAssassin corpus, by how often each is met in spam and in other mail there, and by what is known to be in use today; signs that the old corpus cannot judge
//! (today's tricks, the envelope) have a careful value. Words are not judged: that is for engines that learn, and a list of words would be right for one language only.

/// A sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sign {
    /// Its name.
    pub name: &'static str,
    /// Thousandths of a point.
    pub milli: i64,
    /// Why it is one.
    pub why: &'static str,
}

macro_rules! signs {
    ($($name:ident $milli:literal $why:literal;)+) => {
        $(#[doc = $why] pub(super) const $name: &Sign = &Sign { name: stringify!($name), milli: $milli, why: $why };)+
        /// Every sign.
        pub const ALL: &[&Sign] = &[$($name),+];
    };
}

signs! {
    // Header.
    MISSING_DATE 1200 "every mail program writes a Date (RFC 5322 section 3.6 demands it)";
    INVALID_DATE 2300 "a Date that is none: written by a program that never read the standard";
    DATE_ZONE_IMPOSSIBLE 2300 "a Date in a time zone that is nowhere (beyond -1200 to +1400)";
    DATE_WITHOUT_ZONE 1000 "a Date without a time zone, which the standard demands";
    DATE_IN_FUTURE 1800 "a Date more than a day ahead: keeps the mail on top of the list";
    DATE_IN_PAST 600 "a Date more than four days back: a clock that nobody looks at, or an old mail sent again";
    MISSING_MESSAGE_ID 1000 "mail programs and submission servers write a Message-ID";
    BROKEN_MESSAGE_ID 1500 "a Message-ID without an @ or with spaces";
    MISSING_FROM 2500 "no From, or none with an address";
    SEVERAL_FROM 2000 "more than one From field: readers show different ones";
    DUPLICATE_FIELD 800 "a field twice that may stand once";
    BROKEN_HEADER 1200 "a line of the header that is no field";
    NUL_BYTE 1500 "a NUL byte";
    RAW_BYTES_IN_HEADER 1300 "bytes beyond ASCII in Subject or From without encoding and without SMTPUTF8";
    FROM_NAME_HAS_OTHER_ADDRESS 2500 "the display name shows an address of another domain than the real one";
    FROM_DOMAIN_MIXES_SCRIPTS 3000 "a label of the From domain mixes scripts that look alike (Latin with Cyrillic or Greek)";
    INVISIBLE_CHARACTERS 1800 "invisible characters in Subject or in the name in From: they break up words for filters only";
    FROM_DIGITS 800 "a long number in the local part of From";
    TO_IS_FROM 1000 "the only address in To is the one in From";
    NO_RECIPIENT_FIELD 700 "neither To nor Cc, or undisclosed recipients: usual for bulk, seldom for letters";
    MANY_RECIPIENTS 1000 "more than 20 recipients of one message here, none of them in To or Cc";
    SUBJECT_MISSING 500 "no Subject, or an empty one";
    SUBJECT_ALL_CAPITALS 1900 "a Subject of Latin capitals only";
    SUBJECT_SHOUTS 1200 "more than one exclamation mark, or an exclamation mark with a question or dollar mark in the Subject";
    SUBJECT_TRAILING_CODE 2800 "many spaces and then a code at the end of the Subject: makes each copy different";
    FORGED_REPLY 200 "Re: without References and In-Reply-To";
    UNKNOWN_CHARSET 1700 "a charset that does not exist";
    FORGED_OUTLOOK 2300 "claims to be Outlook, and lacks what every Outlook wrote";
    OUTLOOK_ID_WITHOUT_OUTLOOK 2200 "a Message-ID in the form that only Outlook writes, from a program that is none";
    PRIORITY_WITHOUT_OUTLOOK 1000 "the priority field of Outlook without the others that it writes";
    URGENT 800 "the highest priority";
    NO_RECEIVED 300 "no Received field: the first server that it met is ours";

    // Envelope.
    HELO_IS_OURS 2500 "the client greets with the domain of a recipient";
    HELO_IS_BARE_ADDRESS 1500 "the client greets with an address without brackets";
    HELO_OTHER_ADDRESS 1200 "the client greets with the literal of another address";
    HELO_NOT_QUALIFIED 800 "the client greets with a name without a dot";
    SENDER_IS_RECIPIENT 1500 "envelope sender and recipient are the same address";
    FROM_IS_OUR_DOMAIN 1000 "From has the domain of a recipient, and the mail comes from outside";

    // Structure.
    BOUNDARY_MISSING 1500 "a multipart whose boundary never occurs";
    BROKEN_ENCODING 800 "a broken transfer encoding";
    TOO_MANY_PARTS 1500 "more parts or deeper nesting than any honest mail has";
    DOUBLE_EXTENSION 3000 "an attachment whose name hides what it is: a harmless extension before one that runs";
    DIRECTION_OVERRIDE_NAME 3000 "an attachment whose name turns its direction to hide its extension";
    RUNNABLE_ATTACHMENT 1500 "an attachment that runs when opened";
    HTML_ONLY 1300 "HTML without a text alternative";
    HTML_WITHOUT_CHARSET 900 "HTML that names no charset: programs of people name one";
    ENCODED_ASCII_TEXT 1500 "base64 over text that is plain ASCII: only filters are kept from reading it";
    EMPTY_ALTERNATIVE 1500 "a text alternative without text beside HTML with text";
    ALTERNATIVES_DIFFER 1200 "text and HTML alternatives that have hardly a word in common";

    // Body.
    HTML_HIDDEN_TEXT 1500 "more hidden than visible text";
    HTML_SPLIT_WORDS 2500 "comments within words";
    HTML_FORM 800 "a form in a mail";
    HTML_SCRIPT 1000 "a script in a mail: no mail program runs it";
    HTML_BIG_COLOURED 1600 "large coloured type";
    URL_BARE_ADDRESS 2200 "a link to an address instead of a name";
    URL_WITH_USER 2000 "a link with a user part, which looks like a host name";
    URL_ONLY 500 "a link and next to no text";
    IMAGE_ONLY 1500 "a picture and next to no text";
    LINK_SHOWS_OTHER_HOST 800 "the text of a link is a URL of another site than the link";
    BODY_CAPITALS 1200 "mostly Latin capitals";
    BODY_INVISIBLE_CHARACTERS 1500 "many invisible characters within words";
    BODY_SHOUTS 1200 "many exclamation marks for its length";
    EMPTY_MESSAGE 800 "neither text nor attachment";
}

/// Signs of one cause, a program that writes hardly any header: they come together, so that together they say less than their sum.
pub(super) const ABSENCES: &[&Sign] = &[MISSING_DATE, MISSING_MESSAGE_ID, MISSING_FROM, NO_RECIPIENT_FIELD, SUBJECT_MISSING, NO_RECEIVED];
/// The most that they say together, thousandths of a point: a bare message of a script is no spam for that.
pub(super) const ABSENCES_MILLI_MAX: i64 = 4_000;
