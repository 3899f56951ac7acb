//! A queue in which everybody gets a turn: who has put much in delays nobody else. Pure.

use std::collections::{BTreeMap, VecDeque};

/// Items by whose they are; taken one of each in turn, those of one in their order.
#[derive(Clone, Debug)]
pub struct Turns<T> {
    items: BTreeMap<String, VecDeque<T>>,
    /// Whoever has items, the next one first.
    order: VecDeque<String>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<T> Turns<T> {
    /// Behind the others of the same.
    pub fn push(&mut self, whose: &str, item: T) {
        let items = self.items.entry(whose.to_owned()).or_default();
        if items.is_empty() {
            self.order.push_back(whose.to_owned());
        }
        items.push_back(item);
    }

    /// The first of whoever's turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let whose = self.order.pop_front()?;
        let items = self.items.get_mut(&whose)?;
        let item = items.pop_front();
        if items.is_empty() {
            self.items.remove(&whose);
        } else {
            self.order.push_back(whose);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_a_turn() {
        let mut turns = Turns::default();
        (0..5).for_each(|n| turns.push("import", format!("import {n}")));
        assert_eq!(turns.pop().as_deref(), Some("import 0"));
        turns.push("one", "one 0".to_owned());
        turns.push("other", "other 0".to_owned());
        turns.push("one", "one 1".to_owned());
        let rest: Vec<String> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(rest, ["import 1", "one 0", "other 0", "import 2", "one 1", "import 3", "import 4"]);
        turns.push("one", "one 2".to_owned());
        assert_eq!((turns.pop().as_deref(), turns.pop()), (Some("one 2"), None));
    }
}
