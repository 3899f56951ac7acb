use super::*;
use crate::envelope::{Client, Recipient};
use crate::message::edit::Edit;
use crate::queue_id::QueueId;
use crate::smtp::Address;

fn meta() -> Meta {
    let recipient = |local: &str| Recipient { address: Address { local: local.into(), domain: "t.example".into() }, tenant: "mail/t".into() };
    let client = Client { address: [192, 0, 2, 1].into(), helo: "client.test".into(), esmtp: true, tls: None, address_known: true };
    Meta {
        envelope: Envelope {
            id: QueueId::new(1_795_600_000_123, 5),
            received_ms: 1_795_600_000_200,
            client,
            sender: None,
            recipients: vec![recipient("a"), recipient("b")],
            eight_bit: true,
            smtputf8: false,
        },
        groups: vec![Group {
            tenant: "mail/t".into(),
            recipients: vec![0, 1],
            edits: Edits::from(vec![Edit { at: 0..0, with: Bytes::from_static(b"X: y\r\n") }, Edit { at: 4..9, with: Bytes::new() }]),
            purpose: Purpose::Quarantine { reason: "spam".into() },
        }],
    }
}

#[test]
fn reads_what_it_wrote() {
    let meta = meta();
    assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
}

#[test]
fn what_does_not_read_says_so() {
    let stray = Meta { groups: vec![Group { recipients: vec![2], ..meta().groups.remove(0) }], ..meta() };
    for (bytes, wanted) in [
        (Bytes::from_static(b""), "does not read"),
        (Bytes::from_static(b"{}"), "does not read"),
        (meta().encode().slice(..50), "does not read"),
        (stray.encode(), "names recipient 2 of 2"),
    ] {
        let error = Meta::decode(&bytes).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
}

/// A message for so many tenants, from which so much is only taken away, in the form of each.
fn for_tenants(tenants: u16, removals: usize) -> Meta {
    let template = meta();
    let removed = (0..removals).map(|n| Edit { at: n * 20..n * 20 + 10, with: Bytes::new() });
    let edits = Edits::from([Edit { at: 0..0, with: Bytes::from(vec![b'x'; 500]) }].into_iter().chain(removed).collect::<Vec<_>>());
    let groups = (0..tenants).map(|n| Group {
        tenant: format!("mail/t{n}").into(),
        recipients: vec![n % 2],
        edits: edits.clone(),
        ..template.groups[0].clone()
    });
    Meta { groups: groups.collect(), ..template }
}

#[test]
fn what_is_taken_away_is_written_and_held_once() {
    let meta = for_tenants(100, 990);
    let written = meta.encode();
    assert!(written.len() < 100 * 800 + 990 * 20, "{} bytes", written.len());
    let read = Meta::decode(&written).expect("it reads");
    assert_eq!(read, meta);
    let held: usize = read.groups.iter().map(|group| group.edits.own_bytes()).sum();
    assert!(held < 100 * 600, "{held} bytes");
    assert!(read.groups.iter().all(|group| Arc::ptr_eq(group.edits.removed(), read.groups[0].edits.removed())), "one list for all");
    // A group with another list keeps its own.
    let mut mixed = for_tenants(3, 5);
    mixed.groups[1].edits = Edits::from(vec![Edit { at: 3..4, with: Bytes::new() }]);
    assert_eq!(Meta::decode(&mixed.encode()), Ok(mixed));
    for meta in [for_tenants(3, 0), for_tenants(1, 5), for_tenants(0, 0)] {
        assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
    }
}

#[test]
fn records_of_before_read_as_they_did() {
    // What was written while each group had the whole list: the serialisation that is still shown to people.
    let meta = for_tenants(3, 4);
    let before = serde_json::to_vec(&meta).expect("it is JSON");
    assert!(!before.windows(9).any(|text| text == b"\"removed\""));
    assert_eq!(Meta::decode(&before), Ok(meta));
    let wrong = String::from_utf8(for_tenants(2, 2).encode().to_vec()).expect("text").replace("[20,30]", "[5,30]");
    assert!(Meta::decode(wrong.as_bytes()).unwrap_err().contains("begins before"), "edits that overlap what all share");
}
