//! Disks that are full, fail or rot; hostile bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use sekimori_mta::io::spool::{Log, Prepared, Record, Recovered, Rules, STRAGGLER_AGE_MS, Settings, SpoolError, SpoolOptions, SpoolStatus};
use sekimori_mta::queue_id::QueueId;

use super::disk::{Faults, SimulatedDisk};
use super::{Random, options};

const NOW_MS: u64 = 1_795_600_000_000;

fn open_with(disk: &SimulatedDisk, options: &SpoolOptions) -> Result<(Log, Vec<Recovered>), SpoolError> {
    let settings = Settings { options: options.clone(), salt_seed: 7, rules: Rules::default() };
    Log::open(Arc::new(disk.clone()), settings, NOW_MS)
}

fn open(disk: &SimulatedDisk, options: &SpoolOptions) -> (Log, Vec<Recovered>) {
    open_with(disk, options).expect("opens")
}

/// Record number `n`: its bytes follow from the number.
fn record(n: u64, body_len: usize) -> Record {
    let mut random = Random(n);
    Record { id: QueueId::new(NOW_MS + n, 0), meta: random.bytes(40), body: random.bytes(body_len), slots: 2, affinity: n % 3 }
}

fn append(log: &mut Log, options: &SpoolOptions, records: &[Record]) -> Vec<Result<QueueId, SpoolError>> {
    let batch = records.iter().map(|record| Prepared::new(record.clone(), options).expect("fits")).collect();
    log.append_batch(batch, NOW_MS).into_iter().map(|result| result.map(|durable| durable.id())).collect()
}

/// Appends one record per batch.
fn fill(log: &mut Log, options: &SpoolOptions, numbers: std::ops::Range<u64>, body_len: usize) {
    for n in numbers {
        assert!(append(log, options, &[record(n, body_len)]).iter().all(Result::is_ok), "record {n}");
    }
}

fn finish(log: &mut Log, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        log.complete(record(n, 0).id, [0, 1], NOW_MS);
    }
    log.flush(NOW_MS).expect("completions are written");
}

fn numbers(recovered: &[Recovered]) -> Vec<u64> {
    recovered.iter().map(|record| record.id.created_ms() - NOW_MS).collect()
}

#[test]
fn a_full_spool_refuses_mail_and_takes_completions() {
    for (capacity, segments_max, limit) in [(usize::MAX, 3, "segments_max 3"), (3, 9, "no room for another segment")] {
        let (disk, options) = (SimulatedDisk::new(1, capacity), options(16_384, segments_max));
        let (mut log, _) = open(&disk, &options);
        let mut n = 0;
        let refused = loop {
            match append(&mut log, &options, &[record(n, 2000)]).pop().expect("one answer") {
                Ok(_) => n += 1,
                Err(error) => break error.to_string(),
            }
        };
        assert!(refused.contains(limit), "{refused}");
        assert!(n >= 8, "only {n} records went in");
        assert!(log.status().full && !log.status().failed, "{:?}", log.status());

        // Every record gets its completion; the space is there again, also after a crash.
        finish(&mut log, 0..n / 2);
        finish(&mut log, n / 2..n);
        log.tick(NOW_MS).expect("ticks");
        assert!(!log.status().full, "{:?}", log.status());
        fill(&mut log, &options, n..n + 4, 2000);
        disk.power_cycle();
        let (_, recovered) = open(&disk, &options);
        assert_eq!(numbers(&recovered), (n..n + 4).collect::<Vec<_>>());
    }
}

#[test]
fn a_full_disk_is_asked_again_later() {
    let (disk, options) = (SimulatedDisk::new(1, 2), options(16_384, 9));
    let (mut log, _) = open(&disk, &options);
    fill(&mut log, &options, 0..5, 2000);
    append(&mut log, &options, &[record(5, 2000), record(6, 2000)]).pop().expect("one").expect_err("full");
    disk.set_capacity(9);
    let batch = vec![Prepared::new(record(7, 2000), &options).expect("fits")];
    log.append_batch(batch, NOW_MS + 10_000).pop().expect("one").expect("there is room again");
}

