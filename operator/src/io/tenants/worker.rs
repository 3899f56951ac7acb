//! The one task that judges tenants.

mod moves;
mod unwritten;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource as _};
use sekimori_crds::compile::{Grants, Lookup};
use sekimori_crds::snapshot::{Part, part_json, stand_in};
use sekimori_crds::v1alpha1::{GatewayFleet, MailPolicy, TenantDomain};
use sekimori_crds::vocabulary::Ownership;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::proofs::{Proofs, Txt};
use super::shards::{Broken, GoodForms, Recorded, Records};
use super::statuses::{Said, Statuses};
use super::{Change, Changes, Context, Event, World, counts, grants, identity};
use crate::io::clock;
use crate::io::hub::{FleetKey, Reach};
use crate::ownership::{Basis, Ledger, Proof, Tenant, Verdict, granted, overlap};
use crate::status::{Programmed, TenantReport, tenant_conditions};
use crate::tenants::{Against, Judged, Known, Left, Names, digest_of, is_stand_in, judge, left_of, ownership};

use self::moves::Yielding;
use self::unwritten::Unwritten;

/// Tenants that are judged in one slice: those that a user changed, and those that follow from something else. What a slice costs is its claims, one write
/// for each of at most 256 shards: so where very many come at once, as many as there are go into one, or each of them waits for the same shards again.
const SLICE: (usize, usize) = (4_096, 250);
/// The same while nobody is served yet: each slice writes every shard that it changed.
const FIRST_SLICE: usize = 10_000;
/// Tenants on their way that are looked at in one turn.
const LOOK_MAX: usize = 1_000;
/// Events that are taken in before the next slice, at most.
const EVENTS_AT_ONCE: usize = 4_096;
/// A status waits so long for the gateways, so that one write says it all, in milliseconds.
const PATIENCE_MS: u64 = 1_500;
/// Things that only time brings (claims that run out, proofs that are asked for again) are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Gateways' reports of servers that refuse are looked at every so many of them.
const REFUSING_TICKS: u64 = 5;
/// The same for every tenant, whether the reports changed or not.
const REFUSING_ALL_TICKS: u64 = 60;
/// Counts are said this often.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// One fleet's tenants.
struct Fleet {
    ledger: Ledger,
    good: GoodForms,
    /// What is wrong with its records: no new claim.
    broken: Option<Broken>,
    ownership: Ownership,
    /// Domains in parts that were taken away, and whose they were: the removal of such a part may wait for a word.
    left: BTreeMap<String, Tenant>,
}

/// A tenant whose part is on its way.
struct OnTheWay {
    fleet: FleetKey,
    judged: Judged,
    until_ms: u64,
    told: bool,
}

pub(super) struct Worker {
    context: Context,
    world: World,
    records: Records,
    statuses: Statuses,
    proofs: Proofs,
    grants: Grants,
    names: Names,
    tenants: BTreeMap<Tenant, Known>,
    fleets: BTreeMap<FleetKey, Fleet>,
    recorded: Option<Recorded>,
    /// The fleet at whose configuration a tenant's part is.
    placed: BTreeMap<Tenant, FleetKey>,
    /// The fleet that a tenant names, and that has not accepted it, while another one still serves its last good form.
    moving: BTreeMap<Tenant, FleetKey>,
    /// Tenants whose claims are not recorded yet.
    unwritten: BTreeMap<Tenant, Unwritten>,
    /// Parts that must give domains up to others.
    yielding: Vec<Yielding>,
    /// Tenants of fleets that ask for DNS, with domains that rest on trust alone: they are asked for though nothing is wrong yet.
    asking: BTreeSet<Tenant>,
    urgent: VecDeque<Tenant>,
    bulk: VecDeque<Tenant>,
    queued: BTreeSet<Tenant>,
    on_the_way: BTreeMap<Tenant, OnTheWay>,
    /// Up to which of them was looked at in this round. `None`: none is under way.
    looked: Option<Tenant>,
    /// Gateways said something since the round began.
    look_again: bool,
    changes: Arc<Changes>,
    /// For each watch: what has come since its list began.
    listing: Vec<Option<BTreeSet<Tenant>>>,
    listed: Vec<bool>,
    synced: bool,
    counted: Instant,
    ticks: u64,
    /// What gateways said last of servers that refuse.
    refusing: BTreeMap<FleetKey, BTreeSet<String>>,
    to_count: bool,
    counting: Option<JoinHandle<bool>>,
    policy_versions: BTreeMap<(String, String), Option<Version>>,
    fleet_versions: BTreeMap<FleetKey, Option<Version>>,
}

