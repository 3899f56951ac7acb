use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::envelope::{Client, Recipient};
use crate::message::EditsBuilder;
use crate::smtp::Address;

fn item(id: u128, tenant: &str, kind: Kind, recipients: &[u16]) -> Item {
    let raw = Bytes::from(format!("From: Ann <ann@sender.example>\r\nSubject: =?utf-8?B?6KuL5rGC?= invoice {id}\r\n\r\nbody of {tenant} \u{0}\r\n"));
    let recipient = |n: u16| Recipient { address: Address { local: format!("user{n}"), domain: "example.com".into() }, tenant: tenant.into() };
    Item {
        id: QueueId::new(1_795_594_103_000, id),
        tenant: tenant.into(),
        kind,
        reason: "Reject: malware Eicar (clamav)".into(),
        envelope: Envelope {
            id: QueueId::new(1_795_594_103_000, id),
            received_ms: 1_795_594_103_000,
            client: Client { address: IpAddr::from([192, 0, 2, 1]), helo: "h".into(), esmtp: true, tls: None, address_known: true },
            sender: Some(Address { local: "bounce".into(), domain: "sender.example".into() }),
            recipients: (0..4).map(recipient).collect(),
            eight_bit: true,
            smtputf8: false,
        },
        recipients: recipients.to_vec(),
        edits: EditsBuilder::new(raw.len()).insert(0, "X-Added: yes\r\n").build().expect("fits"),
        raw,
    }
}

fn open(dir: &Path) -> Quarantine {
    Quarantine::open(dir, QuarantineOptions::default()).expect("it opens")
}

/// Every file below, with its contents.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for kind in Kind::ALL {
        for file in fs::read_dir(dir.join(kind.directory())).expect("a directory") {
            let path = file.expect("a file").path();
            let regular = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
            found.insert(path.clone(), if regular { fs::read(&path).expect("readable") } else { vec![] });
        }
    }
    found
}

fn only(dir: &Path) -> PathBuf {
    let found = files(dir);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_keys().next().expect("one")
}

#[tokio::test]
async fn what_is_stored_reads_back_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let quarantined = item(1, "ns/a", Kind::Quarantined, &[0, 2]);
    let dead = item(2, "ns/a", Kind::DeadLetter, &[1]);
    store.store(quarantined.clone()).await.expect("stored");
    store.store(dead.clone()).await.expect("stored");
    for store in [store, open(dir.path())] {
        let listed = store.list(&Filter::default());
        assert_eq!(listed.len(), 2);
        assert_eq!(store.read(listed[0].key).await.expect("it reads"), quarantined);
        assert_eq!(store.read(listed[1].key).await.expect("it reads"), dead);
        let entry = &listed[0];
        assert_eq!(
            (entry.subject.as_str(), entry.from.as_str(), entry.sender.as_str()),
            ("請求 invoice 1", "ann@sender.example", "bounce@sender.example")
        );
        assert_eq!(
            (entry.recipients.as_slice(), entry.bytes),
            (&["user0@example.com".to_owned(), "user2@example.com".to_owned()][..], quarantined.raw.len() as u64)
        );
        assert_eq!(entry.key.to_string().parse(), Ok(entry.key));
        let status = store.status();
        assert_eq!((status.quarantined, status.dead_letters, status.problems), (1, 1, 0));
        assert_eq!(status.bytes, (quarantined.raw.len() + dead.raw.len()) as u64);
        let content = store.read(entry.key).await.expect("it reads").content().concat();
        assert!(content.starts_with(b"X-Added: yes\r\nFrom: Ann"));
    }
}

