//! Opening a log: what the disk holds becomes the index.
//!
//! Of a sealed segment only the header, the index block and the meta parts of live records are read. An open segment is walked batch by batch. The last
//! write of all is the only one that may not have been synced: all checksums of that batch are verified, and if one fails the batch is dropped, as nobody
//! was told that it is safe. A batch that is unreadable although a later one exists is damage: the rest is salvaged and the segment kept.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::disk::Disk;
use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, Completed, Entry, HEADER_BLOCK_BYTES, HEADER_BYTES, HeaderBlock, Located, MessageEntry, SegmentHeader,
    SegmentKind, TRAILER_BYTES, Trailer, decode_entries, decode_index, payload_crc,
};
use super::log::{Log, Phase, SEGMENT_BYTES_MIN, SEGMENTS_MIN, Segment, Settings};
use super::state::{self, Place};
use super::{Recovered, SpoolError};
use crate::queue_id::QueueId;

/// Bytes searched at a time for a batch behind damage.
const SEARCH_BYTES: usize = 1 << 20;

/// What one segment holds.
struct Contents {
    located: Vec<Located>,
    end: u64,
    sealed_ms: Option<u64>,
    /// Highest sequence seen, also in what was dropped.
    sequence: u64,
    damaged: bool,
    /// The last batch of an open segment, until it is judged.
    tail: Option<BatchHeader>,
}

/// Every copy of every record, and what completions say.
#[derive(Default)]
struct Merge {
    copies: HashMap<QueueId, Vec<Copy>>,
    /// All copies below this sequence are dead.
    forgotten: HashMap<QueueId, u64>,
}

struct Copy {
    sequence: u64,
    segment: u32,
    epoch: u64,
    payload_at: u64,
    message: MessageEntry,
}

impl Log {
    /// Opens what the disk holds. Records whose meta part is corrupt are kept, counted in the status, and not returned.
    pub fn open(disk: Arc<dyn Disk>, settings: Settings, now_ms: u64) -> Result<(Self, Vec<Recovered>), SpoolError> {
        let mut log = Self::empty(disk, settings);
        let options = &log.settings.options;
        if options.segment_bytes < SEGMENT_BYTES_MIN || options.segments_max < SEGMENTS_MIN {
            return Err(log.failure(&format!("at least {SEGMENTS_MIN} segments of {SEGMENT_BYTES_MIN} bytes are needed")));
        }
        let files = log.disk.segments().map_err(|cause| log.open_failed(&cause, "listing the segments"))?;
        let mut headers = vec![];
        for (number, bytes) in files {
            if let Some((header, block)) = log.read_segment_header(number, bytes)? {
                headers.push((header, block));
            }
        }
        log.sequence = headers.iter().map(|(header, _)| header.epoch).max().unwrap_or(0);
        let newest = log.sequence;
        let mut contents = vec![];
        for (header, block) in headers {
            let found = if header.kind == SegmentKind::Free { None } else { Some(log.read_contents(&header)?) };
            // The last write of a run may have failed its sync: readable, yet not on the disk. Once more, before anything relies on it.
            let open = found.as_ref().is_some_and(|found| found.sealed_ms.is_none());
            if open || header.epoch == newest {
                log.put(header.segment, 0, &mut [IoSlice::new(&block)], true)?;
            }
            contents.extend(found.map(|found| (header, found)));
        }
        for (header, found) in &mut contents {
            log.judge_tail(header.segment, found)?;
        }
        let merge = log.merge(&contents);
        contents.into_iter().for_each(|(header, found)| log.adopt(&header, found, &merge));
        log.index(merge, now_ms);
        let recovered = log.verify_metas();
        log.settle_open_segments(now_ms)?;
        while log.free_segments() < SEGMENTS_MIN as usize && log.create(now_ms) {}
        log.reclaim(now_ms)?;
        log.refresh_status();
        Ok((log, recovered))
    }