/// Which object of a name it is, and which of its specs.
type Version = (Option<String>, Option<i64>);

fn version(meta: &ObjectMeta) -> Version {
    (meta.uid.clone(), meta.generation)
}

impl Worker {
    pub(super) fn new(context: Context, world: World, changes: Arc<Changes>, dns: Arc<dyn Txt>, watches: usize) -> Self {
        Self {
            records: Records::new(Api::namespaced(context.client.clone(), &context.operator_namespace)),
            statuses: Statuses::start(context.client.clone(), context.events.clone(), Arc::clone(&context.metrics)),
            proofs: Proofs::new(&context.installation_id, dns),
            grants: grants::index(&world),
            names: Names::default(),
            tenants: BTreeMap::new(),
            fleets: BTreeMap::new(),
            recorded: None,
            placed: BTreeMap::new(),
            moving: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            yielding: vec![],
            asking: BTreeSet::new(),
            urgent: VecDeque::new(),
            bulk: VecDeque::new(),
            queued: BTreeSet::new(),
            on_the_way: BTreeMap::new(),
            listing: vec![None; watches],
            listed: vec![false; watches],
            synced: false,
            counted: Instant::now(),
            ticks: 0,
            refusing: BTreeMap::new(),
            to_count: true,
            counting: None,
            policy_versions: BTreeMap::new(),
            fleet_versions: BTreeMap::new(),
            looked: None,
            look_again: false,
            changes,
            context,
            world,
        }
    }

    pub(super) async fn work(mut self, mut events: mpsc::Receiver<Event>) -> anyhow::Result<()> {
        self.recorded = Some(self.read_records().await);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reached = self.context.hub.changed();
        loop {
            let work = !self.urgent.is_empty() || !self.bulk.is_empty() || self.looked.is_some();
            let busy = work && self.listed.iter().all(|listed| *listed);
            tokio::select! {
                biased;
                event = events.recv() => {
                    let Some(event) = event else { anyhow::bail!("the watches ended") };
                    self.take(event);
                    for _ in 1..EVENTS_AT_ONCE {
                        let Ok(event) = events.try_recv() else { break };
                        self.take(event);
                    }
                }
                () = self.changes.woken.notified() => {}
                namespace = self.proofs.answer(clock::unix_ms) => self.again_in(&namespace, |_| true),
                Ok(()) = reached.changed() => self.look_again = true,
                () = std::future::ready(()), if busy => {}
                _ = tick.tick() => self.tick(),
            }
            // Taken in any turn: what is in them is in the stores already.
            for change in self.changes.take() {
                self.changed(change);
            }
            if self.listed.iter().all(|listed| *listed) {
                self.slice().await?;
                self.look_at_gateways();
                self.count().await;
            }
        }
    }

    /// What was recorded. Without it nothing can be claimed, so it is waited for.
    async fn read_records(&mut self) -> Recorded {
        loop {
            match self.records.read().await {
                Ok(recorded) => return recorded,
                Err(error) => tracing::warn!(%error, "recorded claims cannot be read: nothing is served before they are"),
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tenant(guard) => self.seen(*guard),
            Event::Gone(tenant, release) => self.gone(&tenant, release),
            Event::Listing(watch) => drop(self.listing.get_mut(watch).map(|listing| *listing = Some(BTreeSet::new()))),
            Event::Listed(watch) => self.list_ended(watch),
        }
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Policy(namespace, name) => {
                let now = self.policy(&namespace, &name).map(|guard| version(guard.meta()));
                if self.policy_versions.insert((namespace.clone(), name.clone()), now.clone()) != Some(now) {
                    self.to_count = true;
                    self.again_in(&namespace, |known| known.policy.as_deref() == Some(&name));
                }
            }
            Change::Fleet(namespace, name) => self.fleet_changed(&FleetKey::new(&namespace, &name)),
            Change::Grant => {
                self.grants = grants::index(&self.world);
                self.to_count = true;
                let granting: BTreeSet<FleetKey> =
                    self.fleets.iter().filter(|(_, fleet)| fleet.ownership == Ownership::Grant).map(|(key, _)| key.clone()).collect();
                self.again(|_, known| fleet_key(known).is_some_and(|key| granting.contains(&key)));
            }
            Change::Namespace(name) => self.again_in(&name, |_| true),
        }
    }

