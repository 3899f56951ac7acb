//! Everything that touches the world: the cluster, the clock, the stream.

pub mod admin;
pub mod clock;
pub mod cluster;
pub mod fleet;
pub mod hub;
pub mod lease;
pub mod metrics;
pub mod run;
pub mod stream;
pub mod tenants;
