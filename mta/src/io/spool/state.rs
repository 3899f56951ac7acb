//! What readers and the writer share: the index and the completions that wait. Locked for moments, never during input or output.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::disk::Disk;
use super::format::{Completed, payload_crc};
use super::{SpoolError, SpoolStatus};
use crate::queue_id::QueueId;

/// A live record.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) place: Place,
    pub(super) slots: u16,
    pub(super) affinity: u64,
    pub(super) done: BTreeSet<u16>,
    /// All slots are done; the completion is not durable yet. To readers the record is gone.
    pub(super) finished: bool,
    /// Its bytes are not what was written: never sent.
    pub(super) corrupt: bool,
    /// Epochs of the segment uses that hold copies, the newest last.
    pub(super) homes: Vec<u64>,
}

/// Where a record's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) payload_at: u64,
    pub(super) sequence: u64,
    pub(super) meta_len: u32,
    pub(super) body_len: u32,
    pub(super) meta_crc: u32,
    pub(super) body_crc: u32,
}

impl Place {
    pub(super) fn payload_bytes(&self) -> u64 {
        u64::from(self.meta_len) + u64::from(self.body_len)
    }
}

/// Completions of one record that are not written yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    pub(super) all: bool,
    pub(super) slots: BTreeSet<u16>,
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) entries: HashMap<QueueId, Entry>,
    /// Bounded by the live records and their slots.
    pub(super) pending: BTreeMap<QueueId, Pending>,
    pub(super) pending_since_ms: Option<u64>,
    pub(super) status: SpoolStatus,
    pub(super) closed: bool,
}

impl State {
    /// Marks slots done; true if this is the first completion that waits.
    pub(super) fn complete(&mut self, id: QueueId, slots: impl IntoIterator<Item = u16>, now_ms: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| !entry.finished) else { return false };
        let fresh: Vec<u16> = slots.into_iter().filter(|slot| *slot < entry.slots && entry.done.insert(*slot)).collect();
        if fresh.is_empty() {
            return false;
        }
        entry.finished = entry.done.len() >= usize::from(entry.slots);
        let pending = self.pending.entry(id).or_default();
        pending.all = entry.finished;
        pending.slots.extend(fresh);
        if self.pending_since_ms.is_some() {
            return false;
        }
        self.pending_since_ms = Some(now_ms);
        true
    }

    /// A completion became durable: what was written of it no longer waits.
    pub(super) fn settle(&mut self, id: QueueId, completed: &Completed, now_ms: u64) {
        let empty = match (completed, self.pending.get_mut(&id)) {
            (Completed::All, Some(_)) => true,
            (Completed::Slots(slots), Some(pending)) => {
                pending.slots.retain(|slot| !slots.contains(slot));
                pending.slots.is_empty() && !pending.all
            }
            (_, None) => false,
        };
        if empty {
            self.pending.remove(&id);
        }
        self.pending_since_ms = (!self.pending.is_empty()).then_some(now_ms);
    }
}

/// Reads records from any thread.
#[derive(Clone)]
pub struct Reader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) dir: PathBuf,
    pub(super) verify: bool,
}

impl Reader {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Meta and body of a live record. Blocking. Nothing is returned before the checksums are verified.
    pub fn read(&self, id: QueueId) -> Result<(Bytes, Bytes), SpoolError> {
        let (place, payload) = self.read_part(id, Place::payload_bytes)?;
        let (meta, body) = (payload.slice(..place.meta_len as usize), payload.slice(place.meta_len as usize..));
        if self.verify && (payload_crc(id, &meta) != place.meta_crc || payload_crc(id, &body) != place.body_crc) {
            return Err(self.condemn(id, place));
        }
        Ok((meta, body))
    }

    /// The same without the body.
    pub fn read_meta(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        let (place, meta) = self.read_part(id, |place| place.meta_len.into())?;
        if self.verify && payload_crc(id, &meta) != place.meta_crc {
            return Err(self.condemn(id, place));
        }
        Ok(meta)
    }

    /// The first octets of a live record's payload, not verified.
    fn read_part(&self, id: QueueId, bytes: impl Fn(&Place) -> u64) -> Result<(Place, Bytes), SpoolError> {
        loop {
            let place = self.place(id)?;
            let mut buffer = vec![0; bytes(&place) as usize];
            let got = self.disk.read_at(place.segment, place.payload_at, &mut buffer);
            // Had it moved meanwhile, its old segment might hold other mail by now. As long as the index names the place, the segment is not recycled.
            if self.place(id)? != place {
                continue;
            }
            got.map_err(|cause| SpoolError::Failed { dir: self.dir.clone(), cause: format!("reading segment {}: {cause}", place.segment) })?;
            return Ok((place, Bytes::from(buffer)));
        }
    }

    fn place(&self, id: QueueId) -> Result<Place, SpoolError> {
        let state = self.lock();
        if state.closed {
            return Err(SpoolError::Failed { dir: self.dir.clone(), cause: "it has been closed".to_owned() });
        }
        let entry = state.entries.get(&id).filter(|entry| !entry.finished).ok_or(SpoolError::Unknown(id))?;
        if entry.corrupt { Err(corrupt(id, entry.place)) } else { Ok(entry.place) }
    }

    /// Lists a record as corrupt.
    pub(super) fn condemn(&self, id: QueueId, place: Place) -> SpoolError {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&id)
            && !entry.corrupt
        {
            entry.corrupt = true;
            state.status.corrupt_records += 1;
            tracing::error!(%id, segment = place.segment, offset = place.payload_at, "a spooled message is corrupt; it will not be sent");
        }
        corrupt(id, place)
    }
}

fn corrupt(id: QueueId, place: Place) -> SpoolError {
    SpoolError::Corrupt {
        id,
        what: format!(
            "checksum mismatch in segment {} at offset {}; it is kept and never sent, restore it from elsewhere or drop it",
            place.segment, place.payload_at
        ),
    }
}
