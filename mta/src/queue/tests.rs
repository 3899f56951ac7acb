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
            edits: Edits(vec![Edit { at: 0..0, with: Bytes::from_static(b"X: y\r\n") }, Edit { at: 4..9, with: Bytes::new() }]),
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
