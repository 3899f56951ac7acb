//! Quarantine and dead letters, store `PerPod`: one file per copy under the state directory.
//!
//! # Layout
//!
//! `DIR/quarantined/` and `DIR/dead-letters/` hold `ID-COPY.mail`: the queue id, and 16 hexadecimal digits that stand for tenant and recipients. A file is
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `SKQUAR1` and LF |
//! | 8..12 | length of the head, little endian like all numbers here |
//! | 12..16 | CRC-32C of the head |
//! | 16..24 | length of the body |
//! | 24..28 | CRC-32C of the body |
//! | 28..32 | CRC-32C of bytes 0..28 |
//! | 32.. | the head (JSON: whose copy it is, why, envelope, edits), then the body as received |
//!
//! and ends there. It is written under a name that begins with `.tmp-`, synced, renamed, and the directory synced: a file under its final name is whole, a
//! temporary one is what a crash left and goes at the next start. Whatever else lies in the directories, and a file whose sums do not match, is
//! reported and left alone; its bytes are never served. Two processes are kept apart by the lock on the state directory, not here.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::envelope::Envelope;
use crate::io::clock;
use crate::message::{Edits, headline};
use crate::queue_id::QueueId;

const MAGIC: &[u8; 8] = b"SKQUAR1\n";
const FIXED: usize = 32;
const TEMPORARY: &str = ".tmp-";
const SUFFIX: &str = ".mail";
/// A head is larger than this only if it is none. (1000 recipients and 1000 removed fields need a tenth of it.)
const HEAD_BYTES_MAX: usize = 4 << 20;
/// Reads and writes at once; more wait.
const WORKERS_MAX: usize = 16;
/// Problems that are remembered; the rest is only counted.
const PROBLEMS_MAX: usize = 1000;
/// Copies that one expiry removes; the next one goes on.
const EXPIRE_MAX: usize = 10_000;
/// Bytes of a subject, a reason or a list of recipients that the index keeps.
const INDEX_TEXT_MAX: usize = 2048;

/// What kind of copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Kept instead of delivered, by policy.
    Quarantined,
    /// Accepted, then refused or expired, with no one to tell.
    DeadLetter,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Quarantined, Self::DeadLetter];

    const fn directory(self) -> &'static str {
        match self {
            Self::Quarantined => "quarantined",
            Self::DeadLetter => "dead-letters",
        }
    }
}

/// A copy with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Name of the message.
    pub id: QueueId,
    /// `namespace/name` of the tenant.
    pub tenant: Arc<str>,
    /// Kind.
    pub kind: Kind,
    /// Why, for people.
    pub reason: String,
    /// The envelope.
    pub envelope: Envelope,
    /// Whose copy it is: indexes into the envelope.
    pub recipients: Vec<u16>,
    /// The form of the message that they would have got.
    pub edits: Edits,
    /// The message as received.
    pub raw: Bytes,
}

/// Names one stored copy: `KIND/ID-COPY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Name of the message.
    pub id: QueueId,
    /// Kind.
    pub kind: Kind,
    /// Stands for tenant and recipients.
    pub copy: u64,
}

impl Key {
    fn of(id: QueueId, kind: Kind, tenant: &str, recipients: &[u16]) -> Self {
        let mut recipients = recipients.to_vec();
        recipients.sort_unstable();
        let mut hasher = Sha256::new();
        hasher.update(tenant.as_bytes());
        hasher.update([0]);
        recipients.iter().for_each(|index| hasher.update(index.to_be_bytes()));
        let digest = hasher.finalize();
        let first = digest.first_chunk::<8>().expect("a SHA-256 has 32 bytes");
        Self { id, kind, copy: u64::from_be_bytes(*first) }
    }

    fn file_name(self) -> String {
        format!("{}-{:016x}{SUFFIX}", self.id, self.copy)
    }

