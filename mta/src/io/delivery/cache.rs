//! Bodies that were just spooled, kept until their first attempt, within a byte budget.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::queue::{Meta, memory_bytes};
use crate::queue_id::QueueId;

/// The newest push out the oldest.
#[derive(Debug)]
pub(super) struct Cache {
    budget_bytes: usize,
    used_bytes: usize,
    messages: HashMap<QueueId, Kept>,
    order: BTreeMap<u64, QueueId>,
    next: u64,
}

#[derive(Debug)]
struct Kept {
    place: u64,
    meta: Arc<Meta>,
    raw: Bytes,
    cost: usize,
}

impl Cache {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, used_bytes: 0, messages: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }

    /// `meta_bytes`: of the meta as it is written.
    pub(super) fn put(&mut self, id: QueueId, meta: Arc<Meta>, meta_bytes: usize, raw: Bytes) {
        self.remove(id);
        let bytes = cost(raw.len(), meta_bytes);
        if bytes > self.budget_bytes {
            return;
        }
        while self.used_bytes + bytes > self.budget_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.forget(oldest);
        }
        self.next += 1;
        self.order.insert(self.next, id);
        self.used_bytes += bytes;
        self.messages.insert(id, Kept { place: self.next, meta, raw, cost: bytes });
    }

    pub(super) fn get(&self, id: QueueId) -> Option<(Arc<Meta>, Bytes)> {
        self.messages.get(&id).map(|kept| (Arc::clone(&kept.meta), kept.raw.clone()))
    }

    pub(super) fn remove(&mut self, id: QueueId) {
        if let Some(kept) = self.messages.get(&id) {
            self.order.remove(&kept.place);
            self.forget(id);
        }
    }

    fn forget(&mut self, id: QueueId) {
        if let Some(kept) = self.messages.remove(&id) {
            self.used_bytes -= kept.cost;
        }
    }
}

/// The body, envelope and edits, and a round sum for the rest. Envelope and edits are not small beside the body: senders choose how many recipients there are.
fn cost(raw_bytes: usize, meta_bytes: usize) -> usize {
    usize::try_from(memory_bytes(raw_bytes as u64, meta_bytes as u64)).unwrap_or(usize::MAX).saturating_add(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Client, Envelope};

    fn meta() -> Arc<Meta> {
        let client = Client { address: [192, 0, 2, 1].into(), helo: "x".into(), esmtp: true, tls: None, address_known: true };
        let envelope = Envelope { id: QueueId(0), received_ms: 0, client, sender: None, recipients: vec![], eight_bit: false, smtputf8: false };
        Arc::new(Meta { envelope, groups: vec![] })
    }

    #[test]
    fn the_budget_holds() {
        let mut cache = Cache::new(10_000);
        for n in 0..100 {
            cache.put(QueueId(n), meta(), 300, vec![0; 1076].into());
            assert!(cache.used_bytes <= 10_000);
        }
        assert_eq!(cache.messages.len(), 3);
        assert!(cache.get(QueueId(96)).is_none() && cache.get(QueueId(97)).is_some());
        cache.put(QueueId(200), meta(), 300, vec![0; 20_000].into());
        assert!(cache.get(QueueId(200)).is_none() && cache.get(QueueId(99)).is_some(), "what does not fit pushes nothing out");
        cache.put(QueueId(201), meta(), 4_000, vec![0; 10].into());
        assert!(cache.get(QueueId(201)).is_none() && cache.get(QueueId(99)).is_some(), "nor does a small body with a large record");
        cache.put(QueueId(99), meta(), 300, vec![0; 10].into());
        for n in 0..100 {
            cache.remove(QueueId(n));
        }
        assert_eq!((cache.used_bytes, cache.messages.len(), cache.order.len()), (0, 0, 0));
    }
}
