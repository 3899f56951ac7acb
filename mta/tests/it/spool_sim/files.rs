//! The whole spool, its thread included, on real files; the golden segments of the format.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sekimori_mta::io::clock;
use sekimori_mta::io::spool::{Log, Prepared, Record, Rules, STRAGGLER_AGE_MS, Settings, Spool, SpoolError, SpoolOptions};
use sekimori_mta::queue_id::QueueId;

use super::Random;
use super::disk::{Faults, SimulatedDisk};

const NOW_MS: u64 = 1_795_600_000_000;

fn options(dir: &Path) -> SpoolOptions {
    SpoolOptions { dir: dir.to_owned(), segment_bytes: 1 << 20, segments_max: 8, records_max: 10_000 }
}

fn record(n: u64, body_len: usize) -> Record {
    let mut random = Random(n);
    let meta = Bytes::from(format!("envelope of message {n}"));
    Record { id: QueueId::new(NOW_MS + n, 0), meta, body: random.bytes(body_len), slots: 3, affinity: n % 2 }
}

fn golden_dir() -> PathBuf {
    PathBuf::from("tests/data/spool/v1")
}

/// A log with a bit of everything: a cold segment, a free one, completions of all and of some slots, an open segment.
fn golden_segments() -> BTreeMap<u32, Vec<u8>> {
    let disk = SimulatedDisk::new(1, usize::MAX);
    let options = SpoolOptions { segment_bytes: 8192, ..options(Path::new("golden")) };
    let settings = Settings { options: options.clone(), salt_seed: 42, rules: Rules::default() };
    let (mut log, _) = Log::open(Arc::new(disk.clone()), settings, NOW_MS).expect("opens");
    let append = |log: &mut Log, n: u64, body_len: usize| {
        log.append_batch(vec![Prepared::new(record(n, body_len), &options).expect("fits")], NOW_MS).pop().expect("one").expect("written");
    };
    (0..4).for_each(|n| append(&mut log, n, 700));
    log.complete(record(1, 0).id, [0, 1, 2], NOW_MS);
    log.complete(record(2, 0).id, [1], NOW_MS);
    (4..7).for_each(|n| append(&mut log, n, 700));
    [0, 3].into_iter().for_each(|n| log.complete(record(n, 0).id, [0, 1, 2], NOW_MS));
    log.flush(NOW_MS).expect("written");
    while {
        log.tick(NOW_MS + STRAGGLER_AGE_MS + 1).expect("ticks");
        log.compacting()
    } {}
    append(&mut log, 7, 300);
    log.complete(record(5, 0).id, [0, 2], NOW_MS);
    log.flush(NOW_MS).expect("written");
    assert!(log.status().compacted_bytes > 0, "{:?}", log.status());
    disk.contents()
}

#[test]
fn the_format_is_the_golden_one() {
    let segments = golden_segments();
    for (number, bytes) in &segments {
        let path = golden_dir().join(format!("segment-{number:08}"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(golden_dir()).expect("a directory");
            std::fs::write(&path, bytes).expect("writes");
        }
        let golden = std::fs::read(&path).expect("a golden segment");
        let differs = golden.iter().zip(bytes).position(|(a, b)| a != b);
        assert!(golden.len() == bytes.len() && differs.is_none(), "{} differs at {differs:?}: a new format needs a new version", path.display());
    }
    assert_eq!(std::fs::read_dir(golden_dir()).expect("a directory").count(), segments.len());
}

#[tokio::test]
async fn the_golden_segments_load() {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(golden_dir()).expect("golden segments") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copies");
    }
    // Segments keep the size that they were made with.
    let (spool, recovered) = Spool::open(options(dir.path())).expect("opens");
    let found: Vec<(u64, BTreeSet<u16>)> = recovered.iter().map(|r| (r.id.created_ms() - NOW_MS, r.done.clone())).collect();
    let none = BTreeSet::new;
    assert_eq!(found, [(2, BTreeSet::from([1])), (4, none()), (5, BTreeSet::from([0, 2])), (6, none()), (7, none())]);
    for record_found in recovered {
        let n = record_found.id.created_ms() - NOW_MS;
        let wanted = record(n, if n == 7 { 300 } else { 700 });
        assert_eq!((record_found.meta_len, record_found.body_len, record_found.slots), (wanted.meta.len(), wanted.body.len(), 3));
        assert_eq!(spool.read_meta(record_found.id).expect("reads"), wanted.meta);
        assert_eq!(spool.read(record_found.id).await.expect("reads"), (wanted.meta, wanted.body));
    }
    assert_eq!((spool.status().corrupt_records, spool.status().damaged_segments), (0, 0));
    spool.close().await.expect("closes");
}