    fn from_file_name(kind: Kind, name: &str) -> Option<Self> {
        let (id, copy) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        let key = Self { id: id.parse().ok()?, kind, copy: u64::from_str_radix(copy, 16).ok()? };
        // One name per key: no lower-case id, no sign, no missing zeros.
        (key.file_name() == name).then_some(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{:016x}", self.kind.directory(), self.id, self.copy)
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = text.split_once('/').and_then(|(directory, name)| {
            let kind = Kind::ALL.into_iter().find(|kind| kind.directory() == directory)?;
            Self::from_file_name(kind, &format!("{name}{SUFFIX}"))
        });
        key.ok_or_else(|| format!("'{text}' is not the name of a stored copy, such as quarantined/01K0000000000000000000000A-0123456789abcdef"))
    }
}

/// What the index knows of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its name here, `KIND/ID-COPY`.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// Name of the message.
    pub id: QueueId,
    /// Kind.
    pub kind: Kind,
    /// `namespace/name` of the tenant.
    pub tenant: Arc<str>,
    /// Why, for people.
    pub reason: String,
    /// MAIL FROM; empty is the null reverse-path.
    pub sender: String,
    /// The recipients' addresses, as many as fit 2 KB.
    pub recipients: Vec<String>,
    /// The first address of From.
    pub from: String,
    /// Decoded Subject.
    pub subject: String,
    /// When it was stored, milliseconds since 1970.
    pub stored_ms: u64,
    /// Bytes of the message as received.
    pub bytes: u64,
    /// Recipients of this copy, by index.
    #[serde(skip)]
    covers: Arc<[u16]>,
}

fn as_text<S: serde::Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}

/// Proof that a copy is on disk: written, synced, and its name synced. Made only by [`Quarantine::store`].
#[derive(Debug)]
pub struct Stored(());

/// Why the store could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QuarantineError {
    /// A limit of our own.
    #[error("the quarantine in {dir} is full ({limit}); release or delete messages, shorten the retention, or raise the limit")]
    Full {
        /// Directory.
        dir: PathBuf,
        /// What limit.
        limit: String,
    },
    /// The file system does not do it.
    #[error("{path}: {cause}; check free space and permissions of the quarantine's volume")]
    FileSystem {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        cause: String,
    },
    /// A file whose sums do not match.
    #[error("{path} is corrupt: {what}; it is kept for inspection and not served")]
    Corrupt {
        /// File.
        path: PathBuf,
        /// What.
        what: String,
    },
    /// No such copy.
    #[error("no stored copy {0}")]
    Unknown(String),
}

/// Bounds of the store.
#[derive(Clone, Copy, Debug)]
pub struct QuarantineOptions {
    /// Copies are kept for this long, milliseconds.
    pub retention_ms: u64,
    /// Copies at most. Each costs about a kilobyte of memory.
    pub entries_max: usize,
    /// Bytes of stored messages at most.
    pub bytes_max: u64,
}

/// Bytes of a volume that a copy takes besides its message: its head, and what is left of its last block.
const COPY_OVERHEAD_BYTES: u64 = 8 << 10;
/// The quarantine has this part of its volume at least, whatever the spool may take.
const VOLUME_LEAST_PART: u64 = 20;

impl Default for QuarantineOptions {
    /// 30 days, 200,000 copies, 20 GiB.
    fn default() -> Self {
        Self { retention_ms: 30 * 24 * 3_600_000, entries_max: 200_000, bytes_max: 20 << 30 }
    }
}

