//! Bytes of a segment: pure encoding and decoding. Decoding never panics and never trusts a length it has not checked. The layout is described in [`super`].

use std::collections::BTreeSet;

use crate::queue_id::QueueId;

/// Bytes before the first batch of a segment.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes to read to know what a file is: the header block, and whether a batch follows.
pub const HEADER_BLOCK_BYTES: u64 = HEADER_BYTES + BATCH_HEADER_BYTES;
/// Where the second copy of the segment header lies.
const HEADER_COPY_AT: usize = 2048;
/// Bytes of one copy of the segment header.
const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: u64 = 64;
/// Bytes of the trailer that ends a sealed segment.
pub const TRAILER_BYTES: u64 = 64;
/// What the index block adds to an entry: the batch's sequence and the payload's offset.
pub const LOCATED_EXTRA_BYTES: u64 = 16;

const SEGMENT_MAGIC: &[u8; 8] = b"SKSPOOL1";
const BATCH_MAGIC: &[u8; 4] = b"SKB1";
const INDEX_MAGIC: &[u8; 4] = b"SKI1";
const KIND_MESSAGE: u8 = 1;
const KIND_COMPLETION: u8 = 2;
/// Most segments that one completion can name; more copies of one record than this cannot exist at a time, compaction makes one more at most.
const HOMES_MAX: usize = 255;

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Its content is dead; its bytes are zeros or old mail.
    Free,
    /// New mail and completions.
    Hot,
    /// What compaction moved.
    Cold,
}

/// Head of a segment, one per use of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What it is for.
    pub kind: SegmentKind,
    /// Number of the file.
    pub segment: u32,
    /// Bytes of the file.
    pub segment_bytes: u64,
    /// Sequence number of this use; no other use of any segment has it.
    pub epoch: u64,
    /// Random per use: nothing that somebody mails us can look like a batch of this use.
    pub salt: u64,
    /// How often the spool had been opened (see the lock file).
    pub opening: u64,
    /// When this use began, milliseconds since 1970.
    pub opened_ms: u64,
}

/// What stands at the start of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderBlock {
    /// Preallocated, never used.
    Fresh,
    /// A header.
    Valid(SegmentHeader),
    /// Neither.
    Bad,
}

impl SegmentHeader {
    /// The whole block: two copies, in different sectors.
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        copy.extend_from_slice(SEGMENT_MAGIC);
        copy.extend_from_slice(&self.segment.to_le_bytes());
        copy.push(match self.kind {
            SegmentKind::Free => 0,
            SegmentKind::Hot => 1,
            SegmentKind::Cold => 2,
        });
        copy.extend_from_slice(&[0; 3]);
        for number in [self.segment_bytes, self.epoch, self.salt, self.opening, self.opened_ms] {
            copy.extend_from_slice(&number.to_le_bytes());
        }
        copy.extend_from_slice(&[0; 4]);
        copy.extend_from_slice(&crc32c::crc32c(&copy).to_le_bytes());
        let mut block = copy.clone();
        block.resize(HEADER_COPY_AT, 0);
        block.extend_from_slice(&copy);
        block.resize(HEADER_BYTES as usize, 0);
        block
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = checked(bytes, SEGMENT_HEADER_BYTES)?;
        if reader.array::<8>()? != *SEGMENT_MAGIC {
            return None;
        }
        let segment = reader.u32()?;
        let kind = match reader.array::<4>()? {
            [0, 0, 0, 0] => SegmentKind::Free,
            [1, 0, 0, 0] => SegmentKind::Hot,
            [2, 0, 0, 0] => SegmentKind::Cold,
            _ => return None,
        };
        let [segment_bytes, epoch, salt, opening, opened_ms] = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        Some(Self { kind, segment, segment_bytes, epoch, salt, opening, opened_ms })
    }
}

impl HeaderBlock {
    /// Reads the first [`HEADER_BLOCK_BYTES`] of a file. Of two copies the newer counts: a torn write leaves one of each, and both were true.
    pub fn decode(block: &[u8]) -> Self {
        let copies = [block.get(..SEGMENT_HEADER_BYTES), block.get(HEADER_COPY_AT..HEADER_COPY_AT + SEGMENT_HEADER_BYTES)];
        if let Some(header) = copies.into_iter().flatten().filter_map(SegmentHeader::decode).max_by_key(|header| header.epoch) {
            return Self::Valid(header);
        }
        // No batch, nor more than half of a first header: nothing was ever kept here.
        let behind = block.get(HEADER_COPY_AT..).unwrap_or_default();
        if behind.iter().all(|byte| *byte == 0) { Self::Fresh } else { Self::Bad }
    }
}

