//! The log itself, synchronous: no threads, no clock; time comes in as `now_ms` (milliseconds since 1970). The writer thread drives it, and so does the simulator.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::compact::Job;
use super::disk::Disk;
use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, Completed, Completion, Entry, HEADER_BYTES, LOCATED_EXTRA_BYTES, Located, MessageEntry, SegmentHeader,
    SegmentKind, TRAILER_BYTES, Trailer, payload_crc,
};
use super::state::{self, Place, Reader, State};
use super::{Durable, Record, SpoolError, SpoolOptions, SpoolStatus};
use crate::queue_id::QueueId;

/// Completions are written by themselves when the oldest has waited this long.
pub const COMPLETION_DELAY_MS: u64 = 100;
/// A disk that had no room for another segment is asked again after this.
const CREATE_RETRY_MS: u64 = 5_000;
/// Bytes of completions in one batch.
const COMPLETIONS_BYTES_MAX: u64 = 1 << 20;
/// Smallest segment that makes sense: a header, a batch, an index.
pub const SEGMENT_BYTES_MIN: u64 = 8192;
/// Segments at least: one to write, one in reserve.
pub const SEGMENTS_MIN: u32 = 2;

/// Rules of the log that a test may take out, to prove that the simulator notices.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Batches are synced before they are acknowledged.
    pub sync: bool,
    /// Payload checksums are verified.
    pub verify_payload: bool,
    /// A segment that holds completions outlives the segments of their records.
    pub tombstones: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { sync: true, verify_payload: true, tombstones: true }
    }
}

/// What a log is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Limits and directory (which only error texts name).
    pub options: SpoolOptions,
    /// Random: salts of the segment uses come from it.
    pub salt_seed: u64,
    /// All, outside of mutation tests.
    #[doc(hidden)]
    pub rules: Rules,
}

/// A record with its checksums, ready to be written.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(super) entry: MessageEntry,
    pub(super) meta: Bytes,
    pub(super) body: Bytes,
}

impl Prepared {
    /// Computes the checksums. An error if a part is longer than 4 GiB or there is no slot.
    pub fn new(record: Record, options: &SpoolOptions) -> Result<Self, SpoolError> {
        let limit = |limit: String| SpoolError::Full { dir: options.dir.clone(), limit };
        let meta_len = u32::try_from(record.meta.len()).map_err(|_| limit("4 GiB for one message".to_owned()))?;
        let body_len = u32::try_from(record.body.len()).map_err(|_| limit("4 GiB for one message".to_owned()))?;
        let entry = MessageEntry {
            id: record.id,
            // A record without slots could never be forgotten.
            slots: record.slots.max(1),
            affinity: record.affinity,
            meta_len,
            body_len,
            meta_crc: payload_crc(record.id, &record.meta),
            body_crc: payload_crc(record.id, &record.body),
            done: BTreeSet::new(),
        };
        let prepared = Self { entry, meta: record.meta, body: record.body };
        if HEADER_BYTES + BATCH_HEADER_BYTES + prepared.cost() + TRAILER_BYTES > options.segment_bytes {
            return Err(limit(format!("a message of {} bytes does not fit segments of {} bytes", prepared.payload_bytes(), options.segment_bytes)));
        }
        Ok(prepared)
    }

    pub(super) fn payload_bytes(&self) -> u64 {
        self.entry.payload_bytes()
    }

    /// Bytes that it takes of a segment, index included.
    fn cost(&self) -> u64 {
        entry_cost(&Entry::Message(self.entry.clone())) + self.payload_bytes()
    }
}

/// Bytes that an entry takes in its batch and in the index block.
pub(super) fn entry_cost(entry: &Entry) -> u64 {
    let mut bytes = vec![];
    entry.encode_to(&mut bytes);
    2 * bytes.len() as u64 + LOCATED_EXTRA_BYTES
}