#[tokio::test]
async fn storing_twice_is_storing_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    store.store(item(1, "ns/a", Kind::Quarantined, &[0, 1])).await.expect("stored");
    let before = files(dir.path());
    let written = store.status().written_bytes;
    for recipients in [&[0, 1][..], &[1, 0], &[1]] {
        store.store(item(1, "ns/a", Kind::Quarantined, recipients)).await.expect("it is stored already");
    }
    assert_eq!(files(dir.path()), before);
    assert_eq!(store.status().written_bytes, written);
    // Also after a restart, and at once from many sides.
    let store = open(dir.path());
    let all = (0..20).map(|_| store.store(item(1, "ns/a", Kind::Quarantined, &[0, 1])));
    assert!(futures_util::future::join_all(all).await.into_iter().all(|stored| stored.is_ok()));
    let all = (0..20).map(|_| store.store(item(9, "ns/a", Kind::Quarantined, &[0])));
    assert!(futures_util::future::join_all(all).await.into_iter().all(|stored| stored.is_ok()));
    assert_eq!(store.status().quarantined, 2);
    assert_eq!(files(dir.path()).len(), 2);
    // A recipient that is not covered is a copy of its own, never swallowed.
    store.store(item(1, "ns/a", Kind::Quarantined, &[2])).await.expect("stored");
    assert_eq!(store.show(item(1, "ns/a", Kind::Quarantined, &[]).id).len(), 2);
}

#[tokio::test]
async fn two_tenants_and_two_kinds_of_one_message_are_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let items = [item(1, "ns/a", Kind::Quarantined, &[0]), item(1, "ns/b", Kind::Quarantined, &[0]), item(1, "ns/a", Kind::DeadLetter, &[0])];
    for item in &items {
        store.store(item.clone()).await.expect("stored");
    }
    let shown = store.show(items[0].id);
    assert_eq!(shown.len(), 3);
    let b = Filter { tenant: Some("ns/b".into()), ..Filter::default() };
    let [of_b] = &store.list(&b)[..] else { panic!("one copy of ns/b") };
    assert_eq!(store.read(of_b.key).await.expect("it reads"), items[1]);
    store.delete(of_b.key).await.expect("deleted");
    assert_eq!(store.show(items[0].id).len(), 2);
    assert!(store.list(&b).is_empty());
    assert_eq!(open(dir.path()).show(items[0].id).len(), 2);
}

#[tokio::test]
async fn lists_what_is_meant() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    for id in 1..=5 {
        let kind = if id == 5 { Kind::DeadLetter } else { Kind::Quarantined };
        let tenant = if id < 3 { "ns/a" } else { "ns/b" };
        store.store(item(id, tenant, kind, &[u16::try_from(id % 4).expect("small")])).await.expect("stored");
    }
    let count = |filter: Filter| store.list(&filter).len();
    assert_eq!(count(Filter { tenant: Some("ns/a".into()), ..Filter::default() }), 2);
    assert_eq!(count(Filter { kind: Some(Kind::DeadLetter), ..Filter::default() }), 1);
    assert_eq!(count(Filter { limit: 3, ..Filter::default() }), 3);
    assert_eq!(count(Filter { before_ms: Some(clock::unix_ms() + 60_000), ..Filter::default() }), 5);
    assert_eq!(count(Filter { before_ms: Some(1), ..Filter::default() }), 0);
    for (text, found) in [("INVOICE 3", 1), ("請求", 5), ("eicar", 5), ("user2@", 1), ("bounce@sender", 5), ("nobody", 0)] {
        assert_eq!(store.search(text, &Filter::default()).len(), found, "{text}");
    }
    let id = item(4, "", Kind::Quarantined, &[]).id.to_string();
    assert_eq!(store.search(&id.to_lowercase(), &Filter::default()).len(), 1);
    assert_eq!(store.search("invoice", &Filter { tenant: Some("ns/b".into()), kind: Some(Kind::Quarantined), ..Filter::default() }).len(), 2);
    let json = serde_json::to_value(&*store.show(item(1, "", Kind::Quarantined, &[]).id)[0]).expect("it is JSON");
    assert_eq!((&json["subject"], &json["kind"], &json["tenant"]), (&"請求 invoice 1".into(), &"quarantined".into(), &"ns/a".into()));
    assert!(json["key"].as_str().is_some_and(|key| key.starts_with("quarantined/01")));
}

