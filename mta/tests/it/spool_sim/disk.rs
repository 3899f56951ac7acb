//! A disk that does what disks do at the worst moment: loses what was not synced, sector by sector in any order; fails writes and syncs; has no room.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use sekimori_mta::io::spool::Disk;

use super::Random;

const SECTOR_BYTES: usize = 512;

/// One file: what reads see, what a power cut leaves, and the sectors where they may differ and a sync would help.
#[derive(Clone)]
struct File {
    cache: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

/// What is to go wrong, counted in writes, syncs and creations from now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// The power is cut in this step.
    pub(super) cut_at: Option<u64>,
    /// This step fails: a short write, a sync that drops dirty pages.
    pub(super) fail_at: Option<u64>,
}

struct World {
    files: BTreeMap<u32, File>,
    random: Random,
    faults: Faults,
    steps: u64,
    off: bool,
    capacity: usize,
    opening: u64,
    read_bytes: u64,
}

/// The disk; clones share it.
#[derive(Clone)]
pub(super) struct SimulatedDisk(Arc<Mutex<World>>);

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl SimulatedDisk {
    pub(super) fn new(seed: u64, capacity: usize) -> Self {
        let files = BTreeMap::new();
        let random = Random(seed);
        Self(Arc::new(Mutex::new(World { files, random, faults: Faults::default(), steps: 0, off: false, capacity, opening: 1, read_bytes: 0 })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no panic while held")
    }

    pub(super) fn arm(&self, faults: Faults) {
        let mut world = self.world();
        world.faults = faults;
        world.steps = 0;
    }

    pub(super) fn is_off(&self) -> bool {
        self.world().off
    }

    pub(super) fn read_bytes(&self) -> u64 {
        self.world().read_bytes
    }

    pub(super) fn set_capacity(&self, segments: usize) {
        self.world().capacity = segments;
    }

    /// Power off and on: of what was not synced, any sectors are there.
    pub(super) fn power_cycle(&self) {
        let mut world = self.world();
        let World { files, random, .. } = &mut *world;
        let percent = [0, 10, 50, 90, 100][random.below(5) as usize];
        for file in files.values_mut() {
            for sector in std::mem::take(&mut file.dirty) {
                if random.below(100) < percent {
                    file.store(sector);
                }
            }
            file.cache.clone_from(&file.durable);
        }
        world.off = false;
        world.opening += 1;
        world.faults = Faults::default();
    }

    /// The process ends and starts again; the kernel keeps its pages.
    pub(super) fn restart(&self) {
        let mut world = self.world();
        world.opening += 1;
        world.faults = Faults::default();
    }

    /// Files as reads see them.
    pub(super) fn contents(&self) -> BTreeMap<u32, Vec<u8>> {
        self.world().files.iter().map(|(number, file)| (*number, file.cache.clone())).collect()
    }

    /// A disk that holds these files.
    pub(super) fn with_contents(files: BTreeMap<u32, Vec<u8>>) -> Self {
        let disk = Self::new(1, usize::MAX);
        disk.world().files =
            files.into_iter().map(|(number, bytes)| (number, File { cache: bytes.clone(), durable: bytes, dirty: BTreeSet::new() })).collect();
        disk
    }

    /// Another process opened the files.
    pub(super) fn usurp(&self) {
        self.world().opening = 0;
    }
}

impl File {
    fn store(&mut self, sector: usize) {
        let range = sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(self.cache.len());
        self.durable[range.clone()].copy_from_slice(&self.cache[range]);
    }
}

enum Step {
    Fine,
    Fails,
    Cut,
}

impl World {
    fn step(&mut self) -> io::Result<Step> {
        if self.off {
            return Err(off());
        }
        self.steps += 1;
        if self.faults.cut_at == Some(self.steps) {
            self.off = true;
            return Ok(Step::Cut);
        }
        Ok(if self.faults.fail_at == Some(self.steps) { Step::Fails } else { Step::Fine })
    }
}

impl Disk for SimulatedDisk {
    fn segments(&self) -> io::Result<Vec<(u32, u64)>> {
        let world = self.world();
        if world.off { Err(off()) } else { Ok(world.files.iter().map(|(number, file)| (*number, file.cache.len() as u64)).collect()) }
    }

    fn create(&self, segment: u32, bytes: u64) -> io::Result<()> {
        let mut world = self.world();
        let step = world.step()?;
        if world.files.len() >= world.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        assert!(!world.files.contains_key(&segment), "segment {segment} is made twice");
        let zeros = vec![0; bytes as usize];
        let made = matches!(step, Step::Fine) || (matches!(step, Step::Cut) && world.random.below(2) == 0);
        if made {
            world.files.insert(segment, File { cache: zeros.clone(), durable: zeros, dirty: BTreeSet::new() });
        }
        match step {
            Step::Fine => Ok(()),
            Step::Fails => Err(io::Error::other("an injected failure to create")),
            Step::Cut => Err(off()),
        }
    }

    fn read_at(&self, segment: u32, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut world = self.world();
        if world.off {
            return Err(off());
        }
        world.read_bytes += buffer.len() as u64;
        let file = world.files.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        let bytes = file.cache.get(offset as usize..offset as usize + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, segment: u32, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut world = self.world();
        let step = world.step()?;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        if matches!(step, Step::Fails) {
            let kept = world.random.below(bytes.len() as u64 + 1) as usize;
            bytes.truncate(kept);
        }
        let file = world.files.get_mut(&segment).ok_or(io::ErrorKind::NotFound)?;
        let start = offset as usize;
        assert!(start + bytes.len() <= file.cache.len(), "a write beyond the end of segment {segment}");
        file.cache[start..start + bytes.len()].copy_from_slice(&bytes);
        if !bytes.is_empty() {
            file.dirty.extend(start / SECTOR_BYTES..=(start + bytes.len() - 1) / SECTOR_BYTES);
        }
        match step {
            Step::Fine => Ok(()),
            Step::Fails => Err(io::Error::other("an injected failure to write")),
            Step::Cut => Err(off()),
        }
    }

    fn sync(&self, segment: u32) -> io::Result<()> {
        let mut world = self.world();
        let step = world.step()?;
        let World { files, random, .. } = &mut *world;
        let file = files.get_mut(&segment).ok_or(io::ErrorKind::NotFound)?;
        match step {
            Step::Cut => Err(off()),
            Step::Fine => {
                std::mem::take(&mut file.dirty).into_iter().for_each(|sector| file.store(sector));
                Ok(())
            }
            // As Linux does it: the pages are clean from now on, whether or not they reached the disk, and reads still see them.
            Step::Fails => {
                for sector in std::mem::take(&mut file.dirty) {
                    if random.below(2) == 0 {
                        file.store(sector);
                    }
                }
                Err(io::Error::other("an injected failure to sync"))
            }
        }
    }

    fn fence(&self) -> io::Result<u64> {
        let world = self.world();
        match (world.off, world.opening) {
            (true, _) => Err(off()),
            (false, 0) => Err(io::Error::other("opened by another process meanwhile")),
            (false, opening) => Ok(opening),
        }
    }
}
