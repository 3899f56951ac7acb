//! The spool: an append-only log in preallocated, recycled segments.
//!
//! A message is written once, with one write and one sync for everything that waits at that moment, and is acknowledged after the sync ([`Durable`]).
//! What happens to it later is a few bytes that ride along with other mail. Retries write nothing.
//!
//! # Files
//!
//! `lock` is locked by the process that uses the directory, and counts how often that happened; the writer looks at the count before it destroys
//! anything, so that a second process that got past the lock (a network file system) stops the first. `segment-00000001` and so on are files of fixed
//! size, written full of zeros once. Numbers are little endian; checksums are CRC-32C; a sequence number counts all batches and headers of all segments.
//!
//! # Segment
//!
//! ```text
//! 0                 header block, 4096 bytes: the header twice, at 0 and 2048
//! 4096              batches, one after the other, without padding
//! end - 64 - index  index block (when sealed): an entry for everything in the batches
//! end - 64          trailer (when sealed)
//! ```
//!
//! | header, 64 bytes | | batch header, 64 bytes | | trailer, 64 bytes | |
//! |---|---|---|---|---|---|
//! | 0  | magic `SKSPOOL1` | 0  | magic `SKB1` | 0  | magic `SKI1` |
//! | 8  | segment number, u32 | 4  | salt, u64 | 4  | salt, u64 |
//! | 12 | kind: 0 free, 1 hot, 2 cold; 3 zeros | 12 | sequence, u64 | 12 | end of the last batch, u64 |
//! | 16 | bytes of the segment, u64 | 20 | own offset, u64 | 20 | sealed at, ms since 1970, u64 |
//! | 24 | epoch: sequence of this use, u64 | 28 | offset synced before this batch, u64 | 28 | highest sequence, u64 |
//! | 32 | salt of this use, u64 | 36 | bytes of entries, u32 | 36 | bytes of index entries, u64 |
//! | 40 | opening (from `lock`), u64 | 40 | number of entries, u32 | 44 | checksum of index entries, u32 |
//! | 48 | opened at, ms since 1970, u64 | 44 | checksum of entries, u32 | 48 | 12 zeros |
//! | 56 | 4 zeros | 48 | bytes of payloads, u64 | | |
//! | | | 56 | 4 zeros | | |
//! | 60 | checksum of 0..60 | 60 | checksum of 0..60 | 60 | checksum of 0..60 |
//!
//! Entries follow the batch header, payloads (meta, then body) follow the entries in their order. A message's entry: `1`, id u128, slots u16, affinity
//! u64, bytes of meta u32 and body u32, checksums of meta u32 and body u32 (each begun with the id's 16 bytes), slots done (length u16, bitmap). A
//! completion's: `2`, id u128, `before` u64, number of homes u8, homes (u64 each), then `1` (all) or `0` and slots (length u16, bitmap). In an index
//! block each entry is preceded by its batch's sequence u64 and its payload's offset u64 (0 for completions).
//!
//! # Rules
//!
//! - A file without a readable header is fresh if neither a second copy nor a first batch was begun in it; else it is set aside for a person.
//! - A use of a segment has its own random salt in every header, so stale bytes of an earlier use, or bytes that somebody mailed, are never a batch.
//! - One write is in flight at a time, over all segments. Only the last one can be torn; a batch counts whole or not at all, and a torn one is wiped at the
//!   next opening. A whole one, and the newest header, are written again then: a sync that failed may have left them readable but not stored.
//! - A completion speaks of the copies of its record whose sequence is below its `before`. Of several live copies the highest sequence counts.
//! - A sealed segment is recycled (its header becomes `free`, synced) when no record in it lives and every other segment that holds a copy of a record
//!   whose completion stands in it has been recycled (the tombstone rule), or the completion was logged again elsewhere.
//! - One free segment is always kept back: completions and compaction may take it, new mail may not.
//! - After a failed write or sync nothing is written until the spool is opened again. Reads go on.
//!
//! This module does not know what meta and body mean, when to retry, or whom to tell.

mod compact;
mod disk;
pub mod format;
mod log;
mod recover;
mod state;
mod writer;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