#[test]
fn limits_are_named() {
    let (disk, mut options) = (SimulatedDisk::new(1, usize::MAX), options(16_384, 9));
    options.records_max = 3;
    let (mut log, _) = open(&disk, &options);
    let answers = append(&mut log, &options, &[record(1, 10), record(2, 10), record(3, 10), record(4, 10)]);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3);
    let refused = answers.into_iter().next_back().expect("four").expect_err("over the limit").to_string();
    assert_eq!(refused, "the spool in simulated is full (records_max 3); free space, or raise the limit");
    finish(&mut log, [2]);
    fill(&mut log, &options, 5..6, 10);

    let large = Prepared::new(record(9, 20_000), &options).expect_err("too large").to_string();
    assert!(large.contains("a message of 20040 bytes does not fit segments of 16384 bytes"), "{large}");
    options.segments_max = 1;
    let few = open_with(&disk, &options).err().expect("too few segments").to_string();
    assert!(few.contains("at least 2 segments"), "{few}");
}

#[test]
fn one_name_is_one_message() {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(16_384, 9));
    let (mut log, _) = open(&disk, &options);
    fill(&mut log, &options, 1..2, 100);
    let written = log.status().written_bytes;
    append(&mut log, &options, &[record(1, 100)]).pop().expect("one").expect("the same again is there already");
    assert_eq!(log.status().written_bytes, written);
    let other = Record { id: record(1, 0).id, ..record(2, 100) };
    assert!(matches!(append(&mut log, &options, std::slice::from_ref(&other)).pop(), Some(Err(SpoolError::Duplicate(_)))));
    // Forgotten and back again (handed to a peer and returned): the old completion does not touch the new life.
    finish(&mut log, [1]);
    append(&mut log, &options, &[other]).pop().expect("one").expect("the name is free");
    disk.power_cycle();
    let (log, recovered) = open(&disk, &options);
    assert_eq!(numbers(&recovered), [1]);
    assert_eq!(log.reader().read(record(1, 0).id).expect("reads").1, record(2, 100).body);
}

#[test]
fn a_failed_sync_fails_every_waiter_and_is_final() {
    // Steps of an append: a write, a sync.
    for fail_at in [1, 2] {
        let (disk, options) = (SimulatedDisk::new(fail_at, usize::MAX), options(65_536, 9));
        let (mut log, _) = open(&disk, &options);
        fill(&mut log, &options, 0..3, 500);
        disk.arm(Faults { fail_at: Some(fail_at), cut_at: None });
        for answer in append(&mut log, &options, &[record(3, 500), record(4, 500)]) {
            assert!(matches!(&answer, Err(SpoolError::Failed { cause, .. }) if cause.contains("injected")), "{answer:?}");
        }
        assert!(log.status().failed);
        let after = log.status();
        assert!(matches!(append(&mut log, &options, &[record(5, 10)]).pop(), Some(Err(SpoolError::Failed { .. }))));
        log.complete(record(0, 0).id, [0], NOW_MS);
        assert!(matches!(log.flush(NOW_MS), Err(SpoolError::Failed { .. })));
        assert_eq!((log.status().written_bytes, log.status().syncs), (after.written_bytes, after.syncs), "nothing is written any more");
        for n in 0..3 {
            assert_eq!(log.reader().read(record(n, 0).id).expect("still readable").1, record(n, 500).body);
        }
        disk.restart();
        let (mut log, recovered) = open(&disk, &options);
        assert!(numbers(&recovered).starts_with(&[0, 1, 2]), "{recovered:?}");
        fill(&mut log, &options, 10..11, 500);
    }
}

#[test]
fn a_second_process_stops_the_first() {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(16_384, 9));
    let (mut log, _) = open(&disk, &options);
    fill(&mut log, &options, 0..5, 2000);
    disk.usurp();
    let mut answers = append(&mut log, &options, &[record(5, 2000), record(6, 2000), record(7, 2000)]);
    assert!(matches!(answers.pop(), Some(Err(SpoolError::Failed { cause, .. })) if cause.contains("another process")));
}

/// Ten records in sealed segments and an open one, and the files.
fn spooled() -> (BTreeMap<u32, Vec<u8>>, SpoolOptions) {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(16_384, 9));
    let (mut log, _) = open(&disk, &options);
    fill(&mut log, &options, 0..10, 2000);
    log.complete(record(3, 0).id, [1], NOW_MS);
    finish(&mut log, [4]);
    (disk.contents(), options)
}

fn offset_of(file: &[u8], bytes: &[u8]) -> usize {
    memchr::memmem::find(file, bytes).expect("it is there")
}

fn damaged(number: u64, part: impl Fn(&Record) -> Bytes) -> (SimulatedDisk, SpoolOptions) {
    let (mut files, options) = spooled();
    let part = part(&record(number, 2000));
    let file = files.values_mut().find(|file| memchr::memmem::find(file, &part).is_some()).expect("it is there");
    let at = offset_of(file, &part);
    file[at + 5] ^= 0x10;
    (SimulatedDisk::with_contents(files), options)
}

