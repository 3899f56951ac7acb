//! The whole gateway in one process: mail in over TCP, engines that fail in every way, mail out to a server that does as it is told.

mod bytes;
mod client;
mod faults;
mod promise;
mod sessions;
mod tenants;
mod world;