    fn seen(&mut self, guard: DeserializeGuard<TenantDomain>) {
        let tenant = identity(&guard);
        for listing in self.listing.iter_mut().flatten() {
            listing.insert(tenant.clone());
        }
        let now_s = i64::try_from(clock::unix_ms() / 1000).unwrap_or(i64::MAX);
        let before = self.tenants.get(&tenant);
        let known = match guard.0 {
            Ok(object) => Known::new(object, &mut self.names, before, now_s),
            Err(invalid) => Known::unreadable(&invalid.error, before),
        };
        let same = before.is_some_and(|before| before.object == known.object && before.release == known.release);
        let told = same && known.said == known.wanted;
        self.tenants.insert(tenant.clone(), known);
        if !told && !(same && self.on_the_way.contains_key(&tenant)) {
            // At first everybody is new; who comes later was changed by somebody.
            self.queue(tenant, self.synced);
        }
    }

    fn queue(&mut self, tenant: Tenant, urgent: bool) {
        if urgent {
            self.urgent.push_back(tenant.clone());
        } else if !self.queued.contains(&tenant) {
            self.bulk.push_back(tenant.clone());
        }
        self.queued.insert(tenant);
    }

    fn again(&mut self, which: impl Fn(&Tenant, &Known) -> bool) {
        let these: Vec<Tenant> = self.tenants.iter().filter(|(tenant, known)| which(tenant, known)).map(|(tenant, _)| tenant.clone()).collect();
        these.into_iter().for_each(|tenant| self.queue(tenant, false));
    }

    /// Those of one namespace, without a look at the others.
    fn again_in(&mut self, namespace: &str, which: impl Fn(&Known) -> bool) {
        let there = self.tenants.range(Tenant::new(namespace, "")..).take_while(|(tenant, _)| tenant.namespace == namespace);
        let these: Vec<Tenant> = there.filter(|(_, known)| which(known)).map(|(tenant, _)| tenant.clone()).collect();
        these.into_iter().for_each(|tenant| self.queue(tenant, false));
    }

    fn gone(&mut self, tenant: &Tenant, release: bool) {
        let now_ms = clock::unix_ms();
        let known = self.tenants.remove(tenant);
        let release = release || known.as_ref().is_some_and(|known| known.release);
        self.on_the_way.remove(tenant);
        self.unwritten.remove(tenant);
        self.asking.remove(tenant);
        self.to_count = true;
        let fleets = [self.placed.remove(tenant), self.moving.remove(tenant), known.as_ref().and_then(fleet_key)];
        for fleet in fleets.into_iter().flatten().collect::<BTreeSet<FleetKey>>() {
            self.leave(tenant, &fleet, release, now_ms);
        }
    }

    /// A tenant is no more at a fleet.
    fn leave(&mut self, tenant: &Tenant, key: &FleetKey, release: bool, now_ms: u64) {
        self.take_out(tenant, key);
        if let Some(fleet) = self.fleets.get_mut(key) {
            fleet.ledger.gone(tenant, release, now_ms);
            fleet.good.forget(&tenant.to_string());
            if release {
                let key = key.clone();
                self.again(|_, known| known.said != 0 && fleet_key(known).as_ref() == Some(&key) && !is_ready(known));
            }
        }
    }

    fn list_ended(&mut self, watch: usize) {
        let Some(came) = self.listing.get_mut(watch).and_then(Option::take) else { return };
        if let Some(listed) = self.listed.get_mut(watch) {
            *listed = true;
        }
        let namespace = self.context.namespaces.get(watch).cloned();
        let missing: Vec<Tenant> = self
            .tenants
            .keys()
            .filter(|tenant| namespace.as_ref().is_none_or(|namespace| *namespace == tenant.namespace) && !came.contains(*tenant))
            .cloned()
            .collect();
        missing.iter().for_each(|tenant| self.gone(tenant, false));
    }

    fn policy(&self, namespace: &str, name: &str) -> Option<Arc<DeserializeGuard<MailPolicy>>> {
        self.world.policies.one(namespace, name)
    }