/// Head of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The segment use's salt.
    pub salt: u64,
    /// One more than that of the write before it, over all segments.
    pub sequence: u64,
    /// Its own offset in the segment.
    pub offset: u64,
    /// Everything of this segment before this offset was synced before this batch was written.
    pub synced_to: u64,
    /// Bytes of the entries.
    pub entries_bytes: u32,
    /// Number of entries.
    pub entries: u32,
    /// Checksum of the entries.
    pub entries_crc: u32,
    /// Bytes of the payloads.
    pub payload_bytes: u64,
}

impl BatchHeader {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BATCH_HEADER_BYTES as usize);
        bytes.extend_from_slice(BATCH_MAGIC);
        for number in [self.salt, self.sequence, self.offset, self.synced_to] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.entries_bytes, self.entries, self.entries_crc] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.payload_bytes.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// A header of this segment use at this offset, whose batch ends at or before `limit`.
    pub fn decode(bytes: &[u8], salt: u64, offset: u64, limit: u64) -> Option<Self> {
        let mut reader = checked(bytes, BATCH_HEADER_BYTES as usize)?;
        if reader.array::<4>()? != *BATCH_MAGIC {
            return None;
        }
        let header = Self {
            salt: reader.u64()?,
            sequence: reader.u64()?,
            offset: reader.u64()?,
            synced_to: reader.u64()?,
            entries_bytes: reader.u32()?,
            entries: reader.u32()?,
            entries_crc: reader.u32()?,
            payload_bytes: reader.u64()?,
        };
        let fits = header.end().is_some_and(|end| end <= limit);
        (header.salt == salt && header.offset == offset && header.synced_to <= offset && fits).then_some(header)
    }

    /// Where the payloads begin.
    pub fn payload_at(&self) -> u64 {
        self.offset.saturating_add(BATCH_HEADER_BYTES).saturating_add(u64::from(self.entries_bytes))
    }

    /// Where the batch ends.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(BATCH_HEADER_BYTES + u64::from(self.entries_bytes))?.checked_add(self.payload_bytes)
    }

    /// What every batch header of a segment use begins with.
    pub fn pattern(salt: u64) -> [u8; 12] {
        let mut pattern = [0; 12];
        let (magic, number) = pattern.split_at_mut(BATCH_MAGIC.len());
        magic.copy_from_slice(BATCH_MAGIC);
        number.copy_from_slice(&salt.to_le_bytes());
        pattern
    }
}

/// The last bytes of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The segment use's salt.
    pub salt: u64,
    /// End of the last batch; all of it was synced before this was written.
    pub end: u64,
    /// When it was sealed, milliseconds since 1970.
    pub sealed_ms: u64,
    /// The highest sequence in the segment.
    pub sequence: u64,
    /// Bytes of the index entries, which end where the trailer begins.
    pub entries_bytes: u64,
    /// Checksum of the index entries.
    pub entries_crc: u32,
}

impl Trailer {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(TRAILER_BYTES as usize);
        bytes.extend_from_slice(INDEX_MAGIC);
        for number in [self.salt, self.end, self.sealed_ms, self.sequence, self.entries_bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.entries_crc.to_le_bytes());
        bytes.extend_from_slice(&[0; 12]);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// A trailer of this segment use, in a file of `segment_bytes`.
    pub fn decode(bytes: &[u8], salt: u64, segment_bytes: u64) -> Option<Self> {
        let mut reader = checked(bytes, TRAILER_BYTES as usize)?;
        if reader.array::<4>()? != *INDEX_MAGIC {
            return None;
        }
        let trailer = Self {
            salt: reader.u64()?,
            end: reader.u64()?,
            sealed_ms: reader.u64()?,
            sequence: reader.u64()?,
            entries_bytes: reader.u64()?,
            entries_crc: reader.u32()?,
        };
        let fits = trailer.end.checked_add(trailer.entries_bytes).and_then(|n| n.checked_add(TRAILER_BYTES)).is_some_and(|n| n <= segment_bytes);
        (trailer.salt == salt && fits).then_some(trailer)
    }
}