    /// Reads a header; a fresh segment is free, an unreadable one is set aside.
    fn read_segment_header(&mut self, number: u32, bytes: u64) -> Result<Option<(SegmentHeader, Vec<u8>)>, SpoolError> {
        let mut block = vec![0; HEADER_BLOCK_BYTES as usize];
        let mut state = HeaderBlock::Bad;
        if bytes >= SEGMENT_BYTES_MIN {
            self.disk.read_at(number, 0, &mut block).map_err(|cause| self.open_failed(&cause, &format!("reading segment {number}")))?;
            state = HeaderBlock::decode(&block);
        }
        let segment = self.segments.entry(number).or_insert_with(|| Segment::free(bytes));
        match state {
            HeaderBlock::Fresh => Ok(None),
            HeaderBlock::Valid(header) if header.segment == number && header.segment_bytes == bytes => {
                segment.epoch = header.epoch;
                segment.salt = header.salt;
                // Both copies are to be the newer one.
                Ok(Some((header, header.encode())))
            }
            _ => {
                segment.phase = Phase::Lost;
                segment.damaged = true;
                self.lock().status.damaged_segments += 1;
                tracing::error!(segment = number, "a spool segment has no readable header; it is set aside, restore it or move it away");
                Ok(None)
            }
        }
    }

    fn read_contents(&mut self, header: &SegmentHeader) -> Result<Contents, SpoolError> {
        let found = match read_index(&*self.disk, header.segment, header.salt, header.segment_bytes) {
            Ok(Some((trailer, located))) => {
                Ok(Contents { located, end: trailer.end, sealed_ms: Some(trailer.sealed_ms), sequence: trailer.sequence, damaged: false, tail: None })
            }
            Ok(None) => self.walk(header),
            Err(cause) => Err(cause),
        };
        let found = found.map_err(|cause| self.open_failed(&cause, &format!("reading segment {}", header.segment)))?;
        self.sequence = self.sequence.max(found.sequence);
        Ok(found)
    }

    /// Walks the batches of a segment without an index block.
    fn walk(&self, header: &SegmentHeader) -> io::Result<Contents> {
        let (number, salt, limit) = (header.segment, header.salt, header.segment_bytes - TRAILER_BYTES);
        let mut found = Contents { located: vec![], end: HEADER_BYTES, sealed_ms: None, sequence: 0, damaged: false, tail: None };
        let mut batches: Vec<BatchHeader> = vec![];
        loop {
            let at = found.end;
            let mut batch = self.batch_at(number, salt, at, limit)?;
            if batch.is_none()
                && let Some(later) = self.batch_after(number, salt, at, limit)?
            {
                found.damaged = true;
                batch = Some(later);
            }
            let Some(batch) = batch else { break };
            found.sequence = found.sequence.max(batch.sequence);
            found.end = batch.end().unwrap_or(limit);
            batches.push(batch);
        }
        found.tail = batches.pop();
        for batch in batches {
            match self.entries(number, &batch)? {
                Some(located) => found.located.extend(located),
                None => found.damaged = true,
            }
        }
        Ok(found)
    }

    /// Decides about the last batch of an open segment. If anything was written after it, anywhere, it was synced before. If not, it counts when all of
    /// it is there, and is written again; else it is wiped, so that nothing takes it for a synced one later.
    fn judge_tail(&mut self, number: u32, found: &mut Contents) -> Result<(), SpoolError> {
        let failed = |log: &Self, cause: &io::Error| log.open_failed(cause, &format!("reading segment {number}"));
        if let Some(batch) = found.tail.take() {
            if batch.sequence < self.sequence {
                match self.entries(number, &batch).map_err(|cause| failed(self, &cause))? {
                    Some(located) => found.located.extend(located),
                    None => found.damaged = true,
                }
            } else if let Some((located, bytes)) = self.verify_tail(number, &batch).map_err(|cause| failed(self, &cause))? {
                found.located.extend(located);
                self.put(number, batch.offset, &mut [IoSlice::new(&bytes)], true)?;
            } else {
                found.end = batch.offset;
                self.put(number, batch.offset, &mut [IoSlice::new(&[0; BATCH_HEADER_BYTES as usize])], true)?;
            }
        }
        if found.damaged {
            self.lock().status.damaged_segments += 1;
            tracing::error!(segment = number, "a spool segment is damaged; what is readable was salvaged, and the segment is kept");
        }
        Ok(())
    }

    fn batch_at(&self, number: u32, salt: u64, at: u64, limit: u64) -> io::Result<Option<BatchHeader>> {
        if at + BATCH_HEADER_BYTES > limit {
            return Ok(None);
        }
        let mut bytes = [0; BATCH_HEADER_BYTES as usize];
        self.disk.read_at(number, at, &mut bytes)?;
        Ok(BatchHeader::decode(&bytes, salt, at, limit))
    }

