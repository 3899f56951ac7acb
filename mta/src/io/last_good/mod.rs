//! The last good configuration of a gateway in a pod, on the volume of its spool: it starts and serves without an operator.
//!
//! Two files in the state directory. `configuration.base` holds every part in the form that was in force, what each adds to the hash, and the place;
//! it is written anew, synced and renamed. `configuration.journal` holds the ways since, as they came; a tail that is torn is cut off, as the operator
//! sends it again. The journal becomes part of a new base when it outgrows the old one. With a key every frame is sealed (AES-256-GCM): tenants' secrets
//! are never at rest in clear, and where the key is missing nothing is written at all. All of it is blocking.

mod seal;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sekimori_crds::snapshot::{FleetPart, Part, RollingHash, part_json};
use serde::{Deserialize, Serialize};

use self::seal::{Header, Key};
use crate::config::{Form, Held, Place, Refused};
use crate::io::clock;

const BASE: &str = "configuration.base";
const JOURNAL: &str = "configuration.journal";
const BASE_MAGIC: [u8; 8] = *b"SEKIBASE";
const JOURNAL_MAGIC: [u8; 8] = *b"SEKIJRNL";
/// Octets of entries in one frame of a base, about: what is in memory at once.
const BASE_FRAME_BYTES: usize = 1 << 20;
/// A journal is not worth a new base before it has so many octets.
const JOURNAL_BYTES_MIN: u64 = 4 << 20;
/// Domains that are remembered of a part that does not read, at most.
const DOMAINS_MAX: usize = 1_000;
/// Changes of one way that the journal takes, in octets; more become a base.
pub const DELTA_BYTES_MAX: usize = 8 << 20;

/// A way as it came.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Where it led; `None`: the parts did not add up.
    pub to: Option<Place>,
    /// Keys, with the part as JSON, or empty where it is gone.
    pub changes: Vec<(String, Bytes)>,
    /// Why the fleet's newest settings were not taken here after all.
    pub fleet_refused: Option<String>,
}

/// What was found at the start.
#[derive(Debug)]
pub enum Found {
    /// Nothing was ever kept here.
    Nothing,
    /// Something, but it cannot be used.
    Unusable(String),
    /// A configuration.
    Held(Box<Held>),
}

/// Keeps it.
pub struct Keeper {
    dir: PathBuf,
    key_path: Option<PathBuf>,
    journal: Option<Journal>,
    base_bytes: u64,
}

struct Journal {
    file: File,
    header: Header,
    key: Option<Key>,
    next: u64,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct PlaceRecord {
    epoch: u64,
    number: u64,
    hash: String,
}

impl PlaceRecord {
    fn new(place: Place) -> Self {
        Self { epoch: place.epoch, number: place.number, hash: data_encoding::HEXLOWER.encode(&place.hash.to_bytes()) }
    }

    fn place(&self) -> Option<Place> {
        let hash = data_encoding::HEXLOWER.decode(self.hash.as_bytes()).ok()?.try_into().ok()?;
        Some(Place { epoch: self.epoch, number: self.number, hash: RollingHash::from_bytes(hash) })
    }
}

/// The head of one entry of a base; the part's JSON follows.
#[derive(Serialize, Deserialize)]
struct EntryHead {
    key: String,
    words: Option<[u64; 4]>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<Refused>,
}

/// The end of a base.
#[derive(Serialize, Deserialize)]
struct End {
    entries: u64,
    place: Option<PlaceRecord>,
}

/// The head of one way in a journal; its changes follow.
#[derive(Serialize, Deserialize)]
struct WayHead {
    to: Option<PlaceRecord>,
    fleet_refused: Option<String>,
}

/// Says what of a fleet's settings cannot be run here.
pub type FleetCheck<'a> = &'a dyn Fn(&FleetPart) -> Result<(), String>;

impl Keeper {
    /// Looks for what was kept in a state directory. `key`: the file with the key; it need not be there yet.
    pub fn open(dir: &Path, key: Option<&Path>, fleet_check: FleetCheck<'_>) -> (Self, Found) {
        let mut keeper = Self { dir: dir.to_owned(), key_path: key.map(Path::to_owned), journal: None, base_bytes: 0 };
        let found = match keeper.load(fleet_check) {
            Ok(Some(held)) => Found::Held(Box::new(held)),
            Ok(None) => Found::Nothing,
            Err(why) => Found::Unusable(format!("{}: {why}", dir.join(BASE).display())),
        };
        (keeper, found)
    }

    /// Octets of base and journal.
    pub fn bytes(&self) -> (u64, u64) {
        (self.base_bytes, self.journal.as_ref().map_or(0, |journal| journal.bytes))
    }