fn all_but(missing: &[u64]) -> Vec<u64> {
    (0..10).filter(|n| *n != 4 && !missing.contains(n)).collect()
}

#[test]
fn a_rotten_body_is_never_sent() {
    // In a sealed segment, and in the open one before its last batch.
    for number in [0, 8] {
        let (disk, options) = damaged(number, |record| record.body.clone());
        let (mut log, recovered) = open(&disk, &options);
        assert_eq!(numbers(&recovered), all_but(&[]), "bodies are not read at start");
        let id = record(number, 0).id;
        for _ in 0..2 {
            assert!(matches!(log.reader().read(id), Err(SpoolError::Corrupt { .. })));
            assert_eq!(log.status().corrupt_records, 1);
        }
        for n in all_but(&[number]) {
            assert_eq!(log.reader().read(record(n, 0).id).expect("sound").1, record(n, 2000).body);
        }
        // Stragglers or not: it stays where it is until somebody drops it.
        for minutes in 0..40 {
            log.tick(NOW_MS + minutes * 60_000).expect("ticks");
        }
        assert!(matches!(log.reader().read(id), Err(SpoolError::Corrupt { .. })));
        finish(&mut log, [number]);
        assert!(matches!(log.reader().read(id), Err(SpoolError::Unknown(_))));
        assert_eq!(log.status().corrupt_records, 0);
    }
}

#[test]
fn a_rotten_meta_is_kept_and_counted() {
    let (disk, options) = damaged(2, |record| record.meta.clone());
    let (log, recovered) = open(&disk, &options);
    assert_eq!(numbers(&recovered), all_but(&[2]));
    assert_eq!(log.status().corrupt_records, 1);
    assert!(matches!(log.reader().read(record(2, 0).id), Err(SpoolError::Corrupt { .. })));
}

#[test]
fn damage_before_the_end_is_salvaged() {
    // The batch header or the entries of the second to last record, in the open segment.
    for before_meta in [100_u64, 20] {
        let (mut files, options) = spooled();
        let meta = record(8, 2000).meta;
        let file = files.values_mut().find(|file| memchr::memmem::find(file, &meta).is_some()).expect("it is there");
        let at = offset_of(file, &meta) - before_meta as usize;
        file[at] ^= 1;
        let disk = SimulatedDisk::with_contents(files.clone());
        for _ in 0..2 {
            let (mut log, recovered) = open(&disk, &options);
            assert_eq!(numbers(&recovered), all_but(&[8]));
            assert_eq!(log.status().damaged_segments, 1);
            fill(&mut log, &options, 20..21, 100);
            finish(&mut log, [20]);
            disk.power_cycle();
        }
        // A damaged segment is never recycled, even when all that was salvaged is done.
        let (mut log, _) = open(&disk, &options);
        finish(&mut log, all_but(&[8]));
        log.tick(NOW_MS).expect("ticks");
        let (_, damage) = disk.contents().into_iter().find(|(_, file)| memchr::memmem::find(file, &meta).is_some()).expect("still there");
        assert_eq!(damage[8..12], files.values().find(|file| memchr::memmem::find(file, &meta).is_some()).expect("it is there")[8..12]);
    }
}

#[test]
fn a_segment_without_header_is_set_aside() {
    let (mut files, options) = spooled();
    let first = files.get_mut(&1).expect("there");
    first[8] ^= 1;
    first[2048 + 8] ^= 1;
    let before = first.clone();
    let disk = SimulatedDisk::with_contents(files);
    let (mut log, recovered) = open(&disk, &options);
    assert!(!recovered.is_empty() && recovered.len() < 9, "{recovered:?}");
    assert_eq!(log.status().damaged_segments, 1);
    fill(&mut log, &options, 20..30, 2000);
    assert_eq!(disk.contents()[&1], before);
}

/// The last batch of a segment was synced if something was written elsewhere later: its damage is no torn write.
#[test]
fn damage_at_the_end_of_an_older_segment_is_damage() {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(16_384, 9));
    let (mut log, _) = open(&disk, &options);
    fill(&mut log, &options, 0..5, 2000);
    let mut files = disk.contents();
    let body = record(4, 2000).body;
    assert!(memchr::memmem::find(&files[&1], &body).is_some(), "it is the last one of the first segment");
    let at = offset_of(&files[&1], &body);
    files.get_mut(&1).expect("there")[at] ^= 1;
    fill(&mut log, &options, 5..6, 2000);
    files.insert(2, disk.contents()[&2].clone());
    let (log, recovered) = open(&SimulatedDisk::with_contents(files), &options);
    assert_eq!(numbers(&recovered), [0, 1, 2, 3, 4, 5]);
    assert!(matches!(log.reader().read(record(4, 0).id), Err(SpoolError::Corrupt { .. })));
}