    /// A later batch of this use that says that what is at `at` was synced.
    fn batch_after(&self, number: u32, salt: u64, at: u64, limit: u64) -> io::Result<Option<BatchHeader>> {
        let pattern = BatchHeader::pattern(salt);
        let mut from = at + 1;
        while from + BATCH_HEADER_BYTES <= limit {
            let mut bytes = vec![0; SEARCH_BYTES.min((limit - from) as usize)];
            self.disk.read_at(number, from, &mut bytes)?;
            for hit in memchr::memmem::find_iter(&bytes, &pattern) {
                if let Some(batch) = self.batch_at(number, salt, from + hit as u64, limit)?
                    && batch.synced_to > at
                {
                    return Ok(Some(batch));
                }
            }
            // Enough overlap for a pattern that lies across the border.
            from += (bytes.len() - (pattern.len() - 1)) as u64;
        }
        Ok(None)
    }

    fn entries(&self, number: u32, batch: &BatchHeader) -> io::Result<Option<Vec<Located>>> {
        let mut bytes = vec![0; batch.entries_bytes as usize];
        self.disk.read_at(number, batch.offset + BATCH_HEADER_BYTES, &mut bytes)?;
        Ok(decode_entries(&bytes, batch))
    }

    /// Reads the whole of a batch and verifies every checksum in it. Payloads lie in the order of the entries.
    fn verify_tail(&self, number: u32, batch: &BatchHeader) -> io::Result<Option<(Vec<Located>, Vec<u8>)>> {
        let Some(end) = batch.end() else { return Ok(None) };
        let mut bytes = vec![0; (end - batch.offset) as usize];
        self.disk.read_at(number, batch.offset, &mut bytes)?;
        let (_, content) = bytes.split_at(BATCH_HEADER_BYTES as usize);
        let Some((entries, mut payload)) = content.split_at_checked(batch.entries_bytes as usize) else { return Ok(None) };
        let Some(located) = decode_entries(entries, batch) else { return Ok(None) };
        for message in located.iter().filter_map(|l| if let Entry::Message(message) = &l.entry { Some(message) } else { None }) {
            let Some((meta, rest)) = payload.split_at_checked(message.meta_len as usize) else { return Ok(None) };
            let Some((body, rest)) = rest.split_at_checked(message.body_len as usize) else { return Ok(None) };
            let sound = payload_crc(message.id, meta) == message.meta_crc && payload_crc(message.id, body) == message.body_crc;
            if self.settings.rules.verify_payload && !sound {
                return Ok(None);
            }
            payload = rest;
        }
        Ok(Some((located, bytes)))
    }

    fn merge(&self, contents: &[(SegmentHeader, Contents)]) -> Merge {
        let mut merge = Merge::default();
        for (header, found) in contents {
            for located in &found.located {
                match &located.entry {
                    Entry::Message(message) => merge.copies.entry(message.id).or_default().push(Copy {
                        sequence: located.sequence,
                        segment: header.segment,
                        epoch: header.epoch,
                        payload_at: located.payload_at,
                        message: message.clone(),
                    }),
                    Entry::Completion(completion) if completion.completed == Completed::All => {
                        let before = merge.forgotten.entry(completion.id).or_default();
                        *before = completion.before.max(*before);
                    }
                    Entry::Completion(_) => {}
                }
            }
        }
        // Slots that are done are added to the copies they speak of.
        let completions = contents.iter().flat_map(|(_, found)| &found.located);
        for located in completions {
            if let Entry::Completion(completion) = &located.entry
                && let Completed::Slots(slots) = &completion.completed
                && let Some(copies) = merge.copies.get_mut(&completion.id)
            {
                copies.iter_mut().filter(|copy| copy.sequence < completion.before).for_each(|copy| copy.message.done.extend(slots));
            }
        }
        merge
    }

    /// Takes a segment in use into the books.
    fn adopt(&mut self, header: &SegmentHeader, found: Contents, merge: &Merge) {
        self.uses.insert(header.epoch);
        let Some(segment) = self.segments.get_mut(&header.segment) else { return };
        segment.phase = if found.sealed_ms.is_some() { Phase::Sealed } else { Phase::Open };
        segment.sealed_ms = found.sealed_ms.unwrap_or(0);
        segment.end = found.end;
        segment.damaged = found.damaged;
        for located in &found.located {
            if let Entry::Completion(completion) = &located.entry {
                segment.homes.extend(&completion.homes);
                let copies = merge.copies.get(&completion.id).into_iter().flatten();
                segment.homes.extend(copies.filter(|copy| copy.sequence < completion.before).map(|copy| copy.epoch));
            }
            if segment.phase == Phase::Open {
                located.encode_to(&mut segment.index);
            }
        }
    }

