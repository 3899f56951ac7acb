//! Everything that touches the world. The rest of the crate never imports this module.

pub mod accept;
pub mod admin;
pub mod assemble;
pub mod auth;
pub mod clock;
pub mod commands;
pub mod control;
pub mod delivery;
pub mod dns;
pub mod engine;
pub mod gateway;
pub mod last_good;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod pipeline;
pub mod quarantine;
pub mod record;
pub mod run;
pub mod session;
pub mod spool;
pub mod stores;
pub mod tls;
pub mod transaction;