/// What a file is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    Open,
    Sealed,
    /// Its header is unreadable: set aside for a person.
    Lost,
}

/// A segment file and its present use.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) bytes: u64,
    pub(super) phase: Phase,
    pub(super) epoch: u64,
    pub(super) salt: u64,
    pub(super) end: u64,
    /// Encoded index entries, while open.
    pub(super) index: Vec<u8>,
    pub(super) sealed_ms: u64,
    pub(super) live_records: usize,
    pub(super) live_bytes: u64,
    /// Epochs of the uses that hold records whose completions stand here.
    pub(super) homes: BTreeSet<u64>,
    /// Parts of it are unreadable, or hold a corrupt record: neither recycled nor compacted.
    pub(super) damaged: bool,
}

impl Segment {
    pub(super) fn free(bytes: u64) -> Self {
        Self {
            bytes,
            phase: Phase::Free,
            epoch: 0,
            salt: 0,
            end: HEADER_BYTES,
            index: vec![],
            sealed_ms: 0,
            live_records: 0,
            live_bytes: 0,
            homes: BTreeSet::new(),
            damaged: false,
        }
    }

    /// Bytes that batches and their index entries may still take.
    pub(super) fn room(&self) -> u64 {
        if self.phase == Phase::Open { self.bytes.saturating_sub(self.end + self.index.len() as u64 + TRAILER_BYTES) } else { 0 }
    }
}

/// The log.
pub struct Log {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) settings: Settings,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) segments: BTreeMap<u32, Segment>,
    /// Epochs of the uses whose content counts on disk.
    pub(super) uses: BTreeSet<u64>,
    pub(super) hot: Option<u32>,
    pub(super) cold: Option<u32>,
    pub(super) sequence: u64,
    pub(super) job: Option<Job>,
    pub(super) plan_retry_ms: u64,
    failed: Option<String>,
    create_retry_ms: u64,
    create_error: Option<String>,
}

impl Log {
    pub(super) fn empty(disk: Arc<dyn Disk>, settings: Settings) -> Self {
        Self {
            disk,
            settings,
            state: Arc::new(Mutex::new(State::default())),
            segments: BTreeMap::new(),
            uses: BTreeSet::new(),
            hot: None,
            cold: None,
            sequence: 0,
            job: None,
            plan_retry_ms: 0,
            failed: None,
            create_retry_ms: 0,
            create_error: None,
        }
    }

    /// Reads records, from any thread.
    pub fn reader(&self) -> Reader {
        Reader {
            disk: Arc::clone(&self.disk),
            state: Arc::clone(&self.state),
            dir: self.settings.options.dir.clone(),
            verify: self.settings.rules.verify_payload,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Writes and syncs records, in as few batches as they fit; completions that wait ride along. One result per record, in their order.
    pub fn append_batch(&mut self, records: Vec<Prepared>, now_ms: u64) -> Vec<Result<Durable, SpoolError>> {
        let mut results: Vec<Option<Result<Durable, SpoolError>>> = records.iter().map(|_| None).collect();
        let mut admitted = vec![];
        let mut seen = BTreeSet::new();
        for (position, record) in records.into_iter().enumerate() {
            let id = record.entry.id;
            match self.admit(&record, seen.len(), now_ms) {
                Some(answer) => results[position] = Some(answer),
                None if seen.insert(id) => admitted.push((position, record)),
                None => results[position] = Some(Err(SpoolError::Duplicate(id))),
            }
        }
        self.write_all(admitted, &mut results, now_ms);
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(self.failure("no answer")))).collect()
    }