impl QuarantineOptions {
    /// What a volume of so many bytes has room for beside a spool that may take `spool_bytes`: at most half of the volume, and never what is the spool's.
    ///
    /// A full quarantine is no loss, as the spool keeps the copy; a spool without room defers everybody's mail.
    pub fn beside_spool(volume_bytes: u64, spool_bytes: u64) -> Self {
        let default = Self::default();
        let least_bytes = volume_bytes / VOLUME_LEAST_PART;
        // As much stays free for the rest: the last good configuration, and the file system itself. Where the spool is said to take it all, the quarantine works
        // until it has.
        let beside_bytes = volume_bytes.saturating_sub(spool_bytes).saturating_sub(least_bytes);
        let share_bytes = (volume_bytes / 2).min(beside_bytes).max(least_bytes);
        // A quarter of it for what the messages' bytes do not count: very many very small ones.
        let entries_max = usize::try_from(share_bytes / 4 / COPY_OVERHEAD_BYTES).unwrap_or(usize::MAX).clamp(1, default.entries_max);
        let bytes_max = share_bytes.saturating_sub(entries_max as u64 * COPY_OVERHEAD_BYTES).min(default.bytes_max);
        Self { entries_max, bytes_max, ..default }
    }

    /// The same for the volume of a directory. Blocking.
    pub fn of_volume(dir: &Path, spool_bytes: u64) -> Result<Self, QuarantineError> {
        let volume = rustix::fs::statvfs(dir).map_err(|error| failed(dir, &error.into()))?;
        Ok(Self::beside_spool(volume.f_blocks.saturating_mul(volume.f_frsize), spool_bytes))
    }
}

/// Which copies are meant; what is absent matches all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Name of the message.
    pub id: Option<QueueId>,
    /// `namespace/name`.
    pub tenant: Option<String>,
    /// Kind.
    pub kind: Option<Kind>,
    /// Stored before this time, milliseconds since 1970.
    pub before_ms: Option<u64>,
    /// In sender, recipients, From, subject, reason or id, whatever the case.
    pub text: Option<String>,
    /// As many at most, the oldest first; 0: all.
    pub limit: usize,
}

/// Something in the directories that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// File.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// Figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineStatus {
    /// Quarantined copies.
    pub quarantined: usize,
    /// Dead letters.
    pub dead_letters: usize,
    /// Bytes of their messages, before the spool's and the file system's overhead.
    pub bytes: u64,
    /// Bytes written since start, heads included.
    pub written_bytes: u64,
    /// Files that are not served.
    pub problems: usize,
}

impl QuarantineStatus {
    /// Copies that it may have, where an empty one is meant: a file that is not served counts as one.
    pub const fn may_hold(&self) -> u64 {
        (self.quarantined + self.dead_letters + self.problems) as u64
    }
}

/// The store: a handle, cheap to clone.
#[derive(Clone, Debug)]
pub struct Quarantine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    options: QuarantineOptions,
    retention_ms: AtomicU64,
    index: Mutex<Index>,
    workers: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Index {
    entries: BTreeMap<Key, Arc<Entry>>,
    bytes: u64,
    written_bytes: u64,
    /// Stores that are under way, and their bytes: they count against the limits.
    pending: usize,
    pending_bytes: u64,
    problems: Vec<Problem>,
    problems_total: usize,
}

/// The head of a file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    id: QueueId,
    tenant: Arc<str>,
    kind: Kind,
    reason: String,
    envelope: Envelope,
    recipients: Vec<u16>,
    edits: Edits,
    stored_ms: u64,
    subject: String,
    from: String,
}