    fn fleet_guard(&self, key: &FleetKey) -> Option<Arc<DeserializeGuard<GatewayFleet>>> {
        self.world.fleets.one(&key.namespace, &key.name)
    }

    fn fleet_changed(&mut self, key: &FleetKey) {
        let guard = self.fleet_guard(key);
        let now = guard.as_ref().map(|guard| version(guard.meta()));
        if self.fleet_versions.insert(key.clone(), now.clone()) == Some(now) {
            return;
        }
        // The claims on a fleet that is gone stay: one that is made again does not give its tenants' domains away.
        self.again(|_, known| fleet_key(known).as_ref() == Some(key));
        let moving: Vec<Tenant> = self.moving.keys().filter(|tenant| self.placed.get(*tenant) == Some(key)).cloned().collect();
        moving.into_iter().for_each(|tenant| self.queue(tenant, false));
        if self.synced {
            // Fleets that come later have everything that there is for them once their tenants were judged; those are in the queue now.
            self.open(key);
        }
    }

    /// The fleet's ledger and last good forms, made when they are first needed.
    fn open(&mut self, key: &FleetKey) {
        let Some(guard) = self.fleet_guard(key) else { return };
        let Ok(object) = &guard.0 else { return };
        let said = ownership(object);
        if let Some(fleet) = self.fleets.get_mut(key) {
            if fleet.ownership != said {
                fleet.ledger.set_overlap(overlap(said));
                fleet.ownership = said;
            }
            return;
        }
        let recorded = self.recorded.as_mut();
        let (records, broken, good) = recorded.map_or_else(Default::default, |recorded| {
            (recorded.claims.remove(key).unwrap_or_default(), recorded.broken.remove(key), recorded.good.remove(key).unwrap_or_default())
        });
        if let Some(broken) = &broken {
            tracing::error!(fleet = %key.name, namespace = %key.namespace, error = broken.message, "recorded claims cannot be read: no tenant of this fleet is accepted anew");
        }
        let now_ms = clock::unix_ms();
        let mut ledger = Ledger::new(overlap(said), records);
        // Who names another fleet now is on the way from this one, even if nobody led when that happened. Who cannot be read may still be at this one.
        let is_here = |known: &Known| fleet_key(known).is_none_or(|fleet| fleet == *key);
        let there: BTreeSet<Tenant> = self.tenants.iter().filter(|(_, known)| is_here(known)).map(|(tenant, _)| tenant.clone()).collect();
        ledger.reconcile(&there, now_ms);
        ledger.expire(now_ms);
        let moving = |tenant: &Tenant| self.tenants.contains_key(tenant) && !there.contains(tenant) && !self.placed.contains_key(tenant);
        let moving: BTreeSet<Tenant> = ledger.holders().filter(|holder| moving(holder)).map(|holder| Tenant::clone(holder)).collect();
        let good = GoodForms::new(good, |text| {
            let tenant = text.split_once('/').map(|(namespace, name)| Tenant::new(namespace, name));
            tenant.is_some_and(|tenant| there.contains(&tenant) || moving.contains(&tenant))
        });
        self.fleets.insert(key.clone(), Fleet { ledger, good, broken, ownership: said, left: BTreeMap::new() });
        for tenant in moving {
            // Until the other fleet has it, this one serves what it served.
            self.keep_last_good(&tenant, key, &part_key(&tenant));
            self.queue(tenant, false);
        }
    }

    /// Judges some tenants, records their claims, and only then puts their parts in.
    async fn slice(&mut self) -> anyhow::Result<()> {
        let now_ms = clock::unix_ms();
        self.expire(now_ms);
        let mut judged = vec![];
        for (tenant, urgent) in self.next_slice() {
            if self.queued.remove(&tenant)
                && let Some((fleet, result)) = self.judge(&tenant, now_ms)
            {
                judged.push((tenant, fleet, result, urgent));
            }
        }
        self.write_claims().await?;
        for (tenant, fleet, result, urgent) in judged {
            if self.is_unwritten(&fleet, &result) {
                self.wait(tenant, fleet, result);
            } else {
                self.unwritten.remove(&tenant);
                self.place(tenant, fleet, result, urgent);
            }
        }
        self.yield_domains();
        for (key, fleet) in &mut self.fleets {
            self.records.write_good(key, &mut fleet.good).await?;
        }
        if !self.synced && self.urgent.is_empty() && self.bulk.is_empty() {
            self.all_judged();
        } else if self.synced && self.bulk.is_empty() && self.urgent.is_empty() {
            self.answer_for_new_fleets();
        }
        Ok(())
    }

