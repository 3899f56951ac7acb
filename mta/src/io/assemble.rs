//! Puts the parts of a gateway together: the same way for `run` and for tests of the whole.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use sekimori_crds::stream::DrainKind;
use tokio::sync::watch;

use crate::config::Config;
use crate::io::auth::{Authenticator, Evaluator};
use crate::io::delivery::{Delivery, Options as DeliveryOptions, Surroundings};
use crate::io::dns::{BudgetLimits, Resolver};
use crate::io::engine::{Engines, Options as EngineOptions};
use crate::io::gateway::{Filters, Gateway, Memory};
use crate::io::metrics::Metrics;
use crate::io::quarantine::Quarantine;
use crate::io::spool::{Recovered, Spool};
use crate::io::stores::{Hosts, Observer, Stores};

/// What a gateway is made of.
pub struct Parts {
    /// The configuration to begin with.
    pub config: Config,
    /// The spool.
    pub spool: Spool,
    /// What it recovered.
    pub recovered: Vec<Recovered>,
    /// Quarantine and dead letters.
    pub quarantine: Quarantine,
    /// DNS, for sender authentication and host names of routes.
    pub resolver: Arc<dyn Resolver>,
    /// How engines are connected. Its observer is replaced by the gateway's own.
    pub engines: EngineOptions,
    /// Delivery's bounds.
    pub delivery: DeliveryOptions,
    /// Memory for messages in flight.
    pub memory: Memory,
}

/// A gateway that takes no mail yet: nobody listens, and its queue waits for [`Delivery::run`].
pub struct Assembled {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// The resolver that host names are looked up with, to be replaced when the configuration names others.
    pub resolver: Arc<ArcSwap<Arc<dyn Resolver>>>,
}

/// Sender authentication over a resolver. Must be called within a tokio runtime.
pub fn authenticator(resolver: &Arc<dyn Resolver>) -> Box<dyn Authenticator> {
    Box::new(Evaluator::new(Arc::clone(resolver), BudgetLimits::default()))
}

/// Puts the parts together. Must be called within a tokio runtime.
///
/// # Errors
/// An engine that cannot be connected as configured; root certificates that are there but do not read.
pub fn assemble(parts: Parts) -> anyhow::Result<Assembled> {
    let metrics = Arc::new(Metrics::new());
    let tally = Arc::default();
    let observer = Arc::new(Observer::new(Arc::clone(&metrics), Arc::clone(&tally)));
    let engines = Engines::connect(&parts.config.fleet.engines, EngineOptions { observer: Some(observer), ..parts.engines })?;
    let filters = Arc::new(Filters { engines, authenticator: ArcSwap::from_pointee(authenticator(&parts.resolver)) });
    let resolver = Arc::new(ArcSwap::from_pointee(parts.resolver));
    parts.quarantine.set_retention(parts.config.fleet.quarantine_retention.std().as_millis() as u64);
    let config = Arc::new(ArcSwap::from_pointee(parts.config));
    let (stopping, stop_told) = watch::channel(false);
    let (draining, drain_told) = watch::channel(DrainKind::None);
    let stores = Stores::new(parts.quarantine.clone(), Arc::clone(&filters), Arc::clone(&config), Arc::clone(&metrics), (stop_told, drain_told));
    let stores = Arc::new(stores);
    let surroundings = Surroundings {
        config: Arc::clone(&config),
        spool: parts.spool.clone(),
        hosts: Arc::new(Hosts(Arc::clone(&resolver))),
        destination: Arc::clone(&stores) as _,
        rescanner: stores,
    };
    let delivery = Delivery::new(parts.delivery, surroundings)?;
    delivery.recovered(parts.recovered);
    let gateway = Arc::new(Gateway {
        config,
        filters,
        delivery,
        spool: parts.spool,
        quarantine: parts.quarantine,
        metrics,
        memory: Arc::new(parts.memory),
        rates: Mutex::default(),
        stopping,
        draining,
        cluster_networks: ArcSwap::default(),
        sharing: AtomicU32::new(1),
        clients: Mutex::default(),
        tally,
        serving: watch::Sender::new(false),
        certificates: Mutex::default(),
        sessions: Arc::new(()),
    });
    Ok(Assembled { gateway, resolver })
}