/// A record's entry in its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageEntry {
    /// Name.
    pub id: QueueId,
    /// Slots in all.
    pub slots: u16,
    /// Group for compaction.
    pub affinity: u64,
    /// Bytes of the meta part, which comes first in the payload.
    pub meta_len: u32,
    /// Bytes of the body.
    pub body_len: u32,
    /// Checksum of the meta part, begun with the id.
    pub meta_crc: u32,
    /// Checksum of the body, begun with the id.
    pub body_crc: u32,
    /// Slots that were done when this copy was written.
    pub done: BTreeSet<u16>,
}

impl MessageEntry {
    /// Bytes of meta and body.
    pub fn payload_bytes(&self) -> u64 {
        u64::from(self.meta_len) + u64::from(self.body_len)
    }
}

/// Which slots a completion marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completed {
    /// All: the record is to be forgotten.
    All,
    /// These.
    Slots(BTreeSet<u16>),
}

/// A completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Name of the record.
    pub id: QueueId,
    /// It speaks of copies whose batch has a lower sequence than this.
    pub before: u64,
    /// What is done.
    pub completed: Completed,
    /// Epochs of the segment uses that hold copies of the record.
    pub homes: Vec<u64>,
}

/// An entry of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A record.
    Message(MessageEntry),
    /// Slots that are done.
    Completion(Completion),
}

impl Entry {
    /// Appends its bytes.
    pub fn encode_to(&self, to: &mut Vec<u8>) {
        match self {
            Self::Message(message) => {
                to.push(KIND_MESSAGE);
                to.extend_from_slice(&message.id.0.to_le_bytes());
                to.extend_from_slice(&message.slots.to_le_bytes());
                to.extend_from_slice(&message.affinity.to_le_bytes());
                for number in [message.meta_len, message.body_len, message.meta_crc, message.body_crc] {
                    to.extend_from_slice(&number.to_le_bytes());
                }
                encode_slots(&message.done, to);
            }
            Self::Completion(completion) => {
                to.push(KIND_COMPLETION);
                to.extend_from_slice(&completion.id.0.to_le_bytes());
                to.extend_from_slice(&completion.before.to_le_bytes());
                let homes = completion.homes.len().min(HOMES_MAX);
                to.push(homes as u8);
                completion.homes.iter().take(homes).for_each(|home| to.extend_from_slice(&home.to_le_bytes()));
                match &completion.completed {
                    Completed::All => to.push(1),
                    Completed::Slots(slots) => {
                        to.push(0);
                        encode_slots(slots, to);
                    }
                }
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        match reader.u8()? {
            KIND_MESSAGE => Some(Self::Message(MessageEntry {
                id: QueueId(u128::from_le_bytes(reader.array()?)),
                slots: reader.u16()?,
                affinity: reader.u64()?,
                meta_len: reader.u32()?,
                body_len: reader.u32()?,
                meta_crc: reader.u32()?,
                body_crc: reader.u32()?,
                done: decode_slots(reader)?,
            })),
            KIND_COMPLETION => {
                let id = QueueId(u128::from_le_bytes(reader.array()?));
                let before = reader.u64()?;
                let homes = (0..reader.u8()?).map(|_| reader.u64()).collect::<Option<_>>()?;
                let completed = match reader.u8()? {
                    1 => Completed::All,
                    0 => Completed::Slots(decode_slots(reader)?),
                    _ => return None,
                };
                Some(Self::Completion(Completion { id, before, completed, homes }))
            }
            _ => None,
        }
    }
}

/// Slots are a bitmap up to the highest one: a length in bytes, then the bits.
fn encode_slots(slots: &BTreeSet<u16>, to: &mut Vec<u8>) {
    let bytes = slots.last().map_or(0, |last| last / 8 + 1);
    to.extend_from_slice(&bytes.to_le_bytes());
    let start = to.len();
    to.resize(start + usize::from(bytes), 0);
    for slot in slots {
        to[start + usize::from(slot / 8)] |= 1 << (slot % 8);
    }
}

fn decode_slots(reader: &mut Reader<'_>) -> Option<BTreeSet<u16>> {
    let bytes = usize::from(reader.u16()?);
    if bytes > 8192 {
        return None;
    }
    let bits = reader.take(bytes)?;
    Some((0..bytes * 8).filter(|i| bits.get(i / 8).is_some_and(|byte| byte & (1 << (i % 8)) != 0)).map(|i| i as u16).collect())
}

/// An entry and where its payload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Sequence of its batch.
    pub sequence: u64,
    /// Offset of its payload; zero for a completion.
    pub payload_at: u64,
    /// The entry.
    pub entry: Entry,
}

impl Located {
    /// Appends its bytes, as they stand in an index block.
    pub fn encode_to(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.sequence.to_le_bytes());
        to.extend_from_slice(&self.payload_at.to_le_bytes());
        self.entry.encode_to(to);
    }
}