pub use self::compact::STRAGGLER_AGE_MS;
pub use self::disk::{DirectoryDisk, Disk, Lock};
pub use self::log::{COMPLETION_DELAY_MS, Log, Prepared, Rules, SEGMENT_BYTES_MIN, SEGMENTS_MIN, Settings};
pub use self::state::Reader;
use self::writer::{Command, Mailbox};
use crate::io::clock;
use crate::queue_id::QueueId;

/// Appends that wait for the writer at most; further ones wait for these.
const APPENDS_MAX: usize = 4096;
/// KiB of appends that wait for the writer at most.
const APPEND_KIB_MAX: u32 = 64 << 10;
/// Reads of the disk at a time.
const READS_MAX: usize = 32;

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

impl Durable {
    /// Name of the record.
    pub const fn id(&self) -> QueueId {
        self.0
    }
}

/// A record found at start. What the queue wrote is verified, but not kept: of a full spool it would be gigabytes. [`Spool::read_meta`] has it.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Name.
    pub id: QueueId,
    /// Length of what the queue wrote.
    pub meta_len: usize,
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
    /// Another message has this name. (The same message again is no error.)
    #[error("the spool has another message named {0}; names must be unique")]
    Duplicate(QueueId),
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
    /// Bytes of one segment, at least [`SEGMENT_BYTES_MIN`]. A message must fit into one.
    pub segment_bytes: u64,
    /// Segments at most, the reserved one included; at least [`SEGMENTS_MIN`].
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
    /// Bytes of zeros written since start to make segments (not counted in `written_bytes`).
    pub preallocated_bytes: u64,
    /// Syncs since start.
    pub syncs: u64,
    /// Segments in use.
    pub segments: u32,
    /// Bytes that compaction wrote since start (counted in `written_bytes` too).
    pub compacted_bytes: u64,
    /// Records that are kept and never sent because their bytes are not what was written.
    pub corrupt_records: usize,
    /// Segments found at start with unreadable parts; what is readable was salvaged, and they are never recycled.
    pub damaged_segments: u32,
    /// A write or sync failed.
    pub failed: bool,
    /// New mail is refused for lack of space.
    pub full: bool,
}

impl SpoolStatus {
    /// Messages that it may have, where an empty one is meant: a segment that cannot be read counts as one.
    pub fn may_hold(&self) -> u64 {
        self.records as u64 + u64::from(self.damaged_segments)
    }
}

/// A running spool: a handle, cheap to clone. When the last one is dropped, the writer thread writes what waits and ends; [`Spool::close`] waits for that.
#[derive(Clone)]
pub struct Spool(Arc<Handle>);

struct Handle {
    options: SpoolOptions,
    reader: Reader,
    mailbox: Arc<Mailbox>,
    appends: Arc<Semaphore>,
    append_kib: Arc<Semaphore>,
    reads: Semaphore,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.mailbox.close(None);
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("dir", &self.0.options.dir).finish_non_exhaustive()
    }
}

impl Spool {
    /// Opens (and locks) a spool, recovers it, and starts its writer thread. Blocking.
    pub fn open(options: SpoolOptions) -> Result<(Self, Vec<Recovered>), SpoolError> {
        let failed = |cause: std::io::Error| SpoolError::Failed { dir: options.dir.clone(), cause: cause.to_string() };
        let lock = Lock::take(&options.dir).map_err(failed)?.ok_or_else(|| SpoolError::Locked { dir: options.dir.clone() })?;
        let disk = DirectoryDisk::open(&options.dir, &lock).map_err(failed)?;
        Self::start(options, Arc::new(disk), Some(lock))
    }

    /// The same on another disk, which its caller has to itself; `dir` only names it in errors.
    pub fn open_with_disk(options: SpoolOptions, disk: Arc<dyn Disk>) -> Result<(Self, Vec<Recovered>), SpoolError> {
        Self::start(options, disk, None)
    }