    /// Keeps what a way led to: adds the way to the journal, or writes a new base (always without `delta`).
    pub fn keep(&mut self, delta: Option<&Delta>, held: &Held) -> io::Result<()> {
        if let Some(delta) = delta
            && let Some(journal) = &mut self.journal
            && journal.bytes <= self.base_bytes.max(JOURNAL_BYTES_MIN)
            && delta.changes.iter().map(|(key, part)| key.len() + part.len() + 8).sum::<usize>() <= DELTA_BYTES_MAX
        {
            let written = journal.append(&delta.encode());
            if written.is_err() {
                // Nobody knows what of it is there: the next one begins anew.
                self.journal = None;
            }
            return written;
        }
        self.rebase(held)
    }

    /// Whether what lies there is as it should be; writes it anew where it is not: an earlier write failed, or there is another key now, or one at last.
    /// Nothing is written over what could not be read before there is something to run.
    pub fn check(&mut self, held: &Held) -> io::Result<()> {
        if held.fleet().is_none() {
            return Ok(());
        }
        let now = self.key();
        match (&self.journal, now) {
            // The key that it was sealed with is still known here.
            (Some(_), Err(_)) => Ok(()),
            (Some(journal), Ok(now)) if journal.header.key_check == now.as_ref().map(Key::check) => Ok(()),
            _ => self.rebase(held),
        }
    }

    fn key(&self) -> Result<Option<Key>, String> {
        self.key_path.as_deref().map(Key::read).transpose()
    }

