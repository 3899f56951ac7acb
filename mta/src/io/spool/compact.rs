//! Compaction: segments that only stragglers keep alive are emptied into the cold log, grouped by affinity, in steps of bounded size.
//!
//! A victim counts until everything in it that counts stands elsewhere, synced: first its live records, then the completions whose records' own segments
//! still count. Only then is it recycled. A crash in between leaves two copies of a record; recovery takes the one with the higher sequence.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::SpoolError;
use super::format::{BATCH_HEADER_BYTES, Completion, Entry, HEADER_BYTES, Located, MessageEntry, TRAILER_BYTES, payload_crc};
use super::log::{Log, Phase, Prepared, Segment, entry_cost};
use super::state::Place;
use crate::queue_id::QueueId;

/// A sealed segment older than this may be compacted.
pub const STRAGGLER_AGE_MS: u64 = 15 * 60 * 1000;
/// At most this share of a segment may be alive, in bytes that it takes elsewhere.
const LIVE_PERCENT_MAX: u64 = 25;
/// The same, and at any age, when there is no free segment but the reserve. Two such victims fit one segment, or they would chase each other for ever.
const LIVE_PERCENT_MAX_PRESSED: u64 = 45;
/// A compaction that found no room is planned again after this.
const PLAN_RETRY_MS: u64 = 1_000;
/// Bytes copied in one step.
const STEP_BYTES: u64 = 2 << 20;
/// Entry and index entry, without the bitmap of slots.
const RECORD_COST_BYTES: u64 = 140;

/// A compaction under way.
#[derive(Debug)]
pub(super) struct Job {
    /// Numbers and epochs: one may be recycled and used anew before the job is done.
    victims: Vec<(u32, u64)>,
    moves: VecDeque<(u64, QueueId, Place)>,
    relog: VecDeque<Completion>,
}

/// Bytes that a record takes in a batch and in the index block, at most.
fn record_cost(place: &Place, done: &BTreeSet<u16>) -> u64 {
    place.payload_bytes() + RECORD_COST_BYTES + done.last().map_or(0, |last| u64::from(*last) / 4 + 2)
}

/// Worth emptying. One without live records is here because of the completions in it.
fn is_straggler(segment: &Segment, pressed: bool, now_ms: u64) -> bool {
    let percent = if pressed { LIVE_PERCENT_MAX_PRESSED } else { LIVE_PERCENT_MAX };
    let old = pressed || now_ms.saturating_sub(segment.sealed_ms) > STRAGGLER_AGE_MS;
    let cost = segment.live_bytes + segment.live_records as u64 * RECORD_COST_BYTES;
    let capacity = segment.bytes.saturating_sub(HEADER_BYTES + TRAILER_BYTES);
    segment.phase == Phase::Sealed && !segment.damaged && old && cost * 100 < capacity * percent
}

impl Log {
    /// Does one step of the running compaction, or plans one. If only the reserve is left, mail is refused anyway: then one victim is emptied at once.
    pub(super) fn compact_step(&mut self, now_ms: u64) -> Result<(), SpoolError> {
        let pressed = self.is_pressed(now_ms);
        if pressed && self.job.is_none() && self.segments.values().any(|segment| is_straggler(segment, pressed, now_ms)) {
            // Records that are done are neither copied nor in the way.
            self.flush(now_ms)?;
            self.reclaim(now_ms)?;
        }
        loop {
            match self.compact_some(pressed, now_ms) {
                Ok(()) if pressed && self.job.is_some() => {}
                // What was moved stays moved; the rest is planned anew when there is room.
                Err(SpoolError::Full { .. }) => {
                    self.plan_retry_ms = now_ms + PLAN_RETRY_MS;
                    return Ok(());
                }
                outcome => return outcome,
            }
        }
    }

    fn compact_some(&mut self, pressed: bool, now_ms: u64) -> Result<(), SpoolError> {
        let mut job = match self.job.take() {
            Some(job) => job,
            None if now_ms < self.plan_retry_ms && now_ms + PLAN_RETRY_MS >= self.plan_retry_ms => return Ok(()),
            None => {
                let Some((job, cost)) = self.plan(pressed, now_ms) else { return Ok(()) };
                // Room for all of it, before a part of it takes the last there is.
                self.cold_segment(cost, now_ms)?;
                job
            }
        };
        let finished = if job.moves.is_empty() { self.relog(&mut job, now_ms)? } else { self.move_some(&mut job, now_ms)? };
        if !finished {
            self.job = Some(job);
            return Ok(());
        }
        for (number, epoch) in job.victims {
            if let Some(segment) = self.segments.get_mut(&number).filter(|segment| segment.epoch == epoch) {
                segment.homes.clear();
            }
        }
        self.reclaim(now_ms)
    }

    /// Nothing is free but the reserve, and nothing can be made.
    fn is_pressed(&self, now_ms: u64) -> bool {
        self.free_segments() < 2 && !self.may_create(now_ms)
    }

