//! The spool: an append-only log in preallocated, recycled segments. (In-memory stand-in until the log is in place.)

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::queue_id::QueueId;

/// What is spooled: one message, with as many slots as things must happen before it is forgotten (one per recipient copy).
#[derive(Clone, Debug)]
pub struct Record {
    /// Name.
    pub id: QueueId,
    /// What the queue needs to know, opaque here.
    pub meta: Bytes,
    /// The message as received, opaque here; one shared buffer, never copied before the write.
    pub body: Bytes,
    /// Number of slots, 1 to 65,535.
    pub slots: u16,
    /// Records of one affinity are compacted together (a hash of the route).
    pub affinity: u64,
}

/// Proof that a record is on disk: written and synced.
#[derive(Debug)]
pub struct Durable(pub(in crate::io::spool) QueueId);

/// A record found at start.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Name.
    pub id: QueueId,
    /// What the queue wrote.
    pub meta: Bytes,
    /// Length of the body.
    pub body_len: usize,
    /// Slots in all.
    pub slots: u16,
    /// Slots that are done.
    pub done: BTreeSet<u16>,
}

/// Why the spool could not do it.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// No space: new mail is refused with 452 4.3.1.
    #[error("the spool in {dir} is full ({limit}); free space, or raise the limit")]
    Full {
        /// Directory.
        dir: PathBuf,
        /// What limit.
        limit: String,
    },
    /// A write or a sync failed; never retried on that file. New mail is refused with 451 4.3.0.
    #[error("the spool in {dir} cannot be written: {cause}")]
    Failed {
        /// Directory.
        dir: PathBuf,
        /// Cause.
        cause: String,
    },
    /// A record's checksum does not match: its bytes are never sent.
    #[error("message {id} in the spool is corrupt: {what}")]
    Corrupt {
        /// Name.
        id: QueueId,
        /// What.
        what: String,
    },
    /// No such record.
    #[error("no message {0} in the spool")]
    Unknown(QueueId),
    /// Another process has it.
    #[error("{dir} is in use by another process (lock file {dir}/lock); stop that one, or give another --state directory")]
    Locked {
        /// Directory.
        dir: PathBuf,
    },
}

/// Options of a spool.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// Directory.
    pub dir: PathBuf,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Segments at most, the reserved one included.
    pub segments_max: u32,
    /// Live records at most.
    pub records_max: usize,
}

/// Figures of a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Live records.
    pub records: usize,
    /// Bytes of live records.
    pub live_bytes: u64,
    /// Bytes written since start, headers, padding and completions included.
    pub written_bytes: u64,
    /// Syncs since start.
    pub syncs: u64,
    /// Segments in use.
    pub segments: u32,
    /// Bytes that compaction wrote since start (counted in `written_bytes` too).
    pub compacted_bytes: u64,
    /// A write or sync failed.
    pub failed: bool,
    /// New mail is refused for lack of space.
    pub full: bool,
}

/// A running spool: a handle, cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Spool(Arc<Mutex<BTreeMap<QueueId, (Record, BTreeSet<u16>)>>>);

impl Spool {
    /// Opens (and locks) a spool, recovers it, and starts its writer thread. Blocking.
    pub fn open(_options: SpoolOptions) -> Result<(Self, Vec<Recovered>), SpoolError> {
        Ok((Self::default(), vec![]))
    }

    /// Writes and syncs a record, in one batch with whatever else waits.
    pub async fn append(&self, record: Record) -> Result<Durable, SpoolError> {
        let id = record.id;
        self.0.lock().expect("no panic while held").insert(id, (record, BTreeSet::new()));
        Ok(Durable(id))
    }

    /// Marks slots done. Rides the next batch, or is written by itself after at most 100 ms. When the last slot is done the record is forgotten.
    pub fn complete(&self, id: QueueId, slots: impl IntoIterator<Item = u16>) {
        let mut map = self.0.lock().expect("no panic while held");
        if let Some((record, done)) = map.get_mut(&id) {
            done.extend(slots);
            if done.len() >= usize::from(record.slots) {
                map.remove(&id);
            }
        }
    }

    /// Waits until every completion so far is durable.
    pub async fn flush(&self) -> Result<(), SpoolError> {
        Ok(())
    }

    /// Reads meta and body of a live record; the checksum is verified before anything is returned.
    pub async fn read(&self, id: QueueId) -> Result<(Bytes, Bytes), SpoolError> {
        let map = self.0.lock().expect("no panic while held");
        map.get(&id).map(|(record, _)| (record.meta.clone(), record.body.clone())).ok_or(SpoolError::Unknown(id))
    }

    /// Figures.
    pub fn status(&self) -> SpoolStatus {
        SpoolStatus::default()
    }

    /// Writes what waits, syncs, stops the writer thread.
    pub async fn close(self) -> Result<(), SpoolError> {
        Ok(())
    }
}
