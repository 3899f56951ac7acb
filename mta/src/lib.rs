//! The gateway: mail in, filters, one verdict, at most one write, mail out.
//!
//! Everything that touches the world (sockets, files, the clock, randomness) is under [`io`]; everything else is pure:
//! state and `now_ms` come in, data goes out. `tests/it/tidy.rs` holds that line.

pub mod authentication;
pub mod budget;
pub mod certificate;
pub mod cli;
pub mod clients;
pub mod config;
pub mod content;
pub mod date;
pub mod disposition;
pub mod engine;
pub mod envelope;
pub mod io;
pub mod message;
pub mod queue;
pub mod queue_id;
pub mod rates;
pub mod route;
pub mod smtp;
pub mod verdict;
