//! The walk: depth, budget and what follows from each type. The formats are in their own files.

use std::io::Read;
use std::ops::ControlFlow;

use super::evidence::{self, Sign};
use super::{Inventory, Item, Kind, Limits, Visitor, names};
use crate::message::{Defect, Message, Part};

/// Names longer than this are cut.
const NAME_CHARS_MAX: usize = 255;
/// How much is unpacked before the visitor is asked whether to go on.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes that may be read for each one that may be unpacked.
const INPUT_FACTOR: usize = 4;
/// Different signs kept; the table has fewer, so this is reached only if it grows.
const EVIDENCE_MAX: usize = 64;

/// Why a stream was not seen whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Encrypted,
    LimitsExceeded,
    Malformed,
}

/// The state of one walk.
pub(super) struct Walker<'v> {
    pub(super) limits: Limits,
    pub(super) inventory: Inventory,
    stopped: bool,
    /// Bytes read by decoders that may read the same bytes again.
    input_bytes: usize,
    visitor: &'v mut dyn Visitor,
}

impl<'v> Walker<'v> {
    pub(super) fn new(limits: Limits, visitor: &'v mut dyn Visitor) -> Self {
        Self { limits, inventory: Inventory::default(), stopped: false, input_bytes: 0, visitor }
    }

    /// Walks a message.
    pub(super) fn message(mut self, message: &Message) -> Inventory {
        self.parts(message, 0);
        self.inventory
    }

    fn parts(&mut self, message: &Message, depth: usize) {
        if is_cut(message) {
            self.note(Trouble::LimitsExceeded);
        }
        for part in &message.parts {
            if !self.proceed() {
                return;
            }
            self.part(part, depth);
        }
    }

    fn part(&mut self, part: &Part, depth: usize) {
        let kind = Kind::of(&part.content);
        if let Some(name) = &part.file_name {
            self.judge_name(name, kind, depth);
        } else {
            self.judge_content("", kind, depth);
        }
        for name in &part.other_file_names {
            self.judge_name(name, kind, depth);
        }
        if part.container {
            // Its parts follow, and showing each level again would be quadratic in the depth.
            return;
        }
        self.stream(part.file_name.as_deref(), kind_shown(part, kind), &part.content, depth, true);
    }

    /// A member of an archive: counted, named, shown, opened. Call [`Self::admit`] before unpacking it.
    pub(super) fn member(&mut self, name: Option<&str>, content: &[u8], depth: usize) {
        let kind = Kind::of(content);
        match name {
            Some(name) => self.judge_name(name, kind, depth),
            None => self.judge_content("", kind, depth),
        }
        self.stream(name, kind, content, depth, true);
    }

    /// A stream of a document: it has no file name, and that it is there is no sign of its own.
    pub(super) fn document_stream(&mut self, content: &[u8], depth: usize) {
        self.stream(None, Kind::of(content), content, depth, false);
    }

    /// Whether one more member may be unpacked: counts it.
    pub(super) fn admit(&mut self) -> bool {
        if self.inventory.entries >= self.limits.entries {
            self.note(Trouble::LimitsExceeded);
            return false;
        }
        self.inventory.entries += 1;
        self.proceed()
    }

    /// Whether to go on at all.
    pub(super) fn proceed(&mut self) -> bool {
        if !self.stopped && !self.visitor.proceed() {
            self.stopped = true;
            self.note(Trouble::LimitsExceeded);
        }
        !self.stopped
    }

