//! The bound on what one message may cost in DNS.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, Shared, select};

use super::{Question, Reply, Resolver};

/// How much one message may ask.
#[derive(Clone, Copy, Debug)]
pub struct BudgetLimits {
    /// Questions, answered from a cache or not.
    pub queries: u32,
    /// Milliseconds from the first question that could not be answered at once.
    pub time_ms: u64,
}

impl Default for BudgetLimits {
    fn default() -> Self {
        Self { queries: 60, time_ms: 5000 }
    }
}

/// One message's time: the same for every budget that is made of it.
#[derive(Clone)]
pub struct Deadline(Shared<BoxFuture<'static, ()>>);

impl Deadline {
    /// Runs from now.
    pub fn after(time_ms: u64) -> Self {
        Self(tokio::time::sleep(Duration::from_millis(time_ms)).boxed().shared())
    }
}

/// A resolver that stops asking: when the count or the time is used up, every answer is a temporary error.
///
/// Questions are counted whether or not a cache knows the answer, so that a message's result does not depend on who came before.
pub struct Budget<'a> {
    inner: &'a dyn Resolver,
    left: Arc<AtomicU32>,
    deadline: Deadline,
}

impl<'a> Budget<'a> {
    /// A budget of its own.
    pub fn new(inner: &'a dyn Resolver, limits: BudgetLimits) -> Self {
        Self::until(inner, limits.queries, Deadline::after(limits.time_ms))
    }

    /// A budget that shares its time with others.
    pub fn until(inner: &'a dyn Resolver, queries: u32, deadline: Deadline) -> Self {
        Self { inner, left: Arc::new(AtomicU32::new(queries)), deadline }
    }

    /// A second resolver beside this one, with its own count and the same time: what one part of a message wastes, another still has.
    pub fn beside(&self, queries: u32) -> Self {
        Self::until(self.inner, queries, self.deadline.clone())
    }

    /// Questions that may still be asked.
    pub fn left(&self) -> u32 {
        self.left.load(Ordering::Relaxed)
    }
}

impl Resolver for Budget<'_> {
    fn resolve<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Reply> {
        Box::pin(async move {
            if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
                return Reply::TEMP_ERROR;
            }
            match select(self.inner.resolve(question), self.deadline.0.clone()).await {
                Either::Left((reply, _)) => reply,
                Either::Right(_) => Reply::TEMP_ERROR,
            }
        })
    }
}