    /// Who is judged next, and whether a user waits for it.
    fn next_slice(&mut self) -> Vec<(Tenant, bool)> {
        let (urgent_max, bulk_max) = if self.synced { SLICE } else { (FIRST_SLICE, FIRST_SLICE) };
        let urgent = urgent_max.min(self.urgent.len());
        if urgent > 0 {
            return self.urgent.drain(..urgent).map(|tenant| (tenant, true)).collect();
        }
        self.bulk.drain(..bulk_max.min(self.bulk.len())).map(|tenant| (tenant, false)).collect()
    }

    fn all_judged(&mut self) {
        let keys: Vec<FleetKey> = self
            .world
            .fleets
            .all()
            // One that cannot be read has no tenants here yet: it is answered for once it can be, and they were judged.
            .filter(|guard| guard.0.is_ok())
            .map(|guard| FleetKey::new(guard.meta().namespace.as_deref().unwrap_or_default(), guard.meta().name.as_deref().unwrap_or_default()))
            .collect();
        for key in &keys {
            self.open(key);
            self.context.hub.synced(key, "tenants");
        }
        self.synced = true;
        self.context.metrics.tenants_synced.set(1);
        tracing::info!(event = "synced", tenants = self.tenants.len(), "tenants are known and judged");
    }

    fn answer_for_new_fleets(&mut self) {
        for key in self.fleets.keys().filter(|key| self.fleet_guard(key).is_some()) {
            self.context.hub.synced_once(key, "tenants");
        }
    }

    /// The fleet that a tenant names; of one that cannot be read, the one where it was last.
    fn home(&self, tenant: &Tenant) -> Option<FleetKey> {
        let known = self.tenants.get(tenant)?;
        let recorded = || {
            let text = tenant.to_string();
            let open = self.fleets.iter().find(|(_, fleet)| fleet.good.of(&text).is_some() || fleet.ledger.held_by(tenant).next().is_some());
            let closed = || self.recorded.as_ref()?.good.iter().find(|(_, forms)| forms.contains_key(&text)).map(|(key, _)| key.clone());
            open.map(|(key, _)| key.clone()).or_else(closed)
        };
        fleet_key(known).or_else(|| self.placed.get(tenant).cloned()).or_else(recorded)
    }

    fn judge(&mut self, tenant: &Tenant, now_ms: u64) -> Option<(FleetKey, Judged)> {
        let key = self.home(tenant)?;
        if let Some(before) = self.moving.get(tenant).filter(|before| **before != key).cloned() {
            // It names yet another fleet: what it claimed at the one before is free at once, as the tenant is still there to say so.
            self.moving.remove(tenant);
            self.leave(tenant, &before, true, now_ms);
        }
        self.open(&key);
        let known = self.tenants.get(tenant)?;
        let guard = self.fleet_guard(&key);
        let fleet_lookup = match guard.as_deref() {
            Some(DeserializeGuard(Ok(fleet))) => Lookup::Found(fleet),
            Some(DeserializeGuard(Err(_))) => Lookup::Rejected,
            None => Lookup::Missing { near: None },
        };
        let policy = known.policy.as_deref().and_then(|name| self.policy(&tenant.namespace, name));
        let policy_lookup = match policy.as_deref() {
            Some(DeserializeGuard(Ok(policy))) => Lookup::Found(policy),
            Some(DeserializeGuard(Err(_))) => Lookup::Rejected,
            None => Lookup::Missing { near: None },
        };
        let namespace = self.world.namespaces.get(&ObjectRef::new(&tenant.namespace));
        let none = BTreeMap::new();
        let labels = namespace.as_ref().and_then(|namespace| namespace.metadata.labels.as_ref()).unwrap_or(&none);
        let against = Against { fleet: fleet_lookup, policy: policy_lookup, namespace_labels: labels };
        let (proofs, granted_by) = (std::cell::RefCell::new(&mut self.proofs), &self.grants);
        let fleet = self.fleets.get_mut(&key);
        let (held, broken, said): (BTreeSet<String>, Option<String>, Ownership) = match &fleet {
            Some(fleet) => {
                let proved = |domain: &Arc<str>| fleet.ledger.record(domain).is_some_and(|record| record.basis != Some(Basis::Trust));
                let asks = fleet.ownership == Ownership::DnsTxt;
                let held = fleet.ledger.held_by(tenant).filter(|domain| asks && proved(domain)).map(ToString::to_string).collect();
                (held, fleet.broken.as_ref().map(|broken| broken.message.clone()), fleet.ownership)
            }
            None => (BTreeSet::new(), None, Ownership::Grant),
        };
        let proof = |domain: &str| {
            if let Some(broken) = &broken {
                return Proof::Unclear(format!("recorded claims cannot be read ({broken})"));
            }
            match said {
                Ownership::Trust => Proof::Given,
                Ownership::Grant => granted(granted_by, &tenant.namespace, domain),
                // What was proved once is not asked for again; what the fleet only trusted is.
                Ownership::DnsTxt if held.contains(domain) => Proof::Unclear("it was accepted before".to_owned()),
                Ownership::DnsTxt => proofs.borrow_mut().of(&tenant.namespace, domain, now_ms),
            }
        };
        let judged = judge(tenant, known, &against, fleet.map(|fleet| &mut fleet.ledger), proof, now_ms);
        let trusted = |fleet: &Fleet| {
            let record = |domain: &Arc<str>| fleet.ledger.record(domain);
            fleet.ledger.held_by(tenant).filter_map(record).any(|record| record.basis == Some(Basis::Trust))
        };
        if said == Ownership::DnsTxt && self.fleets.get(&key).is_some_and(trusted) {
            self.asking.insert(tenant.clone());
        } else {
            self.asking.remove(tenant);
        }
        Some((key, judged))
    }

