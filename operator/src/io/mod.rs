//! Everything that touches the world: the cluster, the clock, the stream.

pub mod clock;
pub mod hub;
pub mod kubectl;
