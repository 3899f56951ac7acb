//! The spool under a simulated disk: random work, power cuts, failed writes and syncs, no room; the checker knows what was promised.
//!
//! `SIM_SEEDS` says how many seeds (300 unless it is set), `SIM_SEED` runs one, as a failure tells.

mod disk;
mod faults;
mod files;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use sekimori_mta::io::spool::{Log, Prepared, Record, Recovered, Rules, Settings, SpoolError, SpoolOptions};
use sekimori_mta::queue_id::QueueId;

use disk::{Faults, SimulatedDisk};

/// A small generator of our own, so that seeds mean the same for ever (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, len: usize) -> Bytes {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect::<Vec<u8>>().into()
    }
}

fn options(segment_bytes: u64, segments_max: u32) -> SpoolOptions {
    SpoolOptions { dir: "simulated".into(), segment_bytes, segments_max, records_max: 100_000 }
}

/// What the checker knows of a message.
struct Message {
    record: Record,
    /// `Some(true)`: promised; `Some(false)`: refused or lost for good, it must never appear; `None`: nobody knows until the next start.
    there: Option<bool>,
    /// Slots that were completed; the spool may or may not know after a cut.
    requested: BTreeSet<u16>,
    /// Slots whose completion is durable.
    durable: BTreeSet<u16>,
}

impl Message {
    fn all_requested(&self) -> bool {
        self.requested.len() >= usize::from(self.record.slots)
    }

    fn is_forgotten(&self) -> bool {
        self.durable.len() >= usize::from(self.record.slots)
    }
}

/// What happened, so that the test can see that the simulator gets everywhere.
#[derive(Debug, Default)]
struct Tally {
    appended: u64,
    returned: u64,
    full: u64,
    forgotten: u64,
    cuts: u64,
    failures: u64,
    compacted_bytes: u64,
    reads: u64,
    generations: u64,
}

struct Simulation {
    random: Random,
    disk: SimulatedDisk,
    settings: Settings,
    now_ms: u64,
    messages: BTreeMap<QueueId, Message>,
    tally: Tally,
    /// Out of 100: how eager the world is to complete messages.
    eagerness: u64,
}

impl Simulation {
    fn new(seed: u64, rules: Rules) -> Self {
        let mut random = Random(seed);
        let segments_max = 4 + random.below(5) as u32;
        let capacity = if random.below(3) == 0 { 3 + random.below(3) as usize } else { usize::MAX };
        let segment_bytes = 12_288 << random.below(2);
        let settings = Settings { options: options(segment_bytes, segments_max), salt_seed: random.next(), rules };
        let disk = SimulatedDisk::new(random.next(), capacity);
        let eagerness = 30 + random.below(65);
        Self { random, disk, settings, now_ms: 1_795_600_000_000, messages: BTreeMap::new(), tally: Tally::default(), eagerness }
    }

    /// Several lives of a process, each ending in some bad way.
    fn run(mut self, cut_at: Option<u64>) -> Result<Tally, String> {
        for generation in 0..5 {
            let faults = match (cut_at, self.random.below(10)) {
                (Some(step), _) => Faults { cut_at: (generation == 1).then_some(step), fail_at: None },
                (None, 0..=5) => Faults { cut_at: Some(1 + self.random.below(90)), fail_at: None },
                (None, 6..=8) => Faults { cut_at: None, fail_at: Some(1 + self.random.below(90)) },
                (None, _) => Faults::default(),
            };
            self.disk.arm(faults);
            let mut log = self.open()?;
            self.live(&mut log)?;
            self.tally.compacted_bytes += log.status().compacted_bytes;
            self.tally.generations += 1;
            drop(log);
            self.end();
        }
        self.disk.arm(Faults::default());
        self.open()?;
        Ok(self.tally)
    }

