//! Routes: each with its connections, its bound and its health.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use sekimori_crds::snapshot::RoutePart;
use serde::Serialize;
use tokio::sync::Notify;

use super::connection::Connection;
use super::locked;
use crate::queue::pacing::{Admission, Pacing, PacingLimits};

/// A route on which nothing was answered for so long, while attempts are on their way, is stuck, milliseconds.
pub(super) const STUCK_MS: u64 = 1_000;
/// A route that nobody used for so long is forgotten, milliseconds.
const FORGET_MS: u64 = 600_000;

/// All routes that were used lately. Times are monotonic.
pub(super) struct Routes {
    limits: PacingLimits,
    table: Mutex<HashMap<Arc<str>, Vec<Arc<Route>>>>,
}

/// One route of one tenant. A route whose settings change is another route.
pub(super) struct Route {
    tenant: Arc<str>,
    pub(super) part: RoutePart,
    pub(super) name: Arc<str>,
    state: Mutex<RouteState>,
    freed: Notify,
}

struct RouteState {
    pacing: Pacing,
    in_flight: u32,
    /// Bytes of the bodies and records of attempts from the queue.
    body_bytes: u64,
    idle: Vec<(Connection, u64)>,
    /// When the server last answered anything.
    progress_ms: u64,
    used_ms: u64,
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// The route takes no more. `stuck_ms`: for how long nothing was answered.
    Busy { stuck_ms: u64 },
    /// The route would take more, but its share of what we may do at once is used up.
    Share { stuck_ms: u64 },
    /// Dead: not before then, or (`None`) a probe is on its way.
    Closed { until_ms: Option<u64> },
}

/// The state of a route, for people and conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// `namespace/name` of the tenant.
    pub tenant: Arc<str>,
    /// Name of the route.
    pub route: Arc<str>,
    /// Attempts on their way.
    pub in_flight: u32,
    /// Attempts at once.
    pub concurrency: u32,
    /// Open connections that nobody uses.
    pub idle_connections: usize,
    /// Nothing is attempted but probes.
    pub dead: bool,
    /// Condition `RouteRefusing`.
    pub refusing: bool,
    /// What is wrong.
    pub trouble: Option<String>,
}

impl Routes {
    pub(super) fn new(limits: PacingLimits) -> Self {
        Self { limits, table: Mutex::default() }
    }

    pub(super) fn route(&self, tenant: &Arc<str>, part: &RoutePart) -> Arc<Route> {
        let mut table = locked(&self.table);
        if let Some(route) = table.get(tenant).and_then(|routes| routes.iter().find(|route| route.part == *part)) {
            return Arc::clone(route);
        }
        let state = RouteState { pacing: Pacing::new(self.limits), in_flight: 0, body_bytes: 0, idle: vec![], progress_ms: 0, used_ms: u64::MAX };
        let route = Arc::new(Route {
            tenant: Arc::clone(tenant),
            part: part.clone(),
            name: part.name.as_str().into(),
            state: Mutex::new(state),
            freed: Notify::new(),
        });
        table.entry(Arc::clone(tenant)).or_default().push(Arc::clone(&route));
        route
    }

    fn all(&self) -> Vec<Arc<Route>> {
        locked(&self.table).values().flatten().cloned().collect()
    }

    pub(super) fn status(&self) -> Vec<RouteStatus> {
        self.all().iter().map(|route| route.status()).collect()
    }

    /// Lets the dead routes (of one tenant, or of all) be probed at once.
    pub(super) fn probe_now(&self, tenant: Option<&str>, now_ms: u64) {
        for route in self.all() {
            if tenant.is_none_or(|tenant| tenant == &*route.tenant) {
                locked(&route.state).pacing.retry_now(now_ms);
                route.freed.notify_one();
            }
        }
    }

