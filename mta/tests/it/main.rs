//! The gateway's parts and the whole gateway in one process.

mod auth;
mod delivery;
mod engines;
mod gateway;
mod pod;
mod reference;
mod spool_sim;
mod tidy;
mod transcripts;
