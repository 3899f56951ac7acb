//! Delivery while the sender waits: the next hop's answer becomes ours (DESIGN.md 4.7).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::attempt::{Answered, Job, Limits};
use super::pool::{NoSlot, Route, STUCK_MS, Slot};
use super::{Content, Delivery, Inner, locked, tenant_routes, worker};
use crate::config::Tenant;
use crate::envelope::Envelope;
use crate::io::clock::{self, monotonic_ms};
use crate::queue::outcome::Outcome;
use crate::route;
use crate::smtp::Reply;

/// Proof that the next hop has taken a message for these recipients: its own 250. Made only here.
#[derive(Debug)]
pub struct HandedOver {
    recipients: Vec<u16>,
}

impl HandedOver {
    /// Whom it covers: indexes into the envelope.
    pub fn recipients(&self) -> &[u16] {
        &self.recipients
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Inline {
    /// The next hop has it, for some or all recipients.
    Delivered {
        /// For whom.
        handed_over: HandedOver,
        /// The route that it went over.
        route: Arc<str>,
        /// Its last answer, as it came (see [`crate::queue::outcome::sanitised`]).
        reply: Reply,
        /// Refused for good, with a reply fit to be shown.
        refused: Vec<(u16, Reply)>,
        /// To be tried later.
        deferred: Vec<(u16, Reply)>,
    },
    /// Refused for good for everybody: fit to be our 5xx.
    Refused(Reply),
    /// Nothing was sent past the final dot: queue it, or answer 4xx.
    NotPossible {
        /// Why.
        why: String,
    },
    /// After the final dot nobody knows: queue it with `maybe_delivered`, or answer 451.
    Unknown {
        /// Why.
        why: String,
    },
}

impl Delivery {
    /// Tries to deliver one form of a message to one tenant's recipients (indexes into the envelope), before `deadline_ms` on [`clock::monotonic_ms`]'s clock. Takes
    /// at most [`super::Options::inline_max_ms`]. Dropping the future breaks the connection off.
    pub async fn inline(&self, tenant: &Arc<Tenant>, envelope: &Arc<Envelope>, recipients: &[u16], content: &Content, deadline_ms: u64) -> Inline {
        let result = match self.0.try_inline(tenant, envelope, recipients, content, deadline_ms).await {
            Ok(result) => result,
            Err(why) => Inline::NotPossible { why },
        };
        let figures = &self.0.figures;
        match &result {
            Inline::Delivered { .. } => figures.inline_delivered.add(1),
            Inline::Refused(_) => figures.inline_refused.add(1),
            Inline::NotPossible { .. } => figures.inline_not_possible.add(1),
            Inline::Unknown { .. } => figures.ambiguous.add(1),
        }
        result
    }
}

/// One of a tenant's places for inline deliveries; given back when dropped.
struct Berth<'a> {
    inner: &'a Inner,
    tenant: &'a Arc<str>,
}

impl Drop for Berth<'_> {
    fn drop(&mut self) {
        let mut taken = locked(&self.inner.inline);
        if let Some(count) = taken.get_mut(self.tenant) {
            *count -= 1;
            if *count == 0 {
                taken.remove(self.tenant);
            }
        }
    }
}

impl Inner {
    fn berth<'a>(&'a self, tenant: &'a Arc<str>) -> Result<Berth<'a>, String> {
        let most = self.options.inline_per_tenant;
        let mut taken = locked(&self.inline);
        let count = taken.entry(Arc::clone(tenant)).or_insert(0);
        if *count >= most {
            return Err(format!("{most} inline deliveries of {tenant} are on their way"));
        }
        *count += 1;
        Ok(Berth { inner: self, tenant })
    }