impl Quarantine {
    /// Opens the store, makes its directories, removes what a crash left, and reads the heads of all files. Blocking.
    pub fn open(dir: impl Into<PathBuf>, options: QuarantineOptions) -> Result<Self, QuarantineError> {
        let dir = dir.into();
        let mut index = Index::default();
        for kind in Kind::ALL {
            let path = dir.join(kind.directory());
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| failed(&path, &error))?;
            let mut removed = false;
            for file in fs::read_dir(&path).map_err(|error| failed(&path, &error))? {
                let file = file.map_err(|error| failed(&path, &error))?.path();
                if file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(TEMPORARY)) {
                    fs::remove_file(&file).map_err(|error| failed(&file, &error))?;
                    removed = true;
                    continue;
                }
                match peek(kind, &file) {
                    Ok(entry) => index.insert(entry),
                    Err(what) => index.report(file, what),
                }
            }
            if removed {
                sync_directory(&path)?;
            }
        }
        sync_directory(&dir)?;
        let retention_ms = AtomicU64::new(options.retention_ms);
        Ok(Self(Arc::new(Inner { dir, options, retention_ms, index: Mutex::new(index), workers: Arc::new(Semaphore::new(WORKERS_MAX)) })))
    }

    /// How long copies are kept from now on.
    pub fn set_retention(&self, retention_ms: u64) {
        self.0.retention_ms.store(retention_ms, Ordering::Relaxed);
    }

    /// Stores a copy. Done when file and name are synced. A copy of the same message for the same tenant and kind whose recipients are all covered by
    /// one that is stored is not stored again.
    pub async fn store(&self, item: Item) -> Result<Stored, QuarantineError> {
        self.work(move |inner| inner.store(&item)).await
    }

    /// The copies that match, the oldest first.
    pub fn list(&self, filter: &Filter) -> Vec<Arc<Entry>> {
        let entries: Vec<Arc<Entry>> = match filter.id {
            Some(id) => self.0.index().of_message(id).cloned().collect(),
            None => self.0.index().entries.values().cloned().collect(),
        };
        // The index is free again: looking at texts may take a while.
        let text = filter.text.as_ref().map(|text| text.to_lowercase());
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
        entries.into_iter().filter(|entry| entry.matches(filter, text.as_deref())).take(limit).collect()
    }

    /// The copies of one message: of several tenants and kinds there may be several.
    pub fn show(&self, id: QueueId) -> Vec<Arc<Entry>> {
        self.list(&Filter { id: Some(id), ..Filter::default() })
    }

    /// The copies with a text in sender, recipients, From, subject, reason or id.
    pub fn search(&self, text: &str, filter: &Filter) -> Vec<Arc<Entry>> {
        self.list(&Filter { text: Some(text.to_owned()), ..filter.clone() })
    }

    /// Reads a copy; both sums are verified before anything is returned. A corrupt one leaves the index and is reported.
    pub async fn read(&self, key: Key) -> Result<Item, QuarantineError> {
        self.work(move |inner| inner.read(key)).await
    }

    /// Deletes a copy. Done when it can no longer come back.
    pub async fn delete(&self, key: Key) -> Result<(), QuarantineError> {
        self.work(move |inner| inner.delete(&[key])).await
    }

    /// Deletes what is older than the retention; how many. At most 10,000 at a time.
    pub async fn expire(&self, now_ms: u64) -> Result<usize, QuarantineError> {
        let retention_ms = self.0.retention_ms.load(Ordering::Relaxed);
        let is_old = |entry: &&Arc<Entry>| entry.stored_ms.saturating_add(retention_ms) <= now_ms;
        let old: Vec<Key> = self.0.index().entries.values().filter(is_old).map(|entry| entry.key).take(EXPIRE_MAX).collect();
        let count = old.len();
        if count > 0 {
            self.work(move |inner| inner.delete(&old)).await?;
        }
        Ok(count)
    }

    /// Figures.
    pub fn status(&self) -> QuarantineStatus {
        let index = self.0.index();
        let dead_letters = index.entries.keys().filter(|key| key.kind == Kind::DeadLetter).count();
        QuarantineStatus {
            quarantined: index.entries.len() - dead_letters,
            dead_letters,
            bytes: index.bytes,
            written_bytes: index.written_bytes,
            problems: index.problems_total,
        }
    }

    /// Files that are not served, the first thousand.
    pub fn problems(&self) -> Vec<Problem> {
        self.0.index().problems.clone()
    }

    /// Runs blocking work to its end, even if nobody waits for it any more.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T, QuarantineError> + Send + 'static) -> Result<T, QuarantineError> {
        let stopped = |cause: String| QuarantineError::FileSystem { path: self.0.dir.clone(), cause };
        let permit = Arc::clone(&self.0.workers).acquire_owned().await.map_err(|error| stopped(error.to_string()))?;
        let inner = Arc::clone(&self.0);
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&inner);
            drop(permit);
            result
        });
        task.await.map_err(|error| stopped(error.to_string()))?
    }
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic while it was held cannot have left it half-changed: every change is one statement.
        self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn path(&self, key: Key) -> PathBuf {
        self.dir.join(key.kind.directory()).join(key.file_name())
    }

    fn store(&self, item: &Item) -> Result<Stored, QuarantineError> {
        let bytes = item.raw.len() as u64;
        {
            let mut index = self.index();
            if index.covers(item) {
                return Ok(Stored(()));
            }
            let full = |limit: String| QuarantineError::Full { dir: self.dir.clone(), limit };
            if index.entries.len() + index.pending >= self.options.entries_max {
                return Err(full(format!("{} messages", self.options.entries_max)));
            }
            if index.bytes + index.pending_bytes + bytes > self.options.bytes_max {
                return Err(full(format!("{} bytes", self.options.bytes_max)));
            }
            index.pending += 1;
            index.pending_bytes += bytes;
        }
        let written = self.write(item);
        let mut index = self.index();
        index.pending -= 1;
        index.pending_bytes -= bytes;
        let (entry, written_bytes) = written?;
        index.written_bytes += written_bytes;
        index.insert(entry);
        Ok(Stored(()))
    }

    fn write(&self, item: &Item) -> Result<(Entry, u64), QuarantineError> {
        let key = Key::of(item.id, item.kind, &item.tenant, &item.recipients);
        let path = self.path(key);
        let seen = headline(&item.raw);
        let head = Head {
            id: item.id,
            tenant: Arc::clone(&item.tenant),
            kind: item.kind,
            reason: item.reason.clone(),
            envelope: item.envelope.clone(),
            recipients: item.recipients.clone(),
            edits: item.edits.clone(),
            stored_ms: clock::unix_ms(),
            subject: cut(seen.subject.unwrap_or_default()),
            from: cut(seen.from.unwrap_or_default()),
        };
        let json = serde_json::to_vec(&head).map_err(|error| QuarantineError::FileSystem { path: path.clone(), cause: error.to_string() })?;
        let directory = self.dir.join(item.kind.directory());
        let temporary = directory.join(format!("{TEMPORARY}{}-{:032x}", key.file_name(), clock::random()));
        let placed = put(&temporary, &path, &[&fixed(&json, &item.raw), &json, &item.raw]).and_then(|()| sync_directory(&directory));
        if let Err(error) = placed {
            // A file that has its name already stays: another store of the same copy may just have made it. The next try replaces it.
            fs::remove_file(&temporary).ok();
            return Err(error);
        }
        let bytes = item.raw.len() as u64;
        Ok((head.entry(key, bytes), (FIXED + json.len()) as u64 + bytes))
    }

    fn read(&self, key: Key) -> Result<Item, QuarantineError> {
        if !self.index().entries.contains_key(&key) {
            return Err(QuarantineError::Unknown(key.to_string()));
        }
        let path = self.path(key);
        let contents = fs::read(&path).map_err(|error| failed(&path, &error))?;
        unpack(key, contents).map_err(|what| {
            tracing::error!(path = %path.display(), what, "a file of the quarantine is corrupt");
            let mut index = self.index();
            index.remove(key);
            index.report(path.clone(), what.clone());
            QuarantineError::Corrupt { path, what }
        })
    }

    fn delete(&self, keys: &[Key]) -> Result<(), QuarantineError> {
        let mut gone = vec![];
        let mut result = Ok(());
        for key in keys {
            let path = self.path(*key);
            match fs::remove_file(&path) {
                Ok(()) => gone.push(*key),
                // Somebody took the file away: the index follows.
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.index().entries.contains_key(key) => gone.push(*key),
                Err(error) if error.kind() == io::ErrorKind::NotFound => result = Err(QuarantineError::Unknown(key.to_string())),
                Err(error) => result = Err(failed(&path, &error)),
            }
        }
        let kinds: std::collections::BTreeSet<Kind> = gone.iter().map(|key| key.kind).collect();
        for kind in kinds {
            let synced = sync_directory(&self.dir.join(kind.directory()));
            result = result.and(synced);
        }
        let mut index = self.index();
        gone.into_iter().for_each(|key| index.remove(key));
        result
    }
}

