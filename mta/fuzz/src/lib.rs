//! The wire protocol of the gateway and nothing else of it: `smtp` is a leaf, so fuzzing needs neither tokio nor TLS nor engines.

#[path = "../../src/smtp/mod.rs"]
pub mod smtp;

/// Cuts a fuzzer's input into pieces: a length octet, so many octets, and so on; what is left over is the last piece.
pub fn pieces(mut data: &[u8]) -> Vec<&[u8]> {
    let mut pieces = vec![];
    while let Some((&length, rest)) = data.split_first() {
        let (piece, after) = rest.split_at(usize::from(length).min(rest.len()));
        pieces.push(piece);
        data = after;
    }
    pieces
}
