//! The configuration of a running gateway: checked, indexed, immutable.
//!
//! A transaction keeps the `Arc<Config>` that it began with. [`Held`] is what a gateway in a pod has of the operator's parts, and makes one of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use sekimori_crds::snapshot::{FORMAT, FleetPart, RollingHash, Snapshot, TenantPart};

mod held;
mod shards;
mod tenants;

pub use held::{Form, Held, Place, Refused, Way};
pub use tenants::Tenants;

/// What this build can do beyond the first format; a part that `requires` anything else keeps its last good form.
pub const CAPABILITIES: &[&str] = &[];

/// Everything that a transaction needs to know. Cheap to clone, and cheap to change by one tenant: what did not change is shared.
#[derive(Clone, Debug)]
pub struct Config {
    /// The fleet's settings.
    pub fleet: Arc<FleetPart>,
    /// DNS resolvers; empty: the system's.
    pub resolvers: Vec<SocketAddr>,
    /// Hash of the parts that this was built from.
    pub hash: RollingHash,
    tenants: Tenants,
}

/// A tenant.
#[derive(Debug)]
pub struct Tenant {
    /// `namespace/name`.
    pub key: Arc<str>,
    /// Its part.
    pub part: TenantPart,
    /// It was removed from the configuration, but has mail in the queue: its routes still hold, no new mail is taken for it.
    pub removed: bool,
    /// Its newest form was rejected, and this is the last good one: a domain that it shares with a tenant in its newest form is the other's.
    pub kept: bool,
}

/// Why a snapshot cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Another shape.
    #[error("the snapshot has format {0}, this build reads format {FORMAT}: use the gateway version that wrote it, or start from the manifests")]
    Format(u32),
    /// Nothing to listen on.
    #[error("the snapshot has no fleet part: a GatewayFleet is needed")]
    NoFleet,
    /// A resolver address.
    #[error("GatewayFleet {fleet}: spec.resolver.addresses: '{value}' is not an address with a port, such as 10.96.0.10:53")]
    Resolver {
        /// Fleet.
        fleet: String,
        /// Value.
        value: String,
    },
    /// The fleet needs a newer gateway.
    #[error("GatewayFleet {fleet} requires '{capability}', which this build lacks: use a newer gateway")]
    NeedsNewerGateway {
        /// Fleet.
        fleet: String,
        /// Capability.
        capability: String,
    },
}

impl Config {
    /// Checks and indexes a snapshot. `removed` are tenants that are no longer in it but still have mail in the queue.
    ///
    /// A domain that two tenants claim goes to the first in key order: `compile` in `crds` reports the conflict, this only has to be deterministic.
    pub fn compile(snapshot: &Snapshot, removed: &[TenantPart]) -> Result<Self, ConfigError> {
        if snapshot.format != FORMAT {
            return Err(ConfigError::Format(snapshot.format));
        }
        let fleet = snapshot.fleet().ok_or(ConfigError::NoFleet)?.clone();
        let mut tenants = Tenants::default();
        for (_, part) in snapshot.tenants() {
            tenants.put(part.clone(), false);
        }
        for part in removed {
            if tenants.tenant(&tenants::key_of(part)).is_none() {
                tenants.put_removed(part.clone());
            }
        }
        Self::new(Arc::new(fleet), tenants, snapshot.hash())
    }

    /// Puts a fleet's settings and tenants together, sharing both.
    pub fn new(fleet: Arc<FleetPart>, tenants: Tenants, hash: RollingHash) -> Result<Self, ConfigError> {
        if let Some(capability) = fleet.requires.iter().find(|c| !CAPABILITIES.contains(&c.as_str())) {
            return Err(ConfigError::NeedsNewerGateway { fleet: fleet.name.clone(), capability: capability.clone() });
        }
        let resolvers = fleet
            .resolver_addresses
            .iter()
            .map(|value| value.parse().map_err(|_| ConfigError::Resolver { fleet: fleet.name.clone(), value: value.clone() }))
            .collect::<Result<_, _>>()?;
        Ok(Self { fleet, resolvers, hash, tenants })
    }

    /// The tenant that serves a domain (lower-case A-labels): the exact name, else the nearest wildcard above it.
    pub fn tenant_of(&self, domain: &str) -> Option<&Arc<Tenant>> {
        self.tenants.of_domain(domain)
    }

    /// Whether a domain is one of a tenant whose newest form this build cannot use: it is somebody's, so its mail is deferred where no other form serves it.
    pub fn defers(&self, domain: &str) -> bool {
        self.tenants.defers(domain)
    }

    /// The tenant with this key, removed ones with mail included.
    pub fn tenant(&self, key: &str) -> Option<&Arc<Tenant>> {
        self.tenants.tenant(key)
    }

    /// All tenants, removed ones with mail included.
    pub const fn tenants(&self) -> &Tenants {
        &self.tenants
    }

    /// Whether a tenant's route may lead to this address: public ones always, others only if the fleet lists them (checked after DNS).
    pub fn egress_allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.fleet.egress_allowed_networks.iter().any(|network| network.contains(&address))
    }
}

/// Whether an address is one of the Internet: not private, loopback, link-local, shared, documentation, multicast, reserved or unspecified (RFC 6890).
pub fn is_public(address: IpAddr) -> bool {
    const SPECIAL: &[&str] = &[
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "::1/128",
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    ];
    static NETWORKS: std::sync::LazyLock<Vec<IpNet>> =
        std::sync::LazyLock::new(|| SPECIAL.iter().map(|text| text.parse().expect("a constant network")).collect());
    !NETWORKS.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
pub(crate) mod tests;