    /// What can be answered without writing: limits, and a record that is there already (a peer that did not hear our answer sends again).
    fn admit(&mut self, record: &Prepared, ahead: usize, now_ms: u64) -> Option<Result<Durable, SpoolError>> {
        if self.failed.is_some() {
            return Some(Err(self.failure("")));
        }
        let id = record.entry.id;
        let finished = self.lock().entries.get(&id).is_some_and(|entry| entry.finished);
        if finished && let Err(error) = self.flush(now_ms) {
            return Some(Err(error));
        }
        let mut state = self.lock();
        if let Some(entry) = state.entries.get(&id) {
            let (place, new) = (entry.place, &record.entry);
            let same = (place.meta_len, place.meta_crc, place.body_len, place.body_crc) == (new.meta_len, new.meta_crc, new.body_len, new.body_crc);
            return Some(if same && !entry.corrupt { Ok(Durable(id)) } else { Err(SpoolError::Duplicate(id)) });
        }
        let max = self.settings.options.records_max;
        if state.entries.len() + ahead >= max {
            state.status.full = true;
            return Some(Err(self.full(format!("records_max {max}"))));
        }
        None
    }

    fn write_all(&mut self, mut waiting: Vec<(usize, Prepared)>, results: &mut [Option<Result<Durable, SpoolError>>], now_ms: u64) {
        while let Some((_, first)) = waiting.first() {
            let written = self.mail_segment(first.cost() + BATCH_HEADER_BYTES, now_ms).and_then(|segment| {
                let mut room = self.segments.get(&segment).map_or(0, Segment::room).saturating_sub(BATCH_HEADER_BYTES);
                let mut count = 0;
                for (_, record) in &waiting {
                    let Some(left) = room.checked_sub(record.cost()) else { break };
                    room = left;
                    count += 1;
                }
                let rest = waiting.split_off(count);
                let (positions, batch): (Vec<usize>, Vec<Prepared>) = std::mem::replace(&mut waiting, rest).into_iter().unzip();
                let completions = self.waiting_completions(room);
                let outcome = self.commit(segment, &batch, &completions, now_ms);
                for (position, record) in positions.into_iter().zip(&batch) {
                    results[position] = Some(match &outcome {
                        Ok(()) => Ok(Durable(record.entry.id)),
                        Err(_) => Err(self.failure("")),
                    });
                }
                outcome
            });
            let full = matches!(written, Err(SpoolError::Full { .. }));
            self.lock().status.full = full;
            if let Err(error) = written {
                for (position, _) in waiting {
                    results[position] = Some(Err(match &error {
                        SpoolError::Full { limit, .. } => self.full(limit.clone()),
                        other => self.failure(&other.to_string()),
                    }));
                }
                return;
            }
        }
    }

    /// Marks slots done, in memory; durable with the next batch, or after [`Self::flush`]. Slots that do not exist and records that are not there are ignored.
    pub fn complete(&mut self, id: QueueId, slots: impl IntoIterator<Item = u16>, now_ms: u64) {
        self.lock().complete(id, slots, now_ms);
    }

    /// Records with completions that are not durable yet.
    pub fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// Writes the completions that wait.
    pub fn flush(&mut self, now_ms: u64) -> Result<(), SpoolError> {
        while let Some(first) = self.waiting_completions(u64::MAX).into_iter().next() {
            let segment = self.completion_segment(entry_cost(&Entry::Completion(first.clone())) + BATCH_HEADER_BYTES, now_ms)?;
            let room = self.segments.get(&segment).map_or(0, Segment::room).saturating_sub(BATCH_HEADER_BYTES);
            let completions = self.waiting_completions(room);
            self.commit(segment, &[], &completions, now_ms)?;
        }
        Ok(())
    }

    /// What is due: completions that have waited long enough, segments to recycle, one step of compaction. Call it after batches and every few seconds.
    pub fn tick(&mut self, now_ms: u64) -> Result<(), SpoolError> {
        if self.failed.is_some() {
            return Err(self.failure(""));
        }
        let since = self.lock().pending_since_ms;
        // A clock that was set back makes them due, too.
        if since.is_some_and(|since| now_ms < since || now_ms >= since.saturating_add(COMPLETION_DELAY_MS)) {
            self.flush(now_ms)?;
        }
        self.reclaim(now_ms)?;
        self.compact_step(now_ms)?;
        let free = self.free_segments();
        let space = free > 1 || (free == 1 && self.hot.is_some()) || self.may_create(now_ms);
        let mut state = self.lock();
        if space && state.entries.len() < self.settings.options.records_max {
            state.status.full = false;
        }
        Ok(())
    }