    /// Picks victims, those that cost least: one, or as many as surely fit into one cold segment. Also says what they cost there.
    fn plan(&self, pressed: bool, now_ms: u64) -> Option<(Job, u64)> {
        let mut candidates: Vec<(u64, u32)> =
            self.segments.iter().filter(|(_, segment)| is_straggler(segment, pressed, now_ms)).map(|(n, s)| (s.live_bytes, *n)).collect();
        candidates.sort_unstable();
        let (mut job, mut cost) = (Job { victims: vec![], moves: VecDeque::new(), relog: VecDeque::new() }, 0);
        let mut moves = vec![];
        for (_, number) in candidates {
            let Some(segment) = self.segments.get(&number) else { continue };
            let Some(located) = self.read_index(number, segment) else { continue };
            let (live, live_cost) = self.live_records(number, &located);
            let needed: Vec<Completion> = located.into_iter().filter_map(|l| self.needed_completion(l, segment.epoch)).collect();
            let completions: u64 = needed.iter().map(|c| entry_cost(&Entry::Completion(c.clone()))).sum();
            // A batch header for every step, and one for a step begun.
            let own = live_cost + completions;
            let own = own + (own / STEP_BYTES + 2) * BATCH_HEADER_BYTES;
            if !job.victims.is_empty() && (pressed || cost + own > segment.bytes / 2) {
                break;
            }
            cost += own;
            moves.extend(live);
            job.relog.extend(needed);
            job.victims.push((number, segment.epoch));
        }
        moves.sort_unstable_by_key(|(affinity, id, _)| (*affinity, *id));
        job.moves = moves.into();
        (!job.victims.is_empty()).then_some((job, cost))
    }

    /// The index block of a sealed segment.
    fn read_index(&self, number: u32, segment: &Segment) -> Option<Vec<Located>> {
        match super::recover::read_index(&*self.disk, number, segment.salt, segment.bytes) {
            Ok(found) => found.map(|(_, located)| located),
            Err(cause) => {
                tracing::warn!(segment = number, %cause, "a spool segment's index cannot be read; it is not compacted");
                None
            }
        }
    }

    /// Records that live there, and what they take elsewhere.
    fn live_records(&self, number: u32, located: &[Located]) -> (Vec<(u64, QueueId, Place)>, u64) {
        let state = self.lock();
        let (mut live, mut cost) = (vec![], 0);
        for located in located {
            if let Entry::Message(message) = &located.entry
                && let Some(entry) = state.entries.get(&message.id)
                && entry.place.segment == number
            {
                cost += record_cost(&entry.place, &entry.done);
                live.push((entry.affinity, message.id, entry.place));
            }
        }
        (live, cost)
    }

    /// A completion that must outlive this segment, with the homes it still has.
    fn needed_completion(&self, located: Located, epoch: u64) -> Option<Completion> {
        let Entry::Completion(mut completion) = located.entry else { return None };
        completion.homes.retain(|home| *home != epoch && self.uses.contains(home));
        (!completion.homes.is_empty()).then_some(completion)
    }

    /// Copies up to [`STEP_BYTES`] of live records.
    fn move_some(&mut self, job: &mut Job, now_ms: u64) -> Result<bool, SpoolError> {
        let (mut batch, mut bytes) = (vec![], 0);
        while bytes < STEP_BYTES
            && let Some((_, id, place)) = job.moves.pop_front()
        {
            if let Some(record) = self.load(id, place) {
                bytes += record_cost(&place, &record.entry.done);
                batch.push(record);
            }
        }
        if !batch.is_empty() {
            let segment = self.cold_segment(bytes + BATCH_HEADER_BYTES, now_ms)?;
            self.commit(segment, &batch, &[], now_ms)?;
            self.lock().status.compacted_bytes += batch.iter().map(Prepared::payload_bytes).sum::<u64>();
        }
        Ok(job.moves.is_empty() && job.relog.is_empty())
    }

    /// Reads and verifies a record that is still where it was. One that is corrupt stays where it is, and its segment with it.
    fn load(&mut self, id: QueueId, place: Place) -> Option<Prepared> {
        let state = self.lock();
        let entry = state.entries.get(&id).filter(|entry| entry.place == place && !entry.finished && !entry.corrupt)?;
        let (slots, affinity, done) = (entry.slots, entry.affinity, entry.done.clone());
        drop(state);
        let mut buffer = vec![0; place.payload_bytes() as usize];
        let read = self.disk.read_at(place.segment, place.payload_at, &mut buffer);
        let payload = Bytes::from(buffer);
        let (meta, body) = (payload.slice(..place.meta_len as usize), payload.slice(place.meta_len as usize..));
        let sound = payload_crc(id, &meta) == place.meta_crc && payload_crc(id, &body) == place.body_crc;
        if read.is_err() || (self.settings.rules.verify_payload && !sound) {
            self.reader().condemn(id, place);
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.damaged = true;
            }
            return None;
        }
        let Place { meta_len, body_len, meta_crc, body_crc, .. } = place;
        Some(Prepared { entry: MessageEntry { id, slots, affinity, meta_len, body_len, meta_crc, body_crc, done }, meta, body })
    }

    /// Logs completions again.
    fn relog(&mut self, job: &mut Job, now_ms: u64) -> Result<bool, SpoolError> {
        let (mut batch, mut bytes) = (vec![], BATCH_HEADER_BYTES);
        while bytes < STEP_BYTES
            && let Some(mut completion) = job.relog.pop_front()
        {
            completion.homes.retain(|home| self.uses.contains(home));
            if !completion.homes.is_empty() {
                bytes += entry_cost(&Entry::Completion(completion.clone()));
                batch.push(completion);
            }
        }
        if !batch.is_empty() {
            let segment = self.cold_segment(bytes, now_ms)?;
            self.commit(segment, &[], &batch, now_ms)?;
        }
        Ok(job.relog.is_empty())
    }
}