    pub(super) fn note(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Encrypted => self.inventory.encrypted = true,
            Trouble::LimitsExceeded => self.inventory.limits_exceeded = true,
            Trouble::Malformed => self.inventory.malformed = true,
        }
    }

    pub(super) fn sign(&mut self, sign: Sign) {
        let evidence = sign.evidence();
        if self.inventory.evidence.len() < EVIDENCE_MAX && !self.inventory.evidence.contains(&evidence) {
            self.inventory.evidence.push(evidence);
        }
    }

    /// Keeps a name without judging it: of members that are not unpacked.
    pub(super) fn name_only(&mut self, name: &str, depth: usize) {
        self.judge_name(name, Kind::Other, depth);
    }

    fn judge_name(&mut self, name: &str, kind: Kind, depth: usize) {
        if self.inventory.names.len() < self.limits.names {
            let cut: String = name.chars().take(NAME_CHARS_MAX).collect();
            if self.inventory.names.last() != Some(&cut) {
                self.inventory.names.push(cut);
            }
        }
        let signs = names::signs(name);
        if signs.runnable {
            self.sign(if depth == 0 { evidence::EXECUTABLE_ATTACHED } else { evidence::EXECUTABLE_IN_ARCHIVE });
        }
        if signs.double_extension {
            self.sign(evidence::DOUBLE_EXTENSION);
        }
        if signs.direction_override {
            self.sign(evidence::DIRECTION_OVERRIDE_NAME);
        }
        if signs.escapes && depth > 0 {
            self.sign(evidence::ESCAPING_MEMBER_NAME);
        }
        self.judge_content(name, kind, depth);
    }

    fn judge_content(&mut self, name: &str, kind: Kind, depth: usize) {
        if !kind.is_executable() {
            return;
        }
        self.sign(if depth == 0 { evidence::EXECUTABLE_ATTACHED } else { evidence::EXECUTABLE_IN_ARCHIVE });
        // Unix programs have no extension; a name with another one than a program's is a disguise.
        let disguised = names::extension(name)
            .is_some_and(|e| !names::is_runnable(&e) && kind == Kind::Pe && !matches!(e.as_str(), "bin" | "ocx" | "drv" | "efi" | "mui" | "pyd"));
        if disguised {
            self.sign(evidence::DISGUISED_EXECUTABLE);
        }
    }

    /// Shows a stream and looks into it. `is_file`: a file of its own, which may hide an archive behind its content, and not a piece of a document, which may end with one.
    fn stream(&mut self, name: Option<&str>, kind: Kind, content: &[u8], depth: usize, is_file: bool) {
        if self.stopped {
            return;
        }
        self.inventory.types.insert(kind);
        if let ControlFlow::Break(()) = self.visitor.item(&Item { name, depth, kind, content }) {
            self.stopped = true;
            return;
        }
        if kind.is_closed_archive() {
            let trouble = super::rar::trouble(kind, content);
            self.note(trouble);
            return;
        }
        let behind = is_file && hides_archive(kind, content);
        let carries = super::embedded::has_some(kind, content);
        if !behind && !carries && !is_container(kind) {
            return;
        }
        if depth >= self.limits.depth {
            self.note(Trouble::LimitsExceeded);
            return;
        }
        if behind {
            // Programs that unpack themselves, and documents within documents, are made that way.
            if !matches!(kind, Kind::Pe | Kind::Elf | Kind::MachO | Kind::Ole) {
                self.sign(evidence::ARCHIVE_BEHIND_OTHER_TYPE);
            }
            super::zip::open(self, content, depth + 1);
        }
        self.open(name, kind, content, depth + 1);
        if carries && self.proceed() {
            super::embedded::open(self, kind, content, depth + 1);
        }
    }

    fn open(&mut self, name: Option<&str>, kind: Kind, content: &[u8], depth: usize) {
        match kind {
            Kind::Zip | Kind::ZipBased => super::zip::open(self, content, depth),
            Kind::Gzip => super::stream::gzip(self, name, content, depth),
            Kind::Bzip2 => super::stream::bzip2(self, name, content, depth),
            Kind::SevenZip => super::seven::open(self, content, depth),
            Kind::Tar => super::tar::open(self, content, depth),
            Kind::Cpio => super::cpio::open(self, content, depth),
            Kind::Ole => super::ole::open(self, content, depth),
            Kind::Mail => {
                let message = crate::message::parse(bytes::Bytes::copy_from_slice(content), &crate::message::Limits::default());
                self.parts(&message, depth);
            }
            _ => {}
        }
    }

    /// Reads a decoder to its end within the budget. Gives what could be read, and why not all if so.
    ///
    /// `packed` is how many bytes went in, as far as the caller knows, for the ratio.
    pub(super) fn unpack(&mut self, decoder: &mut dyn Read, packed: usize) -> (Vec<u8>, Option<Trouble>) {
        let mut out = vec![];
        let ratio_max = packed.saturating_mul(self.limits.ratio).max(self.limits.ratio_floor_bytes);
        loop {
            if !self.proceed() {
                return (out, Some(Trouble::LimitsExceeded));
            }
            let room = self.limits.output_bytes.saturating_sub(self.inventory.output_bytes);
            let before = out.len();
            // One byte more than there is room for tells "exactly full" from "too much".
            let result = decoder.take(CHUNK_BYTES.min(room + 1) as u64).read_to_end(&mut out);
            let read = out.len() - before;
            self.inventory.output_bytes += read;
            if read > room || out.len() > ratio_max {
                return (out, Some(Trouble::LimitsExceeded));
            }
            match result {
                Err(_) => return (out, Some(Trouble::Malformed)),
                Ok(0) => return (out, None),
                Ok(_) => {}
            }
        }
    }

    /// Charges bytes read where an archive can make a reader read the same ones again and again for next to no output.
    pub(super) fn spend(&mut self, bytes: usize) -> bool {
        self.input_bytes = self.input_bytes.saturating_add(bytes);
        let afforded = self.input_bytes <= self.limits.output_bytes.saturating_mul(INPUT_FACTOR);
        if !afforded {
            self.note(Trouble::LimitsExceeded);
            self.stopped = true;
        }
        afforded
    }

    /// Charges bytes that are stored as they are.
    pub(super) fn charge(&mut self, bytes: usize) -> bool {
        self.inventory.output_bytes = self.inventory.output_bytes.saturating_add(bytes);
        if self.inventory.output_bytes > self.limits.output_bytes {
            self.note(Trouble::LimitsExceeded);
            return false;
        }
        true
    }
}

/// Whether a walk would look inside something of a message, or say that it could not.
pub(super) fn has_insides(message: &Message) -> bool {
    let opened = |part: &Part| {
        let kind = kind_shown(part, Kind::of(&part.content));
        let closed = kind.is_closed_archive();
        closed || is_container(kind) || hides_archive(kind, &part.content) || super::embedded::has_some(kind, &part.content)
    };
    is_cut(message) || message.parts.iter().any(|part| !part.container && opened(part))
}

/// Whether parts of a message are missing from what was made of it.
fn is_cut(message: &Message) -> bool {
    message.defects.iter().any(|defect| matches!(defect, Defect::TooManyParts | Defect::TooDeep))
}

/// Text that begins like a mail is a quotation.
fn kind_shown(part: &Part, kind: Kind) -> Kind {
    let split_already = kind == Kind::Mail && part.content_type.starts_with("text/");
    if split_already { Kind::Other } else { kind }
}

/// Whether a file of another type ends with an archive.
fn hides_archive(kind: Kind, content: &[u8]) -> bool {
    (kind == Kind::Ole || !is_container(kind)) && kind != Kind::Tnef && super::zip::ends_like_one(content)
}

const fn is_container(kind: Kind) -> bool {
    matches!(kind, Kind::Zip | Kind::ZipBased | Kind::Gzip | Kind::Bzip2 | Kind::SevenZip | Kind::Tar | Kind::Cpio | Kind::Ole | Kind::Mail)
}