    /// Builds the index: of each record the newest copy, if it was not forgotten.
    fn index(&mut self, merge: Merge, now_ms: u64) {
        let mut state = self.state.lock().expect("no panic while held");
        for (id, mut copies) in merge.copies {
            copies.sort_unstable_by_key(|copy| copy.sequence);
            let homes = copies.iter().map(|copy| copy.epoch).collect();
            let Some(Copy { sequence, segment, payload_at, message, .. }) = copies.pop() else { continue };
            if merge.forgotten.get(&id).is_some_and(|before| sequence < *before) {
                continue;
            }
            let MessageEntry { slots, affinity, meta_len, body_len, meta_crc, body_crc, done, .. } = message;
            let place = Place { segment, payload_at, sequence, meta_len, body_len, meta_crc, body_crc };
            if let Some(segment) = self.segments.get_mut(&segment) {
                segment.live_records += 1;
                segment.live_bytes += place.payload_bytes();
            }
            let finished = done.len() >= usize::from(slots);
            if finished {
                state.pending.insert(id, state::Pending { all: true, slots: done.clone() });
                state.pending_since_ms = Some(now_ms);
            }
            state.entries.insert(id, state::Entry { place, slots, affinity, done, finished, corrupt: false, homes });
        }
    }

    /// Verifies what the queue wrote, in the order of the disk.
    fn verify_metas(&self) -> Vec<Recovered> {
        let state = self.lock();
        let mut live: Vec<(Place, QueueId)> = state.entries.iter().filter(|(_, e)| !e.finished).map(|(id, e)| (e.place, *id)).collect();
        drop(state);
        live.sort_unstable_by_key(|(place, _)| (place.segment, place.payload_at));
        let mut recovered = vec![];
        let reader = self.reader();
        let mut meta = vec![];
        for (place, id) in live {
            meta.resize(place.meta_len as usize, 0);
            let read = self.disk.read_at(place.segment, place.payload_at, &mut meta);
            if read.is_err() || (self.settings.rules.verify_payload && payload_crc(id, &meta) != place.meta_crc) {
                reader.condemn(id, place);
                continue;
            }
            let state = self.lock();
            if let Some(entry) = state.entries.get(&id) {
                let (slots, done) = (entry.slots, entry.done.clone());
                recovered.push(Recovered { id, meta_len: place.meta_len as usize, body_len: place.body_len as usize, slots, done });
            }
        }
        recovered.sort_unstable_by_key(|record| record.id);
        recovered
    }

    /// The newest open segment goes on; others (cold ones, or a crash between sealing one and the next) are sealed. A damaged one is left as it is:
    /// an index block would hide the damage from the next opening.
    fn settle_open_segments(&mut self, now_ms: u64) -> Result<(), SpoolError> {
        let mut open = vec![];
        for (number, segment) in self.segments.iter_mut().filter(|(_, segment)| segment.phase == Phase::Open) {
            if segment.damaged {
                segment.phase = Phase::Sealed;
                segment.sealed_ms = now_ms;
            } else {
                open.push((segment.epoch, *number));
            }
        }
        open.sort_unstable();
        self.hot = open.pop().map(|(_, number)| number);
        open.into_iter().try_for_each(|(_, number)| self.seal(number, now_ms))
    }
}

/// The index block of a segment, if it has a valid one.
pub(super) fn read_index(disk: &dyn Disk, number: u32, salt: u64, segment_bytes: u64) -> io::Result<Option<(Trailer, Vec<Located>)>> {
    let mut bytes = [0; TRAILER_BYTES as usize];
    disk.read_at(number, segment_bytes - TRAILER_BYTES, &mut bytes)?;
    let Some(trailer) = Trailer::decode(&bytes, salt, segment_bytes) else { return Ok(None) };
    let mut entries = vec![0; trailer.entries_bytes as usize];
    disk.read_at(number, segment_bytes - TRAILER_BYTES - trailer.entries_bytes, &mut entries)?;
    Ok(decode_index(&entries, &trailer).map(|located| (trailer, located)))
}