#[tokio::test]
async fn expires() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    for id in 1..=3 {
        store.store(item(id, "ns/a", Kind::Quarantined, &[0])).await.expect("stored");
    }
    let now_ms = clock::unix_ms();
    let retention_ms = QuarantineOptions::default().retention_ms;
    assert_eq!(store.expire(now_ms + retention_ms - 60_000).await.expect("it runs"), 0);
    assert_eq!(store.status().quarantined, 3);
    store.set_retention(1000);
    assert_eq!(store.expire(now_ms + 60_000).await.expect("it runs"), 3);
    assert_eq!((store.status().quarantined, store.status().bytes), (0, 0));
    assert!(files(dir.path()).is_empty());
}

#[tokio::test]
async fn limits_are_errors_that_say_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = item(1, "ns/a", Kind::Quarantined, &[0]);
    let options = QuarantineOptions { bytes_max: one.raw.len() as u64 + 10, ..QuarantineOptions::default() };
    let store = Quarantine::open(dir.path(), options).expect("it opens");
    store.store(one.clone()).await.expect("stored");
    let error = store.store(item(2, "ns/a", Kind::Quarantined, &[0])).await.expect_err("full");
    assert!(matches!(&error, QuarantineError::Full { .. }) && error.to_string().contains("bytes"), "{error}");
    store.store(one.clone()).await.expect("what is stored is stored, full or not");
    store.delete(store.list(&Filter::default())[0].key).await.expect("deleted");
    store.store(item(2, "ns/a", Kind::Quarantined, &[0])).await.expect("there is room again");
    let options = QuarantineOptions { entries_max: 1, ..QuarantineOptions::default() };
    let store = Quarantine::open(dir.path(), options).expect("it opens");
    let error = store.store(one).await.expect_err("full");
    assert!(error.to_string().contains("1 messages"), "{error}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_an_error_and_nothing_is_promised() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    // Whoever runs the tests may be root, whom no permission stops: a file in the directory's place stops everybody.
    let quarantined = dir.path().join("quarantined");
    fs::remove_dir(&quarantined).expect("it is empty");
    fs::write(&quarantined, "in the way").expect("a file");
    let error = store.store(item(1, "ns/a", Kind::Quarantined, &[0])).await.expect_err("not a directory");
    assert!(matches!(&error, QuarantineError::FileSystem { .. }) && error.to_string().contains("permissions"), "{error}");
    assert_eq!(store.status(), QuarantineStatus::default());
    assert!(store.list(&Filter::default()).is_empty());
    Quarantine::open(dir.path(), QuarantineOptions::default()).expect_err("not a directory");
    fs::remove_file(&quarantined).expect("removed");
    fs::create_dir(&quarantined).expect("made");
    store.store(item(1, "ns/a", Kind::Quarantined, &[0])).await.expect("stored, now that it can be");
    let key = store.list(&Filter::default())[0].key;
    fs::remove_file(only(dir.path())).expect("somebody took it away");
    assert!(matches!(store.read(key).await, Err(QuarantineError::FileSystem { .. })));
    store.delete(key).await.expect("gone is gone");
    assert!(matches!(store.delete(key).await, Err(QuarantineError::Unknown(_))));
    assert!(matches!(store.read(key).await, Err(QuarantineError::Unknown(_))));
}

#[tokio::test]
async fn a_crash_at_any_point_leaves_all_or_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole_item = item(1, "ns/a", Kind::Quarantined, &[0]);
    open(dir.path()).store(whole_item.clone()).await.expect("stored");
    let path = only(dir.path());
    let whole = fs::read(&path).expect("it reads");
    let temporary = path.with_file_name(format!("{TEMPORARY}{}-0", path.file_name().expect("a name").to_str().expect("text")));
    // Every length up to the head, then some, and the last ones.
    for cut in (0..FIXED + 2).chain((FIXED + 2..whole.len()).step_by(41)).chain(whole.len() - 2..=whole.len()) {
        // Before the rename: whatever was written of the temporary file goes.
        fs::remove_file(&path).ok();
        fs::write(&temporary, &whole[..cut]).expect("written");
        let store = open(dir.path());
        assert_eq!((store.list(&Filter::default()).len(), store.status().problems), (0, 0), "{cut}");
        assert!(!temporary.exists(), "{cut}");
        // A final file that is not whole (no crash makes it, but a bad disk may) is reported and never served.
        fs::write(&path, &whole[..cut]).expect("written");
        let store = open(dir.path());
        let expected = usize::from(cut == whole.len());
        assert_eq!((store.list(&Filter::default()).len(), store.status().problems), (expected, 1 - expected), "{cut}");
        assert!(path.exists(), "what is corrupt is kept for inspection");
    }
    // A good copy takes the place of a corrupt one.
    fs::write(&path, &whole[..40]).expect("written");
    let store = open(dir.path());
    store.store(whole_item.clone()).await.expect("stored");
    assert_eq!(open(dir.path()).read(store.list(&Filter::default())[0].key).await.expect("it reads"), whole_item);
}

