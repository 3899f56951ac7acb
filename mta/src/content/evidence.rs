//! Signs of malware in structure: one table. They are evidence of unwanted mail, never proof of malware.

use crate::verdict::Evidence;

/// A sign: its name and what it says, in decibans (10: ten to one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sign {
    name: &'static str,
    decibans: i32,
}

impl Sign {
    pub(super) fn evidence(self) -> Evidence {
        Evidence { name: self.name.to_owned(), decibans: self.decibans }
    }
}

macro_rules! signs {
    ($($(#[$meta:meta])* $name:ident = $decibans:literal;)+) => {
        $($(#[$meta])* pub(super) const $name: Sign = Sign { name: stringify!($name), decibans: $decibans };)+
    };
}

signs! {
    /// A program or a file that runs when opened, attached as it is: rare among people, and refused by most mail programs.
    EXECUTABLE_ATTACHED = 8;
    /// The same within an archive: the usual way around the above, also for honest senders.
    EXECUTABLE_IN_ARCHIVE = 8;
    /// `invoice.pdf.exe`: nobody names a file like that in good faith.
    DOUBLE_EXTENSION = 20;
    /// Characters that turn the direction of text so that `exe` reads as something else.
    DIRECTION_OVERRIDE_NAME = 20;
    /// A program by content under a name that does not say so.
    DISGUISED_EXECUTABLE = 15;
    /// A member that would be written outside of the directory it is unpacked to.
    ESCAPING_MEMBER_NAME = 8;
    /// The two directories of a ZIP tell different stories: readers will not agree on what is in it.
    ARCHIVE_HEADERS_DISAGREE = 10;
    /// An archive behind the content of another type (a picture, a document): a polyglot. Programs that unpack themselves are not counted.
    ARCHIVE_BEHIND_OTHER_TYPE = 8;
    /// A document with macros.
    MACRO_DOCUMENT = 4;
    /// Macros that run by themselves when the document is opened.
    MACRO_AUTO_RUN = 6;
    /// Macros that start programs, fetch from the network or call the system.
    MACRO_SUSPICIOUS = 6;
    /// A program or script embedded in a document.
    EMBEDDED_EXECUTABLE = 12;
}
