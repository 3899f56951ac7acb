//! The tenants, by key and by domain. Cheap to clone, cheap to change by one.

use std::sync::Arc;

use sekimori_crds::snapshot::TenantPart;

use super::Tenant;
use super::shards::Shards;

/// Who has a domain, and who would have it next.
#[derive(Clone, Debug)]
struct Claims {
    owner: Arc<Tenant>,
    /// In their order; nearly always empty.
    others: Vec<Arc<Tenant>>,
}

/// All tenants.
#[derive(Clone, Debug, Default)]
pub struct Tenants {
    by_key: Shards<Arc<Tenant>>,
    exact: Shards<Claims>,
    wildcard: Shards<Claims>,
    /// Keys of the removed ones. Few: those with mail, and those that went within the hour.
    removed: Shards<()>,
    /// Domains of parts that could not be used, wildcards with their `*.`, and the key of the part.
    deferred: Shards<Arc<str>>,
}

/// `namespace/name`.
pub(super) fn key_of(part: &TenantPart) -> String {
    format!("{}/{}", part.namespace, part.name)
}

impl Tenants {
    /// The tenant with this key, removed ones with mail included.
    pub fn tenant(&self, key: &str) -> Option<&Arc<Tenant>> {
        self.by_key.get(key)
    }

    /// See [`super::Config::tenant_of`].
    pub(super) fn of_domain(&self, domain: &str) -> Option<&Arc<Tenant>> {
        if let Some(claims) = self.exact.get(domain) {
            return Some(&claims.owner);
        }
        let mut rest = domain;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(claims) = self.wildcard.get(parent) {
                return Some(&claims.owner);
            }
            rest = parent;
        }
        None
    }

    /// See [`super::Config::defers`].
    pub(super) fn defers(&self, domain: &str) -> bool {
        let mut parents = std::iter::successors(domain.split_once('.'), |(_, parent)| parent.split_once('.')).map(|(_, parent)| parent);
        self.deferred.get(domain).is_some() || parents.any(|parent| self.deferred.get(&format!("*.{parent}")).is_some())
    }

    /// A part names these domains, but cannot be used.
    pub(super) fn defer(&mut self, key: &Arc<str>, domains: &[String]) {
        domains.iter().for_each(|domain| drop(self.deferred.insert(domain.as_str().into(), Arc::clone(key))));
    }

    /// That part is gone, or can be used now.
    pub(super) fn defer_no_more(&mut self, key: &str, domains: &[String]) {
        for domain in domains {
            if self.deferred.get(domain).is_some_and(|holder| **holder == *key) {
                self.deferred.remove(domain);
            }
        }
    }

    /// How many, removed ones with mail included.
    pub const fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.by_key.iter().map(|(_, tenant)| tenant)
    }

    /// The first by namespace and name.
    pub fn first(&self) -> Option<&Arc<Tenant>> {
        self.iter().min_by_key(|tenant| order(tenant))
    }

    /// Keys of the removed ones that are still known.
    pub fn removed(&self) -> impl Iterator<Item = &Arc<str>> {
        self.removed.iter().map(|(key, ())| key)
    }

    /// Adds or changes a tenant. `kept`: this is its last good form, as the newest one was rejected.
    ///
    /// A domain that two tenants claim goes to one in its newest form before one in a kept form, then to the first by namespace and name: the operator
    /// reports the conflict, this only has to be the same whatever came first.
    pub(super) fn put(&mut self, part: TenantPart, kept: bool) {
        let key: Arc<str> = key_of(&part).into();
        self.take(&key);
        let tenant = Arc::new(Tenant { key: Arc::clone(&key), part, removed: false, kept });
        for domain in &tenant.part.domains {
            let (index, name) = self.index_of(domain);
            let mut claims = index.remove(name).map_or_else(Vec::new, |claims| {
                let mut all = claims.others;
                all.insert(0, claims.owner);
                all
            });
            // A part may name a domain twice.
            if !claims.iter().any(|known| known.key == tenant.key) {
                let at = claims.partition_point(|known| order(known) < order(&tenant));
                claims.insert(at, Arc::clone(&tenant));
            }
            let owner = claims.remove(0);
            index.insert(name.into(), Claims { owner, others: claims });
        }
        self.by_key.insert(key, tenant);
    }

    /// Adds a tenant that is gone, but has mail.
    pub(super) fn put_removed(&mut self, part: TenantPart) {
        let key: Arc<str> = key_of(&part).into();
        self.take(&key);
        self.removed.insert(Arc::clone(&key), ());
        self.by_key.insert(Arc::clone(&key), Arc::new(Tenant { key, part, removed: true, kept: false }));
    }

    /// A tenant is gone: no new mail is taken for it, its form stays until [`Self::forget`].
    pub(super) fn remove(&mut self, key: &str) {
        if let Some(tenant) = self.by_key.get(key).filter(|tenant| !tenant.removed) {
            let part = tenant.part.clone();
            self.put_removed(part);
        }
    }

    /// Lets go of a removed tenant.
    pub(super) fn forget(&mut self, key: &str) {
        if self.removed.get(key).is_some() {
            self.take(key);
        }
    }

    /// The newest form of a tenant was rejected: its present one is a kept one from now on.
    pub(super) fn keep(&mut self, key: &str) {
        if let Some(tenant) = self.by_key.get(key).filter(|tenant| !tenant.kept && !tenant.removed) {
            let part = tenant.part.clone();
            self.put(part, true);
        }
    }

    fn index_of<'a>(&mut self, domain: &'a str) -> (&mut Shards<Claims>, &'a str) {
        match domain.strip_prefix("*.") {
            Some(parent) => (&mut self.wildcard, parent),
            None => (&mut self.exact, domain),
        }
    }

    /// Takes a tenant and its claims out.
    fn take(&mut self, key: &str) {
        let Some(tenant) = self.by_key.remove(key) else { return };
        self.removed.remove(key);
        if tenant.removed {
            return;
        }
        for domain in &tenant.part.domains {
            let (index, name) = self.index_of(domain);
            let Some(claims) = index.remove(name) else { continue };
            let mut left = std::iter::once(claims.owner).chain(claims.others).filter(|known| known.key != tenant.key);
            if let Some(owner) = left.next() {
                index.insert(name.into(), Claims { owner, others: left.collect() });
            }
        }
    }

    /// Shards of all indexes that both have in common, for tests of what a change costs.
    #[cfg(test)]
    pub(super) fn shared_with(&self, other: &Self) -> [usize; 3] {
        [self.by_key.shared_with(&other.by_key), self.exact.shared_with(&other.exact), self.wildcard.shared_with(&other.wildcard)]
    }
}

fn order(tenant: &Tenant) -> (bool, &str, &str) {
    (tenant.kept, &tenant.part.namespace, &tenant.part.name)
}