/// Every byte of what the last batch wrote, flipped or cut off: all or nothing of it, everything of the rest.
#[test]
fn a_torn_tail_is_all_or_nothing() {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(16_384, 9));
    let (mut log, _) = open(&disk, &options);
    fill(&mut log, &options, 0..2, 300);
    log.complete(record(1, 0).id, [0], NOW_MS);
    let before = disk.contents()[&1].clone();
    assert!(append(&mut log, &options, &[record(2, 200), record(3, 100)]).iter().all(Result::is_ok));
    let after = disk.contents()[&1].clone();
    let start = before.iter().zip(&after).position(|(a, b)| a != b).expect("something was written");
    let end = after.len() - before.iter().rev().zip(after.iter().rev()).position(|(a, b)| a != b).expect("something was written");
    let check = |file: Vec<u8>, what: &str| {
        let whole = file == after;
        let disk = SimulatedDisk::with_contents(BTreeMap::from([(1, file), (2, vec![0; 16_384])]));
        let (mut log, recovered) = open(&disk, &options);
        assert_eq!(numbers(&recovered), if whole { vec![0, 1, 2, 3] } else { vec![0, 1] }, "{what}");
        assert_eq!(recovered[1].done, if whole { BTreeSet::from([0]) } else { BTreeSet::new() }, "{what}");
        let status = log.status();
        assert_eq!((status.corrupt_records, status.damaged_segments), (0, 0), "{what}");
        fill(&mut log, &options, 5..6, 10);
    };
    for at in start..end {
        let mut flipped = after.clone();
        flipped[at] ^= 0x81;
        check(flipped, "flipped");
        let mut cut = before.clone();
        cut[start..at].copy_from_slice(&after[start..at]);
        check(cut, "cut");
    }
    check(after.clone(), "whole");
}

/// Whatever stands in the files: no panic, and what is read is right or an error.
#[test]
fn any_bytes_are_survived() {
    let (files, options) = spooled();
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut files = files.clone();
        for _ in 0..1 + random.below(6) {
            let file = files.get_mut(&(1 + random.below(3) as u32)).expect("there");
            let (at, len) = (random.below(file.len() as u64) as usize, 1 + random.below(300) as usize);
            let len = len.min(file.len() - at);
            let noise = if random.below(3) == 0 { vec![0; len].into() } else { random.bytes(len) };
            file[at..at + len].copy_from_slice(&noise);
        }
        if random.below(10) == 0 {
            let short = files.get_mut(&1).expect("there");
            let keep = random.below(short.len() as u64) as usize;
            short.truncate(keep);
        }
        let (log, recovered) = open(&SimulatedDisk::with_contents(files), &options);
        for found in recovered {
            let wanted = record(found.id.created_ms() - NOW_MS, 2000);
            assert_eq!(log.reader().read_meta(found.id).expect("verified"), wanted.meta, "seed {seed}");
            match log.reader().read(found.id) {
                Ok((_, body)) => assert_eq!(body, wanted.body, "seed {seed}"),
                Err(SpoolError::Corrupt { .. }) => {}
                Err(other) => panic!("seed {seed}: {other}"),
            }
        }
    }
}

#[test]
fn stragglers_are_compacted_by_affinity() {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(65_536, 20));
    let (mut log, _) = open(&disk, &options);
    fill(&mut log, &options, 0..90, 2000);
    let stragglers: BTreeSet<u64> = (0..90).filter(|n| n % 10 == 3).collect();
    finish(&mut log, (0..90).filter(|n| !stragglers.contains(n)));
    log.complete(record(3, 0).id, [1], NOW_MS);
    log.tick(NOW_MS + 1000).expect("ticks");
    assert_eq!(log.status().compacted_bytes, 0, "not old enough");
    let before = log.status().segments;
    let later = NOW_MS + STRAGGLER_AGE_MS + 1000;
    while {
        log.tick(later).expect("ticks");
        log.compacting()
    } {}
    let SpoolStatus { compacted_bytes, segments, .. } = log.status();
    assert!(compacted_bytes > 0 && segments < before, "{compacted_bytes} bytes, {segments} of {before} segments");
    // In the cold segment, records of one affinity lie together.
    let contents = disk.contents();
    let places = |n: u64| contents.values().filter_map(|file| memchr::memmem::rfind(file, &record(n, 2000).body)).next_back();
    let cold: Vec<u64> = stragglers.iter().copied().filter(|n| *n < 60).collect();
    let mut by_place = cold.clone();
    by_place.sort_by_key(|n| places(*n));
    let mut by_affinity = cold;
    by_affinity.sort_by_key(|n| (n % 3, *n));
    assert_eq!(by_place, by_affinity);
    disk.power_cycle();
    let (log, recovered) = open(&disk, &options);
    assert_eq!(numbers(&recovered), stragglers.iter().copied().collect::<Vec<_>>());
    assert_eq!(recovered[0].done, BTreeSet::from([1]), "done slots move along");
    stragglers.iter().for_each(|n| assert_eq!(log.reader().read(record(*n, 0).id).expect("reads").1, record(*n, 2000).body));
}

