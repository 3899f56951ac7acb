//! What is due when. The owner's answers come without a time, so after each the clock is started again by the next call that has one.

use super::super::reply::Fixed;
use super::super::reply::table as say;
use super::{CloseReason, Server, State};

/// Milliseconds, all in the owner's terms.
#[derive(Debug)]
pub(super) struct Clock {
    now: u64,
    session: u64,
    /// When the machine began to wait for a command, a piece of content or a handshake.
    waiting: u64,
    /// `waiting` began with an answer whose time is not known yet.
    stale: bool,
    transaction: u64,
    /// When content began; none until its time is known.
    content: Option<u64>,
    content_octets: u64,
}

/// The next thing that is overdue.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) at_ms: u64,
    /// None if nothing can be said.
    pub(super) reply: Option<Fixed>,
    pub(super) reason: CloseReason,
}

impl Clock {
    pub(super) fn new(now_ms: u64) -> Self {
        Self { now: now_ms, session: now_ms, waiting: now_ms, stale: false, transaction: now_ms, content: None, content_octets: 0 }
    }

    /// The time is known. It never goes back.
    pub(super) fn tick(&mut self, now_ms: u64) {
        self.now = self.now.max(now_ms);
        if self.stale {
            self.stale = false;
            self.waiting = self.now;
            self.content = Some(self.now);
        }
    }

    /// The machine waits for the peer from now on.
    pub(super) fn restart(&mut self) {
        self.stale = true;
    }

    /// A complete command came.
    pub(super) fn command_comes(&mut self) {
        self.waiting = self.now;
    }

    pub(super) fn transaction_begins(&mut self) {
        self.transaction = self.now;
    }

    pub(super) fn content_begins(&mut self) {
        self.content_octets = 0;
        self.stale = true;
    }

    pub(super) fn content_comes(&mut self, octets: usize) {
        self.waiting = self.now;
        self.content_octets = self.content_octets.saturating_add(u64::try_from(octets).unwrap_or(u64::MAX));
    }

    pub(super) fn session_is_over(&self, session_ms: u64) -> bool {
        self.now >= self.session.saturating_add(session_ms)
    }
}

impl Server {
    pub(super) fn due(&self) -> Option<Due> {
        let limits = &self.options.limits;
        let clock = &self.clock;
        let due = |from: u64, after: u64, reply: Fixed, reason| Due { at_ms: from.saturating_add(after), reply: Some(reply), reason };
        let transaction = || due(clock.transaction, limits.transaction_ms, say::TRANSACTION_TIMEOUT, CloseReason::Transaction);
        let candidates = match self.state {
            State::Silent | State::Command => [
                Some(due(clock.waiting, limits.command_ms, say::COMMAND_TIMEOUT, CloseReason::Idle)),
                Some(if self.transaction.is_some() {
                    transaction()
                } else {
                    due(clock.session, limits.session_ms, say::SESSION_TIMEOUT, CloseReason::Session)
                }),
                None,
            ],
            State::Content(_) => {
                let earned = clock.content_octets.saturating_mul(1000) / limits.content_octets_per_second.max(1);
                let allowed = limits.content_grace_ms.saturating_add(earned);
                [
                    Some(due(clock.waiting, limits.content_idle_ms, say::CONTENT_TIMEOUT, CloseReason::Idle)),
                    Some(transaction()),
                    clock.content.map(|from| due(from, allowed, say::TOO_SLOW, CloseReason::Slow)),
                ]
            }
            State::Tls => {
                let at_ms = clock.waiting.saturating_add(limits.tls_handshake_ms);
                [Some(Due { at_ms, reply: None, reason: CloseReason::Idle }), None, None]
            }
            State::Mail(_) | State::Rcpt(_) | State::Data | State::Message | State::Closed => [None, None, None],
        };
        candidates.into_iter().flatten().min_by_key(|due| due.at_ms)
    }
}
