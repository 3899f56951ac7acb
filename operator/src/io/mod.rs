//! Everything that touches the world: the cluster, the clock, the stream.

pub mod admin;
#[cfg(test)]
pub(crate) mod api_server;
pub mod clock;
pub mod cluster;
pub mod definitions;
pub mod events;
pub mod fleet;
pub mod hub;
pub mod kubectl;
pub mod lease;
pub mod metrics;
pub mod run;
pub mod stream;
pub mod tenants;
