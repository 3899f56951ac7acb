//! A bounded cache of answers, positive and negative, in which a question is asked once however many wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{Semaphore, oneshot};

use super::{Lookup, Question, Reply, Resolver};
use crate::io::clock;

/// Bounds of the cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Answers kept.
    pub entries: usize,
    /// Bytes kept, names and data together.
    pub bytes: usize,
    /// Questions under way at once; beyond, the answer is a temporary error.
    pub in_flight: usize,
    /// Seconds that any answer is kept at least.
    pub ttl_min_s: u32,
    /// Seconds that records are kept at most.
    pub ttl_max_s: u32,
    /// Seconds that an absence is kept at most (RFC 2308 section 5).
    pub negative_ttl_max_s: u32,
    /// Seconds that a failure is kept (RFC 2308 section 7): a dead server costs each name one wait, not one a message.
    pub failure_ttl_s: u32,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { entries: 10_000, bytes: 16 * 1024 * 1024, in_flight: 1024, ttl_min_s: 1, ttl_max_s: 3600, negative_ttl_max_s: 300, failure_ttl_s: 2 }
    }
}

struct Entry {
    reply: Reply,
    until_ms: u64,
}

type Waiting = Shared<oneshot::Receiver<Reply>>;

/// Two generations: what is read or written moves to the young one; when that is half of the bounds, the old one is dropped.
#[derive(Default)]
struct Kept {
    young: HashMap<Question, Entry>,
    young_bytes: usize,
    old: HashMap<Question, Entry>,
    waiting: HashMap<Question, Waiting>,
}

struct Inner<R> {
    resolver: R,
    limits: CacheLimits,
    kept: Mutex<Kept>,
    slots: Semaphore,
}

/// A resolver with a cache in front.
pub struct Cached<R>(Arc<Inner<R>>);

impl<R> Clone for Cached<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: Resolver + 'static> Cached<R> {
    /// An empty cache before `resolver`.
    pub fn new(resolver: R, limits: CacheLimits) -> Self {
        Self(Arc::new(Inner { resolver, limits, kept: Mutex::default(), slots: Semaphore::new(limits.in_flight) }))
    }

    /// Answers kept, expired ones included.
    pub fn len(&self) -> usize {
        let kept = self.0.lock();
        kept.young.len() + kept.old.len()
    }

    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut kept = self.0.lock();
        kept.young.clear();
        kept.young_bytes = 0;
        kept.old.clear();
    }
}

impl<R> Inner<R> {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic elsewhere leaves at worst an answer less.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ttl_ms(&self, reply: &Reply) -> u64 {
        let limits = &self.limits;
        let seconds = match reply.lookup {
            Lookup::Records(_) => reply.ttl_s.clamp(limits.ttl_min_s, limits.ttl_max_s),
            Lookup::Absent(_) => reply.ttl_s.clamp(limits.ttl_min_s, limits.negative_ttl_max_s),
            Lookup::TempError | Lookup::Malformed => limits.failure_ttl_s,
        };
        u64::from(seconds) * 1000
    }
}

impl Kept {
    fn find(&mut self, question: &Question, now_ms: u64, limits: &CacheLimits) -> Option<Reply> {
        if let Some(entry) = self.young.get(question) {
            return (entry.until_ms > now_ms).then(|| entry.reply.clone());
        }
        let entry = self.old.remove(question)?;
        if entry.until_ms <= now_ms {
            return None;
        }
        let reply = entry.reply.clone();
        self.put(question.clone(), entry, limits);
        Some(reply)
    }

    fn put(&mut self, question: Question, entry: Entry, limits: &CacheLimits) {
        self.young_bytes += weight(&question, &entry.reply);
        if let Some(before) = self.young.get(&question) {
            self.young_bytes = self.young_bytes.saturating_sub(weight(&question, &before.reply));
        }
        self.young.insert(question, entry);
        if self.young.len() >= limits.entries.div_ceil(2) || self.young_bytes >= limits.bytes.div_ceil(2) {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

/// About what an entry takes.
fn weight(question: &Question, reply: &Reply) -> usize {
    const ENTRY_BYTES: usize = 160;
    ENTRY_BYTES + question.name().len() + reply.lookup.records().iter().map(|record| 40 + record.bytes()).sum::<usize>()
}

impl<R: Resolver + 'static> Cached<R> {
    /// The kept answer, or the receiver of the one that is on its way; this call may be the one that starts it.
    fn find_or_start(&self, question: &Question) -> Result<Reply, Waiting> {
        let inner = &self.0;
        let mut kept = inner.lock();
        if let Some(reply) = kept.find(question, clock::monotonic_ms(), &inner.limits) {
            return Ok(reply);
        }
        if let Some(waiting) = kept.waiting.get(question) {
            return Err(waiting.clone());
        }
        if inner.slots.available_permits() == 0 {
            return Ok(Reply::TEMP_ERROR);
        }
        let (sender, receiver) = oneshot::channel();
        let waiting = receiver.shared();
        kept.waiting.insert(question.clone(), waiting.clone());
        // A task of its own: whoever gives up, the answer still reaches the cache. `slots` bounds how many there are.
        tokio::spawn(run(Arc::clone(inner), question.clone(), sender));
        Err(waiting)
    }
}

async fn run<R: Resolver>(inner: Arc<Inner<R>>, question: Question, sender: oneshot::Sender<Reply>) {
    let leaving = Leaving { inner: &inner, question: &question };
    let reply = match inner.slots.try_acquire() {
        Ok(_permit) => inner.resolver.resolve(&question).await,
        Err(_) => Reply::TEMP_ERROR,
    };
    let until_ms = clock::monotonic_ms() + inner.ttl_ms(&reply);
    inner.lock().put(question.clone(), Entry { reply: reply.clone(), until_ms }, &inner.limits);
    drop(leaving);
    // Nobody may be waiting any more.
    sender.send(reply).ok();
}

/// Takes the question off the list of those under way, even when its task ends early.
struct Leaving<'a, R> {
    inner: &'a Inner<R>,
    question: &'a Question,
}

impl<R> Drop for Leaving<'_, R> {
    fn drop(&mut self) {
        self.inner.lock().waiting.remove(self.question);
    }
}

impl<R: Resolver + 'static> Resolver for Cached<R> {
    fn resolve<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Reply> {
        Box::pin(async move {
            match self.find_or_start(question) {
                Ok(reply) => reply,
                Err(waiting) => waiting.await.unwrap_or(Reply::TEMP_ERROR),
            }
        })
    }
}