    fn start(options: SpoolOptions, disk: Arc<dyn Disk>, lock: Option<Lock>) -> Result<(Self, Vec<Recovered>), SpoolError> {
        let settings = Settings { options: options.clone(), salt_seed: clock::random() as u64, rules: Rules::default() };
        let (log, recovered) = Log::open(disk, settings, clock::unix_ms())?;
        let (reader, mailbox) = (log.reader(), Arc::new(Mailbox::default()));
        let letters = Arc::clone(&mailbox);
        let thread = std::thread::Builder::new().name("spool".to_owned());
        thread
            .spawn(move || writer::run(log, lock, &letters))
            .map_err(|cause| SpoolError::Failed { dir: options.dir.clone(), cause: format!("starting its thread: {cause}") })?;
        let handle = Handle {
            options,
            reader,
            mailbox,
            appends: Arc::new(Semaphore::new(APPENDS_MAX)),
            append_kib: Arc::new(Semaphore::new(APPEND_KIB_MAX as usize)),
            reads: Semaphore::new(READS_MAX),
        };
        Ok((Self(Arc::new(handle)), recovered))
    }

    /// Writes and syncs a record, in one batch with whatever else waits. A caller that stops waiting leaves open whether it is written. The same record
    /// again is written once.
    pub async fn append(&self, record: Record) -> Result<Durable, SpoolError> {
        let handle = &self.0;
        let record = Prepared::new(record, &handle.options)?;
        let kib = u32::try_from(record.payload_bytes() / 1024 + 1).unwrap_or(APPEND_KIB_MAX).min(APPEND_KIB_MAX);
        let permits = [
            Arc::clone(&handle.appends).acquire_owned().await.map_err(|_| self.closed())?,
            Arc::clone(&handle.append_kib).acquire_many_owned(kib).await.map_err(|_| self.closed())?,
        ];
        let (answer, answered) = oneshot::channel();
        handle.mailbox.send(Command::Append { record, answer, permits });
        answered.await.map_err(|_| self.closed())?
    }

    /// Marks slots done. Rides the next batch, or is written by itself after at most 100 ms. When the last slot is done the record is forgotten.
    /// Slots that do not exist, and records that are not there (yet), are ignored.
    pub fn complete(&self, id: QueueId, slots: impl IntoIterator<Item = u16>) {
        let first = self.0.reader.lock().complete(id, slots, clock::unix_ms());
        if first {
            self.0.mailbox.nudge();
        }
    }

    /// Waits until every completion so far is durable.
    pub async fn flush(&self) -> Result<(), SpoolError> {
        let (answer, answered) = oneshot::channel();
        self.0.mailbox.send(Command::Flush { answer });
        answered.await.map_err(|_| self.closed())?
    }

    /// Reads meta and body of a live record; the checksum is verified before anything is returned.
    pub async fn read(&self, id: QueueId) -> Result<(Bytes, Bytes), SpoolError> {
        let _permit = self.0.reads.acquire().await.map_err(|_| self.closed())?;
        let reader = self.0.reader.clone();
        tokio::task::spawn_blocking(move || reader.read(id)).await.map_err(|_| self.closed())?
    }

    /// Reads and verifies what the queue wrote of a live record. Blocking: for the start.
    pub fn read_meta(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        self.0.reader.read_meta(id)
    }

    /// Figures.
    pub fn status(&self) -> SpoolStatus {
        self.0.reader.lock().status.clone()
    }

    /// Records that are kept and never sent because their bytes are not what was written. Complete them to drop them.
    pub fn corrupt(&self) -> Vec<QueueId> {
        let state = self.0.reader.lock();
        let mut ids: Vec<QueueId> = state.entries.iter().filter(|(_, entry)| entry.corrupt && !entry.finished).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Writes what waits, syncs, stops the writer thread and gives the directory free. Other handles get errors from then on.
    pub async fn close(self) -> Result<(), SpoolError> {
        let (answer, answered) = oneshot::channel();
        self.0.mailbox.close(Some(answer));
        answered.await.map_err(|_| self.closed())?
    }

    fn closed(&self) -> SpoolError {
        SpoolError::Failed { dir: self.0.options.dir.clone(), cause: "it has been closed".to_owned() }
    }
}