    /// Puts a part in, or keeps the last good form, and says so.
    fn place(&mut self, tenant: Tenant, key: FleetKey, mut judged: Judged, urgent: bool) {
        let text = tenant.to_string();
        let part = part_key(&tenant);
        self.to_count = true;
        let mut current = true;
        if let Some(known) = self.tenants.get_mut(&tenant) {
            known.good = judged.part.is_some();
            current = known.current;
        }
        if let Some(good) = judged.part.take() {
            self.make_way(&tenant, &key, &good.domains);
            self.context.hub.put(&key, &part, Bytes::from(part_json(&Part::Tenant(Box::new(good)))));
            if let Some(fleet) = self.fleets.get_mut(&key) {
                fleet.good.forget(&text);
            }
            self.moving.remove(&tenant);
            if let Some(before) = self.placed.insert(tenant.clone(), key.clone()).filter(|before| *before != key) {
                // It moved, and is served where it is now: its claims there are free at once, as the tenant is still there to say so.
                self.leave(&tenant, &before, true, clock::unix_ms());
            }
            let until_ms = clock::unix_ms() + PATIENCE_MS;
            // Where nothing new is to be said, and nobody waits for it, one word at the end is enough.
            self.on_the_way.insert(tenant, OnTheWay { fleet: key, judged, until_ms, told: !urgent && current });
            self.look_again = true;
            return;
        }
        self.on_the_way.remove(&tenant);
        let programmed = self.stay(&tenant, &key, &part);
        self.tell(&tenant, &judged, programmed, urgent);
    }

