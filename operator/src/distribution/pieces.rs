//! A way in pieces that each fit a message.

use sekimori_crds::stream::{Change, Changes, PIECE_BYTES_MAX};

use super::Way;

/// The pieces of a way, in order, made one by one. There is always at least one, as the last one is what puts the way in force.
pub fn pieces(way: Way) -> impl Iterator<Item = Changes> {
    let Way { to, full, changes } = way;
    let mut rest = changes.into_iter().peekable();
    let mut first = true;
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut piece = Changes { to: Some(to.clone()), full: full && first, last: false, changes: vec![] };
        first = false;
        let mut bytes = 0;
        while let Some((key, json)) = rest.next_if(|(key, json)| bytes == 0 || bytes + size(key, json.as_deref()) <= PIECE_BYTES_MAX) {
            bytes += size(&key, json.as_deref());
            piece.changes.push(Change { key: key.to_string(), part: json.unwrap_or_default() });
        }
        done = rest.peek().is_none();
        piece.last = done;
        Some(piece)
    })
}

fn size(key: &str, json: Option<&[u8]>) -> usize {
    key.len() + json.map_or(0, <[u8]>::len) + 16
}