impl Index {
    fn of_message(&self, id: QueueId) -> impl Iterator<Item = &Arc<Entry>> {
        let first = Key { id, kind: Kind::Quarantined, copy: 0 };
        self.entries.range(first..).take_while(move |(key, _)| key.id == id).map(|(_, entry)| entry)
    }

    fn covers(&self, item: &Item) -> bool {
        self.of_message(item.id).any(|entry| {
            entry.kind == item.kind && entry.tenant == item.tenant && item.recipients.iter().all(|recipient| entry.covers.contains(recipient))
        })
    }

    fn insert(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        if let Some(before) = self.entries.insert(entry.key, Arc::new(entry)) {
            self.bytes -= before.bytes;
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes -= entry.bytes;
        }
    }

    fn report(&mut self, path: PathBuf, what: String) {
        tracing::warn!(path = %path.display(), what, "not served by the quarantine");
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { path, what });
        }
    }
}

impl Entry {
    fn matches(&self, filter: &Filter, text: Option<&str>) -> bool {
        let contains = |field: &str| text.is_none_or(|text| field.to_lowercase().contains(text));
        filter.kind.is_none_or(|kind| kind == self.kind)
            && filter.tenant.as_ref().is_none_or(|tenant| **tenant == *self.tenant)
            && filter.before_ms.is_none_or(|before_ms| self.stored_ms < before_ms)
            && (text.is_none()
                || [&self.sender, &self.from, &self.subject, &self.reason].into_iter().chain(&self.recipients).any(|field| contains(field))
                || contains(&self.id.to_string()))
    }
}