#[tokio::test]
async fn a_changed_byte_is_never_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let original = item(1, "ns/a", Kind::Quarantined, &[0]);
    let store = open(dir.path());
    store.store(original).await.expect("stored");
    let key = store.list(&Filter::default())[0].key;
    let path = only(dir.path());
    let whole = fs::read(&path).expect("it reads");
    for at in (0..FIXED + 2).chain((FIXED + 2..whole.len()).step_by(17)).chain(whole.len() - 2..whole.len()) {
        let mut changed = whole.clone();
        changed[at] ^= 0x20;
        fs::write(&path, &changed).expect("written");
        let store = open(dir.path());
        let served = store.read(key).await;
        assert!(served.is_err(), "byte {at} was changed, and the file was served");
        assert_eq!((store.status().problems, store.list(&Filter::default()).len()), (1, 0), "byte {at}");
        assert!(path.exists());
    }
}

#[tokio::test]
async fn edits_of_another_message_are_never_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let mut wrong = item(1, "ns/a", Kind::Quarantined, &[0]);
    wrong.edits = EditsBuilder::new(100_000).remove(90_000..90_010).build().expect("it would fit a larger message");
    store.store(wrong).await.expect("stored");
    let error = store.read(store.list(&Filter::default())[0].key).await.expect_err("the edits do not fit");
    assert!(matches!(&error, QuarantineError::Corrupt { .. }) && error.to_string().contains("90000..90010"), "{error}");
}

#[tokio::test]
async fn foreign_files_are_reported_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    store.store(item(1, "ns/a", Kind::Quarantined, &[0])).await.expect("stored");
    let path = only(dir.path());
    let beside = |name: &str| path.with_file_name(name);
    fs::write(beside("README"), "hello").expect("written");
    fs::write(beside("01K0000000000000000000000A-0123456789abcdef.mail"), "short").expect("written");
    fs::create_dir(beside("01K0000000000000000000000B-0123456789abcdef.mail")).expect("made");
    std::os::unix::fs::symlink("/dev/zero", beside("01K0000000000000000000000C-0123456789abcdef.mail")).expect("made");
    // A copy under another's name, and under another kind: whose mail it is must not depend on who renames files.
    let name = path.file_name().expect("a name").to_str().expect("text").to_owned();
    let (id, _) = name.split_once('-').expect("an id");
    fs::copy(&path, beside(&format!("{id}-0123456789abcdef.mail"))).expect("copied");
    fs::copy(&path, dir.path().join("dead-letters").join(&name)).expect("copied");
    let before = files(dir.path());
    let store = open(dir.path());
    assert_eq!(store.list(&Filter::default()).len(), 1);
    let problems = store.problems();
    assert_eq!((problems.len(), store.status().problems), (6, 6), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.path.ends_with("README") && problem.what.contains("name")), "{problems:?}");
    assert_eq!(files(dir.path()), before);
}

#[tokio::test]
async fn a_store_that_nobody_waits_for_is_finished() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    {
        let future = store.store(item(1, "ns/a", Kind::Quarantined, &[0]));
        let mut future = Box::pin(future);
        // Polled once: the work begins. Then it is dropped, as by a timeout.
        assert!(futures_util::poll!(&mut future).is_pending());
    }
    for _ in 0..200 {
        if store.status().quarantined == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(store.list(&Filter::default()).len(), 1);
    store.store(item(1, "ns/a", Kind::Quarantined, &[0])).await.expect("the second try finds it");
    assert_eq!(files(dir.path()).len(), 1);
}

