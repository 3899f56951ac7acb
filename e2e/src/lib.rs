//! Tools that put a gateway under load and keep the books: source, sink, ledger, stub DNS.

pub mod bench;
pub mod crash;
pub mod demo;
pub mod dns;
pub mod ledger;
pub mod process;
pub mod sink;
pub mod source;
