//! Tools that put a gateway under load and keep the books: source, sink, ledger, stub DNS.

pub mod dns;
pub mod ledger;
pub mod sink;
pub mod source;