    /// More of the running compaction is to be done at the next [`Self::tick`].
    pub fn compacting(&self) -> bool {
        self.job.is_some()
    }

    /// Figures.
    pub fn status(&self) -> SpoolStatus {
        self.lock().status.clone()
    }

    /// Completions that wait, as many as take at most `room` bytes.
    fn waiting_completions(&self, room: u64) -> Vec<Completion> {
        let state = self.lock();
        let mut left = room.min(COMPLETIONS_BYTES_MAX);
        let mut completions = vec![];
        for (id, pending) in &state.pending {
            let Some(entry) = state.entries.get(id) else { continue };
            let homes = entry.homes.iter().copied().filter(|home| self.uses.contains(home)).collect();
            let completed = if pending.all { Completed::All } else { Completed::Slots(pending.slots.clone()) };
            let completion = Completion { id: *id, before: self.sequence + 1, completed, homes };
            let Some(rest) = left.checked_sub(entry_cost(&Entry::Completion(completion.clone()))) else { break };
            left = rest;
            completions.push(completion);
        }
        completions
    }

    /// Writes and syncs one batch, then lets the index know.
    pub(super) fn commit(&mut self, number: u32, records: &[Prepared], completions: &[Completion], now_ms: u64) -> Result<(), SpoolError> {
        let Some(segment) = self.segments.get(&number) else { return Err(self.failure("no open segment")) };
        let (offset, salt, epoch, room) = (segment.end, segment.salt, segment.epoch, segment.room());
        self.sequence += 1;
        let completion_entries = completions.iter().cloned().map(Entry::Completion);
        let entries: Vec<Entry> = completion_entries.chain(records.iter().map(|record| Entry::Message(record.entry.clone()))).collect();
        let mut encoded = vec![];
        entries.iter().for_each(|entry| entry.encode_to(&mut encoded));
        let header = BatchHeader {
            salt,
            sequence: self.sequence,
            offset,
            // One batch is in flight at a time: all before it is synced.
            synced_to: offset,
            entries_bytes: encoded.len() as u32,
            entries: entries.len() as u32,
            entries_crc: crc32c::crc32c(&encoded),
            payload_bytes: records.iter().map(Prepared::payload_bytes).sum(),
        };
        // Never over the index, whatever the accounts above say.
        let need = BATCH_HEADER_BYTES + header.payload_bytes + 2 * encoded.len() as u64 + LOCATED_EXTRA_BYTES * entries.len() as u64;
        if need > room {
            return Err(self.failure("a batch does not fit its segment"));
        }
        let head = header.encode();
        let mut parts = vec![IoSlice::new(&head), IoSlice::new(&encoded)];
        parts.extend(records.iter().flat_map(|record| [IoSlice::new(&record.meta), IoSlice::new(&record.body)]));
        self.put(number, offset, &mut parts, self.settings.rules.sync)?;

        let mut payload_at = header.payload_at();
        let mut index = vec![];
        for entry in entries {
            let mut at = 0;
            if let Entry::Message(message) = &entry {
                at = payload_at;
                payload_at += message.payload_bytes();
                self.place_record(number, epoch, at, message);
            }
            Located { sequence: self.sequence, payload_at: at, entry }.encode_to(&mut index);
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.end = payload_at;
            segment.index.extend_from_slice(&index);
            segment.homes.extend(completions.iter().flat_map(|completion| completion.homes.iter().copied()));
        }
        self.settle(completions, now_ms);
        self.refresh_status();
        Ok(())
    }