    /// The process ends: by a power cut, or only itself.
    fn end(&mut self) {
        if self.disk.is_off() || self.random.below(2) == 0 {
            self.tally.cuts += 1;
            self.disk.power_cycle();
        } else {
            self.disk.restart();
        }
    }

    /// Opens until it works: a cut or a failure may strike during recovery too.
    fn open(&mut self) -> Result<Log, String> {
        for _ in 0..3 {
            let mut settings = self.settings.clone();
            settings.salt_seed = self.random.next();
            match Log::open(Arc::new(self.disk.clone()), settings, self.now_ms) {
                // The power went while it made room: found out with the next write.
                Ok(_) if self.disk.is_off() => self.end(),
                Ok((log, recovered)) => {
                    self.check_recovered(&log, recovered)?;
                    return Ok(log);
                }
                Err(SpoolError::Failed { .. }) => self.end(),
                Err(other) => return Err(format!("open: {other}")),
            }
        }
        Err("the spool does not open although nothing fails any more".to_owned())
    }

    fn live(&mut self, log: &mut Log) -> Result<(), String> {
        for _ in 0..20 + self.random.below(50) {
            match self.random.below(10) {
                0..=3 => self.append(log)?,
                4..=6 => self.complete(log),
                7 => self.flush(log)?,
                8 => {
                    self.now_ms += [1, 60, 200, 20 * 60_000][self.random.below(4) as usize];
                    match log.tick(self.now_ms) {
                        Ok(()) => {}
                        Err(SpoolError::Failed { .. }) => {}
                        Err(other) => return Err(format!("tick: {other}")),
                    }
                }
                _ => self.read_one(log)?,
            }
            if self.disk.is_off() {
                return Ok(());
            }
            if log.status().failed {
                self.tally.failures += 1;
                return self.check_failed(log);
            }
            if log.pending() == 0 {
                self.messages.values_mut().for_each(|message| message.durable.clone_from(&message.requested));
            }
        }
        Ok(())
    }

    /// Now and then a name that is forgotten for good: a peer hands a message back that it got from us.
    fn name(&mut self) -> Option<QueueId> {
        if self.random.below(8) != 0 {
            return None;
        }
        let free = |message: &&Message| message.there == Some(false) || (message.there == Some(true) && message.is_forgotten());
        let free: Vec<QueueId> = self.messages.values().filter(free).map(|message| message.record.id).collect();
        (!free.is_empty()).then(|| free[self.random.below(free.len() as u64) as usize])
    }

    fn append(&mut self, log: &mut Log) -> Result<(), String> {
        let count = 1 + self.random.below(4);
        let mut ids = vec![];
        let mut batch = vec![];
        for _ in 0..count {
            let id = self.name().filter(|id| !ids.contains(id)).unwrap_or_else(|| QueueId::new(self.now_ms, u128::from(self.random.next())));
            let body_len = [0, 10, 300, 1500, 4000][self.random.below(5) as usize] + self.random.below(40) as usize;
            let meta_len = 1 + self.random.below(60) as usize;
            let record = Record {
                id,
                meta: self.random.bytes(meta_len),
                body: self.random.bytes(body_len),
                slots: 1 + self.random.below(4) as u16,
                affinity: self.random.below(3),
            };
            batch.push(Prepared::new(record.clone(), &self.settings.options).map_err(|e| e.to_string())?);
            ids.push(id);
            let (requested, durable) = (BTreeSet::new(), BTreeSet::new());
            self.messages.insert(id, Message { record, there: None, requested, durable });
        }
        for (id, result) in ids.into_iter().zip(log.append_batch(batch, self.now_ms)) {
            let message = self.messages.get_mut(&id).expect("inserted above");
            match result {
                Ok(durable) => {
                    if durable.id() != id {
                        return Err(format!("{id} was answered with {}", durable.id()));
                    }
                    message.there = Some(true);
                    self.tally.appended += 1;
                    self.tally.returned += u64::from(id.created_ms() != self.now_ms);
                }
                Err(SpoolError::Full { .. }) => {
                    message.there = Some(false);
                    self.tally.full += 1;
                }
                Err(SpoolError::Failed { .. }) => {}
                Err(other) => return Err(format!("append: {other}")),
            }
        }
        Ok(())
    }

