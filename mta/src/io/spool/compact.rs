//! Compaction: segments that only stragglers keep alive are emptied into the cold log, grouped by affinity, in steps of bounded size.
//!
//! A victim counts until everything in it that counts stands elsewhere, synced: first its live records, then the completions whose records' own segments
//! still count. Only then is it recycled. A crash in between leaves two copies of a record; recovery takes the one with the higher sequence.

use std::collections::VecDeque;

use bytes::Bytes;

use super::SpoolError;
use super::format::{BATCH_HEADER_BYTES, Completion, Entry, Located, MessageEntry, payload_crc};
use super::log::{Log, Phase, Prepared, Segment, entry_cost};
use super::state::Place;
use crate::queue_id::QueueId;

/// A sealed segment older than this may be compacted.
pub const STRAGGLER_AGE_MS: u64 = 15 * 60 * 1000;
/// At most this share of a segment's bytes may be alive.
const LIVE_PERCENT_MAX: u64 = 25;
/// The same, and at any age, when there is no free segment but the reserve.
const LIVE_PERCENT_MAX_FULL: u64 = 50;
/// Bytes copied in one step.
const STEP_BYTES: u64 = 2 << 20;
/// Entry, index entry and what a done bitmap usually takes.
const RECORD_COST_BYTES: u64 = 160;

/// A compaction under way.
#[derive(Debug)]
pub(super) struct Job {
    victims: Vec<u32>,
    moves: VecDeque<(u64, QueueId, Place)>,
    relog: VecDeque<Completion>,
}

impl Log {
    /// Does one step of the running compaction, or plans one.
    pub(super) fn compact_step(&mut self, now_ms: u64) -> Result<(), SpoolError> {
        let Some(mut job) = self.job.take().or_else(|| self.plan(now_ms)) else { return Ok(()) };
        let outcome = if job.moves.is_empty() { self.relog(&mut job, now_ms) } else { self.move_some(&mut job, now_ms) };
        match outcome {
            Ok(true) => {
                for victim in job.victims {
                    if let Some(segment) = self.segments.get_mut(&victim) {
                        segment.homes.clear();
                    }
                }
                self.reclaim(now_ms)
            }
            Ok(false) => {
                self.job = Some(job);
                Ok(())
            }
            // What was moved stays moved; the rest is planned anew when there is room.
            Err(SpoolError::Full { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Picks victims: those that cost least, as many as surely fit into one cold segment.
    fn plan(&self, now_ms: u64) -> Option<Job> {
        let pressed = self.free_segments() < 2 && !self.may_create(now_ms);
        let mut candidates: Vec<(u64, u32)> =
            self.segments.iter().filter(|(_, segment)| self.is_straggler(segment, pressed, now_ms)).map(|(n, s)| (s.live_bytes, *n)).collect();
        candidates.sort_unstable();
        let (mut job, mut cost) = (Job { victims: vec![], moves: VecDeque::new(), relog: VecDeque::new() }, 0);
        let mut moves = vec![];
        for (_, number) in candidates {
            let Some(segment) = self.segments.get(&number) else { continue };
            let Some(located) = self.read_index(number, segment) else { continue };
            let live = self.live_records(number, &located);
            let needed: Vec<Completion> = located.into_iter().filter_map(|l| self.needed_completion(l, segment.epoch)).collect();
            let completions: u64 = needed.iter().map(|c| entry_cost(&Entry::Completion(c.clone()))).sum();
            cost += segment.live_bytes + segment.live_records as u64 * RECORD_COST_BYTES + completions + 2 * BATCH_HEADER_BYTES;
            if cost > segment.bytes / 2 && !job.victims.is_empty() {
                break;
            }
            moves.extend(live);
            job.relog.extend(needed);
            job.victims.push(number);
        }
        moves.sort_unstable_by_key(|(affinity, id, _)| (*affinity, *id));
        job.moves = moves.into();
        (!job.victims.is_empty()).then_some(job)
    }

    fn is_straggler(&self, segment: &Segment, pressed: bool, now_ms: u64) -> bool {
        let percent = if pressed { LIVE_PERCENT_MAX_FULL } else { LIVE_PERCENT_MAX };
        let old = pressed || now_ms.saturating_sub(segment.sealed_ms) > STRAGGLER_AGE_MS;
        segment.phase == Phase::Sealed && !segment.damaged && old && segment.live_bytes * 100 < segment.bytes * percent
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

    fn live_records(&self, number: u32, located: &[Located]) -> Vec<(u64, QueueId, Place)> {
        let state = self.lock();
        let ids = located.iter().filter_map(|located| if let Entry::Message(message) = &located.entry { Some(message.id) } else { None });
        ids.filter_map(|id| state.entries.get(&id).map(|entry| (entry.affinity, id, entry.place))).filter(|(_, _, place)| place.segment == number).collect()
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
                bytes += record.payload_bytes() + RECORD_COST_BYTES + record.entry.done.last().map_or(0, |last| u64::from(*last / 4));
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
            let segment = self.completion_segment(bytes, now_ms)?;
            self.commit(segment, &[], &batch, now_ms)?;
        }
        Ok(job.relog.is_empty())
    }
}