    fn load(&mut self, fleet_check: FleetCheck<'_>) -> Result<Option<Held>, String> {
        let path = self.dir.join(BASE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        self.base_bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let header = Header::read(&mut reader, BASE_MAGIC)?;
        let key = if header.key_check.is_some() { self.key()? } else { self.key().unwrap_or_default() };
        header.opens_with(key.as_ref())?;
        let mut held = Held::default();
        let (mut index, mut entries) = (0, 0);
        let end = loop {
            let (content, _) = header.next(&mut reader, index, key.as_ref()).ok_or("it is damaged, or ends too early")?;
            index += 1;
            let (kind, content) = content.split_first().ok_or("it has an empty frame")?;
            if *kind == b'z' {
                break serde_json::from_slice::<End>(content).map_err(|error| format!("its end does not read: {error}"))?;
            }
            entries += restore(&mut held, content).ok_or("an entry does not read")?;
        };
        if end.entries != entries {
            return Err(format!("it has {entries} parts of {}", end.entries));
        }
        held.restored(end.place.and_then(|place| place.place()));
        self.replay(&mut held, header, key, fleet_check);
        Ok(Some(held))
    }

    /// Goes the ways of the journal, as far as it is whole. A base in clear, where there is a key now, gets no more of them: a new one is sealed.
    fn replay(&mut self, held: &mut Held, base: Header, key: Option<Key>, fleet_check: FleetCheck<'_>) {
        let path = self.dir.join(JOURNAL);
        let Ok(file) = File::options().read(true).write(true).open(&path) else { return };
        let mut reader = BufReader::new(&file);
        // One of another base is older than ours.
        let Ok(header) = Header::read(&mut reader, JOURNAL_MAGIC) else { return };
        if (header.id, header.key_check) != (base.id, base.key_check) {
            return;
        }
        let (mut next, mut bytes) = (0, seal::HEADER_BYTES as u64);
        while let Some((content, length)) = header.next(&mut reader, next, key.as_ref()) {
            let Some(delta) = Delta::decode(&content) else { break };
            *held = delta.follow(held, fleet_check);
            next += 1;
            bytes += length;
        }
        if !held.refused().is_empty() {
            held.lose_place();
        }
        let sealed_as_wanted = header.key_check.is_some() == self.key_path.is_some();
        let mut at_end = &file;
        if sealed_as_wanted && file.set_len(bytes).is_ok() && at_end.seek(SeekFrom::End(0)).is_ok() {
            self.journal = Some(Journal { file, header, key, next, bytes });
        }
    }

    /// Writes everything anew: never half, and only then an empty journal to it.
    fn rebase(&mut self, held: &Held) -> io::Result<()> {
        self.journal = None;
        let key = self.key().map_err(|why| io::Error::other(format!("{why}; without it nothing is written, as it would lie there in clear")))?;
        let header = Header::new(BASE_MAGIC, clock::random().to_ne_bytes(), key.as_ref());
        let (path, new) = (self.dir.join(BASE), self.dir.join("configuration.base.new"));
        let bytes = write_base(&create(&new)?, header, key.as_ref(), held)?;
        std::fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()?;
        self.base_bytes = bytes;
        let header = Header { magic: JOURNAL_MAGIC, ..header };
        let (path, new) = (self.dir.join(JOURNAL), self.dir.join("configuration.journal.new"));
        let mut file = create(&new)?;
        file.write_all(&header.encode())?;
        std::fs::rename(&new, &path)?;
        self.journal = Some(Journal { file, header, key, next: 0, bytes: seal::HEADER_BYTES as u64 });
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

impl Journal {
    fn append(&mut self, content: &[u8]) -> io::Result<()> {
        self.bytes += self.header.write(&mut self.file, self.next, content, self.key.as_ref())?;
        self.next += 1;
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_at_checked(4)?;
    let (bytes, after) = after.split_at_checked(u32::from_le_bytes(length.try_into().ok()?) as usize)?;
    *rest = after;
    Some(bytes)
}

fn write_base(file: &File, header: Header, key: Option<&Key>, held: &Held) -> io::Result<u64> {
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    writer.write_all(&header.encode())?;
    let (mut bytes, mut index, mut entries, mut frame) = (seal::HEADER_BYTES as u64, 0, 0, vec![b'e']);
    let mut flush = |writer: &mut BufWriter<&File>, frame: &mut Vec<u8>, least: usize| -> io::Result<()> {
        if frame.len() > least {
            bytes += header.write(writer, index, frame, key)?;
            index += 1;
            frame.truncate(1);
        }
        Ok(())
    };
    let mut add = |frame: &mut Vec<u8>, head: &EntryHead, part: &[u8]| -> io::Result<()> {
        put(frame, &serde_json::to_vec(head)?);
        put(frame, part);
        entries += 1;
        Ok(())
    };
    for (key, words) in held.words() {
        let tenant = key.strip_prefix("tenant/").and_then(|key| held.tenants().tenant(key));
        let part = match (tenant, &**key) {
            (Some(tenant), _) => part_json(&Part::Tenant(Box::new(tenant.part.clone()))),
            (None, "fleet") => held.fleet().map_or_else(Vec::new, |fleet| part_json(&Part::Fleet(Box::new(FleetPart::clone(fleet))))),
            (None, _) => vec![],
        };
        let head = EntryHead {
            key: key.to_string(),
            words: Some(*words),
            removed: tenant.is_some_and(|tenant| tenant.removed),
            refused: held.refused().get(key).cloned(),
        };
        add(&mut frame, &head, &part)?;
        flush(&mut writer, &mut frame, BASE_FRAME_BYTES)?;
    }
    for tenant in held.tenants().removed().filter_map(|key| held.tenants().tenant(key)) {
        let key = format!("tenant/{}", tenant.key);
        if held.words_of(&key).is_none() {
            add(&mut frame, &EntryHead { key, words: None, removed: true, refused: None }, &part_json(&Part::Tenant(Box::new(tenant.part.clone()))))?;
            flush(&mut writer, &mut frame, BASE_FRAME_BYTES)?;
        }
    }
    if let Some(fleet) = held.fleet().filter(|_| held.words_of("fleet").is_none()) {
        let head = EntryHead { key: "fleet".into(), words: None, removed: false, refused: None };
        add(&mut frame, &head, &part_json(&Part::Fleet(Box::new(FleetPart::clone(fleet)))))?;
    }
    flush(&mut writer, &mut frame, 1)?;
    let mut end = vec![b'z'];
    end.extend(serde_json::to_vec(&End { entries, place: held.place().map(PlaceRecord::new) })?);
    flush(&mut writer, &mut end, 1)?;
    writer.flush()?;
    drop(writer);
    file.sync_all()?;
    Ok(bytes)
}

/// Takes the entries of one frame; how many. A form that this build does not read is left out, and its part counts as refused.
fn restore(held: &mut Held, mut rest: &[u8]) -> Option<u64> {
    let mut entries = 0;
    while !rest.is_empty() {
        let head: EntryHead = serde_json::from_slice(take(&mut rest)?).ok()?;
        let json = take(&mut rest)?;
        let (mut form, mut refused) = (None, head.refused);
        if !json.is_empty() {
            match serde_json::from_slice(json) {
                Ok(Part::Fleet(fleet)) => form = Some(Form::Fleet(fleet)),
                Ok(Part::Tenant(tenant)) => form = Some(Form::Tenant(tenant)),
                Err(error) => {
                    let mut domains = refused.map_or_else(Vec::new, |refused| refused.domains);
                    // Nobody has said that a tenant which is gone has domains.
                    domains.extend(domains_of(json).into_iter().filter(|_| !head.removed));
                    domains.truncate(DOMAINS_MAX);
                    refused = Some(Refused { message: format!("its kept form does not read: {error}"), domains, ..Refused::default() });
                }
            }
        }
        held.restore(head.key.into(), head.words, form, head.removed, refused);
        entries += 1;
    }
    Some(entries)
}

/// Domains that a form names which this build does not read otherwise: their mail is deferred, not refused for good.
fn domains_of(json: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        domains: Vec<String>,
    }
    serde_json::from_slice(json).map_or_else(|_| vec![], |named: Named| named.domains)
}

impl Delta {
    fn encode(&self) -> Vec<u8> {
        let head = WayHead { to: self.to.map(PlaceRecord::new), fleet_refused: self.fleet_refused.clone() };
        let mut out = vec![];
        put(&mut out, &serde_json::to_vec(&head).expect("only strings and numbers"));
        for (key, part) in &self.changes {
            put(&mut out, key.as_bytes());
            put(&mut out, part);
        }
        out
    }

    fn decode(mut rest: &[u8]) -> Option<Self> {
        let head: WayHead = serde_json::from_slice(take(&mut rest)?).ok()?;
        let mut changes = vec![];
        while !rest.is_empty() {
            let key = std::str::from_utf8(take(&mut rest)?).ok()?.to_owned();
            changes.push((key, Bytes::copy_from_slice(take(&mut rest)?)));
        }
        Some(Self { to: head.to.and_then(|place| place.place()), changes, fleet_refused: head.fleet_refused })
    }

    /// Goes the way again.
    fn follow(&self, held: &Held, fleet_check: FleetCheck<'_>) -> Held {
        let mut way = held.depart(false);
        for (key, part) in &self.changes {
            way.change(key, part, fleet_check);
        }
        let mut next = match self.to {
            Some(to) => way.arrive(to).0,
            None => {
                let mut next = way.arrive(Place { epoch: 0, number: 0, hash: RollingHash::default() }).0;
                next.lose_place();
                next
            }
        };
        if let Some(why) = &self.fleet_refused {
            next.refuse_fleet(held.fleet(), why);
        }
        next
    }
}

/// Keeps what it is given, on a thread of its own: what reads the stream does not wait for a disk, unless that is far behind.
#[derive(Clone, Debug)]
pub struct Writer(tokio::sync::mpsc::Sender<(Task, Arc<Held>)>);

/// What is to be written.
#[derive(Debug)]
enum Task {
    Way(Delta),
    Base,
    Check,
}

/// Ways that wait to be written, at most.
const BEHIND_MAX: usize = 64;
/// After a failure nothing is written for so long, milliseconds.
const RETRY_MS: u64 = 30_000;

impl Writer {
    /// Starts the thread. It ends, everything written, when the last clone is gone.
    pub fn start(mut keeper: Keeper) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<(Task, Arc<Held>)>(BEHIND_MAX);
        let task = tokio::task::spawn_blocking(move || {
            let mut failed_ms = None;
            while let Some((task, held)) = receiver.blocking_recv() {
                if failed_ms.is_some_and(|at_ms| clock::monotonic_ms() < at_ms + RETRY_MS) && !receiver.is_closed() {
                    // It is not in the journal, so that the next one that works must be a base: as it is, there is no journal open now.
                    continue;
                }
                let kept = match &task {
                    Task::Way(delta) => keeper.keep(Some(delta), &held),
                    Task::Base => keeper.keep(None, &held),
                    Task::Check => keeper.check(&held),
                };
                match kept {
                    Ok(()) => failed_ms = None,
                    Err(error) => {
                        failed_ms = Some(clock::monotonic_ms());
                        keeper.journal = None;
                        tracing::error!(%error, "the last good configuration cannot be kept: a start without the operator would find an older one");
                    }
                }
            }
        });
        (Self(sender), task)
    }

    /// Hands something over; waits only for a disk that is far behind.
    pub async fn keep(&self, delta: Option<Delta>, held: Arc<Held>) {
        self.send(delta.map_or(Task::Base, Task::Way), held).await;
    }

    /// Has [`Keeper::check`] done. Now and then, or a write that failed is made up for only with the next change.
    pub fn check(&self, held: Arc<Held>) {
        // A queue that is full has better to do.
        drop(self.0.try_send((Task::Check, held)));
    }

    async fn send(&self, task: Task, held: Arc<Held>) {
        if self.0.send((task, held)).await.is_err() {
            tracing::error!("nobody keeps the last good configuration any more");
        }
    }
}

#[cfg(test)]
mod tests;