    fn complete(&mut self, log: &mut Log) {
        let live: Vec<QueueId> = self.messages.iter().filter(|(_, m)| m.there == Some(true) && !m.all_requested()).map(|(id, _)| *id).collect();
        for id in live {
            if self.random.below(100) < self.eagerness / 3 {
                let message = self.messages.get_mut(&id).expect("it is live");
                let slots = message.record.slots;
                let done: Vec<u16> = if self.random.below(2) == 0 { (0..slots).collect() } else { vec![self.random.below(u64::from(slots)) as u16] };
                message.requested.extend(&done);
                self.tally.forgotten += u64::from(message.all_requested());
                log.complete(id, done, self.now_ms);
            }
        }
    }

    fn flush(&mut self, log: &mut Log) -> Result<(), String> {
        match log.flush(self.now_ms) {
            Ok(()) if log.pending() != 0 => Err("flush leaves completions behind".to_owned()),
            Ok(()) | Err(SpoolError::Failed { .. }) => Ok(()),
            Err(other) => Err(format!("flush: {other}")),
        }
    }

    fn read_one(&mut self, log: &Log) -> Result<(), String> {
        let candidates: Vec<&Message> = self.messages.values().filter(|message| message.there.is_some()).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let message = candidates[self.random.below(candidates.len() as u64) as usize];
        self.tally.reads += 1;
        check_read(log, message)
    }

    /// After a failed write nothing new is taken, and what was promised can still be read.
    fn check_failed(&self, log: &mut Log) -> Result<(), String> {
        self.messages.values().filter(|message| message.there == Some(true)).try_for_each(|message| check_read(log, message))?;
        let record = Record { id: QueueId(1), meta: Bytes::new(), body: Bytes::new(), slots: 1, affinity: 0 };
        let record = Prepared::new(record, &self.settings.options).map_err(|e| e.to_string())?;
        match log.append_batch(vec![record], self.now_ms).pop() {
            Some(Err(SpoolError::Failed { .. })) => Ok(()),
            other => Err(format!("a failed spool answers {other:?}")),
        }
    }

    fn check_recovered(&mut self, log: &Log, recovered: Vec<Recovered>) -> Result<(), String> {
        let status = log.status();
        if status.corrupt_records + status.damaged_segments as usize > 0 {
            return Err(format!("nothing rotted, but the spool reports damage: {status:?}"));
        }
        let mut found = BTreeSet::new();
        for record in recovered {
            let id = record.id;
            let message = self.messages.get_mut(&id).ok_or_else(|| format!("{id} was never spooled"))?;
            if message.there == Some(false) {
                return Err(format!("{id} is there, but was refused, dropped or forgotten"));
            }
            if message.is_forgotten() {
                return Err(format!("{id} is resurrected: its completion was durable"));
            }
            if !message.durable.is_subset(&record.done) || !record.done.is_subset(&message.requested) {
                let Message { durable, requested, .. } = message;
                return Err(format!("{id}: slots {:?} are done, but {durable:?} are durable and {requested:?} requested", record.done));
            }
            if (record.slots, record.body_len) != (message.record.slots, message.record.body.len())
                || log.reader().read_meta(id).ok().as_ref() != Some(&message.record.meta)
            {
                return Err(format!("{id} is recovered with something else's meta, length or slots"));
            }
            message.there = Some(true);
            message.requested.clone_from(&record.done);
            message.durable = record.done;
            found.insert(id);
        }
        for (id, message) in self.messages.iter_mut().filter(|(id, _)| !found.contains(id)) {
            if message.there == Some(true) && !message.all_requested() {
                return Err(format!("{id} was acknowledged and is lost"));
            }
            message.there = Some(false);
        }
        self.messages.values().filter(|message| message.there == Some(true)).try_for_each(|message| check_read(log, message))
    }
}

