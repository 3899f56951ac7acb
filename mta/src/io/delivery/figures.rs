//! Counters of delivery, without any metrics library: the integrator reads them when asked.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Its value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! figures {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Counters since start; read them one by one, or all with [`Figures::totals`].
        #[derive(Debug, Default)]
        pub struct Figures { $($(#[doc = $doc])* pub $name: Counter,)* }

        /// The counters' values.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Totals { $($(#[doc = $doc])* pub $name: u64,)* }

        impl Figures {
            /// All values.
            pub fn totals(&self) -> Totals {
                Totals { $($name: self.$name.value(),)* }
            }
        }
    };
}

figures! {
    /// Messages written to the spool.
    queued,
    /// Inline: the next hop has it.
    inline_delivered,
    /// Inline: refused for good, our 5xx.
    inline_refused,
    /// Inline: not possible, nothing was sent past the final dot.
    inline_not_possible,
    /// Outcomes unknown after the final dot, inline and from the queue (`delivery_ambiguous_total`).
    ambiguous,
    /// Recipients delivered from the queue.
    delivered,
    /// Recipients refused for good after they were accepted: dead letters.
    refused,
    /// Attempts from the queue that are to be repeated.
    deferred,
    /// First retries of messages that may have been delivered.
    maybe_delivered_retries,
    /// Entries that expired.
    expired,
    /// Copies moved to quarantine or dead letters.
    stored,
    /// Stores that failed.
    store_failures,
    /// Messages judged again.
    rescanned,
    /// Connections opened to routes.
    connections,
    /// Transactions over a connection that had been used before.
    reused,
    /// Pooled connections that turned out to be closed; the mail went over a fresh one.
    stale,
    /// Troubles of routes.
    route_troubles,
    /// Spool records that cannot be read, or fail their checksum.
    unreadable,
}
