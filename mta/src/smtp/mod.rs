//! The wire protocol, both directions: RFC 5321 and its extensions, as machines without I/O. Imports nothing else of this crate.

pub mod address;
pub mod client;
pub mod command;
pub mod data;
pub mod limits;
pub mod proxy;
pub mod reply;
pub mod server;
pub mod stuff;

pub use address::{Address, AddressError};
pub use data::BareLineEndings;
pub use limits::Limits;
pub use proxy::{ProxyError, ProxyHeader, ProxyProgress};
pub use reply::{Reply, ReplyError, ReplyReader};