fn check_read(log: &Log, message: &Message) -> Result<(), String> {
    let id = message.record.id;
    match log.reader().read(id) {
        Ok((meta, body)) if meta == message.record.meta && body == message.record.body => {
            if message.there == Some(true) && !message.all_requested() {
                Ok(())
            } else {
                Err(format!("{id} is read although it is gone"))
            }
        }
        Ok(_) => Err(format!("{id} is read with bytes that are not its own")),
        Err(SpoolError::Unknown(_)) if message.there != Some(true) || message.all_requested() => Ok(()),
        Err(other) => Err(format!("{id} cannot be read: {other}")),
    }
}

fn simulate(seed: u64, rules: Rules, cut_at: Option<u64>) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| Simulation::new(seed, rules).run(cut_at))).unwrap_or_else(|_| Err("panicked".to_owned()))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn check(seed: u64, cut_at: Option<u64>) -> Tally {
    let outcome = simulate(seed, Rules::default(), cut_at);
    let again = format!("SIM_SEED={seed} cargo test -p sekimori-mta --test it spool_sim::promises_hold");
    outcome.map_err(|wrong| format!("seed {seed}, cut at {cut_at:?}: {wrong}; again: {again}")).expect("the promises hold")
}

#[test]
fn promises_hold() {
    let seeds = number("SIM_SEED").map_or_else(|| 1..number("SIM_SEEDS").unwrap_or(300) + 1, |seed| seed..seed + 1);
    let many = seeds.end - seeds.start >= 100;
    let mut sum = Tally::default();
    for seed in seeds {
        let tally = check(seed, None);
        sum.appended += tally.appended;
        sum.returned += tally.returned;
        sum.full += tally.full;
        sum.forgotten += tally.forgotten;
        sum.cuts += tally.cuts;
        sum.failures += tally.failures;
        sum.compacted_bytes += tally.compacted_bytes;
        sum.reads += tally.reads;
        sum.generations += tally.generations;
    }
    println!("{sum:?}");
    let everywhere = sum.returned.min(sum.full).min(sum.forgotten).min(sum.cuts).min(sum.failures).min(sum.compacted_bytes).min(sum.reads);
    assert!(!many || everywhere > 50, "the simulator does not get everywhere: {sum:?}");
}

/// The second life of a few seeds, cut at every single step.
#[test]
fn a_cut_at_every_step() {
    for seed in 1..=2 {
        for step in 1..=110 {
            check(seed, Some(step));
        }
    }
}

fn first_violation(rules: Rules) -> (u64, String) {
    let found = (1..=2000).find_map(|seed| simulate(seed, rules, None).err().map(|wrong| (seed, wrong)));
    println!("{rules:?}: {found:?}");
    found.expect("2000 seeds notice that a rule is missing")
}

#[test]
fn a_missing_sync_is_noticed() {
    let (seed, wrong) = first_violation(Rules { sync: false, ..Rules::default() });
    assert!(wrong.contains("lost") || wrong.contains("damage") || wrong.contains("resurrected") || wrong.contains("durable"), "seed {seed}: {wrong}");
}

#[test]
fn a_missing_payload_check_is_noticed() {
    let (seed, wrong) = first_violation(Rules { verify_payload: false, ..Rules::default() });
    assert!(wrong.contains("not its own") || wrong.contains("something else's"), "seed {seed}: {wrong}");
}

#[test]
fn a_missing_tombstone_rule_is_noticed() {
    let (seed, wrong) = first_violation(Rules { tombstones: false, ..Rules::default() });
    assert!(wrong.contains("resurrected") || wrong.contains("forgotten") || wrong.contains("durable"), "seed {seed}: {wrong}");
}