    async fn try_inline(
        &self,
        tenant: &Arc<Tenant>,
        envelope: &Envelope,
        recipients: &[u16],
        content: &Content,
        deadline_ms: u64,
    ) -> Result<Inline, String> {
        let options = &self.options;
        let now_ms = monotonic_ms();
        let left_ms = deadline_ms.saturating_sub(now_ms).min(options.inline_max_ms);
        if left_ms < options.inline_min_ms {
            return Err(format!("only {left_ms} ms were left"));
        }
        if worker::is_on_hold(tenant) {
            return Err("the tenant is on hold".into());
        }
        if recipients.is_empty() || recipients.len() > options.recipients_per_transaction {
            return Err(format!("{} recipients, inline takes 1 to {}", recipients.len(), options.recipients_per_transaction));
        }
        let job = Job::new(tenant, envelope, content);
        if job.size_bytes() > options.inline_bytes_max {
            return Err(format!("larger than the {} bytes that are delivered inline", options.inline_bytes_max));
        }
        let _berth = self.berth(&tenant.key)?;
        let all_ms = now_ms + left_ms;
        let mut why = format!("no route of {} is usable", tenant.key);
        for route in self.usable_routes(tenant, now_ms).into_iter().take(options.routes_per_attempt) {
            let open_ms = monotonic_ms() + options.inline_connect_ms;
            let mut slot = match self.slot_soon(&route, all_ms).await {
                Ok(slot) => slot,
                Err(reason) => {
                    why = reason;
                    continue;
                }
            };
            match self.over_route(&mut slot, &job, recipients, Limits { open_ms, all_ms }).await {
                Ok(answered) => return sorted(recipients, answered, &route.name),
                Err(failed) => why = failed.trouble.why,
            }
        }
        Err(why)
    }

    /// The tenant's routes that are not dead, in the order in which to try them.
    pub(super) fn usable_routes(&self, tenant: &Tenant, now_ms: u64) -> Vec<Arc<Route>> {
        let parts = tenant_routes(tenant);
        // One route needs no dice.
        let random = if parts.len() > 1 { clock::random() as u64 } else { 0 };
        route::order(parts, |part| self.routes.route(&tenant.key, part).is_usable(now_ms), random)
            .into_iter()
            .map(|part| self.routes.route(&tenant.key, part))
            .collect()
    }

    /// A slot, waiting a little for one where the route moves.
    async fn slot_soon(&self, route: &Arc<Route>, all_ms: u64) -> Result<Slot, String> {
        let give_up_ms = (monotonic_ms() + self.options.inline_slot_wait_ms).min(all_ms);
        loop {
            let now_ms = monotonic_ms();
            match route.try_slot(u32::MAX, now_ms) {
                Ok(slot) => return Ok(slot),
                Err(NoSlot::Closed { .. }) => return Err(format!("route {} is down", route.name)),
                // Nobody waits for a slot of a route that is stuck.
                Err(NoSlot::Busy { stuck_ms } | NoSlot::Share { stuck_ms }) if stuck_ms >= STUCK_MS || now_ms >= give_up_ms => {
                    return Err(format!("route {} is busy", route.name));
                }
                Err(NoSlot::Busy { stuck_ms } | NoSlot::Share { stuck_ms }) => {
                    let wait_ms = (give_up_ms - now_ms).min(STUCK_MS - stuck_ms).max(1);
                    // Either way the slot is asked for again.
                    drop(timeout(Duration::from_millis(wait_ms), route.freed()).await);
                }
            }
        }
    }
}

fn sorted(recipients: &[u16], answered: Answered, route: &Arc<str>) -> Result<Inline, String> {
    let (mut delivered, mut refused, mut deferred) = (vec![], vec![], vec![]);
    for (index, outcome) in recipients.iter().copied().zip(answered.outcomes) {
        match outcome {
            Outcome::Delivered => delivered.push(index),
            Outcome::RefusedPermanently(reply) => refused.push((index, reply)),
            Outcome::Retry(reply) => deferred.push((index, reply)),
            Outcome::Unknown(why) => return Ok(Inline::Unknown { why }),
            Outcome::RouteTrouble(trouble) => return Err(trouble.why),
        }
    }
    match (answered.reply, deferred.first(), refused.first()) {
        (Some(reply), _, _) if !delivered.is_empty() => {
            Ok(Inline::Delivered { handed_over: HandedOver { recipients: delivered }, route: Arc::clone(route), reply, refused, deferred })
        }
        (_, Some((_, reply)), _) => Err(reply.to_string()),
        (_, None, Some((_, reply))) => Ok(Inline::Refused(reply.clone())),
        (_, None, None) => Err("nobody was answered".into()),
    }
}