    /// Takes out the connections that were unused for too long, and forgets routes that nobody uses any more.
    pub(super) fn sweep(&self, idle_ms: u64, now_ms: u64) -> Vec<Connection> {
        let mut old = vec![];
        let mut table = locked(&self.table);
        table.retain(|_, routes| {
            routes.retain(|route| {
                let mut state = locked(&route.state);
                while let Some((_, since_ms)) = state.idle.first()
                    && since_ms.saturating_add(idle_ms) <= now_ms
                {
                    old.push(state.idle.remove(0).0);
                }
                state.used_ms = state.used_ms.min(now_ms);
                let unused = state.in_flight == 0 && state.idle.is_empty() && state.used_ms.saturating_add(FORGET_MS) <= now_ms;
                !unused || Arc::strong_count(route) > 1
            });
            !routes.is_empty()
        });
        old
    }

    /// All idle connections, at shutdown.
    pub(super) fn drain(&self) -> Vec<Connection> {
        self.all().iter().flat_map(|route| std::mem::take(&mut locked(&route.state).idle)).map(|(connection, _)| connection).collect()
    }
}

impl NoSlot {
    /// Whether it waits for the route and not for us. A route that answers nothing would not go faster with a larger share.
    pub(super) const fn is_foreign(self) -> bool {
        match self {
            Self::Share { stuck_ms } => stuck_ms >= STUCK_MS,
            Self::Busy { .. } | Self::Closed { .. } => true,
        }
    }
}

impl Route {
    /// A slot for one attempt, if there is one and the route has fewer than `share` on their way (one is always within it).
    pub(super) fn try_slot(self: &Arc<Self>, share: u32, now_ms: u64) -> Result<Slot, NoSlot> {
        let mut state = locked(&self.state);
        let probe = match state.pacing.admission(now_ms) {
            Admission::Closed { until_ms } => return Err(NoSlot::Closed { until_ms }),
            Admission::Open if state.in_flight >= state.pacing.concurrency().min(share.max(1)) => {
                let stuck_ms = now_ms.saturating_sub(state.progress_ms);
                let ours = state.in_flight < state.pacing.concurrency();
                return Err(if ours { NoSlot::Share { stuck_ms } } else { NoSlot::Busy { stuck_ms } });
            }
            Admission::Open => false,
            Admission::Probe => {
                state.pacing.probe_started();
                true
            }
        };
        if state.in_flight == 0 {
            state.progress_ms = now_ms;
        }
        state.in_flight += 1;
        state.used_ms = now_ms;
        Ok(Slot { route: Arc::clone(self), probe, body_bytes: 0.into() })
    }

    /// Waits until a slot may be free.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Whether it has a slot or could have one soon.
    pub(super) fn is_usable(&self, now_ms: u64) -> bool {
        !matches!(locked(&self.state).pacing.admission(now_ms), Admission::Closed { .. })
    }

    fn status(&self) -> RouteStatus {
        let state = locked(&self.state);
        let trouble = state.pacing.trouble();
        RouteStatus {
            tenant: Arc::clone(&self.tenant),
            route: Arc::clone(&self.name),
            in_flight: state.in_flight,
            concurrency: state.pacing.concurrency(),
            idle_connections: state.idle.len(),
            dead: state.pacing.is_dead(),
            refusing: trouble.is_some_and(|(refusing, _)| refusing) || state.pacing.refuses_all(),
            trouble: trouble.map(|(_, why)| why.to_owned()),
        }
    }
}

/// The right to one attempt over a route; given back when dropped.
pub(super) struct Slot {
    pub(super) route: Arc<Route>,
    probe: bool,
    body_bytes: AtomicU64,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("route", &self.route.name).finish_non_exhaustive()
    }
}

impl Slot {
    /// Room for a message within the route's share, until the slot is given back. One message always has room.
    pub(super) fn reserve(self, bytes: u64, share_bytes: u64, now_ms: u64) -> Result<Self, NoSlot> {
        let mut state = locked(&self.route.state);
        if state.body_bytes > 0 && state.body_bytes.saturating_add(bytes) > share_bytes {
            return Err(NoSlot::Share { stuck_ms: now_ms.saturating_sub(state.progress_ms) });
        }
        state.body_bytes += bytes;
        self.body_bytes.fetch_add(bytes, Ordering::Relaxed);
        drop(state);
        Ok(self)
    }

