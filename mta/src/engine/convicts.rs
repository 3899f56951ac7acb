//! Messages that an engine died on: suspects are scanned one at a time, convicts not at all (DESIGN.md 4.4).

use std::collections::{HashMap, VecDeque};

/// Suspects, and convicts, remembered per engine. 10,000 digests are about 1 MB; beyond, the oldest is forgotten, which costs a death at worst.
pub const ENTRIES_MAX: usize = 10_000;
/// A conviction holds for 24 h: long enough for a campaign, and a repaired engine gets its chance. A suspicion too, as senders retry for hours.
pub const HOLDS_FOR_MS: u64 = 24 * 3_600_000;

/// SHA-256 of a raw message.
pub type ContentDigest = [u8; 32];

/// How a message is given to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Beside others.
    Free,
    /// Alone: the engine died with it in flight.
    Suspect,
    /// Not at all: it killed the engine alone.
    Convict,
}

/// The book of one engine.
#[derive(Debug, Default)]
pub struct Convicts {
    suspects: Bounded,
    convicts: Bounded,
}

impl Convicts {
    /// How this content is treated.
    pub fn standing(&self, digest: &ContentDigest, now_ms: u64) -> Standing {
        if self.convicts.holds(digest, now_ms) {
            Standing::Convict
        } else if self.suspects.holds(digest, now_ms) {
            Standing::Suspect
        } else {
            Standing::Free
        }
    }

    /// The engine died with it in flight.
    pub fn suspect(&mut self, digest: ContentDigest, now_ms: u64) {
        self.suspects.insert(digest, now_ms);
    }

    /// The engine died with it alone in flight.
    pub fn convict(&mut self, digest: ContentDigest, now_ms: u64) {
        self.suspects.remove(&digest);
        self.convicts.insert(digest, now_ms);
    }

    /// The engine scanned it alone and lived.
    pub fn acquit(&mut self, digest: &ContentDigest) {
        self.suspects.remove(digest);
    }

    /// Forgets everything that was entered at or after this: the engine was not itself.
    pub fn forget_since(&mut self, since_ms: u64) {
        let kept = |until_ms: &u64| *until_ms < since_ms.saturating_add(HOLDS_FOR_MS);
        self.suspects.until_ms.retain(|_, until_ms| kept(until_ms));
        self.convicts.until_ms.retain(|_, until_ms| kept(until_ms));
    }

    /// Suspects and convicts in the book, expired ones included until they are pushed out.
    pub fn counts(&self) -> (usize, usize) {
        (self.suspects.until_ms.len(), self.convicts.until_ms.len())
    }
}

/// Digests with an end, in order of insertion. An entry that was removed or renewed leaves its old place in `order`, told by its end.
#[derive(Debug, Default)]
struct Bounded {
    until_ms: HashMap<ContentDigest, u64>,
    order: VecDeque<(ContentDigest, u64)>,
}

impl Bounded {
    fn holds(&self, digest: &ContentDigest, now_ms: u64) -> bool {
        !self.until_ms.is_empty() && self.until_ms.get(digest).is_some_and(|until_ms| now_ms < *until_ms)
    }

    fn insert(&mut self, digest: ContentDigest, now_ms: u64) {
        let until_ms = now_ms.saturating_add(HOLDS_FOR_MS);
        self.until_ms.insert(digest, until_ms);
        self.order.push_back((digest, until_ms));
        while let Some((oldest, oldest_until_ms)) = self.order.front()
            && (self.order.len() > ENTRIES_MAX || *oldest_until_ms <= now_ms)
        {
            if self.until_ms.get(oldest) == Some(oldest_until_ms) {
                self.until_ms.remove(oldest);
            }
            self.order.pop_front();
        }
    }

    fn remove(&mut self, digest: &ContentDigest) {
        self.until_ms.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u32) -> ContentDigest {
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(n.to_be_bytes()) {
            *to = from;
        }
        digest
    }

    #[test]
    fn from_free_to_convict_and_back() {
        let mut book = Convicts::default();
        assert_eq!(book.standing(&digest(1), 0), Standing::Free);
        book.suspect(digest(1), 10);
        assert_eq!(book.standing(&digest(1), 10), Standing::Suspect);
        book.acquit(&digest(1));
        assert_eq!(book.standing(&digest(1), 11), Standing::Free);
        book.suspect(digest(1), 20);
        book.convict(digest(1), 30);
        assert_eq!(book.standing(&digest(1), 30 + HOLDS_FOR_MS - 1), Standing::Convict);
        assert_eq!(book.standing(&digest(1), 30 + HOLDS_FOR_MS), Standing::Free);
        assert_eq!(book.standing(&digest(2), 30), Standing::Free, "only this content");
    }

    #[test]
    fn what_an_engine_that_was_not_itself_did_is_forgotten() {
        let mut book = Convicts::default();
        book.convict(digest(1), 99);
        book.convict(digest(2), 100);
        book.suspect(digest(3), 101);
        book.forget_since(100);
        let standings = [1, 2, 3].map(|n| book.standing(&digest(n), 102));
        assert_eq!(standings, [Standing::Convict, Standing::Free, Standing::Free]);
    }

    #[test]
    fn the_book_is_bounded_and_forgets_the_oldest() {
        let mut book = Convicts::default();
        for n in 0..=ENTRIES_MAX as u32 {
            book.convict(digest(n), 5);
        }
        assert_eq!(book.counts(), (0, ENTRIES_MAX));
        assert_eq!(book.standing(&digest(0), 6), Standing::Free);
        assert_eq!(book.standing(&digest(1), 6), Standing::Convict);
        book.convict(digest(7), 5 + HOLDS_FOR_MS);
        assert_eq!(book.counts(), (0, 1), "expired entries make room");
    }

    proptest! {
        #[test]
        fn never_more_than_its_bound(steps in prop::collection::vec((0..20_u32, 0..3_u8, 0..HOLDS_FOR_MS), 0..300)) {
            let mut book = Convicts::default();
            let mut now_ms = 0;
            for (n, what, step_ms) in steps {
                now_ms += step_ms / 8;
                match what {
                    0 => book.suspect(digest(n), now_ms),
                    1 => book.convict(digest(n), now_ms),
                    _ => book.acquit(&digest(n)),
                }
                let standing = book.standing(&digest(n), now_ms);
                let sound = match what {
                    0 => standing != Standing::Free,
                    1 => standing == Standing::Convict,
                    _ => standing != Standing::Suspect,
                };
                prop_assert!(sound, "{standing:?} after {what}");
                prop_assert!(book.suspects.order.len() <= ENTRIES_MAX && book.suspects.until_ms.len() <= book.suspects.order.len());
            }
        }
    }
}
