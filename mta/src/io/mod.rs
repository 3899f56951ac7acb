//! Everything that touches the world. The rest of the crate never imports this module.

pub mod accept;
pub mod admin;
pub mod auth;
pub mod clock;
pub mod control;
pub mod delivery;
pub mod dns;
pub mod engine;
pub mod listener;
pub mod metrics;
pub mod pipeline;
pub mod quarantine;
pub mod session;
pub mod spool;
pub mod tls;
