//! Tools that put a gateway under load and keep the books: source, sink, ledger, stub DNS.

#![allow(clippy::disallowed_methods, reason = "these tools measure time; the gateway is where it comes in as now_ms")]

pub mod bench;
pub mod crash;
pub mod demo;
pub mod dns;
pub mod ledger;
pub mod probe;
pub mod process;
pub mod sink;
pub mod source;
