//! A next hop's octets, in any pieces; and whatever text came of them is one well-formed reply when it is passed on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sekimori_mta_fuzz::pieces;
use sekimori_mta_fuzz::smtp::{Reply, ReplyError, ReplyReader};

fn read(pieces: &[&[u8]]) -> Result<Vec<Reply>, ReplyError> {
    let mut reader = ReplyReader::new();
    let mut replies = vec![];
    for piece in pieces {
        let mut next = reader.push(piece)?;
        while let Some(reply) = next {
            replies.push(reply);
            next = reader.push(b"")?;
        }
    }
    Ok(replies)
}

fuzz_target!(|data: &[u8]| {
    let pieces = pieces(data);
    let whole = pieces.concat();
    let replies = read(&pieces);
    assert_eq!(replies, read(&[&whole]));
    for reply in replies.unwrap_or_default() {
        let mut encoded = Vec::new();
        reply.encode(&mut encoded);
        let again = read(&[&encoded]).expect("our own reply");
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].code, reply.code);
    }
});