#[tokio::test]
async fn one_process_at_a_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let (spool, _) = Spool::open(options(dir.path())).expect("opens");
    let refused = Spool::open(options(dir.path())).expect_err("in use");
    assert!(matches!(refused, SpoolError::Locked { .. }) && refused.to_string().contains("another process"), "{refused}");
    spool.append(record(1, 10)).await.expect("the first one still works");
    let other = spool.clone();
    spool.close().await.expect("closes");
    // Handles of a closed spool do nothing to the files of the next one.
    assert!(matches!(other.append(record(2, 10)).await, Err(SpoolError::Failed { .. })));
    assert!(matches!(other.read(record(1, 10).id).await, Err(SpoolError::Failed { .. })));
    assert!(matches!(other.flush().await, Err(SpoolError::Failed { .. })));
    let (next, recovered) = Spool::open(options(dir.path())).expect("free again");
    assert_eq!(recovered.len(), 1);
    other.close().await.expect("twice is no error");
    next.append(record(3, 10)).await.expect("works");
    next.close().await.expect("closes");
    assert_eq!(std::fs::read_to_string(dir.path().join("lock")).expect("the lock file").trim().parse(), Ok(2));
}

#[tokio::test]
async fn a_directory_that_cannot_be_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("writes");
    let refused = Spool::open(options(&file)).expect_err("not a directory");
    assert!(matches!(&refused, SpoolError::Failed { dir, .. } if *dir == file), "{refused}");
}

