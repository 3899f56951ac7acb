//! Claims that could not be recorded: whoever made them waits, and nobody else does.

use std::collections::BTreeSet;

use bytes::Bytes;
use sekimori_crds::snapshot::{Part, part_json, stand_in};

use super::{Worker, part_key};
use crate::io::hub::FleetKey;
use crate::ownership::{Claim, Ledger, Tenant, Verdict, shard_of};
use crate::status::Programmed;
use crate::tenants::{Judged, Left, left_of};

/// A tenant that waits for its claims to be recorded.
pub(super) struct Unwritten {
    fleet: FleetKey,
    judged: Judged,
}

fn is_fresh(ledger: &Ledger, claim: &Claim) -> bool {
    claim.verdict == Verdict::Held && ledger.is_fresh(&claim.domain)
}

impl Worker {
    /// Records what changed. Where that failed for a while, those who wait for it are told; where it works again, they are judged again.
    pub(super) async fn write_claims(&mut self) -> anyhow::Result<()> {
        let (mut lasting, mut recovered) = (vec![], BTreeSet::new());
        for (key, fleet) in &mut self.fleets {
            let written = self.records.write_claims(key, &mut fleet.ledger, fleet.broken.as_ref()).await?;
            if !written.lasting.is_empty() {
                self.context.metrics.errors.with_label_values(&["Claims", "unwritten"]).inc_by(written.lasting.len() as u64);
                lasting.push((key.clone(), written.lasting));
            }
            if written.recovered {
                recovered.insert(key.clone());
            }
        }
        for (key, shards) in lasting {
            self.tell_unwritten(&key, &shards);
        }
        let again: Vec<Tenant> =
            self.unwritten.iter().filter(|(_, waiting)| recovered.contains(&waiting.fleet)).map(|(tenant, _)| tenant.clone()).collect();
        again.into_iter().for_each(|tenant| self.queue(tenant, true));
        Ok(())
    }

    /// Whether a tenant has claims that must not take effect yet. Those that were recorded before do, whatever becomes of their record now.
    pub(super) fn is_unwritten(&self, key: &FleetKey, judged: &Judged) -> bool {
        self.fleets.get(key).is_some_and(|fleet| judged.claims.iter().any(|claim| is_fresh(&fleet.ledger, claim)))
    }

    /// A tenant waits. What it had before stays; a new leader says to gateways that it does.
    pub(super) fn wait(&mut self, tenant: Tenant, key: FleetKey, judged: Judged) {
        let part = part_key(&tenant);
        if let Some(fleet) = self.fleets.get(&key)
            && self.context.hub.part(&key, &part).is_none()
            && !self.placed.contains_key(&tenant)
        {
            let recorded = |domain: &String| !fleet.ledger.is_fresh(domain);
            let form = fleet.good.of(&tenant.to_string());
            let json = match left_of(form.map(str::as_bytes), &tenant, &fleet.ledger) {
                Left::Form(mut form) => {
                    form.domains.retain(recorded);
                    (!form.domains.is_empty()).then(|| part_json(&Part::Tenant(form)))
                }
                Left::Domains(mut domains) => {
                    domains.retain(recorded);
                    (!domains.is_empty()).then(|| stand_in(&domains))
                }
                Left::Nothing => None,
            };
            if let Some(json) = json {
                self.context.hub.put(&key, &part, Bytes::from(json));
                self.placed.insert(tenant.clone(), key.clone());
            }
        }
        self.unwritten.insert(tenant, Unwritten { fleet: key, judged });
    }

    fn tell_unwritten(&mut self, key: &FleetKey, shards: &BTreeSet<u8>) {
        let mut told = vec![];
        let Some(ledger) = self.fleets.get(key).map(|fleet| &fleet.ledger) else { return };
        for (tenant, waiting) in self.unwritten.iter().filter(|(_, waiting)| waiting.fleet == *key) {
            let waits = |claim: &Claim| is_fresh(ledger, claim) && shards.contains(&shard_of(&claim.domain));
            if !waiting.judged.claims.iter().any(waits) {
                continue;
            }
            let why = "the API server does not take the record of the claim: it takes effect once that works, which is tried again and again; the operator's log says why";
            let say = |claim: &Claim| match waits(claim) {
                true => Claim { verdict: Verdict::Unproved(why.to_owned()), ..claim.clone() },
                false => claim.clone(),
            };
            let Judged { problems, claims, generation, .. } = &waiting.judged;
            let judged = Judged { part: None, problems: problems.clone(), claims: claims.iter().map(say).collect(), generation: *generation };
            let programmed = if self.placed.contains_key(tenant) { Programmed::LastGoodForm } else { Programmed::Nowhere };
            told.push((tenant.clone(), judged, programmed));
        }
        for (tenant, judged, programmed) in told {
            self.tell(&tenant, &judged, programmed, false);
        }
    }
}