impl Item {
    /// The message in the form that the recipients would have got, as slices that copy nothing.
    pub fn content(&self) -> Vec<Bytes> {
        self.edits.apply(&self.raw)
    }
}

impl Head {
    fn entry(&self, key: Key, bytes: u64) -> Entry {
        let addresses = self.recipients.iter().filter_map(|index| self.envelope.recipients.get(usize::from(*index)));
        let mut room = INDEX_TEXT_MAX;
        let recipients = addresses
            .map(|recipient| recipient.address.to_string())
            .take_while(|address| {
                let fits = address.len() <= room;
                room = room.saturating_sub(address.len());
                fits
            })
            .collect();
        Entry {
            key,
            id: self.id,
            kind: self.kind,
            tenant: Arc::clone(&self.tenant),
            reason: cut(self.reason.clone()),
            sender: self.envelope.sender.as_ref().map(ToString::to_string).unwrap_or_default(),
            recipients,
            from: self.from.clone(),
            subject: self.subject.clone(),
            stored_ms: self.stored_ms,
            bytes,
            covers: self.recipients.as_slice().into(),
        }
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(INDEX_TEXT_MAX));
    text
}

fn failed(path: &Path, error: &io::Error) -> QuarantineError {
    QuarantineError::FileSystem { path: path.to_owned(), cause: error.to_string() }
}

fn sync_directory(path: &Path) -> Result<(), QuarantineError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| failed(path, &error))
}

/// Writes a new file, syncs it and gives it its name.
fn put(temporary: &Path, path: &Path, pieces: &[&[u8]]) -> Result<(), QuarantineError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        pieces.iter().try_for_each(|piece| file.write_all(piece))?;
        file.sync_all()
    };
    write().map_err(|error| failed(temporary, &error))?;
    fs::rename(temporary, path).map_err(|error| failed(path, &error))
}

