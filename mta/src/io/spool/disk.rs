//! The seam under the log: a numbered set of files of fixed size. The real one is here; the tests bring one that fails in every way a disk can.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Files of fixed size that hold segments. One thread writes; any thread reads.
pub trait Disk: Send + Sync {
    /// Number and length in bytes of every segment there is.
    fn segments(&self) -> io::Result<Vec<(u32, u64)>>;

    /// Makes a segment of zeros, written and synced (so that later syncs have no metadata to write). On an error nothing of it remains.
    fn create(&self, segment: u32, bytes: u64) -> io::Result<()>;

    /// Fills the buffer from an offset.
    fn read_at(&self, segment: u32, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes the parts one after the other from an offset.
    fn write_at(&self, segment: u32, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Returns when everything written to the segment is on stable storage.
    fn sync(&self, segment: u32) -> io::Result<()>;

    /// How often these files were opened, this time included; an error when somebody has opened them since.
    fn fence(&self) -> io::Result<u64>;
}

/// Held while a process uses a directory, and given back when dropped; the operating system drops it with the process.
#[derive(Debug)]
pub struct Lock {
    file: File,
    opening: u64,
}

impl Lock {
    /// Takes the lock and counts the opening in the lock file. `None` if another has it.
    pub fn take(dir: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(dir)?;
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let opening = read_opening(&mut file)? + 1;
        // Always the same length, in one sector: a cut never leaves half a number.
        file.write_all_at(format!("{opening:020}\n").as_bytes(), 0)?;
        file.sync_all()?;
        Ok(Some(Self { file, opening }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Handles of a closed spool still hold the file; an error here means that the lock ends with them.
        if let Err(cause) = self.file.unlock() {
            tracing::warn!(%cause, "the lock of a spool directory cannot be given back");
        }
    }
}

fn read_opening(file: &mut File) -> io::Result<u64> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(64).read_to_string(&mut text)?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// A directory: `segment-00000001` and so on.
#[derive(Debug)]
pub struct DirectoryDisk {
    dir: PathBuf,
    opening: u64,
    lock_file: Mutex<File>,
    files: Mutex<BTreeMap<u32, Arc<File>>>,
}

impl DirectoryDisk {
    /// Opens the segments of a locked directory. What a preallocation left half done is removed.
    pub fn open(dir: &Path, lock: &Lock) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("segment-") && name.ends_with(".new") {
                fs::remove_file(entry.path())?;
            } else if let Some(number) = name.strip_prefix("segment-").and_then(|n| n.parse().ok()) {
                files.insert(number, Arc::new(OpenOptions::new().read(true).write(true).open(entry.path())?));
            }
        }
        Ok(Self { dir: dir.to_owned(), opening: lock.opening, lock_file: Mutex::new(lock.file.try_clone()?), files: Mutex::new(files) })
    }

    fn file(&self, segment: u32) -> io::Result<Arc<File>> {
        let files = self.files.lock().expect("no panic while held");
        files.get(&segment).cloned().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("segment {segment} does not exist")))
    }

    fn fill(&self, path: &Path, bytes: u64) -> io::Result<File> {
        const CHUNK_BYTES: usize = 1 << 20;
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let zeros = vec![0; CHUNK_BYTES];
        let mut left = bytes;
        while left > 0 {
            let part = zeros.get(..left.min(CHUNK_BYTES as u64) as usize).expect("at most the chunk");
            file.write_all(part)?;
            left -= part.len() as u64;
        }
        file.sync_all()?;
        Ok(file)
    }
}

impl Disk for DirectoryDisk {
    fn segments(&self) -> io::Result<Vec<(u32, u64)>> {
        let files = self.files.lock().expect("no panic while held");
        files.iter().map(|(number, file)| Ok((*number, file.metadata()?.len()))).collect()
    }

    fn create(&self, segment: u32, bytes: u64) -> io::Result<()> {
        let name = format!("segment-{segment:08}");
        let (new, path) = (self.dir.join(format!("{name}.new")), self.dir.join(name));
        let made = self.fill(&new, bytes).and_then(|file| {
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()?;
            Ok(file)
        });
        match made {
            Ok(file) => {
                self.files.lock().expect("no panic while held").insert(segment, Arc::new(file));
                Ok(())
            }
            Err(error) => {
                // One of the two is there; that it cannot be removed changes nothing about the error.
                for leftover in [new, path] {
                    if let Err(cause) = fs::remove_file(&leftover)
                        && cause.kind() != io::ErrorKind::NotFound
                    {
                        tracing::warn!(path = %leftover.display(), %cause, "a half made spool segment cannot be removed");
                    }
                }
                Err(error)
            }
        }
    }

    fn read_at(&self, segment: u32, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file(segment)?.read_exact_at(buffer, offset)
    }

    fn write_at(&self, segment: u32, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Only the one writer moves the file's position; readers name their offsets.
        let file = self.file(segment)?;
        let mut file = &*file;
        file.seek(SeekFrom::Start(offset))?;
        let mut parts = parts;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match file.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&self, segment: u32) -> io::Result<()> {
        self.file(segment)?.sync_data()
    }

    fn fence(&self) -> io::Result<u64> {
        let seen = read_opening(&mut self.lock_file.lock().expect("no panic while held"))?;
        if seen == self.opening {
            return Ok(self.opening);
        }
        Err(io::Error::other(format!("opened by another process meanwhile (opening {seen}, ours is {})", self.opening)))
    }
}