/// Reads the entries of a batch; their payloads lie one after the other. `None` if anything is wrong with them.
pub fn decode_entries(bytes: &[u8], header: &BatchHeader) -> Option<Vec<Located>> {
    if crc32c::crc32c(bytes) != header.entries_crc {
        return None;
    }
    let mut reader = Reader(bytes);
    let mut found = vec![];
    let mut payload_at = header.payload_at();
    for _ in 0..header.entries {
        let entry = Entry::decode(&mut reader)?;
        let (at, len) = match &entry {
            Entry::Message(message) => (payload_at, message.payload_bytes()),
            Entry::Completion(_) => (0, 0),
        };
        payload_at = payload_at.checked_add(len)?;
        found.push(Located { sequence: header.sequence, payload_at: at, entry });
    }
    (reader.0.is_empty() && Some(payload_at) == header.end()).then_some(found)
}

/// Reads the entries of an index block. `None` if anything is wrong with them.
pub fn decode_index(bytes: &[u8], trailer: &Trailer) -> Option<Vec<Located>> {
    if crc32c::crc32c(bytes) != trailer.entries_crc {
        return None;
    }
    let mut reader = Reader(bytes);
    let mut found = vec![];
    while !reader.0.is_empty() {
        let located = Located { sequence: reader.u64()?, payload_at: reader.u64()?, entry: Entry::decode(&mut reader)? };
        if let Entry::Message(message) = &located.entry {
            let inside = located.payload_at.checked_add(message.payload_bytes()).is_some_and(|end| end <= trailer.end);
            if !inside || located.payload_at < HEADER_BYTES {
                return None;
            }
        }
        found.push(located);
    }
    Some(found)
}

/// Checksum of a part of a payload. It covers the id, so that bytes of another message do not pass for this one's even where their checksums agree.
pub fn payload_crc(id: QueueId, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.0.to_le_bytes()), bytes)
}

