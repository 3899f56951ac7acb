//! The whole gateway in one process: mail in over TCP, engines that fail in every way, mail out to a server that does as it is told.

mod bytes;
pub(crate) mod client;
mod faults;
mod promise;
mod sessions;
pub(crate) mod tenants;
mod tls;
pub(crate) mod world;
