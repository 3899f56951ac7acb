//! Tenants that go from one fleet to another, and domains that go from one tenant to another.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use kube::core::DeserializeGuard;
use sekimori_crds::snapshot::{Part, TenantPart, part_json};
use tokio::time::Instant;

use super::{Worker, part_key};
use crate::io::clock;
use crate::io::hub::{FleetKey, Reach};
use crate::ownership::Tenant;
use crate::status::Programmed;

/// What is put in or taken away is in force at the hub after so long, or waits there.
const IN_FORCE: Duration = Duration::from_secs(2);

/// A part whose removal may wait for a word (a mass removal), while others have its domains already.
pub(super) struct Yielding {
    fleet: FleetKey,
    tenant: Tenant,
    domains: BTreeSet<String>,
    since: Instant,
    /// It names them no more, and is to be removed again: what changes a part ends its removal.
    trimmed: bool,
}

fn form(json: &[u8]) -> Option<Box<TenantPart>> {
    match serde_json::from_slice(json) {
        Ok(Part::Tenant(form)) => Some(form),
        _ => None,
    }
}

impl Worker {
    /// A tenant that the fleet it names does not accept stays at the one where it was, if that is another one: a wrong name is no reason to lose mail. As
    /// it claims nothing there any more, its domains are kept for 72 hours. `None`: it was nowhere else.
    pub(super) fn stay_where_it_was(&mut self, tenant: &Tenant, key: &FleetKey, part: &str) -> Option<Programmed<'static>> {
        let before = self.placed.get(tenant).filter(|before| *before != key).cloned()?;
        let guard = self.fleet_guard(&before);
        if guard.is_none() {
            self.context.hub.remove(&before, part);
            self.placed.remove(tenant);
            return None;
        }
        self.moving.insert(tenant.clone(), key.clone());
        if let Some(DeserializeGuard(Err(_))) = guard.as_deref() {
            return Some(Programmed::LastGoodForm);
        }
        if let Some(fleet) = self.fleets.get_mut(&before) {
            fleet.ledger.gone(tenant, false, clock::unix_ms());
        }
        let programmed = self.keep_last_good(tenant, &before, part);
        if programmed != Programmed::Nowhere {
            return Some(programmed);
        }
        self.placed.remove(tenant);
        self.moving.remove(tenant);
        None
    }

    /// Takes a tenant's part away, and keeps in mind which domains it had: the removal may have to wait, and others may get the domains meanwhile.
    pub(super) fn take_out(&mut self, tenant: &Tenant, key: &FleetKey) {
        let part = part_key(tenant);
        if let Some(fleet) = self.fleets.get_mut(key)
            && let Some(form) = self.context.hub.part(key, &part).and_then(|json| form(&json))
        {
            fleet.left.extend(form.domains.into_iter().map(|domain| (domain, tenant.clone())));
        }
        self.context.hub.remove(key, &part);
    }

    /// A tenant has these domains now: they must be in no part that was taken away and is still there.
    pub(super) fn make_way(&mut self, tenant: &Tenant, key: &FleetKey, domains: &[String]) {
        let Some(fleet) = self.fleets.get_mut(key).filter(|fleet| !fleet.left.is_empty()) else { return };
        let others: BTreeSet<Tenant> = domains.iter().filter_map(|domain| fleet.left.remove(domain)).filter(|other| other != tenant).collect();
        let yielding =
            |other| Yielding { fleet: key.clone(), tenant: other, domains: domains.iter().cloned().collect(), since: Instant::now(), trimmed: false };
        self.yielding.extend(others.into_iter().map(yielding));
    }

    /// Takes domains that others have now out of parts whose removal waits, and has the parts removed again: that may wait again, but no mail goes there.
    pub(super) fn yield_domains(&mut self) {
        let mut left = vec![];
        for mut yielding in std::mem::take(&mut self.yielding) {
            let Yielding { fleet, tenant, domains, since, trimmed } = &mut yielding;
            if self.placed.get(tenant) == Some(fleet) {
                // It is back, and has what the ledger says.
                continue;
            }
            let part = part_key(tenant);
            // A removal that waits looks like any other until it is in force.
            let waiting = self.context.hub.part(fleet, &part).and_then(|json| form(&json));
            match waiting {
                Some(mut form) if !*trimmed => {
                    form.domains.retain(|domain| !domains.contains(domain));
                    self.context.hub.put(fleet, &part, Bytes::from(part_json(&Part::Tenant(form))));
                    (*since, *trimmed) = (Instant::now(), true);
                    left.push(yielding);
                }
                Some(_) if since.elapsed() >= IN_FORCE => self.context.hub.remove(fleet, &part),
                None if since.elapsed() >= IN_FORCE => {}
                _ => left.push(yielding),
            }
        }
        self.yielding = left;
    }

    /// Forgets domains of parts that are gone by now.
    pub(super) fn forget_left(&mut self) {
        for (key, fleet) in &mut self.fleets {
            let hub = &self.context.hub;
            fleet.left.retain(|_, tenant| hub.reach(key, &part_key(tenant)) != Reach::Unknown);
        }
    }
}