/// A reader over the first `len` bytes, whose last four are the checksum of the rest.
fn checked(bytes: &[u8], len: usize) -> Option<Reader<'_>> {
    let (content, crc) = bytes.get(..len)?.split_last_chunk::<4>()?;
    (crc32c::crc32c(content) == u32::from_le_bytes(*crc)).then_some(Reader(content))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slots() -> impl Strategy<Value = BTreeSet<u16>> {
        prop::collection::btree_set(any::<u16>(), 0..5)
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let message = (any::<u128>(), any::<u16>(), any::<u64>(), 0..4000_u32, 0..9000_u32, any::<u32>(), any::<u32>(), slots()).prop_map(
            |(id, slots, affinity, meta_len, body_len, meta_crc, body_crc, done)| {
                Entry::Message(MessageEntry { id: QueueId(id), slots, affinity, meta_len, body_len, meta_crc, body_crc, done })
            },
        );
        let completed = prop_oneof![Just(Completed::All), slots().prop_map(Completed::Slots)];
        let completion = (any::<u128>(), any::<u64>(), completed, prop::collection::vec(any::<u64>(), 0..4))
            .prop_map(|(id, before, completed, homes)| Entry::Completion(Completion { id: QueueId(id), before, completed, homes }));
        prop_oneof![message, completion]
    }

    fn batch(entries: &[Entry]) -> (BatchHeader, Vec<u8>) {
        let mut bytes = vec![];
        entries.iter().for_each(|entry| entry.encode_to(&mut bytes));
        let payload_bytes = entries.iter().map(|e| if let Entry::Message(m) = e { m.payload_bytes() } else { 0 }).sum();
        let header = BatchHeader {
            salt: 7,
            sequence: 9,
            offset: HEADER_BYTES,
            synced_to: HEADER_BYTES,
            entries_bytes: bytes.len() as u32,
            entries: entries.len() as u32,
            entries_crc: crc32c::crc32c(&bytes),
            payload_bytes,
        };
        (header, bytes)
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(entries in prop::collection::vec(entry(), 0..8)) {
            let (header, bytes) = batch(&entries);
            prop_assert_eq!(BatchHeader::decode(&header.encode(), 7, HEADER_BYTES, u64::MAX), Some(header));
            prop_assert_eq!(BatchHeader::decode(&header.encode(), 8, HEADER_BYTES, u64::MAX), None);
            prop_assert_eq!(BatchHeader::decode(&header.encode(), 7, HEADER_BYTES + 1, u64::MAX), None);
            let located = decode_entries(&bytes, &header).expect("decodes");
            prop_assert_eq!(located.iter().map(|l| l.entry.clone()).collect::<Vec<_>>(), entries);

            let mut index = vec![];
            located.iter().for_each(|l| l.encode_to(&mut index));
            let trailer = Trailer { salt: 7, end: header.end().expect("small"), sealed_ms: 3, sequence: 9, entries_bytes: index.len() as u64, entries_crc: crc32c::crc32c(&index) };
            prop_assert_eq!(Trailer::decode(&trailer.encode(), 7, u64::MAX), Some(trailer));
            prop_assert_eq!(decode_index(&index, &trailer), Some(located));
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), entries in prop::collection::vec(entry(), 0..3), at in any::<prop::sample::Index>()) {
            let mut header = batch(&[]).0;
            header.entries = 3;
            header.entries_crc = crc32c::crc32c(&bytes);
            decode_entries(&bytes, &header);
            decode_index(&bytes, &Trailer { salt: 0, end: 99, sealed_ms: 0, sequence: 0, entries_bytes: 0, entries_crc: crc32c::crc32c(&bytes) });
            HeaderBlock::decode(&bytes);
            BatchHeader::decode(&bytes, 0, 0, u64::MAX);
            Trailer::decode(&bytes, 0, u64::MAX);
            // Damaged, but with a checksum that agrees: the hardest case.
            let (mut header, mut bytes) = batch(&entries);
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= 0x55;
                header.entries_crc = crc32c::crc32c(&bytes);
                decode_entries(&bytes, &header);
            }
        }
    }

    #[test]
    fn a_torn_header_is_one_of_both() {
        let old = SegmentHeader { kind: SegmentKind::Hot, segment: 3, segment_bytes: 65536, epoch: 5, salt: 1, opening: 1, opened_ms: 2 };
        let new = SegmentHeader { kind: SegmentKind::Free, epoch: 9, ..old };
        assert_eq!(HeaderBlock::decode(&old.encode()), HeaderBlock::Valid(old));
        let mut torn = old.encode();
        torn[..512].copy_from_slice(&new.encode()[..512]);
        assert_eq!(HeaderBlock::decode(&torn), HeaderBlock::Valid(new));
        let mut torn = new.encode();
        torn[..512].copy_from_slice(&old.encode()[..512]);
        assert_eq!(HeaderBlock::decode(&torn), HeaderBlock::Valid(new));
        assert_eq!(HeaderBlock::decode(&[0; HEADER_BYTES as usize]), HeaderBlock::Fresh);
        let mut torn = vec![0; HEADER_BLOCK_BYTES as usize];
        torn[..30].copy_from_slice(&new.encode()[..30]);
        assert_eq!(HeaderBlock::decode(&torn), HeaderBlock::Fresh);
        // Zeros before a batch are no fresh segment.
        torn[HEADER_BYTES as usize] = 1;
        assert_eq!(HeaderBlock::decode(&torn), HeaderBlock::Bad);
        let mut rotten = old.encode();
        rotten[8] ^= 1;
        rotten[HEADER_COPY_AT + 8] ^= 1;
        assert_eq!(HeaderBlock::decode(&rotten), HeaderBlock::Bad);
    }
}