    /// What becomes of a tenant that is wrong: its last good form goes on.
    fn stay(&mut self, tenant: &Tenant, key: &FleetKey, part: &str) -> Programmed<'static> {
        if let Some(programmed) = self.stay_where_it_was(tenant, key, part) {
            return programmed;
        }
        match self.fleet_guard(key).as_deref() {
            Some(DeserializeGuard(Ok(_))) => self.keep_last_good(tenant, key, part),
            // Nothing about it can be judged now: what is there stays as it is, without a record for each of the fleet's tenants.
            Some(DeserializeGuard(Err(_))) => match self.context.hub.part(key, part) {
                Some(json) if is_stand_in(&json) => Programmed::EarlierForm,
                Some(_) => Programmed::LastGoodForm,
                None => Programmed::Nowhere,
            },
            None => {
                // Nobody serves at a fleet that is gone, so there is nothing to keep.
                self.context.hub.remove(key, part);
                self.placed.remove(tenant);
                Programmed::Nowhere
            }
        }
    }

    /// Keeps the last good form, from the configuration or from the records, with only the domains that are still the tenant's. Where nothing is known of
    /// one, the gateways may still have it: another process led when it was good, and nobody did when it turned bad.
    fn keep_last_good(&mut self, tenant: &Tenant, key: &FleetKey, part: &str) -> Programmed<'static> {
        let text = tenant.to_string();
        let Some(fleet) = self.fleets.get_mut(key) else { return Programmed::Nowhere };
        let recorded = fleet.good.of(&text).map(|json| Bytes::from(json.to_owned()));
        let form = self.context.hub.part(key, part).filter(|json| !is_stand_in(json)).or(recorded);
        let (json, programmed) = match left_of(form.as_deref(), tenant, &fleet.ledger) {
            Left::Form(form) => {
                let json = part_json(&Part::Tenant(form));
                if !fleet.good.keep(&text, String::from_utf8_lossy(&json).into_owned()) {
                    tracing::warn!(%tenant, fleet = %key.name, namespace = %key.namespace, "there is no room to record its last good form: it serves, but a new leader will know its domains alone; set the tenant right");
                    self.context.metrics.errors.with_label_values(&["LastGoodForm", "full"]).inc();
                }
                (json, Programmed::LastGoodForm)
            }
            Left::Domains(domains) => (stand_in(&domains), Programmed::EarlierForm),
            Left::Nothing => {
                fleet.good.forget(&text);
                self.take_out(tenant, key);
                return Programmed::Nowhere;
            }
        };
        self.context.hub.put(key, part, Bytes::from(json));
        self.placed.insert(tenant.clone(), key.clone());
        programmed
    }

    fn tell(&mut self, tenant: &Tenant, judged: &Judged, programmed: Programmed<'_>, urgent: bool) {
        let Some(known) = self.tenants.get_mut(tenant) else { return };
        let report = TenantReport { tenant, problems: &judged.problems, claims: &judged.claims, programmed, refusing: known.refusing };
        let facts = tenant_conditions(&report);
        let digest = digest_of(&facts, Some(judged.generation), known.suspended_since);
        known.wanted = digest;
        if known.said != digest {
            log_conflicts(tenant, judged);
            let said = Said { facts, generation: judged.generation, suspended_since: known.suspended_since };
            self.statuses.say(tenant, said, urgent);
        }
    }

    /// Gateways said something: tenants whose parts have arrived are told so. A bounded number in each turn, round after round.
    fn look_at_gateways(&mut self) {
        let from = match self.looked.take() {
            Some(tenant) => Bound::Excluded(tenant),
            None if std::mem::take(&mut self.look_again) => Bound::Unbounded,
            None => return,
        };
        let now_ms = clock::unix_ms();
        let mut arrived = vec![];
        for (number, (tenant, on_the_way)) in self.on_the_way.range((from, Bound::Unbounded)).enumerate() {
            if number == LOOK_MAX {
                break;
            }
            if number + 1 == LOOK_MAX {
                self.looked = Some(tenant.clone());
            }
            let reach = self.context.hub.reach(&on_the_way.fleet, &part_key(tenant));
            if reach != Reach::Waiting || (!on_the_way.told && now_ms >= on_the_way.until_ms) {
                arrived.push((tenant.clone(), reach));
            }
        }
        for (tenant, reach) in arrived {
            let Some(mut on_the_way) = self.on_the_way.remove(&tenant) else { continue };
            let lacks;
            let programmed = match reach {
                Reach::Everywhere => Programmed::Everywhere,
                Reach::Waiting => Programmed::Waiting,
                Reach::Unknown => Programmed::Nowhere,
                Reach::Rejected(rejection) => {
                    lacks = if rejection.lacks.is_empty() { rejection.message } else { rejection.lacks };
                    Programmed::NeedsNewerGateway(&lacks)
                }
            };
            self.tell(&tenant, &on_the_way.judged, programmed, true);
            if programmed == Programmed::Waiting {
                on_the_way.told = true;
                self.on_the_way.insert(tenant, on_the_way);
            }
        }
    }

    /// What time alone brings.
    fn tick(&mut self) {
        let now_ms = clock::unix_ms();
        self.expire(now_ms);
        for namespace in self.proofs.due(now_ms) {
            self.again_in(&namespace, |known| !is_ready(known));
            let asking: Vec<Tenant> =
                self.asking.range(Tenant::new(&*namespace, "")..).take_while(|tenant| *tenant.namespace == *namespace).cloned().collect();
            asking.into_iter().for_each(|tenant| self.queue(tenant, false));
        }
        self.look_again = true;
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(REFUSING_TICKS) {
            self.look_at_refusals();
        }
        if self.ticks.is_multiple_of(REFUSING_ALL_TICKS) {
            self.forget_left();
        }
    }

    /// Tenants whose servers refuse the gateways, or do so no more, are told so.
    fn look_at_refusals(&mut self) {
        let heard: BTreeMap<FleetKey, BTreeSet<String>> =
            self.fleets.keys().filter_map(|key| Some((key.clone(), self.context.hub.refusing(key)?))).collect();
        // A look at every tenant, so only where something moved; and from time to time, as tenants come that were spoken of before.
        if heard == self.refusing && !self.ticks.is_multiple_of(REFUSING_ALL_TICKS) {
            return;
        }
        let mut changed = vec![];
        for (tenant, known) in &mut self.tenants {
            // Of a fleet that nobody speaks of yet, what the status says holds on.
            let Some(refusing) = fleet_key(known).and_then(|key| heard.get(&key)) else { continue };
            let refuses = !refusing.is_empty() && refusing.contains(&tenant.to_string());
            if known.refusing != refuses {
                known.refusing = refuses;
                changed.push(tenant.clone());
            }
        }
        self.refusing = heard;
        changed.into_iter().for_each(|tenant| self.queue(tenant, false));
    }

    /// Claims that ran out are free, and whoever waits is judged again. Before every slice, as a claim lets them run out, too, and tells nobody.
    fn expire(&mut self, now_ms: u64) {
        let mut freed = false;
        for fleet in self.fleets.values_mut() {
            freed |= !fleet.ledger.expire(now_ms).is_empty();
        }
        if freed {
            self.again(|_, known| !is_ready(known));
        }
    }

    /// One count at a time; one that could not be said is made again.
    async fn count(&mut self) {
        if self.counting.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(done) = self.counting.take()
        {
            self.to_count |= !done.await.unwrap_or(false);
        }
        if !self.to_count || self.counting.is_some() || self.counted.elapsed() < COUNT_EVERY {
            return;
        }
        self.to_count = false;
        self.counted = Instant::now();
        let mut counted = counts::Counted::default();
        for (tenant, known) in &self.tenants {
            if let Some(policy) = &known.policy {
                *counted.policies.entry((tenant.namespace.clone(), Arc::clone(policy))).or_default() += 1;
            }
        }
        let (policies, grants) = counts::subjects(&self.world);
        // Only grants ask for it, and where there are none it is not worth a walk over every claim.
        let ledgers = self.fleets.values().filter(|_| !grants.is_empty()).map(|fleet| &fleet.ledger);
        for record in ledgers.flat_map(Ledger::records).filter(|record| record.gone_since_ms.is_none()) {
            counted.held.entry(record.holder.namespace.clone()).or_default().push((Arc::clone(&record.domain), Arc::clone(&record.holder)));
        }
        let (client, metrics) = (self.context.client.clone(), Arc::clone(&self.context.metrics));
        self.counting = Some(tokio::spawn(counts::say(client, policies, grants, counted, metrics)));
    }
}

/// Whoever runs the fleet finds here what a loser of another namespace is not told.
fn log_conflicts(tenant: &Tenant, judged: &Judged) {
    for claim in &judged.claims {
        if let Verdict::Conflict { holder, by, .. } = &claim.verdict
            && holder.namespace != tenant.namespace
        {
            tracing::warn!(event = "conflict", %tenant, domain = claim.domain, %holder, held = %by, "a tenant claims a domain that one of another namespace holds");
        }
    }
}

fn fleet_key(known: &Known) -> Option<FleetKey> {
    known.fleet.as_ref().map(|(namespace, name)| FleetKey { namespace: Arc::clone(namespace), name: Arc::clone(name) })
}

/// Whether nothing was wrong when it was judged last: then what time brings changes nothing for it.
fn is_ready(known: &Known) -> bool {
    known.good
}

fn part_key(tenant: &Tenant) -> String {
    format!("tenant/{}/{}", tenant.namespace, tenant.name)
}
