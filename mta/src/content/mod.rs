//! What is inside a message: file types, archives, macros, structural evidence of spam. Pure, bounded, never panics on any bytes.
//!
//! [`walk`] goes through every part of a message and every member of the archives in it, depth first, one decoded stream at a time, and shows each to a
//! [`Visitor`] exactly once. At most one stream per nesting level is in memory. It reads no clock: the visitor is asked whether to go on.
//!
//! # What counts as what
//!
//! - **Executable content** (by name or by content, attached or in an archive) is *evidence*, never malware: tenants who exchange programs exist, and a name or
//!   a type proves nothing. [`Inventory::blocked_by`] lets a policy refuse types. Only a rule that knows the bytes makes malware.
//! - **Encrypted**: what needs a password to be read (ZIP with any encryption, 7z, RAR, Office). PDF is not: most "encrypted" PDF open without a password.
//! - **Limits exceeded**: a bomb, a nesting or number beyond [`Limits`], a compression method or an *archive type* that this build does not open. A file type that is no
//!   archive is scanned as it is, whatever it is.
//! - **Malformed**: something that says it is an archive and cannot be read to its end. What can be read of it is shown to the visitor first.

pub mod kind;
pub mod names;
pub mod spam;

mod cpio;
mod embedded;
mod evidence;
mod ole;
mod rar;
pub mod rules;
mod seven;
mod stream;
mod tar;
mod vba;
mod walker;
mod zip;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

pub use kind::Kind;

use crate::message::Message;
use crate::verdict::{Evidence, Unscannable};

/// Bounds of looking inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Archives within archives; the message's own part is level 0. Default 5.
    pub depth: usize,
    /// Members of all archives of a message together. Default 10,000.
    pub entries: usize,
    /// Bytes unpacked from all archives of a message together. Default 64 MiB.
    pub output_bytes: usize,
    /// Unpacked bytes for each packed byte of a stream. Default 100.
    pub ratio: usize,
    /// Below this size the ratio does not matter: small files of spaces are no bombs. Default 1 MiB.
    pub ratio_floor_bytes: usize,
    /// Names kept in the inventory. Default 2,000.
    pub names: usize,
    /// Memory for a decoder's dictionary. Default 32 MiB.
    pub dictionary_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 5, entries: 10_000, output_bytes: 64 << 20, ratio: 100, ratio_floor_bytes: 1 << 20, names: 2_000, dictionary_bytes: 32 << 20 }
    }
}

/// One decoded stream.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Its name, if it has one.
    pub name: Option<&'a str>,
    /// 0: a part of the message; above: so many archives deep.
    pub depth: usize,
    /// What it is.
    pub kind: Kind,
    /// Its bytes; of a broken stream, those that could be read.
    pub content: &'a [u8],
}

/// Who looks at the streams.
pub trait Visitor {
    /// One stream. `Break` ends the walk.
    fn item(&mut self, item: &Item<'_>) -> ControlFlow<()>;

    /// Asked before each member and at least once for each 64 KiB unpacked: `false` ends the walk with [`Inventory::limits_exceeded`].
    fn proceed(&mut self) -> bool {
        true
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Names of attachments and archive members, in the order of the walk, each at most 255 characters; where headers of an archive disagree, both.
    pub names: Vec<String>,
    /// Types found.
    pub types: BTreeSet<Kind>,
    /// Something needs a password.
    pub encrypted: bool,
    /// Something was not looked into for its size, number, depth, time or type.
    pub limits_exceeded: bool,
    /// Something is broken.
    pub malformed: bool,
    /// Structural signs of malware, each name once.
    pub evidence: Vec<Evidence>,
    /// Members unpacked.
    pub entries: usize,
    /// Bytes unpacked.
    pub output_bytes: usize,
}

impl Inventory {
    /// Why the message could not be seen whole. An encrypted archive comes last: a policy may let those pass, and one beside a bomb must not carry it through.
    pub fn unscannable(&self) -> Option<Unscannable> {
        if self.limits_exceeded {
            Some(Unscannable::LimitsExceeded)
        } else if self.malformed {
            Some(Unscannable::Malformed)
        } else if self.encrypted {
            Some(Unscannable::Encrypted)
        } else {
            None
        }
    }

    /// The first entry of a list of extensions (with or without dot, any case) that a name or a type here falls under.
    pub fn blocked_by<'a>(&self, block_types: &'a [String]) -> Option<&'a str> {
        let found: BTreeSet<String> = self
            .names
            .iter()
            .filter_map(|name| names::extension(name))
            .chain(self.types.iter().filter_map(|kind| kind.extension().map(str::to_owned)))
            .collect();
        block_types.iter().map(String::as_str).find(|blocked| found.contains(&blocked.trim_start_matches('.').to_lowercase()))
    }
}

/// Shows every stream of a message to a visitor.
pub fn walk(message: &Message, limits: &Limits, visitor: &mut dyn Visitor) -> Inventory {
    walker::Walker::new(*limits, visitor).message(message)
}

/// Whether a walk finds more than the parts of the message themselves, or has to say that it cannot. Cheap beside a walk.
pub fn has_insides(message: &Message) -> bool {
    walker::has_insides(message)
}

/// What is inside, without a visitor.
pub fn inventory(message: &Message, limits: &Limits) -> Inventory {
    struct Nobody;
    impl Visitor for Nobody {
        fn item(&mut self, _: &Item<'_>) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
    }
    walk(message, limits, &mut Nobody)
}