    /// A record is durable at a new place: a new one, or one that compaction moved.
    fn place_record(&mut self, segment: u32, epoch: u64, payload_at: u64, message: &MessageEntry) {
        let MessageEntry { id, slots, affinity, meta_len, body_len, meta_crc, body_crc, .. } = *message;
        let place = Place { segment, payload_at, sequence: self.sequence, meta_len, body_len, meta_crc, body_crc };
        let mut state = self.state.lock().expect("no panic while held");
        let moved_from = match state.entries.get_mut(&id) {
            Some(entry) => {
                entry.homes.push(epoch);
                Some(std::mem::replace(&mut entry.place, place))
            }
            None => {
                let done = message.done.clone();
                state.entries.insert(id, state::Entry { place, slots, affinity, done, finished: false, corrupt: false, homes: vec![epoch] });
                None
            }
        };
        drop(state);
        if let Some(old) = moved_from {
            self.forget_place(old);
        }
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live_records += 1;
            segment.live_bytes += place.payload_bytes();
        }
    }

    fn forget_place(&mut self, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live_records -= 1;
            segment.live_bytes -= place.payload_bytes();
        }
    }

    /// Completions are durable: records that are done leave the index.
    fn settle(&mut self, completions: &[Completion], now_ms: u64) {
        let mut gone = vec![];
        let mut state = self.state.lock().expect("no panic while held");
        for completion in completions {
            // One that compaction logged again may speak of an earlier life of the id.
            if state.entries.get(&completion.id).is_none_or(|entry| entry.place.sequence >= completion.before) {
                continue;
            }
            state.settle(completion.id, &completion.completed, now_ms);
            if completion.completed == Completed::All
                && let Some(entry) = state.entries.remove(&completion.id)
            {
                gone.push(entry.place);
                if entry.corrupt {
                    state.status.corrupt_records -= 1;
                }
            }
        }
        drop(state);
        gone.into_iter().for_each(|place| self.forget_place(place));
    }

    pub(super) fn refresh_status(&self) {
        let live_bytes = self.segments.values().map(|segment| segment.live_bytes).sum();
        let segments = self.segments.values().filter(|segment| segment.phase != Phase::Free).count() as u32;
        let mut state = self.lock();
        state.status.records = state.entries.len();
        state.status.live_bytes = live_bytes;
        state.status.segments = segments;
        state.status.failed = self.failed.is_some();
    }

    /// Writes, syncs and counts. After an error nothing is written any more: what the kernel dropped, a second sync would not bring back.
    pub(super) fn put(&mut self, segment: u32, offset: u64, parts: &mut [IoSlice<'_>], sync: bool) -> Result<(), SpoolError> {
        if self.failed.is_some() {
            return Err(self.failure(""));
        }
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if let Err(cause) = self.disk.write_at(segment, offset, parts) {
            return Err(self.fail(&format!("writing {bytes} bytes to segment {segment}: {cause}")));
        }
        self.lock().status.written_bytes += bytes as u64;
        if sync {
            if let Err(cause) = self.disk.sync(segment) {
                return Err(self.fail(&format!("syncing segment {segment}: {cause}")));
            }
            self.lock().status.syncs += 1;
        }
        Ok(())
    }

    /// Gives up writing, for good.
    fn fail(&mut self, cause: &str) -> SpoolError {
        tracing::error!(dir = %self.settings.options.dir.display(), cause, "the spool takes no more mail until it is opened again");
        self.failed = Some(cause.to_owned());
        self.refresh_status();
        self.failure(cause)
    }

    /// The error that stands, or this one.
    pub(super) fn failure(&self, cause: &str) -> SpoolError {
        let cause = self.failed.clone().unwrap_or_else(|| cause.to_owned());
        SpoolError::Failed { dir: self.settings.options.dir.clone(), cause }
    }

    pub(super) fn full(&self, limit: String) -> SpoolError {
        SpoolError::Full { dir: self.settings.options.dir.clone(), limit }
    }

    pub(super) fn free_segments(&self) -> usize {
        self.segments.values().filter(|segment| segment.phase == Phase::Free).count()
    }

    fn has_room(&self, number: Option<u32>, need: u64) -> Option<u32> {
        number.filter(|number| self.segments.get(number).is_some_and(|segment| segment.room() >= need))
    }

    /// Where new mail goes. It never takes the last free segment, nor writes on in it.
    fn mail_segment(&mut self, need: u64, now_ms: u64) -> Result<u32, SpoolError> {
        let open = self.has_room(self.hot, need);
        let keep_free = if open.is_some() { 1 } else { 2 };
        if self.free_segments() < keep_free {
            self.reclaim(now_ms)?;
        }
        while self.free_segments() < keep_free && self.create(now_ms) {}
        if self.free_segments() < keep_free {
            let max = self.settings.options.segments_max;
            let limit =
                self.create_error.clone().map_or_else(|| format!("segments_max {max}"), |cause| format!("no room for another segment: {cause}"));
            return Err(self.full(limit));
        }
        match open {
            Some(number) => Ok(number),
            None => self.next_segment(SegmentKind::Hot, now_ms),
        }
    }

    /// Where completions go when no mail takes them along: anywhere, the reserve included.
    pub(super) fn completion_segment(&mut self, need: u64, now_ms: u64) -> Result<u32, SpoolError> {
        if let Some(number) = self.has_room(self.hot, need) {
            return Ok(number);
        }
        if self.free_segments() == 0 {
            self.reclaim(now_ms)?;
        }
        if self.free_segments() > 0 || self.create(now_ms) {
            return self.next_segment(SegmentKind::Hot, now_ms);
        }
        self.has_room(self.cold, need).ok_or_else(|| self.full(format!("the reserve too, of segments_max {}", self.settings.options.segments_max)))
    }

    /// Where compaction writes. It may take the reserve, as it gives back more than it takes.
    pub(super) fn cold_segment(&mut self, need: u64, now_ms: u64) -> Result<u32, SpoolError> {
        if let Some(number) = self.has_room(self.cold, need) {
            return Ok(number);
        }
        if self.free_segments() > 0 || self.create(now_ms) {
            let number = self.next_segment(SegmentKind::Cold, now_ms)?;
            return self.has_room(Some(number), need).ok_or_else(|| self.full(format!("{need} bytes in one segment")));
        }
        self.has_room(self.hot, need).ok_or_else(|| self.full(format!("segments_max {}", self.settings.options.segments_max)))
    }

    /// Makes another segment if the limit and the disk allow.
    pub(super) fn create(&mut self, now_ms: u64) -> bool {
        if !self.may_create(now_ms) {
            return false;
        }
        let number = self.segments.keys().next_back().map_or(1, |last| last + 1);
        let bytes = self.settings.options.segment_bytes;
        match self.disk.create(number, bytes) {
            Ok(()) => {
                self.create_error = None;
                self.segments.insert(number, Segment::free(bytes));
                self.lock().status.preallocated_bytes += bytes;
                true
            }
            Err(cause) => {
                tracing::warn!(dir = %self.settings.options.dir.display(), %cause, "no room for another spool segment");
                self.create_error = Some(cause.to_string());
                self.create_retry_ms = now_ms.saturating_add(CREATE_RETRY_MS);
                false
            }
        }
    }

    pub(super) fn may_create(&self, now_ms: u64) -> bool {
        (self.segments.len() as u64) < u64::from(self.settings.options.segments_max)
            && (self.create_error.is_none() || now_ms >= self.create_retry_ms)
    }

    /// Seals the open segment of a kind and begins another.
    fn next_segment(&mut self, kind: SegmentKind, now_ms: u64) -> Result<u32, SpoolError> {
        let current = if kind == SegmentKind::Cold { self.cold.take() } else { self.hot.take() };
        if let Some(current) = current {
            self.seal(current, now_ms)?;
        }
        let Some(number) = self.segments.iter().find(|(_, segment)| segment.phase == Phase::Free).map(|(number, _)| *number) else {
            return Err(self.full(format!("segments_max {}", self.settings.options.segments_max)));
        };
        let header = self.write_header(number, kind, now_ms)?;
        if let Some(segment) = self.segments.get_mut(&number) {
            *segment = Segment { phase: Phase::Open, epoch: header.epoch, salt: header.salt, ..Segment::free(segment.bytes) };
        }
        self.uses.insert(header.epoch);
        let open = if kind == SegmentKind::Cold { &mut self.cold } else { &mut self.hot };
        *open = Some(number);
        self.refresh_status();
        Ok(number)
    }

    /// Begins or ends a use of a segment. This is what destroys old content, so another process must not have taken over.
    pub(super) fn write_header(&mut self, segment: u32, kind: SegmentKind, now_ms: u64) -> Result<SegmentHeader, SpoolError> {
        let opening = match self.disk.fence() {
            Ok(opening) => opening,
            Err(cause) => return Err(self.fail(&cause.to_string())),
        };
        self.sequence += 1;
        let salt = mix(self.settings.salt_seed ^ mix(self.sequence));
        let segment_bytes = self.segments.get(&segment).map_or(0, |segment| segment.bytes);
        let header = SegmentHeader { kind, segment, segment_bytes, epoch: self.sequence, salt, opening, opened_ms: now_ms };
        self.put(segment, 0, &mut [IoSlice::new(&header.encode())], true)?;
        Ok(header)
    }

    /// Writes the index block.
    pub(super) fn seal(&mut self, number: u32, now_ms: u64) -> Result<(), SpoolError> {
        let Some(segment) = self.segments.get_mut(&number) else { return Ok(()) };
        let index = std::mem::take(&mut segment.index);
        segment.phase = Phase::Sealed;
        segment.sealed_ms = now_ms;
        let trailer = Trailer {
            salt: segment.salt,
            end: segment.end,
            sealed_ms: now_ms,
            sequence: self.sequence,
            entries_bytes: index.len() as u64,
            entries_crc: crc32c::crc32c(&index),
        };
        let offset = segment.bytes - TRAILER_BYTES - index.len() as u64;
        self.put(number, offset, &mut [IoSlice::new(&index), IoSlice::new(&trailer.encode())], true)
    }

    /// Recycles the segments whose content is dead: no live record, and (the tombstone rule) no completion of a record whose own segment still counts.
    pub(super) fn reclaim(&mut self, now_ms: u64) -> Result<(), SpoolError> {
        while let Some(number) = self.segments.iter().find(|(_, segment)| self.is_dead(segment)).map(|(number, _)| *number) {
            let header = self.write_header(number, SegmentKind::Free, now_ms)?;
            if let Some(segment) = self.segments.get_mut(&number) {
                self.uses.remove(&segment.epoch);
                *segment = Segment { epoch: header.epoch, ..Segment::free(segment.bytes) };
            }
            self.refresh_status();
        }
        Ok(())
    }

    fn is_dead(&self, segment: &Segment) -> bool {
        segment.phase == Phase::Sealed && segment.live_records == 0 && !segment.damaged && !self.is_tombstone(segment)
    }

    /// It holds completions that a crash would miss.
    pub(super) fn is_tombstone(&self, segment: &Segment) -> bool {
        self.settings.rules.tombstones && segment.homes.iter().any(|home| *home != segment.epoch && self.uses.contains(home))
    }

    pub(super) fn open_failed(&self, cause: &io::Error, what: &str) -> SpoolError {
        self.failure(&format!("{what}: {cause}"))
    }
}

/// A well mixed number (the finalizer of splitmix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