#[test]
fn keys_are_written_in_one_way() {
    let key = Key::of(QueueId::new(1_795_594_103_000, 7), Kind::DeadLetter, "ns/a", &[3, 1]);
    assert_eq!(key, Key::of(QueueId::new(1_795_594_103_000, 7), Kind::DeadLetter, "ns/a", &[1, 3]));
    assert_eq!(key.to_string().parse(), Ok(key));
    let name = key.file_name();
    assert_eq!(Key::from_file_name(Kind::DeadLetter, &name), Some(key));
    for wrong in [
        name.to_lowercase(),
        name.replace(SUFFIX, ""),
        name.replace('-', "-0"),
        name.replace('-', "-+"),
        format!("../{name}"),
        String::new(),
        SUFFIX.to_owned(),
    ] {
        assert_eq!(Key::from_file_name(Kind::DeadLetter, &wrong), None, "{wrong}");
    }
    for wrong in ["", "quarantined", "quarantined/", "elsewhere/01K0000000000000000000000A-0123456789abcdef", "quarantined/../../x"] {
        assert!(wrong.parse::<Key>().expect_err(wrong).contains("such as"));
    }
}

proptest! {
    #[test]
    fn no_contents_break_the_reader(contents in proptest::collection::vec(any::<u8>(), 0..200), magic in any::<bool>(), summed in any::<bool>()) {
        let mut contents = contents;
        if magic {
            contents.splice(0..0, MAGIC.iter().copied());
        }
        if summed && contents.len() >= FIXED {
            let sum = crc32c::crc32c(&contents[..FIXED - 4]).to_le_bytes();
            contents[FIXED - 4..FIXED].copy_from_slice(&sum);
        }
        let key = Key::of(QueueId::new(1_795_594_103_000, 7), Kind::Quarantined, "ns/a", &[0]);
        prop_assert!(unpack(key, contents).is_err());
    }
}

#[test]
fn the_volume_is_shared_with_the_spool() {
    let gib = |n: u64| n << 30;
    // Volume, spool's part, bytes that the quarantine may take in all.
    for (volume_bytes, spool_bytes, share_bytes) in
        [(gib(20), gib(16), gib(3)), (gib(20), gib(4), gib(10)), (gib(20), gib(30), gib(1)), (gib(20), gib(9), gib(10))]
    {
        let options = QuarantineOptions::beside_spool(volume_bytes, spool_bytes);
        let all_bytes = options.bytes_max + options.entries_max as u64 * COPY_OVERHEAD_BYTES;
        assert!(all_bytes <= share_bytes && all_bytes >= share_bytes / 2, "{volume_bytes} {spool_bytes}: {options:?}");
        assert!(options.bytes_max >= share_bytes / 2, "most of it is for messages: {options:?}");
    }
    let large = QuarantineOptions::beside_spool(gib(10_000), gib(16));
    let default = QuarantineOptions::default();
    assert_eq!((large.bytes_max, large.entries_max), (default.bytes_max, default.entries_max), "on a large volume the limits are its own");
    let nothing = QuarantineOptions::beside_spool(0, 0);
    assert_eq!((nothing.bytes_max, nothing.entries_max), (0, 1));
}

#[tokio::test]
async fn a_volume_without_room_is_a_full_quarantine() {
    let dir = tempfile::tempdir().expect("a directory");
    let found = QuarantineOptions::of_volume(dir.path(), 0).expect("every directory is on a volume");
    assert!(found.bytes_max > 0 && found.bytes_max <= QuarantineOptions::default().bytes_max, "{found:?}");
    assert!(matches!(QuarantineOptions::of_volume(&dir.path().join("absent"), 0), Err(QuarantineError::FileSystem { .. })));
    // As large as a volume of 4 KiB.
    let store = Quarantine::open(dir.path(), QuarantineOptions::beside_spool(4 << 10, 0)).expect("it opens");
    let error = store.store(item(1, "ns/a", Kind::Quarantined, &[0])).await.expect_err("there is no room");
    assert!(matches!(&error, QuarantineError::Full { .. }), "{error}");
}
