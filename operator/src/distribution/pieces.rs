//! A way in pieces that each fit a message.

use sekimori_crds::stream::{Change, Changes};

use super::{Changed, Way};

/// Bytes of parts in one piece, unless one part alone has more. Far below what a message may have: a few pieces of every gateway are in memory at a time,
/// and there may be hundreds of gateways.
pub const PIECE_BYTES: usize = 128 << 10;

const _: () = assert!(PIECE_BYTES <= sekimori_crds::stream::PIECE_BYTES_MAX);

/// The pieces of a way, in order, made one by one. There is always at least one, as the last one is what puts the way in force.
pub fn pieces(way: Way) -> Pieces {
    Pieces { way, next: 0, done: false }
}

/// See [`pieces`].
#[derive(Debug)]
pub struct Pieces {
    way: Way,
    next: usize,
    done: bool,
}

impl Iterator for Pieces {
    type Item = Changes;

    fn next(&mut self) -> Option<Changes> {
        if self.done {
            return None;
        }
        let mut piece = Changes { to: Some(self.way.to.clone()), full: self.way.full && self.next == 0, last: false, changes: vec![] };
        let mut unpacker = self.way.unpacker.open();
        let mut bytes = 0;
        while let Some(changed) = self.way.changes.get(self.next).filter(|changed| bytes == 0 || bytes + size(changed) <= PIECE_BYTES) {
            bytes += size(changed);
            let (key, part) = changed;
            piece.changes.push(Change { key: key.to_string(), part: part.as_ref().map(|part| unpacker.json(part)).unwrap_or_default() });
            self.next += 1;
        }
        self.done = self.next == self.way.changes.len();
        piece.last = self.done;
        Some(piece)
    }
}

fn size((key, part): &Changed) -> usize {
    key.len() + part.as_ref().map_or(0, super::packed::Packed::json_bytes) + 16
}