#[tokio::test]
async fn what_a_cut_left_half_made_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let half = dir.path().join("segment-00000001.new");
    std::fs::write(&half, [0; 100]).expect("writes");
    let (spool, _) = Spool::open(options(dir.path())).expect("opens");
    assert!(!half.exists());
    spool.append(record(1, 10)).await.expect("works");
    let empty = Record { meta: Bytes::new(), body: Bytes::new(), ..record(2, 0) };
    spool.append(empty.clone()).await.expect("nothing is something, too");
    assert_eq!(spool.read(empty.id).await.expect("reads"), (Bytes::new(), Bytes::new()));
    spool.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_share_syncs_and_survive() {
    let dir = tempfile::tempdir().expect("a directory");
    let (spool, recovered) = Spool::open(options(dir.path())).expect("opens");
    assert!(recovered.is_empty());
    let tasks: Vec<_> = (0..64_u64)
        .map(|task| {
            let spool = spool.clone();
            tokio::spawn(async move {
                for n in 0..10 {
                    let record = record(task * 10 + n, 5000);
                    let durable = spool.append(record.clone()).await.expect("written");
                    assert_eq!(durable.id(), record.id);
                    assert_eq!(spool.read(record.id).await.expect("reads"), (record.meta, record.body));
                    match n {
                        0 => spool.complete(record.id, [1]),
                        _ => spool.complete(record.id, [0, 1, 2, 9]),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    spool.flush().await.expect("flushes");
    let status = spool.status();
    assert_eq!(status.records, 64);
    assert!(status.syncs < 640, "no two appends shared a sync: {status:?}");
    assert!(matches!(spool.read(record(1, 0).id).await, Err(SpoolError::Unknown(_))));
    spool.close().await.expect("closes");
    let (spool, recovered) = Spool::open(options(dir.path())).expect("opens");
    assert_eq!(recovered.iter().map(|r| r.id).collect::<Vec<_>>(), (0..64).map(|task| record(task * 10, 0).id).collect::<Vec<_>>());
    assert!(recovered.iter().all(|record| record.done == BTreeSet::from([1]) && record.body_len == 5000));
    spool.close().await.expect("closes");
}

#[tokio::test]
async fn completions_are_written_without_other_mail() {
    let disk = SimulatedDisk::new(1, usize::MAX);
    let (spool, _) = Spool::open_with_disk(options(Path::new("simulated")), Arc::new(disk.clone())).expect("opens");
    spool.append(record(1, 10)).await.expect("written");
    spool.append(record(2, 10)).await.expect("written");
    let before = spool.status().syncs;
    spool.complete(record(1, 0).id, [0, 1, 2]);
    let start = clock::monotonic_ms();
    while spool.status().syncs == before {
        assert!(clock::monotonic_ms() - start < 10_000, "the completion is not written");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    disk.power_cycle();
    let (_, recovered) = Spool::open_with_disk(options(Path::new("simulated")), Arc::new(disk)).expect("opens");
    assert_eq!(recovered.iter().map(|r| r.id).collect::<Vec<_>>(), [record(2, 0).id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_is_everybodys() {
    let disk = SimulatedDisk::new(1, usize::MAX);
    let (spool, _) = Spool::open_with_disk(options(Path::new("simulated")), Arc::new(disk.clone())).expect("opens");
    spool.append(record(0, 10)).await.expect("written");
    disk.arm(Faults { fail_at: Some(2), cut_at: None });
    let tasks: Vec<_> = (1..40_u64)
        .map(|n| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.append(record(n, 10)).await })
        })
        .collect();
    for task in tasks {
        assert!(matches!(task.await.expect("no panic"), Err(SpoolError::Failed { .. })));
    }
    assert!(spool.status().failed);
    assert_eq!(spool.read(record(0, 10).id).await.expect("still readable").1, record(0, 10).body);
    spool.close().await.expect("closes");
}

/// Dropping the last handle writes what waits, too.
#[tokio::test]
async fn a_dropped_spool_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let (spool, _) = Spool::open(options(dir.path())).expect("opens");
    spool.append(record(1, 10)).await.expect("written");
    spool.complete(record(1, 0).id, [0, 1, 2]);
    drop(spool);
    let start = clock::monotonic_ms();
    let mut opened = Spool::open(options(dir.path()));
    while matches!(opened, Err(SpoolError::Locked { .. })) && clock::monotonic_ms() - start < 10_000 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        opened = Spool::open(options(dir.path()));
    }
    let (_, recovered) = opened.expect("opens");
    assert!(recovered.is_empty(), "{recovered:?}");
}

/// Figures of this machine, printed: 64 callers, 50 KB. `SPOOL_FIGURES` is the number of messages of each (5 unless it is set).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures() {
    let each = std::env::var("SPOOL_FIGURES").map_or(5, |text| text.parse().expect("a number"));
    let dir = tempfile::tempdir().expect("a directory");
    let options = SpoolOptions { dir: dir.path().to_owned(), segment_bytes: 16 << 20, segments_max: 8, records_max: 10_000 };
    let (spool, _) = Spool::open(options).expect("opens");
    let (meta, body) = (Random(1).bytes(1200), Random(2).bytes(50_000));
    let round = |spool: Spool, each: u64| {
        let tasks: Vec<_> = (0..64_u64)
            .map(|_| {
                let (spool, meta, body) = (spool.clone(), meta.clone(), body.clone());
                tokio::spawn(async move {
                    for _ in 0..each {
                        let id = clock::queue_id();
                        let record = Record { id, meta: meta.clone(), body: body.clone(), slots: 1, affinity: 0 };
                        spool.append(record).await.expect("written");
                        spool.complete(id, [0]);
                    }
                })
            })
            .collect();
        async move {
            for task in tasks {
                task.await.expect("no panic");
            }
            spool.flush().await.expect("flushes");
        }
    };
    round(spool.clone(), 5.min(each)).await;
    let (before, start) = (spool.status(), clock::monotonic_us());
    round(spool.clone(), each).await;
    let (after, us) = (spool.status(), clock::monotonic_us() - start);
    let count = 64 * each;
    let (syncs, bytes) = (after.syncs - before.syncs, after.written_bytes - before.written_bytes);
    let (rate, made) = (count * 1_000_000 / us.max(1), after.preallocated_bytes - before.preallocated_bytes);
    println!("{count} messages in {us} us: {rate}/s, {} syncs per 1000 messages", syncs * 1000 / count);
    println!("{} bytes written per 1000 accepted, {made} bytes preallocated meanwhile", bytes * 1000 / (count * body.len() as u64));
    assert!(syncs < count, "{syncs} syncs for {count} messages");
    assert!(bytes * 100 <= count * body.len() as u64 * 105, "{bytes} bytes for {count} messages");
    spool.close().await.expect("closes");
}