    /// The connection that was used last, if one is open.
    pub(super) fn pooled(&self, idle_ms: u64, now_ms: u64) -> Option<Connection> {
        let mut state = locked(&self.route.state);
        let (connection, since_ms) = state.idle.pop()?;
        if since_ms.saturating_add(idle_ms) <= now_ms {
            // The youngest is too old: they all are.
            state.idle.clear();
            return None;
        }
        Some(connection)
    }

    /// Gives a connection back for the next message.
    pub(super) fn keep(&self, connection: Connection, now_ms: u64) {
        let mut state = locked(&self.route.state);
        if !state.pacing.is_dead() && state.idle.len() < state.pacing.concurrency() as usize {
            state.idle.push((connection, now_ms));
        }
    }

    /// Whether the server refuses everything (see [`Pacing::refuses_all`]).
    pub(super) fn refuses_all(&self) -> bool {
        locked(&self.route.state).pacing.refuses_all()
    }

    /// Tells the route's state what was learnt.
    pub(super) fn report(&mut self, now_ms: u64, learn: impl FnOnce(&mut Pacing, bool)) {
        let mut state = locked(&self.route.state);
        state.progress_ms = now_ms;
        learn(&mut state.pacing, self.probe);
        self.probe = false;
        if state.pacing.is_dead() {
            state.idle.clear();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = locked(&self.route.state);
        state.in_flight -= 1;
        state.body_bytes -= self.body_bytes.load(Ordering::Relaxed);
        state.pacing.abandoned(self.probe);
        drop(state);
        self.route.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> Arc<Route> {
        let part = RoutePart {
            name: "r".into(),
            host: "127.0.0.1".into(),
            lookup: sekimori_crds::vocabulary::RouteLookup::Address,
            port: 25,
            priority: 0,
            weight: 1,
            tls: sekimori_crds::vocabulary::RouteTls::Disabled,
        };
        Routes::new(PacingLimits::default()).route(&"mail/t".into(), &part)
    }

    #[test]
    fn a_share_that_is_used_up_is_ours_unless_the_route_is_stuck() {
        let route = route();
        let first = route.try_slot(1, 1_000).expect("one is always within the share");
        let refused = route.try_slot(1, 1_100).expect_err("the share is one");
        assert_eq!(refused, NoSlot::Share { stuck_ms: 100 });
        assert!(!refused.is_foreign(), "more gateways would help");
        assert!(route.try_slot(1, 1_000 + STUCK_MS).expect_err("the share is one").is_foreign(), "nothing moves there, whatever the share");
        let mut slots = vec![first];
        while let Ok(slot) = route.try_slot(u32::MAX, 1_200) {
            slots.push(slot);
        }
        assert_eq!(route.try_slot(u32::MAX, 1_200).err(), Some(NoSlot::Busy { stuck_ms: 200 }));
        assert_eq!(route.try_slot(1, 1_200).err(), Some(NoSlot::Busy { stuck_ms: 200 }), "the route is full, whatever the share");
        assert!(NoSlot::Busy { stuck_ms: 0 }.is_foreign());
    }

    #[test]
    fn memory_beyond_the_share_is_ours_too() {
        let route = route();
        let slot = |now_ms| route.try_slot(u32::MAX, now_ms).expect("many are free");
        let held = slot(1_000).reserve(900, 500, 1_000).expect("one always has room");
        assert_eq!(slot(1_010).reserve(1, 500, 1_010).err(), Some(NoSlot::Share { stuck_ms: 10 }));
        drop(held);
        assert!(slot(1_020).reserve(500, 500, 1_020).is_ok(), "what was refused holds nothing");
    }
}