fn fixed(head: &[u8], body: &[u8]) -> [u8; FIXED] {
    let mut out = [0; FIXED];
    let fields: [&[u8]; 5] = [
        MAGIC,
        &(head.len() as u32).to_le_bytes(),
        &crc32c::crc32c(head).to_le_bytes(),
        &(body.len() as u64).to_le_bytes(),
        &crc32c::crc32c(body).to_le_bytes(),
    ];
    let start: Vec<u8> = fields.concat();
    let sum = crc32c::crc32c(&start).to_le_bytes();
    for (slot, byte) in out.iter_mut().zip(start.iter().chain(&sum)) {
        *slot = *byte;
    }
    out
}

/// The numbers of the fixed part, verified.
struct Lengths {
    head: usize,
    head_sum: u32,
    body: u64,
    body_sum: u32,
}

fn lengths(fixed: &[u8]) -> Result<Lengths, String> {
    let number = |at: usize| fixed.get(at..).and_then(|rest| rest.first_chunk::<4>()).map(|bytes| u32::from_le_bytes(*bytes));
    let long = fixed.get(16..).and_then(|rest| rest.first_chunk::<8>()).map(|bytes| u64::from_le_bytes(*bytes));
    let (Some(head), Some(head_sum), Some(body), Some(body_sum), Some(sum)) = (number(8), number(12), long, number(24), number(28)) else {
        return Err("it is shorter than its fixed part".into());
    };
    if !fixed.starts_with(MAGIC) {
        return Err("it is no file of this store".into());
    }
    if crc32c::crc32c(fixed.get(..FIXED - 4).unwrap_or_default()) != sum || head as usize > HEAD_BYTES_MAX {
        return Err("the sum of its fixed part does not match".into());
    }
    Ok(Lengths { head: head as usize, head_sum, body, body_sum })
}

fn read_head(key: Key, bytes: &[u8], sum: u32) -> Result<Head, String> {
    if crc32c::crc32c(bytes) != sum {
        return Err("the sum of its head does not match".into());
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|error| format!("its head cannot be read: {error}"))?;
    let said = Key::of(head.id, head.kind, &head.tenant, &head.recipients);
    if said != key {
        return Err(format!("its head says that it is {said}"));
    }
    Ok(head)
}

/// Reads only the head: enough for the index. The body's length is checked, its sum when it is read.
fn peek(kind: Kind, path: &Path) -> Result<Entry, String> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let key = Key::from_file_name(kind, name).ok_or("its name is not one of this store's")?;
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is no regular file".into());
    }
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mut start = Vec::with_capacity(FIXED);
    (&mut file).take(FIXED as u64).read_to_end(&mut start).map_err(|error| error.to_string())?;
    let found = lengths(&start)?;
    let mut head = Vec::with_capacity(found.head);
    (&mut file).take(found.head as u64).read_to_end(&mut head).map_err(|error| error.to_string())?;
    let head = read_head(key, &head, found.head_sum)?;
    let expected = (FIXED + found.head) as u64 + found.body;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length != expected {
        return Err(format!("it has {length} bytes, and should have {expected}"));
    }
    Ok(head.entry(key, found.body))
}

/// The copy in a file, both sums verified.
fn unpack(key: Key, contents: Vec<u8>) -> Result<Item, String> {
    let found = lengths(&contents)?;
    let contents = Bytes::from(contents);
    let body_at = FIXED + found.head;
    if contents.len() as u64 != body_at as u64 + found.body {
        return Err(format!("it has {} bytes, and should have {}", contents.len(), body_at as u64 + found.body));
    }
    let head = read_head(key, contents.get(FIXED..body_at).unwrap_or_default(), found.head_sum)?;
    let raw = contents.slice(body_at..);
    if crc32c::crc32c(&raw) != found.body_sum {
        return Err("the sum of its body does not match".into());
    }
    head.edits.check(raw.len()).map_err(|error| error.to_string())?;
    Ok(Item {
        id: head.id,
        tenant: head.tenant,
        kind: head.kind,
        reason: head.reason,
        envelope: head.envelope,
        recipients: head.recipients,
        edits: head.edits,
        raw,
    })
}

#[cfg(test)]
mod tests;