/// The chain: every segment holds the completions of the one before it, whose single straggler lives for ever. It is broken by logging them again.
#[test]
fn one_straggler_does_not_hold_every_segment() {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(16_384, 6));
    let (mut log, _) = open(&disk, &options);
    fill(&mut log, &options, 0..1, 2000);
    for n in 1..300 {
        fill(&mut log, &options, n..n + 1, 2000);
        if n > 5 {
            log.complete(record(n - 5, 0).id, [0, 1], NOW_MS);
        }
        log.tick(NOW_MS + n).expect("ticks");
    }
    disk.power_cycle();
    let (log, recovered) = open(&disk, &options);
    assert!(numbers(&recovered).starts_with(&[0, 295]) && recovered.len() <= 7, "{:?}", numbers(&recovered));
    assert_eq!(log.reader().read(record(0, 0).id).expect("reads").1, record(0, 2000).body);
}

#[test]
fn recovery_reads_no_bodies_of_sealed_segments() {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(4 << 20, 60));
    let (mut log, _) = open(&disk, &options);
    let body = Random(1).bytes(1000);
    let records = 100_000_u64;
    for start in (0..records).step_by(500) {
        let batch = (start..start + 500).map(|n| {
            let record = Record { id: QueueId::new(NOW_MS + n, 0), meta: Bytes::from_static(b"meta"), body: body.clone(), slots: 1, affinity: 0 };
            Prepared::new(record, &options).expect("fits")
        });
        assert!(log.append_batch(batch.collect(), NOW_MS).iter().all(Result::is_ok));
    }
    let (body_bytes, before) = (log.status().live_bytes, disk.read_bytes());
    drop(log);
    let (log, recovered) = open(&disk, &options);
    assert_eq!((recovered.len(), log.status().records), (100_000, 100_000));
    let read = disk.read_bytes() - before;
    // An index entry is 71 bytes; the open segment is walked, and what follows its last batch is searched.
    let allowed = records * (71 + 4) + options.segment_bytes + 60 * 8192;
    assert!(read <= allowed, "{read} bytes read, {allowed} allowed");
    assert!(read < body_bytes / 5, "{read} bytes read of {body_bytes}");
}

#[test]
fn bytes_written_stay_within_five_percent() {
    let (disk, options) = (SimulatedDisk::new(1, usize::MAX), options(8 << 20, 8));
    let (mut log, _) = open(&disk, &options);
    let (meta, body) = (Random(1).bytes(1200), Random(2).bytes(50_000));
    let mut accepted = 0;
    // One at a time is the dearest way. Completions a little later, each alone.
    for n in 0..400_u64 {
        let record = Record { id: QueueId::new(NOW_MS, u128::from(n)), meta: meta.clone(), body: body.clone(), slots: 1, affinity: n };
        log.append_batch(vec![Prepared::new(record, &options).expect("fits")], NOW_MS).pop().expect("one").expect("written");
        accepted += body.len() as u64;
        if let Some(done) = n.checked_sub(20) {
            log.complete(QueueId::new(NOW_MS, u128::from(done)), [0], NOW_MS);
            log.flush(NOW_MS).expect("written");
        }
        log.tick(NOW_MS + n).expect("ticks");
    }
    let status = log.status();
    let per_mille = status.written_bytes * 1000 / accepted;
    println!("{per_mille} bytes written per 1000 accepted, {status:?}");
    assert!((1000..=1050).contains(&per_mille), "{per_mille} per mille, {status:?}");
    assert!(status.preallocated_bytes <= 6 * options.segment_bytes, "segments are recycled: {status:?}");
}
